"""From actual to desired: complete, minimal, and safe at every point where a transaction may be cut."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.model.addresses import Family
from netagent.nftables import backend, diff, layout, lower, readback, ruleset, shapes, slots, transaction

from . import strategies
from .test_lower import lowered, mirrored, step


def _expected(table: ruleset.Table) -> readback.ActualTable:
    """What the kernel shows of a table, by a way other than operations."""
    return readback.ActualTable(
        table.family,
        exists=True,
        sets={name: readback.as_declared(spec, table.family) for name, spec in table.sets.items()},
        chains={
            name: readback.ActualChain(
                name, diff.canonical_rules(chain, table.family), chain.hook, chain.hook is not None
            )
            for name, chain in table.chains.items()
        },
        elements=table.elements,
    )


def _tables(data: st.DataObject, family: Family) -> tuple[ruleset.Table, ruleset.Table]:
    """Two related tables of one family; the nodes' rules may differ too."""
    rules = data.draw(strategies.node_rules(family))
    other = data.draw(st.just(rules) | strategies.node_rules(family))
    history = data.draw(strategies.histories(family, most=2))
    lowering = lowered(rules, history[0])
    before = copy.deepcopy(lowering.table)
    lowering.set_rules(other)
    step(lowering, history[0], history[1])
    return before, lowering.table


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_applying_the_difference_makes_actual_desired(family: Family, data: st.DataObject) -> None:
    before, desired = _tables(data, family)
    actual = mirrored(before)
    assert actual == _expected(before)
    for operation in diff.operations(desired, actual).operations:
        diff.applied(actual, operation)
    assert actual == _expected(desired)
    assert not diff.operations(desired, actual)


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_damaged_table_is_repaired(family: Family, data: st.DataObject) -> None:
    """Whatever somebody took away, added or changed, as far as we can see it."""
    _, desired = _tables(data, family)
    actual = copy.deepcopy(mirrored(desired))
    _damage(data, actual)
    for operation in diff.operations(desired, actual).operations:
        diff.applied(actual, operation)
    assert actual == _expected(desired)


def _damage(data: st.DataObject, actual: readback.ActualTable) -> None:
    chains = list(actual.chains)
    for name in data.draw(st.lists(st.sampled_from(chains), unique=True, max_size=2)):
        found = actual.chains[name]
        match data.draw(st.sampled_from(("gone", "empty", "other rules", "other hook"))):
            case "gone":
                del actual.chains[name]
            case "empty":
                actual.chains[name] = replace(found, rules=())
            case "other rules":
                actual.chains[name] = replace(found, rules=(*found.rules, (("immediate", ()),)))
            case _:
                actual.chains[name] = replace(found, hook=None, is_base=True)
    for name in data.draw(st.lists(st.sampled_from(list(actual.elements)), unique=True, max_size=2)):
        found = actual.elements[name]
        if found and data.draw(st.booleans()):
            del found[data.draw(st.sampled_from(sorted(found)))]
        else:
            del actual.sets[name], actual.elements[name]
    if data.draw(st.booleans()):
        actual.chains["strange"] = readback.ActualChain("strange", ((("immediate", ()),),))
    if data.draw(st.booleans()):
        actual.sets["strange"] = readback.ActualSet("strange", 0, 7, 0, counters=False)
    if data.draw(st.booleans()):
        actual.dormant = True


# Cuts ------------------------------------------------------------------------------------------------------------


class _Kernel:
    """A table that refuses what the kernel would refuse, and knows which rules a chain has."""

    def __init__(self, *known: ruleset.Table) -> None:
        self.actual = readback.ActualTable(known[0].family)
        self._rules = {
            diff.canonical_rules(chain, table.family): chain.rules for table in known for chain in table.chains.values()
        }

    def carry_out(self, operation: transaction.Operation) -> None:
        self._check(operation)
        diff.applied(self.actual, operation)

    def rules(self, chain: str) -> tuple[ruleset.Rule, ...]:
        found = self.actual.chains[chain].rules
        return self._rules[found] if found else ()

    def _check(self, operation: transaction.Operation) -> None:
        actual = self.actual
        assert actual.exists or isinstance(operation, transaction.AddTable), operation
        match operation:
            case transaction.AddSet(spec=spec):
                assert spec.name not in actual.sets
            case transaction.DeleteSet(name=name):
                assert name in actual.sets
                assert name not in self._used()
            case transaction.AddChain(chain=chain):
                assert chain.name not in actual.chains
            case transaction.FlushChain(name=name):
                assert name in actual.chains
            case transaction.DeleteChain(name=name):
                assert not actual.chains[name].rules
                assert name not in self._used(), f"chain {name} is deleted in use"
            case transaction.AddRules(chain=chain):
                assert not actual.chains[chain.name].rules, "rules would be there twice"
                used = {name for rule in chain.rules for name in _names(rule)}
                assert used <= actual.chains.keys() | actual.sets.keys(), f"{chain.name} refers to what is not there"
            case transaction.AddElements(spec=spec, elements=elements):
                assert actual.elements[spec.name].keys().isdisjoint(elements)
                self._check_verdicts(elements)
                if spec.intervals:
                    self._check_ranges(spec, elements)
            case transaction.ReplaceElements(spec=spec, elements=elements):
                assert elements.keys() <= actual.elements[spec.name].keys()
                self._check_verdicts(elements)
            case transaction.DeleteElements(spec=spec, elements=elements):
                assert elements.keys() <= actual.elements[spec.name].keys()

    def _check_verdicts(self, elements: ruleset.Elements) -> None:
        for value in elements.values():
            if isinstance(value, ruleset.VerdictValue) and value.chain:
                assert value.chain in self.actual.chains, f"an element leads to {value.chain}, which is not there"

    def _check_ranges(self, spec: ruleset.SetSpec, elements: ruleset.Elements) -> None:
        """The kernel refuses a range that overlaps one that is there (ENOTEMPTY)."""
        for key in elements:
            half = len(key) // 2
            for other in self.actual.elements[spec.name]:
                assert not (key[:half] <= other[half:] and other[:half] <= key[half:]), "ranges overlap"

    def _used(self) -> set[str]:
        """Chains and sets that rules or elements refer to."""
        used = {name for chain in self.actual.chains for rule in self.rules(chain) for name in _names(rule)}
        for elements in self.actual.elements.values():
            used |= {value.chain for value in elements.values() if isinstance(value, ruleset.VerdictValue)}
        return used


