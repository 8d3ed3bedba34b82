"""Objects whose owners mean ill: every text in them may be anything. Some of them pass all checks all the same."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests import builders

Manifest = builders.Manifest

# What tools, terminals and formats take for more than a text.
PIECES = (
    *('"', "'", "\\", ";", "*/", "/*", "#", "$(reboot)", "`reboot`", "{", "}", "|", "&&", "%s", "%n", "{0}", "\t"),
    *(
        "\n",
        "\r\n",
        "\0",
        "\x1b[31m",
        "\x1b]0;title\x07",
        "\x9b2J",
        "\x7f",
        "\x85",
        "\u2028",
        "\u202e",
        "\u200b",
        "\ufeff",
    ),
    *("\u05d0\u05d1", "\u0627", "\ud800", "\udcff", "\U0001f4a5", "e\u0301\u0301", "\u00a0", "\uff0f", "NaN", "null"),
    *(
        "\nadd rule ip netagent services drop\n",
        "\nCOMMIT\n*nat\n",
        '" ; flush ruleset ; #',
        "\nerror: forged level=error",
    ),
    *(
        '"} 1\nnetagent_forged 1\n',
        "\r\nX-Forged: 1\r\n\r\n<script>",
        "-A INPUT -j DROP",
        "../../etc/passwd",
        "x" * 300,
    ),
)

hostile = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), min_size=1, max_size=4).map("".join)

# As long as each may be, and with every character that it may have.
labels = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z") | st.sampled_from(("a" * 63, "0", "9-9", "a--b"))
port_names = st.from_regex(r"\A[a-z]([-a-z0-9]{0,13}[a-z0-9])?\Z") | st.sampled_from(("p" * 15, "p" * 63, ""))
subdomains = labels | st.sampled_from(("a." * 126 + "a", "x" * 253, "a.b-c.0"))
label_values = st.from_regex(r"\A([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?\Z")


def maybe(good: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Mostly good, so that other parts of the object are looked at as well."""
    return st.one_of(good, good, good, good, hostile)


@st.composite
def services(draw: st.DrawFn, *, texts: bool = True) -> Manifest:
    """A Service. With `texts` any text in it may be hostile, else only what nobody checks: annotations and labels."""
    some = maybe if texts else (lambda good: good)
    number = draw(st.integers(1, 250))
    made = builders.service_manifest(
        draw(some(labels)),
        namespace=draw(some(labels)),
        cluster_ip=draw(some(st.just(f"10.96.0.{number}"))),
        labels={"app": draw(hostile)},
        ports=[
            builders.port_manifest(80 + place, name=name, protocol=draw(some(st.sampled_from(("TCP", "UDP")))))
            for place, name in enumerate(draw(st.lists(some(port_names), min_size=1, max_size=3, unique=True)))
        ],
        type=draw(some(st.sampled_from(("ClusterIP", "LoadBalancer")))),
        externalIPs=draw(st.lists(some(st.just("192.0.2.9")) | hostile, max_size=2)),
        loadBalancerSourceRanges=draw(st.lists(some(st.just("10.0.0.0/8")), max_size=2)),
    )
    made["metadata"]["annotations"] = draw(st.dictionaries(hostile, hostile, max_size=2))
    made["metadata"]["uid"] = draw(some(st.just("5d2b")))
    return made


@st.composite
def slices(draw: st.DrawFn, service: Manifest, *, texts: bool = True) -> Manifest:
    """A slice of that Service, of the same kind."""
    some = maybe if texts else (lambda good: good)
    metadata = service["metadata"]
    endpoint = builders.endpoint_manifest(
        draw(some(st.just("10.180.0.1"))),
        node=draw(some(subdomains)),
        hints={"forZones": [{"name": draw(some(label_values))}]},
    )
    made = builders.slice_manifest(metadata["name"], endpoint, namespace=metadata["namespace"])
    made["ports"] = [{"name": port.get("name", ""), "port": 8080} for port in service["spec"]["ports"]]
    made["metadata"]["name"] = draw(some(subdomains))
    made["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": draw(hostile)}
    return made


@st.composite
def nodes(draw: st.DrawFn, *, texts: bool = True) -> Manifest:
    """The Node of this host, whose labels, taints and addresses may be anything."""
    made = builders.node_manifest(zone=draw(maybe(label_values) if texts else label_values))
    made["spec"]["taints"] = [{"key": draw(hostile), "effect": "NoSchedule"}]
    made["status"]["addresses"] += [{"type": "InternalIP", "address": draw(hostile)}]
    made["status"]["addresses"] += [{"type": "Hostname", "address": draw(hostile)}]
    return made


@st.composite
def clusters(draw: st.DrawFn, *, texts: bool = True) -> list[Manifest]:
    """A few Services with their slices, and the Node."""
    found: list[Any] = [draw(nodes(texts=texts))]
    for _ in range(draw(st.integers(1, 4))):
        service = draw(services(texts=texts))
        found += [service, draw(slices(service, texts=texts))]
    return found
