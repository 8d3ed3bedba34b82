"""Hostile names and annotations reach no ruleset, no log line, no Event, no metric, no answer and no terminal."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from typing import Any

import prometheus_client.parser
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent import escaping
from netagent import settings as configuration
from netagent.agent import planner, reporting
from netagent.agent.health import messages, pages, state
from netagent.agent.metrics import collectors, connections
from netagent.cli import logs, main, views
from netagent.iptables import text as iptables_text
from netagent.model import addresses, objects
from netagent.nftables import layout, readback, ruleset, tables, transaction, wire
from netagent.nftables import text as spelling
from netagent.plan import frontends
from netagent.source import manifests
from netagent.source.api import events, recorder
from netagent.source.kinds import Kind
from tests import builders, kernel
from tests.agent import test_announcing
from tests.fuzz import strategies

NODE = "node-1"
# All that our rules and their comments are made of.
RULESET_LINE = re.compile(r"[-A-Za-z0-9 \t._:/{}@!=&^|+*#,;\"()\[\]<>]*")
COMMENT = re.compile(r'comment "?([^" ]*)"?')


def reading_of(found: list[builders.Manifest]) -> manifests.Reading:
    """What the agent makes of these, as the API or a file would give them."""
    import io

    return manifests.read(manifests.STDIN, stdin=io.BytesIO(json.dumps(builders.list_manifest(*found)).encode()))


def planned(reading: manifests.Reading) -> planner.Planner:
    plan = planner.Planner(configuration.Settings(), node_name=NODE)
    plan.store.replace(reading.objects)
    plan.replan()
    return plan


def one_line(text: str) -> None:
    assert text.isprintable(), ascii(text)
    assert len(text.splitlines()) == 1


# Rulesets --------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(strategies.clusters())
def test_nothing_hostile_is_in_a_ruleset(found: list[builders.Manifest]) -> None:
    plan = planned(reading_of(found))
    current = plan.forwarding.frontends
    nft = list(views.as_nft(plan.rules, current, affinity_clients=1000))
    iptables = list(views.as_iptables(plan.rules, current))
    for line in (*nft, *iptables):
        assert RULESET_LINE.fullmatch(line), ascii(line)
    owners = {str(frontend.owner)[:127] for frontend in current.values()}
    for line in nft:
        assert set(re.findall(r'comment "(.*?)"', line)) <= owners
        assert line.count('"') in (0, 2)
    desired = tables.Tables(affinity_clients=1000)
    desired.set_rules(plan.rules)
    desired.update(current, current)
    for table in desired.desired():
        for name, elements in table.elements.items():
            spec = table.sets[name]
            sent = [raw[20:] for raw in wire.messages(transaction.AddElements(table.family, spec, elements))]
            assert readback.decode_elements(sent, spec, table.family) == elements


@kernel.isolated
def test_what_passes_the_checks_is_loaded_by_the_tools_and_by_the_kernel() -> None:
    """Names as long as they may be, and hostile text wherever nobody checks it."""
    import shutil

    from netagent.nftables import backend

    longest = builders.service_manifest(
        "s" * 63, namespace="n" * 63, cluster_ip="10.97.0.1", ports=[builders.port_manifest(name="p" * 63)]
    )
    longest["metadata"]["annotations"] = {piece: piece for piece in strategies.PIECES}
    found: list[builders.Manifest] = [longest]

    @settings(max_examples=12, database=None)
    @given(strategies.clusters(texts=False))
    def collected(cluster: list[builders.Manifest]) -> None:
        found.extend(cluster)

    collected()
    plan = planned(reading_of(found))
    current = plan.forwarding.frontends
    assert any(len(str(frontend.owner)) > 127 for frontend in current.values()), "too long for a comment of nft"
    script = "\n".join(views.as_nft(plan.rules, current, affinity_clients=1000)) + "\n"
    subprocess.run(["nft", "-c", "-f", "-"], input=script, text=True, check=True, capture_output=True)
    for program in ("iptables-nft-restore", "ip6tables-nft-restore"):
        if shutil.which(program):
            text = "\n".join(views.as_iptables(plan.rules, current)) + "\n"
            subprocess.run([program, "--noflush", "--test"], input=text, text=True, check=True, capture_output=True)
    written = backend.Backend(affinity_clients=1000)
    written.read()
    written.set_rules(plan.rules)
    written.update(current, current)
    written.commit()
    written.read()
    assert not written.pending()
    written.close()


@given(strategies.hostile)
def test_any_text_in_quotes_stays_within_them_in_an_nft_script(text: str) -> None:
    """Names and comments that others gave to what is in our table come into scripts as well."""
    family = addresses.Family.IPV4
    spec = layout.sets(affinity_clients=1000)[layout.FRONTENDS]
    key, number = bytes((10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0)), bytes(4)
    lines = [
        spelling.element(spec, family, key, ruleset.Owned(number, text)),
        spelling.rule_text((ruleset.InputName(text, True),), family),
        *spelling.operation_lines(transaction.DeleteChain(family, text)),
        *spelling.operation_lines(transaction.DeleteSet(family, text)),
    ]
    for line in lines:
        one_line(line)
        outside = re.sub(r'"[^"]*"', "", line)
        assert re.fullmatch(r"[-A-Za-z0-9 ._:/!=*]*", outside), ascii(line)


@given(strategies.hostile)
def test_any_words_make_a_comment_that_iptables_takes(words: str) -> None:
    comment = iptables_text.comment(words)
    assert re.fullmatch(r'-m comment --comment ("[-A-Za-z0-9._:/]{1,255}"|[-A-Za-z0-9._:/]{1,255})', comment)


# Logs, Events, terminals -----------------------------------------------------------------------------------------


def logged(record: logging.LogRecord) -> str:
    return logs.Formatter(coloured=False).format(record)


class Collected(logging.Handler):
    """Keeps lines as the log has them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logged(record))


