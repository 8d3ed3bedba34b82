"""Every target in the normal suite: what is kept of earlier runs of the fuzzers, and some new inputs each time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import corpora, mutations, targets

KEPT = [(name, path) for name in targets.names() for path in corpora.kept(name)]
_EXAMPLES = 25


@pytest.mark.parametrize(("name", "path"), KEPT, ids=[f"{name}/{path.name}" for name, path in KEPT])
def test_what_broke_something_once_and_what_is_good_is_survived(name: str, path: Path) -> None:
    targets.target(name).run(path.read_bytes())


@pytest.mark.parametrize("name", targets.names())
def test_any_bytes_are_survived(name: str) -> None:
    target = targets.target(name)

    @settings(max_examples=_EXAMPLES, database=None)
    @given(st.binary(max_size=200))
    def survived(data: bytes) -> None:
        target.run(data)

    survived()


@pytest.mark.parametrize("name", targets.names())
def test_what_is_nearly_good_is_survived(name: str) -> None:
    """Mutations of what is kept, which get further than noise."""
    target = targets.target(name)
    inputs = [path.read_bytes() for path in corpora.kept(name)]
    material = mutations.Material(inputs, target.words, max(map(len, inputs)))

    @settings(max_examples=_EXAMPLES, database=None)
    @given(st.randoms(use_true_random=False))
    def survived(chance: object) -> None:
        target.run(mutations.mutated(material, chance))  # type: ignore[arg-type]

    survived()


def test_every_target_has_good_inputs_to_begin_with() -> None:
    for name in targets.names():
        kept = [path.name for path in corpora.kept(name)]
        assert any(one.startswith("seed-") for one in kept), name


def test_the_corpus_has_no_crash_that_nobody_looked_at() -> None:
    assert [str(path) for _, path in KEPT if not path.name.startswith(("seed-", "found-"))] == []


def test_the_corpus_has_nothing_that_no_target_reads() -> None:
    assert {path.name for path in corpora.HERE.iterdir() if path.is_dir()} == set(targets.names())


def test_inputs_are_cut_into_the_datagrams_that_they_were_made_of() -> None:
    from tests.fuzz.targets import _sockets

    pieces = [b"", b"a", bytes(300), b"\xff" * 7]
    assert _sockets.datagrams(_sockets.joined(pieces)) == pieces
