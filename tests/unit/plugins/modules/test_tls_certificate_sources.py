# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates from elsewhere: an external signer (a real openssl), an ACME server, or given by the user.

The ACME server itself is part of the scenario `sources`; here its module's answers are played.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from ansible.errors import AnsibleError
from ansible_collections.edgesec.nanomq.plugins.action.tls_certificate import ActionModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as parsed
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import choose_backend, make_request
from ansible_collections.edgesec.nanomq.plugins.plugin_utils.acme import AcmeSource
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ELSEWHERE = Path(__file__).resolve().parents[3] / "elsewhere"
USER = pwd.getpwuid(os.geteuid()).pw_name
GROUP = grp.getgrgid(os.getegid()).gr_name
NAMES = ("DNS:broker.example", "IP:127.0.0.1")
SECRET = 'hunter2\'s "own"'
DAY = 86400


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory):
    """The directory of an authority that is not ours."""
    path = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([ELSEWHERE, "make", path], check=True, timeout=60)
    return path


def give(elsewhere, name, *, names=None, days=365):
    """Have a pair made; return its certificates and its key, in PEM."""
    command = [ELSEWHERE, "give", elsewhere, name, names or ",".join(NAMES), str(days)]
    subprocess.run(command, check=True, timeout=60)
    return (elsewhere / f"{name}.pem").read_text(), (elsewhere / f"{name}.key").read_text()


