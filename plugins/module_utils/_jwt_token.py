# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the action and the lookup of the name jwt_token have in common. Controller only."""

from __future__ import annotations

import os

from ansible_collections.edgesec.nanomq.plugins.module_utils import _jwt
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    CryptoError,
    choose_backend,
    encode_passphrase,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._duration import parse_duration
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import read_regular

#: The options of the module.
OPTIONS = {
    "private_key_path": {"type": "str", "required": True},
    "passphrase": {"type": "str", "no_log": True},
    "issuer": {"type": "str"},
    "subject": {"type": "str"},
    "valid_for": {"type": "str", "default": "5m"},
    "max_valid_for": {"type": "str", "default": "24h"},
}


def mint_token(options: dict) -> dict:
    """Return ``token``, ``issuer`` and ``expires`` (Unix time) for validated OPTIONS.

    Raises FileNotFoundError when the private key is missing; ValueError, FileProblem, CryptoError or OSError.
    """
    lifetime, limit = parse_duration(options["valid_for"]), parse_duration(options["max_valid_for"])
    if lifetime > limit:
        raise ValueError(
            f"valid_for {options['valid_for']} is longer than max_valid_for {options['max_valid_for']}: the broker"
            " cannot revoke a token, so mint a new one when it is needed"
        )
    path = os.path.expanduser(options["private_key_path"])
    private_key = read_regular(path, private=True)
    passphrase = encode_passphrase(options["passphrase"])
    backend = choose_backend()
    try:
        issuer = options["issuer"] or _jwt.issuer(backend.public_key(private_key, passphrase))
        claims = _jwt.claims(issuer, lifetime, subject=options["subject"])
        token = _jwt.mint(private_key, passphrase, claims, backend)
    except CryptoError as error:
        raise type(error)(f"{path}: {error}") from None
    return {"token": token, "issuer": issuer, "expires": claims["exp"]}
