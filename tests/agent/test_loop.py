"""The loop with a feed and a kernel that the test plays: when it syncs, when it waits, and whom it tells."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import pytest

from netagent import conntrack, errors, settings
from netagent.agent import loop, planner, reconciler
from netagent.model import addresses, objects
from netagent.nftables import backend, transaction
from netagent.plan import frontends, node
from netagent.source import store
from tests import builders, patience

Key = frontends.FrontendKey
# Longer than a test may last: what waits for this does not happen.
NEVER = patience.AN_HOUR
# How often the loop looks around by itself when the test has the clock, so that it soon sees what time it is.
OFTEN = 0.002


class Clock:
    """The time of a loop, which passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Feed:
    """Changes of a Store that a test puts in; readable while there are any.

    As with a real one, `in_sync` becomes true by `take`, once the test has said `complete`.
    """

    def __init__(self, *, in_sync: bool = True) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK)
        self._changes: deque[Callable[[store.Store], bool]] = deque()
        self._complete = self._in_sync = in_sync
        self.broken: Exception | None = None

    def fileno(self) -> int:
        return self._reader

    @property
    def in_sync(self) -> bool:
        return self._in_sync

    def take(self, into: store.Store) -> bool:
        if self.broken:
            raise self.broken
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 1 << 16)
        self._in_sync = self._complete
        changed = False
        while self._changes:
            changed |= self._changes.popleft()(into)
        return changed

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def put(self, *items: objects.Object) -> None:
        """Objects were made or changed."""
        for item in items:
            self._changes.append(lambda into, item=item: into.apply(item))  # type: ignore[misc]
        os.write(self._writer, b"\0")

    def complete(self) -> None:
        """Everything has been told once."""
        self._complete = True
        os.write(self._writer, b"\0")


class Kernel:
    """A backend whose kernel is a dictionary: it compares, commits all or nothing, and can be meddled with.

    `commits` has when each one came that did something, `tries` when the last ones were tried. `refuse` makes so many
    of them fail, and `cannot_take` has the keys that make one fail with anything new at them; `broken` has what a
    method raises, once, or as long as it stands there if `for_ever`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.held: dict[Key, frontends.Frontend] = {}
        self.commits: list[float] = []
        self.attempts = 0
        self.reads = 0
        self.refuse = 0
        self.cannot_take: set[Key] = set()
        self.tries: deque[float] = deque(maxlen=50)
        self.broken: dict[str, Exception] = {}
        self.for_ever = False
        self._mirror: dict[Key, frontends.Frontend] = {}
        self._desired: dict[Key, frontends.Frontend] = {}
        self._at_fault: frozenset[Key] = frozenset()
        self._generation, self._seen = 1, 0

    def meddle(self, *, told: bool) -> None:
        """Somebody else removes all; `told`: the kernel's generation says so."""
        self.held = {}
        self._generation += told

    def _break(self, method: str) -> None:
        error = self.broken.get(method) if self.for_ever else self.broken.pop(method, None)
        if error:
            raise error

    def moved(self) -> bool:
        self._break("moved")
        return self._seen != self._generation

    def read(self) -> None:
        self.reads += 1
        self._break("read")
        self._seen, self._mirror = self._generation, dict(self.held)

    def watch(self) -> int | None:
        return None

    def follow(self) -> tuple[str, ...] | None:
        if not self.moved():
            return None
        self.read()
        return ()

    def audit(self, done: Callable[[], None]) -> None:
        self.read()
        done()

    def begin_anew(self) -> None:
        self._desired = {}
        self.read()

    def describe(self) -> Iterator[str]:
        return iter(())

    commands = describe

    def cleanup(self) -> bool:
        raise NotImplementedError

    def close(self) -> None: ...

    def served(self) -> Iterator[Key]:
        return iter(tuple(self._mirror))

    def set_rules(self, rules: Iterable[node.NodeRules]) -> None:
        pass

    def update(self, keys: Iterable[Key], current: Mapping[Key, frontends.Frontend]) -> None:
        for key in keys:
            self._break("update")
            self._desired.pop(key, None)
            if key in current:
                self._desired[key] = current[key]

    def pending(self) -> transaction.Transaction:
        return transaction.Transaction()  # only to be told of drift, in words

    def commit(self) -> backend.Commit:
        keys = self._desired.keys() | self._mirror.keys()
        operations = sum(self._desired.get(key) != self._mirror.get(key) for key in keys)
        if not operations:
            return backend.Commit(0, 0, 0)
        self.attempts += 1
        self.tries.append(self._clock())
        self._break("commit")
        guilty = [key for key in keys & self.cannot_take if self._desired.get(key) != self._mirror.get(key)]
        self._at_fault = frozenset(guilty[:1])
        if guilty:
            raise errors.CommitRejectedError("the kernel cannot take it", errno=22, operation=str(guilty[0]))
        if self.refuse:
            self.refuse -= 1
            self._seen = 0
            raise errors.CommitRejectedError("the kernel refused it", errno=16, operation=None)
        self.held, self._mirror = dict(self._desired), dict(self._desired)
        self.commits.append(self._clock())
        return backend.Commit(operations, 1, 0)

    def at_fault(self) -> frozenset[Key]:
        return self._at_fault

    @property
    def owner_port(self) -> int | None:
        return None

    def endpoints(self, address: str = "10.96.0.1") -> set[str]:
        """The endpoints that the kernel has of a cluster IP, as text; KeyError when it has no such frontend."""
        (found,) = (one for key, one in self.held.items() if key.address == addresses.parse_address(address))
        return {addresses.format_address(addresses.endpoint_address(key)) for key in found.endpoints}


