# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates renewed on two brokers and a client's host: when, how often, what is served then, and what it costs.

trixie has nginx in front of the broker, by HTTPS, stream and WebSocket.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import json
import os
import pathlib
import signal
import statistics
import subprocess
import time

import pytest
import scenario
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from scenario import HOSTS, USERS, eventually, pki

HERE = pathlib.Path(__file__).resolve().parent
INVENTORY = str(HERE.parent / "inventory/hosts.yml")
RENEW = "edgesec.nanomq.renew_certificates"
MARGINS = ("nanomq_pki_server_renew_before", "nanomq_pki_client_renew_before")
LIVES = ("nanomq_pki_server_valid_for", "nanomq_pki_client_valid_for")
#: Where certificates are served; those of loopback are asked for on the host itself.
SOCKETS = {"bookworm": [8883, 8086], "trixie": [8883, 8086, 443, 8884, 8084]}
LOOPBACK = (8086,)
#: Renewals that are measured; more of them make the figures of the documentation.
RENEWALS = int(os.environ.get("EDGESEC_RENEWALS", "1"))
#: Seconds without an acknowledged message: one restart, or the two that systemd waits when the broker has aborted.
LONGEST_GAP = 8.0


def run(playbook: str, *arguments: str, **options) -> scenario.Play:
    return scenario.play(playbook, "-i", INVENTORY, *arguments, **options)


def renew(*arguments: str, **options) -> scenario.Play:
    return run(RENEW, *arguments, **options)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def changed(play: scenario.Play, *names: str) -> dict[str, bool]:
    return {name: play.recap(name)["changed"] > 0 for name in names or ("bookworm", "trixie", "outsider")}


NOTHING = dict.fromkeys(("bookworm", "trixie", "outsider"), False)
ALL = dict.fromkeys(NOTHING, True)


def in_force(host, path: str = "/etc/nanomq/pki/server") -> str:
    return host.check_output(f"readlink {path}/current")


def served(outsider, broker) -> dict[int, str]:
    """The serial number of the certificate that each socket serves."""
    found = {}
    for port in SOCKETS[broker.name]:
        host, address = (broker, "127.0.0.1") if port in LOOPBACK else (outsider, broker.ipv4)
        pair = "/etc/nanomq/pki/server/current" if port in LOOPBACK else "/etc/nanomq-client/client/current"
        command = (
            f"for try in 1 2 3 4 5; do timeout 5 openssl s_client -connect {address}:{port} -cert {pair}/cert.pem "
            f"-key {pair}/key.pem < /dev/null 2>/dev/null | openssl x509 -noout -serial 2>/dev/null && break; "
            "sleep 0.7; done"
        )
        found[port] = host.run(command).stdout.strip().partition("=")[2].lower()
    return found


def assert_served(outsider, brokers) -> None:
    for broker in brokers:
        assert served(outsider, broker) == dict.fromkeys(SOCKETS[broker.name], in_force(broker)), broker.name


def remote_runs(play: scenario.Play) -> dict[str, int]:
    return collections.Counter(cost["host"] for cost in play.costs if cost["kind"] != "task")


# --- the client that counts -------------------------------------------------------------------------------------------


