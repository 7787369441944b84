# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""audit_export: files that are whole, closed and never lost. What a play makes of it is tested with the role."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import pwd
import stat
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.edgesec.nanomq.plugins.action import audit_export as action
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report, report_files
from report_samples import CRITICAL, FLEET, LOW, NOW, audit, finding

WITHOUT_HTML = ["json", "junit", "sarif"]
EVERY = {"audit.json", "audit.sarif", "audit.xml"}


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "reports"


@pytest.fixture
def export(monkeypatch, directory):
    """export(results, **options): the result of the task, with the warnings that were shown."""
    clock = [NOW]

    class Time(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return clock[0]

    monkeypatch.setattr(action.datetime, "datetime", Time)

    def run(results=None, check_mode=False, play="play-1", strategy="linear", task_vars=None, **options):
        warnings = []
        args = {"directory": str(directory), "formats": WITHOUT_HTML, **options}
        if results is not None:
            args["results"] = results
        task = SimpleNamespace(
            args=args,
            check_mode=check_mode,
            async_val=0,
            action="audit_export",
            get_play=lambda: SimpleNamespace(_uuid=play, strategy=strategy),
            _role=None,
        )
        connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/tmp/x"))
        templar = SimpleNamespace(template=lambda value, **_options: value)
        plugin = action.ActionModule(task, connection, None, None, templar)
        monkeypatch.setattr(plugin, "_display", SimpleNamespace(warning=warnings.append, deprecated=warnings.append))
        monkeypatch.setattr(plugin, "_execute_module", lambda *a, **b: pytest.fail("nothing may run on the host"))
        done = plugin.run(task_vars={"inventory_hostname": "h", **(task_vars or {})})
        return {"warned": warnings, **done}

    def later(**delta):
        clock[0] += datetime.timedelta(**delta)

    run.later = later
    return run


def current(directory) -> dict:
    return json.loads((directory / "audit.json").read_text())


def names(directory) -> set[str]:
    return set(os.listdir(directory)) - {report_files.STATE}


# --- what is written --------------------------------------------------------------------------------------------------


def test_files_are_whole_and_closed(export, directory):
    umask = os.umask(0)
    try:
        result = export(FLEET, reasons={"edge-0": "it is in the workshop"}, title="Plant 7")
    finally:
        os.umask(umask)
    assert names(directory) == EVERY
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE((directory / name).stat().st_mode) for name in os.listdir(directory)} == {0o600}
    document = current(directory)
    assert (document["run"]["title"], document["summary"]["hosts"]) == ("Plant 7", 4)
    assert result["changed"]
    assert result["summary"] == document["summary"]
    assert result["files"] == [str(directory / name) for name in sorted(EVERY)]
    assert (result["new"], result["resolved"], result["warned"]) == (None, None, [])


@pytest.mark.parametrize(("formats", "files"), [(["json"], {"audit.json"}), (["sarif"], {"audit.sarif"}), ([], set())])
def test_the_formats_that_were_asked_for_are_written(export, directory, formats, files):
    export(FLEET, formats=formats)
    assert names(directory) == files


def test_a_format_that_cannot_be_made_leaves_the_old_files(export, directory, monkeypatch):
    export(FLEET, play="one")
    old = current(directory)

    def fail(_document):
        raise OSError("no page today")

    monkeypatch.setitem(report_files.FORMATS, "html", ("audit.html", fail))
    with pytest.raises(AnsibleActionFail, match="no page today"):
        export({}, play="two", formats=["html", "json"])
    assert current(directory) == old
    assert names(directory) == EVERY


def test_check_mode_makes_the_report_and_writes_nothing(export, directory):
    assert export(FLEET, check_mode=True)["summary"]["grade"] == "F"
    assert not directory.exists()
    export({"a": audit()})
    before = {name: (directory / name).read_bytes() for name in os.listdir(directory)}
    result = export({"a": audit(finding(LOW))}, check_mode=True, play="play-2")
    assert (result["new"], result["resolved"]) == (1, 0)
    assert {name: (directory / name).read_bytes() for name in os.listdir(directory)} == before


# --- the run before ---------------------------------------------------------------------------------------------------


def test_the_next_run_is_compared_and_the_last_is_kept(export, directory):
    export({"a": audit(finding(LOW))}, play="one")
    old = current(directory)
    export.later(days=1)
    result = export({"a": audit(finding(CRITICAL))}, play="two")
    assert (result["new"], result["resolved"]) == (1, 1)
    assert current(directory)["difference"] == {
        "since": "2026-11-24T20:15:26Z",
        "new": [{"host": "a", "rule": CRITICAL}],
        "resolved": [{"host": "a", "rule": LOW}],
        "hosts_added": [],
        "hosts_gone": [],
    }
    assert names(directory) == EVERY | {"audit-20261124T201526Z.json"}
    assert json.loads((directory / "audit-20261124T201526Z.json").read_text()) == old


