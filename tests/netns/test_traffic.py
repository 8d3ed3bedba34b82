"""What users care about while things change: even spread, and connections that survive."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests import builders

from . import capability, layout
from . import clients as dialling
from .stage import POD, Stage, reached, stage

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(capability.missing()), reason=capability.missing() or "can make namespaces"),
]

CLUSTER_IP = "10.96.0.1"
# Chi-squared values that a uniform choice exceeds once in 10,000 times, by degrees of freedom.
CRITICAL = {1: 15.137, 2: 18.421, 6: 27.856, 49: 94.597}


@pytest.fixture
def node() -> Iterator[Stage]:
    with stage() as made:
        yield made


def _endpoints(count: int, *, first: int = 1) -> list[str]:
    return [f"10.180.0.{number}" for number in range(first, first + count)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_connections_spread_evenly(node: Stage, count: int) -> None:
    ports = [builders.port_manifest(protocol="UDP")]
    slice_ports = [builders.port_manifest(8080, protocol="UDP")]
    endpoints = _endpoints(count)
    node.apply(
        builders.service_manifest(cluster_ip=CLUSTER_IP, ports=ports),
        builders.slice_manifest("web", *endpoints, ports=slice_ports),
    )
    suspicious = []
    # A uniform choice looks suspicious once in 10,000 times; that it does so twice is no chance.
    for dials in (3000, 6000):
        counts = reached(node.dial(dials, to=CLUSTER_IP, port=80, protocol="udp"))
        assert set(counts) == set(endpoints)
        expected = dials / count
        statistic = sum((counts[endpoint] - expected) ** 2 / expected for endpoint in endpoints)
        if count == 1 or statistic < CRITICAL[count - 1]:
            return
        suspicious.append(counts)
    pytest.fail(f"not even: {suspicious}")


@pytest.mark.parametrize(
    "then", ["other Service changes", "own endpoints change", "agent restarts", "Service is deleted"]
)
def test_an_open_connection_survives(node: Stage, then: str) -> None:
    web = builders.service_manifest(cluster_ip=CLUSTER_IP)
    node.apply(web, builders.slice_manifest("web", *_endpoints(3)))
    dial = dialling.Dial(place=layout.Place.PODS, source=POD, destination=CLUSTER_IP, port=80, protocol="tcp")
    before = node.wait(node.clients.hold("held", dial))
    match then:
        case "other Service changes":
            other = builders.service_manifest("other", cluster_ip="10.96.0.2")
            node.apply(other, builders.slice_manifest("other", *_endpoints(2, first=20)))
        case "own endpoints change":
            node.apply(builders.slice_manifest("web", *_endpoints(3, first=10)))
        case "agent restarts":
            node.agent.restart_agent()
            assert node.apply() == 0
        case "Service is deleted":
            node.remove("web")
            node.apply()
    after = node.wait(node.clients.ask("held"))
    assert after.arrival == before.arrival


def test_syncs_under_load_lose_no_connection(node: Stage) -> None:
    """200 connections a second, while the endpoints change as often as the agent can follow."""
    node.apply(builders.service_manifest(cluster_ip=CLUSTER_IP), builders.slice_manifest("web", *_endpoints(3)))

    def churn(stopping: threading.Event) -> None:
        for step in itertools.count():
            if stopping.is_set() and sum(1 for operations in node.agent.operations if operations) > 50:
                return
            # 1 to 7 endpoints, overlapping: slots move, chains come and go
            node.apply(builders.slice_manifest("web", *_endpoints(1 + step % 7, first=1 + step % 5)))
            if step % 100 == 50:
                node.agent.restart_agent()
            time.sleep(0.005)

    outcomes = node.wait(_under_load(node, churn))
    assert len(reached(outcomes)) >= 7


@pytest.mark.skipif(shutil.which("iptables-legacy-restore") is None, reason="not installed: iptables")
def test_changing_modes_under_load_loses_no_connection(node: Stage) -> None:
    """From each data plane to each other one, and an open connection lives through all of it."""
    node.apply(builders.service_manifest(cluster_ip=CLUSTER_IP), builders.slice_manifest("web", *_endpoints(3)))
    dial = dialling.Dial(place=layout.Place.PODS, source=POD, destination=CLUSTER_IP, port=80, protocol="tcp")
    before = node.wait(node.clients.hold("held", dial))
    modes = [("iptables", "legacy"), ("iptables", "nft"), ("nftables", "auto")]
    modes += [("iptables", "nft"), ("iptables", "legacy"), ("nftables", "auto")]

    def change(stopping: threading.Event) -> None:
        for mode, variant in modes:
            node.agent.change_mode(mode, variant)
            time.sleep(0.2)

    outcomes = node.wait(_under_load(node, change))
    assert set(reached(outcomes)) == set(_endpoints(3))
    assert node.wait(node.clients.ask("held")).arrival == before.arrival


async def _under_load(node: Stage, meanwhile: Callable[[threading.Event], None]) -> list[dialling.Outcome]:
    """200 connections a second for three seconds and until `meanwhile` ends, which is told to after these seconds.

    It is in a thread of its own, so that commits and packets meet at any moment.
    """
    dial = dialling.Dial(
        place=layout.Place.PODS, source=POD, destination=CLUSTER_IP, port=80, protocol="tcp", patience=60
    )
    stopping = threading.Event()
    going_on = asyncio.get_running_loop().run_in_executor(None, meanwhile, stopping)
    pending = []
    while len(pending) < 600 or not going_on.done():
        pending.append(asyncio.ensure_future(node.clients.dial(dial)))
        await asyncio.sleep(1 / 200)
        if len(pending) == 600:
            stopping.set()
    outcomes = await asyncio.gather(*pending)
    await going_on
    return list(outcomes)
