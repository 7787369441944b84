# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import ast
import errno
import fcntl
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _transaction as engine
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import Service, TransactionError
from fake_systemd import World

SVC = Service("svc.service")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    assert os.geteuid() == 0, "these tests change owners: run them as root"
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "host", {"svc.service": "etc/conf"})


def typical(world):
    """A directory, a file in it, a link, a file of another owner, a unit."""
    return [
        world.directory("etc/dir", 0o750),
        world.file("etc/conf", "one", mode=0o640, group="daemon"),
        world.file("etc/dir/inner", "inner", owner="daemon", group="daemon", mode=0o600),
        world.link("etc/current", "dir/inner"),
    ]


def refuse(message="no good", **options):
    def action(*args):
        raise TransactionError(message, **options)

    return action


# --- it holds ---------------------------------------------------------------------------------------------------------


def test_a_set_comes_to_a_virgin_host(world):
    outcome = world.apply(typical(world), [SVC])

    assert outcome.changed
    assert outcome.generation == 1
    assert not outcome.recovered
    assert {Path(change.dest).name: change.what for change in outcome.changes} == {
        "dir": ["state"],
        "conf": ["state"],
        "inner": ["state"],
        "current": ["state"],
    }
    files = world.files()
    daemon = os.stat(world.path("etc/dir/inner"))
    assert files["etc/conf"] == ("-rw-r----- one", 0, daemon.st_gid)
    assert files["etc/dir"][0] == "drwxr-x---"
    assert files["etc/dir/inner"][0] == "-rw------- inner"
    assert daemon.st_uid != 0
    assert files["etc/current"][0].endswith(" dir/inner")
    assert world.systemd.running == {"svc.service": {"unit": "etc/conf", "etc/conf": "one"}}
    assert world.systemd.enabled == ["svc.service"]
    assert world.systemd.timers == {}
    assert world.record() is None
    assert world.store.last()["result"] == "committed"
    assert world.strays() == []


def test_the_state_is_readable_by_root_alone(world):
    world.apply(typical(world), [SVC])
    for path in (world.state, *world.state.rglob("*")):
        assert os.lstat(path).st_mode & 0o077 == 0, path


def test_the_recovery_is_installed_before_anything_changes(world):
    seen = []

    def validate(staged):
        seen.append((world.systemd.recovery_enabled, (world.state / "transaction.py").read_bytes()))

    world.apply(typical(world), [SVC], validate=validate)
    assert seen == [(True, Path(engine.__file__).read_bytes())]
    unit = (world.fs / "units" / engine.RECOVERY_UNIT).read_text()
    assert f"{world.state}/transaction.py --state-dir {world.state} --boot" in unit


def test_a_recovery_unit_that_was_never_enabled_is_enabled_by_the_next_change(world):
    world.systemd.deny(f"enable {engine.RECOVERY_UNIT}")
    with pytest.raises(TransactionError, match=r"denied by the test"):
        world.apply(typical(world), [SVC])
    assert "etc/conf" not in world.files()
    world.systemd.deny()
    world.apply(typical(world), [SVC])
    assert world.systemd.recovery_enabled


def test_a_second_run_changes_nothing_and_only_looks(world):
    world.apply(typical(world), [SVC])
    before = world.files(times=True)
    world.systemd.calls.clear()

    outcome = world.apply(typical(world), [SVC])

    assert not outcome.changed
    assert outcome.changes == []
    assert world.files(times=True) == before
    assert {tuple(call[:2]) for call in world.systemd.calls} == {("systemctl", "show")}


@pytest.mark.parametrize(
    ("path", "drift", "what"),
    [
        ("etc/conf", lambda p: Path(p).write_text("drift"), ["content"]),
        ("etc/conf", lambda p: os.chmod(p, 0o666), ["mode"]),
        ("etc/conf", lambda p: os.chmod(p, 0o4640), ["mode"]),
        ("etc/conf", lambda p: os.chown(p, 1, -1), ["owner"]),
        ("etc/conf", lambda p: os.chown(p, -1, 0), ["group"]),
        ("etc/conf", os.unlink, ["state"]),
        ("etc/conf", lambda p: (os.rename(p, p + ".x"), os.symlink(p + ".x", p)), ["state"]),
        ("etc/dir", lambda p: os.chmod(p, 0o755), ["mode"]),
        ("etc/dir", lambda p: os.chown(p, 1, 1), ["owner", "group"]),
        ("etc/current", lambda p: (os.unlink(p), os.symlink("/nowhere", p)), ["target"]),
        ("etc/current", lambda p: (os.unlink(p), Path(p).write_text("a file")), ["state"]),
    ],
)
def test_each_drift_is_named_and_set_right(world, path, drift, what):
    # The owner of a parent is checked first, so that root owns what is inside.
    entries = [world.directory("etc/dir", 0o750), *typical(world)[1:2], world.link("etc/current", "dir/inner")]
    world.apply(entries, [SVC])
    right = world.files()
    drift(world.path(path))

    outcome = world.apply(entries, [SVC])

    assert [(change.dest, change.what) for change in outcome.changes] == [(world.path(path), what)]
    assert {k: v for k, v in world.files().items() if not k.endswith(".x")} == right


