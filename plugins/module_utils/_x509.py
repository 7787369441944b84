# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates as far as this collection looks at them, and certificate requests as far as it makes them.

Standard library only, so that a device gives the same answers with and without the cryptography library. Everything
read here is the device's own file or comes from the operator's controller; requests from devices are read by
``_authority`` with the cryptography library.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import ipaddress
import re

from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der

COMMON_NAME = "2.5.4.3"
SUBJECT_ALT_NAME, BASIC_CONSTRAINTS, EXTENDED_KEY_USAGE = "2.5.29.17", "2.5.29.19", "2.5.29.37"
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"

USAGES = {"server_auth": "1.3.6.1.5.5.7.3.1", "client_auth": "1.3.6.1.5.5.7.3.2"}

RSA = "1.2.840.113549.1.1.1"
EC = "1.2.840.10045.2.1"
CURVES = {"1.2.840.10045.3.1.7": "ec-p256", "1.3.132.0.34": "ec-p384", "1.3.132.0.35": "ec-p521"}

#: Signature algorithm to digest. Those that are missing (SHA-1, RSA-PSS, Ed25519) are not verified but refused.
DIGESTS = {
    "1.2.840.113549.1.1.11": "sha256",
    "1.2.840.113549.1.1.12": "sha384",
    "1.2.840.113549.1.1.13": "sha512",
    "1.2.840.10045.4.3.2": "sha256",
    "1.2.840.10045.4.3.3": "sha384",
    "1.2.840.10045.4.3.4": "sha512",
}

_DNS_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What a certificate says. Times are UTC; names are written ``DNS:host``, ``IP:192.0.2.1``, ``URI:spiffe://x``."""

    raw: bytes
    tbs: bytes
    serial: int
    issuer: bytes
    subject: bytes
    common_name: str
    not_before: datetime.datetime
    not_after: datetime.datetime
    public_key: bytes
    names: frozenset[str]
    usages: frozenset[str]
    is_authority: bool
    signature_algorithm: str
    signature: bytes

    @property
    def identifier(self) -> str:
        """The serial number in hexadecimal, in lower case and whole bytes: the name of the pair's directory."""
        digits = f"{self.serial:x}"
        return digits.zfill(len(digits) + len(digits) % 2)

    @property
    def fingerprint_sha256(self) -> str:
        """SHA-256 of the certificate, as ``openssl x509 -fingerprint -sha256`` prints it."""
        digest = hashlib.sha256(self.raw).hexdigest().upper()
        return ":".join(digest[start : start + 2] for start in range(0, 64, 2))

    def pem(self) -> bytes:
        """The certificate as PEM."""
        return der.to_pem("CERTIFICATE", self.raw)


def load_certificates(pem: bytes) -> list[Certificate]:
    """Return the certificates of a PEM file in their order. Raises DerError, also when there is none."""
    blocks = der.from_pem("CERTIFICATE", pem)
    if not blocks:
        raise der.DerError("there is no certificate in it")
    return [parse_certificate(block) for block in blocks]


def leaf_certificate(path: str) -> bytes:
    """Return the first certificate of a PEM file, which a server shows, in DER. Raises OSError or DerError."""
    with open(path, "rb") as handle:
        blocks = der.from_pem("CERTIFICATE", handle.read())
    if not blocks:
        raise der.DerError("there is no certificate in it")
    return blocks[0]


def parse_certificate(raw: bytes) -> Certificate:
    """Return what a DER certificate (RFC 5280, 4.1) says. Raises DerError."""
    try:
        tbs, algorithm, signature = der.parse(raw).expect(der.SEQUENCE).children()
        fields = tbs.expect(der.SEQUENCE).children()
        if fields[0].tag == 0xA0:
            fields = fields[1:]
        serial, _algorithm, issuer, validity, subject, public_key = fields[:6]
        not_before, not_after = (der.time(node) for node in validity.children())
        extensions = _extensions(fields[6:])
        constraints = _listed(extensions, BASIC_CONSTRAINTS)
        return Certificate(
            raw=raw,
            tbs=tbs.raw,
            serial=der.integer(serial),
            issuer=issuer.raw,
            subject=subject.raw,
            common_name=_common_name(subject),
            not_before=not_before,
            not_after=not_after,
            public_key=public_key.raw,
            names=frozenset(_name_text(node) for node in _listed(extensions, SUBJECT_ALT_NAME)),
            usages=frozenset(_usage_text(node) for node in _listed(extensions, EXTENDED_KEY_USAGE)),
            is_authority=any(node.tag == der.BOOLEAN and node.content == b"\xff" for node in constraints),
            signature_algorithm=der.oid(algorithm.children()[0]),
            signature=der.bit_string(signature),
        )
    except der.DerError:
        raise
    except (ValueError, IndexError) as error:
        raise der.DerError(f"it is not an X.509 certificate: {error}") from None


def key_type(public_key: bytes) -> str:
    """Return ``rsa-3072``, ``ec-p256`` and so on for a DER SubjectPublicKeyInfo. Raises DerError."""
    try:
        algorithm, key = der.parse(public_key).children()
        parameters = algorithm.children()
        kind = der.oid(parameters[0])
        if kind == EC:
            curve = der.oid(parameters[1])
            return CURVES.get(curve, f"ec-{curve}")
        if kind == RSA:
            modulus = der.parse(der.bit_string(key)).children()[0]
            return f"rsa-{der.integer(modulus).bit_length()}"
        return f"algorithm-{kind}"
    except (ValueError, IndexError) as error:
        raise der.DerError(f"it is not a public key: {error}") from None


