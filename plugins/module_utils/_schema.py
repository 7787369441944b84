# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every key of nanomq.conf, and what is wrong with a configuration.

The broker ignores what it does not understand: an unknown key, a quoted boolean or a misspelt enumeration leaves the
(insecure) default in force without a word. So nothing is written that this schema does not know.

A configuration is a nested dict that mirrors nanomq.conf. The key of a block whose children the user names is written
``<name>``, the elements of an array ``[]``: ``bridges.mqtt.<name>.forwards[].qos``.

Source: NanoNNG, src/supplemental/nanolib/conf_ver2.c, and trials on NanoMQ 0.25.6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

INT_MAX = 2**31 - 1
UINT8, UINT16, UINT32 = 2**8 - 1, 2**16 - 1, 2**32 - 1


@dataclass(frozen=True)
class Key:
    """One key of nanomq.conf.

    path: ``section.<name>.list[].key``
    type: bool, int, float, port, size, time, time_ms, str, affix, param, bind, address, mqtt_url, ipc_url, rule_sql or
        enum
    default: what the broker uses when the key is absent; a text where that is computed, None for nothing
    unit: of a bare number (``bytes``, ``ms``, ``s``)
    since: first version that reads the key; None: older than any supported version
    apply: ``reload`` (taken over by ``nanomq reload``, from `reload_since` on) or ``restart``
    secret: the value must never be shown
    """

    path: str
    type: str
    default: object = None
    choices: tuple = ()
    minimum: int = 1
    maximum: int = INT_MAX
    unit: str = ""
    since: str | None = None
    apply: str = "restart"
    reload_since: str | None = None
    secret: bool = False
    note: str = ""


