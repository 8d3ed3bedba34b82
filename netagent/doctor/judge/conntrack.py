"""The connection table: large enough, not full, and strict or lenient as our rules expect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from netagent.agent import host_sysctls
from netagent.doctor import findings
from netagent.doctor.evidence import Evidence

_PREFIX: Final = "net/netfilter/nf_conntrack_"
_FEW: Final = 32768  # connections; a kernel with 1 GB of memory allows twice as many by itself
_FULL, _NEARLY_FULL = 0.95, 0.80
_LONG_CHAINS: Final = 8  # connections for each bucket, when the table is full; the kernel's own choice is 1 or 4


def size(seen: Evidence) -> Iterator[findings.Finding]:
    """Does the table hold as many connections as the configuration asks for?"""
    most = seen.number(f"{_PREFIX}max")
    if most is None:
        return
    check = "conntrack-size"
    asked = next((s.value for s in host_sysctls.wanted_sysctls(seen.wanted.conntrack, cores=seen.cores)
                  if s.name == "nf_conntrack_max"), 0)  # fmt: skip
    fact = f"net.netfilter.nf_conntrack_max = {most}"
    remedy = (
        "Run `netagent sysctl --config FILE` on the host (netagent-sysctl.service does it at boot), "
        f"or: sysctl -w net.netfilter.nf_conntrack_max={max(asked, 131072)}"
    )
    if most < _FEW:
        yield findings.warning(
            check,
            f"the connection table holds {most} connections only, and what comes beyond that is dropped",
            fact,
            remedy=remedy,
        )
    elif asked and most < asked:
        wanted = f"the configuration asks for {asked} on {seen.cores} cores"
        if seen.configured:
            yield findings.warning(
                check, "the connection table is smaller than the configuration says", fact, wanted, remedy=remedy
            )
        else:
            yield findings.info(
                check,
                "the connection table is smaller than `netagent sysctl` would make it",
                fact,
                wanted,
                remedy=remedy,
            )
    else:
        yield findings.ok(check, "the connection table is large enough", fact)


def fill(seen: Evidence) -> Iterator[findings.Finding]:
    """Is there room in the table?"""
    most, count = seen.number(f"{_PREFIX}max"), seen.number(f"{_PREFIX}count")
    if not most or count is None:
        return
    check = "conntrack-fill"
    facts = (f"net.netfilter.nf_conntrack_count = {count}", f"net.netfilter.nf_conntrack_max = {most}")
    share = f"{count * 100 // most} %"
    remedy = (
        f"Make it larger (sysctl -w net.netfilter.nf_conntrack_max={most * 2}; for good: conntrack.min in the "
        "configuration, and `netagent sysctl`), and look who opens so many: "
        "conntrack -L | awk '{print $5}' | sort | uniq -c | sort -n"
    )
    if count >= most * _FULL:
        yield findings.error(
            check, f"the connection table is full ({share}): new connections are dropped", *facts, remedy=remedy
        )
    elif count >= most * _NEARLY_FULL:
        yield findings.warning(
            check,
            f"the connection table is nearly full ({share}); then new connections are dropped",
            *facts,
            remedy=remedy,
        )
    else:
        yield findings.ok(check, f"the connection table has room ({share} in use)", *facts)


def buckets(seen: Evidence) -> Iterator[findings.Finding]:
    """Does finding a connection take a few steps, or many?"""
    most, count = seen.number(f"{_PREFIX}max"), seen.number(f"{_PREFIX}buckets")
    if not most or not count:
        return
    facts = (f"net.netfilter.nf_conntrack_buckets = {count}", f"net.netfilter.nf_conntrack_max = {most}")
    if most > count * _LONG_CHAINS:
        yield findings.warning(
            "conntrack-buckets",
            f"the connection table has few buckets: up to {most // count} connections in each, and every packet "
            "looks through one",
            *facts,
            remedy=f"sysctl -w net.netfilter.nf_conntrack_buckets={most // 4} (a quarter of nf_conntrack_max)",
        )
    else:
        yield findings.ok("conntrack-buckets", "the connection table has enough buckets", *facts)


def out_of_window(seen: Evidence) -> Iterator[findings.Finding]:
    """Is there a rule for TCP packets that connection tracking cannot place?"""
    liberal = seen.number(f"{_PREFIX}tcp_be_liberal")
    if liberal is None:
        return
    check = "tcp-be-liberal"
    fact = f"net.netfilter.nf_conntrack_tcp_be_liberal = {liberal}"
    drops = seen.wanted.drops_invalid
    ours = f"conntrack.tcpBeLiberal is {_spelled(seen.wanted.conntrack.tcp_be_liberal)}"
    if seen.wanted.drop_invalid is not None:
        ours = f"netagent.dropInvalid is {_spelled(drops)}"
    if liberal or drops:
        yield findings.ok(check, "packets outside of the TCP window are provided for", fact, ours)
        return
    yield findings.warning(
        check,
        "TCP packets that connection tracking cannot place reach clients with a pod's address, and are answered by a "
        "reset that ends healthy connections",
        fact,
        ours,
        remedy="Run `netagent sysctl --config FILE`, which sets the sysctl to 1, or leave conntrack.tcpBeLiberal and "
        "netagent.dropInvalid at their defaults.",
    )


def _spelled(value: bool) -> str:
    return "true" if value else "false"
