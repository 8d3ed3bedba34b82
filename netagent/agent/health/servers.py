"""The agent's own two servers, health and metrics, where the settings want them."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from netagent import settings
from netagent.agent.health import server

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0


class ServerFailure(NamedTuple):
    """A server of the agent ("health", "metrics") that cannot listen, why, and where it stays if it did listen."""

    server: str
    address: settings.SocketAddress
    reason: str
    kept: settings.SocketAddress | None = None

    def __str__(self) -> str:
        stays = f"; it goes on listening on {self.kept}" if self.kept else ""
        return f"the {self.server} server cannot listen on {self.address}: {self.reason}{stays}"


class _Binding:
    """Where one server should listen, and where it does."""

    def __init__(self, name: str, serving: server.Server, handler: server.Handler) -> None:
        self.name = name
        self.server = serving
        self.handler = handler
        self.wanted: settings.SocketAddress | None = None
        self.listening: settings.SocketAddress | None = None
        self.listener: server.Listener | None = None
        self.failure: ServerFailure | None = None

    @property
    def late(self) -> bool:
        """Whether it does not listen where it should."""
        return self.wanted is not None and self.wanted != self.listening

    def try_wanted(self) -> int:
        """Listen where it should, and then no more where it does; 0, or the errno with all as it was."""
        assert self.wanted is not None
        try:
            made = self._open(self.wanted)
        except OSError as error:
            self.failure = ServerFailure(self.name, self.wanted, error.strerror or str(error), self.listening)
            return error.errno or errno.EIO
        self.close()
        self.listener, self.listening, self.failure = made, self.wanted, None
        return 0

    def reopen(self, address: settings.SocketAddress) -> None:
        """Listen again where it did. If that is impossible it listens nowhere, until what it wants becomes possible."""
        try:
            self.listener, self.listening = self._open(address), address
        except OSError as error:
            log.error("the %s server has lost %s", self.name, address, extra={"reason": error.strerror or str(error)})
        if self.failure:
            self.failure = self.failure._replace(kept=self.listening)

    def give_way(self, back_to: settings.SocketAddress | None) -> None:
        """Leave a place that another server cannot leave yet."""
        assert self.wanted is not None
        self.close()
        self.failure = ServerFailure(self.name, self.wanted, os.strerror(errno.EADDRINUSE))
        if back_to is not None:
            self.reopen(back_to)

    def close(self) -> None:
        if self.listener:
            self.server.close(self.listener)
        self.listener = self.listening = None

    def _open(self, address: settings.SocketAddress) -> server.Listener:
        """Everywhere means both families, as in kube-proxy."""
        return self.server.open(address.address.packed, address.port, self.handler, both_families=True)


class AgentServers:
    """Keeps the health server and the metrics server listening.

    Owns: their listeners, on two Servers, so that a long scrape does not keep a probe waiting. Use: `use` with the
    settings at start and after each reload, `ensure` in every turn of the loop, `hurry` when the host has other
    addresses.
    Goals: a port that is taken is tried again every 5 s, for ever; a server that cannot move stays where it is, and
    moves as soon as it can.
    Threading: none.
    """

    def __init__(
        self,
        *,
        health: server.Server,
        health_handler: server.Handler,
        metrics: server.Server,
        metrics_handler: server.Handler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._health = _Binding("health", health, health_handler)
        self._metrics = _Binding("metrics", metrics, metrics_handler)
        self._bindings = (self._health, self._metrics)
        self._clock = clock
        self._next_try: float | None = None

    def use(self, wanted: settings.Settings) -> tuple[ServerFailure, ...]:
        """Listen where these settings say; return what cannot. With `bind_address_hard_fail` that ends the agent at its
        start, and means later that the settings are refused: `use` the old ones again."""
        self._health.wanted = wanted.healthz_bind_address
        self._metrics.wanted = wanted.metrics_bind_address
        return self._move()

    def ensure(self) -> tuple[ServerFailure, ...]:
        """Try again, when it is time, what does not listen; return what failed this time. Mostly does nothing."""
        if self._next_try is None or self._clock() < self._next_try:
            return ()
        return self._move()

    def hurry(self) -> None:
        """What does not listen may be able to now: have `ensure` try it at once."""
        if self._next_try is not None:
            self._next_try = self._clock()

    def close(self) -> None:
        """Stop listening."""
        for binding in self._bindings:
            binding.close()
            binding.wanted = None
        self._next_try = None

    def _move(self) -> tuple[ServerFailure, ...]:
        late = [binding for binding in self._bindings if binding.late]
        before = {binding.name: binding.failure for binding in late}
        blocked = [binding for binding in late if binding.try_wanted() == errno.EADDRINUSE]
        moved = any(not binding.late for binding in late)
        # Once for each trouble: else a port that somebody else has would cost a gap every few seconds.
        if any(self._in_our_own_way(one) and (moved or before[one.name] != one.failure) for one in blocked):
            self._move_together([binding for binding in late if binding.late])
        for binding in self._bindings:
            if not binding.late:
                binding.failure = None
        failures = tuple(binding.failure for binding in self._bindings if binding.failure)
        self._next_try = self._clock() + RETRY_SECONDS if failures else None
        return failures

    def _in_our_own_way(self, blocked: _Binding) -> bool:
        """Whether it may be a socket of ours, which is to move as well, that has the port already."""
        return any(
            binding.late and binding.listening is not None and binding.listening.port == blocked.wanted.port
            for binding in self._bindings
            if blocked.wanted is not None
        )

    def _move_together(self, moving: list[_Binding]) -> None:
        """Leave the old places first, for as long as it takes to open the new ones. Who cannot move goes back, also
        when another one has to give way for that."""
        left = {binding.name: binding.listening for binding in moving}
        for binding in moving:
            binding.close()
        for binding in moving:
            binding.try_wanted()
        taken = {binding.listening.port: binding for binding in moving if binding.listening is not None}
        for binding in moving:
            place = left[binding.name]
            if not binding.late or place is None:
                continue
            if (other := taken.get(place.port)) is not None:
                other.give_way(left[other.name])
            binding.reopen(place)
