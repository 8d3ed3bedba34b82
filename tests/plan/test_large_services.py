"""The endpoint lists of a Service of many slices: always those of `endpoint_lists`, at the cost of what changed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.model import objects
from netagent.model.addresses import Family
from netagent.plan import endpoints, large_services
from tests.builders import endpoint, endpoint_slice, port, slice_port

PORT = port()
OTHER_PORT = port(name="other")
_NAMES = [f"web-{number}" for number in range(5)]


def ask(
    large: large_services.LargeService,
    slices: list[objects.EndpointSlice],
    *,
    family: Family = Family.IPV4,
    node: str = "node-1",
    asked: objects.ServicePort = PORT,
) -> endpoints.EndpointLists:
    """What a LargeService finds, which has to be what is found without one."""
    found = large.endpoint_lists(asked, slices, family=family, node=node, zone="zone-a")
    assert found == endpoints.endpoint_lists(asked, slices, family=family, node=node, zone="zone-a")
    return found


def plain_slice(number: int, *hosts: int) -> objects.EndpointSlice:
    return endpoint_slice(
        "web",
        *(endpoint(f"10.180.{number}.{host}", node=f"node-{host % 3}") for host in hosts),
        name=_NAMES[number],
    )


# Mostly plain, so that the short way is taken often enough; sometimes anything.
_hosts = st.integers(1, 6).map(lambda last: bytes([10, 180, 0, last]))
_plain = st.builds(objects.Endpoint, address=_hosts, node=st.sampled_from(["node-1", "node-2", None]))
_any = st.builds(
    objects.Endpoint,
    address=_hosts,
    ready=st.booleans(),
    serving=st.booleans(),
    terminating=st.booleans(),
    node=st.sampled_from(["node-1", "node-2", None]),
    hint_zones=st.sampled_from([(), ("zone-a",), ("zone-b",)]),
    hint_nodes=st.sampled_from([(), ("node-1",), ("node-2",)]),
)
_ports = st.sampled_from(
    [(slice_port(),), (slice_port(), slice_port(name="other", number=9090)), (slice_port(number=8081),), ()]
)


@st.composite
def _slices(draw: st.DrawFn, name: str) -> objects.EndpointSlice:
    found = draw(st.lists(draw(st.sampled_from([_plain, _plain, _plain, _any])), max_size=3))
    changed: dict[str, Any] = {"name": name, "ports": draw(_ports)}
    if draw(st.integers(0, 9)) == 0:
        changed["headless"] = True
    return endpoint_slice("web", *found, **changed)


@given(st.data())
def test_whatever_happens_the_lists_are_those_of_all_slices(data: st.DataObject) -> None:
    large = large_services.LargeService()
    current: dict[str, objects.EndpointSlice] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        for name in data.draw(st.sets(st.sampled_from(_NAMES), max_size=2)):
            if name in current and data.draw(st.booleans()):
                del current[name]
            else:
                current[name] = data.draw(_slices(name))
        slices = [current[name] for name in sorted(current)]
        for asked in (PORT, OTHER_PORT):
            ask(large, slices, node=data.draw(st.sampled_from(["node-1", "node-2"])), asked=asked)
        assert ask(large, slices, family=Family.IPV6) == endpoints.EndpointLists()


def test_only_slices_that_are_other_objects_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = [plain_slice(number, 1, 2, 3) for number in range(5)]
    large = large_services.LargeService()
    ask(large, slices)
    looked_at: list[str] = []
    real = endpoints.port_numbers

    def counted(asked: objects.ServicePort, origin: objects.EndpointSlice) -> list[bytes]:
        looked_at.append(origin.name)
        return real(asked, origin)

    monkeypatch.setattr(endpoints, "port_numbers", counted)
    slices[2] = plain_slice(2, 2, 3, 4)
    large.endpoint_lists(PORT, slices, family=Family.IPV4, node="node-1", zone="zone-a")
    assert looked_at == [_NAMES[2]]


def test_an_endpoint_may_move_to_another_slice() -> None:
    large = large_services.LargeService()
    ask(large, [plain_slice(0, 1, 2), plain_slice(1, 1)])
    moved = endpoint_slice("web", endpoint("10.180.1.1"), endpoint("10.180.0.2"), name=_NAMES[1])
    assert len(ask(large, [plain_slice(0, 1), moved]).cluster) == 3


def test_an_endpoint_in_two_slices_counts_once_and_stays_when_one_of_them_goes() -> None:
    large = large_services.LargeService()
    both = endpoint_slice("web", endpoint("10.180.0.1", node="node-1"), name=_NAMES[1])
    ask(large, [plain_slice(0, 1, 2)])
    assert len(ask(large, [plain_slice(0, 1, 2), both]).cluster) == 2
    assert len(ask(large, [plain_slice(0, 2), both]).cluster) == 2
    assert len(ask(large, [plain_slice(0, 2)]).cluster) == 1


def test_questions_of_the_past_are_forgotten() -> None:
    large = large_services.LargeService()
    for number in range(20):
        ask(large, [plain_slice(0, 1)], node=f"node-{number}")
    assert len(large._merged) == 1
