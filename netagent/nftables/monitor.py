"""What others commit to nf_tables, as the kernel tells it: who, when, and every message about our tables.

Source: the multicast group NFNLGRP_NFTABLES. For each commit the kernel sends a message for each object that changed,
in the form of the request that would make it so, and then the new generation with the process that committed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from typing import NamedTuple

from netagent import processes
from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import netlink, ruleset, wire

_RECEIVE_BYTES = 1 << 18
# Room for what others commit while we are busy. Beyond, the kernel says that it lost some, and we read anew.
_RECEIVE_BUFFER = 4 << 20
_FAMILIES = {number: family for family, number in wire.NFPROTO.items()}
_TABLE_ATTRIBUTE = 1  # in each kind of message, the name of the table


class Message(NamedTuple):
    """A change to a table of ours: type of the message (NFT_MSG_*), and its attributes."""

    kind: int
    family: addresses.Family
    body: bytes


class ForeignCommit(NamedTuple):
    """A commit of another process. `messages` are those about our tables, in order."""

    generation: int
    process: processes.Process
    messages: tuple[Message, ...]


class Monitor:
    """Notice of what others commit in the network namespace of the thread that opened it.

    Owns: a netlink socket. Use: `take` when `fileno` is readable, or before relying on what one remembers. `leave`
    and `join` around a large commit of our own, because the kernel makes a message for each element if anybody listens.
    Threading: none.
    """

    def __init__(self, own_port: int) -> None:
        """OSError where we may not listen. Commits through the socket with the netlink port `own_port` are ours."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, c.NETLINK_NETFILTER)
        self._unfinished: list[Message] = []
        try:
            self._socket.setblocking(False)
            self._socket.bind((0, 0))
            netlink.grow_buffer(self._socket, c.SO_RCVBUFFORCE, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            _drop_from_port(self._socket, own_port)
            self.join()
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def join(self) -> None:
        """Be told from now on."""
        self._socket.setsockopt(c.SOL_NETLINK, c.NETLINK_ADD_MEMBERSHIP, c.NFNLGRP_NFTABLES)

    def leave(self) -> None:
        """Be told nothing."""
        self._socket.setsockopt(c.SOL_NETLINK, c.NETLINK_DROP_MEMBERSHIP, c.NFNLGRP_NFTABLES)

    def take(self) -> list[ForeignCommit] | None:
        """What others committed since the last call; None if some of that is lost."""
        found: list[ForeignCommit] = []
        lost = False
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            with contextlib.suppress(OSError):  # not one of netlink's: nothing that the kernel would send
                for kind, _, _, body in netlink.messages_in(data):
                    commit = self._read(kind & 0xFF, body)
                    if commit:
                        found.append(commit)
        if lost:
            self._unfinished = []
            return None
        return found

    def _read(self, kind: int, body: bytes) -> ForeignCommit | None:
        if kind != c.NFT_MSG_NEWGEN:
            family = _FAMILIES.get(body[0]) if body else None
            if family is not None and _is_about_us(body[4:]):
                self._unfinished.append(Message(kind, family, body[4:]))
            return None
        attributes = dict(netlink.attributes(body[4:]))
        messages, self._unfinished = tuple(self._unfinished), []
        process = _process(attributes, about_us=bool(messages))
        return ForeignCommit(int.from_bytes(attributes.get(c.NFTA_GEN_ID, b"")), process, messages)


def _is_about_us(attributes: bytes) -> bool:
    return dict(netlink.attributes(attributes)).get(_TABLE_ATTRIBUTE, b"").rstrip(b"\0") == _OUR_TABLE


_OUR_TABLE = ruleset.TABLE_NAME.encode()


def _process(attributes: dict[int, bytes], *, about_us: bool) -> processes.Process:
    # A process gives itself any name; it is shown by `str`, which makes it fit for logs and terminals.
    name = attributes.get(c.NFTA_GEN_PROC_NAME, b"").rstrip(b"\0").decode("utf-8", "backslashreplace") or "?"
    pid = int.from_bytes(attributes.get(c.NFTA_GEN_PROC_PID, b""))
    # Looked up here and now: it may be gone in a moment.
    return processes.seen(pid, name) if about_us else processes.Process(pid, name)


class _Instruction(NamedTuple):
    """struct sock_filter, linux/filter.h."""

    code: int
    if_true: int
    if_false: int
    k: int


_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_SO_ATTACH_FILTER = 26
_PORT_OFFSET = 12  # of nlmsg_pid in struct nlmsghdr


def _drop_from_port(listener: socket.socket, port: int) -> None:
    """Have the kernel leave out what comes of a commit through the socket with this netlink port."""
    # The filter loads words in network order, the header has them in the host's.
    as_loaded = int.from_bytes(struct.pack("=I", port))
    program = [
        _Instruction(_LOAD_WORD, 0, 0, _PORT_OFFSET),
        _Instruction(_JUMP_IF_EQUAL, 0, 1, as_loaded),
        _Instruction(_RETURN, 0, 0, 0),
        _Instruction(_RETURN, 0, 0, 0xFFFFFFFF),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
