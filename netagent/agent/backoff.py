"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable


class BackOff:
    """The waits between tries that fail: doubling, bounded, and a little different each time.

    Owns: how often it has failed in a row. Use: `failed` after each failure, `reset` when it works.
    Threading: none.
    """

    def __init__(self, *, first: float, most: float, randomness: Callable[[], float] = random.random) -> None:
        """From `first` to `most` seconds. `randomness` gives numbers from 0 to 1."""
        self._first = first
        self._most = most
        self._randomness = randomness
        self.failures = 0

    def failed(self) -> float:
        """Seconds until the next try: up to a quarter more than the doubling asks for, never more than the most."""
        doubled = self._first * 2.0 ** min(self.failures, 30)
        self.failures += 1
        return min(doubled * (1 + self._randomness() / 4), self._most)

    def reset(self) -> None:
        """It works again."""
        self.failures = 0

    def use(self, *, first: float, most: float) -> None:
        """Go on with other bounds."""
        self._first, self._most = first, most
