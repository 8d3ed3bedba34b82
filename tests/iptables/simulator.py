"""Follows the first packet of a connection through rules as text, and tells what may become of it and how probably.

It knows exactly the matches and targets that netagent writes, and refuses all others, so that a rule that it let pass
is one that it understood. No kernel needed.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

from netagent.iptables import ruleset
from netagent.model import addresses
from netagent.nftables import walk

Packet = walk.Packet
Host = walk.Host
Fate = walk.Fate
Result = walk.Result

# name of a recent list -> client -> second of its last packet
Records = Mapping[str, Mapping[bytes, float]]
UNITS = 1 << 31


class Rule(NamedTuple):
    """A rule in its parts. `odds` is that of a statistic match, `recall` and `record` are the recent ones."""

    tests: tuple[Callable[[_State], bool], ...]
    odds: Fraction | None
    recall: tuple[str, float] | None
    record: str
    target: str
    arguments: tuple[str, ...]
    goto: bool


class Outcome(NamedTuple):
    """How probable, what, how many rules were met on the way (matched or not), and the lists written to."""

    probability: Fraction
    result: Result
    rules_met: int
    recorded: tuple[str, ...] = ()
    recalled: bool = False


@dataclass(frozen=True, slots=True)
class _State:
    packet: Packet
    host: Host
    translated: bool = False
    masquerade: bool = False
    endpoint: bytes | None = None
    met: int = 0
    probability: Fraction = Fraction(1)
    recorded: tuple[str, ...] = ()
    recalled: bool = False


class _Verdict(enum.Enum):
    ACCEPT = enum.auto()
    DROP = enum.auto()
    RESET = enum.auto()
    UNREACHABLE = enum.auto()
    THROUGH = enum.auto()  # the end of the built-in chain


_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


@functools.cache
def parse(rule: str) -> Rule:
    """Read a rule. ValueError at anything that netagent does not write."""
    words = shlex.split(rule)
    tests: list[Callable[[_State], bool]] = []
    odds: Fraction | None = None
    recall: tuple[str, float] | None = None
    record = ""
    update = False
    seconds = 0.0
    negate = False
    while words:
        word = words.pop(0)
        if word == "!":
            negate = True
            continue
        test: Callable[[_State], bool] | None = None
        match word:
            case "-s" | "-d":
                net = ipaddress.ip_network(words.pop(0))
                low, high = net.network_address.packed, net.broadcast_address.packed
                side = "source" if word == "-s" else "destination"
                test = functools.partial(_in_network, side=side, low=low, high=high)
            case "-p":
                test = functools.partial(_has_protocol, number=_PROTOCOLS[words.pop(0)])
            case "-i":
                test = functools.partial(_came_in, name=words.pop(0))
            case "-m":
                name = words.pop(0)
                if name not in (
                    "tcp",
                    "udp",
                    "sctp",
                    "comment",
                    "addrtype",
                    "mark",
                    "conntrack",
                    "recent",
                    "statistic",
                ):
                    raise ValueError(f"match {name} in {rule!r}")
                continue
            case "--comment":
                if len(words.pop(0)) > 255:
                    raise ValueError(f"comment of {rule!r}")
                continue
            case "--dport":
                first, _, last = words.pop(0).partition(":")
                test = functools.partial(_to_port, first=int(first), last=int(last or first))
            case "--dst-type" | "--src-type":
                assert words.pop(0) == "LOCAL"
                test = functools.partial(_is_local, side="destination" if word == "--dst-type" else "source")
            case "--mark":
                value, _, mask = words.pop(0).partition("/")
                test = functools.partial(_has_mark, value=int(value, 0), mask=int(mask, 0))
            case "--ctstate":
                test = functools.partial(_in_state, states=frozenset(words.pop(0).split(",")))
            case "--mode":
                assert words.pop(0) == "random"
                continue
            case "--probability":
                odds = Fraction(round(Fraction(words.pop(0)) * UNITS), UNITS)
                continue
            case "--update" | "--set" | "--reap" | "--rsource":
                update = update or word == "--update"
                continue
            case "--seconds":
                seconds = float(words.pop(0))
                continue
            case "--name":
                record = words.pop(0)
                continue
            case "--mask":
                assert len(set(ipaddress.ip_address(words.pop(0)).packed)) == 1
                continue
            case "-j" | "-g":
                if update:
                    recall = record, seconds
                return Rule(tuple(tests), odds, recall, record, words[0], tuple(words[1:]), word == "-g")
            case _:
                raise ValueError(f"{word} in {rule!r}")
        tests.append(functools.partial(_negated, test=test) if negate else test)
        negate = False
    raise ValueError(f"no target in {rule!r}")


def _negated(state: _State, test: Callable[[_State], bool]) -> bool:
    return not test(state)


def _in_network(state: _State, side: str, low: bytes, high: bytes) -> bool:
    address: bytes = getattr(state.packet, side)
    assert len(address) == len(low)
    return low <= address <= high


def _has_protocol(state: _State, number: int) -> bool:
    return state.packet.protocol == number


def _came_in(state: _State, name: str) -> bool:
    interface = state.packet.input_interface
    return interface.startswith(name[:-1]) if name.endswith("+") else interface == name


def _to_port(state: _State, first: int, last: int) -> bool:
    assert state.packet.destination_port is not None
    return first <= state.packet.destination_port <= last


def _is_local(state: _State, side: str) -> bool:
    return state.host.is_local(getattr(state.packet, side))


def _has_mark(state: _State, value: int, mask: int) -> bool:
    return state.packet.mark & mask == value


def _in_state(state: _State, states: frozenset[str]) -> bool:
    assert states <= {"NEW", "DNAT", "INVALID", "RELATED", "ESTABLISHED"}
    return "NEW" in states or ("DNAT" in states and state.translated)


@dataclass(slots=True)
class Simulator:
    """Rules of one family, by table and chain. `at` is the time for the records. Threading: none."""

    made: ruleset.Ruleset
    records: Records = field(default_factory=dict)
    at: float = 0.0

    def outcomes(self, packet: Packet, host: Host) -> list[Outcome]:
        """All that may become of the packet. The probabilities add up to one."""
        found = [
            Outcome(state.probability, _result(state, verdict), state.met, state.recorded, state.recalled)
            for state, verdict in self._travel(_State(packet, host))
        ]
        assert sum(outcome.probability for outcome in found) == 1
        return found

    def _travel(self, state: _State) -> Iterator[tuple[_State, _Verdict]]:
        if state.packet.input_interface:
            for at_filter in self._hook(state, "nat", "PREROUTING"):
                point = "INPUT" if state.host.is_local(at_filter[0].packet.destination) else "FORWARD"
                for passed, verdict in self._hook(at_filter[0], "filter", point):
                    if verdict not in (_Verdict.ACCEPT, _Verdict.THROUGH) or point == "INPUT":
                        yield passed, verdict
                    else:
                        yield from self._hook(passed, "nat", "POSTROUTING")
            return
        for translated, _ in self._hook(state, "nat", "OUTPUT"):
            for passed, verdict in self._hook(translated, "filter", "OUTPUT"):
                if verdict not in (_Verdict.ACCEPT, _Verdict.THROUGH):
                    yield passed, verdict
                    continue
                for left, _ in self._hook(passed, "nat", "POSTROUTING"):
                    if state.host.is_local(left.packet.destination):
                        looped = replace(left, packet=replace(left.packet, input_interface="lo"))
                        yield from self._hook(looped, "filter", "INPUT")
                    else:
                        yield left, _Verdict.THROUGH

    def _hook(self, state: _State, table: str, point: str) -> Iterator[tuple[_State, _Verdict]]:
        rules = tuple(jump.rule for jump in self.made.jumps if (jump.table, jump.chain) == (table, point))
        yield from self._rules(state, table, ((rules, 0),))

    def _rules(
        self, state: _State, table: str, frames: tuple[tuple[ruleset.Rules, int], ...]
    ) -> Iterator[tuple[_State, _Verdict]]:
        """Play from the last frame on: rules and the index of the next one."""
        while frames:
            rules, index = frames[-1]
            if index == len(rules):
                frames = frames[:-1]
                continue
            frames = (*frames[:-1], (rules, index + 1))
            state = replace(state, met=state.met + 1)
            rule = parse(rules[index])
            if not all(test(state) for test in rule.tests):
                continue
            if rule.odds is not None:
                missed = replace(state, probability=state.probability * (1 - rule.odds))
                yield from self._rules(missed, table, frames)
                state = replace(state, probability=state.probability * rule.odds)
            if rule.recall:
                name, seconds = rule.recall
                last = self.records.get(name, {}).get(state.packet.source)
                if last is None or self.at - last > seconds:
                    continue
                state = replace(state, recalled=True)
            if rule.record:
                state = replace(state, recorded=(*state.recorded, rule.record))
            done = self._target(state, rule)
            if isinstance(done, tuple):
                yield done
                return
            if done is not None:
                state = done
            elif rule.target == "RETURN":
                frames = frames[:-1]
            else:
                chain = self.made.chains[ruleset.ChainName(table, rule.target)]
                frames = (*(frames[:-1] if rule.goto else frames), (chain, 0))
        yield state, _Verdict.THROUGH

    def _target(self, state: _State, rule: Rule) -> tuple[_State, _Verdict] | _State | None:
        """The end of the hook, a state to go on with, or None: another chain, or back."""
        match rule.target, rule.arguments:
            case "ACCEPT", ():
                return state, _Verdict.ACCEPT
            case "DROP", ():
                return state, _Verdict.DROP
            case "REJECT", ("--reject-with", how):
                version = "icmp6-port-unreachable" if len(state.packet.source) == 16 else "icmp-port-unreachable"
                assert how in ("tcp-reset", version)
                return state, _Verdict.RESET if how == "tcp-reset" else _Verdict.UNREACHABLE
            case "MARK", ("--set-xmark", marking):
                value, mask = (int(part, 0) for part in marking.split("/"))
                mark = state.packet.mark & ~mask ^ value
                return replace(state, packet=replace(state.packet, mark=mark))
            case "MASQUERADE", ("--random-fully",):
                return replace(state, masquerade=True), _Verdict.ACCEPT
            case "DNAT", ("--to-destination", where):
                assert any(test.func is _has_protocol for test in rule.tests if isinstance(test, functools.partial))
                address, _, port = where.rpartition(":")
                packed = addresses.parse_address(address.strip("[]"))
                packet = replace(state.packet, destination=packed, destination_port=int(port))
                endpoint = addresses.endpoint_key(packed, int(port))
                return replace(state, packet=packet, endpoint=endpoint, translated=True), _Verdict.ACCEPT
            case _, ():
                return None
        raise ValueError(f"target {rule.target} {rule.arguments}")


def _result(state: _State, verdict: _Verdict) -> Result:
    mark = state.packet.mark
    refusals = {
        _Verdict.DROP: Fate.DROPPED,
        _Verdict.RESET: Fate.RESET,
        _Verdict.UNREACHABLE: Fate.UNREACHABLE,
    }
    if verdict in refusals:
        return Result(refusals[verdict], mark=mark)
    fate = Fate.UNTOUCHED if state.endpoint is None else Fate.ENDPOINT
    return Result(fate, state.endpoint, state.masquerade, mark)
