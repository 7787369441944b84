# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a run with the front end costs."""

from __future__ import annotations

import collections

import front
import scenario

MOST_REMOTE_RUNS = 8
MOST_TASKS = 40


def test_the_steady_state_changes_nothing_and_is_cheap(callers):
    """With all front ends: the second run finds nothing to do, in few steps."""
    run = front.harden()
    assert run.status == 0, run.output
    runs = collections.Counter(cost["host"] for cost in run.costs if cost["kind"] != "task")
    tasks = collections.Counter(cost["host"] for cost in run.costs if cost["kind"] == "task")
    print(f"remote runs: {dict(runs)}; tasks: {dict(tasks)}")
    for name in scenario.broker_names():
        assert run.recap(name)["changed"] == 0, run.output
        assert 0 < runs[scenario.inventory()[name]["lab_ipv4"]] <= MOST_REMOTE_RUNS
        assert 0 < tasks[name] <= MOST_TASKS


def test_check_mode_changes_nothing(fleet):
    snapshot = (
        "find /etc/nginx /etc/nanomq /etc/edgesec-nanomq /etc/systemd/system /var/log/nginx "
        "-printf '%p %m %u %T@\\n' | grep -v '[.]log ' | sort; systemctl show -p MainPID nginx"
    )
    before = [broker.check_output(snapshot) for broker in fleet]
    run = front.harden("--check", "--diff", hosts=front.FLEET)
    assert run.status == 0, run.output
    assert [run.recap(broker.name)["changed"] for broker in fleet] == [0, 0], run.output
    assert [broker.check_output(snapshot) for broker in fleet] == before


def test_a_change_reloads_and_does_not_restart(fleet):
    """Connections of others outlive it: the master stays."""
    before = [front.main_pid(broker, "nginx") for broker in fleet]
    try:
        run = front.harden(hosts=front.FLEET, nanomq_nginx_burst=499)
        assert [run.recap(broker.name)["changed"] for broker in fleet] == [1, 1], run.output
        assert [front.main_pid(broker, "nginx") for broker in fleet] == before
    finally:
        run = front.harden(hosts=front.FLEET)
    assert [run.recap(broker.name)["changed"] for broker in fleet] == [1, 1], run.output
    assert [front.main_pid(broker, "nginx") for broker in fleet] == before


def test_tampering_is_found_and_repaired(fleet):
    """A rule that was loosened by hand, and a service that was stopped and disabled."""
    for broker in fleet:
        broker.check_output("sed -i 's/403/200/g' /etc/nginx/conf.d/edgesec-nanomq.conf")
        broker.check_output("systemctl reload nginx && sleep 1")
        assert front.statuses(broker, None, [("GET", "/api/v4/metrics")]) == [200]
    run = front.harden(hosts=front.FLEET)
    assert [run.recap(broker.name)["changed"] for broker in fleet] == [1, 1], run.output
    for broker in fleet:
        assert front.statuses(broker, None, [("GET", "/api/v4/metrics")]) == [403]
        broker.check_output("systemctl stop nginx && systemctl disable nginx")
    run = front.harden(hosts=front.FLEET)
    assert [run.recap(broker.name)["changed"] for broker in fleet] == [1, 1], run.output
    for broker in fleet:
        assert front.statuses(broker, "viewer", [("GET", "/api/v4/metrics")]) == [401]
        assert broker.check_output("systemctl is-enabled nginx") == "enabled"
