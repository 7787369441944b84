"""The dialect: writing it, reading it as the broker does, and hiding what is secret.

What `parse` is expected to give was read off NanoMQ 0.25.6 (GET /api/v4/configuration) and off its own parser.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _hocon, _schema
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from strategies import confs, texts

slow = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

CONF = {
    "auth": {
        "acl": {
            "rules": [
                {"topics": ["a/#", "b"], "permit": "allow", "username": "sensor"},
                {"permit": "deny"},
            ]
        },
        "password": {"zoe": 'q"r', "a.b": "plain"},
        "allow_anonymous": False,
    },
    "bridges": {"mqtt": {"hub": {"server": "mqtt-tcp://hub:1883"}, "a.b": {"server": "x", "keepalive": "60s"}}},
    "http_server": {"password": None, "port": 8081, "jwt": {"public": {"keyfile": "/k.pub"}}},
    "mqtt": {"keepalive_multiplier": 1.25, "max_packet_size": 4096},
}

TEXT = """\
mqtt {
  max_packet_size = 4096
  keepalive_multiplier = 1.25
}
http_server {
  port = 8081
  jwt {
    public {
      keyfile = "/k.pub"
    }
  }
}
auth {
  allow_anonymous = false
  password {
    "zoe" = "q\\"r"
    "a.b" = "plain"
  }
  acl {
    rules = [
      {
        permit = "allow"
        username = "sensor"
        topics = ["a/#", "b"]
      }
      {
        permit = "deny"
      }
    ]
  }
}
bridges {
  mqtt {
    hub {
      server = "mqtt-tcp://hub:1883"
    }
    "a.b" = {
      server = "x"
      keepalive = "60s"
    }
  }
}
"""


# --- writing


def test_layout_and_order():
    before = copy.deepcopy(CONF)
    assert _hocon.emit(CONF) == TEXT
    assert before == CONF


def test_indent():
    assert _hocon.emit({"log": {"level": "warn"}}, indent=4) == 'log {\n    level = "warn"\n}\n'


def test_a_section_alone():
    assert _hocon.emit({"system": {"hook_ipc_url": "ipc:///a"}}, partial=True) == (
        'system {\n  hook_ipc_url = "ipc:///a"\n}\n'
    )
    assert _hocon.emit({}, partial=True) == ""
    assert _hocon.emit({"log": {"dir": None}}, partial=True) == ""


def test_nothing_is_written_with_a_problem_in_it():
    with pytest.raises(_hocon.ConfError) as caught:
        _hocon.emit({"auth": {"allow_anonimous": False}, "http_server": {"ip_addr": "127.0.0.1"}}, version="0.22.0")
    assert str(caught.value).splitlines() == [
        "auth.allow_anonimous: unknown key; did you mean auth.allow_anonymous?",
        "http_server.ip_addr: needs NanoMQ 0.23.1 or later: an older one ignores it in silence",
    ]
    assert [problem.path for problem in caught.value.problems] == ["auth.allow_anonimous", "http_server.ip_addr"]


@slow
@given(confs())
def test_parse_undoes_emit(conf):
    text = _hocon.emit(conf)
    assert _hocon.parse(text) == conf
    assert _hocon.emit(_hocon.parse(text)) == text


def names(value):
    """A value with all text replaced by its kind: the keys, and nothing else."""
    if isinstance(value, dict):
        return {name: names(child) for name, child in value.items()}
    return [names(item) for item in value] if isinstance(value, list) else type(value).__name__


@given(st.text() | texts, st.sampled_from(("username", "password")))
@example('x" auth_type = no_auth zz = "y', "password")
@example('x"\n auth_type = no_auth\n zz = "y', "password")
@example("x\\", "password")
@example('x\\" auth_type = "no_auth', "password")
def test_no_value_can_add_a_key(value, key):
    conf = {"http_server": {"port": 8081, key: value, "auth_type": "jwt"}, "log": {"level": "warn"}}
    problems = _schema.validate(conf)
    if problems:
        assert [problem.path for problem in problems] == [f"http_server.{key}"]
    else:
        assert _hocon.parse(_hocon.emit(conf)) == conf


@given(st.text() | texts)
@example('"')
@example('x" = "y" enable')
@example("a.b")
def test_no_name_can_add_a_key(name):
    conf = {"auth": {"allow_anonymous": False, "password": {name: "x"}}, "log": {"level": "warn"}}
    try:
        text = _hocon.emit(conf)
    except _hocon.ConfError:
        return
    assert _hocon.parse(text) == conf


@slow
@given(confs(), st.data())
def test_no_text_anywhere_can_add_a_key(conf, data):
    spots = list(texts_in(conf))
    assume(spots)
    block, name = data.draw(st.sampled_from(spots))
    shape = names(conf)
    block[name] = data.draw(st.text())
    try:
        text = _hocon.emit(conf)
    except _hocon.ConfError:
        return
    assert names(_hocon.parse(text)) == shape


def texts_in(value):
    """(container, name or index) of every text in a configuration."""
    for name, child in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(child, str):
            yield value, name
        elif isinstance(child, (dict, list)):
            yield from texts_in(child)


# --- reading

READ = (
    # values
    ("a = 1", {"a": 1}),
    ("a : 1", {"a": 1}),
    ("a=-7 b=+3 c=1.5 d=1. e=1e3", {"a": -7, "b": 3, "c": 1.5, "d": 1.0, "e": 1000.0}),
    ("a = .5", {"a": 5}),
    ("a = 99999999999999999999", {"a": 2**63 - 1}),
    ("a = true\nb = false\nc = null", {"a": True, "b": False, "c": None}),
    ("a = trueish", {"a": "trueish"}),
    ("a = 10MB, b = 10s, c = 5%, d = 10us", {"a": "10MB", "b": "10s", "c": "5%", "d": "10us"}),
    ("a = word.with-some@chars", {"a": "word.with-some@chars"}),
    ("a = w\\x", {"a": "w\\x"}),
    # quoted strings
    ('a = "# // { } [ ] , = : ; \' ` ${X} ü"', {"a": "# // { } [ ] , = : ; ' ` ${X} ü"}),
    ('a = "q\\"r"', {"a": 'q"r'}),
    ('a = "\\n\\\\\\u0041"', {"a": "nu0041"}),
    ('a = "two\nlines"', {"a": "two\nlines"}),
    ('a = "abc\\"', {"a": "abc"}),
    ('a = "abc', {"a": "abc"}),
    ('a = ""', {"a": ""}),
    # names
    ('"a b" = 1', {"a b": 1}),
    ('"a.b" = 1', {"a.b": 1}),
    ('"q\\"r" = 1', {'q"r': 1}),
    ('"\\"lead" = 1', {"lea": 1}),
    ("a.b.c = 1", {"a": {"b": {"c": 1}}}),
    ("a.b = 1\na.c = 2", {"a": {"c": 2, "b": 1}}),
    ("a.b { c = 1 }", {"a": {"b": {"c": 1}}}),
    ('"a.b" = 1\nc.d = 2', {"c": {"d": 2}, "a": {"b": 1}}),  # the slip in path_expression_parse
    # comments, blanks, marks
    ("# x = 1\na = 1 # b = 2\n// c = 3\nd = 4 // e", {"a": 1, "d": 4}),
    ("\ufeffa = 1\r\nb = 2\r\n", {"a": 1, "b": 2}),
    ("a = 'single'", {"a": "single"}),
    ("a = !word@", {"a": "word@"}),
    ("_a = 1", {"a": 1}),
    # blocks and arrays
    ("a { b = 1, c = 2 }", {"a": {"b": 1, "c": 2}}),
    ('a = { "b" : 1 }', {"a": {"b": 1}}),
    ("{ a = 1 }", {"a": 1}),
    ("a = {}\nb = 1", {"b": 1}),
    ("a = [1, 2 3]", {"a": [1, 2, 3]}),
    ("a [1, 2]", {"a": [1, 2]}),
    ("a = [{b = 1} {b = 2}, {b = 3}]", {"a": [{"b": 1}, {"b": 2}, {"b": 3}]}),
    ("a = [b = 1, c = 2]", {"a": [{"b": 1, "c": 2}]}),
    ("a { 5 }", {"a": 5}),
    ("{}", {}),
    ("word", {}),
    # repetition
    ("a = 1\na = 2", {"a": 2}),
    ("a { b = 1 }\na { b = 2, c = 3 }", {"a": {"b": 1, "c": 3}}),
    ("a { b = 1 }\na.b = 2", {"a": {"b": 1}}),
    ("a { b { c = 1 } }\na { b { c = 2 } }", {"a": {"b": {"c": 2}}}),
    ("a { b { c { d = 1 } } }\na { b { c { d = 2 } } }", {"a": {"b": {"c": {"d": 1}}}}),
    ("a = 1\na { b = 2 }", {"a": {"b": 2}}),
    ("a = [1]\na = [2]", {"a": [2]}),
    # a value that is no value swallows what follows
    ("a = ${X}\nb = 1", {"a": {"b": 1}}),
    ("a =\nb = 1\nc = 2", {"a": {"b": 1, "c": 2}}),
    # known names in any case, the first counts
    ("Auth { Allow_Anonymous = true\nallow_anonymous = false }", {"auth": {"allow_anonymous": True}}),
    (
        "auth { password { Bob = x, bob = y, Enable = false } }",
        {"auth": {"password": {"Bob": "x", "bob": "y", "enable": False}}},
    ),
    ('auth { password { Enable = "x" } }', {"auth": {"password": {"Enable": "x"}}}),
)


@pytest.mark.parametrize(("text", "expected"), READ)
def test_read(text, expected):
    # As JSON, since 1 == True in Python
    assert json.dumps(_hocon.parse(text), sort_keys=True) == json.dumps(expected, sort_keys=True)


# (text, line, column)
UNREADABLE = (
    ("", 1, 1),
    ("# only a comment\n", 2, 1),
    ("a { }", 1, 5),
    ("a = 1\nb = []", 2, 6),
    ("a [ ]", 1, 5),
    ("a = [1,]", 1, 8),
    ("a = {b = 1,}", 1, 12),
    ("a = 127.0.0.1", 1, 11),
    ("a = 1 2", 1, 7),
    ('a = """x"""', 1, 7),
    ("a = {b = 1", 1, 11),
    ("a = 1 }", 1, 7),
    ('"a" { b = 1 }', 1, 5),
    ("= 1", 1, 1),
    ("a = 1\n\n  b = 2 ]", 3, 9),
    ('a = "x\0y"', 1, 5),
    ("a = \0", 1, 5),
    ('a {include "/etc/x"}', 1, 4),
    ("a = " + "{a = " * 100 + "1" + "}" * 100, None, None),
)


@pytest.mark.parametrize(("text", "line", "column"), UNREADABLE)
def test_unreadable(text, line, column):
    with pytest.raises(_hocon.ConfSyntaxError) as caught:
        _hocon.parse(text)
    if line:
        assert (caught.value.line, caught.value.column) == (line, column)


def test_a_syntax_error_quotes_nothing():
    with pytest.raises(_hocon.ConfSyntaxError) as caught:
        _hocon.parse('password = "hunter2" hunter3')
    assert "hunter" not in str(caught.value)


# --- include


def reader(files: dict):
    def read(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    return read


def test_include_splices_in():
    files = {"/pwd": '"bob" = "x"\ninclude "/more"', "/more": '"amy" = "y"'}
    text = 'auth { password = {include "/pwd"}\n no_match = deny }'
    assert _hocon.parse(text, reader(files)) == {"auth": {"password": {"bob": "x", "amy": "y"}, "no_match": "deny"}}


@pytest.mark.parametrize(
    "form", ['include "/f"', 'include file("/f")', 'include required("/f")', 'include required(file("/f"))']
)
def test_forms_of_include(form):
    assert _hocon.parse(f"a {{ {form} }}", reader({"/f": "b = 1"})) == {"a": {"b": 1}}


@pytest.mark.parametrize("text", ['a = {include "/missing"}', 'a = {include ""}', 'a = {include "/loop"}'])
def test_include_that_fails(text):
    with pytest.raises(_hocon.ConfSyntaxError) as caught:
        _hocon.parse(text, reader({"/loop": 'include "/loop"'}))
    assert (caught.value.line, caught.value.column) == (1, 6)


def test_include_is_an_ordinary_word_elsewhere():
    assert _hocon.parse("a = include\nincluded = 1") == {"a": "include", "included": 1}


# --- robustness

PIECES = (
    *("a", "b", "A", "a.b", '"a.b"', '"x"', '"\\"q"', "auth", "password", "log", "level", "true", "null"),
    *(
        "=",
        ":",
        "{",
        "}",
        "[",
        "]",
        ",",
        " ",
        "\n",
        "\t",
        "#",
        "//",
        "/",
        '"',
        "\\",
        '\\"',
        "'",
        "!",
        "_",
        "@",
        "-",
        ".",
    ),
    *(
        "1",
        "-2",
        "3.5",
        ".5",
        "1e",
        "10MB",
        "10Kb",
        "10s",
        "${X}",
        "${?",
        "include ",
        'include "',
        "required(",
        "{}",
        "[]",
    ),
    *("\ufeff", "\0", "ü", "{MultilineChar}*", "\r\n", "99999999999999999999999", "1e999"),
)
rubble = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text()


@settings(max_examples=500, deadline=5000)
@given(rubble)
def test_parse_raises_nothing_else(text):
    try:
        found = _hocon.parse(text)
    except _hocon.ConfSyntaxError:
        return
    assert isinstance(found, dict)
    _schema.validate(found)


@pytest.mark.parametrize(
    "text",
    [
        "a{b=1}" * 20_000,
        "".join(f"a{{b{i}=1}}" for i in range(5_000)),
        "".join(f"a.b{i}=1 " for i in range(5_000)),
        '"a.b"=1 ' * 2_000 + "c.d=1 " * 2_000,
        "a.b={" * 60 + "a.b=1" + "}" * 60,
        "[" * 50_000,
        '"' + '\\"' * 50_000,
        '"\\' * 50_000,
        "1" * 100_000,
        "a=" * 50_000,
        "include (" * 20_000,
    ],
)
def test_nothing_makes_it_hang(text):
    started = time.monotonic()
    with contextlib.suppress(_hocon.ConfSyntaxError):
        _hocon.parse(text)
    _hocon.redact(text)
    assert time.monotonic() - started < 20


# --- secrets

SHOWN = (
    ('http_server { password = "hunter2" }', 'http_server { password = "***" }'),
    ("http_server { password = hunter2 }", 'http_server { password = "***" }'),
    ("http_server { password = 1234567 }", 'http_server { password = "***" }'),
    ("HTTP_server { PassWord = hunter2 }", 'HTTP_server { PassWord = "***" }'),
    ("http_server.password = hunter2", 'http_server.password = "***"'),
    ("password = hunter2", 'password = "***"'),
    ("http_server { password = hunter2, password = hunter3 }", 'http_server { password = "***", password = "***" }'),
    ('auth { password { "a.b" = "x", sensor : "y" } }', 'auth { password { "a.b" = "***", sensor : "***" } }'),
    ("auth.password.bob = hunter2", 'auth.password.bob = "***"'),
    ("auth { password { enable = true } }", "auth { password { enable = true } }"),
    ("auth { password { bob { deep = x } } }", 'auth { password { bob {"***"} } }'),
    ('listeners.ssl { key_password = "x" }', 'listeners.ssl { key_password = "***" }'),
    ('bridges.mqtt.hub { password = "x" }', 'bridges.mqtt.hub { password = "***" }'),
    (
        'webhook.headers { authorization = "Bearer x", content-type = "text/json" }',
        'webhook.headers { authorization = "***", content-type = "text/json" }',
    ),
    ('foo { api_token = "x" }', 'foo { api_token = "***" }'),
    ('foo { some_secret { a = "x", b = [1, 2] } }', 'foo { some_secret {"***"} }'),
    ('foo { tokens = ["x", "y"] }', 'foo { tokens = "***" }'),
    ('bridges.mqtt.hub.server = "mqtt-tcp://me:pw@hub:1"', 'bridges.mqtt.hub.server = "mqtt-tcp://***@hub:1"'),
    ('rules.repub { rules = [{ password = "x" }] }', 'rules.repub { rules = [{ password = "***" }] }'),
    # swallowed by a value that is none
    ("http_server { password = ${X}\nuser = hunter2 }", 'http_server { password = ${X}\n"***" }'),
    ("http_server { username =\npassword = hunter2 }", 'http_server { username =\npassword = "***" }'),
    # what the broker drops
    ("http_server { password = hunter2! }", 'http_server { password = "***"*** }'),
    ("http_server { password = !hunter2 }", 'http_server { password = ***"***" }'),
    ('http_server { password = "hunter2 }', 'http_server { password = ***"***" }'),
    # a quote is missing, or too many
    ('a = "x\npassword = hunter2" b = 1', 'a = "***" b = 1'),
    ('a = "the password: hunter2"', 'a = "***"'),
    ('"\npassword = hunter2"', "(not shown: no key in it)"),
    # comments
    ("a = 1 # nothing to hide: here", "a = 1 # nothing to hide: here"),
    ('a = 1\n# password = "hunter2"\n', "a = 1\n# ***\n"),
    ('a = 1 // "key_password" : x', "a = 1 # ***"),
    ('auth.password {\n  # "bob" = "hunter2"\n  amy = x\n}', 'auth.password {\n  # ***\n  amy = "***"\n}'),
    ("password = hunter2 # was hunter2 before", 'password = "***" # ***'),
    ('auth { password = {include "/etc/pwd"} }', 'auth { password = {include "/etc/pwd"} }'),
)


@pytest.mark.parametrize(("text", "expected"), SHOWN)
def test_redact(text, expected):
    assert _hocon.redact(text) == expected


def test_redact_shows_nothing_of_a_broken_text():
    assert _hocon.redact('http_server {\n  password = "hunter2"') == "(not shown: does not parse, line 2, column 23)"


def test_redact_of_what_was_written():
    assert _hocon.redact(TEXT) == TEXT.replace('"q\\"r"', '"***"').replace('"plain"', '"***"')


def test_secrets():
    text = TEXT + 'bridges.mqtt.hub.server = "mqtt-tcp://me:pw@hub:1"'
    assert _hocon.secrets(text) == {'q"r', "plain", "pw"}
    assert "hunter2" in _hocon.secrets('http_server { password = "hunter2"')


def swap_secrets(value, mapping, path=()):
    """A configuration with other secrets in it."""
    if isinstance(value, dict):
        return {name: swap_secrets(child, mapping, (*path, name)) for name, child in value.items()}
    if isinstance(value, list):
        return [swap_secrets(item, mapping, (*path, i)) for i, item in enumerate(value)]
    return mapping(value) if _schema.is_secret(path) else value


@slow
@given(confs(), texts)
def test_what_is_shown_does_not_depend_on_the_secrets(conf, other):
    """Stronger than a search for them: nothing of them is left, not even their length."""
    swapped = swap_secrets(conf, lambda value: other)
    assert _hocon.redact(_hocon.emit(conf)) == _hocon.redact(_hocon.emit(swapped))


@slow
@given(confs(("auth", "http_server", "bridges", "webhook")), texts)
def test_no_secret_is_shown_and_all_are_listed(conf, text):
    used = set()

    def mark(value):
        used.add(f"S3cr3t{text}{len(used)}")
        return f"S3cr3t{text}{len(used) - 1}"

    emitted = _hocon.emit(swap_secrets(conf, mark))
    shown = _hocon.redact(emitted)
    assert not [secret for secret in used if secret in shown]
    assert used <= _hocon.secrets(emitted)


@settings(max_examples=300, deadline=5000)
@given(rubble)
def test_redact_and_secrets_never_raise(text):
    assert isinstance(_hocon.redact(text), str)
    assert isinstance(_hocon.secrets(text), set)


@settings(max_examples=300, deadline=5000)
@given(rubble, rubble, st.sampled_from(("password = ", 'password = "', '"password" : ', "auth { password { bob = ")))
def test_a_password_in_rubble_is_not_shown(before, after, key):
    assert "hunter2" not in _hocon.redact(f"{before}\n{key}hunter2{after}")
