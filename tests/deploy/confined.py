"""Run a program as the systemd unit would: in another root, with one capability, and few system calls.

    python confined.py ROOT UID CAPABILITIES FILTER PROGRAM ARGUMENT...

CAPABILITIES is a number of bits, FILTER a file with the names of the system calls that are allowed ("-": all are).
What systemd does for CapabilityBoundingSet, AmbientCapabilities, NoNewPrivileges, MemoryDenyWriteExecute and
SystemCallFilter, without a systemd that runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

# linux/prctl.h
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_SET_MDWE = 65
_PR_MDWE_REFUSE_EXEC_GAIN = 1
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_SCMP_ACT_ALLOW = 0x7FFF0000  # seccomp.h
_SCMP_ACT_ERRNO_EPERM = 0x00050000 | errno.EPERM

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    root, uid, capabilities, filter_file, *command = sys.argv[1:]
    load_filter = _filter(Path(filter_file).read_text().split()) if filter_file != "-" else None
    os.chroot(root)
    os.chdir("/")
    _become(int(uid), int(capabilities, 0))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    try:
        _prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 6.3
            raise
    if load_filter is not None:
        load_filter()
    os.execve(command[0], command, {"PATH": "/usr/bin"})


def _become(uid: int, capabilities: int) -> None:
    for bit in range(64):
        if not capabilities >> bit & 1:
            try:
                _prctl(_PR_CAPBSET_DROP, bit)
            except OSError as error:
                if error.errno != errno.EINVAL:  # beyond the last one
                    raise
    if uid != os.getuid():
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)  # effective, permitted, inheritable
    _check(_libc.capset(header, data))
    for bit in range(64):
        if capabilities >> bit & 1:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, bit)


def _filter(names: list[str]):  # type: ignore[no-untyped-def] # a function that loads it
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(_SCMP_ACT_ERRNO_EPERM))
    for name in names:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # negative: not on this architecture
            seccomp.seccomp_rule_add(context, _SCMP_ACT_ALLOW, number, 0)

    def load() -> None:
        if seccomp.seccomp_load(context):
            raise OSError("cannot load the system call filter")

    return load


def _prctl(*arguments: int) -> None:
    _check(_libc.prctl(*(ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:5])))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
