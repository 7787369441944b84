"""SP, which the parts of NanoMQ speak with each other and its commands with it, over the socket that a URL names.

Both ends tell what they are, then each message has its length before it: nng's ipc and tcp transports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

#: What an end is.
REQUEST, REPLY, PUSH, PULL = 0x30, 0x31, 0x50, 0x51
_IPC = "ipc://"


class End:
    """One end of a connection."""

    def __init__(self, url: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._prefix = b"\1" if url.startswith(_IPC) else b""
        self._reader = reader
        self._writer = writer

    async def greet(self, kind: int, other: int) -> None:
        """Tell what this is. Raises `OSError` where the other end is not what it should be."""
        self._writer.write(_greeting(kind))
        try:
            answer = await self._reader.readexactly(8)
        except asyncio.IncompleteReadError:
            answer = b""
        if answer != _greeting(other):
            raise ConnectionError("not the other end")

    def send(self, message: bytes) -> None:
        self._writer.write(self._prefix + struct.pack("!Q", len(message)) + message)

    async def receive(self) -> bytes:
        """The next message. Raises `asyncio.IncompleteReadError` where there is none any more."""
        await self._reader.readexactly(len(self._prefix))
        (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
        return await self._reader.readexactly(size)

    def close(self) -> None:
        self._writer.close()


def _greeting(kind: int) -> bytes:
    return b"\0SP\0" + struct.pack("!HH", kind, 0)


async def connect(url: str) -> End:
    if url.startswith(_IPC):
        return End(url, *await asyncio.open_unix_connection(url.removeprefix(_IPC)))
    parts = urlsplit(url)
    return End(url, *await asyncio.open_connection(parts.hostname, parts.port))


async def listen(url: str, serve: Callable[[End], Awaitable[None]]) -> None:
    """Serve all who connect, each until it is gone. Raises `OSError` where somebody else listens there."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = End(url, reader, writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await serve(end)
        end.close()

    if url.startswith(_IPC):
        await asyncio.start_unix_server(connected, sock=_bound(url.removeprefix(_IPC)))
    else:
        parts = urlsplit(url)
        await asyncio.start_server(connected, parts.hostname, parts.port)


def _bound(path: str) -> socket.socket:
    """A socket at a path. One that nobody listens to any more is put away."""
    with socket.socket(socket.AF_UNIX) as other, contextlib.suppress(FileNotFoundError):
        try:
            other.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
    own = socket.socket(socket.AF_UNIX)
    own.bind(path)
    return own
