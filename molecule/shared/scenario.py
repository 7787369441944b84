# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tests of all scenarios share: the controller, the hosts, and an MQTT client on the outsider."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import threading
import time

import jwt
import pytest
import testinfra
import yaml
from ansible_collections.edgesec.nanomq.plugins.module_utils import _versions
from ansible_collections.edgesec.nanomq.plugins.module_utils._schema import version_tuple
from cryptography.hazmat.primitives import serialization

SHARED = pathlib.Path(__file__).resolve().parent
INVENTORY = os.environ.get("EDGESEC_LAB_INVENTORY", "")
HOSTS = yaml.safe_load((SHARED / "inventory/group_vars/brokers.yml").read_text())
USERS = HOSTS["nanomq_broker_users"]


def inventory() -> dict:
    """{host: its variables} of the scenario."""
    groups = json.loads(pathlib.Path(INVENTORY).read_text())["all"]["children"]
    return {
        name: {**variables, "group": group}
        for group, value in groups.items()
        for name, variables in value["hosts"].items()
    }


def broker_names() -> list[str]:
    return [name for name, variables in inventory().items() if variables["group"] == "brokers"]


def pki() -> pathlib.Path:
    return pathlib.Path(INVENTORY).parent / "pki"


@dataclasses.dataclass
class Play:
    """How a run of ansible-playbook ended: exit status, what it printed, changed and failed hosts, what it cost."""

    status: int
    output: str
    costs: list[dict]

    def recap(self, host: str) -> dict[str, int]:
        line = next(line for line in reversed(self.output.splitlines()) if line.startswith(host) and "ok=" in line)
        return {key: int(value) for key, value in (word.split("=") for word in line.partition(":")[2].split())}

    def flat(self) -> str:
        """The output with line breaks and quoting of YAML folded, to search messages in."""
        return " ".join(self.output.replace("''", "'").split())


def play(
    playbook: str,
    *arguments: str,
    hosts: str = "",
    interpreter: str = "",
    timeout: int = 300,
    killed_when=None,
    settings: dict[str, str] | None = None,
    **variables,
) -> Play:
    """Run a playbook on the scenario's hosts, as an operator would, and count what it costs.

    `interpreter` is the Python of the hosts, but not of the controller; `settings` are ANSIBLE_* variables.
    `killed_when` is asked all the time, with the lines that were printed so far, and once it is true, the run and all
    it has started on the controller are killed: the status is then -9. One that ends before has a status of its own.
    """
    counts = pathlib.Path(INVENTORY).parent / f"runs-{time.monotonic_ns()}.jsonl"
    command = ["ansible-playbook", "-i", str(SHARED / "inventory/hosts.yml"), "-i", INVENTORY, playbook, *arguments]
    if hosts:
        command += ["--limit", hosts]
    if interpreter:
        extra = pathlib.Path(INVENTORY).parent / "interpreter.json"
        wanted = {name: {"ansible_python_interpreter": interpreter} for name in broker_names()}
        extra.write_text(json.dumps({"brokers": {"hosts": wanted}}))
        command += ["-i", str(extra)]
    if variables:
        command += ["--extra-vars", json.dumps(variables)]
    process = subprocess.Popen(
        command,
        env=os.environ
        | {
            "ANSIBLE_CALLBACK_PLUGINS": str(SHARED / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "remote_runs",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
            "ANSIBLE_STDOUT_CALLBACK": "default",
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_TIMEOUT": "5",
            "REMOTE_RUNS_FILE": str(counts),
        }
        | (settings or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=pathlib.Path(INVENTORY).parent,
    )
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process.stdout, lines))
    reader.start()
    until = time.monotonic() + timeout
    try:
        while killed_when is not None and process.poll() is None and time.monotonic() < until:
            if killed_when(lines):
                _kill(process)
                break
            time.sleep(0.005)
        process.wait(max(until - time.monotonic(), 0.1))
    except BaseException:
        _kill(process)
        process.wait()
        raise
    finally:
        reader.join(30)
    costs = [json.loads(line) for line in counts.read_text().splitlines()] if counts.exists() else []
    return Play(process.returncode, "".join(lines), costs)


