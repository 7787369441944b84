# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Modules are run for real, each in a process of its own, in the way that Ansible runs them there, without any mock."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import tempfile
import types
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.module_utils import _internal, basic

COLLECTION = "ansible_collections.edgesec.nanomq.plugins"
# Imported here, and so but once: a module then starts in a few milliseconds.
importlib.import_module(f"{COLLECTION}.module_utils._authority")


def run(name: str, options: dict[str, Any], *, check: bool = False) -> dict[str, Any]:
    """Run a module of the collection; return its result, with ``failed`` set in any case."""
    arguments = {**options, "_ansible_check_mode": check, "_ansible_remote_tmp": "/tmp"}
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            _become_module(name, json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode(), output.fileno())
        os.waitpid(child, 0)
        output.seek(0)
        printed = output.read().decode()
    try:
        found = json.loads(printed)
    except ValueError:
        pytest.fail(f"{name} printed no result but {printed!r}")
    found.pop("invocation", None)
    found.setdefault("failed", False)
    if "warnings" in found:
        found["warnings"] = [warning["event"]["msg"] for warning in found["warnings"]]
    assert "exception" not in found, found["exception"]
    return found


def _become_module(name: str, arguments: bytes, output: int) -> None:
    """Do in this process what Ansible's wrapper does on a host; never return."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        _internal.is_controller = False
        basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = arguments, "legacy"
        runpy.run_module(f"{COLLECTION}.modules.{name}", run_name="__main__", alter_sys=False)
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        print(repr(error))
    finally:
        sys.stdout.flush()
        os._exit(code)


@pytest.fixture
def run_module():
    """run_module(module, options, check=False): the result of one module run."""
    return run


@pytest.fixture
def run_action():
    """run_action(plugin class, options, check=False, remote=run_module): the result of an action plugin on a host.

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
