#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: jwt_keypair
version_added: "0.1.0"
short_description: Make or keep the RSA key pair that signs tokens for the broker's REST interface
description:
  - Keeps a key pair for RS256 in a directory of the controller. The private key stays there and signs tokens, see
    M(edgesec.nanomq.jwt_token). The broker gets the public key alone.
  - A key pair that is there is never replaced unless O(regenerate) asks for it.
  - The broker wants each token's issuer to be the file name of its public key. The pair's name for that, RV(issuer), is
    derived from the key itself, so that another key always has another name.
requirements:
  - cryptography >= 3.1, or the openssl program, 1.1.1 or newer
options:
  path:
    description:
      - Absolute path of the directory. It is made with mode V(0700).
    type: path
    required: true
  name:
    description:
      - The files are O(path)C(/<name>.key) (PKCS#8, mode V(0600)) and O(path)C(/<name>.pub).
    type: str
    default: fleet
  size:
    description:
      - Size of a new key in bits, from 2048 to 4096.
    type: int
    default: 3072
  passphrase:
    description:
      - Passphrase of the private key. With it the key is kept encrypted (AES-256); it has to be the same in every run.
      - One line of at most 1023 bytes.
    type: str
  regenerate:
    description:
      - Make a new key pair although there is one. The old one stays beside it, as C(<name>-<key_id>.key) and C(.pub).
      - This is not idempotent. Brokers refuse the new key's tokens until they have been given its public key. For a
        change that can be stopped and gone on with, see M(edgesec.nanomq.jwt_rotation).
    type: bool
    default: false
  backend:
    description:
      - What handles keys. V(auto) takes the cryptography library if it can be imported, else C(openssl).
    type: str
    choices: [auto, cryptography, openssl]
    default: auto
author:
  - EdgeSec maintainers (@edgesec)
extends_documentation_fragment:
  - edgesec.nanomq.key_material
seealso:
  - module: edgesec.nanomq.jwt_rotation
  - module: edgesec.nanomq.jwt_token
"""

EXAMPLES = r"""
- name: Make or keep the fleet's token key
  edgesec.nanomq.jwt_keypair:
    path: "{{ nanomq_pki_dir }}/jwt"
    passphrase: "{{ vault_jwt_passphrase }}"
  delegate_to: localhost
  run_once: true
  register: jwt_key
"""

RETURN = r"""
key_id:
  description: C(jwt-) and the first 8 hexadecimal digits of the SHA-256 of the public key (DER).
  returned: success
  type: str
  sample: jwt-1a2b3c4d
issuer:
  description: What the broker wants as a token's C(iss), and so the name that the public key's file must have there.
  returned: success
  type: str
  sample: jwt-1a2b3c4d.pub
public_key:
  description: The public key in PEM (SubjectPublicKeyInfo).
  returned: success
  type: str
private_key_path:
  description: Path of the private key.
  returned: success
  type: str
  sample: /srv/fleet/pki/jwt/fleet.key
public_key_path:
  description: Path of the public key.
  returned: success
  type: str
  sample: /srv/fleet/pki/jwt/fleet.pub
size:
  description: Size of the key in bits.
  returned: success
  type: int
  sample: 3072
preview:
  description:
    - V(true) in check mode when a key pair would be made. The values returned are then those of a pair that was made
      for this answer alone and thrown away, so that later tasks have something to show.
  returned: success
  type: bool
backend:
  description: What handled the keys, C(cryptography) or C(openssl).
  returned: success
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _der, _jwt
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    BACKENDS,
    Backend,
    CryptoError,
    choose_backend,
    encode_passphrase,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem, locked, make_directories
from ansible_collections.edgesec.nanomq.plugins.module_utils._jwt_keypair import KeyPair, check_name, check_size

ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "name": {"type": "str", "default": "fleet"},
    "size": {"type": "int", "default": 3072},
    "passphrase": {"type": "str", "no_log": True},
    "regenerate": {"type": "bool", "default": False},
    "backend": {"type": "str", "choices": ["auto", *BACKENDS], "default": "auto"},
}

#: Seconds in which another run must be done with making the pair: large keys take long to find.
PATIENCE = 120


def run(module: AnsibleModule) -> dict:
    """Make or keep the pair. Raises FileProblem, CryptoError, ValueError and OSError."""
    options = module.params
    check_size(options["size"])
    check_name(options["name"])
    backend = choose_backend(options["backend"])
    directory = options["path"].rstrip("/") or "/"
    pair = KeyPair(directory, options["name"], encode_passphrase(options["passphrase"]), backend)
    if module.check_mode or (pair.load() is not None and not options["regenerate"]):
        return keep_or_make(module, pair, backend)
    # Two runs may come here at once, or the hosts of one: not every strategy honours run_once.
    make_directories(directory, mode=0o700)
    with locked(directory, patience=PATIENCE):
        return keep_or_make(module, pair, backend)


def keep_or_make(module: AnsibleModule, pair: KeyPair, backend: Backend) -> dict:
    """Return the result for the pair that is there, else for a new one. Raises what `run` does."""
    options = module.params
    public_key = pair.load()
    if os.path.lexists(pair.record_path):
        if options["regenerate"]:
            raise FileProblem(
                f"{pair.record_path}: a rotation of this key is under way, and another key would cut it off: finish it"
                " first (playbook rotate_jwt)"
            )
        module.warn(f"{pair.record_path}: a rotation of this key is under way: finish it (playbook rotate_jwt)")
    makes_key = public_key is None or options["regenerate"]
    if makes_key:
        private_key, new_public_key = pair.generate(options["size"])
        if not module.check_mode:
            if public_key is not None:
                pair.archive(public_key)
            pair.store(private_key, new_public_key)
        public_key, changed = new_public_key, True
    else:
        changed = not pair.has_public_file(public_key)
        if changed and not module.check_mode:
            pair.store_public(public_key)
        if _jwt.check_key(public_key) != options["size"]:
            module.warn(
                f"{pair.private_path} has {_jwt.check_key(public_key)} bits, not {options['size']}; it is kept, and"
                " regenerate replaces it"
            )
    return {
        "changed": changed,
        "preview": makes_key and module.check_mode,
        "key_id": _jwt.key_id(public_key),
        "issuer": _jwt.issuer(public_key),
        "public_key": _der.to_pem("PUBLIC KEY", public_key).decode("ascii"),
        "private_key_path": pair.private_path,
        "public_key_path": pair.public_path,
        "size": _jwt.check_key(public_key),
        "backend": backend.name,
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
