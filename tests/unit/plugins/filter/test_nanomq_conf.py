"""The filters, as templates use them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.edgesec.nanomq.plugins.filter import nanomq_conf as filters

COLLECTIONS = Path(filters.__file__).parents[5]


def test_templates_find_the_filters_by_name(tmp_path):
    """In a process of its own: Ansible's way of importing collections does not mix with Python's."""
    conf = {"auth": {"allow_anonymous": False, "password": {"a.b": 'q"r'}}}
    template = (
        "{% set text = conf | edgesec.nanomq.nanomq_conf(version='0.25.6') %}"
        "{{ [text, text | edgesec.nanomq.from_nanomq_conf, text | edgesec.nanomq.nanomq_redact] | to_json }}"
    )
    (tmp_path / "template").write_text(template)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "ansible", "adhoc", "localhost", "-m", "ansible.builtin.template"),
            *("-a", f"src={tmp_path}/template dest={tmp_path}/out", "-e", json.dumps({"conf": conf})),
        ],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    text, read, shown = json.loads((tmp_path / "out").read_text())
    assert text == 'auth {\n  allow_anonymous = false\n  password {\n    "a.b" = "q\\"r"\n  }\n}\n'
    assert read == conf
    assert shown == text.replace('"q\\"r"', '"***"')


def test_sections_one_by_one():
    conf = {"log": {"level": "warn"}, "mqtt": {"retry_interval": "10s"}}
    parts = [filters.nanomq_conf({name: conf[name]}, partial=True) for name in ("log", "mqtt")]
    assert filters.from_nanomq_conf("# why\n".join(parts)) == conf


def test_every_problem_and_no_value():
    with pytest.raises(AnsibleFilterError) as caught:
        filters.nanomq_conf({"auth": {"allow_anonymous": "no", "password": {"bob": "hunter2\\"}}, "loog": {}})
    message = str(caught.value)
    assert "auth.allow_anonymous: must be true or false" in message
    assert "auth.password.bob: must not hold a backslash" in message
    assert "loog: unknown key; did you mean log?" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ("x", {}, "needs a dictionary"),
        (None, {}, "needs a dictionary"),
        ({"log": {"level": "warn"}}, {"version": "latest"}, "version must be like"),
        ({"log": {"level": "warn"}}, {"indent": "2"}, "indent must be"),
        ({"log": {"level": "warn"}}, {"indent": True}, "indent must be"),
        ({"log": {"level": "warn"}}, {"indent": 99}, "indent must be"),
    ],
)
def test_wrong_use_of_nanomq_conf(value, options, message):
    with pytest.raises(AnsibleFilterError, match=message):
        filters.nanomq_conf(value, **options)


def test_other_mappings_and_sequences():
    conf = OrderedDict(log=MappingProxyType({"level": "warn", "to": ("console",)}))
    assert filters.nanomq_conf(conf) == 'log {\n  to = ["console"]\n  level = "warn"\n}\n'


@pytest.mark.parametrize("name", ["from_nanomq_conf", "nanomq_redact"])
@pytest.mark.parametrize("value", [None, {}, 5, b"a = 1"])
def test_the_others_need_a_text(name, value):
    with pytest.raises(AnsibleFilterError, match=f"{name}: needs a text"):
        filters.FilterModule().filters()[name](value)


def test_a_syntax_error_says_where_and_quotes_nothing():
    with pytest.raises(AnsibleFilterError, match="line 2, column") as caught:
        filters.from_nanomq_conf('http_server {\n  password = "hunter2"')
    assert "hunter2" not in str(caught.value)


def test_listeners_with_names_and_bridges_to_nng_count():
    conf = {
        "listeners": {
            "ssl": {"bind": "0.0.0.0:8883", "second": {"bind": "127.0.0.1:8884"}},
            "wss": {"bind": "127.0.0.1:8086/mqtt"},
        },
        "http_server": {"ip_addr": "127.0.0.1", "port": 8081},
        "bridges": {"nng": {"sub": {"in": {"clientid": "in", "sub_url": "tcp://127.0.0.1:7001"}}}},
    }
    assert filters.nanomq_listeners(conf) == [
        "0.0.0.0:8883",
        "127.0.0.1:8884",
        "127.0.0.1:8086",
        "127.0.0.1:7001",
        "127.0.0.1:8081",
    ]
    with pytest.raises(AnsibleFilterError, match="needs a dictionary"):
        filters.nanomq_listeners("listeners.tcp")


OUTGOING = """
bridges.mqtt.far { server = "mqtt-tcp://a:SECRET1@127.0.0.1:1", password = "SECRET2", ssl { key_password = "SECRET3" } }
bridges.aws.far { server = "a:1", password = "SECRET4", ssl { key_password = "SECRET5" } }
webhook { url = "http://a:SECRET6@127.0.0.1/", headers { authorization = "SECRET7", x-own = "SECRET8" }
  ssl { key_password = "SECRET9" } }
auth.http_auth.auth_req { url = "http://a:SECRETA@127.0.0.1/", method = "POST", headers { x-own = "SECRETB" }
  ssl { key_password = "SECRETC" } }
rules.repub { rules = [{ sql = "x", server = "mqtt-tcp://a:SECRETD@b:1", password = "SECRETE" }] }
rules.mysql.db.conn { host = "a", password = "SECRETF" }
"""


def test_no_secret_of_what_goes_out_is_shown():
    assert "SECRET" not in filters.nanomq_redact(OUTGOING)
