"""How long to wait: the numbers of the reflector, its back-off, and the limits of requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec


class Pacing(msgspec.Struct, frozen=True, kw_only=True):
    """How a reflector behaves in time and size. Seconds and bytes.

    The defaults are for thousands of nodes at one API server. A trouble that is young is retried every
    `plateau_seconds` at most, so that its end is noticed within 2 s; then the wait grows with the age of the trouble.
    """

    # Objects on a page of a list.
    page_objects: int = 500
    # A watch is ended by the server after this time, or up to twice as long (so that nodes do not come all at once).
    watch_seconds: float = 300.0
    # Nothing for this long, 20 % less or more, not even a bookmark (which come once a minute from some API servers and
    # after many minutes from others): time to look whether the API server is there.
    silence_seconds: float = 75.0
    # The whole answer to a list's page takes no longer.
    answer_seconds: float = 60.0
    # A list at least this often, 25 % earlier or later, finds what a watch cannot tell (a missed event). 0 = never.
    audit_seconds: float = 3600.0
    # An API server without an optional kind is asked for it again after this time, 25 % more or less.
    absent_seconds: float = 300.0
    # A watch that lasted this long was not refused, even if it told nothing.
    steady_seconds: float = 5.0

    first_wait_seconds: float = 0.1
    plateau_seconds: float = 1.5
    plateau_until_seconds: float = 120.0
    longest_wait_seconds: float = 30.0
    # A server that asks for a longer pause is not believed.
    longest_retry_after_seconds: float = 60.0

    max_line_bytes: int = 8 << 20  # the API server takes objects of up to 3 MiB
    max_page_bytes: int = 256 << 20
    max_objects: int = 1_000_000


class BackOff:
    """The waits between tries that fail: doubling, bounded, and different on every node.

    Owns: how often and since when. Use: `wait` after every failure, `reset` when it works.
    """

    def __init__(self, pacing: Pacing, random: Callable[[], float]) -> None:
        self._pacing = pacing
        self._random = random
        self._failures = 0
        self._since = 0.0

    def reset(self) -> None:
        self._failures = 0

    def wait(self, now: float) -> float:
        """Seconds until the next try. Half of it is random."""
        pacing = self._pacing
        if not self._failures:
            self._since = now
        age = now - self._since
        ceiling = pacing.plateau_seconds + max(0.0, age - pacing.plateau_until_seconds) / 10
        grown = pacing.first_wait_seconds * 2.0 ** min(self._failures, 30)
        self._failures += 1
        return min(grown, ceiling, pacing.longest_wait_seconds) * (0.5 + self._random() / 2)

    def spread(self, seconds: float) -> float:
        """A time that is up to 25 % more or less."""
        return seconds * (0.75 + self._random() / 2)


class TokenBucket:
    """So many at once, then one in so many seconds. Use: `take`; the caller has the clock."""

    __slots__ = ("_at", "_burst", "_seconds", "_tokens")

    def __init__(self, burst: int, seconds: float) -> None:
        self._burst = float(burst)
        self._seconds = seconds
        self._tokens = self._burst
        self._at: float | None = None

    def take(self, now: float) -> float:
        """Take one and return 0.0; or, when there is none, return in how many seconds there will be."""
        self._tokens = self._tokens_at(now)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) * self._seconds

    def is_full(self, now: float) -> bool:
        """Whether nobody would notice if this were a new one."""
        return self._tokens_at(now) >= self._burst

    def _tokens_at(self, now: float) -> float:
        if self._at is None or not self._seconds:
            return self._tokens
        return min(self._burst, self._tokens + max(0.0, now - self._at) / self._seconds)


class RequestLimit:
    """What clientConnection.qps and burst say: so many requests in a second, and so many at once after a pause.

    Owns: the tokens. Use: `take` before a request that counts; wait as long as it says, and take again.
    Threading: any thread.
    """

    def __init__(self, qps: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """No limit when `qps` is negative."""
        self._bucket = TokenBucket(burst, 1 / qps) if qps > 0 else None
        self._clock = clock
        self._lock = threading.Lock()

    def take(self) -> float:
        """0.0 when a request may be sent now, and is counted; else the seconds after which to ask again."""
        if self._bucket is None:
            return 0.0
        with self._lock:
            return min(self._bucket.take(self._clock()), _LONGEST_WAIT_SECONDS)


# What threads may wait for has a bound in the C library; a limit of one request in a year needs no more.
_LONGEST_WAIT_SECONDS = 3600.0
