"""What the broker makes of its configuration: defaults, then environment, then file, then command line.

Every reader below ignores a value of the wrong type and keeps the default, without a word, as the broker does.
Where it would be more sensible to complain, do not: those silences are what the collection guards against.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from . import dialect
from .dialect import Crash

DEFAULT_TCP = "nmq-tcp://0.0.0.0:1883"
DEFAULT_TLS = "tls+nmq-tcp://0.0.0.0:8883"
DEFAULT_WS = "nmq-ws://0.0.0.0:8083/mqtt"
DEFAULT_WSS = "nmq-wss://0.0.0.0:8086/mqtt"
FALLBACK_FILE = "/etc/nanomq.conf"
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal")
CPUS = os.cpu_count() or 1


@dataclass
class Tls:
    enable: bool = False
    url: str | None = None
    keyfile: str | None = None
    certfile: str | None = None
    cafile: str | None = None
    key_password: str | None = None
    verify_peer: bool = False
    fail_if_no_peer_cert: bool = False
    key: str | None = None
    cert: str | None = None
    ca: str | None = None


@dataclass
class Websocket:
    enable: bool = False
    tls_enable: bool = False
    url: str | None = None
    tls_url: str | None = None


@dataclass
class HttpServer:
    enable: bool = False
    port: int = 8081
    ip_addr: str | None = None
    username: str | None = None
    password: str | None = None
    auth_type: str = "basic"
    limit_conn: int = 32
    max_body: int = 1024 * 1024
    issuer: str | None = None
    public_key: str | None = None


@dataclass
class Auth:
    enable: bool = True
    users: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Log:
    to_file: bool = False
    level: str = "warn"
    dir: str | None = None
    file: str | None = None


@dataclass
class Rule:
    """One rule of the ACL; `kind` None applies to everybody."""

    permit: str
    action: str
    topics: list[str | None]
    kind: str | None
    parts: list[tuple[str, str | None]]


@dataclass
class Topics:
    """An entry of a bridge's forwards or subscription."""

    local: str
    remote: str
    prefix: str | None = None
    suffix: str | None = None
    qos: int | None = None


@dataclass
class Bridge:
    server: str | None = None
    clientid: str | None = None
    username: str | None = None
    password: str | None = None
    keepalive: int = 60
    enable: bool = True
    tls: Tls = field(default_factory=Tls)
    forwards: list[Topics] = field(default_factory=list)
    subscription: list[Topics] = field(default_factory=list)


@dataclass
class Webhook:
    enable: bool = False
    url: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    events: list[tuple[str, str | None]] = field(default_factory=list)


@dataclass
class HttpAuth:
    """What is asked about logins."""

    enable: bool = False
    url: str | None = None
    method: str = "POST"
    headers: list[tuple[str, str]] = field(default_factory=list)
    params: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Config:
    conf_file: str | None = None
    enable: bool = True
    url: str | None = None
    tcp_urls: list[str] = field(default_factory=list)
    daemon: bool = False
    num_taskq_thread: int = 2 * CPUS
    max_taskq_thread: int = 2 * CPUS
    parallel: int = 2 * CPUS
    property_size: int = 32
    max_packet_size: int = 10240 * 1024
    client_max_packet_size: int = 10240 * 1024
    msq_len: int = 1024
    qos_duration: int = 10
    keepalive_backoff: float = 1.5
    allow_anonymous: bool = True
    no_match: str = "allow"
    deny_action: str = "ignore"
    ipc_internal: bool = True
    hook_ipc_url: str | None = None
    cmd_ipc_url: str | None = None
    tls: Tls = field(default_factory=Tls)
    tls_nodes: list[Tls] = field(default_factory=list)
    websocket: Websocket = field(default_factory=Websocket)
    http_server: HttpServer = field(default_factory=HttpServer)
    auth: Auth = field(default_factory=Auth)
    acl_enable: bool = False
    acl_rules: list[Rule] = field(default_factory=list)
    auth_http: dict[str, Any] = field(default_factory=lambda: _auth_http({}, enable=False))
    sqlite: dict[str, Any] = field(default_factory=lambda: _sqlite(None))
    bridges: list[dict[str, Any]] = field(default_factory=list)
    links: list[Bridge] = field(default_factory=list)
    webhook: Webhook = field(default_factory=Webhook)
    asked: HttpAuth = field(default_factory=HttpAuth)
    nng_urls: list[str] = field(default_factory=list)
    log: Log = field(default_factory=Log)
    warnings: list[str] = field(default_factory=list)

    def add_default_listeners(self) -> None:
        """What is opened although nobody asked for it."""
        if self.enable and not self.tcp_urls:
            self.url = self.url or DEFAULT_TCP
        if self.tls.enable and not self.tls_nodes:
            self.tls.url = self.tls.url or DEFAULT_TLS
        if self.websocket.enable:
            self.websocket.url = self.websocket.url or DEFAULT_WS
        if self.tls.enable and self.websocket.tls_enable:
            self.websocket.tls_url = self.websocket.tls_url or DEFAULT_WSS


