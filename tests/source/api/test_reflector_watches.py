"""Watches: events, versions, and what makes a reflector go on, ask for the version, or list anew."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.source.api.events import Applied, Deleted, Listed, Quarantined
from netagent.source.api.messages import BadMessageError, Lines, is_older
from netagent.source.api.reflector import Step
from netagent.source.kinds import Kind
from tests import builders
from tests.source.api.driver import Driver, bookmark, error_line, line, page, synced

WEB = builders.service_manifest("web")


def test_events_are_told_in_order() -> None:
    driver = synced()
    events = driver.say(line("ADDED", WEB, "11") + line("MODIFIED", WEB, "12"), line("DELETED", WEB, "13"))
    assert [type(event) for event in events] == [Applied, Applied, Deleted]
    assert events[2] == Deleted(Kind.SERVICE, ("default", "web"))
    assert driver.reflector.version == "13"


@given(st.lists(st.integers(1, 50), max_size=20))
def test_pieces_of_any_size_tell_the_same(sizes: list[int]) -> None:
    text = b"".join(line("ADDED", builders.service_manifest(f"s{n}"), str(20 + n)) for n in range(5)) + bookmark("30")
    cuts = [0, *itertools.accumulate(sizes), len(text)]
    driver = synced()
    events = driver.say(*(text[start:end] for start, end in itertools.pairwise(cuts) if text[start:end]))
    assert [event.object.name for event in events if isinstance(event, Applied)] == ["s0", "s1", "s2", "s3", "s4"]
    assert driver.reflector.version == "30"


def test_a_bad_version_of_an_object_is_set_aside() -> None:
    driver = synced(WEB)
    (event,) = driver.say(line("MODIFIED", builders.service_manifest("web", cluster_ip="nonsense"), "11"))
    assert isinstance(event, Quarantined)
    assert event.key == (Kind.SERVICE, ("default", "web"))
    assert driver.error == ""


def test_a_bad_object_can_be_deleted() -> None:
    driver = synced(WEB)
    bad = builders.service_manifest("web", cluster_ip="nonsense")
    assert driver.say(line("DELETED", bad, "11")) == [Deleted(Kind.SERVICE, ("default", "web"))]


def test_a_watch_that_ends_in_order_goes_on_from_the_bookmark() -> None:
    driver = synced()
    driver.say(bookmark("42"))
    driver.end(after=300)
    assert driver.ask()["resourceVersion"] == "42"
    assert driver.waits[-1] == 0


def test_a_watch_cut_in_the_middle_of_a_line_goes_on_before_it() -> None:
    driver = synced(version="10")
    driver.say(line("ADDED", WEB, "11"), line("ADDED", WEB, "12")[:30])
    driver.reflector.failed("cut")
    assert driver.step is Step.PROBE
    driver.list(version="12")
    assert driver.ask()["resourceVersion"] == "11"


@pytest.mark.parametrize("where", ["http", "event", "paging"])
def test_gone_lists_anew(where: str) -> None:
    driver = synced()
    if where == "event":
        driver.say(error_line(410, "too old resource version"))
    elif where == "http":
        driver.end(after=300)  # nothing was said: the version is asked for
        driver.list(version="10")
        driver.refuse(410, "Expired")
    else:
        driver.end(after=300)
        driver.refuse(410, "Expired")
    assert driver.step is Step.LIST
    assert driver.reflector.delay() < 0.2
    assert driver.reflector.routine
    (event,) = driver.list(WEB, version="99")
    assert isinstance(event, Listed)
    assert driver.ask()["resourceVersion"] == "99"


@pytest.mark.parametrize(
    "said",
    [
        error_line(504, "Timeout", causes=[{"reason": "ResourceVersionTooLarge"}], retryAfterSeconds=1),
        error_line(504, "Too large resource version: 10, current: 4"),
        error_line(500, "etcdserver: mvcc: required revision is a future revision"),
    ],
    ids=["cause", "message", "etcd"],
)
def test_a_version_in_the_future_lists_anew_without_version(said: bytes) -> None:
    driver = synced()
    driver.say(said)
    assert driver.step is Step.LIST
    assert driver.reflector.delay() > 0
    assert "resourceVersion" not in driver.ask()


def test_too_large_again_and_again_is_not_a_spin() -> None:
    driver = synced()
    driver.end(after=300)
    driver.list(version="10")
    for _ in range(20):
        driver.refuse(504, "Timeout", "Too large resource version: 10, current: 4", retry_after="1")
    assert all(wait >= 1 for wait in driver.waits[-19:])


def test_gone_again_and_again_is_not_in_the_order_of_things() -> None:
    driver = synced()
    driver.say(error_line(410))
    assert driver.reflector.routine
    driver.list()
    driver.refuse(410)
    assert not driver.reflector.routine
    assert "cannot follow Service" in driver.error


def test_only_what_the_server_tells_ends_the_trouble() -> None:
    driver = synced()
    assert driver.reflector.heard, "a list"
    driver.reflector.failed("cut")
    driver.probe()
    driver.watch()
    assert not driver.reflector.heard
    driver.say(bookmark("11"))
    assert driver.reflector.heard


def test_a_server_that_lists_and_refuses_every_watch_is_not_listed_in_a_loop() -> None:
    driver = Driver()
    began = driver.now
    for _ in range(60):
        driver.list()
        driver.refuse(410, "Expired")
    assert driver.now - began > 60
    assert max(driver.waits) <= 30


def test_the_first_list_after_a_lost_history_does_not_wait_for_the_back_off() -> None:
    driver = synced()
    driver.reflector.failed("cut")
    for _ in range(20):  # the API server was away for a while
        driver.ask()
        driver.reflector.failed("refused")
    driver.list(version="10")
    driver.refuse(410, "Expired")
    assert driver.reflector.delay() <= 0.3


@pytest.mark.parametrize("older", [line("MODIFIED", WEB, "7"), bookmark("9")], ids=["object", "bookmark"])
def test_a_version_that_went_back_lists_anew(older: bytes) -> None:
    driver = synced(WEB, version="10")
    assert driver.say(older) == []
    assert driver.step is Step.LIST
    assert driver.reflector.counts.regressions == 1
    assert "went back from 10 to '" in driver.error
    (event,) = driver.list(version="7")
    assert isinstance(event, Listed)
    assert driver.reflector.version == "7"


def test_a_restored_backup_is_seen_on_the_way_back() -> None:
    """A watch from a version in the future would hear nothing, for ever."""
    driver = synced(WEB, version="1000")
    driver.reflector.failed("connection reset")
    driver.list(version="600")
    assert driver.step is Step.LIST
    (event,) = driver.list(version="600")
    assert isinstance(event, Listed)


def test_a_watch_that_said_nothing_is_followed_by_a_look_at_the_version() -> None:
    driver = synced(version="1000")
    driver.end(after=300)
    assert driver.ask()["limit"] == "1"
    driver.answer(200, page(version="600"))
    assert driver.step is Step.LIST


# --- the object that changed last --------------------------------------------------------------------------------


def versioned(version: str, name: str = "web") -> dict[str, object]:
    made = builders.service_manifest(name)
    return made | {"metadata": made["metadata"] | {"resourceVersion": version}}


def cut(driver: Driver) -> Driver:
    driver.reflector.failed("cut")
    return driver


def test_the_look_at_the_version_asks_for_the_object_that_changed_last() -> None:
    """By the path of its namespace: that is one key of etcd, with an old server, too."""
    driver = synced(versioned("7", "a"), versioned("9", "b"), versioned("8", "c"))
    request = cut(driver).probe(versioned("9", "b"))
    assert request.path == "/api/v1/namespaces/default/services"
    assert dict(request.parameters) == {
        "labelSelector": "!service.kubernetes.io/service-proxy-name",
        "fieldSelector": "metadata.name=b,spec.clusterIP!=None",
        "limit": "1",
    }
    driver.watch(line("MODIFIED", builders.service_manifest("c"), "11"))
    assert "metadata.name=c," in str(cut(driver).probe(versioned("11", "c"), version="11").parameters)
    driver.watch(line("DELETED", builders.service_manifest("a"), "12"), bookmark("13"))
    assert "metadata.name=a," in str(cut(driver).probe(version="13").parameters)


@pytest.mark.parametrize(
    ("kind", "manifest", "path", "field_selector"),
    [
        (Kind.NODE, builders.node_manifest(), "/api/v1/nodes", "metadata.name=node-1"),
        (
            Kind.SERVICE_CIDR,
            builders.service_cidr_manifest(),
            "/apis/networking.k8s.io/v1/servicecidrs",
            "metadata.name=kubernetes",
        ),
    ],
)
def test_the_look_at_objects_without_namespace(
    kind: Kind, manifest: dict[str, object], path: str, field_selector: str
) -> None:
    driver = synced(kind=kind)
    driver.say(line("ADDED", manifest, "11"))
    driver.reflector.failed("cut")
    assert dict(driver.ask())["fieldSelector"] == field_selector
    assert driver.requests[-1].path == path


def test_objects_that_nobody_could_ask_for_are_no_witnesses() -> None:
    driver = synced()
    driver.say(line("ADDED", builders.service_manifest("a,b=c"), "11"))
    assert cut(driver).probe(version="11").path == "/api/v1/services"


OTHER_HISTORIES = {
    "older": (line("MODIFIED", WEB, "12"), [versioned("11")], "web went back from version 12 to '11'"),
    "there again": (line("DELETED", WEB, "12"), [versioned("9")], "web was deleted at version 12 and is there"),
}


@pytest.mark.parametrize("name", OTHER_HISTORIES)
def test_an_object_of_another_history_lists_anew(name: str) -> None:
    told, objects, error = OTHER_HISTORIES[name]
    driver = synced(WEB)
    driver.say(told)
    cut(driver).probe(*objects, version="500")
    assert error in driver.error
    assert driver.reflector.counts.regressions == 1
    assert driver.step is Step.LIST
    (event,) = driver.list(version="500")
    assert isinstance(event, Listed)
    driver.watch()
    cut(driver).probe(version="500")
    assert driver.step is Step.WATCH


@pytest.mark.parametrize("objects", [[versioned("12")], [versioned("14")]], ids=["the same", "changed"])
def test_an_object_of_our_history_is_no_reason_to_list(objects: list[dict[str, object]]) -> None:
    driver = synced(WEB)
    driver.say(line("MODIFIED", WEB, "12"))
    cut(driver).probe(*objects, version="500")
    assert driver.ask()["resourceVersion"] == "12"


def test_an_object_that_was_deleted_and_made_again_is_no_reason_to_list() -> None:
    driver = synced(WEB)
    driver.say(line("DELETED", WEB, "12"))
    cut(driver).probe(versioned("13"), version="500")
    assert driver.ask()["resourceVersion"] == "12"


def gone() -> Driver:
    """The object that changed last is not there any more."""
    driver = synced(WEB)
    driver.say(line("MODIFIED", WEB, "12"))
    cut(driver).probe(version="500")
    return driver


def test_an_object_that_is_gone_must_be_told_to_be_deleted() -> None:
    driver = gone()
    driver.watch()
    assert driver.requests[-1].silence_seconds == 3
    driver.fall_silent()
    assert "default/web is gone, and nothing tells that it was deleted" in driver.error
    assert driver.reflector.counts.regressions == 1
    assert driver.step is Step.LIST


def test_other_events_do_not_hide_that_nothing_tells_of_a_deletion() -> None:
    driver = gone()
    driver.watch()
    for number in range(10):
        driver.now += 0.5
        driver.say(line("ADDED", builders.service_manifest("other"), f"{501 + number}"))
    assert "nothing tells that it was deleted" in driver.error


@pytest.mark.parametrize("told", ["DELETED", "ADDED"])
def test_an_object_that_is_gone_and_told_is_no_reason_to_list(told: str) -> None:
    driver = gone()
    driver.watch(line("MODIFIED", builders.service_manifest("other"), "13"), line(told, WEB, "14"))
    driver.now += 10
    driver.say(bookmark("20"))
    assert driver.error == ""
    assert driver.reflector.counts.regressions == 0
    driver.fall_silent()
    assert driver.step is Step.PROBE
    driver.probe(*([versioned("14")] if told == "ADDED" else []), version="500")
    assert driver.ask()["resourceVersion"] == "20"
    assert driver.requests[-1].silence_seconds == 75


def test_a_watch_that_ends_before_it_told_of_the_deletion_is_asked_again() -> None:
    driver = gone()
    driver.watch(line("ADDED", builders.service_manifest("other"), "501"))
    driver.end(after=2)
    driver.probe(version="502")
    driver.watch()
    driver.fall_silent()
    assert "nothing tells that it was deleted" in driver.error


def test_a_server_that_always_hides_an_object_is_not_listed_in_a_loop() -> None:
    driver = synced(versioned("9"))
    began = driver.now
    for _ in range(20):
        cut(driver).probe(version="500")
        driver.watch()
        driver.fall_silent()
        driver.list(versioned("9"), version="500")
        driver.watch()
    assert driver.now - began > 60
    assert driver.reflector.counts.regressions == 20


@pytest.mark.parametrize("code", [400, 403, 404])
def test_a_server_that_lets_us_not_ask_for_one_object_is_asked_for_any(code: int) -> None:
    driver = synced(versioned("9"))
    cut(driver).refuse(code)
    assert cut(driver).probe(version="11").path == "/api/v1/services"
    assert driver.step is Step.WATCH


def test_somebody_else_who_doubts_costs_one_list_even_if_it_fails_first() -> None:
    driver = synced(versioned("9"))
    driver.reflector.doubt()
    driver.refuse(500)
    assert driver.step is Step.LIST
    (event,) = driver.list(version="7")
    assert isinstance(event, Listed)
    assert driver.reflector.counts.regressions == 1
    driver.watch()
    driver.reflector.failed("cut")
    assert driver.step is Step.PROBE


def test_doubt_does_not_hurry_who_has_to_wait() -> None:
    driver = synced()
    driver.end(after=300)
    driver.refuse(429, retry_after="20")
    driver.reflector.doubt()
    assert driver.reflector.delay() >= 20


# --- silence ------------------------------------------------------------------------------------------------------


def test_a_quiet_watch_is_looked_after_and_is_no_error() -> None:
    driver = synced(versioned("9"))
    driver.fall_silent()
    assert driver.error == ""
    request = driver.probe(versioned("9"), version="700")
    assert request.fresh_connection
    assert driver.waits[-1] == 0
    assert driver.reflector.proven_at == driver.now
    assert driver.ask()["resourceVersion"] == "10"
    assert not driver.requests[-1].fresh_connection
    assert driver.reflector.counts.failures == 0


def test_a_quiet_watch_whose_server_does_not_answer_is_an_error() -> None:
    driver = synced(versioned("9"))
    proven = driver.reflector.proven_at
    driver.fall_silent()
    driver.ask()
    driver.reflector.fell_silent("Read timed out")
    assert "Read timed out; what was last known stays" in driver.error
    driver.now += 30
    driver.probe(versioned("9"), version="700")
    assert driver.reflector.proven_at == proven, "it does not say what we missed"


def test_silence_in_the_middle_of_a_line_is_an_error() -> None:
    driver = synced()
    driver.say(line("ADDED", WEB, "11")[:20])
    driver.fall_silent()
    assert "Read timed out" in driver.error


def test_an_event_that_comes_in_pieces_after_a_long_silence_is_no_error() -> None:
    driver = synced()
    text = line("ADDED", WEB, "11")
    driver.now += 89
    assert driver.say(text[:20]) == []
    driver.now += 1
    assert len(driver.say(text[20:])) == 1
    assert driver.error == ""


def test_a_quiet_watch_of_an_old_list_lists_anew() -> None:
    driver = synced(audit_seconds=100)
    driver.fall_silent()
    driver.probe()
    driver.watch()
    driver.fall_silent()
    assert driver.step is Step.LIST


def test_nodes_do_not_look_all_in_the_same_moment() -> None:
    driver = Driver()
    silences = []
    for choice in (0.0, 0.5, 1.0):
        driver.random = choice
        driver.reflector.restart("again")
        driver.list()
        driver.watch()
        silences.append(driver.requests[-1].silence_seconds)
    assert silences == pytest.approx([60, 75, 90])


# --- versions that tell nothing -----------------------------------------------------------------------------------


def test_a_version_that_is_no_number_is_followed_without_comparing() -> None:
    driver = synced(version="abc")
    driver.say(line("ADDED", WEB, "abd"), line("ADDED", WEB, "abc"))
    assert driver.error == ""
    driver.reflector.failed("cut")
    driver.list(version="aaa")
    assert driver.ask()["resourceVersion"] == "abc"


def test_an_event_that_comes_twice_is_told_twice_and_harms_nobody() -> None:
    driver = synced()
    twice = line("ADDED", WEB, "11")
    assert len(driver.say(twice, twice)) == 2
    assert driver.error == ""


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\n",
        b'{"type":"ADDED"}\n',
        b'{"type":"EXPLODED","object":{}}\n',
        b'{"type":"ADDED","object":{"metadata":{"name":"web"}}}\n',
        b'{"type":"DELETED","object":{"metadata":{"resourceVersion":"11"}}}\n',
        b'{"type":"BOOKMARK","object":7}\n',
        b"\xff\xff\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_garbage_lists_anew(garbage: bytes) -> None:
    driver = synced()
    events = driver.say(line("ADDED", WEB, "11") + garbage + line("ADDED", WEB, "12"))
    assert len(events) == 1  # what came before counts, what comes after does not
    assert driver.step is Step.LIST
    assert not driver.reflector.wants_more


def test_a_giant_line_is_not_kept() -> None:
    driver = synced(max_line_bytes=10_000)
    driver.say(*[b"x" * 1000] * 20)
    assert "longer than 10000 bytes" in driver.error
    assert driver.step is Step.LIST


def test_silence_ends_a_watch_even_if_bytes_dribble() -> None:
    driver = synced(silence_seconds=75)
    text = line("ADDED", WEB, "11")
    for index in range(100):
        driver.now += 1
        driver.say(text[index : index + 1])
    assert "no whole event for 75 s" in driver.error
    assert driver.step is Step.PROBE


def test_every_request_has_a_read_deadline() -> None:
    driver = synced(silence_seconds=75, answer_seconds=60)
    assert [request.silence_seconds for request in driver.requests] == [60, 75]


def test_a_refused_credential_is_loaded_anew() -> None:
    driver = synced()
    driver.end(after=300)
    driver.refuse(401, "Unauthorized", "Unauthorized")
    assert "401 'Unauthorized'; reloading the credentials" in driver.error
    driver.ask()
    assert driver.requests[-1].fresh_credentials
    driver.answer(403, b"not JSON")
    assert "does not let us list Service: 403 'not JSON'; reloading" in driver.error
    driver.list(version="10")
    assert driver.requests[-1].fresh_credentials
    driver.ask()
    assert not driver.requests[-1].fresh_credentials


def test_retry_after_is_obeyed_within_reason() -> None:
    driver = Driver()
    driver.refuse(429, "TooManyRequests", retry_after="7")
    assert 7 <= driver.reflector.delay() <= 7 * 1.25
    driver.refuse(429, "TooManyRequests", retry_after="999999999")
    assert driver.reflector.delay() <= 60 * 1.25
    driver.refuse(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT")
    assert driver.reflector.delay() < 1


def test_the_back_off_grows_slowly_is_bounded_and_random() -> None:
    driver = Driver()
    began = driver.now
    while driver.now < began + 100:
        driver.refuse(500)
    assert all(0.05 <= wait <= 1.5 for wait in driver.waits[1:])
    assert driver.waits[1:6] == sorted(driver.waits[1:6])
    while driver.now < began + 3600:
        driver.refuse(500)
    assert max(driver.waits) <= 30
    driver.refuse(500)
    driver.random = 0.0
    driver.refuse(500)
    least = driver.reflector.delay()
    driver.random = 1.0
    driver.refuse(500)
    assert driver.reflector.delay() == pytest.approx(2 * least)


def test_the_back_off_is_forgotten_once_a_watch_tells_something() -> None:
    driver = Driver()
    for _ in range(20):
        driver.refuse(500)
    driver.list(version="10")
    driver.watch(bookmark("11"))
    driver.reflector.failed("cut")
    assert driver.reflector.delay() < 0.11


def test_the_back_off_is_forgotten_after_a_long_quiet_watch() -> None:
    driver = Driver()
    for _ in range(20):
        driver.refuse(500)
    driver.list(version="10")
    driver.watch()
    driver.now += 1000
    driver.reflector.failed("cut")
    assert driver.reflector.delay() < 0.11


def test_a_watch_that_ends_at_once_and_says_nothing_is_not_repeated_at_once() -> None:
    driver = synced()
    driver.end()
    assert driver.step is Step.PROBE
    assert driver.reflector.delay() > 0
    assert "told nothing" in driver.error


def test_a_watch_that_ends_after_every_event_does_not_spin() -> None:
    driver = synced()
    for version in range(11, 31):
        driver.say(bookmark(str(version)))
        driver.end(after=0.01)
        driver.watch()
    assert all(wait >= 0.05 for wait in driver.waits[-20:])


def test_the_error_is_gone_when_the_watch_is_back() -> None:
    driver = synced()
    driver.reflector.failed("cut")
    assert "cut; what was last known stays" in driver.error
    driver.list(version="10")
    driver.watch()
    assert driver.error == ""


def test_staleness_is_measured_from_what_proves_something() -> None:
    driver = synced()
    assert driver.reflector.proven_at == 1000
    driver.now += 30
    driver.say(b'{"type":')
    assert driver.reflector.proven_at == 1000
    driver.reflector.failed("cut")
    driver.now += 5
    driver.list(version="10")  # nothing happened meanwhile
    assert driver.reflector.proven_at is not None
    assert driver.reflector.proven_at >= 1035
    driver.watch()
    driver.now += 9
    driver.say(bookmark("11"))
    assert driver.reflector.proven_at == driver.now


def test_versions_are_numbers_of_any_size() -> None:
    assert is_older("9", "10")
    assert not is_older("10", "9")
    assert not is_older("10", None)
    assert is_older("9" * 30, "1" + "0" * 30)
    assert not is_older("x", "10")
    assert not is_older("\u0665", "10")
    assert not is_older("1", "9" * 5000)


def test_lines_keep_no_more_than_their_bound() -> None:
    lines = Lines(10)
    assert list(lines.split(b"abc\n\n  \ndef")) == [b"abc"]
    assert list(lines.split(b"ghi\r\nj")) == [b"defghi\r"]
    with pytest.raises(BadMessageError):
        list(lines.split(b"0123456789"))
