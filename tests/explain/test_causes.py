"""The true cause is named, in words that need no knowledge of netfilter, with what to change."""

from __future__ import annotations

from typing import Any

import pytest

from netagent import errors
from netagent.explain.story import Cause, Fate
from netagent.explain.world import SetAside
from netagent.model.addresses import Family, Protocol
from netagent.model.objects import ServiceType, TrafficPolicy
from tests import builders
from tests.explain.scenes import reasons, shares, story_of, text_of, world_of

POD = "pod:10.180.0.77"
OUTSIDE = "outside:203.0.113.9"
JARGON = ("chain", "verdict", "DNAT", "dnat", "nftables table", "prerouting", "conntrack", "netfilter")


def tale(told: Any) -> Any:
    (part,) = told.parts
    (only,) = part.tales
    return only


def explained(told: Any, cause: Cause, fate: Fate | None, *words: str) -> None:
    """The one cause is this, the client fares so, and the text has these words, a remedy, and no jargon."""
    reason = told.reason or next((part.reason for part in told.parts if part.reason), None) or tale(told).reason
    text = text_of(told)
    assert reason.cause is cause, text
    if fate:
        assert tale(told).fate is fate, text
    for word in words:
        assert word in text, text
    assert f"[{cause}]" in text, text
    assert reason.change, text
    for word in JARGON:
        assert word not in text, text


# Served -----------------------------------------------------------------------------------------------------------


def test_a_served_connection_names_service_endpoints_chances_and_the_address_they_see() -> None:
    seen = world_of(
        builders.service(ports=[builders.port(80, name="http")]),
        builders.endpoint_slice("web", "10.180.0.1", "10.180.0.2", ports=[builders.slice_port(8080, name="http")]),
    )
    told = story_of(seen, "10.96.0.1:80", POD)
    assert shares(told) == {"10.180.0.1:8080": "1/2", "10.180.0.2:8080": "1/2"}
    text = text_of(told)
    for words in ("cluster IP of Service default/web, port http", "SERVED", "the client's own address"):
        assert words in text
    assert "this node's address instead of the client's" in text_of(story_of(seen, "10.96.0.1:80", OUTSIDE))


def test_clients_that_fare_alike_are_told_of_together() -> None:
    seen = world_of(builders.service(), builders.endpoint_slice("web", "10.180.0.1"), cluster_cidrs=None)
    (part,) = story_of(seen, "default/web").parts
    (only,) = part.tales
    assert [source.kind.value for source in only.sources] == ["pod", "node", "outside"]
    assert "cannot tell pods from others" in text_of(story_of(seen, "web"))


def test_each_endpoint_that_is_not_used_has_its_reason() -> None:
    ready = builders.endpoint("10.180.0.1", zones=["a"])
    elsewhere = builders.endpoint("10.180.0.2", node="node-2", zones=["b"])
    seen = world_of(
        builders.service(ports=[builders.port(80, name="http")]),
        builders.endpoint_slice(
            "web",
            ready,
            elsewhere,
            builders.endpoint("10.180.0.3", ready=False),
            builders.draining_endpoint("10.180.0.4"),
            builders.endpoint("10.180.0.5", ready=False, serving=False, terminating=True),
            ports=[builders.slice_port(8080, name="http")],
        ),
        builders.endpoint_slice(
            "web",
            builders.endpoint("10.180.0.1", ready=False),
            name="web-2",
            ports=[builders.slice_port(8080, name="http")],
        ),
        builders.endpoint_slice("web", "10.180.0.9", name="web-3", ports=[builders.slice_port(8080, name="admin")]),
        builders.endpoint_slice("web", "fd00::9", name="web-4", ports=[builders.slice_port(8080, name="http")]),
        node=builders.node(zone="a"),
    )
    told = story_of(seen, "10.96.0.1:80", POD)
    assert shares(told) == {"10.180.0.1:8080": "1"}
    (part,) = told.parts
    found = [(str(one.slice), one.reason) for one in part.candidates]
    assert ("web-1", "ready, and reserved for zone a by topology hints") in found
    assert ("web-1", "ready, but topology hints reserve it for zone b; this node is in zone a") in found
    assert ("web-1", "not ready") in found
    assert ("web-1", "terminating; it would be used only if no endpoint were ready") in found
    assert ("web-1", "terminating, and no longer serving") in found
    assert ("web-2", "listed more than once; the entry that counts says ready") in found
    assert any(name == "web-3" and '"admin"/TCP' in reason and '"http"/TCP' in reason for name, reason in found)
    assert "1 endpoints of the other IP family are not listed" in part.notes


