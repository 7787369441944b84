# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Changes that go wrong. The broker serves the old configuration or the new one, whole, and the run says why."""

from __future__ import annotations

import time

import pytest
import scenario
from scenario import USERS, eventually, harden

#: Never a password of the hosts, so that a login tells which configuration is in force.
NEW_USERS = {**USERS, "operator": "another-operator-password"}


def in_force(client, broker) -> str:
    """Which configuration answers on the socket: "old", "new", or what is wrong with it.

    The real broker at times aborts under quick TLS connections, and is back after the two seconds of its unit. So where
    neither password gets in, they are tried again; both, or a stranger, are never taken for chance.
    """
    for _attempt in range(6):
        old = client.publish(broker.ipv4, user="operator", password=USERS["operator"])
        new = client.publish(broker.ipv4, user="operator", password=NEW_USERS["operator"])
        if old or new:
            break
        time.sleep(1)
    stranger = client.publish(broker.ipv4, user="nobody", password="whatever")
    anonymous = client.publish(broker.ipv4, user=None, password=None)
    if stranger or anonymous or old == new:
        return f"old={old} new={new} stranger={stranger} anonymous={anonymous}"
    return "old" if old else "new"


def leftovers(broker) -> str:
    return broker.check_output(
        "find /etc /usr/local /var/lib -xdev '(' -name '.*.new' -o -name '.*.old' -o -name record.json ')' 2>/dev/null"
    )


def assert_as_before(client, broker, digest: str) -> None:
    assert in_force(client, broker) == "old"
    assert scenario.conf_digest(broker) == digest
    assert leftovers(broker) == ""
    assert eventually(lambda: broker.service("nanomq").is_running)


@pytest.fixture
def digest(client, broker):
    """The host before the change; whatever a failed test leaves, the next finds the host hardened again."""
    before = scenario.conf_digest(broker)
    yield before
    if scenario.conf_digest(broker) != before or leftovers(broker):
        run = harden(hosts=broker.name)
        assert run.status == 0, run.output


@pytest.fixture
def taken_port(broker):
    """A port that is free in the validation's own network, and taken on the host: only the probe can see it."""
    script = "import socket, time; s = socket.create_server(('0.0.0.0', 9883)); time.sleep(300)"
    broker.check_output("systemd-run --quiet --collect --unit=taken /usr/bin/python3 -c %s", script)
    yield 9883
    broker.check_output("systemctl stop taken.service")


def test_parses_but_fails_its_probe(client, broker, digest, taken_port):
    """And the failure brings the end of the journal, which holds the broker's own reason."""
    run = harden(hosts=broker.name, nanomq_broker_mqtt_port=taken_port, nanomq_broker_users=NEW_USERS)
    assert run.status != 0
    assert "what had been changed was put back" in run.flat(), run.output
    assert f"does not listen on 0.0.0.0:{taken_port}" in run.flat() or "is not running" in run.flat()
    assert "ddress" in run.output.partition("journal:")[2], run.output
    assert_as_before(client, broker, digest)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("listeners.ssl {\n  bind = \n", "syntax error"),
        ("", "syntax error"),
        (
            'http_server {\n  port = 8081\n  ip_addr = "127.0.0.1"\n}\nlog {\n  to = []\n}\n',
            "empty array: the broker crashes",
        ),
    ],
    ids=["syntax error", "empty", "kills the broker"],
)
def test_does_not_parse(client, broker, digest, text, complaint):
    run = harden(hosts=broker.name, __nanomq_broker_conf_text=text)
    assert run.status != 0
    assert "validate" in run.flat(), run.output
    assert complaint in run.flat(), run.output
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
    broker.check_output("openssl ecparam -name prime256v1 -genkey -noout -out /etc/nanomq/other.key")
    broker.check_output("chgrp nanomq /etc/nanomq/other.key && chmod 640 /etc/nanomq/other.key")
    run = harden(hosts=broker.name, nanomq_broker_tls_key_path="/etc/nanomq/other.key")
    assert run.status != 0
    assert "do not make a pair" in run.flat()
    assert "nanomq_broker_tls_key_path" in run.flat()
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

