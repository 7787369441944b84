# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the network really lets through, as a second host sees it."""

from __future__ import annotations

import json
import pathlib

import breaks
import pytest
import scenario

OUTSIDE = {"NMQ-NET-010", "NMQ-NET-011", "NMQ-NET-012"}
#: Something that forwards a port of the network's side to one of loopback, as a proxy or DNAT would.
FORWARD = (
    "import socket, sys, threading\n"
    "def pump(a, b):\n"
    "    try:\n"
    "        while data := a.recv(4096): b.sendall(data)\n"
    "        b.shutdown(1)\n"
    "    except OSError: pass\n"
    "server = socket.create_server((sys.argv[1], int(sys.argv[2])))\n"
    "while True:\n"
    "    near = server.accept()[0]; far = socket.create_connection(('127.0.0.1', int(sys.argv[3])))\n"
    "    for pair in ((near, far), (far, near)): threading.Thread(target=pump, args=pair, daemon=True).start()\n"
)


def reported(broker, tmp_path) -> dict:
    """What the report says of a host that another one has looked at as well."""
    run = scenario.play(
        "edgesec.nanomq.audit",
        hosts=broker.name,
        nanomq_audit_outside_host="outsider",
        nanomq_audit_reports_dir=str(tmp_path),
    )
    assert run.status == 0, run.output
    (host,) = json.loads((tmp_path / "audit.json").read_text())["hosts"]
    return host


def open_findings(broker, tmp_path) -> set[str]:
    return {one["id"] for one in reported(broker, tmp_path)["findings"]}


def seen(broker, tmp_path) -> dict:
    """{rule: evidence} of what the other host sees, and the rules of that which hold."""
    host = reported(broker, tmp_path)
    return {
        "findings": {one["id"]: one["evidence"] for one in host["findings"] if one["id"] in OUTSIDE},
        "passed": {rule for rule in host["passed"] if rule in OUTSIDE},
    }


@pytest.fixture
def unguarded(broker):
    """The host without its packet filter."""
    broker.check_output("nft delete table inet edgesec_nanomq")
    yield broker
    broker.run("systemctl stop forward")
    broker.check_output("systemctl restart edgesec-nanomq-firewall")


def forward(broker, port: int, to: int) -> None:
    unit = "--unit=forward --property=Restart=always --property=RestartSec=0.2"
    broker.check_output(f"systemd-run --quiet --collect {unit} python3 -c %s {broker.ipv4} {port} {to}", FORWARD)


def test_a_hardened_host_shows_nothing(broker, tmp_path):
    assert seen(broker, tmp_path) == {"findings": {}, "passed": OUTSIDE}


@pytest.mark.parametrize(("rule", "port", "to"), [("NMQ-NET-010", 8081, 8081), ("NMQ-NET-012", 8086, 8086)])
def test_what_is_forwarded_is_found(unguarded, tmp_path, rule, port, to):
    forward(unguarded, port, to)
    # The real broker aborts now and then, and is back after a second.
    for _try in range(3):
        found = seen(unguarded, tmp_path)
        if set(found["findings"]) == {rule}:
            break
    assert set(found["findings"]) == {rule}
    assert f"port {port} answers" in found["findings"][rule][0]


@pytest.mark.parametrize("answers", ["nothing", "a connack"])
def test_plain_mqtt_is_found(unguarded, tmp_path, answers):
    """A broker that hangs up on who gives no name shows no CONNACK, and is found all the same."""
    if answers == "nothing":
        conf = pathlib.Path(breaks.FILES).parent / "second.conf"
        text = breaks.SECOND_CONF.replace("127.0.0.1:2883", "0.0.0.0:1883")
        unguarded.check_output(f"printf %%s %s > {conf}; chgrp nanomq {conf}", text)
        program = f"--uid=nanomq --working-directory=/ /usr/local/bin/nanomq start --conf {conf}"
    else:
        conf = "/var/tmp/none"
        script = (
            "import socket\nserver = socket.create_server(('0.0.0.0', 1883))\nwhile True:\n"
            "    one = server.accept()[0]; one.recv(9); one.sendall(bytes([32, 2, 0, 5])); one.close()"
        )
        unguarded.check_output("printf %%s %s > /var/tmp/connack.py", script)
        program = "python3 /var/tmp/connack.py"
    unguarded.check_output(f"systemd-run --quiet --collect --unit=forward {program}")
    try:
        assert scenario.eventually(lambda: ":1883" in unguarded.check_output("ss -ltnH"), 10)
        assert set(seen(unguarded, tmp_path)["findings"]) == {"NMQ-NET-011"}
    finally:
        unguarded.check_output(f"rm -f {conf} /var/tmp/connack.py")


def test_the_verdict_on_rules_of_ufw_is_what_happens(unguarded, outsider, tmp_path):
    """What the audit reads out of the kernel, and what another host comes to, are the same."""
    unguarded.check_output(
        "apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes ufw; ufw allow 22/tcp; "
        "ufw --force enable"
    )
    forward(unguarded, 8081, 8081)
    try:
        for allowed in (False, True):
            if allowed:
                unguarded.check_output("ufw allow 8081/tcp")
            assert (outsider.run(f"nc -z -w 2 {unguarded.ipv4} 8081").rc == 0) is allowed
            assert ("NMQ-NET-006" in open_findings(unguarded, tmp_path)) is allowed
    finally:
        unguarded.check_output(
            "ufw --force disable; DEBIAN_FRONTEND=noninteractive apt-get -qq purge --yes ufw iptables"
        )


def test_a_second_host_that_is_not_there_is_said(broker, tmp_path):
    """And what was not looked at does not count as good."""
    run = scenario.play(
        "edgesec.nanomq.audit",
        hosts=broker.name,
        nanomq_audit_outside_host="nowhere.invalid",
        nanomq_audit_reports_dir=str(tmp_path),
        nanomq_audit_fail_on="critical",
    )
    assert run.status == 2, run.output
    (host,) = json.loads((tmp_path / "audit.json").read_text())["hosts"]
    unseen = {one["id"]: one["evidence"][0] for one in host["findings"] if not one["observed"]}
    assert set(unseen) == set(OUTSIDE)
    assert all("nowhere.invalid" in evidence for evidence in unseen.values())
