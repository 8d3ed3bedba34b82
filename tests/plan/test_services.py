"""What each address of a Service does on node-1: the decision tables, cell by cell."""

from __future__ import annotations

from typing import Any

import pytest

from netagent.model import addresses, objects
from netagent.model.addresses import Family, Protocol
from netagent.model.objects import ServiceType, TrafficPolicy
from netagent.plan.frontends import Frontend, FrontendKind, Masquerade, Verdict
from netagent.plan.node import NodeContext
from netagent.plan.services import frontends_of
from tests.builders import (
    draining_endpoint,
    endpoint,
    endpoint_slice,
    packed,
    port,
    prefixes,
    service,
    slice_port,
)

BOTH = (Family.IPV4, Family.IPV6)
CONTEXT = NodeContext(name="node-1", zone="zone-a", node_ips=packed("192.0.2.1", "2001:db8::1"))
CLUSTER, LOCAL = TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL

HERE = endpoint("10.180.0.1", node="node-1")
THERE = endpoint("10.180.1.2", node="node-2")
UNREADY = endpoint("10.180.1.3", ready=False)


def plan(
    one: objects.Service,
    *slices: objects.EndpointSlice,
    context: NodeContext = CONTEXT,
    families: tuple[Family, ...] = BOTH,
) -> dict[str, Frontend]:
    """The Frontends of a Service by the text of their keys; there must be one per key."""
    made = frontends_of(one, slices, context, families)
    assert len({frontend.key for frontend in made}) == len(made)
    return {str(frontend.key): frontend for frontend in made}


def texts(keys: tuple[bytes, ...] | None) -> list[str] | None:
    return None if keys is None else [addresses.format_address(addresses.endpoint_address(key)) for key in keys]


def external(**fields: Any) -> objects.Service:
    """A Service with every kind of frontend."""
    return service(
        type=ServiceType.LOAD_BALANCER,
        vips=["198.51.100.1"],
        external_ips=["203.0.113.1"],
        ports=[port(80, node_port=30080)],
        **fields,
    )


# --- decision tables ---


@pytest.mark.parametrize(
    ("policy", "endpoints", "verdict", "used"),
    [
        (CLUSTER, [HERE, THERE], Verdict.SERVE, ["10.180.0.1", "10.180.1.2"]),
        (CLUSTER, [THERE], Verdict.SERVE, ["10.180.1.2"]),
        (CLUSTER, [UNREADY], Verdict.REJECT, []),
        (CLUSTER, [], Verdict.REJECT, []),
        (LOCAL, [HERE, THERE], Verdict.SERVE, ["10.180.0.1"]),
        (LOCAL, [THERE], Verdict.DROP, []),
        (LOCAL, [endpoint("10.180.1.9", node=None)], Verdict.DROP, []),
        (LOCAL, [draining_endpoint("10.180.0.4"), THERE], Verdict.SERVE, ["10.180.0.4"]),
        (LOCAL, [draining_endpoint("10.180.1.4", node="node-2")], Verdict.DROP, []),
        (LOCAL, [UNREADY], Verdict.REJECT, []),
        (LOCAL, [], Verdict.REJECT, []),
    ],
)
def test_cluster_ip_decisions(
    policy: TrafficPolicy, endpoints: list[objects.Endpoint], verdict: Verdict, used: list[str]
) -> None:
    frontend = plan(service(internal_policy=policy), endpoint_slice("web", *endpoints))["10.96.0.1:80/tcp"]
    assert frontend.kind is FrontendKind.CLUSTER_IP
    assert frontend.verdict is verdict
    assert texts(frontend.endpoints) == used
    assert frontend.local_endpoints is None
    assert frontend.masquerade is Masquerade.CLUSTER_IP


EXTERNAL_KEYS = {
    "198.51.100.1:80/tcp": FrontendKind.LOAD_BALANCER,
    "203.0.113.1:80/tcp": FrontendKind.EXTERNAL_IP,
    "node-port 30080/tcp (IPv4)": FrontendKind.NODE_PORT,
}


