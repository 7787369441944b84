# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Says at the end of a run what became of each host, and on a terminal how far a long one is."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rollout
type: aggregate
short_description: Summary of a rollout by host, and its progress
version_added: "0.1.0"
author: EdgeSec maintainers (@edgesec)
description:
  - At the end of a run, and of each batch of a play with C(serial), counts the hosts that were changed, unchanged,
    undone (a transaction of M(edgesec.nanomq.transaction) put back what it had changed), failed or unreachable, those
    cut short by the failure of another, and those that nothing was done to. Each that failed has its cause in one line.
  - On a terminal it tells every few seconds how far the run is, and how long it will take where that can be known. In
    a pipeline it does not.
  - It prints whole lines of text, without colours and controls of terminals. Characters of host names and messages that
    a terminal obeys, or that cannot be seen, are escaped.
  - Of a task with C(no_log) it shows nothing. Exit status and the lines of other callbacks stay as they are.
requirements:
  - It is named in C(callbacks_enabled).
options:
  interval:
    description: Seconds between two lines of progress, V(0) for none.
    type: int
    default: 10
    env:
      - name: EDGESEC_NANOMQ_ROLLOUT_INTERVAL
    ini:
      - section: callback_edgesec_nanomq_rollout
        key: interval
"""

EXAMPLES = r"""
enable: |
  # ansible.cfg, or ANSIBLE_CALLBACKS_ENABLED=edgesec.nanomq.rollout
  [defaults]
  callbacks_enabled = edgesec.nanomq.rollout
"""

import sys
import time
from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import rollout

#: Tasks that come to no host: one that got no further was not touched.
TALK = ("assert", "debug", "fail", "import_role", "import_tasks", "include_role", "include_tasks", "meta")


class CallbackModule(CallbackBase):
    """Takes the events to a ledger, and prints what that makes of them."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "edgesec.nanomq.rollout"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ledger = rollout.Ledger()
        self._started = self._told = self._now()
        self._batch: list[str] = []
        self._everybody: list[str] = []
        self._ends: list[int] = []
        self._number = 0
        self._before = 0.0
        self._play = ""
        self._step: tuple[str, str] = ("", "")
        self._step_started = self._started
        self._step_hosts: set[str] = set()

    _now = staticmethod(time.monotonic)

    @staticmethod
    def _watched() -> bool:
        """Whether somebody looks: a terminal, and no pipe or file."""
        return sys.stdout is not None and sys.stdout.isatty()

    def _say(self, line: str) -> None:
        self._display.display(line)

    # --- plays and batches

    def v2_playbook_on_play_start(self, play: Any) -> None:
        known = play.get_variable_manager().get_vars(play=play)
        everybody, batch = list(known["ansible_play_hosts_all"]), list(known["ansible_play_batch"])
        again = play.get_name() == self._play and everybody == self._everybody and not set(batch) & set(self._tried())
        self._close_batch()
        if not again:
            self._play, self._everybody, self._number, self._before = play.get_name(), everybody, 0, self._now()
            self._ends = rollout.ends(play.serial or ["100%"], len(everybody))
        self._number += 1
        self._batch = batch
        self._ledger.expect(everybody)
        self._ledger.watch(play._removed_hosts)

    def _tried(self) -> list[str]:
        """Hosts of this play that have had their turn, those of the present batch with them."""
        return self._everybody[: self._ends[self._number - 1]] if self._number else []

    def _close_batch(self) -> None:
        if self._batch and len(self._ends) > 1:
            _groups, (counts, *causes) = self._ledger.of(self._batch)
            for line in [f"rollout: batch {self._number} of {len(self._ends)}: {counts}", *causes]:
                self._say(line)
        self._batch = []

    # --- hosts

    def v2_runner_on_ok(self, result: Any) -> None:
        if not self._talk(result):
            self._ledger.worked(result.host.get_name(), changed=bool(result.result.get("changed")))
        self._step_on(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._step_on(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        host = result.host.get_name()
        if not self._talk(result):
            self._ledger.worked(host, changed=False)
        if not ignore_errors:
            outcome = "undone" if result.result.get("undone") else "failed"
            self._ledger.lost(host, outcome, rollout.cause(result.result, result.task.get_name()))
        self._step_on(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if not result.task.ignore_unreachable:
            why = rollout.cause(result.result, result.task.get_name())
            self._ledger.lost(result.host.get_name(), "unreachable", why)
        self._step_on(result)

    @staticmethod
    def _talk(result: Any) -> bool:
        return str(result.task.action).rpartition(".")[2] in TALK

    # --- progress

    def _step_on(self, result: Any) -> None:
        now = self._now()
        step = (str(result.task._uuid), result.task.get_name())
        if step != self._step:
            self._step, self._step_started, self._step_hosts = step, now, set()
        self._step_hosts.add(result.host.get_name())
        interval = self.get_option("interval")
        if interval and now - self._told >= interval and self._watched():
            self._told = now
            self._say(self._progress(now))

    def _progress(self, now: float) -> str:
        everybody, done = len(self._everybody), self._ends[self._number - 2] if self._number > 1 else 0
        troubled = self._ledger.troubled()
        ours = [host for host in self._batch if host not in set(troubled)]
        parts = [f"rollout: {done} of {everybody} hosts done, {len(troubled)} failed"]
        if len(self._ends) > 1:
            parts.append(f"batch {self._number} of {len(self._ends)}")
        at, of = len(self._step_hosts), max(len(ours), len(self._step_hosts))
        parts.append(f"{rollout.one_line(self._step[1])}: {at} of {of}")
        if done:
            # What has been tried is the measure of what is left. A batch that is under way counts as not begun.
            left = (now - self._before) / done * (everybody - done)
            parts.append(f"at most about {rollout.duration(left)} left")
        elif at < of:
            left = (now - self._step_started) / at * (of - at)
            parts.append(f"about {rollout.duration(left)} left of this step")
        return "; ".join(parts)

    # --- the end

    def v2_playbook_on_stats(self, stats: Any) -> None:
        for host in stats.processed:
            seen = stats.summarize(host)
            if seen["rescued"] and not seen["failures"] and not seen["unreachable"]:
                self._ledger.rescued(host)
        self._close_batch()
        for line in self._ledger.summary(self._now() - self._started):
            self._say(line)
