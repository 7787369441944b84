# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The report of an audit as JUnit XML, for pipelines: a suite is a host, and a case is a rule.

A finding is a failure, whatever its severity; a waived one is skipped; what was not observed, and a host that was not
audited, is an error.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.plugin_utils.report import visible

# Each text of a host goes through `visible`, which leaves no character that XML 1.0 refuses.

_COUNTED = ("tests", "failures", "errors", "skipped")


def render(document: dict[str, Any]) -> str:
    """JUnit XML for a document of `report.build`."""
    root = ET.Element("testsuites", name=visible(document["run"]["title"]))
    for host in document["hosts"]:
        root.append(_suite(host, document))
    for name in _COUNTED:
        root.set(name, str(sum(int(suite.get(name, 0)) for suite in root)))
    root.set("time", "0")
    ET.indent(root, " ")
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(host: dict[str, Any], document: dict[str, Any]) -> ET.Element:
    name = visible(host["name"])
    suite = ET.Element("testsuite", name=name)
    if host["state"] != "audited":
        case = ET.SubElement(suite, "testcase", classname=name, name="audit", time="0")
        ET.SubElement(case, "error", message=visible(host["reason"]), type="not audited")
    findings = {finding["id"]: finding for finding in host["findings"]}
    for rule_id in sorted((*findings, *host["passed"])):
        rule = document["rules"][rule_id]
        case = ET.SubElement(suite, "testcase", classname=name, name=f"{rule_id} {visible(rule['title'])}", time="0")
        if rule_id in findings:
            case.append(_outcome(findings[rule_id], rule))
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(1 for _element in suite.iter(tag))))
    suite.set("time", "0")
    suite.set("timestamp", document["run"]["finished"].rstrip("Z"))
    return suite


def _outcome(finding: dict[str, Any], rule: dict[str, Any]) -> ET.Element:
    evidence = [visible(item) for item in finding["evidence"]]
    if finding["waived"]:
        until = f" until {finding['waived_until']}" if finding["waived_until"] else ""
        return ET.Element("skipped", message=f"waived{until}: {visible(finding['waived'])}")
    if finding["observed"]:
        outcome = ET.Element("failure", message=f"{rule['title']}: {evidence[0]}", type=finding["severity"])
    else:
        outcome = ET.Element("error", message=f"not observed: {evidence[0]}", type="not observed")
    outcome.text = "\n".join([f"severity: {finding['severity']}", *evidence, f"remedy: {rule['remedy']}"])
    return outcome
