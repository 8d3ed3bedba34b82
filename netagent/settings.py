"""The settings of one netagent, read from the configuration file that kube-proxy reads.

`parse` turns the text of a KubeProxyConfiguration (or of a ConfigMap that holds one) into `Settings`;
`override` lets the command line win. Pure: who opens the file is somebody else. The table `SETTINGS` is the
one description of every field: it decodes, it validates, and docs/configuration.md is tested against it.
"""

from __future__ import annotations

import enum
import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, NamedTuple

import msgspec

from netagent import documents, errors, escaping

API_VERSION: Final = "kubeproxy.config.k8s.io/v1alpha1"
KIND: Final = "KubeProxyConfiguration"
# Keys under which ConfigMaps keep the document: kubeadm's, then those of other installers.
CONFIG_MAP_KEYS: Final = ("config.conf", "config", "config.yaml")
FAMILIES: Final = ("IPv4", "IPv6")
HEALTHZ_PORT: Final = 10256
METRICS_PORT: Final = 10249

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Mode(enum.StrEnum):
    """The netfilter implementation that carries the Services."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"


class DetectLocalMode(enum.StrEnum):
    """How packets of pods are told from others."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class SocketAddress(NamedTuple):
    """Where a server listens."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


class ConntrackSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Connection tracking limits and timeouts of the host. 0 always means: leave the host's value alone."""

    # Connections per CPU core; 0 also switches `min` off. Default 32768.
    max_per_core: int = 32768
    # Connections, the least that the table holds whatever the number of cores. Default 131072.
    min: int = 131072
    # Seconds that an idle established TCP connection is remembered. Default one day.
    tcp_established_timeout_seconds: float = 86400.0
    # Seconds that a half-closed TCP connection is remembered. Default one hour.
    tcp_close_wait_timeout_seconds: float = 3600.0
    # Whether packets outside the TCP window count as valid. Default no.
    tcp_be_liberal: bool = False
    # Seconds that an unanswered UDP flow is remembered. Default 0.
    udp_timeout_seconds: float = 0.0
    # Seconds that an answered UDP flow is remembered. Default 0.
    udp_stream_timeout_seconds: float = 0.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set, checked and with defaults in place. Durations are seconds."""

    # Default nftables.
    mode: Mode = Mode.NFTABLES
    # hostnameOverride, trimmed and in lower case; "" (default) when not set. Ask `node_name_of` for the name
    # to use.
    node_name: str = ""
    # IP families served, "IPv4" before "IPv6". Default both.
    families: tuple[str, ...] = FAMILIES
    # Default ClusterCIDR.
    detect_local_mode: DetectLocalMode = DetectLocalMode.CLUSTER_CIDR
    # Addresses of pods, at most one network a family. Default none: pods are not told from others in mode
    # ClusterCIDR.
    cluster_cidrs: tuple[Network, ...] = ()
    # Name of the bridge that pods are attached to; not empty in mode BridgeInterface. Default "".
    bridge_interface: str = ""
    # Start of the names of the pods' interfaces; not empty in mode InterfaceNamePrefix. Default "".
    interface_name_prefix: str = ""
    # Whether all traffic to cluster IPs gets the node's address as source. Default no.
    masquerade_all: bool = False
    # Bit of the packet mark, 0 to 31, that says "to be masqueraded". Default 14 (0x4000).
    masquerade_bit: int = 14
    # What the file says: networks, "primary", or None (default) when it says nothing. Use the two properties
    # `node_ports_on_primary` and `node_port_networks`, which know what nothing means.
    node_port_addresses: tuple[Network, ...] | Literal["primary"] | None = None
    # Whether node ports answer on 127.0.0.1; means something in mode iptables only. Default yes.
    localhost_node_ports: bool = True
    # Seconds until a failed sync is tried again; without success for twice as long, health is bad. Default
    # 30.
    sync_period_seconds: float = 30.0
    # Seconds of pause between two syncs, at least. Default 0: a sync that costs milliseconds needs no pause.
    min_sync_period_seconds: float = 0.0
    # Seconds between two passes that compare everything although nothing changed. Default 900.
    config_sync_period_seconds: float = 900.0
    # The node's own address of its family and which family is primary; unspecified (default) = ask the Node
    # object.
    bind_address: Address = ipaddress.IPv4Address("0.0.0.0")
    # Default 0.0.0.0:10256, or [::]:10256 when bind_address is IPv6.
    healthz_bind_address: SocketAddress = SocketAddress(ipaddress.IPv4Address("0.0.0.0"), HEALTHZ_PORT)
    # Default 127.0.0.1:10249, or [::1]:10249 when bind_address is IPv6.
    metrics_bind_address: SocketAddress = SocketAddress(ipaddress.IPv4Address("127.0.0.1"), METRICS_PORT)
    # Whether a server that cannot listen ends the program. Default no.
    bind_address_hard_fail: bool = False
    # Path of the kubeconfig file; "" (default) = the service account of the pod.
    kubeconfig: str = ""
    # Lists per second from the API server, and Events per second to it; negative = without limit. Watches do not count.
    # Default 5. Takes effect at start only.
    qps: float = 5.0
    # Lists, and Events, that may exceed `qps` for a moment. Default 10. Takes effect at start only.
    burst: int = 10
    # The process's own oom_score_adj, -1000 to 1000. Default -999.
    oom_score_adj: int = -999
    # See there.
    conntrack: ConntrackSettings = ConntrackSettings()
    # Whether spec.externalIPs of Services count (feature gate AllowServiceExternalIPs). Default yes.
    allow_external_ips: bool = True
    # Clients remembered per IP family for session affinity, 1 to 16777216. Default 65536.
    affinity_clients: int = 65536
    # What the file says; None (default) when it says nothing. Use the property `drops_invalid`.
    drop_invalid: bool | None = None
    # Value of the label service.kubernetes.io/service-proxy-name that Services must have to be served; "" (default)
    # serves those without the label. Takes effect at start only.
    service_proxy_name: str = ""
    # Protocols ("UDP", "SCTP") whose flows are cut when their endpoint goes. Default UDP.
    stale_flow_protocols: tuple[str, ...] = ("UDP",)
    # Whether new connections are counted for each Service port. Default yes. Takes effect at start only.
    service_metrics: bool = True
    # Service ports (those of each IP family apart) that have counters of their own, 0 to 100000; the others are counted
    # together. Default 2000. Takes effect at start only.
    service_metrics_most: int = 2000
    # Whether the agent owns its nftables tables, so that nobody else can change them (Linux 6.9). Default yes. Takes
    # effect at start only.
    table_ownership: bool = True
    # Implementation of xtables in mode iptables: "legacy", "nft", or "auto" (default), which looks at the host. Takes
    # effect at start only.
    iptables_variant: str = "auto"
    # Group, by name or number, whose members may ask the running agent over its local socket, as root may; "" (default)
    # is nobody else. Takes effect at start only.
    socket_group: str = ""

    @property
    def node_ports_on_primary(self) -> bool:
        """Whether node ports answer on the node's primary address of each family and nowhere else."""
        unset = self.node_port_addresses is None
        return self.node_port_addresses == "primary" or (unset and self.mode is Mode.NFTABLES)

    @property
    def node_port_networks(self) -> tuple[Network, ...]:
        """Networks whose local addresses answer on node ports.

        Empty without a list: then the primary addresses do if `node_ports_on_primary`, else all local ones.
        """
        return self.node_port_addresses if isinstance(self.node_port_addresses, tuple) else ()

    @property
    def drops_invalid(self) -> bool:
        """Whether packets that connection tracking calls INVALID are dropped."""
        return not self.conntrack.tcp_be_liberal if self.drop_invalid is None else self.drop_invalid


