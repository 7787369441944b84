# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Answers from memory what a host has told before in this play: a remote run saved for every further role.

The clocks are compared here, since only here both are known: the host read its own at some time between the sending of
the module and the coming of its answer, however slow the connection was.
"""

from __future__ import annotations

import datetime
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.edgesec.nanomq.plugins.module_utils._duration import parse_duration

#: The variable under which every role registers the answer.
REGISTERED = "nanomq_host"


def clock_offset(before: float, told: float, after: float) -> float:
    """By how much a clock that was read between two moments is at least ahead; negative where it is behind."""
    return told - after if told > after else min(told - before, 0.0)


def show(seconds: float) -> str:
    """A moment as ``2030-01-31T12:00:00Z``; whatever a clock may say."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s after 1970"


def clock_problem(told: float, offset: float, tolerance: float) -> str:
    """What is wrong with the clocks, or ''."""
    if abs(offset) <= tolerance:
        return ""
    where = "ahead of" if offset > 0 else "behind"
    return (
        f"the clock of this host says {show(told)}, which is {abs(offset):.0f} s {where} "
        f"the controller's ({show(told - offset)}); {tolerance:.0f} s are tolerated (nanomq_pki_clock_tolerance). "
        "Certificates and tokens would be refused, or used after their end. Nothing was changed. Set the clock that is "
        "wrong (chrony, systemd-timesyncd); if many hosts say this at once, it is the controller's"
    )


class ActionModule(ActionBase):
    """Run the module unless its answer is known."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        args = dict(self._task.args)
        tolerance = self._tolerance(args)
        known = (task_vars or {}).get(REGISTERED)
        if known and known.get("asked") == args.get("program", "") and not args.get("refresh"):
            result.update({key: known[key] for key in known if key not in ("invocation", "failed", "changed")})
            result["changed"] = False
            return self._judged(result, tolerance)
        before = time.time()
        result.update(
            self._execute_module(module_name="edgesec.nanomq.host_info", module_args=args, task_vars=task_vars)
        )
        if not result.get("failed"):
            result["asked"] = args.get("program", "")
            result["clock_offset"] = clock_offset(before, result["time"], time.time())
        return self._judged(result, tolerance)

    @staticmethod
    def _tolerance(args: dict[str, Any]) -> int | None:
        try:
            return parse_duration(args["clock_tolerance"]) if args.get("clock_tolerance") else None
        except ValueError as error:
            raise AnsibleActionFail(f"clock_tolerance (nanomq_pki_clock_tolerance): {error}") from error

    @staticmethod
    def _judged(result: dict[str, Any], tolerance: int | None) -> dict[str, Any]:
        """The answer; failed where the clocks are too far apart."""
        if tolerance is not None and not result.get("failed") and "clock_offset" in result:
            problem = clock_problem(result["time"], result["clock_offset"], tolerance)
            if problem:
                result.update(failed=True, msg=problem)
        return result
