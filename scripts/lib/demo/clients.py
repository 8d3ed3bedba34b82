"""Clients: bursts of connections, a steady stream of them, and connections that are kept open."""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from .universe import Place

# Longer than a second, which is when TCP repeats a lost SYN: a slow answer is told from none.
_PATIENCE_SECONDS = 3.0
# 300 connections take 0.1 s. Where each has to time out, these few are enough to know.
_BURST_SECONDS = 15.0


class Target(NamedTuple):
    """What a client dials; the protocol is "tcp" or "udp"."""

    address: str
    port: int
    protocol: str = "tcp"

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}" + ("/udp" if self.protocol == "udp" else "")


class Answer(NamedTuple):
    """The pod that answered, and the client's address as it saw it."""

    pod: str
    seen: str


class Burst(NamedTuple):
    """What became of many connections, one after the other: the pods that answered and the client's addresses that
    they saw, with how often, the errors with how often, and the seconds that each took."""

    pods: collections.Counter[str]
    seen: collections.Counter[str]
    errors: collections.Counter[str]
    seconds: list[float]

    @property
    def failed(self) -> int:
        return self.errors.total()


def ask(target: Target, *, source: str | None = None, patience: float = _PATIENCE_SECONDS) -> Answer:
    """Make one connection (or send one datagram) from the namespace of this thread. OSError if nobody answers."""
    with contextlib.closing(_dial(target, source, patience)) as connection:
        if target.protocol == "udp":
            connection.send(b"?")
        return _answer(connection)


def _dial(target: Target, source: str | None, patience: float) -> socket.socket:
    kind = socket.SOCK_DGRAM if target.protocol == "udp" else socket.SOCK_STREAM
    made = socket.socket(socket.AF_INET6 if ":" in target.address else socket.AF_INET, kind)
    try:
        made.settimeout(patience)
        if source:
            made.bind((source, 0))
        made.connect((target.address, target.port))
    except BaseException:
        made.close()
        raise
    return made


def _answer(connection: socket.socket) -> Answer:
    words = connection.recv(128).decode().split()
    if len(words) != 2:
        raise ConnectionError("closed without an answer")
    return Answer(*words)


def burst(place: Place, target: Target, times: int) -> Burst:
    """Connect many times from a place; less often if that takes too long."""
    result = Burst(collections.Counter(), collections.Counter(), collections.Counter(), [])
    until = time.monotonic() + _BURST_SECONDS
    with place.entered():
        for _ in range(times):
            if time.monotonic() > until:
                result.errors["not tried, as the others took too long"] = times - len(result.seconds)
                break
            started = time.perf_counter()
            try:
                answer = ask(target)
            except OSError as error:
                result.errors[_reason(error)] += 1
            else:
                result.pods[answer.pod] += 1
                result.seen[answer.seen] += 1
            result.seconds.append(time.perf_counter() - started)
    return result


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


class Moment(NamedTuple):
    """One connection of a stream: when it was asked for and answered (monotonic seconds), by which pod, or why not."""

    asked: float
    answered: float
    pod: str
    error: str


class Stream:
    """New connections from a place at a steady rate, for as long as it is entered.

    Use: as a context manager; `moments` and `failed` at any time. Threading: one of its own, which ends with it.
    """

    def __init__(self, place: Place, target: Target, *, per_second: int) -> None:
        self.moments: list[Moment] = []
        self._place = place
        self._target = target
        self._pause = 1 / per_second
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)

    @property
    def failed(self) -> list[Moment]:
        return [moment for moment in self.moments if moment.error]

    @property
    def slowest_seconds(self) -> float:
        return max((moment.answered - moment.asked for moment in self.moments), default=0.0)

    def first_answer(self, pods: set[str], *, since: float) -> float | None:
        """When one of these pods first answered a connection that was made after a time; None if none did."""
        return min((one.answered for one in list(self.moments) if one.asked >= since and one.pod in pods), default=None)

    def last_answer(self, pods: set[str], *, since: float) -> float | None:
        """When a connection that one of these pods answered was last asked for; None if not since then."""
        return max((one.asked for one in list(self.moments) if one.asked >= since and one.pod in pods), default=None)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        self._place.enter()
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            due += self._pause
            asked = time.monotonic()
            try:
                pod, error = ask(self._target).pod, ""
            except OSError as problem:
                pod, error = "", _reason(problem)
            self.moments.append(Moment(asked, time.monotonic(), pod, error))


class KeptConnections:
    """Connections that stay open and are used again and again.

    Owns: their sockets. Use: `open` some, `use` them all, `close`. Threading: none.
    """

    def __init__(self, place: Place, target: Target) -> None:
        self._place = place
        self._target = target
        self._open: list[tuple[str, socket.socket]] = []
        self.errors: list[str] = []
        self.requests = 0

    def open(self, count: int) -> None:
        """Open more. OSError if nobody answers."""
        with self._place.entered():
            for _ in range(count):
                connection = _dial(self._target, None, _PATIENCE_SECONDS)
                self._open.append((_answer(connection).pod, connection))

    def use(self) -> None:
        """Ask on every one of them; each must be answered by the pod that answered first."""
        for pod, connection in self._open:
            self.requests += 1
            try:
                connection.sendall(b"?")
                answered = _answer(connection).pod
            except OSError as error:
                self.errors.append(f"{pod}: {_reason(error)}")
            else:
                if answered != pod:
                    self.errors.append(f"{pod}: answered by {answered}")

    def count(self, pods: set[str]) -> int:
        """How many of them are with these pods."""
        return sum(pod in pods for pod, _ in self._open)

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        for _, connection in self._open:
            connection.close()


@contextlib.contextmanager
def kept(place: Place, target: Target) -> Iterator[KeptConnections]:
    """KeptConnections that are closed at the end."""
    connections = KeptConnections(place, target)
    try:
        yield connections
    finally:
        connections.close()