class Host:
    """A host, played by a directory, and the task that is run for it. ``steps`` are those of the last run."""

    def __init__(self, root: Path, elsewhere: Path, act, run_module, backend: str) -> None:
        self.root = root
        self.pki = root / "etc" / "pki"
        self.pki.parent.mkdir(parents=True)
        self.store = self.pki / "server"
        self.elsewhere = elsewhere
        self.act = act
        self.run_module = run_module
        self.told = []
        self.tamper = lambda step, result: result
        self.local = None
        self.common = {
            "name": "server",
            "path": str(self.pki),
            "common_name": "broker.example",
            "subject_alt_names": list(NAMES),
            "owner": USER,
            "group": GROUP,
            "trust": (elsewhere / "root.pem").read_text(),
            "backend": backend,
        }

    def task(self, *, check=False, **options):
        asked = {name: value for name, value in {**self.common, **options}.items() if value is not None}
        self.told = []
        local = self.local

        class Action(ActionModule):
            def _run_local(self, name, arguments, task_vars):
                return local(name, arguments)

        def remote(module, arguments, *, check):
            self.told.append(arguments)
            return self.tamper(arguments["exchange"]["step"], self.run_module(module, arguments, check=check))

        return self.act(Action, asked, check=check, remote=remote)

    def signed(self, how="right", **options):
        """A run with the external signer that does it in that way."""
        command = [str(ELSEWHERE), "sign", str(self.elsewhere), how]
        return self.task(**{"source": "command", "signer_command": command, "signer_secret": SECRET, **options})

    def given(self, certificate, key, **options):
        return self.task(source="given", given_certificate=certificate, given_key=key, **options)

    @property
    def steps(self):
        return [arguments["exchange"]["step"] for arguments in self.told]

    def files(self):
        """What is on the host, with content: links with their target."""
        return {
            str(path.relative_to(self.root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
            for path in sorted(self.pki.parent.rglob("*"))
            if path.is_symlink() or path.is_file()
        }

    def chain(self):
        return parsed.load_certificates((self.store / "current" / "cert.pem").read_bytes())


@pytest.fixture(params=["cryptography", "openssl"])
def both(request, tmp_path, elsewhere, run_action, run_module):
    return Host(tmp_path, elsewhere, run_action, run_module, request.param)


@pytest.fixture
def host(tmp_path, elsewhere, run_action, run_module):
    return Host(tmp_path, elsewhere, run_action, run_module, "cryptography")


class TestCommand:
    def test_a_certificate_with_its_chain(self, both):
        result = both.signed()
        assert not result["failed"], result
        assert both.steps == ["inspect", "install"]
        assert [certificate.common_name for certificate in both.chain()] == ["broker.example", "elsewhere middle"]
        assert both.chain()[0].names == frozenset(NAMES)
        openssl = ["openssl", "verify", "-CAfile", both.elsewhere / "root.pem", "-untrusted"]
        subprocess.run([*openssl, result["certificate_path"], result["certificate_path"]], check=True)

    def test_nothing_to_do(self, both):
        both.signed()
        before = both.files()
        result = both.signed("refuse")
        assert not result["changed"]
        assert both.steps == ["inspect"]
        assert both.files() == before

    def test_a_root_that_is_sent_along_is_left_out(self, host):
        assert host.signed("root-too")["changed"]
        assert len(host.chain()) == 2
        assert not host.signed()["changed"]

    def test_no_chain_is_needed_where_the_intermediate_is_trusted(self, host):
        assert host.signed("no-chain", trust=(host.elsewhere / "middle.pem").read_text())["changed"]
        assert len(host.chain()) == 1

    def test_renewal(self, both):
        first = both.signed(valid_for="20d", renew_before="1d")
        second = both.signed(valid_for="60d", renew_before="30d")
        assert second["reason"].startswith("expiring: at ")
        assert second["serial"] != first["serial"]
        assert not both.signed(valid_for="60d", renew_before="30d")["changed"]

    def test_another_trust_renews(self, host):
        """The trust anchor decides whether the pair in force is still good."""
        host.signed()
        result = host.signed("stranger", trust=(host.elsewhere / "stranger.pem").read_text())
        assert result["changed"], result
        assert "is not signed by a trust anchor" in result["reason"]

    def test_two_anchors_while_one_takes_over_from_the_other(self, host):
        host.signed()
        trust = (host.elsewhere / "stranger.pem").read_text() + host.common["trust"]
        assert not host.signed("refuse", trust=trust)["changed"]

    def test_from_the_own_authority_and_back(self, host):
        ca = host.root / "ca"
        _authority.create(str(ca), "own", "ec-p256", 900 * DAY, None)
        own = {"source": "authority", "authority_path": str(ca), "trust": None}
        assert host.task(**own)["changed"]
        assert "is not signed by a trust anchor" in host.signed()["reason"]
        assert "not signed by the present authority 'own'" in host.task(**own)["reason"]
        assert not host.task(**own)["changed"]

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            ("foreign-name", "names: ['DNS:broker.example', 'DNS:stranger.example', 'IP:127.0.0.1'], not "),
            ("missing-name", "names: ['DNS:broker.example'], not "),
            ("authority", "CA:true"),
            ("client-only", "usages: ['client_auth'], without ['server_auth']"),
            ("other-usage", "was not asked for"),
            ("long", "longer than valid_for"),
            ("short", "within renew_before, so that every run would renew it"),
            ("expired", "expired: at 20"),
            ("other-key", "mismatch: it is for another key than the host's"),
            ("stranger", "'elsewhere stranger', the last of the chain, is not signed by a trust anchor"),
            ("no-chain", "'broker.example', the last of the chain, is not signed by a trust anchor"),
            ("wrong-order", "'broker.example' is not signed by 'elsewhere root' which follows it"),
            ("rubbish", "the signer's answer is no certificate in PEM"),
            ("nothing", "the signer's answer is no certificate in PEM"),
            ("endless", "printed more than 262144 bytes"),
            ("refuse", "failed (exit status 3): logged in with *** | no: quota exceeded"),
        ],
    )
    def test_a_wrong_answer_never_reaches_the_host(self, host, how, words):
        host.signed()
        before = host.files()
        result = host.signed(
            how,
            key_type="ec-p384" if how != "other-key" else "ec-p256",
            valid_for="364d",
            **(
                {"common_name": "other.example", "subject_alt_names": [*NAMES, "DNS:other.example"]}
                if how == "other-key"
                else {}
            ),
        )
        assert result["failed"], result
        assert words in result["msg"]
        assert SECRET not in result["msg"]
        assert host.steps == ["inspect", "discard"]
        assert "-----BEGIN CERTIFICATE-----" not in json.dumps(
            [each["exchange"]["certificate"] for each in host.told if "certificate" in each["exchange"]]
        )
        assert host.files() == before
        assert not list(host.store.glob(".*"))
        assert host.signed()["changed"] is False

    def test_a_signer_that_hangs_is_ended_with_all_it_started(self, host):
        begun = time.monotonic()
        result = host.signed("hang", signer_timeout=1)
        assert time.monotonic() - begun < 20
        assert "did not end within 1 s: waiting for approval" in result["msg"]
        assert not list(host.store.glob(".*"))

    @pytest.mark.parametrize("script", ["kill -9 $$", "echo >&2; exit 1", "exec >&- 2>&-; sleep 60"])
    def test_ends_of_programs(self, host, script):
        program = host.root / "signer"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        result = host.task(source="command", signer_command=[str(program)], signer_timeout=1)
        assert result["failed"]
        assert "signer_command: " in result["msg"]
        assert host.steps == ["inspect", "discard"]

    def test_what_the_program_is_told(self, host):
        program = host.root / "signer"
        program.write_text("#!/bin/sh\nenv > $0.env\ncat > $0.csr\nexit 1\n")
        program.chmod(0o700)
        host.task(source="command", signer_command=[str(program)], signer_secret=SECRET, valid_for="90d")
        environment = dict(line.split("=", 1) for line in (host.root / "signer.env").read_text().splitlines())
        ours = {name: value for name, value in environment.items() if name.startswith("NANOMQ_PKI_")}
        assert ours == {
            "NANOMQ_PKI_HOST": "",
            "NANOMQ_PKI_COMMON_NAME": "broker.example",
            "NANOMQ_PKI_NAMES": "DNS:broker.example,IP:127.0.0.1",
            "NANOMQ_PKI_USAGES": "server_auth",
            "NANOMQ_PKI_KEY_TYPE": "ec-p256",
            "NANOMQ_PKI_VALID_FOR": str(90 * DAY),
            "NANOMQ_PKI_SECRET": SECRET,
        }
        assert x509.load_pem_x509_csr((host.root / "signer.csr").read_bytes()).is_signature_valid

    def test_what_the_host_is_told(self, host):
        assert host.signed()["changed"]
        told = json.dumps(host.told)
        for word in (json.dumps(SECRET)[1:-1], str(ELSEWHERE), str(host.elsewhere), "PRIVATE KEY"):
            assert word not in told

    def test_no_program_runs_in_check_mode(self, host):
        result = host.signed("rubbish", check=True)
        assert result["changed"]
        assert host.steps == ["inspect"]
        assert host.files() == {}

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"trust": None}, "trust is empty: with source command"),
            ({"trust": "rubbish"}, "trust is no certificate in PEM"),
            ({"signer_command": []}, "signer_command is empty"),
            ({"signer_command": ["signer"]}, "must be an absolute path"),
            ({"signer_command": ["/dev/null/signer"]}, "does not exist on the controller, or cannot be run"),
            ({"signer_command": ["/etc/passwd"]}, "does not exist on the controller, or cannot be run"),
            ({"signer_timeout": 0}, "signer_timeout must be 1 or more"),
            ({"source": "elsewhere"}, "value of source must be one of"),
        ],
    )
    def test_options_are_refused_before_the_host_is_touched(self, host, options, words):
        result = host.signed(**options)
        assert result["failed"]
        assert words in result["msg"]
        assert host.steps == []

    def test_a_trust_anchor_that_is_none(self, host):
        certificate, _key = give(host.elsewhere, "leaf")
        assert "is not the certificate of an authority" in host.signed(trust=certificate)["msg"]
        assert host.steps == []


