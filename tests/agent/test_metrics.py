"""What the agent measures, as Prometheus reads it."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from netagent import conntrack, settings
from netagent.agent import reconciler
from netagent.agent.health import state
from netagent.agent.metrics import collectors, latency, local_policy, xtables
from netagent.model import objects
from netagent.model.addresses import Family
from netagent.plan import frontends, services
from netagent.plan.node import NodeContext
from netagent.source.api import recorder, reflector
from tests import builders

FAMILIES = (Family.IPV4, Family.IPV6)
KINDS = ("Service", "EndpointSlice", "Node", "ServiceCIDR")
START = 1_700_000_000.0
START_TEXT = "2023-11-14T22:13:20Z"


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Stage:
    """Metrics of an agent whose clocks the test moves."""

    def __init__(self, mode: settings.Mode = settings.Mode.NFTABLES) -> None:
        self.clock, self.wall = Clock(1000.0), Clock(START)
        self.health = state.AgentHealth(
            FAMILIES, sync_period_seconds=30, sources=KINDS, clock=self.clock, wall=self.wall
        )
        self.metrics = collectors.Metrics(
            self.health,
            mode=mode,
            families=FAMILIES,
            sources=KINDS,
            read_connections=lambda: (),
            clock=self.clock,
            wall=self.wall,
        )

    def sync(self, *, seconds: float = 0.002, operations: int = 3, full: bool = False) -> None:
        self.metrics.synced(seconds=seconds, operations=operations, transactions=1, full=full)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_everything_exists_from_the_first_scrape_on(stage: Stage) -> None:
    for name in (
        "sync_proxy_rules_duration_seconds_count",
        "sync_full_proxy_rules_duration_seconds_count",
        "sync_partial_proxy_rules_duration_seconds_count",
        "sync_proxy_rules_last_timestamp_seconds",
        "sync_proxy_rules_last_queued_timestamp_seconds",
        "network_programming_duration_seconds_count",
        "conntrack_reconciler_sync_duration_seconds_count",
        "conntrack_reconciler_deleted_entries_total",
        "sync_proxy_rules_nftables_sync_failures_total",
        "sync_proxy_rules_nftables_cleanup_failures_total",
    ):
        assert [stage.value(f"kubeproxy_{name}", ip_family=family.value) for family in FAMILIES] == [0, 0], name
    for name in (
        "endpoint_changes_pending",
        "endpoint_changes_total",
        "service_changes_pending",
        "service_changes_total",
    ):
        assert stage.value(f"kubeproxy_sync_proxy_rules_{name}") == 0, name
    assert stage.value("netagent_syncs_total", result="failure") == 0
    assert stage.value("netagent_quarantined_objects", kind="Service") == 0
    silent = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
    assert stage.value(silent, ip_family="IPv6", traffic_policy="external") == 0


def test_a_sync_shows_in_our_metrics_and_in_those_of_kube_proxy(stage: Stage) -> None:
    stage.metrics.service_changed()
    stage.metrics.endpoints_changed()
    stage.metrics.endpoints_changed()
    stage.metrics.queued()
    assert stage.value("kubeproxy_sync_proxy_rules_endpoint_changes_pending") == 2
    stage.wall.now += 5
    stage.sync(seconds=0.003, operations=7)
    assert stage.value("netagent_syncs_total", result="success") == 1
    assert stage.value("netagent_operations_total") == 7
    assert stage.value("netagent_sync_duration_seconds_sum") == pytest.approx(0.003)
    assert stage.value("kubeproxy_sync_proxy_rules_endpoint_changes_pending") == 0
    assert stage.value("kubeproxy_sync_proxy_rules_endpoint_changes_total") == 2
    assert stage.value("kubeproxy_sync_proxy_rules_service_changes_total") == 1
    for family in ("IPv4", "IPv6"):
        assert stage.value("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", ip_family=family) == START
        assert stage.value("kubeproxy_sync_proxy_rules_last_timestamp_seconds", ip_family=family) == START + 5
        bucket = "kubeproxy_sync_proxy_rules_duration_seconds_bucket"
        assert stage.value(bucket, ip_family=family, le="0.002") == 0
        assert stage.value(bucket, ip_family=family, le="0.004") == 1
        assert stage.value("kubeproxy_sync_partial_proxy_rules_duration_seconds_count", ip_family=family) == 1
        assert stage.value("kubeproxy_sync_full_proxy_rules_duration_seconds_count", ip_family=family) == 0


def test_a_failed_sync_leaves_what_waits(stage: Stage) -> None:
    stage.metrics.service_changed()
    stage.metrics.sync_failed(seconds=0.1, full=True)
    assert stage.value("netagent_syncs_total", result="failure") == 1
    assert stage.value("kubeproxy_sync_proxy_rules_service_changes_pending") == 1
    assert stage.value("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", ip_family="IPv4") == 1
    assert stage.value("kubeproxy_sync_proxy_rules_last_timestamp_seconds", ip_family="IPv4") == 0


def test_buckets_are_those_of_kube_proxy() -> None:
    assert collectors.SYNC_BUCKETS[:3] + collectors.SYNC_BUCKETS[-1:] == (0.001, 0.002, 0.004, 16.384)
    expected = [0.25, 0.5, *range(1, 60), *range(60, 116, 5), *range(120, 301, 30)]
    assert list(collectors.LATENCY_BUCKETS) == expected


def test_ages_grow_by_themselves(stage: Stage) -> None:
    stage.health.queued(Family.IPV4)
    stage.metrics.watch_heard("Service")
    stage.clock.now += 12
    assert stage.value("netagent_queue_age_seconds", ip_family="IPv4") == 12
    assert stage.value("netagent_queue_age_seconds", ip_family="IPv6") == 0
    assert stage.value("netagent_watch_staleness_seconds", kind="Service") == 12
    stage.metrics.watch_heard("Service")
    assert stage.value("netagent_watch_staleness_seconds", kind="Service") == 0
    assert stage.value("netagent_watch_staleness_seconds", kind="Node") == 12
    assert stage.value("netagent_source_in_sync", kind="Node") == 0
    stage.health.source("Node", in_sync=True)
    assert stage.value("netagent_source_in_sync", kind="Node") == 1


def test_other_facts_are_counted(stage: Stage) -> None:
    metrics = stage.metrics
    metrics.generation_conflict()
    metrics.drift_repaired(4)
    metrics.flows_dropped({Family.IPV4: 3}, seconds=0.2)
    metrics.quarantined({"Service": 2})
    metrics.quarantined({"EndpointSlice": 1})
    metrics.conflicts(1)
    metrics.health_checks(listening=4, failed=1)
    metrics.cleanup_failed()
    assert stage.value("netagent_generation_conflicts_total") == 1
    assert stage.value("netagent_drift_repairs_total") == 1
    assert stage.value("netagent_drift_repaired_operations_total") == 4
    assert stage.value("netagent_conntrack_deleted_flows_total", ip_family="IPv4") == 3
    assert stage.value("kubeproxy_conntrack_reconciler_deleted_entries_total", ip_family="IPv4") == 3
    assert stage.value("kubeproxy_conntrack_reconciler_sync_duration_seconds_count", ip_family="IPv6") == 0
    assert stage.value("netagent_quarantined_objects", kind="Service") == 0
    assert stage.value("netagent_quarantined_objects", kind="EndpointSlice") == 1
    assert stage.value("netagent_frontend_conflicts") == 1
    assert stage.value("netagent_healthcheck_listen_failures") == 1
    assert stage.value("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", ip_family="IPv6") == 1


def test_probes_are_counted_by_their_answer(stage: Stage) -> None:
    for path, status in (("/healthz", 503), ("/livez", 200), ("/livez", 200), ("/readyz", 503)):
        stage.metrics.health_answered(path, status)
    assert stage.value("kubeproxy_proxy_healthz_total", code="503") == 1
    assert stage.value("kubeproxy_proxy_healthz_total", code="200") == 0
    assert stage.value("kubeproxy_proxy_livez_total", code="200") == 2
    body = stage.metrics.slis()[0].decode()
    assert 'kubernetes_healthcheck{name="netagent",type="livez"} 1.0' in body
    assert 'kubernetes_healthcheck{name="netagent",type="readyz"} 0.0' in body
    assert 'kubernetes_healthchecks_total{name="netagent",status="error",type="healthz"} 1.0' in body


def test_the_process_is_measured_too(stage: Stage) -> None:
    assert (stage.value("process_resident_memory_bytes") or 0) > 1e6
    assert (stage.value("process_open_fds") or 0) > 2


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=nonsense", "\xff;;;=,"])
def test_text_format_is_what_old_scrapers_and_people_get(stage: Stage, accept: str) -> None:
    body, content_type = stage.metrics.exposition(accept)
    assert content_type.startswith("text/plain; version=0.0.4")
    families = {family.name for family in parser.text_string_to_metric_families(body.decode())}
    assert "kubeproxy_sync_proxy_rules_no_local_endpoints_total" in families
    assert "_created" not in body.decode()


@pytest.mark.parametrize("version", ["", "; version=1.0.0; charset=utf-8", "; version=nonsense"])
def test_open_metrics_is_given_to_whom_asks(stage: Stage, version: str) -> None:
    body, content_type = stage.metrics.exposition(f"application/openmetrics-text{version}, text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert list(openmetrics_parser.text_string_to_metric_families(body.decode()))


def test_two_agents_in_one_process_do_not_share_metrics(stage: Stage) -> None:
    stage.sync()
    assert Stage().value("netagent_syncs_total", result="success") == 0


def test_what_became_of_events_is_counted_by_its_result(stage: Stage) -> None:
    """All at 0 before there is a recorder."""
    results = recorder.Counts._fields
    assert [stage.value("netagent_events_total", result=result) for result in results] == [0] * len(results)
    counts = recorder.Counts(sent=7, known=6, limited=5, full=4, refused=3, failed=2)
    stage.metrics.count_events(lambda: counts)
    assert [stage.value("netagent_events_total", result=result) for result in results] == list(counts)
    counts = counts._replace(sent=8)
    assert stage.value("netagent_events_total", result="sent") == 8


# --- network programming latency ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trigger_time", "expected"),
    [
        ("2023-11-14T22:13:30Z", 10.0),
        ("2023-11-14T22:13:30.500000000Z", 9.5),
        ("2023-11-14T22:13:30.123456789Z", 9.876544),
        ("2023-11-15T00:13:30+02:00", 10.0),
        ("2023-11-14t22:13:30z", 10.0),
        (START_TEXT, 20.0),
        ("2023-11-14T22:13:19Z", None),  # before the agent was there
        ("2023-11-14T23:13:20Z", 0.0),  # another host's clock is ahead
        ("9999-12-31T23:59:59Z", 0.0),
        ("", None),
        ("yesterday", None),
        ("2023-11-14", None),
        ("2023-11-14T22:13:30", None),
        ("2023-11-14T22:13:30Z\n", None),
    ],
)
def test_latency_is_measured_from_the_trigger_time(trigger_time: str, expected: float | None) -> None:
    found = latency.network_programming_seconds(trigger_time, agent_start=START, now=START + 20)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-5))


def changed(trigger_time: str, *, name: str = "web-1", family: Family = Family.IPV4) -> objects.EndpointSlice:
    return builders.endpoint_slice("web", name=name, family=family, trigger_time=trigger_time)


def test_a_change_is_observed_once_after_the_sync_that_succeeds(stage: Stage) -> None:
    stage.metrics.triggers.changed(changed("2023-11-14T22:13:21Z"))
    stage.metrics.triggers.changed(changed("2023-11-14T22:13:21Z"))  # delivered twice
    stage.metrics.sync_failed(seconds=0.1, full=False)
    stage.wall.now += 3
    stage.sync()
    stage.sync()
    for prefix in ("kubeproxy", "netagent"):
        name = f"{prefix}_network_programming_duration_seconds"
        assert stage.value(f"{name}_count", ip_family="IPv4") == 1
        assert stage.value(f"{name}_sum", ip_family="IPv4") == pytest.approx(2.0)
        assert stage.value(f"{name}_count", ip_family="IPv6") == 0


def test_every_change_of_a_slice_counts_and_a_deletion_does_not(stage: Stage) -> None:
    triggers = stage.metrics.triggers
    triggers.changed(changed("2023-11-14T22:13:21Z"))
    triggers.changed(changed("2023-11-14T22:13:22Z"))
    triggers.changed(changed("2023-11-14T22:13:22Z", name="web-6", family=Family.IPV6))
    triggers.changed(changed("2023-11-14T22:13:22Z", name="gone"))
    triggers.deleted(("default", "gone"))
    triggers.deleted(("default", "never-seen"))
    stage.wall.now += 5
    stage.sync()
    name = "kubeproxy_network_programming_duration_seconds_count"
    assert (stage.value(name, ip_family="IPv4"), stage.value(name, ip_family="IPv6")) == (2, 1)


# --- policy Local without endpoints -------------------------------------------------------------------------


def planned(service: objects.Service, *endpoints: objects.Endpoint) -> dict[frontends.FrontendKey, frontends.Frontend]:
    slices = [builders.endpoint_slice("web", *endpoints)]
    found = services.frontends_of(service, slices, NodeContext(name="node-1"), [Family.IPV4])
    return {frontend.key: frontend for frontend in found}


def test_silent_service_ports_are_counted_once_a_policy() -> None:
    service = builders.service(
        type=objects.ServiceType.LOAD_BALANCER,
        vips=("198.51.100.1",),
        ports=(builders.port(node_port=30080),),
        internal_policy=objects.TrafficPolicy.LOCAL,
        external_policy=objects.TrafficPolicy.LOCAL,
    )
    silent = local_policy.NoLocalEndpoints()
    current: dict[frontends.FrontendKey, frontends.Frontend] = {}

    def move_to(after: dict[frontends.FrontendKey, frontends.Frontend]) -> tuple[int, int]:
        nonlocal current
        silent.update(
            conntrack.FrontendChange(key, current.get(key), after.get(key)) for key in current.keys() | after.keys()
        )
        current = after
        return silent.count("internal", Family.IPV4), silent.count("external", Family.IPV4)

    elsewhere = builders.endpoint("10.180.1.7", node="node-2")
    assert move_to(planned(service, elsewhere)) == (1, 1)
    assert [str(owner) for _, owner in silent.owners()] == ["default/web", "default/web"]
    assert move_to(planned(service, elsewhere)) == (1, 1)
    assert move_to(planned(service, elsewhere, builders.endpoint("10.180.0.1"))) == (0, 0)
    assert move_to(planned(service)) == (0, 0)  # nobody anywhere: refused, not silent
    assert move_to(planned(service, elsewhere)) == (1, 1)
    assert move_to({}) == (0, 0)


# --- the documentation --------------------------------------------------------------------------------------


def test_what_is_asked_of_the_api_server_is_counted_by_kind(stage: Stage) -> None:
    names = ("requests", "lists", "watches", "failures", "regressions")
    assert [stage.value(f"netagent_source_{name}_total", kind=kind) for name in names for kind in KINDS] == [0] * 20
    counts = {kind: reflector.Counts(5, 4, 3, 2, number) for number, kind in enumerate(KINDS)}
    stage.metrics.count_source(lambda: counts)
    assert [stage.value(f"netagent_source_{name}_total", kind="Node") for name in names] == [5, 4, 3, 2, 2]


def test_unexpected_errors_are_counted_by_place_and_places_are_bounded(stage: Stage) -> None:
    for where in ("feed", "sync", "feed"):
        stage.metrics.stumbled(where)
    assert stage.value("netagent_unexpected_errors_total", where="feed") == 2
    assert stage.value("netagent_unexpected_errors_total", where="sync") == 1
    for number in range(1000):
        stage.metrics.stumbled(f"place {number}")
    stage.metrics.stumbled("feed")
    assert stage.value("netagent_unexpected_errors_total", where="feed") == 3
    assert stage.value("netagent_unexpected_errors_total", where="_other") == 1000 - 48
    series = [sample for metric in stage.metrics.registry.collect() for sample in metric.samples]
    assert sum(one.name == "netagent_unexpected_errors_total" for one in series) == 51


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels of each metric in the tables of docs/metrics.md, by name."""
    text = (pathlib.Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, kind, labels in re.findall(r"^\| `([a-z_]+)` \| ([a-z]+) \|([^|]*)\|", text, re.MULTILINE):
        assert name not in found, f"{name} is documented twice"
        found[name] = (kind, tuple(re.findall(r"`([a-z_]+)`", labels)))
    return found


def registered(mode: settings.Mode) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    stage = Stage(mode)
    for registry in (stage.metrics.registry, stage.metrics._slis):
        for collector in list(registry._collector_to_names):
            describe = getattr(collector, "describe", None) or collector.collect
            for family in describe():
                labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", None) or ()
                kind = "gauge" if family.type == "info" else family.type
                suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
                if suffix == "_info":
                    labels = ("version",)
                yield family.name + suffix, kind, tuple(labels)


@pytest.mark.parametrize("mode", list(settings.Mode))
def test_every_metric_is_documented_with_its_type_and_labels(mode: settings.Mode) -> None:
    table = documented()
    for name, kind, labels in registered(mode):
        assert table.get(name) == (kind, labels), name


def test_no_metric_is_documented_that_does_not_exist() -> None:
    real = {name for mode in settings.Mode for name, _, _ in registered(mode)}
    assert set(documented()) == real


def test_every_result_of_an_event_is_explained() -> None:
    text = (pathlib.Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    explained = text.partition("What becomes of Events (`result`):")[2].partition("\n#")[0]
    assert set(re.findall(r"`([a-z]+)`", explained)) == set(recorder.Counts._fields)


def test_the_number_of_series_that_is_documented_is_the_default() -> None:
    text = (pathlib.Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    (documented_most,) = re.findall(r"At most ([0-9,]+) series", text)
    assert int(documented_most.replace(",", "")) == settings.Settings().service_metrics_most


def test_times_of_an_unset_gauge_are_not_nonsense(stage: Stage) -> None:
    body = stage.metrics.exposition()[0].decode()
    assert "nan" not in body.lower().replace("nanosecond", "")
    assert math.isfinite(stage.value("process_start_time_seconds") or 0.0)


def test_the_rules_of_mode_iptables_are_counted_after_each_sync() -> None:
    class Xtables:
        def rule_counts(self) -> list[xtables.RuleCount]:
            return [xtables.RuleCount(Family.IPV4, "nat", 40, written), xtables.RuleCount(Family.IPV6, "filter", 7, 0)]

    written = 40
    stage = Stage(settings.Mode.IPTABLES)
    (observer,) = xtables.observers(Xtables(), stage.metrics)
    report = reconciler.SyncReport(1, 1, 0.001, ())
    observer.synced(report)
    written = 2
    observer.synced(report)
    prefix = "kubeproxy_sync_proxy_rules_iptables"
    assert stage.value(f"{prefix}_total", table="nat", ip_family="IPv4") == 40
    assert stage.value(f"{prefix}_last", table="nat", ip_family="IPv4") == 2
    assert stage.value(f"{prefix}_total", table="filter", ip_family="IPv6") == 7


def test_a_data_plane_whose_rules_do_not_grow_is_not_counted(stage: Stage) -> None:
    assert xtables.observers(object(), stage.metrics) == ()
