"""A node with netagent on it, for tests that say themselves what happens when: objects in, connections out."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import builders

from . import agent_plane, clients, layout, planes, servers, universe

NODE = "node-1"
NODE_IP = "192.0.2.1"
POD = "10.180.0.200"  # a pod that only dials
CONFIG = {"detectLocalMode": "ClusterCIDR", "clusterCIDR": "10.180.0.0/16", "hostnameOverride": NODE}


class Stage:
    """The node `node-1` (192.0.2.1, pods in 10.180.0.0/24), its endpoints, its clients, and netagent.

    Owns: namespaces, servers, clients, the agent. Use: `apply` manifests by name, which syncs; `dial` from a pod.
    Threading: one thread; servers answer while `wait` or a dial runs.
    """

    def __init__(self, space: universe.Universe, files: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers = servers.Servers(space, self._loop)
        for place in (layout.Place.PODS, layout.Place.WORLD):
            self._servers.listen(place, 4, [("tcp", 8080), ("udp", 8080)])
        self.clients = clients.Clients(space, self._servers, self._loop)
        manifests = files / "manifests"
        manifests.mkdir()
        config_file = files / "config.json"
        config_file.write_text(planes.dumps(planes.kube_proxy_configuration(CONFIG, "nftables")))
        self.node = space.n1
        self._site = planes.Site(space.n1, NODE, "nftables", manifests, config_file)
        self.agent = agent_plane.InProcess(self._site)
        self._steps = 0
        self.write(builders.node_manifest(NODE, internal_ips=[NODE_IP]), builders.service_cidr_manifest())

    def write(self, *manifests: dict[str, Any]) -> None:
        """Put manifests into the directory, replacing those of the same kind and name."""
        for manifest in manifests:
            name = f"{manifest['kind']}-{manifest['metadata']['name']}.json".lower()
            (self._site.manifests / name).write_bytes(builders.as_json(manifest))

    def remove(self, service: str) -> None:
        """Take a Service and its slices out of the directory."""
        for file in self._site.manifests.glob(f"*-{service}*.json"):
            file.unlink()

    def apply(self, *manifests: dict[str, Any]) -> int:
        """Write manifests and sync; the number of operations."""
        self.write(*manifests)
        self._steps += 1
        self.agent.apply(self._steps, [], CONFIG)
        return self.agent.operations[-1]

    def dial(self, count: int, *, to: str, port: int, protocol: str = "tcp") -> list[clients.Outcome]:
        """Open connections from the pod, a few at a time, each from a source port of its own."""
        return self.wait(self.dial_all(count, to=to, port=port, protocol=protocol))

    async def dial_all(self, count: int, *, to: str, port: int, protocol: str) -> list[clients.Outcome]:
        dial = clients.Dial(
            place=layout.Place.PODS, source=POD, destination=to, port=port, protocol=protocol, patience=60
        )
        outcomes: list[clients.Outcome] = []
        while len(outcomes) < count:
            some = min(50, count - len(outcomes))
            outcomes += await asyncio.gather(*(self.clients.dial(dial) for _ in range(some)))
        return outcomes

    def wait(self, coroutine: Any) -> Any:
        return self._loop.run_until_complete(coroutine)

    def close(self) -> None:
        self.agent.close()
        self.clients.close()
        self._servers.close()
        self._loop.close()


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """A stage, gone without trace afterwards."""
    plan = layout.Layout(
        node_ips=(NODE_IP,),
        gateway_ips=("10.180.0.254",),
        extra_ips=(),
        pod_routes=("10.180.0.0/24",),
        pod_link=layout.POD_LINK,
        bridged=False,
        families=frozenset({4}),
        ports=frozenset({("tcp", 8080), ("udp", 8080)}),
        node_ports=frozenset(),
    )
    with universe.Universe(plan) as space, tempfile.TemporaryDirectory(prefix="netagent-stage-") as files:
        made = Stage(space, Path(files))
        try:
            yield made
        finally:
            made.close()


def reached(outcomes: list[clients.Outcome]) -> Counter[str]:
    """How many connections each endpoint address got. AssertionError if any got nowhere."""
    lost = [str(outcome) for outcome in outcomes if outcome.arrival is None]
    assert not lost, f"{len(lost)} of {len(outcomes)} connections failed, the first one: {lost[0]}"
    return Counter(outcome.arrival.local[0] for outcome in outcomes if outcome.arrival)
