"""Somebody edits our tables: anything, anywhere, in any order."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from netagent import settings
from netagent.agent import planner, reconciler
from netagent.model import addresses, objects
from netagent.model.addresses import Family
from netagent.nftables import backend, layout, readback, text
from tests import builders, kernel
from tests.chaos import agents, states
from tests.chaos.framework import Run, drill

_TABLE = "ip netagent"


class Edit(NamedTuple):
    """nft commands, and what the journal has to name: words that one of its lines has."""

    script: str
    names: str


@drill("foreign-edits", 2, quick=25, full=400)
def foreign_edits(run: Run) -> None:
    """Random edits of anything in our tables (tables, chains, rules, elements, sets, priorities, the dormant flag,
    foreign chains and sets): each is noticed, repaired, and told with the exact object and the process."""
    dice = random.Random(2)
    with _agent() as reconcile:
        reconcile.sync()
        before = kernel.ruleset()
        for _ in run.rounds():
            kind, edit = _any_edit(dice, reconcile)
            kernel.nft(edit.script)
            run.count(f"edits: {kind}")
            assert reconcile.backend.moved(), edit
            operations = reconcile.sync().operations
            run.count("operations of repairs", operations)
            told = reconcile.drift.records()[-1]
            assert operations, f"not repaired: {edit}"
            assert any(edit.names in line for line in told.lines), f"{edit} is told as {told.lines}"
            assert all(process.name == "nft" for process in told.by), told.by
            assert told.by, f"nobody is named for {edit}"
            assert told.repaired_at is not None
            assert kernel.ruleset() == before, edit


@drill("edited-orphan", 45, 2, quick=6, full=60)
def edited_orphan(run: Run) -> None:
    """Tables that were edited while no agent ran are verified by the next one, which puts right what differs and
    touches nothing else."""
    dice = random.Random(45)
    with _agent(owns=True) as reconcile:
        reconcile.sync()
        before = _without_owner()
    for _ in run.rounds():
        with _agent() as reading:
            reading.prepare()
            for _ in range(dice.randrange(4)):
                # Of a table that outlives its owner, some flags can never change.
                done = agents.quietly(any_script(dice, reading.backend))  # type: ignore[arg-type]
                run.count("edits of orphans" if done else "edits that the kernel refused")
                reading.backend.read()
        with _agent(owns=True) as adopter:
            operations = adopter.sync().operations
            run.count("operations of repairs", operations)
            run.count("adoptions with operations" if operations else "adoptions with zero operations")
        with _agent(owns=True) as again:
            assert again.sync().operations == 0
        assert _without_owner() == before


@drill("edits-under-agent", 2, full=100)
def edits_under_agent(run: Run) -> None:
    """`netagent run` without ownership repairs every edit by itself; `netagent drift` lists the last ones, with the
    process and what it did."""
    dice = random.Random(22)
    with agents.Cluster() as cluster, agents.Agent(cluster) as agent:
        agent.until_right()
        for _ in run.rounds():
            with states.opened() as held:
                script = any_script(dice, held)
            if agents.quietly(script):
                run.count("edits")
                run.measured("from an edit to right", agent.until_right())
        listed = json.loads(agents.netagent("drift", "-o", "json").stdout)["items"]
        run.count("records in the journal", len(listed))
        assert listed, "the journal is empty"
        assert all(found["by"] and found["lines"] and found["repairedAt"] for found in listed), listed[-1]


def _without_owner() -> dict[str, object]:
    return {name: found for name, found in kernel.ruleset().items() if not name.startswith("table ")}


@contextmanager
def _agent(*, owns: bool = False) -> Iterator[reconciler.Reconciler]:
    """A reconciler with a small cluster that has something in most of our sets."""
    tables = backend.Backend(affinity_clients=settings.Settings().affinity_clients, owns=owns)
    plan = planner.Planner(settings.Settings(), node_name="node-1")
    plan.store.replace(_objects())
    try:
        found = reconciler.Reconciler(plan, tables, stale_flow_protocols=frozenset())
        tables.watch()
        tables.follow()
        yield found
    finally:
        tables.close()


def _objects() -> list[objects.Service | objects.EndpointSlice | objects.Node | objects.ServiceCIDR]:
    vips = {"vips": ("203.0.113.1",), "source_ranges": ("10.0.0.0/8",), "type": objects.ServiceType.LOAD_BALANCER}
    node_port = [builders.port(80, node_port=30080)]
    return [
        builders.node(),
        builders.service("web"),
        builders.endpoint_slice("web", "10.180.0.1", "10.180.0.2"),
        builders.service("shop", cluster_ips=("10.96.0.2",), affinity_seconds=600),
        builders.endpoint_slice("shop", "10.180.0.3", "10.180.0.4"),
        builders.service("door", cluster_ips=("10.96.0.3",), ports=node_port, **vips),  # type: ignore[arg-type]
        builders.endpoint_slice("door", "10.180.0.5"),
        builders.service("empty", cluster_ips=("10.96.0.4",)),
    ]


# Edits ----------------------------------------------------------------------------------------------------------------


def _any_edit(dice: random.Random, reconcile: reconciler.Reconciler) -> tuple[str, Edit]:
    actual = reconcile.backend.actual(Family.IPV4)  # type: ignore[attr-defined]
    kind = dice.choice(sorted(_EDITS))
    return kind, _EDITS[kind](dice, actual)


def any_script(dice: random.Random, held: backend.Backend) -> str:
    """nft commands that change something in the table that a backend has read, as it is."""
    actual = held.actual(Family.IPV4)
    for kind in dice.sample(sorted(_EDITS), len(_EDITS)):
        with contextlib.suppress(IndexError):  # of an empty choice: there is nothing of that kind
            return _EDITS[kind](dice, actual).script
    return f"add table {_TABLE}"


def _chain(dice: random.Random, actual: readback.ActualTable, *, base: bool | None = None) -> str:
    fitting = (name for name, chain in actual.chains.items() if base is None or chain.is_base is base)
    return dice.choice(sorted(fitting))


def _table_deleted(dice: random.Random, actual: readback.ActualTable) -> Edit:
    return Edit(f"delete table {_TABLE}", "+ the whole table")


def _table_flushed(dice: random.Random, actual: readback.ActualTable) -> Edit:
    return Edit(f"flush table {_TABLE}", f"~ chain {_chain(dice, actual, base=True)}: its rules are not ours")


def _switched_off(dice: random.Random, actual: readback.ActualTable) -> Edit:
    return Edit(
        f"add table {_TABLE} {{ flags dormant; }}", "~ the whole table: its layout is not ours, or it was switch"
    )


def _chain_flushed(dice: random.Random, actual: readback.ActualTable) -> Edit:
    chain = dice.choice(sorted(name for name, found in actual.chains.items() if found.rules))
    return Edit(f"flush chain {_TABLE} {chain}", f"~ chain {chain}: its rules are not ours")


def _chain_deleted(dice: random.Random, actual: readback.ActualTable) -> Edit:
    chain = _chain(dice, actual, base=True)
    return Edit(f"flush chain {_TABLE} {chain}; delete chain {_TABLE} {chain}", f"+ chain {chain}")


def _chain_added(dice: random.Random, actual: readback.ActualTable) -> Edit:
    name = f"theirs{dice.randrange(1000)}"
    hook = dice.choice(["", "{ type filter hook input priority 7; policy accept; }"])
    return Edit(f"add chain {_TABLE} {name} {hook}", f"- chain {name}: not ours")


def _priority_changed(dice: random.Random, actual: readback.ActualTable) -> Edit:
    chain = _chain(dice, actual, base=True)
    hook = actual.chains[chain].hook
    assert hook is not None
    made = f"{{ type {hook.type} hook {hook.point} priority {hook.priority + dice.randrange(1, 9)}; }}"
    script = f"flush chain {_TABLE} {chain}\ndelete chain {_TABLE} {chain}\nadd chain {_TABLE} {chain} {made}"
    return Edit(script, f"~ chain {chain}: not hooked as it should be")


def _rule_added(dice: random.Random, actual: readback.ActualTable) -> Edit:
    chain, verb = _chain(dice, actual), dice.choice(["add", "insert"])
    rule = dice.choice(["counter", "ip saddr 10.1.1.1 accept", "meta mark set 7"])
    return Edit(f"{verb} rule {_TABLE} {chain} {rule}", f"~ chain {chain}: its rules are not ours")


def _rule_deleted(dice: random.Random, actual: readback.ActualTable) -> Edit:
    chain = dice.choice(sorted(name for name, found in actual.chains.items() if found.rules))
    listed = kernel.nft(f"list chain {_TABLE} {chain}") and kernel.listing(_TABLE)
    handle = _last_handle(listed, chain)
    return Edit(f"delete rule {_TABLE} {chain} handle {handle}", f"~ chain {chain}: its rules are not ours")


def _last_handle(listing: str, chain: str) -> str:
    """The handle of the last rule of a chain."""
    body = listing.partition(f"\tchain {chain} {{")[2].partition("\n\t}")[0]
    return body.rstrip().rpartition("# handle ")[2]


def _element_deleted(dice: random.Random, actual: readback.ActualTable) -> Edit:
    name = dice.choice(sorted(name for name in _SETS_TOLD if actual.elements.get(name)))
    key = dice.choice(sorted(actual.elements[name]))
    spec = layout.sets(affinity_clients=1)[name]
    words = text.key_text(spec, Family.IPV4, key)
    return Edit(f"delete element {_TABLE} {name} {{ {words} }}", f"+ {name} {words}")


def _endpoint_deleted(dice: random.Random, actual: readback.ActualTable) -> Edit:
    backends = actual.elements.get(layout.BACKENDS, {})
    key = dice.choice(sorted(backends))
    spec = layout.sets(affinity_clients=1)[layout.BACKENDS]
    value = backends[key]
    assert isinstance(value, bytes)
    script = f"delete element {_TABLE} backends {{ {text.key_text(spec, Family.IPV4, key)} }}"
    return Edit(script, f"+ endpoint {addresses.format_endpoint(value[:6])}")


def _frontend_deleted(dice: random.Random, actual: readback.ActualTable) -> Edit:
    number = dice.randrange(1, 5)
    return Edit(f"delete element {_TABLE} frontends {{ 10.96.0.{number} . tcp . 80 }}", f"+ 10.96.0.{number}:80/tcp")


def _frontend_added(dice: random.Random, actual: readback.ActualTable) -> Edit:
    address = f"10.9.{dice.randrange(256)}.{dice.randrange(256)}"
    return Edit(f"add element {_TABLE} frontends {{ {address} . udp . 53 : 1:2 }}", f"- {address}:53/udp")


def _element_added(dice: random.Random, actual: readback.ActualTable) -> Edit:
    address = f"10.9.{dice.randrange(256)}.{dice.randrange(256)}"
    return Edit(f"add element {_TABLE} cluster_ips {{ {address} }}", f"- cluster_ips {address}")


def _set_flushed(dice: random.Random, actual: readback.ActualTable) -> Edit:
    name = dice.choice(sorted(name for name in _SETS_TOLD if actual.elements.get(name)))
    return Edit(f"flush set {_TABLE} {name}", f"+ {name} ")


def _set_added(dice: random.Random, actual: readback.ActualTable) -> Edit:
    name = f"theirs{dice.randrange(1000)}"
    return Edit(f"add set {_TABLE} {name} {{ type ipv4_addr; elements = {{ 10.1.1.1 }} }}", f"- set {name}: not ours")


def _set_deleted(dice: random.Random, actual: readback.ActualTable) -> Edit:
    """A set that is in use can go only with the rules that use it."""
    return Edit(f"flush table {_TABLE}\ndelete set {_TABLE} cluster_ips", "+ set cluster_ips")


# Sets whose elements the journal names by themselves, and not as a part of a frontend.
_SETS_TOLD = (layout.CLUSTER_IPS, layout.HAIRPIN, layout.SOURCE_RANGES)
_EDITS: dict[str, Callable[[random.Random, readback.ActualTable], Edit]] = {
    "a table deleted": _table_deleted,
    "a table flushed": _table_flushed,
    "a table switched off": _switched_off,
    "a chain flushed": _chain_flushed,
    "a chain deleted": _chain_deleted,
    "a chain added": _chain_added,
    "a priority changed": _priority_changed,
    "a rule added": _rule_added,
    "a rule deleted": _rule_deleted,
    "an element deleted": _element_deleted,
    "an endpoint deleted": _endpoint_deleted,
    "a frontend deleted": _frontend_deleted,
    "a frontend added": _frontend_added,
    "an element added": _element_added,
    "a set flushed": _set_flushed,
    "a set added": _set_added,
    "a set deleted": _set_deleted,
}
