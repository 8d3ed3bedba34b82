"""Which data plane serves this host, and what data planes of other kinds left behind."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from netagent import errors, settings
from netagent.agent import backends, loop, reconciler
from netagent.model import addresses

log = logging.getLogger(__name__)

_RETIRE_AGAIN_SECONDS: Final = 10.0
# The loop waits for the xtables lock no longer, and tries again.
_LOCK_SECONDS: Final = 1.0
# systemd says where it is (systemd.exec(5)); a DaemonSet mounts it here.
_STATE_DIRECTORY: Final = Path("/var/lib/netagent")


class Opened(NamedTuple):
    """A data plane, and the settings with the families that it can serve on this host."""

    backend: backends.Backend
    settings: settings.Settings


def opened(wanted: settings.Settings, *, to_stay: bool = False) -> Opened:
    """The data plane that the settings ask for, the kernel checked. `to_stay`: for an agent, which owns its tables if
    the settings and the kernel let it; a command that ends leaves it as it is.

    UnsupportedError if the host does not have it, PrivilegeError without CAP_NET_ADMIN.
    """
    families = [addresses.Family(family) for family in wanted.families]
    if wanted.mode is settings.Mode.IPTABLES:
        return Opened(_iptables(wanted, families), _serving(wanted, families))
    from netagent.nftables import backend, netlink, probe

    with netlink.NftablesSocket() as socket:
        usable = probe.usable(socket, families)
        owns = to_stay and wanted.table_ownership and probe.can_own(socket, usable[0])
    if to_stay and wanted.table_ownership and not owns:
        log.info("this kernel has no owners of tables (Linux 6.9); foreign changes are repaired instead")
    return Opened(backend.Backend(affinity_clients=wanted.affinity_clients, owns=owns), _serving(wanted, usable))


def _serving(wanted: settings.Settings, families: list[addresses.Family]) -> settings.Settings:
    return msgspec.structs.replace(wanted, families=tuple(family.value for family in families))


def _iptables(wanted: settings.Settings, families: list[addresses.Family]) -> backends.Backend:
    from netagent.iptables import backend, variant

    override = None if wanted.iptables_variant == "auto" else variant.Variant(wanted.iptables_variant)
    choice = variant.detect(_state_directory(), override=override)
    log.info("iptables variant", extra={"variant": choice.variant.value, "because": choice.reason})
    if choice.mixture:
        log.warning("%s", choice.mixture)
    if addresses.Family.IPV6 in families and not Path("/proc/net/if_inet6").exists():
        log.warning("family not served: this host has no IPv6")
        families.remove(addresses.Family.IPV6)
    return backend.Backend(choice.variant, families, lock_seconds=_LOCK_SECONDS)


def _state_directory() -> str | None:
    """Where to note what must not change from one start to the next; None if there is no such place."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return given or (str(_STATE_DIRECTORY) if _STATE_DIRECTORY.is_dir() else None)


# What others of us left -----------------------------------------------------------------------------------------


def predecessors(current: backends.Backend | None) -> Iterator[tuple[str, backends.Backend]]:
    """Data planes of ours, other than `current`, that have something in the kernel, and what to call them.

    Whoever gets one closes it.
    """
    from netagent.nftables import backend

    if not isinstance(current, backend.Backend):
        tables = backend.Backend(affinity_clients=1)
        tables.read()
        if any(tables.actual(family).exists for family in addresses.Family):
            yield "nftables", tables
        else:
            tables.close()
    yield from _iptables_predecessors(current)


def _iptables_predecessors(current: backends.Backend | None) -> Iterator[tuple[str, backends.Backend]]:
    from netagent.iptables import backend, leftovers, variant

    for each in variant.Variant:
        if isinstance(current, backend.Backend) and current.variant is each:
            continue
        families = leftovers.families_with_ours(each)
        if families:
            yield f"iptables ({each.in_words})", backend.Backend(each, families)


class Retired(NamedTuple):
    """Other data planes of ours: those whose rules were removed, and those with which that failed, and why."""

    removed: tuple[str, ...]
    failed: tuple[str, ...]


def retire_predecessors(current: backends.Backend | None) -> Retired:
    """Remove what other data planes of ours have in the kernel."""
    removed: list[str] = []
    failed: list[str] = []
    for name, predecessor in predecessors(current):
        try:
            predecessor.read()
            if predecessor.cleanup():
                removed.append(name)
        except errors.NetagentError as error:
            failed.append(f"the rules of mode {name} are still there: {error}")
        finally:
            predecessor.close()
    return Retired(tuple(removed), tuple(failed))


class Retiring(loop.Observer):
    """Removes what other data planes of ours left, once this one serves: for a moment both do, and no packet meets
    neither. Established connections are connection tracking's, which nobody touches.

    Use: make it an observer of the loop. Threading: none.
    """

    def __init__(self, current: backends.Backend, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._current = current
        self._clock = clock
        self._next: float | None = clock()

    def synced(self, report: reconciler.SyncReport) -> None:
        if self._next is None or self._clock() < self._next:
            return
        removed, failed = retire_predecessors(self._current)
        for name in removed:
            log.info("removed the rules of another mode", extra={"mode": name})
        for reason in failed:
            log.warning("%s; trying again", reason)
        self._next = self._clock() + _RETIRE_AGAIN_SECONDS if failed else None
