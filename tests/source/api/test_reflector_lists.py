"""Lists: pages, versions, what is set aside, what an older server does not know."""

from __future__ import annotations

import pytest

from netagent.source.api.events import Deleted, Listed
from netagent.source.api.reflector import Step
from netagent.source.kinds import Kind
from tests import builders
from tests.source.api.driver import Driver, bookmark, page, synced


def only(events: list[object]) -> Listed:
    (event,) = events
    assert isinstance(event, Listed)
    return event


def names(event: Listed) -> list[str]:
    return [item.name for item in event.objects]


def test_a_list_of_several_pages_is_told_once_and_whole() -> None:
    driver = Driver()
    assert driver.list(builders.service_manifest("a"), token="more") == []
    assert driver.list(builders.service_manifest("b"), token="yet more") == []
    assert names(only(driver.list(builders.service_manifest("c")))) == ["a", "b", "c"]
    parameters = [dict(request.parameters) for request in driver.requests]
    assert [one.get("continue") for one in parameters] == [None, "more", "yet more"]
    assert all(one["limit"] == "500" and "resourceVersion" not in one for one in parameters)
    assert driver.waits == [0, 0, 0]


def test_the_watch_begins_where_the_list_ended() -> None:
    driver = Driver()
    driver.list(version="17")
    parameters = driver.ask()
    assert parameters["resourceVersion"] == "17"
    assert parameters["allowWatchBookmarks"] == "true"
    assert parameters["timeoutSeconds"] == "450"


@pytest.mark.parametrize(
    ("kind", "path", "selectors"),
    [
        (
            Kind.SERVICE,
            "/api/v1/services",
            {"labelSelector": "!service.kubernetes.io/service-proxy-name", "fieldSelector": "spec.clusterIP!=None"},
        ),
        (
            Kind.ENDPOINT_SLICE,
            "/apis/discovery.k8s.io/v1/endpointslices",
            {"labelSelector": "!service.kubernetes.io/headless"},
        ),
        (Kind.NODE, "/api/v1/nodes", {"fieldSelector": "metadata.name=node-1"}),
        (Kind.SERVICE_CIDR, "/apis/networking.k8s.io/v1/servicecidrs", {}),
    ],
)
def test_what_a_proxy_must_ignore_is_not_even_sent(kind: Kind, path: str, selectors: dict[str, str]) -> None:
    driver = Driver(kind)
    driver.list()
    driver.watch()
    for request in driver.requests:
        assert request.path == path
        found = {name: value for name, value in request.parameters if name.endswith("Selector")}
        assert found == selectors


def test_a_bad_object_is_set_aside_with_its_key() -> None:
    bad = builders.service_manifest("bad", cluster_ip="10.96.0.999")
    event = only(Driver().list(builders.service_manifest("good"), bad))
    assert names(event) == ["good"]
    assert event.quarantined_keys == {(Kind.SERVICE, ("default", "bad"))}
    assert event.complete
    assert "10.96.0.999" in str(event.quarantined[0])


def test_a_list_with_a_nameless_object_proves_no_deletion() -> None:
    event = only(Driver().list(builders.service_manifest("good"), {"metadata": {"name": "\x1b[31m"}}))
    assert not event.complete


def test_null_items_are_an_empty_list() -> None:
    driver = Driver()
    driver.ask()
    assert only(driver.answer(200, b'{"metadata":{"resourceVersion":"3"},"items":null}')).objects == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"<html>Please log in</html>",
        page(builders.service_manifest())[:-20],
        b'{"items":[],"metadata":{"resourceVersion":""}}',
        b'{"kind":"PodList","items":[],"metadata":{"resourceVersion":"3"}}',
        b"\xff\xfe",
        b'{"a":' * 100_000,
    ],
    ids=["empty", "braces", "html", "truncated", "no-version", "other-kind", "not-utf8", "deep"],
)
def test_what_is_not_a_list_is_told_as_none_and_asked_again(body: bytes) -> None:
    driver = Driver()
    driver.ask()
    assert driver.answer(200, body) == []
    assert driver.step is Step.LIST
    assert driver.reflector.delay() > 0
    assert "cannot follow Service" in driver.error
    assert names(only(driver.list(builders.service_manifest()))) == ["web"]


