"""Which Services have health check node ports, what is counted there, and on which addresses they listen."""

from __future__ import annotations

import pytest

from netagent.model import addresses, objects
from netagent.model.addresses import Family
from netagent.plan import health
from netagent.plan.node import NodeContext
from tests import builders

HERE = NodeContext(name="node-1")
BOTH = (Family.IPV4, Family.IPV6)


def load_balancer(**fields: object) -> objects.Service:
    defaults: dict[str, object] = {
        "type": objects.ServiceType.LOAD_BALANCER,
        "external_policy": objects.TrafficPolicy.LOCAL,
        "health_check_node_port": 32170,
    }
    return builders.service(**(defaults | fields))  # type: ignore[arg-type]


def counts(service: objects.Service, *slices: objects.EndpointSlice) -> dict[Family, int]:
    return {port.family: port.local_endpoints for port in health.health_check_ports_of(service, slices, HERE, BOTH)}


def test_a_load_balancer_with_local_policy_has_a_port_although_nothing_runs_here() -> None:
    (port,) = health.health_check_ports_of(load_balancer(), (), HERE, BOTH)
    assert (port.service, port.family, port.port, port.local_endpoints) == (
        objects.ServiceName("default", "web"),
        Family.IPV4,
        32170,
        0,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"type": objects.ServiceType.NODE_PORT},
        {"external_policy": objects.TrafficPolicy.CLUSTER},
        {"health_check_node_port": 0},
        {"cluster_ips": ()},
        {"proxy_name": "other"},
    ],
    ids=["node port", "cluster policy", "no port", "headless", "another proxy's"],
)
def test_other_services_have_none(fields: dict[str, object]) -> None:
    assert health.health_check_ports_of(load_balancer(**fields), (), HERE, BOTH) == ()


def test_ready_endpoints_of_this_node_count() -> None:
    found = builders.endpoint_slice(
        "web",
        builders.endpoint("10.180.0.1"),
        builders.endpoint("10.180.0.2"),
        builders.endpoint("10.180.1.7", node="node-2"),
        builders.endpoint("10.180.0.9", node=None),
        builders.endpoint("10.180.0.3", ready=False),
    )
    assert counts(load_balancer(), found) == {Family.IPV4: 2}


def test_draining_endpoints_carry_traffic_but_do_not_count() -> None:
    assert counts(load_balancer(), builders.endpoint_slice("web", builders.draining_endpoint())) == {Family.IPV4: 0}


def test_a_pod_that_serves_several_ports_counts_once() -> None:
    service = load_balancer(ports=(builders.port(80, name="http"), builders.port(443, name="https")))
    ports = (builders.slice_port(8080, name="http"), builders.slice_port(8443, name="https"))
    one = builders.endpoint_slice("web", "10.180.0.1", ports=ports)
    other = builders.endpoint_slice("web", "10.180.0.2", name="web-2", ports=ports[1:])
    assert counts(service, one, other) == {Family.IPV4: 2}


def test_families_count_their_own_endpoints() -> None:
    service = load_balancer(cluster_ips=("10.96.0.1", "fd00::1"))
    slices = (
        builders.endpoint_slice("web", "10.180.0.1", "10.180.0.2"),
        builders.endpoint_slice("web", "fd00:1::1", name="web-6"),
    )
    assert counts(service, *slices) == {Family.IPV4: 2, Family.IPV6: 1}


def test_topology_does_not_matter_for_the_count() -> None:
    hinted = builders.endpoint_slice("web", builders.endpoint(zones=("elsewhere",)))
    assert counts(load_balancer(), hinted) == {Family.IPV4: 1}


LOCAL = builders.packed("127.0.0.1", "192.168.50.2", "192.168.51.2", "fd00::2", "fe80::2", "::1")


@pytest.mark.parametrize(
    ("networks", "family", "expected"),
    [
        (("0.0.0.0/0",), Family.IPV4, ("0.0.0.0",)),
        (("::/0",), Family.IPV6, ("::",)),
        (("192.168.50.2/32",), Family.IPV4, ("192.168.50.2",)),
        (("192.168.0.0/16",), Family.IPV4, ("192.168.50.2", "192.168.51.2")),
        (("10.0.0.0/8",), Family.IPV4, ()),
        (("fd00::/16", "fe80::/10"), Family.IPV6, ("fd00::2",)),
        ((), Family.IPV4, ()),
    ],
)
def test_health_checks_listen_where_node_ports_answer(
    networks: tuple[str, ...], family: Family, expected: tuple[str, ...]
) -> None:
    found = health.listen_addresses(builders.prefixes(*networks), LOCAL, family)
    assert tuple(map(addresses.format_address, found)) == expected
