"""Everything at once, in any order."""

from __future__ import annotations

import os
import random

from tests.chaos.framework import Run, drill
from tests.model import machine


@drill("model", 2, 4, 5, 8, 26, 27, 28, full=10, patience=3600)
def model(run: Run) -> None:
    """Events of the API, edits and commits of others, kills, kills within a sync, restarts, and other settings in any
    order: after each quiet moment the kernel equals the plan, element by element and packet by packet."""
    dice = random.Random(int(os.environ.get("NETAGENT_CHAOS_SEED", "7")))
    for _ in run.rounds():
        seed = dice.randrange(1 << 30)
        try:
            found = machine.play(examples=20, steps=40, seed=seed)
        except AssertionError as error:
            error.add_note(f"with the seed {seed}")
            raise
        for what, times in sorted(found.items()):
            run.count(what, times)
