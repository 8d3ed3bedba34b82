"""The netagent process, and what it uses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from demo.universe import CLUSTER_NETWORKS, NODE


class Usage(NamedTuple):
    """What a process has: resident memory in KiB, open descriptors, processor seconds so far."""

    rss: int
    descriptors: int
    cpu: float


class Agent:
    """`netagent run` on an API server, in the namespace of whoever starts it.

    Owns: the process. Use: `start`, `kill`, `start` again, `stop`. It dies with the process that made it, which must
    start it from its main thread. What it says goes to `log`, which is emptied now and then.
    """

    def __init__(self, url: str, log: Path) -> None:
        options = ["--master", url, "--node-name", NODE, "--cluster-cidr", ",".join(CLUSTER_NETWORKS)]
        self._log = log
        self._command = [sys.executable, "-m", "netagent", "run", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self.starts += 1

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def send(self, number: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self._process:
            self._process.wait()

    def stop(self) -> int:
        """In good order; its exit code."""
        self.send(signal.SIGTERM)
        return self._process.wait(60) if self._process else 0

    def usage(self) -> Usage | None:
        """None if it is not there."""
        try:
            where = Path(f"/proc/{self._process.pid}") if self._process else Path("/nowhere")
            fields = (where / "stat").read_text().rpartition(")")[2].split()
            resident = re.search(r"^VmRSS:\s+(\d+)", (where / "status").read_text(), re.MULTILINE)
            cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            return Usage(int(resident.group(1)) if resident else 0, len(os.listdir(where / "fd")), cpu)
        except OSError:
            return None

    def lines(self) -> int:
        """How many lines it has logged."""
        return self._log.read_bytes().count(b"\n")

    def said(self) -> str:
        """The end of what it logged."""
        return self._log.read_text(errors="replace")[-3000:]
