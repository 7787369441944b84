# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an authority on the controller takes back: the list in its ``crl.pem``, signed with its key.

The list is the only record of what was revoked. Where the authority has further keys, as in a roll-over, each signs a
list of its own with the same entries. Lists of others in the file, such as that of an offline root, stay as they are.
Needs the cryptography library, which ansible-core brings to every controller.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
from collections.abc import Sequence

from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority, _crl, _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils._authority import _authority_key_identifier, _naive
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    CryptoError,
    WrongPassphrase,
    choose_backend,
    load_certificates,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto_cryptography import load_private_key
from ansible_collections.edgesec.nanomq.plugins.module_utils._duration import parse_margin
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem, read_regular, write_atomic
from ansible_collections.edgesec.nanomq.plugins.module_utils._vault import Vault

try:
    from cryptography import x509 as library
    from cryptography.hazmat.primitives import hashes, serialization
except ImportError:
    # choose_backend("cryptography") then tells what is missing, before anything here is needed.
    library = hashes = serialization = None

#: The certificates that sign, and their keys: the one in force, and during a roll-over its successor and predecessor.
SIGNERS = (
    (_authority.CERTIFICATE, _authority.KEY),
    (_authority.NEXT, _authority.NEXT_KEY),
    (_authority.PREVIOUS, _authority.PREVIOUS_KEY),
)
#: A list of more bytes does not fit any more into what is read of a file, here and on a host.
SIZE_LIMIT = 200 * 1024


