"""clientConnection.qps and burst: how often the API server is asked for lists and sent Events at most."""

from __future__ import annotations

import math
import threading
import time

import msgspec
import pytest

from netagent.source.api.connection import Connection
from netagent.source.api.credentials import Access
from netagent.source.api.pacing import RequestLimit, TokenBucket
from netagent.source.api.recorder import Counts, EventRecorder, Limits
from netagent.source.kinds import Kind
from tests import builders, patience
from tests.apiserver import ApiServer, faults
from tests.apiserver.server import CREATE
from tests.source.api.driver import Driver, page, synced
from tests.source.api.following import PACING, Following
from tests.source.api.test_recorder import FAST, SCOPE, announcement, recorder


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- the tokens -----------------------------------------------------------------------------------------------------


def test_a_burst_goes_at_once_and_then_so_many_in_a_second() -> None:
    clock = Clock()
    limit = RequestLimit(5, 10, clock=clock)
    assert [limit.take() for _ in range(10)] == [0.0] * 10
    assert limit.take() == pytest.approx(0.2)
    clock.now += 0.1
    assert limit.take() == pytest.approx(0.1)
    clock.now += 0.1
    assert limit.take() == 0.0
    clock.now += 3600
    assert [limit.take() for _ in range(10)] == [0.0] * 10
    assert limit.take()


def test_a_negative_number_is_no_limit() -> None:
    limit = RequestLimit(-1.0, 1)
    assert not any(limit.take() for _ in range(10_000))


@pytest.mark.parametrize("qps", [1e-9, 5e-324])
def test_hardly_any_request_is_no_wait_that_a_thread_cannot_wait(qps: float) -> None:
    clock = Clock()
    limit = RequestLimit(qps, 1, clock=clock)
    assert limit.take() == 0.0
    for _ in range(3):
        assert 0 < limit.take() < threading.TIMEOUT_MAX
        assert math.isfinite(limit.take())
        clock.now += 1e6


def test_a_bucket_that_is_full_again_is_as_good_as_a_new_one() -> None:
    bucket = TokenBucket(2, 10.0)
    assert bucket.is_full(0)
    bucket.take(0)
    assert [bucket.is_full(at) for at in (0, 9, 10, 11)] == [False, False, True, True]


def test_threads_together_get_no_more_than_one_alone() -> None:
    clock = Clock()
    limit = RequestLimit(1, 100, clock=clock)
    taken: list[bool] = []

    def take() -> None:
        taken.extend(limit.take() == 0.0 for _ in range(50))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 100


# --- lists ----------------------------------------------------------------------------------------------------------


def test_what_counts_is_the_beginning_of_a_list() -> None:
    driver = Driver()
    assert driver.reflector.begins_list
    driver.ask()
    driver.answer(200, page(builders.service_manifest(), token="more"))
    assert not driver.reflector.begins_list, "another page"
    driver.list(builders.service_manifest("s2"))
    assert not driver.reflector.begins_list, "a watch"
    driver = synced()
    driver.reflector.failed("cut")
    assert not driver.reflector.begins_list, "the version before a watch is taken up again"
    driver.reflector.restart("all anew")
    assert driver.reflector.begins_list


def test_lists_wait_for_the_limit_and_watches_do_not(server: ApiServer) -> None:
    """12 Services are three pages, which count as one."""
    clock = Clock()
    with Following(server, request_limit=RequestLimit(4, 1, clock=clock)) as following:

        def listed() -> int:
            return sum(following.lists(kind) for kind in Kind)

        for number in range(1, 5):
            following.until(lambda number=number: listed() == number)  # type: ignore[misc]
            following.pump(0.1)
            assert listed() == number, "no time has passed"
            clock.now += 0.25
        following.until_calm()
        assert len(server.requests("list", "Service")) == 3
        # The tokens are spent, and yet a watch is taken up again, though no time passes.
        clock.now -= 0.25
        lists, before = listed(), len(server.requests("watch", "Service"))
        server.cut_connections()
        following.until(lambda: len(server.requests("watch", "Service")) > before)
        server.delete("Service", "s1")
        following.until_equal()
        assert listed() == lists


