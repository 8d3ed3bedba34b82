"""How rules are spelled: exactly as both variants of iptables-save 1.8.9 print them, so that read-back text compares
equal; and the scripts that iptables-restore reads. Pure.

Measured on Debian 12: of every rule that we make, `iptables-legacy-save` and `iptables-nft-save` print the same text,
and so do the ip6tables. `canonical` takes care of what other versions print differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from netagent.iptables import ruleset
from netagent.model import addresses

# In the order in which the tables of a script stand.
TABLES = ("nat", "filter")
# The chains that each table comes with, and that a complete script has to name.
BUILT_IN = {
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
COMMENT_BYTES = 255  # XT_MAX_COMMENT_LEN, linux/netfilter/xt_comment.h, less the final zero

_PROTOCOLS = {protocol: protocol.name.lower() for protocol in addresses.Protocol}
_UNCOMMENTABLE = re.compile(r"[^A-Za-z0-9._:/-]")
_COUNTERS = re.compile(r"^\[\d+:\d+\] ")
_OPEN_LOW = re.compile(r"(--[ds]port) :(\d+)")
_OPEN_HIGH = re.compile(r"(--[ds]port) (\d+):(?= |$)")


# Parts of rules ------------------------------------------------------------------------------------------------


def network(prefix: addresses.Prefix) -> str:
    """A network as iptables-save prints it."""
    return str(prefix)


def inside(side: str, prefix: addresses.Prefix) -> str:
    """Match packets with an address (side "-s" or "-d") in a network, and a blank behind it; "" where all are."""
    return f"{side} {network(prefix)} " if prefix.length else ""


def host(address: bytes) -> str:
    """One address as iptables-save prints it in a match."""
    return f"{addresses.format_address(address)}/{len(address) * 8}"


def to_port(protocol: addresses.Protocol, port: int) -> str:
    """Match packets of a protocol to a port."""
    name = _PROTOCOLS[protocol]
    return f"-p {name} -m {name} --dport {port}"


def of_protocol(protocol: addresses.Protocol) -> str:
    """Match packets of a protocol."""
    return f"-p {_PROTOCOLS[protocol]}"


def comment(words: str) -> str:
    """A match that is always true and tells people something. Unusual characters become "_"."""
    plain = _UNCOMMENTABLE.sub("_", words)[:COMMENT_BYTES] or "-"
    # iptables-save leaves the quotes out where it can.
    return f'-m comment --comment "{plain}"' if re.search(r"[^A-Za-z0-9_-]", plain) else f"-m comment --comment {plain}"


def set_mark(bits: int) -> str:
    """The target that sets these bits."""
    return f"-j MARK --set-xmark {bits:#x}/{bits:#x}"


def flip_mark(bits: int) -> str:
    """The target that turns these bits over."""
    return f"-j MARK --set-xmark {bits:#x}/0x0"


def has_mark(bits: int) -> str:
    """Match packets with all of these bits."""
    return f"-m mark --mark {bits:#x}/{bits:#x}"


def dnat(endpoints: Iterable[bytes]) -> list[str]:
    """The targets that send to these endpoint keys. Their rules must match a protocol."""
    # Up to 250,000 endpoints pass here when an agent starts.
    return [
        f"-j DNAT --to-destination {key[0]}.{key[1]}.{key[2]}.{key[3]}:{key[4] << 8 | key[5]}"
        if len(key) == 6
        else f"-j DNAT --to-destination {addresses.format_endpoint(key)}"
        for key in endpoints
    ]


# Whole rules ---------------------------------------------------------------------------------------------------


def canonical(rule: str) -> str:
    """A rule behind "-A CHAIN ", as any iptables-save prints it, in the spelling of ours."""
    rule = _COUNTERS.sub("", rule).strip()
    if "port " in rule:
        rule = _OPEN_LOW.sub(r"\1 0:\2", rule)
        rule = _OPEN_HIGH.sub(r"\1 \2:65535", rule)
    return rule


# Scripts -------------------------------------------------------------------------------------------------------


def script(rulesets: Iterable[ruleset.Ruleset]) -> str:
    """All of some rulesets as one script for `iptables-restore --noflush` and `ip6tables-restore --noflush`.

    Rules of both families stand in one script: each says whose it is, and the other family's tool passes it over.
    """
    made = list(rulesets)
    tools = " and ".join(_TOOLS[one.family] for one in made)
    lines = [f"# for {tools}"]
    for table in TABLES:
        lines.append(f"*{table}")
        chains = sorted({name.chain for one in made for name in one.chains if name.table == table})
        lines += (f":{chain} - [0:0]" for chain in chains)
        for one in made:
            option = _ONLY[one.family] if len(made) > 1 else ""
            lines += (f"-A {jump.chain}{option} {jump.rule}" for jump in one.jumps if jump.table == table)
            for chain in chains:
                rules = one.chains.get(ruleset.ChainName(table, chain), ())
                lines += (f"-A {chain}{option} {rule}" for rule in rules)
        lines.append("COMMIT")
    return "".join(line + "\n" for line in lines)


_TOOLS = {
    addresses.Family.IPV4: "iptables-restore --noflush",
    addresses.Family.IPV6: "ip6tables-restore --noflush",
}
_ONLY = {addresses.Family.IPV4: " -4", addresses.Family.IPV6: " -6"}


def restore_input(changes: Mapping[ruleset.ChainName, ruleset.Rules | None], *, jumps: Iterable[str] = ()) -> str:
    """Some chains as input for `iptables-restore --noflush`, which replaces their rules, and makes them where there are
    none. None: the chain is emptied, and deleted once nothing leads to it any more.

    `jumps` are lines to add as they stand, table by table, such as "-I PREROUTING -j NETAGENT-SERVICES" behind
    "*nat". "" when there is nothing to do.
    """
    lines_of_jumps: dict[str, list[str]] = {}
    table = ""
    for line in jumps:
        if line.startswith("*"):
            table = line[1:]
        else:
            lines_of_jumps.setdefault(table, []).append(line)
    lines: list[str] = []
    for table in sorted({name.table for name in changes} | lines_of_jumps.keys(), key=TABLES.index):
        wanted = {name.chain: changes[name] for name in sorted(changes) if name.table == table}
        lines.append(f"*{table}")
        lines += (f":{chain} - [0:0]" for chain in wanted)
        lines += lines_of_jumps.get(table, ())
        lines += (f"-A {chain} {rule}" for chain, rules in wanted.items() for rule in rules or ())
        lines += (f"-X {chain}" for chain, rules in wanted.items() if rules is None)
        lines.append("COMMIT")
    return "".join(line + "\n" for line in lines)
