"""What EndpointSlices, Nodes and ServiceCIDRs say."""

from __future__ import annotations

import pytest

from netagent.model import objects
from netagent.model.addresses import Protocol
from netagent.source import decode
from netagent.source.faults import BadObject, Remark
from netagent.source.kinds import Kind
from tests import builders


def decoded_slice(manifest: builders.Manifest, remarks: list[Remark] | None = None) -> objects.EndpointSlice:
    made = decode.decode(Kind.ENDPOINT_SLICE, builders.as_json(manifest), [] if remarks is None else remarks)
    assert isinstance(made, objects.EndpointSlice)
    return made


def decoded_node(manifest: builders.Manifest, remarks: list[Remark] | None = None) -> objects.Node:
    made = decode.decode(Kind.NODE, builders.as_json(manifest), [] if remarks is None else remarks)
    assert isinstance(made, objects.Node)
    return made


def one_endpoint(**fields: object) -> objects.Endpoint:
    (endpoint,) = decoded_slice(builders.slice_manifest("web", builders.endpoint_manifest(**fields))).endpoints
    return endpoint


def test_an_ordinary_slice_is_what_the_builder_says() -> None:
    for address in ("10.180.0.1", "fd00::1"):
        assert decoded_slice(builders.slice_manifest("web", address)) == builders.endpoint_slice("web", address)


@pytest.mark.parametrize(
    ("conditions", "ready", "serving", "terminating"),
    [
        (None, True, True, False),
        ({}, True, True, False),
        ({"ready": None, "serving": None, "terminating": None}, True, True, False),
        ({"ready": False}, False, True, False),
        ({"ready": False, "serving": True, "terminating": True}, False, True, True),
        ({"ready": False, "serving": False}, False, False, False),
    ],
)
def test_absent_conditions_have_defaults(
    conditions: dict[str, object] | None, ready: bool, serving: bool, terminating: bool
) -> None:
    endpoint = one_endpoint(conditions=conditions)
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == (ready, serving, terminating)


def test_hints_and_nodes_are_kept_and_equal_ones_are_shared() -> None:
    hints = {"forZones": [{"name": "eu-1a"}, {"name": "eu-1b"}], "forNodes": [{"name": "node-1"}]}
    one, other = (one_endpoint(hints=hints, node="node-1") for _ in range(2))
    assert (one.hint_zones, one.hint_nodes, one.node) == (("eu-1a", "eu-1b"), ("node-1",), "node-1")
    assert one.node is other.node
    assert one.hint_zones is other.hint_zones
    assert one_endpoint(node=None).node is None
    assert one_endpoint(node="").node is None


def test_only_the_first_address_counts_and_an_endpoint_without_one_is_skipped() -> None:
    endpoints = [
        builders.endpoint_manifest("10.0.0.1") | {"addresses": ["10.0.0.1", "junk"]},
        builders.endpoint_manifest() | {"addresses": []},
        builders.endpoint_manifest() | {"addresses": None},
    ]
    manifest = builders.slice_manifest("web", *endpoints)
    assert decoded_slice(manifest).endpoints == (builders.endpoint("10.0.0.1"),)


def test_ports_without_name_or_number_are_left_out_with_a_remark() -> None:
    ports = [
        {"port": 80, "protocol": "TCP"},
        {"name": None, "port": 80},
        {"name": "a", "port": None},
        {"name": "b", "port": 0},
        {"name": "", "port": 81},
        {"name": "c", "port": 82, "protocol": "SCTP"},
    ]
    remarks: list[Remark] = []
    assert decoded_slice(builders.slice_manifest("web", ports=ports), remarks).ports == (
        builders.slice_port(81),
        builders.slice_port(82, name="c", protocol=Protocol.SCTP),
    )
    assert [remark.field for remark in remarks] == ["ports[0].name", "ports[1].name", "ports[2].port", "ports[3].port"]


@pytest.mark.parametrize("service", [None, ""])
def test_a_slice_without_the_service_label_has_no_owner(service: str | None) -> None:
    manifest = builders.slice_manifest(None, labels={"kubernetes.io/service-name": service} if service == "" else {})
    assert decoded_slice(manifest).service is None


def test_the_owner_is_in_the_slices_own_namespace() -> None:
    manifest = builders.slice_manifest("web", namespace="shop")
    assert decoded_slice(manifest).service == objects.ServiceName("shop", "web")


def test_the_headless_label_counts_even_when_empty() -> None:
    manifest = builders.slice_manifest(labels={"service.kubernetes.io/headless": ""})
    assert decoded_slice(manifest).headless
    assert not decoded_slice(builders.slice_manifest()).headless


def test_a_slice_of_host_names_has_no_endpoints() -> None:
    made = decoded_slice(builders.slice_manifest("web", "pod.example", addressType="FQDN"))
    assert (made.family, made.endpoints) == (None, ())


