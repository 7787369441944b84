# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""A set of files and the services that read them, changed as one transaction.

    lock -> recover -> compare -> stage -> validate -> swap -> activate -> probe -> commit

A transaction either holds, or the host is as it was before. What makes that true:

* A write-ahead record (``record.json``) exists from before the first write until after the commit. Whoever finds one
  (the next run, the dead man's switch, the boot) undoes the change, or finishes it where it was committed already.
* New files are complete, synced and in their final directory before the first one is swapped in, and the old ones are
  kept there as hard links. An undo is therefore renames only: it needs no space and no content from elsewhere.
* Before the swap a timer is armed on the host. A run that dies is undone although nobody comes back.

This file depends on the standard library alone and never on another one of the collection: a copy of it is kept on the
host as the program of that timer and of the boot unit (see `install_recovery`). Sources: rename(2), link(2), fsync(2),
flock(2), systemd-run(1), bootup(7).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import grp
import hashlib
import json
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace

STATE_DIR = "/var/lib/edgesec-nanomq"
UNIT_DIR = "/etc/systemd/system"
#: Formats of the manifest of a generation. 2 is the first with checksums, and with how the set was checked.
_MANIFESTS = (1, 2)
RECOVERY_UNIT = "edgesec-nanomq-recover.service"
#: Seconds that a run may take from the swap to the commit before the dead man's switch undoes it.
WORK_LIMIT = 180
#: Phases in which the services may already have read the new files.
_SERVICES_TOUCHED = ("activating", "probing", "unconfirmed")
#: What may be found where a path of that state is wanted. Directories and devices are never removed.
_REPLACEABLE = {
    "file": ("absent", "file", "link"),
    "link": ("absent", "file", "link"),
    "absent": ("absent", "file", "link"),
    "directory": ("absent", "directory"),
}
_WORDS = {"file": "a file", "link": "a link", "absent": "absent", "directory": "a directory", "other": "a special file"}
_SYSTEMD_DIRS = ("/etc/systemd/system/", "/usr/local/lib/systemd/system/", "/usr/lib/systemd/system/")


class TransactionError(Exception):
    """The change did not come about.

    `undone` tells whether something had been changed and was put back, `half_done` whether some of it could not be.
    """

    def __init__(
        self, message: str, *, step: str = "", undone: bool = False, half_done: bool = False, journal: str = ""
    ):
        super().__init__(message)
        self.step = step
        self.undone = undone
        self.half_done = half_done
        self.journal = journal


def run(argv: list[str], *, timeout: float = 90, stdin: bytes | None = None) -> tuple[int, str]:
    """Run a program without a shell. Returns its exit code and what it printed, both streams together."""
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]} did not end within {timeout:g} s"
    except OSError as error:
        return 127, f"{argv[0]}: {error.strerror}"
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


