"""The model, for as long as ordinary tests may take; the drill `model` of scripts/chaos goes on for longer."""

from __future__ import annotations

from tests import kernel
from tests.model import machine

EXAMPLES = 12
STEPS = 25


@kernel.isolated
def test_whatever_happens_in_whatever_order_the_kernel_equals_the_plan() -> None:
    machine.play(examples=EXAMPLES, steps=STEPS)