def read_environment(config: Config) -> None:
    """Take over the `NANOMQ_*` variables; the file is read later and wins."""
    http, ws, tls = config.http_server, config.websocket, config.tls
    for target, name, variable in (
        (config, "url", "BROKER_URL"),
        (ws, "url", "WEBSOCKET_URL"),
        (ws, "tls_url", "WEBSOCKET_TLS_URL"),
        (http, "ip_addr", "HTTP_SERVER_URL"),
        (http, "username", "HTTP_SERVER_USERNAME"),
        (http, "password", "HTTP_SERVER_PASSWORD"),
        (tls, "url", "TLS_URL"),
        (tls, "keyfile", "TLS_KEY_PATH"),
        (tls, "certfile", "TLS_CERT_PATH"),
        (tls, "cafile", "TLS_CA_CERT_PATH"),
        (tls, "key_password", "TLS_KEY_PASSWORD"),
        (config, "conf_file", "CONF_PATH"),
        (config.log, "dir", "LOG_DIR"),
        (config.log, "file", "LOG_FILE"),
    ):
        value = os.environ.get(f"NANOMQ_{variable}")
        if value is not None:
            setattr(target, name, value)
    for target, name, variable in (
        (config, "enable", "TCP_ENABLE"),
        (config, "daemon", "DAEMON"),
        (config, "allow_anonymous", "ALLOW_ANONYMOUS"),
        (ws, "enable", "WEBSOCKET_ENABLE"),
        (ws, "tls_enable", "WEBSOCKET_TLS_ENABLE"),
        (http, "enable", "HTTP_SERVER_ENABLE"),
        (tls, "enable", "TLS_ENABLE"),
        (tls, "verify_peer", "TLS_VERIFY_PEER"),
        (tls, "fail_if_no_peer_cert", "TLS_FAIL_IF_NO_PEER_CERT"),
    ):
        value = os.environ.get(f"NANOMQ_{variable}")
        if value is not None:
            setattr(target, name, value.lower() in ("true", "yes"))
    port = os.environ.get("NANOMQ_HTTP_SERVER_PORT")
    if port is not None:
        http.port = int(port) if port.isdecimal() else 0
    if os.environ.get("NANOMQ_HTTP_SERVER_AUTH_TYPE", "").lower() in ("basic", "jwt"):
        http.auth_type = os.environ["NANOMQ_HTTP_SERVER_AUTH_TYPE"].lower()
    tls.key, tls.cert, tls.ca = _load(tls.keyfile), _load(tls.certfile), _load(tls.cafile)


def read_file(config: Config, version: tuple[int, ...]) -> None:
    """Read `config.conf_file`, else the fallback. A file missing or unreadable is mentioned, and the defaults stay."""
    path = next((path for path in (config.conf_file, FALLBACK_FILE) if path and os.path.exists(path)), None)
    if path is None:
        print(f"Configure file [{config.conf_file}] or [{FALLBACK_FILE}] not found or unreadable", file=sys.stderr)
        return
    try:
        value = dialect.parse_file(path)
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.stderr)
    else:
        read_value(config, value, version)


