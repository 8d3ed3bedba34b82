"""The way of one packet, told: which rules and elements it came by, and what became of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from netagent.model import addresses
from netagent.nftables import ruleset
from netagent.trace import arming, rules, words
from netagent.trace.events import Event, Headers, Kind, Verdict

_LOOPBACK: Final = "lo"
_AFTER_GENERAL: Final = {
    Verdict.ACCEPT: "lets it pass",
    Verdict.DROP: "drops it",
    Verdict.QUEUE: "hands it to a program",
}


@dataclass(slots=True)
class Packet:
    """The events of one packet, in order, and what they began with. `number` counts from 1."""

    number: int
    armed_in: str
    events: list[Event] = field(default_factory=list)
    ids: set[int] = field(default_factory=set)

    @property
    def headers(self) -> Headers | None:
        """As it came, before anybody changed it."""
        return next((event.headers for event in self.events if event.headers), None)

    @property
    def latest(self) -> Headers | None:
        """As it was last seen."""
        return next((event.headers for event in reversed(self.events) if event.headers), None)


class Packets:
    """Events put together, a packet at a time.

    A packet that this host sends to itself comes in again by the loopback device, under another number; it is the same
    one here. Events of packets that others trace are passed over, as are packets beyond the first `most`.
    Use: `feed` each event, `take` what is there. Threading: none.
    """

    def __init__(self, most: int, *, name_of: Callable[[int], str]) -> None:
        self._most = most
        self._name_of = name_of
        self._open: list[Packet] = []
        self.begun = 0

    def feed(self, event: Event) -> None:
        """Take note of an event."""
        arms = event.table == arming.TABLE and event.of_a_rule
        packet = self._known(event, arms=arms)
        if packet is None and arms:
            # The kernel's numbers are made of a packet's place in memory, which the next one may get.
            for over in self._open:
                over.ids.discard(event.packet)
        if packet is None and arms and self.begun < self._most:
            self.begun += 1
            packet = Packet(self.begun, event.chain)
            self._open.append(packet)
        if packet is not None:
            packet.ids.add(event.packet)
            packet.events.append(event)

    def take(self) -> list[Packet]:
        """The packets so far, in order; they are over."""
        done, self._open = self._open, []
        return done

    def _known(self, event: Event, *, arms: bool) -> Packet | None:
        again = self._name_of(event.input_link) == _LOOPBACK
        for packet in reversed(self._open):
            same = event.packet in packet.ids
            if same and not (arms and any(each.table == arming.TABLE and each.of_a_rule for each in packet.events)):
                return packet
            if not same and again and packet.armed_in == "output" and _continues(packet, event):
                return packet
        return None


def _continues(packet: Packet, event: Event) -> bool:
    """Whether an event is of a packet that came to the loopback device before."""
    now, before = event.headers, packet.latest
    if now is None or before is None or len(packet.ids) > 1:
        return False
    # Its source may be another one by now.
    was = (before.protocol, before.destination, before.destination_port)
    return (now.protocol, now.destination, now.destination_port) == was


@dataclass(frozen=True, slots=True)
class Step:
    """One rule (or policy) that a packet came by. `said` is what it did, in words; `elements` by which of our elements.

    `ours`: it is a rule of our tables.
    """

    table: str
    chain: str
    handle: int | None
    verdict: str
    said: str
    elements: tuple[str, ...] = ()
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Story:
    """A packet's way. `arrived` says how it came ("from this host", "in by eth0"), `service` which Service port it was
    for ("" for none), `outcome` what became of it; `quiet` steps are left out of `steps` and in `all_steps`."""

    number: int
    packet: str
    arrived: str
    steps: tuple[Step, ...]
    service: str
    outcome: str

    def lines(self) -> Iterator[str]:
        """For people: a heading, a line for each step, and the outcome."""
        yield f"packet {self.number}: {self.packet}, {self.arrived}"
        for step in self.steps:
            place = f"{step.table} {step.chain}" + (f" #{step.handle}" if step.handle is not None else "")
            yield f"  {place}: {step.said}"
            yield from (f"      by {element}" for element in step.elements)
        yield f"  => {self.outcome}"

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "number": self.number,
            "packet": self.packet,
            "arrived": self.arrived,
            "service": self.service,
            "outcome": self.outcome,
            "steps": [
                {
                    "table": step.table,
                    "chain": step.chain,
                    "handle": step.handle,
                    "verdict": step.verdict,
                    "ours": step.ours,
                    "said": step.said,
                    "elements": list(step.elements),
                }
                for step in self.steps
            ],
        }


def tell(packet: Packet, known: rules.Rules, *, name_of: Callable[[int], str]) -> Story:
    """The story of a packet whose events are all there. `name_of` turns an interface's index into its name."""
    steps: list[Step] = []
    service = ""
    now = packet.headers
    for index, event in enumerate(packet.events):
        now = event.headers or now
        if event.table == arming.TABLE:
            continue
        found = known.by_place.get(rules.Place(event.family, event.table, event.chain, event.handle or 0))
        table = _table(event, known.tables)
        if event.of_a_rule and found and found.rule is not None and table is not None and now is not None:
            service = service or words.owner_of(found.rule, table, now)
            steps.append(_own_step(event, found.rule, table, now, _sent_to(packet.events[index:], now)))
        elif event.of_a_rule or event.verdict not in (Verdict.ACCEPT, Verdict.CONTINUE):
            steps.append(_foreign_step(event, found))
    first = packet.headers
    arrived = "from this host" if packet.armed_in == "output" else "in"
    link = next((name_of(event.input_link) for event in packet.events if event.input_link), "")
    if packet.armed_in != "output" and link:
        arrived += f" by {link}"
    return Story(
        packet.number, str(first) if first else "?", arrived, tuple(steps), service, _outcome(packet, steps, known)
    )


