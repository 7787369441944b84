# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Client certificates of every kind, good and bad, each as NAME.pem with NAME.key in one directory."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
ATTRIBUTES = {
    "CN": NameOID.COMMON_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "C": NameOID.COUNTRY_NAME,
}

#: {certificate: its subject}: each is good, and has a role. `counter` has one that the scenario made.
WITH_ROLE = {
    "viewer": [("CN", "viewer-1")],
    "publisher": [("C", "CH"), ("OU", "publishers"), ("CN", 'machine 7, hall "B"')],
    "bridge_operator": [("CN", "known by its fingerprint")],
    "admin": [("CN", "chief")],
    "deputy": [("CN", "deputy")],
    "counter": [("CN", "counter-1")],
}

#: Each is good, and has no role, however much its subject looks like one that has.
WITHOUT_ROLE = {
    "nobody": [("CN", "nobody")],
    "comma": [("CN", "x,CN=chief")],
    "comma-ou": [("CN", "x,OU=publishers")],
    "comma-first": [("CN", "chief,OU=x")],
    "ou-first": [("CN", "OU=publishers,CN=x")],
    "escaped-comma": [("CN", "x\\,CN=chief")],
    "escape-last": [("CN", "x\\"), ("O", "chief")],
    "semicolon": [("CN", "x;CN=chief")],
    "plus": [("CN", "x+CN=chief")],
    "plus-ou": [("CN", "x+OU=publishers")],
    "slash": [("CN", "x/CN=chief")],
    "slash-ou": [("CN", "x/OU=publishers")],
    "quote": [("CN", 'x",CN=chief')],
    "quoted": [("CN", '"chief"')],
    "newline": [("CN", "x\nCN=chief")],
    "newline-last": [("CN", "chief\n")],
    "newline-ou": [("CN", "x\nOU=publishers")],
    "carriage-return": [("CN", "chief\r")],
    "nul": [("CN", "chief\x00")],
    "nul-inside": [("CN", "chief\x00x")],
    "hex": [("CN", "#636869656600")],
    "space-first": [("CN", " chief")],
    "space-last": [("CN", "chief ")],
    "tab": [("CN", "chief\t")],
    "case": [("CN", "Chief")],
    "cyrillic": [("CN", "\u0441hief")],
    "wide": [("CN", "\uff43hief")],
    "pattern": [("CN", ".*")],
    "prefix": [("CN", "chief-2")],
    "suffix": [("CN", "not-chief")],
    "variable": [("CN", "$ssl_client_verify")],
    "role-name": [("CN", "admin")],
    "organization": [("O", "publishers"), ("CN", "x")],
    "name-as-unit": [("OU", "chief"), ("CN", "x")],
    "unit-as-name": [("CN", "publishers")],
    "unit-longer": [("OU", "publishers-2"), ("CN", "x")],
    "unit-comma": [("OU", "x,OU=publishers"), ("CN", "x")],
    "unit-escape": [("OU", "publishers\\"), ("CN", "x")],
    "two-names": [("CN", "x"), ("OU", "CN=chief")],
    "no-subject": [],
}


@dataclasses.dataclass
class Authority:
    """A CA: its certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, directory: pathlib.Path, passphrase: str) -> Authority:
        key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), passphrase.encode())
        return cls(x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes()), key)

    @classmethod
    def named_like(cls, other: Authority) -> Authority:
        """Another one with the same name."""
        key, name = ec.generate_private_key(ec.SECP256R1()), other.certificate.subject
        builder = _builder(name, name, key, NOW - DAY, NOW + DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    def revoke(self, *certificates: x509.Certificate) -> str:
        """The list of what is revoked, in PEM."""
        builder = x509.CertificateRevocationListBuilder(self.certificate.subject, NOW - DAY, NOW + DAY)
        for certificate in certificates:
            revoked = x509.RevokedCertificateBuilder(certificate.serial_number, NOW - DAY).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def subject(*relative_names: list[tuple[str, str]]) -> x509.Name:
    """A subject of these relative names, each of one attribute or more."""
    return x509.Name(
        x509.RelativeDistinguishedName(
            [x509.NameAttribute(ATTRIBUTES[kind], value, _validate=False) for kind, value in pairs]
        )
        for pairs in relative_names
    )


def _builder(name, issuer, key, since, until) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )


def issue(
    directory: pathlib.Path,
    name: str,
    of: x509.Name,
    authority: Authority | None,
    *,
    since: datetime.datetime = NOW - DAY,
    until: datetime.datetime = NOW + DAY,
    usage: x509.ObjectIdentifier = Usage.CLIENT_AUTH,
) -> x509.Certificate:
    """Make NAME.pem and NAME.key; without an authority it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(of, authority.certificate.subject if authority else of, key, since, until)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    certificate = builder.sign(authority.key if authority else key, hashes.SHA256())
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate


def make(directory: pathlib.Path, operators: Authority, fleet: Authority) -> dict:
    """Make them all; {"crl": what is revoked, "fingerprints": of the one with a role by it}."""
    made = {
        name: issue(directory, name, subject(*([pair] for pair in pairs)), operators)
        for name, pairs in (WITH_ROLE | WITHOUT_ROLE).items()
    }
    # Two attributes in one relative name: it is of the publishers, and of nobody else's.
    issue(directory, "multi-valued", subject([("CN", "x"), ("OU", "publishers")]), operators)
    chief = subject([("CN", "chief")])
    issue(directory, "other-ca", chief, Authority.named_like(operators))
    issue(directory, "self-signed", chief, None)
    issue(directory, "device", chief, fleet)
    issue(directory, "expired", chief, operators, since=NOW - 3 * DAY, until=NOW - 2 * DAY)
    issue(directory, "future", chief, operators, since=NOW + DAY, until=NOW + 2 * DAY)
    issue(directory, "server-only", chief, operators, usage=Usage.SERVER_AUTH)
    # What the operators' own certificate signed, although that is no CA.
    signer = Authority(made["admin"], _key(directory / "admin.key"))
    issue(directory, "by-an-operator", chief, signer)
    with (directory / "by-an-operator.pem").open("a") as file:
        file.write((directory / "admin.pem").read_text())
    revoked = issue(directory, "revoked", chief, operators)
    return {
        "crl": operators.revoke(revoked),
        "fingerprints": [made["bridge_operator"].fingerprint(hashes.SHA1()).hex()],
    }


def _key(path: pathlib.Path) -> ec.EllipticCurvePrivateKey:
    return serialization.load_pem_private_key(path.read_bytes(), None)


#: Certificates that are refused, whoever they are of.
REFUSED = ("other-ca", "self-signed", "device", "expired", "future", "server-only", "by-an-operator", "revoked")
