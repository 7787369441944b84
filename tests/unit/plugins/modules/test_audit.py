# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The audit: what it sees of a host, and that what it does not see never passes."""

from __future__ import annotations

import contextlib
import copy
import datetime
import http.server
import json
import os
import pathlib
import socketserver
import threading

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.edgesec.nanomq.plugins.action.audit_report import table
from ansible_collections.edgesec.nanomq.plugins.module_utils import _netfilter, _observe, _policy, _probes
from ansible_collections.edgesec.nanomq.plugins.modules import audit
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SECRET = "correct horse battery"

PROCESS = {
    "pid": 100,
    "uid": 990,
    "gid": 990,
    "groups": [990],
    "unit": "nanomq.service",
    "conf_path": "/etc/nanomq/nanomq.conf",
    "conf_given": True,
    "flags": [],
    "environment": [],
    "no_new_privs": True,
    "cap_eff": "0000000000000000",
    "cap_bnd": "0000000000000000",
    "cwd": "/var/lib/nanomq/empty",
    "cwd_writable": False,
    "dist": False,
    "program_replaced": False,
    "conf_changed": False,
    "program": "/usr/local/bin/nanomq",
    "program_writable": False,
    "filtered": True,
    "shares_mounts": False,
    "open_files": 65536,
    "core": 0,
}
MQTT = {
    "address": "0.0.0.0:8883",
    "tls": True,
    "mtls": False,
    "mqtt": True,
    "anonymous": "refused",
    "made_up": "refused",
    "wrong_password": "refused",
    "not_after": "2031-01-01",
    "days_left": 200,
    "valid_yet": True,
}
LEAF = {
    "key": "listeners.ssl.certfile",
    "path": "/c",
    "role": "leaf",
    "error": "",
    "not_after": "2031-01-01",
    "days_left": 200,
    "valid_yet": True,
    "key_type": "ec-p256",
    "digest": "sha256",
    "key_matches": True,
    "other_served_on": [],
}
AUTHORITY = {**LEAF, "key": "listeners.ssl.cacertfile", "path": "/a", "role": "authority", "key_matches": None}
KEY = {"kind": "tls", "path": "/k", "exists": True, "mode": "0640", "private": True, "writable_by_service": False}
TOKEN_KEY = {**KEY, "kind": "jwt", "private": False, "key_type": "rsa-3072", "age_days": 30}
HARDENED = {
    "processes": [PROCESS],
    "version": "0.25.6",
    "conf_file": {
        "path": "/etc/nanomq/nanomq.conf",
        "exists": True,
        "mode": "0640",
        "owner": "root",
        "readable_by_service": True,
        "writable_by_service": False,
        "error": "",
    },
    "conf": {
        "system": {"enable_ipc_internal": False},
        "listeners": {
            "ssl": {
                "bind": "0.0.0.0:8883",
                "keyfile": "/k",
                "certfile": "/c",
                "cacertfile": "/a",
                "verify_peer": True,
                "fail_if_no_peer_cert": True,
            },
            "wss": {"bind": "127.0.0.1:8086/mqtt"},
        },
        "http_server": {
            "port": 8081,
            "ip_addr": "127.0.0.1",
            "auth_type": "jwt",
            "jwt": {"public": {"keyfile": "/etc/nanomq/jwt/x.pub"}},
        },
        "auth": {
            "allow_anonymous": False,
            "no_match": "deny",
            "password": {"sensor": SECRET},
            "acl": {"rules": [{"permit": "allow", "username": "#", "topics": ["${username}/#"]}]},
        },
        "log": {"to": ["console"], "level": "warn"},
    },
    "copies": [],
    "event_sockets": [{"pid": 100, "path": "/tmp/nanomq_hook.ipc", "replaceable": False}],
    "key_files": [KEY, TOKEN_KEY],
    "certificates": [LEAF, AUTHORITY],
    "handshakes": [{"address": "0.0.0.0:8883", "old_versions": [], "weak_suites": []}],
    "listeners": {"0.0.0.0:8883": [100], "127.0.0.1:8081": [100], "127.0.0.1:8086": [100]},
    "kinds": {"0.0.0.0:8883": "ssl", "127.0.0.1:8081": "rest", "127.0.0.1:8086": "wss"},
    "mqtt": [MQTT],
    "rest": [{"address": "127.0.0.1:8081", "without_credentials": 401, "shipped_credentials": 401, "forged": []}],
    "firewall": {"table": True, "ports": {"8081": "dropped"}},
    "local_access": [],
    "clock": {"synchronised": True, "services": ["chrony"], "container": False, "offset": 0.4},
    "drift": [],
}
# As the package leaves it: seen on a real NanoMQ 0.25.6 with its own configuration, started as root by hand.
SHIPPED = {
    **HARDENED,
    "processes": [
        {
            **PROCESS,
            "uid": 0,
            "unit": "",
            "no_new_privs": False,
            "cap_eff": "000001ffffffffff",
            "cap_bnd": "000001ffffffffff",
            "cwd_writable": True,
            "filtered": False,
            "shares_mounts": True,
            "open_files": 1024,
        }
    ],
    "conf_file": {**HARDENED["conf_file"], "mode": "0644", "writable_by_service": True},
    "conf": {
        "listeners": {"tcp": {"bind": "0.0.0.0:1883"}, "ws": {"bind": "0.0.0.0:8083/mqtt"}},
        "http_server": {"port": 8081, "username": "admin", "password": "public", "auth_type": "basic"},
        "log": {"to": ["file", "console"], "level": "warn", "dir": "/tmp"},
        "auth": {"allow_anonymous": True, "no_match": "allow"},
    },
    "key_files": [],
    "copies": ["/etc/nanomq_pwd.conf"],
    "certificates": [],
    "handshakes": [],
    "listeners": {"0.0.0.0:1883": [100], "0.0.0.0:8081": [100], "0.0.0.0:8083": [100]},
    "kinds": {"0.0.0.0:1883": "tcp", "0.0.0.0:8081": "rest", "0.0.0.0:8083": "ws"},
    "mqtt": [
        {
            "address": "0.0.0.0:1883",
            "tls": False,
            "mtls": False,
            "mqtt": True,
            "anonymous": "accepted",
            "made_up": "accepted",
            "wrong_password": "",
        }
    ],
    "rest": [{"address": "0.0.0.0:8081", "without_credentials": 401, "shipped_credentials": 200, "forged": []}],
    "firewall": {"table": False, "ports": {"8081": "accepted"}},
    "local_access": ["the local user nobody reaches port 8081 on 127.0.0.1"],
}