def request_of(common_name="broker.example", names=NAMES, kind="ec-p256"):
    backend = choose_backend("cryptography")
    return make_request(backend, backend.generate_key(kind), None, common_name, list(names)).decode()


def request_with(extension):
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker.example")])
    )
    made = builder.add_extension(extension, critical=False).sign(
        ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


class TestHostileHost:
    """No signer ever sees a request for more than the task allows."""

    @pytest.mark.parametrize(
        ("request_pem", "words"),
        [
            (request_of(common_name="other.example"), "subject"),
            (request_of(names=[*NAMES, "DNS:other.example"]), "names"),
            (request_of(kind="rsa-2048"), "key is rsa-2048"),
            (request_with(x509.BasicConstraints(True, None)), "extensions"),
            ("rubbish", "cannot be read"),
        ],
    )
    @pytest.mark.parametrize("source", ["command", "acme"])
    def test_request(self, host, request_pem, words, source, monkeypatch):
        ran = host.root / "ran"
        program = host.root / "signer"
        program.write_text(f"#!/bin/sh\ntouch {ran}\n")
        program.chmod(0o700)
        host.local = lambda name, arguments: ran.touch()
        host.tamper = lambda step, result: {**result, "request": request_pem} if step == "inspect" else result
        if source == "acme":
            options = acme_options(host, monkeypatch)
        else:
            options = {"source": "command", "signer_command": [str(program)]}
        result = host.task(**options)
        assert result["failed"]
        assert words in result["msg"]
        assert host.steps == ["inspect", "discard"]
        assert not ran.exists()
        assert not list(host.store.glob(".*"))

    def test_a_signature_that_its_key_did_not_make(self, host):
        def tamper(step, result):
            if step == "inspect":
                raw = bytearray(
                    x509.load_pem_x509_csr(result["request"].encode()).public_bytes(serialization.Encoding.DER)
                )
                raw[-1] ^= 1
                forged = x509.load_der_x509_csr(bytes(raw)).public_bytes(serialization.Encoding.PEM)
                return {**result, "request": forged.decode()}
            return result

        host.tamper = tamper
        assert "not signed by its own key" in host.signed()["msg"]


class TestGiven:
    def test_a_pair_in_pem(self, both):
        certificate, key = give(both.elsewhere, "one")
        result = both.given(certificate, key)
        assert not result["failed"], result
        assert both.steps == ["inspect", "take"]
        assert Path(result["key_path"]).read_text() == key
        assert Path(result["key_path"]).stat().st_mode & 0o777 == 0o640
        assert not both.given(certificate, key)["changed"]
        assert both.steps == ["inspect"], "the key does not travel again"

    def test_another_one_and_back(self, both):
        first, second = give(both.elsewhere, "one"), give(both.elsewhere, "two")
        both.given(*first)
        assert "another certificate is in force" in both.given(*second)["reason"]
        back = both.given(*first)
        assert not back["failed"], back
        assert Path(back["key_path"]).read_text() == first[1]
        assert not both.given(*first)["changed"]

    def test_an_encrypted_key(self, both):
        certificate, key = give(both.elsewhere, "one")
        encrypt = ["openssl", "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:right"]
        locked = subprocess.run(encrypt, input=key, capture_output=True, text=True, check=True).stdout
        assert "the passphrase is wrong" in both.given(certificate, locked, key_passphrase="wrong")["msg"]
        assert "no passphrase is given" in both.given(certificate, locked)["msg"]
        assert both.steps == []
        assert both.given(certificate, locked, key_passphrase="right")["changed"]
        assert not both.given(certificate, locked, key_passphrase="right")["changed"]

    def test_check_mode(self, host):
        pair = give(host.elsewhere, "one")
        assert host.given(*pair, check=True)["changed"]
        assert host.files() == {}

    def test_the_key_is_no_part_of_what_comes_back(self, host):
        certificate, key = give(host.elsewhere, "one")
        assert key.splitlines()[1] not in json.dumps(host.given(certificate, key))

    def test_a_damaged_copy_on_the_host_is_replaced_or_said(self, host):
        certificate, key = give(host.elsewhere, "one")
        result = host.given(certificate, key)
        Path(result["key_path"]).write_text("rubbish")
        again = host.given(certificate, key)
        assert again["failed"]
        assert "remove it" in again["msg"]

    def test_its_end_is_said_in_days(self, host):
        certificate, key = give(host.elsewhere, "soon", days=10)
        for _run in range(2):
            result = host.given(certificate, key)
            (warning,) = result["warnings"]
            assert "ends at 20" in warning
            assert re.search("in (9|10) days, and is not renewed by itself", warning)
        assert "warnings" not in host.given(certificate, key, renew_before="5d")

    def test_names_may_be_more_or_a_wildcard(self, host):
        pair = give(host.elsewhere, "wild", names="DNS:*.example,IP:127.0.0.1,DNS:more.elsewhere")
        assert host.given(*pair)["changed"]
        assert "not for ['DNS:a.b.example']" in host.given(*pair, subject_alt_names=["DNS:a.b.example"])["msg"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"subject_alt_names": ["DNS:other.example"]}, "and not for ['DNS:other.example']"),
            ({"given_certificate": "rubbish"}, "given_certificate is no certificate in PEM"),
            ({"given_key": "rubbish"}, "given_key: it is not a PEM private key"),
            ({"given_key": "k\u00e4se"}, "given_key: it is not a PEM private key"),
            ({"given_key": None}, "source given needs"),
            ({"given_certificate_path": "/etc/x.pem"}, "source given needs"),
            ({"trust": None}, "trust is empty: with source given"),
            ({"usages": ["client_auth"], "subject_alt_names": []}, "without ['client_auth']"),
        ],
    )
    def test_what_is_not_fit_is_refused_before_the_host_is_touched(self, host, options, words):
        certificate, key = give(host.elsewhere, "one")
        result = host.task(**{"source": "given", "given_certificate": certificate, "given_key": key, **options})
        assert result["failed"]
        assert words in result["msg"]
        assert host.steps == []

    def test_pairs_that_are_not_fit(self, host):
        certificate, key = give(host.elsewhere, "one")
        other_certificate, other_key = give(host.elsewhere, "two")
        blocks = certificate.split("-----END CERTIFICATE-----\n")
        leaf, middle = (f"{block}-----END CERTIFICATE-----\n" for block in blocks[:2])
        expired = give(host.elsewhere, "gone", days=-1)
        ca = (host.elsewhere / "middle.pem").read_text(), (host.elsewhere / "middle.key").read_text()
        for pair, words in (
            ((certificate, other_key), "mismatch: the key is not that of the certificate"),
            ((middle + leaf, key), "mismatch"),
            ((leaf, key), "is not signed by a trust anchor"),
            ((leaf + other_certificate, key), "is not signed by 'two' which follows it"),
            (expired, "expired: at 20"),
            (ca, "CA:true"),
        ):
            result = host.given(*pair)
            assert result["failed"], words
            assert words in result["msg"]
            assert host.steps == []
        assert host.files() == {}


