"""What the kernel holds of our tables, as far as we know, and how we learn what others do to them.

After `watch`, the kernel tells of every commit: one that touches no table of ours costs nothing, one that edits
elements of ours is taken over element by element. Without (one-shot commands, or where we may not listen), any commit
of anybody means to read everything anew.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from netagent import errors, processes
from netagent.model import addresses
from netagent.nftables import audit, diff, layout, monitor, netlink, readback, transaction
from netagent.nftables import constants as c

# A commit whose notice is not there so long after its generation, in seconds, is one that we missed.
_NOTICE_SECONDS = 1.0
# A commit of ours with more operations than this is one that the kernel need not tell us of.
_LARGE = 2000
# So many single elements are asked for at once, some 20 microseconds each.
_SUSPECTS = 500
_ELEMENTS = (c.NFT_MSG_NEWSETELEM, c.NFT_MSG_DELSETELEM)
_CHAINS = (c.NFT_MSG_NEWCHAIN, c.NFT_MSG_DELCHAIN, c.NFT_MSG_NEWRULE, c.NFT_MSG_DELRULE)


class Edits(NamedTuple):
    """What others changed. `families`: those whose tables were read anew. `chains`: those whose chains were. `keys`: of
    elements elsewhere, by set.

    `by`: who it was, where the kernel told.
    """

    families: frozenset[addresses.Family] = frozenset()
    chains: frozenset[addresses.Family] = frozenset()
    keys: tuple[tuple[addresses.Family, str, bytes], ...] = ()
    by: tuple[processes.Process, ...] = ()


class Mirror:
    """Our tables as the kernel has them.

    Owns: an ActualTable of each family, the generation that they are of, and, after `watch`, the notice of what others
    commit. Use: `read` once; `applied` after each commit of our own; `behind` to see whether others did something to
    our tables, and `follow` to take it over.
    Goals: whatever is not certain is read anew; what others do to their own tables costs us nothing.
    Threading: none.
    """

    def __init__(
        self, socket: netlink.NftablesSocket, *, affinity_clients: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._socket = socket
        self._specs = layout.sets(affinity_clients=affinity_clients)
        self._clock = clock
        self._tables: dict[addresses.Family, readback.ActualTable] = {}
        self._monitor: monitor.Monitor | None = None
        self._generation: int | None = None  # None: all has to be read
        self._counted = 0  # commits since then that we know of
        self._ours = 0  # of these, our own
        self._listening = False
        self._uncertain_since: float | None = None
        self._notices: list[monitor.ForeignCommit] = []
        self._fresh = False  # all of this was read, and no commit of ours has proved it since
        self._audit: audit.Audit | None = None
        self._touched: set[tuple[addresses.Family, str, bytes]] = set()  # by us, since the audit began
        self._suspects: list[tuple[addresses.Family, str, bytes]] = []

    def close(self) -> None:
        if self._audit:
            self._audit.stop()
        if self._monitor:
            self._monitor.close()

    def watch(self) -> int | None:
        """Be told of what others commit from now on. The descriptor that becomes readable then; None if we may not."""
        if self._monitor is None:
            try:
                self._monitor = monitor.Monitor(self._socket.port)
            except OSError:
                return None
            self._listening = True
            self._generation = None  # who knows what came before we listened
        return self._monitor.fileno()

    def table(self, family: addresses.Family) -> readback.ActualTable:
        """Our table of a family."""
        return self._tables[family]

    @property
    def known(self) -> bool:
        """Whether there is anything to compare with; else `read`."""
        return self._generation is not None

    @property
    def fresh(self) -> bool:
        """Whether what is known was read, and no commit of ours has proved it since."""
        return self._fresh

    @property
    def guard(self) -> int | None:
        """The generation that the next commit has to find, as it depends on what was read at that generation; None if
        it depends on nothing but our own commits, which others' commits elsewhere do not concern."""
        if not self._fresh or self._generation is None:
            return None
        return (self._generation + self._counted) & 0xFFFFFFFF

    def forget(self) -> None:
        """Nothing of this may be right: read it before it is used again."""
        self._generation = None
        self._listen()

    def read(self) -> None:
        """Read everything from the kernel. PrivilegeError without CAP_NET_ADMIN."""
        try:
            if self._monitor:
                self._monitor.take()
            self._at(self._socket.generation())
            for family in addresses.Family:
                self._tables[family] = readback.read_table(self._socket, family, self._specs)
            self._fresh = True
        except OSError as error:
            self._generation = None
            raise read_error(error) from error

    # What others do

    def behind(self) -> bool:
        """Whether others have done anything to our tables that we have not taken over. Costs little."""
        self._look()
        self._end_audit()
        return self._generation is None or bool(self._notices or self._suspects)

    def follow(self) -> Edits | None:
        """Take over what others did to our tables; None if they did nothing."""
        if not self.behind():
            return None
        by = tuple(dict.fromkeys(notice.process for notice in self._notices))
        if self._generation is None:
            self.read()
            return Edits(frozenset(addresses.Family), by=by)
        notices, self._notices = self._notices, []
        suspects, self._suspects = self._suspects[:_SUSPECTS], self._suspects[_SUSPECTS:]
        try:
            edits = self._take_over(notices)
            keys = edits.keys + tuple(suspect for suspect in suspects if self._is_guilty(*suspect))
            return edits._replace(keys=keys, by=by)
        except OSError as error:
            self._generation = None
            raise read_error(error) from error

    def _look(self) -> None:
        """Collect notices, and see whether they are all that there was."""
        try:
            now = self._socket.generation()
            taken = self._monitor.take() if self._monitor else []
        except OSError:
            taken = None
        if taken is None:
            self._generation = None  # lost, or nobody knows; reading will tell what is wrong
            return
        if self._generation is None:
            return
        for notice in taken:
            if _later(notice.generation, self._generation):
                self._counted += 1
                if notice.messages:
                    self._notices.append(notice)
        if self._ours and self._notices:
            self._generation = None  # nobody knows which came first
            return
        known = (self._generation + self._counted) & 0xFFFFFFFF
        if known == now:
            self._generation, self._counted, self._ours, self._uncertain_since = now, 0, 0, None
        elif self._monitor is None:
            self._generation = None
        elif _later(now, known):
            # The new number can be seen a moment before the notice comes.
            if self._uncertain_since is None:
                self._uncertain_since = self._clock()
            elif self._clock() > self._uncertain_since + _NOTICE_SECONDS:
                self._generation = None

    def _take_over(self, notices: list[monitor.ForeignCommit]) -> Edits:
        whole: set[addresses.Family] = set()
        chains: set[addresses.Family] = set()
        keys: list[tuple[addresses.Family, str, bytes]] = []
        for message in (message for notice in notices for message in notice.messages):
            if message.kind in _ELEMENTS:
                found = self._edit_elements(message)
                if found is None:
                    whole.add(message.family)
                else:
                    keys += found
            elif message.kind in _CHAINS:
                chains.add(message.family)
            else:
                whole.add(message.family)
        for family in whole:
            self._tables[family] = readback.read_table(self._socket, family, self._specs)
        for family in chains - whole:
            self._tables[family].chains = readback.read_chains(self._socket, family)
        return Edits(frozenset(whole), frozenset(chains), tuple(keys))

    def _edit_elements(self, message: monitor.Message) -> list[tuple[addresses.Family, str, bytes]] | None:
        """Carry out what a message says; the keys, or None if it does not fit to what we know."""
        table = self._tables[message.family]
        name = readback.set_of(message.body)
        spec = self._specs.get(name)
        if spec and spec.dynamic:
            return []
        if spec is None or name not in table.elements:
            # Of a set that is not ours, nothing is remembered.
            return [] if name in table.sets and spec is None else None
        elements = readback.decode_elements([message.body], spec, message.family)
        held = table.elements[name]
        if message.kind == c.NFT_MSG_NEWSETELEM:
            held.update(elements)
        else:
            for key in elements:
                held.pop(key, None)
        return [(message.family, name, key) for key in elements]

    # What nobody told us of

    def audit(self, done: Callable[[], None]) -> None:
        """Compare all of this with the kernel, in another thread; `behind` tells if something is found.

        `done` is called when it is through, in that thread. Nothing happens while an audit is going on.
        """
        if self._audit is None and self._generation is not None:
            self._touched = set()
            self._audit = audit.Audit(self._tables, self._specs, done)
            self._audit.start()

    def _end_audit(self) -> None:
        if self._audit is None or not self._audit.ended:
            return
        found, self._audit = self._audit.suspects, None
        if found is None or self._generation is None:
            return
        self._suspects += (suspect for suspect in found.keys if suspect not in self._touched)
        self._touched = set()
        for family in found.families:
            self._check_structure(family)

    def _check_structure(self, family: addresses.Family) -> None:
        """Look at sets and chains here and now; if they are not what we remember, everything has to be read."""
        try:
            actual = readback.read_table(self._socket, family, {})
        except OSError:
            self._generation = None
            return
        if actual.structure != self._tables[family].structure:
            self._generation = None

    def _is_guilty(self, family: addresses.Family, name: str, key: bytes) -> bool:
        """Ask the kernel for an element; remember its answer if that is news."""
        held = self._tables[family].elements.get(name)
        if held is None:
            return False
        value = audit.read_element(self._socket, self._specs[name], family, key)
        if value == held.get(key):
            return False
        if value is None:
            del held[key]
        else:
            held[key] = value
        return True

    # What we do

    def expect(self, operations: int) -> None:
        """We are about to commit so many operations."""
        if self._monitor and operations > _LARGE:
            self._monitor.leave()
            self._listening = False

    def _listen(self) -> None:
        if self._monitor and not self._listening:
            self._monitor.join()
            self._listening = True

    def applied(self, done: transaction.Transaction, *, commits: int) -> None:
        """Note that the kernel has carried out a transaction of ours, in so many commits."""
        self._fresh = False
        for operation in done.operations:
            diff.applied(self._tables[operation.family], operation)
            if isinstance(operation, transaction.AddTable) and operation.owned:
                self._tables[operation.family].owner = self._socket.port
            if self._audit and isinstance(operation, transaction.ElementOperation):
                family, name = operation.family, operation.spec.name
                self._touched.update((family, name, key) for key in operation.elements)
        self._counted += commits
        self._ours += commits
        was_listening = self._listening
        self._listen()
        self._look()
        if self._counted and not was_listening:
            self._generation = None  # somebody committed while we were not listening

    def _at(self, generation: int) -> None:
        self._generation, self._counted, self._ours, self._uncertain_since = generation, 0, 0, None
        self._notices, self._suspects = [], []


def _later(one: int, other: int) -> bool:
    """Whether a generation comes after another; they are 32-bit numbers that begin anew."""
    return 0 < (one - other) & 0xFFFFFFFF < 1 << 31


def privilege_error() -> errors.PrivilegeError:
    """What to say when the kernel refuses us everything."""
    return errors.PrivilegeError(
        f"user {os.geteuid()} may not talk to nf_tables: CAP_NET_ADMIN is needed in this network namespace "
        "(run as root, or give the capability; `netagent dump` needs neither)"
    )


def read_error(error: OSError) -> errors.NetagentError:
    """What to say when the kernel does not tell us what it has."""
    if error.errno == errno.EPERM:
        return privilege_error()
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
        return errors.UnsupportedError(
            f"the kernel has no nf_tables ({os.strerror(error.errno or 0)}): it needs CONFIG_NF_TABLES"
        )
    return errors.NetagentError(f"cannot read the ruleset: {error.strerror}")
