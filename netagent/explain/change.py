"""What a change of objects would do on this node: rules, clients, conflicts, flows. Nothing is touched. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol

import msgspec

from netagent import conntrack, settings
from netagent.agent import planner
from netagent.iptables import diff as iptables_diff
from netagent.iptables import readback as iptables_readback
from netagent.iptables import tables as iptables_tables
from netagent.model import addresses, objects
from netagent.nftables import diff, readback, report, tables, transaction
from netagent.plan import forwarding, frontends
from netagent.plan import node as nodes
from netagent.source import store
from netagent.source.kinds import ObjectKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a change would do.

    `operations` counts single operations in the kernel, `lines` says them in words. `changes` are the frontends that
    are served otherwise, sorted. `made` and `solved` are conflicts. `stale`: established flows to these frontends whose
    endpoint is none of the allowed ones would be dropped.
    """

    operations: int
    lines: tuple[str, ...]
    changes: tuple[conntrack.FrontendChange, ...]
    made: tuple[forwarding.Conflict, ...]
    solved: tuple[forwarding.Conflict, ...]
    stale: tuple[conntrack.StaleFlows, ...]

    def __bool__(self) -> bool:
        return bool(self.operations or self.changes or self.made or self.solved or self.stale)


class ListChange(NamedTuple):
    """One of the lists of a frontend before and after: whom it serves, and the chance of each endpoint (0: none)."""

    clients: str
    before: dict[bytes, Fraction]
    after: dict[bytes, Fraction]

    def endpoints(self) -> list[bytes]:
        return sorted({*self.before, *self.after})


def effect_of(plan: planner.Planner, applied: Iterable[objects.Object], deleted: Iterable[ObjectKey]) -> Effect:
    """Change the objects of a planner that has planned, and tell what comes of it. The planner is changed."""
    dataplane = _dataplane(plan)
    before = plan.forwarding.conflicts()
    for key in deleted:
        plan.store.delete(*key)
    for item in applied:
        plan.store.apply(item)
    replanned = plan.replan()
    changes = _whole(replanned.changes, plan.forwarding.frontends)
    operations, lines = dataplane.delta(replanned.rules, [one.key for one in replanned.changes], plan)
    after = plan.forwarding.conflicts()
    known, now = {_claim(one) for one in before}, {_claim(one) for one in after}
    protocols = frozenset(addresses.Protocol[name] for name in plan.settings.stale_flow_protocols)
    return Effect(
        operations=operations,
        lines=lines,
        changes=changes,
        made=tuple(one for one in after if _claim(one) not in known),
        solved=tuple(one for one in before if _claim(one) not in now),
        stale=conntrack.stale_flow_rules(replanned.changes, protocols),
    )


def _whole(
    steps: Iterable[conntrack.FrontendChange], current: Mapping[frontends.FrontendKey, frontends.Frontend]
) -> tuple[conntrack.FrontendChange, ...]:
    """One change for each frontend that is served otherwise in the end: planning may give it up and take it again."""
    before: dict[frontends.FrontendKey, frontends.Frontend | None] = {}
    for step in steps:
        before.setdefault(step.key, step.before)
    return tuple(
        conntrack.FrontendChange(key, before[key], current.get(key))
        for key in sorted(before, key=_order)
        if _noticed(before[key]) != _noticed(current.get(key))
    )


def _noticed(frontend: frontends.Frontend | None) -> object:
    """What of a frontend its clients and endpoints can notice."""
    return frontend and (
        frontend.owner,
        frontend.kind,
        frontend.verdict,
        frontend.masquerade,
        frontend.endpoints,
        frontend.local_endpoints,
        frontend.affinity_seconds,
        frontend.source_ranges,
    )


def _order(key: frontends.FrontendKey) -> tuple[str, bytes, int, int]:
    return (key.family.value, key.address, key.protocol, key.port)


def _claim(conflict: forwarding.Conflict) -> tuple[object, ...]:
    return (conflict.key, conflict.loser.owner, conflict.winner.owner)


# Rules ----------------------------------------------------------------------------------------------------------


class _Dataplane(Protocol):
    """The rules of a mode as they are before the change."""

    def delta(
        self,
        rules: Sequence[nodes.NodeRules] | None,
        keys: Sequence[frontends.FrontendKey],
        plan: planner.Planner,
    ) -> tuple[int, tuple[str, ...]]:
        """How many operations lead to the rules after it, and which."""
        ...


