"""All metrics of the agent in one registry, and the calls by which its loop feeds them. See docs/metrics.md."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

import prometheus_client
from prometheus_client import core, exposition
from prometheus_client.registry import Collector

import netagent
from netagent import settings
from netagent.agent.health import state
from netagent.agent.metrics import connections, latency, local_policy
from netagent.model import addresses, objects
from netagent.source.api import recorder, reflector

# kube-proxy's buckets, so that a dashboard for both shows the same.
SYNC_BUCKETS: Final = tuple(0.001 * 2**power for power in range(15))
LATENCY_BUCKETS: Final = (
    0.25, 0.5, *map(float, range(1, 60)), *map(float, range(60, 120, 5)), *map(float, range(120, 301, 30)),
)  # fmt: skip
# Ours tell the milliseconds apart as well.
OWN_SYNC_BUCKETS: Final = (0.000125, 0.00025, 0.0005, *SYNC_BUCKETS)
OWN_LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_FAMILY: Final = ("ip_family",)
_STATUSES: Final = (200, 503)
_OPEN_METRICS: Final = "application/openmetrics-text"
# What stumbles has a name in the code, so that there are few; none may make them many.
_PLACES_MOST: Final = 50
_OTHER_PLACES: Final = "_other"
_SERIES_MOST: Final = settings.Settings().service_metrics_most


class Metrics:
    """What this agent measures.

    Owns: a registry of its own, with the process's metrics. Use: the loop calls the methods below; the metrics server
    calls `exposition` and `slis`.
    Goals: a metric that is documented exists from the first scrape on, at 0; a call costs microseconds; ages are
    computed when they are read, so that a loop that hangs cannot hide it.
    Threading: any thread.
    """

    def __init__(
        self,
        health: state.AgentHealth,
        *,
        mode: settings.Mode,
        families: Iterable[addresses.Family],
        sources: Iterable[str] = (),
        read_connections: Callable[[], Iterable[connections.ElementCount]] | None = None,
        series_most: int = _SERIES_MOST,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`sources` are the watched kinds. Without `read_connections` there are no counters for each Service."""
        # Twice as many series, and nobody asks when a counter was made.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = prometheus_client.CollectorRegistry()
        self.silent = local_policy.NoLocalEndpoints()
        self._families = tuple(families)
        self._clock = clock
        self._wall = wall
        self._triggers = latency.TriggerTimes(agent_start=wall())
        self._own = _Own(self.registry, self._families)
        self._kube = _KubeProxy(self.registry, self._families, mode)
        ages = _Ages(health, self._families, tuple(sources), self.silent, clock)
        self._ages = ages
        self.registry.register(ages)
        self._events = _Events()
        self.registry.register(self._events)
        self._source = _Source(tuple(sources))
        self.registry.register(self._source)
        self._places: set[str] = set()
        prometheus_client.ProcessCollector(registry=self.registry)
        if read_connections is not None:
            self.registry.register(
                connections.ServiceConnections(read_connections, series_most=series_most, clock=clock)
            )
        self._slis = prometheus_client.CollectorRegistry()
        self._checks = prometheus_client.Counter(
            "kubernetes_healthchecks_total", "Answers of the health server.", ("name", "type", "status"), registry=None
        )
        for path, status in itertools.product(("healthz", "livez", "readyz"), ("success", "error")):
            self._checks.labels("netagent", path, status)
        self._slis.register(self._checks)
        self._slis.register(_Checks(health))

    # --- events and syncs ----------------------------------------------------------------------------------

    @property
    def triggers(self) -> latency.TriggerTimes:
        """Tell it of every changed and deleted slice, from the thread of the loop."""
        return self._triggers

    def service_changed(self) -> None:
        """A Service event made something dirty."""
        self._kube.service_changes.inc()
        self._kube.service_changes_pending.inc()

    def endpoints_changed(self) -> None:
        """An EndpointSlice event made something dirty."""
        self._kube.endpoint_changes.inc()
        self._kube.endpoint_changes_pending.inc()

    def queued(self) -> None:
        """A sync has been asked for."""
        for family in self._families:
            self._kube.last_queued.labels(family.value).set(self._wall())

    def synced(
        self,
        *,
        seconds: float,
        operations: int,
        transactions: int,
        full: bool,
        planned: Collection[objects.ServiceName] | None = None,
    ) -> None:
        """A sync succeeded. `full` when it planned every Service; else `planned` may name those that it did.

        The latency of slices whose Service was not planned is not measured: the kernel got nothing of them.
        """
        self._own.syncs.labels("success").inc()
        self._own.operations.inc(operations)
        self._own.transactions.inc(transactions)
        self._ran(seconds, full=full)
        self._kube.service_changes_pending.set(0)
        self._kube.endpoint_changes_pending.set(0)
        now = self._wall()
        for family in self._families:
            self._kube.last_sync.labels(family.value).set(now)
        for family, delay in self._triggers.taken(now=now, planned=planned):
            if family in self._families:
                self._own.latency.labels(family.value).observe(delay)
                self._kube.latency.labels(family.value).observe(delay)

    def sync_failed(self, *, seconds: float, full: bool) -> None:
        """A sync failed; what it should have done waits for the next."""
        self._own.syncs.labels("failure").inc()
        self._ran(seconds, full=full)
        for family in self._families:
            self._kube.failures.labels(family.value).inc()

    def cleanup_failed(self) -> None:
        """Chains that nothing uses any more could not be deleted."""
        for family in self._families:
            if self._kube.cleanup_failures:
                self._kube.cleanup_failures.labels(family.value).inc()

    def _ran(self, seconds: float, *, full: bool) -> None:
        self._own.sync_duration.observe(seconds)
        for family in self._families:
            self._kube.sync_duration.labels(family.value).observe(seconds)
            kind = self._kube.full_duration if full else self._kube.partial_duration
            kind.labels(family.value).observe(seconds)

    # --- what else happens ---------------------------------------------------------------------------------

    def generation_conflict(self) -> None:
        """The kernel refused a commit, since somebody else had committed after our reading."""
        self._own.generation_conflicts.inc()

    def drift_repaired(self, operations: int) -> None:
        """Somebody changed our tables; so many operations put that right."""
        self._own.drift_repairs.inc()
        self._own.drift_operations.inc(operations)

    def flows_dropped(self, deleted: Mapping[addresses.Family, int], *, seconds: float) -> None:
        """A pass over connection tracking ended; the families in `deleted` were looked at."""
        for family, count in deleted.items():
            self._own.flows_deleted.labels(family.value).inc(count)
            self._kube.flows_deleted.labels(family.value).inc(count)
            self._kube.flows_duration.labels(family.value).observe(seconds)

    def quarantined(self, objects: Mapping[str, int]) -> None:
        """So many objects of each kind are set aside now; kinds that are not mentioned have none."""
        for kind in self._own.quarantined_kinds - objects.keys():
            self._own.quarantined.labels(kind).set(0)
        for kind, count in objects.items():
            self._own.quarantined_kinds.add(kind)
            self._own.quarantined.labels(kind).set(count)

    def conflicts(self, count: int) -> None:
        """So many frontends are claimed by a Service that does not have them."""
        self._own.frontend_conflicts.set(count)

    def health_checks(self, *, listening: int, failed: int) -> None:
        """So many sockets of health check node ports listen, and so many cannot."""
        self._own.checks_listening.set(listening)
        self._own.checks_failed.set(failed)

    def count_events(self, counts: Callable[[], recorder.Counts]) -> None:
        """Ask `counts`, at each scrape, what became of the Events so far."""
        self._events.counts = counts

    def count_source(self, counts: Callable[[], Mapping[str, reflector.Counts]]) -> None:
        """Ask `counts`, at each scrape, what was asked of the API server so far, by kind."""
        self._source.counts = counts

    def stumbled(self, where: str) -> None:
        """Something failed in a way that nobody expected, and was survived."""
        if where not in self._places and len(self._places) >= _PLACES_MOST:
            where = _OTHER_PLACES
        self._places.add(where)
        self._own.unexpected_errors.labels(where).inc()

    def watch_heard(self, kind: str, *, seconds_ago: float = 0.0) -> None:
        """The watch of a kind delivered something: an event, a bookmark, a list."""
        self._ages.heard[kind] = self._clock() - seconds_ago

    def health_answered(self, path: str, status: int) -> None:
        """The health server has answered; see `health.pages.health_pages`."""
        self._checks.labels("netagent", path.strip("/"), "success" if status == 200 else "error").inc()
        if path == "/healthz":
            self._kube.healthz.labels(str(status)).inc()
        elif path == "/livez":
            self._kube.livez.labels(str(status)).inc()

    def iptables_rules(self, table: str, family: addresses.Family, *, total: int, last: int) -> None:
        """Mode iptables: rules that a table holds, and those that the last sync wrote."""
        if self._kube.iptables_total and self._kube.iptables_last:
            self._kube.iptables_total.labels(table, family.value).set(total)
            self._kube.iptables_last.labels(table, family.value).set(last)

    # --- reading -------------------------------------------------------------------------------------------

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics in the format that an Accept header asks for, and its content type."""
        return _encoded(self.registry, accept)

    def slis(self, accept: str = "") -> tuple[bytes, str]:
        """Return what Kubernetes components say of their health under /metrics/slis."""
        return _encoded(self._slis, accept)


class _Own:
    """Metrics under our own prefix."""

    def __init__(self, registry: prometheus_client.CollectorRegistry, families: tuple[addresses.Family, ...]) -> None:
        counter, gauge, histogram = _makers(registry, "netagent_", families)
        self.syncs = counter("syncs_total", "Syncs by their result.", ("result",))
        for result in ("success", "failure"):
            self.syncs.labels(result)
        self.sync_duration = histogram("sync_duration_seconds", "Duration of a sync.", OWN_SYNC_BUCKETS, ())
        self.operations = counter("operations_total", "Operations committed to the kernel.")
        self.transactions = counter("transactions_total", "Transactions committed to the kernel.")
        self.latency = histogram(
            "network_programming_duration_seconds",
            "From the trigger time of an EndpointSlice to the commit.",
            OWN_LATENCY_BUCKETS,
        )
        self.generation_conflicts = counter("generation_conflicts_total", "Commits refused for others' commits.")
        self.drift_repairs = counter("drift_repairs_total", "Times that our tables had been changed by others.")
        self.drift_operations = counter("drift_repaired_operations_total", "Operations that put others' changes right.")
        self.flows_deleted = counter(
            "conntrack_deleted_flows_total", "Stale flows deleted from connection tracking.", _FAMILY
        )
        self.quarantined = gauge("quarantined_objects", "Objects that are set aside as bad.", ("kind",))
        self.quarantined_kinds = {"Service", "EndpointSlice", "Node", "ServiceCIDR"}
        for kind in self.quarantined_kinds:
            self.quarantined.labels(kind)
        self.unexpected_errors = counter(
            "unexpected_errors_total", "Errors that nobody expected, survived.", ("where",)
        )
        self.frontend_conflicts = gauge("frontend_conflicts", "Frontends that a Service claims and does not have.")
        self.checks_listening = gauge("healthcheck_listeners", "Sockets of health check node ports that listen.")
        self.checks_failed = gauge("healthcheck_listen_failures", "Sockets of health check node ports that cannot.")
        info = prometheus_client.Info("netagent_build", "The version that runs.", registry=registry)
        info.info({"version": netagent.__version__})


class _KubeProxy:
    """kube-proxy's metrics: its names, labels, buckets and meanings."""

    def __init__(
        self,
        registry: prometheus_client.CollectorRegistry,
        families: tuple[addresses.Family, ...],
        mode: settings.Mode,
    ) -> None:
        counter, gauge, histogram = _makers(registry, "kubeproxy_", families)
        prefix = "sync_proxy_rules_"
        self.sync_duration = histogram(f"{prefix}duration_seconds", "Duration of a sync.", SYNC_BUCKETS)
        self.full_duration = histogram(
            "sync_full_proxy_rules_duration_seconds", "Duration of a sync of every Service.", SYNC_BUCKETS
        )
        self.partial_duration = histogram(
            "sync_partial_proxy_rules_duration_seconds", "Duration of a sync of some Services.", SYNC_BUCKETS
        )
        self.last_sync = gauge(f"{prefix}last_timestamp_seconds", "Time of the last successful sync.", _FAMILY)
        self.last_queued = gauge(f"{prefix}last_queued_timestamp_seconds", "Time of the last request.", _FAMILY)
        self.latency = histogram(
            "network_programming_duration_seconds",
            "From the trigger time of an EndpointSlice to the commit.",
            LATENCY_BUCKETS,
        )
        self.endpoint_changes = counter(f"{prefix}endpoint_changes_total", "EndpointSlice changes seen.")
        self.endpoint_changes_pending = gauge(f"{prefix}endpoint_changes_pending", "EndpointSlice changes that wait.")
        self.service_changes = counter(f"{prefix}service_changes_total", "Service changes seen.")
        self.service_changes_pending = gauge(f"{prefix}service_changes_pending", "Service changes that wait.")
        self.flows_duration = histogram(
            "conntrack_reconciler_sync_duration_seconds", "Duration of a pass over connection tracking.", SYNC_BUCKETS
        )
        self.flows_deleted = counter("conntrack_reconciler_deleted_entries_total", "Stale flows deleted.", _FAMILY)
        self.healthz = counter("proxy_healthz_total", "Answers of /healthz.", ("code",))
        self.livez = counter("proxy_livez_total", "Answers of /livez.", ("code",))
        for code in _STATUSES:
            self.healthz.labels(str(code))
            self.livez.labels(str(code))
        self.cleanup_failures: prometheus_client.Counter | None = None
        self.iptables_total: prometheus_client.Gauge | None = None
        self.iptables_last: prometheus_client.Gauge | None = None
        if mode is settings.Mode.NFTABLES:
            self.failures = counter(f"{prefix}nftables_sync_failures_total", "Failed transactions.", _FAMILY)
            self.cleanup_failures = counter(
                f"{prefix}nftables_cleanup_failures_total", "Failed deletions of unused chains.", _FAMILY
            )
        else:
            self.failures = counter(f"{prefix}iptables_restore_failures_total", "Failed iptables-restore.", _FAMILY)
            counter(f"{prefix}iptables_partial_restore_failures_total", "Always 0: a failure is one of all.", _FAMILY)
            labels = ("table", *_FAMILY)
            self.iptables_total = gauge(f"{prefix}iptables_total", "Rules in a table.", labels)
            self.iptables_last = gauge(f"{prefix}iptables_last", "Rules written by the last sync.", labels)