@dataclass(frozen=True)
class Problem:
    """What is wrong at `path`. Never holds a value, since that might be a secret."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


# --- the keys ---------------------------------------------------------------------------------------------------------

_LEVELS = ("trace", "debug", "info", "warn", "error", "fatal")
_EVENTS = (
    "on_client_connect",
    "on_client_connack",
    "on_client_connected",
    "on_client_disconnected",
    "on_client_subscribe",
    "on_client_unsubscribe",
    "on_session_subscribed",
    "on_session_unsubscribed",
    "on_session_terminated",
    "on_message_publish",
    "on_message_delivered",
    "on_message_acked",
)
_QUIC = "needs a build with QUIC"
_RULES = "needs a build with the rule engine"


def _keys(prefix: str, *rows: tuple, **common) -> list[Key]:
    """Keys under `prefix` from rows of (name, type, default, {more fields})."""
    keys = []
    for name, kind, *rest in rows:
        default = rest[0] if rest else None
        more = rest[1] if len(rest) > 1 else {}
        keys.append(Key(f"{prefix}.{name}", kind, default, **{**common, **more}))
    return keys


def _tls(prefix: str, **common) -> list[Key]:
    """The keys every TLS block has."""
    return _keys(
        prefix,
        ("enable", "bool", True),
        ("keyfile", "str", None, {"note": "PEM; RSA or EC, Ed25519 is refused by the broker"}),
        ("certfile", "str", None, {"note": "PEM; the leaf first, then its chain"}),
        ("cacertfile", "str"),
        ("key_password", "str", None, {"secret": True}),
        **common,
    )


def _tls_listener(prefix: str, **common) -> list[Key]:
    return [
        *_keys(prefix, ("bind", "bind", None, {"note": "without it no listener is opened"}), **common),
        *_tls(prefix, **common),
        *_keys(
            prefix,
            ("verify_peer", "bool", False),
            ("fail_if_no_peer_cert", "bool", False, {"note": "has an effect only together with verify_peer"}),
            **common,
        ),
    ]


def _http_request(prefix: str) -> list[Key]:
    return [
        *_keys(
            prefix,
            ("url", "str"),
            ("method", "enum", None, {"choices": ("GET", "POST"), "note": "required: the broker crashes without it"}),
            ("headers.<name>", "str", None, {"secret": True}),
            (
                "params.<name>",
                "param",
                None,
                {
                    "note": "%u user, %P password, %c client id, %a address, %p port, %t topic, %A access, "
                    "%r protocol, %C common name, %d subject, %m mount point"
                },
            ),
        ),
        *_tls(prefix + ".ssl"),
    ]


def _qos(**more) -> dict:
    return {"minimum": 0, "maximum": 2, **more}


def _bridge_connector(prefix: str, **common) -> list[Key]:
    return [
        *_keys(
            prefix,
            ("server", "str", None, {"note": "required: the broker exits without it"}),
            ("enable", "bool", True),
            ("proto_ver", "int", 4, {"minimum": 3, "maximum": 5, "note": "3: MQTT 3.1, 4: 3.1.1, 5: 5.0"}),
            ("clientid", "str"),
            ("keepalive", "time", "60s", {"maximum": UINT16}),
            ("backoff_max", "time", "5s", {"maximum": UINT16}),
            ("clean_start", "bool", True),
            ("retry_qos_0", "bool"),
            ("no_local_v4", "bool", True),
            ("transparent", "bool", False),
            ("username", "str"),
            ("password", "str", None, {"secret": True, "note": "GET /api/v4/bridges shows it in clear"}),
            **common,
        ),
        *_tls(prefix + ".ssl", **common),
        *_keys(
            prefix + ".tcp",
            ("nodelay", "bool"),
            ("keepalive", "bool"),
            ("quickack", "bool"),
            ("keepidle", "time"),
            ("keepintvl", "time"),
            ("keepcnt", "time", None, {"note": 'a number, but read as a time: "3s" is 3'}),
            ("sendtimeo", "time"),
            ("recvtimeo", "time"),
            ("bind_interface", "str", None, {"since": "0.23.9"}),
            **{"maximum": UINT16, **common},
        ),
        *_keys(
            prefix + ".conn_properties",
            ("session_expiry_interval", "int", 0, {"minimum": 0, "unit": "s"}),
            ("request_problem_infomation", "int", 1, {"maximum": 1}),
            ("request_response_infomation", "int", 0, {"minimum": 0, "maximum": 1}),
            ("receive_maximum", "int", 65535, {"maximum": UINT16}),
            ("topic_alias_maximum", "int", 0, {"minimum": 0, "maximum": UINT16}),
            ("maximum_packet_size", "int", 0, {"minimum": 0, "unit": "bytes"}),
            ("user_property.<name>", "str"),
            **common,
        ),
        *_keys(
            prefix + ".will",
            ("topic", "str"),
            ("payload", "str"),
            ("qos", "int", 0, _qos()),
            ("retain", "bool", False),
            ("properties.payload_format_indicator", "int", 0, {"minimum": 0, "maximum": 1}),
            ("properties.message_expiry_interval", "int", 0, {"minimum": 0, "unit": "s"}),
            ("properties.will_delay_interval", "int", 0, {"minimum": 0, "unit": "s"}),
            ("properties.content_type", "str"),
            ("properties.response_topic", "str"),
            ("properties.correlation_data", "str"),
            ("properties.user_property.<name>", "str"),
            **common,
        ),
    ]


def _sql_rules(kind: str) -> list[Key]:
    needs = {"note": f"needs a build with {kind}"}
    return [
        *_keys(
            f"rules.{kind}.<name>.conn",
            ("database", "str", None, needs),
            ("host", "str", None, needs),
            ("username", "str", None, needs),
            ("password", "str", None, {**needs, "secret": True}),
        ),
        *_keys(f"rules.{kind}.<name>.rules[]", ("sql", "rule_sql", None, needs), ("table", "str", None, needs)),
    ]


_ACL = {"apply": "reload", "reload_since": "0.25.6"}
_SUBJECTS = ("username", "clientid", "ipaddr")

KEYS: tuple[Key, ...] = (
    *_keys(
        "system",
        ("daemon", "bool", False, {"note": "forks and leaves the working directory: keep it off under systemd"}),
        ("num_taskq_thread", "int", "2 x CPUs"),
        ("max_taskq_thread", "int", "2 x CPUs"),
        ("parallel", "int", "2 x CPUs"),
        (
            "enable_ipc_internal",
            "bool",
            True,
            {"note": "the command socket of `nanomq reload`, without authentication"},
        ),
        ("hook_ipc_url", "ipc_url", "ipc:///tmp/nanomq_hook.ipc", {"since": "0.22.6"}),
        ("cmd_ipc_url", "ipc_url", "ipc:///tmp/nanomq_cmd.ipc", {"since": "0.22.6"}),
    ),
    *_keys(
        "mqtt",
        ("property_size", "int", 32, {"apply": "reload"}),
        ("max_packet_size", "size", "10MB", {"apply": "reload", "maximum": UINT32}),
        ("max_mqueue_len", "int", 1024, {"apply": "reload"}),
        ("max_topic_alias", "int", None, {"since": "0.24.14", "maximum": UINT16}),
        ("retry_interval", "time", "10s", {"apply": "reload", "maximum": UINT32}),
        ("keepalive_multiplier", "float", 1.5, {"apply": "reload"}),
        ("max_inflight_window", "int", 2048, {"since": "0.19.1", "note": "said to be without effect"}),
        (
            "max_awaiting_rel",
            "time",
            "10s",
            {"since": "0.19.1", "maximum": UINT32, "note": "said to be without effect"},
        ),
        (
            "await_rel_timeout",
            "time",
            "10s",
            {"since": "0.19.1", "maximum": UINT32, "note": "said to be without effect"},
        ),
        ("batch_resend", "bool", False, {"since": "0.25.5"}),
    ),
    *_keys(
        "listeners.tcp",
        ("bind", "bind", "0.0.0.0:1883", {"note": "the default holds only where there is no `listeners` block"}),
        ("enable", "bool", True, {"note": "false is ignored: leave the block out"}),
        ("<name>.bind", "bind", None, {"since": "0.22.6"}),
        ("<name>.enable", "bool", True, {"since": "0.22.6", "note": "false is ignored: leave the block out"}),
    ),
    *_tls_listener("listeners.ssl"),
    # Named TLS listeners alone open no WSS listener, and `enable = false` is ignored there.
    *_tls_listener("listeners.ssl.<name>", since="0.22.6"),
    *_keys("listeners.ws", ("bind", "bind")),
    *_keys(
        "listeners.wss",
        (
            "bind",
            "bind",
            "0.0.0.0:8086/mqtt",
            {"note": "opened whenever listeners.ssl has a bind of its own; takes its other settings from there"},
        ),
    ),
    *_keys(
        "http_server",
        ("port", "port", 8081),
        ("limit_conn", "int", 32, {"since": "0.19.1", "note": "workers; does not limit connections"}),
        ("ip_addr", "address", "0.0.0.0", {"since": "0.23.1"}),
        ("max_body", "int", 1048576, {"since": "0.23.5", "unit": "bytes", "note": "checked before authentication"}),
        ("username", "str", "admin"),
        ("password", "str", "public", {"secret": True}),
        ("auth_type", "enum", "basic", {"choices": ("basic", "jwt", "no_auth"), "since": "0.13"}),
        ("jwt.public.keyfile", "str", None, {"since": "0.13", "note": "PEM; a token's `iss` must equal its file name"}),
    ),
    *_keys(
        "log",
        ("to[]", "enum", "console", {"choices": ("file", "console", "syslog", "uds")}),
        ("level", "enum", "warn", {"choices": _LEVELS, "apply": "reload"}),
        ("dir", "str", "./", {"note": "the broker exits if it cannot write there"}),
        ("file", "str"),
        ("rotation.size", "size", "10KB", {"maximum": UINT32}),
        ("rotation.count", "int", 5),
        ("uds_addr", "str", None, {"since": "0.22.2"}),
    ),
    *_keys(
        "auth",
        ("allow_anonymous", "bool", True, {"apply": "reload", "note": "true: wrong passwords are accepted as well"}),
        ("enable", "bool"),
        (
            "no_match",
            "enum",
            "allow",
            {"choices": ("allow", "deny"), "since": "0.14.5", "note": "needs auth.acl", **_ACL},
        ),
        ("deny_action", "enum", "ignore", {"choices": ("ignore", "disconnect"), "since": "0.14.5", **_ACL}),
        ("password.enable", "bool", True, {"note": "false: any credentials are accepted"}),
        ("password.<user>", "str", None, {"secret": True, "apply": "reload"}),
        ("acl.enable", "bool", True, _ACL),
        ("acl.rules[].permit", "enum", None, {"choices": ("allow", "deny"), **_ACL}),
        ("acl.rules[].username", "str", None, {"note": '"#": every user', **_ACL}),
        ("acl.rules[].clientid", "str", None, _ACL),
        ("acl.rules[].ipaddr", "str", None, {"note": "exact; no CIDR", **_ACL}),
        ("acl.rules[].ipaddrs[]", "str", None, {"note": "did not match in trials", **_ACL}),
        *((f"acl.rules[].{op}[].{who}", "str", None, _ACL) for op in ("and", "or") for who in _SUBJECTS),
        ("acl.rules[].and[].ipaddrs[]", "str", None, _ACL),
        ("acl.rules[].or[].ipaddrs[]", "str", None, _ACL),
        ("acl.rules[].action", "enum", "pubsub", {"choices": ("publish", "subscribe", "pubsub"), **_ACL}),
        ("acl.rules[].topics[]", "str", None, {"note": "${clientid} and ${username} expand, %c and %u do not", **_ACL}),
        ("http_auth.enable", "bool", True),
        ("http_auth.timeout", "time", "5s"),
        ("http_auth.connect_timeout", "time", "5s"),
        ("http_auth.pool_size", "int", 32),
        ("http_auth.cache_ttl", "time", "0s", {"since": "0.24.7"}),
    ),
    *_http_request("auth.http_auth.auth_req"),
    *_http_request("auth.http_auth.super_req"),
    *_http_request("auth.http_auth.acl_req"),
    *_keys(
        "sqlite",
        ("disk_cache_size", "int", 102400),
        ("mounted_file_path", "str"),
        ("flush_mem_threshold", "int", 100, {"apply": "reload"}),
    ),
    *_keys(
        "webhook",
        ("enable", "bool", True),
        ("url", "str"),
        ("headers.<name>", "str", None, {"secret": True}),
        ("body.encoding", "enum", "plain", {"choices": ("plain", "base64", "base62")}),
        ("pool_size", "int", 32),
        ("cancel_timeout", "int", 5000, {"unit": "ms"}),
    ),
    *_tls("webhook.ssl"),
    *_keys("webhook.events[]", ("event", "enum", None, {"choices": _EVENTS}), ("topic", "str")),
    *_keys(
        "preset.session.<name>",
        ("clientid", "str"),
        ("topic[].remote_topic", "str"),
        ("topic[].qos", "int", 0, _qos()),
        ("topic[].retain", "int", None, {"minimum": 0, "maximum": 1}),
        ("topic[].retain_as_published", "int", 0, {"minimum": 0, "maximum": 1}),
        ("topic[].retain_handling", "int", 0, _qos()),
        ("topic[].stream_id", "int", 0, {"minimum": 0}),
        since="0.23.8",
    ),
    *_keys(
        "bridges.mqtt.cache",
        ("enable", "bool", True),
        ("disk_cache_size", "int", 102400),
        ("mounted_file_path", "str"),
        ("flush_mem_threshold", "int", 100),
        ("resend_interval", "int", None, {"unit": "ms"}),
    ),
    *_bridge_connector("bridges.mqtt.<name>"),
    *_keys(
        "bridges.mqtt.<name>.forwards[]",
        ("remote_topic", "str"),
        ("local_topic", "str"),
        ("prefix", "affix"),
        ("suffix", "affix"),
        ("retain", "int", None, {"minimum": 0, "maximum": 1}),
        ("qos", "int", None, _qos()),
    ),
    *_keys(
        "bridges.mqtt.<name>.subscription[]",
        ("remote_topic", "str"),
        ("local_topic", "str"),
        ("prefix", "affix"),
        ("suffix", "affix"),
        ("qos", "int", 0, _qos()),
        ("retain", "int", None, {"minimum": 0, "maximum": 1}),
        ("retain_as_published", "int", 0, {"minimum": 0, "maximum": 1}),
        ("retain_handling", "int", 0, _qos()),
        ("nolocal", "bool", True),
        ("stream_id", "int", 0, {"minimum": 0}),
    ),
    *_keys(
        "bridges.mqtt.<name>",
        ("sub_properties.identifier", "int", None, {"maximum": 268435455}),
        ("sub_properties.user_property.<name>", "str"),
        ("hybrid_bridging", "bool", False),
        ("hybrid_servers[]", "str"),
        ("max_parallel_processes", "int", 2),
        ("max_recv_queue_len", "int"),
        ("max_send_queue_len", "int"),
        ("resend_interval", "int", 5000, {"unit": "ms"}),
        ("resend_wait", "int", 3000, {"unit": "ms"}),
        ("cancel_timeout", "int", 10000, {"unit": "ms"}),
    ),
    *_keys(
        "bridges.mqtt.<name>",
        ("quic_keepalive", "time", "120s"),
        ("quic_idle_timeout", "time", "120s"),
        ("quic_discon_timeout", "time", "20s"),
        ("quic_send_idle_timeout", "time", "2s"),
        ("quic_initial_rtt_ms", "time_ms", "800ms"),
        ("quic_max_ack_delay_ms", "time_ms", "100ms", {"maximum": 16000}),
        ("quic_handshake_timeout", "time", "20s"),
        ("quic_0rtt", "bool", True),
        ("quic_multi_stream", "bool", False),
        ("quic_qos_priority", "bool"),
        note=_QUIC,
    ),
    *_bridge_connector("bridges.aws.<name>"),
    *_keys(
        "bridges.aws.<name>",
        ("forwards[].remote_topic", "str"),
        ("forwards[].local_topic", "str"),
        ("subscription[].remote_topic", "str"),
        ("subscription[].local_topic", "str"),
        ("subscription[].qos", "int", 0, _qos()),
        ("subscription[].stream_id", "int", 0, {"minimum": 0}),
        ("max_parallel_processes", "int", 2),
        note="needs a build with the AWS bridge",
    ),
    *(
        key
        for kind, topics in (("pub", "forwards[]"), ("sub", "subscription[]"))
        for key in _keys(
            f"bridges.nng.{kind}.<name>",
            ("clientid", "str"),
            (f"{kind}_url", "str", None, {"note": "the broker listens there, and asks for no credentials"}),
            (f"{topics}.remote_topic", "str"),
            (f"{topics}.local_topic", "str"),
            (f"{topics}.nng_delimiter", "str"),
            (f"{topics}.qos", "int", None, _qos()),
            since="0.24.14",
        )
    ),
    *_keys("rules.sqlite", ("path", "str"), ("rules[].sql", "rule_sql"), ("rules[].table", "str"), note=_RULES),
    *_keys(
        "rules.repub.rules[]",
        ("sql", "rule_sql"),
        ("server", "mqtt_url"),
        ("topic", "str"),
        ("proto_ver", "int", None, {"minimum": 4, "maximum": 5}),
        ("clientid", "str"),
        ("keepalive", "int", None, {"maximum": UINT16, "unit": "s"}),
        ("clean_start", "bool"),
        ("username", "str"),
        ("password", "str", None, {"secret": True}),
        note=_RULES,
    ),
    *_sql_rules("mysql"),
    *_sql_rules("postgresql"),
    *_sql_rules("timescaledb"),
    *_keys("plugin", ("libs[].path", "str", None, {"note": "a shared object, loaded as the broker's user"})),
)

# Looks like a key, is documented as one or once was one, and is not read: path -> what to do instead.
NOT_KEYS: dict[str, str] = {
    "http_server.enable": "not read by the broker: the block alone starts the server; leave the block out to have none",
    "http_server.url": "not read by the broker; use http_server.ip_addr and http_server.port",
    "http_server.jwt.private": "not read by the broker, and the private key has no place on its host",
    "auth.cache": "not read by the broker; http_auth.cache_ttl is the only cache there is",
    "listeners.ws.enable": "not read by the broker; leave listeners.ws out to have no such listener",
    "listeners.wss.enable": "not read by the broker; it is on whenever listeners.ssl has a bind: bind it to loopback",
    **{
        f"listeners.wss.{name}": "not read by the broker; listeners.wss uses what listeners.ssl says"
        for name in ("keyfile", "certfile", "cacertfile", "key_password", "verify_peer", "fail_if_no_peer_cert")
    },
    **{
        f"bridges.{kind}.<name>.ssl.{name}": "not read by the broker for bridges"
        for kind in ("mqtt", "aws")
        for name in ("verify_peer", "fail_if_no_peer_cert")
    },
    "exchange_client": "not read by the broker",
}

# What a block cannot be without, and what the broker does about it: block -> ((key, ...), consequence).
_REQUIRED: dict[str, tuple] = {
    "http_server.jwt.public": (("keyfile",), "the broker crashes without it"),
    "log": (("level",), "the broker crashes without it"),
    "webhook": (("url",), "the broker crashes without it"),
    "auth.acl.rules[]": (("permit",), "the broker drops a rule without it"),
    "preset.session.<name>": (("clientid",), "the broker crashes without it"),
    "preset.session.<name>.topic[]": (("remote_topic",), "the broker crashes without it"),
    "bridges.mqtt.<name>": (("server",), "the broker exits without it"),
    "bridges.aws.<name>": (("server",), "the broker exits without it"),
    **{
        f"bridges.nng.{kind}.<name>": (("clientid", f"{kind}_url"), "the broker crashes without it")
        for kind in ("pub", "sub")
    },
    "rules.sqlite": (("path",), "the broker writes to /tmp/rule_engine.db without it"),
    **{
        f"rules.{kind}": (("sql", "table"), "the broker crashes without the one, and stores nothing without the other")
        for kind in (
            "sqlite.rules[]",
            "mysql.<name>.rules[]",
            "postgresql.<name>.rules[]",
            "timescaledb.<name>.rules[]",
        )
    },
    "rules.repub.rules[]": (
        ("sql", "server", "topic"),
        "the broker crashes without sql or server, and the other server hangs up without topic",
    ),
    "listeners.ws": (("bind",), "the broker binds to 0.0.0.0:8083 without it"),
    "listeners.wss": (("bind",), "the broker binds to 0.0.0.0:8086 without it"),
    "listeners.tcp.<name>": (("bind",), "the broker opens no listener without it"),
    "listeners.ssl.<name>": (("bind",), "the broker opens no listener without it"),
    **{
        f"auth.http_auth.{request}": (("method",), "the broker crashes without it")
        for request in ("auth_req", "super_req", "acl_req")
    },
    **{
        f"bridges.{kind}.<name>.{topics}[]": (("remote_topic", "local_topic"), "the broker drops an entry without it")
        for kind in ("mqtt", "aws")
        for topics in ("forwards", "subscription")
    },
}

# Names that mean something else to the broker where it looks for a user's own.
_RESERVED_NAMES = {"preset.session": ("cache",)}


# --- paths ------------------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"[A-Za-z0-9_-]+\Z")
_SEGMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|\[(\d*)\]|([^.\[]+)')


def join(segments) -> str:
    """``("auth", "password", "a.b")`` -> ``auth.password."a.b"``; an int is an index: ``rules[0]``."""
    text = ""
    for segment in segments:
        if isinstance(segment, int):
            text += f"[{segment}]"
            continue
        name = str(segment)
        if segment != "[]":
            plain = _PLAIN.match(name) or re.match(r"<\w+>\Z", name)
            name = name if plain else '"' + name.replace('"', '\\"') + '"'
            text += "." if text else ""
        text += name
    return text


def split(path: str) -> tuple:
    """The inverse of `join`."""
    segments: list = []
    for quoted, index, plain in _SEGMENT.findall(path):
        if quoted:
            segments.append(quoted.replace('\\"', '"'))
        elif plain:
            segments.append(plain)
        else:
            segments.append(int(index) if index else "[]")
    return tuple(segments)


@dataclass
class Node:
    """A step of the tree of keys: a leaf has `key`, an array `item`, a block `children` and perhaps `wildcard`."""

    pattern: str = ""
    key: Key | None = None
    item: Node | None = None
    wildcard: Node | None = None
    children: dict = field(default_factory=dict)
    refused: str = ""

    @property
    def is_block(self) -> bool:
        return bool(self.children or self.wildcard)

    def child(self, segment) -> Node | None:
        """The node below for a name, an index, ``[]`` or ``<name>``."""
        if isinstance(segment, int) or segment == "[]":
            return self.item
        return self.children.get(segment) or self.wildcard

    def add(self, segment: str) -> Node:
        pattern = join((*split(self.pattern), segment))
        if segment == "[]":
            self.item = self.item or Node(pattern)
            return self.item
        if segment.startswith("<"):
            self.wildcard = self.wildcard or Node(pattern)
            return self.wildcard
        return self.children.setdefault(segment, Node(pattern))


def _tree() -> Node:
    root = Node()
    for path in (*(key.path for key in KEYS), *NOT_KEYS):
        node = root
        for segment in split(path):
            node = node.add(segment)
        node.refused = NOT_KEYS.get(path, "")
        node.key = _BY_PATH.get(path)
    return root


_BY_PATH = {key.path: key for key in KEYS}
TREE = _tree()


def find(segments) -> Node | None:
    """The node of the tree at a path, given as segments."""
    node: Node | None = TREE
    for segment in segments:
        node = node.child(segment) if node else None
    return node


def lookup(path: str | tuple) -> Key | None:
    """The key at `path` (a text or a tuple of segments), for an array of scalars that of its elements; else None."""
    node = find(split(path) if isinstance(path, str) else path)
    if node is None or node.refused:
        return None
    return node.key or (node.item.key if node.item else None)


def nearest(path: str | tuple) -> str | None:
    """The valid path most like a wrong one: a name alike beside it, else the same name elsewhere; None if neither."""
    import difflib  # only here: a correct configuration needs it not

    segments = split(path) if isinstance(path, str) else tuple(path)
    node = TREE
    for index, segment in enumerate(segments):
        below = node.child(segment)
        if below is not None and below.refused:
            return None
        if below is None:
            names = [name for name, child in node.children.items() if not child.refused]
            alike = difflib.get_close_matches(str(segment).lower(), names, 1, 0.75)
            if alike:
                return join((*segments[:index], alike[0]))
            break
        node = below
    last = str(segments[-1]).lower() if segments else ""
    known = {split(key.path)[-1]: key.path for key in reversed(KEYS) if "<" not in key.path and "[" not in key.path}
    alike = difflib.get_close_matches(last, known, 1, 0.85)
    return known[alike[0]] if alike else None


_HARMLESS_HEADERS = ("accept", "connection", "content-length", "content-type", "host", "user-agent")
_SECRET_NAME = re.compile(r"passw|passphrase|secret|token|credential|authorization|api.?key|private|cookie", re.I)


def is_secret(segments) -> bool:
    """Whether the value at a path must not be shown; a path the schema does not know is judged by its names."""
    key = lookup(tuple(segments))
    names = [str(segment) for segment in segments]
    if key:
        header = len(names) > 1 and names[-2] == "headers"
        return key.secret and not (header and names[-1].lower() in _HARMLESS_HEADERS)
    return any(_SECRET_NAME.search(name) for name in names)


# --- values -----------------------------------------------------------------------------------------------------------

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TIME = re.compile(r"(\d{1,10})([smhd])\Z", re.ASCII)
_TIME_MS = re.compile(r"(\d{1,13})(ms|s|m|h|d)\Z", re.ASCII)
_SIZE = re.compile(r"(\d{1,13})(b|kb|mb|gb)\Z", re.ASCII | re.I)
_PARAM = re.compile(r"%[AucaPpCdtmr]\Z")
_BIND = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._*-]+):(\d{1,5})(/[^\s]*)?\Z", re.ASCII)
_SECONDS = {"ms": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30}


def _kind(value) -> str:
    """A value's type in the words of a YAML writer."""
    for types, name in (
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "a string"),
        ((list, tuple), "a list"),
        (dict, "a block"),
    ):
        if isinstance(value, types):
            return name
    return "null" if value is None else type(value).__name__


