"""One sync: plan what is dirty, commit what differs, then drop the flows that the change left behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from netagent import conntrack, errors, processes, settings
from netagent.agent import backends, drift, planner, refusals
from netagent.model import addresses, objects
from netagent.plan import frontends

log = logging.getLogger(__name__)

# So many Services are set aside in one sync at most; more of them are hardly all at fault.
_SET_ASIDE_MOST = 16


class SyncReport(NamedTuple):
    """What a sync did. `stale_flows` are to be dropped from connection tracking, after the commit.

    `changes` are those that the kernel now has, also of syncs that failed before; `planned` names the Services that
    were planned anew since the last sync that succeeded, None is all of them. `drift` counts the operations that put
    right what somebody else had done to our tables; `conflicts`, how often others committed between our reading and our
    writing. `refused` has the Services that the kernel does not take, and why; the first of them is tried again in
    `again_in` seconds.
    """

    operations: int
    transactions: int
    seconds: float
    stale_flows: tuple[conntrack.StaleFlows, ...]
    changes: tuple[conntrack.FrontendChange, ...] = ()
    planned: frozenset[objects.ServiceName] | None = None
    drift: int = 0
    conflicts: int = 0
    refused: Mapping[objects.ServiceName, str] = MappingProxyType({})
    again_in: float | None = None


class Reconciler:
    """Keeps the kernel equal to the plan.

    Owns: the plan, the backend, the journal of what others did to our rules (`drift`), and the Services that the
    kernel refuses (`refusals`). Use: change `planner.store`, then `sync`; a sync that failed is repeated, and does what
    it left undone.
    Goals: a Service of which the kernel refuses something keeps what it had, and all others go on; nothing that failed
    is forgotten, also when it failed in a way that nobody expected: then the next sync plans everything anew, and reads
    the kernel's tables, as a fresh process would; a sync without change sends nothing to the kernel.
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
        self.drift = drift.Journal()
        self.refusals = refusals.Refusals(clock=clock)
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
        by = self.backend.follow()
        if by is not None and not self._first:
            self._note_drift(by)
        replanned = self.planner.replan()
        if replanned.rules is not None:
            self.backend.set_rules(replanned.rules)
        self.backend.update((change.key for change in replanned.changes), self.planner.forwarding.frontends)
        self._uncommitted = _merged(self._uncommitted, replanned.changes)
        changed = replanned.planned if replanned.planned is not None else self.refusals.reasons
        self.refusals.retry(self.backend, self.planner.forwarding.frontends, changed=changed)
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
            commit = self._commit()
        except errors.NetagentError:
            raise  # the plan is whole, and the backend knows what it does not know
        except Exception:
            self._doubtful = True
            raise
        self.refusals.committed()
        self.drift.repaired()
        refused = self.refusals.keys
        changes = tuple(self._uncommitted)
        if refused:
            changes = tuple(change for change in changes if change.key not in refused)
        stale = (*withdrawn, *conntrack.stale_flow_rules(changes, self._protocols))
        planned, repaired, self._drift = self._planned, self._drift, 0
        self._uncommitted = [change for change in self._uncommitted if change.key in refused] if refused else []
        self._planned = set()
        self._first = False
        return SyncReport(
            commit.operations,
            commit.transactions,
            self._clock() - started,
            stale,
            changes,
            None if planned is None else frozenset(planned),
            repaired,
            commit.conflicts,
            self.refusals.reasons,
            self.refusals.seconds_to_retry(),
        )

    def _commit(self) -> backends.Committed:
        """Commit; without the Services at fault, if it is refused for some. CommitRejectedError if it is nobody's."""
        for _ in range(_SET_ASIDE_MOST):
            try:
                return self.backend.commit()
            except errors.CommitRejectedError as error:
                if not self._set_aside_for(error):
                    raise
        return self.backend.commit()

    def _set_aside_for(self, error: errors.CommitRejectedError) -> bool:
        """Set aside whose operation was refused; False if there is nobody new to set aside."""
        planned = self.planner.forwarding.frontends
        owners = {planned[key].owner.owner for key in self.backend.at_fault() if key in planned}
        done = [
            self.refusals.set_aside(owner, error, backend=self.backend, uncommitted=self._uncommitted, planned=planned)
            for owner in sorted(owners)
        ]
        return any(done)

    def _begin_anew(self) -> None:
        """Something broke in the middle: what is planned and what is lowered may be half of anything. Start from the
        Store and the kernel, as a fresh process does."""
        self.backend.begin_anew()
        self.planner.begin_anew()
        self.refusals.forget()
        self._first = True
        self._doubtful = False

    def _note_drift(self, by: tuple[processes.Process, ...]) -> None:
        """Note what somebody else changed in our rules, and who; the next commit repairs it."""
        pending = self.backend.pending()
        if pending:
            self._drift = pending.count
            self.drift.found(by, pending.count, self.backend.describe())

    def _withdrawn(self) -> list[conntrack.StaleFlows]:
        """Frontends that a previous process served and that have no endpoints now."""
        current = self.planner.forwarding.frontends
        stale: list[conntrack.StaleFlows] = []
        for key in self.backend.served():
            frontend = current.get(key)
            if key.protocol in self._protocols and not (frontend and frontend.serving_endpoints):
                stale.append(conntrack.StaleFlows(key, frozenset()))
        return stale


def _merged(
    left: list[conntrack.FrontendChange], new: Sequence[conntrack.FrontendChange]
) -> list[conntrack.FrontendChange]:
    """Changes that the kernel does not have yet, and those that come now: one for each key as soon as some were left,
    from what the kernel has to what is planned. What is refused for hours, and changes all the time, does not grow."""
    if not left:
        return list(new)
    merged: dict[frontends.FrontendKey, conntrack.FrontendChange] = {}
    for change in (*left, *new):
        first = merged.get(change.key)
        merged[change.key] = change._replace(before=first.before) if first else change
    return list(merged.values())


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
