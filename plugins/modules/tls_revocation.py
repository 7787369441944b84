#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: tls_revocation
version_added: "0.1.0"
short_description: Revoke certificates of an authority on the controller
description:
  - Makes the revocation list of an authority of M(edgesec.nanomq.tls_authority), adds to it, and replaces it before its
    time ends. The list is C(crl.pem) in the directory of the authority, and the only record of what was revoked.
  - What is revoked stays so. A list that was made is replaced by one with a higher number when there is more to revoke,
    or when it is time; otherwise nothing is changed.
  - nginx refuses every client of an authority whose list is past its time. So this has to run before, for instance as a
    part of each run of the playbook C(harden).
  - In a roll-over each key of the authority signs a list with the same entries. Lists of other authorities in the file,
    such as that of an offline root, are left in it for as long as they hold.
requirements:
  - cryptography >= 3.1, which ansible-core brings to the controller
options:
  path:
    description: Absolute path of the directory of the authority.
    type: path
    required: true
  passphrase:
    description: Passphrase of the authority's keys. It is needed where a list is made.
    type: str
  serials:
    description: Serial numbers to revoke, in hexadecimal, as C(openssl x509 -serial) prints them.
    type: list
    elements: str
    default: []
  common_names:
    description:
      - Revoke all that was given to these common names so far, by the copies in C(issued/).
      - A certificate that one of them gets later is revoked by the next run that says so. So name them for one run.
    type: list
    elements: str
    default: []
  unknown:
    description: Revoke serial numbers of which the authority keeps no copy, for certificates signed by other means.
    type: bool
    default: false
  valid_for:
    description: When the next list is due, from now on. That long a host may go without a new one.
    type: str
    default: 30d
  renew_before:
    description: How long before that a new one is made, as a duration or as a share of O(valid_for).
    type: str
    default: 50%
author:
  - EdgeSec maintainers (@edgesec)
extends_documentation_fragment:
  - edgesec.nanomq.key_material
seealso:
  - module: edgesec.nanomq.tls_authority
"""

EXAMPLES = r"""
- name: Take back what an operator was given
  edgesec.nanomq.tls_revocation:
    path: "{{ nanomq_pki_dir }}/operators"
    passphrase: "{{ vault_ca_passphrase }}"
    common_names: [ann]
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
path:
  description: Path of the list.
  returned: success
  type: str
  sample: /srv/fleet/pki/operators/crl.pem
reason:
  description: Why a new list was, or would be, made; empty if none was.
  returned: success
  type: str
  sample: 1 more revoked
added:
  description: The serial numbers that were not revoked before.
  returned: success
  type: list
  elements: str
revoked:
  description: All that are.
  returned: success
  type: list
  elements: str
next_update:
  description: When the next list is due, in UTC; that of the new list in check mode.
  returned: success
  type: str
  sample: "2030-02-28T12:00:00Z"
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority, _revocation, _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    CryptoError,
    choose_backend,
    encode_passphrase,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._duration import parse_duration
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem

ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "passphrase": {"type": "str", "no_log": True},
    "serials": {"type": "list", "elements": "str", "default": []},
    "common_names": {"type": "list", "elements": "str", "default": []},
    "unknown": {"type": "bool", "default": False},
    "valid_for": {"type": "str", "default": "30d"},
    "renew_before": {"type": "str", "default": "50%"},
}


def run(module: AnsibleModule) -> dict:
    """Revoke, or keep the list in force. Raises FileProblem, CryptoError, ValueError and OSError."""
    # Without the library there is nothing to do, and its absence explains itself better than what would follow.
    choose_backend("cryptography")
    options = module.params
    passphrase = encode_passphrase(options["passphrase"])
    plan = _revocation.plan(
        options["path"].rstrip("/") or "/",
        serials=options["serials"],
        common_names=options["common_names"],
        unknown=options["unknown"],
        valid_for=parse_duration(options["valid_for"]),
        renew_before=options["renew_before"],
    )
    if plan.reason:
        if module.check_mode:
            _revocation.check_keys(plan, passphrase)
        else:
            _revocation.carry_out(plan, passphrase)
    return {
        "changed": bool(plan.reason),
        "path": f"{plan.path}/{_authority.LISTS}",
        "reason": plan.reason,
        "added": [f"{serial:x}" for serial in plan.added],
        "revoked": [f"{serial:x}" for serial in sorted(plan.serials)],
        "next_update": _x509.show_time(plan.next_update if plan.reason else plan.due),
    }


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = run(module)
    except (FileProblem, CryptoError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
