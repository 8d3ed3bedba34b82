"""Interfaces, clock, the directory of state, the agent and its tables."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Final

from netagent import settings
from netagent.doctor import findings
from netagent.doctor.evidence import Evidence, Link, Table
from netagent.doctor.judge import kernel
from netagent.iptables import readback, tools
from netagent.nftables import constants as c
from netagent.nftables import ruleset

# Bytes that a tunnel puts around each packet, at least, by kind of interface.
_TUNNELS: Final = {"vxlan": 50, "geneve": 50, "ipip": 20, "sit": 20, "gre": 24, "ip6tnl": 40, "wireguard": 60}
# Interfaces that lead to other hosts, by kind; "" is a physical one. A veth with an address is one in a container.
_OUTWARD: Final = frozenset({"", "bond", "team", "vlan", "macvlan", "ipvlan", "veth"})
# Of network plugins, with addresses, and not to other hosts.
_INWARD_NAMES: Final = ("cilium", "lxc", "cali", "nodelocaldns")
_DAY_SECONDS: Final = 86400.0
_OWNERSHIP: Final = (6, 9)  # the first Linux with tables that have an owner and outlive it


def mtus(seen: Evidence) -> Iterator[findings.Finding]:
    """Do packets fit through every interface on their way?"""
    check = "mtu"
    outward = [link for link in seen.links if _is_outward(link)]
    sizes = {link.mtu for link in outward}
    path = [link for link in outward if link.number in seen.uplinks] or outward
    well = True
    if len(sizes) > 1:
        well = False
        yield findings.warning(
            check,
            "the interfaces of this host have different MTUs: what comes in by the one with the larger packets, or is "
            "larger than a pod's own interface, depends on ICMP messages that firewalls like to drop",
            *_spelled(outward),
            remedy="Give them the same MTU, or see that ICMP `fragmentation needed` passes everywhere.",
        )
    if path:
        narrow = min(path, key=lambda link: (link.mtu, link.name))
        wide = [link for link in seen.links if link.up and _too_wide(link, narrow)]
        if wide:
            well = False
            yield findings.warning(
                check,
                f"packets of pods can be larger than what {narrow.name} lets through: large answers get lost",
                *_spelled([narrow, *wide]),
                remedy="Set the MTU of the network plugin to that of the network below it, less what its tunnel adds "
                "(VXLAN 50, IP in IP 20, WireGuard 60 or 80), and start the pods anew.",
            )
    if well:
        yield findings.ok(check, "packets fit through the interfaces", *_spelled(outward))


def _is_outward(link: Link) -> bool:
    named_inward = link.name.startswith(_INWARD_NAMES)
    return link.up and not link.loopback and bool(link.addresses) and link.kind in _OUTWARD and not named_inward


def _too_wide(link: Link, narrow: Link) -> bool:
    """Whether packets that an interface takes do not fit into those of the host's way out."""
    if link.kind in _TUNNELS:
        return bool(link.addresses) and link.mtu + _TUNNELS[link.kind] > narrow.mtu
    # The host's end of a pod's link. Bridges tell nothing of their own: they take the MTU of what is attached.
    return link.kind == "veth" and not link.addresses and link.mtu > narrow.mtu


def _spelled(links: list[Link]) -> list[str]:
    return [f"{link.name}{f' ({link.kind})' if link.kind else ''}: MTU {link.mtu}" for link in links]


def clock(seen: Evidence) -> Iterator[findings.Finding]:
    """Is the clock right? Certificates and tokens are good for a time only."""
    now = seen.clock
    shown = datetime.datetime.fromtimestamp(now.now, datetime.UTC).isoformat(timespec="seconds")
    if now.now < now.not_before - _DAY_SECONDS:
        yield findings.error(
            "clock",
            "the clock is wrong: it says that netagent has not been installed yet. No certificate of the API server is "
            "valid at that time",
            f"now, as the host thinks: {shown}",
            remedy="Set the time, and run a time service: timedatectl set-ntp true, or chrony.",
        )
    elif now.synchronised is False:
        yield findings.info(
            "clock",
            "no time service tells the kernel that the clock is synchronised",
            f"now, as the host thinks: {shown}",
            remedy="Run a time service: timedatectl set-ntp true, or chrony with `rtcsync`.",
        )
    else:
        error = "" if now.error is None else f"error at most {now.error:.3f} s"
        yield findings.ok("clock", "the clock is synchronised", *((error,) if error else ()))