def found(observation: dict) -> dict[str, bool]:
    """{rule: whether it was observed} of what does not hold."""
    return {finding.id: finding.observed for finding in _policy.evaluate_host(observation)}


def seen(name: str, **changes) -> dict:
    """The hardened host with the first item of a fact changed."""
    value = copy.deepcopy(HARDENED[name])
    (value[0] if isinstance(value, list) else value).update(changes)
    return {**HARDENED, name: value}


def socket(address: str, kind: str) -> dict:
    """The hardened host with one more socket."""
    return {
        **HARDENED,
        "listeners": {**HARDENED["listeners"], address: [100]},
        "kinds": {**HARDENED["kinds"], address: kind},
    }


# --- judging an observation -------------------------------------------------------------------------------------------


def test_a_hardened_host_has_no_finding_and_passes_every_rule():
    assert found(HARDENED) == {}
    # Nobody can see of a host alone what waivers say, and what a front end declares.
    asked = {rule.id for rule in _policy.RULES.values() if rule.config or rule.host}
    assert set(_policy.passed([], HARDENED)) == asked
    # Nor what only a token shows.
    alone = {name: value for name, value in HARDENED.items() if name != "drift"}
    assert found(alone) == {}
    assert set(_policy.passed([], alone)) == asked - {"NMQ-SVC-028"}


def test_the_shipped_state_is_found_wrong_in_every_way_that_matters():
    critical = {f.id for f in _policy.evaluate_host(SHIPPED) if f.severity == "critical"}
    assert critical == {
        "NMQ-AUT-001",
        "NMQ-AUT-002",
        "NMQ-AUT-007",
        "NMQ-NET-001",
        "NMQ-SVC-011",
        "NMQ-TLS-001",
        "NMQ-TLS-002",
    }
    assert {"NMQ-NET-006", "NMQ-SVC-001", "NMQ-SVC-013", "NMQ-SVC-014", "NMQ-ACL-001"} <= set(found(SHIPPED))


def test_nothing_passes_on_a_host_that_shows_nothing():
    findings = _policy.evaluate_host({})
    assert _policy.passed(findings) == []
    assert not any(finding.observed for finding in findings)
    assert _policy.failing(findings, "critical")


@pytest.mark.parametrize("name", HARDENED)
def test_a_fact_that_is_missing_never_passes(name):
    findings = _policy.evaluate_host({**HARDENED, name: {"not_observed": "the reason"}})
    assert findings
    assert all(not finding.observed and finding.evidence == ("the reason",) for finding in findings)