class TestGivenOnTheHost:
    @pytest.fixture
    def place(self, both):
        """Files as other programs keep them: links to files with a number."""
        directory = both.root / "etc" / "own"
        directory.mkdir(mode=0o750)

        def put(number, **options):
            for suffix, text in zip(("pem", "key"), give(both.elsewhere, f"own{number}", **options)):
                file = directory / f"{number}.{suffix}"
                file.write_text(text)
                file.chmod(0o640)
                link = directory / f"live.{suffix}"
                link.unlink(missing_ok=True)
                link.symlink_to(file.name)
            return directory

        return put

    def look(self, host, directory, **options):
        return host.task(
            **{
                "source": "given",
                "given_certificate_path": str(directory / "live.pem"),
                "given_key_path": str(directory / "live.key"),
                **options,
            }
        )

    def test_the_real_files_are_named(self, both, place):
        for number in (1, 2):
            directory = place(number)
            before = both.files()
            result = self.look(both, directory)
            assert not result["failed"], result
            assert not result["changed"]
            assert both.steps == ["inspect"]
            assert result["certificate_path"] == str(directory / f"{number}.pem")
            assert result["key_path"] == str(directory / f"{number}.key")
            assert both.files() == before

    def test_its_end_is_said(self, both, place):
        assert re.search("in (9|10) days", self.look(both, place(1, days=10))["warnings"][0])

    def test_what_is_not_fit(self, both, place):
        directory = place(1)
        place(2)
        for options, words in (
            ({"given_key_path": str(directory / "1.key")}, "mismatch: the key is not that of the certificate"),
            ({"given_key_path": str(directory / "none.key")}, "none.key does not exist on this host"),
            ({"given_certificate_path": str(directory / "2.key")}, "2.key is no certificate in PEM"),
            ({"subject_alt_names": ["DNS:other.example"]}, "not for ['DNS:other.example']"),
            ({"trust": (both.elsewhere / "stranger.pem").read_text()}, "is not signed by a trust anchor"),
        ):
            result = self.look(both, directory, **options)
            assert result["failed"], words
            assert words in result["msg"]
        (directory / "2.key").chmod(0o644)
        assert "(mode 0644)" in self.look(both, directory)["msg"]
        (directory / "2.key").chmod(0o600)
        directory.chmod(0o777)
        assert "own is writable by its group or by others" in self.look(both, directory)["msg"]
        directory.chmod(0o750)
        place(3, days=-1)
        assert "expired: at 20" in self.look(both, directory)["msg"]


