"""The live source against the test API server: whatever goes wrong, the Store is right soon after it ends."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from random import Random

import msgspec
import pytest

from netagent.model.objects import ServiceName
from netagent.source.api import reflector
from netagent.source.api.events import Applied, Deleted, Listed, feed
from netagent.source.api.pacing import Pacing
from netagent.source.kinds import Kind
from tests import builders, patience
from tests.apiserver import ApiServer, Fault, faults
from tests.source.api.following import NEVER_AGAIN, PACING, Following


def change(server: ApiServer) -> None:
    """Something of each sort: changed, deleted, made, deleted and made again."""
    server.apply(builders.slice_manifest("s0", "10.180.9.9"), builders.service_manifest("new", cluster_ip="10.96.7.7"))
    server.delete("Service", "s1")
    server.delete("EndpointSlice", "s1-1")
    server.delete("Service", "s2")
    server.apply(builders.service_manifest("s2", cluster_ip="10.96.8.8"))
    server.apply(builders.node_manifest(zone="b"))
    server.apply(builders.service_cidr_manifest("second", "10.97.0.0/16"))


# --- without trouble --------------------------------------------------------------------------------------------


def test_each_kind_is_listed_once_and_then_watched(server: ApiServer, following: Following) -> None:
    assert [event.kind for event in following.events if isinstance(event, Listed)].count(Kind.SERVICE) == 1
    assert len(server.requests("list", "Service")) == 3  # pages
    change(server)
    following.until_equal()
    assert following.lists() == 1
    assert all(isinstance(event, Applied | Deleted) for event in following.events[-5:])


def test_what_a_proxy_must_ignore_does_not_come(server: ApiServer, following: Following) -> None:
    other = {"service.kubernetes.io/service-proxy-name": "other"}
    server.apply(
        builders.service_manifest("foreign", labels=other),
        builders.service_manifest("headless", cluster_ip="None"),
        builders.slice_manifest("s3", "10.180.0.4", labels={"service.kubernetes.io/headless": ""}),
        builders.node_manifest("node-2", zone="c"),
        builders.service_manifest("s4", cluster_ip="10.96.0.5", labels=other),
    )
    following.until_equal()
    following.pump(0.3)
    assert {event.key for event in following.events if isinstance(event, Deleted)} == {
        ("default", "s3-1"),
        ("default", "s4"),
    }
    assert not any(isinstance(event, Applied) for event in following.events)


def test_a_server_without_servicecidrs_has_none(server: ApiServer) -> None:
    server.missing.add("ServiceCIDR")
    server.delete("ServiceCIDR", "kubernetes")
    with Following(server) as following:
        following.until_calm()
        following.pump(0.3)
    assert len(server.requests("list", "ServiceCIDR")) == 1


def test_a_server_that_does_not_know_the_field_selector(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    server.known_cluster_ip_field = False
    server.apply(builders.service_manifest("headless", cluster_ip="None"))
    with caplog.at_level(logging.INFO, logger="netagent.source.api"), Following(server) as following:
        following.until_calm()
        following.pump(0.5)
        assert following.source.status(Kind.SERVICE).counts.failures == 0
    (record,) = caplog.records
    assert (record.levelno, "does not know our field selector" in record.getMessage()) == (logging.INFO, True)


def test_staleness_stays_low_in_a_quiet_cluster(server: ApiServer, following: Following) -> None:
    quiet_since = time.monotonic()
    following.until(lambda: following.staleness() + 0.5 < time.monotonic() - quiet_since)  # a bookmark has come since
    assert following.lists() == 1


def test_before_the_first_list_nothing_is_in_sync(server: ApiServer) -> None:
    with server.fault(faults.status(500)), Following(server) as following:
        following.until(lambda: len(following.errors()) == 4)
        assert not any(following.source.in_sync(kind) for kind in Kind)
        assert following.staleness() == math.inf
        assert following.events == []


# --- one fault after another ------------------------------------------------------------------------------------

DURING: dict[str, Callable[[], Fault]] = {
    "410 as status": lambda: faults.status(410, reason="Expired"),
    "410 in an event": lambda: faults.error_event(410, reason="Expired"),
    "410 while paging": faults.gone_while_paging,
    "410 at the start of each watch": lambda: faults.status(410, verbs=["watch"]),
    "429": lambda: faults.status(429, retry_after=1),
    "500": lambda: faults.status(500),
    "500 in an event": lambda: faults.error_event(500, message="etcd event received with PrevKv=nil"),
    "504 too large": faults.too_large_version,
    "504 too large in an event": lambda: faults.error_event(504, message="Too large resource version: 9, current: 1"),
    "401": lambda: faults.status(401, reason="Unauthorized"),
    "403": lambda: faults.status(403, reason="Forbidden"),
    "cut in the middle of a line": faults.cut,
    "slow": lambda: faults.slow(20),
    "truncated JSON": faults.truncated,
    "HTML": lambda: faults.body(b"<html>Please log in</html>"),
    "gzip": lambda: faults.body(b"\x1f\x8b" + bytes(1000), headers={"Content-Encoding": "gzip"}),
    "empty answers": lambda: faults.body(b""),
    "giant line": lambda: faults.line(b"x" * (9 << 20), times=8),
    "garbage": lambda: faults.line(b"\x00\xff garbage", times=20),
    "reordered": faults.reordered,
    "duplicated": faults.duplicated,
}


@pytest.mark.parametrize("name", DURING)
def test_the_store_is_right_soon_after_the_fault(name: str, server: ApiServer, following: Following) -> None:
    """Open watches break, so that everything has to go through the fault; then the world changes, then it ends."""
    before, began = len(following.events), time.monotonic()
    with server.fault(DURING[name]()):
        if name not in ("reordered", "duplicated"):
            server.cut_connections()
        with server.cluster.changed:  # the changes come together, so that there is something to reorder
            change(server)
        following.pump(0.5)
    following.until_right_soon()
    following.until_calm()
    assert len(server.requests()) < 250 + 10 * (time.monotonic() - began)  # no spin
    for event in following.events[before:]:  # rules never become wrong: what was there all the time never left
        if isinstance(event, Deleted):
            assert event.key in {("default", "s1"), ("default", "s1-1"), ("default", "s2")}
        elif isinstance(event, Listed) and event.kind is Kind.SERVICE:
            assert len(event.objects) >= 11


def test_a_lying_server_at_the_start_is_not_believed(server: ApiServer) -> None:
    with server.fault(faults.body(b"{}")), Following(server) as following:
        following.pump(0.5)
        assert following.events == []


def test_connections_refused_for_a_while(server: ApiServer, following: Following) -> None:
    server.refuse()
    change(server)
    following.until(lambda: all(following.source.status(kind).counts.failures > 3 for kind in Kind))
    assert len(following.errors()) == 4
    assert "refused" in following.errors()[0]
    assert following.store.services  # fail static
    server.accept()
    following.until_right_soon()
    assert following.lists() == 1  # it went on from where it was
    following.until_calm()


@pytest.mark.usefixtures("hasty")
def test_half_open_connections_are_found_by_the_read_deadline(server: ApiServer) -> None:
    with Following(server) as following:
        following.until_calm()
        with server.fault(faults.half_open(verbs=["watch"])) as fault:
            change(server)
            following.until(lambda: fault.hits >= 4)
        # The dead connections stay dead: only the deadline finds them.
        following.until_right_soon()
        assert any("Read timed out" in error for error in following.errors()) or not following.errors()


def test_a_history_that_was_compacted_is_listed_anew(server: ApiServer, following: Following) -> None:
    for as_event in (False, True):
        server.gone_as_event = as_event
        server.refuse()
        change(server) if not as_event else server.delete("Service", "s5")
        server.compact()
        following.pump(0.2)
        server.accept()
        following.until_right_soon()
        following.until_calm()
    assert following.lists() == 3


@pytest.mark.parametrize("cut", [True, False], ids=["restarted", "under open watches"])
def test_a_restored_backup_is_followed_back(server: ApiServer, following: Following, cut: bool) -> None:
    backup = server.snapshot()
    change(server)
    for number in range(20):
        server.apply(builders.service_manifest(f"later{number}", cluster_ip=f"10.96.3.{number}"))
    following.until_equal()
    server.restore(backup, cut=cut)
    following.until_right_soon()
    following.until_calm()
    assert following.source.status(Kind.SERVICE).counts.regressions == 1
    server.apply(builders.service_manifest("after", cluster_ip="10.96.4.4"))
    following.until_equal()


@pytest.fixture
def quiet(server: ApiServer, hasty: None) -> Iterator[Following]:
    """Somebody who follows a server that has no bookmarks to send, as real ones for many minutes."""
    server.bookmark_seconds = 1000.0
    with Following(server) as made:
        made.until_calm()
        yield made


def test_a_restored_backup_whose_version_has_overtaken_ours_is_found(
    server: ApiServer, quiet: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time that the watch is back, the version is higher than ever, and what was lost is never told."""
    monkeypatch.setattr(reflector, "_HISTORY_SECONDS", 1.0)
    backup = server.snapshot()
    server.apply(builders.service_manifest("lost", cluster_ip="10.96.7.7"))  # was never made, says the backup
    server.apply(builders.slice_manifest("s0", "10.180.9.9"))  # is as before, says the backup
    server.delete("ServiceCIDR", "kubernetes")  # is there, says the backup
    server.apply(builders.node_manifest(zone="b"))
    quiet.until_equal()
    server.refuse()
    server.restore(backup)
    for _ in range(10):
        server.cluster.touch()
    server.accept()
    quiet.until_right_soon()
    quiet.until_calm()
    assert sum(quiet.source.status(kind).counts.regressions for kind in Kind) >= 1
    quiet.pump(1.0)
    assert [quiet.source.status(kind).counts.lists for kind in Kind] == [2, 2, 2, 2], "each kind once"
    server.apply(builders.service_manifest("after", cluster_ip="10.96.4.4"))
    quiet.until_equal()


