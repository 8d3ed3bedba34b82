"""Manifest files to objects: JSON or YAML, one file, a directory tree, or standard input."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from netagent.errors import SourceError
from netagent.model import objects
from netagent.source import tree
from netagent.source.faults import Remark
from netagent.source.file_content import Content, read_content
from netagent.source.file_content import Quarantined as Quarantined
from netagent.source.kinds import ObjectKey, object_key

STDIN = "-"
STDIN_ORIGIN = "<stdin>"


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a source says now.

    `objects` are in the order of the source, at most one for each key; `origins` tells which file each came
    from. `kept` are the keys of those objects that are versions of the previous reading, because their new
    ones are bad or cannot be read. `ignored` counts objects of other kinds. `files` are those of a directory that the
    next reading need not read again unless they change.
    """

    objects: tuple[objects.Object, ...] = ()
    origins: Mapping[ObjectKey, str] = {}
    quarantined: tuple[Quarantined, ...] = ()
    remarks: tuple[Remark, ...] = ()
    ignored: int = 0
    kept: frozenset[ObjectKey] = frozenset()
    files: Mapping[str, RememberedFile] = {}


class RememberedFile(NamedTuple):
    """A file as it was when it was read: what tells that it is still the same, and what it held."""

    stamp: tree.Stamp
    content: Content


def read(path: str | os.PathLike[str], *, stdin: BinaryIO | None = None, previous: Reading | None = None) -> Reading:
    """Read a manifest file, a directory tree of them, or standard input ("-").

    A bad object costs itself, a bad YAML document or a bad file in a directory costs the objects in it; all
    are in `quarantined`. With a `previous` reading what is bad now stays as it was then (fail static); what
    is gone is gone; and files of a directory that are as they were are not read again. SourceError when the path
    itself cannot be read.
    """
    reader = _Reader(previous.files if previous else {})
    if os.fspath(path) == STDIN:
        reader.add(read_content(STDIN_ORIGIN, (stdin or sys.stdin.buffer).read()))
        return reader.reading(previous)
    top = Path(path)
    try:
        if top.is_dir():
            reader.read_directory(top, frozenset())
        else:
            reader.add(read_content(str(top), top.read_bytes()))
    except OSError as error:
        raise SourceError(f"cannot read manifests from {top}: {error.strerror or error}") from error
    except ValueError as error:  # an embedded null byte
        raise SourceError(f"cannot read manifests from {str(top)!r}: {error}") from error
    return reader.reading(previous)


class _Reader:
    """Puts together what any number of files hold; then `reading` tells the result."""

    def __init__(self, remembered: Mapping[str, RememberedFile]) -> None:
        self._remembered = remembered
        self._files: dict[str, RememberedFile] = {}
        self._objects: dict[ObjectKey, objects.Object] = {}
        self._origins: dict[ObjectKey, str] = {}
        self._quarantined: list[Quarantined] = []
        self._remarks: list[Remark] = []
        self._ignored = 0

    def reading(self, previous: Reading | None) -> Reading:
        kept = self._keep_from(previous) if previous is not None and self._quarantined else frozenset()
        return Reading(
            objects=tuple(self._objects.values()),
            origins=self._origins,
            quarantined=tuple(self._quarantined),
            remarks=tuple(self._remarks),
            ignored=self._ignored,
            kept=kept,
            files=self._files,
        )

    def _keep_from(self, previous: Reading) -> frozenset[ObjectKey]:
        bad_keys = {one.key for one in self._quarantined}
        bad_origins = {one.origin for one in self._quarantined if one.unparsed}
        kept = set()
        for item in previous.objects:
            key = object_key(item)
            origin = previous.origins[key]
            if key in self._objects:
                continue
            unread = origin in bad_origins or any(str(parent) in bad_origins for parent in Path(origin).parents)
            if key in bad_keys or unread:
                self._objects[key] = item
                self._origins[key] = origin
                kept.add(key)
        return frozenset(kept)

    # --- files ---------------------------------------------------------------------------------------------

    def read_directory(self, directory: Path, above: frozenset[tuple[int, int]]) -> None:
        """Read a tree; `above` are the directories that we came through, lest a symlink leads in circles."""
        status = directory.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        for entry in tree.entries(directory):
            try:
                if entry.directory:
                    self.read_directory(entry.path, above | {here})
                elif entry.manifest:
                    self._read_file(entry.path)
            except OSError as error:
                reason = f"cannot be read: {error.strerror or error}"
                self._quarantined.append(Quarantined(str(entry.path), reason=reason, unparsed=True))

    def _read_file(self, path: Path) -> None:
        """Read a file of a directory, or take it as it was when it is still the same."""
        origin = str(path)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("is not a regular file")
        stamp = tree.stamp_of(status)
        settled = tree.is_settled(stamp)
        known = self._remembered.get(origin)
        if known is None or known.stamp != stamp:
            known = RememberedFile(stamp, read_content(origin, path.read_bytes()))
        if settled:
            self._files[origin] = known
        self.add(known.content)

    def add(self, content: Content) -> None:
        """Take over what a file holds."""
        for key, item, origin, remarks in content.taken:
            self._remarks += remarks
            if key in self._objects:
                reason = f"is defined twice; this one replaces the one in {self._origins[key]}"
                namespace = getattr(item, "namespace", "")
                self._remarks.append(Remark(key[0], namespace, item.name, "", reason, origin))
                del self._objects[key]
            self._objects[key] = item
            self._origins[key] = origin
        self._quarantined += content.quarantined
        self._ignored += content.ignored