def test_a_missing_zone_label_or_hint_is_named_as_what_switches_topology_off() -> None:
    hinted = [builders.endpoint("10.180.0.1", zones=["a"]), builders.endpoint("10.180.0.2", zones=["b"])]
    seen = world_of(builders.service(), builders.endpoint_slice("web", *hinted))
    assert "this node has no zone (label topology.kubernetes.io/zone)" in text_of(story_of(seen, "10.96.0.1:80", POD))
    seen = world_of(
        builders.service(),
        builders.endpoint_slice("web", *hinted, builders.endpoint("10.180.0.3")),
        node=builders.node(zone="a"),
    )
    told = story_of(seen, "10.96.0.1:80", POD)
    assert "10.180.0.3:8080 has no hint for a zone" in text_of(told)
    assert len(shares(told)) == 3


def test_draining_endpoints_that_serve_as_the_last_are_told() -> None:
    seen = world_of(builders.service(), builders.endpoint_slice("web", builders.draining_endpoint("10.180.0.1")))
    told = story_of(seen, "10.96.0.1:80", POD)
    assert tale(told).fate is Fate.SERVED
    assert "no endpoint is ready" in text_of(told)
    assert reasons(told) == {"10.180.0.1:8080": "terminating, but still serving: used because no endpoint is ready"}


def test_a_client_that_is_an_endpoint_learns_of_hairpin() -> None:
    seen = world_of(builders.service(), builders.endpoint_slice("web", "10.180.0.1", "10.180.0.2"))
    text = text_of(story_of(seen, "10.96.0.1:80", "pod:10.180.0.1"))
    assert "the endpoint chosen is the client itself (10.180.0.1:8080)" in text
    assert "(hairpin)" in text


def test_affinity_and_masquerade_all_are_told() -> None:
    seen = world_of(
        builders.service(affinity_seconds=7200),
        builders.endpoint_slice("web", "10.180.0.1"),
        masquerade_all=True,
    )
    text = text_of(story_of(seen, "10.96.0.1:80", POD))
    assert "session affinity: a client address keeps its endpoint until 2 h after" in text
    assert "the setting masqueradeAll asks for it" in text


def test_a_pod_outside_the_pod_network_is_said_to_count_as_outside() -> None:
    seen = world_of(builders.service(), builders.endpoint_slice("web", "10.180.0.1"))
    text = text_of(story_of(seen, "10.96.0.1:80", "pod:10.7.0.1"))
    assert "10.7.0.1 is not in 10.180.0.0/16, by which this node tells pods from others" in text


@pytest.mark.parametrize("prefix", ["veth", "eth", "a-name_of.15-by"])
def test_pods_are_told_by_their_interfaces_whatever_these_are_called(prefix: str) -> None:
    seen = world_of(
        builders.service(),
        builders.endpoint_slice("web", "10.180.0.1"),
        detect_local_mode="InterfaceNamePrefix",
        interface_name_prefix=prefix,
    )
    pod, outside = (text_of(story_of(seen, "10.96.0.1:80", client)) for client in (POD, OUTSIDE))
    assert f"the client is one of the pods that this node tells by their interfaces, {prefix}..." in pod
    assert "the client's own address" in pod
    assert "this node's address instead of the client's" in outside


# No endpoint ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [(), (builders.endpoint_slice("web"),)], ids=["no slice", "an empty slice"])
def test_a_wrong_selector_is_no_endpoints_and_the_selector_is_shown_if_known(slices: tuple[Any, ...]) -> None:
    manifest = builders.service_manifest(selector={"app": "wbe"})
    seen = world_of(builders.service(), *slices, manifests=[manifest])
    told = story_of(seen, "default/web")
    explained(
        told, Cause.NO_ENDPOINTS, Fate.REFUSED, "its selector matches no ready pod", "app=wbe", "kubectl -n default"
    )
    unread = story_of(world_of(builders.service(), *slices), "default/web")
    explained(
        unread, Cause.NO_ENDPOINTS, Fate.REFUSED, "its selector matches no ready pod", "jsonpath='{.spec.selector}'"
    )


