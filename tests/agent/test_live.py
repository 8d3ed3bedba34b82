"""The agent on a live API server, as a process with real rules: it follows, and no trouble makes a rule wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from netagent.source.kinds import Kind
from tests import builders, kernel
from tests.agent import live_agent
from tests.agent.live_agent import HEALTH, METRICS, Agent, NeverWrong, eventually, get, manifests_of, until_right, wrong
from tests.apiserver import ApiServer, Cluster, Fault, faults

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"


def served(cluster: Cluster | None = None) -> ApiServer:
    """A server in the namespace of the test. Call within a test under `kernel.isolated` only."""
    live_agent.begin()
    return ApiServer(cluster or live_agent.small_cluster(), bookmark_seconds=0.2)


def change(server: ApiServer) -> None:
    """Something of each sort, all at once: changed, deleted, made, deleted and made again."""
    with server.cluster.changed:
        server.apply(
            builders.slice_manifest("s0", "10.180.9.9"), builders.service_manifest("new", cluster_ip="10.96.7.7")
        )
        server.delete("Service", "s1")
        server.delete("EndpointSlice", "s1-1")
        server.delete("Service", "s2")
        server.apply(builders.service_manifest("s2", cluster_ip="10.96.8.8"))
        server.apply(builders.node_manifest(zone="b"))
        server.apply(builders.service_cidr_manifest("second", "10.97.0.0/16"))


def list_anew(server: ApiServer) -> None:
    """Have the agent list every kind anew, once."""
    for kind in Kind:
        server.fault(faults.error_event(410, times=1, kinds=[kind]))


def measured(what: str, seconds: float) -> None:
    """For whoever wants to know (pytest -s)."""
    print(f"\nmeasured: {what}: {seconds:.3f} s")  # noqa: T201


# It follows -----------------------------------------------------------------------------------------------------


@kernel.isolated
def test_what_is_made_changed_and_deleted_is_followed_exactly() -> None:
    zoned = builders.slice_manifest(
        "zoned",
        builders.endpoint_manifest("10.180.1.1", hints={"forZones": [{"name": "a"}]}),
        builders.endpoint_manifest("10.180.1.2", hints={"forZones": [{"name": "b"}]}),
    )
    steps: list[tuple[str, Callable[[ApiServer], None]]] = [
        ("a Service", lambda api: api.apply(builders.service_manifest("web", cluster_ip="10.96.1.1"))),
        ("its slice", lambda api: api.apply(builders.slice_manifest("web", "10.180.2.1", "10.180.2.2"))),
        ("a second slice", lambda api: api.apply(builders.slice_manifest("web", "10.180.2.3", name="web-2"))),
        ("fewer endpoints", lambda api: api.apply(builders.slice_manifest("web", "10.180.2.2"))),
        ("another port", lambda api: api.apply(
            builders.service_manifest("web", cluster_ip="10.96.1.1", ports=[builders.port_manifest(8443)]))),
        ("a node port", lambda api: api.apply(
            builders.service_manifest("web", cluster_ip="10.96.1.1", type="NodePort",
                                      ports=[builders.port_manifest(80, nodePort=30080)]))),
        ("an IPv6 Service", lambda api: api.apply(builders.service_manifest("six", cluster_ip="fd00::1"))),
        ("its endpoint", lambda api: api.apply(builders.slice_manifest("six", "fd01::1"))),
        ("hints", lambda api: api.apply(builders.service_manifest("zoned", cluster_ip="10.96.1.2"), zoned)),
        ("the node's zone", lambda api: api.apply(builders.node_manifest(zone="b"))),
        ("another zone", lambda api: api.apply(builders.node_manifest(zone="a"))),
        ("the node's addresses", lambda api: api.apply(
            builders.node_manifest(zone="a", internal_ips=["192.0.2.1", "192.0.2.7"]))),
        ("a ServiceCIDR", lambda api: api.apply(builders.service_cidr_manifest("more", "10.112.0.0/16"))),
        ("no ServiceCIDR", lambda api: api.delete("ServiceCIDR", "more")),
        ("no slice", lambda api: api.delete("EndpointSlice", "web-1")),
        ("no Service", lambda api: api.delete("Service", "web")),
        ("a proxy name", lambda api: api.apply(
            builders.service_manifest("s3", cluster_ip="10.96.0.4",
                                      labels={"service.kubernetes.io/service-proxy-name": "other"}))),
        ("a headless slice", lambda api: api.apply(
            builders.slice_manifest("s4", "10.180.0.5", labels={"service.kubernetes.io/headless": ""}))),
        ("headless Service", lambda api: api.apply(builders.service_manifest("s5", cluster_ip="None"))),
    ]  # fmt: skip
    with served() as server, Agent(server.url) as agent:
        measured("start", until_right(server))
        slowest = 0.0
        for what, step in steps:
            step(server)
            try:
                slowest = max(slowest, until_right(server))
            except AssertionError as error:
                error.add_note(f"after {what}")
                raise
        measured("slowest single change", slowest)
        done = live_agent.diff_process(server)
        assert (done.returncode, done.stdout) == (0, b"")
        assert "Traceback" not in agent.said()


@kernel.isolated
def test_a_node_that_comes_late_and_one_that_is_deleted() -> None:
    """Without its Node object the agent starts all the same; when the API loses it, the node still has addresses."""
    nodeport = builders.service_manifest(
        "port", cluster_ip="10.96.1.1", type="NodePort", ports=[builders.port_manifest(80, nodePort=30080)]
    )
    cluster = live_agent.small_cluster(nodeport, builders.slice_manifest("port", "10.180.3.1"))
    cluster.delete("Node", "node-1")
    with served(cluster) as server, Agent(server.url) as agent:
        assert until_right(server) < live_agent.BOUND
        assert get(f"{HEALTH}/readyz").status == 200
        assert get(f"{HEALTH}/healthz").status == 503, "as with kube-proxy 1.36"
        assert get(f"{HEALTH}/livez").status == 200
        server.apply(builders.node_manifest())
        until_right(server)
        assert "192.0.2.1" in kernel.nft("list chain ip netagent services")
        eventually(lambda: get(f"{HEALTH}/healthz").status == 200)
        server.apply(builders.node_manifest(taints=[{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]))
        eventually(lambda: get(f"{HEALTH}/healthz").status == 503)
        server.apply(builders.node_manifest())
        eventually(lambda: get(f"{HEALTH}/healthz").status == 200)
        with_node = manifests_of(server)
        server.delete("Node", "node-1")
        server.apply(builders.slice_manifest("s0", "10.180.9.9"))
        until_right(
            lambda: [*(one for one in manifests_of(server)), *(one for one in with_node if one["kind"] == "Node")]
        )
        assert "192.0.2.1" in kernel.nft("list chain ip netagent services")
        assert agent.process.poll() is None


# Before it is in sync -------------------------------------------------------------------------------------------


@kernel.isolated
def test_nothing_is_programmed_before_every_kind_is_in_sync() -> None:
    with served() as server:
        with Agent(server.url) as first:
            until_right(server)
            assert first.end(signal.SIGTERM) == 0
        for number, kind in enumerate(Kind):
            server.delete("Service", f"s{number}")  # while nobody looks
            server.apply(builders.slice_manifest(f"s{number + 5}", f"10.180.8.{number + 1}"))
            before = live_agent.listings()
            assert len(before) == 2
            with server.fault(faults.slow(5, kinds=[kind], verbs=["list"])) as late, Agent(server.url) as agent:
                agent.until_listening()
                others = [other for other in Kind if other is not kind]
                eventually(lambda others=others, agent=agent: all(  # type: ignore[misc]
                    agent.metric("netagent_source_in_sync", kind=other) for other in others))  # fmt: skip
                server.apply(builders.slice_manifest("s9", f"10.180.7.{number + 1}"))
                time.sleep(0.4)
                assert agent.metric("netagent_source_in_sync", kind=kind) == 0
                assert live_agent.listings() == before, f"rules changed before {kind} was in sync"
                assert get(f"{HEALTH}/readyz").status == 503
                assert get(f"{HEALTH}/livez").status == 200
                late.end()
                measured(f"from the list of {kind} to right", until_right(server))
                eventually(lambda: get(f"{HEALTH}/readyz").status == 200)
                assert agent.end(signal.SIGTERM) == 0


@kernel.isolated
def test_a_restart_on_unchanged_state_does_nothing() -> None:
    affinity = builders.service_manifest(
        "sticky", cluster_ip="10.96.1.1", sessionAffinity="ClientIP", type="NodePort",
        ports=[builders.port_manifest(80, nodePort=30080)],
    )  # fmt: skip
    slice_of_it = builders.slice_manifest("sticky", "10.180.2.1", "10.180.2.2", "10.180.2.3")
    with served(live_agent.small_cluster(affinity, slice_of_it)) as server:
        with Agent(server.url) as first:
            until_right(server)
            server.apply(builders.slice_manifest("sticky", "10.180.2.1", "10.180.2.3"))  # a hole where one was
            server.apply(builders.slice_manifest("sticky", "10.180.2.1", "10.180.2.3", "10.180.2.4", "10.180.2.5"))
            until_right(server)
            assert first.end(signal.SIGTERM) == 0
        before = live_agent.listings()
        with Agent(server.url) as agent:
            agent.until_listening()
            eventually(lambda: get(f"{HEALTH}/readyz").status == 200)
            time.sleep(0.2)
            assert agent.metric("netagent_operations_total") == 0
            assert agent.metric("netagent_transactions_total") == 0
            assert agent.metric("netagent_syncs_total", result="success") >= 1
            assert live_agent.listings() == before
            list_anew(server)  # list everything anew: nothing unchanged is touched
            eventually(lambda: len(server.requests("list", "Service")) >= 3)
            time.sleep(0.3)
            assert agent.metric("netagent_operations_total") == 0
            assert live_agent.listings() == before


# Trouble --------------------------------------------------------------------------------------------------------

TROUBLE: dict[str, Callable[[], Fault]] = {
    "410 as status": lambda: faults.status(410, reason="Expired"),
    "410 in an event": lambda: faults.error_event(410, reason="Expired"),
    "410 while paging": faults.gone_while_paging,
    "429": lambda: faults.status(429, retry_after=1),
    "500": lambda: faults.status(500),
    "504": faults.too_large_version,
    "401": lambda: faults.status(401, reason="Unauthorized"),
    "403": lambda: faults.status(403, reason="Forbidden"),
    "cut": faults.cut,
    "slow": lambda: faults.slow(20),
    "truncated JSON": faults.truncated,
    "empty answers": lambda: faults.body(b""),
    "garbage": lambda: faults.line(b"\x00\xff garbage", times=20),
    "reordered": faults.reordered,
    "duplicated": faults.duplicated,
}


def _rules_stay_right_through(
    server: ApiServer, *, during: Callable[[], object], end: Callable[[], object], seconds: float = 0.5
) -> float:
    """The world changes while there is trouble. Return how long after its end the rules are exactly right.

    All the time they must be as before or newer; not even for a moment anything else.
    """
    before = manifests_of(server)
    during()
    change(server)
    watching = NeverWrong(before, manifests_of(server))
    begin = time.monotonic()
    # At least so long, and until the kernel has really been seen often enough, however slow the machine is.
    while time.monotonic() < begin + seconds or (watching.looks <= 10 and time.monotonic() < begin + live_agent.BOUND):
        watching.look()
        time.sleep(0.002)
    end()
    took = until_right(server, meanwhile=watching.look)
    assert watching.looks > 10
    return took


@pytest.mark.parametrize("name", TROUBLE)
@kernel.isolated
def test_rules_stay_right_through(name: str) -> None:
    """Open watches break, so that everything has to go through the fault; then the world changes, then it ends."""
    with served() as server, Agent(server.url, page_objects=4) as agent:
        until_right(server)
        fault = TROUBLE[name]()

        def during() -> None:
            server.fault(fault)
            if name in ("410 while paging", "truncated JSON"):
                list_anew(server)  # without that nobody needs a list of several pages
            elif name not in ("reordered", "duplicated"):
                server.cut_connections()

        took = _rules_stay_right_through(server, during=during, end=fault.end)
        measured(name, took)
        assert fault.hits
        assert "Traceback" not in agent.said()
        assert len(server.requests()) < 250 + 10 * (time.monotonic() - agent.began), "it must not spin"
        server.delete("Service", "new")  # and it still follows
        until_right(server)


@kernel.isolated
def test_half_open_connections_are_found_by_the_read_deadline() -> None:
    """With a deadline of 1 s instead of 75 s, which no option of the command can shorten."""
    with served() as server, Agent(server.url, silence_seconds=1.0, answer_seconds=2.0):
        until_right(server)
        fault = faults.half_open()
        took = _rules_stay_right_through(server, during=lambda: server.fault(fault), end=fault.end)
        measured("half-open, deadline 1 s", took)
        assert fault.hits


@kernel.isolated
def test_a_server_that_was_away_and_has_forgotten_its_history() -> None:
    with served() as server, Agent(server.url) as agent:
        until_right(server)

        def back() -> None:
            server.compact()
            server.accept()

        took = _rules_stay_right_through(server, during=server.refuse, end=back, seconds=1.0)
        measured("away, and compacted", took)
        assert "what was last known stays" in agent.said()


@kernel.isolated
def test_a_server_that_was_away_for_seconds() -> None:
    """The wait between two tries has its full length by then."""
    with served() as server, Agent(server.url):
        until_right(server)
        took = _rules_stay_right_through(server, during=server.refuse, end=server.accept, seconds=3.0)
        measured("away for 3 s", took)


@pytest.mark.parametrize("cut", [True, False], ids=["restarted", "under open watches"])
@kernel.isolated
def test_a_restored_backup_is_followed_back(cut: bool) -> None:
    with served() as server, Agent(server.url):
        until_right(server)
        backup, old = server.snapshot(), manifests_of(server)
        change(server)
        for number in range(20):
            server.apply(builders.service_manifest(f"later{number}", cluster_ip=f"10.96.3.{number}"))
        until_right(server)
        watching = NeverWrong(manifests_of(server), old)
        server.restore(backup, cut=cut)
        measured(f"restored backup, cut={cut}", until_right(server, meanwhile=watching.look))
        server.apply(builders.service_manifest("after", cluster_ip="10.96.4.4"))
        until_right(server)


# Fail static ----------------------------------------------------------------------------------------------------


@kernel.isolated
def test_without_an_api_server_rules_stay_and_the_agent_says_how_stale_they_are(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = tmp_path_factory.mktemp("configured") / "config.yaml"
    config.write_text(HEAD + "netagent: {tableOwnership: false}\n")  # so that others can meddle
    with served() as server:
        before_it_went = manifests_of(server)
        with Agent(server.url, "--config", str(config)) as agent:
            until_right(server)
            server.close()
            before = live_agent.listings()
            stale = agent.metric("netagent_watch_staleness_seconds", kind="Service")
            time.sleep(1.5)
            assert agent.metric("netagent_watch_staleness_seconds", kind="Service") >= stale + 1.2
            assert get(f"{HEALTH}/livez").status == 200, "restarting us would not help"
            assert get(f"{HEALTH}/readyz").status == 200
            assert get(f"{HEALTH}/healthz").status == 200, "the node still serves"
            assert live_agent.listings() == before
            kernel.nft("delete element ip netagent cluster_ips { 10.96.0.1 }")  # and it still guards its tables
            until_right(lambda: before_it_went)
            begun = time.monotonic()
            assert agent.end(signal.SIGTERM) == 0
            measured("SIGTERM to end, server away", time.monotonic() - begun)
        assert wrong(before_it_went) == []
        before = live_agent.listings()
        with Agent(server.url) as again:
            again.until_listening()
            time.sleep(0.5)
            assert live_agent.listings() == before
            assert get(f"{HEALTH}/readyz").status == 503
            assert get(f"{HEALTH}/livez").status == 200
            assert again.end(signal.SIGINT) == 0
        assert live_agent.listings() == before


@kernel.isolated
def test_sighup_with_a_bad_configuration_keeps_the_old_one_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = tmp_path_factory.mktemp("configured") / "config.yaml"
    config.write_text(HEAD)
    with served() as server, Agent(server.url, "--config", str(config)) as agent:
        until_right(server)
        before = live_agent.listings()
        config.write_text(HEAD + "nftables: {masqueradeBits: 21}\n")
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: "configuration refused, keeping the old one" in agent.said())
        assert live_agent.listings() == before
        server.apply(builders.slice_manifest("s0", "10.180.9.9"))
        until_right(server)
        config.write_text(HEAD + "nftables: {masqueradeBit: 20}\n")
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: "0x00100000" in kernel.nft("list chain ip netagent postrouting"))
        assert get(f"{HEALTH}/livez").status == 200
        assert agent.end(signal.SIGTERM) == 0


@kernel.isolated
def test_sighup_moves_the_servers_and_changes_the_pace(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = tmp_path_factory.mktemp("configured") / "config.yaml"
    config.write_text(HEAD)
    moved = HEAD + "healthzBindAddress: 127.0.0.1:11256\nmetricsBindAddress: 192.0.2.1:11249\n"
    with served() as server, Agent(server.url, "--config", str(config)) as agent:
        until_right(server)
        config.write_text(moved + "nftables: {minSyncPeriod: 2s, syncPeriod: 5s}\nnetagent: {affinityClients: 7}\n")
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: get("http://127.0.0.1:11256/livez").status == 200)
        eventually(lambda: get("http://192.0.2.1:11249/metrics").status == 200)
        assert get(f"{HEALTH}/livez").status == get(f"{METRICS}/metrics").status == 0
        assert get("http://192.0.2.1:11249/configz").json["netagent"]["sync_period_seconds"] == 5
        assert get("http://192.0.2.1:11249/configz").json["netagent"]["affinity_clients"] == 65536
        eventually(lambda: "these settings take effect at a restart only: netagent.affinityClients" in agent.said())
        begun = time.monotonic()
        server.apply(builders.slice_manifest("s0", "10.180.9.1"))
        until_right(server)
        server.apply(builders.slice_manifest("s0", "10.180.9.2"))
        until_right(server)
        assert time.monotonic() - begun >= 2.0, "its new pace has a pause"
        with socket.create_server(("127.0.0.1", 12256)) as taken:
            config.write_text(HEAD + "healthzBindAddress: 127.0.0.1:12256\n")
            agent.process.send_signal(signal.SIGHUP)
            eventually(lambda: get(f"{METRICS}/metrics").status == 200)
            assert get("http://127.0.0.1:11256/livez").status == 200, "what cannot move stays"
            assert "it goes on listening on 127.0.0.1:11256" in agent.said()
            config.write_text(moved + "bindAddressHardFail: true\n")
            agent.process.send_signal(signal.SIGHUP)
            eventually(lambda: get("http://192.0.2.1:11249/metrics").status == 200)
            config.write_text(HEAD + "healthzBindAddress: 127.0.0.1:12256\nbindAddressHardFail: true\n")
            agent.process.send_signal(signal.SIGHUP)
            eventually(lambda: "and bindAddressHardFail is set" in agent.said())
            assert get("http://127.0.0.1:11256/livez").status == 200
            eventually(lambda: get("http://192.0.2.1:11249/metrics").status == 200)
            assert get("http://192.0.2.1:11249/configz").json["netagent"]["healthz_bind_address"][1] == 11256
            taken.close()
        assert agent.end(signal.SIGTERM) == 0


@kernel.isolated
def test_under_hard_fail_a_port_that_is_taken_ends_it_at_its_start_and_the_rules_stay(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = tmp_path_factory.mktemp("configured") / "config.yaml"
    config.write_text(HEAD + "bindAddressHardFail: true\n")
    with served() as server:
        with Agent(server.url, "--config", str(config)) as agent:
            until_right(server)
            assert agent.end(signal.SIGTERM) == 0
        before = live_agent.listings()
        with (
            socket.create_server(("127.0.0.1", 10249)),
            Agent(server.url, "--config", str(config)) as second,
        ):
            assert second.process.wait(live_agent.BOUND) == 1
            assert "Address already in use; bindAddressHardFail ends the agent" in second.said()
        assert live_agent.listings() == before


@kernel.isolated
def test_the_service_manager_hears_of_each_reload_whatever_comes_of_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("notified")
    config = directory / "config.yaml"
    config.write_text(HEAD)
    with served() as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(live_agent.BOUND)
        os.environ["NOTIFY_SOCKET"] = str(directory / "notify")
        with Agent(server.url, "--config", str(config)) as agent:
            assert manager.recv(4096).startswith(b"READY=1")
            for text in (HEAD + "nftables: {masqueradeBit: 20}\n", HEAD + "nftables: {masqueradeBits: 20}\n"):
                config.write_text(text)
                agent.process.send_signal(signal.SIGHUP)
                assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                assert manager.recv(4096).startswith(b"READY=1")
            agent.process.send_signal(signal.SIGTERM)
            assert manager.recv(4096) == b"STOPPING=1"
            assert agent.process.wait(live_agent.BOUND) == 0


# It ends --------------------------------------------------------------------------------------------------------

# In the place of a cluster that takes very long to plan, and of a kernel that takes very long to answer.
BUSY = """
from netagent.agent import planner
def replan(self):
    print("busy", file=sys.stderr, flush=True)
    while True:
        sorted(range(1000))
