# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""TLS key pairs on a device: each in a directory of its own that never changes, one of them in force.

``<path>/<name>/<serial>/{key.pem,cert.pem}`` is a pair, ``<path>/<name>/current`` a link to the one in force. A pair is
built in ``.new-<random>`` and gets its name when it is whole, so a cut at any moment leaves the pair that was in force
in force, and rubbish that the next run removes. A pair that was asked for by ``renew_issued_before`` says in a file
beside the key which moment it answers, so that asking again makes no further one. Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import secrets
import shutil
import stat
import time

from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._chains import (
    AUTHORITY,
    GIVEN,
    SOURCES,
    chain_fault,
    content_fault,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    BACKENDS,
    KEY_TYPES,
    Backend,
    CryptoError,
    encode_passphrase,
    is_signed_by,
    load_certificates,
    make_request,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._duration import parse_duration, parse_margin
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import (
    FileProblem,
    check_directory,
    check_parents,
    fsync_dir,
    link_atomic,
    locked,
    make_directories,
    read_regular,
    write_atomic,
    write_new,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._generations import needed_files

KEY, CERTIFICATE, CURRENT, PENDING = "key.pem", "cert.pem", "current", "pending"

#: The file in a pair that holds the moment which the pair was made to answer.
ANSWERS = "answers"

#: The directories of pairs that are being made, and what else a cut can leave behind.
_NEW = re.compile(r"\.new-[0-9a-f]{16}", re.ASCII)
_RUBBISH = re.compile(r"\.old-[0-9a-f]{1,40}|\.current\.[0-9a-f]{16}", re.ASCII)
_IDENTIFIER = re.compile(r"[0-9a-f]{1,40}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)
#: Days and moments of RFC 3339 in UTC, with a blank for the T as YAML's own times come out.
_MOMENT = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2}))?(?:Z|\+00:00))?", re.ASCII
)

#: What a new pair is made for although its key may stay. All else says that the key is not there, or not the one meant.
_KEY_STAYS = ("authority", "expired", "expiring", "names", "usages")

#: Seconds after which a pair still being made belongs to no run that is alive.
STALE = 3600

#: Seconds to wait for another run that works on the same pair.
PATIENCE = 30

DIRECTORY_MODE = 0o750
CERTIFICATE_MODE = 0o644

#: The options of the module, shared with its action plugin, which says which of them never reach the device.
OPTIONS = {
    "name": {"type": "str", "required": True},
    "path": {"type": "path", "default": "/etc/nanomq/pki"},
    "common_name": {"type": "str", "required": True},
    "subject_alt_names": {"type": "list", "elements": "str", "default": []},
    "usages": {
        "type": "list",
        "elements": "str",
        "choices": sorted(x509.USAGES),
        "default": ["server_auth"],
    },
    "key_type": {"type": "str", "choices": list(KEY_TYPES), "default": "ec-p256"},
    "key_passphrase": {"type": "str", "no_log": True},
    "valid_for": {"type": "str", "default": "365d"},
    "renew_before": {"type": "str", "default": "30d"},
    "renew_issued_before": {"type": "str", "default": ""},
    "renewal_key": {"type": "str", "choices": ["new", "same"], "default": "new"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "nanomq"},
    "mode": {"type": "str", "default": "0640"},
    "source": {"type": "str", "choices": list(SOURCES), "default": AUTHORITY},
    "authority_path": {"type": "str"},
    "authority_passphrase": {"type": "str", "no_log": True},
    "trust": {"type": "str"},
    "signer_command": {"type": "list", "elements": "str", "default": []},
    "signer_secret": {"type": "str", "no_log": True},
    "signer_timeout": {"type": "int", "default": 60},
    "acme_directory": {"type": "str"},
    "acme_account_path": {"type": "str"},
    "acme_email": {"type": "str"},
    "acme_terms_agreed": {"type": "bool", "default": False},
    "acme_webroot": {"type": "str"},
    "acme_dns_hook": {"type": "list", "elements": "str", "default": []},
    "given_certificate": {"type": "str"},
    "given_key": {"type": "str", "no_log": True},
    "given_certificate_path": {"type": "path"},
    "given_key_path": {"type": "path", "no_log": False},
    "keep": {"type": "int", "default": 5},
    "backend": {"type": "str", "choices": ["auto", *BACKENDS], "default": "auto"},
}


