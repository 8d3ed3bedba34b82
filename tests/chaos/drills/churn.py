"""A cluster that changes all the time, or is very large in an odd way; and a configuration that is edited badly."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

from tests import builders
from tests.agent import live_agent
from tests.apiserver import ApiServer
from tests.chaos import agents, states
from tests.chaos.framework import Run, drill
from tests.nftables import strategies
from tests.nftables.test_backend_kernel import want


@drill("endless-churn", 33, full=1)
def endless_churn(run: Run) -> None:
    """Thousands of endpoint changes as fast as an API server tells them, one endpoint flapping all the time among them:
    what comes in crowds is committed together, and in the end the kernel is exactly right."""
    dice = random.Random(33)
    live_agent.begin()
    with ApiServer(live_agent.small_cluster(services=50)) as server, live_agent.Agent(server.url) as agent:
        live_agent.until_right(server)
        for _ in run.rounds():
            for number in range(5000):
                if number % 2:
                    flapping = ["10.180.0.1"] if number % 4 == 1 else []
                    server.apply(builders.slice_manifest("s0", *flapping))
                else:
                    server.apply(
                        builders.slice_manifest(f"s{dice.randrange(1, 50)}", f"10.180.7.{dice.randrange(1, 99)}")
                    )
                run.count("changes")
            run.measured("from the last change to right", live_agent.until_right(server))
            syncs = agent.said().count("sync committed")
            run.count("syncs", syncs)
            assert syncs < 5000, "each change had a sync of its own"


@drill("thundering", 34, full=3)
def thundering(run: Run) -> None:
    """All Services but a few are deleted and made again at once: at every look, those that stay have all their
    endpoints, and nobody else ever leads to an endpoint that is not his."""
    live_agent.begin()
    with ApiServer(live_agent.small_cluster(services=100)) as server, live_agent.Agent(server.url):
        live_agent.until_right(server)
        everything = live_agent.manifests_of(server)
        survivors = [one for one in everything if one["metadata"]["name"].split("-")[0] not in _LEAVING]
        leaving = [one for one in everything if one not in survivors]
        watch = live_agent.NeverWrong(everything, survivors)
        for _ in run.rounds():
            changing = threading.Thread(target=_made_again, args=(server, leaving))
            changing.start()
            while changing.is_alive():
                watch.look()
            run.count("objects deleted and made again", len(leaving))
            run.measured("from the end to right", live_agent.until_right(server, meanwhile=watch.look))
        run.count("looks at the kernel", watch.looks)


def _made_again(server: ApiServer, objects: list[builders.Manifest]) -> None:
    for one in objects:
        server.delete(one["kind"], one["metadata"]["name"])
        time.sleep(_PAUSE)
    for one in objects:
        server.apply(one)
        time.sleep(_PAUSE)


_PAUSE = 0.002  # seconds: all of it takes about one
_LEAVING = {f"s{number}" for number in range(10, 100)}


@drill("odd-sizes", 32, full=1)
def odd_sizes(run: Run) -> None:
    """One Service with 10,000 endpoints, and 10,000 Services with none, are one transaction each; one more endpoint,
    or one Service less, is a few operations."""
    for _ in run.rounds():
        with states.opened() as ours:
            many = strategies.state_of(_with_endpoints(10_000))
            want(ours, many)
            run.count("operations of 10,000 endpoints", ours.commit().operations)
            one_more = strategies.state_of(_with_endpoints(10_001))
            ours.update(one_more, one_more)
            operations = ours.commit().operations
            run.count("operations of one endpoint more", operations)
            assert operations < 20
            none = strategies.state_of(*(strategies.cluster_ip_frontend(number=n, count=0) for n in range(1, 10_001)))
            ours.update({**many, **none}, none)
            run.count("operations of 10,000 Services without endpoints", ours.commit().operations)
            gone = dict(list(none.items())[1:])
            ours.update(none, gone)
            operations = ours.commit().operations
            run.count("operations of one Service less", operations)
            assert operations < 20
            ours.update(none, {})
            ours.commit()


def _with_endpoints(count: int) -> strategies.frontends.Frontend:
    return strategies.cluster_ip_frontend(count=count)


@drill("bad-configuration", 49, quick=1, full=5)
def bad_configuration(run: Run) -> None:
    """Configuration files that are invalid, half-written, empty, gone, or swapped like a ConfigMap's: a bad one is
    refused with its line and the old one holds; the next good one takes effect."""
    with agents.Cluster(services=2) as cluster, agents.Agent(cluster) as agent:
        agent.until_right()
        config = cluster.scratch / "config.yaml"
        good = config.read_text()
        for number in run.rounds():
            for bad in (good[: len(good) // 2], "mode: nftables\nkind: [", good + "\nclusterCIDRs: x\n", "", None):
                refusals = agent.said().count("configuration refused")
                if bad is None:
                    config.unlink()
                else:
                    config.write_text(bad)
                agent.process.send_signal(signal.SIGHUP)
                live_agent.eventually(lambda n=refusals: agent.said().count("configuration refused") > n)  # type: ignore[misc]
                assert not agents.right(cluster), "the old configuration does not hold"
                run.count("bad configurations refused")
            _swap(cluster, number, good)
            (cluster.scratch / "config.yaml").unlink(missing_ok=True)
            os.symlink("..data/config.yaml", config)
            agent.process.send_signal(signal.SIGHUP)
            cluster.serve(0, [number % 200 + 1])
            cluster.write()
            agent.until_right()
            run.count("good ones after them, as a swapped symlink")
            config.unlink()
            config.write_text(good)


def _swap(cluster: agents.Cluster, number: int, text: str) -> None:
    """As the kubelet does: a new directory, and `..data` that leads to it in one step."""
    version = cluster.scratch / f"..{number}-{time.monotonic_ns()}"
    version.mkdir()
    (version / "config.yaml").write_text(text)
    draft = cluster.scratch / "..data_tmp"
    draft.symlink_to(version.name)
    draft.rename(cluster.scratch / "..data")