def directory(seen: Evidence) -> Iterator[findings.Finding]:
    """Can what is to be remembered be written?"""
    where = seen.directory
    if not where.exists:
        return
    if not where.read_only and not where.full:
        yield findings.ok("state-directory", "the directory of state can be written to", where.path)
        return
    why = "its file system is mounted read-only" if where.read_only else "its file system is full"
    needed = seen.wanted.mode is settings.Mode.IPTABLES
    make = findings.warning if needed else findings.info
    yield make(
        "state-directory",
        "the variant of iptables that was chosen cannot be remembered, and may be another one after a restart"
        if needed
        else "the directory of state cannot be written to, which matters in mode iptables only",
        f"{where.path}: {why}",
        remedy="Make room, or mount it writable; or set netagent.iptablesVariant.",
    )


def agent(seen: Evidence) -> Iterator[findings.Finding]:
    """Does exactly one agent look after this namespace?"""
    check = "agent"
    ours = [table for table in seen.ruleset.tables if table.name == ruleset.TABLE_NAME]
    chains = _chains_of_ours(seen)
    if len(seen.agent.running) > 1:
        yield findings.error(
            check,
            "several agents run in this network namespace, and undo each other's work",
            *(f"process {pid}: netagent run" for pid in seen.agent.running),
            remedy="Stop all but one: a systemd service and a DaemonSet exclude each other. The rules stay.",
        )
    elif seen.agent.silent:
        yield findings.error(
            check,
            "the agent is there and does not answer: the rules serve, but endpoints that come and go are not followed",
            seen.agent.present,
            seen.agent.silent,
            remedy="Start it anew: systemctl restart netagent (DaemonSet: delete its pod). If ps shows it stopped (T), "
            "let it go on (kill -CONT). The rules stay meanwhile.",
        )
    elif seen.agent.present or seen.agent.running:
        who = seen.agent.present or f"process {seen.agent.running[0]}"
        yield findings.ok(check, "one agent looks after this network namespace", who)
    elif ours and not chains and not _had_an_agent(seen, ours):
        yield findings.info(
            check,
            "no agent runs here; the rules are of `netagent sync`, which follows nothing",
            *(f"nftables table {table}" for table in ours),
        )
    elif ours or chains:
        yield findings.warning(
            check,
            "no agent runs: the rules are there and serve, but endpoints that come and go are not followed",
            *(f"nftables table {table}" for table in ours),
            *chains,
            remedy="Start it (systemctl start netagent), and see why it ended: journalctl -u netagent. If it is not to "
            "run here any more: netagent cleanup.",
        )
    else:
        yield findings.info(check, "no agent runs here, and it has left no tables", remedy="netagent run starts one.")


def _chains_of_ours(seen: Evidence) -> list[str]:
    """What there is of mode iptables, a line for each table. Whether an agent made it nobody can tell."""
    counted = (
        (saved, table, sum(chain.startswith(readback.PREFIX) for chain in table.chains))
        for saved in seen.xtables.saved
        for table in saved.tables
    )
    return [
        f"{tools.program(saved.family, saved.variant)} -t {table.name}: {count} chains of netagent"
        for saved, table, count in counted
        if count
    ]


def _had_an_agent(seen: Evidence, ours: list[Table]) -> bool:
    """Whether an agent made these tables: where the kernel lets it own them, what nobody ever owned is a command's."""
    if (kernel.version(seen) or (0, 0)) < _OWNERSHIP or not seen.wanted.table_ownership:
        return True
    return any(table.flags & (c.NFT_TABLE_F_OWNER | c.NFT_TABLE_F_PERSIST) for table in ours)


def tables(seen: Evidence) -> Iterator[findings.Finding]:
    """Are our tables switched on, and nobody else's?"""
    for table in seen.ruleset.tables:
        if table.name != ruleset.TABLE_NAME:
            continue
        if table.flags & c.NFT_TABLE_F_DORMANT:
            yield findings.error(
                "tables",
                f"our table {table} is switched off (dormant): none of its Services is served",
                f"flags {table.flags:#x}",
                remedy="A running agent switches it on by itself. Without: nft delete table "
                f"{table}, then start the agent (or netagent sync).",
            )
        else:
            owned = f"owned by netlink port {table.owner}" if table.owner else "not owned by a process"
            yield findings.ok("tables", f"our table {table} is switched on", owned)
