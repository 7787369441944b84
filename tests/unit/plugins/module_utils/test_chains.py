# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates from elsewhere: what is accepted here, OpenSSL accepts as well."""

from __future__ import annotations

import datetime
import itertools
import subprocess

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _chains, _crypto
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as ours
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Entity:
    """Who has a key and a certificate for it, signed by another one or by itself."""

    def __init__(self, name, issuer=None, *, ca=True, begin=-2 * DAY, end=10 * DAY, names=(), usages=()):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        above = issuer or self
        key = self.key.public_key()
        builder = x509.CertificateBuilder(
            above.subject, self.subject, key, x509.random_serial_number(), NOW + begin, NOW + end
        ).add_extension(x509.BasicConstraints(ca, None), critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(map(x509.DNSName, names)), critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        self.pem = builder.sign(above.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (self.certificate,) = ours.load_certificates(self.pem)


@pytest.fixture(scope="module")
def world():
    """Authorities and the certificates below them, sound and unsound."""
    root = Entity("root")
    middle = Entity("middle", root)
    found = {
        "root": root,
        "middle": middle,
        "lower": Entity("lower", middle),
        "twin": Entity("middle", root),
        "ended": Entity("middle ended", root, end=-DAY),
        "early": Entity("middle early", root, begin=DAY),
        "plain": Entity("no authority", root, ca=False),
        "stranger": Entity("root"),
    }
    return found | {f"leaf of {name}": Entity("leaf", one, ca=False) for name, one in found.items()}


@pytest.fixture(params=["cryptography", "openssl"])
def backend(request):
    return _crypto.choose_backend(request.param)


def openssl_accepts(tmp_path, leaf, chain, anchors):
    files = {"leaf": [leaf], "chain": chain, "anchors": anchors}
    for name, entities in files.items():
        (tmp_path / f"{name}.pem").write_bytes(b"".join(one.pem for one in entities))
    command = ["openssl", "verify", "-partial_chain", "-no-CApath", "-CAfile", "anchors.pem"]
    command += ["-untrusted", "chain.pem"] if chain else []
    return subprocess.run([*command, "leaf.pem"], cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_what_is_accepted_openssl_accepts(world, tmp_path):
    """All chains of up to two of the authorities, for all leaves and each anchor; and some of them are accepted."""
    backend = _crypto.choose_backend("cryptography")
    authorities = [name for name in world if not name.startswith("leaf")]
    accepted = 0
    for length in range(3):
        for names in itertools.product(authorities, repeat=length):
            chain = [world[name] for name in names]
            for issuer, anchor in itertools.product(authorities, ("root", "middle", "stranger")):
                leaf = world[f"leaf of {issuer}"]
                certificates = [one.certificate for one in chain]
                fault = _chains.chain_fault(backend, leaf.certificate, certificates, [world[anchor].certificate])
                if not fault:
                    accepted += 1
                    assert openssl_accepts(tmp_path, leaf, chain, [world[anchor]]), (issuer, names, anchor)
    assert accepted > 5


@pytest.mark.parametrize(
    ("leaf", "chain", "anchors"),
    [
        ("root", [], ["root"]),
        ("middle", ["middle"], ["root"]),
        ("middle", ["middle", "root"], ["root"]),
        ("lower", ["lower", "middle"], ["root"]),
        ("lower", ["lower", "middle", "root"], ["stranger", "root"]),
        ("lower", ["lower"], ["middle"]),
        ("lower", ["lower", "middle"], ["middle"]),
    ],
)
def test_sound_chains(world, backend, leaf, chain, anchors):
    above = [world[name].certificate for name in chain]
    known = [world[name].certificate for name in anchors]
    assert _chains.chain_fault(backend, world[f"leaf of {leaf}"].certificate, above, known) == ""


@pytest.mark.parametrize(
    ("leaf", "chain", "anchors", "words"),
    [
        ("root", [], [], "there is no trust anchor"),
        ("middle", [], ["root"], "the last of the chain, is not signed by a trust anchor ('root')"),
        ("lower", ["middle", "lower"], ["root"], "'leaf' is not signed by 'middle' which follows it"),
        ("middle", ["root", "middle"], ["root"], "'leaf' is not signed by 'root' which follows it"),
        ("middle", ["twin"], ["root"], "'leaf' is not signed by 'middle' which follows it"),
        ("root", [], ["stranger"], "is not signed by a trust anchor ('root')"),
        ("plain", ["plain"], ["root"], "'leaf' is not signed by 'no authority' which follows it"),
        ("ended", ["ended"], ["root"], "the intermediate 'middle ended' is valid from"),
        ("early", ["early"], ["root"], "the intermediate 'middle early' is valid from"),
    ],
)
def test_unsound_chains(world, backend, leaf, chain, anchors, words):
    above = [world[name].certificate for name in chain]
    known = [world[name].certificate for name in anchors]
    fault = _chains.chain_fault(backend, world[f"leaf of {leaf}"].certificate, above, known)
    assert fault.startswith("authority: ")
    assert words in fault


SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@pytest.mark.parametrize(
    ("source", "common_name", "usages", "names", "words"),
    [
        ("command", "a.example", [SERVER], ["a.example"], ""),
        ("acme", "a.example", [SERVER, CLIENT], ["a.example"], ""),
        ("command", "other", [SERVER], ["a.example"], "the common name is 'other'"),
        ("command", "a.example", [], ["a.example"], "without ['server_auth']"),
        ("given", "whatever", [], ["a.example", "b.example"], ""),
        ("given", "whatever", [CLIENT], ["a.example"], "without ['server_auth']"),
        ("given", "whatever", [SERVER, ExtendedKeyUsageOID.CODE_SIGNING], ["*.example"], ""),
        ("given", "a.example", [SERVER], ["*.a.example"], "not for ['DNS:a.example']"),
        ("given", "a.example", [SERVER], [], "not for ['DNS:a.example']"),
    ],
)
def test_content(source, common_name, usages, names, words):
    leaf = Entity(common_name, ca=False, names=names, usages=usages).certificate
    fault = _chains.content_fault(leaf, source, "a.example", ["DNS:a.example"], ["server_auth"])
    assert words in fault if words else fault == ""


label = st.text(st.sampled_from("ab-"), min_size=1, max_size=3).map(lambda text: f"x{text}x")


@given(st.lists(label, min_size=1, max_size=4), st.lists(label, min_size=1, max_size=4))
def test_a_wildcard_stands_for_one_label(one, other):
    """A reference in one line: as many labels, and all but the first the same."""
    name, pattern = "DNS:" + ".".join(one), "DNS:*." + ".".join(other)
    assert _chains.covers(pattern, name) == (one[1:] == other)
    assert _chains.covers(name, name)
    assert not _chains.covers("IP:192.0.2.1", name)
