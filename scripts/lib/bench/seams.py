"""The places where the benchmarks look inside netagent: a clock around its stages, and around its send calls.

All that depends on how netagent is built, beyond calling it, is here. Nothing of netagent is changed; methods of the
objects at hand are wrapped.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from netagent.agent import reconciler
from netagent.nftables import backend as nftables
from netagent.nftables import constants

# In the order of a sync. `other` is what no stage claims.
STAGES = ("read", "decode", "store", "plan", "lower", "diff", "encode", "send", "mirror", "other")


class StageClock:
    """Where the time goes: seconds of each stage, without those of the stages within it.

    Use: `with clock.stage(name)`, nested at will; `take` returns what was counted since, and begins anew.
    Threading: none.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._inner: list[float] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time within as that of a stage."""
        self._inner.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            within = self._inner.pop()
            self._seconds[name] = self._seconds.get(name, 0.0) + spent - within
            if self._inner:
                self._inner[-1] += spent

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted as a stage."""

        # What `stage` does, without the cost of a context manager: a change passes here a dozen times.
        inner, clock = self._inner, time.perf_counter

        def timed(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            started = clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent = clock() - started
                seconds = self._seconds
                seconds[name] = seconds.get(name, 0.0) + spent - inner.pop()
                if inner:
                    inner[-1] += spent

        return timed

    def take(self) -> dict[str, float]:
        """Seconds by stage since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken


class Sends(NamedTuple):
    """Transactions that were sent: how many, their bytes, seconds in the send call."""

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


class _CountedSocket:
    """A netlink socket whose send calls are counted as far as they send transactions; everything else is as it was."""

    def __init__(self, wrapped: Any, clock: StageClock) -> None:
        self._wrapped = wrapped
        self._clock = clock
        self.sends = Sends()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def send(self, data: Any, *more: Any) -> int:
        return self._counted(data, len(data), self._wrapped.send, data, *more)

    def sendto(self, data: Any, *more: Any) -> int:
        return self._counted(data, len(data), self._wrapped.sendto, data, *more)

    def sendmsg(self, buffers: Any, *more: Any) -> int:
        pieces = list(buffers)
        return self._counted(pieces[0], sum(map(len, pieces)), self._wrapped.sendmsg, pieces, *more)

    def _counted(self, head: Any, size: int, send: Callable[..., int], *args: Any) -> int:
        # A transaction begins with a message of this type: struct nlmsghdr, linux/netlink.h.
        if int.from_bytes(bytes(head[4:6]), "little") != constants.NFNL_MSG_BATCH_BEGIN:
            return send(*args)
        with self._clock.stage("send"):
            started = time.perf_counter()
            sent = send(*args)
            seconds = time.perf_counter() - started
        calls, total, before = self.sends
        self.sends = Sends(calls + 1, total + size, before + seconds)
        return sent


class Probe:
    """Watches one reconciler.

    Use: do something with the reconciler, then read `clock` and `take_sends()`. `acknowledged_at` is when the last
    transaction was answered (time.perf_counter), None before the first.
    """

    def __init__(self, reconcile: reconciler.Reconciler, backend: nftables.Backend) -> None:
        """`backend` is the reconciler's."""
        self.clock = clock = StageClock()
        self.acknowledged_at: float | None = None
        self._socket = _counted_socket(backend, clock)
        commit = backend.socket.commit

        def acknowledged(*args: Any, **kwargs: Any) -> Any:
            answer = commit(*args, **kwargs)
            self.acknowledged_at = time.perf_counter()
            return answer

        # A class whose instances refuse new attributes would fail here, and that is what we want to know.
        setattr(backend.socket, "commit", clock.wrapped("encode", acknowledged))  # noqa: B010 - mypy knows it as a method
        for stage, owner, names in (
            ("read", backend, ("read", "moved", "follow")),
            ("plan", reconcile.planner, ("replan",)),
            ("lower", backend, ("set_rules", "update")),
            ("diff", backend, ("pending",)),
            ("encode", backend, ("commit",)),
            ("mirror", backend.mirror, ("expect", "applied")),
            ("mirror", backend.tables, ("settled",)),
            ("other", reconcile, ("sync",)),
        ):
            for name in names:
                setattr(owner, name, clock.wrapped(stage, getattr(owner, name)))

    def take_sends(self) -> Sends:
        """The transactions since the last call."""
        taken, self._socket.sends = self._socket.sends, Sends()
        return taken


def _counted_socket(backend: nftables.Backend, clock: StageClock) -> _CountedSocket:
    plain = getattr(backend.socket, "_socket", None)
    if plain is None:
        raise RuntimeError("NftablesSocket keeps its socket elsewhere now: adapt scripts/lib/bench/seams.py")
    counted = _CountedSocket(plain, clock)
    backend.socket._socket = counted  # type: ignore[assignment]
    return counted


class Collections(NamedTuple):
    """What Python's garbage collector did: passes over everything, and seconds of all passes."""

    full: int = 0
    seconds: float = 0.0


class CollectorClock:
    """How much of the time is the garbage collector's. `take` returns what it did since the last call."""

    def __init__(self) -> None:
        self._found = Collections()
        self._started = 0.0
        gc.callbacks.append(self._tell)

    def _tell(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started = time.perf_counter()
        else:
            full, seconds = self._found
            spent = time.perf_counter() - self._started
            self._found = Collections(full + (info["generation"] == 2), seconds + spent)

    def take(self) -> Collections:
        taken, self._found = self._found, Collections()
        return taken


def log_syncs(note: Callable[[float, reconciler.SyncReport], None]) -> None:
    """Tell of every sync of this process that succeeds: when it ended (time.monotonic), and its report."""
    original = reconciler.Reconciler.sync

    def sync(self: reconciler.Reconciler) -> reconciler.SyncReport:
        report = original(self)
        note(time.monotonic(), report)
        return report

    reconciler.Reconciler.sync = sync  # type: ignore[method-assign]
