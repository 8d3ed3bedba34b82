"""Frontends to elements, one by one: whatever came before, the table means what it would mean if it were made now."""

from __future__ import annotations

import itertools
import struct
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.model.addresses import Family, Protocol
from netagent.nftables import diff, layout, lower, readback, ruleset, shapes, transaction
from netagent.plan import frontends, node

from . import strategies

CLIENTS = 1024


def lowered(
    rules: node.NodeRules, state: strategies.State, found: dict[str, ruleset.Elements] | None = None
) -> lower.Lowering:
    """A fresh lowering of a state."""
    result = lower.Lowering(rules, affinity_clients=CLIENTS, found=found)
    for key, frontend in state.items():
        result.update(key, frontend)
    return result


def step(lowering: lower.Lowering, before: strategies.State, after: strategies.State) -> None:
    """Update a lowering from one state to the next, at the keys that differ."""
    for key in before.keys() | after.keys():
        if before.get(key) != after.get(key):
            lowering.update(key, after.get(key))


def mirrored(table: ruleset.Table) -> readback.ActualTable:
    """A kernel that holds this table."""
    actual = readback.ActualTable(table.family)
    for operation in diff.operations(table, actual).operations:
        diff.applied(actual, operation)
    return actual


def _lists_in(elements: ruleset.Elements) -> dict[tuple[bytes, bool], list[bytes]]:
    """Endpoints by frontend and whether it is the local list. Slots have to be 0..n-1, or the same from the offset."""
    by_slot: dict[tuple[bytes, bool], dict[int, bytes]] = defaultdict(dict)
    for key, value in elements.items():
        slot = struct.unpack("=I", key[-4:])[0]
        assert isinstance(value, bytes)
        by_slot[key[:-4], slot >= shapes.LOCAL_OFFSET][slot % shapes.LOCAL_OFFSET] = value
    for where, found in by_slot.items():
        assert sorted(found) == list(range(len(found))), f"slots of {where} have a hole"
    return {where: sorted(found.values()) for where, found in by_slot.items()}


def _affinity(table: ruleset.Table) -> dict[object, object]:
    """The endpoints behind every frontend with affinity, and which frontends share their records."""
    elements = table.elements
    slots: dict[int, dict[int, bytes]] = defaultdict(dict)
    for key, value in elements[layout.AFFINITY_SLOTS].items():
        number, slot = struct.unpack("=II", key)
        assert number % 65536 == 0
        assert isinstance(value, bytes)
        slots[number >> 16][slot] = value
    left = dict(elements[layout.AFFINITY_ENDPOINTS])
    lists: dict[int, list[ruleset.Value]] = {}
    for number, by_slot in slots.items():
        assert sorted(by_slot) == list(range(len(by_slot))), f"slots of list {number} have a hole"
        found = []
        for value in by_slot.values():
            assert struct.unpack("=I", value)[0] >> 16 == number, "an endpoint's number begins with its list's"
            (key,) = (key for key in left if key[:4] == value)
            found.append(key[4:] + left.pop(key))
        lists[number] = sorted(found)
    assert not left, "every endpoint has a slot"
    sharing: dict[int, set[object]] = defaultdict(set)
    for name in (layout.AFFINITY_PORTS, layout.AFFINITY_NODEPORTS):
        for key, value in elements[name].items():
            assert isinstance(value, bytes)
            number = struct.unpack("=I", value)[0]
            assert number % (1 << 17) == 0
            sharing[number >> 16].add((name, key))
    assert {number & ~1 for number in lists} == set(sharing), "lists are those of the groups in use"
    return {
        key: (frozenset(keys), lists.get(number), lists.get(number | 1))
        for number, keys in sharing.items()
        for key in keys
    }