def test_a_service_without_selector_is_not_blamed_on_one() -> None:
    seen = world_of(builders.service(), manifests=[builders.service_manifest()])
    told = story_of(seen, "web")
    explained(told, Cause.NO_ENDPOINTS, Fate.REFUSED, "it has no selector")
    assert "matches no ready pod" not in text_of(told)


def test_a_slice_with_a_wrong_or_missing_label_is_pointed_out() -> None:
    stray = builders.endpoint_slice("wbe", "10.180.0.1", name="web-abc")
    text = text_of(story_of(world_of(builders.service(), stray), "web"))
    assert "EndpointSlice default/web-abc may be meant for it" in text
    assert "names wbe, which is no Service; it should name web" in text
    orphan = builders.endpoint_slice(None, "10.180.0.1", name="web-abc")
    assert "service-name is missing" in text_of(story_of(world_of(builders.service(), orphan), "web"))


def test_a_service_of_several_addresses_begins_with_how_clients_fare_in_short() -> None:
    service = builders.service(type=ServiceType.LOAD_BALANCER, vips=["198.18.0.1"], source_ranges=["198.51.100.0/24"])
    seen = world_of(service, builders.endpoint_slice("web", "10.180.0.1"))
    assert text_of(story_of(seen, "web")).splitlines()[1:3] == [
        "  served: 10.96.0.1:80/tcp",
        "  dropped for some clients (source-not-allowed): 198.18.0.1:80/tcp",
    ]


def test_all_endpoints_terminating() -> None:
    gone = [builders.endpoint(f"10.180.0.{n}", ready=False, serving=False, terminating=True) for n in (1, 2)]
    seen = world_of(builders.service(), builders.endpoint_slice("web", *gone))
    explained(story_of(seen, "web"), Cause.TERMINATING, Fate.REFUSED, "all 2 endpoints are terminating")


def test_no_endpoint_is_ready() -> None:
    unready = [builders.endpoint(f"10.180.0.{n}", ready=False) for n in (1, 2)]
    seen = world_of(builders.service(), builders.endpoint_slice("web", *unready))
    explained(story_of(seen, "web"), Cause.NOT_READY, Fate.REFUSED, "all 2 endpoints are not ready", "readiness probe")


@pytest.mark.parametrize(
    ("port", "slice_port", "words"),
    [
        (builders.port(80, name="http"), builders.slice_port(8080, name="web"), 'the Service port is "http"/TCP'),
        (
            builders.port(53, name="dns", protocol=Protocol.UDP),
            builders.slice_port(53, name="dns"),
            'has "dns"/TCP (number 53)',
        ),
    ],
    ids=["name", "protocol"],
)
def test_a_slice_port_of_another_name_or_protocol(port: Any, slice_port: Any, words: str) -> None:
    seen = world_of(builders.service(ports=[port]), builders.endpoint_slice("web", "10.180.0.1", ports=[slice_port]))
    explained(story_of(seen, "web"), Cause.PORT_MISMATCH, Fate.REFUSED, words, "web-1")


def test_endpoints_of_the_other_family_only() -> None:
    seen = world_of(builders.service(), builders.endpoint_slice("web", "fd00::1", family=Family.IPV6))
    explained(story_of(seen, "web"), Cause.OTHER_FAMILY, Fate.REFUSED, "none of IPv4")


def test_a_slice_that_is_set_aside_is_named_with_its_field() -> None:
    aside = SetAside("EndpointSlice", "default", "web-abc", "endpoints[0].addresses[0]", "'x' is not an IP address")
    seen = world_of(builders.service(), set_aside=[aside])
    explained(story_of(seen, "web"), Cause.SET_ASIDE, Fate.REFUSED, "web-abc", "endpoints[0].addresses[0]")


# Policies ---------------------------------------------------------------------------------------------------------


def test_internal_policy_local_without_local_endpoint() -> None:
    seen = world_of(
        builders.service(internal_policy=TrafficPolicy.LOCAL),
        builders.endpoint_slice("web", builders.endpoint("10.180.1.1", node="node-2")),
    )
    told = story_of(seen, "web")
    explained(
        told, Cause.INTERNAL_LOCAL, Fate.DROPPED, "internal policy Local", "node-2", "internalTrafficPolicy: Cluster"
    )
    assert "on another node: policy Local uses endpoints of this node (node-1) alone" in text_of(told)


