"""`netagent run` as a process, in the namespace of an API server of ours: as it is, or with its syncs noted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from . import cluster
from .plan import Plan
from .workers import Worker, WorkerError

_READY_SECONDS = 120.0


def arguments(server: str, configuration: Path) -> list[str]:
    """The command line of `netagent` that follows a server."""
    return ["run", "--master", server, "--node-name", cluster.NODE, "--config", str(configuration)]


def write_configuration(path: Path, *, audit_seconds: float = 900.0) -> None:
    """Write a configuration file like the settings of `state`."""
    from netagent import settings

    document = {
        "apiVersion": settings.API_VERSION,
        "kind": settings.KIND,
        "mode": "nftables",
        "clusterCIDR": cluster.POD_CIDR,
        "configSyncPeriod": f"{audit_seconds:g}s",
    }
    path.write_text(json.dumps(document))


class Agent:
    """In a worker, in the namespace of an API server: `netagent run`, whole and unchanged, in a process of its own.

    Owns: that process. Use: `start`, then `stop`.
    """

    def __init__(self, server: str, configuration: str) -> None:
        self._command = [sys.executable, "-m", "netagent", *arguments(server, Path(configuration))]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start it; return its process id."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return self._process.pid

    def alive(self) -> bool:
        """Whether it has not ended yet."""
        assert self._process
        return self._process.poll() is None

    def stop(self) -> int:
        """End it in good order; return its exit code."""
        assert self._process
        self._process.terminate()
        return self._process.wait(60)


class WatchedAgent:
    """In a worker, in the namespace of an API server: `netagent run` in this very process, each of its syncs noted.

    Use: `run` once (it answers when the agent has ended, which `stop_agent` of the parent brings about by SIGTERM); it
    returns the syncs: (when by time.monotonic, number of the latest change or -1, changed frontends, operations,
    transactions, seconds).
    """

    def __init__(self, server: str, configuration: str) -> None:
        self._arguments = arguments(server, Path(configuration))

    def run(self) -> list[tuple[float, int, int, int, int, float]]:
        from netagent.agent import reconciler
        from netagent.cli import main

        from . import seams

        syncs: list[tuple[float, int, int, int, int, float]] = []

        def note(at: float, report: reconciler.SyncReport) -> None:
            latest = -1
            for change in report.changes:
                if change.after is not None and change.after.endpoints:
                    latest = max(latest, cluster.later_number(max(change.after.endpoints)))
            counts = (len(report.changes), report.operations, report.transactions)
            syncs.append((at, latest, *counts, report.seconds))

        seams.log_syncs(note)
        assert threading.current_thread() is threading.main_thread()  # the loop takes signals
        main.main(self._arguments, standalone_mode=False)
        return syncs


class Order(NamedTuple):
    """An agent in its worker's own process: the role, and the method that runs it."""

    role: str
    method: str
    arguments: dict[str, Any]


WATCHED = Order("agents:WatchedAgent", "run", {})


class Running:
    """An API server of ours and an agent that follows it, ready.

    Owns: both processes and their namespace. Use: as a context manager; without an `order`, the agent is a process of
    its own, and nothing of it is noted. `pid` is the agent's.
    """

    def __init__(
        self, plan: Plan, size: cluster.Size | None, *, order: Order | None = None, audit_seconds: float = 900.0
    ) -> None:
        configuration = plan.scratch / f"configuration-{audit_seconds:g}.yaml"
        write_configuration(configuration, audit_seconds=audit_seconds)
        pages = str(plan.pages(size)) if size else None
        wanted = size or cluster.Size(1, 1)
        self.server = Worker("apiserver:ApiServer", pages=pages, services=wanted.services, endpoints=wanted.endpoints)
        self._agent: Worker | None = None
        self._watched = order is not None
        try:
            url = self.server.ask("url")
            role = order.role if order else "agents:Agent"
            self._agent = Worker(role, join=self.server.pid, server=url, configuration=str(configuration))
            if order:
                self.pid = self._agent.pid
                self._agent.tell(order.method, **order.arguments)
            else:
                self.pid = self._agent.ask("start")
            self._await_ready()
        except BaseException:
            self.close()
            raise

    def _await_ready(self) -> None:
        assert self._agent
        deadline = time.monotonic() + _READY_SECONDS
        while not self.server.ask("ready"):
            if self._watched and self._agent.has_answered():
                self._agent.hear()  # an error, as a rule
                raise WorkerError("the agent has ended before it was ready")
            if not self._watched and not self._agent.ask("alive"):
                raise WorkerError("the agent has ended before it was ready")
            if time.monotonic() > deadline:
                raise WorkerError(f"the agent is not ready after {_READY_SECONDS:g} s")
            time.sleep(0.02)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop(self) -> Any:
        """End the agent in good order; return what it noted, if it was watched."""
        assert self._agent
        if self._watched:
            os.kill(self.pid, signal.SIGTERM)
            return self._agent.hear()
        return self._agent.ask("stop")

    def close(self) -> None:
        """End both, however they are."""
        if self._agent is not None:
            with contextlib.suppress(ProcessLookupError):
                if self._watched:  # it looks at its input only when the agent in it has ended
                    os.kill(self._agent.pid, signal.SIGTERM)
            self._agent.close()
        self.server.close()
