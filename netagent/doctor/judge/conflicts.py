"""Other software that changes or drops what Services need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from netagent.doctor import findings
from netagent.doctor.evidence import Chain, Evidence
from netagent.iptables import kube_proxy, readback, tools, variant
from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import layout, ruleset

_KUBE_PROXY: Final = "kube-proxy"
_KUBE_PREFIX: Final = "KUBE-"
# kubelets before 1.28 make these three, whether there is a kube-proxy or not.
_OLD_KUBELETS: Final = frozenset({"KUBE-MARK-MASQ", "KUBE-MARK-DROP", "KUBE-POSTROUTING"})
_IPVS_INTERFACE: Final = "kube-ipvs0"
_XTABLES: Final = frozenset({"raw", "mangle", "nat", "filter", "security"})
# Tables of software that translates the addresses of its own containers only, beside any Service proxy.
_GOOD_NEIGHBOURS: Final = re.compile(
    r"cni_hostport|cni_plugins_masquerade|netavark|docker-bridges|flannel-ipv[46]|kindnet.*|libvirt_network|calico"
    r"|ovn-kubernetes|lxd|incus|io\.systemd\.nat"
)
# Chains by which network plugins have the traffic of pods accepted.
_ACCEPTING: Final = (
    "FLANNEL-FWD", "cali-FORWARD", "CNI-FORWARD", "CILIUM_FORWARD", "WEAVE-NPC", "KUBE-ROUTER-FORWARD",
    "ANTREA-FORWARD",
)  # fmt: skip
_MARKING: Final = re.compile(r"-j MARK --(?:set-x?mark|or-mark) (0x[0-9a-f]+|\d+)(?:/(0x[0-9a-f]+|\d+))?")
_SHOWN: Final = 8


def kube_proxy_running(seen: Evidence) -> Iterator[findings.Finding]:
    """Do two proxies serve the same Services?"""
    pids = [process.pid for process in seen.processes if process.program == _KUBE_PROXY]
    if pids:
        yield findings.error(
            "kube-proxy-running",
            "kube-proxy runs on this node: two proxies translate the same connections, and whose rules come first wins",
            *(f"process {pid}" for pid in pids),
            remedy="Take this node out of the DaemonSet kube-proxy (docs/migrating-from-kube-proxy.md), then "
            "`netagent cleanup --kube-proxy`. To keep both, give each its Services: netagent.serviceProxyName.",
        )
    else:
        yield findings.ok("kube-proxy-running", "kube-proxy does not run here")


def kube_proxy_left(seen: Evidence) -> Iterator[findings.Finding]:
    """Does kube-proxy's state still handle packets?"""
    chains = dict(_kube_chains(seen))
    facts = [f"nftables table {table}" for table in seen.ruleset.tables if table.name == _KUBE_PROXY]
    old_kubelet = [where for where, names in chains.items() if names <= _OLD_KUBELETS]
    for where, names in chains.items():
        if where not in old_kubelet:
            shown = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
            facts.append(f"{where}: {len(names)} chain{'s' * (len(names) > 1)} ({shown})")
    facts += [f"interface {link.name}" for link in seen.links if link.name == _IPVS_INTERFACE]
    facts += [f"ipset {name}" for name in filter(kube_proxy.is_kube_proxys, seen.xtables.sets)][:_SHOWN]
    if facts:
        yield findings.error(
            "kube-proxy-leftovers",
            "kube-proxy's rules are still there: connections to Services may be sent to endpoints that are long gone",
            *facts,
            remedy="`netagent cleanup --kube-proxy` removes them, once kube-proxy does not run here any more.",
        )
    elif old_kubelet:
        yield findings.info(
            "kube-proxy-leftovers",
            "there are chains of a kubelet before 1.28, or of a kube-proxy; they do nothing by themselves",
            *old_kubelet,
        )
    else:
        yield findings.ok("kube-proxy-leftovers", "kube-proxy has left nothing here")


def _kube_chains(seen: Evidence) -> Iterator[tuple[str, set[str]]]:
    """kube-proxy's chains by where they are; of nf_tables the kernel tells, which takes no tools."""
    for saved in seen.xtables.saved:
        if saved.variant is tools.Variant.LEGACY:
            for table in saved.tables:
                names = set(filter(kube_proxy.is_kube_proxys, table.chains))
                if names:
                    yield f"{tools.program(saved.family, saved.variant)} -t {table.name}", names
    by_table: dict[str, set[str]] = {}
    for chain in seen.ruleset.chains:
        if chain.table in _XTABLES and kube_proxy.is_kube_proxys(chain.name):
            by_table.setdefault(f"nftables table {chain.family} {chain.table}", set()).add(chain.name)
    yield from sorted(by_table.items())


