"""The in-process door to legacy tables: python-iptables (libiptc), for small commits without a fork.

Of python-iptables we use the calls of libiptc, and its Match and Target to make the bytes of a rule of its text. What
it does beyond that is not for us, and here is why (1.2.0):

* its Table keeps handles for the life of the process, with the kernel's rules of the moment, and by default writes
  them back when it lets go: whatever others committed meanwhile would be undone. And to tell a chain from a target
  name, its Rule opens *all five* tables in that way, which also makes them exist;
* reading a rule's parameters, and the final check of its Rule, send the process's standard output into a pipe for a
  moment, and what another thread prints just then is lost in it. So rules are read by iptables-save
  (`readback`): here chains are only looked at as raw entries;
* Rule6 gives interface names a mask of 0x01 bytes instead of 0xff, so that other interfaces would match as well;
  IPv6 rules with interfaces are left to iptables-restore;
* which targets it finds in the library that several share (libxt_NAT.so) depends on the family that asks first; the
  other gets none. So IPv4 asks first, and the bytes of DNAT and MASQUERADE in IPv6 are made here;
* importing it runs modprobe and ldconfig, and on a host of the nf_tables variant would bring legacy tables to life;
  so it is imported at the first use, which only the legacy variant has.

Threading: libiptc keeps its last call and its last error in globals, and libxtables what it parses. One lock of ours
is around all of it; python-iptables must not be used elsewhere in this process. Each handle belongs to the network
namespace of the thread that opened it, and lives from one fetch to one replace, so no thread meets that of another.

Measured (2 cores, Linux 6.18, iptables 1.8.9; milliseconds, median of 15). One chain of so many rules written, in an
empty table nat:

    rules                 1      4      8     16     32     64
    in process          0.4    1.0    2.0      4     10     25
    iptables-restore    3.5    3.5    3.5    3.5    3.7    3.9

One endpoint of ten changed (11 rules), in a table nat of so many entries (an entry is a rule; a chain has two more):

    entries             120  9,700 48,500 96,900 (5,000 Services of 10 endpoints)
    in process            4     22    136    205 on a quiet machine, to 280
    iptables-restore      4     24    135    235 on a quiet machine, to 285

So what counts in a large table is the kernel's own fetch (0.6 us for each entry) and replace (1.2 us), whoever asks for
them; kube-proxy's rules for the same Services have 270,000 entries, and one change takes it 1,050 ms on this machine.
In process saves the fork, 3 ms, and pays a quarter of a millisecond for each rule: up to some 12 rules it is faster,
up to `RULES` not noticeably slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import importlib
import os
import shlex
import socket
import struct
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final, NamedTuple

from netagent import errors
from netagent.iptables import diff, lock, ruleset
from netagent.model import addresses

# Changes that write more rules go through iptables-restore: see the measurement above.
RULES: Final = 16

# linux/netfilter_ipv4/ip_tables.h, ip6_tables.h: both families have the same numbers.
_SO_GET_INFO: Final = 64
_LEVEL: Final = {addresses.Family.IPV4: socket.IPPROTO_IP, addresses.Family.IPV6: socket.IPPROTO_IPV6}
_SOCKET_FAMILY: Final = {addresses.Family.IPV4: socket.AF_INET, addresses.Family.IPV6: socket.AF_INET6}
_GETINFO = struct.Struct("@32sI5I5III")

_MATCHES: Final = frozenset({"tcp", "udp", "sctp", "statistic", "comment", "addrtype", "mark", "conntrack", "recent"})
_TARGETS: Final = frozenset({"DNAT", "MARK", "MASQUERADE", "ACCEPT", "DROP", "RETURN"})
_FLAGS: Final = {"-s": "src", "-d": "dst", "-i": "in_interface", "-o": "out_interface", "-p": "protocol"}

_MAP_IPS, _PROTO_SPECIFIED, _RANDOM_FULLY = 1, 2, 16  # NF_NAT_RANGE_*, linux/netfilter/nf_nat.h
_DNAT_BYTES: Final = 80
_MASQUERADE_BYTES: Final = 72

_guard = threading.Lock()
_libc = ctypes.CDLL(None, use_errno=True)
_loaded: ModuleType | None = None


class UnbuildableError(Exception):
    """A rule that is not made in process. Internal: it goes through iptables-restore instead."""


class Size(NamedTuple):
    """What the kernel tells cheaply of a legacy table: it changes with nearly every change of its rules.

    Not if rules are replaced by as many of the same size (another address, say).
    """

    hooks: tuple[int, ...]
    entries: int
    bytes: int


def worth_it(done: diff.Changes) -> bool:
    """Whether changes are small enough for this door."""
    return done.rules_written <= RULES


def size(family: addresses.Family, table: str) -> Size | None:
    """The size of a legacy table; None if there is none (then one would come to life by this).

    The caller makes sure that it exists: see `variant.legacy_tables`. PrivilegeError without CAP_NET_ADMIN.
    """
    with socket.socket(_SOCKET_FAMILY[family], socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
        buffer = ctypes.create_string_buffer(table.encode(), _GETINFO.size)
        length = ctypes.c_uint32(_GETINFO.size)
        if _libc.getsockopt(door.fileno(), _LEVEL[family], _SO_GET_INFO, buffer, ctypes.byref(length)):
            code = ctypes.get_errno()
            if code == errno.EPERM:
                raise privilege_error()
            return None
    found = _GETINFO.unpack(buffer.raw)
    return Size(found[2:12], found[12], found[13])


class Built(NamedTuple):
    """Changes whose rules are bytes already."""

    changes: diff.Changes
    entries: dict[ruleset.ChainName, list[Any]]


def build(done: diff.Changes) -> Built:
    """Make the rules of changes ready. UnbuildableError if a rule or a jump is none for this door; UnsupportedError
    without python-iptables."""
    if done.jumps_deleted or done.jumps_inserted:
        raise UnbuildableError("jumps are not put in process")
    with _guard:
        return Built(
            done, {name: [_entry(rule, done.family) for rule in rules] for name, rules in done.written.items()}
        )


def commit(built: Built, *, lock_seconds: float) -> None:
    """Carry out changes in process: for each table one fetch, one replace, all under one hold of the xtables lock.

    LockHeldError if the lock is not free in time, CommitRejectedError if the kernel refuses; then tables before the one
    at fault have changed.
    """
    with _guard, lock.held(lock_seconds):
        calls = _Calls(built.changes.family)
        for table in built.changes.tables:
            _commit_table(calls, table, built)


def chains(family: addresses.Family, table: str) -> dict[str, int]:
    """The chains of a legacy table, and how many rules each has. For looking at a table without a fork."""
    with _guard, _handle(_Calls(family), table) as (calls, handle):
        found: dict[str, int] = {}
        name = calls.iptc_first_chain(handle)
        while name:
            count = 0
            rule = calls.iptc_first_rule(name, handle)
            while rule:
                count += 1
                rule = calls.iptc_next_rule(rule, handle)
            found[name.decode("utf-8", "surrogateescape")] = count
            name = calls.iptc_next_chain(handle)
        return found


def unavailable() -> str:
    """Why python-iptables cannot be used here; "" if it can."""
    try:
        with _guard:
            _library()
    except errors.UnsupportedError as error:
        return str(error)
    return ""


def privilege_error() -> errors.PrivilegeError:
    """What to say when the kernel refuses us everything."""
    return errors.PrivilegeError(
        f"user {os.geteuid()} may not talk to the legacy tables of iptables: CAP_NET_ADMIN and CAP_NET_RAW are needed "
        "in this network namespace"
    )


def _commit_table(calls: _Calls, table: str, built: Built) -> None:
    done = built.changes
    with _handle(calls, table) as (_, handle):
        written = [name for name in done.written if name.table == table]
        emptied = [name for name in done.emptied if name.table == table]
        deleted = [name for name in done.deleted if name.table == table]
        for name in (*written, *emptied, *deleted):
            if calls.iptc_is_chain(name.chain.encode(), handle):
                calls.do("empty chain", name.chain, calls.iptc_flush_entries(name.chain.encode(), handle))
            elif name in done.written:
                calls.do("make chain", name.chain, calls.iptc_create_chain(name.chain.encode(), handle))
        for name in written:
            for entry, rule in zip(built.entries[name], done.written[name], strict=True):
                text = f"-A {name.chain} {rule}"
                calls.do("add", text, calls.iptc_append_entry(name.chain.encode(), entry, handle), operation=text)
        for name in deleted:
            if calls.iptc_is_chain(name.chain.encode(), handle):
                calls.do("delete chain", name.chain, calls.iptc_delete_chain(name.chain.encode(), handle))
        calls.do("commit", f"{done.count} operations to table {table}", calls.iptc_commit(handle))


class _Calls:
    """The functions of libiptc for a family, errors included."""

    def __init__(self, family: addresses.Family) -> None:
        iptc = _library()
        self._functions = iptc.ip4tc.iptc if family is addresses.Family.IPV4 else iptc.ip6tc.ip6tc
        self._errno = iptc.ip4tc._get_errno_loc

    def __getattr__(self, name: str) -> Any:
        return getattr(self._functions, name)

    def errno(self) -> int:
        """The C library's errno, as the last call left it."""
        code: int = self._errno()[0]
        return code

    def do(self, verb: str, what: str, result: int, *, operation: str | None = None) -> None:
        """Raise what a call's result means. 1 is success."""
        if result == 1:
            return
        code = self.errno()
        if code == errno.EPERM:
            raise privilege_error()
        raise errors.CommitRejectedError(
            f"cannot {verb} {what}: {self.strerror(code)}; nothing in this table was changed, reading all anew",
            errno=code,
            operation=operation,
        )

    def strerror(self, code: int) -> str:
        """libiptc's own words for an error of its last call."""
        said = self._functions.iptc_strerror(code) if code else None
        return said.decode(errors="replace") if said else os.strerror(code or errno.EIO)


