# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Clients that take, and do not let go: flood.py KIND ADDRESS NAME COUNT SECONDS

Each of COUNT connections is opened again when the server closes it. KIND is what they do:
- open: nothing, not even the handshake
- idle: nothing after the handshake
- headers: a header that never ends, a byte at a time
- body: a body that never ends, a byte at a time
- declared: call with a body of a gigabyte, and send it
- streamed: send a chunked body that goes on
Prints JSON: {"opened", "at_once": most open at the same time, "sent": bytes, "statuses": {status: answers}, "longest":
seconds that one connection was held}. Runs on the outsider, with the standard library alone.
"""

from __future__ import annotations

import collections
import json
import pathlib
import resource
import selectors
import socket
import ssl
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
HEAD = "POST /api/v4/mqtt/publish HTTP/1.1\r\nHost: {name}\r\nContent-Type: application/json\r\n"
FIRST = {
    "open": "",
    "idle": "",
    "headers": "GET /api/v4/metrics HTTP/1.1\r\nHost: {name}\r\nX: ",
    "body": HEAD + "Content-Length: 60000\r\n\r\n",
    "declared": HEAD + "Content-Length: 1000000000\r\n\r\n",
    "streamed": HEAD + "Transfer-Encoding: chunked\r\n\r\n",
}
DRIP = {"headers": b"x", "body": b" "}
POUR = {"declared": b" " * 16384, "streamed": b"4000\r\n" + b" " * 16384 + b"\r\n"}


class Flood:
    """All connections, and what came of them."""

    def __init__(self, kind: str, address: str, name: str) -> None:
        self.kind, self.address = kind, (address, 443)
        self.first = FIRST[kind].format(name=name).encode()
        self.name = name
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.context.load_cert_chain(HERE / "publisher.pem", HERE / "publisher.key")
        self.selector = selectors.DefaultSelector()
        self.since: dict[socket.socket, float] = {}
        self.ready: set[socket.socket] = set()
        self.opened = self.at_once = self.sent = 0
        self.longest = 0.0
        self.statuses: collections.Counter = collections.Counter()

    def open(self) -> None:
        plain = socket.socket()
        plain.setblocking(False)
        plain.connect_ex(self.address)
        self.selector.register(plain, selectors.EVENT_WRITE)
        self.since[plain] = time.monotonic()

    def close(self, sock: socket.socket) -> None:
        if sock in self.ready:
            self.longest = max(self.longest, time.monotonic() - self.since[sock])
        self.selector.unregister(sock)
        self.since.pop(sock)
        self.ready.discard(sock)
        sock.close()

    def connected(self, plain: socket.socket) -> None:
        """The connection is there: begin with TLS, if that is meant."""
        plain.getpeername()
        if self.kind == "open":
            return self.established(plain)
        self.selector.unregister(plain)
        secure = self.context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=self.name)
        self.since[secure] = self.since.pop(plain)
        self.selector.register(secure, selectors.EVENT_READ | selectors.EVENT_WRITE)
        return None

    def established(self, sock: socket.socket) -> None:
        if self.first:
            self.sent += sock.send(self.first)
        self.opened += 1
        self.ready.add(sock)
        self.at_once = max(self.at_once, len(self.ready))
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.kind in POUR else 0)
        self.selector.modify(sock, wanted)

    def step(self, sock: socket.socket, events: int) -> None:
        try:
            if not isinstance(sock, ssl.SSLSocket) and sock not in self.ready:
                self.connected(sock)
            elif sock not in self.ready:
                sock.do_handshake()
                self.established(sock)
            elif events & selectors.EVENT_READ:
                data = sock.recv(65536)
                if data.startswith(b"HTTP/"):
                    self.statuses[data[9:12].decode("latin-1")] += 1
                if not data:
                    self.close(sock)
            elif self.kind in POUR:
                self.sent += sock.send(POUR[self.kind])
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            pass
        except OSError:
            self.close(sock)

    def drip(self) -> None:
        for sock in list(self.ready) if self.kind in DRIP else ():
            try:
                self.sent += sock.send(DRIP[self.kind])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                pass
            except OSError:
                self.close(sock)

    def run(self, count: int, seconds: float) -> dict:
        end, dripped = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < end:
            for _new in range(min(50, count - len(self.since))):
                self.open()
            if now - dripped > 0.5:
                self.drip()
                dripped = now
            for key, events in self.selector.select(0.1):
                self.step(key.fileobj, events)
        held = [now - self.since[sock] for sock in self.ready]
        return {
            "opened": self.opened,
            "at_once": self.at_once,
            "sent": self.sent,
            "statuses": self.statuses,
            "longest": round(max([self.longest, *held]), 1),
        }


if __name__ == "__main__":
    kind, address, name, count, seconds = sys.argv[1:]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(Flood(kind, address, name).run(int(count), float(seconds))))
