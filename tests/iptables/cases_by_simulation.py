"""Replays behaviour cases without a kernel, as `tests.nftables.cases_by_walk` does, on rules for iptables: manifests
are decoded, planned and lowered step by step, and the simulator reads the rules.

Every endpoint must have the same probability, up to what the kernel rounds away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from netagent import settings as settings_module
from netagent.iptables import layout, names, ruleset, tables
from netagent.model import addresses
from netagent.plan import forwarding, node, services
from netagent.source.store import Store
from tests.iptables import simulator
from tests.nftables import cases_by_walk

# Steps of a choice times half a unit of 2^-31 each; lists of the corpus are short.
ROUNDING = Fraction(8, simulator.UNITS)

Chains = dict[ruleset.ChainName, ruleset.Rules]


def replay(case: Mapping[str, Any], defaults: Mapping[str, Any]) -> cases_by_walk.Report:
    """Play a case from its first step to its last. `defaults` are the settings that `config` changes.

    A case of mode nftables alone is about that mode's defaults, and is played with them.
    """
    return _Replay(case, {**defaults, **case["config"]}).play()


def audit(made: ruleset.Ruleset) -> Iterator[str]:
    """What is wrong with a ruleset whatever it is for."""
    used = {ruleset.ChainName(jump.table, simulator.parse(jump.rule).target) for jump in made.jumps}
    for name, rules in made.chains.items():
        if not name.chain.startswith(names.PREFIX) or len(name.chain) > names.LENGTH:
            yield f"a bad name: {name}"
        for rule in rules:
            target = simulator.parse(rule).target
            if target.startswith(names.PREFIX):
                used.add(ruleset.ChainName(name.table, target))
                if used - made.chains.keys():
                    yield f"{name} leads to {target}, which is not there"
                    used &= made.chains.keys()
    fixed = layout.trees(made.family).keys() | {layout.REFUSE}
    for name in made.chains.keys() - used - fixed:
        yield f"nothing leads to {name}"


class Node:
    """The node under test: an agent, and a kernel that takes over the chains that the agent calls touched.

    Use: feed `store`, then `sync`. `audit` tells what is wrong with the result. Threading: none.
    """

    def __init__(self, name: str, config: Mapping[str, Any], *, mode: str = "iptables") -> None:
        self.settings = settings_module.override(cases_by_walk._settings(config), mode=mode)
        self.name = settings_module.node_name_of(self.settings, None, name)
        self.store = Store(self.name)
        self.kernel: dict[addresses.Family, Chains] = {}
        self.records: dict[str, dict[bytes, float]] = {}
        self.start()

    def start(self) -> None:
        self.tables = tables.Tables()
        self._forwarding = forwarding.Forwarding()
        self._rules: list[node.NodeRules] = []
        self._last_node: Any = None
        self.store.mark_dirty(everything=True)

    def flush(self) -> None:
        self.kernel = {}
        self.records = {}
        self.tables.unsettled()

    def cleanup(self) -> None:
        self.tables.set_rules(())
        self.kernel = {}
        self.records = {}

    def sync(self) -> None:
        dirty = self.store.take_dirty()
        self._last_node = self.store.node or self._last_node
        families = [addresses.Family(family) for family in self.settings.families]
        context = node.node_context_of(self.settings, self._last_node, name=self.name)
        cidrs = list(self.store.service_cidrs.values())
        rules = [node.node_rules_of(self.settings, context, self._last_node, cidrs, family) for family in families]
        if rules != self._rules:
            self._rules = rules
            self.tables.set_rules(rules, self.kernel)
        owners = set(dirty.services)
        if dirty.everything:
            owners |= self.store.services.keys() | self._forwarding.owners()
        for owner in sorted(owners):
            service = self.store.services.get(owner)
            found = services.frontends_of(service, self.store.slices_of(owner), context, families) if service else ()
            self.tables.update(self._forwarding.update(owner, found), self._forwarding.frontends)
        for family, lowered in self.tables.lowered.items():
            kernel, desired = self.kernel.setdefault(family, {}), lowered.ruleset.chains
            touched = lowered.touched
            for name in kernel.keys() | desired.keys() if touched is None else touched:
                if name in desired:
                    kernel[name] = desired[name]
                else:
                    kernel.pop(name, None)
        self.tables.settled()
        self._forget(self.kernel.values())

    def _forget(self, held: Iterable[Chains]) -> None:
        """A recent list lives as long as a rule names it."""
        named = {
            simulator.parse(rule).record
            for chains in held
            for rules in chains.values()
            for rule in rules
            if " recent " in rule
        }
        self.records = {name: found for name, found in self.records.items() if name in named}

    def audit(self) -> Iterator[str]:
        """What differs from a ruleset made from nothing, or between kernel and desired."""
        fresh = tables.Tables()
        fresh.set_rules(self._rules, self.kernel)
        fresh.update(reversed(self._forwarding.frontends), self._forwarding.frontends)
        for family, lowered in self.tables.lowered.items():
            desired = lowered.ruleset
            rebuilt = fresh.lowered[family].ruleset.chains
            for name in desired.chains.keys() | rebuilt.keys():
                if desired.chains.get(name) != rebuilt.get(name):
                    yield f"{name} differs from that of a ruleset made from nothing"
            for name in desired.chains.keys() | self.kernel[family].keys():
                if desired.chains.get(name) != self.kernel[family].get(name):
                    yield f"{name} was left out of the commit"
            yield from audit(desired)

    def ruleset(self, family: addresses.Family) -> ruleset.Ruleset:
        """What the kernel has."""
        held = self.kernel.get(family)
        return ruleset.Ruleset(family, held, layout.JUMPS) if held else ruleset.Ruleset(family)


class _Replay(cases_by_walk._Replay):
    """One case being played, on rules for iptables."""

    def __init__(self, case: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        super().__init__(case, config)
        self._mode = "iptables" if "iptables" in case["modes"] else "nftables"
        self._node: Any = Node(case["node"]["name"], config, mode=self._mode)

    def _connect(self, flow: Mapping[str, Any], source: str) -> Any:
        packet = self._packet(flow, source)
        made = self._node.ruleset(addresses.family_of(packet.source))
        found = simulator.Simulator(made, self._node.records, self._clock).outcomes(packet, self._host())
        wrong = _difference(found, flow, flow.get("expect_by_mode", {}).get(self._mode, flow["expect"]))
        if wrong:
            self._disagree(flow, wrong)
            return None
        (outcome,) = self._random.choices(found, [float(possible.probability) for possible in found])
        for name in outcome.recorded:
            self._node.records.setdefault(name, {})[packet.source] = self._clock
        return outcome


def _difference(found: list[simulator.Outcome], flow: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """What is not as expected; "" if nothing is."""
    told = "; ".join(f"{float(outcome.probability):.3f} {outcome.result}" for outcome in found)
    if expected["result"] != "endpoints":
        refusal = simulator.Fate.RESET if flow["proto"] == "tcp" else simulator.Fate.UNREACHABLE
        fates = {"reject": refusal, "drop": simulator.Fate.DROPPED, "passthrough": simulator.Fate.UNTOUCHED}
        fits = all(
            outcome.result.fate is fates[expected["result"]] and not outcome.result.masquerade for outcome in found
        )
        return "" if fits else f"expected {expected['result']}, got {told}"
    wanted = {cases_by_walk._endpoint(name): name for name in expected["endpoints"]}
    shares: dict[bytes | None, Fraction] = {}
    for outcome in found:
        endpoint = outcome.result.endpoint
        shares[endpoint] = shares.get(endpoint, Fraction(0)) + outcome.probability
    remembered = len(found) == 1 and found[0].recalled and shares.keys() <= wanted.keys()
    equal = shares.keys() == wanted.keys() and all(
        abs(share - Fraction(1, len(wanted))) <= ROUNDING for share in shares.values()
    )
    if not equal and not remembered:
        return f"expected each of {expected['endpoints']} equally, got {told}"
    masquerade = expected.get("masquerade")
    for outcome in found:
        assert outcome.result.endpoint is not None
        name = wanted[outcome.result.endpoint]
        want = masquerade.get(name) if isinstance(masquerade, Mapping) else masquerade
        if want is not None and outcome.result.masquerade is not want:
            return f"expected {'' if want else 'no '}masquerade towards {name}, got {told}"
    return ""
