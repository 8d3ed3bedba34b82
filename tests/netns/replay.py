"""A behaviour case, replayed with real packets against a data plane.

    report = replay.replay(case, planes.Command.factory(["netagent", "sync", "-f", "{manifests}", ...]))

The case's schema: `node`, `config`, and `steps` with `delete`, `apply`, `flows`, `conntrack_*`, `action`; a flow says
who dials what (`from`, `src`, `proto`, `dst`, `dport`, ...) and what it expects (`endpoints`, `reject`, `drop`,
`passthrough`, `alive`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import clients as dialling
from . import flowtable, planes, servers, support, universe, verdicts
from . import layout as layouts
from .clients import Fate, Outcome
from .support import Unsupported, unsupported

__all__ = ["Pace", "Report", "Unsupported", "replay", "unsupported"]

# Flow keys that make the order of a step's flows matter.
ORDERED = {"remember", "same_as", "sticky", "sticky_per_source", "stream", "hold", "reuse", "interval_s", "keep_busy_s"}
FOREIGN_TABLE = "somebody_else"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long to wait, in seconds, and how much to do at once.

    `silence`: without an answer this long, an attempt expected to be dropped was. `answer`: an answer that is expected
    may take this long on a busy machine. `settle`: what the agent does after a sync (conntrack) may take this long.
    `punctual`: who dials once in a second, or at another interval, may be late by this part of it; then the case is
    about something else than what was tried, and it is tried again, so often at most.
    """

    silence: float = 0.4
    answer: float = 30.0
    settle: float = 30.0
    punctual: float = 0.9
    tries: int = 10
    flows_at_once: int = 48


@dataclasses.dataclass(slots=True)
class Report:
    """What a replay did: attempts made, seconds in all, to build the node, and in the data plane's `apply`."""

    flows: int = 0
    attempts: int = 0
    seconds: float = 0.0
    build_seconds: float = 0.0
    apply_seconds: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)


def replay(
    case: layouts.Case,
    factory: planes.Factory,
    *,
    mode: str = "nftables",
    defaults: dict[str, Any] | None = None,
    slow: bool = False,
    packets_only: bool = False,
    pace: Pace | None = None,
) -> Report:
    """Replay a case from its first step to its last and return what was done.

    Settings are `defaults`, overridden by the case's `config`. With `packets_only`, checks of health servers, metrics
    and the like are passed over instead of making the case unsupported. AssertionError lists everything that was not as
    expected, Unsupported tells why the case cannot be replayed here. Nothing is left behind.
    """
    reason = unsupported(case, mode=mode, slow=slow, packets_only=packets_only)
    if reason:
        raise Unsupported(reason)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        space = stack.enter_context(universe.Universe(layouts.of_case(case)))
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netagent-replay-")))
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        runner = _Replay(case, space, loop, mode=mode, pace=pace or Pace())
        stack.callback(runner.close)
        runner.report.build_seconds = time.monotonic() - begin
        config = {**(defaults or {}), **(case.get("config") or {})}
        runner.prepare(factory, files, config)
        for number, step in enumerate(case["steps"], 1):
            try:
                runner.step(number, step)
            except Exception as error:
                where = f"case {case['id']} step {number}"
                error.add_note("\n  ".join([f"{where}; failures until then: {len(runner.failures)}", *runner.failures]))
                raise
        runner.report.seconds = time.monotonic() - begin
    if runner.failures:
        head = f"case {case['id']} ({case.get('title', '')}): {len(runner.failures)} failures"
        raise AssertionError("\n  ".join([head, *runner.failures]))
    return runner.report


class _Problems(NamedTuple):
    """What is wrong with a flow: `texts` for certain, `uneven` unless it is chance."""

    texts: list[str]
    uneven: list[str]