class Cleaner:
    """Says what it was asked to drop, and in which thread. `broken` is raised."""

    def __init__(self) -> None:
        self.passes: list[tuple[conntrack.StaleFlows, ...]] = []
        self.threads: set[int] = set()
        self.broken: Exception | None = None
        self.hangs = False
        self.let_go = threading.Event()
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    def clean(self, rules: Iterable[conntrack.StaleFlows]) -> conntrack.CleanReport:
        self.passes.append(tuple(rules))
        self.threads.add(threading.get_ident())
        if self.hangs:
            self.let_go.wait(NEVER)
        if self.broken:
            raise self.broken
        return conntrack.CleanReport(len(self.passes[-1]), 0, ())


class Diary(loop.Observer):
    """Everything that the loop tells, in order, without its turns; and these, counted."""

    def __init__(self) -> None:
        self.turns = 0
        self.told: list[str] = []
        self.reports: list[reconciler.SyncReport] = []
        self.failures: list[errors.NetagentError] = []
        self.stumbles: list[tuple[str, Exception]] = []

    def turned(self) -> None:
        self.turns += 1

    def queued(self) -> None:
        self.told.append("queued")

    def synced(self, report: reconciler.SyncReport) -> None:
        self.told.append("synced")
        self.reports.append(report)

    def failed(self, error: errors.NetagentError) -> None:
        self.told.append("failed")
        self.failures.append(error)

    def dropped(self, report: conntrack.CleanReport, seconds: float) -> None:
        self.told.append("dropped")

    def addresses_changed(self) -> None:
        self.told.append("addresses changed")

    def stumbled(self, where: str, error: Exception) -> None:
        self.stumbles.append((where, error))


