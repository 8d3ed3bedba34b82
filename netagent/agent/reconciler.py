"""One sync: plan what is dirty, commit what differs, then drop the flows that the change left behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from netagent import conntrack, errors, settings
from netagent.agent import backends, planner
from netagent.model import addresses, objects

log = logging.getLogger(__name__)

# A whole table that is gone is not told element by element.
_DRIFT_LINES = 20


class SyncReport(NamedTuple):
    """What a sync did. `stale_flows` are to be dropped from connection tracking, after the commit.

    `changes` are those that the kernel now has, also of syncs that failed before; `planned` names the Services that
    were planned anew since the last sync that succeeded, None is all of them. `drift` counts the operations that put
    right what somebody else had done to our tables.
    """

    operations: int
    transactions: int
    seconds: float
    stale_flows: tuple[conntrack.StaleFlows, ...]
    changes: tuple[conntrack.FrontendChange, ...] = ()
    planned: frozenset[objects.ServiceName] | None = None
    drift: int = 0


class Reconciler:
    """Keeps the kernel equal to the plan.

    Owns: the plan and the backend. Use: change `planner.store`, then `sync`; a sync that failed is repeated, and does
    what it left undone.
    Goals: nothing that failed is forgotten, also when it failed in a way that nobody expected: then the next sync plans
    everything anew, and reads the kernel's tables, as a fresh process would; a sync without change sends nothing to the
    kernel.
    Threading: none.
    """

    def __init__(
        self,
        plan: planner.Planner,
        backend: backends.Backend,
        *,
        stale_flow_protocols: frozenset[addresses.Protocol],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.planner = plan
        self.backend: backends.Backend = backend
        self._protocols = stale_flow_protocols
        self._clock = clock
        self._uncommitted: list[conntrack.FrontendChange] = []
        self._planned: set[objects.ServiceName] | None = set()
        self._drift = 0
        self._first = True
        self._doubtful = False

    @property
    def protocols(self) -> frozenset[addresses.Protocol]:
        """Those of which stale flows are dropped."""
        return self._protocols

    def use(self, wanted: settings.Settings) -> None:
        """Plan by other settings from the next sync on."""
        self.planner.use(wanted)
        self._protocols = stale_flow_protocols(wanted)

    def prepare(self) -> None:
        """Bring the desired tables up to date, and the mirror of the kernel's if anybody else touched them."""
        if self._doubtful:
            self._begin_anew()
        processes = self.backend.follow()
        if processes is not None and not self._first:
            self._log_drift(processes)
        replanned = self.planner.replan()
        if replanned.rules is not None:
            self.backend.set_rules(replanned.rules)
        self.backend.update((change.key for change in replanned.changes), self.planner.forwarding.frontends)
        self._uncommitted += replanned.changes
        if replanned.planned is None:
            self._planned = None
        elif self._planned is not None:
            self._planned |= replanned.planned

    def sync(self) -> SyncReport:
        """Make the kernel equal to the plan. CommitRejectedError if it refuses; then the next sync tries again."""
        started = self._clock()
        try:
            self.prepare()
            withdrawn = self._withdrawn() if self._first else []
            commit = self.backend.commit()
        except errors.NetagentError:
            raise  # the plan is whole, and the backend knows what it does not know
        except Exception:
            self._doubtful = True
            raise
        stale = (*withdrawn, *conntrack.stale_flow_rules(self._uncommitted, self._protocols))
        changes, planned = tuple(self._uncommitted), self._planned
        drift, self._drift = self._drift, 0
        self._uncommitted, self._planned = [], set()
        self._first = False
        return SyncReport(
            commit.operations,
            commit.transactions,
            self._clock() - started,
            stale,
            changes,
            None if planned is None else frozenset(planned),
            drift,
        )

    def _begin_anew(self) -> None:
        """Something broke in the middle: what is planned and what is lowered may be half of anything. Start from the
        Store and the kernel, as a fresh process does."""
        self.backend.begin_anew()
        self.planner.begin_anew()
        self._first = True
        self._doubtful = False

    def _log_drift(self, processes: tuple[str, ...]) -> None:
        """Name what somebody else changed in our tables, and who; the next commit repairs it."""
        drift = self.backend.pending()
        if not drift:
            return
        self._drift = drift.count
        lines = list(self.backend.describe())
        facts = {"operations": drift.count, "by": ", ".join(processes) or "unknown"}
        log.warning("somebody changed our tables; repairing", extra=facts)
        for line in lines[:_DRIFT_LINES]:
            log.warning("drift: %s", line)
        if len(lines) > _DRIFT_LINES:
            log.warning("drift: and %d lines more", len(lines) - _DRIFT_LINES)

    def _withdrawn(self) -> list[conntrack.StaleFlows]:
        """Frontends that a previous process served and that have no endpoints now."""
        current = self.planner.forwarding.frontends
        stale: list[conntrack.StaleFlows] = []
        for key in self.backend.served():
            frontend = current.get(key)
            if key.protocol in self._protocols and not (frontend and frontend.serving_endpoints):
                stale.append(conntrack.StaleFlows(key, frozenset()))
        return stale


def stale_flow_protocols(wanted: settings.Settings) -> frozenset[addresses.Protocol]:
    """The protocols of which flows are dropped when their endpoint goes."""
    return frozenset(addresses.Protocol[name] for name in wanted.stale_flow_protocols)


def node_port_addresses(
    reconcile: Reconciler, *, local: Callable[[], Collection[bytes]] = conntrack.local_addresses_of_kernel
) -> Callable[[], frozenset[bytes]]:
    """A function that returns the addresses of this host (`local`) on which it accepts node ports now."""

    def accepted() -> frozenset[bytes]:
        prefixes = [prefix for rules in reconcile.planner.rules for prefix in rules.node_port_prefixes]
        return frozenset(address for address in local() if any(address in prefix for prefix in prefixes))

    return accepted


def drop_stale_flows(
    cleaner: conntrack.FlowCleaner, rules: tuple[conntrack.StaleFlows, ...]
) -> conntrack.CleanReport | None:
    """Drop flows from connection tracking; what cannot be dropped is logged, and expires by itself."""
    if not rules:
        return None
    try:
        report = cleaner.clean(rules)
    except errors.NetagentError as error:
        log.warning("stale flows stay until they expire", extra={"reason": str(error)})
        return None
    for reason in report.errors:
        log.warning("some stale flows may stay until they expire", extra={"reason": reason})
    if report.deleted:
        log.info("stale flows dropped", extra={"deleted": report.deleted, "frontends": len(rules)})
    return report
