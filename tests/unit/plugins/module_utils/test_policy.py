# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The policy: each rule is broken on purpose and found, alone; what is hardened is silent."""

from __future__ import annotations

import datetime
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from ansible_collections.edgesec.nanomq.plugins.module_utils import _access, _policy, _schema
from broken_configurations import BROKEN, CLEAN, PASSWORD, acl, basic, changed
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parents[4]
TODAY = datetime.date(2030, 6, 15)


def ids(conf: dict, version: str = "0.25.6", **context) -> set[str]:
    return {finding.id for finding in _policy.evaluate_config(conf, version=version, context=context)}


# Known of the context instead of the configuration.
OF_CONTEXT = {"NMQ-NET-006", "NMQ-VER-001", "NMQ-VER-002", "NMQ-VER-003", "NMQ-VER-004", "NMQ-VER-005"}


def test_a_hardened_configuration_has_no_finding():
    assert _policy.evaluate_config(CLEAN, version="0.25.6", context={"firewall": True}) == []


def test_the_hardened_configuration_is_one_that_the_schema_takes():
    assert _schema.validate(CLEAN, "0.25.6") == []


@pytest.mark.parametrize(("rule", "changes", "also"), BROKEN)
def test_a_broken_rule_is_found_and_no_other(rule, changes, also):
    assert ids(changed(changes)) == {rule, *also}


SSL = dict.fromkeys(("keyfile", "certfile"), "/etc/x.pem")
# Each of them was started on a real broker, and its sockets were looked at: tests/fuzz.
SOCKETS = [
    ({}, {"0.0.0.0:1883"}),
    ({"listeners": {"ssl": {"bind": "127.0.0.1:8883", **SSL}}}, {"127.0.0.1:8883", "0.0.0.0:8086"}),
    ({"listeners": {"ssl": {"bind": "127.0.0.1:8883", "enable": False}}}, set()),
    ({"listeners": {"ssl": {"one": {"bind": "127.0.0.1:8883", **SSL}}}}, {"127.0.0.1:8883"}),
    ({"listeners": {"ssl": {"one": {"bind": "127.0.0.1:8883", "enable": False}}}}, {"127.0.0.1:8883"}),
    (
        {"listeners": {"ssl": {"bind": "127.0.0.1:8884", "one": {"bind": "127.0.0.1:8883"}}}},
        {"127.0.0.1:8883", "127.0.0.1:8884", "0.0.0.0:8086"},
    ),
    (
        {"listeners": {"ssl": {"bind": "127.0.0.1:8884", "enable": False, "one": {"bind": "127.0.0.1:8883"}}}},
        {"127.0.0.1:8883"},
    ),
    (
        {"bridges": {"nng": {"pub": {"a": {"clientid": "a", "pub_url": "tcp://*:7000"}}}}},
        {"0.0.0.0:1883", "0.0.0.0:7000"},
    ),
    ({"bridges": {"nng": {"sub": {"a": {"clientid": "a", "sub_url": "inproc://a"}}}}}, {"0.0.0.0:1883"}),
]


@pytest.mark.parametrize(("conf", "expected"), SOCKETS)
def test_the_sockets_of_a_configuration(conf, expected):
    assert {listener.address for listener in _policy.listeners(conf)} == expected


# (rule, what callers may do through a front end)
FRONT_BROKEN = [
    ("NMQ-ACL-010", {"roles": {"own": ["GET /configuration"]}}),
    ("NMQ-ACL-010", {"roles": {"own": ["GET /configuration/auth"]}}),
    ("NMQ-ACL-010", {"roles": {"own": ["GET /configuration/*"]}}),
    ("NMQ-ACL-010", {"roles": {"own": ["GET /*"]}}),
    ("NMQ-ACL-011", {"roles": {"own": ["POST /reload"]}}),
    ("NMQ-ACL-011", {"roles": {"own": ["POST /configuration"]}}),
    ("NMQ-ACL-011", {"roles": {"own": ["POST /configuration/basic"]}}),
    ("NMQ-ACL-012", {"roles": {"own": ["POST /config_update"]}}),
    ("NMQ-ACL-013", {"roles": {"own": ["POST /rules"]}}),
    ("NMQ-ACL-013", {"roles": {"own": ["PUT /rules/*"]}}),
    ("NMQ-ACL-014", {"roles": {"own": ["POST /ctrl/restart"]}}),
    ("NMQ-ACL-014", {"roles": {"own": ["POST /ctrl/*"]}}),
    ("NMQ-ACL-015", {"anonymous": ["viewer"]}),
]
# (rule, what looks alike and is sound)
FRONT_CLEAN = [
    ("NMQ-ACL-010", {"roles": {"own": ["GET /config", "GET /configuration/a/b", "PUT /configuration"]}}),
    ("NMQ-ACL-011", {"roles": {"own": ["GET /reload", "POST /reload/x"]}}),
    ("NMQ-ACL-012", {"roles": {"own": ["GET /config_update"]}}),
    ("NMQ-ACL-013", {"roles": {"own": ["GET /rules", "PUT /rules", "DELETE /rules/*", "POST /rules/*"]}}),
    ("NMQ-ACL-014", {"roles": {"own": ["POST /ctrl", "GET /ctrl/restart"]}}),
    ("NMQ-ACL-015", {"roles": dict(_access.ROLES), "anonymous": []}),
]


