"""How we learn, without reading everything, that others did something to the tables that ours are in.

nf_tables variant: the kernel tells of every commit, who made it, and which chains it touched; and a number says how
many commits there were, so none is missed. Legacy variant: the kernel tells nothing. But whoever writes there opens
the xtables lock, which inotify tells; and the sizes of the tables change with nearly every change. What escapes both
(somebody without the lock who replaces a rule by another of the same size) is found by the audit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from netagent import errors, processes
from netagent.iptables import legacy, lock, readback, ruleset, text, variant
from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import monitor, netlink

# A commit whose notice is not there so long after its generation, in seconds, is one that we missed.
_NOTICE_SECONDS: Final = 1.0
_TABLE, _RULE_CHAIN, _CHAIN_NAME = 1, 2, 3  # NFTA_RULE_TABLE and its like, linux/netfilter/nf_tables.h
_NFPROTOS: Final = {c.NFPROTO_IPV4: addresses.Family.IPV4, c.NFPROTO_IPV6: addresses.Family.IPV6}


# Up to so many chains are read one by one.
_FEW: Final = 32

Chain = tuple[addresses.Family, ruleset.ChainName]


class Notice(Protocol):
    """Notice of what others do."""

    def watch(self) -> int | None:
        """The descriptor that becomes readable when others do something; None if there is no such thing."""

    def begin(self) -> None:
        """What is read from now on is known; what others do from now on is to be noticed."""

    def moved(self) -> bool:
        """Whether others may have touched our chains or our jumps since `begin`. True before it. Costs little."""

    def who(self) -> tuple[processes.Process, ...]:
        """Names and ids of who it was, as far as that is known."""

    def take(self) -> frozenset[Chain] | None:
        """The chains that others touched, which are no news from now on; None: nobody knows which, or too many."""

    def own(self, commits: int) -> contextlib.AbstractContextManager[None]:
        """Inside, so many tables are committed by ourselves. Afterwards that is no news."""

    def forget(self) -> None:
        """Nothing is known any more, until `begin`."""

    def close(self) -> None: ...


class NftNotice:
    """Notice from nf_tables.

    Owns: two netlink sockets, of the network namespace of the thread that made it. Threading: none.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket = netlink.NftablesSocket()
        self._listener: _Listener | None = None
        self._clock = clock
        self._generation: int | None = None
        self._uncertain_since: float | None = None
        self._news = False
        self._chains: set[Chain] | None = set()
        self._who: dict[processes.Process, None] = {}

    def watch(self) -> int | None:
        if self._listener is None:
            try:
                self._listener = _Listener(self._socket.port)
            except OSError:
                return None
            self.forget()
        return self._listener.fileno()

    def begin(self) -> None:
        if self._listener:
            self._listener.take()
        try:
            self._generation = self._socket.generation()
        except OSError:
            self._generation = None  # reading will tell what is wrong
        self._uncertain_since = None
        self._news = False
        self._chains = set()
        self._who.clear()

    def moved(self) -> bool:
        if self._generation is not None and not self._news:
            self._look(self._generation)
        return self._generation is None or self._news

    def _look(self, known: int) -> None:
        """Collect notices, and see whether they are all that there was."""
        try:
            now = self._socket.generation()
            taken = self._listener.take() if self._listener else []
        except OSError:
            taken = None
        if taken is None:
            self._generation = None
            return
        for notice in taken:
            if 0 < (notice.generation - known) & 0xFFFFFFFF < 1 << 31:
                known = known + 1 & 0xFFFFFFFF
                if notice.messages:
                    self._news = True
                    self._who[notice.process] = None
                    for message in notice.messages:
                        self._note(message)
        self._generation = known
        if known == now or (now - known) & 0xFFFFFFFF >= 1 << 31:
            self._uncertain_since = None
        elif self._listener is None:
            self._generation = None
        elif self._uncertain_since is None:
            self._uncertain_since = self._clock()  # the number can be seen a moment before the notice comes
        elif self._clock() > self._uncertain_since + _NOTICE_SECONDS:
            self._generation = None

    def _note(self, message: monitor.Message) -> None:
        table, _, chain = message.body.decode().partition(" ")
        if not chain or (self._chains is not None and len(self._chains) >= _FEW):
            self._chains = None
        elif self._chains is not None:
            self._chains.add((message.family, ruleset.ChainName(table, chain)))

    def who(self) -> tuple[processes.Process, ...]:
        return tuple(self._who)

    def take(self) -> frozenset[Chain] | None:
        if self._generation is None or self._chains is None:
            return None
        taken = frozenset(self._chains)
        self._news = False
        self._chains = set()
        self._who.clear()
        return taken

    @contextlib.contextmanager
    def own(self, commits: int) -> Iterator[None]:
        before = None if self.moved() or self._uncertain_since is not None else self._generation
        if self._listener:
            self._listener.leave()  # it would be told of every rule
        try:
            yield
        finally:
            if self._listener:
                self._listener.join()
                self._listener.take()
            try:
                now = self._socket.generation()
            except OSError:
                before = None
            else:
                if before is not None:
                    before = now if now == (before + commits) & 0xFFFFFFFF else None
            self._generation = before

    def forget(self) -> None:
        self._generation = None

    def close(self) -> None:
        if self._listener:
            self._listener.close()
        self._socket.close()


