"""Replays that mostly wait, in processes of their own, while the tests go on."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

_HANGS_SECONDS = 600


class Aside:
    """Calls in child processes, all at the same time.

    Owns: the children. Use: `start` some, ask each for its `outcome`, `close` at the end, which kills the others.
    Threading: one thread.
    """

    def __init__(self) -> None:
        self._children: dict[str, tuple[int, int]] = {}

    def start(self, name: str, call: Callable[[], None]) -> None:
        """Begin with a call. Its exceptions, `pytest.skip` too, are its outcome."""
        sys.stdout.flush()
        sys.stderr.flush()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                signal.alarm(_HANGS_SECONDS)
                said = pickle.dumps(_outcome(call))
                with os.fdopen(writer, "wb") as pipe:
                    pipe.write(said)
            finally:
                # No cleanup of pytest's, of fixtures or of threads: all that is the parent's.
                os._exit(0)
        os.close(writer)
        self._children[name] = (child, reader)

    def __contains__(self, name: str) -> bool:
        return name in self._children

    def outcome(self, name: str) -> tuple[str, str]:
        """Wait for a call: "passed", "skipped" or "failed", and what it said. KeyError if it was not started."""
        child, reader = self._children.pop(name)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        if not said:
            return "failed", f"the process of {name} ended without a word"
        kind, text = pickle.loads(said)
        return kind, text

    def close(self) -> None:
        """Kill those that nobody has asked for. Their namespaces end with them."""
        for child, reader in self._children.values():
            os.close(reader)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self._children.clear()


def _outcome(call: Callable[[], None]) -> tuple[str, str]:
    with tempfile.TemporaryDirectory(prefix="netagent-aside-") as directory:
        # Whoever writes legacy tables in another process is in other namespaces, and need not be waited for.
        os.environ["XTABLES_LOCKFILE"] = str(Path(directory) / "xtables.lock")
        try:
            call()
        except pytest.skip.Exception as skipped:
            return "skipped", str(skipped)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent reports it
            return "failed", traceback.format_exc()
    return "passed", ""
