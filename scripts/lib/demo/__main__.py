"""The story of the demo. Exit code 0: all was as it should be; 1: something was not; 69: it cannot run here."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import acts, universe
from .agent import Agent
from .cluster import Manifests, Pod
from .pods import PodServers
from .report import Report, milliseconds
from .universe import Universe

TOP = Path(__file__).resolve().parents[3]

CLIENT_POD = Pod(acts.CLIENT_POD, universe.NODE, ("10.244.1.100", "fd00:10:244:1::100"))
# Pods that the examples do not have; the demo scales `web` up to them.
MORE_WEB_PODS = (
    Pod("web-4", universe.NODE, ("10.244.1.14", "fd00:10:244:1::14")),
    Pod("web-5", universe.OTHER_NODE, ("10.244.2.15", "fd00:10:244:2::15")),
    Pod("web-6", universe.OTHER_NODE, ("10.244.2.16", "fd00:10:244:2::16")),
)

EX_UNAVAILABLE = 69  # sysexits.h
_SHOWN_LOG_LINES = 20


def main() -> int:
    """Play it, and return the exit code."""
    started = time.monotonic()
    # As SystemExit, so that what was begun is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    report = Report()
    try:
        _require_privacy()
        scratch = _mount_scratch()
        stage = _set_the_stage(report, scratch)
        servers = PodServers(stage.universe)
    except (OSError, RuntimeError) as error:
        print(f"the demo cannot run here: {error}", file=sys.stderr)
        return EX_UNAVAILABLE
    report.say(
        f"A throw-away cluster of network namespaces: 2 nodes, {len(stage.universe.pods)} pods and the outside, "
        f"built in {milliseconds(time.monotonic() - started)}"
    )
    connections = 0
    with servers:
        try:
            acts.start(stage)
            for act in (acts.frontends, acts.scale, acts.restart):
                connections += act(stage)
        except acts.NotReadyError as error:
            report.expect(False, str(error))
        finally:
            code = stage.agent.stop()
    report.expect(code == 0, f"netagent ended with exit code {code}")
    for line in stage.agent.said().splitlines():
        report.expect(line.startswith(("info:", "debug:")), f"netagent says: {line}")
    return _end(report, stage.agent, connections, time.monotonic() - started)


def _require_privacy() -> None:
    """RuntimeError unless this is a fresh network namespace, as scripts/demo makes one."""
    links = subprocess.run(["ip", "-brief", "link", "show", "up"], capture_output=True, text=True, check=False)
    if links.returncode or links.stdout:
        raise RuntimeError("this network namespace is in use; start the demo as scripts/demo")


def _mount_scratch() -> Path:
    """A directory in memory that only this process and its children see, and that ends with them.

    It hides an existing directory from them, one that they do not need.
    """
    needed = [Path(one).resolve() for one in (TOP, sys.prefix, sys.base_prefix)]
    for candidate in map(Path, ("/mnt", "/media", "/srv", "/opt", "/home")):
        if candidate.is_dir() and not any(one.is_relative_to(candidate.resolve()) for one in needed):
            break
    else:
        raise RuntimeError("none of /mnt, /media, /srv, /opt, /home is there and free to be hidden")
    if ctypes.CDLL(None, use_errno=True).mount(b"demo", bytes(candidate), b"tmpfs", 0, b"mode=700") != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    return candidate


def _set_the_stage(report: Report, scratch: Path) -> acts.Stage:
    directory = scratch / "examples"
    directory.mkdir()
    manifests = Manifests(TOP / "examples", directory)
    web = manifests.pods("web")
    web_pods = (*web, *(dataclasses.replace(pod, ports=web[0].ports) for pod in MORE_WEB_PODS))
    pods = {pod.name: pod for pod in (*manifests.pods(), *web_pods, CLIENT_POD)}
    agent = Agent(directory, scratch / "netagent.log")
    return acts.Stage(report, manifests, Universe(pods.values()), agent, web_pods)


def _end(report: Report, agent: Agent, connections: int, seconds: float) -> int:
    if not report.problems:
        report.heading(
            f"All as expected: {connections} connections, none failed, {seconds:.1f} s. Nothing is left behind."
        )
        return 0
    report.heading(f"NOT as expected, after {connections} connections and {seconds:.1f} s:")
    for problem in report.problems:
        report.say(f"  {problem}")
    report.heading("netagent's log:")
    for line in agent.said().splitlines()[-_SHOWN_LOG_LINES:] or ["(empty)"]:
        report.say(f"  {line}")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
