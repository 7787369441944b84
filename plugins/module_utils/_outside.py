# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What a host with a NanoMQ shows to another one: which of its ports answer, and what they speak.

A port counts for what it says, not for its number. Nothing is sent but an HTTP request without credentials and an MQTT
CONNECT without a name. Times are seconds.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import secrets
import socket

from ansible_collections.edgesec.nanomq.plugins.module_utils import _probes
from ansible_collections.edgesec.nanomq.plugins.module_utils._observe_keys import client_context

#: Ports that a broker, its shipped configuration, its examples or what is commonly put before it listens on.
USUAL_PORTS = (80, 443, 1883, 5555, 8081, 8083, 8084, 8086, 8883, 8884, 9001, 14567)
TIMEOUT = 3.0
_WEBSOCKET = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "mqtt",
}


def look(address: str, private: list[int], public: list[int], timeout: float = TIMEOUT) -> dict:
    """Look at a host. Returns an observation for `_policy.evaluate_outside`.

    private: ports that the host keeps to itself
    public: ports that it shows to others
    """
    ports = sorted({*USUAL_PORTS, *private, *public})
    with concurrent.futures.ThreadPoolExecutor(len(ports)) as pool:
        answers = list(pool.map(lambda port: answer(address, port, timeout), ports))
    unknown = [detail for kind, detail in answers if kind == "unknown"]
    if unknown:
        return {"ports": {"not_observed": unknown[0]}}
    return {
        "ports": [
            {"port": port, "kind": kind, "detail": detail, "private": port in private}
            for port, (kind, detail) in zip(ports, answers)
            if kind != "closed"
        ]
    }


def answer(address: str, port: int, timeout: float) -> tuple[str, str]:
    """(kind, in words) of a port: closed, open, tls, mqtt, websocket, rest or unknown."""
    try:
        socket.create_connection((address, port), timeout=timeout).close()
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
            return "unknown", f"{address} cannot be reached: {error.strerror or error}"
        return "closed", ""
    outcome, _certificate = _probes.mqtt_connect(address, port, tls_context=client_context(), timeout=timeout)
    if outcome != "no handshake":
        return "tls", "by TLS"
    hello = _connack(address, port, timeout)
    if hello == "connack":
        return "mqtt", "MQTT without encryption"
    for path in ("/mqtt", "/"):
        headers = {**_WEBSOCKET, "Sec-WebSocket-Key": secrets.token_urlsafe(16)}
        if _probes.rest_status(address, port, path, headers, timeout) == 101:
            return "websocket", "MQTT over WebSocket without encryption"
    status = _probes.rest_status(address, port, "/api/v4/brokers", {}, timeout)
    # Another web server has no such path; a front end sends plain HTTP elsewhere, or says 400.
    if status in (200, 401):
        return "rest", f"GET /api/v4/brokers with {status}"
    if status == 0 and hello == "closed":
        # So does the broker with a client that gives no name, and it says nothing before.
        return "mqtt", "neither TLS nor HTTP, and hangs up on an MQTT CONNECT without a name"
    return "open", "connections"


def _connack(address: str, port: int, timeout: float) -> str:
    """What comes back on a CONNECT without a name: connack, closed (nothing, and the end), or other."""
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.create_connection((address, port), timeout=timeout))
            spent = stack.enter_context(_probes.limited(connection, 2 * timeout))
            connection.sendall(_probes.connect_packet(None, None))
            said = connection.recv(4)
            if not said:
                return "other" if spent.is_set() else "closed"
            return "connack" if said[:1] == b"\x20" else "other"
    except ConnectionError:
        return "closed"
    except OSError:
        return "other"
