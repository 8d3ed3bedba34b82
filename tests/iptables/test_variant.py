"""Which variant of iptables: kubelet's, then the one with more rules, then the host's default; chosen once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netagent import errors
from netagent.iptables import tools, variant
from netagent.iptables.variant import Observation, Variant
from netagent.model.addresses import Family
from tests import kernel
from tests.iptables import namespaces

LEGACY, NFT = Variant.LEGACY, Variant.NFT


@pytest.mark.parametrize(
    ("legacy", "nft", "default", "wanted"),
    [
        (Observation(LEGACY), Observation(NFT), NFT, NFT),
        (Observation(LEGACY), Observation(NFT), LEGACY, LEGACY),
        (Observation(LEGACY, 3), Observation(NFT, 2), NFT, LEGACY),
        (Observation(LEGACY, 2), Observation(NFT, 3), LEGACY, NFT),
        (Observation(LEGACY, 3), Observation(NFT, 3), NFT, NFT),
        (Observation(LEGACY, 0, True), Observation(NFT, 900), NFT, LEGACY),
        (Observation(LEGACY, 900), Observation(NFT, 0, True), LEGACY, NFT),
        (Observation(LEGACY, 1, True), Observation(NFT, 9, True), LEGACY, NFT),
    ],
)
def test_the_choice(legacy: Observation, nft: Observation, default: Variant, wanted: Variant) -> None:
    assert variant.chosen([legacy, nft], default=default).variant is wanted


def test_the_only_one_that_is_installed_is_taken() -> None:
    assert variant.chosen([Observation(LEGACY)], default=NFT).variant is LEGACY


def test_a_mixture_names_the_commands_that_show_it() -> None:
    choice = variant.chosen([Observation(LEGACY, 3), Observation(NFT, 40)], default=LEGACY)
    for text in ("3 rules in legacy tables", "40 rules in nf_tables", "iptables-legacy-save", "ip6tables-nft-save"):
        assert text in choice.mixture
    assert not variant.chosen([Observation(LEGACY, 3), Observation(NFT)], default=LEGACY).mixture


class World:
    """A host, as far as detection looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *held: Observation) -> None:
        self.held = {found.variant: found for found in held}
        self.looks = 0
        monkeypatch.setattr(tools, "installed", lambda found: found in self.held)

    def observe(self, found: Variant) -> Observation | None:
        self.looks += 1
        return self.held.get(found)

    def detect(self, directory: Path | None, override: Variant | None = None) -> variant.Choice:
        return variant.detect(directory, override=override, observe=self.observe, default=lambda: NFT)


def test_it_is_chosen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Observation(LEGACY, 5), Observation(NFT))
    assert world.detect(tmp_path).variant is LEGACY
    assert [path.name for path in tmp_path.iterdir()] == ["iptables-variant"]
    world.held[NFT] = Observation(NFT, 500)
    choice = world.detect(tmp_path)
    assert choice.variant is LEGACY
    assert str(tmp_path) in choice.reason
    assert "500 rules in nf_tables" in choice.mixture
    assert world.detect(tmp_path, NFT).variant is NFT
    assert world.detect(None).variant is NFT


def test_a_record_of_tools_that_are_gone_is_chosen_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "iptables-variant").write_text("legacy\n")
    world = World(monkeypatch, Observation(NFT))
    assert world.detect(tmp_path).variant is NFT
    assert (tmp_path / "iptables-variant").read_text() == "nft\n"


@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe", b"xtables"])
def test_a_record_of_garbage_is_chosen_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, garbage: bytes) -> None:
    (tmp_path / "iptables-variant").write_bytes(garbage)
    assert World(monkeypatch, Observation(NFT)).detect(tmp_path).variant is NFT


def test_where_nothing_can_be_recorded_it_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Observation(NFT), Observation(LEGACY))
    assert world.detect(tmp_path / "missing").variant is NFT

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert world.detect(tmp_path).variant is NFT
    assert not list(tmp_path.iterdir())


def test_an_override_without_its_tools_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Observation(NFT))
    with pytest.raises(errors.UnsupportedError, match="iptables-legacy-restore"):
        world.detect(None, LEGACY)
    with pytest.raises(errors.UnsupportedError, match="not installed"):
        World(monkeypatch).detect(None)


@pytest.mark.parametrize("found", namespaces.VARIANTS)
@kernel.isolated
def test_the_variant_that_has_rules_is_found_and_looking_makes_no_table(found: Variant) -> None:
    for each in Variant:
        namespaces.need(each)
    assert variant.detect(None).reason == variant.Basis.DEFAULT
    assert variant.legacy_tables(Family.IPV4) == ()
    assert "table" not in kernel.nft("list ruleset")
    namespaces.iptables(found, "-A", "FORWARD", "-j", "ACCEPT", family=Family.IPV6)
    choice = variant.detect(None)
    assert choice.variant is found
    assert "1 against 0" in choice.reason
    assert not choice.mixture


@pytest.mark.parametrize("found", namespaces.VARIANTS)
@kernel.isolated
def test_kubelet_decides(found: Variant) -> None:
    for each in Variant:
        namespaces.need(each)
    namespaces.iptables(found.other, "-A", "FORWARD", "-j", "ACCEPT")
    namespaces.iptables(found, "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
    choice = variant.detect(None)
    assert choice.variant is found
    assert choice.reason == variant.Basis.KUBELET
    assert f"{found.other.in_words}" in choice.mixture
