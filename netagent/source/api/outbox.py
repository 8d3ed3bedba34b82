"""Hands events from several threads to one consumer that waits in poll()."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from netagent.source.api.events import Event


class ClosedError(Exception):
    """Nobody takes events any more."""


class Outbox:
    """A bounded queue with a descriptor.

    Owns: one eventfd, and the events that were put and not yet taken.
    Use: producers `put`, which waits while the queue is full; the consumer polls `fileno()` for input and takes all
    with `drain`. `close` wakes the producers with ClosedError.
    Goals: nothing is lost, what one thread puts keeps its order, and the descriptor is readable whenever there is
    something to take.
    Threading: `put` from any thread; `drain` from one.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity` is in events; a batch that begins below it is taken whole."""
        self._capacity = capacity
        self._events: list[Event] = []
        self._closed = False
        self._room = threading.Condition()
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor to poll for input; -1 after `close`."""
        return self._descriptor

    def put(self, events: Sequence[Event]) -> None:
        """Add events, together and in this order, when there is room. ClosedError when there never will be."""
        with self._room:
            self._room.wait_for(lambda: self._closed or len(self._events) < self._capacity)
            if self._closed:
                raise ClosedError
            if not self._events:
                os.eventfd_write(self._descriptor, 1)
            self._events += events

    def drain(self, taken: Callable[[Event], None] | None = None) -> list[Event]:
        """Take all events there are. Never blocks. `taken` is told of each before any other can be put."""
        with self._room:
            if self._closed:
                return []
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._descriptor)
            events, self._events = self._events, []
            for event in events:
                if taken is not None:
                    taken(event)
            self._room.notify_all()
        return events

    def close(self) -> None:
        """Refuse what comes, forget what is there, wake who waits; a second time is fine."""
        with self._room:
            if self._closed:
                return
            self._closed = True
            self._events = []
            os.close(self._descriptor)
            self._descriptor = -1
            self._room.notify_all()
