"""What planning knows of its node, and the rules that belong to the node."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from netagent.model import addresses, objects
from netagent.model.addresses import Family
from netagent.plan.node import (
    InputInterface,
    InputInterfacePrefix,
    NodeContext,
    NodeRules,
    SourcePrefix,
    node_context_of,
    node_rules_of,
)
from netagent.settings import DetectLocalMode, Mode, Settings
from tests.builders import node, packed, prefixes, service_cidr

V4, V6 = Family.IPV4, Family.IPV6


def networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def context_of(settings: Settings, one: objects.Node | None) -> NodeContext:
    return node_context_of(settings, one, name="node-1")


def rules_of(
    settings: Settings,
    one: objects.Node | None = None,
    *cidrs: objects.ServiceCIDR,
    family: Family = V4,
) -> NodeRules:
    return node_rules_of(settings, context_of(settings, one), one, cidrs, family)


# --- NodeContext ---


@pytest.mark.parametrize(
    ("bind_address", "node_addresses", "expected"),
    [
        ("0.0.0.0", ["192.0.2.1", "192.0.2.9", "2001:db8::1"], ["192.0.2.1", "2001:db8::1"]),
        ("0.0.0.0", ["2001:db8::1", "192.0.2.1"], ["2001:db8::1", "192.0.2.1"]),
        ("::", ["192.0.2.1"], ["192.0.2.1"]),
        ("198.51.100.9", ["2001:db8::1", "192.0.2.1"], ["198.51.100.9", "2001:db8::1"]),
        ("2001:db8::9", ["192.0.2.1"], ["2001:db8::9", "192.0.2.1"]),
        ("0.0.0.0", [], []),
        ("0.0.0.0", ["127.0.0.1", "::1"], []),
        ("127.0.0.1", ["192.0.2.1", "2001:db8::1"], ["2001:db8::1"]),
    ],
    ids=[
        "first of each family",
        "the first address gives the primary family",
        "an unspecified bind address says nothing",
        "the bind address replaces its family's and comes first",
        "the bind address may be the only one of its family",
        "none known",
        "loopback is as good as none",
        "a loopback bind address takes its family's away",
    ],
)
def test_node_ips(bind_address: str, node_addresses: list[str], expected: list[str]) -> None:
    settings = Settings(bind_address=ipaddress.ip_address(bind_address))
    context = context_of(settings, node(addresses=node_addresses))
    assert context.node_ips == packed(*expected)


def test_a_node_that_the_api_does_not_know_has_a_name_and_nothing_else() -> None:
    context = context_of(Settings(allow_external_ips=False), None)
    assert context == NodeContext(name="node-1", allow_external_ips=False)
    assert context.node_ip(V4) is None


def test_the_context_ignores_what_planning_a_service_does_not_need() -> None:
    before = context_of(Settings(), node(zone="zone-a"))
    after = context_of(Settings(), node(zone="zone-a", pod_cidrs=["10.180.0.0/24"], taint_keys=["drained"]))
    assert before == after
    assert before.zone == "zone-a"


# --- NodeRules ---


@pytest.mark.parametrize(
    ("settings", "four", "six"),
    [
        ({"cluster_cidrs": networks("10.180.0.0/16")}, "10.180.0.0/16", None),
        ({"cluster_cidrs": networks("fd00:180::/48", "10.180.0.0/16")}, "10.180.0.0/16", "fd00:180::/48"),
        ({}, None, None),
        ({"detect_local_mode": DetectLocalMode.NODE_CIDR}, "10.180.7.0/24", "fd00:180:7::/64"),
    ],
)
def test_pods_are_told_by_their_network(settings: dict[str, Any], four: str | None, six: str | None) -> None:
    one = node(pod_cidrs=["10.180.7.0/24", "fd00:180:7::/64", "10.181.0.0/24"])
    for family, text in ((V4, four), (V6, six)):
        expected = SourcePrefix(addresses.parse_prefix(text)) if text else None
        assert rules_of(Settings(**settings), one, family=family).local_pods == expected


@pytest.mark.parametrize("one", [None, node()], ids=["Node unknown", "Node without podCIDRs"])
def test_without_pod_cidrs_detection_by_them_is_off(one: objects.Node | None) -> None:
    assert rules_of(Settings(detect_local_mode=DetectLocalMode.NODE_CIDR), one).local_pods is None


@pytest.mark.parametrize("family", [V4, V6])
def test_pods_are_told_by_their_interface_in_both_families(family: Family) -> None:
    bridge = Settings(detect_local_mode=DetectLocalMode.BRIDGE_INTERFACE, bridge_interface="cni0")
    assert rules_of(bridge, family=family).local_pods == InputInterface("cni0")
    veths = Settings(detect_local_mode=DetectLocalMode.INTERFACE_NAME_PREFIX, interface_name_prefix="veth")
    assert rules_of(veths, family=family).local_pods == InputInterfacePrefix("veth")


EVERYWHERE = {V4: ["0.0.0.0/0"], V6: ["::/0"]}


@pytest.mark.parametrize(
    ("settings", "family", "expected"),
    [
        ({}, V4, ["192.0.2.1/32"]),
        ({}, V6, []),
        ({"mode": Mode.IPTABLES}, V4, ["0.0.0.0/0"]),
        ({"mode": Mode.IPTABLES}, V6, ["::/0"]),
        ({"node_port_addresses": "primary"}, V4, ["192.0.2.1/32"]),
        ({"node_port_addresses": "primary"}, V6, []),
        ({"node_port_addresses": "primary", "mode": Mode.IPTABLES}, V6, []),
        ({"node_port_addresses": networks("192.0.2.0/25", "192.0.2.0/24")}, V4, ["192.0.2.0/24"]),
        ({"node_port_addresses": networks("192.0.2.0/24")}, V6, ["::/0"]),
        ({"node_port_addresses": networks("2001:db8::/64")}, V4, ["0.0.0.0/0"]),
        ({"node_port_addresses": networks("192.0.2.0/24", "0.0.0.0/0")}, V4, ["0.0.0.0/0"]),
    ],
    ids=[
        "unset in nftables mode is primary",
        "unset, no address of the family: none",
        "unset in iptables mode is everywhere",
        "unset in iptables mode is everywhere, IPv6",
        "primary",
        "primary without address of the family: none, not all",
        "the same in iptables mode",
        "a list, collapsed",
        "a list with nothing of this family is everywhere",
        "a list with nothing of this family is everywhere, IPv4",
        "a list with /0 is everywhere",
    ],
)
def test_node_ports_are_accepted(settings: dict[str, Any], family: Family, expected: list[str]) -> None:
    rules = rules_of(Settings(**settings), node(addresses=["192.0.2.1"]), family=family)
    assert rules.node_port_prefixes == prefixes(*expected)


def test_service_cidrs_of_all_objects_make_one_set_per_family() -> None:
    cidrs = (
        service_cidr("kubernetes", "10.96.0.0/16", "fd00:96::/112"),
        service_cidr("same", "10.96.0.0/16"),
        service_cidr("next", "10.97.0.0/16"),
    )
    assert rules_of(Settings(), None, *cidrs).service_cidrs == prefixes("10.96.0.0/15")
    assert rules_of(Settings(), None, *cidrs, family=V6).service_cidrs == prefixes("fd00:96::/112")
    assert rules_of(Settings()).service_cidrs == ()


def test_masquerading_and_invalid_packets_follow_the_settings() -> None:
    rules = rules_of(Settings(masquerade_bit=31, masquerade_all=True, drop_invalid=True))
    assert (rules.masquerade_mark, rules.masquerade_all, rules.drop_invalid) == (0x8000_0000, True, True)
    assert rules_of(Settings()).masquerade_mark == 0x4000