def test_one_kind_that_finds_a_restored_backup_has_the_others_look(server: ApiServer, quiet: Following) -> None:
    """What the others lost are deletions that came after the last change that they know: they cannot see it alone."""
    backup = server.snapshot()
    server.apply(builders.slice_manifest("s0", "10.180.9.9"))
    server.apply(builders.slice_manifest("s1", "10.180.9.9"))
    server.delete("Service", "s3")
    server.apply(builders.service_manifest("s4", cluster_ip="10.96.0.5", labels={"changed": "yes"}))
    server.delete("Service", "s4")
    quiet.until_equal()
    changed = server.snapshot()
    # A server that has the Service that was deleted last, too, as if only older history had been lost.
    del backup.objects["Service"]["default", "s4"]
    server.refuse()
    server.restore(backup)
    while server.cluster.version < changed.version + 10:
        server.cluster.touch()
    server.accept()
    quiet.until_right_soon()
    quiet.pump(1.0)
    assert quiet.source.status(Kind.SERVICE).counts.regressions == 0
    assert quiet.source.status(Kind.ENDPOINT_SLICE).counts.regressions == 1
    assert [quiet.source.status(kind).counts.lists for kind in Kind] == [2, 2, 2, 2]
    assert "s3" in {one.name for one in quiet.store.services.values()}


