"""The agent on a live cluster: everything wired together."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import netagent
from netagent import conntrack, errors, settings
from netagent.agent import (
    announcing,
    api_feed,
    collector,
    dataplanes,
    loop,
    node_addresses,
    notify,
    planner,
    reconciler,
    reloading,
    telling,
)
from netagent.agent.health import checks, pages, server, servers, state
from netagent.agent.local import serving
from netagent.agent.metrics import collectors, connections, xtables
from netagent.model import addresses
from netagent.nftables import counters, netlink
from netagent.source.api import events, pacing, recorder
from netagent.source.api.connection import Connection
from netagent.source.api.credentials import Access
from netagent.source.api.source import ApiSource
from netagent.source.kinds import Kind

log = logging.getLogger(__name__)


def _connections(socket: netlink.NftablesSocket, plan: planner.Planner) -> Iterator[connections.ElementCount]:
    """The connections of each frontend, with the Service port that has it."""
    desired = plan.forwarding.frontends
    for key, count in counters.frontend_counts(socket):
        frontend = desired.get(key)
        if frontend:
            yield connections.ElementCount(key, frontend.owner, key.family, count)


@contextmanager
def agent(
    reconcile: reconciler.Reconciler,
    wanted: settings.Settings,
    *,
    node_name: str,
    access: Access,
    flags: Mapping[str, str],
    read: Callable[[], settings.Settings],
    local: socket.socket | None = None,
) -> Iterator[loop.Loop]:
    """A loop that follows the API server, with its health and metrics servers listening.

    `read` reads the configuration again; `local` is the local socket, listening (None: there is none). ConfigError when
    there is no way to reach an API server. On leaving, everything has ended but the rules.
    """
    pace = collector.CollectorPace()
    notifier = notify.Notifier(os.environ)
    plan = reconcile.planner
    families = [addresses.Family(family) for family in plan.settings.families]
    health = state.AgentHealth(
        families, sync_period_seconds=wanted.sync_period_seconds, sources=[str(kind) for kind in Kind]
    )
    running: loop.Loop | None = None  # the servers answer before there is one
    with ExitStack() as stack:
        metrics = _metrics(stack, plan, wanted, health)
        about = _About(node_name, wanted.mode, time.time(), flags, lambda: running.unexpected_errors if running else {})
        listening, service_checks = _servers(stack, plan, health, metrics, about)
        host = _host_addresses(stack)
        teller = telling.Telling(
            plan,
            agent=health,
            metrics=metrics,
            listening=listening,
            service_checks=service_checks,
            notifier=notifier,
            local_addresses=_current(host),
        )
        watching = _Watching(
            plan, health=health, listening=listening, service_checks=service_checks, local=_current(host)
        )
        connection = Connection(access)
        limit = partial(pacing.RequestLimit, wanted.qps, wanted.burst)  # for lists, and for Events
        events_out = recorder.EventRecorder(connection, node_name=node_name, request_limit=limit())
        metrics.count_events(lambda: events_out.counts)
        announcer = announcing.Announcing(
            plan,
            node_name=node_name,
            record=events_out.record,
            listen_failures=lambda: service_checks.failures,
        )
        _listen(listening, wanted, announcer)

        def hear(drained: Iterable[events.Event]) -> None:
            teller.heard(drained)
            announcer.heard(drained)

        source = ApiSource(
            connection, node_name=node_name, proxy_name=wanted.service_proxy_name or None, request_limit=limit()
        )
        metrics.count_source(lambda: {str(kind): source.status(kind).counts for kind in source.kinds})
        feed = api_feed.ApiFeed(source, listen=hear)
        stack.callback(feed.close)
        stack.enter_context(events_out)  # ends before the connection does, which would look like trouble
        chronicle = stack.enter_context(
            serving.serving(local, reconcile, node_name=node_name, source=feed, health=health.report)
        )
        teller.count_quarantined(lambda: feed.quarantined)
        teller.ask_staleness(feed.staleness)
        again = reloading.Reloading(
            reconcile,
            read,
            configured=wanted.families,
            listen=lambda changed: _moved(listening, changed, announcer),
            follow=lambda changed: health.use(
                [addresses.Family(family) for family in changed.families],
                sync_period_seconds=changed.sync_period_seconds,
            ),
        )
        running = loop.Loop(
            feed,
            reconcile,
            cleaner=conntrack.FlowCleaner(
                local_addresses=reconciler.node_port_addresses(reconcile, local=_current(host))
            ),
            pace=loop.pace_of(wanted),
            observers=[
                teller,
                watching,
                announcer,
                pace,
                dataplanes.Retiring(reconcile.backend),
                chronicle,
                *xtables.observers(reconcile.backend, metrics),
            ],
            reload=lambda: _reloaded(again, notifier, teller),
            addresses=host,
        )
        yield running
        notifier.stopping()


# The parts that others look at ----------------------------------------------------------------------------------


class _About(NamedTuple):
    """What of the process is shown on its pages. `unexpected`: how often what broke that should not."""

    node_name: str
    mode: settings.Mode
    started: float
    flags: Mapping[str, str]
    unexpected: Callable[[], Mapping[str, int]]


def _metrics(
    stack: ExitStack, plan: planner.Planner, wanted: settings.Settings, health: state.AgentHealth
) -> collectors.Metrics:
    read_connections = None
    if wanted.service_metrics and wanted.mode is settings.Mode.NFTABLES:
        # A socket of its own: it is read when somebody scrapes, in the thread of the metrics server.
        counting = stack.enter_context(netlink.NftablesSocket())
        read_connections = partial(_connections, counting, plan)
    return collectors.Metrics(
        health,
        mode=wanted.mode,
        families=[addresses.Family(family) for family in plan.settings.families],
        sources=[str(kind) for kind in Kind],
        read_connections=read_connections,
        series_most=wanted.service_metrics_most,
    )


def _servers(
    stack: ExitStack, plan: planner.Planner, health: state.AgentHealth, metrics: collectors.Metrics, about: _About
) -> tuple[servers.AgentServers, checks.ServiceHealthChecks]:
    """The servers of the agent, which do not listen yet, and those of Services."""
    server.raise_open_files_limit()
    for_health, for_metrics = server.Server("health"), server.Server("metrics")
    stack.callback(for_metrics.stop)
    stack.callback(for_health.stop)
    listening = servers.AgentServers(
        health=for_health,
        health_handler=pages.health_pages(health, answered=metrics.health_answered),
        metrics=for_metrics,
        metrics_handler=pages.metrics_pages(
            exposition=metrics.exposition,
            slis=metrics.slis,
            configuration=lambda: plan.settings,
            status=lambda: pages.status_of(
                health.report(),
                version=netagent.__version__,
                started=about.started,
                mode=about.mode,
                node_name=about.node_name,
                unexpected_errors=about.unexpected(),
            ),
            flags=about.flags,
        ),
    )
    return listening, checks.ServiceHealthChecks(for_health, healthy=health.healthy)


def _listen(listening: servers.AgentServers, wanted: settings.Settings, announcer: announcing.Announcing) -> None:
    """Have the servers listen, for the first time; NetagentError if one cannot, under bindAddressHardFail."""
    failures = _moved(listening, wanted, announcer)
    for failure in failures:
        log.warning("%s", failure)
    if failures and wanted.bind_address_hard_fail:
        raise errors.NetagentError(f"{failures[0]}; bindAddressHardFail ends the agent, the rules stay")


def _moved(
    listening: servers.AgentServers, wanted: settings.Settings, announcer: announcing.Announcing
) -> Sequence[servers.ServerFailure]:
    """Have the servers listen where the settings say, and tell on the Node which cannot."""
    failures = listening.use(wanted)
    announcer.servers_failed(failures)
    return failures


def _reloaded(again: reloading.Reloading, notifier: notify.Notifier, teller: telling.Telling) -> loop.Pace | None:
    """Read the configuration again, and keep the service manager informed."""
    notifier.reloading()
    try:
        return again.reload()
    finally:
        teller.reloaded()


class _Watching(loop.Observer):
    """Has the servers follow the host's addresses, and health know of what breaks.

    Use: as an observer of the loop. Threading: the loop's.
    """

    def __init__(
        self,
        plan: planner.Planner,
        *,
        health: state.AgentHealth,
        listening: servers.AgentServers,
        service_checks: checks.ServiceHealthChecks,
        local: Callable[[], Collection[bytes]],
    ) -> None:
        self._planner = plan
        self._health = health
        self._listening = listening
        self._checks = service_checks
        self._local = local

    def addresses_changed(self) -> None:
        self._listening.hurry()
        self._checks.move(listen_on=checks.listen_on(self._planner.rules, self._local()))

    def stumbled(self, where: str, error: Exception) -> None:
        self._health.stumbled()


def _host_addresses(stack: ExitStack) -> node_addresses.NodeAddresses | None:
    """The host's addresses, followed; None if the kernel does not tell them. Then they are read now and then."""
    try:
        return stack.enter_context(node_addresses.NodeAddresses())
    except OSError as error:
        log.warning("cannot follow the host's addresses; reading them now and then", extra={"reason": str(error)})
        return None


def _current(host: node_addresses.NodeAddresses | None) -> Callable[[], frozenset[bytes]]:
    return conntrack.local_addresses_of_kernel if host is None else lambda: host.current
