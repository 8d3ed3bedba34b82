"""The objects of a cluster, one log of their changes, and what etcd does to it: compaction, restored backups."""

from __future__ import annotations

import copy
import datetime
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Manifest = dict[str, Any]
Key = tuple[str, str]
Matches = Callable[[Manifest], bool]

COLLECTIONS: Mapping[str, str] = {
    "Service": "/api/v1/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/endpointslices",
    "Node": "/api/v1/nodes",
    "ServiceCIDR": "/apis/networking.k8s.io/v1/servicecidrs",
}
CLUSTER_SCOPED = ("Node", "ServiceCIDR")


class Stored(NamedTuple):
    """A version of an object, and its JSON as in a list and in a watch."""

    manifest: Manifest
    json: bytes


class Change(NamedTuple):
    """One entry of the log: what an object was (None: it was not there) and became (None: deleted)."""

    version: int
    kind: str
    key: Key
    before: Stored | None
    after: Stored | None


class Snapshot(NamedTuple):
    """A backup."""

    version: int
    objects: dict[str, dict[Key, Stored]]


class GoneError(Exception):
    """The version is compacted away."""


class Cluster:
    """Objects under one resource version.

    Use: `apply`, `delete`, `compact`, `restore`; read with `listing` and `changes`. `changed` is notified of
    everything. Threading: any.
    """

    def __init__(self, *manifests: Manifest, first_version: int = 1000) -> None:
        self.changed = threading.Condition()
        self.version = first_version
        self.compacted = first_version
        self.epoch = 0  # how many times a backup was restored
        self._objects: dict[str, dict[Key, Stored]] = {kind: {} for kind in COLLECTIONS}
        self._log: list[Change] = []
        self._uids = itertools.count(1)
        for manifest in manifests:
            self.apply(manifest)

    # --- writing -----------------------------------------------------------------------------------------------

    def apply(self, manifest: Manifest) -> int:
        """Make or change an object; return its resource version. An equal one changes nothing."""
        kind = manifest["kind"]
        made = copy.deepcopy(manifest)
        metadata = made.setdefault("metadata", {})
        if kind not in CLUSTER_SCOPED:
            metadata.setdefault("namespace", "default")
        key = (metadata.get("namespace", ""), metadata["name"])
        with self.changed:
            before = self._objects[kind].get(key)
            if before is not None:
                for field in ("uid", "creationTimestamp"):
                    metadata.setdefault(field, before.manifest["metadata"][field])
                if _without_version(before.manifest) == _without_version(made):
                    return int(before.manifest["metadata"]["resourceVersion"])
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata.setdefault("uid", str(uuid.UUID(int=next(self._uids))))
            metadata.setdefault("creationTimestamp", now)
            self.version += 1
            after = _stored(made, self.version)
            self._objects[kind][key] = after
            self._add(Change(self.version, kind, key, before, after))
            return self.version

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """Delete an object; KeyError when it is not there."""
        key = ("" if kind in CLUSTER_SCOPED else namespace, name)
        with self.changed:
            before = self._objects[kind].pop(key)
            self.version += 1
            self._add(Change(self.version, kind, key, before, None))

    def touch(self) -> int:
        """Move the version on by a change to something that nobody watches."""
        with self.changed:
            self.version += 1
            self.changed.notify_all()
            return self.version

    def compact(self) -> None:
        """Forget the history: who is behind gets 410."""
        with self.changed:
            self.compacted = self.version
            self._log.clear()

    def snapshot(self) -> Snapshot:
        """A backup of what is there now."""
        with self.changed:
            return Snapshot(self.version, {kind: dict(objects) for kind, objects in self._objects.items()})

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a backup, resource version included."""
        with self.changed:
            self._objects = {kind: dict(objects) for kind, objects in snapshot.objects.items()}
            self.version = self.compacted = snapshot.version
            self._log.clear()
            self.epoch += 1
            self.changed.notify_all()

    def _add(self, change: Change) -> None:
        self._log.append(change)
        self.changed.notify_all()

    # --- reading -----------------------------------------------------------------------------------------------

    def manifests(self, kind: str) -> list[Manifest]:
        """The objects of a kind, by key."""
        with self.changed:
            return [stored.manifest for _, stored in sorted(self._objects[kind].items())]

    def listing(self, kind: str, *, at: int | None = None) -> tuple[int, list[tuple[Key, Stored]]]:
        """The version, and the objects of a kind at it. GoneError for a compacted one."""
        with self.changed:
            objects = self._objects[kind]
            if at is None or at == self.version:
                return self.version, sorted(objects.items())
            if at < self.compacted:
                raise GoneError
            objects = dict(objects)
            for change in reversed(self._log):
                if change.version <= at:
                    break
                if change.kind == kind:
                    if change.before is None:
                        del objects[change.key]
                    else:
                        objects[change.key] = change.before
            return at, sorted(objects.items())

    def changes(self, kind: str, since: int, matches: Matches) -> tuple[int, list[tuple[str, bytes]]]:
        """The version, and the events (type, object) of a kind after `since`, as a selector sees them. GoneError."""
        with self.changed:
            if since < self.compacted:
                raise GoneError
            return self.version, list(self._events(kind, since, matches))

    def _events(self, kind: str, since: int, matches: Matches) -> Iterator[tuple[str, bytes]]:
        start = len(self._log)
        while start and self._log[start - 1].version > since:
            start -= 1
        for change in self._log[start:]:
            if change.kind != kind:
                continue
            was = change.before is not None and matches(change.before.manifest)
            if change.after is not None and matches(change.after.manifest):
                yield ("MODIFIED" if was else "ADDED", change.after.json)
            elif was:
                assert change.before is not None
                yield ("DELETED", _stored(copy.deepcopy(change.before.manifest), change.version).json)


def _stored(manifest: Manifest, version: int) -> Stored:
    manifest["metadata"]["resourceVersion"] = str(version)
    return Stored(manifest, json.dumps(manifest, separators=(",", ":")).encode())


def _without_version(manifest: Manifest) -> Manifest:
    metadata = {name: value for name, value in manifest["metadata"].items() if name != "resourceVersion"}
    if "uid" not in metadata:
        metadata.pop("creationTimestamp", None)
    return manifest | {"metadata": metadata}


def selector(labels: str, fields: str) -> Matches:
    """The function that a label selector and a field selector stand for. ValueError for a field that is unknown."""
    terms: list[Matches] = [_label_term(term) for term in labels.split(",") if term]
    terms += [_field_term(term) for term in fields.split(",") if term]
    return lambda manifest: all(term(manifest) for term in terms)


def _label_term(term: str) -> Matches:
    if term.startswith("!"):
        return lambda manifest: term[1:] not in manifest["metadata"].get("labels", {})
    name, equals, value = term.partition("=")
    if equals:
        return lambda manifest: manifest["metadata"].get("labels", {}).get(name) == value.lstrip("=")
    return lambda manifest: term in manifest["metadata"].get("labels", {})


def _field_term(term: str) -> Matches:
    path, equals, value = term.partition("=")
    negated = path.endswith("!")
    path = path.removesuffix("!")
    if path not in ("metadata.name", "metadata.namespace", "spec.clusterIP") or not equals:
        raise ValueError(f"field label not supported: {path}")
    outer, inner = path.split(".")
    return lambda manifest: (manifest.get(outer, {}).get(inner, "") == value.lstrip("=")) is not negated
