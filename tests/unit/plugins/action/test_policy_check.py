# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""policy_check of a front end. That of a configuration is tested with the policy."""

from __future__ import annotations

import datetime
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.edgesec.nanomq.plugins.action import policy_check as action

CLIENTS = [{"role": "viewer", "common_names": ["alice"]}]
HAZARD = {"roles": {"dangerous": ["GET /metrics", "POST /config_update"]}}


def waiver(days: int, rule: str = "NMQ-ACL-012") -> dict:
    day = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days)
    return {"rule": rule, "reason": "a lab", "expires": day.isoformat()}


@pytest.fixture
def check(monkeypatch):
    """check(front, **options): the result, with the warnings that were shown."""

    def run(front=None, **options):
        warnings = []
        args = options if front is None else {"front": front, **options}
        task = SimpleNamespace(args=args, check_mode=False, async_val=0, action="policy_check")
        connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/tmp/x"))
        plugin = action.ActionModule(task, connection, None, None, None)
        monkeypatch.setattr(plugin, "_display", SimpleNamespace(warning=warnings.append))
        monkeypatch.setattr(plugin, "_execute_module", lambda *a, **b: pytest.fail("nothing may run on the host"))
        return {"failed": False, "warned": warnings, **plugin.run(task_vars={})}

    return run


def found(result) -> list[str]:
    return [finding["id"] for finding in result["findings"]]


@pytest.mark.parametrize("front", [{}, {"clients": CLIENTS}, {"roles": {"own": ["GET /metrics"]}, "clients": CLIENTS}])
def test_a_sound_front_end_passes(check, front):
    result = check(front)
    assert not result["failed"]
    assert (result["findings"], result["warned"]) == ([], [])


def test_an_invalid_declaration_stops_with_every_problem(check):
    result = check({"roles": {"own": ["get /a"]}, "clients": [{"role": "nobody"}], "anonymous": ["ghost"]})
    assert result["failed"]
    assert result["findings"] == []
    assert result["msg"].startswith("the front end breaks 4 rules; nothing was touched\n")
    for said in (
        "- nanomq_nginx_roles.own: 'get /a' is no call",
        "- nanomq_nginx_clients, item 1: there is no role 'nobody'",
        "- nanomq_nginx_clients, item 1: says of nobody",
        "- nanomq_nginx_anonymous_roles: there is no role 'ghost'",
    ):
        assert said in result["msg"]
    assert "nanomq_broker_settings" not in result["msg"]


@pytest.mark.parametrize("front", [{"roles": None}, {"clients": None}, {"anonymous": "viewer"}, {"clients": [[]]}])
def test_an_invalid_declaration_stops_whatever_fails_on(check, front):
    result = check(front, fail_on="none")
    assert result["failed"]
    assert result["msg"].startswith("the front end breaks 1 rule;")


def test_a_hazard_stops_with_role_call_and_remedy(check):
    result = check(HAZARD)
    assert result["failed"]
    assert found(result) == ["NMQ-ACL-012"]
    assert result["msg"].startswith("the front end breaks 1 rule; nothing was touched\n- NMQ-ACL-012 (critical)")
    assert "nanomq_nginx_roles.dangerous: POST /config_update" in result["msg"]
    assert "nanomq_nginx_roles" in result["msg"].split("->")[1]


def test_a_declared_role_counts_before_anybody_has_it(check):
    assert check({**HAZARD, "clients": []})["failed"]
    assert check({**HAZARD, "clients": CLIENTS})["failed"]


def test_a_ready_made_role_that_was_declared_anew_is_judged_as_declared(check):
    result = check({"roles": {"viewer": ["POST /ctrl/*"]}, "clients": CLIENTS})
    assert found(result) == ["NMQ-ACL-014"]
    assert "nanomq_nginx_roles.viewer: POST /ctrl/*" in result["msg"]


@pytest.mark.parametrize(("fail_on", "stops"), [("none", False), ("high", False), ("medium", True), ("low", True)])
def test_roles_without_a_certificate_are_a_warning_by_default(check, fail_on, stops):
    result = check({"anonymous": ["viewer"]}, fail_on=fail_on)
    assert result["failed"] == stops
    assert found(result) == ["NMQ-ACL-015"]
    assert len(result["warned"]) == (not stops)
    assert "nanomq_nginx_anonymous_roles: viewer" in (result["msg"] if stops else result["warned"][0])


def test_a_waiver_lets_a_hazard_by_and_shows(check):
    result = check(HAZARD, waivers=[waiver(0)])
    assert not result["failed"]
    assert found(result) == ["NMQ-ACL-012"]
    (warning,) = result["warned"]
    assert "NMQ-ACL-012 (critical) is waived: a lab" in warning


@pytest.mark.parametrize(
    ("given", "trouble"),
    [
        (waiver(-1), "NMQ-WVR-001"),
        (waiver(9, rule="NMQ-ACL-999"), "NMQ-WVR-002"),
        ({**waiver(9), "reason": ""}, "NMQ-WVR-003"),
    ],
)
def test_a_waiver_that_is_no_good_lets_nothing_by(check, given, trouble):
    result = check(HAZARD, waivers=[given])
    assert result["failed"]
    assert set(found(result)) == {"NMQ-ACL-012", trouble}
    assert "NMQ-ACL-012" in result["msg"]


def test_a_waiver_of_another_rule_lets_nothing_by(check):
    assert check(HAZARD, waivers=[waiver(9, rule="NMQ-ACL-010")])["failed"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "needs either conf"),
        ({"conf": {}, "front": {}}, "needs either conf"),
        ({"front": []}, "needs either conf"),
        ({"front": "x"}, "needs either conf"),
        ({"front": None}, "needs either conf"),
        ({"conf": None}, "needs either conf"),
        ({"front": {}, "frnt": {}}, "has no option frnt"),
        ({"front": {"client": [], 5: 1}}, "front has no 5, client"),
        ({"front": {}, "waivers": {"rule": "x"}}, "waivers must be a list"),
        ({"front": {}, "fail_on": "never"}, "fail_on must be one of none, low"),
    ],
)
def test_wrong_use(check, args, said):
    with pytest.raises(AnsibleActionFail, match=said):
        check(**args)
