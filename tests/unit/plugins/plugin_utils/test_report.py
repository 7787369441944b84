# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The report as data: grades, numbers and the difference are right whatever a host says."""

from __future__ import annotations

import copy
import datetime
import json
import pathlib
import unicodedata

import ansible_collections.edgesec.nanomq as collection
import jsonschema
import pytest
import yaml
from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy, _references
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import (
    ASKED,
    CRITICAL,
    FLEET,
    HIGH,
    HOSTILE,
    LATER,
    LOW,
    MEDIUM,
    NOW,
    audit,
    finding,
    texts,
)

ROOT = pathlib.Path(collection.__path__[0])
VALIDATOR = jsonschema.Draft202012Validator(json.loads((ROOT / "docs" / "audit.schema.json").read_text()))


def build(results, reasons=None, previous=None, finished=NOW, **more) -> dict:
    """A document, checked against the schema and as what JSON gives back."""
    document = report.build(results, reasons or {}, finished, previous, **more)
    VALIDATOR.validate(document)
    again = report.read(report.render(document).encode("ascii"))
    assert again == document
    return document


def host(document, name="h") -> dict:
    return next(item for item in document["hosts"] if item["name"] == name)


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(VALIDATOR.schema)


def test_a_fleet():
    document = build(FLEET, {"edge-0": "it left the play"}, title="Plant 7")
    assert document["run"] == {
        "finished": "2026-11-24T20:15:26Z",
        "collection_version": yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
        if (ROOT / "galaxy.yml").exists()
        else json.loads((ROOT / "MANIFEST.json").read_text())["collection_info"]["version"],
        "title": "Plant 7",
    }
    assert [item["name"] for item in document["hosts"]] == ["edge-0", "edge-1", "edge-2", "edge-3"]
    assert document["summary"] == {
        "grade": "F",
        "hosts": 4,
        "audited": 2,
        "not_audited": 2,
        "grades": {"A": 1, "B": 0, "C": 0, "D": 0, "F": 1},
        "findings": {"critical": 1, "high": 0, "medium": 0, "low": 0},
        "not_observed": 1,
        "waived": 1,
        "passed": 2 * len(ASKED) - 3,
    }
    assert host(document, "edge-3")["reason"] == "unreachable: Failed to connect"
    assert host(document, "edge-0")["reason"] == "it left the play"
    assert host(document, "edge-1")["findings"] == [
        {
            "id": CRITICAL,
            "severity": "critical",
            "observed": True,
            "waived": "",
            "waived_until": "",
            "blocking": True,
            "evidence": ["0.0.0.0:8081 accepts connections"],
        },
        {
            "id": MEDIUM,
            "severity": "medium",
            "observed": False,
            "waived": "",
            "waived_until": "",
            "blocking": True,
            "evidence": ["the configuration cannot be read"],
        },
        {
            "id": HIGH,
            "severity": "high",
            "observed": True,
            "waived": "a lab",
            "waived_until": "2030-12-31",
            "blocking": True,
            "evidence": ["it was seen"],
        },
    ]
    assert document["difference"] is None


def test_the_whole_catalogue_is_in_it():
    rules = build({})["rules"]
    assert set(rules) == set(_policy.RULES)
    for name, rule in rules.items():
        known = _policy.RULES[name]
        assert {key: rule[key] for key in ("severity", "layer", "title", "why", "remedy", "source")} == {
            "severity": known.severity,
            "layer": known.layer,
            "title": known.title,
            "why": known.why,
            "remedy": known.remedy,
            "source": known.source,
        }
        assert [str(item) for item in known.references] == [
            f"{item['standard']} {item['id']} ({item['title']})" for item in rule["references"]
        ]
    assert any(rule["references"] for rule in rules.values())


def test_the_time_is_in_utc():
    zone = datetime.timezone(datetime.timedelta(hours=9))
    assert build({}, finished=NOW.astimezone(zone))["run"]["finished"] == "2026-11-24T20:15:26Z"


