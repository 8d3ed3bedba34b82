"""The desired tables of both families, without a kernel: what `dump` prints and what the backend commits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from netagent.model import addresses
from netagent.nftables import lower, ruleset
from netagent.plan import frontends, node


class Tables:
    """Our tables as they should be.

    Owns: one `Lowering` for each family that is served. Use: `set_rules` first and whenever the node changes, `update`
    whenever frontends change; read `desired`. `found` holds what the kernel has of our elements, for endpoints to
    keep their places. Threading: none.
    """

    def __init__(self, *, affinity_clients: int) -> None:
        self.affinity_clients = affinity_clients
        self.lowered: dict[addresses.Family, lower.Lowering] = {}

    def set_rules(
        self,
        rules: Iterable[node.NodeRules],
        found: Mapping[addresses.Family, Mapping[str, ruleset.Elements]] | None = None,
    ) -> None:
        """Serve these families by these rules of the node, and no other family."""
        served = {wanted.family: wanted for wanted in rules}
        for family in self.lowered.keys() - served.keys():
            del self.lowered[family]
        for family, wanted in served.items():
            if family in self.lowered:
                self.lowered[family].set_rules(wanted)
            else:
                self.lowered[family] = lower.Lowering(
                    wanted, affinity_clients=self.affinity_clients, found=(found or {}).get(family)
                )

    def update(
        self, keys: Iterable[frontends.FrontendKey], current: Mapping[frontends.FrontendKey, frontends.Frontend]
    ) -> None:
        """Follow the plan at these keys: `current` has the Frontend of a key, or none."""
        lowered = self.lowered
        for key in keys:
            if key.family in lowered:
                lowered[key.family].update(key, current.get(key))

    def desired(self) -> list[ruleset.Table]:
        """The tables, IPv4 first."""
        for lowered in self.lowered.values():
            lowered.fit({name: spec.capacity for name, spec in lowered.table.sets.items() if spec.capacity})
        return [self.lowered[family].table for family in addresses.Family if family in self.lowered]

    def settled(self) -> None:
        """The kernel holds the desired tables."""
        for lowered in self.lowered.values():
            lowered.settled()

    def edited(
        self,
        families: Iterable[addresses.Family],
        chains: Iterable[addresses.Family],
        keys: Iterable[tuple[addresses.Family, str, bytes]],
    ) -> None:
        """Others changed all of some families, chains of some, and elements: compare these."""
        for family in families:
            if family in self.lowered:
                self.lowered[family].unsettled()
        for family in chains:
            if family in self.lowered:
                self.lowered[family].reshaped = True
        for family, name, key in keys:
            if family in self.lowered:
                self.lowered[family].touch(name, key)

    def unsettled(self) -> None:
        """Nobody knows what the kernel holds."""
        for lowered in self.lowered.values():
            lowered.unsettled()
