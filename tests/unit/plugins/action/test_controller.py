# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Modules of the controller: within the worker where they would run there anyway, and as any module elsewhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleError
from ansible_collections.edgesec.nanomq.plugins.action import jwt_keypair, tls_authority, tls_revocation

HERE = {"ansible_python_interpreter": sys.executable}


class Plugin:
    """An action with a task, and what it handed over to the host."""

    def __init__(self, action=jwt_keypair, *, arguments=None, **task):
        settings = {"check_mode": False, "async_val": 0, "become": False, "environment": [], "delegate_to": None}
        task = SimpleNamespace(args=arguments or {}, action=action.ActionModule.MODULE, **{**settings, **task})
        self.connection = SimpleNamespace(
            transport="local", become=None, _shell=SimpleNamespace(tmpdir="/tmp/x"), cleanup=lambda: None
        )
        templar = SimpleNamespace(template=lambda value: value)
        self.action = action.ActionModule(task, self.connection, None, None, templar, None)
        self.sent = []
        self.action._execute_module = lambda **options: self.sent.append(options) or {"changed": False}

    def run(self, task_vars):
        return self.action.run(task_vars=task_vars)


def test_the_work_is_done_here(tmp_path):
    arguments = {"path": str(tmp_path / "jwt"), "size": "2048", "passphrase": "se cret"}
    plugin = Plugin(arguments=arguments)
    made = plugin.run(HERE)
    assert (made["changed"], made["size"], plugin.sent) == (True, 2048, [])
    assert (tmp_path / "jwt/fleet.key").stat().st_mode & 0o777 == 0o600
    kept = Plugin(arguments=arguments).run(HERE)
    assert (kept["changed"], kept["key_id"]) == (False, made["key_id"])
    assert "se cret" not in str(made) + str(kept)


def test_check_mode_leaves_everything_alone(tmp_path):
    plugin = Plugin(tls_authority, arguments={"path": str(tmp_path / "ca")}, check_mode=True)
    assert plugin.run(HERE)["changed"] is True
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_shown(tmp_path):
    path = str(tmp_path / "ca")
    Plugin(tls_authority, arguments={"path": path}).run(HERE)
    result = Plugin(tls_authority, arguments={"path": path, "common_name": "Another"}).run(HERE)
    assert [text for text in result["warnings"] if "Another" in text]


@pytest.mark.parametrize(
    ("action", "arguments", "said"),
    [
        (jwt_keypair, {"size": 512}, "512"),
        (tls_authority, {"valid_for": "never"}, "never"),
        (tls_authority, {"key_type": "rot13"}, "key_type"),
        (tls_revocation, {}, "authority"),
        (tls_revocation, {"unknown": "perhaps"}, "unknown"),
    ],
)
def test_what_is_wrong_is_an_error_of_the_task(tmp_path, action, arguments, said):
    plugin = Plugin(action, arguments={"path": str(tmp_path / "x"), "passphrase": "se cret", **arguments})
    try:
        result = plugin.run(HERE)
    except AnsibleError as error:
        result = {"failed": True, "msg": str(error)}
    assert result["failed"] is True
    assert said in result["msg"]
    assert "se cret" not in result["msg"]
    assert plugin.sent == []


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("transport", "ssh"), ("become", object())],
)
def test_over_a_connection_it_is_a_module_like_any_other(attribute, value):
    plugin = Plugin()
    setattr(plugin.connection, attribute, value)
    assert plugin.run(HERE)["changed"] is False
    assert [options["module_name"] for options in plugin.sent] == ["edgesec.nanomq.jwt_keypair"]


@pytest.mark.parametrize(
    ("task", "task_vars"),
    [
        ({"become": True}, HERE),
        ({"async_val": 60}, HERE),
        ({"environment": [{"OPENSSL_CONF": "/dev/null"}]}, HERE),
        ({}, {"ansible_python_interpreter": "/usr/bin/another"}),
        ({}, {}),
        ({"delegate_to": "localhost"}, HERE),
        ({"delegate_to": "localhost"}, {"ansible_delegated_vars": {"localhost": {}}}),
    ],
)
def test_as_another_or_by_another_python_too(task, task_vars):
    plugin = Plugin(**task)
    plugin.run(task_vars)
    assert len(plugin.sent) == 1


def test_a_delegated_task_asks_for_the_python_of_where_it_goes(tmp_path):
    plugin = Plugin(arguments={"path": str(tmp_path), "size": 2048}, delegate_to="localhost")
    elsewhere = {"ansible_python_interpreter": "/usr/bin/another"}
    assert plugin.run({**elsewhere, "ansible_delegated_vars": {"localhost": HERE}})["changed"] is True
    assert plugin.sent == []
