"""A node under test and the world around it, as three network namespaces that nobody else sees.

    world --- up0 [ n1 ] pod link --- pods

`n1` is the node. `pods` holds every pod of n1, `world` holds everything else: other nodes, their pods, clients
outside. Neither knows an address: whatever arrives over the link is local to it ("any address is mine"), and whatever
leaves it goes over the link to n1, even to an address of its own. So a pod that is sent back to itself, or a client
next to its endpoint, really goes through n1 both ways, and any address plan works without further set-up. The price:
n1 sees every answer, also those that would bypass it in a real network.

Neighbours are permanent entries, so there is neither ARP, nor neighbour discovery, nor a wait for DAD.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import layout as layouts

CLONE_NEWNET = 0x40000000  # linux/sched.h

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Namespace:
    """A network namespace without a name in the file system; it lives as long as the object (or what runs in it).

    Owns: one file descriptor. Use: `entered()` moves the calling thread in and back out, `socket`, `run` and `popen`
    make things that stay in it. Threading: any thread; only the calling one is moved.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor

    @classmethod
    def create(cls, name: str) -> Namespace:
        """Return a new, empty namespace. PermissionError without CAP_SYS_ADMIN in this user namespace."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
            try:
                return cls(name, os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            finally:
                _check(_libc.setns(before, CLONE_NEWNET), "setns back")
        finally:
            os.close(before)

    @property
    def path(self) -> str:
        """A path that names the namespace to other processes while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside; it is back where it was on exit, whatever happens."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(self.descriptor, CLONE_NEWNET), f"setns to {self.name}")
            try:
                yield
            finally:
                _check(_libc.setns(before, CLONE_NEWNET), "setns back")
        finally:
            os.close(before)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a non-blocking socket of this namespace."""
        with self.entered():
            made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 120,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end. With `check`, a failure raises RuntimeError with the command's own words."""
        with self.entered():
            done = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env={**os.environ, **(environment or {})},
            )
        if check and done.returncode:
            raise RuntimeError(
                f"{' '.join(argv)} in {self.name} exited with {done.returncode}: {done.stderr or done.stdout}"
            )
        return done

    def popen(self, argv: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        """Start a command inside; the caller waits for it. Options are those of subprocess.Popen."""
        with self.entered():
            return subprocess.Popen(argv, **options)  # type: ignore[call-overload, no-any-return]

    def sysctl(self, values: Mapping[str, str | int]) -> None:
        """Set kernel parameters of this namespace, names as paths below /proc/sys/net.

        Those that this kernel does not have, or keeps to the first namespace, are passed over.
        """
        with self.entered():
            for name, value in values.items():
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    Path("/proc/sys/net", name).write_text(str(value))

    def close(self) -> None:
        """Let go of the namespace; closing twice is fine."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# Links inherit `default` when they are made, so these come first. An ICMP error that the kernel withholds to be
# polite would look like a drop: no rate limits. The node must not correct the others' idea of the way: no redirects.
COMMON_SYSCTLS: dict[str, str | int] = {
    **{f"ipv4/conf/{scope}/rp_filter": 0 for scope in ("all", "default")},
    **{f"ipv4/conf/{scope}/send_redirects": 0 for scope in ("all", "default")},
    **{f"ipv4/conf/{scope}/accept_redirects": 0 for scope in ("all", "default")},
    **{f"ipv6/conf/{scope}/accept_redirects": 0 for scope in ("all", "default")},
    **{f"ipv6/conf/{scope}/accept_dad": 0 for scope in ("all", "default")},
    "ipv6/conf/default/addr_gen_mode": 1,
    "ipv6/conf/default/accept_ra": 0,
    "ipv4/icmp_ratelimit": 0,
    "ipv4/icmp_msgs_per_sec": 1000000,
    "ipv4/icmp_msgs_burst": 10000,
    "ipv6/icmp/ratelimit": 0,
    "ipv4/tcp_syncookies": 0,
    "core/somaxconn": 4096,
}
# Where br_netfilter is loaded, bridged packets would meet the rules twice.
NODE_SYSCTLS: dict[str, str | int] = {
    "bridge/bridge-nf-call-iptables": 0,
    "bridge/bridge-nf-call-ip6tables": 0,
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
    "ipv6/conf/default/forwarding": 1,
}
AROUND_SYSCTLS: dict[str, str | int] = {
    "ipv4/conf/all/accept_local": 1,
    "ipv4/conf/default/accept_local": 1,
    "ipv4/ip_nonlocal_bind": 1,
    "ipv6/ip_nonlocal_bind": 1,
}

UPLINK = "up0"
NEXT_HOP = "fe80::fe"


class Universe:
    """One node under test and its surroundings, laid out for one case.

    Owns: the namespaces `n1`, `pods` and `world`. Use: as a context manager; `place(name)` is a namespace by its
    name. Goals: made in some 50 ms, gone without a trace. Threading: one thread makes and closes it.
    """

    def __init__(self, layout: layouts.Layout) -> None:
        self.layout = layout
        with contextlib.ExitStack() as stack:
            self.n1 = stack.enter_context(Namespace.create("n1"))
            self.pods = stack.enter_context(Namespace.create("pods"))
            self.world = stack.enter_context(Namespace.create("world"))
            self._build()
            self._stack = stack.pop_all()

    def place(self, name: layouts.Place) -> Namespace:
        """The namespace behind a place of the layout."""
        return {layouts.Place.NODE: self.n1, layouts.Place.PODS: self.pods, layouts.Place.WORLD: self.world}[name]

    def _build(self) -> None:
        self.n1.sysctl({**COMMON_SYSCTLS, **NODE_SYSCTLS})
        for around in (self.pods, self.world):
            around.sysctl({**COMMON_SYSCTLS, **AROUND_SYSCTLS})
        _batch(self.n1, node_commands(self.layout, pods=self.pods.path, world=self.world.path))
        for around, number in ((self.pods, 2), (self.world, 1)):
            _batch(around, around_commands(number))

    def close(self) -> None:
        """Let go of the namespaces; the kernel takes them down when the last process in them has ended."""
        self._stack.close()

    def __enter__(self) -> Universe:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _mac(link: int, side: int) -> str:
    return f"02:00:00:00:{link:02x}:{side:02x}"


def node_commands(layout: layouts.Layout, *, pods: str, world: str) -> list[str]:
    """The `ip -batch` lines that give n1 links, addresses and routes; `pods` and `world` name the far namespaces."""
    lines = ["link set lo up", *_link(UPLINK, 1, world)]
    gateway_link = layout.pod_link
    if layout.bridged:
        lines += [f"link add {gateway_link} address {_mac(2, 1)} type bridge", f"link set {gateway_link} up"]
        lines += [*_link("port0", 2, pods, near_mac=_mac(2, 3)), f"link set port0 master {gateway_link}"]
        lines.append("link set port0 type bridge_slave hairpin on")
    else:
        lines += _link(gateway_link, 2, pods)
    for number, address in enumerate(layout.extra_ips):
        lines += [*_link(f"ext{number}", 3 + number, world, far=f"ext{number}"), _address(address, f"ext{number}")]
    lines += [_address(address, UPLINK) for address in layout.node_ips]
    lines += [_address(address, gateway_link) for address in layout.gateway_ips]
    for name, link in ((UPLINK, 1), (gateway_link, 2)):
        lines.append(f"-6 neigh add {NEXT_HOP} lladdr {_mac(link, 2)} dev {name} nud permanent")
    lines += [f"route add default via inet6 {NEXT_HOP} dev {UPLINK}"]
    lines += [f"-6 route add default via {NEXT_HOP} dev {UPLINK}"]
    for prefix in layout.pod_routes:
        via = f"-6 route add {prefix} via" if ":" in prefix else f"route add {prefix} via inet6"
        lines.append(f"{via} {NEXT_HOP} dev {gateway_link}")
    return lines


def _link(near: str, number: int, peer: str, *, far: str = "eth0", near_mac: str | None = None) -> list[str]:
    macs = near_mac or _mac(number, 1), _mac(number, 2)
    return [
        f"link add {near} address {macs[0]} type veth peer name {far} address {macs[1]} netns {peer}",
        f"link set {near} up",
    ]


def _address(address: str, link: str) -> str:
    return (
        f"-6 address add {address}/128 dev {link} nodad" if ":" in address else f"address add {address}/32 dev {link}"
    )


def around_commands(link: int) -> list[str]:
    """The `ip -batch` lines for a namespace around n1: everything that arrives is local, everything else leaves."""
    return [
        "link set lo up",
        "link set eth0 up",
        f"-6 neigh add {NEXT_HOP} lladdr {_mac(link, 1)} dev eth0 nud permanent",
        f"route add default via inet6 {NEXT_HOP} dev eth0",
        f"-6 route add default via {NEXT_HOP} dev eth0",
        "route add local default dev lo table local",
        "-6 route add local default dev lo table local",
        "rule add pref 1 iif eth0 lookup local",
        "rule del pref 0",
        "-6 rule add pref 1 iif eth0 lookup local",
        "-6 rule del pref 0",
    ]


def _batch(namespace: Namespace, lines: Sequence[str]) -> None:
    """Run ip's lines of one namespace, IPv4 and IPv6 apart, each in one process. RuntimeError if a line fails."""
    six = [line.removeprefix("-6 ") for line in lines if line.startswith("-6 ")]
    rest = [line for line in lines if not line.startswith("-6 ")]
    namespace.run(["ip", "-4", "-batch", "-"], stdin="\n".join(rest) + "\n")
    namespace.run(["ip", "-6", "-batch", "-"], stdin="\n".join(six) + "\n")
