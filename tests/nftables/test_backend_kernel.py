"""The backend and a real kernel, in namespaces of their own."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent import errors
from netagent.model.addresses import Family
from netagent.nftables import backend, layout, netlink, ruleset, shapes, slots, text, transaction
from netagent.plan import frontends, node
from tests import kernel

from . import strategies

CLIENTS = 1024
RULES = {family: strategies.plain_rules(family) for family in Family}


@contextlib.contextmanager
def opened(*, clients: int = CLIENTS) -> Iterator[backend.Backend]:
    """A backend that has read the kernel."""
    found = backend.Backend(affinity_clients=clients)
    try:
        found.read()
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def refusals(ours: backend.Backend) -> Iterator[list[errors.CommitRejectedError]]:
    """What the kernel refuses meanwhile, also where the backend mends it by itself."""
    found: list[errors.CommitRejectedError] = []
    original = ours._rejected

    def rejected(*given: object) -> errors.NetagentError:
        error = original(*given)  # type: ignore[arg-type]
        assert isinstance(error, errors.CommitRejectedError)
        found.append(error)
        return error

    ours._rejected = rejected  # type: ignore[assignment, method-assign]
    try:
        yield found
    finally:
        ours._rejected = original  # type: ignore[method-assign]


def want(
    found: backend.Backend,
    state: strategies.State,
    *families: Family,
    rules: dict[Family, node.NodeRules] | None = None,
) -> None:
    """Make this the whole of what a backend wants."""
    found.set_rules((rules or RULES)[family] for family in families or (Family.IPV4,))
    found.update(state, state)


def lines(pending: transaction.Transaction) -> list[str]:
    return [line for operation in pending.operations for line in text.operation_lines(operation)]


def read_anew(
    state: strategies.State, *families: Family, rules: dict[Family, node.NodeRules] | None = None
) -> list[str]:
    """What a fresh backend would change: nothing, if the kernel holds this state."""
    with opened() as other:
        want(other, state, *families, rules=rules)
        return lines(other.pending())


def _fields(frontend: frontends.Frontend, **changed: object) -> frontends.Frontend:
    fields = {name: getattr(frontend, name) for name in frontend.__struct_fields__}
    return frontends.Frontend(**fields | changed)


def everything(family: Family = Family.IPV4) -> strategies.State:
    """A small state in which every set has elements."""
    plain = strategies.cluster_ip_frontend(family, number=1, count=3, hairpin=True)
    sticky = strategies.cluster_ip_frontend(family, number=2, count=2, affinity=600, first=4)
    guarded = _fields(
        strategies.cluster_ip_frontend(family, number=3, kind=frontends.FrontendKind.LOAD_BALANCER, first=6),
        source_ranges=(strategies.addresses.network(strategies.address(family, 7, 0), 24),),
        local_endpoints=(strategies.endpoint(family, 6),),
        masquerade=frontends.Masquerade.NEVER_LOCAL,
    )
    refused = strategies.cluster_ip_frontend(family, number=4, count=0)

    def on_node_port(frontend: frontends.Frontend, port: int) -> frontends.Frontend:
        return _fields(
            frontend,
            key=frontend.key._replace(address=b"", port=port),
            kind=frontends.FrontendKind.NODE_PORT,
            masquerade=frontends.Masquerade.ALWAYS,
        )

    return strategies.state_of(plain, sticky, guarded, refused, on_node_port(plain, 30001), on_node_port(sticky, 30002))


# Reading back ----------------------------------------------------------------------------------------------------


@kernel.isolated
@settings(max_examples=35, deadline=None)
@given(data=st.data())
def test_what_was_committed_reads_back_as_desired(data: st.DataObject) -> None:
    families = data.draw(st.sampled_from([(Family.IPV4,), (Family.IPV6,), strategies.FAMILIES]))
    rules = {family: data.draw(strategies.node_rules(family)) for family in families}
    state: strategies.State = {}
    for family in families:
        state |= data.draw(strategies.states(family))
    kernel.fresh()
    with opened() as ours:
        want(ours, state, *families, rules=rules)
        count = ours.pending().count
        assert ours.commit().operations == count
        assert not ours.pending()
        assert ours.commit() == backend.Commit(0, 0, 0)
        mirror = _mirror(ours)
        ours.read()
        assert _mirror(ours) == mirror
        assert not ours.pending()
    assert read_anew(state, *families, rules=rules) == []


@kernel.isolated
@settings(max_examples=35, deadline=None)
@given(data=st.data())
def test_a_history_committed_step_by_step_leaves_its_last_state(data: st.DataObject) -> None:
    """With changing rules of the node."""
    family = data.draw(st.sampled_from(strategies.FAMILIES))
    history = data.draw(strategies.histories(family))
    kernel.fresh()
    rules = RULES
    previous: strategies.State = {}
    with opened() as ours:
        ours.set_rules([rules[family]])
        for state in history:
            if data.draw(st.integers(0, 3)) == 0:
                rules = {family: data.draw(strategies.node_rules(family))}
                ours.set_rules([rules[family]])
            ours.update((key for key in previous.keys() | state.keys() if previous.get(key) != state.get(key)), state)
            ours.commit()
            assert not ours.moved()
            assert read_anew(state, family, rules=rules) == []
            previous = state
        mirror = _mirror(ours)
        ours.read()
        assert _mirror(ours) == mirror
    with_us = kernel.ruleset()
    kernel.fresh()
    with opened() as other:
        want(other, history[-1], family, rules=rules)
        other.commit()
    if not any(frontend.affinity_seconds for frontend in history[-1].values()):
        assert _unordered(kernel.ruleset()) == _unordered(with_us)


def _mirror(ours: backend.Backend) -> list[object]:
    """What a backend believes of the kernel; what packets wrote is not read."""
    return [
        (found.exists, found.dormant, found.sets, found.chains, {**found.elements, layout.AFFINITY: None})
        for found in map(ours.actual, Family)
        if found.exists
    ]


def _unordered(found: dict[str, object]) -> dict[str, object]:
    """Without slots, which depend on history."""
    return {name: value for name, value in found.items() if not name.endswith("backends")}


@kernel.isolated
def test_a_restart_on_an_unchanged_cluster_commits_nothing() -> None:
    state = everything() | everything(Family.IPV6)
    with opened() as ours:
        want(ours, state, *Family)
        ours.commit()
        fewer = {key: frontend for key, frontend in state.items() if key.port != 30001}
        ours.update(state.keys(), fewer)
        ours.commit()
        ours.update(state.keys(), state)
        ours.commit()
    with opened() as again:
        want(again, dict(reversed(state.items())), *Family)
        assert lines(again.pending()) == []
        assert again.commit() == backend.Commit(0, 0, 0)


# Foreign edits ---------------------------------------------------------------------------------------------------

_REFUSED = "{:x}:{:x}".format(*divmod(shapes.number_of(layout.REFUSE), 1 << 16))
_FOREIGN = {
    "frontend deleted": (
        "delete element ip netagent frontends { 10.96.0.1 . tcp . 80 }",
        ["add element ip netagent frontends { 10.96.0.1 . tcp . 80 "],
    ),
    "frontend leads elsewhere": (
        "delete element ip netagent frontends { 10.96.0.1 . tcp . 80 }\n"
        "add element ip netagent frontends { 10.96.0.1 . tcp . 80 : dead:beef }",
        [
            "delete element ip netagent frontends { 10.96.0.1 . tcp . 80 }",
            "add element ip netagent frontends { 10.96.0.1 . tcp . 80 ",
        ],
    ),
    "frontend is somebody else's": (
        "delete element ip netagent frontends { 10.96.0.4 . tcp . 80 }\n"
        f'add element ip netagent frontends {{ 10.96.0.4 . tcp . 80 comment "me" : {_REFUSED} }}',
        ["add element ip netagent frontends { 10.96.0.4 . tcp . 80 "],
    ),
    "shape deleted": (
        f"delete element ip netagent shapes {{ {_REFUSED} }}",
        [f"add element ip netagent shapes {{ {_REFUSED} : goto refuse }}"],
    ),
    "shape jumps instead of going": (
        f"delete element ip netagent shapes {{ {_REFUSED} }}\n"
        f"add element ip netagent shapes {{ {_REFUSED} : jump refuse }}",
        [f"add element ip netagent shapes {{ {_REFUSED} : goto refuse }}"],
    ),
    "shape added": (
        "add element ip netagent shapes { 2:1 : drop }",
        ["delete element ip netagent shapes { 2:1 }"],
    ),
    "every number leads somewhere": (
        "add element ip netagent shapes { * : drop }",
        ["delete element ip netagent shapes { * }"],
    ),
    "frontend added": (
        "add element ip netagent frontends { 10.9.9.9 . udp . 53 : 1:2 }",
        ["delete element ip netagent frontends { 10.9.9.9 . udp . 53 }"],
    ),
    "frontend of another protocol added": (
        "add element ip netagent frontends { 10.9.9.9 . icmp . 7 : 1:2 }",
        ["delete element ip netagent frontends { 10.9.9.9 . 1 . 7 }"],
    ),
    "everything else dropped": (
        "add element ip netagent frontends { * : 1:2 }",
        ["delete element ip netagent frontends { * }"],
    ),
    "node port deleted": (
        "delete element ip netagent nodeports { tcp . 30001 }",
        ["add element ip netagent nodeports { tcp . 30001 "],
    ),
    "backends flushed": (
        "flush map ip netagent backends",
        ["add element ip netagent backends { 10.96.0.1 . tcp . 80 . 0:2 : 10.180.0.3 . 8080 }"],
    ),
    "cluster IP added": (
        "add element ip netagent cluster_ips { 10.9.9.9 }",
        ["delete element ip netagent cluster_ips { 10.9.9.9 }"],
    ),
    "hairpin deleted": (
        "delete element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }",
        ["add element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }"],
    ),
    "source range widened": (
        "flush set ip netagent source_ranges\n"
        "add element ip netagent source_ranges { 10.96.0.3 . tcp . 80 . 10.0.0.0/8 }",
        [
            "delete element ip netagent source_ranges { 10.96.0.3 . tcp . 80 . 10.0.0.0/8 }",
            "add element ip netagent source_ranges { 10.96.0.3 . tcp . 80 . 10.7.0.0/24 }",
        ],
    ),
    "source range of many ports added": (
        "add element ip netagent source_ranges { 10.96.0.0/24 . tcp . 1-79 . 10.0.0.0/8 }",
        ["delete element ip netagent source_ranges { 10.96.0.0/24 . tcp . 1-79 . 10.0.0.0/8 }"],
    ),
    "affinity port deleted": (
        "delete element ip netagent affinity_ports { 10.96.0.2 . tcp . 80 }",
        ["add element ip netagent affinity_ports { 10.96.0.2 . tcp . 80 : "],
    ),
    "rule added": (
        "insert rule ip netagent services ip saddr 10.1.1.1 drop",
        ["flush chain ip netagent services"],
    ),
    "rule with a nameless set added": (
        "insert rule ip netagent services tcp dport { 22, 23 } return",
        ["flush chain ip netagent services"],
    ),
    "rules with a nameless map in a chain of its own": (
        "add chain ip netagent strange\n"
        "add rule ip netagent strange tcp dport vmap { 22 : drop, 23 : accept }\n"
        "insert rule ip netagent services jump strange",
        ["flush chain ip netagent services", "delete chain ip netagent strange"],
    ),
    "rules deleted": (
        "flush chain ip netagent refuse",
        ["add rule ip netagent refuse meta l4proto tcp reject with tcp reset"],
    ),
    "chain of ours deleted": (
        "flush chain ip netagent postrouting\ndelete chain ip netagent postrouting",
        ["add chain ip netagent postrouting { type nat hook postrouting priority 100; policy accept; }"],
    ),
    "chain added": (
        "add chain ip netagent strange",
        ["delete chain ip netagent strange"],
    ),
    "base chain added": (
        "add chain ip netagent strange { type filter hook input priority 0; policy accept; }",
        ["delete chain ip netagent strange"],
    ),
    "map that leads to a chain added": (
        "add chain ip netagent strange\n"
        "add map ip netagent strangers { type ipv4_addr : verdict; }\n"
        "add element ip netagent strangers { 10.1.1.1 : goto strange }",
        ["delete set ip netagent strangers", "delete chain ip netagent strange"],
    ),
    "set added": (
        "add set ip netagent strange { type ipv4_addr; }\ninsert rule ip netagent services ip saddr @strange drop",
        ["delete set ip netagent strange"],
    ),
    "set of ours deleted": (
        "flush chain ip netagent postrouting\nflush chain ip netagent forward\ndelete set ip netagent hairpin",
        ["add set ip netagent hairpin ", "add element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }"],
    ),
    "priority changed": (
        "flush chain ip netagent prerouting\n"
        "delete chain ip netagent prerouting\n"
        "add chain ip netagent prerouting { type nat hook prerouting priority -90; policy accept; }\n"
        "add rule ip netagent prerouting goto services",
        [
            "delete chain ip netagent prerouting",
            "add chain ip netagent prerouting { type nat hook prerouting priority -100; policy accept; }",
        ],
    ),
    "policy changed": (
        "add chain ip netagent output { policy drop; }",
        ["add chain ip netagent output { type nat hook output priority -100; policy accept; }"],
    ),
    "table switched off": (
        "add table ip netagent { flags dormant; }",
        ["delete table ip netagent", "add table ip netagent"],
    ),
    "table deleted": ("delete table ip netagent", ["add table ip netagent"]),
    "everything flushed": ("flush ruleset", ["add table ip netagent", "add table ip6 netagent"]),
}


@pytest.mark.parametrize("name", _FOREIGN)
@kernel.isolated
def test_a_foreign_edit_is_named_and_repaired(name: str) -> None:
    command, expected = _FOREIGN[name]
    state = everything() | everything(Family.IPV6)
    with opened() as ours:
        want(ours, state, *Family)
        ours.commit()
        before = kernel.ruleset()
        kernel.nft(command)
        assert ours.moved()
        ours.read()
        pending = lines(ours.pending())
        for line in expected:
            assert any(found.startswith(line) for found in pending), f"{line!r} is not in {pending[:40]}"
        ours.commit()
        assert kernel.ruleset() == before
        assert not ours.moved()
    assert read_anew(state, *Family) == []


@kernel.isolated
def test_a_small_edit_is_repaired_with_a_small_transaction() -> None:
    with opened() as ours:
        want(ours, everything())
        ours.commit()
        kernel.nft("delete element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }")
        ours.read()
        assert lines(ours.pending()) == ["add element ip netagent hairpin { 10.180.0.1 . 10.180.0.1 }"]


@kernel.isolated
def test_another_number_of_remembered_clients_makes_the_table_anew() -> None:
    state = everything()
    with opened() as ours:
        want(ours, state)
        ours.commit()
    with opened(clients=CLIENTS * 2) as ours:
        want(ours, state)
        assert lines(ours.pending())[0] == "delete table ip netagent"
        ours.commit()
        ours.read()
        assert not ours.pending()
    assert "size 2048" in kernel.listing("ip netagent")


# Whose table it is -----------------------------------------------------------------------------------------------

_OTHERS = """
table inet netagent {
  set numbers { type inet_service; elements = { 1, 2, 3 } }
  chain input { type filter hook input priority 0; policy accept; tcp dport @numbers counter drop; }
}
table ip nat {
  chain prerouting { type nat hook prerouting priority -100; policy accept; tcp dport 81 dnat to 10.0.0.1:8080; }
}
table ip6 filter {
  chain services { ip6 saddr fd00::/8 accept; }
}
table arp netagent {
  chain refuse { }
}
"""


@kernel.isolated
def test_tables_of_others_stay_as_they_are() -> None:
    kernel.nft(_OTHERS)
    names = ("inet netagent", "ip nat", "ip6 filter", "arp netagent")
    before = [kernel.listing(name) for name in names]
    state = everything() | everything(Family.IPV6)
    with opened() as ours:
        want(ours, state, *Family)
        ours.commit()
        ours.update(state, {})
        ours.commit()
        ours.read()
        assert not ours.pending()
        ours.cleanup()
    assert [kernel.listing(name) for name in names] == before


@kernel.isolated
def test_a_family_that_is_not_served_has_no_table() -> None:
    state = everything() | everything(Family.IPV6)
    with opened() as ours:
        want(ours, state, *Family)
        ours.commit()
        ours.set_rules([RULES[Family.IPV4]])
        assert lines(ours.pending()) == ["delete table ip6 netagent"]
        ours.commit()
        assert not ours.pending()
        with pytest.raises(RuntimeError, match="No such file"):
            kernel.listing("ip6 netagent")
        want(ours, state, *Family)
        ours.commit()
    assert read_anew(state, *Family) == []


@kernel.isolated
def test_cleanup_removes_the_tables_and_a_second_one_finds_nothing() -> None:
    state = everything() | everything(Family.IPV6)
    with opened() as ours:
        want(ours, state, *Family)
        ours.commit()
        assert ours.cleanup()
        assert kernel.ruleset() == {}
        assert not ours.cleanup()
        assert not ours.moved()
        ours.commit()
        assert read_anew(state, *Family) == []
    with opened() as another:
        assert another.cleanup()
        assert not another.cleanup()
    assert kernel.ruleset() == {}


# Size ------------------------------------------------------------------------------------------------------------


def _large() -> strategies.State:
    """600 frontends with 100 endpoints each."""
    found = (strategies.cluster_ip_frontend(number=number, count=100, first=number * 100) for number in range(1, 601))
    return strategies.state_of(*found)


@kernel.isolated
def test_sixty_thousand_endpoints_are_one_transaction() -> None:
    state = _large()
    with opened() as ours:
        if ours.socket.reserve(1 << 24) < 1 << 23:
            pytest.skip("no SO_SNDBUFFORCE: run the tests as root")
        want(ours, state)
        report = ours.commit()
        assert report.transactions == 1
        assert report.operations > 60_000
        assert not ours.moved()
    assert read_anew(state) == []


def _limit_send_buffers() -> None:
    """Send buffers as large as an unpatched net.core.wmem_max lets them be; this process is gone after the test."""
    grow = netlink.grow_buffer

    def grow_within_limits(sock: object, forced: int, plain: int, size: int) -> int:
        return grow(sock, forced, plain, min(size, 212992))  # type: ignore[arg-type]

    netlink.grow_buffer = grow_within_limits


@kernel.isolated_without_privilege
def test_without_privilege_sixty_thousand_endpoints_come_in_pieces_and_end_in_the_same_state() -> None:
    state = _large()
    _limit_send_buffers()
    with opened() as ours:
        want(ours, state)
        report = ours.commit()
        assert report.transactions > 1
        assert not ours.moved()
        assert read_anew(state) == []
        fewer = {key: frontend for key, frontend in state.items() if key.address[-1] % 2}
        ours.update(state, fewer)
        ours.commit()
        assert not ours.moved()
    assert read_anew(fewer) == []


# Refusals --------------------------------------------------------------------------------------------------------


@kernel.isolated
def test_a_transaction_that_memory_was_wrong_about_is_refused_by_name_and_then_put_right_in_the_same_commit() -> None:
    """Somebody took away elements, unseen, that are now to be deleted."""
    state = everything()
    more = state | strategies.state_of(strategies.cluster_ip_frontend(number=9, count=2))
    with opened() as ours:
        want(ours, state)
        ours.commit()
        kernel.nft("flush set ip netagent hairpin")
        fewer = dict(state)
        gone = next(key for key, frontend in state.items() if frontend.hairpin_addresses)
        for key in [key for key in state if state[key].hairpin_addresses]:
            fewer.pop(key)
        assert gone not in fewer
        ours.update(state, fewer)
        with refusals(ours) as refused:
            ours.commit()
        (error,) = refused
        assert error.errno == errno.ENOENT
        assert error.operation is not None
        assert error.operation.startswith("delete element ip netagent hairpin { 10.180.0.")
        assert "more" not in error.operation, "the kernel says which element it was"
        assert error.operation in str(error)
        assert ours.at_fault() == frozenset(), "nobody's: it was our memory"
        assert not ours.moved()
        assert read_anew(fewer) == []
        ours.update(more, more)
        ours.commit()
    assert read_anew(more) == []


@kernel.isolated
def test_a_refused_rule_is_named_exactly() -> None:
    with opened() as ours:
        want(ours, everything())
        ours.commit()
        lowered = ours.tables.lowered[Family.IPV4]
        lowered.table.chains["refuse"] = ruleset.Chain(
            "refuse", ((ruleset.Drop(),), (ruleset.InSet(layout.RANGE_KEY, "missing"), ruleset.Drop()))
        )
        lowered.reshaped = True
        with pytest.raises(errors.CommitRejectedError) as caught:
            ours.commit()
    assert caught.value.operation == (
        "add rule ip netagent refuse ip daddr . meta l4proto . th dport . ip saddr @missing drop"
    )


@kernel.isolated
def test_a_chain_in_use_by_somebody_is_named_and_then_taken_from_him() -> None:
    state = strategies.state_of(strategies.cluster_ip_frontend(count=2))
    fewer = strategies.state_of(strategies.cluster_ip_frontend(count=1))
    with opened() as ours:
        want(ours, state)
        ours.commit()
        kernel.nft("add chain ip netagent strange\nadd rule ip netagent strange goto cluster-ip-random-2")
        ours.update(fewer, fewer)
        with refusals(ours) as refused:
            ours.commit()
        assert [(error.errno, error.operation) for error in refused] == [
            (errno.EBUSY, "delete chain ip netagent cluster-ip-random-2")
        ]
    assert read_anew(fewer) == []


@kernel.isolated
def test_a_table_that_vanished_unseen_is_made_anew_at_the_next_commit() -> None:
    state = everything()
    with opened() as ours:
        want(ours, state)
        ours.commit()
        kernel.nft("delete table ip netagent")
        extra = strategies.state_of(strategies.cluster_ip_frontend(number=9, count=5))
        ours.update(extra, extra)
        with refusals(ours) as refused:
            ours.commit()
        assert [error.operation for error in refused] == ["add chain ip netagent cluster-ip-random-5"]
    assert read_anew(state | extra) == []


@kernel.isolated_without_privilege
def test_a_refusal_half_way_through_the_pieces_is_recovered_from() -> None:
    """The first pieces are in the kernel, the mirror knows nothing of them: the next commit reads first."""
    state = _large()
    _limit_send_buffers()
    with opened() as ours:
        want(ours, state)
        original = ours.socket.commit
        sent: list[int] = []

        def refuse_the_third(messages: list[bytes], *, generation: int | None = None) -> list[netlink.Failure]:
            sent.append(len(messages))
            if len(sent) == 3:
                return [netlink.Failure(0, errno.ENOMEM, "Cannot allocate memory")]
            return original(messages, generation=generation)

        ours.socket.commit = refuse_the_third  # type: ignore[assignment, method-assign]
        with pytest.raises(errors.CommitRejectedError) as caught:
            ours.commit()
        assert caught.value.operation is not None
        assert caught.value.operation.startswith("add element ip netagent backends {")
        refused = int(str(caught.value).split("refused ")[1].split()[0])
        assert 0 < refused < 10_000, "of this piece, not of all"
        assert ours.moved()
        ours.commit()
        assert len(sent) > 4
    assert read_anew(state) == []


@kernel.isolated
def test_without_the_capability_the_error_says_so() -> None:
    """A user namespace below owns nothing of this network namespace."""
    script = (
        "import sys; from netagent import errors; from netagent.nftables import backend\n"
        "try:\n"
        "    ours = backend.Backend(affinity_clients=1); ours.read(); ours.commit()\n"
        "except errors.PrivilegeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        ["unshare", "--user", sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no user namespace below: {done.stderr.strip()}")
    assert "CAP_NET_ADMIN" in done.stdout, done.stderr


# Steps and generations --------------------------------------------------------------------------------------------


@kernel.isolated
def test_a_new_number_of_endpoints_is_committed_in_steps() -> None:
    state = strategies.state_of(strategies.cluster_ip_frontend(count=2))
    fewer = strategies.state_of(strategies.cluster_ip_frontend(count=1))
    with opened() as ours:
        want(ours, state)
        assert ours.commit().transactions == 1
        ours.update(fewer, fewer)
        # The new shape, the switch to it, and the end of the old one: its element, then its chain.
        assert ours.commit().transactions == 4
        assert not ours.moved()
    assert read_anew(fewer) == []


@kernel.isolated
def test_two_shapes_with_the_same_number_are_told_apart() -> None:
    state = strategies.state_of(*(strategies.cluster_ip_frontend(number=count, count=count) for count in (1, 2, 3)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shapes, "number_of", lambda name: 0xFFFFFFFE)
        with opened() as ours:
            want(ours, state)
            ours.commit()
            elements = ours.actual(Family.IPV4).elements
            assert {slots.unpack(number) for number in elements[layout.SHAPES]} == {0xFFFFFFFE, 1, 2}
            assert {shapes.chain_of(elements, value) for value in elements[layout.FRONTENDS].values()} == {
                f"cluster-ip-random-{count}" for count in (1, 2, 3)
            }
        assert read_anew(state) == []


@kernel.isolated
def test_the_generation_tells_whether_somebody_else_committed() -> None:
    state = everything()
    with opened() as ours:
        assert not ours.moved()
        want(ours, state)
        ours.commit()
        assert not ours.moved()
        ours.commit()
        assert not ours.moved(), "committing nothing moves nothing"
        kernel.nft("add table ip other")
        assert ours.moved()
        ours.read()
        assert not ours.moved()
        kernel.nft("delete table ip other")
        ours.update(state, {})
        assert ours.commit().conflicts == 1, "what depends on a read looks again when others have committed since"
        assert not ours.moved()
        kernel.nft("add table ip other")
        ours.update(state, state)
        assert ours.commit().conflicts == 0, "what depends on our own commits alone does not mind busy neighbours"
        assert ours.moved(), "but it does not hide theirs"
        ours.read()
        assert not ours.moved()


@kernel.isolated
def test_a_transaction_for_another_generation_is_refused_as_a_whole() -> None:
    with netlink.NftablesSocket() as socket:
        messages = [
            message
            for unit in backend._units(transaction.Transaction((transaction.AddTable(Family.IPV4),)))
            for message in unit.messages
        ]
        generation = socket.generation()
        assert [failure.errno for failure in socket.commit(messages, generation=generation + 7)] == [errno.ERESTART]
        assert kernel.ruleset() == {}
        assert socket.commit(messages, check_only=True) == []
        assert kernel.ruleset() == {}
        assert socket.commit(messages, generation=generation) == []
        assert list(kernel.ruleset()) == ["table ip  netagent"]


def test_every_set_has_elements_in_the_state_that_is_edited() -> None:
    """Otherwise the foreign edits above would try less than they seem to."""
    from .test_lower import lowered

    table = lowered(RULES[Family.IPV4], everything()).table
    assert [name for name, elements in table.elements.items() if not elements] == [layout.AFFINITY]


@kernel.isolated
def test_a_neighbour_that_never_rests_does_not_keep_a_commit_from_landing() -> None:
    """Each commit that depends on a read meets a new generation; after a few it goes in all the same."""
    state = everything()
    with opened() as ours:
        want(ours, state)
        guards: list[int | None] = []
        original = ours.socket.commit

        def commit(messages: list[bytes], *, generation: int | None = None) -> list[netlink.Failure]:
            guards.append(generation)
            kernel.nft("add table ip other\ndelete table ip other")
            return original(messages, generation=generation)

        ours.socket.commit = commit  # type: ignore[assignment, method-assign]
        assert ours.commit().conflicts == 4
    assert [guard is not None for guard in guards] == [True] * 4 + [False]
    assert read_anew(state) == []


@kernel.isolated
def test_a_foreign_edit_between_reading_and_writing_is_put_right_by_the_same_commit() -> None:
    state = everything()
    with opened() as ours:
        want(ours, state)
        ours.commit()
    with opened() as ours:
        want(ours, {**state, **strategies.state_of(strategies.cluster_ip_frontend(number=9, count=5))})
        kernel.nft("flush set ip netagent hairpin")
        assert ours.commit().conflicts == 1
        assert not ours.moved()
    assert read_anew({**state, **strategies.state_of(strategies.cluster_ip_frontend(number=9, count=5))}) == []
