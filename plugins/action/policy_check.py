# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Judges a configuration or a front end on the controller, before anything is touched. Nothing runs on the host."""

from __future__ import annotations

import datetime
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.edgesec.nanomq.plugins.module_utils import _access, _policy, _schema

OPTIONS = {"conf", "front", "version", "waivers", "fail_on", "context"}
FRONT = {"roles", "clients", "anonymous"}
FAIL_ON = ("none", *_policy.SEVERITIES)


class ActionModule(ActionBase):
    """Ask the schema, then the policy."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        args = self._arguments()
        problems, found = _judge_conf(args) if args["front"] is None else _judge_front(args["front"])
        findings = _policy.apply_waivers(found, args["waivers"], datetime.datetime.now(datetime.UTC).date())
        stopping = _policy.failing(findings, args["fail_on"], deployment=True)
        for finding in findings:
            if finding not in stopping:
                self._display.warning(_line(finding))
        # Only what was found goes into the result: the configuration holds secrets.
        result.update(
            changed=False,
            problems=[str(problem) for problem in problems],
            findings=[finding.as_dict() for finding in findings],
        )
        if problems or stopping:
            what = "configuration" if args["front"] is None else "front end"
            result.update(failed=True, msg=_message(what, problems, stopping))
        return result

    def _arguments(self) -> dict[str, Any]:
        """The task's arguments, each of its type. Raises AnsibleActionFail, quoting no value."""
        args = self._task.args
        unknown = sorted(set(args) - OPTIONS)
        if unknown:
            raise AnsibleActionFail(f"policy_check has no option {', '.join(unknown)}")
        given = [name for name in ("conf", "front") if name in args]
        if len(given) != 1 or not isinstance(args[given[0]], dict):
            raise AnsibleActionFail(
                "policy_check: needs either conf, a dictionary that mirrors nanomq.conf, or front, a dictionary"
            )
        unknown = sorted(set(args.get("front") or ()) - FRONT, key=str)
        if unknown:
            raise AnsibleActionFail(f"policy_check: front has no {', '.join(map(str, unknown))}")
        waivers, context = args.get("waivers") or [], args.get("context") or {}
        if not isinstance(waivers, list) or not isinstance(context, dict):
            raise AnsibleActionFail("policy_check: waivers must be a list, and context a dictionary")
        fail_on = args.get("fail_on") or "high"
        if fail_on not in FAIL_ON:
            raise AnsibleActionFail(f"policy_check: fail_on must be one of {', '.join(FAIL_ON)}")
        return {
            "conf": args.get("conf"),
            "front": args.get("front"),
            "version": str(args.get("version") or ""),
            "waivers": waivers,
            "context": context,
            "fail_on": fail_on,
        }


def _judge_conf(args: dict[str, Any]) -> tuple[list, list[_policy.Finding]]:
    conf, version = args["conf"], args["version"]
    return _problems(conf, version), _policy.evaluate_config(conf, version=version, context=args["context"])


def _judge_front(front: dict) -> tuple[list, list[_policy.Finding]]:
    declared, clients, anonymous = front.get("roles", {}), front.get("clients", []), front.get("anonymous", [])
    problems = _access.problems(declared, clients, anonymous)
    if problems:
        return problems, []
    every = _access.roles(declared)
    # A role that is declared counts, also while nobody has it: it was declared to be given.
    held = {*declared, *anonymous, *(client["role"] for client in clients)}
    calls = {name: every[name] for name in sorted(held)}
    return problems, _policy.evaluate_front({"roles": calls, "anonymous": anonymous})


def _problems(conf: dict, version: str) -> list:
    """What the schema says. A version that is none is the policy's business."""
    try:
        return _schema.validate(conf, version or None)
    except ValueError:
        return _schema.validate(conf, None)


def _line(finding: _policy.Finding) -> str:
    if finding.waived:
        what = f"{finding.title}: {'; '.join(finding.evidence)}"
        return f"{finding.id} ({finding.severity}) is waived: {finding.waived}. {what}"
    return str(finding)


def _message(what: str, problems: list, findings: list[_policy.Finding]) -> str:
    """One message with all that must be set right."""
    count = len(problems) + len(findings)
    lines = [f"the {what} breaks {count} rule{'s' * (count != 1)}; nothing was touched"]
    lines += [f"- {problem}" for problem in problems]
    if problems and what == "configuration":
        lines.append("    -> Set it right where it comes from: nanomq_broker_settings, or the role's variable for it")
    for finding in findings:
        lines.append(f"- {finding.id} ({finding.severity}) {finding.title}")
        lines += [f"    {item}" for item in finding.evidence]
        lines.append(f"    -> {finding.remedy}")
    return "\n".join(lines)