@pytest.fixture
def publishing(client):
    """publishing(brokers): within, a client publishes to each; its reports are in what it gives, afterwards."""
    client.host.check_output("printf %%s %s > /root/publisher.py", (HERE / "publisher.py").read_text())
    config = pathlib.Path(scenario.INVENTORY).parent / "ssh_config"

    @contextlib.contextmanager
    def publish(brokers, seconds: int = 240):
        reports: dict[str, dict] = {}
        clients = {}
        for broker in brokers:
            command = f"exec python3 /root/publisher.py {broker.ipv4} operator '{USERS['operator']}' {seconds}"
            ssh = ["ssh", "-F", str(config), "-o", "ControlPath=none", "-tt", "outsider", command]
            clients[broker.name] = subprocess.Popen(
                ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        try:
            time.sleep(1.5)
            yield reports
            time.sleep(1.5)
        finally:
            client.host.run("pkill -TERM -f '^python3 /root/publisher.py'")
            for name, process in clients.items():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    out, _err = process.communicate(timeout=20)
                    reports[name] = json.loads(out.strip().splitlines()[-1])
                process.kill()

    return publish


def assert_unbroken(reports: dict[str, dict]) -> None:
    """Each number came through, by a certificate that was right whenever there was one, after one restart's time."""
    for name, report in reports.items():
        print(f"{name}: {report}")
        assert report["acknowledged"] > 20, name
        assert report["bad"] == 0, name
        assert report["longest_gap"] < LONGEST_GAP, name


# --- when -------------------------------------------------------------------------------------------------------------


def test_nothing_before_the_window_once_in_it_and_nothing_after(outsider, brokers):
    """Certificates that have 25 days left, of 365 of which the last 30 are the window."""

    def keys() -> list[str]:
        return [broker.check_output("sha256sum < /etc/nanomq/pki/server/current/key.pem") for broker in brokers]

    found, moment = keys(), now()
    short = dict.fromkeys(LIVES, "25d") | dict.fromkeys(MARGINS, "20d")
    first = renew(**short, nanomq_pki_renew_issued_before=moment)
    assert first.status == 0, first.output
    assert changed(first) == ALL
    assert first.flat().count("renewed (requested: valid from ") == 3
    before = {host.name: in_force(host) for host in brokers}
    made = keys()
    assert all(old != new for old, new in zip(found, made, strict=True))

    # The same request again, and the window a day away.
    early = renew(**dict.fromkeys(MARGINS, "24d"), nanomq_pki_renew_issued_before=moment)
    assert (early.status, changed(early)) == (0, NOTHING), early.output
    assert early.flat().count("not due, good until ") == 3
    print(f"remote runs where nothing is due: {dict(remote_runs(early))}")
    assert max(remote_runs(early).values()) <= 4
    assert {host.name: in_force(host) for host in brokers} == before

    due = run("edgesec.nanomq.harden", nanomq_pki_server_renewal_key="same")
    assert due.status == 0, due.output
    assert changed(due, "bookworm", "trixie") == {"bookworm": True, "trixie": True}
    assert_served(outsider, brokers)
    after = {host.name: in_force(host) for host in brokers}
    assert all(after[name] != before[name] for name in before)
    assert keys() == made

    client = renew()
    assert (client.status, changed(client)) == (0, NOTHING | {"outsider": True}), client.output
    assert client.flat().count("client: renewed (expiring: at ") == 1
    last = renew()
    assert (last.status, changed(last)) == (0, NOTHING), last.output
    assert {host.name: in_force(host) for host in brokers} == after


def test_a_client_gets_in_by_what_was_renewed(client, outsider, brokers):
    """At the broker, whose CA signed for it."""
    pair = "/etc/nanomq-client/client/current"
    authority = f"--cafile {client.directory}/ca.pem"
    assert outsider.check_output(f"stat -c '%a %U' {pair}/key.pem") == "640 root"
    for broker in brokers:
        publish = (
            f"timeout 8 mosquitto_pub -h {broker.ipv4} -p 8883 -q 1 -t operator/x -m x -u operator "
            f"-P '{USERS['operator']}' {authority} --cert {pair}/cert.pem --key {pair}/key.pem"
        )
        assert eventually(lambda command=publish: outsider.run(command).rc == 0)


# --- what is served ---------------------------------------------------------------------------------------------------

#: Has the services start with the pair before, and then puts the right one back: a file replaced, a service forgotten.
STALE = """
set -e
cd /etc/nanomq/pki/server
now=$(readlink current)
old=$(ls -t | grep -vx -e "$now" -e current | head -1)
cp -a "$now" /root/pair
for file in key.pem cert.pem; do cat "$old/$file" > "$now/$file"; done
for service in {services}; do systemctl restart "$service"; done
sleep 1
for file in key.pem cert.pem; do cat "/root/pair/$file" > "$now/$file"; done
rm -r /root/pair
"""


def test_a_service_that_serves_what_the_file_was_is_found_and_started_anew(outsider, brokers):
    services = {"bookworm": "nanomq", "trixie": "nanomq nginx"}
    before = {broker.name: in_force(broker) for broker in brokers}
    for broker in brokers:
        broker.check_output("bash -c %s", STALE.replace("{services}", services[broker.name]))
        assert {in_force(broker), ""}.isdisjoint(served(outsider, broker).values())
    repaired = renew()
    assert repaired.status == 0, repaired.output
    for name in before:
        assert repaired.recap(name)["changed"] == len(services[name].split())
    assert {broker.name: in_force(broker) for broker in brokers} == before
    assert_served(outsider, brokers)


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_what_a_renewal_costs_a_client_that_publishes(brokers, publishing):
    figures = collections.defaultdict(list)
    for _renewal in range(RENEWALS):
        with publishing(brokers) as reports:
            done = renew(nanomq_pki_renew_issued_before=now())
        assert done.status == 0, done.output
        assert_unbroken(reports)
        for name, report in reports.items():
            figures[name].append(report)
        time.sleep(1)  # the next moment
    for name, reports in figures.items():
        gaps = [report["longest_gap"] for report in reports]
        repeated = [report["sent"] - report["acknowledged"] for report in reports]
        print(f"{name}: longest gap, median of {len(gaps)}: {statistics.median(gaps):.3f} s, most: {max(gaps):.3f} s")
        print(f"{name}: numbers sent again, median: {statistics.median(repeated)}, most: {max(repeated)}")
        print(f"{name}: connections: {[report['connections'] for report in reports]}")


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def killed(moment: str, task: str, seconds: float) -> None:
    """A run whose controller is killed, its workers with it, so many seconds after a task has begun."""
    begun: list[float] = []

    def long_enough(lines: list[str]) -> bool:
        if not begun and any(task in line for line in lines if "TASK" in line):
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] >= seconds

    done = renew(killed_when=long_enough, nanomq_pki_renew_issued_before=moment)
    assert done.status == -signal.SIGKILL, (task, done.output)


