# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Back to a generation and forward again, as seen from outside; what goes wrong on the way leaves the host as it was.

The hosts have two generations of the broker and of the firewall: the second one has a user more and a port closed.
"""

from __future__ import annotations

import collections
import json
import time

import pytest
import scenario
from scenario import USERS, broker_names, eventually, harden, play

LATE = "late-comer-password"
SECOND = {
    "nanomq_broker_users": {**USERS, "late": LATE},
    "nanomq_firewall_closed_ports": [1883, 8081, 8083, 8086, 7777],
}
STATE = "/var/lib/edgesec-nanomq"


def rollback(*arguments: str, transaction: str = "", to: object = "", **options) -> scenario.Play:
    return play(
        "edgesec.nanomq.rollback",
        *arguments,
        nanomq_rollback_transaction=transaction,
        nanomq_rollback_to=to,
        **options,
    )


def gets_in(client, broker, user: str, password: str) -> bool:
    return client.publish(broker.ipv4, user=user, password=password)


def in_force(client, broker) -> str:
    """Which generation answers on the socket: "first", "second" or "nothing"."""
    operator = late = False
    for _attempt in range(6):  # the real broker at times aborts, and is back after two seconds
        late = gets_in(client, broker, "late", LATE)
        operator = late or gets_in(client, broker, "operator", USERS["operator"])
        if operator:
            break
        time.sleep(1)
    return "nothing" if not operator else "second" if late else "first"


def numbers(broker, transaction: str = "broker") -> list[int]:
    return [int(name) for name in broker.check_output(f"ls {STATE}/{transaction}/generations").split()]


def leftovers(broker) -> str:
    return broker.check_output(
        "find /etc /usr/local /var/lib -xdev '(' -name '.*.new' -o -name '.*.old' -o -name record.json ')' 2>/dev/null"
    )


def remote_runs(run: scenario.Play) -> dict[str, int]:
    return collections.Counter(cost["host"] for cost in run.costs if cost["kind"] != "task")


@pytest.fixture
def broker(request):
    """One of the hosts. Not for the session as elsewhere, since that would change the order of the tests."""
    return scenario.known_broker(request.param)


@pytest.fixture(scope="module", autouse=True)
def two_generations(brokers):
    """1 is what the scenario converged to; 2 has a user more and a port closed."""
    run = harden(**SECOND)
    assert run.status == 0, run.output
    for broker in brokers:
        assert numbers(broker) == numbers(broker, "firewall") == [0, 1, 2]


@pytest.fixture
def second(client, broker):
    """The second generation in force before the test; and again after it, whatever it did."""
    digest = scenario.conf_digest(broker)
    yield digest
    if scenario.conf_digest(broker) != digest or leftovers(broker):
        run = rollback(hosts=broker.name, transaction="broker", to=2)
        assert run.status == 0, run.output
        assert scenario.conf_digest(broker) == digest
        assert leftovers(broker) == ""


def listen(broker) -> None:
    """Listen on a port that the second generation of the firewall closes, and on one of no broker's."""
    script = "import socket as s, time; a, b = (s.create_server(('0.0.0.0', p)) for p in (7777, 9883)); time.sleep(900)"
    broker.run("systemd-run --quiet --collect --unit=listener /usr/bin/python3 -c %s", script)


# --- list -------------------------------------------------------------------------------------------------------------


def test_the_list_says_what_when_and_by_which_run_in_one_remote_run():
    run = rollback()
    assert run.status == 0, run.output
    print(f"remote runs to list: {dict(remote_runs(run))}")
    assert set(remote_runs(run).values()) == {1}
    for name in broker_names():
        assert run.recap(name)["changed"] == 0
    text = run.flat()
    for word in ("broker", "firewall", "Harden NanoMQ by ", "/etc/nanomq/nanomq.conf", "as it was found"):
        assert text.count(word) >= len(broker_names()), word
    assert "cannot be restored" not in text
    assert "not as in force" not in text


@pytest.mark.parametrize("broker", ["bookworm"], indirect=True)
def test_drift_from_the_generation_in_force_is_named(broker):
    broker.check_output("chmod 0644 /etc/nanomq/nanomq.conf")
    assert "not as in force: /etc/nanomq/nanomq.conf" in rollback(hosts=broker.name).flat()
    broker.check_output("chmod 0640 /etc/nanomq/nanomq.conf")


