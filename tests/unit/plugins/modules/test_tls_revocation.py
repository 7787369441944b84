# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates that are taken back: the list is asked of the library and of openssl, and made anew when it is time."""

from __future__ import annotations

import contextlib
import datetime
import os
import stat
import subprocess
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority, _crl, _crypto, _revocation, _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import make_request
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PASSPHRASE = "passphrase-of-the-authority"
DAY = datetime.timedelta(days=1)
KEY = ec.generate_private_key(ec.SECP256R1())


def give(path: Path, name: str, days: int = 90) -> _x509.Certificate:
    """A certificate of the authority."""
    backend = _crypto.choose_backend("cryptography")
    request = make_request(backend, backend.generate_key("ec-p256"), None, name, []).decode()
    asked = _authority.Request(name, (), ("client_auth",), "ec-p256", days * 86400)
    return _authority.sign(_authority.load(str(path)), PASSPHRASE.encode(), request, asked)


@pytest.fixture
def path(tmp_path, run_module):
    made = run_module("tls_authority", {"path": str(tmp_path / "ca"), "passphrase": PASSPHRASE, "valid_for": "3650d"})
    assert made["changed"]
    return tmp_path / "ca"


@pytest.fixture
def revoke(path, run_module):
    """revoke(check=False, **options): a run of the module on that authority."""

    def ask(check=False, **options):
        return run_module("tls_revocation", {"path": str(path), "passphrase": PASSPHRASE, **options}, check=check)

    return ask


@pytest.fixture
def clock(monkeypatch):
    """clock(days): move the authority's time, for what runs in this process."""
    start = _authority.now()

    def move(days):
        monkeypatch.setattr(_authority, "now", lambda: start + days * DAY)

    return move


def read(path: Path) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl((path / "crl.pem").read_bytes())


def number(path: Path) -> int:
    return read(path).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def serials(path: Path) -> set[int]:
    return {entry.serial_number for entry in read(path)}


def snapshot(path: Path) -> dict:
    return {
        str(entry): (stat.S_IMODE(entry.lstat().st_mode), entry.stat().st_mtime_ns, entry.read_bytes())
        for entry in sorted(path.rglob("*"))
        if entry.is_file()
    }


class TestMade:
    def test_an_empty_list_that_openssl_takes(self, revoke, path):
        good = give(path, "ann")
        result = revoke()
        assert (result["failed"], result["changed"], result["added"], result["revoked"]) == (False, True, [], [])
        assert stat.S_IMODE((path / "crl.pem").stat().st_mode) == 0o644
        public = x509.load_pem_x509_certificate((path / "ca.pem").read_bytes()).public_key()
        assert read(path).is_signature_valid(public)
        assert verified(path, good)

    def test_by_common_name_all_that_was_given(self, revoke, path):
        ann, again, bob = give(path, "ann"), give(path, "ann"), give(path, "bob")
        result = revoke(common_names=["ann"])
        assert sorted(result["added"]) == sorted(f"{one.serial:x}" for one in (ann, again))
        assert serials(path) == {ann.serial, again.serial}
        assert [verified(path, one) for one in (ann, again, bob)] == [False, False, True]

    @pytest.mark.parametrize("spelling", ["{:x}", "{:X}", "0x{:x}", "colons"])
    def test_by_serial_number(self, revoke, path, spelling):
        given = give(path, "ann")
        text = given.identifier
        text = ":".join(text[i : i + 2] for i in range(0, len(text), 2)) if spelling == "colons" else ""
        assert revoke(serials=[text or spelling.format(given.serial)])["changed"]
        assert serials(path) == {given.serial}

    def test_a_second_run_changes_nothing(self, revoke, path):
        give(path, "ann")
        first = revoke(common_names=["ann"])
        before = snapshot(path)
        again = revoke(common_names=["ann"])
        assert again == {**first, "changed": False, "reason": "", "added": []}
        assert revoke(passphrase=None)["changed"] is False, "without the key, which nothing is to be signed with"
        assert snapshot(path) == before

    def test_numbers_rise_and_what_is_revoked_stays_so(self, revoke, path):
        names, found = ["ann", "bob", "eve"], []
        for name in names:
            give(path, name)
            revoke(common_names=[name])
            found.append(number(path))
        assert found == sorted(set(found))
        assert len(serials(path)) == 3

    def test_a_number_rises_though_the_file_was_lost(self, revoke, path):
        revoke()
        first = number(path)
        (path / "crl.pem").unlink()
        revoke(valid_for="40d")
        assert number(path) >= first

    def test_check_mode(self, revoke, path):
        give(path, "ann")
        before = snapshot(path)
        assert revoke(check=True, common_names=["ann"])["changed"]
        assert snapshot(path) == before
        result = revoke(check=True, common_names=["ann"], passphrase="another")
        assert result["failed"]
        assert "passphrase is wrong" in result["msg"]


