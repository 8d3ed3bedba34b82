"""A transaction in words: which Service, which endpoint, which object of the kernel. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from netagent import escaping
from netagent.model import addresses
from netagent.nftables import layout, readback, ruleset, shapes, slots, text, transaction
from netagent.plan import frontends

_DISPATCH = {layout.FRONTENDS: layout.BACKENDS, layout.NODEPORTS: layout.NODEPORT_BACKENDS}
_AFFINITY = {layout.FRONTENDS: layout.AFFINITY_PORTS, layout.NODEPORTS: layout.AFFINITY_NODEPORTS}
# Told as part of a frontend.
_OF_FRONTENDS = {
    *_DISPATCH,
    *_DISPATCH.values(),
    *_AFFINITY.values(),
    layout.AFFINITY_SLOTS,
    layout.AFFINITY_ENDPOINTS,
}


def lines(
    pending: transaction.Transaction,
    desired: Iterable[ruleset.Table],
    actual: Iterable[readback.ActualTable],
) -> Iterator[str]:
    """What committing a transaction would do, a table at a time, for people. Nothing for an empty one."""
    wanted = {table.family: table for table in desired}
    for had in actual:
        operations = [operation for operation in pending.operations if operation.family is had.family]
        if operations:
            count = sum(map(transaction.operations_in, operations))
            yield f"table {text.table_name(had.family)}: {count} operations"
            # What others made has names and comments of theirs.
            found = _table_lines(operations, wanted.get(had.family), had)
            yield from (f"  {escaping.printable(line)}" for line in found)


def _table_lines(
    operations: list[transaction.Operation], wanted: ruleset.Table | None, had: readback.ActualTable
) -> Iterator[str]:
    if wanted is None:
        yield "- the whole table: this family is not served"
        return
    if any(isinstance(operation, transaction.DeleteTable) for operation in operations):
        had = readback.ActualTable(had.family)
        yield "~ the whole table: its layout is not ours, or it was switched off"
    elif any(isinstance(operation, transaction.AddTable) for operation in operations):
        yield "+ the whole table"
    yield from _structure_lines(operations, wanted)
    yield from _frontend_lines(operations, wanted, had)
    yield from _other_element_lines(operations)


def _structure_lines(operations: list[transaction.Operation], wanted: ruleset.Table) -> Iterator[str]:
    added = {operation.chain.name for operation in operations if isinstance(operation, transaction.AddChain)}
    deleted = {operation.name for operation in operations if isinstance(operation, transaction.DeleteChain)}
    rewritten = {operation.name for operation in operations if isinstance(operation, transaction.FlushChain)}
    for name in sorted(added & deleted):
        yield f"~ chain {name}: not hooked as it should be"
    for name in sorted(rewritten - deleted - added):
        yield f"~ chain {name}: its rules are not ours"
    for name in sorted(added - deleted):
        yield f"+ chain {name}"
    for name in sorted(deleted - added):
        yield f"- chain {name}" + ("" if _may_be_ours(name) else ": not ours")
    for operation in operations:
        if isinstance(operation, transaction.AddSet):
            yield f"+ {'set' if operation.spec.data is None else 'map'} {operation.spec.name}"
        elif isinstance(operation, transaction.DeleteSet):
            yield f"- set {operation.name}: not ours"


def _may_be_ours(name: str) -> bool:
    """Whether a chain is named like one of a shape that is no longer in use."""
    return "-random-" in name or name.startswith("ranges-") or name == "forward"


class View:
    """The endpoints behind each frontend of a table, wherever its maps keep them."""

    def __init__(self, elements: Mapping[str, ruleset.Elements]) -> None:
        self._elements = elements
        self._with_affinity: dict[int, set[bytes]] = {}
        for key, value in elements.get(layout.AFFINITY_ENDPOINTS, {}).items():
            assert isinstance(value, bytes)
            self._with_affinity.setdefault(slots.unpack(key) >> 16, set()).add(value[:-2])
        self.groups: dict[int, list[tuple[str, bytes]]] = {}
        for dispatch, ports in _AFFINITY.items():
            for key, value in elements.get(ports, {}).items():
                assert isinstance(value, bytes)
                self.groups.setdefault(slots.unpack(value) >> 17, []).append((dispatch, key))

    def value(self, dispatch: str, key: bytes) -> ruleset.Value | None:
        return self._elements.get(dispatch, {}).get(key)

    def verdict(self, dispatch: str, key: bytes) -> str:
        """What happens to connections to a frontend, in words; "" if there is none."""
        value = self.value(dispatch, key)
        if value is None:
            return ""
        chain = shapes.chain_of(self._elements, value)
        return "reject" if chain == layout.REFUSE else "drop" if chain == "" else chain or "a chain that is not ours"

    def endpoints(self, dispatch: str, key: bytes) -> tuple[set[bytes], set[bytes]]:
        """The endpoint keys of a frontend's list of all endpoints, and of its local one."""
        group = self._elements.get(_AFFINITY[dispatch], {}).get(key)
        if isinstance(group, bytes):
            number = slots.unpack(group) >> 16
            return self._with_affinity.get(number, set()), self._with_affinity.get(number | 1, set())
        backends = self._elements.get(_DISPATCH[dispatch], {})
        return _in_slots(backends, key, 0), _in_slots(backends, key, shapes.LOCAL_OFFSET)