class Running:
    """A loop in a thread of its own, until the end of the block.

    With a `clock` time passes by `pass_time` only, and the loop looks around all the time. Without, it looks around
    once in `turn` seconds: never, unless something wakes it.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        turn: float = NEVER,
        in_sync: bool = True,
        retry: float = NEVER,
        pause: float = 0.0,
        audit: float = NEVER,
        resync: float = NEVER,
        reload: Callable[[], loop.Pace | None] | None = None,
        addresses_of_host: loop.AddressWatch | None = None,
        observers: Iterable[loop.Observer] = (),
    ) -> None:
        self.clock = clock
        self._turn = OFTEN if clock else turn
        now = clock or time.monotonic
        self.feed, self.kernel, self.cleaner, self.diary = Feed(in_sync=in_sync), Kernel(now), Cleaner(), Diary()
        self.planner = planner.Planner(settings.Settings(), node_name="node-1")
        ours: Any = self.kernel
        cleaner: Any = self.cleaner
        protocols = frozenset({addresses.Protocol.UDP})
        self.loop = loop.Loop(
            self.feed,
            reconciler.Reconciler(self.planner, ours, stale_flow_protocols=protocols),
            cleaner=cleaner,
            pace=loop.Pace(resync=resync, pause=pause, audit=audit, first_retry=retry),
            observers=[*observers, self.diary],
            reload=reload,
            addresses=addresses_of_host,
            clock=now,
        )
        self.ended_by: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:  # noqa: BLE001 - for the test to see
            self.ended_by = error

    def __enter__(self) -> Running:
        self._turn_before, loop._TURN_SECONDS = loop._TURN_SECONDS, self._turn  # type: ignore[misc]
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.end()
        finally:
            loop._TURN_SECONDS = self._turn_before  # type: ignore[misc]

    def end(self) -> None:
        """Stop it. It ends although nothing else that it may wait for comes within the time of a test."""
        self.loop.stop()
        self.thread.join(patience.HANGS)
        assert not self.thread.is_alive(), "it does not stop"

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something."""
        patience.until(condition, lambda: str(self.diary.told), pause=0.002)

    def until_serving(self, *endpoints: str) -> None:
        """Wait until the kernel sends 10.96.0.1 to these endpoints and no others."""
        self.until(lambda: self.kernel.held and self.kernel.endpoints() == set(endpoints))

    def look_around(self) -> None:
        """Wait until the loop has turned several times: what it does without being woken, it has done by then."""
        turns = self.diary.turns
        self.until(lambda: self.diary.turns >= turns + 3)

    def pass_time(self, seconds: float) -> None:
        """So much time passes, and the loop sees it."""
        assert self.clock
        self.clock.now += seconds
        self.look_around()


def web(*endpoints: str) -> tuple[objects.Object, ...]:
    """Service default/web on 10.96.0.1 with a slice."""
    return (builders.service(), builders.endpoint_slice("web", *endpoints))


# When it syncs --------------------------------------------------------------------------------------------------


def test_an_event_that_comes_alone_is_committed_at_once() -> None:
    with Running() as running:
        for number in range(1, 6):
            running.feed.put(*web(f"10.180.0.{number}"))
            running.until_serving(f"10.180.0.{number}")  # and nothing else than the event could wake it
    assert len(running.kernel.commits) == 5


def test_nothing_is_programmed_before_the_feed_is_in_sync() -> None:
    with Running(in_sync=False, turn=OFTEN) as running:
        running.feed.put(*web("10.180.0.1"))
        running.look_around()
        running.kernel.meddle(told=True)  # nor because somebody else is busy
        running.look_around()
        assert running.kernel.attempts == running.kernel.reads == 0
        assert "synced" not in running.diary.told
        running.feed.complete()
        running.until_serving("10.180.0.1")


def test_it_does_not_spin_while_the_feed_is_not_in_sync() -> None:
    with Running(in_sync=False) as running:
        running.feed.put(*web("10.180.0.1"))
        time.sleep(0.3)  # time to spin in
        assert running.diary.turns < 10
        running.feed.complete()
        running.until_serving("10.180.0.1")  # and nothing else than this could wake it


def test_a_feed_that_is_in_sync_without_any_object_is_synced_too() -> None:
    """What a previous process left there for Services that are gone has to go."""
    with Running(in_sync=False) as running:
        running.feed.complete()
        running.until(lambda: "synced" in running.diary.told)


def test_what_comes_in_crowds_is_committed_together() -> None:
    with Running() as running:
        for number in range(300):
            running.feed.put(*web(f"10.180.0.{number % 250 + 1}", f"10.180.1.{number % 250 + 1}"))
        running.until_serving("10.180.0.50", "10.180.1.50")
    assert len(running.kernel.commits) < 150


def test_a_pause_lies_between_two_syncs_and_the_last_state_wins() -> None:
    with Running(clock=Clock(), pause=0.3) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")  # the first one need not wait
        for number in range(2, 40):
            running.feed.put(*web(f"10.180.0.{number}"))
        running.pass_time(0.29)
        assert running.kernel.endpoints() == {"10.180.0.1"}, "in its pause"
        running.pass_time(0.02)
        running.until_serving("10.180.0.39")
        assert len(running.kernel.commits) == 2


