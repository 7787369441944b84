"""What the contract tests share: starting brokers, asking them, and looking at what they do."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from versions import BEHAVIOUR

DOUBLE = Path(__file__).resolve().parents[1] / "broker_double"
# Where the private /tmp shows the double, its Python and its libraries: within reach of every user.
SHOWN = {
    Path("/tmp/contract/double"): DOUBLE,
    Path("/tmp/contract/python"): Path(sys.base_prefix),
    Path("/tmp/contract/libraries"): Path(sysconfig.get_path("purelib")),
}
START_SECONDS = 15

ADMIN = ("admin", "public")
MQTT_PORT, HTTP_PORT = 1883, 8081
# The far end of bridges and rules: mosquitto, by TLS and without, and who may log in there.
FAR_PORT, FAR_PLAIN_PORT = 8801, 8802
FAR_USER = ("far", "password of the far end")
# Nothing but what a test is about: no socket in /tmp, REST on loopback.
QUIET = "system { enable_ipc_internal = false }\n"
TCP = f'listeners.tcp {{ bind = "127.0.0.1:{MQTT_PORT}" }}\n'
HTTP = f'http_server {{ port = {HTTP_PORT}, ip_addr = "127.0.0.1" }}\n'


def topics(deny_action: str) -> str:
    """Rules for topics: u publishes to local/# and nothing else, the far end's user reads what comes out."""
    return (
        f"auth {{ allow_anonymous = false, no_match = deny, deny_action = {deny_action}\n"
        f'password {{ "u" = "p", "{FAR_USER[0]}" = "{FAR_USER[1]}" }}\n'
        'acl { rules = [{ permit = "allow", username = "u", action = "publish", topics = ["local/#"] }\n'
        f'{{ permit = "allow", username = "{FAR_USER[0]}", topics = ["out/#"] }}] }} }}\n'
    )


#: Whether a message that is denied goes out all the same. `disconnect` is what ignores: see test_mqtt.py.
DENIED_LEAVES = pytest.mark.parametrize(("deny_action", "leaves"), [("ignore", False), ("disconnect", True)])


