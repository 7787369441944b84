# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the outsider is served when the certificate comes from elsewhere, and how that is renewed.

`bookworm` starts with an external signer and wants client certificates, `trixie` with a certificate that it was given.
"""

from __future__ import annotations

import json
import re

import acme_server
import pytest
import scenario
from outside import (
    STORE,
    assert_served,
    assert_steady,
    elsewhere,
    gets_in,
    give,
    give_host,
    harden,
    harden_once,
    leftovers,
    serial,
    served,
    trusting,
)

DAY = 86400


def test_the_broker_serves_what_the_signer_signed(client, friend, bookworm, outsider):
    assert served(outsider, bookworm)[:2] == ["CN=bookworm", "CN=elsewheremiddle"]
    assert gets_in(friend, bookworm)
    assert not gets_in(client, bookworm), "the fleet's CA did not sign it"


def test_the_signers_authority_lets_no_client_in(friend, bookworm):
    """It signs for servers, and may sign for many: only the fleet's CA speaks for clients."""
    give("client", "DNS:client", 10)
    for suffix in ("pem", "key"):
        text = (elsewhere() / f"client.{suffix}").read_text()
        friend.host.check_output("printf %%s %s > %s", text, f"{friend.directory}/foreign.{suffix}")
    assert not gets_in(friend, bookworm, certificate="foreign")
    assert not gets_in(friend, bookworm, certificate="")
    assert gets_in(friend, bookworm)


def test_the_broker_serves_what_was_given(client, friend, trixie, outsider):
    assert served(outsider, trixie)[:2] == ["CN=trixie", "CN=elsewheremiddle"]
    assert gets_in(friend, trixie, certificate="")
    assert not gets_in(client, trixie, certificate="")
    key = (elsewhere() / "trixie.key").read_text()
    assert trixie.check_output(f"cat {STORE}/current/key.pem") == key.strip()
    assert trixie.check_output(f"stat -c '%U %G %a' {STORE}/current/key.pem") == "root nanomq 640"


def test_renewal(friend, bookworm, trixie, outsider):
    """One is asked of the signer since it is due, the other is given. Neither key nor secret is shown or logged."""
    since = trixie.check_output("date +%s")
    give_host(trixie, 20)
    longer = {"nanomq_pki_server_valid_for": "500d", "nanomq_pki_server_renew_before": "400d"}
    run = harden_once([bookworm, trixie], "-vvv", "--diff", **longer)
    assert "the given certificate of trixie ends at" in run.flat()
    assert re.search("in (19|20) days, and is not renewed by itself", run.flat())
    for broker in (bookworm, trixie):
        assert_served(outsider, broker)
        assert gets_in(friend, broker, certificate="client" if broker is bookworm else "")
    line = (elsewhere() / "trixie.key").read_text().splitlines()[1]
    assert line in trixie.check_output(f"cat {STORE}/current/key.pem")
    for text in (run.output, scenario.journal(trixie, f"--since=@{since}")):
        assert line not in text
        assert "signer's-own" not in text


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("foreign-name", "names: ['DNS:bookworm', 'DNS:stranger.example'"),
        ("refuse", "failed (exit status 3): logged in with *** | no: quota exceeded"),
    ],
)
def test_what_is_not_fit_is_refused(friend, bookworm, trixie, outsider, does, words):
    """A signer that is wrong, and a key that does not belong to its certificate."""
    brokers = (bookworm, trixie)
    before = [(serial(broker), scenario.conf_digest(broker)) for broker in brokers]
    wrong = {"nanomq_pki_given_key": (elsewhere() / "middle.key").read_text()}
    # Another kind of key: a new pair is needed.
    run = harden(signer_does=does, nanomq_pki_server_key_type="ec-p384", **wrong)
    assert run.status != 0
    assert words in run.flat(), run.output
    assert "given_certificate and given_key cannot be used: mismatch" in run.flat(), run.output
    assert "signer's-own" not in run.flat()
    assert run.recap("trixie")["changed"] == 0
    assert [(serial(broker), scenario.conf_digest(broker)) for broker in brokers] == before
    assert leftovers(bookworm) == leftovers(trixie) == ""
    assert_served(outsider, bookworm)
    assert gets_in(friend, bookworm)
    assert gets_in(friend, trixie, certificate="")