# --- what is wanted ---------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """One path of the set. `mode` is the permission bits as a number; `content` counts for files, `target` for links.

    `early` puts a *new* path in place before the validation. It is for files whose name changes with their content (a
    key named by its fingerprint): nothing that runs can be reading them yet. `shown` is for those who show the file: it
    is kept with the generation, and means nothing here.
    """

    dest: str
    state: str = "file"
    content: bytes = b""
    target: str = ""
    owner: str = "root"
    group: str = "root"
    mode: int = 0o644
    early: bool = False
    sysusers: bool = False
    shown: str = "hide"


@dataclass
class Service:
    """One unit that reads the files. `on_change`: restart, or reload where the unit can."""

    name: str
    state: str = "started"
    enabled: bool | None = True
    on_change: str = "restart"


@dataclass
class Change:
    """One difference between the host and the set, for the report. The contents are bytes, or None where absent."""

    dest: str
    what: list[str]
    before: bytes | None
    after: bytes | None


@dataclass
class Outcome:
    """What a run came to."""

    changed: bool = False
    changes: list[Change] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    recovered: str = ""
    generation: int | None = None
    transaction: str = ""
    unconfirmed: bool = False
    validated: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass
class Generation:
    """A kept set, read back whole: what `Transaction` takes, and the manifest with what else is known of it."""

    manifest: dict
    entries: list[Entry]
    services: list[Service]


# --- files ------------------------------------------------------------------------------------------------------------


def fsync_dir(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: str, data: bytes, *, mode: int, uid: int, gid: int) -> None:
    """Create a file that did not exist: born 0600, given its owner and mode, and only then its content; synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def write_state(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace one of the engine's own files, atomically and durably. The caller holds the lock that covers it."""
    # Always the same name, so that what a killed run left behind is cleared by the next.
    temporary = f"{path}.tmp"
    remove(temporary)
    try:
        write_new(temporary, data, mode=mode, uid=os.geteuid(), gid=os.getegid())
        os.rename(temporary, path)
    except OSError:
        remove(temporary)
        raise
    fsync_dir(os.path.dirname(path))


def remove(path: str) -> None:
    """Remove a file or link if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def lookup(path: str) -> dict:
    """What is at a path: {"kind": absent | file | directory | link | other, "mode", "uid", "gid", "target"}."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return {"kind": "absent"}
    kind = "other"
    for name, test in (("file", stat.S_ISREG), ("directory", stat.S_ISDIR), ("link", stat.S_ISLNK)):
        if test(found.st_mode):
            kind = name
    result = {"kind": kind, "mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
    if kind == "link":
        result["target"] = os.readlink(path)
    return result


def read(path: str) -> bytes:
    """The content of a regular file; never follows a link at the path itself."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as handle:
        return handle.read()


def _is_file(found: dict) -> bool:
    return found["kind"] == "file"


def _ids(entry: Entry) -> tuple[int, int] | None:
    """The numbers of the owner and group, or None where one of them does not exist (yet)."""
    try:
        return pwd.getpwnam(entry.owner).pw_uid, grp.getgrnam(entry.group).gr_gid
    except KeyError:
        return None


def check_parents(dest: str, managed: Collection[str] = ()) -> None:
    """Refuse a path below a directory that somebody other than root could rearrange under our hands.

    The `managed` directories are excepted: they belong to the set, which puts them right before it uses them.
    """
    parent = os.path.dirname(dest)
    # By name, for whoever could exchange a link on the way, and where it really lies.
    for path in dict.fromkeys([*_ancestors(parent), *_ancestors(os.path.realpath(parent))]):
        found = None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(path)
        if found is not None and (path not in managed or lookup(path)["kind"] != "directory"):
            if not stat.S_ISDIR(found.st_mode):
                raise TransactionError(f"{dest}: {path} is not a directory", step="compare")
            writable = stat.S_IMODE(found.st_mode) & 0o022 and not found.st_mode & stat.S_ISVTX
            if found.st_uid not in (0, os.geteuid()) or writable:
                raise TransactionError(
                    f"{dest}: its parent {path} belongs to uid {found.st_uid} with mode "
                    f"{stat.S_IMODE(found.st_mode):04o}; others than root could replace what is written there. "
                    f"Give {path} to root and take write permission from others",
                    step="compare",
                )


def _ancestors(path: str) -> Iterator[str]:
    """A directory and all above it."""
    yield path
    while path not in ("/", ""):
        path = os.path.dirname(path)
        yield path


# --- services ---------------------------------------------------------------------------------------------------------


def unit_of(path: str, unit_dir: str = UNIT_DIR) -> str:
    """The unit that a file defines, or adds to from the unit's directory (``.d``); "" where it is no unit's."""
    for directory in (unit_dir + "/", *_SYSTEMD_DIRS):
        if path.startswith(directory):
            name = path[len(directory) :].split("/")[0]
            return name[: -len(".d")] if name.endswith(".d") else name
    return ""


def _names(service: Service) -> set[str]:
    """What systemd takes for the name of a service, which may be given without its suffix."""
    return {service.name, f"{service.name}.service"}


def service_state(name: str, call=run) -> dict:
    """{"active": bool, "running": bool, "enabled": bool} of a unit.

    One that crashes and is started again and again is active, in that it is meant to run, but not running.
    """
    code, out = call(["systemctl", "show", "-p", "ActiveState,UnitFileState", name])
    if code != 0:
        raise TransactionError(f"systemctl does not answer for {name}: {out}", step="compare")
    values = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return {
        "active": values.get("ActiveState") in ("active", "activating", "reloading"),
        "running": values.get("ActiveState") in ("active", "reloading"),
        "enabled": values.get("UnitFileState") in ("enabled", "enabled-runtime"),
    }


def systemctl(call, *args: str) -> None:
    """Run systemctl, or raise with what it said."""
    code, out = call(["systemctl", *args])
    if code != 0:
        raise TransactionError(f"systemctl {' '.join(args)}: {out}", step="activate")


def start(call, name: str, verb: str) -> None:
    """Start, restart or reload a unit. The start limit is cleared first: it must never stand in the way of an undo."""
    call(["systemctl", "reset-failed", name])
    systemctl(call, verb, name)


# --- the store of one named transaction -------------------------------------------------------------------------------


class Store:
    """What the host remembers of one named transaction: lock, record, last outcome, generations. Root only."""

    def __init__(self, name: str, state_dir: str = STATE_DIR):
        self.name = name
        self.base = state_dir
        self.path = os.path.join(state_dir, name)
        self.record_path = os.path.join(self.path, "record.json")
        self.generations_path = os.path.join(self.path, "generations")

    def create(self) -> None:
        """Make the directories."""
        for path in (self.base, self.path, self.generations_path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            if lookup(path)["kind"] != "directory" or os.stat(path).st_uid != os.geteuid():
                raise TransactionError(f"{path} is not a directory of root's: remove it and run again", step="lock")

    @contextlib.contextmanager
    def lock_base(self) -> Iterator[None]:
        """Hold the lock on what all transactions share. It is held for moments only."""
        fd = os.open(self.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def lock(self, wait: float = 30) -> Iterator[None]:
        """Hold the lock. It belongs to the process, so that a killed run leaves none behind."""
        fd = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + wait
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise TransactionError(
                            f"another run is changing '{self.name}' on this host (held for more than {wait:g} s): "
                            "wait for it, or find it with: fuser -v " + os.path.join(self.path, "lock"),
                            step="lock",
                        ) from None
                    time.sleep(0.1)
            yield
        finally:
            os.close(fd)

    def record(self) -> dict | None:
        """The record of a transaction that is not finished."""
        try:
            return json.loads(read(self.record_path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise TransactionError(
                f"{self.record_path} is damaged ({error}), so that nobody knows what an earlier run changed: compare "
                "the files of the set with the hidden copies (.*.old) beside them, then remove it and run again",
                step="recover",
            ) from error

    def save_record(self, record: dict) -> None:
        write_state(self.record_path, json.dumps(record, indent=1).encode())

    def drop_record(self) -> None:
        remove(self.record_path)
        fsync_dir(self.path)

    def last(self) -> dict:
        """How the last transaction ended: {"id", "result": committed | undone, "reason", "time"}, or {}."""
        try:
            return json.loads(read(os.path.join(self.path, "last.json")))
        except (FileNotFoundError, ValueError):
            return {}

    def save_last(self, identity: str, result: str, reason: str) -> None:
        """Best effort: a full disk must not stop an undo."""
        data = {"id": identity, "result": result, "reason": reason, "time": int(time.time())}
        with contextlib.suppress(OSError):
            write_state(os.path.join(self.path, "last.json"), json.dumps(data).encode())

    def generations(self) -> list[int]:
        """The numbers of the kept generations, oldest first. 0 is the host as it was found."""
        try:
            return sorted(int(name) for name in os.listdir(self.generations_path) if name.isdigit())
        except FileNotFoundError:
            return []

    def manifest(self, number: int) -> dict:
        """What is known of a generation. Raises where it is not as it was written."""
        path = os.path.join(self.generations_path, f"{number:04d}", "manifest.json")
        try:
            manifest = json.loads(read(path))
            if manifest["format"] not in _MANIFESTS:
                raise ValueError(f"format {manifest['format']}")
            if manifest.get("checksum") != (checksum(manifest) if manifest["format"] > 1 else None):
                raise ValueError("its checksum differs")
        except (OSError, ValueError, LookupError, TypeError) as error:
            problem = getattr(error, "strerror", None) or error
            raise TransactionError(
                f"generation {number} of '{self.name}' is damaged: {path}: {problem}. It is of no use any more: "
                f"remove {os.path.dirname(path)}",
                step="load",
            ) from error
        return manifest

    def generation(self, number: int) -> Generation:
        """Read a generation back, each of its files compared with its checksum. Raises where one is not as written."""
        manifest = self.manifest(number)
        if manifest["format"] < 2:
            raise TransactionError(
                f"generation {number} of '{self.name}' was kept by an earlier version of this collection, without its "
                "checksums and checks, and cannot be restored",
                step="load",
            )
        fields = Entry.__dataclass_fields__
        entries = []
        for item in manifest["files"]:
            values = {key: value for key, value in item.items() if key in fields}
            entries.append(Entry(**values, content=self._blob(number, item) if item["state"] == "file" else b""))
        return Generation(manifest, entries, [Service(**item) for item in manifest["services"]])

    def _blob(self, number: int, item: dict) -> bytes:
        path = os.path.join(self.generations_path, f"{number:04d}", item["blob"])
        problem = "its content differs from its checksum"
        try:
            content = read(path)
            if hashlib.sha256(content).hexdigest() == item["sha256"]:
                return content
        except OSError as error:
            problem = error.strerror or str(error)
        raise TransactionError(
            f"generation {number} of '{self.name}' is damaged: {path}, which is {item['dest']}: {problem}", step="load"
        )

    def write_generation(self, name: str, manifest: dict, blobs: dict[str, bytes]) -> None:
        """Write a generation under a name of its own; it counts once it is renamed to a number."""
        path = os.path.join(self.generations_path, name)
        manifest = {**manifest, "checksum": checksum(manifest)}
        os.mkdir(path, 0o700)
        for blob, content in blobs.items():
            write_new(os.path.join(path, blob), content, mode=0o600, uid=os.geteuid(), gid=os.getegid())
        write_new(
            os.path.join(path, "manifest.json"),
            json.dumps(manifest, indent=1).encode(),
            mode=0o600,
            uid=os.geteuid(),
            gid=os.getegid(),
        )
        fsync_dir(path)
        fsync_dir(self.generations_path)

    def rename_generation(self, name: str, new: str) -> None:
        os.rename(os.path.join(self.generations_path, name), os.path.join(self.generations_path, new))
        fsync_dir(self.generations_path)

    def drop_generation(self, name: str) -> None:
        shutil.rmtree(os.path.join(self.generations_path, name), ignore_errors=True)

    def restores(self, number: int) -> int | None:
        """Which generation a generation is the copy of. One that cannot be read is taken for a deployment."""
        try:
            return self.manifest(number).get("restores")
        except TransactionError:
            return None

    def last_deployment(self) -> tuple[int, int]:
        """The last generation that is no copy of another, and what was in force before it; 0 where there is none."""
        numbers = [number for number in self.generations() if number != 0]
        last = max((number for number in numbers if not self.restores(number)), default=0)
        return last, max((number for number in numbers if number < last), default=0)

    def prune(self, keep: int) -> None:
        """Forget what is beyond `keep`, copies before deployments and old ones before new ones.

        Going back and forth thus pushes nothing out. The one in force, the last deployment and what was before it come
        last; never the one in force, nor the host as found.
        """
        self.drop_generation(".dropped")
        numbers = [number for number in self.generations() if number != 0]
        dear = {*self.last_deployment(), *numbers[-1:]}
        numbers.sort(key=lambda number: (number in dear, number not in dear and not self.restores(number), number))
        for number in numbers[: -max(keep, 1)]:
            # It loses its number first: a numbered generation is whole at any time.
            self.rename_generation(f"{number:04d}", ".dropped")
            self.drop_generation(".dropped")


def checksum(manifest: dict) -> str:
    """SHA-256 over a manifest without the checksum in it."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# --- undo: the only part that runs without a controller ---------------------------------------------------------------


def restore_file(item: dict, *, swapped: bool) -> None:
    """Put one path back as the record says it was. Safe to repeat.

    Before the swap the old file is still in its place, and what was saved of it may be incomplete.
    """
    dest, before = item["dest"], item["before"]
    if item["staged"]:
        remove(item["staged"])
    if before["kind"] == "directory":
        if lookup(dest)["kind"] == "directory":
            os.chown(dest, before["uid"], before["gid"])
            os.chmod(dest, before["mode"])
        return
    if before["kind"] == "absent":
        if item["state"] == "directory":
            with contextlib.suppress(OSError):
                os.rmdir(dest)
        elif item["state"] != "absent":
            remove(dest)
        return
    saved = item["saved"]
    if not swapped:
        remove(saved)
    elif lookup(saved)["kind"] == "absent":
        return  # put back already
    elif lookup(dest)["kind"] != "absent" and os.path.samestat(os.lstat(saved), os.lstat(dest)):
        os.unlink(saved)  # rename(2) does nothing between two names of one file
    else:
        os.rename(saved, dest)


def disarm(record: dict, call=run) -> None:
    """Stop the timers of a transaction. One that runs this very program may be stopped: the program is another unit."""
    for unit in record.get("timers", []):
        call(["systemctl", "stop", f"{unit}.timer"])


def undo(store: Store, record: dict, reason: str, *, boot: bool = False, call=run) -> list[str]:
    """Put files and services back as the record says they were. Returns what could not be put back.

    At `boot` the services are left to the boot itself, which starts them after this.
    """
    troubles: list[str] = []
    touched = record["phase"] in _SERVICES_TOUCHED
    # The units of files that go are stopped before the swap.
    services = [s for s in record["services"] if touched or (s["retired"] and record["phase"] == "swapping")]

    def attempt(action: Callable[[], None]) -> None:
        # Everything is tried: one unit that will not stop is no reason to leave the other files changed.
        try:
            action()
        except (TransactionError, OSError) as error:
            troubles.append(str(error))

    # What did not run before is stopped while its unit is still there to say how.
    for service in services:
        if not service["before"]["active"] and not boot:
            call(["systemctl", "stop", service["name"]])
        if not service["before"]["enabled"] and service["enabled"]:
            call(["systemctl", "disable", service["name"]])
            if boot:  # which has its start in the queue already, and must not be waited for in here
                call(["systemctl", "stop", "--no-block", service["name"]])
    for item in reversed(record["files"]):
        attempt(lambda item=item: restore_file(item, swapped=record["phase"] != "staging"))
    for path in sorted({os.path.dirname(item["dest"]) for item in record["files"]}):
        with contextlib.suppress(OSError):
            fsync_dir(path)
    if record["units"] and record["phase"] != "staging":
        attempt(lambda: systemctl(call, "daemon-reload"))
    files_are_back = not troubles
    for service in services:
        if service["before"]["enabled"] and service["enabled"] is False:
            attempt(lambda s=service: systemctl(call, "enable", s["name"]))
            if boot:  # whose queue was made without it
                call(["systemctl", "start", "--no-block", service["name"]])
        if service["before"]["active"] and not boot:
            attempt(lambda s=service: _reactivate(call, s))
    for name in _pending(record):
        store.drop_generation(name)
    if troubles:
        store.save_last(record["id"], "half undone", f"{reason}; not put back: {'; '.join(troubles)}")
    elif record["phase"] != "staging":
        store.save_last(record["id"], "undone", reason)
    if files_are_back:
        # A service that does not start again with its old files must not block the run that brings better ones.
        store.drop_record()
    # Otherwise the record stays: the next run, or the next boot, tries again.
    disarm(record, call)
    return troubles


def _pending(record: dict) -> tuple[str, str]:
    """The names under which a transaction's generations wait for the commit: the host as found, and the new set."""
    return f".{record['id']}-as-found", f".{record['id']}"


def _keep_copy(path: str, saved: str) -> None:
    """Give a file or link a second name, which an undo renames back. Copied where the file system has no hard links."""
    try:
        os.link(path, saved, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        found = lookup(path)
        if found["kind"] == "link":
            os.symlink(found["target"], saved)
        else:
            write_new(saved, read(path), mode=found["mode"], uid=found["uid"], gid=found["gid"])


def _reactivate(call, service: dict) -> None:
    if service["on_change"] == "reload" and service_state(service["name"], call)["active"]:
        call(["systemctl", "reset-failed", service["name"]])
        if call(["systemctl", "reload", service["name"]])[0] == 0:
            return
    start(call, service["name"], "restart")
    if not service_state(service["name"], call)["active"]:
        raise TransactionError(f"{service['name']} does not run again")


def finish(store: Store, record: dict, call=run) -> int | None:
    """Complete a committed transaction. Safe to repeat."""
    as_found, new = _pending(record)
    if os.path.isdir(os.path.join(store.generations_path, as_found)):
        store.rename_generation(as_found, "0000")
    if os.path.isdir(os.path.join(store.generations_path, new)):
        store.rename_generation(new, f"{max([0, *store.generations()]) + 1:04d}")
    store.prune(record["keep"])
    for item in record["files"]:
        for path in (item["saved"], item["staged"]):
            if path:
                remove(path)
    store.save_last(record["id"], "committed", "")
    store.drop_record()
    disarm(record, call)
    return max(store.generations(), default=None)


def recover(store: Store, reason: str, *, boot: bool = False, call=run) -> str:
    """Undo, or finish, what an earlier run left open. Returns what was done in words, or "" where nothing was open."""
    record = store.record()
    if record is None:
        return ""
    if record["phase"] == "committed":
        finish(store, record, call)
        return f"finished transaction {record['id']}, which was cut after its commit"
    troubles = undo(store, record, reason, boot=boot, call=call)
    if troubles:
        raise TransactionError(
            f"transaction {record['id']} was cut at '{record['phase']}' and could not be undone: {'; '.join(troubles)}",
            step="recover",
        )
    return f"undid transaction {record['id']}, which was cut at '{record['phase']}'"


# --- the program that stays on the host -------------------------------------------------------------------------------

_UNIT = """\
# Made by edgesec.nanomq. Undoes a change that a power cut interrupted, before the services that it concerns start.
[Unit]
Description=Undo interrupted changes to NanoMQ and its guards
DefaultDependencies=no
RequiresMountsFor={state}
After=local-fs.target
Before=sysinit.target network-pre.target nftables.service
ConditionPathExistsGlob={state}/*/record.json

[Service]
Type=oneshot
ExecStart={python} -I {state}/transaction.py --state-dir {state} --boot

[Install]
WantedBy=sysinit.target
"""


def install_recovery(state_dir: str = STATE_DIR, *, call=run, unit_dir: str = UNIT_DIR) -> None:
    """Keep a copy of this program on the host, and the unit that runs it at boot."""
    program = os.path.join(state_dir, "transaction.py")
    source = _own_source()
    if lookup(program)["kind"] != "file" or read(program) != source:
        write_state(program, source)
    unit = os.path.join(unit_dir, RECOVERY_UNIT)
    text = _UNIT.format(state=state_dir, python=sys.executable).encode()
    if lookup(unit)["kind"] != "file" or read(unit) != text:
        write_state(unit, text, mode=0o644)
        systemctl(call, "daemon-reload")
    # Asked each time: a run may have been cut between the unit and its enabling.
    if not service_state(RECOVERY_UNIT, call)["enabled"]:
        systemctl(call, "enable", RECOVERY_UNIT)


def _own_source() -> bytes:
    """This file. In a module run it lies in a zip archive, where only the loader can read it; with Mitogen nowhere."""
    loader = globals().get("__loader__")
    if loader is not None and hasattr(loader, "get_data"):
        return loader.get_data(__file__)
    if loader is not None and hasattr(loader, "get_source"):
        return loader.get_source(__name__).encode("utf-8")
    return read(__file__)


def arm(unit: str, seconds: int, store: Store, identity: str, call=run) -> None:
    """Arm the dead man's switch: unless the record is gone by then, the host undoes the transaction by itself."""
    code, out = call(
        [
            *("systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--on-active={seconds}s"),
            *("--timer-property=AccuracySec=1s", "--description=Undo an unfinished change to NanoMQ or its guards"),
            *(sys.executable, "-I", os.path.join(store.base, "transaction.py"), "--state-dir", store.base),
            *("--name", store.name, "--id", identity),
        ]
    )
    if code != 0:
        raise TransactionError(
            f"cannot arm the timer that would undo this change, so it is not made: {out}", step="swap"
        )


# --- the transaction --------------------------------------------------------------------------------------------------


class Transaction:
    """Bring a host to the wanted set of files and services, or leave it as it is.

    `validate` gets {dest: path of the staged file} and raises `TransactionError` where the set must not be used.
    `probe` returns a list of what does not hold, empty where all is well; `recheck` does it where nothing was changed,
    and is the same unless it is given. `journal` gets the start of the activation (seconds since the epoch) and returns
    the end of what the services logged since. `memo` is plain data that is kept with the generation, beside what the
    engine itself writes there: by whom, how it was checked.
    """

    def __init__(
        self,
        name: str,
        entries: list[Entry],
        services: list[Service],
        *,
        validate: Callable[[dict[str, str]], None] = lambda staged: None,
        probe: Callable[[], list[str]] = list,
        recheck: Callable[[], list[str]] | None = None,
        journal: Callable[[float], str] = lambda since: "",
        state_dir: str = STATE_DIR,
        unit_dir: str = UNIT_DIR,
        confirm_within: int = 0,
        keep: int = 5,
        memo: dict | None = None,
        call=run,
    ):
        self.store = Store(name, state_dir)
        self.entries = entries
        self.services = services
        self.validate = validate
        self.probe = probe
        self.recheck = recheck or probe
        self.journal = journal
        self.unit_dir = unit_dir
        self.confirm_within = confirm_within
        self.keep = keep
        self.memo = memo or {}
        self.call = call
        self.outcome = Outcome()
        self.record: dict = {}

    def apply(self, *, check: bool = False) -> Outcome:
        """Run the transaction. In check mode: stage and validate, but swap nothing."""
        if check and not os.path.isdir(self.store.path):
            return self._preview(self._compare(), "this host has not seen such a transaction yet")
        self.store.create()
        with self.store.lock():
            if check and self.store.record():
                self.outcome.changed = True
                return self._preview(self._compare(), "an earlier transaction is unfinished and would be undone first")
            self.outcome.recovered = recover(self.store, "found unfinished by the next run", call=self.call)
            changes = self._compare()
            if not changes:
                return self._repair(check)
            return self._preview(changes) if check else self._change(changes)

    # compare

    def differing(self) -> list[str]:
        """The paths that are not as the set says. Nothing is changed, and no lock taken."""
        return [entry.dest for entry, _before, _change in self._compare()]

    def _compare(self) -> list[tuple[Entry, dict, Change]]:
        changes = []
        managed = {entry.dest for entry in self.entries if entry.state == "directory"}
        for entry in self.entries + self._orphans():
            check_parents(entry.dest, managed)
            before = lookup(entry.dest)
            if before["kind"] not in _REPLACEABLE[entry.state]:
                raise TransactionError(
                    f"{entry.dest} is to be {_WORDS[entry.state]}, but is {_WORDS[before['kind']]} and is left alone: "
                    "move it away and run again",
                    step="compare",
                )
            content = read(entry.dest) if before["kind"] == "file" else None
            what = self._differences(entry, before, content)
            if what:
                after = entry.content if entry.state == "file" else None
                changes.append((entry, before, Change(entry.dest, what, content, after)))
        self.outcome.changes = [change for _entry, _before, change in changes]
        self.outcome.changed = self.outcome.changed or bool(changes)
        return changes

    def _orphans(self) -> list[Entry]:
        """Files of the generation in force that are wanted no longer. A set is what there is, not what is added."""
        numbers = [number for number in self.store.generations() if number != 0]
        if not numbers:
            return []
        wanted = {entry.dest for entry in self.entries}
        files = self.store.manifest(numbers[-1])["files"]
        return [
            Entry(item["dest"], state="absent")
            for item in files
            if item["dest"] not in wanted and item["state"] in ("file", "link")
        ]

    @staticmethod
    def _differences(entry: Entry, before: dict, content: bytes | None) -> list[str]:
        kind = before["kind"]
        if kind != entry.state:
            return ["state"]
        if kind == "absent":
            return []
        if kind == "link":
            return ["target"] if before["target"] != entry.target else []
        what = []
        if kind == "file" and content != entry.content:
            what.append("content")
        ids = _ids(entry)
        if ids is None or before["uid"] != ids[0]:
            what.append("owner")
        if ids is None or before["gid"] != ids[1]:
            what.append("group")
        if before["mode"] != entry.mode:
            what.append("mode")
        return what

    # nothing to change

    def _wrong_services(self) -> tuple[list[str], list[Service]]:
        """What is wrong with the services, in words, and those that run and should not, or should and do not."""
        failing, wrong = [], []
        for service in self.services:
            state = service_state(service.name, self.call)
            down = service.state == "started" and not state["running"]
            if down or (service.state == "stopped" and state["active"]):
                failing.append(f"{service.name} is {'not running' if down else 'running'}")
                wrong.append(service)
            if service.enabled is not None and state["enabled"] != service.enabled:
                failing.append(f"{service.name} is {'not enabled' if service.enabled else 'enabled'}")
        return failing, wrong

    def _failing(self) -> list[str]:
        """What does not hold on the host as it is."""
        return self._wrong_services()[0] or self.probe()

    def _repair(self, check: bool) -> Outcome:
        """The files are right. See that what they promise is true, and set the services right where it is not."""
        failing, wrong = self._wrong_services()
        if not failing:
            # Which service it is that breaks a promise is not known.
            failing, wrong = self.recheck(), self.services
        if not failing:
            return self.outcome
        self.outcome.changed = True
        self.outcome.repaired = failing
        if check:
            return self.outcome
        since = time.time()
        try:
            self._enable()
            for service in wrong:
                # The others run, and a restart would cut their clients.
                self._activate(service)
            failing = self._failing()
        except TransactionError as error:
            failing = [str(error)]
        if failing:
            raise TransactionError(
                "the configuration is as wanted and the service was set up anew, but this does not hold: "
                + "; ".join(failing),
                step="probe",
                journal=self.journal(since),
            )
        return self.outcome

    # stage and validate

    def _preview(self, changes: list, why_not: str = "") -> Outcome:
        """Check mode: say what would change; validate where the host has what that needs."""
        why_not = why_not or self._lacking(changes)
        if why_not:
            if changes:
                self.outcome.notes.append(f"not validated: {why_not}")
            return self.outcome
        parents = {os.path.dirname(entry.dest): None for entry, _before, _change in changes}
        times = {path: os.stat(path) for path in parents}
        self._step("prepare", lambda: self._open(changes))
        try:
            self._step("stage", lambda: self._stage(changes))
            self._step("validate", lambda: self._run_validate(changes))
            self.outcome.validated = True
        finally:
            troubles = undo(self.store, self.record, "check mode", call=self.call)
            self.outcome.notes += [f"not tidied up after the check: {trouble}" for trouble in troubles]
            for path, found in times.items():
                os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        self.outcome.transaction = ""
        return self.outcome

    @staticmethod
    def _lacking(changes: list) -> str:
        """What the host lacks to stage the changes, in words."""
        paths = {os.path.dirname(entry.dest) for entry, _before, _change in changes}
        lacking = sorted(path for path in paths if not os.path.isdir(path))
        lacking += sorted({f"{e.owner}:{e.group}" for e, _before, _change in changes if _ids(e) is None})
        return f"the host does not have {', '.join(lacking)} yet" if lacking else ""

    def _open(self, changes: list) -> None:
        """Write the record. From here on whoever finds it can put everything back."""
        identity = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + secrets.token_hex(3)
        self.outcome.transaction = identity
        files = []
        for entry, before, _change in changes:
            directory, base = os.path.split(entry.dest)
            hidden = os.path.join(directory, f".{base}.{identity}")
            files.append(
                {
                    "dest": entry.dest,
                    "state": entry.state,
                    "before": before,
                    "staged": f"{hidden}.new" if entry.state in ("file", "link") else "",
                    "saved": f"{hidden}.old" if before["kind"] in ("file", "link") else "",
                }
            )
        self.record = {
            "format": 1,
            "id": identity,
            "phase": "staging",
            "keep": self.keep,
            "confirm_within": self.confirm_within,
            "units": any(unit_of(entry.dest, self.unit_dir) for entry, _before, _change in changes),
            "timers": [],
            "files": files,
            "services": [
                {**asdict(service), "retired": retired, "before": service_state(service.name, self.call)}
                for retired, services in ((True, self._retiring(changes)), (False, self._taking_up(changes)))
                for service in services
            ],
        }
        self.store.save_record(self.record)

    def _taking_up(self, changes: list) -> list[Service]:
        """The services, and how each takes up these changes: of a unit that changed, a reload heeds next to nothing."""
        changed = {unit_of(entry.dest, self.unit_dir) for entry, _before, _change in changes}
        return [
            replace(service, on_change="restart") if changed & _names(service) else service for service in self.services
        ]

    def _retiring(self, changes: list) -> list[Service]:
        """The services whose units go with these changes. A template (``@.``) is no service."""
        kept = {name for service in self.services for name in _names(service)}
        gone = []
        for entry, _before, _change in changes:
            unit = unit_of(entry.dest, self.unit_dir)
            defines_it = os.path.basename(entry.dest) == unit
            if entry.state == "absent" and defines_it and unit not in kept and "@." not in unit:
                gone.append(Service(unit, state="stopped", enabled=False))
        return gone

    def _phase(self, phase: str) -> None:
        """On the disk first: where that fails, the undo must act on the phase that was reached."""
        self.store.save_record({**self.record, "phase": phase})
        self.record["phase"] = phase

    def _make_accounts(self, changes: list) -> None:
        """Accounts first, since the staged files belong to them. They only ever add; an undo leaves them."""
        for entry, _before, _change in changes:
            if entry.sysusers:
                code, out = self.call(["systemd-sysusers", f"--replace={entry.dest}", "-"], stdin=entry.content)
                if code != 0:
                    raise TransactionError(f"systemd-sysusers refused {entry.dest}: {out}", step="stage")

    def _stage(self, changes: list) -> None:
        """Write everything that the swap will need, durably, beside where it will be."""
        for (entry, before, _change), item in zip(changes, self.record["files"]):
            ids = _ids(entry)
            if ids is None:
                raise TransactionError(
                    f"{entry.dest}: no such owner or group: {entry.owner}:{entry.group}", step="stage"
                )
            if entry.state == "directory":
                self._set_directory(entry, ids, before)
            elif entry.state == "file":
                write_new(item["staged"], entry.content, mode=entry.mode, uid=ids[0], gid=ids[1])
            elif entry.state == "link":
                os.symlink(entry.target, item["staged"])
            if item["saved"]:
                _keep_copy(entry.dest, item["saved"])
        for (entry, before, _change), item in zip(changes, self.record["files"]):
            if entry.early and before["kind"] == "absent" and item["staged"]:
                os.rename(item["staged"], entry.dest)
        for path in {os.path.dirname(entry.dest) for entry, _before, _change in changes}:
            fsync_dir(path)
        self._stage_generation(changes)

    @staticmethod
    def _set_directory(entry: Entry, ids: tuple[int, int], before: dict) -> None:
        """Make a directory, or set its owner and mode right: before anything is staged in it."""
        if before["kind"] == "absent":
            os.mkdir(entry.dest, 0o700)
        os.chown(entry.dest, *ids)
        os.chmod(entry.dest, entry.mode)
        fsync_dir(os.path.dirname(entry.dest))

    def _stage_generation(self, changes: list) -> None:
        """Write the generation before the swap: a disk that is full must show now, not at the commit."""
        as_found, new = _pending(self.record)
        if not self.store.generations():
            found = [(change.before, {"dest": e.dest, "state": "file", **b}) for e, b, change in changes if _is_file(b)]
            self.store.write_generation(as_found, *self._manifest("as found", found, [], {}))
        entries = [(entry.content, asdict(entry)) for entry in self.entries]
        self.store.write_generation(new, *self._manifest(self.record["id"], entries, changes, self.memo))

    def _manifest(self, identity: str, files: list, changes: list, memo: dict) -> tuple[dict, dict[str, bytes]]:
        """The manifest of a set, and the contents by the names that it gives them. `files`: (content, attributes)."""
        keys = ("dest", "state", "owner", "group", "mode", "uid", "gid", "target", "early", "sysusers", "shown")
        items, blobs = [], {}
        for number, (content, attributes) in enumerate(files):
            item = {key: attributes[key] for key in keys if key in attributes}
            if item["state"] == "file":
                item.update(blob=f"{number:03d}", sha256=hashlib.sha256(content).hexdigest())
                blobs[item["blob"]] = content
            items.append(item)
        manifest = {
            **memo,
            "format": max(_MANIFESTS),
            "id": identity,
            "time": int(time.time()),
            "changes": [{"dest": change.dest, "what": change.what} for _entry, _before, change in changes],
            "files": items,
            "services": [asdict(service) for service in self.services],
            "keep": self.keep,
            "confirm_within": self.confirm_within,
        }
        return manifest, blobs

    def _run_validate(self, changes: list) -> None:
        staged = {entry.dest: entry.dest for entry in self.entries if entry.state == "file"}
        for (entry, _before, _change), item in zip(changes, self.record["files"]):
            if entry.state == "file" and lookup(item["staged"])["kind"] == "file":
                staged[entry.dest] = item["staged"]
        self.validate(staged)

    # change

    def _change(self, changes: list) -> Outcome:
        self._step("prepare", self._install_recovery)
        self._step("prepare", lambda: self._make_accounts(changes))
        self._step("prepare", lambda: self._open(changes))
        since = time.time()
        try:
            self._step("stage", lambda: self._stage(changes))
            self._step("validate", lambda: self._run_validate(changes))
            self._step("swap", lambda: self._swap(changes))
            self._step("activate", lambda: self._activate_new(changes))
            self._step("probe", self._run_probe)
            self._step("commit", self._commit)
        except TransactionError as error:
            self._fail(error, since)
        return self.outcome

    def _install_recovery(self) -> None:
        with self.store.lock_base():
            install_recovery(self.store.base, call=self.call, unit_dir=self.unit_dir)

    @staticmethod
    def _step(name: str, action: Callable[[], None]) -> None:
        """Name the step in every error, whatever raised it."""
        try:
            action()
        except TransactionError as error:
            error.step = error.step or name
            raise
        except Exception as error:  # an undo is owed for whatever goes wrong
            raise TransactionError(f"{type(error).__name__}: {error}", step=name) from error

    def _fail(self, error: TransactionError, since: float) -> None:
        """Undo, and raise with the reason and the end of the journal."""
        phase = self.record["phase"]
        journal = self.journal(since) if phase in _SERVICES_TOUCHED else ""
        message = f"{error.step}: {error}"
        troubles = undo(self.store, self.record, message, call=self.call)
        if troubles:
            message += f". AND THE UNDO IS NOT COMPLETE: {'; '.join(troubles)}"
        raise TransactionError(
            message,
            step=error.step,
            undone=phase != "staging" and not troubles,
            half_done=bool(troubles),
            journal=journal,
        ) from error

    def _swap(self, changes: list) -> None:
        timer = f"edgesec-nanomq-undo-{self.store.name}-{self.record['id'][-6:]}"
        self.record["timers"].append(timer)
        self.store.save_record(self.record)
        arm(timer, WORK_LIMIT, self.store, self.record["id"], self.call)
        self._phase("swapping")
        self._retire()
        for (entry, _before, _change), item in zip(changes, self.record["files"]):
            if entry.state == "absent":
                remove(entry.dest)
            elif entry.state != "directory" and lookup(item["staged"])["kind"] != "absent":
                os.rename(item["staged"], entry.dest)
        for path in {os.path.dirname(entry.dest) for entry, _before, _change in changes}:
            fsync_dir(path)

    def _retire(self) -> None:
        """Stop and disable the services whose units go, while the units are there to say how."""
        for service in self.record["services"]:
            if service["retired"] and service["before"]["active"]:
                systemctl(self.call, "stop", service["name"])
            if service["retired"] and service["before"]["enabled"]:
                systemctl(self.call, "disable", service["name"])

    def _activate_new(self, changes: list) -> None:
        self._phase("activating")
        if self.record["units"]:
            systemctl(self.call, "daemon-reload")
        self._enable()
        for service in self._taking_up(changes):
            self._activate(service)

    def _enable(self) -> None:
        """Set right which services start at boot."""
        for service in self.services:
            enabled = service_state(service.name, self.call)["enabled"]
            if service.enabled is not None and enabled != service.enabled:
                systemctl(self.call, "enable" if service.enabled else "disable", service.name)

    def _activate(self, service: Service) -> None:
        """Let a service take up the files."""
        if service.state == "stopped":
            systemctl(self.call, "stop", service.name)
        elif service.on_change == "reload" and service_state(service.name, self.call)["running"]:
            start(self.call, service.name, "reload")
        else:
            start(self.call, service.name, "restart")

    def _run_probe(self) -> None:
        self._phase("probing")
        failing = self._failing()
        if failing:
            raise TransactionError("; ".join(failing))

    # commit

    def _commit(self) -> None:
        if not self.confirm_within:
            self._phase("committed")
            try:
                self.outcome.generation = finish(self.store, self.record, self.call)
            except OSError as error:  # it holds already, so it is not undone: what is left is tidying up
                self.outcome.notes.append(f"committed; the next run will tidy up: {error}")
            return
        # The second timer is armed before the first is stopped: there is no moment without one.
        first = list(self.record["timers"])
        timer = f"{first[0]}-confirm"
        self.record["timers"].append(timer)
        self._phase("unconfirmed")
        arm(timer, self.confirm_within, self.store, self.record["id"], self.call)
        disarm({"timers": first}, self.call)
        self.outcome.unconfirmed = True


def confirm(name: str, identity: str, *, state_dir: str = STATE_DIR, call=run) -> int | None:
    """Commit a transaction that waits for its confirmation. Raises where it is no longer there to be confirmed."""
    store = Store(name, state_dir)
    with store.lock():
        record = store.record()
        if record is None or record["id"] != identity or record["phase"] not in ("unconfirmed", "committed"):
            last = store.last()
            if last.get("id") == identity and last.get("result") == "committed":
                return None
            raise TransactionError(
                f"transaction {identity} is no longer open: {last.get('reason', '')}", step="confirm"
            )
        record["phase"] = "committed"
        store.save_record(record)
        return finish(store, record, call)


def main(argv: list[str] | None = None, *, call=run) -> int:
    """The program of the timer and of the boot unit."""
    parser = argparse.ArgumentParser(description="Undo a change to NanoMQ or its guards that was not finished.")
    parser.add_argument("--state-dir", default=STATE_DIR)
    parser.add_argument("--name", help="the transaction's name; all of them when left out")
    parser.add_argument("--id", help="undo only if this very transaction is still open")
    parser.add_argument("--boot", action="store_true", help="leave the services to the boot")
    args = parser.parse_args(argv)
    failed = 0
    there = os.listdir(args.state_dir) if os.path.isdir(args.state_dir) else []
    names = [args.name] if args.name else sorted(there)
    for name in names:
        store = Store(name, args.state_dir)
        if not os.path.isdir(store.path):
            continue
        try:
            with store.lock(wait=600):
                record = store.record()
                if record is None or (args.id and record["id"] != args.id):
                    continue
                reason = "the host restarted" if args.boot else "nobody confirmed or finished it in time"
                done = recover(store, reason, boot=args.boot, call=call)
                print(f"{name}: {done} ({reason})")  # pylint: disable=ansible-bad-function  # there is no module here
        except (TransactionError, OSError) as error:  # the other transactions are owed their undo all the same
            print(f"{name}: {error}", file=sys.stderr)  # pylint: disable=ansible-bad-function
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())  # pylint: disable=ansible-bad-function
