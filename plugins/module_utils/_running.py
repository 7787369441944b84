# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The configuration that a broker runs with, as REST tells it, against the one in its file.

REST changes what runs and leaves the file as it is, and a file that was changed counts from the next start on: both
are drift. What REST tells holds every secret of the broker; here it is compared and thrown away.
"""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy, _probes
from ansible_collections.edgesec.nanomq.plugins.module_utils._policy import NotObserved, get


def drift(host: str, port: int, token: str, conf: dict, read: Any, timeout: float) -> list[str]:
    """The keys by which the running broker differs from its file, and never their values. Raises NotObserved.

    token: one that REST accepts
    read: path -> text
    """
    headers = {"Authorization": f"Bearer {token}"}
    status, body = _probes.rest_get(host, port, "/api/v4/configuration", headers, timeout)
    if status != 200:
        raise NotObserved(f"REST on {host}:{port} answers the token with {status or 'nothing'}")
    try:
        running = json.loads(body)["data"]
    except (ValueError, LookupError, TypeError):
        raise NotObserved(f"REST on {host}:{port} tells no configuration") from None
    return differences(conf, running, read)


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