# --- grades -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "findings"),
    [
        ("A", []),
        ("A", [finding(CRITICAL, waived="a lab", waived_until="2030-12-31")]),
        ("A", [finding(CRITICAL, observed=False, waived="a lab", waived_until="2030-12-31")]),
        ("B", [finding(LOW)]),
        ("C", [finding(LOW), finding(MEDIUM)]),
        ("D", [finding(HIGH), finding(LOW)]),
        ("F", [finding(LOW), finding(CRITICAL)]),
        ("B", [finding(LOW, observed=False)]),
        ("F", [finding(CRITICAL, observed=False)]),
        ("C", [finding(MEDIUM), finding(CRITICAL, waived="a lab")]),
    ],
)
def test_the_grade_of_a_host_is_that_of_its_worst(expected, findings):
    document = build({"h": audit(*findings)})
    assert host(document)["grade"] == expected
    assert document["summary"]["grade"] == expected


@pytest.mark.parametrize(
    ("expected", "results"),
    [
        (None, {}),
        (None, {"a": None}),
        ("A", {"a": audit(), "b": audit()}),
        ("D", {"a": audit(), "b": audit(finding(HIGH))}),
        ("C", {"a": audit(), "b": None}),
        ("C", {"a": audit(finding(LOW)), "b": None}),
        ("F", {"a": audit(finding(CRITICAL)), "b": None}),
    ],
)
def test_the_grade_of_a_fleet_is_that_of_its_worst_and_never_good_with_a_gap(expected, results):
    assert build(results)["summary"]["grade"] == expected


# --- hosts that were not audited, or lie ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "result"),
    [
        ("it has no result", None),
        ("it has no result", "text"),
        ("it has no result", [1]),
        ("unreachable: no route", {"unreachable": True, "msg": "no route"}),
        ("the audit failed: boom", {"failed": True, "msg": "boom", "findings": [], "passed": []}),
        ("the audit failed: it is not said why", {"failed": True}),
        ("the audit was skipped", {"skipped": True}),
        ("its answer is not that of an audit", {}),
        ("its answer is not that of an audit", {"findings": {}, "passed": []}),
        ("its answer is not that of an audit", {"findings": []}),
    ],
)
def test_a_host_that_was_not_audited_says_why(said, result):
    assert host(build({"h": result})) == {
        "name": "h",
        "state": "not_audited",
        "reason": said,
        "grade": None,
        "version": None,
        "findings": [],
        "passed": [],
    }


def test_a_reason_wins_over_a_result():
    assert host(build({"h": audit()}, {"h": "its answer came too late"}))["state"] == "not_audited"


def test_a_rule_of_which_a_host_is_silent_does_not_pass():
    answer = audit()
    answer["passed"].remove(CRITICAL)
    (found,) = host(build({"h": answer}))["findings"]
    assert (found["id"], found["observed"], found["evidence"]) == (CRITICAL, False, ["the host says nothing of it"])


def test_a_rule_both_broken_and_passed_is_broken():
    answer = audit(finding(CRITICAL))
    answer["passed"].append(CRITICAL)
    shown = host(build({"h": answer}))
    assert shown["grade"] == "F"
    assert CRITICAL not in shown["passed"]


def test_a_host_decides_neither_severity_nor_words():
    lie = {**finding(CRITICAL), "severity": "low", "title": "all is well", "remedy": "none", "blocking": False}
    (found,) = host(build({"h": audit(lie)}))["findings"]
    assert (found["severity"], found["blocking"]) == ("critical", True)
    assert set(found) == {"id", "severity", "observed", "waived", "waived_until", "blocking", "evidence"}


@pytest.mark.parametrize("name", ["NMQ-NET-999", 5, None, ["NMQ-NET-001"], "<b>"])
def test_what_is_no_rule_is_left_out(name):
    answer = audit()
    answer["findings"].append({**finding(CRITICAL), "id": name})
    answer["passed"].append(name)
    shown = host(build({"h": answer}))
    assert (shown["findings"], shown["passed"]) == ([], sorted(ASKED))


@pytest.mark.parametrize(
    ("expected", "given_"),
    [
        (["the host gives no evidence"], None),
        (["the host gives no evidence"], []),
        (["the host gives no evidence"], ["", None]),
        (["text"], "text"),
        (["5", "{'a': 1}"], [5, {"a": 1}]),
    ],
)
def test_evidence_is_a_list_of_texts(expected, given_):
    (found,) = host(build({"h": audit(finding(LOW, evidence=given_))}))["findings"]
    assert found["evidence"] == expected


