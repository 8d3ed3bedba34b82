"""Where the benchmarks run."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]
# More than this many processes that want a processor, for each processor, and the figures are other people's.
_BUSY = 0.25


def description() -> dict[str, str]:
    """Machine, kernel, versions, commit and load."""
    return {
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} usable",
        "memory": f"{_memory_gib():.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "nft": _said(["nft", "--version"]) or "not installed",
        "commit": _commit(),
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def warnings() -> list[str]:
    """What makes the figures of this run doubtful."""
    found = []
    load = os.getloadavg()[0]
    if load > _BUSY * len(os.sched_getaffinity(0)):
        found.append(f"the load average was {load:.2f} at the start: others use this machine, the figures are too high")
    if not _may_force_buffers():
        limit = Path("/proc/sys/net/core/wmem_max").read_text().strip()
        found.append(f"in a user namespace a transaction is cut at net.core.wmem_max ({limit} bytes)")
    return found


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def _commit() -> str:
    commit = _said(["git", "-C", str(TOP), "rev-parse", "--short=12", "HEAD"]) or "unknown"
    changed = _said(["git", "-C", str(TOP), "status", "--porcelain", "--", "netagent"])
    return f"{commit}, with changes to netagent/ that are not committed" if changed else commit


def _said(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _may_force_buffers() -> bool:
    """Whether we are in the first user namespace, where SO_SNDBUFFORCE works."""
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
