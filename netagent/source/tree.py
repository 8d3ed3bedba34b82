"""What belongs to a tree of manifests: the one rule for the reader and for the watch."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".yaml", ".yml", ".json")
# Two writes within one tick of the clock that files are stamped by look the same, and that of another host may be off.
_SETTLED_SECONDS = 2.0


class Stamp(NamedTuple):
    """What changes whenever a file does: which file it is, its size, and when it and its inode changed (ns)."""

    device: int
    inode: int
    size: int
    written_ns: int
    changed_ns: int


class Entry(NamedTuple):
    """A name in a directory. `directory` follows symlinks; `manifest` tells that the suffix is one of ours."""

    path: Path
    directory: bool
    link: bool
    manifest: bool


def entries(directory: Path) -> list[Entry]:
    """The entries of a directory that count, sorted by name. OSError when it cannot be listed.

    Hidden names do not count, so `..data` and the generations of a ConfigMap volume are seen only through the
    symlinks that point into them.
    """
    found = []
    with os.scandir(directory) as scan:
        for one in scan:
            if is_hidden(one.name):
                continue
            try:
                is_directory = one.is_dir()
            except OSError:  # a symlink to itself, or to what we may not see
                is_directory = False
            path = directory / one.name
            found.append(Entry(path, is_directory, one.is_symlink(), one.name.endswith(SUFFIXES)))
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether a name is hidden from us."""
    return name.startswith(".")


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_settled(stamp: Stamp) -> bool:
    """Whether a file has been left alone for long enough that the next change to it gives another stamp."""
    return time.time_ns() - max(stamp.written_ns, stamp.changed_ns) > _SETTLED_SECONDS * 1e9
