"""Selectors (`-l zone=a,state!=ready`): which rows a command shows. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from netagent import errors
from netagent.escaping import printable

Row = TypeVar("Row")
# What a field of a row may be compared with: one of these texts.
Fields = Mapping[str, Callable[[Any], Iterable[str]]]

_TERM: Final = re.compile(r"\s*(?P<key>[A-Za-z-]+)\s*(?P<operator>!=|==|=)\s*(?P<value>[^=!,]*?)\s*")


class _Term(NamedTuple):
    key: str
    value: str
    negate: bool


def selected(rows: Iterable[Row], selector: str, fields: Fields) -> list[Row]:
    """The rows that every term of a selector holds for: `key=value`, or `key!=value`, with commas between terms.

    Of a field with several values one is enough (for `!=`: none may be). Letter case does not matter. ConfigError names
    the fields that there are.
    """
    terms = _terms(selector, fields)
    return [row for row in rows if all(_holds(term, fields[term.key](row)) for term in terms)]


def _holds(term: _Term, values: Iterable[str]) -> bool:
    return (term.value in {value.lower() for value in values}) is not term.negate


def _terms(selector: str, fields: Fields) -> Sequence[_Term]:
    found = []
    for text in filter(str.strip, selector.split(",")):
        match = _TERM.fullmatch(text)
        key = match["key"].lower() if match else ""
        if match is None or key not in fields:
            raise errors.ConfigError(
                f"-l {printable(text.strip())}: a term is KEY=VALUE or KEY!=VALUE, and KEY one of "
                f"{', '.join(sorted(fields))}. "
                "The labels of objects are not known here: the agent does not keep them (ask the API server, and give "
                "the names that it answers)"
            )
        found.append(_Term(key, match["value"].lower(), match["operator"] == "!="))
    return found
