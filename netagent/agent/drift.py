"""What others did to our rules, and who it was: the journal that `netagent drift` shows."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from netagent import escaping, processes

log = logging.getLogger(__name__)

_KEPT: Final = 100
_LINES: Final = 20
# Changes of so many operations at most are compared line by line, to see whether it is the same again. A storm that
# takes away everything is not described anew each time: that would take longer than its repair.
_COMPARED: Final = 200
# In so many seconds, the same again is told so often, and all together in so many lines; the rest is counted.
_TOLD_SECONDS: Final = 10.0
_TOLD_MOST: Final = 3
_TOLD_LINES: Final = 80


class Drift(msgspec.Struct):
    """One foreign change and its repair.

    `at`: seconds since the epoch, when it was noticed. `operations` put it right; `lines` say what they were, the first
    of them. `repaired_at` is None until the kernel has taken them. `times`: how often the same processes did something
    in a row.
    """

    at: float
    by: tuple[processes.Process, ...]
    operations: int
    lines: tuple[str, ...]
    repaired_at: float | None = None
    times: int = 1


class Journal:
    """The last foreign changes.

    Owns: a bounded list of them. Use: `found` when one is noticed, `repaired` when the kernel has taken the repair;
    `records` for readers.
    Goals: the first changes of somebody are logged in full, a storm of them is counted.
    Threading: `records` may be called by any thread.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._records: deque[Drift] = deque(maxlen=_KEPT)
        self._open: Drift | None = None
        self._told_since = 0.0
        self._told = 0  # of the same again
        self._told_lines = 0
        self._untold = 0
        self.total = 0

    def records(self) -> list[Drift]:
        """The last changes, oldest first."""
        return list(self._records)

    def found(self, by: Iterable[processes.Process], operations: int, lines: Iterable[str]) -> None:
        """Somebody changed our rules; `operations` put it right, `lines` describe them."""
        now = self._clock()
        self.total += 1
        found = Drift(now, tuple(by), operations, ())
        last = self._records[-1] if self._records else None
        again = last is not None and _alike(last, found)
        if not again or operations <= _COMPARED:
            found.lines = _shown(lines)
        if last and again and found.lines in ((), last.lines):
            last.times += 1
            last.by, last.at, last.repaired_at = found.by, now, None
            found = last
        else:
            self._records.append(found)
        self._open = found
        self._tell(found, now)

    def repaired(self) -> None:
        """The kernel holds our rules again."""
        if self._open:
            self._open.repaired_at = self._clock()
            self._open = None

    def _tell(self, drift: Drift, now: float) -> None:
        if not self._told_since <= now < self._told_since + _TOLD_SECONDS:
            if self._untold:
                log.warning("our rules were changed %d times more", self._untold)
            self._told_since, self._told, self._told_lines, self._untold = now, 0, 0, 0
        again = drift.times > 1
        lines = () if again else drift.lines
        if self._told_lines + len(lines) >= _TOLD_LINES or (again and self._told >= _TOLD_MOST):
            self._untold += 1
            return
        self._told += again
        self._told_lines += 1 + len(lines)
        facts = {"operations": drift.operations, "by": ", ".join(map(str, drift.by)) or "unknown"}
        log.warning("somebody changed our tables; repairing", extra=facts)
        for line in lines:
            log.warning("drift: %s", line)


def _shown(lines: Iterable[str]) -> tuple[str, ...]:
    described = list(lines)
    shown = tuple(map(escaping.printable, described[:_LINES]))
    return (*shown, f"and {len(described) - _LINES} lines more") if len(described) > _LINES else shown


def _alike(one: Drift, other: Drift) -> bool:
    """Whether a change looks like the one before it, done once more: a storm is one record with a count."""
    names = [[process.name for process in drift.by] for drift in (one, other)]
    return names[0] == names[1] and one.operations == other.operations and other.at < one.at + _TOLD_SECONDS
