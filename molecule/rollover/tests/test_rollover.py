# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An intermediate below an offline root, its renewal, and the roll-over to another root, with clients of every kind.

The tests follow each other. trixie misses the first step; the controller is killed in the second.
"""

from __future__ import annotations

import collections
import pathlib
import shutil
import subprocess

import pytest
import scenario
from scenario import HOSTS, USERS, Client, harden, openssl, pki

MOST_REMOTE_RUNS = 6
ROOT_PASSPHRASE = "root-passphrase-W5t"
EXTENSIONS = "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\nauthorityKeyIdentifier=keyid\n"
DIRECTORY = "/root/rollover"


def root(name: str) -> dict[str, str]:
    return {"nanomq_pki_root_path": str(pki().parent / "medium" / name), "nanomq_pki_root_passphrase": ROOT_PASSPHRASE}


def rollover(step: str, *arguments: str, **options) -> scenario.Play:
    return harden(*arguments, nanomq_pki_authority_rollover=step, **options)


def certificates(*names: str) -> list[str]:
    """The certificates in files of the authority."""
    text = "".join((pki() / "ca" / name).read_text() for name in names)
    end = "-----END CERTIFICATE-----\n"
    return [block + end for block in text.split(end) if block.strip()]


def snapshot(path: pathlib.Path) -> dict[str, tuple]:
    return {
        str(entry): (entry.stat().st_mode, entry.stat().st_mtime_ns, entry.read_bytes() if entry.is_file() else None)
        for entry in sorted(path.rglob("*"))
    }


def starts(broker) -> int:
    """How many times the service was started, but for those by systemd itself after it had died."""
    log = scenario.journal(broker, "-u nanomq")
    return log.count("Started nanomq.service") - log.count("Scheduled restart job")


@pytest.fixture(scope="module")
def clients(outsider, tmp_path_factory):
    """Certificates for clients, and what they trust, on the outsider: one directory for each trust, all in each."""
    scratch = tmp_path_factory.mktemp("clients")

    class Clients:
        def issue(self, name: str) -> None:
            """NAME has its issuer's certificate behind its own, NAME-alone has not."""
            (scratch / "extensions").write_text(EXTENSIONS)
            (scratch / "ca.srl").unlink(missing_ok=True)
            key = f"-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key"
            openssl(scratch, f"req -new {key} -out {name}.csr -subj /CN={name}")
            ca = f"-CA {pki()}/ca/ca.pem -CAkey {pki()}/ca/ca.key -CAcreateserial -CAserial ca.srl"
            ca += f" -passin pass:{HOSTS['nanomq_pki_authority_passphrase']}"
            openssl(scratch, f"x509 -req -in {name}.csr {ca} -extfile extensions -days 2 -out {name}-alone.pem")
            shutil.copy(scratch / f"{name}.key", scratch / f"{name}-alone.key")
            chain = (scratch / f"{name}-alone.pem").read_text() + certificates("ca.pem")[0]
            (scratch / f"{name}.pem").write_text(chain)

        def trust(self, name: str, *pem: str) -> None:
            (scratch / f"trust-{name}").write_text("".join(pem))

        def ship(self) -> None:
            for trust in scratch.glob("trust-*"):
                directory = f"{DIRECTORY}/{trust.name.removeprefix('trust-')}"
                outsider.check_output(f"mkdir -p {directory}")
                for path in (*scratch.glob("*.pem"), *scratch.glob("*.key")):
                    outsider.check_output("printf %%s %s > %s", path.read_text(), f"{directory}/{path.name}")
                outsider.check_output("printf %%s %s > %s", trust.read_text(), f"{directory}/ca.pem")

        def let_in(self, broker, *pairs: tuple[str, str]) -> list[tuple[str, str]]:
            """Those of (trust, certificate) that get in."""
            login = {"user": "operator", "password": USERS["operator"]}
            return [
                (trust, name)
                for trust, name in pairs
                if Client(outsider, f"{DIRECTORY}/{trust}").publish(broker.ipv4, certificate=name, **login)
            ]

    return Clients()


