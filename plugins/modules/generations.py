#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: generations
short_description: List the generations that the transactions of a host keep
version_added: "0.1.0"
author: EdgeSec maintainers (@edgesec)
description:
  - Lists, for each transaction of a host, the sets that it had in force, when and by which run each came about, and
    which paths it changed. Each is read back and compared with its checksums.
  - Changes nothing, and returns no content of any file. M(edgesec.nanomq.transaction) goes back to a generation
    (O(edgesec.nanomq.transaction#module:state=restored)); with C(--check --diff) it shows the difference.
options:
  name:
    description: The transaction whose generations to list. All of them when left out.
    type: str
attributes:
  check_mode:
    support: full
    description: Changes nothing in any case.
  diff_mode:
    support: none
    description: Changes nothing.
  platform:
    support: full
    platforms: posix
    description: Linux with systemd.
seealso:
  - module: edgesec.nanomq.transaction
"""

EXAMPLES = r"""
- name: List the generations of a host
  edgesec.nanomq.generations:
  register: kept
"""

RETURN = r"""
transactions:
  description: The transactions of the host, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the transaction.
      type: str
    unfinished:
      description: The phase of a change that is under way or was cut; empty where there is none.
      type: str
    differs:
      description: Paths that are no longer as the generation in force says.
      type: list
      elements: str
    generations:
      description: The kept generations, oldest first. 0 is what was replaced on the host as it was found.
      type: list
      elements: dict
      contains:
        number:
          description: Its number.
          type: int
        in_force:
          description: Whether it is the last one.
          type: bool
        time:
          description: When it came about, as the host's clock said.
          type: str
        transaction:
          description: Name of the transaction that made it.
          type: str
        run:
          description: Who made it (C(by)), by which C(play) and process (C(pid)) of the controller.
          type: dict
        restores:
          description: The generation of which it is a copy, where it is a rollback.
          type: int
        changes:
          description: Paths that it changed, and what of them.
          type: list
          elements: dict
        problem:
          description: Why it cannot be restored; empty where it can.
          type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils._generations import known_store, listing, names
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import TransactionError


def main() -> None:
    module = AnsibleModule(argument_spec={"name": {"type": "str"}}, supports_check_mode=True)
    wanted = module.params["name"]
    try:
        found = [listing(known_store(name)) for name in ([wanted] if wanted else names())]
    except (TransactionError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, transactions=found)


if __name__ == "__main__":
    main()
