"""Answers and notices of nf_tables: messages, attributes within attributes, elements, rules.

The first byte says what is read from the others.
"""

from __future__ import annotations

from netagent import conntrack
from netagent.agent import node_addresses
from netagent.model import addresses
from netagent.nftables import layout, monitor, netlink, readback, text, unwire
from tests.fuzz.targets import _checks, _sockets

WORDS = (
    *(bytes((length, 0, kind, 0)) for length in (4, 5, 8, 12, 16) for kind in (1, 2, 3, 4)),
    *(bytes((8, 0, kind, 0x80)) for kind in (1, 2, 3, 4, 10)),
    *(b"netagent\0", b"frontends\0", b"backends\0", b"nodeports\0", b"services\0", b"\x0d\x00\x01\x00netagent\0\0\0\0"),
    *(bytes((kind, 10)) for kind in range(24)),
    *(b"\x02\x00", b"\x03\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x10\x00\x04\x00", b"!N", b"!B"),
    *(b"nat\0", b"filter\0", b"lookup\0", b"immediate\0", b"\x00\x10", b"\x00\x20", b"\x00\x40"),
)

_SPECS = layout.sets(affinity_clients=1000)
_NAMES = sorted(_SPECS)
_DEEPEST = 8
_CODES_MOST = 4095


def run(data: bytes) -> None:
    """Read bytes as what the kernel sends."""
    if data:
        _READERS[data[0] % len(_READERS)](data[1:])


def _messages(data: bytes) -> None:
    read = 0
    try:
        for _, _, _, payload in netlink.messages_in(data):
            read += 16 + len(payload)
            _attributes(payload, 0)
            _attributes(payload[4:], 0)
    except OSError as error:
        _checks.fit_to_be_shown(str(error))
    _checks.require(read <= len(data), "more was read than came")


def _attributes(payload: bytes, depth: int) -> None:
    for kind, value in netlink.attributes(payload):
        _checks.require(0 <= kind < 1 << 14, "flags in a type")
        _checks.require(len(value) <= len(payload), "a value longer than its message")
        if depth < _DEEPEST:
            _attributes(value, depth + 1)


def _elements(data: bytes) -> None:
    """A message of elements, of the set and the family that two bytes choose, as a notice or a dump has it."""
    spec = _SPECS[_NAMES[data[0] % len(_NAMES)]] if data else None
    if spec is None or len(data) < 2:
        return
    family = tuple(addresses.Family)[data[1] % 2]
    readback.set_of(data[2:])
    try:
        elements = readback.decode_elements([data[2:]], spec, family)
    except OSError as error:
        _checks.fit_to_be_shown(str(error))
        return
    for key, value in elements.items():
        line = text.element(spec, family, key, value)
        _checks.require("\n" not in line and line.count('"') in (0, 2), f"hostile element {line[:200]!a}")


def _rule(data: bytes) -> None:
    """The expressions of a rule, and the rule of ours that they are, if they are one."""
    try:
        canonical = readback.canonical(data)
    except (KeyError, OSError) as error:  # as its callers expect
        _checks.fit_to_be_shown(repr(error))
        return
    for family in addresses.Family:
        rule = unwire.rule_of(canonical, family, _SPECS)
        if rule is not None:
            _checks.fit_to_be_shown(text.rule_text(rule, family))


def _asked(data: bytes) -> None:
    """Single questions, and the answer to a commit."""
    questions = (
        lambda opened: opened.generation(),
        lambda opened: opened.get(1, 2, b""),
        lambda opened: opened.dump_all(1, 2),
        lambda opened: opened.commit([netlink.message(0, 2, 0, b"")]),
    )
    for ask in questions:
        with _sockets.speaking(netlink, _sockets.Kernel(_sockets.datagrams(data))):
            try:
                with netlink.NftablesSocket() as opened:
                    ask(opened)
            except OSError as error:
                _checks.fit_to_be_shown(str(error))


def _notices(data: bytes) -> None:
    """What others commit, as the monitor tells it."""
    with _sockets.speaking(monitor, _sockets.Notices(_sockets.datagrams(data))):
        listening = monitor.Monitor(1)
        for _ in range(3):
            for commit in listening.take() or ():
                _checks.fit_to_be_shown(str(commit.process))
                _checks.require(commit.generation >= 0, "a generation below zero")


def _flow(data: bytes) -> None:
    """An entry of connection tracking."""
    for family in addresses.Family:
        flow = conntrack.flow_of(data, family)
        if flow is not None:
            _checks.require(len(flow.reply_source) == family.address_bytes + 2, "an endpoint of another family")
            _checks.require(flow.zone >= 0, "a zone below zero")


def _host(data: bytes) -> None:
    """The addresses of the host."""
    with _sockets.speaking(node_addresses, _sockets.Kernel(_sockets.datagrams(data))):
        try:
            found = node_addresses.read_addresses()
        except OSError as error:
            _checks.fit_to_be_shown(str(error))
            return
    _checks.require(all(len(address) in (4, 16) for address in found), "no address")


_READERS = (_messages, _elements, _rule, _asked, _notices, _flow, _host)
