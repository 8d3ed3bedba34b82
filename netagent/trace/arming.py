"""The table that switches tracing on for some flows: as messages for the kernel, and as text for people. Pure.

It has the flag `owner` and not `persist` (Linux 5.12): the kernel removes it when the socket that made it is closed,
however the process came to its end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import netlink, ruleset, wire
from netagent.trace.flow import Flow

TABLE: Final = "netagent-trace"
# Before NF_IP_PRI_RAW (-300, linux/netfilter_ipv4.h): what others do in raw chains is told, too.
PRIORITY: Final = -350
CHAINS: Final = {"prerouting": c.NF_INET_PRE_ROUTING, "output": c.NF_INET_LOCAL_OUT}

# linux/netfilter/nf_tables.h
_NFT_META_NFTRACE: Final = 12
_NFTA_LIMIT_RATE, _NFTA_LIMIT_UNIT, _NFTA_LIMIT_BURST = 1, 2, 3
_REGISTER: Final = (1).to_bytes(4)  # NFT_REG_1
# A flow of a million packets a second must not become as many messages.
_RATE: Final = 100  # packets a second
_BURST: Final = 50  # packets

_TABLE_FAMILY: Final = {addresses.Family.IPV4: "ip", addresses.Family.IPV6: "ip6"}
_TCP_FLAGS_OFFSET: Final = 13  # of the TCP header (RFC 9293)
_TCP_SYN, _TCP_SYN_ACK = 0x02, 0x12


def messages(flows: Iterable[Flow], *, every_packet: bool, limited: bool = True) -> list[bytes]:
    """The messages of one transaction that arms these flows: the first packets of connections, or every packet.

    Without connections, as in UDP, every packet counts. `limited`: the kernel bounds the packets a second.
    """
    made: list[bytes] = []
    by_family: dict[addresses.Family, list[Flow]] = {}
    for flow in flows:
        by_family.setdefault(flow.family, []).append(flow)
    for family, theirs in sorted(by_family.items()):
        proto = wire.NFPROTO[family]
        create = c.NLM_F_REQUEST | c.NLM_F_CREATE
        payload = wire.text(c.NFTA_TABLE_NAME, TABLE) + wire.number(c.NFTA_TABLE_FLAGS, c.NFT_TABLE_F_OWNER)
        made.append(netlink.message(c.NFT_MSG_NEWTABLE, proto, create, payload))
        for name, hook in CHAINS.items():
            made.append(netlink.message(c.NFT_MSG_NEWCHAIN, proto, create, _chain(name, hook)))
            for flow in theirs:
                payload = (
                    wire.text(c.NFTA_RULE_TABLE, TABLE)
                    + wire.text(c.NFTA_RULE_CHAIN, name)
                    + wire.nest(c.NFTA_RULE_EXPRESSIONS, *_expressions(flow, every_packet, limited))
                )
                made.append(netlink.message(c.NFT_MSG_NEWRULE, proto, create | c.NLM_F_APPEND, payload))
    return made


def removal(families: Iterable[addresses.Family]) -> list[bytes]:
    """The messages of one transaction that takes the tables away."""
    payload = wire.text(c.NFTA_TABLE_NAME, TABLE)
    return [
        netlink.message(c.NFT_MSG_DELTABLE, wire.NFPROTO[family], c.NLM_F_REQUEST, payload)
        for family in sorted(set(families))
    ]


def text(flows: Iterable[Flow], *, every_packet: bool) -> Iterator[str]:
    """The same in nft's language, for people."""
    by_family: dict[addresses.Family, list[Flow]] = {}
    for flow in flows:
        by_family.setdefault(flow.family, []).append(flow)
    for family, theirs in sorted(by_family.items()):
        word = _TABLE_FAMILY[family]
        yield f"table {word} {TABLE} {{"
        yield "\tflags owner"
        for name in CHAINS:
            yield f"\tchain {name} {{"
            yield f"\t\ttype filter hook {name} priority {PRIORITY}; policy accept;"
            for flow in theirs:
                source = f"{word} saddr {addresses.format_address(flow.source)} " if flow.source is not None else ""
                protocol = flow.protocol.name.lower()
                first = "tcp flags & (syn | ack) == syn " if _only_first(flow, every_packet) else ""
                place = f"{word} daddr {addresses.format_address(flow.destination)} {protocol} dport {flow.port}"
                yield (
                    f"\t\t{source}{place} {first}limit rate {_RATE}/second burst {_BURST} packets meta nftrace set 1"
                )
            yield "\t}"
        yield "}"