def test_what_was_deleted_while_we_were_away_is_no_restored_backup(
    server: ApiServer, following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "_HISTORY_SECONDS", patience.HANGS)
    reflectors = following.source._reflectors.values()
    for kind, name in (("Service", "s7"), ("EndpointSlice", "s7-1")):
        server.apply(
            builders.service_manifest("s7", cluster_ip="10.96.9.9")
            if kind == "Service"
            else builders.slice_manifest("s7", "10.180.9.9")
        )
        following.until_equal()
        server.refuse()
        server.delete(kind, name)
        server.accept()
        following.until_equal()
    # Nobody waits to be told of a deletion any more, so nobody will miss one.
    following.until(lambda: not any(one._awaits_deletion or one.delay() for one in reflectors))
    following.pump(0.3)
    assert [following.source.status(kind).counts.regressions for kind in Kind] == [0, 0, 0, 0]
    assert [following.source.status(kind).counts.lists for kind in Kind] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "trouble",
    [
        lambda verbs: faults.status(429, retry_after=1, verbs=verbs, times=2),
        lambda verbs: faults.status(503, verbs=verbs, times=3),
        lambda verbs: faults.cut(verbs=verbs, times=2),
        lambda verbs: faults.half_open(verbs=verbs, times=1),
    ],
    ids=["429", "503", "cut", "half-open"],
)
def test_trouble_between_two_pages_costs_that_page_only(
    trouble: Callable[[list[str]], Fault], server: ApiServer
) -> None:
    fault = server.fault(trouble([faults.PAGE]))
    # An answer that does not come is given up after two seconds, which all the others must do with as well.
    pacing = msgspec.structs.replace(PACING, answer_seconds=2.0) if fault.name == "half_open" else PACING
    with Following(server, pacing=pacing) as following:
        following.until_calm()
        assert fault.ended.is_set()
        following.pump(0.2)
    lists = [seen for seen in server.requests("list") if seen.parameters.get("limit") != "1"]
    first_pages = [seen for seen in lists if "continue" not in seen.parameters]
    assert len(first_pages) == 4
    assert len(lists) == 8 + fault.hits


