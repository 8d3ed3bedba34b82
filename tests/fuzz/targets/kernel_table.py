"""Whole dumps of our table, and what others do to it afterwards, as the kernel tells both."""

from __future__ import annotations

from netagent import errors
from netagent.model import addresses
from netagent.nftables import layout, mirror, monitor, netlink, readback, unwire
from tests.fuzz.targets import _checks, _sockets
from tests.fuzz.targets.netlink import WORDS as _WORDS

WORDS = _WORDS

_SPECS = layout.sets(affinity_clients=1000)


def run(data: bytes) -> None:
    """Read the table; or, as the first bit says, read it and follow what others do to it."""
    if data:
        (_mirror if data[0] & 1 else _table)(data[1:])


def _table(data: bytes) -> None:
    """All that is asked when our table is read."""
    for family in addresses.Family:
        with _sockets.speaking(netlink, _sockets.Kernel(_sockets.datagrams(data))):
            try:
                with netlink.NftablesSocket() as opened:
                    unwire.table_of(readback.read_table(opened, family, _SPECS), _SPECS)
            except OSError as error:
                _checks.fit_to_be_shown(str(error))


def _mirror(data: bytes) -> None:
    """Our table, and then what others do to it: one half of the datagrams each, told apart by their first bit."""
    pieces = _sockets.datagrams(data)
    answers = [piece[1:] for piece in pieces if piece[:1] and not piece[0] & 1]
    notices = [piece[1:] for piece in pieces if piece[:1] and piece[0] & 1]
    with (
        _sockets.speaking(netlink, _sockets.Kernel(answers)),
        _sockets.speaking(monitor, _sockets.Notices(notices)),
        netlink.NftablesSocket() as opened,
    ):
        followed = mirror.Mirror(opened, affinity_clients=1000, clock=lambda: 0.0)
        followed.watch()
        try:
            followed.read()
            for _ in range(3):
                followed.follow()
        except errors.NetagentError as error:
            _checks.fit_to_be_shown(str(error))
        followed.close()
