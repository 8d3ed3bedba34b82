"""What a drill is: a bounded provocation, what it counts and measures, and a promise that is asserted.

A drill runs in an empty network namespace that ends with it (`tests.kernel`). It asserts orders and counts, never
seconds: how long something took is measured and reported.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

DRILLS: dict[str, Drill] = {}


class Run:
    """One run of a drill.

    Use: `rounds()` is the loop of the drill; `count` and `measured` are what the report has. Owns: its counts.
    With `tell`, a line of JSON goes to that descriptor now and then, for whoever shows that it goes on.
    """

    def __init__(self, most: int, *, seconds: float | None = None, tell: int | None = None) -> None:
        """`most`: rounds at most; `seconds`: no new round is begun after so many."""
        self.most = most
        self.counts: Counter[str] = Counter()
        self.measures: dict[str, list[float]] = {}
        self._seconds = seconds
        self._until = None if seconds is None else time.monotonic() + seconds
        self._tell = tell
        self._told_at = 0.0

    def rounds(self) -> Iterator[int]:
        """Numbers from 0 on, as many as may be; the first one always."""
        for number in range(self.most):
            if number and self._until is not None and time.monotonic() >= self._until:
                return
            yield number

    def at_most(self, seconds: float) -> float:
        """How long something may go on that could take so many seconds."""
        return seconds if self._seconds is None else min(seconds, self._seconds)

    def count(self, what: str, times: int = 1) -> None:
        """It happened so many times more."""
        self.counts[what] += times
        if time.monotonic() >= self._told_at + 0.5:
            self.told()

    def measured(self, what: str, seconds: float) -> None:
        """It took so many seconds, this time."""
        self.measures.setdefault(what, []).append(seconds)

    def told(self) -> None:
        """Tell how far it is."""
        if self._tell is not None:
            self._told_at = time.monotonic()
            found = {"counts": dict(self.counts), "measures": self.measures}
            os.write(self._tell, json.dumps(found).encode() + b"\n")


@dataclass(frozen=True)
class Drill:
    """A drill: `name` for the command line, the rows of the catalogue that it covers, and how often it goes round.

    `quick`: rounds in the ordinary tests, 0 if it is not one of them. `full`: rounds in scripts/chaos. `patience`: a
    drill that takes longer than that, in seconds, hangs.
    """

    name: str
    rows: tuple[int, ...]
    promise: str
    body: Callable[[Run], None]
    quick: int = 0
    full: int = 1
    patience: float = 600.0

    def play(self, run: Run) -> None:
        """Run it, in the namespace that this process is in. AssertionError if the promise is broken."""
        try:
            self.body(run)
        finally:
            run.told()


def drill(
    name: str, *rows: int, quick: int = 0, full: int = 1, patience: float = 600.0
) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    """Make a function a drill; its docstring is the promise."""

    def made(body: Callable[[Run], None]) -> Callable[[Run], None]:
        assert name not in DRILLS, name
        promise = " ".join((body.__doc__ or "").split())
        assert promise, f"the drill {name} promises nothing"
        DRILLS[name] = Drill(name, rows, promise, body, quick=quick, full=full, patience=patience)
        return body

    return made
