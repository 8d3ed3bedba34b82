"""What nobody expected: exceptions that are no error of netagent's own, on purpose survived, never silently."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from netagent import errors

log = logging.getLogger(__name__)

# The same cause is told again, without its traceback, after so many seconds at the earliest.
_REPEAT_SECONDS: Final = 300.0
# So many causes are remembered; one that is forgotten is told as if it were new.
_CAUSES_MOST: Final = 100


class _Cause(NamedTuple):
    """Two exceptions with the same cause come from the same line, whatever numbers are in their words."""

    where: str
    kind: str
    file: str
    line: int


class _Told:
    """When a cause was told last, and how often it has been seen since."""

    __slots__ = ("at", "since")

    def __init__(self, at: float) -> None:
        self.at = at
        self.since = 0


class StumbleLog:
    """Logs and counts exceptions that were survived.

    Owns: how many there were, by what stumbled; which causes have been told. Use: `note` in the except clause.
    Goals: every cause is told once with its traceback; one that comes again and again fills no log; memory has a bound.
    Threading: any thread.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._told: OrderedDict[_Cause, _Told] = OrderedDict()

    @property
    def counts(self) -> Counter[str]:
        """How many there were, by what stumbled."""
        with self._lock:
            return Counter(self._counts)

    def note(self, where: str, error: Exception, *, consequence: str = "going on") -> None:
        """`where` stumbled over `error`. An error of netagent's own is told without traceback: its words say all."""
        now = self._clock()
        cause = _cause_of(where, error)
        with self._lock:
            self._counts[where] += 1
            told = self._told.get(cause)
            if told is None:
                self._told[cause] = _Told(now)
                if len(self._told) > _CAUSES_MOST:
                    self._told.popitem(last=False)
                again = 0
            else:
                self._told.move_to_end(cause)
                told.since += 1
                if now - told.at < _REPEAT_SECONDS:
                    return
                again, told.at, told.since = told.since, now, 0
        facts = {"where": where, "reason": _words(error)}
        if again:
            log.error("unexpected error, again; %s", consequence, extra=facts | {"times": again})
        else:
            traceback = None if isinstance(error, errors.NetagentError) else error
            log.error("unexpected error; %s", consequence, extra=facts, exc_info=traceback)


def as_netagent_error(error: Exception) -> errors.NetagentError:
    """The error itself if it is one of netagent's, else one that says what it was."""
    if isinstance(error, errors.NetagentError):
        return error
    wrapped = errors.NetagentError(f"unexpected {_words(error)}; the last good rules stay, and it is tried again")
    wrapped.__cause__ = error
    return wrapped


def _words(error: Exception) -> str:
    if isinstance(error, errors.NetagentError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _cause_of(where: str, error: Exception) -> _Cause:
    trace, file, line = error.__traceback__, "", 0
    while trace is not None:
        file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    # Of an error of netagent's own the words are the cause: many come from one line.
    kind = str(error) if isinstance(error, errors.NetagentError) else type(error).__qualname__
    return _Cause(where, kind, file, line)