planner.Planner.replan = replan
"""
CAUGHT = """
import time
from netagent.nftables import backend
def commit(self):
    print("busy", file=sys.stderr, flush=True)
    time.sleep(3600)
backend.Backend.commit = commit
"""
REFUSED = """
from netagent import errors
from netagent.nftables import backend
def commit(self):
    raise errors.CommitRejectedError("the kernel does not want to", errno=16)
backend.Backend.commit = commit
"""


def _ends_in_time(agent: Agent, number: int = signal.SIGTERM) -> None:
    """What it is caught in goes on for an hour, or for ever. A second is promised."""
    begun = time.monotonic()
    assert agent.end(number) == 0
    measured("signal to end", time.monotonic() - begun)


@pytest.mark.parametrize("preface", [BUSY, CAUGHT], ids=["busy", "caught in a call"])
@kernel.isolated
def test_a_first_sync_that_takes_long_keeps_it_from_nothing(preface: str) -> None:
    with served() as server:
        with Agent(server.url) as first:
            until_right(server)
            assert first.end(signal.SIGTERM) == 0
        before = live_agent.listings()
        server.apply(builders.slice_manifest("s0", "10.180.9.9"))
        with Agent(server.url, preface="import sys" + preface) as agent:
            eventually(lambda: "busy" in agent.said())
            _ends_in_time(agent)
        assert live_agent.listings() == before


@pytest.mark.parametrize("fault", [lambda: faults.slow(5), faults.half_open], ids=["slow", "silent"])
@kernel.isolated
def test_a_slow_api_server_keeps_it_from_nothing(fault: Callable[[], Fault]) -> None:
    with served() as server:
        with Agent(server.url) as first:
            until_right(server)
            assert first.end(signal.SIGTERM) == 0
        before = live_agent.listings()
        with server.fault(fault()) as slow, Agent(server.url) as agent:
            agent.until_listening()
            eventually(lambda: slow.hits > 0)
            _ends_in_time(agent, signal.SIGINT)
        assert live_agent.listings() == before


@kernel.isolated
def test_a_back_off_keeps_it_from_nothing() -> None:
    with served() as server:
        with Agent(server.url) as first:
            until_right(server)
            assert first.end(signal.SIGTERM) == 0
        before = live_agent.listings()
        server.apply(builders.slice_manifest("s0", "10.180.9.9"))
        with Agent(server.url, preface=REFUSED) as agent:
            eventually(lambda: agent.said().count("sync failed; the last good rules stay") >= 4)
            _ends_in_time(agent)
        assert live_agent.listings() == before


@kernel.isolated
def test_signals_before_it_runs_are_heard() -> None:
    preface = """
