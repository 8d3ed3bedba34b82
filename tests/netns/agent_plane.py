"""netagent as the data plane of a case: the real stages, in this process, in the namespace of the node under test.

One agent lives through all steps of a case, as `netagent run` does; only the process around it and the watching of
the directory are missing here, and have tests of their own.
"""

from __future__ import annotations

import socket
from typing import Any

from netagent import conntrack, settings
from netagent.agent import dataplanes, planner, reconciler
from netagent.source import manifests

from . import planes


class InProcess:
    """Reads the site's directory and syncs, at every step. `variant`: of iptables, if the site's mode is that."""

    def __init__(self, site: planes.Site, *, variant: str = "auto") -> None:
        self._site = site
        parsed = settings.parse(site.config_file.read_bytes(), origin=str(site.config_file)).settings
        self._settings = settings.override(parsed, iptables_variant=variant)
        self._reading: manifests.Reading | None = None
        self._reconciler: reconciler.Reconciler | None = None
        self.operations: list[int] = []  # of each sync
        self.start_agent()

    def start_agent(self) -> None:
        wanted = self._settings
        name = settings.node_name_of(wanted, self._site.node_name, socket.gethostname())
        with self._site.node.entered():
            opened = dataplanes.opened(wanted)
        protocols = reconciler.stale_flow_protocols(wanted)
        self._reading = None
        self._reconciler = reconciler.Reconciler(
            planner.Planner(opened.settings, node_name=name), opened.backend, stale_flow_protocols=protocols
        )

    def stop_agent(self) -> None:
        if self._reconciler:
            self._reconciler.backend.close()
        self._reconciler = None

    def restart_agent(self) -> None:
        self.stop_agent()
        self.start_agent()

    def change_mode(self, mode: str, variant: str = "auto") -> None:
        """A new agent with another mode takes over, and removes what the last one left."""
        assert self._reconciler
        reading = self._reading
        self._settings = settings.override(self._settings, mode=mode, iptables_variant=variant)
        self.restart_agent()
        assert reading
        self._reading = reading
        self._reconciler.planner.store.replace(reading.objects)
        with self._site.node.entered():
            self._reconciler.sync()
            assert not dataplanes.retire_predecessors(self._reconciler.backend).failed

    def cleanup(self) -> None:
        self.stop_agent()
        with self._site.node.entered():
            dataplanes.retire_predecessors(None)

    def apply(self, step_number: int, objects: list[planes.Manifest], config: dict[str, Any]) -> None:
        assert self._reconciler, "the agent was stopped"
        self._reading = manifests.read(self._site.manifests, previous=self._reading)
        self._reconciler.planner.store.replace(self._reading.objects)
        with self._site.node.entered():
            report = self._reconciler.sync()
            self.operations.append(report.operations)
            cleaner = conntrack.FlowCleaner(local_addresses=reconciler.node_port_addresses(self._reconciler))
            reconciler.drop_stale_flows(cleaner, report.stale_flows)

    def close(self) -> None:
        self.stop_agent()
