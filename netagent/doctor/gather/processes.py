"""The processes of this network namespace that could get in our way, by the name of their program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from netagent.doctor import evidence

_PROGRAMS: Final = frozenset({"kube-proxy", "firewalld", "dockerd"})
_INTERPRETERS: Final = ("python", "pypy")


def running() -> Iterator[evidence.Process]:
    """Processes of interest in our network namespace, by pid; "netagent run" is one of them.

    Processes whose namespace we may not look at, and zombies, are passed over.
    """
    ours = os.stat("/proc/self/ns/net").st_ino
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            command = [
                part.decode("utf-8", "replace") for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            ]
            name = Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
            program = program_of(name, command)
            if program and os.stat(f"/proc/{pid}/ns/net").st_ino == ours:
                yield evidence.Process(pid, program)
        except OSError:
            continue  # gone, or none of our business


def program_of(name: str, command: list[str]) -> str:
    """The program of interest that a process is, by what the kernel calls it and by its command line; "" for others."""
    if not command or not command[0]:
        return ""
    words = [os.path.basename(command[0]), name]
    rest = command[1:]
    if words[0].startswith(_INTERPRETERS):
        while rest and rest[0].startswith("-") and rest[0] != "-m":
            rest = rest[1:]
        if rest[:1] == ["-m"]:
            rest = rest[1:]
        if rest:
            words.append(os.path.basename(rest[0]))
            rest = rest[1:]
    for word in words:
        if word in _PROGRAMS:
            return word
    if "netagent" in words and next((word for word in rest if not word.startswith("-")), "") == "run":
        return "netagent run"
    return ""
