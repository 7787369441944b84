# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates and requests, held against what the cryptography library reads and writes."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import choose_backend, make_request
from cryptography import x509 as library
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

KEY = ec.generate_private_key(ec.SECP256R1())
LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20)
HOST = st.lists(LABEL, min_size=2, max_size=4).map(".".join).filter(lambda name: not name[-1].isdigit())
NAME = st.one_of(
    HOST.map(lambda host: f"DNS:{host}"),
    HOST.map(lambda host: f"DNS:*.{host}"),
    st.ip_addresses().map(lambda address: f"IP:{address}"),
    HOST.map(lambda host: f"URI:spiffe://{host}/a%20b"),
)
COMMON_NAME = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=64).filter(
    lambda name: len(name.encode()) <= 64
)
MOMENT = st.datetimes(datetime.datetime(1951, 1, 1), datetime.datetime(2149, 1, 1))


def general_name(text):
    kind, _colon, value = text.partition(":")
    if kind == "IP":
        return library.IPAddress(ipaddress.ip_address(value))
    return {"DNS": library.DNSName, "URI": library.UniformResourceIdentifier}[kind](value)


def certificate(common_name="ca", serial=1, names=(), begin=datetime.datetime(2026, 1, 1), days=10, ca=None, usages=()):
    name = library.Name([library.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = library.CertificateBuilder(
        name, name, KEY.public_key(), serial, begin, begin + datetime.timedelta(days=days)
    )
    if names:
        names = library.SubjectAlternativeName([general_name(text) for text in names])
        builder = builder.add_extension(names, critical=False)
    if usages:
        builder = builder.add_extension(library.ExtendedKeyUsage(usages), critical=False)
    if ca is not None:
        builder = builder.add_extension(library.BasicConstraints(ca, None), critical=True)
    return builder.sign(KEY, hashes.SHA256())


def raw(found):
    return found.public_bytes(serialization.Encoding.DER)


SAMPLE = raw(
    certificate("sample", names=["DNS:a.example", "IP:::1"], ca=True, usages=[ExtendedKeyUsageOID.SERVER_AUTH])
)


class TestDamage:
    @given(st.integers(0, len(SAMPLE) - 1))
    def test_a_certificate_cut_short(self, length):
        with pytest.raises(der.DerError):
            x509.parse_certificate(SAMPLE[:length])

    def test_a_certificate_with_something_behind_it(self):
        with pytest.raises(der.DerError, match="after the end"):
            x509.parse_certificate(SAMPLE + b"\0")

    @given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
    def test_a_flipped_byte_is_read_or_refused_but_never_crashes(self, position, change):
        damaged = bytearray(SAMPLE)
        damaged[position] ^= change
        with contextlib.suppress(der.DerError):
            assert x509.parse_certificate(bytes(damaged)).raw == damaged

    @given(st.binary(max_size=200))
    def test_any_bytes(self, data):
        with pytest.raises(der.DerError):
            x509.parse_certificate(data)
        with pytest.raises(der.DerError):
            x509.key_type(data)

    @pytest.mark.parametrize(
        "pem",
        [
            b"",
            b"nonsense",
            b"-----BEGIN CERTIFICATE-----\nMII\n",
            b"-----BEGIN CERTIFICATE-----\nMII*\n-----END CERTIFICATE-----\n",
            b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n",
        ],
    )
    def test_a_file_without_a_certificate(self, pem):
        with pytest.raises(der.DerError):
            x509.load_certificates(pem)

    @pytest.mark.parametrize("length", [b"\x81\x01", b"\x80", b"\x82\x00\x81", b"\x85\x01\x00\x00\x00\x00"])
    def test_lengths_that_are_not_canonical(self, length):
        with pytest.raises(der.DerError):
            der.parse(b"\x04" + length + bytes(300))


class TestCertificate:
    @given(COMMON_NAME, st.integers(1, 2**159), st.lists(NAME, max_size=5, unique=True), MOMENT, st.integers(1, 9000))
    def test_it_says_what_the_library_says(self, common_name, serial, names, begin, days):
        made = certificate(common_name, serial, names, begin.replace(microsecond=0), days)
        found = x509.parse_certificate(raw(made))
        assert found.common_name == common_name
        assert found.serial == made.serial_number
        assert int.from_bytes(bytes.fromhex(found.identifier), "big") == made.serial_number
        assert found.not_before == made.not_valid_before_utc
        assert found.not_after == made.not_valid_after_utc
        assert found.names == frozenset(names)
        assert found.tbs == made.tbs_certificate_bytes
        assert found.signature == made.signature
        assert x509.DIGESTS[found.signature_algorithm] == made.signature_hash_algorithm.name
        assert found.subject == made.subject.public_bytes()
        assert bytes.fromhex(found.fingerprint_sha256.replace(":", "")) == made.fingerprint(hashes.SHA256())
        assert library.load_pem_x509_certificate(found.pem()) == made

    @pytest.mark.parametrize(("ca", "expected"), [(None, False), (False, False), (True, True)])
    def test_authority(self, ca, expected):
        assert x509.parse_certificate(raw(certificate(ca=ca))).is_authority is expected

    def test_usages(self):
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.CODE_SIGNING]
        found = x509.parse_certificate(raw(certificate(usages=usages))).usages
        assert found == {"client_auth", ExtendedKeyUsageOID.CODE_SIGNING.dotted_string}

    def test_a_name_of_another_kind_is_not_overlooked(self):
        names = library.SubjectAlternativeName([library.RFC822Name("a@b.example"), library.DNSName("b.example")])
        name = library.Name([])
        made = (
            library.CertificateBuilder(name, name, KEY.public_key(), 1)
            .not_valid_before(datetime.datetime(2026, 1, 1))
            .not_valid_after(datetime.datetime(2027, 1, 1))
            .add_extension(names, critical=True)
            .sign(KEY, hashes.SHA256())
        )
        found = x509.parse_certificate(raw(made))
        assert found.common_name == ""
        assert len(found.names) == 2
        assert "DNS:b.example" in found.names

    def test_a_chain_is_read_in_order(self):
        made = [certificate(name) for name in ("leaf", "middle", "root")]
        pem = b"# comment\n" + b"".join(one.public_bytes(serialization.Encoding.PEM) for one in made)
        assert [one.common_name for one in x509.load_certificates(pem)] == ["leaf", "middle", "root"]


class TestKeyType:
    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            (ec.generate_private_key(ec.SECP256R1()), "ec-p256"),
            (ec.generate_private_key(ec.SECP384R1()), "ec-p384"),
            (ec.generate_private_key(ec.SECP521R1()), "ec-p521"),
            (ec.generate_private_key(ec.SECP256K1()), "ec-1.3.132.0.10"),
            (ed25519.Ed25519PrivateKey.generate(), "algorithm-1.3.101.112"),
        ],
    )
    def test_curves(self, key, expected):
        public_key = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        assert x509.key_type(public_key) == expected


