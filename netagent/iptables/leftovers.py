"""Whether there is anything of ours in a variant's tables, found without its tools and without loading a module."""

from __future__ import annotations

from netagent import errors
from netagent.iptables import readback, tools, variant
from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import netlink, wire

_TABLES = ("nat", "filter")


def families_with_ours(each: tools.Variant) -> list[addresses.Family]:
    """The families in which a variant has chains of ours, or may have. [] where we may not look."""
    if each is tools.Variant.LEGACY:
        # Nobody can have chains in tables that do not exist; whether they are ours, only the tools can tell.
        return [
            family for family in addresses.Family if {*variant.legacy_tables(family)} & {*_TABLES} and _ours(family)
        ]
    try:
        with netlink.NftablesSocket() as socket:
            return [family for family in addresses.Family if _has_chains(socket, family)]
    except (OSError, errors.UnsupportedError):
        return []


def _may_hold_ours(family: addresses.Family) -> bool:
    return not set(_TABLES).isdisjoint(variant.legacy_tables(family))


def _ours(family: addresses.Family) -> bool:
    try:
        return f":{readback.PREFIX}" in tools.save(tools.Variant.LEGACY, family)
    except errors.NetagentError:
        return False


def _has_chains(socket: netlink.NftablesSocket, family: addresses.Family) -> bool:
    for body in socket.dump_all(c.NFT_MSG_GETCHAIN, wire.NFPROTO[family]):
        attributes = dict(netlink.attributes(body))
        table, chain = (
            attributes.get(kind, b"").rstrip(b"\0").decode("utf-8", "replace")
            for kind in (c.NFTA_CHAIN_TABLE, c.NFTA_CHAIN_NAME)
        )
        if table in _TABLES and chain.startswith(readback.PREFIX):
            return True
    return False
