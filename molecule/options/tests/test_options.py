# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Other answers than the defaults hold as well, and leave nothing unguarded."""

from __future__ import annotations

import pytest
from scenario import USERS, journal, pki

PASSWORD = 'basic\'s "own" password'


def published(outsider, broker, password: str) -> bool:
    outsider.check_output("printf %%s %s > /root/ca.pem", (pki() / "ca/ca.pem").read_text())
    command = (
        f"timeout 8 mosquitto_pub -h {broker.ipv4} -p 9883 --cafile /root/ca.pem -u operator -t operator/t -m x -q 1"
    )
    wait = f"nc -z -w 1 {broker.ipv4} 9883 || sleep 2"
    return outsider.run(f"for try in 1 2 3; do {command} -P %s && exit 0; {wait}; done; exit 1", password).rc == 0


def test_the_role_installed_the_package(broker):
    assert broker.run("dpkg-query -W nanomq").rc == 0
    assert broker.service("nanomq").is_running


def test_mqtt_answers_at_its_address_and_port_alone(outsider, broker):
    assert published(outsider, broker, USERS["operator"])
    listening = broker.check_output("ss -ltnH")
    assert f"{broker.ipv4}:9883" in listening
    assert "0.0.0.0:9883" not in listening
    assert not published(outsider, broker, "wrong-password")


def test_the_other_ports_are_guarded_too(outsider, broker):
    for port in (9081, 9086):
        assert outsider.run(f"nc -z -w 2 {broker.ipv4} {port}").rc != 0
        connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert broker.run("python3 -c %s", connect).rc == 0
        assert broker.run("setpriv --reuid nobody --regid nogroup --clear-groups python3 -c %s", connect).rc != 0
    assert "9883" in broker.check_output("nft list chain inet edgesec_nanomq input")


@pytest.mark.parametrize(
    ("login", "status"),
    [(f"steward:{PASSWORD}", "200"), ("steward:wrong", "401"), ("admin:public", "401"), ("", "401")],
)
def test_rest_asks_for_the_password(broker, login, status):
    # Again, should the broker be starting: the real one ends at times, see docs/broker_behaviour.md.
    command = (
        "curl --silent --max-time 5 --retry 3 --retry-connrefused --output /dev/null --write-out %{http_code}"
        " http://127.0.0.1:9081/api/v4/brokers"
    )
    if login:
        assert broker.run(f"{command.replace('%', '%%')} --user %s", login).stdout == status
    else:
        assert broker.run(command).stdout == status


def test_no_secret_is_in_the_logs_of_the_host(broker):
    logs = journal(broker)
    assert "Invoked with" in logs
    secrets = [PASSWORD, *USERS.values()]
    assert not [secret for secret in secrets if secret in logs or repr(secret)[1:-1] in logs]


def test_the_controllers_files_are_the_operators_own():
    for path in pki().rglob("*.key"):
        assert path.stat().st_mode & 0o077 == 0