@contextlib.contextmanager
def _handle(calls: _Calls, table: str) -> Iterator[tuple[_Calls, Any]]:
    """A table as it is now, in the network namespace of this thread. What is not committed is forgotten."""
    handle = calls.iptc_init(table.encode())
    if not handle:
        code = calls.errno()
        if code == errno.EPERM:
            raise privilege_error()
        raise errors.UnsupportedError(
            f"cannot fetch the legacy table {table}: {calls.strerror(code)} (CONFIG_IP_NF_IPTABLES_LEGACY)"
        )
    try:
        yield calls, handle
    finally:
        calls.iptc_free(handle)


def _library() -> ModuleType:
    """python-iptables, at its first use. UnsupportedError where it cannot be loaded."""
    global _loaded  # noqa: PLW0603 - importing it costs half a second, and is for legacy hosts alone
    if _loaded is None:
        # It would find them by running ldconfig.
        found = next(iter(glob.glob("/usr/lib/*/xtables") + glob.glob("/usr/lib*/xtables")), None)
        preset = os.environ.get("XTABLES_LIBDIR")
        if found and preset is None:
            os.environ["XTABLES_LIBDIR"] = found
        try:
            loaded = importlib.import_module("iptc")
            for target in sorted(_TARGETS):
                loaded.xtables.xtables(loaded.xtables.NFPROTO_IPV4).find_target(target)
            _loaded = loaded
        except Exception as error:
            raise errors.UnsupportedError(
                f"python-iptables cannot be loaded ({error}); small changes go through iptables-restore"
            ) from error
        finally:
            if found and preset is None:
                del os.environ["XTABLES_LIBDIR"]
    return _loaded


