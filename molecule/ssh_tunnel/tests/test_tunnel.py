# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tunnel lets through, and whom: asked from outside."""

from __future__ import annotations

import base64
import shlex
import time

import pytest
import scenario
from scenario import eventually
from tunnel import ACCOUNT, KEYS, OPTIONS, apply, rest, ssh


@pytest.fixture
def other(broker, brokers):
    return next(host for host in brokers if host.name != broker.name)


def test_rest_answers_through_the_tunnel(outsider, broker, callers):
    assert rest(outsider, "good", broker.ipv4) == "401"
    assert rest(outsider, "good", broker.ipv6) == "401"
    assert rest(outsider, "good", broker.ipv4, authorization=f"Bearer {scenario.token()}") == "200"


@pytest.mark.parametrize(
    ("key", "certificate", "status"),
    [
        ("here", "", "401"),
        ("stranger", "", ""),
        ("expired", "", ""),
        ("elsewhere", "", ""),
        ("certified", "", ""),
        ("certified", "right", "401"),
        ("certified", "principal", ""),
        ("certified", "late", ""),
        ("certified", "foreign", ""),
    ],
)
def test_who_gets_through(outsider, broker, callers, key, certificate, status):
    assert rest(outsider, key, broker.ipv4, certificate=certificate) == status


#: What must come to nothing, as shell. Each prints "hacked" where it works. $S is the command line of ssh.
STDIO = "(sleep 1) | timeout 8 $S -W {} 2>&1 | grep -q SSH-2.0 && echo hacked"
HELD = "timeout 4 $S -N -o ExitOnForwardFailure=yes {}; test $? = 124 && echo hacked"
ATTACKS = {
    "shell": "echo 'echo ha''cked' | timeout 8 $S",
    "command": "timeout 8 $S \"echo ha''cked\"",
    "command with a terminal": "timeout 8 $S -tt \"echo ha''cked\"",
    "sftp": 'rm -f /tmp/got; echo "get /etc/hostname /tmp/got" | timeout 8 sftp $O -b - $U; '
    "test -s /tmp/got && echo hacked",
    "scp": "rm -f /tmp/got; timeout 8 scp $O $U:/etc/hostname /tmp/got; test -s /tmp/got && echo hacked",
    "scp of old": "rm -f /tmp/got; timeout 8 scp -O $O $U:/etc/hostname /tmp/got; test -s /tmp/got && echo hacked",
    "forward to ssh of the host": STDIO.format("127.0.0.1:22"),
    "forward to ssh by IPv6": STDIO.format("'[::1]:22'"),
    "forward to a name": STDIO.format("localhost:22"),
    "forward to the address of the host": STDIO.format("$IP:22"),
    "forward to another host": STDIO.format("$OTHER:22"),
    "forward to another host by name": STDIO.format("$OTHERNAME:22"),
    "dynamic forward": "timeout 6 $S -N -D 28001 & sleep 1.5; curl -s -m 3 --http0.9 --socks5 127.0.0.1:28001 "
    "http://127.0.0.1:22 --output - | grep -aq SSH-2.0 && echo hacked; wait",
    "remote forward": HELD.format("-R 127.0.0.1:28002:127.0.0.1:22"),
    "remote forward to all": HELD.format("-R 0.0.0.0:28003:127.0.0.1:22"),
    "remote dynamic forward": HELD.format("-R 28004"),
    "remote forward of a unix socket": HELD.format("-R /tmp/hacked-$RANDOM.sock:127.0.0.1:22"),
    "forward to a unix socket": "timeout 6 $S -N -L 28005:/run/tests.sock & sleep 1.5; "
    "timeout 3 nc 127.0.0.1 28005 < /dev/null; wait",
    "agent": "eval $(ssh-agent) > /dev/null; ssh-add -q $KEYS/stranger; "
    "timeout 8 $S -A 'test -S \"$SSH_AUTH_SOCK\" && echo ha''cked'; kill $SSH_AGENT_PID",
    "password": "printf '#!/bin/sh\\necho wader\\n' > /tmp/askpass; chmod 755 /tmp/askpass; "
    "export SSH_ASKPASS=/tmp/askpass SSH_ASKPASS_REQUIRE=force; "
    "timeout 4 ssh -o BatchMode=no -o PubkeyAuthentication=no -N $O $U; "
    "test $? = 124 && echo hacked",
}
#: These cannot be shown to work with another account: the firewall, or what is not installed, stands before them.
ATTACKS_UNTRIED = {
    "forward to WSS of the broker": "(sleep 1) | timeout 8 $S -W 127.0.0.1:8086 && echo hacked",
    "forward to REST by IPv6": "(sleep 1) | timeout 8 $S -W '[::1]:8081' && echo hacked",
    "forward to REST by name": "(sleep 1) | timeout 8 $S -W localhost:8081 && echo hacked",
    "X11": "DISPLAY=:0 timeout 8 $S -X 'test -n \"$DISPLAY\" && echo ha''cked'",
    "environment": "timeout 8 $S -o SetEnv=LANG=hacked 'echo $LANG'",
}


