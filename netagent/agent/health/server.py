"""An HTTP server for very many sockets that are asked rarely: one thread, one epoll."""

from __future__ import annotations

import contextlib
import email.utils
import errno
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from netagent.agent.health import messages
from netagent.model import addresses

log = logging.getLogger(__name__)

Handler = Callable[[messages.Request], messages.Response]
# Looks at a client before its request is answered: None to answer it, else what it gets instead.
Admit = Callable[[socket.socket], messages.Response | None]

_BACKLOG: Final = 128
_ACCEPTS_A_TURN: Final = 32
_READ_BYTES: Final = 16384
# Bytes of a request's body that are read and thrown away, so that closing does not reset the connection before the
# client has our answer.
_DRAIN_BYTES_MOST: Final = 1 << 20
_TICK_SECONDS: Final = 0.5
_CLOSE_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.05
# The process, the host or its memory is at its limit: connections go before listeners.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Limits(NamedTuple):
    """What clients may take. Beyond a number of connections the oldest one goes, so that idlers keep nobody out."""

    connections: int = 512
    connections_a_listener: int = 64
    request_seconds: float = 5.0
    response_seconds: float = 10.0


_LIMITS: Final = Limits()


class Listener:
    """A listening socket and what answers there. Made by `Server.open`, with a packed `address`, or by `Server.adopt`,
    without one."""

    __slots__ = ("address", "admit", "connections", "handler", "port", "socket")

    def __init__(
        self, listening: socket.socket, address: bytes, handler: Handler, *, admit: Admit = lambda client: None
    ) -> None:
        self.socket = listening
        self.address = address
        self.port: int = listening.getsockname()[1] if address else 0
        self.handler = handler
        self.admit = admit
        self.connections: dict[int, _Connection] = {}

    def __str__(self) -> str:
        return addresses.format_socket(self.address, self.port) if self.address else "the local socket"


class _Connection:
    """A client that has not sent all of its request, or not taken all of its answer."""

    __slots__ = ("answered", "deadline", "drained", "listener", "received", "socket", "unsent")

    def __init__(self, accepted: socket.socket, listener: Listener, deadline: float) -> None:
        self.socket = accepted
        self.listener = listener
        self.deadline = deadline
        self.received = bytearray()
        self.unsent = memoryview(b"")
        self.answered = False
        self.drained = 0  # bytes thrown away that came after the head of the request