def read_value(config: Config, root: object, version: tuple[int, ...]) -> None:
    """Take over the value of a whole configuration file."""
    _read_system(config, _get(root, "system"))
    _read_auth_switches(config, _get(root, "auth"))
    _read_mqtt(config, _get(root, "mqtt"))
    listeners = _get(root, "listeners")
    if listeners is not None:
        _read_listeners(config, listeners)
    http = _get(root, "http_server")
    if http is not None:
        _read_http_server(config.http_server, http, version)
    config.sqlite = _sqlite(_get(root, "sqlite"))
    _read_log(config, _get(root, "log"))
    _read_auth(config, _get(root, "auth"))
    _read_bridges(config, _get(_get(root, "bridges"), "mqtt"))
    _read_webhook(config.webhook, _get(root, "webhook"))
    if version >= (0, 24, 14):
        _read_nng(config, _get(_get(root, "bridges"), "nng"))


def _get(value: object, key: str) -> Any:
    """Member `key`, in whatever case it is written; None where there is none."""
    if isinstance(value, dict):
        for name, child in value.items():
            if name.lower() == key.lower():
                return child
    return None


def _children(value: object) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return [("", item) for item in value] if isinstance(value, list) else []


def _string(target: Any, name: str, source: object, key: str | None = None, prefix: str = "") -> None:
    value = _get(source, key or name)
    if isinstance(value, str):
        setattr(target, name, prefix + value)


def _boolean(target: Any, name: str, source: object, key: str | None = None) -> None:
    value = _get(source, key or name)
    if isinstance(value, bool):
        setattr(target, name, value)


def _number(target: Any, name: str, source: object, key: str | None = None, bits: int | None = None) -> None:
    value = _get(source, key or name)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        setattr(target, name, value if isinstance(getattr(target, name), float) else int(value) % 2 ** (bits or 64))


def _choice(target: Any, name: str, source: object, choices: tuple[str, ...]) -> None:
    value = _get(source, name)
    if isinstance(value, str) and value.lower() in choices:
        setattr(target, name, value.lower())


def _seconds(text: object, default: int = 0) -> int:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    digits = len(str(text)) - len(str(text).lstrip("0123456789"))
    if isinstance(text, str) and digits and text[digits : digits + 1] in units:
        return int(text[:digits]) * units[text[digits]]
    return default


def _bytes(value: object, default: int) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value:
        return int(value)
    if not isinstance(value, str) or "-" in value:
        return default
    digits = len(value) - len(value.lstrip("0123456789"))
    units = {"": 1, "B": 1, "K": 2**10, "KB": 2**10, "M": 2**20, "MB": 2**20, "G": 2**30, "GB": 2**30}
    unit = value[digits:].strip().upper()
    return int(value[:digits]) * units[unit] if digits and unit in units else default


def _load(path: str | None) -> str | None:
    """Content of a file; None where it is missing, empty or unreadable."""
    try:
        with open(path or "", "rb") as file:
            return file.read().decode("utf-8", "surrogateescape") or None
    except OSError:
        return None


def _read_system(config: Config, source: object) -> None:
    _boolean(config, "daemon", source)
    _boolean(config, "ipc_internal", source, "enable_ipc_internal")
    for name in ("num_taskq_thread", "max_taskq_thread", "parallel"):
        _number(config, name, source)
    _string(config, "hook_ipc_url", source)
    _string(config, "cmd_ipc_url", source)


def _read_auth_switches(config: Config, source: object) -> None:
    _choice(config, "no_match", source, ("allow", "deny"))
    _choice(config, "deny_action", source, ("ignore", "disconnect"))
    _boolean(config, "allow_anonymous", source)
    _boolean(config.auth, "enable", source)


