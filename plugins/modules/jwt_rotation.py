#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: jwt_rotation
version_added: "0.1.0"
short_description: Replace the key pair that signs tokens, over as many runs as it takes
description:
  - A broker takes the tokens of one key, whose name is their issuer. So another key reaches a fleet host by host, each
    with a restart, and callers have to change when their host does.
  - With O(phase=begin) a key pair of M(edgesec.nanomq.jwt_keypair) is replaced by another one, and a record of that is
    kept beside it. The hosts are then given the new public key, for instance by the role C(nanomq_broker).
  - With O(phase=finish) it is noted which hosts have shown that they take tokens of the new key and refuse those of the
    old one. When all have, the rotation ends.
  - A run that finds an open rotation goes on with it and makes no other key, however often it is repeated and at
    whatever step the last one was cut.
requirements:
  - cryptography >= 3.1, or the openssl program, 1.1.1 or newer
options:
  phase:
    description: Which end of the rotation this is.
    type: str
    choices: [begin, finish]
    required: true
  path:
    description: Absolute path of the directory of the key pair, on the controller.
    type: path
    required: true
  name:
    description: Name of the key pair, see M(edgesec.nanomq.jwt_keypair).
    type: str
    default: fleet
  passphrase:
    description: Passphrase of the private keys, the old and the new one.
    type: str
  size:
    description: Size of a new key in bits, from 2048 to 4096.
    type: int
    default: 3072
  older_than:
    description:
      - Begin a rotation if the key was made so long ago, such as V(90d), by the time of its file.
      - Without this and O(key) an open rotation is gone on with, and none is begun.
    type: str
  key:
    description:
      - Begin a rotation if this is the key that is there, whatever its age, and not otherwise. It is written as in the
        tokens' C(iss), such as V(jwt-1a2b3c4d.pub). Repeating it does no harm.
    type: str
  hosts:
    description: All hosts that are to have the new key, also those that take no part in this run. For O(phase=finish).
    type: list
    elements: str
  proven:
    description: Those of O(hosts) that have shown in this run that they have the new key, and no longer the old one.
    type: list
    elements: str
    default: []
  unproven:
    description: Those of O(hosts) that took part in this run and failed, whatever an earlier one has seen.
    type: list
    elements: str
    default: []
  old_key:
    description:
      - What becomes of the old pair in the end. V(archive) keeps it as C(<name>-<key_id>.key) and C(.pub), with which a
        rollback to a configuration with that key can ask the broker what it has loaded. V(delete) deletes it.
    type: str
    choices: [archive, delete]
    default: archive
  backend:
    description: What handles keys. V(auto) takes the cryptography library if it can be imported, else C(openssl).
    type: str
    choices: [auto, cryptography, openssl]
    default: auto
author:
  - EdgeSec maintainers (@edgesec)
extends_documentation_fragment:
  - edgesec.nanomq.key_material
seealso:
  - module: edgesec.nanomq.jwt_keypair
"""

EXAMPLES = r"""
- name: Replace a key that is older than 90 days, or go on with what was begun
  edgesec.nanomq.jwt_rotation:
    phase: begin
    path: "{{ nanomq_pki_dir }}/jwt"
    passphrase: "{{ vault_jwt_passphrase }}"
    older_than: 90d
  delegate_to: localhost
  run_once: true
  register: nanomq_pki_jwt_rotation

- name: Note who has it, and end the rotation if all have
  edgesec.nanomq.jwt_rotation:
    phase: finish
    path: "{{ nanomq_pki_dir }}/jwt"
    passphrase: "{{ vault_jwt_passphrase }}"
    hosts: "{{ groups.brokers }}"
    proven: "{{ ansible_play_hosts }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
state:
  description: C(none), C(open), or with O(phase=finish) C(finished).
  returned: success
  type: str
old_issuer:
  description: The issuer of the old key's tokens; empty where there is no rotation.
  returned: success
  type: str
  sample: jwt-1a2b3c4d.pub
new_issuer:
  description: The issuer of the new key's tokens; empty where there is no rotation, or in check mode no new key yet.
  returned: success
  type: str
  sample: jwt-5e6f7a8b.pub
