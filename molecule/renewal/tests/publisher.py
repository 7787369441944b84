# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs on the outsider: a client that publishes numbers by QoS 1, and connects anew whenever it is cut off.

publisher.py ADDRESS USER PASSWORD SECONDS: JSON on the standard output, at the end or at SIGTERM. Each number is sent
until it is acknowledged. Standard library only; the packets are those of MQTT 3.1.1.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import struct
import sys
import time

DIRECTORY = "/root/mqtt"
#: Seconds between two numbers, between two attempts to connect, and until an answer counts as missing.
PERIOD, PAUSE, TIMEOUT = 0.02, 0.05, 3.0


class Cut(Exception):
    """The connection is over."""


def field(text: str) -> bytes:
    return struct.pack("!H", len(text.encode())) + text.encode()


def packet(kind: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([kind, len(body)]) + body


def receive(connection: ssl.SSLSocket) -> bytes:
    """A packet of four bytes, as CONNACK and PUBACK are."""
    data = b""
    while len(data) < 4:
        part = connection.recv(4 - len(data))
        if not part:
            raise Cut
        data += part
    return data


class Publisher:
    """What was acknowledged when, and how often what failed."""

    def __init__(self, address: str, user: str, password: str):
        self.address, self.user, self.password = address, user, password
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The certificate is checked, the name too: it is that of the host by its address.
        self.context.load_verify_locations(f"{DIRECTORY}/ca.pem")
        self.context.load_cert_chain(f"{DIRECTORY}/client.pem", f"{DIRECTORY}/client.key")
        self.count = dict.fromkeys(("sent", "acknowledged", "connections", "refused", "unreachable", "bad"), 0)
        self.moments: list[float] = []
        self.going = True

    def stop(self, *_signal: object) -> None:
        self.going = False

    def connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection((self.address, 8883), timeout=TIMEOUT)
        try:
            connection = self.context.wrap_socket(raw, server_hostname=self.address)
        except ssl.SSLCertVerificationError:
            self.count["bad"] += 1
            raise
        finally:
            raw.close()
        body = field("MQTT") + bytes([4, 0xC2]) + struct.pack("!H", 30) + field("numbers") + field(self.user)
        connection.sendall(packet(0x10, body + field(self.password)))
        if receive(connection)[3] != 0:
            self.count["refused"] += 1
            raise Cut
        self.count["connections"] += 1
        return connection

    def publish(self, connection: ssl.SSLSocket, number: int) -> None:
        self.count["sent"] += 1
        connection.sendall(
            packet(0x32, field(f"{self.user}/n") + struct.pack("!H", number % 65535 + 1) + b"%d" % number)
        )
        while True:
            answer = receive(connection)
            if answer[0] == 0x40 and struct.unpack("!H", answer[2:])[0] == number % 65535 + 1:
                return

    def run(self, seconds: float) -> None:
        until, number = time.monotonic() + seconds, 0
        while self.going and time.monotonic() < until:
            try:
                with self.connect() as connection:
                    while self.going and time.monotonic() < until:
                        self.publish(connection, number)
                        self.moments.append(time.monotonic())
                        self.count["acknowledged"] += 1
                        number += 1
                        time.sleep(PERIOD)
            except (OSError, Cut) as error:
                self.count["unreachable"] += not isinstance(error, Cut)
                time.sleep(PAUSE)

    def report(self) -> dict:
        gaps = sorted(after - before for before, after in zip(self.moments, self.moments[1:]))
        return {**self.count, "longest_gap": round(gaps[-1], 3) if gaps else None}


if __name__ == "__main__":
    publisher = Publisher(*sys.argv[1:4])
    signal.signal(signal.SIGTERM, publisher.stop)
    with contextlib.suppress(KeyboardInterrupt):
        publisher.run(float(sys.argv[4]))
    print(json.dumps(publisher.report()))
