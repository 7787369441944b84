# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""host_info on the controller: it remembers, and compares the clocks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.edgesec.nanomq.plugins.action import host_info as action
from hypothesis import given
from hypothesis import strategies as st

NOW = 1900000000.0
TIMES = st.floats(-1e10, 1e12)


@pytest.fixture
def ask(monkeypatch):
    """ask(host's clock, takes=seconds, known=answer, **options): the result, and how often the host was asked."""

    def run(told=NOW, *, takes=0.0, known=None, **options):
        clock, runs = [NOW], []

        def execute(module_name, module_args, task_vars):
            runs.append(module_args)
            clock[0] += takes
            return {"changed": False, "time": told, "os_id": "debian"}

        task = SimpleNamespace(args=options, check_mode=False, async_val=0, action="host_info")
        plugin = action.ActionModule(
            task, SimpleNamespace(_shell=SimpleNamespace(tmpdir="/tmp/x")), None, None, None, None
        )
        monkeypatch.setattr(plugin, "_execute_module", execute)
        monkeypatch.setattr(action.time, "time", lambda: clock[0])
        result = plugin.run(task_vars={"nanomq_host": known} if known else {})
        return {"failed": False, **result}, len(runs)

    return run


@pytest.mark.parametrize(
    ("told", "takes", "offset"),
    [
        (NOW, 0, 0),
        (NOW + 3, 5, 0),
        (NOW + 5, 5, 0),
        (NOW + 7, 5, 2),
        (NOW - 2, 5, -2),
        (0, 5, -NOW),
    ],
)
def test_what_the_connection_takes_is_no_difference(ask, told, takes, offset):
    assert ask(told, takes=takes)[0]["clock_offset"] == offset


@pytest.mark.parametrize("told", [0.0, 12.5, NOW - 301, NOW + 301, NOW + 10 * 366 * 86400, 1e15, -1e15])
def test_a_clock_that_is_wrong_is_refused(ask, told):
    result, runs = ask(told, clock_tolerance="300s")
    assert result["failed"]
    assert runs == 1
    for words in (
        "behind the controller's" if told < NOW else "ahead of the controller's",
        f"({action.show(NOW)})",
        action.show(told),
        "300 s are tolerated (nanomq_pki_clock_tolerance)",
        "Nothing was changed",
    ):
        assert words in result["msg"]


@pytest.mark.parametrize(("told", "takes"), [(NOW - 300, 0), (NOW + 300, 0), (NOW + 900, 600), (NOW - 299, 600)])
def test_a_clock_within_the_tolerance_is_none_of_our_business(ask, told, takes):
    result, _runs = ask(told, takes=takes, clock_tolerance="5m")
    assert not result["failed"]


def test_without_a_tolerance_nothing_is_compared(ask):
    result, _runs = ask(0)
    assert not result["failed"]
    assert result["clock_offset"] == -NOW


def test_what_was_told_before_is_compared_without_asking_again(ask):
    known = {**ask(0)[0], "asked": ""}
    result, runs = ask(clock_tolerance="300s", known=known)
    assert (runs, result["failed"]) == (0, True)
    assert "1970-01-01T00:00:00Z" in result["msg"]
    assert action.show(NOW) in result["msg"]
    fine = {**ask(NOW)[0], "asked": ""}
    result, runs = ask(clock_tolerance="300s", known=fine)
    assert (runs, result["failed"], result["os_id"]) == (0, False, "debian")


@pytest.mark.parametrize("text", ["soon", "300", "5 minutes"])
def test_a_tolerance_that_is_none_is_refused_before_the_host_is_asked(ask, text):
    with pytest.raises(AnsibleActionFail, match="nanomq_pki_clock_tolerance"):
        ask(clock_tolerance=text)


@given(before=TIMES, told=TIMES, took=st.floats(0, 1e6))
def test_the_offset_is_the_least_that_explains_what_was_told(before, told, took):
    after = before + took
    offset = action.clock_offset(before, told, after)
    if before <= told <= after:
        assert offset == 0
    else:
        assert offset == (told - after if told > after else told - before)
    assert not action.clock_problem(told, offset, abs(offset))