# --- back and forward -------------------------------------------------------------------------------------------------


def test_a_user_goes_with_the_rollback_and_comes_back(client, brokers):
    back = rollback(transaction="broker", to="previous")
    assert back.status == 0, back.output
    print(f"remote runs to go back: {dict(remote_runs(back))}")
    assert set(remote_runs(back).values()) == {1}
    assert back.flat().count("users that go: late") == len(brokers)
    for broker in brokers:
        assert in_force(client, broker) == "first"
        assert not gets_in(client, broker, "nobody", "whatever")
    for to in ("previous", 1):
        again = rollback(transaction="broker", to=to)
        assert again.status == 0, again.output
        assert [again.recap(broker.name)["changed"] for broker in brokers] == [0] * len(brokers)
    forward = rollback(transaction="broker", to=2)
    assert forward.status == 0, forward.output
    assert "was not asked through REST" not in forward.flat()
    for broker in brokers:
        assert in_force(client, broker) == "second"


def test_a_rule_of_the_firewall_goes_with_the_rollback_and_comes_back(outsider, brokers):
    for broker in brokers:
        listen(broker)
    for to, reached in (("previous", True), (2, False)):
        run = rollback(transaction="firewall", to=to)
        assert run.status == 0, run.output
        assert set(remote_runs(run).values()) == {2}, "the second one confirms over a fresh connection"
        for broker in brokers:
            assert (outsider.run(f"nc -z -w 2 {broker.ipv4} 7777").rc == 0) is reached
            assert not broker.file(f"{STATE}/firewall/record.json").exists


def test_check_mode_shows_the_difference_and_changes_nothing(client, brokers):
    before = [(scenario.conf_digest(broker), numbers(broker)) for broker in brokers]
    run = rollback("--check", "--diff", transaction="broker", to="previous")
    assert run.status == 0, run.output
    assert [run.recap(broker.name)["changed"] for broker in brokers] == [1] * len(brokers)
    assert run.output.count('-    "late" = "***"') == len(brokers)
    assert run.flat().count("users that go: late") == len(brokers)
    assert [(scenario.conf_digest(broker), numbers(broker)) for broker in brokers] == before
    assert in_force(client, brokers[0]) == "second"


@pytest.mark.parametrize("broker", ["trixie"], indirect=True)
def test_no_secret_is_shown_or_logged(broker, second):
    since = broker.check_output("date +%s")
    runs = [
        rollback("-vvv", "--diff", hosts=broker.name),
        rollback("-vvv", "--diff", hosts=broker.name, transaction="broker", to="previous"),
        rollback("-vvv", "--diff", hosts=broker.name, transaction="broker", to=2),
    ]
    assert [run.status for run in runs] == [0, 0, 0]
    assert runs[1].recap(broker.name)["changed"] == runs[2].recap(broker.name)["changed"] == 1
    journal = scenario.journal(broker, f"--since=@{since}")
    kept = broker.check_output(f"cat {STATE}/broker/last.json {STATE}/broker/generations/*/manifest.json")
    key = broker.check_output("cat /etc/nanomq/pki/server/current/key.pem").splitlines()[1]
    for text in (*(run.output for run in runs), journal, kept):
        for secret in (*USERS.values(), LATE, key):
            for spelling in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], secret.replace('"', '\\"')):
                assert spelling not in text, secret
        assert "Bearer ey" not in text
        assert "eyJ" not in text
    assert LATE in broker.check_output(f"cat {STATE}/broker/generations/*/0*"), "the test looks for what is there"
    assert broker.check_output(f"find {STATE} -perm /077 -not -name transaction.py -not -path {STATE}") == ""


# --- what goes wrong --------------------------------------------------------------------------------------------------

#: Changes a generation so that its checksums hold: what it says is wrong, not how it was kept.
FORGE = """
import hashlib, json, sys
path, old, new = sys.argv[1:]
manifest = json.load(open(path + '/manifest.json'))
item = next(item for item in manifest['files'] if item['dest'] == '/etc/nanomq/nanomq.conf')
text = open(path + '/' + item['blob']).read()
assert old in text
text = text.replace(old, new)
open(path + '/' + item['blob'], 'w').write(text)
item['sha256'] = hashlib.sha256(text.encode()).hexdigest()
del manifest['checksum']
manifest['checksum'] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
json.dump(manifest, open(path + '/manifest.json', 'w'))
"""