@dataclasses.dataclass(frozen=True)
class Signer:
    """A certificate of the authority, and the name of its key's file."""

    certificate: _x509.Certificate
    key: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What crl.pem is to be. `reason` is empty if it is so already, and `due` is then when the next one is due."""

    path: str
    signers: tuple[Signer, ...]
    others: tuple[_crl.RevocationList, ...]
    serials: dict[int, datetime.datetime]
    added: tuple[int, ...]
    number: int
    reason: str
    next_update: datetime.datetime
    due: datetime.datetime


def plan(
    path: str,
    *,
    serials: Sequence[str] = (),
    common_names: Sequence[str] = (),
    unknown: bool = False,
    valid_for: int,
    renew_before: str,
) -> Plan:
    """Find out what crl.pem in the directory of an authority is to be.

    serials: hexadecimal numbers to revoke, with or without colons
    common_names: revoke what was given to these, by the copies in issued/
    unknown: also serial numbers of which there is no copy
    renew_before: how long before its end a list is replaced, as a duration or a share of valid_for

    Raises FileProblem, CryptoError and ValueError.
    """
    authority = _authority.load(path)
    if authority is None:
        raise FileProblem(f"there is no authority in {path}: make one first (playbook harden)")
    margin = parse_margin(renew_before, valid_for)
    if margin >= valid_for:
        raise ValueError(f"renew_before {renew_before} is not shorter than valid_for: each run would make a new list")
    issued = _issued(path)
    wanted = [_serial(text) for text in serials]
    strange = [number for number in wanted if number not in issued]
    if strange and not unknown:
        raise ValueError(
            f"{path} never gave a certificate with the serial number {', '.join(f'{number:x}' for number in strange)}"
            " (there is no copy in issued/). For one that was signed by other means, set unknown"
        )
    for name in common_names:
        found = [number for number, certificate in issued.items() if certificate.common_name == name]
        if not found:
            known = sorted({certificate.common_name for certificate in issued.values()})
            raise ValueError(
                f"{path} never gave a certificate with the common name {name!r}. It gave some to"
                f" {', '.join(map(repr, known[:20])) or 'nobody'}{' and others' * (len(known) > 20)}"
            )
        wanted += found
    signers = _signers(path)
    lists = _lists(path)
    backend = choose_backend("cryptography")
    own = {signer: [one for one in lists if one.is_signed_by(backend, signer.certificate)] for signer in signers}
    mine = [one for found in own.values() for one in found]
    revoked = {serial: moment for one in mine for serial, moment in one.serials.items()}
    now = _authority.now()
    added = tuple(dict.fromkeys(number for number in wanted if number not in revoked))
    return Plan(
        path=path,
        signers=signers,
        # Of another key, and in force: not ours to make again, and not ours to drop.
        others=tuple(one for one in lists if one not in mine and one.next_update > now),
        serials={**_still_needed(revoked, issued, mine), **dict.fromkeys(added, now)},
        added=added,
        # Rising even where the file was lost: the time never goes back for long.
        number=max([int(now.timestamp()), *(one.number + 1 for one in mine if one.number is not None)]),
        reason=_reason(own, revoked, added, now, datetime.timedelta(seconds=margin)),
        next_update=now + datetime.timedelta(seconds=valid_for),
        due=min((one.next_update for one in mine), default=now),
    )


def carry_out(wanted: Plan, passphrase: bytes | None) -> None:
    """Write crl.pem, signed with each key of the authority. Raises FileProblem, CryptoError and OSError."""
    made = [_sign(wanted, signer, passphrase) for signer in wanted.signers]
    pem = b"".join(der.to_pem("X509 CRL", raw) for raw in (*made, *(one.raw for one in wanted.others)))
    if len(pem) > SIZE_LIMIT:
        raise FileProblem(
            f"{wanted.path}/{_authority.LISTS} would have {len(pem)} bytes, more than {SIZE_LIMIT}: replace the"
            " authority by another one, which has revoked nothing"
        )
    write_atomic(os.path.join(wanted.path, _authority.LISTS), pem, mode=0o644)


def check_keys(wanted: Plan, passphrase: bytes | None) -> None:
    """Open each key that would sign, without signing. Raises FileProblem and CryptoError."""
    for signer in wanted.signers:
        _open_key(wanted.path, signer, passphrase)


def _serial(text: str) -> int:
    digits = str(text).replace(":", "").strip()
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{1,40}", digits, re.ASCII):
        raise ValueError(f"{text!r} is not a serial number: write it in hexadecimal, as openssl x509 -serial prints it")
    return int(digits, 16)


def _issued(path: str) -> dict[int, _x509.Certificate]:
    """{serial number: certificate} of the copies that the authority keeps."""
    directory = os.path.join(path, _authority.ISSUED)
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".pem") and not name.startswith("."))
    except FileNotFoundError:
        return {}
    found = {}
    for name in names:
        file = os.path.join(directory, name)
        certificate = load_certificates(read_regular(file), file)[0]
        found[certificate.serial] = certificate
    return found


def _signers(path: str) -> tuple[Signer, ...]:
    vault, found = Vault(path), []
    for certificate, key in SIGNERS:
        if vault.has(certificate) and (vault.has(key) or not found):
            found.append(Signer(load_certificates(vault.read(certificate), vault.file(certificate))[0], key))
    return tuple(found)


def _lists(path: str) -> list[_crl.RevocationList]:
    file = os.path.join(path, _authority.LISTS)
    try:
        lists = _crl.load_lists(read_regular(file))
    except FileNotFoundError:
        return []
    except der.DerError as error:
        raise _damaged(file, str(error)) from None
    if not lists:
        raise _damaged(file, "there is no list in it")
    return lists


def _damaged(file: str, why: str) -> FileProblem:
    return FileProblem(
        f"{file} is damaged ({why}), and it is the only record of what was revoked: restore it from a backup, or from"
        " a host that has it in /etc/edgesec-nanomq/nginx"
    )


def _reason(own: dict, revoked: dict, added: tuple, now: datetime.datetime, margin: datetime.timedelta) -> str:
    """Why a new list is needed, "" if the one that is there will do."""
    if added:
        return f"{len(added)} more revoked"
    for found in own.values():
        current = max(found, key=lambda one: one.next_update, default=None)
        if current is None:
            return "there is no list with the key of the authority"
        if set(revoked) - set(current.serials):
            return "a list lacks what another one has"
        if current.this_update > now:
            return f"the list holds from {_x509.show_time(current.this_update)} on, and that is not now"
        if current.next_update - now <= margin:
            return f"the list is to be replaced by {_x509.show_time(current.next_update)}"
    return ""


def _still_needed(revoked: dict, issued: dict, mine: Sequence[_crl.RevocationList]) -> dict[int, datetime.datetime]:
    """Leave out what ended before a list was made that had it: nobody takes it any more (RFC 5280, 3.3)."""
    seen = min((one.this_update for one in mine), default=None)
    return {
        serial: moment
        for serial, moment in revoked.items()
        if serial not in issued or seen is None or issued[serial].not_after >= seen
    }


def _open_key(path: str, signer: Signer, passphrase: bytes | None):
    vault = Vault(path)
    file = vault.file(signer.key)
    try:
        key = load_private_key(vault.read(signer.key, private=True), passphrase)
    except FileNotFoundError:
        raise FileProblem(f"{file} is missing: without it no list can be signed; restore it from a backup") from None
    except WrongPassphrase as error:
        raise WrongPassphrase(f"{file}: {error}") from None
    except CryptoError as error:
        raise CryptoError(f"{file}: {error}") from None
    public_key = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    if public_key != signer.certificate.public_key:
        raise CryptoError(f"{file} is not the key of the certificate beside it")
    return key


def _sign(wanted: Plan, signer: Signer, passphrase: bytes | None) -> bytes:
    """The list with the key of one signer, in DER."""
    key = _open_key(wanted.path, signer, passphrase)
    issuer = library.load_der_x509_certificate(signer.certificate.raw)
    now = _authority.now()
    builder = (
        library.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        # A host whose clock is a little slow takes it at once.
        .last_update(_naive(now - _authority.BACKDATE))
        .next_update(_naive(wanted.next_update))
        .add_extension(library.CRLNumber(wanted.number), critical=False)
        .add_extension(_authority_key_identifier(issuer), critical=False)
    )
    for serial, moment in sorted(wanted.serials.items()):
        entry = library.RevokedCertificateBuilder().serial_number(serial).revocation_date(_naive(moment)).build()
        builder = builder.add_revoked_certificate(entry)
    digest = hashes.SHA384() if _x509.key_type(signer.certificate.public_key) == "ec-p384" else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.DER)