# (rule, observation): only the host shows it, or shows it too
ON_HOSTS = [
    ("NMQ-NET-001", socket("0.0.0.0:8081", "rest")),
    ("NMQ-NET-002", socket("[::]:8086", "wss")),
    ("NMQ-NET-006", {**HARDENED, "firewall": {"table": True, "ports": {"8081": "depends"}}}),
    ("NMQ-NET-006", {**HARDENED, "firewall": {"table": False, "ports": {"8081": "accepted"}}}),
    ("NMQ-NET-007", {**HARDENED, "local_access": ["the local user nobody reaches port 8081 on 127.0.0.1"]}),
    ("NMQ-NET-008", socket("127.0.0.1:1883", "tcp")),
    ("NMQ-NET-009", {**HARDENED, "processes": [PROCESS, {**PROCESS, "pid": 101}]}),
    ("NMQ-TLS-001", {**HARDENED, "mqtt": [MQTT, {**SHIPPED["mqtt"][0], "anonymous": "refused", "made_up": "refused"}]}),
    ("NMQ-TLS-012", seen("mqtt", days_left=-1)),
    ("NMQ-TLS-012", seen("mqtt", valid_yet=False)),
    ("NMQ-TLS-013", seen("mqtt", days_left=13)),
    ("NMQ-TLS-014", seen("key_files", mode="0644")),
    ("NMQ-TLS-014", seen("key_files", writable_by_service=True)),
    ("NMQ-TLS-015", seen("handshakes", old_versions=["TLS 1.1"])),
    ("NMQ-TLS-016", seen("handshakes", weak_suites=["AES128-SHA"])),
    ("NMQ-TLS-017", {**HARDENED, "certificates": [{**LEAF, "error": "holds no certificate"}]}),
    ("NMQ-TLS-017", seen("certificates", key_matches=False)),
    ("NMQ-TLS-018", seen("certificates", other_served_on=["0.0.0.0:8883"])),
    ("NMQ-TLS-019", {**HARDENED, "certificates": [LEAF, {**AUTHORITY, "days_left": 89}]}),
    ("NMQ-TLS-020", seen("certificates", key_type="rsa-1024")),
    ("NMQ-TLS-020", seen("certificates", key_type="ec-1.2.3")),
    ("NMQ-TLS-020", seen("certificates", digest="")),
    ("NMQ-AUT-001", seen("mqtt", anonymous="accepted")),
    ("NMQ-AUT-003", seen("mqtt", wrong_password="accepted")),
    ("NMQ-AUT-012", seen("rest", forged=["a token without a signature"])),
    ("NMQ-AUT-013", {**HARDENED, "key_files": [KEY, {**TOKEN_KEY, "key_type": "rsa-1024"}]}),
    ("NMQ-AUT-013", {**HARDENED, "key_files": [KEY, {**TOKEN_KEY, "key_type": ""}]}),
    ("NMQ-AUT-013", {**HARDENED, "key_files": [KEY, {"kind": "jwt", "path": "/j", "exists": False}]}),
    ("NMQ-AUT-014", {**HARDENED, "key_files": [KEY, {**TOKEN_KEY, "age_days": 401}]}),
    ("NMQ-AUT-015", {**HARDENED, "key_files": [KEY, {**TOKEN_KEY, "writable_by_service": True}]}),
    ("NMQ-SVC-021", seen("processes", shares_mounts=True)),
    ("NMQ-SVC-029", seen("processes", filtered=False)),
    ("NMQ-SVC-022", seen("processes", open_files=1024)),
    ("NMQ-SVC-023", seen("processes", core=-1)),
    ("NMQ-SVC-024", seen("processes", program_writable=True)),
    ("NMQ-SVC-025", {**HARDENED, "copies": ["/etc/nanomq/nanomq.conf.bak"]}),
    ("NMQ-SVC-031", seen("event_sockets", replaceable=True)),
    ("NMQ-SVC-026", {**HARDENED, "clock": {**HARDENED["clock"], "offset": -301.0}}),
    ("NMQ-SVC-027", {**HARDENED, "clock": {**HARDENED["clock"], "synchronised": False, "services": []}}),
    ("NMQ-SVC-028", {**HARDENED, "drift": ["auth.allow_anonymous"]}),
    ("NMQ-AUT-002", seen("mqtt", made_up="accepted")),
    ("NMQ-AUT-005", seen("rest", without_credentials=200)),
    ("NMQ-AUT-007", seen("rest", shipped_credentials=200)),
    ("NMQ-AUT-011", {**HARDENED, "key_files": [{**TOKEN_KEY, "private": True}]}),
    ("NMQ-SVC-011", seen("processes", uid=0)),
    ("NMQ-SVC-012", seen("processes", no_new_privs=False)),
    ("NMQ-SVC-012", seen("processes", cap_bnd="0000000000000400")),
    ("NMQ-SVC-013", seen("conf_file", writable_by_service=True)),
    ("NMQ-SVC-014", seen("conf_file", mode="0644")),
    ("NMQ-SVC-015", seen("conf_file", readable_by_service=False)),
    ("NMQ-SVC-017", seen("processes", flags=["--url"])),
    ("NMQ-SVC-017", seen("processes", conf_given=False)),
    ("NMQ-SVC-017", seen("processes", environment=["NANOMQ_HTTP_SERVER_URL"])),
    ("NMQ-SVC-018", seen("processes", dist=True)),
    ("NMQ-SVC-018", seen("processes", cwd_writable=True)),
    ("NMQ-SVC-019", seen("processes", unit="session-3.scope")),
    ("NMQ-SVC-019", seen("processes", unit="ssh.service")),
    ("NMQ-SVC-020", seen("processes", program_replaced=True)),
    ("NMQ-SVC-020", seen("processes", conf_changed=True)),
]


