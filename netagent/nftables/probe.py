"""What the kernel can do: every expression that we use is tried in a transaction that is never committed."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from netagent import errors
from netagent.model import addresses
from netagent.nftables import layout, netlink, ruleset, shapes, transaction, wire
from netagent.nftables.ruleset import Field

log = logging.getLogger(__name__)

_CHAIN = "probe"
# Tried in a table of another name: ours may be owned by an agent, and then even a mere try is refused. As long as our
# name, so that the messages stay well-formed.
_SCRATCH_TABLE = "netprobe"


class Feature(NamedTuple):
    """Something of the kernel that we need: what for, which option brings it, how to try it."""

    purpose: str
    option: str
    operations: tuple[transaction.Operation, ...]


class Missing(NamedTuple):
    feature: Feature
    family: addresses.Family
    reason: str

    def __str__(self) -> str:
        return f"{self.family.value}: {self.feature.purpose} needs {self.feature.option} ({self.reason})"


def usable(socket: netlink.NftablesSocket, families: Iterable[addresses.Family]) -> list[addresses.Family]:
    """Those of the families that the kernel can serve; what the others lack is logged.

    UnsupportedError names all that is missing if none is left, PrivilegeError comes without CAP_NET_ADMIN.
    """
    found: list[addresses.Family] = []
    missing: list[Missing] = []
    for family in families:
        lacks = lacking(socket, family)
        missing += lacks
        if not lacks:
            found.append(family)
    if not found:
        raise errors.UnsupportedError(
            "this kernel cannot do what netagent needs (Linux 5.13 or newer with nf_tables):\n"
            + "\n".join(f"  {lack}" for lack in missing)
        )
    for lack in missing:
        log.warning("family not served: %s", lack)
    return found


def lacking(socket: netlink.NftablesSocket, family: addresses.Family) -> list[Missing]:
    """The features that the kernel has not, for a family. Nothing is changed in the kernel."""
    features = list(_features(family))
    everything = tuple(operation for feature in features for operation in feature.operations)
    if not _refusal(socket, everything):
        return []
    found: list[Missing] = []
    for feature in features:
        refusal = _refusal(socket, feature.operations)
        if refusal:
            found.append(Missing(feature, family, refusal.text))
            if feature is features[0]:
                break  # without tables there is nothing else to try
    return found


def can_own(socket: netlink.NftablesSocket, family: addresses.Family) -> bool:
    """Whether a table can have an owner and outlive it (Linux 6.9). Nothing is changed in the kernel."""
    return _refusal(socket, (transaction.AddTable(family, owned=True),)) is None


def _refusal(socket: netlink.NftablesSocket, operations: tuple[transaction.Operation, ...]) -> netlink.Failure | None:
    ours, scratch = (name.encode() + b"\0" for name in (ruleset.TABLE_NAME, _SCRATCH_TABLE))
    messages = [raw.replace(ours, scratch) for operation in operations for raw in wire.messages(operation)]
    failures = socket.commit(messages, check_only=True)
    if not failures:
        return None
    if failures[0].errno == errno.EPERM:
        raise errors.PrivilegeError(
            "nf_tables refuses to talk to us (EPERM): CAP_NET_ADMIN is needed in this network namespace "
            "(run as root, or give the capability; `netagent dump` needs neither)"
        )
    return failures[0]


def _features(family: addresses.Family) -> Iterator[Feature]:
    table = transaction.AddTable(family)
    number = "4" if family is addresses.Family.IPV4 else "6"
    yield Feature("a table", "CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV" + number, (table,))
    probe = _SetMaker(family)
    yield Feature(
        "a map of verdicts with counters",
        "CONFIG_NF_TABLES (Linux 5.7)",
        (table, probe.make(layout.FRONTENDS)),
    )
    yield Feature(
        "a set of address ranges behind other fields",
        "CONFIG_NF_TABLES (Linux 5.6)",
        (table, probe.make(layout.SOURCE_RANGES)),
    )
    yield Feature("records with timeouts", "CONFIG_NF_TABLES", (table, probe.make(layout.AFFINITY)))
    backends = probe.make(layout.BACKENDS)
    choose = ruleset.SetPriority(ruleset.Slot(2))
    translate = ruleset.Dnat(ruleset.Lookup((*layout.FRONTEND_KEY, Field.PRIORITY), layout.BACKENDS))
    yield Feature("a random choice", "CONFIG_NFT_NUMGEN", (table, *_nat(family, choose)))
    yield Feature("translation of destinations", "CONFIG_NFT_NAT", (table, backends, *_nat(family, translate)))
    yield Feature(
        "masquerading",
        "CONFIG_NFT_MASQ",
        (
            table,
            *_nat(family, ruleset.Masquerade(), point=ruleset.HookPoint.POSTROUTING, priority=layout.PRIORITY_SNAT),
        ),
    )
    yield Feature(
        "refusing in the nat hooks",
        f"CONFIG_NFT_REJECT_IPV{number} (Linux 5.9)",
        (table, *_nat(family, ruleset.Reject(tcp_reset=False))),
    )
    yield Feature(
        "telling local addresses",
        f"CONFIG_NFT_FIB_IPV{number}",
        (table, *_nat(family, ruleset.IsLocal(Field.DESTINATION_TYPE))),
    )
    yield Feature(
        "connection tracking state", "CONFIG_NFT_CT", (table, *_nat(family, ruleset.HasBits(Field.CT_STATUS, 0x20)))
    )
    yield Feature("the rules of session affinity", "CONFIG_NF_TABLES", (table, *_affinity(family, probe)))


class _SetMaker:
    def __init__(self, family: addresses.Family) -> None:
        self._family = family
        self._specs = layout.sets(affinity_clients=65536)

    def make(self, name: str) -> transaction.AddSet:
        return transaction.AddSet(self._family, self._specs[name])


def _nat(
    family: addresses.Family,
    *statements: ruleset.Statement,
    point: ruleset.HookPoint = ruleset.HookPoint.PREROUTING,
    priority: int = layout.PRIORITY_DNAT,
) -> tuple[transaction.Operation, ...]:
    """A nat chain with one rule."""
    hook = ruleset.Hook(ruleset.ChainType.NAT, point, priority)
    chain = ruleset.Chain(f"{_CHAIN}-{point}", (statements,), hook)
    return (transaction.AddChain(family, chain), transaction.AddRules(family, chain))


def _affinity(family: addresses.Family, sets: _SetMaker) -> Iterator[transaction.Operation]:
    """The chain that a frontend with session affinity has, with the maps that it reads and writes."""
    for name in (layout.AFFINITY, layout.AFFINITY_SLOTS, layout.AFFINITY_ENDPOINTS):
        yield sets.make(name)
    chain = shapes.sticky_choice(1, 2, local=True)
    renamed = ruleset.Chain(f"{_CHAIN}-affinity", chain.rules)
    yield transaction.AddChain(family, renamed)
    yield transaction.AddRules(family, renamed)
