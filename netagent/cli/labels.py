"""The labels of Services in manifests: for `-l`. The agent does not keep any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from netagent.model import objects
from netagent.source import manifests, yaml_documents

_DEPTH_MOST: Final = 8


def labels_of(origins: Iterable[str], *, stdin: bytes = b"") -> dict[objects.ServiceName, Mapping[str, str]]:
    """The labels of each Service in these files (`manifests.STDIN_ORIGIN` is `stdin`).

    What cannot be read is passed over: whoever read the objects has told of it.
    """
    found: dict[objects.ServiceName, Mapping[str, str]] = {}
    for origin in origins:
        try:
            data = stdin if origin == manifests.STDIN_ORIGIN else Path(origin).read_bytes()
        except OSError:
            continue
        for value in _documents(data):
            for name, labels in _services(value, 0):
                found[name] = labels
    return found


def _documents(data: bytes) -> Iterator[Any]:
    try:
        yield msgspec.json.decode(data)
        return
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    for document in yaml_documents.split(data.decode("utf-8", "replace")):
        try:
            yield yaml_documents.load(document)
        except yaml_documents.BadText:
            continue


def _services(value: Any, depth: int) -> Iterator[tuple[objects.ServiceName, Mapping[str, str]]]:
    if not isinstance(value, dict) or depth > _DEPTH_MOST:
        return
    if isinstance(value.get("items"), list):
        for item in value["items"]:
            yield from _services(item, depth + 1)
    metadata = value.get("metadata")
    if value.get("kind") != "Service" or not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return
    labels = metadata.get("labels")
    plain = {
        key: text
        for key, text in (labels.items() if isinstance(labels, dict) else ())
        if isinstance(key, str) and isinstance(text, str)
    }
    yield objects.ServiceName(metadata.get("namespace") or "default", metadata["name"]), plain
