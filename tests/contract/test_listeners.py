"""What is opened, asked for or not, and who gets through TLS."""

from __future__ import annotations

import signal
import socket
import ssl
import struct

import pytest
from cryptography.hazmat.primitives import serialization
from harness import MQTT_PORT, QUIET, TCP
from material import authority, certificate, client_context, private_pem, revocation_list

TLS_PORT, WS_PORT, WSS_PORT = 8883, 8083, 8086
LOOPBACK_TCP = f"127.0.0.1:{MQTT_PORT}"


def ssl_block(directory, pair=None, *, key=None, lines="", ca=True):
    """A block of a TLS listener whose files it writes."""
    pair = pair or certificate()
    (directory / "cert.pem").write_bytes(pair.pem)
    (directory / "key.pem").write_bytes(key or private_pem(pair.key))
    (directory / "ca.pem").write_bytes(authority("authority").pem)
    cacert = f'cacertfile = "{directory}/ca.pem"' if ca else ""
    return (
        f'listeners.ssl {{ bind = "127.0.0.1:{TLS_PORT}", keyfile = "{directory}/key.pem"\n'
        f'certfile = "{directory}/cert.pem"\n{cacert}\n{lines} }}\n'
        f'listeners.wss {{ bind = "127.0.0.1:{WSS_PORT}/mqtt" }}\n'
    )


def admitted(connect, directory, port=TLS_PORT, pair=None):
    """Whether a TLS client gets in. The real broker drops one TLS connection in twenty or so, good or not."""
    transport = "websockets" if port == WSS_PORT else "tcp"
    return any(
        connect(port=port, tls=client_context(directory, pair), transport=transport).outcome == "accepted"
        for _attempt in range(3)
    )


TCP_LISTENERS = {
    "switched off, in vain": (f'listeners.tcp {{ bind = "{LOOPBACK_TCP}", enable = false }}', {LOOPBACK_TCP}),
    "no bind": ("listeners.tcp { enable = true }", {"0.0.0.0:1883"}),
    "several": (
        'listeners.tcp { one { bind = "127.0.0.1:1884" }, two { bind = "127.0.0.1:1885" } }',
        {"127.0.0.1:1884", "127.0.0.1:1885"},
    ),
    "IPv6": ('listeners.tcp { bind = "[::1]:1883" }', {"::1:1883"}),
    "websocket only": (f'listeners.ws {{ bind = "127.0.0.1:{WS_PORT}/mqtt" }}', {f"127.0.0.1:{WS_PORT}"}),
    "websocket without bind": ("listeners.ws { enable = true }", {f"0.0.0.0:{WS_PORT}"}),
}


@pytest.mark.parametrize(("conf", "addresses"), TCP_LISTENERS.values(), ids=TCP_LISTENERS)
def test_plain_listeners(broker, conf, addresses):
    assert broker(QUIET + conf + "\n").listens() == addresses


def websocket(broker, address="127.0.0.1"):
    """The socket that comes with listeners.ssl."""
    return {f"{address}:{WSS_PORT}"} if broker.does("TLS brings a websocket") else set()


def test_tls_opens_a_websocket_that_nobody_asked_for(broker):
    block = ssl_block(broker.directory).partition("listeners.wss")[0]
    assert broker(QUIET + block).listens() == {f"127.0.0.1:{TLS_PORT}", *websocket(broker, "0.0.0.0")}


def test_a_tls_listener_with_a_name_opens_none(broker):
    block = ssl_block(broker.directory).partition("listeners.wss")[0].replace("{", "{ one {", 1).replace("}", "} }", 1)
    assert broker(QUIET + block).listens() == {f"127.0.0.1:{TLS_PORT}"}


def test_a_tls_listener_with_a_name_cannot_be_switched_off(broker):
    block = ssl_block(broker.directory, lines="enable = false").partition("listeners.wss")[0]
    block = block.replace("{", "{ one {", 1).replace("}", "} }", 1)
    assert broker(QUIET + block).listens() == {f"127.0.0.1:{TLS_PORT}"}


@pytest.mark.parametrize("kind", ["tcp", "ssl"])
def test_an_address_with_a_path_ends_the_start(broker, kind):
    assert broker(QUIET + f'listeners.{kind} {{ bind = "127.0.0.1:1883/mqtt" }}\n').exit_code() == 1


@pytest.mark.parametrize("kind", ["pub", "sub"])
def test_a_bridge_to_nng_listens(broker, kind):
    conf = f'bridges.nng.{kind}.x {{ clientid = "x", {kind}_url = "tcp://0.0.0.0:7000" }}\n'
    opened = {"0.0.0.0:7000"} if broker.does("NNG bridges") else set()
    assert broker(QUIET + TCP + conf).listens() == {LOOPBACK_TCP, *opened}


