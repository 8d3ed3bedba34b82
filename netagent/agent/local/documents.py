"""What the agent tells about itself over its local socket, as documents. Field names are camelCase in JSON; times are
RFC 3339 in UTC, durations are seconds."""

from __future__ import annotations

import msgspec


class Document(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What all documents have in common: unknown fields are passed over, absent ones have their defaults."""


class Source(Document, frozen=True, kw_only=True, rename="camel"):
    """One source of objects: a kind at the API server, or the manifests.

    `age` is how long ago it was last proven that nothing is missing (None: never); for files, how long ago they were
    last read: what has not changed since is not read again. `error`: what is wrong with it now.
    """

    name: str
    in_sync: bool
    age: float | None = None
    error: str | None = None


class Sync(Document, frozen=True, kw_only=True, rename="camel"):
    """A sync that brought the kernel in line."""

    at: str
    operations: int
    transactions: int
    seconds: float


class Failure(Document, frozen=True, kw_only=True, rename="camel"):
    """The last sync that failed, and how many have since failed in a row (0: it works again)."""

    at: str
    reason: str
    in_a_row: int
    operation: str | None = None


class Syncs(Document, frozen=True, kw_only=True, rename="camel"):
    """Since the start. `last` is the last one, `last_change` the last one that had anything to do."""

    succeeded: int = 0
    failed: int = 0
    last: Sync | None = None
    last_change: Sync | None = None
    last_failure: Failure | None = None


class Drift(Document, frozen=True, kw_only=True, rename="camel"):
    """How often somebody else's changes to our tables were put right, with how many operations, and when last."""

    repairs: int = 0
    operations: int = 0
    last: str | None = None


class TableState(Document, frozen=True, kw_only=True, rename="camel"):
    """A table or ruleset of ours in the kernel. `ownership` says in words whose it is."""

    family: str
    name: str
    present: bool
    ownership: str = ""


class SetAside(Document, frozen=True, kw_only=True, rename="camel"):
    """An object that cannot be used, or a Service that the kernel refused; what it was before holds."""

    kind: str
    namespace: str
    name: str
    field: str = ""
    reason: str = ""


class Contest(Document, frozen=True, kw_only=True, rename="camel"):
    """A frontend that two Services claim: `winner` has it, `loser` does without."""

    frontend: str
    winner: str
    loser: str


class Counts(Document, frozen=True, kw_only=True, rename="camel"):
    """What there is. `endpoints` are the entries of all EndpointSlices."""

    services: int = 0
    frontends: int = 0
    endpoints: int = 0


class Health(Document, frozen=True, kw_only=True, rename="camel"):
    """What /healthz, /readyz and /livez say, each in one word; None where no health server runs (`-f`)."""

    healthy: bool
    ready: bool
    node_eligible: bool
    sound: bool


class Status(Document, frozen=True, kw_only=True, rename="camel"):
    """How the agent is. `troubles` are all reasons why it is not well, a sentence each; empty is well.

    `in_sync`: the kernel holds what the sources said, but for what came within the last second; `since` is when that
    became so, or ceased to be. `pending` is how long the oldest update that is not in the kernel has waited, 0 if there
    is none.
    """

    version: str
    pid: int
    started: str
    mode: str
    node_name: str
    families: tuple[str, ...]
    in_sync: bool
    since: str
    troubles: tuple[str, ...] = ()
    pending: float = 0.0
    revision: int = 0
    tables: tuple[TableState, ...] = ()
    sources: tuple[Source, ...] = ()
    syncs: Syncs = Syncs()
    drift: Drift = Drift()
    quarantine: tuple[SetAside, ...] = ()
    quarantined: int = 0
    conflicts: tuple[Contest, ...] = ()
    conflicting: int = 0
    unexpected_errors: dict[str, int] = {}
    health: Health | None = None
    counts: Counts = Counts()
