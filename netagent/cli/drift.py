"""`netagent drift`: what others did to our rules, who it was, and when it was put right."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from netagent.cli import ending, options, tables
from netagent.escaping import printable

if TYPE_CHECKING:
    from netagent.agent import drift as journal

_LINES: Final = 5


@click.command()
@options.output(help="For people, or all of it for programs.")
@click.option("--all-lines", is_flag=True, help=f"All that is known of each change, not {_LINES} lines.")
@ending.ending()
def drift(output: str, all_lines: bool) -> None:
    """List the last changes that others made to our rules: when, who, what, and when it was put right.

    Asks the running agent, which keeps the last hundred; the newest comes last. What one program does again and again
    within seconds is one entry with a count. "-" and "+" lines are what the repair took away and put back.
    """
    from netagent.agent import drift as journal
    from netagent.agent.local import client

    records = sorted(client.document("/drift", list[journal.Drift]), key=lambda record: record.at)
    if output != "text":
        tables.document({"items": [_as_data(record) for record in records]}, output)
        return
    for line in _lines(records, now=time.time(), most=None if all_lines else _LINES):
        click.echo(line)
    if not records:
        options.say("nobody has changed our rules since the agent began")


def _lines(records: Sequence[journal.Drift], *, now: float, most: int | None) -> Iterator[str]:
    for record in records:
        by = ", ".join(map(str, record.by)) or "unknown"
        times = f", {record.times} times" if record.times > 1 else ""
        yield f"{_moment(record.at)} ({tables.ago(now - record.at)} ago)  by {printable(by)}{times}"
        operations = "1 operation puts" if record.operations == 1 else f"{record.operations} operations put"
        yield f"  {operations} it right, {_repair(record)}"
        shown = record.lines[:most]
        yield from (f"    {printable(line)}" for line in shown)
        if len(record.lines) > len(shown):
            yield f"    and {len(record.lines) - len(shown)} lines more (--all-lines)"


def _repair(record: journal.Drift) -> str:
    if record.repaired_at is None:
        return "NOT YET DONE"
    seconds = max(0.0, record.repaired_at - record.at)
    return f"done {seconds * 1000:.0f} ms after it was noticed"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _as_data(record: journal.Drift) -> dict[str, Any]:
    from netagent.agent.health import state

    return {
        "at": state.rfc3339(record.at),
        "repairedAt": None if record.repaired_at is None else state.rfc3339(record.repaired_at),
        "by": [msgspec.to_builtins(process) for process in record.by],
        "times": record.times,
        "operations": record.operations,
        "lines": list(record.lines),
    }