old_private_key_path:
  description:
    - Path of the old private key while the rotation is open and the new one is in its place, to try that it is refused.
    - Empty otherwise.
  returned: success
  type: str
  sample: /srv/fleet/pki/jwt/fleet-jwt-1a2b3c4d.key
started:
  description: When the rotation was begun, in UTC; empty where there is none.
  returned: success
  type: str
  sample: "2030-01-31T12:00:00Z"
proven:
  description: The hosts that are known to have the new key alone.
  returned: success
  type: list
  elements: str
missing:
  description: The hosts of O(hosts) that are not.
  returned: success
  type: list
  elements: str
message:
  description: What callers have to know, in clear text.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _jwt_rotation
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    BACKENDS,
    CryptoError,
    choose_backend,
    encode_passphrase,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._duration import parse_duration
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._jwt_keypair import KeyPair, check_name, check_size
from ansible_collections.edgesec.nanomq.plugins.module_utils._jwt_rotation import Rotation


def describe(pair: KeyPair, rotation: Rotation | None, hosts: list[str], *, ended: bool, new: bool) -> dict:
    """The result for a rotation, or for none. `new`: whether the new key is in its place."""
    if rotation is None:
        texts = dict.fromkeys(("old_issuer", "new_issuer", "old_private_key_path", "started"), "")
        return {"state": "none", "proven": [], "missing": [], **texts}
    return {
        "state": "finished" if ended else "open",
        "old_issuer": f"{rotation.old}.pub",
        "new_issuer": f"{rotation.new}.pub" if rotation.new else "",
        "old_private_key_path": pair.archived(rotation.old)[0] if new and not ended else "",
        "started": rotation.started,
        "proven": sorted(rotation.proven),
        "missing": rotation.missing(hosts),
    }


def run(module: AnsibleModule) -> dict:
    """Begin or finish. Raises FileProblem, CryptoError, ValueError and OSError."""
    options, check = module.params, module.check_mode
    check_size(options["size"])
    check_name(options["name"])
    older_than = parse_duration(options["older_than"]) if options["older_than"] else None
    directory = options["path"].rstrip("/") or "/"
    passphrase = encode_passphrase(options["passphrase"])
    pair = KeyPair(directory, options["name"], passphrase, choose_backend(options["backend"]))
    if options["phase"] == "begin":
        rotation, changed, why = _jwt_rotation.begin(
            pair, options["size"], older_than=older_than, key=options["key"], check=check
        )
        message = [why] if rotation is None else _jwt_rotation.tell(rotation, [], ended=False)[:-1]
        result = describe(pair, rotation, [], ended=False, new=not (check and changed))
        return {"changed": changed, "message": message, **result}
    hosts = options["hosts"] or []
    rotation, changed, ended = _jwt_rotation.finish(
        pair,
        hosts,
        proven=options["proven"],
        unproven=options["unproven"],
        delete=options["old_key"] == "delete",
        check=check,
    )
    message = ["no rotation is open"] if rotation is None else _jwt_rotation.tell(rotation, hosts, ended=ended)
    result = describe(pair, rotation, hosts, ended=ended, new=True)
    if result["missing"]:
        module.warn(f"the rotation of {pair.private_path} stays open, for lack of {', '.join(result['missing'])}")
    return {"changed": changed, "message": message, **result}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "phase": {"type": "str", "choices": ["begin", "finish"], "required": True},
            "path": {"type": "path", "required": True},
            "name": {"type": "str", "default": "fleet"},
            "passphrase": {"type": "str", "no_log": True},
            "size": {"type": "int", "default": 3072},
            "older_than": {"type": "str"},
            # The name of a key, which is public.
            "key": {"type": "str", "no_log": False},
            "hosts": {"type": "list", "elements": "str"},
            "proven": {"type": "list", "elements": "str", "default": []},
            "unproven": {"type": "list", "elements": "str", "default": []},
            "old_key": {"type": "str", "choices": ["archive", "delete"], "default": "archive", "no_log": False},
            "backend": {"type": "str", "choices": ["auto", *BACKENDS], "default": "auto"},
        },
        required_if=[("phase", "finish", ("hosts",))],
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except (FileProblem, CryptoError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
