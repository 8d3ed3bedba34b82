"""New connections of each Service port: numbers that rate() can be trusted with."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent import errors
from netagent.agent.metrics import connections
from netagent.model.addresses import Family, Protocol
from netagent.plan.frontends import ServicePortName


class Stage:
    """A registry over counters that the test turns."""

    def __init__(self, *, series_most: int = 100) -> None:
        self.now = 1000.0
        self.reads = 0
        self.counts: dict[str, connections.ElementCount] = {}
        self.failure: Exception | None = None
        self.registry = prometheus_client.CollectorRegistry()
        self.registry.register(
            connections.ServiceConnections(self.read, series_most=series_most, clock=lambda: self.now)
        )

    def read(self) -> Iterable[connections.ElementCount]:
        self.reads += 1
        if self.failure:
            raise self.failure
        return list(self.counts.values())

    def turn(self, element: str, count: int, *, service: str = "web", port: str = "http") -> None:
        owner = ServicePortName("default", service, port, Protocol.TCP)
        self.counts[element] = connections.ElementCount(element, owner, Family.IPV4, count)

    def scrape(self) -> dict[tuple[str, str], float]:
        self.now += 5
        return {
            (sample.labels["service"], sample.labels["port"]): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
        }


WEB = ("web", "http")
OTHER = (connections.OTHER, "")


def test_labels_name_the_service_port() -> None:
    stage = Stage()
    stage.turn("a", 0)
    (metric,) = stage.registry.collect()
    (sample,) = metric.samples
    assert sample.name == "netagent_service_connections_total"
    assert sample.labels == {
        "namespace": "default",
        "service": "web",
        "port": "http",
        "protocol": "TCP",
        "ip_family": "IPv4",
    }


def test_registering_does_not_ask_the_kernel() -> None:
    assert Stage().reads == 0


def test_all_frontends_of_a_service_port_are_one_series() -> None:
    stage = Stage()
    stage.scrape()
    stage.turn("cluster ip", 10)
    stage.turn("node port", 5)
    assert stage.scrape() == {WEB: 15}


def test_what_was_counted_before_the_agent_came_is_no_burst() -> None:
    stage = Stage()
    stage.turn("a", 1_000_000)
    assert stage.scrape() == {WEB: 0}
    stage.turn("a", 1_000_007)
    assert stage.scrape() == {WEB: 7}


def test_an_element_that_begins_anew_does_not_set_its_series_back() -> None:
    stage = Stage()
    stage.turn("a", 0)
    stage.turn("b", 0)
    stage.scrape()
    stage.turn("a", 1_000_000)
    stage.turn("b", 500)
    assert stage.scrape() == {WEB: 1_000_500}
    stage.turn("b", 3)  # replaced when its endpoints changed
    assert stage.scrape() == {WEB: 1_000_503}
    del stage.counts["b"]
    stage.turn("a", 1_000_001)
    assert stage.scrape() == {WEB: 1_000_504}


def test_series_are_bounded_and_the_rest_is_added_up() -> None:
    stage = Stage(series_most=2)
    for service in "abcde":
        stage.turn(service, 0, service=service)
    stage.scrape()
    for index, service in enumerate("abcde"):
        stage.turn(service, 10 * index, service=service)
    found = stage.scrape()
    assert {key for key in found if key[0] != connections.OTHER} == {("e", "http"), ("d", "http")}
    assert found[OTHER] >= 0 + 10 + 20


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50), max_size=6),
        min_size=1,
        max_size=12,
    )
)
def test_no_series_ever_goes_back_while_its_service_port_exists(history: list[dict[str, int]]) -> None:
    stage = Stage(series_most=2)
    for service in "abcdef":
        stage.turn(service, 0, service=service)
    before = stage.scrape()
    for step in history:
        for service, count in step.items():
            stage.turn(service, count, service=service)  # may be lower than before: it began anew
        found = stage.scrape()
        assert len(found) <= 3
        for key in before.keys() & found.keys():
            assert found[key] >= before[key]
        before |= found


def test_zero_series_leaves_the_sum() -> None:
    stage = Stage(series_most=0)
    stage.scrape()
    stage.turn("a", 4)
    assert stage.scrape() == {OTHER: 4}


def test_a_deleted_service_leaves_no_series() -> None:
    stage = Stage()
    stage.turn("a", 1)
    stage.scrape()
    stage.counts.clear()
    assert stage.scrape() == {}


def test_many_scrapes_ask_the_kernel_once() -> None:
    stage = Stage()
    for _ in range(50):
        list(stage.registry.collect())
    assert stage.reads == 1


@pytest.mark.parametrize("failure", [OSError(1, "Operation not permitted"), errors.PrivilegeError("no")])
def test_when_the_kernel_cannot_be_asked_the_last_numbers_stay(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    stage.scrape()
    stage.turn("a", 4)
    stage.scrape()
    stage.failure = failure
    with caplog.at_level(logging.WARNING):
        assert stage.scrape() == {WEB: 4}
    assert "cannot read the counters" in caplog.text
