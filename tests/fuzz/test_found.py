"""What hostile input broke, each thing by its name. The inputs themselves are in the corpus."""

from __future__ import annotations

import ctypes
import fcntl
import io
import json
import os
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from netagent import documents, errors
from netagent import settings as configuration
from netagent.iptables import lock, readback, tools
from netagent.model.addresses import Family
from netagent.nftables import backend, layout, netlink, report, ruleset, text, transaction, unwire, wire
from netagent.nftables import constants as c
from netagent.nftables import readback as nft_readback
from netagent.source import json_text, manifests
from netagent.source.api import messages
from netagent.source.api.listing import Listing
from netagent.source.kinds import Kind
from tests import builders, kernel
from tests.source.api.driver import Driver, synced

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
HALF = "\ud83d"  # of a character


def annotated(name: str, annotation: str, **fields: Any) -> builders.Manifest:
    made = builders.service_manifest(name, **fields)
    made["metadata"] |= {"annotations": {"note": annotation}, "resourceVersion": "9"}
    return made


# API servers and manifests -----------------------------------------------------------------------------------------


def test_half_a_character_in_an_annotation_costs_no_other_object() -> None:
    content = json.dumps(builders.list_manifest(annotated("bad", HALF), builders.service_manifest("good")))
    reading = manifests.read(manifests.STDIN, stdin=io.BytesIO(content.encode()))
    assert [one.name for one in reading.objects] == ["bad", "good"]
    assert not reading.quarantined


def test_half_a_character_in_an_annotation_stops_no_list_and_no_watch() -> None:
    driver = Driver()
    (listed,) = driver.list(annotated("bad", HALF), builders.service_manifest("good", cluster_ip="10.96.0.2"))
    assert [one.name for one in listed.objects] == ["bad", "good"]  # type: ignore[union-attr]
    following = synced(builders.service_manifest("good"))
    line = json.dumps({"type": "ADDED", "object": annotated("bad", HALF) | {"kind": "Service"}})
    (applied,) = following.say(line.replace('"9"', '"11"').encode() + b"\n")
    assert applied.object.name == "bad"  # type: ignore[union-attr]
    assert not following.error


def test_whole_characters_and_backslashes_are_left_as_they_are() -> None:
    for kept in (rb'"\ud83d\udca5"', rb'"\\ud83d"', rb'"\\\\ud83d \n"', rb'"\u0041"'):
        assert json_text.without_lone_surrogates(kept) is None
    mended = json_text.without_lone_surrogates(rb'"\ud83d \\\ud83d\udca5\udca5 \udca5\ud83d"')
    assert mended == rb'"\ufffd \\\ud83d\udca5\ufffd \ufffd\ufffd"'


def test_a_resource_version_in_other_digits_is_no_number() -> None:
    listing = Listing(Kind.SERVICE)
    item = {"x": {"resourceVersion": "5"}, "metadata": {"name": "a", "resourceVersion": "²"}}
    for token in ("more", ""):
        page = {"metadata": {"resourceVersion": "10", "continue": token}, "items": [item]}
        listing.add(messages.page_of(json.dumps(page).encode(), "ServiceList"), max_objects=10)
    assert not messages.is_older("\u0661", "\u0662")


@pytest.mark.parametrize("number", ["9" * 400, "-5", "99999999999999999999"])
def test_a_pause_that_nobody_means_is_bounded(number: str) -> None:
    status = messages.status_of(429, b'{"details":{"retryAfterSeconds":%s}}' % number.encode())
    assert 0 <= status.retry_after_seconds <= 10**9


def test_a_code_that_is_none_of_http_is_not_repeated() -> None:
    status = messages.status_of(500, b'{"message":"x","code":%s}' % (b"9" * 400))
    assert status.words == "500 'x'"


def test_a_number_of_two_thousand_digits_is_told_in_a_line() -> None:
    content = b'{"kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":%s}]}}' % (b"9" * 2000)
    (bad,) = manifests.read(manifests.STDIN, stdin=io.BytesIO(content)).quarantined
    assert len(str(bad)) < 200
    assert "is not a port" in str(bad)


# Configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("clientConnection: {qps: 0x" + "f" * 6000 + "}", "a number of 6002 characters"),
        ("mode: 0x" + "f" * 4000, "a number of 4002 characters"),
        ("oomScoreAdj: " + "1:" * 400 + "1.5", "a number of 803 characters"),
        ("a: " + "[" * 100_000, "nested more than 100 deep"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("clientConnection: {kubeconfig: 'a\u202eb'}", "text without line ends"),
        ('clientConnection: {kubeconfig: "\\ud800"}', "text without line ends"),
        ('hostnameOverride: "a\\e[31m"', "text without line ends"),
        ("detectLocal: {bridgeInterface: 'a\";drop'}", "an interface name"),
        ("detectLocal: {interfaceNamePrefix: 'veth*'}", "an interface name"),
        ('detectLocal: {interfaceNamePrefix: "v\\0"}', "text without line ends"),
        ("x" * (3 << 20), "more than 2097152 characters"),
    ],
)
def test_what_no_configuration_says_is_refused_in_a_line(body: str, words: str) -> None:
    given = body if body.startswith("{") else HEAD + body
    with pytest.raises(errors.ConfigError) as caught:
        configuration.parse(given, origin="a.conf")
    said = str(caught.value)
    assert words in said
    assert said.isprintable()
    assert len(said) < 700


@pytest.mark.parametrize("form", ["[%s]", "{<<: [%s]}"])
def test_an_alias_bomb_in_a_configuration_is_refused_before_it_goes_off(form: str) -> None:
    lines = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} " + form % ",".join([f"*a{n - 1}"] * 10) for n in range(1, 12)]
    with pytest.raises(ValueError, match="with its aliases") as caught:
        documents.documents_of("\n".join(lines))
    assert "line 6" in str(caught.value), "the later ones were not even composed"


def test_fields_beyond_a_hundred_are_counted_and_not_listed() -> None:
    with pytest.raises(errors.ConfigError) as caught:
        configuration.parse(HEAD + "".join(f"hostnameOverrid{n}: 1\n" for n in range(2000)), origin="a.conf")
    lines = str(caught.value).split("\n")
    assert len(lines) == 101
    assert lines[-1] == "a.conf: 1900 more fields are wrong"


def test_a_node_is_not_called_what_nobody_can_see() -> None:
    with pytest.raises(errors.ConfigError, match="no name of a node"):
        configuration.node_name_of(configuration.Settings(), "a\x1b[31m", "host")


# iptables ----------------------------------------------------------------------------------------------------------

FOREIGN = """*filter
:INPUT ACCEPT [0:0]
:NETAGENT-FWD - [0:0]
-A INPUT -m comment --comment "a\\"b\\\\c
COMMIT
*nat
:NETAGENT-FORGED - [0:0]
-A NETAGENT-FWD -j DROP
" -j ACCEPT
-A INPUT -j "odd -m comment --comment x
[1:2] -A INPUT -m comment --comment "with
counters" -j NETAGENT-FWD
-A NETAGENT-FWD -m comment --comment "default/web:http" -j ACCEPT
COMMIT
"""


def test_line_ends_in_comments_of_others_make_no_rules_and_no_tables() -> None:
    (table,) = readback.tables(FOREIGN)
    assert table.name == "filter"
    assert len(table.chains["INPUT"]) == 3
    assert table.chains["INPUT"][1] == '-j "odd -m comment --comment x'
    actual = readback.read(FOREIGN, Family.IPV4)
    assert [name.chain for name in actual.chains] == ["NETAGENT-FWD"]
    assert list(actual.chains.values()) == [('-m comment --comment "default/web:http" -j ACCEPT',)]
    assert [jump.rule for jump in actual.jumps()] == ['-m comment --comment "with\ncounters" -j NETAGENT-FWD']


