#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: tls_authority
version_added: "0.1.0"
short_description: Make or keep a certificate authority on the controller
description:
  - Keeps a small certificate authority in one directory of the controller, for M(edgesec.nanomq.tls_certificate) to
    sign with.
  - It is made once. An authority that is there is never replaced, whatever the options say, since every certificate
    of the fleet depends on it; where the options differ from it, the module warns.
  - Nothing is changed when what is there cannot be trusted or used, for instance when the passphrase is wrong, the key
    and the certificate do not belong together, the authority has expired, or somebody else could read the key.
requirements:
  - cryptography >= 3.1, which ansible-core brings to the controller
options:
  path:
    description:
      - Absolute path of the directory, on the controller. It is made with mode V(0700).
      - It holds C(ca.key) (PKCS#8, mode V(0600)), C(ca.pem), and in C(issued/) a copy of each certificate given out.
      - An authority made elsewhere can be put there. C(ca.pem) then holds the issuing certificate first, followed by
        those above it.
    type: path
    required: true
  common_name:
    description:
      - Common name of a new authority, at most 64 bytes.
    type: str
    default: NanoMQ fleet CA
  key_type:
    description:
      - Kind of key for a new authority.
    type: str
    choices: [ec-p256, ec-p384, rsa-2048, rsa-3072, rsa-4096]
    default: ec-p256
  valid_for:
    description:
      - How long a new authority is valid, such as V(3650d) or V(520w).
    type: str
    default: 3650d
  passphrase:
    description:
      - Passphrase of the private key. With it the key is kept encrypted (AES-256); it has to be the same in every run.
      - One line of at most 1023 bytes.
    type: str
author:
  - EdgeSec maintainers (@edgesec)
attributes:
  check_mode:
    support: full
    description: Can run in check mode and say what would change, without changing anything.
  diff_mode:
    support: none
    description: Will say what changed, or would change, in diff mode.
  platform:
    platforms: posix
    support: full
    description: The operating systems that this works on.
notes:
  - If the inventory lists C(localhost) with a Python that lacks the library, give the task
    C(ansible_python_interpreter={{ ansible_playbook_python }}).
seealso:
  - module: edgesec.nanomq.tls_certificate
"""

EXAMPLES = r"""
- name: Make or keep the fleet's authority
  edgesec.nanomq.tls_authority:
    path: "{{ nanomq_pki_dir }}/ca"
    common_name: Example fleet CA
    passphrase: "{{ vault_ca_passphrase }}"
  delegate_to: localhost
  run_once: true
  register: authority
"""

RETURN = r"""
path:
  description: Directory of the authority.
  returned: success
  type: str
  sample: /srv/fleet/pki/ca
certificate:
  description:
    - The certificate in PEM, followed by those above it, if there are any.
    - Empty in check mode when there is no authority yet.
  returned: success
  type: str
fingerprint_sha256:
  description: SHA-256 of the issuing certificate, as C(openssl x509 -fingerprint -sha256) prints it; or empty.
  returned: success
  type: str
  sample: "4F:0C:…:9A"
common_name:
  description: Common name of the issuing certificate; empty if there is none.
  returned: success
  type: str
key_type:
  description: Kind of the authority's key; empty if there is none.
  returned: success
  type: str
  sample: ec-p256
not_after:
  description: Last moment of the issuing certificate, in UTC; empty if there is none.
  returned: success
  type: str
  sample: "2036-11-21T12:00:00Z"
"""

import datetime

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority, _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    KEY_TYPES,
    CryptoError,
    choose_backend,
    encode_passphrase,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._duration import parse_duration
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem, locked, make_directories

#: An authority this near to its end is worth a warning in each run: replacing it takes planning.
NEAR_END = datetime.timedelta(days=90)

#: Seconds in which another run must be done with making the authority.
PATIENCE = 60


def describe(authority: _authority.Authority | None, path: str) -> dict:
    """Return the module's result for an authority, or for none."""
    if authority is None:
        empty = dict.fromkeys(("certificate", "fingerprint_sha256", "common_name", "key_type", "not_after"), "")
        return {"path": path, **empty}
    issuer = authority.issuer
    return {
        "path": path,
        "certificate": authority.pem,
        "fingerprint_sha256": issuer.fingerprint_sha256,
        "common_name": issuer.common_name,
        "key_type": _x509.key_type(issuer.public_key),
        "not_after": _x509.show_time(issuer.not_after),
    }


def warn_of_differences(module: AnsibleModule, result: dict) -> None:
    """Say what is not as the options have it, and will stay so."""
    for option in ("common_name", "key_type"):
        if result[option] != module.params[option]:
            module.warn(
                f"the authority in {result['path']} has {option} {result[option]!r}, not {module.params[option]!r};"
                " it is kept, for every certificate depends on it"
            )


def run(module: AnsibleModule) -> dict:
    """Make or keep the authority. Raises FileProblem, CryptoError, ValueError and OSError."""
    # Without the library there is nothing to do, and its absence explains itself better than what would follow.
    choose_backend("cryptography")
    options = module.params
    path = options["path"].rstrip("/") or "/"
    common_name = _x509.check_common_name(options["common_name"])
    valid_for = parse_duration(options["valid_for"])
    passphrase = encode_passphrase(options["passphrase"])
    if module.check_mode or _authority.load(path) is not None:
        return keep_or_make(module, path, common_name, valid_for, passphrase)
    # Two runs may come here at once, or the hosts of one: not every strategy honours run_once.
    make_directories(path, mode=0o700)
    with locked(path, patience=PATIENCE):
        return keep_or_make(module, path, common_name, valid_for, passphrase)


def keep_or_make(module: AnsibleModule, path: str, common_name: str, valid_for: int, passphrase: bytes | None) -> dict:
    """Return the result for the authority that is there, else for a new one. Raises what `run` does."""
    authority = _authority.load(path)
    if authority is not None:
        _authority.open_key(authority, passphrase)
        result = describe(authority, path)
        warn_of_differences(module, result)
        if authority.issuer.not_after - _authority.now() < NEAR_END:
            module.warn(f"the authority in {path} expires at {result['not_after']}: plan its successor")
        return {"changed": False, **result}
    if _authority.has_key(path):
        _authority.load_key(path, passphrase)
    if not module.check_mode:
        authority = _authority.create(path, common_name, module.params["key_type"], valid_for, passphrase)
    return {"changed": True, **describe(authority, path)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "common_name": {"type": "str", "default": "NanoMQ fleet CA"},
            "key_type": {"type": "str", "choices": list(KEY_TYPES), "default": "ec-p256"},
            "valid_for": {"type": "str", "default": "3650d"},
            "passphrase": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except (FileProblem, CryptoError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
