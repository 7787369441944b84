# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Results of audits to report on, and text that has broken out of other reports."""

from __future__ import annotations

import datetime
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy
from hypothesis import strategies as st

NOW = datetime.datetime(2026, 11, 24, 20, 15, 26, tzinfo=datetime.UTC)
LATER = NOW + datetime.timedelta(days=1)

ASKED = _policy.passed([])
#: A rule of each severity.
CRITICAL, HIGH, MEDIUM, LOW = "NMQ-NET-001", "NMQ-ACL-001", "NMQ-ACL-006", "NMQ-AUT-009"

HOSTILE = (
    "<script>alert(1)</script>",
    "]]><!-- &amp; ' \" -->",
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "\u202emoc.live\u202c",
    "zero\u200bwidth\ufeff\u2060\u00ad",
    "\u2028\u2029\x85",
    "nul\x00nul",
    "lone\udc80\ud800",
    "\U000e0041\ufe0f\u3164",
    "\ufffe\uffff\U0001ffff",
    "[click](https://attacker.example/)",
    "{0} {{ 7 * 7 }} {% raw %}",
    "line\nline\r\n\ttab",
    "../../etc/passwd",
    "',;=$(reboot)`reboot`",
    "ünïcödé ☃ 🦟",
)

#: Any text, also such as no encoding takes.
texts = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=()), max_size=30)


def finding(rule: str, *evidence: str, **more: Any) -> dict[str, Any]:
    """As the module `audit` returns it."""
    found = _policy._finding(_policy.RULES[rule], evidence or ("it was seen",))
    return {**found.as_dict(), **more}


def audit(*findings: dict[str, Any], version: Any = "0.25.6") -> dict[str, Any]:
    """A result of the module `audit`: all that is not among the findings passes."""
    broken = {item["id"] for item in findings}
    return {
        "changed": False,
        "failed": False,
        "findings": list(findings),
        "passed": [rule for rule in ASKED if rule not in broken],
        "summary": "",
        "observation": {"version": version},
    }


FLEET = {
    "edge-1": audit(
        finding(CRITICAL, "0.0.0.0:8081 accepts connections"),
        finding(MEDIUM, observed=False, evidence=["the configuration cannot be read"]),
        finding(HIGH, waived="a lab", waived_until="2030-12-31"),
    ),
    "edge-2": audit(),
    "edge-3": {"unreachable": True, "changed": False, "msg": "Failed to connect"},
}
