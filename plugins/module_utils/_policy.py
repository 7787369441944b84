# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The policy: what a hardened NanoMQ must hold to, rule by rule.

A rule is written once and asked twice: of the configuration that is about to be deployed (`evaluate_config`, on the
controller, before anything is touched) and of a host as it is found (`evaluate_host`, by the audit). The checks of a
configuration take any nested dict, also one that the schema refuses: a host holds what it holds.

Evidence names keys, addresses and users, and never the value of a secret. What could not be observed is a finding.

``source`` says where a rule's claim about the broker comes from: trials on NanoMQ 0.25.6, its source, or an advisory.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.module_utils import _access, _references, _schema, _versions

SEVERITIES = ("low", "medium", "high", "critical")
LAYERS = {
    "NET": "network",
    "TLS": "transport",
    "AUT": "authentication",
    "ACL": "access_control",
    "SVC": "access_control",
    "VER": "access_control",
    "WVR": "access_control",
}

SHORTEST_PASSWORD = 12
#: Days before its end at which a certificate that nothing has renewed is worth a word.
EXPIRES_SOON = 14
#: The same of a CA, in whose place another must first be trusted everywhere.
AUTHORITY_EXPIRES_SOON = 90
SMALLEST_RSA = 2048
STRONG_KEYS = ("ec-p256", "ec-p384", "ec-p521", "ed25519")
#: Days after which the key of tokens should have been changed.
OLDEST_TOKEN_KEY = 400
#: Seconds by which a clock may differ from the controller's: the broker itself tolerates 200.
CLOCK_TOLERANCE = 300
#: Files that a broker should be able to open at least: a client is one.
FEWEST_FILES = 4096
TABLE = "edgesec_nanomq"

