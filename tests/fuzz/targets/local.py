"""Answers on the local socket, as a command reads them: of an agent of another version, say.

The first byte says as what the others are read.
"""

from __future__ import annotations

from netagent import errors
from netagent.agent.local import client, documents, snapshot
from tests.fuzz.targets import _checks

WORDS = (
    *(b'"settings":{', b'"services":[', b'"slices":[', b'"node":{', b'"version":"', b'"syncs":{', b'"tables":[{'),
    *(b'"families":["IPv4"]', b'"cluster_cidrs":["10.0.0.0/8"]', b'"bind_address":"::"', b'"mode":"nftables"', b"null"),
    *(b"1e400", b"9" * 60, b"[[[[", b"\\ud800", b'"cgrwAQ=="', b"-1", b"\xff", b"{", b"}", b'""', b"true"),
)


def run(data: bytes) -> None:
    """Read bytes as an answer."""
    if not data:
        return
    try:
        if data[0] & 1:
            taken = snapshot.read(data[1:])
            _checks.require(snapshot.read(snapshot.encoded(taken)) == taken, "read back, and not the same")
        else:
            client.read("/status", client.Answer(data[1:], 1, "netagent"), documents.Status)
    except errors.SourceError as error:
        _checks.fit_to_be_shown(str(error))