def acme_options(host, monkeypatch, **options):
    """The options of an ACME source, whose collection is said to be there."""
    found = type("Context", (), {"resolved": True})()
    monkeypatch.setattr("ansible.plugins.loader.module_loader.find_plugin_with_context", lambda name: found)
    monkeypatch.setattr(AcmeSource, "_reach", lambda self: None)
    webroot = host.root / "web"
    webroot.mkdir(exist_ok=True)
    return {
        "source": "acme",
        "acme_directory": "https://acme.example/dir",
        "acme_account_path": str(host.root / "acme"),
        "acme_terms_agreed": True,
        "acme_webroot": str(webroot),
        **options,
    }


class TestAcme:
    """What is done around the module acme_certificate."""

    RESOURCE = ".well-known/acme-challenge/token_-1"

    def play(self, host, *, how="right", resource=RESOURCE, second=None):
        """The module's part: an order with a challenge, then the certificate."""
        calls = []

        def local(name, arguments):
            calls.append(arguments)
            assert name == "community.crypto.acme_certificate"
            shown = host.root / "web" / resource
            if "data" not in arguments:
                assert not shown.exists()
                challenge = {"http-01": {"resource": resource, "resource_value": "token.print"}}
                records = {"_acme-challenge.broker.example": ["value"]}
                return {"challenge_data": {"broker.example": challenge}, "challenge_data_dns": records}
            if arguments["challenge"] == "http-01":
                assert shown.read_text() == "token.print"
            if isinstance(second, Exception):
                raise second
            if second:
                return second
            names = {"NANOMQ_PKI_NAMES": ",".join(NAMES), "NANOMQ_PKI_VALID_FOR": str(900 * DAY)}
            environment = {**os.environ, **names, "NANOMQ_PKI_COMMON_NAME": "broker.example"}
            command = [ELSEWHERE, "sign", host.elsewhere, how]
            signed = subprocess.run(
                command, input=arguments["csr_content"], env=environment, capture_output=True, text=True, check=True
            )
            Path(arguments["fullchain_dest"]).write_text(signed.stdout)
            return {"changed": True}

        host.local = local
        return calls

    def test_issued(self, host, monkeypatch):
        calls = self.play(host)
        result = host.task(**acme_options(host, monkeypatch))
        assert not result["failed"], result
        assert len(calls) == 2
        assert calls[0]["account_key_src"] == str(host.root / "acme" / "account.key")
        assert "account_email" not in calls[0]
        assert (host.root / "acme").stat().st_mode & 0o777 == 0o700
        assert (host.root / "acme/account.key").stat().st_mode & 0o777 == 0o600
        assert os.listdir(host.root / "acme") == ["account.key"]
        assert not list((host.root / "web").rglob("token*"))
        assert len(host.chain()) == 2
        told = json.dumps(host.told)
        for word in ("acme.example", str(host.root / "acme"), "PRIVATE KEY"):
            assert word not in told

    def test_steady_state_asks_nobody(self, host, monkeypatch):
        self.play(host)
        options = acme_options(host, monkeypatch)
        assert host.task(**options)["changed"]
        host.local = None
        assert not host.task(**options)["changed"]

    def test_the_account_key_is_made_once(self, host, monkeypatch):
        self.play(host)
        host.task(**acme_options(host, monkeypatch))
        key = (host.root / "acme/account.key").read_bytes()
        assert host.task(**acme_options(host, monkeypatch), key_type="ec-p384")["changed"]
        assert (host.root / "acme/account.key").read_bytes() == key

    def test_the_dns_hook(self, host, monkeypatch):
        self.play(host)
        hook = host.root / "hook"
        hook.write_text('#!/bin/sh\necho "$@" >> $0.log\n')
        hook.chmod(0o700)
        names = ["DNS:broker.example"]
        options = acme_options(host, monkeypatch, acme_webroot=None, acme_dns_hook=[str(hook), "zone"])
        result = host.task(**options, subject_alt_names=names)
        assert "names: " in result["msg"], "the server of this test gives the address as well"
        assert (host.root / "hook.log").read_text().splitlines() == [
            "zone present _acme-challenge.broker.example. value",
            "zone cleanup _acme-challenge.broker.example. value",
        ]

    @pytest.mark.parametrize(
        ("second", "words"),
        [
            ({"failed": True, "msg": "Failed to validate challenge for dns:broker.example"}, "Failed to validate"),
            (AnsibleError("no route"), "no route"),
            ({"changed": False}, "gave no certificate"),
        ],
    )
    def test_the_server_refuses(self, host, monkeypatch, second, words):
        self.play(host)
        options = acme_options(host, monkeypatch)
        host.task(**options)
        before = host.files()
        self.play(host, second=second)
        result = host.task(**options, key_type="ec-p384")
        assert result["failed"]
        assert words in result["msg"]
        assert host.steps == ["inspect", "discard"]
        assert host.files() == before
        assert os.listdir(host.root / "acme") == ["account.key"]
        assert not list((host.root / "web").rglob("token*"))

    @pytest.mark.parametrize("how", ["foreign-name", "stranger", "authority", "other-key"])
    def test_a_wrong_certificate(self, host, monkeypatch, how):
        self.play(host, how=how)
        assert (
            "the certificate that came back is not the one asked for"
            in host.task(**acme_options(host, monkeypatch))["msg"]
        )
        assert host.files() == {}

    @pytest.mark.parametrize("resource", ["../../token", ".well-known/acme-challenge/../token", "/etc/token"])
    def test_a_server_that_wants_files_elsewhere(self, host, monkeypatch, resource):
        self.play(host, resource=resource)
        assert "a place that is none for challenges" in host.task(**acme_options(host, monkeypatch))["msg"]
        assert host.files() == {}

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"acme_directory": "http://acme.example"}, "acme_directory is not given"),
            ({"acme_account_path": None}, "acme_account_path is not given"),
            ({"acme_terms_agreed": False}, "acme_terms_agreed is false"),
            ({"acme_dns_hook": ["/bin/true"]}, "and not both"),
            ({"acme_webroot": None}, "give acme_webroot"),
            ({"acme_webroot": __file__}, f"{__file__} is no directory on the controller"),
            ({"acme_webroot": None, "acme_dns_hook": ["/bin/true"]}, "an address needs the challenge http-01"),
            ({"subject_alt_names": ["DNS:broker.example", "DNS:*.example"]}, "a wildcard needs the challenge dns-01"),
            ({"subject_alt_names": ["DNS:broker.example", "URI:urn:x"]}, "signs no URI"),
            ({"common_name": "the broker"}, "is none of the DNS names"),
            ({"trust": None}, "trust is empty: with source acme"),
        ],
    )
    def test_options_are_refused_before_the_host_is_touched(self, host, monkeypatch, options, words):
        result = host.task(**acme_options(host, monkeypatch, **options))
        assert result["failed"]
        assert words in result["msg"]
        assert host.steps == []

    def test_a_server_that_is_down_is_said_at_once(self, host, monkeypatch):
        reach = AcmeSource._reach
        with socket.create_server(("127.0.0.1", 0)) as free:
            directory = f"https://127.0.0.1:{free.getsockname()[1]}/dir"
        options = acme_options(host, monkeypatch, acme_directory=directory)
        monkeypatch.setattr(AcmeSource, "_reach", reach)
        begun = time.monotonic()
        result = host.task(**options)
        assert time.monotonic() - begun < 20
        assert f"the ACME server {directory} does not answer: " in result["msg"]
        assert host.steps == ["inspect", "discard"]

    def test_without_the_collection(self, host, monkeypatch):
        options = acme_options(host, monkeypatch)
        missing = type("Context", (), {"resolved": False})()
        monkeypatch.setattr("ansible.plugins.loader.module_loader.find_plugin_with_context", lambda name: missing)
        assert "ansible-galaxy collection install community.crypto" in host.task(**options)["msg"]
        assert host.steps == []

    def test_an_account_key_that_others_can_read(self, host, monkeypatch):
        self.play(host)
        options = acme_options(host, monkeypatch)
        host.task(**options)
        (host.root / "acme/account.key").chmod(0o644)
        assert "(mode 0644)" in host.task(**options, key_type="ec-p384")["msg"]
        assert host.steps == ["inspect", "discard"]
