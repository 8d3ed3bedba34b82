"""Events that the agent sends: what arrives, how much of it, and what it costs when nobody takes it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.source.api import recorder as module
from netagent.source.api.connection import Connection
from netagent.source.api.credentials import Access
from netagent.source.api.recorder import Announcement, Counts, EventRecorder, EventType, Limits, Subject, TokenBucket
from netagent.source.api.recorder import event_of as event
from tests.apiserver import ApiServer, faults
from tests.apiserver.faults import wait_for
from tests.apiserver.server import CREATE, faults_of_event
from tests.patience import AN_HOUR, HANGS

WEB = Subject(kind="Service", namespace="shop", name="web", uid="1234")
NODE = Subject(kind="Node", name="node-1", uid="node-1")
AT = 1_760_000_000.25
# No waits that a test would notice.
FAST = Limits(spread_seconds=0.0, node_seconds=0.0, first_wait_seconds=0.01, longest_wait_seconds=0.02)
SCOPE: dict[str, Any] = {"verbs": (CREATE,), "kinds": ("Event",)}


def announcement(note: str = "spec.ports: none of them is a port", **fields: Any) -> Announcement:
    return Announcement(**({"regarding": WEB, "reason": "Quarantined", "action": "Read", "note": note} | fields))


def recorder(server: ApiServer, limits: Limits = FAST, **given: Any) -> EventRecorder:
    connection = Connection(Access(server=server.url))
    return EventRecorder(connection, **({"node_name": "node-1", "limits": limits} | given))


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        yield made


# --- what arrives -------------------------------------------------------------------------------------------------


def test_an_event_says_what_on_which_object_by_whom_and_when(server: ApiServer) -> None:
    with recorder(server, wall=lambda: AT) as sending:
        sending.record(announcement())
        assert sending.flush(HANGS)
        assert sending.counts == Counts(sent=1)
    (made,) = server.announced
    assert made.pop("metadata") == {"name": f"web.{int(AT * 1e9):016x}", "namespace": "shop"}
    assert made == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "eventTime": "2025-10-09T08:53:20.250000Z",
        "reportingController": "netagent",
        "reportingInstance": "node-1",
        "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": "1234"},
        "reason": "Quarantined",
        "action": "Read",
        "note": "spec.ports: none of them is a port",
        "type": "Warning",
    }


def test_an_event_on_a_node_is_in_the_default_namespace(server: ApiServer) -> None:
    with recorder(server) as sending:
        sending.record(announcement(regarding=NODE, reason="Starting", type=EventType.NORMAL))
        assert sending.flush(HANGS)
    (made,) = server.announced
    assert made["metadata"]["namespace"] == "default"
    assert made["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1"}
    assert made["type"] == "Normal"


def test_an_old_server_gets_events_on_a_node_where_it_wants_them(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    """1.20 refuses them with 422 anywhere but in kube-system."""
    server.cluster_event_namespaces = {"kube-system"}
    with recorder(server) as sending:
        for number in range(3):
            sending.record(announcement(f"{number}", regarding=NODE))
        sending.record(announcement())
        assert sending.flush(HANGS)
        assert sending.counts == Counts(sent=4)
    assert [made["metadata"]["namespace"] for made in server.announced] == ["kube-system"] * 3 + ["shop"]
    assert len(server.requests(CREATE)) == 5, "it is refused once"
    assert caplog.messages == []


def test_another_reason_to_refuse_an_event_on_a_node_is_none_to_send_it_elsewhere(server: ApiServer) -> None:
    with server.fault(faults.status(422, message="note: too long", **SCOPE)), recorder(server) as sending:
        sending.record(announcement(regarding=NODE))
        assert sending.flush(HANGS)
        assert sending.counts == Counts(refused=1)
    assert len(server.requests(CREATE)) == 1


def test_a_server_that_wants_events_on_a_node_nowhere_is_asked_twice(server: ApiServer) -> None:
    server.cluster_event_namespaces = set()
    with recorder(server) as sending:
        sending.record(announcement(regarding=NODE))
        assert sending.flush(HANGS)
        assert sending.counts == Counts(refused=1)
    assert len(server.requests(CREATE)) == 2


def test_nodes_that_say_the_same_make_one_event(server: ApiServer) -> None:
    """A Service that cannot be used is set aside by 5,000 agents; so it is for an agent that was started again."""
    counts = []
    for node in ("node-1", "node-2"):
        with recorder(server, node_name=node) as sending:
            sending.record(announcement(shared=True))
            assert sending.flush(HANGS)
            counts.append(sending.counts)
    assert len(server.announced) == 1
    assert counts == [Counts(sent=1), Counts(known=1)]


def test_of_shared_announcements_another_fact_is_another_event(server: ApiServer) -> None:
    with recorder(server) as sending:
        sending.record(announcement("one", shared=True))
        sending.record(announcement("other", shared=True))
        assert sending.flush(HANGS)
    assert [made["note"] for made in server.announced] == ["one", "other"]


@given(
    note=st.text(max_size=3000),
    name=st.from_regex(
        r"[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?){0,3}", fullmatch=True
    ),
    node=st.from_regex(r"[a-z]{1,253}", fullmatch=True),
    shared=st.booleans(),
)
def test_whatever_is_announced_an_api_server_would_take(note: str, name: str, node: str, shared: bool) -> None:
    subject = Subject(kind="Node", name=name[:253].rstrip("-."))
    made = event(announcement(note, regarding=subject, shared=shared), at=AT, reporting_instance=node[:128])
    assert not faults_of_event(msgspec.json.decode(msgspec.json.encode(made)), "default")


def test_a_long_note_is_cut_between_characters(server: ApiServer) -> None:
    with recorder(server, node_name="n" * 253) as sending:
        sending.record(announcement("ü" * 1000))
        assert sending.flush(HANGS)
    (made,) = server.announced
    assert made["note"] == "ü" * 510 + "..."


# --- how much of it -----------------------------------------------------------------------------------------------


def test_what_is_said_again_while_it_waits_is_one_event(server: ApiServer) -> None:
    sending = recorder(server)
    for _ in range(10):
        sending.record(announcement())
    with sending:
        assert sending.flush(HANGS)
    assert len(server.announced) == 1


def test_a_flood_on_one_object_is_25_events_and_one_every_five_minutes(server: ApiServer) -> None:
    now = 1000.0
    with recorder(server, clock=lambda: now) as sending:
        for number in range(100):
            sending.record(announcement(f"{number}"))
            sending.flush(HANGS)
        assert len(server.announced) == 25
        assert sending.counts == Counts(sent=25, limited=75)
        sending.record(announcement(reason="FrontendClaimed"))  # another reason has a bucket of its own
        now += 300.0
        sending.record(announcement("later"))
        sending.record(announcement("still too much"))
        assert sending.flush(HANGS)
    assert [made["reason"] for made in server.announced[25:]] == ["FrontendClaimed", "Quarantined"]


def test_a_flood_on_many_objects_is_bounded_and_counted(server: ApiServer) -> None:
    limits = msgspec.structs.replace(FAST, queue=50, node_burst=5, node_seconds=0.2)
    now = 1000.0
    with recorder(server, limits, clock=lambda: now) as sending:
        for number in range(20_000):
            sending.record(announcement(regarding=Subject(kind="Service", namespace="shop", name=f"s{number}")))
        for sent in (5, 6, 7):
            wait_for(lambda sent=sent: sending.counts.sent == sent)  # type: ignore[misc]
            time.sleep(0.3)
            assert len(server.announced) == sent, "no time has passed"
            now += 0.2
        counts = sending.counts
    assert counts.full >= 20_000 - 50 - 5 - 20
    assert counts.limited == 0


def test_recording_waits_for_nobody_not_even_for_a_server_that_says_nothing(server: ApiServer) -> None:
    limits = msgspec.structs.replace(FAST, queue=50)
    sending = recorder(server, limits)
    with server.fault(faults.half_open(**SCOPE)) as fault:
        sending.start()
        for number in range(1000):
            sending.record(announcement(regarding=Subject(kind="Service", namespace="shop", name=f"s{number}")))
        assert sending.counts in (Counts(full=1000 - 51), Counts(full=1000 - 50)), "the first one may be on its way"
        wait_for(lambda: fault.hits == 1)
        assert sum(sending.counts) == sending.counts.full, "nothing has become of any"
        server.close()
    assert sending.stop()


def test_a_token_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(2, 10.0)
    assert [bucket.take(at) for at in (0, 0, 0, 5, 10, 10, 1000, 1000)] == [0, 0, 10, 5, 0, 10, 0, 0]
    assert bucket.take(1000) == 10


# --- nobody takes it ----------------------------------------------------------------------------------------------


def test_an_api_server_that_is_away_costs_nobody_anything(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    """And gets the Event when it is back."""
    server.refuse()
    patient = msgspec.structs.replace(FAST, tries=1_000_000)
    with caplog.at_level(logging.INFO, logger="netagent"), recorder(server, patient) as sending:
        for number in range(20):
            sending.record(announcement(f"{number}"))
        assert sending.counts == Counts(), "nothing has become of any"
        wait_for(lambda: caplog.messages)
        server.accept()
        assert sending.flush(HANGS)
        assert [made["note"] for made in server.announced] == [f"{number}" for number in range(20)]
    first, last = caplog.messages
    assert first.startswith("cannot send Events to the API server")
    assert last == "Events are sent again"


def test_an_api_server_that_stays_away_is_asked_seldom(server: ApiServer) -> None:
    """12 times in some minutes for one Event, and then no more often for the next."""
    sent: list[float] = []
    now = [0.0]
    sending = recorder(server, Limits(), clock=lambda: now[0], randomness=lambda: 1.0)

    def pause(seconds: float) -> bool:
        now[0] += seconds
        return False

    sending._pause = pause  # type: ignore[method-assign]  # the waits without their time
    with server.fault(faults.status(503, **SCOPE)):
        for number in range(3):
            sending.record(announcement(f"{number}"))
        with sending:
            assert sending.flush(HANGS)
            sent = [seen.at for seen in server.requests(CREATE)]
    assert len(sent) == 3 * 12
    assert sending.counts == Counts(failed=3)
    assert now[0] > 25 * 60


def test_what_is_refused_is_not_sent_again(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    message = 'events.events.k8s.io is forbidden: User "node" cannot create resource'
    with server.fault(faults.status(403, message=message, **SCOPE)), recorder(server) as sending:
        for number in range(5):
            sending.record(announcement(f"{number}"))
        assert sending.flush(HANGS)
        assert sending.counts == Counts(refused=5)
    assert len(server.requests(CREATE)) == 5
    assert [text for text in caplog.messages if "cannot send" in text] == caplog.messages
    assert len(caplog.messages) == 1
    assert message in caplog.text


@pytest.mark.parametrize("fault", [faults.status(429, retry_after=1, **SCOPE), faults.status(500, **SCOPE)])
def test_what_was_not_taken_for_now_is_sent_again(server: ApiServer, fault: faults.Fault) -> None:
    with server.fault(fault), recorder(server) as sending:
        sending.record(announcement())
        wait_for(lambda: fault.hits >= 2)
        fault.end()
        assert sending.flush(HANGS)
        assert sending.counts == Counts(sent=1)


def test_an_event_whose_answer_was_lost_is_not_made_twice(server: ApiServer) -> None:
    with server.fault(faults.Fault("half_open", times=1, **SCOPE)), recorder(server) as sending:
        sending.record(announcement())
        wait_for(lambda: server.announced)
        server.cut_connections()
        assert sending.flush(HANGS)
        assert sum(sending.counts) == 1
    assert len(server.announced) == 1


@pytest.mark.parametrize("trouble", ["none", "away", "half-open"])
def test_stop_is_quick_whatever_the_thread_waits_for(
    server: ApiServer, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for an hour, or for an answer that never comes."""
    limits = msgspec.structs.replace(FAST, first_wait_seconds=AN_HOUR, longest_wait_seconds=AN_HOUR)
    with Connection(Access(server=server.url)) as connection:
        sending = EventRecorder(connection, node_name="node-1", limits=limits)
        sending.start()
        if trouble == "away":
            server.refuse()
        fault = faults.half_open(**SCOPE)
        if trouble == "half-open":
            monkeypatch.setattr(module, "_STOP_SECONDS", 0.05)
            server.fault(fault)
        sending.record(announcement())
        wait_for(
            {"none": lambda: server.announced, "away": lambda: sending._failures, "half-open": lambda: fault.hits}[
                trouble
            ]
        )
        assert sending.stop() == (trouble != "half-open")
    wait_for(lambda: not any(thread.name == "events" for thread in threading.enumerate()))
    sending.record(announcement("too late"))  # harmless
    assert sending.stop()
