"""The live source: one thread for each kind that follows it, one consumer that takes what they tell."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple

from netagent.errors import SourceError
from netagent.source.api.alarm import Alarm
from netagent.source.api.events import Event, Listed
from netagent.source.api.exchange import Request, SilenceError, Transport, TransportError
from netagent.source.api.outbox import ClosedError, Outbox
from netagent.source.api.pacing import Pacing, RequestLimit
from netagent.source.api.reflector import Counts, Reflector
from netagent.source.api.resources import resource_of
from netagent.source.kinds import Kind

log = logging.getLogger(__name__)

# Events that may wait for the consumer; beyond that the threads wait, and the API server with them.
_CAPACITY = 10_000
# The same trouble is not logged more often than this.
_REPEAT_LOG_SECONDS = 300.0
_STOP_SECONDS = 0.8


class KindStatus(NamedTuple):
    """How well a kind is followed. `version` is the API's resource version; counts are since the start."""

    in_sync: bool
    staleness_seconds: float
    error: SourceError | None
    version: str | None
    counts: Counts


class ApiSource:
    """Follows Services, EndpointSlices, this Node and ServiceCIDRs at an API server.

    Owns: the transport, one daemon thread for each kind, and the queue of what they told.
    Use: `start`; poll `fileno()` for input and `drain()`; `stop` when done, or use it as a context manager.
    Goals: after `in_sync(kind)` the events that were drained, in their order, make the objects of the API server; no
    change is lost, and those of one kind keep their order. Trouble never ends it: what was told stays true as far as
    anybody knows, `staleness_seconds` and `last_error` say how far that is.
    Threading: `start`, `drain` and `stop` belong to one thread, the consumer's; the rest may be called from any.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        node_name: str,
        proxy_name: str | None = None,
        kinds: Iterable[Kind] = tuple(Kind),
        pacing: Pacing | None = None,
        request_limit: RequestLimit | None = None,
        capacity: int = _CAPACITY,
        clock: Callable[[], float] = time.monotonic,
        randomness: Callable[[], float] = random.random,
    ) -> None:
        """Of the Nodes, follow the one of this name; of the Services, those labelled for this proxy.

        `request_limit` is for the lists of all kinds together.
        """
        self._transport = transport
        self._request_limit = request_limit
        self._clock = clock
        self._stopping = threading.Event()
        self._outbox = Outbox(capacity)
        kinds = tuple(kinds)
        self._alarm = Alarm(kinds, clock=clock)
        self._in_sync: set[Kind] = set()
        self._reflectors = {
            kind: Reflector(
                resource_of(kind, node_name=node_name, proxy_name=proxy_name),
                pacing=pacing,
                clock=clock,
                randomness=randomness,
            )
            for kind in kinds
        }
        self._threads = [
            threading.Thread(target=self._follow, args=(reflector,), name=f"follow-{kind}", daemon=True)
            for kind, reflector in self._reflectors.items()
        ]

    def __enter__(self) -> ApiSource:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- the consumer's --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to list and watch."""
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        """The descriptor that is readable while there is something to drain."""
        return self._outbox.fileno()

    def drain(self) -> list[Event]:
        """Take all events since the last call, oldest first. Never blocks."""
        return self._outbox.drain(self._taken)

    def stop(self) -> bool:
        """End within a second, whatever the threads wait for; a second time is fine.

        False when a thread is still caught in a system call that cannot be interrupted (connecting, or an exec
        plugin); it ends by itself, and tells nothing any more.
        """
        self._stopping.set()
        self._outbox.close()
        self._transport.abort()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # --- anybody's -------------------------------------------------------------------------------------------

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that are followed."""
        return tuple(self._reflectors)

    def in_sync(self, kind: Kind) -> bool:
        """Whether the first list of a kind has been drained."""
        return kind in self._in_sync

    def staleness_seconds(self, kind: Kind) -> float:
        """How long ago the API server last proved that nothing is missing; infinite before its first list.

        Events and bookmarks do that; where neither comes, a look at the API server about every 75 s does.
        """
        proven_at = self._reflectors[kind].proven_at
        return math.inf if proven_at is None else max(0.0, self._clock() - proven_at)

    def last_error(self, kind: Kind) -> SourceError | None:
        """What is wrong with a kind now, None when it is followed."""
        return self._reflectors[kind].error

    def status(self, kind: Kind) -> KindStatus:
        """All of the above, for metrics and people."""
        reflector = self._reflectors[kind]
        return KindStatus(
            self.in_sync(kind),
            self.staleness_seconds(kind),
            self.last_error(kind),
            reflector.version,
            reflector.counts,
        )

    # --- the threads' ----------------------------------------------------------------------------------------

    def _taken(self, event: Event) -> None:
        if isinstance(event, Listed):
            self._in_sync.add(event.kind)

    def _follow(self, reflector: Reflector) -> None:
        """Follow one kind until `stop`. The outermost loop: a bug costs a new list, and is told."""
        while not self._stopping.is_set():
            try:
                follow(
                    reflector,
                    self._transport,
                    emit=self._outbox.put,
                    wait=self._stopping.wait,
                    request_limit=self._request_limit,
                    alarm=self._alarm,
                    clock=self._clock,
                )
            except ClosedError:
                return
            except Exception as error:
                log.exception("bug while following; listing anew", extra={"kind": str(reflector.kind)})
                reflector.restart(f"an error of our own: {error!r}")


def follow(
    reflector: Reflector,
    transport: Transport,
    *,
    emit: Callable[[Sequence[Event]], None],
    wait: Callable[[float], bool],
    request_limit: RequestLimit | None = None,
    alarm: Alarm | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Follow one kind until `wait` (seconds) returns True: the I/O around a reflector.

    `emit` is given the events in order and may block. What it raises ends this. `request_limit` holds lists up. `alarm`
    is shared by all kinds of an API server.
    """
    alarm = alarm or Alarm(clock=clock)
    trouble = _TroubleLog(reflector, clock)
    kind = reflector.kind
    while not wait(reflector.delay()):
        if alarm.heard(kind):
            reflector.doubt()
            continue
        if request_limit and reflector.begins_list and (seconds := request_limit.take()):
            if wait(seconds):
                return
            continue
        regressions = reflector.counts.regressions
        try:
            _exchange(reflector, transport, reflector.request(), emit, trouble, alarm)
        except SilenceError as error:
            log.debug("nothing came; looking whether all is well", extra={"kind": str(kind), "reason": str(error)})
            reflector.fell_silent(str(error))
        except TransportError as error:
            if not alarm.rings(kind):  # that was us
                reflector.failed(str(error))
        if reflector.counts.regressions != regressions:
            alarm.ring(kind)
        if not wait(0):  # what breaks because we stop is no trouble
            trouble.look()


