"""Which operation of a transaction the kernel refused, and whose it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from netagent.model import addresses
from netagent.nftables import lower, netlink, text, transaction, wire
from netagent.plan import frontends


class Culprit(NamedTuple):
    """The operation at fault: narrowed to one element, or one rule, as far as the kernel told. `text`: in nft's words,
    and how many more it may have been."""

    operation: transaction.Operation
    text: str


def find(
    sent: Iterable[tuple[Sequence[transaction.Operation], Sequence[bytes]]], failure: netlink.Failure
) -> Culprit | None:
    """The operation that a refusal is about, of operations and the messages that carried them out; None if it is about
    the transaction as a whole."""
    position = failure.position
    for operations, messages in sent:
        if 0 <= position < len(messages):
            return _among(operations, messages, position, failure.offset)
        position -= len(messages)
    return None


def _among(
    operations: Sequence[transaction.Operation], messages: Sequence[bytes], position: int, offset: int
) -> Culprit | None:
    message = messages[position]
    for operation in operations:
        count = sum(1 for _ in wire.messages(operation))
        if position >= count:
            position -= count
            continue
        if isinstance(operation, transaction.ElementOperation):
            narrowed = _one_element(operation, wire.element_index(message, offset)) or operation
            return Culprit(narrowed, _in_words(narrowed))
        lines = list(text.operation_lines(operation))
        return Culprit(operation, lines[position] if len(lines) == count else _in_words(operation))
    return None


def _one_element(operation: transaction.ElementOperation, index: int | None) -> transaction.ElementOperation | None:
    if index is None or index >= len(operation.elements):
        return None
    key = list(operation.elements)[index]
    return type(operation)(operation.family, operation.spec, {key: operation.elements[key]})


def _in_words(operation: transaction.Operation) -> str:
    first = next(iter(text.operation_lines(operation)))
    more = transaction.operations_in(operation) - (2 if isinstance(operation, transaction.ReplaceElements) else 1)
    return f"{first} (and {more} more)" if more > 0 else first


def users(
    operation: transaction.Operation, lowered: Mapping[addresses.Family, lower.Lowering]
) -> frozenset[frontends.FrontendKey]:
    """The frontends that want what an operation adds; none if it concerns all, or several and nobody knows which."""
    table = lowered.get(operation.family)
    if table is None:
        return frozenset()
    match operation:
        case transaction.AddElements(_, spec, elements) | transaction.ReplaceElements(_, spec, elements):
            return table.users_of(spec.name, next(iter(elements))) if len(elements) == 1 else frozenset()
        case transaction.AddChain(_, chain) | transaction.AddRules(_, chain):
            return table.users_of_chain(chain.name)
        case _:
            return frozenset()
