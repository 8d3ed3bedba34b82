"""The host's addresses, followed by the kernel's notices, in a namespace where they come and go."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
import time
from collections.abc import Callable

import pytest

from netagent import conntrack
from netagent.agent import node_addresses
from netagent.model import addresses
from tests import kernel
from tests.patience import HANGS

LOOPBACK = {addresses.parse_address("127.0.0.1"), addresses.parse_address("::1")}


def ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, timeout=HANGS)


def taken(following: node_addresses.NodeAddresses, *, seconds: float = HANGS) -> bool:
    """Wait for a notice, then take it."""
    poll = select.poll()
    poll.register(following.fileno(), select.POLLIN)
    assert poll.poll(seconds * 1000), "no notice came"
    return following.take()


def until(following: node_addresses.NodeAddresses, condition: Callable[[], bool], *, seconds: float = HANGS) -> None:
    """Follow until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not happen; there are {following.current}"
        following.take()
        time.sleep(0.01)


def found(*texts: str) -> set[bytes]:
    return {addresses.parse_address(text) for text in texts}


@kernel.isolated
def test_addresses_that_come_and_go_are_noticed() -> None:
    with node_addresses.NodeAddresses() as following:
        assert following.current == frozenset()
        assert following.take() is False
        ip("link set lo up")
        until(following, lambda: following.current == LOOPBACK)
        for family, text in (("", "192.0.2.7/24"), ("-6 ", "fd00::7/64")):
            address = text.partition("/")[0]
            ip(f"{family}addr add {text} dev lo")
            until(following, lambda address=address: found(address) <= following.current)  # type: ignore[misc]
            ip(f"{family}addr del {text} dev lo")
            until(following, lambda: following.current == LOOPBACK)
        assert following.take() is False
        assert following.current == conntrack.local_addresses_of_kernel()


@kernel.isolated
def test_a_notice_without_another_address_is_no_change() -> None:
    ip("link set lo up", "addr add 192.0.2.7/32 dev lo")
    with node_addresses.NodeAddresses() as following:
        ip("addr change 192.0.2.7/32 dev lo valid_lft 1000 preferred_lft 1000")
        assert taken(following) is False


@kernel.isolated
def test_notices_that_were_lost_do_not_matter() -> None:
    """ENOBUFS: the kernel had to drop some. What is there is read all the same."""
    ip("link set lo up")
    with node_addresses.NodeAddresses() as following:
        following._notices.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least
        commands = "".join(f"addr add 10.{n // 250}.{n % 250}.1/32 dev lo\n" for n in range(500))
        subprocess.run(["ip", "-batch", "-"], input=commands.encode(), check=True, timeout=HANGS)
        with pytest.raises(OSError, match="No buffer space"):
            following._notices.recv(65536)
        ip("addr add 192.0.2.7/32 dev lo")
        assert taken(following) is True
        assert len(following.current) == 500 + 1 + len(LOOPBACK)
        assert following.take() is False


@kernel.isolated
def test_the_kernels_word_that_notices_are_lost_is_taken_as_a_notice() -> None:
    ip("link set lo up")
    with node_addresses.NodeAddresses() as following:
        following._notices.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        commands = "".join(f"addr add 10.{n // 250}.{n % 250}.1/32 dev lo\n" for n in range(500))
        subprocess.run(["ip", "-batch", "-"], input=commands.encode(), check=True, timeout=HANGS)
        assert taken(following) is True
        assert len(following.current) == 500 + len(LOOPBACK)


@kernel.isolated
def test_an_address_that_nobody_can_bind_to_yet_is_not_there_yet() -> None:
    """Duplicate address detection takes a second or two, and ends with a notice."""
    ip("link add one type veth peer name two", "link set one up", "link set two up")
    with node_addresses.NodeAddresses() as following:
        ip("-6 addr add fd00::7/64 dev one")
        tentative = subprocess.run(
            ["ip", "-6", "addr", "show", "tentative"], capture_output=True, text=True, check=True, timeout=HANGS
        ).stdout
        following.take()
        if "fd00::7" in tentative:  # as it should be on every machine that is not asleep
            assert not found("fd00::7") & following.current
        until(following, lambda: found("fd00::7") <= following.current)
        with socket.socket(socket.AF_INET6) as bound:
            bound.bind(("fd00::7", 0))


@kernel.isolated
def test_of_a_link_from_point_to_point_the_own_end_counts() -> None:
    ip("link set lo up", "addr add 192.0.2.1 peer 192.0.2.2/32 dev lo")
    assert found("192.0.2.1") <= node_addresses.read_addresses()
    assert not found("192.0.2.2") & node_addresses.read_addresses()


@kernel.isolated
def test_a_reading_that_fails_is_made_up_for_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ip("link set lo up")
    with node_addresses.NodeAddresses() as following, monkeypatch.context() as patched:
        ip("addr add 192.0.2.7/32 dev lo")

        def refused() -> frozenset[bytes]:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        patched.setattr(node_addresses, "read_addresses", refused)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            taken(following)
        patched.undo()
        assert following.take() is True, "though no notice came again"
        assert found("192.0.2.7") <= following.current


def test_without_such_a_socket_there_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(node_addresses, "_socket", refused)
    with pytest.raises(OSError, match="Address family not supported"):
        node_addresses.NodeAddresses()
