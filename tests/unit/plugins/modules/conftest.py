# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Modules are run for real, each in a process of its own as Ansible would run it, and without any mock."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from typing import Any

import pytest
from ansible.errors import AnsibleError

COLLECTION = "ansible_collections.edgesec.nanomq.plugins"


def run(name: str, options: dict[str, Any], *, check: bool = False) -> dict[str, Any]:
    """Run a module of the collection; return its result, with ``failed`` set in any case."""
    arguments = {**options, "_ansible_check_mode": check, "_ansible_remote_tmp": "/tmp"}
    result = subprocess.run(
        [sys.executable, "-m", f"{COLLECTION}.modules.{name}"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stdout, result.stderr
    found = json.loads(result.stdout)
    found.pop("invocation", None)
    found.setdefault("failed", False)
    assert "exception" not in found, found["exception"]
    return found


@pytest.fixture
def run_module():
    """run_module(name, check=False, **options): the result of one module run."""
    return lambda name, check=False, **options: run(name, options, check=check)


@pytest.fixture
def run_action():
    """run_action(plugin class, options, check=False, remote=run): the result of an action plugin on a host.

    ``remote`` runs the modules that the plugin asks for, and can be replaced to play a host that misbehaves.
    """

    def act(plugin: type, options: dict[str, Any], *, check: bool = False, remote=run) -> dict[str, Any]:
        class Action(plugin):
            def _execute_module(self, module_name=None, module_args=None, task_vars=None, **_more):
                return remote(module_name.rpartition(".")[2], json.loads(json.dumps(module_args)), check=check)

        task = types.SimpleNamespace(args=options, check_mode=check, async_val=0, action="action")
        connection = types.SimpleNamespace(_shell=types.SimpleNamespace(tmpdir="/tmp"))
        action = Action(task, connection, None, None, None)
        try:
            return {"failed": False, **action.run(task_vars={})}
        except AnsibleError as error:
            return {"failed": True, "msg": str(error)}

    return act
