# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Report documents of fleets that look like real ones: the real rules, evidence as the audit words it."""

from __future__ import annotations

import collections
import random
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy

SITES = ("berlin", "brno", "cork", "delft", "gdansk", "graz", "lyon", "malmo", "porto", "turin")
KINDS = ("gw", "line", "meter", "press", "pump")
GRADES = {"critical": "F", "high": "D", "medium": "C", "low": "B"}
FINISHED = "2026-11-24T20:15:26Z"
SINCE = "2026-11-23T20:14:02Z"
#: {rule: evidence as the audit words it}; {host} and {n} differ from host to host.
EVIDENCE = {
    "NMQ-NET-001": ["http_server.ip_addr: absent, so the broker binds 0.0.0.0", "listens on 0.0.0.0:8081"],
    "NMQ-NET-002": ["listeners.wss.bind: absent, so the broker binds 0.0.0.0:8086"],
    "NMQ-NET-006": ["no verdict of nftables keeps 10.20.{n}.0/24 away from port 8081"],
    "NMQ-NET-007": ["a process of the user nobody got an answer from 127.0.0.1:8081"],
    "NMQ-NET-008": ["0.0.0.0:1883 is open, and no listener of /etc/nanomq.conf names it (pid 4{n})"],
    "NMQ-TLS-001": ["listeners.tcp.bind: 0.0.0.0:1883", "CONNECT over plain TCP was answered"],
    "NMQ-TLS-002": ["listeners.ws.bind: 0.0.0.0:8083/mqtt"],
    "NMQ-TLS-013": ["subject CN={host}.plant.example, serial 5f3a{n}: expires in 9 days"],
    "NMQ-TLS-014": ["/etc/certs/key.pem: mode 0644, root:root, readable by the user nobody"],
    "NMQ-AUT-001": ["auth.allow_anonymous: absent, so anonymous clients are let in", "anonymous CONNECT: accepted"],
    "NMQ-AUT-004": ["auth.password: user sensor-{n} has 8 characters"],
    "NMQ-AUT-007": ["http_server.password: absent, so it is the shipped one", "GET /api/v4/brokers: 200"],
    "NMQ-ACL-001": ["auth.acl: absent"],
    "NMQ-ACL-006": ["auth.acl.rules[{n}]: clientid line-{n} and no username"],
    "NMQ-SVC-001": ["/tmp/nanomq_cmd.ipc: socket, mode 0777"],
    "NMQ-SVC-004": ["log.dir: /tmp"],
    "NMQ-SVC-011": ["pid 4{n}: uid 0"],
    "NMQ-SVC-012": ["pid 4{n}: CapEff 000001ffffffffff", "NoNewPrivs: 0"],
    "NMQ-SVC-014": ["/etc/nanomq.conf: mode 0644"],
    "NMQ-SVC-020": ["/etc/nanomq/nanomq.conf was changed at 2026-11-{d} 04:12, after the start of pid 4{n}"],
    "NMQ-VER-003": ["0.24.6: CVE-2026-21888, CVE-2026-22040, CVE-2026-32696, CVE-2026-25627"],
    "NMQ-VER-004": ["0.24.6 is installed"],
}
SHIPPED = [*(rule for rule in EVIDENCE if rule not in ("NMQ-TLS-013", "NMQ-ACL-006", "NMQ-AUT-004", "NMQ-SVC-020"))]
SMALL_TROUBLE = ("NMQ-TLS-013", "NMQ-SVC-020", "NMQ-AUT-004", "NMQ-ACL-006", "NMQ-NET-007", "NMQ-SVC-004")
UNSEEN = ("nft is not installed: the effective rules could not be read", ("NMQ-NET-006", "NMQ-NET-007"))
WAIVERS = {
    "NMQ-SVC-006": ("The rule engine feeds the historian until it reads MQTT itself (CHG-4417)", "2027-06-30"),
    "NMQ-SVC-005": ("Plugin reviewed by product security, SHA-256 recorded in CHG-4020", "2026-12-09"),
    "NMQ-TLS-010": ("The webhook stays inside the rack's own VLAN", "2026-11-20"),
}
REASONS = (
    "unreachable: connect to 10.20.{n}.7 port 22: Connection timed out",
    "the audit did not end within 60 s",
    "sudo: a password is required",
)
REFERENCES = {
    "network": [("IEC 62443-4-2", "CR 5.1", "Network segmentation"), ("BSI IT-Grundschutz", "NET.3.2.A2", "")],
    "transport": [("IEC 62443-4-2", "CR 4.1", "Information confidentiality"), ("IEC 62443-4-2", "CR 3.1", "")],
    "authentication": [("IEC 62443-4-2", "CR 1.1", "Human user identification and authentication")],
    "access_control": [("IEC 62443-4-2", "CR 2.1", "Authorization enforcement"), ("CIS Controls 8.1", "6.8", "")],
}


