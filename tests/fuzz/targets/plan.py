"""Manifests all the way: what passes the decoder is planned, lowered and encoded, and both encoders can take it."""

from __future__ import annotations

import io

from netagent import settings
from netagent.agent.planner import Planner
from netagent.cli import views
from netagent.nftables import tables, transaction, wire
from netagent.source import manifests
from tests.fuzz.targets import _checks
from tests.fuzz.targets.manifests import WORDS as _WORDS

WORDS = (
    *_WORDS,
    *(b"clusterIP: 10.96.0.1\n", b"type: LoadBalancer\n", b"externalTrafficPolicy: Local\n", b"nodePort: 30000\n"),
    *(b"sessionAffinity: ClientIP\n", b"loadBalancerSourceRanges: [10.0.0.0/8]\n", b"addressType: IPv4\n"),
    *(b"kubernetes.io/service-name: web\n", b"ready: false", b"terminating: true", b"nodeName: node-1\n"),
)


def run(data: bytes) -> None:
    """Plan what can be read, and render it in every way."""
    reading = manifests.read(manifests.STDIN, stdin=io.BytesIO(data))
    if not reading.objects:
        return
    wanted = settings.Settings()
    planner = Planner(wanted, node_name="node-1")
    planner.store.replace(reading.objects)
    planner.replan()
    current = planner.forwarding.frontends
    rules = planner.rules
    lines = list(views.as_nft(rules, current, affinity_clients=wanted.affinity_clients))
    lines += views.as_iptables(rules, current)
    lines += views.as_table(current)
    for line in lines:
        _checks.require(line.replace("\t", "").isprintable() and line.isascii(), f"hostile line {line[:200]!a}")
    document = views.plan_document("node-1", current)
    views.as_json(document)
    views.as_yaml(document)
    desired = tables.Tables(affinity_clients=wanted.affinity_clients)
    desired.set_rules(rules)
    desired.update(current, current)
    for table in desired.desired():
        for name, elements in table.elements.items():
            for message in wire.messages(transaction.AddElements(table.family, table.sets[name], elements)):
                _checks.require(len(message) < 65536, "a message that no attribute can hold")
