"""`netagent status`: one screen that tells how the agent of this host is."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

import netagent
from netagent import errors, settings
from netagent.cli import ending, options, situation, tables
from netagent.escaping import printable
from netagent.model import addresses

if TYPE_CHECKING:
    from netagent.agent.local import client, documents

# Somebody looks at a screen and waits.
_SECONDS: Final = 10.0
_SHOWN: Final = 5
_GOOD, _BAD, _PLAIN = "green", "bold red", ""


class _Line(NamedTuple):
    """A line of the screen: what it is about ("" goes on with the line before), what it says, and its colour."""

    about: str
    says: str
    style: str = _PLAIN


@click.command()
@options.output(help="One screen for people, or all of it for programs.")
@ending.ending()
def status(output: str) -> None:
    """Tell how the agent is: sources, syncs, tables, drift, quarantine.

    Asks the running agent of this network namespace over its local socket. Without one, or when it does not answer,
    tells what the kernel alone says.

    \b
    Exit codes: 0 all is well; 1 something is not (the last lines say what);
    4 this user may not ask; 10 no agent runs here.
    """
    from netagent.agent.local import client, documents

    try:
        answer = client.ask("/status", seconds=_SECONDS)
    except errors.NoAgentError as error:
        _without_agent("NONE", str(error), output)
        sys.exit(error.exit_code)
    except errors.SourceError as error:
        _without_agent(
            "NO ANSWER", str(error), output, until="the agent answers: restart it (systemctl restart netagent)"
        )
        sys.exit(1)
    told = client.read("/status", answer, documents.Status)
    if output == "text":
        _print(_screen(told, answer))
    else:
        import msgspec

        tables.document({**_versions(), "healthy": not told.troubles, "agent": msgspec.to_builtins(told)}, output)
    sys.exit(1 if told.troubles else 0)


def _versions() -> dict[str, Any]:
    return {"version": netagent.__version__, "kernel": os.uname().release}


def _print(lines: Iterator[_Line]) -> None:
    """Print the screen; with colours where that is a terminal."""
    found = list(lines)
    width = max(len(line.about) for line in found)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False)
        for line in found:
            console.print(Text.assemble((f"{line.about:<{width}}", "bold"), "  ", (line.says, line.style)))
        return
    for line in found:
        click.echo(f"{line.about:<{width}}  {line.says}".rstrip())


# With an agent --------------------------------------------------------------------------------------------------


def _screen(told: documents.Status, answer: client.Answer) -> Iterator[_Line]:
    well = not told.troubles
    name = f" ({printable(answer.process)})" if answer.process else ""
    yield _Line("Agent", "healthy" if well else "NOT WELL, see Trouble below", _GOOD if well else _BAD)
    other = "" if told.version == netagent.__version__ else f"; this command is {netagent.__version__}"
    yield _Line(
        "", f"version {printable(told.version)}{other}, process {answer.pid or told.pid}{name}, up {_ago(told.started)}"
    )
    yield _Line("Node", f"{printable(told.node_name)}, mode {printable(told.mode)}, {' and '.join(told.families)}")
    counts = told.counts
    serves = (_some(counts.services, "Service"), _some(counts.frontends, "frontend"))
    yield _Line("Serves", f"{', '.join(serves)}, {_some(counts.endpoints, 'endpoint')} known")
    yield from _sync_lines(told)
    without = "rules among those of others, which nobody can own" if told.mode == "iptables" else "unknown"
    yield from _each("Tables", map(_table_line, told.tables), without)
    yield from _each("Sources", map(_source_line, told.sources), "unknown")
    yield from _each("Drift", _drift_lines(told.drift), "none")
    yield from _each("Quarantine", (_quarantine_lines(told)), "none")
    contests = [
        _Line("", f"{printable(one.frontend)}: {one.winner} has it, {one.loser} does without") for one in told.conflicts
    ]
    yield from _each("Conflicts", _most(contests, told.conflicting), "none")
    unexpected = ", ".join(f"{printable(where)} {count}" for where, count in told.unexpected_errors.items())
    yield _Line("Unexpected", unexpected or "nothing", _BAD if unexpected else _PLAIN)
    if told.health:
        yield _Line("Health", _health(told.health), _GOOD if told.health.healthy else _BAD)
    yield from _each("Trouble", (_Line("", printable(trouble), _BAD) for trouble in told.troubles), "none")


def _sync_lines(told: documents.Status) -> Iterator[_Line]:
    syncs = told.syncs
    state = "in sync" if told.in_sync else "NOT IN SYNC"
    yield _Line("Kernel", f"{state} for {_ago(told.since)}", _GOOD if told.in_sync else _BAD)
    yield _Line("", f"{_some(syncs.succeeded, 'sync')}, {syncs.failed} failed")
    if syncs.last:
        yield _Line("Last sync", f"{_ago(syncs.last.at)} ago, {_sync(syncs.last)}")
    if syncs.last_change and syncs.last_change != syncs.last:
        yield _Line("Last change", f"{_ago(syncs.last_change.at)} ago, {_sync(syncs.last_change)}")
    if failure := syncs.last_failure:
        again = f"{failure.in_a_row} in a row" if failure.in_a_row else "it has worked since"
        yield _Line("Last failure", f"{_ago(failure.at)} ago, {again}: {printable(failure.reason)}")


def _sync(sync: documents.Sync) -> str:
    return (
        f"{_some(sync.operations, 'operation')} in {_some(sync.transactions, 'transaction')}, "
        f"{sync.seconds * 1000:.1f} ms"
        if sync.operations
        else f"nothing to do, {sync.seconds * 1000:.1f} ms"
    )


def _table_line(table: documents.TableState) -> _Line:
    name = f"{printable(table.family)} {printable(table.name)}".strip()
    return _Line("", f"{name}: {printable(table.ownership) or 'there'}" if table.present else f"{name}: MISSING")


def _source_line(source: documents.Source) -> _Line:
    state = "in sync" if source.in_sync else "NOT IN SYNC"
    age = "never heard of" if source.age is None else f"{tables.ago(source.age)} old"
    error = f": {printable(source.error)}" if source.error else ""
    good = source.in_sync and not source.error
    return _Line("", f"{printable(source.name)}: {state}, {age}{error}", _PLAIN if good else _BAD)


def _drift_lines(drift: documents.Drift) -> Iterator[_Line]:
    if drift.repairs:
        last = f"last {_ago(drift.last)} ago" if drift.last else ""
        did = f"repaired {_some(drift.repairs, 'time')}, {_some(drift.operations, 'operation')}"
        yield _Line("", f"{did}, {last} (see netagent drift)")


def _quarantine_lines(told: documents.Status) -> Iterator[_Line]:
    lines = [
        _Line("", ": ".join(filter(None, (printable(_object(one)), printable(one.field), printable(one.reason)))))
        for one in told.quarantine
    ]
    return _most(lines, told.quarantined)


def _object(one: documents.SetAside) -> str:
    name = f"{one.namespace}/{one.name}" if one.namespace and one.name else one.name
    return " ".join(filter(None, (one.kind, name)))


def _health(health: documents.Health) -> str:
    words = (
        "/healthz ok" if health.healthy else "/healthz: updates are late",
        "ready" if health.ready else "not ready",
        "gets clients" if health.node_eligible else "the node is being taken away: load balancers leave it",
        "" if health.sound else "breaks again and again",
    )
    return ", ".join(filter(None, words))


def _each(about: str, lines: Iterator[_Line], otherwise: str) -> Iterator[_Line]:
    """Lines under one heading; `otherwise` where there are none."""
    first = True
    for line in lines:
        yield line._replace(about=about if first else "")
        first = False
    if first:
        yield _Line(about, otherwise)


def _most(lines: list[_Line], count: int) -> Iterator[_Line]:
    yield from lines[:_SHOWN]
    if count > _SHOWN:
        yield _Line("", f"and {count - _SHOWN} more (-o json has them)")


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _ago(moment: str) -> str:
    """How long ago an RFC 3339 time was."""
    try:
        then = datetime.datetime.fromisoformat(moment)
    except ValueError:
        return "?"
    return tables.ago((datetime.datetime.now(datetime.UTC) - then).total_seconds())


# Without --------------------------------------------------------------------------------------------------------


def _without_agent(state: str, reason: str, output: str, *, until: str = "an agent runs") -> None:
    """Tell what the kernel has, and until when that stays so. PrivilegeError if it does not tell this user."""
    held = situation.kernel(settings.Settings())
    if not held.tables and held.reason:
        raise errors.PrivilegeError(f"{reason}, and the kernel cannot be asked: {held.reason}")
    facts = [_kernel_table(held, family) for family in addresses.Family]
    others = _iptables_rules()
    if output != "text":
        content = {
            **_versions(),
            "healthy": False,
            "agent": None,
            "reason": reason,
            "tables": facts,
            "iptables": others,
        }
        tables.document(content, output)
        return
    _print(_kernel_screen(f"{state}: {printable(reason)}", facts, others, until))


def _kernel_screen(state: str, facts: list[dict[str, Any]], others: list[str], until: str) -> Iterator[_Line]:
    yield _Line("Agent", state, _BAD)
    yield _Line("", "what follows is what the kernel alone tells")
    there = [fact for fact in facts if fact["present"]]
    served = sum(fact["frontends"] for fact in there)
    endpoints = sum(fact["endpoints"] for fact in there)
    counted = f"{_some(served, 'frontend')} with {_some(endpoints, 'place')} for endpoints"
    otherwise = "nobody knows: rules of iptables do not tell" if others else "nothing"
    yield _Line("Serves", counted if there else otherwise)
    for index, fact in enumerate(facts):
        state = printable(fact["ownership"]) if fact["present"] else "not there"
        yield _Line("" if index else "Tables", f"{fact['family']} {fact['name']}: {state}")
    yield from _each("Mode iptables", (_Line("", f"rules of ours in {other}") for other in others), "no rules of ours")
    if there or others:
        yield _Line("Trouble", f"these rules serve, and follow no change until {until}", _BAD)
    else:
        yield _Line("Trouble", "no Service is served here by netagent", _BAD)


def _kernel_table(held: situation.Kernel, family: addresses.Family) -> dict[str, Any]:
    import msgspec

    from netagent.agent.local import tables as whose
    from netagent.nftables import layout

    table = held.tables[family]
    sizes = {name: len(elements) for name, elements in table.elements.items()}
    dispatch = (layout.FRONTENDS, layout.NODEPORTS)
    places = (layout.BACKENDS, layout.NODEPORT_BACKENDS, layout.AFFINITY_ENDPOINTS)
    return {
        **msgspec.to_builtins(whose.table_state(table)),
        "chains": len(table.chains),
        "frontends": sum(sizes.get(name, 0) for name in dispatch),
        "endpoints": sum(sizes.get(name, 0) for name in places),
    }


def _iptables_rules() -> list[str]:
    """The variants of iptables in which there are rules of ours; none where there are no tools to ask."""
    from netagent.iptables import leftovers, variant

    found = []
    for each in variant.Variant:
        try:
            families = leftovers.families_with_ours(each)
        except errors.NetagentError:
            continue
        if families:
            found.append(f"{each.in_words} ({', '.join(family.value for family in families)})")
    return found