@pytest.mark.parametrize("key", EXTERNAL_KEYS)
@pytest.mark.parametrize(
    ("policy", "endpoints", "verdict", "everybody", "elsewhere"),
    [
        (CLUSTER, [HERE, THERE], Verdict.SERVE, ["10.180.0.1", "10.180.1.2"], None),
        (CLUSTER, [UNREADY], Verdict.REJECT, [], None),
        (LOCAL, [HERE, THERE], Verdict.SERVE, ["10.180.0.1", "10.180.1.2"], ["10.180.0.1"]),
        (LOCAL, [THERE], Verdict.SERVE, ["10.180.1.2"], []),
        (LOCAL, [draining_endpoint(), THERE], Verdict.SERVE, ["10.180.1.2"], ["10.180.0.1"]),
        (LOCAL, [UNREADY], Verdict.REJECT, [], None),
        (LOCAL, [], Verdict.REJECT, [], None),
    ],
)
def test_external_decisions(
    key: str,
    policy: TrafficPolicy,
    endpoints: list[objects.Endpoint],
    verdict: Verdict,
    everybody: list[str],
    elsewhere: list[str] | None,
) -> None:
    frontend = plan(external(external_policy=policy), endpoint_slice("web", *endpoints))[key]
    assert frontend.kind is EXTERNAL_KEYS[key]
    assert frontend.verdict is verdict
    assert texts(frontend.endpoints) == everybody
    assert texts(frontend.local_endpoints) == elsewhere
    expected = Masquerade.NEVER_LOCAL if policy is LOCAL else Masquerade.ALWAYS
    assert frontend.masquerade is expected


def test_the_policies_do_not_influence_each_other() -> None:
    made = plan(external(internal_policy=LOCAL), endpoint_slice("web", THERE))
    assert made["10.96.0.1:80/tcp"].verdict is Verdict.DROP
    assert made["198.51.100.1:80/tcp"].verdict is Verdict.SERVE

    made = plan(external(external_policy=LOCAL), endpoint_slice("web", THERE))
    assert made["10.96.0.1:80/tcp"].verdict is Verdict.SERVE
    assert made["198.51.100.1:80/tcp"].local_endpoints == ()


@pytest.mark.parametrize(
    ("type", "external_ips", "allowed", "policy_counts"),
    [
        (ServiceType.LOAD_BALANCER, [], True, True),
        (ServiceType.NODE_PORT, [], True, True),
        (ServiceType.CLUSTER_IP, ["203.0.113.1"], True, True),
        (ServiceType.CLUSTER_IP, ["203.0.113.1"], False, False),
        (ServiceType.CLUSTER_IP, [], True, False),
    ],
)
def test_external_policy_local_needs_a_service_that_is_external(
    type: ServiceType, external_ips: list[str], allowed: bool, policy_counts: bool
) -> None:
    context = NodeContext(name="node-1", allow_external_ips=allowed)
    one = service(type=type, external_ips=external_ips, external_policy=LOCAL, ports=[port(80, node_port=30080)])
    frontend = plan(one, endpoint_slice("web", THERE), context=context)["node-port 30080/tcp (IPv4)"]
    assert (frontend.local_endpoints is not None) is policy_counts


# --- which frontends ---


def test_every_address_of_every_port_is_a_frontend() -> None:
    one = service(
        cluster_ips=["10.96.0.1", "fd00:96::1"],
        external_ips=["203.0.113.1"],
        vips=["198.51.100.1", "fd00:1b::1"],
        ports=[
            port(53, name="dns", protocol=Protocol.UDP, node_port=30053),
            port(53, name="dns-tcp", node_port=30053),
        ],
    )
    addresses_ = ["10.96.0.1", "198.51.100.1", "203.0.113.1", "[fd00:96::1]", "[fd00:1b::1]"]
    assert set(plan(one)) == {f"{text}:53/{protocol}" for text in addresses_ for protocol in ("udp", "tcp")} | {
        f"node-port 30053/{protocol} ({family})" for protocol in ("udp", "tcp") for family in ("IPv4", "IPv6")
    }


