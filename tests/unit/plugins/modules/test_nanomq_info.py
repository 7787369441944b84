# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking a running broker, against servers that say what the real one says, and against others that mean harm."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _hocon, _running
from hypothesis import given
from hypothesis import strategies as st

TOKEN = "aaaa.bbbb.cccc"
SECRETS = ("s3cret-key", "s3cret-pass", "s3cret-user", "s3cret-rest", "s3cret-bridge", "s3cret-header", "s3cret-url")
TLS = {"enable": True, "url": "tls+nmq-tcp://0.0.0.0:8883", "key_password": "s3cret-pass", "key": "s3cret-key"}
NODE = {
    "name": "up",
    "enable": False,
    "connector": {"server": "mqtt-tcp://u:s3cret-url@b:1883", "username": "u", "password": "s3cret-bridge"},
    "tls": TLS,
}
# The shape is that of a real 0.25.6.
ANSWERS = {
    "brokers": [{"version": "0.25.6-8", "uptime": "1 Hours, 2 minutes, 3 seconds", "node_status": "Running"}],
    "configuration": {
        "basic": {"allow_anonymous": False, "url": None},
        "tls": {**TLS, "cert": "certificate", "cacert": None},
        "auth": [{"login": "sensor", "password": "s3cret-user"}],
        "auth_http": {"auth_req": {"url": "http://h/", "headers": {"X-Own": "s3cret-header"}, "params": []}},
        "http_server": {"port": 8081, "password": "s3cret-rest"},
        "bridge": {"nodes": [NODE]},
    },
    "clients": [{"client_id": "c1", "username": "u"}, {"client_id": "c2", "username": ""}],
    "subscriptions": [{"clientid": "c1", "topic": "a/b", "qos": 1}],
}


@contextlib.contextmanager
def rest(answers: dict) -> Iterator[int]:
    """A REST server; an answer is data, bytes as they are, or a function that writes them."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path.removeprefix("/api/v4/"))
            if self.headers["Authorization"] != f"Bearer {TOKEN}" or answer is None:
                self.send_error(401 if answer is not None else 404)
                return
            with contextlib.suppress(OSError):
                self.send_response(200)
                self.end_headers()
                if callable(answer):
                    answer(self.wfile)
                else:
                    whole = answer if isinstance(answer, bytes) else json.dumps({"code": 0, "data": answer}).encode()
                    self.wfile.write(whole)

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def ask(run_module, answers: dict, **options) -> dict:
    with rest(answers) as port:
        return run_module("nanomq_info", {"token": TOKEN, "port": port, "timeout": 1, **options})


def test_what_the_broker_tells_comes_back(run_module):
    found = ask(run_module, ANSWERS)
    assert found["failed"] is False
    assert found["changed"] is False
    assert found["version"] == "0.25.6-8"
    assert found["uptime_seconds"] == 3723
    assert found["clients"] == ANSWERS["clients"]
    assert found["subscriptions"] == ANSWERS["subscriptions"]
    assert found["configuration"]["auth"] == [{"login": "sensor", "password": "***"}]
    assert found["configuration"]["tls"]["cert"] == "certificate"
    assert found["configuration"]["tls"]["cacert"] is None
    assert found["bridges"][0]["connector"]["server"] == "mqtt-tcp://***@b:1883"
    assert isinstance(found["listeners"], list)


def test_no_secret_comes_back(run_module):
    text = json.dumps(ask(run_module, ANSWERS))
    assert [secret for secret in SECRETS if secret in text] == []
    assert TOKEN not in text


def test_clients_are_counted_though_not_all_are_listed(run_module):
    found = ask(run_module, ANSWERS, most=1)
    assert found["clients"] == ANSWERS["clients"][:1]
    assert found["clients_count"] == 2
    assert found["subscriptions_count"] == 1


def test_check_mode_does_the_same(run_module):
    with rest(ANSWERS) as port:
        found = run_module("nanomq_info", {"token": TOKEN, "port": port}, check=True)
    assert found["version"] == "0.25.6-8"


def endless(stream):
    while True:
        stream.write(b"x" * 65536)


def trickle(stream):
    for _second in range(100):
        stream.write(b" ")
        stream.flush()
        time.sleep(0.2)


HOSTILE = {
    "no JSON": b"<html>",
    "nothing": b"",
    "no object": b"[]",
    "no data": b'{"code": 0}',
    "text": b'{"data": "text"}',
    "null": b'{"data": null}',
    "deep": b'{"data": ' + b"[" * 100_000,
    "not UTF-8": b'{"data": "\xff\xfe"}',
}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        *((path, answer) for path in ANSWERS for answer in HOSTILE.values()),
        ("brokers", endless),
        ("configuration", trickle),
    ],
)
def test_a_server_that_is_no_nanomq_is_told_in_time(run_module, path, answer):
    started = time.monotonic()
    found = ask(run_module, {**ANSWERS, path: answer})
    assert found["failed"] is True
    assert "127.0.0.1" in found["msg"]
    assert time.monotonic() - started < 20
    assert not any(secret in json.dumps(found) for secret in SECRETS)


def test_a_token_that_is_refused_is_told(run_module):
    found = ask(run_module, ANSWERS, token="other.token.here")
    assert found["failed"] is True
    assert "401" in found["msg"]
    assert "other.token.here" not in json.dumps(found)


def test_a_port_that_is_closed_is_told(run_module):
    with rest(ANSWERS) as port:
        pass
    found = run_module("nanomq_info", {"token": TOKEN, "port": port, "timeout": 1})
    assert found["failed"] is True
    assert "answers the token with nothing" in found["msg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 0}, "port: must be from 1 to 65535"),
        ({"most": -1}, "most: must not be negative"),
        ({"token": "a\r\nX-Other: b"}, "token: is none"),
        ({"token": "tökén"}, "token: is none"),
    ],
)
def test_a_bad_option_is_refused(run_module, options, message):
    found = run_module("nanomq_info", {"token": TOKEN, **options})
    assert found["failed"] is True
    assert message in found["msg"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=20,
)


@given(json_values)
def test_masking_keeps_the_shape_and_never_fails(value):
    shown = _running.without_secrets(value)
    assert type(shown) is type(value)
    if isinstance(value, dict):
        assert shown.keys() == value.keys()


@pytest.mark.parametrize("name", ["password", "Password", "key", "KEY", "key_password", "token", "api_key", "secret"])
@given(value=st.text(min_size=1) | st.integers() | st.lists(st.text(min_size=1), min_size=1) | st.just({"a": "b"}))
def test_a_secret_of_any_type_is_masked(name, value):
    assert _running.without_secrets({"x": [{name: value}]}) == {"x": [{name: _hocon.MASK}]}


@pytest.mark.parametrize(
    "text", ["", "1 Hours", "1 Hours, 2 minutes, 3 seconds ", "\u0661 Hours, 2 minutes, 3 seconds", "9" * 99]
)
def test_an_uptime_in_other_words_is_none(text):
    assert _running._seconds(text) is None
