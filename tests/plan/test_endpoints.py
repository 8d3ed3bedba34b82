"""Which endpoints get traffic: conditions, duplicates, draining, topology, locality."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.model import addresses, objects
from netagent.model.addresses import Family, Protocol
from netagent.plan.endpoints import EndpointLists, endpoint_lists
from tests.builders import draining_endpoint, endpoint, endpoint_slice, packed, port, slice_port

PORT = port()


def lists_of(
    *slices: objects.EndpointSlice,
    port: objects.ServicePort = PORT,
    family: Family = Family.IPV4,
    zone: str = "zone-a",
) -> EndpointLists:
    """The lists as node-1 sees them."""
    return endpoint_lists(port, slices, family=family, node="node-1", zone=zone)


def texts(keys: Sequence[bytes]) -> list[str]:
    return [addresses.format_endpoint(key) for key in keys]


def hosts(keys: Sequence[bytes]) -> list[int]:
    """The last byte of each endpoint's address: short names for tests."""
    return [addresses.endpoint_address(key)[-1] for key in keys]


UNREADY: dict[str, Any] = {"ready": False, "serving": False}
DEAD: dict[str, Any] = {"ready": False, "serving": False, "terminating": True}


# --- conditions ---


def test_only_ready_endpoints_get_traffic_while_there_are_any() -> None:
    found = lists_of(
        endpoint_slice(
            "web",
            endpoint("10.180.0.4", **DEAD),
            draining_endpoint("10.180.0.3"),
            endpoint("10.180.0.2", **UNREADY),
            endpoint("10.180.0.1"),
        )
    )
    assert texts(found.cluster) == ["10.180.0.1:8080"]
    assert texts(found.local) == ["10.180.0.1:8080"]


def test_draining_endpoints_serve_when_nothing_is_ready() -> None:
    found = lists_of(endpoint_slice("web", draining_endpoint("10.180.0.3"), endpoint("10.180.0.2", **UNREADY)))
    assert hosts(found.cluster) == [3]
    assert hosts(found.local) == [3]


@pytest.mark.parametrize("condition", [UNREADY, DEAD, {"ready": False, "serving": True}])
def test_an_endpoint_neither_ready_nor_draining_counts_as_none(condition: dict[str, Any]) -> None:
    found = lists_of(endpoint_slice("web", endpoint("10.180.0.2", **condition)))
    assert not found.cluster
    assert not found.local


def test_a_terminating_endpoint_published_as_ready_is_ready() -> None:
    found = lists_of(endpoint_slice("web", endpoint("10.180.0.1", terminating=True), draining_endpoint("10.180.0.2")))
    assert hosts(found.cluster) == [1]


def test_local_drains_on_its_own_while_the_cluster_has_ready_endpoints() -> None:
    found = lists_of(
        endpoint_slice(
            "web",
            draining_endpoint("10.180.0.1", node="node-1"),
            draining_endpoint("10.180.0.3", node="node-2"),
            endpoint("10.180.0.2", node="node-2"),
        )
    )
    assert hosts(found.cluster) == [2]
    assert hosts(found.local) == [1]


def test_serving_counts_ready_or_serving_whatever_the_policies_make_of_it() -> None:
    found = lists_of(
        endpoint_slice(
            "web",
            endpoint("10.180.0.1", serving=False, nodes=["node-1"], zones=["zone-a"]),
            draining_endpoint("10.180.0.2"),
            endpoint("10.180.0.3", node="node-2", nodes=["node-2"]),
            endpoint("10.180.0.4", **DEAD),
        )
    )
    assert hosts(found.serving) == [1, 2, 3]
    assert hosts(found.cluster) == [1]


# --- matching slices to ports ---


def test_slices_of_one_service_add_up_and_may_use_different_numbers() -> None:
    found = lists_of(
        endpoint_slice("web", "10.180.0.2", name="b"),
        endpoint_slice("web", "10.180.0.1", name="a", ports=[slice_port(9090)]),
    )
    assert texts(found.cluster) == ["10.180.0.1:9090", "10.180.0.2:8080"]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (slice_port(name="metrics"), "name"),
        (slice_port(name="http", protocol=Protocol.UDP), "protocol"),
    ],
)
def test_a_slice_port_needs_the_name_and_the_protocol_of_the_service_port(other: objects.SlicePort, why: str) -> None:
    found = lists_of(endpoint_slice("web", "10.180.0.1", ports=[other]), port=port(name="http"))
    assert found == EndpointLists(), why


