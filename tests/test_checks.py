"""The gate itself: what scripts/check promises to find, it finds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECK_UNITS = ROOT / "scripts" / "lib" / "check-units"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="not installed: systemd-analyze (Debian package systemd)"
)
needs_import_linter = pytest.mark.skipif(
    not (Path(sys.executable).parent / "lint-imports").exists(), reason="not installed: import-linter (extra check)"
)


# Units ------------------------------------------------------------------------------------------------------------


def check_units(*arguments: Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    return subprocess.run(
        [shutil.which("bash") or "bash", str(CHECK_UNITS), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


@needs_systemd
def test_our_units_are_good_and_the_check_says_so() -> None:
    done = check_units()
    assert (done.returncode, done.stderr) == (0, "")
    assert "systemd-analyze verify: no complaint" in done.stdout
    assert "Overall exposure level for netagent.service: " in done.stdout or "SKIPPED" in done.stdout


@needs_systemd
def test_a_misspelt_setting_ends_the_check(tmp_path: Path) -> None:
    text = (ROOT / "systemd" / "netagent.service").read_text()
    (tmp_path / "netagent.service").write_text(text.replace("ProtectKernelLogs", "ProtectKernalLogs"))
    done = check_units(tmp_path)
    assert done.returncode == 1
    assert "ProtectKernalLogs" in done.stderr


@needs_systemd
def test_a_unit_with_too_many_rights_ends_the_check(tmp_path: Path) -> None:
    (tmp_path / "naked.service").write_text("[Unit]\nDescription=x\n[Service]\nExecStart=/bin/true\n")
    done = check_units(tmp_path)
    if "SKIPPED" in done.stdout:
        pytest.skip("systemd before 250 cannot look at a unit that is not installed")
    assert done.returncode == 1
    assert "naked.service is more exposed than 20 tenths" in done.stderr


def test_without_systemd_the_check_says_that_it_skips(tmp_path: Path) -> None:
    for program in ("dirname", "cd", "pwd"):
        found = shutil.which(program)
        if found:
            (tmp_path / program).symlink_to(found)
    done = check_units(path=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("SKIPPED: the units are not checked: there is no systemd-analyze")


def test_the_gate_has_the_step() -> None:
    assert "\nstep scripts/lib/check-units\n" in (ROOT / "scripts" / "check").read_text()


# Import contracts -------------------------------------------------------------------------------------------------


@needs_import_linter
@pytest.mark.parametrize(
    ("module", "package", "contract"),
    [
        ("agent/telling.py", "prometheus_client", "prometheus_client is known to the metrics alone"),
        ("agent/live.py", "kubernetes", "kubernetes and urllib3 are known to the live source alone"),
        ("source/decode.py", "urllib3.exceptions", "kubernetes and urllib3 are known to the live source alone"),
        ("cli/views.py", "pyroute2", "pyroute2 is known to connection tracking alone"),
    ],
)
def test_a_package_that_is_imported_where_nobody_should_know_it_breaks_its_contract(
    module: str, package: str, contract: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "netagent", tmp_path / "netagent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    stray = tmp_path / "netagent" / module
    stray.write_text(stray.read_text() + f"\nimport {package}\n")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "200"},
    )
    assert done.returncode == 1
    assert f"{contract} BROKEN" in done.stdout, done.stdout
    assert done.stdout.count("BROKEN") == 1
