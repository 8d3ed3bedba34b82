"""From Frontends to chains: what a Service port has, and what leads there.

    dispatch    one rule in the tree FRONTENDS or NODE-PORTS: "-d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j ..."
    SRC-...     of a frontend with source ranges: whoever is in one goes on, the others stay untranslated
    SVC-...     as for cluster IPs: mark who is to be masqueraded, then choose from a list
    EXT-...     for everybody from outside: mark, then choose
    LOC-...     external policy Local: pods and host choose from the whole list, others from that of local endpoints
    SEL-...     the choice alone, for LOC-...
    ...-xx      a block of a list's endpoints (see `selection`), shared by all of the above

The names come from the Service port and the list, so they are the same in every process.

Session affinity: every endpoint of a list has a `recent` list of the clients that it met, shared by all frontends of
the Service port. A chain first asks them all in turn (`--update` restarts the client's timeout), then chooses by chance
and records (`--set`). The kernel keeps a list as long as a rule names it: so the records of an endpoint end with its
rules, and survive everything else. xt_recent remembers so many clients of an endpoint as its module parameter
`ip_list_tot` says (100 as it comes).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from netagent.iptables import dispatch, layout, names, ruleset, selection, text
from netagent.iptables.ruleset import ChainName, Rules
from netagent.model import addresses
from netagent.nftables import slots
from netagent.plan import frontends, node

_NAT, _FILTER = "nat", "filter"
_IFNAMSIZ = 16  # linux/if.h
_MASK = {addresses.Family.IPV4: "255.255.255.255", addresses.Family.IPV6: ":".join(["ffff"] * 8)}
_WHOLE = "SEL"
_TAGS = {
    frontends.Masquerade.CLUSTER_IP: "SVC",
    frontends.Masquerade.ALWAYS: "EXT",
    frontends.Masquerade.NEVER_LOCAL: "LOC",
}


class _ListKey(NamedTuple):
    """A list of endpoints: all frontends of a Service port that serve from it serve the same."""

    owner: frontends.ServicePortName
    local: bool


@dataclass(slots=True, eq=False)
class _List:
    """A list of endpoints, and the chains of its blocks."""

    key: _ListKey
    hash: str
    endpoints: tuple[bytes, ...] = ()
    places: Sequence[bytes] = ()  # the same in the order of their rules
    affinity_seconds: int | None = None
    entries: set[str] = field(default_factory=set)  # names of the entries that choose from it
    choice: Rules = ()  # the rules that choose, wherever they stand
    blocks: tuple[ChainName, ...] = ()


@dataclass(slots=True, eq=False)
class _Entry:
    """The chain that frontends of a Service port lead to. `local` is None without external policy Local."""

    name: ChainName
    masquerade: frontends.Masquerade
    everywhere: _List
    local: _List | None = None
    users: set[frontends.FrontendKey] = field(default_factory=set)

    @property
    def lists(self) -> tuple[_List, ...]:
        return (self.everywhere, self.local) if self.local else (self.everywhere,)


class Lowering:
    """The desired ruleset of one family, kept up to date frontend by frontend.

    Owns: `ruleset`, and what each frontend has in it. Use: `update` with every changed frontend; compare the ruleset
    with what the kernel holds, at the chains in `touched` (None: everywhere); `settled` when the kernel has it all,
    `unsettled` when nobody knows what it has.
    Goals: an update costs what the frontend has, and what the chains on the way to it need; the same frontends make
    the same ruleset, in whatever order they came. Only in lists of many endpoints they keep their places as far as
    possible, so that one of them coming or going changes few chains; across a restart thanks to `found`, the chains
    that the kernel held at first.
    Threading: none.
    """

    def __init__(self, rules: node.NodeRules, *, found: Mapping[ChainName, Rules] | None = None) -> None:
        self.rules = rules
        self._found = found
        self._found_places: dict[str, dict[int, bytes]] | None = None
        self._ruleset = ruleset.Ruleset(rules.family, jumps=layout.JUMPS)
        self._touched: set[ChainName] | None = None
        self._trees = layout.trees(rules.family)
        self._placed: dict[frontends.FrontendKey, tuple[frontends.Frontend, _Entry | None]] = {}
        self._lists: dict[_ListKey, _List] = {}
        self._entries: dict[str, _Entry] = {}
        # Brought up to date by the next look at the ruleset.
        self._stale_lists: dict[_ListKey, None] = {}
        self._stale_entries: dict[str, None] = {}
        self._cluster_ips: Counter[bytes] = Counter()
        self._hairpin: Counter[bytes] = Counter()
        self._write_fixed()

    @property
    def ruleset(self) -> ruleset.Ruleset:
        """The chains and jumps as they should be. Do not change it; the next update does."""
        self._write()
        return self._ruleset

    @property
    def touched(self) -> set[ChainName] | None:
        """The chains to compare: those that changed, came or went since all was settled. None: all."""
        self._write()
        return self._touched

    def set_rules(self, rules: node.NodeRules) -> None:
        """Follow the node's rules: who is masqueraded, what accepts node ports. Everything is to be compared."""
        if rules.drop_invalid != self.rules.drop_invalid:
            for address in self._hairpin:
                rule = layout.invalid_rule(address) if rules.drop_invalid else None
                self._trees[layout.INVALID].put(dispatch.address_key(address), rule)
        self.rules = rules
        self._write_fixed()
        self._stale_entries.update(dict.fromkeys(self._entries))
        self._touched = None

    def settled(self) -> None:
        """The kernel holds the desired ruleset: from now on, note what is touched."""
        self._write()
        self._touched = set()
        self._found = self._found_places = None

    def unsettled(self) -> None:
        """Nobody knows what the kernel holds: compare everything."""
        self._touched = None

    def touch(self, name: ChainName) -> None:
        """Compare a chain at the next occasion."""
        if self._touched is not None:
            self._touched.add(name)

    def update(self, key: frontends.FrontendKey, frontend: frontends.Frontend | None) -> None:
        """Make the ruleset what it has to be with this frontend (None: with nothing at this key)."""
        previous, entry_before = self._placed.pop(key, (None, None))
        entry = self._entry(frontend) if frontend and _serves_somebody(frontend) else None
        if entry_before and entry_before is not entry:
            entry_before.users.discard(key)
            self._stale_entries[entry_before.name.chain] = None
        if entry:
            entry.users.add(key)
        if frontend:
            self._placed[key] = frontend, entry
        self._move_shared(previous, frontend)
        self._lead(key, previous, frontend, entry)

    # What leads to a Service port

    def _lead(
        self,
        key: frontends.FrontendKey,
        previous: frontends.Frontend | None,
        frontend: frontends.Frontend | None,
        entry: _Entry | None,
    ) -> None:
        """Write the frontend's rules in the trees, and its chains of source ranges."""
        place = dispatch.port_key(key.address, key.protocol, key.port)
        dispatching = self._trees[layout.FRONTENDS if key.address else layout.NODE_PORTS]
        judging = self._trees[layout.VERDICTS if key.address else layout.REFUSED_PORTS]
        ranged = bool((frontend and frontend.source_ranges) or (previous and previous.source_ranges))
        nat_ranges, filter_ranges = _range_chains(key) if ranged else (None, None)
        if frontend is None:
            dispatching.put(place, None)
            judging.put(place, None)
            if nat_ranges and filter_ranges:
                self._set(nat_ranges, None)
                self._set(filter_ranges, None)
            return
        target = layout.to(entry.name) if entry else layout.ACCEPT
        verdict = _verdict(frontend)
        if nat_ranges and filter_ranges:
            sources = frontend.source_ranges
            refuses = sources and frontend.verdict is frontends.Verdict.REJECT
            self._set(nat_ranges, _from_each(sources, target, layout.ACCEPT) if sources and entry else None)
            inside = layout.to(layout.REFUSE)
            self._set(filter_ranges, _from_each(sources, inside, layout.DROP) if sources and refuses else None)
            target = layout.to(nat_ranges) if sources and entry else target
            verdict = layout.to(filter_ranges) if refuses else verdict
        destination = f"-d {text.host(key.address)} " if key.address else ""
        # The comment is a match that costs; it comes when the others have matched.
        match = f"{destination}{text.to_port(key.protocol, key.port)} {text.comment(str(frontend.owner))}"
        dispatching.put(place, f"{match} {target}")
        judging.put(place, f"{match} {verdict}" if verdict else None)

    def _move_shared(self, previous: frontends.Frontend | None, current: frontends.Frontend | None) -> None:
        """Count a frontend as user of other addresses than before; those without a user go."""
        has, had = _cluster_ip(current), _cluster_ip(previous)
        if has != had:
            self._count(self._cluster_ips, has, had)
        gained = current.hairpin_addresses if current else ()
        lost = previous.hairpin_addresses if previous else ()
        if gained != lost:
            if gained and lost:
                gained, lost = tuple(set(gained) - set(lost)), tuple(set(lost) - set(gained))
            self._count(self._hairpin, gained, lost)

    def _count(self, users: Counter[bytes], gained: tuple[bytes, ...], lost: tuple[bytes, ...]) -> None:
        for address in gained:
            users[address] += 1
            if users[address] == 1:
                self._put_address(users, address, wanted=True)
        for address in lost:
            users[address] -= 1
            if not users[address]:
                del users[address]
                self._put_address(users, address, wanted=False)

    def _put_address(self, users: Counter[bytes], address: bytes, *, wanted: bool) -> None:
        key = dispatch.address_key(address)
        if users is self._cluster_ips:
            rule = f"-d {text.host(address)} {layout.to(layout.REFUSE)}"
            self._trees[layout.CLUSTER_IPS].put(key, rule if wanted else None)
            return
        self._trees[layout.HAIRPIN].put(key, layout.hairpin_rule(address) if wanted else None)
        invalid = wanted and self.rules.drop_invalid
        self._trees[layout.INVALID].put(key, layout.invalid_rule(address) if invalid else None)

    # The chains of a Service port

    def _entry(self, frontend: frontends.Frontend) -> _Entry:
        """The chain that a serving frontend leads to, with the lists that it needs; all to be written later."""
        everywhere = self._list(frontend, frontend.endpoints, local=frontend.endpoints_are_local)
        local = self._list(frontend, frontend.local_endpoints, local=True) if frontend.local_endpoints else None
        name = f"{names.PREFIX}{_TAGS[frontend.masquerade]}-{everywhere.hash}"
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = _Entry(ChainName(_NAT, name), frontend.masquerade, everywhere, local)
        elif entry.everywhere is everywhere and entry.local is local:
            return entry
        else:
            for found in entry.lists:
                if found is not everywhere and found is not local:
                    found.entries.discard(name)
                    self._stale_lists[found.key] = None
            entry.everywhere, entry.local = everywhere, local
        for found in entry.lists:
            found.entries.add(name)
            self._stale_lists[found.key] = None
        self._stale_entries[name] = None
        return entry

    def _list(self, frontend: frontends.Frontend, endpoints: tuple[bytes, ...], *, local: bool) -> _List:
        key = _ListKey(frontend.owner, local)
        found = self._lists.get(key)
        if found is None:
            owner = frontend.owner
            which = "local" if local else "all"
            hashed = names.hash_of(f"{owner.namespace}/{owner.service}:{owner.port}/{owner.protocol.name}/{which}")
            found = self._lists[key] = _List(key, hashed)
        if found.endpoints != endpoints or found.affinity_seconds != frontend.affinity_seconds:
            found.places = self._placed_endpoints(found, endpoints)
            found.endpoints = endpoints
            found.affinity_seconds = frontend.affinity_seconds
            self._stale_lists[key] = None
        return found

    def _placed_endpoints(self, found: _List, endpoints: tuple[bytes, ...]) -> Sequence[bytes]:
        """The order in which endpoints stand in the rules."""
        if len(endpoints) < selection.MANY:
            return endpoints
        if found.endpoints:
            return slots.follow(found.endpoints, endpoints, found.places)
        if self._found_places is None:
            self._found_places = _places_in(self._found or {})
        places = self._found_places.get(found.hash, {})
        return slots.arrange(endpoints, [places.get(place, b"") for place in range(max(places, default=-1) + 1)])

    def _write(self) -> None:
        """Bring the ruleset up to date."""
        for name in list(self._stale_entries):
            entry = self._entries[name]
            if entry.users:
                continue
            for found in entry.lists:
                found.entries.discard(name)
                self._stale_lists[found.key] = None
            del self._entries[name], self._stale_entries[name]
            self._set(entry.name, None)
        for key in self._stale_lists:
            self._write_list(self._lists[key])
        self._stale_lists.clear()
        for name in self._stale_entries:
            entry = self._entries[name]
            self._set(entry.name, tuple(self._entry_rules(entry)))
        self._stale_entries.clear()
        for tree in self._trees.values():
            for chain, rules in tree.changes().items():
                self._set(chain, rules)

    def _write_fixed(self) -> None:
        for name, rules in layout.chains(self.rules).items():
            self._set(name, rules)

    def _set(self, name: ChainName, rules: Rules | None) -> None:
        """Write one chain (None: take it away), and note it."""
        chains = self._ruleset.chains
        if rules is None:
            if chains.pop(name, None) is None:
                return
        elif chains.get(name) == rules:
            return
        else:
            chains[name] = rules
        if self._touched is not None:
            self._touched.add(name)

    def _write_list(self, found: _List) -> None:
        """Write the chains of a list, or take them away when nobody chooses from it."""
        before = found.blocks
        if found.entries:
            found.blocks = tuple(self._write_blocks(found))
            self._stale_entries.update(dict.fromkeys(found.entries))
        else:
            found.blocks = ()
            del self._lists[found.key]
        whole = ChainName(_NAT, f"{names.PREFIX}{_WHOLE}-{found.hash}")
        local_policy = any(
            entry.masquerade is frontends.Masquerade.NEVER_LOCAL and entry.everywhere is found
            for entry in map(self._entries.__getitem__, found.entries)
        )
        self._set(whole, found.choice if local_policy else None)
        if before != found.blocks:
            for gone in set(before).difference(found.blocks):
                self._set(gone, None)

    def _write_blocks(self, found: _List) -> Iterator[ChainName]:
        """Write the chains of a list's blocks and yield their names; the rules of the whole list become `choice`."""
        protocol = found.key.owner.protocol
        targets = text.dnat(found.places)
        recall: list[str] = []
        if found.affinity_seconds is not None:
            mask = _MASK[self.rules.family]
            known = [
                f"--name {names.PREFIX}{names.hash_of(f'{found.hash}/{addresses.format_endpoint(endpoint)}')} "
                f"--mask {mask} --rsource"
                for endpoint in found.places
            ]
            recall = [
                f"{text.of_protocol(protocol)} -m recent --update --seconds {found.affinity_seconds} --reap {record} "
                f"{target}"
                for record, target in zip(known, targets, strict=True)
            ]
            targets = [f"-m recent --set {record} {target}" for record, target in zip(known, targets, strict=True)]
        start = f"{names.PREFIX}{found.hash}-"
        (_, whole), *blocks = _templates(len(found.places), protocol)
        found.choice = (*recall, *_filled(whole, targets, start))
        for suffix, steps in blocks:
            name = ChainName(_NAT, start + suffix)
            self._set(name, tuple(_filled(steps, targets, start)))
            yield name

    def _entry_rules(self, entry: _Entry) -> Iterator[str]:
        """The rules of the chain that frontends lead to: mark what is to be masqueraded, then choose."""
        mark = text.set_mark(self.rules.masquerade_mark)
        if entry.masquerade is frontends.Masquerade.ALWAYS:
            yield mark
            yield from entry.everywhere.choice
            return
        pods = _local_pods(self.rules)
        if entry.masquerade is frontends.Masquerade.CLUSTER_IP:
            if self.rules.masquerade_all:
                yield mark
            elif pods:  # where everybody is a pod, there is nobody else
                yield f"! {pods}{mark}"
            yield from entry.everywhere.choice
            return
        # External traffic policy Local. Pods of this node and its own processes are served as if their packets had
        # left for the load balancer and come back, wherever the endpoints are.
        anywhere = layout.to(f"{names.PREFIX}{_WHOLE}-{entry.everywhere.hash}")
        if pods is not None:
            yield f"{pods}{anywhere}"
        yield f"-m addrtype --src-type LOCAL {mark}"
        yield f"-m addrtype --src-type LOCAL {anywhere}"
        if entry.local:
            yield from entry.local.choice
        else:
            yield layout.ACCEPT


