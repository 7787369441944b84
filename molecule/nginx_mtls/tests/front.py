# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tests of this scenario share: attempts from the outsider, and what the broker received of them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import secrets
import subprocess

import scenario

HERE = pathlib.Path(__file__).resolve().parent
OWN_INVENTORY = HERE.parent / "inventory/hosts.yml"
#: Where the outsider, and whoever else plays a client, has the attacker and the certificates.
ATTACKER = "/root/attacker"
RECORDER, RECORD = "/var/tmp/recorder.py", "/var/tmp/record.jsonl"


def harden(*arguments: str, **options) -> scenario.Play:
    """Run the playbook with what this scenario declares."""
    return scenario.harden("-i", str(OWN_INVENTORY), *arguments, **options)


def ssh(name: str, command: str, given: str = "", timeout: int = 120) -> str:
    """Run a command that reads much, or says much."""
    config = pathlib.Path(scenario.INVENTORY).parent / "ssh_config"
    done = subprocess.run(
        ["ssh", "-F", str(config), name, command],
        input=given.encode(),
        capture_output=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def attempt(attempts: list[dict], source: str = "outsider") -> list[dict]:
    """What came of each, in one go (see attacker.py)."""
    return json.loads(ssh(source, f"python3 {ATTACKER}/attacker.py", json.dumps(attempts)))


def to(broker, kind: str, **rest) -> dict:
    """An attempt on a host."""
    return {"address": broker.ipv4, "port": 443, "name": broker.name, "kind": kind} | rest


def statuses(broker, certificate: str | None, calls: list[tuple], source: str = "outsider") -> list[int]:
    """The status of each call (method, path[, headers, body]) with a certificate, on one connection."""
    return [status for status, _body in answers(broker, certificate, calls, source)]


def answers(broker, certificate: str | None, calls: list[tuple], source: str = "outsider") -> list[tuple[int, str]]:
    filled = [[*call, {}, ""][:4] if len(call) < 3 else [*call, ""][:4] for call in calls]
    (answer,) = attempt([to(broker, "calls", certificate=certificate, calls=filled)], source)
    assert "error" not in answer, answer
    return [tuple(pair) for pair in answer["answers"]]


def with_token() -> dict[str, str]:
    return {"Authorization": f"Bearer {scenario.token(600)}"}


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


LINE = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1")
HEADER = re.compile(rb"([A-Za-z][A-Za-z-]*): ([^\r\n\x00]*)")
#: What the front end has a reason to send.
EXPECTED_HEADERS = {"host", "connection", "authorization", "content-type", "accept", "content-length"}


def parse(stream: bytes) -> list[Request]:
    """The requests of a connection; ValueError unless it is nothing but well-formed ones, each framed in one way."""
    requests = []
    while stream:
        head, end, rest = stream.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        line, fields = LINE.fullmatch(first), [HEADER.fullmatch(field) for field in lines]
        if not end or not line or not all(fields):
            raise ValueError(f"not well-formed: {head!r} and {rest[:300]!r}")
        headers = [(field[1].decode().lower(), field[2].decode("latin-1")) for field in fields]
        names = [name for name, _value in headers]
        if len(set(names)) < len(names) or set(names) - EXPECTED_HEADERS or "host" not in names:
            raise ValueError(f"unexpected headers: {head!r}")
        length = dict(headers).get("content-length", "0")
        if not re.fullmatch("[0-9]{1,9}", length) or len(rest) < int(length):
            raise ValueError(f"unclear length: {head!r} and {rest[:300]!r}")
        body, stream = rest[: int(length)], rest[int(length) :]
        requests.append(Request(line[1].decode(), line[2].decode(), tuple(headers), body))
    return requests


class Recorder:
    """What a broker receives, from when it is made."""

    def __init__(self, broker) -> None:
        self.broker = broker
        ssh(broker.name, f"cat > {RECORDER}", (HERE / "recorder.py").read_text())
        self.stop()
        ssh(
            broker.name,
            f"rm -f {RECORD}; systemd-run --quiet --collect --unit=recorder python3 {RECORDER} 8081 {RECORD}; "
            f"for try in $(seq 50); do test -e {RECORD} && break; sleep 0.1; done",
        )
        self.mark = 0
        self.streams()

    def stop(self) -> str:
        return ssh(self.broker.name, f"systemctl stop recorder 2>/dev/null; tail -n 1 {RECORD} 2>/dev/null; true")

    def streams(self) -> list[bytes]:
        """What arrived since the last time, by connection. A call of our own at the end proves that it listens."""
        sentinel = f"/sentinel-{secrets.token_hex(8)}"
        wait = f"for try in $(seq 100); do grep -q {sentinel} {RECORD} && break; sleep 0.05; done"
        call = f"curl --silent --max-time 5 --output /dev/null http://127.0.0.1:8081{sentinel}"
        text = ssh(self.broker.name, f"{call}; {wait}; tail -c +{self.mark + 1} {RECORD}")
        assert sentinel in text, "the recorder does not record"
        self.mark += len(text.encode())
        connections: dict[str, dict[int, bytes]] = {}
        for segment in map(json.loads, text.splitlines()):
            connections.setdefault(segment["connection"], {})[segment["offset"]] = segment["data"].encode("latin-1")
        streams = []
        for segments in connections.values():
            stream, position = b"", min(segments)
            for offset, data in sorted(segments.items()):
                assert offset <= position, "a gap in the record"
                stream += data[position - offset :]
                position = max(position, offset + len(data))
            streams.append(stream)
        return [stream for stream in streams if sentinel.encode() not in stream]

    def requests(self) -> list[Request]:
        """The requests that arrived since the last time; ValueError where something else did."""
        return [request for stream in self.streams() for request in parse(stream)]


FLEET = "bookworm,trixie"


def main_pid(host, service: str = "nanomq") -> int:
    return int(host.check_output(f"systemctl show --property MainPID --value {service}"))
