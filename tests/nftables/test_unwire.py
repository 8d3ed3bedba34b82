"""What we write can be read back rule by rule; what others write cannot, and is named."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.model.addresses import Family, Protocol
from netagent.nftables import diff, layout, readback, ruleset, tables, unwire
from tests.nftables import strategies

SPECS = layout.sets(affinity_clients=65536)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_rule_of_ours_is_read_as_it_was_written(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(strategies.FAMILIES))
    rules = data.draw(strategies.node_rules(family))
    state = data.draw(strategies.states(family))
    made = tables.Tables(affinity_clients=65536)
    made.set_rules([rules])
    made.update(state, state)
    (desired,) = made.desired()
    actual = readback.ActualTable(family)
    for operation in diff.operations(desired, actual).operations:
        diff.applied(actual, operation)

    read = unwire.table_of(actual, SPECS)

    assert read.strange == ()
    assert read.table.chains == desired.chains
    assert {name: found for name, found in read.table.elements.items() if found} == {
        name: found for name, found in desired.elements.items() if found
    }


def test_a_rule_of_somebody_else_is_named_and_does_nothing() -> None:
    ours: ruleset.Rule = (ruleset.IsProtocol(Protocol.TCP), ruleset.Drop())
    actual = readback.ActualTable(Family.IPV4, exists=True)
    chain = ruleset.Chain("services", (ours,))
    counting = (("counter", ()),)
    actual.chains["services"] = readback.ActualChain(
        "services", (counting, *diff.canonical_rules(chain, Family.IPV4)), None
    )
    read = unwire.table_of(actual, SPECS)
    assert read.strange == (("services", 0),)
    assert read.table.chains["services"].rules == ((), ours)


def test_a_rule_that_only_resembles_ours_is_strange() -> None:
    chain = ruleset.Chain("x", ((ruleset.Masquerade(),),))
    (rule,) = diff.canonical_rules(chain, Family.IPV4)
    assert unwire.rule_of(rule, Family.IPV4, SPECS) == (ruleset.Masquerade(),)
    assert unwire.rule_of((("masq", ()),), Family.IPV4, SPECS) is None
