"""One suite, every broker: the double, and a real NanoMQ where one is found (NANOMQ_BINARY, or on PATH).

A difference between the two is a bug of the double. The tests run in their own network and mount namespace with a
/tmp of their own, so that default ports and paths can be used as they are, and nothing of this machine is touched.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import BROKERS, FAR_PLAIN_PORT, FAR_PORT, FAR_USER, SHOWN, Client, Starter, listens, wait_for
from material import Pair, authority, certificate, private_pem

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000


def pytest_report_header() -> list[str]:
    return [f"broker: {kind.id} {'.'.join(map(str, kind.version))} ({kind.command[-1]})" for kind in BROKERS]


@pytest.fixture(scope="session", autouse=True)
def _namespace(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Move this process, and so the brokers that it starts, into a network and a /tmp of their own."""
    libc = ctypes.CDLL(None, use_errno=True)
    user = os.geteuid()
    flags = CLONE_NEWNS | CLONE_NEWNET | (CLONE_NEWUSER if user else 0)
    if libc.unshare(flags):
        pytest.exit(f"no private namespace to test brokers in: {os.strerror(ctypes.get_errno())}", returncode=2)
    if user:
        Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    keep = [
        tmp_path_factory.getbasetemp(),
        Path(__file__).parent,
        Path(sys.prefix),
        Path(sys.base_prefix),
        *(Path(kind.command[0]).resolve().parent for kind in BROKERS[1:]),
    ]
    _private_tmp({**{path: path for path in keep if path.is_relative_to("/tmp")}, **SHOWN})


def _private_tmp(shown: dict[Path, Path]) -> None:
    """Mount a fresh /tmp with the directories `{path in it: directory}`."""
    fresh = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", fresh], check=True)
    for path, directory in shown.items():
        copy = fresh / path.relative_to("/tmp")
        copy.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", directory, copy], check=True)
    subprocess.run(["mount", "--move", fresh, "/tmp"], check=True)


@pytest.fixture(params=BROKERS, ids=lambda kind: kind.id)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Starter]:
    """Starter of brokers of one kind; what it started is ended behind the test."""
    # A service's user must reach its files.
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    starter = Starter(request.param, tmp_path)
    yield starter
    starter.stop()


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Connects MQTT clients, and disconnects them behind the test."""
    clients: list[Client] = []

    def connect(*arguments: Any, **options: Any) -> Client:
        clients.append(Client(*arguments, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the far end, mosquitto, with a certificate for its TLS listener."""
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "the far end of bridges is mosquitto: `make contract` installs it, or apt"
    directory = tmp_path / "far"
    directory.mkdir(mode=0o755)
    started: list[subprocess.Popen] = []

    def start(pair: Pair | None = None, mutual: bool = False) -> subprocess.Popen:
        pair = pair or certificate()
        (directory / "cert.pem").write_bytes(pair.pem)
        (directory / "key.pem").write_bytes(private_pem(pair.key))
        (directory / "ca.pem").write_bytes(authority("authority").pem)
        passwords = directory / "passwords"
        passwords.write_text(":".join(FAR_USER) + "\n")
        subprocess.run(["mosquitto_passwd", "-U", passwords], check=True, capture_output=True)
        lines = [
            "user root",
            "allow_anonymous false",
            f"password_file {passwords}",
            f"listener {FAR_PLAIN_PORT} 127.0.0.1",
            f"listener {FAR_PORT} 127.0.0.1",
            *(f"{name} {directory}/{file}.pem" for name, file in (("certfile", "cert"), ("keyfile", "key"))),
            *([f"cafile {directory}/ca.pem", "require_certificate true"] if mutual else []),
        ]
        (directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        with (directory / "log").open("ab") as log:
            process = subprocess.Popen([program, "-c", directory / "mosquitto.conf"], stdout=log, stderr=log)
        started.append(process)
        wait_for(lambda: listens(FAR_PORT))
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(10)
