"""What a change would do: frontends, chances, conflicts, flows and operations, and nothing where it changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import pytest

from netagent import settings
from netagent.agent import planner
from netagent.explain import change, change_text
from netagent.model import addresses, objects
from netagent.model.addresses import Protocol
from netagent.model.objects import ServiceType, TrafficPolicy
from netagent.nftables import diff as nft_diff
from netagent.nftables import readback, tables
from netagent.source.kinds import Kind, ObjectKey
from tests import builders

DNS_PORT = builders.port(53, name="dns", protocol=Protocol.UDP)
DNS_SLICE_PORT = builders.slice_port(53, name="dns", protocol=Protocol.UDP)


def planned(*found: objects.Object, mode: str = "nftables") -> planner.Planner:
    plan = planner.Planner(settings.override(settings.Settings(), mode=mode), node_name="node-1")
    plan.store.replace([*found, builders.node(), builders.service_cidr()])
    plan.replan()
    return plan


def effect_of(
    plan: planner.Planner, *applied: objects.Object, deleted: Iterable[ObjectKey] = ()
) -> tuple[change.Effect, str]:
    effect = change.effect_of(plan, applied, deleted)
    return effect, "\n".join(change_text.lines(effect, set_aside=(), notes=()))


def key_of(text: str, port: int) -> bytes:
    return addresses.endpoint_key(addresses.parse_address(text), port)


WEB = (builders.service(), builders.endpoint_slice("web", "10.180.0.1", "10.180.0.2"))


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_a_change_that_says_the_same_changes_nothing(mode: str) -> None:
    effect, text = effect_of(planned(*WEB, mode=mode), *WEB)
    assert not effect
    assert text == "no operation in the kernel: the rules would stay as they are"


def test_another_endpoint_changes_the_chance_of_all() -> None:
    effect, text = effect_of(planned(*WEB), builders.endpoint_slice("web", "10.180.0.2", "10.180.0.3", "10.180.0.4"))
    (one,) = effect.changes
    (found,) = change.lists_of(one)
    assert found.clients == "all clients"
    assert (found.before[key_of("10.180.0.2", 8080)], found.after[key_of("10.180.0.2", 8080)]) == (
        Fraction(1, 2),
        Fraction(1, 3),
    )
    assert "- 10.180.0.1:8080  1/2 -> 0" in text
    assert "+ 10.180.0.3:8080  0 -> 1/3" in text


def test_operations_are_counted_as_a_commit_would_count_them() -> None:
    wanted = builders.endpoint_slice("web", "10.180.0.2")
    effect, text = effect_of(planned(*WEB), wanted)
    assert effect.operations == operations_by_hand([*WEB], [WEB[0], wanted])
    assert text.startswith(f"{effect.operations} operations in the kernel\n  table ip netagent: {effect.operations}")


def operations_by_hand(before: list[objects.Object], after: list[objects.Object]) -> int:
    """Of the table that is made from nothing for each state, slots carried over."""
    actual = readback.ActualTable(addresses.Family.IPV4)
    counts = []
    for state in (before, after):
        plan = planned(*state)
        made = tables.Tables(affinity_clients=plan.settings.affinity_clients)
        made.set_rules(plan.rules, {addresses.Family.IPV4: actual.elements})
        made.update(plan.forwarding.frontends, plan.forwarding.frontends)
        pending = nft_diff.operations(made.desired()[0], actual)
        counts.append(pending.count)
        for operation in pending.operations:
            nft_diff.applied(actual, operation)
    return counts[-1]


def test_a_policy_that_makes_no_difference_changes_nothing() -> None:
    effect, _ = effect_of(planned(*WEB), builders.service(internal_policy=TrafficPolicy.LOCAL))
    assert not effect


def test_policy_local_splits_who_gets_which_endpoints() -> None:
    service = builders.service(type=ServiceType.LOAD_BALANCER, vips=["198.18.0.1"])
    slices = builders.endpoint_slice("web", "10.180.0.1", builders.endpoint("10.180.1.1", node="node-2"))
    local = builders.service(type=ServiceType.LOAD_BALANCER, vips=["198.18.0.1"], external_policy=TrafficPolicy.LOCAL)
    effect, text = effect_of(planned(service, slices), local)
    (one,) = effect.changes
    (found,) = change.lists_of(one)
    assert found.clients == "clients from elsewhere"
    assert found.after == {key_of("10.180.0.1", 8080): Fraction(1)}
    assert "for clients from elsewhere by 1 on this node" in text


def test_udp_flows_of_an_endpoint_that_goes_are_named_and_tcp_ones_stay() -> None:
    dns = builders.service("dns", cluster_ips=["10.96.0.10"], ports=[DNS_PORT, builders.port(53, name="tcp")])
    ports = [DNS_SLICE_PORT, builders.slice_port(53, name="tcp")]
    before = builders.endpoint_slice("dns", "10.180.0.1", "10.180.0.2", ports=ports)
    after = builders.endpoint_slice("dns", "10.180.0.2", ports=ports)
    effect, text = effect_of(planned(dns, before), after)
    assert [str(rule.key) for rule in effect.stale] == ["10.96.0.10:53/udp"]
    assert "10.96.0.10:53/udp: those whose endpoint is 10.180.0.1:53" in text


def test_conflicts_come_and_go() -> None:
    first = builders.service("first", created="2020-01-01T00:00:00Z", external_ips=["192.0.2.200"])
    second = builders.service("second", cluster_ips=["10.96.0.2"], external_ips=["192.0.2.200"])
    made, text = effect_of(planned(first), second)
    assert [(str(one.key), one.loser.owner.service) for one in made.made] == [("192.0.2.200:80/tcp", "second")]
    assert "Conflicts that would come:" in text
    plan = planned(first, second)
    solved, text = effect_of(plan, deleted=[(Kind.SERVICE, ("default", "first"))])
    assert [one.winner.owner.service for one in solved.solved] == ["first"]
    assert "Conflicts that would be solved:" in text
    assert "~ 192.0.2.200:80/tcp  default/first -> default/second, external IP" in text


def test_a_frontend_that_moves_between_services_is_told_once() -> None:
    one = builders.service("one", external_ips=["192.0.2.200"])
    other = builders.service("other", cluster_ips=["10.96.0.2"])
    effect, _ = effect_of(
        planned(one, other),
        builders.service("one"),
        builders.service("other", cluster_ips=["10.96.0.2"], external_ips=["192.0.2.200"]),
    )
    assert [str(found.key) for found in effect.changes] == ["192.0.2.200:80/tcp"]


def test_a_change_of_the_node_changes_rules() -> None:
    effect, text = effect_of(planned(*WEB), builders.node(addresses=["192.0.2.50"]))
    assert effect.operations
    assert "~ chain services: other rules" in text


def test_what_the_api_server_keeps_of_a_service_is_kept() -> None:
    base = builders.service(
        type=ServiceType.LOAD_BALANCER, vips=["198.18.0.1"], ports=[builders.port(80, node_port=30080)]
    )
    manifest = builders.service(
        type=ServiceType.LOAD_BALANCER,
        cluster_ips=[],
        ports=[builders.port(80), builders.port(81, name="x")],
        created="",
    )
    filled = change.completed(manifest, base)
    assert filled.service.cluster_ips == base.cluster_ips
    assert filled.service.created == base.created
    assert filled.service.vips == base.vips
    assert [port.node_port for port in filled.service.ports] == [30080, 0]
    assert filled.kept == (
        "cluster IP 10.96.0.1",
        "load balancer address 198.18.0.1",
        "node port 30080 of port 80",
    )
    new = builders.service(cluster_ips=["10.96.0.9"], created="2025-01-01T00:00:00Z")
    assert change.completed(new, None) == (new, (), "")
    assert change.completed(new, base).service.cluster_ips == new.cluster_ips
