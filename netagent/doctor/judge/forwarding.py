"""Does the host pass packets on, and does it let the answers in?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from netagent import settings
from netagent.doctor import findings
from netagent.doctor.evidence import Evidence
from netagent.model import addresses

_FORWARDING: Final = {
    addresses.Family.IPV4: "net/ipv4/ip_forward",
    addresses.Family.IPV6: "net/ipv6/conf/all/forwarding",
}
_RP_FILTER: Final = "net/ipv4/conf/{}/rp_filter"
_STRICT: Final = 1  # Documentation/networking/ip-sysctl.rst
# Bridges that network plugins attach pods to, by the name that they give them.
_POD_BRIDGES: Final = ("cni", "cbr", "kube-bridge", "weave", "lxdbr", "podman")


def dotted(path: str) -> str:
    """A sysctl as people write it: with dots."""
    return path.replace("/", ".")


def _set(path: str, value: object) -> str:
    return (
        f"Now: sysctl -w {dotted(path)}={value}. For good: write it into a file of /etc/sysctl.d "
        "(the one that sorts last wins)."
    )


def forwarding(seen: Evidence) -> Iterator[findings.Finding]:
    """Are packets passed on, in each family that has Services?"""
    for family in addresses.Family:
        path = _FORWARDING[family]
        value = seen.sysctls.get(path)
        check = "ip-forward" if family is addresses.Family.IPV4 else "ipv6-forward"
        if value is None:
            continue
        fact = f"{dotted(path)} = {value}"
        if value != "0":
            yield findings.ok(check, f"this host forwards {family.value} packets", fact)
        elif family in seen.families:
            yield findings.error(
                check,
                f"this host does not forward {family.value} packets: no Service reaches an endpoint on another host, "
                "and no pod reaches a Service",
                fact,
                remedy=_set(path, 1),
            )
        else:
            yield findings.info(
                check, f"this host does not forward {family.value} packets, and has no such Services", fact
            )


def reverse_path(seen: Evidence) -> Iterator[findings.Finding]:
    """Does the strict reverse path filter drop packets that come another way than answers would go?"""
    check = "rp-filter"
    everywhere = seen.number(_RP_FILTER.format("all")) or 0
    remedy = (
        "Use loose mode (2) or none (0): sysctl -w net.ipv4.conf.all.rp_filter=2, and the same into /etc/sysctl.d. "
        "The higher one of `all` and of the interface counts, so 2 for `all` is enough."
    )
    if everywhere == _STRICT:
        yield findings.warning(
            check,
            "the strict reverse path filter is on for all interfaces: connections that come in by one interface and "
            "whose answers would leave by another are dropped without a word",
            f"{dotted(_RP_FILTER.format('all'))} = 1",
            remedy=remedy,
        )
        return
    addressed = [link for link in seen.links if link.up and not link.loopback and _has(link.addresses, 4)]
    outward = [link for link in addressed if link.kind in ("", "bond", "vlan", "team", "veth", "macvlan", "ipvlan")]
    strict = [link for link in outward if max(everywhere, seen.number(_RP_FILTER.format(link.name)) or 0) == _STRICT]
    facts = [f"net.ipv4.conf.{link.name}.rp_filter = 1" for link in strict]
    if strict and len(outward) > 1:
        yield findings.warning(
            check,
            "the strict reverse path filter is on, and this host has several networks: what comes in by one interface "
            "and would be answered by another is dropped without a word",
            *facts,
            f"interfaces with addresses: {', '.join(sorted(link.name for link in outward))}",
            remedy=remedy,
        )
    elif strict:
        yield findings.info(
            check, "the reverse path filter is strict, which is no harm on a host of one network", *facts
        )
    else:
        yield findings.ok(check, "no strict reverse path filter", f"{dotted(_RP_FILTER.format('all'))} = {everywhere}")


def _has(packed: tuple[bytes, ...], size: int) -> bool:
    return any(len(address) == size for address in packed)


def route_localnet(seen: Evidence) -> Iterator[findings.Finding]:
    """Are loopback addresses routed, where they must be, and not where they must not be?"""
    check = "route-localnet"
    path = "net/ipv4/conf/all/route_localnet"
    value = seen.number(path)
    if value is None:
        return
    fact = f"{dotted(path)} = {value}"
    needed = seen.wanted.mode is settings.Mode.IPTABLES and seen.wanted.localhost_node_ports
    if needed:
        if value or not seen.agent.present:
            yield findings.ok(check, "node ports on 127.0.0.1 are as the configuration says", fact)
        else:
            yield findings.warning(
                check,
                "node ports do not answer on 127.0.0.1, as the configuration asks for",
                fact,
                remedy=f"{_set(path, 1)} Or switch it off: iptables.localhostNodePorts: false.",
            )
    elif value and not _martians_dropped(seen):
        yield findings.warning(
            check,
            "neighbours of this host can reach what listens on its 127.0.0.1 (CVE-2020-8558); kube-proxy's mode "
            "iptables leaves it so, and mode nftables does not need it",
            fact,
            remedy=_set(path, 0),
        )
    else:
        yield findings.ok(check, "loopback addresses are not routed, or guarded by kubelet", fact)


def _martians_dropped(seen: Evidence) -> bool:
    """Whether kubelet's rule is there that drops what comes from elsewhere to a loopback address."""
    return any(
        "-d 127.0.0.0/8" in rule and "-j DROP" in rule
        for saved in seen.xtables.saved
        for table in saved.tables
        for rule in table.chains.get("KUBE-FIREWALL", ())
    )


def bridges(seen: Evidence) -> Iterator[findings.Finding]:
    """Does traffic between two pods of one bridge come by the rules?"""
    check = "bridge-nf-call"
    pods = sorted(
        link.name
        for link in seen.links
        if link.kind == "bridge" and (link.name.startswith(_POD_BRIDGES) or link.name == seen.wanted.bridge_interface)
    )
    for family in seen.families:
        path = f"net/bridge/bridge-nf-call-{'iptables' if family is addresses.Family.IPV4 else 'ip6tables'}"
        value = seen.sysctls.get(path)
        consequence = "answers between two pods on one bridge do not come by the rules, so such connections fail"
        if value == "0":
            yield findings.warning(check, consequence, f"{dotted(path)} = 0", remedy=_set(path, 1))
        elif value is None and pods:
            yield findings.warning(
                check,
                consequence,
                f"there is no {dotted(path)}: the module br_netfilter is not loaded",
                f"bridge: {', '.join(pods)}",
                remedy="Now: modprobe br_netfilter. For good: echo br_netfilter > /etc/modules-load.d/netagent.conf.",
            )
        else:
            fact = f"{dotted(path)} = {value}" if value else "no bridge with pods"
            yield findings.ok(check, "traffic on bridges comes by the rules, as far as it has to", fact)
