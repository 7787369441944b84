# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Faults at each step by which a file system is changed: a process that dies there, a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess

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


_Popen, _run = subprocess.Popen, subprocess.run


@contextlib.contextmanager
def interposed(monkeypatch, before, *, processes=False):
    """Within, ``before(name, arguments)`` is called before each step on the file system.

    With ``processes`` also before a program is started, and before the answer of one is taken that has ended.
    """

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

        def start(command, **options):
            before("process", (command, options))
            return _Popen(command, **options)

        def run(command, *, check=False, **options):
            done = _run(command, check=check, **options)
            before("processed", (command, options))
            return done

        if processes:
            patch.setattr(subprocess, "Popen", start)
            patch.setattr(subprocess, "run", run)
        yield


def tear(name, arguments):
    """Do half of a step, where there is a half of it."""
    if name == "write":
        descriptor, data = arguments
        os.write(descriptor, data[: len(data) // 2])
    elif name == "process" and "git" in arguments[0]:
        # It dies at the first file of which it wants to write more than that: a reference, a pack.
        command, options = arguments
        kept = {key: value for key, value in options.items() if key in ("cwd", "env")}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        _Popen(["prlimit", "--fsize=20", *command], **kept, **quiet).wait()


def run_cut(monkeypatch, limit, action, *, processes=False):
    """Run ``action`` in a child that dies, as by kill -9, at its step number ``limit``; say whether it died."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            count = 0

            def die(name, arguments):
                nonlocal count
                if processes and name == "open" and not arguments[1] & os.O_CREAT:
                    # With programs there are many; and what is on the disk is what the next step finds there.
                    return
                if count == limit:
                    tear(name, arguments)
                    os._exit(9)
                count += 1

            with interposed(monkeypatch, die, processes=processes):
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
