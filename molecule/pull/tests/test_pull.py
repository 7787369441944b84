# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A device hardens itself from a git remote: what it takes, what it refuses, what it reports. In this order."""

from __future__ import annotations

import datetime
import functools
import json
import pathlib
import re
import shlex

import pytest
import scenario
from fleet_repository import GIT_SECRET

UNIT = "edgesec-nanomq-pull.service"
STATE = "/var/lib/edgesec-nanomq-pull"
INVITATION = "/etc/edgesec-nanomq/pull/invitation"
TIMER = "edgesec-nanomq-pull.timer"
#: As in the inventory: the timer must not start a run beside those of the tests.
NEVER = "2099-01-01 UTC"
#: The status of curl whose connection was closed while it was sending.
HUNG_UP = 55


@pytest.fixture(scope="session")
def pull(device, server):
    """Start what the timer starts, wait, and return the report that the collector has got."""

    def start(*, expect: str, reported: bool = True) -> dict:
        count = len(reports(server))
        done = device.run(f"systemctl start {UNIT}")
        if reported:
            arrived = reports(server)
            assert len(arrived) > count, device.check_output(f"journalctl -u {UNIT} -o cat | tail -n 40")
            report = arrived[-1]
        else:
            report = json.loads(device.check_output(f"cat {STATE}/report.json"))
        assert report["result"] == expect, (report, device.check_output(f"journalctl -u {UNIT} -o cat | tail -n 60"))
        assert (done.rc == 0) is (expect in ("ok", "changed")), "systemd has to see what did not go well"
        return report

    return start


@pytest.fixture(scope="session")
def kill(device):
    """Start what the timer starts, kill all of it as soon as something is so on the device, and see that it died."""

    def start(condition: str) -> None:
        # Bounded: a minute at most.
        device.check_output(
            f"systemctl start --no-block {UNIT}; for i in $(seq 6000); do {condition} && break; sleep 0.01; done; "
            f"systemctl kill --signal=KILL {UNIT}"
        )
        assert scenario.eventually(lambda: "inactive" not in (state := activity(device)) and "failed" in state)

    return start


def reports(server) -> list[dict]:
    """What the collector has got, the oldest first."""
    return [json.loads(line) for line in server.check_output("cat /root/reports.jsonl || true").splitlines()]


def activity(device) -> str:
    return device.run(f"systemctl show -p ActiveState -p Result {UNIT}").stdout


def served_serial(outsider, device) -> str:
    command = f"openssl s_client -connect {device.ipv4}:8883 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    return outsider.check_output(command).partition("=")[2].lower().lstrip("0")


def invite(server, *words: str) -> str:
    return server.check_output("edgesec-nanomq-signer invite " + " ".join(words))


def test_the_timer_comes_by_chance_and_makes_up_for_what_was_missed(device):
    shown = device.check_output(
        f"systemctl show {TIMER} -p RandomizedDelayUSec,FixedRandomDelay,Persistent,ActiveState"
    ).split()
    assert sorted(shown) == [
        "ActiveState=active",
        "FixedRandomDelay=yes",
        "Persistent=yes",
        "RandomizedDelayUSec=20min",
    ]
    listed = device.check_output(f"TZ=UTC systemctl list-timers {TIMER}")
    assert UNIT in listed
    assert re.search(r"\b2099-01-01 00:[01]\d:\d\d UTC", listed), listed


def test_without_an_invitation_nothing_is_changed(device, server, repository, pull):
    """And the report says which task failed, and no more."""
    repository.push(address=server.ipv4)
    before = scenario.connect("device").check_output("ss -ltnH; cat /etc/systemd/system/nanomq.service")
    report = pull(expect="failed")
    assert "The certificate of the host" in report["cause"]
    assert device.check_output("ss -ltnH; cat /etc/systemd/system/nanomq.service") == before


