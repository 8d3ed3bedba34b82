"""Text of iptables-save, and what else is read for mode iptables: errors of the tools, /proc/locks, names of processes.

The first byte says as what the others are read.
"""

from __future__ import annotations

from netagent import errors
from netagent.iptables import lock, readback, tools
from netagent.iptables import text as spelling
from netagent.model import addresses
from tests.fuzz.targets import _checks

WORDS = (
    *(b"*nat\n", b"*filter\n", b":PREROUTING ACCEPT [0:0]\n", b":NETAGENT-A - [0:0]\n", b"-A PREROUTING ", b"COMMIT\n"),
    *(
        b"-j NETAGENT-A",
        b"-g ",
        b"-m comment --comment ",
        b'"',
        b"\\",
        b"'",
        b"[1:2] ",
        b"# Table `nat' is incompatible",
    ),
    *(b"--dport :80", b"--dport 80:", b"-P PREROUTING ACCEPT\n", b"-N NETAGENT-A\n", b"\x0c", b"\xe2\x80\xa8", b"\r"),
    *(
        b"\xff",
        b"\0",
        b"1: FLOCK  ADVISORY  WRITE 7 00:1b:42 0 EOF\n",
        b"line 2 failed",
        b"xtables lock",
        b"\x1b]0;x\7",
    ),
)


def run(data: bytes) -> None:
    """Read bytes as text of the tools, or of the kernel."""
    if data:
        # Not all bytes in comments are UTF-8; tools.save takes them so.
        _READERS[data[0] % len(_READERS)](data[1:].decode(errors="surrogateescape"))


def _saved(text: str) -> None:
    for family in addresses.Family:
        try:
            actual = readback.read(text, family)
        except (readback.ReadbackError, errors.UnsupportedError) as error:
            _checks.fit_to_be_shown(str(error))
            continue
        rules = sum(map(len, actual.chains.values())) + sum(map(len, actual.builtin.values()))
        _checks.require(rules <= text.count("-A ") + text.count("\n"), "more rules than there are")
        _checks.require(all(name.chain.startswith(readback.PREFIX) for name in actual.chains), "a chain of others")
        _checks.require(actual.exists == bool(actual.ruleset.chains or actual.ruleset.jumps), "there, and not there")
        for rule in (rule for found in (*actual.chains.values(), *actual.builtin.values()) for rule in found):
            _checks.require(spelling.canonical(spelling.canonical(rule)) == spelling.canonical(rule), "never canonical")


def _listed(text: str) -> None:
    try:
        readback.read_chain(text, "NETAGENT-A")
    except readback.ReadbackError as error:
        _checks.fit_to_be_shown(str(error))


def _locks(text: str) -> None:
    for process in lock.processes_in(text, inode=42):
        _checks.require(process.isascii() and process.isdigit(), f"no process: {process!a}")
    _checks.fit_to_be_shown(lock.named(text[:64], "7"))


def _said(text: str) -> None:
    said, _, given = text.partition("\0")
    for code in (1, 4, -9):
        _checks.fit_to_be_shown(str(tools.failure("iptables-restore", said, code, given or None)))


_READERS = (_saved, _listed, _locks, _said)
