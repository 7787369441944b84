# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files that are whole or absent, and that never exist with more access than they end with.

Standard library only. Paths are absolute ``str``. A FileProblem names the path and says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator

#: Keys and certificates are small. A bigger file is not one of ours, and must not fill the memory of a device.
SIZE_LIMIT = 256 * 1024

OTHERS_CAN_WRITE = stat.S_IWGRP | stat.S_IWOTH


class FileProblem(Exception):
    """A file or directory is not as it must be; nothing has been changed."""


def fsync_dir(path: str) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: str, data: bytes, *, mode: int, uid: int = -1, gid: int = -1) -> None:
    """Create ``path``, which must not exist, and write ``data`` through to the disk.

    The file is born 0600 and gets its owner, then its mode, while still empty: at no time can anybody read it who may
    not read it in the end. ``uid`` or ``gid`` of -1 leaves that of the running user. The directory is not synced.
    Raises FileExistsError, or any other OSError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        # Owner first: chown clears set-id bits, and the group must not read before it is the right group.
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
        handle.write(data)
        handle.flush()
        os.fsync(descriptor)


def write_atomic(path: str, data: bytes, *, mode: int, uid: int = -1, gid: int = -1) -> None:
    """Put ``data`` at ``path`` so that any reader, and any power cut, sees the old content or the new, whole.

    See write_new for owner and mode. A symbolic link at ``path`` is replaced, not followed.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}")
    try:
        write_new(temporary, data, mode=mode, uid=uid, gid=gid)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_dir(directory)


def link_atomic(target: str, path: str) -> None:
    """Point the symbolic link ``path`` at ``target`` in one step; the old target is in force until then."""
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}")
    try:
        os.symlink(target, temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_dir(directory)


def read_regular(path: str, *, private: bool = False, limit: int = SIZE_LIMIT) -> bytes:
    """Return the content of a regular file, read without following a link at its last component.

    ``private``: the file holds a secret, so it must belong to the running user or root and be closed to group and
    others. ``limit``: bytes. Raises FileNotFoundError, or FileProblem.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise FileProblem(f"{path} {reason}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FileProblem(f"{path} is not a regular file")
        if private:
            check_private(path, found)
        with os.fdopen(descriptor, "rb", closefd=False) as handle:
            data = handle.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        what = ", so it is no key or certificate" if limit == SIZE_LIMIT else ""
        raise FileProblem(f"{path} is larger than {limit} bytes{what}")
    return data


def check_private(path: str, found: os.stat_result) -> None:
    """Raise FileProblem unless ``found`` (the stat of ``path``) is closed to everybody but its trusted owner."""
    if found.st_uid not in _trusted_users():
        raise FileProblem(f"{path} belongs to user id {found.st_uid}, neither to root nor to the user who runs this")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FileProblem(
            f"{path} is open to group or others (mode {stat.S_IMODE(found.st_mode):04o}): its secret may have been"
            " read. Replace it, or close it (chmod go=) if you know that nobody has"
        )


def check_parents(path: str) -> None:
    """Raise FileProblem unless only root and the running user can put something else in the place of ``path``.

    Every existing component, ``path`` included, must be a real directory (no symbolic link), belong to root or to the
    running user, and be writable by neither group nor others. A sticky directory such as /tmp is accepted above
    ``path``: nobody can rename there what is not theirs. Missing components are not looked at.
    """
    if not os.path.isabs(path) or os.path.normpath(path) != path.rstrip("/"):
        raise FileProblem(f"{path} must be an absolute path without '.', '..' or doubled slashes")
    parts = path.rstrip("/").split("/")
    for depth in range(1, len(parts) + 1):
        component = "/".join(parts[:depth]) or "/"
        try:
            found = os.lstat(component)
        except FileNotFoundError:
            return
        except OSError as error:
            raise FileProblem(f"{component} cannot be examined: {error.strerror}") from error
        check_directory(component, found, sticky_allowed=depth < len(parts))


def check_directory(path: str, found: os.stat_result, *, sticky_allowed: bool = False) -> None:
    """Raise FileProblem unless ``found`` (the lstat of ``path``) is a directory under nobody else's control."""
    if stat.S_ISLNK(found.st_mode):
        raise FileProblem(f"{path} is a symbolic link: name the real directory, so that nobody can point it elsewhere")
    if not stat.S_ISDIR(found.st_mode):
        raise FileProblem(f"{path} is not a directory")
    if found.st_uid not in _trusted_users():
        raise FileProblem(f"{path} belongs to user id {found.st_uid}, who could replace what is in it; give it to root")
    if found.st_mode & OTHERS_CAN_WRITE and not (sticky_allowed and found.st_mode & stat.S_ISVTX):
        raise FileProblem(
            f"{path} is writable by its group or by others (mode {stat.S_IMODE(found.st_mode):04o}), who could replace"
            " what is in it; close it with chmod go-w"
        )


def check_vault(path: str) -> bool:
    """Check a directory of secrets on the controller, and say whether it exists.

    It must be a real directory of the running user (or root) that group and others cannot enter. Directories above it
    are the operator's own business: a home directory is often writable by its group. A link among them must be theirs.
    Raises FileProblem.
    """
    if not os.path.isabs(path):
        raise FileProblem(f"{path} must be an absolute path")
    _check_links(os.path.dirname(path))
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileProblem(f"{path} cannot be examined: {error.strerror}") from error
    check_directory(path, found)
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FileProblem(
            f"{path} is open to group or others (mode {stat.S_IMODE(found.st_mode):04o}), and it holds private keys;"
            " close it with chmod 0700"
        )
    return True


def _check_links(path: str) -> None:
    """Raise FileProblem when a component of ``path`` is a symbolic link that somebody else can point elsewhere."""
    while path not in ("/", ""):
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode) and found.st_uid not in _trusted_users():
                raise FileProblem(
                    f"{path} is a symbolic link of user id {found.st_uid}, who can point it elsewhere: name the real"
                    " directory"
                )
        path = os.path.dirname(path)


def make_directories(path: str, *, mode: int, parent_mode: int = 0o755) -> bool:
    """Create ``path`` with ``mode`` and what is missing above it with ``parent_mode``; say whether it was created.

    Neither mode is changed by the umask. An existing directory is left as it is.
    """
    if os.path.isdir(path):
        return False
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        make_directories(parent, mode=parent_mode, parent_mode=parent_mode)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if os.path.isdir(path):  # another process was faster
            return False
        raise
    os.chmod(path, mode)
    fsync_dir(parent)
    return True


@contextlib.contextmanager
def locked(directory: str, *, patience: float) -> Iterator[None]:
    """Hold the lock on a directory, against other processes of this machine that ask for it.

    It belongs to the process, so that a killed one leaves none behind. Raises FileProblem after ``patience`` seconds.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise FileProblem(
                        f"{directory} is held by another run for more than {patience:g} s: wait for it, or find it"
                        f" with: fuser -v {directory}"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _trusted_users() -> set[int]:
    return {0, os.geteuid()}
