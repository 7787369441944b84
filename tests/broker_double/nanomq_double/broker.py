"""The MQTT side: listeners as the real broker opens them, around the broker of amqtt."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from amqtt.broker import Broker as MqttBroker
from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin

from . import acl, outgoing, wire
from .config import Bridge, Config, Tls
from .sockets import listening_socket

_NETWORK = ("tcp://", "tls+tcp://", "ws://")
_ED25519 = bytes.fromhex("06032b6570")


class NanomqPlugin(BaseAuthPlugin, BaseTopicPlugin):
    """Decides by the configuration, which may change while the broker runs."""

    @dataclass
    class Config:
        pass

    rules: Any = None
    sessions: Any = None
    trace: Any = None
    links: Any = ()
    hook: Any = None

    async def authenticate(self, *, session: Any) -> bool:
        # What a client sends as its password is logged, right or wrong.
        self.trace(f"conn_param: username: {session.username}, password: {session.password}")
        if not acl.may_connect(self.rules, session.username, session.password):
            return False
        client = acl.Client(session.client_id, session.username, session.remote_address)
        return not self.rules.asked.enable or await outgoing.may_connect(self.rules.asked, client, session.password)

    async def on_broker_client_connected(self, *, client_id: str, client_session: Any) -> None:
        if self.hook:
            self.hook.connected(client_id, client_session.username)

    async def on_broker_message_received(self, *, client_id: str, message: Any) -> None:
        if message is None or not message.topic or not (self.links or self.hook):
            return
        session, _handler = self.sessions[client_id]
        client = acl.Client(client_id, session.username, session.remote_address)
        # What is denied goes out all the same where its sender stays.
        if self.rules.deny_action == "disconnect" or acl.may_use(self.rules, client, "publish", message.topic):
            if self.hook:
                self.hook.published(message.topic, bytes(message.data), message.qos, client_id, session.username)
            for link in self.links:
                link.forward(message.topic, bytes(message.data), message.qos)

    async def topic_filtering(self, *, session: Any = None, topic: str = "", action: Any = None) -> bool:
        if action == Action.RECEIVE:
            return True
        client = acl.Client(session.client_id, session.username, session.remote_address)
        publishes = action == Action.PUBLISH
        allowed = acl.may_use(self.rules, client, "publish" if publishes else "subscribe", topic)
        if publishes and not allowed and self.rules.deny_action == "ignore":
            # The names are the wrong way round: it is `disconnect` that ignores. The acknowledgement goes first.
            _session, handler = self.sessions[session.client_id]
            asyncio.get_running_loop().call_later(0.01, lambda: asyncio.ensure_future(_disconnect(handler.writer)))
        return allowed


async def _hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _disconnect(writer: Any) -> None:
    """Turn a client away as MQTT 5 does, in whatever version it speaks."""
    if writer is not None:
        writer.write(bytes((0xE0, 2, 0x80, 0)))
        await writer.drain()
        await writer.close()


class Broker:
    """The broker of `config`; `start` raises `OSError` where a listener cannot be opened."""

    def __init__(self, config: Config, trace: Callable[[str], None]) -> None:
        self._config = config
        NanomqPlugin.rules = config
        NanomqPlugin.trace = staticmethod(trace)
        self.mqtt = MqttBroker(
            {
                "listeners": {"default": {"type": "external", "bind": "none"}},
                "plugins": {f"{__name__}.NanomqPlugin": {}},
            }
        )
        NanomqPlugin.sessions = self.mqtt.sessions
        self._serve = partial(self.mqtt.external_connected, listener_name="default")
        self._servers: list[Any] = []
        NanomqPlugin.links = [outgoing.Link(bridge, self._deliver) for bridge in config.links if bridge.enable]
        NanomqPlugin.hook = outgoing.Hook(config.webhook, config.hook_ipc_url) if config.webhook.enable else None
        self._running: list[asyncio.Task] = []

    async def start(self) -> None:
        if NanomqPlugin.hook:
            await NanomqPlugin.hook.start()
        await self.mqtt.start()
        config = self._config
        if config.enable:
            for url in [config.url, *config.tcp_urls]:
                if url:
                    await self._listen(url, None)
        if config.websocket.enable:
            await self._listen_websocket(config.websocket.url, None)
        for tls in config.tls_nodes:
            await self._listen(tls.url, tls)
        if config.tls.enable:
            if config.tls.url:
                await self._listen(config.tls.url, config.tls)
            if config.websocket.tls_enable:
                await self._listen_websocket(config.websocket.tls_url, config.tls)

        for url in config.nng_urls:
            if url.startswith(_NETWORK):
                # It listens; what would be exchanged there is not played.
                server = await asyncio.start_server(_hang_up, sock=listening_socket(url))
                self._servers.append(server)

        self._running = [asyncio.ensure_future(link.run()) for link in NanomqPlugin.links if link.leads_anywhere]

    async def _deliver(self, bridge: Bridge, topic: str, payload: bytes, qos: int) -> None:
        """Hand over what a bridge brings, if the rules for topics let the user of the bridge publish it."""
        client = acl.Client(bridge.clientid or "", bridge.username, "127.0.0.1")
        if acl.may_use(self._config, client, "publish", topic):
            await self.publish(topic, payload, qos, False)

    def clients(self) -> list[Any]:
        """Sessions of the clients that are connected."""
        return [
            session
            for session, handler in self.mqtt.sessions.values()
            if session.transitions.state == "connected" and handler.reader is not None
        ]

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        await self.mqtt.internal_message_broadcast(topic, payload, min(qos, 2))
        if retain:
            await self.mqtt.retain_message(None, topic, payload, min(qos, 2))

    async def _listen(self, url: str, tls: Tls | None) -> None:
        if urlsplit(url).path:
            raise OSError("Address invalid")
        serve = partial(wire.serve_stream, self._serve)
        self._servers.append(
            await asyncio.start_server(serve, sock=listening_socket(url), ssl=tls and server_context(tls))
        )

    async def _listen_websocket(self, url: str, tls: Tls | None) -> None:
        # The import costs 60 ms, and most configurations have no websocket.
        from websockets.asyncio.server import serve

        parts = urlsplit(url)

        def check(connection: Any, request: Any) -> Any:
            host = request.headers.get("Host", "").rpartition(":")[0] or request.headers.get("Host", "")
            if request.path.partition("?")[0] != parts.path or (parts.hostname != "0.0.0.0" and host != parts.hostname):
                return connection.respond(404, "Not Found")
            return None

        self._servers.append(
            await serve(
                partial(wire.serve_websocket, self._serve),
                sock=listening_socket(url),
                process_request=check,
                subprotocols=["mqtt"],
                ssl=tls and server_context(tls),
                compression=None,
            )
        )


def server_context(tls: Tls) -> ssl.SSLContext:
    """Context of a TLS listener. Bad material is no error: the listener opens, and every handshake fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Old suites too, as long as they are of TLS 1.2.
    context.set_ciphers("DEFAULT:AES128-SHA:@SECLEVEL=0")
    if tls.verify_peer and tls.fail_if_no_peer_cert:
        context.verify_mode = ssl.CERT_REQUIRED
    try:
        if tls.cert and not _is_ed25519(tls.cert):
            context.load_cert_chain(tls.certfile, tls.keyfile, password=tls.key_password or "")
        if tls.ca:
            context.load_verify_locations(tls.cafile)
    except (OSError, ValueError):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return context


def _is_ed25519(pem: str) -> bool:
    body = re.search("-----BEGIN CERTIFICATE-----(.*?)-----END", pem, re.S)
    try:
        return bool(body) and _ED25519 in base64.b64decode(body.group(1))
    except ValueError:
        return False
