"""The whole examination: everything that can be seen, then everything that follows from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final, TypeVar

from netagent import errors, settings
from netagent.doctor import evidence, findings
from netagent.doctor.gather import host, nft, processes, rtnetlink, sockets, sysctls, xtables
from netagent.doctor.judge import conflicts, conntrack, forwarding, kernel, ports
from netagent.doctor.judge import host as on_host
from netagent.model import addresses

Check = Callable[[evidence.Evidence], Iterator[findings.Finding]]
Gathered = TypeVar("Gathered")

CHECKS: Final[tuple[Check, ...]] = (
    kernel.privileges,
    kernel.release,
    kernel.features,
    kernel.modules,
    kernel.programs,
    forwarding.forwarding,
    forwarding.reverse_path,
    forwarding.route_localnet,
    forwarding.bridges,
    conntrack.size,
    conntrack.fill,
    conntrack.buckets,
    conntrack.out_of_window,
    conflicts.kube_proxy_running,
    conflicts.kube_proxy_left,
    conflicts.mixture,
    conflicts.firewalld,
    conflicts.forward_policy,
    conflicts.other_translations,
    conflicts.mark_bit,
    ports.outgoing,
    ports.shadowed,
    on_host.mtus,
    on_host.clock,
    on_host.directory,
    on_host.agent,
    on_host.tables,
)


def judge(seen: evidence.Evidence) -> tuple[findings.Finding, ...]:
    """What follows from the evidence, the gravest first. Pure."""
    return findings.in_order(finding for check in CHECKS for finding in check(seen))


def gather(wanted: settings.Settings, *, configured: bool = False, guess_mode: bool = False) -> evidence.Evidence:
    """What can be seen of this host, from the network namespace of the calling thread. Changes nothing.

    `configured`: the settings are an operator's, not the defaults. `guess_mode`: nobody has said which mode it is, so
    it is that of our rules, if there are any. What cannot be seen is named in `unseen`.
    """
    looking = _Looking()
    families = [addresses.Family(name) for name in wanted.families]
    saved = looking.at("xtables", xtables.read, evidence.Xtables())
    rules = looking.at("nf_tables", lambda: nft.read(mark=1 << wanted.masquerade_bit), evidence.Ruleset())
    if guess_mode and xtables.has_ours(saved) and not nft.has_ours(rules):
        wanted = settings.override(wanted, mode=settings.Mode.IPTABLES.value)
    routes = looking.list("routes", rtnetlink.routes)
    found = looking.list("processes", processes.running)
    tried = wanted.mode is settings.Mode.NFTABLES
    return evidence.Evidence(
        wanted=wanted,
        configured=configured,
        cores=os.cpu_count() or 1,
        privileged=host.privileged(),
        kernel=looking.at("the kernel", lambda: host.kernel(families, tried=tried), evidence.Kernel(probed=not tried)),
        sysctls=sysctls.read(),
        ruleset=replace(rules, node_ports=rules.node_ports | xtables.node_ports(saved)),
        xtables=saved,
        processes=found,
        listeners=sockets.listening(),
        links=looking.list("interfaces", rtnetlink.links),
        uplinks=frozenset(route.link for route in routes if route.destination == "default"),
        mark_routes=looking.list("routing rules", rtnetlink.mark_routes),
        clock=host.clock(),
        directory=host.directory(),
        agent=looking.at("the agent", lambda: host.agent(found), evidence.Agent("")),
        unseen=tuple(looking.failed),
    )


class _Looking:
    """Looks at one thing after the other, and notes what could not be seen (`failed`)."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def at(self, what: str, look: Callable[[], Gathered], otherwise: Gathered) -> Gathered:
        """What `look` sees, or `otherwise` and a note if the host does not let it."""
        try:
            return look()
        except (OSError, errors.NetagentError) as error:
            self.failed.append(f"{what}: {error}")
            return otherwise

    def list(self, what: str, look: Callable[[], Iterable[Gathered]]) -> tuple[Gathered, ...]:
        """The same for many things; () if they cannot be seen."""
        return self.at(what, lambda: tuple(look()), ())
