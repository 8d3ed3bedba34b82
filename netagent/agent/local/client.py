"""How a command asks the agent of its network namespace."""

from __future__ import annotations

import http.client
import socket
from typing import Final, NamedTuple, TypeVar

import msgspec

from netagent import errors, processes
from netagent.agent.local import peers

# Abstract, so that it belongs to a network namespace, as the rules do, and leaves no file behind.
ADDRESS: Final = "\0netagent"
# An agent that plans a large cluster for the first time shares its processor with the answer.
_SECONDS: Final = 30.0

Document = TypeVar("Document")


class Answer(NamedTuple):
    """What the agent said, and which process that was (0 and "" as far as it cannot be told)."""

    body: bytes
    pid: int
    process: str


def ask(target: str, *, address: str = ADDRESS, seconds: float = _SECONDS) -> Answer:
    """The agent's answer to a GET of this path and query.

    NoAgentError when none runs here; PrivilegeError when it does not answer this user, or when whoever listens there
    cannot be an agent; SourceError when the answer does not come or makes no sense.
    """
    connected = _connected(address, seconds)
    peer: peers.Peer | None = None
    try:
        peer = peers.peer_of(connected)
        if not peers.is_privileged(peer):
            raise errors.PrivilegeError(
                f"process {peer.pid} of user {peer.uid} listens where the agent would, and has no right to change the "
                "ruleset: what it says is not believed"
            )
        connection = http.client.HTTPConnection("localhost", timeout=seconds)
        connection.sock = connected
        connection.request("GET", target, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        who = f"the agent{f' (process {peer.pid})' if peer and peer.pid else ''}"
        raise errors.SourceError(f"{who} does not answer {target}: {error or type(error).__name__}") from error
    finally:
        connected.close()
    match answer.status:
        case 200:
            return Answer(body, peer.pid, processes.name_of(peer.pid) if peer.pid else "")
        case 403:
            raise errors.PrivilegeError(body.decode("utf-8", "replace").strip() or "the agent does not answer you")
        case status:
            raise errors.SourceError(f"the agent answered {target} with status {status}")


def document(target: str, kind: type[Document], *, address: str = ADDRESS) -> Document:
    """The agent's answer as a document of a kind. As `ask`."""
    return read(target, ask(target, address=address), kind)


def read(target: str, answer: Answer, kind: type[Document]) -> Document:
    """What an answer to this question says. SourceError if it makes no sense."""
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.SourceError(
            f"the agent's answer to {target} cannot be read ({error}): is it of another version?"
        ) from error


def _connected(address: str, seconds: float) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.settimeout(seconds)
        made.connect(address)
    except (ConnectionRefusedError, FileNotFoundError) as error:
        made.close()
        raise errors.NoAgentError("no agent runs in this network namespace") from error
    except OSError as error:
        made.close()
        raise errors.SourceError(f"cannot reach the agent: {error.strerror or error}") from error
    return made