def test_files_that_are_kept_on_the_host(friend, trixie, outsider):
    """As another program keeps them: links to files with a number, moved when it renews."""
    options = {
        "hosts": "trixie",
        "nanomq_pki_given_certificate": "",
        "nanomq_pki_given_key": "",
        "nanomq_pki_given_certificate_path": "/etc/nanomq/own/live.pem",
        "nanomq_pki_given_key_path": "/etc/nanomq/own/live.key",
    }
    trixie.check_output("install -d -g nanomq -m 0750 /etc/nanomq/own")
    for number in (1, 2):
        give_host(trixie, 100 * number)
        for suffix in ("pem", "key"):
            text = (elsewhere() / f"trixie.{suffix}").read_text()
            path = f"/etc/nanomq/own/{number}.{suffix}"
            trixie.check_output("printf %%s %s > %s", text, path)
            trixie.check_output(f"chgrp nanomq {path} && chmod 0640 {path}")
            trixie.check_output(f"ln -sfn {number}.{suffix} /etc/nanomq/own/live.{suffix}")
        run = harden(**options)
        assert run.status == 0, run.output
        assert run.recap("trixie")["changed"] == 1
        wanted = trixie.check_output(f"openssl x509 -noout -serial -in /etc/nanomq/own/{number}.pem")
        assert_served(outsider, trixie, wanted.partition("=")[2].lower())
        assert gets_in(friend, trixie, certificate="")
    assert_steady([trixie], **options)


def acme_options(*servers: acme_server.Server, renew_before: str = "1h") -> dict:
    """dns-01 for one host, http-01 for the other, by the last of the servers; all of them are trusted."""
    server = servers[-1]
    hook = json.dumps([str(server.hook)])
    return {
        "nanomq_pki_server_source": "acme",
        "nanomq_pki_server_names": ["DNS:{{ inventory_hostname }}"],
        "nanomq_pki_server_trust": "".join(each.root for each in servers),
        "nanomq_pki_server_renew_before": renew_before,
        "nanomq_pki_acme_directory": server.directory,
        "nanomq_pki_acme_terms_agreed": True,
        "nanomq_pki_acme_dns_hook": f"{{{{ {hook} if inventory_hostname == 'bookworm' else [] }}}}",
        "nanomq_pki_acme_webroot": f"{{{{ '{server.webroot}' if inventory_hostname == 'trixie' else '' }}}}",
    }


def test_acme(client, bookworm, trixie, outsider, tmp_path, monkeypatch):
    """An authority that signs for a day, and then, after an outage and a refusal, one that signs for longer."""
    brokers = (bookworm, trixie)

    def assert_all_in(root: str) -> None:
        friend = trusting(client, "acme", root)
        for broker in brokers:
            assert_served(outsider, broker)
            assert gets_in(friend, broker, broker.name, certificate="client" if broker is bookworm else "")

    def assert_refused(words: str, names: list[str], **options) -> None:
        before = [serial(broker) for broker in brokers]
        run = harden(**options)
        assert run.status != 0
        assert run.flat().count("the ACME server https://") >= len(names), run.output
        assert words in run.flat(), run.output
        assert [run.recap(name)["failed"] for name in names] == [1] * len(names)
        assert [serial(broker) for broker in brokers] == before
        assert [leftovers(broker) for broker in brokers] == ["", ""]

    with acme_server.run(tmp_path / "first", DAY) as first:
        monkeypatch.setenv("SSL_CERT_FILE", str(first.tls_ca))
        run = harden(**acme_options(first))
        assert run.status == 0, run.output
    assert_all_in(first.root)
    # The server is down, which nobody notices before a certificate is due.
    assert_steady(brokers, **acme_options(first))
    assert_refused("127.0.0.1", ["bookworm", "trixie"], **acme_options(first, renew_before="2d"))
    assert_all_in(first.root)
    with acme_server.run(tmp_path / "second", 10 * DAY) as second:
        monkeypatch.setenv("SSL_CERT_FILE", str(second.tls_ca))
        due = acme_options(first, second, renew_before="2d")
        hook = second.hook.read_text()
        second.hook.write_text("#!/bin/sh\nexit 0\n")
        assert_refused("Failed to validate challenge", ["bookworm"], hosts="bookworm", **due)
        second.hook.write_text(hook)
        harden_once(brokers, **due)
        assert_all_in(second.root)
        shown = [path for path in second.webroot.rglob("*") if path.is_file()]
        assert shown == []
        assert [line.split()[0] for line in second.hook_log.read_text().splitlines()] == ["present", "cleanup"]
    account = scenario.pki() / "acme"
    assert [path.name for path in account.iterdir()] == ["account.key"]
    assert (account / "account.key").stat().st_mode & 0o777 == 0o600


def test_back_to_the_own_authority(client, bookworm, trixie, outsider):
    """The other CA's certificates are replaced, and what was there for their sake goes."""
    harden_once([bookworm, trixie], nanomq_pki_server_source="authority")
    for broker in (bookworm, trixie):
        assert_served(outsider, broker)
        assert gets_in(client, broker)
        assert not broker.file("/etc/nanomq/ca/server.pem").exists