def test_the_controller_is_killed_and_the_next_run_ends_it(outsider, brokers, publishing):
    before = [in_force(broker) for broker in brokers]
    moment = now()
    with publishing(brokers) as reports:
        for task, seconds in (
            ("The certificate of the host", 0.7),
            ("The configuration and the service, as one transaction", 0.7),
            ("The configuration and the service, as one transaction", 1.5),
        ):
            killed(moment, task, seconds)
            print(f"killed {seconds} s into {task!r}: {[in_force(broker) for broker in brokers]}")
        done = renew(nanomq_pki_renew_issued_before=moment)
        assert done.status == 0, done.output
    assert_unbroken(reports)
    assert all(old != new for old, new in zip(before, [in_force(broker) for broker in brokers], strict=True))
    assert_served(outsider, brokers)
    again = renew(nanomq_pki_renew_issued_before=moment)
    assert (again.status, changed(again)) == (0, NOTHING), again.output


#: A Python of the hosts that kills itself at a rename, once, where the file says of which module, step and rename.
SUICIDE = """#!/bin/sh
payload=$(mktemp /run/payload.XXXXXX)
cat > "$payload"
if [ -e /root/die ]; then
    read -r module word number < /root/die
    if grep -q "modules.$module" "$payload" && grep -q "\\"$word\\"" "$payload"; then
        rm /root/die
        exec strace -f -qq -o /dev/null -e trace=rename -e inject=rename:signal=KILL:when="$number" \
            /usr/bin/python3 "$@" < "$payload"
    fi
fi
exec /usr/bin/python3 "$@" < "$payload"
"""


def test_the_module_is_killed_and_the_next_run_ends_it(outsider, brokers, publishing):
    """At chosen renames, each of which makes a step true; the unit tests do so at every step."""
    points = (
        {"bookworm": "tls_certificate install 2", "trixie": "transaction nginx.service 6"},
        {"bookworm": "transaction nanomq.service 8", "trixie": "tls_certificate install 3"},
    )
    for broker in brokers:
        broker.check_output("printf %%s %s > /root/suicide && chmod +x /root/suicide", SUICIDE)
    with publishing(brokers) as reports:
        for point in points:
            before = {broker.name: in_force(broker) for broker in brokers}
            moment = now()
            for broker in brokers:
                broker.check_output("echo %s > /root/die", point[broker.name])
            cut = renew(interpreter="/root/suicide", nanomq_pki_renew_issued_before=moment)
            assert cut.status != 0, cut.output
            for broker in brokers:
                assert not broker.file("/root/die").exists, (broker.name, "the test kills nothing")
                assert cut.recap(broker.name)["failed"] == 1, cut.output
            done = renew(nanomq_pki_renew_issued_before=moment)
            assert done.status == 0, done.output
            for broker in brokers:
                assert in_force(broker) != before[broker.name]
                pairs = broker.check_output("ls -A /etc/nanomq/pki/server").split()
                assert [name for name in pairs if name.startswith(".") and not name.startswith(".new-")] == []
    assert_unbroken(reports)
    assert_served(outsider, brokers)


# --- clocks -----------------------------------------------------------------------------------------------------------

#: Python on the hosts with another idea of the time. All that asks for it does so by this function.
CLOCK = "import time\nreal = time.time\ntime.time = lambda: real() + ({seconds})\n"


def state(brokers) -> list[tuple[str, str, str]]:
    """What must not change where a run is refused."""
    return [
        (in_force(broker), scenario.conf_digest(broker), broker.run("ls -d /etc/nanomq/pki/server/.*new*").stdout)
        for broker in brokers
    ]


def test_a_clock_that_is_wrong_is_said_before_anything_is_changed(brokers):
    before = state(brokers)
    # five seconds after the beginning of 1970: the two readings are not the same moment
    shift = {"bookworm": "5 - real()", "trixie": "86400"}
    for broker in brokers:
        text = CLOCK.replace("{seconds}", shift[broker.name])
        broker.check_output("mkdir -p /root/clock && printf %%s %s > /root/clock/sitecustomize.py", text)
        python = '#!/bin/sh\nPYTHONPATH=/root/clock exec /usr/bin/python3 "$@"\n'
        broker.check_output("printf %%s %s > /root/late && chmod +x /root/late", python)
    refused = renew(hosts="brokers", interpreter="/root/late", nanomq_pki_renew_issued_before=now())
    assert refused.status != 0
    for broker in brokers:
        assert refused.recap(broker.name) | {"changed": 0, "failed": 1} == refused.recap(broker.name), refused.output
    assert "the clock of this host says 1970-01-01T00:00:0" in refused.flat()
    assert "s ahead of the controller's" in refused.flat()
    assert "300 s are tolerated (nanomq_pki_clock_tolerance)" in refused.flat()
    assert state(brokers) == before


