# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Pairs on a device: cut at every step, on a full disk, in a race; the pair in force stays in force and whole."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import itertools
import os
import shutil
import stat
import time
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority, _crypto, _pairs
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from cuts import interposed, run_cut, run_full

OPTIONS = {
    "name": "server",
    "common_name": "broker",
    "subject_alt_names": ["DNS:broker.example", "IP:192.0.2.1"],
    "usages": ["server_auth"],
    "key_type": "ec-p256",
    "key_passphrase": None,
    "valid_for": "365d",
    "renew_before": "30d",
    "keep": 2,
}


@pytest.fixture(params=["cryptography", "openssl"])
def backend(request):
    return _crypto.choose_backend(request.param)


@pytest.fixture
def authority(tmp_path):
    return _authority.create(str(tmp_path / "ca"), "test CA", "ec-p256", 864000, None)


@pytest.fixture
def open_store(tmp_path, authority, backend):
    """Makes stores of the same directory for different wishes."""

    def make(root=None, **options):
        wanted = _pairs.wanted_pair({**OPTIONS, "renew_before": "1d", **options})
        access = _pairs.Access(os.geteuid(), os.getegid(), 0o640)
        directory = str((root or tmp_path / "pki") / "server")
        keep = options.get("keep", 2)
        return _pairs.PairStore(
            directory, wanted, access, list(authority.certificates), list(authority.chain), backend, keep
        )

    return make


def sign(authority, request, **options):
    wanted = _pairs.wanted_pair({**OPTIONS, **options})
    asked = _authority.Request(wanted.common_name, wanted.names, wanted.usages, wanted.key_type, wanted.valid_for)
    return _authority.sign(authority, None, request.decode(), asked).pem()


def renew(store, authority, *, reason="", **options):
    """What module and action plugin do together."""
    store.check()
    with store.lock():
        name, request = store.begin(reason)
    try:
        pem = sign(authority, request, **options)
        with store.lock():
            return store.install(name, pem)
    except BaseException:
        store.discard(name)
        raise


def task(store, authority, **options):
    """What the task does: a new pair where one is needed. Returns the reason."""
    store.check()
    with store.lock():
        reason = store.inspect()[1]
    if reason:
        renew(store, authority, reason=reason, **options)
    return reason


def content(directory):
    """The names and contents of a pair."""
    return {file.name: file.read_bytes() for file in Path(directory).iterdir()}


def in_force(store):
    """The directory in force, once it is certain that it holds a key and the certificate for that key."""
    pair, reason = store.inspect()
    assert reason == ""
    assert sorted(set(content(pair.directory)) - {"answers"}) == ["cert.pem", "key.pem"]
    return pair.directory


