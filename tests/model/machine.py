"""A host with an agent, to which anything happens in any order: events of the API, edits of others, kills, restarts,
other settings. After each quiet moment the kernel equals the plan."""

from __future__ import annotations

import ipaddress
import os
import random
import signal
import time
from collections import Counter
from typing import Any, ClassVar

import hypothesis
import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from netagent import settings
from netagent.agent import planner, reconciler
from netagent.model import objects
from netagent.model.addresses import Family, Protocol
from netagent.nftables import backend, netlink, probe
from netagent.source import store as stores
from netagent.source.kinds import Kind
from tests import builders, kernel
from tests.chaos import agents
from tests.chaos.drills import edits
from tests.model import agreement

_NODE = "node-1"
_POLICIES = st.sampled_from(objects.TrafficPolicy)
_NAMES = st.sampled_from(("web", "shop", "door", "mail"))
_NUMBERS = {"web": 1, "shop": 2, "door": 3, "mail": 4}
_PORTS = st.lists(
    st.builds(
        objects.ServicePort,
        name=st.just("http"),
        protocol=st.sampled_from((Protocol.TCP, Protocol.UDP)),
        port=st.sampled_from((80, 81)),
        node_port=st.sampled_from((0, 0, 30080, 30081)),
    ),
    min_size=1,
    max_size=1,
)
_ENDPOINTS = st.builds(
    builders.endpoint,
    st.integers(1, 5).map("10.180.0.{}".format),
    ready=st.booleans(),
    serving=st.booleans(),
    terminating=st.booleans(),
    node=st.sampled_from((None, _NODE, _NODE, "node-2")),
    zones=st.sampled_from(((), (), ("a",), ("b",))),
)
_OF_IPV6 = st.builds(builders.endpoint, st.integers(1, 3).map("fd00:180::{}".format))
_NETWORK = ipaddress.ip_network("10.180.0.0/16"), ipaddress.ip_network("fd00:180::/32")
_SETTINGS = (
    {},
    {"masquerade_all": True},
    {"cluster_cidrs": _NETWORK},
    {"masquerade_bit": 7},
    {"families": ("IPv4",)},
    {"node_port_addresses": "primary"},
    {"drop_invalid": False},
    {
        "detect_local_mode": settings.DetectLocalMode.INTERFACE_NAME_PREFIX,
        "interface_name_prefix": "veth",
    },
)


