"""One manifest file to objects: JSON or YAML, one document or several, single objects or lists. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from netagent.model import objects
from netagent.source import decode, wire, yaml_documents
from netagent.source.faults import BadObject, Remark, quoted, sentence
from netagent.source.json_text import decoded
from netagent.source.kinds import Kind, ObjectKey, key_for, kind_named, object_key
from netagent.source.yaml_documents import BadText

MAX_LIST_DEPTH = 8
# Broken JSON is tried as YAML (whose flow style looks like it) only up to this size: a YAML parser needs a second a
# megabyte, and nobody writes that much flow style by hand.
MAX_FLOW_YAML = 1_000_000

_BOM = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n"


class Quarantined(msgspec.Struct, frozen=True):
    """An object, a document or a whole file that was set aside.

    `origin` is the file, `document` counts its documents from 0, `item` is the place in a list ("items[3]",
    "" when the object is no list item). `kind`, `namespace`, `name` and `field` are "" as far as they are
    unknown. With `unparsed` the text itself could not be read, so that nobody knows which objects it holds;
    `line` counts from 1.
    """

    origin: str
    document: int = 0
    item: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    field: str = ""
    reason: str = ""
    line: int | None = None
    unparsed: bool = False

    @property
    def key(self) -> ObjectKey | None:
        """The key of the object, None when it is unknown."""
        kind = kind_named(self.kind, "") if self.name else None
        return key_for(kind, self.namespace, self.name) if kind else None

    def __str__(self) -> str:
        origin = self.origin if self.origin.isprintable() else quoted(self.origin)
        place = f"{origin}:{self.line}" if self.line else f"{origin}, document {self.document + 1}"
        if self.item:
            place += f", {self.item}"
        return f"{place}: {sentence(self.kind, self.namespace, self.name, self.field, self.reason)}"


class Taken(NamedTuple):
    """An object of a file, and what was left out of it."""

    key: ObjectKey
    item: objects.Object
    origin: str
    remarks: tuple[Remark, ...]


class Content(NamedTuple):
    """What a file holds, in its order."""

    taken: tuple[Taken, ...]
    quarantined: tuple[Quarantined, ...]
    ignored: int


def read_content(origin: str, data: bytes) -> Content:
    """Read the documents of a file. What cannot be used is set aside, under the name `origin`."""
    file = _File()
    file.read_bytes(origin, data)
    return file.content()


class _Header(NamedTuple):
    kind: str
    api_version: str
    items: list[Any] | None


class _Form(NamedTuple):
    """How to look into one representation of objects."""

    header: Callable[[Any], _Header]
    decode: Callable[[Kind, Any, list[Remark]], objects.Object]


class _File:
    """Collects the objects and faults of one file; then `content` tells the result."""

    def __init__(self) -> None:
        self._taken: list[Taken] = []
        self._quarantined: list[Quarantined] = []
        self._ignored = 0

    def content(self) -> Content:
        return Content(tuple(self._taken), tuple(self._quarantined), self._ignored)

    def read_bytes(self, origin: str, data: bytes) -> None:
        """Read the documents of a file."""
        if data.startswith(_BOM):
            data = data[len(_BOM) :]
        if data[:4096].lstrip(_BLANKS).startswith(b"{"):
            try:
                header = _json_header(data)
            except (ValueError, RecursionError):
                pass  # several documents, YAML's flow style, or broken: take it apart
            else:
                self._walk(_JSON, data, Quarantined(origin), header=header)
                return
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self._set_aside(Quarantined(origin, reason="is not UTF-8 text", line=line, unparsed=True))
            return
        for index, document in enumerate(yaml_documents.split(text)):
            self._read_document(Quarantined(origin, document=index), document)

    def _read_document(self, where: Quarantined, document: yaml_documents.Document) -> None:
        body = document.text.removeprefix("---").lstrip()
        values: list[bytes] = []
        problem: BadText | None = None
        only_json = False
        if body.startswith("{"):
            above = document.text.count("\n", 0, len(document.text) - len(body))
            values, problem = _json_values(body, document.line + above)
            only_json = problem is None or where.origin.endswith(".json") or len(body) > MAX_FLOW_YAML
        if not only_json:
            try:
                value = yaml_documents.load(document)
            except BadText as bad:
                problem = problem if values else bad
            else:
                if value is not None:
                    self._walk(_PLAIN, value, where)
                return
        for one in values:
            self._walk(_JSON, one, where)
        if problem is not None:
            language = "JSON" if values or only_json else "YAML"
            reason = f"is not valid {language}: {problem.reason}"
            self._set_aside(msgspec.structs.replace(where, reason=reason, line=problem.line, unparsed=True))

    # --- objects -------------------------------------------------------------------------------------------

    def _walk(
        self,
        form: _Form,
        value: Any,
        where: Quarantined,
        *,
        header: _Header | None = None,
        list_kind: str = "",
        list_version: str = "",
        depth: int = 0,
    ) -> None:
        """Take an object, or the items of a list; `list_kind` and `list_version` are what a typed list implies."""
        try:
            header = header or form.header(value)
        except msgspec.ValidationError as error:
            field, reason = decode.field_and_reason(error)
            self._set_aside(msgspec.structs.replace(where, field=field, reason=reason))
            return
        except (ValueError, RecursionError) as error:
            self._set_aside(msgspec.structs.replace(where, reason=str(error)))
            return
        kind_text = header.kind or list_kind
        version = header.api_version or list_version
        kind = kind_named(kind_text, version)
        if kind is not None:
            self._take(form, kind, value, where)
        elif not kind_text:
            self._set_aside(msgspec.structs.replace(where, field="kind", reason="is missing"))
        elif header.items is not None and depth >= MAX_LIST_DEPTH:
            self._set_aside(msgspec.structs.replace(where, reason="has too many lists in lists"))
        elif header.items is not None:
            item_kind = kind_text.removesuffix("List")
            for index, item in enumerate(header.items):
                place = f"{where.item}.items[{index}]".removeprefix(".")
                self._walk(
                    form,
                    item,
                    msgspec.structs.replace(where, item=place),
                    list_kind=item_kind,
                    list_version=version if item_kind else "",
                    depth=depth + 1,
                )
        elif kind_text != "List":
            self._ignored += 1

    def _take(self, form: _Form, kind: Kind, value: Any, where: Quarantined) -> None:
        remarks: list[Remark] = []
        try:
            item = form.decode(kind, value, remarks)
        except BadObject as bad:
            self._set_aside(
                msgspec.structs.replace(
                    where,
                    kind=bad.kind.value,
                    namespace=bad.namespace,
                    name=bad.name,
                    field=bad.field,
                    reason=bad.reason,
                )
            )
            return
        told = tuple(msgspec.structs.replace(remark, origin=where.origin) for remark in remarks)
        self._taken.append(Taken(object_key(item), item, where.origin, told))

    def _set_aside(self, quarantined: Quarantined) -> None:
        self._quarantined.append(quarantined)


# --- the two forms -----------------------------------------------------------------------------------------

_header_decoder = msgspec.json.Decoder(wire.Header)
_list_header_decoder = msgspec.json.Decoder(wire.ListHeader)


def _json_header(data: bytes | msgspec.Raw) -> _Header:
    try:
        raw = decoded(_list_header_decoder, data)
    except msgspec.ValidationError:
        header = decoded(_header_decoder, data)
        if header.kind == "List":
            raise
        return _Header(header.kind or "", header.api_version or "", None)  # its `items` are no list, as is its right
    kind = raw.kind or ""
    is_list = kind.endswith("List") and not isinstance(raw.items, msgspec.UnsetType)
    return _Header(kind, raw.api_version or "", list(raw.items or ()) if is_list else None)


def _plain_header(value: Any) -> _Header:
    if not isinstance(value, dict):
        raise msgspec.ValidationError(f"Expected `object`, got `{type(value).__name__}`")
    texts = []
    for field in ("kind", "apiVersion"):
        text = value.get(field)
        if not isinstance(text, str | None):
            raise msgspec.ValidationError(f"Expected `str`, got `{type(text).__name__}` - at `$.{field}`")
        texts.append(text or "")
    kind, version = texts
    items = None
    if kind.endswith("List") and "items" in value:
        items = [] if value["items"] is None else value["items"]
        if not isinstance(items, list):
            if kind == "List":
                raise msgspec.ValidationError("Expected `array` - at `$.items`")
            items = None
    return _Header(kind, version, items)


_JSON = _Form(_json_header, decode.decode)
_PLAIN = _Form(_plain_header, decode.convert)


def _json_values(text: str, first_line: int) -> tuple[list[bytes], BadText | None]:
    """The JSON values that follow each other in a text, up to the first problem."""
    decoder = json.JSONDecoder()
    values: list[bytes] = []
    start = 0
    while start < len(text):
        try:
            _, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            return values, BadText(error.msg, first_line + text.count("\n", 0, error.pos))
        except (ValueError, RecursionError):
            reason = "nested too deeply, or a number too long"
            return values, BadText(reason, first_line + text.count("\n", 0, start))
        values.append(text[start:end].encode())
        start = _after_blanks(text, end)
    return values, None


def _after_blanks(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start