def mixture(seen: Evidence) -> Iterator[findings.Finding]:
    """Are rules in both variants of xtables?"""
    observed: dict[tools.Variant, variant.Observation] = {each: variant.Observation(each) for each in tools.Variant}
    for saved in seen.xtables.saved:
        before = observed[saved.variant]
        rules = sum(len(rules) for table in saved.tables for rules in table.chains.values())
        kubelet = any(chain in table.chains for table in saved.tables for chain in variant.KUBELET_CHAINS)
        observed[saved.variant] = before._replace(rules=before.rules + rules, kubelet=before.kubelet or kubelet)
    counts = [f"{found.rules} rules in {found.variant.in_words}" for found in observed.values()]
    if variant.mixture_of(list(observed.values())):
        programs = [tools.program(addresses.Family.IPV4, each, "save") for each in tools.Variant]
        yield findings.warning(
            "iptables-mixture",
            "two variants of iptables are in use, legacy and nf_tables; packets meet the rules of both, and each one's "
            "tools show its own only",
            *counts,
            remedy=f"See both: {'; '.join(programs)}. Move all software of the host to one of them "
            "(update-alternatives --config iptables), and remove the rules of the other.",
        )
    else:
        yield findings.ok("iptables-mixture", "at most one variant of iptables is in use", *counts)
    for line in seen.xtables.unread:
        yield findings.info("iptables-mixture", f"could not look: {line}")


def firewalld(seen: Evidence) -> Iterator[findings.Finding]:
    """Does firewalld reject what is forwarded?"""
    facts = [f"nftables table {table}" for table in seen.ruleset.tables if table.name == "firewalld"]
    facts += [f"process {process.pid}" for process in seen.processes if process.program == "firewalld"]
    if facts:
        yield findings.warning(
            "firewalld",
            "firewalld is at work here: it rejects forwarded connections, node ports among them, between zones that do "
            "not trust each other, and a reload changes iptables rules of others",
            *facts,
            remedy="Put pods and the interfaces of the cluster into the zone trusted (firewall-cmd --permanent "
            "--zone=trusted --add-source=POD-CIDR; firewall-cmd --reload), or switch it off on nodes: "
            "systemctl disable --now firewalld.",
        )
    else:
        yield findings.ok("firewalld", "firewalld is not at work here")


def forward_policy(seen: Evidence) -> Iterator[findings.Finding]:
    """Is what is forwarded dropped, unless somebody accepts it?"""
    docker = sorted({str(chain) for chain in seen.ruleset.chains if chain.name.startswith("DOCKER")})
    docker += [
        f"{tools.program(saved.family, saved.variant)} -t {table.name}, chain {chain}"
        for saved in seen.xtables.saved
        if saved.variant is tools.Variant.LEGACY
        for table in saved.tables
        for chain in table.chains
        if chain.startswith("DOCKER")
    ]
    dropping = list(_dropping(seen))
    whose = "Docker has set" if docker else "something has set"
    accepted = _accepted(seen)
    if dropping and not accepted:
        yield findings.warning(
            "forward-policy",
            f"{whose} the policy of forwarded packets to DROP: connections to pods are dropped, those to node ports "
            "and load balancers first, unless a rule accepts them",
            *dropping,
            *docker[:_SHOWN],
            remedy="Accept the pods' addresses: iptables -I FORWARD -s POD-CIDR -j ACCEPT; "
            "iptables -I FORWARD -d POD-CIDR -j ACCEPT; or have none of it: iptables -P FORWARD ACCEPT "
            '(Docker: "iptables": false in daemon.json).',
        )
    elif dropping:
        yield findings.info(
            "forward-policy", "forwarded packets are dropped unless accepted; pods are", *dropping, accepted
        )
    elif docker:
        yield findings.info("forward-policy", "Docker is here, and lets forwarded packets pass", *docker[:_SHOWN])
    else:
        yield findings.ok("forward-policy", "no policy drops forwarded packets")


def _dropping(seen: Evidence) -> Iterator[str]:
    families = {"ip": addresses.Family.IPV4, "ip6": addresses.Family.IPV6}
    for chain in seen.ruleset.chains:
        drops = chain.hook == c.NF_INET_FORWARD and chain.policy == c.NF_DROP and chain.table != ruleset.TABLE_NAME
        if drops and families.get(chain.family, seen.families[0]) in seen.families:
            yield f"{chain}: policy drop"
    for saved in seen.xtables.saved:
        if saved.variant is tools.Variant.LEGACY and saved.family in seen.families:
            for table in saved.tables:
                if table.policies.get("FORWARD") == "DROP":
                    yield f"{tools.program(saved.family, saved.variant)} -t {table.name} -P FORWARD DROP"


