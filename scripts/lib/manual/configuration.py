"""The page netagent.conf(5), and the JSON Schema of the same file, from the table of settings."""

from __future__ import annotations

from typing import Any, Final

import yaml

from manual.roff import Page
from netagent import settings

_TITLES: Final = {
    "": "General",
    "clientConnection": "API server",
    "detectLocal": "Which packets come from pods",
    "nftables": "Mode nftables",
    "iptables": "Mode iptables",
    "conntrack": "Connection tracking",
    "featureGates": "Feature gates",
    "netagent": "netagent's own",
}
_DURATION: Final = r"^[+-]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$"
_BOOLEAN: Final = {"type": "boolean"}
_TEXT: Final = {"type": "string"}
_PERIOD: Final = {"type": "string", "pattern": _DURATION}


def _whole(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def _one_of(*names: str) -> dict[str, Any]:
    return {"type": "string", "enum": ["", *names]}


def _some_of(*names: str, least: int) -> dict[str, Any]:
    return {"type": "array", "minItems": least, "items": {"type": "string", "enum": list(names)}}


# From the unit in the table of settings to what a value may be. A unit that is not here says nothing beyond its type.
_KINDS: Final[dict[str, dict[str, Any]]] = {
    "nftables, iptables or ipvs": _one_of("nftables", "iptables", "ipvs"),
    "node name": _TEXT,
    "IP address": _TEXT,
    "IP:port": _TEXT,
    "boolean": _BOOLEAN,
    "path": _TEXT,
    "requests per second": {"type": "number", "exclusiveMinimum": -1e9, "exclusiveMaximum": 1e9},
    "requests": _whole(0, 2**31 - 1),
    f"one of {', '.join(settings.DetectLocalMode)}": _one_of(*settings.DetectLocalMode),
    "CIDR, or two with a comma": _TEXT,
    "interface name": {"type": "string", "maxLength": 15},
    "start of a name": {"type": "string", "maxLength": 15},
    "list of CIDRs, or [primary]": {"type": "array", "items": _TEXT},
    "bit number, 0 to 31": _whole(0, 31),
    "duration": _PERIOD,
    "score, -1000 to 1000": _whole(-1000, 1000),
    "connections per CPU core": _whole(0, 2**31 - 1),
    "connections": _whole(0, 2**31 - 1),
    "label value": {"type": "string", "maxLength": 63},
    "list of IPv4 and IPv6": _some_of("IPv4", "IPv6", least=1),
    "clients per IP family, 1 to 16777216": _whole(1, 2**24),
    "list of UDP and SCTP": _some_of("UDP", "SCTP", least=0),
    "series, 0 to 100000": _whole(0, 100_000),
    "auto, legacy or nft": _one_of("auto", "legacy", "nft"),
}


def page(*, version: str) -> Page:
    """netagent.conf(5)."""
    written = Page("netagent.conf", 5, purpose="configuration of netagent, in kube-proxy's format", version=version)
    written.heading("DESCRIPTION")
    written.prose(f"""
`netagent run` and all other commands with the option `--config` read the file that kube-proxy reads: a
{settings.KIND} (apiVersion {settings.API_VERSION}), in YAML or JSON; alone, among other documents of one
file, or in a ConfigMap under the key {", ".join(f"`{key}`" for key in settings.CONFIG_MAP_KEYS)}. As a service netagent
reads /etc/netagent/config.yaml.

A field that is left out, null or empty has its default. A field that does not exist, one that stands twice in its
section and a value out of its range are errors; all of them are reported at once, and netagent does not start with such
a file. The command line wins over the file. SIGHUP makes `netagent run` read it again; a file with an error is refused
then, and what was in force stays.

A duration is a number with its unit, `ns`, `us`, `ms`, `s`, `m` or `h`, and several of them in a row: 100ms, 1m30s.
""")
    written.heading("FIELDS")
    for section, found in _sections().items():
        written.subheading(_TITLES[section])
        for setting in found:
            written.item(setting.path, f"{_sentence(setting.meaning)}  [{setting.unit}; default: {setting.default}]")
    written.heading("IGNORED FIELDS")
    written.paragraph("Fields of kube-proxy that mean nothing here. A file may contain them.")
    for path, reason in sorted(settings.IGNORED.items()):
        written.item(path, _sentence(reason))
    written.heading("EXAMPLE")
    written.verbatim(
        (
            f"apiVersion: {settings.API_VERSION}",
            f"kind: {settings.KIND}",
            "clusterCIDR: 10.244.0.0/16",
            "nodePortAddresses: [primary]",
            "netagent:",
            "  serviceMetricsMost: 200",
        )
    )
    written.see_also([("netagent", 8), ("netagent-run", 8), ("netagent-rules", 7)])
    return written


def schema() -> dict[str, Any]:
    """JSON Schema of the configuration file. It refuses no file that netagent takes, and knows every field; what only
    netagent can tell (whether an address is one, whether two fields contradict each other) it leaves to netagent."""
    properties: dict[str, Any] = {
        "apiVersion": {"const": settings.API_VERSION},
        "kind": {"const": settings.KIND},
    }
    for setting in settings.SETTINGS:
        about = {
            "description": f"{_sentence(setting.meaning)} Unit or kind: {setting.unit}. Default: {setting.default}.",
            **_nullable(_KINDS.get(setting.unit) or _kind_of(setting)),
        }
        _put(properties, setting.path, about)
    for path, reason in settings.IGNORED.items():
        if not path.endswith(".*"):
            _put(properties, path, {"description": f"Ignored: {reason}."})
    properties["featureGates"]["additionalProperties"] = {
        "type": ["boolean", "null"],
        "description": "Ignored: the gate changes nothing in netagent.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of netagent",
        "description": "A KubeProxyConfiguration as netagent reads it; docs/configuration.md says more.",
        "type": "object",
        "required": ["apiVersion", "kind"],
        "properties": dict(sorted(properties.items())),
        "additionalProperties": False,
    }


def _kind_of(setting: settings.Setting) -> dict[str, Any]:
    """What JSON type a setting takes whose unit says no more than that: the one of its default, as YAML reads it."""
    default = yaml.safe_load(setting.default)
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (list, "array")):
        if isinstance(default, kind):
            return {"type": name}
    return {"type": "string"}


def _sections() -> dict[str, list[settings.Setting]]:
    found: dict[str, list[settings.Setting]] = {name: [] for name in _TITLES}
    for setting in settings.SETTINGS:
        found[setting.path.rpartition(".")[0]].append(setting)
    return found


def _put(properties: dict[str, Any], path: str, about: dict[str, Any]) -> None:
    section, _, name = path.rpartition(".")
    if section:
        inner = properties.setdefault(
            section, {"type": ["object", "null"], "properties": {}, "additionalProperties": False}
        )
        inner["properties"] = dict(sorted({**inner["properties"], name: about}.items()))
    else:
        properties[name] = about


def _nullable(kind: dict[str, Any]) -> dict[str, Any]:
    """The same, or null, which means: not set."""
    values = {"enum": [*kind["enum"], None]} if "enum" in kind else {}
    return {**kind, "type": [kind["type"], "null"], **values}


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
