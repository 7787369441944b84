# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What a second host sees: a port counts for what it says, and what cannot be looked at does not pass."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.edgesec.nanomq.plugins.module_utils import _outside
from ansible_collections.edgesec.nanomq.plugins.modules import audit_outside

RULES = {"NMQ-NET-010", "NMQ-NET-011", "NMQ-NET-012"}


@contextlib.contextmanager
def serving(talk):
    """A server on loopback that lets `talk` have each connection; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    threading.Thread(target=speak, args=(connection,), daemon=True).start()

        def speak(connection: socket.socket) -> None:
            with contextlib.suppress(OSError), connection:
                talk(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


class Rest(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401 if self.path.startswith("/api/v4/") else 404)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@contextlib.contextmanager
def rest():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rest) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def connack(connection):
    if connection.recv(64)[:1] == b"\x10":
        connection.sendall(b"\x20\x02\x00\x05")


def hang_up(connection):
    connection.recv(64)


def websocket(connection):
    head = connection.recv(4096)
    if b"Upgrade: websocket" in head and head.startswith(b"GET /mqtt "):
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        connection.recv(64)
    else:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def banner(connection):
    connection.sendall(b"SSH-2.0-x\r\n")
    connection.recv(64)
    connection.sendall(b"no\r\n")
    connection.recv(4096)


@pytest.fixture(autouse=True)
def no_usual_ports(monkeypatch):
    """What else runs on this machine is no business of the tests."""
    monkeypatch.setattr(_outside, "USUAL_PORTS", ())


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        (rest, "rest"),
        (lambda: serving(connack), "mqtt"),
        (lambda: serving(hang_up), "mqtt"),
        (lambda: serving(websocket), "websocket"),
        (lambda: serving(banner), "open"),
    ],
    ids=["rest", "connack", "hangs up", "websocket", "another service"],
)
def test_a_port_is_what_it_says(server, kind):
    with server() as port:
        assert _outside.answer("127.0.0.1", port, 1.0)[0] == kind


def test_a_closed_port_is_closed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert _outside.look("127.0.0.1", [port], [], 0.5) == {"ports": []}


def run(capsys, **arguments) -> dict:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        audit_outside.main()
    return json.loads(capsys.readouterr().out)


def test_what_is_found_is_judged_and_can_be_waived(capsys):
    with rest() as port:
        found = run(capsys, address="127.0.0.1", private=[port], timeout=1)
        waiver = {"rule": "NMQ-NET-010", "reason": "a lab", "expires": "2999-12-31"}
        odd = {"rule": "NMQ-NET-999", "reason": "x", "expires": "2999-12-31"}
        waived = run(capsys, address="127.0.0.1", private=[port], timeout=1, waivers=[waiver, odd])
    assert [(one["id"], one["waived"]) for one in found["findings"]] == [("NMQ-NET-010", "")]
    assert [(one["id"], one["waived"]) for one in waived["findings"]] == [("NMQ-NET-010", "a lab")]
    assert set(found["passed"]) == set(waived["passed"]) == RULES - {"NMQ-NET-010"}


def test_a_private_port_that_answers_is_found(capsys):
    with serving(banner) as port:
        assert [one["id"] for one in run(capsys, address="127.0.0.1", private=[port], timeout=1)["findings"]] == [
            "NMQ-NET-012"
        ]
        assert run(capsys, address="127.0.0.1", public=[port], timeout=1)["findings"] == []


def test_a_host_that_cannot_be_reached_passes_nothing(capsys):
    found = run(capsys, address="nowhere.invalid", private=[1], timeout=1)
    assert {one["id"] for one in found["findings"] if not one["observed"]} == RULES
    assert found["passed"] == []
