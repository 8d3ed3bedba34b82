"""What the agent logs of its work: each fact once, when it begins and when it ends."""

from __future__ import annotations

import logging

import pytest

from netagent import settings
from netagent.agent import planner, reconciler, reporting
from netagent.model import objects
from netagent.source.kinds import Kind
from tests import builders
from tests.agent.test_loop import Running

YOUNG = "2025-01-01T00:00:00Z"
YOUNGER = "2025-01-02T00:00:00Z"
TWICE = "10.96.0.1:80/tcp is claimed twice: default/web has it, older or first by name; shop/young does without"
OVER = "10.96.0.1:80/tcp is no longer claimed twice by default/web and shop/young"


class World:
    """A plan of what is put into its Store, and the log of its conflicts."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="netagent")
        self._caplog = caplog
        self.planner = planner.Planner(settings.Settings(), node_name="node-1")
        self.log = reporting.ConflictLog()

    def sync(self, *items: objects.Object) -> list[str]:
        """Take these objects and sync; return what was logged, with its level."""
        for item in items:
            self.planner.store.apply(item)
        self._caplog.clear()
        report = reconciler.SyncReport(0, 0, 0.0, (), planned=self.planner.replan().planned)
        self.log.synced(report, self.planner.forwarding)
        return [f"{record.levelname} {record.getMessage()}" for record in self._caplog.records]

    def delete(self, namespace: str, name: str) -> list[str]:
        self.planner.store.delete(Kind.SERVICE, (namespace, name))
        return self.sync()


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    """One Service has 10.96.0.1."""
    made = World(caplog)
    assert made.sync(builders.service()) == []
    return made


def young(*, created: str = YOUNG, name: str = "young", **fields: object) -> objects.Service:
    return builders.service(name, namespace="shop", created=created, **fields)  # type: ignore[arg-type]


def test_a_conflict_is_told_when_it_begins_and_when_it_ends(world: World) -> None:
    assert world.sync(young()) == [f"WARNING {TWICE}"]
    assert world.sync() == []
    assert world.sync(builders.endpoint_slice()) == []
    assert world.delete("shop", "young") == [f"INFO {OVER}"]
    assert world.sync(young()) == [f"WARNING {TWICE}"]


def test_a_loser_that_takes_over_has_no_conflict_any_more(world: World) -> None:
    world.sync(young())
    assert world.delete("default", "web") == [f"INFO {OVER}"]


def test_a_loser_that_goes_elsewhere_has_no_conflict_any_more(world: World) -> None:
    world.sync(young())
    assert world.sync(young(cluster_ips=["10.96.0.2"])) == [f"INFO {OVER}"]


def test_another_winner_is_another_conflict(world: World) -> None:
    third = young(name="third", created=YOUNGER)
    world.sync(young(), third)
    assert world.delete("default", "web") == [
        "WARNING 10.96.0.1:80/tcp is claimed twice: shop/young has it, older or first by name; shop/third does without",
        f"INFO {OVER}",
    ]
    assert world.delete("shop", "young") == [
        "INFO 10.96.0.1:80/tcp is no longer claimed twice by shop/young and shop/third"
    ]
    assert not world.log._winners


def test_a_flood_is_counted_and_not_listed(world: World) -> None:
    ports = [builders.port(number, name=f"p{number}") for number in range(1, 101)]
    world.sync(builders.service(ports=ports))
    told = world.sync(young(ports=ports))
    assert len(told) == 21
    assert told[-1] == "WARNING and 80 more frontends are claimed twice"
    told = world.delete("shop", "young")
    assert len(told) == 21
    assert told[-1] == "INFO and 80 more frontends are no longer claimed twice"


def test_the_agent_tells_of_conflicts_while_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="netagent")
    with Running() as running:
        running.feed.put(*builders_of_web())
        running.until_serving("10.180.0.1")
        running.feed.put(young())
        running.until(lambda: TWICE in caplog.messages)
        running.feed.put(builders.endpoint_slice("web", "10.180.0.2"))
        running.until_serving("10.180.0.2")
        running.feed.put(young(cluster_ips=["10.96.0.2"]))
        running.until(lambda: OVER in caplog.messages)
    assert caplog.messages.count(TWICE) == caplog.messages.count(OVER) == 1


def builders_of_web() -> tuple[objects.Object, ...]:
    return (builders.service(), builders.endpoint_slice("web", "10.180.0.1"))


def test_a_storm_of_repairs_is_logged_a_few_times_and_what_is_new_each_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="netagent")
    now = [0.0]
    told = reporting.SyncLog(clock=lambda: now[0])
    repair = reconciler.SyncReport(7, 1, 0.0, (), drift=7)
    for _ in range(50):
        told.synced(repair)
    assert len(caplog.records) == 3
    told.synced(repair._replace(operations=9))
    assert len(caplog.records) == 4, "it did more than repair"
    now[0] = 60.0
    told.synced(repair)
    assert len(caplog.records) == 5, "a while later it is news again"