def test_a_node_of_another_name_is_suspected_where_nothing_is_local() -> None:
    seen = world_of(
        builders.service(internal_policy=TrafficPolicy.LOCAL),
        builders.endpoint_slice("web", builders.endpoint("10.180.1.1", node="node-1.example.com")),
        node=None,
    )
    told = story_of(seen, "web")
    explained(
        told, Cause.INTERNAL_LOCAL, Fate.DROPPED, "no Node object node-1 is known: is that the name of this node?"
    )


def test_external_policy_local_without_local_endpoint() -> None:
    seen = world_of(
        builders.service(
            type=ServiceType.LOAD_BALANCER,
            vips=["198.18.0.1"],
            external_policy=TrafficPolicy.LOCAL,
            health_check_node_port=32000,
        ),
        builders.endpoint_slice("web", builders.endpoint("10.180.1.1", node="node-2")),
    )
    told = story_of(seen, "198.18.0.1:80", OUTSIDE)
    explained(told, Cause.EXTERNAL_LOCAL, Fate.DROPPED, "external policy Local", "node-2", "port 32000")
    assert shares(story_of(seen, "198.18.0.1:80", POD)) == {"10.180.1.1:8080": "1"}


def test_a_source_range_that_excludes_the_client() -> None:
    service = builders.service(type=ServiceType.LOAD_BALANCER, vips=["198.18.0.1"], source_ranges=["198.51.100.0/24"])
    seen = world_of(service, builders.endpoint_slice("web", "10.180.0.1"))
    told = story_of(seen, "198.18.0.1:80", OUTSIDE)
    explained(told, Cause.SOURCE_RANGES, Fate.DROPPED, "198.51.100.0/24", "loadBalancerSourceRanges")
    assert "ready, but the client is not let in" in text_of(told)
    assert tale(story_of(seen, "198.18.0.1:80", "outside:198.51.100.7")).fate is Fate.SERVED
    by_name = text_of(story_of(seen, "web"))
    assert "outside (198.51.100.1)" in by_name  # one of those who are let in, and one who is not
    assert "outside (203.0.113.10)" in by_name


def test_source_ranges_that_nobody_can_read_let_nobody_in() -> None:
    service = builders.service(type=ServiceType.LOAD_BALANCER, vips=["198.18.0.1"], source_ranges_closed=True)
    seen = world_of(service, builders.endpoint_slice("web", "10.180.0.1"))
    explained(story_of(seen, "198.18.0.1:80", OUTSIDE), Cause.SOURCE_RANGES, Fate.DROPPED, "nobody gets in")


# Ports and addresses ------------------------------------------------------------------------------------------------


def simple(**changes: Any) -> Any:
    service = builders.service(
        ports=[builders.port(80, name="http", node_port=30080), builders.port(443, name="https")],
        type=ServiceType.NODE_PORT,
    )
    ports = [builders.slice_port(8080, name="http"), builders.slice_port(8443, name="https")]
    return world_of(service, builders.endpoint_slice("web", "10.180.0.1", ports=ports), **changes)


def test_a_port_that_the_service_does_not_define_lists_those_that_it_does() -> None:
    explained(
        story_of(simple(), "10.96.0.1:81", POD), Cause.PORT_UNDEFINED, Fate.REFUSED, "80/tcp (http), 443/tcp (https)"
    )
    explained(story_of(simple(), "web:81"), Cause.PORT_UNDEFINED, None, "80/tcp (http), 443/tcp (https)")
    explained(story_of(simple(), "web:grpc"), Cause.PORT_UNDEFINED, None, "no port grpc")


def test_a_target_port_or_node_port_dialled_on_the_cluster_ip_is_recognized() -> None:
    assert "8080 is the port of its endpoints (targetPort); clients of the Service dial 80" in text_of(
        story_of(simple(), "10.96.0.1:8080", POD)
    )
    assert "30080 is the node port of its port 80" in text_of(story_of(simple(), "10.96.0.1:30080", POD))


