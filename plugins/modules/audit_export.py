#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: audit_export
short_description: Write the reports of an audit
version_added: "0.1.0"
author: EdgeSec maintainers (@edgesec)
description:
  - Writes what M(edgesec.nanomq.audit) found on all hosts of a play as one report, in several formats, and compares it
    with the report of the run before.
  - Runs on the controller alone, and once a play; use it with C(run_once). With a strategy that ignores C(run_once) the
    host that comes last writes. With C(serial) each batch writes anew what is known by then.
  - Every host of the play is in the reports. One that could not be audited is so with the reason.
  - A play counts as one run, however often it writes.
  - The reports tell how to attack the hosts. They are closed to other users (mode 0600).
  - The formats are described in C(docs/audit.md), and the JSON by C(docs/audit.schema.json).
options:
  directory:
    description:
      - Where to write C(audit.json), C(audit.sarif), C(audit.xml) and C(audit.html).
      - A relative path begins where C(ansible-playbook) was started. It is made, with mode 0700, if it is missing.
      - Neither a symbolic link, nor a directory in which another user can write.
    type: path
    required: true
  formats:
    description:
      - V(json) is the report itself; without it the next run has nothing to be compared with.
      - V(sarif) is SARIF 2.1.0. V(junit) is JUnit XML. V(html) is a page that needs nothing else.
    type: list
    elements: str
    choices: [html, json, junit, sarif]
    default: [html, json, junit, sarif]
  title:
    description: Title of the reports.
    type: str
    default: NanoMQ audit
  keep:
    description: How many reports of earlier runs are kept, as C(audit-20261124T201526Z.json).
    type: int
    default: 10
  results:
    description:
      - What M(edgesec.nanomq.audit) returned, by host.
      - Without it, what every host of the play has in O(variable).
    type: dict
  reasons:
    description: Hosts that were not audited, each with the reason.
    type: dict
    default: {}
  variable:
    description: The variable in which the hosts of the play have their results.
    type: str
    default: nanomq_audit_result
  outside_variable:
    description: The variable in which they have what M(edgesec.nanomq.audit_outside) returned, if anybody asked.
    type: str
    default: nanomq_audit_outside
attributes:
  check_mode:
    support: full
    description: The report is made and compared, and no file is written.
  diff_mode:
    support: none
    description: The difference between two runs is in the report.
seealso:
  - module: edgesec.nanomq.audit
  - module: edgesec.nanomq.audit_report
"""

EXAMPLES = r"""
- name: Look at the broker
  edgesec.nanomq.audit:
  register: nanomq_audit_result
  ignore_errors: true
  ignore_unreachable: true

- name: Write the reports
  edgesec.nanomq.audit_export:
    directory: reports
    title: Plant 7
  run_once: true
"""

RETURN = r"""
summary:
  description: The grade and the numbers, as in the report.
  returned: when the report was made
  type: dict
  sample: {"grade": "C", "hosts": 3, "audited": 3, "not_audited": 0}
new:
  description: Number of findings that were not open in the run before; null without one.
  returned: when the report was made
  type: int
resolved:
  description: Number of findings of the run before that are gone; null without one.
  returned: when the report was made
  type: int
files:
  description: The files that were written, or would be.
  returned: when the report was made
  type: list
  elements: str
"""
