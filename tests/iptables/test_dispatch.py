"""Dispatch trees: whatever the keys, a packet finds its own within few rules, and one key more changes few chains."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.iptables import dispatch, ruleset
from netagent.iptables.dispatch import Prefix, Side, Space
from netagent.model import addresses
from tests.iptables import simulator

ROOT = ruleset.ChainName("nat", "NETAGENT-TEST")
V4, V6, PORTS = Space(32, ports=True), Space(128, ports=True), Space(0, ports=True)
SOURCES = Space(32, ports=False, side=Side.SOURCE)
COUNT = 10_000
TCP, UDP, SCTP = addresses.Protocol.TCP, addresses.Protocol.UDP, addresses.Protocol.SCTP

Chains = dict[ruleset.ChainName, ruleset.Rules]


def tree_of(space: Space, keys: Iterable[int]) -> dispatch.Tree:
    """A tree whose rule at a key goes to a chain with the key as its name."""
    tree = dispatch.Tree(space, ROOT)
    for key in keys:
        tree.put(key, rule_of(space, key))
    return tree


def rule_of(space: Space, key: int) -> str:
    return f"{dispatch.matches(space, Prefix(key, space.width))} -j {key}"


def apply(chains: Chains, tree: dispatch.Tree) -> int:
    """Make the tree's changes; how many chains they are."""
    changes = tree.changes()
    for name, rules in changes.items():
        if rules is None:
            del chains[name]
        else:
            chains[name] = rules
    return len(changes)


def chains_of(space: Space, keys: Iterable[int]) -> Chains:
    chains: Chains = {}
    apply(chains, tree_of(space, keys))
    return chains


def rules_to(chains: Chains, start: ruleset.ChainName = ROOT, before: int = 0) -> dict[int, int]:
    """For each key, the rules that a packet to it meets, if no earlier one is for it."""
    met: dict[int, int] = {}
    for index, rule in enumerate(chains[start], before + 1):
        kind, target = rule.split()[-2:]
        if kind == "-g":
            inner = rules_to(chains, ruleset.ChainName(ROOT.table, target), index)
            assert not inner.keys() & met.keys()
            met |= inner
        else:
            met[int(target)] = index
    return met


def found(chains: Chains, space: Space, key: int) -> str:
    """The target that a packet with this key gets to; "" for none."""
    packet = packet_of(space, key)
    state = simulator._State(packet, simulator.Host())
    rules = list(chains[ROOT])
    while rules:
        rule = simulator.parse(rules.pop(0))
        if all(test(state) for test in rule.tests):
            if not rule.goto:
                return rule.target
            rules = list(chains[ruleset.ChainName(ROOT.table, rule.target)])
    return ""