class _ChainNames:
    """In place of python-iptables' tables: what it asks them is whether a name is that of a chain."""

    autocommit = False

    def is_chain(self, name: str) -> bool:
        return name not in _TARGETS


@contextlib.contextmanager
def _own_tables(rule_class: Any) -> Iterator[None]:
    """Have a Rule ask us, not the kernel, about names."""
    previous = rule_class.tables
    rule_class.tables = (_ChainNames(),)
    try:
        yield
    finally:
        rule_class.tables = previous


def _entry(text: str, family: addresses.Family) -> Any:
    """The bytes of a rule (struct ipt_entry or ip6t_entry with its matches and its target) of its text."""
    iptc = _library()
    rule_class = iptc.ip4tc.Rule if family is addresses.Family.IPV4 else iptc.ip6tc.Rule6
    words = shlex.split(text) if '"' in text or "\\" in text or "'" in text else text.split()
    try:
        with _own_tables(rule_class):
            return _built(rule_class(), words, family)
    except UnbuildableError:
        raise
    except Exception as error:  # whatever python-iptables makes of it, iptables itself may know better
        raise UnbuildableError(f"python-iptables cannot make '{text}': {error}") from error


def _built(rule: Any, words: list[str], family: addresses.Family) -> Any:
    # Modules are shared by name: each is finished before the next is begun.
    module: Any = None
    index = 0
    target_seen = False
    while index < len(words):
        inverted = words[index] == "!"
        index += inverted
        word = words[index]
        index += 1
        if word in _FLAGS and module is None:
            if family is addresses.Family.IPV6 and word in ("-i", "-o"):
                raise UnbuildableError("an interface in IPv6")
            setattr(rule, _FLAGS[word], ("!" if inverted else "") + words[index])
            index += 1
        elif word == "-m":
            _finish(module)
            module = rule.create_match(_known(words[index], _MATCHES))
            index += 1
        elif word in ("-j", "-g"):
            _finish(module)
            name = words[index]
            if name in ("DNAT", "MASQUERADE") and family is addresses.Family.IPV6:
                return _with_target(rule, _nat_target(name, words[index + 1 :], rule))
            if word == "-j" and not name.startswith("NETAGENT-"):
                _known(name, _TARGETS)
            module = rule.create_target(name, goto=word == "-g")
            target_seen = True
            index += 1
        elif word.startswith("--") and module is not None:
            end = index + 1 if word == "--comment" else _end_of_values(words, index)
            values = words[index:end] or [""]
            module.parse(word[2:], ["!", *values] if inverted and len(values) > 1 else _value(values, inverted))
            index = end
        else:
            raise UnbuildableError(f"'{word}' is not understood")
    _finish(module)
    if not target_seen:
        raise UnbuildableError("a rule without a target")
    raw = rule.rule
    if not raw:
        raise UnbuildableError("no bytes")
    return raw


