"""A host that has too little of something, or does not allow something."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests import builders, kernel, patience
from tests.agent import live_agent
from tests.apiserver import ApiServer
from tests.chaos import agents
from tests.chaos.framework import Run, drill

_LARGE = 300  # Services, of 60 endpoints each


@drill("few-descriptors", 40, full=3)
def few_descriptors(run: Run) -> None:
    """With 32 file descriptors (RLIMIT_NOFILE) it follows an API server; clients of its servers that take them all are
    turned away, and rules follow as before when they have gone."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))"
    live_agent.begin()
    for round_number in run.rounds():
        with ApiServer(live_agent.small_cluster()) as server, live_agent.Agent(server.url, preface=limit) as agent:
            agent.until_listening()
            live_agent.until_right(server)
            clients = [socket.create_connection(("127.0.0.1", 10256)) for _ in range(60)]
            run.count("idle clients", len(clients))
            server.apply(builders.slice_manifest("s1", f"10.180.9.{round_number + 1}"))
            run.measured("from a change to right, with clients on all descriptors", live_agent.until_right(server))
            for client in clients:
                client.close()
            live_agent.eventually(lambda: live_agent.get(f"{live_agent.HEALTH}/livez").status == 200)
            assert agent.end(signal.SIGTERM) == 0


@drill("little-memory", 40, 14, full=3)
def little_memory(run: Run) -> None:
    """An agent that gets no more memory (RLIMIT_AS at what it has, and then a hundred times as many endpoints) keeps
    the last good rules whatever becomes of it, and is right after a restart with memory."""
    for _ in run.rounds():
        with agents.Cluster() as cluster:
            with agents.Agent(cluster, talk="-vv") as agent:
                agent.until_synced()
                before = live_agent.listings()
                pages = int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[0])
                limit = pages * os.sysconf("SC_PAGE_SIZE") + (4 << 20)
                resource.prlimit(agent.process.pid, resource.RLIMIT_AS, (limit, limit))
                for number in range(_LARGE):
                    cluster.serve(number, range(1, 61))
                cluster.write()
                patience.until(lambda: not agent.alive() or "MemoryError" in agent.said() or not agents.right(cluster))
                if agents.right(cluster):
                    assert live_agent.listings() == before, "the last good rules are gone"
                    run.count("last good rules kept")
                else:
                    run.count("served all the same")
                run.count("ended for want of memory" if not agent.alive() else "went on")
                assert agent.process.poll() in (None, 70, 1), agent.process.returncode
            with agents.Agent(cluster) as agent:
                agent.until_right()


@drill("read-only-state", 41, full=1)
def read_only_state(run: Run) -> None:
    """A state directory that is read-only or full, and no /proc/sys: the agent programs, follows and ends in good order
    all the same."""
    hide = "mount -t tmpfs -o ro none /proc/sys && "
    full = "mount -t tmpfs -o size=4k none {0} && cat /dev/zero >{0}/full 2>/dev/null; "
    for _ in run.rounds():
        for name, prepare in (
            ("read-only", "mount -t tmpfs -o ro none {0} && "),
            ("full", full),
            ("without /proc/sys", hide),
        ):
            with agents.Cluster(services=2) as cluster:
                state = cluster.scratch / "state"
                state.mkdir()
                shell = ["unshare", "--mount", "sh", "-c", prepare.format(state) + 'exec "$@"', "sh"]
                _follows(run, cluster, name, before=shell, environment={"STATE_DIRECTORY": str(state)})


@drill("unwritable-log", 41, quick=1, full=1)
def unwritable_log(run: Run) -> None:
    """A log that cannot be written (/dev/full) costs nothing but the log."""
    with agents.Cluster(services=2) as cluster, open("/dev/full", "wb") as nowhere:
        for _ in run.rounds():
            _follows(run, cluster, "with an unwritable log", errors=nowhere.fileno())


def _follows(run: Run, cluster: agents.Cluster, name: str, **how: object) -> None:
    with agents.Agent(cluster, **how) as agent:  # type: ignore[arg-type]
        agent.until_right()
        cluster.serve(0, [3, 4, 5])
        cluster.write()
        agent.until_right()
        cluster.serve(0, [1])
        cluster.write()
        agent.until_right()
        assert agent.end() == 0
        run.count(f"followed: {name}")


@drill("no-capability", 50, full=1)
def no_capability(run: Run) -> None:
    """Without CAP_NET_ADMIN every command that needs it ends with exit code 4 and one clear line; `dump` works."""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    with agents.Cluster(services=2) as cluster:
        where = ("-f", cluster.directory, "--node-name", agents.NODE)
        for _ in run.rounds():
            for command in ("run", "sync", "diff"):
                done = agents.netagent(command, *where, before=drop)
                assert done.returncode == 4, done
                assert "CAP_NET_ADMIN" in done.stderr
                assert len(done.stderr.splitlines()) == 1, done.stderr
                run.count("clear refusals")
            assert agents.netagent("dump", *where, before=drop).returncode == 0


