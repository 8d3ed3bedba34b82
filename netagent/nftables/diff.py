"""Desired against actual: the operations that make the kernel's table ours. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from netagent.model import addresses
from netagent.nftables import layout, readback, ruleset, text, transaction, wire

# Maps whose elements lead packets somewhere: added last, deleted first.
_DISPATCH = (layout.FRONTENDS, layout.NODEPORTS)


def operations(
    desired: ruleset.Table,
    actual: readback.ActualTable,
    touched: Mapping[str, set[bytes]] | None = None,
    *,
    chains: bool = True,
    owned: bool = False,
) -> transaction.Transaction:
    """Return the operations that turn `actual` into `desired`. Empty when they are equal.

    With `touched`, elements are compared at these keys of these sets only, and sets are known to be declared equally;
    without `chains`, the chains are known to be equal. Whatever an operation refers to is added
    before it, and deleted after it. A table with a set that is not declared as we do it is replaced as a whole, and so
    is one that is to be `owned` and cannot be, because that is decided when a table is made.
    """
    family = desired.family
    if not actual.exists:
        touched, chains = None, True
    elif actual.dormant or (owned and not actual.persistent) or (touched is None and not _sets_fit(desired, actual)):
        fresh = readback.ActualTable(family)
        rebuilt = operations(desired, fresh, owned=owned)
        return transaction.Transaction((transaction.DeleteTable(family),)) + rebuilt
    before: list[transaction.Operation] = []
    after: list[transaction.Operation] = []
    if not actual.exists:
        before.append(transaction.AddTable(family, owned=owned))
    if touched is None:
        before += (transaction.AddSet(family, spec) for name, spec in desired.sets.items() if name not in actual.sets)
    if chains:
        _compare_chains(desired, actual, before, after)
    dispatch: list[transaction.Operation] = []
    for name, spec in desired.sets.items():
        if spec.dynamic or (touched is not None and not touched[name]):
            continue
        changes = _elements(desired, actual, spec, None if touched is None else touched[name])
        removed, replaced, added = changes
        order = dispatch if name in _DISPATCH else before
        in_the_way = _in_the_way(spec, family, removed, added)
        if in_the_way:
            order.append(transaction.DeleteElements(family, spec, in_the_way))
            removed = {key: value for key, value in removed.items() if key not in in_the_way}
        if replaced:
            order.append(transaction.ReplaceElements(family, spec, replaced))
        if added:
            order.append(transaction.AddElements(family, spec, added))
        if removed:
            gone = transaction.DeleteElements(family, spec, removed)
            if name in _DISPATCH:
                dispatch.append(gone)
            else:
                after.insert(0, gone)
    return transaction.Transaction((*before, *dispatch, *after))


def _sets_fit(desired: ruleset.Table, actual: readback.ActualTable) -> bool:
    """Whether those of our sets that the kernel has are declared as we would."""
    return all(
        readback.declared_as(actual.sets[name], spec, desired.family)
        for name, spec in desired.sets.items()
        if name in actual.sets
    )


def _compare_chains(
    desired: ruleset.Table,
    actual: readback.ActualTable,
    before: list[transaction.Operation],
    after: list[transaction.Operation],
) -> None:
    family = desired.family
    new: list[ruleset.Chain] = []
    changed: list[ruleset.Chain] = []
    rebuilt: list[ruleset.Chain] = []
    for chain in text.chains_by_reference(desired.chains):
        found = actual.chains.get(chain.name)
        if found is None:
            new.append(chain)
        elif found.hook != chain.hook or found.is_base != (chain.hook is not None):
            rebuilt.append(chain)
        elif found.rules != canonical_rules(chain, family):
            changed.append(chain)
    before += (transaction.AddChain(family, chain) for chain in new)
    before += (transaction.AddRules(family, chain) for chain in new if chain.rules)
    # What is done to one chain stands together, because a transaction is not cut there.
    for chain in changed:
        before.append(transaction.FlushChain(family, chain.name))
        if chain.rules:
            before.append(transaction.AddRules(family, chain))
    for chain in rebuilt:
        # A base chain cannot change its hook; nothing leads to one, so it can go at once.
        before += (transaction.FlushChain(family, chain.name), transaction.DeleteChain(family, chain.name))
        before += (transaction.AddChain(family, chain), transaction.AddRules(family, chain))
    unwanted = [name for name in sorted(actual.chains) if name not in desired.chains]
    after += (transaction.FlushChain(family, name) for name in unwanted if actual.chains[name].rules)
    # A map of somebody else's may lead to a chain of somebody else's.
    after += (transaction.DeleteSet(family, name) for name in sorted(actual.sets) if name not in desired.sets)
    after += (transaction.DeleteChain(family, name) for name in unwanted)


def canonical_rules(chain: ruleset.Chain, family: addresses.Family) -> tuple[readback.CanonicalRule, ...]:
    """A chain's rules as they would be read back."""
    # Chains are compared again and again, and hardly ever are other objects. By name, because to hash all that is in a
    # chain takes longer than the rest of the comparison.
    known = _canonical.get((family, chain.name))
    if known and known[0] is chain:
        return known[1]
    rules = tuple(readback.canonical(wire.expressions(rule, family)) for rule in chain.rules)
    if len(_canonical) >= _CANONICAL_MOST:
        _canonical.clear()
    _canonical[family, chain.name] = (chain, rules)
    return rules


