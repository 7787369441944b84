# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A token key gives way to another one on a fleet, which takes longer than a run may live. Controller only.

``<name>.rotation.json`` exists from before the new key is put in the place of the old one until every host has shown
that it takes tokens of the new one alone. Whoever finds it goes on with the rotation that it names, and makes no second
key.

| step of begin | what is there, if it ends after it |
| --- | --- |
| keep the old pair under its own name | the old pair, twice: as if nothing had been |
| write the new key beside it (``<name>.next.key``) | the same, and a key that nobody uses: the next begin replaces it |
| write the record | the rotation is open; no host can have the new key yet |
| rename the new key into its place | the new key is in force; its public file is made from it by whoever comes next |

| step of finish | what is there, if it ends after it |
| --- | --- |
| note the hosts that were proven | an open rotation that knows them; or, if they are all, one that has ended |
| delete the old pair, if asked to | the same: whoever comes next completes it |
| remove the record | no rotation |
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import time
from collections.abc import Sequence

from ansible_collections.edgesec.nanomq.plugins.module_utils import _jwt
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import (
    FileProblem,
    fsync_dir,
    locked,
    read_regular,
    write_atomic,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._jwt_keypair import KeyPair

_KEY_ID = re.compile(r"jwt-[0-9a-f]{8}", re.ASCII)
#: Seconds to wait for another run that is at the same directory. None holds it for longer than it takes to make a key.
LOCK_LIMIT = 60.0


@dataclasses.dataclass(frozen=True)
class Rotation:
    """What the record says. `old` and `new` are names of keys, times are UTC, `proven` is {host: when}.

    retire: "archive" or "delete", what is to become of the old pair, once the rotation has ended; "" before
    """

    old: str
    new: str
    started: str
    proven: dict[str, str]
    retire: str = ""

    def missing(self, hosts: Sequence[str]) -> list[str]:
        """The hosts that have not shown yet that they take the new key's tokens alone."""
        return sorted(set(hosts) - set(self.proven))


def load(pair: KeyPair) -> Rotation | None:
    """Return the open rotation of a pair, or None. Raises FileProblem."""
    try:
        found = json.loads(read_regular(pair.record_path))
        rotation = Rotation(found["from"], found["to"], found["started"], dict(found["proven"]), found["retire"])
        texts = (rotation.started, *rotation.proven, *rotation.proven.values())
        if not all(_KEY_ID.fullmatch(key) for key in (rotation.old, rotation.new)) or rotation.old == rotation.new:
            raise ValueError("it does not name two keys")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("it does not name hosts and times")
        if rotation.retire not in ("", "archive", "delete"):
            raise ValueError("it does not say what becomes of the old pair")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise FileProblem(
            f"{pair.record_path} is damaged ({type(error).__name__}: {error}): restore it from a backup. Without one,"
            " remove it, and roll out the key that is there (playbook harden)"
        ) from None
    return rotation


def begin(
    pair: KeyPair, size: int, *, older_than: int | None = None, key: str | None = None, check: bool = False
) -> tuple[Rotation | None, bool, str]:
    """Go on with the open rotation, or open one if the key that is there is to go. `check`: only say so.

    older_than: seconds since the key was made, by the time of its file
    key: the key that is to go, by name or issuer; whatever its age, and no other one

    Returns the rotation, or None; whether something changed; and in words why there is none. In check mode a rotation
    that would be opened has "" for its new key. Raises FileProblem, CryptoError, ValueError and OSError.
    """
    wanted = _named(key)
    public_key = pair.load()
    if public_key is None:
        raise FileProblem(f"there is no key pair {pair.private_path} to rotate: make one first (playbook harden)")
    with locked(pair.directory, patience=LOCK_LIMIT):
        rotation = load(pair)
        if rotation is not None and rotation.retire:
            rotation = None if check else _retire(pair, rotation)
        if rotation is not None:
            return rotation, _swap(pair, rotation, check=check), ""
        present = _jwt.key_id(public_key)
        reason = _reason_to_stay(pair, present, older_than, wanted)
        if reason:
            return None, False, reason
        rotation = Rotation(present, "", _now(), {})
        if check:
            return rotation, True, ""
        pair.archive(public_key)
        private_key, new_public_key = pair.generate(size)
        write_atomic(pair.next_path, private_key, mode=0o600)
        rotation = dataclasses.replace(rotation, new=_jwt.key_id(new_public_key))
        _save(pair, rotation)
        _swap(pair, rotation)
    return rotation, True, ""


def _swap(pair: KeyPair, rotation: Rotation, *, check: bool = False) -> bool:
    """Put the new key in the place of the old one, unless it is there. Returns whether there was anything to do."""
    public_key = pair.public_key_of(pair.private_path)
    present = _jwt.key_id(public_key)
    if present not in (rotation.old, rotation.new):
        raise FileProblem(
            f"{pair.private_path} is {present}, and {pair.record_path} is about {rotation.old} and {rotation.new}:"
            " restore all of them from one backup. Without one, remove the record, and roll out the key that is there"
            " (playbook harden)"
        )
    archived = pair.archived(rotation.old)[0]
    if not os.path.lexists(archived):
        raise FileProblem(
            f"{archived} is missing: with it the hosts show that they refuse tokens of it; restore it from a backup"
        )
    changed = False
    if present == rotation.old:
        changed = True
        public_key = _next_key(pair, rotation)
        if not check:
            os.replace(pair.next_path, pair.private_path)
            fsync_dir(pair.directory)
    elif not pair.has_public_file(public_key):
        changed = True
    if changed and not check:
        pair.store_public(public_key)
    return changed


def _next_key(pair: KeyPair, rotation: Rotation) -> bytes:
    try:
        public_key = pair.public_key_of(pair.next_path)
    except FileNotFoundError:
        public_key = b""
    if _jwt.key_id(public_key) != rotation.new:
        raise FileProblem(
            f"{pair.next_path} is not the key {rotation.new} that {pair.record_path} names. No host has it yet: remove"
            " the record, and rotate again"
        )
    return public_key


def _named(key: str | None) -> str:
    name = (key or "").removesuffix(".pub")
    if name and not _KEY_ID.fullmatch(name):
        raise ValueError(f"key {key!r} names no key: write it as in the tokens' iss, such as jwt-1a2b3c4d.pub")
    return name


def _reason_to_stay(pair: KeyPair, present: str, older_than: int | None, wanted: str) -> str:
    """Why the key that is there is not to go; "" if it is."""
    if wanted:
        return "" if wanted == present else f"{wanted} is not in force any more: {present} is"
    if older_than is None:
        return f"no rotation of {present} is asked for"
    age = int(time.time() - os.lstat(pair.private_path).st_mtime)
    if age >= older_than:
        return ""
    return (
        f"{present} was made {max(age, 0)} s ago by the time of {pair.private_path}, and rotations are asked for from"
        f" {older_than} s on: name the key to rotate it at once"
    )


def finish(
    pair: KeyPair,
    hosts: Sequence[str],
    *,
    proven: Sequence[str],
    unproven: Sequence[str] = (),
    delete: bool = False,
    check: bool = False,
) -> tuple[Rotation | None, bool, bool]:
    """Note the hosts that were proven, and end the rotation once all are. `check`: only say so.

    hosts: all that are to have the new key, also those that took no part
    unproven: those that took part and failed, whatever an earlier run has seen
    delete: delete the old pair instead of keeping it under its own name

    Returns the rotation, or None where none is open; whether something changed; and whether it has ended.
    Raises FileProblem, CryptoError, ValueError and OSError.
    """
    if not hosts:
        raise ValueError("hosts is empty: a rotation ends when all hosts have the new key, so say which they are")
    if pair.load() is None:
        return None, False, False
    with locked(pair.directory, patience=LOCK_LIMIT):
        rotation = load(pair)
        if rotation is None:
            return None, False, False
        if rotation.retire:
            if not check:
                _retire(pair, rotation)
            return rotation, True, True
        if _swap(pair, rotation, check=True):
            raise FileProblem(f"{pair.record_path}: the rotation was not begun to its end, so no host can have the key")
        kept = {host: when for host, when in rotation.proven.items() if host in hosts and host not in unproven}
        fresh = {host: _now() for host in proven if host in hosts and host not in kept}
        noted = dataclasses.replace(rotation, proven={**kept, **fresh})
        ended = not noted.missing(hosts)
        if ended:
            noted = dataclasses.replace(noted, retire="delete" if delete else "archive")
        changed = noted != rotation
        if changed and not check:
            _save(pair, noted)
            if ended:
                _retire(pair, noted)
    return noted, changed, ended


def _retire(pair: KeyPair, rotation: Rotation) -> None:
    """Complete the end of a rotation. Safe to repeat; the record goes last."""
    for path in pair.archived(rotation.old) if rotation.retire == "delete" else ():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    os.unlink(pair.record_path)
    fsync_dir(pair.directory)


def _save(pair: KeyPair, rotation: Rotation) -> None:
    found = {
        "from": rotation.old,
        "to": rotation.new,
        "started": rotation.started,
        "proven": dict(sorted(rotation.proven.items())),
        "retire": rotation.retire,
    }
    write_atomic(pair.record_path, (json.dumps(found, indent=2) + "\n").encode(), mode=0o600)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def tell(rotation: Rotation, hosts: Sequence[str], *, ended: bool) -> list[str]:
    """What callers have to know, in clear text: which issuer each host takes, and since when."""
    old, new = f"{rotation.old}.pub", f"{rotation.new}.pub" if rotation.new else "a new key's"
    lines = [
        f"The issuer (iss) of tokens changes from {old} to {new}.",
        f"Since {rotation.started} hosts are being restarted with the new key, one after the other. From its restart on"
        " a host refuses tokens of the old one; until then, those of the new one.",
    ]
    lines += [f"{host}: {new} alone, seen {when}" for host, when in sorted(rotation.proven.items()) if host in hosts]
    lines += [f"{host}: {old} or {new}, not seen yet" for host in rotation.missing(hosts)]
    if ended:
        lines.append(
            f"The rotation is finished: {new} is valid everywhere. Callers that still use {old} are locked out."
        )
    else:
        lines.append("The rotation is open. Run the playbook again when these hosts can be reached.")
    return lines
