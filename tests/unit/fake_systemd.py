# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""A host for the tests of the transaction engine: a tree of files, and units whose state lies in a file.

The state is on disk because the tests kill the process that changes it. Nothing here goes through the functions of `os`
that those tests count, so that only the engine's own steps are cut.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from ansible_collections.edgesec.nanomq.plugins.module_utils import _transaction as engine

#: A unit names the files that it reads, relative to the tree. A file that holds this word keeps it from starting.
BROKEN = "broken"
_replace = os.replace


class Systemd:
    """systemctl, systemd-run and systemd-sysusers, as a `call` of the engine.

    A unit is what its file said at the last daemon-reload. Starting, restarting or reloading it takes the current
    contents of the files it reads into "running"; what a reloaded one was started by stays.
    """

    def __init__(self, tree: Path, state: Path):
        self.tree = tree
        self.state = state
        if not state.exists():
            self._save({"units": {}, "running": {}, "enabled": [], "timers": {}, "denied": [], "activating": []})
        self.calls: list[list[str]] = []

    def _load(self) -> dict:
        return json.loads(self.state.read_text())

    def _save(self, data: dict) -> None:
        fresh = f"{self.state}.{os.getpid()}"
        with open(fresh, "w") as handle:
            handle.write(json.dumps(data))
        _replace(fresh, self.state)

    def change(self, **values) -> None:
        """Set parts of the state, as something outside of the engine would."""
        self._save({**self._load(), **values})

    def deny(self, *commands: str) -> None:
        """Let these commands fail ("restart a.service"), however often they come."""
        self.change(denied=list(commands))

    @property
    def running(self) -> dict:
        return self._load()["running"]

    @property
    def enabled(self) -> list:
        return sorted(set(self._load()["enabled"]) - {engine.RECOVERY_UNIT})

    @property
    def recovery_enabled(self) -> bool:
        return engine.RECOVERY_UNIT in self._load()["enabled"]

    @property
    def timers(self) -> dict[str, list[str]]:
        return self._load()["timers"]

    def power_cut(self) -> None:
        """Nothing runs any more, and what was transient is gone."""
        self.change(running={}, timers={}, activating=[])

    def boot(self) -> None:
        """Read the units and start what is enabled."""
        self(["systemctl", "daemon-reload"])
        for name in self.enabled:
            self(["systemctl", "start", name])

    def __call__(self, argv: list[str], *, timeout: float = 90, stdin: bytes | None = None) -> tuple[int, str]:
        del timeout, stdin
        self.calls.append(list(argv))
        data = self._load()
        words = [word for word in argv[1:] if word != "--no-block"]
        if " ".join(words) in data["denied"] or argv[0] in data["denied"]:
            if words[0] == "restart":
                data["running"].pop(words[-1], None)
                self._save(data)
            return 1, f"{' '.join(argv)}: denied by the test"
        if argv[0] == "systemctl":
            result = getattr(self, "_" + words[0].replace("-", "_"))(data, *words[1:])
            self._save(data)
            return result
        if argv[0] == "systemd-run":
            unit = next(word.partition("=")[2] for word in argv if word.startswith("--unit="))
            data["timers"][unit] = argv
            self._save(data)
            return 0, ""
        assert argv[0] == "systemd-sysusers", argv
        return 0, ""

    def _show(self, data: dict, _option: str, _properties: str, name: str) -> tuple[int, str]:
        active = "active" if name in data["running"] else "inactive"
        active = "activating" if name in data["activating"] else active
        file_state = "enabled" if name in data["enabled"] else "disabled" if self._file(name) else ""
        return 0, f"ActiveState={active}\nUnitFileState={file_state}"

    def _file(self, name: str) -> bool:
        return any((self.tree / directory / name).is_file() for directory in ("vendor", "units"))

    def _daemon_reload(self, data: dict) -> tuple[int, str]:
        # A unit of the administrator's comes before one of a package.
        files = [
            path for directory in ("vendor", "units") for path in sorted((self.tree / directory).glob("*.service"))
        ]
        data["units"] = {path.name: path.read_text() for path in files}
        return 0, ""

    def _reset_failed(self, data: dict, name: str) -> tuple[int, str]:
        return 0, ""

    def _now(self, data: dict, name: str) -> dict[str, str]:
        text = data["units"][name]
        result = {"unit": text}
        for relative in text.split():
            path = self.tree / relative
            result[relative] = path.read_text() if path.is_file() else "(none)"
        return result

    def _restart(self, data: dict, name: str) -> tuple[int, str]:
        data["running"].pop(name, None)
        data["activating"] = [other for other in data["activating"] if other != name]
        if name not in data["units"]:
            return 5, f"Unit {name} not found."
        now = self._now(data, name)
        if any(BROKEN in text for text in now.values()):
            return 1, f"Job for {name} failed."
        data["running"][name] = now
        return 0, ""

    _start = _restart

    def _reload(self, data: dict, name: str) -> tuple[int, str]:
        if name not in data["running"]:
            return 1, f"{name} is not active, cannot reload."
        # What runs was started by the unit of then.
        now = {**self._now(data, name), "unit": data["running"][name]["unit"]}
        if any(BROKEN in text for text in now.values()):
            return 1, f"Job for {name} failed."
        data["running"][name] = now
        return 0, ""

    def _stop(self, data: dict, name: str) -> tuple[int, str]:
        data["timers"].pop(name.removesuffix(".timer"), None)
        data["activating"] = [other for other in data["activating"] if other != name]
        data["running"].pop(name, None)
        return 0, ""

    def _enable(self, data: dict, name: str) -> tuple[int, str]:
        if not self._file(name):
            return 1, f"Unit file {name} does not exist."
        data["enabled"] = sorted({*data["enabled"], name})
        return 0, ""

    def _disable(self, data: dict, name: str) -> tuple[int, str]:
        if not self._file(name):
            return 1, f"Unit file {name} does not exist."
        data["enabled"] = [other for other in data["enabled"] if other != name]
        return 0, ""


