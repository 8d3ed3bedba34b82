"""The parent's side of worker processes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from types import TracebackType
from typing import Any

_END_SECONDS = 60


class WorkerError(RuntimeError):
    """A worker could not do what it was asked for; the text is its traceback."""


class Worker:
    """A process in a network namespace of its own (`join`: in that of another process).

    Owns: the process. Use: as a context manager; `ask` it for what methods its role has.
    Threading: `tell` and `hear` apart let several work at the same time.
    """

    def __init__(self, role: str, *, join: int | None = None, **arguments: Any) -> None:
        order = json.dumps({"role": role, "join": join, "arguments": arguments})
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bench.worker", order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            born = self.hear()
        except BaseException:
            self.close()
            raise
        self.pid: int = born["pid"]
        # When its modules were imported, by time.monotonic.
        self.started: float = born["started"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, method: str, **arguments: Any) -> Any:
        """Have it call a method of its role; return what that returns. WorkerError if it raises or dies."""
        self.tell(method, **arguments)
        return self.hear()

    def tell(self, method: str, **arguments: Any) -> None:
        """Ask without waiting."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([method, arguments]) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """Wait for the next answer."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise WorkerError(f"a worker ended with {code}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def has_answered(self) -> bool:
        """Whether `hear` would not have to wait."""
        assert self._process.stdout
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            assert self._process.stdin
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, in steps of 10 ms."""
    return _ticks(f"/proc/{pid}/stat")


def thread_seconds(pid: int) -> dict[int, float]:
    """Processor time of each thread of a process."""
    found = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            found[int(thread)] = _ticks(f"/proc/{pid}/task/{thread}/stat")
    return found


def memory_bytes(pid: int) -> dict[str, int]:
    """Resident set of a process now and at most, in bytes: `VmRSS`, `VmHWM`."""
    with open(f"/proc/{pid}/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {name: int(lines[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM")}


def _ticks(path: str) -> float:
    with open(path) as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
