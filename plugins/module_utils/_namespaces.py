# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Namespaces: run a program as it would run after the change, where it can touch nothing.

Programs are asked about a staged set in a child with a mount table of its own, where the staged files lie over those
in force, and mostly with a network of its own too. All of it ends with the child.
Sources: namespaces(7), mount_namespaces(7), mount(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import tempfile
from collections.abc import Callable, Iterable

from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import TransactionError

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_PR_SET_PDEATHSIG = 1


def in_namespaces(action: Callable[[], dict], *, network: bool = True) -> dict:
    """Run an action in a child with a mount table and a /tmp of its own, and a network unless told otherwise.

    It dies with this process. Returns what the action returns, which must be JSON, or {"error": what went wrong}.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            libc = ctypes.CDLL(None, use_errno=True)
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            result = {"error": "cannot make namespaces for a throw-away instance"}
            if libc.unshare(_CLONE_NEWNS | (_CLONE_NEWNET if network else 0)) == 0:
                libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None)
                libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, b"mode=1777,size=16m")
                if network:
                    _loopback_up()
                result = action()
            data = json.dumps(result).encode()
        except TransactionError as error:
            data = json.dumps({"error": str(error)}).encode()
        except BaseException as error:  # the child must never return into the caller's code
            data = json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        try:
            with os.fdopen(writer, "wb") as handle:
                handle.write(data)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as handle:
        data = handle.read()
    os.waitpid(child, 0)
    return json.loads(data) if data else {"error": "the throw-away instance was killed"}


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(sock, 0x8914, request)  # SIOCSIFFLAGS
    # The addresses of the host are not here, and a broker that is to listen on one of them must start all the same.
    for family in ("ipv4", "ipv6"):
        with contextlib.suppress(OSError), open(f"/proc/sys/net/{family}/ip_nonlocal_bind", "w") as handle:
            handle.write("1")


def overlay(directory: str, staged: dict[str, str], without: Iterable[str] = ()) -> None:
    """Inside `in_namespaces`: let a directory look as it will, to whatever is run in there.

    staged: {where a file will be: where it is now}; those elsewhere are left out
    without: the files that will be gone
    """
    copy = tempfile.mkdtemp(dir="/tmp")
    shutil.copytree(directory, copy, symlinks=True, dirs_exist_ok=True)
    os.chmod(copy, os.stat(directory).st_mode & 0o7777)
    for dest, path in [*staged.items(), *((gone, "") for gone in without)]:
        if not dest.startswith(directory + "/"):
            continue
        target = copy + dest[len(directory) :]
        # Behind a link out of the copy lies what is in force.
        if not (os.path.realpath(os.path.dirname(target)) + "/").startswith(os.path.realpath(copy) + "/"):
            raise TransactionError(f"the directory of {dest} is a symbolic link to another place")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        if path:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy2(path, target)
    mount(copy, directory)


def mount(source: str, target: str) -> None:
    """Inside `in_namespaces`: let a directory stand in another's place."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), None, _MS_BIND, None) != 0:
        raise TransactionError(f"cannot mount over {target}: {os.strerror(ctypes.get_errno())}")