def rules() -> dict[str, dict[str, Any]]:
    """The catalogue as a report holds it."""
    return {
        rule.id: {
            **{key: getattr(rule, key) for key in ("severity", "layer", "title", "why", "remedy", "source")},
            "references": [dict(zip(("standard", "id", "title"), entry)) for entry in REFERENCES[rule.layer]],
        }
        for rule in _policy.RULES.values()
    }


def finding(rule: str, evidence: list[str], **more: Any) -> dict[str, Any]:
    return {
        "id": rule,
        "severity": _policy.RULES[rule].severity,
        "observed": True,
        "waived": "",
        "waived_until": "",
        "blocking": _policy.RULES[rule].blocking,
        "evidence": evidence,
        **more,
    }


def host(name: str, findings: list[dict[str, Any]], version: str = "0.25.6") -> dict[str, Any]:
    """An audited host with these findings; every other rule holds."""
    broken = {item["id"] for item in findings}
    open_ones = {item["severity"] for item in findings if not item["waived"]}
    return {
        "name": name,
        "state": "audited",
        "reason": "",
        "grade": next((GRADES[severity] for severity in GRADES if severity in open_ones), "A"),
        "version": version,
        "findings": findings,
        "passed": [rule for rule in _policy.RULES if rule not in broken],
    }


def not_audited(name: str, reason: str) -> dict[str, Any]:
    return {
        "name": name,
        "state": "not_audited",
        "reason": reason,
        "grade": None,
        "version": None,
        "findings": [],
        "passed": [],
    }


def document(hosts: list[dict[str, Any]], difference: dict[str, Any] | None = None) -> dict[str, Any]:
    """The report document of these hosts."""
    hosts = sorted(hosts, key=lambda item: item["name"])
    audited = [item for item in hosts if item["state"] == "audited"]
    every = [item for one in audited for item in one["findings"]]
    seen = collections.Counter(item["severity"] for item in every if item["observed"] and not item["waived"])
    grades = collections.Counter(item["grade"] for item in audited)
    grade = max(grades, default=None)
    if grade in ("A", "B") and len(audited) < len(hosts):
        grade = "C"
    return {
        "format": "edgesec.nanomq/audit",
        "format_version": 1,
        "run": {"finished": FINISHED, "collection_version": "0.1.0", "title": "NanoMQ audit"},
        "summary": {
            "grade": grade,
            "hosts": len(hosts),
            "audited": len(audited),
            "not_audited": len(hosts) - len(audited),
            "grades": {letter: grades[letter] for letter in "ABCDF"},
            "findings": {severity: seen[severity] for severity in reversed(_policy.SEVERITIES)},
            "not_observed": sum(not item["observed"] and not item["waived"] for item in every),
            "waived": sum(bool(item["waived"]) for item in every),
            "passed": sum(len(one["passed"]) for one in audited),
        },
        "rules": rules(),
        "hosts": hosts,
        "difference": difference,
    }


def fleet(size: int, seed: int = 7) -> dict[str, Any]:
    """A fleet in the middle of its hardening: most hosts hold, some have small trouble, some are as shipped."""
    chance = random.Random(seed)
    hosts = [_random_host(chance, _name(number), number) for number in range(size)]
    return document(hosts, _random_difference(chance, hosts) if size > 1 else None)


