"""A cluster that never rests: Services and endpoints come and go, and one Service moves to and fro, to be clocked."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Any

from demo.cluster import Pod

from tests import builders
from tests.apiserver import ApiServer

# Services that only come, change and go.
_OTHERS = 100
PROBE_ADDRESS, PROBE_PORT = "10.96.9.9", 80


class Churn:
    """Changes on an API server. Owns: what it has made. Use: `change` for one to some events, `move_probe`."""

    def __init__(self, server: ApiServer, dice: random.Random, steady: dict[str, Any], more: Sequence[Pod]) -> None:
        """`steady` is the slice of a Service whose endpoints stay; of `more` pods some are behind it, too."""
        self.events = 0
        self._server = server
        self._dice = dice
        self._steady = steady
        self._more = more
        self._server.apply(builders.service_manifest("probe", cluster_ip=PROBE_ADDRESS))

    def change(self) -> None:
        number = self._dice.randrange(_OTHERS)
        before = self._server.cluster.version
        match self._dice.randrange(10):
            case 0:
                for kind, name in (("Service", f"other-{number}"), ("EndpointSlice", f"other-{number}-1")):
                    with contextlib.suppress(KeyError):  # it is not there
                        self._server.delete(kind, name)
            case 1 | 2:
                address = f"10.96.{20 + number // 250}.{number % 250 + 1}"
                port = builders.port_manifest(self._dice.randrange(80, 90))
                self._server.apply(builders.service_manifest(f"other-{number}", cluster_ip=address, ports=[port]))
            case 3:
                self._scale_steady()
            case _:
                hosts = self._dice.sample(range(1, 250), self._dice.randrange(0, 12))
                addresses = [f"10.244.{self._dice.randrange(1, 3)}.{host}" for host in hosts]
                self._server.apply(builders.slice_manifest(f"other-{number}", *dict.fromkeys(addresses)))
        self.events += self._server.cluster.version - before

    def move_probe(self, pod: Pod) -> None:
        """Have the probe's Service lead to this pod alone."""
        ports = [builders.port_manifest(pod.ports[0].number)]
        self._server.apply(builders.slice_manifest("probe", pod.addresses[0], ports=ports))
        self.events += 1

    def _scale_steady(self) -> None:
        """Other pods come to the steady Service and leave it; its own stay."""
        guests = self._dice.sample(self._more, self._dice.randrange(len(self._more) + 1))
        endpoints = [*self._steady["endpoints"]]
        for pod in guests:
            endpoints.append({"addresses": [pod.addresses[0]], "nodeName": pod.node})
        self._server.apply({**self._steady, "endpoints": endpoints})
