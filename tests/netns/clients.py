"""Clients: one connection attempt with real packets, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import errno
import itertools
import os
import socket
import struct
from typing import Any

from . import layout as layouts
from . import sctp, servers, universe

FIRST_PORT, LAST_PORT = 45000, 64999  # above node ports, and above what cases use as fixed source ports
# linux/in.h, linux/in6.h
IP_RECVERR, IPV6_RECVERR = 11, 25


class Fate(enum.StrEnum):
    """What became of a connection attempt."""

    DELIVERED = "delivered"
    REFUSED = "refused"  # ECONNREFUSED
    DENIED = "denied"  # EPERM: this host's own rules stopped the datagram
    SILENT = "silent"  # nothing within the time
    FAILED = "failed"  # any other error; `detail` says which


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The fate of one attempt. `arrival` is there when it was delivered, `source` is the client's own socket."""

    fate: Fate
    source: tuple[str, int]
    arrival: servers.Arrival | None = None
    detail: str = ""

    def __str__(self) -> str:
        if self.arrival is not None:
            return f"reached {self.arrival}"
        return f"{self.fate} ({self.detail})" if self.detail else str(self.fate)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    """One attempt to be made. `source_port` 0 picks one that no attempt of this universe had before."""

    place: layouts.Place
    source: str
    destination: str
    port: int
    protocol: str
    source_port: int = 0
    mark: int = 0
    patience: float = 30.0  # seconds until silence counts as such

    @property
    def version(self) -> int:
        return 6 if ":" in self.destination else 4


