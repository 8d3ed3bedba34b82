"""Replays behaviour cases without a kernel: manifests are decoded, planned, lowered and committed to a mirror of the
kernel step by step, as one agent does it, and the walker tells what becomes of each connection.

Beyond what a harness with real packets can see, the probability of every endpoint is required to be exactly equal.
What depends on a connection that exists already is not checked, but counted by reason.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from netagent import settings as settings_module
from netagent.model import addresses, objects
from netagent.nftables import diff, layout, readback, ruleset, tables, text, transaction, walk
from netagent.plan import forwarding, node, services
from netagent.source import decode
from netagent.source.faults import BadObject
from netagent.source.kinds import Kind, key_for
from netagent.source.store import Store

Case = Mapping[str, Any]
Flow = Mapping[str, Any]

HELD = "the connection exists already (reuse)"
STREAM = "the UDP flow exists already (stream)"
REASONS = frozenset({HELD, STREAM})

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_ICMP = {addresses.Family.IPV4: 1, addresses.Family.IPV6: 58}
# These say the same whoever built the table; in the others there are as many, but an endpoint's place depends on
# what was there before.
_WITHOUT_HISTORY = (layout.FRONTENDS, layout.NODEPORTS, layout.CLUSTER_IPS, layout.HAIRPIN, layout.SOURCE_RANGES)


@dataclass(slots=True)
class Report:
    """What a replay found: number of flows checked, those left out by reason, and what was not as expected."""

    checked: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)


def replay(case: Case, defaults: Mapping[str, Any]) -> Report:
    """Play a case from its first step to its last. `defaults` are the settings that `config` changes."""
    return _Replay(case, {**defaults, **case["config"]}).play()


class _Node:
    """The node under test: an agent whose kernel is a mirror, and the records that packets wrote there.

    Use: feed `store`, then `sync`. `audit` tells what is wrong with the result. Threading: none.
    """

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.settings = _settings(config)
        self.name = settings_module.node_name_of(self.settings, None, name)
        self.store = Store(self.name)
        self.kernel = {family: readback.ActualTable(family) for family in addresses.Family}
        # Value and time of death.
        self.records: dict[addresses.Family, dict[bytes, tuple[bytes, float]]] = {
            family: {} for family in addresses.Family
        }
        self.start()

    def start(self) -> None:
        """A new process: it knows what the API tells and what the kernel holds."""
        self.tables = tables.Tables(affinity_clients=self.settings.affinity_clients)
        self._forwarding = forwarding.Forwarding()
        self._rules: list[node.NodeRules] = []
        self._last_node: objects.Node | None = None
        self.store.mark_dirty(everything=True)

    def flush(self) -> None:
        """Somebody deletes all tables, and the agent notices."""
        self._commit([transaction.DeleteTable(family) for family in addresses.Family])
        self.tables.unsettled()

    def cleanup(self) -> None:
        """The agent's own tables are deleted, and it is not there any more."""
        self.tables.set_rules(())
        self._commit([transaction.DeleteTable(family) for family in addresses.Family])

    def sync(self) -> None:
        """Plan what is dirty, and commit what changes."""
        dirty = self.store.take_dirty()
        # The Node says where this node is; that it is deleted says nothing new.
        self._last_node = self.store.node or self._last_node
        families = [addresses.Family(family) for family in self.settings.families]
        context = node.node_context_of(self.settings, self._last_node, name=self.name)
        cidrs = list(self.store.service_cidrs.values())
        rules = [node.node_rules_of(self.settings, context, self._last_node, cidrs, family) for family in families]
        if rules != self._rules:
            self._rules = rules
            self.tables.set_rules(rules, {family: actual.elements for family, actual in self.kernel.items()})
        names = set(dirty.services)
        if dirty.everything:
            names |= self.store.services.keys() | self._forwarding.owners()
        for name in sorted(names):
            service = self.store.services.get(name)
            found = services.frontends_of(service, self.store.slices_of(name), context, families) if service else ()
            changed = self._forwarding.update(name, found)
            self.tables.update(sorted(changed, key=str), self._forwarding.frontends)
        for lowered in self.tables.lowered.values():
            pending = diff.operations(lowered.table, self.kernel[lowered.table.family], lowered.touched)
            self._commit(pending.operations)
        self.tables.settled()

    def audit(self) -> Iterator[str]:
        """What differs between mirror and desired, and between desired and a table made from nothing."""
        fresh = tables.Tables(affinity_clients=self.settings.affinity_clients)
        fresh.set_rules(self._rules)
        fresh.update(self._forwarding.frontends, self._forwarding.frontends)
        for family, lowered in self.tables.lowered.items():
            for operation in diff.operations(lowered.table, self.kernel[family]).operations:
                yield from (f"left out of the commit: {line}" for line in text.operation_lines(operation))
            rebuilt = fresh.lowered[family].table
            if lowered.table.chains != rebuilt.chains:
                yield "the chains differ from those of a table made from nothing"
            for name, elements in lowered.table.elements.items():
                same = elements == rebuilt.elements[name] if name in _WITHOUT_HISTORY else True
                if not same or len(elements) != len(rebuilt.elements[name]):
                    yield f"the elements of {name} differ from those of a table made from nothing"

    def table(self, family: addresses.Family) -> ruleset.Table:
        """What the kernel has: our chains, its elements. Empty where there is no table."""
        lowered = self.tables.lowered.get(family)
        if lowered is None:
            return ruleset.Table(family, {}, {}, {})
        table = lowered.table
        return ruleset.Table(family, table.sets, table.chains, self.kernel[family].elements)

    def _commit(self, operations: Iterable[transaction.Operation]) -> None:
        for operation in operations:
            diff.applied(self.kernel[operation.family], operation)
            if isinstance(operation, transaction.DeleteTable):
                self.records[operation.family].clear()