@pytest.mark.parametrize(("rule", "front"), FRONT_BROKEN)
def test_a_front_end_that_breaks_a_rule_is_found_and_no_other(rule, front):
    (finding,) = _policy.evaluate_front(front)
    (evidence,) = finding.evidence
    assert finding.id == rule
    given = front.get("anonymous") or front["roles"]["own"]
    assert evidence.endswith(f": {given[0]}")
    assert evidence.startswith("nanomq_nginx_")


@pytest.mark.parametrize(("rule", "front"), FRONT_CLEAN)
def test_a_sound_front_end_is_not_reported(rule, front):
    assert _policy.evaluate_front(front) == []
    assert _policy.evaluate_front({}) == []


def test_all_that_a_front_end_breaks_is_found_at_once_the_worst_first():
    calls = [call for hazards in _access.HAZARDS.values() for call in hazards]
    findings = _policy.evaluate_front({"roles": {"one": calls, "two": calls}, "anonymous": ["viewer", "publisher"]})
    assert {finding.id for finding in findings} == {rule for rule, _front in FRONT_BROKEN}
    assert [finding.severity for finding in findings] == ["critical"] * 3 + ["high"] * 2 + ["medium"]
    assert sum(len(finding.evidence) for finding in findings) == 2 * len(calls) + 2


def test_every_rule_for_front_ends_has_both_and_is_asked_of_nothing_else():
    asked = {rule.id for rule in _policy.RULES.values() if rule.front}
    assert asked >= set(_access.HAZARDS)
    assert {rule for rule, _front in FRONT_BROKEN} == asked
    assert {rule for rule, _front in FRONT_CLEAN} == asked
    assert not [rule for rule in asked if _policy.RULES[rule].config or _policy.RULES[rule].host]


def test_every_rule_is_asked_of_something():
    idle = {rule.id for rule in _policy.RULES.values() if not (rule.config or rule.host or rule.front or rule.outside)}
    assert idle == {rule for rule in _policy.RULES if rule.startswith("NMQ-WVR")}


def test_every_rule_for_configurations_is_broken_by_a_test():
    asked = {rule.id for rule in _policy.RULES.values() if rule.config}
    assert asked - {rule for rule, _changes, _also in BROKEN} == OF_CONTEXT


@pytest.mark.parametrize(
    "changes",
    [
        {"listeners.tcp": {"bind": "127.0.0.1:1883"}},
        {"listeners.tcp": {"bind": "[::1]:1883"}},
        {"listeners.ws": {"bind": "localhost:8083/mqtt"}},
        {"http_server.ip_addr": "localhost"},
        {"http_server.ip_addr": "[::1]"},
        {
            "listeners.ssl.bind": "127.0.0.1:8883",
            "listeners.ssl.verify_peer": False,
            "listeners.ssl.fail_if_no_peer_cert": False,
        },
        {"bridges.mqtt.up": {"server": "mqtt-tcp://127.0.0.1:18831", "hybrid_servers": ["mqtt-tcp://localhost:1"]}},
        {"bridges.mqtt.up": {"server": "tls+mqtt-tcp://127.0.0.1:8883", "ssl": {"cacertfile": "/etc/ca.pem"}}},
        {"bridges.aws.up": {"server": "a.example:8883", "ssl": {"cacertfile": "/etc/ca.pem"}, "enable": False}},
        {"webhook.url": "http://127.0.0.1:18832/events"},
        {"bridges.mqtt.up": {"server": "mqtt-tcp://192.0.2.1:1883", "enable": False}},
        {"bridges.mqtt.up.server": "mqtt-tcp://[::1]:1883"},
        {"bridges.mqtt.cache.disk_cache_size": 1},
        {"bridges.nng.sub.in": {"clientid": "in", "sub_url": "tcp://127.0.0.1:9000"}},
        {"bridges.nng.pub.out": {"clientid": "out", "pub_url": "ipc:///run/nanomq/out"}},
        {"auth.http_auth.auth_req": {"url": "http://127.0.0.1:9000/a", "method": "POST"}},
        {"webhook": {"enable": False, "url": "http://192.0.2.1/"}},
        {"auth.no_match": "allow", "auth.acl.rules": [*CLEAN["auth"]["acl"]["rules"], {"permit": "deny"}]},
        acl(permit="allow", username="admin-1", topics=["#"]),
        {"log.to": ["file"], "log.dir": "/var/log/nanomq"},
        {"mqtt.max_packet_size": "16MB"},
    ],
)
def test_what_is_sound_is_not_reported(changes):
    assert ids(changed(changes)) == set()