def test_after_a_quiet_time_there_is_no_pause() -> None:
    with Running(clock=Clock(), pause=0.2) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        running.pass_time(0.3)
        running.feed.put(*web("10.180.0.2"))
        running.until_serving("10.180.0.2")  # though no more time passes


def test_a_sync_that_did_nothing_needs_no_pause() -> None:
    with Running(pause=NEVER) as running:
        running.until(lambda: "synced" in running.diary.told)
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")


# When the kernel does not want ----------------------------------------------------------------------------------


def test_a_refused_commit_is_tried_again_with_all_that_it_had_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), Running(clock=Clock(), retry=0.2) as running:
        running.until(lambda: "synced" in running.diary.told)
        running.kernel.refuse = 2
        running.feed.put(*web("10.180.0.1"))
        for number, wait in ((1, 0.2), (2, 0.4)):
            running.until(lambda number=number: running.diary.told.count("failed") == number)  # type: ignore[misc]
            running.pass_time(wait - 0.01)
            assert running.kernel.attempts == number, "each try waits for its time"
            running.pass_time(wait / 4 + 0.02)
        running.until_serving("10.180.0.1")
        assert running.kernel.attempts == 3
        running.until(lambda: running.diary.told.count("synced") == 2)
        assert running.diary.told[-4:] == ["queued", "failed", "failed", "synced"]
        (change,) = running.diary.reports[-1].changes
        assert change.after is not None
        assert running.diary.reports[-1].planned == frozenset({objects.ServiceName("default", "web")})
    assert [record.getMessage() for record in caplog.records] == ["sync failed; the last good rules stay"] * 2


def test_what_comes_while_a_failed_sync_waits_is_not_lost() -> None:
    with Running(retry=0.3) as running:
        running.until(lambda: "synced" in running.diary.told)
        running.kernel.refuse = 1
        running.feed.put(*web("10.180.0.1"))
        running.until(lambda: "failed" in running.diary.told)
        running.feed.put(*web("10.180.0.1", "10.180.0.2"))
        running.until_serving("10.180.0.1", "10.180.0.2")


def test_rules_stay_as_they_were_while_commits_are_refused() -> None:
    with Running(retry=0.1) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        running.kernel.refuse = 1000
        running.feed.put(*web("10.180.0.2"))
        running.until(lambda: running.diary.told.count("failed") > 2)
        assert running.kernel.endpoints() == {"10.180.0.1"}
        running.kernel.refuse = 0
        running.until_serving("10.180.0.2")


def test_the_waits_between_refused_commits_double() -> None:
    with Running(clock=Clock(), retry=0.05) as running:
        running.until(lambda: "synced" in running.diary.told)
        running.kernel.refuse = 5
        running.feed.put(*web("10.180.0.1"))
        for number, least in enumerate((0.05, 0.1, 0.2, 0.4, 0.8), start=1):
            running.until(lambda number=number: running.diary.told.count("failed") == number)  # type: ignore[misc]
            running.pass_time(least * 0.99)
            assert running.kernel.attempts == number
            running.pass_time(least * 0.27)  # a wait is up to a quarter longer
            assert running.kernel.attempts == number + 1
        running.until_serving("10.180.0.1")
        running.kernel.refuse = 1
        running.feed.put(*web("10.180.0.2"))
        running.until(lambda: running.diary.told.count("failed") == 6)
        running.pass_time(0.05 * 1.26)
        running.until_serving("10.180.0.2")  # a success has made the next wait short again


def test_what_is_new_does_not_wait_as_long_as_the_retry_of_what_failed() -> None:
    with Running(clock=Clock(), retry=NEVER) as running:
        running.until(lambda: "synced" in running.diary.told)
        running.kernel.refuse = 1
        running.feed.put(*web("10.180.0.1"))
        running.until(lambda: "failed" in running.diary.told)
        running.feed.put(*web("10.180.0.2"))
        running.pass_time(0.9)
        assert running.kernel.attempts == 1
        running.pass_time(0.2)
        running.until_serving("10.180.0.2")


