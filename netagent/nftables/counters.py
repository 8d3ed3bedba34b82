"""What the elements of our maps have counted: new connections of each frontend, read from the kernel."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import layout, lower, netlink, ruleset, wire
from netagent.plan import frontends


class Counted(NamedTuple):
    """A frontend's element: how many connections it has had, whose it is, and the number of its shape."""

    key: frontends.FrontendKey
    connections: int
    owner: str
    shape: bytes


def frontend_counts(socket: netlink.NftablesSocket) -> Iterator[tuple[frontends.FrontendKey, int]]:
    """Yield how many connections each frontend that the kernel holds has had. Nothing where there is no table of ours.

    A count starts at 0 again when its element is replaced, for instance because the number of endpoints changed.
    """
    for element in frontend_elements(socket):
        yield element.key, element.connections


def frontend_elements(socket: netlink.NftablesSocket) -> Iterator[Counted]:
    """Yield the counted elements of all frontends. As `frontend_counts`."""
    for family in addresses.Family:
        for name in (layout.FRONTENDS, layout.NODEPORTS):
            payload = wire.text(c.NFTA_SET_ELEM_LIST_TABLE, ruleset.TABLE_NAME)
            payload += wire.text(c.NFTA_SET_ELEM_LIST_SET, name)
            try:
                bodies = socket.dump_all(c.NFT_MSG_GETSETELEM, wire.NFPROTO[family], payload)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                raise
            for body in bodies:
                yield from _counted(body, family, name)


def _counted(body: bytes, family: addresses.Family, name: str) -> Iterator[Counted]:
    for kind, listing in netlink.attributes(body):
        if kind != c.NFTA_SET_ELEM_LIST_ELEMENTS:
            continue
        for _, element in netlink.attributes(listing):
            parts = dict(netlink.attributes(element))
            if c.NFTA_SET_ELEM_KEY not in parts or c.NFTA_SET_ELEM_EXPR not in parts:
                continue
            expression = dict(netlink.attributes(parts[c.NFTA_SET_ELEM_EXPR]))
            values = dict(netlink.attributes(expression.get(c.NFTA_EXPR_DATA, b"")))
            frontend = lower.frontend_key(family, name, parts[c.NFTA_SET_ELEM_KEY][4:])
            if frontend:
                # One entry of libnftnl's userdata: type, length, text with NUL.
                owner = parts.get(c.NFTA_SET_ELEM_USERDATA, b"")[2:].rstrip(b"\0").decode("utf-8", "replace")
                count = int.from_bytes(values.get(c.NFTA_COUNTER_PACKETS, b""))
                yield Counted(frontend, count, owner, parts.get(c.NFTA_SET_ELEM_DATA, b"")[4:])
