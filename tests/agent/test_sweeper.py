"""Dropping stale flows aside: what waits is bounded and merged, a late pass cuts nothing good, a stop does not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from netagent import conntrack
from netagent.agent import sweeper
from netagent.model import addresses
from netagent.plan import frontends
from tests import patience

UDP = addresses.Protocol.UDP
Key = frontends.FrontendKey


class Cleaner:
    """A pass waits until the test lets it go. `broken` is raised by it."""

    def __init__(self) -> None:
        self.passes: list[dict[Key, frozenset[bytes]]] = []
        self.go = threading.Semaphore(0)
        self.broken: list[Exception] = []
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def clean(self, rules: Iterable[conntrack.StaleFlows]) -> conntrack.CleanReport:
        self.passes.append({rule.key: rule.allowed_sources for rule in rules})
        self.go.acquire(timeout=patience.AN_HOUR)
        if self.broken:
            raise self.broken.pop()
        return conntrack.CleanReport(1, 1, ())


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of a busy machine may be long in ending; that it ends is what counts."""
    monkeypatch.setattr(sweeper, "_STOP_SECONDS", patience.HANGS)


class Stage:
    """A sweeper with frontends that the test changes."""

    def __init__(self, *, most: int = 100) -> None:
        self.frontends: dict[Key, frontends.Frontend] = {}
        self.cleaner = Cleaner()
        self.reports: list[conntrack.CleanReport] = []
        self.stumbles: list[Exception] = []
        cleaner: Any = self.cleaner
        self.sweeper = sweeper.FlowSweeper(
            cleaner,
            current=lambda: self.frontends,
            protocols=lambda: frozenset({UDP}),
            dropped=lambda report, seconds: self.reports.append(report),
            stumbled=self.stumbles.append,
            most=most,
        )
        self.sweeper.start()

    def submit(self, *keys: Key) -> None:
        self.sweeper.submit([conntrack.StaleFlows(key, frozenset()) for key in keys])

    def busy(self) -> None:
        """Begin a pass that lasts until the test says `go`."""
        passes = len(self.cleaner.passes)
        self.submit(key(250))
        self.until(lambda: len(self.cleaner.passes) > passes)

    @staticmethod
    def until(condition: Callable[[], object]) -> None:
        patience.until(condition, pause=0.002)


def key(number: int, *, protocol: addresses.Protocol = UDP) -> Key:
    return Key(addresses.Family.IPV4, bytes([10, 96, 0, number]), protocol, 53)


def endpoint(number: int) -> bytes:
    return addresses.endpoint_key(bytes([10, 180, 0, number]), 5353)


def serving(at: Key, *endpoints: bytes) -> Any:
    """As much of a Frontend as a sweeper looks at."""
    return SimpleNamespace(key=at, serving_endpoints=endpoints)


def test_a_frontend_that_is_submitted_often_waits_once() -> None:
    stage = Stage()
    stage.busy()
    for _ in range(1000):
        stage.submit(key(1), key(2))
    assert stage.sweeper.waiting == 2
    stage.cleaner.go.release(2)
    stage.until(lambda: len(stage.reports) == 2)
    assert stage.cleaner.passes[1].keys() == {key(1), key(2)}
    assert stage.sweeper.stop()


def test_what_flows_may_keep_is_asked_when_the_pass_begins() -> None:
    """An endpoint that came back while the pass had to wait keeps its flows."""
    stage = Stage()
    stage.busy()
    stage.submit(key(1))
    stage.frontends[key(1)] = serving(key(1), endpoint(1), endpoint(2))
    stage.cleaner.go.release(2)
    stage.until(lambda: len(stage.reports) == 2)
    assert stage.cleaner.passes[1] == {key(1): frozenset({endpoint(1), endpoint(2)})}
    assert stage.sweeper.stop()


def test_too_many_at_once_become_one_look_at_all_that_there_are() -> None:
    stage = Stage(most=20)
    for number in (1, 2, 3):
        stage.frontends[key(number)] = serving(key(number), endpoint(number))
    tcp = key(4, protocol=addresses.Protocol.TCP)
    stage.frontends[tcp] = serving(tcp, endpoint(4))
    stage.busy()
    for number in range(10, 200):
        stage.submit(key(number))
        assert stage.sweeper.waiting <= 20
    stage.cleaner.go.release(5)
    stage.until(lambda: len(stage.reports) == 2)
    assert {key(1), key(2), key(3)} <= stage.cleaner.passes[1].keys()
    assert tcp not in stage.cleaner.passes[1]
    assert len(stage.cleaner.passes) == 2
    assert stage.sweeper.stop()


def test_a_pass_that_breaks_is_told_and_the_next_one_comes() -> None:
    stage = Stage()
    error = ZeroDivisionError("a bug")
    stage.cleaner.broken.append(error)
    stage.submit(key(1))
    stage.cleaner.go.release()
    stage.until(lambda: stage.stumbles == [error])
    stage.submit(key(2))
    stage.cleaner.go.release()
    stage.until(lambda: stage.reports)
    assert stage.sweeper.stop()


@pytest.mark.parametrize("state", ["idle", "in a pass"])
def test_a_stop_does_not_wait_for_a_pass(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    if state == "in a pass":
        stage.busy()
        stage.submit(key(1))
        monkeypatch.setattr(sweeper, "_STOP_SECONDS", 0.05)
    assert stage.sweeper.stop() == (state == "idle")  # the pass would go on for an hour
    assert stage.cleaner.cancelled
    stage.cleaner.go.release(10)
    patience.until(lambda: not stage.sweeper._thread.is_alive())
    assert len(stage.cleaner.passes) == (state == "in a pass"), "nothing begins after the stop"
    assert stage.reports == [], "nor is anybody told"
