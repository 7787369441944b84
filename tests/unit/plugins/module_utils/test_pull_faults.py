# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Pulls that end at any step, as by kill -9, a power cut or a full disk: the next one finishes, and none goes back."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
from functools import partial

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _pull
from cuts import interposed, run_cut, run_full
from pulling import Place, git

#: What is there after a pull, and nothing else.
LEFT = {"checkout", "lock", "report.json", "repository.git", "state.json", "told"}


class World(Place):
    """A host at rest with one commit applied, and a newer one on offer. It can be put back to that."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(path)
        self.sent: list[dict] = []
        self.config["report_url"] = "https://collector.example/"
        (path / "config.json").write_text(json.dumps(self.config))
        self.old = self.commit("alice", version="old")
        assert self.main() == 0
        self.new = self.commit("alice", version="new", large="".join(map(str, range(2000))))
        shutil.copytree(self.state, path / "at-rest")
        self.bad = self.commit("mallory", version="bad")
        self.offer(self.new)

    def main(self) -> int:
        """One pull as the timer starts it. What is sent is noted in a file, as it may come from a process that dies."""
        return _pull.main([str(self.path / "config.json")])

    def offer(self, commit: str) -> None:
        git(self.tree, "reset", "--quiet", "--hard", commit)

    def reset(self, *, virgin: bool = False) -> None:
        shutil.rmtree(self.state)
        if virgin:
            self.state.mkdir(mode=0o700)
        else:
            shutil.copytree(self.path / "at-rest", self.state)
        for name in ("applied", "sent"):
            (self.path / name).unlink(missing_ok=True)

    def reports(self) -> list[dict]:
        path = self.path / "sent"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def accepted(self) -> str:
        path = self.state / "state.json"
        return json.loads(path.read_text())["accepted"] if path.exists() else ""


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = None

    def send(config, body):
        # By one write and no step of its own.
        with open(made.path / "sent", "ab") as handle:
            handle.write(body + b"\n")

    monkeypatch.setattr(_pull, "send", send)
    monkeypatch.setattr(_pull, "tell", lambda text: None)
    monkeypatch.setattr(_pull, "versions", lambda config: {})
    monkeypatch.setattr(_pull, "answering", lambda config: [])
    made = World.__new__(World)
    made.path = tmp_path
    made.__init__(tmp_path)
    return made


def check_the_next(world: World, *, alone: bool = False) -> None:
    """Whatever was cut: the next pull finishes; ``alone``: one without its remote first, which applies what it can."""
    accepted, before = world.accepted(), world.applied()
    assert before in ([], [world.new]) or before[-1] == accepted
    if alone:
        remote = world.tree.rename(world.path / "away")
        world.main()
        (report,) = [one for one in world.reports() if one["result"] == "unreachable"]
        # Where a first fetch was cut there is nothing to apply yet.
        assert report["commit"] == accepted
        remote.rename(world.tree)

    assert world.main() == 0
    report = world.reports()[-1]
    assert (report["result"], report["commit"], report["applied"]) == ("ok", world.new, world.new)
    assert json.loads((world.state / "state.json").read_text()) == {"accepted": world.new, "applied": world.new}
    assert set(os.listdir(world.state)) == LEFT
    rubbish = [
        name
        for _folder, _folders, names in os.walk(world.state / "repository.git")
        for name in names
        if name.endswith((".lock", ".keep")) or name.startswith(("tmp_", ".tmp"))
    ]
    assert rubbish == []
    # The newer one may have been run by the one that was cut. Never the older one after it.
    order = [world.old, world.new]
    numbers = [order.index(one) for one in world.applied()]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(("virgin", "alone"), [(False, False), (False, True), (True, False)])
def test_one_that_dies_at_any_step(world, monkeypatch, virgin, alone):
    reached = 0
    for limit in range(500):
        world.reset(virgin=virgin)
        died = run_cut(monkeypatch, limit, world.main, processes=True)
        if not died:
            break
        reached += 1
        check_the_next(world, alone=alone)
    assert not died
    assert reached > 40, "each file and each program is a step"


def test_one_that_dies_at_any_step_while_it_refuses(world, monkeypatch):
    """What is refused is thrown away, and what was accepted is not, wherever that is cut."""
    for limit in range(500):
        world.reset()
        world.offer(world.bad)
        died = run_cut(monkeypatch, limit, world.main, processes=True)
        if not died:
            break
        assert world.applied() in ([], [world.old])
        world.offer(world.new)
        check_the_next(world, alone=bool(limit % 2))
    assert not died
    assert limit > 40


def test_a_disk_that_is_full_at_any_step(world, monkeypatch):
    failed = 0
    for limit in range(500):
        world.reset()
        count = _steps(monkeypatch, limit, world.main)
        if count < limit:
            break
        failed += world.reports()[-1]["result"] == "failed" if world.reports() else 1
        check_the_next(world)
    assert world.reports()[-1]["result"] == "ok"
    assert failed > 5


def _steps(monkeypatch, limit, action) -> int:
    """Run it with the disk full at that step, and return how many steps there were that a full disk could end."""
    count = 0

    def counted(name, arguments):
        nonlocal count
        count += name not in ("unlink", "rmdir") and (name != "open" or bool(arguments[1] & os.O_CREAT))

    with interposed(monkeypatch, counted):
        error = run_full(monkeypatch, limit, action)
    # Opening the lock comes before all, and systemd notes that.
    assert error is None or limit == 0
    return count - 1


def _start_here(start, command, **options):
    return start(command, **{**options, "start_new_session": False})


def test_a_kill_at_any_moment(world, monkeypatch):
    """The whole group, as systemd does it: git and the run die in their middle, wherever that is."""
    began = time.monotonic()
    world.main()
    lasts = time.monotonic() - began
    for number in range(16):
        world.reset()
        child = os.fork()
        if child == 0:
            try:
                os.setpgid(0, 0)
                start = subprocess.Popen
                # In one group with all that it starts.
                monkeypatch.setattr(subprocess, "Popen", partial(_start_here, start))
                world.main()
            finally:
                os._exit(0)
        time.sleep(lasts * number / 16)
        os.killpg(child, signal.SIGKILL) if _in_group(child) else os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # A clone that was killed is still ending.
        time.sleep(0.05)
        check_the_next(world, alone=bool(number % 2))


def _in_group(child: int) -> bool:
    return os.getpgid(child) == child


class TestWhatWasCut:
    def test_the_next_report_says_so(self, world, monkeypatch):
        world.reset()

        def die(config):
            os._exit(9)

        with monkeypatch.context() as patch:
            patch.setattr(_pull, "apply", die)
            child = os.fork()
            if child == 0:
                world.main()
            os.waitpid(child, 0)
        assert world.main() == 0
        (report,) = world.reports()
        assert report["interrupted"]["commit"] == world.new
        assert report["interrupted"]["time"] <= report["time"]
        assert world.main() == 0
        assert "interrupted" not in world.reports()[-1]

    def test_a_report_that_was_being_sent_is_sent_by_the_next(self, world, monkeypatch):
        world.reset()
        with monkeypatch.context() as patch:
            patch.setattr(_pull, "send", lambda config, body: os._exit(9))
            child = os.fork()
            if child == 0:
                world.main()
            os.waitpid(child, 0)
        assert world.reports() == []
        world.main()
        first, second = world.reports()
        assert (first["commit"], first["counts"]["ok"]) == (world.new, 3)
        assert first["time"] <= second["time"]
        assert "interrupted" not in second, "it had come to its end"

    def test_what_was_accepted_and_not_applied_outlives_one_that_is_refused(self, world, monkeypatch):
        """There is no branch of it yet; what is thrown away is what was offered after it."""
        world.reset()
        with monkeypatch.context() as patch:
            patch.setattr(_pull.Repository, "keep", lambda self, commit: os._exit(9))
            child = os.fork()
            if child == 0:
                world.main()
            os.waitpid(child, 0)
        assert (world.accepted(), world.applied()) == (world.new, [])
        world.offer(world.bad)
        assert world.main() == 1
        report = world.reports()[-1]
        assert (report["result"], report["commit"], report["applied"]) == ("refused", world.new, world.new)

    def test_nothing_of_an_earlier_checkout_has_a_part(self, world):
        world.reset()
        (world.state / "checkout/inventory/group_vars").mkdir(parents=True)
        (world.state / "checkout/inventory/group_vars/all.yml").write_text("nanomq_broker_users: {}\n")
        assert world.main() == 0
        assert world.applied() == [world.new]

    def test_one_that_cannot_be_removed_is_not_run(self, world, monkeypatch):
        world.reset()
        (world.state / "checkout/left").mkdir(parents=True)
        rmtree = shutil.rmtree

        def refuse(path, ignore_errors=False):
            if not str(path).endswith("/checkout"):
                rmtree(path, ignore_errors=ignore_errors)
            elif not ignore_errors:
                raise PermissionError(1, "Operation not permitted", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(_pull.shutil, "rmtree", refuse)
            assert world.main() == 1
        assert "Operation not permitted" in world.reports()[-1]["cause"]
        assert world.applied() == []


class TestDamage:
    """What no cut of ours leaves, but a medium can: the repository is fetched anew."""

    @pytest.mark.parametrize("name", ["HEAD", "refs/heads/verified", "refs/edgesec/offered", "config"])
    def test_a_file_without_content(self, world, name):
        world.reset()
        (world.state / "repository.git" / name).write_bytes(b"")
        assert world.main() == 0
        assert world.applied() == [world.new]
        assert set(os.listdir(world.state)) == LEFT

    @pytest.mark.parametrize("ends", [".pack", ".idx"])
    @pytest.mark.parametrize("how", ["gone", "empty", "other"])
    def test_a_pack(self, world, ends, how):
        world.reset()
        world.offer(world.old)
        (path,) = (world.state / "repository.git/objects/pack").glob(f"*{ends}")
        content = path.read_bytes()
        path.chmod(0o600)
        path.unlink() if how == "gone" else path.write_bytes(content[:-60] * (how == "other"))
        world.main()
        world.main()
        assert world.main() == 0
        assert world.applied()[-1] == world.old
        assert set(world.applied()) == {world.old}

    def test_a_remote_that_is_away_meanwhile_takes_nothing(self, world):
        """The damaged one stays as long as there is no other."""
        world.reset()
        (world.state / "repository.git/refs/edgesec/offered").write_bytes(b"")
        remote = world.tree.rename(world.path / "away")
        world.main()
        assert (world.state / "repository.git").is_dir()
        remote.rename(world.tree)
        assert world.main() == 0
        assert world.applied()[-1] == world.new


class TestRoom:
    """A remote must not fill the disk bit by bit, nor must an honest one in the course of years."""

    def size(self, world: World) -> int:
        return sum(path.stat().st_size for path in (world.state / "repository.git").rglob("*") if path.is_file())

    def test_what_is_refused_does_not_stay(self, world):
        world.offer(world.new)
        world.main()
        before = self.size(world)
        for number in range(4):
            world.offer(world.new)
            (world.tree / "large").write_bytes(os.urandom(300_000))
            world.commit("mallory", version=str(number))
            assert world.main() == 1
        assert world.reports()[-1]["result"] == "refused"
        assert self.size(world) < before + 100_000
        assert world.reports()[-1]["commit"] == world.new

    def test_what_was_cut_does_not_stay(self, world):
        (world.tree / "large").write_bytes(os.urandom(3 * 2**20))
        world.commit("alice")
        for _number in range(3):
            assert world.main() == 1
        assert world.reports()[-1]["result"] == "unreachable"
        assert self.size(world) < 2**20

    def test_what_is_accepted_is_packed(self, world, monkeypatch):
        monkeypatch.setattr(_pull, "PACKS_LIMIT", 3)
        for number in range(8):
            world.commit("alice", version=str(number))
            assert world.main() == 0
            assert len(list((world.state / "repository.git/objects/pack").glob("*.pack"))) <= 4
        assert list((world.state / "repository.git/objects").glob("??")) == [], (
            "no loose objects, which git may not sync"
        )