@pytest.mark.parametrize(("rule", "observation"), ON_HOSTS)
def test_what_a_host_shows_is_found_and_nothing_else(rule, observation):
    assert found(observation) == {rule: True}


def test_every_rule_for_hosts_is_broken_by_a_test():
    # NMQ-VER-006 looks at version and configuration together, and is broken with the configurations.
    elsewhere = {"NMQ-TLS-002", "NMQ-TLS-003", "NMQ-SVC-010", "NMQ-SVC-016", "NMQ-VER-006"}
    asked = {rule.id for rule in _policy.RULES.values() if rule.host}
    assert asked == {rule for rule, _observation in ON_HOSTS} | elsewhere


def test_a_handshake_that_fails_is_found_and_leaves_the_rest_open():
    mqtt = {**MQTT, "anonymous": "no handshake", "made_up": "no handshake", "mqtt": False}
    mqtt["wrong_password"] = "no handshake"
    del mqtt["not_after"]
    result = found({**HARDENED, "mqtt": [mqtt]})
    assert result == {
        "NMQ-TLS-003": True,
        "NMQ-AUT-001": False,
        "NMQ-AUT-002": False,
        "NMQ-AUT-003": False,
        "NMQ-TLS-012": False,
        "NMQ-TLS-013": False,
    }


def test_a_websocket_on_the_network_is_found():
    assert found(socket("0.0.0.0:8083", "ws"))["NMQ-TLS-002"] is True


def test_a_broker_that_is_down_is_found_and_its_sockets_are_not_taken_for_closed():
    down = {"not_observed": "no NanoMQ runs"}
    result = found({**HARDENED, "processes": [], **dict.fromkeys(("listeners", "kinds", "mqtt", "rest"), down)})
    assert result["NMQ-SVC-010"] is True
    assert [result[rule] for rule in ("NMQ-NET-008", "NMQ-AUT-001", "NMQ-AUT-005", "NMQ-SVC-011")] == [False] * 4


def test_a_syntax_error_is_found_and_the_rules_of_the_configuration_stay_open():
    observation = {
        **seen("conf_file", error="line 3, column 1: syntax error"),
        "conf": {"not_observed": "syntax error"},
    }
    result = found(observation)
    assert result["NMQ-SVC-016"] is True
    assert result["NMQ-ACL-001"] is False


def test_a_missing_configuration_is_judged_as_the_defaults_that_the_broker_would_take():
    result = found({**HARDENED, "conf_file": {"path": "/etc/nanomq/nanomq.conf", "exists": False}, "conf": {}})
    assert {"NMQ-SVC-015", "NMQ-TLS-001", "NMQ-AUT-001", "NMQ-AUT-002"} <= {
        rule for rule, known in result.items() if known
    }


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/usr/local/bin/nanomq start --conf /c", "/usr/local/bin/nanomq start --conf /c"),
        ("nanomq start", "nanomq start"),
        ("/usr/bin/python3 -u /usr/local/bin/nanomq start", "/usr/local/bin/nanomq start"),
        ("/bin/sh /opt/nanomq start", "/opt/nanomq start"),
        ("vim nanomq", ""),
        ("tail -f /var/log/nanomq", ""),
        ("nanomq reload --conf /c", ""),
        ("nanomq_cli sub", ""),
        ("python3", ""),
        ("", ""),
    ],
)
def test_which_command_lines_are_brokers(line, expected):
    assert " ".join(_probes.broker_command(line.split())) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("start --conf /c", ("/c", [])),
        ("start --conf=/c", ("/c", [])),
        ("start", ("", [])),
        ("start --conf", ("", [])),
        ("start --conf /c --keypass hunter2 --http -p8081", ("/c", ["--keypass", "--http", "-p"])),
        ("start --url=nmq-tcp://u:hunter2@0.0.0.0", ("", ["--url"])),
    ],
)
def test_flags_are_kept_by_name_alone(line, expected):
    assert _observe.arguments(line.split()) == expected


