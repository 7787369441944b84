# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A token key that gives way to another one; whatever run is cut, and wherever, the next one goes on."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import stat
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _crypto, _jwt, _jwt_rotation
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem, locked
from ansible_collections.edgesec.nanomq.plugins.module_utils._jwt_keypair import KeyPair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SIZE = 2048
HOSTS = ["edge-1", "edge-2", "edge-3"]
PASSPHRASE = "the-passphrase-of-the-key"
KILLED = 137
MUTATORS = ("replace", "rename", "unlink", "write", "open", "fsync", "fchmod", "fchown")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jwt"


@pytest.fixture
def rotation(run_module, path):
    """rotation(phase, check=False, **options): a run of the module on a key pair that is there."""
    made = run_module("jwt_keypair", {"path": str(path), "size": SIZE, "passphrase": PASSPHRASE})
    assert made["changed"]

    def rotate(phase, check=False, **options):
        asked = {"phase": phase, "path": str(path), "size": SIZE, "passphrase": PASSPHRASE, **options}
        return run_module("jwt_rotation", asked, check=check)

    rotate.issuer = made["issuer"]
    rotate.finish = lambda proven, **options: rotate("finish", hosts=HOSTS, proven=proven, **options)
    rotate.keypair = lambda **options: run_module(
        "jwt_keypair", {"path": str(path), "size": SIZE, "passphrase": PASSPHRASE, **options}
    )
    return rotate


def snapshot(path):
    return {
        entry.name: (stat.S_IMODE(entry.lstat().st_mode), entry.stat().st_mtime_ns, entry.read_bytes())
        for entry in sorted(Path(path).rglob("*"))
    }


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path / "fleet.key", (then, then))


class TestBegin:
    def test_the_new_key_is_in_place_and_the_old_one_kept(self, rotation, path):
        old = snapshot(path)
        result = rotation("begin", key=rotation.issuer)
        assert (result["failed"], result["changed"], result["state"]) == (False, True, "open")
        assert result["old_issuer"] == rotation.issuer
        assert result["new_issuer"] == rotation.keypair()["issuer"] != rotation.issuer
        found = snapshot(path)
        key_id = rotation.issuer.removesuffix(".pub")
        assert found[f"fleet-{key_id}.key"][2] == old["fleet.key"][2]
        assert found[f"fleet-{key_id}.pub"][2] == old["fleet.pub"][2]
        assert result["old_private_key_path"] == str(path / f"fleet-{key_id}.key")
        assert {name: mode for name, (mode, _time, _data) in found.items() if mode != 0o600} == {
            "fleet.pub": 0o644,
            f"fleet-{key_id}.pub": 0o644,
        }
        kept = [f"fleet-{key_id}.key", f"fleet-{key_id}.pub"]
        assert sorted(found) == sorted(["fleet.key", "fleet.pub", "fleet.rotation.json", *kept])

    def test_a_second_run_goes_on_and_makes_no_second_key(self, rotation, path):
        first = rotation("begin", key=rotation.issuer)
        before = snapshot(path)
        for options in ({}, {"key": rotation.issuer}, {"older_than": "1s"}, {"key": first["new_issuer"]}):
            assert rotation("begin", **options) == {**first, "changed": False}
        assert snapshot(path) == before

    @pytest.mark.parametrize(
        ("seconds", "options", "begins"),
        [
            (100, {"older_than": "99s"}, True),
            (10, {"older_than": "1m"}, False),
            (-1000, {"older_than": "1s"}, False),
            (10**8, {}, False),
            (10**8, {"key": "jwt-00000000.pub"}, False),
            (10**8, {"key": "jwt-00000000", "older_than": "1s"}, False),
        ],
    )
    def test_what_asks_for_one(self, rotation, path, seconds, options, begins):
        age(path, seconds)
        before = snapshot(path)
        result = rotation("begin", **options)
        assert (result["changed"], result["state"]) == (begins, "open" if begins else "none")
        if not begins:
            assert rotation.issuer.removesuffix(".pub") in result["message"][0]
            assert snapshot(path) == before

    def test_check_mode(self, rotation, path):
        before = snapshot(path)
        result = rotation("begin", check=True, key=rotation.issuer)
        assert (result["changed"], result["state"], result["new_issuer"]) == (True, "open", "")
        assert result["old_private_key_path"] == ""
        assert snapshot(path) == before

    def test_each_pair_has_a_rotation_of_its_own(self, rotation, path):
        rotation.keypair(name="edge-1")
        before = snapshot(path)
        rotation("begin", key=rotation.issuer)
        after = snapshot(path)
        assert {name: after[name] for name in before if name.startswith("edge-1")} == {
            name: value for name, value in before.items() if name.startswith("edge-1")
        }
        assert rotation("begin", name="edge-1")["state"] == "none"

    def test_meanwhile_another_key_is_refused(self, rotation, path):
        rotation("begin", key=rotation.issuer)
        before = snapshot(path)
        result = rotation.keypair(regenerate=True)
        assert result["failed"]
        assert "a rotation of this key is under way" in result["msg"]
        assert any("under way" in warning for warning in rotation.keypair()["warnings"])
        assert snapshot(path) == before