def packet_of(space: Space, key: int) -> simulator.Packet:
    address = bytes(16 if space.address_bits == 128 else 4)
    port, protocol = None, TCP
    if space.ports:
        port = key & 0xFFFF
        protocol = {0b00: TCP, 0b10: UDP, 0b11: SCTP}[key >> 16 & 3]
        key >>= 18
    if space.address_bits:
        address = key.to_bytes(space.address_bits // 8)
    return simulator.Packet(address, address, protocol, port)


def v4(address: int, port: int = 80, protocol: addresses.Protocol = TCP) -> int:
    return dispatch.port_key(address.to_bytes(4), protocol, port)


def v6(address: int, port: int = 80, protocol: addresses.Protocol = TCP) -> int:
    return dispatch.port_key(address.to_bytes(16), protocol, port)


def node_port(port: int, protocol: addresses.Protocol = TCP) -> int:
    return dispatch.port_key(b"", protocol, port)


NET = 10 << 24 | 96 << 16
NET6 = 0xFD00 << 112


def spread(low: int, high: int, count: int = COUNT) -> list[int]:
    return random.Random(low).sample(range(low, high), count)


def spine(bits: int, *, tail: int) -> set[int]:
    """Addresses that leave one another at every bit: 1..., 01..., 001..., some of each."""
    rng = random.Random(bits)
    return {1 << bit | rng.getrandbits(bit) for bit in range(bits) for _ in range(tail)}


DISTRIBUTIONS: dict[str, Callable[[], tuple[Space, set[int]]]] = {
    "one after the other": lambda: (V4, {v4(NET + number) for number in range(COUNT)}),
    "anywhere in a ServiceCIDR": lambda: (V4, {v4(address) for address in spread(NET, NET + (1 << 20))}),
    "anywhere": lambda: (V4, {v4(address) for address in spread(0, 1 << 32)}),
    "two ports each": lambda: (V4, {v4(NET + n // 2, 80 + n % 2 * 363) for n in range(COUNT)}),
    "DNS": lambda: (V4, {v4(NET + n // 2, 53, (TCP, UDP)[n % 2]) for n in range(COUNT)}),
    "one address": lambda: (V4, {v4(NET, port) for port in range(1, COUNT + 1)}),
    "one address, all protocols": lambda: (
        V4,
        {v4(NET, port, protocol) for port in spread(1, 1 << 16, 3333) for protocol in addresses.Protocol},
    ),
    "every tenth address crowded": lambda: (V4, {v4(NET + n % 1000 // 10 * 7, 1 + n) for n in range(COUNT)}),
    "leaving at every bit": lambda: (V4, {v4(address) for address in spine(32, tail=400)}),
    "leaving at every bit, IPv6": lambda: (V6, {v6(address) for address in spine(128, tail=80)}),
    "a few at every bit": lambda: (V6, {v6(address) for address in spine(128, tail=9)}),
    "ports leaving at every bit": lambda: (
        V4,
        {v4(address, port) for address in spine(32, tail=20) for port in (1, 2, 4, 8, 16, 256, 4096, 32768)},
    ),
    "IPv6 one after the other": lambda: (V6, {v6(NET6 + number) for number in range(COUNT)}),
    "IPv6 anywhere in a /112": lambda: (V6, {v6(NET6 + number) for number in spread(0, 1 << 16)}),
    "IPv6 anywhere": lambda: (V6, {v6(NET6 + number) for number in spread(0, 1 << 60)}),
    "node ports": lambda: (PORTS, {node_port(port) for port in range(30000, 30000 + 2768)}),
    "node ports everywhere": lambda: (PORTS, {node_port(port, protocol) for port in spread(1, 65536, 5000)
                                             for protocol in (TCP, UDP)}),
    "sources": lambda: (SOURCES, set(spread(NET, NET + (1 << 24)))),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_ten_thousand_keys_take_few_rules_however_they_lie(name: str) -> None:
    space, keys = DISTRIBUTIONS[name]()
    chains = chains_of(space, keys)
    met = rules_to(chains)
    assert met.keys() == keys
    assert max(met.values()) <= 26
    # What the tree adds to the rules of the keys themselves.
    assert sum(map(len, chains.values())) <= len(keys) * 1.3
    for key in random.Random(0).sample(sorted(keys), 200):
        assert found(chains, space, key) == str(key)


@pytest.mark.parametrize("name", ["one after the other", "anywhere in a ServiceCIDR", "IPv6 one after the other"])
def test_usual_addresses_take_about_fifteen(name: str) -> None:
    space, keys = DISTRIBUTIONS[name]()
    met = rules_to(chains_of(space, keys))
    assert sum(met.values()) / len(met) <= 16


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_one_key_more_or_less_changes_few_chains(name: str) -> None:
    space, keys = DISTRIBUTIONS[name]()
    rng = random.Random(name)
    tree = tree_of(space, keys)
    chains: Chains = {}
    apply(chains, tree)
    counts = []
    for key in rng.sample(sorted(keys), 60):
        tree.put(key, None)
        counts.append(_differing(chains, tree))
        tree.put(key, rule_of(space, key))
        counts.append(_differing(chains, tree))
    made_up = "at every bit" in name
    assert sorted(counts)[len(counts) // 2] <= (5 if made_up else 2)
    assert sum(counts) / len(counts) <= (12 if made_up else 3)


def _differing(chains: Chains, tree: dispatch.Tree) -> int:
    """How many chains are other ones afterwards."""
    before = dict(chains)
    apply(chains, tree)
    return len({name for name in before.keys() | chains.keys() if before.get(name) != chains.get(name)})


def test_a_packet_for_no_key_finds_none() -> None:
    keys = {v4(NET + 2 * number) for number in range(500)}
    chains = chains_of(V4, keys)
    for number in range(500):
        assert found(chains, V4, v4(NET + 2 * number + 1)) == ""
        assert found(chains, V4, v4(NET + 2 * number, 81)) == ""
        assert found(chains, V4, v4(NET + 2 * number, 80, UDP)) == ""


def test_an_empty_tree_is_an_empty_chain() -> None:
    assert chains_of(V4, ()) == {ROOT: ()}


def test_nothing_changes_where_nothing_changed() -> None:
    tree = tree_of(V4, range(100))
    tree.changes()
    tree.put(5, rule_of(V4, 5))
    assert not tree.changes()


def test_the_rules_of_a_prefix_are_as_iptables_prints_them() -> None:
    key = v4(NET + 10, 80)
    lengths = {
        13: "-d 10.96.0.0/13",
        32: "-d 10.96.0.10/32",
        33: "-d 10.96.0.10/32 -p tcp",
        34: "-d 10.96.0.10/32 -p tcp",
        35: "-d 10.96.0.10/32 -p tcp -m tcp --dport 0:32767",
        46: "-d 10.96.0.10/32 -p tcp -m tcp --dport 80:95",
        50: "-d 10.96.0.10/32 -p tcp -m tcp --dport 80",
    }
    for length, text in lengths.items():
        assert dispatch.matches(V4, Prefix(key >> (50 - length), length)) == text
    udp = v4(NET + 10, 80, UDP)
    assert dispatch.matches(V4, Prefix(udp >> 17, 33)) == "-d 10.96.0.10/32 ! -p tcp"
    assert dispatch.matches(V4, Prefix(udp >> 16, 34)) == "-d 10.96.0.10/32 -p udp"
    assert dispatch.matches(PORTS, Prefix(node_port(30080, SCTP), 18)) == "-p sctp -m sctp --dport 30080"
    assert dispatch.matches(V6, Prefix(NET6 >> 120, 8)) == "-d fd00::/8"


_pools = st.sampled_from([
    [v4(NET + number, port) for number in range(40) for port in (80, 443)],
    [v4(NET, port, protocol) for port in range(1, 40) for protocol in addresses.Protocol],
    sorted(v4(address) for address in spine(32, tail=2)),
])  # fmt: skip


@given(st.data())
def test_whatever_came_and_went_the_chains_are_those_of_the_keys(data: st.DataObject) -> None:
    pool = data.draw(_pools)
    tree, chains, current = dispatch.Tree(V4, ROOT), Chains(), set[int]()
    for _ in range(data.draw(st.integers(1, 6))):
        for key in data.draw(st.sets(st.sampled_from(pool), max_size=60)):
            current ^= {key}
            tree.put(key, rule_of(V4, key) if key in current else None)
        apply(chains, tree)
        assert chains == chains_of(V4, current)
        for key in pool:
            assert found(chains, V4, key) == (str(key) if key in current else "")
