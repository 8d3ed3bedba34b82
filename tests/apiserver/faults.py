"""What can go wrong on demand. A fault is an object: it is given to the server, counts its hits, and is ended."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from tests import patience

LIST = "list"
WATCH = "watch"
PAGE = "page"  # of a list, but not its first
BOTH = (LIST, WATCH)


class Fault:
    """Something that goes wrong with the requests for these verbs and kinds, `times` times or until `end`.

    Made by the functions below; used as a context manager it ends with the block.
    """

    def __init__(
        self,
        name: str,
        *,
        verbs: Iterable[str] = BOTH,
        kinds: Iterable[str] | None = None,
        times: int | None = None,
        **details: Any,
    ) -> None:
        self.name = name
        self.details = details
        self.hits = 0
        self.ended = threading.Event()
        self._verbs = frozenset(verbs)
        self._kinds = None if kinds is None else frozenset(kinds)
        self._times = times
        self._lock = threading.Lock()

    def __enter__(self) -> Fault:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def __repr__(self) -> str:
        return f"Fault({self.name}, {self.details})"

    def limited(self, times: int) -> Fault:
        """This fault, for so many hits."""
        self._times = times
        return self

    def end(self) -> None:
        """All is well again."""
        self.ended.set()

    def strikes(self, verb: str, kind: str) -> bool:
        """Whether this request is hit; counts it."""
        with self._lock:
            if self.ended.is_set() or verb not in self._verbs or (self._kinds is not None and kind not in self._kinds):
                return False
            self.hits += 1
            if self._times is not None and self.hits >= self._times:
                self.ended.set()
            return True


def status(code: int, *, reason: str = "", message: str = "", retry_after: int | None = None, **scope: Any) -> Fault:
    """Requests are answered with this HTTP status and a Status object."""
    return Fault("status", code=code, reason=reason, message=message, retry_after=retry_after, **scope)


def too_large_version(**scope: Any) -> Fault:
    """504 for whoever names a resource version."""
    return status(504, reason="Timeout", message="Too large resource version: 9999, current: 1", retry_after=1, **scope)


def error_event(code: int, *, reason: str = "", message: str = "", **scope: Any) -> Fault:
    """Watches say so in an ERROR event and end, the open ones too."""
    return Fault("error_event", code=code, reason=reason, message=message, **{"verbs": (WATCH,), **scope})


def gone_while_paging(**scope: Any) -> Fault:
    """The snapshot of a list goes between two pages."""
    return Fault("gone_while_paging", **{"verbs": (LIST,), **scope})


def cut(*, after_bytes: int = 0, **scope: Any) -> Fault:
    """Answers break off in the middle of a line, at this byte or at the next one that is sent."""
    return Fault("cut", after_bytes=after_bytes, **scope)


def half_open(**scope: Any) -> Fault:
    """Connections stay open and nothing is sent on them any more, not even after the end of the fault."""
    return Fault("half_open", **scope)


def slow(bytes_per_second: float, **scope: Any) -> Fault:
    """Answers dribble."""
    return Fault("slow", bytes_per_second=bytes_per_second, **scope)


def truncated(**scope: Any) -> Fault:
    """Lists are well-formed HTTP with half of the JSON."""
    return Fault("truncated", **{"verbs": (LIST,), **scope})


def body(content: bytes, *, headers: dict[str, str] | None = None, **scope: Any) -> Fault:
    """Requests are answered with 200 and this."""
    return Fault("body", content=content, headers=headers or {}, **scope)


def line(content: bytes, **scope: Any) -> Fault:
    """Watches say this line, the open ones too, and go on."""
    return Fault("line", content=content, **{"verbs": (WATCH,), **scope})


def reordered(**scope: Any) -> Fault:
    """Of the events that a watch sends together, each pair is swapped."""
    return Fault("reordered", **{"verbs": (WATCH,), **scope})


def duplicated(**scope: Any) -> Fault:
    """Watches send each event twice."""
    return Fault("duplicated", **{"verbs": (WATCH,), **scope})


def lost(**scope: Any) -> Fault:
    """Watches leave out all events but bookmarks."""
    return Fault("lost", **{"verbs": (WATCH,), **scope})


def wait_for(condition: Any, seconds: float = patience.HANGS, what: str = "") -> float:
    """Wait until it holds, and return how long that took. AssertionError after this many seconds."""
    return patience.until(condition, what, seconds=seconds)