def _in_slots(elements: ruleset.Elements, prefix: bytes, slot: int) -> set[bytes]:
    found: set[bytes] = set()
    while value := elements.get(prefix + slots.pack(slot)):
        assert isinstance(value, bytes)
        found.add(value[:-2])
        slot += 1
    return found


def _frontend_lines(
    operations: list[transaction.Operation], wanted: ruleset.Table, had: readback.ActualTable
) -> Iterator[str]:
    """One entry for each frontend that changes, with the endpoints that it wins and loses."""
    before, after = View(had.elements), View(wanted.elements)
    for dispatch, key in sorted(_touched(operations, before, after)):
        old, new = before.value(dispatch, key), after.value(dispatch, key)
        sign = "+" if old is None else "-" if new is None else "~"
        spec = wanted.sets[dispatch]
        verdicts = _verdicts(before.verdict(dispatch, key), after.verdict(dispatch, key), _owner(old), _owner(new))
        yield f"{sign} {_frontend_text(spec, wanted.family, dispatch, key)}{verdicts}"
        for kind, had_endpoints, has_endpoints in zip(
            ("endpoint", "local endpoint"),
            before.endpoints(dispatch, key),
            after.endpoints(dispatch, key),
            strict=True,
        ):
            for endpoint in sorted(had_endpoints - has_endpoints):
                yield f"    - {kind} {addresses.format_endpoint(endpoint)}"
            for endpoint in sorted(has_endpoints - had_endpoints):
                yield f"    + {kind} {addresses.format_endpoint(endpoint)}"


def _touched(operations: list[transaction.Operation], before: View, after: View) -> set[tuple[str, bytes]]:
    """The frontends, by map and key, that element operations are about."""
    touched: set[tuple[str, bytes]] = set()
    for operation in operations:
        if not isinstance(operation, transaction.ElementOperation):
            continue
        name = operation.spec.name
        for dispatch in _DISPATCH:
            if name in (dispatch, _AFFINITY[dispatch]):
                touched.update((dispatch, key) for key in operation.elements)
            elif name == _DISPATCH[dispatch]:
                touched.update((dispatch, key[:-4]) for key in operation.elements)
        if name in (layout.AFFINITY_ENDPOINTS, layout.AFFINITY_SLOTS):
            groups = {slots.unpack(key) >> 17 for key in operation.elements}
            touched.update(
                found for view in (before, after) for group in groups for found in view.groups.get(group, ())
            )
    return touched


def _frontend_text(spec: ruleset.SetSpec, family: addresses.Family, dispatch: str, key: bytes) -> str:
    size = family.address_bytes if dispatch == layout.FRONTENDS else 0
    try:
        protocol = addresses.Protocol(key[size] if key else 0)
    except ValueError:
        return f"element {dispatch} {{ {text.key_text(spec, family, key)} }}"
    return str(frontends.FrontendKey(family, key[:size], protocol, int.from_bytes(key[size + 4 : size + 6])))


def _verdicts(old: str, new: str, old_owner: str, new_owner: str) -> str:
    owner = new_owner or old_owner
    shown = f"  {owner}" if owner else "  (nobody's)"
    if not old or not new:
        return f"{shown}: {new or old}"
    if old != new:
        return f"{shown}: {old} -> {new}"
    if old_owner != new_owner:
        return f"{shown}: was {old_owner or 'nobody'}'s"
    return shown


def _owner(value: ruleset.Value | None) -> str:
    return value.owner if isinstance(value, ruleset.Owned) else ""


def _other_element_lines(operations: list[transaction.Operation]) -> Iterator[str]:
    """Elements that belong to no single frontend, as nft spells them."""
    for operation in operations:
        if not isinstance(operation, transaction.ElementOperation):
            continue
        spec = operation.spec
        if spec.name in _OF_FRONTENDS:
            continue
        if spec.name == layout.SHAPES and _told_by_chains(operation, operations):
            continue
        sign = {transaction.AddElements: "+", transaction.DeleteElements: "-"}.get(type(operation), "~")
        for key in sorted(operation.elements):
            yield f"{sign} {spec.name} {text.element(spec, operation.family, key, operation.elements[key])}"


def _told_by_chains(operation: transaction.ElementOperation, operations: list[transaction.Operation]) -> bool:
    """Whether shapes come and go with their chains, as they do by themselves."""
    chains: set[str] = set()
    for found in operations:
        match found:
            case transaction.AddChain(chain=chain):
                chains.add(chain.name)
            case transaction.DeleteChain(name=name):
                chains.add(name)
    values = operation.elements.values()
    return all(isinstance(value, ruleset.VerdictValue) and value.chain in chains for value in values)
