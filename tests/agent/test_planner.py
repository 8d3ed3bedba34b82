"""Events in any order, twice, in pieces: the plan and the tables end where one full plan of the final state does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
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


def _services() -> st.SearchStrategy[objects.Service]:
    names = st.sampled_from(["web", "shop", "dns"])
    return st.builds(
        lambda name, local, nodeport, vip, affinity, created, protocol, external: builders.service(
            name,
            type=objects.ServiceType.LOAD_BALANCER,
            cluster_ips=(f"10.96.0.{len(name)}",),
            ports=[builders.port(80, protocol=protocol, node_port=nodeport)],
            vips=vip,
            external_ips=external,
            external_policy=objects.TrafficPolicy.LOCAL if local else objects.TrafficPolicy.CLUSTER,
            internal_policy=objects.TrafficPolicy.LOCAL if local == "both" else objects.TrafficPolicy.CLUSTER,
            affinity_seconds=affinity,
            created=created,
        ),
        names,
        st.sampled_from(["", "external", "both"]),
        st.sampled_from([0, 30080, 30081]),
        st.sampled_from([(), ("198.51.100.1",)]),
        st.sampled_from([None, 10800]),
        st.sampled_from(["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"]),
        st.sampled_from([addresses.Protocol.TCP, addresses.Protocol.UDP]),
        st.sampled_from([(), ("192.0.2.80",)]),
    )


def _slices() -> st.SearchStrategy[objects.EndpointSlice]:
    endpoints = st.builds(
        lambda number, node, ready, zones: builders.endpoint(
            f"10.180.0.{number}", node=node, ready=ready, serving=True, terminating=not ready, zones=zones
        ),
        st.integers(1, 6),
        st.sampled_from([NODE, "node-2", None]),
        st.booleans(),
        st.sampled_from([(), ("z1",), ("z2",)]),
    )
    return st.builds(
        lambda service, number, some, protocol: builders.endpoint_slice(
            service, *some, name=f"slice-{number}", ports=[builders.slice_port(protocol=protocol)]
        ),
        st.sampled_from(["web", "shop", "dns", None]),
        st.integers(1, 3),
        st.lists(endpoints, max_size=4, unique_by=lambda one: one.address),
        st.sampled_from([addresses.Protocol.TCP, addresses.Protocol.UDP]),
    )


def _nodes() -> st.SearchStrategy[objects.Node]:
    zones = st.sampled_from(["", "z1", "z2"])
    return st.builds(lambda zone: builders.node(NODE, zone=zone), zones)


def _events() -> st.SearchStrategy[list[Event]]:
    applied = st.one_of(_services(), _slices(), _slices(), _nodes()).map(
        lambda item: Event(kinds.object_key(item), item)
    )
    deleted = st.one_of(_services(), _slices()).map(lambda item: Event(kinds.object_key(item), None))
    return st.lists(st.one_of(applied, applied, applied, deleted), max_size=14)


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


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), _events())
def test_any_history_ends_like_one_full_plan(data: st.DataObject, events: list[Event]) -> None:
    final = dict(events)  # the last event of each key counts
    lived = Agent()
    rest = list(events)
    while rest:
        piece = data.draw(st.integers(1, len(rest)), label="events until the next plan")
        lived.feed(rest[:piece])
        if data.draw(st.booleans(), label="the last event comes twice"):
            lived.feed(rest[piece - 1 : piece])
        lived.replan()
        rest = rest[piece:]
    # Then the final state once more, in any order: as after a relist.
    lived.feed(Event(key, final[key]) for key in data.draw(st.permutations(sorted(final)), label="relist"))
    lived.replan()

    fresh = Agent()
    fresh.feed(Event(key, item) for key, item in final.items())
    fresh.replan()
    assert dict(lived.planner.forwarding.frontends) == dict(fresh.planner.forwarding.frontends)
    assert lived.meaning() == fresh.meaning()


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
