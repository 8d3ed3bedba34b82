"""A bounded archive: files without secrets, in order, and a manifest of what is in it and what is not. Pure.

Whoever collects adds what there is and says what there is not; `packed` makes the bytes. The same content and time give
the same bytes.
"""

from __future__ import annotations

import enum
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from netagent.bundle import redaction

# Bytes, before compression.
FILE_BYTES: Final = 4 << 20
TOTAL_BYTES: Final = 32 << 20
# Characters that are redacted beyond those that fit, as what is taken out makes room.
_MARGIN: Final = 1 << 16
MANIFEST: Final = "MANIFEST.txt"


class Keep(enum.Enum):
    """Which part of a file that is too large is kept."""

    HEAD = "first"
    TAIL = "last"


class File(NamedTuple):
    """One file of the archive. `made` says how, in words; `note` what was cut, "" for nothing."""

    name: str
    content: bytes
    made: str
    note: str = ""


class Absent(NamedTuple):
    """A file that could not be got, and why."""

    name: str
    made: str
    reason: str


class Archive:
    """What has been collected so far.

    Owns: the files. Use: `collect` (or `add`) in any order, then `packed`. Goals: nothing gets in that has not been
    redacted; a collector that fails costs its own file only. Threading: none.
    """

    def __init__(self, *, file_bytes: int = FILE_BYTES, total_bytes: int = TOTAL_BYTES) -> None:
        self._file_bytes = file_bytes
        self._left = total_bytes
        self.files: list[File] = []
        self.absent: list[Absent] = []

    def collect(self, name: str, made: str, get: Callable[[], object], *, keep: Keep = Keep.HEAD) -> None:
        """Add what `get` returns: text, bytes, an iterator of lines, or a document for JSON. If it raises, the manifest
        says why."""
        try:
            self.add(name, made, get(), keep=keep)
        except Exception as error:  # noqa: BLE001 - what breaks in one collector must not cost the others' work
            reason = " ".join(str(error).split()) or type(error).__name__
            self.absent.append(Absent(name, made, redaction.text(reason)))

    def add(self, name: str, made: str, content: object, *, keep: Keep = Keep.HEAD) -> None:
        """Add a file, without secrets and not larger than allowed."""
        room = min(self._file_bytes, self._left)
        # Redacting takes time, and what is cut off behind need not be. What is cut off before does: a key whose
        # beginning is missing would not be known for one.
        most = room + _MARGIN if keep is Keep.HEAD else None
        text, whole = as_text(content, most=most)
        raw = text.encode("utf-8", "backslashreplace")
        note = ""
        if len(raw) > room or not whole:
            raw = raw[:room] if keep is Keep.HEAD else raw[len(raw) - room :]
            note = f"cut: only the {keep.value} {len(raw)} bytes are here"
        self._left -= len(raw)
        self.files.append(File(name, raw, made, note))

    def manifest(self, heading: Iterable[str]) -> str:
        """Every file, how it was made, what was cut, and what could not be got. `heading` are the first lines."""
        lines = [*heading, "", "Files:"]
        for file in sorted(self.files):
            lines.append(
                f"  {file.name}: {len(file.content)} bytes; {file.made}" + (f"; {file.note}" * bool(file.note))
            )
        lines += ["", "Not there:"]
        lines += [f"  {each.name}: {each.reason}; {each.made}" for each in sorted(self.absent)] or ["  (nothing)"]
        lines += ["", f"Secrets were taken out of every file; {redaction.REMOVED} stands in their place."]
        return "".join(f"{line}\n" for line in lines)

    def packed(self, *, directory: str, heading: Iterable[str], seconds: int) -> bytes:
        """The archive: tar, compressed with gzip; files by name below `directory`, all of the time `seconds`."""
        everything = [File(MANIFEST, redaction.text(self.manifest(heading)).encode(), ""), *sorted(self.files)]
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for file in everything:
                entry = tarfile.TarInfo(f"{directory}/{file.name}")
                entry.size, entry.mtime, entry.mode = len(file.content), seconds, 0o600
                tar.addfile(entry, io.BytesIO(file.content))
        return gzip.compress(packed.getvalue(), mtime=seconds)


def as_text(content: object, *, most: int | None = None) -> tuple[str, bool]:
    """What a collector returned, as text without secrets, and whether that is all of it. A document becomes JSON with
    sorted keys.

    With `most`, of text and lines characters beyond that many may be missing.
    """
    match content:
        case str():
            return redaction.text(content[:most]), most is None or len(content) <= most
        case bytes():
            return as_text(content.decode("utf-8", "backslashreplace"), most=most)
        case dict() | list() | tuple():
            cleaned = redaction.document(_plain(content))
            return json.dumps(cleaned, indent=2, sort_keys=True, ensure_ascii=False) + "\n", True
        case Iterable():
            return as_text("".join(_first(content, most)), most=most)
        case _:
            raise TypeError(f"a collector returned {type(content).__name__}")


def _first(lines: Iterable[object], most: int | None) -> Iterator[str]:
    """Lines, until there are more than so many characters."""
    size = 0
    for line in lines:
        yield f"{line}\n"
        size += len(str(line)) + 1
        if most is not None and size > most:
            return


def _plain(content: Any) -> Any:
    match content:
        case dict():
            return {str(key): _plain(value) for key, value in content.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(value) for value in content]
        case str() | int() | float() | bool() | None:
            return content
        case _:
            return str(content)
