"""Settings that a running agent is told by its file, and what it tells of conflicts: as a process, with real rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from netagent.source.kinds import Kind
from tests import builders, kernel
from tests.agent import live_agent
from tests.agent.live_agent import METRICS, Agent, eventually, get, until_right
from tests.apiserver import ApiServer

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
CONNECTIONS = "netagent_service_connections_total"


def served() -> ApiServer:
    """A server in the namespace of the test. Call within a test under `kernel.isolated` only."""
    live_agent.begin()
    return ApiServer(live_agent.small_cluster(), bookmark_seconds=0.2)


def series() -> list[str]:
    """The counters of Service ports."""
    return [line for line in get(f"{METRICS}/metrics").body.splitlines() if line.startswith(CONNECTIONS)]


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configured") / "config.yaml"


@kernel.isolated
def test_counters_of_services_are_as_many_as_the_file_says(config: Path) -> None:
    config.write_text(HEAD + "netagent: {serviceMetricsMost: 3}\n")
    with served() as server, Agent(server.url, "--config", str(config)):
        until_right(server)
        eventually(lambda: len([line for line in series() if '_other"' in line]) == 1)
        assert len(series()) == 3 + 1
        assert get(f"{METRICS}/configz").json["netagent"]["service_metrics_most"] == 3


@kernel.isolated
def test_counters_of_services_can_be_switched_off(config: Path) -> None:
    config.write_text(HEAD + "netagent: {serviceMetrics: false}\n")
    with served() as server, Agent(server.url, "--config", str(config)) as agent:
        until_right(server)
        eventually(lambda: agent.metric("netagent_ready") == 1)
        assert CONNECTIONS not in get(f"{METRICS}/metrics").body


@kernel.isolated
def test_a_conflict_is_in_the_log_and_an_event_until_it_ends() -> None:
    with served() as server, Agent(server.url) as agent:
        until_right(server)
        younger = builders.service_manifest("younger", cluster_ip="10.96.0.1", created="2025-01-01T00:00:00Z")
        server.apply(younger)
        begun = (
            "10.96.0.1:80/tcp is claimed twice: default/s0 has it, older or first by name; default/younger does without"
        )
        eventually(lambda: begun in agent.said())
        eventually(lambda: "FrontendClaimed" in [one["reason"] for one in server.announced])
        eventually(lambda: agent.metric("netagent_events_total", result="sent") == len(server.announced))
        assert agent.metric("netagent_frontend_conflicts") == 1
        server.apply(builders.slice_manifest("younger", "10.180.9.9"))
        until_right(server)
        server.delete("Service", "younger")
        eventually(lambda: "10.96.0.1:80/tcp is no longer claimed twice by default/s0" in agent.said())
        assert agent.said().count("is claimed twice") == 1
        assert agent.metric("netagent_frontend_conflicts") == 0


@kernel.isolated
def test_few_requests_a_second_make_the_agent_late_and_not_wrong(config: Path) -> None:
    """Four lists, one every second: nothing is programmed before all have come."""
    config.write_text(HEAD + "clientConnection: {qps: 1, burst: 1}\n")
    with served() as server, Agent(server.url, "--config", str(config)) as agent:
        until_right(server)
        begins = [seen.at for kind in Kind for seen in server.requests("list", kind)[:1]]
        assert max(begins) - agent.began >= 3.0
        lists = len(server.requests("list"))
        server.apply(builders.slice_manifest("s0", "10.180.9.9"))  # a watch needs no list
        until_right(server)
        assert len(server.requests("list")) == lists
        assert "Traceback" not in agent.said()
