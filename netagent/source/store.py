"""The Store: the objects as they are now, and which Services have to be planned anew."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple, assert_never

import msgspec

from netagent.model import objects
from netagent.model.objects import EndpointSlice, Node, Service, ServiceCIDR, ServiceName
from netagent.source.kinds import Key, Kind, ObjectKey, object_key


class Dirty(NamedTuple):
    """What changed: these Services, or (`everything`) something that all of them depend on."""

    services: frozenset[ServiceName]
    everything: bool

    def __bool__(self) -> bool:
        return bool(self.services) or self.everything


class Store:
    """The current objects.

    Owns: one immutable object per key, the index from Service to its slices, and the dirty marks.
    Use: feed it with `apply`, `delete` and `replace`; then plan what `take_dirty` returns, and give it back
    with `mark_dirty` if the commit fails. The attributes are for reading only.
    Goals: an event costs work in proportion to the Service that it touches; an object that says the same as
    before marks nothing; any order, repetition and split of the same events ends in the same contents.
    Selectors are applied here: a Service that is another proxy's, a headless slice and another node's Node
    count as absent, so that an object that stops matching is deleted.
    Threading: none; it belongs to one thread.
    """

    def __init__(self, node_name: str | None, *, proxy_name: str | None = None) -> None:
        """A Store for the node of this name; without a name, no Node is taken.

        `proxy_name` is the value of the label service-proxy-name that Services must have; None: they must not have it.
        """
        self._node_name = node_name
        self._proxy_name = proxy_name
        self._services: dict[ServiceName, Service] = {}
        self._services_view = MappingProxyType(self._services)
        self._slices: dict[tuple[str, str], EndpointSlice] = {}
        # Sorted by name. A tuple is a quarter of a dict's size, and nearly every Service has one slice.
        self._slices_by_service: dict[ServiceName, tuple[EndpointSlice, ...]] = {}
        self._service_cidrs: dict[str, ServiceCIDR] = {}
        self._node: Node | None = None
        self._dirty_services: set[ServiceName] = set()
        self._everything_dirty = False

    # --- reading -------------------------------------------------------------------------------------------

    @property
    def services(self) -> Mapping[ServiceName, Service]:
        """The Services that are ours to program."""
        return self._services_view

    @property
    def node(self) -> Node | None:
        """Our own Node, None while unknown."""
        return self._node

    @property
    def service_cidrs(self) -> Mapping[str, ServiceCIDR]:
        """The ServiceCIDRs by name; two of them may hold the same range."""
        return MappingProxyType(self._service_cidrs)

    def slice_of_key(self, key: tuple[str, str]) -> EndpointSlice | None:
        """The slice of this namespace and name as it is now."""
        return self._slices.get(key)

    def slices_of(self, name: ServiceName) -> tuple[EndpointSlice, ...]:
        """The slices of a Service, whether or not the Service is there, sorted by their names."""
        return self._slices_by_service.get(name, ())

    def all_services(self) -> tuple[Service, ...]:
        """The Services that are ours to program, in no order. This, and `all_slices`, any thread may ask."""
        return tuple(self._services.values())

    def all_slices(self) -> tuple[EndpointSlice, ...]:
        """All slices, in no order."""
        return tuple(self._slices.values())

    def with_zone_hints(self) -> frozenset[ServiceName]:
        """The Services of which a slice has hints for zones: to all others it is the same which zone we are in."""
        return frozenset(
            one.service
            for one in self._slices.values()
            if one.service is not None and any(endpoint.hint_zones for endpoint in one.endpoints)
        )

    # --- writing -------------------------------------------------------------------------------------------

    def apply(self, item: objects.Object) -> bool:
        """Take an object as the current one of its key. True when that may influence forwarding."""
        match item:
            case Service():
                return self._set_service(item.key, item if item.proxy_name == self._proxy_name else None)
            case EndpointSlice():
                return self._set_slice(item.key, None if item.headless else item)
            case Node():
                return self._set_node(item) if item.name == self._node_name else False
            case ServiceCIDR():
                return self._set_service_cidr(item.name, item)
            case _:
                assert_never(item)

    def delete(self, kind: Kind, key: Key) -> bool:
        """Forget an object; one that is not there is fine. True when that may influence forwarding."""
        match kind, key:
            case Kind.SERVICE, (namespace, name):
                return self._set_service(ServiceName(namespace, name), None)
            case Kind.ENDPOINT_SLICE, (namespace, name):
                return self._set_slice((namespace, name), None)
            case Kind.NODE, str(name):
                return self._set_node(None) if name == self._node_name else False
            case Kind.SERVICE_CIDR, str(name):
                return self._set_service_cidr(name, None)
            case _:
                raise TypeError(f"{key!r} is not the key of a {kind}")

    def replace(
        self,
        items: Iterable[objects.Object],
        *,
        kinds: Iterable[Kind] = tuple(Kind),
        keep: Iterable[ObjectKey] = (),
    ) -> bool:
        """Make these objects the contents, as far as `kinds` go: of those kinds, what is not here is deleted.

        Objects of other kinds must not be among `items`. Of two with one key the last counts. The objects
        that `keep` names stay as they are if they are not among `items`: their new versions are bad. True
        when something changed that may influence forwarding.
        """
        final = {object_key(item): item for item in items}
        wanted = frozenset(kinds)
        if foreign := {kind for kind, _ in final} - wanted:
            raise TypeError(f"replace() of {sorted(wanted)} was given objects of {sorted(foreign)}")
        kept = {(kind, _plain(key)) for kind, key in keep}
        changed = False
        for one in self._keys(wanted):
            if one not in final and one not in kept:
                changed |= self.delete(*one)
        for item in final.values():
            changed |= self.apply(item)
        return changed

    # --- dirty marks ---------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether there is something to take."""
        return bool(self._dirty_services) or self._everything_dirty

    def take_dirty(self) -> Dirty:
        """Return what is dirty, and clear the marks."""
        taken = Dirty(frozenset(self._dirty_services), self._everything_dirty)
        self._dirty_services = set()
        self._everything_dirty = False
        return taken

    def mark_dirty(self, services: Iterable[ServiceName] = (), *, everything: bool = False) -> None:
        """Add marks: after a failed commit exactly those that were taken."""
        self._dirty_services.update(services)
        self._everything_dirty |= everything

    # --- one object each -----------------------------------------------------------------------------------

    def _set_service(self, name: ServiceName, service: Service | None) -> bool:
        before = self._services.get(name)
        if before is service:
            return False
        if before is None and service is not None:  # as nearly always when an agent starts
            self._services[name] = service
            self._dirty_services.add(name)
            return True
        if service is None:
            self._services.pop(name, None)
        else:
            self._services[name] = service
        if _same_service(before, service):
            return False
        self._dirty_services.add(name)
        return True

    def _set_slice(self, key: tuple[str, str], item: EndpointSlice | None) -> bool:
        before = self._slices.get(key)
        if before is item:
            return False
        if before is None and item is not None:  # as nearly always when an agent starts
            return self._add_slice(key, item)
        self._slices.pop(key, None)
        if item is not None:
            self._slices[key] = item
        owner_before = before.service if before is not None else None
        owner = item.service if item is not None else None
        if owner_before is not None and owner_before != owner:
            self._index(owner_before, key[1], None)
        if owner is not None:
            self._index(owner, key[1], item)
        if _same_slice(before, item):
            return False
        touched = False
        for one in (owner_before, owner):
            # A slice without its Service waits; the Service is marked when it comes.
            if one is not None and one in self._services:
                self._dirty_services.add(one)
                touched = True
        return touched

    def _add_slice(self, key: tuple[str, str], item: EndpointSlice) -> bool:
        self._slices[key] = item
        owner = item.service
        if owner is None:
            return False
        self._index(owner, key[1], item)
        if owner not in self._services:
            return False
        self._dirty_services.add(owner)
        return True

    def _index(self, owner: ServiceName, name: str, item: EndpointSlice | None) -> None:
        """Make `item` the slice of this name among those of a Service; None takes it away."""
        slices = self._slices_by_service.get(owner)
        if slices is None:
            if item is not None:
                self._slices_by_service[owner] = (item,)
            return
        place = bisect.bisect_left(slices, name, key=_slice_name)
        after = place + 1 if place < len(slices) and slices[place].name == name else place
        slices = slices[:place] + ((item,) if item is not None else ()) + slices[after:]
        if slices:
            self._slices_by_service[owner] = slices
        else:
            del self._slices_by_service[owner]

    def _set_node(self, node: Node | None) -> bool:
        before, self._node = self._node, node
        if _forwarding_facts(before) == _forwarding_facts(node):
            return False
        self._everything_dirty = True
        return True

    def _set_service_cidr(self, name: str, item: ServiceCIDR | None) -> bool:
        before = self._service_cidrs.pop(name, None)
        if item is not None:
            self._service_cidrs[name] = item
        if before == item:
            return False
        self._everything_dirty = True
        return True

    def _keys(self, kinds: frozenset[Kind]) -> list[ObjectKey]:
        keys: list[ObjectKey] = []
        if Kind.SERVICE in kinds:
            keys += [(Kind.SERVICE, (name.namespace, name.name)) for name in self._services]
        if Kind.ENDPOINT_SLICE in kinds:
            keys += [(Kind.ENDPOINT_SLICE, key) for key in self._slices]
        if Kind.NODE in kinds and self._node is not None:
            keys.append((Kind.NODE, self._node.name))
        if Kind.SERVICE_CIDR in kinds:
            keys += [(Kind.SERVICE_CIDR, name) for name in self._service_cidrs]
        return keys


def _slice_name(item: EndpointSlice) -> str:
    return item.name


def _plain(key: Key) -> Key:
    return key if isinstance(key, str) else (key[0], key[1])


def _same_service(one: Service | None, other: Service | None) -> bool:
    """Whether two versions of a Service forward alike: its UID is for Events only."""
    if one is None or other is None or one.uid == other.uid:
        return one == other
    return msgspec.structs.replace(one, uid=other.uid) == other


def _same_slice(one: EndpointSlice | None, other: EndpointSlice | None) -> bool:
    """Whether two versions of a slice forward alike: when it changed is for the latency metric only."""
    if one is None or other is None or one.trigger_time == other.trigger_time:
        return one == other
    return msgspec.structs.replace(one, trigger_time=other.trigger_time) == other


def _forwarding_facts(node: Node | None) -> Node | None:
    """The Node without what only the health server asks for."""
    return node and msgspec.structs.replace(node, deleting=False, taint_keys=())