@pytest.mark.parametrize("text", ["2024-01-01T00:00:00.123456789Z", "2024-01-01T00:00:00Z"])
def test_the_trigger_time_is_kept(text: str) -> None:
    manifest = builders.slice_manifest()
    manifest["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": text}
    assert decoded_slice(manifest).trigger_time == text


@pytest.mark.parametrize("text", ["", "yesterday", "2024-99-01T00:00:00Z", "2024-01-01T00:00:00Z\n"])
def test_a_trigger_time_that_is_no_time_is_ignored(text: str) -> None:
    manifest = builders.slice_manifest()
    manifest["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": text}
    assert decoded_slice(manifest).trigger_time == ""


def endpoint(**fields: object) -> builders.Manifest:
    return {"endpoints": [builders.endpoint_manifest("10.0.0.1"), builders.endpoint_manifest(**fields)]}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (endpoint(address="fd00::1"), "endpoints[1].addresses[0]"),
        (endpoint(address="10.0.0.300"), "endpoints[1].addresses[0]"),
        (endpoint(address=""), "endpoints[1].addresses[0]"),
        (endpoint(node="Node\x1b[2J"), "endpoints[1].nodeName"),
        (endpoint(hints={"forZones": [{"name": "a\nb"}]}), "endpoints[1].hints"),
        (endpoint(hints={"forNodes": [{}]}), "endpoints[1].hints"),
        (endpoint(conditions={"ready": "yes"}), "endpoints[1].conditions.ready"),
        ({"addressType": "IPv6", **endpoint()}, "endpoints[0].addresses[0]"),
        ({"addressType": "IPv7"}, "addressType"),
        ({"addressType": None}, "addressType"),
        ({"ports": [{"name": "a", "port": 65536}]}, "ports[0].port"),
        ({"ports": [{"name": "a", "port": 80, "protocol": "ICMP"}]}, "ports[0].protocol"),
        ({"ports": [{"name": "a b", "port": 80}]}, "ports[0].name"),
        ({"endpoints": 3}, "endpoints"),
    ],
)
def test_a_bad_field_sets_the_slice_aside_and_is_named(fields: builders.Manifest, field: str) -> None:
    with pytest.raises(BadObject) as caught:
        decoded_slice(builders.slice_manifest() | fields)
    assert caught.value.field == field
    assert caught.value.key == (Kind.ENDPOINT_SLICE, ("default", "web-1"))


def test_a_mapped_endpoint_address_is_ipv4() -> None:
    manifest = builders.slice_manifest("web", "::ffff:10.0.0.1", addressType="IPv4")
    assert decoded_slice(manifest).endpoints[0].address == bytes([10, 0, 0, 1])
    with pytest.raises(BadObject, match="is not IPv6"):
        decoded_slice(manifest | {"addressType": "IPv6"})


def test_a_slice_may_have_a_long_name_and_a_service_may_not() -> None:
    assert decoded_slice(builders.slice_manifest(name="a." + "b" * 100)).name
    with pytest.raises(BadObject, match="service-name"):
        decoded_slice(builders.slice_manifest("x" * 64))


def test_a_node_has_internal_addresses_first() -> None:
    manifest = builders.node_manifest(
        zone="eu-1a",
        internal_ips=["192.0.2.1", "2001:db8::1"],
        external_ips=["203.0.113.1"],
        pod_cidrs=["10.180.0.0/24", "fd00::/64"],
        taints=[{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}],
    )
    manifest["status"]["addresses"].reverse()
    assert decoded_node(manifest) == builders.node(
        zone="eu-1a",
        addresses=["2001:db8::1", "192.0.2.1", "203.0.113.1"],
        pod_cidrs=["10.180.0.0/24", "fd00::/64"],
        taint_keys=["node.kubernetes.io/unschedulable"],
    )


def test_a_node_with_odd_entries_is_still_our_node() -> None:
    manifest = builders.node_manifest(zone="a\nb", internal_ips=["x", "192.0.2.1"], pod_cidrs=["10.0.0.0/99"])
    remarks: list[Remark] = []
    assert decoded_node(manifest, remarks) == builders.node()
    assert [remark.field for remark in remarks] == [
        "metadata.labels.topology.kubernetes.io/zone",
        "status.addresses[0].address",
        "spec.podCIDRs[0]",
    ]


def test_a_node_that_is_being_deleted() -> None:
    manifest = builders.node_manifest()
    manifest["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z"
    assert decoded_node(manifest).deleting


def test_service_cidrs() -> None:
    remarks: list[Remark] = []
    manifest = builders.service_cidr_manifest("kubernetes", "10.96.0.0/12", "fd00:1::/112", "x")
    made = decode.decode(Kind.SERVICE_CIDR, builders.as_json(manifest), remarks)
    assert made == builders.service_cidr("kubernetes", "10.96.0.0/12", "fd00:1::/112")
    assert [remark.field for remark in remarks] == ["spec.cidrs[2]"]