def _read_mqtt(config: Config, source: object) -> None:
    if source is None:
        return
    _number(config, "property_size", source)
    config.max_packet_size = _bytes(_get(source, "max_packet_size"), config.max_packet_size)
    config.client_max_packet_size = config.max_packet_size
    _number(config, "msq_len", source, "max_mqueue_len")
    _number(config, "keepalive_backoff", source, "keepalive_multiplier")
    interval = _get(source, "retry_interval")
    if isinstance(interval, str):
        config.qos_duration = _seconds(interval)


def _read_listeners(config: Config, source: object) -> None:
    config.enable = False
    tcp = _get(source, "tcp")
    if tcp is not None:
        _string(config, "url", tcp, "bind", "nmq-tcp://")
        # `enable = false` is read, and overruled at once.
        config.enable = True
    for _name, node in _children(tcp):
        bind = _get(node, "bind")
        if isinstance(bind, str):
            config.tcp_urls.append(f"nmq-tcp://{bind}")
    ws = _get(source, "ws")
    config.websocket.enable = ws is not None
    if ws is None:
        config.warnings.append("WARN  conf_basic_parse_ver2: Read websocket config failed!")
    _string(config.websocket, "url", ws, "bind", "nmq-ws://")
    _string(config.websocket, "tls_url", _get(source, "wss"), "bind", "nmq-wss://")
    config.websocket.tls_enable = True
    ssl = _get(source, "ssl")
    _read_tls(config, config.tls, ssl)
    for _name, node in _children(ssl):
        tls = Tls()
        _read_tls(config, tls, node)
        if tls.url is not None:
            config.tls_nodes.append(tls)


def _read_tls(config: Config, tls: Tls, source: object) -> None:
    _string(tls, "url", source, "bind", "tls+nmq-tcp://")
    if tls.url is None or source is None:
        return
    tls.enable = True
    _boolean(tls, "enable", source)
    for name, key in (("keyfile", None), ("certfile", None), ("cafile", "cacertfile"), ("key_password", None)):
        _string(tls, name, source, key)
    _boolean(tls, "verify_peer", source)
    _boolean(tls, "fail_if_no_peer_cert", source)
    for name, path, content in (
        ("key", tls.keyfile, "keyfile"),
        ("cert", tls.certfile, "certfile"),
        ("ca", tls.cafile, "cacertfile"),
    ):
        setattr(tls, name, _load(path))
        if getattr(tls, name) is None:
            config.warnings.append(f"WARN  conf_tls_parse_ver2_base: Read {content} {path or '(null)'} failed!")


def _client_tls(source: object) -> Tls:
    """The TLS block of a connection that the broker opens itself; there is no verification to ask for."""
    tls = Tls()
    if source is not None:
        tls.enable = True
        _boolean(tls, "enable", source)
        for name, key in (("keyfile", None), ("certfile", None), ("cafile", "cacertfile"), ("key_password", None)):
            _string(tls, name, source, key)
        tls.key, tls.cert, tls.ca = _load(tls.keyfile), _load(tls.certfile), _load(tls.cafile)
    return tls


def _read_http_server(http: HttpServer, source: object, version: tuple[int, ...]) -> None:
    http.enable = True
    _number(http, "port", source, bits=16)
    _number(http, "limit_conn", source)
    _number(http, "max_body", source)
    _string(http, "username", source)
    _string(http, "password", source)
    if version >= (0, 23, 1):
        _string(http, "ip_addr", source)
    _choice(http, "auth_type", source, ("basic", "jwt", "no_auth"))
    keyfile = _get(_get(_get(source, "jwt"), "public"), "keyfile")
    if isinstance(keyfile, str):
        http.public_key = _load(keyfile)
        if http.public_key is not None:
            http.issuer = os.path.basename(keyfile)


def _read_log(config: Config, source: object) -> None:
    if source is None:
        return
    log = config.log
    targets = [name for _key, name in _children(_get(source, "to"))]
    log.to_file = "file" in targets
    level = _get(source, "level")
    log.level = level.lower() if isinstance(level, str) and level.lower() in LEVELS else "error"
    _string(log, "dir", source)
    _string(log, "file", source)


