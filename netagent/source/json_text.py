"""JSON that is nearly right: escapes that stand for half a character, which one object may have in an annotation.

Go, and so the API server and kubectl, reads a lone surrogate as U+FFFD; msgspec refuses all of the text, other objects
included. So do as Go does, where it comes to that.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

Shape = TypeVar("Shape")

# Any escape, so that a backslash that is escaped itself begins none; of the surrogates, pairs before halves.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def decoded(decoder: msgspec.json.Decoder[Shape], data: bytes | bytearray | msgspec.Raw) -> Shape:
    """What a decoder makes of JSON text, lone surrogates being U+FFFD. Its errors as usual."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        mended = without_lone_surrogates(bytes(data))
        if mended is None:
            raise
        return decoder.decode(mended)


def without_lone_surrogates(data: bytes) -> bytes | None:
    """The text with U+FFFD for each lone surrogate; None if it has none."""
    mended = _ESCAPE.sub(lambda found: rb"\ufffd" if found["half"] else found[0], data)
    return mended if mended != data else None
