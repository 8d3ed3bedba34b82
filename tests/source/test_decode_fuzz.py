"""Whatever arrives, decoding gives an object or BadObject, and nothing hostile gets past it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.model import objects
from netagent.source import decode
from netagent.source.faults import BadObject, Remark
from netagent.source.kinds import Kind
from tests import builders

SEEDS: dict[Kind, Any] = {
    Kind.SERVICE: builders.service_manifest(
        externalIPs=["192.0.2.1"],
        loadBalancerSourceRanges=["192.0.2.0/24"],
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 1}},
        internalTrafficPolicy="Local",
        healthCheckNodePort=1,
        labels={"service.kubernetes.io/service-proxy-name": "x"},
        ingress=[{"ip": "192.0.2.1", "ipMode": "VIP"}],
    ),
    Kind.ENDPOINT_SLICE: builders.slice_manifest(
        "web", builders.endpoint_manifest(hints={"forZones": [{"name": "a"}], "forNodes": [{"name": "b"}]})
    ),
    Kind.NODE: builders.node_manifest(zone="a", pod_cidrs=["10.0.0.0/24"], taints=[{"key": "a"}]),
    Kind.SERVICE_CIDR: builders.service_cidr_manifest(),
}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-1, 70000)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["IPv4", "IPv6", "::ffff:1.2.3.4", "01.2.3.4", "None", "10.0.0.0/0", "::/0", "TCP", "a" * 300])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@st.composite
def mutated(draw: st.DrawFn, seed: Any) -> Any:
    """The seed with one or more of its values replaced or dropped."""
    copy = json.loads(json.dumps(seed))
    for _ in range(draw(st.integers(1, 3))):
        at = copy
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.booleans() | st.just(True)):
                at = at[key]
                continue
            at[key] = draw(VALUES)
            break
    return copy


def check(made: objects.Object) -> None:
    """What everybody after the decoder relies on."""
    for text in (made.name, getattr(made, "namespace", "")):
        assert text == "" or all(character in "abcdefghijklmnopqrstuvwxyz0123456789-." for character in text)
    assert made.name
    if isinstance(made, objects.Service):
        assert len({len(address) for address in made.cluster_ips}) == len(made.cluster_ips) <= 2
        assert all(1 <= port.port <= 65535 and 0 <= port.node_port <= 65535 for port in made.ports)
    if isinstance(made, objects.EndpointSlice):
        assert made.family is not None or not made.endpoints
        for endpoint in made.endpoints:
            assert made.family is not None
            assert len(endpoint.address) == made.family.address_bytes


def outcome(attempt: Callable[[], objects.Object]) -> objects.Object | BadObject:
    """What an attempt to decode comes to, fit to be trusted or to be shown."""
    try:
        made = attempt()
    except BadObject as bad:
        return bad
    check(made)
    return made


def agree(kind: Kind, value: Any) -> None:
    """JSON bytes and plain values are decoded alike."""
    data = json.dumps(value).encode()
    remarks: list[Remark] = []
    one = outcome(lambda: decode.decode(kind, data, remarks))
    other = outcome(lambda: decode.convert(kind, json.loads(data), []))
    for bad in (one, other):
        if isinstance(bad, BadObject):
            assert bad.reason
            assert str(bad).isascii()
            assert str(bad).isprintable()
    if isinstance(one, BadObject) and isinstance(other, BadObject):
        assert one.key == other.key or one.key is None  # None: not even JSON, such as NaN
    elif not isinstance(one, BadObject):
        assert one == other
    assert all(str(remark).isprintable() for remark in remarks)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(Kind)).flatmap(lambda kind: st.tuples(st.just(kind), mutated(SEEDS[kind]))))
def test_any_change_of_a_good_object_gives_an_object_or_a_bad_object(case: tuple[Kind, Any]) -> None:
    agree(*case)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(Kind)), VALUES)
def test_any_json_gives_an_object_or_a_bad_object(kind: Kind, value: Any) -> None:
    agree(kind, value)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(Kind)), st.binary(max_size=60), st.integers(0, 400))
def test_any_bytes_give_an_object_or_a_bad_object(kind: Kind, noise: bytes, at: int) -> None:
    good = builders.as_json(SEEDS[kind])
    for data in (noise, good[:at] + noise + good[at + len(noise) :], good[:at]):
        outcome(lambda data=data: decode.decode(kind, data, []))  # type: ignore[misc]


def test_the_seeds_are_good() -> None:
    for kind, seed in SEEDS.items():
        decode.decode(kind, builders.as_json(seed), [])
    assert set(SEEDS) == set(Kind)
