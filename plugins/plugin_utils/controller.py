# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs a module that works on the controller within the worker that is there already.

To pack a module and to start another Python for it takes Ansible half a second, a hundred times what there is to do
where nothing is due. And what the action imports is imported once, before the workers are made, and not in each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem


class Job:
    """What the `run` of such a module asks of AnsibleModule."""

    def __init__(self, params: dict[str, Any], *, check_mode: bool) -> None:
        self.params = params
        self.check_mode = check_mode
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


class ControllerAction(ActionBase):
    """A module of this collection that is thin enough to be called: arguments, a `run`, and no secret in its result."""

    MODULE: str
    ARGUMENTS: dict[str, dict[str, Any]]
    WORK: Callable[[Any], dict[str, Any]]

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        if not self._is_here(task_vars or {}):
            result.update(
                self._execute_module(module_name=self.MODULE, task_vars=task_vars, wrap_async=self._task.async_val)
            )
            return result
        _validated, params = self.validate_argument_spec(argument_spec=self.ARGUMENTS)
        job = Job(params, check_mode=self._task.check_mode)
        try:
            result.update(type(self).WORK(job))
        except (FileProblem, CryptoError, ValueError, OSError) as error:
            result.update(failed=True, msg=str(error))
        if job.warnings:
            result["warnings"] = job.warnings
        return result

    def _is_here(self, task_vars: dict[str, Any]) -> bool:
        """Whether the module would run on this machine, by this Python, as this user, in this environment."""
        if self._connection.transport != "local" or self._connection.become or self._task.become:
            return False
        if self._task.async_val or any(self._task.environment or ()):
            return False
        if self._task.delegate_to:
            task_vars = task_vars.get("ansible_delegated_vars", {}).get(self._task.delegate_to, {})
        return self._templar.template(task_vars.get("ansible_python_interpreter")) == sys.executable
