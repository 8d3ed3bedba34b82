"""Whether the agent does its work: what /healthz, /livez and /readyz tell."""

from __future__ import annotations

import datetime
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from netagent.model import addresses, objects

# Set by the cluster autoscaler before it takes the node away: load balancers should leave.
DELETION_TAINT: Final = "ToBeDeletedByClusterAutoscaler"
_NEVER: Final = "0001-01-01T00:00:00Z"  # what Go writes for a time that is not set


class Report(NamedTuple):
    """A moment's health. `families` has for each family whether it is healthy and when it was last in sync.

    `sound`: the agent does not break again and again in ways that nobody expects; if it does, what it last wrote may be
    right, but starting it anew is worth a try. Times are seconds since the epoch, None for never.
    """

    now: float
    healthy: bool
    node_eligible: bool
    ready: bool
    families: dict[addresses.Family, tuple[bool, float | None]]
    sources: dict[str, bool]
    sound: bool = True

    @property
    def last_updated(self) -> float | None:
        """When any family was last in sync."""
        return max((synced for _, synced in self.families.values() if synced is not None), default=None)


class _Family:
    """When the oldest update that still waits came, and the newest one (clock); when it was last in sync (wall)."""

    __slots__ = ("newest", "oldest", "synced")

    def __init__(self) -> None:
        self.oldest: float | None = None
        self.newest = 0.0
        self.synced: float | None = None


class AgentHealth:
    """The health of this agent.

    Owns: the facts that the agent's loop tells it. Use: the loop calls `queued` when something has to be written for a
    family, `synced` when it has been, `node` and `source` when they say something new, `loop_turned` in every turn, and
    `stumbled` when something broke that it survived; servers ask `healthy` and `report`.
    Goals: an idle agent is never late, nor is one whose API server is away; one that cannot write is, after twice the
    sync period; one whose loop hangs is, after as long; one that breaks again and again for as long is not sound.
    Threading: any thread.
    """

    def __init__(
        self,
        families: Iterable[addresses.Family],
        *,
        sync_period_seconds: float,
        sources: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`sources` are the kinds that must be in sync before the agent is ready. `wall` is only shown."""
        self._lock = threading.Lock()
        self._patience = 2 * sync_period_seconds
        self._clock = clock
        self._wall = wall
        self._families = {family: _Family() for family in families}
        self._sources = dict.fromkeys(sources, False)
        self._in_sync_since: float | None = None if self._sources else clock()
        self._node_eligible = False  # as in kube-proxy: a node that the API does not know gets no balancer's traffic
        self._turned: float | None = None
        # When it began to break again and again, and when it did last.
        self._stumbling_since = self._stumbled = -math.inf

    # --- what the loop tells -------------------------------------------------------------------------------

    def use(self, families: Iterable[addresses.Family], *, sync_period_seconds: float) -> None:
        """Go on with other settings."""
        with self._lock:
            self._patience = 2 * sync_period_seconds
            self._families = {family: self._families.get(family, _Family()) for family in families}

    def queued(self, family: addresses.Family) -> None:
        """Something has to be written for a family."""
        with self._lock:
            if entry := self._families.get(family):
                entry.newest = self._clock()
                if entry.oldest is None:
                    entry.oldest = entry.newest

    def synced(self, family: addresses.Family, *, began: float | None = None) -> None:
        """The kernel holds what was queued for a family; with `began` (clock) only what was queued until then."""
        with self._lock:
            if entry := self._families.get(family):
                entry.synced = self._wall()
                waits = began is not None and entry.oldest is not None and entry.newest > began
                entry.oldest = max(entry.oldest or 0.0, began or 0.0) if waits else None

    def node(self, node: objects.Node | None) -> None:
        """This Node says something new. None (unknown yet, or deleted) leaves the last state in force."""
        if node is not None:
            with self._lock:
                self._node_eligible = not node.deleting and DELETION_TAINT not in node.taint_keys

    def source(self, kind: str, *, in_sync: bool) -> None:
        """Whether the initial list of a watched kind is complete. Until all are nothing is late."""
        with self._lock:
            self._sources[kind] = in_sync
            if self._in_sync_since is None and all(self._sources.values()):
                self._in_sync_since = self._clock()

    def loop_turned(self) -> None:
        """The agent's loop has come round. Before the first time it is not expected to."""
        self._turned = self._clock()

    def stumbled(self) -> None:
        """Something failed in a way that nobody expected, and was survived."""
        with self._lock:
            now = self._clock()
            if now - self._stumbled > self._patience:
                self._stumbling_since = now
            self._stumbled = now

    # --- what servers ask ----------------------------------------------------------------------------------

    def healthy(self) -> bool:
        """Whether nothing is late: neither what waits to be written nor the loop."""
        now = self._clock()
        with self._lock:
            return self._turns(now) and not any(self._late(entry, now) for entry in self._families.values())

    def queue_age(self, family: addresses.Family) -> float:
        """Seconds that the oldest waiting update of a family has waited; 0 when none does."""
        with self._lock:
            entry = self._families.get(family)
            return max(0.0, self._clock() - entry.oldest) if entry and entry.oldest is not None else 0.0

    def report(self) -> Report:
        now = self._clock()
        with self._lock:
            families = {family: (not self._late(entry, now), entry.synced) for family, entry in self._families.items()}
            synced = all(entry.synced is not None for entry in self._families.values())
            return Report(
                now=self._wall(),
                healthy=self._turns(now) and all(fine for fine, _ in families.values()),
                node_eligible=self._node_eligible,
                ready=synced and all(self._sources.values()),
                families=families,
                sources=dict(self._sources),
                sound=self._sound(now),
            )

    def _late(self, entry: _Family, now: float) -> bool:
        if entry.oldest is None or self._in_sync_since is None:
            return False
        return now - max(entry.oldest, self._in_sync_since) > self._patience

    def _sound(self, now: float) -> bool:
        recently = now - self._stumbled <= self._patience
        return not (recently and self._stumbled - self._stumbling_since > self._patience)

    def _turns(self, now: float) -> bool:
        return self._turned is None or now - self._turned <= self._patience


def rfc3339(seconds: float | None) -> str:
    """A time in UTC with microseconds; Go's zero time for None."""
    if seconds is None:
        return _NEVER
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
