"""The inputs that are kept: tests/fuzz/corpus/TARGET/NAME, one file each.

`seed-*` are good inputs to begin with; `found-*` broke something once and are named for what that was; `crash-*` is
what a fuzzer has just found: when it is mended, it gets a name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

HERE = Path(__file__).parent / "corpus"


def directory(target: str) -> Path:
    """Where the inputs of a target are."""
    return HERE / target


def kept(target: str) -> list[Path]:
    """The inputs that are kept for a target, sorted."""
    return sorted(path for path in directory(target).glob("*") if path.is_file() and not path.name.startswith("."))


def keep(target: str, data: bytes, *, name: str = "") -> Path:
    """Keep an input: under a name, or as a crash."""
    path = directory(target) / (name or f"crash-{hashlib.sha256(data).hexdigest()[:16]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