class TestFinish:
    def test_it_stays_open_until_all_are_proven(self, rotation, path):
        begun = rotation("begin", key=rotation.issuer)
        result = rotation.finish(["edge-2", "edge-1", "elsewhere"])
        assert (result["state"], result["changed"]) == ("open", True)
        assert (result["proven"], result["missing"]) == (["edge-1", "edge-2"], ["edge-3"])
        assert "edge-3" in result["warnings"][0]
        assert (path / "fleet.rotation.json").exists()
        before = snapshot(path)
        assert not rotation.finish(["edge-1"])["changed"]
        assert snapshot(path) == before
        result = rotation.finish(["edge-3"])
        assert (result["state"], result["changed"], result["missing"]) == ("finished", True, [])
        assert not (path / "fleet.rotation.json").exists()
        assert rotation.keypair()["issuer"] == begun["new_issuer"]
        assert rotation.finish(HOSTS)["state"] == "none"
        assert rotation("begin", older_than="1d", check=True)["state"] == "none"

    def test_who_fails_is_no_longer_proven(self, rotation):
        rotation("begin", key=rotation.issuer)
        rotation.finish(["edge-1", "edge-2"])
        assert rotation.finish(["edge-3"], unproven=["edge-1"])["missing"] == ["edge-1"]

    @pytest.mark.parametrize("choice", ["archive", "delete"])
    def test_the_old_key(self, rotation, path, choice):
        rotation("begin", key=rotation.issuer)
        kept = [f"fleet-{rotation.issuer.removesuffix('.pub')}.{suffix}" for suffix in ("key", "pub")]
        rotation.finish(HOSTS[:2], old_key=choice)
        assert set(kept) < set(snapshot(path))
        rotation.finish(HOSTS, old_key=choice)
        assert sorted(snapshot(path)) == sorted(["fleet.key", "fleet.pub", *(kept if choice == "archive" else [])])

    def test_what_callers_are_told(self, rotation):
        begun = rotation("begin", key=rotation.issuer)
        text = "\n".join(rotation.finish(["edge-1"])["message"])
        assert f"changes from {rotation.issuer} to {begun['new_issuer']}" in text
        assert f"edge-1: {begun['new_issuer']} alone" in text
        assert f"edge-2: {rotation.issuer} or {begun['new_issuer']}" in text
        assert begun["started"] in text
        assert "is finished" not in text
        assert "is finished" in rotation.finish(HOSTS)["message"][-1]

    def test_check_mode(self, rotation, path):
        rotation("begin", key=rotation.issuer)
        before = snapshot(path)
        assert rotation.finish(HOSTS, check=True, old_key="delete")["changed"]
        assert snapshot(path) == before


