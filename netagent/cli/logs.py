"""Log lines for people: on standard error, event first, then its values as key=value."""

from __future__ import annotations

import logging
import os
import sys

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {logging.ERROR: "31", logging.WARNING: "33", logging.DEBUG: "2"}


class _Formatter(logging.Formatter):
    def __init__(self, *, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        values = (f"{key}={_shown(value)}" for key, value in vars(record).items() if key not in _STANDARD)
        line = " ".join([f"{record.levelname.lower()}:", _printable(record.getMessage()), *values])
        colour = _COLOURS.get(record.levelno)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return f"\x1b[{colour}m{line}\x1b[0m" if self._coloured and colour else line


def set_up(verbosity: int) -> None:
    """Log warnings and worse; with 1 also information, with 2 or more everything."""
    handler = logging.StreamHandler(sys.stderr)
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    handler.setFormatter(_Formatter(coloured=coloured))
    root = logging.getLogger("netagent")
    root.handlers = [handler]
    root.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbosity, 2)])
    root.propagate = False


def _printable(text: str) -> str:
    # Names and messages may come from anywhere; a terminal must not obey them.
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _shown(value: object) -> str:
    text = _printable(str(value))
    return f'"{text}"' if " " in text or not text else text
