"""Tests in network namespaces of their own.

`isolated` runs a test in a child process that first leaves for a new, empty network namespace: as root with
unshare(CLONE_NEWNET), otherwise with a user namespace around it. The process that runs pytest never moves, so the
namespace that it is in cannot be touched. In the child, `fresh()` goes on to another empty namespace, for as many
states as a test wants to try.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_CLONE_NEWNET = 0x40000000
# A test that hangs is killed, not waited for.
_SECONDS = 300

_libc = ctypes.CDLL(None, use_errno=True)
_home: int | None = None  # in a child: inode of the network namespace that the parent stays in


def isolated(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a child process with an empty network namespace; skip it where there can be none."""
    return _isolated(test, user_namespace=os.geteuid() != 0)


def isolated_without_privilege(test: Callable[..., None]) -> Callable[..., None]:
    """As `isolated`, but always within a user namespace: capabilities there, none in the first user namespace."""
    return _isolated(test, user_namespace=True)


def _isolated(test: Callable[..., None], *, user_namespace: bool) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        reason = missing(user_namespace=user_namespace)
        if reason:
            pytest.skip(reason)
        kind, text = _in_child(lambda: test(*args, **kwargs), user_namespace=user_namespace)
        if kind == "failed":
            pytest.fail(text, pytrace=False)
        if kind == "skipped":
            pytest.skip(text)

    # What hypothesis notes on its tests is the child's business: to pytest this is a plain test.
    for name in [name for name in vars(run) if "hypothesis" in name]:
        delattr(run, name)
    return pytest.mark.kernel(run)


@functools.cache
def missing(*, user_namespace: bool) -> str:
    """Why nftables cannot be tried here, and what to do about it; "" when it can be."""
    if shutil.which("nft") is None:
        return "not installed: nft"
    kind, text = _in_child(_probe, user_namespace=user_namespace)
    return "" if kind == "passed" else text.strip().splitlines()[-1]


def _probe() -> None:
    try:
        nft("add table ip probe")
    except RuntimeError as error:
        raise RuntimeError(f"nft does not work in a fresh network namespace: {error}") from None


def _in_child(body: Callable[[], None], *, user_namespace: bool) -> tuple[str, str]:
    """Run a function in a forked child with a namespace of its own; return how it ended and what it said."""
    sys.stdout.flush()
    sys.stderr.flush()
    home = os.stat("/proc/self/ns/net").st_ino
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        result = ("failed", "nothing was said")
        try:
            signal.alarm(_SECONDS)
            result = _outcome(body, home, user_namespace=user_namespace)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(result, pipe)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # No cleanup of pytest's, of fixtures or of threads: all that is the parent's.
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "failed", f"the child process died of {signal.Signals(os.WTERMSIG(status)).name}"
    if not said:
        return "failed", "the child process ended without a word"
    kind, text = pickle.loads(said)
    return kind, text


def _outcome(body: Callable[[], None], home: int, *, user_namespace: bool) -> tuple[str, str]:
    global _home
    try:
        if user_namespace:
            _enter_user_namespace()
        _home = home
        fresh()
    except OSError as error:
        hint = "run the tests as root, or allow unprivileged user namespaces (kernel.unprivileged_userns_clone)"
        return "skipped", f"cannot create a network namespace as uid {os.geteuid()} ({error.strerror}): {hint}"
    try:
        body()
    except pytest.skip.Exception as skipped:
        return "skipped", str(skipped)
    except BaseException:  # noqa: BLE001 - whatever it is, the parent reports it
        return "failed", traceback.format_exc()
    return "passed", ""


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def fresh() -> None:
    """Go to a new, empty network namespace. For tests under `isolated` only."""
    assert _home is not None, "only a test under kernel.isolated may change its network namespace"
    _unshare(_CLONE_NEWNET)
    assert os.stat("/proc/self/ns/net").st_ino != _home


# What nft says of the namespace that we are in ----------------------------------------------------------------


def nft(script: str) -> str:
    """Run nft commands in one transaction; return what they print. RuntimeError with nft's words if it fails."""
    return _run(["nft", "-f", "-"], script)


def _run(argv: list[str], text: str = "") -> str:
    assert _home is not None, "only a test under kernel.isolated may run nft"
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} exited with {done.returncode}: {done.stderr.strip()[:2000]}")
    return done.stdout


def ruleset() -> dict[str, Any]:
    """The ruleset as nft lists it, without what depends on how it came about: handles and the order of objects.

    The order of rules in a chain counts, that of elements in a set does not.
    """
    result: dict[str, Any] = {}
    for entry in json.loads(_run(["nft", "-j", "list", "ruleset"]))["nftables"]:
        ((kind, found),) = entry.items()
        if kind == "metainfo":
            continue
        found.pop("handle", None)
        if "elem" in found:
            found["elem"] = sorted(found["elem"], key=json.dumps)
        where = f"{found['family']} {found.get('table', '')}"
        if kind == "rule":
            result.setdefault(f"rules of {where} {found['chain']}", []).append(found["expr"])
        else:
            result[f"{kind} {where} {found['name']}"] = found
    return result


def listing(table: str) -> str:
    """One table with handles, as nft lists it: equal listings mean that nobody touched it."""
    return _run(["nft", "-a", "list", "table", *table.split()])
