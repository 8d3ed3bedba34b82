"""The rules and elements that events refer to, read back from the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import layout, netlink, readback, ruleset, unwire

FAMILY: Final = {"ip": addresses.Family.IPV4, "ip6": addresses.Family.IPV6}
_NFPROTO: Final = {"ip": c.NFPROTO_IPV4, "ip6": c.NFPROTO_IPV6, "inet": 1}  # NFPROTO_INET, linux/netfilter.h
_MATCH_NAME, _MATCH_INFO = 1, 3  # linux/netfilter/nf_tables_compat.h
_COMMENT: Final = 0  # NFTNL_UDATA_RULE_COMMENT of libnftnl


class Place(NamedTuple):
    """Where a rule is, as the kernel names it."""

    family: str
    table: str
    chain: str
    handle: int


class Known(NamedTuple):
    """A rule as far as it is known: as one of ours (None: it is none of ours), and its comment."""

    rule: ruleset.Rule | None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules by place, and our tables as they are, elements included."""

    by_place: Mapping[Place, Known] = field(default_factory=dict)
    tables: Mapping[addresses.Family, ruleset.Table] = field(default_factory=dict)


def read(door: netlink.NftablesSocket, families: Iterable[addresses.Family]) -> Rules:
    """Everything that packets of these families can meet. OSError with the kernel's code if it refuses."""
    specs = layout.sets(affinity_clients=1)
    known: dict[Place, Known] = {}
    tables: dict[addresses.Family, ruleset.Table] = {}
    wanted = sorted(set(families))
    for word, proto in _NFPROTO.items():
        if word in FAMILY and FAMILY[word] not in wanted:
            continue
        for body in door.dump_all(c.NFT_MSG_GETRULE, proto):
            parts = dict(netlink.attributes(body))
            place = Place(
                word,
                _text(parts.get(c.NFTA_RULE_TABLE)),
                _text(parts.get(c.NFTA_RULE_CHAIN)),
                int.from_bytes(parts.get(c.NFTA_RULE_HANDLE, b"")),
            )
            rule = None
            if place.table == ruleset.TABLE_NAME and word in FAMILY:
                canonical = readback.canonical(parts.get(c.NFTA_RULE_EXPRESSIONS, b""))
                rule = unwire.rule_of(canonical, FAMILY[word], specs)
            comment = comment_of(parts.get(c.NFTA_RULE_USERDATA, b"")) or _comment_match(parts)
            known[place] = Known(rule, comment)
    for family in wanted:
        actual = readback.read_table(door, family, specs)
        tables[family] = unwire.table_of(actual, specs).table
    return Rules(known, tables)


def comment_of(userdata: bytes) -> str:
    """The comment in a rule's userdata; "" without one."""
    while len(userdata) >= 2:
        kind, size = userdata[0], userdata[1]
        if kind == _COMMENT:
            return userdata[2 : 2 + size].rstrip(b"\0").decode("utf-8", "replace")
        userdata = userdata[2 + size :]
    return ""


def _comment_match(parts: dict[int, bytes]) -> str:
    """The comment of a rule that iptables made: there it is a match of its own (struct xt_comment_info)."""
    expressions = parts.get(c.NFTA_RULE_EXPRESSIONS, b"")
    if b"comment\0" not in expressions:
        return ""
    for _, expression in netlink.attributes(expressions):
        found = dict(netlink.attributes(expression))
        data = dict(netlink.attributes(found.get(c.NFTA_EXPR_DATA, b"")))
        if _text(found.get(c.NFTA_EXPR_NAME)) == "match" and _text(data.get(_MATCH_NAME)) == "comment":
            return data.get(_MATCH_INFO, b"").split(b"\0")[0].decode("utf-8", "replace")
    return ""


def _text(raw: bytes | None) -> str:
    return (raw or b"").rstrip(b"\0").decode("utf-8", "replace")