class Server:
    """Listeners that one thread serves.

    Owns: the thread, its epoll, the listeners and their connections.
    Use: `open` and `close` listeners from any thread; `stop` at the end. Handlers run in the thread of the server and
    must return soon, because meanwhile nobody else is served: what takes long gets a Server of its own.
    Goals: an idle listener costs one file descriptor and no time; no client can keep the others out, whatever it sends
    or does not send; what is asked while a listener closes is answered by its handler.
    Threading: sockets belong to the thread of the server, others hand it calls.
    """

    def __init__(self, name: str, *, limits: Limits = _LIMITS, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._limits = limits
        self._clock = clock
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._calls: deque[Callable[[], None]] = deque()
        self._listeners: dict[int, Listener] = {}
        self._connections: dict[int, _Connection] = {}  # oldest first
        self._spare = _spare()
        self._stopping = False
        self._start = threading.Lock()
        self._waking = threading.Lock()
        self._thread: threading.Thread | None = None
        self._next_look = 0.0
        self._date = (0, "")

    # --- from any thread -----------------------------------------------------------------------------------

    def open(self, address: bytes, port: int, handler: Handler, *, both_families: bool = False) -> Listener:
        """Listen on a packed address and a port (0: any free one). OSError if that is impossible.

        An IPv6 socket serves IPv6 alone, unless `both_families` and the address is unspecified.
        """
        listening = _listening(address, port, both_families=both_families)
        return self._begin(Listener(listening, address, handler))

    def adopt(self, listening: socket.socket, handler: Handler, *, admit: Admit) -> Listener:
        """Serve a UNIX socket that listens already, and close it with its listener. `admit` is asked of each client."""
        listening.setblocking(False)
        return self._begin(Listener(listening, b"", handler, admit=admit))

    def _begin(self, listener: Listener) -> Listener:
        self._hand_over(lambda: self._add(listener))
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        return listener

    def close(self, *listeners: Listener) -> None:
        """Close these listeners; when it returns, others may listen there."""
        done = threading.Event()

        def close_all() -> None:
            for listener in listeners:
                self._remove(listener)
            done.set()

        if not listeners:
            return
        self._hand_over(close_all)
        if not done.wait(_CLOSE_SECONDS):
            log.error("the %s server does not close its listeners", self._name)

    def stop(self) -> None:
        """Close everything and end the thread. The Server cannot be used again."""

        def end() -> None:
            self._stopping = True

        with self._start:
            thread = self._thread
            if thread is None:
                self._thread = thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
        self._hand_over(end)
        thread.join(_CLOSE_SECONDS)

    def _hand_over(self, call: Callable[[], None]) -> None:
        if self._stopping:
            raise RuntimeError(f"the {self._name} server has been stopped")
        with self._waking:  # the thread may be awake, carry this out, and end, before it is woken
            self._calls.append(call)
            os.eventfd_write(self._wake, 1)

    # --- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            timeout = _TICK_SECONDS if self._connections else None
            for descriptor, _ in self._epoll.poll(timeout):
                try:
                    self._serve(descriptor)
                except Exception:  # the outermost loop: one bad connection must not end all health checks
                    log.exception("the %s server failed to serve a connection", self._name)
                    self._drop(self._connections.get(descriptor))
            while self._calls:
                try:
                    self._calls.popleft()()
                except OSError:
                    log.exception("the %s server cannot watch a listener", self._name)
            if self._connections and self._clock() >= self._next_look:
                self._expire()
        for connection in list(self._connections.values()):
            self._drop(connection)
        for listener in list(self._listeners.values()):
            self._remove(listener)
        self._epoll.close()
        with self._waking:
            os.close(self._wake)
        if self._spare is not None:
            os.close(self._spare)

    def _serve(self, descriptor: int) -> None:
        """Do what a ready descriptor is ready for. It may be closed by now, or be another one."""
        if descriptor == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        elif listener := self._listeners.get(descriptor):
            self._accept(listener)
        elif connection := self._connections.get(descriptor):
            self._advance(connection)

    def _add(self, listener: Listener) -> None:
        self._listeners[listener.socket.fileno()] = listener
        self._epoll.register(listener.socket, select.EPOLLIN)

    def _remove(self, listener: Listener) -> None:
        """Close a listener. Who has connected already keeps the connection, and gets an answer."""
        if self._listeners.pop(listener.socket.fileno(), None) is not None:
            for _ in range(_BACKLOG // _ACCEPTS_A_TURN + 1):
                if not self._accept(listener):
                    break
            # Closing would not do that for a socket of which somebody has another descriptor.
            self._epoll.unregister(listener.socket)
            listener.socket.close()

    def _accept(self, listener: Listener) -> bool:
        """Accept some connections; False when nobody waits any more."""
        for _ in range(_ACCEPTS_A_TURN):
            try:
                accepted, _peer = listener.socket.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._make_room(listener)
                continue  # else it was the client's fault, and the next one is another
            deadline = self._clock() + self._limits.request_seconds
            connection = _Connection(accepted, listener, deadline)
            self._keep(connection)
            self._advance(connection)
        return True

    def _make_room(self, listener: Listener) -> None:
        """Out of descriptors: the oldest connection goes, or without any the client that waits does."""
        if self._connections:
            self._drop(next(iter(self._connections.values())))
        elif self._spare is None:
            time.sleep(_PAUSE_SECONDS)  # others of this process have taken the last one; do not spin meanwhile
            self._spare = _spare()
        else:
            os.close(self._spare)
            with contextlib.suppress(OSError):
                listener.socket.accept()[0].close()
            self._spare = _spare()

    def _keep(self, connection: _Connection) -> None:
        """Watch a new connection; beyond the limits the oldest one goes."""
        descriptor = connection.socket.fileno()
        siblings = connection.listener.connections
        siblings[descriptor] = self._connections[descriptor] = connection
        if len(siblings) > self._limits.connections_a_listener:
            self._drop(next(iter(siblings.values())))
        if len(self._connections) > self._limits.connections:
            self._drop(next(iter(self._connections.values())))

    def _drop(self, connection: _Connection | None) -> None:
        if connection is not None:
            descriptor = connection.socket.fileno()
            self._connections.pop(descriptor, None)
            connection.listener.connections.pop(descriptor, None)
            connection.socket.close()  # leaves the epoll by that, too

    def _expire(self) -> None:
        now = self._clock()
        self._next_look = now + _TICK_SECONDS
        for connection in [one for one in self._connections.values() if one.deadline <= now]:
            self._drop(connection)

    def _advance(self, connection: _Connection) -> None:
        """Read, answer and write as far as that goes without waiting; then wait for what is missing, or close."""
        try:
            if not connection.answered and not self._read(connection):
                return
            if connection.unsent:
                sent = connection.socket.send(connection.unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                connection.unsent = connection.unsent[sent:]
                if connection.unsent:
                    self._await(connection, select.EPOLLOUT)
                    return
            if not self._drain(connection):
                return
        except BlockingIOError:
            self._await(connection, select.EPOLLOUT if connection.unsent else select.EPOLLIN)
            return
        except OSError:
            pass  # the client has gone
        self._drop(connection)

    def _await(self, connection: _Connection, mask: int) -> None:
        try:
            self._epoll.modify(connection.socket, mask)
        except FileNotFoundError:
            self._epoll.register(connection.socket, mask)

    def _read(self, connection: _Connection) -> bool:
        """Read; True when there is an answer to send. BlockingIOError when more of the request has to come."""
        while True:
            data = connection.socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            if not data:
                self._drop(connection)
                return False
            searched = len(connection.received)
            connection.received += data
            if not messages.has_head(connection.received, searched=searched):
                continue
            try:
                request = messages.request_of(connection.received)
            except messages.RequestError as error:
                response = messages.Response(error.status, f"{error}\n".encode())
                self._answer(connection, response, has_more=True)
                return True
            if request is not None:
                has_more = "transfer-encoding" in request.fields or request.fields.get("content-length", "0") != "0"
                response = self._response_to(request, connection)
                self._answer(connection, response, has_more=has_more, with_body=request.method != "HEAD")
                return True

    def _response_to(self, request: messages.Request, connection: _Connection) -> messages.Response:
        listener = connection.listener
        try:
            return listener.admit(connection.socket) or listener.handler(request)
        except Exception:  # the outermost loop: a bug in one page must not end the others
            log.exception("cannot answer %s %r on %s", request.method, request.target, listener)
            return messages.Response(500, b"internal error, see the log\n")

    def _answer(
        self, connection: _Connection, response: messages.Response, *, has_more: bool, with_body: bool = True
    ) -> None:
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, email.utils.formatdate(now, usegmt=True))
        connection.unsent = memoryview(messages.bytes_of(response, date=self._date[1], with_body=with_body))
        connection.answered = True
        connection.received.clear()
        connection.deadline = self._clock() + self._limits.response_seconds
        connection.drained = 0 if has_more else _DRAIN_BYTES_MOST

    def _drain(self, connection: _Connection) -> bool:
        """Throw away what the client goes on to send; True when it has finished, or we are tired of it."""
        if connection.drained == 0:
            connection.socket.shutdown(socket.SHUT_WR)
        while connection.drained < _DRAIN_BYTES_MOST:
            data = connection.socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            if not data:
                break
            connection.drained += len(data)
        return True


def raise_open_files_limit() -> int:
    """Let this process open as many files as it may, and return how many; each listener is one.

    Without that the limit is often 1024: too few for some hundred Services in two families.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def _listening(address: bytes, port: int, *, both_families: bool) -> socket.socket:
    """A listening socket. Where the host has no IPv6 at all, everywhere in both families is everywhere in IPv4."""
    if both_families and not any(address):
        try:
            return _bound(bytes(16), port, v6_only=False)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            address = bytes(4)
    return _bound(address, port, v6_only=True)


def _bound(address: bytes, port: int, *, v6_only: bool) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if len(address) == 16 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if len(address) == 16:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        made.bind((addresses.format_address(address), port))
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _spare() -> int | None:
    """A descriptor to give up when there is none left; None if that is so already."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
