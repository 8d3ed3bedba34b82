"""A look at all that the kernel holds of our tables, aside of the thread that commits.

Reading 250,000 endpoints takes seconds, in which nothing else should wait. So a thread with a socket of its own lists
everything and compares it with a copy of what we remember. What differs is only suspected: commits go on meanwhile, and
a listing may pass elements over. Whoever has the tables asks again for each suspect.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from netagent import errors
from netagent.model import addresses
from netagent.nftables import constants as c
from netagent.nftables import netlink, readback, ruleset, wire

log = logging.getLogger(__name__)


class Suspects(NamedTuple):
    """What may not be as we remember: tables whose structure differs, and single elements, by set and key."""

    families: frozenset[addresses.Family]
    keys: tuple[tuple[addresses.Family, str, bytes], ...]


class Audit:
    """One look at everything.

    Owns: a thread, and a copy of what is remembered. Use: `start`; when `done` has been called, `suspects` tells.
    Threading: `done` is called in the thread; everything else belongs to the one that started it.
    """

    def __init__(
        self,
        remembered: Mapping[addresses.Family, readback.ActualTable],
        specs: Mapping[str, ruleset.SetSpec],
        done: Callable[[], None],
    ) -> None:
        self._remembered = {
            family: readback.ActualTable(
                family,
                table.exists,
                table.dormant,
                dict(table.sets),
                dict(table.chains),
                _copied(table.elements),
                table.persistent,
                table.owner,
            )
            for family, table in remembered.items()
        }
        self._specs = specs
        self._done = done
        self._stopping = False
        self.suspects: Suspects | None = None
        self.ended = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon, without a result."""
        self._stopping = True

    def _run(self) -> None:
        try:
            with netlink.NftablesSocket() as socket:
                self.suspects = self._look(socket)
        except (OSError, errors.NetagentError) as error:
            log.warning("cannot audit the kernel's tables", extra={"reason": str(error)})
        finally:
            self._remembered = {}
            self.ended = True
            if not self._stopping:
                self._done()

    def _look(self, socket: netlink.NftablesSocket) -> Suspects | None:
        families: set[addresses.Family] = set()
        keys: list[tuple[addresses.Family, str, bytes]] = []
        for family, remembered in self._remembered.items():
            actual = readback.read_table(socket, family, {})
            if actual.structure != remembered.structure:
                families.add(family)
            for name, elements in remembered.elements.items():
                if name in actual.sets:
                    keys += (
                        (family, name, key) for key in self._differing(socket, self._specs[name], family, elements)
                    )
                if self._stopping:
                    return None
        return Suspects(frozenset(families), tuple(keys))

    def _differing(
        self,
        socket: netlink.NftablesSocket,
        spec: ruleset.SetSpec,
        family: addresses.Family,
        left: dict[bytes, ruleset.Value],
    ) -> list[bytes]:
        """Keys whose elements are not those of `left`, which is used up."""
        found: list[bytes] = []
        try:
            for body in readback.element_messages(socket, spec, family):
                # A message at a time: other threads get their turn in between.
                for key, value in readback.decode_elements([body], spec, family).items():
                    if left.pop(key, None) != value:
                        found.append(key)
                if self._stopping:
                    return []
        except InterruptedError:
            pass  # somebody committed meanwhile: what is missing is suspected, and looked at again
        return found + list(left)


def _copied(elements: Mapping[str, ruleset.Elements]) -> dict[str, ruleset.Elements]:
    return {name: dict(held) for name, held in elements.items()}


def read_element(
    socket: netlink.NftablesSocket, spec: ruleset.SetSpec, family: addresses.Family, key: bytes
) -> ruleset.Value | None:
    """One element as the kernel has it now; None if there is none."""
    body = socket.get(c.NFT_MSG_GETSETELEM, wire.NFPROTO[family], wire.element_query(spec, family, key))
    return readback.decode_elements([body], spec, family).get(key) if body is not None else None