def text_problem(text: str) -> str | None:
    """Why the dialect cannot carry a text, or None."""
    if "\\" in text:
        return "must not hold a backslash: the broker drops it"
    if _CONTROL.search(text):
        return "must not hold a line break, NUL or another control character"
    if _SURROGATE.search(text):
        return "must be valid Unicode"
    return None


def _check_bool(key: Key, value) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return "must be true or false without quotes: the broker ignores a quoted boolean"
    return f"must be true or false, not {_kind(value)}"


def _check_int(key: Key, value) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        if isinstance(value, str):
            return "must be a number without quotes: the broker ignores a quoted number"
        if isinstance(value, float):
            return "must be a whole number"
        return f"must be a number, not {_kind(value)}"
    return _check_range(key, value)


def _check_range(key: Key, value) -> str | None:
    if value < key.minimum or value > key.maximum:
        unit = f" {key.unit}" if key.unit else ""
        return f"must be between {key.minimum} and {key.maximum}{unit}"
    return None


def _check_float(key: Key, value) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _check_int(key, value)
    if not 0 < value <= INT_MAX:  # also false for NaN
        return "must be a number above 0"
    if isinstance(value, float) and "e" in repr(value):
        return "must be a number that needs no exponent"
    return None


def _check_port(key: Key, value) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return None if 1 <= value <= UINT16 else "must be a port from 1 to 65535"
    return _check_int(key, value)


