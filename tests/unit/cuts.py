# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Faults at each step by which a file system is changed: a process that dies there, a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import io
import os

#: Everything by which a file system is changed; and ``write``, to a file that os.fdopen opened.
STEPS = (
    "chmod",
    "fchmod",
    "fchown",
    "fsync",
    "link",
    "mkdir",
    "open",
    "rename",
    "replace",
    "rmdir",
    "symlink",
    "unlink",
)


@contextlib.contextmanager
def interposed(monkeypatch, before):
    """Within, ``before(name, arguments)`` is called before each step on the file system."""

    class File(io.FileIO):
        def write(self, data):
            before("write", (self.fileno(), data))
            return super().write(data)

    fdopen = os.fdopen

    def opened(descriptor, mode="r", *arguments, **options):
        return File(descriptor, mode) if mode == "wb" else fdopen(descriptor, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        for name in STEPS:
            original = getattr(os, name)

            def step(*arguments, name=name, original=original, **options):
                before(name, arguments)
                return original(*arguments, **options)

            patch.setattr(os, name, step)
        patch.setattr(os, "fdopen", opened)
        yield


def tear(name, arguments):
    """Do half of a step, where there is a half of it."""
    if name == "write":
        descriptor, data = arguments
        os.write(descriptor, data[: len(data) // 2])


def run_cut(monkeypatch, limit, action):
    """Run ``action`` in a child that dies, as by kill -9, at its step number ``limit``; say whether it died."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            count = 0

            def die(name, arguments):
                nonlocal count
                if count == limit:
                    tear(name, arguments)
                    os._exit(9)
                count += 1

            with interposed(monkeypatch, die):
                action()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def run_full(monkeypatch, limit, action):
    """Run ``action``; its step number ``limit`` finds the disk full, unless it is one that frees space.

    Returns the error that came out, or None. Opening for reading is spared; renaming is not: a directory may grow.
    """
    count = 0

    def fail(name, arguments):
        nonlocal count
        if name in ("unlink", "rmdir") or (name == "open" and not arguments[1] & os.O_CREAT):
            return
        count += 1
        if count - 1 == limit:
            tear(name, arguments)
            raise OSError(errno.ENOSPC, "No space left on device")

    try:
        with interposed(monkeypatch, fail):
            action()
    except OSError as error:
        return error
    return None
