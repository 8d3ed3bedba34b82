"""The agent's local socket: what it tells, to whom, and what a command believes."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netagent import errors, settings
from netagent.agent import feed, planner, reconciler
from netagent.agent.health import messages, state
from netagent.agent.local import answers, chronicle, client, documents, peers, server, snapshot
from netagent.model import objects
from tests import builders

NODE = "node-1"


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def report(operations: int = 0, *, drift: int = 0) -> reconciler.SyncReport:
    return reconciler.SyncReport(operations, 1 if operations else 0, 0.004, (), planned=frozenset(), drift=drift)


def plan_of(*items: objects.Object, wanted: settings.Settings | None = None) -> planner.Planner:
    made = planner.Planner(wanted or settings.Settings(), node_name=NODE)
    made.store.replace(items)
    made.replan()
    return made


def two_rivals() -> tuple[objects.Object, ...]:
    """Two Services that claim one external IP, one that claims nothing of theirs, their slices, and the node."""
    return (
        builders.service("old", cluster_ips=["10.96.0.1"], external_ips=["192.0.2.9"], created="2020-01-01T00:00:00Z"),
        builders.service("young", cluster_ips=["10.96.0.2"], external_ips=["192.0.2.9"]),
        builders.service("other", cluster_ips=["10.96.0.3"]),
        builders.endpoint_slice("old", "10.180.0.1"),
        builders.endpoint_slice("young", "10.180.0.1"),
        builders.endpoint_slice("other", "10.180.0.1"),
        builders.node(),
    )


def answering(plan: planner.Planner, events: chronicle.Chronicle | None = None, **more: Any) -> answers.Answers:
    source = more.pop("source", None)
    return answers.Answers(plan, events or chronicle.Chronicle(), node_name=NODE, source=source, **more)


def get(answering: answers.Answers, target: str, *, method: str = "GET") -> messages.Response:
    return answering.answer(messages.Request(method, target, {}))


# Snapshots ------------------------------------------------------------------------------------------------------


def test_a_snapshot_gives_another_process_the_same_plan() -> None:
    plan = plan_of(*two_rivals())
    told = snapshot.decoded(snapshot.encoded(snapshot.take(plan, node_name=NODE)))
    again = snapshot.planner_of(told)
    assert dict(again.forwarding.frontends) == dict(plan.forwarding.frontends)
    assert again.forwarding.conflicts() == plan.forwarding.conflicts()
    assert (again.rules, again.context, again.node) == (plan.rules, plan.context, plan.node)


def test_a_snapshot_of_one_service_has_its_rivals_and_nobody_else() -> None:
    taken = snapshot.take(plan_of(*two_rivals()), node_name=NODE, only=[objects.ServiceName("default", "young")])
    assert [service.name for service in taken.services] == ["old", "young"]
    assert {item.service.name for item in taken.slices if item.service} == {"old", "young"}


def test_every_setting_survives_the_way_through_a_snapshot() -> None:
    networks = (ipaddress.ip_network("10.180.0.0/16"), ipaddress.ip_network("fd00::/64"))
    unusual: dict[str, Any] = {
        "mode": settings.Mode.IPTABLES,
        "cluster_cidrs": networks,
        "node_port_addresses": networks,
        "bind_address": ipaddress.ip_address("fd00::1"),
        "healthz_bind_address": settings.SocketAddress(ipaddress.ip_address("::1"), 1),
        "conntrack": settings.ConntrackSettings(min=7, tcp_be_liberal=True),
        "families": ("IPv6",),
        "drop_invalid": False,
    }
    for wanted in (settings.Settings(), settings.Settings(**unusual), settings.Settings(node_port_addresses="primary")):
        taken = snapshot.take(plan_of(wanted=wanted), node_name=NODE)
        assert snapshot.decoded(snapshot.encoded(taken)).settings == wanted


def test_a_large_snapshot_is_encoded_in_pieces_that_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_OBJECTS_AT_ONCE", 2)
    taken = snapshot.take(plan_of(*two_rivals()), node_name=NODE)
    assert snapshot.decoded(snapshot.encoded(taken)) == taken


def test_a_deleted_node_that_is_still_in_force_is_in_the_snapshot() -> None:
    plan = plan_of(builders.node(zone="a"))
    plan.store.replace(())
    plan.replan()
    taken = snapshot.take(plan, node_name=NODE)
    assert taken.node is not None
    assert taken.node.zone == "a"


# Status ---------------------------------------------------------------------------------------------------------


def test_an_agent_that_never_synced_is_not_in_sync_and_says_so() -> None:
    status = answering(plan_of()).status()
    assert not status.in_sync
    assert status.troubles == ("nothing has been synced yet",)


def test_after_a_sync_all_is_well_and_the_sync_is_told() -> None:
    events = chronicle.Chronicle()
    events.queued()
    events.synced(report(41))
    events.synced(report(0))
    status = answering(plan_of(*two_rivals()), events).status()
    assert status.in_sync
    assert status.troubles == ()
    assert status.syncs.succeeded == 2
    assert status.syncs.last_change is not None
    assert status.syncs.last_change.operations == 41
    assert status.syncs.last is not None
    assert status.syncs.last.operations == 0
    assert status.counts == documents.Counts(services=3, frontends=4, endpoints=3)
    assert [(one.winner, one.loser) for one in status.conflicts] == [("default/old", "default/young")]


def test_failed_syncs_are_counted_in_a_row_and_told_with_the_operation_at_fault() -> None:
    events = chronicle.Chronicle()
    events.synced(report(1))
    events.failed(errors.CommitRejectedError("no room", errno=28, operation="add element x"))
    events.failed(errors.CommitRejectedError("no room", errno=28, operation="add element x"))
    status = answering(plan_of(), events).status()
    failure = status.syncs.last_failure
    assert failure is not None
    assert (failure.in_a_row, failure.operation) == (2, "add element x")
    assert not status.in_sync
    assert status.troubles == ("syncs fail (2 in a row): no room",)
    events.synced(report(1))
    status = answering(plan_of(), events).status()
    assert status.in_sync
    assert status.troubles == ()
    assert status.syncs.last_failure is not None
    assert status.syncs.last_failure.in_a_row == 0


def test_an_update_that_waits_makes_the_kernel_behind_only_after_a_second() -> None:
    clock, wall = Clock(), Clock()
    events = chronicle.Chronicle(clock=clock, wall=wall)
    events.synced(report(1))
    since = events.since
    events.queued()
    clock.now += 0.5
    assert events.in_sync
    assert events.since == since
    clock.now, wall.now = clock.now + 2, wall.now + 2.5
    assert not events.in_sync
    assert events.since == 1000.0
    assert answering(plan_of(), events).status().troubles == ("the kernel is behind: an update has waited for 2.5 s",)
    events.synced(report(0))
    assert events.in_sync
    assert events.since == 1002.5


def test_a_loop_that_hangs_is_a_trouble() -> None:
    clock = Clock()
    events = chronicle.Chronicle(clock=clock)
    events.turned()
    events.synced(report())
    clock.now += 61
    assert answering(plan_of(), events).status().troubles == ("the agent's loop has not come round for 61 s",)


def test_repaired_drift_and_unexpected_errors_are_counted() -> None:
    events = chronicle.Chronicle()
    events.synced(report(3, drift=3))
    events.synced(report(1))
    events.synced(report(2, drift=2))
    events.stumbled("feed", ValueError("x"))
    status = answering(plan_of(), events).status()
    assert (status.drift.repairs, status.drift.operations) == (2, 5)
    assert status.unexpected_errors == {"feed": 1}


def test_a_source_that_is_not_in_sync_is_a_trouble_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "services.json"
    file.write_text(json.dumps(builders.service_manifest()))
    events = chronicle.Chronicle()
    events.synced(report(1))
    with contextlib.closing(feed.DirectoryFeed(str(file))) as manifests:
        manifests.take(planner.Planner(settings.Settings(), node_name=NODE).store)
        plan = plan_of()
        status = answering(plan, events, source=manifests).status()
        assert status.troubles == ()
        assert [(one.name, one.in_sync, one.error) for one in status.sources] == [(str(file), True, None)]
        file.unlink()
        assert not manifests.take(plan.store)
        (source,) = answering(plan, events, source=manifests).status().sources
        assert not source.in_sync
        assert "cannot read manifests" in (source.error or "")


def test_what_is_set_aside_is_told_with_field_and_reason(tmp_path: Path) -> None:
    bad = builders.service_manifest("bad")
    bad["spec"]["ports"][0]["port"] = 70000
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    with contextlib.closing(feed.DirectoryFeed(str(tmp_path))) as manifests:
        refused = documents.SetAside(kind="Service", namespace="default", name="ill", reason="the kernel refused it")
        told = answering(plan_of(), source=manifests, refused=lambda: (refused,))
        found = msgspec.json.decode(get(told, "/quarantine").body, type=list[documents.SetAside])
        assert [(one.name, one.field) for one in found] == [("ill", ""), ("bad", "spec.ports[0].port")]
        assert told.status().quarantined == 2


def test_what_the_health_server_says_is_part_of_the_status() -> None:
    events = chronicle.Chronicle()
    events.synced(report())
    health = state.Report(now=0, healthy=False, node_eligible=True, ready=True, families={}, sources={}, sound=False)
    status = answering(plan_of(), events, health=lambda: health).status()
    assert status.health == documents.Health(healthy=False, ready=True, node_eligible=True, sound=False)
    assert len(status.troubles) == 2


def test_only_looking_is_possible() -> None:
    told = answering(plan_of())
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert get(told, "/status", method=method).status == 405
    assert get(told, "/").status == 404
    assert get(told, "/objects?service=web").status == 400


# Who may ask, and who is believed -------------------------------------------------------------------------------


def test_root_the_agents_user_and_one_group_may_ask_and_nobody_else() -> None:
    stranger = os.geteuid() + 4242
    assert peers.may_ask(peers.Peer(1, 0), group=None)
    assert peers.may_ask(peers.Peer(1, os.geteuid()), group=None)
    assert peers.may_ask(peers.Peer(1, stranger, frozenset({7, 44})), group=44)
    assert not peers.may_ask(peers.Peer(1, stranger, frozenset({7})), group=44)
    assert not peers.may_ask(peers.Peer(1, stranger, frozenset({0, 7})), group=None)


def test_a_group_is_named_or_numbered() -> None:
    assert peers.group_of("") is None
    assert peers.group_of("44") == 44
    assert peers.group_of("root") == 0
    with pytest.raises(errors.ConfigError, match="no group"):
        peers.group_of("nobody-has-this-group")


STATUS = "Name:\tx\nUid:\t{uids}\nCapEff:\t{effective:016x}\nCapAmb:\t{ambient:016x}\nNoNewPrivs:\t{confined}\n"
NET_ADMIN = 1 << 12


@pytest.mark.parametrize(
    ("facts", "believed"),
    [
        ({"effective": NET_ADMIN, "ambient": NET_ADMIN}, True),  # as the systemd unit starts it
        ({"effective": NET_ADMIN, "confined": 1}, True),
        ({"effective": 0}, False),
        ({"effective": NET_ADMIN}, False),  # a program whose file gives the right to whoever runs it
        ({"effective": NET_ADMIN, "ambient": NET_ADMIN, "uids": "777\t0\t0\t0"}, False),  # a set-user-ID program
    ],
)
def test_a_server_without_lasting_privilege_is_not_believed(
    tmp_path: Path, facts: dict[str, Any], believed: bool
) -> None:
    uid = os.geteuid() + 777
    text = STATUS.format(**{"uids": "\t".join([str(uid)] * 4), "ambient": 0, "confined": 0, **facts})
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "status").write_text(text)
    assert peers.is_privileged(peers.Peer(9, uid), proc=tmp_path) is believed
    assert not peers.is_privileged(peers.Peer(10, uid), proc=tmp_path)


# Over a socket --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """A UNIX socket that listens, and its address: not the agent's, which may be in use on this host."""
    address = f"\0netagent-test-{os.getpid()}-{threading.get_ident()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(address)
        made.listen(16)
        yield made, address


