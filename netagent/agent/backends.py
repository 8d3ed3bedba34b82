"""What the agent needs of a data plane. Beyond this it does not know which one there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from netagent import processes
from netagent.plan import frontends, node


class Pending(Protocol):
    """Operations that would make the kernel's rules the desired ones; false if there are none."""

    @property
    def count(self) -> int:
        """Number of single operations."""

    def __bool__(self) -> bool: ...


class Committed(Protocol):
    """What a commit did."""

    @property
    def operations(self) -> int: ...

    @property
    def transactions(self) -> int: ...

    @property
    def conflicts(self) -> int:
        """How often others had committed between our reading and our writing."""


class Backend(Protocol):
    """A data plane: what the kernel holds of ours, what it should hold, and the way from the one to the other."""

    @property
    def owner_port(self) -> int | None:
        """The netlink port of the socket that commits, by which tables name their owner; None where there are no
        tables of ours."""

    def read(self) -> None:
        """Read from the kernel what it holds of ours."""

    def watch(self) -> int | None:
        """Be told of what others do. The descriptor that becomes readable then; None if there is no such thing."""

    def moved(self) -> bool:
        """Whether others may have done something to what is ours. Costs little."""

    def follow(self) -> tuple[processes.Process, ...] | None:
        """Take over what others did; who it was, as far as that is known. None if they did nothing to what is ours."""

    def audit(self, done: Callable[[], None]) -> None:
        """Compare what is remembered with the kernel without keeping anybody waiting. `done` is called at the end, by
        any thread; then `moved` tells if something differs."""

    def begin_anew(self) -> None:
        """Forget what should be, and read what is."""

    def set_rules(self, rules: Iterable[node.NodeRules]) -> None:
        """Serve these families by these rules of the node, and no other family."""

    def update(
        self, keys: Iterable[frontends.FrontendKey], current: Mapping[frontends.FrontendKey, frontends.Frontend]
    ) -> None:
        """Follow the plan at these keys: `current` has the Frontend of a key, or none."""

    def pending(self) -> Pending:
        """What a commit would do."""

    def describe(self) -> Iterator[str]:
        """What a commit would do, line by line, for people."""

    def commands(self) -> Iterator[str]:
        """What a commit would do, as commands of the data plane's own tool."""

    def commit(self) -> Committed:
        """Make the kernel's rules the desired ones. CommitRejectedError if it refuses."""

    def at_fault(self) -> frozenset[frontends.FrontendKey]:
        """The frontends for one of which the last commit was refused; none if that cannot be told, or it was nobody's
        fault."""

    def cleanup(self) -> bool:
        """Remove all that is ours; whether there was anything."""

    def served(self) -> Iterator[frontends.FrontendKey]:
        """The frontends that the kernel's rules lead to endpoints, whoever wrote them."""

    def close(self) -> None:
        """Let go of the kernel; the rules stay."""
