#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: audit_report
short_description: Show what an audit found
version_added: "0.1.0"
author: EdgeSec maintainers (@edgesec)
description:
  - Prints a table with one line a finding, the worst first. With C(-v) it adds all that was seen, and the remedies.
  - Runs on the controller alone.
options:
  result:
    description: What M(edgesec.nanomq.audit) returned.
    type: dict
    required: true
  fail_on:
    description: Findings of this severity and above, also those that could not be observed, fail the task.
    type: str
    choices: [none, low, medium, high, critical]
    default: none
attributes:
  check_mode:
    support: full
    description: Nothing is changed.
  diff_mode:
    support: none
    description: Nothing is changed.
seealso:
  - module: edgesec.nanomq.audit
"""

EXAMPLES = r"""
- name: Show what was found, and fail on the worst
  edgesec.nanomq.audit_report:
    result: "{{ nanomq_audit_result }}"
    fail_on: critical
"""

RETURN = r"""
msg:
  description: Which findings failed the task.
  returned: failure
  type: str
"""