def _check_str(key: Key, value) -> str | None:
    if not isinstance(value, str):
        hint = ": the broker ignores a value without quotes" if not isinstance(value, (list, tuple, dict)) else ""
        return f"must be a string, not {_kind(value)}{hint}"
    return text_problem(value)


def _check_affix(key: Key, value) -> str | None:
    problem = _check_str(key, value)
    if problem is None and ("+" in value or "#" in value):
        return "must not hold a wildcard (+ or #): the broker drops the entry and all that follow"
    return problem


def _check_param(key: Key, value) -> str | None:
    problem = _check_str(key, value)
    if problem is None and not _PARAM.match(value):
        return (
            "must be one of the placeholders (%u, %P, %c ...) and nothing else: the broker drops the entry, or cuts it"
        )
    return problem


def _check_mqtt_url(key: Key, value) -> str | None:
    problem = _check_str(key, value)
    if problem is None and not value.startswith(("mqtt-tcp://", "tls+mqtt-tcp://")):
        return "must begin with mqtt-tcp://: the broker crashes at the first message, or never connects"
    return problem


#: Of a UNIX socket; see sockaddr_un in unix(7).
_LONGEST_SOCKET = 107


def _check_ipc_url(key: Key, value) -> str | None:
    problem = _check_str(key, value)
    if problem is not None:
        return problem
    scheme, path = value[: len("ipc://")], value[len("ipc://") :]
    if scheme != "ipc://" or not path.startswith("/"):
        return "must begin with ipc:///: by tcp:// others reach the socket, and a relative path depends on the start"
    if len(path.encode()) > _LONGEST_SOCKET:
        return f"must have a path of at most {_LONGEST_SOCKET} bytes"
    return None


