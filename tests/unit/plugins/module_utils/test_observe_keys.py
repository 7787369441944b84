# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What certificates, keys, handshakes and forged tokens show, with servers that do what a broker must not."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import http.server
import json
import os
import pathlib
import socket
import ssl
import threading
import time

import jwt
import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _observe_keys, _probes
from ansible_collections.edgesec.nanomq.plugins.module_utils._policy import NotObserved
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

TIMEOUT = 1.0


def write_pair(directory, name: str, key, days: int = 100, digest=None) -> dict[str, str]:
    """A certificate of its own with its key; returns the block of a listener that names them."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days, hours=1))
        .sign(key, digest or hashes.SHA256())
    )
    paths = {"certfile": directory / f"{name}.pem", "keyfile": directory / f"{name}.key"}
    paths["certfile"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    paths["keyfile"].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()),
    )
    return {key: str(path) for key, path in paths.items()}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, dict[str, str]]:
    directory = tmp_path_factory.mktemp("pairs")
    keys = {
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "rsa": rsa.generate_private_key(65537, 2048),
        "weak": rsa.generate_private_key(65537, 1024),
    }
    return {name: write_pair(directory, name, key) for name, key in keys.items()}


@contextlib.contextmanager
def tls_server(pair: dict[str, str], ciphers: str = "", oldest=None, mtls: bool = False):
    """A server that ends each connection after the handshake; gives its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if ciphers:
        context.set_ciphers(ciphers)
    if oldest:
        context.minimum_version = oldest
    context.load_cert_chain(pair["certfile"], pair["keyfile"])
    if mtls:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(pair["certfile"])
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _peer = server.accept()
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(1)
                except ssl.SSLError:
                    continue
                except OSError:
                    if server.fileno() == -1:
                        return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize(("oldest", "found"), [("TLSv1", ["TLS 1.0", "TLS 1.1"]), ("TLSv1_1", ["TLS 1.1"])])
def test_old_versions_are_found(pairs, oldest, found):
    with tls_server(pairs["ec"], "ALL:@SECLEVEL=0", getattr(ssl.TLSVersion, oldest)) as port:
        assert _observe_keys.handshakes("127.0.0.1", port, pairs["ec"], TIMEOUT)["old_versions"] == found


def test_a_suite_without_forward_secrecy_is_found(pairs):
    with tls_server(pairs["rsa"], "ALL:@SECLEVEL=0") as port:
        without_secrecy, without_anything = _observe_keys.handshakes("127.0.0.1", port, pairs["rsa"], TIMEOUT)[
            "weak_suites"
        ]
    assert "DH" not in without_secrecy
    assert without_anything.startswith(("ADH", "AECDH", "ECDHE-RSA-NULL", "NULL"))


@pytest.mark.parametrize("mtls", [False, True])
def test_a_modern_server_shows_neither(pairs, mtls):
    with tls_server(pairs["ec"], "ECDHE+AESGCM", mtls=mtls) as port:
        assert _observe_keys.handshakes("127.0.0.1", port, pairs["ec"], TIMEOUT) == {
            "old_versions": [],
            "weak_suites": [],
        }


def test_a_server_that_wants_certificates_is_shown_its_own(pairs):
    """Otherwise it would refuse the old version for want of a certificate, and be taken for sound."""
    with tls_server(pairs["rsa"], "ALL:@SECLEVEL=0", mtls=True) as port:
        assert _observe_keys.handshakes("127.0.0.1", port, pairs["rsa"], TIMEOUT)["weak_suites"]


def test_a_server_that_says_nothing_is_not_observed(pairs):
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(NotObserved):
        _observe_keys.handshakes("127.0.0.1", server.getsockname()[1], pairs["ec"], 0.2)


# --- files ------------------------------------------------------------------------------------------------------------


def listener(pair: dict[str, str], **more) -> dict:
    return {"listeners": {"ssl": {"bind": "0.0.0.0:8883", **pair, **more}}}


def der(pair: dict[str, str]) -> bytes:
    with open(pair["certfile"], "rb") as handle:
        return x509.load_pem_x509_certificate(handle.read()).public_bytes(serialization.Encoding.DER)


def test_a_certificate_is_described(pairs):
    served = {"0.0.0.0:8883": der(pairs["ec"]), "127.0.0.1:8086": der(pairs["rsa"])}
    conf = listener(pairs["ec"], cacertfile=pairs["weak"]["certfile"])
    leaf, authority = _observe_keys.certificates(conf, served)
    assert (leaf["role"], leaf["key_type"], leaf["digest"], leaf["key_matches"]) == ("leaf", "ec-p256", "sha256", True)
    assert leaf["days_left"] == 100
    assert leaf["other_served_on"] == []
    assert (authority["role"], authority["key_type"], authority["key_matches"]) == ("authority", "rsa-1024", None)


def test_another_certificate_than_the_one_in_the_file_is_found(pairs):
    (leaf,) = _observe_keys.certificates(listener(pairs["ec"]), {"0.0.0.0:8883": der(pairs["rsa"])})
    assert leaf["other_served_on"] == ["0.0.0.0:8883"]


def test_a_key_of_another_certificate_is_found(pairs):
    mixed = {"certfile": pairs["ec"]["certfile"], "keyfile": pairs["rsa"]["keyfile"]}
    (leaf,) = _observe_keys.certificates(listener(mixed), {})
    assert leaf["key_matches"] is False