class TestCut:
    def test_by_kill_at_every_step(self, tmp_path, open_store, authority, monkeypatch):
        """From the making of the key to the last pair pruned: the old pair is in force, or the new one, whole."""
        first = open_store(keep=1)
        for _time in range(3):
            renew(first, authority)
        old = Path(in_force(first)).name
        before = content(in_force(first))
        shutil.copytree(tmp_path / "pki", tmp_path / "start", symlinks=True)
        outcomes = []
        for limit in range(500):
            shutil.rmtree(tmp_path / "pki")
            shutil.copytree(tmp_path / "start", tmp_path / "pki", symlinks=True)
            died = run_cut(monkeypatch, limit, lambda: renew(open_store(keep=1), authority))
            store = open_store(keep=1)
            now = Path(in_force(store)).name
            outcomes.append(now == old)
            # The old pair stays, since the service still uses it.
            assert content(tmp_path / "pki" / "server" / old) == before

            # The next run of the same task finds all well, and cleans up.
            for folder in (tmp_path / "pki" / "server").glob(".new-*"):
                os.utime(folder, (0, 0))
            with store.lock():
                store.tidy(spare=old)
            names = os.listdir(tmp_path / "pki" / "server")
            assert [name for name in names if name.startswith(".")] == []
            assert old in names
            assert in_force(store) == str(tmp_path / "pki" / "server" / now)
            if not died:
                break
        assert not died
        assert limit > 30
        # It goes from the old to the new once, and never back.
        assert outcomes == sorted(outcomes, reverse=True)
        assert outcomes[0] is True
        assert outcomes[-1] is False

    def test_by_kill_of_the_very_first_run(self, tmp_path, open_store, authority, monkeypatch):
        for limit in range(500):
            shutil.rmtree(tmp_path / "pki", ignore_errors=True)
            died = run_cut(monkeypatch, limit, lambda: renew(open_store(), authority))
            store = open_store()
            store.check()
            if store.inspect()[1]:
                assert store.inspect()[1].startswith("missing")
                renew(store, authority)
            in_force(store)
            if not died:
                break
        assert not died

    @pytest.mark.parametrize("kind", ["new key", "same key", "requested"])
    def test_a_renewal_cut_at_every_step_is_ended_by_the_next_run(
        self, tmp_path, open_store, authority, monkeypatch, kind
    ):
        """The whole task, killed before each step, and run again: one pair that is wanted, and then nothing to do."""
        monkeypatch.setattr(_authority, "now", lambda: datetime.datetime.now(datetime.UTC).replace(microsecond=0))
        options = {
            "new key": {"renew_before": "5d"},
            "same key": {"renew_before": "5d", "renewal_key": "same"},
            "requested": {"renew_issued_before": x509.show_time(datetime.datetime.now(datetime.UTC))},
        }[kind]
        renew(open_store(), authority, valid_for="4d", renew_before="1d")
        old = content(os.path.realpath(open_store().current))
        shutil.copytree(tmp_path / "pki", tmp_path / "start", symlinks=True)
        finished = []
        for limit in range(500):
            shutil.rmtree(tmp_path / "pki")
            shutil.copytree(tmp_path / "start", tmp_path / "pki", symlinks=True)
            died = run_cut(monkeypatch, limit, lambda: task(open_store(**options), authority))
            store = open_store(**options)
            # Whatever the moment, a service that is started now finds a pair that is whole.
            pair, _reason = store.inspect()
            assert store._key_fault(pair.directory, pair.certificate) == ""
            finished.append(task(store, authority) == "")
            new = content(in_force(store))
            assert (new["key.pem"] == old["key.pem"]) is (kind == "same key")
            assert new["cert.pem"] != old["cert.pem"]
            assert ("answers" in new) is (kind == "requested")
            assert task(open_store(**options), authority) == ""
            if not died:
                break
        assert not died
        assert limit > 30
        # Until the switch the next run renews, and from then on it finds that done.
        assert finished == sorted(finished)
        assert (finished[0], finished[-1]) == (False, True)

    def test_by_a_full_disk_at_every_write(self, tmp_path, open_store, authority, monkeypatch):
        """As the last test, by the writes themselves: what was written is cut short, and nothing of it stays."""
        store = open_store()
        old = renew(store, authority).directory
        original = os.fdopen

        class Full:
            """A file on a disk that has room for half of what is written."""

            def __init__(self, handle):
                self.handle = handle

            def __enter__(self):
                return self

            def __exit__(self, *_error):
                self.handle.close()

            def write(self, data):
                self.handle.write(data[: len(data) // 2])
                self.handle.flush()
                raise OSError(errno.ENOSPC, "No space left on device")

        for limit in range(20):
            left = itertools.count(limit, -1)

            def fdopen(descriptor, mode="r", *arguments, left=left, **options):
                handle = original(descriptor, mode, *arguments, **options)
                return Full(handle) if "w" in mode and next(left) == 0 else handle

            with monkeypatch.context() as patch:
                patch.setattr(os, "fdopen", fdopen)
                with contextlib.suppress(OSError):
                    renew(store, authority)
            if in_force(store) != old:
                break
            assert [name for name in os.listdir(store.directory) if name.startswith(".")] == []
        # The key, the certificate, and the copy that the authority keeps.
        assert limit >= 3

    def test_by_a_full_disk_at_every_step(self, tmp_path, open_store, authority, monkeypatch):
        """Unlike a kill, an error can be cleaned up after at once."""
        store = open_store()
        old = renew(store, authority).directory
        for limit in range(500):
            error = run_full(monkeypatch, limit, lambda: renew(store, authority))
            if in_force(store) != old:
                break
            assert error is not None
            assert [name for name in os.listdir(store.directory) if name.startswith(".")] == []
        assert limit > 20

    def test_everything_is_on_the_disk_before_it_gets_its_name(self, tmp_path, open_store, authority, monkeypatch):
        """Key, certificate and directory are synced before the renaming; that before the switch of the link."""
        store = open_store()
        steps = []

        def note(name, arguments):
            if name == "fsync":
                steps.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{arguments[0]}"))))
            elif name in ("rename", "replace"):
                steps.append((name, os.path.basename(arguments[1])))

        with interposed(monkeypatch, note):
            pair = renew(store, authority)
        identifier = pair.certificate.identifier
        named = steps.index(("rename", identifier))
        switched = steps.index(("replace", "current"))
        before = [step for step in steps[:named] if step[0] == "fsync"]
        pending = next(name for _step, name in before if name.startswith(".new-"))
        assert ("fsync", "key.pem") in before
        assert ("fsync", "cert.pem") in before
        assert before[-1] == ("fsync", pending)
        assert ("fsync", "server") in steps[named:switched]
        assert ("fsync", "server") in steps[switched:]


class TestInstall:
    @pytest.fixture
    def begun(self, open_store, authority):
        """A store with a pair in force and another one begun: store, name, request."""
        store = open_store()
        renew(store, authority)
        return (store, *store.begin())

    def refuse(self, store, name, pem, match):
        old = in_force(store)
        with pytest.raises(CryptoError, match=match):
            store.install(name, pem)
        assert in_force(store) == old
        assert [entry for entry in os.listdir(store.directory) if entry.startswith(".")] == []

    def test_a_certificate_for_another_key(self, begun, authority):
        store, name, _request = begun
        other, request = store.begin()
        pem = sign(authority, request)
        store.discard(other)
        self.refuse(store, name, pem, "mismatch")

    def test_a_certificate_of_another_authority(self, begun, tmp_path):
        store, name, request = begun
        stranger = _authority.create(str(tmp_path / "other"), "test CA", "ec-p256", 864000, None)
        self.refuse(store, name, sign(stranger, request), "authority")

    def test_a_certificate_for_another_use(self, begun, authority):
        store, name, request = begun
        self.refuse(store, name, sign(authority, request, usages=["client_auth"]), "usages")

    def test_a_certificate_that_is_due_at_once(self, begun, authority):
        store, name, request = begun
        self.refuse(store, name, sign(authority, request, valid_for="12h", renew_before="1h"), "expiring")

    def test_something_behind_the_certificate(self, begun, authority):
        store, name, request = begun
        self.refuse(store, name, sign(authority, request) + authority.pem.encode(), "intermediate")

    @pytest.mark.parametrize("pem", [b"", b"nonsense"])
    def test_no_certificate(self, begun, pem):
        store, name, _request = begun
        self.refuse(store, name, pem, "controller is no certificate")

    def test_a_key_that_was_exchanged_meanwhile(self, begun, authority, backend):
        store, name, request = begun
        Path(store.directory, name, "key.pem").write_bytes(backend.generate_key("ec-p256"))
        self.refuse(store, name, sign(authority, request), "mismatch")

    @pytest.mark.parametrize("name", ["", "..", "../x", "current", ".new-", ".new-0123456789abcdef/..", ".new-x"])
    def test_a_name_that_is_no_pair_being_made(self, begun, authority, name):
        store, _name, request = begun
        with pytest.raises(FileProblem, match="no pair"):
            store.install(name, sign(authority, request))
        with pytest.raises(FileProblem, match="no pair"):
            store.discard(name)

    def test_a_pair_that_is_gone(self, begun, authority):
        store, _name, request = begun
        with pytest.raises(CryptoError, match="unreadable"):
            store.install(".new-0123456789abcdef", sign(authority, request))

    def test_a_serial_number_given_out_twice(self, begun, authority):
        store, name, request = begun
        pem = sign(authority, request)
        Path(store.directory, x509.load_certificates(pem)[0].identifier).mkdir()
        self.refuse(store, name, pem, "twice")

    def test_modes_and_content(self, begun, authority):
        store, name, request = begun
        pem = sign(authority, request)
        pair = store.install(name, pem)
        assert in_force(store) == pair.directory
        assert content(pair.directory)["cert.pem"] == pem
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in Path(pair.directory).iterdir()}
        assert modes == {"key.pem": 0o640, "cert.pem": 0o644}
        assert stat.S_IMODE(os.stat(pair.directory).st_mode) == 0o750
        assert store.drift(pair) == []


class TestReasons:
    """Why a pair is renewed; each against a pair that is otherwise fine."""

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"common_name": "other"}, "names: the common name is 'broker', not 'other'"),
            ({"subject_alt_names": ["DNS:broker.example"]}, "names: "),
            ({"subject_alt_names": [*OPTIONS["subject_alt_names"], "DNS:more.example"]}, "names: "),
            ({"usages": ["server_auth", "client_auth"]}, "usages: "),
            ({"key_type": "ec-p384"}, "key_type: ec-p256, not ec-p384"),
            ({"renew_before": "300d"}, "expiring: "),
            ({"key_passphrase": "secret"}, "unreadable: "),
            ({}, ""),
            ({"subject_alt_names": ["IP:192.0.2.1", "DNS:BROKER.example", "dns:broker.example"]}, ""),
        ],
    )
    def test_other_wishes(self, open_store, authority, options, reason):
        renew(open_store(), authority)
        found = open_store(**options).inspect()[1]
        assert found.startswith(reason)
        assert bool(found) is bool(reason)

    def test_another_passphrase(self, open_store, authority):
        renew(open_store(key_passphrase="one"), authority)
        assert open_store(key_passphrase="one").inspect()[1] == ""
        assert open_store(key_passphrase="two").inspect()[1].startswith("unreadable")
        assert open_store().inspect()[1].startswith("unreadable")

    def test_another_authority(self, open_store, authority, tmp_path):
        store = open_store()
        renew(store, authority)
        store._authority = list(
            _authority.create(str(tmp_path / "other"), "test CA", "ec-p256", 864000, None).certificates
        )
        assert store.inspect()[1].startswith("authority: ")
        store._authority = []
        assert store.inspect()[1].startswith("authority: ")

    @pytest.mark.parametrize("file", ["key.pem", "cert.pem"])
    @pytest.mark.parametrize("damage", ["empty", "missing", "link", "directory", "half"])
    def test_damage(self, open_store, authority, file, damage):
        store = open_store()
        path = Path(renew(store, authority).directory, file)
        data = path.read_bytes()
        path.unlink()
        if damage == "link":
            path.symlink_to("/etc/passwd")
        elif damage == "directory":
            path.mkdir()
        elif damage != "missing":
            path.write_bytes(data[: len(data) // 2] if damage == "half" else b"")
        assert store.inspect()[1].startswith("unreadable: ")
        renew(store, authority)
        in_force(store)

    def test_the_key_of_another_pair(self, open_store, authority):
        store = open_store()
        first, second = renew(store, authority), renew(store, authority)
        shutil.copyfile(Path(first.directory, "key.pem"), Path(second.directory, "key.pem"))
        assert store.inspect()[1].startswith("mismatch: ")

    @pytest.mark.parametrize("target", ["nowhere", "../server/ab", "/etc", "..", "00112233445566778899"])
    def test_a_link_that_points_astray(self, open_store, authority, target):
        store = open_store()
        renew(store, authority)
        os.unlink(store.current)
        os.symlink(target, store.current)
        assert store.inspect()[1].startswith(("missing: ", "unreadable: "))
        renew(store, authority)
        in_force(store)

    def test_expired_and_expiring(self, open_store, authority, monkeypatch):
        store = open_store()
        end = renew(store, authority, valid_for="5d", renew_before="1d").certificate.not_after
        moments = {
            end - datetime.timedelta(days=1, seconds=1): "",
            end - datetime.timedelta(days=1): "expiring: ",
            end + datetime.timedelta(seconds=1): "expired: ",
        }
        for moment, reason in moments.items():
            monkeypatch.setattr(_pairs, "_now", lambda moment=moment: moment)
            found = store.inspect()[1]
            assert (found.split(" ")[0] + " " if found else "") == reason


class TestKey:
    """Whether a renewal keeps the key."""

    @pytest.mark.parametrize(
        ("before", "after", "kept"),
        [
            ({}, {"renew_before": "300d"}, True),
            ({}, {"common_name": "other"}, True),
            ({}, {"subject_alt_names": ["DNS:other.example"]}, True),
            ({}, {"usages": ["server_auth", "client_auth"]}, True),
            ({"key_passphrase": "one"}, {"key_passphrase": "one", "common_name": "other"}, True),
            ({}, {"key_type": "ec-p384"}, False),
            ({"key_passphrase": "one"}, {"key_passphrase": "two"}, False),
            ({}, {"renew_issued_before": "2020-01-01", "common_name": "other"}, True),
        ],
    )
    def test_it_stays_where_it_can(self, open_store, authority, before, after, kept):
        old = content(renew(open_store(**before), authority, **before).directory)["key.pem"]
        name, _request = (store := open_store(**after, renewal_key="same")).begin(store.inspect()[1])
        assert (Path(store.directory, name, "key.pem").read_bytes() == old) is kept
        name, _request = (store := open_store(**after)).begin(store.inspect()[1])
        assert Path(store.directory, name, "key.pem").read_bytes() != old

    @pytest.mark.parametrize("damage", ["missing", "foreign", "junk", "directory"])
    def test_a_damaged_one_goes(self, open_store, authority, backend, damage):
        store = open_store(renewal_key="same")
        path = Path(renew(store, authority).directory, "key.pem")
        path.unlink()
        if damage == "foreign":
            path.write_bytes(backend.generate_key("ec-p256"))
        elif damage == "junk":
            path.write_text("junk")
        elif damage == "directory":
            path.mkdir()
        assert task(store, authority)
        in_force(store)

    def test_one_that_leaked_goes_though_the_authority_is_another_one_too(self, open_store, authority, tmp_path):
        now = x509.show_time(datetime.datetime.now(datetime.UTC))
        old = content(renew(open_store(), authority).directory)["key.pem"]
        other = _authority.create(str(tmp_path / "other"), "test CA", "ec-p256", 864000, None)
        store = open_store(renewal_key="same", renew_issued_before=now)
        store._authority = list(other.certificates)
        assert task(store, other).startswith("requested: ")
        assert content(in_force(store))["key.pem"] != old


class TestRequest:
    """Renewed whatever the end, once."""

    def moment(self, **ago):
        return x509.show_time(datetime.datetime.now(datetime.UTC) - datetime.timedelta(**ago))

    def test_once_for_each_moment(self, open_store, authority):
        renew(open_store(), authority)
        for moment in (self.moment(minutes=2), self.moment(minutes=1), self.moment()):
            assert task(open_store(renew_issued_before=moment), authority).startswith("requested: ")
            for again in (moment, self.moment(minutes=3), ""):
                assert task(open_store(renew_issued_before=again), authority) == ""

    def test_what_is_younger_stays(self, open_store, authority):
        renew(open_store(), authority)
        assert task(open_store(renew_issued_before=self.moment(hours=2)), authority) == ""

    @pytest.mark.parametrize("answer", ["", "soon", "2020-01-01", "2020-01-01T00:00:00Z"])
    def test_an_answer_to_something_else_is_none(self, open_store, authority, answer):
        moment = self.moment()
        store = open_store(renew_issued_before=moment)
        Path(renew(store, authority).directory, "answers").write_text(answer)
        assert store.inspect()[1].startswith("requested: ")

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("2030-01-31", "2030-01-31T00:00:00Z"),
            (" 2030-01-31T12:34Z ", "2030-01-31T12:34:00Z"),
            ("2030-01-31T12:34:56Z", "2030-01-31T12:34:56Z"),
            ("2030-01-31 12:34:56+00:00", "2030-01-31T12:34:56Z"),
            ("2030-01-31 12:34:56", None),
            ("2030-02-30", None),
            ("2030-01-31T24:00:00Z", None),
            ("2030-01-31T12:00:00+02:00", None),
            ("31.1.2030", None),
            ("yesterday", None),
            ("1900000000", None),
            ("٢٠٣٠-01-31", None),
        ],
    )
    def test_moments(self, text, shown):
        if shown:
            assert x509.show_time(_pairs.parse_moment(text)) == shown
        else:
            with pytest.raises(ValueError, match="renew_issued_before"):
                _pairs.parse_moment(text)

    def test_a_moment_yet_to_come_is_refused(self):
        now = datetime.datetime.now(datetime.UTC)
        for seconds, refused in ((2, True), (-2, False)):
            text = x509.show_time(now + datetime.timedelta(seconds=seconds))
            wanted = _pairs.wanted_pair({**OPTIONS, "renew_issued_before": text})
            with pytest.raises(ValueError, match="yet to come") if refused else contextlib.nullcontext():
                _pairs.check_moment(wanted, now)