def _dataplane(plan: planner.Planner) -> _Dataplane:
    return _Nftables(plan) if plan.settings.mode is settings.Mode.NFTABLES else _Iptables(plan)


class _Nftables:
    """Our tables, as an agent would have put them into the kernel."""

    def __init__(self, plan: planner.Planner) -> None:
        current = plan.forwarding.frontends
        self._tables = tables.Tables(affinity_clients=plan.settings.affinity_clients)
        self._tables.set_rules(plan.rules)
        self._tables.update(current, current)
        self._actual = {family: readback.ActualTable(family) for family in addresses.Family}
        for table in self._tables.desired():
            for operation in diff.operations(table, self._actual[table.family]).operations:
                diff.applied(self._actual[table.family], operation)

    def delta(
        self,
        rules: Sequence[nodes.NodeRules] | None,
        keys: Sequence[frontends.FrontendKey],
        plan: planner.Planner,
    ) -> tuple[int, tuple[str, ...]]:
        if rules is not None:
            found = {family: table.elements for family, table in self._actual.items()}
            self._tables.set_rules(rules, found)
        self._tables.update(keys, plan.forwarding.frontends)
        desired = self._tables.desired()
        pending = transaction.Transaction()
        for table in desired:
            pending += diff.operations(table, self._actual[table.family])
        # The report is worded for what others did to our tables.
        lines = report.lines(pending, desired, self._actual.values())
        return pending.count, tuple(line.replace(": its rules are not ours", ": other rules") for line in lines)


class _Iptables:
    """Our chains, as an agent would have put them into the kernel."""

    def __init__(self, plan: planner.Planner) -> None:
        current = plan.forwarding.frontends
        self._tables = iptables_tables.Tables()
        self._tables.set_rules(plan.rules)
        self._tables.update(current, current)
        self._actual = {family: iptables_readback.Actual(family) for family in addresses.Family}
        for desired in self._tables.desired():
            actual = self._actual[desired.family]
            iptables_diff.applied(actual, iptables_diff.changes(desired, actual))

    def delta(
        self,
        rules: Sequence[nodes.NodeRules] | None,
        keys: Sequence[frontends.FrontendKey],
        plan: planner.Planner,
    ) -> tuple[int, tuple[str, ...]]:
        if rules is not None:
            self._tables.set_rules(rules)
        self._tables.update(keys, plan.forwarding.frontends)
        count = 0
        lines: list[str] = []
        for desired in self._tables.desired():
            actual = self._actual[desired.family]
            done = iptables_diff.changes(desired, actual)
            count += done.count if done else 0
            lines += iptables_diff.lines(done, actual)
        return count, tuple(lines)


# Clients --------------------------------------------------------------------------------------------------------


def lists_of(change: conntrack.FrontendChange) -> list[ListChange]:
    """The lists of a frontend that differ, each with the chances before and after."""
    before, after = _lists(change.before), _lists(change.after)
    if before.keys() != after.keys() and before and after:
        # External policy Local comes or goes: one side has two lists, the other one for all.
        before, after = _split(before), _split(after)
    found = [ListChange(clients, before.get(clients, {}), after.get(clients, {})) for clients in {**before, **after}]
    return [one for one in found if one.before != one.after]


_ALL, _HERE, _ELSEWHERE = "all clients", "clients on this node", "clients from elsewhere"


def _lists(frontend: frontends.Frontend | None) -> dict[str, dict[bytes, Fraction]]:
    if frontend is None or frontend.verdict is not frontends.Verdict.SERVE:
        return {}
    if frontend.local_endpoints is None:
        return {_ALL: _chances(frontend.endpoints)}
    return {_HERE: _chances(frontend.endpoints), _ELSEWHERE: _chances(frontend.local_endpoints)}


def _split(lists: dict[str, dict[bytes, Fraction]]) -> dict[str, dict[bytes, Fraction]]:
    return {_HERE: lists[_ALL], _ELSEWHERE: lists[_ALL]} if _ALL in lists else lists


def _chances(endpoints: Collection[bytes]) -> dict[bytes, Fraction]:
    return {endpoint: Fraction(1, len(endpoints)) for endpoint in endpoints}