@pytest.mark.parametrize(
    "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_said(pairs, tmp_path, text):
    path = tmp_path / "cert.pem"
    path.write_text(text)
    (leaf,) = _observe_keys.certificates(listener({"certfile": str(path), "keyfile": pairs["ec"]["keyfile"]}), {})
    assert leaf["error"]


def test_a_missing_file_is_said(tmp_path):
    (leaf,) = _observe_keys.certificates(listener({"certfile": str(tmp_path / "none")}), {})
    assert leaf["error"] == "No such file or directory"


def test_the_ca_of_a_bridge_is_looked_at(pairs):
    conf = {"bridges": {"mqtt": {"up": {"ssl": {"cacertfile": pairs["ec"]["certfile"]}}}}}
    (found,) = _observe_keys.certificates(conf, {})
    assert found["key"] == "bridges.mqtt.up.ssl.cacertfile"
    assert found["days_left"] == 100


def test_of_several_authorities_the_one_counts_that_ends_first(tmp_path, pairs):
    soon = write_pair(tmp_path, "soon", ec.generate_private_key(ec.SECP256R1()), days=7)
    bundle = tmp_path / "bundle.pem"
    with open(pairs["ec"]["certfile"]) as one, open(soon["certfile"]) as other:
        bundle.write_text(one.read() + other.read())
    _leaf, authority = _observe_keys.certificates(listener(pairs["ec"], cacertfile=str(bundle)), {})
    assert authority["days_left"] == 7


def test_the_key_of_tokens_has_a_kind_and_an_age(tmp_path):
    path = tmp_path / "x.pub"
    key = rsa.generate_private_key(65537, 2048).public_key()
    path.write_bytes(key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    os.utime(path, (time.time() - 10.5 * 86400,) * 2)
    assert _observe_keys.token_key(str(path)) == {"key_type": "rsa-2048", "age_days": 10}
    path.write_text("no key")
    assert _observe_keys.token_key(str(path))["key_type"] == ""


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def public_key(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("jwt") / "jwt-1a2b3c4d.pub"
    key = rsa.generate_private_key(65537, 2048).public_key()
    path.write_bytes(key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return str(path)


class Careless(http.server.BaseHTTPRequestHandler):
    """Takes what its server's `accepts` takes for a token."""

    def do_GET(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.send_response(200 if self.server.accepts(token) else 401)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@contextlib.contextmanager
def rest_server(accepts):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Careless) as server:
        server.accepts = accepts
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def algorithm(token: str) -> str:
    head = token.split(".")[0]
    return json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["alg"]


def takes_none(token: str, _key: str) -> bool:
    return algorithm(token) == "none"


def takes_the_key_for_a_password(token: str, key: str) -> bool:
    """The well-known confusion, by hand: libraries have stopped making it."""
    signed, _dot, signature = token.rpartition(".")
    wanted = hmac.new(pathlib.Path(key).read_bytes(), signed.encode(), hashlib.sha256).digest()
    return signature == base64.urlsafe_b64encode(wanted).decode().rstrip("=")


def looks_at_no_signature(token: str, _key: str) -> bool:
    return algorithm(token) == "RS256"


@pytest.mark.parametrize(
    ("careless", "found"),
    [
        (takes_none, "without a signature (alg none)"),
        (takes_the_key_for_a_password, "signed with the public key as a password (HS256)"),
        (looks_at_no_signature, "with a made-up signature"),
    ],
)
def test_a_forged_token_that_is_taken_is_found(public_key, careless, found):
    with rest_server(lambda token: careless(token, public_key)) as port:
        assert _observe_keys.accepted_forgeries("127.0.0.1", port, public_key, TIMEOUT) == [f"a token {found}"]


def test_the_forgeries_claim_what_the_broker_asks_for(public_key):
    for token in _observe_keys.forgeries(public_key).values():
        claims = jwt.decode(token, options={"verify_signature": False})
        assert claims["iss"] == "jwt-1a2b3c4d.pub"
        assert claims["exp"] > time.time()


def test_who_takes_none_of_them_passes(public_key):
    with rest_server(lambda _token: False) as port:
        assert _observe_keys.accepted_forgeries("127.0.0.1", port, public_key, TIMEOUT) == []


def test_who_does_not_answer_is_not_observed(public_key):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(NotObserved):
        _observe_keys.accepted_forgeries("127.0.0.1", port, public_key, TIMEOUT)


# --- hosts that hang --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def trickling(first: bytes):
    """A server that says something, and then a byte now and then, for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip(connection: socket.socket) -> None:
            with contextlib.suppress(OSError), connection:
                connection.sendall(first)
                while not stop.wait(0.1):
                    connection.sendall(b"x")

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        stop.set()


@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: "]
)
def test_rest_that_trickles_is_given_up(first):
    with trickling(first) as port:
        began = time.monotonic()
        _probes.rest_status("127.0.0.1", port, "/", {}, 0.3)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("encrypted", [False, True])
def test_mqtt_that_trickles_is_given_up(encrypted):
    with trickling(b"" if not encrypted else b"\x16\x03\x03\x40\x00") as port:
        began = time.monotonic()
        context = _observe_keys.client_context() if encrypted else None
        outcome, _certificate = _probes.mqtt_connect("127.0.0.1", port, tls_context=context, timeout=0.3)
        assert time.monotonic() - began < 2
        assert outcome in ("refused", "no answer", "no handshake")
