# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Answers from memory what a host has told before in this play: a remote run saved for every further role."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

#: The variable under which every role registers the answer.
REGISTERED = "nanomq_host"


class ActionModule(ActionBase):
    """Run the module unless its answer is known."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        args = dict(self._task.args)
        known = (task_vars or {}).get(REGISTERED)
        if known and known.get("asked") == args.get("program", "") and not args.get("refresh"):
            result.update({key: known[key] for key in known if key not in ("invocation", "failed", "changed")})
            result["changed"] = False
            return result
        result.update(
            self._execute_module(module_name="edgesec.nanomq.host_info", module_args=args, task_vars=task_vars)
        )
        if not result.get("failed"):
            result["asked"] = args.get("program", "")
        return result
