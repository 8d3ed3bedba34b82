"""The HTTP server: who behaves is served at once, whatever others do."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from netagent.agent.health import messages, server
from tests import patience
from tests.agent import test_health_client as http_client

LOOPBACK = bytes([127, 0, 0, 1])
LOOPBACK_6 = bytes(15) + b"\1"


def hello(request: messages.Request) -> messages.Response:
    return messages.Response(200, f"{request.method} {request.path}".encode())


class Clock:
    """The time of a server, which passes when the test says so: until then nobody is late."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def serving(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[server.Server]:
    monkeypatch.setattr(server, "_TICK_SECONDS", 0.01)  # how often it looks who is late
    limits = server.Limits(connections=40, connections_a_listener=20, request_seconds=1.0, response_seconds=1.0)
    made = server.Server("test", limits=limits, clock=clock)
    yield made
    made.stop()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts under "served" how often a server had something to do, under "told" how often it was told something."""
    counts: Counter[str] = Counter()
    serve, hand_over = server.Server._serve, server.Server._hand_over

    def served(self: server.Server, descriptor: int) -> None:
        counts["served"] += 1
        serve(self, descriptor)

    def told(self: server.Server, call: Any) -> None:
        counts["told"] += 1
        hand_over(self, call)

    monkeypatch.setattr(server.Server, "_serve", served)
    monkeypatch.setattr(server.Server, "_hand_over", told)
    return counts


def test_any_method_and_path_reaches_the_handler(serving: server.Server) -> None:
    port = serving.open(LOOPBACK, 0, hello).port
    assert http_client.ask(port, "/a?b=c").body == b"GET /a"
    assert http_client.ask(port, "/x", method="OPTIONS").body == b"OPTIONS /x"
    assert http_client.ask(port, method="PROPFIND").status == 200
    assert http_client.ask(port, method="HEAD").body == b""


def test_a_request_with_a_body_gets_its_answer_and_no_reset(serving: server.Server) -> None:
    port = serving.open(LOOPBACK, 0, hello).port
    assert http_client.ask(port, "/", method="POST", body=b"x" * 500_000).body == b"POST /"


def test_an_answer_larger_than_the_buffers_arrives_whole(serving: server.Server) -> None:
    big = os.urandom(8_000_000)
    port = serving.open(LOOPBACK, 0, lambda request: messages.Response(200, big)).port
    assert http_client.ask(port).body == big


def test_garbage_gets_400_and_the_server_lives(serving: server.Server) -> None:
    port = serving.open(LOOPBACK, 0, hello).port
    with http_client.connect(port) as client:
        client.sendall(b"\x16\x03\x01 this is not http\r\n\r\n")
        assert http_client.answer_of(http_client.read_all(client)).status == 400
    assert http_client.ask(port).status == 200


def test_an_endless_head_is_cut_off(serving: server.Server) -> None:
    port = serving.open(LOOPBACK, 0, hello).port
    with http_client.connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000)
        assert http_client.answer_of(http_client.read_all(client)).status == 431


def test_a_request_in_single_bytes_is_served(serving: server.Server) -> None:
    port = serving.open(LOOPBACK, 0, hello).port
    with http_client.connect(port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"\r\n\r\nGET /slow HTTP/1.1\r\n\r\n":
            client.send(bytes([byte]))
            time.sleep(0.01)
        assert http_client.read_all(client).endswith(b"GET /slow")


def test_who_dawdles_is_cut_off_in_time(serving: server.Server, clock: Clock) -> None:
    listener = serving.open(LOOPBACK, 0, hello)
    with http_client.connect(listener.port) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        patience.until(lambda: listener.connections)
        for _ in range(11):
            assert listener.connections, "it has a second"
            clock.now += 0.09
            time.sleep(0.02)  # the server looks who is late
            client.sendall(b"X: y\r\n")  # keeps it from being idle
        clock.now += 0.02
        patience.until(lambda: not listener.connections)


def test_who_does_not_read_is_cut_off_in_time(serving: server.Server, clock: Clock) -> None:
    listener = serving.open(LOOPBACK, 0, lambda request: messages.Response(200, bytes(50_000_000)))
    with http_client.connect(listener.port) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        patience.until(lambda: any(one.answered for one in list(listener.connections.values())))
        clock.now += 0.9
        time.sleep(0.05)  # the server looks who is late
        assert listener.connections
        clock.now += 0.2
        patience.until(lambda: not listener.connections)


def test_idle_connections_by_the_hundred_keep_nobody_out(serving: server.Server) -> None:
    flooded = serving.open(LOOPBACK, 0, hello)
    other = serving.open(LOOPBACK, 0, hello)
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(http_client.connect(flooded.port)).sendall(b"GET / HT")
        for listener in (flooded, other):
            assert http_client.ask(listener.port).status == 200  # and no time has passed that would end the idle ones
        assert len(flooded.connections) <= 20


def test_one_flooded_listener_does_not_starve_another(serving: server.Server) -> None:
    answered = 0

    def counted(request: messages.Request) -> messages.Response:
        nonlocal answered
        answered += 1
        return hello(request)

    def telling(request: messages.Request) -> messages.Response:
        return messages.Response(200, str(answered).encode())

    flooded = serving.open(LOOPBACK, 0, counted)
    other = serving.open(LOOPBACK, 0, telling)
    stopping = threading.Event()

    def flood() -> None:
        while not stopping.is_set():
            with contextlib.suppress(OSError):
                http_client.ask(flooded.port)

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        worst = 0
        for _ in range(50):
            before = answered
            patience.until(lambda before=before: answered > before, pause=0.0)  # type: ignore[misc]
            with http_client.connect(other.port) as client:
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                asked = answered
                told = http_client.answer_of(http_client.read_all(client))
            assert told.status == 200
            worst = max(worst, int(told.body) - asked)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert worst < 100, "so many of the flood were answered before one that had asked already"


def test_clients_that_vanish_leave_nothing_behind(serving: server.Server) -> None:
    listener = serving.open(LOOPBACK, 0, hello)
    for index in range(100):
        client = http_client.connect(listener.port)
        if index % 2:
            client.sendall(b"GET / HTTP/1.1\r\n")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # with a reset
    assert http_client.ask(listener.port).status == 200
    patience.until(lambda: not listener.connections)  # and no time has passed that would end them


def test_random_bytes_do_not_break_it(serving: server.Server) -> None:
    listener = serving.open(LOOPBACK, 0, hello)
    chance = random.Random(1)
    words = [b"GET ", b"/ ", b"HTTP/1.1", b"\r\n", b"\n", b"\0", b"Content-Length: 5\r\n", b":", b"\xff" * 9]
    for _ in range(300):
        with http_client.connect(listener.port) as client, contextlib.suppress(OSError):
            client.sendall(b"".join(chance.choices(words, k=chance.randrange(12))))
            client.shutdown(socket.SHUT_WR)
            raw = http_client.read_all(client)
            assert not raw or http_client.answer_of(raw).status in (200, 400, 505)
    assert http_client.ask(listener.port).status == 200


def test_a_bug_in_a_page_is_a_500_and_not_the_end(serving: server.Server, caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: messages.Request) -> messages.Response:
        raise KeyError("bug")

    port = serving.open(LOOPBACK, 0, broken).port
    assert http_client.ask(port).status == 500
    assert http_client.ask(port).status == 500
    assert "cannot answer" in caplog.text


def test_a_closed_listener_is_free_for_others_at_once(serving: server.Server) -> None:
    port = http_client.free_port()
    listener = serving.open(LOOPBACK, port, hello)
    for _ in range(20):
        assert http_client.ask(port).status == 200  # leaves connections in TIME_WAIT
        serving.close(listener)
        assert http_client.is_closed(port)
        listener = serving.open(LOOPBACK, port, hello)


def test_who_connected_before_the_listener_closed_gets_an_answer(serving: server.Server) -> None:
    listener = serving.open(LOOPBACK, 0, hello)
    clients = [http_client.connect(listener.port) for _ in range(10)]
    serving.close(listener)
    for client in clients:
        with client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert http_client.answer_of(http_client.read_all(client)).status == 200


def test_a_taken_port_is_an_error_that_names_its_reason(serving: server.Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="Address already in use"):
        serving.open(LOOPBACK, taken.getsockname()[1], hello)


@pytest.mark.skipif(not http_client.has_ipv6(), reason="this host has no IPv6")
def test_families_have_sockets_of_their_own(serving: server.Server) -> None:
    first = serving.open(bytes(16), 0, hello)
    second = serving.open(bytes(4), first.port, lambda request: messages.Response(200, b"four"))
    assert http_client.ask(first.port, host="::1").body == b"GET /"
    assert http_client.ask(second.port).body == b"four"
    third = serving.open(LOOPBACK_6, 0, hello)
    assert http_client.is_closed(third.port)


def test_everywhere_can_mean_both_families(serving: server.Server) -> None:
    port = serving.open(bytes(4), 0, hello, both_families=True).port
    assert http_client.ask(port).status == 200
    if http_client.has_ipv6():
        assert http_client.ask(port, host="::1").status == 200


def test_without_descriptors_it_turns_clients_away_and_recovers(serving: server.Server, turns: Counter[str]) -> None:
    port = serving.open(LOOPBACK, 0, hello).port
    assert http_client.ask(port).status == 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [socket.socket() for _ in range(4)]
    used = [int(name) for name in os.listdir("/proc/self/fd")]
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] <= max(used):  # the lowest free number comes first: now there is no hole
        fillers.append(os.open(os.devnull, os.O_RDONLY))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1, hard))
        for client in clients:
            client.settimeout(patience.HANGS)
            client.connect(("127.0.0.1", port))
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert http_client.read_all(client) == b""
        before = turns["served"]
        time.sleep(0.3)  # time to spin in
        assert turns["served"] <= before + 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in fillers:
            os.close(descriptor)
        for client in clients:
            client.close()
    assert http_client.ask(port).status == 200


def test_stopping_closes_everything() -> None:
    made = server.Server("short")
    port = made.open(LOOPBACK, 0, hello).port
    before = threading.active_count()
    made.stop()
    assert http_client.is_closed(port)
    assert threading.active_count() == before - 1
    with pytest.raises(RuntimeError, match="stopped"):
        made.open(LOOPBACK, 0, hello)


def test_a_server_that_never_listened_stops_too() -> None:
    server.Server("unused").stop()


def test_a_server_that_is_awake_for_something_else_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread may carry the call out, and end, before it would be woken for it."""
    served = server.Server("test")
    monkeypatch.setattr(server, "_CLOSE_SECONDS", patience.HANGS)
    write = os.eventfd_write

    def late(descriptor: int, value: int) -> None:
        write(descriptor, value)  # somebody else wakes it, just before
        time.sleep(0.2)
        write(descriptor, value)

    monkeypatch.setattr(os, "eventfd_write", late)
    served.stop()
