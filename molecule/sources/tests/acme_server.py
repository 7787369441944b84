# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Debian's pebble, an ACME server, with a DNS and a web server for its challenges: all on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.server
import json
import os
import pathlib
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator

import scenario

#: Called as lego's exec provider calls a program; puts the record into the DNS that pebble asks.
HOOK = """#!/bin/sh
set -eu
case $1 in
present) curl -sSf -d "{\\"host\\":\\"$2\\",\\"value\\":\\"$3\\"}" http://127.0.0.1:MANAGEMENT/set-txt ;;
cleanup) curl -sSf -d "{\\"host\\":\\"$2\\"}" http://127.0.0.1:MANAGEMENT/clear-txt ;;
esac
echo "$@" >> "$(dirname "$0")/hook.log"
"""

#: Seconds after which the servers end by themselves, whatever becomes of the tests.
LIFE = 900


@dataclasses.dataclass
class Server:
    """Where it is: URL of the directory, CA of its own TLS, root of what it signs, and the ways to meet challenges."""

    directory: str
    tls_ca: pathlib.Path
    root: str
    webroot: pathlib.Path
    hook: pathlib.Path

    @property
    def hook_log(self) -> pathlib.Path:
        """The calls of the hook, one a line."""
        return self.hook.with_name("hook.log")


@contextlib.contextmanager
def run(path: pathlib.Path, lifetime: int) -> Iterator[Server]:
    """A server for as long as the block lasts. What it signs lives `lifetime` seconds. Its authority is a new one."""
    ports = free_ports(6)
    path.mkdir()
    webroot, hook = path / "web", path / "hook"
    webroot.mkdir()
    hook.write_text(HOOK.replace("MANAGEMENT", str(ports[4])))
    hook.chmod(0o755)
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    scenario.openssl(path, f"req -x509 {new_key} -keyout tls-ca.key -out tls-ca.pem -days 2 -subj /CN=tls")
    scenario.openssl(path, f"req -new {new_key} -keyout tls.key -out tls.csr -subj /CN=tls")
    (path / "tls.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    authority = "-CA tls-ca.pem -CAkey tls-ca.key -CAcreateserial"
    scenario.openssl(path, f"x509 -req -in tls.csr {authority} -extfile tls.ext -out tls.pem -days 2")
    listen = {"listenAddress": f"127.0.0.1:{ports[0]}", "managementListenAddress": f"127.0.0.1:{ports[1]}"}
    key = {"certificate": "tls.pem", "privateKey": "tls.key", "certificateValidityPeriod": lifetime}
    (path / "pebble.json").write_text(json.dumps({"pebble": {**listen, **key, "httpPort": ports[2], "tlsPort": 1}}))
    dns = f"127.0.0.1:{ports[3]}"
    names = ["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", dns]
    names += ["-management", f"127.0.0.1:{ports[4]}", "-http01", "", "-https01", "", "-tlsalpn01", ""]
    acme = ["pebble", "-config", "pebble.json", "-dnsserver", dns, "-strict=false"]
    with contextlib.ExitStack() as stack:
        for command in (names, acme):
            stack.enter_context(started(command, path))
        stack.enter_context(web(webroot, ports[2]))
        context = ssl.create_default_context(cafile=str(path / "tls-ca.pem"))
        root = answer(f"https://127.0.0.1:{ports[1]}/roots/0", context)
        yield Server(f"https://127.0.0.1:{ports[0]}/dir", path / "tls-ca.pem", root, webroot, hook)


@contextlib.contextmanager
def started(command: list[str], path: pathlib.Path) -> Iterator[None]:
    with (path / f"{command[0]}.log").open("w") as log:
        environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1"}
        process = subprocess.Popen(
            ["timeout", str(LIFE), *command],
            cwd=path,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        try:
            yield
        finally:
            process.terminate()  # timeout passes it on
            process.wait(10)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Prints no line for each request."""

    def log_message(self, *_arguments) -> None:
        pass


@contextlib.contextmanager
def web(directory: pathlib.Path, port: int) -> Iterator[None]:
    """The web server that shows the directory under the names of the hosts."""
    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def answer(url: str, context: ssl.SSLContext) -> str:
    """The body of a GET, once the server is up."""
    for _attempt in range(50):
        try:
            with urllib.request.urlopen(url, context=context, timeout=5) as response:
                return response.read().decode()
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _each in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
