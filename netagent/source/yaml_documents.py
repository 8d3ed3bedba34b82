"""YAML text to plain values, one document at a time, safely and without losing strings.

Built on the parser's events instead of a PyYAML loader, because a loader turns times into datetime and `on`
into True, overflows the C stack on deep nesting, and expands merged aliases without a bound. Scalars follow
the YAML 1.2 core schema: `yes`, `010`, `1:30` and `2024-01-01` are strings. Keys are always strings, as in
JSON.
"""

from __future__ import annotations

import itertools
import re
from typing import Any, NamedTuple

from netagent.source.faults import quoted

MAX_DEPTH = 100
# An alias bomb is told by how much larger a document is when its aliases are written out.
MAX_EXPANDED_VALUES = 100_000
MAX_EXPANSION = 10

_MARKER = re.compile(r"^(?:---|\.\.\.)(?=[ \t\r]|$)", re.MULTILINE)
_DIRECTIVES_ONLY = re.compile(r"(?:[ \t]*(?:#.*)?\r?\n|%.*\n)*")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,30})|0x[0-9a-fA-F]{1,30}|0o[0-7]{1,30}")
_FLOAT = re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_CORE = "tag:yaml.org,2002:"


class Document(NamedTuple):
    """The text of one document, its marker included, and the number (from 1) of its first line in the file."""

    line: int
    text: str


class BadText(ValueError):
    """A text that cannot be parsed; `line` counts from 1 in the file, None when unknown."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def split(text: str) -> list[Document]:
    """Split a file into its documents without parsing it, so that a bad one costs only itself.

    YAML lets no line of a document start with a marker, not even in a block scalar. Comments alone make no
    document.
    """
    starts = [0, *(match.start() for match in _MARKER.finditer(text)), len(text)]
    documents: list[Document] = []
    line = 1
    directives = ""
    for start, end in itertools.pairwise(starts):
        body = text[start:end]
        if body.startswith("..."):
            body = body.partition("\n")[2]
            line += 1
        if "%" in body and _DIRECTIVES_ONLY.fullmatch(body):
            directives = body
        elif body.strip():
            documents.append(Document(line - directives.count("\n"), directives + body))
            directives = ""
        line += body.count("\n")
    return documents


def load(document: Document) -> Any:
    """Return the document as dicts, lists, str, int, float, bool and None; None for an empty one. BadText."""
    import yaml  # most files are JSON, and those should not wait for this import

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    builder = _Builder()
    line = document.line
    try:
        for event in yaml.parse(document.text, Loader=loader):
            line = document.line + (event.start_mark.line if event.start_mark else 0)
            match event:
                case yaml.ScalarEvent():
                    builder.scalar(event.value, event.anchor, event.tag, plain=event.implicit[0])
                case yaml.MappingStartEvent():
                    builder.open({}, event.anchor, event.tag)
                case yaml.SequenceStartEvent():
                    builder.open([], event.anchor, event.tag)
                case yaml.CollectionEndEvent():
                    builder.close()
                case yaml.AliasEvent():
                    builder.alias(event.anchor or "")
                case yaml.DocumentStartEvent():
                    builder.start()
    except BadText as bad:
        raise BadText(bad.reason, line) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise BadText(error.problem or "is not YAML", document.line + mark.line if mark else line) from None
    except yaml.YAMLError as error:  # a ReaderError: characters that YAML does not allow
        position = getattr(error, "position", 0)
        where = document.line + document.text.count("\n", 0, position)
        raise BadText(getattr(error, "reason", None) or "is not YAML", where) from None
    return builder.result


class _Open:
    """A mapping or sequence that has not ended yet."""

    __slots__ = ("anchor", "container", "key", "merged", "merging", "size")

    def __init__(self, container: dict[str, Any] | list[Any], anchor: str | None) -> None:
        self.container = container
        self.anchor = anchor
        self.key: str | None = None
        self.merging = False
        self.merged: list[dict[str, Any]] = []
        self.size = 1

    @property
    def wants_key(self) -> bool:
        return isinstance(self.container, dict) and self.key is None


class _Builder:
    """Makes values of events; `result` is the outermost one. Sizes count values with all aliases written out."""

    def __init__(self) -> None:
        self.result: Any = None
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._values = 0
        self._started = False

    def start(self) -> None:
        if self._started:
            raise BadText("another document begins where none can")
        self._started = True

    def scalar(self, text: str, anchor: str | None, tag: str | None, *, plain: bool) -> None:
        self._values += 1
        top = self._stack[-1] if self._stack else None
        if top is not None and top.wants_key:
            top.key = text
            top.merging = plain and text == "<<"
            if anchor:
                self._anchors[anchor] = (text, 1)
            return
        value: Any = text
        if tag in (None, "!"):
            value = _plain_scalar(text) if plain else text
        elif tag in (_CORE + "int", _CORE + "float", _CORE + "bool", _CORE + "null"):
            value = _plain_scalar(text)
        elif tag != _CORE + "str":
            raise BadText(f"tag {quoted(str(tag))} is not supported")
        if anchor:
            self._anchors[anchor] = (value, 1)
        self._add(value, 1)

    def open(self, container: dict[str, Any] | list[Any], anchor: str | None, tag: str | None) -> None:
        self._values += 1
        if tag not in (None, "!", _CORE + "map", _CORE + "seq"):
            raise BadText(f"tag {quoted(str(tag))} is not supported")
        if self._stack and self._stack[-1].wants_key:
            raise BadText("a key must be a scalar")
        if len(self._stack) >= MAX_DEPTH:
            raise BadText(f"is nested more than {MAX_DEPTH} deep")
        if anchor:  # until it is closed it cannot be an alias's target
            self._anchors.pop(anchor, None)
        self._stack.append(_Open(container, anchor))

    def close(self) -> None:
        done = self._stack.pop()
        container = done.container
        if isinstance(container, dict):
            for source in done.merged:
                for key, value in source.items():
                    container.setdefault(key, value)
        if done.anchor:
            self._anchors[done.anchor] = (container, done.size)
        self._add(container, done.size)

    def alias(self, anchor: str) -> None:
        self._values += 1
        if anchor not in self._anchors:
            raise BadText(f"alias {quoted(anchor)} refers to nothing that is complete")
        value, size = self._anchors[anchor]
        if self._stack and self._stack[-1].wants_key:
            if not isinstance(value, str):
                raise BadText("a key must be a scalar")
            self._stack[-1].key = value
            return
        self._add(value, size)

    def _add(self, value: Any, size: int) -> None:
        if not self._stack:
            self.result = value
            return
        top = self._stack[-1]
        top.size += size
        if top.size > MAX_EXPANDED_VALUES + MAX_EXPANSION * self._values:
            raise BadText("its aliases expand to too much")
        if isinstance(top.container, list):
            top.container.append(value)
        elif top.merging:
            sources = value if isinstance(value, list) else [value]
            if not all(isinstance(source, dict) for source in sources):
                raise BadText("only mappings can be merged with <<")
            top.merged += sources
            top.key, top.merging = None, False
        elif top.key is not None:
            top.container[top.key] = value
            top.key = None


def _plain_scalar(text: str) -> Any:
    """What an unquoted scalar means: None, a bool or a number, else the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "0123456789+-.":
        return text
    if _INT.fullmatch(text):
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
    return float(text) if _FLOAT.fullmatch(text) and len(text) <= 40 else text