def test_of_the_environment_names_alone_are_kept():
    text = "PATH=/bin\0NANOMQ_HTTP_SERVER_PASSWORD=hunter2\0NANOMQ_CONF_PATH=/c\0NANOMQ_PID_FILE=/p\0"
    assert _observe.environment(text) == (["NANOMQ_CONF_PATH", "NANOMQ_HTTP_SERVER_PASSWORD"], "/c")


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/nanomq.service\n", "nanomq.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
        ("5:cpu:/\n1:name=systemd:/system.slice/nanomq.service\n0::/\n", "nanomq.service"),
        ("0::/\n", ""),
    ],
)
def test_the_unit_of_a_process(cgroup, unit):
    assert _observe.unit_of(cgroup) == unit


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A /proc of our own: proc(pid, command line) adds a process that runs as root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    root = tmp_path / "proc"

    def network(directory, number):
        (directory / "ns").mkdir(parents=True)
        (directory / "ns/net").symlink_to(f"net:[{number}]")
        (directory / "ns/mnt").symlink_to("mnt:[1]")

    def add(pid, line, *, net=1, unit="nanomq.service"):
        base = root / str(pid)
        network(base, net)
        (base / "cmdline").write_text(line.replace(" ", "\0") + "\0")
        (base / "environ").write_text("NANOMQ_HTTP_SERVER_PASSWORD=hunter2\0")
        (base / "cgroup").write_text(f"0::/system.slice/{unit}\n")
        (base / "stat").write_text(f"{pid} (nano mq) S " + " ".join(["0"] * 18) + " 100 0 0")
        (base / "status").write_text(
            "Name:\tnanomq\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t0 4 \nNoNewPrivs:\t1\n"
            "CapEff:\t0000000000000400\nCapBnd:\t000001ffffffffff\n"
        )
        (base / "limits").write_text(
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            "Max core file size        unlimited            unlimited            bytes     \n"
            "Max open files            1024                 524288               files     \n"
        )
        (base / "cwd").symlink_to(tmp_path)
        (base / "exe").symlink_to("/usr/local/bin/nanomq (deleted)")

    network(root / "self", 1)
    network(root / "1", 1)
    (root / "1/status").write_text("Seccomp_filters:\t0\n")
    add.root = str(root)
    return add


def test_a_process_is_read_from_proc_without_its_secrets(proc, tmp_path):
    (tmp_path / "dist").mkdir()
    (tmp_path / "nanomq.conf").write_text("x = 1\n")
    proc(42, "/usr/local/bin/nanomq start --conf nanomq.conf --keypass hunter2")
    (only,) = _observe.processes("nanomq.service", proc.root)
    assert only == {
        **only,
        "pid": 42,
        "uid": 0,
        "groups": [0, 4],
        "unit": "nanomq.service",
        "conf_path": str(tmp_path / "nanomq.conf"),
        "conf_given": True,
        "flags": ["--keypass"],
        "environment": ["NANOMQ_HTTP_SERVER_PASSWORD"],
        "no_new_privs": True,
        "cap_eff": "0000000000000400",
        "dist": True,
        "cwd_writable": True,
        "program_replaced": True,
        "conf_changed": True,
    }
    assert "hunter2" not in str(only)


def test_the_broker_of_the_unit_comes_first_and_those_of_other_networks_are_left_out(proc):
    proc(7, "nanomq start --conf /a", unit="other.service")
    proc(8, "nanomq start --conf /b")
    proc(9, "nanomq start --conf /c", net=2)
    proc(10, "nanomq start --conf /d")
    proc(11, "sshd")
    assert [item["pid"] for item in _observe.processes("nanomq.service", proc.root)] == [8, 10, 7]