def _settings(config: Mapping[str, Any]) -> settings_module.Settings:
    """The settings of a case, by way of the file that an operator would write."""
    of_mode = ("masqueradeAll", "masqueradeBit", "minSyncPeriod", "syncPeriod")
    document = {
        "apiVersion": settings_module.API_VERSION,
        "kind": settings_module.KIND,
        "mode": "nftables",
        "nftables": {key: config[key] for key in of_mode if key in config},
        **{key: value for key, value in config.items() if key not in (*of_mode, "localhostNodePorts")},
    }
    return settings_module.parse(json.dumps(document), origin="case").settings


class _Replay:
    """One case being played. Owns the node, the clock, and what flows remember for later ones."""

    def __init__(self, case: Case, config: Mapping[str, Any]) -> None:
        self._case = case
        self._node = _Node(case["node"]["name"], config)
        self._pod_interface = _pod_interface(config)
        self._report = Report()
        self._clock = 0.0
        self._random = random.Random(case["id"])
        self._remembered: dict[str, bytes] = {}
        self._streams: set[str] = set()
        self._place = ""

    def play(self) -> Report:
        for number, step in enumerate(self._case["steps"], 1):
            self._place = f"{self._case['id']}, step {number}"
            self._step(step)
            self._report.disagreements += (f"{self._place}: {wrong}" for wrong in self._node.audit())
            for flow_number, flow in enumerate(step["flows"], 1):
                self._place = f"{self._case['id']}, step {number}, flow {flow_number}"
                self._flow(flow)
        return self._report

    # The agent's side

    def _step(self, step: Mapping[str, Any]) -> None:
        kind = step.get("action", {}).get("type", "")
        for target in step.get("delete", ()):
            key = key_for(Kind(target["kind"]), target.get("namespace") or "", target["name"])
            self._node.store.delete(*key)
        late = [manifest for manifest in step["apply"] if kind == "start-without-node" and manifest["kind"] == "Node"]
        for manifest in step["apply"]:
            if manifest not in late:
                self._apply(manifest)
        if kind in ("restart-agent", "stop-agent"):
            self._node.start()
        elif kind == "flush-ruleset":
            self._node.flush()
        if kind == "cleanup":
            self._node.cleanup()
            return
        self._node.sync()
        for manifest in late:
            self._apply(manifest)
            self._node.sync()

    def _apply(self, manifest: Mapping[str, Any]) -> None:
        """Deliver one object; a bad one leaves the version before it in place."""
        with contextlib.suppress(BadObject):
            self._node.store.apply(decode.decode(Kind(manifest["kind"]), json.dumps(manifest).encode(), []))

    # The clients' side

    def _flow(self, flow: Flow) -> None:
        if "reuse" in flow:
            self._report.skipped[HELD] += 1
            return
        if "stream" in flow:
            if flow["stream"] in self._streams:
                self._report.skipped[STREAM] += 1
                return
            self._streams.add(flow["stream"])
        self._report.checked += 1
        reached: dict[str, set[bytes]] = {}
        for source in flow.get("sources", [flow["src"]]):
            for _ in range(flow.get("count", 1)):
                outcome = self._connect(flow, source)
                if outcome is None:
                    return
                if outcome.result.endpoint is not None:
                    reached.setdefault(source, set()).add(outcome.result.endpoint)
                self._clock += flow.get("interval_s", 0)
        self._memory(flow, reached)

    def _connect(self, flow: Flow, source: str) -> walk.Outcome | None:
        """Make one connection; None, and a disagreement, if it is not as expected."""
        packet = self._packet(flow, source)
        table = self._node.table(addresses.family_of(packet.source))
        records = self._live_records(table.family)
        found = walk.outcomes(table, packet, self._host(), records=records)
        expected = flow.get("expect_by_mode", {}).get("nftables", flow["expect"])
        wrong = _difference(found, flow, expected)
        if wrong:
            self._disagree(flow, f"{wrong}\n{_told(found[0].outcome, table.family)}")
            return None
        outcome = self._random.choice(found).outcome
        for written in outcome.written:
            if written.operation is ruleset.DynamicOperation.DELETE:
                del self._node.records[table.family][written.key]
            else:
                expiry = self._clock + written.timeout_seconds
                self._node.records[table.family][written.key] = (written.value, expiry)
        return outcome

    def _live_records(self, family: addresses.Family) -> dict[bytes, bytes]:
        records = self._node.records[family]
        for key in [key for key, (_, expiry) in records.items() if expiry <= self._clock]:
            del records[key]
        return {key: value for key, (value, _) in records.items()}

    def _packet(self, flow: Flow, source: str) -> walk.Packet:
        packed = addresses.parse_address(source)
        icmp = flow["proto"] == "icmp"
        kind = flow["from"].partition(":")[0]
        return walk.Packet(
            source=packed,
            destination=addresses.parse_address(flow["dst"]),
            protocol=_ICMP[addresses.family_of(packed)] if icmp else _PROTOCOLS[flow["proto"]],
            destination_port=None if icmp else flow["dport"],
            source_port=flow.get("sport"),
            mark=flow.get("mark", 0),
            input_interface={"host": "", "pod": self._pod_interface}.get(kind, "eth0"),
        )

    def _host(self) -> walk.Host:
        own = self._case["node"]
        texts = [*own["ips"], *own.get("extra_ips", ()), *own.get("gateway_ips", ())]
        return walk.Host(frozenset(map(addresses.parse_address, texts)))

    def _memory(self, flow: Flow, reached: Mapping[str, set[bytes]]) -> None:
        everywhere = set().union(*reached.values())
        if (flow.get("sticky") or "same_as" in flow) and len(everywhere) != 1:
            self._disagree(flow, f"not sticky: {_names(everywhere)}")
        if flow.get("sticky_per_source") and any(len(found) != 1 for found in reached.values()):
            self._disagree(flow, "not sticky for each source")
        if "same_as" in flow and everywhere != {self._remembered.get(flow["same_as"])}:
            self._disagree(flow, f"{_names(everywhere)} is not the endpoint {flow['same_as']!r}")
        if "remember" in flow:
            self._remembered[flow["remember"]] = min(everywhere)

    def _disagree(self, flow: Flow, what: str) -> None:
        port = flow.get("dport", "")
        connection = f"{flow['from']} {flow['src']} to {flow['proto']} {flow['dst']} {port}"
        self._report.disagreements.append(f"{self._place}: {connection}: {what}")


