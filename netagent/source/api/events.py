"""What the live source tells: the objects of a kind anew, or one object that changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

import msgspec

from netagent.model import objects
from netagent.source.faults import BadObject, Remark, sentence
from netagent.source.kinds import Key, Kind, ObjectKey, key_for
from netagent.source.store import Store


class Quarantined(msgspec.Struct, frozen=True):
    """A version of an object that cannot be used: the version before it stays.

    `namespace`, `name`, `field` and `uid` are "" as far as they are unknown.
    """

    kind: Kind
    namespace: str = ""
    name: str = ""
    field: str = ""
    reason: str = ""
    uid: str = ""

    @property
    def key(self) -> ObjectKey | None:
        """The key of the object, None when it is unknown."""
        return key_for(self.kind, self.namespace, self.name) if self.name else None

    def __str__(self) -> str:
        return sentence(self.kind, self.namespace, self.name, self.field, self.reason)


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """All objects of a kind: what is neither here nor among the quarantined is gone.

    `absent` tells that this API server does not have the kind.
    """

    kind: Kind
    objects: tuple[objects.Object, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    remarks: tuple[Remark, ...] = ()
    absent: bool = False

    @property
    def quarantined_keys(self) -> frozenset[ObjectKey]:
        """The objects whose versions before this list stay."""
        return frozenset(one.key for one in self.quarantined if one.key is not None)

    @property
    def complete(self) -> bool:
        """Whether what is not here is known to be gone; it is not when an object in the list has no readable name."""
        return all(one.key is not None for one in self.quarantined)


class Applied(msgspec.Struct, frozen=True):
    """An object was made or changed."""

    kind: Kind
    object: objects.Object
    remarks: tuple[Remark, ...] = ()


class Deleted(msgspec.Struct, frozen=True):
    """An object is gone, or no longer matches what we select."""

    kind: Kind
    key: Key


Event = Listed | Applied | Deleted | Quarantined


def quarantined(fault: BadObject) -> Quarantined:
    """The event for an object that decoding refused."""
    return Quarantined(fault.kind, fault.namespace, fault.name, fault.field, fault.reason, fault.uid)


def feed(store: Store, events: Iterable[Event]) -> bool:
    """Make a Store say what the events say, in their order. True when that may influence forwarding."""
    changed = False
    for event in events:
        match event:
            case Listed() if event.complete:
                changed |= store.replace(event.objects, kinds=(event.kind,), keep=event.quarantined_keys)
            case Listed():  # the nameless one may be any of those that seem to be gone, so nothing is deleted
                for item in event.objects:
                    changed |= store.apply(item)
            case Applied():
                changed |= store.apply(event.object)
            case Deleted():
                changed |= store.delete(event.kind, event.key)
            case Quarantined():
                pass
            case _:
                assert_never(event)
    return changed
