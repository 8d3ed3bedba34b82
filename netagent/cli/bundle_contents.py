"""What a bundle holds, and how each file of it comes about."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from netagent import errors, settings
from netagent.bundle import archive, host
from netagent.cli import options, situation
from netagent.iptables import tools
from netagent.model import addresses

if TYPE_CHECKING:
    from netagent.agent import planner

_AGENT_PAGES: Final = ("/metrics", "/statusz", "/configz", "/flagz", "/proxyMode")
_HEALTH_PAGES: Final = ("/healthz", "/livez", "/readyz")


class Item(NamedTuple):
    """One file: its name, how it is made in words, and what makes it."""

    name: str
    made: str
    get: Callable[[], object]
    keep: archive.Keep = archive.Keep.HEAD


def items(source: options.Source, *, unit: str) -> Iterator[Item]:
    """Everything that goes into a bundle, in the order in which it is collected."""
    seen = _Seen(source)
    yield Item("version.txt", "netagent, its packages, programs on the path", host.versions)
    yield Item("environment.txt", "variables that netagent looks at", lambda: host.environment(os.environ))
    yield Item("doctor.json", "netagent doctor -o json", seen.doctor)
    yield Item("agent/status.json", "the running agent, /status", lambda: seen.asked("/status"))
    yield Item("agent/drift.json", "the running agent, /drift", lambda: seen.asked("/drift"))
    yield Item("agent/quarantine.json", "the running agent, /quarantine", lambda: seen.asked("/quarantine"))
    yield Item("agent/settings.json", "the settings in force: the agent's, else those of --config", seen.in_force)
    for path in _AGENT_PAGES:
        yield Item(f"agent/metrics-server{path}.txt", f"the metrics server, {path}", partial(seen.metrics, path))
    for path in _HEALTH_PAGES:
        yield Item(f"agent/health-server{path}.txt", f"the health server, {path}", partial(seen.health, path))
    yield Item("plan.txt", "what netagent wants for each Service port (netagent dump -o table)", seen.plan)
    yield Item("tables.txt", "our tables as the kernel holds them, read over netlink", seen.tables)
    yield Item("pending.txt", "what differs between the plan and the kernel (netagent diff)", seen.pending)
    for each in tools.Variant:
        for family in addresses.Family:
            program = tools.program(family, each, "save")
            yield Item(f"xtables/{program}.txt", f"{program}, our chains only", partial(host.own_chains, each, family))
    yield Item("host/nftables.txt", "the names of everybody's tables and base chains", seen.all_tables)
    yield Item("host/system.txt", "kernel, operating system, processors, memory", host.system)
    yield Item("host/modules.txt", "/proc/modules, those of netfilter", host.modules)
    yield Item("host/sysctls.txt", "/proc/sys, those that matter", host.parameters)
    yield Item("host/interfaces.txt", "interfaces and their addresses", host.interfaces)
    yield Item("host/routes.txt", "routes of the main table, and rules for marked packets", host.routes)
    yield Item("host/conntrack.txt", "counters of connection tracking", host.connection_tracking)
    made = f"journalctl --unit {unit}, the last lines"
    yield Item("journal.txt", made, lambda: host.journal(unit), archive.Keep.TAIL)


class _Seen:
    """What several files are made of, looked at once: the situation, and the kernel's tables.

    Use: each method is the collector of a file, and raises if it has nothing. Threading: none.
    """

    def __init__(self, source: options.Source) -> None:
        self._source = source
        self._situation: situation.Situation | None = None
        self._kernel: situation.Kernel | None = None

    def look(self) -> situation.Situation:
        if self._situation is None:
            self._situation = situation.look(self._source)
        return self._situation

    def held(self) -> situation.Kernel:
        """Our tables. PrivilegeError if they cannot be read, NetagentError if there are none."""
        if self._kernel is None:
            self._kernel = situation.kernel(self.wanted())
        if not self._kernel.any:
            if self._kernel.reason:
                raise errors.PrivilegeError(self._kernel.reason)
            raise errors.NetagentError("there are no tables of netagent in this network namespace")
        return self._kernel

    def wanted(self) -> settings.Settings:
        """The agent's settings, else those that were given."""
        try:
            return self.look().settings
        except errors.NetagentError:
            return self._source.wanted

    def asked(self, target: str) -> Any:
        import msgspec

        from netagent.agent.local import client

        return msgspec.json.decode(client.ask(target).body)

    def in_force(self) -> Any:
        import msgspec

        return msgspec.to_builtins(self.wanted(), enc_hook=str)

    def doctor(self) -> Any:
        from netagent.doctor import examination, findings

        return findings.document(examination.judge(examination.gather(self.wanted())))

    def metrics(self, path: str) -> str:
        return self._page(self.wanted().metrics_bind_address, path)

    def health(self, path: str) -> str:
        return self._page(self.wanted().healthz_bind_address, path)

    def _page(self, where: settings.SocketAddress, path: str) -> str:
        from netagent.agent import node_addresses

        if not host.local_only(where, node_addresses.read_addresses()):
            raise errors.SourceError(f"{where} is no address of this host; nobody else is asked")
        return host.page(where, path)

    def plan(self) -> Iterator[str]:
        from netagent.cli import views

        return views.as_table(self._planner().forwarding.frontends)

    def tables(self) -> Iterator[str]:
        from netagent.nftables import layout, text, unwire

        specs = layout.sets(affinity_clients=self.wanted().affinity_clients)
        for actual in self.held().tables.values():
            if not actual.exists:
                continue
            readable = unwire.table_of(actual, specs)
            yield from (f"# not ours: chain {chain}, rule {index}" for chain, index in readable.strange)
            yield from (f"# not ours: set {name}" for name in sorted(actual.sets.keys() - specs.keys()))
            yield from text.table_lines(readable.table)

    def pending(self) -> Iterator[str]:
        from netagent.cli import views
        from netagent.nftables import diff, report, tables, transaction

        plan = self._planner()
        if self.wanted().mode is settings.Mode.IPTABLES:
            raise errors.UnsupportedError("this is mode iptables: netagent diff --mode iptables shows it")
        actual = self.held().tables
        desired = tables.Tables(affinity_clients=self.wanted().affinity_clients)
        desired.set_rules(plan.rules, {family: table.elements for family, table in actual.items()})
        current = plan.forwarding.frontends
        desired.update((frontend.key for frontend in views.in_order(current)), current)
        wanted = desired.desired()
        operations = [each for table in wanted for each in diff.operations(table, actual[table.family]).operations]
        lines = list(report.lines(transaction.Transaction(tuple(operations)), wanted, actual.values()))
        return iter(lines or ["nothing differs"])

    def all_tables(self) -> Iterator[str]:
        return host.all_tables(mark=1 << self.wanted().masquerade_bit)

    def _planner(self) -> planner.Planner:
        found = self.look()
        if found.planner is None:
            raise errors.NoAgentError("no agent runs in this network namespace and no -f is given: nothing is planned")
        return found.planner
