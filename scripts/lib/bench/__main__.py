"""Measure, and write the report. Exit code 0: all sections were measured; 1: some could not be; 2: wrong usage.

A budget that is not met is in the report, and does not change the exit code.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from . import cluster, machine, namespaces, plan, report
from .sections import change, cold, memory, packets, reference, restart, storm, xtables

# By name, in the order of the report.
SECTIONS: dict[str, tuple[str, Callable[[plan.Plan], report.Section]]] = {
    "cold": ("Cold sync", cold.run),
    "change": ("One change", change.run),
    "storm": ("Storm", storm.run),
    "restart": ("Restart and audit", restart.run),
    "memory": ("Memory", memory.run),
    "packets": ("First packet", packets.run),
    "reference": ("Points of reference", reference.run),
    "xtables": ("Mode iptables", xtables.run),
}

_SIZES = ("1000x10", "5000x10", "30000x2")
_FULL_SIZES = ("1000x10", "5000x10", "5000x50", "30000x2", "44000x1")


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    wanted = options.section or list(SECTIONS)
    if unknown := [name for name in wanted if name not in SECTIONS]:
        parser.error(f"there is no section {', '.join(unknown)}")
    try:
        namespaces.fresh()  # whatever goes wrong, it goes wrong here
    except OSError as error:
        print(f"cannot make a network namespace: {error}", file=sys.stderr)
        return 69  # EX_UNAVAILABLE
    about, warnings = machine.description(), machine.warnings()
    outcomes: dict[str, report.Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="netagent-bench-") as scratch:
        measured = _plan(options, Path(scratch))
        started = time.monotonic()
        for name in wanted:
            title, run = SECTIONS[name]
            try:
                outcomes[name] = run(measured)
            except Exception:  # noqa: BLE001 - one section's trouble must not cost the others
                outcomes[name] = report.Failed(title, traceback.format_exc())
                measured.say(f"{name} failed:\n{traceback.format_exc()}")
    about["command"] = "`" + " ".join(["scripts/bench", *(arguments if arguments is not None else sys.argv[1:])]) + "`"
    about["took"] = f"{time.monotonic() - started:.0f} s"
    if measured.unsettled:
        warnings.append(f"the kernel's own threads were not quiet in {measured.unsettled} of the pauses between rounds")
    _write(options.output, about, warnings, outcomes)
    return int(any(isinstance(outcome, report.Failed) for outcome in outcomes.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure netagent; see docs/performance.md.")
    parser.add_argument(
        "section", nargs="*", metavar="SECTION", help=f"what to measure (default: all of {', '.join(SECTIONS)})"
    )
    parser.add_argument("--full", action="store_true", help="the sizes of issue 4, which take about half an hour")
    parser.add_argument("--sizes", type=_sizes, metavar="SxE,...", help=f"Services x endpoints ({','.join(_SIZES)})")
    parser.add_argument("--rounds", type=_positive, help="of each measurement (5; --full: 7)")
    parser.add_argument("--changes", type=_positive, help="of each kind (200; --full: 1000)")
    parser.add_argument("--storm-size", type=cluster.size, metavar="SxE", help="(5000x10)")
    parser.add_argument("--storm-rate", type=_positive, help="changes a second (5000)")
    parser.add_argument("--storm-seconds", type=float, help="(5; --full: 20)")
    parser.add_argument("--frontends", type=_numbers, metavar="N,...", help="for packets (100,5000,30000,100000)")
    parser.add_argument(
        "--usual-frontends", type=_numbers, metavar="N,...", help="for packets, the usual layout (100,5000; +30000)"
    )
    parser.add_argument("--flows", type=_positive, default=20_000, help="of a round of packets, at most 64000 (20000)")
    parser.add_argument(
        "--reference-sizes", type=_sizes, metavar="SxE,...", help="(1000x10; --full: and 5000x10, 30000x2)"
    )
    parser.add_argument("--xtables-size", type=cluster.size, metavar="SxE", help="for mode iptables (5000x10)")
    parser.add_argument(
        "-o", "--output", type=Path, default=machine.TOP / "bench-results", help="directory (bench-results)"
    )
    return parser


def _plan(options: argparse.Namespace, scratch: Path) -> plan.Plan:
    full: bool = options.full
    references = ("1000x10", "5000x10", "30000x2") if full else ("1000x10",)
    return plan.Plan(
        scratch=scratch,
        sizes=options.sizes or tuple(map(cluster.size, _FULL_SIZES if full else _SIZES)),
        rounds=options.rounds or (7 if full else 5),
        changes=options.changes or (1000 if full else 200),
        storm_size=options.storm_size or cluster.Size(5000, 10),
        storm_rate=options.storm_rate or 5000,
        storm_seconds=options.storm_seconds or (20.0 if full else 5.0),
        frontends=options.frontends or (100, 5000, 30_000, 100_000),
        usual_frontends=options.usual_frontends or ((100, 5000, 30_000) if full else (100, 5000)),
        flows=options.flows,
        reference_sizes=options.reference_sizes or tuple(map(cluster.size, references)),
        xtables_size=options.xtables_size or cluster.Size(5000, 10),
    )


def _write(output: Path, about: dict[str, str], warnings: list[str], outcomes: dict[str, report.Outcome]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    page = "".join(f"{line}\n" for line in report.markdown(about, warnings, outcomes))
    (output / "report.md").write_text(page)
    (output / "report.json").write_text(report.document(about, warnings, outcomes))
    sys.stdout.write(page)
    print(f"written: {output}/report.md, {output}/report.json", file=sys.stderr)


def _sizes(text: str) -> tuple[cluster.Size, ...]:
    return tuple(map(cluster.size, text.split(",")))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_positive(one) for one in text.split(","))


def _positive(text: str) -> int:
    number = int(text.replace("_", ""))
    if number < 1:
        raise ValueError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main())