def test_a_comment_that_never_ends_is_a_text_that_is_cut_off() -> None:
    with pytest.raises(readback.ReadbackError, match="ends in the middle of table filter"):
        list(readback.tables('*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m comment --comment "a\n' + "COMMIT\n" * 50))


def test_other_ends_of_lines_within_a_comment_of_our_chain_end_no_line() -> None:
    listed = '-N NETAGENT-A\n-A NETAGENT-A -m comment --comment "a\u2028b\x0cc" -j ACCEPT\n'
    assert len(readback.read_chain(listed, "NETAGENT-A")) == 1


@kernel.isolated
def test_iptables_mode_lives_with_a_comment_of_many_lines() -> None:
    """As the real tools print it."""
    for variant in tools.Variant:
        if not tools.installed(variant):
            continue
        program = tools.program(Family.IPV4, variant)
        note = 'a"b\\c\nCOMMIT\n*nat\n:NETAGENT-X - [0:0]\n'
        done = subprocess.run([program, "-A", "INPUT", "-m", "comment", "--comment", note], check=False)
        if done.returncode:
            continue  # this kernel lacks the variant
        actual = readback.read(tools.save(variant, Family.IPV4), Family.IPV4)
        assert not actual.exists
        inputs = [rules for name, rules in actual.builtin.items() if name == ("filter", "INPUT")]
        assert [len(rules) for rules in inputs] == [1]


# Processes ---------------------------------------------------------------------------------------------------------

COMM = b"\n\xff\x1b[31m;\xe2\x80\xae"
_PR_SET_NAME = 15  # linux/prctl.h


def call_ourselves(name: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_NAME, name, 0, 0, 0) == 0


def test_the_holder_of_the_lock_is_named_whatever_it_calls_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            call_ourselves(COMM)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(tell, b"x")
            os.read(os.pipe()[0], 1)
        finally:
            os._exit(1)
    try:
        assert os.read(ready, 1) == b"x"
        with pytest.raises(lock.LockHeldError) as caught, lock.held(0.0):
            pass
        assert str(caught.value).isprintable()
        assert f"(process {child})" in str(caught.value)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)


@kernel.isolated
def test_who_committed_is_named_whatever_it_calls_itself() -> None:
    from netagent.nftables import monitor

    with netlink.NftablesSocket() as ours:
        listening = monitor.Monitor(ours.port)
        call_ourselves(COMM)
        with netlink.NftablesSocket() as theirs:
            payload = wire.text(c.NFTA_TABLE_NAME, "netagent")
            made = netlink.message(c.NFT_MSG_NEWTABLE, c.NFPROTO_IPV4, c.NLM_F_REQUEST | c.NLM_F_CREATE, payload)
            assert theirs.commit([made]) == []
        (commit,) = listening.take() or ()
        listening.close()
    said = str(commit.process)
    assert said.isprintable()
    assert said.startswith("\\x0a")
    assert str(os.getpid()) in said


# What others leave in our table ------------------------------------------------------------------------------------


def newchain(name: bytes) -> bytes:
    payload = wire.text(c.NFTA_CHAIN_TABLE, "netagent") + wire.attribute(c.NFTA_CHAIN_NAME, name + b"\0")
    return netlink.message(c.NFT_MSG_NEWCHAIN, c.NFPROTO_IPV4, c.NLM_F_REQUEST | c.NLM_F_CREATE, payload)


def opened() -> backend.Backend:
    from netagent.plan import node

    made = backend.Backend(affinity_clients=1000)
    made.read()
    plan = node.node_context_of(configuration.Settings(), None, name="node-1")
    made.set_rules([node.node_rules_of(configuration.Settings(), plan, None, (), family) for family in Family])
    return made


