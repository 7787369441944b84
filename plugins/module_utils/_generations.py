# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The generations that the transactions of a host keep: what they are, which can be restored, and what that takes.

Restoring is no business of this file: the engine takes a generation as it takes any other set (`_transaction`).
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import re
from collections.abc import Iterable, Iterator

from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils import _hocon, _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import (
    STATE_DIR,
    Change,
    Entry,
    Generation,
    Store,
    Transaction,
    TransactionError,
    read,
)

PREVIOUS = "previous"
#: Options of validators and probes that are paths of files, which the set may hold or not.
_FILE_OPTIONS = ("certificate", "key", "client_certificate", "client_key", "ca", "crl", "program")
#: Keys of nanomq.conf that are paths of files.
_FILE_KEYS = ("keyfile", "certfile", "cacertfile")
#: Keys and certificates: PEM, and the public keys of OpenSSH.
_KEY_MATERIAL = re.compile(rb"-----BEGIN |(^|\s)(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ AAAA")


# --- what there is ----------------------------------------------------------------------------------------------------


def names(state_dir: str = STATE_DIR) -> list[str]:
    """The transactions that this host has seen."""
    there = os.listdir(state_dir) if os.path.isdir(state_dir) else []
    return sorted(name for name in there if os.path.isdir(os.path.join(state_dir, name, "generations")))


def known_store(name: str, state_dir: str = STATE_DIR) -> Store:
    """The store of a transaction that this host has seen; raises for any other name."""
    there = names(state_dir)
    if name not in there:
        raise TransactionError(
            f"this host has no transaction '{name}'; it has {', '.join(there) or 'none: it was never hardened'}",
            step="load",
        )
    return Store(name, state_dir)


def listing(store: Store) -> dict:
    """{"name", "unfinished", "differs": [path], "generations": [...]}, oldest first; nothing of a file's content.

    A generation: {"number", "in_force", "time" (RFC 3339), "transaction", "run", "restores", "changes", "problem"};
    "problem" says why it cannot be restored. "differs" is what on the host is no longer as the one in force says.
    """
    numbers = store.generations()
    rows = [described(store, number) for number in numbers]
    for row in rows:
        row["in_force"] = row["number"] == numbers[-1]
    record = store.record()
    return {
        "name": store.name,
        "unfinished": record["phase"] if record else "",
        "differs": differing(store, numbers[-1]) if numbers else [],
        "generations": rows,
    }


def described(store: Store, number: int) -> dict:
    """One row of the listing."""
    row = {"number": number, "time": "", "transaction": "", "run": {}, "restores": None, "changes": [], "problem": ""}
    try:
        manifest = store.manifest(number)
        at = datetime.datetime.fromtimestamp(manifest["time"], datetime.timezone.utc)
        row.update(time=at.strftime("%Y-%m-%dT%H:%M:%SZ"), transaction=manifest["id"])
        row.update({key: manifest[key] for key in ("run", "restores", "changes") if key in manifest})
        check_usable(store, number)
    except TransactionError as error:
        row["problem"] = str(error)
    return row


def differing(store: Store, number: int) -> list[str]:
    """The paths that are not as a generation says, or why that cannot be told; [] for one that cannot be read."""
    try:
        generation = store.generation(number)
    except TransactionError:
        return []
    try:
        return Transaction(store.name, generation.entries, [], state_dir=store.base).differing()
    except TransactionError as error:
        return [str(error)]


# --- which one --------------------------------------------------------------------------------------------------------


