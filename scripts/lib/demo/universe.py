"""Two nodes, their pods and the outside, as network namespaces that nobody else sees.

    outside ------ demo-node --- pods of demo-node      (the demo and netagent run in demo-node)
       |
       `---------- other-node -- pods of other-node

`outside` is the wire between the nodes, its router and the clients that are not of the cluster. Every pod has a link
of its own to its node and sends everything there, so answers pass the node that rewrote the question. Neighbours on
these links are permanent entries: nothing has to be resolved, nothing waits for duplicate address detection.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .cluster import Pod

CLONE_NEWNET = 0x40000000  # linux/sched.h

NODE, OTHER_NODE = "demo-node", "other-node"
# The addresses of the examples: of nodes and outside, and what is routed where.
NODE_ADDRESSES = {
    NODE: ("192.0.2.10", "2001:db8:2::10"),
    OTHER_NODE: ("192.0.2.11", "2001:db8:2::11"),
}
POD_NETWORKS = {
    NODE: ("10.244.1.0/24", "fd00:10:244:1::/64"),
    OTHER_NODE: ("10.244.2.0/24", "fd00:10:244:2::/64"),
}
CLUSTER_NETWORKS = ("10.244.0.0/16", "fd00:10:244::/56")
ROUTER_ADDRESSES = ("192.0.2.1", "2001:db8:2::1")
OUTSIDE_CLIENT = "198.51.100.7"
SERVICE_NETWORK = "203.0.113.0/24"  # external IPs and load balancers: the router sends them to demo-node

_GATEWAYS = ("169.254.1.1", "fe80::1")  # every pod's; no interface has them
_GATEWAY_MAC = "02:00:00:00:00:01"

# Links inherit `default` when they are made, so these come first.
_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/forwarding": "1",
    "ipv6/conf/default/accept_dad": "0",
}

_libc = ctypes.CDLL(None, use_errno=True)


class Place:
    """A network namespace: a node, a pod, or the outside.

    Owns: one descriptor, which keeps the namespace. Use: `entered()` moves the calling thread in, and back out.
    Threading: any thread; only the calling one is moved.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self._descriptor = descriptor

    @classmethod
    def current(cls, name: str) -> Place:
        """The namespace that the calling thread is in."""
        return cls(name, _open_current())

    @classmethod
    def create(cls, name: str) -> Place:
        """A new, empty one. OSError where none may be made."""
        home = cls.current("home")
        try:
            _check(_libc.unshare(CLONE_NEWNET), "cannot make a network namespace")
            try:
                return cls.current(name)
            finally:
                home.enter()
        finally:
            os.close(home._descriptor)

    @property
    def path(self) -> str:
        """What other processes call it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def enter(self) -> None:
        """Move the calling thread in, for good."""
        _check(_libc.setns(self._descriptor, CLONE_NEWNET), f"cannot enter the namespace of {self.name}")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside, and back where it was at the end."""
        home = _open_current()
        try:
            self.enter()
            try:
                yield
            finally:
                _check(_libc.setns(home, CLONE_NEWNET), "cannot go back to where the thread was")
        finally:
            os.close(home)

    def configure(self, lines: Sequence[str]) -> None:
        """Run lines of `ip -batch` inside. RuntimeError with its words if one fails."""
        with self.entered():
            for name, value in _SYSCTLS.items():
                with contextlib.suppress(FileNotFoundError):
                    Path("/proc/sys/net", name).write_text(value)
            done = subprocess.run(
                ["ip", "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise RuntimeError(f"cannot set up the network of {self.name}: {done.stderr.strip()}")


def _open_current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Universe:
    """Nodes, pods and outside. They are gone when the last process in them is."""

    def __init__(self, pods: Iterable[Pod]) -> None:
        """Build it around the current namespace, which becomes demo-node. OSError or RuntimeError if that fails."""
        self.pods = {pod.name: pod for pod in pods}
        self.node = Place.current(NODE)
        self.outside = Place.create("outside")
        self._nodes = {NODE: self.node, OTHER_NODE: Place.create(OTHER_NODE)}
        self._pods = {name: Place.create(name) for name in self.pods}
        self.outside.configure(_outside_lines(self._nodes))
        for name, place in self._nodes.items():
            place.configure(_node_lines(name, self._links(name)))
        for name, place in self._pods.items():
            place.configure(_pod_lines(self.pods[name]))

    def pod(self, name: str) -> Place:
        """The namespace of a pod."""
        return self._pods[name]

    def _links(self, node: str) -> list[tuple[Pod, str]]:
        return [(pod, self._pods[pod.name].path) for pod in self.pods.values() if pod.node == node]


def _outside_lines(nodes: dict[str, Place]) -> list[str]:
    lines = ["link set lo up", f"address add {OUTSIDE_CLIENT}/32 dev lo", "link add wire type bridge"]
    for number, place in enumerate(nodes.values()):
        lines += [f"link add port{number} type veth peer name up0 netns {place.path}"]
        lines += [f"link set port{number} master wire up"]
    lines += ["link set wire up", *_address_lines(ROUTER_ADDRESSES, "wire", (24, 64))]
    for name in nodes:
        lines += [f"route add {NODE_ADDRESSES[name][0]}/32 dev wire src {OUTSIDE_CLIENT}"]
    return [*lines, f"route add {SERVICE_NETWORK} via {NODE_ADDRESSES[NODE][0]} src {OUTSIDE_CLIENT}"]


def _node_lines(name: str, links: Iterable[tuple[Pod, str]]) -> list[str]:
    lines = ["link set lo up", "link set up0 up", *_address_lines(NODE_ADDRESSES[name], "up0", (24, 64))]
    lines += [f"route add default via {router}" for router in ROUTER_ADDRESSES]
    for other, networks in POD_NETWORKS.items():
        if other != name:
            via = zip(networks, NODE_ADDRESSES[other], strict=True)
            lines += [f"route add {network} via {address}" for network, address in via]
    for pod, path in links:
        link = f"to-{pod.name}"[:15]  # IFNAMSIZ, linux/if.h
        lines.append(
            f"link add {link} address {_GATEWAY_MAC} type veth peer name eth0 address {_mac(pod)} netns {path}"
        )
        lines.append(f"link set {link} up")
        for address in pod.addresses:
            lines.append(f"neigh add {address} lladdr {_mac(pod)} dev {link} nud permanent")
            lines.append(f"route add {address} dev {link}")
    return lines


def _pod_lines(pod: Pod) -> list[str]:
    lengths = [128 if ":" in address else 32 for address in pod.addresses]
    lines = ["link set lo up", "link set eth0 up", *_address_lines(pod.addresses, "eth0", lengths)]
    for gateway in _GATEWAYS:
        if any((":" in address) == (":" in gateway) for address in pod.addresses):
            lines.append(f"neigh add {gateway} lladdr {_GATEWAY_MAC} dev eth0 nud permanent")
            lines.append(f"route add default via {gateway} dev eth0 onlink")
    return lines


def _address_lines(addresses: Iterable[str], link: str, lengths: Iterable[int]) -> list[str]:
    return [
        f"address add {address}/{length} dev {link}{' nodad' if ':' in address else ''}"
        for address, length in zip(addresses, lengths, strict=True)
    ]


def _mac(pod: Pod) -> str:
    """A pod's link address, made of its first address, which no other pod has."""
    digits = "".join(f"{int(part):02x}" for part in pod.addresses[0].split("."))
    return "02:01:" + ":".join(digits[index : index + 2] for index in range(0, 8, 2))
