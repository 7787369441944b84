# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Shows what an audit found as a table, on the controller."""

from __future__ import annotations

import shutil
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.color import stringc
from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report

COLOURS = {"critical": "bright red", "high": "red", "medium": "yellow", "low": "cyan"}
#: Columns before the text of a finding.
MARGIN = 25
NARROWEST, WIDEST = 80, 200


class ActionModule(ActionBase):
    """Print the table in one piece, so that those of several hosts do not mix."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        audit, fail_on = self._task.args.get("result"), self._task.args.get("fail_on") or "none"
        audit = report.with_outside(audit, self._task.args.get("outside"))
        if not isinstance(audit, dict):
            raise AnsibleActionFail("audit_report: result must be what edgesec.nanomq.audit returned")
        if fail_on not in ("none", *_policy.SEVERITIES):
            raise AnsibleActionFail(f"audit_report: fail_on must be none or one of {', '.join(_policy.SEVERITIES)}")
        why = report.reason(audit)
        if why:
            # Whatever fail_on says: nothing is known of the host.
            result.update(changed=False, failed=True, msg=f"The host was not audited: {report.visible(why)}")
            return result
        findings = report.findings(audit)
        host = (task_vars or {}).get("inventory_hostname", "")
        width = min(max(shutil.get_terminal_size((120, 24)).columns, NARROWEST), WIDEST)
        self._display.display(
            "\n".join(table(host, findings, len(audit.get("passed", [])), width, self._display.verbosity > 0))
        )
        failing = _policy.failing(findings, fail_on)
        result["changed"] = False
        if failing:
            result.update(
                failed=True,
                msg=f"{len(failing)} findings of severity {fail_on} or above: {', '.join(f.id for f in failing)}",
            )
        return result


def table(host: str, findings: list[_policy.Finding], holding: int, width: int, verbose: bool) -> list[str]:
    """The lines: the numbers, one line a finding, then what is waived, then what was not observed, by reason.

    Text of the host is shown with everything visible that a terminal would obey, or not draw.

    holding: how many rules hold
    width: columns of the terminal
    verbose: with all of the evidence and the remedy of each finding
    """
    lines = [f"{report.visible(host)}: {_policy.summary(findings, holding)}"]
    for finding in _policy.by_severity(findings):
        if not finding.observed and not finding.waived:
            continue
        mark = "waived" if finding.waived else finding.severity
        details = [report.visible(item) for item in (_waiver(finding) if finding.waived else finding.evidence)]
        head = f"  {stringc(f'{mark:<9}', COLOURS.get(mark, 'dark gray'))} {finding.id}  "
        if verbose:
            lines.append(head + finding.title)
            lines += [f"{'':{MARGIN}}{item}" for item in [*details, f"-> {finding.remedy}"]]
        else:
            more = f" (+{len(details) - 1})" if len(details) > 1 else ""
            lines.append(head + _cut(f"{finding.title} - {details[0]}", width - MARGIN - len(more)) + more)
    unseen: dict[str, list[str]] = {}
    for finding in findings:
        if not finding.observed and not finding.waived:
            unseen.setdefault("; ".join(finding.evidence), []).append(finding.id)
    for reason, rules in unseen.items():
        listed = ", ".join(rules) if len(rules) < 4 or verbose else f"{len(rules)} rules"
        text = f"{report.visible(reason)} ({listed})"
        lines.append(f"  {stringc('not seen ', 'purple')} {text if verbose else _cut(text, width - 12)}")
    return lines


def _waiver(finding: _policy.Finding) -> tuple[str, ...]:
    until = f" until {finding.waived_until}" if finding.waived_until else ""
    return (f"waived{until}: {finding.waived}",)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(room - 3, 0)] + "..."