def test_without_root_the_processes_are_not_observed(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    observation = _observe.observe(unit="nanomq.service", package="nanomq", user="no-such-user")
    assert "not_observed" in observation["processes"]
    assert _policy.failing(_policy.evaluate_host(observation), "critical")


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_configuration_is_described_and_read_as_the_broker_does(tmp_path):
    path = tmp_path / "nanomq.conf"
    path.write_text('auth { allow_anonymous = "false" }\n')
    path.chmod(0o604)
    about = _observe.conf_file(str(path), (0, 0, []), [])
    assert about == {**about, "exists": True, "mode": "0604", "readable_by_service": True, "error": ""}
    assert _observe.configuration(about) == {"auth": {"allow_anonymous": "false"}}


def test_a_syntax_error_is_told_without_the_text(tmp_path):
    path = tmp_path / "nanomq.conf"
    path.write_text('http_server { password = "hunter2", }\n')
    about = _observe.conf_file(str(path), (0, 0, []), [])
    assert about["error"]
    assert "hunter2" not in about["error"]
    with pytest.raises(_observe.NotObserved):
        _observe.configuration(about)


def test_a_broker_without_its_file_is_known_to_have_none(tmp_path):
    path = str(tmp_path / "gone.conf")
    assert _observe.conf_file(path, (0, 0, []), [PROCESS]) == {"path": path, "exists": False}


@pytest.mark.skipif(os.geteuid() != 0, reason="looks with the eyes of another user")
def test_permissions_are_those_of_the_service_user(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("open")
    for parent in (tmp_path, *tmp_path.parents):
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    path = tmp_path / "nanomq.conf"
    path.write_text("x = 1\n")
    path.chmod(0o640)
    nobody = (65534, 65534, [65534])
    assert not _observe.may(nobody, str(path), os.R_OK)
    path.chmod(0o644)
    assert _observe.may(nobody, str(path), os.R_OK)
    assert not _observe.replaceable(nobody, str(path))
    tmp_path.chmod(0o777)
    assert _observe.replaceable(nobody, str(path))


@pytest.mark.parametrize(
    ("mode", "private", "replaceable"),
    [(0o1777, False, True), (0o755, False, False), (0o1777, True, False)],
    ids=["shared", "of one user", "private"],
)
def test_the_socket_of_the_webhook_is_looked_for_where_the_broker_sees_it(tmp_path, mode, private, replaceable):
    """A process that has its own directory in that place is as if below another root."""
    own = tmp_path / "root"
    shown = tmp_path / "spool"
    shown.mkdir(mode=0o755)
    shown.chmod(mode)
    below = own / "100/root"
    below.mkdir(parents=True)
    if private:
        (below / str(shown)[1:]).mkdir(parents=True)
        (below / str(shown)[1:]).chmod(mode)
    else:
        (below / str(tmp_path)[1:]).parent.mkdir(parents=True)
        (below / str(tmp_path)[1:]).symlink_to(tmp_path)
    conf = {"webhook": {"url": "http://x"}, "system": {"hook_ipc_url": f"ipc://{shown}/a.ipc"}}
    (found,) = _observe.event_sockets(conf, [{"pid": 100}], str(own))
    assert found == {"pid": 100, "path": f"{shown}/a.ipc", "replaceable": replaceable}


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"webhook": {"url": "http://x", "enable": False}},
        {"webhook": {"url": "http://x"}, "system": {"hook_ipc_url": "tcp://0.0.0.0:1"}},
    ],
)
def test_without_a_webhook_there_is_no_such_socket(conf):
    assert _observe.event_sockets(conf, [{"pid": 100}]) == []


def test_where_a_broker_is_down_nobody_knows_where_it_sees_its_socket():
    with pytest.raises(_policy.NotObserved):
        _observe.event_sockets({"webhook": {"url": "http://x"}}, [])


def test_key_files_are_told_apart_from_public_ones(tmp_path):
    private, public = tmp_path / "key.pem", tmp_path / "jwt.pub"
    private.write_text("-----BEGIN PRIVATE KEY-----\n")
    public.write_text("-----BEGIN PUBLIC KEY-----\n")
    conf = {
        "listeners": {"ssl": {"bind": "0.0.0.0:8883", "keyfile": str(private)}},
        "http_server": {"jwt": {"public": {"keyfile": str(public)}}},
    }
    items = _observe.key_files(conf, (0, 0, []))
    assert [(item["kind"], item["private"]) for item in items] == [("tls", True), ("jwt", False)]


# --- live probes ------------------------------------------------------------------------------------------------------


class Mqtt(socketserver.BaseRequestHandler):
    """Takes a CONNECT and answers what the server is told to; nothing closes the connection."""

    def handle(self):
        self.request.recv(256)
        self.request.sendall(self.server.answer)


class Rest(http.server.BaseHTTPRequestHandler):
    """Answers 200 to admin:public where the server is told so, and 401 to the rest."""

    def do_GET(self):
        shipped = self.headers.get("Authorization") == "Basic YWRtaW46cHVibGlj"
        self.send_response(200 if shipped and self.server.answer else 401)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@contextlib.contextmanager
