# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The network guard: what it lets through, what it survives, and that it cannot lock anybody out."""

from __future__ import annotations

import re
import time

import pytest
import scenario
from scenario import USERS, harden

TABLE = "table inet edgesec_nanomq"
LISTEN = "import socket,time; s=socket.create_server(('{address}', {port}), family=socket.{family}); time.sleep(60)"


def reaches(outsider, address: str, port: int) -> bool:
    return outsider.run(f"nc -z -w 2 {address} {port}").rc == 0


#: Opens 200 connections at once, and prints how many came about.
FLOOD = """
import socket, sys, time
sockets = [socket.socket() for _ in range(200)]
for sock in sockets:
    sock.setblocking(False)
    sock.connect_ex((sys.argv[1], 8883))
time.sleep(0.8)
connected = 0
for sock in sockets:
    try:
        sock.getpeername()
        connected += 1
    except OSError:
        pass
print(connected)
"""


@pytest.fixture
def careless(broker):
    """Listeners on every address at the ports that must stay inside, as a careless configuration opens them."""
    broker.check_output("systemctl stop nanomq.service")
    units = []
    for port in (1883, 8081, 8083, 8086):
        for family, address in (("AF_INET", "0.0.0.0"), ("AF_INET6", "::")):
            unit = f"careless-{port}-{family.lower().replace('_', '-')}"
            script = LISTEN.format(address=address, port=port, family=family)
            broker.check_output("systemd-run --quiet --collect --unit=%s /usr/bin/python3 -c %s", unit, script)
            units.append(unit)
    time.sleep(0.7)
    yield broker
    broker.check_output("systemctl stop " + " ".join(units))
    broker.check_output("systemctl start nanomq.service")


def test_inner_ports_are_closed_whatever_listens(outsider, careless):
    for port in (1883, 8081, 8083, 8086):
        assert (
            careless.run(f"nc -z -w 2 127.0.0.1 {port} || timeout 2 bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'").rc
            == 0
        )
        assert not reaches(outsider, careless.ipv4, port)
        assert not reaches(outsider, careless.ipv6, port)


def test_inner_ports_are_for_root_alone_on_loopback(careless):
    for port in (8081, 8083, 8086):
        for address in ("127.0.0.1", "::1", careless.ipv4, careless.ipv6):
            connect = f"import socket; socket.create_connection(('{address}', {port}), 2)"
            assert careless.run("python3 -c %s", connect).rc == 0
            assert careless.run("setpriv --reuid nobody --regid nogroup --clear-groups python3 -c %s", connect).rc != 0


def test_mqtt_is_for_the_allowed_networks(client, outsider, broker):
    address = scenario.inventory()["outsider"]["lab_ipv4"]
    login = {"user": "operator", "password": USERS["operator"]}
    try:
        assert harden(hosts=broker.name, nanomq_firewall_mqtt_networks=["192.0.2.0/24", "2001:db8::/32"]).status == 0
        assert not client.publish(broker.ipv4, **login)
        assert harden(hosts=broker.name, nanomq_firewall_mqtt_networks=[f"{address}/32"]).status == 0
        assert client.publish(broker.ipv4, **login)
    finally:
        assert harden(hosts=broker.name).status == 0


def test_new_connections_are_limited(outsider, broker):
    """200 at once: the burst and a second or two of the rate get through, the rest do not. ssh is not concerned."""
    count = int(outsider.check_output("python3 -c %s %s", FLOOD, broker.ipv4))
    assert 20 <= count <= 90, count
    assert reaches(outsider, broker.ipv4, 22)


def test_tables_of_others_are_left_alone(broker):
    broker.check_output("nft add table inet others")
    broker.check_output("nft %s", "add chain inet others input { type filter hook input priority 5; }")
    broker.check_output("nft add rule inet others input tcp dport 9 counter drop")
    before = broker.check_output("nft -s list table inet others")
    try:
        assert harden(hosts=broker.name, nanomq_firewall_mqtt_rate="30/second").recap(broker.name)["changed"] == 1
        assert harden(hosts=broker.name).recap(broker.name)["changed"] == 1
        assert broker.check_output("nft -s list table inet others") == before
    finally:
        broker.check_output("nft delete table inet others")


