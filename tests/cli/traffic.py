"""A host with packets for the kernel to count. For tests under `kernel.isolated`."""

from __future__ import annotations

import socket
import subprocess
import threading

from tests import patience


def become_host(*endpoints: str) -> None:
    """Make the empty namespace a host: loopback, these addresses on it, and a way to cluster IPs."""
    commands = ["link set lo up", *(f"addr add {address}/32 dev lo" for address in endpoints)]
    # Where a packet would go if nobody translated it; what is translated takes another route.
    for command in (*commands, "route add 10.96.0.0/12 dev lo"):
        subprocess.run(["ip", *command.split()], check=True, timeout=patience.HANGS)


class Server:
    """Accepts connections and closes them, until the end of the process. `accepted` counts them."""

    def __init__(self, address: str, port: int) -> None:
        self._listening = socket.create_server((address, port), backlog=256)
        self.accepted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            accepted, _ = self._listening.accept()
            self.accepted += 1
            accepted.close()


def connect(address: str, port: int, times: int) -> None:
    """Connect so many times, one after the other, and wait each time until the server has closed."""
    for _ in range(times):
        with socket.create_connection((address, port), timeout=patience.HANGS) as connected:
            connected.recv(1)
