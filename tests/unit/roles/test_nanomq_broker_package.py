# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How the role nanomq_broker gets packages to the controller: each once, and to each host its own.

The hosts of these plays do nothing: all is on the controller, and the server is on loopback.
"""

from __future__ import annotations

import collections
import hashlib
import http.server
import json
import subprocess
import sys
import threading

import pytest

PACKAGES = {"amd64.deb": b"for amd64", "arm64.deb": b"for arm64"}
PLAY = """\
- hosts: all
  gather_facts: false
  tasks:
    - name: What is tested
      ansible.builtin.import_role:
        name: edgesec.nanomq.nanomq_broker
        tasks_from: fetch
    - name: Tell
      ansible.builtin.debug:
        msg: "has {{ __nanomq_broker_package_stat.stat.checksum | default('nothing') }}"
"""


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server():
    """(address, how often each path was asked for)"""
    asked: collections.Counter[str] = collections.Counter()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> bytes:
            data = PACKAGES.get(self.path.rpartition("/")[2])
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            return data or b""

        def do_GET(self) -> None:
            asked[self.path] += 1
            self.wfile.write(self.do_HEAD())

        def log_message(self, *_arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()


@pytest.fixture
def fetch(tmp_path):
    """fetch({host: (package, checksum)}, *arguments): run it; (exit status, output)"""
    pki = tmp_path / "pki"
    pki.mkdir(mode=0o700)

    def run(hosts: dict[str, tuple[str, str]], *arguments: str) -> tuple[int, str]:
        names = ("nanomq_broker_package", "nanomq_broker_package_sha256")
        inventory = {
            "all": {
                "hosts": {host: dict(zip(names, package)) for host, package in hosts.items()},
                "vars": {"ansible_connection": "local", "nanomq_pki_dir": str(pki)},
            }
        }
        (tmp_path / "hosts.json").write_text(json.dumps(inventory))
        (tmp_path / "play.yml").write_text(PLAY)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ansible",
                "playbook",
                "-i",
                tmp_path / "hosts.json",
                tmp_path / "play.yml",
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    run.pki = pki
    return run


def ok(output: str, host: str) -> bool:
    return f'ok: [{host}] => {{ "msg": "has ' in output


def test_each_package_is_fetched_once_and_each_host_has_its_own(fetch, server):
    address, asked = server
    amd64, arm64 = ((f"{address}/{name}", checksum(data)) for name, data in PACKAGES.items())
    hosts = {"one": amd64, "two": arm64, "three": amd64, "four": arm64, "five": amd64}
    status, output = fetch(hosts)
    assert status == 0, output
    assert asked == {"/amd64.deb": 1, "/arm64.deb": 1}
    for host, (_package, wanted) in hosts.items():
        assert f'ok: [{host}] => {{ "msg": "has {wanted}" }}' in output
    assert sorted(path.read_bytes() for path in fetch.pki.iterdir()) == sorted(PACKAGES.values())
    assert fetch(hosts)[0] == 0
    assert asked == {"/amd64.deb": 1, "/arm64.deb": 1}


def test_a_later_package_of_the_same_name_is_another_file(fetch, server, monkeypatch):
    address, asked = server
    url = f"{address}/amd64.deb"
    assert fetch({"one": (url, checksum(PACKAGES["amd64.deb"]))})[0] == 0
    monkeypatch.setitem(PACKAGES, "amd64.deb", b"a later version")
    status, output = fetch({"one": (url, checksum(b"a later version"))})
    assert status == 0, output
    assert asked["/amd64.deb"] == 2


@pytest.mark.parametrize("wrong", ["checksum", "missing", "tampered", "no checksum"])
def test_a_wrong_package_fails_its_own_hosts_alone(fetch, server, wrong):
    address, _asked = server
    good = (f"{address}/amd64.deb", checksum(PACKAGES["amd64.deb"]))
    bad = (f"{address}/arm64.deb", checksum(PACKAGES["arm64.deb"]))
    if wrong == "checksum":
        bad = (bad[0], checksum(b"something else"))
    elif wrong == "missing":
        bad = (f"{address}/riscv64.deb", bad[1])
    elif wrong == "no checksum":
        bad = (bad[0], "")
    else:
        (fetch.pki / f"{bad[1][:16]}-arm64.deb").write_bytes(b"put there by somebody")
    status, output = fetch({"one": bad, "two": good, "three": bad})
    assert status == 2, output
    assert [ok(output, host) for host in ("one", "two", "three")] == [False, True, False]


def test_a_file_on_the_controller_is_taken_as_it_is(fetch, tmp_path):
    path = tmp_path / "nanomq.deb"
    path.write_bytes(b"a file")
    status, output = fetch({"one": (str(path), checksum(b"a file")), "two": (str(path), checksum(b"another"))})
    assert status == 2
    assert [ok(output, host) for host in ("one", "two")] == [True, False]
    assert "another file: its SHA-256 is" in output


def test_check_mode_fetches_nothing(fetch, server):
    address, asked = server
    status, output = fetch({"one": (f"{address}/amd64.deb", checksum(PACKAGES["amd64.deb"]))}, "--check")
    assert status == 0, output
    assert list(fetch.pki.iterdir()) == []
    assert ok(output, "one")
    assert not asked
