# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A bridge and a webhook lead to the right server alone, by TLS, and nobody else sees their secrets."""

from __future__ import annotations

import json
import pathlib

import pytest
import scenario
from scenario import HOSTS, USERS, conf_digest, eventually, harden, play

SECRETS = ("far-password-W8p", "far-token-K2v")
INVENTORY = pathlib.Path(__file__).resolve().parent.parent / "inventory/hosts.yml"
#: Where clients come in: the broker's own TLS, and nginx before its plain listener.
OWN_TLS, BY_NGINX = 8883, 8884
TLS = "-h {0} -p 8883 --cafile /etc/mosquitto/{1}.pem --cert /etc/mosquitto/bridge.pem --key /etc/mosquitto/bridge.key"


@pytest.fixture(scope="session")
def far(outsider):
    outsider.ipv4 = scenario.inventory()["outsider"]["lab_ipv4"]
    return outsider


@pytest.fixture
def good(far):
    """The far end as it should be, also after a test that makes another of it."""
    yield far
    far.check_output("far good")


def far_common(far) -> str:
    # Its name is not in the network's, and who watches has come to the right place.
    return f"{TLS.format(far.ipv4, 'root')} --insecure -u watcher -P watcher -q 1"


def near_common(client, broker, port: int = OWN_TLS) -> str:
    return (
        f"-h {broker.ipv4} -p {port} --cafile {client.directory}/ca.pem --cert {client.directory}/client.pem "
        f"--key {client.directory}/client.key -u operator -P {USERS['operator']} -q 1"
    )


def crosses(client, broker, far, direction: str, tries: int = 8, port: int = OWN_TLS) -> bool:
    """Whether a message gets up to the far end, or down from it, at one of a few tries."""
    near, there = near_common(client, broker, port), far_common(far)
    listen, speak = (f"{there} -t site/up", f"{near} -t operator/up")
    if direction == "down":
        listen, speak = (f"{near} -t site/down", f"{there} -t site/down")
    script = (
        f"timeout 4 mosquitto_sub {listen} -C 1 -W 3 & s=$!; sleep 0.5; "
        f"timeout 3 mosquitto_pub {speak} -m {direction}; wait $s"
    )
    return any(far.run("bash -c %s", script).stdout.strip() == direction for _try in range(tries))


def notes(far) -> list[dict]:
    return [json.loads(line) for line in far.run("cat /root/notes.jsonl").stdout.splitlines()]


def seen(client, broker, far, tries: int = 6, port: int = OWN_TLS) -> list[dict]:
    """What the receiver notes of a message that the webhook tells of."""
    far.run("rm -f /root/notes.jsonl")
    for _try in range(tries):
        far.run(f"timeout 3 mosquitto_pub {near_common(client, broker, port)} -t operator/seen -m x || sleep 2.5")
        if eventually(lambda: notes(far), 2):
            break
    return notes(far)


def ways(*arguments: str, **variables):
    return harden("-i", str(INVENTORY), *arguments, **variables)


@pytest.mark.parametrize("port", [OWN_TLS, BY_NGINX])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_messages_get_across(client, broker, far, direction, port):
    assert crosses(client, broker, far, direction, port=port)


@pytest.mark.parametrize("port", [OWN_TLS, BY_NGINX])
def test_events_arrive_with_their_token_at_the_name_that_was_meant(client, broker, far, port):
    events = seen(client, broker, far, port=port)
    assert events
    assert events[0]["path"] == "/events"
    assert events[0]["headers"]["authorization"] == f"Bearer {SECRETS[1]}"
    assert events[0]["headers"]["host"] == "far.example"
    assert json.loads(events[0]["body"])["topic"] == "operator/seen"


def test_no_event_is_lost(client, broker, far):
    """The broker hangs up when it has sent one: what stands in between must not give up for that."""
    far.run("rm -f /root/notes.jsonl")
    speak = f"mosquitto_pub {near_common(client, broker, BY_NGINX)} -t operator/seen -l"
    far.check_output("bash -c %s", f"for one in $(seq 10); do echo $one; sleep 0.2; done | timeout 10 {speak}")
    assert eventually(lambda: len(notes(far)) == 10, 5)