def _only_first(flow: Flow, every_packet: bool) -> bool:
    return flow.protocol is addresses.Protocol.TCP and not every_packet


def _chain(name: str, hook: int) -> bytes:
    return (
        wire.text(c.NFTA_CHAIN_TABLE, TABLE)
        + wire.text(c.NFTA_CHAIN_NAME, name)
        + wire.nest(
            c.NFTA_CHAIN_HOOK,
            wire.number(c.NFTA_HOOK_HOOKNUM, hook),
            wire.number(c.NFTA_HOOK_PRIORITY, PRIORITY & 0xFFFFFFFF),
        )
        + wire.number(c.NFTA_CHAIN_POLICY, c.NF_ACCEPT)
        + wire.text(c.NFTA_CHAIN_TYPE, ruleset.ChainType.FILTER.value)
    )


def _expressions(flow: Flow, every_packet: bool, limited: bool) -> Iterator[bytes]:
    tests: list[ruleset.Statement] = []
    for field, address in ((ruleset.Field.SOURCE, flow.source), (ruleset.Field.DESTINATION, flow.destination)):
        if address is not None:
            tests.append(ruleset.InPrefix(field, addresses.network(address, len(address) * 8)))
    tests.append(ruleset.IsProtocol(flow.protocol))
    yield wire.expressions(tuple(tests), flow.family)
    yield _load_transport(2, 2)
    yield _compare(flow.port.to_bytes(2))
    if _only_first(flow, every_packet):
        yield _load_transport(_TCP_FLAGS_OFFSET, 1)
        yield _expression(
            "bitwise",
            wire.attribute(c.NFTA_BITWISE_SREG, _REGISTER),
            wire.attribute(c.NFTA_BITWISE_DREG, _REGISTER),
            wire.number(c.NFTA_BITWISE_LEN, 1),
            wire.nest(c.NFTA_BITWISE_MASK, wire.attribute(c.NFTA_DATA_VALUE, bytes((_TCP_SYN_ACK,)))),
            wire.nest(c.NFTA_BITWISE_XOR, wire.attribute(c.NFTA_DATA_VALUE, b"\0")),
        )
        yield _compare(bytes((_TCP_SYN,)))
    if limited:
        yield _expression(
            "limit",
            wire.attribute(_NFTA_LIMIT_RATE, struct.pack(">Q", _RATE)),
            wire.attribute(_NFTA_LIMIT_UNIT, struct.pack(">Q", 1)),
            wire.number(_NFTA_LIMIT_BURST, _BURST),
        )
    yield _expression(
        "immediate",
        wire.attribute(c.NFTA_IMMEDIATE_DREG, _REGISTER),
        wire.nest(c.NFTA_IMMEDIATE_DATA, wire.attribute(c.NFTA_DATA_VALUE, b"\1")),
    )
    yield _expression(
        "meta", wire.number(c.NFTA_META_KEY, _NFT_META_NFTRACE), wire.attribute(c.NFTA_META_SREG, _REGISTER)
    )


def _load_transport(offset: int, size: int) -> bytes:
    return _expression(
        "payload",
        wire.attribute(c.NFTA_PAYLOAD_DREG, _REGISTER),
        wire.number(c.NFTA_PAYLOAD_BASE, c.NFT_PAYLOAD_TRANSPORT_HEADER),
        wire.number(c.NFTA_PAYLOAD_OFFSET, offset),
        wire.number(c.NFTA_PAYLOAD_LEN, size),
    )


def _compare(value: bytes) -> bytes:
    return _expression(
        "cmp",
        wire.attribute(c.NFTA_CMP_SREG, _REGISTER),
        wire.number(c.NFTA_CMP_OP, c.NFT_CMP_EQ),
        wire.nest(c.NFTA_CMP_DATA, wire.attribute(c.NFTA_DATA_VALUE, value)),
    )


def _expression(name: str, *parts: bytes) -> bytes:
    return wire.nest(
        c.NFTA_LIST_ELEM, wire.text(c.NFTA_EXPR_NAME, name), wire.attribute(c.NFTA_EXPR_DATA, b"".join(parts))
    )
