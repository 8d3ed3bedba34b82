"""The Frontends of one Service: what each of its addresses does on this node.

The policy that decides is the internal one for cluster IPs and the external one for everything else; neither
knows of the other. Families are planned as if each had a proxy of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from netagent.model import addresses, objects
from netagent.plan import endpoints, prefixes
from netagent.plan.frontends import (
    Frontend,
    FrontendKey,
    FrontendKind,
    Masquerade,
    ServicePortName,
    Verdict,
)
from netagent.plan.node import NodeContext


class Decision(NamedTuple):
    """What happens to connections that a policy governs; the fields are those of a Frontend."""

    verdict: Verdict
    masquerade: Masquerade
    endpoints: tuple[bytes, ...] = ()
    local_endpoints: tuple[bytes, ...] | None = None
    hairpin_addresses: tuple[bytes, ...] = ()
    endpoints_are_local: bool = False


class _Claims(msgspec.Struct, frozen=True, gc=False):
    """What a Service claims in one family, the same for each of its ports."""

    family: addresses.Family
    cluster_ips: tuple[bytes, ...]
    vips: tuple[bytes, ...]
    external_ips: tuple[bytes, ...]
    external_policy: objects.TrafficPolicy
    source_ranges: tuple[addresses.Prefix, ...] | None


def frontends_of(
    service: objects.Service,
    slices: Sequence[objects.EndpointSlice],
    context: NodeContext,
    families: Iterable[addresses.Family],
    *,
    endpoint_lists: endpoints.ListsOf = endpoints.endpoint_lists,
) -> tuple[Frontend, ...]:
    """Return every Frontend of a Service on this node, one per key, in an order that depends on the Service
    alone.

    `slices` are those of the Service, in any order; `endpoint_lists` is that of the Service's `LargeService`, if it
    has one. Empty for a Service without cluster IP, of type
    ExternalName, or with another proxy's name on it. Where one Service claims a key twice (an external IP
    that is also its VIP) the cluster IP wins, then the load balancer's address, then the external IP.
    """
    if service.type is objects.ServiceType.EXTERNAL_NAME or service.proxy_name != context.proxy_name:
        return ()
    found: list[Frontend] = []
    for family in families:
        cluster_ips = _of_family(service.cluster_ips, family)
        if not cluster_ips:
            continue  # the API gives a Service its families by its cluster IPs
        claims = _claims_of(service, context, family, cluster_ips)
        for port in service.ports:
            lists = endpoint_lists(port, slices, family=family, node=context.name, zone=context.zone)
            found += _frontends_of_port(service, port, claims, lists)
    if len(found) < 2:
        return tuple(found)
    by_key: dict[FrontendKey, Frontend] = {}
    for frontend in found:
        by_key.setdefault(frontend.key, frontend)
    return tuple(by_key.values())


def internal_decision(policy: objects.TrafficPolicy, lists: endpoints.EndpointLists) -> Decision:
    """Return what the internal traffic policy makes of connections to a cluster IP.

    Local keeps to the endpoints of this node: without one, connections are dropped if another node could have
    served them, because a client should wait for a local endpoint and not take the Service for gone.
    """
    masquerade = Masquerade.CLUSTER_IP
    if not lists.cluster:
        return Decision(Verdict.REJECT, masquerade)
    if policy is objects.TrafficPolicy.CLUSTER:
        return Decision(Verdict.SERVE, masquerade, lists.cluster, None, lists.cluster_hairpin)
    if not lists.local:
        return Decision(Verdict.DROP, masquerade)
    return Decision(
        Verdict.SERVE, masquerade, lists.local, hairpin_addresses=lists.local_hairpin, endpoints_are_local=True
    )


def external_decision(policy: objects.TrafficPolicy, lists: endpoints.EndpointLists) -> Decision:
    """Return what the external traffic policy makes of connections to a VIP, an external IP or a node port.

    Local gives clients from elsewhere an endpoint of this node, or silence, and keeps their address. Pods and
    processes of this node take the short circuit to any endpoint, as if their packets had gone out to the
    load balancer and come back to a better node.
    """
    local_policy = policy is objects.TrafficPolicy.LOCAL
    masquerade = Masquerade.NEVER_LOCAL if local_policy else Masquerade.ALWAYS
    if not lists.cluster:
        return Decision(Verdict.REJECT, masquerade)
    if not local_policy:
        return Decision(Verdict.SERVE, masquerade, lists.cluster, hairpin_addresses=lists.cluster_hairpin)
    hairpin = lists.cluster_hairpin
    if not set(lists.local_hairpin).issubset(hairpin):
        hairpin = tuple(sorted({*hairpin, *lists.local_hairpin}))
    return Decision(Verdict.SERVE, masquerade, lists.cluster, lists.local, hairpin)


def external_policy_of(service: objects.Service, context: NodeContext) -> objects.TrafficPolicy:
    """Return the external traffic policy in effect: Local counts only where the API lets a Service be
    external."""
    if service.type is objects.ServiceType.CLUSTER_IP and not (context.allow_external_ips and service.external_ips):
        return objects.TrafficPolicy.CLUSTER
    return service.external_policy


def allowed_sources(
    service: objects.Service, context: NodeContext, family: addresses.Family
) -> tuple[addresses.Prefix, ...] | None:
    """Return the networks that may use the VIPs of a Service: disjoint and sorted; None is everybody, ()
    nobody.

    A list without an entry of this family restricts nothing, as in kube-proxy. When this node itself may come
    in, the VIPs are sources too: with a VIP on a local interface the host's own connections to it carry it as
    source.
    """
    if service.source_ranges_closed:
        return ()
    ranges = prefixes.collapsed(service.source_ranges, family)
    if not ranges or ranges[0].length == 0:
        return None
    node_ip = context.node_ip(family)
    if any(node_ip in prefix for prefix in ranges):
        ranges = prefixes.collapsed((*ranges, *map(prefixes.host_prefix, service.vips)), family)
    return ranges


def _claims_of(
    service: objects.Service, context: NodeContext, family: addresses.Family, cluster_ips: tuple[bytes, ...]
) -> _Claims:
    if service.type is objects.ServiceType.CLUSTER_IP and not service.external_ips and not service.vips:
        return _Claims(family, cluster_ips, (), (), objects.TrafficPolicy.CLUSTER, None)  # nearly all of them
    external_ips = service.external_ips if context.allow_external_ips else ()
    vips = _of_family(service.vips, family)
    return _Claims(
        family,
        cluster_ips,
        vips,
        _of_family(external_ips, family),
        external_policy_of(service, context),
        allowed_sources(service, context, family) if vips else None,
    )


def _frontends_of_port(
    service: objects.Service, port: objects.ServicePort, claims: _Claims, lists: endpoints.EndpointLists
) -> list[Frontend]:
    """The Frontends of one port, those whose kind wins a shared key first. They share their tuples."""
    owner = ServicePortName(service.namespace, service.name, port.name, port.protocol)
    serving = () if port.protocol is addresses.Protocol.TCP else lists.serving
    internal = internal_decision(service.internal_policy, lists)
    if not (claims.vips or claims.external_ips or port.node_port):  # as nearly all: spelled out, for it is quicker
        return [
            Frontend(
                key=FrontendKey(claims.family, address, port.protocol, port.port),
                kind=FrontendKind.CLUSTER_IP,
                owner=owner,
                verdict=internal.verdict,
                masquerade=internal.masquerade,
                endpoints=internal.endpoints,
                affinity_seconds=service.affinity_seconds,
                hairpin_addresses=internal.hairpin_addresses,
                serving_endpoints=serving,
                endpoints_are_local=internal.endpoints_are_local,
                created=service.created,
            )
            for address in claims.cluster_ips
        ]

    def frontend(
        kind: FrontendKind,
        address: bytes,
        number: int,
        decision: Decision,
        source_ranges: tuple[addresses.Prefix, ...] | None = None,
    ) -> Frontend:
        return Frontend(
            key=FrontendKey(claims.family, address, port.protocol, number),
            kind=kind,
            owner=owner,
            verdict=decision.verdict,
            masquerade=decision.masquerade,
            endpoints=decision.endpoints,
            local_endpoints=decision.local_endpoints,
            affinity_seconds=service.affinity_seconds,
            source_ranges=source_ranges,
            hairpin_addresses=decision.hairpin_addresses,
            serving_endpoints=serving,
            endpoints_are_local=decision.endpoints_are_local,
            created=service.created,
        )

    found = [frontend(FrontendKind.CLUSTER_IP, address, port.port, internal) for address in claims.cluster_ips]
    external = external_decision(claims.external_policy, lists)
    for address in claims.vips:
        found.append(frontend(FrontendKind.LOAD_BALANCER, address, port.port, external, claims.source_ranges))
    for address in claims.external_ips:
        found.append(frontend(FrontendKind.EXTERNAL_IP, address, port.port, external))
    if port.node_port:
        found.append(frontend(FrontendKind.NODE_PORT, b"", port.node_port, external))
    return found


def _of_family(packed: tuple[bytes, ...], family: addresses.Family) -> tuple[bytes, ...]:
    size = family.address_bytes
    if len(packed) == 1:  # of nearly every Service
        return packed if len(packed[0]) == size else ()
    return tuple([address for address in packed if len(address) == size]) if packed else ()
