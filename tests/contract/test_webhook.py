"""What the broker sends by HTTP: events, and the names and passwords of those who log in."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qs
from urllib.request import Request, urlopen

import pytest
from harness import DENIED_LEAVES, QUIET, TCP, listens, topics, wait_for
from local_sockets import OTHER, PULL, PUSH, SERVICE, as_user, connected, greet, needs_a_second_user, send
from local_sockets import receive as take
from material import authority, certificate, private_pem

PORT = 9000
TOKEN = "Bearer token of the receiver"


@dataclass
class Receiver:
    """Answers with `status`, and keeps what came, and why handshakes failed."""

    status: int = 200
    requests: list[tuple[str, dict[str, str], str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def actions(self) -> dict[str, dict]:
        """The events that came, by what they tell of."""
        return {event["action"]: event for event in (json.loads(body) for _path, _headers, body in self.requests)}


@pytest.fixture
def receive(tmp_path):
    """Starts a receiver by HTTP, or with a pair by HTTPS."""
    servers = []

    def start(pair=None, status=200):
        receiver = Receiver(status)

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.requests.append((self.path, headers, body))
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def setup(self):
                if pair:
                    try:
                        self.request.do_handshake()
                    except ssl.SSLError as error:
                        receiver.failures.append(str(error))
                        raise
                super().setup()

            def log_message(self, *_arguments):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_arguments):
                pass

        server = Server(("127.0.0.1", PORT), Handler)
        if pair:
            path = tmp_path / "receiver.pem"
            path.write_bytes(private_pem(pair.key) + pair.pem)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return receiver

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def assert_good(receiver):
    """A client that trusts the CA gets through, so that whoever did not was the one who refused."""
    context = ssl.create_default_context(cadata=authority("authority").pem.decode())
    context.check_hostname = False
    with urlopen(Request(f"https://localhost:{PORT}/", b"good"), context=context, timeout=5) as answer:
        assert answer.status == 200
    assert receiver.requests.pop()[2] == "good"


def trust(broker):
    path = broker.directory / "ca.pem"
    path.write_bytes(authority("authority").pem)
    return f'ssl {{ cacertfile = "{path}" }}'


def webhook(url, lines=""):
    return (
        QUIET
        + TCP
        + (
            f'webhook {{ url = "{url}", headers {{ content-type = "application/json", authorization = "{TOKEN}" }}\n'
            f"pool_size = 2\n{lines}\n"
            'events = [{ event = "on_message_publish", topic = "seen/#" }, { event = "on_client_connack" }] }\n'
        )
    )


def test_events_messages_and_the_token_go_in_clear_by_http(broker, connect, receive):
    receiver = receive()
    broker(webhook(f"http://127.0.0.1:{PORT}/events?from=here"))
    client = connect("someone")
    assert client.publish("seen/a", "content")
    assert client.publish("other/a", "content")
    wait_for(lambda: len(receiver.actions()) == 2)
    published, connack = (receiver.actions()[name] for name in ("message_publish", "client_connack"))
    assert (published["topic"], published["payload"], published["from_client_id"]) == ("seen/a", "content", "someone")
    assert (connack["clientid"], connack["conn_ack"]) == ("someone", "success")
    path, headers, _body = receiver.requests[0]
    assert path == "/events?from=here"
    assert headers["authorization"] == TOKEN
    assert not [body for _path, _headers, body in receiver.requests if "other/a" in body]


@pytest.mark.parametrize("block", [True, False], ids=["with a CA", "without"])
def test_no_event_is_ever_sent_by_https(broker, connect, receive, block):
    """Not even to a receiver whose CA is named: the block is not used, and no CA is trusted."""
    receiver = receive(certificate("localhost"))
    running = broker(webhook(f"https://localhost:{PORT}/events", trust(broker) if block else ""))
    assert connect("someone").publish("seen/a", "content")
    wait_for(lambda: receiver.failures)
    assert receiver.requests == []
    assert_good(receiver)
    assert running.process.poll() is None


@DENIED_LEAVES
def test_the_webhook_tells_of_denied_messages(broker, connect, receive, deny_action, leaves):
    receiver = receive()
    broker(topics(deny_action) + webhook(f"http://127.0.0.1:{PORT}/events"))
    client = connect("someone", user=("u", "p"))
    client.publish("seen/a", "denied")
    client.spin(lambda: "message_publish" in receiver.actions(), 1.5)
    assert ("message_publish" in receiver.actions()) is leaves


def test_it_hangs_up_without_waiting_for_an_answer(broker, connect):
    """What stands in between must send the event on all the same."""
    with socket.create_server(("127.0.0.1", PORT)) as server:
        server.settimeout(5)
        broker(webhook(f"http://127.0.0.1:{PORT}/events"))
        assert connect("someone").publish("seen/a", "content")
        connection, _address = server.accept()
        with connection:
            connection.settimeout(5)
            came = b""
            while chunk := connection.recv(4096):
                came += chunk
    assert came.startswith(b"POST /events ")


def test_a_receiver_that_is_away_does_not_keep_clients_out(broker, connect):
    running = broker(webhook(f"http://127.0.0.1:{PORT}/events"))
    assert connect("someone").publish("seen/a", "content")
    assert running.process.poll() is None


# --- the socket by which the broker hands events to its webhook -------------------------------------------------------

SOCKET = "/tmp/nanomq_hook.ipc"


def hand_in(text, address=SOCKET):
    """Hand in an event, as the broker does."""
    with connected(address) as end:
        greet(end, PUSH, PULL)
        send(end, text.encode())
        # The other end reads before it sees that this one is gone.
        time.sleep(0.2)


@needs_a_second_user
@pytest.mark.parametrize("umask", [0o022, 0o077], ids=["usual", "as the unit has it"])
def test_another_user_hands_in_no_event_with_a_umask(broker, receive, umask):
    receiver = receive()
    broker(webhook(f"http://127.0.0.1:{PORT}/events"), user=SERVICE, umask=umask)
    wait_for(lambda: os.path.exists(SOCKET))
    with pytest.raises(PermissionError):
        as_user(OTHER, hand_in, "[0]")
    as_user(SERVICE, hand_in, "[1]")
    wait_for(lambda: receiver.requests)
    assert [body for _path, _headers, body in receiver.requests] == ["[1]"]


@needs_a_second_user
def test_without_a_umask_what_any_user_hands_in_is_sent_with_the_token(broker, receive):
    receiver = receive()
    broker(webhook(f"http://127.0.0.1:{PORT}/events"), user=SERVICE, umask=0)
    wait_for(lambda: os.path.exists(SOCKET))
    as_user(OTHER, hand_in, '{"forged": 1}')
    wait_for(lambda: receiver.requests)
    ((_path, headers, body),) = receiver.requests
    assert (body, headers["authorization"]) == ('{"forged": 1}', TOKEN)


def test_the_url_of_the_socket_can_put_it_on_the_network(broker, receive):
    receiver = receive()
    urls = 'hook_ipc_url = "tcp://127.0.0.1:9997", cmd_ipc_url = "ipc:///tmp/cmd.ipc"'
    broker(webhook(f"http://127.0.0.1:{PORT}/events") + f"system {{ {urls} }}\n")
    wait_for(lambda: listens(9997))
    hand_in("[2]", ("127.0.0.1", 9997))
    wait_for(lambda: receiver.requests)
    ((_path, headers, body),) = receiver.requests
    assert (body, headers["authorization"]) == ("[2]", TOKEN)


@pytest.fixture
def theirs():
    """The socket, made before by another user for everybody."""
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.settimeout(5)
        theirs.bind(SOCKET)
        os.chown(SOCKET, OTHER, OTHER)
        os.chmod(SOCKET, 0o777)
        theirs.listen(64)
        yield theirs


@needs_a_second_user
def test_whoever_made_the_socket_before_gets_the_events(broker, connect, receive, theirs):
    """Whatever the umask: the broker takes it for its own, and its receiver hears of nothing."""
    receiver = receive()
    events = overheard(theirs)
    broker(webhook(f"http://127.0.0.1:{PORT}/events"), user=SERVICE, umask=0o077)
    assert connect("someone").publish("seen/a", "content")
    wait_for(lambda: "content" in [event.get("payload") for event in events])
    assert receiver.requests == []


@needs_a_second_user
def test_whoever_made_the_socket_before_and_is_silent_keeps_the_broker_from_starting(broker, theirs):
    running = broker(webhook(f"http://127.0.0.1:{PORT}/events"), user=SERVICE, umask=0o077)
    assert running.exit_code() == 1


def overheard(theirs):
    """The events that are handed to a socket, as they come."""
    events = []

    def keep(end):
        with contextlib.suppress(OSError, struct.error), end:
            greet(end, PULL, PUSH)
            while True:
                events.append(json.loads(take(end)))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                end, _address = theirs.accept()
                threading.Thread(target=keep, args=(end,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return events


# --- logins -----------------------------------------------------------------------------------------------------------


def asked(url, lines=""):
    return (
        QUIET
        + TCP
        + (
            "auth { allow_anonymous = false\n"
            f'http_auth {{ auth_req {{ url = "{url}", method = "POST"\n'
            f'headers {{ content-type = "application/x-www-form-urlencoded", x-token = "{TOKEN}" }}\n'
            f'params {{ clientid = "%c", username = "%u", password = "%P" }}\n{lines} }}\n'
            'timeout = "5s", connect_timeout = "5s", pool_size = 4 } }\n'
        )
    )


def turned_away(client):
    """By a closed connection, or before 0.25.3 a code, which is not always the one for a wrong password."""
    return client.outcome == "closed" or (isinstance(client.outcome, int) and client.outcome >= 128)


USER = ("someone", "password of someone")


@pytest.mark.parametrize("status", [200, 401])
def test_logins_are_decided_over_http_and_go_there_in_clear(broker, connect, receive, status):
    receiver = receive(status=status)
    broker(asked(f"http://127.0.0.1:{PORT}/login"))
    outcome = connect("here", user=USER).outcome
    path, headers, body = receiver.requests[0]
    assert path == "/login"
    assert headers["x-token"] == TOKEN
    assert parse_qs(body) == {"clientid": ["here"], "username": [USER[0]], "password": [USER[1]]}
    assert (outcome == "accepted") is (status == 200)


def test_no_login_is_ever_admitted_over_https(broker, connect, receive):
    receiver = receive(certificate("localhost"))
    broker(asked(f"https://localhost:{PORT}/login", trust(broker)))
    assert turned_away(connect("here", user=USER))
    wait_for(lambda: receiver.failures)
    assert receiver.requests == []
    assert_good(receiver)


def test_no_login_is_admitted_while_nobody_answers(broker, connect):
    broker(asked(f"http://127.0.0.1:{PORT}/login"))
    assert turned_away(connect("here", user=USER))
