"""The netagent process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from .universe import CLUSTER_NETWORKS, NODE

_STOP_SECONDS = 10


class Agent:
    """`netagent run` on a directory, in the namespace of whoever starts it.

    Owns: the process. Use: `start`, `kill`, `start` again, `stop`. It dies with the demo, which must start it from
    its main thread. What it says goes to `log`.
    """

    def __init__(self, directory: Path, log: Path) -> None:
        options = ["-f", str(directory), "--node-name", NODE, "--cluster-cidr", ",".join(CLUSTER_NETWORKS)]
        self._log = log
        self._command = [_program(), "-v", "run", *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command_line(self) -> str:
        """What one would type."""
        return " ".join(["netagent", *self._command[1:]])

    def start(self) -> None:
        """Start it; it is not yet done when this returns."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def said(self) -> str:
        """All that it logged."""
        return self._log.read_text() if self._log.exists() else ""

    def kill(self) -> None:
        """As a crash would end it."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """In good order; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _program() -> str:
    """The netagent of the virtual environment that the demo itself runs in."""
    beside = Path(sys.executable).with_name("netagent")
    return str(beside) if beside.exists() else "netagent"
