# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""A run that dies at any of its steps leaves the old set or the new one, whole, once anybody looks at it again.

A child applies a change and ends itself at the nth call that changes something; so does, in its turn, the recovery.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _transaction as engine
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import Service, TransactionError
from fake_systemd import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KILLED = 137
#: os.open counts where it creates.
MUTATORS = (
    *("rename", "link", "symlink", "unlink", "mkdir", "rmdir", "chmod", "chown", "fchmod", "fchown"),
    *("open", "write", "fsync"),
)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    assert os.geteuid() == 0, "these tests change owners: run them as root"
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def die_at(world: World, n: int, when: str, action) -> list[str] | None:
    """Run an action in a child that dies before or after its nth change, or (torn) within that write.

    Returns None where it died, and the names of all its changes where it came to its end.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            done: list[str] = []
            write = os.write

            def counted(name, function, args, options):
                done.append(name)
                if len(done) == n:
                    if when == "torn":
                        write(args[0], bytes(args[1])[: len(args[1]) // 2])
                    if when == "after":
                        with contextlib.suppress(OSError):
                            function(*args, **options)
                    os._exit(KILLED)
                return function(*args, **options)

            def patch(name):
                function = getattr(os, name)

                def patched(*args, **options):
                    if name == "open" and not args[1] & os.O_CREAT:
                        return function(*args, **options)
                    return counted(name, function, args, options)

                setattr(os, name, patched)

            for name in MUTATORS:
                patch(name)
            call = world.systemd.__call__

            def systemd(argv, **options):
                return call(argv, **options) if "show" in argv else counted("call", call, (argv,), options)

            action(systemd)
            write(writer, json.dumps(done).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as handle:
        told = handle.read()
    _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), code
    return json.loads(told) if code == 0 else None


# --- one change that has everything -----------------------------------------------------------------------------------

UNITS = {"svc.service": "etc/conf etc/new etc/link", "fw.service": "etc/fw"}
SVC, FW = Service("svc.service"), Service("fw.service", on_change="reload")
EXTRA, OLD = Service("extra.service"), Service("old.service")


def old_set(world):
    return [
        world.directory("etc/dir", 0o755),
        world.file("etc/conf", "old", mode=0o640, group="daemon"),
        world.file("etc/gone", "gone"),
        world.link("etc/link", "conf"),
        world.file("etc/fw", "old"),
        world.file("units/svc.service", UNITS["svc.service"]),
        world.file("units/old.service", "etc/gone"),
    ]


def new_set(world):
    return [
        world.directory("etc/dir", 0o700),
        world.directory("etc/fresh", 0o750, group="daemon"),
        world.file("etc/key-2", "key", early=True, mode=0o600),
        world.file("etc/conf", "new", mode=0o600),
        world.file("etc/new", "new"),
        world.file("etc/fresh/inner", "new"),
        world.link("etc/link", "new"),
        world.file("etc/fw", "new"),
        world.file("units/svc.service", UNITS["svc.service"] + " etc/fresh/inner"),
        world.file("units/extra.service", "etc/fresh/inner"),
    ]


class Case:
    """A host with the old set, and what the host with the old and with the new set looks like."""

    services = (SVC, FW, EXTRA)
    #: The generations before the change.
    kept = [0, 1]

    def __init__(self, root, *, reboots: bool):
        self.root = root
        twin = self.host()
        self.old = self.view(twin, reboots)
        twin = self.host()
        self.new_outcome = self.apply_new(twin)
        self.new = self.view(twin, reboots)
        assert self.old != self.new

    def host(self) -> World:
        shutil.rmtree(self.root, ignore_errors=True)
        world = World(self.root, UNITS)
        world.apply(old_set(world), [SVC, FW, OLD])
        return world

    def apply_new(self, world, call=None):
        return world.apply(new_set(world), self.services, call=call or world.systemd)

    @staticmethod
    def view(world, reboots):
        if reboots:
            world.systemd.power_cut()
            world.systemd.boot()
        return world.snapshot()


class RollbackCase(Case):
    """A host with the new set, and the way back to the old one, which it keeps as its first generation."""

    kept = [0, 1, 2]

    def host(self) -> World:
        world = super().host()
        super().apply_new(world)
        return world

    def apply_new(self, world, call=None):
        kept = world.store.generation(1)
        return world.apply(kept.entries, kept.services, memo={"restores": 1}, call=call or world.systemd)


def recover(world, way, call=None):
    call = call or world.systemd
    words = ["--state-dir", str(world.state)] + (["--boot"] if way == "boot" else [])
    assert engine.main(words, call=call) == 0


def check_recovered(case, world, way):
    """Look at a host whose change was cut: recover it, and compare."""
    record = world.record()
    phase = record["phase"] if record else None
    if way == "boot":
        world.systemd.power_cut()
    recover(world, way)
    if way == "boot":
        world.systemd.boot()
    found = world.snapshot()
    assert found in (case.old, case.new), phase
    if phase:
        assert found == (case.new if phase == "committed" else case.old), phase
        assert world.systemd.timers == {}
    assert world.record() is None
    if found == case.old:
        assert world.store.generations() == case.kept
    # The next run finds nothing of it, and ends in the new set.
    outcome = case.apply_new(world)
    assert not outcome.recovered
    assert outcome.changed == (found == case.old)
    assert world.snapshot() == (case.new if way != "boot" else {**case.new, "running": world.systemd.running})
    assert world.strays() == []


def check_next_run(case, world):
    """Look at a host whose change was cut: run the change again."""
    record = world.record()
    outcome = case.apply_new(world)
    assert bool(outcome.recovered) == bool(record)
    if record:
        assert record["id"] in outcome.recovered
    assert world.snapshot() == case.new
    assert world.strays() == []
    assert world.store.generations() == [*case.kept, case.kept[-1] + 1]
    assert world.systemd.recovery_enabled


def moments(names: list[str]) -> list[tuple[int, str]]:
    """Every moment at which a run with these changes can die. After one is before the next."""
    result = [(n, "before") for n in range(1, len(names) + 1)] + [(len(names), "after")]
    return result + [(n, "torn") for n, name in enumerate(names, 1) if name == "write"]


@pytest.fixture
def root():
    """In memory where the machine has such a place: thousands of hosts are made and thrown away."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        yield Path(path)


