# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The controller's part of a transaction: it keeps secrets apart, and confirms over a fresh connection."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem, locked, make_directories
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import WORK_LIMIT

MODULE = "edgesec.nanomq.transaction"
#: Seconds after the deadline in which the host must have undone the change and be back.
GRACE = 30
#: Seconds that a host waits for the others of its group; less than the roles give the task, so that the wait is named.
PATIENCE = 840


def this_run(task_vars: dict[str, Any]) -> dict[str, Any]:
    """Which run this is, for the list of the generations: who ran which play, from where, as which process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such account, as in some containers
        user = str(os.getuid())
    # Of the workers the parent: one number for all that a run does.
    return {"by": f"{user}@{socket.gethostname()}", "play": task_vars.get("ansible_play_name", ""), "pid": os.getppid()}


@contextlib.contextmanager
def alone(group: str) -> Iterator[None]:
    """Hold the turn of a group of hosts, against all other hosts of it that runs of this account change."""
    # A name is anything; its hash is a file name.
    name = hashlib.sha256(group.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    path = os.path.join(os.path.expanduser(C.ANSIBLE_HOME), "edgesec-nanomq", "groups", name)
    with contextlib.ExitStack() as held:
        try:
            make_directories(path, mode=0o700)
            held.enter_context(locked(path, patience=PATIENCE))
        except (FileProblem, OSError) as error:
            raise AnsibleActionFail(
                f"rollout_group {group}: this host is not changed without its turn: {error}"
            ) from error
        yield


def stamped(args: dict[str, Any]) -> dict[str, Any]:
    """Put the hash of all contents in the place of the stamp, in contents and as an option of probes."""
    args = dict(args)
    stamp = str(args.pop("stamp", None) or "")
    if not stamp:
        return args
    files = [dict(item) for item in args.get("files") or []]
    texts = [[str(item["dest"]), str(item.get("content") or "")] for item in files]
    found = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    for item in files:
        if stamp in str(item.get("content") or ""):
            item["content"] = item["content"].replace(stamp, found)
    probes = [
        {key: found if value == stamp else value for key, value in probe.items()} for probe in args.get("probes") or []
    ]
    return {**args, "files": files, "probes": probes}


class ActionModule(ActionBase):
    """Run the module once; a second time, over a new connection, where the change must be confirmed."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        args = {**self._without_secrets(stamped(self._task.args)), "run": this_run(task_vars or {})}
        group = args.pop("rollout_group", None)
        with contextlib.ExitStack() as turn:
            if group and not self._task.check_mode:
                turn.enter_context(alone(str(group)))
            result.update(self._change(args, task_vars))
        return result

    def _change(self, args: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result: dict[str, Any] = {}
        started = time.monotonic()
        try:
            result.update(self._execute_module(module_name=MODULE, module_args=args, task_vars=task_vars))
        except AnsibleConnectionFailure as error:
            if not args.get("confirm_within"):
                raise
            result.update(self._await_undo(args, "", task_vars, started + int(args["confirm_within"]), str(error)))
        if result.get("unconfirmed") and not result.get("failed"):
            result.update(self._confirm(args, result["transaction"], task_vars))
        return result

    @staticmethod
    def _without_secrets(args: dict[str, Any]) -> dict[str, Any]:
        """Move contents that a diff must not show into the option that is never logged."""
        secret = dict(args.get("secret_contents") or {})
        files = []
        for item in args.get("files") or []:
            item = dict(item)
            if item.get("diff", "show") != "show" and item.get("content") is not None:
                secret[item["dest"]] = item.pop("content")
            files.append(item)
        return {**args, "files": files, "secret_contents": secret}

    def _confirm(self, args: dict[str, Any], transaction: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Confirm over a new connection: the one in use proves nothing, since its packets may pass as established."""
        seconds = int(args["confirm_within"])
        deadline = time.monotonic() + seconds
        reason, answers = "the host did not answer", False
        try:
            self._connection.reset()
            answer = self._ask(args, task_vars, state="confirmed", transaction=transaction)
            if not answer.get("failed"):
                return {"unconfirmed": False, "generation": answer.get("generation")}
            reason, answers = answer.get("msg", reason), True
        except AnsibleConnectionFailure as error:
            reason = str(error)
        return self._await_undo(args, transaction, task_vars, deadline, reason, answers=answers)

    def _await_undo(
        self,
        args: dict[str, Any],
        transaction: str,
        task_vars: dict[str, Any] | None,
        deadline: float,
        reason: str,
        *,
        answers: bool = False,
    ) -> dict[str, Any]:
        """Wait until the host has undone the change, and say so."""
        # As long as a run on the host may take at most; its clock may differ by as much.
        since = time.time() - int(args["confirm_within"]) - WORK_LIMIT
        self._display.warning(
            f"{args['name']}: no fresh connection after the change; waiting for the host to undo it by itself"
        )
        if not answers:  # before the deadline it can only be asked in vain
            time.sleep(max(0.0, deadline - time.monotonic()))
        until = max(deadline, time.monotonic()) + GRACE
        while True:
            try:
                self._connection.reset()
                last = self._ask(args, task_vars, state="status").get("last", {})
                # Cut off in the middle of the first run, its name is not known: the last that ended since is meant.
                transaction = transaction or (last.get("id", "") if last.get("time", 0) >= since else "")
                if last.get("id") == transaction and last.get("result") == "committed":
                    return {"unconfirmed": False}  # the confirmation got through, and only its answer was lost
                if last.get("id") == transaction and last.get("result") == "undone":
                    return {
                        "failed": True,
                        "undone": True,
                        "unconfirmed": False,
                        "step": "confirm",
                        "msg": f"{args['name']}: confirm: after the change no fresh connection came through, and the "
                        f"host undid it after {args['confirm_within']} s. It is reachable again, as before. "
                        f"The connection failed with: {reason}",
                    }
            except AnsibleConnectionFailure as error:
                reason = str(error)
            if time.monotonic() >= until:
                return {
                    "failed": True,
                    "unreachable": True,
                    "msg": f"{args['name']}: confirm: the host has not come back within {GRACE} s of the time at which "
                    f"it should have undone the change: {reason}",
                }
            time.sleep(1)

    def _ask(self, args: dict[str, Any], task_vars: dict[str, Any] | None, **options: str) -> dict[str, Any]:
        return self._execute_module(
            module_name=MODULE, module_args={"name": args["name"], **options}, task_vars=task_vars
        )
