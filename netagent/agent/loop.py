"""The agent's loop: wait for something to happen, sync, tell the others, for ever."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from types import FrameType
from typing import NamedTuple, Protocol

from netagent import conntrack, errors, settings
from netagent.agent import backoff, feed, reconciler, reporting, stumbles, sweeper

log = logging.getLogger(__name__)

# How often, in seconds, the loop turns at least: to see whether somebody else changed the kernel's ruleset, where the
# kernel does not tell by itself.
_TURN_SECONDS = 1.0
# What is new while syncs fail waits no longer than this, in seconds, or (so that a sync that takes long does not take
# all of a core) than so many times as long as the failed one took. kube-proxy, too, tries each second then.
_NEWS_SECONDS = 1.0
_NEWS_SHARE = 10
# A sync that fails again and again is logged so many times in a row, then once in so many seconds.
_FAILURES_LOGGED = 5
_FAILURE_LOG_SECONDS = 30.0


class Pace(NamedTuple):
    """How fast the loop goes, in seconds.

    `resync`: at most from one sync to the next, also when nothing happens; and the longest wait after one that failed.
    `pause`: at least from one sync to the next. `audit`: between two passes that read the kernel's tables anew.
    `first_retry`: from a failed sync to the next, doubled with each one in a row.
    """

    resync: float
    pause: float
    audit: float
    first_retry: float = 0.1


def pace_of(wanted: settings.Settings) -> Pace:
    """The pace that the settings ask for."""
    return Pace(
        resync=wanted.sync_period_seconds,
        pause=wanted.min_sync_period_seconds,
        audit=wanted.config_sync_period_seconds,
    )


class AddressWatch(Protocol):
    """Notice of the host's addresses: `fileno` becomes readable, `take` says whether they have changed."""

    def fileno(self) -> int: ...

    def take(self) -> bool: ...


class Observer:
    """Something that wants to know what the loop does. Every method may be left out; none may block."""

    def turned(self) -> None:
        """The loop is alive."""

    def queued(self) -> None:
        """There is something to sync."""

    def synced(self, report: reconciler.SyncReport) -> None:
        """The kernel holds the plan."""

    def failed(self, error: errors.NetagentError) -> None:
        """The kernel holds an older plan; the sync will be tried again."""

    def dropped(self, report: conntrack.CleanReport, seconds: float) -> None:
        """Stale flows were looked for. Comes from another thread."""

    def addresses_changed(self) -> None:
        """The host has other addresses than before."""

    def stumbled(self, where: str, error: Exception) -> None:
        """Something failed in a way that nobody expected, and the loop goes on. May come from another thread."""


class _Watch:
    """A descriptor, what to do when it is readable, and until when it is left alone, because that failed."""

    def __init__(self, name: str, fileno: Callable[[], int], take: Callable[[], None]) -> None:
        self.name = name
        self.fileno = fileno
        self.take = take
        self.backoff = backoff.BackOff(first=0.1, most=30.0)
        self.rests_until: float | None = None


