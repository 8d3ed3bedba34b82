"""Health check node ports: what load balancers see."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from netagent.agent.health import checks, server
from netagent.model.addresses import Family
from netagent.model.objects import ServiceName
from netagent.plan.health import HealthCheckPort
from tests import patience
from tests.agent import test_health_client as http_client
from tests.agent.test_health_server import turns

__all__ = ["turns"]  # a fixture

LOOPBACK = {Family.IPV4: (bytes([127, 0, 0, 1]),)}
BOTH = LOOPBACK | {Family.IPV6: (bytes(15) + b"\1",)}
WEB = ServiceName("edge", "lb")


class Stage:
    """Health checks of an agent whose health the test decides."""

    def __init__(self) -> None:
        self.healthy = True
        self.server = server.Server("test")
        self.checks = checks.ServiceHealthChecks(self.server, healthy=lambda: self.healthy)

    def listeners(self) -> list[server.Listener]:
        return list(self.server._listeners.values())

    def wants(
        self, port: int, endpoints: int, *, service: ServiceName = WEB, family: Family = Family.IPV4, created: str = ""
    ) -> HealthCheckPort:
        return HealthCheckPort(service, family, port, endpoints, created)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.server.stop()


@pytest.mark.parametrize("path", ["/", "/healthz", "/some/where?x=1"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_every_path_and_method_gives_the_same_answer(stage: Stage, path: str, method: str) -> None:
    port = http_client.free_port()
    assert stage.checks.update([stage.wants(port, 2)], listen_on=LOOPBACK) == ()
    answer = http_client.ask(port, path, method=method)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert answer.document == {
        "service": {"namespace": "edge", "name": "lb"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }


def test_the_status_follows_the_endpoints(stage: Stage) -> None:
    port = http_client.free_port()
    for count, status in ((0, 503), (1, 200), (2, 200), (0, 503), (1, 200)):
        stage.checks.update([stage.wants(port, count)], listen_on=LOOPBACK)
        answer = http_client.ask(port)
        assert (answer.status, answer.document["localEndpoints"]) == (status, count)
        assert answer.headers["X-Load-Balancing-Endpoint-Weight"] == str(count)


def test_an_agent_that_is_late_sends_the_balancer_elsewhere(stage: Stage) -> None:
    port = http_client.free_port()
    stage.checks.update([stage.wants(port, 3)], listen_on=LOOPBACK)
    stage.healthy = False
    answer = http_client.ask(port)
    assert answer.status == 503
    assert answer.document["serviceProxyHealthy"] is False
    assert answer.document["localEndpoints"] == 3


def test_a_deleted_service_closes_its_port_and_others_stay(stage: Stage) -> None:
    first, second = http_client.free_port(), http_client.free_port()
    other = ServiceName("edge", "other")
    stage.checks.update([stage.wants(first, 1), stage.wants(second, 1, service=other)], listen_on=LOOPBACK)
    waiting = http_client.connect(second)
    stage.checks.update([stage.wants(second, 1, service=other)], listen_on=LOOPBACK)
    assert http_client.is_closed(first)
    with waiting:
        waiting.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert http_client.answer_of(http_client.read_all(waiting)).status == 200


def test_a_request_that_races_with_the_end_of_the_port_gets_503(stage: Stage) -> None:
    port = http_client.free_port()
    stage.checks.update([stage.wants(port, 1)], listen_on=LOOPBACK)
    with http_client.connect(port) as client:
        client.sendall(b"GET / HT")
        stage.checks.update([], listen_on=LOOPBACK)
        client.sendall(b"TP/1.1\r\n\r\n")
        answer = http_client.answer_of(http_client.read_all(client))
    assert (answer.status, answer.document["localEndpoints"]) == (503, 0)
    assert answer.document["service"] == {"namespace": "edge", "name": "lb"}


def test_no_request_gets_an_empty_200_while_ports_come_and_go(stage: Stage) -> None:
    port = http_client.free_port()
    stopping = threading.Event()
    answers: list[http_client.Answer] = []
    resets = 0

    def probe() -> None:
        nonlocal resets
        while not stopping.is_set():
            try:
                answers.append(http_client.ask(port))
            except (OSError, ValueError, IndexError):
                resets += 1  # refused, or reset before the request was there

    thread = threading.Thread(target=probe)
    thread.start()
    rounds = 0

    def often_enough() -> bool:
        nonlocal rounds
        stage.checks.update([stage.wants(port, 1)], listen_on=LOOPBACK)
        time.sleep(0.003)
        stage.checks.update([], listen_on=LOOPBACK)
        rounds += 1
        return rounds >= 150 and len(answers) >= 50

    try:
        patience.until(often_enough, pause=0.0)
    finally:
        stopping.set()
        thread.join()
    for answer in answers:
        assert (answer.status, answer.document["localEndpoints"]) in ((200, 1), (503, 0))


def test_a_port_that_changes_hands_keeps_its_socket_and_changes_its_answer(stage: Stage) -> None:
    port = http_client.free_port()
    stage.checks.update([stage.wants(port, 1)], listen_on=LOOPBACK)
    stage.checks.update([stage.wants(port, 5, service=ServiceName("edge", "new"))], listen_on=LOOPBACK)
    assert http_client.ask(port).document["service"]["name"] == "new"
    assert stage.checks.listeners == 1


def test_a_changed_port_number_moves_the_listener(stage: Stage) -> None:
    first, second = http_client.free_port(), http_client.free_port()
    stage.checks.update([stage.wants(first, 1)], listen_on=LOOPBACK)
    stage.checks.update([stage.wants(second, 1)], listen_on=LOOPBACK)
    assert http_client.is_closed(first)
    assert http_client.ask(second).status == 200


def test_a_taken_port_is_reported_and_opened_when_it_is_free(stage: Stage) -> None:
    free = http_client.free_port()
    port = http_client.free_port()
    with socket.create_server(("127.0.0.1", port)):
        wanted = [stage.wants(port, 1), stage.wants(free, 1, service=ServiceName("edge", "fine"))]
        (failure,) = stage.checks.update(wanted, listen_on=LOOPBACK)
        assert failure == checks.ListenFailure(WEB, f"127.0.0.1:{port}", "Address already in use")
        assert str(failure).startswith("health check node port of Service edge/lb cannot listen on 127.0.0.1:")
        assert stage.checks.retry() == (failure,)
        assert http_client.ask(free).status == 200
    assert stage.checks.retry() == ()
    assert http_client.ask(port).status == 200


def test_the_older_of_two_services_keeps_a_port(stage: Stage) -> None:
    port = http_client.free_port()
    young = stage.wants(port, 1, service=ServiceName("a", "young"), created="2025-01-01T00:00:00Z")
    old = stage.wants(port, 2, service=ServiceName("b", "old"), created="2024-01-01T00:00:00Z")
    (failure,) = stage.checks.update([young, old], listen_on=LOOPBACK)
    assert failure.service == ServiceName("a", "young")
    assert "b/old" in failure.reason
    assert http_client.ask(port).document["service"]["name"] == "old"


def test_listeners_follow_the_addresses_of_the_node(stage: Stage) -> None:
    port = http_client.free_port()
    wanted = [stage.wants(port, 1)]
    everywhere = {Family.IPV4: (bytes(4),)}
    stage.checks.update(wanted, listen_on=everywhere)
    assert http_client.ask(port, host="127.0.0.2").status == 200
    stage.checks.update(wanted, listen_on=LOOPBACK)
    assert http_client.ask(port).status == 200
    assert http_client.is_closed(port, "127.0.0.2")
    stage.checks.update(wanted, listen_on=everywhere)
    assert http_client.ask(port, host="127.0.0.2").status == 200


def test_a_host_without_a_matching_address_is_told(stage: Stage) -> None:
    (failure,) = stage.checks.update([stage.wants(1234, 1)], listen_on={Family.IPV4: ()})
    assert "no address of this family" in failure.reason
    assert stage.checks.update([stage.wants(1234, 1)], listen_on={}) == ()  # a family that the node does not serve


@pytest.mark.skipif(not http_client.has_ipv6(), reason="this host has no IPv6")
def test_families_answer_for_themselves(stage: Stage) -> None:
    port = http_client.free_port()
    wanted = [stage.wants(port, 1), stage.wants(port, 0, family=Family.IPV6)]
    assert stage.checks.update(wanted, listen_on=BOTH) == ()
    assert http_client.ask(port).status == 200
    assert http_client.ask(port, host="::1").status == 503


def test_hundreds_of_services_cost_one_thread_and_answer_all(stage: Stage, turns: Counter[str]) -> None:
    server.raise_open_files_limit()
    ports = [http_client.free_port() for _ in range(300)]
    before = threading.active_count()
    wanted = [stage.wants(port, index % 3, service=ServiceName("n", f"s{index}")) for index, port in enumerate(ports)]
    failures = stage.checks.update(wanted, listen_on=LOOPBACK)
    assert len(failures) < 5  # a free port may have been taken meanwhile
    assert threading.active_count() == before + 1
    for index in range(0, 300, 37):
        if all(str(ports[index]) not in failure.address for failure in failures):
            assert http_client.ask(ports[index]).document["service"]["name"] == f"s{index}"
    again = [failure.address for failure in failures]
    before = turns.copy()
    for _ in range(100):
        stage.checks.update(wanted, listen_on=LOOPBACK)
    assert again or turns["told"] == before["told"], "what stays as it is costs the server nothing"
    patience.until(lambda: not any(listener.connections for listener in stage.listeners()))
    before = turns.copy()
    time.sleep(0.3)  # time to spin in
    assert turns == before


def test_closing_closes_all(stage: Stage) -> None:
    port = http_client.free_port()
    stage.checks.update([stage.wants(port, 1)], listen_on=LOOPBACK)
    stage.checks.close()
    assert http_client.is_closed(port)


def test_ports_move_with_the_addresses_of_the_host(stage: Stage) -> None:
    port = http_client.free_port()
    assert stage.checks.move(listen_on=LOOPBACK) == (), "without ports there is nothing to move"
    (nowhere,) = stage.checks.update([stage.wants(port, 1)], listen_on={Family.IPV4: ()})
    assert "no address" in nowhere.reason
    assert stage.checks.move(listen_on=LOOPBACK) == ()
    assert http_client.ask(port).status == 200
    (nowhere,) = stage.checks.move(listen_on={Family.IPV4: ()})
    assert http_client.is_closed(port)
    assert stage.checks.failures == (nowhere,)
