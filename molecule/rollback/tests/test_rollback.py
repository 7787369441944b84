# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Changes that go wrong. The broker serves the old configuration or the new one, whole, and the run says why."""

from __future__ import annotations

import pytest
import scenario
from scenario import USERS, harden

#: Never a password of the hosts, so that a login tells which configuration is in force.
NEW_USERS = {**USERS, "operator": "another-operator-password"}


def in_force(client, broker) -> str:
    """Which configuration answers on the socket: "old", "new", or what is wrong with it."""
    old = client.publish(broker.ipv4, user="operator", password=USERS["operator"])
    new = client.publish(broker.ipv4, user="operator", password=NEW_USERS["operator"])
    anybody = client.publish(broker.ipv4, user="nobody", password="whatever") or client.publish(
        broker.ipv4, user=None, password=None
    )
    if anybody or old == new:
        return f"old={old} new={new} anybody={anybody}"
    return "old" if old else "new"


def leftovers(broker) -> str:
    return broker.check_output(
        "find /etc /usr/local /var/lib -xdev '(' -name '.*.new' -o -name '.*.old' -o -name record.json ')' 2>/dev/null"
    )


def assert_as_before(client, broker, digest: str) -> None:
    assert in_force(client, broker) == "old"
    assert scenario.conf_digest(broker) == digest
    assert leftovers(broker) == ""
    assert broker.service("nanomq").is_running


@pytest.fixture
def digest(client, broker):
    """The host before the change; whatever a test leaves, the next finds it hardened again."""
    yield scenario.conf_digest(broker)
    run = harden(hosts=broker.name)
    assert run.status == 0, run.output


def test_parses_but_fails_its_probe(client, broker, digest):
    """The port is free in the validation's own network, and taken on the host: only the probe can see it."""
    run = harden(hosts=broker.name, nanomq_broker_mqtt_port=22, nanomq_broker_users=NEW_USERS)
    assert run.status != 0
    assert "what had been changed was put back" in run.flat()
    assert "does not listen on 0.0.0.0:22" in run.flat() or "is not running" in run.flat()
    assert_as_before(client, broker, digest)


def test_the_failure_brings_the_end_of_the_journal(client, broker, digest):
    run = harden(hosts=broker.name, nanomq_broker_mqtt_port=22)
    assert "journal:" in run.output
    assert "0.0.0.0:22" in run.output.partition("journal:")[2] or "ddress" in run.output.partition("journal:")[2]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("listeners.ssl {\n  bind = \n", "does not"),
        ("", "does not"),
        ('http_server {\n  port = 8081\n  ip_addr = "127.0.0.1"\n}\nlog {\n  to = []\n}\n', "does not work"),
    ],
    ids=["syntax error", "empty", "kills the broker"],
)
def test_does_not_parse(client, broker, digest, text, complaint):
    run = harden(hosts=broker.name, __nanomq_broker_conf_text=text)
    assert run.status != 0
    assert "validate" in run.flat() and complaint in run.flat(), run.output
    assert_as_before(client, broker, digest)


def test_a_value_that_the_broker_ignores(client, broker, digest):
    """A quoted boolean is legal to the broker's parser, and leaves the door open. Reading back shows it."""
    text = broker.check_output("cat /etc/nanomq/nanomq.conf").replace(
        "allow_anonymous = false", 'allow_anonymous = "false"'
    )
    run = harden(hosts=broker.name, __nanomq_broker_conf_text=text)
    assert run.status != 0
    assert "auth.allow_anonymous" in run.flat()
    assert_as_before(client, broker, digest)


def test_certificate_that_does_not_match_its_key(client, broker, digest):
    broker.check_output(
        "openssl ecparam -name prime256v1 -genkey -noout -out /etc/nanomq/other.key && chgrp nanomq /etc/nanomq/other.key && chmod 640 /etc/nanomq/other.key"
    )
    run = harden(hosts=broker.name, nanomq_broker_tls_key_path="/etc/nanomq/other.key")
    assert run.status != 0
    assert "do not make a pair" in run.flat() and "nanomq_broker_tls_key_path" in run.flat()
    assert_as_before(client, broker, digest)


def test_users_that_the_service_may_not_read(client, broker, digest):
    """The file with the users is root's alone. The broker would start with its defaults, open to everybody."""
    run = harden(hosts=broker.name, __nanomq_broker_conf_mode="0600", nanomq_broker_users=NEW_USERS)
    assert run.status != 0
    assert "validate" in run.flat()
    assert_as_before(client, broker, digest)


