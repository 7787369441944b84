# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Each rule is broken on a hardened host, and found; on the host as it was it is silent."""

from __future__ import annotations

import breaks
import pytest
import scenario
from ansible_collections.edgesec.nanomq.plugins.module_utils import _versions
from ansible_collections.edgesec.nanomq.plugins.module_utils._policy import RULES

BREAKS = {one["name"]: one for one in breaks.every()}
#: Broken elsewhere: what another host sees in test_outside.py, waivers and front ends by the unit tests.
ELSEWHERE = {rule.id for rule in RULES.values() if rule.outside or rule.front or rule.id.startswith("NMQ-WVR")}


def test_every_rule_is_broken_by_something():
    assert {one["rule"] for one in BREAKS.values()} == set(RULES) - ELSEWHERE


def test_the_hardened_host_breaks_none_that_its_version_does_not(broker, broken, of_version):
    assert broken[broker.name]["clean"] == {"findings": dict.fromkeys(of_version, True)}


def concerned(rule: str, broker) -> bool:
    """Whether the version of a host's broker can break a rule."""
    return rule != "NMQ-VER-006" or _versions.LOGINS.concerns(scenario.broker_version(broker))


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_found_and_nothing_critical_beside_it(broker, broken, of_version, name):
    one, seen = BREAKS[name], broken[broker.name][name]
    rule = one["rule"]
    assert "error" not in seen, seen["error"]
    assert seen["findings"].get(rule) is (one.get("observed", True) if concerned(rule, broker) else None), seen
    critical = {
        found for found, observed in seen["findings"].items() if observed and RULES[found].severity == "critical"
    }
    assert critical <= {rule, *one.get("also", [])}
    clean = dict.fromkeys(of_version, True)
    assert seen.get("after", clean) == clean