def test_a_storm_of_events_does_not_make_it_try_faster_than_the_back_off() -> None:
    with Running(clock=Clock(), retry=0.4) as running:
        running.until(lambda: "synced" in running.diary.told)
        running.kernel.refuse = 1000
        number = 0
        for _ in range(40):
            for _ in range(5):
                number += 1
                running.feed.put(*web(f"10.180.0.{number % 250 + 1}"))
            running.pass_time(0.05)
        waits = [later - earlier for earlier, later in itertools.pairwise(running.kernel.tries)]
        assert waits[0] >= 0.39
        assert all(wait >= 0.79 for wait in waits[1:])
        assert len(waits) >= 2
        running.kernel.refuse = 0
        running.pass_time(10.0)
        running.until_serving(f"10.180.0.{number % 250 + 1}")


def test_others_that_commit_all_the_time_do_not_hurry_a_failing_sync() -> None:
    """After a refusal nobody knows what the kernel has, which looks like somebody else's commit."""
    with Running(retry=NEVER, turn=OFTEN) as running:
        running.until(lambda: "synced" in running.diary.told)
        running.kernel.refuse = 1
        running.feed.put(*web("10.180.0.1"))
        running.until(lambda: "failed" in running.diary.told)
        for _ in range(5):
            running.look_around()
        assert running.kernel.attempts == 1


def test_a_sync_comes_every_period_whatever_happens_or_does_not() -> None:
    with Running(resync=0.3) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        syncs = len(running.diary.reports)
        running.until(lambda: len(running.diary.reports) >= syncs + 3)
        assert [report.operations for report in running.diary.reports[-2:]] == [0, 0]


def test_a_reload_changes_the_pace_at_once() -> None:
    slow = loop.Pace(resync=NEVER, pause=NEVER, audit=NEVER)
    fast = slow._replace(pause=0.0, resync=0.2)
    with Running(pause=NEVER, reload=lambda: fast) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        running.until(lambda: running.diary.reports and running.diary.reports[-1].operations)
        queued = running.diary.told.count("queued")
        running.feed.put(*web("10.180.0.2"))
        running.until(lambda: running.diary.told.count("queued") > queued)
        assert running.kernel.endpoints() == {"10.180.0.1"}, "in its pause"
        running.loop.reload()
        running.until_serving("10.180.0.2")
        syncs = len(running.diary.reports)
        running.until(lambda: len(running.diary.reports) >= syncs + 3)


# When something breaks that nobody expected to ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["moved", "read", "update", "commit"])
@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), ZeroDivisionError("a bug")], ids=["OSError", "bug"]
)
def test_a_kernel_that_breaks_costs_a_retry_and_nothing_else(
    method: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), Running(retry=0.1) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        running.kernel.broken[method] = error
        if method == "read":
            running.kernel.meddle(told=True)
        running.feed.put(*dns("10.180.0.2", address="10.96.0.2"), *web("10.180.0.3"))
        running.until_serving("10.180.0.3")
        assert running.kernel.endpoints("10.96.0.2") == {"10.180.0.2"}
        assert not running.kernel.broken, "it has happened"
        assert [error for _, error in running.diary.stumbles] == [error]
        assert running.loop.unexpected_errors.total() == 1
    (told,) = [record for record in caplog.records if record.getMessage().startswith("unexpected error")]
    assert told.exc_info


@pytest.mark.parametrize("breaking", ["update", "commit"])
def test_after_a_break_in_the_middle_all_is_planned_anew_and_nothing_is_forgotten(breaking: str) -> None:
    with Running(retry=0.1) as running:
        for number in range(1, 6):
            running.feed.put(*dns(f"10.180.0.{number}", address=f"10.96.0.{number}", name=f"dns-{number}"))
        running.until(lambda: len(running.kernel.held) == 5)
        running.until(lambda: running.cleaner.passes)
        del running.cleaner.passes[:]
        running.kernel.broken[breaking] = RuntimeError("half way")
        for number in range(1, 6):
            running.feed.put(builders.endpoint_slice(f"dns-{number}", f"10.180.1.{number}", ports=[DNS_SLICE_PORT]))
        running.until(lambda: all(running.kernel.endpoints(f"10.96.0.{n}") == {f"10.180.1.{n}"} for n in range(1, 6)))
        running.until(lambda: sum(map(len, running.cleaner.passes)) >= 5)
        assert {len(rule.allowed_sources) for rules in running.cleaner.passes for rule in rules} == {1}