def _name(number: int) -> str:
    return f"{SITES[number % len(SITES)]}-{KINDS[number // len(SITES) % len(KINDS)]}-{number // 50 + 1:02d}"


def _random_host(chance: random.Random, name: str, number: int) -> dict[str, Any]:
    values = {"host": name, "n": chance.randrange(10, 99), "d": f"{chance.randrange(1, 24):02d}"}

    def found(identifiers: Any) -> list[dict[str, Any]]:
        return [finding(rule, [text.format(**values) for text in EVIDENCE[rule]]) for rule in identifiers]

    kind = chance.random() if number else 0.0
    if kind > 0.985:
        return not_audited(name, chance.choice(REASONS).format(**values))
    if kind < 0.08:
        return host(name, found(rule for rule in SHIPPED if chance.random() < 0.93), "0.24.6")
    findings = []
    if kind < 0.45:
        findings += found(chance.sample(SMALL_TROUBLE, chance.randrange(1, 4)))
    if 0.4 < kind < 0.48:
        reason, unseen = UNSEEN
        findings = [item for item in findings if item["id"] not in unseen]
        findings += [finding(rule, [reason], observed=False) for rule in unseen]
    if kind > 0.75 or kind < 0.2:
        rule, (reason, until) = chance.choice(list(WAIVERS.items()))
        findings.append(finding(rule, ["rules.sqlite: enabled"], waived=reason, waived_until=until))
    if chance.random() < 0.02:
        findings.append(finding("NMQ-WVR-001", ["waiver 1 (NMQ-TLS-010): expired on 2026-11-20"]))
    return host(name, findings)


def _random_difference(chance: random.Random, hosts: list[dict[str, Any]]) -> dict[str, Any]:
    every = [(one["name"], item["id"]) for one in hosts for item in one["findings"] if not item["waived"]]
    new = sorted(chance.sample(every, min(len(every), len(hosts) // 12 + 1)))
    resolved = [
        (one["name"], rule)
        for one in chance.sample(hosts, len(hosts) // 5)
        for rule in ("NMQ-AUT-001", "NMQ-TLS-001", "NMQ-SVC-011")
        if rule in one["passed"]
    ]
    return {
        "since": SINCE,
        "new": [{"host": name, "rule": rule} for name, rule in new],
        "resolved": [{"host": name, "rule": rule} for name, rule in sorted(resolved)],
        "hosts_added": sorted(one["name"] for one in chance.sample(hosts, len(hosts) // 60 + 1)),
        "hosts_gone": [f"delft-pump-old-{number}" for number in range(1, len(hosts) // 300 + 2)],
    }


#: Strings that have broken out of other reports, or that show something else than they hold.
HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "<!--<script>",
    "]]><img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "javascript:window.pwned=1//",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "edge\u202egnp.exe\u2066\u2069",
    "nul\x00byte",
    "lone \ud800 and \udfff",
    "zero\u200bwidth\ufeff",
    "line\u2028separator\u2029\r\nnext",
    "__proto__",
    "constructor",
    "%uD800 %2f %",
    "a" * 3000,
)


def hostile() -> dict[str, Any]:
    """A fleet whose every text is hostile."""
    hosts = [
        host(text, [finding("NMQ-NET-001", [text, text[::-1]])], text)
        | {"findings": [finding("NMQ-NET-001", [text]), finding("NMQ-TLS-010", [text], waived=text, waived_until=text)]}
        for text in HOSTILE
    ]
    hosts += [not_audited(f"unreachable {text}", text) for text in HOSTILE]
    difference = {
        "since": SINCE,
        "new": [{"host": text, "rule": "NMQ-NET-001"} for text in HOSTILE],
        "resolved": [{"host": text, "rule": text} for text in HOSTILE],
        "hosts_added": list(HOSTILE),
        "hosts_gone": [f"gone {text}" for text in HOSTILE],
    }
    return document(hosts, difference) | {
        "run": {"finished": FINISHED, "collection_version": HOSTILE[0], "title": "".join(HOSTILE[:12])}
    }