def test_a_missing_firewall_is_found_when_the_caller_says_so():
    assert ids(CLEAN, firewall=False) == {"NMQ-NET-006"}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.22.10", {"NMQ-VER-001", "NMQ-VER-003", "NMQ-VER-004"}),
        ("0.23.0", {"NMQ-VER-001", "NMQ-VER-003", "NMQ-VER-004"}),
        ("0.23.1", {"NMQ-VER-001", "NMQ-VER-003", "NMQ-VER-004"}),
        ("0.24.4", {"NMQ-VER-003", "NMQ-VER-004"}),
        ("0.25.5", {"NMQ-VER-002", "NMQ-VER-003", "NMQ-VER-004"}),
        ("0.25.5-1", {"NMQ-VER-002", "NMQ-VER-003", "NMQ-VER-004"}),
        ("0.25.6", set()),
        ("0.25.6-8", set()),
        ("1.0.0", set()),
        ("", {"NMQ-VER-005"}),
        ("latest", {"NMQ-VER-005"}),
    ],
)
def test_versions(version, expected):
    assert ids(CLEAN, version) == expected


@pytest.mark.parametrize(
    ("version", "advisory", "affected"),
    [
        ("0.24.3", "CVE-2025-59946", True),
        ("0.24.4", "CVE-2025-59946", False),
        ("0.24.0", "issue 2247", False),
        ("0.24.1", "issue 2247", True),
        ("0.25.2", "issue 2247", True),
        ("0.25.3", "issue 2247", False),
        ("0.24.7", "CVE-2026-25627", True),
        ("0.24.8", "CVE-2026-25627", False),
        ("0.25.5", "issue 2373", True),
    ],
)
def test_advisories_name_the_versions_they_concern(version, advisory, affected):
    evidence = [e for f in _policy.evaluate_config(CLEAN, version=version) if f.id == "NMQ-VER-003" for e in f.evidence]
    assert any(item.startswith(f"{advisory}:") for item in evidence) == affected


def test_only_a_version_that_cannot_be_hardened_stops_a_deployment():
    def stopped(version):
        findings = _policy.evaluate_config(CLEAN, version=version)
        return [f.id for f in _policy.failing(findings, "high", deployment=True)]

    assert stopped("0.22.10") == ["NMQ-VER-001"]
    assert stopped("0.25.5") == ["NMQ-VER-002"]
    assert stopped("0.24.14") == []


# --- nothing secret, nothing that crashes -----------------------------------------------------------------------------


def test_no_finding_holds_a_value_of_the_configuration():
    marker = "marker"  # short, so that every password rule has something to say
    conf: dict = {}
    for key in _schema.KEYS:
        # A list stands for each array; the names that users choose are harmless.
        block: dict | list = conf
        segments = [segment if segment == "[]" else segment.strip("<>") for segment in _schema.split(key.path)]
        for name, following in zip(segments, [*segments[1:], None]):
            # Addresses are evidence, and no secret.
            value = "192.0.2.9" if key.type == "address" else marker
            empty = value if following is None else [] if following == "[]" else {}
            if name == "[]":
                if not block:
                    block.append(empty)
                block = block[0]
            else:
                block = block.setdefault(name, empty) if isinstance(block, dict) else block
    findings = _policy.evaluate_config(conf, version="0.25.6")
    assert len(findings) > 15
    assert not [str(finding) for finding in findings if marker in str(finding)]


