# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host and its controller: the key is born on the one, signed for on the other."""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import itertools
import json
import os
import pwd
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.action.tls_certificate import ActionModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import choose_backend, make_request
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER = pwd.getpwuid(os.geteuid()).pw_name
GROUP = grp.getgrgid(os.getegid()).gr_name
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


class Host:
    """A host, played by a directory, and the task that is run for it. ``runs`` are the steps that the module did."""

    def __init__(self, root: Path, act, run_module, backend: str) -> None:
        self.pki = root / "host" / "etc" / "pki"
        self.pki.parent.mkdir(parents=True)
        self.authority = root / "controller" / "ca"
        self.act = act
        self.run_module = run_module
        self.runs = []
        self.tamper = lambda step, result: result
        self.options = {
            "name": "server",
            "path": str(self.pki),
            "common_name": "broker",
            "subject_alt_names": ["DNS:broker.example", "IP:127.0.0.1"],
            "usages": ["server_auth", "client_auth"],
            "owner": USER,
            "group": GROUP,
            "authority_path": str(self.authority),
            "backend": backend,
        }

    def make_authority(self, valid_for=86400000, passphrase=None):
        shutil.rmtree(self.authority, ignore_errors=True)
        return _authority.create(str(self.authority), "test CA", "ec-p256", valid_for, passphrase)

    def task(self, *, check=False, **options):
        """Run the task; None for an option leaves it out."""
        asked = {name: value for name, value in {**self.options, **options}.items() if value is not None}
        self.runs = []

        def remote(module, arguments, *, check):
            step = arguments["exchange"]["step"]
            self.runs.append((step, arguments))
            return self.tamper(step, self.run_module(module, arguments, check=check))

        return self.act(ActionModule, asked, check=check, remote=remote)

    @property
    def steps(self):
        return [step for step, _arguments in self.runs]

    def snapshot(self):
        """Everything on the host: names, owners, modes, times, content or target."""
        return {
            str(entry): (
                *((found := entry.lstat()).st_uid, found.st_gid, found.st_mode, found.st_mtime_ns),
                os.readlink(entry) if entry.is_symlink() else entry.read_bytes() if entry.is_file() else None,
            )
            for entry in sorted(self.pki.parent.parent.rglob("*"))
        }

    def refused(self, match, *, runs=None, **options):
        """The task fails in check mode and without, with that message, and leaves the host untouched."""
        before = self.snapshot()
        for check in (True, False):
            result = self.task(check=check, **options)
            assert result["failed"], result
            assert match in result["msg"]
            assert self.snapshot() == before
            if runs is not None:
                assert self.steps == runs


@pytest.fixture(params=["cryptography", "openssl"])
def both(request, tmp_path, run_action, run_module):
    """A host for each back end."""
    host = Host(tmp_path, run_action, run_module, request.param)
    host.make_authority()
    return host


@pytest.fixture
def host(tmp_path, run_action, run_module):
    """One host, where the back end makes no difference."""
    host = Host(tmp_path, run_action, run_module, "cryptography")
    host.make_authority()
    return host


