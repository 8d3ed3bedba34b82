"""What a Service says, as far as a proxy cares."""

from __future__ import annotations

import pytest

from netagent.model import objects
from netagent.model.addresses import Protocol
from netagent.model.objects import ServiceType, TrafficPolicy
from netagent.source import decode
from netagent.source.faults import BadObject, Remark
from netagent.source.kinds import Kind
from tests import builders


def decoded(manifest: builders.Manifest, remarks: list[Remark] | None = None) -> objects.Service:
    service = decode.decode(Kind.SERVICE, builders.as_json(manifest), [] if remarks is None else remarks)
    assert isinstance(service, objects.Service)
    return service


def refused(manifest: builders.Manifest) -> BadObject:
    with pytest.raises(BadObject) as caught:
        decoded(manifest)
    return caught.value


def test_an_ordinary_service_is_what_the_builder_says() -> None:
    assert decoded(builders.service_manifest()) == builders.service()


def test_a_service_with_everything() -> None:
    manifest = builders.service_manifest(
        "dns",
        namespace="kube-system",
        clusterIPs=["10.96.0.10", "fd00::a"],
        ipFamilies=["IPv4", "IPv6"],
        type="LoadBalancer",
        ports=[
            builders.port_manifest(53, name="dns", protocol="UDP", nodePort=30053),
            builders.port_manifest(53, name="dns-tcp", nodePort=30053),
        ],
        externalIPs=["192.0.2.9", "192.0.2.9", "2001:db8::9"],
        loadBalancerSourceRanges=["198.51.100.7/24", " 2001:db8::/32 "],
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
        internalTrafficPolicy="Local",
        externalTrafficPolicy="Local",
        healthCheckNodePort=32000,
        ingress=[{"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb.example"}],
    )
    assert decoded(manifest) == builders.service(
        "dns",
        namespace="kube-system",
        cluster_ips=["10.96.0.10", "fd00::a"],
        type=ServiceType.LOAD_BALANCER,
        ports=[
            builders.port(53, name="dns", protocol=Protocol.UDP, node_port=30053),
            builders.port(53, name="dns-tcp", node_port=30053),
        ],
        external_ips=["192.0.2.9", "2001:db8::9"],
        vips=["203.0.113.1"],
        source_ranges=["198.51.100.0/24", "2001:db8::/32"],
        internal_policy=TrafficPolicy.LOCAL,
        external_policy=TrafficPolicy.LOCAL,
        affinity_seconds=60,
        health_check_node_port=32000,
    )


def test_what_no_proxy_reads_makes_no_difference() -> None:
    manifest = builders.service_manifest(
        selector={"app": "web"}, trafficDistribution="PreferClose", publishNotReadyAddresses=True, loadBalancerIP=7
    )
    manifest["metadata"]["annotations"] = {"note": "x" * 2**20}
    manifest["spec"]["ports"][0]["targetPort"] = "http"
    assert decoded(manifest) == builders.service()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"clusterIP": "None", "clusterIPs": ["None"]}, []),
        ({"clusterIP": "", "clusterIPs": []}, []),
        ({"type": "ExternalName"}, []),
        ({"ipFamilies": []}, ["10.96.0.1"]),
        ({"ipFamilies": ["IPv6", "IPv4"], "clusterIPs": ["fd00::1", "10.96.0.1"]}, ["fd00::1", "10.96.0.1"]),
        ({"ipFamilies": ["IPv4", "IPv6"]}, ["10.96.0.1"]),
        ({"clusterIPs": None}, ["10.96.0.1"]),
        ({"clusterIP": None}, ["10.96.0.1"]),
        ({"clusterIP": "010.096.0.1", "clusterIPs": ["010.096.0.1"]}, ["10.96.0.1"]),
        ({"clusterIP": " 10.96.0.1", "clusterIPs": ["::ffff:10.96.0.1"]}, ["10.96.0.1"]),
    ],
)
def test_cluster_ips(spec: dict[str, object], expected: list[str]) -> None:
    assert decoded(builders.service_manifest(**spec)).cluster_ips == builders.packed(*expected)