@pytest.fixture
def first(broker, second):
    """A kept generation that is like the first one, to be spoilt; whole again afterwards."""
    copies = broker.run(f"grep -lE '.restores.: 1,' {STATE}/broker/generations/*/manifest.json").stdout.split()
    number = int(copies[-1].split("/")[-2]) if copies else 1
    path = f"{STATE}/broker/generations/{number:04d}"
    broker.check_output(f"rm -rf /root/kept && cp -a {path} /root/kept")
    yield number, path
    broker.check_output(f"rm -rf {path} && cp -a /root/kept {path}")


def assert_refused(run, client, broker, digest: str, *words: str) -> None:
    assert run.status != 0, run.output
    for word in words:
        assert word in run.flat(), run.output
    assert scenario.conf_digest(broker) == digest
    assert leftovers(broker) == ""
    assert eventually(lambda: broker.service("nanomq").is_running)
    assert in_force(client, broker) == "second"


@pytest.mark.parametrize(
    ("broker", "old", "new", "words"),
    [
        ("bookworm", "0.0.0.0:8883", "0.0.0.0:9883", ("probe: ", "what had been changed was put back")),
        ("trixie", "allow_anonymous = false", 'allow_anonymous = "false"', ("validate: ", "auth.allow_anonymous")),
        ("trixie", "allow_anonymous = false", "allow_anonymous = {", ("validate: ", "nanomq.conf")),
    ],
    ids=["a port that is taken", "a value that the broker ignores", "does not parse"],
    indirect=["broker"],
)
def test_a_generation_that_the_broker_takes_no_longer_is_undone(client, broker, second, first, old, new, words):
    listen(broker)
    number, path = first
    broker.check_output("python3 -c %s %s %s %s", FORGE, path, old, new)
    run = rollback(hosts=broker.name, transaction="broker", to=number)
    assert_refused(run, client, broker, second, *words)


@pytest.mark.parametrize(
    ("broker", "spoil"),
    [
        ("bookworm", "rm {file}"),
        ("trixie", "printf x >> {file}"),
        ("bookworm", "truncate -s 20 {path}/manifest.json"),
    ],
    indirect=["broker"],
)
def test_a_damaged_generation_is_refused_and_listed_as_such(client, broker, second, first, spoil):
    number, path = first
    file = broker.check_output(f"grep -l allow_anonymous -r {path}").split()[0]
    broker.check_output(spoil.format(file=file, path=path))
    run = rollback(hosts=broker.name, transaction="broker", to=number)
    assert_refused(run, client, broker, second, f"generation {number} of 'broker' is damaged", "no file was changed")
    assert f"cannot be restored: generation {number} of 'broker' is damaged" in rollback(hosts=broker.name).flat()


@pytest.mark.parametrize("broker", ["trixie"], indirect=True)
def test_full_disk(client, broker, second, first):
    """The generation in force is on another file system, without a byte left."""
    number, _path = first
    broker.check_output(
        f"mkdir -p /mnt/full && mount -t tmpfs -o size=1m,mode=0700 tmpfs /mnt/full && cp -a {STATE}/. /mnt/full/ && "
        f"mount --move /mnt/full {STATE}"
    )
    try:
        broker.run(f"cat /dev/zero > {STATE}/fill")
        run = rollback(hosts=broker.name, transaction="broker", to=number)
        broker.check_output(f"rm {STATE}/fill")
        assert_refused(run, client, broker, second, "No space left")
    finally:
        broker.check_output(f"umount {STATE}")


