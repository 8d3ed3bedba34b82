"""Which endpoints of a Service port this node may use: conditions, duplicates, topology, locality.

An endpoint is *ready* as its slice says, *draining* when it terminates and still serves. Draining endpoints
are the fallback when nothing is ready; all others never get traffic.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from netagent.model import addresses, objects


class EndpointLists(msgspec.Struct, frozen=True, gc=False):
    """The endpoints of one Service port and family as one node sees them: endpoint keys, sorted.

    * `cluster`: the ready endpoints that topology leaves, else all draining ones. Empty means that no
      endpoint of the whole cluster can be used.
    * `local`: the ready endpoints of this node, else its draining ones; topology never applies.
    * `serving`: every endpoint that is ready or serving.
    * `cluster_hairpin`, `local_hairpin`: packed addresses of those in the list that can run on this node,
      sorted. An endpoint of unknown node can.
    """

    cluster: tuple[bytes, ...] = ()
    local: tuple[bytes, ...] = ()
    serving: tuple[bytes, ...] = ()
    cluster_hairpin: tuple[bytes, ...] = ()
    local_hairpin: tuple[bytes, ...] = ()


_NO_ENDPOINTS = EndpointLists()
_IS_READY = operator.attrgetter("ready")


class ListsOf(Protocol):
    """`endpoint_lists`, or what comes to the same."""

    def __call__(
        self,
        port: objects.ServicePort,
        slices: Sequence[objects.EndpointSlice],
        *,
        family: addresses.Family,
        node: str,
        zone: str,
    ) -> EndpointLists: ...


def endpoint_lists(
    port: objects.ServicePort,
    slices: Sequence[objects.EndpointSlice],
    *,
    family: addresses.Family,
    node: str,
    zone: str,
) -> EndpointLists:
    """Return the lists of a Service port, from the slices of its Service, for the node of that name and zone.

    `zone` "" is unknown. The order of `slices` makes no difference.
    """
    # Comprehensions rather than generators, here and below: this runs once for each of 44,000 Services.
    endpoints = merged(port, slices, family=family)
    if not endpoints:
        return _NO_ENDPOINTS
    ready = endpoints
    draining: Mapping[bytes, objects.Endpoint] = {}
    if not all(map(_IS_READY, endpoints.values())):
        ready = {key: endpoint for key, endpoint in endpoints.items() if endpoint.ready}
        draining = {key: endpoint for key, endpoint in endpoints.items() if endpoint.draining}
    cluster = tuple(sorted(_through_topology(ready, node=node, zone=zone) or draining))
    serving = cluster
    if len(cluster) < len(endpoints):
        serving = tuple(sorted(key for key, entry in endpoints.items() if entry.ready or entry.serving))
    here = [key for key, endpoint in endpoints.items() if endpoint.node == node or endpoint.node is None]
    if not here:
        return EndpointLists(cluster, (), serving)
    if len(cluster) == len(endpoints) == 1 and endpoints[cluster[0]].node == node:  # the one pod of a small Service
        address = (cluster[0][:-2],)
        return EndpointLists(cluster, cluster, serving, address, address)
    present = set(here)
    local = tuple(sorted(_on_node(ready, node) or _on_node(draining, node)))
    return EndpointLists(
        cluster, local, serving, _addresses_of([key for key in cluster if key in present]), _addresses_of(local)
    )


def merged(
    port: objects.ServicePort, slices: Sequence[objects.EndpointSlice], *, family: addresses.Family
) -> Mapping[bytes, objects.Endpoint]:
    """Return the endpoints of a Service port over all slices, by endpoint key, one entry each.

    A slice port belongs to the Service port of equal name and protocol; its number is its own. Of several
    entries for one key a running one beats a terminating one (an address may be in use again), then a ready
    one beats an unready one, then the first in the first slice by name stays: the order of `slices` makes no
    difference.
    """
    result: dict[bytes, objects.Endpoint] = {}
    for endpoint_slice in slices if len(slices) == 1 else sorted(slices, key=_slice_name):
        if endpoint_slice.family is not family or endpoint_slice.headless:
            continue
        for number in port_numbers(port, endpoint_slice):
            # A comprehension, not the loop below: 250,000 endpoints pass here when an agent starts.
            entries = {endpoint.address + number: endpoint for endpoint in endpoint_slice.endpoints}
            if len(entries) == len(endpoint_slice.endpoints) and (not result or result.keys().isdisjoint(entries)):
                result = result | entries if result else entries
                continue
            for endpoint in endpoint_slice.endpoints:
                key = endpoint.address + number
                if key not in result or _standing(endpoint) > _standing(result[key]):
                    result[key] = endpoint
    return result


def _slice_name(endpoint_slice: objects.EndpointSlice) -> str:
    return endpoint_slice.name


def port_numbers(port: objects.ServicePort, endpoint_slice: objects.EndpointSlice) -> list[bytes]:
    """The port numbers, as in an endpoint key, that a slice gives for a Service port."""
    return [
        slice_port.port.to_bytes(2)
        for slice_port in endpoint_slice.ports
        if slice_port.name == port.name and slice_port.protocol == port.protocol
    ]


def _standing(endpoint: objects.Endpoint) -> tuple[bool, bool]:
    """The higher of two entries for the same endpoint is the one that counts."""
    return (not endpoint.terminating, endpoint.ready)


def _through_topology(ready: Mapping[bytes, objects.Endpoint], *, node: str, zone: str) -> Iterable[bytes]:
    """The ready endpoints that hints reserve for this node, else for its zone, else all of them.

    One endpoint without a hint switches that kind of hint off, so that a half-updated set of slices cannot
    concentrate traffic; and a hint never leaves a client without endpoints.
    """
    first = next(iter(ready.values()), None)
    if first is None or not (first.hint_nodes or first.hint_zones):
        return ready  # as nearly always
    if all(endpoint.hint_nodes for endpoint in ready.values()):
        for_node = [key for key, endpoint in ready.items() if node in endpoint.hint_nodes]
        if for_node:
            return for_node
    if zone and all(endpoint.hint_zones for endpoint in ready.values()):
        for_zone = [key for key, endpoint in ready.items() if zone in endpoint.hint_zones]
        if for_zone:
            return for_zone
    return ready


def _on_node(endpoints: Mapping[bytes, objects.Endpoint], node: str) -> list[bytes]:
    return [key for key, endpoint in endpoints.items() if endpoint.node == node]


def _addresses_of(keys: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(sorted({key[:-2] for key in keys})) if keys else ()
