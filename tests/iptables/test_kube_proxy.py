"""What kube-proxy left goes, kubelet's and everybody else's stays."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from netagent import errors
from netagent.iptables import kube_proxy, tools
from netagent.iptables.tools import Variant
from netagent.model.addresses import Family
from tests import kernel
from tests.iptables import namespaces

both = pytest.mark.parametrize("variant", namespaces.VARIANTS)

LEFT = """\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j DOCKER
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A DOCKER -i docker0 -j RETURN
-A KUBE-SERVICES -p tcp -m comment --comment "a/b:c cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -m comment --comment "a/b:c -> x" -j KUBE-SEP-A
-A KUBE-SEP-A -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -s 10.9.0.0/16 -j ACCEPT
-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -j RETURN
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
"""
STAYS = {
    ":DOCKER -",
    ":KUBE-FIREWALL -",
    ":KUBE-IPTABLES-HINT -",
    ":KUBE-KUBELET-CANARY -",
    "-A DOCKER -i docker0 -j RETURN",
    "-A INPUT -j KUBE-FIREWALL",
    "-A PREROUTING -j DOCKER",
    '-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -j RETURN',
}


def left(variant: Variant, family: Family, script: str = LEFT) -> None:
    if family is Family.IPV6:
        script = script.replace("10.9.0.0/16", "fd00:9::/64")
    tools.restore(variant, family, script, lock_seconds=1)


@both
@pytest.mark.parametrize("family", Family)
@kernel.isolated
def test_chains_and_jumps_go_and_those_of_others_stay(variant: Variant, family: Family) -> None:
    namespaces.need(variant)
    left(variant, family)
    leftovers = kube_proxy.Leftovers(lock_seconds=1)
    found = leftovers.found()
    name = tools.program(family, variant, "save").removesuffix("-save")
    assert (
        f'{name} -t nat: rule -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES' in found
    )
    assert any(line.startswith(f"{name} -t nat: 6 chains (KUBE-MARK-MASQ, ") for line in found)
    assert leftovers.remove() == found
    assert leftovers.found() == leftovers.remove() == leftovers.notes() == []
    rules = set(namespaces.rules(variant, family))
    assert rules >= STAYS
    assert not [rule for rule in rules - STAYS if "KUBE" in rule]


@both
@kernel.isolated
def test_network_policies_of_kube_router_are_nobodys_leftover(variant: Variant) -> None:
    namespaces.need(variant)
    script = (
        "*filter\n:KUBE-ROUTER-FORWARD - [0:0]\n:KUBE-POD-FW-A - [0:0]\n:KUBE-NWPLCY-A - [0:0]\n"
        "-A FORWARD -j KUBE-ROUTER-FORWARD\n-A KUBE-ROUTER-FORWARD -j KUBE-POD-FW-A\n"
        "-A KUBE-POD-FW-A -j KUBE-NWPLCY-A\n"
        "COMMIT\n"
    )
    left(variant, Family.IPV4, script)
    leftovers = kube_proxy.Leftovers(lock_seconds=1)
    assert leftovers.found() == leftovers.notes() == leftovers.remove() == []
    assert "-A KUBE-POD-FW-A -j KUBE-NWPLCY-A" in tools.save(variant, Family.IPV4)


@both
@kernel.isolated
def test_chains_that_others_lead_to_stay_and_are_told(variant: Variant) -> None:
    namespaces.need(variant)
    left(variant, Family.IPV4)
    left(variant, Family.IPV4, "*nat\n-A DOCKER -j KUBE-MARK-MASQ\nCOMMIT\n")
    leftovers = kube_proxy.Leftovers(lock_seconds=1)
    leftovers.remove()
    rules = namespaces.rules(variant)
    assert "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000" in rules
    assert "-A DOCKER -j KUBE-MARK-MASQ" in rules
    assert ":KUBE-SVC-A -" not in rules
    assert leftovers.found() == []
    assert leftovers.notes() == ["nat chain KUBE-MARK-MASQ stays: rules of others lead to it"]


@kernel.isolated
def test_where_kube_proxy_never_was_there_is_nothing_and_nothing_is_made() -> None:
    for variant in Variant:
        namespaces.need(variant)
    leftovers = kube_proxy.Leftovers()
    assert leftovers.found() == leftovers.remove() == leftovers.notes() == []
    assert namespaces.rules(Variant.LEGACY) == namespaces.rules(Variant.NFT) == []


@kernel.isolated
def test_tables_of_the_nftables_mode_go() -> None:
    kernel.nft("add table ip kube-proxy; add chain ip kube-proxy services; add table ip6 kube-proxy")
    kernel.nft("add table ip kube-proxy-of-mine; add table inet kube-proxy")
    leftovers = kube_proxy.Leftovers()
    assert leftovers.found() == ["nftables table ip kube-proxy", "nftables table ip6 kube-proxy"]
    assert leftovers.remove() == ["nftables table ip kube-proxy", "nftables table ip6 kube-proxy"]
    assert sorted(kernel.nft("list tables").split("\n")) == ["", "table inet kube-proxy", "table ip kube-proxy-of-mine"]
    assert leftovers.found() == []


@both
@kernel.isolated
def test_sets_and_the_interface_of_the_ipvs_mode_go(variant: Variant) -> None:
    namespaces.need(variant)
    if shutil.which("ipset") is None:
        pytest.skip("not installed: ipset")
    for arguments in (
        ["ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port"],
        ["ipset", "create", "KUBE-LOOP-BACK", "hash:ip,port,ip"],
        ["ipset", "create", "others", "hash:ip"],
        ["ip", "link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "other-end"],  # it is a dummy
    ):
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{' '.join(arguments)}: {done.stderr}")
    rule = "-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT"
    left(variant, Family.IPV4, f"*nat\n:KUBE-SERVICES - [0:0]\n{rule}\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n")
    leftovers = kube_proxy.Leftovers(lock_seconds=1)
    assert leftovers.found()[2:] == ["ipset KUBE-CLUSTER-IP", "ipset KUBE-LOOP-BACK", "interface kube-ipvs0"]
    assert leftovers.remove()
    assert leftovers.found() == []
    assert subprocess.run(["ipset", "list", "-n"], capture_output=True, text=True, check=True).stdout == "others\n"


@both
@kernel.isolated
def test_without_the_capability_it_is_a_matter_of_privilege(variant: Variant) -> None:
    namespaces.need(variant)
    left(variant, Family.IPV4)
    namespaces.lose_privilege()
    with pytest.raises(errors.PrivilegeError):
        kube_proxy.Leftovers().found()


def test_virtual_services_are_told_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_proxy, "_virtual_services", lambda: 3)
    monkeypatch.setattr(kube_proxy.Leftovers, "_chains", lambda self: [])
    assert kube_proxy.Leftovers().notes() == [
        "3 IPVS virtual services stay: `ipvsadm -C` removes all of them, whoever made them"
    ]