@pytest.mark.parametrize(
    "harm",
    [
        "nft delete table inet edgesec_nanomq",
        "nft flush ruleset",
        "nft insert rule inet edgesec_nanomq input accept",
        "nft flush chain inet edgesec_nanomq output",
        "nft flush set inet edgesec_nanomq mqtt_networks4",
        "systemctl stop edgesec-nanomq-firewall.service",
    ],
)
def test_harm_is_found_and_repaired(broker, harm):
    before = broker.check_output(f"nft -s -t list {TABLE}")
    broker.check_output(harm)
    run = harden(hosts=broker.name)
    assert run.status == 0, run.output
    assert run.recap(broker.name)["changed"] == 1, run.output
    assert broker.check_output(f"nft -s -t list {TABLE}") == before


def test_it_survives_the_distributions_service(broker):
    """Debian's nftables.service flushes the whole rule set at each of these."""
    before = broker.check_output(f"nft -s -t list {TABLE}")
    for verb in ("start", "reload", "restart", "stop"):
        broker.check_output(f"systemctl {verb} nftables.service")
        assert broker.check_output(f"nft -s -t list {TABLE}") == before, verb


def test_it_survives_a_reboot(outsider, broker):
    before = broker.check_output(f"nft -s -t list {TABLE}")
    scenario.reboot(broker)
    assert broker.check_output(f"nft -s -t list {TABLE}") == before
    assert harden(hosts=broker.name).recap(broker.name)["changed"] == 0


# --- it cannot lock anybody out

CUT = {
    "nanomq_firewall_protect_ssh": False,
    "nanomq_firewall_extra_rules": ["tcp dport 22 drop"],
    "nanomq_firewall_confirm_within": 12,
}


def test_a_cut_of_its_own_ssh_heals_by_itself(broker):
    """The change cuts the very connection that it came by. The host takes it back, and the run says so."""
    before = broker.check_output(f"nft -s -t list {TABLE}")
    run = harden(hosts=broker.name, **CUT)
    assert run.status != 0
    assert "no fresh connection came through" in run.flat(), run.output
    assert "undid it after 12 s" in run.flat()
    assert broker.check_output(f"nft -s -t list {TABLE}") == before
    assert harden(hosts=broker.name).recap(broker.name)["changed"] == 0


def test_the_host_needs_nobody_to_undo_a_cut(outsider, broker):
    """Seen from the outsider while it happens: ssh answers, does not, and answers again."""
    seen = f"for i in $(seq 60); do nc -z -w 1 {broker.ipv4} 22 && echo -n + || echo -n -; sleep 0.5; done"
    outsider.check_output("systemd-run --quiet --unit=watch --collect bash -c %s", f"({seen}) > /run/watch")
    harden(hosts=broker.name, **CUT)
    for _attempt in range(80):
        if outsider.run("systemctl is-active watch").rc != 0:
            break
        time.sleep(0.5)
    watched = outsider.check_output("cat /run/watch")
    assert re.fullmatch(r"[+]+-{3,}[+]+", watched.strip()), watched


def test_the_ssh_port_is_protected_from_ones_own_rules(outsider, broker):
    """By default the same rule does no harm: the port of ssh is let through first."""
    try:
        run = harden(hosts=broker.name, nanomq_firewall_extra_rules=["tcp dport 22 drop"])
        assert run.status == 0, run.output
        assert reaches(outsider, broker.ipv4, 22)
    finally:
        assert harden(hosts=broker.name).status == 0


@pytest.mark.parametrize("name", ["nanomq_firewall_closed_ports", "nanomq_firewall_mqtt_ports"])
def test_ones_own_port_among_the_closed_ones_is_refused(broker, name):
    run = harden(hosts=broker.name, **{name: [22, 8883]})
    assert run.status != 0
    assert name in run.flat()
    assert "Port 22 is the port of ssh" in run.flat()


@pytest.mark.parametrize("rule", ["this is no rule", "tcp dport 80 drop }", 'include "/etc/shadow"'])
def test_a_rule_that_nft_refuses_changes_nothing(broker, rule):
    before = broker.check_output(f"nft -s -t list {TABLE}; cat /etc/edgesec-nanomq/firewall.nft")
    run = harden(hosts=broker.name, nanomq_firewall_extra_rules=[rule])
    assert run.status != 0
    assert "nft refuses" in run.flat(), run.output
    assert broker.check_output(f"nft -s -t list {TABLE}; cat /etc/edgesec-nanomq/firewall.nft") == before
