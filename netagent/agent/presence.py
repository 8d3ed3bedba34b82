"""The sign that an agent works in a network namespace: a lock and a listening socket in one.

An abstract UNIX socket belongs to the network namespace, as the rules do: there can be one of a name in each, it needs
no file and no directory, it is gone when its process is, however that ended, and who connects finds the agent of just
that namespace. See docs/decisions/0011.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from netagent import errors, escaping, processes
from netagent.agent.local import client, peers

log = logging.getLogger(__name__)

ADDRESS: Final = client.ADDRESS
_BACKLOG: Final = 64
# Who is just ending (a restart) is waited for so long, in seconds.
_WAIT_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.05
_CONNECT_SECONDS: Final = 1.0


def holder() -> peers.Peer | None:
    """The agent of this network namespace; None if there is none, or what is there cannot be one."""
    there = _there()
    return there if there and peers.is_privileged(there) else None


def _there() -> peers.Peer | None:
    """Whoever listens at the address."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dialled:
        dialled.settimeout(_CONNECT_SECONDS)
        dialled.connect(ADDRESS)
        return peers.peer_of(dialled)
    return None


def described(peer: peers.Peer) -> str:
    """A process, for people."""
    if not peer.pid:
        return f"a process of user {peer.uid} in another PID namespace"
    return f"process {peer.pid} ({escaping.printable(processes.name_of(peer.pid))})"


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
        there = _there()
        if there and not peers.is_privileged(there):
            log.warning("%s of user %d sits at the agent's address; going on without", described(there), there.uid)
            return False
        if clock() >= patient_until:
            break
        sleep(_POLL_SECONDS)
    if there is None:
        log.warning("something that does not answer sits at the agent's address; going on without")
        return False
    raise errors.HeldError(
        f"{described(there)} programs the Services of this network namespace already, and there can be one; "
        "stop it first (its rules stay)"
    )