def test_what_breaks_again_and_again_is_told_once_and_retried_ever_more_seldom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR), Running(retry=0.05) as running:
        running.until(lambda: "synced" in running.diary.told)
        running.kernel.broken["commit"] = OSError(5, "Input/output error")
        running.kernel.for_ever = True
        running.feed.put(*web("10.180.0.1"))
        running.until(lambda: len(running.diary.failures) == 5)
        assert str(running.diary.failures[-1]).startswith("unexpected OSError: [Errno 5] Input/output error")
        waits = [later - earlier for earlier, later in itertools.pairwise(running.kernel.tries)]
        assert waits == sorted(waits)
        assert running.loop.unexpected_errors["sync"] == 5
        running.kernel.broken.clear()
        running.until_serving("10.180.0.1")
    assert len(caplog.records) == 1


class Broken(loop.Observer):
    """An observer of which one method raises, each time."""

    def __init__(self, method: str) -> None:
        def broken(*_: object) -> None:
            raise KeyError(method)

        setattr(self, method, broken)


@pytest.mark.parametrize("method", ["turned", "queued", "synced", "failed", "stumbled", "dropped"])
def test_an_observer_that_breaks_keeps_nothing_from_the_kernel_or_the_others(method: str) -> None:
    with Running(retry=0.1, observers=[Broken(method)]) as running:
        running.kernel.refuse = 1
        running.feed.put(*dns("10.180.0.1"))
        running.until_serving("10.180.0.1")
        running.until(lambda: {"queued", "failed", "synced", "dropped"} <= set(running.diary.told))
        assert running.diary.turns
        assert running.diary.turns < 50
        if method != "stumbled":
            running.until(lambda: running.loop.unexpected_errors[f"Broken.{method}"])


def test_a_feed_that_breaks_is_left_alone_for_a_while_and_looked_at_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), Running(clock=Clock()) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        running.feed.broken = OSError(5, "Input/output error")
        running.feed.put(*web("10.180.0.2"))
        running.until(lambda: running.loop.unexpected_errors["feed"])
        running.pass_time(0.09)
        assert running.loop.unexpected_errors["feed"] == 1
        for _ in range(10):
            running.pass_time(0.1)
        assert 1 < running.loop.unexpected_errors["feed"] < 6
        running.kernel.meddle(told=True)  # all else goes on
        running.until_serving("10.180.0.1")
        running.feed.broken = None
        running.pass_time(30.0)
        running.until_serving("10.180.0.2")
    assert len([one for one in caplog.records if one.exc_info]) == 1


@pytest.mark.parametrize("trouble", ["breaks", "is closed"])
def test_a_feed_that_stays_readable_for_ever_does_not_make_it_spin(trouble: str) -> None:
    with Running() as running:
        running.until(lambda: "synced" in running.diary.told)
        if trouble == "breaks":
            running.feed.broken = OSError(5, "Input/output error")
            running.feed.put(*web("10.180.0.1"))
        else:
            running.feed.close()
            running.loop._wake()
        turns, begun = running.diary.turns, time.monotonic()
        time.sleep(1.0)  # time to spin in
        turns, seconds = running.diary.turns - turns, time.monotonic() - begun
        assert turns < 20 * max(1.0, seconds), "a slow machine has had more time for its few turns"
        assert running.loop.unexpected_errors.total() >= 1
        running.end()


def test_a_reload_that_breaks_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    with caplog.at_level(logging.ERROR), Running(reload=broken) as running:
        running.until(lambda: "synced" in running.diary.told)
        running.loop.reload()
        running.until(lambda: running.loop.unexpected_errors["reload"])
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
    assert [one.getMessage() for one in caplog.records] == ["unexpected error; keeping the old configuration"]