def nng(port, protocol):
    """A connection to a bridge to NNG, which asks for nothing but the protocol."""
    connection = socket.create_connection(("127.0.0.1", port), 5)
    connection.sendall(b"\0SP\0" + struct.pack("!H", protocol) + b"\0\0")
    assert connection.recv(8).startswith(b"\0SP\0")
    return connection


NNG = """
auth { allow_anonymous = false, password { "alice" = "secret" } }
bridges.nng.sub.i { clientid = "i", sub_url = "tcp://127.0.0.1:7001"
  subscription = [{ remote_topic = "up", local_topic = "in" }] }
bridges.nng.pub.o { clientid = "o", pub_url = "tcp://127.0.0.1:7002"
  forwards = [{ local_topic = "in", remote_topic = "out" }] }
"""


def test_a_bridge_to_nng_lets_anybody_publish_and_read(broker, connect):
    if broker.kind.id == "double":
        pytest.skip("the double listens there and exchanges nothing")
    broker(QUIET + TCP + NNG)
    if not broker.does("NNG bridges"):
        with pytest.raises(ConnectionRefusedError):
            nng(7001, 0x20)
        return
    client = connect("reader", user=("alice", "secret"))
    assert client.subscribe("#") == 0
    with nng(7001, 0x20) as writer, nng(7002, 0x21) as reader:
        message = b"up/hello"
        # The other end needs a moment to know of a connection: until then messages are lost.
        for _attempt in range(20):
            writer.sendall(struct.pack("!Q", len(message)) + message)
            if client.receives("in", 0.3):
                break
        assert client.messages[0] == ("in", b"hello")
        assert reader.recv(64).endswith(b"/hello")


@pytest.mark.parametrize("line", ['pub_url = "tcp://127.0.0.1:7000"', 'clientid = "x"'], ids=["no name", "no address"])
def test_a_bridge_to_nng_without_name_or_address_crashes(broker, line):
    running = broker(QUIET + TCP + f"bridges.nng.pub.x {{ {line} }}\n")
    if broker.does("NNG bridges"):
        assert running.exit_code() == -signal.SIGSEGV
    else:
        assert running.listens() == {LOOPBACK_TCP}


def test_tls_without_bind_is_not_opened(broker):
    block = ssl_block(broker.directory).replace(f'bind = "127.0.0.1:{TLS_PORT}",', "").partition("listeners.wss")[0]
    assert broker(QUIET + TCP + block).listens() == {LOOPBACK_TCP}


def test_tls_can_be_switched_off(broker):
    block = ssl_block(broker.directory, lines="enable = false")
    heeded = broker.does("listeners.ssl.enable is heeded")
    opened = set() if heeded else {f"127.0.0.1:{TLS_PORT}", *websocket(broker)}
    assert broker(QUIET + TCP + block).listens() == {LOOPBACK_TCP, *opened}


def test_tls_alone_opens_no_plain_listener(broker):
    addresses = {f"127.0.0.1:{TLS_PORT}", *websocket(broker)}
    assert broker(QUIET + ssl_block(broker.directory)).listens() == addresses


def test_the_configuration_tells_the_private_key(broker):
    running = broker(QUIET + TCP + "http_server { port = 8081 }\n" + ssl_block(broker.directory))
    tls = running.section("tls")
    assert tls["key"] == (broker.directory / "key.pem").read_text()
    assert tls["cert"] == (broker.directory / "cert.pem").read_text()
    assert tls["url"] == f"tls+nmq-tcp://127.0.0.1:{TLS_PORT}"
    assert running.section("websocket") == {
        "enable": False,
        **({"tls_enable": True} if broker.does("TLS brings a websocket") else {}),
        "url": None,
        "tls_url": f"nmq-wss://127.0.0.1:{WSS_PORT}/mqtt",
    }


GOOD = {
    "P-256": ("p256", {}, ""),
    "RSA": ("rsa", {}, ""),
    "encrypted": ("p256", {"passphrase": b"word"}, 'key_password = "word"'),
    "SEC1": ("p256", {"form": serialization.PrivateFormat.TraditionalOpenSSL}, ""),
}


@pytest.mark.parametrize(("kind", "form", "lines"), GOOD.values(), ids=GOOD)
def test_keys_that_work(broker, connect, kind, form, lines):
    pair = certificate(kind=kind)
    broker(QUIET + ssl_block(broker.directory, pair, key=private_pem(pair.key, **form), lines=lines))
    assert admitted(connect, broker.directory)
    assert admitted(connect, broker.directory, WSS_PORT) is broker.does("TLS brings a websocket")


BAD = {
    "key of another": lambda: {"key": private_pem(certificate("other").key)},
    "Ed25519": lambda: {"pair": certificate(kind="ed25519")},
    "wrong passphrase": lambda: {"key": private_pem(certificate().key, b"word"), "lines": 'key_password = "wrong"'},
    "no passphrase": lambda: {"key": private_pem(certificate().key, b"word")},
    "no key": lambda: {"key": b"nonsense"},
}


