# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Other answers than the defaults hold as well, and leave nothing unguarded."""

from __future__ import annotations

import json
import pathlib
import time

import jwt
import pytest
import scenario
import yaml
from cryptography.hazmat.primitives import serialization
from scenario import HOSTS, INVENTORY, USERS, journal, pki

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


# --- tokens: a key pair of its own for one host -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens():
    """play(playbook): on these hosts with tokens instead of the password, and for trixie with a key of its own."""
    converge = pathlib.Path(__file__).resolve().parents[1] / "converge.yml"
    basic = ("nanomq_broker_http_auth", "nanomq_broker_http_username", "nanomq_broker_http_password")
    answers = yaml.safe_load(converge.read_text())[0]["vars"]
    answers = {name: value for name, value in answers.items() if name not in (*basic, "nanomq_broker_waivers")}
    extra = pathlib.Path(INVENTORY).parent / "tokens.json"
    hosts = {"bookworm": answers, "trixie": {**answers, "nanomq_pki_jwt_scope": "host"}}
    extra.write_text(json.dumps({"brokers": {"hosts": hosts}}))

    def play(playbook: str, **variables) -> scenario.Play:
        run = scenario.play(f"edgesec.nanomq.{playbook}", "-i", str(extra), **variables)
        assert run.status == 0, run.output
        return run

    return play


def token(name: str) -> str:
    """By the key pair of that name on the controller."""
    passphrase = HOSTS["nanomq_pki_jwt_passphrase"].encode()
    key = serialization.load_pem_private_key((pki() / f"jwt/{name}.key").read_bytes(), passphrase)
    return jwt.encode({"iss": scenario.issuer_of(key), "exp": int(time.time()) + 900}, key, "RS256")


def answers(brokers, *given: str) -> dict[str, list[str]]:
    """What REST on each host says to each token."""
    command = (
        "curl --silent --max-time 5 --retry 3 --retry-connrefused --output /dev/null --write-out %%{http_code}"
        " --header %s http://127.0.0.1:9081/api/v4/brokers"
    )
    return {
        broker.name: [broker.run(command, f"Authorization: Bearer {one}").stdout for one in given] for broker in brokers
    }


def test_a_token_of_one_host_is_refused_at_another(brokers, tokens):
    tokens("harden")
    own, fleet = token("trixie"), token("fleet")
    assert answers(brokers, own, fleet) == {"trixie": ["200", "401"], "bookworm": ["401", "200"]}
    again = tokens("harden")
    assert [again.recap(broker.name)["changed"] for broker in brokers] == [0, 0], again.output

    # It rotates on its own: the other key stays.
    issuer = jwt.decode(own, options={"verify_signature": False})["iss"]
    run = tokens("rotate_jwt", nanomq_pki_jwt_rotate_key=issuer)
    assert run.recap("bookworm")["changed"] == 0, run.output
    new = token("trixie")
    assert answers(brokers, own, new, fleet) == {"trixie": ["401", "200", "401"], "bookworm": ["401", "401", "200"]}
    assert not list((pki() / "jwt").glob("*.rotation.json"))

    # The fleet's ends without the host that has its own.
    issuer = jwt.decode(fleet, options={"verify_signature": False})["iss"]
    run = tokens("rotate_jwt", nanomq_pki_jwt_rotate_key=issuer)
    assert run.recap("trixie")["changed"] == 0, run.output
    assert answers(brokers, new, fleet, token("fleet")) == {
        "trixie": ["200", "401", "401"],
        "bookworm": ["401", "401", "200"],
    }
    assert not list((pki() / "jwt").glob("*.rotation.json"))