def _makers(
    registry: prometheus_client.CollectorRegistry, prefix: str, families: tuple[addresses.Family, ...]
) -> tuple[
    Callable[..., prometheus_client.Counter],
    Callable[..., prometheus_client.Gauge],
    Callable[..., prometheus_client.Histogram],
]:
    """Makers of metrics with a prefix. What has the family as its only label exists for each from the beginning."""

    def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> prometheus_client.Counter:
        made = prometheus_client.Counter(prefix + name, text, labels, registry=registry)
        _begin(made, labels)
        return made

    def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> prometheus_client.Gauge:
        made = prometheus_client.Gauge(prefix + name, text, labels, registry=registry)
        _begin(made, labels)
        return made

    def histogram(
        name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = _FAMILY
    ) -> prometheus_client.Histogram:
        made = prometheus_client.Histogram(prefix + name, text, labels, buckets=buckets, registry=registry)
        _begin(made, labels)
        return made

    def _begin(
        made: prometheus_client.Counter | prometheus_client.Gauge | prometheus_client.Histogram,
        labels: tuple[str, ...],
    ) -> None:
        if labels == _FAMILY:
            for family in families:
                made.labels(family.value)

    return counter, gauge, histogram


class _Ages(Collector):
    """What is computed when it is read: ages, and what others count."""

    def __init__(
        self,
        health: state.AgentHealth,
        families: tuple[addresses.Family, ...],
        sources: tuple[str, ...],
        silent: local_policy.NoLocalEndpoints,
        clock: Callable[[], float],
    ) -> None:
        self.heard: dict[str, float] = dict.fromkeys(sources, clock())
        self._health = health
        self._families = families
        self._silent = silent
        self._clock = clock

    def collect(self) -> Iterator[core.Metric]:
        queue = core.GaugeMetricFamily(
            "netagent_queue_age_seconds", "How long the oldest change that is not in the kernel waits.", labels=_FAMILY
        )
        stale = core.GaugeMetricFamily(
            "netagent_watch_staleness_seconds", "Time since the watch of a kind delivered anything.", labels=("kind",)
        )
        in_sync = core.GaugeMetricFamily(
            "netagent_source_in_sync", "Whether the first list of a kind is complete.", labels=("kind",)
        )
        silent = core.GaugeMetricFamily(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a policy Local whose endpoints are all elsewhere.",
            labels=("traffic_policy", *_FAMILY),
        )
        ready = core.GaugeMetricFamily("netagent_ready", "What /readyz answers.")
        healthy = core.GaugeMetricFamily("netagent_healthy", "What /livez answers.")
        report = self._health.report()
        now = self._clock()
        for family in self._families:
            queue.add_metric((family.value,), self._health.queue_age(family))
            for policy in ("internal", "external"):
                silent.add_metric((policy, family.value), self._silent.count(policy, family))
        for kind, heard in list(self.heard.items()):
            stale.add_metric((kind,), max(0.0, now - heard))
        for kind, complete in report.sources.items():
            in_sync.add_metric((kind,), complete)
        ready.add_metric((), report.ready)
        healthy.add_metric((), report.healthy)
        yield from (queue, stale, in_sync, silent, ready, healthy)


