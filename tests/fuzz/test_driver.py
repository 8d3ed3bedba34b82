"""scripts/fuzz: it counts what it tries, keeps what breaks something, and says so by its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import __main__ as fuzz
from tests.fuzz import corpora, mutations, trial

_TOP = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=_TOP,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_tries_as_many_inputs_as_it_was_told() -> None:
    done = run("--engine", "mutations", "--inputs", "200", "iptables_save", "api")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines == [["iptables_save", "100", "ok"], ["api", "100", "ok"], ["total", "200"]]


def test_a_target_that_nobody_knows_is_a_wrong_usage() -> None:
    done = run("--inputs", "1", "nonsense")
    assert done.returncode == 2
    assert "no such target: nonsense" in done.stderr


def test_what_breaks_a_target_is_kept_and_ends_in_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corpora, "HERE", tmp_path)

    def broken(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        findings = Path(command[command.index("--findings") + 1])
        (findings / "crash-abc").write_bytes(b"the input")
        return subprocess.CompletedProcess(command, 1, b"ValueError: bug\ninputs: 17\n")

    monkeypatch.setattr(subprocess, "run", broken)
    result = fuzz._fuzzed("api", engine="mutations", inputs=100, seconds=0.0, seed=0)
    assert (result.inputs, [path.read_bytes() for path in corpora.kept("api")]) == (17, [b"the input"])
    assert fuzz._reported([result]) == 1
    said = capsys.readouterr()
    assert "BROKEN" in said.out
    assert "ValueError: bug" in said.err


def test_what_libfuzzer_counts_is_counted() -> None:
    assert fuzz._count("noise\nstat::number_of_executed_units: 4711\nstat::average_exec_per_sec: 1\n") == 4711


def test_an_input_that_takes_too_long_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 3.0))
    monkeypatch.setattr(trial.time, "process_time", lambda: next(clock))
    with pytest.raises(trial.TooSlowError, match=r"4 bytes took 3\.0 s"):
        trial._measured(lambda data: None)(b"slow")


def test_the_same_seed_gives_the_same_inputs() -> None:
    import random

    material = mutations.Material([b"one", b"two and more"], [b"word"], 100)
    made = [[mutations.mutated(material, chance) for _ in range(50)] for chance in (random.Random(5), random.Random(5))]
    assert made[0] == made[1]
    assert len(set(made[0])) > 25
    assert all(len(one) <= 100 for one in made[0])
