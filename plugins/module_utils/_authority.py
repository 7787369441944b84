# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The certificate authority on the controller: kept in one directory, it signs what devices ask for.

``ca.key`` is the private key (PKCS#8, 0600), ``ca.pem`` the issuing certificate, followed by those above it if it is an
intermediate. ``issued/<serial>.pem`` keeps each certificate given out: revoking one needs its serial number at a time
when the device may be gone. Needs the cryptography library, which ansible-core brings to every controller.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import os

from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    CryptoError,
    WrongPassphrase,
    choose_backend,
    is_signed_by,
    load_certificates,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto_cryptography import load_private_key
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import (
    FileProblem,
    check_vault,
    make_directories,
    read_regular,
    write_atomic,
)

try:
    from cryptography import x509 as library
    from cryptography.hazmat.primitives import hashes, serialization
except ImportError:
    # choose_backend("cryptography") then tells what is missing, before anything here is needed.
    library = hashes = serialization = None

KEY, CERTIFICATE, ISSUED = "ca.key", "ca.pem", "issued"

#: Certificates begin to hold this much before they are made, for devices whose clock is a little slow.
BACKDATE = datetime.timedelta(hours=1)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a device may have: the one common name and exactly the ``names`` (normalised) that its task asks for."""

    common_name: str
    names: tuple[str, ...]
    usages: tuple[str, ...]
    key_type: str
    valid_for: int


@dataclasses.dataclass(frozen=True)
class Authority:
    """A usable authority: ``certificates`` is what ca.pem holds, the issuing one first."""

    path: str
    certificates: tuple[x509.Certificate, ...]

    @property
    def issuer(self) -> x509.Certificate:
        """The certificate that signs."""
        return self.certificates[0]

    @property
    def pem(self) -> str:
        """All of ca.pem, re-encoded."""
        return "".join(certificate.pem().decode("ascii") for certificate in self.certificates)

    @property
    def intermediates(self) -> tuple[x509.Certificate, ...]:
        """Those that a device has to send along with its own: all but the self-signed root."""
        return tuple(certificate for certificate in self.certificates if certificate.issuer != certificate.subject)


def now() -> datetime.datetime:
    """Return the present moment, UTC, in whole seconds."""
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def load(path: str) -> Authority | None:
    """Return the authority in ``path`` by its certificates alone, or None when there is none yet.

    The private key is not opened: in steady state no passphrase is needed. Raises FileProblem and CryptoError when it
    is not one to trust and use: see check_vault; damaged, not an authority, expired, not valid yet, or with a broken
    chain.
    """
    if not check_vault(path):
        return None
    file = os.path.join(path, CERTIFICATE)
    try:
        pem = read_regular(file)
    except FileNotFoundError:
        return None
    certificates = tuple(load_certificates(pem, file))
    issuer = certificates[0]
    if not issuer.is_authority:
        raise CryptoError(f"{file} is not the certificate of an authority (basicConstraints CA is not set)")
    kind = x509.key_type(issuer.public_key)
    if not kind.startswith(("rsa-", "ec-p")):
        raise CryptoError(f"{file}: an authority with a key of the kind {kind} is not supported; use RSA or EC")
    backend = choose_backend("cryptography")
    for lower, upper in zip(certificates, certificates[1:]):
        if not is_signed_by(backend, lower, upper):
            raise CryptoError(f"{file}: {lower.common_name!r} is not signed by {upper.common_name!r} which follows it")
    for certificate in certificates:
        _check_times(certificate, file)
    return Authority(path, certificates)


def check_clock(path: str) -> None:
    """Raise CryptoError when this clock is before a certificate that the authority in ``path`` gave out.

    One of the two clocks, then or now, was wrong, and what is signed now could be valid for nobody.
    Only the file that was written last is read, so that an authority of a large fleet costs no more.
    """
    issued = os.path.join(path, ISSUED)
    try:
        with os.scandir(issued) as entries:
            files = [(entry.stat().st_mtime, entry.path) for entry in entries if entry.name.endswith(".pem")]
        if not files:
            return
        file = max(files)[1]
        leaf = load_certificates(read_regular(file), file)[0]
    except FileNotFoundError:
        return
    if leaf.not_before > now():
        raise CryptoError(
            f"the clock of the controller says {x509.show_time(now())}, and {file}, which this authority issued, is"
            f" valid only from {x509.show_time(leaf.not_before)}: set the time (chrony, systemd-timesyncd), then run"
            " again. If it was wrong when that was issued and is right now, move that file away, and renew what was"
            " issued then (renew_issued_before)"
        )


def open_key(authority: Authority, passphrase: bytes | None):
    """Return the library's key object of the authority's private key.

    Raises FileProblem, WrongPassphrase, or CryptoError when the key and the certificate are not a pair.
    """
    key = load_key(authority.path, passphrase)
    if _public_bytes(key.public_key()) != authority.issuer.public_key:
        raise CryptoError(f"{authority.path}: {KEY} and {CERTIFICATE} do not belong together")
    return key


def has_key(path: str) -> bool:
    """Say whether a private key is there."""
    return os.path.lexists(os.path.join(path, KEY))


def create(path: str, common_name: str, key_type: str, valid_for: int, passphrase: bytes | None) -> Authority:
    """Make the authority and return it. A private key found alone (the last run was cut) is put to use.

    Raises FileProblem and CryptoError. The certificate is written last: without it there is no authority.
    """
    make_directories(path, mode=0o700)
    if has_key(path):
        key = load_key(path, passphrase)
    else:
        pem = choose_backend("cryptography").generate_key(key_type, passphrase)
        write_atomic(os.path.join(path, KEY), pem, mode=0o600)
        key = load_private_key(pem, passphrase)
    certificate = _self_sign(key, common_name, valid_for)
    write_atomic(os.path.join(path, CERTIFICATE), certificate.pem(), mode=0o644)
    return Authority(path, (certificate,))


def check_request(pem: str, request: Request):
    """Return the library's request object, if it asks for exactly what ``request`` allows.

    A device says what it likes, so anything else is refused: another or a further name, a further extension, another
    kind of key, a signature that is not by that key. Raises CryptoError.
    """
    try:
        found = library.load_pem_x509_csr(pem.encode("ascii"))
        subject = [(attribute.oid.dotted_string, attribute.value) for attribute in found.subject]
        extensions = list(found.extensions)
        if any(extension.oid.dotted_string != x509.SUBJECT_ALT_NAME for extension in extensions):
            raise CryptoError("the device asks for extensions other than its names")
        names = [_name_text(name) for extension in extensions for name in extension.value]
        public_key = _public_bytes(found.public_key())
        genuine = found.is_signature_valid
    except (ValueError, TypeError, AttributeError, library.DuplicateExtension, UnicodeEncodeError) as error:
        raise CryptoError(f"the device's certificate request cannot be read ({type(error).__name__})") from None
    if not genuine:
        raise CryptoError("the device's certificate request is not signed by its own key")
    if subject != [(x509.COMMON_NAME, request.common_name)]:
        raise CryptoError(f"the device asks for the subject {subject}, not for the common name {request.common_name!r}")
    if sorted(names) != sorted(request.names):
        raise CryptoError(f"the device asks for the names {sorted(names)}, not for {sorted(request.names)}")
    if x509.key_type(public_key) != request.key_type:
        raise CryptoError(f"the device's key is {x509.key_type(public_key)}, not {request.key_type}")
    return found


def sign(authority: Authority, passphrase: bytes | None, pem: str, request: Request) -> x509.Certificate:
    """Return the certificate for a device's request, and keep a copy of it.

    It ends when the authority does, if that is earlier than ``valid_for``. Raises FileProblem and CryptoError.
    """
    asked = check_request(pem, request)
    check_clock(authority.path)
    key = open_key(authority, passphrase)
    begin = now()
    ours = library.load_der_x509_certificate(authority.issuer.raw)
    builder = (
        library.CertificateBuilder()
        .subject_name(asked.subject)
        .issuer_name(ours.subject)
        .public_key(asked.public_key())
        .serial_number(library.random_serial_number())
        .not_valid_before(_naive(max(begin - BACKDATE, authority.issuer.not_before)))
        .not_valid_after(_naive(min(begin + datetime.timedelta(seconds=request.valid_for), authority.issuer.not_after)))
        .add_extension(library.BasicConstraints(ca=False, path_length=None), critical=True)
        # No keyEncipherment: RSA key exchange, which has no forward secrecy, is thereby ruled out.
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(
            library.ExtendedKeyUsage([library.ObjectIdentifier(x509.USAGES[usage]) for usage in request.usages]),
            critical=False,
        )
        .add_extension(library.SubjectKeyIdentifier.from_public_key(asked.public_key()), critical=False)
        .add_extension(_authority_key_identifier(ours), critical=False)
    )
    if request.names:
        names = library.SubjectAlternativeName([_general_name(name) for name in request.names])
        builder = builder.add_extension(names, critical=False)
    certificate = _finish(builder, key)
    issued = os.path.join(authority.path, ISSUED)
    make_directories(issued, mode=0o700)
    write_atomic(os.path.join(issued, f"{certificate.identifier}.pem"), certificate.pem(), mode=0o644)
    return certificate


def _self_sign(key, common_name: str, valid_for: int) -> x509.Certificate:
    name = library.Name([library.NameAttribute(library.ObjectIdentifier(x509.COMMON_NAME), common_name)])
    begin = now()
    builder = (
        library.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(library.random_serial_number())
        .not_valid_before(_naive(begin - BACKDATE))
        .not_valid_after(_naive(begin + datetime.timedelta(seconds=valid_for)))
        .add_extension(library.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(library.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _finish(builder, key)


def _finish(builder, key) -> x509.Certificate:
    digest = hashes.SHA384() if x509.key_type(_public_bytes(key.public_key())) == "ec-p384" else hashes.SHA256()
    return x509.parse_certificate(builder.sign(key, digest).public_bytes(serialization.Encoding.DER))


def load_key(path: str, passphrase: bytes | None):
    """Return the library's key object of ca.key. Raises FileProblem, CryptoError or WrongPassphrase."""
    file = os.path.join(path, KEY)
    try:
        return load_private_key(read_regular(file, private=True), passphrase)
    except FileNotFoundError:
        raise FileProblem(f"{file} is missing: without it nothing can be signed; restore it from a backup") from None
    except WrongPassphrase as error:
        raise WrongPassphrase(f"{file}: {error}") from None
    except CryptoError as error:
        raise CryptoError(f"{file}: {error}") from None


def _check_times(certificate: x509.Certificate, file: str) -> None:
    present = now()
    if present > certificate.not_after:
        raise CryptoError(
            f"{file}: the authority {certificate.common_name!r} expired at {x509.show_time(certificate.not_after)};"
            " move the directory away to make a new one, and every certificate will be renewed"
        )
    if present < certificate.not_before:
        raise CryptoError(
            f"{file}: the authority {certificate.common_name!r} is valid from {x509.show_time(certificate.not_before)},"
            f" and this clock says {x509.show_time(present)}: is it wrong?"
        )


def _public_bytes(public_key) -> bytes:
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _naive(moment: datetime.datetime) -> datetime.datetime:
    """The library takes naive times as UTC in all its versions, and aware ones only in newer ones."""
    return moment.astimezone(datetime.timezone.utc).replace(tzinfo=None)


def _key_usage(**granted: bool):
    usages = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return library.KeyUsage(**{usage: granted.get(usage, False) for usage in usages})


def _authority_key_identifier(issuer):
    """The issuer's own key identifier: it need not be the hash that the library would compute."""
    try:
        own = issuer.extensions.get_extension_for_class(library.SubjectKeyIdentifier).value
    except library.ExtensionNotFound:
        return library.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
    return library.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _general_name(name: str):
    kind, _separator, value = name.partition(":")
    if kind == "IP":
        return library.IPAddress(ipaddress.ip_address(value))
    return {"DNS": library.DNSName, "URI": library.UniformResourceIdentifier}[kind](value)


def _name_text(name) -> str:
    """Return a library name in our spelling; a kind that is not ours comes out as one that never matches."""
    kinds = {library.DNSName: "DNS", library.IPAddress: "IP", library.UniformResourceIdentifier: "URI"}
    return f"{kinds.get(type(name), type(name).__name__)}:{getattr(name, 'value', '')}"
