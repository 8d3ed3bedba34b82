"""Small inputs that would come to much: what is done about them is counted, not timed."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from netagent import documents
from netagent.agent.health import messages
from netagent.iptables import readback
from netagent.nftables import netlink
from netagent.source import manifests
from netagent.source.api.pacing import Pacing
from netagent.source.api.reflector import Step
from tests.source.api.driver import Driver, synced

SMALL, LARGE = 1_000, 4_000


def calls(work: Callable[[bytes], object], data: bytes) -> int:
    """How many functions of Python it takes to work on an input."""
    count = 0

    def counting(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counting)
    try:
        work(data)
    except (ValueError, OSError, readback.ReadbackError):
        pass
    finally:
        sys.setprofile(None)
    return count


def read_manifests(data: bytes) -> object:
    return manifests.read(manifests.STDIN, stdin=io.BytesIO(data))


def read_configuration(data: bytes) -> object:
    return documents.documents_of(data)


def read_saved(data: bytes) -> object:
    return list(readback.tables("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT " + data.decode()))


def read_messages(data: bytes) -> object:
    return [list(netlink.attributes(body)) for *_, body in netlink.messages_in(data)]


def read_request(data: bytes) -> object:
    received = bytearray()
    for byte in b"GET / HTTP/1.1\r\n" + data[: messages.HEAD_BYTES_MOST]:
        received.append(byte)
        if messages.has_head(received, searched=len(received) - 1):
            return messages.request_of(received)
    return None


PIECES = (
    b"[",
    b"{a: ",
    b"- ",
    b"? ",
    b"&a ",
    b"*a ",
    b"a: b\n",
    b"a, ",
    b"---\n",
    b'"a',
    b"!!a ",
    b"<<: ",
    b"|\n a\n",
    b"#\n",
)


@pytest.mark.parametrize(
    ("work", "piece"),
    # Of "[" PyYAML looks at a thousand at once and back, however long the text is; counting that takes too long.
    [*((read_manifests, piece) for piece in PIECES), *((read_configuration, piece) for piece in PIECES[1:])],
)
def test_work_on_a_text_grows_no_faster_than_the_text(work: Callable[[bytes], object], piece: bytes) -> None:
    small, large = (calls(work, piece * (size // len(piece))) for size in (SMALL, LARGE))
    assert large <= 5 * small + 2000


@pytest.mark.parametrize(
    ("work", "piece"),
    [
        (read_saved, b'-A INPUT --comment "a\n'),
        (read_saved, b'" '),
        (read_saved, b" \\"),
        (read_messages, bytes((16, 0, 0, 0)) + bytes(12)),
        (read_messages, bytes((255, 31, 0, 0)) + bytes(12) + bytes((4, 0, 1, 0)) * 2000),
        (read_request, b"a: b\r\n"),
        (read_request, b"\r\n"),
        (read_request, b"a"),
    ],
)
def test_work_on_bytes_grows_no_faster_than_they_do(work: Callable[[bytes], object], piece: bytes) -> None:
    small, large = (calls(work, piece * (size // len(piece) or 1)) for size in (SMALL, LARGE))
    assert large <= 5 * small + 2000


def test_a_line_without_end_is_given_up_when_it_is_longer_than_any_event() -> None:
    driver = synced(max_line_bytes=10_000)
    taken = 0
    while driver.reflector.wants_more:
        driver.say(b"x" * 1000)
        taken += 1000
    assert taken == 11_000
    assert "longer than 10000 bytes" in driver.error


def test_a_page_without_end_is_given_up_and_asked_for_in_smaller_ones() -> None:
    driver = Driver(max_page_bytes=10_000)
    asked = driver.ask()
    driver.reflector.answered(200, {})
    taken = 0
    while driver.reflector.wants_more:
        driver.reflector.received(b"x" * 1000)
        taken += 1000
    assert taken == 11_000
    assert int(driver.ask()["limit"]) < int(asked.get("limit", Pacing().page_objects))


def test_an_error_without_end_is_cut_off() -> None:
    driver = Driver()
    driver.ask()
    driver.reflector.answered(500, {})
    taken = 0
    while driver.reflector.wants_more:
        driver.reflector.received(b"x" * 1000)
        taken += 1000
    assert taken <= 66_000
    assert len(driver.error) < 600


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_what_would_have_to_be_unpacked_is_not_even_read(encoding: str) -> None:
    driver = Driver()
    driver.ask()
    driver.reflector.answered(200, {"content-encoding": encoding})
    assert not driver.reflector.wants_more
    assert "for which nobody asked" in driver.error
    assert driver.step is Step.LIST
