"""From the Store to the desired Frontends: what has to be planned anew, and what came of it. No I/O."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from netagent import conntrack
from netagent import settings as configuration
from netagent.model import addresses, objects
from netagent.plan import endpoints, forwarding, frontends, large_services, services
from netagent.plan import node as nodes
from netagent.source import store


class Replanned(NamedTuple):
    """What planning changed: Frontends, in no order, and the node's rules (None: as before).

    `planned` names the Services that were planned anew; None is all of them.
    """

    changes: tuple[conntrack.FrontendChange, ...]
    rules: tuple[nodes.NodeRules, ...] | None
    planned: frozenset[objects.ServiceName] | None


class Planner:
    """The plan of this node, kept up to date with a Store.

    Owns: the desired Frontends (`forwarding`) and the rules of the node. Use: change `store`, then `replan`.
    Goals: what is planned anew is what changed; a deleted Node leaves the last one in force, because a node that the
    API has lost still has its addresses.
    Threading: none.
    """

    def __init__(self, wanted: configuration.Settings, *, node_name: str) -> None:
        self.store = store.Store(node_name, proxy_name=wanted.service_proxy_name or None)
        self.forwarding = forwarding.Forwarding()
        self._node_name = node_name
        self._settings = wanted
        self._node: objects.Node | None = None
        self._context: nodes.NodeContext | None = None
        self._rules: tuple[nodes.NodeRules, ...] = ()
        self._large: dict[objects.ServiceName, large_services.LargeService] = {}

    @property
    def settings(self) -> configuration.Settings:
        """What is planned by."""
        return self._settings

    @property
    def node(self) -> objects.Node | None:
        """This node as last seen."""
        return self._node

    @property
    def context(self) -> nodes.NodeContext:
        """What of the node the Services were planned by."""
        assert self._context, "replan first"
        return self._context

    @property
    def rules(self) -> tuple[nodes.NodeRules, ...]:
        """The rules of the node, a family each, as last planned."""
        return self._rules

    def use(self, wanted: configuration.Settings) -> None:
        """Plan by other settings from the next `replan` on."""
        self._settings = wanted
        self.store.mark_dirty(everything=True)

    def begin_anew(self) -> None:
        """Forget the plan: the next `replan` makes all of it from the Store."""
        self.forwarding = forwarding.Forwarding()
        self._large = {}
        self._context = None
        self._rules = ()

    def replan(self) -> Replanned:
        """Plan what is dirty in the Store, and clear its marks."""
        dirty = self.store.take_dirty()
        rules = self._follow_node() if dirty.everything or self._context is None else None
        context = nodes.node_context_of(self._settings, self._node, name=self._node_name)
        owners: frozenset[objects.ServiceName] = dirty.services
        moved = self._context and context != self._context and replace(self._context, zone=context.zone) == context
        everything = context != self._context and not moved
        if everything:
            owners = self.forwarding.owners() | self.store.services.keys()
        elif moved:  # to another zone: most Services do not ask for one
            owners |= self.store.with_zone_hints()
        self._context = context
        changes: list[conntrack.FrontendChange] = []
        frontends_now = self.forwarding.frontends
        families = [wanted.family for wanted in self._rules]
        for owner in owners:
            for key, before in self._replan_service(owner, context, families).items():
                changes.append(conntrack.FrontendChange(key, before, frontends_now.get(key)))
        return Replanned(tuple(changes), rules, None if everything else owners)

    def _follow_node(self) -> tuple[nodes.NodeRules, ...] | None:
        """Take over Node, ServiceCIDRs and settings; return the node's rules if they differ from before."""
        self._node = self.store.node or self._node
        context = nodes.node_context_of(self._settings, self._node, name=self._node_name)
        rules = tuple(
            nodes.node_rules_of(
                self._settings,
                context,
                self._node,
                self.store.service_cidrs.values(),
                addresses.Family(family),
            )
            for family in self._settings.families
        )
        if rules == self._rules:
            return None
        before, self._rules = self._rules, rules
        if {wanted.family for wanted in before} != {wanted.family for wanted in rules}:
            self._context = None  # every Service has Frontends to gain or to lose
        return rules

    def _replan_service(
        self, owner: objects.ServiceName, context: nodes.NodeContext, families: list[addresses.Family]
    ) -> dict[frontends.FrontendKey, frontends.Frontend | None]:
        """Plan one Service; return the keys that changed, each with the Frontend that it had before."""
        service = self.store.services.get(owner)
        planned: tuple[frontends.Frontend, ...] = ()
        if service:
            slices = self.store.slices_of(owner)
            lists_of = self._lists_of(owner, len(slices))
            planned = services.frontends_of(service, slices, context, families, endpoint_lists=lists_of)
        else:
            self._large.pop(owner, None)
        return self.forwarding.exchange(owner, planned)

    def _lists_of(self, owner: objects.ServiceName, slices: int) -> endpoints.ListsOf:
        """The function that finds the endpoints of a Service: one with a memory if it has many slices."""
        if slices < large_services.MANY_SLICES:
            if self._large:
                self._large.pop(owner, None)
            return endpoints.endpoint_lists
        return self._large.setdefault(owner, large_services.LargeService()).endpoint_lists
