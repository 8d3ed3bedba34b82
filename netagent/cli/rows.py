"""What this node does for each Service port, as rows out of the plan (`kernel_rows` has those of the kernel). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from netagent.model import addresses, objects
from netagent.plan import endpoints, frontends, services
from netagent.plan import node as nodes

if TYPE_CHECKING:
    from netagent.agent import planner

# The way in which every mode chooses among the endpoints of a list.
ALGORITHM: Final = "random"


class EndpointRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An endpoint of a Service port as this node sees it.

    `state` is ready, draining (terminating, and still answering), terminating or unready; "" when only the kernel is
    known. `used_by` are the kinds of frontends whose connections it may get; `unused` tells why there are none.
    """

    namespace: str
    service: str
    port_name: str
    protocol: str
    family: str
    endpoint: str
    node: str | None = None
    zone: str = ""
    state: str = ""
    local: bool | None = None
    used_by: tuple[str, ...] = ()
    unused: str = ""


class FrontendRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A frontend: what clients dial, and what this node does then.

    `does` is serve, reject, drop, or "yield": another Service has it (`to`). `policy` is the traffic policy in effect,
    "" when only the kernel is known and does not tell. `endpoints` serve, under external policy Local pods and
    processes of this node alone; everybody else gets one of `local_endpoints` then. `connections` counts new ones since
    the kernel's element was made; None if nobody counts. `kernel` compares with what the kernel holds: same, differs,
    missing, or None where that is not known.
    """

    namespace: str
    service: str
    port_name: str
    protocol: str
    family: str
    kind: str
    address: str | None
    port: int
    frontend: str
    does: str
    policy: str = ""
    algorithm: str = ALGORITHM
    affinity_seconds: int | None = None
    masquerade: str = ""
    endpoints: tuple[EndpointRow, ...] = ()
    local_endpoints: tuple[EndpointRow, ...] | None = None
    ready: int | None = None
    source_ranges: tuple[str, ...] | None = None
    connections: int | None = None
    kernel: str | None = None
    to: str | None = None


class ServiceRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A Service on this node. `used`, `ready` and `endpoints` count endpoints, of all its ports together."""

    namespace: str
    service: str
    type: str
    cluster_ips: tuple[str, ...]
    external: tuple[str, ...]
    ports: tuple[str, ...]
    internal_policy: str
    external_policy: str
    affinity_seconds: int | None = None
    used: int = 0
    ready: int | None = None
    endpoints: int | None = None
    connections: int | None = None


Counts = Mapping[frontends.FrontendKey, int]
# Of each frontend that the kernel has: whose it is, and the chain that it leads to.
InKernel = Mapping[frontends.FrontendKey, tuple[str, str | None]]


# Out of the plan ------------------------------------------------------------------------------------------------


class PlanRows:
    """Rows of a plan.

    Owns: nothing. Use: `frontend_rows`, `endpoint_rows`, `service_rows`, each for the Services that are asked for.
    Threading: none.
    """

    def __init__(
        self, plan: planner.Planner, *, counts: Counts | None = None, in_kernel: InKernel | None = None
    ) -> None:
        """`counts` and `in_kernel` are None where the kernel cannot be read."""
        self._plan = plan
        self._counts = counts
        self._in_kernel = in_kernel
        self._by_owner: dict[objects.ServiceName, list[frontends.Frontend]] = defaultdict(list)
        for frontend in plan.forwarding.frontends.values():
            self._by_owner[frontend.owner.owner].append(frontend)
        self._lost: dict[objects.ServiceName, list[tuple[frontends.Frontend, frontends.Frontend]]] = defaultdict(list)
        for conflict in plan.forwarding.conflicts():
            self._lost[conflict.loser.owner.owner].append((conflict.loser, conflict.winner))

    def names(self) -> list[objects.ServiceName]:
        """All Services, sorted."""
        return sorted(self._plan.store.services)

    def frontend_rows(self, names: Iterable[objects.ServiceName]) -> list[FrontendRow]:
        found = []
        for name in names:
            by_port = {}
            won = [(frontend, None) for frontend in self._by_owner.get(name, ())]
            lost = self._lost.get(name, ())
            for frontend, winner in sorted([*won, *lost], key=lambda pair: _order(pair[0])):
                where = (frontend.owner.port, frontend.owner.protocol, frontend.key.family)
                if where not in by_port:
                    by_port[where] = self._endpoints_of(name, *where)
                found.append(self._frontend(frontend, winner, by_port[where]))
        return found

    def endpoint_rows(self, names: Iterable[objects.ServiceName]) -> list[EndpointRow]:
        found: list[EndpointRow] = []
        for name in names:
            service = self._plan.store.services.get(name)
            for port in service.ports if service else ():
                for family in addresses.Family:
                    found += self._endpoints_of(name, port.name, port.protocol, family).values()
        return found

    def service_rows(self, names: Iterable[objects.ServiceName]) -> list[ServiceRow]:
        return [self._service(service) for service in map(self._plan.store.services.get, names) if service]

    def _frontend(
        self,
        frontend: frontends.Frontend,
        winner: frontends.Frontend | None,
        known: Mapping[bytes, EndpointRow],
    ) -> FrontendRow:
        serves = frontend.verdict is frontends.Verdict.SERVE
        local = frontend.local_endpoints
        return FrontendRow(
            **_identity(frontend),
            does="yield" if winner else frontend.verdict.value,
            to=str(winner.owner) if winner else None,
            policy=self._policy(frontend),
            affinity_seconds=frontend.affinity_seconds,
            masquerade=frontend.masquerade.value if serves else "",
            endpoints=tuple(known[key] for key in frontend.endpoints if key in known),
            local_endpoints=None if local is None else tuple(known[key] for key in local if key in known),
            ready=sum(one.state == "ready" for one in known.values()),
            source_ranges=None if frontend.source_ranges is None else tuple(map(str, frontend.source_ranges)),
            connections=None if winner or self._counts is None else self._counts.get(frontend.key, 0),
            kernel=None if winner else self._compared(frontend),
        )

    def _policy(self, frontend: frontends.Frontend) -> str:
        service = self._plan.store.services.get(frontend.owner.owner)
        if service is None:
            return ""
        if frontend.kind is frontends.FrontendKind.CLUSTER_IP:
            return service.internal_policy.value
        return services.external_policy_of(service, self._plan.context).value

    def _compared(self, frontend: frontends.Frontend) -> str | None:
        from netagent.nftables import shapes, wire

        if self._in_kernel is None:
            return None
        held = self._in_kernel.get(frontend.key)
        if held is None:
            return "missing"
        owner = str(frontend.owner)[: wire.COMMENT_BYTES - 1]
        return "same" if held == (owner, shapes.entry(shapes.shape_of(frontend))) else "differs"

    def _endpoints_of(
        self, name: objects.ServiceName, port_name: str, protocol: addresses.Protocol, family: addresses.Family
    ) -> dict[bytes, EndpointRow]:
        """All endpoints of a port that slices tell of, by endpoint key, in order."""
        port = objects.ServicePort(port_name, protocol, 1)
        merged = endpoints.merged(port, self._plan.store.slices_of(name), family=family)
        mine = [
            one
            for one in self._by_owner.get(name, ())
            if (one.owner.port, one.owner.protocol, one.key.family) == (port_name, protocol, family)
        ]
        users: dict[bytes, dict[str, None]] = defaultdict(dict)
        for frontend in sorted(mine, key=_order):
            for key in (*frontend.endpoints, *(frontend.local_endpoints or ())):
                users[key][frontend.kind.value] = None
        context = self._plan.context
        return {
            key: _endpoint_row(name, port, family, key, merged[key], tuple(users[key]), context)
            for key in sorted(merged)
        }

    def _service(self, service: objects.Service) -> ServiceRow:
        rows = self.endpoint_rows([service.key])
        mine = self._by_owner.get(service.key, ())
        external = sorted({*service.external_ips, *service.vips})
        counted = None if self._counts is None else sum(self._counts.get(one.key, 0) for one in mine)
        return ServiceRow(
            namespace=service.namespace,
            service=service.name,
            type=service.type.value,
            cluster_ips=tuple(map(addresses.format_address, service.cluster_ips)),
            external=tuple(map(addresses.format_address, external)),
            ports=tuple(map(_port_text, service.ports)),
            internal_policy=service.internal_policy.value,
            external_policy=services.external_policy_of(service, self._plan.context).value,
            affinity_seconds=service.affinity_seconds,
            used=sum(bool(row.used_by) for row in rows),
            ready=sum(row.state == "ready" for row in rows),
            endpoints=len(rows),
            connections=counted,
        )


