"""Health check node ports: where load balancers ask whether this node has endpoints of a Service, and how many."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from netagent.model import addresses, objects
from netagent.plan import endpoints, services
from netagent.plan.node import NodeContext


class HealthCheckPort(NamedTuple):
    """One family's health check node port of a Service.

    `local_endpoints` is the number of different addresses of ready endpoints on this node, over all ports of the
    Service. `created` is that of the Service: the older one keeps a port that two claim.
    """

    service: objects.ServiceName
    family: addresses.Family
    port: int
    local_endpoints: int
    created: str = ""

    @property
    def seniority(self) -> tuple[str, objects.ServiceName]:
        """Sort key that decides who keeps a port that two Services claim: the older one, then by name."""
        return (self.created, self.service)


def health_check_ports_of(
    service: objects.Service,
    slices: Sequence[objects.EndpointSlice],
    context: NodeContext,
    families: Iterable[addresses.Family],
) -> tuple[HealthCheckPort, ...]:
    """Return the health check node ports of a Service, one for each family that it has a cluster IP of.

    Empty unless it is a load balancer with external traffic policy Local and has such a port. `slices` are those of
    the Service, in any order. Endpoints that drain carry traffic but do not count: the balancer should go elsewhere.
    """
    if not serves_health_checks(service, context):
        return ()
    return tuple(
        HealthCheckPort(
            service=service.key,
            family=family,
            port=service.health_check_node_port,
            local_endpoints=len(_local_ready(service, slices, context.name, family)),
            created=service.created,
        )
        for family in families
        if any(addresses.family_of(address) is family for address in service.cluster_ips)
    )


def serves_health_checks(service: objects.Service, context: NodeContext) -> bool:
    """Whether a Service has health check node ports on the nodes of this cluster."""
    return (
        service.type is objects.ServiceType.LOAD_BALANCER
        and service.proxy_name == context.proxy_name
        and service.health_check_node_port != 0
        and services.external_policy_of(service, context) is objects.TrafficPolicy.LOCAL
    )


def listen_addresses(
    prefixes: Collection[addresses.Prefix], local: Iterable[bytes], family: addresses.Family
) -> tuple[bytes, ...]:
    """Return the packed addresses on which health check node ports of a family listen, sorted.

    `prefixes` are the node's `node_port_prefixes`, `local` the host's own addresses of any family. Where every address
    accepts node ports the result is the unspecified address alone. Empty when no address of the host matches.
    """
    size = family.address_bytes
    if any(prefix.length == 0 and len(prefix.address) == size for prefix in prefixes):
        return (bytes(size),)
    matching = {address for address in local if any(address in prefix for prefix in prefixes)}
    # A link-local address means nothing without its interface, and no balancer asks there.
    return tuple(sorted(address for address in matching if len(address) == size and address not in _LINK_LOCAL))


_LINK_LOCAL = addresses.parse_prefix("fe80::/10")


def _local_ready(
    service: objects.Service, slices: Sequence[objects.EndpointSlice], node: str, family: addresses.Family
) -> set[bytes]:
    """Packed addresses of the ready endpoints on a node."""

    def found() -> Iterator[bytes]:
        for port in service.ports:
            for key, endpoint in endpoints.merged(port, slices, family=family).items():
                if endpoint.ready and endpoint.node == node:
                    yield addresses.endpoint_address(key)

    return set(found())
