"""The first packet of a flow: what the rules cost it, over connection tracking alone."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

from bench import cluster, figures, report, state, usual
from bench.plan import Plan
from bench.workers import Worker, WorkerError

_SOURCE = "10.0.0.1"  # a pod: its connections are not masqueraded
_ENDPOINTS = 2
_LAYOUTS = ("conntrack", "nat", "netagent", "usual")
_NFT_SECONDS = 600
_FLAT = 1.15
# A round that is not counted.
_WARM_UP = 1

# struct nlmsghdr and struct nfgenmsg; linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
_FLUSH = struct.pack("=IHHIIBBH", 20, 1 << 8 | 2, 0x1 | 0x4, 1, 0, 0, 0, 0)
_NETLINK_NETFILTER = 12


class Case(NamedTuple):
    """What packets are sent through: a layout, and to how many destinations."""

    layout: str
    frontends: int


class Node:
    """In a worker: a node that forwards what comes over a veth pair to one that loses it."""

    def connect(self, client: int, number: int) -> None:
        """Make the pair; its other end, `c<number>`, is in the namespace of the process `client`. Likewise the
        way out."""
        _ip(f"link add name pods type veth peer name c{number} netns {client}")
        _ip("link set pods address 02:00:00:00:00:01 up")
        # Another pair takes what is forwarded, for one neighbour whose address its other end does not have: that drops
        # packets before it looks at them. Many neighbours would be many entries in a table that all namespaces share.
        _ip(f"link add name sink type veth peer name d{number} netns {client}")
        _ip("link set sink up")
        _ip("neighbour add 192.0.2.254 lladdr 02:00:00:00:00:09 dev sink nud permanent")
        _ip("route add 10.0.0.0/8 via 192.0.2.254 dev sink onlink")
        for name, value in (("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/pods/rp_filter", "0")):
            Path("/proc/sys/net/ipv4", name).write_text(value)

    def load(self, layout: str, pages: str | None, script: str | None) -> None:
        """Program the rules of a layout."""
        match layout:
            case "conntrack" | "nat":
                # Something that looks at the state, so that the kernel tracks connections; it matches nothing.
                _nft("add table ip bench")
                _nft("add chain ip bench c { type filter hook prerouting priority -150; }")
                _nft("add rule ip bench c ct state invalid drop")
                hooks = ("prerouting priority -100", "output priority -100", "postrouting priority 100")
                for index, hook in enumerate(hooks if layout == "nat" else ()):
                    _nft(f"add chain ip bench c{index} {{ type nat hook {hook}; }}")
            case "netagent":
                assert pages
                programmed = state.State()
                programmed.list_all(Path(pages))
                programmed.sync()
            case "usual":
                assert script
                done = subprocess.run(
                    ["nft", "-f", script], timeout=_NFT_SECONDS, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise RuntimeError(f"nft failed: {done.stderr.strip()[:500]}")
            case _:
                raise ValueError(layout)

    def forget(self) -> None:
        """Delete all entries of connection tracking in this namespace."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.send(_FLUSH)
            _, code = struct.unpack_from("=16si", netlink.recv(4096))
            if code:
                raise OSError(-code, os.strerror(-code))

    def seen(self) -> tuple[int, int]:
        """How many connections are tracked, and how many packets went out since the node was made."""
        tracked = int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())
        statistics = subprocess.run(
            ["ip", "-json", "-statistics", "link", "show", "dev", "sink"], capture_output=True, check=True
        )
        return tracked, json.loads(statistics.stdout)[0]["stats64"]["tx"]["packets"]


