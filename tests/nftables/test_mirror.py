"""What others commit: taken over without reading what they did not touch, named, and never missed."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.model.addresses import Family
from netagent.nftables import backend, layout, mirror, monitor, netlink
from netagent.nftables import constants as c
from tests import kernel

from . import strategies
from .test_backend_kernel import _FOREIGN, everything, lines, read_anew, want


@contextlib.contextmanager
def watching(clients: int = 1024) -> Iterator[backend.Backend]:
    """A backend that the kernel tells of others' commits."""
    found = backend.Backend(affinity_clients=clients)
    try:
        assert found.watch() is not None
        found.follow()
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def counted_dumps(ours: backend.Backend) -> Iterator[list[int]]:
    """The kinds of listings that a backend asks for meanwhile."""
    asked: list[int] = []
    original = ours.socket.dump

    def dump(kind: int, family: int, payload: bytes = b"") -> Iterator[tuple[int, bytes]]:
        asked.append(kind)
        return original(kind, family, payload)

    ours.socket.dump = dump  # type: ignore[method-assign]
    try:
        yield asked
    finally:
        ours.socket.dump = original  # type: ignore[method-assign]


def agrees(ours: backend.Backend) -> bool:
    """Whether a backend believes what a fresh one reads."""
    fresh = backend.Backend(affinity_clients=1024)
    try:
        fresh.read()
        return all(
            (mine.exists, mine.sets, mine.chains, {**mine.elements, layout.AFFINITY: {}})
            == (real.exists, real.sets, real.chains, {**real.elements, layout.AFFINITY: {}})
            or not (mine.exists or real.exists)
            for mine, real in ((ours.actual(family), fresh.actual(family)) for family in Family)
        )
    finally:
        fresh.close()


@kernel.isolated
def test_what_others_do_to_their_own_tables_costs_no_listing() -> None:
    with watching() as ours:
        want(ours, everything())
        ours.commit()
        with counted_dumps(ours) as dumps:
            for number in range(20):
                kernel.nft(f"add table ip other\nadd chain ip other c{number}\nadd rule ip other c{number} drop")
                assert not ours.moved()
                assert ours.follow() is None
            kernel.nft("delete table ip other")
            ours.update(everything(), {})
            ours.commit()
            assert not ours.moved()
        assert dumps == []


@kernel.isolated
def test_our_own_commits_are_no_news() -> None:
    with watching() as ours:
        for state in (everything(), {}, everything()):
            want(ours, state)
            ours.update(everything(), state)
            assert ours.commit().operations
            assert not ours.moved()
        assert agrees(ours)


@pytest.mark.parametrize("name", _FOREIGN)
@kernel.isolated
def test_a_foreign_edit_is_taken_over_named_and_repaired(name: str) -> None:
    command, expected = _FOREIGN[name]
    state = everything() | everything(Family.IPV6)
    with watching() as ours:
        want(ours, state, *Family)
        ours.commit()
        before = kernel.ruleset()
        kernel.nft(command)
        assert ours.moved()
        processes = ours.follow()
        assert processes is not None
        assert {process.name for process in processes} <= {"nft"}
        assert processes
        assert agrees(ours)
        pending = lines(ours.pending())
        for line in expected:
            assert any(found.startswith(line) for found in pending), f"{line!r} is not in {pending[:40]}"
        ours.commit()
        assert kernel.ruleset() == before
        assert not ours.moved()
    assert read_anew(state, *Family) == []


@kernel.isolated
def test_an_edited_element_costs_no_listing() -> None:
    with watching() as ours:
        want(ours, everything())
        ours.commit()
        with counted_dumps(ours) as dumps:
            kernel.nft("delete element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }")
            assert ours.follow() is not None
            assert lines(ours.pending()) == ["add element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }"]
            ours.commit()
        assert dumps == []


@kernel.isolated
def test_an_edited_rule_costs_a_listing_of_chains_and_rules_only() -> None:
    with watching() as ours:
        want(ours, everything())
        ours.commit()
        with counted_dumps(ours) as dumps:
            kernel.nft("insert rule ip netagent services ip saddr 10.1.1.1 drop")
            assert ours.follow() is not None
            ours.commit()
        assert set(dumps) == {c.NFT_MSG_GETCHAIN, c.NFT_MSG_GETRULE}


@kernel.isolated
def test_lost_notices_mean_to_read_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_RECEIVE_BUFFER", 4096)
    state = everything()
    with watching() as ours:
        want(ours, state)
        ours.commit()
        kernel.nft("delete element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }")
        kernel.nft("".join(f"add table ip t{number}\n" for number in range(400)))
        with counted_dumps(ours) as dumps:
            assert ours.moved()
            ours.follow()
        assert c.NFT_MSG_GETSETELEM in dumps
        assert agrees(ours)
        ours.commit()
    assert read_anew(state) == []


