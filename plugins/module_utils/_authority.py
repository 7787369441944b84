# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The certificate authority on the controller: kept in one directory, it signs what devices ask for.

``ca.key`` is the private key (PKCS#8, 0600), ``ca.pem`` the issuing certificate, followed by those above it if it is an
intermediate. ``earlier.pem`` holds issuing certificates that were renewed and have not ended. ``issued/<serial>.pem``
keeps each certificate given out: revoking one needs its serial number at a time when the device may be gone.
``newest.json`` says which of them was written last, and can be lost without harm. ``crl.pem`` says which were revoked,
see _revocation. Needs the cryptography library, which ansible-core brings to every controller.

A roll-over replaces key and trust in three steps. *introduce*: ``next.key`` and ``next.pem`` are a successor that is
trusted and does not sign yet. *switch*: it becomes ``ca.key`` and ``ca.pem``, what they were becomes ``previous.key``
and ``previous.pem``, and ``cross.pem`` is the successor's key certified by the previous authority, sent along for those
who trust that one alone. *retire*: previous and cross are gone. The successor bears the same name, so that the cross
certificate is self-issued and needs no room in a path length (RFC 5280, 4.2.1.9), which many an authority made
elsewhere does not leave. This is the "new with old" of RFC 4210, 4.4.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import ipaddress
import json
import os
import typing

from ansible_collections.edgesec.nanomq.plugins.module_utils import _crl
from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    CryptoError,
    WrongPassphrase,
    choose_backend,
    is_encrypted,
    is_signed_by,
    load_certificates,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto_cryptography import load_private_key
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import (
    FileProblem,
    make_directories,
    read_regular,
    write_atomic,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._vault import Vault

try:
    from cryptography import x509 as library
    from cryptography.hazmat.primitives import hashes, serialization
except ImportError:
    # choose_backend("cryptography") then tells what is missing, before anything here is needed.
    library = hashes = serialization = None

KEY, CERTIFICATE, ISSUED = "ca.key", "ca.pem", "issued"
NEXT_KEY, NEXT = "next.key", "next.pem"
PREVIOUS_KEY, PREVIOUS, CROSS = "previous.key", "previous.pem", "cross.pem"
EARLIER = "earlier.pem"
NEWEST = "newest.json"
LISTS = "crl.pem"

#: Modes of private keys and of certificates.
SECRET, PUBLIC = 0o600, 0o644

#: How many authorities may follow below one. The cross certificate of a roll-over is self-issued and so should not
#: count, but it does for mbedtls, which the broker and many small clients use.
PATH_LENGTH = 1

#: Certificates begin to hold this much before they are made, for devices whose clock is a little slow.
BACKDATE = datetime.timedelta(hours=1)

#: Seconds to wait for the signatures of all other forks, on a slow disk.
QUEUE = 300


class Meanwhile(FileProblem):
    """Another run has changed the directory since it was looked at; this one has changed nothing."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a device may have: the one common name and exactly the ``names`` (normalised) that its task asks for."""

    common_name: str
    names: tuple[str, ...]
    usages: tuple[str, ...]
    key_type: str
    valid_for: int


@dataclasses.dataclass(frozen=True)
class Authority:
    """A usable authority: ``certificates`` is what ca.pem holds, the issuing one first.

    ``successor``, ``previous`` and ``cross`` are there during a roll-over, see above; ``earlier`` after a renewal.
    """

    path: str
    certificates: tuple[x509.Certificate, ...]
    successor: tuple[x509.Certificate, ...] = ()
    previous: tuple[x509.Certificate, ...] = ()
    cross: tuple[x509.Certificate, ...] = ()
    earlier: tuple[x509.Certificate, ...] = ()

    @property
    def issuer(self) -> x509.Certificate:
        """The certificate that signs."""
        return self.certificates[0]

    @property
    def is_intermediate(self) -> bool:
        """Whether another authority is above it."""
        return not is_self_signed(self.issuer)

    @property
    def pem(self) -> str:
        """All of ca.pem, re-encoded."""
        return show(self.certificates)

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Those that a device has to send along with its own: the way to each root, without the roots.

        The cross certificate and what is above it come first. Some verifiers take the first certificate that fits and
        try no other; those who trust the successor find it among what they trust, before they look here.
        """
        old = [one for one in (*self.cross, *self.previous) if _holds(one)] if self.cross else []
        return tuple(dict.fromkeys(one for one in (*old, *self.certificates) if not is_self_signed(one)))

    @property
    def anchors(self) -> tuple[x509.Certificate, ...]:
        """What is to be trusted now: roots, and intermediates for the sake of those who send none along."""
        known = dict.fromkeys((*self.certificates, *self.successor, *self.previous, *self.earlier))
        return tuple(one for one in known if _holds(one))

    @property
    def trusted(self) -> str:
        """The anchors as PEM."""
        return show(self.anchors)

    @property
    def rollover(self) -> str:
        """How far a roll-over has come: ``introduced``, ``switched``, or '' when there is none."""
        return "introduced" if self.successor else "switched" if self.previous else ""


@dataclasses.dataclass(frozen=True)
class Root:
    """An authority above ours, with its key open."""

    certificates: tuple[x509.Certificate, ...]
    key: typing.Any


@dataclasses.dataclass(frozen=True, order=True)
class Issued:
    """A certificate in ``issued/``, ordered by when it was written, in ns."""

    modified: int
    name: str


def show(certificates: typing.Iterable[x509.Certificate]) -> str:
    """Return certificates as PEM text."""
    return "".join(certificate.pem().decode("ascii") for certificate in certificates)


def command(step: str, path: str) -> str:
    """Return the command line that makes a step of a roll-over of the authority in ``path``, for messages."""
    # The role nanomq_pki has two authorities, each with a variable of its own.
    name = "operators" if os.path.basename(path) == "operators" else "authority"
    return f"ansible-playbook edgesec.nanomq.harden -e nanomq_pki_{name}_rollover={step}"


def remedy(authority: Authority, ending: x509.Certificate) -> str:
    """Return the command line that begins to replace one of its certificates, which is near its end."""
    if ending is authority.issuer and authority.is_intermediate:
        return "ansible-playbook edgesec.nanomq.harden -e nanomq_pki_root_path=DIRECTORY (of its root, mounted there)"
    return command("introduce", authority.path)


def now() -> datetime.datetime:
    """Return the present moment, UTC, in whole seconds."""
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Say whether a certificate is signed by its own key: a name that is its own issuer's is not enough."""
    return is_signed_by(choose_backend("cryptography"), certificate, certificate)


def load(path: str, *, renewable: bool = False) -> Authority | None:
    """Return the authority in ``path`` by its certificates alone, or None when there is none yet.

    The private key is not opened: in steady state no passphrase is needed. Raises FileProblem and CryptoError when it
    is not one to trust and use: see check_vault; damaged, not an authority, expired, not valid yet, or with a broken
    chain. ``renewable``: an intermediate may have expired, as long as those above it have not.
    """
    vault = Vault(path)
    if not vault.exists():
        return None
    file = vault.file(CERTIFICATE)
    try:
        pem = vault.read(CERTIFICATE)
    except FileNotFoundError:
        return None
    certificates = tuple(load_certificates(pem, file))
    issuer = certificates[0]
    if not issuer.is_authority:
        raise CryptoError(f"{file} is not the certificate of an authority (basicConstraints CA is not set)")
    kind = x509.key_type(issuer.public_key)
    if not kind.startswith(("rsa-", "ec-p")):
        raise CryptoError(f"{file}: an authority with a key of the kind {kind} is not supported; use RSA or EC")
    backend = choose_backend("cryptography")
    for lower, upper in zip(certificates, certificates[1:]):
        if not is_signed_by(backend, lower, upper):
            raise CryptoError(f"{file}: {lower.common_name!r} is not signed by {upper.common_name!r} which follows it")
    authority = Authority(path, certificates, *(_optional(vault, name) for name in (NEXT, PREVIOUS, CROSS, EARLIER)))
    for number, certificate in enumerate(certificates):
        if not (renewable and number == 0 and authority.is_intermediate and now() > certificate.not_after):
            _check_times(certificate, file, lower=authority.is_intermediate and number == 0)
    return authority


def _optional(vault: Vault, name: str) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a file that need not be there."""
    try:
        return tuple(load_certificates(vault.read(name), vault.file(name)))
    except FileNotFoundError:
        return ()


def check_clock(path: str) -> None:
    """Raise CryptoError when this clock is before a certificate that the authority in ``path`` gave out.

    One of the two clocks, then or now, was wrong, and what is signed now could be valid for nobody.
    Only the file that was written last is read, so that an authority of a large fleet costs no more.
    """
    _check_clock(path, newest(path))


def _check_clock(path: str, last: Issued | None) -> None:
    if last is None:
        return
    file = os.path.join(path, ISSUED, last.name)
    leaf = load_certificates(read_regular(file), file)[0]
    if leaf.not_before > now():
        raise CryptoError(
            f"the clock of the controller says {x509.show_time(now())}, and {file}, which this authority issued, is"
            f" valid only from {x509.show_time(leaf.not_before)}: set the time (chrony, systemd-timesyncd), then run"
            " again. If it was wrong when that was issued and is right now, move that file away, and renew what was"
            " issued then (renew_issued_before)"
        )


def newest(path: str) -> Issued | None:
    """Return what was written last into ``issued/``, or None where nothing is.

    Looking at all of it before each signature would make the first run of a fleet quadratic, so the last signature
    wrote down what it had found. That holds for as long as the directory is the one it was then: whatever comes into
    it or leaves it (a copy of a backup, a file moved away, a signature of another program or an older release) gives
    it another change time, which, unlike a modification time, nobody can set. Then all of it is looked at. Only what
    does not ask for the lock and comes at the very moment of a signature is not seen.
    """
    noted = _noted(path)
    return _listed(path) if noted is None else noted


def _listed(path: str) -> Issued | None:
    found = []
    try:
        with os.scandir(os.path.join(path, ISSUED)) as entries:
            for entry in entries:
                # One that was moved away meanwhile is none.
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.endswith(".pem"):
                        found.append(Issued(entry.stat().st_mtime_ns, entry.name))
    except FileNotFoundError:
        return None
    return max(found, default=None)


def _noted(path: str) -> Issued | None:
    """Return what newest.json says, or None where it is not there, damaged, or of another state of ``issued/``."""
    try:
        note = json.loads(read_regular(os.path.join(path, NEWEST)))
        last = Issued(note["modified"], note["name"])
        if note["directory"] == _state(path) and _issued(path, last.name) == last:
            return last
    except (FileProblem, OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _note(path: str, last: Issued) -> None:
    """Write newest.json; the lock must be held, and the file must have been removed before ``issued/`` was changed."""
    note = {"directory": _state(path), **dataclasses.asdict(last)}
    write_atomic(os.path.join(path, NEWEST), json.dumps(note).encode("utf-8"), mode=PUBLIC)


def _state(path: str) -> list[int]:
    """Return what changes whenever something comes into ``issued/`` or leaves it, or another directory is put there."""
    found = os.stat(os.path.join(path, ISSUED))
    return [found.st_ino, found.st_ctime_ns]


def _issued(path: str, name: str) -> Issued:
    return Issued(os.stat(os.path.join(path, ISSUED, name)).st_mtime_ns, name)


def open_key(authority: Authority, passphrase: bytes | None):
    """Return the library's key object of the authority's private key.

    Raises FileProblem, WrongPassphrase, or CryptoError when the key and the certificate are not a pair.
    """
    return _open(authority.path, KEY, passphrase, CERTIFICATE, authority.issuer)


def is_locked(path: str) -> bool:
    """Say whether the private key is encrypted. Raises FileProblem."""
    return is_encrypted(_read_key(path, KEY))


def has_key(path: str) -> bool:
    """Say whether a private key is there."""
    return Vault(path).has(KEY)


def create(
    path: str,
    common_name: str,
    key_type: str,
    valid_for: int,
    passphrase: bytes | None,
    *,
    root: Root | None = None,
    path_length: int = PATH_LENGTH,
) -> Authority:
    """Make the authority and return it: below ``root`` if there is one. A private key found alone is put to use.

    Raises FileProblem, CryptoError and OSError with no authority made.
    """
    vault = Vault(path)
    pem = _read_key(path, KEY) if has_key(path) else _generate(key_type, passphrase)
    certificates = _certify_new(pem, passphrase, common_name, valid_for, root, path_length)
    with vault.lock():
        if vault.has(CERTIFICATE) or (vault.has(KEY) and _read_key(path, KEY) != pem):
            raise Meanwhile(f"another run has made an authority in {path} meanwhile: run again")
        vault.change({KEY: (pem, SECRET), CERTIFICATE: (_encoded(certificates), PUBLIC)})
    return Authority(path, certificates)


def open_root(path: str, passphrase: bytes | None) -> Root:
    """Return the authority that signs ours. Raises FileProblem, CryptoError or WrongPassphrase."""
    authority = load(path)
    if authority is None:
        raise FileProblem(
            f"there is no authority in {path}, and it is needed now to sign: mount the medium that it is on"
            " (nanomq_pki_root_path)"
        )
    if path_length(authority.issuer) == 0:
        raise CryptoError(
            f"{path}: {authority.issuer.common_name!r} may sign no other authority (its pathlen is 0): make a root with"
            " path_length: 1"
        )
    return Root(authority.certificates, open_key(authority, passphrase))


def path_length(certificate: x509.Certificate) -> int | None:
    """Return how many authorities may follow below one; None for any number."""
    found = _library(certificate).extensions.get_extension_for_class(library.BasicConstraints)
    return found.value.path_length


def check_name(name, root: Root) -> None:
    """Raise CryptoError when an authority (its common name or the library's Name) has the name of that root."""
    above = root.certificates[0]
    if _name(name) == _library(above).subject:
        raise CryptoError(
            f"an authority cannot have the name of the root above it, {above.common_name!r}: make a root of another"
            " common_name, or a new authority of another one"
        )


def check_same_root(authority: Authority, root: Root, path: str) -> None:
    """Raise CryptoError unless ``root`` (found in ``path``) is the authority above ours."""
    if not is_signed_by(choose_backend("cryptography"), authority.issuer, root.certificates[0]):
        raise CryptoError(
            f"the authority in {authority.path} is not signed by {root.certificates[0].common_name!r} in {path}: name"
            " the root that it is below of, or roll over to the other one"
        )


def renew(
    authority: Authority, passphrase: bytes | None, key_type: str, valid_for: int, *, root: Root | None, new_key: bool
) -> None:
    """Give the authority another certificate of the same name, with its key or a new one.

    What it replaces stays trusted until it ends. A new key needs a root, since those who know the old certificate
    alone could not know the new one. Raises FileProblem, CryptoError and OSError with nothing changed.
    """
    with _locked(authority) as vault:
        if not new_key:
            open_key(authority, passphrase)
        pem = _generate(key_type, passphrase) if new_key else _read_key(authority.path, KEY)
        certificates = _certify_new(pem, passphrase, name_to_keep(authority), valid_for, root, PATH_LENGTH)
        earlier = [one for one in (authority.issuer, *authority.earlier) if _holds(one)]
        files = {KEY: (pem, SECRET), CERTIFICATE: (_encoded(certificates), PUBLIC)}
        if earlier:
            files[EARLIER] = (_encoded(earlier), PUBLIC)
        vault.change(files, () if earlier else (EARLIER,))


def introduce(authority: Authority, passphrase: bytes | None, key_type: str, valid_for: int, root: Root | None) -> None:
    """Make a successor, below ``root`` if there is one."""
    with _locked(authority) as vault:
        pem = _generate(key_type, passphrase)
        certificates = _certify_new(pem, passphrase, name_to_keep(authority), valid_for, root, PATH_LENGTH)
        vault.change({NEXT_KEY: (pem, SECRET), NEXT: (_encoded(certificates), PUBLIC)})


def open_successor(authority: Authority, passphrase: bytes | None):
    """Return the library's key object of the successor. Raises as open_key does."""
    return _open(authority.path, NEXT_KEY, passphrase, NEXT, authority.successor[0])


def switch(authority: Authority, passphrase: bytes | None) -> None:
    """Let the successor sign."""
    path, old, new = authority.path, authority.issuer, authority.successor[0]
    key = open_key(authority, passphrase)
    open_successor(authority, passphrase)
    for certificate in authority.successor:
        _check_times(certificate, os.path.join(path, NEXT))
    cross = _certify(
        _library(new).subject,
        _library(new).public_key(),
        _library(old),
        key,
        max(old.not_before, new.not_before),
        min(old.not_after, new.not_after),
        path_length=0,
    )
    with _locked(authority) as vault:
        vault.change(
            {
                KEY: (_read_key(path, NEXT_KEY), SECRET),
                CERTIFICATE: (_encoded(authority.successor), PUBLIC),
                PREVIOUS_KEY: (_read_key(path, KEY), SECRET),
                PREVIOUS: (_encoded(authority.certificates), PUBLIC),
                CROSS: (cross.pem(), PUBLIC),
            },
            (NEXT_KEY, NEXT),
        )


def unrenewed(authority: Authority) -> tuple[list[str], int]:
    """Return the common names of those whose last certificate is still one of the previous authority, and valid.

    It is what ``issued/`` says: a certificate counts as replaced when one for the same name and usages was given out
    by the successor. What was revoked is good for nobody and so does not count, whoever gave it; how many of the
    previous authority were left out for that is returned as well. Raises FileProblem and CryptoError.
    """
    backend = choose_backend("cryptography")
    ours = [authority.issuer, *_kept(authority)]
    taken_back = revoked(authority)
    old, new, left_out = {}, set(), 0
    folder = os.path.join(authority.path, ISSUED)
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        file = os.path.join(folder, name)
        if not name.endswith(".pem"):
            continue
        leaf = load_certificates(read_regular(file), file)[0]
        holder = (leaf.common_name, leaf.usages)
        if any(is_signed_by(backend, leaf, issuer) for issuer in ours):
            if leaf.serial not in taken_back:
                new.add(holder)
        elif not _holds(leaf):
            continue
        elif leaf.serial in taken_back:
            left_out += 1
        else:
            old[holder] = leaf.common_name
    return sorted({common_name for holder, common_name in old.items() if holder not in new}), left_out


def revoked(authority: Authority) -> set[int]:
    """Return the serial numbers that the authority has revoked. Raises CryptoError where its list cannot be trusted."""
    vault = Vault(authority.path)
    try:
        lists = _crl.load_lists(vault.read(LISTS))
    except FileNotFoundError:
        return set()
    except der.DerError as error:
        raise CryptoError(f"{vault.file(LISTS)} is no revocation list: {error}") from None
    backend = choose_backend("cryptography")
    ours = [one for one in lists if any(one.is_signed_by(backend, issuer) for issuer in authority.anchors)]
    if not ours:
        raise CryptoError(f"{vault.file(LISTS)} holds no list that this authority signed")
    return {serial for one in ours for serial in one.serials}


def retire(authority: Authority, *, archive: bool) -> None:
    """End the trust in the previous authority; ``archive``: keep its key, as ``retired-<serial>.key``."""
    with _locked(authority) as vault:
        name = f"retired-{authority.previous[0].identifier}"
        files = {f"{name}.pem": (_encoded(authority.previous), PUBLIC)}
        if archive and vault.has(PREVIOUS_KEY):
            files[f"{name}.key"] = (_read_key(authority.path, PREVIOUS_KEY), SECRET)
        earlier = _kept(authority)
        if earlier:
            files[EARLIER] = (_encoded(earlier), PUBLIC)
        gone = (PREVIOUS, PREVIOUS_KEY, CROSS)
        vault.change(files, gone if earlier else (*gone, EARLIER))


def was_rolled_over(path: str) -> bool:
    """Say whether a roll-over came to its end here."""
    return any(name.startswith("retired-") for name in os.listdir(path))


@contextlib.contextmanager
def _locked(authority: Authority):
    """Keep other runs out while an authority is changed that was found as it is here. Raises FileProblem."""
    vault = Vault(authority.path)
    with vault.lock():
        if load(authority.path, renewable=True) != authority:
            raise Meanwhile(f"another run has changed the authority in {authority.path} meanwhile: run again")
        yield vault


def name_to_keep(authority: Authority):
    """Return the library's Name of an authority, for another one of that name. Raises CryptoError.

    Verifiers tell the two apart by their key identifiers, so there must be one.
    """
    ours = _library(authority.issuer)
    try:
        ours.extensions.get_extension_for_class(library.SubjectKeyIdentifier)
    except library.ExtensionNotFound:
        raise CryptoError(
            f"the authority in {authority.path} has no subject key identifier, by which clients could tell it from"
            " another one of its name: move the directory away to make a new one, and give it to all clients at once"
        ) from None
    return ours.subject


def _kept(authority: Authority) -> list[x509.Certificate]:
    """Return the earlier certificates that belong to the present authority, and to no previous one."""
    backend = choose_backend("cryptography")
    return [
        one
        for one in authority.earlier
        if _holds(one) and any(is_signed_by(backend, one, upper) for upper in authority.certificates)
    ]


def _name(name):
    """Return the library's Name for a common name; a Name as it is."""
    if not isinstance(name, str):
        return name
    return library.Name([library.NameAttribute(library.ObjectIdentifier(x509.COMMON_NAME), name)])


def _holds(certificate: x509.Certificate) -> bool:
    """Say whether a certificate has not ended."""
    return now() <= certificate.not_after


def _generate(key_type: str, passphrase: bytes | None) -> bytes:
    return choose_backend("cryptography").generate_key(key_type, passphrase)


def _encoded(certificates: typing.Iterable[x509.Certificate]) -> bytes:
    return show(certificates).encode("ascii")


def _library(certificate: x509.Certificate):
    return library.load_der_x509_certificate(certificate.raw)


def _certify_new(
    pem: bytes, passphrase: bytes | None, name, valid_for: int, root: Root | None, path_length: int
) -> tuple[x509.Certificate, ...]:
    """Return the certificate of a new authority, and those above it. ``name``: a common name or the library's Name."""
    key = load_private_key(pem, passphrase)
    name = _name(name)
    begin = now()
    since, until = begin - BACKDATE, begin + datetime.timedelta(seconds=valid_for)
    if root is None:
        return (_certify(name, key.public_key(), None, key, since, until, path_length=path_length),)
    check_name(name, root)
    above = root.certificates[0]
    since, until = max(since, above.not_before), min(until, above.not_after)
    made = _certify(name, key.public_key(), _library(above), root.key, since, until, path_length=path_length)
    return (made, *root.certificates)


def check_request(pem: str, request: Request):
    """Return the library's request object, if it asks for exactly what ``request`` allows.

    A device says what it likes, so anything else is refused: another or a further name, a further extension, another
    kind of key, a signature that is not by that key. Raises CryptoError.
    """
    try:
        found = library.load_pem_x509_csr(pem.encode("ascii"))
        subject = [(attribute.oid.dotted_string, attribute.value) for attribute in found.subject]
        extensions = list(found.extensions)
        if any(extension.oid.dotted_string != x509.SUBJECT_ALT_NAME for extension in extensions):
            raise CryptoError("the device asks for extensions other than its names")
        names = [_name_text(name) for extension in extensions for name in extension.value]
        public_key = _public_bytes(found.public_key())
        genuine = found.is_signature_valid
    except (ValueError, TypeError, AttributeError, library.DuplicateExtension, UnicodeEncodeError) as error:
        raise CryptoError(f"the device's certificate request cannot be read ({type(error).__name__})") from None
    if not genuine:
        raise CryptoError("the device's certificate request is not signed by its own key")
    if subject != [(x509.COMMON_NAME, request.common_name)]:
        raise CryptoError(f"the device asks for the subject {subject}, not for the common name {request.common_name!r}")
    if sorted(names) != sorted(request.names):
        raise CryptoError(f"the device asks for the names {sorted(names)}, not for {sorted(request.names)}")
    if x509.key_type(public_key) != request.key_type:
        raise CryptoError(f"the device's key is {x509.key_type(public_key)}, not {request.key_type}")
    return found


def requested_key(pem: str) -> bytes:
    """Return the public key (DER) of a request that check_request has accepted."""
    return _public_bytes(library.load_pem_x509_csr(pem.encode("ascii")).public_key())


def sign(authority: Authority, passphrase: bytes | None, pem: str, request: Request) -> x509.Certificate:
    """Return the certificate for a device's request, and keep a copy of it.

    It ends when the authority does, if that is earlier than ``valid_for``. Raises FileProblem and CryptoError.
    """
    asked = check_request(pem, request)
    key = open_key(authority, passphrase)
    # One at a time: what was written last is then what was signed last, whoever signs.
    with Vault(authority.path).lock(patience=QUEUE):
        last = newest(authority.path)
        _check_clock(authority.path, last)
        certificate = _certify_device(authority, key, asked, request)
        _keep(authority.path, certificate, last)
    return certificate


def _certify_device(authority: Authority, key, asked, request: Request) -> x509.Certificate:
    begin = now()
    ours = library.load_der_x509_certificate(authority.issuer.raw)
    builder = (
        library.CertificateBuilder()
        .subject_name(asked.subject)
        .issuer_name(ours.subject)
        .public_key(asked.public_key())
        .serial_number(library.random_serial_number())
        .not_valid_before(_naive(max(begin - BACKDATE, authority.issuer.not_before)))
        .not_valid_after(_naive(min(begin + datetime.timedelta(seconds=request.valid_for), authority.issuer.not_after)))
        .add_extension(library.BasicConstraints(ca=False, path_length=None), critical=True)
        # No keyEncipherment: RSA key exchange, which has no forward secrecy, is thereby ruled out.
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(
            library.ExtendedKeyUsage([library.ObjectIdentifier(x509.USAGES[usage]) for usage in request.usages]),
            critical=False,
        )
        .add_extension(library.SubjectKeyIdentifier.from_public_key(asked.public_key()), critical=False)
        .add_extension(_authority_key_identifier(ours), critical=False)
    )
    if request.names:
        names = library.SubjectAlternativeName([_general_name(name) for name in request.names])
        builder = builder.add_extension(names, critical=False)
    return _finish(builder, key)


def _keep(path: str, certificate: x509.Certificate, last: Issued | None) -> None:
    """Put a certificate into ``issued/``, in which ``last`` was written last; the lock must be held."""
    make_directories(os.path.join(path, ISSUED), mode=0o700)
    # First of all: whoever is cut off from here on leaves no note of a state that is over.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(path, NEWEST))
    name = f"{certificate.identifier}.pem"
    write_atomic(os.path.join(path, ISSUED, name), certificate.pem(), mode=PUBLIC)
    # Where the clock was set back since, the older file has the later time.
    _note(path, max(one for one in (_issued(path, name), last) if one is not None))


def _certify(subject, public_key, issuer, key, since, until, *, path_length: int) -> x509.Certificate:
    """Return the certificate of an authority, signed by ``issuer``, whose key is given, or by itself (None)."""
    own = library.SubjectKeyIdentifier.from_public_key(public_key)
    builder = (
        library.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(public_key)
        .serial_number(library.random_serial_number())
        .not_valid_before(_naive(since))
        .not_valid_after(_naive(until))
        .add_extension(library.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(own, critical=False)
    )
    # Two authorities of one name are told apart by this during a roll-over.
    above = (
        library.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
        if issuer is None
        else _authority_key_identifier(issuer)
    )
    return _finish(builder.add_extension(above, critical=False), key)


def _finish(builder, key) -> x509.Certificate:
    digest = hashes.SHA384() if x509.key_type(_public_bytes(key.public_key())) == "ec-p384" else hashes.SHA256()
    return x509.parse_certificate(builder.sign(key, digest).public_bytes(serialization.Encoding.DER))


def load_key(path: str, passphrase: bytes | None, name: str = KEY):
    """Return the library's key object of ca.key. Raises FileProblem, CryptoError or WrongPassphrase."""
    file = os.path.join(path, name)
    try:
        return load_private_key(_read_key(path, name), passphrase)
    except WrongPassphrase as error:
        raise WrongPassphrase(f"{file}: {error}") from None
    except CryptoError as error:
        raise CryptoError(f"{file}: {error}") from None


def _read_key(path: str, name: str) -> bytes:
    vault = Vault(path)
    try:
        return vault.read(name, private=True)
    except FileNotFoundError:
        raise FileProblem(
            f"{vault.file(name)} is missing: without it nothing can be signed; restore it from a backup"
        ) from None


def _open(path: str, name: str, passphrase: bytes | None, certificate_name: str, certificate: x509.Certificate):
    key = load_key(path, passphrase, name)
    if _public_bytes(key.public_key()) != certificate.public_key:
        raise CryptoError(f"{path}: {name} and {certificate_name} do not belong together")
    return key


def _check_times(certificate: x509.Certificate, file: str, *, lower: bool = False) -> None:
    """Raise CryptoError unless a certificate is valid now. ``lower``: it can be renewed by the one above it."""
    present = now()
    if present > certificate.not_after:
        remedy = (
            "mount the root and name its directory (issuer_path, nanomq_pki_root_path) to renew it"
            if lower
            else "move the directory away to make a new one, and every certificate will be renewed"
        )
        raise CryptoError(
            f"{file}: the authority {certificate.common_name!r} expired at {x509.show_time(certificate.not_after)};"
            f" {remedy}"
        )
    if present < certificate.not_before:
        raise CryptoError(
            f"{file}: the authority {certificate.common_name!r} is valid from {x509.show_time(certificate.not_before)},"
            f" and this clock says {x509.show_time(present)}: is it wrong?"
        )


def _public_bytes(public_key) -> bytes:
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _naive(moment: datetime.datetime) -> datetime.datetime:
    """The library takes naive times as UTC in all its versions, and aware ones only in newer ones."""
    return moment.astimezone(datetime.timezone.utc).replace(tzinfo=None)


def _key_usage(**granted: bool):
    usages = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return library.KeyUsage(**{usage: granted.get(usage, False) for usage in usages})


def _authority_key_identifier(issuer):
    """The issuer's own key identifier: it need not be the hash that the library would compute."""
    try:
        own = issuer.extensions.get_extension_for_class(library.SubjectKeyIdentifier).value
    except library.ExtensionNotFound:
        return library.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
    return library.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _general_name(name: str):
    kind, _separator, value = name.partition(":")
    if kind == "IP":
        return library.IPAddress(ipaddress.ip_address(value))
    return {"DNS": library.DNSName, "URI": library.UniformResourceIdentifier}[kind](value)


def _name_text(name) -> str:
    """Return a library name in our spelling; a kind that is not ours comes out as one that never matches."""
    kinds = {library.DNSName: "DNS", library.IPAddress: "IP", library.UniformResourceIdentifier: "URI"}
    return f"{kinds.get(type(name), type(name).__name__)}:{getattr(name, 'value', '')}"
