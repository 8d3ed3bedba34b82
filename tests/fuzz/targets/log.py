"""Foreign text in the log: one event is one line, whatever is in its message, its values and its exception."""

from __future__ import annotations

import logging

from netagent import escaping
from netagent.cli import logs
from tests.fuzz.targets import _checks

WORDS = (
    *(b"\n", b"\r\n", b"\x0b", b"\x85", b"\xe2\x80\xa8", b"\x1b[31m", b"\x9b", b"\xe2\x80\xae", b"\xd7\x90", b"\xff"),
    *(b"\0", b'"', b"\\", b"=", b" error: forged", b"%s", b"%d", b"\xed\xa0\x80", b"\xf0\x9f\x92\xa5", b"\xc2\xa0"),
)


def run(data: bytes) -> None:
    """Log a text in every place that a text can come to."""
    text = data.decode(errors="surrogateescape")
    shown = escaping.printable(text)
    _checks.require(shown.isprintable() and escaping.printable(shown) == shown, "escaped twice, and not the same")
    for coloured in (False, True):
        formatter = logs.Formatter(coloured=coloured)
        record = logging.LogRecord("netagent", logging.WARNING, "", 0, "%s", (text,), None)
        record.reason = text
        plain = formatter.format(record)
        _one_line(plain, coloured=coloured)
        try:
            raise ValueError(text)
        except ValueError as error:
            record.exc_info = (type(error), error, error.__traceback__)
        line = formatter.format(record)
        _one_line(line, coloured=coloured)
        _checks.require(len(line) <= 1000 + 60 * (len(text) + 10), "a line out of proportion")
    # Without blanks or quotation marks in it, a value can be told from what follows.
    _checks.require(" error:" not in plain.partition(" reason=")[2].replace('" ', "") or '"' in plain, "a forged line")


def _one_line(line: str, *, coloured: bool) -> None:
    if coloured:
        _checks.require(line.startswith("\x1b[33m") and line.endswith("\x1b[0m"), "without its colour")
        line = line[5:-4]
    _checks.require(line.isprintable() and len(line.splitlines()) == 1, f"more than a line: {line[:200]!a}")
    _checks.require(line.startswith("warning: "), "without its level")
