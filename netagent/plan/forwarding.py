"""What the node should do for all Services together: one Frontend per key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from netagent.model import objects
from netagent.plan.frontends import Frontend, FrontendKey


class Conflict(NamedTuple):
    """A Frontend that does not take effect, and the one of another Service that has its key."""

    loser: Frontend
    winner: Frontend

    @property
    def key(self) -> FrontendKey:
        return self.winner.key


class Forwarding:
    """The desired Frontends of this node.

    Owns: what every Service claims, and for each key the one Frontend that holds: that of the oldest Service,
    then the first by namespace and name. The same claims give the same winners on every node, in whatever
    order they arrived; a loser takes over when the winner goes.

    Use: `update` (or `exchange`) with all Frontends of a Service whenever it may have changed, `update(owner, ())`
    when it is gone; then read `frontends` at the keys that it returned.

    Goals: an update costs what the touched Service has, whatever the size of the cluster; an update without
    change returns nothing.

    Threading: none; one thread writes, and nobody reads meanwhile.
    """

    def __init__(self) -> None:
        self._winners: dict[FrontendKey, Frontend] = {}
        self._view = MappingProxyType(self._winners)
        self._claims_by_owner: dict[objects.ServiceName, tuple[Frontend, ...]] = {}
        # Keys with two or more claimants only: nearly every key has one, which is its winner.
        self._contested: dict[FrontendKey, dict[objects.ServiceName, Frontend]] = {}

    @property
    def frontends(self) -> Mapping[FrontendKey, Frontend]:
        """The Frontend that holds for each key: a live view, not a copy."""
        return self._view

    def owners(self) -> frozenset[objects.ServiceName]:
        """The Services that claim anything, winning or not."""
        return frozenset(self._claims_by_owner)

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return every claim that lost, by key and then by age of the loser."""
        found: list[Conflict] = []
        for key in sorted(self._contested, key=_key_order):
            winner = self._winners[key]
            losers = sorted(self._contested[key].values(), key=_seniority)
            found.extend(Conflict(loser, winner) for loser in losers if loser is not winner)
        return tuple(found)

    def update(self, owner: objects.ServiceName, frontends: Iterable[Frontend]) -> set[FrontendKey]:
        """Make `frontends` all that a Service claims; return the keys whose winning Frontend changed.

        The Frontends belong to `owner`, and no two have the same key. The result is empty when nothing
        changed.
        """
        return set(self.exchange(owner, frontends))

    def exchange(self, owner: objects.ServiceName, frontends: Iterable[Frontend]) -> dict[FrontendKey, Frontend | None]:
        """Like `update`; return also the Frontend that held before for each key, None if there was none."""
        desired = tuple(frontends)
        actual = self._claims_by_owner.get(owner, ())
        displaced: dict[FrontendKey, Frontend | None] = {}
        if desired == actual:
            return displaced
        standing = {frontend.key: frontend for frontend in actual} if actual else {}
        if standing:
            for key in standing.keys() - {frontend.key for frontend in desired}:
                winner = self._winners[key]
                if self._withdraw(owner, key):
                    displaced[key] = winner
        for frontend in desired:
            key = frontend.key
            if standing.get(key) != frontend:
                before = self._winners.get(key)
                if before is None:  # nobody claims it, so nobody contests it
                    self._winners[key] = frontend
                    displaced[key] = None
                elif self._claim(owner, frontend, before):
                    displaced[key] = before
        if desired:
            self._claims_by_owner[owner] = desired
        else:
            self._claims_by_owner.pop(owner, None)
        return displaced

    def _claim(self, owner: objects.ServiceName, frontend: Frontend, winner: Frontend) -> bool:
        """Record a claim that is new or differs from before; tell whether the winner, until now `winner`, changed."""
        key = frontend.key
        if key in self._contested:
            self._contested[key][owner] = frontend
        elif winner.owner.owner == owner:
            self._winners[key] = frontend
            return True
        else:
            self._contested[key] = {winner.owner.owner: winner, owner: frontend}
        return self._settle(key)

    def _withdraw(self, owner: objects.ServiceName, key: FrontendKey) -> bool:
        """Forget a recorded claim; tell whether the winner changed."""
        if key not in self._contested:
            del self._winners[key]
            return True
        del self._contested[key][owner]
        changed = self._settle(key)
        if len(self._contested[key]) == 1:
            del self._contested[key]
        return changed

    def _settle(self, key: FrontendKey) -> bool:
        """Let the most senior claimant of a contested key win; tell whether the winner changed."""
        previous = self._winners[key]
        winner = min(self._contested[key].values(), key=_seniority)
        self._winners[key] = winner
        return winner != previous


def _seniority(frontend: Frontend) -> tuple[str, str, str]:
    return frontend.seniority


def _key_order(key: FrontendKey) -> tuple[str, bytes, int, int]:
    return (key.family.value, key.address, key.protocol, key.port)
