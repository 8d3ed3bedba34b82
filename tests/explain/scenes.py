"""Worlds to explain, made of builders' objects."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from netagent import settings
from netagent.agent import planner
from netagent.explain import facts, render, stories, story, targets, world
from netagent.model import addresses, objects
from tests import builders

NODE = builders.node(pod_cidrs=("10.180.0.0/24",))
CIDR = builders.service_cidr()


def world_of(
    *found: objects.Object,
    manifests: Iterable[builders.Manifest] | None = None,
    set_aside: Iterable[world.SetAside] = (),
    node: objects.Node | None = NODE,
    **changes: Any,
) -> world.World:
    """A world of these objects, this node (node-1) and a range of cluster IPs. `changes` are settings; `manifests` what
    the Services' own manifests say, where there are any to read."""
    wanted = settings.override(settings.Settings(), **{"cluster_cidrs": "10.180.0.0/16", **changes})
    items = [*found, CIDR, *([node] if node else [])]
    plan = planner.Planner(wanted, node_name="node-1")
    plan.store.replace(items)
    plan.replan()
    known = None
    if manifests is not None:
        text = json.dumps(builders.list_manifest(*manifests)).encode()

        def known() -> dict[objects.ServiceName, facts.Facts]:
            return facts.facts_in(text)

    return world.world_of(plan, others=items, set_aside=set_aside, facts=known)


def story_of(seen: world.World, target: str, client: str | None = None) -> story.Story:
    """The story of a target, as the command tells it."""
    dialling = targets.client_of(client) if client else None
    return stories.story_of(seen, targets.target_of(target, namespace="default"), target, client=dialling)


def text_of(told: story.Story) -> str:
    return "\n".join(render.lines(told))


def shares(told: story.Story) -> dict[str, str]:
    """Endpoints and their chances, of a story with one client."""
    (part,) = told.parts
    (tale,) = part.tales
    return {addresses.format_endpoint(share.endpoint): str(share.probability) for share in tale.shares}


def reasons(told: story.Story) -> dict[str, str]:
    """Why each endpoint is used or not, of a story with one part."""
    (part,) = told.parts
    return {render.candidate_address(one): one.reason for one in part.candidates}
