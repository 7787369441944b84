# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The report of an audit as SARIF 2.1.0, for what collects findings of code: one result for each finding of a host.

Passed rules are left out. A host is a logical location; the file that stands for it, `<host>/etc/nanomq/nanomq.conf`,
is relative to nothing that exists, since consumers want a file for every result.
"""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.plugin_utils.report import visible

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
#: {severity: (level, security-severity)}; the second on the scale of CVSS, as those read it who know of it.
LEVELS = {"critical": ("error", "9.5"), "high": ("error", "8.0"), "medium": ("warning", "5.5"), "low": ("note", "2.0")}
NOT_AUDITED = "NMQ-HOST-NOT-AUDITED"
CONF = "etc/nanomq/nanomq.conf"


def render(document: dict[str, Any]) -> str:
    """SARIF for a document of `report.build`. ASCII alone, as the document itself."""
    run: dict[str, Any] = {
        "tool": {"driver": _driver(document)},
        "automationDetails": {"id": "edgesec.nanomq/audit/"},
        "invocations": [_invocation(document)],
        "originalUriBaseIds": {"HOSTS": {"description": {"text": "A folder for each host, named after it."}}},
        "columnKind": "unicodeCodePoints",
        "results": _results(document),
        "properties": {"title": visible(document["run"]["title"]), "summary": document["summary"]},
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"


def _driver(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "edgesec.nanomq audit",
        "organization": "EdgeSec",
        "version": document["run"]["collection_version"],
        "informationUri": "https://github.com/edgesec/edgesec.nanomq/blob/main/docs/audit.md",
        "rules": [_rule(name, rule) for name, rule in document["rules"].items()],
        "notifications": [
            {
                "id": NOT_AUDITED,
                "name": "HostNotAudited",
                "shortDescription": {"text": "A host could not be audited."},
                "fullDescription": {"text": "Nothing is known of the host, so the fleet has no good grade."},
                "help": {"text": "See to it that the host can be reached and that the audit runs there as root."},
                "defaultConfiguration": {"level": "error"},
            }
        ],
    }


def _rule(name: str, rule: dict[str, Any]) -> dict[str, Any]:
    level, severity = LEVELS[rule["severity"]]
    cited = [f"{item['standard']} {item['id']} ({item['title']})" for item in rule["references"]]
    also = f" See also: {'; '.join(cited)}." if cited else ""
    text = f"{rule['why']} Remedy: {rule['remedy']}. Source: {rule['source']}.{also}"
    return {
        "id": name,
        "shortDescription": {"text": _sentence(rule["title"])},
        "fullDescription": {"text": _message(rule["why"])},
        "help": {"text": _message(text)},
        "defaultConfiguration": {"level": level},
        "properties": {
            "security-severity": severity,
            "severity": rule["severity"],
            "tags": ["security", rule["layer"]],
            "references": rule["references"],
        },
    }


def _invocation(document: dict[str, Any]) -> dict[str, Any]:
    missing = [host for host in document["hosts"] if host["state"] != "audited"]
    return {
        "executionSuccessful": not missing,
        "endTimeUtc": document["run"]["finished"],
        "toolExecutionNotifications": [
            {
                "descriptor": {"id": NOT_AUDITED, "index": 0},
                "level": "error",
                "message": {"text": _sentence(f"{host['name']} was not audited: {host['reason']}")},
                "locations": [{"logicalLocations": [_logical(host["name"])]}],
            }
            for host in missing
        ],
    }


def _results(document: dict[str, Any]) -> list[dict[str, Any]]:
    index = {name: position for position, name in enumerate(document["rules"])}
    change = document["difference"]
    new = {(item["host"], item["rule"]) for item in change["new"]} if change else set()
    results = []
    for host in document["hosts"]:
        for finding in host["findings"]:
            title = document["rules"][finding["id"]]["title"]
            result = _result(host["name"], finding, title, index[finding["id"]])
            # The difference is about what is open.
            if change and not finding["waived"]:
                result["baselineState"] = "new" if (host["name"], finding["id"]) in new else "unchanged"
            results.append(result)
    return results


def _result(host: str, finding: dict[str, Any], title: str, index: int) -> dict[str, Any]:
    seen = "" if finding["observed"] else "not observed: "
    digest = hashlib.sha256(f"{host}\0{finding['id']}".encode()).hexdigest()
    return {
        "ruleId": finding["id"],
        "ruleIndex": index,
        # Whatever is no failure has no level (3.27.10).
        "kind": "fail" if finding["observed"] else "review",
        "level": LEVELS[finding["severity"]][0] if finding["observed"] else "none",
        "message": {"text": _sentence(f"{host}: {title}: {seen}{'; '.join(finding['evidence'])}")},
        "locations": [_location(host)],
        "partialFingerprints": {"hostAndRule/v1": digest, "primaryLocationLineHash": f"{digest[:16]}:1"},
        # Of all results or of none (3.27.23).
        "suppressions": _suppressions(finding),
    }


def _suppressions(finding: dict[str, Any]) -> list[dict[str, Any]]:
    if not finding["waived"]:
        return []
    until = finding["waived_until"]
    suppression: dict[str, Any] = {
        "kind": "external",
        "status": "accepted",
        "justification": visible(finding["waived"] + (f" (until {until})" if until else "")),
    }
    if until:
        suppression["properties"] = {"expires": until}
    return [suppression]


def _location(host: str) -> dict[str, Any]:
    # A host named by dots alone would be a step in a path.
    folder = urllib.parse.quote(host, safe="") if host.strip(".") else f"host{host}"
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": f"{folder}/{CONF}", "uriBaseId": "HOSTS"},
            "region": {"startLine": 1},
        },
        "logicalLocations": [_logical(host)],
    }


def _logical(host: str) -> dict[str, Any]:
    shown = visible(host)
    return {"name": shown, "fullyQualifiedName": shown, "kind": "resource"}


def _sentence(text: str) -> str:
    return _message(text if text.endswith((".", "?", "!")) else f"{text}.")


def _message(text: str) -> str:
    """A message string in which nothing is a placeholder (3.11.5) or the link of a host (3.11.6)."""
    return visible(text).replace("{", "{{").replace("}", "}}").replace("](", "] (")
