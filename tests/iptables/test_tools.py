"""The programs of iptables, and what is made of their complaints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netagent import errors
from netagent.iptables import lock, readback, tools
from netagent.iptables.tools import Variant
from netagent.model.addresses import Family
from tests import kernel
from tests.iptables import namespaces

SMALL = "*nat\n:NETAGENT-A - [0:0]\n-A NETAGENT-A -p tcp -j DNAT --to-destination 10.0.0.1:80\nCOMMIT\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for programs in place of the real ones, first in PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_names_of_programs() -> None:
    assert tools.program(Family.IPV4, Variant.LEGACY, "save") == "iptables-legacy-save"
    assert tools.program(Family.IPV6, Variant.NFT, "restore") == "ip6tables-nft-restore"


def test_a_missing_program_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "which", lambda name: None)
    with pytest.raises(errors.UnsupportedError, match=r"iptables-legacy-save is not installed: .* package iptables"):
        tools.save(Variant.LEGACY, Family.IPV4)
    assert not tools.installed(Variant.NFT)


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (
            "iptables-restore v1.8.9 (legacy): Couldn't load target `NOPE':No such file or directory\n\n"
            "Error occurred at line: 3\nTry `iptables-restore -h' or 'iptables-restore --help' for more information.",
            errors.UnsupportedError,
            "at line 3, '-A NETAGENT-A -p tcp",
        ),
        ("iptables-restore: line 4 failed", errors.CommitRejectedError, "at line 4, 'COMMIT'"),
        (
            "line 3: RULE_APPEND failed (Invalid argument): rule in chain A",
            errors.CommitRejectedError,
            "at line 3, '-A NETAGENT-A",
        ),
        ("Could not fetch rule set generation id: Permission denied (you must be root)", errors.PrivilegeError, "CAP"),
        ("Fatal: can't open lock file /run/xtables.lock: Permission denied", errors.PrivilegeError, "CAP_NET_RAW"),
        (
            "Another app is currently holding the xtables lock. Stopped waiting after 1s.",
            lock.LockHeldError,
            "is held by",
        ),
        ("iptables v1.8.9: table `nat' is incompatible, use 'nft' tool.", errors.UnsupportedError, "table ip nat"),
        ("", errors.CommitRejectedError, "exit code 2"),
        ("\\377\\376 garbage line 99999", errors.CommitRejectedError, "garbage"),
    ],
)
def test_complaints_are_classed_by_who_has_to_act(programs: Path, said: str, kind: type[Exception], text: str) -> None:
    (programs / "said").write_text(said)
    namespaces.fake(programs, "iptables-legacy-restore", f"cat > /dev/null; cat {programs}/said >&2; exit 2")
    with pytest.raises(kind) as failure:
        tools.restore(Variant.LEGACY, Family.IPV4, SMALL, lock_seconds=1)
    assert type(failure.value) is kind
    assert text in str(failure.value)


def test_a_program_that_hangs_is_killed(programs: Path) -> None:
    namespaces.fake(programs, "iptables-nft-save", "exec sleep 3600")
    with pytest.raises(errors.NetagentError, match=r"did not end within 0\.2 s"):
        tools.save(Variant.NFT, Family.IPV4, seconds=0.2)


def test_a_program_that_dies_is_an_error(programs: Path) -> None:
    namespaces.fake(programs, "iptables-nft-restore", "kill -SEGV $$")
    with pytest.raises(errors.CommitRejectedError, match="killed by signal 11"):
        tools.restore(Variant.NFT, Family.IPV4, SMALL, lock_seconds=1)


def test_garbage_from_a_program_is_no_state_of_the_kernel(programs: Path) -> None:
    namespaces.fake(programs, "iptables-nft-save", "printf '*nat\\n:NETAGENT-A - [0:0]\\n\\377\\376'")
    with pytest.raises(readback.ReadbackError):
        readback.read(tools.save(Variant.NFT, Family.IPV4), Family.IPV4)


@pytest.mark.parametrize("variant", namespaces.VARIANTS)
@pytest.mark.parametrize("family", Family)
@kernel.isolated
def test_what_is_restored_is_saved(variant: Variant, family: Family) -> None:
    namespaces.need(variant)
    assert not readback.read(tools.save(variant, family), family).exists
    script = "*nat\n:NETAGENT-A - [0:0]\n-A NETAGENT-A -p tcp -j RETURN\n-I PREROUTING 1 -j NETAGENT-A\nCOMMIT\n"
    tools.restore(variant, family, script, lock_seconds=1, check_only=True)
    assert not readback.read(tools.save(variant, family), family).exists
    tools.restore(variant, family, script, lock_seconds=1)
    actual = readback.read(tools.save(variant, family), family)
    assert list(actual.chains.values()) == [("-p tcp -j RETURN",)]
    assert [jump.rule for jump in actual.jumps()] == ["-j NETAGENT-A"]


@pytest.mark.parametrize("variant", namespaces.VARIANTS)
@kernel.isolated
def test_a_refused_rule_is_quoted_and_nothing_of_its_table_is_applied(variant: Variant) -> None:
    namespaces.need(variant)
    script = "*nat\n:NETAGENT-A - [0:0]\n-A NETAGENT-A -j RETURN\n-X NETAGENT-MISSING\nCOMMIT\n"
    with pytest.raises(errors.CommitRejectedError) as failure:
        tools.restore(variant, Family.IPV4, script, lock_seconds=1)
    assert failure.value.operation == "-X NETAGENT-MISSING"
    assert not readback.read(tools.save(variant, Family.IPV4), Family.IPV4).chains


@pytest.mark.parametrize("variant", namespaces.VARIANTS)
@kernel.isolated
def test_a_match_that_does_not_exist_is_what_the_host_lacks(variant: Variant) -> None:
    namespaces.need(variant)
    script = "*nat\n:NETAGENT-A - [0:0]\n-A NETAGENT-A -m bogus -j RETURN\nCOMMIT\n"
    with pytest.raises(errors.UnsupportedError, match="'-A NETAGENT-A -m bogus -j RETURN'"):
        tools.restore(variant, Family.IPV4, script, lock_seconds=1)


@kernel.isolated
def test_a_lock_held_by_another_process_ends_the_wait_in_time() -> None:
    namespaces.need(Variant.LEGACY)
    path = Path(os.environ["XTABLES_LOCKFILE"])
    holder = namespaces.hold_lock(path)
    try:
        with pytest.raises(lock.LockHeldError, match=rf"\(process {holder.pid}\)"):
            tools.restore(Variant.LEGACY, Family.IPV4, SMALL, lock_seconds=1)
        assert holder.poll() is None, "it was not waited for"
    finally:
        holder.kill()
        holder.wait()


@kernel.isolated
def test_rules_of_nft_in_a_table_of_iptables_harm_nobody() -> None:
    namespaces.need(Variant.NFT)
    namespaces.iptables(Variant.NFT, "-t", "nat", "-N", "NETAGENT-A")
    namespaces.iptables(Variant.NFT, "-t", "nat", "-A", "PREROUTING", "-j", "NETAGENT-A")
    kernel.nft("add chain ip nat mine { type nat hook prerouting priority -100; }")
    kernel.nft("add map ip nat m { type ipv4_addr : verdict; }; add rule ip nat mine ip daddr vmap @m")
    kernel.nft("add rule ip nat NETAGENT-A ip daddr vmap @m; add rule ip nat PREROUTING ip daddr vmap @m")
    actual = readback.read(tools.save(Variant.NFT, Family.IPV4), Family.IPV4)
    assert list(actual.chains.values()) == [("",)]  # not what it should be, so it is written anew
    tools.restore(Variant.NFT, Family.IPV4, SMALL, lock_seconds=1)
    assert "vmap @m" in kernel.nft("list ruleset")


@pytest.mark.parametrize("variant", namespaces.VARIANTS)
@kernel.isolated
def test_without_the_capability_it_is_a_matter_of_privilege(variant: Variant) -> None:
    namespaces.need(variant)
    namespaces.lose_privilege()
    with pytest.raises(errors.PrivilegeError, match="CAP_NET_ADMIN"):
        tools.restore(variant, Family.IPV4, SMALL, lock_seconds=1)
