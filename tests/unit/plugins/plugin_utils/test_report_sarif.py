# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The report as SARIF: judged by the official schema, by the SARIF Multitool, and by what it says."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
import urllib.parse

import jsonschema
import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report, report_sarif
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import CRITICAL, FLEET, HIGH, HOSTILE, LATER, LOW, MEDIUM, NOW, audit, finding, texts

ROOT = pathlib.Path(__file__).parents[4]
EVIL = {text: audit(finding(LOW, *HOSTILE), finding(HIGH, waived=text, waived_until="2030-12-31")) for text in HOSTILE}


def sarif(results, reasons=None, previous=None) -> dict:
    """The run of a log."""
    document = report.build(results, reasons or {}, LATER, previous)
    text = report_sarif.render(document)
    assert text.isascii()
    log = json.loads(text)
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    return log["runs"][0]


def result(run: dict, host: str, rule: str) -> dict:
    (found,) = [
        item
        for item in run["results"]
        if item["ruleId"] == rule and item["locations"][0]["logicalLocations"][0]["name"] == host
    ]
    return found


# --- what others say of it --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def multitool() -> pathlib.Path:
    """The folder of the SARIF Multitool, which holds the schema too."""
    if platform.machine() != "x86_64":
        pytest.skip("the SARIF Multitool for Linux is for x86_64 alone")
    done = subprocess.run([ROOT / "tests" / "sarif-multitool"], stdout=subprocess.PIPE, text=True, check=True)
    return pathlib.Path(done.stdout.strip())


@pytest.fixture(scope="session")
def schema(multitool) -> jsonschema.protocols.Validator:
    loaded = json.loads((multitool / "sarif-2.1.0.json").read_text(encoding="utf-8-sig"))
    return jsonschema.validators.validator_for(loaded)(loaded, format_checker=jsonschema.FormatChecker())


def logs() -> dict[str, str]:
    """Logs of all kinds."""
    before = report.build({**FLEET, "edge-2": audit(finding(LOW))}, {}, NOW)
    documents = {
        "fleet": report.build(FLEET, {"edge-0": "it left the play"}, LATER),
        "difference": report.build(FLEET, {}, LATER, before),
        "hostile": report.build({**EVIL, "..": audit(finding(LOW))}, {f"{text}!": text for text in HOSTILE}, LATER),
        "clean": report.build({"a": audit()}, {}, LATER),
        "empty": report.build({}, {}, LATER),
    }
    return {name: report_sarif.render(document) for name, document in documents.items()}


def test_the_schema_of_sarif_takes_it(schema):
    for log in logs().values():
        schema.validate(json.loads(log))
    broken = json.loads(logs()["fleet"])
    broken["runs"][0]["results"][0]["level"] = "bad"
    assert not schema.is_valid(broken)


@settings(max_examples=25, deadline=None)
@given(results=st.dictionaries(texts, st.builds(lambda text: audit(finding(CRITICAL, text)), texts), max_size=3))
def test_the_schema_of_sarif_takes_any_text(schema, results):
    schema.validate(json.loads(report_sarif.render(report.build(results, {}, LATER))))


def judge(multitool: pathlib.Path, folder: pathlib.Path, files: dict[str, str]) -> dict[str, set[tuple[str, str]]]:
    """{file: {(level, rule)}} of what the SARIF Multitool has to say, notes included."""
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.sarif").write_text(text)
    output = folder / "judgement.json"
    command = [multitool / "Sarif.Multitool", "validate", folder / "*.sarif", "--output", output]
    command += ["--rule-kind", "Sarif;Ghas", "--level", "Error;Warning;Note"]
    # Neither needs the libraries of a desktop, nor leaves anything in a home.
    environment = {**os.environ, "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1", "HOME": str(folder)}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, timeout=120, check=True)
    said: dict[str, set[tuple[str, str]]] = {name: set() for name in files}
    for item in json.loads(output.read_text(encoding="utf-8-sig"))["runs"][0]["results"]:
        uri = item["locations"][0]["physicalLocation"]["artifactLocation"]
        name = urllib.parse.unquote(uri["uri"]).rpartition("/")[2].removesuffix(".sarif")
        said[name].add((item.get("level", "warning"), item["ruleId"]))
    return said


def test_the_sarif_multitool_takes_it(multitool, tmp_path):
    def broken(change) -> str:
        log = json.loads(logs()["fleet"])
        change(log["runs"][0])
        return json.dumps(log)

    files = {
        **logs(),
        "bad_uri": broken(lambda run: run["results"][0]["locations"][0]["physicalLocation"].update(
            artifactLocation={"uri": "a b|c:\\x"})),
        "bad_index": broken(lambda run: run["results"][0].update(ruleIndex=999)),
        "bad_place": broken(lambda run: run["results"][0].update(locations=[])),
    }  # fmt: skip
    said = judge(multitool, tmp_path / "logs", files)
    # What it cannot read it passes over in silence: of each there must be something that it said.
    assert {name for name, found in said.items() if not found} == set()
    bad = {name: sorted(rule for level, rule in found if level != "note") for name, found in said.items()}
    assert bad == {
        **{name: [] for name in logs()},
        "bad_uri": ["SARIF1002"],
        "bad_index": ["SARIF1009"],
        "bad_place": ["GH1015", "GH1017", "GH2012"],
    }


