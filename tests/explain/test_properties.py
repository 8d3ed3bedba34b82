"""For any cluster a story can be told, its chances are those of the walk, and the kernel's rules tell the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from netagent import settings as configuration
from netagent.agent import planner
from netagent.explain import candidates, comparison, kernel_world, parts, render, stories, targets, telling, world
from netagent.explain.story import Dialled, Source, SourceKind
from netagent.model import addresses, objects
from netagent.model.addresses import Family, Protocol
from netagent.nftables import diff, layout, readback, ruleset, tables, unwire, walk
from netagent.plan import endpoints, node
from tests import builders
from tests.nftables import strategies

SPECS = layout.sets(affinity_clients=65536)


# Frontends that no object is known of ---------------------------------------------------------------------------------


def bare_world(rules: node.NodeRules, state: strategies.State, table: ruleset.Table, host: walk.Host) -> world.World:
    return world.World(
        settings=configuration.Settings(),
        context=node.NodeContext("node-1"),
        node=None,
        rules={rules.family: rules},
        services={},
        slices={},
        frontends=state,
        tables={rules.family: table},
        host=host,
    )


def sources(family: Family) -> st.SearchStrategy[Source]:
    pods = st.integers(1, 9).map(lambda host: strategies.address(family, 180, host))
    others = st.integers(1, 5).map(lambda host: strategies.address(family, 7, host))
    return st.builds(Source, st.sampled_from(SourceKind), pods | others)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_chances_are_those_of_the_walk_and_of_the_kernels_rules(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(strategies.FAMILIES))
    rules = data.draw(strategies.node_rules(family))
    state = data.draw(strategies.states(family))
    own = strategies.address(family, 99, 1)
    host = walk.Host(frozenset({own}))
    made = tables.Tables(affinity_clients=65536)
    made.set_rules([rules])
    made.update(state, state)
    (table,) = made.desired()
    seen = bare_world(rules, state, table, host)
    readable = unwire.table_of(held(table), SPECS)
    kernel = kernel_world.world_of_kernel(
        {family: readable}, settings=configuration.Settings(), node_name="node-1", host=host
    )
    assert set(kernel.frontends) == set(state)
    for key, frontend in state.items():
        source = data.draw(sources(family))
        dialled = Dialled(key.address or own, key.protocol, key.port)
        client = targets.Client(source.kind, source.address)
        (tale,) = parts.part_of(seen, dialled, frontend, client=client).tales
        packet = world.packet_of(source, dialled, rules)
        expected: dict[tuple[bytes, bool], Fraction] = {}
        for result, probability in walk.odds(walk.outcomes(table, packet, host)).items():
            if result.endpoint is not None:
                found = (result.endpoint, result.masquerade)
                expected[found] = expected.get(found, Fraction(0)) + probability
        assert {(share.endpoint, share.masquerade): share.probability for share in tale.shares} == expected
        for share in tale.shares:
            if addresses.endpoint_address(share.endpoint) != source.address:
                assert share.masquerade is telling.is_masqueraded(seen, source, frontend)
        told = parts.part_of(kernel, dialled, kernel.frontends[key], client=client).tales[0]
        if rules.local_pods is None or isinstance(rules.local_pods, node.SourcePrefix):
            assert (told.fate, told.shares) == (tale.fate, tale.shares)
        same = comparison.compared(with_actual(seen, readable), source, dialled, tale.possibilities)
        assert same is not None
        assert same.differences == ()


def held(table: ruleset.Table) -> readback.ActualTable:
    """The kernel's table after a commit of a desired one."""
    actual = readback.ActualTable(table.family)
    for operation in diff.operations(table, actual).operations:
        diff.applied(actual, operation)
    return actual


def with_actual(seen: world.World, readable: unwire.Readable) -> world.World:
    return dataclasses.replace(seen, actual={readable.table.family: readable})


# Clusters of objects --------------------------------------------------------------------------------------------------


NODES = (None, "node-1", "node-2")
ZONES = ((), (), ("a",), ("b",))


def endpoint_of(family: Family) -> st.SearchStrategy[objects.Endpoint]:
    return st.builds(
        objects.Endpoint,
        address=st.integers(1, 4).map(lambda host: strategies.address(family, 180, host)),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        node=st.sampled_from(NODES),
        hint_zones=st.sampled_from(ZONES),
        hint_nodes=st.sampled_from(((), (), ("node-1",), ("node-2",))),
    )