@pytest.mark.parametrize(
    ("transaction", "to", "words"),
    [
        ("broker", 4711, "'broker' has no generation 4711; it has "),
        ("broker", "../1", "is neither the number of a generation nor 'previous'"),
        ("broker", 0, "cannot be restored: nothing says how to check it"),
        ("nginx", "previous", "this host has no transaction 'nginx'; it has broker, firewall"),
        ("brokr", "previous", "nanomq_rollback_transaction must be one of: , broker, firewall, ssh_tunnel, nginx"),
        ("", 1, "give nanomq_rollback_transaction as well"),
    ],
)
def test_what_there_is_not_is_named(brokers, transaction, to, words):
    before = [scenario.conf_digest(broker) for broker in brokers]
    run = rollback(transaction=transaction, to=to)
    assert run.status != 0
    assert run.flat().count(words) >= len(brokers), run.output
    assert [scenario.conf_digest(broker) for broker in brokers] == before


# --- kill -9 ----------------------------------------------------------------------------------------------------------

#: An interpreter that keeps what it is given to run, which is the module with its arguments, as it came by ssh.
CAPTURE = """#!/bin/sh
payload=$(mktemp /run/payload.XXXXXX)
cat > "$payload"
if grep -q modules.transaction "$payload" && grep -q '"restored"' "$payload"; then
    mv "$payload" /root/payload
    payload=/root/payload
fi
exec /usr/bin/python3 "$@" < "$payload"
"""


def captured(broker, to: int) -> str:
    run = rollback(hosts=broker.name, transaction="broker", to=to, interpreter="/root/capture")
    assert run.status == 0, run.output
    broker.check_output(f"mv /root/payload /root/payload-{to}")
    return f"/usr/bin/python3 < /root/payload-{to}"


def ended_well(done) -> bool:
    return done.rc == 0 and '"failed": true' not in done.stdout


@pytest.mark.parametrize("broker", broker_names() if scenario.INVENTORY else [], indirect=True)
def test_killed_in_the_middle_and_run_again(client, broker, second):
    """At every rename, which is where a step becomes true; killed, the socket shows one generation whole."""
    broker.check_output("printf %%s %s > /root/capture && chmod +x /root/capture", CAPTURE)
    commands = {"first": captured(broker, 1)}
    digests = {"first": scenario.conf_digest(broker), "second": second}
    commands["second"] = captured(broker, 2)
    phases = collections.Counter()
    wanted, other = "first", "second"
    # Shared out between the hosts.
    for number in range(1 + broker_names().index(broker.name), 40, 2):
        kill = f"strace -f -qq -o /dev/null -e trace=rename -e inject=rename:signal=KILL:when={number} "
        survived = ended_well(broker.run(kill + commands[wanted]))
        record = broker.run(f"cat {STATE}/broker/record.json")
        if record.rc == 0:
            phases[json.loads(record.stdout)["phase"]] += 1
        assert in_force(client, broker) in ([wanted] if survived else [wanted, other]), number
        if survived:
            break
        assert ended_well(broker.run(commands[wanted])), number
        assert scenario.conf_digest(broker) == digests[wanted], number
        assert leftovers(broker) == "", number
        wanted, other = other, wanted
    else:
        pytest.fail("the run never survived")
    print(f"{broker.name}: killed at every second of {number - 1} renames, in {dict(phases)}")
    assert len(phases) >= 3


# --- last, since it is a deployment more ------------------------------------------------------------------------------


@pytest.mark.parametrize("broker", ["bookworm"], indirect=True)
def test_a_generation_whose_key_is_gone_is_refused(client, broker, second):
    """The certificate is made anew, so that the generations before name a pair that can go."""
    broker_was = scenario.conf_digest(broker)
    pair = broker.check_output("readlink -f /etc/nanomq/pki/server/current")
    others = [f"DNS:{broker.name}", f"IP:{broker.ipv4}", "DNS:another"]
    run = harden(hosts=broker.name, nanomq_pki_server_names=others, **SECOND)
    assert run.status == 0, run.output
    assert broker.check_output("readlink -f /etc/nanomq/pki/server/current") != pair
    digest = scenario.conf_digest(broker)
    broker.check_output(f"mv {pair} {pair}.away")
    run = rollback(hosts=broker.name, transaction="broker", to="previous")
    assert_refused(run, client, broker, digest, "needs what is no longer on the host", f"{pair}/key.pem")
    broker.check_output(f"mv {pair}.away {pair}")
    back = rollback(hosts=broker.name, transaction="broker", to="previous")
    assert back.status == 0, back.output
    assert scenario.conf_digest(broker) == broker_was