class TestRefused:
    @pytest.fixture
    def refuse(self, rotation, path):
        def check(phase, match, **options):
            before = snapshot(path)
            for check_mode in (True, False):
                result = rotation(phase, check=check_mode, **options)
                assert result["failed"], result
                assert match in result["msg"]
                assert PASSPHRASE not in json.dumps(result)
            assert snapshot(path) == before

        return check

    def test_options(self, refuse):
        refuse("begin", "names no key", key="fleet")
        refuse("begin", "is not a duration", older_than="90")
        refuse("begin", "size must be from", size=1024)
        refuse("begin", "name must be a plain file name", name="../x")
        refuse("finish", "hosts is empty", hosts=[])
        refuse("finish", "missing: hosts")
        refuse("begin", "the passphrase is wrong", passphrase="another", older_than="1s")

    def test_no_key_pair(self, run_module, tmp_path):
        result = run_module("jwt_rotation", {"phase": "begin", "path": str(tmp_path / "none")})
        assert "make one first" in result["msg"]

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "{}",
            '{"from": "jwt-11111111", "to": "jwt-11111111", "started": "", "proven": {}, "retire": ""}',
            '{"from": "../x", "to": "jwt-11111111", "started": "", "proven": {}, "retire": ""}',
            '{"from": "jwt-11111111", "to": "jwt-22222222", "started": 3, "proven": {}, "retire": ""}',
            '{"from": "jwt-11111111", "to": "jwt-22222222", "started": "", "proven": {"a": 1}, "retire": ""}',
            '{"from": "jwt-11111111", "to": "jwt-22222222", "started": "", "proven": {}, "retire": "burn"}',
        ],
    )
    def test_a_damaged_record(self, refuse, path, text):
        (path / "fleet.rotation.json").write_text(text)
        refuse("begin", "fleet.rotation.json is damaged")
        refuse("finish", "fleet.rotation.json is damaged", hosts=HOSTS)

    def test_a_record_of_other_keys(self, refuse, path):
        record = {"from": "jwt-11111111", "to": "jwt-22222222", "started": "", "proven": {}, "retire": ""}
        (path / "fleet.rotation.json").write_text(json.dumps(record))
        refuse("begin", "restore all of them from one backup")

    def test_an_old_key_that_is_gone(self, refuse, rotation, path):
        Path(rotation("begin", key=rotation.issuer)["old_private_key_path"]).unlink()
        refuse("begin", "is missing: with it the hosts show")

    def test_a_record_that_is_a_link(self, refuse, path):
        (path / "fleet.rotation.json").symlink_to("/etc/passwd")
        refuse("begin", "is a symbolic link")


# --- cut --------------------------------------------------------------------------------------------------------------


@functools.cache
def key(number: int) -> bytes:
    """A few keys for all cuts: making one takes longer than all the rest."""
    return _crypto.choose_backend("cryptography").generate_key(f"rsa-{SIZE}", PASSPHRASE.encode())


#: Kept for all fleets, and for the children that are ended: opening a key takes longer than all the rest.
public_key = functools.cache(_crypto.choose_backend("cryptography").public_key)


class Keys:
    """The back end, with keys from that stock; what is stored, loaded and signed is as ever."""

    def __init__(self):
        self._backend = _crypto.choose_backend("cryptography")
        self.public_key = public_key
        self.made = 0

    def generate_key(self, key_type, passphrase):
        self.made += 1
        return key(self.made)

    def __getattr__(self, name):
        return getattr(self._backend, name)