def verified(path: Path, certificate: _x509.Certificate) -> bool:
    """Whether openssl takes a certificate, with the list."""
    command = ["openssl", "verify", "-crl_check_all", "-CAfile", path / "ca.pem", "-CRLfile", path / "crl.pem"]
    done = subprocess.run([*command, "/dev/stdin"], input=certificate.pem(), capture_output=True, check=False)
    assert done.returncode == 0 or b"certificate revoked" in done.stderr, done.stderr
    return done.returncode == 0


def plan(path, **options):
    return _revocation.plan(str(path), **{"valid_for": 30 * 86400, "renew_before": "50%", **options})


class TestInTime:
    def test_it_is_replaced_before_it_is_due_and_once(self, path, clock):
        give(path, "ann")
        _revocation.carry_out(plan(path, common_names=["ann"]), PASSPHRASE.encode())
        first = number(path)
        for days, reason in ((0, ""), (14.9, ""), (15.1, "is to be replaced by"), (29, "is to be replaced by")):
            clock(days)
            assert (reason in plan(path).reason) if reason else plan(path).reason == ""
        wanted = plan(path)
        _revocation.carry_out(wanted, PASSPHRASE.encode())
        assert plan(path).reason == ""
        assert number(path) > first
        assert read(path).next_update_utc == wanted.next_update
        assert len(serials(path)) == 1

    def test_a_list_of_the_future_is_replaced(self, path, clock):
        clock(100)
        _revocation.carry_out(plan(path), PASSPHRASE.encode())
        first = number(path)
        clock(0)
        assert "that is not now" in plan(path).reason
        _revocation.carry_out(plan(path), PASSPHRASE.encode())
        assert number(path) > first

    def test_what_ended_leaves_the_list_after_one_that_has_it(self, path, clock):
        short, long = give(path, "short", days=10), give(path, "long", days=3000)
        for days, expected in ((0, {short, long}), (16, {short, long}), (32, {long}), (48, {long})):
            clock(days)
            names = ["short", "long"] if not days else []
            _revocation.carry_out(plan(path, common_names=names), PASSPHRASE.encode())
            assert serials(path) == {one.serial for one in expected}, days
            assert plan(path).reason == ""

    def test_what_nobody_keeps_a_copy_of_stays(self, path, clock):
        for days in (0, 16, 3000):
            clock(days)
            _revocation.carry_out(plan(path, serials=["abcdef"], unknown=True), PASSPHRASE.encode())
            assert serials(path) == {0xABCDEF}


class TestOtherKeys:
    """As in a roll-over: the same name with two keys, both trusted."""

    def second_key(self, path: Path, name: str, tmp_path: Path, run_module) -> None:
        other = tmp_path / "other"
        run_module("tls_authority", {"path": str(other), "passphrase": PASSPHRASE})
        for part in ("key", "pem"):
            (other / f"ca.{part}").rename(path / f"{name}.{part}")

    @pytest.mark.parametrize("name", ["next", "previous"])
    def test_each_key_signs_a_list(self, revoke, path, tmp_path, run_module, name):
        give(path, "ann")
        revoke(common_names=["ann"])
        self.second_key(path, name, tmp_path, run_module)
        result = revoke()
        assert result["reason"] == "there is no list with the key of the authority"
        lists = _crl.load_lists((path / "crl.pem").read_bytes())
        assert len(lists) == 2
        backend = _crypto.choose_backend()
        for part, found in zip(("ca", name), lists, strict=True):
            authority = _x509.load_certificates((path / f"{part}.pem").read_bytes())[0]
            assert found.is_signed_by(backend, authority)
        assert lists[0].serials == lists[1].serials
        assert not revoke()["changed"]

    def test_after_the_switch_what_was_revoked_before_stays_so(self, revoke, path, tmp_path, run_module):
        given = give(path, "ann")
        self.second_key(path, "next", tmp_path, run_module)
        revoke(common_names=["ann"])
        for part in ("key", "pem"):
            (path / f"ca.{part}").rename(path / f"previous.{part}")
            (path / f"next.{part}").rename(path / f"ca.{part}")
        assert not revoke()["changed"]
        for part in ("key", "pem"):
            (path / f"previous.{part}").unlink()
        give(path, "bob")
        revoke(common_names=["bob"])
        assert given.serial in serials(path)

    def test_a_list_of_another_authority_is_kept_while_it_holds(self, revoke, path, tmp_path, run_module, clock):
        run_module("tls_authority", {"path": str(tmp_path / "root"), "passphrase": PASSPHRASE})
        run_module("tls_revocation", {"path": str(tmp_path / "root"), "passphrase": PASSPHRASE, "valid_for": "20d"})
        revoke()
        both = (path / "crl.pem").read_bytes() + (tmp_path / "root/crl.pem").read_bytes()
        (path / "crl.pem").write_bytes(both)
        assert not revoke()["changed"]
        give(path, "ann")
        revoke(common_names=["ann"])
        assert (tmp_path / "root/crl.pem").read_bytes() in (path / "crl.pem").read_bytes()
        clock(21)
        assert plan(path).others == ()


