"""`netagent trace`: what the kernel does with the packets of a flow, rule by rule, in words."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from netagent import errors, settings
from netagent.cli import ending, options

if TYPE_CHECKING:
    from netagent.cli import situation
    from netagent.model import addresses
    from netagent.nftables import ruleset
    from netagent.trace import flow, live


@click.command()
@click.argument("target", metavar="ADDRESS:PORT[/PROTOCOL] | NAMESPACE/SERVICE[:PORT]")
@click.option("--from", "source", default=None, metavar="ADDRESS", help="Packets of this sender only.  [default: any]")
@click.option("--live", is_flag=True, help="Have the kernel trace such packets now, and tell what it did with them.")
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="With --live: end after so many packets.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=30.0,
    show_default=True,
    help="With --live: end after so many seconds.",
)
@click.option(
    "--every-packet",
    is_flag=True,
    help="With --live: of TCP connections every packet, not the first one only (the others do not come by our rules).",
)
@options.output(help="json with --live: an object a line, one for each packet.", choices=("text", "json"))
@options.looking
@ending.ending()
def trace(
    target: str,
    source: str | None,
    live: bool,
    count: int,
    seconds: float,
    every_packet: bool,
    output: str,
    **given: Any,
) -> None:
    """Tell what happens to the packets of one flow.

    Without --live nothing is changed: it shows what would be armed, and plays the way of a first packet through the
    rules (those of the manifests with -f, else those in the kernel). With --live the kernel traces real packets, in a
    table of our own that is taken away at the end, however that comes. Exit code 1: no such packet came by.

    A Service stands for all its addresses on this node.
    """
    from netagent.agent import node_addresses
    from netagent.trace import flow

    sender = _sender(source)
    named = flow.parse(target, source=sender)
    asked = options.source_of(**given)
    seen = _situation(asked, live=live)
    own = node_addresses.read_addresses()
    # All elements of a large cluster take seconds to read; a live trace of an address reads them itself.
    tables = {} if live and named else _tables(asked, seen, live=live)
    flows = (named,) if named else flow.of_service(target, _served(tables), node_addresses=own, source=sender)
    if not live:
        _rehearse(flows, tables, own, every_packet=every_packet, output=output)
        return
    with _signals_end():
        told = _live(flows, count=count, seconds=seconds, every_packet=every_packet, output=output)
    sys.exit(0 if told else 1)


def _sender(text: str | None) -> bytes | None:
    """The packed address of --from; None without one."""
    from netagent.model import addresses

    try:
        return None if text is None else addresses.parse_address(text)
    except ValueError as error:
        raise errors.ConfigError(f"--from: {error}") from None


def _situation(source: options.Source, *, live: bool) -> situation.Situation:
    from netagent.cli import situation
    from netagent.model import objects

    if live and source.path is not None:
        raise errors.ConfigError("--live traces what the kernel does; it takes no -f")
    # Of a running agent only the settings count; a Service that nobody has brings them without its objects.
    seen = situation.look(source, services=[objects.ServiceName("default", "-")])
    if seen.settings.mode is settings.Mode.IPTABLES:
        raise errors.UnsupportedError(
            "trace is for mode nftables, and this is mode iptables. There: iptables -t raw -A PREROUTING -d ADDRESS "
            "-j TRACE, then xtables-monitor --trace (nf_tables) or the kernel's log (legacy tables)"
        )
    return seen


def _tables(
    source: options.Source, seen: situation.Situation, *, live: bool
) -> Mapping[addresses.Family, ruleset.Table]:
    """Our tables: as the manifests want them; else as the kernel has them; else, where they cannot be read and nothing
    is traced, as the running agent wants them."""
    from netagent.cli import situation

    if seen.origin is situation.Origin.FILES:
        return _planned_tables(seen)
    from netagent.nftables import layout, unwire

    kernel = situation.kernel(seen.settings)
    specs = layout.sets(affinity_clients=seen.settings.affinity_clients)
    held = {family: unwire.table_of(table, specs).table for family, table in kernel.tables.items() if table.exists}
    if held:
        return held
    if not live and seen.origin is situation.Origin.AGENT:
        options.say(f"these are the rules that the running agent wants: {kernel.reason or 'the kernel has none'}")
        return _planned_tables(situation.look(source))
    if kernel.reason:
        raise errors.PrivilegeError(kernel.reason)
    raise errors.NetagentError("there are no tables of netagent in this network namespace; give manifests with -f")


def _planned_tables(seen: situation.Situation) -> Mapping[addresses.Family, ruleset.Table]:
    from netagent.cli import views
    from netagent.nftables import tables

    for remark in seen.remarks:
        options.say(remark)
    if seen.planner is None:
        raise errors.NetagentError("there is no plan to go by; give manifests with -f")
    desired = tables.Tables(affinity_clients=seen.settings.affinity_clients)
    desired.set_rules(seen.planner.rules)
    current = seen.planner.forwarding.frontends
    desired.update((frontend.key for frontend in views.in_order(current)), current)
    return {table.family: table for table in desired.desired()}


def _served(tables: Mapping[addresses.Family, ruleset.Table]) -> Iterator[tuple[str, Any]]:
    """The frontends that tables have, each with the Service port that owns it."""
    from netagent.nftables import layout, lower, ruleset

    for family, table in tables.items():
        for name in (layout.FRONTENDS, layout.NODEPORTS):
            for key, value in table.elements.get(name, {}).items():
                frontend = lower.frontend_key(family, name, key)
                if frontend is not None and isinstance(value, ruleset.Owned):
                    yield value.owner, frontend


def _rehearse(
    flows: Sequence[flow.Flow],
    tables: Mapping[addresses.Family, ruleset.Table],
    own: frozenset[bytes],
    *,
    every_packet: bool,
    output: str,
) -> None:
    from netagent.cli import views
    from netagent.nftables import walk
    from netagent.trace import arming, rehearsal

    armed = list(arming.text(flows, every_packet=every_packet))
    host = walk.Host(own)
    played = []
    for each in flows:
        source = each.source or _own_address(own, each)
        link = "" if host.is_local(source) else "?"
        table = tables.get(each.family)
        ways = rehearsal.ways(table, each, host, source=source, input_interface=link) if table else []
        played.append((each, source, link, ways))
    if output == "json":
        document = {
            "armed": armed,
            "flows": [
                {"flow": str(each), "fromThisHost": not link, "ways": [way.document() for way in ways]}
                for each, _, link, ways in played
            ],
        }
        click.echo(views.as_json(document), nl=False)
        return
    click.echo("# with --live, this is armed for a while:")
    for line in armed:
        click.echo(line)
    for each, source, link, ways in played:
        from netagent.model import addresses

        sender = addresses.format_address(source)
        click.echo(f"\n# {each}, played without the kernel, from {'elsewhere' if link else 'this host'} ({sender}):")
        if not ways:
            click.echo(f"there is no table of ours for {each.family.value}: nothing happens to it")
        for way in ways:
            for line in way.lines():
                click.echo(line)


def _own_address(own: frozenset[bytes], each: flow.Flow) -> bytes:
    """An address that this host would dial from: any of its own of the family, the loopback one at last."""
    mine = sorted(address for address in own if len(address) == each.family.address_bytes)
    loopback = {4: b"\x7f\0\0\1", 16: bytes(15) + b"\1"}[each.family.address_bytes]
    outward = [
        address for address in mine if address[:1] != b"\x7f" and address != loopback and address[:2] != b"\xfe\x80"
    ]
    return (outward or [loopback])[0]


def _live(flows: Sequence[flow.Flow], *, count: int, seconds: float, every_packet: bool, output: str) -> int:
    """Trace, and print each packet's story as it is complete; return how many there were."""
    import msgspec

    from netagent.escaping import printable
    from netagent.trace import live

    told = 0
    with live.Trace(flows, every_packet=every_packet) as running:
        for each in flows:
            options.say(f"tracing {each}, up to {count} packet{'s' * (count != 1)} and {seconds:g} s")
        for story in _interruptible(running, count=count, seconds=seconds):
            told += 1
            if output == "json":
                click.echo(msgspec.json.encode(story.document()).decode())
            else:
                for line in story.lines():
                    click.echo(printable(line))
            sys.stdout.flush()
        if running.lost:
            options.say("the kernel told more than could be taken; some steps may be missing")
    if not told:
        options.say(f"no such packet came by{'' if every_packet else '; of TCP only new connections count: open one'}")
    return told


def _interruptible(running: live.Trace, *, count: int, seconds: float) -> Iterator[Any]:
    try:
        yield from running.stories(count=count, seconds=seconds)
    except KeyboardInterrupt:
        options.say("ended")


@contextmanager
def _signals_end() -> Iterator[None]:
    """SIGTERM ends as SIGINT does: by way of everything that has to be taken away."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
