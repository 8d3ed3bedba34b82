"""From the API server's events to the Store: what breaks over one of them costs no other."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

from netagent.agent import api_feed
from netagent.model import objects
from netagent.source.api import events
from netagent.source.kinds import Kind
from netagent.source.store import Store
from tests import builders


class Source:
    """As an ApiSource, with events that the test puts in."""

    kinds = tuple(Kind)

    def __init__(self) -> None:
        self.events: list[events.Event] = []
        self._reader, self._writer = os.pipe()

    def start(self) -> None:
        pass

    def fileno(self) -> int:
        return self._reader

    def in_sync(self, kind: Kind) -> bool:
        return True

    def drain(self) -> list[events.Event]:
        drained, self.events = self.events, []
        return drained


class PickyStore(Store):
    """Breaks over a Service called bad."""

    def apply(self, item: objects.Object) -> bool:
        if isinstance(item, objects.Service) and item.name == "bad":
            raise ZeroDivisionError("a bug")
        return super().apply(item)


def applied(*names: str) -> list[events.Event]:
    return [events.Applied(kind=Kind.SERVICE, object=builders.service(name)) for name in names]


def services_of(store: Store) -> set[str]:
    return {name.name for name in store.services}


def test_an_event_that_breaks_is_raised_when_the_others_are_in_the_store() -> None:
    source: Any = Source()
    feed, store = api_feed.ApiFeed(source), PickyStore("node-1")
    source.events = applied("a", "bad", "b")
    with pytest.raises(ZeroDivisionError):
        feed.take(store)
    assert services_of(store) == {"a", "b"}
    assert feed.take(store) is False


def test_a_listener_that_breaks_keeps_nothing_from_the_store() -> None:
    def broken(drained: Iterable[events.Event]) -> None:
        raise KeyError("metrics")

    source: Any = Source()
    feed, store = api_feed.ApiFeed(source, listen=broken), Store("node-1")
    source.events = applied("a", "b")
    with pytest.raises(KeyError):
        feed.take(store)
    assert services_of(store) == {"a", "b"}