@settings(max_examples=15)
@given(strategies.clusters())
def test_what_is_told_about_hostile_objects_is_one_printable_line_each(found: list[builders.Manifest]) -> None:
    reading = reading_of(found)
    collected = Collected()
    log = logging.getLogger("netagent")
    log.addHandler(collected)
    try:
        reporting.SourceReporter().report(reading)
    finally:
        log.removeHandler(collected)
    assert len(collected.lines) >= len({str(one) for one in reading.quarantined})
    for line in collected.lines:
        one_line(line)
        assert line.startswith("warning: ")


@given(strategies.hostile, strategies.hostile)
def test_a_log_line_cannot_be_forged(message: str, value: str) -> None:
    record = logging.LogRecord("netagent", logging.INFO, "", 0, "%s", (message,), None)
    record.reason, record.operations = value, 7
    line = logged(record)
    one_line(line)
    assert line.endswith(" operations=7")
    assert line.startswith("info: ")
    # What stands in quotation marks ends where it ends.
    assert re.fullmatch(r'info: .* reason=([^" =\\]+|"([^"\\]|\\.)*") operations=7', line)


@given(strategies.hostile)
def test_a_traceback_is_part_of_its_line(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as error:
        record = logging.LogRecord(
            "netagent", logging.ERROR, "", 0, "broken", (), (ValueError, error, error.__traceback__)
        )
    line = logged(record)
    one_line(line)
    assert line.startswith('error: broken traceback="Traceback (most recent call last):\\n')


@given(strategies.hostile)
def test_escaped_text_is_one_line_from_left_to_right(text: str) -> None:
    import unicodedata

    shown = escaping.printable(text)
    one_line(shown or "-")
    assert not {unicodedata.bidirectional(char) for char in shown} & {"R", "AL", "AN", "RLO", "LRO", "RLE", "LRE"}
    shown.encode()
    assert escaping.printable(shown) == shown


def test_ordinary_text_is_shown_as_it_is() -> None:
    for text in ("", "default/web:http", "München, 5 µs", "a=b \\ 'c'"):
        assert escaping.printable(text) == text


@settings(max_examples=15)
@given(strategies.clusters(), strategies.hostile)
def test_an_event_says_it_in_one_printable_sentence(found: list[builders.Manifest], reason: str) -> None:
    world = test_announcing.World()
    world.sync()
    world.take()
    bad = [
        events.Quarantined(kind, one.namespace, one.name, one.field, one.reason)
        for one in reading_of(found).quarantined
        if (kind := one.key and one.key[0])
    ]
    bad.append(events.Quarantined(Kind.SERVICE, "default", "web", "spec", reason))
    world.hear(*bad)
    recorded = world.take()
    assert recorded
    sent: list[dict[str, Any]] = []
    at_once = recorder.Limits(spread_seconds=0.0, node_burst=1000)
    sender = recorder.EventRecorder(_Taken(sent), node_name=NODE, limits=at_once)
    with sender:
        for one in recorded:
            sender.record(one)
        assert sender.flush(60.0)
    assert sent
    for event in sent:
        one_line(event["note"])
        assert len(event["note"].encode()) <= 1024
        assert re.fullmatch(r"[-a-z0-9.]{1,253}", event["metadata"]["name"])


class _Taken:
    """A transport that takes everything."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        self._sent = sent
        self.status = 201
        self.headers: dict[str, str] = {}

    def get(self, request: object) -> Any:
        raise AssertionError("nothing is asked")

    def post(self, request: object, body: bytes) -> Any:
        self._sent.append(json.loads(body))
        return self

    def read(self) -> bytes:
        return b""

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


@settings(max_examples=8)
@given(strategies.hostile)
def test_a_command_repeats_nothing_hostile_to_a_terminal(text: str) -> None:
    # No argument of a program can have a NUL, or half a character that stands for no byte.
    text = "".join(char for char in text if char != "\0" and not "\ud800" <= char < "\udc80")
    for arguments in (["dump", "-f", f"missing/{text}"], ["dump", "-f", "-", "--node-name", f"n{text}"]):
        ended = CliRunner().invoke(main.main, arguments, input=json.dumps(builders.list_manifest()))
        assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
        for line in ended.stderr.split("\n"):
            assert line.isprintable(), ascii(line)


# Metrics and HTTP ------------------------------------------------------------------------------------------------


def metrics_with(owner: frontends.ServicePortName, where: str) -> collectors.Metrics:
    health = state.AgentHealth((addresses.Family.IPV4,), sync_period_seconds=30.0)
    grown = iter(range(1, 100))

    def read() -> list[connections.ElementCount]:
        return [connections.ElementCount("x", owner, addresses.Family.IPV4, next(grown))]

    made = collectors.Metrics(
        health,
        mode=configuration.Mode.NFTABLES,
        families=(addresses.Family.IPV4,),
        read_connections=read,
        clock=iter(range(0, 10**6, 10)).__next__,
    )
    made.stumbled(where)
    made.quarantined({where: 3})
    return made


@settings(max_examples=15)
@given(strategies.hostile, st.sampled_from(("", "application/openmetrics-text; version=1.0.0")))
def test_metrics_are_read_back_as_they_were_whatever_a_label_says(text: str, accept: str) -> None:
    """No name of a Service can be hostile; if one were, the page would still be one that Prometheus can read."""
    text = text.encode("utf-8", "replace").decode()
    owner = frontends.ServicePortName(text, text, text, addresses.Protocol.TCP)
    body, _ = metrics_with(owner, text).exposition(accept)
    exposed = body.decode()
    parse = prometheus_client.parser.text_string_to_metric_families
    samples = [sample for family in parse(exposed.replace("# EOF\n", "")) for sample in family.samples]
    series = [one for one in samples if one.name == "netagent_service_connections_total"]
    assert text in [one.labels["service"] for one in series]
    assert text in [one.labels["kind"] for one in samples if one.name == "netagent_quarantined_objects"]
    assert not any(one.name == "netagent_forged" for one in samples)


@given(strategies.hostile, st.sampled_from(("/healthz", "/livez", "/readyz", "/", "")))
def test_an_answer_repeats_nothing_of_a_hostile_request(text: str, path: str) -> None:
    health = state.AgentHealth((addresses.Family.IPV4,), sync_period_seconds=30.0)
    hostile = text.encode("utf-8", "surrogatepass")
    handler = pages.health_pages(health)
    for raw in (
        b"GET " + path.encode() + hostile.replace(b" ", b"") + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nX-" + hostile + b": " + hostile + b"\r\n\r\n",
    ):
        try:
            request = messages.request_of(raw)
        except messages.RequestError as error:
            response = messages.Response(error.status, f"{error}\n".encode())
        else:
            if request is None:
                continue
            response = handler(request)
        sent = messages.bytes_of(response, date="")
        assert sent.decode("ascii").replace("\r\n", "").replace("\n", "").isprintable()
        assert b"Forged" not in sent
        assert b"script" not in sent


def test_objects_of_the_model_cannot_be_made_with_hostile_names_by_any_manifest() -> None:
    """The root of all this: names are checked where they come in."""
    for piece in strategies.PIECES:
        for field in ("name", "namespace"):
            manifest = builders.service_manifest()
            manifest["metadata"][field] = f"a{piece}"
            reading = reading_of([manifest])
            assert not any(isinstance(one, objects.Service) for one in reading.objects) or piece in ("null", "x" * 300)
