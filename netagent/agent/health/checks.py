"""The health check node ports of Services: one tiny page for each, on the addresses where node ports answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from netagent.agent.health import messages, server
from netagent.model import addresses, objects
from netagent.plan import health, node


class ListenFailure(NamedTuple):
    """A Service whose health check node port does not answer on `address` (text, with port), and why."""

    service: objects.ServiceName
    address: str
    reason: str

    def __str__(self) -> str:
        return f"health check node port of Service {self.service} cannot listen on {self.address}: {self.reason}"


class _Port(NamedTuple):
    family: addresses.Family
    number: int


class _Socket(NamedTuple):
    address: bytes
    number: int


class ServiceHealthChecks:
    """Answers load balancers that ask whether this node has endpoints of a Service.

    Owns: its listeners on a Server. Use: `update` after each successful sync with everything that should be there, and
    `move` when the host has other addresses; what cannot listen is returned, for the log and an Event, and tried again
    by the next `update`, `move` or `retry`.
    Goals: a listener that stays is not touched; the endpoint counts of one update take effect together; a request that
    races with the end of its port gets 503 and never an empty 200.
    Threading: `update`, `move`, `retry` and `close` belong to one thread; the Server answers in its own.
    """

    def __init__(self, serving: server.Server, *, healthy: Callable[[], bool]) -> None:
        """`healthy`, called for every request, tells whether the rules of this node are up to date."""
        self._server = serving
        self._healthy = healthy
        self._ports: dict[_Port, health.HealthCheckPort] = {}
        self._desired: dict[_Socket, _Port] = {}
        self._listeners: dict[_Socket, server.Listener] = {}
        self._conflicts: tuple[ListenFailure, ...] = ()
        self._nowhere: tuple[ListenFailure, ...] = ()
        self._failures: tuple[ListenFailure, ...] = ()
        self._wanted: tuple[health.HealthCheckPort, ...] = ()

    @property
    def listeners(self) -> int:
        """The number of sockets that listen."""
        return len(self._listeners)

    @property
    def failures(self) -> tuple[ListenFailure, ...]:
        """What could not listen when it was last tried."""
        return self._failures

    def update(
        self,
        desired: Iterable[health.HealthCheckPort],
        *,
        listen_on: Mapping[addresses.Family, Sequence[bytes]],
    ) -> tuple[ListenFailure, ...]:
        """Make these the health check node ports; return what cannot listen now.

        `listen_on` has the packed addresses of each family, see `plan.health.listen_addresses`. A family that it does
        not have is not served; one without an address is a failure of all its ports.
        """
        self._wanted = tuple(desired)
        ports: dict[_Port, health.HealthCheckPort] = {}
        conflicts: list[ListenFailure] = []
        for wanted in sorted(self._wanted, key=_seniority):
            port = _Port(wanted.family, wanted.port)
            winner = ports.setdefault(port, wanted)
            if winner is not wanted:
                reason = f"Service {winner.service}, which is older, has the same port"
                conflicts.append(ListenFailure(wanted.service, f"port {wanted.port} ({wanted.family.value})", reason))
        self._ports = ports
        self._conflicts = tuple(conflicts)
        self._desired = {
            _Socket(address, port.number): port for port in ports for address in listen_on.get(port.family, ())
        }
        self._nowhere = tuple(
            ListenFailure(
                wanted.service,
                f"port {port.number} ({port.family.value})",
                "the host has no address of this family on which node ports answer",
            )
            for port, wanted in ports.items()
            if port.family in listen_on and not listen_on[port.family]
        )
        gone = self._listeners.keys() - self._desired.keys()
        self._server.close(*(self._listeners.pop(key) for key in gone))
        return self._open_missing()

    def move(self, *, listen_on: Mapping[addresses.Family, Sequence[bytes]]) -> tuple[ListenFailure, ...]:
        """Let the same ports listen on these addresses; return what cannot. Costs nothing without any port."""
        return self.update(self._wanted, listen_on=listen_on) if self._wanted else ()

    def retry(self) -> tuple[ListenFailure, ...]:
        """Try again what could not listen; return what still cannot. Costs nothing when all listen."""
        return self._open_missing() if self._failures else ()

    def close(self) -> None:
        """Close all listeners."""
        self.update((), listen_on={})

    def _open_missing(self) -> tuple[ListenFailure, ...]:
        failures = [*self._conflicts, *self._nowhere]
        for key, port in self._desired.items():
            if key in self._listeners:
                continue
            service = self._ports[port].service
            try:
                self._listeners[key] = self._server.open(key.address, key.number, self._handler(port, service))
            except OSError as error:
                where = addresses.format_socket(key.address, key.number)
                failures.append(ListenFailure(service, where, error.strerror or str(error)))
        self._failures = tuple(failures)
        return self._failures

    def _handler(self, port: _Port, service: objects.ServiceName) -> server.Handler:
        # Asks for the state at the time of the request: a port that changes hands keeps its socket.
        def answer(request: messages.Request) -> messages.Response:
            current = self._ports.get(port)
            return _page(
                current.service if current else service,
                local_endpoints=current.local_endpoints if current else 0,
                healthy=self._healthy(),
            )

        return answer


def _page(service: objects.ServiceName, *, local_endpoints: int, healthy: bool) -> messages.Response:
    """What kube-proxy answers, on every path and to every method."""
    body = {
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": healthy,
    }
    return messages.Response(
        200 if local_endpoints and healthy else 503,
        msgspec.json.encode(body),
        "application/json",
        (("X-Load-Balancing-Endpoint-Weight", str(local_endpoints)),),
    )


def listen_on(rules: Iterable[node.NodeRules], local: Collection[bytes]) -> dict[addresses.Family, tuple[bytes, ...]]:
    """Return where health check node ports listen, by family. `rules` are the node's, `local` the host's addresses."""
    return {one.family: health.listen_addresses(one.node_port_prefixes, local, one.family) for one in rules}


def _seniority(port: health.HealthCheckPort) -> tuple[str, objects.ServiceName]:
    return port.seniority