def die_at(number: int, when: str, action) -> int | None:
    """Run an action in a child that is ended at its nth change of the disk: before, after, or in the middle of a write.

    Returns None where it was, and the number of its changes where it came to its end.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0
        real_write = os.write

        def counted(function, name, args, options):
            nonlocal count
            count += 1
            if count == number:
                if when == "torn" and name == "write":
                    real_write(args[0], bytes(args[1])[: len(args[1]) // 2])
                if when == "after":
                    with contextlib.suppress(OSError):
                        function(*args, **options)
                os._exit(KILLED)
            return function(*args, **options)

        for name in MUTATORS:
            function = getattr(os, name)

            def patched(*args, function=function, name=name, **options):
                if name == "open" and not args[1] & os.O_CREAT:
                    return function(*args, **options)
                return counted(function, name, args, options)

            setattr(os, name, patched)
        # The files are written by a Python file object, which does not come through here: let it.
        fdopen = os.fdopen

        def opened(descriptor, mode="r", **options):
            if "w" not in mode:
                return fdopen(descriptor, mode, **options)
            return Writer(descriptor)

        class Writer:
            def __init__(self, descriptor):
                self.descriptor = descriptor

            def write(self, data):
                os.write(self.descriptor, data)

            def flush(self):
                pass

            def __enter__(self):
                return self

            def __exit__(self, *_error):
                os.close(self.descriptor)

        os.fdopen = opened
        code = 1
        try:
            with contextlib.suppress(FileProblem):  # a finish before the begin has come to its end is refused
                action()
            real_write(writer, str(count).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as handle:
        said = handle.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), code
    return int(said) if code == 0 else None


class Fleet:
    """A key pair in a directory, and the actions on it."""

    def __init__(self, path: Path):
        path.mkdir(mode=0o700)
        self.path = path
        keys = Keys()
        self.pair = KeyPair(str(path), "fleet", PASSPHRASE.encode(), keys)
        self.keys = keys
        self.pair.store(*self.pair.generate(SIZE))
        for number in (1, 2, 3):
            public_key(key(number), PASSPHRASE.encode())  # known to the children, too
        self.first = self.present()

    def present(self) -> str:
        return _jwt.key_id(self.pair.load())

    def begin(self):
        return _jwt_rotation.begin(self.pair, SIZE, key=self.first)

    def finish(self, delete=True):
        return _jwt_rotation.finish(self.pair, HOSTS, proven=HOSTS, delete=delete)

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.path) if not re.match(r"\..*\.[0-9a-f]{16}$", name))


@pytest.fixture
def fleets(tmp_path):
    numbers = iter(range(10**6))
    return lambda: Fleet(tmp_path / f"jwt-{next(numbers)}")


@pytest.mark.parametrize("when", ["before", "after", "torn"])
def test_begin_cut_at_every_change_of_the_disk(fleets, when):
    states = set()
    for number in range(1, 200):
        fleet = fleets()
        done = die_at(number, when, fleet.begin)
        # What a harden.yml in between would deploy: a whole key, and the new one only once the record is there.
        state = (fleet.present() == fleet.first, _jwt_rotation.load(fleet.pair) is not None)
        assert state != (False, False)
        states.add(state)
        rotation, _changed, why = fleet.begin()
        assert why == ""
        assert fleet.present() == rotation.new != rotation.old == fleet.first
        again = fleet.begin()
        assert again == (rotation, False, "")
        old, _old_public = fleet.pair.archived(fleet.first)
        assert _jwt.key_id(fleet.pair.public_key_of(old)) == fleet.first
        assert fleet.pair.has_public_file(fleet.pair.load())
        rotation, _changed, ended = fleet.finish()
        assert ended
        assert fleet.names() == ["fleet.key", "fleet.pub"]
        if done is not None:
            break
    else:
        pytest.fail("it never came to its end")
    assert number > 20
    assert states == {(True, False), (True, True), (False, True)}


@pytest.mark.parametrize("when", ["before", "after", "torn"])
def test_finish_cut_at_every_change_of_the_disk(fleets, when):
    opened = set()
    for number in range(1, 100):
        fleet = fleets()
        new = fleet.begin()[0].new
        done = die_at(number, when, fleet.finish)
        assert fleet.present() == new
        # The old key is there for as long as it is needed to go on.
        opened.add(_jwt_rotation.load(fleet.pair) is not None)
        begun = resumed(fleet)
        assert begun is None or begun.new == new
        _rotation, _changed, ended = fleet.finish()
        assert ended is (begun is not None)
        assert fleet.present() == new
        assert fleet.names() == ["fleet.key", "fleet.pub"]
        if done is not None:
            break
    else:
        pytest.fail("it never came to its end")
    assert number > 5
    assert opened == {True, False}


def resumed(fleet):
    return _jwt_rotation.begin(fleet.pair, SIZE)[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "finish", "plain"]),
            st.integers(1, 45),
            st.sampled_from(["before", "after", "torn"]),
            st.sets(st.sampled_from(HOSTS)),
        ),
        max_size=6,
    )
)
def test_any_sequence_of_cut_runs_ends_in_one_rotation(fleets, steps):
    """Whatever is cut in whatever order: the old key never comes back, and one new key comes of it."""
    fleet = fleets()
    new = None
    for kind, number, when, proven in steps:
        action = {
            "begin": fleet.begin,
            "finish": lambda proven=proven: _jwt_rotation.finish(fleet.pair, HOSTS, proven=sorted(proven), delete=True),
            "plain": fleet.pair.load,
        }[kind]
        die_at(number, when, action)
        if new:
            assert fleet.present() == new
        elif fleet.present() != fleet.first:
            new = fleet.present()
    rotation, _changed, _why = fleet.begin()
    if rotation is not None:
        assert rotation.new == (new or rotation.new)
        fleet.finish()
    assert fleet.present() == (new or rotation.new) != fleet.first
    assert fleet.names() == ["fleet.key", "fleet.pub"]
    assert fleet.begin()[0] is None


def test_two_runs_at_once_make_one_key(fleets):
    fleet = fleets()
    children = []
    for _run in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                fleet.begin()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    rotation = _jwt_rotation.load(fleet.pair)
    assert fleet.present() == rotation.new
    assert fleet.begin() == (rotation, False, "")


def test_a_run_that_hangs_does_not_block_for_ever(fleets, monkeypatch):
    fleet = fleets()
    monkeypatch.setattr(_jwt_rotation, "LOCK_LIMIT", 0.3)
    with locked(fleet.pair.directory, patience=1):
        found = []

        def attempt():
            try:
                fleet.begin()
            except FileProblem as error:
                found.append(str(error))

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert "held by another run" in found[0]
    assert fleet.present() == fleet.first
