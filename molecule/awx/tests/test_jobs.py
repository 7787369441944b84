# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The job templates of AWX on real hosts, by ansible-runner, with injected credentials. No AWX has a part in it.

The tests build on each other: the fleet is hardened in slices, audited, changed, rolled back, and gets other keys.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import functools
import json
import os
import pathlib
import re

import awx_runner
import pytest
import scenario
from scenario import HOSTS, USERS

RUN_DIR = pathlib.Path(scenario.INVENTORY).parent
LATE = "late-comer-password"
CA_PASSPHRASE = HOSTS["nanomq_pki_authority_passphrase"]
JWT_PASSPHRASE = HOSTS["nanomq_pki_jwt_passphrase"]
#: What comes from credentials and from the job template, and so not from the inventory.
ELSEWHERE = ("nanomq_pki_dir", "nanomq_pki_authority_passphrase", "nanomq_pki_jwt_passphrase")


def inventory(**variables) -> dict:
    """The fleet as AWX has it: the hosts of the test bed, what is declared of them, and no passphrase."""
    lab = json.loads(pathlib.Path(scenario.INVENTORY).read_text())
    groups = lab["all"]["children"]
    declared = {name: value for name, value in HOSTS.items() if name not in ELSEWHERE}
    groups["brokers"]["vars"] = {**groups["brokers"].get("vars", {}), **declared, **variables}
    groups["brokers"]["vars"]["nanomq_broker_waivers"] = waivers()
    groups["canary"] = {"hosts": {"edge1": {}}}
    return lab


@functools.cache
def waivers() -> list[dict[str, str]]:
    """Of what the version of the broker breaks however it is configured."""
    why = {"reason": "The version is what is tested", "expires": f"{datetime.date.today().year + 1}-01-01"}
    return [{"rule": rule, **why} for rule in sorted(scenario.version_findings(scenario.connect("edge1")))]


def credentials(name: str) -> dict[str, dict[str, str]]:
    """What is filled in in AWX."""
    every = {
        "NanoMQ CA passphrase": {"passphrase": CA_PASSPHRASE},
        "NanoMQ token key passphrase": {"passphrase": JWT_PASSPHRASE},
    }
    if "NanoMQ token key" in awx_runner.TEMPLATES[name]["credentials"]:
        every["NanoMQ token key"] = {"private_key": token_key(), "passphrase": JWT_PASSPHRASE}
    return {kind: every[kind] for kind in awx_runner.TEMPLATES[name]["credentials"]}


def token_key() -> str:
    return (scenario.pki() / "jwt/fleet.key").read_text()


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    """All jobs of the session."""
    return []


@pytest.fixture(scope="session")
def job(tmp_path_factory, jobs):
    """job(name, fleet, **options): run a job template on the hosts."""
    scenario.pki().mkdir(exist_ok=True)

    def run(name: str, fleet: dict | None = None, **options) -> awx_runner.Job:
        done = awx_runner.run_job(
            tmp_path_factory.mktemp("job") / "private",
            name,
            fleet or inventory(),
            credentials=credentials(name),
            pki_dir=str(scenario.pki()),
            environment={"ANSIBLE_PIPELINING": "1", "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"]},
            **options,
        )
        jobs.append(done)
        return done

    return run


def changed(done: awx_runner.Job) -> dict[str, int]:
    return {host: counts["changed"] for host, counts in done.recap().items() if host.startswith("edge")}


def gets_in(client, broker, user: str, password: str) -> bool:
    return client.publish(broker.ipv4, user=user, password=password)


# --- harden -----------------------------------------------------------------------------------------------------------


def test_a_wrong_answer_leaves_a_shipped_host_as_it_is(job, brokers):
    """Nothing at all happens: no key is made on the controller, no file of the hosts differs."""
    done = job("NanoMQ harden", answers={"nanomq_firewall_confirm_within": 3, "nanomq_rollout_batches": "all"})
    assert done.status != 0
    for variable in ("nanomq_firewall_confirm_within is 3", "nanomq_rollout_batches is 'all'"):
        assert variable in done.flat()
    assert done.tried() == set()
    assert list(scenario.pki().iterdir()) == []
    for broker in brokers:
        assert broker.run("/var/tmp/snapshot | diff /var/tmp/virgin -").stdout == ""


