"""A live API server as the agent's feed."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import assert_never

from netagent.source import store
from netagent.source.api import events
from netagent.source.api.source import ApiSource
from netagent.source.kinds import Kind, ObjectKey, object_key

log = logging.getLogger(__name__)

# Kinds without which Services can be served, if not as well, and how many seconds they are waited for.
_DISPENSABLE = {Kind.NODE, Kind.SERVICE_CIDR}
_PATIENCE_SECONDS = 30.0


class ApiFeed:
    """What the API server tells, put into the Store.

    Owns: the source, and which objects are set aside. Use: as any feed; `quarantined` counts what is set aside, by
    kind. `listen` is told all events before the Store has them.
    Goals: a version of an object that cannot be used is told once, and the one before it holds; an event that breaks
    something costs no other.
    Threading: none; the source has threads of its own.
    """

    def __init__(
        self,
        source: ApiSource,
        *,
        listen: Callable[[Iterable[events.Event]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self._listen = listen
        self._set_aside: dict[tuple[Kind, str, str], events.Quarantined] = {}
        self._clock = clock
        self._patient_until = clock() + _PATIENCE_SECONDS
        self._started = False
        source.start()

    def fileno(self) -> int:
        return self.source.fileno()

    @property
    def in_sync(self) -> bool:
        waiting = {kind for kind in self.source.kinds if not self.source.in_sync(kind)}
        if not waiting or self._started:
            self._started = True
            return True
        if waiting <= _DISPENSABLE and self._clock() >= self._patient_until:
            # Somebody forbids us to look (403, say), and Services must not wait for that for ever.
            self._started = True
            log.warning("going on without %s: %s", ", ".join(sorted(waiting)), self.source.last_error(min(waiting)))
        return self._started

    def staleness(self) -> dict[str, float]:
        """How many seconds ago the API server last proved that nothing of a kind is missing, if it ever has."""
        ages = {str(kind): self.source.staleness_seconds(kind) for kind in self.source.kinds}
        return {kind: seconds for kind, seconds in ages.items() if math.isfinite(seconds)}

    @property
    def quarantined(self) -> Counter[str]:
        return Counter(str(kind) for kind, _, _ in self._set_aside)

    @property
    def set_aside(self) -> tuple[events.Quarantined, ...]:
        """What is set aside, in no order. For any thread."""
        return tuple(self._set_aside.values())

    def take(self, into: store.Store) -> bool:
        """What breaks over one event, or over telling of them, is raised when all others are in the Store: they would
        not come again before the next list."""
        drained = self.source.drain()
        broken: Exception | None = None
        try:
            for event in drained:
                self._note(event)
            if self._listen:
                self._listen(drained)
        except Exception as error:  # noqa: BLE001 - raised below
            broken = error
        changed = False
        for event in drained:
            try:
                changed |= events.feed(into, (event,))
            except Exception as error:  # noqa: BLE001 - raised below
                broken = error
        if broken:
            raise broken
        return changed

    def close(self) -> None:
        self.source.stop()

    def _note(self, event: events.Event) -> None:
        match event:
            case events.Quarantined():
                self._quarantine(event)
            case events.Listed():
                now = {(one.kind, one.namespace, one.name) for one in event.quarantined}
                for key in [key for key in self._set_aside if key[0] is event.kind and key not in now]:
                    del self._set_aside[key]
                for one in event.quarantined:
                    self._quarantine(one)
                self._remark(map(str, event.remarks))
            case events.Applied():
                self._good_again(object_key(event.object))
                self._remark(map(str, event.remarks))
            case events.Deleted():
                self._good_again((event.kind, event.key))
            case _:
                assert_never(event)

    def _quarantine(self, fault: events.Quarantined) -> None:
        key = (fault.kind, fault.namespace, fault.name)
        known = self._set_aside.get(key)
        if known is None or str(known) != str(fault):
            log.warning("set aside: %s", fault)
        self._set_aside[key] = fault

    def _good_again(self, key: ObjectKey) -> None:
        kind, name = key
        flat = (kind, "", name) if isinstance(name, str) else (kind, *name)
        if self._set_aside.pop(flat, None):
            log.info("no longer set aside: %s %s", kind, "/".join(filter(None, flat[1:])))

    def _remark(self, remarks: Iterable[str]) -> None:
        for remark in remarks:
            log.warning("%s", remark)
