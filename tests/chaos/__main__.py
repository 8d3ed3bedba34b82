"""Run drills, one after the other, and report what was counted and measured. See scripts/chaos --help."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from tests.chaos import catalogue, drills
from tests.chaos.framework import Drill

_USAGE = 2
# A drill that has not ended so long after its own patience is killed with all that it started.
_GRACE_SECONDS = 30.0


class Result(NamedTuple):
    """What became of a drill."""

    drill: Drill
    seconds: float
    counts: dict[str, int]
    measures: dict[str, list[float]]
    failed: str
    skipped: str

    @property
    def word(self) -> str:
        return "FAILED" if self.failed else "skipped" if self.skipped else "held"


def main() -> int:
    arguments = _arguments()
    if arguments.list:
        print(catalogue.listing())
        return 0
    if arguments.table:
        print(catalogue.table())
        return 0
    chosen = arguments.drill or list(drills.DRILLS)
    if unknown := sorted(set(chosen) - set(drills.DRILLS)):
        print(f"no such drill: {', '.join(unknown)}; scripts/chaos --list has all", file=sys.stderr)
        return _USAGE
    for ending in (signal.SIGTERM, signal.SIGINT):  # a shell may have begun us with SIGINT ignored
        signal.signal(ending, _interrupted)
    results: list[Result] = []
    # Of a drill that is killed, its files would stay.
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="netagent-drills-") as scratch:
        for number, name in enumerate(chosen, 1):
            results.append(_played(drills.DRILLS[name], arguments, f"{number}/{len(chosen)}", scratch))
    text = report(results, command=" ".join(["scripts/chaos", *sys.argv[1:]]))
    if arguments.output:
        Path(arguments.output).write_text(text)
    else:
        print(text, end="")
    if len(results) < len(chosen):
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 1 if any(result.failed for result in results) else 0


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Provoke what a host does on a bad day, in network namespaces that end with it, and report what "
        "was counted and measured. Exit code 1 if a promise is broken.",
    )
    parser.add_argument("drill", nargs="*", metavar="DRILL", help="which (default: all; see --list)")
    parser.add_argument(
        "--list", action="store_true", help="all drills, with the rows of docs/chaos.md that they cover"
    )
    parser.add_argument("--table", action="store_true", help="the table of docs/chaos.md, as Markdown")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--seconds", type=float, help="no new round of a drill is begun after so many seconds")
    limits.add_argument("--rounds", type=int, help="rounds of each drill (default: each has its own number)")
    parser.add_argument("-o", "--output", help="write the report (Markdown) to this file, not to standard output")
    return parser.parse_args()


# One drill ------------------------------------------------------------------------------------------------------------


def _played(drill: Drill, arguments: argparse.Namespace, place: str, scratch: str) -> Result:
    """Run a drill in a process group of its own, with its files below `scratch`, and leave no process of it behind."""
    most = arguments.rounds or (10**9 if arguments.seconds and drill.full > 1 else drill.full)
    command = [sys.executable, "-m", "tests.chaos.trial", drill.name, "--rounds", str(most)]
    if arguments.seconds:
        command += ["--seconds", str(arguments.seconds)]
    begun = time.monotonic()
    found: dict[str, Any] = {"counts": {}, "measures": {}, "failed": "it ended without a word", "skipped": ""}
    # What a drill says on the way is of interest if it fails, and is in `failed` then.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": scratch},
    ) as process:
        try:
            for line in _lines_of(process, drill.patience + _GRACE_SECONDS):
                found |= json.loads(line)
                _progress(f"{place} {drill.name}: {_counts_text(found['counts'])}", time.monotonic() - begun)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    result = Result(
        drill, time.monotonic() - begun, found["counts"], found["measures"], found["failed"], found["skipped"]
    )
    _progress("", 0)
    print(f"{result.word:<8}{drill.name:<22}{result.seconds:7.1f} s  {_counts_text(result.counts)}", file=sys.stderr)
    if result.failed:
        print(result.failed.rstrip(), file=sys.stderr)
    return result


def _lines_of(process: subprocess.Popen[str], patience: float) -> Iterator[str]:
    """What a trial tells. It is killed when it hangs."""

    def hung(number: int, frame: FrameType | None) -> None:
        os.killpg(process.pid, signal.SIGKILL)

    assert process.stdout
    signal.signal(signal.SIGALRM, hung)
    signal.alarm(int(patience))
    try:
        yield from process.stdout
    finally:
        signal.alarm(0)


def _progress(text: str, seconds: float) -> None:
    """One line that is written over again and again; on a terminal only."""
    if sys.stderr.isatty():
        width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
        line = f"{text} ({seconds:.0f} s)"[:width] if text else ""
        print(f"\r{line:<{width}}", end="\r" if not text else "", file=sys.stderr, flush=True)


def _counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


# The report -----------------------------------------------------------------------------------------------------------


def report(results: list[Result], *, command: str) -> str:
    """What was found, as Markdown."""
    lines = [
        "# What the drills found",
        "",
        f"`{command}`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, Linux {platform.release()}, "
        f"{os.cpu_count()} processors, Python {platform.python_version()}.",
        "",
        "| drill | rows | outcome | seconds | counted | measured (median, most), seconds |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        rows = ", ".join(map(str, result.drill.rows))
        word = f"skipped: {result.skipped.splitlines()[0]}" if result.skipped else result.word
        cells = [result.drill.name, rows, word, f"{result.seconds:.1f}", _counts_text(result.counts)]
        lines.append(f"| {' | '.join(cells)} | {_measures_text(result.measures)} |")
    failed = [result for result in results if result.failed]
    for result in failed:
        lines += ["", f"## {result.drill.name} failed", "", "```", result.failed.rstrip(), "```"]
    lines += ["", f"{len(results) - len(failed)} of {len(results)} drills held."]
    return "\n".join(lines) + "\n"


def _measures_text(measures: dict[str, list[float]]) -> str:
    return "; ".join(
        f"{what}: {statistics.median(found):.3f}, {max(found):.3f}" for what, found in measures.items() if found
    )


if __name__ == "__main__":
    sys.exit(main())
