"""Facts about the host for a bug report: read from files and programs, nothing changed, everything bounded."""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import select
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import netagent
from netagent import errors, settings
from netagent.doctor.gather import nft, rtnetlink, sysctls
from netagent.iptables import readback, tools, variant
from netagent.model import addresses

_PACKAGES: Final = (
    "click", "kubernetes", "msgspec", "prometheus-client", "pyroute2", "python-iptables", "PyYAML", "rich",
)  # fmt: skip
_MODULES: Final = ("nf_", "nft_", "nfnetlink", "xt_", "ip_", "ip6_", "iptable_", "ip6table_", "br_netfilter", "bridge")
_MEMORY: Final = ("MemTotal", "MemAvailable")
_SECONDS: Final = 20
_HTTP_SECONDS: Final = 5.0
_HTTP_BYTES: Final = 16 << 20
_JOURNAL_LINES: Final = 2000
_JOURNAL_BYTES: Final = 8 << 20
_CHUNK_BYTES: Final = 1 << 16


def versions() -> Iterator[str]:
    """netagent, Python, and the packages that netagent uses."""
    yield f"netagent {netagent.__version__}"
    yield f"Python {sys.version.split()[0]} ({platform.python_implementation()})"
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{name} {metadata.version(name)}"
    for name in ("iptables", "nft", "ipset", "conntrack", "journalctl"):
        yield f"program {name}: {tools.which(name) or 'not found'}"


def system() -> Iterator[str]:
    """Kernel, operating system, processors, memory."""
    found = os.uname()
    yield f"{found.sysname} {found.release} {found.version} {found.machine}"
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        with contextlib.suppress(OSError):
            lines = Path(path).read_text(errors="replace").splitlines()
            yield from (line for line in lines if line.startswith(("NAME=", "VERSION=", "ID=", "VERSION_ID=")))
            break
    yield f"processors: {os.cpu_count()}"
    with contextlib.suppress(OSError):
        yield from (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(_MEMORY))
        yield f"up for {Path('/proc/uptime').read_text().split()[0]} s"


def modules() -> Iterator[str]:
    """The loaded modules that have to do with netfilter; those that are built in are not listed anywhere."""
    names = sorted(line.split()[0] for line in Path("/proc/modules").read_text().splitlines())
    yield from (name for name in names if name.startswith(_MODULES))


def parameters() -> Iterator[str]:
    """The sysctls that matter, of this network namespace."""
    values = dict(sysctls.read())
    for path in sorted((sysctls.DIRECTORY / "net/netfilter").glob("nf_conntrack_*")):
        with contextlib.suppress(OSError):
            values[str(path.relative_to(sysctls.DIRECTORY))] = path.read_text().strip()
    yield from (f"{path.replace('/', '.')} = {value}" for path, value in sorted(values.items()))


def interfaces() -> Iterator[str]:
    """Interfaces with their addresses; no hardware addresses."""
    for link in rtnetlink.links():
        state = "up" if link.up else "down"
        kind = link.kind or ("loopback" if link.loopback else "physical")
        owned = " ".join(map(addresses.format_address, link.addresses))
        yield f"{link.number}: {link.name} {kind} {state} mtu {link.mtu} {owned}".rstrip()


def routes() -> Iterator[str]:
    """The routes of the main table, and the routing rules that look at the packet mark."""
    names = {link.number: link.name for link in rtnetlink.links()}
    for route in rtnetlink.routes():
        gateway = f" via {route.gateway}" if route.gateway else ""
        link = names.get(route.link, "?")
        yield f"{route.family.value} {route.destination}{gateway} dev {link} metric {route.metric}"
    for rule in rtnetlink.mark_routes():
        yield f"{rule.family.value} rule {rule.priority}: fwmark {rule.mark:#x}/{rule.mask:#x}"


def connection_tracking() -> Iterator[str]:
    """How many connections there are, and the kernel's counters, all processors together; no addresses."""
    for name in ("count", "max", "buckets"):
        with contextlib.suppress(OSError):
            yield f"{name}: {(sysctls.DIRECTORY / f'net/netfilter/nf_conntrack_{name}').read_text().strip()}"
    lines = Path("/proc/thread-self/net/stat/nf_conntrack").read_text().splitlines()
    names = lines[0].split()
    totals = [0] * len(names)
    for line in lines[1:]:
        for index, word in enumerate(line.split()[: len(names)]):
            totals[index] += int(word, 16)
    # The first column is the number of all connections, the same in every line.
    yield from (f"{name}: {total}" for name, total in zip(names[1:], totals[1:], strict=True))


