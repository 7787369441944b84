# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Drift: what runs is compared with its file, key by key, and no value is told."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _running

PASSWORD = "correct horse battery"
FILES = {"/k": "key\n", "/c": "certificate\n", "/a": "authority\n"}
CONF = {
    "system": {"enable_ipc_internal": False},
    "listeners": {
        "ssl": {
            "bind": "0.0.0.0:8883",
            "keyfile": "/k",
            "certfile": "/c",
            "cacertfile": "/a",
            "verify_peer": True,
            "fail_if_no_peer_cert": True,
        },
        "wss": {"bind": "127.0.0.1:8086/mqtt"},
    },
    "http_server": {"port": 8081, "ip_addr": "127.0.0.1", "auth_type": "jwt"},
    "auth": {"allow_anonymous": False, "password": {"sensor": PASSWORD, "käse": "ünïcödé 密碼"}},
    "bridges": {
        "mqtt": {"up": {"server": "tls+mqtt-tcp://b:8883"}, "down": {"enable": False, "server": "x"}, "cache": {}}
    },
}
#: As a real 0.25.6 tells it.
RUNNING = {
    "basic": {"allow_anonymous": False, "ipc_internal": False},
    "tls": {
        "enable": True,
        "url": "tls+nmq-tcp://0.0.0.0:8883",
        "key": "key\n",
        "cert": "certificate\n",
        "cacert": "authority\n",
        "verify_peer": True,
        "fail_if_no_peer_cert": True,
    },
    "auth": [{"login": "käse", "password": "ünïcödé 密碼"}, {"login": "sensor", "password": PASSWORD}],
    "http_server": {
        "enable": True,
        "port": 8081,
        "addr": "127.0.0.1",
        "username": "admin",
        "password": "public",
        "auth_type": "jwt",
    },
    "bridge": {
        "nodes": [
            {"name": "down", "enable": False, "connector": {"server": "x"}},
            {"name": "up", "enable": True, "connector": {"server": "tls+mqtt-tcp://b:8883"}},
        ]
    },
}


def read(path: str) -> str:
    if path not in FILES:
        raise FileNotFoundError(path)
    return FILES[path]


def changed(where: dict, path: str, value: object) -> dict:
    result = copy.deepcopy(where)
    *parents, last = path.split(".")
    block = result
    for name in parents:
        block = block[int(name) if name.isdigit() else name]
    block[int(last) if last.isdigit() else last] = value
    return result


def test_what_runs_as_it_is_written_shows_no_drift():
    assert _running.differences(CONF, RUNNING, read) == []


def test_a_broker_of_defaults_shows_none_either():
    conf = {"http_server": {"auth_type": "jwt"}, "auth": {"password": {"a": "b"}}}
    running = {
        "basic": {"allow_anonymous": True, "ipc_internal": True},
        "tls": {"enable": False},
        "auth": [{"login": "a", "password": "b"}],
        "http_server": {
            "port": 8081,
            "addr": None,
            "username": "admin",
            "password": "public",
            "auth_type": "jwt",
        },
        "bridge": {"nodes": []},
    }
    assert _running.differences(conf, running, read) == []


def test_a_user_called_enable_is_one():
    conf = changed(CONF, "auth.password", {"enable": "text"})
    running = changed(RUNNING, "auth", [{"login": "enable", "password": "text"}])
    assert _running.differences(conf, running, read) == []
    assert _running.differences(changed(conf, "auth.password", {"enable": True}), running, read) == ["auth.password"]


def test_tls_listeners_with_names_are_not_told_and_so_no_drift():
    conf = changed(CONF, "listeners.ssl", {"one": CONF["listeners"]["ssl"]})
    running = changed(RUNNING, "tls", {"enable": False, "url": None})
    assert _running.differences(conf, running, read) == []
    assert _running.differences(conf, RUNNING, read) == ["listeners.ssl"]


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("basic.allow_anonymous", True, "auth.allow_anonymous"),
        ("basic.ipc_internal", True, "system.enable_ipc_internal"),
        ("tls.enable", False, "listeners.ssl"),
        ("tls.url", "tls+nmq-tcp://0.0.0.0:8884", "listeners.ssl.bind"),
        ("tls.verify_peer", False, "listeners.ssl.verify_peer"),
        ("tls.fail_if_no_peer_cert", False, "listeners.ssl.fail_if_no_peer_cert"),
        ("tls.key", "another", "the file in listeners.ssl.keyfile"),
        ("tls.cert", "another", "the file in listeners.ssl.certfile"),
        ("tls.cacert", None, "the file in listeners.ssl.cacertfile"),
        ("auth", [], "auth.password"),
        ("auth.0.password", "another", "auth.password"),
        ("http_server.port", 8082, "http_server.port"),
        ("http_server.addr", "0.0.0.0", "http_server.ip_addr"),
        ("http_server.password", "taken", "http_server.password"),
        ("http_server.username", "taken", "http_server.username"),
        ("http_server.auth_type", "basic", "http_server.auth_type"),
        ("bridge.nodes", [], "bridges.mqtt"),
        ("bridge.nodes.0.enable", True, "bridges.mqtt"),
        ("bridge.nodes.1.connector.server", "mqtt-tcp://attacker:1883", "bridges.mqtt"),
    ],
)
def test_each_change_of_what_runs_is_found_and_told_by_its_key_alone(path, value, found):
    assert _running.differences(CONF, changed(RUNNING, path, value), read) == [found]


@pytest.mark.parametrize("path", ["basic", "tls", "auth", "http_server", "bridge"])
@pytest.mark.parametrize("value", [None, {}, [], "x"])
def test_an_answer_that_lacks_a_part_is_drift_and_no_crash(path, value):
    assert _running.differences(CONF, changed(RUNNING, path, value), read)


def test_a_file_that_is_gone_is_drift():
    conf = changed(CONF, "listeners.ssl.certfile", "/gone")
    assert _running.differences(conf, RUNNING, read) == ["the file in listeners.ssl.certfile"]