@pytest.mark.parametrize(
    ("version", "ssl", "evidence"),
    [
        ("0.25.6", {"cacertfile": "/ca.pem"}, "leads to a server that the broker does not verify"),
        ("0.24.14", {"cacertfile": "/ca.pem"}, "leads to a server that the broker does not verify"),
        ("", {"cacertfile": "/ca.pem"}, "leads to a server that the broker does not verify"),
        ("0.24.4", {"cacertfile": "/ca.pem"}, "leads to a server whose name the broker does not verify"),
        ("0.24.4", {"keyfile": "/key.pem"}, "leads to a server that the broker does not verify"),
    ],
)
def test_what_a_bridge_does_not_verify_depends_on_the_version(version, ssl, evidence):
    bridge = {"server": "mqtt-tcp://127.0.0.1:1", "hybrid_servers": ["tls+mqtt-tcp://far.example:8883"], "ssl": ssl}
    findings = {f.id: f for f in _policy.evaluate_config(changed({"bridges.mqtt.up": bridge}), version=version)}
    assert findings["NMQ-TLS-008"].evidence == (f"bridges.mqtt.up.hybrid_servers[0]: {evidence}",)


def test_an_url_with_a_password_is_not_quoted():
    conf = changed(
        {"bridges.mqtt.up.server": "mqtt-tcp://user:hunter2@192.0.2.1:1883", "webhook.url": "http://a:hunter2@b"}
    )
    findings = _policy.evaluate_config(conf, version="0.25.6")
    assert {"NMQ-TLS-007", "NMQ-TLS-010"} <= {finding.id for finding in findings}
    assert "hunter2" not in str([finding.as_dict() for finding in findings])


