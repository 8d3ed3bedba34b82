"""The pages of the agent's own servers, as probes, load balancers and people ask for them."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable, Iterator

import msgspec
import pytest

from netagent import settings
from netagent.agent.health import messages, pages, server, servers, state
from netagent.agent.metrics import collectors
from netagent.model.addresses import Family
from tests import builders
from tests.agent import test_health_client as http_client

LOOPBACK = ipaddress.IPv4Address("127.0.0.1")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def request(path: str) -> messages.Request:
    return messages.Request("GET", path, {})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> state.AgentHealth:
    made = state.AgentHealth(
        (Family.IPV4, Family.IPV6), sync_period_seconds=30, sources=("Service",), clock=clock, wall=lambda: 1.7e9
    )
    made.source("Service", in_sync=True)
    made.node(builders.node())
    return made


NOW = "2023-11-14T22:13:20.000000Z"
NEVER = "0001-01-01T00:00:00Z"


def test_healthz_of_a_healthy_agent(health: state.AgentHealth) -> None:
    health.synced(Family.IPV4)
    response = pages.health_pages(health)(request("/healthz"))
    assert (response.status, response.content_type) == (200, "application/json")
    assert json.loads(response.body) == {
        "lastUpdated": NOW,
        "currentTime": NOW,
        "nodeEligible": True,
        "healthy": True,
        "status": {
            "IPv4": {"lastUpdated": NOW, "healthy": True},
            "IPv6": {"lastUpdated": NEVER, "healthy": True},
        },
    }


def test_livez_does_not_speak_of_the_node(health: state.AgentHealth) -> None:
    body = json.loads(pages.health_pages(health)(request("/livez")).body)
    assert list(body) == ["lastUpdated", "currentTime", "healthy", "status"]


def test_a_node_that_is_to_be_deleted_sends_balancers_away_and_is_not_restarted(health: state.AgentHealth) -> None:
    handler = pages.health_pages(health)
    health.node(builders.node(taint_keys=(state.DELETION_TAINT,)))
    response = handler(request("/healthz"))
    body = json.loads(response.body)
    assert (response.status, body["healthy"], body["nodeEligible"]) == (503, True, False)
    assert handler(request("/livez")).status == 200


def test_a_late_family_is_503_on_both_and_named(health: state.AgentHealth, clock: Clock) -> None:
    handler = pages.health_pages(health)
    health.queued(Family.IPV6)
    clock.now += 61
    for path in ("/healthz", "/livez"):
        response = handler(request(path))
        body = json.loads(response.body)
        assert (response.status, body["healthy"], body["lastUpdated"]) == (503, False, NEVER)
        assert body["status"]["IPv6"]["healthy"] is False
        assert body["status"]["IPv4"]["healthy"] is True


def test_an_agent_that_breaks_again_and_again_is_restarted_and_keeps_its_clients(
    health: state.AgentHealth, clock: Clock
) -> None:
    handler = pages.health_pages(health)
    for _ in range(20):
        health.stumbled()
        health.loop_turned()
        clock.now += 4
    assert handler(request("/livez")).status == 503
    assert json.loads(handler(request("/livez")).body)["healthy"] is False
    assert handler(request("/healthz")).status == 200
    status = pages.status_of(
        health.report(),
        version="1.2",
        started=1.7e9,
        mode=settings.Mode.NFTABLES,
        node_name="n1",
        unexpected_errors={"sync": 3, "feed": 17},
    )
    assert status["Unexpected errors"] == "feed 17, sync 3; again and again"


def test_readyz_waits_for_the_first_sync(health: state.AgentHealth) -> None:
    handler = pages.health_pages(health)
    first = handler(request("/readyz"))
    assert first.status == 503
    assert json.loads(first.body)["sources"] == {"Service": {"inSync": True}}
    for family in (Family.IPV4, Family.IPV6):
        health.synced(family)
    assert handler(request("/readyz")).status == 200


def test_answers_are_counted_and_other_paths_are_404(health: state.AgentHealth) -> None:
    answered: list[tuple[str, int]] = []
    handler = pages.health_pages(health, answered=lambda path, status: answered.append((path, status)))
    assert handler(request("/")).status == 404
    handler(request("/healthz?verbose"))
    health.node(builders.node(deleting=True))
    handler(request("/healthz"))
    handler(request("/livez"))
    assert answered == [("/healthz", 200), ("/healthz", 503), ("/livez", 200)]


@pytest.fixture
def metrics_page(health: state.AgentHealth) -> Callable[[str], messages.Response]:
    handler = pages.metrics_pages(
        exposition=lambda accept: (b"metrics for " + accept.encode(), "text/x"),
        slis=lambda accept: (b"slis", "text/x"),
        configuration=settings.Settings,
        status=lambda: pages.status_of(
            health.report(), version="1.2", started=1.7e9 - 90, mode=settings.Mode.NFTABLES, node_name="n1"
        ),
        flags={"config": "/etc/netagent.conf"},
    )
    return lambda path: handler(messages.Request("GET", path, {"accept": "all"}))


def test_the_pages_of_the_metrics_server(metrics_page: Callable[[str], messages.Response]) -> None:
    assert metrics_page("/metrics")[:3] == (200, b"metrics for all", "text/x")
    assert metrics_page("/metrics/slis").body == b"slis"
    assert metrics_page("/healthz").body == b"ok"
    assert metrics_page("/proxyMode").body == b"nftables"
    assert b"config=/etc/netagent.conf" in metrics_page("/flagz").body
    assert metrics_page("/debug/pprof").status == 404


def test_statusz_says_in_words_how_the_agent_is(metrics_page: Callable[[str], messages.Response]) -> None:
    body = metrics_page("/statusz").body.decode()
    assert body.startswith("netagent statusz\nWarning: ")
    for line in ("Version: 1.2", "Up: 0:01:30", "Mode: nftables", "Ready: no", "Last sync IPv4: never"):
        assert f"\n{line}\n" in body


def test_configz_has_every_setting(metrics_page: Callable[[str], messages.Response]) -> None:
    found = json.loads(metrics_page("/configz").body)["netagent"]
    assert set(found) == set(settings.Settings.__struct_fields__)
    assert found["bind_address"] == "0.0.0.0"
    assert found["conntrack"]["min"] == 131072


@pytest.fixture
def both(clock: Clock) -> Iterator[servers.AgentServers]:
    health, metrics = server.Server("health"), server.Server("metrics")
    yield servers.AgentServers(
        health=health,
        health_handler=lambda request: messages.Response(200, b"health"),
        metrics=metrics,
        metrics_handler=lambda request: messages.Response(200, b"metrics"),
        clock=clock,
    )
    health.stop()
    metrics.stop()


def wanted(health: int, metrics: int) -> settings.Settings:
    return settings.Settings(
        healthz_bind_address=settings.SocketAddress(LOOPBACK, health),
        metrics_bind_address=settings.SocketAddress(LOOPBACK, metrics),
    )


def test_both_servers_listen_where_the_settings_say(both: servers.AgentServers) -> None:
    first, second, third = (http_client.free_port() for _ in range(3))
    assert both.use(wanted(first, second)) == ()
    assert http_client.ask(first).body == b"health"
    assert http_client.ask(second).body == b"metrics"
    assert both.use(wanted(third, second)) == ()
    assert http_client.ask(third).body == b"health"
    assert http_client.is_closed(first)
    both.close()
    assert http_client.is_closed(third)


def test_a_taken_port_is_reported_and_tried_again_every_five_seconds(both: servers.AgentServers, clock: Clock) -> None:
    metrics_port = http_client.free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (failure,) = both.use(wanted(port, metrics_port))
        assert str(failure) == f"the health server cannot listen on 127.0.0.1:{port}: Address already in use"
        assert http_client.ask(metrics_port).body == b"metrics"
        assert both.ensure() == ()
        clock.now += 5
        assert both.ensure() == (failure,)
    assert both.ensure() == ()
    clock.now += 5
    assert both.ensure() == ()
    assert http_client.ask(port).body == b"health"


def test_a_server_that_cannot_move_stays_where_it_is_until_it_can(both: servers.AgentServers, clock: Clock) -> None:
    first, metrics_port = http_client.free_port(), http_client.free_port()
    assert both.use(wanted(first, metrics_port)) == ()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (failure,) = both.use(wanted(port, metrics_port))
        assert str(failure) == (
            f"the health server cannot listen on 127.0.0.1:{port}: Address already in use; "
            f"it goes on listening on 127.0.0.1:{first}"
        )
        for _ in range(3):
            assert http_client.ask(first).body == b"health"
            clock.now += 5
            assert both.ensure() == (failure,)
    clock.now += 5
    assert both.ensure() == ()
    assert http_client.ask(port).body == b"health"
    assert http_client.is_closed(first)
    assert http_client.ask(metrics_port).body == b"metrics"


def test_a_server_that_gave_up_moving_is_content_where_it_is(both: servers.AgentServers, clock: Clock) -> None:
    first, metrics_port = http_client.free_port(), http_client.free_port()
    both.use(wanted(first, metrics_port))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert both.use(wanted(taken.getsockname()[1], metrics_port))
        assert both.use(wanted(first, metrics_port)) == ()
        clock.now += 5
        assert both.ensure() == ()
        assert http_client.ask(first).body == b"health"


def test_the_same_port_on_another_address_is_no_obstacle(both: servers.AgentServers) -> None:
    """The old socket is in the way of the new one: it goes first."""
    port, metrics_port = http_client.free_port(), http_client.free_port()
    everywhere = settings.SocketAddress(ipaddress.IPv4Address("0.0.0.0"), port)
    both.use(wanted(port, metrics_port))
    assert both.use(msgspec.structs.replace(wanted(port, metrics_port), healthz_bind_address=everywhere)) == ()
    assert http_client.ask(port).body == b"health"
    assert both.use(wanted(port, metrics_port)) == ()
    assert http_client.ask(port).body == b"health"


def test_the_two_servers_can_change_places(both: servers.AgentServers) -> None:
    first, second = http_client.free_port(), http_client.free_port()
    both.use(wanted(first, second))
    assert both.use(wanted(second, first)) == ()
    assert http_client.ask(second).body == b"health"
    assert http_client.ask(first).body == b"metrics"


def test_where_only_one_of_two_can_take_the_others_place_both_go_on(both: servers.AgentServers, clock: Clock) -> None:
    first, second = http_client.free_port(), http_client.free_port()
    both.use(wanted(first, second))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert len(both.use(wanted(second, port))) == 2
        assert http_client.ask(first).body == b"health"
        assert http_client.ask(second).body == b"metrics"
    clock.now += 5
    both.ensure()
    clock.now += 5
    assert both.ensure() == ()
    assert http_client.ask(second).body == b"health"
    assert http_client.ask(port).body == b"metrics"


def test_an_address_that_the_host_gets_is_taken_at_once(both: servers.AgentServers, clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # stands for an address that is not there
        port = taken.getsockname()[1]
        assert both.use(wanted(port, http_client.free_port()))
    assert both.ensure() == (), "it is not time"
    both.hurry()
    assert both.ensure() == ()
    assert http_client.ask(port).body == b"health"


def test_the_default_address_answers_in_both_families(both: servers.AgentServers) -> None:
    port = http_client.free_port()
    everywhere = settings.SocketAddress(ipaddress.IPv4Address("0.0.0.0"), port)
    loopback = settings.SocketAddress(LOOPBACK, http_client.free_port())
    assert both.use(settings.Settings(healthz_bind_address=everywhere, metrics_bind_address=loopback)) == ()
    assert http_client.ask(port).body == b"health"
    if http_client.has_ipv6():
        assert http_client.ask(port, host="::1").body == b"health"


def test_probes_over_the_wire_show_up_in_the_metrics(health: state.AgentHealth) -> None:
    measured = collectors.Metrics(health, mode=settings.Mode.NFTABLES, families=(Family.IPV4, Family.IPV6))
    probes, scrapes = server.Server("health"), server.Server("metrics")
    both = servers.AgentServers(
        health=probes,
        health_handler=pages.health_pages(health, answered=measured.health_answered),
        metrics=scrapes,
        metrics_handler=pages.metrics_pages(
            exposition=measured.exposition, slis=measured.slis, configuration=settings.Settings, status=dict, flags={}
        ),
    )
    first, second = http_client.free_port(), http_client.free_port()
    try:
        assert both.use(wanted(first, second)) == ()
        answer = http_client.ask(first, "/livez")
        assert (answer.status, answer.document["healthy"]) == (200, True)
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        scrape = http_client.ask(second, "/metrics", accept="application/openmetrics-text;version=1.0.0")
        assert scrape.headers["Content-Type"].startswith("application/openmetrics-text")
        assert b'kubeproxy_proxy_livez_total{code="200"} 1.0' in scrape.body
        assert b'type="livez"} 1.0' in http_client.ask(second, "/metrics/slis").body
    finally:
        probes.stop()
        scrapes.stop()