# What the kernel says when a module is not there, for each expression or object that we use.
_LACKS = {
    "numgen": "CONFIG_NFT_NUMGEN",
    "fib": "CONFIG_NFT_FIB_IPV",
    "masq": "CONFIG_NFT_MASQ",
    "nat": "CONFIG_NFT_NAT",
}
_LACKS |= {"reject": "CONFIG_NFT_REJECT_IPV", "ct": "CONFIG_NFT_CT"}
_PROXY = """
import errno
from netagent.nftables import netlink
_commit = netlink.NftablesSocket.commit
def commit(self, messages, **how):
    for position, raw in enumerate(messages):
        if {lacking!r} in raw:
            return [netlink.Failure(position, errno.ENOENT, "No such file or directory")]
    return _commit(self, messages, **how)
netlink.NftablesSocket.commit = commit
"""


@drill("lacking-kernel", 16, full=1)
def lacking_kernel(run: Run) -> None:
    """A kernel that lacks an expression (a proxy in front of its socket says ENOENT) is refused with exit code 5 and
    the name of the option; one that has no owners of tables is served without them."""
    with agents.Cluster(services=2) as cluster:
        for _ in run.rounds():
            for name, option in _LACKS.items():
                # NFTA_EXPR_NAME with its length: 4, the name and a NUL.
                lacking = (len(name) + 5).to_bytes(2, "little") + b"\x01\x00" + name.encode() + b"\0"
                with agents.Agent(cluster, preface=_PROXY.format(lacking=lacking)) as agent:
                    assert agent.process.wait(patience.HANGS) == 5, agent.said()
                    assert option in agent.said(), agent.said()
                    assert "Traceback" not in agent.said()
                run.count("expressions that are missing, refused by name")
            owner = b"\x08\x00\x02\x00" + (2 | 4).to_bytes(4)  # NFTA_TABLE_FLAGS: owner, persist
            with agents.Agent(cluster, owned=True, preface=_PROXY.format(lacking=owner)) as agent:
                agent.until_right()
                assert "owner" not in kernel.nft("list table ip netagent")
                run.count("kernels without owners, served")


@drill("no-programs", 15, quick=1, full=1)
def no_programs(run: Run) -> None:
    """In mode nftables no program of the host is ever started: with an `nft` in PATH that crashes, hangs or prints
    garbage, and with none at all, the rules are right."""
    broken = {"crashes": "kill -SEGV $$", "hangs": "sleep 600", "garbage": "echo '{]'; exit 0"}
    with agents.Cluster(services=2) as cluster:
        for _ in run.rounds():
            for name, script in {**broken, "absent": ""}.items():
                path = cluster.scratch / name
                path.mkdir(exist_ok=True)
                if script:
                    (path / "nft").write_text(f"#!/bin/sh\n{script}\n")
                    (path / "nft").chmod(0o755)
                with agents.Agent(cluster, environment={"PATH": str(path)}) as agent:
                    agent.until_right()
                run.count(f"right where nft {name}" if script else "right without nft")


@drill("conntrack-full", 35, 36, full=1)
def conntrack_full(run: Run) -> None:
    """A connection tracking table that is full drops connections and not the agent: it follows changes, and stale flows
    of a removed endpoint are dropped without keeping them all in memory."""
    most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    if most > 600_000:
        pytest.skip(f"nf_conntrack_max is {most}: it would take long to fill")
    for _ in run.rounds():
        kernel.fresh()
        routes = map("route add local {} dev lo".format, _ROUTED)
        for command in ("link set lo up", "addr add 192.0.2.1/32 dev lo", *routes):
            subprocess.run(["ip", *command.split()], check=True)
        with agents.Cluster(services=2) as cluster:
            cluster.serve(1, [1], protocol="UDP")
            cluster.write()
            with agents.Agent(cluster) as agent:
                agent.until_right()
                rss = agent.rss_bytes()
                count = _fill(most)
                run.count("flows", count)
                cluster.serve(1, [2], protocol="UDP")
                cluster.write()
                run.measured("from a change to right, with the table full", agent.until_right())
                assert agent.alive()
                patience.until(lambda: "stale flows" in agent.said(), "stale flows are looked for")
                run.measured("processor time of the agent", agent.cpu_seconds())
                run.count("growth of memory, KiB", max(0, agent.rss_bytes() - rss) // 1024)
                assert agent.rss_bytes() < rss + _FEW_BYTES, "it keeps what it lists"
                assert agent.end() == 0


# All flows that fit into the table would be some hundred MiB, as Python keeps them.
_FEW_BYTES = 48 << 20
_ROUTED = ("10.96.0.0/16", "10.180.0.0/16")


def _fill(most: int) -> int:
    """Send a datagram to the Service from so many ports that the table of this namespace is full; how full it is.

    A full table makes room by dropping flows that nobody has answered, as these: it is full from some hundred below on.
    """
    target = (agents.cluster_ip(1), 80)
    Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout").write_text("600")  # of this namespace
    held = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    for host in range(2, 255):
        subprocess.run(["ip", "addr", "add", f"192.0.2.{host}/32", "dev", "lo"], check=True)
        for port in range(1024, 65536):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((f"192.0.2.{host}", port))
                try:
                    sender.sendto(b"?", target)
                except PermissionError:  # EPERM: dropped, as the table is full
                    return int(held.read_text())
            if port % 1024 == 0 and int(held.read_text()) > most - 1024:
                return int(held.read_text())
    raise AssertionError(f"only {held.read_text()} flows")