_NAMES = sorted({str(segment) for key in _schema.KEYS for segment in _schema.split(key.path) if segment != "[]"})
_JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["jwt", "0.0.0.0:1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(conf=st.dictionaries(st.sampled_from(_NAMES), _JUNK, max_size=6), version=st.text(max_size=6))
def test_any_configuration_can_be_judged(conf, version):
    for finding in _policy.evaluate_config(conf, version=version):
        assert finding.evidence
        json.dumps(finding.as_dict())


# --- waivers ----------------------------------------------------------------------------------------------------------


def waived(*waivers: dict) -> dict[str, str]:
    """{rule: reason} of what is found in a configuration with REST on the network."""
    findings = _policy.evaluate_config(changed({"http_server.ip_addr": None}), version="0.25.6")
    return {f.id: f.waived for f in _policy.apply_waivers(findings, list(waivers), TODAY)}


@pytest.mark.parametrize("expires", ["2030-06-15", "2031-01-01", TODAY, datetime.datetime(2030, 6, 15, 1)])
def test_a_waiver_holds_up_to_its_last_day(expires):
    assert waived({"rule": "NMQ-NET-001", "reason": "a lab", "expires": expires}) == {"NMQ-NET-001": "a lab"}


@pytest.mark.parametrize(
    ("waiver", "trouble"),
    [
        ({"rule": "NMQ-NET-001", "reason": "a lab", "expires": "2030-06-14"}, "NMQ-WVR-001"),
        ({"rule": "NMQ-NET-999", "reason": "a lab", "expires": "2031-01-01"}, "NMQ-WVR-002"),
        ({"reason": "a lab", "expires": "2031-01-01"}, "NMQ-WVR-002"),
        ({"rule": "NMQ-WVR-001", "reason": "a lab", "expires": "2031-01-01"}, "NMQ-WVR-002"),
        ({"rule": "NMQ-NET-001", "reason": " ", "expires": "2031-01-01"}, "NMQ-WVR-003"),
        ({"rule": "NMQ-NET-001", "expires": "2031-01-01"}, "NMQ-WVR-003"),
        ({"rule": "NMQ-NET-001", "reason": "a lab"}, "NMQ-WVR-003"),
        ({"rule": "NMQ-NET-001", "reason": "a lab", "expires": "next year"}, "NMQ-WVR-003"),
        ("NMQ-NET-001", "NMQ-WVR-002"),
    ],
)
def test_a_waiver_that_is_no_good_waives_nothing_and_is_found(waiver, trouble):
    assert waived(waiver) == {"NMQ-NET-001": "", trouble: ""}


@pytest.mark.parametrize("expires", ["2030-06-15", TODAY, datetime.datetime(2030, 6, 15, 1)])
def test_a_waived_finding_tells_until_when(expires):
    findings = _policy.evaluate_config(changed({"http_server.ip_addr": None, "auth.acl": None}), version="0.25.6")
    waiver = {"rule": "NMQ-NET-001", "reason": "a lab", "expires": expires}
    until = {f.id: f.as_dict()["waived_until"] for f in _policy.apply_waivers(findings, [waiver], TODAY)}
    assert until == {"NMQ-NET-001": "2030-06-15", "NMQ-ACL-001": ""}


def test_a_waiver_covers_its_own_rule_alone():
    findings = _policy.evaluate_config(changed({"http_server.ip_addr": None, "auth.acl": None}), version="0.25.6")
    waiver = {"rule": "NMQ-NET-001", "reason": "a lab", "expires": "2031-01-01"}
    assert [f.id for f in _policy.failing(_policy.apply_waivers(findings, [waiver], TODAY), "low")] == ["NMQ-ACL-001"]


def test_fail_on_is_a_lower_bound():
    findings = _policy.evaluate_config(
        changed({"auth.allow_anonymous": True, "auth.acl": None, "system.daemon": True, "log.level": "debug"}),
        version="0.25.6",
    )
    assert [f.severity for f in findings] == ["critical", "high", "medium", "low"]
    counts = [len(_policy.failing(findings, level)) for level in ("none", "critical", "high", "medium", "low")]
    assert counts == [0, 1, 2, 3, 4]


# --- the catalogue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", _policy.RULES.values(), ids=lambda rule: rule.id)
def test_a_rule_says_all_that_it_must(rule):
    assert re.fullmatch(r"NMQ-(NET|TLS|AUT|ACL|SVC|VER|WVR)-\d{3}", rule.id)
    assert rule.layer in ("network", "transport", "authentication", "access_control")
    assert rule.severity in _policy.SEVERITIES
    assert rule.title
    assert rule.why.endswith((".", ")"))
    assert rule.source
    assert rule.remedy


def test_remedies_name_variables_that_the_roles_have():
    known = {path.parent.parent.name for path in ROOT.glob("roles/*/defaults/main.yml")}
    for path in ROOT.glob("roles/*/defaults/main.yml"):
        known |= set(yaml.safe_load(path.read_text()) or {})
    named = {name for rule in _policy.RULES.values() for name in re.findall(r"nanomq_[a-z0-9_]+", rule.remedy)}
    assert named - known == set()
    assert len(named) > 10


def test_the_catalogue_in_the_documentation_is_up_to_date():
    spec = importlib.util.spec_from_file_location("generate_rules", ROOT / "docs/generate_rules.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (ROOT / "docs/rules.md").read_text() == generator.catalogue(), "run docs/generate_rules.py"


# --- the action plugin ------------------------------------------------------------------------------------------------


def play(tmp_path, *arguments: str, **task) -> subprocess.CompletedProcess:
    """Run policy_check in a play of its own, as chatty as it gets. The host does not exist: nothing may run on it."""
    book = [
        {
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                {"edgesec.nanomq.policy_check": task, "register": "r"},
                {"ansible.builtin.debug": {"var": "r"}},
            ],
        }
    ]
    path = tmp_path / "play.yml"
    path.write_text(yaml.safe_dump(book))
    command = [
        sys.executable,
        "-m",
        "ansible",
        "playbook",
        "-i",
        "nowhere.invalid,",
        "-vvv",
        "--diff",
        *arguments,
        path,
    ]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)


def test_a_deployment_is_stopped_with_one_message_that_shows_no_secret(tmp_path):
    conf = changed({"auth.password.sensor": "hunter2", "auth.allow_anonymuos": True, "http_server.ip_addr": None})
    done = play(tmp_path, "--check", conf=conf, version="0.25.6")
    assert done.returncode == 2
    for expected in (
        "NMQ-NET-001",
        "http_server.ip_addr",
        "NMQ-AUT-004",
        "auth.password.sensor",
        "nanomq_broker_users",
    ):
        assert expected in done.stdout
    assert "did you mean auth.allow_anonymous" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_a_lesser_finding_is_a_warning_and_the_result_holds_no_configuration(tmp_path):
    waiver = {"rule": "NMQ-NET-001", "reason": "a lab without a network", "expires": "2999-12-31"}
    conf = changed({**basic(), "http_server.ip_addr": None})
    done = play(tmp_path, conf=conf, version="0.24.14", waivers=[waiver])
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "NMQ-AUT-006 (medium)" in output
    assert "NMQ-VER-004 (high)" in output
    assert "NMQ-NET-001 (critical) is waived: a lab without a network" in output
    assert PASSWORD not in output
    assert '"conf"' not in output
