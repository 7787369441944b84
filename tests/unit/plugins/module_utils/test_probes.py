# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Probes, against servers that do the wrong thing. Each server lives on loopback for the length of one test."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _probes as probes
from ansible_collections.edgesec.nanomq.plugins.module_utils import _validators as validators
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ACCEPTED = b"\x20\x02\x00\x00"
NOT_AUTHORIZED = b"\x20\x02\x00\x05"


@pytest.fixture(autouse=True)
def as_root():
    assert os.geteuid() == 0, "probes look at processes of others: run these tests as root"


# --- certificates -----------------------------------------------------------------------------------------------------


class Authority:
    """A CA that writes pairs below a directory."""

    def __init__(self, directory, name="authority"):
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.path = str(directory / f"{name}.pem")
        self.certificate = self._sign(self.name, self.key.public_key(), ca=True)
        self._write(self.path, self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, name, public_key, *, ca):
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(self.name, name, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
        local = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return builder.add_extension(local, critical=False).sign(self.key, hashes.SHA256())

    @staticmethod
    def _write(path, data):
        with open(path, "wb") as handle:
            handle.write(data)
        return str(path)

    def pair(self, name="device"):
        """(certificate path, key path)"""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), ca=False)
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        return (
            self._write(self.directory / f"{name}.cert.pem", certificate.public_bytes(pem)),
            self._write(
                self.directory / f"{name}.key.pem",
                key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
            ),
        )


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def server_context(pair, *, client_ca=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


# --- servers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(handler, context=None):
    """A server that hands each connection to `handler` in a thread. Gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def one(connection):
        with contextlib.suppress(OSError), connection:
            connection.settimeout(5)
            if context:
                with context.wrap_socket(connection, server_side=True) as secured:
                    handler(secured)
            else:
                handler(connection)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def exactly(connection, length):
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def read_connect(connection):
    """A CONNECT as a broker reads it."""
    assert exactly(connection, 1) == b"\x10"
    length, shift = 0, 0
    while True:
        (digit,) = exactly(connection, 1)
        length |= (digit & 0x7F) << shift
        shift += 7
        if not digit & 0x80:
            break
    body = exactly(connection, length)
    fields, at = [], 10
    while at < len(body):
        (size,) = struct.unpack_from("!H", body, at)
        fields.append(body[at + 2 : at + 2 + size].decode())
        at += 2 + size
    assert at == len(body)
    flags = body[7]
    rest = fields[1:]
    return {
        "protocol": body[:7],
        "flags": flags,
        "keepalive": struct.unpack_from("!H", body, 8)[0],
        "client": fields[0],
        "username": rest.pop(0) if flags & 0x80 else None,
        "password": rest.pop(0) if flags & 0x40 else None,
    }


def broker(may_connect):
    def handler(connection):
        packet = read_connect(connection)
        if may_connect(packet["username"], packet["password"]):
            connection.sendall(ACCEPTED)

    return handler


# --- the CONNECT packet -----------------------------------------------------------------------------------------------


class Script:
    """A connection that has its data at hand."""

    def __init__(self, data):
        self.data = data

    def recv(self, length):
        part, self.data = self.data[:length], self.data[length:]
        return part


@pytest.mark.parametrize(
    ("username", "password", "flags"),
    [
        (None, None, 0x02),
        ("user", None, 0x82),
        ("user", "", 0xC2),
        ("sensör", 'p"#${}', 0xC2),
        ("user", "x" * 300, 0xC2),
        ("u" * 9000, "p" * 9000, 0xC2),
    ],
)
def test_a_connect_packet_says_what_it_should(username, password, flags):
    script = Script(probes.connect_packet(username, password))
    packet = read_connect(script)
    assert script.data == b""
    assert packet["protocol"] == b"\x00\x04MQTT\x04"
    assert packet["flags"] == flags
    assert packet["keepalive"] > 0
    assert 1 <= len(packet["client"]) <= 23 + 4
    assert (packet["username"], packet["password"]) == (username, password)


def test_every_connect_packet_has_a_client_id_of_its_own():
    clients = {read_connect(Script(probes.connect_packet(None, None)))["client"] for _n in range(20)}
    assert len(clients) == 20


# --- mqtt_connect -----------------------------------------------------------------------------------------------------


def answering(*parts, pause=0.05):
    def handler(connection):
        read_connect(connection)
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)

    return handler


def reset(connection):
    read_connect(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    ("handler", "outcome"),
    [
        (answering(ACCEPTED), "accepted"),
        (answering(ACCEPTED[:1], ACCEPTED[1:]), "accepted"),
        (answering(b"\x20\x02\x01\x00"), "accepted"),
        (answering(NOT_AUTHORIZED), "refused"),
        (answering(b"\x20\x02\x00\x01"), "refused"),
        (answering(ACCEPTED[:3]), "refused"),
        (answering(b"HTTP/1.1 400 Bad Request\r\n"), "refused"),
        (answering(), "refused"),
        (reset, "refused"),
        (lambda connection: time.sleep(1), "no answer"),
    ],
)
def test_each_answer_of_a_broker_has_its_outcome(handler, outcome):
    with serving(handler) as port:
        assert probes.mqtt_connect("127.0.0.1", port, timeout=0.4) == (outcome, b"")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_closed_port_is_not_a_refusal():
    assert probes.mqtt_connect("127.0.0.1", free_port()) == ("closed port", b"")


def test_the_certificate_that_is_served_comes_back(authority):
    pair = authority.pair()
    context = probes.client_context(authority.path)
    with serving(answering(ACCEPTED), server_context(pair)) as port:
        outcome, served = probes.mqtt_connect("127.0.0.1", port, tls_context=context)
    assert outcome == "accepted"
    assert ssl.DER_cert_to_PEM_cert(served).strip() == Path(pair[0]).read_text().strip()


def test_a_certificate_of_another_authority_is_no_handshake(authority, tmp_path):
    stranger = Authority(tmp_path, "stranger")
    with serving(answering(ACCEPTED), server_context(authority.pair())) as port:
        context = probes.client_context(stranger.path)
        assert probes.mqtt_connect("127.0.0.1", port, tls_context=context) == ("no handshake", b"")


def test_a_port_without_tls_is_no_handshake(authority):
    with serving(lambda connection: connection.sendall(b"hello, this is no TLS\r\n")) as port:
        context = probes.client_context(authority.path)
        assert probes.mqtt_connect("127.0.0.1", port, tls_context=context) == ("no handshake", b"")


def test_a_tls_server_that_hangs_is_no_handshake(authority):
    with serving(lambda connection: time.sleep(1)) as port:
        context = probes.client_context(authority.path)
        assert probes.mqtt_connect("127.0.0.1", port, tls_context=context, timeout=0.3)[0] == "no handshake"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_mutual_tls_lets_in_who_has_a_certificate(authority, version):
    pair = authority.pair()
    server = server_context(pair, client_ca=authority.path)
    server.maximum_version = version
    with serving(answering(ACCEPTED), server) as port:
        nobody = probes.client_context(authority.path)
        somebody = probes.client_context(authority.path, *pair)
        assert probes.mqtt_connect("127.0.0.1", port, tls_context=nobody)[0] in ("refused", "no handshake")
        assert probes.mqtt_connect("127.0.0.1", port, tls_context=somebody)[0] == "accepted"


# --- probe_mqtt -------------------------------------------------------------------------------------------------------

CREDENTIALS = {"mqtt_username": "sensor", "mqtt_password": "right-Password"}


def declared(username, password):
    return (username, password) == ("sensor", "right-Password")


def ask_mqtt(authority, pair, port, *, mtls=False, credentials=None, ca=None):
    return probes.probe_mqtt(
        port=port,
        ca=ca or authority.path,
        certificate=pair[0],
        key=pair[1],
        mtls=mtls,
        credentials=CREDENTIALS if credentials is None else credentials,
    )


@pytest.mark.parametrize("mtls", [True, False])
def test_a_broker_that_keeps_its_promises_passes(authority, mtls):
    pair = authority.pair()
    context = server_context(pair, client_ca=authority.path if mtls else None)
    with serving(broker(declared), context) as port:
        assert ask_mqtt(authority, pair, port, mtls=mtls) == []


def test_a_certificate_from_elsewhere_needs_another_for_clients(authority, tmp_path):
    """The broker's own is of one CA, which its probe verifies; the clients' are of another."""
    elsewhere = Authority(tmp_path, "elsewhere")
    pair, client = elsewhere.pair(), authority.pair("client")
    with serving(broker(declared), server_context(pair, client_ca=authority.path)) as port:
        options = {"port": port, "certificate": pair[0], "key": pair[1], "mtls": True, "credentials": CREDENTIALS}
        shown = {"client_certificate": client[0], "client_key": client[1]}
        assert probes.probe_mqtt(ca=elsewhere.path, **shown, **options) == []
        assert any("sensor is not let in" in text for text in probes.probe_mqtt(ca=elsewhere.path, **options))
        assert "no handshake" in probes.probe_mqtt(ca=authority.path, **shown, **options)[0]


@pytest.mark.parametrize(
    ("lets_in", "said"),
    [
        (lambda username, password: username is None or declared(username, password), ["an anonymous client"]),
        (lambda username, password: username is not None, ["a client with made-up credentials"]),
        (lambda username, password: True, ["an anonymous client", "a client with made-up credentials"]),
        (lambda username, password: False, ["the declared user sensor is not let in"]),
    ],
)
def test_a_broker_that_lets_in_the_wrong_ones_is_reported(authority, lets_in, said):
    pair = authority.pair()
    with serving(broker(lets_in), server_context(pair)) as port:
        failing = ask_mqtt(authority, pair, port)
    assert len(failing) == len(said)
    for text, expected in zip(failing, said):
        assert expected in text
        assert f"127.0.0.1:{port}" in text
        assert "right-Password" not in text


def test_a_broker_that_answers_nobody_is_not_taken_for_one_that_refuses(authority, monkeypatch):
    pair = authority.pair()
    monkeypatch.setattr(probes, "mqtt_connect", lambda *a, **o: ("no answer", probes.leaf_certificate(pair[0])))
    failing = ask_mqtt(authority, pair, 1)
    assert len(failing) == 3
    assert all("no answer" in text for text in failing)


def test_the_certificate_of_before_is_reported(authority):
    old, new = authority.pair("old"), authority.pair("new")
    with serving(broker(declared), server_context(old)) as port:
        (failing,) = ask_mqtt(authority, new, port)
    assert "another certificate is served" in failing


def count_logins(handler, logins):
    def counting(connection):
        logins.append(read_connect(connection))
        handler(connection)

    return counting


def test_whom_the_host_reaches_is_asked_of_changes_alone():
    """A collector that is away is no fault of a host on which nothing was changed."""
    away = [{"type": "reachable", "targets": [f"127.0.0.1:{free_port()}"]}]
    assert probes.run_probes(away, {}, patience=0, settled=True) == []
    assert len(probes.run_probes(away, {}, patience=0)) == 1


@pytest.mark.parametrize(("settled", "refused"), [(True, 1), (False, probes.TRIES)])
def test_where_nothing_was_changed_the_broker_refuses_as_few_as_can_be(authority, settled, refused):
    pair, logins = authority.pair(), []

    def lets_in(username, password):
        logins.append(username)
        return declared(username, password)

    probe = {"type": "mqtt", "ca": authority.path, "certificate": pair[0], "key": pair[1], "mtls": False}
    with serving(broker(lets_in), server_context(pair)) as port:
        assert probes.run_probes([{**probe, "port": port}], CREDENTIALS, settled=settled) == []
    assert logins.count(None) == refused
    assert logins.count("sensor") == 1
    assert len(logins) == 2 * refused + 1


def test_who_is_refused_stays_until_all_have_been(authority):
    """The real broker ends at some refused logins whose client is gone at once."""
    pair, events = authority.pair(), []

    def staying(connection):
        packet = read_connect(connection)
        events.append(("login", time.monotonic()))
        if declared(packet["username"], packet["password"]):
            connection.sendall(ACCEPTED)
        else:
            connection.sendall(b"\x20\x02\x00\x05")
            assert connection.recv(1) == b""
            events.append(("gone", time.monotonic()))

    with serving(staying, server_context(pair)) as port:
        assert ask_mqtt(authority, pair, port) == []
        until = time.monotonic() + 5
        while len(events) < 4 * probes.TRIES + 1 and time.monotonic() < until:
            time.sleep(0.01)
    kinds = [kind for kind, _at in events]
    assert kinds == ["login"] * (2 * probes.TRIES + 1) + ["gone"] * 2 * probes.TRIES
    last_login, first_gone = (at for _kind, at in events[2 * probes.TRIES : 2 * probes.TRIES + 2])
    assert first_gone - last_login >= probes.LINGER * 0.9


@pytest.mark.parametrize(
    ("least", "most"),
    [(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3), (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3)],
)
def test_logins_are_by_tls_1_2_where_the_broker_has_it(authority, least, most):
    pair, spoken = authority.pair(), []
    context = server_context(pair)
    context.minimum_version, context.maximum_version = least, most

    def handler(connection):
        packet = read_connect(connection)
        spoken.append(connection.version())
        if declared(packet["username"], packet["password"]):
            connection.sendall(ACCEPTED)

    with serving(handler, context) as port:
        assert ask_mqtt(authority, pair, port) == []
    assert spoken == ["TLSv1.2" if least == ssl.TLSVersion.TLSv1_2 else "TLSv1.3"] * (2 * probes.TRIES + 1)


def test_where_the_certificate_of_before_is_served_nobody_is_refused(authority, monkeypatch):
    """For as long as it is waited for: the real broker ends at some refused logins."""
    old, new = authority.pair("old"), authority.pair("new")
    logins, handshakes = [], []
    handshake = probes.served_certificate
    monkeypatch.setattr(probes, "served_certificate", lambda *a: handshakes.append(a) or handshake(*a))
    probe = {"type": "mqtt", "ca": authority.path, "certificate": new[0], "key": new[1], "mtls": False}
    with serving(count_logins(broker(declared), logins), server_context(old)) as port:
        started = time.monotonic()
        (failing,) = probes.run_probes([{**probe, "port": port}], CREDENTIALS, patience=60)
    assert "another certificate is served" in failing
    assert logins == []
    assert len(handshakes) > 2
    # What only a start mends is not waited for as long as a start takes.
    assert time.monotonic() - started < 10


def test_what_time_may_mend_is_waited_for_beside_what_it_does_not(monkeypatch):
    answers = [["slow", probes.Lasting("old")]] * 3 + [[]]
    monkeypatch.setitem(probes.PROBES, "listeners", lambda **_options: answers.pop(0))
    monkeypatch.setattr(probes, "BRIEFLY", 0)
    assert probes.run_probes([{"type": "listeners"}], {}, patience=20) == []
    assert answers == []


class TestWss:
    """The broker's second listener, which takes the certificate of the first."""

    def ask(self, authority, pair, mqtt, wss):
        return probes.probe_mqtt(
            port=mqtt,
            ca=authority.path,
            certificate=pair[0],
            key=pair[1],
            mtls=True,
            wss=f"127.0.0.1:{wss}",
            credentials=CREDENTIALS,
        )

    def test_each_listener_is_compared(self, authority):
        old, new = authority.pair("old"), authority.pair("new")
        contexts = {pair: server_context(pair, client_ca=authority.path) for pair in (old, new)}
        for first, second in ((new, new), (old, new), (new, old), (old, old)):
            with (
                serving(broker(declared), contexts[first]) as mqtt,
                serving(lambda connection: connection.recv(1), contexts[second]) as wss,
            ):
                failing = self.ask(authority, new, mqtt, wss)
            expected = [f"MQTT on 127.0.0.1:{mqtt}"] * (first == old) + [f"WSS on 127.0.0.1:{wss}"] * (second == old)
            assert [text.partition(": ")[0] for text in failing] == expected
            assert all("another certificate is served" in text for text in failing)

    def test_a_listener_that_is_not_there(self, authority):
        pair = authority.pair()
        with serving(broker(declared), server_context(pair, client_ca=authority.path)) as mqtt:
            wss = free_port()
            assert self.ask(authority, pair, mqtt, wss) == [f"WSS on 127.0.0.1:{wss}: no handshake"]

    def test_one_handshake_that_is_dropped_proves_nothing(self, authority):
        pair, dropped = authority.pair(), []

        def moody(connection):
            if not dropped:
                dropped.append(connection.close())
            else:
                with server_context(pair).wrap_socket(connection, server_side=True) as secured:
                    secured.recv(1)

        context = probes.client_context(authority.path)
        with serving(moody) as port:
            served = probes.served_certificate("127.0.0.1", port, context)
        assert served == probes.leaf_certificate(pair[0])
        assert len(dropped) == 1


def test_a_broker_that_does_not_ask_for_certificates_is_reported(authority):
    pair = authority.pair()
    with serving(broker(declared), server_context(pair)) as port:
        (failing,) = ask_mqtt(authority, pair, port, mtls=True)
    assert "a client without a certificate was not refused" in failing


def test_a_closed_port_and_a_failing_handshake_are_told_apart(authority, tmp_path):
    pair = authority.pair()
    assert ask_mqtt(authority, pair, free_port())[0].endswith(": closed port")
    stranger = Authority(tmp_path, "stranger").pair("strange")
    with serving(broker(declared), server_context(stranger)) as port:
        assert "no handshake (do the certificate and the key" in ask_mqtt(authority, pair, port)[0]


@pytest.mark.parametrize("broken", ["ca", "certificate", "key"])
def test_a_file_that_cannot_be_used_is_reported(authority, tmp_path, broken):
    pair = list(authority.pair())
    junk = str(tmp_path / "junk")
    with open(junk, "w") as handle:
        handle.write("junk")
    if broken == "certificate":
        pair[0] = junk
    if broken == "key":
        pair[1] = junk
    failing = ask_mqtt(authority, pair, 1, ca=junk if broken == "ca" else None)
    assert len(failing) == 1
    assert "cannot be used" in failing[0]


# --- REST -------------------------------------------------------------------------------------------------------------

TOKEN = "Bearer good.good.good"


@contextlib.contextmanager
def rest(status_for):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status = status_for(self.headers.get("Authorization"))
            if status is None:
                self.connection.close()
                return
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def ask_rest(status_for, credentials=None):
    with rest(status_for) as port:
        credentials = {"rest_authorization": TOKEN} if credentials is None else credentials
        return probes.probe_rest(port=port, credentials=credentials)


SHIPPED = "Basic YWRtaW46cHVibGlj"


@pytest.mark.parametrize(
    ("status_for", "said"),
    [
        (lambda auth: 200 if auth == TOKEN else 401, []),
        (lambda auth: 200, ["without credentials with 200", "shipped credentials with 200", "made-up token with 200"]),
        (lambda auth: 200 if auth in (TOKEN, SHIPPED) else 401, ["shipped credentials with 200"]),
        (lambda auth: 200 if auth in (TOKEN, None) else 401, ["without credentials with 200"]),
        (lambda auth: 200 if str(auth).startswith("Bearer") else 401, ["made-up token with 200"]),
        (lambda auth: 401, ["valid credentials with 401 instead of 200"]),
        (lambda auth: 404, ["404 instead of 401"] * 3 + ["404 instead of 200"]),
        (lambda auth: None, ["does not answer"]),
    ],
)
def test_each_answer_of_rest_is_judged(status_for, said):
    failing = ask_rest(status_for)
    assert len(failing) == len(said)
    for text, expected in zip(failing, said):
        assert expected in text
        assert "good.good" not in text


def test_rest_is_not_asked_with_credentials_that_nobody_has():
    assert ask_rest(lambda auth: 401, {}) == []
    assert ask_rest(lambda auth: 401, {"rest_authorization": None}) == []


@pytest.mark.parametrize(
    ("taken", "said"), [([TOKEN], []), ([TOKEN, "Bearer gone.gone.gone"], ["no longer valid with 200"])]
)
def test_credentials_that_are_gone_are_tried(taken, said):
    credentials = {"rest_authorization": TOKEN, "rest_refused": ["Bearer gone.gone.gone", "Bearer gone.too"]}
    failing = ask_rest(lambda auth: 200 if auth in taken else 401, credentials)
    assert len(failing) == len(said)
    for text, expected in zip(failing, said):
        assert expected in text
        assert "gone.gone" not in text


def test_no_server_is_status_0():
    assert probes.rest_status("127.0.0.1", free_port(), "/") == 0
    with serving(lambda connection: connection.sendall(b"garbage\r\n\r\n")) as port:
        assert probes.rest_get("127.0.0.1", port, "/")[0] == 0


# --- patience ---------------------------------------------------------------------------------------------------------


def test_probes_are_repeated_until_they_hold(monkeypatch):
    answers = [["not yet"], ["not yet"], []]
    asked = []

    def probe(*, credentials, x):
        asked.append((credentials, x))
        return answers.pop(0)

    monkeypatch.setitem(probes.PROBES, "listeners", probe)
    assert probes.run_probes([{"type": "listeners", "x": 1}], {"a": "b"}, patience=5) == []
    assert asked == [({"a": "b"}, 1)] * 3


def test_patience_ends(monkeypatch):
    monkeypatch.setitem(probes.PROBES, "listeners", lambda **options: ["never"])
    started = time.monotonic()
    assert probes.run_probes([{"type": "listeners"}] * 2, {}, patience=0.3) == ["never", "never"]
    assert time.monotonic() - started < 2


# --- sockets and processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F:1F91", "127.0.0.1:8081"),
        ("00000000:0016", "0.0.0.0:22"),
        ("0200A8C0:22B3", "192.168.0.2:8883"),
        ("00000000000000000000000001000000:1F91", "[::1]:8081"),
        ("00000000000000000000000000000000:22B3", "[::]:8883"),
        ("0000000000000000FFFF00000100007F:0001", "[::ffff:127.0.0.1]:1"),
    ],
)
def test_addresses_of_proc_are_read(text, address):
    assert probes._address(text) == address


