"""What both variants of xtables hold, by their own tools. No table is created by looking, and no module loaded."""

from __future__ import annotations

import re
import subprocess
from typing import Final

from netagent import errors
from netagent.doctor import evidence
from netagent.iptables import readback, tools, variant
from netagent.model import addresses

_SECONDS: Final = 60
_NODE_PORT: Final = re.compile(r"-p (tcp|udp|sctp)\b.*--dport (\d+)\b")
_NODE_PORT_CHAINS: Final = f"{readback.PREFIX}NODE-PORTS"


def read() -> evidence.Xtables:
    """What the tools print. What cannot be read is named, and is no error."""
    installed = frozenset(each for each in tools.Variant if tools.installed(each))
    saved: list[evidence.Saved] = []
    unread: list[str] = []
    for each in tools.Variant:
        for family in addresses.Family:
            if each is tools.Variant.LEGACY and not variant.legacy_tables(family):
                continue
            if each not in installed:
                if each is tools.Variant.LEGACY:
                    unread.append(
                        f"{family.value} has legacy tables, and {tools.program(family, each, 'save')} is missing"
                    )
                continue
            try:
                text = tools.save(each, family)
                saved.append(evidence.Saved(each, family, tuple(readback.tables(text, strict=False))))
            except errors.NetagentError as error:
                unread.append(str(error))
    return evidence.Xtables(installed, tuple(saved), tuple(unread), _sets())


def has_ours(found: evidence.Xtables) -> bool:
    """Whether there are chains of mode iptables."""
    return any(
        chain.startswith(readback.PREFIX) for saved in found.saved for table in saved.tables for chain in table.chains
    )


def node_ports(found: evidence.Xtables) -> frozenset[evidence.NodePort]:
    """The node ports that our rules of mode iptables serve."""
    ports: set[evidence.NodePort] = set()
    for saved in found.saved:
        for table in saved.tables:
            for chain, rules in table.chains.items():
                if chain.startswith(_NODE_PORT_CHAINS):
                    for match in filter(None, map(_NODE_PORT.search, rules)):
                        ports.add(evidence.NodePort(addresses.Protocol[match[1].upper()], int(match[2])))
    return frozenset(ports)


def _sets() -> tuple[str, ...]:
    """The names of all sets of ipset; none where it is not installed, or not allowed."""
    path = tools.which("ipset")
    if path is None:
        return ()
    try:
        done = subprocess.run([path, "list", "-n"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(sorted(done.stdout.split())) if done.returncode == 0 else ()