def test_an_enrolment_that_is_killed_goes_on_the_next_time(device, server, outsider, repository, pull, kill):
    """When the service has been asked: whether its answer came or not, the invitation is good for this device."""
    secret = invite(server, "device")
    device.check_output(f"umask 077; echo {secret} > {INVITATION}")
    kill(f"test -e {INVITATION}.claimed")
    report = pull(expect="changed")
    assert report["interrupted"]["commit"] == report["commit"]
    assert report["commit"] == report["offered"] == report["applied"] == repository.git("rev-parse", "HEAD")
    assert report["signer"] == "alice"
    assert report["counts"]["changed"] > 0
    assert report["versions"]["ansible"].startswith("2.")
    assert report["versions"]["collection"]
    assert report["changed_tasks"]
    assert not device.file(INVITATION).exists, "it was good once"
    assert not device.file(f"{INVITATION}.claimed").exists
    ports = {port: outsider.run(f"nc -z -w 2 {device.ipv4} {port}").rc == 0 for port in (1883, 8081, 8083, 8883)}
    assert ports == {1883: False, 8081: False, 8083: False, 8883: True}
    issuer = outsider.check_output(
        f"openssl s_client -connect {device.ipv4}:8883 </dev/null 2>/dev/null | openssl x509 -noout -issuer"
    )
    assert "Online intermediate" in issuer


def test_no_key_that_signs_is_on_the_device(device, repository):
    lines = (repository.place / "jwt.key").read_text().splitlines()
    for needle in (lines[1], "intermediate-Q7w"):
        assert device.run(f"grep -rqF {shlex.quote(needle)} /etc /var/lib /root /usr/local").rc == 1
    assert device.run("find / -xdev -name ca.key | grep .").rc == 1


def test_the_second_pull_changes_nothing_and_says_how_the_host_is(device, outsider, pull):
    before = scenario.conf_digest(device)
    report = pull(expect="ok")
    assert report["counts"]["changed"] == 0
    assert scenario.conf_digest(device) == before
    assert "interrupted" not in report

    # The broker, the end of its certificate as it is served, and the audit's own result in short.
    version = device.check_output("dpkg-query -W -f '${Version}' nanomq")
    assert version.startswith(report["broker"]["version"])
    assert report["broker"]["version"]
    served = outsider.check_output(
        f"openssl s_client -connect {device.ipv4}:8883 </dev/null 2>/dev/null | "
        "openssl x509 -noout -enddate -dateopt iso_8601"
    )
    assert served.partition("=")[2].strip() == report["broker"]["certificate_ends"].replace("T", " ")
    document = json.loads(device.check_output(f"cat {STATE}/told/audit.json"))
    broken = [one["id"] for one in document["hosts"][0]["findings"] if one["observed"] and not one["waived"]]
    assert (report["audit"]["state"], report["audit"]["rules"]) == ("audited", broken)
    assert report["audit"]["findings"] == document["summary"]["findings"]
    assert report["audit"]["findings"]["critical"] == 0


def test_no_secret_is_in_a_report(device, server, repository):
    """Nor in the journals: passwords, tokens, and the private halves of keys."""
    secrets = ["from-the-vault", "the-collectors-token", "the vault's password", "intermediate-Q7w"]
    secrets += [(repository.place / "deploy").read_text().splitlines()[2]]
    secrets += device.check_output("cat /etc/nanomq/pki/server/current/key.pem").splitlines()[1:2]
    told = server.check_output("cat /root/reports.jsonl")
    told += device.check_output(f"cat {STATE}/report.json {STATE}/told/*.json; journalctl --no-pager -o cat")
    assert len(secrets) == 6
    assert not [secret for secret in secrets if secret in told]


def test_a_firewall_that_cuts_off_the_device_is_undone(device, server, repository, pull):
    """Nobody is outside to confirm it: the device must still reach what it needs, or it takes the change back."""
    rules = [f"ip saddr {server.ipv4} drop", f"ip6 saddr {server.ipv6} drop"]
    repository.commit("alice", nanomq_firewall_extra_rules=rules)
    repository.push(address=server.ipv4)
    report = pull(expect="failed")
    assert report["failed"]["task"].endswith("The table of nftables, as one transaction")
    assert (report["failed"]["step"], report["failed"]["undone"]) == ("probe", True)
    assert server.ipv4 not in device.check_output("nft list table inet edgesec_nanomq")
    late = {"rule": "NMQ-NET-001", "reason": "none", "expires": "2020-01-01"}
    repository.commit("alice", nanomq_firewall_extra_rules=["udp dport 9 drop"], nanomq_audit_waivers=[late])
    repository.push(address=server.ipv4)
    report = pull(expect="changed")
    assert [task.rpartition(" : ")[2] for task in report["changed_tasks"]] == [
        "The table of nftables, as one transaction"
    ]
    assert "udp dport 9 drop" in device.check_output("nft list table inet edgesec_nanomq")
    assert "NMQ-WVR-001" in report["audit"]["rules"], "what the audit finds is in the report"
    # Whom it reached is no part of what it goes back to.
    kept = device.check_output("cat /var/lib/edgesec-nanomq/firewall/generations/*/manifest.json")
    assert '"nft_table"' in kept
    assert '"reachable"' not in kept


