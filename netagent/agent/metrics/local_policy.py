"""Service ports that are silent on this node, although another node could serve them: policy Local, nobody here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from netagent import conntrack
from netagent.model import addresses
from netagent.plan import frontends


class Policy(NamedTuple):
    """Which traffic policy of which family."""

    traffic_policy: str  # "internal" or "external"
    family: addresses.Family


class NoLocalEndpoints:
    """Counts Service ports with a traffic policy Local, no local endpoint and some endpoint elsewhere.

    Owns: the counts. Use: `update` with the changes of every replan; then read `count`.
    Goals: costs what changed; a Service port with several frontends counts once a policy.
    Threading: one thread writes, any may read.
    """

    def __init__(self) -> None:
        self._frontends: dict[Policy, Counter[frontends.ServicePortName]] = {}

    def update(self, changes: Iterable[conntrack.FrontendChange]) -> None:
        for change in changes:
            for frontend, step in ((change.before, -1), (change.after, 1)):
                if frontend is not None and (policy := _silent_policy(frontend)):
                    counts = self._frontends.setdefault(policy, Counter())
                    counts[frontend.owner] += step
                    if not counts[frontend.owner]:
                        del counts[frontend.owner]

    def count(self, traffic_policy: str, family: addresses.Family) -> int:
        return len(self._frontends.get(Policy(traffic_policy, family), ()))

    def owners(self) -> Iterator[tuple[Policy, frontends.ServicePortName]]:
        """The silent Service ports themselves, for those who explain."""
        for policy, counts in self._frontends.items():
            for owner in counts:
                yield policy, owner


def _silent_policy(frontend: frontends.Frontend) -> Policy | None:
    """The policy for which a frontend is silent, if it is."""
    if frontend.kind is frontends.FrontendKind.CLUSTER_IP:
        silent = frontend.verdict is frontends.Verdict.DROP
        return Policy("internal", frontend.key.family) if silent else None
    silent = frontend.verdict is frontends.Verdict.SERVE and frontend.local_endpoints == ()
    return Policy("external", frontend.key.family) if silent else None
