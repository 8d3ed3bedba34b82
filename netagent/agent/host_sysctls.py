"""The host's connection tracking limits: what the configuration asks for, and writing it.

A step of its own, before the agent starts (`netagent sysctl`): the agent itself needs no right to write these files.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from netagent import settings

DIRECTORY = Path("/proc/sys/net/netfilter")

# The product of cores and maxPerCore never asks for more; `conntrack.min` may.
_MOST_BY_CORES = 1_048_576
# Connections in one bucket of the hash table when the connection table is full: the kernel's own default.
_CONNECTIONS_PER_BUCKET = 4

_NFNL_SUBSYS_CTNETLINK = 1  # linux/netfilter/nfnetlink.h
_IPCTNL_MSG_CT_GET_STATS = 5  # linux/netfilter/nfnetlink_conntrack.h
_NLM_F_REQUEST = 1  # linux/netlink.h
_NETLINK_NETFILTER = 12  # linux/netlink.h


class Sysctl(NamedTuple):
    """A value that a file of DIRECTORY should have; `at_least`: a larger one that is there stays."""

    name: str
    value: int
    at_least: bool = False


class Outcome(NamedTuple):
    """What came of one Sysctl: `before` and `after` are equal when nothing was written; `failure`: why it is not so."""

    sysctl: Sysctl
    before: int | None
    after: int | None
    failure: str = ""

    @property
    def changed(self) -> bool:
        """Whether the file has another value now."""
        return self.before != self.after

    def __str__(self) -> str:
        name = f"net.netfilter.{self.sysctl.name}"
        if self.failure:
            now = "" if self.after is None else f", it stays {self.after}"
            return f"{name}: cannot set {self.sysctl.value}: {self.failure}{now}"
        if self.changed:
            return f"{name}: {self.before} -> {self.after}"
        larger = ", larger than asked for" if self.after != self.sysctl.value else ""
        return f"{name}: {self.after} already{larger}"


def wanted_sysctls(conntrack: settings.ConntrackSettings, *, cores: int) -> tuple[Sysctl, ...]:
    """What the configuration asks for, in the order in which it is to be written.

    Unlike kube-proxy: `conntrack.min` is a floor also beyond the cap on the product of cores, and a table that the
    administrator made larger is never made smaller.
    """
    return tuple(_wanted(conntrack, cores))


def _wanted(conntrack: settings.ConntrackSettings, cores: int) -> Iterator[Sysctl]:
    if conntrack.max_per_core:
        most = max(conntrack.min, min(conntrack.max_per_core * cores, _MOST_BY_CORES))
        yield Sysctl("nf_conntrack_max", most, at_least=True)
        # The number that /sys/module/nf_conntrack/parameters/hashsize shows as well. This file can be written with
        # CAP_NET_ADMIN alone, that one by root only.
        yield Sysctl("nf_conntrack_buckets", most // _CONNECTIONS_PER_BUCKET, at_least=True)
    for name, seconds in (
        ("nf_conntrack_tcp_timeout_established", conntrack.tcp_established_timeout_seconds),
        ("nf_conntrack_tcp_timeout_close_wait", conntrack.tcp_close_wait_timeout_seconds),
        ("nf_conntrack_udp_timeout", conntrack.udp_timeout_seconds),
        ("nf_conntrack_udp_timeout_stream", conntrack.udp_stream_timeout_seconds),
    ):
        if seconds:
            # Whole seconds for the kernel; part of one must not become 0.
            yield Sysctl(name, max(1, int(seconds)))
    if conntrack.tcp_be_liberal:
        yield Sysctl("nf_conntrack_tcp_be_liberal", 1)


def set_sysctls(wanted: Iterable[Sysctl], *, directory: Path = DIRECTORY) -> tuple[Outcome, ...]:
    """Bring the files of `directory` in line; only what differs is written. Raises nothing: see Outcome.failure."""
    return tuple(_set(sysctl, directory / sysctl.name) for sysctl in wanted)


def _set(sysctl: Sysctl, path: Path) -> Outcome:
    before: int | None = None
    try:
        before = int(path.read_text())
        if before == sysctl.value or (sysctl.at_least and before > sysctl.value):
            return Outcome(sysctl, before, before)
        path.write_text(f"{sysctl.value}\n")
        # The kernel may round: it makes buckets a multiple of what fits a page.
        return Outcome(sysctl, before, int(path.read_text()))
    except (OSError, ValueError) as error:
        return Outcome(sysctl, before, before, _reason(error))


def _reason(error: OSError | ValueError) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such file (connection tracking is not loaded: modprobe nf_conntrack)"
        case PermissionError():
            return (
                "not permitted (it takes CAP_NET_ADMIN in the host's network namespace; "
                "only there the size of the table can be set)"
            )
        case OSError(errno=errno.EROFS):
            return "/proc/sys is mounted read-only (in a container: run this step privileged)"
        case OSError():
            return error.strerror or str(error)
    return f"its present value is not a number ({error})"


def load_conntrack() -> None:
    """Have the kernel load connection tracking, so that its sysctls exist; raises nothing.

    A netlink request to a subsystem that is not there makes the kernel run modprobe, on the host and not in the
    container: neither the program nor /lib/modules have to be in an image. It takes CAP_NET_ADMIN.
    """
    header = struct.pack("=IHHII", 20, _NFNL_SUBSYS_CTNETLINK << 8 | _IPCTNL_MSG_CT_GET_STATS, _NLM_F_REQUEST, 1, 0)
    family_version_resource = bytes(4)
    with contextlib.suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(5)
        netlink.send(header + family_version_resource)
        netlink.recv(4096)  # the answer comes after modprobe has ended
