#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: jwt_token
version_added: "0.1.0"
short_description: Mint a short-lived token for the broker's REST interface
description:
  - Signs a token (RS256) with the private key of M(edgesec.nanomq.jwt_keypair). It runs on the controller, whatever
    host the task is for, since the private key is there.
  - The broker can neither revoke a token nor limit its rights, so a short life is the only limit that there is.
  - The result is hidden from the output and the logs of Ansible as with C(no_log), also where the task does not say so.
    Say it all the same, and also on the tasks that use the token.
options:
  private_key_path:
    description:
      - Absolute path of the private key, on the controller.
    type: str
    required: true
  passphrase:
    description:
      - Passphrase of the private key, if it is encrypted.
    type: str
  issuer:
    description:
      - What the token names as its issuer (C(iss)). The broker wants the file name of its public key.
      - By default it is the name that M(edgesec.nanomq.jwt_keypair) gives the key.
    type: str
  subject:
    description:
      - Whom the token is for (C(sub)). The broker does not look at it, but whoever reads its log might.
    type: str
  valid_for:
    description:
      - How long the token is valid, such as V(5m). The broker accepts it for up to 200 seconds longer.
    type: str
    default: 5m
  max_valid_for:
    description:
      - The longest life that O(valid_for) may ask for.
    type: str
    default: 24h
author:
  - EdgeSec maintainers (@edgesec)
attributes:
  action:
    support: full
    description: Has an action plugin, so that all of it runs on the controller.
  check_mode:
    support: full
    description: Can run in check mode and say what would change, without changing anything.
    details:
      - A token is minted in check mode, too. Without a private key RV(token) is then empty.
  diff_mode:
    support: none
    description: Will say what changed, or would change, in diff mode.
  platform:
    platforms: posix
    support: full
    description: The operating systems that this works on.
seealso:
  - module: edgesec.nanomq.jwt_keypair
  - plugin: edgesec.nanomq.jwt_token
    plugin_type: lookup
"""

EXAMPLES = r"""
- name: Mint a token for five minutes
  edgesec.nanomq.jwt_token:
    private_key_path: "{{ nanomq_pki_dir }}/jwt/fleet.key"
    passphrase: "{{ vault_jwt_passphrase }}"
    subject: maintenance
  register: minted
  no_log: true

- name: Ask the broker for its clients
  ansible.builtin.uri:
    url: http://127.0.0.1:8081/api/v4/clients
    headers:
      Authorization: "Bearer {{ minted.token }}"
  no_log: true
"""

RETURN = r"""
token:
  description: The token; empty in check mode when there is no private key yet. It is hidden from the output.
  returned: success
  type: str
issuer:
  description: The token's C(iss); empty in check mode when there is no private key yet.
  returned: success
  type: str
  sample: jwt-1a2b3c4d.pub
expires:
  description: When the token ends, in seconds since 1970 (C(exp)); 0 in check mode when there is no private key yet.
  returned: success
  type: int
"""