def _order(frontend: frontends.Frontend) -> tuple[object, ...]:
    owner, key = frontend.owner, frontend.key
    return (owner.port, owner.protocol, key.family.value, frontend.kind.value, key.address, key.port)


def _identity(frontend: frontends.Frontend) -> dict[str, Any]:
    owner, key = frontend.owner, frontend.key
    return {
        "namespace": owner.namespace,
        "service": owner.service,
        "port_name": owner.port,
        "protocol": key.protocol.name,
        "family": key.family.value,
        "kind": frontend.kind.value,
        "address": addresses.format_address(key.address) if key.address else None,
        "port": key.port,
        "frontend": address_text(key),
    }


def address_text(key: frontends.FrontendKey) -> str:
    """What a client dials: `10.96.0.1:80/TCP`, and `*:30080/TCP` for a node port (`[*]` in IPv6)."""
    if key.address:
        where = addresses.format_socket(key.address, key.port)
    else:
        where = f"{'*' if key.family is addresses.Family.IPV4 else '[*]'}:{key.port}"
    return f"{where}/{key.protocol.name}"


def _endpoint_row(
    name: objects.ServiceName,
    port: objects.ServicePort,
    family: addresses.Family,
    key: bytes,
    endpoint: objects.Endpoint,
    used_by: tuple[str, ...],
    context: nodes.NodeContext,
) -> EndpointRow:
    state = _state(endpoint)
    return EndpointRow(
        namespace=name.namespace,
        service=name.name,
        port_name=port.name,
        protocol=port.protocol.name,
        family=family.value,
        endpoint=addresses.format_endpoint(key),
        node=endpoint.node,
        zone=endpoint.zone,
        state=state,
        local=endpoint.node == context.name,
        used_by=used_by,
        unused="" if used_by else _why_unused(endpoint, state, context),
    )


def _state(endpoint: objects.Endpoint) -> str:
    if endpoint.ready:
        return "ready"
    if endpoint.draining:
        return "draining"
    return "terminating" if endpoint.terminating else "unready"


def _why_unused(endpoint: objects.Endpoint, state: str, context: nodes.NodeContext) -> str:
    if state == "draining":
        return "others are ready"
    if state != "ready":
        return state
    if endpoint.hint_zones and context.zone and context.zone not in endpoint.hint_zones:
        return "hints reserve it for zone " + ",".join(endpoint.hint_zones)
    if endpoint.hint_nodes and context.name not in endpoint.hint_nodes:
        return "hints reserve it for node " + ",".join(endpoint.hint_nodes)
    if endpoint.node != context.name:
        return "traffic policy Local: not on this node"
    return "no frontend leads to it"


def _port_text(port: objects.ServicePort) -> str:
    number = f"{port.port}:{port.node_port}" if port.node_port else str(port.port)
    return f"{number}/{port.protocol.name}"
