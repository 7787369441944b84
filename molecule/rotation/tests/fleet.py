# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The ten hosts at once: plays on them, and what each of them says of its broker."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import pathlib
import re
import signal
import subprocess
import time

import jwt
import scenario
from cryptography.hazmat.primitives import serialization

HERE = pathlib.Path(__file__).resolve().parent
OWN_INVENTORY = HERE.parent / "inventory/hosts.yml"

#: Run on a host, with tokens on its standard input: one line of JSON about the broker.
LOOK = r"""
import json, os, subprocess, sys, time, urllib.error, urllib.request
def ask(token):
    request = urllib.request.Request("http://127.0.0.1:8081/api/v4/brokers")
    request.add_header("Authorization", "Bearer " + token)
    for attempt in range(30):
        try:
            return urllib.request.urlopen(request, timeout=3).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            time.sleep(0.2)
    return 0
# Each time that somebody had the unit stopped: the real broker ends at times, and comes back, by itself.
stopping = "journalctl --quiet --no-pager --output=cat UNIT=nanomq.service MESSAGE_ID=de5b426a63be47a7b6ac3eaac82e2f6f"
conf = open("/etc/nanomq/nanomq.conf").read().split("jwt/")[1].split('"')[0]
print(json.dumps({
    "stopped": len(subprocess.check_output(stopping.split()).splitlines()),
    "keys": sorted(os.listdir("/etc/nanomq/jwt")),
    "conf": conf,
    "open": os.path.exists("/var/lib/edgesec-nanomq/broker/record.json"),
    "statuses": [ask(token) for token in json.load(sys.stdin)],
}))
"""


def ssh(name: str, command: str, given: str = "", timeout: int = 60) -> str:
    """Run a command with something on its standard input, which no list of processes shows."""
    config = pathlib.Path(scenario.INVENTORY).parent / "ssh_config"
    done = subprocess.run(
        ["ssh", "-F", str(config), name, command],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, (name, done.stdout, done.stderr)
    return done.stdout


def jwt_dir() -> pathlib.Path:
    return scenario.pki() / "jwt"


def files() -> dict[str, bytes]:
    """What the controller has of token keys."""
    return {path.name: path.read_bytes() for path in sorted(jwt_dir().iterdir())}


def record() -> dict | None:
    path = jwt_dir() / "fleet.rotation.json"
    return json.loads(path.read_text()) if path.exists() else None


def token(key: bytes, issuer: str, seconds: int = 900) -> str:
    """A token by a private key in PEM."""
    private = serialization.load_pem_private_key(key, scenario.HOSTS["nanomq_pki_jwt_passphrase"].encode())
    return jwt.encode({"iss": issuer, "exp": int(time.time()) + seconds}, private, "RS256")


@dataclasses.dataclass(frozen=True)
class Seen:
    """A host: how often its broker was stopped, its key files, the one in force, and the answers to tokens."""

    stopped: int
    keys: list
    conf: str
    open: bool
    statuses: list


def look(names: list[str], *tokens: str) -> dict[str, Seen]:
    """What each host says, asked at once."""
    command = "python3 -c '" + LOOK.replace("'", "'\\''") + "'"
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        answers = pool.map(lambda name: ssh(name, command, json.dumps(tokens)), names)
        return {name: Seen(**json.loads(answer)) for name, answer in zip(names, answers, strict=True)}


def play(playbook: str, *arguments: str, **options) -> scenario.Play:
    return scenario.play(f"edgesec.nanomq.{playbook}", "-i", str(OWN_INVENTORY), "--forks", "5", *arguments, **options)


def rotate(*arguments: str, **options) -> scenario.Play:
    return play("rotate_jwt", *arguments, **options)


def cut(hosts: int, **variables) -> int:
    """Rotate, two hosts at a time, and end all of the controller once so many have the new key. Returns how many."""
    seen = 0

    def enough(lines: list[str]) -> bool:
        nonlocal seen
        task, seen = "", 0
        for line in lines:
            task = line if line.startswith("TASK") else task
            seen += bool("as one transaction" in task and re.match(r"(changed|ok): \[", line))
        return seen >= hosts

    run = rotate(killed_when=enough, nanomq_rollout_batches=2, **variables)
    assert run.status == -signal.SIGKILL, run.output
    return seen


def settled(names: list[str]) -> bool:
    """Whether no host is in the middle of a transaction, or has a module running."""
    return all(
        ssh(name, "flock -n /var/lib/edgesec-nanomq/broker/lock true || echo busy") == "" and not seen.open
        for name, seen in look(names).items()
    )