class _Events(Collector):
    """What became of the Events that were to be sent."""

    def __init__(self) -> None:
        self.counts: Callable[[], recorder.Counts] = recorder.Counts

    def collect(self) -> Iterator[core.Metric]:
        events = core.CounterMetricFamily("netagent_events", "Events by what became of them.", labels=("result",))
        for result, count in self.counts()._asdict().items():
            events.add_metric((result,), count)
        yield events


class _Source(Collector):
    """What was asked of the API server, and how that went."""

    _TEXTS: Final = {
        "requests": "Requests to the API server.",
        "lists": "Lists that were begun.",
        "watches": "Watches that were begun.",
        "failures": "Lists and watches that failed or broke off.",
        "regressions": "Times that the API server had gone back in time.",
    }

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.counts: Callable[[], Mapping[str, reflector.Counts]] = lambda: dict.fromkeys(kinds, reflector.Counts())

    def collect(self) -> Iterator[core.Metric]:
        counts = self.counts()
        for field, text in self._TEXTS.items():
            metric = core.CounterMetricFamily(f"netagent_source_{field}", text, labels=("kind",))
            for kind, count in counts.items():
                metric.add_metric((kind,), getattr(count, field))
            yield metric


class _Checks(Collector):
    """The results of the health checks as Kubernetes components tell them."""

    def __init__(self, health: state.AgentHealth) -> None:
        self._health = health

    def collect(self) -> Iterator[core.Metric]:
        report = self._health.report()
        checks = core.GaugeMetricFamily(
            "kubernetes_healthcheck", "Results of the health checks now.", labels=("name", "type")
        )
        checks.add_metric(("netagent", "healthz"), report.healthy and report.node_eligible)
        checks.add_metric(("netagent", "livez"), report.healthy)
        checks.add_metric(("netagent", "readyz"), report.ready)
        yield checks


def _encoded(registry: prometheus_client.CollectorRegistry, accept: str) -> tuple[bytes, str]:
    # The library is not given what the client wrote: it believes any version, and fails at one that is no number.
    wanted = _OPEN_METRICS if _OPEN_METRICS in accept.lower() else ""
    encode, content_type = exposition.choose_encoder(wanted)
    return encode(registry), content_type