def test_absent_fields_have_the_defaults_of_the_api_server() -> None:
    manifest = {"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}
    assert decoded(manifest) == builders.service(created="")


def test_null_is_absent() -> None:
    fields = ("type", "ports", "externalIPs", "loadBalancerSourceRanges", "sessionAffinity", "internalTrafficPolicy")
    manifest = builders.service_manifest() | {"status": {"loadBalancer": {"ingress": None}}}
    manifest["spec"] |= dict.fromkeys(fields)
    assert decoded(manifest) == builders.service(ports=[])


def test_affinity_without_its_config_lasts_three_hours() -> None:
    assert decoded(builders.service_manifest(sessionAffinity="ClientIP")).affinity_seconds == 10800


def test_the_proxy_label_counts_even_when_empty() -> None:
    label = "service.kubernetes.io/service-proxy-name"
    assert decoded(builders.service_manifest(labels={label: ""})).proxy_name == ""
    assert decoded(builders.service_manifest(labels={label: "cilium"})).proxy_name == "cilium"
    assert decoded(builders.service_manifest(labels={"app": "web"})).proxy_name is None


def test_creation_times_compare_as_text() -> None:
    assert decoded(builders.service_manifest(created="2024-01-01T02:00:00.5+02:00")).created == "2024-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["", "  ", "nonsense", "192.0.2.1"], ["192.0.2.1"]),
        (["fe80::1%eth0", "192.0.02.1", "::ffff:192.0.2.1"], ["192.0.2.1"]),
        (["192.0.2.1\x00"], []),
    ],
)
def test_bad_external_ips_are_left_out_with_a_remark(texts: list[str], expected: list[str]) -> None:
    remarks: list[Remark] = []
    service = decoded(builders.service_manifest(externalIPs=texts), remarks)
    assert service.external_ips == builders.packed(*expected)
    assert remarks
    assert all(remark.field.startswith("spec.externalIPs[") and remark.name == "web" for remark in remarks)


@pytest.mark.parametrize("spec", [{"type": "Nonsense"}, {"externalIPs": 7}], ids=["bad value", "bad shape"])
@pytest.mark.parametrize(("uid", "expected"), [("u-1", "u-1"), (None, ""), (7, ""), ("a b\x00", ""), ("u" * 129, "")])
def test_a_bad_service_tells_its_uid_if_it_has_one(spec: dict[str, object], uid: object, expected: str) -> None:
    """For its Event; in text and in what YAML gives."""
    manifest = builders.service_manifest(**spec)
    manifest["metadata"]["uid"] = uid
    for decode_it in (
        lambda: decode.decode(Kind.SERVICE, builders.as_json(manifest), []),
        lambda: decode.convert(Kind.SERVICE, manifest, []),
    ):
        with pytest.raises(BadObject) as caught:
            decode_it()
        assert (caught.value.name, caught.value.uid) == ("web", expected)


def test_a_remark_reads_as_a_sentence() -> None:
    remarks: list[Remark] = []
    decoded(builders.service_manifest(externalIPs=["nonsense"]), remarks)
    assert str(remarks[0]) == "Service default/web: spec.externalIPs[0]: 'nonsense' is not an IP address; left out"


def test_bad_ingress_entries_are_left_out_with_a_remark() -> None:
    remarks: list[Remark] = []
    ingress = [{"ip": "x"}, {"ip": "203.0.113.1", "ipMode": "vip"}, {"ip": "203.0.113.2", "ipMode": "VIP"}]
    assert decoded(builders.service_manifest(ingress=ingress), remarks).vips == builders.packed("203.0.113.2")
    assert [remark.field for remark in remarks] == [
        "status.loadBalancer.ingress[0].ip",
        "status.loadBalancer.ingress[1].ipMode",
    ]


