"""A configuration that is read again: what follows it at once, what is named as waiting, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from netagent import errors, settings
from netagent.agent import loop, planner, reconciler, reloading
from netagent.agent.health import servers
from netagent.model import addresses

BEFORE = settings.Settings()


def changed(**fields: Any) -> settings.Settings:
    return msgspec.structs.replace(BEFORE, **fields)


def followed(wanted: settings.Settings, *, running: settings.Settings = BEFORE, usable: tuple[str, ...] = ()) -> Any:
    return reloading.followed(running, wanted, configured=BEFORE.families, usable=usable or BEFORE.families)


def test_of_every_setting_it_is_known_when_it_takes_effect() -> None:
    """Who adds a setting decides that."""
    assert set(settings.Settings.__struct_fields__) == reloading.AT_START | reloading.AT_ONCE
    assert not reloading.AT_START & reloading.AT_ONCE


def test_without_a_change_nothing_waits() -> None:
    assert followed(BEFORE) == reloading.Outcome(BEFORE, ())


def test_what_needs_a_restart_keeps_its_value_and_is_named_as_in_the_file() -> None:
    wanted = changed(affinity_clients=7, qps=50.0, node_name="other", masquerade_bit=20, service_proxy_name="mine")
    outcome = followed(wanted)
    assert outcome.settings == changed(masquerade_bit=20)
    assert outcome.at_restart == (
        "clientConnection.qps", "hostnameOverride", "netagent.affinityClients", "netagent.serviceProxyName",
    )  # fmt: skip


def test_connection_tracking_limits_are_for_another_command() -> None:
    wanted = changed(conntrack=settings.ConntrackSettings(min=7, tcp_be_liberal=True))
    outcome = followed(wanted)
    assert outcome.at_restart == ("conntrack.min",)
    assert outcome.settings.drops_invalid is False, "this part of the section is the agent's own"
    assert outcome.settings.conntrack.min == BEFORE.conntrack.min


def test_families_can_go_and_come_back_but_not_be_added() -> None:
    only = followed(changed(families=("IPv4",)))
    assert (only.settings.families, only.at_restart) == (("IPv4",), ())
    back = followed(BEFORE, running=only.settings)
    assert (back.settings.families, back.at_restart) == (("IPv4", "IPv6"), ())
    without = followed(BEFORE, usable=("IPv4",))  # the kernel has been asked, and the log has the reason
    assert (without.settings.families, without.at_restart) == (("IPv4",), ())
    nothing = followed(changed(families=("IPv6",)), running=changed(families=("IPv4",)), usable=("IPv4",))
    assert (nothing.settings.families, nothing.at_restart) == (("IPv4",), ("netagent.families",))
    added = reloading.followed(changed(families=("IPv4",)), BEFORE, configured=("IPv4",), usable=("IPv4",))
    assert (added.settings.families, added.at_restart) == (("IPv4",), ("netagent.families",))


class Stage:
    """A reload of what the test writes; `listening` is where the servers are, `taken` what they cannot have."""

    def __init__(self) -> None:
        self.file: settings.Settings | errors.NetagentError = BEFORE
        self.listening = BEFORE.healthz_bind_address
        self.taken: settings.SocketAddress | None = None
        self.told: list[settings.Settings] = []
        nothing: Any = None
        self.reconciler = reconciler.Reconciler(
            planner.Planner(BEFORE, node_name="node-1"), nothing, stale_flow_protocols=frozenset()
        )
        self.reloading = reloading.Reloading(
            self.reconciler, self._read, configured=BEFORE.families, listen=self._listen, follow=self.told.append
        )

    def _read(self) -> settings.Settings:
        if isinstance(self.file, errors.NetagentError):
            raise self.file
        return self.file

    def _listen(self, wanted: settings.Settings) -> list[servers.ServerFailure]:
        if wanted.healthz_bind_address == self.taken:
            return [servers.ServerFailure("health", self.taken, "Address already in use", self.listening)]
        self.listening = wanted.healthz_bind_address
        return []


@pytest.fixture
def stage() -> Stage:
    return Stage()


def elsewhere(port: int) -> settings.SocketAddress:
    return settings.SocketAddress(BEFORE.healthz_bind_address.address, port)


def test_all_that_runs_follows(stage: Stage) -> None:
    stage.file = changed(
        healthz_bind_address=elsewhere(11256),
        sync_period_seconds=7.0,
        min_sync_period_seconds=1.0,
        config_sync_period_seconds=60.0,
        masquerade_bit=3,
        stale_flow_protocols=("SCTP",),
    )
    assert stage.reloading.reload() == loop.Pace(resync=7.0, pause=1.0, audit=60.0)
    assert stage.listening == elsewhere(11256)
    assert stage.told == [stage.file] == [stage.reconciler.planner.settings]
    assert stage.reconciler.protocols == {addresses.Protocol.SCTP}


def test_a_wrong_file_is_refused_line_by_line(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.file = errors.ConfigError("one thing\nanother")
    assert stage.reloading.reload() is None
    assert [record.getMessage() for record in caplog.records] == [
        "configuration refused, keeping the old one: one thing",
        "configuration refused, keeping the old one: another",
    ]
    assert stage.told == []


def test_a_server_that_cannot_move_is_told_and_the_rest_is_followed(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.taken = elsewhere(11256)
    stage.file = changed(healthz_bind_address=elsewhere(11256), masquerade_bit=3)
    assert stage.reloading.reload()
    assert stage.listening == BEFORE.healthz_bind_address
    assert stage.reconciler.planner.settings.masquerade_bit == 3
    assert [record.getMessage() for record in caplog.records] == [
        "the health server cannot listen on 0.0.0.0:11256: Address already in use; "
        "it goes on listening on 0.0.0.0:10256"
    ]


def test_under_hard_fail_a_server_that_cannot_move_refuses_all_of_it(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.taken = elsewhere(11256)
    stage.file = changed(healthz_bind_address=elsewhere(11256), bind_address_hard_fail=True, masquerade_bit=3)
    assert stage.reloading.reload() is None
    assert stage.listening == BEFORE.healthz_bind_address
    assert stage.reconciler.planner.settings == BEFORE
    assert stage.told == []
    assert [record.getMessage() for record in caplog.records] == [
        "configuration refused, keeping the old one: the health server cannot listen on 0.0.0.0:11256: "
        "Address already in use, and bindAddressHardFail is set"
    ]


def test_what_waits_for_a_restart_is_named_each_time(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    stage.file = changed(affinity_clients=7)
    for _ in range(2):
        assert stage.reloading.reload()
        assert stage.reconciler.planner.settings.affinity_clients == BEFORE.affinity_clients
    assert [record.getMessage() for record in caplog.records] == [
        "these settings take effect at a restart only: netagent.affinityClients"
    ] * 2
