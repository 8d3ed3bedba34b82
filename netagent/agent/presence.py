"""The sign that an agent works in a network namespace: a lock and a listening socket in one.

An abstract UNIX socket belongs to the network namespace, as the rules do: there can be one of a name in each, it needs
no file and no directory, it is gone when its process is, however that ended, and who connects finds the agent of just
that namespace. See docs/decisions/0011.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from netagent import errors

log = logging.getLogger(__name__)

# In `ss -xl` and /proc/net/unix: @netagent.
ADDRESS: Final = "\0netagent"
_BACKLOG: Final = 64
# Who is just ending (a restart) is waited for so long, in seconds.
_WAIT_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.05
_CONNECT_SECONDS: Final = 1.0
_CAP_NET_ADMIN: Final = 12  # linux/capability.h
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred, socket(7): pid, uid, gid


class Peer(NamedTuple):
    """The process at the other end of a UNIX socket. `pid` is 0 for one that our PID namespace does not show."""

    pid: int
    uid: int
    gid: int

    @property
    def privileged(self) -> bool:
        """Whether it may be an agent: it is root, or our own user, or may change the rules of a network namespace.

        Anybody may bind any abstract address; somebody without rights must neither keep an agent from its work nor
        answer in its place.
        """
        return self.uid in (0, os.geteuid()) or _may_administer_networks(self.pid)

    def __str__(self) -> str:
        if not self.pid:
            return f"a process of user {self.uid} in another PID namespace"
        return f"process {self.pid} ({process_name(self.pid)})"


def peer_of(connected: socket.socket) -> Peer:
    """Who is at the other end: the kernel's word for it (SO_PEERCRED)."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(raw))


def process_name(pid: int) -> str:
    """What a process calls itself; "?" if it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="backslashreplace").rstrip("\n") or "?"
    except OSError:
        return "?"


def _may_administer_networks(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines() if pid else ()
    except OSError:
        return False
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_NET_ADMIN & 1)


def connected(timeout_seconds: float = _CONNECT_SECONDS) -> socket.socket | None:
    """A connection to the agent of this network namespace; None if there is none. The caller closes it.

    NetagentError if something answers there that cannot be an agent.
    """
    dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        dialled.settimeout(timeout_seconds)
        dialled.connect(ADDRESS)
        peer = peer_of(dialled)
    except ConnectionRefusedError:
        dialled.close()
        return None
    except OSError as error:
        dialled.close()
        raise errors.NetagentError(f"the agent's socket does not answer: {error.strerror or error}") from error
    if not peer.privileged:
        dialled.close()
        raise errors.NetagentError(f"{peer} of user {peer.uid} sits at the agent's address and is none: not asking it")
    return dialled


def holder() -> Peer | None:
    """The agent of this network namespace; None if there is none."""
    try:
        dialled = connected()
    except errors.NetagentError:
        return None
    if dialled is None:
        return None
    with dialled:
        return peer_of(dialled)


@contextmanager
def claimed(
    *, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
) -> Iterator[socket.socket | None]:
    """Be the one that changes the rules of this network namespace, for as long as this lasts.

    Yields the listening socket, for whoever answers on it. HeldError names the process that is there already, after a
    moment's patience with one that is ending. Somebody who sits at the address and cannot be an agent is told of and
    passed by: then there is no socket (None).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listening:
        listening.setblocking(False)
        yield listening if _listens(listening, sleep, clock) else None


def _listens(listening: socket.socket, sleep: Callable[[float], None], clock: Callable[[], float]) -> bool:
    """Have a socket listen at the address; False if that cannot be, and no agent is the reason."""
    patient_until = clock() + _WAIT_SECONDS
    while True:
        try:
            listening.bind(ADDRESS)
            listening.listen(_BACKLOG)
            return True
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                log.warning("the agent's socket cannot be opened", extra={"reason": error.strerror})
                return False
        squatter = _squatter()
        if squatter:
            log.warning("%s of user %d sits at the agent's address; going on without", squatter, squatter.uid)
            return False
        if clock() >= patient_until:
            break
        sleep(_POLL_SECONDS)
    present = holder()
    if present is None:
        log.warning("something that does not answer sits at the agent's address; going on without")
        return False
    raise errors.HeldError(
        f"{present} programs the Services of this network namespace already, and there can be one; "
        "stop it first (its rules stay)"
    )


def _squatter() -> Peer | None:
    """Who sits at the address without the rights of an agent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dialled:
        dialled.settimeout(_CONNECT_SECONDS)
        dialled.connect(ADDRESS)
        peer = peer_of(dialled)
        return None if peer.privileged else peer
    return None
