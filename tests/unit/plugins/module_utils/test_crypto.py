# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Both back ends do the same, and what one makes the other takes. The openssl program itself is the referee."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _crypto, _crypto_cryptography, _crypto_openssl
from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError, WrongPassphrase
from cryptography import x509 as library
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

BOTH = ["cryptography", "openssl"]
OTHER = {"cryptography": "openssl", "openssl": "cryptography"}
PASSPHRASE = 'pä "$1" s%s {key} #'.encode()


@pytest.fixture(params=BOTH)
def backend(request):
    return _crypto.choose_backend(request.param)


@pytest.fixture
def other(backend):
    return _crypto.choose_backend(OTHER[backend.name])


def openssl(*arguments, stdin):
    return subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def keys():
    """A private key of each cheap kind, in plain and encrypted form."""
    maker = _crypto.choose_backend("cryptography")
    return {
        (kind, secret): maker.generate_key(kind, secret) for kind in ("ec-p256", "rsa-2048") for secret in (None, b"x")
    }


class TestPassphrases:
    def test_a_wrong_one(self, backend, keys):
        for kind in ("ec-p256", "rsa-2048"):
            with pytest.raises(WrongPassphrase, match="wrong"):
                backend.public_key(keys[kind, b"x"], b"y")
            with pytest.raises(WrongPassphrase, match="wrong"):
                backend.sign(keys[kind, b"x"], b"y", b"data")

    def test_none_for_an_encrypted_key(self, backend, keys):
        with pytest.raises(WrongPassphrase, match="no passphrase is given"):
            backend.public_key(keys["ec-p256", b"x"])

    def test_one_for_a_plain_key(self, backend, keys):
        """It would go unused, and its owner would believe the key to be protected."""
        with pytest.raises(WrongPassphrase, match="not encrypted"):
            backend.sign(keys["ec-p256", None], b"x", b"data")

    @pytest.mark.parametrize("text", ["two\nlines", "two\rlines", "nul\0", "x" * 1024, "ä" * 512])
    def test_one_that_the_program_could_not_read_in_full(self, text):
        with pytest.raises(CryptoError, match="one line"):
            _crypto.encode_passphrase(text)

    @pytest.mark.parametrize("text", ["x" * 1023, "ä" * 511, " ", "x", "pass:x", "file:/etc/passwd"])
    def test_odd_ones_work_across_back_ends(self, backend, other, text):
        secret = _crypto.encode_passphrase(text)
        key = backend.generate_key("ec-p256", secret)
        assert other.public_key(key, secret) == backend.public_key(key, secret)

    def test_nothing_is_no_passphrase(self):
        assert _crypto.encode_passphrase("") is None
        assert _crypto.encode_passphrase(None) is None


class TestDamagedKeys:
    @pytest.mark.parametrize(
        "key",
        [
            b"",
            b"nonsense",
            b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        ],
    )
    def test_they_are_refused(self, backend, key):
        with pytest.raises(CryptoError):
            backend.public_key(key)
        with pytest.raises(CryptoError):
            backend.sign(key, None, b"data")

    def test_half_a_key(self, backend, keys):
        key = keys["rsa-2048", None]
        with pytest.raises(CryptoError):
            backend.public_key(key[: len(key) // 2])

    def test_the_message_holds_nothing_of_the_key(self, backend, keys):
        key = keys["ec-p256", None].replace(b"M", b"N")
        with pytest.raises(CryptoError) as caught:
            backend.public_key(key)
        assert key.splitlines()[1].decode()[:20] not in str(caught.value)


class TestKeys:
    @pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "rsa-2048", "rsa-3072"])
    @pytest.mark.parametrize("secret", [None, PASSPHRASE])
    def test_the_other_back_end_and_the_program_take_it(self, backend, other, kind, secret, tmp_path):
        key = backend.generate_key(kind, secret)
        public_key = backend.public_key(key, secret)
        assert x509.key_type(public_key) == kind
        assert other.public_key(key, secret) == public_key
        assert _crypto.is_encrypted(key) is (secret is not None)
        (tmp_path / "secret").write_bytes((secret or b"") + b"\n")
        printed = openssl("pkey", "-check", "-noout", "-passin", f"file:{tmp_path}/secret", stdin=key)
        assert b"Key is valid" in printed

    def test_encryption_is_pbes2_with_aes_256(self, backend):
        key = backend.generate_key("ec-p256", PASSPHRASE)
        assert key.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        printed = openssl("asn1parse", stdin=key)
        for word in (b":PBES2", b":PBKDF2", b":hmacWithSHA256", b":aes-256-cbc"):
            assert word in printed

    def test_plain_keys_are_pkcs8(self, backend):
        assert backend.generate_key("ec-p256").startswith(b"-----BEGIN PRIVATE KEY-----")

    def test_no_two_are_alike(self, backend):
        assert backend.generate_key("ec-p256") != backend.generate_key("ec-p256")

    @pytest.mark.parametrize("secret", [None, b"secret"])
    def test_traditional_files_are_read(self, backend, secret):
        made = rsa.generate_private_key(65537, 2048)
        encryption = serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption()
        traditional = serialization.PrivateFormat.TraditionalOpenSSL
        key = made.private_bytes(serialization.Encoding.PEM, traditional, encryption)
        expected = made.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        assert backend.public_key(key, secret) == expected


