"""What an operator can rely on when handing netagent a configuration file."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import pathlib
import re
import subprocess
import sys
import textwrap

import hypothesis
import pytest
import yaml
from hypothesis import strategies

from netagent import errors, settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

# What kubeadm writes, as `kubectl -n kube-system get configmap kube-proxy -o yaml` prints it.
KUBEADM_CONFIG_MAP = """\
apiVersion: v1
data:
  config.conf: |-
    apiVersion: kubeproxy.config.k8s.io/v1alpha1
    bindAddress: 0.0.0.0
    bindAddressHardFail: false
    clientConnection:
      acceptContentTypes: ""
      burst: 0
      contentType: ""
      kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
      qps: 0
    clusterCIDR: 10.244.0.0/16
    configSyncPeriod: 0s
    conntrack:
      maxPerCore: null
      min: null
      tcpBeLiberal: false
      tcpCloseWaitTimeout: null
      tcpEstablishedTimeout: null
      udpStreamTimeout: 0s
      udpTimeout: 0s
    detectLocal:
      bridgeInterface: ""
      interfaceNamePrefix: ""
    detectLocalMode: ""
    enableProfiling: false
    healthzBindAddress: ""
    hostnameOverride: ""
    iptables:
      localhostNodePorts: null
      masqueradeAll: false
      masqueradeBit: null
      minSyncPeriod: 0s
      syncPeriod: 0s
    ipvs:
      excludeCIDRs: null
      minSyncPeriod: 0s
      scheduler: ""
      strictARP: false
      syncPeriod: 0s
      tcpFinTimeout: 0s
      tcpTimeout: 0s
      udpTimeout: 0s
    kind: KubeProxyConfiguration
    logging:
      flushFrequency: 0
      options:
        json:
          infoBufferSize: "0"
        text:
          infoBufferSize: "0"
      verbosity: 0
    metricsBindAddress: ""
    mode: ""
    nftables:
      masqueradeAll: false
      masqueradeBit: null
      minSyncPeriod: 0s
      syncPeriod: 0s
    nodePortAddresses: null
    oomScoreAdj: null
    portRange: ""
    showHiddenMetricsForVersion: ""
    winkernel:
      enableDSR: false
      forwardHealthCheckVip: false
      networkName: ""
      rootHnsEndpointName: ""
      sourceVip: ""
  kubeconfig.conf: |-
    apiVersion: v1
    kind: Config
kind: ConfigMap
metadata:
  annotations:
    kubeadm.kubernetes.io/component-config.hash: sha256:8ae0
  labels:
    app: kube-proxy
  name: kube-proxy
  namespace: kube-system
