"""What the demo prints: plain text with stable columns."""

from __future__ import annotations

import os
import sys

_COLUMNS = (("frontend", 14), ("address", 20), ("from", 9), ("who answered how often", 33), ("client seen as", 18))


class Report:
    """Prints as things happen, and remembers what was not as expected."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str = "") -> None:
        """One line."""
        print(text, flush=True)

    def heading(self, text: str) -> None:
        """One line that starts a part."""
        self.say()
        self.say(f"\x1b[1m{text}\x1b[0m" if self._coloured else text)

    def expect(self, held: bool, problem: str) -> None:
        """Remember a problem unless something held."""
        if not held:
            self.problems.append(problem)

    def table_head(self) -> None:
        """The head of the table of `table_row`."""
        self.say(_aligned([name.upper() for name, _ in _COLUMNS], "FAILED"))

    def table_row(self, *cells: str, failed: int) -> None:
        """A row: a cell for each column, and how many failed."""
        self.say(_aligned(list(cells), str(failed)))


def _aligned(cells: list[str], last: str) -> str:
    widths = [width for _, width in _COLUMNS]
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + f"  {last:>6}"


def milliseconds(seconds: float) -> str:
    """Seconds as text: "12 ms", with tenths below ten and hundredths below one."""
    digits = 2 if seconds < 0.001 else 1 if seconds < 0.01 else 0
    return f"{seconds * 1000:.{digits}f} ms"
