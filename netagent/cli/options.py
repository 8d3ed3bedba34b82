"""Options that the commands share, and the settings that come of them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from netagent import errors, escaping, settings

Command = TypeVar("Command", bound=Callable[..., Any])

# Command line option, name in Settings, type, and help (with unit and default). The names are kube-proxy's.
_OVERRIDES: tuple[tuple[str, str, Any, str], ...] = (
    ("--detect-local-mode", "detect_local_mode", click.Choice([mode.value for mode in settings.DetectLocalMode]),
     "How packets of local pods are told from others.  [default: ClusterCIDR]"),
    ("--cluster-cidr", "cluster_cidrs", str,
     "Addresses of pods: a CIDR, or one a family with a comma.  [default: none]"),
    ("--pod-bridge-interface", "bridge_interface", str,
     "The pods' bridge, for mode BridgeInterface: interface name.  [default: none]"),
    ("--pod-interface-name-prefix", "interface_name_prefix", str,
     "Start of the pods' interface names, for mode InterfaceNamePrefix.  [default: none]"),
    ("--nodeport-addresses", "node_port_addresses", str,
     "Own addresses that answer on node ports: CIDRs with commas, or primary.  [default: primary]"),
    ("--masquerade-bit", "masquerade_bit", int,
     "Bit of the packet mark that means \"masquerade\": 0 to 31.  [default: 14]"),
    ("--sync-period", "sync_period_seconds", str,
     "Most time between two syncs, or after a failed one: duration, as 30s.  [default: 30s]"),
    ("--min-sync-period", "min_sync_period_seconds", str,
     "Least pause between two syncs: duration, as 100ms.  [default: 0s]"),
)  # fmt: skip


class Source(NamedTuple):
    """What a command works on: its manifests (None: an API server), its settings, and the node's name."""

    path: str | None
    wanted: settings.Settings
    node_name: str
    strict: bool


def common(command: Command) -> Command:
    """Add the options that every command with a source takes; `source_of` makes a Source of them."""
    return _with_options(command, path_required=True)


def looking(command: Command) -> Command:
    """Add the same options for a command that only looks: without -f it asks the agent, then the kernel."""
    return _with_options(command, path_required=False)


def live(command: Command) -> Command:
    """Add the same options, and those for an API server, which is followed where no -f is given."""
    decorated: Any = _with_options(command, path_required=False)
    for flag, name, text in (
        (
            "--metrics-bind-address",
            "metrics_bind_address",
            "Where the metrics server listens.  [default: 127.0.0.1:10249]",
        ),
        (
            "--healthz-bind-address",
            "healthz_bind_address",
            "Where the health server listens.  [default: 0.0.0.0:10256]",
        ),
        ("--master", "master", "URL of the API server, instead of the one in the kubeconfig.  [default: none]"),
        ("--kubeconfig", "kubeconfig", "How to reach the API server.  [default: as the pod that we are]"),
    ):
        decorated = click.option(flag, name, default=None, help=text)(decorated)
    return decorated  # type: ignore[no-any-return]


def tolerated(command: Command) -> Command:
    """Accept the same options and hand none on, so that every command can be given the same line. The command's own
    options come before."""
    own = {parameter.name for parameter in getattr(command, "__click_params__", ())}

    @wraps(command)
    def without_options(**given: Any) -> Any:
        return command(**{name: value for name, value in given.items() if name in own})

    return _with_options(without_options, path_required=False)  # type: ignore[return-value]


def _with_options(command: Command, *, path_required: bool) -> Command:
    decorated: Any = command
    for flag, name, kind, text in reversed(_OVERRIDES):
        decorated = click.option(flag, name, type=kind, default=None, help=text)(decorated)
    for decorate in (
        click.option("--masquerade-all", is_flag=True, default=None, help="Masquerade all traffic to cluster IPs."),
        click.option("--strict", is_flag=True, help="Fail if any object has to be set aside."),
        click.option(
            "--mode",
            type=click.Choice(["nftables", "iptables", "ipvs"]),
            default=None,
            help="The kernel's engine; ipvs is served by nftables.  [default: nftables]",
        ),
        click.option(
            "--family",
            "families",
            type=click.Choice(["IPv4", "IPv6"], case_sensitive=False),
            multiple=True,
            help="IP family to serve; may be repeated.  [default: both]",
        ),
        click.option("--node-name", default=None, help="Name of the own Node object.  [default: the host name]"),
        click.option(
            "--config",
            "config_path",
            type=click.Path(dir_okay=False),
            default=None,
            help="KubeProxyConfiguration file, or the ConfigMap that holds one: YAML or JSON.  [default: none]",
        ),
        click.option(
            "-f",
            "--filename",
            "path",
            type=click.Path(allow_dash=True),  # nothing is checked here; shells complete it
            required=path_required,
            metavar="FILE|DIR|-",
            help="Manifests: Services, EndpointSlices, Nodes, ServiceCIDRs; YAML or JSON; - reads standard input.",
        ),
    ):
        decorated = decorate(decorated)
    return decorated  # type: ignore[no-any-return]


def output(*, help: str, choices: Sequence[str] = ("text", "json", "yaml")) -> Callable[[Command], Command]:
    """Add -o: the first of the `choices` is the default."""
    kind = click.Choice(choices)
    return click.option("-o", "--output", type=kind, default=choices[0], show_default=True, help=help)


def source_of(
    *,
    path: str | None,
    config_path: str | None,
    node_name: str | None,
    families: tuple[str, ...],
    mode: str | None,
    strict: bool,
    **overrides: Any,
) -> Source:
    """The source and settings that the options name; remarks about them go to standard error."""
    parsed = settings_of(config_path, mode)
    for remark in parsed.remarks:
        say(remark)
    if mode == "ipvs":
        say("mode ipvs is served by nftables")
    for name in ("cluster_cidrs", "node_port_addresses"):
        if name == "node_port_addresses" and overrides.get(name):
            overrides[name] = overrides[name].split(",")
    wanted = settings.override(parsed.settings, mode=mode, families=list(families) or None, **overrides)
    return Source(path, wanted, settings.node_name_of(wanted, node_name, socket.gethostname()), strict)


def settings_of(path: str | None, mode: str | None) -> settings.Parsed:
    """What a configuration file says; the defaults without one. ConfigError if it cannot be read."""
    if path is None:
        return settings.Parsed(settings.Settings(), ())
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise errors.ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    return settings.parse(content, origin=path, mode=mode)


def say(text: str) -> None:
    """Tell people something, on one line, whatever names are in it: on standard error, as standard output is data."""
    click.echo(f"netagent: {escaping.printable(text)}", err=True)
