"""Connections are counted by the kernel, frontend by frontend."""

from __future__ import annotations

import socket
import subprocess

from netagent.nftables import backend, counters
from netagent.plan.frontends import FrontendKey
from tests import kernel

from . import strategies


@kernel.isolated
def test_each_new_connection_counts_once_for_its_frontend() -> None:
    (key,) = state = strategies.state_of(strategies.cluster_ip_frontend(count=1))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo"], check=True)
    ours = backend.Backend(affinity_clients=100)
    assert dict(counters.frontend_counts(ours.socket)) == {}
    ours.read()
    ours.set_rules([strategies.plain_rules(key.family)])
    ours.update(state, state)
    ours.commit()
    assert dict(counters.frontend_counts(ours.socket)) == {key: 0}
    for _ in range(3):
        _connect(key)
    assert dict(counters.frontend_counts(ours.socket)) == {key: 3}
    ours.close()


def _connect(key: FrontendKey) -> None:
    """Send the first packet of a connection. What becomes of it does not matter here."""
    with socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        client.connect_ex((".".join(map(str, key.address)), key.port))
