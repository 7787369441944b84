"""The schema: what is refused, and in which words."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import confs, legal_keys, texts


def at(path: str, value) -> dict:
    """A configuration with one value; ``[]`` makes a list of one."""
    for segment in reversed(_schema.split(path)):
        value = [value] if segment == "[]" else {segment: value}
    return value


def messages(conf, **how) -> list:
    return [str(problem) for problem in _schema.validate(conf, **how)]


# (path, value, start of the message)
REFUSED = (
    # not a key
    ("auth.allow_anonimous", False, "unknown key; did you mean auth.allow_anonymous?"),
    ("auth.Allow_Anonymous", False, "unknown key; did you mean auth.allow_anonymous?"),
    ("allow_anonymous", False, "unknown key; did you mean auth.allow_anonymous?"),
    ("http_server.paswd", "x", "unknown key; did you mean http_server.password?"),
    ("bridges.mqtt.hub.sever", "x", "unknown key; did you mean bridges.mqtt.hub.server?"),
    ("auth.acl.rules[].topic", ["a"], "unknown key; did you mean auth.acl.rules[0].topics?"),
    ("zzz", 1, "unknown key"),
    ("http_server.enable", False, "not read by the broker: the block alone starts the server"),
    ("http_server.url", "x", "not read by the broker; use http_server.ip_addr"),
    ("auth.cache", {"ttl": "1m"}, "not read by the broker"),
    ("exchange_client", {"a": 1}, "not read by the broker"),
    ("listeners.wss.keyfile", "/k", "not read by the broker"),
    ("bridges.mqtt.hub.ssl.verify_peer", True, "not read by the broker for bridges"),
    # booleans
    ("auth.allow_anonymous", "false", "must be true or false without quotes"),
    ("auth.allow_anonymous", 0, "must be true or false, not a number"),
    ("listeners.ssl.verify_peer", "true", "must be true or false without quotes"),
    # numbers
    ("http_server.port", "8081", "must be a number without quotes"),
    ("http_server.port", True, "must be a number, not a boolean"),
    ("http_server.port", 0, "must be a port from 1 to 65535"),
    ("http_server.port", -1, "must be a port from 1 to 65535"),
    ("http_server.port", 65536, "must be a port from 1 to 65535"),
    ("http_server.port", 8081.0, "must be a whole number"),
    ("mqtt.max_mqueue_len", 0, "must be between 1 and"),
    ("mqtt.max_mqueue_len", -5, "must be between 1 and"),
    ("mqtt.max_mqueue_len", 2**31, "must be between 1 and"),
    ("mqtt.max_mqueue_len", True, "must be a number, not a boolean"),
    ("mqtt.max_mqueue_len", [1], "must be a number, not a list"),
    ("mqtt.keepalive_multiplier", 0, "must be a number above 0"),
    ("mqtt.keepalive_multiplier", float("nan"), "must be a number above 0"),
    ("mqtt.keepalive_multiplier", float("inf"), "must be a number above 0"),
    ("mqtt.keepalive_multiplier", 1e-9, "must be a number that needs no exponent"),
    ("mqtt.keepalive_multiplier", "1.5", "must be a number without quotes"),
    ("bridges.mqtt.hub.proto_ver", 6, "must be between 3 and 5"),
    ("bridges.mqtt.hub.forwards[].qos", 3, "must be between 0 and 2"),
    ("bridges.mqtt.hub.conn_properties.receive_maximum", 65536, "must be between 1 and 65535"),
    # times and sizes
    ("mqtt.retry_interval", 10, "must be a time such as 10s"),
    ("mqtt.retry_interval", "10", "must be a time such as 10s"),
    ("mqtt.retry_interval", "10ms", "must be a time such as 10s"),
    ("mqtt.retry_interval", "10S", "must be a time such as 10s"),
    ("mqtt.retry_interval", "10 s", "must be a time such as 10s"),
    ("mqtt.retry_interval", "-1s", "must be a time such as 10s"),
    ("mqtt.retry_interval", "1.5s", "must be a time such as 10s"),
    ("mqtt.retry_interval", "10s\n", "must be a time such as 10s"),
    ("bridges.mqtt.hub.keepalive", "65536s", "must be between 0 and 65535"),
    ("mqtt.max_packet_size", "10", "must be a size such as 512KB"),
    ("mqtt.max_packet_size", "10XB", "must be a size such as 512KB"),
    ("mqtt.max_packet_size", "1.5MB", "must be a size such as 512KB"),
    ("mqtt.max_packet_size", "0KB", "must be between 1 and"),
    ("mqtt.max_packet_size", 0, "must be between 1 and"),
    ("mqtt.max_packet_size", "4GB", "must be between 1 and"),
    ("mqtt.max_packet_size", True, "must be a size such as 512KB"),
    # choices
    ("http_server.auth_type", "JWT", "must be one of basic, jwt, no_auth"),
    ("http_server.auth_type", "none", "must be one of basic, jwt, no_auth"),
    ("auth.no_match", False, "must be one of allow, deny"),
    ("auth.acl.rules[].permit", "Allow", "must be one of allow, deny"),
    ("auth.http_auth.auth_req.method", "get", "must be one of GET, POST"),
    ("log.to[]", "stdout", "must be one of file, console, syslog, uds"),
    # strings
    ("http_server.password", "a\\b", "must not hold a backslash"),
    ("http_server.password", "a\0b", "must not hold a line break, NUL"),
    ("http_server.password", "a\nb", "must not hold a line break"),
    ("http_server.password", "a\rb", "must not hold a line break"),
    ("http_server.password", "a\tb", "must not hold a line break, NUL or another control"),
    ("http_server.password", "a\x7fb", "must not hold a line break"),
    ("http_server.password", "a\u2028b", "must not hold a line break"),
    ("http_server.password", "a\ud800b", "must be valid Unicode"),
    ("http_server.password", 12345, "must be a string, not a number: the broker ignores"),
    ("http_server.password", True, "must be a string, not a boolean"),
    ("http_server.password", ["x"], "must be a string, not a list"),
    ("auth.acl.rules[].topics[]", 5, "must be a string, not a number"),
    ("auth.acl.rules[].topics[]", None, "must not be null"),
    ("bridges.mqtt.hub.forwards[].prefix", "a/#", "must not hold a wildcard"),
    ("auth.http_auth.auth_req.params.user", "%x", "must be one of the placeholders"),
    ("auth.http_auth.auth_req.params.user", "%u@plant", "must be one of the placeholders"),
    ("auth.http_auth.auth_req.params.plant", "one", "must be one of the placeholders"),
    # rules
    ("system.cmd_ipc_url", "tcp://0.0.0.0:9998", "must begin with ipc:///"),
    ("system.hook_ipc_url", "ipc://hook.ipc", "must begin with ipc:///"),
    ("system.hook_ipc_url", "IPC:///tmp/hook.ipc", "must begin with ipc:///"),
    ("system.hook_ipc_url", "ipc:///" + "a" * 107, "must have a path of at most 107 bytes"),
    ("rules.repub.rules[].server", "http://far.example", "must begin with mqtt-tcp://: the broker crashes"),
    ("rules.repub.rules[].server", "127.0.0.1:1883", "must begin with mqtt-tcp://: the broker crashes"),
    ("rules.repub.rules[].server", "mqtt-quic://far.example:14567", "must begin with mqtt-tcp://: the broker crashes"),
    ("rules.repub.rules[].server", 1883, "must be a string, not a number"),
    ("rules.repub.rules[].proto_ver", 3, "must be between 4 and 5"),
    *(
        ("rules.repub.rules[].sql", sql, "must be like SELECT topic")
        for sql in (
            "",
            "nonsense",
            'SELECT FROM "a"',
            'SELECT colour FROM "a"',
            'SELECT Topic FROM "a"',
            'SELECT  topic FROM "a"',
            'SELECT topic, FROM "a"',
            'SELECT topic AS t FROM "a"',
            'SELECT payload.from FROM "a"',
            'SELECT topic FROM "where/#"',
            "SELECT topic FROM a",
            "SELECT topic",
            'SELECT topic FROM "a" WHERE',
            'SELECT topic FROM "a" WHERE colour = 1',
            'SELECT topic FROM "a" WHERE qos',
            "SELECT topic FROM \"a\" WHERE topic = 'sand/1'",
        )
    ),
    # addresses
    ("http_server.ip_addr", "", "must not be empty: the broker then binds to 0.0.0.0"),
    ("http_server.ip_addr", "999.1.1.1", "must be an IP address"),
    ("http_server.ip_addr", "127.0.0.1:9", "must be an IP address"),
    ("http_server.ip_addr", "::1", "must be an IP address (IPv6 in brackets)"),
    ("http_server.ip_addr", "[127.0.0.1]", "must be an IP address"),
    ("listeners.tcp.bind", "0.0.0.0", "must be host:port"),
    ("listeners.tcp.bind", "nmq-tcp://0.0.0.0:1883", "must be host:port"),
    ("listeners.tcp.bind", "0.0.0.0:0", "must have a port from 1 to 65535"),
    ("listeners.ssl.bind", "0.0.0.0:70000", "must have a port from 1 to 65535"),
    ("listeners.ssl.bind", 8883, "must be a string, not a number"),
    ("listeners.tcp.bind", "127.0.0.1:1883/mqtt", "must have no path: the broker exits"),
    ("listeners.ssl.bind", "[::1]:8883/mqtt", "must have no path: the broker exits"),
    ("listeners.ssl.one.bind", "0.0.0.0:8883/", "must have no path: the broker exits"),
    # shapes
    ("http_server", "x", "must be a block, not a string"),
    ("http_server", {}, "must not be an empty block"),
    ("auth.password", {}, "must not be an empty block"),
    ("http_server", [], "must be a block, not a list"),
    ("log.to", [], "must not be an empty list: the broker crashes"),
    ("auth.acl.rules", [], "must not be an empty list"),
    ("auth.acl.rules[].topics", [], "must not be an empty list"),
    ("log.to", "console", "must be a list, not a string"),
    ("http_server.port", {"a": 1}, "must be a number, not a block"),
    # names
    ("auth.password.enable", "x", "is a reserved word here"),
    ("auth.password.Enable", "x", "is a reserved word here"),
    ("bridges.mqtt.Cache", {"server": "x"}, "is a reserved word here"),
    ("preset.session.cache", {"clientid": "x"}, "is a reserved word here"),
)


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_refused(path, value, message):
    found = _schema.validate(at(path, value), partial=True)
    # "[]" of the table is index 0 of the configuration
    assert [problem.path for problem in found] == [path.replace("[]", "[0]")]
    assert found[0].message.startswith(message)


@pytest.mark.parametrize("name", ["", '"lead', "back\\slash", "line\nbreak", "nul\0", 123, True, None])
def test_refused_names_of_users(name):
    found = _schema.validate({"auth": {"password": {name: "x"}}}, partial=True)
    assert len(found) == 1
    assert "the name must" in found[0].message


@pytest.mark.parametrize("name", ["a.b", 'q"r', "sp ace", "ü", "true", "5", "a#b//c{}[]=:,$", "include", "enabled"])
def test_names_that_are_no_trouble(name):
    assert messages({"auth": {"password": {name: "x"}}}) == []


# (configuration, messages): rules that concern several keys
BETWEEN_KEYS = (
    (
        {"system": {"hook_ipc_url": "ipc:///a"}},
        ["system.cmd_ipc_url: is required beside hook_ipc_url: the broker crashes without it"],
    ),
    (
        {"system": {"cmd_ipc_url": "ipc:///a"}},
        ["system.hook_ipc_url: is required beside cmd_ipc_url: the broker ignores that without it"],
    ),
    ({"system": {"hook_ipc_url": "ipc:///a", "cmd_ipc_url": "ipc:///b"}}, []),
    *(
        (
            {"auth": {"http_auth": {request: {"url": "http://localhost"}}}},
            [f"auth.http_auth.{request}.method: is required: the broker crashes without it"],
        )
        for request in ("auth_req", "super_req", "acl_req")
    ),
    (
        {"listeners": {"tcp": {"bind": "127.0.0.1:1883", "enable": False}}},
        ["listeners.tcp.enable: false is ignored by the broker; leave the block out"],
    ),
    (
        {"listeners": {"ssl": {"a": {"bind": "127.0.0.1:8883", "enable": False}}}},
        ["listeners.ssl.a.enable: false is ignored by the broker; leave the block out"],
    ),
    ({"listeners": {"ssl": {"bind": "127.0.0.1:8883", "enable": False}}}, []),
    (
        {"listeners": {"tcp": {"enable": True}}},
        ["listeners.tcp.bind: is required: the broker binds to 0.0.0.0:1883 without it"],
    ),
    (
        {"listeners": {"ssl": {"keyfile": "/k"}}},
        ["listeners.ssl.bind: is required: the broker opens no listener without it"],
    ),
    (
        {"listeners": {"ssl": {"a": {"keyfile": "/k"}}}},
        ["listeners.ssl.a.bind: is required: the broker opens no listener without it"],
    ),
    ({"listeners": {"ssl": {"a": {"bind": "0.0.0.0:8883"}}}}, []),
    ({"log": {"to": ["console"]}}, ["log.level: is required: the broker crashes without it"]),
    ({"log": {"to": ["uds"], "level": "warn"}}, ["log.uds_addr: is required where log.to holds uds"]),
    ({"webhook": {"pool_size": 2}}, ["webhook.url: is required: the broker crashes without it"]),
    (
        {"preset": {"session": {"a": {"topic": [{"qos": 1}]}}}},
        [
            "preset.session.a.topic[0].remote_topic: is required: the broker crashes without it",
            "preset.session.a.clientid: is required: the broker crashes without it",
        ],
    ),
    (
        {"bridges": {"mqtt": {"a.b": {"enable": False}}}},
        ['bridges.mqtt."a.b".server: is required: the broker exits without it'],
    ),
    (
        {"rules": {"sqlite": {"rules": [{"table": "t"}]}}},
        [
            "rules.sqlite.rules[0].sql: is required: the broker crashes without the one, and stores nothing without "
            "the other",
            "rules.sqlite.path: is required: the broker writes to /tmp/rule_engine.db without it",
        ],
    ),
    (
        {"rules": {"repub": {"rules": [{"sql": 'SELECT * FROM "a"', "server": "mqtt-tcp://127.0.0.1:1"}]}}},
        [
            "rules.repub.rules[0].topic: is required: the broker crashes without sql or server, and the other server "
            "hangs up without topic"
        ],
    ),
    (
        {"auth": {"acl": {"rules": [{"username": "a"}]}}},
        ["auth.acl.rules[0].permit: is required: the broker drops a rule without it"],
    ),
    (
        {"auth": {"acl": {"rules": [{"permit": "allow"}, {"permit": "allow", "username": "a", "ipaddr": "::1"}]}}},
        ["auth.acl.rules[1]: has several subjects, of which the broker reads ipaddr alone; use `and`"],
    ),
    (
        {"auth": {"acl": {"rules": [{"permit": "deny", "and": [{"username": "a", "clientid": "b"}]}]}}},
        ["auth.acl.rules[0].and[0]: has several subjects, of which the broker reads one; make them separate items"],
    ),
    ({}, ["(configuration): must not be empty: the broker takes that for a syntax error"]),
    ({"log": None}, ["(configuration): must not be empty: the broker takes that for a syntax error"]),
)


@pytest.mark.parametrize(("conf", "expected"), BETWEEN_KEYS)
def test_between_keys(conf, expected):
    assert messages(conf) == expected
    assert messages(conf, partial=True) == []


@pytest.mark.parametrize(
    ("sql", "fields"),
    [
        ('SELECT * FROM "a/#"', [("*", None)]),
        ('select topic,payload from "a"', [("topic", None), ("payload", None)]),
        (
            "SELECT topic as t, payload.a.b as c FROM \"a\" WHERE t = 'x' and c >= 1",
            [("topic", "t"), ("payload.a.b", "c")],
        ),
        ("SELECT id FROM \"a\" where qos=1 and payload.x != 'y z'", [("id", None)]),
    ],
)
def test_the_sql_of_a_rule(sql, fields):
    assert _schema.rule_fields(sql) == fields
    rule = {"sql": sql, "server": "mqtt-tcp://127.0.0.1:1", "topic": "t"}
    assert messages({"rules": {"repub": {"rules": [rule]}}}) == []


def test_all_problems_at_once_and_in_order():
    conf = {
        "auth": {"allow_anonimous": False, "no_match": "no"},
        "http_server": {"port": "8081", "enable": False},
        "system": {"hook_ipc_url": "ipc:///a"},
    }
    assert [problem.path for problem in _schema.validate(conf)] == [
        "auth.allow_anonimous",
        "auth.no_match",
        "http_server.port",
        "http_server.enable",
        "system.cmd_ipc_url",
    ]


@pytest.mark.parametrize(
    ("version", "refused"),
    [("0.23.0", True), ("0.22.999", True), ("0.23.1", False), ("0.25.6-8", False), ("v0.25.6", False), (None, False)],
)
def test_a_key_needs_its_version(version, refused):
    found = messages({"http_server": {"ip_addr": "127.0.0.1"}}, version=version)
    expected = "http_server.ip_addr: needs NanoMQ 0.23.1 or later: an older one ignores it in silence"
    assert found == ([expected] if refused else [])


def test_version_must_be_one():
    with pytest.raises(ValueError, match="not a version"):
        _schema.validate({"log": {"level": "warn"}}, version="latest")


def test_none_is_left_out_and_takes_its_block_along():
    conf = {"http_server": {"port": None, "jwt": {"public": {"keyfile": None}}}, "log": {"level": "warn", "dir": None}}
    before = copy.deepcopy(conf)
    assert _schema.prune(conf) == {"log": {"level": "warn"}}
    assert messages(conf) == []
    assert conf == before


@pytest.mark.parametrize("conf", [None, [], "x", 5])
def test_a_configuration_is_a_block(conf):
    assert len(_schema.validate(conf)) == 1


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("http_server.port", "http_server.port"),
        ("log.to", "log.to[]"),
        ("auth.acl.rules[3].permit", "auth.acl.rules[].permit"),
        ("auth.acl.rules[].permit", "auth.acl.rules[].permit"),
        ('auth.password."a.b"', "auth.password.<user>"),
        ("auth.password.enable", "auth.password.enable"),
        ("listeners.ssl.bind", "listeners.ssl.bind"),
        ("listeners.ssl.main.bind", "listeners.ssl.<name>.bind"),
        (("auth", "password", "a.b"), "auth.password.<user>"),
    ],
)
def test_lookup(path, pattern):
    assert _schema.lookup(path).path == pattern


@pytest.mark.parametrize("path", ["", "http_server", "http_server.enable", "auth.cache.ttl", "x", "log.to[0].x"])
def test_lookup_of_what_is_no_key(path):
    assert _schema.lookup(path) is None


def test_nearest_has_no_idea():
    assert _schema.nearest("qqqqqq") is None
    assert _schema.nearest("http_server.enable") is None


def test_keys_are_unique_and_found_under_their_own_path():
    paths = [key.path for key in _schema.KEYS]
    assert len(set(paths)) == len(paths)
    assert all(_schema.lookup(path).path == path for path in paths)


def test_every_password_and_every_header_is_a_secret():
    secret = {key.path for key in _schema.KEYS if key.secret}
    named = {p for p in map(_schema.split, (k.path for k in _schema.KEYS)) if p[-1] in ("password", "key_password")}
    assert {_schema.join(path) for path in named} <= secret
    assert {"auth.password.<user>", "webhook.headers.<name>", "auth.http_auth.acl_req.headers.<name>"} <= secret
    assert "auth.password.enable" not in secret


def test_defaults_are_legal():
    """Or say in words how the broker computes them."""
    for key in _schema.KEYS:
        if key.default is not None and not (key.type == "int" and isinstance(key.default, str)):
            assert _schema._CHECKS[key.type](key, key.default) is None, key.path


@given(st.lists(st.text(min_size=1).filter(lambda s: "\\" not in s and s != "[]") | st.integers(0, 9)))
def test_split_undoes_join(segments):
    if segments and isinstance(segments[0], int):
        return
    assert _schema.split(_schema.join(segments)) == tuple(segments)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(legal_keys(), anything)
def test_no_value_makes_it_raise(key, value):
    conf = at(key.path.replace("<", "").replace(">", ""), value)
    assert all(isinstance(problem.message, str) for problem in _schema.validate(conf))


@given(legal_keys(), st.text(st.characters(categories=("L", "N")), min_size=8), st.booleans())
def test_no_message_holds_a_value(key, marker, broken):
    marker = f"7{marker}7"  # no word of a message
    value = marker + ("\\" if broken else "")
    conf = at(key.path.replace("<", "").replace(">", ""), value)
    for problem in _schema.validate(conf):
        assert marker not in str(problem) or marker in key.path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(confs())
def test_what_the_strategy_draws_is_legal(conf):
    assert messages(conf, version="0.25.6") == []
