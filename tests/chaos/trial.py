"""Run one drill in a process of its own: what it counts comes as lines of JSON, and last what became of it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys

import pytest

from tests import kernel
from tests.chaos import agents, drills
from tests.chaos.framework import Run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.trial")
    parser.add_argument("drill")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float)
    arguments = parser.parse_args()
    agents.die_with_parent()
    chosen = drills.DRILLS[arguments.drill]
    tell = os.dup(1)
    os.dup2(2, 1)  # what a drill prints is talk

    @kernel.isolated
    def played() -> None:
        agents.die_with_parent()
        signal.alarm(int(chosen.patience))  # instead of the time that tests have
        chosen.play(Run(arguments.rounds, seconds=arguments.seconds, tell=tell))

    outcome = {"failed": "", "skipped": ""}
    try:
        played()
    except pytest.skip.Exception as skipped:
        outcome["skipped"] = str(skipped)
    except pytest.fail.Exception as failed:
        outcome["failed"] = str(failed)
    os.write(tell, json.dumps(outcome).encode() + b"\n")
    return 1 if outcome["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