@pytest.fixture(params=["normal", "boot", "next run"])
def way(request):
    return request.param


@pytest.mark.parametrize("links", [True, False], ids=["", "no hard links"])
def test_a_run_that_dies_at_any_moment(root, way, links, monkeypatch):
    if not links:

        def link(*args, **options):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    case = Case(root / "host", reboots=way == "boot")
    world = case.host()
    names = die_at(world, 0, "", lambda call: case.apply_new(world, call))
    assert {"rename", "symlink", "mkdir", "chmod", "chown", "fchown", "open", "write", "unlink", "call"} <= set(names)
    todo = moments(names)
    for n, when in todo if links else todo[::9]:
        world = case.host()
        assert die_at(world, n, when, lambda call, world=world: case.apply_new(world, call)) is None, n
        try:
            if way == "next run":
                check_next_run(case, world)
            else:
                check_recovered(case, world, way)
        except AssertionError as error:
            raise AssertionError(
                f"died {when} change {n}, {names[n - 1]} (after {names[max(0, n - 4) : n - 1]})"
            ) from error


@pytest.mark.parametrize("way", ["normal", "next run"])
def test_a_rollback_that_dies_at_any_moment(root, way):
    """The change of the tests above, backwards: it ends in the wanted generation, or in the one that was in force."""
    case = RollbackCase(root / "host", reboots=False)
    world = case.host()
    names = die_at(world, 0, "", lambda call: case.apply_new(world, call))
    assert {"rename", "symlink", "open", "write", "unlink", "call"} <= set(names)
    for n, when in moments(names)[:: 1 if way == "next run" else 3]:
        world = case.host()
        assert die_at(world, n, when, lambda call, world=world: case.apply_new(world, call)) is None, n
        try:
            if way == "next run":
                check_next_run(case, world)
            else:
                check_recovered(case, world, way)
        except AssertionError as error:
            raise AssertionError(f"died {when} change {n}, {names[n - 1]}") from error
        assert not case.apply_new(world).changed


