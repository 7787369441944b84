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
  - Control characters and what cannot be seen, in what a host says, are shown as escapes.
  - A host that was not audited fails the task, with the reason.
  - Runs on the controller alone.
options:
  result:
    description: What M(edgesec.nanomq.audit) returned.
    type: dict
    required: true
  outside:
    description: What M(edgesec.nanomq.audit_outside) returned of the same host, if anybody asked.
    type: dict
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
  - module: edgesec.nanomq.audit_export
"""

EXAMPLES = r"""
- name: Show what was found, and fail on the worst
  edgesec.nanomq.audit_report:
    result: "{{ nanomq_audit_result }}"
    fail_on: critical
"""

RETURN = r"""
msg:
  description: Which findings failed the task, or why the host was not audited.
  returned: failure
  type: str
"""