class ClockProblem(Exception):
    """The clock of the device cannot be right; nothing has been changed."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The pair as the task asks for it.

    ``names`` are normalised, in the order of the task, each once. ``valid_for`` and ``margin`` (how long before its end
    a pair is renewed) are seconds. ``issued_since``: pairs from before this moment are renewed as well. ``same_key``:
    whether a renewal keeps the key, where it can.
    """

    common_name: str
    names: tuple[str, ...]
    usages: tuple[str, ...]
    key_type: str
    passphrase: bytes | None
    valid_for: int
    margin: int
    issued_since: datetime.datetime | None = None
    same_key: bool = False


@dataclasses.dataclass(frozen=True)
class Access:
    """Who owns ``key.pem`` and with which mode. ``gid`` of -1: the group does not exist yet (check mode alone)."""

    uid: int
    gid: int
    mode: int


@dataclasses.dataclass(frozen=True)
class Pair:
    """A pair that can be read, though it may not be the one wanted."""

    directory: str
    certificate: x509.Certificate


def wanted_pair(options: dict) -> Wanted:
    """Return what validated OPTIONS ask for. Raises ValueError or CryptoError naming the option at fault."""
    if not _NAME.fullmatch(options["name"]) or options["name"] in (CURRENT, PENDING):
        raise ValueError("name must be one plain directory name: letters, digits, dots, dashes and underscores")
    names = tuple(dict.fromkeys(x509.normalise_name(name) for name in options["subject_alt_names"]))
    usages = tuple(dict.fromkeys(options["usages"]))
    if not usages:
        raise ValueError("usages is empty: the certificate would be good for nothing")
    if "server_auth" in usages and not names:
        raise ValueError("subject_alt_names is empty: clients look for a server's name there, not at the common name")
    if options["keep"] < 1:
        raise ValueError("keep must be 1 or more: the service may still use the pair before the present one")
    valid_for = parse_duration(options["valid_for"])
    margin = parse_margin(options["renew_before"], valid_for)
    if margin >= valid_for:
        raise ValueError("renew_before must be shorter than valid_for, or every run would renew")
    return Wanted(
        common_name=x509.check_common_name(options["common_name"]),
        names=names,
        usages=usages,
        key_type=options["key_type"],
        passphrase=encode_passphrase(options["key_passphrase"]),
        valid_for=valid_for,
        margin=margin,
        issued_since=parse_moment(options["renew_issued_before"]) if options.get("renew_issued_before") else None,
        same_key=options.get("renewal_key") == "same",
    )


def given_fault(
    backend: Backend,
    leaf: x509.Certificate,
    chain: list[x509.Certificate],
    public_key: bytes,
    anchors: list[x509.Certificate],
    wanted: Wanted,
) -> str:
    """Return why a pair that the user gives cannot be used, or ''. ``public_key`` is that of the key given."""
    if public_key != leaf.public_key:
        return "mismatch: the key is not that of the certificate"
    kind = x509.key_type(public_key)
    if kind not in KEY_TYPES:
        return f"key_type: {kind}, which is none of {', '.join(KEY_TYPES)}"
    if _now() < leaf.not_before:
        return f"not valid yet: from {x509.show_time(leaf.not_before)}, and this clock says {x509.show_time(_now())}"
    if _now() > leaf.not_after:
        return f"expired: at {x509.show_time(leaf.not_after)}"
    return chain_fault(backend, leaf, chain, anchors) or content_fault(
        leaf, GIVEN, wanted.common_name, wanted.names, wanted.usages
    )


def parse_moment(text: str) -> datetime.datetime:
    """Return the moment that ``2030-01-31T12:00:00Z`` stands for, or the beginning of the day ``2030-01-31``, in UTC.

    A time without its zone is refused, since nobody can tell which is meant. Raises ValueError.
    """
    found = _MOMENT.fullmatch(text.strip())
    try:
        if found:
            parts = [int(part) for part in found.groups(default="0")]
            return datetime.datetime(*parts, tzinfo=datetime.timezone.utc)
    except ValueError:
        pass
    raise ValueError(f"renew_issued_before {text!r} is neither a day nor a moment in UTC, such as 2030-01-31T12:00:00Z")


