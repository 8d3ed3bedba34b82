"""Each finding, from planted evidence; and silence where nothing is planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from netagent import settings
from netagent.doctor import evidence, examination, findings
from netagent.doctor.evidence import Chain, Evidence, Link, Listener, NodePort, Process, Ruleset, Saved, Table, Xtables
from netagent.doctor.findings import Severity
from netagent.iptables import readback, tools
from netagent.model import addresses

IPV4, IPV6 = addresses.Family
GOOD_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "0",
    "net/ipv4/conf/all/rp_filter": "2",
    "net/ipv4/conf/eth0/rp_filter": "1",
    "net/ipv4/conf/all/route_localnet": "0",
    "net/ipv4/ip_local_port_range": "32768\t60999",
    "net/ipv4/ip_local_reserved_ports": "",
    "net/netfilter/nf_conntrack_max": "262144",
    "net/netfilter/nf_conntrack_buckets": "65536",
    "net/netfilter/nf_conntrack_count": "1000",
    "net/netfilter/nf_conntrack_tcp_be_liberal": "0",
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/bridge/bridge-nf-call-ip6tables": "1",
}
NODE_ADDRESS = addresses.parse_address("192.0.2.10")
ETH0 = Link(2, "eth0", addresses=(NODE_ADDRESS,))
ACCEPT, DROP = 1, 0
PREROUTING, FORWARD = 0, 2
TCP = addresses.Protocol.TCP

# A node as kubeadm makes it, with flannel, Docker beside it, and a kubelet of today.
NODE = Evidence(
    sysctls=GOOD_SYSCTLS,
    links=(
        Link(1, "lo", loopback=True, mtu=65536, addresses=(addresses.parse_address("127.0.0.1"),)),
        ETH0,
        Link(3, "flannel.1", "vxlan", mtu=1450, addresses=(addresses.parse_address("10.1.0.0"),)),
        Link(4, "cni0", "bridge", mtu=1450, addresses=(addresses.parse_address("10.1.0.1"),)),
        Link(5, "veth1", "veth", mtu=1450, master=4),
        Link(6, "docker0", "bridge", mtu=1500, up=False, addresses=(addresses.parse_address("172.17.0.1"),)),
    ),
    uplinks=frozenset({2}),
    ruleset=Ruleset(
        tables=(Table("ip", "netagent"), Table("ip", "nat"), Table("ip", "mangle"), Table("ip", "filter")),
        chains=(
            Chain("ip", "mangle", "KUBE-KUBELET-CANARY"),
            Chain("ip", "mangle", "KUBE-IPTABLES-HINT"),
            Chain("ip", "filter", "KUBE-FIREWALL", rules=1),
            Chain("ip", "filter", "FORWARD", "filter", FORWARD, 0, ACCEPT, rules=1),
            Chain("ip", "filter", "KUBE-ROUTER-FORWARD"),
            Chain("ip", "nat", "PREROUTING", "nat", PREROUTING, -100, rules=2),
            Chain("inet", "cni_hostport", "prerouting", "nat", PREROUTING, -100, rules=1),
        ),
        frontends={IPV4: 12, IPV6: 0},
        node_ports=frozenset({NodePort(TCP, 30080)}),
    ),
    listeners=(Listener(TCP, NODE_ADDRESS, 22), Listener(TCP, addresses.parse_address("127.0.0.1"), 30080)),
)


def grave(seen: Evidence) -> dict[str, findings.Finding]:
    """The findings that want somebody to act, by check."""
    return {each.check: each for each in examination.judge(seen) if each.severity.needs_action}


def with_sysctls(**values: object) -> Evidence:
    return replace(
        NODE, sysctls={**GOOD_SYSCTLS, **{key.replace("__", "/"): str(value) for key, value in values.items()}}
    )


def with_rules(**changes: Any) -> Evidence:
    rules = NODE.ruleset
    for name, value in changes.items():
        rules = replace(rules, **{name: getattr(rules, name) + value})
    return replace(NODE, ruleset=rules)


def table(name: str, *, policies: dict[str, str] | None = None, **chains: list[str]) -> readback.SavedTable:
    return readback.SavedTable(
        name, {chain.replace("_", "-"): rules for chain, rules in chains.items()}, policies or {}
    )


def with_saved(*saved: Saved, sets: tuple[str, ...] = ()) -> Evidence:
    return replace(NODE, xtables=Xtables(saved=saved, sets=sets))


def only(seen: Evidence, check: str, severity: Severity) -> findings.Finding:
    """The finding that is planted, which has to be the only grave one."""
    found = grave(seen)
    assert list(found) == [check], [f"{each.check}: {each.summary}" for each in found.values()]
    assert found[check].severity is severity
    assert found[check].remedy
    return found[check]


# Quiet ---------------------------------------------------------------------------------------------------------


def test_a_usual_node_is_well() -> None:
    assert grave(NODE) == {}
    assert findings.worst(examination.judge(replace(NODE, clock=evidence.Clock(synchronised=True)))) in (
        Severity.OK,
        Severity.INFO,
    )


def test_an_empty_host_without_an_agent_is_well_as_long_as_it_forwards() -> None:
    empty = Evidence(sysctls=GOOD_SYSCTLS, agent=evidence.Agent(""), clock=evidence.Clock(synchronised=False))
    assert grave(empty) == {}


def test_every_check_says_something_of_a_usual_node() -> None:
    said = {each.check for each in examination.judge(NODE)}
    assert {"ip-forward", "conntrack-size", "kube-proxy-leftovers", "port-range", "mtu", "clock", "agent"} <= said


# Forwarding ----------------------------------------------------------------------------------------------------


def test_a_host_that_does_not_forward_is_an_error() -> None:
    found = only(with_sysctls(net__ipv4__ip_forward=0), "ip-forward", Severity.ERROR)
    assert found.evidence == ("net.ipv4.ip_forward = 0",)
    assert "sysctl -w net.ipv4.ip_forward=1" in found.remedy


def test_ipv6_has_to_be_forwarded_where_there_are_ipv6_services_or_pods() -> None:
    with_services = replace(NODE, ruleset=replace(NODE.ruleset, frontends={IPV4: 1, IPV6: 1}))
    only(with_services, "ipv6-forward", Severity.ERROR)
    by_settings = replace(NODE, wanted=settings.override(settings.Settings(), cluster_cidrs="10.1.0.0/16,fd00::/56"))
    only(by_settings, "ipv6-forward", Severity.ERROR)


def test_ipv4_need_not_be_forwarded_on_a_host_of_ipv6_alone() -> None:
    seen = replace(
        NODE,
        wanted=settings.override(settings.Settings(), families=["IPv6"]),
        sysctls={**GOOD_SYSCTLS, "net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "1"},
    )
    assert grave(seen) == {}


def test_a_strict_reverse_path_filter_is_told_where_it_can_harm() -> None:
    only(with_sysctls(net__ipv4__conf__all__rp_filter=1), "rp-filter", Severity.WARNING)
    assert grave(with_sysctls(net__ipv4__conf__all__rp_filter=0)) == {}  # eth0 is strict, and there is no other network
    second = Link(9, "eth1", addresses=(addresses.parse_address("198.51.100.7"),))
    two = replace(with_sysctls(net__ipv4__conf__all__rp_filter=0), links=(*NODE.links, second))
    found = only(two, "rp-filter", Severity.WARNING)
    assert "net.ipv4.conf.eth0.rp_filter = 1" in found.evidence


def test_loopback_addresses_that_are_routed_without_need_are_told_unless_kubelet_guards_them() -> None:
    seen = with_sysctls(net__ipv4__conf__all__route_localnet=1)
    only(seen, "route-localnet", Severity.WARNING)
    guard = table("filter", KUBE_FIREWALL=["! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment x -j DROP"])
    guarded = replace(seen, xtables=Xtables(saved=(Saved(tools.Variant.NFT, IPV4, (guard,)),)))
    assert grave(guarded) == {}


def test_bridged_traffic_that_passes_the_rules_by_is_told() -> None:
    only(with_sysctls(**{"net__bridge__bridge-nf-call-iptables": 0}), "bridge-nf-call", Severity.WARNING)
    without = {path: value for path, value in GOOD_SYSCTLS.items() if "bridge" not in path}
    assert "br_netfilter" in only(replace(NODE, sysctls=without), "bridge-nf-call", Severity.WARNING).remedy
    no_bridge = tuple(link for link in NODE.links if link.kind != "bridge")
    assert grave(replace(NODE, sysctls=without, links=no_bridge)) == {}


# Connection tracking -------------------------------------------------------------------------------------------


def test_a_small_connection_table_is_told() -> None:
    found = only(
        with_sysctls(net__netfilter__nf_conntrack_max=1024, net__netfilter__nf_conntrack_count=1),
        "conntrack-size",
        Severity.WARNING,
    )
    assert "1024" in found.summary


def test_a_table_smaller_than_configured_is_told_to_who_has_configured_it() -> None:
    seen = with_sysctls(net__netfilter__nf_conntrack_max=65536)
    assert grave(seen) == {}
    found = only(replace(seen, configured=True), "conntrack-size", Severity.WARNING)
    assert any("131072" in line for line in found.evidence)


@pytest.mark.parametrize(
    ("count", "severity"), [(262144, Severity.ERROR), (255000, Severity.ERROR), (215000, Severity.WARNING)]
)
def test_a_connection_table_that_fills_up_is_told(count: int, severity: Severity) -> None:
    only(with_sysctls(net__netfilter__nf_conntrack_count=count), "conntrack-fill", severity)


def test_a_table_with_few_buckets_is_told() -> None:
    only(with_sysctls(net__netfilter__nf_conntrack_buckets=16384), "conntrack-buckets", Severity.WARNING)


def test_packets_that_nobody_places_are_told_if_neither_sysctl_nor_rule_provides_for_them() -> None:
    liberal = settings.override(settings.Settings(), conntrack_tcp_be_liberal=True)
    only(replace(NODE, wanted=liberal), "tcp-be-liberal", Severity.WARNING)
    applied = with_sysctls(net__netfilter__nf_conntrack_tcp_be_liberal=1)
    assert grave(replace(applied, wanted=liberal)) == {}


# Conflicts -----------------------------------------------------------------------------------------------------


def test_a_running_kube_proxy_is_an_error() -> None:
    found = only(replace(NODE, processes=(Process(77, "kube-proxy"),)), "kube-proxy-running", Severity.ERROR)
    assert found.evidence == ("process 77",)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (with_rules(tables=(Table("ip", "kube-proxy"),)), "nftables table ip kube-proxy"),
        (with_rules(tables=(Table("ip6", "kube-proxy"),)), "nftables table ip6 kube-proxy"),
        (with_rules(chains=(Chain("ip", "nat", "KUBE-SERVICES"),)), "KUBE-SERVICES"),
        (with_rules(chains=(Chain("ip6", "nat", "KUBE-SEP-ABC"),)), "nftables table ip6 nat"),
        (with_saved(Saved(tools.Variant.LEGACY, IPV4, (table("nat", KUBE_SVC_X=["-j DNAT"]),))), "iptables-legacy"),
        (with_saved(sets=("KUBE-CLUSTER-IP",)), "ipset KUBE-CLUSTER-IP"),
        (replace(NODE, links=(*NODE.links, Link(8, "kube-ipvs0", "dummy"))), "interface kube-ipvs0"),
    ],
)
def test_what_kube_proxy_left_is_an_error_in_each_of_its_modes(seen: Evidence, words: str) -> None:
    found = only(seen, "kube-proxy-leftovers", Severity.ERROR)
    assert any(words in line for line in found.evidence), found.evidence
    assert "netagent cleanup --kube-proxy" in found.remedy


def test_chains_that_kubelets_make_are_no_leftover() -> None:
    old = tuple(Chain("ip", "nat", name) for name in ("KUBE-MARK-MASQ", "KUBE-MARK-DROP", "KUBE-POSTROUTING"))
    network_policies = (Chain("ip", "filter", "KUBE-NWPLCY-ABC"), Chain("ip", "filter", "KUBE-POD-FW-ABC"))
    assert grave(with_rules(chains=old + network_policies)) == {}
    assert grave(with_saved(sets=("KUBE-SRC-ABC", "KUBE-DST-ABC"))) == {}


def test_rules_in_both_variants_of_iptables_are_told() -> None:
    both = [Saved(each, IPV4, (table("filter", INPUT=["-j ACCEPT"]),)) for each in tools.Variant]
    found = only(with_saved(*both), "iptables-mixture", Severity.WARNING)
    assert "iptables-legacy-save" in found.remedy
    assert grave(with_saved(both[0])) == {}
    assert grave(with_saved(both[1])) == {}


def test_firewalld_is_told_by_its_table_and_by_its_process() -> None:
    only(with_rules(tables=(Table("inet", "firewalld"),)), "firewalld", Severity.WARNING)
    only(replace(NODE, processes=(Process(5, "firewalld"),)), "firewalld", Severity.WARNING)


def test_a_policy_that_drops_forwarded_packets_is_told_with_docker_by_name() -> None:
    dropping = Chain("ip", "filter", "FORWARD", "filter", FORWARD, 0, DROP, rules=3)
    chains = tuple(chain for chain in NODE.ruleset.chains if chain.name not in ("FORWARD", "KUBE-ROUTER-FORWARD"))
    seen = replace(
        NODE, ruleset=replace(NODE.ruleset, chains=(*chains, dropping, Chain("ip", "filter", "DOCKER-USER")))
    )
    assert "Docker" in only(seen, "forward-policy", Severity.WARNING).summary
    accepted = replace(
        seen, ruleset=replace(seen.ruleset, chains=(*seen.ruleset.chains, Chain("ip", "filter", "FLANNEL-FWD")))
    )
    assert grave(accepted) == {}
    legacy = table("filter", policies={"FORWARD": "DROP"}, FORWARD=[])
    without = replace(NODE, ruleset=replace(NODE.ruleset, chains=chains))
    only(
        replace(without, xtables=Xtables(saved=(Saved(tools.Variant.LEGACY, IPV4, (legacy,)),))),
        "forward-policy",
        Severity.WARNING,
    )


def test_another_table_that_translates_at_our_place_is_told_with_its_name() -> None:
    foreign = Chain("ip", "own-balancer", "pre", "nat", PREROUTING, -100, rules=2)
    found = only(with_rules(chains=(foreign,)), "other-nat", Severity.WARNING)
    assert "own-balancer" in found.evidence[0]
    later, empty = foreign._replace(priority=-90), foreign._replace(rules=0)
    assert grave(with_rules(chains=(later, empty))) == {}


def test_others_that_use_our_bit_of_the_mark_are_told() -> None:
    only(with_rules(chains=(Chain("ip", "theirs", "a", marking=(4,)),)), "mark-bit", Severity.WARNING)
    marks = table("mangle", PREROUTING=["-i eth1 -j MARK --set-xmark 0x4000/0x4000"])
    only(with_saved(Saved(tools.Variant.NFT, IPV4, (marks,))), "mark-bit", Severity.WARNING)
    other_bit = table(
        "mangle", PREROUTING=["-j MARK --set-xmark 0x8000/0x8000", "-m mark --mark 0x4000/0x4000 -j RETURN"]
    )
    assert grave(with_saved(Saved(tools.Variant.NFT, IPV4, (other_bit,)))) == {}
    route = evidence.MarkRoute(IPV4, 100, 0x4000, 0xFFFF)
    only(replace(NODE, mark_routes=(route,)), "mark-bit", Severity.WARNING)
    moved = settings.override(settings.Settings(), masquerade_bit=20)
    assert grave(replace(NODE, mark_routes=(route,), wanted=moved)) == {}


# Ports ---------------------------------------------------------------------------------------------------------


def test_outgoing_ports_that_overlap_with_node_ports_are_told_unless_reserved() -> None:
    seen = with_sysctls(net__ipv4__ip_local_port_range="30000 60999")
    found = only(seen, "port-range", Severity.WARNING)
    assert "of these, Services use: 30080" in found.evidence
    assert "ip_local_reserved_ports=30000-32767" in found.remedy
    reserved = {**seen.sysctls, "net/ipv4/ip_local_reserved_ports": "8080,30000-32767"}
    assert grave(replace(seen, sysctls=reserved)) == {}


def test_a_node_port_within_the_outgoing_ports_is_told() -> None:
    seen = replace(NODE, ruleset=replace(NODE.ruleset, node_ports=frozenset({NodePort(TCP, 40000)})))
    found = only(seen, "port-range", Severity.WARNING)
    assert "node ports that it can take: 40000" in found.evidence


def test_a_program_that_listens_on_a_node_port_is_told() -> None:
    any_address = Listener(TCP, bytes(16), 30080)
    found = only(replace(NODE, listeners=(any_address,)), "node-port-listener", Severity.WARNING)
    assert found.evidence == ("tcp [::]:30080",)
    assert grave(replace(NODE, listeners=(any_address._replace(protocol=addresses.Protocol.UDP),))) == {}


# Host ----------------------------------------------------------------------------------------------------------


def test_interfaces_of_different_mtu_are_told() -> None:
    jumbo = Link(9, "eth1", mtu=9000, addresses=(addresses.parse_address("198.51.100.7"),))
    found = only(replace(NODE, links=(*NODE.links, jumbo)), "mtu", Severity.WARNING)
    assert {"eth0: MTU 1500", "eth1: MTU 9000"} <= set(found.evidence)


@pytest.mark.parametrize(
    "wide", [Link(9, "flannel.2", "vxlan", mtu=1500, addresses=(b"\x0a\1\0\0",)), Link(9, "v", "veth", mtu=9000)]
)
def test_pods_whose_packets_do_not_fit_are_told(wide: Link) -> None:
    only(replace(NODE, links=(*NODE.links, wide)), "mtu", Severity.WARNING)


def test_a_clock_before_the_installation_is_an_error_and_an_unsynchronised_one_a_note() -> None:
    only(replace(NODE, clock=evidence.Clock(now=1e9, not_before=1.7e9)), "clock", Severity.ERROR)
    assert grave(replace(NODE, clock=evidence.Clock(synchronised=False))) == {}


def test_our_tables_without_an_agent_and_several_agents_are_told() -> None:
    only(replace(NODE, agent=evidence.Agent("")), "agent", Severity.WARNING)
    only(replace(NODE, agent=evidence.Agent("process 1 (netagent)", (1, 2))), "agent", Severity.ERROR)


def test_an_agent_that_does_not_answer_is_an_error() -> None:
    silent = evidence.Agent("process 7 (netagent)", (7,), "the agent does not answer /status: timed out")
    found = only(replace(NODE, agent=silent), "agent", Severity.ERROR)
    assert found.evidence == ("process 7 (netagent)", "the agent does not answer /status: timed out")


@pytest.mark.parametrize("variant", tools.Variant)
def test_rules_of_mode_iptables_without_an_agent_are_told(variant: tools.Variant) -> None:
    left = with_saved(Saved(variant, IPV4, (table("nat", NETAGENT_SVC_A=["-j RETURN"], PREROUTING=[]),)))
    iptables = settings.override(settings.Settings(), mode="iptables")
    rules = replace(NODE.ruleset, tables=())
    alone = replace(left, ruleset=rules, listeners=(), agent=evidence.Agent(""), wanted=iptables)
    found = only(alone, "agent", Severity.WARNING)
    assert found.evidence == (f"iptables-{variant.value} -t nat: 1 chains of netagent",)


def test_tables_that_nobody_ever_owned_are_those_of_a_sync_where_an_agent_would_have_owned_them() -> None:
    alone = replace(NODE, agent=evidence.Agent(""), kernel=evidence.Kernel(release="6.18.0"))
    assert grave(alone) == {}
    orphan = replace(alone, ruleset=replace(NODE.ruleset, tables=(Table("ip", "netagent", flags=6),)))
    only(orphan, "agent", Severity.WARNING)
    not_owned = replace(alone, wanted=settings.override(settings.Settings(), table_ownership=False))
    only(not_owned, "agent", Severity.WARNING)


def test_a_table_of_ours_that_is_switched_off_is_an_error() -> None:
    dormant = with_rules(tables=(Table("ip6", "netagent", flags=1),))
    only(dormant, "tables", Severity.ERROR)


def test_a_kernel_that_lacks_something_is_an_error_that_names_the_option() -> None:
    lack = evidence.Lack(IPV4, "masquerading", "CONFIG_NFT_MASQ", "No such file or directory")
    found = only(replace(NODE, kernel=evidence.Kernel(lacks=(lack,))), "kernel-features", Severity.ERROR)
    assert "CONFIG_NFT_MASQ" in found.evidence[0]
    only(replace(NODE, kernel=evidence.Kernel(release="5.4.0-1")), "kernel-version", Severity.ERROR)
    only(replace(NODE, kernel=evidence.Kernel(conntrack=False)), "module-nf-conntrack", Severity.ERROR)


def test_ipv6_is_not_missed_on_a_host_that_has_none() -> None:
    lack = evidence.Lack(IPV6, "a table", "CONFIG_NF_TABLES_IPV6", "Operation not supported")
    assert grave(replace(NODE, kernel=evidence.Kernel(lacks=(lack,), has_ipv6=False))) == {}


def test_half_an_examination_says_so() -> None:
    seen = replace(NODE, privileged=False, ruleset=Ruleset(unread="user 1000 has no CAP_NET_ADMIN here"))
    assert "root" in only(seen, "privileges", Severity.WARNING).remedy


def test_tools_modules_and_state_matter_in_mode_iptables_only() -> None:
    bare = replace(
        NODE,
        xtables=Xtables(installed=frozenset()),
        kernel=evidence.Kernel(xt_recent=False),
        directory=evidence.Directory(exists=True, read_only=True),
        ruleset=Ruleset(),
    )
    assert grave(bare) == {}
    bare = replace(bare, kernel=replace(bare.kernel, probed=False))  # expressions are tried in mode nftables alone
    iptables = settings.override(settings.Settings(), mode="iptables")
    seen = replace(bare, wanted=iptables, sysctls={**GOOD_SYSCTLS, "net/ipv4/conf/all/route_localnet": "1"})
    assert {check: found.severity for check, found in grave(seen).items()} == {
        "tools": Severity.ERROR,
        "module-xt-recent": Severity.WARNING,
        "state-directory": Severity.WARNING,
    }


# Telling -------------------------------------------------------------------------------------------------------


def test_the_gravest_finding_comes_first_and_the_document_has_all() -> None:
    seen = replace(with_sysctls(net__ipv4__ip_forward=0, net__ipv4__ip_local_port_range="1024 65000"))
    document = findings.document(reversed(examination.judge(seen)))
    assert [each["check"] for each in document["findings"][:2]] == ["ip-forward", "port-range"]
    assert document["verdict"] == "error"
    assert document["counts"]["error"] == document["counts"]["warning"] == 1
    assert sum(document["counts"].values()) == len(document["findings"])
