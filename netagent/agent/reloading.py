"""What a configuration that is read again changes at once, and what waits for a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import msgspec

from netagent import errors, settings
from netagent.agent import loop, reconciler
from netagent.agent.health import servers

log = logging.getLogger(__name__)

# What is used once, when the agent starts: fields of Settings.
AT_START: Final = frozenset(
    {
        "mode",
        "node_name",
        "kubeconfig",
        "qps",
        "burst",
        "oom_score_adj",
        "affinity_clients",
        "service_proxy_name",
        "service_metrics",
        "service_metrics_most",
        "iptables_variant",
        "table_ownership",
        "socket_group",
    }
)
# What takes effect at once, as a whole or in the parts that are used while the agent runs.
AT_ONCE: Final = frozenset(
    {
        "families",
        "detect_local_mode",
        "cluster_cidrs",
        "bridge_interface",
        "interface_name_prefix",
        "masquerade_all",
        "masquerade_bit",
        "node_port_addresses",
        "localhost_node_ports",
        "sync_period_seconds",
        "min_sync_period_seconds",
        "config_sync_period_seconds",
        "bind_address",
        "healthz_bind_address",
        "metrics_bind_address",
        "bind_address_hard_fail",
        "allow_external_ips",
        "drop_invalid",
        "stale_flow_protocols",
        "conntrack",
    }
)
# Of the section `conntrack` the agent itself uses this; the rest is for `netagent sysctl`, which runs before it.
_CONNTRACK_AT_ONCE: Final = "tcp_be_liberal"


class Outcome(msgspec.Struct, frozen=True):
    """`settings`: what holds from now on. `at_restart`: what the file says differently, as the file calls it."""

    settings: settings.Settings
    at_restart: tuple[str, ...]


def followed(
    running: settings.Settings, wanted: settings.Settings, *, configured: Collection[str], usable: Collection[str]
) -> Outcome:
    """Return what comes of `wanted` in an agent that runs by `running`.

    `configured` are the IP families that it was started with, `usable` those of them that the kernel can serve: no
    others can be added.
    """
    kept = {name: getattr(running, name) for name in AT_START}
    families = tuple(family for family in wanted.families if family in usable)
    late = {name for name, value in kept.items() if getattr(wanted, name) != value}
    if not families or not set(wanted.families) <= set(configured):
        late.add("families")
    conntrack = msgspec.structs.asdict(wanted.conntrack)
    for name, value in conntrack.items():
        if name != _CONNTRACK_AT_ONCE and value != getattr(running.conntrack, name):
            late.add(f"conntrack.{name}")
    return Outcome(
        msgspec.structs.replace(
            wanted,
            **kept,
            families=families or running.families,
            conntrack=msgspec.structs.replace(running.conntrack, tcp_be_liberal=wanted.conntrack.tcp_be_liberal),
        ),
        _paths(late),
    )


class Reloading:
    """Reads the configuration again, and has everything that runs follow it.

    Owns: which IP families the agent was started with. Use: `reload`, in the thread of the loop, which goes on with
    the pace that it returns.
    Goals: a configuration that is wrong, or that asks for an address which is taken under bindAddressHardFail, is
    refused as a whole, with the reason; what it changes in vain is named.
    Threading: none.
    """

    def __init__(
        self,
        reconcile: reconciler.Reconciler,
        read: Callable[[], settings.Settings],
        *,
        configured: Collection[str],
        listen: Callable[[settings.Settings], Sequence[servers.ServerFailure]] = lambda wanted: (),
        follow: Callable[[settings.Settings], None] = lambda wanted: None,
    ) -> None:
        """`read` raises NetagentError when the configuration is wrong. `listen` moves the servers and returns what
        cannot listen, `follow` tells all others. `configured`: the IP families that were asked for at the start."""
        self._reconciler = reconcile
        self._read = read
        self._configured = frozenset(configured)
        self._usable = frozenset(reconcile.planner.settings.families)
        self._listen = listen
        self._follow = follow

    def reload(self) -> loop.Pace | None:
        """Follow the configuration as it is now; None if it is refused."""
        running = self._reconciler.planner.settings
        try:
            wanted = self._read()
        except errors.InvariantError:
            raise
        except errors.NetagentError as error:
            _refuse(str(error))
            return None
        outcome = followed(running, wanted, configured=self._configured, usable=self._usable)
        failures = self._listen(outcome.settings)
        if failures and outcome.settings.bind_address_hard_fail:
            self._listen(running)
            _refuse(f"{failures[0]._replace(kept=None)}, and bindAddressHardFail is set")
            return None
        for failure in failures:
            log.warning("%s", failure)
        self._reconciler.use(outcome.settings)
        self._follow(outcome.settings)
        if outcome.at_restart:
            log.warning("these settings take effect at a restart only: %s", ", ".join(outcome.at_restart))
        log.info("configuration read again")
        return loop.pace_of(outcome.settings)


def _refuse(reason: str) -> None:
    for line in reason.splitlines():
        log.error("configuration refused, keeping the old one: %s", line)


def _paths(names: Iterable[str]) -> tuple[str, ...]:
    """The names that the configuration file has for fields of Settings, sorted."""
    paths = {setting.name: setting.path for setting in reversed(settings.SETTINGS)}
    return tuple(sorted(paths.get(name, name) for name in names))
