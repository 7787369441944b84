"""How the broker reads its configuration file."""

from __future__ import annotations

import os
import signal

import pytest
from harness import HTTP, MQTT_PORT, QUIET, TCP, wait_for

BASE = QUIET + TCP + HTTP

SYNTAX_ERRORS = {
    "empty file": "",
    "comment only": "# nothing\n",
    "empty block": BASE + "sqlite { }\n",
    "trailing comma": BASE + "auth { allow_anonymous = false, }\n",
    "unquoted address": "listeners.tcp { bind = 127.0.0.1:1883 }\n",
    "variable before a brace": BASE + "auth { password { u = ${HOME} } }\n",
    "unquoted exclamation mark": BASE + "auth { password { u = x!y } }\n",
    "unquoted path": BASE + "log { dir = /var/log }\n",
    "triple quotes": BASE + 'auth { password { u = """x""" } }\n',
    "block not closed": BASE + "auth { allow_anonymous = false\n",
    "text behind a string": BASE + 'auth { password { u = "x"y = 1 } }}\n',
    "trailing backslash": BASE + 'auth { password { u = "x\\" } }\nlog { dir = "y" }\n',
}

CRASHES = {
    "empty array": BASE + "log { to = [] }\n",
    "empty rules": BASE + "auth { acl { rules = [] } }\n",
    "include of a missing file": BASE + 'include "/nonexistent/file.conf"\n',
    "hook_ipc_url alone": TCP + 'system { hook_ipc_url = "ipc:///tmp/hook.ipc" }\n',
    "http_auth without method": BASE + 'auth { http_auth { auth_req { url = "http://127.0.0.1:1/" } } }\n',
}

# Text in the file, and the password it gives; None where the user is dropped.
PASSWORDS = {
    "plain": ('"secret"', "secret"),
    "bare word": ("secret", "secret"),
    "signs": ('"a # // { } [ ] , = : ; % \' ` $ ( ) < >"', "a # // { } [ ] , = : ; % ' ` $ ( ) < >"),
    "variable": ('"${HOME}"', "${HOME}"),
    "UTF-8": ('"pässwörd ✓"', "pässwörd ✓"),
    "newline": ('"a\nb"', "a\nb"),
    "tab": ('"a\tb"', "a\tb"),
    "escaped quote": ('"a\\"b"', 'a"b'),
    "backslashes": ('"a\\\\b"', "ab"),
    "escapes": ('"\\n\\u0041"', "nu0041"),
    "single quotes": ("'word'", "word"),
    "bare comment": ("a#b\n", "a"),
    "bare at": ("a@b", "a@b"),
    "bare, at first": ("@ab", "ab"),
    "bare, exclamation mark last": ("ab!", "ab"),
    "empty": ('""', ""),
    "size": ("10MB", "10MB"),
    "time": ("10s", "10s"),
    "percent": ("5%", "5%"),
    "bare upper case": ("TRUE", "TRUE"),
    "dot": ("a.b", "a.b"),
    "dash": ("a-b", "a-b"),
    "number": ("42", None),
    "decimal": ("4.2", None),
    "true": ("true", None),
    "null": ("null", None),
}


@pytest.mark.parametrize("conf", SYNTAX_ERRORS.values(), ids=SYNTAX_ERRORS)
def test_syntax_error(broker, connect, conf):
    """Before 0.24.4 such a file, and one that was cut short, opens the broker to all.

    Only a whole configuration before the error counts there, as in front of a closing brace too many.
    """
    running = broker(conf)
    wait_for(lambda: "syntax error" in running.output)
    if broker.does("a syntax error ends the start"):
        assert running.exit_code() == 1
    else:
        whole = conf == SYNTAX_ERRORS["text behind a string"]
        assert ("0.0.0.0:1883" in running.listens()) is not whole
        assert connect().outcome == "accepted"


@pytest.mark.parametrize("conf", CRASHES.values(), ids=CRASHES)
def test_crash(broker, conf):
    assert broker(conf).exit_code() == -signal.SIGSEGV


def test_values_of_string_keys(broker):
    """One password each, and a user behind the last: what a value does wrong must not reach its neighbours."""
    lines = "".join(f'  "user{index}" = {text}\n' for index, (text, _value) in enumerate(PASSWORDS.values()))
    running = broker(BASE + f'auth {{ password {{\n{lines}  "last" = "one"\n}} }}\n')
    found = {user["login"]: user["password"] for user in running.section("auth")}
    assert found.pop("last") == "one"
    wanted = {f"user{index}": value for index, (_text, value) in enumerate(PASSWORDS.values()) if value is not None}
    assert found == wanted


@pytest.mark.parametrize("text", ["42", "true", "null"])
def test_a_rest_password_that_is_no_string_leaves_the_default(broker, text):
    running = broker(QUIET + TCP + HTTP.replace("}", f", password = {text} }}"))
    assert running.get("/nodes", ("admin", "public")).status == 200


def test_a_variable_is_skipped_and_swallows_the_next_key(broker):
    running = broker(QUIET + TCP + HTTP.replace("}", "\n password = ${HOME}\n auth_type = no_auth\n}"))
    assert running.get("/nodes", None).status == 401
    assert running.get("/nodes", ("admin", "public")).status == 200