@kernel.isolated
def test_a_large_commit_is_not_told_to_us_and_others_are_not_missed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_LARGE", 3)
    state = everything()
    with watching() as ours:
        want(ours, {})
        ours.commit()
        ours.update(state, state)
        with counted_dumps(ours) as dumps:
            ours.commit()
            assert not ours.moved()
        assert dumps == []
        original = ours.socket.commit

        def commit(messages: list[bytes], **options: object) -> list[netlink.Failure]:
            found = original(messages, **options)  # type: ignore[arg-type]
            kernel.nft("add element ip netagent cluster_ips { 10.9.9.9 }")
            return found

        ours.socket.commit = commit  # type: ignore[method-assign]
        smaller = {key: frontend for key, frontend in state.items() if key.port == 80}
        ours.update(state, smaller)
        ours.commit()
        ours.socket.commit = original  # type: ignore[method-assign]
        assert ours.moved()
        ours.follow()
        assert agrees(ours)
        ours.commit()
        assert read_anew(smaller) == []
        kernel.nft("delete element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }")
        assert ours.moved(), "we listen again"


@kernel.isolated
def test_a_refused_large_commit_does_not_leave_us_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_LARGE", 0)
    with watching() as ours:
        want(ours, everything())
        original = ours.socket.commit
        refusal = [netlink.Failure(-1, errno.ENOMEM, "Cannot allocate memory")]
        ours.socket.commit = lambda messages, **_: refusal  # type: ignore[method-assign]
        with pytest.raises(Exception, match="Cannot allocate memory"):
            ours.commit()
        ours.socket.commit = original  # type: ignore[method-assign]
        ours.commit()
        kernel.nft("delete element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }")
        assert ours.moved()


@kernel.isolated
def test_a_commit_that_nobody_tells_of_is_read_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new generation can be seen before its notice is there; a notice that never comes must not be waited for."""
    now = [0.0]
    with watching() as ours:
        ours.mirror._clock = lambda: now[0]
        want(ours, everything())
        ours.commit()
        listener = ours.mirror._monitor
        assert listener is not None
        listener.leave()
        kernel.nft("delete element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }")
        assert not ours.moved(), "not yet"
        now[0] = 0.5
        assert not ours.moved()
        now[0] = 1.6
        assert ours.moved()
        ours.follow()
        assert agrees(ours)


@kernel.isolated
def test_without_notices_any_commit_means_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> monitor.Monitor:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(monitor, "Monitor", refuse)
    ours = backend.Backend(affinity_clients=1024)
    assert ours.watch() is None
    ours.read()
    want(ours, everything())
    ours.commit()
    assert not ours.moved()
    kernel.nft("add table ip other")
    assert ours.moved()
    ours.follow()
    assert not ours.moved()
    ours.close()


@kernel.isolated
def test_garbage_in_place_of_notices_is_passed_over() -> None:
    with netlink.NftablesSocket() as ours:
        listener = monitor.Monitor(ours.port)
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        near.setblocking(False)
        listener._socket.close()
        listener._socket = near
        header = netlink.message(c.NFT_MSG_NEWGEN, 0, 0, b"")
        for garbage in (b"\0", b"\xff" * 40, header[:17], netlink.message(c.NFT_MSG_NEWRULE, 77, 0, b"\1"), header):
            far.send(garbage)
        found = listener.take()
        assert found is not None
        assert [commit.messages for commit in found] == [()]
        far.close()
        listener.close()


_EDITS = st.sampled_from(
    [
        *(command for name, (command, _) in _FOREIGN.items() if "ip6" not in command and "switched" not in name),
        "add table ip other",
        "add element ip netagent cluster_ips { 10.9.9.8 }",
        "flush set ip netagent hairpin",
        "flush set ip netagent source_ranges",
    ]
)


@kernel.isolated
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_others_do_between_our_commits_we_know_what_the_kernel_holds(data: st.DataObject) -> None:
    kernel.fresh()
    history = data.draw(strategies.histories(Family.IPV4))
    known: strategies.State = {}
    with watching() as ours:
        want(ours, everything())
        ours.commit()
        for state in history:
            for command in data.draw(st.lists(_EDITS, max_size=3)):
                # It may not be there any more; then nothing happens.
                with contextlib.suppress(RuntimeError):
                    kernel.nft(command)
            ours.follow()
            assert agrees(ours)
            current = {**everything(), **state}
            ours.update([*known, *current], current)
            known = state
            ours.commit()
            assert not ours.moved()
            assert agrees(ours)
            assert read_anew(current) == []
