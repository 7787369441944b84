"""Translation on the wire, for the MQTT library inside speaks 3.1.1 and its own manners.

Clients of MQTT 3.1 and 5 are served by rewriting their packets, as far as a security test needs it: properties
are dropped, reason codes added. Two manners of the real broker are put on every version: a client that is
turned away sees its connection close, without a CONNACK; a subscription that is denied gets 0x87.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from amqtt.adapters import ReaderAdapter, StreamWriterAdapter, WebSocketsWriter

CONNECT, CONNACK, PUBLISH, PUBACK, PUBCOMP, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, DISCONNECT = (
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    10,
    11,
    14,
)
DENIED = 0x87
# Of the CONNACK: shared and wildcard subscriptions and their identifiers, no topic alias, packets up to 10 MiB.
_CAPABILITIES = bytes.fromhex("0e2a01290128012200002700a00000")


class Peer:
    """What one connection speaks."""

    def __init__(self) -> None:
        self.level = 4
        self._filters: dict[bytes, int] = {}

    def incoming(self, head: int, body: bytes) -> bytes:
        """A packet of the client as MQTT 3.1.1."""
        kind = head >> 4
        if kind == CONNECT:
            body = self._connect(body)
        elif self.level == 5:
            body = self._incoming5(kind, head, body)
        return bytes([head]) + encode_length(len(body)) + body

    def outgoing(self, packet: bytes) -> bytes:
        """A packet of the library as the client expects it; empty where it is to see nothing."""
        kind, start = packet[0] >> 4, 1
        while packet[start] & 0x80:
            start += 1
        body = packet[start + 1 :]
        if kind == CONNACK and body[1]:
            return b""
        if kind == SUBACK:
            body = body[:2] + bytes(DENIED if code == 0x80 else code for code in body[2:])
        if self.level == 5:
            body = self._outgoing5(kind, packet[0], body)
        return packet[:1] + encode_length(len(body)) + body

    def _connect(self, body: bytes) -> bytes:
        name, rest = _field(body)
        # The first bit says that a bridge connects.
        self.level, flags, keepalive, rest = rest[0] & 0x7F, rest[1], rest[2:4], rest[4:]
        if self.level == 3 and name == b"\x00\x06MQIsdp":
            name = b"\x00\x04MQTT"
        elif self.level == 5:
            rest = _skip_properties(rest)
            client, rest = _field(rest)
            if flags & 0x04:
                rest = _skip_properties(rest)
            rest = client + rest
        level = 4 if self.level in (3, 5) else self.level
        return name + bytes([level, flags]) + keepalive + rest

    def _incoming5(self, kind: int, head: int, body: bytes) -> bytes:
        if kind == PUBLISH:
            topic, rest = _field(body)
            identifier, rest = (rest[:2], rest[2:]) if head & 0x06 else (b"", rest)
            return topic + identifier + _skip_properties(rest)
        if PUBACK <= kind <= PUBCOMP:
            return body[:2]
        if kind == SUBSCRIBE:
            filters = _filters(_skip_properties(body[2:]), options=True)
            return body[:2] + b"".join(name + bytes([option & 0x03]) for name, option in filters)
        if kind == UNSUBSCRIBE:
            filters = _filters(_skip_properties(body[2:]), options=False)
            self._filters[body[:2]] = len(filters)
            return body[:2] + b"".join(name for name, _option in filters)
        return b"" if kind == DISCONNECT else body

    def _outgoing5(self, kind: int, head: int, body: bytes) -> bytes:
        if kind == CONNACK:
            return body + _CAPABILITIES
        if kind == PUBLISH:
            topic, rest = _field(body)
            identifier, rest = (rest[:2], rest[2:]) if head & 0x06 else (b"", rest)
            return topic + identifier + b"\x00" + rest
        if kind == SUBACK:
            return body[:2] + b"\x00" + body[2:]
        if kind == UNSUBACK:
            return body + b"\x00" + bytes(self._filters.pop(body[:2], 1))
        return body


class Reader(ReaderAdapter):
    """Bytes of a client, packet by packet translated."""

    def __init__(self, stream: asyncio.StreamReader, peer: Peer) -> None:
        self._stream = stream
        self._peer = peer
        self._ready = bytearray()

    async def read(self, n: int = -1) -> bytes:
        if not self._ready:
            self._ready += await self._packet()
        while n > len(self._ready):
            self._ready += await self._packet()
        size = len(self._ready) if n < 0 else n
        data = bytes(self._ready[:size])
        del self._ready[:size]
        return data

    def feed_eof(self) -> None:
        self._stream.feed_eof()

    async def _packet(self) -> bytes:
        head = (await self._stream.readexactly(1))[0]
        size, shift = 0, 0
        while True:
            byte = (await self._stream.readexactly(1))[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80 or shift > 21:
                break
        body = await self._stream.readexactly(size)
        try:
            return self._peer.incoming(head, body)
        except IndexError:
            raise asyncio.IncompleteReadError(body, size) from None


class StreamWriter(StreamWriterAdapter):
    """Writer of a TCP or TLS connection."""

    def __init__(self, writer: asyncio.StreamWriter, peer: Peer) -> None:
        super().__init__(writer)
        self._peer = peer

    def write(self, data: bytes) -> None:
        super().write(self._peer.outgoing(data))


class WebsocketWriter(WebSocketsWriter):
    """Writer of a websocket."""

    def __init__(self, protocol: object, peer: Peer) -> None:
        super().__init__(protocol)
        self._peer = peer

    def write(self, data: bytes) -> None:
        super().write(self._peer.outgoing(data))


async def serve_stream(serve: Callable, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand a TCP or TLS connection to the library's `serve(reader, writer)`."""
    peer = Peer()
    try:
        await serve(Reader(reader, peer), StreamWriter(writer, peer))
    finally:
        writer.close()


async def serve_websocket(serve: Callable, socket: object) -> None:
    """Hand a websocket to the library's `serve(reader, writer)`."""
    peer, stream = Peer(), asyncio.StreamReader()

    async def pump() -> None:
        try:
            async for message in socket:
                stream.feed_data(message.encode() if isinstance(message, str) else message)
        finally:
            stream.feed_eof()

    pumping = asyncio.ensure_future(pump())
    try:
        await serve(Reader(stream, peer), WebsocketWriter(socket, peer))
    finally:
        pumping.cancel()


def encode_length(size: int) -> bytes:
    """The length that a packet has behind its first byte."""
    encoded = bytearray()
    while True:
        size, byte = size >> 7, size & 0x7F
        encoded.append(byte | (0x80 if size else 0))
        if not size:
            return bytes(encoded)


def _field(data: bytes) -> tuple[bytes, bytes]:
    """A counted field, its count included, and what follows it."""
    end = 2 + (data[0] << 8 | data[1])
    return data[:end], data[end:]


def _skip_properties(data: bytes) -> bytes:
    size, shift, index = 0, 0, 0
    while True:
        byte = data[index]
        index += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return data[index + size :]


def _filters(data: bytes, *, options: bool) -> list[tuple[bytes, int]]:
    found = []
    while data:
        name, data = _field(data)
        found.append((name, data[0] if options else 0))
        data = data[1:] if options else data
    return found
