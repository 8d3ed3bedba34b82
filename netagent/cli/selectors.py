"""Selectors (`-l zone=a,state!=ready`, `-l app in (web,shop)`): which rows a command shows. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from netagent import errors
from netagent.escaping import printable

Row = TypeVar("Row")
# What a field of a row may be compared with: any of these texts.
Fields = Mapping[str, Callable[[Any], Iterable[str]]]
Labels = Callable[[Any], Mapping[str, str]]

_KEY: Final = r"(?P<key>[A-Za-z0-9][-A-Za-z0-9_./]*)"
_FORMS: Final = (
    re.compile(rf"(?P<absent>!)?\s*{_KEY}"),
    re.compile(rf"{_KEY}\s*(?P<operator>!=|==|=)\s*(?P<value>[^=!,()]*?)"),
    re.compile(rf"{_KEY}\s+(?P<operator>in|notin)\s*\((?P<value>[^=!()]*)\)"),
)
_COMMA: Final = re.compile(r",(?![^(]*\))")


class _Term(NamedTuple):
    """`values` None asks whether there is any. `negate` turns the answer round."""

    key: str
    values: frozenset[str] | None
    negate: bool


def selected(rows: Iterable[Row], selector: str, fields: Fields, *, labels: Labels | None = None) -> list[Row]:
    """The rows that every term of a selector holds for. Terms are those of kubectl, with commas between them.

    A key is the name of a field (letter case does not matter then, nor in its values), else that of a label. Of a field
    with several values one is enough (for `!=`: none may be). ConfigError names the fields that there are; without
    `labels` it also says why a label is none.
    """
    terms = [_term(text.strip(), fields, labels) for text in _COMMA.split(selector) if text.strip()]
    return [row for row in rows if all(_holds(term, row, fields, labels) for term in terms)]


def _holds(term: _Term, row: Any, fields: Fields, labels: Labels | None) -> bool:
    if term.key in fields:
        values = {value.lower() for value in fields[term.key](row) if value}
    else:
        value = labels(row).get(term.key) if labels else None
        values = set() if value is None else {value}
    found = bool(values) if term.values is None else not values.isdisjoint(term.values)
    return found is not term.negate


def _term(text: str, fields: Fields, labels: Labels | None) -> _Term:
    match = next(filter(None, (form.fullmatch(text) for form in _FORMS)), None)
    key = match["key"] if match else ""
    if match is None or (key.lower() not in fields and labels is None):
        raise errors.ConfigError(_complaint(text, sorted(fields), known=labels is not None))
    is_field = key.lower() in fields
    parts = match.groupdict()
    operator = parts.get("operator")
    if operator is None:
        return _Term(key.lower() if is_field else key, None, negate=bool(parts.get("absent")))
    values: Sequence[str] = [value.strip() for value in parts["value"].split(",")]
    if is_field:
        values = [value.lower() for value in values]
    return _Term(key.lower() if is_field else key, frozenset(values), negate=operator in ("!=", "notin"))


def _complaint(text: str, names: list[str], *, known: bool) -> str:
    labels = (
        " or a label"
        if known
        else "; labels are known with -f alone: the agent does not keep them (ask the API server, and give the names "
        "that it answers)"
    )
    return (
        f"-l {printable(text)}: a term is KEY=VALUE, KEY!=VALUE, KEY in (VALUE,...), KEY notin (VALUE,...), KEY or "
        f"!KEY, and KEY one of {', '.join(names)}{labels}"
    )