def test_a_server_that_expires_everything_is_listed_no_more_often_than_allowed(server: ApiServer) -> None:
    pacing = msgspec.structs.replace(PACING, first_wait_seconds=0.001, plateau_seconds=0.01)
    clock = Clock()
    limit = RequestLimit(5, 4, clock=clock)
    with (
        server.fault(faults.status(410, verbs=["watch"])),
        Following(server, pacing=pacing, request_limit=limit, kinds=[Kind.SERVICE]) as following,
    ):
        for complete in (4, 8, 12):
            following.until(lambda complete=complete: following.lists() == complete)  # type: ignore[misc]
            following.pump(0.3)
            assert following.lists() == complete, "no time has passed"
            clock.now += 0.81


def test_whoever_waits_for_the_limit_can_be_stopped(server: ApiServer) -> None:
    following = Following(server, request_limit=RequestLimit(0.001, 1))
    following.source.start()
    following.until(lambda: len([wait for wait in following.waits.asked if wait > 900]) == 3)
    assert following.source.stop()


def test_a_list_without_end_is_found_also_when_all_its_objects_are_bad() -> None:
    driver = Driver(max_objects=5, page_objects=2)
    bad = builders.service_manifest(type="Nonsense")
    for number in range(10):
        driver.ask()
        driver.answer(200, page(bad, bad, token=f"t{number}"))
        if driver.error:
            break
    assert "the list has no end" in driver.error
    assert number == 2


# --- Events ---------------------------------------------------------------------------------------------------------


def test_events_wait_for_the_limit_too(server: ApiServer) -> None:
    clock = Clock()
    with recorder(server, request_limit=RequestLimit(10, 2, clock=clock)) as sending:
        for number in range(6):
            sending.record(announcement(f"{number}"))
        for sent in (2, 4, 6):
            patience.until(lambda sent=sent: sending.counts.sent == sent)  # type: ignore[misc]
            time.sleep(0.15)
            assert sending.counts == Counts(sent=sent), "no time has passed"
            clock.now += 0.21
        assert sending.flush(patience.HANGS)


def test_every_try_of_an_event_counts(server: ApiServer) -> None:
    clock = Clock()
    with (
        server.fault(faults.status(500, **SCOPE)),
        recorder(server, request_limit=RequestLimit(10, 1, clock=clock)) as sending,
    ):
        sending.record(announcement())
        for tries in (1, 2, 3):
            patience.until(lambda tries=tries: len(server.requests(CREATE)) == tries)  # type: ignore[misc]
            time.sleep(0.15)
            assert len(server.requests(CREATE)) == tries, "no time has passed"
            clock.now += 0.11


def test_a_recorder_that_waits_for_the_limit_can_be_stopped(server: ApiServer) -> None:
    sending = recorder(server, request_limit=RequestLimit(0.001, 1))
    sending.start()
    for number in range(3):
        sending.record(announcement(f"{number}"))
    patience.until(lambda: sending.counts.sent == 1 and len(sending._waiting) == 1)
    assert sending.stop()  # the next would go after some minutes
    assert sending.counts == Counts(sent=1, failed=1)


def test_buckets_of_objects_that_are_quiet_are_forgotten() -> None:
    now = 1000.0
    connection = Connection(Access(server="http://127.0.0.1:9"))
    sending = EventRecorder(connection, node_name="node-1", limits=Limits(queue=10_000), clock=lambda: now)
    for number in range(1000):
        regarding = msgspec.structs.replace(announcement().regarding, name=f"s{number}")
        sending.record(announcement(regarding=regarding))
        now += 1.0
    assert len(sending._buckets) == FAST.object_seconds == 300
