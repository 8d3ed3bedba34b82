"""Every endpoint of a Service port's slices, with the reason for which it is used or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netagent.explain.story import Candidate, Condition, Dialled
from netagent.model import addresses, objects
from netagent.plan import endpoints, frontends


class Topology(NamedTuple):
    """What topology hints leave of the ready endpoints (`kept`), by hints for what ("node", "zone", or "": by none).

    `remark`: why hints that are there do not count; "" if there are none, or they do.
    """

    kept: frozenset[bytes]
    by: str = ""
    remark: str = ""


def topology_of(ready: Mapping[bytes, objects.Endpoint], *, node: str, zone: str) -> Topology:
    """The same choice as the plan's, with its reason."""
    everything = frozenset(ready)
    hinted = [endpoint for endpoint in ready.values() if endpoint.hint_nodes or endpoint.hint_zones]
    if not hinted:
        return Topology(everything)
    without_node = min((key for key, endpoint in ready.items() if not endpoint.hint_nodes), default=None)
    without_zone = min((key for key, endpoint in ready.items() if not endpoint.hint_zones), default=None)
    if without_node is None:
        for_node = frozenset(key for key, endpoint in ready.items() if node in endpoint.hint_nodes)
        if for_node:
            return Topology(for_node, "node")
    if without_zone is None and zone:
        for_zone = frozenset(key for key, endpoint in ready.items() if zone in endpoint.hint_zones)
        if for_zone:
            return Topology(for_zone, "zone")
        return Topology(everything, remark=f"no endpoint is reserved for zone {zone}, so all of them are used")
    if without_zone is None:
        remark = "this node has no zone (label topology.kubernetes.io/zone), so hints for zones do not count"
        return Topology(everything, remark=remark)
    if any(endpoint.hint_zones for endpoint in ready.values()):
        shown = addresses.format_endpoint(without_zone)
        return Topology(everything, remark=f"{shown} has no hint for a zone, so hints for zones do not count at all")
    if without_node is not None:
        shown = addresses.format_endpoint(without_node)
        return Topology(everything, remark=f"{shown} has no hint for a node, so hints for nodes do not count at all")
    return Topology(everything, remark=f"no endpoint is reserved for node {node}, so all of them are used")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The endpoints of a Service port and family, as slices have them.

    `entries`: slice, endpoint, and endpoint key (None: its slice has no port for this one). Of those with a key,
    `merged` are the ones that count, `ready` and `draining` of these what they say. `mismatched` are the slices with
    endpoints but without a port for this one; `foreign` counts endpoints of other families, `slices` all slices.
    """

    entries: tuple[tuple[objects.EndpointSlice, objects.Endpoint, bytes | None], ...]
    ready: Mapping[bytes, objects.Endpoint]
    draining: Mapping[bytes, objects.Endpoint]
    merged: Mapping[bytes, objects.Endpoint]
    topology: Topology
    mismatched: tuple[objects.EndpointSlice, ...]
    foreign: int
    slices: int


def candidates_of(
    port: objects.ServicePort,
    slices: Sequence[objects.EndpointSlice],
    *,
    family: addresses.Family,
    node: str,
    zone: str,
) -> Candidates:
    """What the slices of a Service have for one of its ports."""
    merged = endpoints.merged(port, slices, family=family)
    ready = {key: endpoint for key, endpoint in merged.items() if endpoint.ready}
    entries: list[tuple[objects.EndpointSlice, objects.Endpoint, bytes | None]] = []
    mismatched: list[objects.EndpointSlice] = []
    foreign = 0
    for item in sorted(slices, key=lambda item: item.name):
        if item.headless:
            continue
        if item.family is not family:
            foreign += len(item.endpoints)
            continue
        numbers = endpoints.port_numbers(port, item)
        if not numbers and item.endpoints:
            mismatched.append(item)
        for number in numbers:
            entries += ((item, endpoint, endpoint.address + number) for endpoint in item.endpoints)
        if not numbers:
            entries += ((item, endpoint, None) for endpoint in item.endpoints)
    return Candidates(
        entries=tuple(entries),
        ready=ready,
        draining={key: endpoint for key, endpoint in merged.items() if endpoint.draining},
        merged=merged,
        topology=topology_of(ready, node=node, zone=zone),
        mismatched=tuple(mismatched),
        foreign=foreign,
        slices=len(slices),
    )


class Subject(NamedTuple):
    """What a connection is about. `service`, `port` and `found` are None if the frontend's objects are unknown."""

    dialled: Dialled
    frontend: frontends.Frontend
    service: objects.Service | None
    port: objects.ServicePort | None
    found: Candidates | None

    @property
    def name(self) -> objects.ServiceName:
        return self.frontend.owner.owner


