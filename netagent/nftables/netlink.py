"""The socket to nf_tables: one transaction out, or one dump in. Nothing else of netagent talks to the kernel's rules.

Messages are bytes that `netagent.nftables.wire` made; answers are (type, payload) pairs. The socket is our own and
not pyroute2's because one transaction is up to tens of megabytes that must go out in a single send call, which is
what makes it atomic.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from netagent import errors
from netagent.nftables import constants as c

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 1 << 18
# A listing that others disturb is repeated so often, with pauses that grow by so much (seconds): some 20 ms in all.
_DUMP_ATTEMPTS = 12
_DUMP_PAUSE = 0.0003
_MAX_ERRNO = 4095  # linux/err.h
# Room for the acknowledgements of one transaction: errors only, but there may be one for each message.
_RECEIVE_BUFFER = 4 << 20


class Failure(NamedTuple):
    """The kernel's answer to a message that it refused: its position (-1: the transaction as a whole), and why.

    `offset`: where in that message the attribute at fault begins, in bytes; 0 if the kernel does not say.
    """

    position: int
    errno: int
    text: str
    offset: int = 0


def message(kind: int, family: int, flags: int, payload: bytes, sequence: int = 0) -> bytes:
    """One nf_tables message with its two headers."""
    return (
        _HEADER.pack(20 + len(payload), c.NFNL_SUBSYS_NFTABLES << 8 | kind, flags, sequence, 0)
        + bytes((family, c.NFNETLINK_V0, 0, 0))
        + payload
    )


class _DisturbedError(InterruptedError):
    """A dump came to its end, and the ruleset changed meanwhile."""


class NftablesSocket:
    """A netlink socket for nf_tables, bound to the network namespace of the thread that opened it.

    Owns: one file descriptor. Use: `commit` and `dump`; `close` (or `with`) at the end.
    Goals: one transaction is one send call, so the kernel has all of it or nothing.
    Threading: not safe; one thread at a time.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, c.NETLINK_NETFILTER)
        except OSError as error:
            raise errors.UnsupportedError(
                f"cannot open a netfilter netlink socket ({os.strerror(error.errno or 0)}): "
                "the kernel needs CONFIG_NETFILTER_NETLINK"
            ) from error
        self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]
        for option in (c.NETLINK_EXT_ACK, c.NETLINK_CAP_ACK):
            self._socket.setsockopt(c.SOL_NETLINK, option, 1)
        self._sequence = 0
        self._send_buffer = 0
        grow_buffer(self._socket, c.SO_RCVBUFFORCE, socket.SO_RCVBUF, _RECEIVE_BUFFER)

    def __enter__(self) -> NftablesSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def reserve(self, size: int) -> int:
        """Ask for a send buffer of `size` bytes; return how large one transaction may be, in bytes.

        Without CAP_NET_ADMIN in the first user namespace the kernel grants net.core.wmem_max only.
        """
        # The kernel charges a transaction with its bookkeeping on top (sk_buff), hence the margin.
        wanted = size + (size >> 2) + 65536
        if wanted > self._send_buffer:
            self._send_buffer = grow_buffer(self._socket, c.SO_SNDBUFFORCE, socket.SO_SNDBUF, wanted)
        return max(self._send_buffer - (self._send_buffer >> 2), 32768)

    def commit(
        self, messages: list[bytes], *, generation: int | None = None, check_only: bool = False
    ) -> list[Failure]:
        """Hand messages (without sequence numbers set) to the kernel as one transaction.

        Returns the refusals: an empty list means that all of it is in force, anything else that nothing is. With
        `generation`, the kernel refuses all (ERESTART) if its ruleset has moved on since. With `check_only`, it
        looks at everything and carries out nothing.
        """
        first = self._sequence + 1
        begin = struct.pack(">BBH", 0, c.NFNETLINK_V0, c.NFNL_SUBSYS_NFTABLES)
        if generation is not None:
            begin += _ATTRIBUTE.pack(8, c.NFNL_BATCH_GENID) + struct.pack(">I", generation)
        parts = [_HEADER.pack(16 + len(begin), c.NFNL_MSG_BATCH_BEGIN, c.NLM_F_REQUEST, first, 0) + begin]
        sequence = first
        last = len(messages) - 1
        for index, raw in enumerate(messages):
            sequence += 1
            length, kind, flags, _, _ = _HEADER.unpack_from(raw)
            # One acknowledgement, of the last message: it comes after all refusals.
            flags |= c.NLM_F_ACK if index == last else 0
            parts += (_HEADER.pack(length, kind, flags, sequence, 0), raw[16:])
            if length & 3:
                parts.append(bytes(-length & 3))
        end = struct.pack(">BBH", 0, c.NFNETLINK_V0, c.NFNL_SUBSYS_NFTABLES)
        if not check_only:  # without an end the kernel checks and takes back, which is how `nft -c` does it
            parts.append(_HEADER.pack(20, c.NFNL_MSG_BATCH_END, c.NLM_F_REQUEST, sequence + 1, 0) + end)
        self._sequence = sequence + 1
        batch = b"".join(parts)
        self.reserve(len(batch))
        self._drain()
        try:
            self._socket.send(batch)
        except OSError as error:
            return [Failure(-1, error.errno or errno.EIO, _send_failure(error, len(batch)))]
        try:
            return self._answers(first, last_sequence=sequence)
        except OSError as error:
            return [Failure(-1, error.errno or errno.EIO, f"the answer is lost: {error.strerror or error}")]

    def _answers(self, first: int, *, last_sequence: int) -> list[Failure]:
        failures: list[Failure] = []
        overflow: list[Failure] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                # The kernel answers inside the send call: no acknowledgement now means that none will come, which
                # happens when so many messages failed that their errors did not fit.
                return failures + overflow or [Failure(-1, errno.EIO, "the kernel did not acknowledge the transaction")]
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # Told before the errors that did fit, which say more.
                overflow = [Failure(-1, errno.ENOBUFS, "more errors than the receive buffer holds")]
                continue
            for kind, flags, sequence, payload in messages_in(data):
                if kind != c.NLMSG_ERROR or not first <= sequence <= last_sequence:
                    continue
                code = _code(payload)
                if code:
                    text, offset = _error_text(code, flags, payload), _error_offset(flags, payload)
                    failures.append(Failure(sequence - first - 1, code, text, offset))
                elif sequence == last_sequence:
                    return failures + overflow
                # A refusal of the transaction as a whole answers its first header, and nothing follows it.
                if code and sequence == first:
                    return failures + overflow

    def dump(self, kind: int, family: int, payload: bytes = b"") -> Iterator[tuple[int, bytes]]:
        """Yield (message type, attributes) of a dump, without the nf_tables header.

        InterruptedError at its end if the ruleset changed meanwhile, so that something may be missing; OSError with
        the kernel's code if it refuses (ENOENT: no such table or set).
        """
        self._sequence += 1
        sequence = self._sequence
        self._drain()
        self._socket.send(message(kind, family, c.NLM_F_REQUEST | c.NLM_F_DUMP, payload, sequence))
        interrupted = False
        while True:
            for answer, flags, number, body in messages_in(self._socket.recv(_RECEIVE_BYTES)):
                if number != sequence:
                    continue
                interrupted = interrupted or bool(flags & c.NLM_F_DUMP_INTR)
                if answer in (c.NLMSG_DONE, c.NLMSG_ERROR):
                    code = _code(body)
                    if code:
                        raise OSError(code, _error_text(code, flags, body))
                    if interrupted:
                        raise _DisturbedError(errno.EINTR, "the ruleset changed while it was read")
                    return
                yield answer & 0xFF, body[4:]

    def get(self, kind: int, family: int, payload: bytes) -> bytes | None:
        """The attributes of one object; None if there is none. OSError with the kernel's code if it refuses."""
        self._sequence += 1
        self._drain()
        self._socket.send(message(kind, family, c.NLM_F_REQUEST, payload, self._sequence))
        while True:
            for answer, flags, number, body in messages_in(self._socket.recv(_RECEIVE_BYTES)):
                if number != self._sequence:
                    continue
                if answer != c.NLMSG_ERROR:
                    return body[4:]
                code = _code(body)
                if code == errno.ENOENT:
                    return None
                raise OSError(code or errno.EBADMSG, _error_text(code, flags, body))

    def dump_all(self, kind: int, family: int, payload: bytes = b"", *, ours_alone: bool = False) -> list[bytes]:
        """The attributes of every object of a dump, repeated until nobody changed the ruleset meanwhile.

        The kernel says that a dump was disturbed whatever it was that changed. `ours_alone`: it lists the content of a
        table that nobody else can change, so it is whole all the same. InterruptedError if others never rest.
        """
        for attempt in range(_DUMP_ATTEMPTS):
            time.sleep(_DUMP_PAUSE * attempt)
            found: list[bytes] = []
            try:
                found.extend(body for _, body in self.dump(kind, family, payload))
            except _DisturbedError as error:
                disturbed = error
                if not ours_alone:
                    continue
            return found
        raise disturbed

    def generation(self) -> int:
        """The kernel's ruleset number of this network namespace; every commit of anybody adds one."""
        self._sequence += 1
        self._drain()
        self._socket.send(message(c.NFT_MSG_GETGEN, c.NFPROTO_UNSPEC, c.NLM_F_REQUEST, b"", self._sequence))
        while True:
            for kind, flags, number, body in messages_in(self._socket.recv(_RECEIVE_BYTES)):
                if number != self._sequence:
                    continue
                if kind == c.NLMSG_ERROR:
                    code = _code(body)
                    raise OSError(code or errno.EBADMSG, _error_text(code, flags, body))
                identifier = dict(attributes(body[4:])).get(c.NFTA_GEN_ID)
                if identifier is None:
                    raise malformed("a generation without its number")
                return int.from_bytes(identifier)

    def _drain(self) -> None:
        """Forget answers to earlier requests that were given up half-way."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)


def attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, value) of a run of netlink attributes, flags of the type removed. Ends where it stops to be one."""
    offset, end = 0, len(payload)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, payload[offset + 4 : offset + length]
        offset += length + 3 & ~3


