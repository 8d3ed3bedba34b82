"""Completion: scripts that the shells accept, and what they offer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SHELLS = ("bash", "zsh", "fish")
# What a package installs for each shell, where the shell looks for it.
STUBS = {
    "bash": "share/bash-completion/completions/netagent",
    "zsh": "share/zsh/site-functions/_netagent",
    "fish": "share/fish/vendor_completions.d/netagent.fish",
}
# A busy machine may take its time.
SECONDS = 60


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `netagent` is this tree's."""
    program = tmp_path / "netagent"
    program.write_text(f"#!{sys.executable} -P\nfrom netagent.cli.main import main\n\nmain()\n")
    program.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


def run(*command: str, path: str, **variables: str) -> str:
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(TOP), **variables}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment, cwd=TOP
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def shell_of(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"not installed: {name}")
    return found


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_accepts_the_script(shell: str, path: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(run("netagent", "completion", shell, path=path))
    run(shell_of(shell), "-n", str(script), path=path)
    run(shell_of(shell), "-n", str(TOP / STUBS[shell]), path=path)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_program_answers_what_the_script_asks(shell: str, path: str) -> None:
    words = {"bash": "netagent vers", "zsh": "netagent vers", "fish": "netagent vers"}[shell]
    current = "vers" if shell == "fish" else "1"
    said = run("netagent", path=path, COMP_WORDS=words, COMP_CWORD=current, _NETAGENT_COMPLETE=f"{shell}_complete")
    assert "version" in said.replace("\t", "\n").replace(",", "\n").splitlines()


def offered(words: str, path: str) -> list[str]:
    """What bash offers for the last of some words, after the file of the package was read."""
    script = f"""
        source {TOP / STUBS["bash"]}
        COMP_WORDS=({words}) COMP_CWORD=$(( {len(words.split())} - 1 ))
        _netagent_completion netagent
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return run(shell_of("bash"), "--norc", "-c", script, path=path).split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("netagent sta", ["status"]),
        ("netagent cle", ["cleanup"]),
        ("netagent completion z", ["zsh"]),
        ("netagent dump --masq", ["--masquerade-all", "--masquerade-bit"]),
        ("netagent dump -o ipt", ["iptables"]),
    ],
)
def test_bash_offers_commands_options_and_values(words: str, expected: list[str], path: str) -> None:
    assert sorted(offered(words, path)) == expected


def test_fish_offers_commands_with_what_they_do(path: str, tmp_path: Path) -> None:
    script = f"source {TOP / STUBS['fish']}; complete -C 'netagent cle'"
    said = run(
        shell_of("fish"), "--no-config", "-c", script, path=path, HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path)
    )
    assert said.startswith("cleanup")


def test_another_shell_is_refused_as_usage(path: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "netagent", "completion", "tcsh"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
