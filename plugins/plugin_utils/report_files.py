# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The reports of audits in a directory of the controller.

    audit.json, audit.sarif, audit.xml, audit.html   of the last run
    audit-20261124T201526Z.json                      of the runs before, named after the end of each
    audit.unreadable-20261124T201526Z.json           what was found in the place of audit.json and is no report
    .audit.state                                     which play wrote last; it is the lock too

A play may write more than once: once a batch with `serial`, and once for each host that ends alone with the strategies
that know no common pace. Later writes of a play take the place of its earlier ones, and all of them are compared with
the run before the play.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.module_utils import _files
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report, report_junit, report_sarif

#: Bytes of a report that is read. One of 2,000 hosts takes some 10 MiB.
LIMIT = 512 * 1024 * 1024
CURRENT = "audit.json"
STATE = ".audit.state"
_EARLIER = re.compile(r"audit-\d{8}T\d{6}Z\.json")
_TIME = "%Y%m%dT%H%M%SZ"


def _html(document: dict[str, Any]) -> str:
    # Loaded when it is asked for: it is the largest, and the others do without.
    from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report_html

    return report_html.render(document)


#: {format: (file, document -> text)}; JSON last, since the next run compares with it.
FORMATS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "html": ("audit.html", _html),
    "sarif": ("audit.sarif", report_sarif.render),
    "junit": ("audit.xml", report_junit.render),
    "json": (CURRENT, report.render),
}


def prepare(directory: str, *, make: bool = True) -> None:
    """See to it that the directory is there, 0700 if it is made, and that nobody else can put things in it.

    Raises FileProblem, or OSError.
    """
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        if make:
            _files.make_directories(directory, mode=0o700)
    else:
        _files.check_directory(directory, found)


class Reports:
    """The directory while it is locked: no other run reads or writes in it meanwhile."""

    def __init__(self, directory: str, play: str, state: dict[str, Any]):
        self.directory = directory
        #: What this play has done so far: the latest `order`, the hosts `seen`, and whether it has `written`.
        self.state = state if state.get("play") == play else {"play": play}

    def enter(self, order: int, host: str) -> None:
        """Note that a host of the play is here to write. A higher order knows more of the other hosts."""
        self.state["order"] = max(order, self.state.get("order", order))
        self.note([host])

    def note(self, hosts: list[str]) -> None:
        """Remember that these hosts have been audited in this play, or have tried to be."""
        self.state["seen"] = sorted({*self.state.get("seen", []), *hosts})

    @property
    def seen(self) -> set[str]:
        """The hosts that were noted."""
        return set(self.state.get("seen", []))

    def superseded(self, order: int) -> bool:
        """Whether somebody of this play is here who knows more."""
        return self.state.get("order", order) > order

    def previous(self) -> tuple[dict[str, Any] | None, str]:
        """The report of the run before this play, and what is wrong with it, if anything is."""
        name = self.state.get("previous", "") if self.state.get("written") else CURRENT
        if not name:
            return None, ""
        try:
            data = _files.read_regular(self._path(name), limit=LIMIT)
            return report.read(data), ""
        except FileNotFoundError:
            return None, ""
        except (_files.FileProblem, report.Unreadable) as problem:
            return None, str(problem)

    def write(self, document: dict[str, Any], formats: list[str], keep: int, previous: dict[str, Any] | None) -> None:
        """Put the files in their places, each in one step and closed to others. Raises FileProblem, or OSError.

        previous: what `previous` gave
        keep: how many of the runs before are kept, that of `previous` and then the youngest
        """
        # All of them are made before the first is written.
        files = [(name, render(document).encode()) for key, (name, render) in FORMATS.items() if key in formats]
        if not self.state.get("written"):
            self.state["previous"] = self._set_aside(previous) if "json" in formats else CURRENT
            self.state["written"] = True
        for name, data in files:
            _files.write_atomic(self._path(name), data, mode=0o600)
        earlier, previous_name = self._earlier(), self.state["previous"]
        for name in [name for name in earlier if name != previous_name][keep - (previous_name in earlier) :]:
            os.unlink(self._path(name))

    def _set_aside(self, previous: dict[str, Any] | None) -> str:
        """Keep the audit.json that is there, and return its new name if it is a report, else an empty one."""
        current = self._path(CURRENT)
        if not os.path.lexists(current):
            return ""
        if previous is None:
            os.rename(current, self._unused(f"audit.unreadable-{datetime.datetime.now(datetime.UTC):{_TIME}}"))
            return ""
        finished = datetime.datetime.fromisoformat(previous["run"]["finished"])
        name = f"audit-{finished:{_TIME}}.json"
        _files.write_atomic(self._path(name), _files.read_regular(current, limit=LIMIT), mode=0o600)
        return name

    def _unused(self, stem: str) -> str:
        for number in range(1000):
            path = self._path(f"{stem}{f'-{number}' if number else ''}.json")
            if not os.path.lexists(path):
                return path
        raise _files.FileProblem(f"{self.directory} is full of unreadable reports")

    def _earlier(self) -> list[str]:
        """The names of earlier reports, the youngest first."""
        names = filter(_EARLIER.fullmatch, os.listdir(self.directory))
        return sorted((name for name in names if os.path.isfile(self._path(name))), reverse=True)

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)


@contextlib.contextmanager
def locked(directory: str, play: str) -> Iterator[Reports]:
    """The directory, which must be there, for this process alone. What the reports remember of the play is kept.

    Raises FileProblem, or OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(os.path.join(directory, STATE), flags, 0o600), "r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        reports = Reports(directory, play, _load(handle.read(LIMIT)))
        try:
            yield reports
        finally:
            # Written in place, since the lock is the file's: one that was cut is as none.
            handle.seek(0)
            handle.truncate()
            json.dump(reports.state, handle)


def _load(text: str) -> dict[str, Any]:
    try:
        state = json.loads(text)
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}
