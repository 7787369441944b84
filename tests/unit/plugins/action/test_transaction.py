# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import contextlib
import copy
import os
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible_collections.edgesec.nanomq.plugins.action import transaction as action
from ansible_collections.edgesec.nanomq.plugins.module_utils import _files
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import Change
from ansible_collections.edgesec.nanomq.plugins.modules import transaction as module

ARGS = {"name": "firewall", "files": [], "confirm_within": 60}
OPEN = {"changed": True, "unconfirmed": True, "transaction": "T-1"}


class Host:
    """A host and the connection to it. `answers` holds what comes back of each run, or an error to raise."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.log = []
        self.now = 0.0
        self._shell = SimpleNamespace(tmpdir="/tmp/x")

    def reset(self):
        self.log.append("reset")

    def execute(self, module_name, module_args, task_vars=None):
        assert module_name == action.MODULE
        self.log.append(copy.deepcopy(module_args))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def run(monkeypatch):
    def run(host, args):
        task = SimpleNamespace(args=args, check_mode=False, async_val=0, action="transaction")
        plugin = action.ActionModule(task, host, None, None, None)
        monkeypatch.setattr(plugin, "_execute_module", host.execute)
        monkeypatch.setattr(plugin, "_display", SimpleNamespace(warning=host.log.append))
        monkeypatch.setattr(action.time, "sleep", host.sleep)
        monkeypatch.setattr(action.time, "monotonic", lambda: host.now)
        return plugin.run(task_vars={})

    return run


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_contents_that_no_diff_may_show_travel_as_secrets(run):
    files = [
        {"dest": "/a", "content": "open"},
        {"dest": "/b", "content": "hidden-B", "diff": "hide"},
        {"dest": "/c", "content": "hidden-C", "diff": "redact"},
        {"dest": "/d", "state": "absent", "diff": "hide"},
        {"dest": "/e", "content": "shown", "diff": "show"},
        {"dest": "/f", "content": "", "diff": "hide"},
    ]
    args = {"name": "broker", "files": files, "secret_contents": {"/z": "given"}}
    before = copy.deepcopy(args)
    host = Host({"changed": True})
    assert run(host, args) == {"changed": True}
    (sent,) = host.log
    assert sent["secret_contents"] == {"/b": "hidden-B", "/c": "hidden-C", "/f": "", "/z": "given"}
    assert "hidden" not in str(sent["files"])
    assert sent["files"][0] == {"dest": "/a", "content": "open"}
    assert sent["files"][4]["content"] == "shown"
    assert args == before, "the task's own arguments stay as they are, for its next run"


# --- confirmation -----------------------------------------------------------------------------------------------------


def test_a_run_without_confirmation_is_one_run(run):
    host = Host({"changed": False, "unconfirmed": False})
    run(host, dict(ARGS))
    assert len(host.log) == 1


def test_a_change_is_confirmed_over_a_new_connection(run):
    host = Host(OPEN, {"changed": True, "generation": 7})
    result = run(host, dict(ARGS))
    assert not result.get("failed")
    assert (result["unconfirmed"], result["generation"], result["changed"]) == (False, 7, True)
    assert host.log[1:] == ["reset", {"name": "firewall", "state": "confirmed", "transaction": "T-1"}]


def test_a_failed_run_is_not_confirmed(run):
    host = Host({**OPEN, "failed": True})
    assert run(host, dict(ARGS))["failed"]
    assert len(host.log) == 1


def undone(identity="T-1"):
    return {"last": {"id": identity, "result": "undone", "reason": "nobody confirmed"}}


def test_a_lost_connection_waits_for_the_undo_and_says_so(run):
    lost = AnsibleConnectionFailure("connection timed out")
    host = Host(OPEN, lost, lost, undone("T-0"), undone())
    result = run(host, dict(ARGS))
    assert result["failed"]
    assert result["undone"]
    assert not result["unconfirmed"]
    assert not result.get("unreachable")
    assert "undid it after 60 s" in result["msg"]
    assert "connection timed out" in result["msg"]
    assert host.now >= 60
    assert host.log[-1] == {"name": "firewall", "state": "status"}


def test_a_host_that_stays_away_is_unreachable(run):
    host = Host(OPEN, AnsibleConnectionFailure("no route"))
    result = run(host, dict(ARGS))
    assert result["failed"]
    assert result["unreachable"]
    assert "no route" in result["msg"]
    assert 60 + action.GRACE <= host.now <= 60 + action.GRACE + 2


def test_a_confirmation_that_came_too_late_is_told_at_once(run):
    host = Host(OPEN, {"failed": True, "msg": "firewall: transaction T-1 is no longer open"}, undone())
    result = run(host, dict(ARGS))
    assert result["failed"]
    assert result["undone"]
    assert "no longer open" in result["msg"]
    assert host.now == 0


def test_a_confirmation_whose_answer_was_lost_holds(run):
    host = Host(OPEN, AnsibleConnectionFailure("broken pipe"), {"last": {"id": "T-1", "result": "committed"}})
    result = run(host, dict(ARGS))
    assert not result.get("failed")
    assert not result["unconfirmed"]
    assert result["changed"]


# --- what the module shows --------------------------------------------------------------------------------------------

CONF = 'auth {\n  allow_anonymous = false\n  password {\n    "sensor" = "%s"\n  }\n}\n'


@pytest.mark.parametrize("how", ["show", "redact", "hide"])
def test_a_diff_never_shows_a_secret(how):
    change = Change("/c", ["content"], (CONF % "secret-One").encode(), (CONF % "secret-Two").encode())
    shown = module.difference(change, how)
    assert shown["before"] != shown["after"], "that something changes is always seen"
    assert ("secret-" in str(shown)) == (how == "show")


def test_a_diff_names_attributes_that_are_set_right():
    shown = module.difference(Change("/c", ["owner", "mode"], b"same\n", b"same\n"), "show")
    assert shown["before"] == "same\n"
    assert "owner and mode set right" in shown["after"]


def test_a_diff_of_what_comes_and_goes():
    assert module.difference(Change("/c", ["state"], None, b"new\n"), "show")["before"] == ""
    assert module.difference(Change("/c", ["state"], b"old\n", None), "show")["after"] == ""


def test_a_diff_of_what_is_no_text_or_does_not_parse_is_possible():
    change = Change("/c", ["content"], b"\xff\x00", b'auth { password { "a" = "secret-One" }')
    assert "secret" not in str(module.difference(change, "redact"))


# --- which run --------------------------------------------------------------------------------------------------------


def test_the_host_is_told_by_which_run(run, monkeypatch):
    monkeypatch.setattr(action.getpass, "getuser", lambda: "ann")
    monkeypatch.setattr(action.socket, "gethostname", lambda: "desk")
    host = Host({"changed": True})
    run(host, {"name": "broker", "files": []})
    assert host.log[0]["run"]["by"] == "ann@desk"
    assert host.log[0]["run"]["pid"] == os.getppid()
    monkeypatch.setattr(action.getpass, "getuser", lambda: {}["no such account"])
    assert action.this_run({"ansible_play_name": "Harden"})["by"] == f"{os.getuid()}@desk"
    assert action.this_run({"ansible_play_name": "Harden"})["play"] == "Harden"


# --- hosts that stand in for each other -------------------------------------------------------------------------------


class Waiting(Host):
    """A host that is asked whether the lock of its group is held while it is changed."""

    def __init__(self, home, *answers):
        super().__init__(*answers)
        self.home = home
        self.free = []

    def execute(self, module_name, module_args, task_vars=None):
        for lock in self.home.glob("edgesec-nanomq/groups/*"):
            try:
                with _files.locked(str(lock), patience=0):
                    self.free.append(True)
            except FileProblem:
                self.free.append(False)
        return super().execute(module_name, module_args, task_vars)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(action.C, "ANSIBLE_HOME", str(tmp_path))
    return tmp_path


def test_a_group_has_its_turn_until_the_change_is_confirmed(run, home, monkeypatch):
    host = Waiting(home, OPEN, {"changed": True, "generation": 7})
    run(host, {**ARGS, "rollout_group": "pair ../../\udc80 of\n two"})
    assert host.free == [False, False]
    assert all("rollout_group" not in sent for sent in host.log if isinstance(sent, dict)), "no host is told"
    (lock,) = home.glob("edgesec-nanomq/groups/*")
    assert lock.name.isalnum()
    with _files.locked(str(lock), patience=0):
        pass


@pytest.mark.parametrize("answer", [{"failed": True}, AnsibleConnectionFailure("gone")], ids=["failed", "lost"])
def test_a_turn_ends_however_the_change_does(run, home, answer):
    host = Waiting(home, answer)
    with contextlib.suppress(AnsibleConnectionFailure):
        run(host, {"name": "broker", "rollout_group": "pair"})
    assert host.free == [False]
    (lock,) = home.glob("edgesec-nanomq/groups/*")
    with _files.locked(str(lock), patience=0):
        pass


@pytest.mark.parametrize("group", [None, ""])
def test_without_a_group_nobody_waits(run, home, group):
    run(Host({"changed": True}), {"name": "broker", "rollout_group": group})
    assert list(home.iterdir()) == []


def test_a_host_is_not_changed_without_its_turn(run, home, monkeypatch):
    monkeypatch.setattr(action, "PATIENCE", 0)
    host = Host({"changed": True})
    with action.alone("pair"), pytest.raises(AnsibleActionFail, match="rollout_group pair: this host is not changed"):
        run(host, {"name": "broker", "rollout_group": "pair"})
    assert host.log == []
    run(host, {"name": "broker", "rollout_group": "another"})
    assert len(host.log) == 1


# --- the stamp --------------------------------------------------------------------------------------------------------


def stamp(*contents, probe="WORD"):
    """What the host is sent for files of these contents."""
    files = [{"dest": f"/etc/{number}", "content": content} for number, content in enumerate(contents)]
    probes = [{"type": "https", "generation": probe, "port": 443}]
    return action.stamped({"name": "nginx", "stamp": "WORD", "files": files, "probes": probes})


def test_the_stamp_is_the_hash_of_all_contents():
    sent = stamp("a WORD\n", "b\n", None)
    (probe,) = sent["probes"]
    found = probe["generation"]
    assert len(found) == 64
    assert [item["content"] for item in sent["files"]] == [f"a {found}\n", "b\n", None]
    assert probe == {"type": "https", "generation": found, "port": 443}
    assert "stamp" not in sent
    assert stamp("a WORD\n", "b\n", None) == sent


def test_each_content_counts_and_so_does_its_place():
    stamps = [
        stamp(*contents)["probes"][0]["generation"]
        for contents in (("a WORD", "b"), ("a WORD", "c"), ("a WORD", "b", ""), ("a WORDb", ""), ("b", "a WORD"))
    ]
    assert len({*stamps}) == len(stamps)


def test_the_task_keeps_its_own_arguments():
    files = [{"dest": "/etc/x", "content": "WORD"}]
    args = {"stamp": "WORD", "files": files, "probes": []}
    action.stamped(args)
    assert args == {"stamp": "WORD", "files": [{"dest": "/etc/x", "content": "WORD"}], "probes": []}
    assert action.stamped({"files": files}) == {"files": files}


def test_a_content_that_is_secret_is_stamped_first(run):
    host = Host({"changed": True})
    run(host, {**ARGS, "stamp": "WORD", "files": [{"dest": "/etc/x", "content": "WORD", "diff": "redact"}]})
    sent = host.log[0]
    assert sent["files"] == [{"dest": "/etc/x", "diff": "redact"}]
    assert len(sent["secret_contents"]["/etc/x"]) == 64
