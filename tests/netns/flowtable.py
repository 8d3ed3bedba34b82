"""Conntrack entries of the node under test: planted and listed with the `conntrack` tool."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from . import layout as layouts
from . import universe

LIFETIME_SECONDS = 600


class Tuple(NamedTuple):
    """One direction of an entry."""

    source: str
    source_port: int
    destination: str
    destination_port: int


class Entry(NamedTuple):
    """An entry as far as a case knows it."""

    protocol: str
    original: Tuple
    reply: Tuple


_PAIR = re.compile(r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)")


def entry_of(seed: dict[str, Any]) -> Entry:
    """The entry that a case's `conntrack_seed` describes."""
    directions = [
        Tuple(layouts.canonical(part["src"]), int(part["sport"]), layouts.canonical(part["dst"]), int(part["dport"]))
        for part in (seed["orig"], seed["reply"])
    ]
    return Entry(seed["proto"], directions[0], directions[1])


def plant(node: universe.Namespace, entry: Entry) -> None:
    """Insert an entry that has seen packets both ways. RuntimeError if the kernel refuses."""
    state = ["--state", "ESTABLISHED"] if entry.protocol in ("tcp", "sctp") else []
    if entry.protocol == "sctp":
        state += ["--orig-vtag", "1", "--reply-vtag", "2"]
    original = f"-s {entry.original.source} -d {entry.original.destination}"
    original += f" --sport {entry.original.source_port} --dport {entry.original.destination_port}"
    reply = f"-r {entry.reply.source} -q {entry.reply.destination}"
    reply += f" --reply-port-src {entry.reply.source_port} --reply-port-dst {entry.reply.destination_port}"
    common = f"conntrack -I -p {entry.protocol} -t {LIFETIME_SECONDS} -u SEEN_REPLY,ASSURED"
    node.run([*common.split(), *state, *original.split(), *reply.split()])


def entries(node: universe.Namespace) -> set[Entry]:
    """Return all entries that the node's namespace holds now, both families."""
    found = set()
    for family in ("ipv4", "ipv6"):
        for line in node.run(["conntrack", "-L", "-f", family]).stdout.splitlines():
            directions = [
                Tuple(layouts.canonical(a), int(sport), layouts.canonical(b), int(dport))
                for a, b, sport, dport in _PAIR.findall(line)
            ]
            if len(directions) == 2:
                found.add(Entry(line.split()[0], directions[0], directions[1]))
    return found
