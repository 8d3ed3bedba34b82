"""The kernel's parameters that decide whether Services work, of this network namespace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

DIRECTORY: Final = Path("/proc/sys")

NAMES: Final = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_buckets",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
)
_OF_INTERFACES: Final = "net/ipv4/conf"


def read(directory: Path = DIRECTORY) -> Mapping[str, str]:
    """The values by their path; those that this kernel does not have are left out."""
    return dict(sorted(_values(directory)))


def _values(directory: Path) -> Iterator[tuple[str, str]]:
    names = list(NAMES)
    with contextlib.suppress(OSError):
        names += (
            f"{_OF_INTERFACES}/{found.name}/rp_filter"
            for found in (directory / _OF_INTERFACES).iterdir()
            if found.name not in ("all", "default", "lo")
        )
    for name in names:
        with contextlib.suppress(OSError):
            yield name, (directory / name).read_text().strip()