class Parsed(NamedTuple):
    """What a file says, and what its author should know: one sentence a line, none of them an error."""

    settings: Settings
    remarks: tuple[str, ...]


# Readers: from the value in the document to the value in Settings. None means "as if not set"; ValueError
# carries what would have been right, to be read after "must be".
Reader = Callable[[object], object]

_NANOSECONDS: Final = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6,
    "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
_DURATION_PART: Final = r"(?=\.?[0-9])([0-9]{0,19})(?:\.([0-9]{0,30}))?(ns|us|µs|μs|ms|s|m|h)"
_MOST_NANOSECONDS: Final = 2**63 - 1  # time.Duration is an int64
_INT32_MOST: Final = 2**31 - 1
# Whoever gives us something else altogether gets no book about it.
_PROBLEMS_MOST: Final = 100
_SUGGESTIONS_MOST: Final = 20
_INTERFACE_NAME_MOST: Final = 15  # IFNAMSIZ - 1, linux/if.h


def duration_seconds(text: str) -> float:
    """Return the seconds that a Go duration ("1m30s", "100ms", "-1.5h", "0") names, else raise ValueError."""
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    nanoseconds = 0
    for whole, fraction, unit in re.findall(_DURATION_PART, unsigned):
        scale = _NANOSECONDS[unit]
        nanoseconds += int(whole or "0") * scale + int(fraction or "0") * scale // 10 ** len(fraction)
    if not re.fullmatch(f"0|(?:{_DURATION_PART})+", unsigned) or nanoseconds > _MOST_NANOSECONDS:
        raise ValueError("a duration such as 30s, 1m30s or 100ms")
    return (-nanoseconds if text.startswith("-") else nanoseconds) / 10**9


