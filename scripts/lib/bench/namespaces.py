"""Network namespaces: going to a new one or to another process's, and waiting until dead ones are gone."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from pathlib import Path

# linux/sched.h
_CLONE_NEWNET = 0x40000000
_SETTLED_LOOKS = 3
_LOOK_SECONDS = 0.02

_libc = ctypes.CDLL(None, use_errno=True)


def fresh() -> None:
    """Go to a new, empty network namespace, with its loopback up. OSError without the right to make one."""
    _checked(_libc.unshare(_CLONE_NEWNET))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def join(pid: int) -> None:
    """Go to the network namespace of a process."""
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(descriptor, _CLONE_NEWNET))
    finally:
        os.close(descriptor)


def settle(*, most_seconds: float = 10.0) -> bool:
    """Wait until the kernel has done what it does behind the back of a commit, and buried dead namespaces.

    That is the work of kernel threads, which would take a processor from what is measured next. False when they were
    still at work in the end.
    """
    deadline = time.monotonic() + most_seconds
    quiet = 0
    while quiet < _SETTLED_LOOKS:
        quiet = 0 if _kernel_works() else quiet + 1
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _kernel_works() -> bool:
    """Whether a worker of the queues that nf_tables and dying namespaces use is at work: a + in its name."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                name = (process / "comm").read_text()
            except OSError:
                continue
            if name.startswith("kworker/") and ("+netns" in name or "+events" in name or "+kvfree" in name):
                return True
    return False


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