def all_tables(*, mark: int) -> Iterator[str]:
    """Everybody's tables and base chains in nf_tables, by name: no rules of others."""
    found = nft.read(mark=mark)
    if found.unread:
        raise errors.PrivilegeError(f"nf_tables cannot be read: {found.unread}")
    for table in found.tables:
        yield f"table {table} flags {table.flags:#x} owner {table.owner}"
        for chain in found.chains:
            if (chain.family, chain.table) == (table.family, table.name) and chain.hook is not None:
                policy = "drop" if chain.policy == 0 else "accept"
                yield (
                    f"  {chain.name}: {chain.kind} hook {chain.hook} priority {chain.priority} policy {policy}, "
                    f"{chain.rules} rules"
                )


def own_chains(each: tools.Variant, family: addresses.Family) -> Iterator[str]:
    """Our chains in xtables, and the rules that lead to them, as iptables-save prints them; nobody else's."""
    if each is tools.Variant.LEGACY and not variant.legacy_tables(family):
        raise errors.NetagentError("there are no legacy tables")
    for table in readback.tables(tools.save(each, family), strict=False):
        ours = {name: rules for name, rules in table.chains.items() if name.startswith(readback.PREFIX)}
        jumps = [
            f"-A {name} {rule}"
            for name, rules in table.chains.items()
            if name not in ours
            for rule in rules
            if readback.is_ours(rule)
        ]
        if ours or jumps:
            yield f"*{table.name}"
            yield from (f":{name} - [0:0]" for name in ours)
            yield from jumps
            yield from (f"-A {name} {rule}" for name, rules in ours.items() for rule in rules)
            yield "COMMIT"


def journal(unit: str) -> str:
    """The last lines of a unit's journal. UnsupportedError where there is no journal, or no such unit in it."""
    if shutil.which("journalctl") is None:
        raise errors.UnsupportedError("journalctl is not installed")
    command = ["journalctl", "--unit", unit, "--lines", str(_JOURNAL_LINES), "--no-pager", "--quiet"]
    said = tail_of([*command, "--output", "short-iso"], most=_JOURNAL_BYTES, seconds=_SECONDS)
    text = said.decode("utf-8", "backslashreplace")
    if not text.strip():
        raise errors.UnsupportedError(f"the journal has no line of {unit}, or none that this user may read")
    return text


def tail_of(command: Sequence[str], *, most: int, seconds: float) -> bytes:
    """The last `most` bytes, or some more, that a program prints within `seconds`; then it is killed."""
    kept: deque[bytes] = deque()
    size = 0
    until = time.monotonic() + seconds
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        poll = select.poll()
        poll.register(running.stdout, select.POLLIN | select.POLLHUP)
        while (left := until - time.monotonic()) > 0 and poll.poll(left * 1000):
            chunk = os.read(running.stdout.fileno(), _CHUNK_BYTES)
            if not chunk:
                break
            kept.append(chunk)
            size += len(chunk)
            while size - len(kept[0]) >= most:
                size -= len(kept.popleft())
        running.kill()
    return b"".join(kept)


def page(where: settings.SocketAddress, path: str) -> str:
    """What the agent's own server answers, asked on this host only. SourceError if it does not."""
    address = where.address
    loopback = "127.0.0.1" if address.version == 4 else "::1"
    host = loopback if address.is_unspecified else str(address)
    connection = http.client.HTTPConnection(host, where.port, timeout=_HTTP_SECONDS)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read(_HTTP_BYTES).decode("utf-8", "backslashreplace")
    except (OSError, http.client.HTTPException) as error:
        raise errors.SourceError(f"http://{where}{path}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    return f"# http://{where}{path}: status {answer.status}\n{body}"


def local_only(where: settings.SocketAddress, own: Iterable[bytes]) -> bool:
    """Whether an address is one of this host: nobody else is asked."""
    address = where.address
    return address.is_loopback or address.is_unspecified or address.packed in set(own)


def environment(names: Mapping[str, str]) -> Iterator[str]:
    """Variables that netagent looks at, as far as they are set."""
    for name in ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "NODE_NAME", "KUBERNETES_SERVICE_HOST"):
        if name in names:
            yield f"{name}={names[name]}"