def normalise_name(text: str) -> str:
    """Return a subject alternative name in its one spelling: ``DNS:`` in lower case, ``IP:`` in its short form.

    Raises ValueError on any other kind, and on what no verifier would match.
    """
    kind, separator, value = str(text).partition(":")
    if separator and kind.upper() == "IP":
        return f"IP:{ipaddress.ip_address(value)}"
    if separator and kind.upper() == "DNS":
        return f"DNS:{_host_name(value)}"
    if separator and kind.upper() == "URI":
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+", value, re.ASCII):
            raise ValueError(f"{text!r} is not an absolute URI of printable ASCII")
        return f"URI:{value}"
    raise ValueError(f"{text!r} is not a subject alternative name: write DNS:host, IP:address or URI:uri")


def check_common_name(text: str) -> str:
    """Return ``text`` if it can be a common name. Raises ValueError."""
    # RFC 5280 counts characters, the cryptography library bytes.
    if not 1 <= len(text.encode("utf-8")) <= 64:
        raise ValueError(f"the common name {text!r} must have 1 to 64 bytes; longer names go into SANs")
    if not text.isprintable() or text != text.strip():
        raise ValueError(f"the common name {text!r} has unprintable characters, or blanks at its ends")
    return text


def request_info(common_name: str, names: list[str], public_key: bytes) -> bytes:
    """Return the DER CertificationRequestInfo (RFC 2986) to sign, for normalised ``names``."""
    attribute = der.encode(der.SEQUENCE, der.encode_oid(COMMON_NAME), der.encode(der.UTF8_STRING, common_name.encode()))
    subject = der.encode(der.SEQUENCE, der.encode(der.SET, attribute))
    attributes = b""
    if names:
        value = der.encode(der.SEQUENCE, *(_encode_name(name) for name in names))
        extension = der.encode(der.SEQUENCE, der.encode_oid(SUBJECT_ALT_NAME), der.encode(der.OCTET_STRING, value))
        wanted = der.encode(der.SET, der.encode(der.SEQUENCE, extension))
        attributes = der.encode(der.SEQUENCE, der.encode_oid(EXTENSION_REQUEST), wanted)
    return der.encode(der.SEQUENCE, der.encode_integer(0), subject, public_key, der.encode(0xA0, attributes))


def request_pem(info: bytes, signature: bytes, kind: str) -> bytes:
    """Return the PEM certificate request; ``signature`` is over ``info`` with SHA-256, ``kind`` a key_type."""
    if kind.startswith("rsa-"):
        algorithm = der.encode(der.SEQUENCE, der.encode_oid("1.2.840.113549.1.1.11"), der.encode(der.NULL))
    else:
        algorithm = der.encode(der.SEQUENCE, der.encode_oid("1.2.840.10045.4.3.2"))
    request = der.encode(der.SEQUENCE, info, algorithm, der.encode(der.BIT_STRING, b"\0", signature))
    return der.to_pem("CERTIFICATE REQUEST", request)


def show_time(moment: datetime.datetime) -> str:
    """Return a moment as ``2030-01-31T12:00:00Z``."""
    return moment.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _host_name(value: str) -> str:
    name = value.lower()
    labels = (name[2:] if name.startswith("*.") else name).split(".")
    if len(name) > 253 or not all(_DNS_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{value!r} is not a host name: write internationalised names in their xn-- form")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name
    raise ValueError(f"{value!r} is an address, which no verifier matches against a DNS name: write IP:{value}")


def _extensions(fields: list[der.Node]) -> dict[str, der.Node]:
    """Return the value of each extension by its identifier."""
    found: dict[str, der.Node] = {}
    for field in fields:
        if field.tag != 0xA3:
            continue
        for extension in field.children()[0].expect(der.SEQUENCE).children():
            parts = extension.children()
            found[der.oid(parts[0])] = parts[-1].expect(der.OCTET_STRING)
    return found


def _listed(extensions: dict[str, der.Node], identifier: str) -> list[der.Node]:
    """Return the elements of an extension that is a sequence; none when the extension is absent."""
    if identifier not in extensions:
        return []
    return der.parse(extensions[identifier].content).expect(der.SEQUENCE).children()


def _common_name(subject: der.Node) -> str:
    """Return the last common name of a Name, or ''."""
    found = ""
    for relative in subject.expect(der.SEQUENCE).children():
        for attribute in relative.children():
            kind, value = attribute.children()
            if der.oid(kind) == COMMON_NAME:
                found = value.content.decode("utf-8", "replace")
    return found


def _usage_text(node: der.Node) -> str:
    identifier = der.oid(node)
    return next((name for name, value in USAGES.items() if value == identifier), identifier)


def _name_text(node: der.Node) -> str:
    if node.tag == 0x82:
        return f"DNS:{node.content.decode('ascii', 'replace').lower()}"
    if node.tag == 0x86:
        return f"URI:{node.content.decode('ascii', 'replace')}"
    if node.tag == 0x87 and len(node.content) in (4, 16):
        return f"IP:{ipaddress.ip_address(node.content)}"
    return f"tag-{node.tag:02x}:{node.content.hex()}"


def _encode_name(name: str) -> bytes:
    kind, _separator, value = name.partition(":")
    if kind == "IP":
        return der.encode(0x87, ipaddress.ip_address(value).packed)
    return der.encode({"DNS": 0x82, "URI": 0x86}[kind], value.encode("ascii"))