class TestSignatures:
    @pytest.mark.parametrize("kind", ["ec-p256", "rsa-2048"])
    @pytest.mark.parametrize("secret", [None, b"x"])
    def test_the_other_back_end_verifies_it(self, backend, other, keys, kind, secret):
        key = keys[kind, secret]
        signature = backend.sign(key, secret, b"data")
        assert other.verify(backend.public_key(key, secret), signature, b"data")

    @pytest.mark.parametrize("kind", ["ec-p256", "rsa-2048"])
    def test_anything_else_is_not_verified(self, backend, keys, kind):
        key = keys[kind, None]
        public_key, signature = backend.public_key(key), backend.sign(key, None, b"data")
        stranger = backend.public_key(backend.generate_key(kind))
        assert backend.verify(public_key, signature, b"data")
        assert not backend.verify(public_key, signature, b"dota")
        assert not backend.verify(public_key, signature[:-1] + bytes([signature[-1] ^ 1]), b"data")
        assert not backend.verify(public_key, b"", b"data")
        assert not backend.verify(public_key, signature, b"data", "sha384")
        assert not backend.verify(stranger, signature, b"data")
        assert not backend.verify(b"nonsense", signature, b"data")

    def test_other_digests(self, backend):
        made = ec.generate_private_key(ec.SECP384R1())
        public_key = made.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        for digest, algorithm in (("sha384", hashes.SHA384()), ("sha512", hashes.SHA512())):
            assert backend.verify(public_key, made.sign(b"data", ec.ECDSA(algorithm)), b"data", digest)

    def test_a_key_of_another_kind_does_not_verify(self, backend):
        made = ed25519.Ed25519PrivateKey.generate()
        public_key = made.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        assert not backend.verify(public_key, made.sign(b"data"), b"data")


class TestIssuer:
    def make(self, subject, issuer, key, issuer_key, digest=None, ca=True):
        begin = datetime.datetime(2026, 1, 1)
        names = [library.Name([library.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)]
        made = (
            library.CertificateBuilder(names[1], names[0], key.public_key(), 1, begin, begin.replace(year=2030))
            .add_extension(library.BasicConstraints(ca, None), critical=True)
            .sign(issuer_key, digest or hashes.SHA256())
        )
        return x509.parse_certificate(made.public_bytes(serialization.Encoding.DER))

    @pytest.fixture
    def pair(self):
        return ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)

    def test_another_authority_of_the_same_name(self, backend, pair):
        root = self.make("root", "root", pair[0], pair[0])
        leaf = self.make("leaf", "root", pair[1], pair[1])
        assert not _crypto.is_signed_by(backend, leaf, root)

    def test_another_name_with_the_same_key(self, backend, pair):
        root = self.make("root", "root", pair[0], pair[0])
        assert not _crypto.is_signed_by(backend, self.make("leaf", "toor", pair[1], pair[0]), root)

    def test_one_that_is_no_authority(self, backend, pair):
        root = self.make("root", "root", pair[0], pair[0], ca=False)
        assert not _crypto.is_signed_by(backend, self.make("leaf", "root", pair[1], pair[0]), root)

    @pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_the_issuer(self, backend, pair, digest, order):
        key, other = (pair[index] for index in order)
        root = self.make("root", "root", key, key)
        assert _crypto.is_signed_by(backend, self.make("leaf", "root", other, key, digest), root)


@pytest.fixture
def spy(tmp_path, monkeypatch):
    """An openssl program that notes its arguments and environment before it does its work."""
    program = tmp_path / "bin" / "openssl"
    program.parent.mkdir()
    log = tmp_path / "log"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"with open({str(log)!r}, 'a') as log: log.write(repr(sys.argv) + repr(dict(os.environ)))\n"
        f"os.execv({shutil.which('openssl')!r}, ['openssl'] + sys.argv[1:])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return log


