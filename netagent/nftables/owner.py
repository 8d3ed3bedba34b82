"""Who may change our tables: the owner that a table can have since Linux 6.9.

An owner is a netlink socket. While it is open, everybody else gets EPERM and `nft flush ruleset` passes the table by.
With the flag persist, the table outlives its owner, and the next process that asks becomes the owner.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from netagent import errors, escaping, processes
from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import mirror, netlink, readback, transaction, wire

_SOCKETS: Final = Path("/proc/net/netlink")


def adopt(socket: netlink.NftablesSocket) -> None:
    """Become the owner of those of our tables that can have one and have none.

    HeldError if another socket owns one, PrivilegeError without CAP_NET_ADMIN.
    """
    try:
        for family in addresses.Family:
            found = readback.read_flags(socket, family)
            if found.persistent and not found.owner:
                failures = socket.commit(list(wire.messages(transaction.AddTable(family, owned=True))))
                if failures and failures[0].errno == errno.EPERM:
                    raise held_error(socket) or mirror.privilege_error()
    except OSError as error:
        raise mirror.read_error(error) from error
    held = held_error(socket)
    if held:
        raise held


def held_error(socket: netlink.NftablesSocket) -> errors.HeldError | None:
    """What to say if a table of ours is owned by somebody else; None if none is, or nobody knows."""
    try:
        for family in addresses.Family:
            port = readback.read_flags(socket, family).owner
            if port not in (0, socket.port):
                return errors.HeldError(
                    f"the {family.value} table is owned by {process_of(port)}, and nobody else can change it; "
                    "stop that one first (its rules stay)"
                )
    except OSError:
        pass
    return None


def process_of(port: int) -> str:
    """The process that has the netfilter socket with this netlink port, in words."""
    inode = _inode_of(port)
    link = f"socket:[{inode}]"
    for process in _processes() if inode else ():
        try:
            if any(os.readlink(entry) == link for entry in (process / "fd").iterdir()):
                return f"process {process.name} ({escaping.printable(processes.name_of(int(process.name)))})"
        except OSError:
            continue  # it has gone, or we may not look
    return f"a process that we cannot see (netlink port {port})"


def _processes() -> list[Path]:
    return [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _inode_of(port: int) -> str | None:
    try:
        lines = _SOCKETS.read_text().splitlines()[1:]
    except OSError:
        return None
    for fields in map(str.split, lines):
        # sk, protocol, port, groups, ..., inode
        if len(fields) >= 10 and (int(fields[1]), int(fields[2])) == (c.NETLINK_NETFILTER, port):
            return fields[9]
    return None