def test_the_controllers_clock_is_compared_with_what_it_issued(brokers):
    """As if it had been right when it signed, and were behind now."""
    before = state(brokers)
    key, ca = authority()
    future = pki() / "ca/issued/77.pem"
    future.write_bytes(certificate(ca, key, begin=2, end=5, authority=False))
    try:
        refused = renew(hosts="brokers", nanomq_pki_renew_issued_before=now())
    finally:
        future.unlink()
    assert refused.status != 0
    assert "the clock of the controller says" in refused.flat(), refused.output
    assert "issued/77.pem" in refused.flat()
    assert state(brokers) == before


# --- bad inputs -------------------------------------------------------------------------------------------------------


def authority():
    """(key, certificate) of the fleet's CA."""
    passphrase = HOSTS["nanomq_pki_authority_passphrase"].encode()
    key = serialization.load_pem_private_key((pki() / "ca/ca.key").read_bytes(), passphrase)
    return key, x509.load_pem_x509_certificate((pki() / "ca/ca.pem").read_bytes())


def certificate(issuer, key, *, begin: int, end: int, authority: bool) -> bytes:
    """A certificate by the CA, of the CA itself or of anything, from and until so many days from now."""
    today = datetime.datetime.now(datetime.UTC)
    first, last = (today + datetime.timedelta(days=days) for days in (begin, end))
    builder = x509.CertificateBuilder(issuer.subject, issuer.subject, key.public_key(), 77, first, last)
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@contextlib.contextmanager
def replaced(path: pathlib.Path, content: bytes):
    old = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(old)


def test_an_authority_that_is_not_fit_is_refused(brokers):
    before = state(brokers)
    key, ca = authority()
    stranger = (pki() / "operators/ca.key").read_bytes()
    expired = certificate(ca, key, begin=-9, end=-1, authority=True)
    for bad, words in (
        (replaced(pki() / "ca/ca.key", stranger), "do not belong together"),
        (replaced(pki() / "ca/ca.pem", expired), " expired at "),
    ):
        with bad:
            refused = renew(hosts="brokers", nanomq_pki_renew_issued_before=now())
        assert refused.status != 0
        assert words in refused.flat(), refused.output
    refused = renew(hosts="brokers", nanomq_pki_renew_issued_before=now(), nanomq_pki_authority_passphrase="wrong")
    assert refused.status != 0
    assert "ca.key: " in refused.flat(), refused.output
    assert state(brokers) == before


FULL = (
    "mkdir -p /mnt/pki && mount -t tmpfs -o size=256k,mode=0755 tmpfs /mnt/pki && cp -a /etc/nanomq/pki/. /mnt/pki/ && "
    "mount --move /mnt/pki /etc/nanomq/pki && ! cat /dev/zero > /etc/nanomq/pki/fill"
)
FOREIGN = "mv /etc/nanomq/pki /srv/pki && ln -s /srv/pki /etc/nanomq/pki && chown -h nobody /etc/nanomq/pki"


def test_a_full_disk_and_a_link_of_somebody_else(client, brokers):
    bookworm, trixie = brokers
    before = state(brokers)
    bookworm.check_output("sh -c %s 2>/dev/null", FULL)
    trixie.check_output(FOREIGN)
    try:
        refused = renew(hosts="brokers", nanomq_pki_renew_issued_before=now())
        assert refused.status != 0
        assert [refused.recap(broker.name)["failed"] for broker in brokers] == [1, 1], refused.output
        assert "No space left on device" in refused.flat()
        assert "/etc/nanomq/pki is a symbolic link" in refused.flat()
        assert state(brokers) == before
    finally:
        bookworm.check_output("umount /etc/nanomq/pki")
        trixie.check_output("rm /etc/nanomq/pki && mv /srv/pki /etc/nanomq/pki")
    assert state(brokers) == before
    for broker in brokers:
        assert client.publish(broker.ipv4, user="operator", password=USERS["operator"])


def test_a_key_that_is_a_directory(brokers):
    """One that the user gives; of its own keys the role makes another one."""
    before = state(brokers)
    refused = renew(hosts="brokers", nanomq_broker_tls_key_path="/etc/nanomq/pki")
    assert refused.status != 0
    assert "nanomq_broker_tls_key_path" in refused.flat(), refused.output
    assert state(brokers) == before
