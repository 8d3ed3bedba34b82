"""The rules that we make do what the behaviour cases say, by the simulator's reading of them; and how many they are."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from netagent.iptables import lower, ruleset
from netagent.model import addresses
from netagent.model.addresses import Family, Protocol
from netagent.nftables import lower as nftables_lower
from netagent.nftables import walk
from netagent.plan import frontends, node
from netagent.plan.frontends import FrontendKind, Masquerade
from tests.cases import loader
from tests.iptables import cases_by_simulation, simulator
from tests.nftables import cases_by_walk, strategies

CASES = {path.name: path for path in loader.case_directories()}


@functools.cache
def report_of(path: Path) -> cases_by_walk.Report:
    return cases_by_simulation.replay(loader.load(path), loader.plan()["defaults"])


@pytest.mark.parametrize("path", CASES.values(), ids=CASES.keys())
def test_the_rules_do_what_the_case_says(path: Path) -> None:
    report = report_of(path)
    assert not report.disagreements, "\n".join(report.disagreements)


def test_only_flows_of_connections_that_exist_already_are_left_out() -> None:
    reports = [report_of(path) for path in CASES.values()]
    checked = sum(report.checked for report in reports)
    skipped = sum((report.skipped for report in reports), Counter[str]())
    assert skipped.keys() <= cases_by_walk.REASONS
    assert checked >= 600
    assert skipped.total() <= checked / 20


# Against the nftables mode, on random clusters ------------------------------------------------------------------


def lowered(rules: node.NodeRules, state: strategies.State) -> lower.Lowering:
    """A fresh lowering of a state."""
    result = lower.Lowering(rules)
    for key, frontend in state.items():
        result.update(key, frontend)
    return result


def step(lowering: lower.Lowering, before: strategies.State, after: strategies.State) -> None:
    """Update a lowering from one state to the next, at the keys that differ."""
    for key in before.keys() | after.keys():
        if before.get(key) != after.get(key):
            lowering.update(key, after.get(key))


def packets(family: Family, state: strategies.State) -> st.SearchStrategy[simulator.Packet]:
    """Packets to frontends and near them, from everywhere."""
    own = strategies.address(family, 1, 1)
    sources = [own, *(strategies.address(family, network, 1) for network in (7, 30, 180, 200))]
    destinations = [own, *(strategies.address(family, network, 3) for network in (30, 31, 96, 97))]
    destinations += [key.address for key in state if key.address]
    dialled = [(key.protocol, key.port) for key in state] + [(Protocol.TCP, 80), (Protocol.UDP, 30003)]

    def packet(source: bytes, destination: bytes, port: tuple[Protocol, int], interface: str) -> simulator.Packet:
        return simulator.Packet(
            own if not interface else source, destination, port[0], port[1], input_interface=interface
        )

    exact = [(key.address or own, (key.protocol, key.port)) for key in state]
    somewhere = st.tuples(st.sampled_from(destinations), st.sampled_from(dialled))
    return st.builds(
        lambda source, target, interface: packet(source, *target, interface),
        st.sampled_from(sources),
        st.sampled_from(exact) | somewhere if exact else somewhere,
        st.sampled_from(("", "eth0", "c", "cni0", "cni01")),
    )


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_both_modes_do_the_same_with_every_packet(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(Family))
    rules = data.draw(strategies.node_rules(family))
    state = data.draw(strategies.states(family))
    made = lowered(rules, state).ruleset
    table = nftables_lower.Lowering(rules, affinity_clients=1024)
    for key, frontend in state.items():
        table.update(key, frontend)
    host = simulator.Host(frozenset({strategies.address(family, 1, 1), strategies.address(family, 30, 2)}))
    for packet in data.draw(st.lists(packets(family, state), min_size=1, max_size=8)):
        theirs = walk.odds(walk.outcomes(table.table, packet, host))
        ours: dict[simulator.Result, Fraction] = {}
        for outcome in simulator.Simulator(made).outcomes(packet, host):
            ours[outcome.result] = ours.get(outcome.result, Fraction(0)) + outcome.probability
        assert ours.keys() == theirs.keys()
        for result, probability in theirs.items():
            assert abs(ours[result] - probability) <= cases_by_simulation.ROUNDING


@pytest.mark.parametrize("family", Family)
def test_where_every_source_is_a_pod_nobody_is_masqueraded(family: Family) -> None:
    everywhere = node.SourcePrefix(addresses.Prefix(bytes(family.address_bytes), 0))
    rules = dataclasses.replace(strategies.plain_rules(family), local_pods=everywhere)
    plain = strategies.cluster_ip_frontend(family)
    local_policy = structs.replace(
        plain, key=plain.key._replace(port=81), masquerade=Masquerade.NEVER_LOCAL, local_endpoints=()
    )
    made = lowered(rules, strategies.state_of(plain, local_policy)).ruleset
    for key in (plain.key, local_policy.key):
        packet = simulator.Packet(
            strategies.address(family, 7, 1), key.address, key.protocol, key.port, input_interface="eth0"
        )
        for outcome in simulator.Simulator(made).outcomes(packet, simulator.Host()):
            assert outcome.result.fate is simulator.Fate.ENDPOINT
            assert not outcome.result.masquerade


@given(st.data())
@settings(deadline=None)
def test_whatever_came_and_went_the_ruleset_is_as_if_made_now(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(Family))
    rules = data.draw(strategies.node_rules(family))
    lowering = lower.Lowering(rules)
    kernel: dict[ruleset.ChainName, ruleset.Rules] = {}
    before: strategies.State = {}
    for state in data.draw(strategies.histories(family, most=4)):
        step(lowering, before, state)
        before = state
        if data.draw(st.booleans()):
            rules = data.draw(strategies.node_rules(family))
            lowering.set_rules(rules)
        desired = lowering.ruleset.chains
        touched = lowering.touched
        for name in kernel.keys() | desired.keys() if touched is None else touched:
            if name in desired:
                kernel[name] = desired[name]
            else:
                kernel.pop(name, None)
        lowering.settled()
        assert kernel == desired
        assert desired == lowered(rules, state).ruleset.chains
        assert not list(cases_by_simulation.audit(lowering.ruleset))


# Sizes ---------------------------------------------------------------------------------------------------------


def cluster(services: int, endpoints: int) -> strategies.State:
    """As many Services with one port each, every one with so many endpoints, and one in ten of them with a node port
    and an external IP."""
    rng = random.Random(services)
    low = int.from_bytes(bytes((10, 96, 0, 1)))
    state: strategies.State = {}
    for number, address in enumerate(rng.sample(range(low, low + (1 << 16)), services)):
        found = sorted(bytes((10, 180, rng.randrange(256), rng.randrange(256))) + b"\x1f\x90" for _ in range(endpoints))
        keys = [(FrontendKind.CLUSTER_IP, address.to_bytes(4), 80, Masquerade.CLUSTER_IP)]
        if number % 10 == 0:
            keys.append((FrontendKind.NODE_PORT, b"", 30000 + number // 10, Masquerade.ALWAYS))
            keys.append((FrontendKind.EXTERNAL_IP, bytes((198, 18, number >> 8, number & 255)), 80, Masquerade.ALWAYS))
        for kind, packed, port, masquerade in keys:
            key = frontends.FrontendKey(Family.IPV4, packed, Protocol.TCP, port)
            state[key] = frontends.Frontend(
                key=key,
                kind=kind,
                owner=frontends.ServicePortName("default", f"service-{number}", "http", Protocol.TCP),
                verdict=frontends.Verdict.SERVE,
                masquerade=masquerade,
                endpoints=tuple(found),
                hairpin_addresses=(found[0][:4],) if number % 50 == 0 else (),
            )
    return state


def test_a_service_of_ten_endpoints_takes_half_the_rules_of_kube_proxy() -> None:
    """kube-proxy: 1 to dispatch, 1 to mark, 10 to choose, 2 for each endpoint: 32."""
    plain = {key: found for key, found in cluster(2000, 10).items() if found.kind is FrontendKind.CLUSTER_IP}
    made = lowered(strategies.plain_rules(Family.IPV4), plain).ruleset
    assert sum(map(len, made.chains.values())) <= 2000 * 16


def test_a_first_packet_meets_sixty_rules_at_most_among_ten_thousand_services() -> None:
    state = cluster(10_000, 10)
    made = lowered(strategies.plain_rules(Family.IPV4), state).ruleset
    host = simulator.Host(frozenset({strategies.address(Family.IPV4, 1, 1)}))
    rng = random.Random(0)
    keys = rng.sample(list(state), 300)
    keys += [key for key in state if not key.address][::10]
    for key in keys:
        for interface in ("", "eth0"):
            packet = simulator.Packet(
                strategies.address(Family.IPV4, 1, 1) if not interface else bytes((203, 0, 113, 1)),
                key.address or strategies.address(Family.IPV4, 1, 1),
                key.protocol,
                key.port,
                input_interface=interface,
            )
            for outcome in simulator.Simulator(made).outcomes(packet, host):
                assert outcome.result.endpoint in state[key].endpoints
                # In all hooks together.
                assert outcome.rules_met <= 60


def test_one_service_more_touches_few_chains() -> None:
    state = cluster(1000, 10)
    rules = strategies.plain_rules(Family.IPV4)
    keys = list(state)
    lowering = lowered(rules, {key: state[key] for key in keys[:-60]})
    lowering.settled()
    counts = []
    for key in keys[-60:]:
        lowering.update(key, state[key])
        assert lowering.touched is not None
        counts.append(len(lowering.touched))
        lowering.settled()
    # Its own three, the one that dispatches to it, and one of the cluster IPs.
    assert sorted(counts)[30] <= 5
    assert max(counts) <= 30


def test_one_endpoint_touches_the_chains_of_its_service() -> None:
    state = cluster(100, 10)
    lowering = lowered(strategies.plain_rules(Family.IPV4), state)
    lowering.settled()
    changed = next(found for found in state.values() if found.kind is FrontendKind.CLUSTER_IP)
    for key, found in state.items():
        if found.owner == changed.owner:
            lowering.update(key, structs.replace(found, endpoints=found.endpoints[1:]))
    assert lowering.touched is not None
    others = set(lowered(strategies.plain_rules(Family.IPV4), {}).ruleset.chains)
    assert lowering.touched.isdisjoint(others)
    assert len(lowering.touched) <= 6


def test_an_update_without_change_touches_nothing() -> None:
    state = cluster(100, 10)
    lowering = lowered(strategies.plain_rules(Family.IPV4), state)
    lowering.settled()
    for key, found in state.items():
        lowering.update(key, found)
    assert lowering.touched == set()


# Long lists ----------------------------------------------------------------------------------------------------


def long_list(*, hosts: range, local: range = range(0), affinity: int | None = None) -> strategies.State:
    """A Service with a cluster IP and a node port, the latter with external policy Local."""
    found, own = (tuple(sorted(strategies.endpoint(Family.IPV6, host) for host in some)) for some in (hosts, local))
    plain = frontends.Frontend(
        key=frontends.FrontendKey(Family.IPV6, strategies.address(Family.IPV6, 96, 1), Protocol.UDP, 80),
        kind=FrontendKind.CLUSTER_IP,
        owner=frontends.ServicePortName("default", "long", "", Protocol.UDP),
        verdict=frontends.Verdict.SERVE,
        masquerade=Masquerade.CLUSTER_IP,
        endpoints=found,
        affinity_seconds=affinity,
    )
    local_policy = structs.replace(
        plain,
        key=frontends.FrontendKey(Family.IPV6, b"", Protocol.UDP, 30080),
        kind=FrontendKind.NODE_PORT,
        masquerade=Masquerade.NEVER_LOCAL,
        local_endpoints=own,
    )
    return strategies.state_of(plain, local_policy)


@pytest.mark.parametrize("affinity", [None, 600])
@pytest.mark.parametrize("count", [16, 20, 100, 2047, 2048])
def test_one_endpoint_of_a_long_list_changes_few_chains(count: int, affinity: int | None) -> None:
    rules = strategies.plain_rules(Family.IPV6)
    before = long_list(hosts=range(1, count + 2), local=range(1, 20), affinity=affinity)
    lowering = lowered(rules, before)
    lowering.settled()
    # The first one leaves: the last takes its place.
    after = long_list(hosts=range(2, count + 2), local=range(2, 20), affinity=affinity)
    step(lowering, before, after)
    assert lowering.touched is not None
    assert len(lowering.touched) <= 24
    assert not list(cases_by_simulation.audit(lowering.ruleset))
    # A new process finds the places in the chains, and has nothing to do.
    again = lower.Lowering(rules, found=lowering.ruleset.chains)
    for key, frontend in after.items():
        again.update(key, frontend)
    assert again.ruleset == lowering.ruleset


def test_a_new_process_finds_places_in_a_kernel_that_holds_something_else() -> None:
    rules = strategies.plain_rules(Family.IPV6)
    wanted = long_list(hosts=range(1, 101))
    whole = lowered(rules, wanted).ruleset.chains
    rng = random.Random(0)
    for _ in range(20):
        found = {name: chain[: rng.randrange(4)] for name, chain in whole.items() if rng.random() < 0.7}
        made = lower.Lowering(rules, found=found)
        for key, frontend in wanted.items():
            made.update(key, frontend)
        assert not list(cases_by_simulation.audit(made.ruleset))
        packet = simulator.Packet(
            strategies.address(Family.IPV6, 7, 1), strategies.address(Family.IPV6, 96, 1), 17, 80, input_interface="e"
        )
        outcomes = simulator.Simulator(made.ruleset).outcomes(packet, simulator.Host())
        assert sorted(str(outcome.result.endpoint) for outcome in outcomes) == sorted(
            map(str, next(iter(wanted.values())).endpoints)
        )
