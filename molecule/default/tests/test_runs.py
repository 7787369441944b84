# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a run costs, what it changes, and what it says."""

from __future__ import annotations

import collections
import importlib.util
import pathlib

import pytest
import scenario
from scenario import HOSTS, USERS, broker_names, harden, pki

MOST_REMOTE_RUNS = 6
MOST_TASKS = 40


#: Mitogen has to be told where its strategies are.
MITOGEN = {
    "ANSIBLE_STRATEGY": "mitogen_linear",
    "ANSIBLE_STRATEGY_PLUGINS": str(
        pathlib.Path(importlib.util.find_spec("ansible_mitogen").origin).parent / "plugins/strategy"
    ),
}
FREE = {"ANSIBLE_STRATEGY": "ansible.builtin.free"}


def addresses() -> dict[str, str]:
    return {scenario.inventory()[name]["lab_ipv4"]: name for name in broker_names()}


@pytest.mark.parametrize("settings", [{}, FREE, MITOGEN], ids=["linear", "free", "mitogen"])
def test_the_steady_state_changes_nothing_and_is_cheap(settings):
    run = harden(settings=settings)
    assert run.status == 0, run.output
    runs = collections.Counter(cost["host"] for cost in run.costs if cost["kind"] != "task")
    tasks = collections.Counter(cost["host"] for cost in run.costs if cost["kind"] == "task")
    print(f"remote runs: {dict(runs)}; tasks: {dict(tasks)}")
    assert set(runs) == set(addresses())
    for address, name in addresses().items():
        assert run.recap(name)["changed"] == 0, run.output
        assert 0 < runs[address] <= MOST_REMOTE_RUNS
        assert 0 < tasks[name] <= MOST_TASKS


def snapshots(brokers) -> list[list[str]]:
    """Every file, rule and socket of each host, a line each."""
    return [broker.check_output("/var/tmp/snapshot").splitlines() for broker in brokers]


def differences(before: list[list[str]], after: list[list[str]]) -> set[str]:
    return {line for old, new in zip(before, after, strict=True) for line in set(old) ^ set(new)}


def test_check_mode_on_a_hardened_host_reports_nothing_and_changes_nothing(brokers):
    before = snapshots(brokers)
    run = harden("--check", "--diff")
    assert run.status == 0, run.output
    assert [run.recap(broker.name)["changed"] for broker in brokers] == [0, 0], run.output
    assert differences(before, snapshots(brokers)) == set()


def test_check_mode_shows_a_change_and_makes_none(brokers):
    before = snapshots(brokers)
    run = harden("--check", "--diff", nanomq_broker_log_level="info")
    assert run.status == 0, run.output
    assert [run.recap(broker.name)["changed"] for broker in brokers] == [1, 1]
    assert "+  level = info" in run.output.replace('"', "")
    # It stages and validates in the directories of the files, and takes all of it away again: only their times tell.
    directories = ("/etc/nanomq ", "/var/lib/edgesec-nanomq/broker ", "/var/lib/edgesec-nanomq/broker/generations ")
    assert {line for line in differences(before, snapshots(brokers)) if not line.startswith(directories)} == set()


def private_lines() -> set[str]:
    """Lines of the controller's private keys, as they are on the disk."""
    return {
        line for path in pki().rglob("*.key") for line in path.read_text().splitlines() if not line.startswith("-----")
    }


def test_no_secret_is_shown(brokers):
    """A whole run at -vvv --diff that changes every secret of the configuration, searched for the old and the new."""
    changed = {name: password + "-new" for name, password in USERS.items()}
    run = harden("-vvv", "--diff", nanomq_broker_users=changed)
    back = harden("-vvv", "--diff")
    assert run.status == 0, run.output
    assert back.status == 0, back.output
    assert [run.recap(broker.name)["changed"] for broker in brokers] == [1, 1]
    device_keys = [broker.check_output("cat /etc/nanomq/pki/server/current/key.pem") for broker in brokers]
    secrets = {
        *USERS.values(),
        *changed.values(),
        *(password.replace('"', '\\"') for password in USERS.values()),
        HOSTS["nanomq_pki_authority_passphrase"],
        HOSTS["nanomq_pki_jwt_passphrase"],
        *private_lines(),
        *(line for key in device_keys for line in key.splitlines()[1:-1]),
        "Bearer ey",
    }
    output = run.output + back.output
    assert len(output) > 10000  # it is the long output that was searched
    assert "nanomq.conf" in output
    logs = "".join(scenario.journal(broker) for broker in brokers)
    assert "Invoked with" in logs  # the modules log what they were called with, and that is searched too
    spellings = {spelt for secret in secrets for spelt in (secret, secret.replace("'", "''"), repr(secret)[1:-1])}
    assert not [spelt for spelt in spellings if spelt in output or spelt in logs]


@pytest.mark.parametrize(
    ("password", "complaint"),
    [
        ("back\\slash-in-it", "backslash"),
        ("line\nbreak-in-it", "line"),
        ('inject"\nallow_anonymous = true\nx = "', "line"),
        (12345678901, "string"),
    ],
)
def test_a_password_that_the_dialect_cannot_carry_is_refused_by_name(brokers, password, complaint):
    broker = brokers[0]
    before = scenario.conf_digest(broker)
    run = harden(hosts=broker.name, nanomq_broker_users={**USERS, "sensor": password})
    assert run.status != 0
    assert "auth.password.sensor" in run.flat()
    assert complaint in run.flat()
    assert str(password) not in run.output
    assert scenario.conf_digest(broker) == before


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"nanomq_broker_users": {}}, ["NMQ-", "nanomq_broker_users"]),
        ({"nanomq_broker_settings": {"auth": {"allow_anonymous": True}}}, ["NMQ-", "allow_anonymous"]),
        ({"nanomq_broker_settings": {"http_server": {"ip_addr": "0.0.0.0"}}}, ["NMQ-", "ip_addr"]),
        ({"nanomq_broker_settings": {"auth": {"allow_anonimous": False}}}, ["allow_anonimous", "allow_anonymous"]),
        ({"nanomq_broker_settings": {"mqtt": {"max_packet_size": "10 parsecs"}}}, ["mqtt.max_packet_size"]),
        ({"nanomq_broker_version": "0.22.10"}, ["0.22.10", "ip_addr"]),
        ({"nanomq_broker_version": "0.25.5"}, ["0.25.5"]),
    ],
)
def test_what_the_policy_forbids_is_refused_before_anything_is_touched(brokers, variables, words):
    broker = brokers[0]
    before = scenario.conf_digest(broker)
    run = harden(hosts=broker.name, **variables)
    assert run.status != 0
    assert all(word in run.flat() for word in words), run.output
    assert scenario.conf_digest(broker) == before
