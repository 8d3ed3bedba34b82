"""When the agent calls itself healthy, late, eligible and ready."""

from __future__ import annotations

import pytest

from netagent.agent.health import state
from netagent.model.addresses import Family
from tests import builders

FAMILIES = (Family.IPV4, Family.IPV6)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def agent(clock: Clock, *, sources: tuple[str, ...] = ()) -> state.AgentHealth:
    return state.AgentHealth(FAMILIES, sync_period_seconds=30, sources=sources, clock=clock, wall=lambda: 1.7e9)


def test_an_agent_that_has_not_synced_yet_is_healthy(clock: Clock) -> None:
    assert agent(clock).healthy()


def test_idle_time_is_never_late(clock: Clock) -> None:
    health = agent(clock)
    health.queued(Family.IPV4)
    health.synced(Family.IPV4)
    clock.now += 100_000
    assert health.healthy()


def test_an_update_that_waits_longer_than_two_sync_periods_is_late(clock: Clock) -> None:
    health = agent(clock)
    health.queued(Family.IPV4)
    clock.now += 60
    assert health.healthy()
    clock.now += 0.1
    assert not health.healthy()
    report = health.report()
    assert report.families[Family.IPV4][0] is False
    assert report.families[Family.IPV6][0] is True
    health.synced(Family.IPV4)
    assert health.healthy()


def test_more_updates_do_not_hide_the_one_that_waits(clock: Clock) -> None:
    health = agent(clock)
    for _ in range(7):
        health.queued(Family.IPV6)
        clock.now += 10
    assert not health.healthy()
    assert health.queue_age(Family.IPV6) == 70
    assert health.queue_age(Family.IPV4) == 0


def test_a_sync_does_not_cover_what_came_while_it_ran(clock: Clock) -> None:
    health = agent(clock)
    health.queued(Family.IPV4)
    began = clock.now = clock.now + 1
    clock.now += 5
    health.queued(Family.IPV4)
    health.synced(Family.IPV4, began=began)
    clock.now += 50
    assert health.healthy()
    clock.now += 20
    assert not health.healthy()


def test_nothing_is_late_while_the_api_server_has_not_answered_yet(clock: Clock) -> None:
    health = agent(clock, sources=("Service", "EndpointSlice"))
    health.source("Service", in_sync=True)
    health.queued(Family.IPV4)
    clock.now += 1000
    assert health.healthy()
    health.source("EndpointSlice", in_sync=True)
    clock.now += 59
    assert health.healthy()
    clock.now += 2
    assert not health.healthy()


def test_a_loop_that_hangs_is_unhealthy_although_nothing_waits(clock: Clock) -> None:
    health = agent(clock)
    clock.now += 1000
    assert health.healthy()  # it has not begun
    health.loop_turned()
    clock.now += 60
    assert health.healthy()
    clock.now += 1
    assert not health.healthy()
    health.loop_turned()
    assert health.healthy()


def test_ready_is_every_family_synced_and_every_source_in_sync(clock: Clock) -> None:
    health = agent(clock, sources=("Service",))
    assert not health.report().ready
    health.source("Service", in_sync=True)
    health.synced(Family.IPV4)
    assert not health.report().ready
    health.synced(Family.IPV6)
    assert health.report().ready


def test_a_node_is_eligible_once_it_is_known_unless_it_is_tainted_or_deleted(clock: Clock) -> None:
    health = agent(clock)
    assert not health.report().node_eligible
    health.node(None)
    assert not health.report().node_eligible
    for node, eligible in (
        (builders.node(taint_keys=("dedicated",)), True),
        (builders.node(taint_keys=("dedicated", "ToBeDeletedByClusterAutoscaler")), False),
        (builders.node(), True),
        (builders.node(deleting=True), False),
    ):
        health.node(node)
        assert health.report().node_eligible is eligible
        health.node(None)
        assert health.report().node_eligible is eligible
    assert health.healthy()


def test_another_sync_period_counts_at_once(clock: Clock) -> None:
    health = agent(clock)
    health.queued(Family.IPV4)
    clock.now += 61
    health.use((Family.IPV4,), sync_period_seconds=60)
    assert health.healthy()
    assert list(health.report().families) == [Family.IPV4]


def test_times_are_rfc_3339_with_a_fraction() -> None:
    assert state.rfc3339(1700000000.25) == "2023-11-14T22:13:20.250000Z"
    assert state.rfc3339(None) == "0001-01-01T00:00:00Z"


def test_what_breaks_now_and_then_does_not_make_it_unsound(clock: Clock) -> None:
    health = agent(clock)
    for _ in range(10):
        health.stumbled()
        assert health.report().sound
        clock.now += 61
    for _ in range(3):  # a burst
        health.stumbled()
    assert health.report().sound


def test_what_breaks_for_two_sync_periods_does_and_its_end_mends_it(clock: Clock) -> None:
    health = agent(clock)
    for _ in range(7):
        health.stumbled()
        assert health.report().sound
        clock.now += 10
    health.stumbled()
    assert not health.report().sound
    assert health.healthy(), "what load balancers ask is another question"
    clock.now += 61
    assert health.report().sound
    health.stumbled()
    assert health.report().sound
