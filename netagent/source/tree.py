"""What belongs to a tree of manifests: the one rule for the reader and for the watch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".yaml", ".yml", ".json")


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
