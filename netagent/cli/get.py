"""`netagent get`: what this node really does for each Service port."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from netagent import errors, settings
from netagent.cli import ending, get_columns, options, selectors, situation, tables
from netagent.escaping import printable
from netagent.model import objects

if TYPE_CHECKING:
    from netagent.cli import rows

_NOUNS: Final = {
    "frontends": "frontends", "frontend": "frontends", "fe": "frontends",
    "endpoints": "endpoints", "endpoint": "endpoints", "ep": "endpoints",
    "services": "services", "service": "services", "svc": "services",
}  # fmt: skip
_WATCH_SECONDS: Final = 1.0


class _Wanted(NamedTuple):
    """Which rows are asked for. `namespace` is None for all of them; `names` may have a namespace before a slash."""

    noun: str
    names: tuple[str, ...]
    namespace: str | None
    selector: str

    def services(self) -> frozenset[objects.ServiceName] | None:
        """The Services that are named; None if none is, or not with its namespace."""
        full = [name if "/" in name else f"{self.namespace}/{name}" for name in self.names]
        if not full or (self.namespace is None and any("/" not in name for name in self.names)):
            return None
        return frozenset(objects.ServiceName(*name.split("/", 1)) for name in full)

    def matches(self, namespace: str, service: str) -> bool:
        if not self.names:
            return self.namespace in (None, namespace)
        return any(
            name == f"{namespace}/{service}" or (name == service and self.namespace in (None, namespace))
            for name in self.names
        )


@click.command()
@click.argument("noun", metavar="frontends|endpoints|services", type=click.Choice(list(_NOUNS)))
@click.argument("names", metavar="[[NAMESPACE/]NAME]...", nargs=-1)
@click.option("-n", "--namespace", default="default", show_default=True, help="Namespace of the Services.")
@click.option("-A", "--all-namespaces", is_flag=True, help="All namespaces.")
@click.option(
    "-l",
    "--selector",
    default="",
    metavar="KEY=VALUE,...",
    help="Only rows whose fields are so, as zone=a,state!=ready. With -f also labels of Services, as app=web: "
    "the agent does not keep those.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json", "yaml", "name"]),
    default="table",
    show_default=True,
    help="How to print them.",
)
@click.option("--no-headers", is_flag=True, help="No line of headings.")
@click.option("-w", "--watch", is_flag=True, help="Stay, and print what changes. Connections alone are no change.")
@options.looking
@ending.ending()
def get(
    noun: str,
    names: tuple[str, ...],
    namespace: str,
    all_namespaces: bool,
    selector: str,
    output: str,
    no_headers: bool,
    watch: bool,
    **given: Any,
) -> None:
    """Show what this node does for each Service port: frontends, endpoints, or Services.

    \b
    frontends  what clients dial, what happens then, how many endpoints of how many
               ready ones serve, connections so far
    endpoints  every endpoint that slices tell of: node, zone, state, and whether
               this node uses it, or why not
    services   both in short, a line for each Service

    Asks the running agent, or plans the manifests of -f, or else shows what the kernel alone tells.

    \b
    -l compares, in kubectl's syntax, fields of the rows: service, namespace, port,
    protocol, family, kind, does, policy, affinity, kernel, node, zone, state, used,
    local, type; which of them depends on what is shown. Other keys are labels of
    Services, which are known with -f alone. Several NAMEs may be given:
      netagent get endpoints $(kubectl get svc -l app=web -o name | cut -d/ -f2)
    """
    source = options.source_of(**given)
    wanted = _Wanted(_NOUNS[noun], names, None if all_namespaces else namespace, selector)
    if not watch:
        gc.disable()  # one pass over everything, and then the process ends: nothing would be collected
        view = _view(source, wanted)
        for remark in view.remarks:
            options.say(remark)
        _print(view, wanted, output, with_headings=not no_headers)
        _complain(view, wanted)
        return
    if source.path == "-":
        raise errors.ConfigError("-w follows the agent, the kernel, or files; not standard input")
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        _watch(source, wanted, output, with_headings=not no_headers)


class _View(NamedTuple):
    """Rows, and how many Services there are in each namespace, for those who look in the wrong one."""

    rows: Sequence[Any]
    situation: situation.Situation
    known: Sequence[objects.ServiceName]
    remarks: tuple[str, ...]


def _view(source: options.Source, wanted: _Wanted) -> _View:
    seen = situation.look(source, services=wanted.services())
    remarks = seen.remarks
    if seen.planner is None:
        found, known = _kernel_rows(seen.settings, wanted)
    else:
        from netagent.cli import rows

        counts, in_kernel, unknown = _kernel_facts(seen.settings)
        if unknown and seen.origin is situation.Origin.AGENT:
            remarks += (f"what the kernel has and counts is unknown: {unknown}",)
        planned = rows.PlanRows(seen.planner, counts=counts, in_kernel=in_kernel)
        known = planned.names()
        chosen = [name for name in known if wanted.matches(*name)]
        found = _planned_rows(planned, wanted.noun, chosen)
    fields, known_labels = get_columns.FIELDS[wanted.noun], _labels(seen) if wanted.selector else None
    chosen_rows = selectors.selected(found, wanted.selector, fields, labels=known_labels)
    return _View(chosen_rows, seen, known, remarks)


def _labels(seen: situation.Situation) -> selectors.Labels | None:
    """The labels of a row's Service; None if nobody here knows any."""
    if seen.origin is not situation.Origin.FILES:
        return None
    from netagent.cli import labels

    known = labels.labels_of(seen.files, stdin=seen.stdin)
    return lambda row: known.get(objects.ServiceName(row.namespace, row.service), {})


