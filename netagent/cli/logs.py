"""Log lines for people: on standard error, event first, then its values as key=value. One event is one line."""

from __future__ import annotations

import logging
import os
import sys

from netagent.escaping import printable

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {logging.ERROR: "31", logging.WARNING: "33", logging.DEBUG: "2"}


class Formatter(logging.Formatter):
    """Makes one line of each event, a traceback included: as the value `traceback`, with its line ends escaped.

    Names, messages and what an exception says may come from anywhere: a terminal must not obey them, and nobody must
    be able to make one event look like two.
    """

    def __init__(self, *, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        values = [f"{key}={_shown(value)}" for key, value in vars(record).items() if key not in _STANDARD]
        if record.exc_info:
            values.append(f"traceback={_quoted(self.formatException(record.exc_info))}")
        line = " ".join([f"{record.levelname.lower()}:", printable(record.getMessage()), *values])
        colour = _COLOURS.get(record.levelno)
        return f"\x1b[{colour}m{line}\x1b[0m" if self._coloured and colour else line


def set_up(verbosity: int) -> None:
    """Log warnings and worse; with 1 also information, with 2 or more everything."""
    handler = logging.StreamHandler(sys.stderr)
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    handler.setFormatter(Formatter(coloured=coloured))
    root = logging.getLogger("netagent")
    root.handlers = [handler]
    root.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbosity, 2)])
    root.propagate = False


def end() -> None:
    """Give up what cannot be written (a full disk): left to the interpreter, it would turn exit code 0 into 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process


def _shown(value: object) -> str:
    """A value: as it is if it can be told from what follows, else in quotation marks."""
    text = str(value)
    bare = printable(text) == text and text and not any(char in text for char in ' "\\=')
    return text if bare else _quoted(text)


def _quoted(text: str) -> str:
    """Text in quotation marks; those in it have a backslash, line ends are \\n."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{printable(text)}"'
