"""HTTP as bytes: what is a request, what is refused, and that no bytes at all break the parser."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.agent.health import messages


def test_a_request_is_read_with_its_fields() -> None:
    request = messages.request_of(
        b"GET /healthz?x=1 HTTP/1.1\r\nHost: a\r\nACCEPT:  text/plain \r\naccept: b\r\n\r\nrest"
    )
    assert request is not None
    assert (request.method, request.path) == ("GET", "/healthz")
    assert request.fields == {"host": "a", "accept": "text/plain, b"}


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("*", "*"),
        ("http://10.0.0.1:10256/livez?verbose", "/livez"),
        ("http://10.0.0.1", "/"),
        ("/a//b", "/a//b"),
        ("example.net:443", "example.net:443"),
    ],
)
def test_every_form_of_target_has_a_path(target: str, path: str) -> None:
    request = messages.request_of(f"GET {target} HTTP/1.0\r\n\r\n".encode())
    assert request is not None
    assert request.path == path


def test_lines_may_end_in_line_feeds_alone_and_blank_lines_may_come_first() -> None:
    assert messages.request_of(b"\r\n\nGET / HTTP/1.1\nhost: a\n\n") is not None


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1 x\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\n\n", 400),  # TLS
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nname : value\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: value\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: b\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: b\rc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
        (b"GET /" + b"a" * 9000, 431),
    ],
)
def test_what_is_no_request_is_refused(received: bytes, status: int) -> None:
    with pytest.raises(messages.RequestError) as caught:
        messages.request_of(received)
    assert caught.value.status == status


@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_refused_or_wait_for_more(received: bytes) -> None:
    outcome = _outcome(received)
    assert outcome in (None, 400, 505) or isinstance(outcome, messages.Request)


PIECES = st.lists(
    st.sampled_from(
        [b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b"\n", b"\r", b":", b"a", b"\0", b"\xff", b"\t", b"Host: x", b"*"]
    ),
    max_size=40,
).map(b"".join)


@given(PIECES, st.lists(st.integers(0, 60), max_size=6))
def test_cutting_the_bytes_anywhere_changes_nothing(received: bytes, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(received)) for cut in cuts} | {len(received)})
    so_far = bytearray()
    outcome = None
    for start, end in zip([0, *ends], ends, strict=False):  # as the server reads
        searched = len(so_far)
        so_far += received[start:end]
        if outcome is None and messages.has_head(so_far, searched=searched):
            outcome = _outcome(bytes(so_far))
    assert outcome == _outcome(received)


def _outcome(received: bytes) -> object:
    try:
        return messages.request_of(received)
    except messages.RequestError as error:
        return error.status


def test_reading_costs_time_in_proportion_to_the_length() -> None:
    spaces = b"GET / HTTP/1.1\r\na: x" + b" \t" * 4000 + b"y"
    started = time.process_time()
    for _ in range(20):
        with pytest.raises(messages.RequestError):
            messages.request_of(spaces + b"\r" * 200)
        messages.request_of(spaces[:8000] + b"\r\n\r\n")
    assert time.process_time() - started < 0.5


def test_a_response_has_its_length_and_closes() -> None:
    response = messages.Response(503, b"{}", "application/json", (("X-Load-Balancing-Endpoint-Weight", "0"),))
    text = messages.bytes_of(response, date="Thu, 01 Jan 1970 00:00:00 GMT").decode()
    assert text.startswith("HTTP/1.1 503 Service Unavailable\r\n")
    for line in (
        "Content-Type: application/json",
        "Content-Length: 2",
        "X-Content-Type-Options: nosniff",
        "X-Load-Balancing-Endpoint-Weight: 0",
        "Connection: close",
    ):
        assert f"\r\n{line}\r\n" in text
    assert text.endswith("\r\n\r\n{}")


def test_the_answer_to_head_tells_the_length_and_has_no_body() -> None:
    sent = messages.bytes_of(messages.Response(200, b"abc"), date="", with_body=False)
    assert b"Content-Length: 3" in sent
    assert sent.endswith(b"\r\n\r\n")
