"""Real TCP connections to Services that have a healthy endpoint all along."""

from __future__ import annotations

import threading
import time
from collections import Counter

from demo.clients import Target, ask
from demo.universe import Place


class Traffic:
    """New connections from a place to a target at a steady rate, for as long as it is entered.

    Use: as a context manager; `take` what came of it since the last time. Threading: one of its own.
    """

    def __init__(self, place: Place, target: Target, *, per_second: float) -> None:
        self.name = f"{place.name} to {target}"
        self._place = place
        self._target = target
        self._pause = 1 / per_second
        self._lock = threading.Lock()
        self._done = 0
        self._failed: Counter[str] = Counter()
        self._slowest = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()

    def take(self) -> tuple[int, Counter[str], float]:
        """Connections since the last time, those that failed by reason, and the seconds that the slowest took."""
        with self._lock:
            found = self._done, self._failed, self._slowest
            self._done, self._failed, self._slowest = 0, Counter(), 0.0
        return found

    def _run(self) -> None:
        self._place.enter()
        while not self._stopped.wait(self._pause):
            begun, error = time.monotonic(), ""
            try:
                ask(self._target)
            except OSError as problem:
                error = f"{self.name}: {(problem.strerror or str(problem)).lower()}"
            with self._lock:
                self._done += 1
                self._slowest = max(self._slowest, time.monotonic() - begun)
                if error:
                    self._failed[error] += 1