def test_a_host_cannot_fill_the_report():
    (found,) = host(build({"h": audit(finding(LOW, evidence=["x" * 10**6] * 10**4))}))["findings"]
    assert len(found["evidence"]) == report.MOST + 1
    assert found["evidence"][-1] == f"... and {10**4 - report.MOST} more"
    assert found["evidence"][0].endswith(f"x ... ({10**6 - report.LONGEST} more characters)")
    assert max(map(len, found["evidence"])) < report.LONGEST + 40


@pytest.mark.parametrize("version", [None, "", 5, {"not_observed": "it does not run"}])
def test_a_version_is_a_text_or_nothing(version):
    assert host(build({"h": audit(version=version)}))["version"] is None


@pytest.mark.parametrize("until", [None, "", "next year", "2030-1-1", "2030-12-31\n", "٢٠٣٠-١٢-٣١"])
def test_the_end_of_a_waiver_is_a_day_or_nothing(until):
    (found,) = host(build({"h": audit(finding(LOW, waived="a lab", waived_until=until))}))["findings"]
    assert (found["waived"], found["waived_until"]) == ("a lab", "")


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.sampled_from(sorted(_policy.RULES)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "evidence", "waived", "waived_until", "observed", "severity"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
_ANSWERS = st.dictionaries(
    st.sampled_from(["findings", "passed", "observation", "msg", "failed", "unreachable"]), _JUNK, max_size=5
)


@settings(max_examples=150, deadline=None)
@given(results=st.dictionaries(texts, _ANSWERS | _JUNK, max_size=3), reasons=st.dictionaries(texts, texts, max_size=2))
def test_whatever_hosts_answer_there_is_a_report(results, reasons):
    first = build(results, reasons)
    second = build(results, reasons, first, LATER)
    assert second["difference"] == {
        "since": "2026-11-24T20:15:26Z",
        "new": [],
        "resolved": [],
        "hosts_added": [],
        "hosts_gone": [],
    }


# --- hostile text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_json_keeps_text_but_for_what_no_encoding_takes(text):
    answer = audit(finding(LOW, text, waived=text, waived_until="2030-12-31"), version=text)
    document = build({text: answer}, {"down": text})
    expected = text.replace("\x00", "\\x00").replace("\udc80", "\\udc80").replace("\ud800", "\\ud800")
    shown = host(document, expected)
    assert shown["findings"][0]["evidence"] == [expected]
    assert shown["findings"][0]["waived"] == expected.strip()
    assert shown["version"] == expected
    assert host(document, "down")["reason"] == expected
    file = report.render(document)
    assert file.isascii()
    assert file.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("ünïcödé ☃ 🦟 日本", "ünïcödé ☃ 🦟 日本"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\r\tc", "a\\x0ab\\x0d\\x09c"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\u200b\u200d\ufeff\u00ad", "\\u200b\\u200d\\ufeff\\xad"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\U000e0041\ufe0f\u3164", "\\U000e0041\\ufe0f\\u3164"),
        ("\ud800\ufffe\ufdd0\U0010ffff", "\\ud800\\ufffe\\ufdd0\\U0010ffff"),
    ],
)
def test_what_hides_is_shown(text, shown):
    assert report.visible(text) == shown


@settings(max_examples=300, deadline=None)
@given(texts)
def test_shown_text_has_nothing_that_a_terminal_obeys(text):
    shown = report.visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert report.visible(shown) == shown
    shown.encode()


# --- the difference ---------------------------------------------------------------------------------------------------


def since(before: dict, now: dict) -> dict:
    return build(now, previous=build(before), finished=LATER)["difference"]