def test_a_rule_gets_to_the_far_end_by_the_relay_where_the_broker_has_a_rule_engine(client, broker, far):
    """And is turned away there: it sends what MQTT forbids. See tests/contract/test_rule_engine.py."""
    speak = f"timeout 3 mosquitto_pub {near_common(client, broker, BY_NGINX)} -t operator/ruled -m ruled"
    told = (f"as {broker.name}-rules ", f"Invalid PUBLISH (QoS=0 and DUP=1) from {broker.name}-rules")

    def arrives() -> bool:
        far.run(speak)
        log = far.run("grep -F -e -rules /var/log/mosquitto/mosquitto.log").stdout
        return all(words in log for words in told)

    works = has_rule_engine(broker)
    assert eventually(arrives, 10 if works else 0) is works


def has_rule_engine(broker) -> bool:
    ask = (
        "import json, sys, urllib.request as r; "
        "call = r.Request('http://127.0.0.1:8081/api/v4/rules', headers={'Authorization': 'Bearer ' + sys.argv[1]}); "
        "print(json.load(r.urlopen(call, timeout=5))['code'])"
    )
    return {"0": True, "111": False}[broker.check_output("python3 -c %s %s", ask, scenario.token())]


def test_the_far_end_takes_nothing_but_tls_with_the_certificate(far):
    assert "1883" not in far.check_output("ss -ltnH")
    without = TLS.format(far.ipv4, "root").partition(" --cert")[0]
    assert far.run(f"timeout 5 mosquitto_pub {without} --insecure -u watcher -P watcher -q 1 -t x -m x").rc != 0


@pytest.mark.parametrize("pair", ["wrong", "other"], ids=["another CA", "another name"])
def test_nothing_reaches_an_impostor(client, broker, good, pair):
    good.check_output(f"far {pair}")
    ca = {"wrong": "stranger", "other": "root"}[pair]
    if pair == "wrong":
        good.check_output("printf %%s %s > /etc/mosquitto/stranger.pem", (made() / "stranger.pem").read_text())
    there = f"{TLS.format(good.ipv4, ca)} --insecure -u watcher -P watcher -q 1"
    # The impostor serves whoever believes it.
    assert eventually(lambda: good.run(f"timeout 3 mosquitto_pub {there} -t x -m x").rc == 0)
    script = f"timeout 7 mosquitto_sub {there} -t site/# -C 1 -W 6"
    near = near_common(client, broker, BY_NGINX)
    speak = (
        f"for try in 1 2 3; do timeout 3 mosquitto_pub {near} -t operator/up -m up; "
        f"timeout 3 mosquitto_pub {near} -t operator/ruled -m ruled; sleep 0.5; done"
    )
    heard = good.run("bash -c %s", f"{script} & s=$!; sleep 0.5; {speak}; wait $s")
    assert heard.stdout.strip() == ""
    assert seen(client, broker, good, 2, BY_NGINX) == []
    good.check_output("far good")
    assert crosses(client, broker, good, "up", 15)


def made() -> pathlib.Path:
    return pathlib.Path(scenario.INVENTORY).parent / "elsewhere"


@pytest.mark.parametrize("port", [18831, 18832])
def test_nobody_else_on_the_host_uses_the_ways_out(broker, outsider, port):
    connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
    for user, works in (("nanomq", True), ("nobody", False)):
        command = f"setpriv --reuid {user} --regid nogroup --clear-groups python3 -c %s"
        assert (broker.run(command, connect).rc == 0) is works
    assert outsider.run(f"nc -z -w 2 {broker.ipv4} {port}").rc != 0


def test_nobody_else_on_the_host_hands_in_events_or_gets_them(broker):
    """The socket of the webhook: see tests/contract/test_webhook.py."""
    path = "/tmp/nanomq_hook.ipc"
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect('{path}')"
    pid = broker.check_output("systemctl show -p MainPID --value nanomq")
    for user, works in (("nanomq", True), ("nobody", False)):
        command = f"setpriv --reuid {user} --regid nogroup --clear-groups python3 -c %s"
        assert (broker.run(f"nsenter --target {pid} --mount -- {command}", connect).rc == 0) is works
    # One that somebody has made in the /tmp of all is none of the broker's.
    broker.check_output("runuser -u nobody -- python3 -c %s", f"import socket; socket.socket(1).bind('{path}')")
    try:
        broker.check_output("systemctl restart nanomq")
        assert scenario.eventually(lambda: ":8883" in broker.check_output("ss -ltnH"))
        pid = broker.check_output("systemctl show -p MainPID --value nanomq")
        owner = f"stat -c %U {path}"
        assert broker.check_output(f"nsenter --target {pid} --mount -- {owner}") == "nanomq"
        assert broker.check_output(owner) == "nobody"
    finally:
        broker.check_output(f"rm {path}")