def test_what_is_wanted_no_longer_is_removed_and_directories_are_not(world):
    world.apply(typical(world), [SVC])
    outcome = world.apply(typical(world)[1:2], [SVC])
    assert sorted(Path(c.dest).name for c in outcome.changes) == ["current", "inner"]
    assert set(world.files()) == {"etc", "etc/conf", "etc/dir", "units", "units/svc.service"}


def test_absent_removes_a_file_and_is_content_with_none(world):
    Path(world.path("etc/old")).write_text("old")
    assert world.apply([world.absent("etc/old")]).changed
    assert "etc/old" not in world.files()
    assert not world.apply([world.absent("etc/old"), world.absent("etc/no/where")]).changed


def test_an_early_file_is_in_place_for_the_validation_and_gone_after_a_refusal(world):
    entries = [world.file("etc/key-1", "key", early=True), world.file("etc/conf", "uses key-1")]
    seen = []

    def validate(staged):
        seen.append((Path(world.path("etc/key-1")).read_text(), staged[world.path("etc/key-1")]))
        raise TransactionError("no")

    with pytest.raises(TransactionError):
        world.apply(entries, validate=validate)
    assert seen == [("key", world.path("etc/key-1"))]
    assert "etc/key-1" not in world.files()


def test_accounts_are_made_before_files_are_staged(world):
    entry = world.file("etc/accounts", "u svc", sysusers=True)
    world.apply([entry])
    assert ["systemd-sysusers", f"--replace={entry.dest}", "-"] in world.systemd.calls
    world.systemd.deny("systemd-sysusers")
    before = world.files()
    with pytest.raises(TransactionError, match="systemd-sysusers refused"):
        world.apply([world.file("etc/accounts", "u other", sysusers=True)])
    assert world.files() == before


def test_a_reload_is_a_reload_where_the_unit_runs(world):
    service = Service("svc.service", on_change="reload")
    world.apply([world.file("etc/conf", "one")], [service])
    world.systemd.calls.clear()
    world.apply([world.file("etc/conf", "two")], [service])
    assert ["systemctl", "reload", "svc.service"] in world.systemd.calls
    assert ["systemctl", "restart", "svc.service"] not in world.systemd.calls
    assert world.systemd.running["svc.service"]["etc/conf"] == "two"


@pytest.mark.parametrize("name", ["svc.service", "svc"])
@pytest.mark.parametrize("changed", ["units/svc.service", "units/svc.service.d/local.conf"])
def test_a_changed_unit_is_a_restart_where_a_changed_file_is_a_reload(world, name, changed):
    (world.fs / "units" / "svc.service.d").mkdir()
    service = Service(name, on_change="reload")
    world.systemd = aliased(world.systemd)
    world.apply([world.file("etc/conf", "one"), world.file(changed, "etc/conf")], [service])
    world.systemd.calls.clear()
    world.apply([world.file("etc/conf", "one"), world.file(changed, "etc/conf v2")], [service])
    assert ["systemctl", "restart", name] in world.systemd.calls
    assert ["systemctl", "reload", name] not in world.systemd.calls


def aliased(systemd):
    """A systemd that knows a service without its suffix too."""

    def call(argv, **how):
        call.calls.append(list(argv))
        return systemd([f"{word}.service" if word == "svc" else word for word in argv], **how)

    call.calls = []
    return call


def test_a_unit_that_is_wanted_no_longer_is_stopped_and_disabled_before_it_goes(world):
    entries = [world.file("etc/conf", "one"), world.file("units/extra.service", "etc/conf")]
    world.apply(entries, [SVC, Service("extra.service")])
    assert "extra.service" in world.systemd.running
    world.systemd.calls.clear()
    world.apply(entries[:1], [SVC])
    assert set(world.systemd.running) == {"svc.service"}
    assert world.systemd.enabled == ["svc.service"]
    assert "units/extra.service" not in world.files()
    assert world.systemd(["systemctl", "restart", "extra.service"])[0] == 5
    # Without changes of its own: a unit that is gone is not looked at again.
    assert not world.apply(entries[:1], [SVC]).changed


def test_a_unit_that_goes_while_its_service_is_wanted_gives_way_to_that_of_the_package(world):
    (world.fs / "vendor").mkdir()
    (world.fs / "vendor" / "svc.service").write_text("etc/conf vendor")
    entries = [world.file("etc/conf", "one"), world.file("units/svc.service", "etc/conf")]
    world.apply(entries, [SVC])
    world.systemd.calls.clear()
    world.apply(entries[:1], [SVC])
    assert world.systemd.running["svc.service"]["unit"] == "etc/conf vendor"
    assert world.systemd.enabled == ["svc.service"]
    assert ["systemctl", "stop", "svc.service"] not in world.systemd.calls
    assert ["systemctl", "disable", "svc.service"] not in world.systemd.calls


def test_a_template_that_goes_is_no_service_to_stop(world):
    entries = [world.file("etc/conf", "one"), world.file("units/extra@.service", "etc/conf")]
    world.apply(entries, [SVC])
    world.systemd.calls.clear()
    world.apply(entries[:1], [SVC])
    assert "units/extra@.service" not in world.files()
    assert not [call for call in world.systemd.calls if "extra@.service" in call]