@dataclass(frozen=True)
class Kind:
    """A broker to test: how it is called, and its version."""

    id: str
    command: tuple[str, ...]
    version: tuple[int, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def find_brokers() -> list[Kind]:
    """The double first, then a real one if there is any."""
    double, python, libraries = SHOWN
    environment = {
        "PYTHONPATH": str(libraries),
        "LD_LIBRARY_PATH": str(python / "lib"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    shown = (str(python / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"), str(double / "nanomq"))
    found = [Kind("double", shown, _version((sys.executable, str(DOUBLE / "nanomq"))), environment)]
    binary = os.environ.get("NANOMQ_BINARY") or shutil.which("nanomq")
    if binary:
        version = _version((binary,))
        found.append(Kind(f"real-{'.'.join(map(str, version))}", (binary,), version))
    return found


def _version(command: tuple[str, ...]) -> tuple[int, ...]:
    banner = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_SECONDS).stdout
    match = re.search(r" v(\d+)\.(\d+)\.(\d+)", banner)
    if not match:
        raise pytest.UsageError(f"{command[-1]} does not introduce itself as NanoMQ")
    return tuple(map(int, match.groups()))


BROKERS = find_brokers()


@dataclass
class Reply:
    """Answer of the REST interface; `body` is text where it is not JSON."""

    status: int
    body: Any

    @property
    def code(self) -> int | None:
        return self.body.get("code") if isinstance(self.body, dict) else None


@dataclass
class Running:
    """A broker that was started, or tried to."""

    process: subprocess.Popen
    directory: Path
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def listens(self) -> set[str]:
        """Addresses of all listening TCP sockets in this namespace: the broker's."""
        return set(_listening("tcp")) | set(_listening("tcp6"))

    def exit_code(self, timeout: float = 10) -> int:
        """Exit code; a death by signal N is -N."""
        return self.process.wait(timeout)

    def get(self, path: str = "", auth: tuple[str, str] | str | None = ADMIN, **options: Any) -> Reply:
        return request("GET", path, auth, **options)

    def post(self, path: str, data: object, auth: tuple[str, str] | str | None = ADMIN, **options: Any) -> Reply:
        body = data if isinstance(data, (str, bytes)) else json.dumps(data)
        return request("POST", path, auth, body=body, **options)

    def call(self, method: str, path: str, data: object = None, auth: tuple[str, str] | str | None = ADMIN) -> Reply:
        return request(method, path, auth, body=None if data is None else json.dumps(data))

    @property
    def has_rule_engine(self) -> bool:
        """Whether it was built with one; 111 is the code for what was not built in."""
        return self.get("/rules").code != 111

    def section(self, name: str, auth: tuple[str, str] | str | None = ADMIN) -> Any:
        """A section of the configuration as the broker has understood it."""
        return self.get(f"/configuration/{name}", auth).body["data"][name]


def request(
    method: str,
    path: str,
    auth: tuple[str, str] | str | None = None,
    *,
    body: str | bytes | None = None,
    port: int = HTTP_PORT,
    host: str = "127.0.0.1",
    root: str = "/api/v4",
    **headers: str,
) -> Reply:
    """One REST call; `auth` is a pair for Basic, else the whole header."""
    if isinstance(auth, tuple):
        auth = "Basic " + base64.b64encode(":".join(auth).encode()).decode()
    if auth is not None:
        headers["Authorization"] = auth
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request(method, root + path, body, headers)
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    finally:
        connection.close()
    with contextlib.suppress(ValueError):
        return Reply(response.status, json.loads(text))
    return Reply(response.status, text)


def _listening(family: str) -> Iterator[str]:
    for line in Path(f"/proc/thread-self/net/{family}").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            address, _colon, port = fields[1].partition(":")
            words = [bytes.fromhex(address[index : index + 8])[::-1] for index in range(0, len(address), 8)]
            kind = socket.AF_INET if len(words) == 1 else socket.AF_INET6
            yield f"{socket.inet_ntop(kind, b''.join(words))}:{int(port, 16)}"


@dataclass
class Starter:
    """Starts brokers of one kind in a directory of their own."""

    kind: Kind
    directory: Path
    started: list[Running] = field(default_factory=list)

    @property
    def version(self) -> tuple[int, ...]:
        return self.kind.version

    def does(self, behaviour: str) -> bool:
        """Whether this version behaves so; see versions.py."""
        return BEHAVIOUR[behaviour].holds(self.version)

    def write(self, conf: str | bytes, name: str = "nanomq.conf") -> Path:
        path = self.directory / name
        path.write_bytes(conf if isinstance(conf, bytes) else conf.encode())
        return path

    def launch(
        self, *arguments: object, env: dict[str, str] | None = None, user: int | None = None, umask: int = -1
    ) -> Running:
        """Start `nanomq arguments...` and do not wait."""
        log = self.directory / f"log{len(self.started)}"
        environment = {
            "PATH": os.environ["PATH"],
            "NANOMQ_PID_FILE": str(self.directory / "pid"),
            **self.kind.environment,
            **(env or {}),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                # Line by line: what tells that it has started is else kept back.
                ["stdbuf", "-oL", *self.kind.command, *map(str, arguments)],
                cwd=self.directory,
                env=environment,
                user=user,
                umask=umask,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        running = Running(process, self.directory, log)
        self.started.append(running)
        return running

    def __call__(self, conf: str | bytes | None, *arguments: object, **options: Any) -> Running:
        """Start with configuration `conf` (None: without one) and wait until it listens or is dead."""
        if conf is not None:
            arguments = ("--conf", self.write(conf), *arguments)
        running = self.launch("start", *arguments, **options)
        wait_for(lambda: "started successfully" in running.output or running.process.poll() is not None)
        return running

    def stop(self) -> None:
        for running in self.started:
            if running.process.poll() is None:
                running.process.kill()
            running.process.wait(10)
        # What a broker leaves behind, and a stale socket can keep the next one from starting.
        shutil.rmtree("/tmp/nanomq", ignore_errors=True)
        for path in ("/tmp/nanomq_cmd.ipc", "/tmp/nanomq_hook.ipc"):
            Path(path).unlink(missing_ok=True)


def wait_for(condition: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
    """Value of `condition` as soon as it is true; fails where that takes too long."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.01)
    return value


def listens(port: int) -> bool:
    """Whether somebody takes connections on a port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Client:
    """An MQTT client without threads: `outcome` is `accepted`, `closed` (no CONNACK) or a refusal's code."""

    def __init__(
        self,
        clientid: str = "",
        port: int = MQTT_PORT,
        version: int = paho.MQTTv311,
        transport: str = "tcp",
        user: tuple[str, str] | None = None,
        tls: Any = None,
        host: str = "127.0.0.1",
        **options: Any,
    ) -> None:
        self.outcome: str | int | None = None
        self.messages: list[tuple[str, bytes]] = []
        self.granted: dict[int, list[int]] = {}
        self.acknowledged: list[int] = []
        self.paho = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            clientid,
            protocol=version,
            transport=transport,
            reconnect_on_failure=False,
            **options,
        )
        self.paho.on_connect = self._on_connect
        self.paho.on_disconnect = self._on_disconnect
        self.paho.on_message = lambda _c, _u, message: self.messages.append((message.topic, message.payload))
        self.paho.on_publish = lambda _c, _u, mid, _reason, _properties: self.acknowledged.append(mid)
        self.paho.on_subscribe = self._on_subscribe
        if user:
            self.paho.username_pw_set(*user)
        if tls:
            self.paho.tls_set_context(tls)
        try:
            self.paho.connect(host, port)
            self.spin(lambda: self.outcome is not None)
        except OSError as error:
            self.outcome = f"failed: {type(error).__name__}"

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.outcome = "accepted" if reason.value == 0 else reason.value

    def _on_disconnect(self, *_arguments: Any) -> None:
        self.outcome = "dropped" if self.outcome == "accepted" else self.outcome or "closed"

    def _on_subscribe(self, _client: Any, _data: Any, mid: int, reasons: list[Any], _properties: Any) -> None:
        self.granted[mid] = [reason.value for reason in reasons]

    def spin(self, condition: Callable[[], Any], seconds: float = 5) -> bool:
        """Serve the connection until `condition` holds; whether it does."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            if self.paho.loop(0.05) and not condition():
                break
        return bool(condition())

    def subscribe(self, topic: str, qos: int = 0) -> int:
        """Code of the SUBACK: the granted QoS, or a failure from 0x80 on."""
        _result, mid = self.paho.subscribe(topic, qos)
        assert self.spin(lambda: mid in self.granted), "no SUBACK"
        return self.granted[mid][0]

    def publish(self, topic: str, payload: str = "x", qos: int = 1, **options: Any) -> bool:
        """Whether the broker has acknowledged the message."""
        info = self.paho.publish(topic, payload, qos, **options)
        return self.spin(lambda: info.mid in self.acknowledged)

    def receives(self, topic: str, seconds: float = 5) -> bool:
        """Whether a message of `topic` comes in."""
        return self.spin(lambda: any(topic == name for name, _payload in self.messages), seconds)

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop(0.01)


def refused(broker: Starter, user: tuple[str, str] | None, version: int = paho.MQTTv311) -> str | int:
    """What a client sees that is turned away: a closed connection, before 0.25.3 mostly a code first."""
    if broker.does("a refusal closes without a word"):
        return "closed"
    named = user is not None
    if broker.does("anonymous clients need users to be shut out") and named and not user[1]:
        return 129 if version == paho.MQTTv5 else "closed"
    return 135 if named and user[1] and version != paho.MQTTv5 else 134
