"""The host as a whole: kernel, modules, clock, the directory of state, and the agent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from netagent import errors
from netagent.agent import presence
from netagent.agent.local import client
from netagent.doctor import evidence
from netagent.model import addresses
from netagent.nftables import netlink, probe

_ADJTIMEX_BYTES: Final = 512  # more than struct timex of any architecture
_STA_UNSYNC: Final = 0x40  # linux/timex.h
_TIMEX = struct.Struct("@Illlli")  # modes, offset, freq, maxerror, esterror, status
_STATE_DIRECTORY: Final = "/var/lib/netagent"
_CAP_NET_ADMIN: Final = 12  # linux/capability.h
ANSWER_SECONDS: Final = 10.0  # an agent that plans a large cluster answers late


def kernel(families: Iterable[addresses.Family], *, tried: bool) -> evidence.Kernel:
    """The kernel, and which of our expressions it lacks, if they are to be `tried`. Nothing is changed."""
    lacks: list[evidence.Lack] = []
    probed = False
    if tried:
        with contextlib.suppress(errors.PrivilegeError), _door() as door:
            for family in families:
                lacks += (
                    evidence.Lack(family, lack.feature.purpose, lack.feature.option, lack.reason)
                    for lack in probe.lacking(door, family)
                )
            probed = True
    return evidence.Kernel(
        release=platform.release(),
        probed=probed,
        lacks=tuple(lacks),
        has_ipv6=Path("/proc/thread-self/net/if_inet6").exists(),
        conntrack=Path("/proc/sys/net/netfilter/nf_conntrack_max").exists() or _can_have("nf_conntrack"),
        xt_recent=_can_have("xt_recent"),
    )


def _door() -> netlink.NftablesSocket:
    return netlink.NftablesSocket()


def _can_have(module: str) -> bool | None:
    """Whether a module is loaded, built in, or can be loaded; None if nothing tells."""
    if Path("/sys/module", module).exists():
        return True
    directory = Path("/lib/modules", platform.release())
    seen = False
    for name in ("modules.builtin", "modules.dep"):
        with contextlib.suppress(OSError):
            if f"/{module}.ko" in (directory / name).read_text(errors="replace"):
                return True
            seen = True
    return False if seen else None


def privileged() -> bool:
    """Whether this process has CAP_NET_ADMIN, as far as its own status tells."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
        return bool(int(effective, 16) >> _CAP_NET_ADMIN & 1)
    return os.geteuid() == 0


def clock() -> evidence.Clock:
    """The host's clock, as adjtimex(2) tells of it."""
    synchronised: bool | None = None
    error: float | None = None
    buffer = ctypes.create_string_buffer(_ADJTIMEX_BYTES)  # modes 0: only asking, which needs no right
    with contextlib.suppress(AttributeError):
        if ctypes.CDLL(None).adjtimex(buffer) >= 0:
            _, _, _, most, _, status = _TIMEX.unpack_from(buffer)
            synchronised, error = not status & _STA_UNSYNC, most / 1e6
    return evidence.Clock(time.time(), os.stat(__file__).st_mtime, synchronised, error)


def directory() -> evidence.Directory:
    """The directory that state is kept in."""
    path = os.environ.get("STATE_DIRECTORY", _STATE_DIRECTORY).split(":")[0]
    try:
        found = os.statvfs(path)
    except OSError:
        return evidence.Directory(path)
    read_only = bool(found.f_flag & os.ST_RDONLY)
    return evidence.Directory(path, True, read_only, found.f_bavail == 0 or (found.f_files > 0 and found.f_favail == 0))


def agent(processes: Iterable[evidence.Process]) -> evidence.Agent:
    """The agent of this network namespace, and whether it answers."""
    peer = presence.holder()
    running = tuple(process.pid for process in processes if process.program == "netagent run")
    return evidence.Agent(presence.described(peer) if peer else "", running, _silence() if peer else "")


def _silence() -> str:
    """Why the agent does not answer; "" if it does, and be it that it does not answer this user."""
    try:
        client.ask("/status", seconds=ANSWER_SECONDS)
    except errors.SourceError as error:
        return str(error)
    except (errors.NoAgentError, errors.PrivilegeError):
        return ""
    return ""