def _duration(*, zero_is_unset: bool = False) -> Reader:
    def read(value: object) -> float | None:
        if not isinstance(value, str):
            raise ValueError("a duration such as 30s, 1m30s or 100ms (a number needs its unit)")
        seconds = duration_seconds(value)
        if seconds < 0:
            raise ValueError("a duration that is not negative")
        return None if zero_is_unset and seconds == 0 else seconds

    return read


def _integer(least: int, most: int, *, zero_is_unset: bool = False) -> Reader:
    def read(value: object) -> int | None:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return None if zero_is_unset and value == 0 else value

    return read


def _rate(value: object) -> float | None:
    """A number of requests a second; 0 is unset."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
        raise ValueError("a number (0 for the default, negative for no limit)")
    return float(value) or None


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _text(convert: Callable[[str], object] = str) -> Reader:
    """Reader of a string; "" (as in Go, where a string cannot be absent) is unset."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError("text (put it in quotes)")
        if not value.isprintable():
            raise ValueError("text without line ends and control characters")
        return convert(value) if value else None

    return read


def _choice(choices: dict[str, Any]) -> Callable[[str], object]:
    def convert(text: str) -> object:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return choices[text]

    return convert


def _some_of(names: tuple[str, ...], *, least: int) -> Reader:
    """Reader of a list of names; the result is in the order of `names` and has each once."""

    def read(value: object) -> tuple[str, ...]:
        given = value if isinstance(value, list | tuple) else [None]
        if len(given) < least or any(item not in names for item in given):
            at_least = "one at least" if least else "possibly empty"
            raise ValueError(f"a list of {' and '.join(names)}, {at_least}")
        return tuple(name for name in names if name in given)

    return read


def _interface(text: str) -> str:
    # The kernel takes some of these (dev_valid_name, net/core/dev.c), but neither nft nor iptables can be told of them.
    if len(text.encode()) > _INTERFACE_NAME_MOST or not text.isprintable() or re.search(r"[/:\s\"'\\*]", text):
        raise ValueError(
            f"an interface name: {_INTERFACE_NAME_MOST} bytes at most, no blank, slash, colon, star, backslash or quote"
        )
    return text


def _label_value(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", text):
        raise ValueError("the value of a label: at most 63 letters, digits, -, _ and .")
    return text


def _group(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,10}|[A-Za-z_][A-Za-z0-9_.-]{0,31}[$]?", text) or (
        text.isdigit() and int(text) >= 2**32 - 1
    ):
        raise ValueError("the name or number of a group")
    return text


def _address(text: str) -> Address:
    try:
        if "%" not in text:
            return ipaddress.ip_address(text)
    except ValueError:
        pass
    raise ValueError("an IP address without port and zone")


def _socket_address(default_port: int) -> Callable[[str], SocketAddress]:
    def convert(text: str) -> SocketAddress:
        host, colon, port = text.rpartition(":")
        try:
            if "." in host or (host.startswith("[") and host.endswith("]")):
                if colon and port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535:
                    return SocketAddress(_address(host.removeprefix("[").removesuffix("]")), int(port))
            else:
                return SocketAddress(_address(text), default_port)
        except ValueError:
            pass
        raise ValueError(f"IP:port, the port from 1 to 65535 (or an IP alone, for port {default_port})")

    return convert


def _network(text: str) -> Network:
    """The network of a CIDR, host bits cleared."""
    _, slash, length = text.partition("/")
    try:
        if slash and "%" not in text and length.isascii() and length.isdigit():
            return ipaddress.ip_network(text, strict=False)
    except ValueError:
        pass
    raise ValueError("a CIDR such as 10.0.0.0/8")


def _cluster_cidrs(text: str) -> tuple[Network, ...]:
    try:
        networks = tuple(_network(part.strip()) for part in text.split(","))
        if len({network.version for network in networks}) == len(networks):
            return networks
    except ValueError:
        pass
    raise ValueError("one CIDR, or two with a comma between them, one of each IP family")