"""


def parse(body: str = "", **options: str) -> settings.Parsed:
    return settings.parse(HEAD + textwrap.dedent(body), origin="f.yaml", **options)


def refusal(body: str, **options: str) -> str:
    with pytest.raises(errors.ConfigError) as caught:
        parse(body, **options)
    return str(caught.value)


def networks(*texts: str) -> tuple[settings.Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# The forms a file can have


def test_kubeadms_config_map_works_as_it_is_and_needs_one_remark_only() -> None:
    parsed = settings.parse(KUBEADM_CONFIG_MAP, origin="cm.yaml")
    assert parsed.settings == settings.Settings(
        cluster_cidrs=networks("10.244.0.0/16"), kubeconfig="/var/lib/kube-proxy/kubeconfig.conf"
    )
    assert parsed.remarks == ("mode: not set, netagent uses nftables (kube-proxy would use iptables)",)


def test_an_error_inside_a_config_map_names_file_and_key() -> None:
    with pytest.raises(errors.ConfigError) as caught:
        settings.parse(KUBEADM_CONFIG_MAP.replace("10.244.0.0/16", "10.244.0.0"), origin="cm.yaml")
    assert str(caught.value).startswith('cm.yaml, config.conf of the ConfigMap: clusterCIDR: "10.244.0.0" is wrong')


def test_json_is_as_good_as_yaml() -> None:
    document = yaml.safe_load(HEAD) | {"mode": "iptables", "iptables": {"masqueradeBit": 15}}
    for text in (json.dumps(document, indent="\t"), json.dumps(document).encode(), yaml.dump(document)):
        parsed = settings.parse(text, origin="f")
        assert (parsed.settings.mode, parsed.settings.masquerade_bit) == ("iptables", 15)


def test_the_document_is_found_among_others_of_one_file() -> None:
    text = f"---\nkind: ClusterConfiguration\napiVersion: kubeadm.k8s.io/v1beta4\n---\n{HEAD}---\n"
    assert settings.parse(text, origin="f").settings == settings.Settings()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no documents of kind KubeProxyConfiguration"),
        ("# nothing\n", "has no documents"),
        (f"{HEAD}---\n{HEAD}", "has 2 documents"),
        ("- a\n", "no fields at all"),
        ("kind: KubeletConfiguration\napiVersion: v1\n", '"KubeletConfiguration" are wrong'),
        ("mode: nftables\n", "apiVersion null and kind null are wrong"),
        ("apiVersion: v1\nkind: ConfigMap\ndata: {other: x}\n", "none of the keys config.conf"),
        ("a: [", "cannot be read as YAML or JSON"),
        (b"\xff\xfe", "cannot be read as YAML or JSON"),
        ("[" * 5000, "cannot be read as YAML or JSON"),
        ("a: 2024-99-99", "cannot be read as YAML or JSON"),
        ("a: !!int ''", "cannot be read as YAML or JSON"),
        ("a: !!python/object:os.system x", "cannot be read as YAML or JSON"),
        (f"{HEAD}mode: nftables\nmode: iptables\n", "line 4: the field 'mode' stands twice"),
        ('{"mode": "nftables", "mode": "iptables"}', "the field 'mode' stands twice"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_origin(text: str | bytes, complaint: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        settings.parse(text, origin="f.yaml")
    assert str(caught.value).startswith("f.yaml: ")
    assert complaint in str(caught.value)


# Values


@pytest.mark.parametrize(
    ("body", "name", "value"),
    [
        ("hostnameOverride: ' Node-A '", "node_name", "node-a"),
        ("clusterCIDR: 10.1.2.3/8,fd00::/48", "cluster_cidrs", networks("10.0.0.0/8", "fd00::/48")),
        ("detectLocalMode: NodeCIDR", "detect_local_mode", settings.DetectLocalMode.NODE_CIDR),
        ("nftables: {masqueradeAll: true}", "masquerade_all", True),
        ("nftables: {masqueradeBit: 0}", "masquerade_bit", 0),
        ("nftables: {syncPeriod: 1m30s}", "sync_period_seconds", 90.0),
        ("nftables: {minSyncPeriod: 100ms}", "min_sync_period_seconds", 0.1),
        ("nodePortAddresses: []", "node_port_addresses", None),
        ("nodePortAddresses: [primary]", "node_port_addresses", "primary"),
        ("nodePortAddresses: [10.0.0.0/8, '::/0']", "node_port_addresses", networks("10.0.0.0/8", "::/0")),
        ("iptables: {localhostNodePorts: false}", "localhost_node_ports", False),
        ("configSyncPeriod: 1h", "config_sync_period_seconds", 3600.0),
        ("bindAddress: 192.0.2.1", "bind_address", ipaddress.ip_address("192.0.2.1")),
        ("bindAddressHardFail: true", "bind_address_hard_fail", True),
        ("clientConnection: {qps: 0.5}", "qps", 0.5),
        ("clientConnection: {qps: -1}", "qps", -1.0),
        ("clientConnection: {burst: 20}", "burst", 20),
        ("oomScoreAdj: 0", "oom_score_adj", 0),
        ("featureGates: {AllowServiceExternalIPs: false}", "allow_external_ips", False),
        ("netagent: {families: [IPv6, IPv4]}", "families", ("IPv4", "IPv6")),
        ("netagent: {families: [IPv6]}", "families", ("IPv6",)),
        ("netagent: {affinityClients: 16777216}", "affinity_clients", 16777216),
        ("netagent: {dropInvalid: false}", "drop_invalid", False),
        ("netagent: {staleFlowProtocols: [SCTP, UDP]}", "stale_flow_protocols", ("UDP", "SCTP")),
        ("netagent: {staleFlowProtocols: []}", "stale_flow_protocols", ()),
        ("netagent: {serviceMetrics: false}", "service_metrics", False),
        ("netagent: {serviceMetricsMost: 0}", "service_metrics_most", 0),
        ("netagent: {serviceMetricsMost: 100000}", "service_metrics_most", 100_000),
    ],
)
def test_every_field_reaches_its_setting_and_no_other(body: str, name: str, value: object) -> None:
    expected = settings.Settings(**{name: value})
    assert parse(body).settings == expected


def test_a_conntrack_timeout_of_zero_means_leave_alone_and_null_means_default() -> None:
    body = "conntrack: {maxPerCore: 0, min: null, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: null}"
    conntrack = parse(body).settings.conntrack
    assert (conntrack.max_per_core, conntrack.min) == (0, 131072)
    assert (conntrack.tcp_established_timeout_seconds, conntrack.tcp_close_wait_timeout_seconds) == (
        0.0,
        3600.0,
    )


@pytest.mark.parametrize(
    ("body", "healthz", "metrics"),
    [
        ("", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("bindAddress: '2001:db8::1'", "[::]:10256", "[::1]:10249"),
        ("bindAddress: '::'\nhealthzBindAddress: 127.0.0.1", "127.0.0.1:10256", "[::1]:10249"),
        ("metricsBindAddress: '::'", "0.0.0.0:10256", "[::]:10249"),
        ("healthzBindAddress: '[fd00::1]:99'", "[fd00::1]:99", "127.0.0.1:10249"),
    ],
)
def test_server_addresses_follow_bind_address_and_get_their_port(body: str, healthz: str, metrics: str) -> None:
    got = parse(body).settings
    assert (str(got.healthz_bind_address), str(got.metrics_bind_address)) == (healthz, metrics)


@pytest.mark.parametrize(
    ("body", "on_primary", "listed"),
    [
        ("mode: nftables", True, ()),
        ("mode: iptables", False, ()),
        ("mode: iptables\nnodePortAddresses: [primary]", True, ()),
        ("mode: nftables\nnodePortAddresses: [0.0.0.0/0]", False, networks("0.0.0.0/0")),
    ],
)
def test_node_ports_answer_on_primary_addresses_by_default_in_nftables_only(
    body: str, on_primary: bool, listed: tuple[settings.Network, ...]
) -> None:
    got = parse(body).settings
    assert (got.node_ports_on_primary, got.node_port_networks) == (on_primary, listed)


@pytest.mark.parametrize(
    ("body", "drops"),
    [
        ("", True),
        ("netagent: {dropInvalid: null}", True),
        ("conntrack: {tcpBeLiberal: true}", False),
        ("conntrack: {tcpBeLiberal: true}\nnetagent: {dropInvalid: true}", True),
        ("netagent: {dropInvalid: false}", False),
    ],
)
def test_invalid_packets_are_dropped_unless_tcp_is_liberal(body: str, drops: bool) -> None:
    assert parse(body).settings.drops_invalid is drops


# Modes


def test_each_mode_reads_its_own_section_and_says_what_it_leaves_out() -> None:
    body = """\
        iptables: {masqueradeBit: 1, syncPeriod: 5s}
        nftables: {masqueradeBit: 2, minSyncPeriod: 3s}
        mode: """
    nftables, iptables = parse(body + "nftables"), parse(body + "iptables")
    assert (nftables.settings.masquerade_bit, nftables.settings.min_sync_period_seconds) == (2, 3.0)
    assert nftables.remarks == ("iptables.masqueradeBit, iptables.syncPeriod: ignored in mode nftables",)
    assert (iptables.settings.masquerade_bit, iptables.settings.sync_period_seconds) == (1, 5.0)
    assert iptables.remarks == ("nftables.masqueradeBit, nftables.minSyncPeriod: ignored in mode iptables",)


def test_the_command_lines_mode_chooses_the_section() -> None:
    body = "mode: nftables\niptables: {masqueradeBit: 1}"
    assert parse(body, mode="iptables").settings.masquerade_bit == 1
    assert "mode: " in refusal("", mode="userspace")


@pytest.mark.parametrize("mode", ["ipvs", '""'])
def test_masquerading_set_for_the_mode_that_we_replace_is_kept(mode: str) -> None:
    parsed = parse(f"mode: {mode}\niptables: {{masqueradeAll: true}}\nnftables: {{masqueradeAll: false}}")
    assert parsed.settings.mode is settings.Mode.NFTABLES
    assert parsed.settings.masquerade_all
    assert any(remark.startswith("iptables.masqueradeAll: used for mode nftables") for remark in parsed.remarks)


def test_ipvs_is_served_by_nftables_with_a_remark() -> None:
    assert parse("mode: ipvs").remarks == ("mode: ipvs is served by nftables, netagent has no ipvs mode",)


# What means nothing here


def test_fields_that_mean_nothing_here_are_named_once_each_with_the_reason() -> None:
    remarks = parse(
        """
        mode: nftables
        ipvs: {scheduler: rr, strictARP: true, excludeCIDRs: [10.0.0.0/8]}
        winkernel: {enableDSR: true}
        windowsRunAsService: true
        enableProfiling: true
        featureGates: {ContextualLogging: false, AllowServiceExternalIP: false}
        logging: {verbosity: 2, options: {json: {infoBufferSize: "0"}}}
        """
    ).remarks
    assert remarks == (
        "ipvs.scheduler, ipvs.strictARP, ipvs.excludeCIDRs: ignored, netagent has no ipvs mode",
        "winkernel.enableDSR, windowsRunAsService: ignored, it is for Windows",
        "enableProfiling: ignored, the profiler is one for Go programs",
        "featureGates.ContextualLogging: ignored, the gate changes nothing in netagent",
        "featureGates.AllowServiceExternalIP: ignored, the gate changes nothing in netagent, "
        "did you mean featureGates.AllowServiceExternalIPs?",
        "logging.verbosity: ignored, netagent's logging is set on its command line",
    )


# Errors


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("moode: x", "moode: there is no such field, did you mean mode?"),
        ("conntrak: {}", "conntrak: there is no such field, did you mean conntrack?"),
        (
            "conntrack: {maxPerCor: 1}",
            "conntrack.maxPerCor: there is no such field, did you mean conntrack.maxPerCore?",
        ),
        ("clusterCidr: x", "clusterCidr: there is no such field, did you mean clusterCIDR?"),
        ("masqueradeBit: 1", "did you mean nftables.masqueradeBit or iptables.masqueradeBit?"),
        ("ipvs: {shedule: rr}", "ipvs.shedule: there is no such field, did you mean ipvs.scheduler?"),
        ("netagent: {familys: [IPv4]}", "did you mean netagent.families?"),
        ("netagent: {serviceMetricMost: 7}", "did you mean netagent.serviceMetricsMost?"),
        ("zzz: 1", "f.yaml: zzz: there is no such field"),
        ("conntrack.min: 1", r"f.yaml: conntrack\.min: there is no such field, did you mean conntrack.min?"),
        ('"a\\nb": 1', r"'a\nb': there is no such field"),
    ],
)
def test_an_unknown_field_is_refused_with_its_path_and_the_nearest_known_one(body: str, complaint: str) -> None:
    message = refusal(body)
    assert message.count("\n") == 0
    assert message.endswith(complaint)


@pytest.mark.parametrize(
    ("body", "path", "allowed"),
    [
        ("mode: userspace", "mode", "one of nftables, iptables, ipvs"),
        ("mode: 5", "mode", "text"),
        ("hostnameOverride: 17", "hostnameOverride", "text (put it in quotes)"),
        ("nftables: {masqueradeBit: 32}", "nftables.masqueradeBit", "a whole number from 0 to 31"),
        ("iptables: {masqueradeBit: -1}", "iptables.masqueradeBit", "a whole number from 0 to 31"),
        ("nftables: {masqueradeBit: true}", "nftables.masqueradeBit", "a whole number"),
        ("nftables: {masqueradeAll: 'yes'}", "nftables.masqueradeAll", "true or false"),
        ("nftables: {syncPeriod: 30}", "nftables.syncPeriod", "a duration such as 30s"),
        ("nftables: {syncPeriod: 30 s}", "nftables.syncPeriod", "a duration such as 30s"),
        ("nftables: {syncPeriod: -1s}", "nftables.syncPeriod", "a duration that is not negative"),
        ("nftables: 7", "nftables", "a section with fields of its own"),
        ("configSyncPeriod: -1m", "configSyncPeriod", "not negative"),
        ("oomScoreAdj: 1001", "oomScoreAdj", "a whole number from -1000 to 1000"),
        ("conntrack: {min: -1}", "conntrack.min", "a whole number from 0"),
        ("conntrack: {maxPerCore: 1.5}", "conntrack.maxPerCore", "a whole number from 0"),
        ("conntrack: {udpTimeout: -1s}", "conntrack.udpTimeout", "not negative"),
        ("clientConnection: {burst: -1}", "clientConnection.burst", "a whole number from 0"),
        ("clientConnection: {qps: .nan}", "clientConnection.qps", "a number"),
        ("bindAddress: localhost", "bindAddress", "an IP address"),
        ("bindAddress: fe80::1%eth0", "bindAddress", "an IP address without port and zone"),
        ("healthzBindAddress: 0.0.0.0:0", "healthzBindAddress", "IP:port"),
        ("healthzBindAddress: 0.0.0.0:65536", "healthzBindAddress", "IP:port"),
        ("metricsBindAddress: localhost:1", "metricsBindAddress", "IP:port"),
        ("metricsBindAddress: ':10249'", "metricsBindAddress", "IP:port"),
        ("nodePortAddresses: primary", "nodePortAddresses", "a list of CIDRs"),
        ("nodePortAddresses: [primary, 10.0.0.0/8]", "nodePortAddresses", 'exactly ["primary"]'),
        ("nodePortAddresses: [10.0.0.1]", "nodePortAddresses", "a list of CIDRs"),
        ("nodePortAddresses: &a [*a]", "nodePortAddresses", "a list of CIDRs"),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8", "clusterCIDR", "one of each IP family"),
        ("clusterCIDR: 10.0.0.0/8,fd00::/8,fd01::/16", "clusterCIDR", "one CIDR, or two"),
        ("clusterCIDR: 10.0.0.0/255.0.0.0", "clusterCIDR", "one CIDR"),
        ("detectLocalMode: nodecidr", "detectLocalMode", "one of ClusterCIDR, NodeCIDR"),
        ("detectLocal: {interfaceNamePrefix: a/b}", "detectLocal.interfaceNamePrefix", "an interface name"),
        ("featureGates: {Any: 1}", "featureGates.Any", "true or false"),
        ("netagent: {families: []}", "netagent.families", "one at least"),
        ("netagent: {families: [ipv4]}", "netagent.families", "a list of IPv4 and IPv6"),
        ("netagent: {affinityClients: 0}", "netagent.affinityClients", "a whole number from 1 to 16777216"),
        ("netagent: {staleFlowProtocols: [TCP]}", "netagent.staleFlowProtocols", "a list of UDP and SCTP"),
        ("netagent: {serviceMetrics: 'no'}", "netagent.serviceMetrics", "true or false"),
        ("netagent: {serviceMetricsMost: -1}", "netagent.serviceMetricsMost", "a whole number from 0 to 100000"),
        ("netagent: {serviceMetricsMost: 100001}", "netagent.serviceMetricsMost", "a whole number from 0 to 100000"),
        ("netagent: {serviceMetricsMost: true}", "netagent.serviceMetricsMost", "a whole number"),
    ],
)
def test_a_wrong_value_is_refused_with_path_value_and_what_is_allowed(body: str, path: str, allowed: str) -> None:
    message = refusal(body)
    assert message.count("\n") == 0
    assert re.fullmatch(rf"f\.yaml: {re.escape(path)}: .+ is wrong, it must be .*{re.escape(allowed)}.*", message)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface: must not be empty"),
        ("detectLocalMode: InterfaceNamePrefix", "detectLocal.interfaceNamePrefix: must not be empty"),
        ("nftables: {minSyncPeriod: 31s}", "nftables.minSyncPeriod: 31s is longer than the syncPeriod, 30s"),
        ("clusterCIDR: 10.0.0.0/8\nnetagent: {families: [IPv6]}", "clusterCIDR: has no network"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(body: str, complaint: str) -> None:
    assert complaint in refusal(body)


def test_all_errors_of_a_file_are_reported_at_once_one_a_line() -> None:
    lines = refusal("mode: x\noomScoreAdj: 5000\nfoo: 1\nbindAddress: 300.0.0.1").splitlines()
    assert [line.split(": ")[1] for line in lines] == ["mode", "oomScoreAdj", "foo", "bindAddress"]
    assert all(line.startswith("f.yaml: ") for line in lines)


_PATHS = [setting.path for setting in settings.SETTINGS] + ["ipvs.scheduler", "logging.options", "x.y"]
_VALUES: list[object] = [
    None, True, 0, -1, 10**30, 1.5, float("inf"), "", "primary", "10.0.0.0/8", "::", ":1", "1s", "ipvs", "\ud800",
    [], [None], [[[]]], ["primary"], ["10.0.0.0/8"], ["UDP"], {}, {"a": {"b": [1]}},
]  # fmt: skip
_FIELDS = strategies.dictionaries(strategies.sampled_from(_PATHS), strategies.sampled_from(_VALUES), max_size=4)


@hypothesis.given(_FIELDS)
def test_whatever_the_fields_hold_the_answer_is_settings_or_a_config_error(fields: dict[str, object]) -> None:
    document: dict[str, object] = dict(yaml.safe_load(HEAD))
    for path, value in fields.items():
        section, _, name = path.rpartition(".")
        target = document.setdefault(section, {}) if section else document
        assert isinstance(target, dict)
        target[name] = value
    with contextlib.suppress(errors.ConfigError):
        assert settings.parse(json.dumps(document), origin="f")


@hypothesis.given(strategies.text('ab: -[]{}"\n&*!0#\t', max_size=20) | strategies.binary(max_size=20))
def test_whatever_a_file_holds_no_other_error_comes_out(text: str | bytes) -> None:
    with pytest.raises(errors.ConfigError):
        settings.parse(text, origin="f")


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("30s", 30), ("1m30s", 90), ("15m0s", 900), ("24h", 86400), ("100ms", 0.1), ("1.5h", 5400),
        (".5s", 0.5), ("5.s", 5), ("250us", 0.00025), ("7µs", 7e-6), ("7μs", 7e-6), ("3ns", 3e-9),
        ("-2s", -2), ("+1h0m0.3s", 3600.3), ("2562047h", 2562047 * 3600),
    ],
)  # fmt: skip
def test_go_durations_are_understood(text: str, seconds: float) -> None:
    assert settings.duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", ".s", "1", "1 s", "1s ", "1S", "1d", "--1s", "1s1", "٣s", "9999999h"])
def test_what_go_refuses_as_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration such as 30s"):
        settings.duration_seconds(text)


@hypothesis.given(strategies.integers(0, 10**6), strategies.integers(0, 59), strategies.integers(0, 59_999))
def test_the_parts_of_a_duration_add_up(hours: int, minutes: int, milliseconds: int) -> None:
    text = f"{hours}h{minutes}m{milliseconds // 1000}.{milliseconds % 1000:03}s"
    assert settings.duration_seconds(text) == (hours * 3_600_000 + minutes * 60_000 + milliseconds) / 1000


@hypothesis.given(strategies.text("0123456789.hmsnuµ+- ", max_size=12))
def test_any_other_text_is_a_value_error_at_most(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert settings.duration_seconds(text) is not None


# The command line


def test_the_command_line_wins_over_the_file() -> None:
    file = parse("nftables: {masqueradeBit: 3}\nbindAddressHardFail: true").settings
    changed = settings.override(
        file,
        masquerade_bit=5,
        families=("IPv4",),
        cluster_cidrs="10.0.0.0/8",
        sync_period_seconds="1m",
        conntrack_min=7,
        oom_score_adj=None,
    )
    assert (changed.masquerade_bit, changed.families, changed.sync_period_seconds) == (5, ("IPv4",), 60.0)
    assert changed.cluster_cidrs == networks("10.0.0.0/8")
    assert changed.conntrack == settings.ConntrackSettings(min=7)
    assert changed.bind_address_hard_fail


def test_overriding_nothing_changes_nothing() -> None:
    file = parse("bindAddress: fd00::1\nconntrack: {min: 1}").settings
    assert settings.override(file) == file


def test_default_server_addresses_follow_a_bind_address_of_the_command_line() -> None:
    changed = settings.override(parse("metricsBindAddress: 10.0.0.1:1").settings, bind_address="fd00::1")
    assert (str(changed.healthz_bind_address), str(changed.metrics_bind_address)) == (
        "[::]:10256",
        "10.0.0.1:1",
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"masquerade_bit": 99},
            "command line: masqueradeBit: 99 is wrong, it must be a whole number",
        ),
        (
            {"detect_local_mode": "BridgeInterface"},
            "command line: detectLocal.bridgeInterface: must not be empty",
        ),
        ({"conntrack_min": -1}, "command line: conntrack.min: -1 is wrong"),
    ],
)
def test_the_command_line_is_checked_like_a_file(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(errors.ConfigError, match=re.escape(complaint)):
        settings.override(settings.Settings(), **change)


@pytest.mark.parametrize(
    ("flag", "file", "host", "name"),
    [
        (" Flag ", "file", "host", "flag"),
        (None, "file", "host", "file"),
        ("", "", "HOST.example\n", "host.example"),
        ("  ", "file", "host", "file"),
    ],
)
def test_the_node_name_is_the_flags_else_the_files_else_the_hosts(
    flag: str | None, file: str, host: str, name: str
) -> None:
    assert settings.node_name_of(settings.Settings(node_name=file), flag, host) == name


def test_a_node_without_any_name_is_an_error() -> None:
    with pytest.raises(errors.ConfigError, match="hostnameOverride"):
        settings.node_name_of(settings.Settings(), None, " ")


# Documentation and cost


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda setting: setting.path)
def test_the_default_that_is_documented_is_the_one_that_is_used(setting: settings.Setting) -> None:
    value: object = settings.Settings()
    for part in setting.name.split("."):
        value = getattr(value, part)
    written = yaml.safe_load(setting.default)
    read = None if written is None else setting.read(written)
    assert read == value or (read is None and not value)


def test_every_setting_is_documented_with_unit_and_default() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    for setting in settings.SETTINGS:
        row = f"| `{setting.path}` | {setting.unit} | `{setting.default}` |"
        assert row in page, f"docs/configuration.md lacks a row that starts with: {row}"


def test_every_ignored_field_is_documented_and_nothing_else_is() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    documented = set(re.findall(r"^\| `([A-Za-z.*]+)` \|", page, re.MULTILINE))
    assert documented == {setting.path for setting in settings.SETTINGS} | set(settings.IGNORED)


def test_every_field_of_settings_can_be_set_from_a_file() -> None:
    names = {setting.name for setting in settings.SETTINGS}
    fields = set(settings.Settings.__struct_fields__) - {"conntrack"}
    assert names == fields | {f"conntrack.{name}" for name in settings.ConntrackSettings.__struct_fields__}


def test_the_example_is_valid_and_needs_no_remark() -> None:
    path = ROOT / "examples" / "kube-proxy-config.yaml"
    assert settings.parse(path.read_bytes(), origin=str(path)).remarks == ()


def test_importing_the_settings_does_not_import_yaml() -> None:
    code = "import sys, netagent.settings; sys.exit('yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