def _planned_rows(planned: rows.PlanRows, noun: str, chosen: Sequence[objects.ServiceName]) -> Sequence[Any]:
    match noun:
        case "frontends":
            return planned.frontend_rows(chosen)
        case "endpoints":
            return planned.endpoint_rows(chosen)
        case _:
            return planned.service_rows(chosen)


def _kernel_facts(wanted: settings.Settings) -> tuple[rows.Counts | None, rows.InKernel | None, str]:
    """What of the kernel is shown beside a plan; None where there is nothing of ours, or it cannot be read: then the
    text tells why."""
    if wanted.mode is not settings.Mode.NFTABLES:
        return None, None, ""
    from netagent.cli import kernel_rows
    from netagent.nftables import layout

    held = situation.kernel(wanted, sets=(layout.FRONTENDS, layout.NODEPORTS, layout.SHAPES))
    if not held.any:
        return None, None, held.reason
    return situation.connections(wanted), kernel_rows.in_kernel(held.tables.values()), ""


def _kernel_rows(wanted: settings.Settings, asked: _Wanted) -> tuple[Sequence[Any], list[objects.ServiceName]]:
    from netagent.cli import kernel_rows

    held = situation.kernel(wanted)
    if held.reason:
        raise errors.PrivilegeError(held.reason)
    if not held.any:
        raise errors.NoAgentError(
            "no agent runs in this network namespace, and the kernel has no nftables table of ours (rules of mode "
            "iptables do not tell enough); give -f, or start the agent"
        )
    every = kernel_rows.of_kernel(list(held.tables.values()), counts=situation.connections(wanted))
    known = sorted({objects.ServiceName(row.namespace, row.service) for row in every})
    chosen = [row for row in every if asked.matches(row.namespace, row.service)]
    match asked.noun:
        case "frontends":
            return chosen, known
        case "endpoints":
            return kernel_rows.endpoints_of(chosen), known
        case _:
            return kernel_rows.services_of(chosen), known


