"""The programs of iptables: text in, text out, and what they say when they fail made into our errors."""

from __future__ import annotations

import enum
import errno
import functools
import math
import os
import re
import shutil
import socket
import subprocess
from typing import Final

from netagent import errors, escaping
from netagent.iptables import lock
from netagent.model import addresses

# The nf_tables variant needs seconds for tens of thousands of rules, and minutes for as many chains.
_SAVE_SECONDS: Final = 120
_RESTORE_SECONDS: Final = 300
_RESOURCE_PROBLEM: Final = 4  # xtables.h, enum xtables_exittype
_TOLD: Final = 400  # characters of what a program said


class Variant(enum.StrEnum):
    """The implementation behind the tools."""

    LEGACY = "legacy"
    NFT = "nft"

    @property
    def other(self) -> Variant:
        return Variant.NFT if self is Variant.LEGACY else Variant.LEGACY

    @property
    def in_words(self) -> str:
        return "legacy tables" if self is Variant.LEGACY else "nf_tables"


def program(family: addresses.Family, variant: Variant, action: str = "") -> str:
    """The name of a program: "ip6tables-nft-save", without an action "ip6tables-nft"."""
    name = f"{'iptables' if family is addresses.Family.IPV4 else 'ip6tables'}-{variant.value}"
    return f"{name}-{action}" if action else name


def installed(variant: Variant) -> bool:
    """Whether the programs of a variant are there (those of IPv6 come with them)."""
    return all(which(program(addresses.Family.IPV4, variant, action)) for action in ("save", "restore"))


