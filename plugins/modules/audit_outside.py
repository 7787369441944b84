#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: audit_outside
short_description: See what the network lets through to a host that runs NanoMQ
version_added: "0.1.0"
author: EdgeSec maintainers (@edgesec)
description:
  - Runs on a second host, and looks at the first from there. It connects to ports, and says hello in TLS, MQTT and
    HTTP, without credentials.
  - Look only at hosts that are yours.
options:
  address:
    description: Where the second host reaches the first.
    type: str
    required: true
  private:
    description: Ports of the broker that the host keeps to itself. The usual ones are looked at anyway.
    type: list
    elements: int
    default: []
  public:
    description: Ports of the broker that are open to others, and must speak TLS.
    type: list
    elements: int
    default: []
  timeout:
    description: Seconds that an answer may take.
    type: float
    default: 3
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
    description: Needs no root.
seealso:
  - module: edgesec.nanomq.audit
"""

EXAMPLES = r"""
- name: See what the network lets through
  edgesec.nanomq.audit_outside:
    address: "{{ ansible_host }}"
    private: [8081, 8086]
    public: [8883]
  delegate_to: bastion
"""

RETURN = r"""
findings:
  description: The rules that do not hold, as M(edgesec.nanomq.audit) returns them.
  returned: success
  type: list
  elements: dict
passed:
  description: Ids of the rules that hold.
  returned: success
  type: list
  elements: str
ports:
  description: What was open.
  returned: success
  type: list
  elements: dict
"""

import datetime

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _outside, _policy


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "private": {"type": "list", "elements": "int", "default": []},
            "public": {"type": "list", "elements": "int", "default": []},
            "waivers": _policy.WAIVERS_OPTION,
            "timeout": {"type": "float", "default": 3},
        },
        supports_check_mode=True,
    )
    options = dict(module.params)
    waivers = options.pop("waivers")
    seen = _outside.look(**options)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    marked = _policy.apply_waivers(_policy.evaluate_outside(seen), waivers, today)
    findings = [finding for finding in marked if not finding.id.startswith("NMQ-WVR")]
    module.exit_json(
        changed=False,
        findings=[finding.as_dict() for finding in findings],
        passed=_policy.passed_outside(findings),
        ports=seen["ports"] if isinstance(seen["ports"], list) else [],
    )


if __name__ == "__main__":
    main()