def _node_port_addresses(value: object) -> tuple[Network, ...] | str | None:
    if isinstance(value, list | tuple):
        if list(value) == ["primary"]:
            return "primary"
        try:
            return tuple(_network(item if isinstance(item, str) else "") for item in value) or None
        except ValueError:
            pass  # the message shows the list
    raise ValueError('a list of CIDRs, or exactly ["primary"]')


class Setting(NamedTuple):
    """One field that netagent honours: its `name` in Settings, its `default` as written in a file."""

    path: str
    name: str
    read: Reader
    unit: str
    default: str
    meaning: str

    def is_of_other_mode(self, mode: Mode) -> bool:
        """Whether the field is the other mode's twin of a field that both modes have."""
        other = Mode.IPTABLES if mode is Mode.NFTABLES else Mode.NFTABLES
        return self.path.startswith(f"{other}.") and self.path != "iptables.localhostNodePorts"


_MODES: Final = {"nftables": Mode.NFTABLES, "iptables": Mode.IPTABLES, "ipvs": Mode.NFTABLES}
_VARIANTS: Final = {name: name for name in ("auto", "legacy", "nft")}
_LOCAL_MODES: Final = {mode.value: mode for mode in DetectLocalMode}
_BIT: Final = _integer(0, 31)
_COUNT: Final = _integer(0, _INT32_MOST)
_PERIOD: Final = _duration(zero_is_unset=True)
_PAUSE: Final = _duration()