class _Template(NamedTuple):
    """The beginning of a rule that chooses: a target follows, or a chain's name begins with the list's and `suffix`."""

    beginning: str
    slot: int
    suffix: str


@lru_cache(maxsize=1024)
def _templates(count: int, protocol: addresses.Protocol) -> tuple[tuple[str, tuple[_Template, ...]], ...]:
    """The chains that choose one of `count` endpoints, that of all endpoints first, each with its suffix."""
    result = []
    matched = text.of_protocol(protocol)
    for block, steps in selection.chains(count).items():
        rules = []
        for odds, to in steps:
            chance = f"-m statistic --mode random --probability {selection.probability(odds)} " if odds else ""
            if to.size == 1:
                rules.append(_Template(f"{matched} {chance}", to.offset, ""))
            else:
                rules.append(_Template(f"{chance}-j ", 0, names.block_suffix(*to)))
        result.append((names.block_suffix(*block), tuple(rules)))
    return tuple(result)


_BLOCK = re.compile(rf"{names.PREFIX}(\w{{13}})-(\w+)$")
_TARGET = re.compile(r"-j (?:DNAT --to-destination (\S+)|(\S+))$")


class _FoundBlock(NamedTuple):
    list: str
    offset: int
    size: int


def _block(chain: str) -> _FoundBlock | None:
    """What the chain of this name is a block of."""
    match = _BLOCK.match(chain)
    block = names.block_of(match[2]) if match else None
    return _FoundBlock(match[1], *block) if match and block else None


