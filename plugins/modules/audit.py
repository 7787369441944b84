#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: audit
short_description: Compare a host that runs NanoMQ with the policy
version_added: "0.1.0"
author: EdgeSec maintainers (@edgesec)
description:
  - Looks at processes, sockets, files and the packet filter, and tries to get in - without a name, with a made-up one,
    and with the shipped password of REST. Nothing on the host is changed.
  - What could not be observed is a finding, and never passes.
  - The rules are listed in C(docs/rules.md).
options:
  unit:
    description: Name of the broker's unit.
    type: str
    default: nanomq.service
  package:
    description: Name of the broker's package.
    type: str
    default: nanomq
  conf_path:
    description: The configuration file. Empty for that of the broker that runs.
    type: str
    default: ""
  user:
    description: The account of the broker, where none runs.
    type: str
    default: nanomq
  timeout:
    description: Seconds that an answer to a live probe may take. A whole conversation may take twice as long.
    type: float
    default: 2
  token:
    description:
      - A token that REST accepts, such as the lookup P(edgesec.nanomq.jwt_token#lookup) makes.
      - With it the configuration that runs is compared with its file. Without it the rules of that are not judged.
    type: str
    default: ""
  controller_time:
    description: The controller's clock in seconds of Unix, to compare the host's with; V(0) for not at all.
    type: float
    default: 0
extends_documentation_fragment:
  - edgesec.nanomq.waivers
attributes:
  check_mode:
    support: full
    description: Nothing is changed.
  diff_mode:
    support: none
    description: Nothing is changed.
  platform:
    support: full
    platforms: posix
    description: Linux. Needs root, since other users' processes and sockets are looked at.
seealso:
  - module: edgesec.nanomq.audit_export
  - module: edgesec.nanomq.audit_report
"""

EXAMPLES = r"""
- name: Look at the broker
  edgesec.nanomq.audit:
  register: nanomq_audit_result

- name: Show what was found
  edgesec.nanomq.audit_report:
    result: "{{ nanomq_audit_result }}"
"""

RETURN = r"""
findings:
  description: The rules that do not hold, the worst first.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Id of the rule.
      type: str
      sample: NMQ-NET-001
    severity:
      description: V(critical), V(high), V(medium) or V(low).
      type: str
    layer:
      description: V(network), V(transport), V(authentication) or V(access_control).
      type: str
    title:
      description: What is wrong.
      type: str
    evidence:
      description: What was seen, without any secret; or why nothing was.
      type: list
      elements: str
    remedy:
      description: What to do, and the variable to do it with.
      type: str
    observed:
      description: False where nobody could tell.
      type: bool
    waived:
      description: The reason of the waiver, empty where there is none.
      type: str
    waived_until:
      description: The last day of the waiver, empty where there is none.
      type: str
    blocking:
      description: Whether the finding would stop a deployment.
      type: bool
passed:
  description: Ids of the rules that hold.
  returned: success
  type: list
  elements: str
summary:
  description: The numbers, in words.
  returned: success
  type: str
  sample: 2 findings (1 critical, 1 high), 68 rules passed
cost:
  description: What the run took on the host.
  returned: success
  type: dict
  contains:
    seconds:
      description: From the start of the observation to its end.
      type: float
    memory_mib:
      description: The most memory that was resident.
      type: float
observation:
  description:
    - What was seen, without the configuration and without any secret.
    - A fact that could not be observed is a dictionary with C(not_observed) and the reason.
  returned: success
  type: dict
"""

import datetime
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _observe, _policy


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "default": "nanomq.service"},
            "package": {"type": "str", "default": "nanomq"},
            "conf_path": {"type": "str", "default": ""},
            "user": {"type": "str", "default": "nanomq"},
            "waivers": _policy.WAIVERS_OPTION,
            "timeout": {"type": "float", "default": 2},
            "token": {"type": "str", "default": "", "no_log": True},
            "controller_time": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    options = dict(module.params)
    waivers = options.pop("waivers")
    started = time.monotonic()
    observation = _observe.observe(**options)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    findings = _policy.apply_waivers(_policy.evaluate_host(observation), waivers, today)
    holding = _policy.passed(findings, observation)
    module.exit_json(
        changed=False,
        findings=[finding.as_dict() for finding in findings],
        passed=holding,
        summary=_policy.summary(findings, len(holding)),
        cost=_observe.cost(started),
        observation=_observe.public(observation),
    )


if __name__ == "__main__":
    main()