def which(name: str) -> str | None:
    """The path of a program, also where PATH is that of a user."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=f"{path}:/usr/sbin:/sbin")


def missing(name: str) -> errors.UnsupportedError:
    """The error for a program that is not installed."""
    legacy = " (Fedora, RHEL: iptables-legacy)" if "legacy" in name else " (Fedora, RHEL: iptables-nft)"
    return errors.UnsupportedError(f"{name} is not installed: it is in the package iptables{legacy}")


def save(variant: Variant, family: addresses.Family, *, seconds: float = _SAVE_SECONDS) -> str:
    """All tables of a family that exist, as text; "" if there is none. Creates none."""
    name = program(family, variant, "save")
    done = _run(name, [], "", seconds)
    if done.returncode:
        raise _failure(name, done, None, 0)
    return done.stdout


def chain(variant: Variant, family: addresses.Family, table: str, name: str) -> str:
    """One chain as text, in the form of `iptables -S`. An error if it is not there.

    The nf_tables variant fetches no more than this chain: 5 ms where `save` takes 3 s.
    """
    tool = program(family, variant)
    done = _run(tool, ["-t", table, "-S", name], "", _SAVE_SECONDS)
    if done.returncode:
        raise _failure(tool, done, None, 0)
    return done.stdout


def restore(
    variant: Variant,
    family: addresses.Family,
    text: str,
    *,
    lock_seconds: float,
    check_only: bool = False,
    seconds: float = _RESTORE_SECONDS,
) -> None:
    """Carry out the commands of `text`, table by table, each table as a whole or not at all; the rest stays.

    LockHeldError if the xtables lock is not free within `lock_seconds`; CommitRejectedError quotes the line at fault.
    After any error, tables before the one at fault have changed.
    """
    name = program(family, variant, "restore")
    arguments = ["--noflush", "--wait", str(max(1, math.ceil(lock_seconds)))] + ["--test"] * check_only
    done = _run(name, arguments, text, seconds + lock_seconds)
    if done.returncode:
        raise _failure(name, done, text, lock_seconds)


def _run(name: str, arguments: list[str], text: str, seconds: float) -> subprocess.CompletedProcess[str]:
    path = which(name)
    if path is None:
        raise missing(name)
    try:
        return subprocess.run(
            [path, *arguments],
            input=text,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=seconds,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise errors.NetagentError(f"{name} did not end within {seconds:g} s, and was killed; trying again") from error
    except OSError as error:
        raise errors.UnsupportedError(f"cannot run {path}: {os.strerror(error.errno or errno.EIO)}") from error


def _failure(
    name: str, done: subprocess.CompletedProcess[str], text: str | None, lock_seconds: float
) -> errors.NetagentError:
    return failure(name, done.stderr, done.returncode, text, lock_seconds=lock_seconds)


def failure(
    name: str, stderr: str, returncode: int, text: str | None, *, lock_seconds: float = 0.0
) -> errors.NetagentError:
    """The error for a program that failed, by what it said; `text` is what it was given, None if nothing."""
    said = escaping.printable(" ".join(stderr.split()))
    if "xtables lock" in said and "currently holding" in said:
        return lock.held_error(lock_seconds)
    uninitialized = "unable to initialize table" in said  # of the legacy variant, which does not say why
    if re.search(r"Permission denied|Operation not permitted|must be root", said) or (
        uninitialized and not _privileged()
    ):
        return errors.PrivilegeError(
            f"user {os.geteuid()} may not use {name}: CAP_NET_ADMIN is needed in this network namespace, for legacy "
            f"tables CAP_NET_RAW and the lock file as well; it says: {_shortened(said)}"
        )
    if "is incompatible, use 'nft' tool" in said:
        return incompatible(said, name)
    line, number = _line_at_fault(said, text) if text else (None, 0)
    where = f" at line {number}, '{line}'" if line else ""
    if uninitialized:
        return errors.UnsupportedError(f"{name}: {_shortened(said)} (CONFIG_IP_NF_IPTABLES_LEGACY)")
    if re.search(r"Couldn't load|missing kernel module|do you need to insmod|can't initialize", said):
        return errors.UnsupportedError(f"{name} lacks something{where}: {_shortened(said)}")
    if returncode < 0:
        said = f"killed by signal {-returncode}"
    if text is None:
        return errors.NetagentError(f"{name} failed: {_shortened(said) or f'exit code {returncode}'}")
    return errors.CommitRejectedError(
        f"{name} was refused{where}: {_shortened(said) or f'exit code {returncode}'}; reading all anew",
        errno=_code(said) if returncode != _RESOURCE_PROBLEM else errno.EAGAIN,
        operation=line,
    )


def _privileged() -> bool:
    """Whether we have CAP_NET_ADMIN over this network namespace: it takes that to mark packets (socket(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
        except PermissionError:
            return False
    return True


def incompatible(said: str, name: str) -> errors.UnsupportedError:
    """The error for a table that has rules which iptables-nft cannot show."""
    table = re.search(r"able [`']([\w-]+)' is incompatible", said)
    family = "ip6" if name.startswith("ip6") else "ip"
    which_one = f"table {family} {table[1]}" if table else "a table"
    show = f" (`nft list table {family} {table[1]}` shows it)" if table else ""
    return errors.UnsupportedError(
        f"{which_one} has rules of nft's own, which iptables cannot read or write{show}: move them to another table"
    )


def _line_at_fault(said: str, text: str) -> tuple[str | None, int]:
    """The line of the input that a program complained about; of a COMMIT, the kernel does not say which it was."""
    found = re.search(r"[Ll]ine:? ([0-9]{1,9})", said)
    if not found:
        return None, 0
    number = int(found[1])
    lines = text.splitlines()
    return (escaping.printable(lines[number - 1]), number) if 0 < number <= len(lines) else (None, 0)


@functools.cache
def _codes() -> dict[str, int]:
    return {os.strerror(code): code for code in errno.errorcode}


def _code(said: str) -> int:
    return next((code for text, code in _codes().items() if text in said), errno.EINVAL)


def _shortened(said: str) -> str:
    said = re.sub(r" Try `.*", "", said)
    return said if len(said) <= _TOLD else said[:_TOLD] + "..."
