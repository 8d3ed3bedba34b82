"""New connections for each Service port, from the counters of the kernel's map elements, read when somebody asks."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Final, NamedTuple

from prometheus_client import core
from prometheus_client.registry import Collector

from netagent import errors
from netagent.model import addresses
from netagent.plan import frontends

log = logging.getLogger(__name__)

NAME: Final = "netagent_service_connections"
# Stands for every Service port that has no series of its own. No Service can have such a name.
OTHER: Final = "_other"
_LABELS: Final = ("namespace", "service", "port", "protocol", "ip_family")


class ElementCount(NamedTuple):
    """One map element's counter. `element` tells it from all others (a FrontendKey will do); `connections` only grows,
    except that an element which has been replaced begins again at 0."""

    element: Hashable
    owner: frontends.ServicePortName
    family: addresses.Family
    connections: int


class _Series(NamedTuple):
    owner: frontends.ServicePortName
    family: addresses.Family


class ServiceConnections(Collector):
    """The metric `netagent_service_connections_total`.

    Owns: what has been counted for each Service port since the first reading. What elements held then is not counted:
    a counter that begins anew with its process must begin at 0, or rate() takes a restart for a burst.
    Use: register it; the registry calls `collect`, which calls `read`.
    Goals: every series only grows while its Service port exists, although elements come, go and begin again at 0; at
    most `series_most` series, those with the most connections, and one more a family for all others together, which
    only grows as well; however many scrape, the kernel is asked once in `pause_seconds`.
    Threading: one thread at a time, that of the metrics server.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[ElementCount]],
        *,
        series_most: int,
        pause_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read` may raise NetagentError or OSError: then the last numbers stay."""
        self._read = read
        self._series_most = series_most
        self._pause_seconds = pause_seconds
        self._clock = clock
        self._next_read = clock()
        self._elements: dict[Hashable, int] | None = None  # before the first reading
        self._totals: dict[_Series, int] = {}
        self._shown: set[_Series] = set()
        self._others: dict[addresses.Family, int] = {}

    def describe(self) -> Iterable[core.Metric]:
        yield _family()

    def collect(self) -> Iterator[core.Metric]:
        if self._clock() >= self._next_read:
            try:
                self._count(self._read())
            except (errors.NetagentError, OSError) as error:
                log.warning("cannot read the counters of Services", extra={"reason": str(error)})
            self._next_read = self._clock() + self._pause_seconds
        metric = _family()
        for series in sorted(self._shown, key=_order):
            owner = series.owner
            labels = (owner.namespace, owner.service, owner.port, owner.protocol.name, series.family.value)
            metric.add_metric(labels, self._totals[series])
        for family, connections in self._others.items():
            metric.add_metric((OTHER, OTHER, "", "", family.value), connections)
        yield metric

    def _count(self, counts: Iterable[ElementCount]) -> None:
        """Add what each element has counted since the last time to its series."""
        known, elements = self._elements, dict[Hashable, int]()
        added: dict[_Series, int] = {}
        for count in counts:
            elements[count.element] = count.connections
            before = known.get(count.element, 0) if known is not None else count.connections
            growth = count.connections - before if count.connections >= before else count.connections
            series = _Series(count.owner, count.family)
            added[series] = added.get(series, 0) + growth
        self._elements = elements
        # Who is not there any more is forgotten.
        self._totals = {series: self._totals.get(series, 0) + growth for series, growth in added.items()}
        self._shown = self._most_used()
        for series, growth in added.items():
            if series not in self._shown:
                self._others[series.family] = self._others.get(series.family, 0) + growth

    def _most_used(self) -> set[_Series]:
        if len(self._totals) <= self._series_most:
            return set(self._totals)
        # Between equals those that are shown stay, so that series do not come and go.
        shown = self._shown

        def rank(series: _Series) -> tuple[int, bool]:
            return (self._totals[series], series in shown)

        return set(heapq.nlargest(self._series_most, self._totals, key=rank))


def _family() -> core.CounterMetricFamily:
    return core.CounterMetricFamily(
        NAME, "New connections to a Service port, counted by the kernel's rules of this node.", labels=_LABELS
    )


def _order(series: _Series) -> tuple[str, str, str, int, str]:
    owner = series.owner
    return (owner.namespace, owner.service, owner.port, owner.protocol, series.family.value)
