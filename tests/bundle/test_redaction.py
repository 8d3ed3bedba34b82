"""Secrets do not get into a bundle, however they are written; what is no secret stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent.bundle import redaction

SECRET = "S3cr3t-Va1ue"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"

PLANTED = [
    f"token: {SECRET}",
    f"  password: '{SECRET} with blanks'",
    f'"client-key-data": "{SECRET}=="',
    f"clientKeyData: {SECRET}",
    f"certificate-authority-data: {SECRET}",
    f"TOKEN={SECRET}",
    f"export DB_PASSWORD={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"curl -H 'Authorization: Basic {SECRET}' https://x",
    f"curl --user me:{SECRET} https://x",
    f"--token={SECRET} --v=3",
    f"--token {SECRET} --v=3",
    f'{{"a": {{"token": "{SECRET}", "b": 1}}}}',
    f'{{"token": ["{SECRET}", {{"x": "{SECRET}"}}], "b": 1}}',
    f'msg="{{\\"token\\":\\"{SECRET}\\"}}" x=1',
    f'msg="{{\\\\\\"token\\\\\\":\\\\\\"{SECRET}\\\\\\"}}"',
    f"{{token: {SECRET}, name: web}}",
    f"user:\n    token: |\n      {SECRET}\n      {SECRET}\n    name: y\n",
    f"user:\n    token: >-\n\n      {SECRET}\n    name: y\n",
    f"token:\n  {SECRET}\nnext: 1\n",
    f"token: first\n  {SECRET}\nnext: 1\n",
    f"secret:\n  - {SECRET}\n  - {SECRET}\nnext: 1\n",
    f'"token"\n:  "{SECRET}"',
    f'"token": "first\\" {SECRET}"',
    f'"token": "never closed {SECRET}',
    f"x-auth-token\t:\t{SECRET}",
    f"PassWord = {SECRET}",
    f"PASSWORD: {SECRET}\r\nnext: 1",
    f"https://me:{SECRET}@host/x",
    f"GET /?access_token={SECRET}&x=1",
    f"- name: DB_PASSWORD\n  value: {SECRET}\n",
    f'{{"name":"API_TOKEN","value":"{SECRET}"}}',
    f"tok\u200ben: {SECRET}",
    f"tok\0en: {SECRET}",
    f"\x1b[1mtoken\x1b[0m: {SECRET}",
    f"\uff54\uff4f\uff4b\uff45\uff4e: {SECRET}",  # full width
    f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----\n",
    f"-----BEGIN CERTIFICATE-----\n{SECRET}\n",  # cut off
    f"cert: LS0tLS1CRUdJTiBD{SECRET.replace('-', '')}",
]


@pytest.mark.parametrize("text", PLANTED)
def test_a_secret_is_taken_out_however_it_is_written(text: str) -> None:
    cleaned = redaction.text(f"before\n{text}\nafter\n")
    assert SECRET not in cleaned
    assert SECRET.replace("-", "") not in cleaned
    assert cleaned.startswith("before\n")


@pytest.mark.parametrize(
    "text",
    [
        f"x {JWT} y",
        f"it said {JWT}",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1" * 18,
        "use abcdef.0123456789abcdef to join",
        "MIIDdzCCAl+gAwIBAgIEAgAAuTANBgkqhkiG9w0BAQUFADBaMQswCQYDVQQGEwJJ",
    ],
)
def test_tokens_and_keys_are_known_by_their_looks(text: str) -> None:
    assert redaction.REMOVED in redaction.text(text)


@pytest.mark.parametrize(
    "text",
    [
        'map frontends { elements = { 10.96.0.10 . tcp . 80 comment "default/web:http" : 5bb0:7fd7 } }',
        "default/token-server:http  cluster-ip  10.96.0.1:80/tcp  serve  10.180.0.1:8080",
        'sync committed service="ns/secret-store:https" operations=3',
        "the token was renewed",
        "kubeconfig: /etc/netagent/kubeconfig",
        "tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token",
        "secretName: web-tls",
        "automountServiceAccountToken: true",
        "token: null",
        "netagent_token_requests_total 12",
        "net.netfilter.nf_conntrack_max = 262144",
        "image sha256:" + "0123456789abcdef" * 4,
        "=" * 200,
        "2026-11-28T04:27:56Z node-1 netagent[77]: INFO sync committed",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert redaction.text(text) == text


def test_lines_behind_a_secret_stay() -> None:
    text = f"user:\n  token: {SECRET}\n  name: y\nbearer: |\n  {SECRET}\nnext: 1\n"
    cleaned = redaction.text(text)
    assert "  name: y\n" in cleaned
    assert "next: 1\n" in cleaned


def test_a_document_loses_what_goes_by_a_telling_name_at_any_depth() -> None:
    given_document = {
        "users": [{"name": "a", "user": {"token": SECRET, "client-key-data": {"x": SECRET}, "tokenFile": "/t"}}],
        "env": [{"name": "PASSWORD", "value": SECRET}, {"name": "HOME", "value": "/root"}],
        "log": [f"Authorization: Bearer {SECRET}", "all is well"],
        "tokens": 3,
        "password": "",
    }
    cleaned = redaction.document(given_document)
    assert SECRET not in json.dumps(cleaned)
    assert cleaned["users"][0]["user"]["tokenFile"] == "/t"
    assert cleaned["env"][1]["value"] == "/root"
    assert (cleaned["log"][1], cleaned["tokens"], cleaned["password"]) == ("all is well", 3, "")


@given(st.text(max_size=200))
def test_a_second_time_takes_nothing_more(text: str) -> None:
    once = redaction.text(text)
    assert redaction.text(once) == once


@given(
    st.sampled_from(("token", "password", "client-key-data", "Authorization")),
    st.sampled_from((": ", "=", " = ", '": "', "': '")),
    st.from_regex(r"[A-Za-z0-9+/]{8,40}", fullmatch=True),
    st.sampled_from(("", "\n", '"', "'", ", x: 1", " x=1")),
)
def test_no_value_of_a_telling_name_survives(name: str, mark: str, value: str, end: str) -> None:
    quote = mark[0] if mark[0] in "\"'" else ""
    value = "Zq" + value  # no word of the text around
    assert value not in redaction.text(f"a\n{quote}{name}{mark}{value}{end}\nb\n")


def test_hostile_text_costs_time_in_proportion_to_its_size() -> None:
    """Each of these would keep a careless pattern busy for hours; the test ends, or the runner's patience does."""
    for piece in (
        "token",
        "a:",
        '"',
        "x=\\",
        "-----BEGIN A-----",
        "token:|\n",
        "eyJaaaa.",
        "a://",
        "name: token: ",
        'token:"\\"\n',
        "token:{\n",
        '\\"token\\":\\"\n',
        "\n ",
    ):
        redaction.text(piece * (100_000 // len(piece)))
