"""Endpoints: whoever connects learns which endpoint it reached, and whom that endpoint sees."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from . import layout as layouts
from . import sctp, universe

# linux/in.h, linux/in6.h; the socket module of Python 3.11 knows the IPv6 ones only
IP_PKTINFO = 8
IN_PKTINFO = struct.Struct("=I4s4s")  # interface, address to send from, address in the header
IN6_PKTINFO = struct.Struct("=16sI")
DATAGRAM_BYTES = 4096
TCP_SYN_RECV = 3  # linux/tcp_states.h
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Arrival(NamedTuple):
    """What an endpoint knows of a connection: the namespace it is in, its own socket, its peer's socket."""

    place: layouts.Place
    local: tuple[str, int]
    peer: tuple[str, int]

    def __str__(self) -> str:
        return f"{layouts.join_socket(*self.local)} (in {self.place}), which saw {self.peer[0]}"


def encode_arrival(arrival: Arrival, token: str = "") -> bytes:
    """The answer of an endpoint: one line."""
    return json.dumps([arrival.place, arrival.local, arrival.peer, token]).encode() + b"\n"


def decode_arrival(line: bytes) -> tuple[Arrival, str]:
    """Return the arrival and the client's token of an endpoint's answer. ValueError if it is not one."""
    place, local, peer, token = json.loads(line)
    return Arrival(layouts.Place(place), (local[0], local[1]), (peer[0], peer[1])), token


