"""What the looking commands write: columns, documents, and nothing that a terminal obeys."""

from __future__ import annotations

import io
import json
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from netagent import errors
from netagent.cli import selectors, tables

HOSTILE = "a\x1b[31mb\nc\u202ed\x7f"


def test_columns_are_aligned_numbers_to_the_right_and_no_line_ends_in_blanks() -> None:
    assert tables.columns([("NAME", "COUNT", "NOTE"), ("a", "7", "-"), ("longer", "1234", "x")]) == [
        "NAME    COUNT  NOTE",
        "a           7  -",
        "longer   1234  x",
    ]


def test_a_pipe_gets_every_row_on_one_line_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    many = tuple(f"10.0.0.{number}:80" for number in range(200))
    tables.show(("NAME", "ENDPOINTS"), [("web", many), ("none", ())])
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "ENDPOINTS"]
    assert first.split() == ["web", ",".join(many)]
    assert second.split() == ["none", "-"]


@given(st.text())
def test_no_cell_holds_anything_that_a_terminal_obeys(text: str) -> None:
    shown = tables.cell(text)
    assert shown.isprintable()
    assert "\n" not in shown


def test_hostile_names_are_escaped_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(("NAME",), [(HOSTILE,), ((HOSTILE, "x"),)])
    assert capsys.readouterr().out.splitlines() == [
        "NAME",
        "a\\x1b[31mb\\x0ac\\u202ed\\x7f",
        "a\\x1b[31mb\\x0ac\\u202ed\\x7f,x",
    ]


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_documents_are_plain_ascii_and_lose_nothing(output: str, load: object, text: str) -> None:
    content = {"name": text, "items": [text, HOSTILE]}
    written = tables.as_text(content, output)
    assert all(" " <= char <= "~" or char == "\n" for char in written)
    assert callable(load)
    assert load(written) == content


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (0.94, "0.9s"), (59, "59s"), (200, "3m20s"), (3600, "1h"), (9000, "2h30m"), (200000, "2d7h")],
)
def test_durations_are_written_as_kubectl_does(seconds: float, text: str) -> None:
    assert tables.ago(seconds) == text


FIELDS: selectors.Fields = {"zone": lambda row: (row["zone"],), "kind": lambda row: row["kinds"]}
ROWS = [{"zone": "a", "kinds": ("x", "y")}, {"zone": "B", "kinds": ()}]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("", ROWS),
        ("zone=a", ROWS[:1]),
        ("zone==b", ROWS[1:]),
        ("zone!=a", ROWS[1:]),
        ("kind=y", ROWS[:1]),
        ("kind!=y", ROWS[1:]),
        ("zone=a, kind=x", ROWS[:1]),
        ("zone=a,kind=z", []),
        ("zone=", []),
        ("zone in (a, c)", ROWS[:1]),
        ("ZONE notin (a,c)", ROWS[1:]),
        ("kind", ROWS[:1]),
        ("!kind,zone in (a,b)", ROWS[1:]),
    ],
)
def test_selectors_choose_rows_by_their_fields(selector: str, found: list[object]) -> None:
    assert selectors.selected(ROWS, selector, FIELDS) == found


LABELS = {"a": {"app.kubernetes.io/name": "Web", "tier": "front"}, "B": {"tier": "back"}}


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("app.kubernetes.io/name=Web", ROWS[:1]),
        ("app.kubernetes.io/name=web", []),
        ("app.kubernetes.io/name!=Web", ROWS[1:]),
        ("tier", ROWS),
        ("!app.kubernetes.io/name", ROWS[1:]),
        ("tier in (front,back),zone=b", ROWS[1:]),
        ("tier notin (front)", ROWS[1:]),
    ],
)
def test_what_is_no_field_is_a_label_where_labels_are_known(selector: str, found: list[object]) -> None:
    assert selectors.selected(ROWS, selector, FIELDS, labels=lambda row: LABELS[row["zone"]]) == found


@pytest.mark.parametrize("selector", ["app=web", "app", "zone=a=b", "zone>a", "zone in a", "\x1b[31m=x"])
def test_what_is_no_selector_is_an_error_that_names_the_fields(selector: str) -> None:
    with pytest.raises(errors.ConfigError, match="KEY one of kind, zone; labels are known with -f alone") as caught:
        selectors.selected(ROWS, selector, FIELDS)
    assert str(caught.value).isprintable()


def test_a_narrow_terminal_gets_an_item_of_a_list_a_line_and_nothing_else_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    tables.show(
        ("NAME", "ENDPOINTS", "NOTE"), [("a-very-long-name-of-a-service", ("10.0.0.1:80", "10.0.0.2:80"), "2, or 3")]
    )
    assert isinstance(sys.stdout, Terminal)
    shown = sys.stdout.getvalue()
    assert [line.split("  ") for line in map(str.strip, shown.splitlines()[1:])] == [
        ["a-very-long-name-of-a-service", "10.0.0.1:80,", "2, or 3"],
        ["10.0.0.2:80"],
    ]
