"""`netagent top`: new connections per second, for each Service port and endpoint."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from netagent import errors, settings
from netagent.cli import ending, options, rates, situation, tables
from netagent.escaping import printable
from netagent.model import objects

if TYPE_CHECKING:
    from rich.table import Table

    from netagent.agent import arrivals
    from netagent.nftables import netlink
    from netagent.plan import frontends

# So many connections a second are followed to their endpoints, some 10 microseconds each.
_FOLLOWED: Final = 20_000
# Reading the counters of very many Services takes no more than this share of the time.
_READ_SHARE: Final = 0.25
_HEADINGS: Final = ("SERVICE PORT", "CONN/S", "SHARE", "TOTAL", "ENDP", "MAX/MEAN")


@click.command()
@click.argument("names", metavar="[[NAMESPACE/]NAME]...", nargs=-1)
@click.option("--once", is_flag=True, help="Measure for one interval, print plain lines, and end.")
@click.option(
    "--endpoints", "with_endpoints", is_flag=True, help="Also a line for each endpoint that gets connections."
)
@click.option(
    "--sort",
    type=click.Choice(["connections", "share", "imbalance", "name"]),
    default="connections",
    show_default=True,
    help="What comes first.",
)
@click.option("-n", "--namespace", default=None, help="Only Services of this namespace.  [default: all]")
@click.option("-A", "--all-namespaces", is_flag=True, help="All namespaces, which is the default.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    help="Seconds from one reading to the next.",
)
@ending.ending()
def top(
    names: tuple[str, ...],
    once: bool,
    with_endpoints: bool,
    sort: str,
    namespace: str | None,
    all_namespaces: bool,
    interval: float,
) -> None:
    """Show which Services get new connections now, and how evenly their endpoints get them.

    \b
    CONN/S    new connections a second in the last interval, as the kernel counted them
    SHARE     of all of them (of an endpoint: of its Service port's)
    TOTAL     since the command began
    ENDP      endpoints that serve the port on this node
    MAX/MEAN  connections of the busiest endpoint over the mean of all, since the
              command began: 1.00 is even. Shown from 5 connections an endpoint on;
              below, unevenness is chance.

    What was refused or dropped counts as well; in mode iptables it does not. Endpoints are those that connection
    tracking tells of while this runs. Needs CAP_NET_ADMIN, and no agent in mode nftables. On a terminal a live table
    (Ctrl-C ends it), else lines.
    """
    view = _View(names, None if all_namespaces else namespace, sort, with_endpoints)
    with contextlib.ExitStack() as stack:
        gauge = stack.enter_context(_Gauge())
        gauge.read()
        with contextlib.suppress(KeyboardInterrupt):
            if once:
                gauge.measure(interval)
                _print_lines(gauge, view)
                if missing := view.missing(gauge.meter.services):
                    raise errors.NetagentError(missing)
            elif sys.stdout.isatty():
                _live(gauge, view, interval)
            else:
                while True:
                    gauge.measure(interval)
                    _print_lines(gauge, view)
                    click.echo()
                    sys.stdout.flush()


class _View(NamedTuple):
    """What is shown of the rates. `names` () is all Services, `namespace` None all namespaces."""

    names: tuple[str, ...]
    namespace: str | None
    sort: str
    with_endpoints: bool

    def wants(self, service: objects.ServiceName) -> bool:
        """Whether a Service is among those that are shown."""
        if str(service) in self.names:
            return True
        return self.namespace in (None, service.namespace) and (not self.names or service.name in self.names)

    def missing(self, services: Collection[objects.ServiceName]) -> str:
        """What to say of names that no Service has; "" if there are none."""
        alone = [(name, self._replace(names=(name,))) for name in self.names]
        unknown = [name for name, view in alone if not any(map(view.wants, services))]
        return f"no Service {', '.join(unknown)} has a port here" if unknown else ""


# Measuring ------------------------------------------------------------------------------------------------------


class _Gauge:
    """Reads what the kernel counts.

    Owns: a netlink socket for counters, one for new connections, the meter. Use: `read` once, then `measure` for each
    interval; `meter` has the rates, `remarks` what should be known about them. Threading: none.
    """

    def __init__(self) -> None:
        self.meter = rates.Meter()
        self.remarks: dict[str, None] = {}
        self._socket: netlink.NftablesSocket | None = None
        self._arrivals: arrivals.Arrivals | None = None
        self._planned: Mapping[frontends.FrontendKey, rates.Dialled] | None = None
        self._revision = -1
        self._last = 0.0
        self._reading_seconds = 0.0

    def __enter__(self) -> _Gauge:
        from netagent.agent import arrivals
        from netagent.nftables import netlink

        self._socket = netlink.NftablesSocket()
        try:
            self._arrivals = arrivals.Arrivals(most=_FOLLOWED)
        except errors.UnsupportedError as error:
            self.remarks[str(error)] = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._arrivals:
            self._arrivals.close()
        if self._socket:
            self._socket.close()

    def measure(self, seconds: float) -> None:
        """Count for so long (longer, if reading the counters takes a good part of that), then read."""
        seconds = max(seconds, self._reading_seconds / _READ_SHARE)
        if self._arrivals:
            self._arrivals.resume()
        found: Counter[arrivals.Arrival] = Counter()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            descriptor = self._arrivals.fileno() if self._arrivals else None
            if self._arrivals is None or descriptor is None:
                time.sleep(left)
                continue
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(left * 1000)
            found += self._arrivals.take()
        if self._arrivals:
            found += self._arrivals.take()
            if not self._arrivals.complete:
                self.remarks["more new connections than can be followed: endpoints are a sample"] = None
        self.meter.arrived((*arrival, count) for arrival, count in found.items())
        self.read()
        if not found and self.meter.per_second > 10 and self._arrivals:
            self.remarks[
                "connection tracking tells of no new connection: see sysctl net.netfilter.nf_conntrack_events"
            ] = None

    def read(self) -> None:
        """Read the counters. NoAgentError where there is nothing of ours, PrivilegeError without the right to."""
        now = time.monotonic()
        dialled, counts = self._of_kernel()
        if dialled:
            self.meter.read(dialled, counts, seconds=now - self._last)
        else:
            self.meter.read(self._of_plan(), None, seconds=now - self._last)
        if not self._last and self._arrivals:
            self._arrivals.take()  # these came before
        self._reading_seconds = time.monotonic() - now
        self._last = now

    def _of_kernel(self) -> tuple[dict[frontends.FrontendKey, rates.Dialled], dict[frontends.FrontendKey, int]]:
        from netagent.nftables import counters, mirror

        assert self._socket
        try:
            shapes = _shapes(self._socket)
            elements = list(counters.frontend_elements(self._socket))
        except OSError as error:
            raise mirror.read_error(error) from error
        sizes = {number: _endpoints_of(chain) for number, chain in shapes.items()}
        dialled = {one.key: rates.Dialled(one.owner, sizes.get((one.key.family, one.shape), 0)) for one in elements}
        return dialled, {one.key: one.connections for one in elements}

    def _of_plan(self) -> Mapping[frontends.FrontendKey, rates.Dialled]:
        """Mode iptables has no elements that count: the agent knows whose a frontend is."""
        from netagent.agent.local import client, documents

        revision = client.document("/status", documents.Status).revision
        if self._planned is None or revision != self._revision:
            seen = situation.look(options.Source(None, settings.Settings(), "", strict=False))
            assert seen.planner
            self._revision = revision
            self._planned = {
                key: rates.Dialled(str(one.owner), max(len(one.endpoints), len(one.local_endpoints or ())))
                for key, one in seen.planner.forwarding.frontends.items()
            }
        return self._planned


def _shapes(socket: netlink.NftablesSocket) -> dict[tuple[object, bytes], str]:
    """The chain that each number of a shape stands for, by family."""
    from netagent.model import addresses
    from netagent.nftables import layout, readback, ruleset

    spec = layout.sets(affinity_clients=1)[layout.SHAPES]
    return {
        (family, number): value.chain
        for family in addresses.Family
        for number, value in readback.read_elements(socket, spec, family).items()
        if isinstance(value, ruleset.VerdictValue)
    }


def _endpoints_of(chain: str) -> int:
    """How many endpoints serve frontends of a shape, by the name of its chain."""
    _, _, counts = chain.partition("-random-")
    numbers = [part for part in counts.partition("-affinity")[0].split("-") if part.isdigit()]
    return max(map(int, numbers), default=0)


# Showing --------------------------------------------------------------------------------------------------------


def _lines(gauge: _Gauge, view: _View) -> Iterator[tuple[str, ...]]:
    for rate in gauge.meter.rates(wanted=view.wants, sort=view.sort):
        uneven = f"{rate.imbalance:.2f}" if rate.imbalance is not None else tables.NOTHING
        yield (
            printable(rate.name),
            f"{rate.per_second:.1f}",
            f"{rate.share:.0%}",
            str(rate.total),
            str(rate.endpoints),
            uneven,
        )
        if view.with_endpoints:
            for one in rate.busiest:
                yield (
                    f"  {one.endpoint}",
                    f"{one.per_second:.1f}",
                    f"{one.share:.0%}",
                    str(one.total),
                    tables.NOTHING,
                    tables.NOTHING,
                )
            idle = rate.endpoints - len(rate.busiest)
            if idle > 0 and rate.busiest:
                yield (f"  {idle} more without any", "0.0", "0%", "0", tables.NOTHING, tables.NOTHING)


def _print_lines(gauge: _Gauge, view: _View) -> None:
    for remark in gauge.remarks:
        options.say(remark)
    gauge.remarks.clear()
    rows = list(_lines(gauge, view))
    if not rows and not view.names:
        options.say(f"no new connections to any of {gauge.meter.ports} Service ports")
    for line in tables.columns([_HEADINGS, *rows]):
        click.echo(line)


def _live(gauge: _Gauge, view: _View, interval: float) -> None:
    """A table that follows, until interrupted."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(_table(gauge, view, rows=console.size.height - 4), refresh=True)
            gauge.measure(interval)


def _table(gauge: _Gauge, view: _View, *, rows: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    moment = time.strftime("%H:%M:%S")
    title = f"{moment}  {gauge.meter.per_second:.1f} new connections/s to {gauge.meter.ports} Service ports"
    note = "; ".join(filter(None, (*gauge.remarks, view.missing(gauge.meter.services))))
    made = Table(
        title=Text(title),
        title_justify="left",
        caption=Text(note) if note else None,
        box=None,
        pad_edge=False,
        expand=True,
    )
    for index, heading in enumerate(_HEADINGS):
        # The name has what is left of the width, and is cut there; numbers are whole.
        made.add_column(
            heading,
            justify="right" if index else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=None if index else 1,
            min_width=len(heading) if index else 20,
        )
    for index, line in enumerate(_lines(gauge, view)):
        if index >= rows:
            break
        style = "dim" if line[0].startswith("  ") else ""
        made.add_row(*(Text(text) for text in line), style=style)
    return made
