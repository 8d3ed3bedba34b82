"""`netagent explain`: why a connection ends where it ends."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from netagent import errors, settings
from netagent.cli import ending, manifest_facts, options, situation
from netagent.model import addresses, objects

if TYPE_CHECKING:
    from netagent.explain import story, targets, world
    from netagent.nftables import readback
    from netagent.source import manifests

Tables = Mapping[addresses.Family, "readback.ActualTable"]


class Scene(NamedTuple):
    """What is to be explained in: a world, where it comes from, and what the reader should know of it."""

    world: world.World
    origin: situation.Origin
    remarks: tuple[str, ...]


@click.command()
@click.argument("target", metavar="ADDRESS:PORT[/PROTOCOL]|[NAMESPACE/]SERVICE[:PORT]")
@click.option(
    "--from",
    "client",
    metavar="pod:ADDRESS|node|outside:ADDRESS",
    default=None,
    help="Who connects; the address may be left out.  [default: one of each kind]",
)
@click.option("-n", "--namespace", default="default", show_default=True, help="Namespace of a bare Service name.")
@click.option("--rules", is_flag=True, help="Add each rule and element that the packet meets, as nft spells them.")
@options.output(help="text is for people; json and yaml are stable.")
@options.looking
@ending.ending()
def explain(target: str, client: str | None, namespace: str, rules: bool, output: str, **given: Any) -> None:
    """Tell why a connection ends where it ends, and what to change if it should not.

    The target is what a client dials (10.96.0.10:53/udp, [fd00::1]:80, 192.0.2.1:30080; TCP if nothing is said), or a
    Service with all its addresses (shop/web, shop/web:http). For each client: served, refused, dropped or not handled;
    which endpoints, with which chances, and for what reason not the others; whose address they see.

    Looks at the manifests of -f, else at what the running agent knows, else at the kernel's rules alone. Where the
    kernel holds rules of netagent they are followed too, and differences are told.

    \b
    Exit codes: 0 the story is told, also one of a refusal; 1 nothing is known of
    the target; 2 the target or the client makes no sense.

    \b
    Examples:
      netagent explain shop/web
      netagent explain 10.96.0.10:53/udp --from pod:10.180.0.4
      kubectl get svc,endpointslices,nodes,servicecidrs -A -o json |
        netagent explain shop/web:http -f - --node-name worker-a
    """
    from netagent.explain import stories, targets

    wanted = targets.target_of(target, namespace=namespace)
    dialling = targets.client_of(client) if client else None
    scene = scene_of(options.source_of(**given), wanted)
    told = stories.story_of(scene.world, wanted, target, client=dialling)
    for remark in scene.remarks:
        options.say(remark)
    _print(told, scene, output, with_rules=rules)
    if not told.known:
        sys.exit(1)


def _print(told: story.Story, scene: Scene, output: str, *, with_rules: bool) -> None:
    from netagent.cli import views
    from netagent.escaping import printable
    from netagent.explain import render

    if output == "text":
        for line in render.lines(told, with_rules=with_rules):
            click.echo(printable(line))
        return
    document = {
        "origin": scene.origin.value,
        "node": scene.world.context.name,
        "mode": scene.world.settings.mode.value,
        "remarks": list(scene.remarks),
        **render.document(told, with_rules=with_rules),
    }
    click.echo(views.as_json(document) if output == "json" else views.as_yaml(document), nl=False)


# Where to look --------------------------------------------------------------------------------------------------


def scene_of(source: options.Source, target: targets.Target) -> Scene:
    """The world that the options name: manifests, the running agent's objects, or the kernel alone."""
    from netagent.explain import targets as kinds

    if source.path is not None:
        return _of_files(source)
    service = target.service if isinstance(target, kinds.ServiceTarget) else None
    seen = situation.look(source, services=[service] if service else None)
    if seen.planner and service and service not in seen.planner.store.services:
        seen = situation.look(source)  # all of it: it may be called otherwise, or be in another namespace
    if seen.planner is None:
        return _of_kernel(seen)
    return _of_agent(seen)


def _of_files(source: options.Source) -> Scene:
    """What manifests say. An object that cannot be used is no error here: it may be what is asked about."""
    from netagent.agent import planner
    from netagent.explain import world
    from netagent.source import manifests

    assert source.path is not None
    stdin = sys.stdin.buffer.read() if source.path == manifests.STDIN else b""
    reading = manifests.read(source.path, stdin=io.BytesIO(stdin))
    if source.strict and reading.quarantined:
        raise errors.QuarantineError(f"{len(reading.quarantined)} objects had to be set aside; nothing was done")
    if not reading.objects and not reading.quarantined and source.path == manifests.STDIN:
        raise errors.SourceError(f"{source.path}: there is no object of ours at all")
    plan = planner.Planner(source.wanted, node_name=source.node_name)
    plan.store.replace(reading.objects)
    plan.replan()
    remarks = list(_reading_remarks(reading, source.node_name))
    found, remark = _kernel(source.wanted)
    # Manifests are often looked at elsewhere than on a node, where there is nothing to compare them with.
    exists = found is not None and any(table.exists for table in found.values())
    if found is None and remark:
        remarks.append(remark)
    seen = world.world_of(
        plan,
        others=reading.objects,
        host_addresses=_host_addresses() if exists else (),
        set_aside=[_set_aside(one) for one in reading.quarantined],
        noted=[world.Noted(one.kind, one.namespace, one.name, one.field, one.reason) for one in reading.remarks],
        facts=manifest_facts.ManifestFacts(reading, stdin),
        found=found if exists else None,
        records=_records(source.wanted) if exists else None,
    )
    return Scene(seen, situation.Origin.FILES, tuple(remarks))