def _accepted(seen: Evidence) -> str:
    """What accepts the traffic of pods before a policy can drop it, in words; "" if nothing is seen to."""
    for chain in seen.ruleset.chains:
        if chain.name in _ACCEPTING:
            return str(chain)
    cidrs = [str(cidr) for cidr in seen.cidrs]
    for saved in seen.xtables.saved:
        for table in saved.tables:
            for name in _ACCEPTING:
                if name in table.chains:
                    return f"{tools.program(saved.family, saved.variant)}: chain {name}"
            for rule in table.chains.get("FORWARD", ()):
                if rule.endswith("-j ACCEPT") and any(f"-d {cidr}" in rule for cidr in cidrs):
                    return f"{tools.program(saved.family, saved.variant)}: -A FORWARD {rule}"
    return ""


def other_translations(seen: Evidence) -> Iterator[findings.Finding]:
    """Does somebody else translate destinations before us, or at our place?"""
    before = [chain for chain in seen.ruleset.chains if _translates(chain)]
    foreign = [chain for chain in before if chain.table not in _XTABLES and not _GOOD_NEIGHBOURS.fullmatch(chain.table)]
    if foreign:
        yield findings.warning(
            "other-nat",
            "another table translates destinations at the same place as ours, or before: of a connection that both "
            "know, the first one decides",
            *(f"{chain}: priority {chain.priority}, {chain.rules} rules" for chain in foreign),
            remedy="Find out whose it is. If it does not touch addresses of Services and node ports, it is harmless; "
            f"give it a priority above {layout.PRIORITY_DNAT} then, and this is quiet.",
        )
    elif before:
        yield findings.info(
            "other-nat",
            "others translate destinations, too, as container runtimes do for their own ports",
            *map(str, before),
        )
    else:
        yield findings.ok("other-nat", "nobody else translates destinations")


def _translates(chain: Chain) -> bool:
    return (
        chain.kind == "nat"
        and chain.hook in (c.NF_INET_PRE_ROUTING, c.NF_INET_LOCAL_OUT)
        and chain.priority <= layout.PRIORITY_DNAT
        and chain.rules > 0
        and chain.table not in (ruleset.TABLE_NAME, _KUBE_PROXY, "firewalld")  # these have findings of their own
    )


def mark_bit(seen: Evidence) -> Iterator[findings.Finding]:
    """Does somebody else use the bit of the packet mark that means "masquerade" to us?"""
    bit = 1 << seen.wanted.masquerade_bit
    facts = [
        f"{chain}: rule with handle {handle}"
        for chain in seen.ruleset.chains
        if chain.table not in (ruleset.TABLE_NAME, _KUBE_PROXY) and not _is_known(chain.name)
        for handle in chain.marking
    ]
    for saved in seen.xtables.saved:
        program = tools.program(saved.family, saved.variant)
        for table in saved.tables:
            facts += [
                f"{program} -t {table.name} -A {chain} {rule}"
                for chain, rules in table.chains.items()
                if not _is_known(chain)
                for rule in rules
                if _sets(rule, bit)
            ]
    facts += [
        f"{route.family.value} routing rule {route.priority}: fwmark {route.mark:#x}/{route.mask:#x}"
        for route in seen.mark_routes
        if route.mark & route.mask & bit
    ]
    if facts:
        yield findings.warning(
            "mark-bit",
            f"others use bit {seen.wanted.masquerade_bit} of the packet mark ({bit:#x}), by which our rules know what "
            "to masquerade: connections get this host's address as source, or another route, by mistake",
            *facts[:_SHOWN],
            *((f"and {len(facts) - _SHOWN} more",) if len(facts) > _SHOWN else ()),
            remedy="Give one of the two another bit; ours is nftables.masqueradeBit (iptables.masqueradeBit).",
        )
    else:
        yield findings.ok("mark-bit", f"nobody else uses bit {seen.wanted.masquerade_bit} of the packet mark")


def _is_known(chain: str) -> bool:
    """Chains whose marking is ours, or kube-proxy's and kubelet's, which have findings of their own."""
    return chain.startswith((readback.PREFIX, _KUBE_PREFIX))


def _sets(rule: str, bit: int) -> bool:
    found = _MARKING.search(rule)
    return bool(found and int(found[1], 0) & bit)