def serving(handler, answer):
    """A server on loopback; gives its port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.answer = answer
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "outcome"), [(b"\x20\x02\x00\x00", "accepted"), (b"\x20\x02\x00\x05", "refused"), (b"", "refused")]
)
def test_a_login_is_tried_on_what_listens(answer, outcome):
    with serving(Mqtt, answer) as port:
        observation = {"conf": {}, "kinds": {f"0.0.0.0:{port}": "tcp"}}
        (probe,) = _observe.mqtt(observation, 1, {})
    assert (probe["anonymous"], probe["made_up"], probe["tls"]) == (outcome, outcome, False)


@pytest.mark.parametrize(("answer", "status"), [(True, 200), (False, 401)])
def test_the_shipped_password_is_tried_on_rest(answer, status):
    with serving(Rest, answer) as port:
        observation = {"kinds": {f"127.0.0.1:{port}": "rest"}}
        (probe,) = _observe.rest(observation, 1)
    assert (probe["without_credentials"], probe["shipped_credentials"]) == (401, status)


def test_rest_that_does_not_answer_is_not_observed():
    with serving(Mqtt, b"") as port, pytest.raises(_observe.NotObserved):
        _observe.rest({"kinds": {f"127.0.0.1:{port}": "rest"}}, 0.5)


@pytest.mark.parametrize(("handler", "answer", "kind"), [(Rest, False, "rest"), (Mqtt, b"\x20\x02\x00\x05", "tcp")])
def test_a_socket_that_nobody_declared_is_known_by_its_answer(handler, answer, kind):
    with serving(handler, answer) as port:
        address = f"127.0.0.1:{port}"
        observation = {"listeners": {address: [1]}, "conf": {"listeners": {}}}
        assert _observe.kinds(observation, 0.5) == {address: kind}


@pytest.mark.parametrize(
    ("first", "last", "days", "valid_yet"), [(-10, 30, 29, True), (-10, -1, -2, True), (5, 30, 29, False)]
)
def test_the_validity_of_a_served_certificate(first, last, days, valid_yet):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + datetime.timedelta(days=first))
        .not_valid_after(now + datetime.timedelta(days=last))
        .sign(key, hashes.SHA256())
    )
    result = _observe.validity(certificate.public_bytes(serialization.Encoding.DER))
    assert (result["days_left"], result["valid_yet"]) == (days, valid_yet)


def test_what_is_no_certificate_has_no_validity():
    assert _observe.validity(b"\x30\x00") == {}


# --- the packet filter ------------------------------------------------------------------------------------------------


def ruleset(*rules: list[dict], policy="accept", family="inet", others=(), **chain) -> list[dict]:
    """What nft lists for a table with one chain for input."""
    base = {
        "family": family,
        "table": "t",
        "name": "input",
        "type": "filter",
        "hook": "input",
        "policy": policy,
        **chain,
    }
    items = [{"metainfo": {}}, {"table": {"family": family, "name": "t"}}, {"chain": base}, *others]
    return items + [{"rule": {"family": family, "table": "t", "chain": "input", "expr": rule}} for rule in rules]


def match(right, key="dport", op="==", protocol="tcp") -> dict:
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": key}}, "right": right}}


def meta(key, right, op="==") -> dict:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def state(right, op="in") -> dict:
    return {"match": {"op": op, "left": {"ct": {"key": "state"}}, "right": right}}


DROP, ACCEPT = {"drop": None}, {"accept": None}
CLOSED = match({"set": [1883, 8081, {"range": [8083, 8086]}]})
JUMP = [
    {"chain": {"family": "inet", "table": "t", "name": "more"}},
    {"rule": {"family": "inet", "table": "t", "chain": "more", "expr": [CLOSED, {"counter": {}}, DROP]}},
]


@pytest.mark.parametrize(
    ("expected", "items"),
    [
        ("accepted", []),
        ("accepted", ruleset()),
        ("dropped", ruleset([CLOSED, {"counter": {}}, DROP])),
        ("dropped", ruleset([meta("iif", "lo"), ACCEPT], [match(22), ACCEPT], [CLOSED, DROP])),
        ("dropped", ruleset([meta("iifname", "lo", "!="), CLOSED, {"reject": {}}])),
        ("dropped", ruleset([state(["established", "related"]), ACCEPT], policy="drop")),
        ("dropped", ruleset([match(8883), ACCEPT], policy="drop")),
        ("dropped", ruleset([{"jump": {"target": "more"}}], others=JUMP)),
        ("dropped", ruleset([CLOSED, DROP], hook="prerouting")),
        ("accepted", ruleset([meta("iif", "lo"), CLOSED, DROP])),
        ("accepted", ruleset([CLOSED, ACCEPT], [CLOSED, DROP])),
        ("accepted", ruleset([CLOSED, {"return": None}], [CLOSED, DROP])),
        ("accepted", ruleset([match(8081, protocol="udp"), DROP])),
        ("accepted", ruleset([CLOSED, DROP], hook="output")),
        ("accepted", ruleset([CLOSED, DROP], type="nat")),
        ("accepted", ruleset([CLOSED, DROP], family="ip6")),
        ("accepted", ruleset([match(8081, op="!="), DROP])),
        ("depends", ruleset([match("192.0.2.1", "saddr", protocol="ip"), CLOSED, ACCEPT], [CLOSED, DROP])),
        ("depends", ruleset([{"limit": {"rate": 1}}, CLOSED, DROP])),
        ("depends", ruleset([meta("iifname", "eth0"), CLOSED, DROP])),
        ("depends", ruleset([match("@ports"), DROP])),
    ],
)
def test_what_the_packet_filter_does_with_a_new_connection(expected, items):
    assert _netfilter.verdict(items, 8081, "ip") == expected


def test_a_second_table_cannot_let_in_what_the_first_drops():
    other = json.loads(json.dumps(ruleset([CLOSED, ACCEPT])).replace('"t"', '"other"'))
    assert _netfilter.verdict(other + ruleset([CLOSED, DROP]), 8081, "ip") == "dropped"


RULESETS = pathlib.Path(__file__).parents[2] / "rulesets"


@pytest.mark.parametrize(("name", "open_ports"), [("ufw", {22, 8883}), ("firewalld", {22})], ids=["ufw", "firewalld"])
@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_rules_that_others_wrote_are_understood(name, open_ports, family):
    """As ufw 0.36 (with iptables) and firewalld 2.3 load them by default, with these ports opened."""
    items = json.loads((RULESETS / f"{name}.json").read_text())["nftables"]
    listing = RULESETS / f"{name}.nft"
    wording = _netfilter.texts(listing.read_text()) if listing.exists() else None
    assert _netfilter.translated(items) is listing.exists()
    ports = (22, 445, 1883, 8081, 8883)
    verdicts = {port: _netfilter.verdict(items, port, family, wording) for port in ports}
    assert verdicts == {port: "accepted" if port in open_ports else "dropped" for port in ports}


def test_matches_of_iptables_without_their_wording_are_not_guessed():
    items = json.loads((RULESETS / "ufw.json").read_text())["nftables"]
    assert {_netfilter.verdict(items, port, "ip") for port in (22, 8081)} == {"depends"}


def test_rules_that_jump_in_a_circle_end():
    items = ruleset([{"jump": {"target": "input"}}], [CLOSED, DROP])
    assert _netfilter.verdict(items, 8081, "ip") == "dropped"


def test_without_nft_the_packet_filter_is_not_observed(monkeypatch):
    monkeypatch.setattr(_observe, "run", lambda argv, **_options: (127, "nft: No such file or directory"))
    with pytest.raises(_observe.NotObserved, match="No such file"):
        _observe.firewall({})


# --- module and report ------------------------------------------------------------------------------------------------


def test_the_module_returns_findings_and_no_secret(monkeypatch, capsys):
    leaky = {
        **SHIPPED,
        "conf": {**SHIPPED["conf"], "auth": {"password": {"sensor": "hunter2"}}},
        "identity": (0, 0, []),
    }
    monkeypatch.setattr(_observe, "observe", lambda **_options: leaky)
    waiver = {"rule": "NMQ-SVC-011", "reason": "a lab", "expires": "2999-01-01"}
    with patch_module_args({"waivers": [waiver]}), pytest.raises(SystemExit):
        audit.main()
    output = capsys.readouterr().out
    result = json.loads(output)
    assert result["changed"] is False
    assert "conf" not in result["observation"]
    assert "hunter2" not in output
    by_id = {finding["id"]: finding for finding in result["findings"]}
    assert by_id["NMQ-AUT-004"]["evidence"] == ["auth.password.sensor: is shorter than 12 characters"]
    assert by_id["NMQ-SVC-011"]["waived"] == "a lab"
    assert not set(by_id) & set(result["passed"])


def test_the_table_has_one_line_a_finding_the_worst_first():
    findings = _policy.evaluate_host(SHIPPED)
    lines = table("broker-1", findings, 7, 100, verbose=False)
    assert lines[0].startswith(f"broker-1: {len(findings)} findings (7 critical, ")
    assert lines[0].endswith(", 7 rules passed")
    severities = [line.split()[0] for line in lines[1:]]
    assert severities == sorted(severities, key=["critical", "high", "medium", "low"].index)
    assert len(severities) == len(findings)
    assert max(map(len, lines)) <= 100


def test_the_table_groups_what_was_not_seen_by_its_reason():
    findings = _policy.evaluate_host({**HARDENED, "firewall": {"not_observed": "no nft"}})
    assert table("broker-1", findings, 1, 100, False) == [
        "broker-1: 0 findings, 1 not observed, 1 rule passed",
        "  not seen  no nft (NMQ-NET-006)",
    ]


def test_with_verbosity_the_table_tells_the_remedy():
    findings = [f for f in _policy.evaluate_host(SHIPPED) if f.id == "NMQ-SVC-011"]
    assert table("broker-1", findings, 1, 200, verbose=True)[-1].strip() == "-> " + _policy.RULES["NMQ-SVC-011"].remedy
