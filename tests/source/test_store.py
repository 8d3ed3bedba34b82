"""The Store: what is current, and what has to be planned anew."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from netagent.model import objects
from netagent.model.objects import ServiceName
from netagent.source.kinds import Kind, ObjectKey, object_key
from netagent.source.store import Dirty, Store
from tests import builders

WEB = ServiceName("default", "web")
API = ServiceName("default", "api")
CLEAN = Dirty(frozenset(), False)


def store_of(*items: objects.Object) -> Store:
    store = Store("node-1")
    store.replace(items)
    store.take_dirty()
    return store


def contents(store: Store) -> object:
    owners = {WEB, API, *store.services}
    slices = {owner: store.slices_of(owner) for owner in owners}
    return (dict(store.services), slices, store.node, dict(store.service_cidrs))


def test_a_new_service_is_dirty_once() -> None:
    store = Store("node-1")
    assert store.apply(builders.service())
    assert store.take_dirty() == Dirty(frozenset({WEB}), False)
    assert store.take_dirty() == CLEAN
    assert store.services == {WEB: builders.service()}


def test_an_equal_object_marks_nothing() -> None:
    everything = (
        builders.service(),
        builders.endpoint_slice("web", "10.180.0.1"),
        builders.node(),
        builders.service_cidr(),
    )
    store = store_of(*everything)
    assert not any(store.apply(item) for item in everything)
    assert not store.replace(everything)
    assert not store.dirty


def test_a_slice_marks_its_service_only() -> None:
    store = store_of(builders.service("web"), builders.service("api"), builders.endpoint_slice("web", "10.180.0.1"))
    store.apply(builders.endpoint_slice("web", "10.180.0.2"))
    assert store.take_dirty() == Dirty(frozenset({WEB}), False)


def test_a_slice_that_changes_its_owner_marks_both() -> None:
    store = store_of(builders.service("web"), builders.service("api"), builders.endpoint_slice("web", name="s"))
    store.apply(builders.endpoint_slice("api", name="s"))
    assert store.take_dirty().services == {WEB, API}
    assert store.slices_of(WEB) == ()
    assert store.slices_of(API) == (builders.endpoint_slice("api", name="s"),)


def test_a_slice_may_come_before_its_service() -> None:
    store = Store("node-1")
    assert not store.apply(builders.endpoint_slice("web", "10.180.0.1"))
    assert not store.dirty
    assert store.apply(builders.service())
    assert len(store.slices_of(WEB)) == 1


def test_slices_of_a_service_are_sorted_by_name() -> None:
    slices = [builders.endpoint_slice("web", name=name) for name in ("b", "c", "a")]
    assert [one.name for one in store_of(*slices).slices_of(WEB)] == ["a", "b", "c"]


def test_times_and_uids_alone_mark_nothing_but_are_kept() -> None:
    store = store_of(builders.service(), builders.endpoint_slice())
    assert not store.apply(builders.service(uid="2"))
    assert not store.apply(builders.endpoint_slice(trigger_time="2024-01-01T00:00:00Z"))
    assert not store.dirty
    assert store.services[WEB].uid == "2"
    assert store.slices_of(WEB)[0].trigger_time


def test_an_object_that_stops_matching_a_selector_is_gone() -> None:
    store = store_of(builders.service(), builders.endpoint_slice())
    assert store.apply(builders.endpoint_slice(headless=True))
    assert store.slices_of(WEB) == ()
    assert store.apply(builders.service(proxy_name=""))
    assert store.services == {}
    assert store.take_dirty().services == {WEB}
    assert not store.apply(builders.service(proxy_name="other"))
    assert store.apply(builders.service())


def test_only_our_own_node_counts() -> None:
    store = Store("node-1")
    assert not store.apply(builders.node("node-2"))
    assert store.apply(builders.node("node-1"))
    assert store.take_dirty() == Dirty(frozenset(), True)
    assert not store.delete(Kind.NODE, "node-2")
    assert store.node == builders.node("node-1")
    assert not Store(None).apply(builders.node("node-1"))


def test_what_only_the_health_server_asks_for_marks_nothing() -> None:
    store = store_of(builders.node())
    assert not store.apply(builders.node(taint_keys=["x"], deleting=True))
    assert store.node is not None
    assert store.node.deleting
    assert store.apply(builders.node(zone="eu-1a"))


def test_deleting_one_of_two_equal_ranges_keeps_the_other() -> None:
    store = store_of(builders.service_cidr("a", "10.96.0.0/12"), builders.service_cidr("b", "10.96.0.0/12"))
    assert store.delete(Kind.SERVICE_CIDR, "a")
    assert store.take_dirty() == Dirty(frozenset(), True)
    assert store.service_cidrs == {"b": builders.service_cidr("b", "10.96.0.0/12")}


def test_deleting_what_is_not_there_is_fine() -> None:
    store = Store("node-1")
    assert not store.delete(Kind.SERVICE, WEB)
    assert not store.delete(Kind.ENDPOINT_SLICE, ("default", "x"))
    assert not store.delete(Kind.NODE, "node-1")
    assert not store.delete(Kind.SERVICE_CIDR, "x")
    assert not store.dirty


def test_replace_touches_only_what_differs() -> None:
    store = store_of(builders.service("web"), builders.service("api"), builders.endpoint_slice("web", "10.180.0.1"))
    assert store.replace([builders.service("web"), builders.service("new")])
    assert store.take_dirty().services == {WEB, API, ServiceName("default", "new")}
    assert store.slices_of(WEB) == ()


def test_replace_of_one_kind_leaves_the_others_alone() -> None:
    store = store_of(builders.service("web"), builders.endpoint_slice("web"), builders.node(), builders.service_cidr())
    store.replace([], kinds=[Kind.ENDPOINT_SLICE])
    assert store.slices_of(WEB) == ()
    assert store.take_dirty() == Dirty(frozenset({WEB}), False)
    assert store.node is not None


def test_replace_keeps_the_last_good_version_of_what_is_bad_now() -> None:
    store = store_of(builders.service("web"), builders.service("api"), builders.endpoint_slice("web"))
    keep: list[ObjectKey] = [(Kind.SERVICE, WEB), (Kind.ENDPOINT_SLICE, ("default", "web-1"))]
    store.replace([], keep=keep)
    assert set(store.services) == {WEB}
    assert store.slices_of(WEB)
    assert store.take_dirty().services == {API}


def test_marks_of_a_failed_commit_can_be_put_back() -> None:
    store = Store("node-1")
    store.apply(builders.service("web"))
    store.apply(builders.node())
    taken = store.take_dirty()
    store.apply(builders.service("api"))
    store.mark_dirty(taken.services, everything=taken.everything)
    assert store.take_dirty() == Dirty(frozenset({WEB, API}), True)


# --- any order, repetition and split of events -----------------------------------------------------------------------

VERSIONS: dict[ObjectKey, list[objects.Object]] = {}
_ITEMS: tuple[objects.Object, ...] = (
    *(
        builders.service("web", cluster_ips=[address], proxy_name=proxy)
        for address in ("10.96.0.1", "10.96.0.2")
        for proxy in (None, "x")
    ),
    *(builders.service("api", uid=uid) for uid in ("", "2")),
    *(
        builders.endpoint_slice(owner, *endpoints, name=name, headless=headless)
        for name in ("s1", "s2")
        for owner in ("web", "api", None)
        for endpoints in ((), ("10.180.0.1",))
        for headless in (False, True)
    ),
    *(builders.node(name, zone=zone) for name in ("node-1", "node-2") for zone in ("", "a")),
    *(builders.service_cidr(name, cidr) for name in ("a", "b") for cidr in ("10.96.0.0/12", "10.0.0.0/8")),
)
for _item in _ITEMS:
    VERSIONS.setdefault(object_key(_item), []).append(_item)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[ObjectKey, objects.Object | None]], list[objects.Object]]:
    """Events that interleave the histories of all objects at will, with repetitions; and what is left in the end."""
    pending: dict[ObjectKey, list[objects.Object | None]] = {
        key: draw(st.lists(st.sampled_from([None, *versions]), max_size=4)) for key, versions in VERSIONS.items()
    }
    final = [history[-1] for history in pending.values() if history]
    turns = draw(st.permutations([key for key, history in pending.items() for _ in history]))
    events: list[tuple[ObjectKey, objects.Object | None]] = []
    for key in turns:
        event = (key, pending[key].pop(0))
        events += [event] * draw(st.integers(1, 2))
    return events, [item for item in final if item is not None]


def feed(store: Store, event: tuple[ObjectKey, objects.Object | None]) -> None:
    (kind, key), item = event
    if item is None:
        store.delete(kind, key)
    else:
        store.apply(item)


@given(histories(), st.data())
def test_any_events_end_in_the_same_store_as_the_final_list(case: Any, data: st.DataObject) -> None:
    events, final = case
    relist_after = data.draw(st.integers(0, len(events)))
    store = Store("node-1")
    current: dict[ObjectKey, objects.Object | None] = {}
    for index, event in enumerate(events):
        if index == relist_after:
            store.replace([item for item in current.values() if item is not None])
        feed(store, event)
        current[event[0]] = event[1]
    listed = Store("node-1")
    listed.replace(final)
    assert contents(store) == contents(listed)
    store.take_dirty()
    assert not store.replace(final)
    assert store.take_dirty() == CLEAN


@given(histories())
def test_what_is_not_marked_looks_as_it_did(case: Any) -> None:
    """The marks are complete: a Service without a mark has the same spec and slices as when they were last taken."""
    events, _ = case
    store = Store("node-1")
    for event in events:
        before = {name: view(store, name) for name in (WEB, API)}
        shared = (store.node, dict(store.service_cidrs))
        feed(store, event)
        dirty = store.take_dirty()
        for name in (WEB, API):
            if name not in dirty.services:
                assert view(store, name) == before[name]
        if not dirty.everything:
            assert (store.node, dict(store.service_cidrs)) == shared


def view(store: Store, name: ServiceName) -> object:
    service = store.services.get(name)
    return service and (msgspec.structs.replace(service, uid=""), store.slices_of(name))
