"""The look at everything: finds what nobody told of, accuses nobody wrongly, and keeps nobody waiting."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.model.addresses import Family
from netagent.nftables import audit, backend, netlink, readback
from netagent.nftables import constants as c
from tests import kernel

from . import strategies
from .test_backend_kernel import _FOREIGN, everything, lines, read_anew, want
from .test_mirror import agrees, counted_dumps, watching

_SECONDS = 60.0


def audited(ours: backend.Backend) -> None:
    """Have a backend look at everything, and wait for it."""
    done = threading.Event()
    ours.audit(done.set)
    assert done.wait(_SECONDS)


def in_secret(ours: backend.Backend, command: str) -> None:
    """Somebody edits the ruleset, and neither a notice nor the generation tells: as if we had a bug there."""
    kernel.nft(command)
    listener = ours.mirror._monitor
    assert listener is not None
    listener.take()
    ours.mirror._generation = ours.socket.generation()
    assert not ours.moved()


@pytest.mark.parametrize("name", _FOREIGN)
@kernel.isolated
def test_what_nobody_told_of_is_found_and_repaired(name: str) -> None:
    command, expected = _FOREIGN[name]
    state = everything() | everything(Family.IPV6)
    with watching() as ours:
        want(ours, state, *Family)
        ours.commit()
        before = kernel.ruleset()
        in_secret(ours, command)
        audited(ours)
        assert ours.moved()
        ours.follow()
        assert agrees(ours)
        pending = lines(ours.pending())
        for line in expected:
            assert any(found.startswith(line) for found in pending), f"{line!r} is not in {pending[:40]}"
        ours.commit()
        assert kernel.ruleset() == before
        assert not ours.moved()


@kernel.isolated
def test_an_audit_that_finds_nothing_changes_nothing() -> None:
    with watching() as ours:
        want(ours, everything() | everything(Family.IPV6), *Family)
        ours.commit()
        with counted_dumps(ours) as dumps:
            audited(ours)
            assert not ours.moved()
            assert ours.follow() is None
        assert dumps == [], "all of it in the other thread"


@kernel.isolated
def test_what_we_change_during_an_audit_accuses_nobody() -> None:
    many = strategies.state_of(
        *(strategies.cluster_ip_frontend(number=n, count=20, first=20 * n) for n in range(1, 60))
    )
    with watching() as ours:
        want(ours, many)
        ours.commit()
        ended = threading.Event()
        rounds = 0
        while rounds < 3:
            ended.clear()
            ours.audit(ended.set)
            while not ended.is_set():
                for gone in list(many)[rounds : rounds + 3]:
                    fewer = {key: frontend for key, frontend in many.items() if key != gone}
                    ours.update([gone], fewer)
                    ours.commit()
                    ours.update([gone], many)
                    ours.commit()
            rounds += 1
            # A listing that was disturbed may suspect what it passed over; asking for it shows its innocence.
            with counted_dumps(ours) as dumps:
                while ours.moved():
                    assert ours.mirror.known
                    ours.follow()
            assert c.NFT_MSG_GETSETELEM not in dumps
            assert not ours.pending()
        assert agrees(ours)
        assert read_anew(many) == []


@kernel.isolated
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_suspects_are_asked_for_one_by_one(data: st.DataObject) -> None:
    """Whatever elements are suspected, only those that differ count, a few at a time."""
    kernel.fresh()
    state = everything()
    with watching() as ours:
        want(ours, state)
        ours.commit()
        in_secret(ours, "delete element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }")
        everywhere = [
            (Family.IPV4, name, key) for name, elements in ours.actual(Family.IPV4).elements.items() for key in elements
        ]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("netagent.nftables.mirror._SUSPECTS", data.draw(st.integers(1, 50)))
            ours.mirror._suspects = data.draw(st.permutations(everywhere))
            while ours.moved():
                ours.follow()
        assert lines(ours.pending()) == ["add element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }"]


@kernel.isolated
def test_an_element_is_read_as_it_is_listed() -> None:
    with watching() as ours:
        want(ours, everything() | everything(Family.IPV6), *Family)
        ours.commit()
        specs = [spec for spec in ours.mirror._specs.values() if not spec.dynamic]
        for family in Family:
            for spec in specs:
                elements = readback.read_elements(ours.socket, spec, family)
                assert elements
                for key, value in elements.items():
                    assert audit.read_element(ours.socket, spec, family, key) == value
                absent = bytes(len(next(iter(elements))))
                assert audit.read_element(ours.socket, spec, family, absent) is None


@kernel.isolated
def test_an_audit_that_cannot_read_says_so_and_finds_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with watching() as ours:
        want(ours, everything())
        ours.commit()

        def fail(*_: object) -> readback.ActualTable:
            raise OSError(12, "Cannot allocate memory")

        with monkeypatch.context() as patched:
            patched.setattr(readback, "read_table", fail)
            audited(ours)
        assert "cannot audit the kernel's tables" in caplog.text
        assert not ours.moved()
        in_secret(ours, "flush set ip netagent hairpin")
        audited(ours)
        assert ours.moved(), "the next one does"


@kernel.isolated
def test_closing_ends_an_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()
    original = readback.element_messages

    def slow(socket: netlink.NftablesSocket, *rest: object) -> object:
        going_on.wait(_SECONDS)
        return original(socket, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(readback, "element_messages", slow)
    called: list[bool] = []
    with watching() as ours:
        want(ours, everything())
        ours.commit()
        ours.audit(lambda: called.append(True))
        thread = ours.mirror._audit._thread  # type: ignore[union-attr]
    going_on.set()
    thread.join(_SECONDS)
    assert not thread.is_alive()
    assert called == []