class _Replay:
    """One case on its way through its steps.

    Owns: the servers, the clients, the data plane. `failures` grows with every check. Threading: one thread; the
    event loop runs only while packets are under way.
    """

    def __init__(
        self,
        case: layouts.Case,
        space: universe.Universe,
        loop: asyncio.AbstractEventLoop,
        *,
        mode: str,
        pace: Pace,
    ) -> None:
        self.case, self.space, self.loop, self.mode, self.pace = case, space, loop, mode, pace
        self.report = Report()
        self.failures: list[str] = []
        self.servers = servers.Servers(space, loop)
        self.clients = dialling.Clients(space, self.servers, loop)
        self._plane: planes.DataPlane | None = None
        self._objects: dict[str, planes.Manifest] = {}
        self._remembered: dict[str, tuple[str, int]] = {}
        self._silent_connections = False
        self._stopped = False
        self._occupied: dict[tuple[str, int], socket.socket] = {}

    def prepare(self, factory: planes.Factory, files: Path, config: dict[str, Any]) -> None:
        """Open all listeners, write the configuration and make the data plane. Unsupported if it cannot do the case."""
        layout = self.space.layout
        for family in layout.families:
            for place in (layouts.Place.PODS, layouts.Place.WORLD):
                self.report.notes += self.servers.listen(place, family, layout.ports)
            self.report.notes += self.servers.listen(layouts.Place.NODE, family, layout.node_ports)
        self._config = config
        self._manifests = files / "manifests"
        self._manifests.mkdir()
        config_file = files / "config.json"
        config_file.write_text(planes.dumps(planes.kube_proxy_configuration(config, self.mode)))
        site = planes.Site(
            node=self.space.n1,
            node_name=self.case["node"]["name"],
            mode=self.mode,
            manifests=self._manifests,
            config_file=config_file,
        )
        self._plane = factory(site)
        reason = unsupported(self.case, mode=self.mode, slow=True, packets_only=True, plane=self._plane)
        if reason:
            raise Unsupported(reason)

    def close(self) -> None:
        """End everything that was started for the case."""
        if self._plane is not None:
            self._plane.close()
        self.clients.close()
        self.servers.close()
        for made in self._occupied.values():
            made.close()

    def step(self, number: int, step: dict[str, Any]) -> None:
        """Bring objects and data plane to this step and check everything that the step asks for."""
        assert self._plane is not None
        where = f"step {number}"
        actions = support.actions_of(step)
        for action in actions:
            if action.get("before_apply"):
                self._act(action, where)
        seeds = {seed["id"]: flowtable.entry_of(seed) for seed in step.get("conntrack_seed") or ()}
        for entry in seeds.values():
            flowtable.plant(self.space.n1, entry)
        self._change_objects(step)
        for action in actions:
            if action.get("then"):
                self._act({"type": action["then"]}, where)
        for action in actions:
            if not action.get("before_apply"):
                self._act(action, where, step)
        if not self._stopped:
            begin = time.monotonic()
            self._plane.apply(number, list(self._objects.values()), self._config)
            self.report.apply_seconds += time.monotonic() - begin
        self.loop.run_until_complete(self._check_flows(where, step.get("flows") or ()))
        if seeds:
            self._check_conntrack(where, step, seeds)

    def _change_objects(self, step: dict[str, Any]) -> None:
        for gone in step.get("delete") or ():
            if self._objects.pop(planes.file_name(gone), None) is not None:
                planes.remove_object(self._manifests, gone)
        for manifest in step.get("apply") or ():
            self._objects[planes.file_name(manifest)] = manifest
            planes.write_object(self._manifests, manifest)

    def _act(self, action: dict[str, Any], where: str, step: dict[str, Any] | None = None) -> None:
        node = self.space.n1
        match action["type"]:
            case "sleep":
                time.sleep(float(action.get("seconds", 1)))
            case "flush-ruleset":
                node.run(["nft", "flush", "ruleset"])
            case "add-foreign-rules":
                node.run(["nft", "-f", "-"], stdin=_FOREIGN_RULES)
            case "occupy-port":
                self._occupy(action["addr"], int(action["port"]))
            case "release-port":
                self._occupied.pop((layouts.canonical(action["addr"]), int(action["port"]))).close()
            case "restart-agent" if action.get("probe_during"):
                self.loop.run_until_complete(self._probe_during(action, where, step or {}))
            case kind:
                getattr(self._plane, support.ACTIONS[kind])()
                self._stopped = kind in ("stop-agent", "cleanup")
        if "foreign rules present" in str(action.get("assert", "")):
            listed = node.run(["nft", "list", "tables"]).stdout
            if FOREIGN_TABLE not in listed:
                self.failures.append(f"{where}: after {action['type']} the foreign table is gone")

    def _occupy(self, address: str, port: int) -> None:
        family = servers.FAMILIES[6 if ":" in address else 4]
        made = self.space.n1.socket(family, socket.SOCK_STREAM)
        self._occupied[layouts.canonical(address), port] = made
        made.bind((address, port))
        made.listen()

    async def _probe_during(self, action: dict[str, Any], where: str, step: dict[str, Any]) -> None:
        """Dial the step's plain flows over and over while the agent restarts."""
        restart = getattr(self._plane, support.ACTIONS[action["type"]])
        under_way = self.loop.run_in_executor(None, restart)
        flows = [flow for flow in step.get("flows") or () if not ORDERED & flow.keys()]
        if "probe_during_expect" in action:
            wanted = action["probe_during_expect"]
            expect = wanted if isinstance(wanted, dict) else {"result": wanted}
            flows = [{**flow, "expect": expect, "expect_by_mode": {}} for flow in flows]
        while not under_way.done():
            await self._check_flows(f"{where} during {action['type']}", flows)
            await asyncio.sleep(0.01)
        await under_way

    async def _check_flows(self, where: str, flows: Sequence[layouts.Flow]) -> None:
        """Try the flows, together where their order cannot matter, and record what is wrong with them."""
        at_once = 1 if any(ORDERED & flow.keys() for flow in flows) else self.pace.flows_at_once
        gate = asyncio.Semaphore(at_once)

        async def guarded(flow: layouts.Flow) -> list[str]:
            async with gate:
                return await self._problems_of(flow)

        found = await asyncio.gather(*(guarded(flow) for flow in flows))
        for number, (flow, problems) in enumerate(zip(flows, found, strict=True), 1):
            expect = verdicts.expectation(flow, self.mode)
            head = f"{where} flow {number}: {verdicts.describe(flow)} expected {verdicts.describe_expectation(expect)}"
            self.failures += [f"{head}, got {problem}" for problem in problems]
        if self._silent_connections:
            half_open = self.servers.half_open()
            self.failures += [f"{where}: arrived, but its answer never did: tcp {text}" for text in half_open]
            self._silent_connections = False

    async def _problems_of(self, flow: layouts.Flow) -> list[str]:
        """Make all attempts of a flow; return what was wrong, equal problems counted once.

        Shares that are too small, as they are by chance once in a million times or less, count if a sample of twice
        the size has them, too.
        """
        expect = verdicts.expectation(flow, self.mode)
        self.report.flows += 1
        problems = await self._tried(flow, expect, await self._attempts(flow, expect))
        if not problems.uneven:
            return problems.texts
        larger = {**flow, "count": 2 * int(flow.get("count", 1))}
        again = await self._tried(larger, expect, await self._attempts(larger, expect))
        self.report.notes.append(f"{verdicts.describe(flow)}: {problems.uneven}; and again: {again.uneven}")
        return [*problems.texts, *again.texts, *again.uneven]

    async def _tried(
        self, flow: layouts.Flow, expect: dict[str, Any], attempts: Sequence[tuple[str, Outcome]]
    ) -> _Problems:
        """What is wrong with these attempts."""
        self.report.attempts += len(attempts)
        problems: dict[str, int] = {}
        for source, outcome in attempts:
            self._silent_connections |= outcome.fate is Fate.SILENT and flow["proto"] == "tcp"
            problem = verdicts.wrong(flow, expect, outcome, self.space.layout, source=source)
            problem = problem or self._unlike_before(flow, expect, outcome)
            if problem:
                problems[problem] = problems.get(problem, 0) + 1
        texts = [
            f"{text} ({count} of {len(attempts)} times)" if len(attempts) > 1 else text
            for text, count in problems.items()
        ]
        outcomes = [outcome for _, outcome in attempts]
        together = verdicts.wrong_together(flow, outcomes, [source for source, _ in attempts])
        return _Problems(texts + together, verdicts.uneven(flow, expect, outcomes))

    def _unlike_before(self, flow: layouts.Flow, expect: dict[str, Any], outcome: Outcome) -> str:
        """What is wrong with the endpoint reached, given those that earlier flows reached; takes note of it."""
        if outcome.arrival is None:
            return ""
        reached = outcome.arrival.local
        stream, held = f"stream {flow.get('stream')}", f"hold {flow.get('hold') or flow.get('reuse')}"
        earlier: dict[str, tuple[str, int] | None] = {}
        if "same_as" in flow:
            earlier[f"the flow {flow['same_as']!r}"] = self._remembered.get(flow["same_as"])
        if expect.get("unchanged"):
            earlier["the stream before"] = self._remembered.get(stream)
        if "reuse" in flow:
            earlier["the connection before"] = self._remembered.get(held)
        for key, name in (("remember", flow.get("remember")), ("stream", stream), ("hold", held)):
            if key in flow and name:
                self._remembered[name] = reached
        for what, endpoint in earlier.items():
            if endpoint is None:
                return f"{outcome}, but {what} reached nothing to compare with"
            if endpoint != reached:
                return f"{outcome}, but {what} reached {layouts.join_socket(*endpoint)}"
        return ""

    async def _attempts(self, flow: layouts.Flow, expect: dict[str, Any]) -> list[tuple[str, Outcome]]:
        """All attempts of a flow in order, each with the client's address."""
        count = int(flow.get("count", 1))
        pause = float(flow.get("interval_s", 0))
        sources = layouts.client_addresses(flow)
        in_turn = itertools.islice(itertools.cycle(sources), max(count, len(sources)))
        dials = [self._dial(flow, expect, source) for source in in_turn]
        if "reuse" in flow:
            return [(dials[0].source, await self._reuse(flow))]
        if flow.get("concurrent"):
            outcomes = await asyncio.gather(*(self._attempt(flow, dial) for dial in dials))
            return [(dial.source, outcome) for dial, outcome in zip(dials, outcomes, strict=True)]
        for _ in range(self.pace.tries):
            attempts, late, before = [], 0.0, self.loop.time()
            for number, dial in enumerate(dials):
                if number and pause:
                    await asyncio.sleep(pause)
                began = self.loop.time()
                attempts.append((dial.source, await self._attempt(flow, dial)))
                late = max(late, self.loop.time() - before - pause)
                before = began
            if not (pause and flow.get("sticky")) or late < pause * self.pace.punctual:
                return attempts
        raise Unsupported(f"this machine is too busy to dial every {pause:g} s: one was late by {late:.1f} s")

    async def _attempt(self, flow: layouts.Flow, dial: dialling.Dial) -> Outcome:
        try:
            if "hold" in flow:
                return await self.clients.hold(flow["hold"], dial)
            if "stream" in flow:
                return await self.clients.stream(f"{flow['stream']} {dial.source}", dial)
            return await self.clients.dial(dial)
        except OSError as error:  # the socket could not even be bound
            return Outcome(Fate.FAILED, (dial.source, dial.source_port), detail=f"cannot dial: {error}")

    async def _reuse(self, flow: layouts.Flow) -> Outcome:
        """Use a held connection, for `keep_busy_s` seconds if that is asked; the last answer, or the first failure."""
        until = self.loop.time() + float(flow.get("keep_busy_s", 0))
        while True:
            outcome = await self.clients.ask(flow["reuse"], self.pace.answer)
            if outcome.fate is not Fate.DELIVERED or self.loop.time() >= until:
                return outcome
            await asyncio.sleep(0.1)

    def _dial(self, flow: layouts.Flow, expect: dict[str, Any], source: str) -> dialling.Dial:
        return dialling.Dial(
            place=layouts.client_place(flow),
            source=source,
            destination=layouts.canonical(flow["dst"]),
            port=layouts.port_of(flow),
            protocol=flow["proto"],
            source_port=int(flow.get("sport") or 0),
            mark=int(flow.get("mark") or 0),
            patience=verdicts.patience(expect, silence=self.pace.silence, answer=self.pace.answer),
        )

    def _check_conntrack(self, where: str, step: dict[str, Any], seeds: dict[str, flowtable.Entry]) -> None:
        """The entries that must go have gone within the settling time, and the others are still there then."""
        gone = {seeds[name] for name in step.get("conntrack_deleted") or ()}
        until = time.monotonic() + self.pace.settle
        while (present := flowtable.entries(self.space.n1)) & gone and time.monotonic() < until:
            time.sleep(0.05)
        for name, entry in seeds.items():
            if entry in gone and entry in present:
                self.failures.append(f"{where}: conntrack entry {name!r} is still there: {entry}")
            elif name in (step.get("conntrack_kept") or ()) and entry not in present:
                self.failures.append(f"{where}: conntrack entry {name!r} is gone: {entry}")


_FOREIGN_RULES = f"""
table inet {FOREIGN_TABLE} {{
  set addresses {{ type ipv4_addr; elements = {{ 192.0.2.254 }} }}
  chain forward {{ type filter hook forward priority filter; policy accept; ip saddr @addresses drop; }}
}}
"""
