# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the outsider is served when the certificate comes from elsewhere, and how that is renewed.

One host starts with an external signer and wants client certificates, the other with a certificate that it was given.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
import subprocess

import acme_server
import pytest
import scenario
from scenario import USERS, eventually

PROJECT = pathlib.Path(os.environ.get("MOLECULE_PROJECT_DIRECTORY", "."))
HERE = pathlib.Path(__file__).resolve().parent.parent
STORE = "/etc/nanomq/pki/server"
MOST_REMOTE_RUNS = 8
DAY = 86400


def elsewhere() -> pathlib.Path:
    return pathlib.Path(scenario.INVENTORY).parent / "elsewhere"


def harden(broker, *arguments: str, **options) -> scenario.Play:
    inventory = ("-i", str(HERE / "inventory/hosts.yml"))
    return scenario.harden(*inventory, *arguments, hosts=broker.name, **options)


def change_once(broker, **options) -> scenario.Play:
    """A run that gets a new certificate; and one more of the same, which changes nothing. Returns the first."""
    before = serial(broker)
    run = harden(broker, **options)
    assert run.status == 0, run.output
    assert serial(broker) != before, run.output
    assert harden_again(broker, **options).recap(broker.name)["changed"] == 0
    return run


def harden_again(broker, **options) -> scenario.Play:
    run = harden(broker, **options)
    assert run.status == 0, run.output
    runs = collections.Counter(cost["host"] for cost in run.costs if cost["kind"] != "task")[broker.ipv4]
    print(f"remote runs of {broker.name} in steady state: {runs}")
    assert 0 < runs <= MOST_REMOTE_RUNS
    return run


def serial(broker) -> str:
    return broker.check_output(f"readlink {STORE}/current")


def trusting(client, name: str, pem: str) -> scenario.Client:
    """The client, with the trust in another CA than the fleet's."""
    directory = f"{client.directory}-{name}"
    client.host.check_output(f"rm -rf {directory} && cp -r {client.directory} {directory}")
    client.host.check_output("printf %%s %s > %s", pem, f"{directory}/ca.pem")
    return dataclasses.replace(client, directory=directory)


def gets_in(client, broker, address: str = "", **options) -> bool:
    return client.publish(address or broker.ipv4, user="operator", password=USERS["operator"], **options)


def served(outsider, broker) -> list[str]:
    """Subjects of the certificates that the broker sends along, its own first."""
    command = f"openssl s_client -connect {broker.ipv4}:8883 -showcerts </dev/null 2>/dev/null | grep ' s:'"
    found = []
    eventually(lambda: found.extend(outsider.run(command).stdout.splitlines()) or found)
    return [line.partition("s:")[2].replace(" ", "") for line in found]


def served_serial(outsider, broker) -> str:
    command = f"openssl s_client -connect {broker.ipv4}:8883 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    return outsider.run(command).stdout.strip().partition("=")[2].lower()


def assert_served(outsider, broker, wanted: str = "") -> None:
    """What is on the socket is what the link names, or the wanted one."""
    assert eventually(lambda: served_serial(outsider, broker) == (wanted or serial(broker)))


def leftovers(broker) -> str:
    return broker.check_output(f"find {STORE} -name '.*'")


@pytest.fixture(scope="session")
def root() -> str:
    return (elsewhere() / "root.pem").read_text()


@pytest.fixture(scope="session")
def friend(client, root):
    """A client that trusts the authority that is not ours."""
    return trusting(client, "elsewhere", root)