def _places_in(chains: Mapping[ChainName, Rules]) -> dict[str, dict[int, bytes]]:
    """The endpoints of long lists by the list's hash and their places, as far as chains tell them."""
    result: dict[str, dict[int, bytes]] = {}
    for name, rules in chains.items():
        places: dict[int, bytes] = {}
        place = 0
        if block := _block(name.chain):
            places, place = result.setdefault(block.list, {}), block.offset
        for rule in rules:
            target = _TARGET.search(rule)
            if target is None or " --update " in rule:
                continue
            endpoint, chain = target.groups()
            if endpoint is None:
                if block := _block(chain):
                    places, place = result.setdefault(block.list, {}), block.offset + block.size
            else:
                address, _, port = endpoint.rpartition(":")
                places[place] = addresses.endpoint_key(addresses.parse_address(address.strip("[]")), int(port))
                place += 1
    return result


def _filled(steps: tuple[_Template, ...], targets: list[str], start: str) -> list[str]:
    return [beginning + start + suffix if suffix else beginning + targets[slot] for beginning, slot, suffix in steps]


def _local_pods(rules: node.NodeRules) -> str | None:
    """The match of packets of local pods, ready to be negated; "" when all are, None when pods cannot be told."""
    match rules.local_pods:
        case None:
            return None
        case node.SourcePrefix(prefix):
            return text.inside("-s", prefix)
        case node.InputInterface(name):
            return f"-i {name} "
        case node.InputInterfacePrefix(prefix=name):
            # Nothing can follow a prefix as long as a name may be.
            return f"-i {name}+ " if len(name) < _IFNAMSIZ - 1 else f"-i {name} "


