"""The servers: one process answers for all pods, each on its own sockets in its own namespace."""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket

from .cluster import Pod
from .universe import Universe

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class PodServers:
    """Every pod of a universe answers with a line: its name, and the address that it was asked from.

    Over TCP it does so when a connection is made, and again for everything that is sent; over UDP for every datagram.
    Owns: a child process. Use: as a context manager. It dies with the process (and thread) that made it.
    """

    def __init__(self, universe: Universe) -> None:
        self._listeners = [
            (pod, _listener(address, port.number, udp=port.protocol == "udp", universe=universe, pod=pod))
            for pod in universe.pods.values()
            for address in pod.addresses
            for port in pod.ports
        ]

    def __enter__(self) -> PodServers:
        parent = os.getpid()
        self._process = os.fork()
        if self._process == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to answer
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() == parent:
                    _serve(self._listeners)
            finally:
                os._exit(1)
        for _, listener in self._listeners:
            listener.close()
        return self

    def __exit__(self, *exc: object) -> None:
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)


def _listener(address: str, port: int, *, udp: bool, universe: Universe, pod: Pod) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with universe.pod(pod.name).entered():
        made = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    if not udp:
        made.listen(512)
    made.setblocking(False)
    return made


def _serve(listeners: list[tuple[Pod, socket.socket]]) -> None:
    """Answer for ever."""
    selector = selectors.DefaultSelector()
    for pod, listener in listeners:
        selector.register(listener, selectors.EVENT_READ, (pod, None))
    while True:
        for key, _ in selector.select():
            ready: socket.socket = key.fileobj  # type: ignore[assignment]
            pod, greeting = key.data
            if greeting is None and ready.type == socket.SOCK_STREAM:
                _welcome(selector, pod, ready)
            elif greeting is None:
                _, peer = ready.recvfrom(64)
                ready.sendto(f"{pod.name} {peer[0]}\n".encode(), peer)
            elif not _echo(ready, greeting):
                selector.unregister(ready)
                ready.close()


def _welcome(selector: selectors.BaseSelector, pod: Pod, listener: socket.socket) -> None:
    try:
        connection, peer = listener.accept()
    except OSError:  # the client was gone before we looked
        return
    connection.setblocking(False)
    greeting = f"{pod.name} {peer[0]}\n".encode()
    if _send(connection, greeting):
        selector.register(connection, selectors.EVENT_READ, (pod, greeting))
    else:
        connection.close()


def _echo(connection: socket.socket, greeting: bytes) -> bool:
    """Answer what was asked; False when there is nobody any more."""
    try:
        asked = connection.recv(64)
    except OSError:
        return False
    return bool(asked) and _send(connection, greeting)


def _send(connection: socket.socket, line: bytes) -> bool:
    try:
        connection.sendall(line)
    except OSError:
        return False
    return True