class Servers:
    """All endpoints of a universe, answering while the event loop runs.

    Owns: its sockets. A listener is bound to no address: the packet's destination says which endpoint it is. Use:
    `listen` any number of times, at any moment; `close` at the end. `datagrams` maps the token in a datagram to its
    arrival, `sctp_waiters` an INIT's tag to whoever waits for it. Threading: the thread of the loop.
    """

    def __init__(self, space: universe.Universe, loop: asyncio.AbstractEventLoop) -> None:
        self._space = space
        self._loop = loop
        self._sockets: set[socket.socket] = set()
        self._listening: set[tuple[layouts.Place, int, str, int]] = set()
        self.sctp_waiters: dict[int, asyncio.Future[Arrival]] = {}
        self.datagrams: dict[str, Arrival] = {}

    def listen(self, place: layouts.Place, family: int, ports: Iterable[tuple[str, int]]) -> list[str]:
        """Answer on these (protocol, port) in a place, for IP version `family`.

        Return a sentence for each port that another process holds; the others answer. What is asked twice is done once.
        """
        taken = []
        for protocol, port in sorted(ports):
            key = (place, family, protocol, 0 if protocol == "sctp" else port)
            if key in self._listening:
                continue
            try:
                self._open(place, family, protocol, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                taken.append(f"{protocol} port {port} of {place} is taken by another process")
            self._listening.add(key)
        return taken

    def _open(self, place: layouts.Place, family: int, protocol: str, port: int) -> None:
        namespace, kind = self._space.place(place), FAMILIES[family]
        match protocol:
            case "tcp":
                made = namespace.socket(kind, socket.SOCK_STREAM)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                ready: Callable[[layouts.Place, socket.socket], None] = self._accept
            case "udp":
                made = namespace.socket(kind, socket.SOCK_DGRAM)
                ready = self._answer_datagrams
            case "sctp":
                made, port = namespace.socket(kind, socket.SOCK_RAW, sctp.PROTOCOL), 0
                ready = self._note_inits
            case _:
                raise ValueError(f"no server for protocol {protocol!r}")
        self._sockets.add(made)
        if kind == socket.AF_INET6:
            if protocol != "sctp":  # a raw socket is of one family anyway
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        if protocol != "sctp":
            made.bind(("", port))
        if protocol == "tcp":
            made.listen(1024)
        self._loop.add_reader(made, functools.partial(ready, place, made))

    def _accept(self, place: layouts.Place, listener: socket.socket) -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:  # nobody left in the queue, or gone before we looked
                return
            connection.setblocking(False)
            local = connection.getsockname()
            answer = encode_arrival(Arrival(place, local[:2], peer[:2]))
            self._sockets.add(connection)
            self._loop.add_reader(connection, functools.partial(self._answer_stream, connection, answer))
            with contextlib.suppress(OSError):
                connection.send(answer)

    def _answer_stream(self, connection: socket.socket, answer: bytes) -> None:
        try:
            if connection.recv(DATAGRAM_BYTES):
                connection.send(answer)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._drop(connection)

    def _answer_datagrams(self, place: layouts.Place, server: socket.socket) -> None:
        while True:
            try:
                data, control, _, peer = server.recvmsg(DATAGRAM_BYTES, 256)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error about an earlier answer
                continue
            own = destination_of(control)
            arrival = Arrival(place, (own, server.getsockname()[1]), peer[:2])
            token = data.decode(errors="replace")
            self.datagrams[token] = arrival
            with contextlib.suppress(OSError):
                server.sendmsg([encode_arrival(arrival, token)], [_sent_from(own)], 0, peer)

    def _note_inits(self, place: layouts.Place, server: socket.socket) -> None:
        while True:
            try:
                data, control, _, peer = server.recvmsg(DATAGRAM_BYTES, 256)
            except OSError:
                return
            if server.family == socket.AF_INET:
                data = data[(data[0] & 15) * 4 :]
            init = sctp.parse_init(data)
            waiter = self.sctp_waiters.get(init.tag) if init else None
            if init and waiter and not waiter.done():
                local = (destination_of(control), init.destination_port)
                waiter.set_result(Arrival(place, local, (peer[0], init.source_port)))

    def half_open(self) -> list[str]:
        """Connections whose SYN arrived at an endpoint while the answer never reached the client, as sentences."""
        found = []
        for place in layouts.Place:
            for table in ("tcp", "tcp6"):
                with self._space.place(place).entered(), contextlib.suppress(FileNotFoundError):
                    lines = Path("/proc/thread-self/net", table).read_text().splitlines()[1:]
                    found += [
                        f"{_proc_socket(local)} (in {place}) from {_proc_socket(peer)}"
                        for local, peer, state in (line.split()[1:4] for line in lines)
                        if int(state, 16) == TCP_SYN_RECV
                    ]
        return found

    def _drop(self, connection: socket.socket) -> None:
        self._loop.remove_reader(connection)
        connection.close()
        self._sockets.discard(connection)

    def close(self) -> None:
        """Close everything; closing twice is fine."""
        for made in list(self._sockets):
            self._drop(made)


def destination_of(control: Iterable[tuple[int, int, bytes]]) -> str:
    """The address a datagram was sent to, from its ancillary data. LookupError if that does not tell."""
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            return socket.inet_ntop(socket.AF_INET, IN_PKTINFO.unpack(data[: IN_PKTINFO.size])[2])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return socket.inet_ntop(socket.AF_INET6, IN6_PKTINFO.unpack(data[: IN6_PKTINFO.size])[0])
    raise LookupError("no packet info with the datagram")


def _proc_socket(text: str) -> str:
    """`address:port` of a socket in /proc/net/tcp: hexadecimal, addresses in words of this machine's byte order."""
    address, port = text.split(":")
    words = struct.unpack(f"!{len(address) // 8}I", bytes.fromhex(address))
    packed = struct.pack(f"={len(words)}I", *words)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return layouts.join_socket(socket.inet_ntop(family, packed), int(port, 16))


def _sent_from(address: str) -> tuple[int, int, Any]:
    """Ancillary data that makes a datagram leave from this address."""
    if ":" in address:
        packed = IN6_PKTINFO.pack(socket.inet_pton(socket.AF_INET6, address), 0)
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed
    return socket.IPPROTO_IP, IP_PKTINFO, IN_PKTINFO.pack(0, socket.inet_aton(address), bytes(4))