@kernel.isolated
def test_chains_of_others_with_hostile_names_are_told_escaped_and_removed() -> None:
    """A name that is not UTF-8 was sent back to the kernel as another one: nothing could be committed any more."""
    ours = opened()
    ours.commit()
    ours.close()
    with netlink.NftablesSocket() as theirs:
        assert theirs.commit([newchain(b"a; flush ruleset\n\x1b[31m"), newchain(b"\xff\xfe")]) == []
    kernel.nft("add element ip netagent cluster_ips { * }")
    kernel.nft("add element ip netagent frontends { * : 0x1 }")
    again = opened()
    pending = again.pending()
    actual = [again.actual(family) for family in Family]
    told = list(report.lines(pending, again.tables.desired(), actual))
    script = [line for operation in pending.operations for line in text.operation_lines(operation)]
    assert all(line.isprintable() for line in (*told, *script)), told
    assert "  - element frontends { * }  (nobody's): a chain that is not ours" in told
    assert 'delete chain ip netagent "a; flush ruleset\\x0a\\x1b[31m"' in script
    # What nft cannot be told, it refuses; the rest is not carried out either.
    with pytest.raises(RuntimeError, match="syntax error"):
        kernel.nft("\n".join(script))
    again.commit()
    again.read()
    assert not again.pending()
    again.close()


@pytest.mark.parametrize("key", [bytes(5), bytes(9), bytes(64)])
@pytest.mark.parametrize("name", [layout.SHAPES, layout.BACKENDS, layout.SOURCE_RANGES])
def test_an_element_of_another_size_is_no_answer_of_the_kernel(name: str, key: bytes) -> None:
    spec = layout.sets(affinity_clients=1000)[name]
    element = wire.nest(
        c.NFTA_LIST_ELEM, wire.nest(c.NFTA_SET_ELEM_KEY, wire.attribute(c.NFTA_DATA_VALUE, key)), b"\x04\0\x09\0"
    )
    body = wire.nest(c.NFTA_SET_ELEM_LIST_ELEMENTS, element)
    with pytest.raises(OSError, match="malformed answer"):
        nft_readback.decode_elements([body], spec, Family.IPV4)


def test_a_key_without_an_end_is_one_value() -> None:
    spec = layout.sets(affinity_clients=1000)[layout.SOURCE_RANGES]
    whole = _one_end(spec)
    sent = wire.nest(
        c.NFTA_SET_ELEM_LIST_ELEMENTS,
        wire.nest(c.NFTA_LIST_ELEM, wire.nest(c.NFTA_SET_ELEM_KEY, wire.attribute(c.NFTA_DATA_VALUE, whole))),
    )
    (key,) = nft_readback.decode_elements([sent], spec, Family.IPV4)
    assert key == whole + whole
    assert "-" not in text.key_text(spec, Family.IPV4, key)
    assert transaction.DeleteElements(Family.IPV4, spec, {key: b""})


def _one_end(spec: ruleset.SetSpec) -> bytes:
    return bytes((10, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0, 10, 9, 8, 7))[: ruleset.key_bytes(spec.key, Family.IPV4)]


@kernel.isolated
def test_a_rule_of_others_that_compares_with_nothing_is_strange_and_no_more() -> None:
    """Zeros are left out of what is compared, so there was no first byte of it to look at."""
    kernel.nft("add table ip netagent; add chain ip netagent x; add rule ip netagent x meta l4proto 0 drop")
    specs = layout.sets(affinity_clients=1000)
    with netlink.NftablesSocket() as ours:
        found = nft_readback.read_table(ours, Family.IPV4, specs)
    assert unwire.table_of(found, specs).strange == (("x", 0),)


def test_a_rule_that_says_four_gigabytes_takes_none() -> None:
    attributes = (
        wire.attribute(c.NFTA_BITWISE_SREG, wire.register(0)),
        wire.number(c.NFTA_BITWISE_LEN, 0xFFFFFFFF),
    )
    expression = wire.nest(c.NFTA_LIST_ELEM, wire.text(c.NFTA_EXPR_NAME, "bitwise"), wire.nest(2, *attributes))
    canonical = nft_readback.canonical(expression)
    specs = layout.sets(affinity_clients=1000)
    tracemalloc.start()
    try:
        assert unwire.rule_of(canonical, Family.IPV4, specs) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
