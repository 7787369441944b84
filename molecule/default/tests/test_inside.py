# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What holds on the host itself: who reaches REST, and what the service could do if it were taken over."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from scenario import eventually, issuer, pki, private_key

URL = "http://127.0.0.1:8081/api/v4/brokers"


def claims(**changes) -> dict:
    return {"iss": issuer(), "exp": int(time.time()) + 300, **changes}


def encode(part: bytes) -> bytes:
    return urlsafe_b64encode(part).rstrip(b"=")


def by_hand(header: dict, payload: dict, secret: bytes = b"") -> str:
    """A token that a library would refuse to make."""
    text = encode(json.dumps(header).encode()) + b"." + encode(json.dumps(payload).encode())
    signature = hmac.new(secret, text, hashlib.sha256).digest() if secret else b""
    return (text + b"." + encode(signature)).decode()


def forged() -> dict[str, str | None]:
    """{what is wrong with it: token}"""
    key = private_key()
    public = (pki() / "jwt/fleet.pub").read_bytes()
    other = rsa.generate_private_key(65537, 2048)
    week = datetime.timedelta(days=7)
    return {
        "no token": None,
        "expired": jwt.encode(claims(exp=int(time.time() - week.total_seconds())), key, "RS256"),
        "no expiry": jwt.encode({"iss": issuer()}, key, "RS256"),
        "alg none": by_hand({"alg": "none", "typ": "JWT"}, claims()),
        "HS256 with the public key": by_hand({"alg": "HS256", "typ": "JWT"}, claims(), public),
        "wrong issuer": jwt.encode(claims(iss="jwt-00000000.pub"), key, "RS256"),
        "no issuer": jwt.encode({"exp": claims()["exp"]}, key, "RS256"),
        "wrong key": jwt.encode(claims(), other, "RS256"),
        "RS512": jwt.encode(claims(), key, "RS512"),
        "signature cut off": jwt.encode(claims(), key, "RS256").rpartition(".")[0] + ".",
    }


FORGED = [
    "no token",
    "expired",
    "no expiry",
    "alg none",
    "HS256 with the public key",
    "wrong issuer",
    "no issuer",
    "wrong key",
    "RS512",
    "signature cut off",
]


def ask(host, token: str | None, *, user: str = "root", url: str = URL) -> str:
    """The status that REST answers a local user with; 000 where the connection does not come about."""
    header = f"Authorization: Bearer {token}" if token else "X-None: 1"
    group = user if user == "root" else "nogroup"
    return host.run(
        f"setpriv --reuid {user} --regid {group} --clear-groups "
        f"curl --silent --max-time 5 --output /dev/null --write-out %{{http_code}} --header '{header}' {url}"
    ).stdout


def test_root_with_a_valid_token_is_answered(broker):
    assert ask(broker, jwt.encode(claims(), private_key(), "RS256")) == "200"


@pytest.mark.parametrize("what", FORGED)
def test_root_with_anything_less_is_not(broker, what):
    assert ask(broker, forged()[what]) == "401"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "[::1]", "{ipv4}", "[{ipv6}]"])
def test_an_ordinary_user_does_not_get_through(broker, address):
    url = URL.replace("127.0.0.1", address.format(ipv4=broker.ipv4, ipv6=broker.ipv6))
    assert ask(broker, jwt.encode(claims(), private_key(), "RS256"), user="nobody", url=url) == "000"


def test_the_broker_itself_cannot_reach_rest(broker):
    """A broker that was taken over finds no way to its own REST server from another process."""
    assert ask(broker, None, user="nanomq") == "000"


# --- the service


def pid(host) -> str:
    return host.check_output("systemctl show -p MainPID --value nanomq.service")


def status(host) -> dict[str, str]:
    lines = host.check_output(f"cat /proc/{pid(host)}/status").splitlines()
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in lines)}


def test_it_runs_without_privileges(broker):
    found = status(broker)
    assert set(found["Uid"].split()) == {broker.check_output("id -u nanomq")}
    assert int(found["Uid"].split()[0]) != 0
    assert found["Groups"] in ("", broker.check_output("id -g nanomq"))
    assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def inside(host, command: str) -> int:
    """Exit status of a command run in the service's own view of the file system, as its user."""
    return host.run(
        f"nsenter --target {pid(host)} --mount -- setpriv --reuid nanomq --regid nanomq --clear-groups sh -c %s",
        command,
    ).rc