def test_a_play_that_writes_again_is_one_run(export, directory):
    export({"a": audit(finding(LOW))}, play="one")
    for hosts in ({"a": audit()}, {"a": audit(), "b": audit()}):
        export.later(minutes=1)
        assert export(hosts, play="two")["resolved"] == 1
    assert names(directory) == EVERY | {"audit-20261124T201526Z.json"}
    assert current(directory)["difference"]["since"] == "2026-11-24T20:15:26Z"


def test_the_first_play_of_all_has_no_difference_however_often_it_writes(export, directory):
    for hosts in ({"a": audit()}, {"a": audit(finding(LOW))}):
        assert export(hosts)["new"] is None
    assert names(directory) == EVERY


def test_the_last_reports_are_kept_and_nothing_else_is_removed(export, directory):
    directory.mkdir()
    others = {"audit-notes.json", "audit-20200101T000000Z.json.bak", "notes.txt"}
    for name in others:
        (directory / name).write_text("mine")
    (directory / "audit-20200101T000000Z.json").mkdir()
    for number in range(6):
        export({"a": audit()}, play=str(number), keep=3)
        export.later(days=1)
    earlier = names(directory) - EVERY - others - {"audit-20200101T000000Z.json"}
    assert earlier == {f"audit-202611{day}T201526Z.json" for day in (26, 27, 28)}
    assert others < names(directory)


def test_a_clock_that_went_back_does_not_cost_the_last_report(export, directory):
    for number in range(3):
        export({"a": audit()}, play=str(number), keep=1)
        export.later(days=-1)
    assert names(directory) == EVERY | {"audit-20261123T201526Z.json"}
    assert export({"a": audit(finding(LOW))}, play="2", keep=1)["new"] == 1


def test_without_json_the_report_there_is_compared_with_and_left(export, directory):
    export({"a": audit()}, play="one")
    old = current(directory)
    for _time in range(2):
        assert export({"a": audit(finding(LOW))}, play="two", formats=["sarif"])["new"] == 1
    assert current(directory) == old
    assert names(directory) == EVERY


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is no JSON"),
        (b'{"format": "edgesec.nanomq/audit", "format_ver', "it is no JSON"),
        (b"{}", "it is no report of an audit"),
        (json.dumps({"format": report.FORMAT, "format_version": 2}).encode(), "it has version 2 of the format"),
        (json.dumps({"format": report.FORMAT, "format_version": 1}).encode(), "it lacks what a report must have"),
    ],
)
def test_what_is_no_report_is_kept_and_told_of(export, directory, data, said):
    directory.mkdir()
    (directory / "audit.json").write_bytes(data)
    result = export(FLEET)
    (warning,) = result["warned"]
    assert said in warning
    assert (result["new"], current(directory)["difference"]) == (None, None)
    (kept,) = names(directory) - EVERY
    assert kept.startswith("audit.unreadable-")
    assert (directory / kept).read_bytes() == data
    # Again in the same play, and in another: nothing is lost.
    assert export(FLEET)["warned"] == []
    (directory / "audit.json").write_bytes(data)
    assert export(FLEET, play="two")["warned"] != []
    assert len(names(directory) - EVERY) == 2


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_what_is_no_file_is_set_aside_and_not_followed(export, directory, tmp_path, kind):
    directory.mkdir()
    path, secret = directory / "audit.json", tmp_path / "secret"
    secret.write_text("mine")
    {"link": lambda: path.symlink_to(secret), "directory": path.mkdir, "fifo": lambda: os.mkfifo(path)}[kind]()
    (warning,) = export(FLEET)["warned"]
    assert "audit.json is" in warning
    assert secret.read_text() == "mine"
    assert current(directory)["summary"]["hosts"] == 3
    assert len(names(directory) - EVERY) == 1


@pytest.mark.parametrize("data", ["", "{", "[]", '{"play": 5}', '{"play": "play-1"}', "\x00"])
def test_a_broken_state_is_as_none(export, directory, data):
    directory.mkdir()
    (directory / report_files.STATE).write_text(data)
    export(FLEET)
    assert names(directory) == EVERY


# --- places where nothing can be written ------------------------------------------------------------------------------


def test_a_file_in_its_place(export, directory):
    directory.write_text("mine")
    with pytest.raises(
        AnsibleActionFail, match=r"reports cannot be written to .*/reports: .*/reports is not a directory"
    ):
        export(FLEET)
    assert directory.read_text() == "mine"


def test_a_file_above_it(export, directory, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AnsibleActionFail, match="Not a directory"):
        export(FLEET, directory=str(tmp_path / "file" / "reports"))


def test_a_link_in_its_place(export, directory, tmp_path):
    (tmp_path / "real").mkdir()
    directory.symlink_to("real")
    with pytest.raises(AnsibleActionFail, match="is a symbolic link"):
        export(FLEET)
    assert os.listdir(tmp_path / "real") == []


def test_a_directory_in_which_others_can_write(export, directory):
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(AnsibleActionFail, match="writable by its group or by others"):
        export(FLEET)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_directory_of_somebody_else(export, directory):
    directory.mkdir()
    os.chown(directory, 1, 1)
    with pytest.raises(AnsibleActionFail, match="belongs to user id 1"):
        export(FLEET)


