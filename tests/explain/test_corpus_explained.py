"""Connections of the behaviour cases are explained as the case says that they end; every refusal has a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from netagent.explain import render, stories, telling
from netagent.explain.story import Cause, Fate
from netagent.explain.targets import AddressTarget
from netagent.model import addresses
from tests.cases import loader
from tests.explain import corpus

_FATES = {
    "endpoints": Fate.SERVED,
    "reject": Fate.REFUSED,
    "drop": Fate.DROPPED,
    "passthrough": Fate.UNHANDLED,
}
CASES = [case for case in loader.load_all() if "nftables" in case["modes"] and corpus.has_connections(case)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_connections_are_explained_as_they_end(case: Mapping[str, Any]) -> None:
    checked = 0
    for step in corpus.steps(case):
        for flow in step.flows:
            if not corpus.explainable(flow):
                continue
            expected = flow.get("expect_by_mode", {}).get("nftables", flow["expect"])
            for source in flow.get("sources", [flow["src"]]):
                dialled = AddressTarget(
                    addresses.parse_address(flow["dst"]), flow["dport"], addresses.Protocol[flow["proto"].upper()]
                )
                story = stories.story_of(step.world, dialled, "target", client=corpus.client_of(flow, source))
                (part,) = story.parts
                (tale,) = part.tales
                told = "\n".join(render.lines(story, with_rules=True))
                assert tale.fate is _FATES[expected["result"]], f"{step.place}: {flow}\n{told}"
                if tale.fate is Fate.SERVED:
                    wanted = set(expected["endpoints"])
                    found = {addresses.format_endpoint(share.endpoint) for share in tale.shares}
                    assert found == wanted, f"{step.place}: {flow}\n{told}"
                    assert sum(share.probability for share in tale.shares) == 1
                    assert tale.reason.cause is Cause.SERVES
                    for share in tale.shares:
                        if addresses.endpoint_address(share.endpoint) != addresses.parse_address(source):
                            (teller,) = tale.sources
                            expected_masquerade = telling.is_masqueraded(step.world, teller, part.frontend)
                            assert share.masquerade is expected_masquerade, told
                    used = {render.candidate_address(one) for one in part.candidates if one.used}
                    assert used == wanted, f"{step.place}: {flow}\n{told}"
                else:
                    assert tale.reason.cause is not Cause.SERVES
                    assert tale.reason.why, told
                    assert not any(one.used for one in part.candidates), told
                checked += 1
    assert checked
