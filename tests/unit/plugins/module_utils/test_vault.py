# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Several files change together: cut at every step, on a full disk, in the way of others; all of them or none."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _vault
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._vault import Vault
from cuts import interposed, run_cut, run_full

OLD = {"kept": b"kept", "key": b"old key", "certificate": b"old certificate", "goes": b"goes"}
NEW = {"kept": b"kept", "key": b"new key", "certificate": b"new certificate", "comes": b"comes"}


@pytest.fixture
def vault(tmp_path):
    """A directory with the old files."""
    path = tmp_path / "vault"
    path.mkdir(mode=0o700)
    for name, data in OLD.items():
        (path / name).write_bytes(data)
        (path / name).chmod(0o600)
    return Vault(str(path))


def change(vault):
    files = {name: (NEW[name], 0o600) for name in ("key", "certificate")}
    with vault.lock():
        vault.change({**files, "comes": (NEW["comes"], 0o644)}, ("goes", "never-was"))


def seen(vault):
    """What a reader finds in force."""
    return {name: vault.read(name) for name in (*OLD, "comes") if vault.has(name)}


def on_disk(vault):
    return {name: open(vault.file(name), "rb").read() for name in sorted(os.listdir(vault.path))}


def test_all_files_change_with_their_modes(vault):
    change(vault)
    assert on_disk(vault) == NEW
    modes = {name: stat.S_IMODE(os.stat(vault.file(name)).st_mode) for name in ("key", "certificate", "comes")}
    assert modes == {"key": 0o600, "certificate": 0o600, "comes": 0o644}
    assert not vault.unfinished()


def test_killed_at_every_step(vault, tmp_path, monkeypatch):
    """A reader who takes no lock and changes nothing sees the old files or the new ones; the next run finishes."""
    shutil.copytree(vault.path, tmp_path / "start")
    outcomes = []
    for limit in range(200):
        shutil.rmtree(vault.path)
        shutil.copytree(tmp_path / "start", vault.path)
        died = run_cut(monkeypatch, limit, lambda: change(vault))
        found = seen(vault)
        assert found in (OLD, NEW), limit
        outcomes.append(found == OLD)
        with vault.lock():
            pass
        assert seen(vault) == on_disk(vault) == found, limit
        change(vault)
        assert on_disk(vault) == NEW
        if not died:
            break
    assert not died
    assert limit > 20
    # It goes from the old to the new once, and never back.
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {True, False}


def test_the_finishing_is_killed_as_well(vault, tmp_path, monkeypatch):
    """For each cut that leaves something to finish, at every step of that."""
    shutil.copytree(vault.path, tmp_path / "start")
    finished = 0
    for limit in range(200):
        shutil.rmtree(vault.path)
        shutil.copytree(tmp_path / "start", vault.path)
        if not run_cut(monkeypatch, limit, lambda: change(vault)):
            break
        if seen(vault) == OLD or not vault.unfinished():
            continue
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(vault.path, tmp_path / "cut")
        for second in range(200):
            shutil.rmtree(vault.path)
            shutil.copytree(tmp_path / "cut", vault.path)

            def finish():
                with vault.lock():
                    pass

            died = run_cut(monkeypatch, second, finish)
            assert seen(vault) == NEW
            finish()
            assert on_disk(vault) == NEW
            finished += 1
            if not died:
                break
    assert finished > 20


def test_full_disk_at_every_step(vault, monkeypatch):
    """The error comes out, and until the one rename nothing is changed, and nothing left behind."""
    committed = False
    for limit in range(200):
        error = run_full(monkeypatch, limit, lambda: change(vault))
        if seen(vault) == NEW:
            committed = True
            with vault.lock():
                pass
            assert on_disk(vault) == NEW
            break
        assert error
        assert on_disk(vault) == OLD
    assert committed
    assert limit > 10


def test_everything_is_on_the_disk_before_the_change_is_true(vault, monkeypatch):
    steps = []

    def note(name, arguments):
        if name == "fsync":
            steps.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}"))))
        elif name == "rename":
            steps.append((name, os.path.basename(arguments[1])))

    with interposed(monkeypatch, note):
        change(vault)
    true = steps.index(("rename", ".change"))
    synced = [name for step, name in steps[:true] if step == "fsync"]
    assert synced[:4] == ["0", "1", "2", "record.json"]
    assert synced[-1].startswith(".change-")
    assert steps[true + 1] == ("fsync", "vault")
    moved = [place for place, step in enumerate(steps) if step[0] == "rename"][-1]
    assert ("fsync", "vault") in steps[moved:]


@pytest.mark.parametrize("name", ["key", "goes"])
@pytest.mark.parametrize("kind", ["directory", "link"])
def test_what_a_rename_would_not_replace_is_refused_before(vault, name, kind):
    os.unlink(vault.file(name))
    if kind == "directory":
        os.mkdir(vault.file(name))
    else:
        os.symlink("kept", vault.file(name))
    before = sorted(os.listdir(vault.path))
    with pytest.raises(FileProblem, match=f"{name} is not a regular file"):
        change(vault)
    assert sorted(os.listdir(vault.path)) == before
    assert vault.read("certificate") == OLD["certificate"]


def test_another_run_is_waited_for(vault, monkeypatch):
    monkeypatch.setattr(_vault, "PATIENCE", 0.3)
    descriptor = os.open(vault.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(FileProblem, match="held by another run"):
            change(vault)
    finally:
        os.close(descriptor)
    assert on_disk(vault) == OLD
    change(vault)


def test_a_record_that_cannot_be_read_is_said(vault):
    os.mkdir(vault.file(".change"))
    with open(vault.file(".change/record.json"), "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write("{")
    with pytest.raises(FileProblem, match=r"restore .* from a backup"):
        vault.read("key")


def test_a_secret_open_to_others_is_refused(vault):
    os.chmod(vault.file("key"), 0o640)
    with pytest.raises(FileProblem, match="open to group or others"):
        vault.read("key", private=True)


def test_the_directory_is_made_for_its_owner_alone(tmp_path):
    vault = Vault(str(tmp_path / "a" / "b"))
    assert not vault.exists()
    with vault.lock() as finished:
        assert not finished
    assert stat.S_IMODE(os.stat(vault.path).st_mode) == 0o700
