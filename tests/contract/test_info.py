"""What a running broker tells of itself, as the module nanomq_info asks it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _hocon, _policy, _running
from harness import HTTP_PORT, QUIET, TCP
from material import certificate, private_pem, public_pem, token

SECRETS = ("s3cret-user", "s3cret-bridge", "s3cret-word")


@pytest.fixture
def running(broker):
    """A broker with every kind of secret, and tokens for REST."""
    place = broker.directory
    (place / "jwt.pub").write_bytes(public_pem())
    (place / "cert.pem").write_bytes(certificate().pem)
    (place / "key.pem").write_bytes(private_pem(certificate().key, b"s3cret-word"))
    return broker(
        QUIET
        + TCP
        + f'http_server {{ port = {HTTP_PORT}, ip_addr = "127.0.0.1", auth_type = jwt\n'
        + f'jwt {{ public {{ keyfile = "{place}/jwt.pub" }} }} }}\n'
        + f'listeners.ssl {{ bind = "127.0.0.1:8883", keyfile = "{place}/key.pem", certfile = "{place}/cert.pem"\n'
        + 'key_password = "s3cret-word" }\n'
        + 'auth { allow_anonymous = false, password { "alice" = "s3cret-user" } }\n'
        + 'bridges.mqtt.up { server = "mqtt-tcp://127.0.0.1:9", password = "s3cret-bridge", enable = false }\n'
    )


def test_it_tells_what_it_is_and_who_is_there_and_no_secret(broker, running, connect):
    client = connect("device-1", user=("alice", "s3cret-user"))
    assert client.subscribe("a/b", 1) == 1
    found = _running.look("127.0.0.1", HTTP_PORT, token(), 5, 10)
    assert found["version"].startswith(".".join(map(str, broker.version)))
    assert 0 <= found["uptime_seconds"] < 60
    assert [(one["client_id"], one["username"]) for one in found["clients"]] == [("device-1", "alice")]
    assert found["subscriptions"] == [{"clientid": "device-1", "topic": "a/b", "qos": 1}]
    assert [one["name"] for one in found["bridges"]] == ["up"]
    assert found["configuration"]["auth"] == [{"login": "alice", "password": "***"}]
    assert found["configuration"]["tls"]["key"] == "***"
    text = json.dumps(found)
    assert [secret for secret in SECRETS if secret in text] == []
    assert "PRIVATE KEY" not in text


def test_what_runs_is_what_the_file_says(broker, running):
    """The audit's question, put to the broker itself."""
    del running
    conf = _hocon.parse((broker.directory / "nanomq.conf").read_text())

    def drift() -> list[str]:
        return _running.drift("127.0.0.1", HTTP_PORT, token(), conf, lambda path: Path(path).read_text(), 5)

    if broker.does("bridges.enable is heeded"):
        assert drift() == []
    conf["auth"]["allow_anonymous"] = True
    assert "auth.allow_anonymous" in drift()


def test_a_token_that_has_expired_is_no_token(running):
    del running
    with pytest.raises(_policy.NotObserved, match="401"):
        _running.look("127.0.0.1", HTTP_PORT, token(lifetime=-300), 5, 10)