class TestTime:
    """Time passes: before the window nothing, in it one renewal, after it nothing."""

    @pytest.mark.parametrize("margin", ["30d", "25%"])
    def test_one_renewal_in_each_window(self, open_store, tmp_path, monkeypatch, margin):
        begin = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        clock = [begin]
        monkeypatch.setattr(_pairs, "_now", lambda: clock[0])
        monkeypatch.setattr(_authority, "now", lambda: clock[0])
        authority = _authority.create(str(tmp_path / "long"), "test CA", "ec-p256", 86400 * 1000, None)
        options = {"valid_for": "120d", "renew_before": margin}
        renewals = []
        for day in range(0, 300, 5):
            clock[0] = begin + datetime.timedelta(days=day)
            store = open_store(**options)
            store._authority = list(authority.certificates)
            for _time in range(2):
                if reason := task(store, authority, **options):
                    renewals.append((day, reason.partition(":")[0]))
        assert renewals == [(0, "missing"), (90, "expiring"), (180, "expiring"), (270, "expiring")]


class TestClock:
    @pytest.mark.parametrize("days", [-2, 11])
    def test_a_device_that_lives_outside_the_authority(self, open_store, authority, monkeypatch, days):
        store = open_store()
        renew(store, authority)
        moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        monkeypatch.setattr(_pairs, "_now", lambda: moment)
        edge = authority.issuer.not_before if days < 0 else authority.issuer.not_after
        with pytest.raises(_pairs.ClockProblem) as caught:
            store.check()
        for word in ("clock of this device is wrong", x509.show_time(moment), x509.show_time(edge)):
            assert word in str(caught.value)

    def test_a_device_that_lives_before_its_new_certificate(self, open_store, authority, monkeypatch):
        store = open_store()
        name, request = store.begin()
        pem = sign(authority, request)
        moment = x509.load_certificates(pem)[0].not_before - datetime.timedelta(minutes=1)
        monkeypatch.setattr(_pairs, "_now", lambda: moment)
        with pytest.raises(_pairs.ClockProblem, match="clock"):
            store.install(name, pem)
        assert os.listdir(store.directory) == []