def test_a_wrong_protocol() -> None:
    explained(story_of(simple(), "10.96.0.1:80/udp", POD), Cause.WRONG_PROTOCOL, Fate.REFUSED, "for TCP only")
    explained(story_of(simple(), "web:http/udp"), Cause.WRONG_PROTOCOL, None, "for TCP only")
    explained(story_of(simple(), "192.0.2.1:30080/udp", OUTSIDE), Cause.WRONG_PROTOCOL, Fate.UNHANDLED, "for TCP only")


def test_an_address_of_the_range_that_no_service_has() -> None:
    explained(
        story_of(simple(), "10.96.0.99:80", POD),
        Cause.UNALLOCATED,
        Fate.DROPPED,
        "no Service that is known here has it",
    )


def test_an_address_of_nobody_is_unknown() -> None:
    told = story_of(simple(), "172.31.0.1:80", POD)
    explained(told, Cause.NOBODYS_ADDRESS, Fate.UNHANDLED, "no Service that is known here has the address")
    assert not told.known


def test_the_address_of_a_pod_is_recognized() -> None:
    told = story_of(simple(), "10.180.0.1:8080", POD)
    explained(told, Cause.ENDPOINT_ITSELF, Fate.UNHANDLED, "endpoint of default/web")
    assert told.known


def test_node_ports_answer_on_the_nodes_own_address_and_others_say_why_not() -> None:
    assert shares(story_of(simple(), "192.0.2.1:30080", OUTSIDE)) == {"10.180.0.1:8080": "1"}
    told = story_of(simple(), "192.0.2.77:30080", OUTSIDE)
    explained(told, Cause.NODE_PORT_ADDRESS, Fate.UNHANDLED, "nodePortAddresses is primary", "192.0.2.1")
    wide = story_of(simple(node_port_addresses=["10.0.0.0/8"]), "192.0.2.1:30080", OUTSIDE)
    explained(wide, Cause.NODE_PORT_ADDRESS, Fate.UNHANDLED, "in 10.0.0.0/8 accept them")
    loopback = story_of(simple(), "127.0.0.1:30080", "node")
    explained(loopback, Cause.NODE_PORT_LOOPBACK, Fate.UNHANDLED, "never in mode nftables")
    other = story_of(simple(), "192.0.2.1:30099", OUTSIDE)
    explained(other, Cause.NOT_A_NODE_PORT, Fate.UNHANDLED, "no Service has the node port 30099")
    own = text_of(story_of(simple(), "192.0.2.1:80", OUTSIDE))
    assert "80 is the Service port of default/web (node port 30080)" in own


def test_node_ports_answer_on_loopback_in_mode_iptables() -> None:
    seen = simple(mode="iptables", node_port_addresses=["0.0.0.0/0"])
    told = story_of(seen, "127.0.0.1:30080", "node")
    assert shares(told) == {"10.180.0.1:8080": "1"}
    explained(
        story_of(simple(mode="iptables", node_port_addresses=["192.0.2.0/24"]), "127.0.0.1:30080", "node"),
        Cause.NODE_PORT_LOOPBACK,
        Fate.UNHANDLED,
        "if nodePortAddresses includes 127.0.0.1",
    )


def test_without_the_node_object_its_node_ports_cannot_be_placed() -> None:
    told = story_of(simple(node=None), "web:http")
    explained(told, Cause.NODE_PORT_ADDRESS, None, "Node object node-1 is unknown")


# Services that have nothing here --------------------------------------------------------------------------------------


def test_an_unknown_service_comes_with_those_that_may_be_meant() -> None:
    seen = world_of(builders.service("web"), builders.service("api", namespace="shop", cluster_ips=["10.96.0.2"]))
    told = story_of(seen, "default/wbe")
    explained(told, Cause.UNKNOWN_SERVICE, None, "did you mean default/web?")
    assert not told.known
    assert "another namespace: shop/api" in text_of(story_of(seen, "api"))


def test_a_service_that_is_set_aside_is_named_with_field_and_reason() -> None:
    aside = SetAside("Service", "default", "web", "spec.clusterIP", "'10.96.0.300' is not an IP address", "web.yaml")
    told = story_of(world_of(set_aside=[aside]), "web")
    explained(told, Cause.SET_ASIDE, None, "spec.clusterIP", "10.96.0.300")
    assert told.known


