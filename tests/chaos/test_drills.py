"""A short selection of the drills, and that none is forgotten. scripts/chaos runs all of them, for longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import kernel, patience
from tests.chaos import __main__ as program
from tests.chaos import catalogue, drills
from tests.chaos.framework import Run

_TOP = Path(__file__).parents[2]
_QUICK = [drill.name for drill in drills.DRILLS.values() if drill.quick]


@pytest.mark.parametrize("name", _QUICK)
@kernel.isolated
def test_a_drill_holds(name: str) -> None:
    drill = drills.DRILLS[name]
    drill.play(Run(drill.quick))


def test_every_row_has_a_drill_or_a_test_that_is_there() -> None:
    assert [row.number for row in catalogue.ROWS] == list(range(1, 51))
    covered = {number for drill in drills.DRILLS.values() for number in drill.rows}
    for row in catalogue.ROWS:
        assert row.tests or row.number in covered, f"nothing shows row {row.number}"
        for test in row.tests:
            path, _, name = test.partition("::")
            assert f"def {name}(" in (_TOP / "tests" / path).read_text(), test


def test_a_drill_is_for_rows_that_there_are() -> None:
    numbers = {row.number for row in catalogue.ROWS}
    for drill in drills.DRILLS.values():
        assert drill.rows, drill.name
        assert set(drill.rows) <= numbers, drill.name


def test_every_function_that_is_a_drill_is_in_the_list_of_the_script() -> None:
    written = sum(path.read_text().count("\n@drill(") for path in Path(drills.__file__).parent.glob("*.py"))
    listed = _chaos("--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(drills.DRILLS)
    assert len(listed) == written


def test_the_page_has_the_table() -> None:
    assert catalogue.table() in (_TOP / "docs" / "chaos.md").read_text(), "python -m tests.chaos --table"


def test_an_unknown_drill_is_wrong_use() -> None:
    done = _chaos("no-such-drill")
    assert done.returncode == 2
    assert "no-such-drill" in done.stderr


def _chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.chaos", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=_TOP)


def test_a_promise_that_is_broken_is_in_the_report_and_in_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drill = drills.DRILLS["flush-storm"]
    result = program.Result(drill, 1.5, {"flushes": 200}, {"back": [0.25, 0.5, 1.0]}, "AssertionError: too late", "")
    monkeypatch.setattr(program, "_played", lambda *given: result)
    monkeypatch.setattr(program.signal, "signal", lambda *given: None)
    monkeypatch.setattr(sys, "argv", ["scripts/chaos", "flush-storm"])
    assert program.main() == 1
    report = capsys.readouterr().out
    assert "| flush-storm | 1 | FAILED | 1.5 | 200 flushes | back: 0.500, 1.000 |" in report
    assert "AssertionError: too late" in report
    assert "0 of 1 drills held" in report


@kernel.isolated
def test_an_interrupted_run_leaves_no_process_and_no_file_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("this kernel does not tell the children of a process (CONFIG_PROC_CHILDREN)")
    scratch = tmp_path_factory.mktemp("drills")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", "stopped"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=_TOP,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    try:
        patience.until(lambda: _agents_of(process.pid), "an agent runs")
        begun = _agents_of(process.pid)
        process.send_signal(signal.SIGINT)
        report, said = process.communicate(timeout=patience.HANGS)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "0 of 0 drills held" in report
    assert list(scratch.iterdir()) == []
    patience.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in begun), f"{begun} are gone")


def _agents_of(pid: int) -> list[int]:
    """The processes below this one that are a `netagent run`."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"netagent\0-v\0run" in Path(f"/proc/{child}/cmdline").read_bytes():
            found.append(int(child))
        found += _agents_of(int(child))
    return found
