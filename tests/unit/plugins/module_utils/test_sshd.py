# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The sshd validator and probe, against an sshd that is played: answers as `sshd -T` and `ssh` give them."""

from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _sshd as sshd
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import TransactionError

FILE = "/etc/ssh/sshd_config.d/10-tunnel.conf"
TEXT = """\
# A comment.
Match User tunnel
    # Another.
    PermitTTY no

    PermitOpen 127.0.0.1:8081
    AllowTcpForwarding local
    ForceCommand /usr/bin/false
Match all
PermitTTY yes
"""
MEANT = {
    "permittty": "no",
    "permitopen": "127.0.0.1:8081",
    "allowtcpforwarding": "local",
    "forcecommand": "/usr/bin/false",
}


def in_force(**other: list[str]) -> dict[str, list[str]]:
    return {**{keyword: [value] for keyword, value in MEANT.items()}, "usepam": ["yes"], **other}


def test_settings_are_those_of_the_block_alone():
    assert sshd.settings(TEXT) == MEANT
    assert sshd.settings("PermitTTY no\n") == {}


def test_what_is_in_force_is_no_difference():
    assert sshd.differences(MEANT, in_force(), "tunnel", FILE) == []


@pytest.mark.parametrize("values", [["yes"], [], ["no", "yes"]])
def test_a_value_that_is_not_in_force_is_named(values):
    (said,) = sshd.differences(MEANT, in_force(permittty=values), "tunnel", FILE)
    assert said.startswith(f"permittty is {' '.join(values) or 'unknown'} for tunnel, not no")


def test_a_drop_in_that_nobody_includes_is_told_apart():
    (said,) = sshd.differences(MEANT, {"permitopen": ["any"], "permittty": ["no"]}, "tunnel", FILE)
    assert "Include /etc/ssh/sshd_config.d/*.conf" in said


@pytest.mark.parametrize(
    ("have", "denied"),
    [
        ({"denyusers": ["nobody"]}, 0),
        ({"denyusers": ["nobody", "tunnel"]}, 1),
        ({"denyusers": ["tun*"]}, 1),
        ({"denyusers": ["tunnel@*"]}, 1),
        ({"denyusers": ["tunnel@10.0.0.1"]}, 0),
        ({"denygroups": ["games", "t?nnels"]}, 1),
        ({}, 0),
    ],
)
def test_an_account_that_is_shut_out(monkeypatch, have, denied):
    monkeypatch.setattr(sshd, "_groups", lambda user: ["tunnels"])
    assert len(sshd._denied("tunnel", have)) == denied


@pytest.mark.parametrize(
    ("pam", "password", "locked"), [("no", "!*", 1), ("no", "*", 0), ("no", "$6$x", 0), ("yes", "!*", 0)]
)
def test_a_locked_account_without_pam(tmp_path, pam, password, locked):
    shadow = tmp_path / "shadow"
    shadow.write_text(f"root:*:1::::::\ntunnel:{password}:1::::::\n")
    assert len(sshd._locked("tunnel", {"usepam": [pam]}, str(shadow))) == locked


@pytest.mark.parametrize(
    ("uid", "shell", "complaint"),
    [
        (997, "/bin/false", ""),
        (0, "/bin/false", "belongs to somebody"),
        (1000, "/bin/false", "belongs to somebody"),
        (997, "/bin/sh", "belongs to somebody"),
        (997, "", "belongs to somebody"),
        (997, "/no/such/nologin", "usermod --shell"),
    ],
)
def test_whose_account_it_is(monkeypatch, uid, shell, complaint):
    account = sshd.pwd.struct_passwd(("tunnel", "x", uid, uid, "", "/nonexistent", shell))
    monkeypatch.setattr(sshd.pwd, "getpwnam", lambda name: account)
    if not complaint:
        sshd._check_account("tunnel")
        return
    with pytest.raises(TransactionError, match=complaint):
        sshd._check_account("tunnel")


@pytest.fixture
def key(tmp_path) -> str:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return (tmp_path / "key.pub").read_text().strip()


@pytest.mark.parametrize("extra", ["", 'restrict,permitopen="127.0.0.1:1",expiry-time="20990101" '])
def test_keys_that_openssh_reads(tmp_path, key, extra):
    path = tmp_path / "keys"
    path.write_text(f"# who\n{extra}{key}\n\n{key}\n")
    sshd._check_keys("/etc/keys", str(path))


@pytest.mark.parametrize("broken", ["ssh-ed25519 AAAAC3Nz", "ssh-ed25519 nonsense", "restrict"])
def test_a_key_that_openssh_does_not_read(tmp_path, key, broken):
    path = tmp_path / "keys"
    path.write_text(f"{key}\n{broken}\n")
    with pytest.raises(TransactionError, match="OpenSSH reads 1 keys in /etc/keys, where 2 are declared"):
        sshd._check_keys("/etc/keys", str(path))


