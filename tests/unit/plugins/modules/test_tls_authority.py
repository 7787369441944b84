# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The authority on the controller."""

from __future__ import annotations

import datetime
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pki" / "ca"


@pytest.fixture
def authority(run_module, path):
    """authority(**options): a run of the module on that path."""

    def make(check=False, **options):
        return run_module("tls_authority", {"path": str(path), **options}, check=check)

    return make


def snapshot(path):
    """Everything below a path: names, modes, content."""
    return {
        str(entry): (stat.S_IMODE(entry.lstat().st_mode), entry.read_bytes() if entry.is_file() else None)
        for entry in sorted(Path(path).rglob("*"))
    }


def write_certificate(path, key, *, begin=-1, days=10, ca=True):
    """Put another certificate in the place of ca.pem; ``begin`` and ``days`` are days from now and days."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    begin = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=begin)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, begin, begin + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (path / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))


class TestRefused:
    """What is there cannot be used: it fails, says why, and changes nothing."""

    @pytest.fixture
    def refuse(self, authority, path):
        def check(match, **options):
            before = snapshot(path.parent)
            for check_mode in (True, False):
                result = authority(check=check_mode, **options)
                assert result["failed"]
                assert match in result["msg"]
            assert snapshot(path.parent) == before

        return check

    def test_wrong_passphrase(self, authority, refuse):
        authority(passphrase="one")
        refuse("ca.key: it cannot be decrypted: the passphrase is wrong", passphrase="two")

    def test_passphrase_that_protects_nothing(self, authority, refuse):
        authority()
        refuse("not encrypted, though a passphrase is given", passphrase="one")

    def test_key_of_another_authority(self, authority, refuse, path, tmp_path):
        authority()
        other = _authority.create(str(tmp_path / "other"), "x", "ec-p256", 86400, None)
        shutil.copyfile(Path(other.path, "ca.key"), path / "ca.key")
        refuse("do not belong together")

    def test_missing_key(self, authority, refuse, path):
        authority()
        (path / "ca.key").unlink()
        refuse("ca.key is missing")

    def test_damaged_certificate(self, authority, refuse, path):
        authority()
        (path / "ca.pem").write_text("nonsense")
        refuse("ca.pem is no certificate")

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"begin": -11}, "expired at 20"),
            ({"begin": 1}, "is it wrong?"),
            ({"ca": False}, "basicConstraints"),
        ],
    )
    def test_certificate_not_fit(self, refuse, path, options, match):
        path.mkdir(parents=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        write_certificate(path, key, **options)
        refuse(match)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
    def test_key_open_to_others(self, authority, refuse, path, mode):
        authority()
        (path / "ca.key").chmod(mode)
        refuse(f"(mode {mode:04o})")

    @pytest.mark.parametrize("mode", [0o750, 0o701, 0o770])
    def test_directory_open_to_others(self, authority, refuse, path, mode):
        authority()
        path.chmod(mode)
        refuse(f"(mode {mode:04o})")

    def test_path_is_a_file(self, refuse, path):
        path.parent.mkdir()
        path.touch()
        refuse("is not a directory")

    def test_path_is_a_link(self, authority, refuse, path):
        authority()
        path.rename(path.parent / "real")
        path.symlink_to("real")
        refuse("is a symbolic link")

    @pytest.mark.parametrize("file", ["ca.key", "ca.pem"])
    def test_file_is_a_link(self, authority, refuse, path, file):
        authority()
        (path / file).rename(path.parent / file)
        (path / file).symlink_to(path.parent / file)
        refuse(f"{file} is a symbolic link")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_key_of_somebody_else(self, authority, refuse, path):
        authority()
        os.chown(path / "ca.key", 12345, -1)
        refuse("belongs to user id 12345")

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"valid_for": "10 years"}, "'10 years' is not a duration"),
            ({"common_name": ""}, "common name"),
            ({"common_name": "x" * 65}, "64 bytes"),
            ({"passphrase": "a\nb"}, "one line"),
            ({"key_type": "ed25519"}, "value of key_type must be one of"),
            ({"key_type": "rsa-1024"}, "value of key_type must be one of"),
        ],
    )
    def test_options(self, refuse, path, options, match):
        path.parent.mkdir()
        refuse(match, **options)

    def test_relative_path(self, run_module):
        result = run_module("tls_authority", {"path": "pki/ca"})
        assert "pki/ca must be an absolute path" in result["msg"]


class TestClock:
    """The controller's clock against what the authority gave out."""

    def issue(self, path, name, *, hours, age=0):
        key = ec.generate_private_key(ec.SECP256R1())
        issued = path / "issued"
        issued.mkdir(exist_ok=True, mode=0o700)
        write_certificate(issued, key, begin=hours / 24, ca=False)
        (issued / "ca.pem").rename(issued / f"{name}.pem")
        moment = datetime.datetime.now(datetime.UTC).timestamp() - age
        os.utime(issued / f"{name}.pem", (moment, moment))

    def test_one_from_the_future(self, authority, path):
        authority()
        self.issue(path, "aa", hours=-1, age=100)
        assert not authority()["failed"]
        self.issue(path, "bb", hours=5)
        before = snapshot(path)
        for check in (True, False):
            result = authority(check=check)
            assert result["failed"]
            for words in ("the clock of the controller says ", "issued/bb.pem", "valid only from ", "set the time"):
                assert words in result["msg"]
        assert snapshot(path) == before
        (path / "issued" / "bb.pem").unlink()
        assert not authority()["failed"]

    def test_only_the_last_one_counts(self, authority, path):
        authority()
        self.issue(path, "aa", hours=5, age=100)
        self.issue(path, "bb", hours=-1)
        assert not authority()["failed"]

    def test_nothing_is_signed_meanwhile(self, authority, path):
        authority()
        self.issue(path, "aa", hours=5)
        with pytest.raises(_authority.CryptoError, match="clock of the controller"):
            _authority.check_clock(str(path))

    def test_an_authority_that_gave_out_nothing(self, authority, path):
        authority()
        (path / "issued").mkdir(mode=0o700)
        assert not authority()["failed"]


