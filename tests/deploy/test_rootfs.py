"""The root file system of the container: what is in it, and that netagent works there with the rights that it gets."""

from __future__ import annotations

import ctypes.util
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import kernel

TOP = Path(__file__).parents[2]
NET_ADMIN = 1 << 12
NOBODY = 65534
NETAGENT = "/opt/netagent/bin/netagent"
ON_NODE = ("-f", "/tmp/examples", "--node-name", "demo-node")

pytestmark = [pytest.mark.slow, pytest.mark.kernel]


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that scripts/build-rootfs makes, with the examples in its /tmp: one for all test processes."""
    shared = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else None
    place = shared or tmp_path_factory.mktemp("image")
    root = place / "netagent-rootfs"
    with (place / "netagent-rootfs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            building = place / "netagent-rootfs.building"
            shutil.rmtree(building, ignore_errors=True)
            done = subprocess.run(
                [TOP / "scripts/build-rootfs", building],
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
                env={**os.environ, "NETAGENT_PYTHON": sys.executable},
            )
            assert done.returncode == 0, done.stderr
            shutil.copytree(TOP / "examples", building / "tmp/examples")
            # Other users have to get at it as well, and pytest's directories are for one.
            building.rename(root)
    return root


def programs(root: Path) -> Iterator[str]:
    """What could be run: ELF files that are not shared libraries, and everything in a directory for programs."""
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            elf = file.read(4) == b"\x7fELF"
        if (elf and not re.search(r"\.so(\.|$)", path.name)) or path.parent.name in ("bin", "sbin", "libexec"):
            yield name


def test_there_is_python_and_netagent_and_no_other_program(rootfs: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert set(programs(rootfs)) == {f"usr/bin/python{version}", "opt/netagent/bin/netagent"}
    for name in ("sh", "bash", "dash", "busybox", "gcc", "cc", "ld", "pip", "apt", "nft"):
        assert not list(rootfs.rglob(name)), name


def test_nothing_in_it_knows_where_it_was_built(rootfs: Path) -> None:
    dangling = [path for path in rootfs.rglob("*") if path.is_symlink() and str(TOP) in os.readlink(path)]
    assert dangling == []
    assert str(TOP) not in (rootfs / "opt/netagent/pyvenv.cfg").read_text()


def inside(
    root: Path, *command: str, uid: int = 0, capabilities: int = NET_ADMIN, allowed: Path | None = None
) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, str(Path(__file__).with_name("confined.py"))]
    return subprocess.run(
        [*launcher, str(root), str(uid), hex(capabilities), str(allowed or "-"), *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@kernel.isolated
def test_every_module_of_netagent_can_be_imported(rootfs: Path) -> None:
    code = """
import importlib, pkgutil, netagent
for module in pkgutil.walk_packages(netagent.__path__, "netagent."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import pyroute2, ssl, ctypes, asyncio, socket
print(socket.getaddrinfo("127.0.0.1", 6443)[0][4])
"""
    done = inside(rootfs, "/opt/netagent/bin/python3", "-I", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "('127.0.0.1', 6443)\n"


@kernel.isolated
def test_it_prints_there_what_it_prints_here(rootfs: Path) -> None:
    there = inside(rootfs, NETAGENT, "dump", *ON_NODE, capabilities=0)
    here = subprocess.run(
        [sys.executable, "-m", "netagent", "dump", "-f", TOP / "examples", "--node-name", "demo-node"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert there.returncode == here.returncode == 0, there.stderr
    assert there.stdout == here.stdout
    assert inside(rootfs, NETAGENT, "version", capabilities=0).stdout.startswith("netagent ")


def users() -> list[int]:
    """The users to try: in a container root with its capabilities taken, under systemd one of the service's own."""
    return [0, NOBODY] if os.geteuid() == 0 else [0]


@pytest.mark.parametrize("uid", users())
@kernel.isolated
def test_it_syncs_with_one_capability_and_the_system_calls_of_the_unit(rootfs: Path, tmp_path: Path, uid: int) -> None:
    allowed = system_calls_of_unit(tmp_path)
    first = inside(rootfs, NETAGENT, "sync", *ON_NODE, uid=uid, allowed=allowed)
    assert first.returncode == 0, first.stderr
    assert re.search(r"[1-9]\d* operations", first.stderr)
    second = inside(rootfs, NETAGENT, "sync", *ON_NODE, uid=uid, allowed=allowed)
    assert "0 operations" in second.stderr
    assert inside(rootfs, NETAGENT, "diff", *ON_NODE, uid=uid, allowed=allowed).returncode == 0
    assert {"table ip netagent", "table ip6 netagent"} <= set(kernel.nft("list tables").splitlines())
    assert inside(rootfs, NETAGENT, "cleanup", uid=uid, allowed=allowed).returncode == 0
    assert kernel.nft("list tables") == ""


@kernel.isolated
def test_without_its_capability_it_says_so_and_ends_with_4(rootfs: Path) -> None:
    done = inside(rootfs, NETAGENT, "sync", *ON_NODE, capabilities=0)
    assert done.returncode == 4
    assert "CAP_NET_ADMIN" in done.stderr


def system_calls_of_unit(directory: Path) -> Path | None:
    """The names that the unit's SystemCallFilter leaves, in a file; None where that cannot be found out."""
    if not shutil.which("systemd-analyze") or not ctypes.util.find_library("seccomp"):
        return None
    unit = (TOP / "systemd/netagent.service").read_text()
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        names = set().union(*(system_calls_of_group(group) for group in line.removeprefix("~").split()))
        allowed = allowed - names if line.startswith("~") else allowed | names
    # The launcher's own last call.
    allowed.add("execve")
    file = directory / "allowed"
    file.write_text("\n".join(sorted(allowed)))
    return file


def system_calls_of_group(name: str) -> set[str]:
    listing = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    found: set[str] = set()
    for word in listing.stdout.split("\n"):
        entry = word.strip()
        if not word.startswith(" ") or entry.startswith("#"):
            continue
        found |= system_calls_of_group(entry) if entry.startswith("@") else {entry}
    return found
