"""What can go wrong on a host, row by row: what must hold, and which drill or test shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.chaos import drills


class Row(NamedTuple):
    """A failure: number, name, what must hold, the tests that show it beside the drills (path::name, below tests/), and
    a remark: what of it does not apply, or cannot be provoked."""

    number: int
    name: str
    holds: str
    tests: tuple[str, ...] = ()
    remark: str = ""


_STATIC = "the last good rules serve"
ROWS = (
    Row(
        1,
        "somebody flushes the ruleset, again and again",
        "with ownership nothing happens; without, rules are back after it, and the bounded log names who it was",
        (
            "cli/test_ownership.py::test_nobody_else_changes_the_tables_while_the_agent_runs",
            "agent/test_drift.py::test_a_storm_is_told_a_few_times_and_then_counted",
        ),
    ),
    Row(
        2,
        "somebody edits our tables",
        "each edit is noticed, repaired, and told with the exact object",
        (
            "nftables/test_mirror.py::test_a_foreign_edit_is_taken_over_named_and_repaired",
            "nftables/test_diff.py::test_a_damaged_table_is_repaired",
            "model/test_model.py::test_whatever_happens_in_whatever_order_the_kernel_equals_the_plan",
        ),
    ),
    Row(
        3,
        "a firewall reloads",
        "nothing of ours changes",
        ("nftables/test_backend_kernel.py::test_tables_of_others_stay_as_they_are",),
        "firewalld itself is not started: what it does to others is played with its commands",
    ),
    Row(4, "the agent is killed around a commit", "the kernel has the state before or after a transaction"),
    Row(
        5,
        "the agent is killed after a commit, before stale flows are dropped",
        "the next one converges, and drops the flows of endpoints that went",
        (
            "netns/test_cases.py::test_packets_go_where_the_case_says",
            "agent/test_loop.py::test_after_a_failure_stale_flows_are_still_dropped_and_only_once",
        ),
    ),
    Row(
        6,
        "two agents",
        "one works, the other ends with exit code 9 and says who holds it",
        (
            "agent/test_presence.py::test_the_second_agent_is_told_who_the_first_one_is",
            "cli/test_ownership.py::test_looking_is_allowed_while_an_agent_runs_and_changing_is_not",
        ),
    ),
    Row(
        7,
        "kube-proxy still runs, or has left something",
        "neither touches the other's; `cleanup` removes what was left",
        ("iptables/test_kube_proxy.py::test_chains_and_jumps_go_and_those_of_others_stay",),
    ),
    Row(
        8,
        "others commit between our reading and our writing",
        "what depends on a reading is refused as stale and tried again, a bounded number of times, and lands",
        (
            "nftables/test_backend_kernel.py::test_a_neighbour_that_never_rests_does_not_keep_a_commit_from_landing",
            "nftables/test_backend_kernel.py::test_a_transaction_for_another_generation_is_refused_as_a_whole",
        ),
    ),
    Row(
        9,
        "listings are interrupted",
        "they are repeated; no drift is seen where there is none",
        (
            "nftables/test_netlink.py::test_a_dump_that_was_disturbed_is_repeated_until_it_is_whole",
            "test_conntrack.py::test_an_interrupted_listing_is_repeated",
        ),
    ),
    Row(
        10,
        "the kernel's notices are lost (ENOBUFS)",
        "everything is read anew, nothing else",
        ("nftables/test_mirror.py::test_lost_notices_mean_to_read_everything",),
    ),
    Row(
        11,
        "a transaction does not fit into the send buffer",
        "it goes in safe pieces",
        (
            "nftables/test_backend_kernel.py::test_without_privilege_sixty_thousand_endpoints_come_in_pieces_and_end_in_the_same_state",
        ),
    ),
    Row(
        12,
        "a chain that is to go is still referred to (EBUSY)",
        "the order avoids it, and what others refer to is named",
        (
            "nftables/test_backend_kernel.py::test_a_chain_in_use_by_somebody_is_named_and_then_taken_from_him",
            "nftables/test_transaction.py::test_chains_go_after_the_elements_that_led_to_them",
        ),
    ),
    Row(
        13,
        "ranges that overlap, addresses that come twice (EEXIST)",
        "ranges are merged, duplicates have one winner",
        (
            "plan/test_prefixes.py::test_a_list_of_networks_is_written_in_its_shortest_form",
            "plan/test_services.py::test_an_address_claimed_twice_by_one_service_is_one_frontend",
        ),
    ),
    Row(
        14,
        "no memory in the kernel, a set that is full",
        "the old rules stay, no Service is blamed; sets grow before they are full",
        (
            "nftables/test_capacity.py::test_a_set_that_is_outgrown_is_made_anew_with_its_table_in_one_transaction",
            "nftables/test_culprits.py::test_what_the_kernel_refuses_for_want_of_memory_is_nobodys_fault",
            "nftables/test_culprits.py::test_a_service_that_the_kernel_refuses_is_named_and_set_aside_and_all_others_are_committed",
        ),
    ),
    Row(
        15,
        "`nft` crashes, hangs, is absent or prints garbage",
        "mode nftables starts no program; mode iptables survives what its programs do",
        (
            "iptables/test_tools.py::test_a_program_that_hangs_is_killed",
            "iptables/test_tools.py::test_a_program_that_dies_is_an_error",
            "iptables/test_tools.py::test_garbage_from_a_program_is_no_state_of_the_kernel",
        ),
    ),
    Row(
        16,
        "the kernel lacks a feature",
        "exit code 5 and the option's name; without owners of tables, drift repair instead",
    ),
    Row(
        17,
        "the xtables lock is held for ever",
        "it is waited for in bounds, the holder is named",
        (
            "iptables/test_lock.py::test_a_lock_held_too_long_is_an_error_that_names_who_has_it",
            "iptables/test_backend.py::test_a_lock_held_by_another_process_delays_and_forgets_nothing",
        ),
    ),
    Row(
        18,
        "rules of legacy and of nf_tables side by side",
        "one is chosen, once, and the mixture is told",
        (
            "iptables/test_variant.py::test_it_is_chosen_once",
            "iptables/test_variant.py::test_a_mixture_names_the_commands_that_show_it",
        ),
    ),
    Row(
        19,
        "a table that iptables calls incompatible",
        "it harms nobody, and is named",
        (
            "iptables/test_tools.py::test_rules_of_nft_in_a_table_of_iptables_harm_nobody",
            "iptables/test_readback.py::test_a_table_with_rules_of_nft_is_named",
        ),
    ),
    Row(
        20,
        "410 Gone at any moment and in any form",
        "listed anew, no deletion is missed",
        (
            "source/api/test_reflector_watches.py::test_gone_lists_anew",
            "source/api/test_api_source.py::test_a_history_that_was_compacted_is_listed_anew",
            "agent/test_live.py::test_rules_stay_right_through",
        ),
    ),
    Row(
        21,
        "resource versions that are too large, go back, or are no numbers",
        "the rules follow the API server, without a spin",
        (
            "source/api/test_reflector_watches.py::test_too_large_again_and_again_is_not_a_spin",
            "agent/test_live.py::test_a_restored_backup_is_followed_back",
            "source/api/test_reflector_watches.py::test_a_version_that_is_no_number_is_followed_without_comparing",
        ),
    ),
    Row(
        22,
        "half-open connections",
        "found by the read deadline",
        ("agent/test_live.py::test_half_open_connections_are_found_by_the_read_deadline",),
    ),
    Row(
        23,
        "a partition, with churn",
        f"{_STATIC}; afterwards the rules are exactly right",
        (
            "agent/test_live.py::test_a_server_that_was_away_for_seconds",
            "agent/test_live.py::test_without_an_api_server_rules_stay_and_the_agent_says_how_stale_they_are",
        ),
    ),
    Row(
        24,
        "slow, cut, giant or compressed answers",
        "given up in bounds and asked again",
        (
            "source/api/test_reflector_lists.py::test_an_answer_that_dribbles_is_given_up",
            "source/api/test_reflector_lists.py::test_a_compressed_answer_is_refused_unread",
            "source/api/test_reflector_watches.py::test_a_giant_line_is_not_kept",
            "source/api/test_connection.py::test_a_truncated_body_is_an_error",
        ),
    ),
    Row(
        25,
        "429, 500, 401, 403; rotated tokens, authorities, kubeconfigs",
        "back-off with jitter; credentials are read again",
        (
            "source/api/test_reflector_watches.py::test_the_back_off_grows_slowly_is_bounded_and_random",
            "source/api/test_reflector_watches.py::test_a_refused_credential_is_loaded_anew",
            "source/api/test_connection.py::test_a_token_file_that_is_rotated_is_read_again",
        ),
    ),
    Row(
        26,
        "events out of order, twice, or missing",
        "the state equals the list in the end",
        (
            "source/test_store.py::test_any_events_end_in_the_same_store_as_the_final_list",
            "source/api/test_api_source.py::test_any_mixture_of_changes_and_faults_ends_right",
        ),
    ),
    Row(
        27,
        "slices before their Service, without one, or with the same endpoint twice",
        "each endpoint once, as soon as there is a Service",
        (
            "source/test_store.py::test_a_slice_may_come_before_its_service",
            "plan/test_large_services.py::test_an_endpoint_in_two_slices_counts_once_and_stays_when_one_of_them_goes",
        ),
    ),
    Row(
        28,
        "an address or node port claimed twice",
        "the older Service has it, on every node the same",
        (
            "netns/test_cases.py::test_packets_go_where_the_case_says",
            "agent/test_live_settings.py::test_a_conflict_is_in_the_log_and_an_event_until_it_ends",
        ),
    ),
    Row(
        29,
        "malformed objects",
        "set aside with the field at fault; everybody else is served",
        (
            "source/test_decode_fuzz.py::test_any_change_of_a_good_object_gives_an_object_or_a_bad_object",
            "agent/test_live.py::test_a_bad_version_of_an_object_leaves_the_last_good_one_in_force",
        ),
    ),
    Row(
        30,
        "hostile names and annotations",
        "never in a ruleset, a log line or a terminal as they are",
        (
            "cli/test_commands.py::test_names_with_escape_sequences_never_reach_the_terminal",
            "iptables/test_text.py::test_a_comment_is_one_harmless_word_whatever_the_name",
            "agent/test_drift.py::test_hostile_names_are_shown_and_not_obeyed",
        ),
    ),
    Row(
        31,
        "very many source ranges, overlapping, 0.0.0.0/0",
        "merged to as few as there can be",
        (
            "plan/test_prefixes.py::test_the_form_is_that_of_the_standard_library",
            "nftables/test_walk.py::test_an_element_of_a_set_of_ranges_holds_from_its_first_to_its_last_source",
        ),
    ),
    Row(
        32,
        "one Service with 10,000 endpoints; 10,000 Services with none",
        "one transaction each; a small change is a few operations",
        ("nftables/test_lower.py::test_one_endpoint_of_5000_is_six_element_operations_at_most",),
    ),
    Row(
        33,
        "thousands of changes a second, endpoints that flap",
        "what comes in crowds is committed together; exactly right in the end",
        (
            "agent/test_loop.py::test_what_comes_in_crowds_is_committed_together",
            "agent/test_live_churn.py::test_a_day_of_churn_leaves_memory_flat_and_rules_right",
        ),
    ),
    Row(34, "nearly all is deleted and made again at once", "those that stay are served all the time"),
    Row(
        35, "the connection tracking table is full", "the agent lives and follows; nothing else can be done by a proxy"
    ),
    Row(
        36,
        "a million flows to look through",
        "they are read piece by piece, and never kept",
        (
            "netns/test_conntrack_kernel.py::test_many_rules_and_many_flows_come_to_the_same_result",
            "test_conntrack.py::test_many_rules_cost_one_listing",
        ),
        "as many as the table takes, by default 262,144 (`nf_conntrack_max` is for all namespaces together)",
    ),
    Row(
        37,
        "UDP to a Service that lost its endpoints, was deleted, or made anew",
        "the flows of endpoints that went are dropped",
        (
            "netns/test_cases.py::test_packets_go_where_the_case_says",
            "netns/test_conntrack_kernel.py::test_a_deleted_service_leaves_no_flow_in_either_family",
        ),
        "cases/conntrack-*",
    ),
    Row(38, "clocks jump, or have another epoch", "timers go by the monotonic clock; no metric is negative"),
    Row(39, "the agent is stopped, or hardly gets a processor", "late, and exactly right; nothing is lost"),
    Row(
        40,
        "no descriptors, no memory, killed for want of it",
        f"{_STATIC}; a restart is right",
        ("agent/test_health_server.py::test_without_descriptors_it_turns_clients_away_and_recovers",),
        "that the kernel kills it is a SIGKILL: rows 4 and 5",
    ),
    Row(
        41,
        "disk full, read-only directories, a log that cannot be written, no /proc/sys",
        "it goes on from memory",
        ("iptables/test_variant.py::test_where_nothing_can_be_recorded_it_is_no_error",),
        "mode nftables writes no file; mode iptables notes its variant, and goes on when it cannot",
    ),
    Row(
        42,
        "addresses, links, routes of the host come and go; its namespace loses its name",
        "node ports follow; the agent stays",
        ("agent/test_live.py::test_health_check_node_ports_follow_the_addresses_of_the_host_by_the_kernels_notice",),
    ),
    Row(
        43,
        "the Node changes, is deleted, or has another name",
        "planned anew; a deleted Node leaves the last one in force",
        (
            "agent/test_live.py::test_a_node_that_comes_late_and_one_that_is_deleted",
            "netns/test_cases.py::test_packets_go_where_the_case_says",
        ),
        "cases/topology-node-moves, cases/node-changes-*",
    ),
    Row(44, "tables of another version's layout", "taken over in a single transaction"),
    Row(
        45,
        "tables that were edited while no agent ran",
        "verified when they are adopted; zero operations if nothing differs",
        ("cli/test_ownership.py::test_an_orphan_that_was_edited_is_put_right_by_who_adopts_it",),
    ),
    Row(
        46,
        "the mode changes between nftables and iptables under traffic",
        "no connection is lost, nothing of the other mode stays",
        ("netns/test_traffic.py::test_changing_modes_under_load_loses_no_connection",),
    ),
    Row(
        47,
        "signals by the thousand, and in the middle of things",
        "exit code 0 on SIGTERM, whole rules; reloads are coalesced",
        (
            "agent/test_live.py::test_signals_before_it_runs_are_heard",
            "agent/test_loop.py::test_it_stops_at_once_whatever_it_waits_for",
        ),
    ),
    Row(
        48,
        "floods and slow clients at the health and metrics ports",
        "everybody else is answered",
        (
            "agent/test_health_server.py::test_idle_connections_by_the_hundred_keep_nobody_out",
            "agent/test_health_server.py::test_who_dawdles_is_cut_off_in_time",
            "agent/test_health_server.py::test_one_flooded_listener_does_not_starve_another",
        ),
    ),
    Row(
        49,
        "configuration that is invalid, half-written, gone, or a swapped symlink",
        "refused with its line, the old one holds; the next good one is taken",
        (
            "agent/test_reloading.py::test_a_wrong_file_is_refused_line_by_line",
            "agent/test_live.py::test_sighup_with_a_bad_configuration_keeps_the_old_one_and_goes_on",
        ),
    ),
    Row(
        50,
        "no CAP_NET_ADMIN, or only in a user namespace",
        "exit code 4 and one clear line; in a user namespace it works",
        (
            "cli/test_commands.py::test_without_privilege_there_is_one_clear_line_and_exit_code_4",
            "deploy/test_rootfs.py::test_without_its_capability_it_says_so_and_ends_with_4",
        ),
    ),
)


def listing() -> str:
    """Each drill: name, rows, whether it is in the ordinary tests, and what it promises."""
    lines = []
    for drill in drills.DRILLS.values():
        rows = ",".join(map(str, drill.rows))
        lines.append(f"{drill.name:<20} {rows:<8} {'also in pytest' if drill.quick else '':<15} {drill.promise}")
    return "\n".join(lines)


def table() -> str:
    """The table of docs/chaos.md."""
    lines = ["| row | what goes wrong | what must hold | drills | tests |", "|---|---|---|---|---|"]
    lines += map(_line, ROWS)
    return "\n".join(lines)


def _line(row: Row) -> str:
    held = row.holds + (f" ({row.remark})" if row.remark else "")
    ours = ", ".join(f"`{drill.name}`" for drill in drills.DRILLS.values() if row.number in drill.rows)
    return f"| {row.number} | {row.name} | {held} | {ours} | {'<br>'.join(_tests(row))} |"


def _tests(row: Row) -> Iterator[str]:
    for test in row.tests:
        path, _, name = test.partition("::")
        yield f"`{path}`: {name.removeprefix('test_').replace('_', ' ')}"