def test_an_address_that_a_service_that_is_set_aside_asks_for() -> None:
    manifest = builders.service_manifest(cluster_ip="10.96.0.7", externalTrafficPolicy="Nearby")
    aside = SetAside("Service", "default", "web", "spec.externalTrafficPolicy", "'Nearby' is not one of Cluster, Local")
    seen = world_of(set_aside=[aside], manifests=[manifest])
    explained(
        story_of(seen, "10.96.0.7:80", POD), Cause.SET_ASIDE, Fate.DROPPED, "spec.externalTrafficPolicy", "Nearby"
    )


def test_a_kept_version_of_a_service_is_explained_with_what_is_wrong_with_the_new_one() -> None:
    aside = SetAside("Service", "default", "web", "spec.ports[0].port", "70000 is not a port", kept=True)
    told = story_of(
        world_of(builders.service(), builders.endpoint_slice("web", "10.180.0.1"), set_aside=[aside]), "web"
    )
    assert tale_fates(told) == {Fate.SERVED}
    assert "spec.ports[0].port: 70000 is not a port; an older version is in use" in text_of(told)


@pytest.mark.parametrize("target", ["web", "10.96.0.1:80"])
def test_a_slice_that_is_set_aside_is_named_also_where_others_serve(target: str) -> None:
    aside = SetAside("EndpointSlice", "default", "web-xyz12", "endpoints[0].addresses[0]", "'x' is not an IP address")
    told = story_of(
        world_of(builders.service(), builders.endpoint_slice("web", "10.180.0.1"), set_aside=[aside]), target
    )
    assert tale_fates(told) == {Fate.SERVED}
    assert "set aside: EndpointSlice default/web-xyz12: endpoints[0].addresses[0]" in text_of(told)


def tale_fates(told: Any) -> set[Fate]:
    return {one.fate for part in told.parts for one in part.tales}


def test_headless_external_name_and_foreign_services_are_none_of_netagents() -> None:
    seen = world_of(
        builders.service("headless", cluster_ips=[]),
        builders.service("alias", cluster_ips=[], type=ServiceType.EXTERNAL_NAME),
        builders.service("foreign", cluster_ips=["10.96.0.3"], proxy_name="cilium"),
        builders.service("portless", cluster_ips=["10.96.0.4"], ports=[]),
        manifests=[
            builders.service_manifest("headless", cluster_ip="None"),
            builders.service_manifest("alias", type="ExternalName", externalName="db.example.com"),
        ],
    )
    explained(story_of(seen, "headless"), Cause.HEADLESS, None, "clusterIP: None", "DNS")
    explained(story_of(seen, "alias"), Cause.EXTERNAL_NAME, None, "db.example.com")
    explained(story_of(seen, "foreign"), Cause.OTHER_PROXY, None, "service-proxy-name=cilium")
    explained(story_of(seen, "10.96.0.3:80", POD), Cause.OTHER_PROXY, Fate.DROPPED, "service-proxy-name=cilium")
    explained(story_of(seen, "portless"), Cause.NO_PORTS, None, "no ports")


def test_a_manifest_that_was_never_applied_has_no_cluster_ip_yet() -> None:
    manifest = builders.service_manifest("new", cluster_ip="")
    seen = world_of(builders.service("new", cluster_ips=[]), manifests=[manifest])
    explained(story_of(seen, "new"), Cause.NO_CLUSTER_IP, None, "no cluster IP yet")


def test_an_ingress_in_mode_proxy_is_left_to_the_load_balancer() -> None:
    manifest = builders.service_manifest(
        type="LoadBalancer", ingress=[{"ip": "198.18.0.5", "ipMode": "Proxy"}, {"hostname": "lb.example.com"}]
    )
    seen = world_of(
        builders.service(type=ServiceType.LOAD_BALANCER),
        builders.endpoint_slice("web", "10.180.0.1"),
        manifests=[manifest],
    )
    explained(story_of(seen, "198.18.0.5:80", OUTSIDE), Cause.PROXY_MODE, Fate.UNHANDLED, "ipMode Proxy")
    text = text_of(story_of(seen, "web"))
    assert "198.18.0.5 is a load balancer address of Service default/web with ipMode Proxy" in text
    assert "lb.example.com" in text


