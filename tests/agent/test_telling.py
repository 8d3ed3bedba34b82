"""What the agent tells while it runs: troubles once, changes once, and nothing of what is gone."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from netagent import errors, settings
from netagent.agent import notify, planner, reconciler, telling
from netagent.agent.health import checks, servers, state
from netagent.agent.metrics import collectors, latency
from netagent.model import objects
from netagent.model.addresses import Family
from netagent.source.api import events
from netagent.source.kinds import Kind
from tests import builders

FAMILIES = (Family.IPV4, Family.IPV6)
START = 1_700_000_000.0
AFTER_1, AFTER_2, AFTER_3 = (f"2023-11-14T22:13:2{second}Z" for second in (1, 2, 3))


class Listening:
    """The agent's two servers: what cannot listen is what the test says, and `()` may mean that it was not tried."""

    def __init__(self) -> None:
        self.failures: tuple[servers.ServerFailure, ...] = ()

    def ensure(self) -> tuple[servers.ServerFailure, ...]:
        return self.failures


class Checks:
    """Health check node ports that cannot listen where the test says so."""

    def __init__(self) -> None:
        self.listeners = 0
        self.reasons: dict[objects.ServiceName, str] = {}
        self.wanted: list[objects.ServiceName] = []

    def update(self, desired: Any, *, listen_on: Any) -> tuple[checks.ListenFailure, ...]:
        self.wanted = sorted({port.service for port in desired})
        return tuple(
            checks.ListenFailure(name, "192.0.2.1:31000", self.reasons[name])
            for name in self.wanted
            if name in self.reasons
        )


class World:
    """An agent without kernel: what is heard goes into the Store, is planned, and told."""

    def __init__(self) -> None:
        self.now, self.wall = 1000.0, START
        health = state.AgentHealth(FAMILIES, sync_period_seconds=30, sources=(), clock=self.clock)
        self.metrics = collectors.Metrics(
            health,
            mode=settings.Mode.NFTABLES,
            families=FAMILIES,
            clock=self.clock,
            wall=lambda: self.wall,
        )
        self.listening, self.checks = Listening(), Checks()
        self.planner = planner.Planner(settings.Settings(), node_name="node-1")
        listening: Any = self.listening
        service_checks: Any = self.checks
        self.telling = telling.Telling(
            self.planner,
            agent=health,
            metrics=self.metrics,
            listening=listening,
            service_checks=service_checks,
            notifier=notify.Notifier({}),
            local_addresses=lambda: builders.packed("192.0.2.1"),
            clock=self.clock,
        )

    def clock(self) -> float:
        return self.now

    def hear(self, *heard: events.Event, sync: bool = True) -> None:
        """As the loop does it: heard, stored, a turn, and a sync if there is anything to sync."""
        self.telling.heard(heard)
        events.feed(self.planner.store, heard)
        self.telling.turned()
        if sync and self.planner.store.dirty:
            self.sync()

    def sync(self) -> None:
        replanned = self.planner.replan()
        self.telling.synced(reconciler.SyncReport(0, 0, 0.0, (), changes=replanned.changes, planned=replanned.planned))

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def latencies(self) -> tuple[float | None, float | None]:
        """How many were measured, and their sum."""
        name = "netagent_network_programming_duration_seconds"
        return self.value(f"{name}_count", ip_family="IPv4"), self.value(f"{name}_sum", ip_family="IPv4")


@pytest.fixture
def world() -> World:
    made = World()
    made.hear(events.Applied(Kind.SERVICE, builders.service()))
    return made