def openssl(*arguments):
    return subprocess.run(
        ["openssl", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    ).stdout


class TestPlaceRefused:
    """What is wrong with the host is said before anything is changed."""

    def test_link_above(self, host):
        (host.pki.parent.parent / "link").symlink_to("etc")
        host.refused("link is a symbolic link", path=str(host.pki.parent.parent / "link" / "pki"))

    def test_link_in_the_place_of_the_pair(self, host):
        (host.pki / "real").mkdir(parents=True)
        (host.pki / "server").symlink_to("real")
        host.refused("server is a symbolic link")

    @as_root
    def test_directory_of_somebody_else(self, host):
        os.chown(host.pki.parent, 12345, -1)
        host.refused("etc belongs to user id 12345")

    @pytest.mark.parametrize("mode", [0o775, 0o757])
    def test_directory_that_others_can_write(self, host, mode):
        host.pki.parent.chmod(mode)
        host.refused(f"etc is writable by its group or by others (mode {mode:04o})")

    def test_file_in_the_way(self, host):
        host.pki.touch()
        host.refused("pki is not a directory")

    def test_relative_path(self, host):
        host.refused("absolute path", path="etc/../pki")

    def test_unknown_user(self, host):
        host.refused("the user 'no-such-user' does not exist", owner="no-such-user")

    def test_unknown_group(self, host):
        before = host.snapshot()
        result = host.task(group="no-such-group")
        assert result["failed"]
        assert "the group 'no-such-group' does not exist on this host: create it first" in result["msg"]
        assert host.snapshot() == before

    def test_unknown_group_in_check_mode(self, host):
        """Another task of the same play makes it; in check mode it has not."""
        result = host.task(check=True, group="no-such-group")
        assert not result["failed"]
        assert result["changed"]
        assert any("no-such-group" in warning for warning in result["warnings"])


class TestOptionsRefused:
    """They fail on the controller: no module runs."""

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"key_type": "ed25519"}, "the broker's TLS library cannot use such keys"),
            ({"key_type": "rsa-1024"}, "value of key_type must be one of"),
            ({"name": "../evil"}, "name must be one plain directory name"),
            ({"common_name": "x" * 65}, "1 to 64 bytes"),
            ({"subject_alt_names": ["broker.example"]}, "'broker.example' is not a subject alternative name"),
            ({"subject_alt_names": ["DNS:a,DNS:b"]}, "not a host name"),
            ({"subject_alt_names": []}, "subject_alt_names is empty"),
            ({"usages": []}, "usages is empty"),
            ({"usages": ["code_signing"]}, "value of usages must be one"),
            ({"valid_for": "1 year"}, "'1 year' is not a duration"),
            ({"renew_before": "soon"}, "'soon' is not a duration"),
            ({"valid_for": "30d", "renew_before": "30d"}, "renew_before must be shorter than valid_for"),
            ({"mode": "0644"}, "not fit for a private key"),
            ({"mode": 0o640}, "mode '416'"),
            ({"keep": 0}, "keep must be 1 or more"),
            ({"renewal_key": "old"}, "value of renewal_key must be one of"),
            ({"renew_issued_before": "yesterday"}, "neither a day nor a moment in UTC"),
            ({"renew_issued_before": "2030-01-31T12:00:00+01:00"}, "neither a day nor a moment in UTC"),
            ({"renew_issued_before": "2999-01-01"}, "2999-01-01T00:00:00Z is yet to come"),
            ({"key_passphrase": "a\nb"}, "a passphrase must be one line"),
            ({"authority_path": "pki/ca"}, "absolute path"),
            ({"authority_path": None}, "authority_path"),
            ({"exchange": {"step": "inspect"}}, "Unsupported parameters"),
        ],
    )
    def test_option(self, host, options, match):
        host.refused(match, runs=[], **options)


class TestAuthorityRefused:
    def test_missing(self, host):
        shutil.rmtree(host.authority)
        before = host.snapshot()
        result = host.task()
        assert "make it first" in result["msg"]
        assert host.steps == []
        assert host.snapshot() == before

    def test_expired(self, host, monkeypatch):
        host.make_authority(valid_for=1)
        time.sleep(2.1)
        host.refused("expired at 20", runs=[])

    def test_open_to_others(self, host):
        host.authority.chmod(0o755)
        host.refused("(mode 0755)", runs=[])

    @pytest.mark.parametrize("passphrase", ["wrong", None])
    def test_passphrase(self, host, passphrase):
        """It is found out when the host has begun; the host then forgets what it began."""
        host.make_authority(passphrase=b"right")
        assert host.task(authority_passphrase="right")["changed"]
        result = host.task(authority_passphrase=passphrase, common_name="other")
        assert "ca.key: it" in result["msg"]
        assert host.steps == ["inspect", "discard"]
        assert not list((host.pki / "server").glob(".new-*"))
        assert not host.task()["failed"]

    def test_key_of_another_authority(self, host, tmp_path):
        other = _authority.create(str(tmp_path / "other"), "test CA", "ec-p256", 86400000, None)
        shutil.copyfile(Path(other.path, "ca.key"), host.authority / "ca.key")
        assert "do not belong together" in host.task()["msg"]
        assert host.steps == ["inspect", "discard"]

    def test_too_near_to_its_end(self, host):
        host.make_authority(valid_for=3600)
        result = host.task(renew_before="2h")
        assert "within renew_before" in result["msg"]
        assert host.steps == ["inspect", "discard"]

    def test_near_to_its_end(self, host):
        """The certificate ends with its authority, which is said; it is not renewed in every run."""
        authority = host.make_authority(valid_for=864000)
        result = host.task(renew_before="1d")
        assert result["not_after"] == authority.issuer.not_after.strftime("%Y-%m-%dT%H:%M:%SZ")
        assert any("ends with its authority" in warning for warning in result["warnings"])
        assert not host.task(renew_before="1d")["changed"]


