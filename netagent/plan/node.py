"""This node as planning sees it: what one Service needs to know of it, and the rules that no Service owns."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from netagent.model import addresses, objects
from netagent.plan import prefixes
from netagent.settings import DetectLocalMode, Mode, Settings


@dataclass(frozen=True, slots=True)
class NodeContext:
    """What planning a Service needs to know beside the Service.

    Equal contexts plan every Service equally, so only a changed one makes Services dirty.

    * `name`: of the node, as EndpointSlices spell it. `zone`: "" when unknown.
    * `node_ips`: the node's own address, packed, of at most one a family, the primary family first. Never
      loopback.
    * `allow_external_ips`: whether externalIPs of Services are honoured.
    * `proxy_name`: the service-proxy-name label of the Services that are ours; None: ours have none.
    """

    name: str
    zone: str = ""
    node_ips: tuple[bytes, ...] = ()
    allow_external_ips: bool = True
    proxy_name: str | None = None

    def node_ip(self, family: addresses.Family) -> bytes | None:
        """The node's primary address of a family, packed; None when it has none."""
        size = family.address_bytes
        return next((address for address in self.node_ips if len(address) == size), None)


@dataclass(frozen=True, slots=True)
class SourcePrefix:
    """A packet comes from a local pod if its source address lies in `prefix`."""

    prefix: addresses.Prefix


@dataclass(frozen=True, slots=True)
class InputInterface:
    """A packet comes from a local pod if it came in through the interface of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class InputInterfacePrefix:
    """A packet comes from a local pod if the name of its input interface starts with `prefix`."""

    prefix: str


LocalPods = SourcePrefix | InputInterface | InputInterfacePrefix


@dataclass(frozen=True, slots=True)
class NodeRules:
    """Everything a backend needs for one family that belongs to the node and not to a Service.

    * `local_pods`: how packets of local pods are told from others; None when there is no way. Then nobody is
      a pod: cluster IP connections are masqueraded under `masquerade_all` only, and pods have no short
      circuit.
    * `masquerade_all`: masquerade every connection to a cluster IP.
    * `masquerade_mark`: the one packet mark bit that means "masquerade on the way out"; other bits are
      others'.
    * `node_port_prefixes`: the *local* addresses in these networks accept node ports; disjoint and sorted.
      The /0 is every local address, () none. The backend leaves out loopback addresses, whatever stands here.
    * `service_cidrs`: networks that cluster IPs come from, disjoint and sorted: a packet to an address in
      them that no Service has leads nowhere. () when unknown.
    * `drop_invalid`: drop packets that connection tracking calls invalid.
    * `node_ports_on_loopback`: node ports answer on 127.0.0.0/8 as well, to this host alone.
    """

    family: addresses.Family
    local_pods: LocalPods | None
    masquerade_all: bool
    masquerade_mark: int
    node_port_prefixes: tuple[addresses.Prefix, ...]
    service_cidrs: tuple[addresses.Prefix, ...]
    drop_invalid: bool
    node_ports_on_loopback: bool = False


def node_context_of(settings: Settings, node: objects.Node | None, *, name: str) -> NodeContext:
    """Return the context of this node; `node` None means that the API has not told of it yet.

    A deleted Node changes nothing: pass the last one known.

    `name` is what this node is called in EndpointSlices (see `settings.node_name_of`).
    The node's own address is its first InternalIP, else its first ExternalIP, of each family. A bind address
    in the settings replaces that of its family and makes the family primary. A loopback address is as good as
    none.
    """
    node_ips: dict[addresses.Family, bytes] = {}
    bind_address = settings.bind_address
    if not bind_address.is_unspecified:
        node_ips[addresses.family_of(bind_address.packed)] = bind_address.packed
    for address in node.addresses if node else ():
        node_ips.setdefault(addresses.family_of(address), address)
    return NodeContext(
        name=name,
        zone=node.zone if node else "",
        node_ips=tuple(address for address in node_ips.values() if not _is_loopback(address)),
        allow_external_ips=settings.allow_external_ips,
        proxy_name=settings.service_proxy_name or None,
    )


def node_rules_of(
    settings: Settings,
    context: NodeContext,
    node: objects.Node | None,
    service_cidrs: Iterable[objects.ServiceCIDR],
    family: addresses.Family,
) -> NodeRules:
    """Return the rules of this node for a family; `context` is that of the same settings and node."""
    node_port_prefixes = _node_port_prefixes(settings, context, family)
    return NodeRules(
        family=family,
        local_pods=_local_pods(settings, node, family),
        masquerade_all=settings.masquerade_all,
        masquerade_mark=1 << settings.masquerade_bit,
        node_port_prefixes=node_port_prefixes,
        # Beside another proxy, most cluster IPs that we do not know are the other one's.
        service_cidrs=prefixes.collapsed(
            (
                prefix
                for service_cidr in service_cidrs
                for prefix in service_cidr.cidrs
                if not settings.service_proxy_name
            ),
            family,
        ),
        drop_invalid=settings.drops_invalid,
        # As in kube-proxy: mode iptables alone, and IPv4, as IPv6 cannot be routed away from loopback.
        node_ports_on_loopback=settings.mode is Mode.IPTABLES
        and settings.localhost_node_ports
        and family is addresses.Family.IPV4
        and any(_LOCALHOST in prefix for prefix in node_port_prefixes),
    )


_LOCALHOST = addresses.parse_address("127.0.0.1")


def _local_pods(settings: Settings, node: objects.Node | None, family: addresses.Family) -> LocalPods | None:
    """How pods are told from others. None when the mode has no network of the family, and while the Node
    whose network it is remains unknown: then nobody gets more than an outside client, which is safe."""
    match settings.detect_local_mode:
        case DetectLocalMode.CLUSTER_CIDR:
            networks = tuple(map(_prefix_of, settings.cluster_cidrs))
        case DetectLocalMode.NODE_CIDR:
            networks = node.pod_cidrs if node else ()
        case DetectLocalMode.BRIDGE_INTERFACE:
            return InputInterface(settings.bridge_interface)
        case DetectLocalMode.INTERFACE_NAME_PREFIX:
            return InputInterfacePrefix(settings.interface_name_prefix)
        case _:
            assert_never(settings.detect_local_mode)
    first = next((prefix for prefix in networks if prefix.family is family), None)
    return SourcePrefix(first) if first else None


def _node_port_prefixes(
    settings: Settings, context: NodeContext, family: addresses.Family
) -> tuple[addresses.Prefix, ...]:
    """Where node ports are accepted.

    kube-proxy opens every address of a family in which a node with `primary` has none; here those get
    nothing, because the operator asked for fewer addresses, not for more.
    """
    if settings.node_ports_on_primary:
        node_ip = context.node_ip(family)
        return (prefixes.host_prefix(node_ip),) if node_ip else ()
    everywhere = (addresses.Prefix(bytes(family.address_bytes), 0),)
    return prefixes.collapsed(map(_prefix_of, settings.node_port_networks), family) or everywhere


def _prefix_of(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> addresses.Prefix:
    return addresses.Prefix(network.network_address.packed, network.prefixlen)


def _is_loopback(address: bytes) -> bool:
    return ipaddress.ip_address(address).is_loopback