def test_a_run_that_is_killed_is_finished_by_the_next(device, server, repository, pull, kill):
    """In the middle of a transaction. Nothing older is run, nothing of it stays. From here on without the audit."""
    newer = repository.commit("alice", nanomq_broker_log_level="info", nanomq_pull_audit=False)
    repository.push(address=server.ipv4)
    kill("test -e /var/lib/edgesec-nanomq/broker/record.json")
    assert json.loads(device.check_output(f"cat {STATE}/state.json"))["accepted"] == newer
    report = pull(expect="changed")
    assert report["interrupted"]["commit"] == report["commit"] == report["applied"] == newer
    assert "audit" not in report
    assert re.search('level *= *"?info', device.check_output("cat /etc/nanomq/nanomq.conf"))
    left = device.check_output(f"ls -A {STATE}").split()
    assert not [name for name in left if name.startswith(("fresh", "damaged", "running", "unsent")) or ".json." in name]


@pytest.mark.parametrize(("signer", "words"), [("", "is not signed"), ("mallory", "not signed by one of")])
def test_what_nobody_known_signed_is_refused(device, server, repository, pull, signer, words):
    before, good = scenario.conf_digest(device), repository.git("rev-parse", "HEAD")
    bad = repository.commit(signer, nanomq_broker_log_level="debug")
    repository.push(address=server.ipv4)
    report = pull(expect="refused")
    assert words in report["cause"]
    assert (report["offered"], report["commit"]) == (bad, good)
    assert report["counts"]["changed"] == 0
    assert scenario.conf_digest(device) == before
    repository.reset(good)
    repository.push(address=server.ipv4)


def test_a_renewal_by_a_signed_commit(device, server, outsider, repository, pull):
    """The next certificate is asked for by the present one. And then there is no way back to the older commit."""
    old, serial, first = (
        scenario.conf_digest(device),
        served_serial(outsider, device),
        repository.git("rev-parse", "HEAD"),
    )
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    newer = repository.commit("alice", nanomq_pki_renew_issued_before=moment)
    repository.push(address=server.ipv4)
    report = pull(expect="changed")
    assert report["commit"] == newer
    assert served_serial(outsider, device) != serial
    last = [json.loads(line) for line in journal(server) if '"status": 200' in line][-1]
    assert (last["host"], last["proof"]) == ("device", "certificate")

    new = scenario.conf_digest(device)
    assert new != old
    repository.reset(first)
    repository.push(address=server.ipv4)
    report = pull(expect="refused")
    assert "going back is refused" in report["cause"]
    assert report["commit"] == newer
    assert scenario.conf_digest(device) == new
    repository.reset(newer)
    repository.push(address=server.ipv4)


def test_remote_and_collector_are_away(device, server, pull):
    """What was accepted is applied all the same, so what has drifted is put right. The report comes later."""
    server.check_output("mv /srv/fleet.git /srv/away && systemctl stop collector")
    try:
        digest = scenario.conf_digest(device)
        device.check_output("echo '# drift' >> /etc/nanomq/nanomq.conf")
        report = pull(expect="unreachable", reported=False)
        assert report["counts"]["changed"] == 1
        assert scenario.conf_digest(device) == digest
        assert device.file(f"{STATE}/unsent.json").exists
    finally:
        server.check_output(
            "mv /srv/away /srv/fleet.git; "
            "systemd-run --unit=collector --property=Restart=always python3 /root/collector.py"
        )
        assert scenario.eventually(lambda: server.run("ss -ltnH | grep -q :9443").rc == 0)
    count = len(reports(server))
    pull(expect="ok")
    assert [report["result"] for report in reports(server)[count:]] == ["unreachable", "ok"]
    assert not device.file(f"{STATE}/unsent.json").exists