def _nat_target(name: str, words: list[str], rule: Any) -> bytes:
    """The bytes of an IPv6 target (struct xt_entry_target with struct nf_nat_range or nf_nat_range2, aligned)."""
    if name == "MASQUERADE" and words in ([], ["--random-fully"]):
        data = struct.pack("=I36x", _RANDOM_FULLY if words else 0)
        return struct.pack("=H29sB", _MASQUERADE_BYTES, b"MASQUERADE", 0) + data
    if name == "DNAT" and len(words) == 2 and words[0] == "--to-destination" and rule.entry.ipv6.proto:
        address, _, port = words[1].removeprefix("[").rpartition("]:")
        number = int(port).to_bytes(2)
        data = struct.pack("=I", _MAP_IPS | _PROTO_SPECIFIED) + addresses.parse_address(address) * 2 + number * 2
        return (struct.pack("=H29sB", _DNAT_BYTES, b"DNAT", 2) + data).ljust(_DNAT_BYTES, b"\0")
    raise UnbuildableError(f"a {name} unlike ours")


def _with_target(rule: Any, target: bytes) -> Any:
    """The bytes of an IPv6 rule with its matches, and with this target."""
    rule.create_target("ACCEPT")  # in its place
    made = bytes(rule.rule)
    entry = rule.entry
    offset = entry.target_offset
    entry.next_offset = offset + len(target)
    size = ctypes.sizeof(entry)
    raw = bytes(entry)[:size] + made[size:offset] + target
    return (ctypes.c_ubyte * len(raw)).from_buffer_copy(raw)


def _value(values: list[str], inverted: bool) -> Any:
    if len(values) == 1:
        return ("!" if inverted else "") + values[0]
    return values


def _known(name: str, names: frozenset[str]) -> str:
    if name not in names:
        raise UnbuildableError(f"'{name}' is not one of those that are tried in process")
    return name


def _end_of_values(words: list[str], index: int) -> int:
    while index < len(words) and words[index] != "!" and not words[index].startswith("-"):
        index += 1
    return index


def _finish(module: Any) -> None:
    if module is not None:
        module._final_check()
