# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Writes rules.md, the catalogue of the policy, beside itself. The collection must be importable."""

from __future__ import annotations

import pathlib

from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy

HEAD = """\
# Rules

What a hardened NanoMQ must hold to. Each rule is asked of a configuration before it is deployed (`policy_check`, in the
roles `nanomq_broker` and `nanomq_nginx`), of a host as it is found (`audit`, in the role `nanomq_audit`), or of both.

By default critical and high findings stop a deployment, and the others are warnings (`nanomq_broker_fail_on`). To break
a rule, write a waiver with a reason and an end; it holds for deployment and audit:

```yaml
nanomq_broker_waivers:
  - rule: NMQ-AUT-006
    reason: The monitoring of the plant cannot mint tokens yet
    expires: "2030-06-30"
```

*See also* names requirements of standards that a rule looks after a part of. It does not mean that they are met.

This page is made from the code by `python3 docs/generate_rules.py`.
"""


def asked_of(rule: _policy.Rule) -> str:
    """Where a rule is asked, in words."""
    if rule.outside:
        return "what another host sees (`nanomq_audit_outside_host`)"
    if rule.front:
        return "what callers may do through a front end"
    if rule.config and rule.host:
        return "the configuration, and the host by observation"
    if rule.config:
        return "the configuration, that of a host too"
    if rule.asks:
        return "the host by observation, with a token"
    return "the host by observation" if rule.host else "the waivers"


def catalogue() -> str:
    """The page."""
    parts = [HEAD, "| rule | severity | |", "| --- | --- | --- |"]
    rules = list(_policy.RULES.values())
    parts += [f"| [{rule.id}](#{rule.id.lower()}) | {rule.severity} | {rule.title} |" for rule in rules]
    for layer in dict.fromkeys(_policy.LAYERS.values()):
        parts.append(f"\n## {layer.replace('_', ' ').capitalize()}")
        for rule in rules:
            if rule.layer == layer:
                warning = "" if rule.blocking else "; never stops a deployment"
                parts += [
                    f"\n### {rule.id}\n",
                    f"**{rule.title}** ({rule.severity}{warning})\n",
                    f"{rule.why}\n",
                    f"- Remedy: {rule.remedy}.",
                    f"- Asked of: {asked_of(rule)}.",
                    f"- Source: {rule.source}.",
                ]
                if rule.references:
                    parts.append(f"- See also: {'; '.join(map(str, rule.references))}.")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    pathlib.Path(__file__).with_name("rules.md").write_text(catalogue(), encoding="utf-8")