class TestOpensslProgram:
    def test_secrets_are_in_no_argument_and_no_environment(self, spy, tmp_path, monkeypatch):
        monkeypatch.setenv("TMPDIR", str(tmp_path / "bin"))
        backend = _crypto_openssl.create()
        key = backend.generate_key("ec-p256", b"hunter2-secret")
        backend.sign(key, b"hunter2-secret", b"data")
        backend.public_key(key, b"hunter2-secret")
        log = spy.read_text()
        assert log.count("'dgst'") == 1
        assert "hunter2" not in log
        assert key.splitlines()[1].decode() not in log
        assert os.listdir(tmp_path / "bin") == ["openssl"]

    def test_no_descriptor_is_left_open(self, keys):
        backend = _crypto_openssl.create()
        before = os.listdir("/proc/self/fd")
        for _time in range(3):
            backend.sign(keys["ec-p256", b"x"], b"x", b"data")
            with pytest.raises(CryptoError):
                backend.sign(keys["ec-p256", b"x"], b"y", b"data")
        assert os.listdir("/proc/self/fd") == before

    @pytest.mark.parametrize("version", ["OpenSSL 1.0.2u  20 Dec 2019", "LibreSSL 3.8.2", "", "OpenSSL"])
    def test_an_unknown_version_is_refused(self, tmp_path, monkeypatch, version):
        program = tmp_path / "openssl"
        program.write_text(f"#!/bin/sh\necho '{version}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(CryptoError, match=r"1\.1\.1 or newer is needed"):
            _crypto_openssl.create()

    def test_a_program_that_says_yes_to_all_does_not_verify(self, tmp_path, monkeypatch, keys):
        program = tmp_path / "openssl"
        program.write_text("#!/bin/sh\ncat >/dev/null\n[ $1 = version ] && echo OpenSSL 3.0.0\nexit 0\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        backend = _crypto_openssl.create()
        public_key = _crypto.choose_backend("cryptography").public_key(keys["ec-p256", None])
        assert backend.verify(public_key, b"x", b"data") is False

    def test_pipes_are_not_for_big_things(self):
        with pytest.raises(CryptoError, match="4096"):
            _crypto_openssl.create().run("version", key=b"x" * 4097)


class TestChoice:
    def test_cryptography_comes_first(self):
        assert _crypto.choose_backend().name == "cryptography"

    def test_without_it_the_program_does_the_work(self, monkeypatch):
        monkeypatch.setattr(_crypto_cryptography, "IMPORT_PROBLEM", "it cannot be imported")
        assert _crypto.choose_backend().name == "openssl"

    def test_without_either_both_reasons_are_told(self, monkeypatch):
        monkeypatch.setattr(_crypto_cryptography, "IMPORT_PROBLEM", "it cannot be imported")
        monkeypatch.setattr(shutil, "which", lambda *_arguments, **_options: None)
        with pytest.raises(CryptoError, match=r"it cannot be imported; .*not installed"):
            _crypto.choose_backend()

    @pytest.mark.parametrize("broken", ["raise ImportError('x')", "raise SystemError('x')", "__version__ = '2.9'"])
    def test_a_broken_library_is_not_used(self, tmp_path, broken):
        """In a process of its own, with a stand-in for the library in front of the real one."""
        (tmp_path / "cryptography").mkdir()
        (tmp_path / "cryptography" / "__init__.py").write_text(broken)
        code = f"from {_crypto.__name__} import choose_backend; print(choose_backend().name)"
        path = os.pathsep.join([str(tmp_path), *sys.path])
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.stdout.strip(), result.stderr) == ("openssl", "")


def test_every_key_type_can_be_made():
    """KEY_TYPES is what the modules offer; 4096 bits take a while, so one back end has to do."""
    backend = _crypto.choose_backend("cryptography")
    for kind in _crypto.KEY_TYPES:
        assert x509.key_type(backend.public_key(backend.generate_key(kind))) == kind


def test_a_file_without_certificates_is_named():
    with pytest.raises(CryptoError, match=r"/some/ca.pem is no certificate"):
        _crypto.load_certificates(der.to_pem("CERTIFICATE REQUEST", b"x"), "/some/ca.pem")


def test_private_keys_fit_into_a_pipe():
    """The largest kind, encrypted, is what the openssl back end has to pass."""
    key = _crypto.choose_backend("cryptography").generate_key("rsa-4096", b"x" * 1023)
    assert len(key) < _crypto_openssl.PIPE_SIZE


@pytest.mark.parametrize("part", ["private_exponent", "p", "q", "dmp1", "dmq1", "iqmp"])
def test_an_rsa_key_with_a_damaged_part_is_refused(keys, part):
    """The library is told to skip its test of the primes; damage is found all the same."""
    numbers = serialization.load_pem_private_key(keys["rsa-2048", None], None).private_numbers()
    public = numbers.public_numbers
    parts = {"version": 0, "n": public.n, "e": public.e, "private_exponent": numbers.d}
    parts |= {name: getattr(numbers, name) for name in ("p", "q", "dmp1", "dmq1", "iqmp")}  # as RFC 8017, A.1.2 has it
    parts[part] ^= 1 << 60
    whole = der.encode(der.SEQUENCE, *(der.encode_integer(number) for number in parts.values()))
    damaged = der.to_pem("RSA PRIVATE KEY", whole)
    backend = _crypto.choose_backend("cryptography")
    with pytest.raises(CryptoError, match="damaged"):
        backend.sign(damaged, None, b"data")
    with pytest.raises(CryptoError, match="damaged"):
        backend.public_key(damaged, None)


@pytest.mark.parametrize(("version", "told"), [((38, 0), {}), ((39, 0), {"unsafe_skip_rsa_key_validation": True})])
def test_an_older_library_is_not_told_what_it_does_not_know(monkeypatch, version, told):
    monkeypatch.setattr(_crypto_cryptography, "_VERSION", version)
    assert _crypto_cryptography._load_options() == told