def request_of(common_name="broker", names=("DNS:broker.example", "IP:127.0.0.1"), kind="ec-p256"):
    backend = choose_backend("cryptography")
    return make_request(backend, backend.generate_key(kind), None, common_name, list(names)).decode()


def request_with(*extensions, subject=None):
    name = subject or [x509.NameAttribute(NameOID.COMMON_NAME, "broker")]
    builder = x509.CertificateSigningRequestBuilder(x509.Name(name))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


NAMES = x509.SubjectAlternativeName([x509.DNSName("broker.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])


class TestRenewalAsked:
    """What the options of a renewal come to, on host and controller together."""

    def test_same_key_or_new(self, both):
        first = both.task()
        keys = [Path(first["key_path"]).read_bytes()]
        for choice in ("same", "new", None):
            names = [f"DNS:broker-{len(keys)}.example"]
            result = both.task(subject_alt_names=names, renewal_key=choice)
            assert (result["changed"], result["reason"].partition(":")[0]) == (True, "names")
            keys.append(Path(result["key_path"]).read_bytes())
            assert not both.task(subject_alt_names=names, renewal_key=choice)["changed"]
        assert [old == new for old, new in itertools.pairwise(keys)] == [True, False, False]
        assert both.task(subject_alt_names=["DNS:broker-3.example"])["serial"] != first["serial"]

    def test_once_by_date(self, both):
        first = both.task()
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        before = both.snapshot()
        checked = both.task(check=True, renew_issued_before=moment)
        assert (checked["changed"], checked["reason"].partition(":")[0]) == (True, "requested")
        assert both.snapshot() == before
        second = both.task(renew_issued_before=moment, renewal_key="same")
        assert second["reason"] == checked["reason"]
        assert second["serial"] != first["serial"]
        assert Path(second["key_path"]).read_bytes() != Path(first["key_path"]).read_bytes()
        for again in ({"renew_issued_before": moment}, {"renew_issued_before": "2020-01-01"}, {}):
            assert not both.task(**again)["changed"]

    def test_a_client(self, both):
        """No server's name, another authority, and files of its own."""
        options = {"name": "client", "usages": ["client_auth"], "subject_alt_names": [], "mode": "0600"}
        first = both.task(**options, valid_for="20d", renew_before="1d")
        assert not both.task(**options, renew_before="1d")["changed"]
        second = both.task(**options)
        assert second["reason"].startswith("expiring: ")
        assert not both.task(**options)["changed"]
        assert first["serial"] != second["serial"]
        assert stat.S_IMODE(os.stat(second["key_path"]).st_mode) == 0o600
        openssl("verify", "-CAfile", both.authority / "ca.pem", "-purpose", "sslclient", second["certificate_path"])

    def test_the_controllers_clock(self, host):
        """Set back behind what the authority gave out: the host forgets what it began, and nothing is signed."""
        host.task()
        (issued,) = (host.authority / "issued").iterdir()
        (host.authority / "issued" / "later.pem").write_bytes(later(issued.read_bytes()))
        result = host.task(common_name="other")
        assert "the clock of the controller says" in result["msg"]
        assert host.steps == ["inspect", "discard"]
        assert len(list((host.authority / "issued").iterdir())) == 2
        assert not host.task()["changed"]


def later(pem):
    """A certificate that is like another one, but for a life that is yet to begin."""
    old = x509.load_pem_x509_certificate(pem)
    key = ec.generate_private_key(ec.SECP256R1())
    day = old.not_valid_before_utc - old.not_valid_before_utc.__class__.resolution
    begin = day.replace(year=day.year + 1, day=1)
    made = x509.CertificateBuilder(old.issuer, old.subject, key.public_key(), 77, begin, begin.replace(day=2))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class TestHostileHost:
    """A host gets a certificate for its own names and for nothing else, whatever it asks for."""

    @pytest.mark.parametrize(
        ("request_pem", "match"),
        [
            (request_of(common_name="other"), "subject"),
            (request_of(common_name="broker\u200b"), "subject"),
            (request_of(names=["DNS:broker.example", "IP:127.0.0.1", "DNS:other.example"]), "names"),
            (request_of(names=["DNS:broker.example"]), "names"),
            (request_of(names=[]), "names"),
            (request_of(names=["DNS:broker.example", "IP:127.0.0.1", "IP:127.0.0.1"]), "names"),
            (request_of(names=["DNS:*.example", "IP:127.0.0.1"]), "names"),
            (request_of(kind="ec-p384"), "key is ec-p384"),
            (request_of(kind="rsa-2048"), "key is rsa-2048"),
            (request_with(NAMES, x509.BasicConstraints(True, None)), "extensions"),
            (request_with(NAMES, x509.KeyUsage(*[True] * 9)), "extensions"),
            (
                request_with(
                    NAMES,
                    subject=[
                        x509.NameAttribute(NameOID.COMMON_NAME, "broker"),
                        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "admin"),
                    ],
                ),
                "subject",
            ),
            (
                request_with(
                    NAMES,
                    subject=[
                        x509.NameAttribute(NameOID.COMMON_NAME, "broker"),
                        x509.NameAttribute(NameOID.COMMON_NAME, "other"),
                    ],
                ),
                "subject",
            ),
            (request_with(x509.SubjectAlternativeName([x509.RFC822Name("root@example.org")])), "names"),
            ("", "cannot be read"),
            ("nonsense", "cannot be read"),
            ("\u2603", "cannot be read"),
            ("-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n", "cannot be read"),
        ],
    )
    def test_request(self, host, request_pem, match):
        def tamper(step, result):
            return {**result, "request": request_pem} if step == "inspect" else result

        host.tamper = tamper
        result = host.task()
        assert result["failed"]
        assert match in result["msg"]
        assert host.steps == ["inspect", "discard"]
        assert not (host.authority / "issued").exists()
        assert os.listdir(host.pki / "server") == []

    def test_request_that_its_key_did_not_sign(self, host):
        """The key of another host, put into a request without having it."""

        def tamper(step, result):
            if step == "inspect":
                raw = bytearray(
                    x509.load_pem_x509_csr(result["request"].encode()).public_bytes(serialization.Encoding.DER)
                )
                raw[-1] ^= 1
                forged = x509.load_der_x509_csr(bytes(raw)).public_bytes(serialization.Encoding.PEM)
                result["request"] = forged.decode()
            return result

        host.tamper = tamper
        assert "not signed by its own key" in host.task()["msg"]
        assert not (host.authority / "issued").exists()

    def test_what_the_host_is_told(self, host):
        """Neither the passphrase of the authority nor where it lies, and of its key nothing."""
        host.make_authority(passphrase=b"hunter2-authority")
        assert host.task(authority_passphrase="hunter2-authority", key_passphrase="hunter2-key")["changed"]
        told = json.dumps(host.runs)
        assert host.steps == ["inspect", "install"]
        assert "hunter2-authority" not in told
        assert str(host.authority) not in told
        assert "PRIVATE KEY" not in told

    def test_what_the_controller_is_told(self, host):
        """The private key and its passphrase stay on the host."""
        told = []
        host.tamper = lambda step, result: told.append(result) or result
        result = host.task(key_passphrase="hunter2-key")
        assert "PRIVATE KEY" not in json.dumps([told, result])
        assert "hunter2-key" not in json.dumps([told, result])


class TestSteadyState:
    def test_one_run_and_nothing_touched(self, both):
        first = both.task()
        assert (first["failed"], first["changed"], first["renewed"]) == (False, True, True)
        assert both.steps == ["inspect", "install"]
        before = both.snapshot()
        second = both.task()
        assert both.steps == ["inspect"]
        assert both.snapshot() == before
        assert (second["changed"], second["renewed"], second["reason"]) == (False, False, "")
        same = ("key_path", "certificate_path", "current", "serial", "fingerprint_sha256", "not_after", "backend")
        assert {name: first[name] for name in same} == {name: second[name] for name in same}

    def test_no_passphrase_of_the_authority_is_needed(self, host):
        host.make_authority(passphrase=b"secret")
        assert host.task(authority_passphrase="secret")["changed"]
        (host.authority / "ca.key").unlink()
        assert not host.task()["failed"]

    def test_check_mode(self, host):
        first = host.task()
        before = host.snapshot()
        result = host.task(check=True)
        assert not result["changed"]
        assert result["key_path"] == first["key_path"]
        assert host.snapshot() == before

    @pytest.mark.parametrize("secret", [None, "pä ss #{x}"])
    @pytest.mark.parametrize("kind", ["ec-p256", "rsa-2048"])
    def test_back_ends_agree(self, both, kind, secret):
        """What one made, the other finds in order."""
        made = both.task(key_type=kind, key_passphrase=secret)
        other = {"cryptography": "openssl", "openssl": "cryptography"}[both.options["backend"]]
        found = both.task(key_type=kind, key_passphrase=secret, backend=other)
        assert (made["changed"], found["changed"], found["reason"]) == (True, False, "")
        assert (made["backend"], found["backend"]) == (both.options["backend"], other)


class TestCheckMode:
    def test_virgin_host_and_controller(self, host):
        shutil.rmtree(host.authority.parent)
        before = host.snapshot()
        result = host.task(check=True)
        assert not result["failed"]
        assert result["changed"]
        assert result["reason"].startswith("missing: ")
        assert result["authority_certificate"] == ""
        assert result["key_path"] == str(host.pki / "server" / "pending" / "key.pem")
        assert result["certificate_path"] == str(host.pki / "server" / "pending" / "cert.pem")
        assert host.snapshot() == before
        assert not host.authority.parent.exists()

    def test_due_for_renewal(self, host):
        first = host.task()
        before = host.snapshot()
        result = host.task(check=True, common_name="other")
        assert result["changed"]
        assert result["reason"].startswith("names: ")
        assert result["key_path"] == first["key_path"]
        assert host.steps == ["inspect"]
        assert host.snapshot() == before

    def test_access(self, host):
        Path(host.task()["key_path"]).chmod(0o600)
        before = host.snapshot()
        result = host.task(check=True)
        assert result["changed"]
        assert result["reason"].startswith("access: ")
        assert host.snapshot() == before


class TestRenewal:
    def test_a_new_pair_beside_the_old_one(self, host):
        first = host.task()
        second = host.task(subject_alt_names=["DNS:other.example"])
        assert second["reason"].startswith("names: ")
        assert host.steps == ["inspect", "install"]
        assert second["serial"] != first["serial"]
        assert Path(first["key_path"]).exists()
        assert os.path.realpath(second["current"]) == os.path.dirname(second["key_path"])
        assert Path(first["key_path"]).read_bytes() != Path(second["key_path"]).read_bytes()

    def test_another_authority(self, host):
        host.task()
        host.make_authority()
        assert host.task()["reason"].startswith("authority: ")
        assert not host.task()["changed"]

    def test_damage(self, host):
        Path(host.task()["certificate_path"]).write_text("nonsense")
        assert host.task()["reason"].startswith("unreadable: ")
        assert not host.task()["changed"]

    def test_access_without_a_new_pair(self, host):
        first = host.task()
        Path(first["key_path"]).chmod(0o644)
        result = host.task()
        assert (result["changed"], result["renewed"], result["serial"]) == (True, False, first["serial"])
        assert result["reason"].startswith("access: ")
        assert stat.S_IMODE(os.stat(first["key_path"]).st_mode) == 0o640
        assert not host.task()["changed"]

    def test_rubbish_of_a_run_that_was_cut(self, host):
        host.task()
        rubbish = host.pki / "server" / ".new-0123456789abcdef"
        rubbish.mkdir()
        (rubbish / "key.pem").touch()
        assert not host.task()["changed"]
        os.utime(rubbish, (0, 0))
        result = host.task()
        assert result["reason"] == "leftovers: .new-0123456789abcdef"
        assert not rubbish.exists()

    def test_a_host_that_fails_to_install_forgets_the_key(self, host):
        first = host.task()

        def remote(module, arguments, *, check):
            step = arguments["exchange"]["step"]
            host.runs.append((step, arguments))
            return (
                {"failed": True, "msg": "cut"} if step == "install" else host.run_module(module, arguments, check=check)
            )

        host.runs = []
        result = host.act(ActionModule, {**host.options, "common_name": "other"}, remote=remote)
        assert (result["failed"], result["msg"]) == (True, "cut")
        assert host.steps == ["inspect", "install", "discard"]
        assert os.path.realpath(first["current"]) == os.path.dirname(first["key_path"])
        assert not list((host.pki / "server").glob(".new-*"))

    def test_the_controller_keeps_what_it_gave_out(self, host):
        """To revoke a certificate when the device is gone."""
        serial = host.task()["serial"]
        issued = host.authority / "issued" / f"{serial}.pem"
        assert issued.read_text() in Path(host.pki / "server" / "current" / "cert.pem").read_text()


class TestCertificate:
    """As other programs see it."""

    def test_openssl_takes_it(self, both):
        result = both.task(common_name="broker é", usages=["server_auth", "client_auth"])
        ca = both.authority / "ca.pem"
        for purpose in ("sslserver", "sslclient"):
            openssl("verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca, result["certificate_path"])
        text = openssl("x509", "-noout", "-text", "-nameopt", "utf8", "-in", result["certificate_path"])
        for words in (
            "Subject: CN=broker é",
            "DNS:broker.example, IP Address:127.0.0.1",
            "CA:FALSE",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "X509v3 Authority Key Identifier",
        ):
            assert words in text
        assert text.partition("X509v3 Key Usage: critical\n")[2].splitlines()[0].strip() == "Digital Signature"
        printed = openssl("x509", "-noout", "-serial", "-fingerprint", "-sha256", "-in", result["certificate_path"])
        assert f"serial={result['serial'].upper()}" in printed
        assert result["fingerprint_sha256"] in printed

    def test_one_usage(self, both):
        result = both.task(usages=["client_auth"], subject_alt_names=[])
        verify = ["verify", "-CAfile", both.authority / "ca.pem", "-purpose"]
        openssl(*verify, "sslclient", result["certificate_path"])
        with pytest.raises(subprocess.CalledProcessError):
            openssl(*verify, "sslserver", result["certificate_path"])

    def test_intermediate(self, both, tmp_path):
        """The host sends the certificate of the intermediate authority along."""
        root = _authority.create(str(tmp_path / "root"), "root", "ec-p256", 86400000, None)
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_der_x509_certificate(root.issuer.raw)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "middle")])
        made = (
            x509.CertificateBuilder(issuer.subject, name, key.public_key(), 2)
            .not_valid_before(issuer.not_valid_before_utc)
            .not_valid_after(issuer.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            # of the issuer's own choosing, not the usual hash
            .add_extension(x509.SubjectKeyIdentifier(b"middle"), critical=False)
            .sign(_authority.load_key(root.path, None), hashes.SHA256())
        )
        middle = made.public_bytes(serialization.Encoding.PEM).decode()
        (both.authority / "ca.pem").write_text(middle + root.pem)
        (both.authority / "ca.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        result = both.task()
        assert not result["failed"], result
        chain = Path(result["certificate_path"]).read_text()
        assert chain.count("BEGIN CERTIFICATE") == 2
        assert middle in chain
        (tmp_path / "middle.pem").write_text(middle)
        (tmp_path / "root.pem").write_text(root.pem)
        leaf = x509.load_pem_x509_certificate(chain.encode())
        identifier = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        assert identifier == b"middle"
        assert not both.task()["changed"]

    @pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "rsa-2048"])
    def test_openssl_shakes_hands(self, both, kind):
        """A server and a client of another make, each showing a certificate of ours, with an encrypted key."""
        pair = both.task(key_type=kind, key_passphrase="secret phrase")
        ca, phrase = both.authority / "ca.pem", both.pki.parent / "phrase"
        phrase.write_text("secret phrase\n")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        files = [
            "-cert",
            pair["certificate_path"],
            "-key",
            pair["key_path"],
            "-pass",
            f"file:{phrase}",
            "-CAfile",
            str(ca),
        ]
        server = subprocess.Popen(
            f"openssl s_server -accept 127.0.0.1:{port} -naccept 1 -quiet -Verify 1 -verify_return_error".split()
            + files,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(port)
            client = subprocess.run(
                f"openssl s_client -connect 127.0.0.1:{port} -verify_return_error"
                " -verify_hostname broker.example".split()
                + files,
                input="Q\n",
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert client.returncode == 0, client.stderr
            assert "Verify return code: 0 (ok)" in client.stdout
        finally:
            server.kill()
            server.wait()

    def test_python_shakes_hands_strictly(self, both):
        """With the checks that Python 3.13 turned on."""
        pair = both.task()
        ca = str(both.authority / "ca.pem")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(pair["certificate_path"], pair["key_path"])
        server.load_verify_locations(ca)
        server.verify_mode = ssl.CERT_REQUIRED
        client = ssl.create_default_context(cafile=ca)
        client.load_cert_chain(pair["certificate_path"], pair["key_path"])
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        server.verify_flags |= ssl.VERIFY_X509_STRICT
        ours, theirs = socket.socketpair()
        names = []

        def serve():
            with server.wrap_socket(theirs, server_side=True) as connection:
                names.append(connection.getpeercert()["subject"])
                connection.send(b"x")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with client.wrap_socket(ours, server_hostname="127.0.0.1") as connection:
            assert connection.recv(1) == b"x"
        thread.join(10)
        assert names == [((("commonName", "broker"),),)]


def wait_for(port):
    """Wait until openssl listens; its one connection must not be used up, so it is looked up in the kernel's list."""
    wanted = f"0100007F:{port:04X}"
    for _time in range(100):
        lines = Path("/proc/net/tcp").read_text().splitlines()
        if any(wanted in line.split()[1] and line.split()[3] == "0A" for line in lines[1:]):
            return
        time.sleep(0.05)
    pytest.fail("openssl s_server does not listen")


def test_alone_the_module_does_nothing(host):
    result = host.run_module("tls_certificate", host.options)
    assert "works only together with its action plugin" in result["msg"]
    assert not host.pki.exists()


@as_root
def test_group_and_modes(host):
    with contextlib.ExitStack() as stack:
        stack.callback(os.umask, os.umask(0))
        group = grp.getgrgid(1).gr_name
        result = host.task(owner="root", group=group, mode="0640")
    found = {
        path.relative_to(host.pki).as_posix(): (
            path.stat().st_uid,
            path.stat().st_gid,
            stat.S_IMODE(path.stat().st_mode),
        )
        for path in [host.pki, *host.pki.rglob("*")]
        if not path.is_symlink()
    }
    serial = result["serial"]
    assert found == {
        ".": (0, 0, 0o755),
        "server": (0, 1, 0o750),
        f"server/{serial}": (0, 1, 0o750),
        f"server/{serial}/key.pem": (0, 1, 0o640),
        f"server/{serial}/cert.pem": (0, 1, 0o644),
    }