@pytest.mark.parametrize("directory", ["/etc/nanomq", "/var/lib/edgesec-nanomq"])
def test_full_disk(client, broker, digest, directory):
    """A file system without a byte left, holding what the directory held."""
    broker.check_output(
        f"mkdir -p /mnt/full && mount -t tmpfs -o size=1m tmpfs /mnt/full && cp -a {directory}/. /mnt/full/ && "
        f"chmod --reference={directory} /mnt/full && chown --reference={directory} /mnt/full && "
        f"mount --move /mnt/full {directory}"
    )
    try:
        broker.run(f"cat /dev/zero > {directory}/fill")
        run = harden(hosts=broker.name, nanomq_broker_users=NEW_USERS)
        assert run.status != 0
        assert "No space left" in run.flat(), run.output
        assert in_force(client, broker) == "old"
        broker.check_output(f"rm {directory}/fill")
        assert harden(hosts=broker.name).recap(broker.name)["changed"] == 0
    finally:
        broker.check_output(f"umount {directory}")
    assert_as_before(client, broker, digest)


# --- kill -9, at every system call that changes something

FAULTY = "/root/faulty-python"
#: Under strace the module dies of SIGKILL at its nth call of a kind. Other modules run as ever.
WRAPPER = """#!/bin/sh
payload=$(mktemp /run/payload.XXXXXX)
trap 'rm -f "$payload"' EXIT
cat > "$payload"
if grep -q 'plugins.modules.transaction' "$payload" && grep -q '"broker"' "$payload"; then
    strace -qq -o /dev/null -e trace={call} -e inject={call}:signal=KILL:when={number} /usr/bin/python3 "$@" < "$payload"
else
    /usr/bin/python3 "$@" < "$payload"
fi
"""


def killed_run(broker, call: str, number: int, users: dict):
    """A run whose transaction is killed at its nth call of a kind, if it makes that many."""
    broker.check_output("printf %%s %s > %s && chmod +x %s", WRAPPER.format(call=call, number=number), FAULTY, FAULTY)
    return harden(hosts=broker.name, nanomq_broker_users=users, ansible_python_interpreter=FAULTY)


def open_record(broker) -> bool:
    return broker.file("/var/lib/edgesec-nanomq/broker/record.json").exists


@pytest.mark.parametrize("call", ["rename", "linkat", "unlink", "vfork,clone,clone3"])
def test_killed_at_every_step(client, broker, digest, call):
    """Until the run survives: killed, the socket shows the old or the new set whole; the next run ends in the new."""
    killed = 0
    sides = [("old", USERS), ("new", NEW_USERS)]
    for number in range(1, 60):
        (before, _users), (after, wanted) = sides[number % 2 - 1], sides[number % 2]
        run = killed_run(broker, call, number, wanted)
        if run.status == 0:
            assert in_force(client, broker) == after
            break
        killed += 1
        assert in_force(client, broker) in (before, after), (call, number)
        following = harden(hosts=broker.name, nanomq_broker_users=wanted)
        assert following.status == 0, (call, number, following.output)
        assert in_force(client, broker) == after, (call, number)
        assert leftovers(broker) == "", (call, number)
    else:
        pytest.fail(f"the run never survived {call}")
    print(f"{broker.name}: killed at each of {killed} calls of {call}")
    assert killed >= 2


def killed_while_activating(broker) -> None:
    """Leave a host with a transaction cut after the swap: files new, and the record open."""
    for number in range(1, 40):
        run = killed_run(broker, "vfork,clone,clone3", number, NEW_USERS)
        if run.status == 0:
            pytest.fail("no run was killed in the middle of the activation")
        if open_record(broker) and '"phase": "activating"' in broker.check_output(
            "cat /var/lib/edgesec-nanomq/broker/record.json"
        ):
            return
        assert harden(hosts=broker.name).status == 0


def test_the_host_undoes_a_dead_run_by_itself(client, broker, digest):
    """The timer is armed and waits three minutes; here its service is started at once."""
    killed_while_activating(broker)
    timers = broker.check_output("systemctl list-units --plain --no-legend --type=timer 'edgesec-nanomq-undo-broker-*'")
    name = timers.split()[0]
    assert name.endswith(".timer")
    broker.check_output(f"systemctl start {name.removesuffix('.timer')}.service")
    assert_as_before(client, broker, digest)


def test_a_reboot_undoes_a_dead_run_before_the_broker_starts(client, broker, digest):
    killed_while_activating(broker)
    scenario.reboot(broker)
    assert_as_before(client, broker, digest)
    assert "the host restarted" in broker.check_output("cat /var/lib/edgesec-nanomq/broker/last.json")


def test_a_broker_that_is_down_is_started(client, broker, digest):
    broker.check_output("systemctl stop nanomq.service")
    run = harden(hosts=broker.name)
    assert run.status == 0, run.output
    assert run.recap(broker.name)["changed"] == 1
    assert_as_before(client, broker, digest)


def test_drift_is_set_right(client, broker, digest):
    broker.check_output(
        "chmod 0644 /etc/nanomq/nanomq.conf && chmod 0777 /etc/nanomq/jwt && systemctl disable --quiet nanomq.service"
    )
    run = harden("--diff", hosts=broker.name)
    assert run.status == 0, run.output
    assert run.recap(broker.name)["changed"] == 1
    assert_as_before(client, broker, digest)
    assert broker.file("/etc/nanomq/nanomq.conf").mode == 0o640
    assert broker.file("/etc/nanomq/jwt").mode == 0o750
    assert broker.service("nanomq").is_enabled