class TestMade:
    @pytest.mark.parametrize(
        ("options", "printed"),
        [
            ({}, "NIST CURVE: P-256"),
            ({"key_type": "ec-p384", "passphrase": "sésame ouvre"}, "NIST CURVE: P-384"),
            ({"key_type": "rsa-3072", "common_name": "Flotte é"}, "Public-Key: (3072 bit)"),
        ],
    )
    def test_openssl_takes_it(self, authority, path, options, printed):
        result = authority(**options)
        assert not result["failed"]
        assert result["changed"]
        text = subprocess.run(
            ["openssl", "x509", "-noout", "-text", "-in", path / "ca.pem"], capture_output=True, text=True, check=True
        ).stdout
        for word in (printed, "CA:TRUE, pathlen:1", "Certificate Sign, CRL Sign", "Basic Constraints: critical"):
            assert word in text
        subprocess.run(["openssl", "verify", "-x509_strict", "-CAfile", path / "ca.pem", path / "ca.pem"], check=True)

    def test_result_and_files(self, authority, path):
        result = authority(common_name="Example CA", valid_for="100d")
        found = x509.load_pem_x509_certificate((path / "ca.pem").read_bytes())
        assert result["certificate"] == (path / "ca.pem").read_text()
        assert result["fingerprint_sha256"].replace(":", "").lower() == found.fingerprint(hashes.SHA256()).hex()
        assert result["not_after"] == found.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
        assert (result["common_name"], result["key_type"], result["path"]) == ("Example CA", "ec-p256", str(path))
        modes = {name: mode for name, (mode, _data) in snapshot(path.parent).items()}
        assert modes == {str(path): 0o700, str(path / "ca.key"): 0o600, str(path / "ca.pem"): 0o644}

    def test_it_begins_an_hour_ago(self, authority, path):
        """For devices whose clock is a little slow."""
        authority()
        found = x509.load_pem_x509_certificate((path / "ca.pem").read_bytes())
        age = datetime.datetime.now(datetime.UTC) - found.not_valid_before_utc
        assert datetime.timedelta(hours=1) <= age < datetime.timedelta(hours=1, minutes=5)

    def test_key_is_encrypted(self, authority, path):
        authority(passphrase="secret")
        assert (path / "ca.key").read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")

    def test_second_run_changes_nothing(self, authority, path):
        first = authority(passphrase="secret")
        before = snapshot(path)
        second = authority(passphrase="secret")
        assert second == {**first, "changed": False, "reason": ""}
        assert snapshot(path) == before

    def test_without_its_passphrase_a_key_stays_closed(self, authority, path):
        """It takes one to sign; a run in which nothing is to be signed goes without."""
        first = authority(passphrase="secret")
        assert authority() == {**first, "changed": False, "reason": ""}
        (path / "ca.key").chmod(0o640)
        assert "open to group or others" in authority()["msg"]

    def test_other_options_make_no_other_authority(self, authority, path):
        first = authority()
        before = snapshot(path)
        second = authority(common_name="Other", key_type="rsa-2048", valid_for="1d")
        assert not second["changed"]
        assert second["fingerprint_sha256"] == first["fingerprint_sha256"]
        assert len(second["warnings"]) == 2
        assert snapshot(path) == before

    def test_near_its_end_it_warns(self, authority):
        authority(valid_for="89d")
        assert any("plan its successor" in warning for warning in authority(valid_for="89d")["warnings"])

    def test_a_key_alone_is_put_to_use(self, authority, path):
        """The run was cut between key and certificate."""
        authority(passphrase="secret")
        key = (path / "ca.key").read_bytes()
        (path / "ca.pem").unlink()
        assert authority(passphrase="wrong")["failed"]
        assert not (path / "ca.pem").exists()
        assert authority(passphrase="secret")["changed"]
        assert (path / "ca.key").read_bytes() == key
        assert not authority(passphrase="secret")["changed"]

    def test_an_intermediate_with_its_root(self, authority, path):
        root, middle = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        path.mkdir(parents=True, mode=0o700)
        write_certificate(path, root)
        ours = x509.load_pem_x509_certificate((path / "ca.pem").read_bytes())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "middle")])
        made = (
            x509.CertificateBuilder(ours.subject, name, middle.public_key(), 2)
            .not_valid_before(ours.not_valid_before_utc)
            .not_valid_after(ours.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .sign(root, hashes.SHA256())
        )
        pem = made.public_bytes(serialization.Encoding.PEM) + (path / "ca.pem").read_bytes()
        (path / "ca.pem").write_bytes(pem)
        key = middle.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (path / "ca.key").touch(mode=0o600)
        (path / "ca.key").write_bytes(key)
        result = authority(common_name="middle")
        assert not result["failed"]
        assert result["certificate"].encode() == pem
        (path / "ca.pem").write_bytes(pem[: len(pem) // 2] + b"\n" + pem)
        write_certificate(path, middle)
        (path / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM) + (path / "ca.pem").read_bytes())
        assert "is not signed by" in authority(common_name="middle")["msg"]


class TestCheckMode:
    def test_nothing_is_there_yet(self, authority, path):
        result = authority(check=True)
        assert result["changed"]
        assert (result["certificate"], result["fingerprint_sha256"], result["not_after"]) == ("", "", "")
        assert not path.parent.exists()

    def test_it_is_there(self, authority, path):
        first = authority()
        before = snapshot(path)
        assert authority(check=True) == {**first, "changed": False, "reason": ""}
        assert snapshot(path) == before
