#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: policy_check
short_description: Judge a NanoMQ configuration before it is deployed
version_added: "0.1.0"
author: EdgeSec maintainers (@edgesec)
description:
  - Compares a configuration with the schema of C(nanomq.conf) and with the policy of this collection, and fails with
    one message that names every key, what is wrong, and the variable that sets it right.
  - Runs on the controller alone. The host is not connected to.
  - The rules are listed in C(docs/rules.md).
options:
  conf:
    description:
      - The configuration, as a nested dictionary that mirrors C(nanomq.conf). It is never shown.
      - Either this or O(front) is required.
    type: dict
  front:
    description: Who may call what through a front end, instead of O(conf).
    type: dict
    suboptions:
      roles:
        description: Roles that are declared, and for each a list of calls such as C(GET /metrics).
        type: dict
        default: {}
      clients:
        description: Who has which role, as in C(nanomq_nginx_clients).
        type: list
        elements: dict
        default: []
      anonymous:
        description: Roles of callers without a certificate.
        type: list
        elements: str
        default: []
  version:
    description: Version of the broker that will read the configuration. Empty where it is not known.
    type: str
    default: ""
  fail_on:
    description:
      - Findings of this severity and above fail the task; the others are warnings.
      - Known weaknesses of a version never fail it, but those without which a host cannot be hardened at all do.
    type: str
    choices: [none, low, medium, high, critical]
    default: high
  context:
    description: What else is known of the host. C(firewall) tells whether a packet filter will guard REST.
    type: dict
    default: {}
extends_documentation_fragment:
  - edgesec.nanomq.waivers
attributes:
  check_mode:
    support: full
    description: Nothing is changed.
  diff_mode:
    support: none
    description: Nothing is changed.
"""

EXAMPLES = r"""
- name: Judge a configuration
  edgesec.nanomq.policy_check:
    conf: "{{ my_nanomq_conf }}"
    version: 0.25.6
    waivers:
      - rule: NMQ-AUT-006
        reason: The monitoring of the plant cannot mint tokens yet
        expires: "2030-06-30"
"""

RETURN = r"""
findings:
  description: The rules that do not hold, the worst first.
  returned: always
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
      description: The configuration keys, and what is wrong with each.
      type: list
      elements: str
    remedy:
      description: What to do, and the variable to do it with.
      type: str
    observed:
      description: Always true here.
      type: bool
    waived:
      description: The reason of the waiver, empty where there is none.
      type: str
    blocking:
      description: Whether the finding can fail the task.
      type: bool
problems:
  description: What the schema of nanomq.conf refuses.
  returned: always
  type: list
  elements: str
"""
