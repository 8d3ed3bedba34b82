"""Whose the nftables tables of ours are, in words, as the kernel has it now."""

from __future__ import annotations

from collections.abc import Iterable

from netagent.agent.local import documents
from netagent.model import addresses
from netagent.nftables import netlink, readback, ruleset, text


def table_states(families: Iterable[addresses.Family], *, own_port: int = 0) -> tuple[documents.TableState, ...]:
    """Our table of each family. `own_port` is the netlink port of the agent's own socket. For any thread.

    Empty if the kernel does not tell.
    """
    try:
        with netlink.NftablesSocket() as socket:
            return tuple(table_state(readback.read_flags(socket, family), own_port=own_port) for family in families)
    except OSError:
        return ()


def table_state(table: readback.ActualTable, *, own_port: int = 0) -> documents.TableState:
    """A table of the kernel, and whose it is."""
    family = text.table_name(table.family).removesuffix(f" {ruleset.TABLE_NAME}")
    return documents.TableState(
        family=family,
        name=ruleset.TABLE_NAME,
        present=table.exists,
        ownership=ownership(table, own_port=own_port) if table.exists else "",
    )


def ownership(table: readback.ActualTable, *, own_port: int = 0) -> str:
    """Who may change a table, in words."""
    if table.owner and table.owner == own_port:
        whose = "owned by this agent"
    elif table.owner:
        whose = f"owned by the process with netlink port {table.owner}"
    elif table.persistent:
        whose = "orphan: its owner has gone, the next agent adopts it"
    else:
        whose = "not owned: any privileged process can change it"
    return f"{whose}; switched off (dormant)" if table.dormant else whose
