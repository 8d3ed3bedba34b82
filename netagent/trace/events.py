"""What the kernel tells of a traced packet: one event for each rule that it came through, and for each policy. Pure."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import netlink

# linux/netfilter/nfnetlink.h and nf_tables.h
NFNLGRP_NFTRACE: Final = 9
NFT_MSG_TRACE: Final = 17
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID = 1, 2, 3, 4, 5, 6  # NFTA_TRACE_*
_NETWORK_HEADER, _TRANSPORT_HEADER, _IIF, _OIF, _MARK, _POLICY = 8, 9, 10, 12, 14, 16
_FAMILY: Final = {1: "inet", c.NFPROTO_IPV4: "ip", 3: "arp", 5: "netdev", 7: "bridge", c.NFPROTO_IPV6: "ip6"}

_NFT_CONTINUE, _NFT_JUMP, _NFT_GOTO, _NFT_RETURN = -1, -3, -4, -5
_NF_STOLEN, _NF_QUEUE = 2, 3  # linux/netfilter.h
_VERDICT_MASK: Final = 0xFF  # the rest of the kernel's verdicts holds an error or a queue's number


class Kind(enum.IntEnum):
    """enum nft_trace_types."""

    POLICY = 1
    RETURN = 2
    RULE = 3


class Verdict(enum.StrEnum):
    """What a rule or a policy decided."""

    DROP = "drop"
    ACCEPT = "accept"
    STOLEN = "stolen"
    QUEUE = "queue"
    CONTINUE = "continue"
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"
    OTHER = "other"


_VERDICTS: Final = {
    c.NF_DROP: Verdict.DROP,
    c.NF_ACCEPT: Verdict.ACCEPT,
    _NF_STOLEN: Verdict.STOLEN,
    _NF_QUEUE: Verdict.QUEUE,
    _NFT_CONTINUE: Verdict.CONTINUE,
    _NFT_JUMP: Verdict.JUMP,
    _NFT_GOTO: Verdict.GOTO,
    _NFT_RETURN: Verdict.RETURN,
}


@dataclass(frozen=True, slots=True)
class Headers:
    """What a packet said of itself: packed addresses, protocol number, and ports (None where it has none)."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int | None = None
    destination_port: int | None = None

    def __str__(self) -> str:
        name = addresses.Protocol(self.protocol).name.lower() if self.protocol in _PROTOCOLS else str(self.protocol)
        ends = (
            addresses.format_address(address) if port is None else addresses.format_socket(address, port)
            for address, port in ((self.source, self.source_port), (self.destination, self.destination_port))
        )
        return f"{' -> '.join(ends)}/{name}"


_PROTOCOLS: Final = frozenset(addresses.Protocol)


@dataclass(frozen=True, slots=True)
class Event:
    """One message. `packet` tells packets apart; `handle` is that of a rule, None for a policy.

    `handle` is None also at the end of a chain, which the kernel tells as a rule that goes on. `target` is the chain
    that a jump or goto leads to. `headers` come with the first event of each hook only. Interfaces are indexes, 0 for
    none.
    """

    packet: int
    family: str
    table: str
    chain: str
    kind: Kind
    verdict: Verdict
    handle: int | None = None
    target: str = ""
    headers: Headers | None = None
    input_link: int = 0
    output_link: int = 0
    mark: int = 0

    @property
    def of_a_rule(self) -> bool:
        """Whether it tells of a rule, and not of a policy or the end of a chain."""
        return self.kind is not Kind.POLICY and self.handle is not None


def decode(payload: bytes) -> Event | None:
    """The event of a message's payload, which begins with the nf_tables header; None if it makes no sense."""
    if len(payload) < 4:
        return None
    found = dict(netlink.attributes(payload[4:]))
    try:
        kind = Kind(_number(found, _TYPE))
    except ValueError:
        return None
    verdict, target = _verdict(found)
    return Event(
        packet=_number(found, _ID),
        family=_FAMILY.get(payload[0], str(payload[0])),
        table=_text(found, _TABLE),
        chain=_text(found, _CHAIN),
        kind=kind,
        verdict=verdict,
        handle=_number(found, _HANDLE) if _HANDLE in found else None,
        target=target,
        headers=headers_of(found.get(_NETWORK_HEADER, b""), found.get(_TRANSPORT_HEADER, b"")),
        input_link=_number(found, _IIF),
        output_link=_number(found, _OIF),
        mark=_number(found, _MARK),
    )


def headers_of(network: bytes, transport: bytes) -> Headers | None:
    """What two headers say; None if the first one is not of IPv4 or IPv6, or cut off."""
    version = network[0] >> 4 if network else 0
    if version == 4 and len(network) >= 20:
        protocol, source, destination = network[9], network[12:16], network[16:20]
    elif version == 6 and len(network) >= 40:
        # Behind extension headers this is not the transport protocol; the packets of Services have none.
        protocol, source, destination = network[6], network[8:24], network[24:40]
    else:
        return None
    if protocol not in _PROTOCOLS or len(transport) < 4:
        return Headers(source, destination, protocol)
    return Headers(source, destination, protocol, *struct.unpack_from(">HH", transport))


def _verdict(found: dict[int, bytes]) -> tuple[Verdict, str]:
    if _POLICY in found:
        return _VERDICTS.get(_number(found, _POLICY), Verdict.OTHER), ""
    parts = dict(netlink.attributes(found.get(_VERDICT, b"")))
    raw = parts.get(c.NFTA_VERDICT_CODE, b"")
    if len(raw) != 4:
        return Verdict.OTHER, ""
    code = int(struct.unpack(">i", raw)[0])
    named = _VERDICTS.get(code if code < 0 else code & _VERDICT_MASK, Verdict.OTHER)
    return named, parts.get(c.NFTA_VERDICT_CHAIN, b"").rstrip(b"\0").decode("utf-8", "replace")


def _number(found: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(found.get(kind, b""))


def _text(found: dict[int, bytes], kind: int) -> str:
    return found.get(kind, b"").rstrip(b"\0").decode("utf-8", "replace")
