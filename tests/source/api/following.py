"""An ApiSource with a Store, pumped by the test, against the test API server."""

from __future__ import annotations

import math
import select
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from netagent.source import decode
from netagent.source.api.connection import Connection
from netagent.source.api.credentials import Access
from netagent.source.api.events import Event, Listed, feed
from netagent.source.api.pacing import Pacing
from netagent.source.api.source import ApiSource
from netagent.source.faults import BadObject
from netagent.source.kinds import Kind
from netagent.source.store import Store
from tests.apiserver import ApiServer
from tests.patience import AN_HOUR, HANGS

NODE = "node-1"
# Small pages. Silence ends nothing within a test (see `hasty` for those that are about it): what waits for it hangs.
PACING = Pacing(silence_seconds=AN_HOUR, answer_seconds=AN_HOUR, watch_seconds=1000.0, page_objects=5)
# Nobody ever tries again.
NEVER_AGAIN = Pacing(
    silence_seconds=AN_HOUR,
    answer_seconds=AN_HOUR,
    first_wait_seconds=AN_HOUR,
    plateau_seconds=AN_HOUR,
    longest_wait_seconds=AN_HOUR,
)


class Waits(threading.Event):
    """What the threads of a source wait on. `asked` are the waits that they wanted, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        if timeout:
            self.asked.append(timeout)
        return super().wait(timeout)


class Following:
    """What an agent does with the live source: poll, drain, feed the Store.

    `events` are all that came, `dirtied` how often a drain marked something.
    """

    def __init__(
        self, server: ApiServer, *, pacing: Pacing = PACING, access: Access | None = None, **source: Any
    ) -> None:
        self.server = server
        self.store = Store(NODE)
        self.events: list[Event] = []
        self.source = ApiSource(
            Connection(access or Access(server=server.url)), node_name=NODE, pacing=pacing, **source
        )
        self.waits = self.source._stopping = Waits()

    def __enter__(self) -> Following:
        self.source.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.stop()

    def pump(self, seconds: float) -> list[Event]:
        """Follow for this long; return what came."""
        return self.until(lambda: False, seconds=seconds, must=False)

    def until(self, condition: Callable[[], bool], *, seconds: float = HANGS, must: bool = True) -> list[Event]:
        """Follow until it holds; AssertionError when it still does not after this many seconds."""
        came: list[Event] = []
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                assert not must, f"still not after {seconds} s; {self.describe()}"
                break
            readable, _, _ = select.select([self.source.fileno()], [], [], min(left, 0.05))
            if readable:
                events = self.source.drain()
                assert events, "the descriptor was readable and there was nothing to drain"
                feed(self.store, events)
                came += events
                self.events += events
        return came

    def until_equal(self) -> None:
        """Follow until the Store says what the server says."""
        self.until(self.equal)

    def until_right_soon(self, *, tries: int = 2, longest: float = PACING.plateau_seconds) -> None:
        """Follow until the Store is right, after the end of some trouble: two seconds are promised, in steps.

        From here on no kind fails more than `tries` times, as what is under way may break yet, and then it is right;
        and no wait, of those before, too, was meant to take more than `longest` seconds.
        """
        before = [self.source.status(kind).counts.failures for kind in self.source.kinds]
        self.until_equal()
        after = [self.source.status(kind).counts.failures for kind in self.source.kinds]
        failed = [later - earlier for earlier, later in zip(before, after, strict=True)]
        assert max(failed) <= tries, f"each kind failed so often after the end of the trouble: {failed}"
        assert max(self.waits.asked, default=0.0) <= longest

    def until_calm(self) -> None:
        """Follow until the Store is right and no kind has an error."""
        self.until(lambda: self.equal() and not self.errors())

    def equal(self) -> bool:
        """Whether every kind was listed and the Store is exactly as the server's objects make it."""
        return all(self.source.in_sync(kind) for kind in self.source.kinds) and contents(self.store) == contents(
            wanted(self.server)
        )

    def errors(self) -> list[str]:
        return [str(error) for kind in self.source.kinds if (error := self.source.last_error(kind))]

    def lists(self, kind: Kind = Kind.SERVICE) -> int:
        """How many complete lists of a kind came."""
        return sum(isinstance(event, Listed) and event.kind is kind for event in self.events)

    def staleness(self) -> float:
        return max(self.source.staleness_seconds(kind) for kind in self.source.kinds)

    def describe(self) -> str:
        return f"{[self.source.status(kind) for kind in self.source.kinds]}\n{contents(self.store)}"


def wanted(server: ApiServer) -> Store:
    """The Store that the server's objects make."""
    store = Store(NODE)
    for kind in Kind:
        for manifest in server.cluster.manifests(kind):
            try:
                store.apply(decode.convert(kind, manifest, []))
            except BadObject:
                continue
    return store


def contents(store: Store) -> object:
    """All that a Store holds; slices of a Service that is not there too."""
    owners = store._slices_by_service.keys()
    slices = {owner: store.slices_of(owner) for owner in sorted(owners)}
    services = {name: service for name, service in store.services.items() if service.cluster_ips}
    return (services, slices, store.node, dict(store.service_cidrs))


def is_fresh(following: Following) -> bool:
    return following.staleness() < math.inf
