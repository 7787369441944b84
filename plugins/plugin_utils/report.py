# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The report of an audit as plain data, from which every format is made. Its schema is docs/audit.schema.json.

What comes from a host is hostile: it may hold markup, escapes of terminals, controls of direction, and be of any shape.
Of a finding only the evidence and the waiver are the host's own words; all else is the catalogue's. A rule of which a
host says nothing has not been observed, and so does not pass.
"""

from __future__ import annotations

import datetime
import functools
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy

FORMAT = "edgesec.nanomq/audit"
FORMAT_VERSION = 1
TITLE = "NanoMQ audit"

GRADES = "ABCDF"
_GRADE = {"low": "B", "medium": "C", "high": "D", "critical": "F"}
#: The best grade of a fleet while one of its hosts was not audited.
INCOMPLETE = "C"

#: A host must not fill the report: characters of a text, and texts of a finding.
LONGEST, MOST = 2000, 100

Finding = _policy.Finding


class Unreadable(Exception):
    """A file is no report of this format and version."""


# --- text of strangers ------------------------------------------------------------------------------------------------

#: What is drawn as nothing though it is no control: soft hyphen to variation selectors (Default_Ignorable_Code_Point).
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def plain(value: Any) -> str:
    """Text that can be written as UTF-8 and read by anything: NUL and lone surrogates become `\\x00`, `\\udc80`.

    All else stays as it is, up to LONGEST characters.
    """
    text = value if isinstance(value, str) else "" if value is None else str(value)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ... ({len(text) - LONGEST} more characters)"
    # Joined anew, so that a subclass of str such as Ansible's tagged one becomes a plain str.
    return "".join(_escape(c) if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


def visible(text: str) -> str:
    """Text without anything that a terminal obeys, that reorders what is around it, or that cannot be seen.

    Such characters appear as `\\x1b`, `\\u202e`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if is_hidden(c) else c for c in text)


def is_hidden(character: str) -> bool:
    """Whether a character shows nothing, or does something to what is around it. The space alone is what it is."""
    if unicodedata.category(character)[0] in "CZ":
        return character != " "
    return bool(_INVISIBLE.match(character))


# --- what a host answered ---------------------------------------------------------------------------------------------


def reason(result: Any) -> str:
    """Why a result of the module `audit` is none, empty where it is one."""
    if not isinstance(result, Mapping):
        return "it has no result"
    said = plain(result.get("msg") or "it is not said why")
    if result.get("unreachable"):
        return f"unreachable: {said}"
    if result.get("failed"):
        return f"the audit failed: {said}"
    if result.get("skipped"):
        return "the audit was skipped"
    if not isinstance(result.get("findings"), list) or not isinstance(result.get("passed"), list):
        return "its answer is not that of an audit"
    return ""


def with_outside(result: Any, outside: Any) -> Any:
    """A result of `audit` with what `audit_outside` says of the host; where nobody looked from outside, as it is.

    A second host that could not look has observed nothing.
    """
    if reason(result) or not isinstance(outside, Mapping) or outside.get("skipped"):
        return result
    why = reason(outside)
    found, holding = outside.get("findings"), outside.get("passed")
    if why:
        found, holding = [_unseen(rule, f"from the second host: {why}") for rule in _policy.passed_outside([])], []
    return {**result, "findings": [*result["findings"], *found], "passed": [*result["passed"], *holding]}


def _unseen(rule: str, why: str) -> dict[str, Any]:
    return {"id": rule, "observed": False, "evidence": [why]}


def findings(result: Mapping[str, Any]) -> list[Finding]:
    """The findings of a result of the module `audit`, the worst first, a rule once, in the words of the catalogue."""
    given = {
        str(item["id"]): item for item in result["findings"] if isinstance(item, Mapping) and _known(item.get("id"))
    }
    silent = set(_policy.passed([])) - set(given) - set(_names(result["passed"]))
    found = [_finding(name, item) for name, item in given.items()]
    found += [_finding(name, _unseen(name, "the host says nothing of it")) for name in silent]
    return _policy.by_severity(found)


def _known(name: Any) -> bool:
    return isinstance(name, str) and name in _policy.RULES


def _names(names: Any) -> list[str]:
    return [str(name) for name in names if _known(name)]


def _finding(name: str, item: Mapping[str, Any]) -> Finding:
    rule = _policy.RULES[name]
    waived = plain(item.get("waived")).strip()
    return Finding(
        rule.id,
        rule.severity,
        rule.layer,
        rule.title,
        _evidence(item.get("evidence")),
        rule.remedy,
        observed=item.get("observed") is not False,
        waived=waived,
        blocking=rule.blocking,
        waived_until=_day(item.get("waived_until")) if waived else "",
    )


def _evidence(given: Any) -> tuple[str, ...]:
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    texts = [plain(item) for item in items[:MOST]]
    if len(items) > MOST:
        texts.append(f"... and {len(items) - MOST} more")
    return tuple(filter(None, texts)) or ("the host gives no evidence",)


def _day(value: Any) -> str:
    text = plain(value)
    return text if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII) else ""


# --- the document -----------------------------------------------------------------------------------------------------