def test_a_client_gets_documents_and_learns_who_answered() -> None:
    events = chronicle.Chronicle()
    events.synced(report(1))
    with listening() as (made, address), server.LocalServer(made, answering=answering(plan_of(*two_rivals()), events)):
        status = client.document("/status", documents.Status, address=address)
        assert status.in_sync
        assert status.pid == os.getpid()
        answer = client.ask("/objects", address=address)
        assert answer.pid == os.getpid()
        assert answer.process
        assert len(snapshot.read(answer.body).services) == 3


def test_a_stranger_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as (made, address), server.LocalServer(made, answering=answering(plan_of())):
        monkeypatch.setattr(peers, "may_ask", lambda peer, group: False)
        with pytest.raises(errors.PrivilegeError, match="may not ask the agent"):
            client.ask("/status", address=address)


def test_who_listens_without_privilege_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as (made, address), server.LocalServer(made, answering=answering(plan_of())):
        monkeypatch.setattr(peers, "is_privileged", lambda peer: False)
        with pytest.raises(errors.PrivilegeError, match="is not believed"):
            client.ask("/status", address=address)


def test_without_an_agent_the_error_says_so() -> None:
    with pytest.raises(errors.NoAgentError) as caught:
        client.ask("/status", address="\0netagent-test-nobody-listens-here")
    assert caught.value.exit_code == 10


def test_an_answer_of_another_version_is_an_error_of_the_source() -> None:
    with (
        listening() as (made, address),
        server.LocalServer(made, answering=answering(plan_of())),
        pytest.raises(errors.SourceError, match="another version"),
    ):
        client.document("/drift", documents.Status, address=address)


def test_closing_the_server_keeps_the_socket_of_whoever_made_it() -> None:
    with listening() as (made, address):
        server.LocalServer(made, answering=answering(plan_of())).close()
        assert made.fileno() >= 0
        with server.LocalServer(made, answering=answering(plan_of())):
            assert client.ask("/drift", address=address).body == b"[]\n"


def test_questions_are_answered_while_the_plan_changes() -> None:
    plan = plan_of()
    told = answering(plan)
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            one = builders.service(f"s{number % 50}", cluster_ips=[f"10.96.1.{number % 50 + 1}"])
            plan.store.apply(one if number % 3 else builders.service("s1", cluster_ips=[f"10.96.2.{number % 200}"]))
            plan.forwarding.update(one.key, ())
            plan.replan()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(50):
            assert get(told, "/status").status == 200
            assert snapshot.decoded(get(told, "/objects").body).node_name == NODE
    finally:
        stop.set()
        thread.join()
