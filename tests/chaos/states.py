"""Two states of a cluster for in-process drills, and what the kernel has compared with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from netagent.model.addresses import Family
from netagent.nftables import backend, layout, transaction
from tests.nftables import strategies
from tests.nftables.test_backend_kernel import want

CLIENTS = 1024
State = strategies.State


@contextlib.contextmanager
def opened(*, owns: bool = False) -> Iterator[backend.Backend]:
    """A backend that has read the kernel, as a fresh process does."""
    found = backend.Backend(affinity_clients=CLIENTS, owns=owns)
    try:
        found.read()
        yield found
    finally:
        found.close()


def before_and_after(services: int = 24) -> tuple[State, State]:
    """Two states that differ in most Services: other endpoints, other numbers of them, Services that come and go."""

    def frontends(*, late: bool) -> State:
        found = []
        for number in range(1, services + 1):
            if number % 12 == (0 if late else 1):  # of the other state alone
                continue
            count = 3 if number % 5 or late else 2
            first = 1 + number % 7 + (20 if late and number % 3 else 0)
            found.append(strategies.cluster_ip_frontend(number=number, count=count, first=first, hairpin=True))
        return strategies.state_of(*found)

    return frontends(late=False), frontends(late=True)


def differences(held: backend.Backend, state: State, *families: Family) -> transaction.Transaction:
    """What would make what the kernel holds this state."""
    want(held, state, *families)
    return held.pending()


def of_frontends(pending: transaction.Transaction) -> list[transaction.Operation]:
    """The operations that a packet can notice: without those on shapes, that come before their users and go after
    them, each in a transaction of its own."""
    return [operation for operation in pending.operations if not _of_shapes(operation)]


def _of_shapes(operation: transaction.Operation) -> bool:
    match operation:
        case transaction.AddElements(_, spec) | transaction.DeleteElements(_, spec):
            return spec.name == layout.SHAPES
        case transaction.AddChain(_, chain) | transaction.AddRules(_, chain):
            return chain.hook is None
        case transaction.DeleteChain() | transaction.FlushChain():
            return True
        case _:
            return False
