"""Who is at the other end of a local socket, and whether to believe it.

Anybody of a network namespace can connect to an abstract UNIX socket, and while no agent runs anybody can listen there.
So each side looks at what the kernel says of the other one.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from pathlib import Path
from typing import Final, NamedTuple

from netagent import errors

_UCRED: Final = struct.Struct("=iII")  # struct ucred, linux/socket.h: pid, uid, gid
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h
_GROUPS_MOST: Final = 65536  # NGROUPS_MAX, linux/limits.h
_CAP_NET_ADMIN: Final = 1 << 12  # linux/capability.h


class Peer(NamedTuple):
    """The process at the other end: of a client when it connected, of a server when it began to listen.

    `pid` is 0 if it lives in another PID namespace. `groups` are all that it is a member of.
    """

    pid: int
    uid: int
    groups: frozenset[int] = frozenset()


def peer_of(connected: socket.socket) -> Peer:
    """The other end of a connected UNIX socket. OSError if the kernel does not tell."""
    pid, uid, gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, frozenset((gid, *_peer_groups(connected))))


def _peer_groups(connected: socket.socket) -> array.array[int]:
    room = 256
    while True:
        try:
            return array.array("I", connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, room))
        except OSError as error:
            if error.errno == errno.ENOPROTOOPT:  # before Linux 4.13
                return array.array("I")
            if error.errno != errno.ERANGE or room > 4 * _GROUPS_MOST:
                raise
            room *= 4


def may_ask(peer: Peer, *, group: int | None) -> bool:
    """Whether a client gets answers: root, the agent's own user, and members of the group that is allowed."""
    return peer.uid in (0, os.geteuid()) or (group is not None and group in peer.groups)


def group_of(name: str) -> int | None:
    """The number of a group that is given by name or number; None for "". ConfigError if there is none of the name."""
    if not name:
        return None
    if name.isascii() and name.isdigit():
        return int(name)
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise errors.ConfigError(f"netagent.socketGroup: this host has no group {name!r}") from None


def is_privileged(peer: Peer, *, proc: Path = Path("/proc")) -> bool:
    """Whether a server may be an agent: nobody without privilege can pose as one.

    It runs as root, as the user that asks, or may change the ruleset. That right counts only if it cannot come from
    the file of a program that its user ran after it began to listen: then its user IDs would differ, or a capability
    would be neither ambient nor out of reach of files (no_new_privs).
    """
    if peer.uid in (0, os.geteuid()):
        return True
    try:
        facts = dict(line.split(":\t", 1) for line in (proc / str(peer.pid) / "status").read_text().splitlines())
        users = {int(number) for number in facts["Uid"].split()}
        effective, ambient = int(facts["CapEff"], 16), int(facts["CapAmb"], 16)
        confined = facts["NoNewPrivs"].strip() == "1"
    except (OSError, KeyError, ValueError):
        return False
    lasting = confined or bool(ambient & _CAP_NET_ADMIN)
    return users == {peer.uid} and bool(effective & _CAP_NET_ADMIN) and lasting