class TestPlace:
    def test_a_current_that_is_no_link(self, open_store, authority):
        store = open_store()
        renew(store, authority)
        os.unlink(store.current)
        os.mkdir(store.current)
        with pytest.raises(FileProblem, match="current is not a symbolic link"):
            store.check()

    def test_a_pair_that_others_can_write(self, open_store, authority):
        store = open_store()
        os.chmod(renew(store, authority).directory, 0o770)
        with pytest.raises(FileProblem, match="writable"):
            store.check()

    def test_a_run_at_the_same_time(self, open_store, authority, monkeypatch):
        store = open_store()
        renew(store, authority)
        monkeypatch.setattr(_pairs, "PATIENCE", 0.3)
        descriptor = os.open(store.directory, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            with pytest.raises(FileProblem, match="another run"), store.lock():
                pytest.fail("two at a time")
        finally:
            os.close(descriptor)
        with store.lock():
            in_force(store)


class TestTidy:
    def test_the_newest_old_pairs_are_kept(self, open_store, authority):
        store = open_store(keep=2)
        made = []
        for age in range(5, 0, -1):
            made.append(renew(store, authority).certificate.identifier)
            os.utime(Path(store.directory, made[-1]), (time.time() - age,) * 2)
        assert set(os.listdir(store.directory)) == {"current", *made[-3:]}
        assert store.leftovers() == [], "the next run would not be without change"

    def test_the_pair_just_replaced_is_kept_whatever_its_age(self, open_store, authority):
        store = open_store(keep=1)
        renew(store, authority)
        old = in_force(store)
        # An orphan of a run that was cut, younger than the pair that the service uses.
        shutil.copytree(old, Path(store.directory, "abcdef"))
        os.utime(old, (0, 0))
        renew(store, authority)
        assert os.path.isdir(old)
        assert store.leftovers() == []

    def test_what_is_not_ours_is_left_alone(self, open_store, authority):
        store = open_store(keep=1)
        renew(store, authority)
        others = ["README", "notes", ".hidden", ".new-1", "ABCDEF", "0x12"]
        for name in others:
            Path(store.directory, name).mkdir()
        assert store.tidy() == []
        assert set(others) < set(os.listdir(store.directory))

    def test_what_a_kept_generation_names_stays(self, open_store, authority, monkeypatch):
        store = open_store()
        first = renew(store, authority)
        monkeypatch.setattr(_pairs, "needed_files", lambda: {f"{first.directory}/key.pem", "/elsewhere/key.pem"})
        second = renew(store, authority)
        third, fourth, fifth = (renew(store, authority) for _number in range(3))
        left = {pair.directory for pair in (first, second, third, fourth, fifth) if os.path.isdir(pair.directory)}
        assert left == {first.directory, third.directory, fourth.directory, fifth.directory}
        monkeypatch.setattr(_pairs, "needed_files", set)
        assert store.tidy() == [os.path.basename(first.directory)]

    @pytest.mark.parametrize(("age", "goes"), [(0, False), (3500, False), (3700, True), (-3700, True)])
    def test_pairs_being_made_have_an_hour(self, open_store, authority, age, goes):
        store = open_store()
        renew(store, authority)
        name, _request = store.begin()
        os.utime(Path(store.directory, name), (time.time() - age,) * 2)
        assert store.leftovers() == ([name] if goes else [])
        assert store.tidy() == ([name] if goes else [])
        assert Path(store.directory, name).exists() is not goes

    def test_a_link_in_the_place_of_a_leftover_is_not_followed(self, open_store, authority, tmp_path):
        store = open_store()
        renew(store, authority)
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").touch()
        os.symlink(tmp_path / "precious", Path(store.directory, ".old-ab"))
        store.tidy()
        assert (tmp_path / "precious" / "file").exists()
        assert not os.path.lexists(Path(store.directory, ".old-ab"))


class TestAccess:
    def test_drift_is_found_and_mended(self, open_store, authority):
        store = open_store()
        pair = renew(store, authority)
        for name, mode in (("key.pem", 0o644), ("cert.pem", 0o600), ("", 0o700)):
            os.chmod(Path(pair.directory, name), mode)
        assert len(store.drift(pair)) == 3
        assert "0644, not" in store.drift(pair)[1]
        store.mend_all(pair)
        assert store.drift(pair) == []
        in_force(store)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_a_new_group_never_gets_what_the_old_one_had(self, open_store, authority, monkeypatch):
        """Between change of group and change of mode the file is open to its owner alone."""
        store = open_store()
        pair = renew(store, authority)
        key = Path(pair.directory, "key.pem")
        os.chown(key, 0, 12345)
        modes = []
        original = os.fchown

        def watched(descriptor, *ids):
            modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
            return original(descriptor, *ids)

        monkeypatch.setattr(os, "fchown", watched)
        store.mend_all(pair)
        assert modes == [0o600]
        assert store.drift(pair) == []

    @pytest.mark.parametrize("text", ["0644", "0660", "0750", "0000", "0040", "0o640", "u=rw", "416", "99", "", "1640"])
    def test_modes_that_are_refused(self, text):
        with pytest.raises(ValueError, match="mode"):
            _pairs.parse_mode(text)

    @pytest.mark.parametrize(("text", "mode"), [("0640", 0o640), ("600", 0o600), ("0400", 0o400)])
    def test_modes(self, text, mode):
        assert _pairs.parse_mode(text) == mode


class TestWishes:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"name": "../x"}, "name"),
            ({"name": "current"}, "name"),
            ({"name": ""}, "name"),
            ({"name": ".hidden"}, "name"),
            ({"common_name": "x" * 65}, "common name"),
            ({"subject_alt_names": []}, "subject_alt_names"),
            ({"subject_alt_names": ["broker"]}, "'broker'"),
            ({"usages": []}, "usages"),
            ({"valid_for": "365"}, "'365'"),
            ({"renew_before": "365d"}, "renew_before"),
            ({"renew_before": "0%"}, "0%"),
            ({"keep": 0}, "keep"),
        ],
    )
    def test_they_are_refused_by_name(self, options, match):
        with pytest.raises(ValueError, match=match):
            _pairs.wanted_pair({**OPTIONS, **options})

    def test_a_client_needs_no_further_name(self):
        assert _pairs.wanted_pair({**OPTIONS, "usages": ["client_auth"], "subject_alt_names": []}).names == ()

    def test_a_share_is_one_of_valid_for(self):
        wanted = _pairs.wanted_pair({**OPTIONS, "valid_for": "100h", "renew_before": "33%"})
        assert wanted.margin == 33 * 3600


