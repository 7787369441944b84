"""Bearer tokens as the broker checks them: RS256 whatever the header says, issuer and expiry, nothing else.

Pure Python, for the package must run on hosts without a cryptography library.  It verifies only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time

EXPIRY_TOLERANCE_SECONDS = 200
OK, WRONG, EMPTY, EXPIRED = 0, 103, 104, 116
_SHA256_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")
_PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----(.*?)-----END \1-----", re.S)


def authorize(header: str | None, public_key: str | None, issuer: str | None) -> int:
    """Result code of an `Authorization` header; 0 is admission."""
    match = re.match(r"Bearer\s*(\S+)", header or "")
    if not match:
        return EMPTY
    try:
        signed, _dot, signature = match.group(1).rpartition(".")
        claims = json.loads(_decode(signed.split(".")[1]))
        modulus, exponent = _rsa_public_key(public_key or "")
        if not _verifies(signed.encode(), _decode(signature), modulus, exponent):
            return WRONG
        if issuer is not None and claims.get("iss") != issuer:
            return WRONG
        return EXPIRED if _expired(claims.get("exp")) else OK
    except (ValueError, IndexError, AttributeError):
        return WRONG


def _expired(claim: object) -> bool:
    """A missing or unreadable expiry counts as long past; text is read as a number as far as it goes."""
    digits = re.match(r"\d+", str(claim))
    return time.time() - EXPIRY_TOLERANCE_SECONDS > (int(digits.group()) if digits else 0)


def _verifies(message: bytes, signature: bytes, modulus: int, exponent: int) -> bool:
    """RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2.2)."""
    size = (modulus.bit_length() + 7) // 8
    digest = _SHA256_PREFIX + hashlib.sha256(message).digest()
    if len(signature) != size or size < len(digest) + 11:
        return False
    expected = b"\x00\x01" + b"\xff" * (size - len(digest) - 3) + b"\x00" + digest
    return hmac.compare_digest(pow(int.from_bytes(signature, "big"), exponent, modulus).to_bytes(size, "big"), expected)


def _rsa_public_key(pem: str) -> tuple[int, int]:
    """Modulus and exponent of a public key (SPKI or PKCS#1) or a certificate in PEM; `ValueError` of anything else."""
    match = _PEM.search(pem)
    if not match:
        raise ValueError("not PEM")
    kind, data = match.group(1), base64.b64decode(match.group(2))
    if kind == "CERTIFICATE":
        fields = _elements(_elements(_elements(data)[0])[0])
        # The version, which is the tagged first field, is optional.
        return _spki(fields[6 if data and len(fields) > 6 else 5])
    if kind == "PUBLIC KEY":
        return _spki(_elements(data)[0])
    if kind == "RSA PUBLIC KEY":
        return _pkcs1(data)
    raise ValueError("not a public key")


def _spki(content: bytes) -> tuple[int, int]:
    algorithm, key = _elements(content)[:2]
    if bytes.fromhex("2a864886f70d010101") not in algorithm:
        raise ValueError("not an RSA key")
    return _pkcs1(key[1:])


def _pkcs1(data: bytes) -> tuple[int, int]:
    modulus, exponent = _elements(_elements(data)[0])
    return int.from_bytes(modulus, "big"), int.from_bytes(exponent, "big")


def _elements(data: bytes) -> list[bytes]:
    """Contents of the DER elements that `data` is a sequence of."""
    found = []
    while data:
        size, start = data[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(data[2:start], "big")
        found.append(data[start : start + size])
        data = data[start + size :]
    return found


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
