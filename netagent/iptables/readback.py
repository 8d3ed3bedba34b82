"""What the kernel holds, from the text of iptables-save: our chains, and the rules of built-in chains around our jumps.

Both variants print the same form, in both families. Pure.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from netagent import errors, escaping
from netagent.iptables import ruleset
from netagent.model import addresses

# How a fresh process knows that a chain is ours.
PREFIX: Final = "NETAGENT-"
# The tables that we have chains in. All others are not even looked at.
TABLES: Final = ("nat", "filter")
# Options whose value is any text, with or without quotes.
_TEXT_OPTIONS: Final = ("--comment", "--string", "--hex-string", "--name", "--hashlimit-name")
_LEADS = re.compile(r"(?:^|\s)-[jg] (\S+)")


class ReadbackError(errors.NetagentError):
    """The text is not what iptables-save prints: cut off, or something else altogether."""


@dataclass(slots=True)
class SavedTable:
    """A table: its chains with their rules, in order; `policies` has the built-in chains alone."""

    name: str
    chains: dict[str, list[str]] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Actual:
    """What concerns us in one family. Mutable, single-threaded.

    `chains` are ours. `builtin` has all rules of built-in chains, others' included, in order. `references` names the
    chains of others that have rules leading to a chain of ours.
    """

    family: addresses.Family
    chains: dict[ruleset.ChainName, ruleset.Rules] = field(default_factory=dict)
    builtin: dict[ruleset.ChainName, ruleset.Rules] = field(default_factory=dict)
    references: dict[ruleset.ChainName, tuple[str, ...]] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """Whether anything of ours is there."""
        return bool(self.chains) or any(True for _ in self.jumps())

    def jumps(self) -> Iterator[ruleset.Jump]:
        """Our rules in built-in chains. `first` are those that no rule of others precedes."""
        for (table, chain), rules in self.builtin.items():
            first = True
            for rule in rules:
                if is_ours(rule):
                    yield ruleset.Jump(table, chain, rule, first)
                else:
                    first = False

    @property
    def ruleset(self) -> ruleset.Ruleset:
        """What is ours, in the form in which it is desired."""
        return ruleset.Ruleset(self.family, dict(self.chains), tuple(self.jumps()))


def tables(text: str, *, strict: bool = True) -> Iterator[SavedTable]:
    """The tables that a text of iptables-save has. ReadbackError if it is not such a text, or not all of it.

    UnsupportedError if one of our tables cannot be shown, because it has rules of nft's own; if not `strict`, it is
    as if it were not there.
    """
    table: SavedTable | None = None
    chains: dict[str, list[str]] = {}
    for number, line in _lines(text):
        if line.startswith("-A "):
            chain, _, rule = line[3:].partition(" ")
            found = chains.get(chain)
            if found is None:
                raise _garbage(number, line, "a rule of a chain that is not declared")
            found.append(rule.rstrip(" "))
        elif line.startswith(":"):
            name, _, rest = line[1:].partition(" ")
            if table is None or not name or not rest or name in chains:
                raise _garbage(number, line, "a chain out of place")
            chains[name] = []
            policy = rest.split(" ", 1)[0]
            if policy != "-":
                table.policies[name] = policy
        elif not line.strip():
            continue
        elif line.startswith("#"):
            if strict:
                _look_for_incompatibility(line)
        elif line.startswith("*"):
            if table is not None:
                raise _garbage(number, line, "a table within a table")
            table = SavedTable(line[1:].strip())
            chains = table.chains
        elif line.rstrip() == "COMMIT":
            if table is None:
                raise _garbage(number, line, "the end of a table that has not begun")
            yield table
            table, chains = None, {}
        elif line.startswith("[") and "] -A " in line:  # with counters
            chain, _, rule = line.partition("] -A ")[2].partition(" ")
            if chain not in chains:
                raise _garbage(number, line, "a rule of a chain that is not declared")
            chains[chain].append(rule.rstrip(" "))
        else:
            raise _garbage(number, line, "no line of iptables-save")
    if table is not None:
        name = _shown(table.name)
        raise ReadbackError(f"the text of iptables-save ends in the middle of table {name}; reading it again")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines with their numbers. A rule whose comment has line ends in it is one line: iptables-save prints them as
    they are, and whoever writes comments must not be able to write rules."""
    begun: list[str] = []
    first = 0
    for number, piece in enumerate(text.split("\n"), 1):
        if begun:
            begun.append(piece)
            if not _ends_within_quotes(piece, begins_within=True):
                yield first, "\n".join(begun)
                begun = []
        elif '"' in piece and _is_rule(piece) and _ends_within_quotes(piece.partition("-A ")[2].partition(" ")[2]):
            begun, first = [piece], number
        else:
            yield number, piece
    if begun:
        yield first, "\n".join(begun)