# Two lines a field: how it is read, and what people are told about it.
# fmt: off
SETTINGS: Final[tuple[Setting, ...]] = (
    Setting("mode", "mode", _text(_choice(_MODES)),
            "nftables, iptables or ipvs", "nftables", "the kernel's engine; ipvs is served by nftables"),
    Setting("hostnameOverride", "node_name", _text(lambda text: text.strip().lower()),
            "node name", '""', "name of the own Node object; empty: the host name"),
    Setting("bindAddress", "bind_address", _text(_address),
            "IP address", "0.0.0.0", "the node's own address, instead of the Node object's"),
    Setting("healthzBindAddress", "healthz_bind_address", _text(_socket_address(HEALTHZ_PORT)),
            "IP:port", "0.0.0.0:10256", "where the health server listens"),
    Setting("metricsBindAddress", "metrics_bind_address", _text(_socket_address(METRICS_PORT)),
            "IP:port", "127.0.0.1:10249", "where the metrics server listens"),
    Setting("bindAddressHardFail", "bind_address_hard_fail", _flag,
            "boolean", "false", "exit when one of the two servers cannot listen"),
    Setting("clientConnection.kubeconfig", "kubeconfig", _text(),
            "path", '""', "how to reach the API server; empty: the pod's service account"),
    Setting("clientConnection.qps", "qps", _rate,
            "requests per second", "5", "limit of lists, and of Events, at the API server; negative: no limit"),
    Setting("clientConnection.burst", "burst", _integer(0, _INT32_MOST, zero_is_unset=True),
            "requests", "10", "lists, and Events, that may exceed qps for a moment"),
    Setting("detectLocalMode", "detect_local_mode", _text(_choice(_LOCAL_MODES)),
            "one of " + ", ".join(_LOCAL_MODES), "ClusterCIDR", "how packets of pods are told from others"),
    Setting("clusterCIDR", "cluster_cidrs", _text(_cluster_cidrs),
            "CIDR, or two with a comma", '""', "addresses of pods, for mode ClusterCIDR"),
    Setting("detectLocal.bridgeInterface", "bridge_interface", _text(_interface),
            "interface name", '""', "the pods' bridge, for mode BridgeInterface"),
    Setting("detectLocal.interfaceNamePrefix", "interface_name_prefix", _text(_interface),
            "start of a name", '""', "start of the pods' interface names, for mode InterfaceNamePrefix"),
    Setting("nodePortAddresses", "node_port_addresses", _node_port_addresses,
            "list of CIDRs, or [primary]", "null", "own addresses on which node ports answer"),
    Setting("nftables.masqueradeAll", "masquerade_all", _flag,
            "boolean", "false", "all traffic to cluster IPs gets the node's address as source"),
    Setting("nftables.masqueradeBit", "masquerade_bit", _BIT,
            "bit number, 0 to 31", "14", "the bit of the packet mark that says \"to be masqueraded\""),
    Setting("nftables.syncPeriod", "sync_period_seconds", _PERIOD,
            "duration", "30s", "pause before a failed sync is tried again"),
    Setting("nftables.minSyncPeriod", "min_sync_period_seconds", _PAUSE,
            "duration", "0s", "least pause between two syncs"),
    Setting("iptables.masqueradeAll", "masquerade_all", _flag,
            "boolean", "false", "the same for mode iptables"),
    Setting("iptables.masqueradeBit", "masquerade_bit", _BIT,
            "bit number, 0 to 31", "14", "the same for mode iptables"),
    Setting("iptables.syncPeriod", "sync_period_seconds", _PERIOD,
            "duration", "30s", "the same for mode iptables"),
    Setting("iptables.minSyncPeriod", "min_sync_period_seconds", _PAUSE,
            "duration", "0s", "the same for mode iptables"),
    Setting("iptables.localhostNodePorts", "localhost_node_ports", _flag,
            "boolean", "true", "mode iptables: node ports answer on 127.0.0.1 too"),
    Setting("configSyncPeriod", "config_sync_period_seconds", _PERIOD,
            "duration", "15m", "pause between two passes that compare everything although nothing changed"),
    Setting("oomScoreAdj", "oom_score_adj", _integer(-1000, 1000),
            "score, -1000 to 1000", "-999", "the process's own oom_score_adj"),
    Setting("conntrack.maxPerCore", "conntrack.max_per_core", _COUNT,
            "connections per CPU core", "32768", "size of the connection table; 0: leave it alone"),
    Setting("conntrack.min", "conntrack.min", _COUNT,
            "connections", "131072", "least size of the connection table"),
    Setting("conntrack.tcpEstablishedTimeout", "conntrack.tcp_established_timeout_seconds", _duration(),
            "duration", "24h", "memory of an idle established TCP connection; 0s: leave it alone"),
    Setting("conntrack.tcpCloseWaitTimeout", "conntrack.tcp_close_wait_timeout_seconds", _duration(),
            "duration", "1h", "memory of a half-closed TCP connection; 0s: leave it alone"),
    Setting("conntrack.tcpBeLiberal", "conntrack.tcp_be_liberal", _flag,
            "boolean", "false", "packets outside the TCP window count as valid"),
    Setting("conntrack.udpTimeout", "conntrack.udp_timeout_seconds", _duration(),
            "duration", "0s", "memory of an unanswered UDP flow; 0s: leave it alone"),
    Setting("conntrack.udpStreamTimeout", "conntrack.udp_stream_timeout_seconds", _duration(),
            "duration", "0s", "memory of an answered UDP flow; 0s: leave it alone"),
    Setting("featureGates.AllowServiceExternalIPs", "allow_external_ips", _flag,
            "boolean", "true", "whether externalIPs of Services are served"),
    Setting("netagent.serviceProxyName", "service_proxy_name", _text(_label_value),
            "label value", '""', "serve the Services with this service-proxy-name label; empty: those without it"),
    Setting("netagent.families", "families", _some_of(FAMILIES, least=1),
            "list of IPv4 and IPv6", "[IPv4, IPv6]", "IP families to serve"),
    Setting("netagent.affinityClients", "affinity_clients", _integer(1, 2**24),
            "clients per IP family, 1 to 16777216", "65536", "clients remembered for session affinity"),
    Setting("netagent.dropInvalid", "drop_invalid", _flag,
            "boolean", "null", "drop packets that connection tracking calls INVALID"),
    Setting("netagent.staleFlowProtocols", "stale_flow_protocols", _some_of(("UDP", "SCTP"), least=0),
            "list of UDP and SCTP", "[UDP]", "protocols whose flows are cut when their endpoint goes"),
    Setting("netagent.serviceMetrics", "service_metrics", _flag,
            "boolean", "true", "count new connections for each Service port"),
    Setting("netagent.serviceMetricsMost", "service_metrics_most", _integer(0, 100_000),
            "series, 0 to 100000", "2000", "Service ports with a counter of their own; the others share one"),
    Setting("netagent.tableOwnership", "table_ownership", _flag,
            "boolean", "true", "nobody but the agent can change its nftables tables while it runs"),
    Setting("netagent.iptablesVariant", "iptables_variant", _text(_choice(_VARIANTS)),
            "auto, legacy or nft", "auto", "mode iptables: the implementation of xtables to write to"),
    Setting("netagent.socketGroup", "socket_group", _text(_group),
            "name or number of a group", '""', "who beside root may ask the agent (status, get, top, drift)"),
)
# fmt: on

