# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The configuration that a broker runs with, as REST tells it, against the one in its file.

REST changes what runs and leaves the file as it is, and a file that was changed counts from the next start on: both
are drift. What REST tells holds every secret of the broker; here it is compared and thrown away, or masked.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.module_utils import _hocon, _policy, _probes, _schema
from ansible_collections.edgesec.nanomq.plugins.module_utils._policy import NotObserved, get


def ask(host: str, port: int, token: str, path: str, timeout: float) -> Any:
    """What REST answers to a GET of a path below /api/v4, its ``data``. Raises NotObserved.

    token: one that REST accepts
    """
    headers = {"Authorization": f"Bearer {token}"}
    status, body = _probes.rest_get(host, port, f"/api/v4/{path}", headers, timeout)
    if status != 200:
        raise NotObserved(f"REST on {host}:{port} answers the token with {status or 'nothing'}")
    try:
        return json.loads(body)["data"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise NotObserved(f"REST on {host}:{port} tells no {path}") from None


def drift(host: str, port: int, token: str, conf: dict, read: Any, timeout: float) -> list[str]:
    """The keys by which the running broker differs from its file, and never their values. Raises NotObserved.

    token: one that REST accepts
    read: path -> text
    """
    return differences(conf, ask(host, port, token, "configuration", timeout), read)


def look(host: str, port: int, token: str, timeout: float, most: int) -> dict:
    """What a running broker tells of itself, without a secret. Raises NotObserved.

    most: how many clients and subscriptions to list; all are counted
    """

    def listed(path: str) -> list:
        found = ask(host, port, token, path, timeout)
        if not isinstance(found, list):
            raise NotObserved(f"REST on {host}:{port} tells no {path}")
        return found

    broker = next(iter(listed("brokers")), None)
    configuration = ask(host, port, token, "configuration", timeout)
    if not isinstance(configuration, dict) or not isinstance(broker, dict):
        raise NotObserved(f"REST on {host}:{port} does not speak as NanoMQ does")
    clients, subscriptions = listed("clients"), listed("subscriptions")
    shown = without_secrets(configuration)
    uptime = str(broker.get("uptime") or "")
    return {
        "version": str(broker.get("version") or ""),
        "uptime": uptime,
        "uptime_seconds": _seconds(uptime),
        "configuration": shown,
        "clients": [without_secrets(client) for client in clients[:most]],
        "clients_count": len(clients),
        "subscriptions": [without_secrets(one) for one in subscriptions[:most]],
        "subscriptions_count": len(subscriptions),
        "bridges": _at(shown, "bridge", "nodes") or [],
    }


def without_secrets(value: Any) -> Any:
    """What REST tells, with a mask for each secret: keys, passwords, all headers, and passwords in addresses."""
    if isinstance(value, dict):
        return {name: _masked(name, child) for name, child in value.items()}
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return _hocon.hide_userinfo(value) if isinstance(value, str) else value


def _masked(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name.lower() == "headers" and isinstance(value, dict):
        return dict.fromkeys(value, _hocon.MASK)
    secret = name.lower() in ("key", "key_password") or _schema.is_secret((name,))
    return _hocon.MASK if secret and not isinstance(value, bool) else without_secrets(value)


def _seconds(uptime: str) -> int | None:
    """``1 Hours, 2 minutes, 3 seconds`` -> 3723"""
    found = re.fullmatch(r"(\d{1,9}) Hours, (\d{1,2}) minutes, (\d{1,2}) seconds", uptime, re.ASCII)
    if not found:
        return None
    hours, minutes, seconds = map(int, found.groups())
    return hours * 3600 + minutes * 60 + seconds


def differences(conf: dict, running: dict, read: Any) -> list[str]:
    """The keys by which they differ. running: ``data`` of GET /api/v4/configuration"""
    found = []
    for key, wanted, told in compared(conf, running, read):
        if wanted != told:
            found.append(key)
    return found


def compared(conf: dict, running: dict, read: Any) -> list[tuple[str, Any, Any]]:
    """(key, what the file means, what the broker tells), for what the broker tells at all."""
    pairs = [
        (
            "auth.allow_anonymous",
            get(conf, "auth", "allow_anonymous") is not False,
            _at(running, "basic", "allow_anonymous"),
        ),
        (
            "system.enable_ipc_internal",
            get(conf, "system", "enable_ipc_internal") is not False,
            _at(running, "basic", "ipc_internal"),
        ),
        ("auth.password", set(_policy.users(conf).items()), _users(running)),
    ]
    if isinstance(get(conf, "http_server"), dict):
        rest = next(listener for listener in _policy.listeners(conf) if listener.kind == "rest")
        kind = get(conf, "http_server", "auth_type")
        pairs += [
            ("http_server.port", rest.port, _at(running, "http_server", "port")),
            # An address that is not given is null here.
            ("http_server.ip_addr", rest.host, _at(running, "http_server", "addr") or "0.0.0.0"),
            ("http_server.auth_type", kind if kind == "jwt" else "basic", _at(running, "http_server", "auth_type")),
        ]
        for name, shipped in (("username", "admin"), ("password", "public")):
            value = get(conf, "http_server", name)
            pairs.append(
                (f"http_server.{name}", value if isinstance(value, str) else shipped, _at(running, "http_server", name))
            )
    # Of TLS listeners with a name REST tells nothing.
    single = _policy.single_tls(conf)
    pairs.append(("listeners.ssl", bool(single), bool(_at(running, "tls", "enable"))))
    if single:
        pairs += _listener("listeners.ssl", single, running, read)
    wanted_bridges = {
        name: (get(block, "enable") is not False, get(block, "server")) for name, block in _policy.mqtt_bridges(conf)
    }
    nodes = _at(running, "bridge", "nodes") or []
    told = {_at(node, "name"): (_at(node, "enable"), _at(node, "connector", "server")) for node in nodes}
    pairs.append(("bridges.mqtt", wanted_bridges, told))
    return pairs


def _listener(key: str, block: dict, running: dict, read: Any) -> list[tuple[str, Any, Any]]:
    pairs = [
        (f"{key}.{name}", get(block, name) is True, _at(running, "tls", name))
        for name in ("verify_peer", "fail_if_no_peer_cert")
    ]
    pairs.append((f"{key}.bind", _address(get(block, "bind")), _address(_at(running, "tls", "url"))))
    for name, told in (("keyfile", "key"), ("certfile", "cert"), ("cacertfile", "cacert")):
        path = get(block, name)
        if isinstance(path, str) and path:
            try:
                pairs.append(
                    (f"the file in {key}.{name}", read(path).strip(), (_at(running, "tls", told) or "").strip())
                )
            except OSError:
                pairs.append((f"the file in {key}.{name}", None, _at(running, "tls", told)))
    return pairs


def _users(running: dict) -> set[tuple[str, str]]:
    return {(str(_at(user, "login")), str(_at(user, "password"))) for user in _at(running, "auth") or []}


def _address(url: Any) -> tuple:
    return _policy.split_bind(url, "0.0.0.0:0")


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