def attack(outsider, broker, other, user: str, script: str) -> str:
    address = broker.ipv4
    names = {
        "S": ssh("good", address, user),
        "O": f"{OPTIONS} -i {KEYS}/good",
        "U": f"{user}@{address}",
        "IP": address,
        "OTHER": other.ipv4,
        "OTHERNAME": other.name,
        "KEYS": KEYS,
    }
    settings = "; ".join(f"{name}={shlex.quote(value)}" for name, value in names.items())
    return outsider.run("bash -c %s", f"{settings}; {script}; true").stdout


@pytest.fixture(scope="module")
def prepared(brokers, callers):
    """A socket for the attacks to reach, and a password that is right."""
    script = (
        "import os, socket\ns = socket.socket(socket.AF_UNIX); s.bind('/run/tests.sock')"
        "\nos.chmod('/run/tests.sock', 0o666)\ns.listen()\nwhile True: s.accept()[0].sendall(b'hacked')"
    )
    for host in brokers:
        host.run("systemctl stop tests-sock; rm -f /run/tests.sock")
        host.check_output("systemd-run --quiet --collect --unit=tests-sock /usr/bin/python3 -c %s", script)
        host.check_output(f'usermod --password "$(openssl passwd -6 wader)" {ACCOUNT}')
    yield
    for host in brokers:
        host.check_output(f"systemctl stop tests-sock; usermod --password '!*' {ACCOUNT}")


@pytest.mark.parametrize("what", ATTACKS)
def test_nothing_else_is_let_through(outsider, broker, other, prepared, what):
    # Somebody who may does get through: at once, or when the hosts have less to do.
    works = eventually(lambda: "hacked" in attack(outsider, broker, other, "wader", ATTACKS[what]), 30)
    assert works, "the attack itself does not work"
    assert "hacked" not in attack(outsider, broker, other, ACCOUNT, ATTACKS[what])


@pytest.mark.parametrize("what", ATTACKS_UNTRIED)
def test_nothing_more_is_let_through(outsider, broker, other, prepared, what):
    assert "hacked" not in attack(outsider, broker, other, ACCOUNT, ATTACKS_UNTRIED[what])
    assert rest(outsider, "good", broker.ipv4) == "401"


@pytest.mark.parametrize(("user", "reaches"), [(ACCOUNT, True), ("root", True), ("wader", False), ("nobody", False)])
def test_who_reaches_rest_on_loopback(broker, callers, user, reaches):
    ask = "curl -s -m 3 -o /dev/null -w '%{http_code}' http://127.0.0.1:8081/api/v4/brokers"
    group = broker.check_output(f"id -g {user}")
    out = broker.run(f"setpriv --reuid={user} --regid={group} --clear-groups {ask}").stdout
    assert out == ("401" if reaches else "000")


def test_sshd_does_for_others_what_it_did(broker, callers):
    for user in ("root", "nobody", "wader"):
        now = broker.check_output(f"sshd -T -C user={user},host=x,addr=10.0.0.1,laddr=10.0.0.2,lport=22")
        assert now == broker.check_output(f"cat /var/tmp/sshd-{user}")