_IGNORED_BY_REASON: Final = {
    "netagent reads JSON from the API server": "clientConnection.acceptContentTypes clientConnection.contentType",
    "the profiler is one for Go programs": "enableProfiling",
    "it is about kube-proxy's own metrics": "showHiddenMetricsForVersion",
    "the gate changes nothing in netagent": "featureGates.*",
    "netagent has no ipvs mode": "ipvs.syncPeriod ipvs.minSyncPeriod ipvs.scheduler ipvs.excludeCIDRs"
    " ipvs.strictARP ipvs.tcpTimeout ipvs.tcpFinTimeout ipvs.udpTimeout",
    "it is for Windows": "winkernel.networkName winkernel.sourceVip winkernel.enableDSR"
    " winkernel.rootHnsEndpointName winkernel.forwardHealthCheckVip windowsRunAsService",
    "netagent's logging is set on its command line": "logging.format logging.flushFrequency logging.verbosity"
    " logging.vmodule logging.options",
    "kube-proxy does not use it any more either": "portRange resourceContainer udpIdleTimeout",
}
# Fields of kube-proxy that mean nothing here, and why.
IGNORED: Final = {path: reason for reason, paths in _IGNORED_BY_REASON.items() for path in paths.split()}

_BY_PATH: Final = {setting.path: setting for setting in SETTINGS}
_BY_NAME: Final = {setting.name.replace(".", "_"): setting for setting in reversed(SETTINGS)}
_SECTIONS: Final = frozenset(path.partition(".")[0] for path in (*_BY_PATH, *IGNORED) if "." in path)


def parse(text: str | bytes, *, origin: str, mode: str | None = None) -> Parsed:
    """Return what a configuration file says, defaults filled in as kube-proxy fills them.

    `text` is YAML or JSON: a KubeProxyConfiguration, a file of several documents with one of that kind, or a
    ConfigMap that holds one (`kubectl -n kube-system get configmap kube-proxy -o yaml`). `origin` names it in
    messages. `mode` is the command line's; it wins over the file's and so decides which of the sections
    nftables and iptables counts.

    ConfigError lists everything that is wrong, one line each: origin, full path of the field, its value, what
    is allowed. Unknown and repeated fields are wrong too.
    """
    document, origin = _configuration(_documents(text, origin), origin)
    if mode is not None:
        document = {**document, "mode": mode}
    reading = _Reading()
    reading.document(document)
    settings = reading.settings(requested_mode=str(document.get("mode") or ""))
    _refuse(origin, reading.problems or list(_contradictions(settings)))
    return Parsed(settings, tuple(reading.remarks))


def override(settings: Settings, *, origin: str = "command line", **changes: object) -> Settings:
    """Return the settings with some changed, checked like a file.

    Changes go by their name in Settings (`conntrack_min` for `conntrack.min`) and have the shape that they
    have in the file: text for durations, addresses and choices, numbers, booleans, lists. None and "" leave
    the setting as it is. ConfigError lists all that are wrong. A mode that shall choose among a file's
    sections goes to `parse`.
    """
    reading = _Reading()
    for name, value in changes.items():
        if name not in _BY_NAME:
            raise errors.InvariantError(f"there is no setting {name!r} to override")
        path = _BY_NAME[name].path
        reading.field(path, value, label=path.removeprefix("nftables."))
    _refuse(origin, reading.problems)
    changed = _with_values(settings, {_BY_PATH[path].name: value for path, value in reading.values.items()})
    _refuse(origin, list(_contradictions(changed)))
    return changed


def node_name_of(settings: Settings, flag: str | None, host: str) -> str:
    """The own Node object's name: the flag's, else the file's, else the host's; trimmed, in lower case."""
    for name in (flag or "", settings.node_name, host):
        if name.strip():
            if not name.strip().isprintable():
                raise errors.ConfigError(f"{_shown(name)} is no name of a node: it has characters that nobody can see")
            return name.strip().lower()
    raise errors.ConfigError("the node has no name: set hostnameOverride or give the name on the command line")