def _names(rule: ruleset.Rule) -> Iterator[str]:
    for statement in rule:
        match statement:
            case ruleset.Goto(chain):
                yield chain
            case ruleset.InSet(_, name) | ruleset.VerdictMap(_, name):
                yield name
            case ruleset.SetPriority(ruleset.Lookup(_, name)) | ruleset.Dnat(ruleset.Lookup(_, name)):
                yield name
            case ruleset.Record():
                yield statement.map


def _uncut(pending: transaction.Transaction) -> Iterator[list[transaction.Operation]]:
    """Operations that a transaction is never cut between; elements one by one, which is finer than it ever is."""
    for unit in backend._units(pending):
        for operation in unit.operations:
            if isinstance(operation, transaction.ElementOperation):
                assert len(unit.operations) == 1
                yield from ([piece] for piece in transaction.chunks(operation, 1))
        if not isinstance(unit.operations[0], transaction.ElementOperation):
            yield list(unit.operations)


def _missing_backends(kernel: _Kernel, changing: set[bytes]) -> Iterator[str]:
    """Frontends that may choose an endpoint that is not there. Those whose affinity group is `changing` (another
    Service port took the key over) are left out: group and chain are two elements, and change one after the other."""
    elements = kernel.actual.elements
    for name, groups in ((layout.FRONTENDS, layout.AFFINITY_PORTS), (layout.NODEPORTS, layout.AFFINITY_NODEPORTS)):
        for key, value in elements.get(name, {}).items():
            chain = shapes.chain_of(elements, value)
            if chain is None:
                yield f"{key.hex()} has a shape that is not there"
            if not chain or chain == layout.REFUSE:
                continue
            if key not in changing:
                group = elements[groups].get(key)
                yield from _lost_in(kernel, chain, key, group if isinstance(group, bytes) else None)


_TABLES_OF_SLOTS = {
    layout.TO_ENDPOINT: layout.BACKENDS,
    layout.NODEPORT_TO_ENDPOINT: layout.NODEPORT_BACKENDS,
}


def _lost_in(kernel: _Kernel, chain: str, key: bytes, group: bytes | None) -> Iterator[str]:
    elements = kernel.actual.elements
    rules = kernel.rules(chain)
    if not rules:
        yield f"chain {chain} is empty"
    for rule in rules:
        for statement in rule:
            match statement:
                case ruleset.Goto(target):
                    yield from _lost_in(kernel, target, key, group)
                case ruleset.SetPriority(ruleset.Slot(modulus, offset)):
                    target = next(found.chain for found in rule if isinstance(found, ruleset.Goto))
                    name = _TABLES_OF_SLOTS[target]
                    for index in range(modulus):
                        if key + slots.pack(offset + index) not in elements[name]:
                            yield f"{chain}: slot {offset + index} of {key.hex()}"
                case ruleset.OrPriority(bits):
                    assert group is not None
                    group = slots.pack(int.from_bytes(group, sys.byteorder) | bits)
                case ruleset.SetPriority(ruleset.Lookup((_, ruleset.Slot(modulus)), name)):
                    if group is None:
                        yield f"{chain}: {key.hex()} has no group"
                        continue
                    for index in range(modulus):
                        number = elements[name].get(group + slots.pack(index))
                        found = [endpoint for endpoint in elements[layout.AFFINITY_ENDPOINTS] if endpoint[:4] == number]
                        if not found:
                            yield f"{chain}: slot {index} of list {group.hex()}"


def _walk(kernel: _Kernel, desired: ruleset.Table, pending: transaction.Transaction) -> None:
    """Carry out a transaction, and look at the table wherever it may be cut."""
    changing = {
        key
        for name in (layout.AFFINITY_PORTS, layout.AFFINITY_NODEPORTS)
        for key, value in kernel.actual.elements.get(name, {}).items()
        if desired.elements[name].get(key, value) != value
    }
    for operations in _uncut(pending):
        for operation in operations:
            kernel.carry_out(operation)
        lost = list(_missing_backends(kernel, changing))
        assert not lost, f"after {operations[-1]}: {lost}"


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_cut_leaves_a_frontend_without_its_backends(family: Family, data: st.DataObject) -> None:
    """From nothing, then to another state, then to nothing."""
    before, desired = _tables(data, family)
    nothing = lower.Lowering(strategies.plain_rules(family), affinity_clients=1024).table
    kernel = _Kernel(before, desired, nothing)
    for table in (before, desired, nothing):
        for part in diff.operations(table, kernel.actual).steps():
            _walk(kernel, table, part)
        assert kernel.actual == _expected(table)
        assert not list(_missing_backends(kernel, set()))


def test_a_base_chain_that_is_made_anew_is_so_in_one_step() -> None:
    desired = lowered(strategies.plain_rules(Family.IPV4), {}).table
    actual = mirrored(desired)
    actual.chains["prerouting"] = replace(actual.chains["prerouting"], hook=None)
    (step,) = diff.operations(desired, actual).steps()
    for operation in step.operations:
        diff.applied(actual, operation)
    assert actual == _expected(desired)
