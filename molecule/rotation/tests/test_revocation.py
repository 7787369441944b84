# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An operator, a device and an MQTT user lose their access, sessions that are open included; nobody else does."""

from __future__ import annotations

import itertools
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterable

import pytest
import scenario

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import fleet

FRONTS = ["bookworm1", "trixie1"]
WHERE = "/root/callers"
REVOKED = {
    "nanomq_pki_revoke_operators": ["ann"],
    "nanomq_pki_revoke_devices": ["meter-9"],
    "nanomq_pki_revoke_users": ["meter"],
}
LIVE = {
    "device": (8884, "meter-9", "sensor"),
    "other": (8884, "meter-10", "sensor"),
    "user": (8883, "meter-10", "meter"),
}


def give(*given: tuple[str, str]) -> None:
    """Certificates for (name, its authority), on the outsider, with all that may be trusted now."""
    directory = pathlib.Path(scenario.INVENTORY).parent / "given"
    variables = {
        "given": str(directory),
        "wanted": [{"name": name, "authority": authority} for name, authority in given],
        "pki": str(scenario.pki()),
        "passphrase": scenario.HOSTS["nanomq_pki_authority_passphrase"],
    }
    command = ["ansible-playbook", "-i", "localhost,", str(fleet.HERE / "give.yml"), "-e", json.dumps(variables)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    trusted = (scenario.pki() / "ca" / f"{name}.pem" for name in ("ca", "next", "previous"))
    files = {"ca.pem": "".join(path.read_text() for path in trusted if path.exists())}
    for name, _authority in given:
        files[f"{name}.pem"] = (directory / name / "current/cert.pem").read_text()
        files[f"{name}.key"] = (directory / name / "current/key.pem").read_text()
    unpack = (
        "import json, os, pathlib, sys; os.umask(0o77); here = pathlib.Path(sys.argv[1]); here.mkdir(exist_ok=True)\n"
        "for name, text in json.load(sys.stdin).items(): (here / name).write_text(text)"
    )
    fleet.ssh("outsider", f"python3 -c {shlex.quote(unpack)} {WHERE}", json.dumps(files))


@pytest.fixture(scope="module", autouse=True)
def callers():
    """Two operators and two devices."""
    give(("ann", "operators"), ("bob", "operators"), ("meter-9", "ca"), ("meter-10", "ca"))


def status(broker, operator: str, *more: str) -> str:
    """What REST through nginx answers an operator with a good token; 000 for none."""
    header = f"Authorization: Bearer {scenario.token()}"
    command = (
        f"curl -s -o /dev/null -w '%{{http_code}}' -m 10 --cacert {WHERE}/ca.pem --cert {WHERE}/{operator}.pem "
        f"--key {WHERE}/{operator}.key -H @- {' '.join(more)} https://{broker.ipv4}/api/v4/brokers || true"
    )
    return fleet.ssh("outsider", command, header)


def common(broker, port: int, certificate: str, user: str) -> str:
    return (
        f"-h {broker.ipv4} -p {port} --cafile {WHERE}/ca.pem --cert {WHERE}/{certificate}.pem "
        f"--key {WHERE}/{certificate}.key -u {user} -P {shlex.quote(scenario.USERS[user])} -q 1"
    )


def gets_in(outsider, broker, port: int, certificate: str, user: str) -> bool:
    """Whether a publish comes through, at one of a few tries: the real broker at times drops a connection."""
    command = f"timeout 6 mosquitto_pub {common(broker, port, certificate, user)} -t {user}/t -m x"
    return outsider.run(f"for try in 1 2 3 4; do {command} && exit 0; sleep 0.7; done; exit 1").rc == 0


def listen(outsider, broker, names: Iterable[str]) -> None:
    """Subscribers that stay, each with what it gets in a file."""
    for name in names:
        port, certificate, user = LIVE[name]
        unit = f"live-{name}-{broker.name}"
        outsider.run(f"systemctl stop {unit}; rm -f /run/{unit}")
        command = f"exec mosquitto_sub {common(broker, port, certificate, user)} -t {user}/live > /run/{unit}"
        outsider.check_output(
            f"systemd-run --quiet --collect --expand-environment=no --unit={unit} sh -c {shlex.quote(command)}"
        )


def reached(outsider, broker, word: str) -> set[str]:
    """Which of them get a word that is published now. The one who publishes, by the front, is let in in any case."""
    for topic in {f"{user}/live" for _port, _certificate, user in LIVE.values()}:
        command = f"timeout 6 mosquitto_pub {common(broker, 8883, 'meter-10', 'operator')} -t {topic} -m {word}"
        outsider.check_output(f"for try in 1 2 3 4; do {command} && exit 0; sleep 0.7; done; exit 1")
    outsider.run("sleep 0.5")
    return {name for name in LIVE if word in outsider.run(f"cat /run/live-{name}-{broker.name}").stdout}


def all_reached(outsider, broker) -> bool:
    """Whether all listen; those whose connection the real broker has dropped begin anew."""
    gone = [name for name in LIVE if outsider.run(f"systemctl -q is-active live-{name}-{broker.name}").rc != 0]
    listen(outsider, broker, gone)
    outsider.run("sleep 1")
    return reached(outsider, broker, "before") == set(LIVE)


@pytest.fixture(scope="module")
def fronts():
    return [scenario.known_broker(name) for name in FRONTS]


def test_before_and_after(outsider, fronts):
    session = f"-tls1_3 -CAfile {WHERE}/ca.pem -cert {WHERE}/ann.pem -key {WHERE}/ann.key"
    request = r"printf 'GET /api/v4/brokers HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n'"
    for broker in fronts:
        assert [status(broker, name) for name in ("ann", "bob")] == ["200", "200"]
        assert gets_in(outsider, broker, 8884, "meter-9", "sensor")
        assert gets_in(outsider, broker, 8883, "meter-10", "meter")
        assert scenario.eventually(lambda broker=broker: all_reached(outsider, broker), 60), broker.name
        # A session that could be resumed later, without showing the certificate again.
        ask = f"({request % broker.ipv4}; sleep 1) | openssl s_client -quiet {session} -connect {broker.ipv4}:443"
        assert "401" in outsider.run(f"{ask} -sess_out /root/session-{broker.name} 2>/dev/null").stdout
        again = outsider.run(f"{ask} -sess_in /root/session-{broker.name} 2>/dev/null").stdout
        assert "401" in again, "ann is let through to the broker, which wants a token"

    run = fleet.play("revoke", "-vvv", "--diff", hosts=",".join(FRONTS), **REVOKED)
    assert run.status == 0, run.output
    for broker in fronts:
        assert f"{broker.name}: nanomq_broker_users still has meter, revoked" in run.flat()
        assert run.recap(broker.name)["changed"] >= 2
    secrets = [
        *scenario.USERS.values(),
        *(scenario.HOSTS[name] for name in ("nanomq_pki_authority_passphrase", "nanomq_pki_jwt_passphrase")),
        "eyJ",
    ]
    assert [secret for secret in secrets if secret in run.output] == []

    for broker in fronts:
        assert status(broker, "ann") in ("400", "403"), "nginx says why, or that it does not take it"
        assert status(broker, "bob") == "200"
        ask = f"({request % broker.ipv4}; sleep 1) | openssl s_client -quiet {session} -connect {broker.ipv4}:443"
        resumed = outsider.run(f"{ask} -sess_in /root/session-{broker.name} 2>/dev/null").stdout
        assert "401" not in resumed, resumed
        assert not gets_in(outsider, broker, 8884, "meter-9", "sensor")
        assert gets_in(outsider, broker, 8884, "meter-10", "sensor")
        assert not gets_in(outsider, broker, 8883, "meter-10", "meter")
        assert gets_in(outsider, broker, 8883, "meter-10", "sensor")
        # mosquitto_sub may give up at a connection that was lost. The one that is still welcome is started anew, and
        # the others are what is left of the sessions from before.
        listen(outsider, broker, ["other"])
        # A word of its own each time: nginx ends the sessions of before within ten seconds, and not at once.
        words = (f"after-{number}-" for number in itertools.count())
        assert scenario.eventually(
            lambda broker=broker, words=words: reached(outsider, broker, next(words)) == {"other"}, 40
        ), broker.name

    lists = [(scenario.pki() / name / "crl.pem").read_bytes() for name in ("ca", "operators")]
    for run in (
        fleet.play("revoke", hosts=",".join(FRONTS), **REVOKED),
        fleet.play("harden", hosts=",".join(FRONTS)),
    ):
        assert run.status == 0, run.output
        assert [run.recap(name)["changed"] for name in FRONTS] == [0, 0], run.output
    assert [(scenario.pki() / name / "crl.pem").read_bytes() for name in ("ca", "operators")] == lists


def test_a_revocation_of_all_users_is_refused_before_anything_changes(fronts):
    before = (scenario.pki() / "revoked_users.json").read_bytes(), scenario.conf_digest(fronts[0])
    run = fleet.play("revoke", nanomq_pki_revoke_users=list(scenario.USERS), nanomq_pki_revoke_operators=["bob"])
    assert run.status != 0
    assert "would leave none of nanomq_broker_users" in run.flat()
    assert ((scenario.pki() / "revoked_users.json").read_bytes(), scenario.conf_digest(fronts[0])) == before
    assert status(fronts[0], "bob") == "200"


def test_a_rollback_to_before_is_refused_or_says_what_it_brings_back(fronts):
    digest = scenario.conf_digest(fronts[0])
    run = fleet.play("rollback", hosts=FRONTS[0], nanomq_rollback_transaction="broker", nanomq_rollback_to="previous")
    assert run.status != 0, run.output
    assert "lets in meter, whose access was revoked" in run.flat()
    assert scenario.conf_digest(fronts[0]) == digest
    run = fleet.play(
        "rollback", "--check", hosts=FRONTS[0], nanomq_rollback_transaction="nginx", nanomq_rollback_to="previous"
    )
    assert run.status == 0, run.output
    assert "who was revoked since gets in again" in run.flat()


def rollover(step: str, **variables) -> scenario.Play:
    """A step of the roll-over of both authorities, the devices' and the operators'."""
    steps = {"nanomq_pki_authority_rollover": step, "nanomq_pki_operators_rollover": step}
    return fleet.play("harden", hosts=",".join(FRONTS), **steps, **variables)


def let_in(outsider, broker, devices: list[str], operators: list[str]) -> tuple[list[str], list[str]]:
    """Those of them that get in at nginx: devices with MQTT, operators with REST."""
    return (
        [name for name in devices if gets_in(outsider, broker, 8884, name, "sensor")],
        [name for name in operators if status(broker, name) == "200"],
    )


def test_what_was_revoked_stays_so_in_a_roll_over(outsider, fronts):
    """With lists in force: before the successor signs, when it does, and when its predecessor is gone."""
    for step in ("introduce", "switch"):
        run = rollover(step)
        assert run.status == 0, run.output
        for broker in fronts:
            found = let_in(outsider, broker, ["meter-9", "meter-10"], ["ann", "bob"])
            assert found == (["meter-10"], ["bob"]), (step, broker.name)

    give(("meter-11", "ca"), ("meter-12", "ca"), ("bob-new", "operators"))
    run = fleet.play("revoke", hosts=",".join(FRONTS), nanomq_pki_revoke_devices=["meter-10", "meter-12"])
    assert run.status == 0, run.output
    devices, operators = [f"meter-{number}" for number in range(9, 13)], ["ann", "bob", "bob-new"]
    for broker in fronts:
        assert let_in(outsider, broker, devices, operators) == (["meter-11"], ["bob", "bob-new"]), broker.name

    # The two that were revoked hold nobody up. Those that had no run since the switch do.
    refused = rollover("retire")
    assert refused.status != 0
    others = ", ".join(name for name in scenario.broker_names() if name not in FRONTS)
    assert f"none of the successor: {others} (2 revoked and not counted)" in refused.flat()
    run = rollover("retire", nanomq_pki_retire_unrenewed=True)
    assert run.status == 0, run.output
    assert not list(scenario.pki().glob("*/previous.pem"))
    for broker in fronts:
        assert let_in(outsider, broker, devices, operators) == (["meter-11"], ["bob-new"]), broker.name
    run = fleet.play("harden", hosts=",".join(FRONTS))
    assert run.status == 0, run.output
    assert [run.recap(name)["changed"] for name in FRONTS] == [0, 0], run.output
