"""Clients that mean ill: the servers go on for everybody else, and the agent's loop does not notice.

Nothing here looks at the clock: that a server is not held up is shown by who is still there when others are served, and
by how often it has to wake up for them.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from netagent.agent.health import messages, server
from tests import builders, kernel, patience
from tests.agent import live_agent
from tests.agent import test_health_client as http_client
from tests.apiserver import ApiServer

LOOPBACK = bytes([127, 0, 0, 1])
GET = b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"
# Nobody goes because of the time here.
LIMITS = server.Limits(request_seconds=patience.AN_HOUR, response_seconds=patience.AN_HOUR)


class CountingEpoll:
    """An epoll that counts how often its owner wakes up."""

    def __init__(self, real: select.epoll) -> None:
        self._real = real
        self.turns = 0

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        found = self._real.poll(timeout)
        self.turns += bool(found)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Requests:
    """A handler that keeps what it was asked."""

    def __init__(self, body: bytes = b"hello") -> None:
        self.paths: list[str] = []
        self._body = body

    def __call__(self, request: messages.Request) -> messages.Response:
        self.paths.append(request.path)
        return messages.Response(200, self._body)


@pytest.fixture
def serving() -> Iterator[server.Server]:
    made = server.Server("test", limits=LIMITS)
    yield made
    made.stop()


def counted(made: server.Server) -> CountingEpoll:
    """Count the turns of a server that has not begun yet."""
    epoll = CountingEpoll(made._epoll)
    made._epoll = epoll  # type: ignore[assignment]
    return epoll


def test_a_thousand_idle_connections_cost_who_asks_nothing(serving: server.Server) -> None:
    server.raise_open_files_limit()
    epoll = counted(serving)
    listener = serving.open(LOOPBACK, 0, Requests())

    def turns_for(asked: int) -> int:
        before = epoll.turns
        for _ in range(asked):
            assert http_client.ask(listener.port).status == 200
        return epoll.turns - before

    alone = turns_for(20)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(http_client.connect(listener.port)) for _ in range(1000)]
        for client in idle[-30:]:
            client.sendall(b"GET / HT")  # half a request
        patience.until(lambda: len(listener.connections) == LIMITS.connections_a_listener, "the latest are kept")
        assert turns_for(20) <= 2 * alone + 40
        # Those in excess were told to go, the first ones first.
        assert idle[0].recv(1) == b""
        assert len(listener.connections) <= LIMITS.connections_a_listener


def test_many_requests_at_once_get_one_answer_and_the_end(serving: server.Server) -> None:
    asked = Requests()
    listener = serving.open(LOOPBACK, 0, asked)
    with http_client.connect(listener.port) as client:
        client.sendall(b"GET /first HTTP/1.1\r\n\r\n" + b"GET /smuggled HTTP/1.1\r\n\r\n" * 500)
        client.shutdown(socket.SHUT_WR)
        said = http_client.read_all(client)
    assert said.count(b"HTTP/1.1 200") == 1
    assert asked.paths == ["/first"]


def test_the_body_of_a_request_is_no_request(serving: server.Server) -> None:
    asked = Requests()
    listener = serving.open(LOOPBACK, 0, asked)
    with http_client.connect(listener.port) as client:
        client.sendall(b"POST /a HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET)
        client.shutdown(socket.SHUT_WR)
        assert http_client.read_all(client).count(b"HTTP/1.1") == 1
    assert asked.paths == ["/a"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 9000,
        b"GET /" + b"a" * 9000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000,
        b"\r\n" * 5000,
        b"GET / HTTP/1.1\r\n" + b"a:" + b"\t" * 9000 + b"\r\n\r\n",
    ],
)
def test_a_giant_head_is_refused_before_it_ends(serving: server.Server, head: bytes) -> None:
    asked = Requests()
    listener = serving.open(LOOPBACK, 0, asked)
    with http_client.connect(listener.port) as client:
        client.sendall(head)  # and no end of it
        assert http_client.answer_of(http_client.read_all(client)).status == 431
    assert asked.paths == []


def test_half_requests_that_break_off_leave_nothing(serving: server.Server) -> None:
    listener = serving.open(LOOPBACK, 0, Requests())
    for size in range(len(GET)):
        with http_client.connect(listener.port) as client:
            client.sendall(GET[:size])
            client.shutdown(socket.SHUT_WR)
            assert http_client.read_all(client) == b""
    assert http_client.ask(listener.port).status == 200
    patience.until(lambda: not listener.connections, "all connections are gone")


def test_who_never_stops_sending_is_not_read_for_ever(serving: server.Server) -> None:
    listener = serving.open(LOOPBACK, 0, Requests())
    with http_client.connect(listener.port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30:
                sent += client.send(bytes(65536))
        assert sent < 1 << 30, "somebody took a gigabyte"
    assert http_client.ask(listener.port).status == 200


def test_others_are_served_while_some_do_not_read_their_answers(serving: server.Server) -> None:
    listener = serving.open(LOOPBACK, 0, Requests(bytes(30_000_000)))
    other = serving.open(LOOPBACK, 0, Requests())
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(http_client.connect(listener.port)).sendall(GET)
        patience.until(lambda: len(listener.connections) == 10, "ten answers wait")
        for _ in range(50):
            assert http_client.ask(other.port).status == 200
        assert len(listener.connections) == 10, "they still wait"


def test_others_are_served_while_a_flood_lasts(serving: server.Server) -> None:
    flooded, other = Requests(), Requests()
    port, quiet = (serving.open(LOOPBACK, 0, handler).port for handler in (flooded, other))
    with flood(port, garbage=True):
        patience.until(lambda: len(flooded.paths) > 20, "the flood has begun")
        for _ in range(50):
            assert http_client.ask(quiet).status == 200
        before = len(flooded.paths)
        patience.until(lambda: len(flooded.paths) > before, "the flood still lasts")
    assert len(other.paths) == 50


@contextlib.contextmanager
def flood(port: int, *, clients: int = 3, garbage: bool = False) -> Iterator[None]:
    """Requests, and if wanted garbage, as fast as some threads can send them."""
    over = threading.Event()

    def ask(chance: random.Random) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, IndexError, ValueError):
                if garbage and chance.random() < 0.5:
                    with http_client.connect(port) as client:
                        client.sendall(chance.randbytes(chance.randrange(1, 3000)))
                else:
                    http_client.ask(port)

    threads = [threading.Thread(target=ask, args=(random.Random(number),)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _crowd(stack: contextlib.ExitStack, port: int) -> None:
    """Idle, slow and half clients at a server, until the end."""
    for number in range(300):
        client = stack.enter_context(http_client.connect(port))
        with contextlib.suppress(OSError):
            client.sendall((b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\n\r\n")[number % 3])


@kernel.isolated
def test_the_agent_syncs_every_change_while_its_servers_are_under_attack() -> None:
    """Counted: each change is a sync of its own, made while the attack lasts."""
    changes = 5
    live_agent.begin()
    with (
        ApiServer(live_agent.small_cluster()) as api,
        live_agent.Agent(api.url) as agent,
        contextlib.ExitStack() as stack,
    ):
        live_agent.until_right(api)
        agent.until_listening()
        ports = [int(url.rpartition(":")[2]) for url in (live_agent.METRICS, live_agent.HEALTH)]
        before = agent.metric("netagent_syncs_total", result="success")
        for port in ports:
            _crowd(stack, port)
            stack.enter_context(flood(port, clients=1, garbage=True))
        for number in range(changes):
            api.apply(builders.slice_manifest("s1", f"10.180.7.{number + 1}"))
            live_agent.until_right(api)
        for path in (f"{live_agent.HEALTH}/healthz", f"{live_agent.HEALTH}/livez", f"{live_agent.METRICS}/metrics"):
            live_agent.eventually(lambda path=path: live_agent.get(path).status == 200, what=f"{path} answers")
        assert agent.metric("netagent_syncs_total", result="success") - before == changes
        assert "Traceback" not in agent.said()
        assert "error:" not in agent.said()
        assert agent.process.poll() is None