def test_a_quiet_watch_is_no_trouble(server: ApiServer, quiet: Following, caplog: pytest.LogCaptureFixture) -> None:
    """Real servers send no bookmark for minutes when nothing happens."""
    failures = [quiet.source.status(kind).counts.failures for kind in Kind]
    quiet_since, before = time.monotonic(), len(server.requests())
    with caplog.at_level(logging.DEBUG, logger="netagent.source.api"):
        quiet.until(lambda: caplog.text.count("looking whether all is well") >= 12)
        quiet.until(lambda: quiet.staleness() + 1.0 < time.monotonic() - quiet_since)  # a look has proven it since
    assert quiet.errors() == []
    assert [quiet.source.status(kind).counts.failures for kind in Kind] == failures
    assert [one.getMessage() for one in caplog.records if one.levelno > logging.INFO] == []
    looks = caplog.text.count("looking whether all is well")
    assert quiet.lists() == 1
    assert len(server.requests()) <= before + 2 * looks + 8, "a look and a new watch each time"
    server.apply(builders.slice_manifest("s0", "10.180.9.9"))
    quiet.until_equal()


def test_a_connection_that_nobody_answers_is_found_behind_a_quiet_watch(server: ApiServer, quiet: Following) -> None:
    """All connections that are open are dead, those that wait in the pool, too: a fresh one tells."""
    quiet.until(lambda: {one.kind for one in server.requests("watch")} == set(Kind))  # each has its answer
    server.lose_connections()
    change(server)
    # Whoever asked on one of them would wait for the answer for an hour. A request that is on its way may be lost.
    quiet.until_right_soon(tries=1)