_RULE_SQL = re.compile(r'SELECT (?P<fields>[^" ][^"]*?) FROM "(?P<topic>[^"]+)"(?: WHERE (?P<where>[^"]+))?\Z', re.I)
_RULE_FIELD = re.compile(
    r"(?:\*|(?P<name>qos|id|topic|clientid|username|password|timestamp|payload(?:\.\w+)*)(?: as (?P<alias>\w+))?)\Z",
    re.ASCII,
)
_RULE_CONDITION = re.compile(r"(?P<name>[\w.]+) ?(?:=|!=|<>|>=?|<=?) ?(?:'[^']*'|[^ '=<>]+)\Z", re.ASCII)


def rule_fields(sql: str) -> list | None:
    """(field, alias or None) of what a rule selects, ``*`` for all; None where the broker does not understand it."""
    whole = _RULE_SQL.match(sql)
    # The broker looks for its words anywhere, also within names and values.
    if not whole or "from" in whole["fields"].lower() or "where" in whole["topic"].lower():
        return None
    found = [_RULE_FIELD.match(field.strip(" ")) for field in whole["fields"].split(",")]
    if not all(found):
        return None
    fields = [(field["name"] or "*", field["alias"]) for field in found]
    known = {alias for _name, alias in fields}
    for text in re.split("and", whole["where"], flags=re.I) if whole["where"] else ():
        condition = _RULE_CONDITION.match(text.strip(" "))
        if not condition or not (condition["name"] in known or _RULE_FIELD.match(condition["name"])):
            return None
    return fields