def _of_agent(seen: situation.Situation) -> Scene:
    from netagent.agent.local import client, documents
    from netagent.explain import world

    assert seen.planner is not None
    found, remark = _kernel(seen.settings)
    services = seen.planner.store.services
    aside = [
        world.SetAside(
            one.kind,
            one.namespace,
            one.name,
            one.field,
            one.reason,
            kept=_is_there(seen, one.kind, one.namespace, one.name),
        )
        for one in client.document("/quarantine", tuple[documents.SetAside, ...])
    ]
    made = world.world_of(
        seen.planner,
        others=services.values(),
        host_addresses=_host_addresses(),
        set_aside=aside,
        found=found,
        records=_records(seen.settings) if found else None,
    )
    return Scene(made, situation.Origin.AGENT, (*seen.remarks, *([remark] if remark else [])))


def _is_there(seen: situation.Situation, kind: str, namespace: str, name: str) -> bool:
    """Whether a version of an object is in use."""
    assert seen.planner is not None
    store = seen.planner.store
    match kind:
        case "Service":
            return objects.ServiceName(namespace, name) in store.services
        case "EndpointSlice":
            return store.slice_of_key((namespace, name)) is not None
        case _:
            return False


def _of_kernel(seen: situation.Situation) -> Scene:
    from netagent.explain import kernel_world
    from netagent.nftables import layout, unwire, walk

    if seen.settings.mode is not settings.Mode.NFTABLES:
        raise errors.NoAgentError(
            f"no agent runs in this network namespace, and in mode {seen.settings.mode.value} the kernel's rules alone "
            "tell no story: give manifests (-f)"
        )
    held = situation.kernel(seen.settings)
    in_force = {family: table for family, table in held.tables.items() if table.exists and not table.dormant}
    if not in_force:
        why = held.reason or "the kernel has no nftables rules of netagent (those of mode iptables tell no story)"
        raise errors.NoAgentError(f"there is nothing to look at: no agent runs here, no -f is given, and {why}")
    specs = layout.sets(affinity_clients=seen.settings.affinity_clients)
    made = kernel_world.world_of_kernel(
        {family: unwire.table_of(table, specs) for family, table in in_force.items()},
        settings=seen.settings,
        node_name=seen.node_name,
        host=walk.Host(_host_addresses()),
        records=_records(seen.settings),
    )
    return Scene(made, situation.Origin.KERNEL, seen.remarks)


def _kernel(wanted: settings.Settings) -> tuple[Tables | None, str]:
    """What the kernel holds, None if it is not to be compared; and what is to be said of that."""
    if wanted.mode is not settings.Mode.NFTABLES:
        return None, "mode iptables: whether the kernel has what is planned, `netagent diff` tells"
    held = situation.kernel(wanted)
    if held.tables:
        return held.tables, ""
    return None, f"not compared with the kernel's rules: {held.reason}"


def _records(wanted: settings.Settings) -> Callable[[addresses.Family], Mapping[bytes, bytes]]:
    """Reads which endpoint each client has by session affinity; nothing where that cannot be read."""

    @functools.cache
    def read(family: addresses.Family) -> Mapping[bytes, bytes]:
        from netagent.nftables import layout, netlink, readback

        spec = layout.sets(affinity_clients=wanted.affinity_clients)[layout.AFFINITY]
        try:
            with netlink.NftablesSocket() as socket:
                found = readback.read_elements(socket, spec, family)
        except OSError:
            return {}
        return {key: value for key, value in found.items() if isinstance(value, bytes)}

    return read


def _reading_remarks(reading: manifests.Reading, node_name: str) -> Iterator[str]:
    """What the reader should know of manifests: whether they have this node, and what is wrong with others."""
    nodes = sorted(item.name for item in reading.objects if isinstance(item, objects.Node))
    if node_name not in nodes:
        there = f" (it has {', '.join(nodes[:5])}{' ...' if len(nodes) > 5 else ''}: see --node-name)" if nodes else ""
        yield f"there is no Node {node_name!r} among the manifests{there}: what depends on it is unknown"
    if reading.quarantined:
        count = len(reading.quarantined)
        yield f"{count} object{'s' if count != 1 else ''} of the manifests cannot be used; `netagent dump` names them"


def _host_addresses() -> frozenset[bytes]:
    """The addresses of this host; none if they cannot be read."""
    from netagent.agent import node_addresses

    try:
        return node_addresses.read_addresses()
    except OSError:
        return frozenset()


def _set_aside(one: manifests.Quarantined) -> world.SetAside:
    from netagent.explain import world

    if not one.kind:
        return world.SetAside("", "", "", "", str(one))  # which says where it stands
    return world.SetAside(one.kind, one.namespace, one.name, one.field, one.reason, one.origin)