class _Reading:
    """What has been read of one document so far.

    Owns `values` (by path; only what is set), `problems` and `remarks`. Feed it a document or single fields;
    it collects what is wrong and never raises.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self.remarks: list[str] = []

    def document(self, document: dict[object, object]) -> None:
        """Read all fields of a KubeProxyConfiguration."""
        ignored: dict[str, list[str]] = {}
        for path, value in self._leaves(document):
            if path in _BY_PATH:
                self.field(path, value)
            elif path in IGNORED:
                if not _is_zero(value):
                    ignored.setdefault(IGNORED[path], []).append(path)
            elif path.startswith("featureGates."):
                if not isinstance(value, bool | None):
                    self._wrong(path, value, "true or false")
                near = _nearest(path) if len(ignored) < _SUGGESTIONS_MOST else ""
                ignored.setdefault(IGNORED["featureGates.*"] + near, []).append(_printable(path))
            else:
                near = _nearest(path) if len(self.problems) < _SUGGESTIONS_MOST else ""
                self.problems.append(f"{_printable(path)}: there is no such field{near}")
        self.remarks += [f"{', '.join(paths)}: ignored, {reason}" for reason, paths in ignored.items()]

    def field(self, path: str, value: object, *, label: str | None = None) -> None:
        """Read one field that netagent honours; null is unset."""
        try:
            result = None if value is None else _BY_PATH[path].read(value)
        except ValueError as error:
            self._wrong(label or path, value, str(error))
        else:
            if result is not None:
                self.values[path] = result

    def settings(self, *, requested_mode: str) -> Settings:
        """The settings that the values make; remarks on the mode and on the other mode's section."""
        mode = self.values.get("mode", Mode.NFTABLES)
        if requested_mode == "ipvs":
            self.remarks.insert(0, "mode: ipvs is served by nftables, netagent has no ipvs mode")
        elif not requested_mode:
            self.remarks.insert(0, "mode: not set, netagent uses nftables (kube-proxy would use iptables)")
        defaults = Settings()
        values: dict[str, Any] = {}
        other: dict[str, str] = {}  # what the section of the other mode changes: setting name -> path
        for path, value in self.values.items():
            setting = _BY_PATH[path]
            if not setting.is_of_other_mode(mode):
                values[setting.name] = value
            elif value != getattr(defaults, setting.name):
                other[setting.name] = path
        if requested_mode != mode:  # written for iptables or ipvs, which both read the section iptables
            for name in ("masquerade_all", "masquerade_bit"):
                default = getattr(defaults, name)
                if name in other and values.get(name, default) == default:
                    path = other.pop(name)
                    values[name] = self.values[path]
                    self.remarks.append(f"{path}: used for mode nftables too, as the file asks for another mode")
        if other:
            self.remarks.append(f"{', '.join(other.values())}: ignored in mode {mode}")
        return _with_values(defaults, values)

    def _leaves(self, document: dict[object, object]) -> Iterator[tuple[str, object]]:
        for key, value in document.items():
            name = _escaped(key)
            if name in ("apiVersion", "kind"):
                continue
            if name not in _SECTIONS:
                yield name, value
            elif isinstance(value, dict):
                for inner, inner_value in value.items():
                    yield f"{name}.{_escaped(inner)}", inner_value
            elif value is not None:
                self._wrong(name, value, "a section with fields of its own")

    def _wrong(self, path: str, value: object, allowed: str) -> None:
        self.problems.append(f"{_printable(path)}: {_shown(value)} is wrong, it must be {allowed}")


def _with_values(settings: Settings, values: dict[str, Any]) -> Settings:
    """Settings with some replaced, by name; server addresses left at their default follow bind_address."""
    bind_address = values.get("bind_address", settings.bind_address)
    before, after = _default_servers(settings.bind_address), _default_servers(bind_address)
    plain = {name: value for name, value in values.items() if "." not in name}
    for name in before:
        if getattr(settings, name) == before[name]:
            plain.setdefault(name, after[name])
    nested = {name.partition(".")[2]: value for name, value in values.items() if "." in name}
    conntrack = msgspec.structs.replace(settings.conntrack, **nested)
    return msgspec.structs.replace(settings, conntrack=conntrack, **plain)


def _default_servers(bind_address: Address) -> dict[str, SocketAddress]:
    everywhere, loopback = ("0.0.0.0", "127.0.0.1") if bind_address.version == 4 else ("::", "::1")
    return {
        "healthz_bind_address": SocketAddress(ipaddress.ip_address(everywhere), HEALTHZ_PORT),
        "metrics_bind_address": SocketAddress(ipaddress.ip_address(loopback), METRICS_PORT),
    }


