# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files that are whole or absent, and directories that nobody else controls."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _files
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
STRANGER = 12345


@pytest.fixture
def any_umask():
    """The widest umask: what is made closed is then closed by the code, not by luck."""
    previous = os.umask(0)
    yield
    os.umask(previous)


def no_space(*_arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


class TestCheckParents:
    def test_a_symbolic_link_in_the_middle(self, tmp_path):
        (tmp_path / "real" / "inner").mkdir(parents=True)
        (tmp_path / "link").symlink_to("real")
        with pytest.raises(FileProblem, match=r"link is a symbolic link"):
            _files.check_parents(str(tmp_path / "link" / "inner"))

    def test_a_dangling_link_at_the_end(self, tmp_path):
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(FileProblem, match="symbolic link"):
            _files.check_parents(str(tmp_path / "link"))

    @needs_root
    def test_a_directory_of_somebody_else(self, tmp_path):
        (tmp_path / "theirs" / "pki").mkdir(parents=True)
        os.chown(tmp_path / "theirs", STRANGER, -1)
        with pytest.raises(FileProblem, match=f"theirs belongs to user id {STRANGER}"):
            _files.check_parents(str(tmp_path / "theirs" / "pki"))

    @pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
    def test_a_directory_that_others_can_write(self, tmp_path, mode):
        (tmp_path / "open" / "pki").mkdir(parents=True)
        (tmp_path / "open").chmod(mode)
        with pytest.raises(FileProblem, match=f"open is writable .*{mode:04o}"):
            _files.check_parents(str(tmp_path / "open" / "pki"))

    def test_a_sticky_directory_is_fine_above_but_not_at_the_end(self, tmp_path):
        (tmp_path / "sticky" / "pki").mkdir(parents=True)
        (tmp_path / "sticky").chmod(0o1777)
        _files.check_parents(str(tmp_path / "sticky" / "pki"))
        with pytest.raises(FileProblem, match="writable"):
            _files.check_parents(str(tmp_path / "sticky"))

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(FileProblem, match="file is not a directory"):
            _files.check_parents(str(tmp_path / "file" / "pki"))

    @pytest.mark.parametrize("path", ["relative", "/etc/../etc", "/etc//nanomq", "/etc/./nanomq", ""])
    def test_a_path_that_is_not_plain(self, path):
        with pytest.raises(FileProblem, match="absolute path"):
            _files.check_parents(path)

    def test_what_is_missing_is_no_problem(self, tmp_path):
        _files.check_parents(str(tmp_path / "a" / "b"))


class TestWriteAtomic:
    @pytest.mark.parametrize("broken", ["fsync", "fchmod", "fchown", "replace"])
    def test_a_failure_leaves_the_old_file_and_no_rubbish(self, tmp_path, monkeypatch, broken):
        path = tmp_path / "key"
        path.write_bytes(b"old")
        monkeypatch.setattr(os, broken, no_space)
        with pytest.raises(OSError, match="No space"):
            _files.write_atomic(str(path), b"new", mode=0o600)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["key"]

    def test_it_is_closed_from_birth(self, tmp_path, monkeypatch, any_umask):
        """At every step on the way nobody has more access than in the end."""
        seen = []

        def watch(name):
            original = getattr(os, name)

            def watched(*arguments, **options):
                result = original(*arguments, **options)
                seen.extend(stat.S_IMODE(file.lstat().st_mode) for file in tmp_path.iterdir())
                return result

            monkeypatch.setattr(os, name, watched)

        for name in ("open", "fchown", "fchmod", "fsync", "replace"):
            watch(name)
        _files.write_atomic(str(tmp_path / "key"), b"secret", mode=0o640)
        assert set(seen) == {0o600, 0o640}
        assert seen == sorted(seen)
        assert (tmp_path / "key").read_bytes() == b"secret"

    def test_a_mode_wider_than_the_umask_is_given(self, tmp_path):
        previous = os.umask(0o077)
        try:
            _files.write_atomic(str(tmp_path / "cert"), b"", mode=0o644)
        finally:
            os.umask(previous)
        assert stat.S_IMODE((tmp_path / "cert").stat().st_mode) == 0o644

    @needs_root
    def test_the_owner_is_set_before_the_content_is_written(self, tmp_path, monkeypatch):
        sizes = []
        original = os.fchown
        monkeypatch.setattr(
            os, "fchown", lambda handle, *ids: (sizes.append(os.fstat(handle).st_size), original(handle, *ids))
        )
        _files.write_atomic(str(tmp_path / "key"), b"secret", mode=0o640, uid=0, gid=STRANGER)
        found = (tmp_path / "key").stat()
        assert (sizes, found.st_uid, found.st_gid) == ([0], 0, STRANGER)

    def test_a_link_is_replaced_and_its_target_left_alone(self, tmp_path):
        (tmp_path / "target").write_bytes(b"theirs")
        (tmp_path / "key").symlink_to("target")
        _files.write_atomic(str(tmp_path / "key"), b"ours", mode=0o600)
        assert (tmp_path / "target").read_bytes() == b"theirs"
        assert not (tmp_path / "key").is_symlink()

    def test_content_and_name_are_synced_in_this_order(self, tmp_path, monkeypatch):
        steps = []
        for name in ("fsync", "replace"):
            original = getattr(os, name)

            def watched(*arguments, name=name, original=original):
                kind = "dir" if name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else "file"
                steps.append((name, kind))
                return original(*arguments)

            monkeypatch.setattr(os, name, watched)
        _files.write_atomic(str(tmp_path / "key"), b"x", mode=0o600)
        assert steps == [("fsync", "file"), ("replace", "file"), ("fsync", "dir")]


class TestReadRegular:
    def test_a_link_is_not_followed(self, tmp_path):
        (tmp_path / "real").write_bytes(b"x")
        (tmp_path / "link").symlink_to("real")
        with pytest.raises(FileProblem, match="is a symbolic link"):
            _files.read_regular(str(tmp_path / "link"))

    def test_a_pipe_does_not_block(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileProblem, match="not a regular file"):
            _files.read_regular(str(tmp_path / "pipe"))

    def test_a_directory(self, tmp_path):
        with pytest.raises(FileProblem, match="not a regular file"):
            _files.read_regular(str(tmp_path))

    def test_a_big_file_is_not_read(self):
        # endless, and not regular: refused for either reason, but at once
        with pytest.raises(FileProblem):
            _files.read_regular("/dev/zero")

    def test_a_file_over_the_limit(self, tmp_path):
        (tmp_path / "big").write_bytes(b"x" * (_files.SIZE_LIMIT + 1))
        with pytest.raises(FileProblem, match="larger than"):
            _files.read_regular(str(tmp_path / "big"))

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o660])
    def test_a_secret_that_others_could_read(self, tmp_path, mode):
        (tmp_path / "key").write_bytes(b"secret")
        (tmp_path / "key").chmod(mode)
        with pytest.raises(FileProblem, match=f"{mode:04o}"):
            _files.read_regular(str(tmp_path / "key"), private=True)

    @needs_root
    def test_a_secret_of_somebody_else(self, tmp_path):
        (tmp_path / "key").write_bytes(b"secret")
        (tmp_path / "key").chmod(0o600)
        os.chown(tmp_path / "key", STRANGER, -1)
        with pytest.raises(FileProblem, match=f"user id {STRANGER}"):
            _files.read_regular(str(tmp_path / "key"), private=True)

    def test_absence_is_an_error_of_its_own(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            _files.read_regular(str(tmp_path / "nothing"))


class TestVault:
    def test_a_link_is_refused(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(FileProblem, match="symbolic link"):
            _files.check_vault(str(tmp_path / "link"))

    def test_one_that_others_can_enter_is_refused(self, tmp_path):
        (tmp_path / "ca").mkdir()
        (tmp_path / "ca").chmod(0o710)
        with pytest.raises(FileProblem, match="0710"):
            _files.check_vault(str(tmp_path / "ca"))

    def test_a_relative_path_is_refused(self):
        with pytest.raises(FileProblem, match="absolute"):
            _files.check_vault("ca")

    def test_a_group_may_write_above_it(self, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home").chmod(0o775)
        assert _files.check_vault(str(tmp_path / "home" / "ca")) is False
        assert _files.make_directories(str(tmp_path / "home" / "ca"), mode=0o700) is True
        assert _files.check_vault(str(tmp_path / "home" / "ca")) is True


def test_directories_have_their_modes_whatever_the_umask(tmp_path: Path, any_umask):
    _files.make_directories(str(tmp_path / "a" / "b"), mode=0o750)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o750


def test_a_link_is_switched_in_one_step(tmp_path, monkeypatch):
    (tmp_path / "current").symlink_to("old")
    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space"):
        _files.link_atomic("new", str(tmp_path / "current"))
    assert os.listdir(tmp_path) == ["current"]
    monkeypatch.undo()
    _files.link_atomic("new", str(tmp_path / "current"))
    assert os.readlink(tmp_path / "current") == "new"


def test_a_directory_made_by_another_process_meanwhile_is_as_good(tmp_path, monkeypatch):
    make = os.mkdir
    monkeypatch.setattr(os, "mkdir", lambda path, mode: (make(path, mode), make(path, mode)))
    assert _files.make_directories(str(tmp_path / "ca"), mode=0o700) is False
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    monkeypatch.undo()
    with pytest.raises(FileExistsError):
        _files.make_directories(str(tmp_path / "file"), mode=0o700)


def hold(directory, pipe):
    """What a process does that holds the lock until it is killed."""
    with _files.locked(directory, patience=5):
        pipe.send("held")
        pipe.recv()


def test_a_lock_is_held_against_other_processes_and_freed_by_their_death(tmp_path):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(str(tmp_path), theirs))
    process.start()
    assert ours.recv() == "held"
    with (
        pytest.raises(FileProblem, match=r"held by another run for more than 0\.2 s: .* fuser -v"),
        _files.locked(str(tmp_path), patience=0.2),
    ):
        pass
    process.kill()
    process.join()
    with _files.locked(str(tmp_path), patience=5):
        pass


def test_a_link_is_no_directory_to_lock(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError), _files.locked(str(tmp_path / "link"), patience=0):
        pass
