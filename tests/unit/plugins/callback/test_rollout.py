# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The callback, by events as Ansible sends them, and in a real run."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from types import SimpleNamespace

import pytest
from ansible_collections.edgesec.nanomq.plugins.callback import rollout as plugin

HOSTS = ["a", "b", "c", "d"]


class Run:
    """A run with a clock of its own; `lines` is what was printed."""

    def __init__(self, monkeypatch, *, terminal=False, interval=10):
        self.now, self.lines = 1000.0, []
        monkeypatch.setattr(plugin.CallbackModule, "_now", lambda _self: self.now)
        self.callback = plugin.CallbackModule(display=SimpleNamespace(display=self.lines.append, verbosity=0))
        self.callback._watched = lambda: terminal
        self.callback.get_option = {"interval": interval}.get

    def play(self, hosts, batch, serial=(), name="Harden NanoMQ", removed=()):
        known = {"ansible_play_hosts_all": hosts, "ansible_play_batch": batch}
        manager = SimpleNamespace(get_vars=lambda play: known)
        play = SimpleNamespace(
            get_variable_manager=lambda: manager,
            get_name=lambda: name,
            serial=list(serial),
            _removed_hosts=list(removed),
        )
        self.callback.v2_playbook_on_play_start(play)
        return play

    def result(self, host, task="Do", action="edgesec.nanomq.transaction", ignore_unreachable=False, **result):
        return SimpleNamespace(
            host=SimpleNamespace(get_name=lambda: host),
            task=SimpleNamespace(
                action=action, get_name=lambda: task, _uuid=task, ignore_unreachable=ignore_unreachable
            ),
            result=result,
        )

    def ok(self, host, **more):
        self.callback.v2_runner_on_ok(self.result(host, **more))

    def failed(self, host, ignore_errors=False, **more):
        self.callback.v2_runner_on_failed(self.result(host, **more), ignore_errors=ignore_errors)

    def unreachable(self, host, **more):
        self.callback.v2_runner_on_unreachable(self.result(host, **more))

    def end(self, **rescued):
        seen = {"rescued": 0, "failures": 0, "unreachable": 0}

        def summarize(host):
            return seen | {"rescued": rescued.get(host, 0)}

        self.callback.v2_playbook_on_stats(SimpleNamespace(processed=HOSTS, summarize=summarize))
        return self.lines


@pytest.fixture
def run(monkeypatch):
    return lambda **options: Run(monkeypatch, **options)


def test_one_batch(run):
    it = run()
    it.play(HOSTS, HOSTS)
    it.ok("a", changed=True)
    it.ok("b", changed=False)
    it.failed("c", undone=True, msg="broker: probe: silent\njournal: x")
    it.unreachable("d", msg="no route")
    it.now += 61
    assert it.end() == [
        "rollout: 4 hosts in 1 min 1 s: 1 changed, 1 unchanged, 1 undone, 1 unreachable",
        "  changed: a",
        "  unchanged: b",
        "  c: undone: broker: probe: silent [Do]",
        "  d: unreachable: no route [Do]",
    ]


def test_batches_are_reported_as_they_end(run):
    it = run()
    it.play(HOSTS, ["a"], [1, 2])
    it.ok("a", changed=True)
    it.play(HOSTS, ["b", "c"], [1, 2])
    assert it.lines == ["rollout: batch 1 of 3: 1 changed"]
    it.failed("b", msg="bad")
    it.ok("c")
    it.play(HOSTS, ["d"], [1, 2], removed=["b"])
    assert it.lines[1:] == ["rollout: batch 2 of 3: 1 unchanged, 1 failed", "  b: failed: bad [Do]"]
    assert it.end()[3:] == [
        "rollout: batch 3 of 3: 1 not touched",
        "rollout: 4 hosts in 0 s: 1 changed, 1 unchanged, 1 failed, 1 not touched",
        "  changed: a",
        "  unchanged: c",
        "  not touched: d",
        "  b: failed: bad [Do]",
    ]


def test_hosts_that_never_had_their_turn_are_not_touched(run):
    it = run()
    it.play(HOSTS, ["a"], [1, 3])
    it.failed("a", msg="bad")
    assert "1 failed, 3 not touched" in it.end()[2]


def test_hosts_ended_by_the_failure_of_another_are_cut_short(run):
    it = run()
    play = it.play(HOSTS, HOSTS)
    for host in HOSTS:
        it.ok(host, changed=True)
    it.failed("a", msg="the CA is damaged")
    play._removed_hosts += HOSTS
    assert "1 failed, 3 cut short" in it.end()[0]


def test_talk_is_no_touch(run):
    it = run()
    it.play(HOSTS, HOSTS)
    it.ok("a", action="ansible.builtin.debug")
    it.failed("b", action="ansible.builtin.assert", msg="refused")
    assert "1 failed, 3 not touched" in it.end()[0]


def test_errors_that_are_ignored_or_rescued_count_for_nothing(run):
    it = run()
    it.play(HOSTS, HOSTS)
    it.failed("a", ignore_errors=True, msg="x")
    it.unreachable("b", ignore_unreachable=True, msg="x")
    it.failed("c", msg="x")
    it.ok("d", changed=True)
    assert "4 hosts in 0 s: 1 changed, 2 unchanged, 1 not touched" in it.end(c=1)[0]


