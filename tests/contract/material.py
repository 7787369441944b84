"""Keys, certificates and tokens for the contract tests."""

from __future__ import annotations

import datetime
import ssl
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM
PRIVATE = serialization.PrivateFormat


@dataclass(frozen=True)
class Pair:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)


def make_key(kind: str) -> Any:
    """Key of a kind: `rsa`, `p256` or `ed25519`."""
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if kind == "p256" else ed25519.Ed25519PrivateKey.generate()


@cache
def authority(name: str) -> Pair:
    """A certificate authority."""
    return _sign(name, make_key("p256"), None)


@cache
def certificate(
    name: str = "localhost", kind: str = "p256", issuer: str = "authority", days: tuple[int, int] = (-1, 1)
) -> Pair:
    """A certificate of 127.0.0.1, for servers and clients, that is good from day to day, counted from today."""
    return _sign(name, make_key(kind), authority(issuer), days)


def _sign(name: str, key: Any, issuer: Pair | None, days: tuple[int, int] = (-5, 5)) -> Pair:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    signer = issuer.key if issuer else key
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Pair(builder.sign(signer, algorithm), key)


def revocation_list(*revoked: Pair, issuer: str = "authority") -> bytes:
    """The list of an authority that has revoked these, as PEM."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority(issuer).certificate.subject)
        .last_update(now - datetime.timedelta(minutes=1))
        .next_update(now + datetime.timedelta(days=1))
    )
    for pair in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(pair.certificate.serial_number)
            .revocation_date(now - datetime.timedelta(minutes=1))
            .build()
        )
    return builder.sign(authority(issuer).key, hashes.SHA256()).public_bytes(PEM)


def private_pem(key: Any, passphrase: bytes | None = None, form: PRIVATE = PRIVATE.PKCS8) -> bytes:
    """A private key as PEM, encrypted where there is a passphrase."""
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(PEM, form, encryption)


def client_context(directory: Path, pair: Pair | None = None, **bounds: ssl.TLSVersion) -> ssl.SSLContext:
    """Context of a client that trusts anybody and shows `pair`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in bounds.items():
        setattr(context, name, value)
    if pair:
        path = directory / "client.pem"
        path.write_bytes(private_pem(pair.key) + pair.pem)
        context.load_cert_chain(path)
    return context


@cache
def token_key(name: str = "key") -> rsa.RSAPrivateKey:
    """Key of tokens."""
    return make_key("rsa")


def public_pem(form: str = "spki") -> bytes:
    """The public part of the tokens' key: `spki`, `pkcs1`, `certificate`, `der`, `private` or `p256`."""
    key = token_key()
    if form == "certificate":
        return _sign("tokens", key, authority("authority")).pem
    if form == "private":
        return private_pem(key)
    formats = {"pkcs1": serialization.PublicFormat.PKCS1}
    encoding = serialization.Encoding.DER if form == "der" else PEM
    public = make_key("p256").public_key() if form == "p256" else key.public_key()
    return public.public_bytes(encoding, formats.get(form, serialization.PublicFormat.SubjectPublicKeyInfo))


def token(
    issuer: str | None = "jwt.pub",
    lifetime: float | str | None = 60,
    key: Any = None,
    algorithm: str = "RS256",
    **claims: Any,
) -> str:
    """A signed token that expires in `lifetime` seconds; text stands as it is, None leaves the claim out."""
    if issuer is not None:
        claims["iss"] = issuer
    if lifetime is not None:
        claims["exp"] = lifetime if isinstance(lifetime, str) else time.time() + lifetime
    return jwt.encode(claims, key or token_key(), algorithm)