class Client:
    """In a worker: where the packets come from."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._processor = max(os.sched_getaffinity(0))

    def up(self, number: int) -> None:
        """Switch the ends of a node's pairs on."""
        _ip(f"link set c{number} address 02:00:00:00:00:02 up")
        _ip(f"link set d{number} up")

    def send(self, number: int, destination: str, destinations: int, port: int, flows: int, seed: int) -> float:
        """Send the first packets of so many flows; return the nanoseconds of one (the median of batches)."""
        arguments = (f"c{number}", _SOURCE, destination, destinations, port, flows, seed, self._processor)
        done = subprocess.run([self._program, *map(str, arguments)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        nanoseconds, _, failed = done.stdout.split()
        if int(failed):
            raise RuntimeError(f"{failed} of {flows} packets could not be sent")
        return float(nanoseconds)


def _ip(words: str) -> None:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {words}: {done.stderr.strip()}")


def _nft(script: str) -> None:
    subprocess.run(["nft", script], check=True)


def compiled(plan: Plan) -> Path:
    """The program that sends packets."""
    program = plan.scratch / "newflows"
    source = Path(__file__).resolve().parents[1] / "newflows.c"
    subprocess.run(["cc", "-O2", "-Wall", "-o", str(program), str(source)], check=True)
    return program


def through_services(client: Worker, node: Worker, number: int, size: cluster.Size, flows: int, turn: int) -> float:
    """One round through the rules of a node, whatever they are: the nanoseconds of a first packet."""
    return _send(client, node, number, Case("netagent", size.services), flows, seed=turn + 1)


def run(plan: Plan) -> report.Section:
    """All layouts at the same time, in a namespace each; every round sends through each of them."""
    program = compiled(plan)
    cases = [Case(layout, frontends) for layout in ("conntrack", "nat", "netagent") for frontends in plan.frontends]
    cases += [Case("usual", frontends) for frontends in plan.usual_frontends]
    found: dict[Case, list[float]] = {case: [] for case in cases}
    notes: list[str] = []
    nodes: dict[Case, tuple[Worker, int]] = {}
    workers: list[Worker] = []
    try:
        client = Worker("sections.packets:Client", program=str(program))
        workers.append(client)
        for case in list(cases):
            # The layouts without Services are the same for any number of destinations.
            if case.layout in ("conntrack", "nat") and (other := Case(case.layout, plan.frontends[0])) in nodes:
                nodes[case] = nodes[other]
                continue
            plan.say(f"packets: programming {case.layout}, {case.frontends:,} frontends")
            node = Worker("sections.packets:Node")
            workers.append(node)
            number = len(workers)
            node.ask("connect", client=client.pid, number=number)
            client.ask("up", number=number)
            try:
                node.ask("load", layout=case.layout, **_files(plan, case))
            except WorkerError as error:
                if case.layout != "usual":  # what is compared with may be too much for nft; nothing else may fail
                    raise
                notes.append(f"{case.layout} with {case.frontends:,} frontends: {str(error).strip().splitlines()[-1]}")
                cases.remove(case)
                continue
            nodes[case] = node, number
        plan.settle()
        plan.say(f"packets: {plan.rounds} rounds of {plan.flows:,} flows through each")
        for turn in range(_WARM_UP + plan.rounds):
            for case in cases if turn % 2 else reversed(cases):
                nanoseconds = _send(client, *nodes[case], case, plan.flows, seed=turn + 1)
                if turn >= _WARM_UP:
                    found[case].append(nanoseconds)
    finally:
        for worker in reversed(workers):
            worker.close()
        plan.settle()
    return section({case: values for case, values in found.items() if values}, plan.flows, notes)


def _files(plan: Plan, case: Case) -> dict[str, str | None]:
    size = cluster.Size(case.frontends, _ENDPOINTS)
    pages = script = None
    if case.layout == "netagent":
        pages = str(plan.pages(size, protocol="UDP"))
    elif case.layout == "usual":
        script = str(plan.scratch / f"usual-{case.frontends}.nft")
        lines = usual.script(cluster.cluster(size, protocol="UDP"))
        Path(script).write_text("".join(f"{line}\n" for line in lines))
    return {"pages": pages, "script": script}


def _send(client: Worker, node: Worker, number: int, case: Case, flows: int, *, seed: int) -> float:
    """One round of one case. RuntimeError if a packet did not go all the way."""
    wanted = cluster.cluster(cluster.Size(1, 1)).services[0]
    through_rules = case.layout in ("netagent", "usual")
    destination, port = (
        (wanted.cluster_ip, cluster.PORT) if through_rules else (wanted.endpoints[0], cluster.TARGET_PORT)
    )
    node.ask("forget")
    _, before = node.ask("seen")
    nanoseconds: float = client.ask(
        "send",
        number=number,
        destination=destination,
        destinations=case.frontends,
        port=port,
        flows=flows,
        seed=seed,
    )
    tracked, after = node.ask("seen")
    # A neighbour discovery may be among them; a packet that no rule translates has no route.
    if not flows <= after - before <= flows + 100 or not flows <= tracked <= flows + 100:
        raise RuntimeError(f"{case}: of {flows} packets {after - before} arrived, {tracked} connections are tracked")
    node.ask("forget")
    return nanoseconds


def section(found: dict[Case, list[float]], flows: int, notes: list[str]) -> report.Section:
    """The section for these rounds: nanoseconds of a packet."""
    rows = []
    for case, values in found.items():
        base = found.get(Case("conntrack", case.frontends))
        over = [value - other for value, other in zip(values, base, strict=True)] if base else None
        rows.append(
            (
                _NAMES[case.layout],
                f"{case.frontends:,}",
                figures.spread(values),
                figures.spread(over) if over and case.layout != "conntrack" else "",
                figures.spread(figures.ratios(values, base)) if base and case.layout != "conntrack" else "",
            )
        )
    table = report.Table(
        f"Nanoseconds of a flow's first packet, {flows:,} flows a round, {len(next(iter(found.values())))} rounds",
        ("rules", "destinations", "first packet, ns", "over connection tracking alone, ns", "times that"),
        rows,
    )
    data = {f"{case.layout} {case.frontends}": values for case, values in found.items()}
    return report.Section("First packet", (table,), data, (*_NOTES, *notes), _checks(found))


_NAMES = {
    "conntrack": "connection tracking alone",
    "nat": "and empty nat chains",
    "netagent": "netagent",
    "usual": "a chain for each Service and endpoint",
}
_NOTES = (
    "UDP packets with a source port each, over a veth pair to a forwarding node, to destinations chosen at "
    f"random; those of Services have {_ENDPOINTS} endpoints. The time is that of the send call, in which the whole "
    "way of the packet is. Connection tracking is emptied before each round; all go through the same processor. "
    "In each round all layouts have their turn, and differences and ratios are taken within a round. That every "
    "packet was translated and forwarded is checked.",
)


def _checks(found: dict[Case, list[float]]) -> list[report.Check]:
    sizes = sorted(case.frontends for case in found if case.layout == "netagent")
    if len(sizes) < 2:
        return []
    few, many = sizes[0], sizes[-1]
    whole = figures.summary(figures.ratios(found[Case("netagent", many)], found[Case("netagent", few)])).median
    parts = {
        size: figures.summary(
            value - base
            for value, base in zip(found[Case("netagent", size)], found[Case("conntrack", size)], strict=True)
        ).median
        for size in (few, many)
    }
    part = parts[many] / parts[few]
    title = f"first packet at {many:,} frontends at most 15 % over that at {few}"
    return [
        report.Check(title, f"{whole:.2f} times", whole <= _FLAT),
        report.Check(f"{title}, of the part over connection tracking alone", f"{part:.2f} times", part <= _FLAT),
    ]