def _is_rule(line: str) -> bool:
    return line.startswith("-A ") or (line.startswith("[") and "] -A " in line)


# Quotation marks begin a word, those in it have a backslash. Names of chains have none, whatever is in them.
_WORDS = re.compile(r'(?<![^ ])(?:-[jg] [^ ]+|"[^"\\]*(?:\\.[^"\\]*)*("?))', re.DOTALL)
_REST_OF_QUOTED = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def _ends_within_quotes(words: str, *, begins_within: bool = False) -> bool:
    start = 0
    if begins_within:
        closed = _REST_OF_QUOTED.match(words)
        if closed is None:
            return True
        start = closed.end()
    return any(found[0].startswith('"') and not found[1] for found in _WORDS.finditer(words, start))


def read(text: str, family: addresses.Family) -> Actual:
    """What concerns us in a text of iptables-save. Errors as of `tables`."""
    actual = Actual(family)
    for table in tables(text):
        if table.name not in TABLES:
            continue
        for chain, rules in table.chains.items():
            name = ruleset.ChainName(table.name, chain)
            if chain.startswith(PREFIX):
                actual.chains[name] = tuple(rules)
            elif chain in table.policies:
                actual.builtin[name] = tuple(rules)
            else:
                targets = tuple(leads_to(rule) for rule in rules if is_ours(rule))
                if targets:
                    actual.references[name] = targets
    return actual


def read_chain(text: str, name: str) -> ruleset.Rules:
    """The rules of a chain in a text of `iptables -S`. ReadbackError if it is none of this chain."""
    rules: list[str] = []
    declared = False
    for number, line in _lines(text):
        if line.startswith(f"-A {name} ") or line == f"-A {name}":
            rules.append(line[len(name) + 4 :].rstrip(" "))
        elif line.startswith((f"-P {name} ", f"-N {name}")):
            declared = True
        elif line and not line.startswith("#"):
            raise _garbage(number, line, "not of the chain that was asked for")
    if not declared:
        raise ReadbackError(f"iptables -S says nothing of chain {name}; reading everything")
    return tuple(rules)


def is_ours(rule: str) -> bool:
    """Whether a rule leads to a chain of ours."""
    return PREFIX in rule and leads_to(rule).startswith(PREFIX)


def leads_to(rule: str) -> str:
    """The target of a rule: a chain, or what iptables calls a target; "" if it has none."""
    if "--" not in rule or not any(option in rule for option in _TEXT_OPTIONS):
        found = _LEADS.findall(rule)
        return found[0] if found else ""
    try:
        words = shlex.split(rule)
    except ValueError:  # a quote that is not closed: nothing that iptables-save prints
        return ""
    for index, word in enumerate(words[:-1]):
        if word in ("-j", "-g") and (index == 0 or words[index - 1] not in _TEXT_OPTIONS):
            return words[index + 1]
    return ""


def _look_for_incompatibility(line: str) -> None:
    found = re.match(r"# Table `([\w-]+)' is incompatible", line)
    if found and found[1] in TABLES:
        raise errors.UnsupportedError(
            f"table {found[1]} has rules of nft's own, which iptables cannot show "
            f"(`nft list table ip {found[1]}`, `nft list table ip6 {found[1]}`): move them to another table"
        )


def _garbage(number: int, line: str, what: str) -> ReadbackError:
    return ReadbackError(f"line {number} of iptables-save is {what}: '{_shown(line)}'; reading it again")


def _shown(text: str) -> str:
    """Text that others may have made, fit for a message."""
    return escaping.printable(text if len(text) <= 120 else text[:120] + "...")