def meaning(table: ruleset.Table) -> dict[str, object]:
    """What a table does: everything but which slot, affinity number or group an endpoint happens to have."""
    plain = (layout.FRONTENDS, layout.NODEPORTS, layout.CLUSTER_IPS, layout.HAIRPIN, layout.SOURCE_RANGES)
    result: dict[str, object] = {name: table.elements[name] for name in plain}
    result |= {name: _lists_in(table.elements[name]) for name in (layout.BACKENDS, layout.NODEPORT_BACKENDS)}
    result["affinity"] = _affinity(table)
    result["chains"] = table.chains
    assert not table.elements[layout.AFFINITY], "that is for packets to fill"
    return result


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_history_ends_in_the_table_of_its_last_state(family: Family, data: st.DataObject) -> None:
    rules = data.draw(strategies.node_rules(family))
    history = data.draw(strategies.histories(family))
    settled = data.draw(st.booleans())
    lowering = lowered(rules, history[0])
    for before, after in itertools.pairwise(history):
        if settled:
            lowering.settled()
        step(lowering, before, after)
        assert meaning(lowering.table) == meaning(lowered(rules, after).table)


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_changed_rules_of_the_node_leave_nothing_of_the_old_ones(family: Family, data: st.DataObject) -> None:
    state = data.draw(strategies.states(family))
    first, last = data.draw(strategies.node_rules(family)), data.draw(strategies.node_rules(family))
    lowering = lowered(first, state)
    elements = {name: dict(found) for name, found in lowering.table.elements.items()}
    lowering.set_rules(last)
    assert lowering.table.chains == lowered(last, state).table.chains
    assert lowering.table.elements == elements


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_touched_covers_every_difference(family: Family, data: st.DataObject) -> None:
    rules = data.draw(strategies.node_rules(family))
    history = data.draw(strategies.histories(family))
    lowering = lowered(rules, history[0])
    actual = mirrored(lowering.table)
    for before, after in itertools.pairwise(history):
        lowering.settled()
        step(lowering, before, after)
        quick = diff.operations(lowering.table, actual, lowering.touched)
        full = diff.operations(lowering.table, actual)
        assert quick == full
        for operation in full.operations:
            diff.applied(actual, operation)


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_restart_on_an_unchanged_cluster_changes_nothing(family: Family, data: st.DataObject) -> None:
    rules = data.draw(strategies.node_rules(family))
    history = data.draw(strategies.histories(family))
    lowering = lowered(rules, history[0])
    for before, after in itertools.pairwise(history):
        step(lowering, before, after)
    items = data.draw(st.permutations(list(history[-1].items())))
    restarted = lowered(rules, dict(items), found=lowering.table.elements)
    assert restarted.table.elements == lowering.table.elements
    assert not diff.operations(restarted.table, mirrored(lowering.table))


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_restart_on_a_changed_cluster_leaves_nothing_of_the_old_one(family: Family, data: st.DataObject) -> None:
    rules = data.draw(strategies.node_rules(family))
    before, after = data.draw(strategies.states(family)), data.draw(strategies.states(family))
    old = lowered(rules, before).table
    restarted = lowered(rules, after, found=old.elements)
    assert meaning(restarted.table) == meaning(lowered(rules, after).table)


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_repeating_updates_changes_nothing(family: Family, data: st.DataObject) -> None:
    rules = data.draw(strategies.node_rules(family))
    state = data.draw(strategies.states(family))
    lowering = lowered(rules, state)
    lowering.settled()
    elements = {name: dict(found) for name, found in lowering.table.elements.items()}
    for key in data.draw(st.permutations(list(state))):
        lowering.update(key, state[key])
    lowering.update(frontends.FrontendKey(family, bytes(family.address_bytes), Protocol.TCP, 1), None)
    assert lowering.table.elements == elements
    assert not any((lowering.touched or {}).values())


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_an_empty_cluster_leaves_the_fixed_part_only(family: Family, data: st.DataObject) -> None:
    rules = data.draw(strategies.node_rules(family))
    state = data.draw(strategies.states(family))
    lowering = lowered(rules, state)
    for key in data.draw(st.permutations(list(state))):
        lowering.update(key, None)
    assert not any(lowering.table.elements.values())
    assert lowering.table.chains == layout.chains(rules)


@pytest.mark.parametrize("hairpin", [False, True])
@pytest.mark.parametrize("leaver", [0, 2500, 4999])
def test_one_endpoint_of_5000_is_six_element_operations_at_most(hairpin: bool, leaver: int) -> None:
    rules = strategies.plain_rules(Family.IPV4)
    many = strategies.cluster_ip_frontend(count=5000, hairpin=hairpin)
    endpoints = (*many.endpoints[:leaver], *many.endpoints[leaver + 1 :])
    fewer = frontends.Frontend(
        key=many.key,
        kind=many.kind,
        owner=many.owner,
        verdict=many.verdict,
        masquerade=many.masquerade,
        endpoints=endpoints,
        hairpin_addresses=tuple(key[:-2] for key in endpoints) if hairpin else (),
    )
    for before, after in ((many, fewer), (fewer, many)):
        lowering = lowered(rules, strategies.state_of(before))
        actual = mirrored(lowering.table)
        lowering.settled()
        lowering.update(after.key, after)
        pending = diff.operations(lowering.table, actual, lowering.touched)
        # 5,000 endpoints and 4,999 are two shapes, which nobody else has: one comes before, one goes after.
        assert [element_operations(found) for found in pending.steps() if frontend_operations(found) == 0] == [1, 1, 0]
        (change,) = (found for found in pending.steps() if frontend_operations(found))
        assert element_operations(change) <= 6
        assert pending == diff.operations(lowering.table, actual)


def element_operations(pending: transaction.Transaction) -> int:
    """Single operations on elements in a transaction."""
    return sum(
        transaction.operations_in(operation)
        for operation in pending.operations
        if isinstance(operation, transaction.ElementOperation)
    )


def frontend_operations(pending: transaction.Transaction) -> int:
    """Single operations on elements other than those that shapes have."""
    return element_operations(pending) - sum(
        transaction.operations_in(operation)
        for operation in pending.operations
        if isinstance(operation, transaction.ElementOperation) and operation.spec.name == layout.SHAPES
    )


def test_affinity_records_of_a_list_that_comes_back_never_lead_to_another_endpoint() -> None:
    """The last local endpoint leaves and others come, while the group lives on: their numbers are new."""
    rules = strategies.plain_rules(Family.IPV4)
    everywhere = strategies.cluster_ip_frontend(count=4, affinity=600, kind=frontends.FrontendKind.EXTERNAL_IP)

    def with_local(*local: bytes) -> frontends.Frontend:
        fields = {name: getattr(everywhere, name) for name in everywhere.__struct_fields__}
        fields |= {"local_endpoints": local, "masquerade": frontends.Masquerade.NEVER_LOCAL}
        return frontends.Frontend(**fields)

    def local_numbers(lowering: lower.Lowering) -> dict[bytes, ruleset.Value]:
        found = lowering.table.elements[layout.AFFINITY_ENDPOINTS]
        return {key: value for key, value in found.items() if struct.unpack("=I", key[:4])[0] >> 16 & 1}

    lowering = lowered(rules, strategies.state_of(with_local(everywhere.endpoints[0])))
    before = local_numbers(lowering)
    lowering.update(everywhere.key, with_local())
    assert not local_numbers(lowering)
    lowering.update(everywhere.key, with_local(everywhere.endpoints[1]))
    after = local_numbers(lowering)
    assert after
    assert before.keys().isdisjoint(after)
