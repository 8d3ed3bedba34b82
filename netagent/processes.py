"""Processes of this host, as far as the kernel lets us see who they are. Every layer may use it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from netagent import escaping


class Process(msgspec.Struct, frozen=True):
    """Who committed, as the kernel told: id and name. `unit` is its systemd unit or cgroup, "" if it had gone before
    anybody could look."""

    pid: int
    name: str
    unit: str = ""

    def __str__(self) -> str:
        where = f" in {escaping.printable(self.unit)}" if self.unit else ""
        return f"{escaping.printable(self.name)}[{self.pid}]{where}"


def name_of(pid: int) -> str:
    """What a process calls itself; "?" if it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="backslashreplace").rstrip("\n") or "?"
    except OSError:
        return "?"


def seen(pid: int, name: str) -> Process:
    """Who a process is, as far as it can still be seen: many have gone a moment after they committed."""
    try:
        if Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n") == name:
            return Process(pid, name, _unit_of(Path(f"/proc/{pid}/cgroup").read_text(errors="replace")))
    except OSError:
        pass
    return Process(pid, name)


def _unit_of(cgroups: str) -> str:
    """The systemd unit in /proc/PID/cgroup, else the path of the cgroup; "" for the root."""
    # The unified hierarchy is the one with the number 0, cgroups(7).
    path = next((line[3:] for line in cgroups.splitlines() if line.startswith("0::")), "")
    parts = [part for part in path.split("/") if part]
    units = [part for part in parts if part.endswith((".service", ".scope"))]
    return units[-1] if units else "/".join(parts)