#: An interpreter that keeps what it is given to run, which is the module with its arguments, as it came by ssh.
CAPTURE = """#!/bin/sh
payload=$(mktemp /run/payload.XXXXXX)
cat > "$payload"
if grep -q modules.transaction "$payload" && grep -q sysusers.d/nanomq.conf "$payload"; then
    mv "$payload" /root/payload
    payload=/root/payload
fi
exec /usr/bin/python3 "$@" < "$payload"
"""
#: Seconds for which a captured payload is used: the token in it expires.
FRESH = 240


class Payloads:
    """The module as the controller sends it, for the old users and for the new, to be run again on the host."""

    def __init__(self, broker):
        self.broker = broker
        self.since = 0.0
        broker.check_output("printf %%s %s > /root/capture && chmod +x /root/capture", CAPTURE)

    def refresh(self) -> None:
        """Capture both, the old one last: it is what is in force then."""
        for name, users in (("new", NEW_USERS), ("old", USERS)):
            run = harden(hosts=self.broker.name, interpreter="/root/capture", nanomq_broker_users=users)
            assert run.status == 0, run.output
            self.broker.check_output(f"mv /root/payload /root/payload-{name}")
        self.since = time.monotonic()

    def run(self, name: str, call: str = "", number: int = 0) -> bool:
        """Run one; with `call`, it is killed at its nth system call of that kind. Whether it came to its end."""
        python = "/usr/bin/python3"
        if call:
            kill = f"-e trace={call} -e inject={call}:signal=KILL:when={number}"
            python = f"strace -qq -o /dev/null {kill} {python}"
        done = self.broker.run(f"{python} < /root/payload-{name}")
        return done.rc == 0 and '"failed": true' not in done.stdout


@pytest.fixture
def payloads(broker, digest):
    return Payloads(broker)


#: Where it is killed. The many calls of some kinds are shared out between the hosts; of the syncs, which change nothing
#: that another process sees, it is every third (tests/unit kills at every one).
KILLS = [
    *(("bookworm", call) for call in ("rename", "unlink", "fsync")),
    *(("trixie", call) for call in ("rename", "unlink", "linkat", "vfork,clone,clone3")),
]


@pytest.mark.parametrize(("broker", "call"), KILLS, indirect=["broker"])
def test_killed_at_every_step(client, broker, digest, payloads, call):
    """Until the run survives: killed, the socket shows the old or the new set whole; the next run ends in the new."""
    killed = 0
    before, after = "old", "new"
    for number in range(1, 100, 3 if call == "fsync" else 1):
        if time.monotonic() - payloads.since > FRESH:
            payloads.refresh()
            before, after = "old", "new"
        survived = payloads.run(after, call, number)
        assert in_force(client, broker) in ([after] if survived else [before, after]), (call, number)
        if survived:
            break
        killed += 1
        assert payloads.run(after), (call, number)
        assert in_force(client, broker) == after, (call, number)
        assert leftovers(broker) == "", (call, number)
        before, after = after, before
    else:
        pytest.fail(f"the run never survived {call}")
    print(f"{broker.name}: killed at each of {killed} calls of {call}")
    assert killed >= 1
    payloads.refresh()


def killed_while_activating(broker, payloads) -> None:
    """Leave a host with a transaction cut after the swap: files new, and the record open."""
    payloads.refresh()
    record = "/var/lib/edgesec-nanomq/broker/record.json"
    for number in range(1, 60):
        assert not payloads.run("new", "vfork,clone,clone3", number), (
            "no run was killed in the middle of the activation"
        )
        if broker.file(record).exists and '"phase": "activating"' in broker.check_output(f"cat {record}"):
            return
        assert payloads.run("old")


def test_the_host_undoes_a_dead_run_by_itself(client, broker, digest, payloads):
    """The timer is armed and waits three minutes; here its service is started at once."""
    killed_while_activating(broker, payloads)
    timers = broker.check_output("systemctl list-units --plain --no-legend --type=timer 'edgesec-nanomq-undo-broker-*'")
    name = timers.split()[0]
    assert name.endswith(".timer")
    broker.check_output(f"systemctl start {name.removesuffix('.timer')}.service")
    assert eventually(lambda: not broker.file("/var/lib/edgesec-nanomq/broker/record.json").exists)
    assert_as_before(client, broker, digest)


def test_a_reboot_undoes_a_dead_run_before_the_broker_starts(client, broker, digest, payloads):
    killed_while_activating(broker, payloads)
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