def _read_auth(config: Config, source: object) -> None:
    http = _get(source, "http_auth")
    if http is not None:
        for request in ("auth_req", "super_req", "acl_req"):
            if _get(http, request) is not None and not isinstance(_get(_get(http, request), "method"), str):
                raise Crash(f"auth.http_auth.{request} without a method")
        config.auth_http = _auth_http(http, enable=True)
        asked, request = config.asked, _get(http, "auth_req")
        asked.enable = config.auth_http["enable"] and isinstance(_get(request, "url"), str)
        _string(asked, "url", request)
        _string(asked, "method", request)
        asked.headers, asked.params = _texts(_get(request, "headers")), _texts(_get(request, "params"))
    users = _get(source, "password")
    if users is not None:
        config.auth.enable = True
        _boolean(config.auth, "enable", users)
        config.auth.users += [(name, value) for name, value in _children(users) if isinstance(value, str)]
    acl = _get(source, "acl")
    if acl is not None:
        config.acl_enable = True
        _boolean(config, "acl_enable", acl, "enable")
        rules = _get(acl, "rules")
        config.acl_rules = [rule for rule in map(_rule, rules if isinstance(rules, list) else []) if rule]


def _rule(source: object) -> Rule | None:
    """None where the rule is dropped: an unknown permit or action."""
    permit, action = _get(source, "permit"), _get(source, "action")
    if permit not in ("allow", "deny"):
        return None
    if not isinstance(action, str):
        action = "pubsub"
    if action not in ("pubsub", "publish", "subscribe"):
        return None
    topics = _get(source, "topics")
    topics = [topic if isinstance(topic, str) else None for topic in topics] if isinstance(topics, list) else []
    for name in ("ipaddr", "ipaddrs", "username", "clientid"):
        part = _subject(source, name)
        if part:
            return Rule(permit, action, topics, "or", [part])
    for kind in ("and", "or"):
        parts = _get(source, kind)
        if isinstance(parts, list):
            subjects = ("clientid", "username", "ipaddr", "ipaddrs")
            found = [next(filter(None, (_subject(part, name) for name in subjects)), None) for part in parts]
            return Rule(permit, action, topics, kind, [part for part in found if part])
    return Rule(permit, action, topics, None, [])


def _subject(source: object, name: str) -> tuple[str, str | None] | None:
    """`(what, value)`: value "#" is anybody, None nobody (a list of addresses never matches)."""
    value = _get(source, name)
    if name == "ipaddrs":
        return ("ipaddr", None) if isinstance(value, list) else None
    return (name, value) if isinstance(value, str) else None


def _read_bridges(config: Config, source: object) -> None:
    for name, node in _children(source):
        if name.lower() == "cache":
            continue
        config.bridges.append({"name": name, "source": node})
        bridge = Bridge(tls=_client_tls(_get(node, "ssl")))
        for key in ("server", "clientid", "username", "password"):
            _string(bridge, key, node)
        _boolean(bridge, "enable", node)
        bridge.keepalive = _seconds(_get(node, "keepalive"), 60)
        bridge.forwards, bridge.subscription = _topics(node, "forwards"), _topics(node, "subscription")
        config.links.append(bridge)


def _topics(source: object, key: str) -> list[Topics]:
    """Entries without both topics are dropped."""
    found = []
    for _name, node in _children(_get(source, key)):
        local, remote, qos = _get(node, "local_topic"), _get(node, "remote_topic"), _get(node, "qos")
        if isinstance(local, str) and isinstance(remote, str):
            found.append(Topics(local, remote, qos=int(qos) if qos in (0, 1, 2) else None))
            _string(found[-1], "prefix", node)
            _string(found[-1], "suffix", node)
    return found


def _texts(source: object) -> list[tuple[str, str]]:
    return [(name, value) for name, value in _children(source) if isinstance(value, str)]