def deed_of(frontend: frontends.Frontend | None) -> str:
    """What happens to connections to a frontend, in words."""
    if frontend is None:
        return "nobody's"
    match frontend.verdict:
        case frontends.Verdict.REJECT:
            deed = "refused, as no endpoint can be used"
        case frontends.Verdict.DROP:
            deed = "dropped, as no endpoint is on this node (internal policy Local)"
        case frontends.Verdict.SERVE:
            count = len(frontend.endpoints)
            deed = f"served by {count} endpoint{'s' if count != 1 else ''}"
            if frontend.local_endpoints is not None:
                deed += f", for clients from elsewhere by {len(frontend.local_endpoints)} on this node"
    words = [deed]
    if frontend.verdict is frontends.Verdict.SERVE and frontend.masquerade is frontends.Masquerade.ALWAYS:
        words.append("endpoints see this node's address")
    if frontend.affinity_seconds is not None:
        words.append(f"session affinity {frontend.affinity_seconds} s")
    if frontend.source_ranges is not None:
        ranges = ", ".join(map(str, frontend.source_ranges)) or "nobody"
        words.append(f"lets in {ranges}")
    return "; ".join(words)


# Objects --------------------------------------------------------------------------------------------------------


class Completed(NamedTuple):
    """A Service as the API server would keep it, what of it was taken from the version before, and the cluster IP that
    it is given to be told of, "" for none."""

    service: objects.Service
    kept: tuple[str, ...]
    supposed: str = ""


def completed(service: objects.Service, base: objects.Service | None) -> Completed:
    """Fill in what the API server and its controllers keep of a Service when somebody applies a manifest without it:
    cluster IPs, node ports, age, load balancer addresses."""
    if base is None or service.type is objects.ServiceType.EXTERNAL_NAME:
        return Completed(service, ())
    kept: list[str] = []
    changes: dict[str, object] = {"uid": service.uid or base.uid, "created": service.created or base.created}
    if not service.cluster_ips and base.cluster_ips:
        changes["cluster_ips"] = base.cluster_ips
        kept.append("cluster IP " + ", ".join(map(addresses.format_address, base.cluster_ips)))
    balanced = objects.ServiceType.LOAD_BALANCER
    if not service.vips and base.vips and service.type is balanced and base.type is balanced:
        changes["vips"] = base.vips
        kept.append("load balancer address " + ", ".join(map(addresses.format_address, base.vips)))
    if service.type in (objects.ServiceType.NODE_PORT, balanced):
        ports = tuple(_with_node_port(port, base.ports, kept) for port in service.ports)
        changes["ports"] = ports
        if not service.health_check_node_port:
            changes["health_check_node_port"] = base.health_check_node_port
    return Completed(msgspec.structs.replace(service, **changes), tuple(kept))


def _with_node_port(
    port: objects.ServicePort, base: tuple[objects.ServicePort, ...], kept: list[str]
) -> objects.ServicePort:
    if port.node_port:
        return port
    for other in base:
        if (other.port, other.protocol) == (port.port, port.protocol) and other.node_port:
            kept.append(f"node port {other.node_port} of port {port.port}")
            return msgspec.structs.replace(port, node_port=other.node_port)
    return port


def free_cluster_ips(known: store.Store, applied: Iterable[objects.Object]) -> Iterator[bytes]:
    """Cluster IPs that no Service has, the highest first; none where their range is unknown. Those of one family, that
    of the range which is named first: what a Service has that does not ask for both."""
    ranges = {**known.service_cidrs, **{item.name: item for item in applied if isinstance(item, objects.ServiceCIDR)}}
    found = [prefix for _, item in sorted(ranges.items()) for prefix in item.cidrs]
    services = (*known.all_services(), *(item for item in applied if isinstance(item, objects.Service)))
    taken = {address for service in services for address in service.cluster_ips}
    for prefix in found[:1]:
        first, last = int.from_bytes(prefix.address), int.from_bytes(prefix.last)
        for number in range(last - 1, first, -1):
            address = number.to_bytes(len(prefix.address))
            if address not in taken:
                yield address


def supposed(filled: Completed, free: Iterator[bytes]) -> Completed:
    """A Service with a cluster IP in place of the one that the API server would give it; as it is if there is none."""
    address = next(free, None)
    if address is None or filled.service.type is objects.ServiceType.EXTERNAL_NAME:
        return filled
    service = msgspec.structs.replace(filled.service, cluster_ips=(address,))
    return Completed(service, filled.kept, addresses.format_address(address))
