"""How many rules mode iptables has in its tables: what kube-proxy's dashboards show of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

from netagent.agent import loop, reconciler
from netagent.agent.metrics import collectors
from netagent.model import addresses


class RuleCount(NamedTuple):
    """Rules of ours in a table, and how many of them the last sync wrote."""

    family: addresses.Family
    table: str
    total: int
    written: int


@runtime_checkable
class CountsRules(Protocol):
    """A data plane whose rules grow with Services."""

    def rule_counts(self) -> Iterable[tuple[addresses.Family, str, int, int]]:
        """The fields of a RuleCount for each table of each family."""
        ...


class RuleMetrics(loop.Observer):
    """Keeps the numbers of rules up to date. Use: as an observer of the loop. Threading: the loop's."""

    def __init__(self, counting: CountsRules, metrics: collectors.Metrics) -> None:
        self._counting = counting
        self._metrics = metrics

    def synced(self, report: reconciler.SyncReport) -> None:
        for found in map(RuleCount._make, self._counting.rule_counts()):
            self._metrics.iptables_rules(found.table, found.family, total=found.total, last=found.written)


def observers(backend: object, metrics: collectors.Metrics) -> tuple[loop.Observer, ...]:
    """What counts the rules of this data plane; nothing for one whose rules do not grow."""
    return (RuleMetrics(backend, metrics),) if isinstance(backend, CountsRules) else ()