class TestRefused:
    @pytest.fixture
    def refuse(self, revoke, path):
        def check(match, **options):
            before = snapshot(path)
            for check_mode in (True, False):
                result = revoke(check=check_mode, **options)
                assert result["failed"], result
                assert match in result["msg"]
                assert PASSPHRASE not in result["msg"]
            assert snapshot(path) == before

        return check

    def test_what_the_authority_never_gave(self, refuse, revoke, path):
        give(path, "ann")
        refuse("never gave a certificate with the serial number abc", serials=["0abc"])
        refuse(
            "never gave a certificate with the common name 'bob'. It gave some to 'ann'", common_names=["ann", "bob"]
        )
        assert revoke(serials=["0abc"], unknown=True)["revoked"] == ["abc"]

    @pytest.mark.parametrize("text", ["", "xyz", "-5", "1" * 41, "\u0661"])
    def test_serial_numbers(self, refuse, text):
        refuse("is not a serial number", serials=[text])

    def test_times(self, refuse):
        refuse("is not a duration", valid_for="30")
        refuse("is not shorter than valid_for", renew_before="30d")
        refuse("is not shorter than valid_for", renew_before="31d")

    def test_keys(self, refuse, path, tmp_path, run_module):
        refuse("passphrase is wrong", passphrase="another")
        run_module("tls_authority", {"path": str(tmp_path / "other"), "passphrase": PASSPHRASE})
        (tmp_path / "other/ca.key").rename(path / "ca.key")
        refuse("is not the key of the certificate")
        (path / "ca.key").unlink()
        refuse("is missing: without it no list can be signed")

    def test_no_authority(self, run_module, tmp_path):
        result = run_module("tls_revocation", {"path": str(tmp_path / "none")})
        assert "there is no authority in" in result["msg"]

    @pytest.mark.parametrize("text", [b"", b"junk", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
    def test_a_damaged_list(self, refuse, path, text):
        """It is the record: a new one in its place would let everybody in again."""
        (path / "crl.pem").write_bytes(text)
        refuse("the only record of what was revoked: restore it")


def test_killed_at_every_change_of_the_disk_the_list_is_the_old_one_or_the_new_one(path, monkeypatch):
    give(path, "ann")
    give(path, "bob")
    _revocation.carry_out(plan(path, common_names=["ann"]), PASSPHRASE.encode())
    before = (path / "crl.pem").read_bytes()
    old, count, seen = serials(path), 0, set()
    for count in range(1, 40):
        child = os.fork()
        if child == 0:
            done = 0
            for name in ("open", "replace", "fsync", "fchmod", "fchown"):
                function = getattr(os, name)

                def patched(*args, function=function, last=count, **options):
                    nonlocal done
                    done += 1
                    if done == last:
                        os._exit(137)
                    return function(*args, **options)

                setattr(os, name, patched)
            with contextlib.suppress(BaseException):
                _revocation.carry_out(plan(path, common_names=["bob"]), PASSPHRASE.encode())
                os._exit(0)
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 137)
        found = serials(path)
        seen.add(found == old)
        assert found == old or len(found) == 2
        _revocation.carry_out(plan(path, common_names=["bob"]), PASSPHRASE.encode())
        assert len(serials(path)) == 2
        if code == 0:
            break
        (path / "crl.pem").write_bytes(before)
    assert seen == {True, False}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(1, 2**159 - 1), max_size=30), st.integers(0, 2**64))
def test_what_is_written_is_read(numbers, last):
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    moment = datetime.datetime(2030, 1, 2, 3, 4, 5)
    builder = x509.CertificateRevocationListBuilder(name, moment, moment + DAY)
    builder = builder.add_extension(x509.CRLNumber(last), critical=False)
    for one in sorted(numbers):
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(one)
            .revocation_date(moment)
            .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
            .build()
        )
    read_back = _crl.parse(builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER))
    assert set(read_back.serials) == numbers
    assert read_back.number == last
    assert set(read_back.serials.values()) <= {moment.replace(tzinfo=datetime.UTC)}