# --- the signing service, by who asks ---------------------------------------------------------------------------------


def journal(server) -> list[str]:
    return server.check_output("journalctl -u edgesec-nanomq-signer --no-pager -o cat").splitlines()


def ask(device, name: str, names: str, *curl: str) -> tuple[int, str]:
    """What the signing service answers to a request of the device: status and words."""
    script = f"""
    set -e
    cd /root
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout try.key -out try.csr \
        -subj /CN={name} -addext subjectAltName={names} 2>/dev/null
    python3 -c 'import json; print(json.dumps({{"host": "{name}", "request": open("try.csr").read()}}))' > try.json
    curl -sS --max-time 40 -o try.out -w '%{{http_code}}' --cacert /etc/edgesec-nanomq/pull/signer_ca.pem \
        --data @try.json {" ".join(curl)} https://server:8443/certificate || test $? = {HUNG_UP}
    echo
    cat try.out
    """
    status, _newline, words = device.check_output("sh -c %s", script).partition("\n")
    return int(status), words


PAIR = "--cert /etc/nanomq/pki/server/current/cert.pem --key /etc/nanomq/pki/server/current/key.pem"


def bearer(secret: str) -> str:
    return f"-H 'Authorization: Bearer {secret}'"


def test_the_signing_service_refuses_who_proves_nothing(device):
    assert ask(device, "device", "DNS:device")[0] == 401
    assert ask(device, "device", "DNS:device", bearer("made-up"))[0] == 401
    assert ask(device, "nobody", "DNS:nobody", bearer("made-up"))[0] == 401


def test_a_certificate_is_good_for_its_own_name_alone(device):
    assert ask(device, "neighbour", "DNS:neighbour", PAIR)[0] == 403
    status, words = ask(device, "device", "DNS:device,DNS:neighbour", PAIR)
    assert status == 400
    assert "asks for the names" in words
    assert ask(device, "device", "DNS:device", PAIR)[0] == 200


def test_an_invitation_is_good_once_and_for_one_host(device, server):
    secret = invite(server, "neighbour")
    assert ask(device, "device", "DNS:device", bearer(secret))[0] == 401, "it is another host's"
    assert ask(device, "neighbour", "DNS:neighbour,DNS:device", bearer(secret))[0] == 400
    assert ask(device, "neighbour", "DNS:neighbour", bearer(secret))[0] == 200
    assert ask(device, "neighbour", "DNS:neighbour", bearer(secret))[0] == 401, "it was used"
    late = invite(server, "neighbour", "1s")
    server.check_output("sleep 1.5")
    status, words = ask(device, "neighbour", "DNS:neighbour", bearer(late))
    assert status == 401
    assert "has ended" in words
    assert late not in "".join(journal(server))


def test_too_much_and_too_slow(device, server):
    status, _words = ask(device, "device", "DNS:device", "--data-binary @/etc/ssl/certs/ca-certificates.crt", PAIR)
    assert status in (413, 0), "who still sends when the connection is closed may not get to read why"
    script = """
import socket, ssl, time
context = ssl.create_default_context(cafile="/etc/edgesec-nanomq/pull/signer_ca.pem")
raw = socket.create_connection(("server", 8443))
tls = context.wrap_socket(raw, server_hostname="server")
tls.sendall(b"POST /certificate HTTP/1.0\\r\\nContent-Length: 1000\\r\\n\\r\\n")
began = time.monotonic()
try:
    while time.monotonic() < began + 60:
        tls.sendall(b"x")
        time.sleep(1)
except OSError:
    pass
print(time.monotonic() - began)
"""
    assert float(device.check_output("python3 -c %s", script)) < 30
    assert ask(device, "device", "DNS:device")[0] == 401, "it serves others"


