"""The walker does with a packet what the kernel does."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netagent import errors
from netagent.model import addresses
from netagent.model.addresses import Family, Protocol
from netagent.nftables import layout, lower, ruleset, slots, walk
from netagent.nftables.ruleset import (
    ChainType,
    Data,
    Dnat,
    Drop,
    DynamicOperation,
    Field,
    FlipMark,
    Goto,
    HasBits,
    Hook,
    HookPoint,
    InPrefix,
    InputName,
    InSet,
    IsLocal,
    IsProtocol,
    Lookup,
    Masquerade,
    OrPriority,
    Owned,
    Record,
    Reject,
    Rule,
    SetMark,
    SetPriority,
    SetSpec,
    Slot,
    VerdictMap,
    VerdictValue,
)
from netagent.plan import forwarding, frontends, node
from netagent.plan.frontends import FrontendKind, Verdict
from netagent.plan.frontends import Masquerade as WhichMasquerade
from netagent.plan.services import frontends_of
from tests import builders

SERVICE = addresses.parse_address("10.96.0.1")
POD = addresses.parse_address("10.180.0.9")
OUTSIDE = addresses.parse_address("203.0.113.1")
NODE = addresses.parse_address("192.0.2.1")
HOST = walk.Host(frozenset({NODE}))
A, B, C = (addresses.endpoint_key(addresses.parse_address(f"10.180.0.{n}"), 8080) for n in (1, 2, 3))
MARK = 0x4000

# For one service address these keys are enough, and easy to read.
DESTINATION: ruleset.Key = (Field.DESTINATION,)
SETS = {
    spec.name: spec
    for spec in (
        SetSpec("verdicts", DESTINATION, Data.VERDICT),
        SetSpec("ports", (Field.PROTOCOL, Field.DESTINATION_PORT), Data.VERDICT),
        SetSpec("endpoints", (Slot(2),), Data.ENDPOINT),
        SetSpec("by_priority", (Field.PRIORITY,), Data.ENDPOINT),
        SetSpec("numbers", DESTINATION, Data.PRIORITY),
        SetSpec("known", DESTINATION),
        SetSpec("pairs", (Field.SOURCE, Field.DESTINATION)),
        SetSpec("ranges", (Field.DESTINATION, Field.SOURCE), intervals=True),
        SetSpec("records", (ruleset.Group(), Field.SOURCE), Data.PRIORITY, size=2),
    )
}
TO_ENDPOINT = Dnat(Lookup((Slot(1),), "endpoints"))


def hooked(
    *rules: Rule,
    at: HookPoint = HookPoint.PREROUTING,
    kind: ChainType = ChainType.NAT,
    priority: int = -100,
    name: str = "",
) -> ruleset.Chain:
    return ruleset.Chain(name or f"{kind}-{at}-{priority}", rules, Hook(kind, at, priority))


def table(*chains: ruleset.Chain, elements: Mapping[str, ruleset.Elements] | None = None) -> ruleset.Table:
    """A table of these chains; the map `endpoints` leads slot 0 to A unless it is given."""
    content: dict[str, ruleset.Elements] = {"endpoints": listed(A), **(elements or {})}
    return ruleset.Table(Family.IPV4, SETS, {chain.name: chain for chain in chains}, content)


def listed(*endpoints: bytes) -> ruleset.Elements:
    return {slots.pack(index): endpoint + b"\0\0" for index, endpoint in enumerate(endpoints)}


def packet(
    source: bytes = OUTSIDE,
    destination: bytes = SERVICE,
    *,
    protocol: int = Protocol.TCP,
    port: int | None = 80,
    mark: int = 0,
    interface: str = "eth0",
) -> walk.Packet:
    return walk.Packet(source, destination, protocol, port, mark=mark, input_interface=interface)


FROM_HOST = packet(NODE, interface="")
ICMP = packet(protocol=1, port=None)


def outcome_of(
    chains: ruleset.Table, what: walk.Packet | None = None, records: Mapping[bytes, bytes] | None = None
) -> walk.Outcome:
    """What happens when every random slot is the first."""
    return walk.walk(chains, what or packet(), HOST, choose=lambda modulus, offset: offset, records=records)


def result_of(chains: ruleset.Table, what: walk.Packet | None = None) -> walk.Result:
    return outcome_of(chains, what).result


def fate_of(chains: ruleset.Table, what: walk.Packet | None = None) -> walk.Fate:
    return result_of(chains, what).fate


# --- rules and chains ---------------------------------------------------------------------------------------


def test_a_table_without_chains_leaves_everything_alone() -> None:
    assert outcome_of(table()) == walk.Outcome(walk.Result(walk.Fate.UNTOUCHED), ())


def test_a_rule_ends_at_the_first_statement_that_does_not_hold() -> None:
    made = table(hooked((IsProtocol(Protocol.UDP), SetMark(1)), (SetMark(2),)))
    assert result_of(made).mark == 2
    assert result_of(made, packet(protocol=Protocol.UDP)).mark == 3


def test_a_missing_element_ends_the_rule_and_leaves_what_the_rule_did_before() -> None:
    made = table(
        hooked((SetPriority(Lookup(DESTINATION, "numbers")), Dnat(Lookup((Slot(1),), "endpoints"))), (REACHES_A,)),
        elements={"numbers": {SERVICE: slots.pack(7)}, "endpoints": {}, "by_priority": {slots.pack(7): A}},
    )
    assert result_of(made).endpoint == A


REACHES_A = Dnat(Lookup((Field.PRIORITY,), "by_priority"))


def test_a_goto_does_not_come_back() -> None:
    made = table(hooked((Goto("other"),), (Drop(),)), ruleset.Chain("other", ((SetMark(1),),)))
    assert result_of(made) == walk.Result(walk.Fate.UNTOUCHED, mark=1)


def test_a_verdict_map_goes_where_its_element_says_and_on_without_one() -> None:
    elements: dict[str, ruleset.Elements] = {"verdicts": {SERVICE: VerdictValue("serve"), POD: VerdictValue("")}}
    made = table(
        hooked((VerdictMap(DESTINATION, "verdicts"),), (SetMark(1),)),
        ruleset.Chain("serve", ((TO_ENDPOINT,),)),
        elements=elements,
    )
    assert result_of(made) == walk.Result(walk.Fate.ENDPOINT, A)
    assert fate_of(made, packet(destination=POD)) is walk.Fate.DROPPED
    assert result_of(made, packet(destination=OUTSIDE)).mark == 1


def test_an_icmp_packet_has_no_port_and_goes_past_rules_that_look_for_one() -> None:
    made = table(
        hooked(
            (VerdictMap((Field.PROTOCOL, Field.DESTINATION_PORT), "ports"),),
            (InSet(DESTINATION, "known"), Reject(tcp_reset=False)),
        ),
        elements={"known": {SERVICE: b""}},
    )
    outcome = outcome_of(made, ICMP)
    assert outcome.result.fate is walk.Fate.UNREACHABLE
    assert [probe.set for step in outcome.steps for probe in step.probes] == ["known"]


@pytest.mark.parametrize(
    ("protocol", "tcp_reset", "fate"),
    [
        (Protocol.TCP, True, walk.Fate.RESET),
        (Protocol.UDP, True, walk.Fate.DROPPED),
        (Protocol.TCP, False, walk.Fate.UNREACHABLE),
        (Protocol.UDP, False, walk.Fate.UNREACHABLE),
    ],
)
def test_refusals(protocol: Protocol, tcp_reset: bool, fate: walk.Fate) -> None:
    assert fate_of(table(hooked((Reject(tcp_reset),))), packet(protocol=protocol)) is fate


@pytest.mark.parametrize(("last_byte", "inside"), [(15, False), (16, True), (20, True), (23, True), (24, False)])
def test_an_element_of_a_set_of_ranges_holds_from_its_first_to_its_last_source(last_byte: int, inside: bool) -> None:
    first, last = bytes((192, 0, 2, 16)), bytes((192, 0, 2, 23))
    made = table(
        hooked((InSet((Field.DESTINATION, Field.SOURCE), "ranges"), Drop())),
        elements={"ranges": {SERVICE + first + SERVICE + last: b""}},
    )
    source = bytes((192, 0, 2, last_byte))
    assert (fate_of(made, packet(source)) is walk.Fate.DROPPED) is inside
    assert fate_of(made, packet(source, destination=POD)) is walk.Fate.UNTOUCHED


@pytest.mark.parametrize(
    ("statement", "what", "holds"),
    [
        (InPrefix(Field.SOURCE, addresses.parse_prefix("10.180.0.0/24")), packet(POD), True),
        (InPrefix(Field.SOURCE, addresses.parse_prefix("10.180.0.0/24")), packet(OUTSIDE), False),
        (InPrefix(Field.SOURCE, addresses.parse_prefix("10.180.0.0/24"), negate=True), packet(OUTSIDE), True),
        (IsLocal(Field.DESTINATION_TYPE), packet(destination=NODE), True),
        (IsLocal(Field.DESTINATION_TYPE), packet(destination=bytes((127, 9, 9, 9))), True),
        (IsLocal(Field.DESTINATION_TYPE), packet(), False),
        (IsLocal(Field.SOURCE_TYPE), packet(NODE), True),
        (IsLocal(Field.SOURCE_TYPE, negate=True), packet(NODE), False),
        (InputName("veth", prefix=True), packet(interface="veth1"), True),
        (InputName("veth"), packet(interface="veth1"), False),
        (InputName("veth", prefix=True, negate=True), packet(interface="eth0"), True),
        (HasBits(Field.MARK, 0x6), packet(mark=0x2), True),
        (HasBits(Field.MARK, 0x6), packet(mark=0x8), False),
        (HasBits(Field.CT_STATE, 0x8), packet(), True),
        (HasBits(Field.CT_STATE, 0x1), packet(), False),
    ],
)
def test_tests(statement: ruleset.Statement, what: walk.Packet, holds: bool) -> None:
    assert (fate_of(table(hooked((statement, Drop()))), what) is walk.Fate.DROPPED) is holds


def test_a_packet_of_this_host_has_no_input_interface_and_so_comes_from_no_pod() -> None:
    made = table(hooked((InputName("veth", prefix=True, negate=True), Drop()), at=HookPoint.OUTPUT))
    assert fate_of(made, FROM_HOST) is walk.Fate.DROPPED


# --- hooks and translation ----------------------------------------------------------------------------------


def test_chains_of_a_hook_run_by_priority_and_nat_chains_all_at_the_place_of_the_kernels_nat_hook() -> None:
    def seen(priority: int, name: str) -> ruleset.Chain:
        return hooked((SetMark(0),), kind=ChainType.FILTER, priority=priority, name=name)

    made = table(
        seen(-50, "after"),
        hooked((SetMark(0),), priority=-10, name="late nat"),
        hooked((SetMark(0),), priority=-300, name="early nat"),
        seen(-150, "before"),
        hooked((SetMark(0),), at=HookPoint.FORWARD, kind=ChainType.FILTER, priority=-400, name="forward"),
    )
    chains = [step.chain for step in outcome_of(made).steps]
    assert chains == ["before", "early nat", "late nat", "after", "forward"]


def test_chains_behind_the_translation_see_the_endpoint_and_may_still_drop() -> None:
    is_service = InPrefix(Field.DESTINATION, addresses.network(SERVICE, 32))
    to_a = hooked((TO_ENDPOINT,))
    forward = hooked((is_service, SetMark(1)), at=HookPoint.FORWARD, kind=ChainType.FILTER, priority=0)
    assert result_of(table(to_a, forward)) == walk.Result(walk.Fate.ENDPOINT, A)
    dropping = hooked((Drop(),), at=HookPoint.FORWARD, kind=ChainType.FILTER, priority=0)
    assert result_of(table(to_a, dropping)) == walk.Result(walk.Fate.DROPPED)


def test_a_settled_translation_is_not_changed_by_another_nat_chain() -> None:
    made = table(hooked((TO_ENDPOINT,), priority=-100), hooked((Drop(),), priority=-90))
    assert result_of(made).endpoint == A


def test_packets_of_this_host_go_through_output_only() -> None:
    made = table(hooked((Drop(),)), hooked((TO_ENDPOINT,), at=HookPoint.OUTPUT))
    assert result_of(made, FROM_HOST).endpoint == A
    assert fate_of(made) is walk.Fate.DROPPED


def test_what_this_host_sends_to_itself_comes_in_again_but_is_translated_once() -> None:
    made = table(
        hooked((Drop(),)),
        hooked((InputName("lo"), SetMark(4)), kind=ChainType.FILTER, priority=-150),
        hooked((SetMark(8),), at=HookPoint.INPUT, kind=ChainType.FILTER, priority=0),
    )
    assert result_of(made, packet(NODE, NODE, interface="")) == walk.Result(walk.Fate.UNTOUCHED, mark=12)


def masquerading(*more: ruleset.Chain, elements: Mapping[str, ruleset.Elements] | None = None) -> ruleset.Table:
    """The table that all of ours are like: by mark, and from an endpoint to itself."""
    pair = InSet((Field.SOURCE, Field.DESTINATION), "pairs")
    postrouting = hooked(
        (HasBits(Field.MARK, MARK), FlipMark(MARK), Masquerade()),
        (HasBits(Field.CT_STATUS, 0x20), pair, Masquerade()),
        at=HookPoint.POSTROUTING,
        priority=100,
    )
    return table(postrouting, *more, elements=elements)


def test_the_mark_masquerades_and_is_cleared_while_other_bits_stay() -> None:
    made = masquerading(hooked((SetMark(MARK),), (TO_ENDPOINT,)))
    expected = walk.Result(walk.Fate.ENDPOINT, A, masquerade=True, mark=0x3)
    assert result_of(made, packet(mark=0x3)) == expected


def test_a_connection_from_an_endpoint_to_itself_is_masqueraded_if_it_was_translated() -> None:
    own = addresses.endpoint_address(A)
    made = masquerading(hooked((TO_ENDPOINT,)), elements={"pairs": {own + own: b""}})
    assert result_of(made, packet(own)).masquerade
    assert not result_of(made, packet(POD)).masquerade
    assert not result_of(made, packet(own, own, port=8080)).masquerade  # nothing to translate


def test_nothing_is_masqueraded_on_its_way_to_this_host() -> None:
    local = addresses.endpoint_key(NODE, 53)
    made = masquerading(hooked((SetMark(MARK),), (TO_ENDPOINT,)), elements={"endpoints": listed(local)})
    assert result_of(made) == walk.Result(walk.Fate.ENDPOINT, local, masquerade=False, mark=MARK)


# --- chance -------------------------------------------------------------------------------------------------


def test_every_slot_is_equally_probable() -> None:
    made = table(hooked((Dnat(Lookup((Slot(3),), "endpoints")),)), elements={"endpoints": listed(A, B, A)})
    possibilities = walk.outcomes(made, packet(), HOST)
    assert [probability for probability, _ in possibilities] == [Fraction(1, 3)] * 3
    assert walk.odds(possibilities) == {
        walk.Result(walk.Fate.ENDPOINT, A): Fraction(2, 3),
        walk.Result(walk.Fate.ENDPOINT, B): Fraction(1, 3),
    }


def test_choices_that_depend_on_choices_are_all_followed() -> None:
    choose = Dnat(Lookup((Slot(3),), "endpoints"))
    made = table(hooked((choose,), (choose,)), elements={"endpoints": listed(A, B)})
    assert walk.odds(walk.outcomes(made, packet(), HOST)) == {
        walk.Result(walk.Fate.ENDPOINT, A): Fraction(4, 9),
        walk.Result(walk.Fate.ENDPOINT, B): Fraction(4, 9),
        walk.Result(walk.Fate.UNTOUCHED): Fraction(1, 9),
    }


def test_the_caller_may_choose() -> None:
    made = table(hooked((Dnat(Lookup((Slot(3),), "endpoints")),)), elements={"endpoints": listed(A, B, C)})
    asked: list[tuple[int, int]] = []

    def choose(modulus: int, offset: int) -> int:
        asked.append((modulus, offset))
        return 2

    assert walk.walk(made, packet(), HOST, choose=choose).result.endpoint == C
    assert asked == [(3, 0)]


# --- records ------------------------------------------------------------------------------------------------


def record(operation: DynamicOperation, *, seconds: int = 60) -> Record:
    return Record(operation, "records", (ruleset.Group(), Field.SOURCE), Field.PRIORITY, timeout_seconds=seconds)


def written_by(operation: DynamicOperation, records: Mapping[bytes, bytes]) -> tuple[walk.Written, ...]:
    made = table(hooked((OrPriority(0x20003),), (record(operation),)))
    return outcome_of(made, records=records).written


RECORD_KEY = slots.pack(0x20000) + OUTSIDE
OLD, NEW = slots.pack(0x20001), slots.pack(0x20003)


def test_a_record_is_added_with_its_timeout_and_an_old_one_stays() -> None:
    added = walk.Written(DynamicOperation.ADD, "records", RECORD_KEY, NEW, 60)
    assert written_by(DynamicOperation.ADD, {}) == (added,)
    assert written_by(DynamicOperation.ADD, {RECORD_KEY: OLD}) == ()


def test_an_update_restarts_the_timeout_and_keeps_the_value() -> None:
    updated = walk.Written(DynamicOperation.UPDATE, "records", RECORD_KEY, OLD, 60)
    assert written_by(DynamicOperation.UPDATE, {RECORD_KEY: OLD}) == (updated,)


def test_a_record_can_be_deleted_and_one_that_is_not_there_too() -> None:
    assert [one.key for one in written_by(DynamicOperation.DELETE, {RECORD_KEY: OLD})] == [RECORD_KEY]
    assert written_by(DynamicOperation.DELETE, {}) == ()


def test_a_full_map_ends_the_rule() -> None:
    made = table(hooked((record(DynamicOperation.ADD), Drop()), (SetMark(1),)))
    full = {b"1": OLD, b"2": OLD}
    assert outcome_of(made, records=full).result == walk.Result(walk.Fate.UNTOUCHED, mark=1)
    assert outcome_of(made, records={b"1": OLD}).result == walk.Result(walk.Fate.DROPPED)


def test_a_walk_leaves_the_records_of_the_caller_alone() -> None:
    records = {RECORD_KEY: OLD}
    written_by(DynamicOperation.DELETE, records)
    assert records == {RECORD_KEY: OLD}


# --- the trace ----------------------------------------------------------------------------------------------


def test_the_steps_tell_which_rules_the_packet_came_by_and_what_they_found() -> None:
    miss: Rule = (InSet(DESTINATION, "known"), Drop())
    hit: Rule = (VerdictMap(DESTINATION, "verdicts"),)
    value = VerdictValue("serve")
    made = table(
        hooked(miss, hit, name="prerouting"),
        ruleset.Chain("serve", ((TO_ENDPOINT,),)),
        elements={"verdicts": {SERVICE: value}},
    )
    point = HookPoint.PREROUTING
    first, second, third = outcome_of(made).steps
    assert first == walk.Step(point, "prerouting", 0, miss, 0, (walk.Probe("known", SERVICE),))
    assert first.ended_by == miss[0]
    assert second == walk.Step(point, "prerouting", 1, hit, 1, (walk.Probe("verdicts", SERVICE, SERVICE, value),))
    assert second.ended_by is None
    assert (third.chain, third.probes[0].value) == ("serve", A + b"\0\0")


def test_a_probe_of_ranges_names_the_range() -> None:
    key = SERVICE + bytes(4) + SERVICE + b"\xff" * 4
    made = table(hooked((InSet((Field.DESTINATION, Field.SOURCE), "ranges"), Drop())), elements={"ranges": {key: b""}})
    assert outcome_of(made).steps[0].probes == (walk.Probe("ranges", SERVICE + OUTSIDE, key),)


# --- what cannot be followed --------------------------------------------------------------------------------


def test_a_chain_or_set_that_the_table_lacks_is_an_error_that_names_it() -> None:
    with pytest.raises(errors.InvariantError, match="nowhere"):
        outcome_of(table(hooked((Goto("nowhere"),))))
    with pytest.raises(errors.InvariantError, match="nothing"):
        outcome_of(table(hooked((InSet(DESTINATION, "nothing"),))))


def test_a_packet_of_the_other_family_is_refused() -> None:
    with pytest.raises(ValueError, match="2001:db8::1 in a packet for a table of IPv4"):
        outcome_of(table(), packet(addresses.parse_address("2001:db8::1")))


# --- our own rules ------------------------------------------------------------------------------------------


def rules(*service_cidrs: addresses.Prefix) -> node.NodeRules:
    return node.NodeRules(
        family=Family.IPV4,
        local_pods=None,
        masquerade_all=False,
        masquerade_mark=MARK,
        node_port_prefixes=(addresses.network(NODE, 32),),
        service_cidrs=service_cidrs,
        drop_invalid=True,
    )


def lowered(*service_frontends: frontends.Frontend) -> lower.Lowering:
    result = lower.Lowering(rules(), affinity_clients=100)
    for frontend in service_frontends:
        result.update(frontend.key, frontend)
    return result


def endpoints(count: int) -> tuple[bytes, ...]:
    return tuple(addresses.endpoint_key((0x0AB40000 + index).to_bytes(4), 8080) for index in range(count))


def frontend(count: int, *, affinity_seconds: int | None = None, local: int | None = None) -> frontends.Frontend:
    return frontends.Frontend(
        key=frontends.FrontendKey(Family.IPV4, SERVICE, Protocol.TCP, 80),
        kind=FrontendKind.LOAD_BALANCER,
        owner=frontends.ServicePortName("default", "web", "", Protocol.TCP),
        verdict=Verdict.SERVE,
        masquerade=WhichMasquerade.ALWAYS if local is None else WhichMasquerade.NEVER_LOCAL,
        endpoints=endpoints(count),
        local_endpoints=None if local is None else endpoints(count)[-local:],
        affinity_seconds=affinity_seconds,
    )


def shares(desired: lower.Lowering, what: walk.Packet) -> dict[bytes | None, Fraction]:
    found = walk.odds(walk.outcomes(desired.table, what, HOST))
    return {result.endpoint: probability for result, probability in found.items()}


@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    affinity_seconds=st.none() | st.integers(1, 86400),
    data=st.data(),
)
def test_a_frontend_serves_all_its_endpoints_equally_whatever_it_had_before(
    counts: list[int], affinity_seconds: int | None, data: st.DataObject
) -> None:
    desired = lowered()
    for count in counts:
        local = data.draw(st.none() | st.integers(1, count))
        current = frontend(count, affinity_seconds=affinity_seconds, local=local)
        desired.update(current.key, current)
    served = current.local_endpoints or current.endpoints
    assert shares(desired, packet()) == {endpoint: Fraction(1, len(served)) for endpoint in served}
    assert shares(desired, FROM_HOST) == {
        endpoint: Fraction(1, len(current.endpoints)) for endpoint in current.endpoints
    }


def test_a_packet_that_meets_a_slot_that_just_left_is_served_by_slot_0() -> None:
    desired = lowered(frontend(3))
    elements = desired.table.elements[layout.BACKENDS]
    gone = [key for key in elements if key.endswith(slots.pack(2))]
    for key in gone:
        del elements[key]
    first, second, _ = endpoints(3)
    assert shares(desired, packet()) == {first: Fraction(2, 3), second: Fraction(1, 3)}


def test_a_client_with_a_record_meets_its_endpoint_again_and_nobody_else_does() -> None:
    desired = lowered(frontend(3, affinity_seconds=60))
    chosen = walk.walk(desired.table, packet(), HOST, choose=lambda modulus, offset: offset + modulus - 1)
    (written,) = chosen.written
    assert (written.operation, written.timeout_seconds) == (DynamicOperation.ADD, 60)
    records = {written.key: written.value}
    (again,) = walk.outcomes(desired.table, packet(), HOST, records=records)
    assert again.probability == 1
    assert again.outcome.result == chosen.result
    assert [one.operation for one in again.outcome.written] == [DynamicOperation.UPDATE]
    assert len(walk.outcomes(desired.table, packet(POD), HOST, records=records)) == 3


def test_a_record_of_an_endpoint_that_left_is_replaced() -> None:
    desired = lowered(frontend(3, affinity_seconds=60))
    chosen = walk.walk(desired.table, packet(), HOST, choose=lambda modulus, offset: offset + 2)
    shrunk = frontend(2, affinity_seconds=60)
    desired.update(shrunk.key, shrunk)
    records = {written.key: written.value for written in chosen.written}
    found = walk.outcomes(desired.table, packet(), HOST, records=records)
    assert {one.outcome.result.endpoint for one in found} == set(endpoints(2))
    assert all(one.outcome.written[-1].operation is DynamicOperation.ADD for one in found)


def test_an_address_without_service_leads_nowhere_unless_it_is_this_hosts() -> None:
    desired = lower.Lowering(rules(addresses.network(SERVICE, 24)), affinity_clients=100)
    assert fate_of(desired.table) is walk.Fate.DROPPED
    own = walk.Host(frozenset({SERVICE}))
    (found,) = walk.outcomes(desired.table, packet(), own)
    assert found.outcome.result.fate is walk.Fate.UNTOUCHED


def test_a_service_of_the_store_is_found_under_its_comment() -> None:
    plan = forwarding.Forwarding()
    service = builders.service()
    context = node.NodeContext("node-1")
    found = frontends_of(service, [builders.endpoint_slice("web", "10.180.0.1")], context, [Family.IPV4])
    plan.update(service.key, found)
    outcome = outcome_of(lowered(*plan.frontends.values()).table)
    owners = [probe.value.owner for step in outcome.steps for probe in step.probes if isinstance(probe.value, Owned)]
    assert (outcome.result.endpoint, owners) == (A, ["default/web"])