def test_gone_between_two_pages_begins_anew_on_one_page() -> None:
    driver = Driver()
    driver.list(builders.service_manifest("a"), token="more")
    driver.refuse(410, "Expired")
    assert "limit" not in driver.ask()
    event = only(driver.answer(200, page(builders.service_manifest("b"))))
    assert names(event) == ["b"]  # and nothing of the page before


TROUBLE_WITH_A_PAGE = {
    "429": lambda driver: driver.refuse(429, "TooManyRequests", retry_after="1"),
    "500": lambda driver: driver.refuse(500),
    "401": lambda driver: driver.refuse(401, "Unauthorized"),
    "cut": lambda driver: (driver.ask(), driver.reflector.failed("connection reset")),
    "silence": lambda driver: (driver.ask(), driver.reflector.fell_silent("Read timed out")),
    "too large": lambda driver: (driver.ask(), driver.answer(200, b"x" * 3000)),
}


@pytest.mark.parametrize("name", TROUBLE_WITH_A_PAGE)
def test_trouble_with_a_page_costs_no_other_page(name: str) -> None:
    driver = Driver(max_page_bytes=2000)
    driver.list(builders.service_manifest("a"), token="more")
    for _ in range(3):
        TROUBLE_WITH_A_PAGE[name](driver)
        assert "cannot follow Service" in driver.error
        assert driver.reflector.delay() > 0
    event = only(driver.list(builders.service_manifest("b")))
    assert names(event) == ["a", "b"]
    assert [dict(one.parameters).get("continue") for one in driver.requests] == [None] + 4 * ["more"]
    assert driver.reflector.counts.lists == 1
    driver.watch()
    assert driver.error == ""


def test_a_page_that_never_comes_is_given_up() -> None:
    driver = Driver()
    driver.list(builders.service_manifest("a"), token="more")
    tries = 0
    while driver.reflector.counts.lists == 1:
        driver.refuse(429, "TooManyRequests", retry_after="1")
        tries += 1
    assert tries == 12, "10 more tries of the page, and the first of the new list"
    assert names(only(driver.list(builders.service_manifest("b")))) == ["b"]


def test_a_page_that_takes_too_long_is_given_up() -> None:
    driver = Driver()
    driver.list(builders.service_manifest("a"), token="more")
    began = driver.now
    while driver.reflector.counts.lists == 1:
        driver.refuse(503, retry_after="25")
    assert 60 < driver.now - began < 120


def test_a_server_that_has_trouble_with_every_page_is_asked_for_each_of_them_again() -> None:
    driver = Driver()
    for number in range(30):
        driver.refuse(429, "TooManyRequests", retry_after="1")
        driver.list(builders.service_manifest(f"s{number}"), token=f"t{number}")
    assert len(only(driver.list()).objects) == 30
    assert max(driver.waits) < 3


@pytest.mark.parametrize("how", ["410", "400", "garbage", "doubt"])
def test_what_makes_the_pages_before_worthless(how: str) -> None:
    driver = Driver()
    driver.list(builders.service_manifest("a"), token="more")
    if how == "garbage":
        driver.ask()
        driver.answer(200, b"{")
    elif how == "doubt":
        driver.ask()
        driver.reflector.doubt()
    else:
        driver.refuse(int(how))
    assert names(only(driver.list(builders.service_manifest("b")))) == ["b"]


def test_an_audit_that_is_refused_between_two_pages_goes_on() -> None:
    driver = synced(audit_seconds=1)
    driver.say(bookmark("11"))
    driver.end(after=450)
    driver.list(builders.service_manifest("a"), token="more", version="12")
    driver.refuse(429)
    assert names(only(driver.list(builders.service_manifest("b"), version="12"))) == ["a", "b"]