class World:
    """A tree (`fs`), its units and the state directory of the engine, all below one directory."""

    def __init__(self, root: Path, units: dict[str, str] | None = None, name: str = "broker"):
        self.root = root
        self.name = name
        self.fs = root / "fs"
        self.state = root / "state"
        for path in (root, self.fs, self.fs / "units", self.fs / "etc"):
            path.mkdir(mode=0o755, exist_ok=True)
        self.systemd = Systemd(self.fs, root / "systemd.json")
        for unit, text in (units or {}).items():
            (self.fs / "units" / unit).write_text(text)
        self.systemd(["systemctl", "daemon-reload"])
        self.store = engine.Store(name, str(self.state))

    def path(self, relative: str) -> str:
        return str(self.fs / relative)

    def file(self, relative: str, content: str, **options) -> engine.Entry:
        return engine.Entry(self.path(relative), content=content.encode(), **options)

    def link(self, relative: str, target: str) -> engine.Entry:
        return engine.Entry(self.path(relative), state="link", target=target)

    def directory(self, relative: str, mode: int = 0o755, **options) -> engine.Entry:
        return engine.Entry(self.path(relative), state="directory", mode=mode, **options)

    def absent(self, relative: str) -> engine.Entry:
        return engine.Entry(self.path(relative), state="absent")

    def transaction(self, entries, services=(), **options) -> engine.Transaction:
        options = {"state_dir": str(self.state), "unit_dir": str(self.fs / "units"), "call": self.systemd, **options}
        return engine.Transaction(self.name, list(entries), list(services), **options)

    def apply(self, entries, services=(), *, check: bool = False, **options) -> engine.Outcome:
        return self.transaction(entries, services, **options).apply(check=check)

    def recover(self, *words: str) -> int:
        return engine.main(["--state-dir", str(self.state), *words], call=self.systemd)

    def record(self) -> dict | None:
        return self.store.record()

    def files(self, *, times: bool = False) -> dict[str, tuple]:
        """Everything about the tree, by relative path. The unit of the recovery, which stays, is left out."""
        result = {}
        for path in sorted(self.fs.rglob("*")):
            found = os.lstat(path)
            what: str = stat.filemode(found.st_mode)
            if stat.S_ISREG(found.st_mode):
                what += " " + path.read_text()
            if stat.S_ISLNK(found.st_mode):
                what += " " + os.readlink(path)
            if path.name.startswith(engine.RECOVERY_UNIT):
                continue
            entry = (what, found.st_uid, found.st_gid)
            result[str(path.relative_to(self.fs))] = (*entry, found.st_mtime_ns) if times else entry
        return result

    def snapshot(self) -> dict:
        """The files, and what runs and will run."""
        return {"files": self.files(), "running": self.systemd.running, "enabled": self.systemd.enabled}

    def strays(self) -> list[str]:
        """What no finished run may leave behind."""
        left = [str(p) for p in self.fs.rglob("*") if p.name.endswith((".new", ".old", ".tmp"))]
        expected = {"transaction.py", self.name}
        own = {"lock", "last.json", "generations"}
        left += [str(p) for p in self.state.glob("*") if p.name not in expected]
        left += [str(p) for p in (self.state / self.name).glob("*") if p.name not in own]
        left += [str(p) for p in (self.state / self.name / "generations").glob("*") if not p.name.isdigit()]
        return left