def test_dying_after_a_change_is_dying_before_the_next(root):
    """What `moments` takes for granted: between two counted calls nothing is changed."""
    case = Case(root / "host", reboots=False)
    world = case.host()
    total = len(die_at(world, 0, "", lambda call: case.apply_new(world, call)))

    def left_by(n, when):
        world = case.host()
        die_at(world, n, when, lambda call: case.apply_new(world, call))
        hidden = [path.relative_to(world.root) for path in world.root.rglob("*")]
        return len(hidden), world.snapshot()["running"], (world.record() or {}).get("phase")

    for n in range(2, total, 5):
        assert left_by(n, "after") == left_by(n + 1, "before"), n


@pytest.mark.parametrize("way", ["normal", "boot"])
def test_a_recovery_that_dies_too(root, way):
    case = Case(root / "host", reboots=way == "boot")
    world = case.host()
    total = len(die_at(world, 0, "", lambda call: case.apply_new(world, call)))
    nested = 0
    for n in range(total // 4, total + 1, 19):
        m = 1
        while m < 200:
            world = case.host()
            assert die_at(world, n, "before", lambda call, world=world: case.apply_new(world, call)) is None
            if world.record() is None:
                break
            if way == "boot":
                world.systemd.power_cut()
            if die_at(world, m, "before", lambda call, world=world: recover(world, way, call)) is not None:
                break
            phase = (world.record() or {}).get("phase")
            try:
                check_recovered(case, world, way)
            except AssertionError as error:
                raise AssertionError(f"died before change {n}, its recovery before change {m}, at {phase}") from error
            nested += 1
            m += 5
        assert m < 200
    assert nested > 20


def test_a_next_run_that_dies_too(root):
    case = Case(root / "host", reboots=False)
    world = case.host()
    total = len(die_at(world, 0, "", lambda call: case.apply_new(world, call)))
    for n in range(total // 3, total + 1, 23):
        for m in range(1, 2 * total, 29):
            world = case.host()
            assert die_at(world, n, "before", lambda call, world=world: case.apply_new(world, call)) is None
            if die_at(world, m, "before", lambda call, world=world: case.apply_new(world, call)) is not None:
                break
            check_recovered(case, world, "normal")


def test_a_failing_run_that_dies_in_its_undo(root):
    case = Case(root / "host", reboots=False)

    def fail(world, call):
        with pytest.raises(TransactionError):
            world.apply(new_set(world), case.services, call=call, probe=lambda: ["no"])

    world = case.host()
    names = die_at(world, 0, "", lambda call: fail(world, call))
    for n, when in moments(names)[len(names) // 2 :: 3]:
        world = case.host()
        assert die_at(world, n, when, lambda call, world=world: fail(world, call)) is None
        recover(world, "normal")
        assert world.snapshot() == case.old, (n, when)
        assert world.record() is None


def test_a_confirmation_that_dies(root):
    case = Case(root / "host", reboots=False)

    def confirm(world, identity, call):
        engine.confirm(world.name, identity, state_dir=str(world.state), call=call)

    n = 0
    while True:
        n += 1
        world = case.host()
        identity = world.apply(new_set(world), case.services, confirm_within=60).transaction
        if die_at(world, n, "before", lambda call, w=world, i=identity: confirm(w, i, call)) is not None:
            break
        check_recovered(case, world, "normal")
    assert n > 5


# --- any change -------------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["", "one", "two", "three"])
MODES = st.sampled_from([0o600, 0o640, 0o644])
FILES = ("etc/a", "etc/b", "etc/d/x", "etc/d/y", "etc/e/z")


def path_state():
    attributes = {"mode": MODES, "group": st.sampled_from(["root", "daemon"]), "early": st.booleans()}
    file = st.fixed_dictionaries({"state": st.just("file"), "content": TEXTS, **attributes})
    link = st.fixed_dictionaries({"state": st.just("link"), "target": st.sampled_from(["a", "b", "nowhere"])})
    return st.one_of(st.none(), file, file, link, st.just({"state": "absent"}))


def sets():
    return st.fixed_dictionaries(
        {
            "files": st.fixed_dictionaries({path: path_state() for path in FILES}),
            "modes": st.fixed_dictionaries({"etc/d": st.sampled_from([0o700, 0o755]), "etc/e": st.just(0o750)}),
            "unit": st.sampled_from(["etc/a etc/b", "etc/a etc/d/x", "etc/b etc/e/z"]),
            "state": st.sampled_from(["started", "started", "stopped"]),
            "enabled": st.sampled_from([True, True, False, None]),
            "on_change": st.sampled_from(["restart", "reload"]),
        }
    )


def entries(world, wanted):
    used = {os.path.dirname(path) for path, item in wanted["files"].items() if item}
    result = [world.directory(path, mode) for path, mode in wanted["modes"].items() if path in used]
    for path, item in wanted["files"].items():
        if item:
            item = {**item, "content": item.get("content", "").encode()}
            result.append(engine.Entry(world.path(path), **item))
    result.append(world.file("units/svc.service", wanted["unit"]))
    return result


def service(wanted):
    return Service("svc.service", wanted["state"], wanted["enabled"], wanted["on_change"])


def refuse(staged):
    raise TransactionError("refused")


FATES = {
    "holds": {},
    "refused": {"validate": refuse},
    "fails": {"probe": lambda: ["fails"]},
}


def attempt(world, wanted, fate, call):
    """The change, or its failure that is meant to be."""
    try:
        return world.apply(entries(world, wanted), [service(wanted)], call=call, **FATES[fate])
    except TransactionError:
        if fate == "holds":
            raise
        return None


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    old=st.one_of(st.none(), sets()),
    new=sets(),
    fate=st.sampled_from(["holds", "holds", "holds", "refused", "fails"]),
    share=st.floats(0, 1),
    way=st.sampled_from(["normal", "boot", "next run"]),
)
def test_any_change_that_dies_anywhere(root, old, new, fate, share, way):
    def host():
        shutil.rmtree(root / "host", ignore_errors=True)
        world = World(root / "host", {"svc.service": "etc/a"})
        if old:
            world.apply(entries(world, old), [service(old)])
        return world

    reboots = way == "boot"
    before = Case.view(host(), reboots)
    world = host()
    names = die_at(world, 0, "", lambda call: attempt(world, new, fate, call))
    after = Case.view(world, reboots)
    if fate != "holds" and names and "rename" in names:
        assert after == before
    if not names:
        return
    n = 1 + int(share * (len(names) - 1))
    world = host()
    assert die_at(world, n, "before", lambda call: attempt(world, new, fate, call)) is None
    if way == "next run":
        record = world.record()
        outcome = attempt(world, new, "holds", world.systemd)
        assert bool(outcome.recovered) == bool(record)
        assert not attempt(world, new, "holds", world.systemd).changed
        if fate == "holds":
            assert world.snapshot() == after
        assert world.strays() == []
        return
    record = world.record()
    if reboots:
        world.systemd.power_cut()
    recover(world, way)
    if reboots:
        world.systemd.boot()
    found = world.snapshot()
    if record:
        assert found == (after if record["phase"] == "committed" else before)
    else:
        assert found in (before, after)