def condition_of(endpoint: objects.Endpoint) -> Condition:
    """What a slice says of an endpoint."""
    if endpoint.ready:
        return Condition.READY
    if not endpoint.terminating:
        return Condition.NOT_READY
    return Condition.DRAINING if endpoint.serving else Condition.GONE


def judged(
    found: Candidates,
    port: objects.ServicePort,
    used: frozenset[bytes],
    *,
    local_only: bool,
    let_in: bool,
    node: str,
    zone: str,
) -> tuple[Candidate, ...]:
    """Every entry with its reason; those in use first, then by address.

    `used` are the keys that the clients in question get; `local_only`: policy Local gives them no endpoint of another
    node; `let_in`: source ranges do not shut all of them out.
    """
    judging = _Judging(found, port, used, local_only, let_in, node, zone)
    result: list[Candidate] = []
    counted: set[bytes] = set()
    for item, endpoint, key in found.entries:
        counts = key is not None and found.merged[key] is endpoint and key not in counted
        if counts and key is not None:
            counted.add(key)
        result.append(
            Candidate(
                endpoint=endpoint,
                slice=item.name,
                key=key,
                condition=condition_of(endpoint),
                used=counts and key in used,
                reason=judging.reason(item, endpoint, key) if counts or key is None else judging.duplicate(key),
            )
        )
    return tuple(
        sorted(result, key=lambda one: (not one.used, one.endpoint.address, one.key or b"", one.slice, one.reason))
    )


class _Judging(NamedTuple):
    found: Candidates
    port: objects.ServicePort
    used: frozenset[bytes]
    local_only: bool
    let_in: bool
    node: str
    zone: str

    def duplicate(self, key: bytes | None) -> str:
        assert key is not None
        winner = condition_of(self.found.merged[key])
        return f"listed more than once; the entry that counts says {winner.value}"

    def reason(self, item: objects.EndpointSlice, endpoint: objects.Endpoint, key: bytes | None) -> str:
        if key is None:
            return mismatch(item, self.port)
        condition = condition_of(endpoint)
        if key in self.used:
            return self._in_use(condition)
        match condition:
            case Condition.NOT_READY:
                return "not ready"
            case Condition.GONE:
                return "terminating, and no longer serving"
        if self.local_only and endpoint.node != self.node:
            where = "on another node" if endpoint.node else "its slice does not say on which node it is"
            return f"{where}: policy Local uses endpoints of this node ({self.node}) alone"
        if condition is Condition.DRAINING:
            return "terminating; it would be used only if no endpoint were ready"
        if not self.local_only and key not in self.found.topology.kept:
            return self._reserved(endpoint)
        return "ready" if self.let_in else "ready, but the client is not let in"

    def _in_use(self, condition: Condition) -> str:
        if condition is Condition.DRAINING:
            return "terminating, but still serving: used because no endpoint is ready"
        if self.found.topology.by:
            where = f"zone {self.zone}" if self.found.topology.by == "zone" else f"node {self.node}"
            return f"ready, and reserved for {where} by topology hints"
        return "ready"

    def _reserved(self, endpoint: objects.Endpoint) -> str:
        if self.found.topology.by == "node":
            return f"ready, but topology hints reserve it for node {', '.join(endpoint.hint_nodes)}"
        zones = ", ".join(endpoint.hint_zones)
        return f"ready, but topology hints reserve it for zone {zones}; this node is in zone {self.zone}"


def mismatch(item: objects.EndpointSlice, port: objects.ServicePort) -> str:
    """Why no port of a slice is the Service's."""
    has = ", ".join(f"{port_words(one.name, one.protocol)} (number {one.port})" for one in item.ports) or "no port"
    return f"its slice has {has}, but the Service port is {port_words(port.name, port.protocol)}"


def port_words(name: str, protocol: addresses.Protocol) -> str:
    """`"http"/TCP`, or `unnamed/TCP`."""
    return f'"{name}"/{protocol.name}' if name else f"unnamed/{protocol.name}"
