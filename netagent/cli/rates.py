"""New connections per second, for each Service port and endpoint, out of counts that only grow. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from netagent.model import addresses, objects
from netagent.plan import frontends

# With fewer connections to each endpoint on average, how uneven they are is chance.
_MEAN_LEAST: Final = 5.0


class Dialled(NamedTuple):
    """A frontend as far as `top` cares: the Service port that has it, and how many endpoints serve it."""

    owner: str
    endpoints: int


class EndpointRate(NamedTuple):
    """An endpoint of a Service port: new connections a second, those since the start, and its share of its port's."""

    endpoint: str
    per_second: float
    total: int
    share: float


class PortRate(NamedTuple):
    """A Service port: new connections a second, those since the start, and its share of all.

    `imbalance` is the busiest endpoint's connections over the mean of all (1.0 is even), since the start; None while
    that is chance. `seen` are the connections that were followed to their endpoints.
    """

    owner: str
    protocol: str
    per_second: float
    total: int
    share: float
    endpoints: int
    imbalance: float | None = None
    busiest: tuple[EndpointRate, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.owner}/{self.protocol}"


class _Port(NamedTuple):
    owner: str
    protocol: int

    @property
    def service(self) -> objects.ServiceName:
        namespace, _, name = self.owner.partition(":")[0].partition("/")
        return objects.ServiceName(namespace, name)


class Meter:
    """Turns readings into rates.

    Owns: the last reading, and what was counted since the first. Use: `read` with each reading of the elements'
    counters, `arrived` with connections that were followed to their endpoints, then `rates`.
    Goals: an element that was replaced begins at 0, and loses nothing that it counted; without counters of elements
    (mode iptables), `read` is given None and connections that were followed are what counts.
    Threading: none.
    """

    def __init__(self) -> None:
        self._dialled: Mapping[frontends.FrontendKey, Dialled] = {}
        self._before: Mapping[frontends.FrontendKey, int] | None = None
        self._growth: Counter[_Port] = Counter()
        self._totals: Counter[_Port] = Counter()
        self._arrived: Counter[tuple[_Port, bytes]] = Counter()
        self._arrived_totals: Counter[tuple[_Port, bytes]] = Counter()
        self._seconds = 1.0

    def read(
        self,
        dialled: Mapping[frontends.FrontendKey, Dialled],
        counts: Mapping[frontends.FrontendKey, int] | None,
        *,
        seconds: float,
    ) -> None:
        """Take a reading, `seconds` after the one before. The first one is what the others are compared with."""
        self._dialled = dialled
        self._seconds = max(seconds, 1e-6)
        self._growth = Counter()
        if counts is None:
            for (port, _), count in self._arrived.items():
                self._growth[port] += count
        elif self._before is not None:
            for key, count in counts.items():
                before = self._before.get(key, 0)
                growth = count - before if count >= before else count
                if growth and key in dialled:
                    self._growth[_Port(dialled[key].owner, key.protocol)] += growth
        self._before = counts
        self._totals += self._growth

    def arrived(self, arrivals: Iterable[tuple[int, bytes, bytes, int]]) -> None:
        """Take connections of the time since the last reading: protocol, dialled endpoint key, endpoint, how many."""
        self._arrived = Counter()
        for protocol, destination, endpoint, count in arrivals:
            found = self._dialled_at(protocol, destination)
            if found is not None:
                self._arrived[_Port(found.owner, protocol), endpoint] += count
        self._arrived_totals += self._arrived

    def _dialled_at(self, protocol: int, destination: bytes) -> Dialled | None:
        """The frontend that a connection was for: of this very address, else the node port of the number."""
        family = addresses.family_of(destination)
        address, port = addresses.endpoint_address(destination), addresses.endpoint_port(destination)
        for where in (address, b""):
            key = frontends.FrontendKey(family, where, addresses.Protocol(protocol), port)
            if key in self._dialled:
                return self._dialled[key]
        return None

    @property
    def per_second(self) -> float:
        """New connections a second, of all Service ports together."""
        return self._growth.total() / self._seconds

    @property
    def ports(self) -> int:
        """How many Service ports there are."""
        return len({(dialled.owner, key.protocol) for key, dialled in self._dialled.items()})

    @property
    def services(self) -> set[objects.ServiceName]:
        """The Services that have a port here."""
        return {_Port(dialled.owner, key.protocol).service for key, dialled in self._dialled.items()}

    def rates(
        self, *, wanted: Callable[[objects.ServiceName], bool] = lambda service: True, sort: str = "connections"
    ) -> list[PortRate]:
        """The rates of all Service ports that have had connections since the start, of Services that are wanted.

        Sorted by "connections" (a second, then in all), "share" (the same order), "imbalance" or "name".
        """
        sizes: dict[_Port, int] = {}
        for key, dialled in self._dialled.items():
            port = _Port(dialled.owner, key.protocol)
            sizes[port] = max(sizes.get(port, 0), dialled.endpoints)
        by_port: dict[_Port, list[bytes]] = {}
        for port, endpoint in self._arrived_totals:
            by_port.setdefault(port, []).append(endpoint)
        everything = self._growth.total()
        found = [
            self._rate(port, sizes[port], by_port.get(port, []), everything)
            for port in {*self._totals, *by_port}
            if port in sizes and wanted(port.service)
        ]
        return sorted(found, key=_ORDERS[sort])

    def _rate(self, port: _Port, size: int, endpoints: list[bytes], everything: int) -> PortRate:
        seen_now = sum(self._arrived[port, endpoint] for endpoint in endpoints)
        busiest = [
            EndpointRate(
                addresses.format_endpoint(endpoint),
                self._arrived[port, endpoint] / self._seconds,
                self._arrived_totals[port, endpoint],
                self._arrived[port, endpoint] / seen_now if seen_now else 0.0,
            )
            for endpoint in endpoints
        ]
        busiest.sort(key=lambda one: (-one.per_second, -one.total, one.endpoint))
        return PortRate(
            port.owner,
            addresses.Protocol(port.protocol).name,
            self._growth[port] / self._seconds,
            self._totals[port],
            self._growth[port] / everything if everything else 0.0,
            size,
            imbalance_of([one.total for one in busiest], size),
            tuple(busiest),
        )


def imbalance_of(counts: list[int], endpoints: int) -> float | None:
    """The largest count over the mean of all endpoints, also of those without connections; None while it is chance."""
    places = max(endpoints, len(counts))
    if places < 2 or sum(counts) < _MEAN_LEAST * places:
        return None
    return max(counts) * places / sum(counts)


_ORDERS = {
    "connections": lambda rate: (-rate.per_second, -rate.total, rate.name),
    "share": lambda rate: (-rate.share, -rate.total, rate.name),
    "imbalance": lambda rate: (-(rate.imbalance or 0.0), -rate.total, rate.name),
    "name": lambda rate: rate.name,
}
