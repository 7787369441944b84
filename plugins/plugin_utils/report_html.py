# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The report of an audit as one HTML file that needs nothing else: no network, no other file, no server.

What hosts say is hostile. It reaches the page in two ways only: as JSON in a script element that is no program, where
no character can end that element; and through the template, where every value passes `visible`. The page's own script
puts text into text nodes alone. Its Content Security Policy admits that script, one style sheet, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pathlib
from typing import Any

import jinja2
from ansible_collections.edgesec.nanomq.plugins.plugin_utils.report import is_hidden
from markupsafe import Markup, escape

PARTS = pathlib.Path(__file__).resolve().parent / "report_page"
#: The page's script, in this order.
SCRIPTS = ("text", "document", "pieces", "table", "filter", "fleet", "heat_map", "pages", "routes", "print", "start")
SEVERITIES = ("low", "medium", "high", "critical")
#: The worst severity that is open on a host of this grade.
WORST = {"B": "low", "C": "medium", "D": "high", "F": "critical"}
#: Rows of each table in the part of the page that works without a script.
MOST_ROWS = 100
OBSERVED, BLOCKING = 1, 2
#: Runs before anything is drawn: the style sheet hides what the page's script will replace, unless that script fails.
SWITCH = (
    'document.documentElement.classList.add("js");'
    'addEventListener("error",()=>document.documentElement.classList.remove("js"))'
)


def render(document: dict) -> str:
    """The page, as text that UTF-8 can hold whatever the hosts said.

    document: the report document, format_version 1; it is not changed
    """
    style, script = _read("style.css"), _script()
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_finalize,
        keep_trailing_newline=True,
        loader=jinja2.FileSystemLoader(PARTS),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.j2").render(
        data=Markup(embed(pack(document))),
        document=document,
        headline=headline(document),
        hosts=_worst_hosts(document),
        most=MOST_ROWS,
        policy=_policy(style, script),
        script=Markup(script),
        severities=SEVERITIES[::-1],
        style=Markup(style),
        switch=Markup(SWITCH),
        title=escape("".join(map(_spelt, document["run"]["title"]))),
        unaudited=[host for host in document["hosts"] if host["state"] != "audited"],
    )


def pack(document: dict) -> dict[str, Any]:
    """The document with all that repeats written once, as document.js reads it.

    A fleet says the same thing thousands of times. Strings, findings and lists of passed rules are therefore kept in
    tables, and where one belongs there stands its index:

    strings: every text of a host; rules: [id, rule], those in the catalogue first
    findings: [rule, severity (0 low .. 3 critical), OBSERVED | BLOCKING, waived, waived_until, [evidence]]
    passed: [rules]; hosts: [name, state, reason, grade or null, version or null, [findings], passed]
    difference: null or {since, new: [[host, rule]], resolved: [[host, rule]], hosts_added, hosts_gone}, all strings
    """
    strings, findings, passed = _Table(), _Table(), _Table()
    rules = dict(document["rules"])
    for host in document["hosts"]:
        for finding in host["findings"]:
            rules.setdefault(finding["id"], {"severity": finding["severity"]})
        for identifier in host["passed"]:
            rules.setdefault(identifier, {})
    number = {identifier: index for index, identifier in enumerate(rules)}

    def packed(finding: dict) -> tuple:
        return (
            number[finding["id"]],
            SEVERITIES.index(finding["severity"]),
            OBSERVED * bool(finding["observed"]) | BLOCKING * bool(finding["blocking"]),
            strings(finding["waived"]),
            strings(finding["waived_until"]),
            tuple(map(strings, finding["evidence"])),
        )

    hosts = [
        [
            strings(host["name"]),
            strings(host["state"]),
            strings(host["reason"]),
            host["grade"],
            None if host["version"] is None else strings(host["version"]),
            [findings(packed(finding)) for finding in host["findings"]],
            passed(tuple(number[identifier] for identifier in host["passed"])),
        ]
        for host in document["hosts"]
    ]
    difference = document["difference"]
    if difference is not None:
        pairs = {
            key: [[strings(item["host"]), strings(item["rule"])] for item in difference[key]]
            for key in ("new", "resolved")
        }
        names = {key: list(map(strings, difference[key])) for key in ("hosts_added", "hosts_gone")}
        difference = {"since": difference["since"], **pairs, **names}
    return {
        "format": document["format"],
        "format_version": document["format_version"],
        "run": document["run"],
        "summary": document["summary"],
        "headline": headline(document),
        "rules": list(rules.items()),
        "strings": list(strings),
        "findings": list(findings),
        "passed": list(passed),
        "hosts": hosts,
        "difference": difference,
    }


