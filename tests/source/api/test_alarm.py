"""What one kind finds out about the API server, and the others have to look into."""

from __future__ import annotations

from netagent.source.api.alarm import Alarm
from netagent.source.kinds import Kind

OTHERS = {Kind.ENDPOINT_SLICE, Kind.NODE, Kind.SERVICE_CIDR}


class Answer:
    """An answer that somebody reads."""

    status = 200
    headers: dict[str, str] = {}  # noqa: RUF012 - as the protocol has it

    def __init__(self) -> None:
        self.interrupted = 0

    def read(self) -> bytes:
        return b""

    def interrupt(self) -> None:
        self.interrupted += 1

    def close(self) -> None:
        pass


def test_all_others_hear_it_once() -> None:
    alarm = Alarm(Kind)
    assert alarm.ring(Kind.SERVICE)
    assert {kind for kind in Kind if alarm.heard(kind)} == OTHERS
    assert not any(alarm.heard(kind) or alarm.rings(kind) for kind in Kind)


def test_who_reads_is_interrupted_and_who_begins_to_read_as_well() -> None:
    alarm = Alarm(Kind)
    reading, finished, mine, later = Answer(), Answer(), Answer(), Answer()
    alarm.reads(Kind.NODE, reading)
    alarm.reads(Kind.SERVICE_CIDR, finished)
    alarm.reads(Kind.SERVICE_CIDR, None)
    alarm.reads(Kind.SERVICE, mine)
    alarm.ring(Kind.SERVICE)
    alarm.reads(Kind.ENDPOINT_SLICE, later)
    assert [answer.interrupted for answer in (reading, finished, mine, later)] == [1, 0, 0, 1]
    assert alarm.heard(Kind.ENDPOINT_SLICE)
    alarm.reads(Kind.ENDPOINT_SLICE, answer := Answer())
    assert not answer.interrupted


def test_what_several_find_within_a_minute_is_one_restored_backup() -> None:
    now = 1000.0
    alarm = Alarm(Kind, clock=lambda: now)
    assert alarm.ring(Kind.SERVICE)
    for kind in OTHERS:
        assert alarm.heard(kind)
        assert not alarm.ring(kind)
    assert not any(map(alarm.heard, Kind))
    now += 61
    assert alarm.ring(Kind.NODE)
    assert alarm.heard(Kind.SERVICE)
