# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an attacker on the same network finds, with the tools that an attacker has."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from scenario import USERS, pki


def open_ports(outsider, address: str) -> set[int]:
    """All TCP ports that answer the outsider."""
    family = "-6" if ":" in address else ""
    report = outsider.check_output(f"nmap {family} -Pn -n -p- --min-rate 5000 -oX - {address}")
    ports = list(ElementTree.fromstring(report).iterfind("./host/ports/port"))
    return {int(port.get("portid")) for port in ports if port.find("state").get("state") == "open"}


def test_only_ssh_and_mqtt_tls_answer(outsider, broker):
    assert open_ports(outsider, broker.ipv4) == {22, 8883}


def test_only_ssh_answers_by_ipv6(outsider, broker):
    assert open_ports(outsider, broker.ipv6) == {22}


@pytest.mark.parametrize("user", USERS)
def test_every_declared_user_gets_in(client, broker, user):
    assert client.publish(broker.ipv4, user=user, password=USERS[user])


@pytest.mark.parametrize("user", ["sensor", "käse müller"])
def test_a_user_reaches_its_own_topics_and_no_others(client, broker, user):
    credentials = {"user": user, "password": USERS[user]}
    assert client.round_trip(broker.ipv4, topic=f"{user}/temperature", **credentials)
    assert not client.round_trip(broker.ipv4, topic="operator/secret", **credentials)


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (None, None),
        ("sensor", None),
        ("sensor", "wrong-password"),
        ("sensor", USERS["meter"]),
        ("sensor", USERS["sensor"][:-1]),
        ("unknown", "anything"),
        ("admin", "public"),
    ],
)
def test_others_are_refused(client, broker, user, password):
    assert not client.publish(broker.ipv4, user=user, password=password)


@pytest.mark.parametrize("certificate", ["", "stranger"])
def test_without_a_certificate_of_the_fleet_nobody_gets_in(client, broker, certificate):
    """The same login with the fleet's certificate works: it is the certificate that is missing."""
    login = {"user": "operator", "password": USERS["operator"]}
    assert client.publish(broker.ipv4, **login)
    assert not client.publish(broker.ipv4, certificate=certificate, **login)


@pytest.mark.parametrize("port", [8883, 1883, 8083, 8086])
def test_plaintext_is_refused(outsider, broker, port):
    login = f"-u operator -P {USERS['operator']} -t operator/t -m x -q 1"
    assert outsider.run(f"timeout 4 mosquitto_pub -h {broker.ipv4} -p {port} {login} || exit 1").rc == 1


@pytest.mark.parametrize("protocol", ["tls1", "tls1_1"])
def test_old_tls_is_refused(outsider, broker, protocol):
    command = f"echo | timeout 8 openssl s_client -connect {broker.ipv4}:8883 -{protocol} -cipher ALL:@SECLEVEL=0"
    assert "Cipher is (NONE)" in outsider.run(command).stdout


def test_the_certificate_is_the_hosts_own(outsider, client, broker):
    command = (
        f"echo | timeout 8 openssl s_client -connect {broker.ipv4}:8883 -CAfile /root/mqtt/ca.pem "
        f"-verify_ip {broker.ipv4} -verify_return_error -cert /root/mqtt/client.pem -key /root/mqtt/client.key"
    )
    answer = outsider.run(command).stdout
    assert "Verify return code: 0 (ok)" in answer
    assert f"CN = {broker.name}" in answer or f"CN={broker.name}" in answer


def test_the_key_was_born_on_the_host(broker):
    """The controller holds the CA's key and the key for tokens, and no other."""
    keys = sorted(str(path.relative_to(pki())) for path in pki().rglob("*.key"))
    assert keys == ["ca/ca.key", "jwt/fleet.key"]
    assert "PRIVATE KEY" in broker.check_output("cat /etc/nanomq/pki/server/current/key.pem")