def _difference(found: list[walk.Possibility], flow: Flow, expected: Mapping[str, Any]) -> str:
    """What is not as expected; "" if nothing is."""
    odds = walk.odds(found)
    if expected["result"] != "endpoints":
        refusal = walk.Fate.RESET if flow["proto"] == "tcp" else walk.Fate.UNREACHABLE
        fate = {"reject": refusal, "drop": walk.Fate.DROPPED, "passthrough": walk.Fate.UNTOUCHED}[expected["result"]]
        fits = all(result.fate is fate and not result.masquerade for result in odds)
        return "" if fits else f"expected {expected['result']}, got {_odds_text(odds)}"
    wanted = {_endpoint(name): name for name in expected["endpoints"]}
    shares: dict[bytes | None, Fraction] = {}
    for result, probability in odds.items():
        shares[result.endpoint] = shares.get(result.endpoint, Fraction(0)) + probability
    equal: dict[bytes | None, Fraction] = {endpoint: Fraction(1, len(wanted)) for endpoint in wanted}
    remembered = len(shares) == 1 and all(map(_is_remembered, found)) and shares.keys() <= wanted.keys()
    if shares != equal and not remembered:
        return f"expected each of {expected['endpoints']} equally, got {_odds_text(odds)}"
    masquerade = expected.get("masquerade")
    for result in odds:
        assert result.endpoint is not None
        name = wanted[result.endpoint]
        want = masquerade.get(name) if isinstance(masquerade, Mapping) else masquerade
        if want is not None and result.masquerade is not want:
            return f"expected {'' if want else 'no '}masquerade towards {name}, got {_odds_text(odds)}"
    return ""