@st.composite
def slices(draw: st.DrawFn) -> list[objects.EndpointSlice]:
    found = []
    for number in range(draw(st.integers(0, 3))):
        family = draw(st.sampled_from((Family.IPV4, Family.IPV4, Family.IPV6)))
        found.append(
            objects.EndpointSlice(
                namespace="default",
                name=f"web-{number}",
                service=objects.ServiceName("default", "web"),
                family=family,
                ports=tuple(
                    draw(
                        st.lists(
                            st.builds(
                                objects.SlicePort,
                                st.sampled_from(("http", "")),
                                st.sampled_from((Protocol.TCP, Protocol.UDP)),
                                st.sampled_from((8080, 8081)),
                            ),
                            max_size=2,
                        )
                    )
                ),
                endpoints=tuple(draw(st.lists(endpoint_of(family), max_size=4))),
            )
        )
    return found


policies = st.sampled_from(objects.TrafficPolicy)
service = st.builds(
    builders.service,
    cluster_ips=st.sampled_from((("10.96.0.1",), ("10.96.0.1", "fd00:96::1"), ())),
    ports=st.just((builders.port(80, name="http", node_port=30080), builders.port(81, protocol=Protocol.UDP))),
    type=st.sampled_from(objects.ServiceType),
    external_ips=st.sampled_from(((), ("192.0.2.200",))),
    vips=st.sampled_from(((), ("198.18.0.1",))),
    source_ranges=st.sampled_from(((), ("203.0.113.0/24",), ("10.180.0.0/16", "2001:db8::/32"))),
    internal_policy=policies,
    external_policy=policies,
    affinity_seconds=st.sampled_from((None, 600)),
    proxy_name=st.sampled_from((None, None, None, "other")),
)
TARGETS = (
    "web", "web:http", "web:99", "10.96.0.1", "10.96.0.1:80", "10.96.0.1:81/udp", "10.96.0.1:8080", "10.96.0.9:80",
    "198.18.0.1:80", "198.18.0.1:9", "192.0.2.200:80", "192.0.2.1:30080", "127.0.0.1:30080", "10.180.0.1:8080",
    "[fd00:96::1]:80", "other",
)  # fmt: skip


def seen_of(found: list[objects.Object], zone: str, changes: Mapping[str, object]) -> world.World:
    wanted = configuration.override(configuration.Settings(), **changes)
    plan = planner.Planner(wanted, node_name="node-1")
    items = [*found, builders.service_cidr(), builders.node(zone=zone)]
    plan.store.replace(items)
    plan.replan()
    return world.world_of(plan, others=items)


@settings(max_examples=25, deadline=None)
@given(
    service,
    slices(),
    st.sampled_from(("", "a")),
    st.sampled_from(({}, {"cluster_cidrs": "10.180.0.0/16"}, {"mode": "iptables"}, {"families": ["IPv4"]})),
    st.sampled_from((None, "node", "pod", "outside:203.0.113.3", "pod:10.180.0.1", "outside:2001:db8::3")),
)
def test_a_story_can_be_told_of_any_service(
    web: objects.Service, found: list[objects.EndpointSlice], zone: str, changes: dict[str, object], client: str | None
) -> None:
    seen = seen_of([web, *found], zone, changes)
    dialling = targets.client_of(client) if client else None
    for text in TARGETS:
        target = targets.target_of(text, namespace="default")
        address = target.address if isinstance(target, targets.AddressTarget) else None
        if address and dialling and dialling.address and len(dialling.address) != len(address):
            continue  # no packet is of two families
        told = stories.story_of(seen, target, text, client=dialling)
        assert list(render.lines(told, with_rules=True))
        assert told.parts or told.reason
        assert render.document(told, with_rules=True)["causes"]
        for part in told.parts:
            used = {one.key for one in part.candidates if one.used}
            assert used == {share.endpoint for tale in part.tales for share in tale.shares}
            for tale in part.tales:
                assert telling.shares_of(tale.possibilities) == tale.shares
                assert sum((share.probability for share in tale.shares), Fraction(0)) in (0, 1)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.integers(1, 9), endpoint_of(Family.IPV4), max_size=5), st.sampled_from(("", "a", "c")))
def test_topology_is_explained_as_it_is_planned(found: dict[int, objects.Endpoint], zone: str) -> None:
    ready = {
        addresses.endpoint_key(strategies.address(Family.IPV4, 180, host), 8080): endpoint
        for host, endpoint in found.items()
    }
    explained = candidates.topology_of(ready, node="node-1", zone=zone)
    assert explained.kept == set(endpoints._through_topology(ready, node="node-1", zone=zone))
    if explained.by:
        assert explained.remark == ""
    elif any(endpoint.hint_nodes or endpoint.hint_zones for endpoint in ready.values()):
        assert explained.remark