AS_NOBODY = """
import os, sys
sys.path[:0] = {path!r}
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report_files
os.setgid({gid}), os.setuid({uid})
try:
    report_files.prepare({directory!r})
    with report_files.locked({directory!r}, "play"):
        pass
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("exists", [True, False])
def test_a_directory_that_is_closed_to_the_user(directory, exists):
    nobody = pwd.getpwnam("nobody")
    if exists:
        directory.mkdir(mode=0o500)
        os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    for parent in directory.parents:
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    code = AS_NOBODY.format(path=sys.path, uid=nobody.pw_uid, gid=nobody.pw_gid, directory=str(directory))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "Permission denied" in done.stdout
    assert "reports" in done.stdout


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_report_is_kept(export, keep):
    with pytest.raises(AnsibleActionFail, match="keep must be at least 1"):
        export(FLEET, keep=keep)


@pytest.mark.parametrize("options", [{"formats": ["pdf"]}, {"unknown": 1}, {"keep": "many"}])
def test_wrong_use(export, directory, options):
    with pytest.raises(Exception, match=r"pdf|unknown|many"):
        export(FLEET, **options)
    assert not directory.exists()


# --- hosts of a play --------------------------------------------------------------------------------------------------


def play_of(hosts, batch, alive, **results) -> dict:
    """The variables of a task: all hosts of the play, those of the batch and those still in the play."""
    return {
        "ansible_play_hosts_all": list(hosts),
        "ansible_play_batch": list(batch),
        "ansible_play_hosts": list(alive),
        "hostvars": {host: {"nanomq_audit_result": results[host]} if host in results else {} for host in hosts},
    }


def told(directory) -> dict[str, str]:
    return {host["name"]: host["grade"] or host["reason"] for host in current(directory)["hosts"]}


def test_results_are_those_of_the_hosts_of_the_play(export, directory):
    export(task_vars=play_of("abcd", "ab", "abc", a=audit(finding(LOW)), c=audit(), d=audit()))
    assert told(directory) == {
        "a": "B",
        "b": "it has no result",
        "c": "the audit has not come to it yet",
        "d": "it failed, or could not be reached, before the audit",
    }


def test_a_host_that_failed_after_its_audit_keeps_its_result(export, directory):
    export(task_vars=play_of("abc", "ab", "abc", a=audit(finding(LOW)), b=audit()))
    export(task_vars=play_of("abc", "c", "bc", a=audit(finding(LOW)), b=audit(), c=audit()))
    assert told(directory) == {"a": "B", "b": "A", "c": "A"}


def test_a_result_of_an_earlier_play_does_not_count(export, directory):
    everything = {"a": audit(), "b": audit()}
    export(play="one", task_vars=play_of("ab", "ab", "ab", **everything))
    export(play="two", task_vars=play_of("ab", "b", "b", **everything))
    assert told(directory)["a"] == "it failed, or could not be reached, before the audit"


def test_another_variable_can_hold_the_results(export, directory):
    variables = play_of("a", "a", "a")
    variables["hostvars"]["a"]["mine"] = audit()
    export(variable="mine", task_vars=variables)
    assert told(directory) == {"a": "A"}


# --- strategies without a common pace ---------------------------------------------------------------------------------


def test_a_host_that_comes_last_writes(export, directory, monkeypatch):
    monkeypatch.setattr(action, "QUIET", 0.2)
    monkeypatch.setattr(action, "_order", lambda: 5)
    assert export({"a": audit()}, strategy="free")["changed"]
    assert told(directory) == {"a": "A"}


def test_a_host_that_was_started_earlier_leaves_it_to_the_other(export, directory, monkeypatch):
    report_files.prepare(str(directory))
    with report_files.locked(str(directory), "play-1") as reports:
        reports.enter(9, "later")
    monkeypatch.setattr(action, "_order", lambda: 5)
    result = export({"a": audit()}, strategy="free")
    assert (result["changed"], result["skipped"]) == (False, True)
    assert names(directory) == set()
    # The order of another play says nothing.
    assert export({"a": audit()}, strategy="free", play="play-2")["changed"]


def test_a_host_waits_for_those_that_come_meanwhile(export, directory, monkeypatch):
    monkeypatch.setattr(action, "QUIET", 5)
    monkeypatch.setattr(action, "_order", lambda: 5)

    def come():
        with report_files.locked(str(directory), "play-1") as reports:
            reports.enter(6, "later")

    report_files.prepare(str(directory))
    timer = threading.Timer(0.3, come)
    timer.start()
    result = export({"a": audit()}, strategy="free")
    timer.join()
    assert result["skipped"]


def test_processes_are_numbered_as_they_are_started():
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    for _number in range(3):
        process = context.Process(target=lambda: queue.put(action._order()))
        process.start()
        process.join()
    orders = [queue.get() for _number in range(3)]
    assert orders == sorted(set(orders))
