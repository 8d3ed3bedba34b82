"""What is fuzzed. Each module here is a target: `run(data)` takes any bytes and returns; what it raises is a bug.

A target hands the bytes to functions of netagent, lets the errors pass that those document, and checks what they
promise of their results and of their messages. `WORDS` are pieces of the language that mutations are made with.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple


class Target(NamedTuple):
    """A target by its name, which is that of its module and of its directory of the corpus."""

    name: str
    run: Callable[[bytes], None]
    words: tuple[bytes, ...]


def names() -> list[str]:
    """The names of all targets."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))


def target(name: str) -> Target:
    """The target of this name. Its module is imported only now, so that a fuzzer can instrument what it imports."""
    module = importlib.import_module(f"{__name__}.{name}")
    return Target(name, module.run, tuple(module.WORDS))
