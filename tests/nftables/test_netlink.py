"""Bytes from the kernel, and bytes that the kernel would never send: every end is a defined one."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.model.addresses import Family
from netagent.nftables import backend, layout, netlink, readback, transaction, wire
from netagent.nftables import constants as c
from tests import kernel

from . import strategies
from .test_lower import lowered

SPECS = layout.sets(affinity_clients=1024)
_GARBAGE = st.binary(max_size=200)


class _ScriptedSocket:
    """Stands for the kernel: gives out datagrams one by one, and then has nothing more to say."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self._asked = False

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        self._asked = True
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self._asked and self.answers:
            return self.answers.pop(0)[:size]
        if flags:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        raise TimeoutError(errno.ETIMEDOUT, "the kernel would never keep us waiting")

    def setsockopt(self, *_: object) -> None: ...

    def getsockopt(self, *_: object) -> int:
        return 1 << 20


def _socket(*answers: bytes) -> netlink.NftablesSocket:
    found = netlink.NftablesSocket()
    found.close()
    found._socket = _ScriptedSocket(*answers)  # type: ignore[assignment]
    return found


def _answer(kind: int, sequence: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload


def _error(code: int, sequence: int) -> bytes:
    return _answer(c.NLMSG_ERROR, sequence, struct.pack("=i", -code) + bytes(16))


@contextlib.contextmanager
def _at_worst(*codes: int) -> Iterator[None]:
    """The body may fail with an OSError of one of these codes (none given: of any), and with nothing else."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (codes and error.errno not in codes):
            raise AssertionError("an undefined error") from error


def _table_message() -> bytes:
    (raw,) = wire.messages(transaction.AddTable(Family.IPV4))
    return raw


# Attributes ------------------------------------------------------------------------------------------------------


@given(found=st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_attributes_read_back_are_those_that_were_written(found: list[tuple[int, bytes]]) -> None:
    encoded = b"".join(wire.attribute(kind, value) for kind, value in found)
    assert len(encoded) % 4 == 0
    assert list(netlink.attributes(encoded)) == found


def test_flags_of_an_attribute_are_not_part_of_its_type() -> None:
    nested, network_order = 0x8000, 0x4000
    encoded = wire.attribute(7 | nested, b"abcd") + wire.attribute(8 | network_order, b"e")
    assert list(netlink.attributes(encoded)) == [(7, b"abcd"), (8, b"e")]


@given(payload=_GARBAGE)
def test_garbage_is_at_most_as_many_attributes_as_it_has_room_for(payload: bytes) -> None:
    assert len(list(netlink.attributes(payload))) <= len(payload) // 4


@given(found=st.lists(st.binary(max_size=20), min_size=1, max_size=5), data=st.data())
def test_a_truncated_run_of_attributes_begins_as_the_whole_one(found: list[bytes], data: st.DataObject) -> None:
    encoded = b"".join(wire.attribute(kind, value) for kind, value in enumerate(found))
    cut = data.draw(st.integers(0, len(encoded)))
    read = list(netlink.attributes(encoded[:cut]))
    assert len(read) <= len(found)
    assert read[:-1] == list(enumerate(found))[: max(len(read) - 1, 0)]


# Messages --------------------------------------------------------------------------------------------------------


@given(payload=_GARBAGE)
def test_garbage_is_at_most_as_many_messages_as_it_has_room_for(payload: bytes) -> None:
    found = []
    with _at_worst(errno.EBADMSG):
        for message in netlink.messages_in(payload):
            found.append(message)
            assert len(found) <= len(payload) // 16


@pytest.mark.parametrize("length", [0, 1, 15, 17, 0xFFFFFFFF])
def test_a_message_of_impossible_length_is_an_error(length: int) -> None:
    with pytest.raises(OSError, match="malformed"):
        list(netlink.messages_in(struct.pack("=IHHII", length, 0, 0, 0, 0)))


_KINDS = st.sampled_from((c.NLMSG_NOOP, c.NLMSG_ERROR, c.NLMSG_DONE, c.NLMSG_OVERRUN, 0x0A00, 0x0A0F))
_PLAUSIBLE = st.lists(
    st.builds(_answer, _KINDS, st.integers(0, 4), _GARBAGE, st.sampled_from((0, 0x10, 0x100, 0x300))), max_size=4
).map(lambda found: b"".join(raw + bytes(-len(raw) & 3) for raw in found))
_DATAGRAMS = st.lists(_GARBAGE | _PLAUSIBLE, max_size=5)


@settings(deadline=None)
@given(answers=_DATAGRAMS)
def test_a_dump_of_garbage_ends_or_fails_as_an_operating_system_error(answers: list[bytes]) -> None:
    with _at_worst():
        for _ in _socket(*answers).dump(c.NFT_MSG_GETTABLE, c.NFPROTO_IPV4):
            pass


@settings(deadline=None)
@given(answers=_DATAGRAMS)
def test_a_generation_of_garbage_fails_as_an_operating_system_error(answers: list[bytes]) -> None:
    with _at_worst():
        assert _socket(*answers).generation() >= 0


@settings(deadline=None)
@given(answers=_DATAGRAMS)
def test_a_commit_that_is_answered_with_garbage_has_failed_unless_it_was_acknowledged(answers: list[bytes]) -> None:
    failures = _socket(*answers).commit([_table_message()])
    if not failures:
        assert any(_error(0, 2)[:6] in answer for answer in answers)
    assert all(failure.errno and failure.text and -1 <= failure.position <= 0 for failure in failures)


def test_a_commit_without_an_answer_has_failed() -> None:
    assert [failure.position for failure in _socket().commit([_table_message()])] == [-1]


def test_all_refusals_are_told_and_the_acknowledgement_is_no_refusal() -> None:
    answers = _error(errno.ENOENT, 2) + _error(errno.EBUSY, 4) + _error(0, 5)
    failures = _socket(answers).commit([_table_message()] * 4)
    assert [(failure.position, failure.errno) for failure in failures] == [(0, errno.ENOENT), (2, errno.EBUSY)]


def test_answers_to_older_requests_are_passed_over() -> None:
    found = _socket(_error(errno.ENOENT, 77) + _error(0, 1), _error(0, 2))
    assert found.commit([_table_message()]) == []


def test_a_generation_without_its_number_is_malformed() -> None:
    with pytest.raises(OSError, match="generation without its number"):
        _socket(_answer(0x0A0F, 1, bytes(4))).generation()


def test_a_dump_that_was_disturbed_is_repeated_until_it_is_whole() -> None:
    disturbed = _answer(0x0A00, 1, bytes(4), c.NLM_F_DUMP_INTR) + _answer(c.NLMSG_DONE, 1, bytes(4))
    whole = _answer(0x0A00, 2, bytes(4) + wire.number(1, 5)) + _answer(c.NLMSG_DONE, 2, bytes(4))

    class _Turns(_ScriptedSocket):
        def send(self, data: bytes) -> int:
            self.answers = [disturbed if not self.sent else whole]
            return super().send(data)

    found = _socket()
    found._socket = _Turns()  # type: ignore[assignment]
    assert found.dump_all(c.NFT_MSG_GETTABLE, c.NFPROTO_IPV4) == [wire.number(1, 5)]


def test_a_listing_of_a_table_that_nobody_else_can_change_is_whole_whatever_else_changes() -> None:
    disturbed = _answer(0x0A00, 1, bytes(4) + wire.number(1, 5), c.NLM_F_DUMP_INTR) + _answer(c.NLMSG_DONE, 1, bytes(4))
    found = _socket(disturbed)
    assert found.dump_all(c.NFT_MSG_GETTABLE, c.NFPROTO_IPV4, ours_alone=True) == [wire.number(1, 5)]


# What is in the messages -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_elements_with_flipped_bytes_decode_or_fail_as_malformed(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(strategies.FAMILIES))
    state = strategies.state_of(
        strategies.cluster_ip_frontend(family, count=2, hairpin=True),
        strategies.cluster_ip_frontend(family, number=2, count=2, affinity=600),
    )
    table = lowered(strategies.plain_rules(family), state).table
    name = data.draw(st.sampled_from([name for name, elements in table.elements.items() if elements]))
    spec = table.sets[name]
    (raw,) = wire.messages(transaction.AddElements(family, spec, table.elements[name]))
    body = bytearray(raw[20:])
    for position in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=6)):
        body[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(body)) | st.integers(0, len(body)))
    with _at_worst(errno.EBADMSG):
        readback.decode_elements([bytes(body[:cut])], spec, family)


class _GarbledTable(_ScriptedSocket):
    """Answers every request with one object of our table, and then with its end. A function garbles each object."""

    def __init__(self, objects: dict[int, bytes], garble: object) -> None:
        super().__init__()
        self._objects = objects
        self._garble = garble

    def send(self, data: bytes) -> int:
        _, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
        done = _answer(c.NLMSG_DONE, sequence, bytes(4))
        body = self._garble(self._objects.get(kind & 0xFF, b""))  # type: ignore[operator]
        whole = _answer(kind & 0xFF00, sequence, bytes(4) + body)
        self.answers = [whole + bytes(-len(whole) & 3) + done]
        return super().send(data)


def _objects() -> dict[int, bytes]:
    """One object of each kind that a table is read from, by the request that lists it."""
    state = strategies.state_of(strategies.cluster_ip_frontend())
    table = lowered(strategies.plain_rules(Family.IPV4), state).table
    prerouting = table.chains["prerouting"]

    def body(operation: transaction.Operation) -> bytes:
        return next(wire.messages(operation))[20:]

    return {
        c.NFT_MSG_GETGEN: wire.number(c.NFTA_GEN_ID, 7),
        c.NFT_MSG_GETTABLE: body(transaction.AddTable(Family.IPV4)),
        c.NFT_MSG_GETSET: body(transaction.AddSet(Family.IPV4, table.sets[layout.FRONTENDS])),
        c.NFT_MSG_GETCHAIN: body(transaction.AddChain(Family.IPV4, prerouting)),
        c.NFT_MSG_GETRULE: body(transaction.AddRules(Family.IPV4, prerouting)),
        c.NFT_MSG_GETSETELEM: body(
            transaction.AddElements(Family.IPV4, table.sets[layout.FRONTENDS], table.elements[layout.FRONTENDS])
        ),
    }


_OBJECTS = _objects()


def _read(garble: object) -> readback.ActualTable:
    found = _socket()
    found._socket = _GarbledTable(_OBJECTS, garble)  # type: ignore[assignment]
    return readback.read_table(found, Family.IPV4, SPECS)


def test_a_table_is_read_from_one_object_of_each_kind() -> None:
    table = _read(lambda body: body)
    assert table.exists
    assert set(table.sets) == {layout.FRONTENDS}
    assert table.elements[layout.FRONTENDS]
    assert table.chains["prerouting"].hook is not None
    assert len(table.chains["prerouting"].rules) == 1


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_garbled_table_is_read_or_fails_as_malformed(data: st.DataObject) -> None:
    def garble(body: bytes) -> bytes:
        changed = bytearray(body)
        if changed and data.draw(st.booleans()):
            for _ in range(data.draw(st.integers(0, 3))):
                changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        return bytes(changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))])

    with _at_worst(errno.EBADMSG):
        _read(garble)


# A real socket ---------------------------------------------------------------------------------------------------


@kernel.isolated
def test_the_kernel_says_what_is_wrong() -> None:
    with netlink.NftablesSocket() as socket:
        with pytest.raises(OSError, match="No such file") as caught:
            socket.dump_all(
                c.NFT_MSG_GETSETELEM,
                c.NFPROTO_IPV4,
                wire.text(c.NFTA_SET_ELEM_LIST_TABLE, "none") + wire.text(c.NFTA_SET_ELEM_LIST_SET, "none"),
            )
        assert caught.value.errno == errno.ENOENT
        failures = socket.commit([netlink.message(c.NFT_MSG_NEWTABLE, c.NFPROTO_IPV4, c.NLM_F_REQUEST, b"")] * 3)
        assert [failure.position for failure in failures][:1] == [0]
        assert all(failure.errno == errno.EINVAL for failure in failures)
        assert socket.generation() == 1, "nothing was committed"


@kernel.isolated
@settings(max_examples=40, deadline=None)
@given(payload=st.lists(st.binary(max_size=60), min_size=1, max_size=4), kind=st.integers(0, 24))
def test_the_kernel_refuses_garbage_and_the_socket_goes_on(payload: list[bytes], kind: int) -> None:
    with netlink.NftablesSocket() as socket:
        failures = socket.commit(
            [netlink.message(kind, c.NFPROTO_IPV4, c.NLM_F_REQUEST | c.NLM_F_CREATE, found) for found in payload]
        )
        assert all(failure.errno for failure in failures)
        assert socket.commit([_table_message()]) == []
        assert socket.generation() >= 1


@kernel.isolated
def test_many_more_refusals_than_the_receive_buffer_holds_are_still_a_refusal() -> None:
    spec = SPECS[layout.BACKENDS]
    (message,) = wire.messages(transaction.AddElements(Family.IPV4, spec, {bytes(16): bytes(8)}))
    with netlink.NftablesSocket() as socket:
        failures = socket.commit([message] * 50_000)
        assert failures
        assert (failures[0].position, failures[0].errno) == (0, errno.ENOENT)
        assert (failures[-1].position, failures[-1].errno) == (-1, errno.ENOBUFS)
        assert socket.commit([_table_message()]) == []
    with backend.Backend(affinity_clients=1).socket as found:
        assert found.generation() > 0
