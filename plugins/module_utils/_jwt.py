# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""JSON Web Tokens as the broker takes them: RS256, and an issuer that is the file name of the public key.

The broker requires ``iss`` to equal the base name of its key file and ``exp`` to be present; it looks at nothing else
and revokes nothing. A short life is therefore the only limit that a token has.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid

from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import Backend, CryptoError, choose_backend

#: Bits. RFC 7518, 3.3 asks for at least this many for RS256.
MINIMUM_SIZE = 2048


def key_id(public_key: bytes) -> str:
    """Return ``jwt-`` and the first 8 hexadecimal digits of the SHA-256 of a public key (DER)."""
    return "jwt-" + hashlib.sha256(public_key).hexdigest()[:8]


def issuer(public_key: bytes) -> str:
    """Return the ``iss`` that the broker asks for, which is the name of its key file: ``jwt-1a2b3c4d.pub``."""
    return key_id(public_key) + ".pub"


def check_key(public_key: bytes) -> int:
    """Return the size in bits of a public key fit for RS256. Raises CryptoError on any other."""
    family, _dash, size = x509.key_type(public_key).partition("-")
    if family != "rsa":
        raise CryptoError(f"it is no RSA key but {family}, and the broker takes RS256 alone")
    if int(size) < MINIMUM_SIZE:
        raise CryptoError(f"its {size} bits are too few: RS256 needs {MINIMUM_SIZE} or more")
    return int(size)


def claims(issuer_name: str, lifetime: int, *, subject: str | None = None, at: int | None = None) -> dict:
    """Return the claims of a token that lives for ``lifetime`` seconds from ``at`` (Unix time; default now)."""
    begin = int(time.time()) if at is None else at
    found = {"iss": issuer_name, "iat": begin, "exp": begin + lifetime, "jti": str(uuid.uuid4())}
    if subject:
        found["sub"] = subject
    return found


def mint(private_key_pem: bytes, passphrase: bytes | None, claims: dict, backend: Backend | None = None) -> str:
    """Return the signed token (JWS compact serialization, RS256) for ``claims``, which must hold an integer ``exp``.

    Raises CryptoError, also for a key that is no RSA key of 2048 bits or more.
    """
    if not isinstance(claims.get("exp"), int):
        raise CryptoError("a token without an integer exp would never end, and the broker refuses it")
    backend = backend or choose_backend()
    check_key(backend.public_key(private_key_pem, passphrase))
    signed = f"{part({'alg': 'RS256', 'typ': 'JWT'})}.{part(claims)}"
    return f"{signed}.{_base64url(backend.sign(private_key_pem, passphrase, signed.encode('ascii')))}"


def part(content: dict) -> str:
    return _base64url(json.dumps(content, separators=(",", ":")).encode("utf-8"))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