def test_a_revoked_certificate_is_no_proof(device, server):
    """As when the device was stolen."""
    serial = device.check_output("basename $(readlink /etc/nanomq/pki/server/current)")
    scratch = pathlib.Path(scenario.INVENTORY).parent / "revoke.yml"
    revoke = {
        "name": "Revoke",
        "hosts": "server",
        "gather_facts": False,
        "become": True,
        "become_user": "nanomq-signer",
        "tasks": [
            {
                "name": "Revoke",
                "edgesec.nanomq.tls_revocation": {
                    "path": "/var/lib/edgesec-nanomq-signer/ca",
                    "serials": [serial],
                    "unknown": True,
                    "passphrase": "intermediate-Q7w",
                },
            }
        ],
    }
    scratch.write_text(json.dumps([revoke]))
    run = scenario.play(str(scratch))
    assert run.status == 0, run.output
    status, words = ask(device, "device", "DNS:device", PAIR)
    assert status == 403
    assert "revoked" in words


def test_a_report_by_mqtt(device, server, repository):
    """The same report, to a broker by TLS, the password in no argument."""
    server.check_output(
        "install -d -o mosquitto /run/mq && cd /root && "
        "install -o mosquitto -m 0600 collector.pem collector.key /run/mq && "
        "touch /run/mq/users && mosquitto_passwd -b /run/mq/users device mqtt-pass-word && "
        "chown mosquitto /run/mq/users && "
        "printf 'listener 8884\\ncertfile /run/mq/collector.pem\\nkeyfile /run/mq/collector.key\\n"
        "password_file /run/mq/users\\nallow_anonymous false\\n' > /run/mq/conf && "
        "systemd-run --unit=mq mosquitto -c /run/mq/conf"
    )
    assert scenario.eventually(lambda: server.run("ss -ltnH | grep -q :8884").rc == 0)
    script = """
import json, os, sys
sys.path.insert(0, "/usr/local/lib/edgesec-nanomq")
sys.dont_write_bytecode = True
import pull
os.umask(0o077)
with open("/root/mqtt-secret", "w") as handle:
    handle.write(sys.argv[1])
config = json.load(open("/etc/edgesec-nanomq/pull/config.json"))
config.update(report_url="mqtts://server:8884/fleet/device", report_secret_path="/root/mqtt-secret")
config.update(report_username="device")
print(pull.deliver(config, {"result": "by mqtt"}))
"""
    listen = (
        "timeout 20 mosquitto_sub -h server -p 8884 --cafile /etc/edgesec-nanomq/pull/report_ca.pem -u device "
        "-P mqtt-pass-word -t fleet/device -C 1 > /root/got & sleep 1; python3 -c %s %s; wait; cat /root/got"
    )
    assert device.check_output(listen, script, "mqtt-pass-word").splitlines()[-1] == '{"result": "by mqtt"}'
    assert "could not be sent" in device.check_output("python3 -c %s wrong", script)
    device.check_output(f"rm -f {STATE}/unsent.json")


def test_the_repository_says_who_may_sign_next_and_when(device, server, repository, pull):
    """A host keeps its own pulling as the repository says: a signer of before takes in another one.

    What that one signs is taken in by the timer alone, and it says when the timer comes from then on.
    """
    config = json.loads(device.check_output("cat /etc/edgesec-nanomq/pull/config.json"))

    def text(name: str) -> str:
        return device.check_output(f"cat /etc/edgesec-nanomq/pull/{name}") + "\n"

    repository.commit(
        "alice",
        nanomq_pull_signers=repository.people(),
        **repository.https(),
        nanomq_pull_vault_password_path=config["vault_password_path"],
        nanomq_pull_calendar="*:*:0/2",
        nanomq_pull_random_delay="0",
        nanomq_pull_report_url=config["report_url"],
        nanomq_pull_report_ca=text("report_ca.pem"),
        nanomq_pull_report_secret_path=config["report_secret_path"],
        nanomq_pull_signer_url="https://server:8443",
        nanomq_pull_signer_ca=text("signer_ca.pem"),
    )
    # One letter, and the device could be told nothing any more.
    wrong = repository.commit("alice", nanomq_pull_branch="mian")
    repository.push(address=server.ipv4)
    report = pull(expect="failed")
    assert report["failed"]["task"].endswith("or that would take nothing any more")
    assert report["commit"] == wrong
    assert json.loads(device.check_output("cat /etc/edgesec-nanomq/pull/config.json")) == config

    repository.commit("alice", nanomq_pull_branch="main")
    repository.push(address=server.ipv4)
    assert pull(expect="changed")["counts"]["changed"] == 1
    newer = repository.commit("mallory", nanomq_pull_calendar=NEVER)
    repository.push(address=server.ipv4)
    assert scenario.eventually(lambda: reports(server)[-1]["commit"] == newer, seconds=120)
    assert [reports(server)[-1][name] for name in ("signer", "result")] == ["mallory", "changed"]
    assert scenario.eventually(lambda: "ActiveState=inactive" in activity(device))
    assert pull(expect="ok")["commit"] == newer


