"""What is announced where: a user looks at his Service, an operator at the Node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netagent import errors, settings
from netagent.agent import announcing, planner, reconciler
from netagent.agent.health import checks, servers
from netagent.model import objects
from netagent.source.api import events, recorder
from netagent.source.api.connection import Connection
from netagent.source.api.credentials import Access
from netagent.source.api.source import ApiSource
from netagent.source.faults import Remark
from netagent.source.kinds import Kind
from tests import builders
from tests.apiserver import ApiServer
from tests.apiserver.faults import wait_for

NODE = "node-1"
BAD_WEB = events.Quarantined(Kind.SERVICE, "default", "web", "spec.ports[0].port", "70000 is not a port")
BAD_SLICE = events.Quarantined(Kind.ENDPOINT_SLICE, "default", "web-x7d2k", "endpoints[0]", "has no address")
RANGE = Remark(Kind.SERVICE, "default", "web", "spec.loadBalancerSourceRanges[1]", "'x' is not a prefix; left out")


class World:
    """An agent without kernel: what is heard goes into the Store and is planned."""

    def __init__(self) -> None:
        self.planner = planner.Planner(settings.Settings(), node_name=NODE)
        self.recorded: list[recorder.Announcement] = []
        self.listen_failures: tuple[checks.ListenFailure, ...] = ()
        self.announcing = announcing.Announcing(
            self.planner, node_name=NODE, record=self.recorded.append, listen_failures=lambda: self.listen_failures
        )

    def hear(self, *heard: events.Event) -> None:
        """As the loop does it: heard, stored, a turn, and a sync if there is anything to sync."""
        self.announcing.heard(heard)
        changed = events.feed(self.planner.store, heard)
        self.announcing.turned()
        if changed:
            self.sync()

    def sync(self) -> None:
        report = reconciler.SyncReport(0, 0, 0.0, (), planned=self.planner.replan().planned)
        self.announcing.synced(report)
        self.announcing.turned()

    def take(self) -> list[recorder.Announcement]:
        taken = self.recorded[:]
        self.recorded.clear()
        return taken

    def take_one(self) -> recorder.Announcement:
        (one,) = self.take()
        return one


@pytest.fixture
def world() -> World:
    """In sync, with one Service."""
    made = World()
    made.hear(applied(builders.service(uid="u-1")))
    made.take()
    return made


def applied(item: objects.Object, *remarks: Remark) -> events.Applied:
    kinds: dict[type[Any], Kind] = {
        objects.Service: Kind.SERVICE,
        objects.EndpointSlice: Kind.ENDPOINT_SLICE,
        objects.Node: Kind.NODE,
    }
    return events.Applied(kinds[type(item)], item, remarks)


# --- objects that are set aside -----------------------------------------------------------------------------------


def test_a_service_that_is_set_aside_says_so_with_field_and_reason(world: World) -> None:
    world.hear(BAD_WEB)
    one = world.take_one()
    assert one.regarding == recorder.Subject(kind="Service", namespace="default", name="web", uid="u-1")
    assert (one.reason, one.type, one.shared) == ("Quarantined", "Warning", True)
    assert "spec.ports[0].port: 70000 is not a port" in one.note


def test_it_is_announced_once_however_often_it_is_told(world: World) -> None:
    for _ in range(3):
        world.hear(BAD_WEB, BAD_WEB)
        world.hear(events.Listed(kind=Kind.SERVICE, quarantined=(BAD_WEB,)))
        world.sync()
    assert len(world.take()) == 1


def test_another_fault_and_one_that_comes_again_are_announced(world: World) -> None:
    world.hear(BAD_WEB)
    world.hear(events.Quarantined(Kind.SERVICE, "default", "web", "spec.type", "'x' is none"))
    world.hear(applied(builders.service(uid="u-1")))
    world.hear(BAD_WEB)
    world.hear(events.Deleted(Kind.SERVICE, ("default", "web")))
    world.hear(BAD_WEB)
    world.hear(events.Listed(kind=Kind.SERVICE))
    world.hear(BAD_WEB)
    assert [one.reason for one in world.take()] == ["Quarantined"] * 5


def test_a_service_that_was_never_good_is_found_by_its_uid() -> None:
    """`kubectl describe` shows only Events with the UID of the object; the Store has none of it."""
    world = World()
    world.sync()
    world.take()
    world.hear(msgspec.structs.replace(BAD_WEB, uid="u-9"))
    assert world.take_one().regarding == recorder.Subject(kind="Service", namespace="default", name="web", uid="u-9")
    world.hear(events.Listed(kind=Kind.SERVICE, quarantined=(msgspec.structs.replace(BAD_WEB, uid="u-9"),)))
    assert not world.take()


def test_a_bad_service_that_was_made_anew_is_another_object(world: World) -> None:
    """The last good version in the Store is of the one that was deleted, between two lists, say."""
    world.hear(msgspec.structs.replace(BAD_WEB, uid="u-1"))
    world.hear(events.Listed(kind=Kind.SERVICE, quarantined=(msgspec.structs.replace(BAD_WEB, uid="u-2"),)))
    world.hear(msgspec.structs.replace(BAD_WEB, uid="u-3"))
    assert [one.regarding.uid for one in world.take()] == ["u-1", "u-2", "u-3"]


def test_a_slice_without_a_service_has_its_own_uid(world: World) -> None:
    world.hear(events.Quarantined(Kind.ENDPOINT_SLICE, "default", "by-hand", "", "is too large", "u-7"))
    one = world.take_one()
    assert (one.regarding.kind, one.regarding.uid) == ("EndpointSlice", "u-7")


@pytest.mark.parametrize("known", [True, False])
def test_a_slice_that_is_set_aside_is_announced_on_its_service(world: World, known: bool) -> None:
    """By its last good version, or by its name if there never was any."""
    if known:
        world.hear(applied(builders.endpoint_slice(name="web-x7d2k")))
    world.hear(BAD_SLICE)
    one = world.take_one()
    assert (one.regarding.kind, one.regarding.name, one.regarding.uid) == ("Service", "web", "u-1")
    assert "EndpointSlice default/web-x7d2k: endpoints[0]: has no address" in one.note


def test_a_slice_whose_name_tells_nothing(world: World) -> None:
    """Written by hand, or of a Service with a long name."""
    bad = events.Quarantined(Kind.ENDPOINT_SLICE, "default", "by-hand", "", "is too large")
    world.hear(bad)
    unknown = world.take_one().regarding
    assert unknown == recorder.Subject(
        kind="EndpointSlice", namespace="default", name="by-hand", api_version="discovery.k8s.io/v1"
    )
    world.hear(applied(builders.endpoint_slice(name="by-hand", service="web")))
    world.hear(bad)
    assert world.take_one().regarding.name == "web"
    world.hear(events.Deleted(Kind.ENDPOINT_SLICE, ("default", "by-hand")))
    world.hear(bad)
    assert world.take_one().regarding == unknown


def test_a_node_that_is_set_aside_says_so_itself(world: World) -> None:
    world.hear(events.Quarantined(Kind.NODE, "", NODE, "spec.podCIDRs", "is not a list"))
    assert world.take_one().regarding == recorder.Subject(kind="Node", name=NODE, uid=NODE)


def test_an_object_without_a_name_is_left_to_the_log(world: World) -> None:
    world.hear(events.Quarantined(Kind.SERVICE, reason="is not JSON"))
    assert not world.take()


def test_nothing_is_announced_before_the_first_sync(world: World) -> None:
    """Only then it is known which Service has the slice; who is wrong still is told then."""
    fresh = World()
    fresh.hear(BAD_SLICE)
    assert not fresh.take()
    fresh.hear(applied(builders.service(uid="u-1")))
    starting, bad = fresh.take()
    assert (starting.reason, bad.regarding.uid) == ("Starting", "u-1")


# --- entries that are left out ------------------------------------------------------------------------------------


def test_source_ranges_that_are_ignored(world: World) -> None:
    service = builders.service(uid="u-1")
    other = Remark(Kind.SERVICE, "default", "web", "spec.externalIPs[0]", "'y' is not an address; left out")
    world.hear(applied(service, RANGE, other))
    world.hear(applied(service, RANGE))
    world.hear(events.Listed(kind=Kind.SERVICE, objects=(service,), remarks=(RANGE, other)))
    one = world.take_one()
    assert (one.reason, one.type, one.regarding.uid) == ("SourceRangeIgnored", "Warning", "u-1")
    assert one.note == "spec.loadBalancerSourceRanges[1]: 'x' is not a prefix; left out"
    world.hear(applied(service))
    world.hear(applied(service, RANGE))
    assert len(world.take()) == 1


# --- claims -------------------------------------------------------------------------------------------------------


def test_who_loses_a_frontend_is_told_who_has_it(world: World) -> None:
    young = builders.service("young", namespace="shop", uid="u-2", created="2025-01-01T00:00:00Z")
    world.hear(applied(young))
    one = world.take_one()
    assert (one.reason, one.regarding.namespace, one.regarding.uid) == ("FrontendClaimed", "shop", "u-2")
    assert "10.96.0.1:80/tcp belongs to Service default/web" in one.note
    world.hear(applied(builders.endpoint_slice()))
    assert not world.take()


def test_a_conflict_that_ended_and_comes_again_is_announced_again(world: World) -> None:
    young = applied(builders.service("young", created="2025-01-01T00:00:00Z"))
    world.hear(young)
    world.hear(events.Deleted(Kind.SERVICE, ("default", "young")))
    world.hear(young)
    assert [one.regarding.name for one in world.take()] == ["young", "young"]


def test_a_service_that_loses_much_has_one_event(world: World) -> None:
    ports = [builders.port(number, name=f"p{number}") for number in range(1, 21)]
    world.hear(applied(builders.service(uid="u-1", ports=ports)))
    world.hear(applied(builders.service("young", ports=ports, created="2025-01-01T00:00:00Z")))
    assert "; and 15 more;" in world.take_one().note


# --- this node ----------------------------------------------------------------------------------------------------


def test_health_check_node_ports_that_cannot_listen(world: World) -> None:
    web = objects.ServiceName("default", "web")
    world.listen_failures = (checks.ListenFailure(web, "10.0.0.1:30000", "Address already in use"),)
    for _ in range(3):
        world.announcing.turned()
    one = world.take_one()
    assert (one.reason, one.action, one.shared) == ("FailedToStartServiceHealthcheck", "Listen", False)
    assert one.regarding.uid == "u-1"
    assert "node-1" in one.note
    assert "10.0.0.1:30000: Address already in use" in one.note
    world.listen_failures = ()
    world.announcing.turned()
    world.listen_failures = (checks.ListenFailure(web, "10.0.0.1:30000", "Address already in use"),)
    world.announcing.turned()
    assert len(world.take()) == 1


def test_the_start_is_announced_on_the_node_at_the_first_sync() -> None:
    world = World()
    world.sync()
    world.sync()
    one = world.take_one()
    assert one.regarding == recorder.Subject(kind="Node", name=NODE, uid=NODE)
    assert (one.reason, one.action, one.type) == ("Starting", "StartNetagent", "Normal")


def test_syncs_that_fail_again_and_again_are_announced_once(world: World) -> None:
    error = errors.CommitRejectedError("cannot commit 3 operations (ENOENT)", errno=2)
    world.announcing.failed(error)
    world.announcing.failed(error)
    world.sync()  # that was a race
    assert not world.take()
    for _ in range(10):
        world.announcing.failed(error)
    one = world.take_one()
    assert (one.reason, one.regarding.kind, one.type) == ("SyncFailed", "Node", "Warning")
    assert "cannot commit 3 operations (ENOENT)" in one.note


def test_servers_of_the_agent_that_cannot_listen(world: World) -> None:
    wanted = settings.Settings()
    failures = [
        servers.ServerFailure("health", wanted.healthz_bind_address, "Address already in use"),
        servers.ServerFailure("metrics", wanted.metrics_bind_address, "Address already in use"),
    ]
    for _ in range(3):
        world.announcing.servers_failed(failures)
        world.announcing.turned()
    reasons = [(one.reason, one.action, one.regarding.kind) for one in world.take()]
    assert reasons == [
        ("FailedToStartProxierHealthcheck", "StartNetagent", "Node"),
        ("FailedToStartMetricServer", "StartNetagent", "Node"),
    ]


# --- with an API server -------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        made.apply(builders.node_manifest(), builders.service_manifest())
        yield made


def test_a_user_breaks_a_service_and_finds_one_event_on_it(server: ApiServer) -> None:
    world = World()
    connection = Connection(Access(server=server.url))
    limits = recorder.Limits(spread_seconds=0.0)
    with (
        ApiSource(connection, node_name=NODE) as source,
        recorder.EventRecorder(connection, node_name=NODE, limits=limits) as sending,
    ):
        world.announcing._record = sending.record

        def told(*reasons: str) -> bool:
            world.hear(*source.drain())
            return [one["reason"] for one in server.announced] == list(reasons)

        wait_for(lambda: told("Starting"))
        for weight in ("1", "2", "3"):
            broken = builders.service_manifest(type="Nonsense")
            broken["metadata"]["labels"] = {"weight": weight}
            server.apply(broken)
        wait_for(lambda: told("Starting", "Quarantined"))
        sending.flush(60.0)
        assert told("Starting", "Quarantined")
    (service,) = server.cluster.manifests("Service")
    made = server.announced[1]
    assert made["regarding"]["uid"] == service["metadata"]["uid"]
    assert made["metadata"]["namespace"] == "default"
    assert "spec.type: 'Nonsense'" in made["note"]


@pytest.mark.parametrize("spec", [{"type": "Nonsense"}, {"externalIPs": 7}], ids=["bad value", "bad shape"])
@pytest.mark.parametrize("when", ["listed", "watched"])
def test_a_service_that_is_bad_from_the_beginning_has_an_event_with_its_uid(
    server: ApiServer, spec: dict[str, Any], when: str
) -> None:
    world = World()
    connection = Connection(Access(server=server.url))
    broken = builders.service_manifest("broken", cluster_ip="10.96.0.7", **spec)
    if when == "listed":
        server.apply(broken)
    with (
        ApiSource(connection, node_name=NODE) as source,
        recorder.EventRecorder(connection, node_name=NODE, limits=recorder.Limits(spread_seconds=0.0)) as sending,
    ):
        world.announcing._record = sending.record

        def told(*reasons: str) -> bool:
            world.hear(*source.drain())
            return [one["reason"] for one in server.announced] == list(reasons)

        if when == "watched":
            wait_for(lambda: told("Starting"))
            server.apply(broken)
        wait_for(lambda: told("Starting", "Quarantined"))
    (uid,) = [one["metadata"]["uid"] for one in server.cluster.manifests("Service") if one["spec"] == broken["spec"]]
    regarding = server.announced[1]["regarding"]
    assert (regarding["name"], regarding["uid"]) == ("broken", uid)


def test_every_reason_of_an_event_is_in_the_manual() -> None:
    topics = [found for found in vars(announcing).values() if isinstance(found, announcing._Topic)]
    reasons = {topic.reason for topic in (*topics, *announcing._SERVERS.values())}
    manual = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    section = manual.split("\n## Events\n")[1].split("\n## ")[0]
    assert set(re.findall(r"`([A-Z]\w+)`", section)) == reasons


def test_a_service_that_the_kernel_refuses_has_an_event_until_it_is_taken(world: World) -> None:
    world.hear(events.Applied(Kind.SERVICE, builders.service()))
    refused = {objects.ServiceName("default", "web"): "Invalid argument"}
    for _ in range(2):
        world.announcing.synced(reconciler.SyncReport(0, 0, 0.0, (), planned=frozenset(), refused=refused))
        world.announcing.turned()
    told = [one for one in world.recorded if one.reason == "KernelRefused"]
    assert [one.regarding.name for one in told] == ["web"], "once, however often it is tried"
    assert "Invalid argument" in told[0].note
    world.announcing.synced(reconciler.SyncReport(0, 0, 0.0, (), planned=frozenset()))
    world.announcing.synced(reconciler.SyncReport(0, 0, 0.0, (), planned=frozenset(), refused=refused))
    world.announcing.turned()
    assert len([one for one in world.recorded if one.reason == "KernelRefused"]) == 2, "and anew when it comes again"
