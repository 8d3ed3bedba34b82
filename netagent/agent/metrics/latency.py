"""How long a change of endpoints takes from the API to the kernel: the network programming latency."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from netagent.model import addresses, objects

# Of one slice between two syncs that succeed; of a slice that changes on and on meanwhile the first ones tell enough.
TIMES_MOST: Final = 100


def network_programming_seconds(trigger_time: str, *, agent_start: float, now: float) -> float | None:
    """Return the seconds from a trigger time (RFC 3339, as slices carry it) to `now`; never negative.

    None when it does not count: there is none, it cannot be read, or it lies before `agent_start`, because what
    happened before we came is not our latency. `agent_start` and `now` are seconds since the epoch.
    """
    triggered = seconds_since_epoch(trigger_time)
    if triggered is None or triggered < agent_start:
        return None
    return max(0.0, now - triggered)


def seconds_since_epoch(text: str) -> float | None:
    """The moment that an RFC 3339 text names; None when it names none."""
    try:
        moment = datetime.datetime.fromisoformat(text.upper())
        return moment.timestamp() if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


class _Pending(NamedTuple):
    family: addresses.Family
    service: objects.ServiceName | None
    texts: set[str]


class TriggerTimes:
    """The trigger times of slices that changed and are not in the kernel yet.

    Owns: those times, each once a slice. Use: `changed` for every slice that says something new, `deleted` and
    `only` when slices are gone, `taken` after each successful sync.
    Goals: a change is measured once, however often its slice is delivered and its sync repeated; a deletion is not
    measured, since its slice carries the time of the change before; however long no sync succeeds, what is kept is
    bounded by the slices that are there.
    Threading: none.
    """

    def __init__(self, *, agent_start: float) -> None:
        self._agent_start = agent_start
        self._pending: dict[tuple[str, str], _Pending] = {}

    def changed(self, item: objects.EndpointSlice) -> None:
        """A slice says something new."""
        if item.trigger_time and item.family is not None:
            pending = self._pending.get(item.key)
            texts = pending.texts if pending else set()
            if len(texts) < TIMES_MOST:
                texts.add(item.trigger_time)
            self._pending[item.key] = _Pending(item.family, item.service, texts)

    def deleted(self, key: tuple[str, str]) -> None:
        """A slice is gone; it need not be pending."""
        self._pending.pop(key, None)

    def only(self, keys: Collection[object]) -> None:
        """No slices are there but these."""
        for key in self._pending.keys() - keys:
            del self._pending[key]

    def taken(
        self, *, now: float, planned: Collection[objects.ServiceName] | None = None
    ) -> Iterator[tuple[addresses.Family, float]]:
        """Forget all and yield the latency of each, in seconds. `now` is seconds since the epoch.

        With `planned`, only of the slices of these Services: the others changed nothing in the kernel.
        """
        pending, self._pending = self._pending, {}
        for family, service, texts in pending.values():
            for text in texts if planned is None or service in planned else ():
                seconds = network_programming_seconds(text, agent_start=self._agent_start, now=now)
                if seconds is not None:
                    yield family, seconds
