"""Deletes the conntrack entries that would keep packets on a path that is gone.

Runs after a commit, off the sync path.

A UDP client that never pauses never starts a new connection: the kernel repeats the choice it made for the
first packet, whatever the rules say since. So when a frontend loses an endpoint, goes away, or gets its first
endpoint, the entries that remember otherwise must go; the client's next packet is then balanced anew.

The first half of this module decides and is pure: `stale_flow_rules` says which frontends need a pass and
which endpoints their flows may keep, `is_stale` judges one flow. The second half, `FlowCleaner`, talks to the
kernel.

pyroute2 encodes the requests; the answers are read here, from a plain netlink socket. Reason, measured with
pyroute2 0.9.7 on Linux 6.18: `NFCTSocket.dump` costs 83 us an entry and reads ahead of its consumer without
limit, so that the table ends up in memory; this reader costs 5 us an entry, the kernel's share included, and
holds one datagram. A deletion costs 0.6 ms there and 0.007 ms here, because ours travel in batches.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from netagent import errors
from netagent.model import addresses
from netagent.plan import frontends

# A protocol with a connection of its own notices by itself, and closing it is the endpoint's business.
CLEANABLE_PROTOCOLS = frozenset({addresses.Protocol.UDP, addresses.Protocol.SCTP})


class FrontendChange(NamedTuple):
    """What one sync did to a frontend. None stands for "did not exist" (`before`) and "is gone" (`after`)."""

    key: frontends.FrontendKey
    before: frontends.Frontend | None
    after: frontends.Frontend | None


class StaleFlows(NamedTuple):
    """Flows to the frontend `key` are stale unless one of `allowed_sources` (endpoint keys) answers them."""

    key: frontends.FrontendKey
    allowed_sources: frozenset[bytes]


class Flow(NamedTuple):
    """One conntrack entry: what the client dialled and who answers, both as endpoint keys.

    Without NAT both are equal. `attributes` is the entry as the kernel sent it (netlink attributes), from
    which the kernel can be told exactly which entry is meant.
    """

    protocol: int
    destination: bytes
    reply_source: bytes
    attributes: bytes = b""

    @property
    def zone(self) -> int:
        """Conntrack zone; 0 is the default zone."""
        return int.from_bytes(_attribute(self.attributes, _CTA_ZONE)[4:6])


class CleanReport(NamedTuple):
    """What a pass did.

    `by_family` has the deleted ones of each family that was looked at. `examined` counts the entries that the kernel
    handed over, again if a listing was repeated. `errors` are sentences for the log; the flows that they are about may
    have stayed.
    """

    deleted: int
    examined: int
    errors: tuple[str, ...]
    by_family: Mapping[addresses.Family, int] = MappingProxyType({})


def stale_flow_rules(
    changes: Iterable[FrontendChange], protocols: Collection[addresses.Protocol]
) -> tuple[StaleFlows, ...]:
    """Return which frontends need their flows looked at, and who may go on answering them. Sorted by key.

    A frontend needs it when a serving endpoint left (also with the whole frontend), and when it begins to
    serve: packets that came earlier made entries without NAT. Everything that only concerns new connections
    (policies, topology, more endpoints, endpoints that drain but still serve) needs nothing, and neither does
    a frontend that has no serving endpoint before and after. Only UDP and SCTP are ever considered, whatever
    `protocols` says.

    Several changes of one frontend count as one. When one Service gives a frontend up and another one takes
    it, the taker's endpoints decide, in whichever order the two changes come.
    """
    final: dict[frontends.FrontendKey, frontends.Frontend | None] = {}
    served: dict[frontends.FrontendKey, set[bytes]] = {}
    began: dict[frontends.FrontendKey, bool] = {}
    for key, before, after in changes:
        if key.protocol not in protocols or key.protocol not in CLEANABLE_PROTOCOLS:
            continue
        taker = final.get(key)
        if after is not None or taker is None or before is None or before.owner == taker.owner:
            final[key] = after
        served.setdefault(key, set()).update(before.serving_endpoints if before is not None else ())
        began[key] = began.get(key, False) or before is None or before.verdict is not frontends.Verdict.SERVE
    rules = []
    for key, after in final.items():
        allowed = frozenset(after.serving_endpoints if after is not None else ())
        serves = after is not None and after.verdict is frontends.Verdict.SERVE
        if (began[key] and serves and allowed) or not served[key] <= allowed:
            rules.append(StaleFlows(key, allowed))
    return tuple(sorted(rules, key=lambda rule: (rule.key.family.value, *rule.key[1:])))


def is_stale(flow: Flow, rule: StaleFlows, *, local_addresses: Collection[bytes] = frozenset()) -> bool:
    """Whether the rule condemns the flow.

    A node-port rule speaks of flows to `local_addresses` (packed) only: an equal port number of a foreign
    host, or of a cluster IP, is none of its business. In a zone other than the default one, flows without NAT
    are left alone: whoever assigned the zone sees the packet before our rules do, so to him every flow looks
    like that.
    """
    key = rule.key
    address = addresses.endpoint_address(flow.destination)
    if flow.protocol != key.protocol or addresses.endpoint_port(flow.destination) != key.port:
        return False
    if key.address:
        if address != key.address:
            return False
    elif addresses.family_of(address) is not key.family or address not in local_addresses:
        return False
    if flow.reply_source in rule.allowed_sources:
        return False
    return flow.reply_source != flow.destination or flow.zone == 0


# --- the kernel's side ---

# linux/netlink.h
_NETLINK_NETFILTER = 12
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_DUMP_INTR, _NLM_F_DUMP_FILTERED = 0x10, 0x20
# linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: subsystem 1 in the high byte
_CT_NEW, _CT_GET, _CT_DELETE = 0x100, 0x101, 0x102
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_ID, _CTA_ZONE = 1, 2, 12, 18
_NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_AF = {addresses.Family.IPV4: socket.AF_INET, addresses.Family.IPV6: socket.AF_INET6}
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_NFGENMSG = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
_BODY = _HEADER.size + _NFGENMSG.size

# A dump comes in datagrams of at most 32 KiB (netlink_dump in af_netlink.c); twice that is safe.
_DATAGRAM_BYTES = 65536
# Refusals come back one message each and must fit the socket's receive buffer.
_DELETE_BATCH = 64
_TIMEOUT_SECONDS = 10.0
_DUMP_ATTEMPTS = 3
# A filtered dump walks the whole hash table: 12 ms at 20,000 entries, 48 ms at 200,000 (262,144 buckets). One
# dump of everything costs 5 us an entry instead. Both cost the same at 8 rules with 20,000 entries, and at 15
# rules with 200,000.
FILTERED_DUMPS = 8


def _header_of(length: int, kind: int) -> bytes:
    return _ATTRIBUTE.pack(length, kind)


def _tuple_layout(address_bytes: int) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """How the kernel writes a tuple of a protocol with ports, and the attribute headers that prove it."""
    nested = 0x8000
    each = 4 + address_bytes
    source, destination = (1, 2) if address_bytes == 4 else (3, 4)  # CTA_IP_V4_SRC ..., CTA_IP_V6_SRC ...
    proof = (
        _header_of(4 + 2 * each, nested | 1) + _header_of(each, source),  # CTA_TUPLE_IP
        _header_of(each, destination),
        _header_of(28, nested | 2) + _header_of(5, 1),  # CTA_TUPLE_PROTO, CTA_PROTO_NUM
        _header_of(6, 2),  # CTA_PROTO_SRC_PORT
        _header_of(6, 3),  # CTA_PROTO_DST_PORT
    )
    return struct.Struct(f"=8s{address_bytes}s4s{address_bytes}s8sB3x4s2s2x4s2s"), proof


_LAYOUTS = {family: _tuple_layout(family.address_bytes) for family in addresses.Family}


def _tuple(
    message: bytes, start: int, layout: tuple[struct.Struct, tuple[bytes, ...]]
) -> tuple[int, bytes, bytes] | None:
    """Protocol, source and destination (endpoint keys) of the tuple at `start`; None in another layout."""
    form, proof = layout
    if start + form.size > len(message):
        return None
    a, source, b, destination, c, protocol, d, source_port, e, destination_port = form.unpack_from(message, start)
    if (a, b, c, d, e) != proof:
        return None
    return protocol, source + source_port, destination + destination_port


def _attribute(attributes: bytes, wanted: int) -> bytes:
    """The first attribute of a type with its header and padding; b"" when there is none."""
    start = 0
    while start + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, start)
        if length < _ATTRIBUTE.size:
            break
        end = start + (length + 3 & ~3)
        if kind & _NLA_TYPE_MASK == wanted:
            return attributes[start:end]
        start = end
    return b""


def flow_of(attributes: bytes, family: addresses.Family) -> Flow | None:
    """Return the flow that an entry's netlink attributes describe; None for a protocol without ports.

    The tuples have a fixed layout (`ctnetlink_dump_tuples` in the kernel, the same since Linux 2.6), which is
    checked: an entry that deviates is not ours to judge.
    """
    if len(attributes) < _ATTRIBUTE.size:
        return None
    layout = _LAYOUTS[family]
    length, kind = _ATTRIBUTE.unpack_from(attributes)
    original = _tuple(attributes, _ATTRIBUTE.size, layout)
    if kind & _NLA_TYPE_MASK != _CTA_TUPLE_ORIG or original is None:
        return None
    reply = _tuple(attributes, length + _ATTRIBUTE.size, layout)
    if reply is None or _ATTRIBUTE.unpack_from(attributes, length)[1] & _NLA_TYPE_MASK != _CTA_TUPLE_REPLY:
        return None
    return Flow(original[0], original[2], reply[1], attributes)


def _deletion(flow: Flow, family: addresses.Family, sequence: int, flags: int) -> bytes:
    """The message that deletes this very entry: its id spares one that replaced it meanwhile."""
    body = b"".join(_attribute(flow.attributes, kind) for kind in (_CTA_TUPLE_ORIG, _CTA_ZONE, _CTA_ID))
    header = _HEADER.pack(_BODY + len(body), _CT_DELETE, _NLM_F_REQUEST | flags, sequence, 0)
    return header + _NFGENMSG.pack(_AF[family], 0, 0) + body


def _dump_request(
    family: addresses.Family,
    protocol: addresses.Protocol | None = None,
    address: bytes = b"",
    port: int = 0,
) -> bytes:
    """The message that asks for all entries of a family. What else is given is the kernel's filter (5.8).

    An IPv6 address is left out of the filter: `ctnetlink_filter_match_tuple` compares it the wrong way round
    and returns everything but that address (seen on 6.18). Of SCTP the kernel compares no ports. Either way
    more comes than was asked for, never less, and `is_stale` judges every entry. Drop when a fixed kernel is
    our floor.
    """
    from pyroute2.netlink.nfnetlink import nfctsocket  # here: it costs 0.2 s at the start of every command

    if protocol is None:
        message = nfctsocket.nfct_msg()
    else:
        original = nfctsocket.NFCTAttrTuple(
            family=_AF[family],
            proto=int(protocol),
            daddr=addresses.format_address(address) if len(address) == 4 else None,
            dport=port or None,
        )
        original.attrs()  # computes the flags
        message = nfctsocket.nfct_msg.create_from(
            tuple_orig=original, cta_filter={"attrs": [["CTA_FILTER_ORIG_FLAGS", original.flags]]}
        )
    message["header"]["type"] = _CT_GET
    message["header"]["flags"] = _NLM_F_REQUEST | _NLM_F_DUMP
    message["header"]["sequence_number"] = 1
    message["header"]["pid"] = 0
    message["nfgen_family"] = _AF[family]
    message.reset()
    message.encode()
    return bytes(message.data)


def _netfilter_socket() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            raise _refusal(error) from error
        raise
    sock.settimeout(_TIMEOUT_SECONDS)
    return sock


def _refusal(error: OSError) -> errors.NetagentError:
    """The error that tells who acts when the kernel answers no conntrack request at all."""
    if isinstance(error, PermissionError):
        return errors.PrivilegeError(
            "cannot read or delete conntrack entries: the kernel asks for CAP_NET_ADMIN in this network "
            f"namespace ({errno.errorcode.get(error.errno or 0, error.errno)}); "
            "stale UDP flows stay until they expire"
        )
    return errors.UnsupportedError(
        "cannot read conntrack entries: this kernel has no conntrack netlink (CONFIG_NF_CT_NETLINK and "
        f"CONFIG_NETFILTER_NETLINK; {errno.errorcode.get(error.errno or 0, error.errno)}); "
        "stale UDP flows stay until they expire"
    )


def local_addresses_of_kernel() -> frozenset[bytes]:
    """The packed addresses of all interfaces of this network namespace. OSError if they cannot be read."""
    from pyroute2 import IPRoute, NetlinkError  # here: see _dump_request

    try:
        with IPRoute() as route:
            texts = [message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS") for message in route.get_addr()]
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error
    return frozenset(addresses.parse_address(text) for text in texts if text)


class FlowCleaner:
    """Deletes stale flows in the network namespace of the calling thread.

    Owns: nothing between passes; a pass opens its own sockets and closes them.

    Use: `FlowCleaner().clean(stale_flow_rules(changes, protocols))` after a successful commit, not before:
    until then the old rules would make the same entries again. A pass that failed half way, or is repeated,
    does no harm: deleting the absent succeeds.

    Goals: one datagram of entries in memory, however large the table; the kernel filters where it can; the
    entry that is deleted is the one that was judged.

    Threading: any thread, but one `clean` at a time per instance; `cancel` from any other.

    `local_addresses` returns the packed addresses on which this node accepts node ports. By default those of
    all interfaces. It is asked once a pass, and only if a rule is about a node port.
    """

    def __init__(
        self,
        *,
        local_addresses: Callable[[], Collection[bytes]] = local_addresses_of_kernel,
        connect: Callable[[], socket.socket] = _netfilter_socket,
        filtered_dumps: int = FILTERED_DUMPS,
    ) -> None:
        self._local_addresses = local_addresses
        self._connect = connect
        self._filtered_dumps = filtered_dumps
        self._cancelled = False

    def cancel(self) -> None:
        """End the running pass after the datagram that it is at, and have later ones do nothing. From any thread."""
        self._cancelled = True

    def clean(self, rules: Iterable[StaleFlows]) -> CleanReport:
        """Delete every flow that a rule condemns and report. Without rules the kernel is not touched.

        PrivilegeError without CAP_NET_ADMIN, UnsupportedError without conntrack netlink. Everything smaller
        is a sentence in the report.
        """
        groups: dict[tuple[addresses.Family, addresses.Protocol], list[StaleFlows]] = {}
        for rule in rules:
            groups.setdefault((rule.key.family, rule.key.protocol), []).append(rule)
        if not groups:
            return CleanReport(0, 0, ())
        problems: list[str] = []
        local: Collection[bytes] = frozenset()
        if any(not rule.key.address for group in groups.values() for rule in group):
            try:
                local = frozenset(self._local_addresses())
            except OSError as error:
                problems.append(f"cannot read the node's addresses: {error}; stale flows to node ports stay")
        deleted: collections.Counter[addresses.Family] = collections.Counter()
        examined = 0
        try:
            connection = self._connect()
        except OSError as error:
            return CleanReport(0, 0, (*problems, f"cannot open a netlink socket: {error}; stale flows stay"))
        with contextlib.closing(connection):
            deletions = _Deletions(connection)
            for (family, protocol), group in groups.items():
                sweep = _Sweep(
                    self._connect, deletions, family, protocol, group, local, cancelled=lambda: self._cancelled
                )
                sweep.run(self._filtered_dumps)
                deleted[family] += sweep.deleted
                examined += sweep.examined
                problems += sweep.problems
        return CleanReport(deleted.total(), examined, tuple(problems), MappingProxyType(deleted))


class _Sweep:
    """One pass over the flows of one family and protocol.

    Owns: the counters of the pass, and a socket per dump. Use: `run` once, then read the counters. Goals and
    threading: see FlowCleaner.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        deletions: _Deletions,
        family: addresses.Family,
        protocol: addresses.Protocol,
        rules: list[StaleFlows],
        local_addresses: Collection[bytes],
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.deleted = 0
        self.examined = 0
        self.problems: list[str] = []
        self._connect = connect
        self._deletions = deletions
        self._family = family
        self._protocol = protocol
        self._rules = rules
        self._local_addresses = local_addresses
        self._cancelled = cancelled
        # An address rule goes by endpoint key, a node-port rule by the last two bytes of it: the port.
        self._by_destination = {addresses.endpoint_key(rule.key.address, rule.key.port): rule for rule in rules}
        self._kernel_filters = True

    def run(self, filtered_dumps: int) -> None:
        """Dump what may be stale and delete what is."""
        if len(self._rules) <= filtered_dumps:
            requests = [
                (str(rule.key), _dump_request(self._family, self._protocol, rule.key.address, rule.key.port))
                for rule in self._rules
            ]
        else:
            requests = [(self._everything, _dump_request(self._family, self._protocol))]
        for subject, request in requests:
            if self._cancelled():
                return
            try:
                self._dump_and_delete(request, subject)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE):
                    self._give_up(subject, error)
                    continue
                self._dump_unfiltered()
            if not self._kernel_filters:
                return  # that dump held everything, and every entry was judged by all rules

    @property
    def _everything(self) -> str:
        return f"all {self._protocol.name} frontends ({self._family.value})"

    def _dump_unfiltered(self) -> None:
        self._kernel_filters = False
        try:
            self._dump_and_delete(_dump_request(self._family), self._everything)
        except OSError as error:
            if error.errno == errno.EINVAL:  # nfnetlink_rcv_msg: nobody listens for this subsystem
                raise _refusal(error) from error
            self._give_up(self._everything, error)

    def _give_up(self, subject: str, error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise _refusal(error) from error
        self.problems.append(f"cannot clean the flows of {subject}: {error}; what is left stays until it expires")

    def _dump_and_delete(self, request: bytes, subject: str) -> None:
        """Repeat an interrupted dump a few times, then be content with what came. OSError if refused."""
        for _ in range(_DUMP_ATTEMPTS):
            try:
                with contextlib.closing(self._connect()) as sock:
                    sock.send(request)
                    for flows in self._datagrams(sock):
                        if self._cancelled():
                            return
                        self._delete([flow for flow in flows if self._condemned(flow)])
            except InterruptedError:
                continue
            return
        self.problems.append(
            f"the conntrack table changed {_DUMP_ATTEMPTS} times while the flows of {subject} were listed; "
            "some may have been missed and stay until they expire"
        )

    def _condemned(self, flow: Flow) -> bool:
        destination = flow.destination
        rule = self._by_destination.get(destination) or self._by_destination.get(destination[-2:])
        return rule is not None and is_stale(flow, rule, local_addresses=self._local_addresses)

    def _datagrams(self, sock: socket.socket) -> Iterator[list[Flow]]:
        """The flows of a running dump, datagram by datagram. InterruptedError at the end if inconsistent."""
        interrupted = False
        family = self._family
        while True:
            datagram = sock.recv(_DATAGRAM_BYTES)
            flows: list[Flow] = []
            start = 0
            while start + _HEADER.size <= len(datagram):
                length, kind, flags, _, _ = _HEADER.unpack_from(datagram, start)
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind == _CT_NEW:
                    self.examined += 1
                    self._kernel_filters = self._kernel_filters and bool(flags & _NLM_F_DUMP_FILTERED)
                    flow = flow_of(datagram[start + _BODY : start + length], family)
                    if flow is not None:
                        flows.append(flow)
                elif kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    yield flows
                    code = -_errno_at(datagram, start, length)
                    if code > 0 or interrupted:
                        raise _os_error(code if code > 0 else errno.EINTR)
                    return
                if length < _HEADER.size:
                    raise _os_error(errno.EBADMSG)
                start += length + 3 & ~3
            yield flows

    def _delete(self, flows: list[Flow]) -> None:
        """Delete these entries. One that is gone already is fine; one that the kernel keeps is a problem."""
        for first in range(0, len(flows), _DELETE_BATCH):
            batch = flows[first : first + _DELETE_BATCH]
            refused = self._deletions.delete(batch, self._family)
            self.deleted += len(batch) - refused.total()
            for code, count in refused.items():
                if code == errno.EPERM:
                    raise _refusal(_os_error(code))
                if code != errno.ENOENT:
                    self.problems.append(
                        f"the kernel kept {count} stale {self._protocol.name} flows of {self._family.value} "
                        f"({errno.errorcode.get(code, code)}); they stay until they expire"
                    )


class _Deletions:
    """The socket that deletions go through; a dump has another one, since its answers would come between.

    Owns: the socket and the sequence number. Threading: that of FlowCleaner.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sequence = 0

    def delete(self, flows: list[Flow], family: addresses.Family) -> collections.Counter[int]:
        """Delete the entries, which must fit one datagram; return the kernel's refusals by errno.

        Only the last deletion asks for an answer: the kernel works in order and reports errors unasked.
        """
        first = self._sequence + 1
        self._sequence += len(flows)
        self._sock.send(
            b"".join(
                _deletion(flow, family, sequence, _NLM_F_ACK if sequence == self._sequence else 0)
                for sequence, flow in enumerate(flows, first)
            )
        )
        refused: collections.Counter[int] = collections.Counter()
        while True:
            answer = self._sock.recv(_DATAGRAM_BYTES)
            length, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if kind != _NLMSG_ERROR or sequence < first:  # late answers to a batch that timed out
                continue
            code = -_errno_at(answer, 0, length)
            if code:
                refused[code] += 1
            if sequence == self._sequence or code == errno.EPERM:  # EPERM answers the whole datagram at once
                return refused


def _errno_at(datagram: bytes, start: int, length: int) -> int:
    """The (negative) code that NLMSG_ERROR and NLMSG_DONE begin with; 0 when there is none."""
    if length < _HEADER.size + _ERRNO.size:
        return 0
    return int(_ERRNO.unpack_from(datagram, start + _HEADER.size)[0])


def _os_error(code: int) -> OSError:
    """OSError of the subclass that belongs to the code."""
    return OSError(code, os.strerror(code))
