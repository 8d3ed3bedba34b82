"""Who holds a frontend when Services disagree, and what an update reports."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from netagent.model import addresses
from netagent.model.addresses import Family, Protocol
from netagent.model.objects import ServiceName
from netagent.plan.forwarding import Conflict, Forwarding
from netagent.plan.frontends import (
    Frontend,
    FrontendKey,
    FrontendKind,
    Masquerade,
    ServicePortName,
    Verdict,
)


def key(number: int = 80, address: str = "198.51.100.1") -> FrontendKey:
    return FrontendKey(Family.IPV4, addresses.parse_address(address) if address else b"", Protocol.TCP, number)


def frontend(owner: str, number: int = 80, *, created: str = "2024", endpoints: int = 0) -> Frontend:
    return Frontend(
        key=key(number),
        kind=FrontendKind.EXTERNAL_IP,
        owner=ServicePortName("default", owner, "", Protocol.TCP),
        verdict=Verdict.SERVE if endpoints else Verdict.REJECT,
        masquerade=Masquerade.ALWAYS,
        endpoints=tuple(bytes([10, 0, 0, number, 0, 80]) for number in range(endpoints)),
        created=created,
    )


def name(owner: str) -> ServiceName:
    return ServiceName("default", owner)


def holder(forwarding: Forwarding, number: int = 80) -> str:
    return forwarding.frontends[key(number)].owner.service


def test_an_update_reports_exactly_the_keys_that_changed() -> None:
    forwarding = Forwarding()
    assert forwarding.update(name("web"), [frontend("web", 80), frontend("web", 443)]) == {key(80), key(443)}
    grown = [frontend("web", 80, endpoints=1), frontend("web", 443)]
    assert forwarding.update(name("web"), grown) == {key(80)}
    assert forwarding.update(name("web"), grown[:1]) == {key(443)}
    assert forwarding.update(name("web"), ()) == {key(80)}
    assert not forwarding.frontends
    assert not forwarding.owners()


def test_equal_frontends_change_nothing() -> None:
    forwarding = Forwarding()
    forwarding.update(name("web"), [frontend("web", endpoints=3)])
    assert forwarding.update(name("web"), [frontend("web", endpoints=3)]) == set()


def test_removing_what_was_never_there_changes_nothing() -> None:
    assert Forwarding().update(name("web"), ()) == set()


def test_the_older_service_keeps_the_frontend() -> None:
    forwarding = Forwarding()
    forwarding.update(name("a"), [frontend("a", created="2024")])
    assert forwarding.update(name("b"), [frontend("b", created="2025")]) == set()
    assert holder(forwarding) == "a"


def test_an_older_service_seen_later_takes_the_frontend() -> None:
    forwarding = Forwarding()
    forwarding.update(name("a"), [frontend("a", created="2024")])
    assert forwarding.update(name("b"), [frontend("b", created="2023")]) == {key()}
    assert holder(forwarding) == "b"


def test_of_services_of_one_age_the_first_by_name_wins() -> None:
    forwarding = Forwarding()
    forwarding.update(name("b"), [frontend("b")])
    forwarding.update(name("a"), [frontend("a")])
    assert holder(forwarding) == "a"


def test_the_next_claimant_takes_over_when_the_winner_goes() -> None:
    forwarding = Forwarding()
    for age, owner in enumerate("abc"):
        forwarding.update(name(owner), [frontend(owner, created=str(age))])
    assert forwarding.update(name("a"), ()) == {key()}
    assert holder(forwarding) == "b"
    assert forwarding.update(name("c"), ()) == set()
    assert forwarding.conflicts() == ()
    assert forwarding.update(name("b"), ()) == {key()}
    assert not forwarding.frontends


def test_a_change_of_a_loser_is_invisible_until_it_wins() -> None:
    forwarding = Forwarding()
    forwarding.update(name("a"), [frontend("a", created="1")])
    forwarding.update(name("b"), [frontend("b", created="2")])
    assert forwarding.update(name("b"), [frontend("b", created="2", endpoints=2)]) == set()
    forwarding.update(name("a"), ())
    assert forwarding.frontends[key()] == frontend("b", created="2", endpoints=2)


def test_a_change_of_the_winner_of_a_contested_frontend_is_reported() -> None:
    forwarding = Forwarding()
    forwarding.update(name("a"), [frontend("a", created="1")])
    forwarding.update(name("b"), [frontend("b", created="2")])
    assert forwarding.update(name("a"), [frontend("a", created="1", endpoints=2)]) == {key()}


def test_conflicts_name_each_loser_and_its_winner() -> None:
    forwarding = Forwarding()
    forwarding.update(name("c"), [frontend("c", created="3"), frontend("c", 81)])
    forwarding.update(name("a"), [frontend("a", created="1")])
    forwarding.update(name("b"), [frontend("b", created="2")])
    winner = frontend("a", created="1")
    assert forwarding.conflicts() == (
        Conflict(frontend("b", created="2"), winner),
        Conflict(frontend("c", created="3"), winner),
    )


services = st.sampled_from("abcd")
updates = st.lists(
    st.tuples(services, st.frozensets(st.sampled_from([80, 81]), max_size=2), st.integers(0, 2)), max_size=14
)
AGES = {"a": "3", "b": "1", "c": "1", "d": "2"}


def claims(owner: str, numbers: frozenset[int], endpoints: int) -> list[Frontend]:
    return [frontend(owner, number, created=AGES[owner], endpoints=endpoints) for number in sorted(numbers)]


@given(updates, st.randoms(use_true_random=False))
def test_any_order_of_updates_gives_the_same_winners(
    history: list[tuple[str, frozenset[int], int]], random: Random
) -> None:
    live = Forwarding()
    final: dict[str, list[Frontend]] = {}
    for owner, numbers, endpoints in history:
        live.update(name(owner), claims(owner, numbers, endpoints))
        final[owner] = claims(owner, numbers, endpoints)
    fresh, order = Forwarding(), list(final)
    random.shuffle(order)
    for owner in order:
        fresh.update(name(owner), final[owner])

    assert live.frontends == fresh.frontends
    assert live.conflicts() == fresh.conflicts()
    assert live.owners() == fresh.owners()
    claimants = [one for made in final.values() for one in made]
    assert live.frontends == {
        one.key: min((other for other in claimants if other.key == one.key), key=lambda other: other.seniority)
        for one in claimants
    }


@given(updates)
def test_an_update_reports_what_differs_before_and_after(
    history: list[tuple[str, frozenset[int], int]],
) -> None:
    forwarding = Forwarding()
    for owner, numbers, endpoints in history:
        before = dict(forwarding.frontends)
        changed = forwarding.update(name(owner), claims(owner, numbers, endpoints))
        after = forwarding.frontends
        assert changed == {one for one in before.keys() | after.keys() if before.get(one) != after.get(one)}