def _read(stream, lines: list[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line)


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and its descendants, which may be in sessions of their own, and leave them no time for others."""
    family: list[int] = []
    found = [process.pid]
    while found:
        for member in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGSTOP)
        family += found
        parents = {}
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        found = [pid for pid, parent in parents.items() if parent in family and pid not in family]
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def harden(*arguments: str, **options) -> Play:
    return play("edgesec.nanomq.harden", *arguments, **options)


def connect(name: str):
    return testinfra.get_host(f"ansible://{name}?ansible_inventory={INVENTORY}")


def known_broker(name: str):
    """A broker host, with its name and addresses."""
    host = connect(name)
    host.name = name
    host.ipv4 = inventory()[name]["lab_ipv4"]
    host.ipv6 = inventory()[name]["lab_ipv6"]
    return host


def broker_version(host) -> tuple[int, ...]:
    return version_tuple(host.check_output("dpkg-query -W -f '${Version}' nanomq"))


def version_findings(host) -> set[str]:
    """The rules that the version of a host's broker breaks however it is configured."""
    version = broker_version(host)
    known = any(advisory.concerns(version) for advisory in _versions.ADVISORIES)
    old = version < version_tuple(_versions.RECOMMENDED)
    return {rule for rule, broken in (("NMQ-VER-003", known), ("NMQ-VER-004", old)) if broken}


def private_key():
    """The key that signs tokens, which the controller alone has."""
    passphrase = HOSTS["nanomq_pki_jwt_passphrase"].encode()
    return serialization.load_pem_private_key((pki() / "jwt/fleet.key").read_bytes(), passphrase)


def issuer() -> str:
    return issuer_of(private_key())


def issuer_of(key) -> str:
    """What tokens that a key signs have to say of it."""
    public = key.public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"jwt-{hashlib.sha256(der).hexdigest()[:8]}.pub"


def token(seconds: int = 300) -> str:
    """A token that the brokers take."""
    return jwt.encode({"iss": issuer(), "exp": int(time.time()) + seconds}, private_key(), "RS256")


def eventually(what, seconds: float = 15) -> bool:
    """Whether something comes true within a time."""
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


@dataclasses.dataclass
class Client:
    """mosquitto's clients on the outsider, with certificates that the fleet's CA, or another one, signed.

    `tries` is how often one is refused before it counts; see `publish`.
    """

    host: object
    directory: str = "/root/mqtt"
    tries: int = 4

    def publish(
        self, address: str, *, user: str | None, password: str | None, topic: str = "", certificate: str = "client"
    ) -> bool:
        """Whether a QoS 1 publish came through a login, at one of a few tries.

        The real broker at times drops a TLS connection for no reason, or aborts and is back after two seconds. So one
        refusal proves nothing, and one that is let in proves all. (The broker acknowledges what its ACL drops.)
        """
        command = f"timeout 8 mosquitto_pub -h {address} -p 8883 -q 1 -m x "
        command += f"-t {shlex.quote(topic or (user or 'nobody') + '/t')} --cafile {self.directory}/ca.pem "
        if certificate:
            command += f"--cert {self.directory}/{certificate}.pem --key {self.directory}/{certificate}.key "
        if user is not None:
            command += f"-u {shlex.quote(user)} "
        if password is not None:
            command += f"-P {shlex.quote(password)} "
        wait = f"nc -z -w 1 {address} 8883 || sleep 2.5"
        return self.host.run(f"for try in $(seq {self.tries}); do {command} && exit 0; {wait}; done; exit 1").rc == 0

    def round_trip(self, address: str, *, user: str, password: str, topic: str) -> bool:
        """Whether what is published on a topic reaches a subscriber of it, both as this user."""
        common = (
            f"-h {address} -p 8883 --cafile {self.directory}/ca.pem --cert {self.directory}/client.pem "
            f"--key {self.directory}/client.key -u {shlex.quote(user)} -P {shlex.quote(password)} "
            f"-t {shlex.quote(topic)} -q 1"
        )
        script = (
            f"timeout 6 mosquitto_sub {common} -C 1 -W 3 & s=$!; sleep 0.5; "
            f"for try in 1 2 3; do timeout 5 mosquitto_pub {common} -m hello && break; done; wait $s && exit 0; "
            f"nc -z -w 1 {address} 8883 || sleep 2.5; exit 1"
        )
        return any(self.host.run("bash -c %s", script).stdout.strip() == "hello" for _try in range(4))


def openssl(directory: pathlib.Path, arguments: str) -> None:
    subprocess.run(["openssl", *shlex.split(arguments)], cwd=directory, check=True, capture_output=True)


def reboot(host) -> None:
    """Power-cycle a host, and wait until it has booted."""
    scenario = pathlib.Path(INVENTORY).parent.name
    subprocess.run(["podman", "restart", "--time", "0", f"{scenario}.{host.name}"], check=True, capture_output=True)
    for _attempt in range(60):
        done = play_command(host.name, "systemctl is-system-running --wait")
        if done.stdout.strip() in ("running", "degraded"):
            # It has a new hardware address, which the others need not learn by waiting.
            play_command("outsider", "ip neigh flush all")
            return
        time.sleep(0.5)
    pytest.fail(f"{host.name} does not come back: {done.stdout} {done.stderr}")


def play_command(name: str, command: str) -> subprocess.CompletedProcess:
    """Run a command over a connection of its own; the shared one may be to a host that is gone."""
    config = pathlib.Path(INVENTORY).parent / "ssh_config"
    ssh = ["ssh", "-F", str(config), "-o", "ControlPath=none", "-o", "ConnectTimeout=2", name, command]
    return subprocess.run(ssh, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)


def journal(host, arguments: str = "") -> str:
    """What the journal of a host says. The broker at times logs bytes that are no text."""
    done = host.run(f"journalctl --no-pager --output=cat {arguments}")
    assert done.rc == 0, done.stderr_bytes
    return done.stdout_bytes.decode(errors="replace")


def conf_digest(host) -> str:
    """What the broker's configuration and unit are, as one word."""
    text = host.check_output("cat /etc/nanomq/nanomq.conf /etc/systemd/system/nanomq.service")
    return hashlib.sha256(text.encode()).hexdigest()
