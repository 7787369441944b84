#!/usr/bin/env python3
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Publish, subscribe and call REST for a time, with connections that break; note what was acknowledged, and what came.

Reads one line of JSON (see `soak`), writes the line "ready" once every subscriber is subscribed, and in the end, into
the file `result`: {"acknowledged": {publisher: [moment of the PUBACK of each number, or null]}, "received":
{subscriber: {publisher: [moment of the first coming, or null]}}, "subscribed": {subscriber: [[begin, end]]},
"sessions": {client: [[moment, session present]]}, "served": [[moment, port, serial number of the certificate]],
"calls": [[begin, end, kind, issuer, status]], "counts": {...}, "notes": [...]}. Moments are of CLOCK_MONOTONIC.

A publisher sends a message until it is acknowledged, over as many connections as it takes; that is paho's.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import random
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

import jwt
import paho.mqtt.client as paho
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from soak_ledger import EXPIRED, FORGED, VALID

KEEPALIVE = 10  # seconds
PAUSE = 0.7  # seconds between two attempts to connect: all clients together stay below the firewall's rate
OUTSTANDING = 100  # messages that a publisher has under way at most
TOLERANCE = 210  # seconds after its end from which a token counts as expired: the broker takes it for 200 more
TOKEN_LIFE = 30  # seconds
CALL_PERIOD = 0.5  # seconds between two calls


class Client(threading.Thread):
    """A client with a session that persists; its own thread does all that concerns it."""

    def __init__(self, name: str, port: int, user: str, wanted: dict, cut_every: tuple[float, float] | None):
        super().__init__(name=name, daemon=True)
        self.port, self.address, self.cut_every = port, wanted["address"], cut_every
        self.random = random.Random(f"{wanted['seed']} {name}")
        self.counts: collections.Counter = collections.Counter()
        self.notes: list[str] = []
        self.sessions: list[tuple[float, bool]] = []
        self.served: list[tuple[float, int, str]] = []
        self.online = self.ending = self.steady = False
        self.cut_at = self.next_cut()
        self.mqtt = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=name, clean_session=False, protocol=paho.MQTTv311
        )
        self.mqtt.username_pw_set(user, wanted["users"][user])
        context = ssl.create_default_context(cafile=wanted["ca"])
        context.load_cert_chain(wanted["device"]["certificate"], wanted["device"]["key"])
        self.mqtt.tls_set_context(context)
        self.mqtt.connect_timeout = 5
        self.mqtt.max_inflight_messages_set(OUTSTANDING)
        self.mqtt.on_connect = self.connected

    def next_cut(self) -> float:
        return time.monotonic() + self.random.uniform(*self.cut_every) if self.cut_every else float("inf")

    def connected(
        self, _client: object, _data: object, flags: paho.ConnectFlags, reason: object, _more: object
    ) -> None:
        if reason.is_failure:
            self.notes.append(f"{self.name}: refused: {reason}")
            return
        self.counts["connections"] += 1
        self.sessions.append((time.monotonic(), flags.session_present))
        serial = self.mqtt.socket().getpeercert()["serialNumber"]
        self.served.append((time.monotonic(), self.port, serial))

    def lost(self) -> None:
        """The connection is over."""
        self.online = False

    def connect(self) -> None:
        try:
            self.mqtt.connect(self.address, self.port, keepalive=KEEPALIVE)
            self.online = True
        except ssl.SSLCertVerificationError as error:
            self.notes.append(f"{self.name}: the server's certificate: {error}")
        except OSError:
            self.counts["attempts that failed"] += 1

    def cut(self) -> None:
        """Break the connection, with a farewell or without, and stay away for a while."""
        self.counts["reconnects"] += 1
        if self.random.random() < 0.5:
            self.mqtt.disconnect()
            self.mqtt.loop(0.05)
        with contextlib.suppress(OSError, AttributeError):
            self.mqtt.socket().shutdown(socket.SHUT_RDWR)
        until = time.monotonic() + 0.5
        while self.mqtt.loop(0.05) == paho.MQTT_ERR_SUCCESS and time.monotonic() < until:
            pass
        self.lost()
        time.sleep(self.random.uniform(0, 4))
        self.cut_at = self.next_cut()

    def work(self) -> None:
        """What is to be done besides the loop."""

    def run(self) -> None:
        while not self.ending:
            if not self.online:
                self.connect()
            if not self.online or self.mqtt.loop(0.02) != paho.MQTT_ERR_SUCCESS:
                self.lost()
                time.sleep(PAUSE * self.random.uniform(0.5, 1.5))
            elif time.monotonic() > self.cut_at and not self.steady:
                self.cut()
            else:
                self.work()