def _check_rule_sql(key: Key, value) -> str | None:
    problem = _check_str(key, value)
    if problem is None and rule_fields(value) is None:
        return (
            "must be like SELECT topic, payload.value as v FROM \"a/#\" WHERE qos > 0 and v = 'x': the broker crashes "
            "at start on a field that it does not know, or the rule does nothing"
        )
    return problem


def _check_enum(key: Key, value) -> str | None:
    if value in key.choices and isinstance(value, str):
        return None
    return f"must be one of {', '.join(key.choices)}"


def _check_quantity(key: Key, value, pattern, units: dict, example: str, minimum: int = 0) -> str | None:
    found = pattern.match(value) if isinstance(value, str) else None
    if not found:
        return f"must be {example}"
    amount = int(found.group(1)) * units[found.group(2).lower()]
    if not minimum <= amount <= key.maximum:
        return f"must be between {minimum} and {key.maximum}"
    return None


def _check_time(key: Key, value) -> str | None:
    # "10ms" is ten minutes to the broker, and a bare number is ignored.
    return _check_quantity(key, value, _TIME, _SECONDS, "a time such as 10s, 5m, 1h or 1d")


def _check_time_ms(key: Key, value) -> str | None:
    units = {unit: seconds * (1 if unit == "ms" else 1000) for unit, seconds in _SECONDS.items()}
    return _check_quantity(key, value, _TIME_MS, units, "a time such as 100ms or 2s")


