"""Chains of certificates: what is behind a broker's own is sent along, and whom it lets in during a roll-over.

Two authorities of one name, each below a root of its own, and the cross certificate by which the old one vouches for
the new one's key. The collection relies on all of this (docs/lifecycle.md).
"""

from __future__ import annotations

import datetime
import ssl
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from harness import QUIET
from material import PEM, Pair, make_key, private_pem

TLS_PORT, WSS_PORT = 8883, 8086
MUTUAL = "verify_peer = true, fail_if_no_peer_cert = true"


def sign(name: str, key, issuer: Pair | None = None, length: int | None = None) -> Pair:
    """A certificate; with a path length it is one of an authority."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer.key if issuer else key
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=length is not None, path_length=length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if length is None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    return Pair(builder.sign(signer, hashes.SHA256()), key)


@cache
def material() -> dict[str, Pair]:
    """The authorities, and a certificate of each for a broker and for a client."""
    made = {f"{age} root": sign(f"{age} root", make_key("p256"), length=1) for age in ("old", "new", "evil")}
    for age in ("old", "new", "evil"):
        # mbedtls counts the cross certificate, so there must be room for it.
        made[age] = sign("fleet", make_key("p256"), made[f"{age} root"], length=1)
        made[f"{age} leaf"] = sign(f"{age} leaf", make_key("p256"), made[age])
    made["cross"] = sign("fleet", made["new"].key, made["old"], length=0)
    return made


def pem(*names: str) -> bytes:
    return b"".join(material()[name].certificate.public_bytes(PEM) for name in names)


#: What is to be trusted, and what is sent, in each state: the order matters to some TLS libraries.
TRUST = {
    "old": ("old", "old root"),
    "both": ("new", "new root", "old", "old root"),
    "new": ("new", "new root"),
}
CHAINS = {
    "old": ("old leaf", "old"),
    "old, alone": ("old leaf",),
    "crossed": ("new leaf", "cross", "old", "new"),
    "new": ("new leaf", "new"),
    "new, alone": ("new leaf",),
    "evil": ("evil leaf", "evil"),
    "evil, with ours behind": ("evil leaf", "cross", "old", "new"),
}


def block(directory, trust: str, chain: str) -> str:
    """A TLS listener that asks for certificates."""
    (directory / "ca.pem").write_bytes(pem(*TRUST[trust]))
    (directory / "cert.pem").write_bytes(pem(*CHAINS[chain]))
    (directory / "key.pem").write_bytes(private_pem(material()[CHAINS[chain][0]].key))
    return (
        f'listeners.ssl {{ bind = "127.0.0.1:{TLS_PORT}", keyfile = "{directory}/key.pem"\n'
        f'certfile = "{directory}/cert.pem"\ncacertfile = "{directory}/ca.pem"\n{MUTUAL} }}\n'
        f'listeners.wss {{ bind = "127.0.0.1:{WSS_PORT}/mqtt" }}\n'
    )


def admitted(connect, directory, chain: str, trusted: tuple[str, ...]) -> bool:
    """Whether a client gets in: it trusts this alone, and shows that chain. One in twenty fails for nothing."""
    path = directory / "client.pem"
    path.write_bytes(private_pem(material()[CHAINS[chain][0]].key) + pem(*CHAINS[chain]))
    context = ssl.create_default_context(cadata=pem(*trusted).decode())
    context.check_hostname = False
    context.load_cert_chain(path)
    return any(connect(port=TLS_PORT, tls=context).outcome == "accepted" for _attempt in range(3))


#: {what the broker trusts: the chains of clients that it lets in}
LET_IN = {
    "old": {"old", "old, alone", "crossed"},
    "both": {"old", "old, alone", "crossed", "new", "new, alone"},
    "new": {"crossed", "new", "new, alone"},
}


@pytest.mark.parametrize("trust", LET_IN)
def test_clients_that_a_broker_lets_in(broker, connect, trust):
    broker(QUIET + block(broker.directory, trust, "old"))
    found = {chain for chain in CHAINS if admitted(connect, broker.directory, chain, TRUST["old"])}
    assert found == LET_IN[trust]


#: {what the broker sends: who takes it, by what they trust}
TAKEN = {
    "old": {"old", "old root", "both"},
    "crossed": {"old", "old root", "both", "new"},
    "new": {"both", "new", "new root"},
}


@pytest.mark.parametrize("chain", TAKEN)
def test_brokers_that_a_client_takes(broker, connect, chain):
    broker(QUIET + block(broker.directory, "both", chain))
    trusts = {**TRUST, "old root": ("old root",), "new root": ("new root",)}
    found = {name for name, trusted in trusts.items() if admitted(connect, broker.directory, "new", trusted)}
    assert found == TAKEN[chain]
