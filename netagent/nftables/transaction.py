"""A transaction: an ordered, all-or-nothing list of operations on our tables. A value: count it, print it, encode it.

Nouns and verbs are nft's own, but for "replace", which is delete and add in one breath: the kernel has no verb for
giving an element another value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

from netagent.model import addresses
from netagent.nftables import ruleset


@dataclass(frozen=True, slots=True)
class AddTable:
    """Add a table. `owned`: nobody else may change it, and it outlives its owner (flags owner and persist, Linux 6.9);
    for a table that is there and has lost its owner, that is to become it."""

    family: addresses.Family
    owned: bool = False


@dataclass(frozen=True, slots=True)
class DeleteTable:
    family: addresses.Family


@dataclass(frozen=True, slots=True)
class AddSet:
    family: addresses.Family
    spec: ruleset.SetSpec


@dataclass(frozen=True, slots=True)
class DeleteSet:
    family: addresses.Family
    name: str


@dataclass(frozen=True, slots=True)
class AddChain:
    """Add an empty chain."""

    family: addresses.Family
    chain: ruleset.Chain


@dataclass(frozen=True, slots=True)
class DeleteChain:
    """Delete a chain with its rules."""

    family: addresses.Family
    name: str


@dataclass(frozen=True, slots=True)
class FlushChain:
    """Delete all rules of a chain."""

    family: addresses.Family
    name: str


@dataclass(frozen=True, slots=True)
class AddRules:
    """Append the rules of a chain to it."""

    family: addresses.Family
    chain: ruleset.Chain


@dataclass(frozen=True, slots=True)
class AddElements:
    family: addresses.Family
    spec: ruleset.SetSpec
    elements: ruleset.Elements


@dataclass(frozen=True, slots=True)
class ReplaceElements:
    """Give elements another value: delete, then add."""

    family: addresses.Family
    spec: ruleset.SetSpec
    elements: ruleset.Elements


@dataclass(frozen=True, slots=True)
class DeleteElements:
    """Delete elements; `elements` tells the values that they have."""

    family: addresses.Family
    spec: ruleset.SetSpec
    elements: ruleset.Elements


ElementOperation = AddElements | ReplaceElements | DeleteElements
Operation = (
    AddTable | DeleteTable | AddSet | DeleteSet | AddChain | DeleteChain | FlushChain | AddRules | ElementOperation
)


def operations_in(operation: Operation) -> int:
    """How many single operations one entry stands for: each element and each rule counts, a replacement twice."""
    match operation:
        case AddElements() | DeleteElements():
            return len(operation.elements)
        case ReplaceElements():
            return 2 * len(operation.elements)
        case AddRules():
            return len(operation.chain.rules)
        case _:
            return 1


@dataclass(frozen=True, slots=True)
class Transaction:
    """Operations that take effect together.

    Ordered so that no prefix refers to what does not exist: whatever is referred to is added before, and deleted
    after. So a transaction that is too large for one send may be cut anywhere between two elements.
    """

    operations: tuple[Operation, ...] = field(default=())

    @property
    def count(self) -> int:
        """Number of single operations; 0 means that there is nothing to commit."""
        return sum(operations_in(operation) for operation in self.operations)

    def __bool__(self) -> bool:
        return bool(self.operations)

    def __add__(self, other: Transaction) -> Transaction:
        return Transaction(self.operations + other.operations)

    def steps(self) -> Iterator[Transaction]:
        """This transaction as those that are to be committed one after the other, none of them empty.

        The kernel reads which generation a packet belongs to when the packet enters, but looks an element up in the
        generation of that moment. A packet that comes just before a switch can so be led to a chain that comes with
        it, find the chain empty, and pass untranslated (measured: 10 of 2,000 switches under load lost one); or it
        can have read the number of a shape that goes with it. So a shape is there before anything leads to it, and
        stays until nothing does. Kernels before 6.2 count an element's reference to its chain until after the commit,
        so chains go last.

        All of a change that frontends notice is in one of them.
        """
        early, main, late, last = _Steps.of(self)
        for operations in (early, main, late, last):
            if operations:
                yield Transaction(operations)


class _Steps(NamedTuple):
    """The operations of a transaction, by when they take effect."""

    early: tuple[Operation, ...]
    main: tuple[Operation, ...]
    late: tuple[Operation, ...]
    last: tuple[Operation, ...]

    @classmethod
    def of(cls, whole: Transaction) -> _Steps:
        operations = whole.operations
        from_nothing = {found.family for found in operations if isinstance(found, AddTable)}
        removed = {(found.family, found.name) for found in operations if isinstance(found, DeleteChain)}
        added = {(found.family, found.chain.name) for found in operations if isinstance(found, AddChain)}
        new = {
            (found.family, found.chain.name)
            for found in operations
            if isinstance(found, AddChain) and found.chain.hook is None and found.family not in from_nothing
        } - removed
        gone = removed - added

        def step(operation: Operation) -> int:
            match operation:
                case AddSet(family):
                    return 0 if new and family not in from_nothing else 1
                case AddChain(family, chain) | AddRules(family, chain):
                    return 0 if (family, chain.name) in new else 1
                case AddElements(family, spec, elements) if spec.data is ruleset.Data.VERDICT:
                    targets = {(family, value.chain) for value in elements.values() if value.chain}  # type: ignore[union-attr]
                    return 0 if new and family not in from_nothing and not targets & removed else 1
                case DeleteElements(_, spec) if spec.data is ruleset.Data.VERDICT:
                    return 2
                case FlushChain(family, name):
                    return 2 if (family, name) in gone else 1
                case DeleteSet():
                    return 2  # what refers to it is flushed by then
                case DeleteChain(family, name):
                    return 3 if (family, name) in gone else 1
                case _:
                    return 1

        sorted_out: tuple[list[Operation], ...] = ([], [], [], [])
        for operation in operations:
            sorted_out[step(operation)].append(operation)
        return cls(*map(tuple, sorted_out))


def chunks(operation: ElementOperation, most: int) -> Iterator[ElementOperation]:
    """The same operation in pieces of at most `most` elements."""
    if len(operation.elements) <= most:
        yield operation
        return
    items = iter(operation.elements.items())
    while piece := dict(islice(items, most)):
        yield replace(operation, elements=piece)