def test_several_plays_are_one_summary(run):
    it = run()
    it.play(HOSTS, HOSTS[:2], [2], name="one")
    it.ok("a", changed=True)
    it.play(["a", "d"], ["a", "d"], name="two")
    it.ok("a")
    it.ok("d")
    assert it.lines == ["rollout: batch 1 of 2: 1 changed, 1 not touched"]
    assert "1 changed, 1 unchanged, 2 not touched" in it.end()[1]


def test_names_and_messages_are_a_strangers_text(run):
    host = "evil\x1b[2J\r\nrollout: 99 hosts\u202e"
    it = run(terminal=True, interval=1)
    it.play([host], [host])
    it.now += 5
    it.failed(host, msg="\x1b]0;title\x07\rrollout: all well", task="T\x1b[31m\n")
    assert len(it.end()) == 3
    for line in it.lines:
        assert line.isprintable(), repr(line)


def test_hidden_output_stays_hidden(run):
    it = run()
    it.play(HOSTS, HOSTS)
    it.failed("a", censored="...", msg="hunter2")
    assert "hunter2" not in "\n".join(it.end())


def test_progress_of_a_step_and_of_batches(run):
    it = run(terminal=True)
    it.play(HOSTS, HOSTS)
    it.ok("a", task="Slow")
    assert it.lines == []
    it.now += 10
    it.ok("b", task="Slow")
    assert it.lines == [
        "rollout: 0 of 4 hosts done, 0 failed; Slow: 2 of 4; about 10 s left of this step",
    ]
    it.now += 9
    it.ok("c", task="Slow")
    assert len(it.lines) == 1, "not more often than the interval"

    it = run(terminal=True)
    it.play(HOSTS, ["a"], [1, 3])
    it.now += 5
    it.ok("a")
    it.play(HOSTS, ["b", "c", "d"], [1, 3])
    it.now += 7
    it.failed("b", task="Slow", msg="bad")
    assert it.lines[1:] == [
        "rollout: 1 of 4 hosts done, 1 failed; batch 2 of 2; Slow: 1 of 2; at most about 36 s left",
    ]


@pytest.mark.parametrize("options", [{"terminal": False}, {"terminal": True, "interval": 0}], ids=str)
def test_a_pipeline_gets_no_progress(run, options):
    it = run(**options)
    it.play(HOSTS, HOSTS)
    for host in HOSTS:
        it.now += 100
        it.ok(host)
    assert it.lines == []


# --- in a real run ----------------------------------------------------------------------------------------------------

PLAYBOOK = """
- hosts: all
  gather_facts: false
  serial: [1, 3]
  tasks:
    - ansible.builtin.command: "true"
      when: inventory_hostname != 'c'
    - ansible.builtin.fail:
        msg: because
      when: inventory_hostname == 'c'
    - ansible.builtin.command: echo {{ secret }}
      no_log: true
      failed_when: inventory_hostname == 'd'
      vars:
        secret: hunter2
"""
ENDS = [
    "rollout: batch 1 of 2: 1 changed",
    "rollout: batch 2 of 2: 1 changed, 2 failed",
    "  c: failed: because [ansible.builtin.fail]",
    "  d: failed: the output of this task is hidden [ansible.builtin.command]",
]


@pytest.fixture
def command(tmp_path):
    """A run of a play that fails on two of four hosts; what it needs to run."""
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    environment = os.environ | {
        "ANSIBLE_CALLBACKS_ENABLED": "edgesec.nanomq.rollout",
        "ANSIBLE_HOME": str(tmp_path / "home"),
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "EDGESEC_NANOMQ_ROLLOUT_INTERVAL": "1",
        "TERM": "xterm",
    }
    for name in ("ANSIBLE_FORCE_COLOR", "NO_COLOR"):
        environment.pop(name, None)
    arguments = ["-i", "a,b,c,d,", "-c", "local", "-e", "ansible_python_interpreter={{ ansible_playbook_python }}"]
    return {"args": ["ansible-playbook", *arguments, "play.yml"], "cwd": tmp_path, "env": environment}


def test_a_pipeline_reads_lines_alone(command):
    done = subprocess.run(**command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if re.match(r"rollout:|  (changed|[a-d]):", line)]
    assert lines[:4] == ENDS
    assert lines[4].startswith("rollout: 4 hosts in ")
    assert lines[4].endswith(": 2 changed, 2 failed")
    assert lines[5:] == ["  changed: a, b", *ENDS[2:]]
    assert not set(done.stdout) & {"\x1b", "\r"}
    assert "hunter2" not in done.stdout
    assert " left" not in done.stdout


def test_a_terminal_has_no_controls_of_ours(command):
    main, side = pty.openpty()
    done = subprocess.Popen(**command, stdin=subprocess.DEVNULL, stdout=side, stderr=side)
    os.close(side)
    printed = b""
    while True:
        try:
            printed += os.read(main, 65536)
        except OSError:  # the other end was closed
            break
    assert done.wait(60) == 2
    os.close(main)
    ours = [line for line in printed.decode().splitlines() if line.startswith("rollout:")]
    assert any(" hosts done, " in line for line in ours), printed
    assert all(line.rstrip("\r").isprintable() for line in ours)
