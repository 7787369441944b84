# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was issued last, which the check of the clock asks before each signature: noted, and the same as looked for."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError, choose_backend, make_request
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from cuts import run_cut, run_full
from hypothesis import example, given, settings
from hypothesis import strategies as st

HOUR = datetime.timedelta(hours=1)
#: More than a tick of the clock that a file system takes its times from.
TICK = 0.02

BACKEND = choose_backend("cryptography")
PEM = make_request(BACKEND, BACKEND.generate_key("ec-p256"), None, "device", []).decode()
REQUEST = _authority.Request("device", (), ("client_auth",), "ec-p256", 86400)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Fleet:
    """An authority, and a clock that can be set; files get their times from it, as they do on a controller."""

    def __init__(self, root: Path) -> None:
        self.path = root / "ca"
        self.issued, self.note = self.path / "issued", self.path / "newest.json"
        self.backup = root / "backup"
        self.shift = datetime.timedelta(0)
        self.authority = _authority.create(str(self.path), "fleet", "ec-p256", 900 * 86400, None)

    def clock(self):
        """Within, the controller's clock is off by ``shift``."""
        patch = pytest.MonkeyPatch()
        now, write = _authority.now, _authority.write_atomic

        def write_atomic(path, *arguments, **options):
            write(path, *arguments, **options)
            moment = time.time_ns() + int(self.shift.total_seconds()) * 10**9
            os.utime(path, ns=(moment, moment))

        patch.setattr(_authority, "now", lambda: now() + self.shift)
        patch.setattr(_authority, "write_atomic", write_atomic)
        return patch

    def sign(self):
        patch = self.clock()
        try:
            return _authority.sign(self.authority, None, PEM, REQUEST)
        finally:
            patch.undo()

    def refusal(self) -> str:
        """What the check of the clock says, without the present moment; '' if it passes."""
        patch = self.clock()
        try:
            _authority.check_clock(str(self.path))
        except CryptoError as error:
            return str(error).partition(", and ")[2]
        finally:
            patch.undo()
        return ""

    def noted(self):
        return _authority._noted(str(self.path))

    def listed(self):
        return _authority._listed(str(self.path))

    def agree(self) -> None:
        """The note, whatever it holds, changes no verdict."""
        assert _authority.newest(str(self.path)) == self.listed()
        said = self.refusal()
        kept = self.note.read_bytes() if self.note.exists() else None
        self.note.unlink(missing_ok=True)
        assert self.refusal() == said
        if kept is not None:
            self.note.write_bytes(kept)


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


# What happens to the directory of an authority, besides the signatures of this release.


def signed_by_an_older_release(fleet):
    kept = fleet.note.read_bytes() if fleet.note.exists() else None
    try:
        fleet.sign()
    finally:
        if kept is not None:
            fleet.note.write_bytes(kept)


def moved_away(fleet):
    """The last one, as the message asks for it."""
    last = fleet.listed()
    if last is not None:
        (fleet.issued / last.name).unlink()


def backed_up(fleet):
    shutil.rmtree(fleet.backup, ignore_errors=True)
    shutil.copytree(fleet.path, fleet.backup)


def restored(fleet):
    """As a whole, with the times of files and directories."""
    if fleet.backup.exists():
        shutil.rmtree(fleet.path)
        shutil.copytree(fleet.backup, fleet.path)


def copied_back(fleet):
    """The certificates alone, into what is there; first come the times of then, then the directory's."""
    if fleet.backup.exists() and (fleet.backup / "issued").exists():
        shutil.copytree(fleet.backup / "issued", fleet.issued, dirs_exist_ok=True)


def exchanged(fleet):
    """The directory of the certificates is replaced by a copy, with its times."""
    if fleet.issued.exists():
        shutil.copytree(fleet.issued, fleet.path / "copy")
        shutil.rmtree(fleet.issued)
        (fleet.path / "copy").rename(fleet.issued)