def test_external_ips_that_are_switched_off() -> None:
    service = builders.service(external_ips=["192.0.2.200"])
    items = (service, builders.endpoint_slice("web", "10.180.0.1"))
    assert shares(story_of(world_of(*items), "192.0.2.200:80", OUTSIDE)) == {"10.180.0.1:8080": "1"}
    seen = world_of(*items, allow_external_ips=False)
    explained(
        story_of(seen, "192.0.2.200:80", OUTSIDE),
        Cause.EXTERNAL_IPS_OFF,
        Fate.UNHANDLED,
        "external IP of Service default/web",
        "AllowServiceExternalIPs",
    )
    assert "its external IPs (192.0.2.200) are not served" in text_of(story_of(seen, "web"))


def test_a_frontend_that_an_older_service_has_names_the_winner() -> None:
    seen = world_of(
        builders.service("first", created="2020-01-01T00:00:00Z", external_ips=["192.0.2.200"]),
        builders.service("second", cluster_ips=["10.96.0.2"], external_ips=["192.0.2.200"]),
        builders.endpoint_slice("first", "10.180.0.1"),
        builders.endpoint_slice("second", "10.180.0.2"),
    )
    told = story_of(seen, "second")
    (conflict,) = [part for part in told.parts if part.reason]
    assert conflict.reason.cause is Cause.CONFLICT  # type: ignore[union-attr]
    text = text_of(told)
    assert "192.0.2.200:80/tcp is served for default/first instead" in text
    assert "older (created 2020-01-01T00:00:00Z" in text
    assert "default/second claims it too and goes without" in text_of(story_of(seen, "192.0.2.200:80", OUTSIDE))


def test_a_family_that_is_not_served() -> None:
    service = builders.service(cluster_ips=["10.96.0.1", "fd00:10::1"])
    seen = world_of(service, builders.endpoint_slice("web", "10.180.0.1"), families=["IPv4"])
    explained(story_of(seen, "[fd00:10::1]:80"), Cause.FAMILY_NOT_SERVED, None, "IPv4 alone")
    assert "fd00:10::1 is not served" in text_of(story_of(seen, "web"))
    alien = story_of(seen, "web", "pod:fd00::7")
    explained(alien, Cause.FAMILY_NOT_SERVED, None, "IPv6 is not served here")
    lacking = story_of(simple(), "web", "pod:fd00::7")
    explained(lacking, Cause.FAMILY_NOT_SERVED, None, "it has no IPv6 address")
    only6 = world_of(builders.service(cluster_ips=["fd00:10::1"]), families=["IPv4"])
    explained(story_of(only6, "web"), Cause.FAMILY_NOT_SERVED, None, "IPv6")


def test_a_client_of_the_other_family_is_refused_as_a_question() -> None:
    with pytest.raises(errors.ConfigError, match="different IP families"):
        story_of(simple(), "10.96.0.1:80", "pod:fd00::7")


# Questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["", "a/b/c", "10.96.0.1:http", "10.96.0.1:70000", "10.96.0.1:80/icmp", "web:80/x", "[fd00::1", "A!", "1.2.3"],
)
def test_a_target_that_makes_no_sense_is_named(target: str) -> None:
    with pytest.raises(errors.ConfigError, match="cannot explain"):
        story_of(simple(), target)


@pytest.mark.parametrize("client", ["pods:10.0.0.1", "outside:x", "", "node:"])
def test_a_client_that_makes_no_sense_is_named(client: str) -> None:
    from netagent.explain import targets

    with pytest.raises(errors.ConfigError, match="is no client"):
        targets.client_of(client)


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("10.96.0.1:443", "10.96.0.1:443/tcp"),
        ("web:https", "10.96.0.1:443/tcp"),
        ("default/web:443", "10.96.0.1:443/tcp"),
        ("web:443/tcp", "10.96.0.1:443/tcp"),
        ("web.default.svc:443", "10.96.0.1:443/tcp"),
        ("web.default.svc.cluster.local:https", "10.96.0.1:443/tcp"),
    ],
)
def test_targets_are_spelled_in_several_ways(target: str, shown: str) -> None:
    (part,) = story_of(simple(), target, POD).parts
    assert str(part.dialled) == shown


def test_an_address_without_port_tells_of_all_that_is_there() -> None:
    told = story_of(simple(), "10.96.0.1", POD)
    assert [str(part.dialled) for part in told.parts] == ["10.96.0.1:80/tcp", "10.96.0.1:443/tcp"]