def test_listening_sockets_are_found_with_their_process():
    us = os.getpid()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        client = socket.create_connection(listener.getsockname())
        assert probes.listening({us}) == {address: {us}}
        assert us in probes.listening()[address]
        client.close()
    assert probes.listening({us}) == {}
    assert address not in probes.listening()


def test_a_listener_on_ipv6_is_found():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        assert set(probes.listening({os.getpid()})) == {f"[::1]:{listener.getsockname()[1]}"}


def test_listeners_are_the_declared_ones_and_no_more(monkeypatch):
    monkeypatch.setattr(probes, "unit_pids", lambda unit: {os.getpid()})
    monkeypatch.setattr(probes, "nanomq_pids", lambda: {os.getpid()})
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        first, second = (f"127.0.0.1:{sock.getsockname()[1]}" for sock in (one, two))

        def ask(*expect):
            return probes.probe_listeners(service="nanomq.service", expect=list(expect), credentials={})

        assert ask(first, second) == []
        assert ask(first) == [f"nanomq.service listens on {second}, which is not declared"]
        assert ask(first, second, "0.0.0.0:1") == ["nanomq.service does not listen on 0.0.0.0:1"]
        monkeypatch.setattr(probes, "nanomq_pids", lambda: {os.getpid(), 1, 7})
        (stray,) = ask(first, second)
        assert "another NanoMQ runs outside of nanomq.service (process 1, 7)" in stray