def _exchange(
    reflector: Reflector,
    transport: Transport,
    request: Request,
    emit: Callable[[Sequence[Event]], None],
    trouble: _TroubleLog,
    alarm: Alarm,
) -> None:
    """One request, and all of its answer. TransportError when it breaks off."""
    answer = transport.get(request)
    try:
        alarm.reads(reflector.kind, answer)
        reflector.answered(answer.status, answer.headers)
        trouble.look()
        while reflector.wants_more:
            events = reflector.received(answer.read())
            if events:
                emit(events)
            trouble.look()
    finally:
        alarm.reads(reflector.kind, None)
        answer.close()


class _TroubleLog:
    """Logs when trouble begins, changes and ends; not each time that it is seen.

    It ends when the server tells something, not when it promises to.
    """

    def __init__(self, reflector: Reflector, clock: Callable[[], float]) -> None:
        self._reflector = reflector
        self._clock = clock
        self._said: str | None = None
        self._said_at = -math.inf
        self._since: float | None = None
        self._told = False

    def look(self) -> None:
        error = self._reflector.error
        if error is None and self._since is None:
            return
        now = self._clock()
        if error is not None:
            self._since = now if self._since is None else self._since
            if str(error) != self._said or now - self._said_at > _REPEAT_LOG_SECONDS:
                self._said, self._said_at = str(error), now
                self._told |= not self._reflector.routine
                log.log(logging.INFO if self._reflector.routine else logging.WARNING, "%s", error)
        elif self._since is not None and self._reflector.heard:
            if self._told:
                seconds = round(now - self._since, 3)
                log.info("following again", extra={"kind": str(self._reflector.kind), "seconds": seconds})
            self._since, self._told = None, False
