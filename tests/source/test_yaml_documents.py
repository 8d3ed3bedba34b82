"""YAML text to plain values: nothing lost, nothing dangerous."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from netagent.source import yaml_documents
from netagent.source.yaml_documents import BadText, Document


def load(text: str) -> Any:
    return yaml_documents.load(Document(1, text))


def documents(text: str) -> list[Any]:
    return [yaml_documents.load(document) for document in yaml_documents.split(text)]


def test_strings_stay_strings() -> None:
    text = "[2024-01-01T00:00:00Z, 2024-01-01, on, yes, No, 010, 1:30, 1_000, '80', \"true\", 10.0.0.1, '::1', .]"
    assert load(text) == [
        *("2024-01-01T00:00:00Z", "2024-01-01", "on", "yes", "No", "010", "1:30", "1_000", "80", "true"),
        *("10.0.0.1", "::1", "."),
    ]


def test_numbers_and_words_of_the_core_schema() -> None:
    text = "[1, -2, 0x1f, 0o17, 1.5, 1e3, true, False, null, ~, !!str 5, !!int '5']"
    assert load(text) == [1, -2, 31, 15, 1.5, 1000.0, True, False, None, None, "5", 5]


def test_keys_are_strings() -> None:
    assert load("{1: a, true: b, null: c}") == {"1": "a", "true": "b", "null": "c"}


def test_aliases_and_merges() -> None:
    text = "base: &base {a: 1, b: 2}\nover:\n  <<: *base\n  b: 3\nboth:\n  <<: [{a: 9}, *base]\nsame: *base\n"
    loaded = load(text)
    assert loaded["over"] == {"a": 1, "b": 3}
    assert loaded["both"] == {"a": 9, "b": 2}
    assert loaded["same"] == {"a": 1, "b": 2}


def test_documents_are_split_at_markers_only() -> None:
    text = (
        "# nothing yet\n---\na: |\n  text\n  ---\n  more\n--- # comment\nb: 1\n...\nc: 2\n---\n---not: a marker\n"
        "---\n# empty\n---\r\nd: 3\r\n"
    )
    found = [document for document in documents(text) if document is not None]
    assert found == [{"a": "text\n---\nmore\n"}, {"b": 1}, {"c": 2}, {"---not": "a marker"}, {"d": 3}]


def test_directives_belong_to_the_document_after_them() -> None:
    assert documents("# head\n%YAML 1.1\n---\na: 1\n---\nb: 2\n") == [{"a": 1}, {"b": 2}]


def test_a_problem_is_named_with_its_line_in_the_file() -> None:
    _, bad = yaml_documents.split("a: 1\n---\nb: 1\nc: [\n")
    with pytest.raises(BadText) as caught:
        yaml_documents.load(bad)
    assert caught.value.line in (4, 5)


@pytest.mark.parametrize(
    "text",
    [
        "a: *nobody",
        "&a [*a]",
        "&a {b: *a}",
        "!!python/object:os.system {}",
        "!!timestamp 2024-01-01",
        "!local x",
        "{[1]: 2}",
        "a: b: c",
        "a: \x07",
        "<<: 5",
        "<<: [5]",
        "[" * 200_000,
        "- " * 200_000 + "a",
        "{a: " * 200_000,
    ],
)
def test_what_is_odd_or_dangerous_is_refused(text: str) -> None:
    with pytest.raises(BadText):
        load(text)


@pytest.mark.parametrize("form", ["[%s]", "{<<: [%s]}"])
def test_an_alias_bomb_is_refused_at_once(form: str) -> None:
    lines = ["a0: &a0 {x: 1}" if "<<" in form else "a0: &a0 [x]"]
    lines += [f"a{level}: &a{level} " + form % ",".join([f"*a{level - 1}"] * 10) for level in range(1, 12)]
    with pytest.raises(BadText, match="aliases") as caught:
        load("\n".join(lines))
    assert caught.value.line is not None
    assert caught.value.line <= 7, "where it becomes too large, and nothing is made of what follows"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=15,
)


@given(PLAIN, st.booleans())
def test_what_pyyaml_dumps_is_loaded_as_it_was(value: Any, flow: bool) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=False)
    assert [one for one in documents(text) if one is not None] == ([] if value is None else [value])


@given(st.text(st.sampled_from("ab:-# \n'\"[]{}&*!|>%.<")))
def test_any_text_gives_values_or_bad_text(text: str) -> None:
    for document in yaml_documents.split(text):
        bad = None
        try:
            yaml_documents.load(document)
        except BadText as caught:
            bad = caught
        if bad is not None:
            assert bad.reason
            assert bad.line is not None
            assert 1 <= bad.line <= text.count("\n") + 2