def resolve(store: Store, wanted: str) -> int:
    """The number of the generation that is meant by a number or by "previous".

    "previous" is what was in force before the last deployment. A rollback is none, so that "previous" stays the same
    however often it is restored. A number that was forgotten since it was restored means the restored one.
    """
    numbers = [number for number in store.generations() if number != 0]
    if wanted == PREVIOUS:
        _deployed, before = store.last_deployment()
        if not before:
            raise TransactionError(f"'{store.name}' has no generation before the last deployment", step="load")
        return before
    if not re.fullmatch(r"[0-9]{1,9}", wanted):
        raise TransactionError(f"{wanted!r} is neither the number of a generation nor '{PREVIOUS}'", step="load")
    number = int(wanted)
    if number == 0 and 0 in store.generations():
        return 0
    copies = [copy for copy in numbers if store.restores(copy) == number]
    if number in numbers or not copies:
        if number not in numbers:
            there = ", ".join(str(number) for number in numbers) or "none"
            raise TransactionError(f"'{store.name}' has no generation {number}; it has {there}", step="load")
        return number
    return copies[-1]


def check_usable(store: Store, number: int) -> Generation:
    """Read a generation back, and raise where this host cannot go back to it."""
    if number == 0:
        raise TransactionError(
            f"generation 0 of '{store.name}' is what was replaced on the host as it was found. It is kept to be looked "
            "at, and cannot be restored: nothing says how to check it",
            step="load",
        )
    generation = store.generation(number)
    gone = [path for path in generation.manifest.get("needs", []) if not os.path.isfile(path)]
    if gone:
        raise TransactionError(
            f"generation {number} of '{store.name}' needs what is no longer on the host: {', '.join(gone)}. A rollback "
            "brings back no keys and no programs: choose another generation, or harden the host",
            step="load",
        )
    for path in _certificates(generation):
        _check_period(path, number, store.name)
    return generation


def _certificates(generation: Generation) -> list[str]:
    """The certificates of its services, which are not part of the set."""
    needs = generation.manifest.get("needs", [])
    checks = generation.manifest.get("validators", []) + generation.manifest.get("probes", [])
    return sorted({check.get("certificate") for check in checks} & set(needs))


def _check_period(path: str, number: int, name: str) -> None:
    try:
        leaf = _x509.load_certificates(read(path))[0]
    except (OSError, der.DerError) as error:
        raise TransactionError(f"{path}, which generation {number} of '{name}' needs: {error}", step="load") from error
    if leaf.not_after.replace(tzinfo=datetime.timezone.utc) <= datetime.datetime.now(datetime.timezone.utc):
        raise TransactionError(
            f"generation {number} of '{name}' serves the certificate {path}, which ended at "
            f"{_x509.show_time(leaf.not_after)}: choose another generation, or harden the host",
            step="load",
        )


# --- what it needs ----------------------------------------------------------------------------------------------------


def needs(entries: Iterable[Entry], checks: Iterable[dict], conf: dict | None = None) -> list[str]:
    """The files that a set depends on without holding them: those that its checks and its nanomq.conf name."""
    held = {entry.dest for entry in entries}
    found = {check.get(option) for check in checks for option in _FILE_OPTIONS}
    found |= set(_named_files(conf or {}))
    return sorted(path for path in found - held if isinstance(path, str) and path.startswith("/"))


def _named_files(value) -> Iterator[str]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    for key, item in pairs:
        if key in _FILE_KEYS and isinstance(item, str):
            yield item
        else:
            yield from _named_files(item)


def needed_files(state_dir: str = STATE_DIR) -> set[str]:
    """What the kept generations of all transactions depend on. Damaged ones depend on nothing any more."""
    found: set[str] = set()
    for name in names(state_dir):
        store = Store(name, state_dir)
        for number in store.generations():
            with contextlib.suppress(TransactionError):
                found.update(store.manifest(number).get("needs", []))
    return found


# --- nanomq.conf ------------------------------------------------------------------------------------------------------


def conf_of(entries: Iterable[Entry], validators: Iterable[dict]) -> dict | None:
    """The configuration in a set that has a broker's, which the validators name; None for another or an odd one."""
    paths = {check["conf"] for check in validators if check.get("type") == "nanomq"}
    for entry in entries:
        if entry.dest in paths and entry.state == "file":
            return parsed(entry.content)
    return None