def _contradictions(settings: Settings) -> Iterator[str]:
    """What is wrong between fields that are right by themselves."""
    least, period = settings.min_sync_period_seconds, settings.sync_period_seconds
    if least > period:
        yield f"{settings.mode}.minSyncPeriod: {least:g}s is longer than the syncPeriod, {period:g}s"
    match settings.detect_local_mode:
        case DetectLocalMode.BRIDGE_INTERFACE if not settings.bridge_interface:
            yield "detectLocal.bridgeInterface: must not be empty in this detectLocalMode"
        case DetectLocalMode.INTERFACE_NAME_PREFIX if not settings.interface_name_prefix:
            yield "detectLocal.interfaceNamePrefix: must not be empty in this detectLocalMode"
        case DetectLocalMode.CLUSTER_CIDR if settings.cluster_cidrs:
            if not {f"IPv{network.version}" for network in settings.cluster_cidrs} & set(settings.families):
                yield f"clusterCIDR: has no network of the only family served, {', '.join(settings.families)}"


def _refuse(origin: str, problems: list[str]) -> None:
    told = problems[:_PROBLEMS_MOST]
    if len(problems) > len(told):
        told.append(f"{len(problems) - len(told)} more fields are wrong")
    if told:
        raise errors.ConfigError("\n".join(f"{origin}: {problem}" for problem in told))


def _configuration(found: list[object], origin: str, *, nested: bool = False) -> tuple[dict[object, object], str]:
    """The one KubeProxyConfiguration among the documents of a file, and where exactly it was found."""
    if len(found) > 1:
        found = [one for one in found if isinstance(one, dict) and one.get("kind") == KIND]
    if len(found) != 1:
        raise errors.ConfigError(f"{origin}: has {len(found) or 'no'} documents of kind {KIND}, it must have one")
    document = found[0]
    if not isinstance(document, dict):
        raise errors.ConfigError(f"{origin}: is not a {KIND}, it has no fields at all")
    version, kind = document.get("apiVersion"), document.get("kind")
    if (version, kind) == ("v1", "ConfigMap") and not nested:
        data = document.get("data")
        for key in CONFIG_MAP_KEYS:
            text = data.get(key) if isinstance(data, dict) else None
            if isinstance(text, str):
                inner = f"{origin}, {key} of the ConfigMap"
                return _configuration(_documents(text, inner), inner, nested=True)
        raise errors.ConfigError(f"{origin}: the ConfigMap's data has none of the keys {', '.join(CONFIG_MAP_KEYS)}")
    if (version, kind) != (API_VERSION, KIND):
        raise errors.ConfigError(
            f"{origin}: apiVersion {_shown(version)} and kind {_shown(kind)} are wrong, "
            f"they must be {API_VERSION} and {KIND} (or v1 and ConfigMap)"
        )
    return document, origin


def _documents(text: str | bytes, origin: str) -> list[object]:
    """The non-empty documents of a JSON or YAML text. ConfigError if it is neither, or repeats a key."""
    try:
        return documents.documents_of(text)
    except ValueError as error:
        raise errors.ConfigError(f"{origin}: cannot be read as YAML or JSON: {error}") from error


def _nearest(path: str) -> str:
    """`, did you mean ...?` for a path that nobody knows; "" when nothing is near."""
    import difflib

    section, _, name = path.rpartition(".")
    known = [*_BY_PATH, *(path for path in IGNORED if not path.endswith("*")), *_SECTIONS]
    siblings = {path.rpartition(".")[2].lower(): path for path in known if path.rpartition(".")[0] == section}
    near = [siblings[match] for match in difflib.get_close_matches(name.lower(), siblings, n=1, cutoff=0.7)]
    elsewhere = [path for path in _BY_PATH if path.rpartition(".")[2].lower() == name.lower()]
    found = near or elsewhere
    return f", did you mean {' or '.join(found)}?" if found else ""


def _is_zero(value: object, depth: int = 4) -> bool:
    """Whether a value is what Go writes for a field that nobody set."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_zero(inner, depth - 1) for inner in value.values())
    return value in (None, False, 0, "", "0", "0s") or value == []


def _escaped(key: object) -> str:
    """A key as one component of a path."""
    return str(key).replace(".", "\\.")


def _printable(text: str) -> str:
    text = text if len(text) <= 200 else f"{text[:197]}..."
    return text if escaping.printable(text) == text else ascii(text)


def _shown(value: object) -> str:
    """A value for a message: on one line, and not longer than one."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        return "a list of lists or sections"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return _printable(text if len(text) <= 80 else f"{text[:77]}...")
