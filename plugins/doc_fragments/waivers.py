# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations


class ModuleDocFragment:
    """The option of everything that judges by the policy; its argument spec is `_policy.WAIVERS_OPTION`."""

    DOCUMENTATION = r"""
options:
  waivers:
    description:
      - Rules that this host must break, each with a reason and the last day on which that holds.
      - A waiver that has expired, lacks its reason, or names no rule is a finding itself.
    type: list
    elements: dict
    default: []
    suboptions:
      rule:
        description: Id of the rule.
        type: str
      reason:
        description: Why the rule must be broken.
        type: str
      expires:
        description: Last day of the waiver, as C(2030-12-31).
        type: str
"""
