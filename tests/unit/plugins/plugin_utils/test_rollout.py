# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import unicodedata

import pytest
from ansible.errors import AnsibleFilterError
from ansible.utils.helpers import pct_to_int
from ansible_collections.edgesec.nanomq.plugins.filter import rollout as filters
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import rollout
from hypothesis import given
from hypothesis import strategies as st

HOSTS = [f"h{number}" for number in range(1, 11)]


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([1, "10%", "100%"], [1, "10%", "100%"]),
        ("1, 10%,100%", [1, "10%", "100%"]),
        ("100%", ["100%"]),
        (3, [3]),
        (["02", " 7% "], [2, "7%"]),
    ],
)
def test_sizes(given, meant):
    assert filters.rollout_batches(given) == meant


@pytest.mark.parametrize(
    "given",
    [0, "0%", "101%", -1, "ten", "", [], [1, ""], None, True, 1.5, [[1]], "1;2", "1%%", "% 1", {}, "٣", "9" * 10],
    ids=repr,
)
def test_what_is_no_size_is_named(given):
    with pytest.raises(AnsibleFilterError, match=r'^nanomq_rollout_batches: .* for example \[1, "10%", "100%"\]\.$'):
        filters.rollout_batches(given)


@pytest.mark.parametrize("given", [-1, 101, "much", None, True, "nan", [], "inf"], ids=repr)
def test_what_is_no_percentage_is_named(given):
    with pytest.raises(AnsibleFilterError, match=r"^nanomq_rollout_max_fail_percentage: .* from 0 to 100\.$"):
        filters.rollout_stop(HOSTS, HOSTS, HOSTS[:1], [1], given)


SIZES = st.lists(st.integers(1, 30) | st.integers(1, 100).map("{}%".format), min_size=1, max_size=4)


@given(SIZES, st.integers(0, 60))
def test_batches_end_where_those_of_ansible_do(sizes, hosts):
    """As PlaybookExecutor._get_serialized_batches cuts them."""
    left, expected, position = hosts, [], 0
    while left > 0:
        left -= pct_to_int(sizes[min(position, len(sizes) - 1)], hosts)
        expected.append(hosts - max(left, 0))
        position += 1
    assert rollout.ends(sizes, hosts) == expected


# --- when to stop -----------------------------------------------------------------------------------------------------


def stop(tried, lost, batch=3, sizes=(2, 3), tolerated=100):
    going = [host for host in HOSTS if host not in lost]
    return filters.rollout_stop(HOSTS, going, HOSTS[tried : tried + batch], list(sizes), tolerated)


def test_nothing_lost_goes_on():
    assert stop(0, [], batch=2) == stop(2, []) == stop(5, []) == stop(8, [], batch=2) == ""
    assert stop(2, [], tolerated=0) == ""


def test_one_of_the_first_batch_stops_the_rollout_whatever_is_tolerated():
    text = stop(2, ["h2"])
    assert text.startswith("The rollout stops: of the first batch h2 failed")
    assert text.endswith("The other 8 of 10 hosts were not touched.")


def test_later_batches_go_by_the_hosts_tried_so_far():
    assert stop(5, ["h3"]) == ""
    assert stop(5, ["h3"], tolerated=20) == ""
    assert "1 of 5 hosts failed" in stop(5, ["h3"], tolerated="19.5")
    assert "(0): h3. The other 5 of 10" in stop(5, ["h3"], tolerated=0)


def test_what_fails_in_the_batch_under_way_does_not_stop_it():
    """With the strategy free a host may be lost before another one asks."""
    assert stop(0, ["h1"], batch=2) == ""
    assert stop(2, ["h3", "h4"], tolerated=0) == ""
    assert filters.rollout_stop(HOSTS, HOSTS[3:], HOSTS[3:5], [3, 3], 0).startswith("The rollout stops")
    assert filters.rollout_stop(HOSTS, HOSTS[4:], [], [3, 3], 0) == ""


def test_batches_that_are_not_the_declared_ones_are_refused():
    """Set in the inventory, nanomq_rollout_batches makes no batches: all hosts would be the canary."""
    with pytest.raises(AnsibleFilterError, match="with --extra-vars"):
        filters.rollout_stop(HOSTS, HOSTS, HOSTS, [1, "100%"])
    with pytest.raises(AnsibleFilterError, match="with --extra-vars"):
        filters.rollout_stop(HOSTS, HOSTS, HOSTS[2:6], [2, 3])


