"""The iptables backend: Frontends in, kernel state equal. Here are the effects; what they are is decided elsewhere."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from netagent import errors, processes
from netagent.iptables import diff, legacy, loopback, notice, readback, tables, text, tools
from netagent.model import addresses
from netagent.plan import frontends, node

# Reading tens of thousands of rules through iptables-nft-save takes seconds, and nf_tables tells of every commit.
_AUDIT_SECONDS: Final = {tools.Variant.LEGACY: 0.0, tools.Variant.NFT: 600.0}

log = logging.getLogger(__name__)

_SERVED = re.compile(
    r"(?:-d (?P<address>\S+)/(?:32|128) )?-p (?P<protocol>tcp|udp|sctp) -m (?P=protocol) --dport (?P<port>\d+) "
    rf".*-j {readback.PREFIX}(?:SVC|EXT|LOC|SRC)-"
)
_PROTOCOLS: Final = {protocol.name.lower(): protocol for protocol in addresses.Protocol}


class Commit(NamedTuple):
    """What a commit did: number of single operations, of tables committed, and bytes of text for the tools."""

    operations: int
    transactions: int
    bytes: int
    conflicts: int = 0


@dataclass(frozen=True, slots=True)
class Pending:
    """What has to be done, in each family that differs."""

    changes: tuple[diff.Changes, ...] = ()

    @property
    def count(self) -> int:
        """Number of single operations: rules and chains."""
        return sum(done.count for done in self.changes)

    def __bool__(self) -> bool:
        return bool(self.changes)


class Backend:
    """Our chains in the tables of one variant, in this network namespace, desired and actual.

    Owns: what the kernel holds of ours (`actual`), what it should hold (`tables`), and notice of what others do.
    Use: `read` once, or `watch` and then `follow`; `set_rules` and `update` as often as the plan changes, `pending` to
    see what differs and `commit` to make it so. `follow` whenever `moved` says that others did something.
    Goals: a table changes as a whole or not at all; nothing that was refused is forgotten, and after a refusal
    everything is read again; a family that is not served has nothing of ours; no chain of others is touched.
    Threading: none, but that `audit` reads in a thread of its own.
    """

    def __init__(
        self,
        variant: tools.Variant,
        families: Iterable[addresses.Family] = tuple(addresses.Family),
        *,
        lock_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`families` are those that this host has; what is to be served comes by `set_rules`."""
        self.variant = variant
        self.families = tuple(families)
        self.tables = tables.Tables()
        self._lock_seconds = lock_seconds
        self._actual: dict[addresses.Family, readback.Actual] = {}
        self._legacy = notice.LegacyNotice(self.families) if variant is tools.Variant.LEGACY else None
        self._notice: notice.Notice = self._legacy or notice.NftNotice()
        self._known = False
        self._needs_loopback = False
        self._in_process = self._legacy is not None
        self._commits = 0
        self._written: Counter[tuple[addresses.Family, str]] = Counter()  # rules, by the last commit
        self._clock = clock
        self._next_audit = 0.0
        self._auditing: threading.Thread | None = None
        self._audit_found = False

    def close(self) -> None:
        self._notice.close()

    # What the kernel holds

    def read(self) -> None:
        """Read what is ours from the kernel. PrivilegeError without CAP_NET_ADMIN, UnsupportedError without tools."""
        self._known = False
        self._audit_found = False
        self._notice.begin()
        self._actual = {family: _read(self.variant, family) for family in self.families}
        self._known = True
        self.tables.unsettled()

    def watch(self) -> int | None:
        """Be told of what others do. The descriptor that becomes readable then; None if there is no such thing."""
        if self._legacy:  # whoever stays wants small commits soon, and python-iptables takes its time to load
            threading.Thread(target=legacy.unavailable, name="python-iptables", daemon=True).start()
        return self._notice.watch()

    def moved(self) -> bool:
        """Whether others may have done something to what is ours. Costs little: see `notice`."""
        return not self._known or self._audit_found or self._notice.moved()

    def follow(self) -> tuple[processes.Process, ...] | None:
        """Take over what others did; who it was, as far as that is known. None if they did nothing to what is ours."""
        if not self.moved():
            return None
        who = self._notice.who()
        before = self._actual if self._known else None
        read = self._read_few() if before is not None and not self._audit_found else None
        if read is None:
            settled = {family: lowered.touched for family, lowered in self.tables.lowered.items()}
            self.read()
        if before is None or any(_differ(before[family], self._actual[family]) for family in self.families):
            return who
        if read is None:  # what was settled before, is still
            for family, touched in settled.items():
                if touched is not None:
                    lowered = self.tables.lowered[family]
                    lowered.settled()
                    for name in touched:
                        lowered.touch(name)
        return None

    def _read_few(self) -> frozenset[notice.Chain] | None:
        """Read the chains that others touched, if they are few and known; None if everything has to be read."""
        chains = self._notice.take()
        if chains is None:
            return None
        fresh = {
            family: readback.Actual(family, dict(actual.chains), dict(actual.builtin), actual.references)
            for family, actual in self._actual.items()
        }
        try:
            for family, name in chains:
                if family in fresh:
                    said = tools.chain(self.variant, family, *name)
                    ours = name.chain.startswith(readback.PREFIX)
                    held = fresh[family].chains if ours else fresh[family].builtin
                    held[name] = readback.read_chain(said, name.chain)
        except errors.NetagentError:
            return None  # a chain that is gone, say
        self._actual = fresh
        for family, name in chains:
            if family in self.tables.lowered:
                self.tables.lowered[family].touch(name)
        return chains

    def audit(self, done: Callable[[], None]) -> None:
        """Compare what is remembered with the kernel without keeping anybody waiting. `done` is called at the end, by
        a thread; then `moved` tells if something differs. What was audited lately is taken for right."""
        now = self._clock()
        if not self._known or now < self._next_audit or (self._auditing and self._auditing.is_alive()):
            return
        self._next_audit = now + _AUDIT_SECONDS[self.variant]
        remembered = {
            family: readback.Actual(family, dict(actual.chains), dict(actual.builtin))
            for family, actual in self._actual.items()
        }
        self._auditing = threading.Thread(
            target=self._audit, args=(remembered, self._commits, done), name="audit", daemon=True
        )
        self._auditing.start()

    def _audit(
        self, remembered: dict[addresses.Family, readback.Actual], commits: int, done: Callable[[], None]
    ) -> None:
        try:
            found = {family: _read(self.variant, family) for family in remembered}
            differs = any(_differ(remembered[family], found[family]) for family in remembered)
        except errors.NetagentError:
            differs = True  # the next reading tells what is wrong
        if differs and commits == self._commits:  # else it may be we who made the difference
            self._audit_found = True
        done()

    def served(self) -> Iterator[frontends.FrontendKey]:
        """The keys that the kernel's rules lead to endpoints, whoever wrote them."""
        for family, actual in self._actual.items():
            for name, rules in actual.chains.items():
                if name.table == "nat":
                    yield from (key for rule in rules if (key := _served_by(rule, family)))

    def actual(self, family: addresses.Family) -> readback.Actual:
        """What the kernel holds of ours, as far as we know."""
        return self._actual[family]

    def rule_counts(self) -> Iterator[tuple[addresses.Family, str, int, int]]:
        """For each table of each family: rules of ours in it, and how many of them the last commit wrote."""
        for family, actual in self._actual.items():
            held = Counter(dict.fromkeys(readback.TABLES, 0))
            for name, rules in actual.chains.items():
                held[name.table] += len(rules)
            held.update(jump.table for jump in actual.jumps())
            for table in readback.TABLES:
                yield family, table, held[table], self._written[family, table]

    # What it should hold

    def begin_anew(self) -> None:
        """Forget what should be, and read what is."""
        self.tables = tables.Tables()
        self.read()

    def set_rules(self, rules: Iterable[node.NodeRules]) -> None:
        """Serve these families by these rules of the node, and no other family."""
        wanted = [one for one in rules if one.family in self.families]
        found = {family: actual.chains for family, actual in self._actual.items()} if self._known else None
        self.tables.set_rules(wanted, found)
        self._needs_loopback = any(one.node_ports_on_loopback for one in wanted)

    def update(
        self, keys: Iterable[frontends.FrontendKey], current: Mapping[frontends.FrontendKey, frontends.Frontend]
    ) -> None:
        """Follow the plan at these keys: `current` has the Frontend of a key, or none."""
        self.tables.update(keys, current)

    # From one to the other

    def pending(self) -> Pending:
        """What would make the kernel's rules the desired ones. What is not read yet counts as empty."""
        found: list[diff.Changes] = []
        for family in self.families:
            actual = self._actual.get(family) or readback.Actual(family)
            lowered = self.tables.lowered.get(family)
            if lowered:
                found.append(diff.changes(lowered.ruleset, actual, lowered.touched, same=_same))
            else:
                found.append(diff.removal(actual))
        return Pending(tuple(filter(None, found)))

    def describe(self, pending: Pending | None = None) -> Iterator[str]:
        """What a commit would do, line by line, for people."""
        for done in (pending or self.pending()).changes:
            yield from diff.lines(done, self._actual.get(done.family))

    def commands(self) -> Iterator[str]:
        """What a commit would do, as input for iptables-restore --noflush; a comment names the program."""
        for done in self.pending().changes:
            yield f"# {tools.program(done.family, self.variant, 'restore')} --noflush"
            yield from diff.restore_lines(done)

    def commit(self) -> Commit:
        """Commit what is pending; nothing if there is nothing.

        CommitRejectedError (LockHeldError is one) if that is refused: then the kernel holds some of the tables as they
        should be and the others as they were, and the next commit reads everything again first.
        """
        if not self._known:
            self.read()
        if self._needs_loopback:
            loopback.route()
            self._needs_loopback = False  # what could not be set was said; it is not tried at every change
        pending = self.pending()
        report = self._commit(pending)
        self.tables.settled()
        return report

    def at_fault(self) -> frozenset[frontends.FrontendKey]:
        return frozenset()  # the tools name a line, and refuse what is wrong with all of a table

    @property
    def owner_port(self) -> None:
        return None  # chains of xtables have no owners

    def cleanup(self) -> bool:
        """Remove all that is ours in the tables of this variant, whatever it is; True if there was anything."""
        if not self._known:
            self.read()
        pending = Pending(tuple(filter(None, map(diff.removal, self._actual.values()))))
        self._commit(pending)
        self.tables.unsettled()
        return bool(pending)

    def _commit(self, pending: Pending) -> Commit:
        transactions = sent = 0
        self._commits += 1
        self._written.clear()
        try:
            for done in pending.changes:
                transactions += len(done.tables)
                sent += self._carry_out(done)
                diff.applied(self._actual[done.family], done)
                self._written.update({(done.family, table): count for table, count in done.rules_by_table.items()})
        except BaseException:
            # What is remembered may be wrong: that can be the very reason. Read before anything is compared again.
            self._known = False
            self._notice.forget()
            self.tables.unsettled()
            raise
        return Commit(pending.count, transactions, sent)

    def _carry_out(self, done: diff.Changes) -> int:
        """Carry out the changes of one family in the way that costs least; return the bytes of text that it took."""
        if self._legacy and self._in_process and legacy.worth_it(done):
            built = self._built(done)
            if built:
                with self._notice.own(1):
                    legacy.commit(built, lock_seconds=self._lock_seconds)
                return 0
        script = "".join(f"{line}\n" for line in diff.restore_lines(done))
        with self._notice.own(len(done.tables)):
            tools.restore(self.variant, done.family, script, lock_seconds=self._lock_seconds)
        return len(script)

    def _built(self, done: diff.Changes) -> legacy.Built | None:
        try:
            return legacy.build(done)
        except legacy.UnbuildableError as error:
            log.debug("not committed in process", extra={"reason": str(error)})
        except errors.UnsupportedError as error:
            log.info("small changes go through iptables-restore", extra={"reason": str(error)})
            self._in_process = False
        return None


def _read(variant: tools.Variant, family: addresses.Family) -> readback.Actual:
    return readback.read(tools.save(variant, family), family)


def _same(one: str, other: str) -> bool:
    return text.canonical(one) == text.canonical(other)


def _differ(one: readback.Actual, other: readback.Actual) -> bool:
    """Whether what is ours differs; where others' rules stand behind our jumps is nothing to us."""
    return bool(diff.changes(one.ruleset, other, same=_same))


def _served_by(rule: str, family: addresses.Family) -> frontends.FrontendKey | None:
    found = _SERVED.match(rule)
    if not found:
        return None
    address = addresses.parse_address(found["address"]) if found["address"] else b""
    return frontends.FrontendKey(family, address, _PROTOCOLS[found["protocol"]], int(found["port"]))