# --- what it says -----------------------------------------------------------------------------------------------------


def test_all_rules_are_in_it():
    rules = sarif({})["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(_policy.RULES)
    for rule in rules:
        known = _policy.RULES[rule["id"]]
        score = float(rule["properties"]["security-severity"])
        level = rule["defaultConfiguration"]["level"]
        assert (level, score > 9, score > 7, score > 4, score > 0) == {
            "critical": ("error", True, True, True, True),
            "high": ("error", False, True, True, True),
            "medium": ("warning", False, False, True, True),
            "low": ("note", False, False, False, True),
        }[known.severity]
        assert known.remedy.replace("{", "{{").replace("}", "}}") in rule["help"]["text"]
        assert "helpUri" not in rule


def test_a_finding_is_a_failure_at_its_host():
    run = sarif(FLEET)
    found = result(run, "edge-1", CRITICAL)
    assert (found["kind"], found["level"]) == ("fail", "error")
    assert run["tool"]["driver"]["rules"][found["ruleIndex"]]["id"] == CRITICAL
    assert found["message"]["text"] == (
        "edge-1: REST can be reached from the network: 0.0.0.0:8081 accepts connections."
    )
    place = found["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place["uri"] == "edge-1/etc/nanomq/nanomq.conf"
    assert found["suppressions"] == []
    assert {item["ruleId"] for item in run["results"]} == {CRITICAL, HIGH, MEDIUM}


def test_what_was_not_observed_is_for_review():
    found = result(sarif(FLEET), "edge-1", MEDIUM)
    assert (found["kind"], found["level"]) == ("review", "none")
    assert "not observed: the configuration cannot be read" in found["message"]["text"]


def test_a_waiver_is_a_suppression():
    (suppression,) = result(sarif(FLEET), "edge-1", HIGH)["suppressions"]
    assert suppression == {
        "kind": "external",
        "status": "accepted",
        "justification": "a lab (until 2030-12-31)",
        "properties": {"expires": "2030-12-31"},
    }


@pytest.mark.parametrize(("results", "successful"), [({"a": audit(finding(CRITICAL))}, True), (FLEET, False)])
def test_an_audit_of_all_hosts_is_successful(results, successful):
    (invocation,) = sarif(results)["invocations"]
    assert invocation["executionSuccessful"] == successful
    said = [item["message"]["text"] for item in invocation["toolExecutionNotifications"]]
    assert said == ([] if successful else ["edge-3 was not audited: unreachable: Failed to connect."])


def test_fingerprints_are_the_same_in_every_run_and_of_one_finding_alone():
    def prints(run):
        return [tuple(item["partialFingerprints"].values()) for item in run["results"]]

    hosts = {name: audit(finding(LOW), finding(HIGH)) for name in "ab"}
    first = prints(sarif(hosts))
    again = prints(sarif({name: audit(finding(LOW, "other"), finding(HIGH, observed=False)) for name in "ab"}))
    assert sorted(first) == sorted(again)
    assert len(set(first)) == 4


def test_the_baseline_is_the_run_before():
    before = report.build({"a": audit(finding(LOW), finding(HIGH, waived="a lab"))}, {}, NOW)
    hosts = {"a": audit(finding(LOW), finding(CRITICAL), finding(HIGH, waived="a lab"))}
    run = sarif(hosts, previous=before)
    states = {item["ruleId"]: item.get("baselineState") for item in run["results"]}
    assert states == {LOW: "unchanged", CRITICAL: "new", HIGH: None}
    assert not [item for item in sarif(hosts)["results"] if "baselineState" in item]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_host_is_neither_link_nor_placeholder_nor_path(text):
    run = sarif({text: audit(finding(LOW, text, waived=text))}, {f"{text}!": text})
    (found,) = run["results"]
    shown = report.visible(report.plain(text))
    messages = [
        found["message"]["text"],
        run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"],
    ]
    for message in messages:
        assert "](" not in message
        assert report.visible(message) == message
        assert "{" not in message.replace("{{", "").replace("}}", "")
    assert found["locations"][0]["logicalLocations"][0]["name"] == shown
    uri = found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri.count("/") == 3
    assert urllib.parse.unquote(uri) == f"{report.plain(text)}/etc/nanomq/nanomq.conf"


@pytest.mark.parametrize("name", [".", "..", "..."])
def test_a_host_named_by_dots_is_no_step_in_a_path(name):
    (found,) = sarif({name: audit(finding(LOW))})["results"]
    assert found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].startswith(f"host{name}/")
