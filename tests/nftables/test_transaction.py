"""How a transaction is cut so that no packet meets a half of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.model.addresses import Family
from netagent.nftables import diff, layout, lower, readback, ruleset, transaction

from . import strategies


def _applied(actual: readback.ActualTable, done: transaction.Transaction) -> None:
    for operation in done.operations:
        diff.applied(actual, operation)


def _chains_led_to(part: transaction.Transaction) -> set[str]:
    """Chains that a transaction makes elements lead to."""
    found: set[str] = set()
    for operation in part.operations:
        if isinstance(operation, transaction.AddElements | transaction.ReplaceElements):
            values = operation.elements.values()
            found |= {value.chain for value in values if isinstance(value, ruleset.VerdictValue)}
    return found


def _shapes_led_to(elements: dict[str, ruleset.Elements]) -> set[bytes]:
    """Numbers of shapes that frontends have."""
    return {
        value.value
        for name in (layout.FRONTENDS, layout.NODEPORTS)
        for value in elements.get(name, {}).values()
        if isinstance(value, ruleset.Owned)
    }


def _touches_frontends(part: transaction.Transaction) -> bool:
    quiet = (layout.SHAPES,)
    return any(
        isinstance(operation, transaction.ElementOperation) and operation.spec.name not in quiet
        for operation in part.operations
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_shape_is_there_before_a_frontend_leads_to_it_and_until_none_does(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(Family))
    rules = data.draw(strategies.node_rules(family))
    lowered = lower.Lowering(rules, affinity_clients=100)
    actual = readback.ActualTable(family)
    known: set[object] = set()
    for round_number in range(3):
        state = data.draw(strategies.states(family))
        for key in known | state.keys():
            lowered.update(key, state.get(key))
        known = set(state)
        pending = diff.operations(lowered.table, actual, lowered.touched)
        steps = list(pending.steps())
        assert sum(step.count for step in steps) == pending.count
        assert sum(map(_touches_frontends, steps)) <= 1, "frontends do not change together"
        chains: set[str] = set()
        for step in steps:
            if round_number:
                added = {found.chain.name for found in step.operations if isinstance(found, transaction.AddChain)}
                assert not added or not _touches_frontends(step)
                assert _chains_led_to(step) <= chains | added | actual.chains.keys() | {""}
            before = _shapes_led_to(actual.elements)
            _applied(actual, step)
            known_shapes = actual.elements[layout.SHAPES].keys()
            # A packet may have read the number just before this step took effect, and look it up just after.
            assert before | _shapes_led_to(actual.elements) <= known_shapes
            chains |= actual.chains.keys()
        lowered.settled()
        assert not diff.operations(lowered.table, actual)


def test_chains_go_after_the_elements_that_led_to_them() -> None:
    """Kernels before 6.2 refuse to delete both at once."""
    lowered = lower.Lowering(strategies.plain_rules(Family.IPV4), affinity_clients=100)
    actual = readback.ActualTable(Family.IPV4)
    (before,) = strategies.state_of(strategies.cluster_ip_frontend(count=2)).values()
    (after,) = strategies.state_of(strategies.cluster_ip_frontend(count=3)).values()
    lowered.update(before.key, before)
    _applied(actual, diff.operations(lowered.table, actual))
    lowered.settled()
    lowered.update(after.key, after)
    pending = diff.operations(lowered.table, actual, lowered.touched)
    kinds = [{type(operation) for operation in step.operations} for step in pending.steps()]
    assert kinds == [
        {transaction.AddChain, transaction.AddRules, transaction.AddElements},
        {transaction.AddElements, transaction.ReplaceElements},
        {transaction.DeleteElements, transaction.FlushChain},
        {transaction.DeleteChain},
    ]


def test_a_table_from_nothing_is_one_transaction() -> None:
    state = strategies.state_of(strategies.cluster_ip_frontend(count=2))
    lowered = lower.Lowering(strategies.plain_rules(Family.IPV4), affinity_clients=100)
    for key, frontend in state.items():
        lowered.update(key, frontend)
    pending = diff.operations(lowered.table, readback.ActualTable(Family.IPV4))
    assert list(pending.steps()) == [pending]