def test_a_second_run_changes_nothing_and_tells_no_secret(broker):
    run = ways("--diff", "-vvv")
    assert run.status == 0, run.output
    assert run.recap(broker.name)["changed"] == 0
    assert not [secret for secret in SECRETS if secret in run.output]


def test_a_change_of_a_secret_is_shown_without_it(broker):
    settings = {"bridges": {"mqtt": {"far": {"server": "mqtt-tcp://127.0.0.1:18831", "password": "another-Q3z"}}}}
    settings["webhook"] = {"url": "http://127.0.0.1:18832/e", "headers": {"authorization": "another-token-Q3z"}}
    run = ways("--diff", "-vvv", "--check", nanomq_broker_settings=settings)
    assert run.status == 0, run.output
    assert run.recap(broker.name)["changed"] == 1
    assert "127.0.0.1:18832/e" in run.output
    assert not [secret for secret in (*SECRETS, "another-Q3z", "another-token-Q3z") if secret in run.output]


def test_no_secret_is_on_show_on_the_host(broker):
    journal = broker.check_output("journalctl --no-pager --output=cat")
    readable = "find / -xdev -type f -perm -o+r -not -path '/proc/*' -exec grep -lE %s {} +"
    manifests = broker.check_output("cat /var/lib/edgesec-nanomq/*/generations/*/manifest.json")
    nginx = broker.run("cat /var/log/nginx/*").stdout
    assert "Invoked with" in journal
    assert not [secret for secret in SECRETS if secret in journal + manifests + nginx]
    assert broker.run(readable, "|".join(SECRETS)).stdout == ""


def test_the_audit_passes_the_ways_out_and_tells_no_secret(broker, tmp_path):
    run = play("edgesec.nanomq.audit", "-i", str(INVENTORY), "-vvv", nanomq_audit_reports_dir=str(tmp_path))
    assert run.status == 0, run.output
    reports = {path.suffix: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert {".json", ".html", ".sarif", ".xml"} <= set(reports)
    (host,) = json.loads(reports[".json"])["hosts"]
    assert {f"NMQ-TLS-{number:03}" for number in (7, 8, 9, 10, 11, 22)} <= set(host["passed"])
    told = run.output + "".join(reports.values())
    assert not [secret for secret in (*SECRETS, HOSTS["nanomq_pki_jwt_passphrase"]) if secret in told]


def test_ways_out_without_verification_are_refused_before_anything_is_changed(broker):
    before = conf_digest(broker)
    plain = {"server": "mqtt-tcp://far.example:1883"}
    rule = {"sql": 'SELECT topic, payload FROM "a"', "topic": "a"}
    servers = ("mqtt-tcp://far.example:1883", "tls+mqtt-tcp://far.example:8883")
    unverified = {"server": "tls+mqtt-tcp://far.example:8883", "ssl": {"cacertfile": "/etc/ssl/ca.pem"}}
    run = ways(
        nanomq_broker_settings={
            "bridges": {"mqtt": {"plain": plain, "unverified": unverified}},
            "webhook": {"url": "https://far.example/events"},
            "rules": {"repub": {"rules": [{**rule, "server": server} for server in servers]}},
        }
    )
    assert run.status != 0
    for rule in ("NMQ-TLS-007", "NMQ-TLS-008", "NMQ-TLS-011", "NMQ-TLS-022"):
        assert rule in run.output
    assert "nanomq_nginx_relays" in run.flat()
    assert run.recap(broker.name)["changed"] == 0
    assert conf_digest(broker) == before


def test_a_far_end_that_is_away_keeps_nobody_from_hardening(client, broker, far):
    far.check_output("systemctl stop mosquitto receiver")
    try:
        before = conf_digest(broker)
        run = ways(nanomq_broker_log_level="error")
        assert run.status == 0, run.output
        assert conf_digest(broker) != before
        assert client.publish(broker.ipv4, user="operator", password=USERS["operator"])
    finally:
        far.check_output("far good")
    assert crosses(client, broker, far, "up", 15)