Check = Callable[..., Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule.

    config: ``(conf, context) -> evidence``, of a configuration; context: {"version": str, "firewall": bool, ...}
    host: ``(observation) -> evidence``, of a host; raises NotObserved
    front: ``(declaration) -> evidence``, of who may do what through a front end; see `evaluate_front`
    outside: ``(observation) -> evidence``, of what another host sees; see `evaluate_outside`
    asks: a fact that an observation holds only where somebody asked for it; without it the rule is not judged
    blocking: whether its finding can stop a deployment; what only another version cures does not
    references: what standards ask for the same; see `_references`
    """

    id: str
    severity: str
    title: str
    why: str
    remedy: str
    source: str
    config: Check | None = None
    host: Check | None = None
    front: Check | None = None
    outside: Check | None = None
    asks: str = ""
    blocking: bool = True
    references: tuple = ()

    @property
    def layer(self) -> str:
        """network, transport, authentication or access_control."""
        return LAYERS[self.id.split("-")[1]]


@dataclasses.dataclass(frozen=True)
class Finding:
    """A rule that does not hold.

    evidence: ``key: what is wrong`` or what was observed
    observed: False where nobody could tell, and evidence says why
    waived: the reason of the waiver, empty without one
    waived_until: the last day of the waiver, as 2030-12-31
    """

    id: str
    severity: str
    layer: str
    title: str
    evidence: tuple
    remedy: str
    observed: bool = True
    waived: str = ""
    blocking: bool = True
    waived_until: str = ""

    def as_dict(self) -> dict:
        """As plain data; evidence becomes a list."""
        return {**dataclasses.asdict(self), "evidence": list(self.evidence)}

    def __str__(self) -> str:
        seen = "" if self.observed else "not observed: "
        return f"{self.id} ({self.severity}) {self.title}. {seen}{'; '.join(self.evidence)}. {self.remedy}"


class NotObserved(Exception):
    """A fact that could not be observed, and why."""


_RULES: dict[str, Rule] = {}


def _rule(identifier: str, severity: str, title: str, **more: Any) -> Callable[[Check], Check]:
    """Register a rule whose check of a configuration is the decorated function."""

    def decorate(check: Check) -> Check:
        _RULES[identifier] = Rule(identifier, severity, title, config=check, **more)
        return check

    return decorate


def _host_rule(identifier: str, severity: str, title: str, **more: Any) -> Callable[[Check], Check]:
    """Register a rule that only a host can answer."""

    def decorate(check: Check) -> Check:
        _RULES[identifier] = Rule(identifier, severity, title, host=check, **more)
        return check

    return decorate


def _front_rule(identifier: str, severity: str, title: str, **more: Any) -> Callable[[Check], Check]:
    """Register a rule about what callers may do through a front end."""

    def decorate(check: Check) -> Check:
        _RULES[identifier] = Rule(identifier, severity, title, front=check, **more)
        return check

    return decorate


def _outside_rule(identifier: str, severity: str, title: str, **more: Any) -> Callable[[Check], Check]:
    """Register a rule about what another host sees of this one."""

    def decorate(check: Check) -> Check:
        _RULES[identifier] = Rule(identifier, severity, title, outside=check, **more)
        return check

    return decorate


def _hazard_rule(identifier: str, severity: str, title: str, **more: Any) -> None:
    """Register a rule against the calls that `_access` lists under its id."""
    _front_rule(identifier, severity, title, **more)(functools.partial(_access.hazardous, rule=identifier))


def _on_host(identifier: str) -> Callable[[Check], Check]:
    """Add the check of a host to a rule."""

    def decorate(check: Check) -> Check:
        _RULES[identifier] = dataclasses.replace(_RULES[identifier], host=check)
        return check

    return decorate


# --- reading a configuration as the broker does -----------------------------------------------------------------------


def get(conf: Any, *path: str) -> Any:
    """The value at a path, None where there is none. Names are compared as the broker does: case does not count."""
    for segment in path:
        if not isinstance(conf, dict):
            return None
        conf = next((value for name, value in conf.items() if str(name).lower() == segment), None)
    return conf


def _block(conf: Any, *path: str) -> dict:
    """The block at a path, {} where there is none."""
    found = get(conf, *path)
    return found if isinstance(found, dict) else {}


def _list(conf: Any, *path: str) -> list:
    found = get(conf, *path)
    return list(found) if isinstance(found, (list, tuple)) else []


def _blocks(conf: Any, *path: str) -> list:
    """(name, block) of the blocks that a block holds."""
    return [(str(name), child) for name, child in _block(conf, *path).items() if isinstance(child, dict)]


def mqtt_bridges(conf: Any) -> list:
    """(name, block) of the bridges to MQTT brokers; the block `cache` among them is none."""
    return [(name, block) for name, block in _blocks(conf, "bridges", "mqtt") if name != "cache"]


def _on(block: Any) -> bool:
    """Whether a block counts: the broker heeds an unquoted ``enable = false`` alone."""
    return get(block, "enable") is not False


def _join(*segments: Any) -> str:
    return _schema.join(segments)


def is_loopback(host: str) -> bool:
    """Whether an address (an IPv6 one with or without brackets) is the host's own loopback."""
    host = host.strip("[]").lower()
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_bind(text: Any, default: str) -> tuple:
    """(host, port) of ``nmq-tcp://0.0.0.0:1883/path``; those of the default where it is none."""
    for candidate in (text, default):
        if isinstance(candidate, str):
            address = candidate.rpartition("://")[2].partition("/")[0]
            host, _colon, port = address.rpartition(":")
            if port.isascii() and port.isdigit() and int(port) <= 65535:
                return host or "0.0.0.0", int(port)
    raise ValueError("the default of a listener is none")


@dataclasses.dataclass(frozen=True)
class Listener:
    """A socket that a configuration opens. kind: tcp, ssl, ws, wss, rest or nng; key: what decides its address."""

    kind: str
    key: str
    host: str
    port: int
    given: bool = True

    @property
    def address(self) -> str:
        """``host:port``"""
        return f"{self.host}:{self.port}"

    @property
    def beyond_loopback(self) -> str:
        """What to say of a listener that is not on loopback, else empty."""
        if is_loopback(self.host):
            return ""
        if self.given:
            return f"{self.key}: is {self.address}, not loopback"
        return f"{self.key}: is not given, and the broker opens {self.address}"


def listeners(conf: dict) -> list[Listener]:
    """The sockets that the broker opens for a configuration, those by default included."""
    found = []

    def add(kind: str, key: str, bind: Any, default: str) -> None:
        given = isinstance(bind, str)
        found.append(Listener(kind, key, *split_bind(bind, default), given=given))

    block = get(conf, "listeners")
    if not isinstance(block, dict):
        add("tcp", "listeners", None, "0.0.0.0:1883")
    tcp = get(block, "tcp")
    if isinstance(tcp, dict):
        named = _blocks(tcp)
        if get(tcp, "bind") is not None or not named:
            add("tcp", "listeners.tcp.bind", get(tcp, "bind"), "0.0.0.0:1883")
        for name, child in named:
            if get(child, "bind") is not None:
                add("tcp", _join("listeners", "tcp", name, "bind"), get(child, "bind"), "0.0.0.0:1883")
    if isinstance(get(block, "ws"), dict):
        add("ws", "listeners.ws.bind", get(block, "ws", "bind"), "0.0.0.0:8083")
    for key, child in tls_listeners(conf):
        if isinstance(get(child, "bind"), str):
            add("ssl", f"{key}.bind", get(child, "bind"), "0.0.0.0:8883")
    if single_tls(conf):
        add("wss", "listeners.wss.bind", get(block, "wss", "bind"), "0.0.0.0:8086")
    for key, url in _nng_urls(conf):
        if url.partition("://")[0].startswith(_NNG_NETWORK):
            add("nng", key, url.replace("://*:", "://0.0.0.0:"), "0.0.0.0:0")
    if isinstance(get(conf, "http_server"), dict):
        host = get(conf, "http_server", "ip_addr")
        given = isinstance(host, str) and host != ""
        found.append(
            Listener("rest", "http_server.ip_addr", host if given else "0.0.0.0", rest_port(conf), given=given)
        )
    return found


_NNG_NETWORK = ("tcp", "tls+tcp", "ws")


def _nng_urls(conf: dict) -> Iterator[tuple]:
    """(key, url) at which bridges to NNG listen."""
    for kind in ("pub", "sub"):
        for name, bridge in _blocks(conf, "bridges", "nng", kind):
            url = get(bridge, f"{kind}_url")
            if isinstance(url, str):
                yield _join("bridges", "nng", kind, name, f"{kind}_url"), url


def tls_listeners(conf: dict) -> list:
    """(key, block) of the TLS listeners that are on. Of a named one the broker does not heed ``enable = false``."""
    block = get(conf, "listeners", "ssl")
    if not isinstance(block, dict):
        return []
    named = [(_join("listeners", "ssl", name), child) for name, child in _blocks(block)]
    alone = [("listeners.ssl", block)] if _on(block) and (get(block, "bind") is not None or not named) else []
    return alone + named


def single_tls(conf: dict) -> dict:
    """The block of the TLS listener that has no name, {} where it is not opened; it brings WSS, and REST shows it."""
    block = _block(conf, "listeners", "ssl")
    return block if _on(block) and isinstance(get(block, "bind"), str) else {}


def rest_port(conf: dict) -> int:
    """The port of the REST server: the broker cuts a number to 16 bits, and takes 8081 for what is none."""
    port = get(conf, "http_server", "port")
    if isinstance(port, bool) or not isinstance(port, int) or port <= 0:
        return 8081
    return port % 65536


def users(conf: dict) -> dict:
    """{name: password} as the broker reads them: passwords that are no text are dropped, and so is the switch `enable`.

    With a text behind it `enable` is a user like others to the broker.
    """
    return {str(k): v for k, v in _block(conf, "auth", "password").items() if isinstance(v, str)}


def event_socket(conf: dict) -> str:
    """The address at which the broker hands events to its webhook, empty where there is none."""
    webhook = get(conf, "webhook")
    if not isinstance(webhook, dict) or not _on(webhook):
        return ""
    return str(get(conf, "system", "hook_ipc_url") or _schema.lookup("system.hook_ipc_url").default)


def _basic(conf: dict) -> bool:
    """Whether REST asks for user and password: the broker takes what it does not know for basic."""
    return isinstance(get(conf, "http_server"), dict) and get(conf, "http_server", "auth_type") not in (
        "jwt",
        "no_auth",
    )


def _weakness(password: str, name: str) -> str:
    """What makes a password easy to guess, or empty."""
    if len(password) < SHORTEST_PASSWORD:
        return f"is shorter than {SHORTEST_PASSWORD} characters"
    if name and password.lower() == name.lower():
        return "equals the name of the user"
    if len(set(password)) < 5:
        return "repeats a few characters"
    return ""


def _acl_rules(conf: dict) -> list:
    """(key, rule) of the topic rules."""
    rules = _list(conf, "auth", "acl", "rules")
    return [(f"auth.acl.rules[{index}]", rule) for index, rule in enumerate(rules) if isinstance(rule, dict)]


_SUBJECTS = ("username", "clientid", "ipaddr", "ipaddrs", "and", "or")


def _subjects(rule: dict) -> list:
    return [name for name in _SUBJECTS if get(rule, name) is not None]


def _host_of(url: str) -> str:
    authority = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return authority.rpartition("]")[0] if authority.startswith("[") else authority.partition(":")[0]


def _plain(url: Any, encrypted: tuple) -> bool:
    """Whether an URL leads to another host without encryption. Local sockets are no network."""
    if not isinstance(url, str) or url.lower().startswith((*encrypted, "ipc://", "unix://", "inproc://")):
        return False
    return not is_loopback(_host_of(url if "://" in url else "//:" + url))


# --- reading an observation -------------------------------------------------------------------------------------------


def fact(observation: dict, name: str) -> Any:
    """A fact of an observation. Raises NotObserved where it is missing or says ``{"not_observed": why}``."""
    value = observation.get(name, {"not_observed": "it was not looked for"})
    if isinstance(value, dict) and "not_observed" in value:
        raise NotObserved(value["not_observed"])
    return value


def _sockets(observation: dict) -> list:
    """(address, host, port) of the sockets on which the broker listens."""
    return [(address, *split_bind(address, address)) for address in sorted(fact(observation, "listeners"))]


def _sockets_of(observation: dict, kind: str) -> list:
    """Addresses beyond loopback on which a kind of listener was found."""
    kinds = fact(observation, "kinds")
    return [
        address for address, host, _port in _sockets(observation) if kinds[address] == kind and not is_loopback(host)
    ]


# --- network ----------------------------------------------------------------------------------------------------------


@_rule(
    "NMQ-NET-001",
    "critical",
    "REST can be reached from the network",
    why="REST gives full administration of the broker over plain HTTP, in every version: users, keys and a restart.",
    remedy="Keep http_server.ip_addr at 127.0.0.1, as the role does; drop it from nanomq_broker_settings",
    source="trials: http_server binds to 0.0.0.0 without ip_addr, or with an empty one",
)
def _rest_beyond_loopback(conf: dict, context: dict) -> Iterator[str]:
    del context
    return (x.beyond_loopback for x in listeners(conf) if x.kind == "rest" and x.beyond_loopback)


@_on_host("NMQ-NET-001")
def _rest_socket(observation: dict) -> Iterator[str]:
    for address in _sockets_of(observation, "rest"):
        yield f"REST listens on {address}"


@_rule(
    "NMQ-NET-002",
    "high",
    "WebSocket over TLS is open to the network although nobody asked for it",
    why="Whenever listeners.ssl is on, the broker opens WSS at 0.0.0.0:8086 as well; it cannot be switched off.",
    remedy="Give listeners.wss.bind a loopback address; the role does so with nanomq_broker_wss_port",
    source="trials and conf_ver2.c: listeners.wss defaults to 0.0.0.0:8086 with listeners.ssl",
)
def _wss_beyond_loopback(conf: dict, context: dict) -> Iterator[str]:
    del context
    return (x.beyond_loopback for x in listeners(conf) if x.kind == "wss" and x.beyond_loopback)


@_on_host("NMQ-NET-002")
def _wss_socket(observation: dict) -> Iterator[str]:
    for address in _sockets_of(observation, "wss"):
        yield f"WSS listens on {address}"


@_rule(
    "NMQ-NET-003",
    "medium",
    "The port of REST is not the one that is written",
    why="A quoted port, 0 or a negative one becomes 8081 without a word, and 83617 becomes 18081: firewall rules then "
    "guard the wrong port.",
    remedy="Set nanomq_broker_http_port to a number from 1 to 65535",
    source="trials: parsing of http_server.port",
)
def _rest_port(conf: dict, context: dict) -> Iterator[str]:
    del context
    port = get(conf, "http_server", "port")
    if port is not None and port != rest_port(conf):
        yield f"http_server.port: is not what the broker makes of it, {rest_port(conf)}"


@_rule(
    "NMQ-NET-004",
    "medium",
    "Two listeners share a port",
    why="The broker ends when an address is taken, so it does not start at all.",
    remedy="Give each of nanomq_broker_mqtt_port, nanomq_broker_wss_port and nanomq_broker_http_port its own number",
    source="trials: a busy address is fatal",
)
def _shared_port(conf: dict, context: dict) -> Iterator[str]:
    del context
    wide = ("0.0.0.0", "[::]", "*")
    seen: list[Listener] = []
    for one in listeners(conf):
        for other in seen:
            if one.port == other.port and (one.host == other.host or one.host in wide or other.host in wide):
                yield f"{one.key}: uses port {one.port}, as {other.key} does"
        seen.append(one)


@_rule(
    "NMQ-NET-005",
    "low",
    "There is no REST server on loopback to ask what the broker has read",
    why="The broker ignores what it does not understand. Reading its configuration back through REST is the only way "
    "to see that; without an http_server block a deployment cannot be verified.",
    remedy="Leave the http_server block in; the role keeps it on loopback at nanomq_broker_http_port",
    source="trials: unknown keys and wrong types are ignored without a message",
)
def _no_rest(conf: dict, context: dict) -> Iterator[str]:
    del context
    if not isinstance(get(conf, "http_server"), dict):
        yield "http_server: is absent"


@_rule(
    "NMQ-NET-006",
    "high",
    "No packet filter keeps the network away from REST",
    why="The address in the configuration is one line of defence. A broker before 0.23.1, an edited file or a REST "
    "call opens the port to all; a packet filter holds whatever the broker binds.",
    remedy="Apply the role nanomq_firewall with the port in nanomq_firewall_closed_ports",
    source="trials: ip_addr is ignored before 0.23.1, and a configuration that cannot be read gives open defaults",
)
def _no_firewall_planned(conf: dict, context: dict) -> Iterator[str]:
    del conf
    if context.get("firewall") is False:
        yield "no firewall role is applied to this host"


@_on_host("NMQ-NET-006")
def _no_firewall(observation: dict) -> Iterator[str]:
    firewall = fact(observation, "firewall")
    table = "is loaded" if firewall["table"] else "is not loaded"
    for port, verdict in sorted(firewall["ports"].items()):
        if verdict != "dropped":
            state = "lets new connections in to" if verdict == "accepted" else "drops only some connections to"
            yield f"the packet filter {state} port {port} (table inet {TABLE} {table})"


@_host_rule(
    "NMQ-NET-007",
    "medium",
    "Any local process can talk to REST",
    why="Loopback is shared by all users of a host: a service that was broken into can try its luck with the "
    "credentials.",
    remedy="Apply the role nanomq_firewall with the port in nanomq_firewall_guarded_ports",
    source="trials: REST has neither a rate limit nor a lock-out",
)
def _local_users(observation: dict) -> Iterator[str]:
    return iter(fact(observation, "local_access"))


@_host_rule(
    "NMQ-NET-008",
    "high",
    "The broker listens where its configuration does not say so",
    why="Command-line flags, defaults and listeners left over from an older configuration open ports that nobody "
    "reviews.",
    remedy="Start the broker with --conf alone and restart it; the role nanomq_broker does both",
    source="trials: flags override the file; a reload leaves listeners as they were",
)
def _undeclared(observation: dict) -> Iterator[str]:
    declared = {listener.port for listener in listeners(fact(observation, "conf"))}
    for address, _host, port in _sockets(observation):
        if port not in declared:
            yield f"the broker listens on {address}"


@_host_rule(
    "NMQ-NET-009",
    "medium",
    "More than one NanoMQ runs",
    why="A second broker was started by somebody else, with another configuration, and nothing supervises or hardens "
    "it.",
    remedy="End it, and remove what starts it",
    source="trials: there is no lock, and POST /api/v4/ctrl/restart leaves a broker outside of its unit",
)
def _several(observation: dict) -> Iterator[str]:
    found = fact(observation, "processes")
    if len(found) > 1:
        yield "processes " + ", ".join(f"{p['pid']} ({p['unit'] or 'in no unit'})" for p in found)


@_rule(
    "NMQ-NET-013",
    "critical",
    "A bridge to NNG is open to the network",
    why="It listens and asks for no credentials: whoever connects to a sub_url publishes to the topics of its "
    "subscription, as the user nngproxy_bridge, and whoever connects to a pub_url reads what is forwarded.",
    remedy="Give pub_url and sub_url an address on 127.0.0.1 or an ipc:// one in nanomq_broker_settings",
    source="trials: messages went in and out without credentials; bridges.nng is read from 0.24.14 on",
)
def _nng_beyond_loopback(conf: dict, context: dict) -> Iterator[str]:
    del context
    return (x.beyond_loopback for x in listeners(conf) if x.kind == "nng" and x.beyond_loopback)


@_rule(
    "NMQ-NET-014",
    "critical",
    "A socket for the broker's own use is on the network",
    why="These addresses may also be of TCP. Whoever connects to the one for commands replaces the users and lets in "
    "everybody, and whoever connects to the webhook's has events sent in the broker's name, both without a password.",
    remedy="Drop system.hook_ipc_url and system.cmd_ipc_url from nanomq_broker_settings, or let them begin with "
    "ipc:///",
    source="trials: tests/contract/test_command_socket.py and test_webhook.py on six versions",
)
def _own_sockets(conf: dict, context: dict) -> Iterator[str]:
    del context
    for name in ("hook_ipc_url", "cmd_ipc_url"):
        url = get(conf, "system", name)
        if isinstance(url, str) and not url.startswith(("ipc://", "inproc://")):
            yield f"system.{name}: does not begin with ipc://"


@_outside_rule(
    "NMQ-NET-010",
    "critical",
    "Another host reaches REST",
    why="Whatever addresses and packet filters say: this is what the network really lets through.",
    remedy="Apply the roles nanomq_broker and nanomq_firewall, and look at what else forwards the port (DNAT, a proxy, "
    "a container's published port)",
    source="observed from the second host",
)
def _rest_from_outside(seen: dict) -> Iterator[str]:
    for port in fact(seen, "ports"):
        if port["kind"] == "rest":
            yield f"port {port['port']} answers {port['detail']}"


@_outside_rule(
    "NMQ-NET-011",
    "critical",
    "Another host can speak MQTT without encryption",
    why="Passwords and messages of whoever uses this way can be read and changed on it.",
    remedy="Leave listeners.tcp and listeners.ws out of nanomq_broker_settings or bind them to 127.0.0.1, and apply "
    "the role nanomq_firewall",
    source="observed from the second host",
)
def _plain_from_outside(seen: dict) -> Iterator[str]:
    for port in fact(seen, "ports"):
        if port["kind"] in ("mqtt", "websocket"):
            yield f"port {port['port']} answers {port['detail']}"


@_outside_rule(
    "NMQ-NET-012",
    "high",
    "Another host reaches a port that this one keeps to itself",
    why="A listener of the broker on loopback is meant for the host alone. Something forwards it.",
    remedy="Look for DNAT, a proxy or a tunnel (`nft list ruleset`, `ss -ltnp`), and apply the role nanomq_firewall",
    source="observed from the second host",
)
def _loopback_from_outside(seen: dict) -> Iterator[str]:
    for port in fact(seen, "ports"):
        if port["kind"] in ("open", "tls") and port["private"]:
            yield f"port {port['port']} answers {port['detail']}"


# --- transport --------------------------------------------------------------------------------------------------------


@_rule(
    "NMQ-TLS-001",
    "critical",
    "MQTT without encryption on the network",
    why="User names, passwords and messages can be read and changed on the way.",
    remedy="Leave listeners.tcp out of nanomq_broker_settings (the role opens TLS alone), or bind it to 127.0.0.1; "
    "`enable = false` is ignored by the broker",
    source="trials: without a listeners block the broker opens 0.0.0.0:1883; listeners.tcp.enable = false has no "
    "effect",
)
def _plain_mqtt(conf: dict, context: dict) -> Iterator[str]:
    del context
    return (x.beyond_loopback for x in listeners(conf) if x.kind == "tcp" and x.beyond_loopback)


@_on_host("NMQ-TLS-001")
def _plain_mqtt_socket(observation: dict) -> Iterator[str]:
    for probe in fact(observation, "mqtt"):
        host, _port = split_bind(probe["address"], probe["address"])
        if not probe["tls"] and probe["mqtt"] and not is_loopback(host):
            yield f"MQTT answers without TLS on {probe['address']}"


@_rule(
    "NMQ-TLS-002",
    "critical",
    "MQTT over WebSocket without encryption on the network",
    why="As with plain MQTT, and any web page that a user of the network opens can speak to it.",
    remedy="Leave listeners.ws out of nanomq_broker_settings, or bind it to 127.0.0.1",
    source="trials: the shipped configuration opens 0.0.0.0:8083",
)
def _plain_websocket(conf: dict, context: dict) -> Iterator[str]:
    del context
    return (x.beyond_loopback for x in listeners(conf) if x.kind == "ws" and x.beyond_loopback)


@_on_host("NMQ-TLS-002")
def _plain_websocket_socket(observation: dict) -> Iterator[str]:
    for address in _sockets_of(observation, "ws"):
        yield f"WebSocket without TLS listens on {address}"


@_rule(
    "NMQ-TLS-003",
    "high",
    "A TLS listener lacks what it needs",
    why="Without an address it is not opened; without key or certificate it opens and fails every handshake. Both "
    "happen without a message, and people then fall back to plain MQTT.",
    remedy="Set nanomq_broker_tls_key_path and nanomq_broker_tls_certificate_path, or apply the role nanomq_pki",
    source="trials: listeners.ssl without bind, keyfile or certfile",
)
def _tls_incomplete(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, block in tls_listeners(conf):
        for name in ("bind", "keyfile", "certfile"):
            value = get(block, name)
            if not isinstance(value, str) or not value:
                yield f"{key}.{name}: is not given"


@_on_host("NMQ-TLS-003")
def _tls_handshake(observation: dict) -> Iterator[str]:
    for probe in fact(observation, "mqtt"):
        if probe["tls"] and not probe["mtls"] and probe["anonymous"] == "no handshake":
            yield f"no TLS handshake succeeds on {probe['address']}"


@_rule(
    "NMQ-TLS-004",
    "high",
    "Client certificates are asked for and not required",
    why="With verify_peer alone, clients without a certificate and with one of another CA are accepted.",
    remedy="Set nanomq_broker_mqtt_client_certificates, which switches both keys",
    source="trials: verify_peer without fail_if_no_peer_cert",
)
def _verify_alone(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, block in tls_listeners(conf):
        if get(block, "verify_peer") is True and get(block, "fail_if_no_peer_cert") is not True:
            yield f"{key}.fail_if_no_peer_cert: is not true beside verify_peer"


@_rule(
    "NMQ-TLS-005",
    "high",
    "Client certificates are required and not verified",
    why='fail_if_no_peer_cert has no effect without verify_peer, and a quoted "true" counts as false: everybody is '
    "accepted, though the file reads otherwise.",
    remedy="Set nanomq_broker_mqtt_client_certificates, which switches both keys",
    source="trials: fail_if_no_peer_cert without verify_peer; quoted booleans",
)
def _fail_alone(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, block in tls_listeners(conf):
        verify, fail = get(block, "verify_peer"), get(block, "fail_if_no_peer_cert")
        if fail is True and verify is not True:
            yield f"{key}.verify_peer: is not true beside fail_if_no_peer_cert"
        for name, value in (("verify_peer", verify), ("fail_if_no_peer_cert", fail)):
            if value is not None and not isinstance(value, bool):
                yield f"{key}.{name}: is no boolean, and the broker takes it for false"


@_rule(
    "NMQ-TLS-006",
    "medium",
    "Client certificates are required and no CA is named",
    why="Every client is refused, and people then switch the verification off.",
    remedy="Set nanomq_broker_tls_ca, or apply the role nanomq_pki",
    source="trials: verify_peer without cacertfile",
)
def _no_ca(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, block in tls_listeners(conf):
        if get(block, "verify_peer") is True and not get(block, "cacertfile"):
            yield f"{key}.cacertfile: is not given beside verify_peer"


def _bridges(conf: dict) -> Iterator[tuple]:
    """(kind, key, block) of the bridges to MQTT brokers that are on."""
    for kind in ("mqtt", "aws"):
        for name, bridge in _blocks(conf, "bridges", kind):
            if _on(bridge) and not (kind == "mqtt" and name == "cache"):
                yield kind, _join("bridges", kind, name), bridge


def _bridge_urls(key: str, bridge: dict) -> Iterator[tuple]:
    """(key, url) of the servers that a bridge leads to."""
    yield f"{key}.server", get(bridge, "server")
    for index, url in enumerate(_list(bridge, "hybrid_servers")):
        yield f"{key}.hybrid_servers[{index}]", url


#: What helps where the broker cannot do TLS as a client, or not safely.
_RELAY = (
    "let a relay on the host do TLS, which verifies chain and name (nanomq_nginx_relays, or stunnel), and name its "
    "address on 127.0.0.1"
)
#: From this version on a bridge verifies no server, whatever its block `ssl` says.
_BRIDGES_VERIFY_NOTHING = (0, 24, 14)


@_rule(
    "NMQ-TLS-007",
    "high",
    "A bridge sends its password and all messages without encryption",
    why="What TLS protects on the way to this broker goes on in clear to the next one.",
    remedy=f"For the bridge's server in nanomq_broker_settings {_RELAY}: mqtt-tcp://127.0.0.1:18831",
    source="trials: messages and password went in clear; the scheme of bridges.mqtt.<name>.server chooses the "
    "transport",
)
def _plain_bridge(conf: dict, context: dict) -> Iterator[str]:
    del context
    for _kind, bridge, block in _bridges(conf):
        for key, url in _bridge_urls(bridge, block):
            if _plain(url, _ENCRYPTED):
                yield f"{key}: leads to another host without TLS"


@_rule(
    "NMQ-TLS-008",
    "high",
    "A bridge cannot tell the right server from a wrong one",
    why="From 0.24.14 on the broker takes any certificate: of another CA, for another name, expired. Neither "
    "cacertfile nor verify_peer changes that. Before, with cacertfile, it verifies the chain and not the name. Whoever "
    "stands in between gets the bridge's password, reads all messages and makes up others.",
    remedy=f"For the bridge's server in nanomq_broker_settings {_RELAY}: mqtt-tcp://127.0.0.1:18831",
    source="trials: tests/contract/test_bridges.py on six versions; source: bridge.c asks for no verification, since "
    "verify_peer is not read for bridges",
)
def _bridge_unverified(conf: dict, context: dict) -> Iterator[str]:
    version = _version(context)
    blind = version is None or version >= _BRIDGES_VERIFY_NOTHING
    for kind, bridge, block in _bridges(conf):
        without_ca = not get(block, "ssl", "cacertfile")
        if kind == "aws":
            if without_ca:
                yield f"{bridge}.ssl.cacertfile: is not given"
            continue
        for key, url in _bridge_urls(bridge, block):
            if _encrypted(url) and not is_loopback(_host_of(url)):
                what = "that" if blind or without_ca else "whose name"
                yield f"{key}: leads to a server {what} the broker does not verify"


_ENCRYPTED = ("tls+", "mqtt-quic://", "wss://", "nmq-wss://")


def _encrypted(url: Any) -> bool:
    return isinstance(url, str) and url.lower().startswith(_ENCRYPTED)


@_rule(
    "NMQ-TLS-009",
    "high",
    "Logins are checked over plain HTTP",
    why="auth.http_auth sends the user's name and password to another host in clear, and whoever answers in its place "
    "lets anybody in.",
    remedy=f"For auth.http_auth in nanomq_broker_settings {_RELAY}: http://127.0.0.1:18832/auth",
    source="trials: names, passwords and headers arrive in clear",
)
def _plain_http_auth(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, url in _http_auth_urls(conf):
        if _plain(url, ("https://",)):
            yield f"{key}: leads to another host without TLS"


def _http_auth_urls(conf: dict) -> Iterator[tuple]:
    """(key, url) that decide about clients."""
    block = _block(conf, "auth", "http_auth")
    if _on(block):
        for name in ("auth_req", "super_req", "acl_req"):
            yield f"auth.http_auth.{name}.url", get(block, name, "url")


def _webhook_urls(conf: dict) -> Iterator[tuple]:
    block = _block(conf, "webhook")
    if _on(block):
        yield "webhook.url", get(block, "url")


@_rule(
    "NMQ-TLS-010",
    "high",
    "Events are sent over plain HTTP",
    why="The webhook carries client names, topics and messages, and its headers often carry a token.",
    remedy=f"For webhook.url in nanomq_broker_settings {_RELAY}: http://127.0.0.1:18832/events",
    source="trials: events, messages and headers arrive in clear",
)
def _plain_webhook(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, url in _webhook_urls(conf):
        if _plain(url, ("https://",)):
            yield f"{key}: leads to another host without TLS"


@_rule(
    "NMQ-TLS-011",
    "high",
    "A rule sends messages and a password to another host without encryption",
    why="The targets of the rule engine have no TLS keys of their own. To a database the broker asks for no "
    "encryption, and verifies none.",
    remedy=f"For rules.repub.rules[].server in nanomq_broker_settings {_RELAY}: mqtt-tcp://127.0.0.1:18831",
    source="trials: tests/contract/test_rule_engine.py on 0.25.6; source, for databases: nanomq_rule.c",
)
def _plain_rule(conf: dict, context: dict) -> Iterator[str]:
    del context
    for index, rule in enumerate(_list(conf, "rules", "repub", "rules")):
        if _plain(get(rule, "server"), _ENCRYPTED):
            yield f"rules.repub.rules[{index}].server: leads to another host without TLS"
    for kind in _DATABASES:
        for name, block in _blocks(conf, "rules", kind):
            host = get(block, "conn", "host")
            if isinstance(host, str) and not is_loopback(host):
                yield _join("rules", kind, name, "conn", "host") + ": is another host"


@_rule(
    "NMQ-TLS-022",
    "high",
    "The broker cannot do TLS to where it is sent",
    why="As a client of HTTPS the broker trusts no CA at all, and does not read the block `ssl`: it connects to "
    "nobody. Events are lost without a word at the level error, and every login is refused. A bridge by TLS without a "
    "block `ssl`, and a rule that publishes by TLS, do not connect either.",
    remedy=f"In nanomq_broker_settings {_RELAY}",
    source="trials: tests/contract/test_bridges.py, test_webhook.py on six versions, test_rule_engine.py on 0.25.6",
)
def _tls_without_trust(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, url in (*_webhook_urls(conf), *_http_auth_urls(conf)):
        if isinstance(url, str) and url.lower().startswith("https://"):
            yield f"{key}: is https://, which never connects"
    for kind, bridge, block in _bridges(conf):
        if kind == "mqtt" and _encrypted(get(block, "server")) and not _block(block, "ssl"):
            yield f"{bridge}.ssl: is not given, and so the bridge never connects"
    for index, rule in enumerate(_list(conf, "rules", "repub", "rules")):
        if _encrypted(get(rule, "server")):
            yield f"rules.repub.rules[{index}].server: asks for TLS, which never connects"


@_host_rule(
    "NMQ-TLS-012",
    "high",
    "The certificate that is served has expired or is not valid yet",
    why="Clients that verify cannot connect; those that still do, do not verify.",
    remedy="Apply the role nanomq_pki, which renews nanomq_pki_server_renew_before ahead, and nanomq_broker",
    source="RFC 5280, 4.1.2.5",
)
def _expired(observation: dict) -> Iterator[str]:
    for probe in _served(observation):
        if probe["days_left"] < 0 or not probe["valid_yet"]:
            state = f"expired on {probe['not_after']}" if probe["valid_yet"] else "is not valid yet"
            yield f"the certificate on {probe['address']} {state}"


@_host_rule(
    "NMQ-TLS-013",
    "medium",
    "The certificate that is served expires soon",
    why=f"Nothing has renewed it {EXPIRES_SOON} days before its end, so nothing will.",
    remedy="Apply the role nanomq_pki, which renews nanomq_pki_server_renew_before ahead, and nanomq_broker",
    source="trials: the broker reads a certificate at its start only",
)
def _expires_soon(observation: dict) -> Iterator[str]:
    for probe in _served(observation):
        if 0 <= probe["days_left"] < EXPIRES_SOON:
            yield f"the certificate on {probe['address']} expires on {probe['not_after']}"


def _served(observation: dict) -> list:
    """What was seen of the certificates on the sockets. Raises NotObserved when a TLS listener showed none."""
    found = []
    for probe in fact(observation, "mqtt"):
        if probe["tls"]:
            if "not_after" not in probe:
                raise NotObserved(f"no certificate came from {probe['address']}")
            found.append(probe)
    return found


@_host_rule(
    "NMQ-TLS-014",
    "high",
    "A private key can be read or replaced by others",
    why="Whoever reads the key can pose as the broker.",
    remedy="Apply the role nanomq_pki: the key belongs to root and the broker's group, mode 0640 at most",
    source="field practice: private keys are readable by their service alone",
)
def _loose_key(observation: dict) -> Iterator[str]:
    for item in fact(observation, "key_files"):
        if item["kind"] != "tls" or not item["exists"]:
            continue
        if int(item["mode"], 8) & 0o007:
            yield f"{item['path']} has mode {item['mode']}"
        if item["writable_by_service"]:
            yield f"{item['path']} can be replaced by the broker's user"


@_host_rule(
    "NMQ-TLS-015",
    "high",
    "A listener agrees to a TLS version older than 1.2",
    why="TLS 1.0 and 1.1 rest on SHA-1 and MD5 and are forbidden since RFC 8996.",
    remedy="Install NanoMQ 0.25.6 or later, whose TLS library refuses them; there is no setting for it",
    source="RFC 8996; trials: 0.25.6 refuses 1.0 and 1.1",
)
def _old_tls(observation: dict) -> Iterator[str]:
    for probe in fact(observation, "handshakes"):
        if probe["old_versions"]:
            yield f"{probe['address']} agrees to {', '.join(probe['old_versions'])}"


@_host_rule(
    "NMQ-TLS-016",
    "medium",
    "A listener agrees to a suite without forward secrecy",
    why="Who records the traffic today reads it all once the key leaks. The broker offers RSA key exchange, and has no "
    "setting for its suites; with an EC key no such suite is left. (Suites in CBC mode remain; only a front end can "
    "take them away.)",
    remedy="Give the broker an EC key (nanomq_pki_server_key_type), or let nginx's stream module terminate TLS "
    "(nanomq_nginx_mqtt)",
    source="trials: AES128-SHA is accepted with an RSA key; RFC 9325, 4.1",
)
def _weak_suites(observation: dict) -> Iterator[str]:
    for probe in fact(observation, "handshakes"):
        if probe["weak_suites"]:
            yield f"{probe['address']} agrees to {', '.join(probe['weak_suites'])}"


def _readable_certificates(observation: dict, role: str) -> list:
    return [one for one in fact(observation, "certificates") if one["role"] == role and not one["error"]]


@_host_rule(
    "NMQ-TLS-017",
    "high",
    "A certificate file cannot be used",
    why="The listener opens all the same and fails every handshake, or takes no client's certificate, without a "
    "message. A key that belongs to another certificate is as bad.",
    remedy="Apply the roles nanomq_pki and nanomq_broker, which try a pair before it is taken",
    source="trials: bad, missing and mismatched files open a listener that fails every handshake",
)
def _unusable_certificate(observation: dict) -> Iterator[str]:
    for one in fact(observation, "certificates"):
        if one["error"]:
            yield f"{one['key']}: {one['path']}: {one['error']}"
        elif one["key_matches"] is False:
            yield f"{one['key']}: the private key does not belong to {one['path']}"


@_host_rule(
    "NMQ-TLS-018",
    "medium",
    "What is served is not the certificate in the file",
    why="The broker reads its certificate at its start only: one that was renewed since is not in force, and the old "
    "one expires all the same.",
    remedy="Restart the broker, or apply the role nanomq_broker, which compares the two",
    source="trials: certificates are read at the start only",
)
def _not_served(observation: dict) -> Iterator[str]:
    for one in _readable_certificates(observation, "leaf"):
        for address in one["other_served_on"]:
            yield f"{address} shows another certificate than {one['path']}"


@_host_rule(
    "NMQ-TLS-019",
    "medium",
    "A CA certificate has expired or expires soon",
    why="All certificates that it signed end with it, the clients' and the bridges' at once.",
    remedy="Make a new CA in nanomq_pki_dir in time, and let hosts and clients trust both for a while",
    source="RFC 5280, 6.1.3",
)
def _authority_expires(observation: dict) -> Iterator[str]:
    for one in _readable_certificates(observation, "authority"):
        if one["days_left"] < AUTHORITY_EXPIRES_SOON:
            yield f"{one['key']}: {one['path']} ends on {one['not_after']}"


@_host_rule(
    "NMQ-TLS-020",
    "medium",
    "A certificate rests on weak cryptography",
    why="RSA below 2048 bits and signatures by SHA-1 can be forged with enough money.",
    remedy="Apply the role nanomq_pki with nanomq_pki_server_key_type at its default",
    source="NIST SP 800-131A",
)
def _weak_certificate(observation: dict) -> Iterator[str]:
    for one in fact(observation, "certificates"):
        if one["error"]:
            continue
        if weak_key(one["key_type"]):
            yield f"{one['key']}: {one['path']} holds a key of the kind {one['key_type'] or 'unknown'}"
        if not one["digest"]:
            yield f"{one['key']}: {one['path']} is signed by something else than SHA-256, 384 or 512"


@_rule(
    "NMQ-TLS-021",
    "high",
    "No client can connect with encryption",
    why="Without a listener for TLS every client, also a careful one, sends its password and messages in clear.",
    remedy="Apply the roles nanomq_pki and nanomq_broker, whose configuration has listeners.ssl; drop what switches it "
    "off from nanomq_broker_settings",
    source="trials: the shipped configuration has plain listeners alone",
)
def _no_tls(conf: dict, context: dict) -> Iterator[str]:
    del context
    # Plain ones on loopback may have a front end.
    if not tls_listeners(conf) and any(x.kind in ("tcp", "ws") and x.beyond_loopback for x in listeners(conf)):
        yield "listeners.ssl: is not given"


def weak_key(key_type: str) -> bool:
    """Whether a key, such as ``rsa-1024`` or ``ec-p256``, is too weak, or of a kind that nobody knows."""
    kind, _dash, size = key_type.partition("-")
    if kind == "rsa" and size.isdigit():
        return int(size) < SMALLEST_RSA
    return key_type not in STRONG_KEYS


# --- authentication ---------------------------------------------------------------------------------------------------


@_rule(
    "NMQ-AUT-001",
    "critical",
    "Anybody can connect without a name",
    why="With anonymous clients allowed, which is the default, no password is looked at: wrong ones are accepted as "
    "well. The broker heeds an unquoted false alone.",
    remedy="Set auth.allow_anonymous to false without quotes, as the role does; drop it from nanomq_broker_settings",
    source='trials: allow_anonymous absent, "false", no, False, 0 all leave it true',
)
def _anonymous(conf: dict, context: dict) -> Iterator[str]:
    del context
    value = get(conf, "auth", "allow_anonymous")
    if value is None:
        yield "auth.allow_anonymous: is not given, and the default is true"
    elif value is not False:
        yield f"auth.allow_anonymous: is {'true' if value is True else 'no boolean, and the broker takes it for true'}"


@_on_host("NMQ-AUT-001")
def _anonymous_accepted(observation: dict) -> Iterator[str]:
    for probe in fact(observation, "mqtt"):
        if _outcome(probe, "anonymous") == "accepted":
            yield f"a client without a name was accepted on {probe['address']}"


def _outcome(probe: dict, name: str) -> str:
    """accepted or refused. Raises NotObserved where the login did not get so far."""
    if probe[name] not in ("accepted", "refused"):
        raise NotObserved(f"no login could be tried on {probe['address']}: {probe[name]}")
    return probe[name]


@_rule(
    "NMQ-AUT-002",
    "critical",
    "The list of users is empty, so that any name and password is accepted",
    why="With anonymous clients off and no user known, the broker lets in everybody who sends some name and password. "
    "Passwords without quotes that look like numbers are dropped, which empties a list as well.",
    remedy="Name at least one user in nanomq_broker_users, with a quoted password",
    source="trials: empty list, list of numbers, empty include",
)
def _no_users(conf: dict, context: dict) -> Iterator[str]:
    del context
    if not users(conf):
        yield "auth.password: holds no user with a quoted password"


@_on_host("NMQ-AUT-002")
def _made_up_accepted(observation: dict) -> Iterator[str]:
    for probe in fact(observation, "mqtt"):
        # Where nobody needs a name, or no password is looked at, it says nothing of the list.
        if "accepted" in (probe["anonymous"], probe["wrong_password"]):
            continue
        if _outcome(probe, "made_up") == "accepted":
            yield f"a client with a made-up name and password was accepted on {probe['address']}"


@_rule(
    "NMQ-AUT-003",
    "critical",
    "Passwords are not checked",
    why="With auth.password.enable = false any name and password is accepted.",
    remedy="Drop auth.password.enable from nanomq_broker_settings",
    source="trials: auth.password.enable = false",
)
def _passwords_off(conf: dict, context: dict) -> Iterator[str]:
    del context
    if get(conf, "auth", "password", "enable") is False:
        yield "auth.password.enable: is false"


@_on_host("NMQ-AUT-003")
def _wrong_password_accepted(observation: dict) -> Iterator[str]:
    for probe in fact(observation, "mqtt"):
        if not probe["wrong_password"] or probe["anonymous"] == "accepted":
            continue
        if _outcome(probe, "wrong_password") == "accepted":
            yield f"a user with a wrong password was accepted on {probe['address']}"


@_rule(
    "NMQ-AUT-004",
    "high",
    "A user has a password that is easy to guess",
    why="The broker neither slows down nor locks out whoever tries passwords.",
    remedy=f"Give the user at least {SHORTEST_PASSWORD} random characters in nanomq_broker_users",
    source="trials: no delay after a wrong password",
)
def _weak_user(conf: dict, context: dict) -> Iterator[str]:
    del context
    for name, password in users(conf).items():
        if _weakness(password, name):
            yield f"{_join('auth', 'password', name)}: {_weakness(password, name)}"


@_rule(
    "NMQ-AUT-005",
    "critical",
    "REST asks for no credentials",
    why="Whoever reaches the port administers the broker.",
    remedy="Set nanomq_broker_http_auth to jwt",
    source="trials: auth_type = no_auth",
)
def _rest_open(conf: dict, context: dict) -> Iterator[str]:
    del context
    if get(conf, "http_server", "auth_type") == "no_auth":
        yield "http_server.auth_type: is no_auth"


@_on_host("NMQ-AUT-005")
def _rest_answers(observation: dict) -> Iterator[str]:
    for probe in fact(observation, "rest"):
        if probe["without_credentials"] != 401:
            yield f"REST on {probe['address']} answers a caller without credentials with {probe['without_credentials']}"


@_rule(
    "NMQ-AUT-006",
    "medium",
    "REST is guarded by a password instead of signed tokens",
    why="The password is full administration that never expires, travels with each call, and lies on the host in "
    "clear. A value that the broker does not know counts as basic, without a message.",
    remedy="Set nanomq_broker_http_auth to jwt",
    source="trials: auth_type defaults to basic; unknown values are basic",
)
def _rest_basic(conf: dict, context: dict) -> Iterator[str]:
    del context
    if _basic(conf):
        given = get(conf, "http_server", "auth_type")
        state = "is basic" if given == "basic" else "is not given" if given is None else "is unknown, which means basic"
        yield f"http_server.auth_type: {state}"


@_rule(
    "NMQ-AUT-007",
    "critical",
    "REST takes the shipped password",
    why="admin and public are printed in every manual of the broker. A password without quotes that looks like a "
    "number or a variable is ignored, which leaves public in force.",
    remedy="Set nanomq_broker_http_password, in quotes and from a vault, or nanomq_broker_http_auth to jwt",
    source="trials: default admin:public; unquoted numbers, true, null and ${X} fall back to it",
)
def _rest_default(conf: dict, context: dict) -> Iterator[str]:
    del context
    password = get(conf, "http_server", "password")
    if _basic(conf) and (not isinstance(password, str) or password == "public"):
        state = "is the shipped one" if password == "public" else "is not given as a quoted text, which means public"
        yield f"http_server.password: {state}"


@_on_host("NMQ-AUT-007")
def _rest_takes_default(observation: dict) -> Iterator[str]:
    for probe in fact(observation, "rest"):
        # Where none are asked for, it says nothing of these.
        if probe["shipped_credentials"] != 401 and probe["without_credentials"] == 401:
            yield f"REST on {probe['address']} answers admin:public with {probe['shipped_credentials']}"


@_rule(
    "NMQ-AUT-008",
    "high",
    "The password of REST is easy to guess",
    why="REST neither slows down nor locks out whoever tries passwords.",
    remedy=f"Give nanomq_broker_http_password at least {SHORTEST_PASSWORD} random characters",
    source="trials: no delay after a wrong password",
)
def _rest_weak(conf: dict, context: dict) -> Iterator[str]:
    del context
    password, name = get(conf, "http_server", "password"), get(conf, "http_server", "username")
    if not _basic(conf) or not isinstance(password, str) or password == "public":
        return
    if _weakness(password, str(name or "admin")):
        yield f"http_server.password: {_weakness(password, str(name or 'admin'))}"


@_rule(
    "NMQ-AUT-009",
    "low",
    "The user of REST has the shipped name",
    why="Half of what an attacker has to guess is known.",
    remedy="Set nanomq_broker_http_username",
    source="trials: http_server.username defaults to admin",
)
def _rest_admin(conf: dict, context: dict) -> Iterator[str]:
    del context
    name = get(conf, "http_server", "username")
    if _basic(conf) and (not isinstance(name, str) or name.lower() == "admin"):
        yield "http_server.username: is admin" if isinstance(name, str) else "http_server.username: is not given"


@_rule(
    "NMQ-AUT-010",
    "medium",
    "REST expects tokens and has no key to verify them",
    why="Every call is refused, without a message at the start; people then switch to basic.",
    remedy="Set nanomq_broker_jwt_public_key and nanomq_broker_jwt_issuer, or apply the role nanomq_pki",
    source="trials: auth_type = jwt without jwt.public.keyfile",
)
def _no_token_key(conf: dict, context: dict) -> Iterator[str]:
    del context
    key = get(conf, "http_server", "jwt", "public", "keyfile")
    if get(conf, "http_server", "auth_type") == "jwt" and (not isinstance(key, str) or not key):
        yield "http_server.jwt.public.keyfile: is not given"


@_rule(
    "NMQ-AUT-011",
    "high",
    "The key that signs tokens is named on the broker's host",
    why="The broker needs the public key alone. With the private one, whoever reads the host mints tokens for the "
    "fleet.",
    remedy="Remove it from the host, rotate the key pair (nanomq_pki_jwt_name), and keep the private key on the "
    "controller",
    source="source: http_server.jwt.private is not read by the broker",
)
def _private_token_key(conf: dict, context: dict) -> Iterator[str]:
    del context
    if get(conf, "http_server", "jwt", "private") is not None:
        yield "http_server.jwt.private: is given"


@_on_host("NMQ-AUT-011")
def _private_token_key_file(observation: dict) -> Iterator[str]:
    for item in fact(observation, "key_files"):
        if item["kind"] == "jwt" and item["exists"] and item["private"]:
            yield f"{item['path']} holds a private key"


@_host_rule(
    "NMQ-AUT-012",
    "critical",
    "REST takes a token that nobody signed",
    why="Whoever reaches the port then writes a token for it, and administers the broker.",
    remedy=f"Install NanoMQ {_versions.RECOMMENDED} or later, and keep http_server.jwt as the role writes it",
    source="RFC 8725, 2.1 and 3.1; trials: 0.25.6 refuses all three forgeries",
)
def _forged(observation: dict) -> Iterator[str]:
    for probe in fact(observation, "rest"):
        for what in probe["forged"]:
            yield f"REST on {probe['address']} takes {what}"


@_host_rule(
    "NMQ-AUT-013",
    "high",
    "The key that verifies tokens is weak, or none",
    why="A key that cannot be read lets nobody in, and one below 2048 bits lets in whoever has factored it.",
    remedy="Make the pair anew by the role nanomq_pki (nanomq_pki_jwt_size)",
    source="RFC 7518, 3.3: RS256 needs 2048 bits",
)
def _weak_token_key(observation: dict) -> Iterator[str]:
    if get(fact(observation, "conf"), "http_server", "auth_type") != "jwt":
        return
    for one in fact(observation, "key_files"):
        if one["kind"] != "jwt" or one.get("private"):
            continue
        if not one["exists"]:
            yield f"{one['path']} does not exist"
        elif weak_key(one["key_type"]) or not one["key_type"].startswith("rsa"):
            yield f"{one['path']} holds a key of the kind {one['key_type'] or 'unknown'}"


@_host_rule(
    "NMQ-AUT-014",
    "low",
    "The key of tokens is old",
    why="Nobody knows by now who has a copy of its other half, and tokens cannot be revoked.",
    remedy="Make a new pair on the controller (nanomq_pki_dir/jwt) and apply nanomq_pki and nanomq_broker",
    source="NIST SP 800-57, 5.3.6: a signature key should be used for one to three years",
)
def _old_token_key(observation: dict) -> Iterator[str]:
    for one in fact(observation, "key_files"):
        if one["kind"] == "jwt" and one["exists"] and one["age_days"] > OLDEST_TOKEN_KEY:
            yield f"{one['path']} is {one['age_days']} days old"


@_host_rule(
    "NMQ-AUT-015",
    "high",
    "The key that verifies tokens can be replaced by the broker",
    why="A broker that was broken into then puts another key in its place, and gives out tokens of its own.",
    remedy="Apply the role nanomq_pki: the key belongs to root",
    source="field practice: what verifies does not belong to what is verified",
)
def _loose_token_key(observation: dict) -> Iterator[str]:
    for one in fact(observation, "key_files"):
        if one["kind"] == "jwt" and one["exists"] and one["writable_by_service"]:
            yield f"{one['path']} can be replaced by the broker's user"


# --- access control: topics -------------------------------------------------------------------------------------------


@_rule(
    "NMQ-ACL-001",
    "high",
    "No rule says who may use which topic",
    why="Without an acl block every user reads and writes everything, and no_match has no effect.",
    remedy="Set nanomq_broker_acl",
    source="trials: no_match counts only beside auth.acl",
)
def _no_acl(conf: dict, context: dict) -> Iterator[str]:
    del context
    if not _acl_rules(conf):
        yield "auth.acl.rules: is absent or empty"


@_rule(
    "NMQ-ACL-002",
    "high",
    "The topic rules are switched off",
    why="With auth.acl.enable = false neither the rules nor no_match count.",
    remedy="Drop auth.acl.enable from nanomq_broker_settings",
    source="trials: auth.acl.enable = false",
)
def _acl_off(conf: dict, context: dict) -> Iterator[str]:
    del context
    if get(conf, "auth", "acl", "enable") is False:
        yield "auth.acl.enable: is false"


@_rule(
    "NMQ-ACL-003",
    "high",
    "What no topic rule matches is allowed",
    why="The default of no_match is allow: a rule list then forbids only what it names.",
    remedy="Leave auth.no_match at deny, as the role does, or end nanomq_broker_acl with `permit: deny` alone",
    source="trials: auth.no_match",
)
def _no_match(conf: dict, context: dict) -> Iterator[str]:
    del context
    rules = [rule for _key, rule in _acl_rules(conf)]
    ends_in_deny = (
        rules and {str(name).lower() for name in rules[-1]} == {"permit"} and get(rules[-1], "permit") == "deny"
    )
    if get(conf, "auth", "no_match") != "deny" and not ends_in_deny:
        yield "auth.no_match: is not deny"


@_rule(
    "NMQ-ACL-004",
    "high",
    "A topic rule allows something to everybody, since it names no subject",
    why="A rule whose subject is missing or misspelt (user for username) applies to every client.",
    remedy='Name username, clientid or ipaddr in the rule of nanomq_broker_acl; username "#" where all users are meant',
    source="trials: a rule with an unknown subject key",
)
def _no_subject(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, rule in _acl_rules(conf):
        if get(rule, "permit") == "allow" and not _subjects(rule):
            yield f"{key}: allows without a subject"


@_rule(
    "NMQ-ACL-005",
    "high",
    "A topic rule allows every topic to every user",
    why="One stolen device then reads and commands the whole fleet.",
    remedy="Name topics in the rule of nanomq_broker_acl, such as ${username}/#",
    source='trials: username "#" is every user, a rule without topics is every topic',
)
def _everything(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, rule in _acl_rules(conf):
        everybody = get(rule, "username") == "#" or not _subjects(rule)
        if (
            get(rule, "permit") == "allow"
            and everybody
            and (get(rule, "topics") is None or "#" in _list(rule, "topics"))
        ):
            yield f"{key}: allows all topics to all users"


@_rule(
    "NMQ-ACL-006",
    "medium",
    "A topic rule trusts the client id",
    why="A client chooses its id freely: a user who sends the id of another device gets that device's topics.",
    remedy="Use username and ${username} in nanomq_broker_acl, or `and` a user with the client id",
    source="MQTT 3.1.1, 3.1.3.1: the client identifier is the client's claim",
)
def _client_id(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, rule in _acl_rules(conf):
        if get(rule, "permit") != "allow":
            continue
        if _subjects(rule) == ["clientid"]:
            yield f"{key}.clientid: is the only subject"
        if any("${clientid}" in str(topic) for topic in _list(rule, "topics")):
            yield f"{key}.topics: use ${{clientid}}"


@_rule(
    "NMQ-ACL-007",
    "medium",
    "A topic rule uses a placeholder that does not expand",
    why="%c and %u of other brokers stand for themselves here, so the rule matches nothing that is meant.",
    remedy="Write ${clientid} or ${username} in nanomq_broker_acl",
    source="trials: %c and %u in topics",
)
def _placeholder(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, rule in _acl_rules(conf):
        if any(re.search(r"(^|/)%[cu](/|$)", str(topic)) for topic in _list(rule, "topics")):
            yield f"{key}.topics: use %c or %u"


@_rule(
    "NMQ-ACL-008",
    "high",
    "A topic rule names an address in a way that never matches",
    why="Networks (10.0.0.0/8) and the ipaddrs list did not match in trials: a rule that denies so lets everybody "
    "through.",
    remedy="Name single addresses with ipaddr in nanomq_broker_acl, and networks in nanomq_firewall_mqtt_networks",
    source="trials: ipaddr with CIDR, ipaddrs",
)
def _address(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, rule in _acl_rules(conf):
        items = [rule, *(item for name in ("and", "or") for item in _list(rule, name))]
        if any("/" in str(get(item, "ipaddr") or "") for item in items):
            yield f"{key}.ipaddr: is a network"
        if any(get(item, "ipaddrs") is not None for item in items):
            yield f"{key}.ipaddrs: is used"


@_rule(
    "NMQ-ACL-009",
    "high",
    "A topic rule is dropped by the broker",
    why="A misspelt permit or action drops the whole rule without a message: what it denies is then allowed.",
    remedy="Use allow or deny, and publish, subscribe or pubsub, in nanomq_broker_acl",
    source="trials and acl_conf.c: values are compared with case",
)
def _dropped_rule(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, rule in _acl_rules(conf):
        if get(rule, "permit") not in ("allow", "deny"):
            yield f"{key}.permit: is neither allow nor deny"
        if get(rule, "action") not in (None, "publish", "subscribe", "pubsub"):
            yield f"{key}.action: is none of publish, subscribe, pubsub"


@_rule(
    "NMQ-ACL-016",
    "high",
    "Messages that are denied leave the broker",
    why="With deny_action = disconnect, which in truth disconnects nobody, no subscriber gets a message that the rules "
    "for topics deny, but bridges, rules of the rule engine and the webhook take it along like any other.",
    remedy="Leave auth.deny_action at ignore, as the role does: drop it from nanomq_broker_settings",
    source="trials: tests/contract/test_bridges.py and test_webhook.py on six versions, test_rule_engine.py on 0.25.6",
)
def _denied_leaves(conf: dict, context: dict) -> Iterator[str]:
    del context
    ways = [*_bridges(conf), *_webhook_urls(conf), *_rules(conf)]
    if ways and get(conf, "auth", "deny_action") == "disconnect":
        yield "auth.deny_action: is disconnect, which keeps nothing from leaving"


# --- access control: the service --------------------------------------------------------------------------------------


_TAKE_OUT = "Take the call out of nanomq_nginx_roles; on the host itself root can make it"


_hazard_rule(
    "NMQ-ACL-010",
    "critical",
    "Callers may read the broker's secrets",
    why="GET configuration answers with the private key of TLS, the passwords of all users and those of bridges.",
    remedy=_TAKE_OUT,
    source="trials: GET configuration/tls, /auth, /http_server and /bridge show them in clear",
)

_hazard_rule(
    "NMQ-ACL-011",
    "critical",
    "Callers may change the configuration that runs",
    why="One call lets anonymous clients in, or sets the password of REST, and nothing in the file tells of it. One "
    "with a wrong key ends the broker.",
    remedy=_TAKE_OUT,
    source="trials: POST reload {allow_anonymous: true} takes effect at once; POST configuration/auth crashes on the "
    "names that GET gives",
)

_hazard_rule(
    "NMQ-ACL-012",
    "critical",
    "Callers may write the configuration file",
    why="The body is written over the file as it is, and a body that does not parse ends the broker.",
    remedy=_TAKE_OUT,
    source="trials: POST config_update",
)

_hazard_rule(
    "NMQ-ACL-013",
    "high",
    "Callers may add rules or change them",
    why="A rule sends messages wherever it says, and nothing in the file tells of it. A call with a field missing or "
    "of the wrong kind ends the broker.",
    remedy=_TAKE_OUT,
    source="trials: tests/contract/test_rule_engine.py; POST rules {}, and PUT rules with a number for its SQL, are "
    "segmentation faults where the rule engine is built in",
)

_hazard_rule(
    "NMQ-ACL-014",
    "high",
    "Callers may stop the broker or take it from its supervisor",
    why="A restart by REST leaves a process that systemd does not know, outside of its sandbox and its limits.",
    remedy=_TAKE_OUT,
    source="trials: POST ctrl/restart ends the original process, and a new one runs without a supervisor",
)


@_front_rule(
    "NMQ-ACL-015",
    "medium",
    "Callers without a certificate have a role",
    why="A token is all they need, and the broker takes it for 200 seconds after it has expired and cannot revoke it.",
    remedy="Give nanomq_nginx_clients their certificates, and leave nanomq_nginx_anonymous_roles empty",
    source="trials: the broker checks neither nbf nor jti, and tolerates 200 s after exp",
)
def _anonymous_roles(front: dict) -> Iterator[str]:
    return (f"nanomq_nginx_anonymous_roles: {name}" for name in front.get("anonymous", []))


@_rule(
    "NMQ-SVC-001",
    "high",
    "The command socket is open",
    why="It obeys whoever can open it, without a password: a reload takes users and allow_anonymous from any file, and "
    "a broken file ends the broker. Any local user can also block the start by making the socket first.",
    remedy="Leave system.enable_ipc_internal at false, as the role does; drop it from nanomq_broker_settings",
    source="trials: /tmp/nanomq_cmd.ipc",
)
def _command_socket(conf: dict, context: dict) -> Iterator[str]:
    del context
    value = get(conf, "system", "enable_ipc_internal")
    if value is not False:
        yield f"system.enable_ipc_internal: is {'not given' if value is None else 'not false'}, so that it is on"


@_rule(
    "NMQ-SVC-002",
    "low",
    "It is not said where the log goes",
    why="Without log.to nobody finds the refused logins and the warnings about keys that could not be read.",
    remedy="Leave log.to at [console], as the role does: systemd's journal keeps it",
    source="source: log.to",
)
def _no_log(conf: dict, context: dict) -> Iterator[str]:
    del context
    if not _list(conf, "log", "to"):
        yield "log.to: is not given"


@_rule(
    "NMQ-SVC-003",
    "low",
    "The log level hides what matters, or shows too much",
    why="At error and fatal neither the version nor a certificate that cannot be read is logged; at trace and debug "
    "the log fills the disk of a small device.",
    remedy="Set nanomq_broker_log_level to warn or info",
    source="trials: the version and TLS problems are logged at warn",
)
def _log_level(conf: dict, context: dict) -> Iterator[str]:
    del context
    level = get(conf, "log", "level")
    if level not in (None, "warn", "info"):
        yield "log.level: is neither warn nor info"


@_rule(
    "NMQ-SVC-004",
    "medium",
    "The log is written where others can meddle with it",
    why="In a directory that all users share, another user can put a link in the log's place; a relative one depends "
    "on where the broker was started.",
    remedy="Log to the console (systemd's journal), or set log.dir to a directory of the broker in "
    "nanomq_broker_settings",
    source="the shipped configuration logs to /tmp",
)
def _log_dir(conf: dict, context: dict) -> Iterator[str]:
    del context
    if "file" not in _list(conf, "log", "to"):
        return
    path = get(conf, "log", "dir")
    if not isinstance(path, str) or not path.startswith("/"):
        yield "log.dir: is not an absolute path"
    elif re.match(r"/(var/)?tmp(/|$)|/dev/shm(/|$)", path):
        yield "log.dir: is a directory that all users share"


@_rule(
    "NMQ-SVC-005",
    "high",
    "The broker loads a plugin",
    why="A plugin is native code that runs inside of the broker, with all its keys and messages.",
    remedy="Drop plugin.libs from nanomq_broker_settings, or waive this rule for a plugin that was reviewed",
    source="source: plugin.libs[].path",
)
def _plugin(conf: dict, context: dict) -> Iterator[str]:
    del context
    for index, _lib in enumerate(_list(conf, "plugin", "libs")):
        yield f"plugin.libs[{index}]: is loaded"


@_rule(
    "NMQ-SVC-006",
    "medium",
    "The rule engine is in use",
    why="It runs SQL over what clients send, and had memory errors that get no CVE of their own (GHSA-c5gx-vc37-5h2f).",
    remedy="Drop rules from nanomq_broker_settings and let a consumer do the work, or waive this rule",
    source="advisory GHSA-c5gx-vc37-5h2f",
)
def _rule_engine(conf: dict, context: dict) -> Iterator[str]:
    del context
    if _block(conf, "rules"):
        yield "rules: is given"


@_host_rule(
    "NMQ-SVC-031",
    "high",
    "Any local user can take the webhook's place",
    why="The broker hands the events to itself by a socket. Whoever has made that one before gets them all, messages "
    "among them, and the receiver none; if nobody answers there, the broker does not start.",
    remedy="Apply the role nanomq_broker, whose unit gives the broker a /tmp of its own",
    source="trials: tests/contract/test_webhook.py on six versions",
)
def _webhook_socket(observation: dict) -> Iterator[str]:
    for one in fact(observation, "event_sockets"):
        if one["replaceable"]:
            yield f"process {one['pid']} takes events at {one['path']}, where every user can make files"


_DATABASES = ("mysql", "postgresql", "timescaledb")


@_rule(
    "NMQ-SVC-030",
    "high",
    "What clients send becomes SQL",
    why="Topics, names and messages are put into a statement, in which a quote of theirs ends the text. Whoever may "
    "publish to the topics of such a rule runs statements of his own, which also make files as the broker's user, and "
    "stops the rule for good. An empty message ends the broker.",
    remedy="Drop the rules with a database from nanomq_broker_settings, and let a client of the broker store what it "
    "subscribes to",
    source="trials: tests/contract/test_rule_engine.py with SQLite on 0.25.6; source, for the others: pub_handler.c",
)
def _sql_of_messages(conf: dict, context: dict) -> Iterator[str]:
    del context
    if _block(conf, "rules", "sqlite"):
        yield "rules.sqlite: is given"
    for kind in _DATABASES:
        for name, _database in _blocks(conf, "rules", kind):
            yield _join("rules", kind, name) + ": is given"


def _rules(conf: dict) -> Iterator[tuple]:
    """(key, rule) of all rules of the rule engine."""
    for kind in ("repub", "sqlite"):
        for index, rule in enumerate(_list(conf, "rules", kind, "rules")):
            yield f"rules.{kind}.rules[{index}]", rule
    for kind in _DATABASES:
        for name, database in _blocks(conf, "rules", kind):
            for index, rule in enumerate(_list(database, "rules")):
                yield _join("rules", kind, name, "rules") + f"[{index}]", rule


@_rule(
    "NMQ-AUT-016",
    "high",
    "A rule passes on the passwords of clients",
    why="A rule knows the password that a client has logged in with. With `password`, or with `*`, each message "
    "takes it along to the other server or into the database, where it is in clear.",
    remedy="Name the fields that are needed in the rules of nanomq_broker_settings: SELECT topic, payload FROM ...",
    source="trials: tests/contract/test_rule_engine.py on 0.25.6",
)
def _passwords_in_rules(conf: dict, context: dict) -> Iterator[str]:
    del context
    for key, rule in _rules(conf):
        sql = get(rule, "sql")
        fields = _schema.rule_fields(sql) if isinstance(sql, str) else ()
        if fields is None:
            yield f"{key}.sql: cannot be read, so that it may select the password"
        elif any(name in ("*", "password") for name, _alias in fields):
            yield f"{key}.sql: selects the password"


@_rule(
    "NMQ-SVC-007",
    "medium",
    "The broker leaves its supervisor",
    why="As a daemon it forks twice, changes its working directory to / and writes a pid file: systemd loses its "
    "sight.",
    remedy="Drop system.daemon from nanomq_broker_settings",
    source="trials: system.daemon",
)
def _daemon(conf: dict, context: dict) -> Iterator[str]:
    del context
    if get(conf, "system", "daemon") is True:
        yield "system.daemon: is true"


_PATHS = ("keyfile", "certfile", "cacertfile")


@_rule(
    "NMQ-SVC-008",
    "medium",
    "A path is not absolute",
    why="It is taken from where the broker was started, and a file that is not found gives no error: the listener "
    "opens and fails every handshake, or every token.",
    remedy="Write absolute paths in nanomq_broker_settings and the variables of the role",
    source="trials: keys that cannot be read give a warning at most",
)
def _relative_path(conf: dict, context: dict) -> Iterator[str]:
    del context
    blocks = [*tls_listeners(conf), ("http_server.jwt.public", _block(conf, "http_server", "jwt", "public"))]
    blocks += [
        (_join("bridges", kind, name, "ssl"), _block(child, "ssl"))
        for kind in ("mqtt", "aws")
        for name, child in _blocks(conf, "bridges", kind)
    ]
    for key, block in blocks:
        for name in _PATHS:
            value = get(block, name)
            if isinstance(value, str) and value and not value.startswith("/"):
                yield f"{key}.{name}: is not an absolute path"


_UNITS = {"b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30}
_LARGEST_PACKET = 16 * 2**20
_LARGEST_BODY = 2**20


@_rule(
    "NMQ-SVC-009",
    "low",
    "One client can make the broker take much memory",
    why="A packet, and the body of a REST call (before its credentials are looked at), are held in memory as a whole.",
    remedy="Lower mqtt.max_packet_size in nanomq_broker_settings, and nanomq_broker_http_max_body",
    source="trials: max_body is checked before authentication; the shipped configuration allows packets of 256 MB",
)
def _large(conf: dict, context: dict) -> Iterator[str]:
    del context
    packet, body = get(conf, "mqtt", "max_packet_size"), get(conf, "http_server", "max_body")
    if _bytes(packet) > _LARGEST_PACKET:
        yield f"mqtt.max_packet_size: is above {_LARGEST_PACKET // 2**20} MB"
    if _bytes(body) > _LARGEST_BODY:
        yield f"http_server.max_body: is above {_LARGEST_BODY // 2**20} MB"


def _bytes(value: Any) -> int:
    """A size in bytes; 0 for what is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = re.match(r"(\d{1,13})(b|kb|mb|gb)\Z", value, re.ASCII | re.I) if isinstance(value, str) else None
    return int(found.group(1)) * _UNITS[found.group(2).lower()] if found else 0


@_host_rule(
    "NMQ-SVC-010",
    "medium",
    "NanoMQ does not run",
    why="A broker that is down serves nobody, and nothing can be said of how it would.",
    remedy="Look at `journalctl -u nanomq.service`, or apply the role nanomq_broker",
    source="observed",
)
def _down(observation: dict) -> Iterator[str]:
    if not fact(observation, "processes"):
        yield "no process of it was found"


def _running(observation: dict) -> list:
    found = fact(observation, "processes")
    if not found:
        raise NotObserved("no NanoMQ runs")
    return found


@_host_rule(
    "NMQ-SVC-011",
    "critical",
    "The broker runs as root",
    why="A memory error in a packet parser that faces the network then gives away the whole host.",
    remedy="Apply the role nanomq_broker, whose unit runs it as the user nanomq",
    source="packages bring neither a user nor a unit",
)
def _as_root(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if process["uid"] == 0:
            yield f"process {process['pid']} runs as root"


@_host_rule(
    "NMQ-SVC-012",
    "high",
    "The broker holds or can gain privileges",
    why="Capabilities and setuid programs are what turns a broken service into a broken host.",
    remedy="Apply the role nanomq_broker, whose unit takes all capabilities and forbids new privileges",
    source="capabilities(7), systemd.exec(5)",
)
def _privileges(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if int(process["cap_eff"], 16) or int(process["cap_bnd"], 16):
            yield f"process {process['pid']} has capabilities (bounding set {process['cap_bnd']})"
        if not process["no_new_privs"]:
            yield f"process {process['pid']} can gain privileges"


@_host_rule(
    "NMQ-SVC-013",
    "high",
    "The broker can change its own configuration",
    why="POST /api/v4/config_update writes what it is sent over the file, and it counts from the next start on.",
    remedy="Apply the role nanomq_broker: the file belongs to root, and the broker's group may read it",
    source="trials: config_update",
)
def _conf_writable(observation: dict) -> Iterator[str]:
    conf_file = fact(observation, "conf_file")
    if conf_file["exists"] and conf_file["writable_by_service"] is None:
        raise NotObserved("the broker's user is not known")
    if conf_file["exists"] and conf_file["writable_by_service"]:
        yield f"{conf_file['path']} can be written or replaced by the broker's user"


@_host_rule(
    "NMQ-SVC-014",
    "high",
    "The configuration, with all passwords, can be read by every user",
    why="The broker knows passwords in clear only, so they stand in its file as they are.",
    remedy="Apply the role nanomq_broker: mode 0640, root and the broker's group",
    source="trials: passwords are compared as text",
)
def _conf_readable(observation: dict) -> Iterator[str]:
    conf_file = fact(observation, "conf_file")
    if conf_file["exists"] and int(conf_file["mode"], 8) & 0o007:
        yield f"{conf_file['path']} has mode {conf_file['mode']}"


@_host_rule(
    "NMQ-SVC-015",
    "critical",
    "The broker cannot read its configuration, and would start open to everybody",
    why="Where the file is missing or unreadable the broker starts with its defaults: 0.0.0.0:1883, anonymous clients "
    "allowed. It says so on its console alone.",
    remedy="Apply the role nanomq_broker, whose unit refuses to start without the file",
    source="trials: --conf with a missing or unreadable file",
)
def _conf_unreadable(observation: dict) -> Iterator[str]:
    conf_file = fact(observation, "conf_file")
    if not conf_file["exists"]:
        yield f"{conf_file['path']} does not exist"
    elif conf_file["readable_by_service"] is None:
        raise NotObserved("the broker's user is not known")
    elif not conf_file["readable_by_service"]:
        yield f"{conf_file['path']} cannot be read by the broker's user"


@_host_rule(
    "NMQ-SVC-016",
    "high",
    "The configuration has a syntax error",
    why="The broker runs on with what it has read before, and does not come back after its next start.",
    remedy="Apply the role nanomq_broker, which tries a configuration before it takes its place",
    source="trials: a syntax error ends the broker with exit code 1",
)
def _conf_broken(observation: dict) -> Iterator[str]:
    conf_file = fact(observation, "conf_file")
    if conf_file.get("error"):
        yield f"{conf_file['path']}: {conf_file['error']}"


@_host_rule(
    "NMQ-SVC-017",
    "high",
    "The broker is started with more, or less, than its configuration file",
    why="Flags override the file. Without --conf the broker takes a file beside its program, or /etc/nanomq.conf.",
    remedy="Apply the role nanomq_broker, whose unit passes --conf and nothing else",
    source="trials: command line over file over environment",
)
def _flags(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if not process["conf_given"]:
            yield f"process {process['pid']} has no --conf"
        if process["flags"]:
            yield f"process {process['pid']} has {', '.join(process['flags'])}"
        if process["environment"]:
            yield f"process {process['pid']} has {', '.join(process['environment'])} in its environment"


@_host_rule(
    "NMQ-SVC-018",
    "high",
    "The broker's working directory can serve files to anybody",
    why="The broker serves a folder named dist below its working directory without asking for credentials.",
    remedy="Apply the role nanomq_broker, whose unit uses an empty directory that belongs to root",
    source="trials: paths outside of /api/v4 go to a file handler",
)
def _dist(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if process["dist"]:
            yield f"there is a folder dist in {process['cwd']}"
        elif process["cwd_writable"]:
            yield f"the broker's user can make a folder dist in {process['cwd']}"


@_host_rule(
    "NMQ-SVC-019",
    "medium",
    "Nothing supervises the broker",
    why="Outside of a unit there is no sandbox, no restart after a crash, and no journal.",
    remedy="Apply the role nanomq_broker",
    source="packages bring no unit; POST /api/v4/ctrl/restart starts a broker outside of it",
)
def _unsupervised(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if not process["unit"].endswith(".service") or process["unit"].startswith(("ssh.", "sshd.", "ssh@", "sshd@")):
            yield f"process {process['pid']} belongs to {process['unit'] or 'no unit'}"


@_host_rule(
    "NMQ-SVC-020",
    "medium",
    "What runs is not what is installed",
    why="Listeners, keys and REST are read at the start only: a file that was changed, or a program that was updated, "
    "since then is not in force.",
    remedy="Restart the broker, or apply the role nanomq_broker",
    source="trials: what a reload takes over",
)
def _stale(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if process["program_replaced"]:
            yield f"the program of process {process['pid']} was replaced since it started"
        if process["conf_changed"]:
            yield f"the configuration was changed since process {process['pid']} started"


@_host_rule(
    "NMQ-SVC-021",
    "medium",
    "The broker sees all of the host's files",
    why="Without a view of its own a memory error in a packet parser reads whatever the account can, and writes "
    "wherever it may.",
    remedy="Apply the role nanomq_broker, whose unit shows it a file system that is read-only and without homes",
    source="systemd.exec(5), ProtectSystem and ProtectHome",
)
def _unconfined(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if process["shares_mounts"]:
            yield f"process {process['pid']} shares the mounts of the host"


@_host_rule(
    "NMQ-SVC-022",
    "low",
    "A few clients can use up what the broker may open",
    why="Each client is an open file. At 1024, the usual limit, one attacker without a password keeps all others out.",
    remedy="Apply the role nanomq_broker (nanomq_broker_open_files)",
    source="trials: connections above the limit are not accepted; getrlimit(2)",
)
def _few_files(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if 0 <= process["open_files"] < FEWEST_FILES:
            yield f"process {process['pid']} may open {process['open_files']} files"


@_host_rule(
    "NMQ-SVC-023",
    "low",
    "A crash can write passwords and keys to the disk",
    why="A memory dump holds all that the broker knows, and is kept, or sent to whoever analyses crashes.",
    remedy="Apply the role nanomq_broker, whose unit allows no dumps",
    source="core(5)",
)
def _core(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if process["core"] != 0:
            yield f"process {process['pid']} may dump its memory"


@_host_rule(
    "NMQ-SVC-024",
    "high",
    "The broker's program can be replaced by others than root",
    why="Whoever can write it, or its directory, is the broker from its next start on.",
    remedy="Give the program and its directory to root, mode 0755, or install the package anew (nanomq_broker_package)",
    source="field practice",
)
def _program_writable(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if process["program_writable"]:
            yield f"{process['program']}, or its directory, can be written by others than root"


@_host_rule(
    "NMQ-SVC-025",
    "high",
    "Another file with passwords can be read by every user",
    why="Editors, packages and people leave copies beside the configuration, with the passwords that it holds.",
    remedy="Remove the copy, or take it from others: chmod o= FILE",
    source="field practice; the package brings nanomq_pwd.conf as well",
)
def _copies(observation: dict) -> Iterator[str]:
    for path in fact(observation, "copies"):
        yield f"{path} holds a password or a key, and everybody can read it"


@_host_rule(
    "NMQ-SVC-026",
    "high",
    "The clock is wrong",
    why="Certificates and tokens count by it: a clock that is behind takes what has expired, and one that is ahead "
    "refuses what is good.",
    remedy="Set the clock, and let something keep it: systemd-timesyncd or chrony",
    source="RFC 5280, 4.1.2.5; trials: the broker tolerates 200 s in tokens",
)
def _clock_wrong(observation: dict) -> Iterator[str]:
    offset = fact(observation, "clock")["offset"]
    if offset is not None and abs(offset) > CLOCK_TOLERANCE:
        yield f"the clock is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the controller's"


@_host_rule(
    "NMQ-SVC-027",
    "low",
    "Nothing keeps the clock",
    why="It drifts, and after a power failure many devices wake up in 1970, where no certificate is valid.",
    remedy="Install and enable systemd-timesyncd or chrony",
    source="adjtimex(2), time-sync.target",
)
def _clock_adrift(observation: dict) -> Iterator[str]:
    clock = fact(observation, "clock")
    if not (clock["synchronised"] or clock["services"] or clock["container"]):
        yield "the kernel's clock is not synchronised, and no time service runs"


@_host_rule(
    "NMQ-SVC-028",
    "high",
    "The broker runs with another configuration than its file",
    why="REST changes what runs and leaves the file as it is: one call lets anonymous clients in, and nothing that "
    "reads files sees it.",
    remedy="Find out who changed it, then restart the broker, or apply the role nanomq_broker",
    source="trials: POST reload {allow_anonymous: true}, POST configuration/http_server",
    asks="drift",
)
def _drift(observation: dict) -> Iterator[str]:
    for key in fact(observation, "drift"):
        yield f"{key} is not what the file says"


@_host_rule(
    "NMQ-SVC-029",
    "medium",
    "The broker may call everything of the kernel",
    why="A broker that was broken into looks for a weakness of the kernel next. It needs few of its calls.",
    remedy="Apply the role nanomq_broker, whose unit admits what a service needs (SystemCallFilter)",
    source="systemd.exec(5), SystemCallFilter; seccomp(2)",
)
def _unfiltered(observation: dict) -> Iterator[str]:
    for process in _running(observation):
        if not process["filtered"]:
            yield f"process {process['pid']} has no filter of system calls"


# --- versions ---------------------------------------------------------------------------------------------------------


def _version(context: dict) -> tuple | None:
    """The broker's version as numbers, None where it is not known."""
    try:
        return _schema.version_tuple(str(context.get("version") or ""))
    except ValueError:
        return None


_NEWER = f"Install NanoMQ {_versions.RECOMMENDED} or later (nanomq_broker_package, nanomq_broker_version)"


def _state(context: dict) -> _versions.Range | None:
    """What the collection does on the version, None where that is not known."""
    version = _version(context)
    return _versions.range_of(version) if version else None


@_rule(
    "NMQ-VER-001",
    "critical",
    f"This version opens what its configuration closes: {_versions.FLOOR} is the least that can be hardened",
    why=_versions.RANGES[0].why[0].upper() + _versions.RANGES[0].why[1:] + ".",
    remedy=_NEWER,
    source="trials: the contract on 0.22.10 and 0.23.1; source: ip_addr is read from 0.23.1 on",
)
def _too_old(conf: dict, context: dict) -> Iterator[str]:
    del conf
    if _state(context) is _versions.RANGES[0]:
        yield f"the version is {context['version']}"


@_rule(
    "NMQ-VER-002",
    "critical",
    "This version can be ended by anybody",
    why="; ".join(f"{one.since}: {one.why}" for one in _versions.RANGES[1:] if one.state == _versions.REFUSED),
    remedy=_NEWER,
    source="issue 2417 of the broker",
)
def _refused(conf: dict, context: dict) -> Iterator[str]:
    del conf
    state = _state(context)
    if state in _versions.RANGES[1:] and state.state == _versions.REFUSED:
        yield f"the version is {context['version']}: {state.why}"


@_rule(
    "NMQ-VER-003",
    "high",
    "This version has known weaknesses",
    why="They are public, and no configuration closes them.",
    remedy=_NEWER,
    source="advisories and issues of the broker, and trials, each named in the finding",
    blocking=False,
)
def _advisories(conf: dict, context: dict) -> Iterator[str]:
    del conf
    version = _version(context)
    for advisory in _versions.ADVISORIES:
        if version and advisory.concerns(version):
            yield f"{advisory.id}: {advisory.title}"


@_rule(
    "NMQ-VER-004",
    "high",
    f"This version is older than {_versions.RECOMMENDED}, the one that this policy was tried on most",
    why="Its traps were looked for on that version. Before it, a reload does not take over changed topic rules.",
    remedy=_NEWER,
    source="trials: the contract on the versions that docs/versions.md lists",
    blocking=False,
)
def _not_recommended(conf: dict, context: dict) -> Iterator[str]:
    del conf
    if _state(context) in _versions.RANGES[:-1]:
        yield f"the version is {context['version']}"


@_rule(
    "NMQ-VER-005",
    "medium",
    "The version of the broker is not known",
    why="What a key means, and whether it is read at all, depends on it.",
    remedy="Install NanoMQ from a package, or set nanomq_broker_version",
    source="trials: the program has no option that tells its version",
)
def _unknown_version(conf: dict, context: dict) -> Iterator[str]:
    del conf
    if _version(context) is None:
        yield "neither a package nor the log tells it"


@_rule(
    "NMQ-VER-006",
    "medium",
    "Whoever reaches this listener can end the broker",
    why="After one quick login by TLS 1.3 in fifty to a few hundred, refused or not, it aborts by heap corruption, and "
    "every client loses its connection until systemd has started it again. No later version without it is known. Where "
    "client certificates are required nobody gets that far without one.",
    remedy="Set nanomq_broker_mqtt_client_certificates, or let nginx terminate TLS (nanomq_nginx_mqtt) before a plain "
    "listener on 127.0.0.1, and name the networks that may connect in nanomq_firewall_mqtt_networks",
    source="trials: tests/fuzz/crashes; source: the transport hands a connection on before it has counted its own use",
    blocking=False,
)
def _ended_by_logins(conf: dict, context: dict) -> Iterator[str]:
    version = _version(context)
    if version is None or not _versions.LOGINS.concerns(version):
        return
    for key, block in tls_listeners(conf):
        bind = get(block, "bind")
        required = get(block, "verify_peer") is True and get(block, "fail_if_no_peer_cert") is True
        if isinstance(bind, str) and not required and not is_loopback(split_bind(bind, "0.0.0.0:8883")[0]):
            yield f"{key}: is open beyond loopback to clients without a certificate"


@_on_host("NMQ-VER-006")
def _ended_by_logins_on_host(observation: dict) -> Iterable[str]:
    return _ended_by_logins(fact(observation, "conf"), {"version": fact(observation, "version")})


# --- waivers ----------------------------------------------------------------------------------------------------------

#: The option `waivers` of the modules; plugins/doc_fragments/waivers.py documents it.
WAIVERS_OPTION = {
    "type": "list",
    "elements": "dict",
    "default": [],
    "options": {"rule": {"type": "str"}, "reason": {"type": "str"}, "expires": {"type": "str"}},
}
_WAIVER_REMEDY = "Write {rule: NMQ-..., reason: why, expires: 2030-12-31}, or fix what it waives"
_RULES["NMQ-WVR-001"] = Rule(
    "NMQ-WVR-001",
    "high",
    "A waiver has expired",
    why="A waiver is a decision with an end; after it the rule counts again.",
    remedy="Fix what it waives, or decide anew and set another date in nanomq_broker_waivers",
    source="this policy",
)
_RULES["NMQ-WVR-002"] = Rule(
    "NMQ-WVR-002",
    "high",
    "A waiver names no rule",
    why="A misspelt waiver waives nothing, though its author believes so.",
    remedy=_WAIVER_REMEDY,
    source="this policy",
)
_RULES["NMQ-WVR-003"] = Rule(
    "NMQ-WVR-003",
    "high",
    "A waiver lacks its reason or its end",
    why="Nobody can judge later whether it still holds.",
    remedy=_WAIVER_REMEDY,
    source="this policy",
)

#: All rules, by id.
RULES: dict[str, Rule] = {
    name: dataclasses.replace(rule, references=rule.references or _references.of(name))
    for name, rule in sorted(_RULES.items())
}


# --- evaluation -------------------------------------------------------------------------------------------------------


def _finding(rule: Rule, evidence: Iterable[str], observed: bool = True) -> Finding:
    return Finding(
        rule.id,
        rule.severity,
        rule.layer,
        rule.title,
        tuple(evidence),
        rule.remedy,
        observed=observed,
        blocking=rule.blocking,
    )


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, then by id; what is waived or was not observed after the rest."""
    return sorted(findings, key=lambda f: (bool(f.waived), not f.observed, -SEVERITIES.index(f.severity), f.id))


def evaluate_config(conf: dict, *, version: str | None = None, context: dict | None = None) -> list[Finding]:
    """What is wrong with a configuration that is about to be deployed.

    version: of the broker that will read it, None or empty where it is not known
    context: what else the caller knows: {"firewall": False} where no packet filter will be there
    """
    context = {**(context or {}), "version": version or ""}
    found = []
    for rule in RULES.values():
        evidence = list(rule.config(conf, context)) if rule.config else []
        if evidence:
            found.append(_finding(rule, evidence))
    return by_severity(found)


def evaluate_front(front: dict) -> list[Finding]:
    """What is wrong with what callers may do through a front end that is about to be deployed.

    front: {"roles": {name: [call]} of the roles that somebody has, "anonymous": [role of those without certificate]}
    """
    found = []
    for rule in RULES.values():
        evidence = list(rule.front(front)) if rule.front else []
        if evidence:
            found.append(_finding(rule, evidence))
    return by_severity(found)


def evaluate_host(observation: dict) -> list[Finding]:
    """What is wrong with a host as observed; see `_observe.observe` for the shape.

    A rule that could not be judged is a finding with `observed` false, unless one half of it is known to be broken.
    """
    found = []
    for rule in RULES.values():
        if rule.asks and rule.asks not in observation:
            continue
        evidence, unknown = [], []
        # What was seen says more than what is written.
        for check in (rule.host, _config_on_host(rule)):
            if check is None:
                continue
            try:
                # Item by item: what was seen before something could not be is kept.
                for item in check(observation):
                    evidence.append(item)
            except NotObserved as reason:
                unknown.append(str(reason))
        if evidence:
            found.append(_finding(rule, evidence))
        elif unknown:
            found.append(_finding(rule, dict.fromkeys(unknown), observed=False))
    return by_severity(found)


def evaluate_outside(observation: dict) -> list[Finding]:
    """What is wrong with a host as another host sees it.

    observation: {"ports": [{"port", "kind": rest, mqtt, websocket, tls or open, "detail", "private": bool}]}; see
        `_outside.look`
    """
    found = []
    for rule in RULES.values():
        try:
            evidence = list(rule.outside(observation)) if rule.outside else []
            if evidence:
                found.append(_finding(rule, evidence))
        except NotObserved as reason:
            found.append(_finding(rule, [str(reason)], observed=False))
    return by_severity(found)


def _config_on_host(rule: Rule) -> Check | None:
    """The rule's check of a configuration, asked of that which the host has."""
    if rule.config is None:
        return None

    def check(observation: dict) -> Iterable[str]:
        if rule.id.startswith("NMQ-VER"):
            return rule.config({}, {"version": fact(observation, "version")})
        return rule.config(fact(observation, "conf"), {})

    return check


def passed(findings: Iterable[Finding], asked: Iterable[str] = ()) -> list[str]:
    """The ids of the rules for hosts that hold.

    asked: the facts that were looked for beyond the usual ones; rules that need others were not judged
    """
    broken, facts = {finding.id for finding in findings}, {"", *asked}
    return [
        rule.id
        for rule in RULES.values()
        if (rule.config or rule.host) and rule.asks in facts and rule.id not in broken
    ]


def passed_outside(findings: Iterable[Finding]) -> list[str]:
    """The ids of the rules for what another host sees that hold."""
    broken = {finding.id for finding in findings}
    return [rule.id for rule in RULES.values() if rule.outside and rule.id not in broken]


def _date(value: Any) -> datetime.date | None:
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.datetime.strptime(str(value), "%Y-%m-%d").date()
    except ValueError:
        return None


def apply_waivers(findings: list[Finding], waivers: list, today: datetime.date) -> list[Finding]:
    """The findings with those marked that a waiver covers, and further ones for waivers that are no good.

    waivers: [{"rule": "NMQ-TLS-001", "reason": why, "expires": "2030-12-31"}]; they hold on the day they expire.
    """
    good: dict[str, dict[str, str]] = {}
    trouble: dict[str, list[str]] = {}
    for index, waiver in enumerate(waivers):
        name = str(get(waiver, "rule") or "")
        reason, expires = str(get(waiver, "reason") or "").strip(), _date(get(waiver, "expires"))
        where = f"waiver {index + 1} ({name or 'without a rule'})"
        if name not in RULES or name.startswith("NMQ-WVR"):
            trouble.setdefault("NMQ-WVR-002", []).append(f"{where}: there is no such rule")
        elif not reason:
            trouble.setdefault("NMQ-WVR-003", []).append(f"{where}: has no reason")
        elif expires is None:
            trouble.setdefault("NMQ-WVR-003", []).append(f"{where}: expires is no date such as 2030-12-31")
        elif expires < today:
            trouble.setdefault("NMQ-WVR-001", []).append(f"{where}: expired on {expires.isoformat()}")
        else:
            good[name] = {"waived": reason, "waived_until": expires.isoformat()}
    marked = [dataclasses.replace(f, **good.get(f.id, {})) for f in findings]
    return by_severity(marked + [_finding(RULES[rule], evidence) for rule, evidence in trouble.items()])


def failing(findings: Iterable[Finding], fail_on: str, *, deployment: bool = False) -> list[Finding]:
    """The findings of the severity `fail_on` ("none", "low" ... "critical") and above that no waiver covers.

    deployment: without those that can only be cured by another version of the broker
    """
    if fail_on == "none":
        return []
    worst = SEVERITIES.index(fail_on)
    return [
        f for f in findings if not f.waived and SEVERITIES.index(f.severity) >= worst and (f.blocking or not deployment)
    ]


def summary(findings: list[Finding], holding: int) -> str:
    """``14 findings (5 critical, 6 high, 3 low), 2 not observed, 1 waived, 21 rules passed``.

    holding: how many rules hold
    """
    real = [f for f in findings if f.observed and not f.waived]
    counts = [(sum(f.severity == severity for f in real), severity) for severity in reversed(SEVERITIES)]
    detail = ", ".join(f"{count} {severity}" for count, severity in counts if count)
    parts = [f"{len(real)} finding{'s' * (len(real) != 1)}" + (f" ({detail})" if detail else "")]
    for count, word in (
        (sum(not f.observed and not f.waived for f in findings), "not observed"),
        (sum(bool(f.waived) for f in findings), "waived"),
    ):
        if count:
            parts.append(f"{count} {word}")
    return ", ".join([*parts, f"{holding} rule{'s' * (holding != 1)} passed"])
