"""An ApiSource with a Store, pumped by the test, against the test API server."""

from __future__ import annotations

import math
import select
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

NODE = "node-1"
# Short, so that silence is found within a test.
PACING = Pacing(silence_seconds=1.0, answer_seconds=2.0, watch_seconds=30.0, page_objects=5)


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

    def until(self, condition: Callable[[], bool], *, seconds: float = 5.0, must: bool = True) -> list[Event]:
        """Follow until it holds; AssertionError when it does not within this many seconds."""
        came: list[Event] = []
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                assert not must, f"not within {seconds} s; {self.describe()}"
                break
            readable, _, _ = select.select([self.source.fileno()], [], [], min(left, 0.05))
            if readable:
                events = self.source.drain()
                assert events, "the descriptor was readable and there was nothing to drain"
                feed(self.store, events)
                came += events
                self.events += events
        return came

    def until_equal(self, *, seconds: float = 5.0) -> float:
        """Follow until the Store says what the server says; return how long that took."""
        began = time.monotonic()
        self.until(self.equal, seconds=seconds)
        return time.monotonic() - began

    def until_calm(self, *, seconds: float = 5.0) -> None:
        """Follow until the Store is right and no kind has an error."""
        self.until(lambda: self.equal() and not self.errors(), seconds=seconds)

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