@pytest.mark.parametrize("error", [errors.InvariantError("a bug of ours"), MemoryError(), SystemExit(3)])
@pytest.mark.parametrize("where", ["commit", "feed", "observer"])
def test_some_errors_end_it_wherever_they_come_from_and_leave_the_rules(error: BaseException, where: str) -> None:
    class Ends(loop.Observer):
        def turned(self) -> None:
            if where == "observer" and running.kernel.held:
                raise error

    with Running(observers=[Ends()]) as running:
        running.feed.put(*web("10.180.0.1"))
        if where != "observer":
            running.until_serving("10.180.0.1")
            failing: Any = error
            if where == "commit":
                running.kernel.broken["commit"] = failing
            else:
                running.feed.broken = failing
            running.feed.put(*web("10.180.0.2"))
        running.until(lambda: running.ended_by)
        assert running.ended_by is error
        assert running.kernel.endpoints() == {"10.180.0.1"}


class HostAddresses:
    """As NodeAddresses, moved by the test."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK)
        self.broken: Exception | None = None

    def fileno(self) -> int:
        return self._reader

    def change(self) -> None:
        os.write(self._writer, b"\0")

    def take(self) -> bool:
        if self.broken:
            raise self.broken
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._reader, 1 << 16))
        return False


def test_observers_hear_at_once_that_the_host_has_other_addresses() -> None:
    host = HostAddresses()
    with Running(addresses_of_host=host) as running:
        running.until(lambda: "synced" in running.diary.told)
        host.change()
        running.until(lambda: "addresses changed" in running.diary.told)
        host.broken = OSError(5, "Input/output error")
        host.change()
        running.until(lambda: running.loop.unexpected_errors["addresses"] > 1)
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        host.broken = None
        running.until(lambda: running.diary.told.count("addresses changed") == 2)


# When others meddle ---------------------------------------------------------------------------------------------


def test_what_others_do_to_the_tables_is_put_right_within_two_turns() -> None:
    seen: list[bool] = []

    class Looks(loop.Observer):
        def turned(self) -> None:
            seen.append(bool(running.kernel.held))

    with Running(turn=OFTEN, observers=[Looks()]) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        running.until(lambda: seen[-1:] == [True])
        del seen[:]
        running.kernel.meddle(told=True)
        running.look_around()
        assert seen.count(False) <= 2
        assert running.kernel.endpoints() == {"10.180.0.1"}
    assert loop._TURN_SECONDS == 1.0, "where the kernel does not tell by itself"


def test_an_audit_finds_what_nobody_told() -> None:
    with Running(clock=Clock(), audit=0.2) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        running.kernel.meddle(told=False)
        running.look_around()
        assert not running.kernel.held
        running.pass_time(0.2)
        running.until_serving("10.180.0.1")


def test_an_audit_that_finds_nothing_does_nothing() -> None:
    with Running(audit=0.05) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        reads = running.kernel.reads
        running.until(lambda: running.kernel.reads > reads + 3)
    assert len(running.kernel.commits) == 1
    assert running.diary.reports[-1].operations == 0


def test_without_audit_and_events_nothing_is_read_or_written() -> None:
    with Running(turn=OFTEN) as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        running.until(lambda: running.diary.reports and running.diary.reports[-1].operations)
        reads, syncs = running.kernel.reads, len(running.diary.reports)
        for _ in range(5):
            running.look_around()
        assert (running.kernel.reads, len(running.diary.reports)) == (reads, syncs)


def test_without_audit_and_events_it_only_turns() -> None:
    with Running() as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        time.sleep(0.3)  # time to spin in
        assert running.diary.turns < 10


# The end --------------------------------------------------------------------------------------------------------


def test_it_stops_at_once_and_leaves_the_rules() -> None:
    with Running() as running:
        running.feed.put(*web("10.180.0.1"))
        running.until_serving("10.180.0.1")
        running.end()
    assert running.kernel.endpoints() == {"10.180.0.1"}


def test_it_stops_at_once_while_a_pass_over_stale_flows_hangs() -> None:
    with Running() as running:
        running.cleaner.hangs = True
        running.feed.put(*dns("10.180.0.1"))
        running.until(lambda: running.cleaner.passes)
        running.end()
        assert not running.cleaner.let_go.is_set(), "nobody waited for the pass"
        running.cleaner.let_go.set()


@pytest.mark.parametrize("state", ["not in sync", "in its pause", "waiting to try again"])
def test_it_stops_at_once_whatever_it_waits_for(state: str) -> None:
    with Running(in_sync=state != "not in sync", pause=NEVER, retry=NEVER) as running:
        running.until(lambda: running.diary.turns)
        running.kernel.refuse = state == "waiting to try again"
        running.feed.put(*web("10.180.0.1"))
        if state == "in its pause":
            running.until_serving("10.180.0.1")
            running.feed.put(*web("10.180.0.2"))
        elif state == "waiting to try again":
            running.until(lambda: "failed" in running.diary.told)
        time.sleep(0.05)
        running.end()


def test_it_can_be_stopped_before_it_begins() -> None:
    running = Running()
    running.loop.stop()
    running.thread.start()
    running.thread.join(patience.HANGS)
    assert not running.thread.is_alive()
    assert running.diary.turns == 0


# Whom it tells --------------------------------------------------------------------------------------------------


def test_a_reload_happens_in_the_thread_of_the_loop_and_is_synced() -> None:
    threads: list[int | None] = []
    with Running(reload=lambda: threads.append(threading.get_ident())) as running:
        running.until(lambda: "synced" in running.diary.told)
        syncs = len(running.diary.reports)
        running.loop.reload()
        running.until(lambda: len(running.diary.reports) > syncs)
        assert threads == [running.thread.ident]


def test_observers_hear_of_each_sync_once_and_of_turns_all_the_time() -> None:
    with Running(turn=OFTEN) as running:
        running.until(lambda: "synced" in running.diary.told)
        del running.diary.told[:]
        running.feed.put(*web("10.180.0.1"))
        running.until(lambda: "synced" in running.diary.told)
        running.look_around()  # it turns also when nothing happens
        assert running.diary.told == ["queued", "synced"]
        assert running.diary.reports[-1].operations == 1


DNS_SLICE_PORT = builders.slice_port(5353, protocol=addresses.Protocol.UDP)


def dns(*endpoints: str, address: str = "10.96.0.1", name: str = "dns") -> tuple[objects.Object, ...]:
    return (
        builders.service(name, cluster_ips=[address], ports=[builders.port(53, protocol=addresses.Protocol.UDP)]),
        builders.endpoint_slice(name, *endpoints, ports=[DNS_SLICE_PORT]),
    )


def test_stale_flows_are_dropped_after_the_commit_in_another_thread() -> None:
    with Running() as running:
        running.feed.put(*dns("10.180.0.1", "10.180.0.2"))
        running.until_serving("10.180.0.1", "10.180.0.2")
        running.until(lambda: running.diary.told.count("dropped") == 1)  # it began to serve
        running.feed.put(*dns("10.180.0.2"))
        running.until_serving("10.180.0.2")
        running.until(lambda: running.diary.told.count("dropped") == 2)
        (rule,) = running.cleaner.passes[-1]
        assert [addresses.endpoint_port(one) for one in rule.allowed_sources] == [5353]
        assert running.thread.ident not in running.cleaner.threads


def test_after_a_failure_stale_flows_are_still_dropped_and_only_once() -> None:
    with Running(retry=0.1, turn=OFTEN) as running:
        running.feed.put(*dns("10.180.0.1", "10.180.0.2"))
        running.until(lambda: len(running.cleaner.passes) == 1)
        running.kernel.refuse = 2
        running.feed.put(*dns("10.180.0.2"))
        running.until_serving("10.180.0.2")
        running.until(lambda: len(running.cleaner.passes) == 2)
        syncs = len(running.diary.reports)
        running.feed.put(*web("10.180.0.1"))
        running.until(lambda: len(running.diary.reports) > syncs)
        running.look_around()
        assert len(running.cleaner.passes) == 2


def test_flows_that_cannot_be_dropped_do_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Running() as running:
        for number, broken in enumerate((errors.NetagentError("no conntrack"), ZeroDivisionError("a bug"))):
            running.cleaner.broken = broken
            running.feed.put(*dns(f"10.180.0.{number + 1}"))
            running.until_serving(f"10.180.0.{number + 1}")
            running.until(lambda number=number: len(running.cleaner.passes) > number)  # type: ignore[misc]
    assert len([one for one in caplog.records if "stale flows stay" in one.getMessage()]) == 2
