"""Which of the two implementations of xtables this host uses: legacy tables, or nf_tables in their guise.

Both are there side by side on most hosts, each with rules that the other does not see; packets meet both. So we must
write where the host's other software writes.
"""

from __future__ import annotations

import contextlib
import enum
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from netagent import errors
from netagent.iptables import tools
from netagent.model import addresses

# kubelet makes these in the variant that it found, for others to follow (KEP-3178).
KUBELET_CHAINS: Final = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
_RECORD: Final = "iptables-variant"

Variant = tools.Variant


class Observation(NamedTuple):
    """What one variant holds in this network namespace, both families together."""

    variant: Variant
    rules: int = 0
    kubelet: bool = False


class Choice(NamedTuple):
    """The variant, and why. `mixture`: what to tell the operator if both variants have rules, else ""."""

    variant: Variant
    reason: str
    mixture: str = ""


class Basis(enum.StrEnum):
    """What a choice rests on."""

    OVERRIDE = "the configuration says so"
    RECORD = "it was chosen before, and recorded in {}"
    KUBELET = "kubelet has its chains there"
    RULES = "there are more rules in it ({} against {})"
    ONLY = "the tools of the other are not installed"
    DEFAULT = "it is the default of this host's iptables"


def chosen(observations: list[Observation], *, default: Variant) -> Choice:
    """Choose by what each variant holds: kubelet's chains first, then the number of rules, then the host's default."""
    if len(observations) == 1:
        return Choice(observations[0].variant, Basis.ONLY)
    with_kubelet = [found for found in observations if found.kubelet]
    mixture = mixture_of(observations)
    if len(with_kubelet) == 1:
        return Choice(with_kubelet[0].variant, Basis.KUBELET, mixture)
    ordered = sorted(observations, key=lambda found: found.rules, reverse=True)
    if len(ordered) > 1 and ordered[0].rules > ordered[1].rules:
        reason = Basis.RULES.format(ordered[0].rules, ordered[1].rules)
        return Choice(ordered[0].variant, reason, mixture)
    return Choice(default, Basis.DEFAULT, mixture)


def mixture_of(observations: list[Observation]) -> str:
    """What to tell the operator if both variants hold rules, with the commands that show them; "" if they do not."""
    busy = [found for found in observations if found.rules or found.kubelet]
    if len(busy) < 2:
        return ""
    counts = " and ".join(f"{found.rules} rules in {found.variant.in_words}" for found in busy)
    shown = "; ".join(tools.program(family, found.variant, "save") for found in busy for family in addresses.Family)
    return (
        f"this host mixes two variants of iptables, and packets meet both: {counts}. "
        f"These commands show them: {shown}. "
        "Move all software of the host to one of them (update-alternatives --config iptables)"
    )


def detect(
    state_directory: str | os.PathLike[str] | None,
    *,
    override: Variant | None = None,
    observe: Callable[[Variant], Observation | None] | None = None,
    default: Callable[[], Variant] | None = None,
) -> Choice:
    """The variant to use: `override`, else what was recorded in `state_directory`, else by `chosen`, and record it.

    What cannot be recorded (a read-only or full directory) is chosen anew next time, and is no error. UnsupportedError
    if the tools of neither variant are installed; PrivilegeError if they may not look.
    """
    look = observe or observation
    record = Path(state_directory) / _RECORD if state_directory else None
    settled = Choice(override, Basis.OVERRIDE) if override else _recorded(record)
    if settled and tools.installed(settled.variant):
        # What our own variant holds may be our own work of years; that of the other one alone tells.
        other = None
        with contextlib.suppress(errors.NetagentError):  # whether there is a mixture, is not worth failing for
            other = look(settled.variant.other)
        return settled._replace(mixture=_mixture_beside(settled.variant, other))
    if override:
        raise tools.missing(tools.program(addresses.Family.IPV4, override, "restore"))
    observations = [found for found in map(look, Variant) if found]
    if not observations:
        raise tools.missing("iptables-restore")
    choice = chosen(observations, default=(default or default_of_host)())
    if record:
        _write(record, choice.variant)
    return choice


def observation(variant: Variant) -> Observation | None:
    """What a variant holds in this network namespace; None if its tools are not installed. Creates no table."""
    if not tools.installed(variant):
        return None
    rules = 0
    kubelet = False
    for family in addresses.Family:
        if variant is Variant.LEGACY and not legacy_tables(family):
            continue  # listing would do no harm, but there is nothing
        text = tools.save(variant, family)
        rules += sum(line.startswith("-A") for line in text.split("\n"))
        kubelet = kubelet or any(f":{chain} " in text for chain in KUBELET_CHAINS)
    return Observation(variant, rules, kubelet)


def legacy_tables(family: addresses.Family) -> tuple[str, ...]:
    """The legacy tables that exist in this network namespace. Using any other would make it."""
    name = "ip_tables_names" if family is addresses.Family.IPV4 else "ip6_tables_names"
    try:
        return tuple(Path("/proc/self/net", name).read_text().split())
    except OSError:
        return ()


def default_of_host() -> Variant:
    """What `iptables` without a suffix means. Those before 1.8 do not say, and know legacy tables alone."""
    path = tools.which("iptables")
    if path is None:
        return Variant.NFT
    try:
        said = subprocess.run([path, "--version"], capture_output=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return Variant.NFT
    return Variant.NFT if b"(nf_tables)" in said else Variant.LEGACY


def _mixture_beside(variant: Variant, other: Observation | None) -> str:
    if other is None or not (other.rules or other.kubelet):
        return ""
    shown = "; ".join(tools.program(family, other.variant, "save") for family in addresses.Family)
    return (
        f"netagent uses {variant.in_words}, and there are {other.rules} rules in {other.variant.in_words} as well; "
        f"packets meet both. These commands show them: {shown}. "
        "Move all software of the host to one of them (update-alternatives --config iptables)"
    )


def _recorded(record: Path | None) -> Choice | None:
    if record is None:
        return None
    try:
        return Choice(Variant(record.read_text().strip()), Basis.RECORD.format(record))
    except (OSError, ValueError):
        return None


def _write(record: Path, variant: Variant) -> None:
    """Record a variant: all of the file or nothing. Where that cannot be done, nothing."""
    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(dir=record.parent, prefix=f".{_RECORD}-")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{variant.value}\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, record)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