def _check_size(key: Key, value) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return None if 1 <= value <= key.maximum else f"must be between 1 and {key.maximum} bytes"
    return _check_quantity(key, value, _SIZE, _BYTES, "a size such as 512KB, 10MB or 1GB, or a number of bytes", 1)


def _check_bind(key: Key, value) -> str | None:
    problem = _check_str(key, value)
    if problem:
        return problem
    found = _BIND.match(value)
    if not found:
        return "must be host:port or host:port/path, such as 127.0.0.1:8883"
    if found.group(3) and not key.path.startswith(("listeners.ws.", "listeners.wss.")):
        return "must have no path: the broker exits"
    return None if 1 <= int(found.group(2)) <= UINT16 else "must have a port from 1 to 65535"


def _check_address(key: Key, value) -> str | None:
    problem = _check_str(key, value)
    if problem:
        return problem
    if value == "":
        return "must not be empty: the broker then binds to 0.0.0.0"
    import ipaddress  # only here: it is slow to import

    host = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        version = 0
    if value == "localhost" or (version == 4 and host is value) or (version == 6 and host is not value):
        return None
    return "must be an IP address (IPv6 in brackets) or localhost, without a port"


_CHECKS = {
    "bool": _check_bool,
    "int": _check_int,
    "float": _check_float,
    "port": _check_port,
    "str": _check_str,
    "affix": _check_affix,
    "param": _check_param,
    "mqtt_url": _check_mqtt_url,
    "ipc_url": _check_ipc_url,
    "rule_sql": _check_rule_sql,
    "enum": _check_enum,
    "time": _check_time,
    "time_ms": _check_time_ms,
    "size": _check_size,
    "bind": _check_bind,
    "address": _check_address,
}


# --- configurations ---------------------------------------------------------------------------------------------------


def version_tuple(version: str) -> tuple:
    """``0.25.6-8`` -> ``(0, 25, 6)``."""
    found = re.match(r"\D{0,8}(\d+(?:\.\d+)*)", version)
    if not found:
        raise ValueError("not a version")
    return tuple(int(part) for part in found.group(1).split("."))


def prune(value):
    """`value` without the keys that are None, and without the blocks which that leaves empty."""
    if isinstance(value, dict):
        kept = {name: prune(child) for name, child in value.items()}
        return {name: child for name, child in kept.items() if child is not None} or (None if value else {})
    if isinstance(value, (list, tuple)):
        return [prune(item) if isinstance(item, dict) else item for item in value]
    return value


def validate(conf: dict, version: str | None = None, partial: bool = False) -> list[Problem]:
    """All that is wrong with `conf`, in its order.

    version: that of the broker; keys it does not know yet are refused. None: not checked.
    partial: `conf` is a part of a configuration; rules that concern several keys are left to the whole.
    """
    if not isinstance(conf, dict):
        return [Problem("(configuration)", f"must be a block, not {_kind(conf)}")]
    conf = prune(conf) or {}
    if not conf and not partial:
        return [Problem("(configuration)", "must not be empty: the broker takes that for a syntax error")]
    problems = list(_walk(TREE, conf, (), version_tuple(version) if version else None, partial))
    return problems if partial else problems + list(_cross(conf))