def test_slices_give_what_one_job_gives(job, brokers):
    """Each slice knows its own hosts alone. Then one job for all finds nothing left to do."""
    for part in awx_runner.slices(inventory(), 2):
        done = job("NanoMQ harden", part)
        assert done.status == 0, done.output
        assert [count > 0 for count in changed(done).values()] == [True]
    assert len({broker.check_output("sha256sum /etc/nanomq/ca/*.pem | cut -c1-64") for broker in brokers}) == 1
    assert len({broker.check_output("ls /etc/nanomq/jwt") for broker in brokers}) == 1
    done = job("NanoMQ harden")
    assert done.status == 0, done.output
    assert changed(done) == {"edge1": 0, "edge2": 0}


def test_slices_at_once_give_what_one_job_gives(job, brokers, client):
    fleet = late_fleet()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda part: job("NanoMQ harden", part), awx_runner.slices(fleet, 2)):
            assert done.status == 0, done.output
            assert [count > 0 for count in changed(done).values()] == [True]
    done = job("NanoMQ harden", fleet)
    assert changed(done) == {"edge1": 0, "edge2": 0}, done.output
    for broker in brokers:
        assert gets_in(client, broker, "late", LATE)


# --- audit ------------------------------------------------------------------------------------------------------------


def test_the_audit_asks_the_broker_with_the_injected_key(job, tmp_path):
    done = job(
        "NanoMQ audit",
        answers={
            "nanomq_audit_fail_on": "low",
            "nanomq_audit_reports_dir": str(tmp_path / "reports"),
            "nanomq_audit_reports": ["json"],
        },
    )
    assert done.status == 0, done.output
    assert [path.name for path in (tmp_path / "reports").glob("[!.]*")] == ["audit.json"]
    report = json.loads((tmp_path / "reports/audit.json").read_text())
    assert {host["name"] for host in report["hosts"]} == {"edge1", "edge2"}
    assert [[one for one in host["findings"] if not one["waived"]] for host in report["hosts"]] == [[], []]
    assert changed(done) == {"edge1": 0, "edge2": 0}


def test_a_finding_fails_the_job(job, brokers):
    brokers[0].check_output("chmod 0644 /etc/nanomq/nanomq.conf")
    done = job("NanoMQ audit", answers={"nanomq_audit_fail_on": "low"})
    brokers[0].check_output("chmod 0640 /etc/nanomq/nanomq.conf")
    assert done.status != 0
    assert {host: counts["failures"] for host, counts in done.recap().items()} == {"edge1": 1, "edge2": 0}


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_a_rollback_of_the_canary_is_one_of_the_canary(job, brokers, client):
    done = job("NanoMQ generations")
    assert done.status == 0, done.output
    assert done.flat().count("Check the answers") == 1
    assert "Harden NanoMQ by " in done.flat()
    done = job(
        "NanoMQ rollback",
        answers={"nanomq_rollback_transaction": "broker", "nanomq_rollback_to": "previous"},
        limit="canary",
    )
    assert done.status == 0, done.output
    assert {host: count > 0 for host, count in changed(done).items()} == {"edge1": True}
    assert gets_in(client, brokers[0], "operator", USERS["operator"])
    assert not gets_in(client, brokers[0], "late", LATE)
    assert gets_in(client, brokers[1], "late", LATE)


def test_a_number_is_a_generation_though_it_comes_as_text(job, brokers, client):
    numbers = brokers[0].check_output("ls /var/lib/edgesec-nanomq/broker/generations").split()
    done = job(
        "NanoMQ rollback", answers={"nanomq_rollback_transaction": "broker", "nanomq_rollback_to": "2"}, limit="canary"
    )
    assert done.status == 0, (numbers, done.output)
    assert gets_in(client, brokers[0], "late", LATE)