class Publisher(Client):
    """Publishes its numbers at a rate."""

    def __init__(self, name: str, port: int, user: str, wanted: dict, cut_every: tuple[float, float] | None):
        super().__init__(name, port, user, wanted, cut_every)
        self.topic, self.period = f"{user}/{name}", 1 / wanted["rate"]
        self.acknowledged: list[float | None] = []
        self.number_of: dict[int, int] = {}  # of the identifiers that are under way
        self.due = time.monotonic()
        self.mqtt.on_publish = self.puback

    def puback(self, _client: object, _data: object, identifier: int, _reason: object, _properties: object) -> None:
        self.acknowledged[self.number_of.pop(identifier)] = time.monotonic()

    def work(self) -> None:
        now = time.monotonic()
        self.due = max(self.due, now - 1)  # what it could not send in time is not made up for
        while self.due <= now and not self.steady and len(self.number_of) < OUTSTANDING:
            number = len(self.acknowledged)
            self.acknowledged.append(None)
            sent = self.mqtt.publish(self.topic, f"{self.name} {number}", qos=1)
            self.number_of[sent.mid] = number
            self.due += self.period


class Subscriber(Client):
    """Subscribes to all that the publishers publish."""

    def __init__(self, name: str, port: int, user: str, wanted: dict, cut_every: tuple[float, float] | None):
        super().__init__(name, port, user, wanted, cut_every)
        self.topics = [(f"{one}/#", 1) for one in wanted["publishing_users"]]
        self.received: dict[str, list[float | None]] = collections.defaultdict(list)
        self.subscribed: list[list[float]] = []
        self.latest = 0.0
        self.mqtt.on_subscribe, self.mqtt.on_message = self.suback, self.message

    def connected(
        self, _client: object, _data: object, flags: paho.ConnectFlags, reason: object, _more: object
    ) -> None:
        super().connected(_client, _data, flags, reason, _more)
        if not reason.is_failure:
            self.mqtt.subscribe(self.topics)

    def suback(self, _client: object, _data: object, _mid: int, reasons: list, _properties: object) -> None:
        if any(reason.is_failure for reason in reasons):
            self.notes.append(f"{self.name}: not subscribed: {[str(reason) for reason in reasons]}")
            return
        self.subscribed.append([time.monotonic(), float("inf")])

    def lost(self) -> None:
        super().lost()
        if self.subscribed and self.subscribed[-1][1] == float("inf"):
            self.subscribed[-1][1] = time.monotonic()

    def message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        publisher, number = message.payload.decode().split()
        self.latest = time.monotonic()
        came = self.received[publisher]
        came.extend([None] * (int(number) + 1 - len(came)))
        if came[int(number)] is None:
            came[int(number)] = self.latest
        else:
            self.counts["messages that came again"] += 1

    def there(self) -> bool:
        return bool(self.subscribed) and self.subscribed[-1][1] == float("inf")