def given_a_stranger(fleet):
    """Somebody puts a certificate there, with the time of the present."""
    patch = fleet.clock()
    fleet.issued.mkdir(mode=0o700, exist_ok=True)
    try:
        _authority.write_atomic(str(fleet.issued / f"{time.time_ns()}.pem"), fleet.authority.pem.encode(), mode=0o644)
    finally:
        patch.undo()


def given_a_stranger_unseen(fleet):
    """The same by a program that gives the directory its old time again, as some that copy do."""
    times = (fleet.issued.stat().st_atime_ns, fleet.issued.stat().st_mtime_ns) if fleet.issued.exists() else None
    given_a_stranger(fleet)
    if times:
        os.utime(fleet.issued, ns=times)


def lost_the_note(fleet):
    fleet.note.unlink(missing_ok=True)


def damaged(text):
    def damage(fleet):
        fleet.note.write_text(text)

    damage.__name__ = f"note_is_{text!r}"
    return damage


EVENTS = (
    signed_by_an_older_release,
    moved_away,
    backed_up,
    restored,
    copied_back,
    exchanged,
    given_a_stranger,
    given_a_stranger_unseen,
    lost_the_note,
    *(damaged(text) for text in ("", "null", "[]", "{}", '{"name": 1, "modified": 1, "directory": 1}', "\x00")),
)


@settings(max_examples=80)
@given(
    st.lists(
        st.one_of(
            st.just(Fleet.sign),
            st.sampled_from(EVENTS),
            st.sampled_from([-5, -0.5, 0, 0.5, 5]).map(lambda hours: hours * HOUR),
        ),
        max_size=14,
    )
)
@example([Fleet.sign, 5 * HOUR, signed_by_an_older_release, -5 * HOUR, Fleet.sign])
@example([0.5 * HOUR, Fleet.sign, 0 * HOUR, Fleet.sign, -0.7 * HOUR, Fleet.sign])
@example([Fleet.sign, backed_up, 5 * HOUR, Fleet.sign, restored, 0 * HOUR, Fleet.sign])
@example([Fleet.sign, 5 * HOUR, given_a_stranger_unseen, 0 * HOUR, Fleet.sign])
@example([5 * HOUR, Fleet.sign, backed_up, moved_away, 0 * HOUR, Fleet.sign, copied_back, Fleet.sign])
def test_the_note_gives_the_verdict_of_a_look_at_all(events):
    """Whatever happens in whatever order. A period of time sets the clock, which is then off by so much."""
    with tempfile.TemporaryDirectory() as name:
        fleet = Fleet(Path(name))
        for event in events:
            time.sleep(TICK)
            if isinstance(event, datetime.timedelta):
                fleet.shift = event
            else:
                before, said = fleet.listed(), fleet.refusal()
                if said and event in (Fleet.sign, signed_by_an_older_release):
                    with pytest.raises(CryptoError, match=re.escape(said)):
                        event(fleet)
                    assert fleet.listed() == before
                else:
                    event(fleet)
            fleet.agree()


def test_all_is_looked_at_once(fleet, monkeypatch):
    """Not for each signature, which would make a fleet's first run quadratic; and so it is with an old directory."""
    for _time in range(5):
        fleet.sign()
    lost_the_note(fleet)
    looked, listed = [], _authority._listed
    monkeypatch.setattr(_authority, "_listed", lambda path: looked.append(path) or listed(path))
    for _time in range(20):
        fleet.sign()
    assert len(looked) == 1
    assert fleet.noted() == fleet.listed()
    assert len(list(fleet.issued.iterdir())) == 25


def test_the_note_is_no_secret_and_whole(fleet):
    fleet.sign()
    assert fleet.note.stat().st_mode & 0o777 == 0o644
    assert sorted(json.loads(fleet.note.read_text())) == ["directory", "modified", "name"]


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_a_note_that_is_no_file_counts_as_none(fleet, kind):
    fleet.sign()
    aside = fleet.path / "aside"
    fleet.note.rename(aside)
    if kind == "link":
        fleet.note.symlink_to(aside)
    else:
        fleet.note.mkdir()
    assert fleet.noted() is None
    assert fleet.refusal() == ""