import sys, time
from netagent.agent import live
class Source(live.Connection):
    def __init__(self, access):
        print("slow", file=sys.stderr, flush=True)
        time.sleep({seconds})
        super().__init__(access)
live.Connection = Source
"""
    with served() as server:
        with Agent(server.url, preface=preface.format(seconds=3600)) as agent:
            eventually(lambda: "slow" in agent.said())
            _ends_in_time(agent)
        with Agent(server.url, preface=preface.format(seconds=1)) as agent:
            eventually(lambda: "slow" in agent.said())
            agent.process.send_signal(signal.SIGHUP)
            until_right(server)
            eventually(lambda: "configuration read again" in agent.said())
            _ends_in_time(agent)


# The host's addresses -------------------------------------------------------------------------------------------


@kernel.isolated
def test_health_check_node_ports_follow_the_addresses_of_the_host_by_the_kernels_notice() -> None:
    """It looks for itself, too, but that would take an hour here."""
    preface = "from netagent.agent import telling\nassert telling._LISTEN_SECONDS\ntelling._LISTEN_SECONDS = 3600.0"
    balanced = builders.service_manifest(
        "balanced",
        cluster_ip="10.96.1.1",
        type="LoadBalancer",
        ports=[builders.port_manifest(80, nodePort=30080)],
        ingress=[{"ip": "198.51.100.1"}],
        externalTrafficPolicy="Local",
        healthCheckNodePort=31000,
    )
    url = f"http://{live_agent.NODE_ADDRESS}:31000/"
    here = builders.slice_manifest("balanced", builders.endpoint_manifest("10.180.2.1"))

    def listens() -> bool:
        found = subprocess.run(["ss", "-Hltn", "sport", "=", "31000"], capture_output=True, text=True, check=True)
        return bool(found.stdout.strip())

    with served(live_agent.small_cluster(balanced, here)) as server, Agent(server.url, preface=preface) as agent:
        until_right(server)
        eventually(lambda: get(url).status == 200)
        for _ in range(2):
            _ip(f"addr del {live_agent.NODE_ADDRESS}/32 dev lo")
            gone = eventually(lambda: not listens())
            _ip(f"addr add {live_agent.NODE_ADDRESS}/32 dev lo")
            back = eventually(lambda: get(url).status == 200)
            measured("listener gone and back", max(gone, back))
        assert "Traceback" not in agent.said()


@kernel.isolated
def test_a_server_of_the_agent_waits_for_its_address(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = tmp_path_factory.mktemp("configured") / "config.yaml"
    config.write_text(HEAD + "healthzBindAddress: 192.0.2.77:10256\n")
    with served() as server, Agent(server.url, "--config", str(config)) as agent:
        until_right(server)
        assert "the health server cannot listen on 192.0.2.77:10256" in agent.said()
        _ip("addr add 192.0.2.77/32 dev lo")
        eventually(lambda: get("http://192.0.2.77:10256/livez").status == 200)


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, timeout=live_agent.BOUND)


# When something breaks that nobody expected to ------------------------------------------------------------------


@kernel.isolated
def test_a_backend_that_breaks_in_the_middle_is_begun_anew_and_right_again() -> None:
    preface = """