@pytest.fixture(scope="module", autouse=True)
def secrets():
    """The passphrases in a file of ansible-vault, as arguments."""
    directory = pki().parent
    (directory / "vault-password").write_text("vault-password-B8n\n")
    (directory / "secrets.yml").write_text(
        f"nanomq_pki_authority_passphrase: {HOSTS['nanomq_pki_authority_passphrase']}\n"
        f"nanomq_pki_root_passphrase: {ROOT_PASSPHRASE}\n"
    )
    arguments = ("--vault-password-file", str(directory / "vault-password"))
    command = ["ansible-vault", "encrypt", *arguments, str(directory / "secrets.yml")]
    subprocess.run(command, check=True, capture_output=True)
    assert "ANSIBLE_VAULT" in (directory / "secrets.yml").read_text()
    return (*arguments, "--extra-vars", f"@{directory}/secrets.yml")


def assert_unchanged(run: scenario.Play, brokers) -> None:
    assert run.status == 0, run.output
    assert [run.recap(broker.name)["changed"] for broker in brokers] == [0] * len(brokers), run.output
    runs = collections.Counter(cost["host"] for cost in run.costs if cost["kind"] != "task")
    assert all(0 < runs[broker.ipv4] <= MOST_REMOTE_RUNS for broker in brokers), runs


# --- root and intermediate --------------------------------------------------------------------------------------------


def test_neither_root_nor_passphrase_is_needed_in_steady_state(brokers, clients):
    clients.issue("first")
    clients.trust("old", certificates("ca.pem")[-1])
    clients.ship()
    away = pki().parent / "away"
    (pki().parent / "medium").rename(away)
    try:
        options = {**root("first"), "nanomq_pki_root_passphrase": "", "nanomq_pki_authority_passphrase": ""}
        assert_unchanged(harden(**options), brokers)
    finally:
        away.rename(pki().parent / "medium")
    assert len(certificates("ca.pem")) == 2
    for broker in brokers:
        assert clients.let_in(broker, ("old", "first"), ("old", "first-alone")) == [
            ("old", "first"),
            ("old", "first-alone"),
        ]


def test_the_intermediate_is_renewed_in_its_window_once(brokers, clients):
    """The one in force lasts 3650 days, the new one 4000."""
    window = {"nanomq_pki_authority_valid_for": "4000d", "nanomq_pki_authority_renew_before": "3700d"}
    digests = [scenario.conf_digest(broker) for broker in brokers]
    before = snapshot(pki())
    absent = harden(**window, **root("none"), hosts=brokers[0].name)
    assert absent.status != 0
    assert "there is no authority in" in absent.flat()
    assert "mount the medium" in absent.flat()
    early = harden(**{**window, "nanomq_pki_authority_renew_before": "3600d"}, **root("first"), hosts=brokers[0].name)
    assert_unchanged(early, brokers[:1])
    planned = harden("--check", **window, **root("first"), hosts=brokers[0].name)
    assert planned.status == 0, planned.output
    assert planned.recap(brokers[0].name)["changed"] == 1, planned.output
    assert snapshot(pki()) == before
    assert [scenario.conf_digest(broker) for broker in brokers] == digests

    counts = [starts(broker) for broker in brokers]
    run = harden(**window, **root("first"))
    assert run.status == 0, run.output
    assert [starts(broker) - count for broker, count in zip(brokers, counts, strict=True)] == [1, 1]
    after = snapshot(pki() / "ca")
    assert_unchanged(harden(**window, **root("first")), brokers)
    assert snapshot(pki() / "ca") == after

    clients.issue("old")
    clients.ship()
    pairs = [("old", name) for name in ("first", "first-alone", "old", "old-alone")]
    for broker in brokers:
        assert clients.let_in(broker, *pairs) == pairs


# --- introduce --------------------------------------------------------------------------------------------------------


