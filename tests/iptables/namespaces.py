"""For tests with real tables: an xtables lock of the test's own, and the tools by variant. Under `kernel.isolated`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from netagent.iptables import legacy, tools
from netagent.model.addresses import Family
from tests import kernel, patience

VARIANTS = list(tools.Variant)
# Made and removed by the process that runs pytest: its children end without cleaning up.
_LOCKS = tempfile.TemporaryDirectory(prefix="netagent-test-")


def own_lock() -> Path:
    """Have all tools of this child process use a lock file of its own; return it."""
    path = Path(tempfile.mkdtemp(dir=_LOCKS.name)) / "xtables.lock"
    os.environ["XTABLES_LOCKFILE"] = str(path)
    return path


def need(variant: tools.Variant) -> None:
    """Skip where a variant is not installed, or the kernel has none of it."""
    if not tools.installed(variant):
        pytest.skip(f"not installed: iptables-{variant.value}")
    own_lock()
    kernel.fresh()
    try:
        tools.restore(variant, Family.IPV4, "*nat\nCOMMIT\n*filter\nCOMMIT\n", lock_seconds=60)
    except Exception as error:  # noqa: BLE001 - whatever it is, nothing can be tried here
        pytest.skip(f"{variant.value} tables do not work here: {error}")
    kernel.fresh()


def need_python_iptables() -> None:
    """Skip where legacy tables do not work, or python-iptables is not installed."""
    need(tools.Variant.LEGACY)
    reason = legacy.unavailable()
    if reason:
        pytest.skip(reason)


def iptables(variant: tools.Variant, *arguments: str, family: Family = Family.IPV4) -> str:
    """Run iptables or ip6tables of a variant; return what it prints."""
    name = tools.program(family, variant, "save").removesuffix("-save")
    path = tools.which(name)
    assert path
    return subprocess.run(
        [path, "-w", "5", *arguments], check=True, capture_output=True, text=True, env=dict(os.environ)
    ).stdout


def rules(variant: tools.Variant, family: Family = Family.IPV4) -> list[str]:
    """All rules and chains that are there, without counters."""
    saved = tools.save(variant, family).splitlines()
    return [line.split(" [")[0] for line in saved if line[:1] in (":", "-", "*")]


def hold_lock(path: Path, seconds: float = patience.AN_HOUR) -> subprocess.Popen[str]:
    """Another process, named python..., that holds the lock for so long. It has it when this returns."""
    script = (
        f"import fcntl, sys, time; f = open({str(path)!r}, 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
        f"print('has it', flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout
    process.stdout.readline()
    return process


def fake(directory: Path, name: str, script: str) -> None:
    """A program in place of a real one: the first of its name in PATH."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    if os.environ["PATH"].split(":")[0] != str(directory):
        os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"


def lose_privilege() -> None:
    """Go on in a user namespace of its own: root there, but not over the network namespace that we are in."""
    kernel._enter_user_namespace()