from netagent.nftables import lower
kept, calls = lower.Lowering._release, []
def release(self, previous, placed):
    calls.append(1)
    if len(calls) in (2, 4, 6):
        raise IndexError("a bug that comes and goes")
    kept(self, previous, placed)
lower.Lowering._release = release
"""
    with served() as server, Agent(server.url, preface=preface) as agent:
        until_right(server)
        for number in range(6):
            server.apply(
                builders.slice_manifest("s0", f"10.180.9.{number + 1}"),
                builders.slice_manifest("s1", f"10.180.8.{number + 1}", f"10.180.7.{number + 1}"),
            )
            server.apply(builders.service_manifest("s2", cluster_ip=f"10.96.9.{number + 1}"))
            until_right(server)
        assert "IndexError: a bug that comes and goes" in agent.said()
        assert agent.said().count("Traceback") == 1
        assert "Unexpected errors: sync" in get(f"{METRICS}/statusz").body
        assert live_agent.diff_process(server).returncode == 0


# What it tells --------------------------------------------------------------------------------------------------


@kernel.isolated
def test_a_health_check_node_port_answers_as_local_endpoints_come_and_go() -> None:
    balanced = builders.service_manifest(
        "balanced",
        cluster_ip="10.96.1.1",
        type="LoadBalancer",
        ports=[builders.port_manifest(80, nodePort=30080)],
        ingress=[{"ip": "198.51.100.1"}],
        externalTrafficPolicy="Local",
        healthCheckNodePort=31000,
    )
    url = f"http://{live_agent.NODE_ADDRESS}:31000/"
    here, there = builders.endpoint_manifest("10.180.2.1"), builders.endpoint_manifest("10.180.2.2", node="node-2")
    with served() as server, Agent(server.url) as agent:
        until_right(server)
        assert get(url).status == 0
        server.apply(balanced)
        eventually(lambda: get(url).status == 503)
        server.apply(builders.slice_manifest("balanced", here, there))
        eventually(lambda: get(url).status == 200)
        page = get(url)
        assert page.json == {
            "service": {"namespace": "default", "name": "balanced"},
            "localEndpoints": 1,
            "serviceProxyHealthy": True,
        }
        assert page.headers["x-load-balancing-endpoint-weight"] == "1"
        draining = here | {"conditions": {"ready": False, "serving": True, "terminating": True}}
        server.apply(builders.slice_manifest("balanced", draining, there))
        eventually(lambda: get(url).status == 503)
        assert agent.metric("netagent_healthcheck_listeners") == 1
        server.apply(builders.slice_manifest("balanced", here))
        eventually(lambda: get(url).status == 200)
        server.delete("Service", "balanced")
        eventually(lambda: get(url).status == 0)
        assert agent.metric("netagent_healthcheck_listeners") == 0
        until_right(server)


@kernel.isolated
def test_the_pages_that_people_and_kubernetes_ask_for() -> None:
    with served() as server, Agent(server.url):
        until_right(server)
        eventually(lambda: get(f"{HEALTH}/readyz").status == 200)
        assert get(f"{METRICS}/proxyMode").body == "nftables"
        assert get(f"{METRICS}/healthz").body == "ok"
        assert "Source Service: in sync" in get(f"{METRICS}/statusz").body
        assert get(f"{METRICS}/configz").json["netagent"]["mode"] == "nftables"
        assert "node_name=node-1" in get(f"{METRICS}/flagz").body
        health = get(f"{HEALTH}/healthz")
        assert (health.status, health.json["nodeEligible"], health.json["healthy"]) == (200, True, True)
        taints = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
        server.apply(builders.node_manifest(taints=taints))
        eventually(lambda: get(f"{HEALTH}/healthz").status == 503)
        assert get(f"{HEALTH}/livez").status == 200


@kernel.isolated
def test_a_bad_version_of_an_object_leaves_the_last_good_one_in_force() -> None:
    with served() as server, Agent(server.url) as agent:
        until_right(server)
        good = manifests_of(server)
        server.apply(builders.service_manifest("s7", cluster_ip="10.96.0.999"))
        eventually(lambda: "set aside" in agent.said())
        assert "default/s7" in agent.said()
        assert "clusterIP" in agent.said()
        list_anew(server)  # nor does a list change that
        eventually(lambda: len(server.requests("list", "Service")) >= 2)
        time.sleep(0.3)
        assert wrong(good) == []
        eventually(lambda: agent.metric("netagent_quarantined_objects", kind="Service") == 1)
        server.apply(builders.slice_manifest("s7", "10.180.9.9"))  # what is not bad of it is followed
        changed = [one for one in manifests_of(server) if one["metadata"]["name"] != "s7"]
        until_right(lambda: [*changed, *(one for one in good if one["metadata"]["name"] == "s7")])
        server.apply(builders.service_manifest("s7", cluster_ip="10.96.0.99"))
        until_right(server)
        assert "no longer set aside" in agent.said()
        eventually(lambda: agent.metric("netagent_quarantined_objects", kind="Service") == 0)


@kernel.isolated
def test_a_quiet_cluster_is_not_a_stale_one() -> None:
    """Bookmarks prove that nothing is missing."""
    with served() as server, Agent(server.url) as agent:
        until_right(server)
        quiet_since = time.monotonic()

        def proven_since() -> bool:
            stale = agent.metric("netagent_watch_staleness_seconds", kind="Service")
            return stale + 0.5 < time.monotonic() - quiet_since

        eventually(proven_since)


def test_without_any_api_server_to_follow_there_is_one_sentence(tmp_path: Path) -> None:
    """The other half of configuration is in tests/cli."""
    with Agent("", "--kubeconfig", str(tmp_path / "none")) as agent:
        assert agent.process.wait(live_agent.BOUND) in (2, 4)
        assert "Traceback" not in agent.said()