def test_a_service_is_served_only_in_families_it_has_a_cluster_ip_of() -> None:
    one = service(vips=["198.51.100.1", "fd00:1b::1"], ports=[port(80, node_port=30080)])
    assert {frontend.key.family for frontend in plan(one).values()} == {Family.IPV4}


def test_families_that_the_node_does_not_serve_are_left_out() -> None:
    one = service(cluster_ips=["10.96.0.1", "fd00:96::1"])
    assert set(plan(one, families=(Family.IPV6,))) == {"[fd00:96::1]:80/tcp"}


def test_each_family_decides_by_its_own_endpoints() -> None:
    made = plan(
        service(cluster_ips=["10.96.0.1", "fd00:96::1"]),
        endpoint_slice("web", name="six", family=Family.IPV6),
        endpoint_slice("web", draining_endpoint("10.180.0.1"), name="four"),
    )
    assert made["10.96.0.1:80/tcp"].verdict is Verdict.SERVE
    assert made["[fd00:96::1]:80/tcp"].verdict is Verdict.REJECT


@pytest.mark.parametrize(
    "one",
    [
        service(cluster_ips=[], ports=[port(80, node_port=30080)]),
        service(type=ServiceType.EXTERNAL_NAME),
        service(proxy_name=""),
        service(proxy_name="somebody-else"),
    ],
    ids=["headless", "ExternalName", "empty proxy name", "proxy name"],
)
def test_services_that_are_none_of_our_business(one: objects.Service) -> None:
    assert plan(one, endpoint_slice("web", HERE)) == {}


def test_external_ips_can_be_switched_off() -> None:
    made = plan(external(), context=NodeContext(name="node-1", allow_external_ips=False))
    assert "203.0.113.1:80/tcp" not in made
    assert "198.51.100.1:80/tcp" in made


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"external_ips": ["198.51.100.1"], "vips": ["198.51.100.1"]}, FrontendKind.LOAD_BALANCER),
        ({"external_ips": ["198.51.100.1", "198.51.100.1"]}, FrontendKind.EXTERNAL_IP),
        ({"cluster_ips": ["198.51.100.1"], "vips": ["198.51.100.1"]}, FrontendKind.CLUSTER_IP),
    ],
)
def test_an_address_claimed_twice_by_one_service_is_one_frontend(
    fields: dict[str, list[str]], kind: FrontendKind
) -> None:
    assert plan(service(**fields))["198.51.100.1:80/tcp"].kind is kind  # type: ignore[arg-type]


def test_each_port_has_its_own_endpoints() -> None:
    made = plan(
        service(ports=[port(80, name="http"), port(443, name="https")]),
        endpoint_slice("web", HERE, ports=[slice_port(8080, name="http")]),
    )
    assert made["10.96.0.1:80/tcp"].verdict is Verdict.SERVE
    assert made["10.96.0.1:443/tcp"].verdict is Verdict.REJECT


# --- source ranges ---


@pytest.mark.parametrize(
    ("ranges", "allowed"),
    [
        ([], None),
        (["203.0.113.0/24"], ["203.0.113.0/24"]),
        (["203.0.113.7/24", "203.0.113.0/25"], ["203.0.113.0/24"]),
        (["fd00::/64"], None),
        (["203.0.113.0/24", "fd00::/64"], ["203.0.113.0/24"]),
        (["203.0.113.0/24", "0.0.0.0/0"], None),
        (["203.0.113.0/24", "::/0"], ["203.0.113.0/24"]),
        (["192.0.2.0/24"], ["192.0.2.0/24", "198.51.100.1/32"]),
        (["192.0.2.1/32", "198.51.100.0/24"], ["192.0.2.1/32", "198.51.100.0/24"]),
    ],
    ids=[
        "no list: everybody",
        "one range",
        "overlapping ranges and host bits",
        "nothing of this family: everybody",
        "the other family's range is left out",
        "a range of everything: everybody",
        "everything of the other family only",
        "the node may come in: so may the VIP",
        "a VIP inside a listed range",
    ],
)
def test_source_ranges_of_a_vip(ranges: list[str], allowed: list[str] | None) -> None:
    frontend = plan(external(source_ranges=ranges), endpoint_slice("web", HERE))["198.51.100.1:80/tcp"]
    assert frontend.source_ranges == (None if allowed is None else prefixes(*allowed))