class TestGiven:
    """A pair that the user gives takes the place of the one in force in the same way."""

    @pytest.fixture
    def give(self, tmp_path, authority, backend):
        """give(store options) -> (store, key, certificate) of another pair each time."""

        def make(root=None, **options):
            wanted = _pairs.wanted_pair({**OPTIONS, **options})
            key = backend.generate_key("ec-p256")
            names = list(wanted.names)
            pem = sign(authority, _crypto.make_request(backend, key, None, wanted.common_name, names))
            access = _pairs.Access(os.geteuid(), os.getegid(), 0o640)
            given = x509.load_certificates(pem)
            directory = str((root or tmp_path / "pki") / "server")
            anchors = list(authority.certificates)
            store = _pairs.PairStore(directory, wanted, access, anchors, [], backend, 1, source="given", given=given)
            return store, key, pem

        return make

    def test_cut_at_every_step(self, tmp_path, give, monkeypatch):
        """By kill -9: the old pair is in force, or the new one, whole; and the next run ends right."""
        first = give()
        old = first[0].take(*first[1:]).directory
        shutil.copytree(tmp_path / "pki", tmp_path / "start", symlinks=True)
        second, key, pem = give()
        outcomes = []
        for limit in range(500):
            shutil.rmtree(tmp_path / "pki")
            shutil.copytree(tmp_path / "start", tmp_path / "pki", symlinks=True)
            died = run_cut(monkeypatch, limit, lambda: second.take(key, pem))
            outcomes.append(os.path.realpath(second.current) == old)
            in_force(first[0] if outcomes[-1] else second)
            second.take(key, pem)
            in_force(second)
            assert content(os.path.realpath(second.current))["key.pem"] == key
            if not died:
                break
        assert not died
        assert limit > 20
        assert outcomes == sorted(outcomes, reverse=True)

    def test_a_full_disk_at_every_step(self, give, monkeypatch):
        """The old pair is in force, or the new one, whole; what is left over goes with the next run."""
        first, old_key, old_pem = give()
        old = first.take(old_key, old_pem).directory
        taken = 0
        for limit in range(500):
            second, key, pem = give()
            count = 0

            def fail(name, _arguments, limit=limit):
                nonlocal count
                count += 1
                if count - 1 == limit and name not in ("unlink", "rmdir"):
                    raise OSError(errno.ENOSPC, "No space left on device")

            with contextlib.suppress(OSError, FileProblem, CryptoError), interposed(monkeypatch, fail):
                second.take(key, pem)
            new = os.path.realpath(second.current) != old
            in_force(second if new else first)
            assert [name for name in os.listdir(second.directory) if name.startswith(".new")] == []
            taken += new
            first.take(old_key, old_pem)
            assert [name for name in os.listdir(second.directory) if name.startswith(".")] == []
            if count <= limit:
                break
        assert new
        assert 0 < taken < limit
        assert limit > 15

    def test_the_key_is_never_open_to_others(self, give, monkeypatch):
        """Nor is it ever in a place where others can enter."""
        store, key, pem = give()
        seen = []

        def look(_name, _arguments):
            for path in Path(store.directory).glob("*/key.pem"):
                seen.append(stat.S_IMODE(path.stat().st_mode) & 0o027)

        with interposed(monkeypatch, look):
            store.take(key, pem)
        assert seen
        assert set(seen) == {0}

    def test_a_key_of_another(self, give):
        store, key, pem = give()
        store.take(key, pem)
        other, _key, other_pem = give()
        with pytest.raises(CryptoError, match="mismatch"):
            other.take(key, other_pem)
        in_force(store)
        assert [name for name in os.listdir(store.directory) if name.startswith(".")] == []
