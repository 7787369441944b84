# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The role nanomq_audit in real plays: one report of every host, whatever strategy, batch or failure.

The module `audit` is a stand-in that answers what the test says; all else is the collection's own.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import time

import ansible_collections.edgesec.nanomq as collection
import pytest
import yaml
from report_samples import CRITICAL, HIGH, LOW, audit, finding

STAND_IN = """\
#!/usr/bin/python
import json, os, time
from ansible.module_utils.basic import AnsibleModule
options = {"unit": {}, "package": {}, "conf_path": {}, "user": {}, "waivers": {"type": "list"}}
options.update(token={"no_log": True}, controller_time={"type": "float"})
module = AnsibleModule(options, supports_check_mode=True)
answer = json.load(open(os.path.join(os.environ["ANSWERS"], module.params["conf_path"])))
time.sleep(answer.pop("sleep", 0))
(module.fail_json if "msg" in answer else module.exit_json)(**answer)
"""
HTML = """\
# Stands in for the page.
from __future__ import annotations


def render(document):
    return "<!doctype html>"
"""


@pytest.fixture(scope="module")
def collections(tmp_path_factory) -> pathlib.Path:
    """A copy of the collection with a stand-in for the module `audit`."""
    folder = tmp_path_factory.mktemp("collections")
    tree = folder / "ansible_collections" / "edgesec" / "nanomq"
    tree.mkdir(parents=True)
    source = pathlib.Path(collection.__path__[0])
    for name in ("plugins", "roles", "playbooks", "meta"):
        shutil.copytree(source / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("galaxy.yml", "MANIFEST.json"):
        if (source / name).exists():
            shutil.copy(source / name, tree)
    (tree / "plugins" / "modules" / "audit.py").write_text(STAND_IN)
    (tree / "plugins" / "plugin_utils" / "report_html.py").write_text(HTML)
    return folder


@pytest.fixture
def play(tmp_path, collections):
    """play(answers, **options): run the role, and return the process; the reports are in `play.reports`."""
    answers, reports = tmp_path / "answers", tmp_path / "reports"
    answers.mkdir()

    def run(hosts: dict, *arguments: str, before=(), variables=None, **play_options) -> subprocess.CompletedProcess:
        inventory = {"all": {"hosts": {}}}
        for name, answer in hosts.items():
            connection = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
            if answer is None:
                connection = {"ansible_host": "nowhere.invalid", "ansible_connection": "ssh"}
            else:
                (answers / name).write_text(json.dumps(answer))
            inventory["all"]["hosts"][name] = connection
        plays = [
            {
                "hosts": "all",
                "gather_facts": False,
                "pre_tasks": list(before),
                "roles": ["edgesec.nanomq.nanomq_audit"],
                "vars": {
                    "nanomq_audit_conf_path": "{{ inventory_hostname }}",
                    "nanomq_audit_reports_dir": str(reports),
                    **(variables or {}),
                },
                **play_options,
            }
        ]
        (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
        (tmp_path / "play.yml").write_text(yaml.safe_dump(plays))
        command = [sys.executable, "-m", "ansible", "playbook", "-i", "inventory.yml", *arguments, "play.yml"]
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "PYTHONPATH": str(collections),
            "ANSWERS": str(answers),
            "ANSIBLE_NOCOLOR": "1",
            "COLUMNS": "200",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_FORKS": "5",
        }
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        run.output = done.stdout + done.stderr
        return done

    run.reports = reports
    return run


def states(play) -> dict[str, str]:
    """{host: grade, or why it was not audited} of the report."""
    document = json.loads((play.reports / "audit.json").read_text())
    return {host["name"]: host["grade"] or host["reason"] for host in document["hosts"]}


def names(play) -> set[str]:
    return {path.name for path in play.reports.iterdir() if path.name != ".audit.state"}


CLEAN, BAD, BROKEN, GONE = audit(), audit(finding(CRITICAL)), {"msg": "it fell over"}, None
EVERY = {"audit.html", "audit.json", "audit.sarif", "audit.xml"}


def test_every_host_is_in_one_report_and_what_failed_fails(play):
    done = play({"a": CLEAN, "b": BAD, "c": BROKEN, "d": GONE})
    assert done.returncode == 2, play.output
    found = states(play)
    assert (found["a"], found["b"], found["c"]) == ("A", "F", "the audit failed: it fell over")
    assert found["d"].startswith("unreachable: ")
    assert names(play) == EVERY
    assert stat.S_IMODE(play.reports.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in play.reports.iterdir()} == {0o600}
    assert done.stdout.count("TASK [edgesec.nanomq.nanomq_audit : Write the reports]") == 1
    assert "The host was not audited: the audit failed: it fell over" in done.stdout
    assert "The host was not audited: unreachable: " in done.stdout


def test_clean_hosts_pass_and_nothing_counts_as_a_change(play):
    done = play({"a": CLEAN, "b": CLEAN})
    assert done.returncode == 0, play.output
    assert done.stdout.count("changed=0") == 2


def test_the_reports_are_written_before_findings_fail_hosts(play):
    done = play({"a": BAD, "b": CLEAN}, variables={"nanomq_audit_fail_on": "high"})
    assert done.returncode == 2, play.output
    assert states(play) == {"a": "F", "b": "A"}


@pytest.mark.parametrize("hosts", [{"a": BROKEN}, {"a": GONE, "b": GONE}])
def test_a_fleet_of_which_nobody_was_audited_has_its_report(play, hosts):
    assert play(hosts).returncode == 2, play.output
    assert set(states(play)) == set(hosts)
    assert json.loads((play.reports / "audit.json").read_text())["summary"]["grade"] is None


def test_with_a_limit_the_report_is_of_those_hosts(play):
    assert play({"a": CLEAN, "b": CLEAN, "c": CLEAN}, "--limit", "b,c").returncode == 0, play.output
    assert states(play) == {"b": "A", "c": "A"}


def test_a_host_that_hangs_is_given_up_and_said(play):
    hosts = {"a": CLEAN, "b": {**CLEAN, "sleep": 60}}
    began = time.monotonic()
    assert play(hosts, variables={"nanomq_audit_timeout": 3}).returncode == 2, play.output
    assert time.monotonic() - began < 30
    found = states(play)
    assert found["a"] == "A"
    assert "3 second" in found["b"]


def test_a_host_that_was_lost_before_the_role_is_in_the_report(play):
    lose = {"ansible.builtin.fail": {"msg": "lost"}, "when": "inventory_hostname == 'b'"}
    assert play({"a": CLEAN, "b": CLEAN}, before=[lose]).returncode == 2, play.output
    assert states(play) == {"a": "A", "b": "it failed, or could not be reached, before the audit"}


def test_batches_end_in_one_report_compared_with_the_run_before(play):
    hosts = {"a": BAD, "b": CLEAN, "c": audit(finding(LOW)), "d": CLEAN, "e": BROKEN}
    assert play({**hosts, "a": CLEAN}, serial=2).returncode == 2, play.output
    assert play(hosts, serial=2, variables={"nanomq_audit_fail_on": "critical"}).returncode == 2, play.output
    assert states(play) == {"a": "F", "b": "A", "c": "B", "d": "A", "e": "the audit failed: it fell over"}
    difference = json.loads((play.reports / "audit.json").read_text())["difference"]
    assert (difference["new"], difference["resolved"]) == ([{"host": "a", "rule": CRITICAL}], [])
    assert len(names(play) - EVERY) == 1


def test_a_batch_that_ends_the_play_leaves_a_report_of_all(play):
    hosts = {"a": BAD, "b": BAD, "c": CLEAN}
    assert play(hosts, serial=2, variables={"nanomq_audit_fail_on": "critical"}).returncode == 2, play.output
    assert states(play) == {"a": "F", "b": "F", "c": "the audit has not come to it yet"}


@pytest.mark.parametrize("strategy", ["free", "ansible.builtin.host_pinned"])
def test_hosts_that_go_at_their_own_pace_end_in_one_report(play, strategy):
    hosts = {f"h{number}": audit(finding(CRITICAL if number == 3 else HIGH)) for number in range(8)}
    hosts["h3"]["sleep"] = 2
    hosts["h5"] = {**BROKEN, "sleep": 0.5}
    hosts["h6"] = GONE
    done = play(hosts, strategy=strategy, variables={"nanomq_audit_fail_on": "critical"})
    assert done.returncode == 2, play.output
    found = states(play)
    assert found.pop("h6").startswith("unreachable: ")
    assert found == {
        **{f"h{number}": "D" for number in (0, 1, 2, 4, 7)},
        "h3": "F",
        "h5": "the audit failed: it fell over",
    }
    assert names(play) == EVERY


def test_a_host_that_is_lost_late_is_in_the_report_of_the_others(play):
    lose = {"ansible.builtin.shell": "sleep 3; false", "when": "inventory_hostname == 'b'"}
    assert play({"a": BAD, "b": CLEAN}, before=[lose], strategy="free").returncode == 2, play.output
    assert states(play) == {"a": "F", "b": "it has no result"}


def test_where_the_reports_cannot_be_written_the_findings_are_shown(play):
    play.reports.write_text("a file")
    done = play({"a": BAD, "b": CLEAN})
    assert done.returncode == 2, play.output
    assert "reports is not a directory" in play.output
    assert "a: 1 finding (1 critical)" in done.stdout
    assert "b: 0 findings" in done.stdout


def test_check_mode_writes_nothing(play):
    done = play({"a": BAD}, "--check", variables={"nanomq_audit_fail_on": "critical"})
    assert done.returncode == 2
    assert "a: 1 finding (1 critical)" in done.stdout
    assert not play.reports.exists()


def test_without_a_directory_there_is_no_report(play):
    assert play({"a": CLEAN}, variables={"nanomq_audit_reports_dir": ""}).returncode == 0, play.output
    assert not play.reports.exists()


def test_templates_and_escapes_of_a_host_are_text(play):
    evil = "{{ lookup('pipe', 'touch pwned') }} \x1b[2J\u202e{% raw %}"
    done = play({"a": audit(finding(CRITICAL, evil))})
    assert done.returncode == 0, play.output
    document = json.loads((play.reports / "audit.json").read_text())
    assert document["hosts"][0]["findings"][0]["evidence"] == [evil]
    assert "\x1b" not in play.output
    assert "\u202e" not in play.output
    assert "lookup('pipe'" in done.stdout
    assert r"\x1b[2J\u202e" in done.stdout
    assert not (play.reports.parent / "pwned").exists()