class TestCommand:
    def test_the_broker_serves_what_the_signer_signed(self, client, friend, bookworm, outsider):
        assert served(outsider, bookworm)[:2] == ["CN=bookworm", "CN=elsewheremiddle"]
        assert gets_in(friend, bookworm)
        assert not gets_in(client, bookworm), "the fleet's CA did not sign it"

    def test_the_signers_authority_lets_no_client_in(self, friend, bookworm):
        """It signs for servers, and may sign for many: only the fleet's CA speaks for clients."""
        (elsewhere() / "client.pem").unlink(missing_ok=True)
        subprocess.run([PROJECT / "tests/elsewhere", "give", elsewhere(), "client", "DNS:client", "10"], check=True)
        for suffix in ("pem", "key"):
            text = (elsewhere() / f"client.{suffix}").read_text()
            friend.host.check_output("printf %%s %s > %s", text, f"{friend.directory}/foreign.{suffix}")
        assert not gets_in(friend, bookworm, certificate="foreign")
        assert not gets_in(friend, bookworm, certificate="")
        assert gets_in(friend, bookworm)

    def test_renewal(self, friend, bookworm, outsider):
        run = change_once(bookworm, nanomq_pki_server_valid_for="500d", nanomq_pki_server_renew_before="400d")
        assert run.recap("bookworm")["changed"] >= 1
        assert_served(outsider, bookworm)
        assert gets_in(friend, bookworm)

    @pytest.mark.parametrize(
        ("does", "words"),
        [
            ("foreign-name", "names: ['DNS:bookworm', 'DNS:stranger.example'"),
            ("stranger", "is not signed by a trust anchor"),
            ("refuse", "failed (exit status 3): logged in with *** | no: quota exceeded"),
            ("hang", "did not end within 2 s: waiting for approval"),
        ],
    )
    def test_a_wrong_answer_is_refused(self, friend, bookworm, outsider, does, words):
        before = serial(bookworm), scenario.conf_digest(bookworm)
        # Another key type: a new pair is needed.
        run = harden(bookworm, signer_does=does, nanomq_pki_server_key_type="ec-p384", nanomq_pki_signer_timeout=2)
        assert run.status != 0
        assert words in run.flat(), run.output
        assert "secret" not in run.flat().replace("secrets", "")
        assert (serial(bookworm), scenario.conf_digest(bookworm)) == before
        assert leftovers(bookworm) == ""
        assert_served(outsider, bookworm)
        assert gets_in(friend, bookworm)


class TestGiven:
    def test_the_broker_serves_what_was_given(self, client, friend, trixie, outsider):
        assert served(outsider, trixie)[:2] == ["CN=trixie", "CN=elsewheremiddle"]
        assert gets_in(friend, trixie, certificate="")
        assert not gets_in(client, trixie, certificate="")
        key = (elsewhere() / "trixie.key").read_text()
        assert trixie.check_output(f"cat {STORE}/current/key.pem") == key.strip()
        assert trixie.check_output(f"stat -c '%U %G %a' {STORE}/current/key.pem") == "root nanomq 640"

    def test_the_given_key_is_neither_shown_nor_logged(self, trixie):
        give(trixie, 300)
        since = trixie.check_output("date +%s")
        run = harden(trixie, "-vvv", "--diff")
        assert run.status == 0, run.output
        line = (elsewhere() / "trixie.key").read_text().splitlines()[1]
        assert line not in run.output
        assert line not in trixie.check_output(f"journalctl --no-pager -o cat --since=@{since}")

    def test_another_one_is_given(self, friend, trixie, outsider):
        give(trixie, 20)
        run = change_once(trixie)
        assert "the given certificate of trixie ends at" in run.flat()
        assert re.search("in (19|20) days, and is not renewed by itself", run.flat())
        assert_served(outsider, trixie)
        assert gets_in(friend, trixie, certificate="")
        give(trixie, 365)
        assert "is not renewed by itself" not in change_once(trixie).flat()

    def test_a_key_that_does_not_belong_to_it(self, friend, trixie):
        before = serial(trixie), scenario.conf_digest(trixie)
        run = harden(trixie, nanomq_pki_given_key=(elsewhere() / "middle.key").read_text())
        assert run.status != 0
        assert "given_certificate and given_key cannot be used: mismatch" in run.flat(), run.output
        assert run.recap("trixie")["changed"] == 0
        assert (serial(trixie), scenario.conf_digest(trixie)) == before
        assert gets_in(friend, trixie, certificate="")

    def test_files_that_are_kept_on_the_host(self, friend, trixie, outsider):
        """As another program keeps them: links to files with a number, moved when it renews."""
        options = {
            "nanomq_pki_given_certificate": "",
            "nanomq_pki_given_key": "",
            "nanomq_pki_given_certificate_path": "/etc/nanomq/own/live.pem",
            "nanomq_pki_given_key_path": "/etc/nanomq/own/live.key",
        }
        trixie.check_output("install -d -g nanomq -m 0750 /etc/nanomq/own")
        for number in (1, 2):
            give(trixie, 100 * number)
            for suffix in ("pem", "key"):
                text = (elsewhere() / f"trixie.{suffix}").read_text()
                path = f"/etc/nanomq/own/{number}.{suffix}"
                trixie.check_output("printf %%s %s > %s", text, path)
                trixie.check_output(f"chgrp nanomq {path} && chmod 0640 {path}")
                trixie.check_output(f"ln -sfn {number}.{suffix} /etc/nanomq/own/live.{suffix}")
            run = harden(trixie, **options)
            assert run.status == 0, run.output
            assert run.recap("trixie")["changed"] == 1
            assert harden_again(trixie, **options).recap("trixie")["changed"] == 0
            wanted = trixie.check_output(f"openssl x509 -noout -serial -in /etc/nanomq/own/{number}.pem")
            assert_served(outsider, trixie, wanted.partition("=")[2].lower())
            assert gets_in(friend, trixie, certificate="")
        back = harden(trixie)
        assert back.status == 0, back.output