class Clients:
    """Everyone who dials in a universe.

    Owns: the sockets of held connections and streams. Use: `dial` for an attempt that is over when it returns; `hold`
    and `ask` for a connection that stays; `stream` for a datagram socket that stays. Threading: the loop's thread.
    """

    def __init__(self, space: universe.Universe, endpoints: servers.Servers, loop: asyncio.AbstractEventLoop) -> None:
        self._space = space
        self._endpoints = endpoints
        self._loop = loop
        self._ports = itertools.cycle(range(FIRST_PORT, LAST_PORT + 1))
        self._tokens = itertools.count(int.from_bytes(os.urandom(3)) + 1)
        self._held: dict[str, socket.socket] = {}
        self._streams: dict[str, socket.socket] = {}

    async def dial(self, dial: Dial) -> Outcome:
        """Make one attempt and leave nothing behind."""
        match dial.protocol:
            case "tcp":
                outcome, connection = await self._connect(dial)
                connection.close()
                return outcome
            case "udp":
                with self._bound(dial, socket.SOCK_DGRAM) as made:
                    return await self._datagram(made, dial)
            case "sctp":
                return await self._init(dial)
            case "icmp":
                return await self._ping(dial)
            case _:
                return Outcome(Fate.FAILED, (dial.source, 0), detail=f"no client for protocol {dial.protocol!r}")

    async def hold(self, name: str, dial: Dial) -> Outcome:
        """Connect by TCP and keep the connection under a name; it is kept even if it failed."""
        outcome, connection = await self._connect(dial)
        self._close(self._held.pop(name, None))
        self._held[name] = connection
        return outcome

    async def ask(self, name: str, patience: float = 30.0) -> Outcome:
        """Send something over a held connection and return who answers. KeyError if nothing was held so."""
        connection = self._held[name]
        source = connection.getsockname()[:2]
        try:
            async with asyncio.timeout(patience):
                await self._loop.sock_sendall(connection, b"?\n")
                return Outcome(Fate.DELIVERED, source, await self._line(connection))
        except (OSError, EOFError, ValueError) as error:
            return _failure(source, error)

    async def stream(self, name: str, dial: Dial) -> Outcome:
        """Send one datagram from the socket of this name, which the first call binds and connects."""
        if name not in self._streams:
            self._streams[name] = self._bound(dial, socket.SOCK_DGRAM)
        return await self._datagram(self._streams[name], dial)

    def close(self) -> None:
        """Close what is held."""
        for made in (*self._held.values(), *self._streams.values()):
            self._close(made)
        self._held.clear()
        self._streams.clear()

    @staticmethod
    def _close(made: socket.socket | None) -> None:
        if made is not None:
            made.close()

    def _bound(self, dial: Dial, kind: int, protocol: int = 0) -> socket.socket:
        made = self._space.place(dial.place).socket(servers.FAMILIES[dial.version], kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if dial.mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, dial.mark)
        if kind == socket.SOCK_STREAM:
            # leave by reset: no TIME_WAIT that would keep a fixed source port from being used again
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while True:
            port = 0 if kind == socket.SOCK_RAW else dial.source_port or next(self._ports)
            try:
                made.bind((dial.source, port))
                return made
            except OSError as error:
                if error.errno != errno.EADDRINUSE or dial.source_port:
                    made.close()
                    raise

    async def _connect(self, dial: Dial) -> tuple[Outcome, socket.socket]:
        made = self._bound(dial, socket.SOCK_STREAM)
        source = made.getsockname()[:2]
        try:
            async with asyncio.timeout(dial.patience):
                await self._loop.sock_connect(made, (dial.destination, dial.port))
                return Outcome(Fate.DELIVERED, source, await self._line(made)), made
        except (OSError, EOFError, ValueError) as error:
            return _failure(source, error), made

    async def _line(self, connection: socket.socket) -> servers.Arrival:
        """The next answer of the endpoint; several that wait are taken as one."""
        data = b""
        while not data.endswith(b"\n"):
            more = await self._loop.sock_recv(connection, servers.DATAGRAM_BYTES)
            if not more:
                raise EOFError("the endpoint closed the connection")
            data += more
        return servers.decode_arrival(data.splitlines()[-1])[0]

    async def _datagram(self, made: socket.socket, dial: Dial) -> Outcome:
        source = made.getsockname()[:2]
        token = str(next(self._tokens))
        try:
            async with asyncio.timeout(dial.patience):
                made.connect((dial.destination, dial.port))
                made.send(token.encode())
                while True:  # answers to an earlier datagram of a stream may come late
                    arrival, echoed = servers.decode_arrival(await self._loop.sock_recv(made, servers.DATAGRAM_BYTES))
                    if echoed == token:
                        return Outcome(Fate.DELIVERED, source, arrival)
        except (OSError, ValueError) as error:
            seen = self._endpoints.datagrams.get(token)
            if seen is not None:
                return Outcome(Fate.FAILED, source, detail=f"reached {seen}, but no answer came back")
            return _failure(source, error)

    async def _init(self, dial: Dial) -> Outcome:
        """Send an SCTP INIT; it is delivered when an endpoint has seen it. Nothing is answered."""
        port, tag = dial.source_port or next(self._ports), next(self._tokens)
        source = (dial.source, port)
        seen: asyncio.Future[servers.Arrival] = self._loop.create_future()
        self._endpoints.sctp_waiters[tag] = seen
        with self._bound(dial, socket.SOCK_RAW, sctp.PROTOCOL) as made:
            self._hear_errors(made, dial)
            refused = self._loop.create_task(self._error_of(made))
            try:
                made.send(sctp.make_init(port, dial.port, tag))
                racing: set[asyncio.Future[Any]] = {seen, refused}
                done, _ = await asyncio.wait(racing, timeout=dial.patience, return_when=asyncio.FIRST_COMPLETED)
            except OSError as error:
                return _failure(source, error)
            finally:
                refused.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await refused
                del self._endpoints.sctp_waiters[tag]
        if seen in done:
            return Outcome(Fate.DELIVERED, source, seen.result())
        return _failure(source, refused.result() if refused in done else TimeoutError())

    async def _error_of(self, made: socket.socket) -> OSError:
        """Wait for an ICMP error that concerns a connected raw socket."""
        while True:
            try:
                await self._loop.sock_recv(made, servers.DATAGRAM_BYTES)
            except OSError as error:
                return error

    @staticmethod
    def _hear_errors(made: socket.socket, dial: Dial) -> None:
        """Connect a raw socket so that ICMP errors about its packets reach it."""
        if dial.version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        made.connect((dial.destination, 0))

    async def _ping(self, dial: Dial) -> Outcome:
        """Send an ICMP echo request. Delivered means answered; the arrival then names the address pinged."""
        kind = socket.IPPROTO_ICMPV6 if dial.version == 6 else socket.IPPROTO_ICMP
        token = f"netagent-{next(self._tokens)}".encode()
        source = (dial.source, 0)
        with self._bound(dial, socket.SOCK_RAW, kind) as made:
            try:
                self._hear_errors(made, dial)
                async with asyncio.timeout(dial.patience):
                    made.send(sctp.make_echo(dial.version, next(self._ports), token))
                    while True:
                        packet = await self._loop.sock_recv(made, servers.DATAGRAM_BYTES)
                        if sctp.is_echo_reply(dial.version, packet, token):
                            place = self._space.layout.place_of(dial.destination)
                            arrival = servers.Arrival(place, (dial.destination, 0), source)
                            return Outcome(Fate.DELIVERED, source, arrival)
            except OSError as error:
                return _failure(source, error)


def _failure(source: tuple[str, int], error: Exception) -> Outcome:
    number = getattr(error, "errno", None)
    if isinstance(error, TimeoutError) and number is None:
        return Outcome(Fate.SILENT, source)
    if number == errno.ECONNREFUSED:
        return Outcome(Fate.REFUSED, source)
    if number == errno.EPERM:
        return Outcome(Fate.DENIED, source)
    return Outcome(Fate.FAILED, source, detail=f"{type(error).__name__}: {error}")
