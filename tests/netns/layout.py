"""What a case needs around it, read off the case alone: addresses, ports, and where each address lives. No I/O."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
from collections.abc import Iterator
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Case = dict[str, Any]
Flow = dict[str, Any]

POD_LINK = "veth0"
INTERFACE_NAME_LIMIT = 15  # linux/if.h, IFNAMSIZ less the final zero


class Place(enum.StrEnum):
    """A namespace of the universe."""

    NODE = "n1"
    PODS = "pods"
    WORLD = "world"


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """The node of a case and the ports that must answer.

    Addresses are canonical text. `pod_routes` are the prefixes behind the pod link. `ports` are (protocol, port)
    that answer in `pods` and `world`, `node_ports` those that answer on n1; protocols are tcp, udp, sctp.
    """

    node_ips: tuple[str, ...]
    gateway_ips: tuple[str, ...]
    extra_ips: tuple[str, ...]
    pod_routes: tuple[str, ...]
    pod_link: str
    bridged: bool
    families: frozenset[int]
    ports: frozenset[tuple[str, int]]
    node_ports: frozenset[tuple[str, int]]

    def place_of(self, address: str) -> Place:
        """Where a packet to this address ends up when nobody rewrites it."""
        parsed = ipaddress.ip_address(address)
        if str(parsed) in (*self.node_ips, *self.gateway_ips, *self.extra_ips) or parsed.is_loopback:
            return Place.NODE
        if any(parsed in ipaddress.ip_network(prefix) for prefix in self.pod_routes):
            return Place.PODS
        return Place.WORLD

    def masquerade_address(self, endpoint: str) -> str | None:
        """n1's address on the way out to an endpoint; None when the endpoint is on n1 itself or has no such address."""
        place = self.place_of(endpoint)
        if place is Place.NODE:
            return None
        candidates = self.gateway_ips if place is Place.PODS else self.node_ips
        return next((address for address in candidates if (":" in address) == (":" in endpoint)), None)


def canonical(address: str) -> str:
    """The canonical text of an address, read as leniently as an API server does. ValueError if it is none.

    Leading zeros are decimal, an IPv4-mapped IPv6 address is IPv4.
    """
    address = address.strip()
    if ":" not in address:
        octets = address.split(".")
        if all(octet.isascii() and octet.isdigit() for octet in octets):
            address = ".".join(str(int(octet)) for octet in octets)
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def split_socket(text: str) -> tuple[str, int]:
    """Return canonical address and port of `address:port` (an IPv6 address in brackets)."""
    address, _, port = text.rpartition(":")
    return canonical(address.strip("[]")), int(port)


def join_socket(address: str, port: int) -> str:
    """`address:port`, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def client_place(flow: Flow) -> Place:
    """Where the client of a flow runs."""
    kind = flow["from"].partition(":")[0]
    return {"pod": Place.PODS, "host": Place.NODE}.get(kind, Place.WORLD)


def port_of(flow: Flow) -> int:
    """The port that a flow dials; 0 for ICMP, which has none."""
    return int(flow.get("dport") or 0)


def client_addresses(flow: Flow) -> list[str]:
    """The addresses a flow comes from."""
    return [canonical(source) for source in flow.get("sources") or [flow["src"]]]


def of_case(case: Case) -> Layout:
    """Return the layout of a case."""
    node = case["node"]
    nodes_own = [canonical(a) for key in ("ips", "gateway_ips", "extra_ips") for a in node.get(key) or ()]
    networks = [ipaddress.ip_network(prefix) for prefix in node.get("podCIDRs") or ()]
    flows = list(flows_of(case))
    local_pods = {address for address, on_node in _endpoint_addresses(case) if on_node}
    for flow in flows:
        if client_place(flow) is Place.PODS:
            local_pods.update(client_addresses(flow))
    routes = [str(prefix) for prefix in networks]
    for address in sorted(local_pods - set(nodes_own)):
        if not any(ipaddress.ip_address(address) in prefix for prefix in networks):
            routes.append(f"{address}/{128 if ':' in address else 32}")
    link, bridged = _pod_link(case.get("config") or {})
    layout = Layout(
        node_ips=tuple(canonical(a) for a in node.get("ips") or ()),
        gateway_ips=tuple(canonical(a) for a in node.get("gateway_ips") or ()),
        extra_ips=tuple(canonical(a) for a in node.get("extra_ips") or ()),
        pod_routes=tuple(routes),
        pod_link=link,
        bridged=bridged,
        families=frozenset(ipaddress.ip_address(flow["dst"]).version for flow in flows),
        ports=frozenset(),
        node_ports=frozenset(),
    )
    ports = {(f["proto"], port_of(f)) for f in flows if f["proto"] != "icmp"} | set(_endpoint_ports(case))
    return dataclasses.replace(
        layout, ports=frozenset(ports), node_ports=frozenset(_ports_on_node(case, layout, flows))
    )


def flows_of(case: Case) -> Iterator[Flow]:
    """All flows of all steps of a case."""
    for step in case["steps"]:
        yield from step.get("flows") or ()


def _pod_link(config: dict[str, Any]) -> tuple[str, bool]:
    """The name of n1's interface towards its pods, and whether it is a bridge."""
    detect = config.get("detectLocal") or {}
    if config.get("detectLocalMode") == "BridgeInterface":
        return detect["bridgeInterface"], True
    if config.get("detectLocalMode") == "InterfaceNamePrefix":
        return (detect["interfaceNamePrefix"] + "0")[:INTERFACE_NAME_LIMIT], False
    return POD_LINK, False


def _slices(case: Case) -> Iterator[dict[str, Any]]:
    for step in case["steps"]:
        for manifest in step.get("apply") or ():
            if isinstance(manifest, dict) and manifest.get("kind") == "EndpointSlice":
                yield manifest


def _endpoint_addresses(case: Case) -> Iterator[tuple[str, bool]]:
    """Each readable endpoint address of a case, and whether it is said to run on the node under test."""
    for manifest in _slices(case):
        for endpoint in manifest.get("endpoints") or ():
            for address in (endpoint.get("addresses") or ())[:1]:
                try:
                    yield canonical(address), endpoint.get("nodeName") == case["node"]["name"]
                except ValueError:  # a hostile or FQDN address: no packet can go there
                    continue


def _endpoint_ports(case: Case) -> Iterator[tuple[str, int]]:
    for manifest in _slices(case):
        for port in manifest.get("ports") or ():
            number = port.get("port")
            if isinstance(number, int) and 0 < number < 65536:
                yield str(port.get("protocol") or "TCP").lower(), number


def _ports_on_node(case: Case, layout: Layout, flows: list[Flow]) -> Iterator[tuple[str, int]]:
    """Ports of flows to n1's own addresses and of endpoints on n1 itself.

    A closed port on n1 refuses like a rejecting rule, so every port that is dialled on n1 has a listener.
    """
    for flow in flows:
        if flow["proto"] != "icmp" and layout.place_of(canonical(flow["dst"])) is Place.NODE:
            yield flow["proto"], port_of(flow)
        for address, port in map(split_socket, flow["expect"].get("endpoints") or ()):
            if layout.place_of(address) is Place.NODE:
                yield flow["proto"], port
        if "listener" in flow:
            yield flow["proto"], split_socket(flow["listener"])[1]