@pytest.mark.parametrize(
    ("taken_up", "written", "stale"),
    [(2000, 1000, 0), (1000, 1000, 0), (1000, 2000, 1), (1000, 99_999_999_999, 0), (None, 2000, 0)],
)
def test_an_sshd_that_has_not_read_the_file(tmp_path, taken_up, written, stale):
    """One that keeps no pid file cannot be told, nor where the clock is wrong."""
    file, pid = tmp_path / "file", tmp_path / "pid"
    file.write_text("")
    os.utime(file, (written, written))
    if taken_up is not None:
        pid.write_text("")
        os.utime(pid, (taken_up, taken_up))
    assert len(sshd._stale(str(file), {"pidfile": [str(pid)]})) == stale


@pytest.mark.parametrize(
    ("have", "address"),
    [
        ({"listenaddress": ["[::]:22", "0.0.0.0:22"]}, ("127.0.0.1", "22")),
        ({"listenaddress": ["[::]:2222"]}, ("::1", "2222")),
        ({"listenaddress": ["10.0.0.1:22"]}, ("10.0.0.1", "22")),
        ({"listenaddress": ["[fd00::1]:22"]}, ("fd00::1", "22")),
        ({"port": ["2200"]}, ("127.0.0.1", "2200")),
        ({}, ("127.0.0.1", "22")),
    ],
)
def test_where_the_probe_asks(have, address):
    assert sshd._address(have) == address


@pytest.mark.parametrize(
    ("out", "failing"),
    [
        ("tunnel@127.0.0.1: Permission denied (publickey).", ""),
        ("tunnel@127.0.0.1: Permission denied (publickey,password).", "log in by publickey,password"),
        ("ssh: connect to host 127.0.0.1 port 22: Connection refused", "Connection refused"),
    ],
)
def test_what_the_running_sshd_lets_the_account_log_in_by(monkeypatch, out, failing):
    monkeypatch.setattr(sshd, "run", lambda argv: (255, out))
    monkeypatch.setattr(sshd.time, "sleep", lambda seconds: None)
    said = sshd._conversation("tunnel", in_force())
    assert bool(said) == bool(failing)
    assert failing in " ".join(said)


# --- the whole validator, on a played host ----------------------------------------------------------------------------


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A host whose sshd answers from `users` ({user: [now, then]}) and whose namespace is this process."""
    users = {"tunnel": [in_force(permittty=["yes"]), in_force()], "root": [{"x": ["1"]}, {"x": ["1"]}]}
    overlaid: list[str] = []
    refusal: list[str] = []

    def in_namespaces(action, *, network):
        assert network is False
        try:
            return action()
        except TransactionError as error:
            return {"error": str(error)}

    monkeypatch.setattr(sshd, "in_namespaces", in_namespaces)
    monkeypatch.setattr(sshd, "overlay", lambda directory, staged: overlaid.append(directory))
    monkeypatch.setattr(sshd, "effective", lambda user: users[user][len(overlaid)])
    monkeypatch.setattr(sshd, "run", lambda argv: (bool(refusal) and argv[1:] == ["-t"], "".join(refusal)))
    monkeypatch.setattr(sshd, "_check_account", lambda user: None)
    monkeypatch.setattr(sshd, "PRIVILEGE_SEPARATION", str(tmp_path / "run-sshd"))
    staged = tmp_path / "staged"
    staged.write_text(TEXT)

    def validate():
        sshd.validate_sshd(
            file=FILE, user="tunnel", service="", unaffected=["root"], staged={FILE: str(staged)}, credentials={}
        )
        assert overlaid == ["/etc/ssh/sshd_config.d"]
        assert not os.path.exists(sshd.PRIVILEGE_SEPARATION)

    return type("Host", (), {"users": users, "refusal": refusal, "validate": staticmethod(validate)})


def test_a_drop_in_that_means_what_it_says_passes(host):
    host.validate()


def test_a_drop_in_that_changes_others_is_refused(host):
    host.users["root"][1] = {"x": ["2"], "y": ["1"]}
    with pytest.raises(TransactionError, match=r"x would change for root.*; y would change for root"):
        host.validate()


def test_a_drop_in_without_effect_is_refused(host):
    host.users["tunnel"][1] = in_force(permittty=["yes"])
    with pytest.raises(TransactionError, match="permittty is yes for tunnel"):
        host.validate()


def test_a_configuration_that_sshd_refuses_is_refused(host):
    host.refusal.append("line 1: Bad configuration option")
    with pytest.raises(TransactionError, match="sshd refuses its configuration: line 1: Bad"):
        host.validate()


def test_a_service_that_does_not_run_is_refused(monkeypatch):
    monkeypatch.setattr(sshd, "run", lambda argv: (3, ""))
    with pytest.raises(TransactionError, match="nanomq_ssh_tunnel_service"):
        sshd._check_service("ssh.service")
    sshd._check_service("")