def _is_remembered(possibility: walk.Possibility) -> bool:
    """Whether a record of the client was found."""
    probes = (probe for step in possibility.outcome.steps for probe in step.probes)
    return any(probe.set == layout.AFFINITY and probe.element is not None for probe in probes)


def _pod_interface(config: Mapping[str, Any]) -> str:
    detect = config.get("detectLocal") or {}
    if config.get("detectLocalMode") == "BridgeInterface":
        return str(detect["bridgeInterface"])
    return f"{detect.get('interfaceNamePrefix', 'veth')}1a2b"


def _endpoint(name: str) -> bytes:
    address, _, port = name.rpartition(":")
    return addresses.endpoint_key(addresses.parse_address(address.strip("[]")), int(port))


def _names(endpoints: set[bytes]) -> str:
    return ", ".join(sorted(map(addresses.format_endpoint, endpoints))) or "nothing"


def _odds_text(odds: Mapping[walk.Result, Fraction]) -> str:
    lines = []
    for result, probability in odds.items():
        where = addresses.format_endpoint(result.endpoint) if result.endpoint else result.fate.value
        lines.append(f"{probability} {where}{' masqueraded' if result.masquerade else ''}")
    return "; ".join(lines)


def _told(outcome: walk.Outcome, family: addresses.Family) -> str:
    """The rules that did something, for whoever looks for the reason."""
    return "\n".join(
        f"    {step.point} {step.chain} {step.index}: {text.rule_text(step.rule, family)}"
        for step in outcome.steps
        if step.ended_by is None
    )
