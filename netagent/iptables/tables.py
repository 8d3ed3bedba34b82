"""The desired rulesets of both families, without a kernel: what `dump` prints and what the backend commits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from netagent.iptables import lower, ruleset
from netagent.model import addresses
from netagent.plan import frontends, node


class Tables:
    """Our chains as they should be.

    Owns: one `Lowering` for each family that is served. Use: `set_rules` first and whenever the node changes, `update`
    whenever frontends change; read `desired`. `found` holds what the kernel has of our chains, for endpoints of long
    lists to keep their places. Threading: none.
    """

    def __init__(self) -> None:
        self.lowered: dict[addresses.Family, lower.Lowering] = {}

    def set_rules(
        self,
        rules: Iterable[node.NodeRules],
        found: Mapping[addresses.Family, Mapping[ruleset.ChainName, ruleset.Rules]] | None = None,
    ) -> None:
        """Serve these families by these rules of the node, and no other family."""
        served = {wanted.family: wanted for wanted in rules}
        for family in self.lowered.keys() - served.keys():
            del self.lowered[family]
        for family, wanted in served.items():
            if family in self.lowered:
                self.lowered[family].set_rules(wanted)
            else:
                self.lowered[family] = lower.Lowering(wanted, found=(found or {}).get(family))

    def update(
        self, keys: Iterable[frontends.FrontendKey], current: Mapping[frontends.FrontendKey, frontends.Frontend]
    ) -> None:
        """Follow the plan at these keys: `current` has the Frontend of a key, or none."""
        lowered = self.lowered
        for key in keys:
            if key.family in lowered:
                lowered[key.family].update(key, current.get(key))

    def desired(self) -> list[ruleset.Ruleset]:
        """The rulesets, IPv4 first."""
        return [self.lowered[family].ruleset for family in addresses.Family if family in self.lowered]

    def settled(self) -> None:
        """The kernel holds the desired rulesets."""
        for lowered in self.lowered.values():
            lowered.settled()

    def unsettled(self) -> None:
        """Nobody knows what the kernel holds."""
        for lowered in self.lowered.values():
            lowered.unsettled()