def test_families_do_not_mix() -> None:
    slices = (
        endpoint_slice("web", "10.180.0.1", name="four"),
        endpoint_slice("web", "fd00:180::1", name="six"),
    )
    assert texts(lists_of(*slices).cluster) == ["10.180.0.1:8080"]
    assert texts(lists_of(*slices, family=Family.IPV6).cluster) == ["[fd00:180::1]:8080"]


def test_headless_slices_are_not_ours() -> None:
    assert lists_of(endpoint_slice("web", "10.180.0.1", headless=True)) == EndpointLists()


# --- duplicates ---


def test_the_same_endpoint_in_two_slices_is_one_endpoint() -> None:
    found = lists_of(endpoint_slice("web", "10.180.0.1", name="a"), endpoint_slice("web", "10.180.0.1", name="b"))
    assert hosts(found.cluster) == [1]


@pytest.mark.parametrize("running_first", [True, False])
def test_a_running_pod_wins_over_a_terminating_one_with_its_recycled_address(running_first: bool) -> None:
    running, leaving = endpoint(), draining_endpoint(node="node-2")
    pair = (running, leaving) if running_first else (leaving, running)
    in_one_slice = lists_of(endpoint_slice("web", *pair))
    in_two = lists_of(*(endpoint_slice("web", one, name=name) for one, name in zip(pair, "ab", strict=True)))
    assert hosts(in_one_slice.local) == hosts(in_two.local) == [1]


def test_a_running_but_unready_pod_wins_over_a_draining_one_with_its_address() -> None:
    found = lists_of(endpoint_slice("web", draining_endpoint(), endpoint(**UNREADY)))
    assert not found.cluster


def test_of_two_terminating_entries_the_first_counts() -> None:
    assert hosts(lists_of(endpoint_slice("web", draining_endpoint(), endpoint(**DEAD))).cluster) == [1]
    assert hosts(lists_of(endpoint_slice("web", endpoint(**DEAD), draining_endpoint())).cluster) == []


# --- topology ---

Hints = dict[str, Any]
HERE: Hints = {"nodes": ["node-1"]}
THERE: Hints = {"nodes": ["node-2"]}
ZONE_A: Hints = {"zones": ["zone-a"]}
ZONE_B: Hints = {"zones": ["zone-b"]}
BOTH_ZONES: Hints = {"zones": ["zone-a", "zone-b"]}

TOPOLOGY = [
    # endpoints 1, 2, ... with these hints; the zone of the node; who is used
    ("no hints: all", [{}, {}], "zone-a", [1, 2]),
    ("node hints reserve endpoints for this node", [HERE, THERE], "zone-a", [1]),
    ("an endpoint may be for several nodes", [HERE, {"nodes": ["node-2", "node-1"]}], "zone-a", [1, 2]),
    ("nobody is for this node: all", [THERE, THERE], "zone-a", [1, 2]),
    ("one endpoint without node hint switches node hints off", [HERE, THERE, {}], "zone-a", [1, 2, 3]),
    ("zone hints reserve endpoints for this zone", [ZONE_A, ZONE_B, BOTH_ZONES], "zone-a", [1, 3]),
    ("nobody is for this zone: all", [ZONE_B, ZONE_B], "zone-a", [1, 2]),
    ("one endpoint without zone hint switches zone hints off", [ZONE_A, ZONE_B, {}], "zone-a", [1, 2, 3]),
    ("a node without zone ignores zone hints", [ZONE_A, ZONE_B], "", [1, 2]),
    ("node hints work without a zone", [HERE, THERE], "", [1]),
    ("node hints come before zone hints", [HERE | ZONE_B, THERE | ZONE_A], "zone-a", [1]),
    ("node hints that miss this node leave it to zones", [THERE | ZONE_A, THERE | ZONE_B], "zone-a", [1]),
    ("an incomplete set of node hints leaves it to zones", [HERE | ZONE_B, ZONE_A], "zone-a", [2]),
]


