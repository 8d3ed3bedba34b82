"""What an agent plans by, as a document: enough for another process to make the same plan."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, get_type_hints

import msgspec

from netagent import errors, settings
from netagent.agent import planner
from netagent.model import objects

# Encoding holds all threads up: not for longer than so many objects take, a millisecond or, with full slices, a few.
_OBJECTS_AT_ONCE: Final = 200


class Snapshot(NamedTuple):
    """Settings, this node's name, and the objects as they are now. `node` is the Node in force."""

    settings: settings.Settings
    node_name: str
    node: objects.Node | None
    service_cidrs: tuple[objects.ServiceCIDR, ...]
    services: tuple[objects.Service, ...]
    slices: tuple[objects.EndpointSlice, ...]


class _Encoded(msgspec.Struct, frozen=True):
    settings: dict[str, Any]
    node_name: str
    node: objects.Node | None
    service_cidrs: tuple[objects.ServiceCIDR, ...]
    services: tuple[objects.Service, ...]
    slices: tuple[objects.EndpointSlice, ...]


def take(plan: planner.Planner, *, node_name: str, only: Iterable[objects.ServiceName] | None = None) -> Snapshot:
    """What a planner has: all of it, or `only` these Services, their slices, and the Services that claim something that
    they claim. For any thread."""
    store = plan.store
    if only is None:
        services: Sequence[objects.Service] = store.all_services()
        slices: Sequence[objects.EndpointSlice] = store.all_slices()
    else:
        names = sorted(with_rivals(plan, only))
        services = [service for service in map(store.services.get, names) if service]
        slices = [item for name in names for item in store.slices_of(name)]
    cidrs = tuple(store.service_cidrs.values())
    return Snapshot(plan.settings, node_name, store.node or plan.node, cidrs, tuple(services), tuple(slices))


def with_rivals(plan: planner.Planner, names: Iterable[objects.ServiceName]) -> set[objects.ServiceName]:
    """These Services, and those that claim something that they claim: who gets it depends on both."""
    wanted = set(names)
    found = set(wanted)
    for conflict in plan.forwarding.conflicts():
        pair = {conflict.winner.owner.owner, conflict.loser.owner.owner}
        if not pair.isdisjoint(wanted):
            found |= pair
    return found


def encoded(taken: Snapshot) -> bytes:
    """A snapshot as JSON."""
    head = _Encoded(_settings_as_data(taken.settings), taken.node_name, taken.node, taken.service_cidrs, (), ())
    text = msgspec.json.encode(head, enc_hook=str)
    start = text.index(b',"services":[],"slices":[]}', -40)
    pieces = [text[:start], b',"services":[', *_listed(taken.services), b'],"slices":[', *_listed(taken.slices), b"]}"]
    return b"".join(pieces)


def _listed(items: Sequence[objects.Object]) -> Iterator[bytes]:
    for start in range(0, len(items), _OBJECTS_AT_ONCE):
        yield b"," if start else b""
        yield msgspec.json.encode(items[start : start + _OBJECTS_AT_ONCE])[1:-1]


def read(text: bytes) -> Snapshot:
    """As `decoded`; SourceError if the text cannot be read."""
    try:
        return decoded(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.SourceError(f"the agent's objects cannot be read ({error}): is it of another version?") from error


def decoded(text: bytes) -> Snapshot:
    """The snapshot that JSON holds. msgspec.DecodeError (ValidationError) if it does not."""
    found = msgspec.json.decode(text, type=_Encoded)
    try:
        wanted = _settings_of(found.settings)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise msgspec.ValidationError(f"settings: {error}") from error
    return Snapshot(wanted, found.node_name, found.node, found.service_cidrs, found.services, found.slices)


# Settings hold addresses of both families in one field, which msgspec cannot decode by type.


def _settings_as_data(wanted: settings.Settings) -> dict[str, Any]:
    return {name: getattr(wanted, name) for name in wanted.__struct_fields__}


def _networks(value: Any) -> Any:
    return tuple(map(ipaddress.ip_network, value)) if isinstance(value, list) else value


def _socket_address(value: Any) -> settings.SocketAddress:
    return settings.SocketAddress(ipaddress.ip_address(value[0]), value[1])


_WITH_ADDRESSES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "cluster_cidrs": _networks,
    "node_port_addresses": _networks,
    "bind_address": ipaddress.ip_address,
    "healthz_bind_address": _socket_address,
    "metrics_bind_address": _socket_address,
}


def _settings_of(data: dict[str, Any]) -> settings.Settings:
    """Settings from data; what an agent of another version has more or less is left at its default."""
    hints = get_type_hints(settings.Settings)
    known: dict[str, Any] = {}
    for name in settings.Settings.__struct_fields__:
        if name in data:
            read = _WITH_ADDRESSES.get(name)
            known[name] = read(data[name]) if read else msgspec.convert(data[name], hints[name])
    return settings.Settings(**known)


def planner_of(taken: Snapshot) -> planner.Planner:
    """A planner that has planned what a snapshot says."""
    made = planner.Planner(taken.settings, node_name=taken.node_name)
    made.store.replace(
        (*taken.services, *taken.slices, *taken.service_cidrs, *((taken.node,) if taken.node else ())),
    )
    made.replan()
    return made
