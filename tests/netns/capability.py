"""Whether real packets can be tried here."""

from __future__ import annotations

import functools
import os
import shutil

from . import universe


@functools.cache
def missing() -> str:
    """Return why no node of namespaces can be made here, and what to do about it; "" when one can be made.

    Asks the kernel by making one namespace and one nftables table in it; both are gone on return.
    """
    absent = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    try:
        with universe.Namespace.create("probe") as probe:
            made = probe.run(["nft", "add", "table", "ip", "probe"], check=False)
            linked = probe.run(["ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1"], check=False)
    except PermissionError:
        hint = "run the tests as root or under 'unshare -rn'"
        return f"cannot create a network namespace as uid {os.geteuid()} (EPERM): {hint}"
    except OSError as error:
        return f"cannot create a network namespace: {error}"
    if made.returncode:
        return f"nft does not work in a fresh network namespace: {made.stderr.strip()}"
    if linked.returncode:
        return f"no veth links (CONFIG_VETH): {linked.stderr.strip()}"
    return ""


@functools.cache
def conntrack_missing() -> str:
    """Return why entries of the flow table cannot be planted and listed here; "" when they can."""
    if missing():
        return missing()
    if shutil.which("conntrack") is None:
        return "not installed: conntrack"
    with universe.Namespace.create("probe") as probe:
        listed = probe.run(["conntrack", "-L"], check=False)
    return f"conntrack does not work here: {listed.stderr.strip()}" if listed.returncode else ""
