"""The HTTP side: `/api/v4` with Basic or JWT authentication, as open-handed as the real one.

One credential is everything here: configuration with its secrets, reload, stop. Some requests kill the broker;
that is part of the contract.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from . import acl, dialect, jwt
from .broker import Broker
from .config import Config, credentials, sections
from .endpoints import ENDPOINTS
from .sockets import listening_socket

ROOT = "/api/v4"
HEAD_LIMIT = 8192
RPC_ERROR, UNKNOWN, BAD_PARAMETER, BAD_JSON, DISABLED, BAD_HOCON = 101, 102, 108, 109, 111, 117
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}

Reply = tuple[int, Any]


class Died(Exception):
    """The real broker does not outlive this request."""


def _shared_file(path: str) -> str | None:
    """The text of a file that everybody may read, of a folder in the working directory. The real one asks less."""
    folder = os.path.realpath("dist")
    file = os.path.realpath(f"dist/{path}")
    if not file.startswith(f"{folder}/") or not os.path.isfile(file):
        return None
    with open(file, encoding="utf-8", errors="surrogateescape") as stream:
        return stream.read()


class Rest:
    """REST server of `broker`; `die` ends the process with exit code 1, `command` is how it was started."""

    def __init__(self, config: Config, broker: Broker, version: str, command: list[str], die: Callable) -> None:
        self._config = config
        self._broker = broker
        self._version = f"{version}-8"
        self._command = command
        self._die = die
        self._started = time.monotonic()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Open the port; `OSError` where that cannot be done."""
        http = self._config.http_server
        host = http.ip_addr or "0.0.0.0"
        if host.count(":") and not host.startswith("["):
            raise OSError("Address invalid")
        self._server = await asyncio.start_server(
            self._serve, sock=listening_socket(f"http://{host}:{http.port or 8081}"), limit=HEAD_LIMIT
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
            pass
        except Died:
            self._die()
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection may stay."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        # A request line of other than three words ends the connection.
        method, target, protocol = head[0].split(" ")
        headers = {
            name.strip().lower(): value.strip() for name, _colon, value in (line.partition(":") for line in head[1:])
        }
        size = headers.get("content-length", "0")
        homeless = protocol == "HTTP/1.1" and "host" not in headers
        if homeless or not size.isdecimal() or int(size) > self._config.http_server.max_body:
            await self._send(writer, 400, _page(400), "text/html; charset=UTF-8")
            return False
        # A chunked body is not understood: it counts as none, and as the next request.
        body = await reader.readexactly(int(size))
        path, _mark, query = re.sub("^http://[^/]*", "", target).partition("?")
        if path == ROOT or path.startswith(f"{ROOT}/"):
            status, answer = await self._answer(method, path, query, headers, body)
            text = answer if isinstance(answer, str) else json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
            kind = "application/json" if status == 200 else headers.get("content-type")
            await self._send(writer, status, text, "text/plain" if isinstance(answer, str) else kind)
        else:
            text = _shared_file(path) if method == "GET" else None
            status = 200 if text is not None else 404 if method == "GET" else 405
            await self._send(writer, status, text if status == 200 else _page(status), "text/html; charset=UTF-8")
        return headers.get("connection", "").lower() != "close"

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, status: int, text: str, kind: str | None) -> None:
        body = text.encode("utf-8", "surrogateescape")
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {len(body)}\r\n"
        if kind:
            head += f"Content-Type: {kind}\r\n"
        writer.write(head.encode("latin-1") + b"\r\n" + body)
        await writer.drain()

    async def _answer(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Reply:
        code = self._authorize(headers.get("authorization"))
        if code:
            return 401, {"code": code}
        steps = [step for step in path[len(ROOT) :].split("/") if step]
        handler = {"GET": self._get, "POST": self._post, "PUT": self._put, "DELETE": self._delete}.get(method)
        if handler is None:
            return 405, {"code": UNKNOWN}
        return await handler(steps, dict(parse_qsl(query)), body)

    def _authorize(self, header: str | None) -> int:
        http = self._config.http_server
        if http.auth_type == "jwt":
            return jwt.authorize(header, http.public_key, http.issuer)
        if http.auth_type == "no_auth":
            return 0
        if not header or not header.startswith("Basic ") or len(header) <= 6:
            return jwt.EMPTY
        token = header[6:]
        if len(token) < 4:
            return jwt.WRONG
        try:
            given = base64.b64decode(token, validate=True)
        except binascii.Error:
            return BAD_PARAMETER
        wanted = ":".join(credentials(http)).encode("utf-8", "surrogateescape")
        return 0 if given.partition(b"\0")[0] == wanted else jwt.WRONG

    # GET

    async def _get(self, steps: list[str], query: dict[str, str], _body: bytes) -> Reply:
        if not steps:
            return _data(ENDPOINTS)
        name, rest = steps[0], steps[1:]
        if name == "clients" and (len(rest) < 2 or (len(rest) == 2 and rest[0] == "username")):
            return self._clients(rest, query)
        if name == "subscriptions" and len(rest) < 2:
            return _data(self._subscriptions(rest[0] if rest else None))
        if name == "configuration" and len(rest) < 2:
            return self._configuration(rest[0] if rest else None)
        if name == "bridges" and len(rest) < 2:
            return _data({"bridge": sections(self._config)["bridge"]})
        if name == "rules" and len(rest) < 2:
            return 200, {"code": DISABLED}
        simple = {
            "brokers": self._brokers,
            "nodes": self._nodes,
            "metrics": self._metrics,
            "reload": self._reloadable,
            "prometheus": self._prometheus,
            "topic-tree": self._topic_tree,
        }
        if rest or name not in simple:
            return 404, {"code": UNKNOWN}
        return simple[name]()

    def _uptime(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 3600} Hours, {seconds // 60 % 60} minutes, {seconds % 60} seconds"

    def _brokers(self) -> Reply:
        return _data(
            [
                {
                    "datetime": time.strftime("%Y-%m-%d %H:%M:%S"),
                    "node_status": "Running",
                    "sysdescr": "NanoMQ Broker",
                    "uptime": self._uptime(),
                    "version": self._version,
                }
            ]
        )

    def _nodes(self) -> Reply:
        return _data(
            [
                {
                    "connections": len(self._broker.clients()),
                    "node_status": "Running",
                    "uptime": self._uptime(),
                    "version": self._version,
                }
            ]
        )

    def _clients(self, rest: list[str], query: dict[str, str]) -> Reply:
        known = {"clientid", "client_id", "username", "conn_state", "clean_start", "proto_name", "proto_ver"}
        if set(query) - known:
            return 400, {"code": BAD_PARAMETER}
        clientid = query.get("clientid", query.get("client_id", rest[0] if len(rest) == 1 else None))
        username = query.get("username", rest[1] if len(rest) == 2 else None)
        return _data(
            [
                {
                    "client_id": session.client_id,
                    "username": session.username or "",
                    "keepalive": session.keep_alive,
                    "conn_state": "connected",
                    "clean_start": session.clean_session,
                    "proto_name": "MQTT",
                    "proto_ver": 4,
                }
                for session in self._broker.clients()
                if clientid in (None, session.client_id) and username in (None, session.username)
            ]
        )

    def _subscriptions(self, clientid: str | None) -> list[dict[str, Any]]:
        return [
            {"clientid": session.client_id, "topic": topic, "qos": qos}
            for topic, holders in self._broker.mqtt.subscriptions.items()
            for session, qos in holders
            if clientid in (None, session.client_id)
        ]

    def _topic_tree(self) -> Reply:
        topics: dict[str, list[str]] = {}
        for entry in self._subscriptions(None):
            topics.setdefault(entry["topic"], []).append(entry["clientid"])
        level = [{"topic": topic, "cld_cnt": 0, "clientid": clients} for topic, clients in topics.items()]
        return _data([[{"topic": "", "cld_cnt": len(level)}], level])

    def _metrics(self) -> Reply:
        return 200, {
            "metrics": [],
            "cpuinfo": "0.00%",
            "memory": str(_memory()),
            "connections": len(self._broker.clients()),
        }

    def _prometheus(self) -> Reply:
        clients, topics = len(self._broker.clients()), len(self._broker.mqtt.subscriptions)
        subscribers = len({entry["clientid"] for entry in self._subscriptions(None)})
        values = [
            ("connections_count", clients),
            ("connections_max", clients),
            ("sessions_count", clients),
            ("sessions_max", clients),
            ("topics_count", topics),
            ("topics_max", topics),
            ("subscribers_count", subscribers),
            ("subscribers_max", subscribers),
            ("messages_received", 0),
            ("messages_sent", 0),
            ("messages_dropped", 0),
            ("memory_usage", _memory()),
            ("memory_usage_max", _memory()),
            ("cpu_usage", "0.00"),
            ("cpu_usage_max", "0.00"),
        ]
        lines = []
        for name, value in values:
            kind = "counter" if name.startswith("messages") else "gauge"
            lines += [f"# TYPE nanomq_{name} {kind}", f"# HELP nanomq_{name}", f"nanomq_{name} {value}"]
        return 200, "\n".join(lines) + "\n"

    def _reloadable(self) -> Reply:
        basic = sections(self._config)["basic"]
        names = (
            "property_size",
            "max_packet_size",
            "client_max_packet_size",
            "msq_len",
            "qos_duration",
            "keepalive_backoff",
            "allow_anonymous",
        )
        return _data({**{name: basic[name] for name in names}, "enable_mqtt_stream": False, "bridge_mode": False})

    def _configuration(self, section: str | None) -> Reply:
        whole = sections(self._config)
        if section is None:
            return _data(whole)
        if section not in whole:
            return 404, {"code": RPC_ERROR, "data": {}}
        return _data({section: whole[section]})

    # POST

    async def _post(self, steps: list[str], _query: dict[str, str], body: bytes) -> Reply:
        name = "/".join(steps[:2])
        if name in ("ctrl/stop", "ctrl/restart"):
            asyncio.get_running_loop().call_later(2, self._control, steps[1])
            return 200, {"code": 0}
        if steps[:1] == ["ctrl"] and len(steps) == 2:
            return 404, {"code": RPC_ERROR}
        if name == "config_update":
            return self._config_update(body)
        if name == "mqtt/publish_batch":
            return await self._publish_batch(_json(body))
        request = _json(body)
        if name not in ("reload", "rules", "mqtt/publish") and steps[:1] != ["configuration"]:
            return 404, {"code": UNKNOWN}
        if not isinstance(request, dict):
            return 400, {"code": BAD_JSON}
        if name == "rules":
            return 200, {"code": DISABLED}
        if name == "mqtt/publish":
            return 200, {"code": await self._publish(request)}
        data = request.get("data")
        if name == "reload":
            self._set_basic(data)
        elif isinstance(data, dict):
            self._set_sections({key: value for key, value in data.items() if len(steps) < 2 or key == steps[1]})
        return 200, {"code": 0}

    async def _put(self, steps: list[str], _query: dict[str, str], _body: bytes) -> Reply:
        """Bridges are shown and not kept up here, and there is no rule engine."""
        if len(steps) == 2 and steps[0] in ("rules", "bridges"):
            return (200, {"code": DISABLED}) if steps[0] == "rules" else (400, {"code": BAD_PARAMETER})
        return 404, {"code": UNKNOWN}

    async def _delete(self, steps: list[str], _query: dict[str, str], _body: bytes) -> Reply:
        return (200, {"code": DISABLED}) if len(steps) == 2 and steps[0] == "rules" else (404, {"code": UNKNOWN})

    def _control(self, action: str) -> None:
        arguments = self._command[2:] if action == "restart" else []
        subprocess.Popen([sys.executable, self._command[0], action, *arguments])

    def _config_update(self, body: bytes) -> Reply:
        try:
            value = dialect.parse_text(body.decode("latin-1"))
        except (dialect.ParserError, dialect.Crash):
            print("Parser syntax error", file=sys.stderr, flush=True)
            raise Died from None
        if not isinstance(value, dict):
            return 400, {"code": BAD_HOCON}
        try:
            with open(self._config.conf_file or "", "wb") as file:
                file.write(body)
        except OSError:
            raise Died from None
        return 200, {"code": 0}

    async def _publish(self, message: dict[str, Any]) -> int:
        """Neither wildcards in the topic nor the QoS are checked."""
        topic, payload, qos = message.get("topic"), message.get("payload"), message.get("qos", 0)
        topics = [topic] if isinstance(topic, str) else str(message.get("topics") or "").split(",")
        if not any(topics) or not isinstance(payload, str):
            return BAD_PARAMETER
        data = base64.b64decode(payload) if message.get("encoding") == "base64" else payload.encode()
        # Whom the rules are asked for is what the message says of itself.
        client = acl.Client(message.get("clientid"), None, None)
        for topic in filter(None, topics):
            if not acl.may_use(self._config, client, "publish", topic):
                continue
            await self._broker.publish(topic, data, qos if isinstance(qos, int) else 0, message.get("retain") is True)
        return 0

    async def _publish_batch(self, messages: object) -> Reply:
        if not isinstance(messages, list):
            return 400, {"code": BAD_JSON}
        results = [
            {"topic": message.get("topics", message.get("topic")), "code": await self._publish(message)}
            for message in messages
        ]
        return 200, {"data": results, "code": 0}

    def _set_sections(self, data: dict[str, Any]) -> None:
        self._set_basic(data.get("basic"))
        self._set_http(data.get("http_server"))
        if isinstance(data.get("auth"), list):
            users = [(user.get("username"), user.get("password")) for user in data["auth"]]
            if not all(isinstance(name, str) and isinstance(word, str) for name, word in users):
                raise Died
            self._config.auth.users = users

    def _set_basic(self, data: object) -> None:
        if not isinstance(data, dict):
            return
        config = self._config
        if isinstance(data.get("allow_anonymous"), bool):
            config.allow_anonymous = data["allow_anonymous"]
        for name, factor in (
            ("property_size", 1),
            ("max_packet_size", 1024),
            ("client_max_packet_size", 1024),
            ("msq_len", 1),
            ("qos_duration", 1),
            ("keepalive_backoff", 1),
        ):
            value = data.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                setattr(config, name, value * factor)

    def _set_http(self, data: object) -> None:
        """Change the credentials of this very interface; a new port is noted only."""
        if not isinstance(data, dict):
            return
        http = self._config.http_server
        if any(isinstance(data.get(name), str) and getattr(http, name) is None for name in ("username", "password")):
            # It frees its built-in default, which was never allocated.
            raise Died
        for name, kind in (("enable", bool), ("port", int), ("username", str), ("password", str)):
            if isinstance(data.get(name), kind):
                setattr(http, name, data[name])
        if data.get("auth_type") in ("basic", "jwt"):
            http.auth_type = data["auth_type"]


def _data(value: Any) -> Reply:
    return 200, {"code": 0, "data": value}


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _page(status: int) -> str:
    return f"<!DOCTYPE html>\n<html><head><title>{status} {REASONS[status]}</title></head></html>"


def _memory() -> int:
    """Resident memory in bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
