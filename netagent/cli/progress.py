"""A sign of life for work that takes long: on a terminal, on standard error, and gone when the work is done."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Who waits less does not wonder.
_PATIENCE_SECONDS: Final = 1.0


class Step:
    """What is shown of the work: call it with what is being done now.

    Owns: the display, once there is one. Use: by `shown`. Threading: any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text = ""
        self._done: float | None = None
        self._total: float | None = None
        self._display: Progress | None = None
        self._task: TaskID | None = None
        self._ended = False

    def __call__(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
        """Now this is done; with a `total`, so much of it is through."""
        with self._lock:
            self._text, self._done, self._total = text, done, total
            self._show()

    def begin(self) -> None:
        """Begin to show it."""
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        made = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=20),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        with self._lock:
            if self._ended:
                return
            self._display, self._task = made, made.add_task(self._text, total=self._total)
            self._show()
            made.start()

    def end(self) -> None:
        """Show it no more."""
        with self._lock:
            self._ended = True
            if self._display is not None:
                self._display.stop()

    def _show(self) -> None:
        if self._display is not None and self._task is not None:
            self._display.update(self._task, description=self._text, completed=self._done or 0.0, total=self._total)


@contextmanager
def shown(text: str, *, patience_seconds: float = _PATIENCE_SECONDS) -> Iterator[Step]:
    """Show `text`, a spinner and the time, if this takes longer than `patience_seconds` and somebody looks.

    Yields what takes other texts, and how much is through. Where standard error is no terminal nothing is shown.
    """
    step = Step()
    step(text)
    if not sys.stderr.isatty():
        yield step
        return
    timer = threading.Timer(patience_seconds, step.begin)
    timer.daemon = True
    timer.start()
    try:
        yield step
    finally:
        timer.cancel()
        step.end()
