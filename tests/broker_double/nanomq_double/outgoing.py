"""What the broker opens itself: bridges to other brokers, the webhook, and the server that is asked about logins."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from . import acl, sp
from .config import Bridge, HttpAuth, Webhook
from .wire import encode_length

_RETRY_SECONDS = 1
_DIAL_SECONDS = 10
_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _SUBSCRIBE, _PINGREQ = 1, 2, 3, 4, 8, 12
Deliver = Callable[[Bridge, str, bytes, int], Awaitable[None]]


def no_trust() -> ssl.SSLContext:
    """Context of a connection for which nobody sets up TLS: it trusts no CA, and so nobody."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def bridge_context(bridge: Bridge) -> ssl.SSLContext:
    """Context of a bridge. With a block `ssl` it takes any certificate, its CA or not."""
    context = no_trust()
    if bridge.tls.enable:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if bridge.tls.cert and bridge.tls.key:
            context.load_cert_chain(bridge.tls.certfile, bridge.tls.keyfile, password=bridge.tls.key_password or "")
    return context


class Link:
    """A bridge that is on: it connects, again and again, and exchanges messages in both directions."""

    def __init__(self, bridge: Bridge, deliver: Deliver) -> None:
        self._bridge = bridge
        self._deliver = deliver
        self._writer: asyncio.StreamWriter | None = None
        self._identifier = 0

    @property
    def leads_anywhere(self) -> bool:
        """Whether its server is one that it can connect to; other transports are not played."""
        server = self._bridge.server or ""
        # A plain one with a block `ssl` fails to set up TLS, and is given up.
        return server.startswith("tls+mqtt-tcp://") or (
            server.startswith("mqtt-tcp://") and not self._bridge.tls.enable
        )

    async def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
                await self._exchange()
            self._writer = None
            await asyncio.sleep(_RETRY_SECONDS)

    def forward(self, topic: str, payload: bytes, qos: int) -> None:
        """Pass a message on that a client has published; while the other end is away it is lost."""
        if self._writer is None:
            return
        for entry in self._bridge.forwards:
            if acl.covers(entry.local, topic):
                name = (entry.prefix or "") + (entry.remote or topic) + (entry.suffix or "")
                qos = min(qos if entry.qos is None else entry.qos, 1)
                identifier = struct.pack("!H", self._next()) if qos else b""
                self._send(_PUBLISH << 4 | qos << 1, _text(name) + identifier + payload)

    async def _exchange(self) -> None:
        parts = urlsplit(self._bridge.server)
        context = bridge_context(self._bridge) if parts.scheme.startswith("tls+") else None
        reader, self._writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
        writer, self._writer = self._writer, None
        try:
            writer.write(self._connect())
            head, body = await _packet(reader)
            if head >> 4 != _CONNACK or body[1]:
                return
            self._writer = writer
            for entry in self._bridge.subscription:
                self._send(_SUBSCRIBE << 4 | 2, struct.pack("!H", self._next()) + _text(entry.remote) + b"\1")
            async with asyncio.TaskGroup() as group:
                ping = group.create_task(self._ping())
                await self._receive(reader)
                ping.cancel()
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        while True:
            head, body = await _packet(reader)
            if head >> 4 != _PUBLISH:
                continue
            size = struct.unpack("!H", body[:2])[0]
            topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
            qos = head >> 1 & 3
            if qos:
                self._send(_PUBACK << 4, rest[:2])
                rest = rest[2:]
            for entry in self._bridge.subscription:
                if acl.covers(entry.remote, topic):
                    name = (entry.prefix or "") + (entry.local or topic) + (entry.suffix or "")
                    await self._deliver(self._bridge, name, rest, qos)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self._bridge.keepalive / 2)
            self._send(_PINGREQ << 4, b"")

    def _connect(self) -> bytes:
        bridge = self._bridge
        flags = 0x02 | (0x80 if bridge.username else 0) | (0x40 if bridge.password else 0)
        fields = [_text(value) for value in (bridge.username, bridge.password) if value]
        # The first bit of the level says that a bridge connects; servers of today know it.
        head = _text("MQTT") + bytes((0x84, flags)) + struct.pack("!H", bridge.keepalive)
        body = head + _text(bridge.clientid or "nanomq-bridge") + b"".join(fields)
        return bytes((_CONNECT << 4,)) + encode_length(len(body)) + body

    def _send(self, head: int, body: bytes) -> None:
        if self._writer is not None:
            self._writer.write(bytes((head,)) + encode_length(len(body)) + body)

    def _next(self) -> int:
        self._identifier = self._identifier % 65535 + 1
        return self._identifier


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readexactly(1))[0]
    size, shift = 0, 0
    while True:
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80 or shift > 21:
            return head, await reader.readexactly(size)


