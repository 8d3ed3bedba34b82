"""The nftables backend: Frontends in, kernel state equal. Here are the effects; what they are is decided elsewhere."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from netagent import errors, processes
from netagent.model import addresses
from netagent.nftables import (
    capacity,
    culprits,
    diff,
    layout,
    lower,
    mirror,
    netlink,
    owner,
    readback,
    report,
    ruleset,
    shapes,
    tables,
    text,
    transaction,
    wire,
)
from netagent.plan import frontends, node

# A commit that depends on what was read is tried so often with the generation of that; then without.
_GUARDED_ATTEMPTS = 4
# Refusals that no single operation can help.
_NOBODYS_FAULT = frozenset(
    {errno.EPERM, errno.ENOMEM, errno.ENOBUFS, errno.EMSGSIZE, errno.EINTR, errno.EAGAIN, errno.EIO, errno.ECONNREFUSED}
)
_ERESTART = 85  # linux/errno.h; Python has no name for it


class Commit(NamedTuple):
    """What a commit did: number of single operations, of transactions, and bytes sent.

    `conflicts`: how often others had committed between our reading and our writing, so that we looked again.
    """

    operations: int
    transactions: int
    bytes: int
    conflicts: int = 0


class Backend:
    """Our tables in this network namespace, desired and actual.

    Owns: `socket`, what the kernel holds of our tables (`mirror`), and what it should hold (`tables`).
    Use: `read` once, or `watch` and then `follow`; `set_rules` and `update` as often as the plan changes, `pending` to
    see what differs and `commit` to make it so. `follow` whenever `moved` says that others did something.
    Goals: frontends change in one transaction, between one with the shapes that are new and those that take away the
    shapes that are not needed any more; nothing that the kernel refused is forgotten; a family that is not served has
    no table. With `owns`, nobody but this process can change the tables while it lives.
    Threading: none.
    """

    def __init__(self, *, affinity_clients: int, owns: bool = False) -> None:
        self.socket = netlink.NftablesSocket()
        self.tables = tables.Tables(affinity_clients=affinity_clients)
        self.mirror = mirror.Mirror(self.socket, affinity_clients=affinity_clients)
        self._owns = owns
        self._at_fault: frozenset[frontends.FrontendKey] = frozenset()

    def close(self) -> None:
        self.mirror.close()
        self.socket.close()

    @property
    def owner_port(self) -> int:
        """The netlink port of our socket, by which tables name their owner."""
        return self.socket.port

    # What the kernel holds

    def read(self) -> None:
        """Read our tables from the kernel. PrivilegeError without CAP_NET_ADMIN, HeldError if they are somebody's."""
        self._adopt()
        self.mirror.read()
        self.tables.unsettled()

    def _adopt(self) -> None:
        """Become the owner before all is read, so that nobody changes what we have read."""
        if self._owns:
            owner.adopt(self.socket)

    def watch(self) -> int | None:
        """Be told of what others commit. The descriptor that becomes readable then; None if we may not."""
        return self.mirror.watch()

    def moved(self) -> bool:
        """Whether others have done anything to our tables (without `watch`: to any) since our last look."""
        return self.mirror.behind()

    def follow(self) -> tuple[processes.Process, ...] | None:
        """Take over what others did to our tables, for the next commit to put it right; None if they did nothing.

        Returns the processes that did it, as far as the kernel told.
        """
        if not self.mirror.known:
            self._adopt()
        edits = self.mirror.follow()
        if edits is None:
            return None
        self.tables.edited(edits.families, edits.chains, edits.keys)
        return edits.by

    def audit(self, done: Callable[[], None]) -> None:
        """Compare everything that we remember with the kernel, in another thread, and call `done` there at the end;
        then `moved` tells if something is not as it was remembered."""
        self.mirror.audit(done)

    def begin_anew(self) -> None:
        """Forget what the tables should hold, and read what they hold."""
        self.tables = tables.Tables(affinity_clients=self.tables.affinity_clients)
        self.read()

    def served(self) -> Iterator[frontends.FrontendKey]:
        """The keys that the kernel's tables lead to endpoints, whoever wrote them."""
        for family in addresses.Family:
            actual = self.mirror.table(family)
            for name in (layout.FRONTENDS, layout.NODEPORTS):
                for key, value in actual.elements.get(name, {}).items():
                    if shapes.chain_of(actual.elements, value) not in (None, "", layout.REFUSE):
                        frontend = lower.frontend_key(family, name, key)
                        if frontend:
                            yield frontend

    def actual(self, family: addresses.Family) -> readback.ActualTable:
        """Our mirror of the kernel's table."""
        return self.mirror.table(family)

    # What it should hold

    def set_rules(self, rules: Iterable[node.NodeRules]) -> None:
        """Serve these families by these rules of the node, and no other family."""
        found = {family: self.mirror.table(family).elements for family in addresses.Family} if self.mirror.known else {}
        self.tables.set_rules(rules, found)

    def update(
        self, keys: Iterable[frontends.FrontendKey], current: Mapping[frontends.FrontendKey, frontends.Frontend]
    ) -> None:
        """Follow the plan at these keys: `current` has the Frontend of a key, or none."""
        self.tables.update(keys, current)

    # From one to the other

    def pending(self) -> transaction.Transaction:
        """The operations that would make the kernel's tables the desired ones."""
        result = transaction.Transaction()
        for family in addresses.Family:
            actual = self.mirror.table(family)
            lowered = self.tables.lowered.get(family)
            if lowered:
                result += _operations(lowered, actual, owned=self._owns)
            elif actual.exists:
                result += transaction.Transaction((transaction.DeleteTable(family),))
        return result

    def describe(self) -> Iterator[str]:
        """What a commit would do, line by line, for people."""
        return report.lines(self.pending(), self.tables.desired(), map(self.mirror.table, addresses.Family))

    def commands(self) -> Iterator[str]:
        """What a commit would do, as commands that `nft` takes."""
        for operation in self.pending().operations:
            yield from text.operation_lines(operation)

    def commit(self) -> Commit:
        """Commit what is pending; nothing if there is nothing.

        What depends on what was read is refused by the kernel if others have committed since; then it is looked at
        again, a few times, and in the end committed all the same: our tables are ours. What is refused for another
        reason is tried once more when everything has been read anew, as memory may have been wrong.
        CommitRejectedError names the operation that the kernel still refused, and `at_fault` whose it is. Then the
        kernel holds what it held (or, of a change too large for one transaction, a safe part of it), and the next
        commit reads it again first.
        """
        self._at_fault = frozenset()
        conflicts = 0
        while True:
            if not self.mirror.known:
                self.read()
            fresh = self.mirror.fresh
            pending = self.pending()
            try:
                report = self._commit(pending, guarded=conflicts < _GUARDED_ATTEMPTS) if pending else Commit(0, 0, 0)
            except errors.StaleGenerationError:
                conflicts += 1
                self.follow()
            except errors.CommitRejectedError:
                if fresh:
                    raise
            else:
                self.tables.settled()
                return report._replace(conflicts=conflicts)

    def at_fault(self) -> frozenset[frontends.FrontendKey]:
        """The frontends for one of which the last commit was refused; none if the kernel did not say, or it was
        nobody's fault."""
        return self._at_fault

    def cleanup(self) -> bool:
        """Delete our tables, whatever is in them; True if there were any."""
        existing = [family for family in addresses.Family if self.mirror.table(family).exists]
        deletions = transaction.Transaction(tuple(transaction.DeleteTable(family) for family in existing))
        if deletions:
            self._commit(deletions)
            self.tables.unsettled()
        return bool(existing)

    def _commit(self, pending: transaction.Transaction, *, guarded: bool = False) -> Commit:
        transactions = sent = 0
        guard = self.mirror.guard if guarded else None
        self.mirror.expect(pending.count)
        for step in pending.steps():
            for units in self._sendable(step):
                raw = [message for _, messages in units for message in messages]
                sent += sum(map(len, raw))
                transactions += 1
                failures = self.socket.commit(raw, generation=guard if transactions == 1 else None)
                if failures and failures[0].errno == _ERESTART and transactions == 1:
                    raise errors.StaleGenerationError(failures[0].text, errno=_ERESTART)
                if failures:
                    raise self._rejected(failures[0], units)
        self.mirror.applied(pending, commits=transactions)
        return Commit(pending.count, transactions, sent)

    def _sendable(self, pending: transaction.Transaction) -> Iterator[list[_Unit]]:
        """The messages of a transaction: all at once if the send buffer takes them, else in safe pieces."""
        units = list(_units(pending))
        sizes = [sum(map(len, messages)) for _, messages in units]
        limit = self.socket.reserve(sum(sizes))
        piece: list[_Unit] = []
        filled = 0
        for unit, size in zip(units, sizes, strict=True):
            if piece and filled + size > limit:
                yield piece
                piece, filled = [], 0
            piece.append(unit)
            filled += size
        if piece:
            yield piece

    def _rejected(self, failure: netlink.Failure, units: list[_Unit]) -> errors.NetagentError:
        # The mirror may be wrong: that can be the very reason. Nothing is compared by memory until it is read again.
        self.tables.unsettled()
        self.mirror.forget()
        if failure.errno == errno.EPERM:
            return owner.held_error(self.socket) or mirror.privilege_error()
        total = sum(transaction.operations_in(operation) for operations, _ in units for operation in operations)
        at = culprits.find(((unit.operations, unit.messages) for unit in units), failure)
        culprit = at.text if at else None
        if at and failure.errno not in _NOBODYS_FAULT:
            self._at_fault = culprits.users(at.operation, self.tables.lowered)
        what = f": '{culprit}' failed" if culprit else ""
        return errors.CommitRejectedError(
            f"the kernel refused {total} operations on table {ruleset.TABLE_NAME}{what}: {failure.text}; "
            "nothing of them was applied",
            errno=failure.errno,
            operation=culprit,
        )