def test_a_quiet_watch_whose_server_is_gone_is_told(
    server: ApiServer, quiet: Following, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuse(cut=False)
    server.lose_connections()
    with caplog.at_level(logging.INFO, logger="netagent.source.api"):
        quiet.until(lambda: len(quiet.errors()) == 4)
    assert "refused" in caplog.text
    server.accept()
    quiet.until_calm()


def test_a_server_that_was_started_again_and_has_no_history(
    server: ApiServer, following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes the watch and then says 410: that is no trouble, and it is not over before the list."""
    server.gone_as_event = True
    with caplog.at_level(logging.INFO, logger="netagent.source.api"):
        server.refuse()
        following.until(lambda: len(following.errors()) == 4)
        change(server)
        server.compact()
        server.accept()
        following.until_equal()
        following.until(lambda: caplog.text.count("following again") == 4)
    about = [record for record in caplog.records if getattr(record, "kind", "Service") == "Service"]
    texts = [f"{one.levelname} {one.getMessage()}" for one in about if "Service" in one.getMessage() + str(vars(one))]
    gone = next(index for index, text in enumerate(texts) if "410" in text)
    assert texts[gone].startswith("INFO listing anew Service")
    assert [text for text in texts if text == "INFO following again"] == ["INFO following again"]
    assert texts.index("INFO following again") > gone


def test_lost_events_are_found_by_the_next_list(server: ApiServer) -> None:
    pacing = Pacing(watch_seconds=1, audit_seconds=0.5)
    with Following(server, pacing=pacing) as following:
        following.until_calm()
        with server.fault(faults.lost()):
            change(server)
            now = server.cluster.version
            # Bookmarks say that all has been told.
            following.until(lambda: all(int(following.source.status(kind).version or 0) >= now for kind in Kind))
            assert following.lists() > 1 or not following.equal()
        following.until_equal()
        assert following.lists() > 1


def test_a_relist_without_change_dirties_nothing(server: ApiServer, following: Following) -> None:
    following.store.take_dirty()
    server.fault(faults.error_event(410, times=4))
    following.until(lambda: following.lists() >= 2 and following.lists(Kind.ENDPOINT_SLICE) >= 2)
    assert not following.store.dirty


def test_what_was_deleted_while_the_server_was_away_is_deleted(server: ApiServer, following: Following) -> None:
    server.refuse()
    for number in range(12):
        server.delete("Service", f"s{number}")
    server.compact()
    server.accept()
    following.until_equal()
    assert not following.store.services


def test_a_bad_object_stays_as_it_was_through_event_and_list(server: ApiServer, following: Following) -> None:
    name, other = ServiceName("default", "s7"), ServiceName("default", "s8")
    good, before = following.store.services[name], following.store.services[other]
    server.apply(builders.service_manifest("s7", cluster_ip="10.96.0.999"))
    server.apply(builders.service_manifest("s8", cluster_ip="10.96.5.5"))
    following.until(lambda: following.store.services[other] != before)
    assert following.store.services[name] == good
    server.fault(faults.error_event(410, times=1, kinds=["Service"]))
    following.until(lambda: following.lists() == 2)
    assert following.store.services[name] == good


# --- load ---------------------------------------------------------------------------------------------------------


def test_a_server_in_trouble_is_asked_ever_less(server: ApiServer) -> None:
    with server.fault(faults.status(500)), Following(server, kinds=[Kind.SERVICE]) as following:
        following.until(lambda: len(following.waits.asked) >= 6)
        waits, requests = following.waits.asked[:6], len(server.requests("list", "Service"))
    assert requests <= 7, "one request after each wait"
    for wait, most in zip(waits, (0.1, 0.2, 0.4, 0.8, 1.5, 1.5), strict=True):
        assert most / 2 * 0.8 <= wait <= most  # what is left of it when the thread comes to wait
    assert len({round(wait, 3) for wait in waits}) == len(waits)  # no two waits are alike


def test_churn_with_cuts_loses_nothing(server: ApiServer, following: Following) -> None:
    for round_number in range(20):
        for number in range(10):
            server.apply(builders.slice_manifest(f"s{number}", f"10.180.{round_number}.{number + 1}"))
        server.delete("Service", f"s{round_number % 12}")
        server.apply(builders.service_manifest(f"s{round_number % 12}", cluster_ip=f"10.96.{round_number}.9"))
        if round_number % 5 == 4:
            server.cut_connections()
        following.pump(0.01)
    following.until_right_soon()
    assert following.lists() == 1


@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_of_changes_and_faults_ends_right(server: ApiServer, following: Following, seed: int) -> None:
    random = Random(seed)
    backup = server.snapshot()
    for _ in range(40):
        name = f"s{random.randrange(12)}"
        match random.randrange(12):
            case 0 | 1 | 2:
                server.apply(builders.service_manifest(name, cluster_ip=f"10.96.{random.randrange(250)}.7"))
            case 3 | 4 | 5:
                server.apply(builders.slice_manifest(name, f"10.180.{random.randrange(250)}.7"))
            case 6 if any(one["metadata"]["name"] == name for one in server.cluster.manifests("Service")):
                server.delete("Service", name)
            case 7:
                server.fault(DURING[random.choice(list(DURING))]().limited(random.randrange(1, 4)))
            case 8:
                server.cut_connections()
            case 9:
                server.compact()
            case 10:
                backup = server.snapshot()
            case 11 if random.random() < 0.3:
                server.restore(backup, cut=random.random() < 0.5)
                # Were the versions to overtake ours before we look, nobody could tell (the audit would): so look now.
                following.until_equal()
        following.pump(0.02)
    following.until_right_soon(tries=12)  # faults that are left over strike meanwhile


def test_a_slow_consumer_holds_the_threads_back_and_misses_nothing(server: ApiServer) -> None:
    with Following(server, capacity=10) as following:
        following.until_calm()
        for number in range(500):
            server.apply(builders.slice_manifest("s0", f"10.181.{number // 250}.{number % 250 + 1}"))
        patience.until(lambda: len(following.source._outbox._events) >= 10)  # the consumer is away
        first = following.source.drain()
        assert 10 <= len(first) < 500
        feed(following.store, first)
        came = [*first, *following.until(following.equal)]
        order = [event.object.endpoints[0].address for event in came if isinstance(event, Applied)]  # type: ignore[union-attr]
        assert len(order) == 500
        assert order == sorted(order)


# --- the end --------------------------------------------------------------------------------------------------------

STATES: dict[str, Callable[[], Fault] | None] = {
    "watching": None,
    "waiting to try again": lambda: faults.status(500),
    "waiting for an answer": faults.half_open,
    "reading slow bytes": lambda: faults.slow(1),
}


@pytest.mark.parametrize("state", STATES)
def test_stop_waits_for_nothing_that_the_threads_wait_for(server: ApiServer, state: str) -> None:
    """Each of which would take an hour, or half a minute at least where bytes come slowly."""
    make = STATES[state]
    fault = server.fault(make()) if make is not None else None
    following = Following(server, pacing=NEVER_AGAIN)
    following.source.start()
    following.until(lambda: fault.hits >= 4 if fault else following.equal())
    following.pump(0.2)
    assert following.source.stop()
    assert following.source.drain() == []
    assert following.source.fileno() == -1
    assert following.source.stop()


def test_stop_while_the_queue_is_full(server: ApiServer) -> None:
    following = Following(server, capacity=1)
    following.source.start()
    patience.until(lambda: len(following.source._outbox._events) >= 1)
    time.sleep(0.1)  # the others try to put theirs
    assert following.source.stop()


def test_stop_without_start(server: ApiServer) -> None:
    assert Following(server).source.stop()


def test_a_bug_in_a_thread_is_told_and_costs_a_list(
    server: ApiServer, following: Following, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken_one = following.source._reflectors[Kind.SERVICE]

    def broken(line: bytes) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(broken_one, "_heard", broken)
        server.delete("Service", "s1")
        following.until(lambda: following.source.last_error(Kind.SERVICE) is not None)
        assert "ZeroDivisionError" in str(following.source.last_error(Kind.SERVICE))
    assert "bug while following" in caplog.text
    following.until_calm()


def test_trouble_is_logged_once_and_so_is_its_end(
    server: ApiServer, following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="netagent.source.api"):
        with server.fault(faults.status(500, message="no leader", kinds=["Service"])):
            server.cut_connections()
            following.pump(1.0)
        following.until_calm()
        following.until(lambda: caplog.text.count("following again") >= 4)
        following.pump(0.2)
    about = [record.getMessage() for record in caplog.records if "Service:" in record.getMessage()]
    assert len([text for text in about if "500 'no leader'" in text]) == 1
    ends = [record for record in caplog.records if record.getMessage() == "following again"]
    assert len(ends) == 4