def start(fleet, tmp_path, hours):
    """Two signatures at the right time; another one is to come at a time that is off."""
    fleet.sign()
    fleet.sign()
    shutil.copytree(fleet.path, tmp_path / "start")
    fleet.shift = hours * HOUR


def again(fleet, tmp_path):
    """How it was, with a note that holds."""
    shutil.rmtree(fleet.path)
    shutil.copytree(tmp_path / "start", fleet.path)
    time.sleep(TICK)
    _authority._note(str(fleet.path), fleet.listed())
    assert fleet.noted() is not None


@pytest.mark.parametrize("ticks", [True, False])
@pytest.mark.parametrize("hours", [5, 0.5, -0.5])
def test_killed_at_every_step(fleet, tmp_path, monkeypatch, hours, ticks):
    """A certificate of the future that is there is found by whoever comes next; none that is not there refuses anybody.

    ``ticks``: without, all of it falls into one tick of the file system's clock, and no time says that there was more.
    """
    if not ticks:
        monkeypatch.setattr(_authority, "_state", lambda path: [1, 1])
    start(fleet, tmp_path, hours)
    outcomes = []
    for limit in range(60):
        fleet.shift = hours * HOUR
        again(fleet, tmp_path)
        died = run_cut(monkeypatch, limit, fleet.sign)
        count = len(list(fleet.issued.glob("*.pem")))
        assert count in (2, 3)
        outcomes.append(count)
        fleet.agree()
        fleet.shift = 0 * HOUR
        fleet.agree()
        assert bool(fleet.refusal()) == (count == 3 and hours == 5)
        if not fleet.refusal():
            fleet.sign()
            assert fleet.noted() == fleet.listed()
        if not died:
            break
    assert not died
    assert limit > 12
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {2, 3}


@pytest.mark.parametrize("hours", [5, -0.5])
def test_full_disk_at_every_step(fleet, tmp_path, monkeypatch, hours):
    start(fleet, tmp_path, hours)
    refused = 0
    for limit in range(60):
        fleet.shift = hours * HOUR
        again(fleet, tmp_path)
        error = run_full(monkeypatch, limit, fleet.sign)
        assert [name for name in os.listdir(fleet.issued) if name.startswith(".")] == []
        fleet.agree()
        fleet.shift = 0 * HOUR
        fleet.agree()
        if error is None:
            break
        assert "No space left" in str(error)
        refused += 1
    assert error is None
    assert refused > 6


def sign_some(fleet, number):
    for _time in range(number):
        fleet.sign()


def test_several_runs_at_once(fleet):
    """Each waits for its turn, and the note is about all of them."""
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=sign_some, args=(fleet, 15)) for _run in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
    assert [run.exitcode for run in runs] == [0] * 4
    assert len(list(fleet.issued.iterdir())) == 60
    assert fleet.noted() is not None
    assert fleet.noted() == fleet.listed()


def test_a_run_that_waits_sees_what_was_signed_meanwhile(fleet, monkeypatch):
    """The clock is looked at when it is one's turn, and not before."""
    fleet.sign()
    ahead = Fleet.__new__(Fleet)
    ahead.__dict__.update(fleet.__dict__, shift=5 * HOUR)
    opened = _authority.open_key

    def open_key(*arguments):
        key = opened(*arguments)
        monkeypatch.setattr(_authority, "open_key", opened)
        ahead.sign()
        return key

    monkeypatch.setattr(_authority, "open_key", open_key)
    with pytest.raises(CryptoError, match="clock of the controller"):
        fleet.sign()
    assert len(list(fleet.issued.iterdir())) == 2


def test_a_lock_that_is_not_given_back(fleet, monkeypatch):
    monkeypatch.setattr(_authority, "QUEUE", 0.2)
    with _authority.Vault(str(fleet.path)).lock(), pytest.raises(FileProblem, match="held by another run"):
        fleet.sign()
    assert not fleet.issued.exists()
