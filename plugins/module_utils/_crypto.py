# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What this collection does with private keys: make, open, sign, verify. Two back ends give the same results.

``cryptography`` is used where it can be imported, else the ``openssl`` program (1.1.1 or 3.x). Private keys are PEM
``bytes`` and are written as PKCS#8, encrypted (PBES2, PBKDF2 with SHA-256, AES-256-CBC) when there is a passphrase.
Public keys are DER SubjectPublicKeyInfo ``bytes``.
"""

from __future__ import annotations

import typing

from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509

#: What a TLS key can be. No Ed25519: the broker's TLS library does not know it. No RSA below 2048 bits: breakable.
KEY_TYPES = ("ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096")

BACKENDS = ("cryptography", "openssl")


class CryptoError(Exception):
    """A key, certificate or request cannot be used. The text never holds a secret."""


class WrongPassphrase(CryptoError):
    """The key cannot be opened with what was given."""


class Backend(typing.Protocol):
    """The operations on keys. Every method raises CryptoError; those that open a private key also WrongPassphrase."""

    name: str

    def generate_key(self, key_type: str, passphrase: bytes | None = None) -> bytes:
        """Return a new private key as PEM (PKCS#8). ``key_type`` is one of KEY_TYPES, or rsa-N."""

    def public_key(self, private_key: bytes, passphrase: bytes | None = None) -> bytes:
        """Return the public key (DER) of a private key (PEM)."""

    def sign(self, private_key: bytes, passphrase: bytes | None, data: bytes) -> bytes:
        """Return the SHA-256 signature of ``data``: PKCS#1 v1.5 for RSA, a DER ECDSA-Sig-Value for EC."""

    def verify(self, public_key: bytes, signature: bytes, data: bytes, digest: str = "sha256") -> bool:
        """Say whether ``signature`` is that of ``data`` by the owner of ``public_key`` (DER)."""


def choose_backend(name: str = "auto") -> Backend:
    """Return the back end of that name, or the best one at hand. Raises CryptoError when it cannot work here."""
    from ansible_collections.edgesec.nanomq.plugins.module_utils import _crypto_cryptography, _crypto_openssl

    makers = {"cryptography": _crypto_cryptography.create, "openssl": _crypto_openssl.create}
    problems = []
    for candidate in BACKENDS if name == "auto" else (name,):
        try:
            return makers[candidate]()
        except CryptoError as error:
            problems.append(str(error))
    raise CryptoError("no way to handle keys here: " + "; ".join(problems))


def encode_passphrase(text: str | None) -> bytes | None:
    """Return a passphrase as bytes; None and '' mean none. Raises CryptoError on one that not every tool can take.

    The openssl program reads a passphrase as one line of at most 1023 bytes.
    """
    if not text:
        return None
    data = text.encode("utf-8")
    if len(data) > 1023 or any(character in data for character in (b"\n", b"\r", b"\0")):
        raise CryptoError("a passphrase must be one line, of at most 1023 bytes")
    return data


def is_encrypted(private_key: bytes) -> bool:
    """Say whether a PEM private key needs a passphrase."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in private_key or b"Proc-Type: 4,ENCRYPTED" in private_key


def check_passphrase_use(private_key: bytes, passphrase: bytes | None) -> None:
    """Raise WrongPassphrase when a passphrase is missing, or given for a key that is not protected by one.

    A passphrase that goes unused is an error: its owner believes the key to be protected.
    """
    if b"PRIVATE KEY-----" not in private_key:
        raise CryptoError("it is not a PEM private key")
    if is_encrypted(private_key) and passphrase is None:
        raise WrongPassphrase("it is encrypted, and no passphrase is given")
    if not is_encrypted(private_key) and passphrase is not None:
        raise WrongPassphrase("it is not encrypted, though a passphrase is given")


def make_request(
    backend: Backend, private_key: bytes, passphrase: bytes | None, common_name: str, names: list[str]
) -> bytes:
    """Return a PEM certificate request for a common name and normalised subject alternative names."""
    public_key = backend.public_key(private_key, passphrase)
    info = x509.request_info(common_name, names, public_key)
    return x509.request_pem(info, backend.sign(private_key, passphrase, info), x509.key_type(public_key))


def is_signed_by(backend: Backend, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Say whether ``issuer`` issued ``certificate``: its name is given as the issuer's and its key made the signature.

    Times are not looked at. An algorithm that is not known counts as no signature.
    """
    digest = x509.DIGESTS.get(certificate.signature_algorithm)
    if digest is None or certificate.issuer != issuer.subject or not issuer.is_authority:
        return False
    return backend.verify(issuer.public_key, certificate.signature, certificate.tbs, digest)


def load_certificates(pem: bytes, path: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM file. Raises CryptoError naming ``path``."""
    try:
        return x509.load_certificates(pem)
    except der.DerError as error:
        raise CryptoError(f"{path} is no certificate in PEM: {error}") from None
