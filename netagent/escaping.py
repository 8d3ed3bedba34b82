"""Foreign text made fit to be shown: in a log, on a terminal, in a message. Every layer may use it."""

from __future__ import annotations

import unicodedata

# Letters and numbers that are written from right to left turn what stands beside them around.
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})


def printable(text: str) -> str:
    """Return text on one line that a terminal shows and does not obey, and that reads in the order in which it stands.

    Control characters, line ends of any kind, invisible and right-to-left characters, lone surrogates and blanks other
    than the common one become escapes (\\x1b, \\u202e). What was escaped before is as it was.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _is_plain(char) else _escaped(char) for char in text)


def _is_plain(char: str) -> bool:
    return char.isprintable() and unicodedata.bidirectional(char) not in _RIGHT_TO_LEFT


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
