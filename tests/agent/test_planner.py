"""Events in any order, twice, in pieces: the plan and the tables end where one full plan of the final state does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, NamedTuple, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent import settings as configuration
from netagent.agent import planner
from netagent.model import addresses, objects
from netagent.nftables import layout, tables
from netagent.source import kinds
from tests import builders

NODE = "node-1"


class Event(NamedTuple):
    """An object that was applied, or (`item` None) the key of one that was deleted."""

    key: kinds.ObjectKey
    item: objects.Object | None


class Chance(Protocol):
    """Chooses one of several: hypothesis, which finds the simplest failing history, or a Random, which is fast."""

    def __call__(self, options: Sequence[Any]) -> Any: ...


def _service(pick: Chance) -> objects.Service:
    name = pick(["web", "shop", "dns"])
    local = pick(["", "external", "both"])
    return builders.service(
        name,
        type=objects.ServiceType.LOAD_BALANCER,
        cluster_ips=(f"10.96.0.{len(name)}",),
        ports=[
            builders.port(
                80,
                protocol=pick([addresses.Protocol.TCP, addresses.Protocol.UDP]),
                node_port=pick([0, 30080, 30081]),
            )
        ],
        vips=pick([(), ("198.51.100.1",)]),
        external_ips=pick([(), ("192.0.2.80",)]),
        external_policy=objects.TrafficPolicy.LOCAL if local else objects.TrafficPolicy.CLUSTER,
        internal_policy=objects.TrafficPolicy.LOCAL if local == "both" else objects.TrafficPolicy.CLUSTER,
        affinity_seconds=pick([None, 10800]),
        created=pick(["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"]),
    )


def _slice(pick: Chance) -> objects.EndpointSlice:
    numbers = dict.fromkeys(pick(range(1, 7)) for _ in range(pick(range(5))))
    return builders.endpoint_slice(
        pick(["web", "shop", "dns", None]),
        *(_endpoint(number, pick) for number in numbers),
        name=f"slice-{pick(range(1, 4))}",
        ports=[builders.slice_port(protocol=pick([addresses.Protocol.TCP, addresses.Protocol.UDP]))],
    )


def _endpoint(number: int, pick: Chance) -> objects.Endpoint:
    ready = pick([True, False])
    return builders.endpoint(
        f"10.180.0.{number}",
        node=pick([NODE, "node-2", None]),
        ready=ready,
        serving=True,
        terminating=not ready,
        zones=pick([(), ("z1",), ("z2",)]),
    )


def _event(pick: Chance) -> Event:
    make = pick([_service, _slice, _slice, _node])
    if pick(range(4)):
        item = make(pick)
        return Event(kinds.object_key(item), item)
    return Event(kinds.object_key(pick([_service, _slice])(pick)), None)


def _node(pick: Chance) -> objects.Node:
    return builders.node(NODE, zone=pick(["", "z1", "z2"]))


class Agent:
    """Planner and desired tables, as the agent wires them."""

    def __init__(self) -> None:
        self.planner = planner.Planner(configuration.Settings(), node_name=NODE)
        self.tables = tables.Tables(affinity_clients=100)

    def feed(self, events: Iterable[Event]) -> None:
        for (kind, key), item in events:
            if item is None:
                self.planner.store.delete(kind, key)
            else:
                self.planner.store.apply(item)

    def replan(self) -> None:
        replanned = self.planner.replan()
        if replanned.rules is not None:
            self.tables.set_rules(replanned.rules)
        self.tables.update((change.key for change in replanned.changes), self.planner.forwarding.frontends)
        self.tables.settled()

    def meaning(self) -> dict[str, object]:
        """What the tables do, without the numbers of slots and of affinity groups, which depend on the past."""
        result: dict[str, object] = {}
        for table in self.tables.desired():
            family = table.family.value
            result[f"{family} chains"] = table.chains
            for name in (layout.FRONTENDS, layout.NODEPORTS, layout.CLUSTER_IPS, layout.HAIRPIN, layout.SOURCE_RANGES):
                result[f"{family} {name}"] = table.elements[name]
            for name in (layout.BACKENDS, layout.NODEPORT_BACKENDS):
                lists: dict[bytes, set[object]] = {}
                for key, value in table.elements[name].items():
                    lists.setdefault(key[:-4], set()).add((key[-2:], value))
                result[f"{family} {name}"] = {prefix: {value for _, value in found} for prefix, found in lists.items()}
            result[f"{family} endpoints with affinity"] = sorted(
                map(repr, table.elements[layout.AFFINITY_ENDPOINTS].values())
            )
            result[f"{family} slots with affinity"] = len(table.elements[layout.AFFINITY_SLOTS])
        return result


def live_through_a_history(pick: Chance) -> None:
    """Some events in pieces, some of them twice, then all anew in another order; compare with one full plan."""
    events = [_event(pick) for _ in range(pick(range(15)))]
    final = dict(events)  # the last event of each key counts
    lived = Agent()
    rest = list(events)
    while rest:
        piece = pick(range(1, len(rest) + 1))
        lived.feed(rest[:piece])
        if pick([False, True]):
            lived.feed(rest[piece - 1 : piece])
        lived.replan()
        rest = rest[piece:]
    # Then the final state once more, in any order: as after a relist.
    left = sorted(final)
    relist = [left.pop(pick(range(len(left)))) for _ in final]
    lived.feed(Event(key, final[key]) for key in relist)
    lived.replan()

    fresh = Agent()
    fresh.feed(Event(key, item) for key, item in final.items())
    fresh.replan()
    assert dict(lived.planner.forwarding.frontends) == dict(fresh.planner.forwarding.frontends), events
    assert lived.meaning() == fresh.meaning(), events


@settings(max_examples=100)
@given(st.data())
def test_any_history_ends_like_one_full_plan(data: st.DataObject) -> None:
    live_through_a_history(lambda options: data.draw(st.sampled_from(options)))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_ten_thousand_histories_end_like_one_full_plan(part: int) -> None:
    chance = Random(part)
    for _ in range(3300):
        live_through_a_history(chance.choice)


def test_a_deleted_node_leaves_the_last_one_in_force() -> None:
    agent = Agent()
    agent.feed([Event((kinds.Kind.NODE, NODE), builders.node(NODE, zone="z1"))])
    agent.replan()
    before = agent.planner.rules
    agent.feed([Event((kinds.Kind.NODE, NODE), None)])
    agent.replan()
    assert agent.planner.rules == before
    assert agent.planner.rules[0].node_port_prefixes


def test_only_the_touched_service_is_planned_anew() -> None:
    agent = Agent()
    agent.feed([Event(kinds.object_key(item), item) for item in (builders.service("a"), builders.service("b"))])
    agent.replan()
    slice_of_a = builders.endpoint_slice("a", "10.180.0.1")
    agent.feed([Event(kinds.object_key(slice_of_a), slice_of_a)])
    replanned = agent.planner.replan()
    assert {change.key.port for change in replanned.changes} == {80}
    assert all(change.after and change.after.owner.service == "a" for change in replanned.changes)


def test_another_zone_concerns_the_services_with_hints_only() -> None:
    agent = Agent()
    hinted = [builders.endpoint(f"10.180.0.{number}", zones=(f"z{number}",)) for number in (1, 2)]
    items = [
        builders.node(NODE, zone="z1"),
        builders.service("hinted", cluster_ips=("10.96.0.1",)),
        builders.service("plain", cluster_ips=("10.96.0.2",)),
        builders.endpoint_slice("hinted", *hinted),
        builders.endpoint_slice("plain", "10.180.0.3"),
    ]
    agent.feed([Event(kinds.object_key(item), item) for item in items])
    agent.replan()
    agent.feed([Event((kinds.Kind.NODE, NODE), builders.node(NODE, zone="z2"))])
    replanned = agent.planner.replan()
    assert replanned.planned == {objects.ServiceName("default", "hinted")}
    (change,) = replanned.changes
    assert [before.endpoints != change.after.endpoints for before in [change.before] if before and change.after] == [
        True
    ]
    assert agent.planner.replan().planned == frozenset()
