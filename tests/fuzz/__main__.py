"""Fuzz the targets, each in a process of its own, and tell how many inputs were tried. See scripts/fuzz --help."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import corpora, targets

_DEFAULT_SECONDS = 60.0
# A process that neither ends nor tells anything: imports and the last input take their time.
_GRACE_SECONDS = 120.0
_TAIL_LINES = 40


class Result(NamedTuple):
    """What became of a target: how many inputs, and where the one is that broke it, if one did."""

    target: str
    inputs: int
    crash: Path | None
    output: str


def main() -> int:
    arguments = _arguments()
    chosen = arguments.target or targets.names()
    if unknown := sorted(set(chosen) - set(targets.names())):
        print(f"no such target: {', '.join(unknown)}; there are: {', '.join(targets.names())}", file=sys.stderr)
        return 2
    engine = arguments.engine or ("atheris" if importlib.util.find_spec("atheris") else "mutations")
    inputs = -(-arguments.inputs // len(chosen)) if arguments.inputs else 0
    seconds = arguments.seconds or (0.0 if inputs else _DEFAULT_SECONDS)
    share = seconds * arguments.jobs / len(chosen)
    print(f"fuzzing {len(chosen)} targets with {engine}", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(
            pool.map(
                lambda name: _fuzzed(name, engine=engine, inputs=inputs, seconds=share, seed=arguments.seed), chosen
            )
        )
    return _reported(results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Try hostile input on everything that reads foreign bytes. What breaks something is kept in "
        "tests/fuzz/corpus, and the exit code is 1 then.",
        epilog=f"Targets: {', '.join(targets.names())}.",
    )
    parser.add_argument("target", nargs="*", metavar="TARGET", help="what to fuzz (default: everything)")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--seconds", type=float, help=f"how long, all together (default: {_DEFAULT_SECONDS:g})")
    limits.add_argument("--inputs", type=int, help="how many inputs, all together, shared by the targets")
    parser.add_argument("--engine", choices=("atheris", "mutations"), help="default: atheris where it is installed")
    parser.add_argument("--seed", type=int, default=0, help="for the same inputs again (mutations)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="targets at a time (default: 2)")
    return parser.parse_args()


def _fuzzed(name: str, *, engine: str, inputs: int, seconds: float, seed: int) -> Result:
    """Fuzz one target, for as long or as often as that; once more after a crash there would be others."""
    with tempfile.TemporaryDirectory(prefix="netagent-fuzz-") as scratch:
        command = [sys.executable, "-m", "tests.fuzz.trial", name, "--engine", engine, "--findings", scratch]
        command += ["--inputs", str(inputs), "--seconds", str(seconds), "--seed", str(seed)]
        timeout = seconds + _GRACE_SECONDS if seconds else None
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False
            )
            said, code = done.stdout.decode(errors="replace"), done.returncode
        except subprocess.TimeoutExpired as error:
            said, code = (error.stdout or b"").decode(errors="replace") + "\nit did not end, and was killed", 1
        crash = None
        for found in sorted(path for path in Path(scratch).iterdir() if _is_crash(path)):
            crash = corpora.keep(name, found.read_bytes())
    if code and crash is None:
        crash = corpora.directory(name)
    print(f"{name}: {_count(said)} inputs{', and one that breaks it' if crash else ''}", file=sys.stderr, flush=True)
    return Result(name, _count(said), crash, said)


def _is_crash(path: Path) -> bool:
    return path.is_file() and path.name.startswith(("crash", "timeout", "oom", "slow-unit"))


def _count(said: str) -> int:
    found = re.findall(r"^(?:inputs|stat::number_of_executed_units): +(\d+)", said, re.MULTILINE)
    return int(found[-1]) if found else 0


def _reported(results: list[Result]) -> int:
    for result in results:
        if result.crash:
            tail = "\n".join(result.output.splitlines()[-_TAIL_LINES:])
            print(f"--- {result.target} broke; the input is {result.crash}:\n{tail}\n", file=sys.stderr)
    for result in results:
        print(f"{result.target:<16}{result.inputs:>12}  {'BROKEN' if result.crash else 'ok'}")
    print(f"{'total':<16}{sum(result.inputs for result in results):>12}")
    return 1 if any(result.crash for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