def balanced(name: str = "balanced", port: int = 31000) -> events.Applied:
    return events.Applied(
        Kind.SERVICE,
        builders.service(
            name,
            type=objects.ServiceType.LOAD_BALANCER,
            external_policy=objects.TrafficPolicy.LOCAL,
            health_check_node_port=port,
        ),
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was warned of since the last look."""
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return told


# --- troubles -------------------------------------------------------------------------------------------------------


def test_a_health_check_port_that_cannot_listen_is_told_once_and_again_when_it_was_good(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    name = objects.ServiceName("default", "balanced")
    world.checks.reasons[name] = "Address already in use"
    world.hear(balanced())
    (told,) = warnings(caplog)
    assert "default/balanced cannot listen on 192.0.2.1:31000: Address already in use" in told
    for _ in range(3):
        world.now += 20
        world.telling.turned()
    assert not warnings(caplog)
    del world.checks.reasons[name]
    world.now += 20
    world.telling.turned()
    world.checks.reasons[name] = "Address already in use"
    world.now += 20
    world.telling.turned()
    assert warnings(caplog) == [told]


def test_a_server_that_cannot_listen_is_told_once_although_it_is_not_tried_in_every_turn(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    failure = servers.ServerFailure("health", settings.Settings().healthz_bind_address, "Address already in use")
    for failures in ((failure,), (), (failure,), (), ()):
        world.listening.failures = failures
        world.telling.turned()
    assert warnings(caplog) == [str(failure)]


def test_troubles_of_services_that_are_gone_are_forgotten(world: World) -> None:
    for number in range(50):
        name = f"balanced-{number}"
        world.checks.reasons[objects.ServiceName("default", name)] = "Address already in use"
        world.hear(balanced(name))
        assert sum(map(len, world.telling._complaints.values())) == 1
        world.hear(events.Deleted(Kind.SERVICE, ("default", name)))
        assert sum(map(len, world.telling._complaints.values())) == 0
    assert world.checks.wanted == []


# --- syncs that fail ------------------------------------------------------------------------------------------------


def test_commits_that_lost_against_somebody_elses_are_counted(world: World) -> None:
    world.telling.failed(errors.CommitRejectedError("ENOENT", errno=2))
    assert world.value("netagent_generation_conflicts_total") == 0
    world.telling.synced(reconciler.SyncReport(0, 0, 0.0, (), planned=frozenset(), conflicts=2))
    assert world.value("netagent_generation_conflicts_total") == 2
    assert world.value("netagent_syncs_total", result="failure") == 1


def test_services_that_the_kernel_refuses_count_as_quarantined(world: World) -> None:
    refused = {objects.ServiceName("default", "web"): "Invalid argument"}
    world.telling.synced(reconciler.SyncReport(0, 0, 0.0, (), planned=frozenset(), refused=refused))
    assert world.value("netagent_quarantined_objects", kind="Service") == 1
    world.telling.synced(reconciler.SyncReport(0, 0, 0.0, (), planned=frozenset()))
    assert world.value("netagent_quarantined_objects", kind="Service") == 0


# --- latency --------------------------------------------------------------------------------------------------------


def changed(trigger_time: str, *addresses: str, service: str = "web", **fields: Any) -> events.Applied:
    item = builders.endpoint_slice(service, *addresses, trigger_time=trigger_time, **fields)
    return events.Applied(Kind.ENDPOINT_SLICE, item)


def listed(*applied: events.Applied, **fields: Any) -> events.Listed:
    return events.Listed(kind=Kind.ENDPOINT_SLICE, objects=tuple(one.object for one in applied), **fields)


def test_a_change_is_measured_once_although_lists_tell_it_again(world: World) -> None:
    world.wall = START + 3
    change = changed(AFTER_1, "10.180.0.1")
    world.hear(change)
    assert world.latencies() == (1, 2.0)
    world.wall = START + 3600
    world.hear(listed(change))  # the list that audits
    world.hear(events.Applied(Kind.NODE, builders.node()))  # which plans everything
    world.hear(listed(change), events.Applied(Kind.SERVICE, builders.service(ports=[builders.port(81)])))
    assert world.latencies() == (1, 2.0)


def test_a_change_that_a_list_brings_is_measured(world: World) -> None:
    world.hear(changed(AFTER_1, "10.180.0.1"))
    before, _ = world.latencies()
    world.wall = START + 4
    world.hear(listed(changed(AFTER_2, "10.180.0.2")))
    assert world.latencies() == ((before or 0) + 1, 2.0)


def test_a_change_is_not_lost_by_a_sync_that_failed(world: World) -> None:
    world.hear(changed(AFTER_1, "10.180.0.1"), sync=False)
    world.telling.failed(errors.CommitRejectedError("ENOENT", errno=2))
    world.hear(changed(AFTER_1, "10.180.0.1"), sync=False)
    world.wall = START + 3
    world.sync()
    assert world.latencies() == (1, 2.0)


def test_what_concerns_no_service_of_ours_is_not_measured(world: World) -> None:
    """It changes nothing in the kernel, and the next sync may come hours later."""
    world.hear(changed(AFTER_1, "10.180.0.7", service="foreign"), changed(AFTER_1, "10.180.0.8", headless=True))
    world.wall = START + 3600
    world.hear(changed("2023-11-14T23:13:19Z", "10.180.0.1"))
    assert world.latencies() == (1, 1.0)


def test_times_of_slices_that_are_gone_or_change_for_ever_are_bounded_without_any_sync(world: World) -> None:
    pending = world.metrics.triggers._pending
    for number in range(2 * latency.TIMES_MOST):
        second = f"2023-11-14T22:{14 + number // 60:02}:{number % 60:02}Z"
        world.hear(changed(second, "10.180.0.1", name="restless"), sync=False)
        world.hear(changed(second, "10.180.0.1", name=f"gone-{number}"), sync=False)
        world.hear(
            events.Deleted(Kind.ENDPOINT_SLICE, ("default", f"gone-{number}"))
            if number % 2
            else listed(changed(second, "10.180.0.1", name="restless")),
            sync=False,
        )
    assert list(pending) == [("default", "restless")]
    assert len(pending["default", "restless"].texts) == latency.TIMES_MOST


def test_a_list_in_which_a_name_cannot_be_read_forgets_nothing(world: World) -> None:
    bad = events.Quarantined(Kind.ENDPOINT_SLICE, reason="has no name")
    kept = events.Quarantined(Kind.ENDPOINT_SLICE, "default", "web-1", "endpoints", "are none")
    for partial in (listed(quarantined=(bad,)), listed(quarantined=(kept,))):
        world.hear(changed(AFTER_3, "10.180.0.1", name="web-1"), sync=False)
        world.hear(partial, sync=False)
        assert len(world.metrics.triggers._pending) == 1


def test_what_nobody_expected_is_counted() -> None:
    world = World()
    world.telling.stumbled("feed", OSError("gone"))
    assert world.metrics.registry.get_sample_value("netagent_unexpected_errors_total", {"where": "feed"}) == 1
