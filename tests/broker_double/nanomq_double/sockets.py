"""Sockets of the addresses in the broker's configuration."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit


def listening_socket(url: str) -> socket.socket:
    """Socket bound to the host and port of `url`; `OSError` where that cannot be."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        host = None if host == "*" else host
    except ValueError as error:
        raise OSError("Address invalid") from error
    found = socket.getaddrinfo(host or None, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name with addresses of both kinds, like localhost, is taken for its IPv4 address.
    family, kind, protocol, _name, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