@pytest.mark.parametrize(
    ("texts", "kept", "closed", "remarked"),
    [
        ([], [], False, 0),
        (["192.0.2.0/24", "192.0.2.9/24"], ["192.0.2.0/24"], False, 0),
        (["192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32"], ["2001:db8::/32"], False, 0),
        (["0.0.0.0/0"], [], False, 0),
        (["192.0.2.0/24", "oops"], ["192.0.2.0/24"], False, 1),
        (["oops", "192.0.2.1"], [], True, 3),
        ([""], [], True, 2),
        (["2001:db8::/32"], ["2001:db8::/32"], False, 1),
    ],
)
def test_source_ranges(texts: list[str], kept: list[str], closed: bool, remarked: int) -> None:
    remarks: list[Remark] = []
    manifest = builders.service_manifest(loadBalancerSourceRanges=texts, ingress=[{"ip": "203.0.113.1"}])
    service = decoded(manifest, remarks)
    assert service.source_ranges == builders.prefixes(*kept)
    assert service.source_ranges_closed is closed
    assert len(remarks) == remarked


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"ports": [{"port": 0}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 80}, {"name": "b", "port": 70000}]}, "spec.ports[1].port"),
        ({"ports": [{"name": "a"}]}, "spec.ports[0].port"),
        ({"ports": [{"port": -1}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 10**30}]}, "spec.ports[0].port"),
        ({"ports": [{"port": "80"}]}, "spec.ports[0].port"),
        ({"ports": [{"port": True}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 80, "nodePort": 65536}]}, "spec.ports[0].nodePort"),
        ({"ports": [{"port": 80, "protocol": "tcp"}]}, "spec.ports[0].protocol"),
        ({"ports": [{"port": 80, "name": 'a"; flush ruleset'}]}, "spec.ports[0].name"),
        ({"ports": [{"port": 80, "name": "a\n"}]}, "spec.ports[0].name"),
        ({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}, "spec.ports[1].port"),
        ({"ports": [{"port": 80}, {"port": 81}]}, "spec.ports[1].name"),
        ({"ports": {}}, "spec.ports"),
        ({"type": "Loadbalancer"}, "spec.type"),
        ({"internalTrafficPolicy": "Remote"}, "spec.internalTrafficPolicy"),
        ({"externalTrafficPolicy": "local"}, "spec.externalTrafficPolicy"),
        ({"sessionAffinity": "Cookie"}, "spec.sessionAffinity"),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        ({"clusterIP": "10.96.0.256", "clusterIPs": None}, "spec.clusterIP"),
        ({"clusterIPs": ["10.96.0.x"]}, "spec.clusterIPs[0]"),
        ({"clusterIPs": ["fd00::1"]}, "spec.clusterIPs[0]"),
        ({"ipFamilies": ["IPv5"]}, "spec.ipFamilies[0]"),
        ({"healthCheckNodePort": 99999}, "spec.healthCheckNodePort"),
        ({"externalIPs": [1]}, "spec.externalIPs[0]"),
    ],
)
def test_a_bad_field_sets_the_service_aside_and_is_named(spec: dict[str, object], field: str) -> None:
    manifest = builders.service_manifest()
    manifest["spec"] |= spec
    bad = refused(manifest)
    assert (bad.kind, bad.namespace, bad.name, bad.field) == (Kind.SERVICE, "default", "web", field)
    assert bad.key == (Kind.SERVICE, ("default", "web"))


def test_a_bad_object_reads_as_a_sentence() -> None:
    bad = refused(builders.service_manifest(ports=[{"port": 70000}]))
    assert str(bad) == "Service default/web: spec.ports[0].port: 70000 is not a port (1 to 65535)"
    bad = refused(builders.service_manifest(ports=[{"port": "80"}]))
    assert str(bad) == "Service default/web: spec.ports[0].port: expected int | null, got str"


@pytest.mark.parametrize(
    "name", ["", None, "Web", "web\n", "w" * 64, "a.b", "-a", "a/b", "\x1b[31m", "we\u202eb", "\u0661", 'x"; drop']
)
def test_a_name_that_is_no_name_gets_no_further_than_the_reason(name: str | None) -> None:
    manifest = builders.service_manifest()
    manifest["metadata"]["name"] = name
    bad = refused(manifest)
    assert bad.field == "metadata.name"
    assert str(bad).isascii()
    assert str(bad).isprintable()


@pytest.mark.parametrize("namespace", ["a/b", "A", "a.b", "a\x00", 7])
def test_a_namespace_that_is_no_name_hides_the_name_too(namespace: object) -> None:
    manifest = builders.service_manifest()
    manifest["metadata"]["namespace"] = namespace
    bad = refused(manifest)
    assert (bad.field, bad.namespace, bad.name, bad.key) == ("metadata.namespace", "", "", None)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"3", b"\xff", b"{}", b'{"metadata":' * 5000, b'{"metadata":{"name":"\xff"}}']
)
def test_bytes_that_are_no_service_are_refused_politely(data: bytes) -> None:
    with pytest.raises(BadObject):
        decode.decode(Kind.SERVICE, data, [])