@given(SIZES, st.sets(st.sampled_from(HOSTS)), st.integers(0, 100))
def test_the_rules_hold_for_any_fleet(sizes, lost, tolerated):
    turns = rollout.ends(sizes, len(HOSTS))
    for begin, end in zip([0, *turns], turns):
        tried = HOSTS[:begin]
        bad = [host for host in tried if host in lost]
        text = rollout.stop(HOSTS, [host for host in HOSTS if host not in bad], HOSTS[begin:end], sizes, tolerated)
        wanted = bool(bad) and (begin == turns[0] or len(bad) * 100 > tolerated * len(tried))
        assert bool(text) == wanted


# --- texts ------------------------------------------------------------------------------------------------------------

HOSTILE = "\x1b[31mred\r\n\u202egnp\u200b\x00\x9b2J\ud800\tx"


@given(st.text(st.characters(codec=None) | st.sampled_from(HOSTILE)))
def test_a_line_is_one_line_and_nothing_but_text(text):
    for line in (rollout.one_line(text), rollout.names([text]), rollout.cause({"msg": text}, text)):
        assert len(line) < 10 * rollout.LONGEST_CAUSE
        assert all(c == " " or unicodedata.category(c)[0] not in "CZ" for c in line), repr(line)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"msg": "broker: probe: it does not listen\njournal: secret"}, "broker: probe: it does not listen"),
        ({"msg": "\n \n  second   line "}, "second line"),
        ({}, "it is not said why"),
        ({"msg": None, "reason": "no such file"}, "no such file"),
        ({"censored": "hidden by no_log", "msg": "hunter2"}, "the output of this task is hidden"),
        ({"msg": "One or more items failed", "results": [{"msg": "fine"}, {"failed": True, "msg": "bad"}]}, "bad"),
        ({"msg": "One or more items failed", "results": "nonsense"}, "One or more items failed"),
        (
            {
                "msg": "No result",
                "module_stderr": "Traceback:\n" + "  File\n" * 999 + "OSError: [Errno 28] No space left on device\n",
            },
            "No result: OSError: [Errno 28] No space left on device",
        ),
        ({"msg": "No result", "module_stderr": ""}, "No result"),
        ({"censored": "hidden", "module_stderr": "hunter2"}, "the output of this task is hidden"),
        ({"msg": ["a", {"b": 1}]}, "['a', {'b': 1}]"),
        ({"msg": "x" * 5000}, "x" * 400 + " ..."),
    ],
)
def test_a_cause(result, said):
    assert rollout.cause(result, "Some task") == f"{said} [Some task]"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")],
)
def test_durations(seconds, said):
    assert rollout.duration(seconds) == said


def test_many_names_are_cut():
    assert rollout.names(HOSTS[:3]) == "h1, h2, h3"
    assert rollout.names(f"n{number}" for number in range(10_000)).endswith(", n19 and 9980 more")


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_each_host_comes_to_one_end():
    ledger, removed = rollout.Ledger(), []
    ledger.expect(HOSTS)
    ledger.watch(removed)
    for host in HOSTS[:7]:
        ledger.worked(host, changed=host == "h1")
    ledger.lost("h3", "undone", "why")
    ledger.lost("h4", "failed", "first")
    ledger.lost("h4", "unreachable", "second")
    ledger.lost("h8", "unreachable", "gone")
    removed += ["h3", "h4", "h5", "h8", "h9"]
    assert ledger.outcomes() == {
        "h1": "changed",
        "h2": "unchanged",
        "h3": "undone",
        "h4": "failed",
        "h5": "cut short",
        "h6": "unchanged",
        "h7": "unchanged",
        "h8": "unreachable",
        "h9": "not touched",
        "h10": "not touched",
    }
    assert ledger.summary(75) == [
        "rollout: 10 hosts in 1 min 15 s: 1 changed, 3 unchanged, 1 undone, 1 failed, 1 unreachable, 1 cut short, "
        "2 not touched",
        "  changed: h1",
        "  unchanged: h2, h6, h7",
        "  cut short: h5",
        "  not touched: h9, h10",
        "  h3: undone: why",
        "  h4: failed: first",
        "  h8: unreachable: gone",
    ]
    ledger.rescued("h4")
    ledger.rescued("h8")
    assert ledger.outcomes()["h4"] == "cut short"
    assert ledger.outcomes()["h8"] == "unreachable"


def test_an_empty_run_has_a_summary():
    assert rollout.Ledger().summary(0) == ["rollout: 0 hosts in 0 s: none"]
