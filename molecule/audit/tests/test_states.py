# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an audit says of the shipped state, and of the same hosts after harden.yml."""

from __future__ import annotations

import json
import pathlib

import pytest
import scenario
from ansible_collections.edgesec.nanomq.plugins.module_utils._policy import RULES

FEWEST_FAILING = 25
SLOWEST = 3.0  # seconds on the host
MOST_MEMORY = 64.0  # MiB
#: Critical rules that the shipped state does not break, and why.
SOUND_AS_SHIPPED = {
    "NMQ-NET-013": "there is no bridge to NNG",
    "NMQ-NET-014": "its own sockets are files",
    "NMQ-AUT-003": "there is no list of users whose passwords could be checked",
    "NMQ-AUT-005": "REST asks for the shipped password",
    "NMQ-AUT-012": "REST takes no tokens",
    "NMQ-SVC-015": "the file can be read",
    "NMQ-VER-001": "the version is the one that is tested",
    "NMQ-VER-002": "the version is the one that is tested",
    "NMQ-ACL-010": "there is no front end",
    "NMQ-ACL-011": "there is no front end",
    "NMQ-ACL-012": "there is no front end",
}


def host(report: dict, name: str) -> dict:
    (found,) = [one for one in report["hosts"] if one["name"] == name]
    return found


def observed(found: dict) -> set[str]:
    return {finding["id"] for finding in found["findings"] if finding["observed"]}


def test_the_shipped_state_fails_widely_and_in_all_that_is_critical(broker, shipped):
    failing = observed(host(shipped, broker.name))
    print(f"{broker.name}: {len(failing)} rules fail")
    assert len(failing) >= FEWEST_FAILING
    critical = {rule.id for rule in RULES.values() if rule.severity == "critical"}
    assert critical - failing == set(SOUND_AS_SHIPPED)
    assert host(shipped, broker.name)["grade"] == "F"


def test_the_hardened_state_fails_in_nothing_but_its_version(broker, hardened, of_version):
    found = host(hardened, broker.name)
    assert {one["id"] for one in found["findings"]} == of_version
    judged = {rule.id for rule in RULES.values() if rule.config or rule.host or rule.outside}
    assert set(found["passed"]) == judged - of_version
    assert found["grade"] == ("D" if of_version else "A")


def test_an_audit_is_one_run_quick_and_small(brokers, outsider, tmp_path):
    run = scenario.play(str(pathlib.Path(__file__).parent / "look.yml"), out=str(tmp_path))
    assert run.status == 0, run.output
    for broker in brokers:
        cost = json.loads((tmp_path / broker.name).read_text())
        print(f"{broker.name}: {cost}")
        assert cost["seconds"] < SLOWEST
        assert cost["memory_mib"] < MOST_MEMORY


def test_a_whole_audit_costs_one_remote_run_a_host_and_one_on_the_other(brokers):
    run = scenario.play("edgesec.nanomq.audit", nanomq_audit_outside_host="outsider")
    assert run.status == 0, run.output
    hosts = [cost["host"] for cost in run.costs if cost["kind"] != "task"]
    outsider = scenario.inventory()["outsider"]["lab_ipv4"]
    assert sorted(hosts) == sorted([broker.ipv4 for broker in brokers] + [outsider] * len(brokers))


def test_an_audit_changes_nothing(broker):
    snapshot = broker.check_output("/var/tmp/snapshot | grep -v '^/root'")
    pid = broker.check_output("systemctl show -p MainPID --value nanomq")
    run = scenario.play("edgesec.nanomq.audit", hosts=broker.name)
    assert run.status == 0, run.output
    assert run.recap(broker.name)["changed"] == 0
    assert broker.check_output("/var/tmp/snapshot | grep -v '^/root'") == snapshot
    assert broker.check_output("systemctl show -p MainPID --value nanomq") == pid


@pytest.mark.parametrize(("fail_on", "status"), [("none", 0), ("critical", 2)])
def test_a_pipeline_is_told(broker, fail_on, status):
    """One setting is loosened: the run fails where it is told to, and says by what."""
    broker.check_output("sed -i.kept 's/allow_anonymous = false/allow_anonymous = true/' /etc/nanomq/nanomq.conf")
    try:
        run = scenario.play("edgesec.nanomq.audit", hosts=broker.name, nanomq_audit_fail_on=fail_on)
    finally:
        broker.check_output("mv /etc/nanomq/nanomq.conf.kept /etc/nanomq/nanomq.conf")
    assert run.status == status, run.output
    assert "NMQ-AUT-001" in run.output