class Caller(threading.Thread):
    """Calls REST through the front end: with a token that holds, and with those that must be refused."""

    def __init__(self, wanted: dict):
        super().__init__(name="caller", daemon=True)
        self.wanted, self.ending = wanted, False
        self.calls: list[tuple[float, float, str, str, int]] = []
        self.context = ssl.create_default_context(cafile=wanted["ca"])
        self.context.load_cert_chain(wanted["operator"]["certificate"], wanted["operator"]["key"])
        self.foreign = rsa.generate_private_key(65537, 2048)

    def signing_key(self) -> tuple[rsa.RSAPrivateKey, str]:
        """The key of the controller as it is now, and its issuer."""
        pem = Path(self.wanted["jwt_key"]).read_bytes()
        key = serialization.load_pem_private_key(pem, self.wanted["jwt_passphrase"].encode())
        digest = hashes.Hash(hashes.SHA256())
        digest.update(
            key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return key, f"jwt-{digest.finalize().hex()[:8]}.pub"

    def ask(self, token: str) -> int:
        connection = http.client.HTTPSConnection(
            self.wanted["address"], self.wanted["https_port"], timeout=5, context=self.context
        )
        try:
            connection.request("GET", "/api/v4/brokers", headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def call(self, kind: str, issuer: str, token: str) -> None:
        begin = time.monotonic()
        status = self.ask(token)
        self.calls.append((begin, time.monotonic(), kind, issuer, status))

    @staticmethod
    def token(key: rsa.RSAPrivateKey, issuer: str, end: float) -> str:
        return jwt.encode({"iss": issuer, "exp": int(end)}, key, "RS256")

    def run(self) -> None:
        key, issuer = self.signing_key()
        # (when it ended, issuer, token). The first has ended before the start, for short runs; those of the run follow.
        ended = collections.deque([(time.time() - TOLERANCE, issuer, self.token(key, issuer, time.time() - TOLERANCE))])
        end, good = 0.0, ""
        long_lived: dict[str, str] = {}  # one token of each key that holds till the end of the run and beyond
        turn = 0
        while not self.ending:
            if time.time() > end - 5:  # made anew before it ends, as a careful caller does
                if good:
                    ended.append((end, issuer, good))
                key, issuer = self.signing_key()
                end = time.time() + TOKEN_LIFE
                good = self.token(key, issuer, end)
                long_lived.setdefault(issuer, self.token(key, issuer, time.time() + 86400))
            self.call(VALID, issuer, good)
            others = [(VALID, name, token) for name, token in long_lived.items()]
            others += [(EXPIRED, name, token) for over, name, token in ended if time.time() > over + TOLERANCE][-3:]
            others.append((FORGED, issuer, self.token(self.foreign, issuer, time.time() + 60)))
            self.call(*others[turn % len(others)])
            turn += 1
            time.sleep(CALL_PERIOD)


def wait(condition, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def soak(wanted: dict) -> dict:
    """{"address", "ports": {"tls", "stream"}, "https_port", "users": {name: password}, "publishing_users", "rate" (of a
    publisher, 1/s), "seconds", "seed", "ca", "device", "operator": {"certificate", "key"}, "jwt_key", "jwt_passphrase"}
    """
    ports, often, seldom = wanted["ports"], (8.0, 30.0), (20.0, 60.0)
    subscribers = [
        Subscriber("steady-tls", ports["tls"], "operator", wanted, None),
        Subscriber("broken-tls", ports["tls"], "operator", wanted, often),
        Subscriber("broken-stream", ports["stream"], "operator", wanted, often),
    ]
    publishers = [
        Publisher(f"{user}-{way}", port, user, wanted, seldom)
        for user in wanted["publishing_users"]
        for way, port in ports.items()
    ]
    caller = Caller(wanted)
    for subscriber in subscribers:
        subscriber.start()
    if not wait(lambda: all(subscriber.there() for subscriber in subscribers), 30):
        raise SystemExit("soak_load: not every subscriber got in")
    print("ready", flush=True)
    for thread in (*publishers, caller):
        thread.start()
    time.sleep(wanted["seconds"])
    clients = (*subscribers, *publishers)
    for client in clients:
        client.steady = True
    caller.ending = True
    wait(lambda: not any(publisher.number_of for publisher in publishers), 60)
    wait(lambda: all(subscriber.there() for subscriber in subscribers), 30)
    # A queue of a thousand comes within seconds; what has not come by then does not.
    wait(lambda: time.monotonic() > max(subscriber.latest for subscriber in subscribers) + 10, 60)
    for client in clients:
        client.ending = True
    for thread in (*clients, caller):
        thread.join(10)
    counts: collections.Counter = collections.Counter()
    for client in clients:
        counts.update({f"{type(client).__name__.lower()}s: {what}": count for what, count in client.counts.items()})
    return {
        "acknowledged": {publisher.name: publisher.acknowledged for publisher in publishers},
        "received": {subscriber.name: subscriber.received for subscriber in subscribers},
        "subscribed": {
            subscriber.name: [[begin, min(end, time.monotonic())] for begin, end in subscriber.subscribed]
            for subscriber in subscribers
        },
        "sessions": {client.name: client.sessions for client in clients},
        "served": sorted(moment for client in clients for moment in client.served),
        "calls": caller.calls,
        "counts": counts,
        "notes": [note for client in clients for note in client.notes],
        "ended": time.monotonic(),
    }


if __name__ == "__main__":
    order = json.loads(sys.stdin.readline())
    Path(order["result"]).write_text(json.dumps(soak(order)))