def _text(value: str) -> bytes:
    return struct.pack("!H", len(value.encode())) + value.encode()


# --- HTTP -------------------------------------------------------------------------------------------------------------


async def _post(url: str, method: str, headers: list[tuple[str, str]], body: bytes, *, waits: bool = True) -> int:
    """Status of the answer, 0 if nobody waits for it; OSError where nobody answers, or TLS is asked for."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=no_trust() if secure else None)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in [*headers, ("Content-Length", str(len(body)))]]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        return int((await reader.readline()).split()[1]) if waits else 0
    finally:
        writer.close()


class Hook:
    """The webhook: events are sent, no answer is waited for, and what does not arrive is lost.

    They take the way by a socket, at which others may hand in some as well, or listen instead.
    """

    def __init__(self, webhook: Webhook, url: str | None) -> None:
        self._webhook = webhook
        self._url = url or "ipc:///tmp/nanomq_hook.ipc"
        self._socket: sp.End | None = None
        self._sending: set[asyncio.Task] = set()

    async def start(self) -> None:
        """Raises `OSError` where whoever listens says nothing."""
        with contextlib.suppress(OSError):
            await sp.listen(self._url, self._take)
        self._socket = await sp.connect(self._url)
        try:
            await asyncio.wait_for(self._socket.greet(sp.PUSH, sp.PULL), _DIAL_SECONDS)
        except TimeoutError as error:
            raise OSError("hook nng_dial: Timed out") from error

    def connected(self, clientid: str, username: str | None) -> None:
        if any(event == "on_client_connack" for event, _topic in self._webhook.events):
            self._send(
                proto_ver=4,
                keepalive=60,
                conn_ack="success",
                username=username or "undefined",
                clientid=clientid,
                action="client_connack",
            )

    def published(self, topic: str, payload: bytes, qos: int, clientid: str, username: str | None) -> None:
        wanted = (pattern for event, pattern in self._webhook.events if event == "on_message_publish")
        if any(pattern is None or acl.covers(pattern, topic) for pattern in wanted):
            self._send(
                ts=int(time.time() * 1000),
                topic=topic,
                retain=False,
                qos=qos,
                action="message_publish",
                from_username=username or "undefined",
                from_client_id=clientid,
                payload=payload.decode("utf-8", "replace"),
            )

    def _send(self, **event: Any) -> None:
        self._socket.send(json.dumps(event, separators=(",", ":")).encode())

    async def _take(self, end: sp.End) -> None:
        """What comes from one who hands in events."""
        await end.greet(sp.PULL, sp.PUSH)
        while True:
            task = asyncio.ensure_future(self._post(await end.receive()))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _post(self, event: bytes) -> None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            await _post(self._webhook.url, "POST", self._webhook.headers, event, waits=False)


async def may_connect(auth: HttpAuth, client: acl.Client, password: str | None) -> bool:
    """Whether the server that is asked lets a client in: with 200 it does, with anything else, or none, not."""
    values = {"%u": client.username, "%c": client.clientid, "%P": password, "%a": client.ipaddr, "%r": "MQTT"}
    fields = [(name, values.get(mark)) for name, mark in auth.params]
    form = "&".join(f"{name}={quote(value, safe='')}" for name, value in fields if value is not None)
    try:
        return await _post(auth.url, auth.method, list(_form(auth.headers)), form.encode()) == 200
    except (OSError, ValueError, IndexError):
        return False


def _form(headers: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    kind = "application/x-www-form-urlencoded"
    for name, value in headers:
        if name.lower() == "content-type":
            kind = value
        else:
            yield name, value
    yield "Content-Type", kind
