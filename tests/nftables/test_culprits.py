"""Which operation the kernel refused, and whose it is: from the acknowledgement to the Service."""

from __future__ import annotations

import errno
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent import errors
from netagent.agent import planner, reconciler
from netagent.model import objects
from netagent.model.addresses import Family
from netagent.nftables import backend, culprits, layout, lower, netlink, transaction, wire
from netagent.plan import prefixes
from netagent.settings import Settings
from tests import builders, kernel

from . import strategies
from .test_lower import CLIENTS, lowered


@given(data=st.data(), family=st.sampled_from(Family))
@settings(deadline=None, max_examples=60)
def test_every_element_is_wanted_by_somebody_who_is_there(data: st.DataObject, family: Family) -> None:
    state = data.draw(strategies.states(family))
    rules = strategies.plain_rules(family)
    lowering = lowered(rules, state)
    bare = lower.Lowering(rules, affinity_clients=CLIENTS)
    for name, elements in lowering.table.elements.items():
        for key in elements:
            if key in bare.table.elements[name]:
                continue
            users = lowering.users_of(name, key)
            assert users, f"nobody wants {name} {key.hex()}"
            assert users <= state.keys()
    for name in lowering.table.chains:
        users = lowering.users_of_chain(name)
        assert bool(users) != (name in bare.table.chains), name


@given(data=st.data(), family=st.sampled_from(Family))
@settings(deadline=None, max_examples=60)
def test_an_element_is_found_by_the_place_that_the_kernel_names(data: st.DataObject, family: Family) -> None:
    """Each element of each message, by the offset of its attribute."""
    lowering = lowered(strategies.plain_rules(family), data.draw(strategies.states(family)))
    for name, elements in lowering.table.elements.items():
        spec = lowering.table.sets[name]
        if not elements:
            continue
        operation = transaction.AddElements(family, spec, elements)
        (message,) = wire.messages(operation)
        offsets = _offsets(message)
        assert len(offsets) == len(elements)
        for (key, value), offset in zip(elements.items(), offsets, strict=True):
            found = culprits.find([([operation], [message])], netlink.Failure(0, errno.EEXIST, "", offset))
            assert found is not None
            assert found.operation == transaction.AddElements(family, spec, {key: value})
            assert culprits.users(found.operation, {family: lowering}) == lowering.users_of(name, key)


def _offsets(message: bytes) -> list[int]:
    """Where the elements of a message begin, found by another way than the encoder's: attribute by attribute."""
    at, found = 20, []
    while at < len(message):
        length, kind = (
            int.from_bytes(message[at : at + 2], "little"),
            int.from_bytes(message[at + 2 : at + 4], "little"),
        )
        if kind & 0x3FFF == 3:  # NFTA_SET_ELEM_LIST_ELEMENTS
            inner = at + 4
            while inner < at + length:
                found.append(inner)
                inner += int.from_bytes(message[inner : inner + 2], sys.byteorder) + 3 & ~3
        at += length + 3 & ~3
    return found


def test_a_refusal_without_a_place_names_all_that_it_may_have_been() -> None:
    lowering = lowered(
        strategies.plain_rules(Family.IPV4), strategies.state_of(strategies.cluster_ip_frontend(count=3))
    )
    spec = lowering.table.sets[layout.BACKENDS]
    operation = transaction.AddElements(Family.IPV4, spec, lowering.table.elements[layout.BACKENDS])
    messages = list(wire.messages(operation))
    found = culprits.find([([operation], messages)], netlink.Failure(0, errno.ENOMEM, ""))
    assert found is not None
    assert found.text.endswith("(and 2 more)")
    assert culprits.users(found.operation, {Family.IPV4: lowering}) == frozenset(), "one of several: nobody knows which"
    assert culprits.find([([operation], messages)], netlink.Failure(-1, errno.ERANGE, "")) is None
    assert culprits.find([([operation], messages)], netlink.Failure(7, errno.ERANGE, "")) is None


