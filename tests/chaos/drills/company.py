"""Others who want the same: a second agent, kube-proxy, an older version; and a host that changes under the agent."""

from __future__ import annotations

import subprocess
from pathlib import Path

from netagent.model.addresses import Family
from netagent.nftables import layout
from tests import kernel, patience
from tests.agent import live_agent
from tests.chaos import agents, states
from tests.chaos.framework import Run, drill
from tests.nftables import strategies
from tests.nftables.test_backend_kernel import want

_FIXTURES = Path(__file__).parents[1] / "fixtures"


@drill("many-agents", 6, full=5)
def many_agents(run: Run) -> None:
    """Of several agents that start at once exactly one stays; the others end with exit code 9 and name it. When it is
    killed, the next one takes over."""
    with agents.Cluster(services=2) as cluster:
        for _ in run.rounds():
            started = [agents.Agent(cluster, owned=True) for _ in range(4)]
            try:
                patience.until(lambda found=started: sum(map(agents.Agent.alive, found)) == 1, "one is left")
                (stays,) = [agent for agent in started if agent.alive()]
                stays.until_right()
                for agent in started:
                    if agent is not stays:
                        assert agent.process.returncode == 9, agent.said()
                        assert f"process {stays.process.pid} " in agent.said()
                        run.count("refused agents that name the one that stays")
                stays.process.kill()
                stays.process.wait()
                with agents.Agent(cluster, owned=True) as heir:
                    cluster.serve(0, [5])
                    cluster.write()
                    heir.until_right()
                    run.count("heirs")
                cluster.serve(0, [1, 2])
                cluster.write()
            finally:
                for agent in started:
                    agent.__exit__(None, None, None)


@drill("beside-kube-proxy", 7, quick=1, full=1)
def beside_kube_proxy(run: Run) -> None:
    """Tables of kube-proxy's nftables mode stay as they are beside ours, while it runs, repairs, and ends; `netagent
    cleanup` removes what kube-proxy left (tests/iptables/test_kube_proxy.py)."""
    theirs = 'table ip kube-proxy { comment "rules for kube-proxy"; chain services { tcp dport 1 drop; }; }'
    kernel.nft(theirs)
    before = kernel.listing("ip kube-proxy")
    with agents.Cluster(services=2) as cluster, agents.Agent(cluster) as agent:
        for _ in run.rounds():
            agent.until_right()
            agents.quietly("delete table ip netagent")
            agent.until_right()
            assert kernel.listing("ip kube-proxy") == before
            run.count("repairs beside it")
        assert agent.end() == 0
    assert kernel.listing("ip kube-proxy") == before


@drill("older-layout", 44, quick=1, full=1)
def older_layout(run: Run) -> None:
    """The tables that an older version left (tests/chaos/fixtures, as its `dump` wrote them) become ours in a single
    transaction, so that at no moment there are none; and what is gone of the layout is gone from the kernel."""
    for _ in run.rounds():
        for fixture in sorted(_FIXTURES.glob("*.nft")):
            kernel.fresh()
            kernel.nft(fixture.read_text())
            state = strategies.state_of(
                strategies.cluster_ip_frontend(count=2), strategies.cluster_ip_frontend(number=2)
            )
            with states.opened() as ours:
                want(ours, state, *Family)
                done = ours.commit()
                assert done.transactions == 1, f"{fixture.name}: {done.transactions} transactions"
                run.count("layouts taken over in one transaction")
                run.count("operations", done.operations)
            with states.opened() as fresh:
                assert not states.differences(fresh, state, *Family)
                names = set(fresh.actual(Family.IPV4).sets)
                assert names <= set(layout.sets(affinity_clients=1)), names


@drill("vanishing-host", 42, full=3)
def vanishing_host(run: Run) -> None:
    """Links, addresses and routes of the host that vanish and come back under a running agent, and a namespace that
    loses its name (`ip netns delete`), leave it running; it goes when it is told to."""
    with agents.Cluster(services=4) as cluster, agents.Agent(cluster) as agent:
        agent.until_right()
        for number in run.rounds():
            for command in (
                "link add gone0 type veth peer name peer0",
                "addr add 192.0.2.1/24 dev gone0",
                "link set gone0 up",
                "route add default via 192.0.2.254",
                "link set gone0 down",
                "link set gone0 name gone1",
                "link set gone1 up",
                "addr flush dev gone1",
                "link delete gone1",
                "link set lo down",
                "link set lo up",
            ):
                subprocess.run(["ip", *command.split()], check=True, timeout=60)
                run.count("changes of the host")
            cluster.serve(0, [number % 200 + 1])
            cluster.write()
            agent.until_right()
        assert agent.end() == 0


@drill("deleted-namespace", 42, quick=1, full=3)
def deleted_namespace(run: Run) -> None:
    """A network namespace that everybody but the agent has left, and whose tables are flushed, is served until the
    agent ends; then nothing of it is left."""
    for _ in run.rounds():
        with agents.Cluster(services=2) as cluster:
            with agents.Agent(cluster) as agent:
                agent.until_right()
                namespace = f"/proc/{agent.process.pid}/ns/net"
                inside = ["nsenter", f"--net={namespace}"]
                kernel.fresh()  # we are out of it; it is the agent's alone
                subprocess.run([*inside, "nft", "flush", "ruleset"], check=True, timeout=60)
                listed = [*inside, "nft", "list", "tables"]
                patience.until(lambda command=listed: "netagent" in _said(command), "the rules are back")
                assert agent.end() == 0
                run.count("namespaces")
            assert live_agent.listings() == {}


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
