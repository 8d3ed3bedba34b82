"""All of nf_tables in this network namespace, as far as it can get in our way; read over netlink, never by `nft`."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

from netagent.doctor import evidence
from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import layout, netlink, readback, ruleset

_NFPROTO: Final = {"ip": c.NFPROTO_IPV4, "ip6": c.NFPROTO_IPV6, "inet": 1}  # NFPROTO_INET, linux/netfilter.h


def read(*, mark: int) -> evidence.Ruleset:
    """Tables, chains, and what our own tables serve. `mark` is our masquerade bit, looked for in others' rules."""
    tables: list[evidence.Table] = []
    chains: list[evidence.Chain] = []
    frontends: dict[addresses.Family, int] = {}
    node_ports: set[evidence.NodePort] = set()
    try:
        with netlink.NftablesSocket() as door:
            for name, proto in _NFPROTO.items():
                tables += _tables(door, name, proto)
                chains += _chains(door, name, proto, mark)
            for family in addresses.Family:
                frontends[family] = len(_elements(door, family, layout.FRONTENDS))
                node_ports |= {_node_port(key) for key in _elements(door, family, layout.NODEPORTS)}
    except PermissionError:
        return evidence.Ruleset(unread=f"user {os.geteuid()} has no CAP_NET_ADMIN here")
    except OSError as error:
        return evidence.Ruleset(unread=os.strerror(error.errno or 0))
    return evidence.Ruleset("", tuple(sorted(tables)), tuple(chains), frontends, frozenset(node_ports))


def has_ours(found: evidence.Ruleset) -> bool:
    """Whether there is a table of mode nftables."""
    return any(table.name == ruleset.TABLE_NAME for table in found.tables)


def _tables(door: netlink.NftablesSocket, family: str, proto: int) -> Iterator[evidence.Table]:
    for body in door.dump_all(c.NFT_MSG_GETTABLE, proto):
        parts = dict(netlink.attributes(body))
        yield evidence.Table(
            family,
            _text(parts.get(c.NFTA_TABLE_NAME)),
            _number(parts.get(c.NFTA_TABLE_FLAGS)),
            _number(parts.get(c.NFTA_TABLE_OWNER)),
        )


def _chains(door: netlink.NftablesSocket, family: str, proto: int, mark: int) -> Iterator[evidence.Chain]:
    counts: dict[tuple[str, str], int] = {}
    marking: dict[tuple[str, str], list[int]] = {}
    for body in door.dump_all(c.NFT_MSG_GETRULE, proto):
        parts = dict(netlink.attributes(body))
        place = (_text(parts.get(c.NFTA_RULE_TABLE)), _text(parts.get(c.NFTA_RULE_CHAIN)))
        counts[place] = counts.get(place, 0) + 1
        expressions = parts.get(c.NFTA_RULE_EXPRESSIONS, b"")
        # Most rules do not touch the mark, and there may be a hundred thousand.
        if b"meta\0" in expressions and sets_mark(expressions, mark):
            marking.setdefault(place, []).append(_number(parts.get(c.NFTA_RULE_HANDLE)))
    for body in door.dump_all(c.NFT_MSG_GETCHAIN, proto):
        parts = dict(netlink.attributes(body))
        place = (_text(parts.get(c.NFTA_CHAIN_TABLE)), _text(parts.get(c.NFTA_CHAIN_NAME)))
        hook = dict(netlink.attributes(parts.get(c.NFTA_CHAIN_HOOK, b"")))
        yield evidence.Chain(
            family,
            *place,
            kind=_text(parts.get(c.NFTA_CHAIN_TYPE)),
            hook=_number(hook.get(c.NFTA_HOOK_HOOKNUM)) if hook else None,
            priority=struct.unpack(">i", hook[c.NFTA_HOOK_PRIORITY])[0] if c.NFTA_HOOK_PRIORITY in hook else 0,
            policy=_number(parts.get(c.NFTA_CHAIN_POLICY)) if c.NFTA_CHAIN_POLICY in parts else c.NF_ACCEPT,
            rules=counts.get(place, 0),
            marking=tuple(marking.get(place, ())),
        )


def sets_mark(expressions: bytes, bit: int) -> bool:
    """Whether a rule's expressions set this bit of the packet mark to one, whatever it was before."""
    bits = 0  # that the register which was written last is known to have
    for name, values in _expressions(expressions):
        if name == "immediate":
            bits = _register(dict(netlink.attributes(values.get(c.NFTA_IMMEDIATE_DATA, b""))))
        elif name == "bitwise":
            mask, flips = (
                _register(dict(netlink.attributes(values.get(kind, b""))))
                for kind in (c.NFTA_BITWISE_MASK, c.NFTA_BITWISE_XOR)
            )
            bits = flips & ~mask
        elif name == "meta" and c.NFTA_META_SREG in values:
            if _number(values.get(c.NFTA_META_KEY)) == c.NFT_META_MARK and bits & bit:
                return True
        else:
            bits = 0
    return False


def _expressions(raw: bytes) -> Iterator[tuple[str, dict[int, bytes]]]:
    """The names of a rule's expressions, with their attributes."""
    for _, expression in netlink.attributes(raw):
        parts = dict(netlink.attributes(expression))
        yield _text(parts.get(c.NFTA_EXPR_NAME)), dict(netlink.attributes(parts.get(c.NFTA_EXPR_DATA, b"")))


def _register(data: dict[int, bytes]) -> int:
    raw = data.get(c.NFTA_DATA_VALUE, b"")
    return int(struct.unpack("=I", raw)[0]) if len(raw) == 4 else 0


def _elements(door: netlink.NftablesSocket, family: addresses.Family, name: str) -> ruleset.Elements:
    return readback.read_elements(door, layout.sets(affinity_clients=1)[name], family)


def _node_port(key: bytes) -> evidence.NodePort:
    return evidence.NodePort(key[0], int.from_bytes(key[4:6]))


def _text(raw: bytes | None) -> str:
    return (raw or b"").rstrip(b"\0").decode("utf-8", "replace")


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"")