def test_a_service_that_is_to_be_stopped_is_stopped_and_disabled(world):
    world.apply([world.file("etc/conf", "one")], [SVC])
    world.apply([world.file("etc/conf", "two")], [Service("svc.service", state="stopped", enabled=False)])
    assert world.systemd.running == {}
    assert world.systemd.enabled == []


# --- it refuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "wanted", "message"),
    [
        (os.mkdir, "file", "is to be a file, but is a directory"),
        (os.mkdir, "absent", "is to be absent, but is a directory"),
        (os.mkdir, "link", "is to be a link, but is a directory"),
        (lambda p: Path(p).write_text(""), "directory", "is to be a directory, but is a file"),
        (lambda p: os.symlink("/", p), "directory", "is to be a directory, but is a link"),
        (os.mkfifo, "file", "is to be a file, but is a special file"),
    ],
)
def test_something_else_in_the_way_is_left_alone(world, make, wanted, message):
    make(world.path("etc/x"))
    before = world.files(times=True)
    with pytest.raises(TransactionError, match=message) as caught:
        world.apply([world.file("etc/a", "a"), engine.Entry(world.path("etc/x"), state=wanted)])
    assert not caught.value.undone
    assert world.files(times=True) == before


@pytest.mark.parametrize("ours", ["etc/open/file", "etc/open/deep/file"])
def test_a_parent_that_others_may_write_is_refused(world, ours):
    os.mkdir(world.path("etc/open"))
    os.chmod(world.path("etc/open"), 0o777)
    os.mkdir(world.path("etc/open/deep"))
    with pytest.raises(TransactionError, match=r"its parent .*/etc/open belongs to uid 0 with mode 0777"):
        world.apply([world.file(ours, "x")])
    os.chmod(world.path("etc/open"), 0o1777)
    assert world.apply([world.file(ours, "x")]).changed


def test_a_parent_that_belongs_to_somebody_else_is_refused(world):
    os.mkdir(world.path("etc/theirs"))
    os.chown(world.path("etc/theirs"), 1, 1)
    with pytest.raises(TransactionError, match="belongs to uid 1 "):
        world.apply([world.file("etc/theirs/x", "x")])


def test_a_parent_that_is_a_link_is_judged_by_where_it_leads(world):
    os.makedirs(world.path("open/inner"))
    os.chmod(world.path("open"), 0o777)
    os.symlink(world.path("open/inner"), world.path("etc/innocent"))
    with pytest.raises(TransactionError, match=r"its parent .*/open belongs to"):
        world.apply([world.file("etc/innocent/x", "x")])


def test_a_parent_that_is_a_file_is_refused(world):
    Path(world.path("etc/file")).write_text("")
    with pytest.raises(TransactionError, match="is not a directory"):
        world.apply([world.file("etc/file/x", "x")])


@pytest.mark.parametrize("who", [{"owner": "no-such-user"}, {"group": "no-such-group"}])
def test_an_unknown_account_is_refused(world, who):
    before = world.files()
    with pytest.raises(TransactionError, match="no-such-") as caught:
        world.apply([world.file("etc/a", "a"), world.file("etc/b", "b", **who)])
    assert caught.value.step == "stage"
    assert not caught.value.undone
    assert world.files() == before
    assert world.record() is None


def test_a_directory_that_is_missing_is_named(world):
    before = world.files()
    with pytest.raises(TransactionError, match="etc/none"):
        world.apply([world.file("etc/a", "a"), world.file("etc/none/b", "b")])
    assert world.files() == before


# --- check mode -------------------------------------------------------------------------------------------------------


def test_check_mode_on_a_virgin_host_leaves_no_trace(world):
    before = world.files(times=True)
    outcome = world.apply(typical(world), [SVC], check=True)
    assert outcome.changed
    assert len(outcome.changes) == 4
    assert not outcome.validated
    assert outcome.notes
    assert world.files(times=True) == before
    assert not world.state.exists()
    assert not world.systemd.running


def changed_set(world):
    return [
        world.directory("etc/dir", 0o700),
        world.directory("etc/fresh"),
        world.file("etc/conf", "two", mode=0o600),
        world.file("etc/added", "added", group="daemon", mode=0o640),
        world.file("etc/key", "key", early=True),
        world.link("etc/current", "elsewhere"),
    ]


def test_check_mode_validates_and_changes_nothing(world):
    world.apply(typical(world), [SVC])
    before, running, seen = world.files(times=True), world.systemd.running, {}
    world.systemd.calls.clear()

    def validate(staged):
        for dest, path in staged.items():
            seen[Path(dest).name] = (Path(path).read_text(), os.stat(path).st_mode & 0o7777)

    outcome = world.apply(changed_set(world), [SVC], validate=validate, check=True)

    assert outcome.validated
    assert outcome.changed
    assert outcome.generation is None
    assert seen == {"conf": ("two", 0o600), "added": ("added", 0o640), "key": ("key", 0o644)}
    assert world.files(times=True) == before
    assert world.systemd.running == running
    assert {tuple(call[:2]) for call in world.systemd.calls} <= {("systemctl", "show")}
    assert world.record() is None
    assert world.store.generations() == [0, 1]
    assert world.strays() == []