@pytest.mark.parametrize(
    "answers",
    [
        {"nanomq_rollback_transaction": "everything", "nanomq_rollback_to": "previous"},
        {"nanomq_rollback_transaction": "broker", "nanomq_rollback_to": "yesterday"},
        {"nanomq_rollback_transaction": "broker", "nanomq_rollback_to": "{{ lookup('pipe', 'id') }}"},
    ],
)
def test_a_wrong_answer_rolls_nothing_back(job, brokers, answers):
    before = [scenario.conf_digest(broker) for broker in brokers]
    done = job("NanoMQ rollback", answers=answers)
    assert done.status != 0
    assert done.tried() == set()
    assert "uid=" not in done.output
    assert any(f"{variable} is " in done.flat() for variable in answers)
    assert [scenario.conf_digest(broker) for broker in brokers] == before


# --- the life of keys -------------------------------------------------------------------------------------------------


def test_a_job_renews_what_is_from_before_a_moment(job, brokers):
    """In slices; the same answer again renews nothing."""
    moment = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    before = [served(broker) for broker in brokers]
    answers = {"nanomq_pki_renew_issued_before": moment, "nanomq_rollout_batches": "1"}
    for part in awx_runner.slices(late_fleet(), 2):
        done = job("NanoMQ renew certificates", part, answers=answers)
        assert done.status == 0, done.output
    after = [served(broker) for broker in brokers]
    assert not set(before) & set(after)
    done = job("NanoMQ renew certificates", late_fleet(), answers=answers)
    assert changed(done) == {"edge1": 0, "edge2": 0}, done.output
    assert [served(broker) for broker in brokers] == after


def test_a_job_rotates_the_token_key_that_is_named(job, brokers):
    old = scenario.issuer()
    done = job(
        "NanoMQ rotate token key",
        late_fleet(),
        answers={"nanomq_pki_jwt_rotate_key": old, "nanomq_rollout_batches": "1, 100%"},
    )
    assert done.status == 0, done.output
    assert "The rotation is finished" in done.flat()
    assert scenario.issuer() != old
    for broker in brokers:
        assert broker.check_output("ls /etc/nanomq/jwt") == scenario.issuer()
    # The credential with the new key.
    done = job("NanoMQ audit", late_fleet(), answers={"nanomq_audit_fail_on": "low"})
    assert done.status == 0, done.output


def test_a_job_revokes_those_who_are_named_in_a_text(job, brokers, client):
    assert all(gets_in(client, broker, "late", LATE) for broker in brokers)
    done = job("NanoMQ revoke", late_fleet(), answers={"nanomq_pki_revoke_users": "gone-for-long, late"})
    assert done.status == 0, done.output
    assert json.loads((scenario.pki() / "revoked_users.json").read_text()) == ["gone-for-long", "late"]
    for broker in brokers:
        assert not gets_in(client, broker, "late", LATE)
        assert gets_in(client, broker, "operator", USERS["operator"])


def late_fleet() -> dict:
    """The fleet with a user who came late."""
    return inventory(nanomq_broker_users={**USERS, "late": LATE})


def served(broker) -> str:
    """Which pair of key and certificate is in force on a host."""
    return broker.check_output("readlink /etc/nanomq/pki/server/current")


# --- last -------------------------------------------------------------------------------------------------------------


def test_no_job_kept_a_secret(jobs):
    """Neither in the output, nor in the events, the command, or what else ansible-runner keeps."""
    kept = "\n".join(done.kept() for done in jobs)
    print(f"{len(jobs)} jobs, {len(kept)} characters kept")
    assert len(jobs) >= 8
    assert kept.count("playbook_on_stats") >= len(jobs)
    # The jobs had them: what is searched for is what was injected.
    injected = "\n".join(path.read_text() for done in jobs for path in (done.artifacts.parent / "env").iterdir())
    assert all(secret in injected for secret in (CA_PASSPHRASE, JWT_PASSPHRASE, token_key()))
    keys = [path.read_text().splitlines()[1:-1] for path in (scenario.pki() / "jwt").glob("*.key")]
    assert len(keys) == 2, "the one before the rotation is kept"
    secrets = [CA_PASSPHRASE, JWT_PASSPHRASE, LATE, *USERS.values(), *(line for key in keys for line in key)]
    for secret in secrets:
        for form in (secret, json.dumps(secret)[1:-1]):
            assert form not in kept, "a secret was kept"
    assert not re.search(r"eyJ[\w-]{10,}\.eyJ", kept), "a token was kept"
    assert "PRIVATE KEY" not in kept
