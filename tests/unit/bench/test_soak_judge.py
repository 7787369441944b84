# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What bench/soak calls a fault, of all that it has recorded."""

from __future__ import annotations

import copy
import importlib.machinery
import importlib.util
from pathlib import Path

import pytest
import testbed

PROGRAM = Path(testbed.__file__).with_name("soak")

#: A run of a hundred seconds: renewal from 30 to 40, rotation from 60 to 70, a restart in each.
EVENTS = {
    "run": {"broker": "a broker", "minutes": 2},
    "acknowledged": {"p": [10.0, 20.0, 35.5, 80.0]},
    "received": {"s": {"p": [10.1, 20.1, None, 80.1]}},
    "subscribed": {"s": [[1.0, 35.0], [36.0, 65.0], [66.0, 100.0]]},
    "sessions": {"s": [[1.0, False], [36.0, False], [66.0, False]]},
    "served": [[1.0, 8883, "A"], [2.0, 8884, "A"], [50.0, 8883, "B"], [51.0, 8884, "B"]],
    "calls": [
        [10.0, 10.1, "valid", "old", 200],
        [11.0, 11.1, "expired", "old", 401],
        [12.0, 12.1, "forged", "old", 401],
        [65.0, 65.1, "valid", "new", 502],
        [80.0, 80.1, "valid", "new", 200],
        [81.0, 81.1, "valid", "old", 401],
        [82.0, 82.1, "forged", "new", 401],
    ],
    "counts": {},
    "notes": [],
    "issuers": ["old", "new"],
    "renewal": [30.0, 40.0],
    "rotation": [60.0, 70.0],
    "restarts": [[35.0, 35.2], [65.0, 65.2]],
    "aborts": 0,
}


@pytest.fixture(scope="module")
def soak():
    loader = importlib.machinery.SourceFileLoader("bench_soak", str(PROGRAM))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_soak", loader))
    loader.exec_module(module)
    return module


def test_a_run_in_which_only_the_known_was_lost_has_no_fault(soak):
    result = soak.judge(EVENTS)
    assert result["faults"] == []
    assert (result["acknowledged"], result["received"]) == (4, 3)
    assert result["lost"]["published after a restart, before the subscriber was back"] == 1
    assert "valid, old key: 401: 1" in soak.render({**result, "image": "bookworm"})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda events: events["received"]["s"]["p"].__setitem__(1, None), "1 acknowledged messages are lost"),
        (lambda events: events["acknowledged"]["p"].append(None), "never acknowledged"),
        (lambda events: events["served"].__setitem__(3, [51.0, 8884, "A"]), "stream: the certificate served"),
        (lambda events: events["served"].pop(), "stream: the certificate served"),
        (lambda events: events.__setitem__("issuers", ["old", "old"]), "the key for tokens is the same"),
        (lambda events: events["calls"].append([82.0, 82.1, "expired", "new", 200]), "a token was let in"),
        (lambda events: events["calls"].append([83.0, 83.1, "valid", "old", 200]), "a token was let in"),
        (lambda events: events["calls"].append([83.0, 83.1, "valid", "new", 0]), "no answer, and no restart near"),
        (lambda events: events["calls"].append([83.0, 83.1, "valid", "new", 401]), "status 401"),
        (lambda events: events["calls"].pop(), "not every kind of token was tried"),
        (lambda events: events["notes"].append("p: refused"), "p: refused"),
        (lambda events: events["acknowledged"].clear(), "nothing was acknowledged"),
    ],
)
def test_a_fault_is_found(soak, change, fault):
    events = copy.deepcopy(EVENTS)
    change(events)
    assert any(fault in found for found in soak.judge(events)["faults"])