def test_a_key_is_changed_and_who_holds_the_old_one_is_sent_away(outsider, brokers, callers, declared):
    public = declared["public"]
    keys = callers["nanomq_ssh_tunnel_keys"]
    both = apply(**{**callers, "nanomq_ssh_tunnel_keys": [*keys, public["next"]]})
    assert both.status == 0, both.output
    held = {}
    try:
        for broker in brokers:
            assert [rest(outsider, key, broker.ipv4) for key in ("good", "next")] == ["401", "401"]
            command = ssh("good", broker.ipv4) + " -N"
            held[broker.name] = outsider.check_output(f"nohup {command} > /dev/null 2>&1 & echo $!")
        assert eventually(lambda: all(b.run(f"pgrep -u {ACCOUNT}").rc == 0 for b in brokers), 5)
        assert all(outsider.run(f"kill -0 {pid}").rc == 0 for pid in held.values())
        only = apply(**{**callers, "nanomq_ssh_tunnel_keys": [public["next"]]})
        assert only.status == 0, only.output
        assert eventually(lambda: all(outsider.run(f"kill -0 {pid}").rc != 0 for pid in held.values()), 5)
        for broker in brokers:
            assert [rest(outsider, key, broker.ipv4) for key in ("good", "next")] == ["", "401"]
    finally:
        for pid in held.values():
            outsider.run(f"kill {pid}")
        assert apply(**callers).status == 0


# --- the units that hold the tunnels up -------------------------------------------------------------------------------


def answers(outsider, broker) -> bool:
    port = 18081 + scenario.broker_names().index(broker.name)
    return (
        outsider.run(f"curl -s -m 3 -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{port}/api/v4/brokers").stdout
        == "401"
    )


def test_the_unit_holds_the_tunnel_and_has_no_privileges(outsider, broker, callers):
    assert eventually(lambda: answers(outsider, broker), 20)
    pid = outsider.check_output(f"systemctl show -p MainPID --value nanomq-tunnel-{broker.name}")
    status = outsider.check_output(f"cat /proc/{pid}/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert outsider.check_output(f"stat -c %U /proc/{pid}") == "nanomq-operator"


def test_the_tunnel_comes_back(outsider, broker, callers):
    """When ssh is killed, when its other end is, and when the broker's host restarts."""
    for cut in (
        lambda: outsider.check_output(f"systemctl kill --signal=KILL nanomq-tunnel-{broker.name}"),
        lambda: broker.check_output(f"pkill -KILL -u {ACCOUNT}"),
    ):
        assert eventually(lambda: answers(outsider, broker), 20)
        cut()
        assert eventually(lambda: not answers(outsider, broker), 3)
        assert eventually(lambda: answers(outsider, broker), 20)
    scenario.reboot(broker)
    began = time.monotonic()
    assert eventually(lambda: answers(outsider, broker), 75)
    print(f"{broker.name}: the tunnel is back {time.monotonic() - began:.0f} s after the boot")


def test_another_host_key_is_refused(outsider, broker, callers):
    assert eventually(lambda: answers(outsider, broker), 20)
    pinned, unit = "/etc/edgesec-nanomq/operator/known_hosts", f"nanomq-tunnel-{broker.name}"
    outsider.check_output(f"cp -p {pinned} /root/known_hosts")
    strange = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + b"x" * 32).decode()
    try:
        outsider.check_output(f"sed -i 's#^{broker.name} .*#{broker.name} ssh-ed25519 {strange}#' {pinned}")
        outsider.check_output(f"systemctl restart {unit}")
        assert not eventually(lambda: answers(outsider, broker), 8)
        assert "Host key verification failed" in outsider.check_output(f"journalctl -u {unit} -n 20 -o cat")
    finally:
        outsider.check_output(f"cp -p /root/known_hosts {pinned} && systemctl restart {unit}")
    assert eventually(lambda: answers(outsider, broker), 20)