def _walk(node: Node, value, path: tuple, version, partial: bool):
    """Problems of `value`, which stands at `node`."""
    if node.refused:
        yield Problem(join(path), node.refused)
    elif node.is_block:
        yield from _walk_block(node, value, path, version, partial)
    elif node.item:
        yield from _walk_array(node, value, path, version, partial)
    else:
        key = node.key
        if version and key.since and version < version_tuple(key.since):
            yield Problem(join(path), f"needs NanoMQ {key.since} or later: an older one ignores it in silence")
        message = _CHECKS[key.type](key, value)
        if message:
            yield Problem(join(path), message)


def _walk_block(node: Node, value, path: tuple, version, partial: bool):
    if not isinstance(value, dict):
        yield Problem(join(path), f"must be a block, not {_kind(value)}")
        return
    if not value and path:
        yield Problem(join(path), "must not be an empty block: the broker takes that for a syntax error")
    for name, child in value.items():
        below = (*path, name if isinstance(name, str) else str(name))
        known = node.children.get(name) if isinstance(name, str) else None
        if known is None and node.wildcard is None:
            yield _unknown(below)
            continue
        if known is None:
            message = _name_problem(node, name)
            if message:
                yield Problem(join(below), message)
                continue
        elif node.pattern == "auth.password" and isinstance(child, str) and name == "enable":
            yield Problem(join(below), "is a reserved word here (true or false), not a name for a user")
            continue
        yield from _walk(known or node.wildcard, child, below, version, partial)
    if value and not partial:
        names, consequence = _REQUIRED.get(node.pattern, ((), ""))
        for name in names:
            if name not in value:
                yield Problem(join((*path, name)), f"is required: {consequence}")


def _walk_array(node: Node, value, path: tuple, version, partial: bool):
    if not isinstance(value, (list, tuple)):
        yield Problem(join(path), f"must be a list, not {_kind(value)}")
        return
    if not value:
        yield Problem(join(path), "must not be an empty list: the broker crashes; leave it out")
    for index, item in enumerate(value):
        below = (*path, index)
        if item is None:
            yield Problem(join(below), "must not be null")
        else:
            yield from _walk(node.item, item, below, version, partial)


def _unknown(path: tuple) -> Problem:
    alike = nearest(path)
    return Problem(join(path), "unknown key" + (f"; did you mean {alike}?" if alike else ""))


def _name_problem(node: Node, name) -> str | None:
    """Why a name that the user chose (a user, a bridge, a header) cannot stand in `node`, or None."""
    if not isinstance(name, str):
        return f"the name must be a string, not {_kind(name)}: put it in quotes"
    if not name:
        return "the name must not be empty"
    if name.startswith('"'):
        return "the name must not begin with a double quote: the broker cuts it"
    problem = text_problem(name)
    if problem:
        return "the name " + problem
    reserved = (*node.children, *_RESERVED_NAMES.get(node.pattern, ()))
    if name.lower() in reserved:
        return "is a reserved word here (in any case), not a name"
    return None


def _get(conf: dict, *path):
    for segment in path:
        conf = conf.get(segment) if isinstance(conf, dict) else None
    return conf


def _cross(conf: dict):
    """Problems between keys."""
    yield from _cross_system(_get(conf, "system"))
    yield from _cross_listeners(_get(conf, "listeners"))
    yield from _cross_log(_get(conf, "log"))
    rules = _get(conf, "auth", "acl", "rules")
    for index, rule in enumerate(rules if isinstance(rules, list) else ()):
        yield from _cross_acl_rule(rule, ("auth", "acl", "rules", index))


def _cross_system(system):
    pair = ("hook_ipc_url", "cmd_ipc_url")
    have = [name for name in pair if _get(system, name) is not None]
    if have == ["hook_ipc_url"]:
        yield Problem("system.cmd_ipc_url", "is required beside hook_ipc_url: the broker crashes without it")
    elif have == ["cmd_ipc_url"]:
        yield Problem("system.hook_ipc_url", "is required beside cmd_ipc_url: the broker ignores that without it")


def _cross_listeners(listeners):
    for kind, default in (("tcp", "the broker binds to 0.0.0.0:1883"), ("ssl", "the broker opens no listener")):
        block = _get(listeners, kind)
        if not isinstance(block, dict) or not block:
            continue
        named = {name: child for name, child in block.items() if isinstance(child, dict)}
        off = block.get("enable") is False
        ignored = [(name, "enable") for name, child in named.items() if child.get("enable") is False]
        if kind == "tcp" and off:
            ignored.insert(0, ("enable",))
        for path in ignored:
            yield Problem(join(("listeners", kind, *path)), "false is ignored by the broker; leave the block out")
        if "bind" not in block and not named and not off:
            yield Problem(f"listeners.{kind}.bind", f"is required: {default} without it")


def _cross_log(log):
    to = _get(log, "to")
    if isinstance(to, list) and "uds" in to and _get(log, "uds_addr") is None:
        yield Problem("log.uds_addr", "is required where log.to holds uds")


def _cross_acl_rule(rule, path: tuple):
    """The broker looks at one subject only: a rule with two would apply to more clients than it says."""
    subjects = [name for name in ("ipaddr", "ipaddrs", "username", "clientid", "and", "or") if _get(rule, name)]
    if len(subjects) > 1:
        yield Problem(join(path), f"has several subjects, of which the broker reads {subjects[0]} alone; use `and`")
    for name in ("and", "or"):
        items = _get(rule, name)
        for index, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, dict) and len(item) > 1:
                where = join((*path, name, index))
                yield Problem(where, "has several subjects, of which the broker reads one; make them separate items")