def test_a_page_that_is_too_large_is_asked_for_in_smaller_ones() -> None:
    driver = Driver(max_page_bytes=1000)
    driver.ask()
    driver.answer(200, b"x" * 600, b"x" * 600)
    assert driver.ask()["limit"] == "250"
    driver.answer(200, b"x" * 1200)
    assert driver.ask()["limit"] == "125"


def test_a_list_without_end_is_given_up() -> None:
    driver = Driver()
    driver.list(builders.service_manifest(), token="again")
    driver.list(builders.service_manifest(), token="again")
    assert "the list has no end" in driver.error


def test_an_answer_that_dribbles_is_given_up() -> None:
    driver = Driver(answer_seconds=60)
    driver.ask()
    driver.reflector.answered(200, {})
    for _ in range(100):
        driver.now += 1
        driver.reflector.received(b" ")
    assert "not complete after 60 s" in driver.error
    assert not driver.reflector.wants_more


def test_a_compressed_answer_is_refused_unread() -> None:
    driver = Driver()
    driver.ask()
    driver.answer(200, b"\x1f\x8b" * 10, content_encoding="gzip")
    assert "gzip" in driver.error


def test_without_servicecidrs_there_are_none_and_the_question_is_rare() -> None:
    driver = Driver(Kind.SERVICE_CIDR)
    event = only(driver.refuse(404, "NotFound"))
    assert event.absent
    assert event.objects == ()
    assert driver.error == ""
    assert driver.reflector.delay() == 300
    assert not only(driver.list(builders.service_cidr_manifest())).absent


def test_servicecidrs_that_vanish_with_a_server_stay() -> None:
    """During an upgrade of several API servers some know the kind and some do not."""
    driver = synced(builders.service_cidr_manifest(), kind=Kind.SERVICE_CIDR)
    driver.say(b'{"type":"ERROR","object":{"code":410}}\n')
    assert driver.refuse(404, "NotFound") == []
    assert "404" in driver.error


def test_services_that_are_not_there_are_an_error() -> None:
    driver = Driver()
    assert driver.refuse(404, "NotFound") == []
    assert "404" in driver.error


def test_a_server_that_does_not_know_the_field_is_asked_without() -> None:
    driver = Driver()
    driver.refuse(400, "BadRequest", "field label not supported: spec.clusterIP")
    assert driver.reflector.routine
    parameters = driver.ask()
    assert "fieldSelector" not in parameters
    assert "labelSelector" in parameters
    assert driver.waits == [0, 0]
    assert driver.reflector.counts.failures == 0


def test_a_list_is_repeated_now_and_then() -> None:
    driver = synced(audit_seconds=3600)
    for _ in range(7):
        driver.say(bookmark("11"))
        driver.end(after=450)
        assert driver.step is Step.WATCH
        driver.watch()
    driver.say(bookmark("12"))
    driver.end(after=451)
    event = only(driver.list(builders.service_manifest(), version="12"))
    assert names(event) == ["web"]


def test_an_audit_that_fails_does_not_end_the_watching() -> None:
    driver = synced(audit_seconds=1)
    driver.say(bookmark("11"))
    driver.end(after=450)
    driver.refuse(500)
    assert driver.step is Step.PROBE
    driver.list(version="11")
    assert driver.ask()["resourceVersion"] == "11"


def test_counts_tell_what_happened() -> None:
    driver = synced()
    driver.say(b"nonsense\n")
    driver.list()
    assert driver.reflector.counts == (3, 2, 1, 1, 0)


def test_deleted_keys_have_the_form_of_the_kind() -> None:
    driver = synced(kind=Kind.NODE)
    events = driver.say(b'{"type":"DELETED","object":{"metadata":{"name":"node-1","resourceVersion":"11"}}}\n')
    assert events == [Deleted(Kind.NODE, "node-1")]