@pytest.mark.parametrize("material", BAD.values(), ids=BAD)
def test_bad_material_opens_a_port_that_shakes_no_hand(broker, connect, material):
    running = broker(QUIET + ssl_block(broker.directory, **material()))
    assert f"127.0.0.1:{TLS_PORT}" in running.listens()
    assert not admitted(connect, broker.directory)


@pytest.mark.parametrize("name", ["cert.pem", "key.pem"])
def test_a_missing_file_opens_a_port_that_shakes_no_hand(broker, connect, name):
    block = ssl_block(broker.directory)
    (broker.directory / name).unlink()
    running = broker(QUIET + block)
    assert f"127.0.0.1:{TLS_PORT}" in running.listens()
    assert not admitted(connect, broker.directory)


# Who gets in: without a certificate, with one of another authority, with a good one.
MUTUAL = {
    "both": ("verify_peer = true, fail_if_no_peer_cert = true", True, (False, False, True)),
    "verify_peer alone": ("verify_peer = true", True, (True, True, True)),
    "fail_if_no_peer_cert alone": ("fail_if_no_peer_cert = true", True, (True, True, True)),
    "quoted": ('verify_peer = "true", fail_if_no_peer_cert = "true"', True, (True, True, True)),
    "no authority": ("verify_peer = true, fail_if_no_peer_cert = true", False, (False, False, False)),
}


@pytest.mark.parametrize(("lines", "ca", "expected"), MUTUAL.values(), ids=MUTUAL)
@pytest.mark.parametrize("port", [TLS_PORT, WSS_PORT], ids=["tls", "websocket"])
def test_client_certificates(broker, connect, port, lines, ca, expected):
    broker(QUIET + ssl_block(broker.directory, lines=lines, ca=ca))
    if port == WSS_PORT and not broker.does("TLS brings a websocket"):
        expected = (False, False, False)
    pairs = (None, certificate("evil", issuer="evil authority"), certificate("client"))
    assert tuple(admitted(connect, broker.directory, port, pair) for pair in pairs) == expected


def test_a_revoked_certificate_gets_in(broker, connect):
    """There is no key for a revocation list, and one beside the authority changes nothing."""
    lines = "verify_peer = true, fail_if_no_peer_cert = true"
    conf = ssl_block(broker.directory, lines=lines, ca=True)
    with (broker.directory / "ca.pem").open("ab") as file:
        file.write(revocation_list(certificate("client")))
    broker(QUIET + conf)
    assert not admitted(connect, broker.directory, TLS_PORT, None)
    assert admitted(connect, broker.directory, TLS_PORT, certificate("client"))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(("version", "works"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_versions_of_tls(broker, version, works):
    broker(QUIET + ssl_block(broker.directory))
    context = client_context(
        broker.directory, minimum_version=ssl.TLSVersion[version], maximum_version=ssl.TLSVersion[version]
    )
    # Else the client itself would refuse the old one.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", TLS_PORT), 5) as plain:
        if works:
            with context.wrap_socket(plain) as wrapped:
                assert wrapped.version() == version.replace("_", ".")
        else:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(plain)


@pytest.mark.parametrize("cipher", ["AES128-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-RSA-AES256-GCM-SHA384"])
def test_suites_of_tls_1_2(broker, cipher):
    """Even those without forward secrecy, or with CBC and SHA-1: no key of the configuration says otherwise."""
    pair = certificate(kind="rsa")
    broker(QUIET + ssl_block(broker.directory, pair))
    context = client_context(broker.directory, maximum_version=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", TLS_PORT), 5) as plain, context.wrap_socket(plain) as wrapped:
        assert wrapped.cipher()[0] == cipher


def handshake(path, **headers):
    """Status of a websocket's opening request."""
    with socket.create_connection(("127.0.0.1", WS_PORT), 5) as connection:
        lines = [
            f"GET {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: mqtt",
            "",
            "",
        ]
        connection.sendall("\r\n".join(lines).encode())
        return int(connection.recv(1024).split()[1])


def test_a_websocket_at_an_address_looks_at_the_host(broker, connect):
    broker(QUIET + f'listeners.ws {{ bind = "127.0.0.1:{WS_PORT}/mqtt" }}\n')
    assert connect(port=WS_PORT, transport="websockets").outcome == "accepted"
    assert handshake("/mqtt", Host="127.0.0.1") == 101
    assert handshake("/mqtt", Host=f"127.0.0.1:{WS_PORT}") == 101
    assert handshake("/mqtt", Host="localhost") == 404
    assert handshake("/other", Host="127.0.0.1") == 404


def test_a_websocket_at_any_address_does_not(broker):
    broker(QUIET + f'listeners.ws {{ bind = "0.0.0.0:{WS_PORT}/mqtt" }}\n')
    assert handshake("/mqtt", Host="localhost") == 101
    assert handshake("/mqtt", Host="attacker.example") == 101