class _Listener(monitor.Monitor):
    """Notice of commits, with the messages about chains of ours, and about built-in chains that our jumps are in."""

    def _read(self, kind: int, body: bytes) -> monitor.ForeignCommit | None:
        if kind == c.NFT_MSG_NEWGEN:
            return super()._read(kind, body)
        family = _NFPROTOS.get(body[0]) if body else None
        concerned = _concerned(kind, body[4:]) if family is not None else None
        if family is not None and concerned is not None:
            self._unfinished.append(monitor.Message(kind, family, concerned.encode()))
        return None


def _concerned(kind: int, body: bytes) -> str | None:
    """Table and chain that a message is about, or the table alone; None if it is nothing to us."""
    found = dict(netlink.attributes(body))
    table = found.get(_TABLE, b"").rstrip(b"\0").decode(errors="replace")
    if table not in readback.TABLES:
        return None
    if kind in (c.NFT_MSG_NEWRULE, c.NFT_MSG_DELRULE):
        chain = found.get(_RULE_CHAIN, b"")
    elif kind in (c.NFT_MSG_NEWCHAIN, c.NFT_MSG_DELCHAIN):
        chain = found.get(_CHAIN_NAME, b"")
    else:
        return table if kind in (c.NFT_MSG_NEWTABLE, c.NFT_MSG_DELTABLE) else None
    name = chain.rstrip(b"\0").decode(errors="replace")
    return f"{table} {name}" if name.startswith(readback.PREFIX) or name in text.BUILT_IN[table] else None


class LegacyNotice:
    """Notice about legacy tables.

    Owns: a watch of the xtables lock, if there can be one, and the sizes of the tables. Threading: none.
    """

    def __init__(self, families: Iterable[addresses.Family]) -> None:
        self._families = tuple(families)
        self._watch: lock.Watch | None = None
        self._sizes: dict[tuple[addresses.Family, str], legacy.Size | None] | None = None
        self._news = False

    def watch(self) -> int | None:
        if self._watch is None:
            try:
                self._watch = lock.Watch()
            except OSError:
                return None
            self.forget()
        return self._watch.fileno()

    def begin(self) -> None:
        self._take()
        self._news = False
        self._sizes = self._look()

    def moved(self) -> bool:
        if self._take() != 0:
            self._news = True
        return self._news or self._sizes is None or self._look() != self._sizes

    def who(self) -> tuple[processes.Process, ...]:
        return ()

    def take(self) -> frozenset[Chain] | None:
        return None

    @contextlib.contextmanager
    def own(self, commits: int) -> Iterator[None]:
        before = self.moved()
        try:
            yield
        finally:
            closed = self._take()
            # One close for each run of iptables-restore (1.8.9), whatever it commits, and for each `lock.held`.
            if before or (self._watch and closed != 1):
                self._news = True
            self._sizes = self._look()

    def forget(self) -> None:
        self._sizes = None

    def close(self) -> None:
        if self._watch:
            self._watch.close()

    def _take(self) -> int | None:
        """How often the lock was let go since the last call; None if nobody knows."""
        if self._watch is None:
            return 0
        taken = self._watch.take()
        if taken is None:  # the file is another one now
            self._watch.close()
            self._watch = None
            with contextlib.suppress(OSError):
                self._watch = lock.Watch()
        return taken

    def _look(self) -> dict[tuple[addresses.Family, str], legacy.Size | None] | None:
        try:
            return {
                (family, table): legacy.size(family, table) if table in variant.legacy_tables(family) else None
                for family in self._families
                for table in readback.TABLES
            }
        except errors.PrivilegeError:
            return None  # reading will tell
