"""A Service that the kernel cannot take: it keeps what it had, all others go on, and it is tried again."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from netagent import errors, settings
from netagent.agent import planner, reconciler
from netagent.model import addresses, objects
from netagent.model.addresses import Family, Protocol
from netagent.plan import frontends
from netagent.source.kinds import Kind
from tests import builders
from tests.agent.test_loop import Clock, Kernel

WEB, SHOP = objects.ServiceName("default", "web"), objects.ServiceName("default", "shop")
WEB_KEY = frontends.FrontendKey(Family.IPV4, addresses.parse_address("10.96.0.1"), Protocol.TCP, 80)


class World:
    """A reconciler whose kernel is a dictionary, and the time."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.kernel = Kernel(self.clock)
        self.planner = planner.Planner(settings.Settings(), node_name="node-1")
        ours: Any = self.kernel
        self.reconciler = reconciler.Reconciler(
            self.planner, ours, stale_flow_protocols=frozenset({Protocol.UDP}), clock=self.clock
        )
        self.has("web", "10.96.0.1", "10.180.0.1")
        self.has("shop", "10.96.0.2", "10.180.0.9")

    def has(self, name: str, address: str, *endpoints: str) -> None:
        """A Service with these endpoints."""
        self.planner.store.apply(builders.service(name=name, cluster_ips=(address,)))
        self.planner.store.apply(builders.endpoint_slice(name, *endpoints))


@pytest.fixture
def world() -> World:
    return World()


def test_the_others_go_on_and_the_service_keeps_what_it_had(world: World) -> None:
    world.reconciler.sync()
    world.kernel.cannot_take.add(WEB_KEY)
    world.has("web", "10.96.0.1", "10.180.0.1", "10.180.0.2")
    world.has("shop", "10.96.0.2", "10.180.0.9", "10.180.0.8")
    report = world.reconciler.sync()
    assert report.refused == {WEB: "the kernel cannot take it"}
    assert world.kernel.endpoints("10.96.0.1") == {"10.180.0.1"}
    assert world.kernel.endpoints("10.96.0.2") == {"10.180.0.9", "10.180.0.8"}
    assert {change.key.address for change in report.changes} == set(builders.packed("10.96.0.2"))


def test_a_service_that_was_never_taken_has_no_frontends(world: World) -> None:
    world.kernel.cannot_take.add(WEB_KEY)
    assert world.reconciler.sync().refused.keys() == {WEB}
    assert {key.address for key in world.kernel.held} == set(builders.packed("10.96.0.2"))


def test_it_is_tried_again_with_ever_longer_waits(world: World) -> None:
    world.kernel.cannot_take.add(WEB_KEY)
    waits = [world.reconciler.sync().again_in]
    tries = world.kernel.attempts
    world.reconciler.sync()
    assert world.kernel.attempts == tries, "not before its time"
    for _ in range(4):
        wait = waits[-1]
        assert wait is not None
        world.clock.now += wait
        waits.append(world.reconciler.sync().again_in)
    assert world.kernel.attempts == tries + 4
    assert all(longer > 1.5 * shorter for shorter, longer in itertools.pairwise(waits))  # type: ignore[operator]


def test_when_the_kernel_takes_it_all_that_it_missed_is_told(world: World) -> None:
    world.kernel.cannot_take.add(WEB_KEY)
    report = world.reconciler.sync()
    world.kernel.cannot_take.clear()
    assert report.again_in is not None
    world.clock.now += report.again_in
    report = world.reconciler.sync()
    assert (report.refused, report.again_in) == ({}, None)
    assert [change.key for change in report.changes] == [WEB_KEY]
    assert world.kernel.endpoints("10.96.0.1") == {"10.180.0.1"}
    assert world.reconciler.sync().operations == 0


def test_a_change_of_the_service_is_tried_at_once(world: World) -> None:
    world.kernel.cannot_take.add(WEB_KEY)
    world.reconciler.sync()
    world.kernel.cannot_take.clear()
    world.has("web", "10.96.0.1", "10.180.0.3")
    assert world.reconciler.sync().refused == {}
    assert world.kernel.endpoints("10.96.0.1") == {"10.180.0.3"}


def test_a_service_that_is_deleted_is_set_aside_no_longer(world: World) -> None:
    world.kernel.cannot_take.add(WEB_KEY)
    world.reconciler.sync()
    world.planner.store.delete(Kind.SERVICE, WEB)
    assert world.reconciler.sync().refused == {}


def test_what_is_nobodys_fault_fails_the_sync_and_sets_nobody_aside(world: World) -> None:
    world.kernel.refuse = 1
    with pytest.raises(errors.CommitRejectedError):
        world.reconciler.sync()
    report = world.reconciler.sync()
    assert report.refused == {}
    assert len(world.kernel.held) == 2


def test_two_services_that_cannot_be_taken_cost_only_themselves(world: World) -> None:
    world.has("third", "10.96.0.3", "10.180.0.7")
    shop = WEB_KEY._replace(address=addresses.parse_address("10.96.0.2"))
    world.kernel.cannot_take |= {WEB_KEY, shop}
    assert world.reconciler.sync().refused.keys() == {WEB, SHOP}
    assert {key.address for key in world.kernel.held} == set(builders.packed("10.96.0.3"))


def test_after_an_unexpected_error_everything_is_tried_anew(world: World) -> None:
    world.kernel.cannot_take.add(WEB_KEY)
    world.reconciler.sync()
    world.kernel.broken["commit"] = OSError("what was that")
    world.kernel.cannot_take.clear()
    world.has("shop", "10.96.0.2", "10.180.0.5")
    with pytest.raises(OSError, match="what was that"):
        world.reconciler.sync()
    assert world.reconciler.sync().refused == {}
    assert len(world.kernel.held) == 2


def test_a_refused_service_that_changes_all_the_time_is_remembered_as_one_change(world: World) -> None:
    world.reconciler.sync()
    world.kernel.cannot_take.add(WEB_KEY)
    for number in range(50):
        world.has("web", "10.96.0.1", f"10.180.1.{number}")
        assert world.reconciler.sync().refused.keys() == {WEB}
    assert len(world.reconciler._uncommitted) == 1
    world.kernel.cannot_take.clear()
    world.has("web", "10.96.0.1", "10.180.2.1")
    (change,) = world.reconciler.sync().changes
    assert change.before is not None
    assert change.after is not None
    assert change.before.endpoints == (addresses.endpoint_key(addresses.parse_address("10.180.0.1"), 8080),)
    assert change.after.endpoints == (addresses.endpoint_key(addresses.parse_address("10.180.2.1"), 8080),)