def _operations(lowered: lower.Lowering, actual: readback.ActualTable, *, owned: bool) -> transaction.Transaction:
    lowered.fit({name: held.size for name, held in actual.sets.items()})
    pending = diff.operations(lowered.table, actual, lowered.touched, chains=lowered.reshaped, owned=owned)
    if capacity.overflows(pending, actual):
        lowered.fit({})
        pending = diff.operations(lowered.table, actual, owned=owned)
    return pending


class _Unit(NamedTuple):
    """Messages that must not be spread over two transactions, and the operations that they carry out."""

    operations: tuple[transaction.Operation, ...]
    messages: list[bytes]


def _units(pending: transaction.Transaction) -> Iterator[_Unit]:
    for _, run in itertools.groupby(pending.operations, _togetherness):
        operations = tuple(run)
        if not isinstance(operations[0], transaction.ElementOperation):
            yield _Unit(operations, [message for operation in operations for message in wire.messages(operation)])
            continue
        for operation in operations:
            assert isinstance(operation, transaction.ElementOperation)
            for piece in transaction.chunks(operation, wire.elements_per_message(operation.spec, operation.family)):
                yield _Unit((piece,), list(wire.messages(piece)))


def _togetherness(operation: transaction.Operation) -> object:
    """Equal for neighbours that take effect together: between the flush of a chain and its rules nothing is served."""
    match operation:
        case transaction.AddChain(family, chain) | transaction.AddRules(family, chain):
            return family, chain.name
        case transaction.DeleteChain(family, name) | transaction.FlushChain(family, name):
            return family, name
        case _:
            return id(operation)