@pytest.mark.parametrize(
    ("before", "now", "new", "resolved"),
    [
        (audit(), audit(), [], []),
        (audit(), audit(finding(LOW)), [LOW], []),
        (audit(finding(LOW)), audit(), [], [LOW]),
        (audit(finding(LOW)), audit(finding(LOW, "something else")), [], []),
        # What nobody could tell was open, and is.
        (audit(finding(LOW, observed=False)), audit(finding(LOW)), [], []),
        (audit(finding(LOW)), audit(finding(LOW, observed=False)), [], []),
        (audit(), audit(finding(LOW, observed=False)), [LOW], []),
        # A waiver opens and closes nothing but the finding itself.
        (audit(finding(LOW)), audit(finding(LOW, waived="a lab")), [], []),
        (audit(finding(LOW, waived="a lab")), audit(finding(LOW)), [LOW], []),
        (audit(finding(LOW, waived="a lab")), audit(), [], []),
        # Of a host that is not audited nothing is known.
        (audit(finding(LOW)), None, [], []),
        (None, audit(finding(LOW)), [LOW], []),
        (None, None, [], []),
    ],
)
def test_the_difference(before, now, new, resolved):
    assert since({"h": before}, {"h": now}) == {
        "since": "2026-11-24T20:15:26Z",
        "new": [{"host": "h", "rule": rule} for rule in new],
        "resolved": [{"host": "h", "rule": rule} for rule in resolved],
        "hosts_added": [],
        "hosts_gone": [],
    }


def test_hosts_come_and_go():
    result = since({"a": audit(finding(LOW)), "b": audit()}, {"c": audit(finding(HIGH)), "b": audit()})
    assert (result["hosts_added"], result["hosts_gone"]) == (["c"], ["a"])
    assert (result["new"], result["resolved"]) == ([{"host": "c", "rule": HIGH}], [])


def test_a_rule_that_the_catalogue_lost_is_not_resolved():
    before = build({"h": audit()})
    before["hosts"][0]["findings"] = [{"id": "NMQ-OLD-001", "waived": ""}]
    assert build({"h": audit()}, previous=before)["difference"]["resolved"] == []


# --- files ------------------------------------------------------------------------------------------------------------


def broken(**changes) -> bytes:
    document = {**report.build(FLEET, {}, NOW), **changes}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("said", "data"),
    [
        ("it is no JSON", b""),
        ("it is no JSON", b"\xff\xfe\x00"),
        ("it is no JSON", b'{"format": '),
        ("it is no JSON", b"[" * 100000),
        ("it is no report of an audit", b"[]"),
        ("it is no report of an audit", b"{}"),
        ("it is no report of an audit", broken(format="other")),
        ("it has version 2 of the format, and this collection knows 1", broken(format_version=2)),
        (r"it has version \\x1b\[2J of the format", broken(format_version="\x1b[2J")),
        ("it lacks what a report must have", broken(run={})),
        ("it lacks what a report must have", broken(run={"finished": "yesterday"})),
        ("it lacks what a report must have", broken(run=None)),
        ("it lacks what a report must have", broken(hosts=None)),
        ("it lacks what a report must have", broken(hosts=[1])),
        ("it lacks what a report must have", broken(hosts=[{"name": ["a"], "findings": []}])),
        ("it lacks what a report must have", broken(hosts=[{"name": "a", "findings": [{"id": [], "waived": ""}]}])),
        ("it lacks what a report must have", broken(hosts=[{"name": "a", "findings": [{"id": "x"}]}])),
    ],
)
def test_what_is_no_report_is_refused_with_the_reason(said, data):
    with pytest.raises(report.Unreadable, match=said):
        report.read(data)


def test_the_schema_refuses_what_is_no_report():
    good = build(FLEET)
    for change in (
        lambda d: d["hosts"][0].update(grade=None),
        lambda d: d["hosts"][0]["findings"][0].update(evidence=[]),
        lambda d: d["hosts"][2].update(reason=""),
        lambda d: d["summary"].update(more=1),
        lambda d: d["rules"].update(other={}),
        lambda d: d.pop("difference"),
        lambda d: d["run"].update(finished="yesterday"),
    ):
        bad = copy.deepcopy(good)
        change(bad)
        assert not VALIDATOR.is_valid(bad)


# --- references -------------------------------------------------------------------------------------------------------


def test_references_are_of_rules_and_every_title_is_used():
    assert _references.rules() <= set(_policy.RULES)
    used = {(item.standard, item.id) for rule in _policy.RULES.values() for item in rule.references}
    assert used == {(standard, name) for standard, titles in _references.TITLES.items() for name in titles}
    for rule in _policy.RULES.values():
        assert len(rule.references) == len(set(rule.references))
