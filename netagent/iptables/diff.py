"""Desired against actual: the chains and jumps that make the kernel's rules ours. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from netagent.iptables import readback, ruleset
from netagent.model import addresses

Same = Callable[[str, str], bool]
"""Whether two texts are the same rule."""


def same_text(one: str, other: str) -> bool:
    """Whether two rules are spelled alike."""
    return one == other


@dataclass(slots=True)
class Changes:
    """What has to be done in one family.

    `written`: chains with all their rules, made if they are not there (`added`). `emptied`: chains that would be
    deleted if others did not refer to them. Jumps are deleted by their text, in `inserted` is the order in which they
    shall stand, those that are `first` in front of everybody's rules.
    """

    family: addresses.Family
    written: dict[ruleset.ChainName, ruleset.Rules] = field(default_factory=dict)
    added: set[ruleset.ChainName] = field(default_factory=set)
    emptied: dict[ruleset.ChainName, ruleset.Rules] = field(default_factory=dict)
    deleted: dict[ruleset.ChainName, ruleset.Rules] = field(default_factory=dict)
    jumps_deleted: tuple[ruleset.Jump, ...] = ()
    jumps_inserted: tuple[ruleset.Jump, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.written or self.emptied or self.deleted or self.jumps_deleted or self.jumps_inserted)

    @property
    def count(self) -> int:
        """Operations: a rule each; a chain that comes or goes is one more."""
        chains = len(self.added) + len(self.deleted)
        rules = sum(map(len, self.written.values())) + sum(not rules for rules in self.written.values())
        rules -= sum(not self.written[name] for name in self.added)
        gone = sum(map(len, self.deleted.values())) + len(self.emptied)
        return chains + rules + gone + len(self.jumps_deleted) + len(self.jumps_inserted)

    @property
    def rules_written(self) -> int:
        """How many rules have to be built."""
        return sum(map(len, self.written.values())) + len(self.jumps_inserted)

    @property
    def rules_by_table(self) -> Counter[str]:
        """The same by table."""
        found = Counter(jump.table for jump in self.jumps_inserted)
        for name, rules in self.written.items():
            found[name.table] += len(rules)
        return found

    @property
    def tables(self) -> list[str]:
        """The tables that change, in the order in which they are committed."""
        changed = {name.table for group in (self.written, self.emptied, self.deleted) for name in group}
        changed.update(jump.table for jump in (*self.jumps_deleted, *self.jumps_inserted))
        return sorted(changed, key=readback.TABLES.index)


def changes(
    desired: ruleset.Ruleset,
    actual: readback.Actual,
    touched: Collection[ruleset.ChainName] | None = None,
    *,
    same: Same = same_text,
) -> Changes:
    """Return what turns `actual` into `desired`. Empty when they are equal.

    With `touched`, these chains alone are compared, and all jumps. A chain that a chain of somebody else leads to is
    emptied instead of deleted.
    """
    result = Changes(desired.family)
    names = desired.chains.keys() | actual.chains.keys() if touched is None else touched
    referred = {
        ruleset.ChainName(name.table, target) for name, targets in actual.references.items() for target in targets
    }
    for name in sorted(names):
        wanted, found = desired.chains.get(name), actual.chains.get(name)
        if wanted is None:
            if found is not None and name in referred:
                if found:
                    result.emptied[name] = found
            elif found is not None:
                result.deleted[name] = found
        elif found is None:
            result.written[name] = wanted
            result.added.add(name)
        elif found != wanted and not _alike(found, wanted, same):
            result.written[name] = wanted
    _compare_jumps(desired, actual, result, same)
    return result


def _alike(found: ruleset.Rules, wanted: ruleset.Rules, same: Same) -> bool:
    return len(found) == len(wanted) and all(
        one == other or same(one, other) for one, other in zip(found, wanted, strict=True)
    )


def _compare_jumps(desired: ruleset.Ruleset, actual: readback.Actual, result: Changes, same: Same) -> None:
    """Compare our rules in each built-in chain as a whole: they are few, and their order among others' counts.

    Those that are not `first` are put behind what is there; what others put behind them later stays there.
    """
    wanted: dict[ruleset.ChainName, list[ruleset.Jump]] = {}
    for jump in desired.jumps:
        wanted.setdefault(ruleset.ChainName(jump.table, jump.chain), []).append(jump)
    found: dict[ruleset.ChainName, list[ruleset.Jump]] = {}
    for jump in actual.jumps():
        found.setdefault(ruleset.ChainName(jump.table, jump.chain), []).append(jump)
    deleted: list[ruleset.Jump] = []
    inserted: list[ruleset.Jump] = []
    for name in sorted(wanted.keys() | found.keys()):
        want = sorted(wanted.get(name, ()), key=lambda jump: not jump.first)
        have = found.get(name, [])
        if len(want) == len(have) and all(
            (one.rule == other.rule or same(one.rule, other.rule)) and (other.first or not one.first)
            for one, other in zip(want, have, strict=True)
        ):
            continue
        deleted += have
        inserted += want
    result.jumps_deleted, result.jumps_inserted = tuple(deleted), tuple(inserted)


def applied(actual: readback.Actual, done: Changes) -> None:
    """Note in `actual` that the kernel has carried out `done`."""
    actual.chains.update(done.written)
    actual.chains.update((name, ()) for name in done.emptied)
    for name in done.deleted:
        actual.chains.pop(name, None)
    for jump in done.jumps_deleted:
        name = ruleset.ChainName(jump.table, jump.chain)
        rules = list(actual.builtin[name])
        rules.remove(jump.rule)
        actual.builtin[name] = tuple(rules)
    for jump in reversed(done.jumps_inserted):
        if jump.first:
            name = ruleset.ChainName(jump.table, jump.chain)
            actual.builtin[name] = (jump.rule, *actual.builtin.get(name, ()))
    for jump in done.jumps_inserted:
        if not jump.first:
            name = ruleset.ChainName(jump.table, jump.chain)
            actual.builtin[name] = (*actual.builtin.get(name, ()), jump.rule)


def removal(actual: readback.Actual) -> Changes:
    """What removes all of ours."""
    return changes(ruleset.Ruleset(actual.family), actual)


def restore_lines(done: Changes) -> Iterator[str]:
    """The changes as input of `iptables-restore --noflush`."""
    for table in done.tables:
        yield f"*{table}"
        written = {name.chain: rules for name, rules in done.written.items() if name.table == table}
        # Declaring a chain of our own makes it, or empties it.
        yield from (f":{chain} - [0:0]" for chain in written)
        for group in (done.emptied, done.deleted):
            yield from (f":{name.chain} - [0:0]" for name in group if name.table == table)
        for chain, rules in written.items():
            head = f"-A {chain} "
            yield from (head + rule for rule in rules)
        yield from (f"-D {jump.chain} {jump.rule}" for jump in done.jumps_deleted if jump.table == table)
        inserted = [jump for jump in done.jumps_inserted if jump.table == table]
        yield from (f"-I {jump.chain} 1 {jump.rule}" for jump in reversed(inserted) if jump.first)
        yield from (f"-A {jump.chain} {jump.rule}" for jump in inserted if not jump.first)
        yield from (f"-X {name.chain}" for name in done.deleted if name.table == table)
        yield "COMMIT"


def lines(done: Changes, actual: readback.Actual | None = None) -> Iterator[str]:
    """The changes in words, for people; of chains that are rewritten, the rules that differ from `actual`."""
    if not done:
        return
    program = "iptables" if done.family is addresses.Family.IPV4 else "ip6tables"
    yield f"{program}: {done.count} operations"
    for table in done.tables:
        for jump in done.jumps_deleted:
            if jump.table == table:
                yield f"  - {table} {jump.chain}: {jump.rule}"
        for jump in done.jumps_inserted:
            if jump.table == table:
                yield f"  + {table} {jump.chain}: {jump.rule}" + (" (first)" if jump.first else "")
        for name, rules in done.written.items():
            if name.table == table:
                before = (actual.chains.get(name) if actual else None) or ()
                yield f"  {'+' if name in done.added else '~'} {table} {name.chain}: {len(rules)} rules"
                yield from (f"      - {rule}" for rule in before if rule not in rules)
                yield from (f"      + {rule}" for rule in rules if rule not in before)
        for name in done.emptied:
            if name.table == table:
                yield f"  ~ {table} {name.chain}: emptied, as somebody else's chain leads to it"
        yield from (f"  - {table} {name.chain}" for name in done.deleted if name.table == table)
