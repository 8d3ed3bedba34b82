"""What was measured, as a Markdown page and as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
    """Rows of text under a heading; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]


class Check(NamedTuple):
    """A budget of issue 4, what was found, and whether that is within it; None: not measured at the size it names."""

    budget: str
    found: str
    met: bool | None


class Section(NamedTuple):
    """What a section found. `data` is what the tables are made of, for programs."""

    title: str
    tables: Sequence[Table]
    data: Any
    notes: Sequence[str] = ()
    checks: Sequence[Check] = ()


class Failed(NamedTuple):
    """A section that could not be measured, and why."""

    title: str
    reason: str


Outcome = Section | Failed


def markdown(machine: dict[str, str], warnings: Iterable[str], outcomes: dict[str, Outcome]) -> Iterator[str]:
    """The lines of the page."""
    yield "# netagent: benchmarks"
    yield ""
    yield from _table(("", ""), list(machine.items()))
    yield ""
    for warning in warnings:
        yield f"**Warning: {warning}**"
        yield ""
    yield "Figures are medians; in brackets are the least and the greatest of all rounds, if a column says no other."
    yield ""
    checks = [
        (check.budget, check.found, {True: "met", False: "**not met**", None: "not measured"}[check.met])
        for outcome in outcomes.values()
        if isinstance(outcome, Section)
        for check in outcome.checks
    ]
    if checks:
        yield "## Budgets"
        yield ""
        yield from _table(("budget", "found", ""), checks)
        yield ""
    for outcome in outcomes.values():
        yield f"## {outcome.title}"
        yield ""
        match outcome:
            case Failed():
                yield f"**Could not be measured:** {outcome.reason.strip().splitlines()[-1]}"
                yield ""
            case Section():
                yield from _section(outcome)


def _section(section: Section) -> Iterator[str]:
    for note in section.notes:
        yield note
        yield ""
    for table in section.tables:
        if table.title:
            yield f"**{table.title}**"
            yield ""
        yield from _table(table.columns, table.rows)
        yield ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def document(machine: dict[str, str], warnings: Iterable[str], outcomes: dict[str, Outcome]) -> str:
    """The same for programs: every single measurement."""
    sections: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        match outcome:
            case Failed():
                sections[name] = {"failed": outcome.reason}
            case Section():
                checks = [check._asdict() for check in outcome.checks]
                sections[name] = {"data": outcome.data, "checks": checks}
    found = {"machine": machine, "warnings": list(warnings), "sections": sections}
    return json.dumps(found, indent=1, sort_keys=True) + "\n"
