"""What is collected of a host is bounded, and says nothing of others' rules."""

from __future__ import annotations

import sys

from netagent.bundle import host
from netagent.iptables import tools
from netagent.model import addresses
from tests import kernel


def test_of_a_program_that_never_stops_printing_the_end_is_kept() -> None:
    endless = [sys.executable, "-c", "while True: print('x' * 99)"]
    kept = host.tail_of(endless, most=1 << 20, seconds=0.5)
    assert len(kept) < 3 << 20
    short = [sys.executable, "-c", "print('a' * 10); print('end')"]
    assert host.tail_of(short, most=1 << 20, seconds=60).endswith(b"end\n")


def test_facts_of_the_host_come_without_rights() -> None:
    assert any(line.startswith("netagent ") for line in host.versions())
    assert any(line.startswith("Linux ") for line in host.system())
    assert any(line.startswith("net.ipv4.ip_forward = ") for line in host.parameters())
    assert any(" lo loopback " in line for line in host.interfaces())


@kernel.isolated
def test_of_xtables_only_our_chains_and_the_jumps_to_them_are_taken() -> None:
    if not tools.installed(tools.Variant.NFT):
        import pytest

        pytest.skip("not installed: iptables-nft")
    script = (
        "*nat\n:NETAGENT-X - [0:0]\n:OTHERS - [0:0]\n-A PREROUTING -j OTHERS\n-A PREROUTING -j NETAGENT-X\n"
        "-A NETAGENT-X -p tcp -j RETURN\n-A OTHERS -p udp -j RETURN\nCOMMIT\n"
    )
    tools.restore(tools.Variant.NFT, addresses.Family.IPV4, script, lock_seconds=5)
    lines = list(host.own_chains(tools.Variant.NFT, addresses.Family.IPV4))
    assert lines == [
        "*nat",
        ":NETAGENT-X - [0:0]",
        "-A PREROUTING -j NETAGENT-X",
        "-A NETAGENT-X -p tcp -j RETURN",
        "COMMIT",
    ]