def _complain(view: _View, wanted: _Wanted) -> None:
    """Say what was asked for and is not there: an error if it was named."""
    missing = [
        name
        for name in wanted.names
        if not any(_Wanted(wanted.noun, (name,), wanted.namespace, "").matches(*known) for known in view.known)
    ]
    if missing:
        where = "any namespace" if wanted.namespace is None else f"namespace {wanted.namespace}"
        texts = ", ".join(name if "/" in name else f"{name} in {where}" for name in map(printable, missing))
        raise errors.NetagentError(f"no Service {texts}")
    if not view.rows and not wanted.selector and wanted.namespace is not None and not wanted.names:
        others = len(view.known)
        hint = f"; there are {others} Services in other namespaces (-A shows them)" if others else ""
        options.say(f"no {wanted.noun} in namespace {printable(wanted.namespace)}{hint}")


# Printing ---------------------------------------------------------------------------------------------------


def _print(view: _View, wanted: _Wanted, output: str, *, with_headings: bool, beside: Iterable[Any] = ()) -> None:
    """Print rows, in columns that suit the rows `beside` them, too."""
    match output:
        case "json" | "yaml":
            items = list(view.rows)
            seen = view.situation
            tables.document({"node": seen.node_name, "origin": seen.origin.value, "items": items}, output)
        case "name":
            for text in dict.fromkeys(map(get_columns.NAMES[wanted.noun], view.rows)):
                click.echo(printable(text))
        case _:
            if not view.rows:
                return
            several = wanted.namespace is None or any("/" in name for name in wanted.names)
            plain, wide = get_columns.COLUMNS[wanted.noun]
            shown = [
                *([get_columns.NAMESPACE] if several else []),
                get_columns.NAME,
                *plain,
                *(wide if output == "wide" else ()),
            ]
            cells = [[read(row) for _, read in shown] for row in view.rows]
            others = [[read(row) for _, read in shown] for row in beside]
            tables.show([heading for heading, _ in shown], cells, with_headings=with_headings, beside=others)


# Staying --------------------------------------------------------------------------------------------------------


def _watch(source: options.Source, wanted: _Wanted, output: str, *, with_headings: bool) -> None:
    """Print all rows, then those that are new or differ, until interrupted."""
    shown: dict[tuple[Any, ...], Any] = {}
    said: set[str] = set()
    mark: object = None
    while True:
        now = _mark(source)
        if mark is None or now != mark or now is None:
            mark = now
            view = _view(source, wanted)
            for remark in view.remarks:
                if remark not in said:
                    options.say(remark)
                    said.add(remark)
            current = {_identity(row): row for row in view.rows}
            changed = [row for key, row in current.items() if _steady(shown.get(key)) != _steady(row)]
            for key in [key for key in shown if key not in current]:
                options.say(f"gone: {printable(' '.join(map(str, key)))}")
            if changed:
                first = with_headings and not shown
                beside = [*shown.values(), *view.rows]
                _print(view._replace(rows=changed), wanted, output, with_headings=first, beside=beside)
                sys.stdout.flush()
            shown = current
        time.sleep(_WATCH_SECONDS)


def _mark(source: options.Source) -> object:
    """Something that differs when there may be news; None if that cannot be told."""
    if source.path is not None:
        return None
    from netagent.agent.local import client, documents
    from netagent.nftables import netlink

    try:
        return client.document("/status", documents.Status).revision
    except errors.NoAgentError:
        pass
    try:
        with netlink.NftablesSocket() as socket:
            return ("kernel", socket.generation())
    except OSError:
        return None


def _identity(row: Any) -> tuple[Any, ...]:
    """What makes two rows of different moments the same row."""
    where = [row.namespace, row.service]
    for name in ("port_name", "frontend", "family", "kind", "endpoint"):
        where += [value] if (value := getattr(row, name, None)) else []
    return tuple(where)


def _steady(row: Any) -> Any:
    """A row without what changes all the time."""
    import msgspec

    return msgspec.structs.replace(row, connections=None) if hasattr(row, "connections") else row
