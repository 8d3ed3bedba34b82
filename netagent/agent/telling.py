"""What the agent tells the world while it runs: health, metrics, health check node ports, the service manager."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from netagent import conntrack, errors
from netagent.agent import loop, notify, planner, reconciler
from netagent.agent.health import checks, servers, state
from netagent.agent.metrics import collectors
from netagent.model import addresses, objects
from netagent.plan import health
from netagent.source.api import events
from netagent.source.kinds import Key, Kind

log = logging.getLogger(__name__)

# How often, in seconds, health check node ports are tried again that could not be opened, and follow the addresses of
# the host.
_LISTEN_SECONDS = 10.0


class Telling(loop.Observer):
    """Listens to the loop, and keeps everything that others look at up to date.

    Owns: which health check node ports each Service has, and what was complained of last. Use: as an observer of the
    loop; `heard` is told the events of the API server, before the Store has them.
    Goals: a sync costs what the Services that it touched have; a trouble that stays is logged once, one that ended is
    forgotten.
    Threading: the loop's.
    """

    def __init__(
        self,
        plan: planner.Planner,
        *,
        agent: state.AgentHealth,
        metrics: collectors.Metrics,
        listening: servers.AgentServers,
        service_checks: checks.ServiceHealthChecks,
        notifier: notify.Notifier,
        local_addresses: Callable[[], Collection[bytes]] = conntrack.local_addresses_of_kernel,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._planner = plan
        self._agent = agent
        self._metrics = metrics
        self._listening = listening
        self._checks = service_checks
        self._notifier = notifier
        self._local_addresses = local_addresses
        self._quarantined: Callable[[], Mapping[str, int]] = dict
        self._staleness: Callable[[], Mapping[str, float]] = dict
        self._clock = clock
        self._next_alive = 0.0
        self._check_ports: dict[objects.ServiceName, tuple[health.HealthCheckPort, ...]] = {}
        self._listening_ports: list[health.HealthCheckPort] = []
        self._next_listen = 0.0
        self._ready = False
        self._refused = 0
        self._complaints: dict[str, frozenset[str]] = {}  # by what they are about

    def count_quarantined(self, count: Callable[[], Mapping[str, int]]) -> None:
        """Ask `count` how many objects of each kind are set aside."""
        self._quarantined = count

    def ask_staleness(self, staleness: Callable[[], Mapping[str, float]]) -> None:
        """Ask `staleness` how many seconds ago each kind was last proven to be complete."""
        self._staleness = staleness

    def heard(self, drained: Iterable[events.Event]) -> None:
        """Note what the API server told, before it is planned."""
        for event in drained:
            if event.kind is Kind.SERVICE:
                self._metrics.service_changed()
            elif event.kind is Kind.ENDPOINT_SLICE:
                self._metrics.endpoints_changed()
                self._trigger(event)
            if isinstance(event, events.Listed):
                self._agent.source(event.kind, in_sync=True)
        self._count_quarantined()

    def _count_quarantined(self) -> None:
        """What cannot be read, and what the kernel does not take."""
        self._metrics.quarantined(Counter(self._quarantined()) + Counter({str(Kind.SERVICE): self._refused}))

    def _trigger(self, event: events.Event) -> None:
        match event:
            case events.Applied(object=objects.EndpointSlice() as changed):
                self._triggered(changed)
            case events.Listed():
                slices = [item for item in event.objects if isinstance(item, objects.EndpointSlice)]
                if event.complete:
                    there: set[Key] = {item.key for item in slices}
                    there.update(key for _, key in event.quarantined_keys)
                    self._metrics.triggers.only(there)
                for item in slices:
                    self._triggered(item)
            case events.Deleted(key=(namespace, name)):
                self._metrics.triggers.deleted((namespace, name))

    def _triggered(self, item: objects.EndpointSlice) -> None:
        """A slice was told. What the Store has already is no news: a list tells everything anew."""
        known = self._planner.store.slice_of_key(item.key)
        if item.service and not item.headless and not (known and known.trigger_time == item.trigger_time):
            self._metrics.triggers.changed(item)

    # What the loop tells

    def turned(self) -> None:
        self._agent.loop_turned()
        self._agent.node(self._planner.store.node)
        for kind, seconds in self._staleness().items():
            self._metrics.watch_heard(kind, seconds_ago=seconds)
        every = self._notifier.watchdog_seconds
        if every is not None and self._clock() >= self._next_alive:
            self._next_alive = self._clock() + every
            self._notifier.alive()
        failures = self._listening.ensure()
        if failures:  # without any it may just not have tried
            self._complain("servers", map(str, failures))
        if self._listening_ports and self._clock() >= self._next_listen:
            self._listen()

    def stumbled(self, where: str, error: Exception) -> None:
        self._metrics.stumbled(where)

    def queued(self) -> None:
        for family in self._families():
            self._agent.queued(family)
        self._metrics.queued()

    def synced(self, report: reconciler.SyncReport) -> None:
        for family in self._families():
            self._agent.synced(family)
        self._metrics.synced(
            seconds=report.seconds,
            operations=report.operations,
            transactions=report.transactions,
            full=report.planned is None,
            planned=report.planned,
        )
        self._metrics.silent.update(report.changes)
        if report.drift:
            self._metrics.drift_repaired(report.drift)
        if self._refused != len(report.refused):
            self._refused = len(report.refused)
            self._count_quarantined()
        for _ in range(report.conflicts):
            self._metrics.generation_conflict()
        if report.planned is None or report.planned:
            self._metrics.conflicts(len(self._planner.forwarding.conflicts()))
        self._update_checks(report.planned)
        if not self._ready:
            self._ready = True
            self._notifier.ready("in sync")

    def failed(self, error: errors.NetagentError) -> None:
        self._metrics.sync_failed(seconds=0.0, full=False)
        self._notifier.status(f"sync failed: {error}")

    def dropped(self, report: conntrack.CleanReport, seconds: float) -> None:
        self._metrics.flows_dropped(report.by_family, seconds=seconds)

    def reloaded(self) -> None:
        """The configuration was read again, with whatever result."""
        self._notifier.ready("configuration read again")

    # Health check node ports

    def _update_checks(self, planned: frozenset[objects.ServiceName] | None) -> None:
        store, context = self._planner.store, self._planner.context
        for owner in self._check_ports.keys() | store.services.keys() if planned is None else planned:
            service = store.services.get(owner)
            ports = (
                health.health_check_ports_of(service, store.slices_of(owner), context, self._families())
                if service and service.health_check_node_port
                else ()
            )
            if ports:
                self._check_ports[owner] = ports
            else:
                self._check_ports.pop(owner, None)
        wanted = [port for ports in self._check_ports.values() for port in ports]
        if wanted != self._listening_ports or planned is None:
            self._listening_ports = wanted
            self._listen()

    def _listen(self) -> None:
        """Open and close health check node ports, also as the host's addresses come and go."""
        self._next_listen = self._clock() + _LISTEN_SECONDS
        failures = self._checks.update(self._listening_ports, listen_on=self._listen_addresses())
        self._metrics.health_checks(listening=self._checks.listeners, failed=len(failures))
        self._complain("health check node ports", map(str, failures))

    def _listen_addresses(self) -> dict[addresses.Family, tuple[bytes, ...]]:
        local: Collection[bytes] = frozenset()
        try:
            if self._listening_ports:
                local = self._local_addresses()
        except OSError as error:
            log.warning("cannot read the host's addresses", extra={"reason": str(error)})
        return {
            rules.family: health.listen_addresses(rules.node_port_prefixes, local, rules.family)
            for rules in self._planner.rules
        }

    def _families(self) -> list[addresses.Family]:
        return [rules.family for rules in self._planner.rules]

    def _complain(self, about: str, failures: Iterable[str]) -> None:
        """Log each trouble once until it ends. `failures` are all that there are of it now."""
        now = frozenset(failures)
        for failure in sorted(now - self._complaints.get(about, frozenset())):
            log.warning("%s", failure)
        self._complaints[about] = now
