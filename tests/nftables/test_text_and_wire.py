"""One description, two encoders: text for `nft -f`, bytes for netlink. They have to say the same."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.model.addresses import Family, Protocol
from netagent.nftables import backend, constants, diff, layout, netlink, readback, ruleset, text, transaction, wire
from netagent.plan import frontends, node
from tests import kernel

from . import strategies
from .test_lower import lowered

CLIENTS = 1024


def _backend(found: dict[Family, tuple[node.NodeRules, strategies.State]]) -> backend.Backend:
    """A backend that has read the kernel and wants these states."""
    result = backend.Backend(affinity_clients=CLIENTS)
    result.read()
    result.set_rules([rules for rules, _ in found.values()])
    for _, state in found.values():
        result.update(state, state)
    return result


# Encoding and decoding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_elements_read_back_are_those_that_were_written(family: Family, data: st.DataObject) -> None:
    table = lowered(strategies.plain_rules(family), data.draw(strategies.states(family))).table
    for name, spec in table.sets.items():
        elements = table.elements[name]
        messages = list(wire.messages(transaction.AddElements(family, spec, elements)))
        assert readback.decode_elements([raw[20:] for raw in messages], spec, family) == elements


@pytest.mark.parametrize("count", [1, 1000, 20_000])
@pytest.mark.parametrize("family", strategies.FAMILIES)
def test_no_message_is_longer_than_an_attribute_can_be(family: Family, count: int) -> None:
    frontend = strategies.cluster_ip_frontend(family, count=count, hairpin=True)
    table = lowered(strategies.plain_rules(family), strategies.state_of(frontend)).table
    for name in (layout.BACKENDS, layout.HAIRPIN):
        spec, elements = table.sets[name], table.elements[name]
        for kind in (transaction.AddElements, transaction.ReplaceElements, transaction.DeleteElements):
            messages = list(wire.messages(kind(family, spec, elements)))
            assert all(len(raw) < 65536 and len(raw) == struct.unpack_from("=I", raw)[0] for raw in messages)
            found: dict[bytes, ruleset.Value] = {}
            for raw in messages:
                deletes = raw[4] == constants.NFT_MSG_DELSETELEM  # by their keys alone
                told = dataclasses.replace(spec, data=None) if deletes else spec
                found |= readback.decode_elements([raw[20:]], told, family)
            assert found.keys() == elements.keys()


def test_the_longest_names_fit_into_a_comment() -> None:
    plain = strategies.cluster_ip_frontend()
    owner = frontends.ServicePortName("n" * 63, "s" * 63, "p" * 15, Protocol.TCP)
    fields = {name: getattr(plain, name) for name in plain.__struct_fields__} | {"owner": owner}
    table = lowered(strategies.plain_rules(Family.IPV4), strategies.state_of(frontends.Frontend(**fields))).table
    (value,) = table.elements[layout.FRONTENDS].values()
    assert isinstance(value, ruleset.Owned)
    assert len(value.owner) == wire.COMMENT_BYTES - 1
    assert str(owner).startswith(value.owner)


def test_the_same_state_gives_the_same_text_in_whatever_order_it_came() -> None:
    found = [
        strategies.cluster_ip_frontend(number=number, count=number, first=number, affinity=None if number % 3 else 600)
        for number in range(1, 8)
    ]
    rules = strategies.plain_rules(Family.IPV4)
    scripts = []
    for order in (found, found[::-1]):
        table = lowered(rules, strategies.state_of(*order)).table
        for name in (layout.AFFINITY_PORTS, layout.AFFINITY_SLOTS, layout.AFFINITY_ENDPOINTS):
            table.elements[name] = {}  # groups are numbered as they come, which is allowed
        scripts.append("\n".join(text.script([table])))
    assert scripts[0] == scripts[1]


@pytest.mark.parametrize("family", strategies.FAMILIES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_rule_is_compared_without_its_zeros_and_its_order_of_attributes(family: Family, data: st.DataObject) -> None:
    table = lowered(data.draw(strategies.node_rules(family)), data.draw(strategies.states(family))).table
    for chain in table.chains.values():
        for rule in chain.rules:
            encoded = wire.expressions(rule, family)
            names = []
            turned = b""
            for kind, expression in netlink.attributes(encoded):
                parts = dict(netlink.attributes(expression))
                names.append(parts[1].rstrip(b"\0"))
                inner = list(netlink.attributes(parts[2]))
                mixed = b"".join(wire.attribute(*one) for one in (*inner[::-1], (99, bytes(4))))
                turned += wire.nest(kind, wire.attribute(1, parts[1]), wire.attribute(2, mixed))
            assert readback.canonical(encoded) == readback.canonical(turned)
            assert names


# The kernel ------------------------------------------------------------------------------------------------------


def _same_in_the_kernel(found: dict[Family, tuple[node.NodeRules, strategies.State]]) -> None:
    kernel.fresh()
    wanted = _backend(found)
    try:
        kernel.nft("\n".join(text.script(wanted.tables.desired())) + "\n")
        from_text = kernel.ruleset()
        wanted.read()
        # nft 1.0.6 loads the value of an IPv6 record into a register that the end of the key is in. All else reads back
        # as if we had sent it.
        pending = [found for found in wanted.pending().operations if not _is_ipv6_record(found)]
        assert not pending, _lines(transaction.Transaction(tuple(pending)))
        kernel.fresh()
    finally:
        wanted.close()
    committed = _backend(found)
    try:
        committed.commit()
    finally:
        committed.close()
    assert kernel.ruleset() == from_text


def _is_ipv6_record(operation: transaction.Operation) -> bool:
    """Whether an operation is about a chain that writes records of IPv6 clients."""
    match operation:
        case transaction.AddRules(Family.IPV6, chain):
            return "affinity" in chain.name
        case transaction.FlushChain(Family.IPV6, name):
            return "affinity" in name
        case _:
            return False


def _lines(pending: transaction.Transaction) -> list[str]:
    return [line for operation in pending.operations for line in text.operation_lines(operation)]


@kernel.isolated
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_text_and_netlink_load_the_same_tables(data: st.DataObject) -> None:
    families = data.draw(st.sampled_from([(Family.IPV4,), (Family.IPV6,), strategies.FAMILIES]))
    _same_in_the_kernel(
        {
            family: (data.draw(strategies.node_rules(family)), data.draw(strategies.states(family)))
            for family in families
        }
    )


@kernel.isolated
@pytest.mark.parametrize("family", strategies.FAMILIES)
def test_text_and_netlink_load_the_same_table_where_every_address_is_a_pods(family: Family) -> None:
    """A cluster CIDR of /0, and service CIDRs that are everything: odd, but somebody may write it."""
    plain = strategies.plain_rules(family)
    everything = strategies.addresses.Prefix(bytes(family.address_bytes), 0)
    rules = node.NodeRules(
        family=family,
        local_pods=node.SourcePrefix(everything),
        masquerade_all=False,
        masquerade_mark=plain.masquerade_mark,
        node_port_prefixes=(everything,),
        service_cidrs=(everything,),
        drop_invalid=True,
    )
    _same_in_the_kernel({family: (rules, strategies.state_of(strategies.cluster_ip_frontend(family)))})


@kernel.isolated
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_what_diff_prints_can_be_given_to_nft(data: st.DataObject) -> None:
    """The lines of a transaction, as `diff` shows them. From nothing, because nft 1.0.6 cannot add to a map that is
    declared by example once it has to ask the kernel for the declaration ("conflicting protocols specified")."""
    family = data.draw(st.sampled_from(strategies.FAMILIES))
    state = data.draw(strategies.states(family))
    kernel.fresh()
    wanted = _backend({family: (data.draw(strategies.node_rules(family)), state)})
    try:
        kernel.nft("\n".join(_lines(wanted.pending())) + "\n")
        from_lines = kernel.ruleset()
        kernel.nft("flush ruleset")
        kernel.nft("\n".join(text.script(wanted.tables.desired())) + "\n")
        assert kernel.ruleset() == from_lines
    finally:
        wanted.close()


def test_every_operation_has_as_many_lines_as_it_counts() -> None:
    table = lowered(
        strategies.plain_rules(Family.IPV4), strategies.state_of(strategies.cluster_ip_frontend(count=3))
    ).table
    pending = diff.operations(table, readback.ActualTable(Family.IPV4))
    assert len(_lines(pending)) == pending.count
