"""The host's connection tracking limits: the numbers, what is written, and what is said when it cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netagent import settings
from netagent.agent import host_sysctls
from tests import kernel

# What Linux has on a machine with 4 GiB of memory.
HOST = {
    "nf_conntrack_max": 65536,
    "nf_conntrack_buckets": 65536,
    "nf_conntrack_tcp_timeout_established": 432000,
    "nf_conntrack_tcp_timeout_close_wait": 60,
    "nf_conntrack_tcp_be_liberal": 0,
    "nf_conntrack_udp_timeout": 30,
    "nf_conntrack_udp_timeout_stream": 120,
}


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for name, value in HOST.items():
        (tmp_path / name).write_text(f"{value}\n")
    return tmp_path


def present(proc: Path) -> dict[str, int]:
    return {name: int((proc / name).read_text()) for name in HOST}


def wanted(*, cores: int = 4, **conntrack: float) -> tuple[host_sysctls.Sysctl, ...]:
    return host_sysctls.wanted_sysctls(settings.ConntrackSettings(**conntrack), cores=cores)


def value_of(name: str, sysctls: tuple[host_sysctls.Sysctl, ...]) -> int | None:
    return next((sysctl.value for sysctl in sysctls if sysctl.name == name), None)


@pytest.mark.parametrize(
    ("cores", "per_core", "least", "expected"),
    [
        (1, 32768, 131072, 131072),
        (8, 32768, 131072, 262144),
        (64, 32768, 131072, 1048576),  # the cap on the product
        (64, 32768, 2000000, 2000000),  # the floor beyond the cap: kube-proxy would stop at the cap
        (2, 32768, 0, 65536),
        (8, 0, 131072, None),
    ],
)
def test_the_table_grows_with_the_cores_between_its_floor_and_the_cap(
    cores: int, per_core: int, least: int, expected: int | None
) -> None:
    sysctls = wanted(cores=cores, max_per_core=per_core, min=least)
    assert value_of("nf_conntrack_max", sysctls) == expected
    assert value_of("nf_conntrack_buckets", sysctls) == (expected // 4 if expected else None)


def test_the_defaults_are_those_of_kube_proxy_and_leave_udp_alone(proc: Path) -> None:
    outcomes = host_sysctls.set_sysctls(wanted(), directory=proc)
    assert not [outcome for outcome in outcomes if outcome.failure]
    assert present(proc) == {
        **HOST,
        "nf_conntrack_max": 131072,
        "nf_conntrack_tcp_timeout_established": 86400,
        "nf_conntrack_tcp_timeout_close_wait": 3600,
    }


def test_everything_can_be_set_and_everything_can_be_left_alone(proc: Path) -> None:
    nothing = wanted(max_per_core=0, tcp_established_timeout_seconds=0, tcp_close_wait_timeout_seconds=0)
    assert nothing == ()
    everything = wanted(udp_timeout_seconds=0.5, udp_stream_timeout_seconds=300, tcp_be_liberal=True, min=1000000)
    host_sysctls.set_sysctls(everything, directory=proc)
    assert present(proc) == {
        "nf_conntrack_max": 1000000,
        "nf_conntrack_buckets": 250000,
        "nf_conntrack_tcp_timeout_established": 86400,
        "nf_conntrack_tcp_timeout_close_wait": 3600,
        "nf_conntrack_tcp_be_liberal": 1,
        "nf_conntrack_udp_timeout": 1,  # half a second must not become none
        "nf_conntrack_udp_timeout_stream": 300,
    }


def test_a_table_that_somebody_made_larger_stays_as_large(proc: Path) -> None:
    (proc / "nf_conntrack_max").write_text("4194304\n")
    (proc / "nf_conntrack_buckets").write_text("1048576\n")
    outcomes = host_sysctls.set_sysctls(wanted(), directory=proc)
    assert present(proc)["nf_conntrack_max"] == 4194304
    assert present(proc)["nf_conntrack_buckets"] == 1048576
    assert str(outcomes[0]) == "net.netfilter.nf_conntrack_max: 4194304 already, larger than asked for"


def test_what_is_right_already_is_not_written(proc: Path) -> None:
    host_sysctls.set_sysctls(wanted(), directory=proc)
    for path in proc.iterdir():
        os.utime(path, ns=(0, 0))
    outcomes = host_sysctls.set_sysctls(wanted(), directory=proc)
    assert not [outcome for outcome in outcomes if outcome.changed or outcome.failure]
    assert {path.stat().st_mtime_ns for path in proc.iterdir()} == {0}


def test_a_missing_file_costs_nothing_but_itself_and_names_the_remedy(proc: Path) -> None:
    (proc / "nf_conntrack_max").unlink()
    outcomes = host_sysctls.set_sysctls(wanted(), directory=proc)
    (failed,) = [outcome for outcome in outcomes if outcome.failure]
    assert "modprobe nf_conntrack" in str(failed)
    assert (proc / "nf_conntrack_tcp_timeout_established").read_text() == "86400\n"


def test_a_value_that_is_no_number_is_a_failure_and_stays(proc: Path) -> None:
    (proc / "nf_conntrack_max").write_text("many\n")
    failed = host_sysctls.set_sysctls(wanted(), directory=proc)[0]
    assert "not a number" in str(failed)
    assert (proc / "nf_conntrack_max").read_text() == "many\n"


def test_a_change_is_told_with_both_values(proc: Path) -> None:
    told = [str(outcome) for outcome in host_sysctls.set_sysctls(wanted(), directory=proc)]
    assert told[0] == "net.netfilter.nf_conntrack_max: 65536 -> 131072"
    assert told[1] == "net.netfilter.nf_conntrack_buckets: 65536 already, larger than asked for"


@kernel.isolated
def test_the_kernel_takes_timeouts_in_a_namespace_and_refuses_the_size_with_a_reason() -> None:
    host_sysctls.load_conntrack()
    outcomes = host_sysctls.set_sysctls(
        wanted(min=100_000_000, udp_timeout_seconds=31, tcp_be_liberal=True, tcp_established_timeout_seconds=4711)
    )
    told = {outcome.sysctl.name: outcome for outcome in outcomes}
    assert told["nf_conntrack_tcp_timeout_established"].after == 4711
    assert told["nf_conntrack_tcp_be_liberal"].after == 1
    assert told["nf_conntrack_udp_timeout"].after == 31
    # The size of the table is the host's: no namespace may set it, and that is no reason to stop.
    assert "host's network namespace" in str(told["nf_conntrack_max"])
    assert "host's network namespace" in str(told["nf_conntrack_buckets"])
