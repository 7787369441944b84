#!/usr/bin/env python3
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Publish to several MQTT brokers, and log in to them, in turns; tell how fast each one is.

Reads {"subjects": {name: {"port", "tls": bool, "user", "password" (both "" for an anonymous client), "units": [services
of systemd]}}, "certificate", "key" (files), "clients", "payload" (bytes), "rounds", "seconds"}. Prints {"tls": {name:
version and suite, or null}, "rounds": [{name: {measure: {...}}}], "aborts": {name: turns that were cut off}}.

A turn is one measure of one subject: `qos0` and `qos1` publish ("rate", messages a second; "cpu", CPU time of the
subject's services, us a message), `logins` is new connections with a whole handshake ("rate", "cpu"), `latency` is from
before a message is sent until a subscriber has it ("p50", "p99", ms), one message at a time.

Nobody subscribes to what `qos0` and `qos1` publish: what is measured is the way in. A message is one write, and with
TLS one record, as of devices that publish one thing at a time. QoS 1 keeps WINDOW messages under way on a connection.
At QoS 0 nothing is acknowledged, so that a last message with QoS 1 shows that all before it were read.

A connection that the server cuts off ends a turn. It is tried again, TRIES times at most, and then the measure is null
in this round. Any other answer than the one that MQTT asks for ends it all with status 1.

mosquitto_pub cannot do it: it tells no times, and one process makes one connection.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import socket
import ssl
import struct
import sys
import time
from pathlib import Path

MEASURES = ("qos0", "qos1", "logins", "latency")
WINDOW = 32
TRIES = 4
PATIENCE = 5.0  # seconds to wait for an answer
DRAIN = 30.0  # seconds that a server has to read what was sent at QoS 0
BUFFER = 65536  # bytes that the client's kernel takes of what the server has not read, so that there is an end to it
RETURN = 4.0  # seconds that systemd and the broker have to be back

CONNECT, CONNACK, PUBACK, SUBSCRIBE, SUBACK, DISCONNECT = 0x10, 0x20, 0x40, 0x82, 0x90, 0xE0


class Cut(Exception):
    """The server has ended the connection, or does not answer."""


class Wrong(Exception):
    """The server answers what it must not."""


def field(text: str) -> bytes:
    return struct.pack("!H", len(text)) + text.encode()


def packet(kind: int, body: bytes) -> bytes:
    """A packet of MQTT 3.1.1, its length as a variable byte integer."""
    length, size = len(body), b""
    while True:
        length, low = divmod(length, 128)
        size += bytes([low | (0x80 if length else 0)])
        if not length:
            return bytes([kind]) + size + body


def publish(topic: str, payload: bytes, identifier: int = 0) -> bytes:
    """A PUBLISH: with an identifier of QoS 1, without one of QoS 0."""
    if identifier:
        return packet(0x32, field(topic) + struct.pack("!H", identifier) + payload)
    return packet(0x30, field(topic) + payload)


class Connection:
    """A client that has logged in. Blocking."""

    def __init__(self, subject: dict, context: ssl.SSLContext, name: str):
        self.data = b""
        self.user = subject["user"] or "anonymous"
        try:
            raw = socket.create_connection(("127.0.0.1", subject["port"]), timeout=PATIENCE)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            self.socket = context.wrap_socket(raw) if subject["tls"] else raw
            flags, credentials = 0x02, b""
            if subject["user"]:
                flags, credentials = 0xC2, field(subject["user"]) + field(subject["password"])
            self.socket.sendall(
                packet(CONNECT, field("MQTT") + bytes([4, flags]) + struct.pack("!H", 60) + field(name) + credentials)
            )
        except OSError as error:
            raise Cut(str(error)) from error
        if self.read() != (CONNACK, b"\0\0"):
            raise Wrong(f"port {subject['port']} does not let {self.user} in")

    def tls(self) -> str | None:
        """Version and suite of an open connection; None without TLS."""
        return f"{self.socket.version()}, {self.socket.cipher()[0]}" if isinstance(self.socket, ssl.SSLSocket) else None

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Cut(str(error)) from error

    def fill(self) -> None:
        """Read once, whatever has come."""
        try:
            part = self.socket.recv(65536)
        except OSError as error:
            raise Cut(str(error)) from error
        if not part:
            raise Cut("end of the connection")
        self.data += part

    def read(self) -> tuple[int, bytes]:
        """The next packet, of less than 16 kB."""
        while True:
            if len(self.data) >= 2:
                length, start = self.data[1], 2
                if length & 0x80 and len(self.data) >= 3:
                    length, start = (length & 0x7F) | self.data[2] << 7, 3
                if (not length & 0x80 or start == 3) and len(self.data) >= start + length:
                    found = self.data[0], self.data[start : start + length]
                    self.data = self.data[start + length :]
                    return found
            self.fill()

    def acknowledged(self) -> int:
        """The identifier of the PUBACK that comes next."""
        kind, body = self.read()
        if kind != PUBACK or len(body) != 2:
            raise Wrong(f"packet {kind:#x} where a PUBACK was due")
        return struct.unpack("!H", body)[0]

    def subscribe(self, topic: str) -> None:
        self.send(packet(SUBSCRIBE, b"\0\1" + field(topic) + b"\0"))
        kind, body = self.read()
        if (kind, body) != (SUBACK, b"\0\1\0"):
            raise Wrong(f"no subscription to {topic}: {kind:#x} {body!r}")

    def close(self) -> None:
        """With a farewell, as a client that is well does."""
        self.send(packet(DISCONNECT, b""))
        self.socket.close()


# --- what one process does for so many seconds: how often it did it, or the times it took, in ms ----------------------


def qos0(subject: dict, context: ssl.SSLContext, name: str, payload: bytes, seconds: float) -> int:
    connection = Connection(subject, context, name)
    connection.socket.settimeout(DRAIN)
    message, sent, end = publish(f"{connection.user}/t", payload), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _turn in range(16):
            connection.send(message)
        sent += 16
    connection.send(publish(f"{connection.user}/t", payload, 1))
    if connection.acknowledged() != 1:
        raise Wrong("a PUBACK for another message")
    connection.close()
    return sent + 1


def qos1(subject: dict, context: ssl.SSLContext, name: str, payload: bytes, seconds: float) -> int:
    connection = Connection(subject, context, name)
    messages = [publish(f"{connection.user}/t", payload, identifier) for identifier in range(1, WINDOW + 1)]
    for message in messages:
        connection.send(message)
    done, waiting, end = 0, set(range(1, WINDOW + 1)), time.monotonic() + seconds
    while waiting:
        identifier = connection.acknowledged()
        if identifier not in waiting:
            raise Wrong("a PUBACK for a message that was not sent")
        done += 1
        if time.monotonic() < end:
            connection.send(messages[identifier - 1])
        else:
            waiting.remove(identifier)
    connection.close()
    return done


def logins(subject: dict, context: ssl.SSLContext, name: str, _payload: bytes, seconds: float) -> int:
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        Connection(subject, context, name).close()
        done += 1
    return done


def latency(subject: dict, context: ssl.SSLContext, name: str, payload: bytes, seconds: float) -> list[float]:
    publisher, subscriber = Connection(subject, context, f"{name}-p"), Connection(subject, context, f"{name}-s")
    topic, times = f"{publisher.user}/{name}", []
    subscriber.subscribe(topic)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        message = publish(topic, b"%08d" % len(times) + payload[8:])
        began = time.perf_counter_ns()
        publisher.send(message)
        kind, body = subscriber.read()
        times.append((time.perf_counter_ns() - began) / 1e6)
        if kind != message[0] or not message.endswith(body):
            raise Wrong("another message than the one that was published")
    publisher.close()
    subscriber.close()
    return times


# --- turns ------------------------------------------------------------------------------------------------------------


def client_context(certificate: str, key: str) -> ssl.SSLContext:
    """The server's certificate is not verified: this runs beside it, and measures it. No session is resumed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context


def process(work, start, results, *arguments) -> None:
    """One of the processes of a turn: they all begin together."""
    start.wait()
    try:
        results.put(("done", work(*arguments)))
    except Cut as error:
        results.put(("cut", str(error)))
    except Wrong as error:
        results.put(("wrong", str(error)))


def cpu(units: list[str]) -> int:
    """CPU time that services have had, in us."""
    found = 0
    for unit in units:
        try:
            stat = Path(f"/sys/fs/cgroup/system.slice/{unit}/cpu.stat").read_text()
        except OSError as error:
            raise Cut(f"{unit} does not run") from error
        found += int(re.search(r"^usage_usec (\d+)", stat, re.MULTILINE)[1])
    return found


def turn(measure: str, subject: dict, context: ssl.SSLContext, wanted: dict) -> dict[str, float]:
    """One measure of one subject. Raises Cut."""
    clients = 1 if measure == "latency" else wanted["clients"]
    fork = multiprocessing.get_context("fork")
    start, results = fork.Barrier(clients + 1), fork.Queue()
    payload = b"x" * wanted["payload"]
    processes = [
        fork.Process(
            target=process,
            args=(globals()[measure], start, results, subject, context, f"load-{number}", payload, wanted["seconds"]),
            daemon=True,
        )
        for number in range(clients)
    ]
    before = cpu(subject["units"])
    for one in processes:
        one.start()
    start.wait()
    began = time.monotonic()
    outcomes = [results.get(timeout=wanted["seconds"] + DRAIN + 4 * PATIENCE) for _one in processes]
    elapsed = time.monotonic() - began
    for one in processes:
        one.join()
    for kind in ("wrong", "cut"):
        for found, value in outcomes:
            if found == kind:
                raise (Wrong if kind == "wrong" else Cut)(f"{measure}: {value}")
    if measure == "latency":
        times = sorted(outcomes[0][1])
        return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}
    done, spent = sum(value for _kind, value in outcomes), cpu(subject["units"]) - before
    if spent < 0:
        raise Cut(f"{measure}: the service was started anew")
    return {"rate": done / elapsed, "cpu": spent / done}


def come_back(subject: dict) -> None:
    """Wait until a port is open again."""
    until = time.monotonic() + RETURN
    while time.monotonic() < until:
        time.sleep(0.2)
        try:
            socket.create_connection(("127.0.0.1", subject["port"]), timeout=1).close()
            return
        except OSError:
            continue


def spoken_by(subject: dict, context: ssl.SSLContext) -> str | None:
    """Version and suite of TLS, at one of a few tries."""
    for attempt in range(TRIES):
        try:
            connection = Connection(subject, context, "load-tls")
            spoken = connection.tls()
            connection.close()
            return spoken
        except Cut:
            if attempt == TRIES - 1:
                raise
            come_back(subject)
    return None


def measure(wanted: dict) -> dict:
    """What the module's text says is printed, of what it says is read."""
    context = client_context(wanted["certificate"], wanted["key"])
    subjects, rounds, order = wanted["subjects"], [], list(wanted["subjects"])
    aborts = dict.fromkeys(subjects, 0)
    spoken = {name: spoken_by(subject, context) for name, subject in subjects.items()}
    for _round in range(wanted["rounds"]):
        order = [*order[1:], order[0]]  # so that nobody always comes after the same one
        results: dict[str, dict] = {name: {} for name in subjects}
        for what in MEASURES:
            for name in order:
                results[name][what] = None
                for _attempt in range(TRIES):
                    try:
                        results[name][what] = turn(what, subjects[name], context, wanted)
                        break
                    except Cut as error:
                        aborts[name] += 1
                        print(f"mqtt_load: {name}: {error}", file=sys.stderr, flush=True)
                        come_back(subjects[name])
        rounds.append(results)
    return {"tls": spoken, "rounds": rounds, "aborts": aborts}


if __name__ == "__main__":
    try:
        print(json.dumps(measure(json.load(sys.stdin))))
    except (Cut, Wrong) as problem:
        sys.exit(f"mqtt_load: {problem}")
