"""The endpoint lists of a Service of many slices, at the cost of the slice that changed.

The result is that of `netagent.plan.endpoints.endpoint_lists`, always. While every endpoint is ready, without hints and
in one slice only, a changed slice replaces its own endpoints in the sorted list; anything else is worked out anew from
all slices.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from netagent.model import addresses, objects
from netagent.plan import endpoints

# From this many slices on it is worth to remember what came of each: a slice of the API has 100 endpoints.
MANY_SLICES = 4


class _Part(NamedTuple):
    """What a slice gives for a Service port. `plain`: each endpoint once, ready, without a hint."""

    origin: objects.EndpointSlice
    keys: frozenset[bytes]
    local: tuple[bytes, ...]
    hairpin: tuple[bytes, ...]
    plain: bool


class _Merged(NamedTuple):
    """The lists of a Service port, and where they are from."""

    parts: dict[str, _Part]
    lists: endpoints.EndpointLists


class _Question(NamedTuple):
    port: objects.ServicePort
    family: addresses.Family
    node: str
    zone: str


class LargeService:
    """Remembers the endpoint lists of one Service.

    Owns: for each port and family the last lists, and what each slice gave for them. Use: `endpoint_lists` in place of
    the function of that name; forget the object when the Service becomes small.
    Goals: work in proportion to the slices that are other objects than before. Threading: none.
    """

    def __init__(self) -> None:
        self._merged: dict[_Question, _Merged] = {}

    def endpoint_lists(
        self,
        port: objects.ServicePort,
        slices: Sequence[objects.EndpointSlice],
        *,
        family: addresses.Family,
        node: str,
        zone: str,
    ) -> endpoints.EndpointLists:
        """See `netagent.plan.endpoints.endpoint_lists`."""
        question = _Question(port, family, node, zone)
        found = self._merged.get(question)
        merged = _followed(found, question, slices) if found else None
        if merged is None:
            lists = endpoints.endpoint_lists(port, slices, family=family, node=node, zone=zone)
            parts = {one.name: _part(question, one) for one in slices}
            # Of one port, only the last question counts.
            self._merged = {old: kept for old, kept in self._merged.items() if old[:2] != question[:2]}
            merged = _Merged(parts if _is_simple(parts, lists) else {}, lists)
        self._merged[question] = merged
        return merged.lists


def _is_simple(parts: dict[str, _Part], lists: endpoints.EndpointLists) -> bool:
    """Whether the lists are nothing but the endpoints of the parts, put together."""
    return all(part.plain for part in parts.values()) and sum(len(part.keys) for part in parts.values()) == len(
        lists.cluster
    )


def _followed(found: _Merged, question: _Question, slices: Sequence[objects.EndpointSlice]) -> _Merged | None:
    """The lists after slices changed; None if they are not that simple, before or after."""
    if not found.parts:
        return None
    parts = {}
    removed: set[bytes] = set()
    added: set[bytes] = set()
    left = dict(found.parts)
    for one in slices:
        had = left.pop(one.name, None)
        if had and had.origin is one:
            parts[one.name] = had
            continue
        part = _part(question, one)
        if not part.plain:
            return None
        parts[one.name] = part
        if had:
            removed |= had.keys
        if not added.isdisjoint(part.keys):
            return None  # in two slices
        added |= part.keys
    for gone in left.values():
        removed |= gone.keys
    cluster = list(found.lists.cluster)
    for key in removed - added:
        del cluster[bisect_left(cluster, key)]
    for key in added - removed:
        place = bisect_left(cluster, key)
        if place < len(cluster) and cluster[place] == key:
            return None  # in two slices
        cluster.insert(place, key)
    together = tuple(cluster)
    return _Merged(
        parts,
        endpoints.EndpointLists(
            together,
            tuple(sorted(chain.from_iterable(part.local for part in parts.values()))),
            together,
            _united(part.hairpin for part in parts.values()),
            _united([key[:-2] for key in part.local] for part in parts.values()),
        ),
    )


def _part(question: _Question, origin: objects.EndpointSlice) -> _Part:
    if origin.family is not question.family or origin.headless:
        return _Part(origin, frozenset(), (), (), plain=True)
    found = [
        (endpoint.address + number, endpoint)
        for number in endpoints.port_numbers(question.port, origin)
        for endpoint in origin.endpoints
    ]
    keys = frozenset([key for key, _ in found])
    plain = len(keys) == len(found) and all(
        endpoint.ready and not endpoint.hint_zones and not endpoint.hint_nodes for _, endpoint in found
    )
    return _Part(
        origin,
        keys,
        tuple([key for key, endpoint in found if endpoint.node == question.node]),
        tuple([endpoint.address for _, endpoint in found if endpoint.node in (question.node, None)]),
        plain,
    )


def _united(addresses_of_parts: Iterable[Iterable[bytes]]) -> tuple[bytes, ...]:
    return tuple(sorted(set(chain.from_iterable(addresses_of_parts))))
