"""The sockets of the broker for processes of its own host: what it speaks there, spoken by any user.

The protocol is SP: both sides tell the kind of their end, then each message has its length before it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

#: Two users, neither of them root: the one the broker runs as, and somebody else.
SERVICE, OTHER = 65534, 65533
#: Kinds of ends.
REQUEST, REPLY, PUSH, PULL = 0x30, 0x31, 0x50, 0x51
_KEPT_OUT = 4

needs_a_second_user = pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")


def connected(address: str | tuple[str, int]) -> socket.socket:
    """A connection to a file, or to a host and port."""
    end = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    end.settimeout(5)
    try:
        end.connect(address)
    except OSError:
        end.close()
        raise
    return end


def greet(end: socket.socket, kind: int, other: int) -> None:
    """Tell what this end is. Raises ValueError where the one that answers is not what was expected."""
    end.sendall(_greeting(kind))
    if (answer := end.recv(8, socket.MSG_WAITALL)) != _greeting(other):
        raise ValueError(f"greeted with {answer!r}")


def _greeting(kind: int) -> bytes:
    return b"\0SP\0" + struct.pack("!HH", kind, 0)


def _mark(end: socket.socket) -> bytes:
    """What a message has before its length: nothing by TCP."""
    return b"\1" if end.family == socket.AF_UNIX else b""


def send(end: socket.socket, message: bytes) -> None:
    end.sendall(_mark(end) + struct.pack("!Q", len(message)) + message)


def receive(end: socket.socket) -> bytes:
    """The next message. Raises struct.error where the other end hangs up before it."""
    head = end.recv(len(_mark(end)) + 8, socket.MSG_WAITALL)
    (size,) = struct.unpack("!Q", head[len(_mark(end)) :])
    return end.recv(size, socket.MSG_WAITALL)


def as_user(user: int, call: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns that is called by another user. Raises PermissionError where it does."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            os.write(write, json.dumps(call(*arguments)).encode())
            code = 0
        except PermissionError:
            code = _KEPT_OUT
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == _KEPT_OUT:
        raise PermissionError(call.__name__)
    assert code == 0
    return json.loads(text)
