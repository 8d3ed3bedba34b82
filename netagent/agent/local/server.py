"""The agent's local socket: it tells root, the agent's own user and one group how the agent is, and takes no orders."""

from __future__ import annotations

import logging
import socket
from typing import Final

from netagent.agent.health import messages, server
from netagent.agent.local import answers, peers

log = logging.getLogger(__name__)

# Answers may be tens of megabytes, so few are under way at once.
_LIMITS: Final = server.Limits(connections=16, connections_a_listener=16, request_seconds=5.0, response_seconds=30.0)


class LocalServer:
    """Answers on a UNIX socket that listens already.

    Owns: a Server with its thread, and a descriptor of the socket: whoever made the socket keeps it, and whatever its
    address stands for. Use: `close`, or as a context manager.
    Goals: whoever may not ask learns that, and nothing else; an abstract socket has no permissions, so the kernel says
    who it is.
    Threading: answers come from a thread of its own.
    """

    def __init__(self, listening: socket.socket, *, answering: answers.Answers, group: str = "") -> None:
        """`group` may ask, too: its name or number, "" for none. ConfigError if there is no such group."""
        self._group = peers.group_of(group)
        self._server = server.Server("local", limits=_LIMITS)
        self._listener = self._server.adopt(listening.dup(), answering.answer, admit=self._admit)

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Answer no more."""
        self._server.stop()

    def _admit(self, client: socket.socket) -> messages.Response | None:
        try:
            peer = peers.peer_of(client)
        except OSError as error:
            log.warning("the kernel does not tell who asks", extra={"reason": str(error)})
            return messages.Response(403, b"nobody knows who you are\n")
        if peers.may_ask(peer, group=self._group):
            return None
        log.info("a question was refused", extra={"pid": peer.pid, "uid": peer.uid})
        text = (
            f"user {peer.uid} may not ask the agent: root may, and the members of the group that "
            "netagent.socketGroup names\n"
        )
        return messages.Response(403, text.encode())