_CANONICAL_MOST = 4096
_canonical: dict[tuple[addresses.Family, str], tuple[ruleset.Chain, tuple[readback.CanonicalRule, ...]]] = {}


def _elements(
    desired: ruleset.Table, actual: readback.ActualTable, spec: ruleset.SetSpec, keys: set[bytes] | None
) -> tuple[ruleset.Elements, ruleset.Elements, ruleset.Elements]:
    """Elements to delete, to replace and to add."""
    want = desired.elements[spec.name]
    have = actual.elements.get(spec.name, {})
    if keys is None:
        if want == have:
            return {}, {}, {}
        if not have:
            return {}, {}, _in_order(spec, want)
        keys = want.keys() | have.keys()
    removed: ruleset.Elements = {}
    replaced: ruleset.Elements = {}
    added: ruleset.Elements = {}
    for key in keys:
        wanted, found = want.get(key), have.get(key)
        if wanted == found:
            continue
        if wanted is None:
            assert found is not None
            removed[key] = found
        elif found is None:
            added[key] = wanted
        else:
            replaced[key] = wanted
    return removed, replaced, _in_order(spec, added)


def _in_the_way(
    spec: ruleset.SetSpec, family: addresses.Family, removed: ruleset.Elements, added: ruleset.Elements
) -> ruleset.Elements:
    """Those of `removed` that `added` may overlap with. The kernel refuses a range that overlaps one that is there
    (ENOTEMPTY), so they go first; should the transaction be cut just there, fewer come in for that moment."""
    if not (spec.intervals and added):
        return {}
    size = ruleset.key_bytes(spec.key[:-1], family)
    changing = {key[:size] for key in added}
    # Where not only the last part is a range, it is not our element, and may overlap with any.
    return {
        key: value
        for key, value in removed.items()
        if key[:size] in changing or key[:size] != key[len(key) // 2 :][:size]
    }


def _in_order(spec: ruleset.SetSpec, elements: ruleset.Elements) -> ruleset.Elements:
    # nft lists a set of ranges in the order in which it was filled; elsewhere the order shows nowhere.
    return dict(sorted(elements.items())) if spec.intervals else elements


def applied(actual: readback.ActualTable, operation: transaction.Operation) -> None:
    """Note in `actual` that the kernel has carried out an operation."""
    match operation:
        case transaction.AddTable(owned=owned):
            actual.exists = True
            actual.persistent = owned
        case transaction.DeleteTable():
            actual.exists = actual.dormant = actual.persistent = False
            actual.owner = 0
            actual.sets, actual.chains, actual.elements = {}, {}, {}
        case transaction.AddSet(spec=spec):
            actual.sets[spec.name] = readback.as_declared(spec, actual.family)
            actual.elements[spec.name] = {}
        case transaction.DeleteSet(name=name):
            actual.sets.pop(name, None)
            actual.elements.pop(name, None)
        case transaction.AddChain(chain=chain):
            actual.chains[chain.name] = readback.ActualChain(chain.name, (), chain.hook, chain.hook is not None)
        case transaction.DeleteChain(name=name):
            actual.chains.pop(name, None)
        case transaction.FlushChain(name=name):
            found = actual.chains[name]
            actual.chains[name] = readback.ActualChain(name, (), found.hook, found.is_base)
        case transaction.AddRules(chain=chain):
            rules = canonical_rules(chain, actual.family)
            actual.chains[chain.name] = readback.ActualChain(chain.name, rules, chain.hook, chain.hook is not None)
        case transaction.AddElements() | transaction.ReplaceElements():
            actual.elements.setdefault(operation.spec.name, {}).update(operation.elements)
        case transaction.DeleteElements():
            elements = actual.elements[operation.spec.name]
            for key in operation.elements:
                elements.pop(key, None)
