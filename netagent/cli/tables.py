"""How the looking commands write: columns for people and pipes, documents for programs, nothing a terminal obeys."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from netagent.escaping import printable

if TYPE_CHECKING:
    from rich.table import Table

NOTHING: Final = "-"
# A comma within a list of things, and not one in a sentence.
_LIST: Final = re.compile(r",(?=\S)")


def show(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    with_headings: bool = True,
    beside: Iterable[Sequence[object]] = (),
) -> None:
    """Print rows under headings, one line each, on standard output; as wide as if `beside` were among them.

    Numbers are set to the right, None and "" are a dash. On a terminal that is too narrow lists have a line for each
    item; a pipe gets whole lines of columns with two blanks or more between them, however long.
    """
    cells = [[cell(value) for value in row] for row in rows]
    others = [[cell(value) for value in row] for row in beside]
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        if _width(headings, cells) > console.width:
            cells = [[_LIST.sub(",\n", text) for text in row] for row in cells]
        # What is too wide all the same is the terminal's to break, as with kubectl.
        console.width = max(console.width, _width(headings, cells))
        made = table(headings, cells, with_headings=with_headings)
        if others:  # which stand under the headings of an earlier table
            for column, *texts in zip(made.columns, headings, *others, strict=True):
                column.min_width = max(map(len, texts))
        console.print(made)
        return
    top = [list(headings)] if with_headings or others else []
    lines = columns([*top, *cells, *others])[0 if with_headings else len(top) : len(top) + len(cells)]
    click.echo("".join(f"{line}\n" for line in lines), nl=False)


def cell(value: object) -> str:
    """A value as it is shown in a table."""
    match value:
        case None | "" | ():
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case tuple() | list():
            return ",".join(printable(str(one)) for one in value)
        case _:
            return printable(str(value))


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of aligned columns; no line ends in blanks."""
    if not rows:
        return []
    numeric = [_are_numbers(row[index] for row in rows[1:]) for index in range(len(rows[0]))]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in rows
    ]


def table(headings: Sequence[str], cells: Sequence[Sequence[str]], *, with_headings: bool = True) -> Table:
    """The same for a terminal, as a table of rich."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, show_header=with_headings, header_style="bold", padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        numeric = _are_numbers(row[index] for row in cells)
        made.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        made.add_row(*map(Text, row))
    return made


def _width(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """The width of a table, as rich draws it."""
    return sum(
        max(len(line) for text in (heading, *(row[index] for row in cells)) for line in text.split("\n")) + 2
        for index, heading in enumerate(headings)
    )


def _are_numbers(texts: Iterable[str]) -> bool:
    """Whether a column has numbers, and nothing else but dashes."""
    found = [text for text in texts if text != NOTHING]
    return bool(found) and all(text.removesuffix("%").replace(".", "", 1).isdigit() for text in found)


def document(content: Any, output: str) -> None:
    """Print a document as "json" or "yaml", on standard output. What is not plain ASCII is escaped, not lost."""
    click.echo(as_text(content, output), nl=False)


def as_text(content: Any, output: str) -> str:
    """A document as text; it ends in a line end."""
    plain = msgspec.to_builtins(content)
    if output == "json":
        return json.dumps(plain, indent=2) + "\n"
    import yaml

    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=False, width=10**6)


def ago(seconds: float) -> str:
    """A duration in one or two units, as kubectl writes it: 45s, 3m20s, 5h, 12d."""
    whole = max(0, int(seconds))
    if whole < 1:
        return f"{max(0.0, seconds):.1f}s"
    if whole < 120:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s" if whole % 60 else f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60}m" if whole % 3600 // 60 else f"{whole // 3600}h"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"