def test_a_raw_quote_lets_a_value_set_other_keys(broker):
    password = 'x"\n auth_type = no_auth\n zz = "y'
    running = broker(QUIET + TCP + HTTP.replace("}", f'\n auth_type = jwt\n password = "{password}"\n}}'))
    assert running.get("/nodes", None).status == 200


def test_a_nul_cuts_a_string_short(broker):
    conf = (BASE + 'auth { password { "u" = "abNULcd" } }\n').encode().replace(b"NUL", b"\0")
    assert broker(conf).section("auth") == [{"login": "u", "password": "a"}]


def test_a_long_string_is_kept(broker):
    running = broker(BASE + f'auth {{ password {{ "u" = "{"x" * 100_000}" }} }}\n')
    assert len(running.section("auth")[0]["password"]) == 100_000


DUPLICATES = {
    "last in one block": ("mqtt { property_size = 10\n property_size = 20 }", 20),
    "first of two blocks": ("mqtt { property_size = 10 }\nmqtt { property_size = 20 }", 10),
    "first of three blocks": (
        "mqtt { property_size = 10 }\nmqtt { property_size = 20 }\nmqtt { property_size = 30 }",
        10,
    ),
    "dotted key after the block": ("mqtt { property_size = 10 }\nmqtt.property_size = 20", 10),
    "dotted key before the block": ("mqtt.property_size = 20\nmqtt { property_size = 10 }", 10),
    "first dotted key": ("mqtt.property_size = 20\nmqtt.property_size = 10", 20),
    "any case": ("MQTT { Property_Size = 10 }", 10),
    "colon": ("mqtt : { property_size : 10 }", 10),
    "commas": ("mqtt { property_size = 10, max_mqueue_len = 5 }", 10),
    "one line": ("mqtt { property_size = 10 max_mqueue_len = 5 }", 10),
    "braces around all": (None, 10),
}


@pytest.mark.parametrize(("text", "value"), DUPLICATES.values(), ids=DUPLICATES)
def test_which_of_several_wins(broker, text, value):
    conf = BASE + text if text else "{\n" + BASE + "mqtt { property_size = 10 }\n}"
    assert broker(conf + "\n").section("basic")["property_size"] == value


@pytest.mark.parametrize("text", ['"false"', "no", "False", "0"])
def test_a_boolean_that_is_no_boolean_is_ignored(broker, text):
    assert broker(BASE + f"auth {{ allow_anonymous = {text} }}\n").section("basic")["allow_anonymous"] is True


def test_unknown_keys_and_sections_are_ignored(broker):
    conf = BASE + "nonsense { a = 1 }\nmqtt { nonsense = 2, property_size = 10 }\nauth { alow_anonymous = false }\n"
    basic = broker(conf).section("basic")
    assert basic["property_size"] == 10
    assert basic["allow_anonymous"] is True


NUMBERS = {
    "quoted": ('property_size = "10"', "property_size", 32),
    "negative": ("property_size = -1", "property_size", 32),
    "zero": ("property_size = 0", "property_size", 32),
    "size with unit": ("max_packet_size = 20KB", "max_packet_size", 20),
    "size quoted": ('max_packet_size = "20KB"', "max_packet_size", 20),
    "size of no unit": ("max_packet_size = lots", "max_packet_size", 10240),
    "time": ("retry_interval = 1m", "qos_duration", 60),
    "time quoted": ('retry_interval = "20s"', "qos_duration", 20),
    "milliseconds, which are minutes": ("retry_interval = 10ms", "qos_duration", 600),
    "time without unit": ("retry_interval = 20", "qos_duration", 10),
    "queue": ("max_mqueue_len = 7", "msq_len", 7),
    "decimal": ("keepalive_multiplier = 2.5", "keepalive_backoff", 2.5),
}


@pytest.mark.parametrize(("line", "name", "value"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_and_units(broker, line, name, value):
    assert broker(BASE + f"mqtt {{ {line} }}\n").section("basic")[name] == value


@pytest.mark.parametrize(
    "conf", [BASE.replace("\n", "\r\n"), "\ufeff" + BASE, BASE + "sqlite = {}\n"], ids=["CRLF", "byte order mark", "{}"]
)
def test_tolerated(broker, conf):
    assert broker(conf).section("basic")["url"] == f"nmq-tcp://127.0.0.1:{MQTT_PORT}"


def test_include(broker):
    path = broker.write('"u": "p"\n"v": "q"\n', "users.conf")
    running = broker(BASE + f'auth {{ password = {{ include "{path}" }} }}\n')
    assert running.section("auth") == [{"login": "u", "password": "p"}, {"login": "v", "password": "q"}]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_include_of_an_unreadable_file(broker):
    path = broker.write('"u": "p"\n', "users.conf")
    path.chmod(0o600)
    conf = broker.write(BASE + f'auth {{ password = {{ include "{path}" }} }}\n')
    assert broker(None, "--conf", conf, user=65534).exit_code() == -signal.SIGSEGV


def test_default_of_the_queue(broker):
    expected = 1024 if broker.does("max_mqueue_len is 1024") else 20480
    assert broker(BASE).section("basic")["msq_len"] == expected


def test_a_name_with_a_dot_is_one_if_it_is_quoted(broker):
    assert broker(BASE + 'auth { password { "a.b" = "c" } }\n').section("auth") == [{"login": "a.b", "password": "c"}]