def _read_webhook(webhook: Webhook, source: object) -> None:
    if source is None:
        return
    webhook.enable = True
    _boolean(webhook, "enable", source)
    _string(webhook, "url", source)
    if webhook.url is None:
        raise Crash("webhook without an url")
    webhook.headers = _texts(_get(source, "headers"))
    for _name, node in _children(_get(source, "events")):
        event, topic = _get(node, "event"), _get(node, "topic")
        if isinstance(event, str):
            webhook.events.append((event, topic if isinstance(topic, str) else None))


def _read_nng(config: Config, source: object) -> None:
    """Bridges to NNG: each of them is a listener."""
    for kind in ("pub", "sub"):
        for _name, node in _children(_get(source, kind)):
            url, clientid = _get(node, f"{kind}_url"), _get(node, "clientid")
            if not isinstance(url, str) or not isinstance(clientid, str):
                raise Crash(f"bridges.nng.{kind} without address or name")
            config.nng_urls.append(url)


def _sqlite(source: object) -> dict[str, Any]:
    def number(key: str, default: int) -> int:
        value = _get(source, key)
        return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else default

    path = _get(source, "mounted_file_path")
    return {
        "enable": source is not None,
        "disk_cache_size": number("disk_cache_size", 102400),
        "flush_mem_threshold": number("flush_mem_threshold", 100),
        "resend_interval": 0,
        "mounted_file_path": path if isinstance(path, str) else None,
    }


def tls_view(tls: Tls) -> dict[str, Any]:
    """A TLS section as the REST interface shows it: private key and passphrase included."""
    return {
        "enable": tls.enable,
        "url": tls.url,
        "key_password": tls.key_password,
        "key": tls.key,
        "cert": tls.cert,
        "cacert": tls.ca,
        "verify_peer": tls.verify_peer,
        "fail_if_no_peer_cert": tls.fail_if_no_peer_cert,
    }


def credentials(http: HttpServer) -> tuple[str, str]:
    """User and password of the REST interface."""
    return (
        "admin" if http.username is None else http.username,
        "public" if http.password is None else http.password,
    )


def sections(config: Config) -> dict[str, Any]:
    """The configuration as GET /api/v4/configuration shows it, secrets included."""
    http, ws = config.http_server, config.websocket
    username, password = credentials(http)
    return {
        "basic": {
            "url": config.url,
            "num_taskq_thread": config.num_taskq_thread,
            "max_taskq_thread": config.max_taskq_thread,
            "parallel": config.parallel,
            "property_size": config.property_size,
            "daemon": config.daemon,
            "max_packet_size": config.max_packet_size // 1024,
            "client_max_packet_size": config.client_max_packet_size // 1024,
            "msq_len": config.msq_len,
            "qos_duration": config.qos_duration,
            "keepalive_backoff": config.keepalive_backoff,
            "allow_anonymous": config.allow_anonymous,
            "ipc_internal": config.ipc_internal,
        },
        "tls": tls_view(config.tls),
        "auth": [{"login": name, "password": password} for name, password in config.auth.users],
        "auth_http": config.auth_http,
        "websocket": {"enable": ws.enable, "tls_enable": ws.tls_enable, "url": ws.url, "tls_url": ws.tls_url},
        "http_server": {
            "enable": http.enable,
            "port": http.port,
            "addr": http.ip_addr,
            "username": username,
            "password": password,
            "auth_type": "jwt" if http.auth_type == "jwt" else "basic",
        },
        "sqlite": config.sqlite,
        "bridge": {"nodes": [_bridge(bridge["name"], bridge["source"]) for bridge in config.bridges]},
    }


