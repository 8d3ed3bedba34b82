"""Kernel, rights, modules, tools: can netagent work here at all?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from netagent import settings
from netagent.doctor import findings
from netagent.doctor.evidence import Evidence
from netagent.iptables import tools
from netagent.model import addresses

_LEAST: Final = (5, 13)


def release(seen: Evidence) -> Iterator[findings.Finding]:
    """Is the kernel new enough?"""
    found = version(seen)
    fact = f"uname -r: {seen.kernel.release}"
    if seen.wanted.mode is not settings.Mode.NFTABLES or found is None:
        yield findings.info("kernel-version", f"this is Linux {seen.kernel.release}", fact)
    elif found >= _LEAST:
        yield findings.ok("kernel-version", "the kernel is new enough", fact)
    else:
        yield findings.error(
            "kernel-version",
            "the kernel is too old for mode nftables",
            fact,
            remedy="Run Linux 5.13 or newer, or use mode iptables (`mode: iptables` in the configuration).",
        )


def version(seen: Evidence) -> tuple[int, int] | None:
    """The kernel's version as two numbers; None if its name does not begin so."""
    found = re.match(r"(\d+)\.(\d+)", seen.kernel.release)
    return (int(found[1]), int(found[2])) if found else None


def features(seen: Evidence) -> Iterator[findings.Finding]:
    """Does the kernel have every expression that our rules are made of?"""
    if seen.wanted.mode is not settings.Mode.NFTABLES:
        return
    if not seen.kernel.probed:
        return  # `privileges` says why
    lacks = [lack for lack in seen.kernel.lacks if lack.family is not addresses.Family.IPV6 or seen.kernel.has_ipv6]
    if not lacks:
        yield findings.ok("kernel-features", "the kernel has every expression that our rules are made of")
        return
    facts = [f"{lack.family.value}: {lack.purpose} needs {lack.option} ({lack.reason})" for lack in lacks]
    yield findings.error(
        "kernel-features",
        "the kernel lacks what our rules are made of",
        *facts,
        remedy="Load the modules, or run a kernel with these options; mode iptables needs none of them.",
    )


def privileges(seen: Evidence) -> Iterator[findings.Finding]:
    """May we look at everything?"""
    unprobed = not seen.kernel.probed and seen.wanted.mode is settings.Mode.NFTABLES
    if not seen.privileged or seen.ruleset.unread or unprobed:
        facts = (seen.ruleset.unread,) if seen.ruleset.unread else ()
        yield findings.warning(
            "privileges",
            "this is half an examination: what the kernel's rules hold cannot be seen",
            *facts,
            remedy="Run it as root, or with CAP_NET_ADMIN, in the network namespace of the node.",
        )
    else:
        yield findings.ok("privileges", "CAP_NET_ADMIN is there")
    for line in seen.unseen:
        yield findings.info("privileges", f"could not look: {line}")


def modules(seen: Evidence) -> Iterator[findings.Finding]:
    """Are the modules there that we need?"""
    match seen.kernel.conntrack:
        case True:
            yield findings.ok("module-nf-conntrack", "connection tracking is there")
        case False:
            yield findings.error(
                "module-nf-conntrack",
                "this kernel has no connection tracking",
                "no module nf_conntrack in /lib/modules, and none is loaded",
                remedy="Run a kernel with CONFIG_NF_CONNTRACK; no Service can be served without.",
            )
        case None:
            yield findings.info(
                "module-nf-conntrack",
                "connection tracking is not loaded yet",
                "there is no /proc/sys/net/netfilter/nf_conntrack_max",
                remedy="The first rule loads it, as does `netagent sysctl`.",
            )
    if seen.wanted.mode is settings.Mode.IPTABLES and seen.kernel.xt_recent is False:
        yield findings.warning(
            "module-xt-recent",
            "session affinity cannot work in mode iptables: this kernel has no xt_recent",
            "no module xt_recent in /lib/modules, and none is loaded",
            remedy="Run a kernel with CONFIG_NETFILTER_XT_MATCH_RECENT, or use mode nftables.",
        )


def programs(seen: Evidence) -> Iterator[findings.Finding]:
    """Are the programs there that mode iptables needs? Mode nftables needs none."""
    if seen.wanted.mode is not settings.Mode.IPTABLES:
        return
    asked = seen.wanted.iptables_variant
    wanted = {tools.Variant(asked)} if asked != "auto" else set(tools.Variant)
    if wanted & seen.xtables.installed:
        yield findings.ok("tools", "the programs of iptables are there")
        return
    missing = sorted(tools.program(addresses.Family.IPV4, each, "restore") for each in wanted)
    yield findings.error(
        "tools",
        "mode iptables cannot work: its programs are missing",
        f"not found: {', '.join(missing)}",
        remedy="Install the package iptables (Fedora, RHEL: iptables-nft or iptables-legacy), or use mode nftables.",
    )