def _verdict(frontend: frontends.Frontend) -> str | None:
    """What becomes of connections that the nat table did not translate, from sources that may not come in if there are
    such; None: no connections are left, or the chain of all cluster IPs has the answer."""
    if frontend.verdict is frontends.Verdict.DROP or frontend.source_ranges is not None:
        return layout.DROP
    if frontend.verdict is frontends.Verdict.REJECT:
        return None if frontend.kind is frontends.FrontendKind.CLUSTER_IP else layout.to(layout.REFUSE)
    return layout.DROP if frontend.local_endpoints == () else None


def _range_chains(key: frontends.FrontendKey) -> tuple[ChainName, ChainName]:
    """The chains with the source ranges of a frontend."""
    name = f"{names.PREFIX}SRC-{names.hash_of(str(key))}"
    return ChainName(_NAT, name), ChainName(_FILTER, name)


def _from_each(sources: tuple[addresses.Prefix, ...], target: str, otherwise: str) -> Rules:
    return (*[f"{text.inside('-s', network)}{target}" for network in sources], otherwise)


def _serves_somebody(frontend: frontends.Frontend) -> bool:
    """Whether any source gets to an endpoint."""
    return frontend.verdict is frontends.Verdict.SERVE and frontend.source_ranges != ()


def _cluster_ip(frontend: frontends.Frontend | None) -> tuple[bytes, ...]:
    """The address that refuses all other ports because of this frontend."""
    if frontend and frontend.kind is frontends.FrontendKind.CLUSTER_IP:
        return (frontend.key.address,)
    return ()