def test_check_mode_fails_where_the_validation_does(world):
    world.apply(typical(world), [SVC])
    before = world.files(times=True)
    with pytest.raises(TransactionError, match="no good") as caught:
        world.apply(changed_set(world), [SVC], validate=refuse(), check=True)
    assert caught.value.step == "validate"
    assert world.files(times=True) == before
    assert world.strays() == []


def test_check_mode_says_why_it_cannot_validate(world):
    world.apply(typical(world), [SVC])
    before = world.files(times=True)
    more = [world.file("etc/x", "x", group="no-such-group"), world.file("etc/none/y", "y")]
    outcome = world.apply([*typical(world), *more], [SVC], validate=refuse(), check=True)
    assert not outcome.validated
    assert "no-such-group" in outcome.notes[0]
    assert "etc/none" in outcome.notes[0]
    assert world.files(times=True) == before


def test_check_mode_sees_a_service_that_is_down_and_leaves_it(world):
    world.apply(typical(world), [SVC])
    world.systemd.change(running={})
    outcome = world.apply(typical(world), [SVC], check=True)
    assert outcome.changed
    assert outcome.repaired == ["svc.service is not running"]
    assert world.systemd.running == {}


def test_check_mode_leaves_an_unfinished_transaction_to_the_next_run(world):
    world.apply([world.file("etc/conf", "one")], [SVC])
    world.apply([world.file("etc/conf", "two")], [SVC], confirm_within=60)
    before, record = world.files(times=True), world.record()
    outcome = world.apply([world.file("etc/conf", "three")], [SVC], check=True)
    assert "unfinished" in outcome.notes[0]
    assert world.files(times=True) == before
    assert world.record() == record


# --- it is undone -----------------------------------------------------------------------------------------------------


def test_what_a_validator_refuses_is_never_seen(world):
    world.apply(typical(world), [SVC])
    before, inode = world.snapshot(), os.stat(world.path("etc/conf")).st_ino
    world.systemd.calls.clear()
    with pytest.raises(TransactionError, match="validate: no good") as caught:
        world.apply(changed_set(world), [SVC], validate=refuse())
    assert not caught.value.undone
    assert world.snapshot() == before
    assert os.stat(world.path("etc/conf")).st_ino == inode
    assert {tuple(call[:2]) for call in world.systemd.calls} == {("systemctl", "show")}
    assert world.strays() == []