def _reconciler(ours: backend.Backend) -> reconciler.Reconciler:
    plan = planner.Planner(Settings(families=("IPv4",)), node_name="node-1")
    plan.store.apply(builders.node())
    for number in range(1, 30):
        plan.store.apply(builders.service(f"web-{number}", cluster_ips=(f"10.96.0.{number}",)))
        plan.store.apply(builders.endpoint_slice(f"web-{number}", f"10.180.0.{number}"))
    return reconciler.Reconciler(plan, ours, stale_flow_protocols=frozenset())


def _evil() -> objects.Service:
    return builders.service(
        "evil",
        cluster_ips=("10.96.1.1",),
        type=objects.ServiceType.LOAD_BALANCER,
        vips=("203.0.113.9",),
        source_ranges=("10.0.0.0/8", "10.1.0.0/16"),
    )


@kernel.isolated
def test_a_service_that_the_kernel_refuses_is_named_and_set_aside_and_all_others_are_committed() -> None:
    """Source ranges that overlap, as a bug in planning would leave them: the kernel refuses the second one."""
    honest = prefixes.collapsed
    prefixes.collapsed = lambda given, family: tuple(given)  # type: ignore[assignment]
    ours = backend.Backend(affinity_clients=CLIENTS)
    try:
        reconcile = _reconciler(ours)
        reconcile.planner.store.apply(_evil())
        reconcile.planner.store.apply(builders.endpoint_slice("evil", "10.180.1.1"))
        report = reconcile.sync()
        ((owner, reason),) = report.refused.items()
        assert owner == objects.ServiceName("default", "evil")
        assert "add element ip netagent source_ranges { 203.0.113.9 . tcp . 80 . 10." in reason
        assert "more" not in reason, "one element, and no guess"
        listed = kernel.nft("list map ip netagent frontends")
        assert listed.count("comment") == 29
        assert "default/evil" not in listed
        assert reconcile.sync().operations == 0
        prefixes.collapsed = honest  # type: ignore[assignment]
        reconcile.planner.store.mark_dirty(everything=True)
        reconcile.planner.begin_anew()
        report = reconcile.sync()
        assert report.refused == {}
        assert kernel.nft("list map ip netagent frontends").count("default/evil") == 2
    finally:
        prefixes.collapsed = honest  # type: ignore[assignment]
        ours.close()


@kernel.isolated
def test_a_served_service_whose_change_is_refused_keeps_what_it_had() -> None:
    honest = prefixes.collapsed
    ours = backend.Backend(affinity_clients=CLIENTS)
    try:
        reconcile = _reconciler(ours)
        reconcile.planner.store.apply(_evil())
        reconcile.planner.store.apply(builders.endpoint_slice("evil", "10.180.1.1"))
        assert reconcile.sync().refused == {}
        before = kernel.nft("list map ip netagent backends")
        prefixes.collapsed = lambda given, family: tuple(given)  # type: ignore[assignment]
        reconcile.planner.store.apply(builders.endpoint_slice("evil", "10.180.1.1", "10.180.1.2"))
        reconcile.planner.store.apply(builders.endpoint_slice("web-1", "10.180.0.1", "10.180.0.100"))
        assert reconcile.sync().refused.keys() == {objects.ServiceName("default", "evil")}
        after = kernel.nft("list map ip netagent backends")
        assert "10.180.0.100" in after
        assert "10.180.1.2" not in after
        assert after.count("10.180.1.1") == before.count("10.180.1.1")
    finally:
        prefixes.collapsed = honest  # type: ignore[assignment]
        ours.close()


@kernel.isolated
def test_what_the_kernel_refuses_for_want_of_memory_is_nobodys_fault() -> None:
    ours = backend.Backend(affinity_clients=CLIENTS)
    try:
        reconcile = _reconciler(ours)
        refused = [netlink.Failure(3, errno.ENOMEM, "Cannot allocate memory", 60)]
        ours.socket.commit = lambda messages, generation=None: refused  # type: ignore[assignment, method-assign]
        with pytest.raises(errors.CommitRejectedError):
            reconcile.sync()
        assert reconcile.refusals.reasons == {}
        del ours.socket.commit  # type: ignore[method-assign]
        assert reconcile.sync().refused == {}
    finally:
        ours.close()