class TestRequest:
    @given(COMMON_NAME, st.lists(NAME, max_size=5, unique=True))
    def test_the_library_reads_exactly_what_was_put_in(self, common_name, names):
        backend = choose_backend("cryptography")
        pem = make_request(backend, backend.generate_key("ec-p256"), None, common_name, names)
        found = library.load_pem_x509_csr(pem)
        assert found.is_signature_valid
        assert [attribute.value for attribute in found.subject] == [common_name]
        if names:
            assert list(found.extensions[0].value) == [general_name(name) for name in names]
        assert len(found.extensions) == bool(names)


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "",
            "broker.example",
            "DNS:",
            "DNS:a..b",
            "DNS:-a.example",
            "DNS:a-.example",
            "DNS:bücher.example",
            "DNS:a b",
            "DNS:a.example,DNS:evil.example",
            "DNS:a\0.example",
            "DNS:a.example\n",
            "DNS:*",
            "DNS:a.*.example",
            "DNS:192.0.2.1",
            "DNS:" + "a" * 64,
            "DNS:" + ".".join(["a" * 60] * 5),
            "IP:broker.example",
            "IP:192.0.2.0/24",
            "IP:",
            "IP:1",
            "URI:nothing",
            "URI:a b:c",
            "URI:http://ü.example",
            "email:a@b.example",
            "otherName:1.2.3;UTF8:x",
        ],
    )
    def test_what_no_verifier_matches_is_refused(self, name):
        with pytest.raises(ValueError, match=r".+"):
            x509.normalise_name(name)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("DNS:Broker.Example", "DNS:broker.example"),
            ("dns:*.example.org", "DNS:*.example.org"),
            ("ip:2001:DB8:0:0::1", "IP:2001:db8::1"),
            ("IP:192.0.2.1", "IP:192.0.2.1"),
            ("URI:spiffe://Fleet/A", "URI:spiffe://Fleet/A"),
            ("DNS:xn--bcher-kva.example", "DNS:xn--bcher-kva.example"),
            ("DNS:my_host", "DNS:my_host"),
        ],
    )
    def test_there_is_one_spelling(self, name, expected):
        assert x509.normalise_name(name) == expected

    @given(NAME)
    def test_normalising_twice_changes_nothing(self, name):
        assert x509.normalise_name(x509.normalise_name(name)) == x509.normalise_name(name)

    @pytest.mark.parametrize("name", ["", "x" * 65, "ä" * 33, "a\nb", "a\0", " a", "a "])
    def test_common_names_that_are_refused(self, name):
        with pytest.raises(ValueError, match="common name"):
            x509.check_common_name(name)


@given(st.integers(0, 2**64))
def test_integers(value):
    assert der.integer(der.parse(der.encode_integer(value))) == value


@given(st.lists(st.integers(0, 2**40), max_size=6), st.integers(0, 2), st.integers(0, 39))
def test_object_identifiers(rest, first, second):
    dotted = ".".join(map(str, [first, second, *rest]))
    assert der.oid(der.parse(der.encode_oid(dotted))) == dotted


@given(st.binary(max_size=400), st.sampled_from([0x04, 0x30, 0xA3]))
def test_elements(content, tag):
    assert der.parse(der.encode(tag, content)) == der.Node(tag, content, der.encode(tag, content))


@given(st.binary(min_size=1, max_size=200))
def test_pem(content):
    assert der.from_pem("THING", b"text\n" + der.to_pem("THING", content) + der.to_pem("OTHER", b"x")) == [content]