def give(broker, days: int) -> None:
    """Somebody sends a new key and certificate."""
    names = f"DNS:{broker.name},IP:{broker.ipv4}"
    subprocess.run([PROJECT / "tests/elsewhere", "give", elsewhere(), broker.name, names, str(days)], check=True)


class TestAcme:
    """Both ways to meet a challenge; one authority that signs for a day, and then one that signs for longer."""

    def options(self, *servers: acme_server.Server, how: str, **more) -> dict:
        meet = {"nanomq_pki_acme_webroot": str(servers[-1].webroot)}
        if how == "dns-01":
            meet = {"nanomq_pki_acme_dns_hook": [str(servers[-1].hook)]}
        return {
            "nanomq_pki_server_source": "acme",
            "nanomq_pki_server_names": ["DNS:{{ inventory_hostname }}"],
            "nanomq_pki_server_trust": "".join(server.root for server in servers),
            "nanomq_pki_server_renew_before": "1h",
            "nanomq_pki_acme_directory": servers[-1].directory,
            "nanomq_pki_acme_terms_agreed": True,
            **meet,
            **more,
        }

    def test_issued_renewed_and_refused(self, client, bookworm, trixie, outsider, tmp_path, monkeypatch):
        ways = ((bookworm, "dns-01", "client"), (trixie, "http-01", ""))
        with acme_server.run(tmp_path / "first", DAY) as first:
            monkeypatch.setenv("SSL_CERT_FILE", str(first.tls_ca))
            for broker, how, _certificate in ways:
                change_once(broker, **self.options(first, how=how))
        for broker, how, certificate in ways:
            assert_served(outsider, broker)
            friend = trusting(client, "acme", first.root)
            assert gets_in(friend, broker, broker.name, certificate=certificate)
            # The server is down, which nobody notices before a certificate is due.
            assert harden_again(broker, **self.options(first, how=how)).recap(broker.name)["changed"] == 0
            due = {"nanomq_pki_server_renew_before": "2d"}
            self.assert_refused(broker, outsider, "127.0.0.1", **self.options(first, how=how, **due))
        with acme_server.run(tmp_path / "second", 10 * DAY) as second:
            monkeypatch.setenv("SSL_CERT_FILE", str(second.tls_ca))
            due = {"nanomq_pki_server_renew_before": "2d"}
            second.hook.rename(second.hook.with_suffix(".good"))
            second.hook.write_text("#!/bin/sh\nexit 0\n")
            second.hook.chmod(0o755)
            refused = self.options(first, second, how="dns-01", **due)
            self.assert_refused(bookworm, outsider, "Failed to validate challenge", **refused)
            second.hook.with_suffix(".good").rename(second.hook)
            for broker, how, certificate in ways:
                run = change_once(broker, **self.options(first, second, how=how, **due))
                assert run.recap(broker.name)["changed"] >= 1
                assert_served(outsider, broker)
                assert gets_in(trusting(client, "acme", second.root), broker, broker.name, certificate=certificate)
            assert list(second.webroot.rglob("*-*")) == [second.webroot / ".well-known/acme-challenge"]
            assert {line.split()[0] for line in (tmp_path / "second/hook.log").read_text().splitlines()} == {
                "present",
                "cleanup",
            }
        account = scenario.pki() / "acme"
        assert [path.name for path in account.iterdir()] == ["account.key"]
        assert (account / "account.key").stat().st_mode & 0o777 == 0o600

    def assert_refused(self, broker, outsider, words: str, **options) -> None:
        before = serial(broker)
        run = harden(broker, **options)
        assert run.status != 0
        assert "the ACME server https://" in run.flat(), run.output
        assert words in run.flat(), run.output
        assert serial(broker) == before
        assert leftovers(broker) == ""
        assert_served(outsider, broker)


def test_back_to_the_own_authority(client, bookworm, trixie, outsider):
    """The other CA's certificates are replaced, and what was there for their sake goes."""
    for broker in (bookworm, trixie):
        change_once(broker, nanomq_pki_server_source="authority")
        assert_served(outsider, broker)
        assert gets_in(client, broker)
        assert not broker.file("/etc/nanomq/ca/server.pem").exists