def check_moment(wanted: Wanted, present: datetime.datetime) -> None:
    """Raise ValueError when pairs issued before a moment that is yet to come are to be renewed.

    The pair made now would count as an answer to a later request that is in earnest.
    """
    if wanted.issued_since is not None and wanted.issued_since > present:
        raise ValueError(
            f"renew_issued_before {x509.show_time(wanted.issued_since)} is yet to come (it is"
            f" {x509.show_time(present)}): give the present moment or an earlier one"
        )


def parse_mode(text: str) -> int:
    """Return the mode of a private key, such as 0640. Raises ValueError on one that lets others in."""
    if not _MODE.fullmatch(text):
        raise ValueError(f"mode {text!r} is not an octal mode in quotes, such as '0640'")
    mode = int(text, 8)
    if mode & 0o137 or not mode & 0o400:
        raise ValueError(f"mode {text!r} is not fit for a private key: at most '0640', with reading by its owner")
    return mode


class PairStore:
    """The pairs of one name. ``authority`` is the issuing certificate and those above it, or empty in check mode.

    ``chain`` is what a certificate is followed by, for those who trust none of its issuer's own. With another source
    than the own authority ``authority`` are the trust anchors, and ``given`` is the chain that the user gives.
    """

    def __init__(
        self,
        directory: str,
        wanted: Wanted,
        access: Access,
        authority: list[x509.Certificate],
        chain: list[x509.Certificate],
        backend: Backend,
        keep: int,
        source: str = AUTHORITY,
        given: list[x509.Certificate] | None = None,
    ) -> None:
        self.directory = directory
        self.current = os.path.join(directory, CURRENT)
        self.backend_name = backend.name
        self._wanted = wanted
        self._access = access
        self._authority = authority
        self._chain = chain
        self._backend = backend
        self._keep = keep
        self._source = source
        self._given = given or []

    def check(self) -> None:
        """Raise FileProblem or ClockProblem when the place or the clock is not fit to work with."""
        check_parents(self.directory)
        if os.path.lexists(self.current) and not os.path.islink(self.current):
            raise FileProblem(f"{self.current} is not a symbolic link: move it away")
        identifier = self._current_identifier()
        if identifier is not None and os.path.lexists(self._of(identifier)):
            check_directory(self._of(identifier), os.lstat(self._of(identifier)))
        for certificate in self._authority:
            _check_clock(certificate, "authority")

    @contextlib.contextmanager
    def lock(self):
        """Keep other runs from working on the same pairs meanwhile. Raises FileProblem after PATIENCE seconds."""
        if not os.path.isdir(self.directory):
            yield
            return
        with locked(self.directory, patience=PATIENCE):
            yield

    def inspect(self) -> tuple[Pair | None, str]:
        """Return the pair in force, if it can be read, and why a new one is needed ('' if it is not)."""
        identifier = self._current_identifier()
        if identifier is None:
            return None, "missing: no pair is in force"
        folder = self._of(identifier)
        try:
            file = os.path.join(folder, CERTIFICATE)
            leaf, *chain = load_certificates(read_regular(file), file)
            pair = Pair(folder, leaf)
        except (OSError, FileProblem, CryptoError) as error:
            return None, f"unreadable: {error}"
        return pair, self._fault(folder, leaf, chain)

    def begin(self, reason: str = "") -> tuple[str, bytes]:
        """Begin a pair; return the name of its directory and the certificate request (PEM) for its key.

        The key is a new one, unless renewals are to keep it and the ``reason`` of ``inspect`` lets them.
        """
        make_directories(self.directory, mode=0o700)
        self.mend(self.directory, DIRECTORY_MODE, os.geteuid())
        name = f".new-{secrets.token_hex(8)}"
        folder = self._of(name)
        try:
            os.mkdir(folder, 0o700)
            key = self._kept_key(reason) or self._backend.generate_key(self._wanted.key_type, self._wanted.passphrase)
            write_new(os.path.join(folder, KEY), key, mode=0o600)
            if self._wanted.issued_since is not None:
                answer = x509.show_time(self._wanted.issued_since).encode("ascii")
                write_new(os.path.join(folder, ANSWERS), answer + b"\n", mode=0o600)
            fsync_dir(folder)
            names = list(self._wanted.names)
            return name, make_request(self._backend, key, self._wanted.passphrase, self._wanted.common_name, names)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def take(self, key: bytes, pem: bytes) -> Pair:
        """Put a pair in force that the user gives. Raises CryptoError when it is not what the task asks for."""
        known = self._known(pem)
        if known is not None:
            return known
        make_directories(self.directory, mode=0o700)
        self.mend(self.directory, DIRECTORY_MODE, os.geteuid())
        name = f".new-{secrets.token_hex(8)}"
        folder = self._of(name)
        try:
            os.mkdir(folder, 0o700)
            write_new(os.path.join(folder, KEY), key, mode=0o600)
            fsync_dir(folder)
            return self.install(name, pem)
        except BaseException:
            self.discard(name)
            raise

    def _known(self, pem: bytes) -> Pair | None:
        """The given pair, put in force again, if it is one that was kept; None if it is not, or is not whole."""
        leaf, *chain = load_certificates(pem, "the given certificate")
        folder = self._of(leaf.identifier)
        try:
            kept = load_certificates(read_regular(os.path.join(folder, CERTIFICATE)), folder)
        except (OSError, FileProblem, CryptoError):
            return None
        if kept != [leaf, *chain] or self._fault(folder, leaf, chain):
            return None
        previous = self._current_identifier()
        pair = Pair(folder, leaf)
        self.mend_all(pair)
        link_atomic(leaf.identifier, self.current)
        self.tidy(spare=previous)
        return pair

    def look_at(self, certificate_path: str, key_path: str) -> Pair:
        """Return the pair that the user keeps on the host. Raises FileProblem or CryptoError when it is not fit.

        Paths are followed to the real files first: what renews such pairs moves links. The directories on the way must
        be under nobody else's control.
        """
        certificate_path, key_path = os.path.realpath(certificate_path), os.path.realpath(key_path)
        for path in (certificate_path, key_path):
            check_parents(os.path.dirname(path))
        try:
            leaf, *chain = load_certificates(read_regular(certificate_path), certificate_path)
            key = read_regular(key_path)
        except FileNotFoundError as error:
            raise FileProblem(f"{error.filename} does not exist on this host") from None
        mode = stat.S_IMODE(os.lstat(key_path).st_mode)
        if mode & 0o037:
            raise FileProblem(
                f"{key_path} is open to others, or to its group for more than reading (mode {mode:04o}): close it"
                " with chmod g-wx,o="
            )
        self._given = [leaf, *chain]
        try:
            public_key = self._backend.public_key(key, self._wanted.passphrase)
        except CryptoError as error:
            raise CryptoError(f"{key_path}: {error}") from None
        fault = given_fault(self._backend, leaf, chain, public_key, self._authority, self._wanted)
        if fault:
            raise CryptoError(f"{certificate_path} cannot be used: {fault}")
        return Pair(os.path.dirname(certificate_path), leaf)

    def _kept_key(self, reason: str) -> bytes | None:
        """The key in force where a renewal keeps it, else None."""
        identifier = self._current_identifier()
        if not self._wanted.same_key or identifier is None or reason.partition(":")[0] not in _KEY_STAYS:
            return None
        return read_regular(os.path.join(self._of(identifier), KEY))

    def discard(self, name: str) -> None:
        """Forget a pair that is being made."""
        shutil.rmtree(self._pending(name), ignore_errors=True)

    def install(self, name: str, pem: bytes) -> Pair:
        """Put the pair being made in ``name`` in force, with the certificate chain ``pem`` from the controller.

        Raises CryptoError when the certificate is not exactly what is wanted for that key, by the authority's key.
        """
        folder = self._pending(name)
        previous = self._current_identifier()
        try:
            leaf = self._complete(folder, pem)
        except BaseException:
            self.discard(name)
            raise
        final = self._of(leaf.identifier)
        os.rename(folder, final)
        fsync_dir(self.directory)
        link_atomic(leaf.identifier, self.current)
        # The service uses the previous pair until its configuration names the new one.
        self.tidy(spare=previous)
        return Pair(final, leaf)

    def drift(self, pair: Pair) -> list[str]:
        """Return what has another owner, group or mode than it should, each as a line of text."""
        return [
            f"{path} is {_show(found)}, not {_show(expected)}"
            for path, mode, uid in self._modes(pair.directory)
            for found, expected in [(_describe(os.lstat(path)), (uid, self._access.gid, mode))]
            if found != expected
        ]

    def mend_all(self, pair: Pair) -> None:
        """Give the pair in force its owner, group and modes."""
        for path, mode, uid in self._modes(pair.directory):
            self.mend(path, mode, uid)

    def mend(self, path: str, mode: int, uid: int) -> None:
        """Give one file or directory its owner, the group and its mode."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            expected = (uid, self._access.gid, mode)
            found = _describe(os.fstat(descriptor))
            if found[:2] != expected[:2]:
                # Closed first: the new group must not get the rights that were the old group's.
                os.fchmod(descriptor, found[2] & mode & stat.S_IRWXU)
                os.fchown(descriptor, uid, self._access.gid)
            if _describe(os.fstat(descriptor)) != expected:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def leftovers(self, spare: str | None = None) -> list[str]:
        """Return the names of what can go: rubbish of runs that were cut, and old pairs beyond ``keep``.

        ``spare`` is an old pair to be kept before all others; it counts as one of the ``keep``. A pair that a kept
        generation of a transaction names stays as well, since without it there is no way back to that.
        """
        if not os.path.isdir(self.directory):
            return []
        current = self._current_identifier()
        names = os.listdir(self.directory)
        rubbish = [name for name in names if _RUBBISH.fullmatch(name)]
        stale = [name for name in names if _NEW.fullmatch(name) and abs(time.time() - self._age(name)) > STALE]
        pairs = [name for name in names if _IDENTIFIER.fullmatch(name) and name != current]
        pairs.sort(key=lambda name: (name == spare, self._age(name), name), reverse=True)
        old = pairs[self._keep :]
        needed = {os.path.dirname(path) for path in needed_files()} if old else ()
        return rubbish + stale + [name for name in old if self._of(name) not in needed]

    def tidy(self, spare: str | None = None) -> list[str]:
        """Remove the leftovers, and return their names."""
        found = self.leftovers(spare)
        for name in found:
            path = self._of(name)
            if _IDENTIFIER.fullmatch(name):
                # Renamed first: under its own name a pair is whole or absent.
                path = self._of(f".old-{name}")
                os.rename(self._of(name), path)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        return found

    def _complete(self, folder: str, pem: bytes) -> x509.Certificate:
        """Make the pair in ``folder`` whole: check the certificate, write it, set owners and modes, sync."""
        leaf, *chain = load_certificates(pem, "the answer of the controller")
        _check_clock(leaf, "new certificate")
        fault = self._fault(folder, leaf, chain)
        if fault:
            raise CryptoError(f"the certificate from the controller is not the one asked for: {fault}")
        if os.path.lexists(self._of(leaf.identifier)):
            raise CryptoError(
                f"the authority gave out the serial number {leaf.identifier} twice; if the directory"
                f" {self._of(leaf.identifier)} is of an authority that is gone, remove it"
            )
        self._prove(folder, leaf)
        content = b"".join(certificate.pem() for certificate in [leaf, *chain])
        write_atomic(os.path.join(folder, CERTIFICATE), content, mode=0o600)
        for path, mode, uid in self._modes(folder)[1:]:
            self.mend(path, mode, uid)
        fsync_dir(folder)
        return leaf

    def _prove(self, folder: str, leaf: x509.Certificate) -> None:
        """Raise CryptoError unless the key makes signatures that the certificate's public key accepts."""
        challenge = secrets.token_bytes(32)
        key = read_regular(os.path.join(folder, KEY))
        signature = self._backend.sign(key, self._wanted.passphrase, challenge)
        if not self._backend.verify(leaf.public_key, signature, challenge):
            raise CryptoError("the new key and its certificate do not work together")

    def _fault(self, folder: str, leaf: x509.Certificate, chain: list[x509.Certificate]) -> str:
        """Return why the pair in ``folder`` is not the one wanted, or ''."""
        return (
            self._key_fault(folder, leaf)
            or self._age_fault(folder, leaf)
            or self._trust_fault(leaf, chain)
            or self._content_fault(leaf)
        )

    def _key_fault(self, folder: str, leaf: x509.Certificate) -> str:
        path = os.path.join(folder, KEY)
        try:
            public_key = self._backend.public_key(read_regular(path), self._wanted.passphrase)
        except (OSError, FileProblem) as error:
            return f"unreadable: {error}"
        except CryptoError as error:
            return f"unreadable: {path}: {error}"
        if public_key != leaf.public_key:
            return "mismatch: the key is not that of the certificate"
        found = x509.key_type(public_key)
        if self._source == GIVEN:
            return "" if found in KEY_TYPES else f"key_type: {found}, which is none of {', '.join(KEY_TYPES)}"
        return "" if found == self._wanted.key_type else f"key_type: {found}, not {self._wanted.key_type}"

    def _age_fault(self, folder: str, leaf: x509.Certificate) -> str:
        """Before the authority and the names: of what leaked, the key must not stay."""
        since = self._wanted.issued_since
        if since is None or leaf.not_before >= since:
            return ""
        try:
            answered = parse_moment(read_regular(os.path.join(folder, ANSWERS)).decode("ascii"))
        except (OSError, FileProblem, ValueError):
            answered = None
        if answered is not None and answered >= since:
            return ""
        return f"requested: valid from {x509.show_time(leaf.not_before)}, and all before {x509.show_time(since)} go"

    def _trust_fault(self, leaf: x509.Certificate, chain: list[x509.Certificate]) -> str:
        if self._source != AUTHORITY:
            if self._source == GIVEN and [leaf, *chain] != self._given:
                return "given: another certificate is in force than the one given"
            return chain_fault(self._backend, leaf, chain, self._authority)
        if not self._authority:
            return "authority: there is none yet"
        issuer = self._authority[0]
        if not is_signed_by(self._backend, leaf, issuer):
            return f"authority: the certificate is not signed by the present authority {issuer.common_name!r}"
        if chain != self._chain:
            return "authority: the intermediate certificates are not the present ones"
        return ""

    def _content_fault(self, leaf: x509.Certificate) -> str:
        wanted, present = self._wanted, _now()
        _check_not_before(leaf, "certificate in force")
        if present > leaf.not_after:
            return f"expired: at {x509.show_time(leaf.not_after)}"
        due = leaf.not_after - datetime.timedelta(seconds=wanted.margin)
        if present >= due and self._source != GIVEN:
            return f"expiring: at {x509.show_time(leaf.not_after)}, and to be renewed from {x509.show_time(due)}"
        if self._source != AUTHORITY:
            return content_fault(leaf, self._source, wanted.common_name, wanted.names, wanted.usages)
        if leaf.common_name != wanted.common_name:
            return f"names: the common name is {leaf.common_name!r}, not {wanted.common_name!r}"
        if leaf.names != frozenset(wanted.names):
            return f"names: {sorted(leaf.names)}, not {sorted(wanted.names)}"
        if leaf.usages != frozenset(wanted.usages):
            return f"usages: {sorted(leaf.usages)}, not {sorted(wanted.usages)}"
        return ""

    def _modes(self, folder: str) -> list[tuple[str, int, int]]:
        """Return path, mode and owner of what makes up a pair; the directory above it first."""
        user = os.geteuid()
        return [
            (self.directory, DIRECTORY_MODE, user),
            (folder, DIRECTORY_MODE, user),
            (os.path.join(folder, KEY), self._access.mode, self._access.uid),
            (os.path.join(folder, CERTIFICATE), CERTIFICATE_MODE, self._access.uid),
        ]

    def _current_identifier(self) -> str | None:
        """Return the name of the directory in force, or None when the link is missing or points at no pair of ours."""
        try:
            target = os.readlink(self.current)
        except OSError:
            return None
        return target if _IDENTIFIER.fullmatch(target) else None

    def _pending(self, name: str) -> str:
        if not _NEW.fullmatch(name):
            raise FileProblem(f"{name!r} is no pair that is being made")
        return self._of(name)

    def _of(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _age(self, name: str) -> float:
        return os.lstat(self._of(name)).st_mtime


def _describe(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def _show(described: tuple[int, int, int]) -> str:
    return "{}:{} {:04o}".format(*described)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _check_not_before(certificate: x509.Certificate, what: str) -> None:
    if _now() < certificate.not_before:
        raise ClockProblem(
            f"the clock of this device is wrong: it says {x509.show_time(_now())}, and the {what} is valid only from"
            f" {x509.show_time(certificate.not_before)}. Set the time (chrony, systemd-timesyncd), then run again"
        )


def _check_clock(certificate: x509.Certificate, what: str) -> None:
    """Raise ClockProblem when the device believes to live outside the life of what the controller knows to be valid."""
    _check_not_before(certificate, what)
    if _now() > certificate.not_after:
        raise ClockProblem(
            f"the clock of this device is wrong: it says {x509.show_time(_now())}, and the {what} is valid only until"
            f" {x509.show_time(certificate.not_after)}. Set the time (chrony, systemd-timesyncd), then run again"
        )