class _Table(dict):
    """Values by their index: calling it gives the index of a value, which is added if it is new."""

    def __call__(self, value: Any) -> int:
        return self.setdefault(value, len(self))


def embed(data: Any) -> str:
    """JSON in ASCII that an HTML parser takes for text wherever it stands."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def visible(text: str) -> Markup:
    """The text for HTML, with every character that shows nothing, or steers those around it, spelt out: ``\\u202e``."""
    return Markup("").join(
        escape(character) if spelt == character else Markup('<span class="ctl">{}</span>').format(spelt)
        for character, spelt in zip(text, map(_spelt, text))
    )


def _spelt(character: str) -> str:
    if not is_hidden(character):
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\u{{{ord(character):x}}}"


def headline(document: dict) -> str:
    """What the fleet's grade is about, in a sentence."""
    summary = document["summary"]
    grade, audited, missing = summary["grade"], summary["audited"], summary["not_audited"]
    if grade is None:
        return "No host was audited, so nothing is known about this fleet."
    if grade == "A":
        return "Every rule holds on every host, or is waived." if audited > 1 else "Every rule holds, or is waived."
    severity, number = WORST[grade], summary["grades"][grade]
    if number == 0:
        return f"{_count(missing, 'host was', 'hosts were')} not audited: the grade can be no better than {grade}."
    seen = sum(
        any(f["severity"] == severity and f["observed"] and not f["waived"] for f in host["findings"])
        for host in document["hosts"]
        if host["grade"] == grade
    )
    where = (
        f" on {seen or number:,} of {_count(audited, 'audited host', 'audited hosts')}" if summary["hosts"] > 1 else ""
    )
    if seen:
        return f"{severity.capitalize()} findings are open{where}."
    return f"Rules of {severity} severity could not be observed{where}."


def _count(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _worst_hosts(document: dict) -> list[dict]:
    """Hosts with open findings of high or critical severity, the worst first: {name, grade, critical, high: [ids]}."""
    rows = []
    for host in document["hosts"]:
        row: dict[str, Any] = {"name": host["name"], "grade": host["grade"], "critical": [], "high": []}
        for finding in host["findings"]:
            if not finding["waived"] and finding["severity"] in row:
                row[finding["severity"]].append(finding["id"] + ("" if finding["observed"] else " (not observed)"))
        if row["critical"] or row["high"]:
            rows.append(row)
    return sorted(rows, key=lambda row: (-len(row["critical"]), -len(row["high"]), row["name"]))


def _finalize(value: Any) -> Any:
    """What a value becomes in the template: text that is not ours is made visible."""
    if isinstance(value, Markup) or not isinstance(value, (str, int)):
        return value
    return f"{value:,}" if isinstance(value, int) else visible(value)


def _policy(style: str, script: str) -> Markup:
    """The Content Security Policy: this style sheet, this script, nothing from anywhere, and no text made markup."""
    return Markup(
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(SWITCH)} {_digest(script)}; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _script() -> str:
    return '"use strict";\n(() => {\n' + "".join(_read(f"{name}.js") for name in SCRIPTS) + "})();\n"


def _read(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")
