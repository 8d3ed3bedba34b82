"""The story of a target: an address that is dialled, or a Service with all that it claims on this node."""

from __future__ import annotations

from collections.abc import Iterator

from netagent import errors
from netagent.explain import absent, by_name, comparison, node_ports, parts, telling
from netagent.explain.story import Cause, Client, Dialled, Missing, Part, SourceKind, Story
from netagent.explain.targets import AddressTarget, ServiceTarget, Target
from netagent.explain.world import World
from netagent.model import addresses
from netagent.plan import frontends


def story_of(world: World, target: Target, text: str, *, client: Client | None = None) -> Story:
    """Tell what becomes of new connections to a target. `text` is how it was asked for. ConfigError if the client can
    never dial it, as it is of another IP family."""
    match target:
        case AddressTarget():
            return _of_address(world, target, text, client)
        case ServiceTarget():
            return by_name.story_of(world, target, text, client)


def _of_address(world: World, target: AddressTarget, text: str, client: Client | None) -> Story:
    family = addresses.family_of(target.address)
    if client and client.address is not None and addresses.family_of(client.address) is not family:
        shown = addresses.format_address(client.address)
        raise errors.ConfigError(f"--from {shown} and {text} are of different IP families: no packet has both")
    missing = Missing(target.address, target.protocol, target.port)
    if family not in world.families:
        return Story(target=text, headline=text, reason=by_name.family_not_served(world, [family]))
    found = list(_parts(world, missing, client))
    if found:
        headline = "" if len(found) == 1 else f"{text}: {len(found)} ports are served"
        owners = {part.frontend.owner.owner for part in found if part.frontend}
        notes = tuple(note for name in sorted(owners) for note in by_name.set_aside_of(world, name))
        return Story(target=text, headline=headline, parts=tuple(found), notes=notes)
    reason = absent.reason_of(world, missing)
    known = reason.cause is not Cause.NOBODYS_ADDRESS
    if missing.port is None:
        return Story(target=text, headline=text, reason=reason, known=known)
    part = parts.absent_part(world, missing, reason, client=client)
    return Story(target=text, headline="", parts=(part,), known=known)


def _parts(world: World, missing: Missing, client: Client | None) -> Iterator[Part]:
    """The frontends at an address, or the one at its port."""
    family = missing.family
    if missing.port is None:
        keys = sorted(
            (key for key in world.frontends if key.family is family and key.address == missing.address),
            key=lambda key: (key.protocol, key.port),
        )
        for key in keys:
            dialled = Dialled(missing.address, key.protocol, key.port)
            yield parts.part_of(world, dialled, world.frontends[key], client=client)
        return
    dialled = Dialled(missing.address, missing.protocol, missing.port)
    frontend = world.frontends.get(frontends.FrontendKey(family, missing.address, missing.protocol, missing.port))
    if frontend is None:
        frontend = world.frontends.get(frontends.FrontendKey(family, b"", missing.protocol, missing.port))
        if frontend is None or not node_ports.answers(world, missing.address):
            return
        if node_ports.is_loopback(missing.address):
            yield from _on_loopback(world, dialled, frontend, client)
            return
        source = parts.sources_of(world, family, client)[0]
        if comparison.frontend_probe(telling.walked(world, source, dialled)) is None:
            return  # it is a cluster IP as well, whose other ports are refused
    yield parts.part_of(world, dialled, frontend, client=client)


def _on_loopback(world: World, dialled: Dialled, frontend: frontends.Frontend, client: Client | None) -> Iterator[Part]:
    """A node port on 127.0.0.1, which mode iptables has for processes of this node."""
    stand_in = next(iter(node_ports.accepting(world, dialled.family)), None)
    if stand_in is None:
        return
    on_node = client if client and client.kind is SourceKind.NODE else Client(SourceKind.NODE, None)
    yield parts.part_of(world, dialled, frontend, client=on_node, stand_in=stand_in)


def causes(story: Story) -> tuple[Cause, ...]:
    """All causes that a story names, sorted."""
    tales = [tale for part in story.parts for tale in part.tales]
    found = {tale.reason.cause for tale in tales}
    if any(tale.kernel for tale in tales):
        found.add(Cause.KERNEL_DIFFERS)
    found.update(part.reason.cause for part in story.parts if part.reason)
    if story.reason:
        found.add(story.reason.cause)
    return tuple(sorted(found))
