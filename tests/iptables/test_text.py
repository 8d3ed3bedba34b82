"""The spelling of rules, and scripts: the tools take them, and print what we wrote. The rules are those of a node that
has every kind of frontend."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.iptables import lower, ruleset, text
from netagent.model import addresses
from netagent.plan import frontends, node
from tests import kernel
from tests.nftables import strategies

FAMILIES = list(addresses.Family)
TOOLS = {addresses.Family.IPV4: "iptables", addresses.Family.IPV6: "ip6tables"}
VARIANTS = ["legacy", "nft"]
TCP, UDP, SCTP = addresses.Protocol.TCP, addresses.Protocol.UDP, addresses.Protocol.SCTP


def everything(family: addresses.Family, *, local_pods: node.LocalPods | None = None) -> ruleset.Ruleset:
    """A ruleset with every kind of rule that we write."""
    rules = strategies.plain_rules(family)
    networks = (addresses.network(strategies.address(family, 7, 0), 24), addresses.network(bytes(4), 8))
    lowering = lower.Lowering(
        node.NodeRules(
            family=family,
            local_pods=local_pods or rules.local_pods,
            masquerade_all=False,
            masquerade_mark=1 << 31,
            node_port_prefixes=(*rules.node_port_prefixes, networks[0]),
            service_cidrs=rules.service_cidrs,
            drop_invalid=True,
        )
    )
    kinds = frontends.FrontendKind
    for number, protocol in enumerate((TCP, UDP, SCTP), 1):
        found = tuple(strategies.endpoint(family, number * 40 + host) for host in range(number * 9))
        for affinity in (None, 10800):
            for kind in kinds:
                for local in (None, (), found[:3]):
                    index = (number * 2 + bool(affinity)) * 4 + (3 if local is None else min(len(local), 1))
                    address = strategies.address(family, 90 + list(kinds).index(kind), index)
                    lowering.update(
                        *_placed(
                            frontends.Frontend(
                                key=frontends.FrontendKey(
                                    family, b"" if kind is kinds.NODE_PORT else address, protocol, 30000 + index
                                ),
                                kind=kind,
                                owner=frontends.ServicePortName("default", f"{kind.value}-{index}", "p", protocol),
                                verdict=frontends.Verdict.SERVE,
                                masquerade=_MASQUERADE[kind] if local is None else frontends.Masquerade.NEVER_LOCAL,
                                endpoints=found,
                                local_endpoints=local,
                                affinity_seconds=affinity,
                                source_ranges=networks[:1] if kind is kinds.LOAD_BALANCER else None,
                                hairpin_addresses=(found[0][:-2],),
                            )
                        )
                    )
    for number, verdict in enumerate((frontends.Verdict.REJECT, frontends.Verdict.DROP)):
        for kind in (kinds.CLUSTER_IP, kinds.LOAD_BALANCER, kinds.NODE_PORT):
            address = b"" if kind is kinds.NODE_PORT else strategies.address(family, 99, number)
            lowering.update(
                *_placed(
                    frontends.Frontend(
                        key=frontends.FrontendKey(family, address, TCP, 20000 + number),
                        kind=kind,
                        owner=frontends.ServicePortName("default", "refused", "", TCP),
                        verdict=verdict,
                        masquerade=frontends.Masquerade.CLUSTER_IP,
                        source_ranges=networks[:1] if kind is kinds.LOAD_BALANCER else None,
                    )
                )
            )
    return lowering.ruleset


_MASQUERADE = {
    frontends.FrontendKind.CLUSTER_IP: frontends.Masquerade.CLUSTER_IP,
    frontends.FrontendKind.EXTERNAL_IP: frontends.Masquerade.ALWAYS,
    frontends.FrontendKind.LOAD_BALANCER: frontends.Masquerade.ALWAYS,
    frontends.FrontendKind.NODE_PORT: frontends.Masquerade.ALWAYS,
}
LOCAL_PODS: list[node.LocalPods | None] = [
    None,
    node.InputInterface("cni0"),
    node.InputInterfacePrefix("veth"),
    node.InputInterfacePrefix("a-name_of.15-by"),
]


def _placed(frontend: frontends.Frontend) -> tuple[frontends.FrontendKey, frontends.Frontend]:
    return frontend.key, frontend


def run(argv: list[str], stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def rules_in(saved: str) -> dict[str, list[str]]:
    """What a script or a saved ruleset has in each chain, by table and chain."""
    table = ""
    found: dict[str, list[str]] = {}
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            found.setdefault(f"{table} {line[1:].split()[0]}", [])
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            found.setdefault(f"{table} {chain}", []).append(rule)
    return {name: rules for name, rules in found.items() if rules or "NETAGENT" in name}


def _in_namespace(family: addresses.Family, variant: str, local_pods: node.LocalPods | None) -> None:
    tool = f"{TOOLS[family]}-{variant}"
    if shutil.which(f"{tool}-restore") is None:
        pytest.skip(f"not installed: {tool}-restore")
    made = everything(family, local_pods=local_pods)
    script = text.script([made])
    run([f"{tool}-restore", "--noflush", "--test"], script)
    run([f"{tool}-restore", "--noflush"], script)
    saved = run([f"{tool}-save"])
    assert rules_in(saved) == rules_in(script)
    # And piece by piece: nothing changes that is written again, and all of it goes.
    run([f"{tool}-restore", "--noflush"], text.restore_input(dict(list(made.chains.items())[::3])))
    assert rules_in(run([f"{tool}-save"])) == rules_in(script)
    jumps = [line for jump in made.jumps for line in (f"*{jump.table}", f"-D {jump.chain} {jump.rule}")]
    run([f"{tool}-restore", "--noflush"], text.restore_input(dict.fromkeys(made.chains), jumps=jumps))
    assert not rules_in(run([f"{tool}-save"]))


# A fixture's arguments do not reach a child process, so each variant and family is a test of its own.


@pytest.mark.parametrize(
    "local_pods", LOCAL_PODS, ids=["prefix", "interface", "interface prefix", "long interface prefix"]
)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
@kernel.isolated
def test_iptables_prints_what_we_wrote(
    family: addresses.Family, variant: str, local_pods: node.LocalPods | None
) -> None:
    _in_namespace(family, variant, local_pods)


def _both_families_in_namespace(variant: str) -> None:
    both = {family: everything(family) for family in FAMILIES}
    script = text.script(both.values())
    for family, made in both.items():
        tool = f"{TOOLS[family]}-{variant}"
        if shutil.which(f"{tool}-restore") is None:
            pytest.skip(f"not installed: {tool}-restore")
        run([f"{tool}-restore", "--noflush", "--test"], script)
        run([f"{tool}-restore", "--noflush"], script)
        found, wanted = rules_in(run([f"{tool}-save"])), rules_in(text.script([made]))
        assert {name: rules for name, rules in found.items() if rules} == {
            name: rules for name, rules in wanted.items() if rules
        }


@pytest.mark.parametrize("variant", VARIANTS)
@kernel.isolated
def test_one_script_is_for_the_tools_of_both_families(variant: str) -> None:
    _both_families_in_namespace(variant)


def test_a_script_names_every_chain_before_the_rules_that_lead_there() -> None:
    made = ruleset.Ruleset(
        addresses.Family.IPV4,
        {
            ruleset.ChainName("nat", "NETAGENT-B"): ("-j ACCEPT",),
            ruleset.ChainName("nat", "NETAGENT-A"): ("-j NETAGENT-B",),
        },
        (ruleset.Jump("nat", "PREROUTING", "-j NETAGENT-A", first=True),),
    )
    assert text.script([made]).splitlines() == [
        "# for iptables-restore --noflush",
        "*nat",
        ":NETAGENT-A - [0:0]",
        ":NETAGENT-B - [0:0]",
        "-A PREROUTING -j NETAGENT-A",
        "-A NETAGENT-A -j NETAGENT-B",
        "-A NETAGENT-B -j ACCEPT",
        "COMMIT",
        "*filter",
        "COMMIT",
    ]


def test_changes_are_written_table_by_table_and_chains_deleted_last() -> None:
    changes: dict[ruleset.ChainName, ruleset.Rules | None] = {
        ruleset.ChainName("filter", "NETAGENT-F"): ("-j DROP",),
        ruleset.ChainName("nat", "NETAGENT-A"): None,
        ruleset.ChainName("nat", "NETAGENT-B"): ("-j ACCEPT", "-j DROP"),
    }
    assert text.restore_input(changes, jumps=["*nat", "-I OUTPUT -j NETAGENT-B"]).splitlines() == [
        "*nat",
        ":NETAGENT-A - [0:0]",
        ":NETAGENT-B - [0:0]",
        "-I OUTPUT -j NETAGENT-B",
        "-A NETAGENT-B -j ACCEPT",
        "-A NETAGENT-B -j DROP",
        "-X NETAGENT-A",
        "COMMIT",
        "*filter",
        ":NETAGENT-F - [0:0]",
        "-A NETAGENT-F -j DROP",
        "COMMIT",
    ]


def test_no_changes_are_no_script() -> None:
    assert text.restore_input({}) == ""


@given(st.text())
def test_a_comment_is_one_harmless_word_whatever_the_name(words: str) -> None:
    match, name, option, comment = text.comment(words).split(" ")
    assert (match, name, option) == ("-m", "comment", "--comment")
    assert len(comment.strip('"')) <= text.COMMENT_BYTES
    assert set(comment[1:-1]).isdisjoint("\"'\\\n`$ ")


@pytest.mark.parametrize(
    ("printed", "rule"),
    [
        ("[3:180] -p tcp -j ACCEPT", "-p tcp -j ACCEPT"),
        ("-p tcp -m tcp --dport :32767 -j DROP", "-p tcp -m tcp --dport 0:32767 -j DROP"),
        ("-p tcp -m tcp --dport 32768: -j DROP", "-p tcp -m tcp --dport 32768:65535 -j DROP"),
        ('-m comment --comment "a/b:80" -j DROP', '-m comment --comment "a/b:80" -j DROP'),
    ],
)
def test_other_spellings_are_read_as_ours(printed: str, rule: str) -> None:
    assert text.canonical(printed) == rule
