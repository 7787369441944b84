# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
name: jwt_token
author: EdgeSec maintainers (@edgesec)
version_added: "0.1.0"
short_description: Mint a short-lived token for the broker's REST interface
description:
  - Signs a token (RS256) with the private key of P(edgesec.nanomq.jwt_keypair#module), on the controller.
  - Each evaluation mints another token. A task that uses one needs C(no_log).
options:
  _terms:
    description: Absolute paths of private keys, a token for each.
    type: list
    elements: str
    required: true
  passphrase:
    description: Passphrase of the private key, if it is encrypted.
    type: str
  issuer:
    description:
      - What the token names as its issuer (C(iss)).
      - By default it is the name that P(edgesec.nanomq.jwt_keypair#module) gives the key.
    type: str
  subject:
    description: Whom the token is for (C(sub)).
    type: str
  valid_for:
    description: How long the token is valid.
    type: str
    default: 5m
  max_valid_for:
    description: The longest life that O(valid_for) may ask for.
    type: str
    default: 24h
seealso:
  - module: edgesec.nanomq.jwt_token
"""

EXAMPLES = r"""
- name: Ask the broker for its clients
  ansible.builtin.uri:
    url: http://127.0.0.1:8081/api/v4/clients
    headers:
      Authorization: "Bearer {{ lookup('edgesec.nanomq.jwt_token', nanomq_pki_dir ~ '/jwt/fleet.key') }}"
  no_log: true
"""

RETURN = r"""
_raw:
  description: The tokens.
  type: list
  elements: str
"""

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._jwt_token import OPTIONS, mint_token


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        options = {name: self.get_option(name) for name in OPTIONS if name != "private_key_path"}
        try:
            return [mint_token({**options, "private_key_path": term})["token"] for term in terms]
        except (ValueError, CryptoError, FileProblem, OSError) as error:
            raise AnsibleError(f"edgesec.nanomq.jwt_token: {error}") from error