class Loop:
    """Keeps the kernel equal to a feed until it is told to stop. The rules stay when it ends.

    Owns: the thread that drops stale flows. Use: `run`, once; `stop` and `reload` from a signal handler.
    Goals: an event that comes alone is committed at once, events that come in crowds together; nothing is programmed
    before the feed is in sync; what failed is tried again, soon at first and then ever more seldom, and what is new
    meanwhile does not wait for that. Whatever breaks (the kernel's answers, the feed, an observer) costs itself alone:
    it is logged, counted and told to the observers, and the loop goes on. What ends it: InvariantError, MemoryError,
    and what is no Exception.
    Threading: `run` belongs to one thread; dropping flows has another, as it may take long and nobody waits for it.
    """

    def __init__(
        self,
        source: feed.Feed,
        reconcile: reconciler.Reconciler,
        *,
        cleaner: conntrack.FlowCleaner,
        pace: Pace,
        observers: Iterable[Observer] = (),
        reload: Callable[[], Pace | None] | None = None,
        addresses: AddressWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reload` reads the configuration again; it returns the pace to go on with, None for the present one."""
        self._feed = source
        self._reconciler = reconcile
        self._pace = pace
        self._observers = tuple(observers)
        self._reload = reload
        self._addresses = addresses
        self._clock = clock
        self._syncs = reporting.SyncLog(clock=clock)
        self._conflicts = reporting.ConflictLog()
        self._stumbles = stumbles.StumbleLog(clock=clock)
        self._sweeper = sweeper.FlowSweeper(
            cleaner,
            current=lambda: reconcile.planner.forwarding.frontends,
            protocols=lambda: reconcile.protocols,
            dropped=self._dropped,
            stumbled=lambda error: self._stumbled("stale flows", error, "stale flows stay until they expire"),
            clock=clock,
        )
        self._watches = [_Watch("feed", source.fileno, self._take)]
        if addresses is not None:
            self._watches.append(_Watch("addresses", addresses.fileno, self._take_addresses))
        now = clock()
        self._due: float | None = None  # when there is something new
        self._retry_at: float | None = None  # when the last sync failed
        self._backoff = backoff.BackOff(first=pace.first_retry, most=pace.resync)
        self._news_not_before = now
        self._not_before = now
        self._next_audit = now + pace.audit
        self._next_resync = now + pace.resync
        self._failure_logged_at = now
        self._stopping = False
        self._reloading = False
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def stop(self, signal_number: int = 0, frame: FrameType | None = None) -> None:
        """End `run` soon. May be called from a signal handler."""
        self._stopping = True
        self._wake()

    def reload(self, signal_number: int = 0, frame: FrameType | None = None) -> None:
        """Read the configuration again, soon. May be called from a signal handler."""
        self._reloading = True
        self._wake()

    @property
    def unexpected_errors(self) -> Counter[str]:
        """How often something failed in a way that nobody expected, by what that was. For any thread."""
        return self._stumbles.counts

    def run(self) -> None:
        """Follow the feed until `stop`."""
        self._sweeper.start()
        rules = self._reconciler.backend.watch()
        if rules is not None:
            self._watches.append(_Watch("rules", lambda: rules, self._take_rules))
        try:
            for watch in self._watches:
                self._look(watch)
            resting = backoff.BackOff(first=0.1, most=_TURN_SECONDS)
            while not self._stopping:
                if self._try("loop", self._turn):
                    resting.reset()
                else:
                    self._wait(resting.failed(), only_wake=True)
        finally:
            self._sweeper.stop()

    def _turn(self) -> None:
        self._tell("turned", lambda observer: observer.turned())
        if self._reloading and self._reload:
            self._reloading = False
            self._try("reload", self._read_configuration, "keeping the old configuration")
            self._want_sync()
        now = self._clock()
        if now >= self._next_audit:
            self._next_audit = now + self._pace.audit
            self._try("audit", self._audit)
            self._want_sync()
        if self._feed.in_sync:
            if now >= self._next_resync:
                self._next_resync = now + self._pace.resync
                self._want_sync()
            if self._due is None and self._retry_at is None and self._reconciler.backend.moved():
                self._want_sync()
            if self._seconds_to_sync() <= 0:
                self._sync()
                return
        self._wait(_TURN_SECONDS)

    # --- waiting -------------------------------------------------------------------------------------------

    def _wait(self, seconds: float, *, only_wake: bool = False) -> None:
        """Until something happens, or for so long at most."""
        now = self._clock()
        seconds = min(seconds, self._next_audit - now)
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        by_descriptor: dict[int, _Watch] = {}
        ready: list[_Watch] = []
        if not only_wake:
            if self._feed.in_sync:
                seconds = min(seconds, self._seconds_to_sync(), self._next_resync - now)
            for watch in self._watches:
                if watch.rests_until is not None:
                    seconds = min(seconds, watch.rests_until - now)
                else:
                    descriptor = watch.fileno()
                    poll.register(descriptor, select.POLLIN)
                    by_descriptor[descriptor] = watch
        for descriptor, events in poll.poll(max(seconds, 0) * 1000):
            if descriptor == self._wake_reader:
                os.read(self._wake_reader, 4096)
            elif events & select.POLLNVAL:
                self._rest(by_descriptor[descriptor], OSError(errno.EBADF, "its descriptor has been closed"))
            else:
                ready.append(by_descriptor[descriptor])
        now = self._clock()
        if not only_wake and not self._stopping:
            ready += [watch for watch in self._watches if watch.rests_until is not None and now >= watch.rests_until]
            for watch in ready:
                self._look(watch)

    def _look(self, watch: _Watch) -> None:
        """Take what there is. If that fails it is left alone for a while, since it would stay readable."""
        try:
            watch.take()
        except (errors.InvariantError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the agent
            self._rest(watch, error)
        else:
            watch.rests_until = None
            watch.backoff.reset()

    def _rest(self, watch: _Watch, error: Exception) -> None:
        self._stumbled(watch.name, error)
        watch.rests_until = self._clock() + watch.backoff.failed()

    def _take(self) -> None:
        was_in_sync = self._feed.in_sync
        changed = True  # if it breaks off, who knows what the Store has got of it
        try:
            changed = self._feed.take(self._reconciler.planner.store)
        finally:
            if changed or (self._feed.in_sync and not was_in_sync):
                self._want_sync()

    def _take_rules(self) -> None:
        if self._reconciler.backend.moved() and self._feed.in_sync:
            self._want_sync()

    def _take_addresses(self) -> None:
        if self._addresses is not None and self._addresses.take():
            self._tell("addresses_changed", lambda observer: observer.addresses_changed())

    # --- syncing -------------------------------------------------------------------------------------------

    def _want_sync(self) -> None:
        """Sync as soon as the pace allows; a sync that has to wait anyway takes this along."""
        if self._due is None:
            self._due = max(self._clock(), self._not_before, self._news_not_before)
            self._tell("queued", lambda observer: observer.queued())

    def _seconds_to_sync(self) -> float:
        """Until the next sync that is wanted; at most until the loop turns anyway. Zero or less: now."""
        wanted = [moment for moment in (self._due, self._retry_at) if moment is not None]
        return min(wanted) - self._clock() if wanted else _TURN_SECONDS

    def _audit(self) -> None:
        """Compare what we remember with the kernel itself; what differs is repaired by the sync after it."""
        try:
            self._reconciler.backend.audit(self._wake)
        except errors.InvariantError:
            raise
        except errors.NetagentError as error:
            log.warning("cannot audit the kernel's tables", extra={"reason": str(error)})

    def _read_configuration(self) -> None:
        pace = self._reload() if self._reload else None
        if pace is None or pace == self._pace:
            return
        now = self._clock()
        self._next_audit = min(self._next_audit, now + pace.audit)
        self._next_resync = min(self._next_resync, now + pace.resync)
        self._not_before = min(self._not_before, now + pace.pause)
        if self._due is not None:
            self._due = min(self._due, now + pace.pause)
        self._backoff.use(first=pace.first_retry, most=pace.resync)
        if self._retry_at is not None:
            self._retry_at = min(self._retry_at, now + pace.resync)
        self._pace = pace

    def _sync(self) -> None:
        began = self._clock()
        self._due = self._retry_at = None
        try:
            report = self._reconciler.sync()
        except (errors.InvariantError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the last good rules stay and it is tried again
            self._sync_failed(error, began)
            return
        self._backoff.reset()
        self._news_not_before = now = self._clock()
        if report.operations:
            self._not_before = now + self._pace.pause
        if report.again_in is not None:
            self._next_resync = min(self._next_resync, now + report.again_in)
        if report.stale_flows:
            self._sweeper.submit(report.stale_flows)
        self._try("log", lambda: self._log(report))
        self._tell("synced", lambda observer: observer.synced(report))

    def _log(self, report: reconciler.SyncReport) -> None:
        self._syncs.synced(report)
        self._conflicts.synced(report, self._reconciler.planner.forwarding)

    def _sync_failed(self, error: Exception, began: float) -> None:
        now = self._clock()
        wait = max(self._backoff.failed(), self._pace.pause)
        self._retry_at = now + wait
        self._news_not_before = now + min(wait, max(_NEWS_SECONDS, _NEWS_SHARE * (now - began)))
        if not isinstance(error, errors.NetagentError):
            self._stumbled("sync", error, "the last good rules stay")
        elif self._backoff.failures <= _FAILURES_LOGGED or now >= self._failure_logged_at + _FAILURE_LOG_SECONDS:
            self._failure_logged_at = now
            facts = {"reason": str(error), "in_a_row": self._backoff.failures, "again_in_seconds": round(wait, 3)}
            log.error("sync failed; the last good rules stay", extra=facts)
        told = stumbles.as_netagent_error(error)
        self._tell("failed", lambda observer: observer.failed(told))

    def _dropped(self, report: conntrack.CleanReport, seconds: float) -> None:
        """In the thread that drops flows."""
        self._tell("dropped", lambda observer: observer.dropped(report, seconds))

    # --- what nobody expects -------------------------------------------------------------------------------

    def _tell(self, what: str, call: Callable[[Observer], None]) -> None:
        """Tell every observer; one that breaks keeps nothing from the others."""
        for observer in self._observers:
            self._try(f"{type(observer).__name__}.{what}", functools.partial(call, observer))

    def _try(self, where: str, call: Callable[[], None], consequence: str = "going on") -> bool:
        """Do it; whether that went well."""
        try:
            call()
        except (errors.InvariantError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the agent
            self._stumbled(where, error, consequence)
            return False
        return True

    def _stumbled(self, where: str, error: Exception, consequence: str = "going on") -> None:
        self._stumbles.note(where, error, consequence=consequence)
        for observer in self._observers:
            # An observer that breaks on this, too, has been told of already.
            with contextlib.suppress(Exception):
                observer.stumbled(where, error)

    def _wake(self) -> None:
        # Full: it is awake already.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_writer, b"\0")


def follow_signals(loop: Loop, *, ending: Callable[[], None] = lambda: None) -> None:
    """SIGTERM and SIGINT end the loop in good order, SIGHUP makes it read the configuration again.

    `ending` is called once, from the signal handler, when the loop is told to end.
    """
    told = False

    def end(signal_number: int, frame: FrameType | None) -> None:
        nonlocal told
        loop.stop()
        if not told:
            told = True
            ending()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.signal(signal.SIGHUP, loop.reload)
