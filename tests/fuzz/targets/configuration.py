"""Configuration files: settings that hold what they promise, or an error that says in single lines what is wrong."""

from __future__ import annotations

import ipaddress
import math

from netagent import errors, settings
from netagent.nftables import ruleset, text
from tests.fuzz.targets import _checks

_HEAD = b"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

WORDS = (
    _HEAD,
    b"apiVersion: v1\nkind: ConfigMap\ndata:\n  config.conf: |\n",
    *(f"{setting.path.rpartition('.')[2]}: ".encode() for setting in settings.SETTINGS),
    *(f"{section}:\n  ".encode() for section in ("nftables", "iptables", "conntrack", "detectLocal", "winkernel")),
    *(
        b"1m30s",
        b"-1h",
        b"0x" + b"f" * 60,
        b"1:1:1:1:1:1:1:1:1:1.5",
        b"2024-01-01T00:00:00+23:59",
        b"!!binary ",
        b"&a ",
    ),
    *(b"*a", b"<<: ", b"{", b"}", b"[", b"]", b"? ", b"\n---\n", b"primary", b"BridgeInterface\n", b'e\\"; drop\n'),
    *(
        b"10.0.0.0/8,fd00::/8",
        b"[::1]:80",
        b"\\ud800",
        b"\x1b",
        b'"\\0"',
        b".inf",
        b".nan",
        b"1e400",
        b"~",
        b"!!set {a}",
    ),
)


def run(data: bytes) -> None:
    """Parse a file as it is, and once more as the rest of one, so that the fields are met more often."""
    _parse(data)
    if not data.startswith((_HEAD[:10], b"{")):
        _parse(_HEAD + data)


def _parse(data: bytes) -> None:
    try:
        settled, remarks = settings.parse(data, origin="a.conf")
    except errors.ConfigError as error:
        for line in str(error).split("\n"):
            _checks.fit_to_be_shown(line)
        return
    for remark in remarks:
        # These count up fields; all of them stand in one sentence.
        _checks.require(remark.isprintable(), f"not printable: {remark[:200]!a}")
    for name in (settled.bridge_interface, settled.interface_name_prefix):
        rule = text.rule_text((ruleset.InputName(name, True),), next(iter(text._TABLE_FAMILY)))
        _checks.require(f'"{name}*"' in rule and rule.isprintable(), f"hostile name of an interface {name!a}")
        _checks.require(not set(name) & set(" \"'\\*:/"), f"a name that a tool would split {name!a}")
    for value in (settled.node_name, settled.kubeconfig, settled.service_proxy_name):
        _checks.require(value.isprintable(), f"not printable: {value[:200]!a}")
    for seconds in (settled.sync_period_seconds, settled.min_sync_period_seconds, settled.qps):
        _checks.require(math.isfinite(seconds), "no number")
    for network in (*settled.cluster_cidrs, *settled.node_port_networks):
        _checks.require(isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network), "no network")
    # What the command line says in addition, is checked in the same way.
    _checks.require(settings.override(settled) == settled, "changed by nothing")
