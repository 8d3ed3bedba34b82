"""`netagent run` on a directory, in the namespace of the drill, and the little clusters that drills have.

For drills and tests under `kernel.isolated`.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest

from tests import builders, kernel, patience
from tests.agent import live_agent

NODE = live_agent.NODE
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)
_OPERATIONS = re.compile(r"sync committed operations=(\d+)")

Manifests = dict[str, builders.Manifest]


def die_with_parent() -> None:
    """Be killed when the process (and thread) that made this one ends, however it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Cluster:
    """The objects of a small cluster, and the directory that an agent follows.

    Owns: the directory, until the end of the block. Use: `serve` and `remove` change objects, `write` makes the agent
    see them, all at once.
    """

    def __init__(self, services: int = 8, endpoints: int = 2) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="netagent-chaos-")
        self.scratch = Path(self._scratch.name)
        self.directory = self.scratch / "followed"
        self.directory.mkdir()
        self._manifests: Manifests = {"node": builders.node_manifest(), "cidr": builders.service_cidr_manifest()}
        for number in range(services):
            self.serve(number, range(1, endpoints + 1))
        self.write()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.cleanup()

    @property
    def manifests(self) -> list[builders.Manifest]:
        """All objects as they are now."""
        return list(self._manifests.values())

    def serve(self, number: int, hosts: Sequence[int], *, protocol: str = "TCP") -> None:
        """Service `number` with the pods 10.180.NUMBER.HOST behind it."""
        name = f"s{number}"
        port = builders.port_manifest(80, protocol=protocol)
        service = builders.service_manifest(name, cluster_ip=cluster_ip(number), ports=[port])
        addresses = [f"10.180.{number % 250}.{host}" for host in hosts]
        ports = [builders.port_manifest(8080, protocol=protocol)]
        self._manifests[name] = service
        self._manifests[f"{name}-1"] = builders.slice_manifest(name, *addresses, ports=ports)

    def remove(self, number: int) -> None:
        """Delete Service `number`."""
        for name in (f"s{number}", f"s{number}-1"):
            self._manifests.pop(name, None)

    def write(self) -> None:
        """Make the agent see the objects, in one step."""
        draft = self.directory / ".draft"
        draft.write_bytes(builders.as_json(builders.list_manifest(*self.manifests)))
        draft.rename(self.directory / "all.json")

    def change(self, dice: random.Random, services: int = 8) -> None:
        """Change some Service in some way, and write that."""
        number = dice.randrange(services)
        if dice.random() < 0.15:
            self.remove(number)
        else:
            self.serve(number, sorted(dice.sample(range(1, 10), dice.randrange(0, 5))))
        self.write()

    def config(self, **netagent: object) -> Path:
        """A configuration file with these fields in its section `netagent`."""
        fields = ", ".join(f"{name}: {str(value).lower()}" for name, value in netagent.items())
        path = self.scratch / "config.yaml"
        path.write_text(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
            f"netagent: {{{fields}}}\n"
        )
        return path


def cluster_ip(number: int) -> str:
    """The address of Service `number`."""
    return f"10.96.{number // 250}.{number % 250 + 1}"


class Agent:
    """`netagent run` on a cluster's directory until the end of the block; then it is killed, if it still runs.

    `owned`: whether its tables are its own. `before` is a command that starts it (prlimit, unshare, ...), `preface` is
    Python that the process runs first, `talk` how much it tells.
    """

    def __init__(
        self,
        cluster: Cluster,
        *arguments: str,
        owned: bool = False,
        before: Sequence[str] = (),
        preface: str = "",
        environment: Mapping[str, str] | None = None,
        errors: int | None = None,
        talk: str = "-v",
    ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        program = ["-c", f"{preface}\nfrom netagent.cli.main import main\nmain()"] if preface else ["-m", "netagent"]
        config = str(cluster.config(tableOwnership=owned))
        followed = ["-f", str(cluster.directory), "--node-name", NODE, "--config", config]
        self.cluster = cluster
        self.process = subprocess.Popen(
            [*before, sys.executable, *program, talk, "run", *followed, *arguments],
            stdin=subprocess.DEVNULL,
            stderr=self._errors if errors is None else errors,
            env={**os.environ, **(environment or {})},
            preexec_fn=die_with_parent,  # noqa: PLW1509 - only one thread starts processes here
        )

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if error is not None:
            error.add_note(f"the agent said:\n{self.said()[-6000:]}")
        self._errors.close()

    def said(self) -> str:
        """What it wrote to standard error so far."""
        return Path(f"/proc/self/fd/{self._errors.fileno()}").read_text(errors="replace")

    def operations(self) -> list[int]:
        """The numbers of operations of its syncs that changed something."""
        return [int(count) for count in _OPERATIONS.findall(self.said())]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end: the exit code."""
        self.process.send_signal(number)
        return self.process.wait(patience.HANGS)

    def alive(self) -> bool:
        return self.process.poll() is None

    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int:
        """Its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def until_right(self) -> float:
        """Wait until the kernel has exactly what the cluster wants; how long that took."""
        begun = time.monotonic()

        def still_there() -> None:
            assert self.alive(), f"it ended with {self.process.returncode}"

        live_agent.until_right(lambda: self.cluster.manifests, meanwhile=still_there)
        return time.monotonic() - begun

    def until_synced(self) -> None:
        """Wait until it has synced, and so is all there; of one that tells everything (`talk="-vv"`)."""
        self.until_said("sync committed")

    def until_said(self, words: str) -> None:
        """Wait until its log has these words."""
        patience.until(lambda: words in self.said() or not self.alive(), f"{words!r} in the log")
        assert words in self.said(), f"it ended with {self.process.returncode}, and never said {words!r}"


def right(cluster: Cluster) -> list[str]:
    """What the kernel has otherwise than the cluster wants: nothing when all is right."""
    return live_agent.wrong(cluster.manifests)


def netagent(*arguments: str | Path, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command of netagent to its end."""
    return subprocess.run(
        [*before, sys.executable, "-m", "netagent", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=patience.HANGS,
        check=False,
        preexec_fn=die_with_parent,
    )


def needs(program: str) -> None:
    """Skip the drill where this program is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"not installed: {program}")


def quietly(script: str) -> bool:
    """Run nft commands of somebody else; whether the kernel took them."""
    try:
        kernel.nft(script)
    except RuntimeError:
        return False
    return True


def repeatedly(action: Callable[[], object], *, per_second: float, seconds: float) -> int:
    """Do it again and again at this pace; how often it was done."""
    begun, done = time.monotonic(), 0
    while (now := time.monotonic()) < begun + seconds:
        action()
        done += 1
        time.sleep(max(0.0, begun + done / per_second - now))
    return done