def test_a_broker_is_found_by_the_name_of_its_program():
    with subprocess.Popen(["/usr/local/bin/nanomq", "60"], executable="/bin/sleep") as child:
        try:
            deadline = time.monotonic() + 5
            while child.pid not in probes.nanomq_pids():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            child.kill()
    assert child.pid not in probes.nanomq_pids()


@contextlib.contextmanager
def running(*argv, prefix=()):
    """A process with this command line, perhaps started through another program. Gives its pid."""
    command = [*prefix, "bash", "-c", 'name=$1; shift; exec -a "$name" /bin/sleep "$@"', "bash", *argv]
    with subprocess.Popen(command) as child:
        try:
            deadline = time.monotonic() + 5
            while not Path(f"/proc/{child.pid}/cmdline").read_bytes().startswith(f"{argv[0]}\0".encode()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield child.pid
        finally:
            child.kill()


def test_a_program_that_only_mentions_the_name_is_no_broker():
    with running("vim", "60", "0") as vim, running("nanomq_cli", "60") as client, running("nanomq", "60") as broker:
        assert {vim, client, broker} & probes.nanomq_pids() == {broker}


def test_a_broker_with_a_network_of_its_own_is_as_on_another_host():
    with running("nanomq", "60", prefix=("unshare", "--net")) as apart, running("nanomq", "60") as here:
        assert {apart, here} & probes.nanomq_pids() == {here}


def status_of(monkeypatch, *argv):
    with subprocess.Popen([*argv, "sleep", "60"]) as child:
        try:
            deadline = time.monotonic() + 5
            while Path(f"/proc/{child.pid}/comm").read_text() != "sleep\n":
                assert time.monotonic() < deadline
                time.sleep(0.01)
            monkeypatch.setattr(probes, "unit_pids", lambda unit: {child.pid})
            return probes.probe_process(service="nanomq.service", user="daemon", credentials={})
        finally:
            child.kill()


def test_a_process_without_privileges_passes(monkeypatch):
    drop = ("--reuid", "daemon", "--regid", "daemon", "--clear-groups", "--bounding-set", "-all", "--no-new-privs")
    assert status_of(monkeypatch, "setpriv", "--inh-caps", "-all", *drop) == []


def test_a_process_with_privileges_is_reported(monkeypatch):
    as_root = status_of(monkeypatch, "env")
    assert [text.split(" of ")[1].partition(" (")[0] for text in as_root] == [
        "nanomq.service does not run as daemon, but as uid 0",
        "nanomq.service has capabilities",
        "nanomq.service could gain privileges",
    ]
    could_gain = status_of(monkeypatch, "setpriv", "--reuid", "daemon", "--regid", "daemon", "--clear-groups")
    assert [text.split(" of ")[1].partition(" (")[0] for text in could_gain] == [
        "nanomq.service has capabilities",
        "nanomq.service could gain privileges",
    ]


def test_no_process_and_no_user_are_reported(monkeypatch):
    monkeypatch.setattr(probes, "unit_pids", lambda unit: set())
    assert probes.probe_process(service="x.service", user="daemon", credentials={}) == ["x.service has no process"]
    assert "no-such-user" in probes.probe_process(service="x.service", user="no-such-user", credentials={})[0]


# --- the firewall -----------------------------------------------------------------------------------------------------


def test_a_port_that_an_ordinary_user_reaches_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        failing = probes.probe_unreachable(
            user="nobody", port=port, addresses=["127.0.0.2", "127.0.0.1"], credentials={}
        )
    assert failing == [f"the local user nobody reaches port {port} on 127.0.0.1"]
    assert probes.probe_unreachable(user="nobody", port=port, addresses=["127.0.0.1"], credentials={}) == []


def test_the_port_is_tried_as_that_user(monkeypatch):
    monkeypatch.setattr(probes, "_reaches", lambda address, port: os.getuid() != 0 and os.getgroups() == [])
    failing = probes.probe_unreachable(user="nobody", port=1, addresses=["x"], credentials={})
    assert failing == ["the local user nobody reaches port 1 on x"]
    assert os.getuid() == 0


def test_a_try_that_goes_wrong_is_not_taken_for_a_closed_port(monkeypatch):
    monkeypatch.setattr(probes, "_reaches", lambda address, port: 1 // 0)
    failing = probes.probe_unreachable(user="nobody", port=1, addresses=["x"], credentials={})
    assert failing == ["could not try port 1 as nobody"]
    assert "no user" in probes.probe_unreachable(user="no-such-user", port=1, addresses=["x"], credentials={})[0]


def test_whom_the_host_needs_must_take_a_new_connection():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        targets = [f"localhost:{listener.getsockname()[1]}", f"[::1]:{six.getsockname()[1]}"]
        assert probes.probe_reachable(targets=targets, credentials={}) == []
    failing = probes.probe_reachable(targets=[*targets, "no-such-host.invalid:443"], credentials={})
    assert failing == [f"no new connection to {one} from this host" for one in (*targets, "no-such-host.invalid:443")]


RULES = "table inet edgesec_test {\n  chain in {\n    tcp dport 8081 drop\n  }\n}\n"


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        ([], "is not loaded"),
        (["-f FILE"], ""),
        (["-f FILE", "add rule inet edgesec_test in tcp dport 1 accept"], "differs from"),
        (["-f FILE", "flush chain inet edgesec_test in"], "differs from"),
        (["add table inet edgesec_test"], "differs from"),
    ],
)
def test_the_table_in_the_kernel_is_compared_with_the_file(tmp_path, commands, said):
    """In a network namespace of its own: the machine's rules are none of ours."""
    # Not below /tmp, which the namespace has anew.
    path = f"/var/tmp/test-of-probes-{os.getpid()}.nft"
    with open(path, "w") as handle:
        handle.write(RULES)

    def action():
        for command in commands:
            code, out = probes.run(["nft", *command.replace("FILE", path).split()])
            assert code == 0, out
        return {"failing": probes.probe_nft_table(family="inet", table="edgesec_test", file=path, credentials={})}

    try:
        result = validators.in_namespaces(action)
    finally:
        os.unlink(path)
    assert "error" not in result
    assert len(result["failing"]) == bool(said)
    assert said in "".join(result["failing"])