def messages_in(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (type, flags, sequence, payload) of a datagram's messages. OSError (EBADMSG) if it is none of netlink's."""
    offset, end = 0, len(data)
    while offset + 16 <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not 16 <= length <= end - offset:
            raise malformed(f"a message of {length} bytes where {end - offset} are left")
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += length + 3 & ~3


def _code(payload: bytes) -> int:
    """The code at the head of an answer that ends a request: an errno, 0 for success."""
    if len(payload) < 4:
        raise malformed("an answer without a code")
    code: int = -struct.unpack_from("=i", payload)[0]
    if not 0 <= code <= _MAX_ERRNO:
        raise malformed(f"an answer with the code {-code}")
    return code


def malformed(what: str) -> OSError:
    """The error for an answer that the kernel would never give."""
    return OSError(errno.EBADMSG, f"malformed answer from nf_tables: {what}")


def _error_text(code: int, flags: int, payload: bytes) -> str:
    text = os.strerror(code)
    if flags & c.NLM_F_ACK_TLVS and flags & c.NLM_F_CAPPED:
        for kind, value in attributes(payload[20:]):
            if kind == c.NLMSGERR_ATTR_MSG:
                text += ": " + value.rstrip(b"\0").decode("utf-8", "replace")
    return text


def _error_offset(flags: int, payload: bytes) -> int:
    """Where in the message that was refused the attribute at fault begins; 0 if that is not told."""
    if flags & c.NLM_F_ACK_TLVS and flags & c.NLM_F_CAPPED:
        for kind, value in attributes(payload[20:]):
            if kind == c.NLMSGERR_ATTR_OFFS and len(value) == 4:
                offset: int = struct.unpack("=I", value)[0]
                return offset
    return 0


def _send_failure(error: OSError, size: int) -> str:
    if error.errno == errno.EMSGSIZE:
        return f"a transaction of {size} bytes does not fit into the send buffer (net.core.wmem_max)"
    return os.strerror(error.errno or errno.EIO)


def grow_buffer(sock: socket.socket, forced: int, plain: int, size: int) -> int:
    """Set a buffer size, by force where allowed; return what the kernel granted."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, min(size, 0x3FFFFFFF))
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, plain, min(size, 0x3FFFFFFF))
    return sock.getsockopt(socket.SOL_SOCKET, plain)