@pytest.mark.parametrize(("hints", "zone", "used"), [row[1:] for row in TOPOLOGY], ids=[row[0] for row in TOPOLOGY])
def test_topology(hints: list[dict[str, Any]], zone: str, used: list[int]) -> None:
    endpoints = [endpoint(f"10.180.0.{number}", **hint) for number, hint in enumerate(hints, 1)]
    assert hosts(lists_of(endpoint_slice("web", *endpoints), zone=zone).cluster) == used


def test_hints_count_over_all_slices_together() -> None:
    found = lists_of(
        endpoint_slice("web", endpoint("10.180.0.1", zones=["zone-a"]), name="a"),
        endpoint_slice("web", endpoint("10.180.0.2"), name="b"),
    )
    assert hosts(found.cluster) == [1, 2]


def test_only_the_hints_of_ready_endpoints_count() -> None:
    found = lists_of(
        endpoint_slice(
            "web",
            endpoint("10.180.0.1", zones=["zone-a"]),
            endpoint("10.180.0.2", zones=["zone-b"]),
            endpoint("10.180.0.3", **UNREADY),
            draining_endpoint("10.180.0.4"),
        )
    )
    assert hosts(found.cluster) == [1]


def test_draining_endpoints_are_used_without_regard_to_topology() -> None:
    found = lists_of(endpoint_slice("web", *(draining_endpoint(f"10.180.0.{n}", **ZONE_B) for n in (1, 2))))
    assert hosts(found.cluster) == [1, 2]


def test_topology_never_applies_to_local_endpoints() -> None:
    found = lists_of(
        endpoint_slice(
            "web",
            endpoint("10.180.0.1", node="node-1", zones=["zone-b"]),
            endpoint("10.180.0.2", node="node-2", zones=["zone-a"]),
        )
    )
    assert hosts(found.cluster) == [2]
    assert hosts(found.local) == [1]


# --- hairpin ---


def test_endpoints_of_this_node_or_of_an_unknown_one_can_meet_themselves() -> None:
    found = lists_of(
        endpoint_slice(
            "web",
            endpoint("10.180.0.1", node="node-1"),
            endpoint("10.180.0.2", node=None),
            endpoint("10.180.0.3", node="node-2"),
            endpoint("10.180.0.4", node="node-1", **UNREADY),
        )
    )
    assert found.cluster_hairpin == packed("10.180.0.1", "10.180.0.2")
    assert found.local_hairpin == packed("10.180.0.1")


# --- properties ---

any_endpoint = st.builds(
    objects.Endpoint,
    address=st.integers(1, 4).map(lambda last: bytes([10, 180, 0, last])),
    ready=st.booleans(),
    serving=st.booleans(),
    terminating=st.booleans(),
    node=st.sampled_from(["node-1", "node-2", None]),
    hint_zones=st.sampled_from([(), ("zone-a",), ("zone-b",)]),
    hint_nodes=st.sampled_from([(), ("node-1",), ("node-2",)]),
)
some_slices = st.lists(st.lists(any_endpoint, max_size=4), max_size=3).map(
    lambda groups: [endpoint_slice("web", *group, name=str(n)) for n, group in enumerate(groups)]
)


@given(some_slices, st.randoms(use_true_random=False))
def test_the_order_of_slices_makes_no_difference(slices: list[objects.EndpointSlice], random: Random) -> None:
    shuffled = list(slices)
    random.shuffle(shuffled)
    assert lists_of(*shuffled) == lists_of(*slices)


@given(some_slices)
def test_there_is_an_endpoint_for_the_cluster_whenever_one_can_be_used(
    slices: list[objects.EndpointSlice],
) -> None:
    found = lists_of(*slices)
    assert not found.local or found.cluster
    assert set(found.cluster) | set(found.local) <= set(found.serving)
    for keys in (found.cluster, found.local, found.serving):
        assert list(keys) == sorted(set(keys))
