# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""audit_report: what it prints is harmless to a terminal, and a host that was not audited fails."""

from __future__ import annotations

import re
import unicodedata
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.edgesec.nanomq.plugins.action import audit_report as action
from hypothesis import given, settings
from report_samples import CRITICAL, HIGH, HOSTILE, LOW, audit, finding, texts

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def show(monkeypatch):
    """show(result, **options): the result of the task, with what was printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(result, verbosity=0, host="edge-1", **options):
        printed = []
        task = SimpleNamespace(args={"result": result, **options}, check_mode=False, async_val=0, action="audit_report")
        connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/tmp/x"))
        plugin = action.ActionModule(task, connection, None, None, None)
        monkeypatch.setattr(plugin, "_display", SimpleNamespace(display=printed.append, verbosity=verbosity))
        monkeypatch.setattr(plugin, "_execute_module", lambda *a, **b: pytest.fail("nothing may run on the host"))
        done = plugin.run(task_vars={"inventory_hostname": host})
        return {"failed": False, "printed": "\n".join(printed), **done}

    return run


def hidden(text: str) -> str:
    """What of a text a terminal obeys or does not draw, the line ends and colours that the table means left out."""
    return "".join(
        c for c in COLOUR.sub("", text) if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    )


@pytest.mark.parametrize("verbosity", [0, 1])
@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_host_is_printed_as_text(show, text, verbosity):
    result = audit(
        finding(CRITICAL, text, title=text, remedy=text),
        finding(HIGH, waived=f"a {text}"),
        finding(LOW, text, observed=False),
    )
    printed = show(result, verbosity, host=text)["printed"]
    assert hidden(printed) == ""
    assert printed.count("\n") == 3 + 4 * verbosity
    printed.encode()


def test_an_escape_shows_what_it_is(show):
    printed = show(audit(finding(CRITICAL, "\x1b[2Jgone \u202eevil\nfake: 0 findings")))["printed"]
    assert r"\x1b[2Jgone \u202eevil\x0afake: 0 findings" in printed


@settings(max_examples=100, deadline=None)
@given(text=texts, host=texts)
def test_any_text_is_printed_as_text(text, host):
    findings = action.report.findings(audit(finding(CRITICAL, text), finding(LOW, text, observed=False)))
    for verbose in (False, True):
        for line in action.table(host, findings, 7, 100, verbose):
            assert hidden(line) == ""
            assert "\n" not in line


def test_a_waiver_shows_its_end(show):
    printed = show(audit(finding(HIGH, waived="a lab", waived_until="2030-12-31")))["printed"]
    assert "waived until 2030-12-31: a lab" in printed


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"failed": True, "msg": "boom\x1b[2J"}, r"the audit failed: boom\\x1b\[2J"),
        ({"unreachable": True, "msg": "no route"}, "unreachable: no route"),
        ({"skipped": True}, "the audit was skipped"),
        ({}, "its answer is not that of an audit"),
    ],
)
@pytest.mark.parametrize("fail_on", ["none", "critical"])
def test_a_host_that_was_not_audited_fails_whatever_fails_on(show, result, said, fail_on):
    done = show(result, fail_on=fail_on)
    assert done["failed"]
    assert re.fullmatch(f"The host was not audited: {said}", done["msg"])


@pytest.mark.parametrize(("fail_on", "fails"), [("none", False), ("low", True), ("high", True), ("critical", False)])
def test_findings_fail_from_a_severity_on(show, fail_on, fails):
    done = show(audit(finding(HIGH), finding(CRITICAL, waived="a lab", waived_until="2030-12-31")), fail_on=fail_on)
    assert done["failed"] == fails
    assert not fails or done["msg"].endswith(f": {HIGH}")


def test_a_host_that_lies_about_a_severity_fails_all_the_same(show):
    assert show(audit({**finding(CRITICAL), "severity": "low"}), fail_on="critical")["failed"]


@pytest.mark.parametrize("result", [None, "text", []])
def test_what_is_no_result_is_wrong_use(show, result):
    with pytest.raises(AnsibleActionFail, match="must be what"):
        show(result)


def test_wrong_use(show):
    with pytest.raises(AnsibleActionFail, match="fail_on must be none or one of low"):
        show(audit(), fail_on="never")