def test_introduce(brokers, clients, secrets):
    """On bookworm alone: trixie is not there. The passphrases come from a vault, and are nowhere to be read."""
    before = snapshot(pki())
    planned = rollover("introduce", "--check", hosts=brokers[0].name, **root("second"))
    assert planned.status == 0, planned.output
    assert snapshot(pki()) == before

    since = brokers[0].check_output("date +%s")
    path = {"nanomq_pki_root_path": root("second")["nanomq_pki_root_path"]}
    run = rollover("introduce", "-vvv", "--diff", *secrets, hosts=brokers[0].name, **path)
    assert run.status == 0, run.output
    assert_unchanged(rollover("introduce", *secrets, hosts=brokers[0].name, **path), brokers[:1])

    journal = scenario.journal(brokers[0], f"--since=@{since}")
    kept = brokers[0].check_output("cat /var/lib/edgesec-nanomq/broker/generations/*/manifest.json")
    keys = [line for path in pki().rglob("*.key") for line in path.read_text().splitlines() if "-----" not in line]
    assert len(keys) > 6
    for text in (run.output, journal, kept):
        assert not [
            secret
            for secret in (*keys, ROOT_PASSPHRASE, HOSTS["nanomq_pki_authority_passphrase"], "vault-password-B8n")
            if secret in text
        ]

    clients.trust("both", *certificates("ca.pem", "next.pem"))
    clients.trust("new", *certificates("next.pem"))
    clients.ship()
    for broker in brokers:
        assert clients.let_in(broker, ("old", "old"), ("both", "old-alone"), ("new", "old")) == [
            ("old", "old"),
            ("both", "old-alone"),
        ]


def test_out_of_order_is_refused_before_anything_is_changed(brokers):
    before = snapshot(pki()), [scenario.conf_digest(broker) for broker in brokers]
    run = rollover("retire", hosts=brokers[0].name)
    assert run.status != 0
    assert "does not sign yet" in run.flat()
    assert "nanomq_pki_authority_rollover=switch" in run.flat()
    assert (snapshot(pki()), [scenario.conf_digest(broker) for broker in brokers]) == before


# --- switch -----------------------------------------------------------------------------------------------------------


def test_switch_killed_in_the_middle_and_run_again(brokers, clients):
    old = certificates("ca.pem")[0]
    killed = rollover(
        "switch", killed_when=lambda _lines: (pki() / "ca/previous.pem").exists() or (pki() / "ca/.change").exists()
    )
    assert killed.status == -9, killed.output
    refused = rollover("retire", hosts=brokers[0].name)
    assert refused.status != 0
    assert "none of the successor: bookworm, trixie" in refused.flat()

    counts = [starts(broker) for broker in brokers]
    run = rollover("switch")
    assert run.status == 0, run.output
    assert [starts(broker) - count for broker, count in zip(brokers, counts, strict=True)] == [1, 1]
    assert old == certificates("previous.pem")[0] != certificates("ca.pem")[0]
    assert [name.name for name in (pki() / "ca").glob(".*")] == []
    assert_unchanged(rollover("switch"), brokers)

    clients.issue("new")
    clients.ship()
    pairs = [
        *(("old", name) for name in ("first", "first-alone", "old", "old-alone", "new", "new-alone")),
        ("both", "old"),
        ("both", "new-alone"),
        ("new", "old-alone"),
        ("new", "new"),
    ]
    for broker in brokers:
        assert clients.let_in(broker, *pairs) == pairs


# --- retire -----------------------------------------------------------------------------------------------------------


def test_retire(brokers, clients):
    planned = rollover("retire", "--check", hosts=brokers[0].name)
    assert planned.status == 0, planned.output
    assert (pki() / "ca/previous.pem").exists()
    counts = [starts(broker) for broker in brokers]
    run = rollover("retire")
    assert run.status == 0, run.output
    assert [starts(broker) - count for broker, count in zip(brokers, counts, strict=True)] == [1, 1]
    assert_unchanged(rollover("retire"), brokers)
    good = [("both", "new"), ("both", "new-alone"), ("new", "new"), ("new", "new-alone")]
    bad = [("old", "new"), ("both", "first"), ("both", "old"), ("new", "old-alone")]
    for broker in brokers:
        assert clients.let_in(broker, *good, *bad) == good
        chain = broker.check_output("cat /etc/nanomq/pki/server/current/cert.pem")
        assert chain.count("BEGIN CERTIFICATE") == 2, "the cross certificate is gone"
    kept = [path.name for path in (pki() / "ca").iterdir() if path.name.startswith("retired-")]
    assert sorted(name.rpartition(".")[2] for name in kept) == ["key", "pem"]
