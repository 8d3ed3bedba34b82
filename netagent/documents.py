"""Configuration text to plain values: JSON, or YAML as the program reads it whose file this is (YAML 1.1). Pure.

Manifests have a reader of their own (source/yaml_documents.py), which keeps strings strings. Whatever the text is, the
work is in proportion to its size: no alias, no nesting and no number can make it more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from netagent import escaping

# A ConfigMap has one mebibyte at most.
_CHARACTERS_MOST: Final = 2 << 20
_DEEPEST: Final = 100
# An alias bomb is told by how large a document is when its aliases are written out.
_EXPANDED_MOST: Final = 100_000
# Longer ones are no numbers that anybody means, and Python takes ever more time for them.
_NUMBER_MOST: Final = 40
_NUMBERS: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
_WORDS_MOST: Final = 400


def documents_of(text: str | bytes) -> list[object]:
    """Return the non-empty documents of a text. ValueError, on one line, if it is none or repeats a key."""
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        if len(decoded) > _CHARACTERS_MOST:
            raise ValueError(f"it has more than {_CHARACTERS_MOST} characters")
        if decoded.lstrip().startswith("{"):
            try:
                return [json.loads(decoded, object_pairs_hook=_object_of_unique_keys)]
            except json.JSONDecodeError:
                pass  # YAML's flow style starts with a brace as well
        return _yaml_documents(decoded)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        words = " ".join(str(error).split())
        raise ValueError(escaping.printable(words[:_WORDS_MOST])) from error


class _RepeatedKeyError(ValueError):
    """A mapping has a key twice. Not a JSONDecodeError, so that nobody goes on to try YAML."""

    def __init__(self, key: str, *, where: str = "") -> None:
        super().__init__(f"{where}the field {key[:80]!r} stands twice in one section")


def _object_of_unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise _RepeatedKeyError(key)
        result[key] = value
    return result


def _yaml_documents(text: str) -> list[object]:
    import yaml  # here, because most commands never need it and it takes 10 ms to import

    class Loader(yaml.SafeLoader):
        """Counts what a document comes to when its aliases are written out, and how deep it is."""

        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self.depth = 0
            self.sizes: dict[yaml.Node, int] = {}

        def compose_document(self) -> yaml.Node | None:
            self.sizes = {}
            return super().compose_document()

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            is_alias = self.check_event(yaml.AliasEvent)
            line = self.line + 1
            self.depth += 1
            if self.depth > _DEEPEST:
                raise ValueError(f"line {line}: it is nested more than {_DEEPEST} deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            if node is None:
                return None
            if not is_alias:  # one within what it refers to has no size yet, and is never written out
                self.sizes[node] = 1 + sum(self.sizes.get(child, 1) for child in _children(node))
            if self.sizes.get(node, 1) > _EXPANDED_MOST:
                raise ValueError(f"line {line}: it comes to more than {_EXPANDED_MOST} values, with its aliases")
            if node.tag in _NUMBERS and len(node.value) > _NUMBER_MOST:
                raise ValueError(f"line {line}: a number of {len(node.value)} characters")
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        raise _RepeatedKeyError(key.value, where=f"line {key.start_mark.line + 1}: ")
                    seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep=deep)

    def _children(node: yaml.Node) -> Iterable[yaml.Node]:
        if isinstance(node, yaml.MappingNode):
            return (child for pair in node.value for child in pair)
        return node.value if isinstance(node, yaml.SequenceNode) else ()

    try:
        return [document for document in yaml.load_all(text, Loader) if document is not None]
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, OverflowError) as error:  # wrong !!tags
        raise ValueError(str(error)) from error
