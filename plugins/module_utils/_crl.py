# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificate revocation lists as they are read (RFC 5280, section 5). Standard library, and a back end for signatures.

Everything read here is a file of the operator's controller, or one that came from there.
"""

from __future__ import annotations

import dataclasses
import datetime

from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import Backend

CRL_NUMBER = "2.5.29.20"


@dataclasses.dataclass(frozen=True)
class RevocationList:
    """What a list says. Times are UTC; `serials` is {serial number: when it was revoked}; a list of version 1 has no
    `number`."""

    raw: bytes
    tbs: bytes
    issuer: bytes
    this_update: datetime.datetime
    next_update: datetime.datetime
    serials: dict[int, datetime.datetime]
    number: int | None
    signature_algorithm: str
    signature: bytes

    def is_signed_by(self, backend: Backend, authority: _x509.Certificate) -> bool:
        """Say whether an authority made it: it bears its name and its key's signature. A digest not known is none."""
        digest = _x509.DIGESTS.get(self.signature_algorithm)
        if digest is None or self.issuer != authority.subject:
            return False
        return backend.verify(authority.public_key, self.signature, self.tbs, digest)


def load_lists(pem: bytes) -> list[RevocationList]:
    """Return the lists of a PEM file in their order, [] where there is none. Raises DerError."""
    return [parse(raw) for raw in der.from_pem("X509 CRL", pem)]


def parse(raw: bytes) -> RevocationList:
    """Return what a DER list says. Raises DerError, also where it does not say when the next one is due."""
    try:
        tbs, algorithm, signature = der.parse(raw).expect(der.SEQUENCE).children()
        fields = tbs.expect(der.SEQUENCE).children()
        if fields[0].tag == der.INTEGER:
            fields = fields[1:]
        if len(fields) < 4 or fields[3].tag not in (der.UTC_TIME, der.GENERALIZED_TIME):
            raise der.DerError("a revocation list without the time of the next one")
        entries = [node for node in fields[4:5] if node.tag == der.SEQUENCE]
        return RevocationList(
            raw=raw,
            tbs=tbs.raw,
            issuer=fields[1].raw,
            this_update=der.time(fields[2]),
            next_update=der.time(fields[3]),
            serials=dict(_entry(node) for node in (entries[0].children() if entries else [])),
            number=_number(fields[4:]),
            signature_algorithm=der.oid(algorithm.children()[0]),
            signature=der.bit_string(signature),
        )
    except der.DerError:
        raise
    except (ValueError, IndexError) as error:
        raise der.DerError(f"it is not a revocation list: {error}") from None


def _entry(node: der.Node) -> tuple[int, datetime.datetime]:
    serial, moment = node.expect(der.SEQUENCE).children()[:2]
    return der.integer(serial), der.time(moment)


def _number(fields: list[der.Node]) -> int | None:
    for field in fields:
        if field.tag != 0xA0:
            continue
        for extension in field.children()[0].expect(der.SEQUENCE).children():
            parts = extension.children()
            if der.oid(parts[0]) == CRL_NUMBER:
                return der.integer(der.parse(parts[-1].expect(der.OCTET_STRING).content))
    return None
