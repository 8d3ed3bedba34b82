"""When one kind finds that the API server went back in time, all others have to look as well."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from netagent.source.api.exchange import Answer
from netagent.source.kinds import Kind

# What several kinds find within this time is one restored backup.
_ONCE_SECONDS = 60.0


class Alarm:
    """Makes the threads of other kinds stop what they do, and list anew.

    Owns: which kinds have been told and have not heard it yet, and what each is reading. Use: a thread says with
    `reads` what it reads, calls `ring` when it found something, and asks `heard` before every request.
    Goals: nobody goes on reading a watch that may be of another history; one restored backup costs each kind one list.
    Threading: any thread.
    """

    def __init__(self, kinds: Iterable[Kind] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kinds = frozenset(kinds)
        self._clock = clock
        self._lock = threading.Lock()
        self._told: set[Kind] = set()
        self._reading: dict[Kind, Answer] = {}
        self._rang_at: float | None = None

    def ring(self, by: Kind) -> bool:
        """Tell all other kinds, and wake those that read. False if that was done a moment ago."""
        with self._lock:
            now = self._clock()
            if self._rang_at is not None and now - self._rang_at < _ONCE_SECONDS:
                return False
            self._rang_at = now
            self._told = set(self._kinds - {by})
            for kind in self._told & self._reading.keys():
                self._reading[kind].interrupt()
            return True

    def rings(self, kind: Kind) -> bool:
        """Whether this kind was told, and has not heard it yet."""
        return kind in self._told

    def heard(self, kind: Kind) -> bool:
        """Whether this kind was told since the last time that it asked."""
        with self._lock:
            told = kind in self._told
            self._told.discard(kind)
            return told

    def reads(self, kind: Kind, answer: Answer | None) -> None:
        """This kind reads an answer from now on, or (None) no more."""
        with self._lock:
            if answer is None:
                self._reading.pop(kind, None)
                return
            self._reading[kind] = answer
            if kind in self._told:
                answer.interrupt()