class Host(RuleBasedStateMachine):
    """The agent is the reconciler with its backend, on the kernel of this namespace, which belongs to the test."""

    counts: ClassVar[Counter[str]] = Counter()  # of all examples

    def __init__(self) -> None:
        super().__init__()
        kernel.fresh()
        self.services: dict[str, objects.Service] = {}
        self.slices: dict[tuple[str, str], objects.EndpointSlice] = {}
        self.node = builders.node(addresses=("192.0.2.1", "2001:db8:2::1"))
        self.cidrs = builders.service_cidr()
        self.wanted = settings.Settings()
        self.quiet = False
        self.owns = False
        self.agent: reconciler.Reconciler

    def teardown(self) -> None:
        if hasattr(self, "agent"):
            self.agent.backend.close()

    # The agent

    def _planned(self) -> planner.Planner:
        """A fresh plan of all objects as they are."""
        plan = planner.Planner(self.wanted, node_name=_NODE)
        plan.store.replace([*self.services.values(), *self.slices.values(), self.node, self.cidrs])
        return plan

    def _start(self) -> reconciler.Reconciler:
        tables = backend.Backend(affinity_clients=self.wanted.affinity_clients, owns=self.owns)
        tables.watch()
        return reconciler.Reconciler(self._planned(), tables, stale_flow_protocols=frozenset({Protocol.UDP}))

    @property
    def _store(self) -> stores.Store:
        return self.agent.planner.store

    def _happened(self, what: str) -> None:
        self.counts[what] += 1
        self.quiet = False

    # What happens

    @initialize(owns=st.booleans())
    def begins(self, owns: bool) -> None:
        """With ownership, others' edits are refused, but for those of orphans."""
        self.owns = owns and _can_own()
        self.agent = self._start()
        self.agent.sync()
        self.quiet = True

    @rule(
        name=_NAMES,
        ports=_PORTS,
        internal=_POLICIES,
        external=_POLICIES,
        seconds=st.sampled_from((None, None, 600)),
        vips=st.sampled_from(((), (), ("203.0.113.1",), ("203.0.113.1", "203.0.113.2"))),
        ranges=st.sampled_from(((), ("10.0.0.0/8",), ("198.51.100.0/24", "10.7.0.0/16"))),
        external_ips=st.sampled_from(((), (), ("203.0.113.9",))),
        both=st.booleans(),
        age=st.sampled_from("123"),
    )
    def a_service_changes(self, name: str, both: bool, age: str, **fields: Any) -> None:
        number = _NUMBERS[name]
        addresses = (f"10.96.0.{number}", *((f"fd00:96::{number}",) if both else ()))
        made = builders.service(
            name,
            cluster_ips=addresses,
            ports=fields["ports"],
            type=objects.ServiceType.LOAD_BALANCER,
            external_ips=fields["external_ips"],
            vips=fields["vips"],
            source_ranges=fields["ranges"],
            internal_policy=fields["internal"],
            external_policy=fields["external"],
            affinity_seconds=fields["seconds"],
            created=f"2024-01-0{age}T00:00:00Z",
        )
        self.services[name] = made
        self._store.apply(made)
        self._happened("events")

    @rule(name=_NAMES, number=st.sampled_from("12"), found=st.lists(_ENDPOINTS, max_size=4))
    def a_slice_changes(self, name: str, number: str, found: list[objects.Endpoint]) -> None:
        ports = [builders.slice_port(8080, name="http", protocol=protocol) for protocol in (Protocol.TCP, Protocol.UDP)]
        made = builders.endpoint_slice(name, *found, name=f"{name}-{number}", ports=ports)
        self.slices[name, number] = made
        self._store.apply(made)
        self._happened("events")

    @rule(name=_NAMES, found=st.lists(_OF_IPV6, max_size=3))
    def a_slice_of_ipv6_changes(self, name: str, found: list[objects.Endpoint]) -> None:
        self.a_slice_changes(name, "6", found)

    @rule(name=_NAMES)
    def a_service_is_deleted(self, name: str) -> None:
        gone = self.services.pop(name, None)
        if gone is not None:
            self._store.delete(Kind.SERVICE, (gone.namespace, gone.name))
            self._happened("events")

    @precondition(lambda self: bool(self.slices))
    @rule(data=st.data())
    def a_slice_is_deleted(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.slices)))
        del self.slices[gone]
        self._store.delete(Kind.ENDPOINT_SLICE, ("default", "-".join(gone)))
        self._happened("events")

    @rule(zone=st.sampled_from(("", "a", "b")))
    def the_node_changes(self, zone: str) -> None:
        self.node = builders.node(zone=zone, addresses=("192.0.2.1", "2001:db8:2::1"))
        self._store.apply(self.node)
        self._happened("events")

    @rule(changed=st.sampled_from(_SETTINGS))
    def settings_change(self, changed: dict[str, Any]) -> None:
        self.wanted = msgspec.structs.replace(settings.Settings(), **changed)
        self.agent.use(self.wanted)
        self._happened("other settings")

    @rule(seed=st.integers(0, 10_000))
    def somebody_edits_our_tables(self, seed: int) -> None:
        """As the table is at this moment, so that most edits do something."""
        held = backend.Backend(affinity_clients=self.wanted.affinity_clients)
        try:
            held.read()
            script = edits.any_script(random.Random(seed), held)
        finally:
            held.close()
        done = agents.quietly(script)
        self._happened("edits of others" if done else "edits that the kernel refused")

    @rule(times=st.integers(1, 3))
    def somebody_commits_elsewhere(self, times: int) -> None:
        for _ in range(times):
            agents.quietly("add table ip theirs; delete table ip theirs")
        self._happened("commits of others elsewhere")

    @rule()
    def the_agent_is_killed_and_started(self) -> None:
        """With whatever it had not yet committed."""
        self.agent.backend.close()
        self.agent = self._start()
        self._happened("kills")

    @rule(moment=st.floats(0, 0.03))
    def the_agent_is_killed_in_a_sync(self, moment: float) -> None:
        self.agent.backend.close()
        child = os.fork()
        if child == 0:
            try:
                agents.die_with_parent()
                self._start().sync()
            finally:
                os._exit(0)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self.agent = self._start()
        self._happened("kills within a sync")

    @rule(seed=st.integers(0, 10_000))
    def somebody_edits_orphans(self, seed: int) -> None:
        self.agent.backend.close()
        self.somebody_edits_our_tables(seed)
        self.agent = self._start()
        self._happened("kills")

    @rule()
    def a_quiet_moment(self) -> None:
        """All that happened is synced, as the loop does it; and then nothing is left to do."""
        self.agent.sync()
        again = self.agent.sync()
        assert again.operations == 0, "a sync without change did something"
        self.quiet = True

    # What holds

    @invariant()
    def the_kernel_equals_the_plan(self) -> None:
        if self.quiet:
            found = agreement.differences(self._planned(), self.wanted)
            assert not found, "\n".join(found[:20])
            assert not self.agent.refusals.reasons
            self.counts["quiet moments"] += 1
            self.quiet = False


def _can_own() -> bool:
    with netlink.NftablesSocket() as socket:
        return probe.can_own(socket, Family.IPV4)


def play(*, examples: int, steps: int, seed: int | None = None) -> Counter[str]:
    """Try so many sequences of so many steps; what happened, and how often. AssertionError with a sequence that breaks
    it: the shortest that is found, unless there is a seed to find it again. For tests under `kernel.isolated`."""
    Host.counts.clear()
    wanted = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=list(hypothesis.Phase) if seed is None else [hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    found: Any = hypothesis.seed(seed)(Host) if seed is not None else Host
    run_state_machine_as_test(found, settings=wanted)
    return Host.counts