def test_a_list_without_any_valid_range_closes_the_vip() -> None:
    made = plan(external(source_ranges_closed=True), endpoint_slice("web", HERE))
    assert made["198.51.100.1:80/tcp"].source_ranges == ()


def test_source_ranges_protect_vips_only() -> None:
    made = plan(external(source_ranges=["203.0.113.0/24"]), endpoint_slice("web", HERE))
    assert {key for key, frontend in made.items() if frontend.source_ranges is not None} == {"198.51.100.1:80/tcp"}


def test_source_ranges_hold_without_endpoints_too() -> None:
    frontend = plan(external(source_ranges=["203.0.113.0/24"]))["198.51.100.1:80/tcp"]
    assert frontend.verdict is Verdict.REJECT
    assert frontend.source_ranges == prefixes("203.0.113.0/24")


def test_without_a_node_address_of_the_family_the_vip_is_no_source() -> None:
    frontend = plan(
        external(source_ranges=["192.0.2.0/24"]),
        context=NodeContext(name="node-1", node_ips=packed("2001:db8::1")),
    )["198.51.100.1:80/tcp"]
    assert frontend.source_ranges == prefixes("192.0.2.0/24")


# --- the rest of a Frontend ---


def test_affinity_holds_for_every_frontend_of_the_service() -> None:
    made = plan(external(affinity_seconds=600), endpoint_slice("web", HERE))
    assert {frontend.affinity_seconds for frontend in made.values()} == {600}


def test_frontends_name_their_service_port_and_its_age() -> None:
    frontend = plan(service(ports=[port(80, name="http")], created="2020-02-02T00:00:00Z"))["10.96.0.1:80/tcp"]
    assert str(frontend.owner) == "default/web:http"
    assert frontend.seniority == ("2020-02-02T00:00:00Z", "default", "web")


def test_endpoints_that_can_run_here_are_hairpin_candidates() -> None:
    remote, unknown = THERE, endpoint("10.180.1.9", node=None)
    made = plan(external(internal_policy=LOCAL), endpoint_slice("web", HERE, remote, unknown))
    assert made["10.96.0.1:80/tcp"].hairpin_addresses == packed("10.180.0.1")
    assert made["198.51.100.1:80/tcp"].hairpin_addresses == packed("10.180.0.1", "10.180.1.9")


def test_a_draining_local_endpoint_in_use_is_a_hairpin_candidate() -> None:
    made = plan(external(external_policy=LOCAL), endpoint_slice("web", draining_endpoint("10.180.0.4"), THERE))
    assert made["198.51.100.1:80/tcp"].hairpin_addresses == packed("10.180.0.4")
    assert made["10.96.0.1:80/tcp"].hairpin_addresses == ()


@pytest.mark.parametrize(("protocol", "listed"), [(Protocol.UDP, True), (Protocol.SCTP, True), (Protocol.TCP, False)])
def test_serving_endpoints_are_listed_where_stale_connections_are_cleaned(protocol: Protocol, listed: bool) -> None:
    made = plan(
        service(ports=[port(53, protocol=protocol)], internal_policy=LOCAL),
        endpoint_slice("web", HERE, THERE, draining_endpoint("10.180.1.4"), ports=[slice_port(protocol=protocol)]),
    )
    (frontend,) = made.values()
    assert texts(frontend.serving_endpoints) == (["10.180.0.1", "10.180.1.2", "10.180.1.4"] if listed else [])
    assert texts(frontend.endpoints) == ["10.180.0.1"]


def test_frontends_of_one_port_share_their_lists() -> None:
    made = plan(external(), endpoint_slice("web", HERE, THERE))
    assert len({id(frontend.endpoints) for frontend in made.values()}) == 1
