# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The report as JUnit XML, read by a library that reads those of all tools."""

from __future__ import annotations

import junitparser
import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report, report_junit
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import ASKED, CRITICAL, FLEET, HIGH, HOSTILE, LOW, MEDIUM, NOW, audit, finding, texts


def junit(results, reasons=None, **more) -> junitparser.JUnitXml:
    text = report_junit.render(report.build(results, reasons or {}, NOW, **more))
    return junitparser.JUnitXml.fromstring(text.encode())


def outcome(suite, rule: str):
    """What is said of a rule, None where it passes."""
    (case,) = [case for case in suite if case.name.startswith(f"{rule} ")]
    assert case.name == f"{rule} {_policy.RULES[rule].title}"
    assert case.classname == suite.name
    (*said,) = case.result
    assert len(said) <= 1
    return said[0] if said else None


def test_a_fleet():
    xml = junit(FLEET, title="Plant 7")
    assert (xml.name, xml.tests, xml.failures, xml.errors, xml.skipped) == ("Plant 7", 2 * len(ASKED) + 1, 1, 2, 1)
    first, second, third = xml
    assert [suite.name for suite in xml] == ["edge-1", "edge-2", "edge-3"]
    assert (first.tests, first.failures, first.errors, first.skipped) == (len(ASKED), 1, 1, 1)
    assert (second.tests, second.failures, second.errors, second.skipped) == (len(ASKED), 0, 0, 0)
    assert first.timestamp == "2026-11-24T20:15:26"

    failure = outcome(first, CRITICAL)
    assert isinstance(failure, junitparser.Failure)
    assert failure.type == "critical"
    assert failure.message == "REST can be reached from the network: 0.0.0.0:8081 accepts connections"
    remedy = _policy.RULES[CRITICAL].remedy
    assert failure.text == f"severity: critical\n0.0.0.0:8081 accepts connections\nremedy: {remedy}"

    unseen = outcome(first, MEDIUM)
    assert isinstance(unseen, junitparser.Error)
    assert unseen.message == "not observed: the configuration cannot be read"

    waived = outcome(first, HIGH)
    assert isinstance(waived, junitparser.Skipped)
    assert waived.message == "waived until 2030-12-31: a lab"
    assert outcome(first, LOW) is None

    (case,) = third
    (error,) = case.result
    assert isinstance(error, junitparser.Error)
    assert (case.name, error.type, error.message) == ("audit", "not audited", "unreachable: Failed to connect")


def test_a_finding_that_no_host_is_asked_of_is_a_case_too():
    (suite,) = junit({"h": audit(finding("NMQ-WVR-001"))})
    assert isinstance(outcome(suite, "NMQ-WVR-001"), junitparser.Failure)
    assert suite.tests == len(ASKED) + 1


def test_no_host_is_no_case():
    assert junit({}).tests == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_host_is_text(text):
    xml = junit(
        {text: audit(finding(CRITICAL, text), finding(LOW, waived=f"a {text} b"))}, {f"{text}!": text}, title=text
    )
    shown = report.visible(report.plain(text))
    by_name = {suite.name: suite for suite in xml}
    assert xml.name == shown
    assert outcome(by_name[shown], CRITICAL).text.split("\n")[1] == shown
    assert outcome(by_name[shown], LOW).message == f"waived: a {shown} b"
    ((case,),) = [by_name[f"{shown}!"]]
    assert case.result[0].message == shown


@settings(max_examples=50, deadline=None)
@given(
    results=st.dictionaries(texts, st.builds(lambda text: audit(finding(HIGH, text, waived=text)), texts), max_size=2),
    reasons=st.dictionaries(texts, texts, max_size=2),
)
def test_any_text_is_well_formed(results, reasons):
    junit(results, reasons)
