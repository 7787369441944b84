# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Counts what a play costs: module runs on each host, and tasks evaluated. Writes JSON to $REMOTE_RUNS_FILE."""

from __future__ import annotations

import json
import os

from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: remote_runs
type: aggregate
short_description: Count remote module runs and tasks
description: Appends one line of JSON for each.
"""


def note(kind: str, host: str, what: str) -> None:
    """Append a line; one write, since the forks of ansible write to the same file."""
    line = json.dumps({"kind": kind, "host": host, "what": what}) + "\n"
    descriptor = os.open(os.environ["REMOTE_RUNS_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def count(base: type, method: str) -> None:
    """Wrap a method of all action plugins, so that nothing that reaches a host goes uncounted."""
    original = getattr(base, method)

    def counted(self, *args, **kwargs):
        if not self._connection.transport.endswith("local"):
            what = kwargs.get("module_name") or (args[0] if args and isinstance(args[0], str) else self._task.action)
            note(method.strip("_"), self._play_context.remote_addr, str(what)[:80])
        return original(self, *args, **kwargs)

    setattr(base, method, counted)


count(ActionBase, "_execute_module")
count(ActionBase, "_transfer_file")
if str(C.DEFAULT_STRATEGY).startswith("mitogen"):
    # It gives all action plugins a base of its own, which runs modules without asking the usual one.
    from ansible_mitogen.mixins import ActionModuleMixin

    count(ActionModuleMixin, "_execute_module")


class CallbackModule(CallbackBase):
    """Counts the tasks; the runs are counted by the wrapped methods."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "remote_runs"

    def v2_runner_on_start(self, host, task):
        note("task", host.get_name(), task.get_name())
