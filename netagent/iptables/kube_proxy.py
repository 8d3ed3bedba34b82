"""What kube-proxy leaves behind when it is gone, in any of its modes, and how to remove it.

* iptables (and ipvs): KUBE-* chains and the rules that lead to them, in legacy tables and in nf_tables, both families
* nftables: the tables `ip kube-proxy` and `ip6 kube-proxy`
* ipvs: sets KUBE-*, the interface kube-ipvs0, and virtual services

kubelet's own chains stay, and so does connection tracking: what is established goes on. IPVS virtual services are told
but not removed, as nothing says whose they are. While kube-proxy runs, it makes all of it again.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from netagent import errors
from netagent.iptables import readback, tools, variant
from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import netlink, wire

_PREFIX: Final = "KUBE-"
# kubelet makes them, and makes them again (k8s.io/kubernetes pkg/kubelet/kubelet_network_linux.go).
KUBELETS: Final = frozenset({"KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-FIREWALL"})
# Chains and sets that are called like kube-proxy's and are the network policies of kube-router, also within k3s.
_KUBE_ROUTERS: Final = ("KUBE-ROUTER-", "KUBE-NWPLCY-", "KUBE-POD-FW-", "KUBE-DEFAULT-NETPOL", "KUBE-SRC-", "KUBE-DST-")
_TABLE: Final = "kube-proxy"
_INTERFACE: Final = "kube-ipvs0"
_SECONDS: Final = 60


class _Chains(NamedTuple):
    """Of one table: chains to delete, the rules elsewhere that lead to them, and chains that others still need."""

    variant: tools.Variant
    family: addresses.Family
    table: str
    chains: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]  # chain, rule
    kept: tuple[str, ...]

    def in_words(self) -> Iterator[str]:
        where = f"{tools.program(self.family, self.variant)} -t {self.table}"
        for chain, rule in self.rules:
            yield f"{where}: rule -A {chain} {rule}"
        shown = ", ".join(self.chains[:5]) + (", ..." if len(self.chains) > 5 else "")
        if self.chains:
            yield f"{where}: {len(self.chains)} chain{'s' * (len(self.chains) > 1)} ({shown})"

    def script(self) -> str:
        lines = [f"*{self.table}", *(f":{chain} - [0:0]" for chain in self.chains)]
        lines += (f"-D {chain} {rule}" for chain, rule in self.rules)
        lines += (f"-X {chain}" for chain in self.chains)
        return "".join(f"{line}\n" for line in (*lines, "COMMIT"))


class Leftovers:
    """What kube-proxy left in this network namespace.

    Use: `found` says what would be removed, `remove` removes it; both look anew. A second time is fine.
    Threading: none.
    """

    def __init__(self, *, lock_seconds: float = 5.0) -> None:
        self._lock_seconds = lock_seconds

    def found(self) -> list[str]:
        """What there is, a line each. Empty if there is nothing."""
        lines = [line for group in self._chains() for line in group.in_words()]
        lines += (f"nftables table {family} {_TABLE}" for _, family in self._nft_tables())
        lines += (f"ipset {name}" for name in self._sets())
        if self._has_interface():
            lines.append(f"interface {_INTERFACE}")
        return lines

    def notes(self) -> list[str]:
        """What there is and stays, and what to do about it."""
        notes = [
            f"{group.table} chain {chain} stays: rules of others lead to it"
            for group in self._chains()
            for chain in group.kept
        ]
        services = _virtual_services()
        if services:
            notes.append(f"{services} IPVS virtual services stay: `ipvsadm -C` removes all of them, whoever made them")
        return notes

    def remove(self) -> list[str]:
        """Remove what `found` names, and return it. What was removed before an error stays removed."""
        removed: list[str] = []
        for group in self._chains():
            tools.restore(group.variant, group.family, group.script(), lock_seconds=self._lock_seconds)
            removed += group.in_words()
        for proto, family in self._nft_tables():
            _delete_table(proto, family)
            removed.append(f"nftables table {family} {_TABLE}")
        for name in self._sets():  # after the rules that name them
            _run("ipset", "destroy", name)
            removed.append(f"ipset {name}")
        if self._has_interface():
            _run("ip", "link", "delete", _INTERFACE)
            removed.append(f"interface {_INTERFACE}")
        return removed

    def _chains(self) -> list[_Chains]:
        found: list[_Chains] = []
        for each in tools.Variant:
            if not tools.installed(each):
                continue
            for family in addresses.Family:
                if each is tools.Variant.LEGACY and not variant.legacy_tables(family):
                    continue
                for table in readback.tables(tools.save(each, family), strict=False):
                    group = _of_table(each, family, table)
                    if group.chains or group.rules or group.kept:
                        found.append(group)
        return found

    def _nft_tables(self) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        with netlink.NftablesSocket() as door:
            for proto, family in ((c.NFPROTO_IPV4, "ip"), (c.NFPROTO_IPV6, "ip6")):
                try:
                    bodies = door.dump_all(c.NFT_MSG_GETTABLE, proto)
                except PermissionError as error:
                    raise errors.PrivilegeError(
                        f"user {os.geteuid()} may not look at nf_tables: CAP_NET_ADMIN is needed"
                    ) from error
                except OSError:
                    continue  # no nf_tables: no table
                names = [dict(netlink.attributes(body)).get(c.NFTA_TABLE_NAME, b"").rstrip(b"\0") for body in bodies]
                found += [(proto, family)] * (_TABLE.encode() in names)
        return found

    def _sets(self) -> list[str]:
        if tools.which("ipset") is None:
            return []
        try:
            names = _run("ipset", "list", "-n").split()
        except errors.UnsupportedError:
            return []  # the kernel has no sets
        return list(filter(is_kube_proxys, names))

    def _has_interface(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(socket.if_nametoindex(_INTERFACE))
        return False


def is_kube_proxys(name: str) -> bool:
    """Whether a chain or a set of this name is kube-proxy's: not kubelet's, not of kube-router, not of anybody else."""
    return name.startswith(_PREFIX) and name not in KUBELETS and not name.startswith(_KUBE_ROUTERS)


def _of_table(each: tools.Variant, family: addresses.Family, table: readback.SavedTable) -> _Chains:
    theirs = set(filter(is_kube_proxys, table.chains))
    rules: list[tuple[str, str]] = []
    needed: set[str] = set()
    for chain, found in table.chains.items():
        if chain in theirs:
            continue
        for rule in found:
            target = readback.leads_to(rule)
            if target not in theirs:
                continue
            if chain in table.policies or chain in KUBELETS:
                rules.append((chain, rule))
            else:
                needed.add(target)
    # What somebody else leads to stays, with all that it leads to itself.
    reached = list(needed)
    while reached:
        for rule in table.chains[reached.pop()]:
            target = readback.leads_to(rule)
            if target in theirs and target not in needed:
                needed.add(target)
                reached.append(target)
    return _Chains(each, family, table.name, tuple(sorted(theirs - needed)), tuple(rules), tuple(sorted(needed)))


def _delete_table(proto: int, family: str) -> None:
    request = netlink.message(c.NFT_MSG_DELTABLE, proto, c.NLM_F_REQUEST, wire.text(c.NFTA_TABLE_NAME, _TABLE))
    with netlink.NftablesSocket() as door:
        failures = door.commit([request])
    if failures:
        raise errors.CommitRejectedError(
            f"cannot delete table {family} {_TABLE}: {failures[0].text}", errno=failures[0].errno
        )


def _virtual_services() -> int:
    try:
        lines = Path("/proc/self/net/ip_vs").read_text().splitlines()
    except OSError:
        return 0
    return sum(line.startswith(("TCP", "UDP", "SCTP", "FWM")) for line in lines)


def _run(name: str, *arguments: str) -> str:
    path = tools.which(name)
    if path is None:
        raise errors.UnsupportedError(f"{name} is not installed: it is in the package {_PACKAGES[name]}")
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise errors.NetagentError(f"{name} {arguments[0]} did not end within {_SECONDS} s") from error
    if done.returncode:
        said = " ".join(done.stderr.split())
        if "Operation not permitted" in said or "Permission denied" in said:
            raise errors.PrivilegeError(f"user {os.geteuid()} may not use {name}: {said}")
        if "Cannot open session to kernel" in said or "protocol not supported" in said:
            raise errors.UnsupportedError(f"{name}: {said}")
        raise errors.NetagentError(f"{name} {' '.join(arguments)} failed: {said}")
    return done.stdout


_PACKAGES: Final = {"ipset": "ipset", "ip": "iproute2"}
