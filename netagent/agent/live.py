"""The agent on a live cluster: everything wired together."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

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
from netagent.plan import forwarding
from netagent.source.api import events, pacing, recorder
from netagent.source.api.connection import Connection
from netagent.source.api.credentials import Access
from netagent.source.api.source import ApiSource
from netagent.source.kinds import Kind

log = logging.getLogger(__name__)


def _connections(socket: netlink.NftablesSocket, desired: forwarding.Forwarding) -> Iterator[connections.ElementCount]:
    """The connections of each frontend, with the Service port that has it."""
    for key, count in counters.frontend_counts(socket):
        frontend = desired.frontends.get(key)
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
    kinds = [str(kind) for kind in Kind]
    families = [addresses.Family(family) for family in reconcile.planner.settings.families]
    health = state.AgentHealth(families, sync_period_seconds=wanted.sync_period_seconds, sources=kinds)
    started = time.time()
    running: loop.Loop | None = None  # the servers answer before there is one
    with ExitStack() as stack:
        read_connections = None
        if wanted.service_metrics and wanted.mode is settings.Mode.NFTABLES:
            # A socket of its own: it is read when somebody scrapes, in the thread of the metrics server.
            counting = stack.enter_context(netlink.NftablesSocket())
            read_connections = partial(_connections, counting, reconcile.planner.forwarding)
        metrics = collectors.Metrics(
            health,
            mode=wanted.mode,
            families=families,
            sources=kinds,
            read_connections=read_connections,
            series_most=wanted.service_metrics_most,
        )
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
                configuration=lambda: reconcile.planner.settings,
                status=lambda: pages.status_of(
                    health.report(),
                    version=netagent.__version__,
                    started=started,
                    mode=wanted.mode,
                    node_name=node_name,
                    unexpected_errors=running.unexpected_errors if running else {},
                ),
                flags=flags,
            ),
        )
        service_checks = checks.ServiceHealthChecks(for_health, healthy=health.healthy)
        host = _host_addresses(stack)
        teller = telling.Telling(
            reconcile.planner,
            agent=health,
            metrics=metrics,
            listening=listening,
            service_checks=service_checks,
            notifier=notifier,
            local_addresses=_current(host),
        )
        watching = _Watching(
            reconcile.planner, health=health, listening=listening, service_checks=service_checks, local=_current(host)
        )
        connection = Connection(access)
        events_out = recorder.EventRecorder(
            connection, node_name=node_name, request_limit=pacing.RequestLimit(wanted.qps, wanted.burst)
        )
        metrics.count_events(lambda: events_out.counts)
        announcer = announcing.Announcing(
            reconcile.planner,
            node_name=node_name,
            record=events_out.record,
            listen_failures=lambda: service_checks.failures,
        )
        failures = listening.use(wanted)
        announcer.servers_failed(failures)
        for failure in failures:
            log.warning("%s", failure)
        if failures and wanted.bind_address_hard_fail:
            raise errors.NetagentError(f"{failures[0]}; bindAddressHardFail ends the agent, the rules stay")

        def hear(drained: Iterable[events.Event]) -> None:
            teller.heard(drained)
            announcer.heard(drained)

        source = ApiSource(
            connection,
            node_name=node_name,
            proxy_name=wanted.service_proxy_name or None,
            request_limit=pacing.RequestLimit(wanted.qps, wanted.burst),
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

        def listen(changed: settings.Settings) -> Sequence[servers.ServerFailure]:
            failed = listening.use(changed)
            announcer.servers_failed(failed)
            return failed

        def follow(changed: settings.Settings) -> None:
            served = [addresses.Family(family) for family in changed.families]
            health.use(served, sync_period_seconds=changed.sync_period_seconds)

        again = reloading.Reloading(reconcile, read, configured=wanted.families, listen=listen, follow=follow)

        def reload_and_tell() -> loop.Pace | None:
            notifier.reloading()
            try:
                return again.reload()
            finally:
                teller.reloaded()

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
            reload=reload_and_tell,
            addresses=host,
        )
        yield running
        notifier.stopping()


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