@pytest.mark.parametrize(
    "path", ["/etc", "/etc/nanomq", "/usr/local/bin", "/var/lib/nanomq", "/var/lib/nanomq/empty", "/var/log", "/opt"]
)
def test_it_can_write_nothing(broker, path):
    assert inside(broker, f"touch {path}/x") != 0


@pytest.mark.parametrize("path", ["/etc", "/usr", "/var"])
def test_even_root_could_not_write_in_its_view(broker, path):
    assert broker.run(f"nsenter --target {pid(broker)} --mount -- touch {path}/x").rc != 0
    assert not broker.file(f"{path}/x").exists


def test_its_tmp_is_its_own(broker):
    broker.check_output("touch /tmp/of-the-host")
    assert inside(broker, "test -e /tmp/of-the-host") != 0
    assert inside(broker, "touch /tmp/x") == 0


def test_it_sees_no_homes_and_no_devices(broker):
    assert inside(broker, "ls /root") != 0
    assert inside(broker, "ls /dev/mem /dev/kmsg /dev/fuse") != 0


def test_it_sees_no_processes_of_others(broker):
    assert inside(broker, "test -e /proc/1/cmdline") != 0
    assert broker.run("test -e /proc/1/cmdline").rc == 0


def test_it_can_read_its_configuration_and_nobody_else_can(broker):
    for path in ("/etc/nanomq/nanomq.conf", "/etc/nanomq/pki/server/current/key.pem"):
        assert inside(broker, f"cat {path}") == 0
        assert broker.run(f"setpriv --reuid nobody --regid nogroup --clear-groups cat {path}").rc != 0


def test_there_is_no_command_socket_and_one_by_mistake_is_out_of_reach(broker):
    """Whoever opens it is obeyed: see tests/contract/test_command_socket.py."""
    conf, path = "/etc/nanomq/nanomq.conf", "/tmp/nanomq_cmd.ipc"

    def listens() -> bool:
        return path in broker.check_output("ss -xlH")

    assert not listens()
    switch = "s/enable_ipc_internal = false/enable_ipc_internal = true/"
    broker.check_output(f"cp -a {conf} {conf}.kept && sed -i '{switch}' {conf} && systemctl restart nanomq")
    try:
        assert eventually(listens)
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect('{path}')"
        # One that the broker as it was shipped has left there leads nowhere.
        assert broker.run("python3 -c %s", connect).rc != 0
        for user, works in (("nanomq", True), ("nobody", False)):
            command = f"setpriv --reuid {user} --regid nogroup --clear-groups python3 -c %s"
            assert (broker.run(f"nsenter --target {pid(broker)} --mount -- {command}", connect).rc == 0) is works
    finally:
        broker.check_output(f"mv {conf}.kept {conf} && systemctl restart nanomq")
        assert eventually(lambda: "127.0.0.1:8081" in broker.check_output("ss -tlnH"))


def test_it_may_listen_on_the_declared_ports_alone(broker):
    """By effect: a process put into the service's control group tries. systemd 252 ignores the setting in silence."""
    bind = "import socket; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('127.0.0.3', {port}))"
    script = 'echo $$ > "$1/cgroup.procs" && exec python3 -c "$2"'
    group = "/sys/fs/cgroup" + broker.check_output("systemctl show -p ControlGroup --value nanomq.service")
    results = {
        port: broker.run("bash -c %s bash %s %s", script, group, bind.format(port=port)).rc for port in (9999, 8086)
    }
    assert results[8086] == 0
    version = int(broker.check_output("systemctl --version").split()[1])
    assert (results[9999] != 0) == (version >= 257), (version, results)


def test_it_comes_back_when_it_is_killed(broker):
    before = pid(broker)
    broker.check_output(f"kill -SEGV {before}")
    for _attempt in range(100):
        if pid(broker) not in ("0", before):
            break
        time.sleep(0.1)
    assert pid(broker) not in ("0", before)