def parsed(content: bytes | None) -> dict | None:
    """A nanomq.conf as data, or None for what is none."""
    with contextlib.suppress(UnicodeDecodeError, _hocon.ConfSyntaxError, _hocon.ConfError):
        return _hocon.parse(content.decode()) if content is not None else None
    return None


def credentials(conf: dict | None, tokens: Iterable[str]) -> dict:
    """What validators and probes need to log in with a configuration: its own secrets, and a token of the right key."""
    if not conf:
        return {}
    http, tls = conf.get("http_server", {}), conf.get("listeners", {}).get("ssl", {})
    found = {"key_passphrase": tls.get("key_password")}
    user = next(iter(_users(conf).items()), None)
    if user:
        found.update(mqtt_username=user[0], mqtt_password=user[1])
    if http.get("auth_type") == "basic":
        login = f"{http.get('username')}:{http.get('password')}"
        found["rest_authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    keyfile = http.get("jwt", {}).get("public", {}).get("keyfile", "")
    for token in tokens:
        if http.get("auth_type") == "jwt" and issuer(token) == os.path.basename(keyfile):
            found["rest_authorization"] = f"Bearer {token}"
    return found


def issuer(token: str) -> str:
    """Who a token says it is from; "" for what is no token."""
    try:
        payload = token.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["iss"]
    except (IndexError, KeyError, TypeError, ValueError):
        return ""


def _users(conf: dict | None) -> dict[str, str]:
    listed = (conf or {}).get("auth", {}).get("password", {})
    return {name: value for name, value in listed.items() if name != "enable"}


def check_users(conf: dict | None, revoked: Iterable[str], number: int, name: str) -> None:
    """Raise where a generation would let in users whose access was revoked since."""
    back = sorted(set(_users(conf)) & set(revoked))
    if back:
        raise TransactionError(
            f"generation {number} of '{name}' lets in {', '.join(back)}, whose access was revoked: choose a later one,"
            " or harden the host. To let them in all the same, leave them out of nanomq_rollback_revoked_users",
            step="load",
        )


def users_changed(before: dict | None, after: dict | None) -> list[str]:
    """How the users of two configurations differ, in words and without a password."""
    old, new = _users(before), _users(after)
    groups = (
        ("users that come back", sorted(set(new) - set(old))),
        ("users that go", sorted(set(old) - set(new))),
        ("users whose password changes", sorted(name for name in set(old) & set(new) if old[name] != new[name])),
    )
    return [f"{words}: {', '.join(found)}" for words, found in groups if found]


# --- what may be shown ------------------------------------------------------------------------------------------------


def shown(entries: Iterable[Entry]) -> dict[str, str]:
    """How --diff may show each file of a generation. Keys and certificates only say that they differ."""
    return {e.dest: "hide" if _KEY_MATERIAL.search(e.content) else e.shown for e in entries}


def note_keys(changes: Iterable[Change]) -> list[str]:
    """What becomes of tokens and of revoked certificates, which a generation brings back, too."""
    notes, lists = [], False
    for change in changes:
        before, after = (_token_key(parsed(content)) for content in (change.before, change.after))
        if before != after and before and after:
            notes.append(f"tokens: those of {after} are valid again, and those of {before} no longer")
        lists = lists or any(
            b"-----BEGIN X509 CRL-----" in (content or b"") for content in (change.before, change.after)
        )
    if lists:
        notes.append("revocation lists: those of then are in force, and who was revoked since gets in again")
    return notes


def _token_key(conf: dict | None) -> str:
    http = (conf or {}).get("http_server")
    jwt = http.get("jwt") if isinstance(http, dict) else None
    public = jwt.get("public") if isinstance(jwt, dict) else None
    return os.path.basename(str(public.get("keyfile", ""))) if isinstance(public, dict) else ""


def note_users(changes: Iterable[Change], how: dict[str, str]) -> list[str]:
    """What becomes of the users, from the changes of a nanomq.conf."""
    notes = []
    for change in changes:
        if how.get(change.dest) == "redact":
            notes += users_changed(parsed(change.before), parsed(change.after))
    return notes
