"""What can be seen of a host, as plain values: the only thing that judgement knows.

Everything has a default that stands for a clean host on which nothing else runs, so that a test plants what it is
about and nothing more. Sysctls go by their path below /proc/sys ("net/ipv4/ip_forward").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from netagent import settings
from netagent.iptables import readback, tools
from netagent.model import addresses


class Lack(NamedTuple):
    """An expression that this kernel does not have: for which family, what for, which option brings it, its words."""

    family: addresses.Family
    purpose: str
    option: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """`release` as `uname -r`. `probed`: the expressions were tried. Modules: True for one that is there or built in,
    False for one that this kernel cannot have, None if nobody can tell."""

    release: str = "6.1.0"
    probed: bool = True
    lacks: tuple[Lack, ...] = ()
    has_ipv6: bool = True
    conntrack: bool | None = True
    xt_recent: bool | None = True


class Table(NamedTuple):
    """An nftables table. `owner` is the netlink port of the socket that owns it, 0 for none."""

    family: str
    name: str
    flags: int = 0
    owner: int = 0

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


class Chain(NamedTuple):
    """An nftables chain; `hook` is None for one that only rules lead to. `policy` is NF_DROP (0) or NF_ACCEPT (1).

    `marking` has the rules in it that set our masquerade bit, by handle; `rules` is how many rules it has.
    """

    family: str
    table: str
    name: str
    kind: str = ""
    hook: int | None = None
    priority: int = 0
    policy: int = 1
    rules: int = 0
    marking: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"table {self.family} {self.table}, chain {self.name}"


class NodePort(NamedTuple):
    """A node port that our rules in the kernel serve; `protocol` is its number."""

    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What nf_tables holds. `unread` says why it cannot be told ("" if it can).

    `frontends` counts our elements by family, `node_ports` are those that our rules serve, of either mode.
    """

    unread: str = ""
    tables: tuple[Table, ...] = ()
    chains: tuple[Chain, ...] = ()
    frontends: Mapping[addresses.Family, int] = field(default_factory=lambda: MappingProxyType({}))
    node_ports: frozenset[NodePort] = frozenset()


class Saved(NamedTuple):
    """What a variant of xtables holds in one family, as its tools print it."""

    variant: tools.Variant
    family: addresses.Family
    tables: tuple[readback.SavedTable, ...] = ()


@dataclass(frozen=True, slots=True)
class Xtables:
    """`installed`: the variants whose tools are there. `unread`: why some tables could not be read, a line each."""

    installed: frozenset[tools.Variant] = frozenset(tools.Variant)
    saved: tuple[Saved, ...] = ()
    unread: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()


class Process(NamedTuple):
    """A process of this network namespace that matters to us, and the program that it is."""

    pid: int
    program: str


class Listener(NamedTuple):
    """A socket that takes connections (TCP) or datagrams from anybody (UDP). `protocol` is its number."""

    protocol: int
    address: bytes
    port: int

    def __str__(self) -> str:
        name = "tcp" if self.protocol == addresses.Protocol.TCP else "udp"
        return f"{name} {addresses.format_socket(self.address, self.port)}"


class Link(NamedTuple):
    """A network interface. `kind` is that of its driver ("" for a physical one), `lower` the interface below it, and
    `addresses` its global ones, packed."""

    number: int
    name: str
    kind: str = ""
    mtu: int = 1500
    up: bool = True
    loopback: bool = False
    addresses: tuple[bytes, ...] = ()
    lower: int = 0
    master: int = 0


class MarkRoute(NamedTuple):
    """A routing rule (`ip rule`) that looks at the packet mark."""

    family: addresses.Family
    priority: int
    mark: int
    mask: int


@dataclass(frozen=True, slots=True)
class Clock:
    """`now` and `not_before` are seconds since 1970; the clock must be later than what was done before. `error` is the
    kernel's bound of the clock's error in seconds, None if it cannot be asked."""

    now: float = 2e9
    not_before: float = 0.0
    synchronised: bool | None = True
    error: float | None = None


class Directory(NamedTuple):
    """The directory that state is kept in, which need not exist."""

    path: str = "/var/lib/netagent"
    exists: bool = False
    read_only: bool = False
    full: bool = False


class Agent(NamedTuple):
    """`present`: the process that holds the agent's socket in words, "" for none. `running`: pids of `netagent run`.
    `silent`: why it does not answer there, "" if it does, or nobody is there."""

    present: str = "process 1 (netagent)"
    running: tuple[int, ...] = ()
    silent: str = ""


_DEFAULTS = settings.Settings()
_GOOD_KERNEL = Kernel()
_NO_RULES = Ruleset()
_NO_XTABLES = Xtables()
_GOOD_CLOCK = Clock()
_NO_DIRECTORY = Directory()
_ONE_AGENT = Agent()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was seen. `wanted` are the settings; `configured`: they are the operator's own, not the defaults."""

    wanted: settings.Settings = _DEFAULTS
    configured: bool = False
    cores: int = 2
    privileged: bool = True
    kernel: Kernel = _GOOD_KERNEL
    sysctls: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    ruleset: Ruleset = _NO_RULES
    xtables: Xtables = _NO_XTABLES
    processes: tuple[Process, ...] = ()
    listeners: tuple[Listener, ...] = ()
    links: tuple[Link, ...] = ()
    uplinks: frozenset[int] = frozenset()
    mark_routes: tuple[MarkRoute, ...] = ()
    clock: Clock = _GOOD_CLOCK
    directory: Directory = _NO_DIRECTORY
    agent: Agent = _ONE_AGENT
    unseen: tuple[str, ...] = ()

    def number(self, path: str) -> int | None:
        """The value of a sysctl; None if it is not there or no number."""
        try:
            return int(self.sysctls[path])
        except (KeyError, ValueError):
            return None

    @property
    def families(self) -> tuple[addresses.Family, ...]:
        """The families that Services are known to be served in, or, as long as nothing tells, IPv4 if it is wanted.

        A host without IPv6 Services has no need to forward IPv6, although both families are served by default.
        """
        wanted = [addresses.Family(name) for name in self.wanted.families]
        used = [family for family in wanted if self.ruleset.frontends.get(family)]
        cidrs = {addresses.Family.IPV4 if cidr.version == 4 else addresses.Family.IPV6 for cidr in self.cidrs}
        used += [family for family in wanted if family in cidrs and family not in used]
        if not used:
            used = [family for family in wanted if family is addresses.Family.IPV4] or wanted
        return tuple(family for family in addresses.Family if family in used)

    @property
    def cidrs(self) -> tuple[settings.Network, ...]:
        """The networks of pods, as far as the settings name them."""
        return self.wanted.cluster_cidrs