def test_a_remote_by_https_with_a_private_ca(device, server, repository, pull):
    """Which the device was moved to by the last commit. Who answers there with another certificate is not asked.

    And it answers those alone who show their token, which is nowhere to be seen.
    """
    config = json.loads(device.check_output("cat /etc/edgesec-nanomq/pull/config.json"))
    assert config["remote"] == repository.https()["nanomq_pull_remote"]
    serve = (
        "systemctl stop git-https; systemd-run --unit=git-https --uid=fleet --property=Restart=always "
        "python3 /srv/https/git_https.py /srv/https/{0}.pem /srv/https/{0}.key /srv/https/git_token; "
        "for i in $(seq 50); do ss -ltnH | grep -q :9444 && break; sleep 0.1; done"
    )
    accepted = repository.git("rev-parse", "HEAD")
    repository.commit("mallory", nanomq_broker_log_level="warn")
    repository.push(address=server.ipv4)
    server.check_output(serve.format("collector"))
    report = pull(expect="unreachable")
    assert "nanomq_pull_remote_ca" in report["cause"]
    assert (report["offered"], report["commit"]) == ("", accepted)
    server.check_output(serve.format("git"))

    device.check_output(f"mv {GIT_SECRET} /root/git-secret && install -m 0600 /dev/null {GIT_SECRET}")
    device.check_output(f"echo another-token > {GIT_SECRET}")
    report = pull(expect="unreachable")
    assert f"nanomq_pull_remote_secret_path: what is in {GIT_SECRET} is not taken" in report["cause"]
    assert (report["offered"], report["commit"]) == ("", accepted)
    device.check_output(f"mv /root/git-secret {GIT_SECRET}")
    assert pull(expect="changed")["commit"] == repository.git("rev-parse", "HEAD")
    token = (repository.place / "git_token").read_text().strip()
    told = server.check_output("cat /root/reports.jsonl") + device.check_output("journalctl --no-pager -o cat")
    assert token not in told
    assert device.run(f"grep -rlF --exclude-dir=journal {token} /etc /var/lib /run /tmp").stdout.split() == [GIT_SECRET]


def test_what_is_pushed_is_tried_as_well(device, repository):
    """Where alice alone may sign, the device would not take mallory's last commit. Check mode says so as well."""
    before = device.check_output("cat /etc/edgesec-nanomq/pull/config.json /etc/edgesec-nanomq/pull/allowed_signers")
    setup = functools.partial(scenario.play, "edgesec.nanomq.pull_setup", hosts="device", **repository.https())
    people = repository.people()
    for arguments in ([], ["--check"]):
        run = setup(*arguments, nanomq_pull_signers=people[:1])
        assert run.status != 0
        assert "is not signed by one of nanomq_pull_signers" in run.flat()
    run = setup("--check", nanomq_pull_signers=people)
    assert run.status == 0, run.output
    assert "changed=1" in run.output
    present = device.check_output("cat /etc/edgesec-nanomq/pull/config.json /etc/edgesec-nanomq/pull/allowed_signers")
    assert present == before


def test_an_end_of_pulling(device):
    """What was pulled stays in force."""
    digest = scenario.conf_digest(device)
    run = scenario.play("edgesec.nanomq.pull_setup", hosts="device", nanomq_pull_state="absent")
    assert run.status == 0, run.output
    assert device.run("systemctl cat edgesec-nanomq-pull.timer edgesec-nanomq-pull.service").rc != 0
    assert device.run("systemctl is-active edgesec-nanomq-pull.timer").stdout.strip() == "inactive"
    assert scenario.conf_digest(device) == digest
    assert device.run("systemctl is-active nanomq").rc == 0