FAILURES = {
    "probe": ({"probe": lambda: ["REST does not answer"]}, "probe: REST does not answer"),
    "probe raises": ({"probe": lambda: 1 // 0}, "ZeroDivisionError"),
    "timer": ({"confirm_within": 60, "arm": 2}, "cannot arm the timer"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_puts_files_and_services_back(world, failure):
    options, message = FAILURES[failure]
    options = dict(options)
    world.apply(typical(world), [SVC])
    before = world.snapshot()
    times = {k: v for k, v in world.files(times=True).items() if not v[0].startswith("d")}
    if options.pop("arm", 0):
        call, armed = world.systemd, []

        def second_timer_fails(argv, **how):
            armed.extend([1] if argv[0] == "systemd-run" else [])
            return (1, "no") if argv[0] == "systemd-run" and len(armed) > 1 else call(argv, **how)

        options["call"] = second_timer_fails

    with pytest.raises(TransactionError, match=message) as caught:
        world.apply(changed_set(world), [SVC], journal=lambda since: "the journal", **options)

    assert caught.value.undone
    assert not caught.value.half_done
    assert caught.value.journal == "the journal"
    assert world.snapshot() == before
    assert {k: v for k, v in world.files(times=True).items() if not v[0].startswith("d")} == times
    assert world.systemd.timers == {}
    assert world.record() is None
    assert world.store.last()["result"] == "undone"
    assert message in world.store.last()["reason"]
    assert world.store.generations() == [0, 1]
    assert world.strays() == []


def test_nothing_is_swapped_without_a_timer(world):
    world.apply(typical(world), [SVC])
    before = world.snapshot()
    world.systemd.deny("systemd-run")
    with pytest.raises(TransactionError, match="swap: cannot arm the timer") as caught:
        world.apply(changed_set(world), [SVC])
    assert not caught.value.undone
    world.systemd.deny()
    assert world.snapshot() == before
    assert world.record() is None
    assert world.strays() == []


def test_a_configuration_with_which_the_service_does_not_start_is_undone(world):
    world.apply([world.file("etc/conf", "one")], [SVC])
    before = world.snapshot()
    with pytest.raises(TransactionError, match=r"activate: systemctl restart svc.service: Job .* failed"):
        world.apply([world.file("etc/conf", "broken")], [SVC])
    assert world.snapshot() == before


def test_the_undo_of_a_reload_brings_the_old_content_back_into_the_service(world):
    service = Service("svc.service", on_change="reload")
    world.apply([world.file("etc/conf", "one")], [service])
    before = world.snapshot()
    with pytest.raises(TransactionError):
        world.apply([world.file("etc/conf", "two")], [service], probe=lambda: ["no"])
    assert world.snapshot() == before


def test_a_new_unit_is_stopped_and_disabled_and_gone_after_an_undo(world):
    world.apply([world.file("etc/conf", "one")], [SVC])
    before = world.snapshot()
    entries = [world.file("etc/conf", "one"), world.file("units/extra.service", "etc/conf")]
    ran = []

    def probe():
        ran.append(world.systemd.running.get("extra.service"))
        return ["no"]

    with pytest.raises(TransactionError):
        world.apply(entries, [SVC, Service("extra.service")], probe=probe)
    assert ran == [{"unit": "etc/conf", "etc/conf": "one"}]
    assert world.snapshot() == before
    assert ["systemctl", "stop", "extra.service"] in world.systemd.calls
    assert world.systemd(["systemctl", "restart", "extra.service"])[0] == 5


@pytest.mark.parametrize("on_change", ["restart", "reload"])
def test_a_changed_unit_runs_as_before_after_an_undo(world, on_change):
    service = Service("svc.service", on_change=on_change)
    entries = [world.file("etc/conf", "one"), world.file("units/svc.service", "etc/conf")]
    world.apply(entries, [service])
    before = world.snapshot()
    with pytest.raises(TransactionError):
        world.apply([entries[0], world.file("units/svc.service", "etc/conf v2")], [service], probe=lambda: ["no"])
    assert world.snapshot() == before


@pytest.mark.parametrize(
    ("found", "runs"),
    [({}, True), ({"running": {}}, False), ({"enabled": [engine.RECOVERY_UNIT, "svc.service"]}, True)],
)
@pytest.mark.parametrize("cause", ["probe", "stop extra.service", "disable extra.service"])
def test_a_unit_that_went_is_as_it_was_after_an_undo(world, found, runs, cause):
    entries = [world.file("etc/conf", "one"), world.file("units/extra.service", "etc/conf")]
    world.apply(entries, [SVC, Service("extra.service")])
    world.systemd.change(**found)
    before, seen = world.snapshot(), []
    world.systemd.deny(cause)

    def probe():
        seen.append("extra.service" in world.systemd.running)
        return ["no"]

    with pytest.raises(TransactionError) as caught:
        world.apply(entries[:1], [SVC], probe=probe)
    assert caught.value.undone
    assert not any(seen)
    assert seen or cause != "probe"
    after = world.snapshot()
    assert after["files"] == before["files"]
    assert after["enabled"] == before["enabled"]
    assert ("extra.service" in after["running"]) == runs


def test_a_service_that_was_stopped_and_disabled_is_so_again(world):
    world.systemd.change(running={}, enabled=[])
    with pytest.raises(TransactionError):
        world.apply([world.file("etc/conf", "one")], [SVC], probe=lambda: ["no"])
    assert world.systemd.running == {}
    assert world.systemd.enabled == []


def test_a_service_that_the_set_stops_runs_and_is_enabled_again(world):
    world.apply([world.file("etc/conf", "one")], [SVC])
    before = world.snapshot()
    with pytest.raises(TransactionError):
        world.apply(
            [world.file("etc/conf", "two")],
            [Service("svc.service", state="stopped", enabled=False)],
            probe=lambda: ["no"],
        )
    assert world.snapshot() == before


def test_a_file_that_cannot_be_put_back_keeps_the_record_for_the_next_run(world, monkeypatch):
    world.apply([world.file("etc/conf", "one"), world.file("etc/other", "one")], [SVC])
    before, rename = world.snapshot(), os.rename

    def stubborn(source, target):
        if str(source).endswith(".old") and str(target).endswith("conf"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", stubborn)
    new = [world.file("etc/conf", "two"), world.file("etc/other", "two")]
    with pytest.raises(TransactionError, match=r"THE UNDO IS NOT COMPLETE.*Input/output error") as caught:
        world.apply(new, [SVC], probe=lambda: ["no"])
    assert caught.value.half_done
    assert not caught.value.undone
    assert world.files()["etc/other"] == before["files"]["etc/other"]
    assert world.store.last()["result"] == "half undone"

    with pytest.raises(TransactionError, match="could not be undone"):
        world.apply(new, [SVC])
    monkeypatch.setattr(os, "rename", rename)
    assert world.recover() == 0
    assert world.snapshot() == before
    assert world.strays() == []


def test_a_service_that_no_longer_starts_does_not_block_the_set_that_mends_it(world):
    Path(world.path("etc/conf")).write_text("fine")
    world.systemd(["systemctl", "restart", "svc.service"])
    Path(world.path("etc/conf")).write_text("broken by hand")
    with pytest.raises(TransactionError, match="NOT COMPLETE") as caught:
        world.apply([world.file("etc/conf", "two")], [SVC], probe=lambda: ["no"])
    assert caught.value.half_done
    assert Path(world.path("etc/conf")).read_text() == "broken by hand"

    outcome = world.apply([world.file("etc/conf", "two")], [SVC])
    assert outcome.generation == 1
    assert world.systemd.running["svc.service"]["etc/conf"] == "two"


def test_files_are_undone_where_there_are_no_hard_links(world, monkeypatch):
    def link(*args, **options):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    world.apply(typical(world), [SVC])
    before = world.snapshot()
    with pytest.raises(TransactionError):
        world.apply(changed_set(world), [SVC], probe=lambda: ["no"])
    assert world.snapshot() == before
    assert world.strays() == []


# --- services that are down -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"running": {}}, "svc.service is not running"),
        ({"activating": ["svc.service"]}, "svc.service is not running"),
        ({"enabled": [engine.RECOVERY_UNIT]}, "svc.service is not enabled"),
    ],
)
def test_a_service_found_down_is_set_right(world, found, said):
    world.apply(typical(world), [SVC])
    right = world.snapshot()
    world.systemd.change(**found)
    outcome = world.apply(typical(world), [SVC])
    assert outcome.changed
    assert outcome.changes == []
    assert outcome.repaired == [said]
    assert world.snapshot() == right
    assert not world.apply(typical(world), [SVC]).changed


def restarted(world):
    return [call[2] for call in world.systemd.calls if call[:2] == ["systemctl", "restart"]]


@pytest.fixture
def pair(tmp_path):
    """A host with two services, and both."""
    world = World(tmp_path / "pair", {"svc.service": "etc/conf", "other.service": "etc/conf"})
    services = [SVC, Service("other.service")]
    world.apply(typical(world), services)
    world.systemd.calls.clear()
    return world, services


def test_a_service_found_down_is_started_and_the_others_run_on(pair):
    world, services = pair
    running = world.systemd.running
    world.systemd.change(running={"svc.service": running["svc.service"]})
    assert world.apply(typical(world), services).repaired == ["other.service is not running"]
    assert restarted(world) == ["other.service"]
    assert world.systemd.running == running


def test_a_service_that_is_not_enabled_is_enabled_and_runs_on(pair):
    world, services = pair
    world.systemd.change(enabled=[engine.RECOVERY_UNIT, "svc.service"])
    assert world.apply(typical(world), services).repaired == ["other.service is not enabled"]
    assert world.systemd.enabled == ["other.service", "svc.service"]
    assert restarted(world) == []


def test_a_probe_that_fails_restarts_all_services_once(pair):
    world, services = pair
    answers = [["wrong certificate"], []]
    outcome = world.apply(typical(world), services, probe=lambda: answers.pop(0))
    assert outcome.repaired == ["wrong certificate"]
    assert answers == []
    assert restarted(world) == ["svc.service", "other.service"]


def test_who_has_changed_nothing_asks_less(world):
    """The thorough probe is for what was changed, or set up anew."""
    asked = []

    def probe():
        asked.append("probe")
        return []

    def recheck():
        asked.append("recheck")
        return answers.pop(0)

    answers = [[], ["wrong"]]
    world.apply(typical(world), [SVC], probe=probe, recheck=recheck)
    assert asked == ["probe"]
    world.apply(typical(world), [SVC], probe=probe, recheck=recheck)
    assert asked == ["probe", "recheck"]
    world.apply(typical(world), [SVC], probe=probe, recheck=recheck)
    assert asked == ["probe", "recheck", "recheck", "probe"]


def test_a_repair_that_does_not_help_is_an_error_with_the_journal(world):
    world.apply(typical(world), [SVC])
    before = world.files(times=True)
    with pytest.raises(TransactionError, match="does not hold: still wrong") as caught:
        world.apply(typical(world), [SVC], probe=lambda: ["still wrong"], journal=lambda since: "the journal")
    assert (caught.value.step, caught.value.journal, caught.value.undone) == ("probe", "the journal", False)
    assert world.files(times=True) == before


def test_a_service_that_cannot_be_started_again_is_an_error_with_the_journal(world):
    world.apply(typical(world), [SVC])
    world.systemd.change(running={})
    world.systemd.deny("restart svc.service")
    with pytest.raises(TransactionError, match="denied by the test") as caught:
        world.apply(typical(world), [SVC], journal=lambda since: "the journal")
    assert caught.value.journal == "the journal"


def test_a_host_without_an_answer_from_systemctl_is_not_touched(world):
    before = world.files()
    with pytest.raises(TransactionError, match="no bus"):
        world.apply([world.file("etc/conf", "x")], [SVC], call=lambda argv, **how: (1, "no bus"))
    assert world.files() == before


# --- confirmation -----------------------------------------------------------------------------------------------------


def unconfirmed(world):
    world.apply([world.file("etc/conf", "one")], [SVC])
    before = world.snapshot()
    outcome = world.apply([world.file("etc/conf", "two")], [SVC], confirm_within=60)
    assert outcome.unconfirmed
    assert outcome.generation is None
    return before, outcome.transaction


def confirm(world, identity):
    return engine.confirm(world.name, identity, state_dir=str(world.state), call=world.systemd)


def fire(world):
    """Do what the one timer that is armed would do."""
    ((_name, argv),) = world.systemd.timers.items()
    assert argv[argv.index("-I") + 1] == str(world.state / "transaction.py")
    return engine.main(argv[argv.index("-I") + 2 :], call=world.systemd)


def test_a_confirmed_change_stays(world):
    _before, identity = unconfirmed(world)
    ((name, argv),) = world.systemd.timers.items()
    assert name.endswith("-confirm")
    assert "--on-active=60s" in argv
    assert confirm(world, identity) == 2
    assert world.systemd.timers == {}
    assert world.systemd.running["svc.service"]["etc/conf"] == "two"
    assert world.strays() == []
    assert world.recover() == 0
    assert Path(world.path("etc/conf")).read_text() == "two"
    assert confirm(world, identity) is None


def test_a_change_that_nobody_confirms_is_undone_by_its_timer(world):
    before, identity = unconfirmed(world)
    assert fire(world) == 0
    assert world.snapshot() == before
    assert world.systemd.timers == {}
    assert world.store.last()["id"] == identity
    with pytest.raises(TransactionError, match="no longer open: nobody confirmed") as caught:
        confirm(world, identity)
    assert caught.value.step == "confirm"
    assert world.snapshot() == before


def test_the_timer_of_one_transaction_leaves_another_alone(world):
    unconfirmed(world)
    after = world.snapshot()
    assert world.recover("--name", "broker", "--id", "20200101T000000Z-abcdef") == 0
    assert world.recover("--name", "somebody-else") == 0
    assert world.snapshot() == after
    with pytest.raises(TransactionError, match="no longer open"):
        confirm(world, "20200101T000000Z-abcdef")
    assert world.record()["phase"] == "unconfirmed"


def test_a_host_that_restarts_before_the_confirmation_comes_up_as_before(world):
    before, _identity = unconfirmed(world)
    world.systemd.power_cut()
    assert world.recover("--boot") == 0
    assert world.systemd.running == {}, "the boot starts the services, not the recovery"
    world.systemd.boot()
    assert world.snapshot() == before
    assert world.store.last()["reason"] == "the host restarted"


def test_a_host_that_restarts_starts_what_the_change_had_disabled(world):
    """The queue of the boot was made before the recovery enabled it again."""
    world.apply([world.file("etc/conf", "one")], [SVC])
    stopped = Service("svc.service", state="stopped", enabled=False)
    world.apply([world.file("etc/conf", "two")], [stopped], confirm_within=60)
    world.systemd.power_cut()
    assert world.recover("--boot") == 0
    assert world.systemd.enabled == ["svc.service"]
    assert ["systemctl", "start", "--no-block", "svc.service"] in world.systemd.calls
    assert world.systemd.running["svc.service"]["etc/conf"] == "one"


def test_the_next_run_undoes_what_was_not_confirmed_and_says_so(world):
    unconfirmed(world)
    outcome = world.apply([world.file("etc/conf", "three")], [SVC])
    assert "cut at 'unconfirmed'" in outcome.recovered
    assert outcome.changes[0].before == b"one"
    assert world.systemd.timers == {}


def test_one_transaction_that_cannot_be_undone_does_not_keep_the_others_from_it(world, capsys):
    before, _identity = unconfirmed(world)
    (world.state / "another").mkdir()
    (world.state / "another" / "record.json").write_text("{")
    assert world.recover() == 1
    assert "another: " in capsys.readouterr().err
    assert world.snapshot() == before


# --- generations ------------------------------------------------------------------------------------------------------


def blob(world, number, dest):
    manifest = world.store.manifest(number)
    (item,) = [item for item in manifest["files"] if item["dest"] == dest]
    return (world.state / world.name / "generations" / f"{number:04d}" / item["blob"]).read_text(), item


def test_generations_are_numbered_kept_and_forgotten_but_never_the_host_as_found(world):
    Path(world.path("etc/conf")).write_text("as found")
    os.chmod(world.path("etc/conf"), 0o604)
    numbers = [world.apply([world.file("etc/conf", f"v{n}")], [SVC], keep=3).generation for n in range(1, 8)]
    assert numbers == [1, 2, 3, 4, 5, 6, 7]
    assert world.store.generations() == [0, 5, 6, 7]
    text, item = blob(world, 0, world.path("etc/conf"))
    assert (text, item["mode"]) == ("as found", 0o604)
    text, item = blob(world, 6, world.path("etc/conf"))
    assert (text, item["owner"], item["mode"]) == ("v6", "root", 0o644)
    assert world.store.manifest(7)["services"][0]["name"] == "svc.service"


def test_the_generation_in_force_is_kept_whatever_keep_says(world):
    for n in range(3):
        world.apply([world.file("etc/conf", f"v{n}"), world.file("etc/other", "x")], [SVC], keep=0)
    assert world.store.generations() == [0, 3]
    world.apply([world.file("etc/conf", "v9")], [SVC], keep=0)
    assert "etc/other" not in world.files()


def test_a_first_run_that_fails_does_not_decide_what_was_found(world):
    Path(world.path("etc/conf")).write_text("first")
    with pytest.raises(TransactionError):
        world.apply([world.file("etc/conf", "x")], [SVC], validate=refuse())
    assert world.store.generations() == []
    Path(world.path("etc/conf")).write_text("second")
    world.apply([world.file("etc/conf", "x")], [SVC])
    assert blob(world, 0, world.path("etc/conf"))[0] == "second"


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_a_run_waits_for_the_lock_and_says_who_holds_it(world, monkeypatch):
    world.apply(typical(world), [SVC])
    ready, tell = os.pipe()
    holder = os.fork()
    if holder == 0:
        fd = os.open(world.state / "broker" / "lock", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(tell, b"x")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"x"
        with monkeypatch.context() as patch:
            clock = iter(range(0, 10_000, 10))
            patch.setattr(engine.time, "monotonic", lambda: next(clock))
            patch.setattr(engine.time, "sleep", lambda seconds: None)
            with pytest.raises(TransactionError, match=r"another run is changing 'broker'.*fuser -v .*/broker/lock"):
                world.apply([world.file("etc/conf", "two")], [SVC])
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(ready)
        os.close(tell)
    assert world.apply([world.file("etc/conf", "two")], [SVC]).changed, "a killed run leaves no lock behind"


def test_a_state_directory_of_somebody_else_is_refused(world):
    world.state.mkdir()
    os.chown(world.state, 1, 1)
    with pytest.raises(TransactionError, match="is not a directory of root's"):
        world.apply(typical(world), [SVC])


def test_a_damaged_record_stops_everything(world):
    world.apply(typical(world), [SVC])
    (world.state / "broker" / "record.json").write_text('{"id": ')
    before = world.snapshot()
    with pytest.raises(TransactionError, match=r"record.json is damaged"):
        world.apply(changed_set(world), [SVC])
    assert world.snapshot() == before


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("virgin", [True, False], ids=["virgin", "known"])
@pytest.mark.parametrize("stays_full", [True, False])
def test_a_disk_that_is_full_at_any_write(tmp_path, monkeypatch, virgin, stays_full):
    write, finished = os.write, False
    for n in range(1, 200):
        world = World(tmp_path / str(n), {"svc.service": "etc/conf", "extra.service": "etc/added"})
        services = [SVC, Service("extra.service", on_change="reload")]
        if not virgin:
            world.apply(typical(world), [SVC])
        old, count = world.snapshot(), []

        def full(fd, data, *, count, n):
            count.append(fd)
            if len(count) == n or (stays_full and len(count) > n):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(fd, data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", functools.partial(full, count=count, n=n))
            failed = None
            try:
                world.apply(changed_set(world), services)
            except TransactionError as error:
                failed = error
        finished = len(count) < n
        after = world.snapshot()
        if failed:
            assert "No space left" in str(failed)
            assert not failed.half_done
            assert after == old, n
            assert world.record() is None
        world.apply(changed_set(world), services)
        new = world.snapshot()
        assert new["files"]["etc/conf"][0] == "-rw------- two"
        assert new["running"]["extra.service"]["etc/added"] == "added"
        assert failed or after == new
        assert world.strays() == []
        if finished:
            break
    assert finished
    assert n > 8


# --- the program that stays on the host -------------------------------------------------------------------------------


def program(tmp_path):
    path = tmp_path / "transaction.py"
    path.write_bytes(engine._own_source())
    return str(path)


def test_the_program_is_python_3_9_and_needs_nothing_else():
    tree = ast.parse(engine._own_source(), feature_version=(3, 9))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert imported - {"__future__"} <= set(sys.stdlib_module_names) | {"collections.abc"}


def test_the_program_alone_undoes_what_was_cut(world, tmp_path):
    Path(world.path("etc/conf")).write_text("one")
    before = world.files()

    def dies(staged):
        os._exit(137)

    child = os.fork()
    if child == 0:
        world.apply([world.file("etc/conf", "two"), world.file("etc/key", "k", early=True)], validate=dies)
    os.waitpid(child, 0)
    assert world.files() != before
    argv = [sys.executable, "-I", program(tmp_path), "--state-dir", str(world.state)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert "undid transaction" in done.stdout
    assert world.files() == before
    again = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_the_source_is_found_inside_a_zip_archive(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "module.zip", "w") as archive:
        archive.writestr("zipped_transaction.py", Path(engine.__file__).read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path / "module.zip"))
    zipped = importlib.import_module("zipped_transaction")
    assert zipped._own_source() == Path(engine.__file__).read_bytes()


def test_the_source_is_what_the_loader_has_where_there_is_no_file(monkeypatch):
    """As with Mitogen, whose loader holds modules in memory and names no file that is there."""
    source = Path(engine.__file__).read_bytes()

    class Loader:
        def get_source(self, name):
            assert name == engine.__name__
            return source.decode("utf-8")

    monkeypatch.setattr(engine, "__loader__", Loader())
    monkeypatch.setattr(engine, "__file__", "master:/nowhere/_transaction.py")
    assert engine._own_source() == source


def test_run_tells_a_missing_program_a_late_one_and_a_failing_one():
    assert engine.run(["/no/such/program"]) == (127, "/no/such/program: No such file or directory")
    assert engine.run(["sleep", "9"], timeout=0.1)[0] == 124
    assert engine.run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, "out\nerr")
    assert engine.run(["cat"], stdin=b"fed") == (0, "fed")


def test_the_record_holds_no_content(world):
    world.apply([world.file("etc/conf", "one")], [SVC])
    world.apply([world.file("etc/conf", "a secret")], [SVC], confirm_within=60)
    assert "a secret" not in json.dumps(world.record())
