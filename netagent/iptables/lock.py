"""The xtables lock, which whoever writes legacy tables holds: who has it, and when it was let go.

iptables(8): the file is /run/xtables.lock or what XTABLES_LOCKFILE names, and the lock is flock(2), exclusive. The
nf_tables variant takes none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import inotify_simple  # type: ignore[import-untyped]

from netagent import errors, escaping

DEFAULT: Final = "/run/xtables.lock"
_PAUSE_SECONDS: Final = 0.02


class LockHeldError(errors.CommitRejectedError):
    """Somebody else holds the xtables lock, longer than we wait: nothing was done, and we retry."""


def path() -> str:
    """The lock file of this host."""
    return os.environ.get("XTABLES_LOCKFILE") or DEFAULT


@contextlib.contextmanager
def held(
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the lock inside the block. LockHeldError if nobody let it go within `seconds`, naming who has it."""
    where = path()
    try:
        descriptor = os.open(where, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _open_error(where, error) from error
    try:
        deadline = clock() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock() >= deadline:
                    raise held_error(seconds) from None
            sleep(_PAUSE_SECONDS)
        yield
    finally:
        os.close(descriptor)


def held_error(seconds: float) -> LockHeldError:
    """The error for a lock that somebody else had for so long."""
    who = " and ".join(holders()) or "a process that cannot be seen from here"
    return LockHeldError(
        f"the xtables lock {path()} is held by {who}; waited {seconds:g} s, nothing was changed, trying again later",
        errno=errno.EAGAIN,
    )


def holders() -> list[str]:
    """Name and process id of who holds the lock, as far as they can be seen from our process namespace."""
    try:
        inode = os.stat(path()).st_ino
        locks = Path("/proc/locks").read_text(errors="replace")
    except OSError:
        return []
    return [_described(process) for process in processes_in(locks, inode=inode) if process != str(os.getpid())]


def processes_in(locks: str, *, inode: int) -> list[str]:
    """The ids of the processes that hold a flock on a file, from the text of /proc/locks. None of those who wait."""
    found: list[str] = []
    for line in locks.split("\n"):
        # "1: FLOCK  ADVISORY  WRITE 1234 00:1b:5678 0 EOF"; a second "->" column marks those who wait.
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or not fields[5].endswith(f":{inode}"):
            continue
        if fields[4].isascii() and fields[4].isdigit():  # -1: it holds from before, or from outside of, what we see
            found.append(fields[4])
    return found


def named(comm: str, process: str) -> str:
    """A process by the name that it gives itself, which may be any bytes, and its id."""
    name = escaping.printable(comm.removesuffix("\n"))
    return f"{name} (process {process})" if name.strip() else f"process {process}"


def _described(process: str) -> str:
    try:
        return named(Path("/proc", process, "comm").read_text(errors="backslashreplace"), process)
    except OSError:
        return f"process {process}"


def _open_error(where: str, error: OSError) -> errors.NetagentError:
    reason = os.strerror(error.errno or errno.EIO)
    if error.errno in (errno.EPERM, errno.EACCES):
        return errors.PrivilegeError(
            f"cannot open the xtables lock {where}: {reason}; whoever writes legacy tables needs it (run as root)"
        )
    return errors.UnsupportedError(
        f"cannot open the xtables lock {where}: {reason}; in a container, mount the host's file there "
        "(hostPath, type FileOrCreate)"
    )


class Watch:
    """Notice that somebody closed the lock file, as every `iptables` of the legacy variant does when it is done.

    Owns: an inotify descriptor. Use: `take` when `fileno` is readable, or before relying on what one remembers.
    Goals: it may tell too much (a command that only looked, ourselves); it misses those who do without the lock, and
    those in containers with a lock file of their own.
    Threading: none.
    """

    def __init__(self) -> None:
        """OSError where there is no lock file to watch, and none can be made."""
        self._inotify = inotify_simple.INotify(nonblocking=True)
        try:
            os.close(os.open(path(), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            flags = inotify_simple.flags
            self._inotify.add_watch(path(), flags.CLOSE_WRITE | flags.CLOSE_NOWRITE | flags.DELETE_SELF)
        except OSError:
            self._inotify.close()
            raise

    def close(self) -> None:
        self._inotify.close()

    def fileno(self) -> int:
        return int(self._inotify.fileno())

    def take(self) -> int | None:
        """How often the file was closed since the last call; None if that is not known: events were lost, or it is
        another file now."""
        found = self._inotify.read(timeout=0)
        flags = inotify_simple.flags
        if any(event.mask & (flags.Q_OVERFLOW | flags.DELETE_SELF | flags.IGNORED) for event in found):
            return None
        return len(found)
