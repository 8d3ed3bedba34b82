"""For all tests: what a machine's load must not decide, and what tests that run side by side must not share."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import socket
import struct
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

# Two workers share two cores with whatever else runs; how long an example takes says nothing about netagent, nor does
# how long it takes to think of one.
settings.register_profile("netagent", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("netagent")

# Network namespaces share the file that xtables programs lock. A process of tests has its own.
_LOCK = Path(tempfile.gettempdir()) / f"netagent-tests-{os.getpid()}.lock"
os.environ["XTABLES_LOCKFILE"] = str(_LOCK)


@atexit.register
def _forget_lock() -> None:
    with contextlib.suppress(OSError):
        _LOCK.unlink()


def _raise_loopback() -> None:
    """Switch the loopback on in the namespace that `unshare -rn` made for us: there it is down, and nobody can connect.

    Nothing is touched outside of a user namespace, nor where it is up.
    """
    if Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]:
        return
    get_flags, set_flags, up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, linux/sockios.h; IFF_UP, linux/if.h
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("16sh14x", b"lo", 0)
        flags: int = struct.unpack_from("16xh", fcntl.ioctl(asking, get_flags, request))[0]
        if not flags & up:
            fcntl.ioctl(asking, set_flags, struct.pack("16sh14x", b"lo", flags | up))


_raise_loopback()