def _bridge(name: str, source: object) -> dict[str, Any]:
    """A bridge as REST shows it, its password and private key included, and whether it is on or not."""

    def number(node: object, key: str, default: int) -> int:
        value = _get(node, key)
        return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else default

    def text(node: object, key: str) -> str | None:
        value = _get(node, key)
        return value if isinstance(value, str) else None

    def switch(node: object, key: str) -> bool:
        value = _get(node, key)
        return value if isinstance(value, bool) else True

    def properties(node: object, numbers: dict[str, int], texts: tuple[str, ...] = ()) -> dict[str, Any]:
        own = [{"key": key, "value": value} for key, value in _children(_get(node, "user_property"))]
        return {
            **{key: number(node, key, default) for key, default in numbers.items()},
            **{key: text(node, key) for key in texts if text(node, key) is not None},
            **({"user_properties": own} if own else {}),
        }

    def topics(key: str, least: int) -> list[dict[str, Any]]:
        found = []
        for _name, node in _children(_get(source, key)):
            entry = {part: text(node, part) for part in ("prefix", "suffix", "remote_topic", "local_topic")}
            if entry["remote_topic"] is None or entry["local_topic"] is None:
                continue
            qos = _get(node, "qos")
            if least >= 0:
                entry["qos"] = number(node, "qos", least)
            elif qos in (0, 1, 2) and not isinstance(qos, bool):
                entry["qos"] = int(qos)
            found.append({part: value for part, value in entry.items() if value is not None})
        return found

    interval = _get(source, "keepalive")
    version = number(source, "proto_ver", 4)
    server = text(source, "server")
    connector = {
        **({} if server is None else {"server": server}),
        "proto_ver": version,
        "clientid": text(source, "clientid"),
        "clean_start": switch(source, "clean_start"),
        "username": text(source, "username"),
        "password": text(source, "password"),
        "keepalive": _seconds(interval) if isinstance(interval, str) else 60,
    }
    view = {
        "name": name,
        "enable": switch(source, "enable"),
        "parallel": number(source, "max_parallel_processes", 2),
        "connector": connector,
        "forwards": topics("forwards", -1),
        "subscription": topics("subscription", 0),
    }
    if version == 5:
        _version_5(source, view, properties)
    return {**view, "tls": tls_view(_client_tls(_get(source, "ssl")))}


def _version_5(source: object, view: dict[str, Any], properties: Any) -> None:
    """What REST shows of a bridge that speaks MQTT 5 alone."""
    conn, will = _get(source, "conn_properties"), _get(source, "will")
    if conn is not None:
        numbers = {
            "session_expiry_interval": 0,
            "receive_maximum": 65535,
            "maximum_packet_size": 0,
            "topic_alias_maximum": 0,
        }
        shown = properties(conn, numbers)
        # In the file these two lack a letter.
        for name, default in (("request_response", 0), ("request_problem", 1)):
            value = _get(conn, f"{name}_infomation")
            shown[f"{name}_information"] = bool(value if isinstance(value, int) and value > 0 else default)
        view["connector"]["conn_properties"] = shown
    inner = _get(will, "properties")
    if inner is not None and isinstance(_get(will, "payload"), str) and isinstance(_get(will, "topic"), str):
        view["connector"]["will_properties"] = properties(
            inner,
            {"payload_format_indicator": 0, "message_expiry_interval": 0, "will_delay_interval": 0},
            ("content_type", "response_topic", "correlation_data"),
        )
    sub = _get(source, "sub_properties")
    if sub is not None:
        view["sub_properties"] = properties(sub, {"identifier": 2**32 - 1})


def _auth_http(source: object, *, enable: bool) -> dict[str, Any]:
    def request(node: object) -> dict[str, Any]:
        method = _get(node, "method")
        if isinstance(method, str) and method.upper() not in ("GET", "POST"):
            method = "POST"
        return {
            "url": _get(node, "url"),
            "method": method,
            "headers": dict(_children(_get(node, "headers"))),
            "params": [name for name, _value in _children(_get(node, "params"))],
            "tls": tls_view(_client_tls(_get(node, "ssl"))),
        }

    switch, pool = _get(source, "enable"), _get(source, "pool_size")
    return {
        "enable": switch if isinstance(switch, bool) else enable,
        "timeout": _seconds(_get(source, "timeout"), 5),
        "connect_timeout": _seconds(_get(source, "connect_timeout"), 5),
        "pool_size": pool if isinstance(pool, int) and pool > 0 else 32,
        "cache_ttl": _seconds(_get(source, "cache_ttl"), 0),
        **{name: request(_get(source, name)) for name in ("auth_req", "acl_req", "super_req")},
    }
