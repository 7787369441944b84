#!/usr/bin/env python3
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask several HTTP servers the same, in turns, on connections that stay open; tell how fast each one answers.

Reads {"subjects": {name: {"port", "tls": bool, "unit"}}, "broker": unit, "host", "path", "token", "certificate",
"key", "connections", "rounds", "seconds"}: `unit` is a service of systemd or "", `token`, `certificate` and `key` are
files, `seconds` is how long a turn takes. Prints {"tls": {name: version and suite, or null}, "rounds": [{name:
{"rate" (1/s), "p50", "p99" (ms), "front", "broker" (CPU time of the units, us a request), "opened"}}]}.

A closed loop: each connection asks again as soon as it has its answer. Any answer but 200 ends it with status 1.

Why not a program that is there: ab speaks HTTP/1.0, for which neither the broker nor a terminator before it keeps a
connection open; wrk, hey and h2load cannot show a client certificate; siege does not tell the time of a request.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 5  # seconds to wait for an answer
LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nConnection: *close", re.IGNORECASE)


class Connection:
    """A connection with at most one request under way."""

    def __init__(self, port: int, context: ssl.SSLContext | None, host: str, request: bytes):
        self.port, self.request, self.answer = port, request, b""
        self.began = 0  # when it asked, in ns; 0: it does not wait for an answer
        self.shaken = context is None
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        if context:
            self.socket = context.wrap_socket(self.socket, server_hostname=host, do_handshake_on_connect=False)

    def start(self) -> None:
        """Ask, after the handshake if that is still due. Raises ssl.SSLWantReadError while it is under way."""
        if not self.shaken:
            self.socket.do_handshake()
            self.shaken = True
        self.answer, self.began = b"", time.perf_counter_ns()
        if self.socket.send(self.request) != len(self.request):
            raise SystemExit("load: a request did not fit into the socket")

    def took(self) -> int:
        """Go on after something has come in. How long the answer took, in ns, if it is there as a whole; else 0."""
        try:
            if not self.began:
                self.start()
                return 0
            data = self.socket.recv(65536)
        except ssl.SSLWantReadError:
            return 0
        if not data:
            raise SystemExit(f"load: port {self.port} ended a connection within an answer: {self.answer[:200]!r}")
        self.answer += data
        head, end, body = self.answer.partition(b"\r\n\r\n")
        if not end:
            return 0
        length = LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200 ") or not length:
            raise SystemExit(f"load: port {self.port} gave another answer than 200: {self.answer[:400]!r}")
        if len(body) < int(length[1]):
            return 0
        elapsed, self.began = time.perf_counter_ns() - self.began, 0
        return elapsed

    def ends(self) -> bool:
        """Whether the server closes it after the answer that it gave last."""
        return bool(CLOSE.search(self.answer.partition(b"\r\n\r\n")[0]))


class Server:
    """Connections to one server, opened when there is something to ask: it does not wait long for a handshake."""

    def __init__(self, new: Callable[[], Connection], count: int):
        self.new, self.count, self.opened = new, count, 0
        self.poll = select.epoll()
        self.connections: dict[int, Connection] = {}

    def connect(self) -> None:
        connection = self.new()
        self.opened += 1
        self.connections[connection.socket.fileno()] = connection
        self.poll.register(connection.socket, select.EPOLLIN)
        self.start(connection)

    def close(self, number: int) -> None:
        self.poll.unregister(number)
        self.connections.pop(number).socket.close()

    @staticmethod
    def start(connection: Connection) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            connection.start()

    def ask(self, seconds: float) -> list[int]:
        """Ask for so long, and wait for the last answers. How long each took, in ns."""
        times: list[int] = []
        end = time.monotonic() + seconds
        for connection in self.connections.values():
            self.start(connection)
        while len(self.connections) < self.count:
            self.connect()
        waiting = self.count
        while waiting:
            events = self.poll.poll(PATIENCE)
            if not events:
                raise SystemExit(f"load: no answer within {PATIENCE} s")
            for number, _event in events:
                connection = self.connections[number]
                elapsed = connection.took()
                if not elapsed:
                    continue
                times.append(elapsed)
                more, ends = time.monotonic() < end, connection.ends()
                waiting -= not more
                if ends:
                    self.close(number)
                if more:
                    self.connect() if ends else self.start(connection)
        return times

    def tls(self) -> str | None:
        one = next(iter(self.connections.values())).socket
        return f"{one.version()}, {one.cipher()[0]}" if isinstance(one, ssl.SSLSocket) else None


def cpu(unit: str) -> int:
    """CPU time that a unit of systemd has had, in us; 0 without one."""
    if not unit:
        return 0
    stat = Path(f"/sys/fs/cgroup/system.slice/{unit}/cpu.stat").read_text()
    return int(re.search(r"^usage_usec (\d+)", stat, re.MULTILINE)[1])


def turn(server: Server, units: dict[str, str], seconds: float) -> dict[str, float]:
    """What comes of asking one server for so long."""
    before, opened, began = {name: cpu(unit) for name, unit in units.items()}, server.opened, time.monotonic()
    times = sorted(server.ask(seconds))
    elapsed = time.monotonic() - began
    return {
        "rate": len(times) / elapsed,
        "p50": times[len(times) // 2] / 1e6,
        "p99": times[len(times) * 99 // 100] / 1e6,
        **{name: (cpu(unit) - before[name]) / len(times) for name, unit in units.items()},
        "opened": server.opened - opened,
    }


def client_context(certificate: str, key: str) -> ssl.SSLContext:
    """The server's certificate is not verified: this runs beside it, and measures it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(certificate, key)
    return context


def request(host: str, path: str, token: str) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        f"Authorization: Bearer {token}",
        "User-Agent: load",
        "Accept: application/json",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def measure(wanted: dict) -> dict:
    """What the module's text says is printed, of what it says is read."""
    context = client_context(wanted["certificate"], wanted["key"])
    question = request(wanted["host"], wanted["path"], Path(wanted["token"]).read_text().strip())

    def connector(subject: dict) -> Callable[[], Connection]:
        return lambda: Connection(subject["port"], context if subject["tls"] else None, wanted["host"], question)

    subjects = wanted["subjects"]
    servers = {name: Server(connector(subject), wanted["connections"]) for name, subject in subjects.items()}
    for server in servers.values():  # handshakes, first requests: they do not count
        server.ask(wanted["seconds"])
    rounds, order = [], list(subjects)
    for _round in range(wanted["rounds"]):
        order = [*order[1:], order[0]]  # so that nobody always comes after the same one
        results = {}
        for name in order:
            units = {"front": subjects[name]["unit"], "broker": wanted["broker"]}
            results[name] = turn(servers[name], units, wanted["seconds"])
        rounds.append({name: results[name] for name in subjects})
    return {"tls": {name: server.tls() for name, server in servers.items()}, "rounds": rounds}


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