def _table(event: Event, tables: Mapping[addresses.Family, ruleset.Table]) -> ruleset.Table | None:
    family = rules.FAMILY.get(event.family)
    return tables.get(family) if family and event.table == ruleset.TABLE_NAME else None


def _sent_to(rest: Sequence[Event], now: Headers) -> bytes | None:
    """The endpoint key of the packet's next destination; None if it keeps its own."""
    for event in rest[1:]:
        if event.headers is not None:
            changed = (event.headers.destination, event.headers.destination_port) != (
                now.destination,
                now.destination_port,
            )
            return words.endpoint_of(event.headers) if changed else None
    return None


def _own_step(event: Event, rule: ruleset.Rule, table: ruleset.Table, now: Headers, endpoint: bytes | None) -> Step:
    said = words.of_rule(rule)
    owner = words.owner_of(rule, table, now)
    if owner:
        said = f"it is for {owner}, goes to chain {event.target or 'of its shape'}"
    elif event.target and event.target not in said:
        said += f" ({event.target})"
    if endpoint is not None and any(isinstance(statement, ruleset.Dnat) for statement in rule):
        said = f"sends it to {addresses.format_endpoint(endpoint)}"
    elements = tuple(words.elements_of(rule, table, now, endpoint))
    name = f"{event.family} {event.table}"
    return Step(name, event.chain, event.handle, event.verdict.value, said, elements, ours=True)


def _foreign_step(event: Event, found: rules.Known | None) -> Step:
    if event.kind is Kind.POLICY:
        said = f"the policy {_AFTER_GENERAL.get(event.verdict, event.verdict.value)}"
    elif event.verdict in (Verdict.JUMP, Verdict.GOTO):
        said = f"{event.verdict.value} {event.target}"
    else:
        said = _AFTER_GENERAL.get(event.verdict, event.verdict.value)
    if event.of_a_rule and found is None:
        said += " (a rule that is gone by now)"
    elif found is not None and found.comment:
        said += f" ({found.comment})"
    handle = None if event.kind is Kind.POLICY else event.handle
    return Step(f"{event.family} {event.table}", event.chain, handle, event.verdict.value, said)


def _outcome(packet: Packet, steps: Sequence[Step], known: rules.Rules) -> str:
    """What became of it, as far as the rules go."""
    last = packet.events[-1]
    first, final = packet.headers, packet.latest
    dropped = next((event for event in packet.events if event.verdict is Verdict.DROP), None)
    if dropped is not None:
        return _refusal(dropped, known)
    if last.verdict in (Verdict.STOLEN, Verdict.QUEUE):
        return f"{last.verdict.value} by {last.family} {last.table}, chain {last.chain}"
    ours = [step for step in steps if step.ours]
    masqueraded = any("this host's address as source" in step.said for step in ours)
    suffix = ", with this host's address as source" if masqueraded else ""
    sent = next((step.said for step in ours if step.said.startswith("sends it to ")), "")
    if first and final and (first.destination, first.destination_port) != (final.destination, final.destination_port):
        return f"sent to {addresses.format_socket(final.destination, final.destination_port or 0)}{suffix}"
    if sent:
        return f"sent to {sent.removeprefix('sends it to ')}{suffix}"
    if not ours:
        return (
            "no rule of ours held for it: it is part of a connection that is known already, or no Service has this "
            "address and port"
        )
    return f"left to its destination: no Service has this address and port{suffix}"


def _refusal(event: Event, known: rules.Rules) -> str:
    found = known.by_place.get(rules.Place(event.family, event.table, event.chain, event.handle or 0))
    for statement in (found.rule or ()) if found else ():
        if isinstance(statement, ruleset.Reject):
            return "refused with a TCP reset" if statement.tcp_reset else "refused with ICMP port unreachable"
    where = f"{event.family} {event.table}, chain {event.chain}"
    if event.kind is Kind.POLICY:
        return f"dropped by the policy of {where}"
    ours = event.table == ruleset.TABLE_NAME
    return f"dropped by {'our' if ours else 'a'} rule in {where}" + ("" if ours else f" (handle {event.handle})")
