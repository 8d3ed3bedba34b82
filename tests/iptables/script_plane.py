"""The desired chains as the data plane of a case, by way of iptables-restore: what `netagent.iptables.lower` means,
tried with real packets, without the backend that keeps a kernel up to date.

    python -m tests.iptables.script_plane legacy        # the whole corpus on one variant (nft: the other one)
"""

from __future__ import annotations

import socket
import sys
from collections import Counter
from typing import Any

from netagent import conntrack, settings
from netagent.agent import planner, reconciler
from netagent.iptables import ruleset, tables, text
from netagent.model import addresses
from netagent.source import manifests
from tests.cases import loader
from tests.netns import planes, replay

TOOLS = {addresses.Family.IPV4: "iptables", addresses.Family.IPV6: "ip6tables"}


class Restored:
    """Plans and lowers the site's directory at every step, and restores the chains that changed.

    Threading: none.
    """

    def __init__(self, site: planes.Site, variant: str) -> None:
        self._site = site
        self._variant = variant
        self._settings = settings.parse(site.config_file.read_bytes(), origin=str(site.config_file)).settings
        self._held: dict[addresses.Family, dict[ruleset.ChainName, ruleset.Rules]] = {}
        self.start_agent()

    @classmethod
    def factory(cls, variant: str) -> planes.Factory:
        """A factory for `replay`; the variant is "legacy" or "nft"."""
        return lambda site: cls(site, variant)

    def start_agent(self) -> None:
        name = settings.node_name_of(self._settings, self._site.node_name, socket.gethostname())
        self._planner = planner.Planner(self._settings, node_name=name)
        self._tables = tables.Tables()
        self._reading: manifests.Reading | None = None

    def stop_agent(self) -> None:
        pass

    def restart_agent(self) -> None:
        self.start_agent()

    def cleanup(self) -> None:
        for family in list(self._held):
            self._restore(family, dict.fromkeys(self._held.pop(family)), "-D")

    def apply(self, step_number: int, objects: list[planes.Manifest], config: dict[str, Any]) -> None:
        self._reading = manifests.read(self._site.manifests, previous=self._reading)
        self._planner.store.replace(self._reading.objects)
        replanned = self._planner.replan()
        if replanned.rules is not None:
            self._tables.set_rules(replanned.rules, self._held)
        self._tables.update((change.key for change in replanned.changes), self._planner.forwarding.frontends)
        for family in list(self._held):
            if family not in self._tables.lowered:
                self._restore(family, dict.fromkeys(self._held.pop(family)), "-D")
        for family, lowered in self._tables.lowered.items():
            self._commit(family, lowered.ruleset.chains, lowered.touched)
        self._tables.settled()
        stale = conntrack.stale_flow_rules(replanned.changes, reconciler.stale_flow_protocols(self._settings))
        with self._site.node.entered():
            local = conntrack.FlowCleaner(local_addresses=self._node_port_addresses())
            reconciler.drop_stale_flows(local, stale)

    def _node_port_addresses(self) -> Any:
        class Rules:
            planner = self._planner

        return reconciler.node_port_addresses(Rules())  # type: ignore[arg-type]

    def _commit(
        self,
        family: addresses.Family,
        desired: dict[ruleset.ChainName, ruleset.Rules],
        touched: set[ruleset.ChainName] | None,
    ) -> None:
        before = self._held.get(family)
        held = self._read(family)
        names = held.keys() | desired.keys() if touched is None or held != before else touched
        changes = {name: desired.get(name) for name in names if held.get(name) != desired.get(name)}
        self._restore(family, changes, "" if held else "-I")
        self._held[family] = dict(desired)
        found = self._read(family)
        differing = {name for name in found.keys() | desired.keys() if found.get(name) != desired.get(name)}
        assert not differing, f"not spelled, or not touched, as they should be: {differing}"

    def _restore(
        self, family: addresses.Family, changes: dict[ruleset.ChainName, ruleset.Rules | None], jumping: str
    ) -> None:
        jumps = []
        if jumping:
            for jump in reversed(tables.lower.layout.JUMPS):
                jumps += [f"*{jump.table}", f"{jumping} {jump.chain} {jump.rule}"]
        written = text.restore_input(changes, jumps=jumps)
        if written:
            tool = f"{TOOLS[family]}-{self._variant}-restore"
            self._site.node.run([tool, "--noflush", "--wait", "60"], stdin=written)

    def _read(self, family: addresses.Family) -> dict[ruleset.ChainName, ruleset.Rules]:
        """Our chains as the kernel holds them."""
        saved = self._site.node.run([f"{TOOLS[family]}-{self._variant}-save"]).stdout
        found: dict[ruleset.ChainName, list[str]] = {}
        table = ""
        for line in saved.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith(":NETAGENT-"):
                found[ruleset.ChainName(table, line[1:].split()[0])] = []
            elif line.startswith("-A NETAGENT-"):
                _, chain, rule = line.split(" ", 2)
                found[ruleset.ChainName(table, chain)].append(text.canonical(rule))
        return {name: tuple(rules) for name, rules in found.items()}

    def close(self) -> None:
        pass


def main(variant: str, *wanted: str) -> int:
    """Replay the corpus, or the cases named; say what fails. The number of failures."""
    counts = Counter[str]()
    for case in loader.load_all():
        if wanted and case["id"] not in wanted:
            continue
        slow = case.get("requires") == ["slow"]
        try:
            reason = replay.unsupported(case, packets_only=True, slow=slow)
            if reason:
                raise replay.Unsupported(reason)
            # The settings of nftables mode: without a list, node ports answer on the primary address.
            replay.replay(
                case, Restored.factory(variant), defaults=loader.plan()["defaults"], packets_only=True, slow=slow
            )
            counts["passed"] += 1
        except replay.Unsupported as reason_of_plane:
            counts["skipped"] += 1
            _say(f"SKIP {case['id']}: {reason_of_plane}")
        except Exception as error:  # noqa: BLE001 - the list goes on
            counts["failed"] += 1
            _say("\n".join([f"FAIL {case['id']}: {type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))
    _say(f"{variant}: {dict(counts)}")
    return counts["failed"]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
