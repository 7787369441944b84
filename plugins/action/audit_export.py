# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Writes the reports of an audit, on the controller."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report, report_files

OPTIONS = {
    "directory": {"type": "path", "required": True},
    "formats": {
        "type": "list",
        "elements": "str",
        "choices": sorted(report_files.FORMATS),
        "default": sorted(report_files.FORMATS),
    },
    "title": {"type": "str", "default": report.TITLE},
    "keep": {"type": "int", "default": 10},
    "results": {"type": "dict"},
    "reasons": {"type": "dict", "default": {}},
    "variable": {"type": "str", "default": "nanomq_audit_result"},
    "outside_variable": {"type": "str", "default": "nanomq_audit_outside"},
}

#: Strategies that honour run_once. With the others each host comes here, at a time of its own.
IN_STEP = {f"{prefix}{name}" for prefix in ("", "ansible.builtin.", "ansible.legacy.") for name in ("linear", "debug")}
#: Seconds without another host after which one of those writes what is known by then.
QUIET = 1.0


class ActionModule(ActionBase):
    """No module runs anywhere: the work is done in this process."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        _validated, options = self.validate_argument_spec(argument_spec=OPTIONS)
        if options["keep"] < 1:
            raise AnsibleActionFail("audit_export: keep must be at least 1: the next report is compared with the last")
        directory = os.path.abspath(options["directory"])
        try:
            result.update(self._export(directory, options, task_vars or {}))
        except (FileProblem, OSError) as error:
            raise AnsibleActionFail(f"the reports cannot be written to {directory}: {error}") from error
        return result

    def _export(self, directory: str, options: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        play = self._task.get_play()
        report_files.prepare(directory, make=not self._task.check_mode)
        if self._task.check_mode:
            # Nothing is written, not even the lock.
            return self._make(report_files.Reports(directory, play._uuid, {}), options, task_vars)
        order = _order()
        with report_files.locked(directory, play._uuid) as reports:
            reports.enter(order, task_vars["inventory_hostname"])
        if play.strategy not in IN_STEP and not _last(directory, play._uuid, order):
            return {"changed": False, "skipped": True, "skip_reason": "a host that came later writes the reports"}
        with report_files.locked(directory, play._uuid) as reports:
            return self._make(reports, options, task_vars)

    def _make(
        self, reports: report_files.Reports, options: dict[str, Any], task_vars: dict[str, Any]
    ) -> dict[str, Any]:
        results, reasons = options["results"], options["reasons"]
        if results is None:
            results, unknown = _gather(task_vars, options["variable"], options["outside_variable"], reports.seen)
            reports.note(list(results))
            reasons = {**unknown, **reasons}
        previous, problem = reports.previous()
        if problem:
            self._display.warning(
                f"The reports tell no difference from the last run: {problem}. That file is kept, by another name."
            )
        finished = datetime.datetime.now(datetime.UTC)
        document = report.build(results, reasons, finished, previous, title=options["title"])
        if not self._task.check_mode:
            reports.write(document, options["formats"], options["keep"], previous)
        names = [name for key, (name, _render) in report_files.FORMATS.items() if key in options["formats"]]
        difference = document["difference"]
        return {
            "changed": True,
            "summary": document["summary"],
            "new": len(difference["new"]) if difference else None,
            "resolved": len(difference["resolved"]) if difference else None,
            "files": sorted(os.path.join(reports.directory, name) for name in names),
        }


def _order() -> int:
    """The number of this process among the children of ansible-playbook: who was started later knows more results."""
    return (multiprocessing.current_process()._identity or (0,))[-1]


def _last(directory: str, play: str, order: int) -> bool:
    """Whether no host that knows more comes for a while."""
    end = time.monotonic() + QUIET
    while time.monotonic() < end:
        with report_files.locked(directory, play) as reports:
            if reports.superseded(order):
                return False
        time.sleep(QUIET / 10)
    return True


def _gather(
    task_vars: Mapping[str, Any], variable: str, outside: str, seen: set[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """({host: result}, {host: why there is none}) of all hosts of the play.

    A result may be left from an earlier play: it counts for hosts that are here, or have been here in this play.
    """
    here = seen | set(task_vars["ansible_play_batch"])
    going = set(task_vars["ansible_play_hosts"])
    results, reasons = {}, {}
    for host in task_vars["ansible_play_hosts_all"]:
        if host in here:
            known = task_vars["hostvars"][host]
            results[host] = report.with_outside(known.get(variable), known.get(outside))
        elif host in going:
            reasons[host] = "the audit has not come to it yet"
        else:
            reasons[host] = "it failed, or could not be reached, before the audit"
    return results, reasons