def build(
    results: Mapping[str, Any],
    reasons: Mapping[str, str],
    finished: datetime.datetime,
    previous: dict[str, Any] | None = None,
    *,
    title: str = TITLE,
) -> dict[str, Any]:
    """The report as plain data.

    results: {host: what the module `audit` returned, None where there is nothing}
    reasons: {host: why there is nothing}, of hosts in `results` or not; it wins over a result
    finished: when the audit ended; with a time zone
    previous: the report of the run before, as `read` gave it
    """
    # Names that come out alike, such as a lone surrogate and its escape, are one host.
    everybody = {plain(name): name for name in (*results, *reasons)}
    hosts = [_host(shown, results.get(name), reasons.get(name, "")) for shown, name in sorted(everybody.items())]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run": {"finished": timestamp(finished), "collection_version": collection_version(), "title": plain(title)},
        "summary": _summary(hosts),
        "rules": {rule.id: _rule(rule) for rule in _policy.RULES.values()},
        "hosts": hosts,
        "difference": difference(hosts, previous) if previous else None,
    }


def timestamp(when: datetime.datetime) -> str:
    """`2026-11-24T20:15:26Z`"""
    return when.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@functools.cache
def collection_version() -> str:
    """The version of this collection, from the manifest of an installed one or the description of a tree."""
    root = pathlib.Path(__file__).parents[2]
    for name, section in (("MANIFEST.json", "collection_info"), ("galaxy.yml", "")):
        try:
            loaded = yaml.safe_load((root / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        return str((loaded[section] if section else loaded)["version"])
    return "unknown"


def _rule(rule: _policy.Rule) -> dict[str, Any]:
    return {
        "severity": rule.severity,
        "layer": rule.layer,
        "title": rule.title,
        "why": rule.why,
        "remedy": rule.remedy,
        "source": rule.source,
        "references": [{"standard": r.standard, "id": r.id, "title": r.title} for r in rule.references],
    }


def _host(name: str, result: Any, why: str) -> dict[str, Any]:
    host: dict[str, Any] = {"name": name, "state": "not_audited", "reason": plain(why) or reason(result)}
    if host["reason"]:
        return {**host, "grade": None, "version": None, "findings": [], "passed": []}
    found = findings(result)
    broken = {finding.id for finding in found}
    return {
        **host,
        "state": "audited",
        "grade": grade(found),
        "version": _version(result),
        "findings": [_as_data(finding) for finding in found],
        "passed": sorted(set(_names(result["passed"])) - broken),
    }


def _version(result: Mapping[str, Any]) -> str | None:
    observation = result.get("observation")
    version = observation.get("version") if isinstance(observation, Mapping) else None
    return plain(version) if isinstance(version, str) and version else None


def _as_data(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.id,
        "severity": finding.severity,
        "observed": finding.observed,
        "waived": finding.waived,
        "waived_until": finding.waived_until,
        "blocking": finding.blocking,
        "evidence": list(finding.evidence),
    }


def grade(found: Iterable[Finding]) -> str:
    """The grade of a host: A without an open finding, else that of the worst. What was not observed counts as open."""
    return max((_GRADE[finding.severity] for finding in found if not finding.waived), default="A")


def _summary(hosts: list[dict[str, Any]]) -> dict[str, Any]:
    grades = [host["grade"] for host in hosts if host["grade"]]
    missing = len(hosts) - len(grades)
    found = [finding for host in hosts for finding in host["findings"]]
    still_open = [finding for finding in found if not finding["waived"]]
    seen = [finding["severity"] for finding in still_open if finding["observed"]]
    return {
        "grade": max([*grades, *([INCOMPLETE] if missing else [])]) if grades else None,
        "hosts": len(hosts),
        "audited": len(grades),
        "not_audited": missing,
        "grades": {name: grades.count(name) for name in GRADES},
        "findings": {severity: seen.count(severity) for severity in reversed(_policy.SEVERITIES)},
        "not_observed": len(still_open) - len(seen),
        "waived": len(found) - len(still_open),
        "passed": sum(len(host["passed"]) for host in hosts),
    }


def difference(hosts: list[dict[str, Any]], previous: dict[str, Any]) -> dict[str, Any]:
    """What is open now and was not in the previous report, and what was and now passes.

    Neither says anything of a host that was not audited this time. Hosts that were not audited last time have all of
    their findings among the new ones.
    """
    before, now = _open(previous["hosts"]), _open(hosts)
    passes = {(host["name"], rule) for host in hosts for rule in host["passed"]}
    names, known = {host["name"] for host in hosts}, {host["name"] for host in previous["hosts"]}
    return {
        "since": previous["run"]["finished"],
        "new": _pairs(now - before),
        "resolved": _pairs(before & passes),
        "hosts_added": sorted(names - known),
        "hosts_gone": sorted(known - names),
    }


def _open(hosts: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(host["name"], f["id"]) for host in hosts for f in host["findings"] if not f["waived"]}


def _pairs(pairs: set[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"host": host, "rule": rule} for host, rule in sorted(pairs)]


# --- as a file --------------------------------------------------------------------------------------------------------


def render(document: dict[str, Any]) -> str:
    """The document as JSON. ASCII alone, so that a terminal that shows the file obeys nothing in it."""
    return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def read(data: bytes) -> dict[str, Any]:
    """The document in a file that `render` made. Raises Unreadable with the reason.

    Only that is looked at which a difference needs.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"it is no JSON: {visible(plain(error))}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Unreadable("it is no report of an audit")
    if document.get("format_version") != FORMAT_VERSION:
        shown = visible(plain(document.get("format_version")))
        raise Unreadable(f"it has version {shown} of the format, and this collection knows {FORMAT_VERSION}")
    try:
        finished, hosts = document["run"]["finished"], document["hosts"]
        datetime.datetime.strptime(finished, "%Y-%m-%dT%H:%M:%SZ")
        whole = all(
            isinstance(text, str)
            for host in hosts
            for text in (host["name"], *(f[key] for f in host["findings"] for key in ("id", "waived")))
        )
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise Unreadable("it lacks what a report must have")
    return document
