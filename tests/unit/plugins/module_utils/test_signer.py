# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The signing service and its client, over real HTTPS: whom it signs for, and whom it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import shutil
import socket
import ssl
import threading
import time

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import (
    _authority,
    _enrol,
    _pairs,
    _revocation,
    _signer,
    _x509,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import choose_backend, make_request
from cuts import run_cut

DAY = 86400
NAMES = ("DNS:box",)


def request(key: bytes, name: str = "box", names: tuple[str, ...] = NAMES) -> str:
    return make_request(choose_backend("cryptography"), key, None, name, list(names)).decode()


class Place:
    """A root that is offline, the intermediate, the service, and a host."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        _authority.create(str(path / "root"), "root", "ec-p256", 100 * DAY, None)
        root = _authority.open_root(str(path / "root"), None)
        _authority.create(str(path / "ca"), "intermediate", "ec-p256", 50 * DAY, None, root=root)
        for name in ("invitations", "own", "pairs"):
            (path / name).mkdir(mode=0o700)
        (path / "ca.pem").write_text(self.authority.trusted)
        self.key = choose_backend("cryptography").generate_key("ec-p256")
        self.config = {
            "bind": "127.0.0.1",
            "port": 0,
            "common_name": "signer",
            "names": ["IP:127.0.0.1"],
            "authority_path": str(path / "ca"),
            "passphrase_path": "",
            "invitations": str(path / "invitations"),
            "own": str(path / "own"),
            "hosts": {"box": {"names": ["DNS:box"], "valid_for": "10d"}, "other": {"names": ["DNS:other"]}},
            "certificates_a_day": 4,
        }
        self.server = _signer.Server(("127.0.0.1", 0), _signer.Signer(self.config))
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.client = {
            "url": f"https://127.0.0.1:{self.server.server_port}",
            "ca": str(path / "ca.pem"),
            "host": "box",
            "pair": str(path / "pairs"),
            "secret_path": str(path / "secret"),
        }

    @property
    def authority(self) -> _authority.Authority:
        return _authority.load(str(self.path / "ca"))

    def invite(self, host: str = "box", valid_for: int = 60) -> str:
        return self.server.signer.invitations.make(host, valid_for)

    def pair(self, name: str = "box", names=NAMES, usages=("server_auth", "client_auth"), authority=None) -> str:
        """A pair as a host has it, and its directory."""
        wanted = _authority.Request(name, names, usages, "ec-p256", DAY)
        leaf = _authority.sign(authority or self.authority, None, request(self.key, name, names), wanted)
        directory = self.path / f"pair-{leaf.identifier}"
        directory.mkdir()
        (directory / "cert.pem").write_text(_authority.show([leaf, *(authority or self.authority).chain]))
        (directory / "key.pem").write_bytes(self.key)
        return str(directory)

    def ask(self, *, pair: str = "", secret: str = "", host: str = "box", names=NAMES, claim: str = "") -> int:
        """The status of the answer."""
        try:
            _enrol.ask({**self.client, "host": host}, request(self.key, host, names), pair, secret, claim)
        except _enrol.Refused as error:
            return error.status
        return 200


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


class TestProofs:
    def test_none(self, place):
        assert place.ask() == 401
        assert place.ask(host="nobody", names=("DNS:nobody",)) == 401
        assert place.ask(host="nobody", names=("DNS:nobody",), secret="word") == 401

    def test_the_present_certificate(self, place):
        assert place.ask(pair=place.pair()) == 200

    def test_that_of_another_host(self, place):
        assert place.ask(pair=place.pair("other", ("DNS:other",))) == 403

    def test_that_of_a_client_with_the_name_of_a_host(self, place):
        """Who speaks MQTT as box is not the host box."""
        assert place.ask(pair=place.pair(usages=("client_auth",))) == 403

    def test_one_of_another_authority(self, place):
        other = _authority.create(str(place.path / "stranger"), "stranger", "ec-p256", DAY, None)
        with pytest.raises(OSError, match=r"(?i)alert|reset|EOF|broken|closed"):
            place.ask(pair=place.pair(authority=other))

    def test_one_that_is_revoked(self, place):
        pair = place.pair()
        leaf = _x509.load_certificates((pathlib.Path(pair) / "cert.pem").read_bytes())[0]
        assert place.ask(pair=pair) == 200
        _revoke(place, leaf.serial)
        assert place.ask(pair=pair) == 403
        assert place.ask(pair=place.pair()) == 200

    def test_a_revocation_list_that_cannot_be_trusted_ends_all_signing(self, place):
        pair = place.pair()
        (place.path / "ca/crl.pem").write_text("rubbish\n")
        assert place.ask(pair=pair) == 503

    def test_an_invitation_is_good_once(self, place):
        secret = place.invite()
        assert place.ask(secret=secret) == 200
        assert place.ask(secret=secret) == 401

    def test_one_for_another_host_and_one_that_was_replaced(self, place):
        first = place.invite()
        assert place.ask(secret=place.invite("other")) == 401
        second = place.invite()
        assert place.ask(secret=first) == 401
        assert place.ask(secret=second) == 200

    def test_one_that_has_ended(self, place):
        assert place.ask(secret=place.invite(valid_for=-1)) == 401

    def test_a_request_that_is_refused_does_not_use_it_up(self, place):
        secret = place.invite()
        assert place.ask(secret=secret, names=("DNS:box", "DNS:other")) == 400
        assert place.ask(secret=secret, names=("DNS:other",)) == 400
        assert place.ask(secret=secret) == 200

    def test_it_belongs_to_who_was_the_first(self, place):
        """Whose answer was lost may ask again with the claim, and nobody else."""
        secret = place.invite()
        assert [place.ask(secret=secret, claim="mine") for _number in range(2)] == [200, 200]
        assert place.ask(secret=secret, claim="yours") == 401
        assert place.ask(secret=secret) == 401
        assert place.ask(secret="word", claim="mine") == 401
        (path,) = (place.path / "invitations").iterdir()
        assert "mine" not in path.read_text()
        assert place.ask(secret=place.invite(), claim="yours") == 200, "another invitation is open to all again"

    def test_one_that_was_claimed_ends_as_well(self, place):
        secret = place.invite(valid_for=60)
        assert place.ask(secret=secret, claim="mine") == 200
        (path,) = (place.path / "invitations").iterdir()
        path.write_text(json.dumps({**json.loads(path.read_text()), "expires": time.time() - 1}))
        assert place.ask(secret=secret, claim="mine") == 401

    def test_one_whose_certificate_was_revoked_is_good_for_no_other(self, place):
        secret = place.invite()
        chain = _enrol.ask(place.client, request(place.key), "", secret, "mine")
        _revoke(place, _x509.load_certificates(chain.encode())[0].serial)
        assert place.ask(secret=secret, claim="mine") == 403

    def test_it_is_over_when_the_host_shows_a_certificate(self, place):
        secret = place.invite()
        assert place.ask(secret=secret, claim="mine") == 200
        assert place.ask(pair=place.pair()) == 200
        assert place.ask(secret=secret, claim="mine") == 401

    @pytest.mark.parametrize("claims", [["", "", "", ""], ["a", "b", "c", "d"], ["", "a", "", "b"]])
    def test_of_two_at_once_one_is_too_late(self, place, claims):
        signer, secret = place.server.signer, place.invite()
        results = []

        def one(claim):
            with contextlib.suppress(_signer.Denied):
                results.append(signer.answer(_signer.Call("x", "box", request(place.key), secret, None, claim)))

        threads = [threading.Thread(target=one, args=[claim]) for claim in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 1

    def test_a_service_that_dies_at_any_step_signs_the_next_time(self, place, monkeypatch):
        signer = place.server.signer
        signer._signed = signer._calls = _signer.Limiter(10000, 60)
        for limit in range(200):
            secret = place.invite()
            call = _signer.Call("x", "box", request(place.key), secret, None, "mine")
            died = run_cut(monkeypatch, limit, lambda call=call: signer.answer(call))
            assert place.ask(secret=secret, claim="mine") == 200
            assert place.ask(secret=secret, claim="yours") == 401
            if not died:
                break
        assert not died
        assert limit > 10

    def test_no_secret_is_kept(self, place):
        secret = place.invite()
        (path,) = (place.path / "invitations").iterdir()
        assert secret not in path.read_text()
        assert path.stat().st_mode & 0o777 == 0o600


def _revoke(place: Place, serial: int) -> None:
    revocation = _revocation.library
    key = _authority.open_key(place.authority, None)
    issuer = revocation.load_der_x509_certificate(place.authority.issuer.raw)
    moment = _authority._naive(_authority.now())
    entry = revocation.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment).build()
    builder = (
        revocation.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(moment)
        .next_update(moment.replace(year=moment.year + 1))
        .add_revoked_certificate(entry)
    )
    made = builder.sign(key, _revocation.hashes.SHA256())
    (place.path / "ca/crl.pem").write_bytes(made.public_bytes(_revocation.serialization.Encoding.PEM))


class TestLimits:
    def test_so_many_certificates_a_day(self, place):
        pair = place.pair()
        assert [place.ask(pair=pair) for _number in range(5)] == [200, 200, 200, 200, 429]

    def test_so_many_calls_of_an_address(self, place, monkeypatch):
        monkeypatch.setattr(place.server.signer, "_calls", _signer.Limiter(2, 60))
        assert [place.ask() for _number in range(3)] == [401, 401, 429]

    def test_what_is_remembered_is_bounded(self):
        limiter = _signer.Limiter(1, 60, callers=10)
        assert all(limiter.allows(str(number)) for number in range(100))
        assert len(limiter._known) == 10

    @pytest.mark.parametrize(
        ("head", "status"),
        [
            ("POST /certificate HTTP/1.0\r\nContent-Length: 999999\r\n\r\n", 413),
            ("POST /certificate HTTP/1.0\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
            ("POST /certificate HTTP/1.0\r\n\r\n", 411),
            ("POST /certificate HTTP/1.0\r\nContent-Length: -1\r\n\r\n", 411),
            ("POST /certificate HTTP/1.0\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 411),
            ("POST /certificate HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", 400),
            ("POST /certificate HTTP/1.0\r\nContent-Length: 4\r\n\r\n[[[[", 400),
            ("POST /other HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", 404),
            ("GET /certificate HTTP/1.0\r\n\r\n", 501),
        ],
    )
    def test_odd_requests(self, place, head, status):
        with _connect(place) as tls:
            tls.sendall(head.encode())
            assert int(tls.recv(4096).split()[1]) == status

    @pytest.mark.parametrize("handshake", [False, True])
    def test_one_that_is_slow_keeps_nobody_waiting_and_is_ended(self, place, monkeypatch, handshake):
        monkeypatch.setattr(_signer, "CONNECTION_LIMIT", 2)
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            if handshake:
                slow = stack.enter_context(_connect(place))
                slow.sendall(b"POST /certificate HTTP/1.0\r\nContent-Length: 100\r\n\r\n")
            else:
                slow = stack.enter_context(socket.create_connection(("127.0.0.1", place.server.server_port)))
            assert place.ask() == 401
            with contextlib.suppress(OSError):
                while time.monotonic() < began + 20:
                    slow.sendall(b"\x16")
                    time.sleep(0.3)
        assert 1.5 < time.monotonic() - began < 10

    def test_too_many_connections(self, place):
        address = ("127.0.0.1", place.server.server_port)
        with contextlib.ExitStack() as stack:
            for _number in range(_signer.CONNECTIONS):
                stack.enter_context(socket.create_connection(address))
            with pytest.raises(OSError, match=r"."):
                place.ask()
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                assert place.ask() == 401
                return
            time.sleep(0.1)
        pytest.fail("the room does not come back")


def _connect(place: Place) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=place.client["ca"])
    raw = socket.create_connection(("127.0.0.1", place.server.server_port))
    return context.wrap_socket(raw, server_hostname="127.0.0.1")


class TestOwnCertificate:
    def test_it_is_kept_and_made_anew_when_it_is_no_pair(self, place):
        signer = place.server.signer
        first = pathlib.Path(signer.own_pair()[0]).read_text()
        assert pathlib.Path(signer.own_pair()[0]).read_text() == first
        (place.path / "own/key.pem").unlink()
        assert pathlib.Path(signer.own_pair()[0]).read_text() != first

    def test_what_it_signs_has_the_life_of_the_configuration(self, place):
        answer = _enrol.ask(place.client, request(place.key), place.pair(), "")
        leaf, above = _x509.load_certificates(answer.encode())
        assert (leaf.common_name, leaf.names) == ("box", frozenset(NAMES))
        assert above.common_name == "intermediate"
        assert 9 * DAY < (leaf.not_after - _authority.now()).total_seconds() <= 10 * DAY


PAIR = {option: described.get("default") for option, described in _pairs.OPTIONS.items()} | {
    "name": "server",
    "common_name": "box",
    "subject_alt_names": list(NAMES),
    "usages": ["server_auth", "client_auth"],
    "valid_for": "10d",
    "renew_before": "2d",
}


def _beside(place: Place, name: str) -> pathlib.Path:
    return place.path / name


class TestClient:
    def secret(self, place: Place, text: str) -> pathlib.Path:
        path = pathlib.Path(place.client["secret_path"])
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def test_the_invitation_goes_when_it_was_good(self, place):
        path = self.secret(place, place.invite())
        assert "BEGIN CERTIFICATE" in _enrol.obtain(place.client, request(place.key))
        assert not path.exists()

    def test_it_stays_when_it_was_not(self, place):
        path = self.secret(place, "word")
        with pytest.raises(_enrol.Refused, match="401"):
            _enrol.obtain(place.client, request(place.key))
        assert path.exists()

    def test_the_present_pair_comes_first(self, place):
        path = self.secret(place, place.invite())
        os.symlink(place.pair(), place.path / "pairs/current")
        assert _enrol.obtain(place.client, request(place.key))
        assert path.exists()

    def test_an_invitation_helps_where_the_pair_is_not_taken(self, place):
        self.secret(place, place.invite())
        os.symlink(place.pair("other", ("DNS:other",)), place.path / "pairs/current")
        assert _enrol.obtain(place.client, request(place.key))

    def test_neither(self, place):
        with pytest.raises(_enrol.Refused, match="neither"):
            _enrol.obtain(place.client, request(place.key))

    def test_a_secret_that_others_can_read(self, place):
        self.secret(place, "word").chmod(0o644)
        with pytest.raises(ValueError, match="nobody else"):
            _enrol.obtain(place.client, request(place.key))

    def test_one_that_dies_at_any_step_gets_a_certificate_the_next_time(self, place, monkeypatch):
        """From the key to the pair in force: by the same invitation, although the service has answered already."""
        place.server.signer._signed = _signer.Limiter(10000, 60)
        place.server.signer._calls = _signer.Limiter(10000, 60)
        backend = choose_backend("cryptography")
        wanted = _pairs.wanted_pair(PAIR)
        access = _pairs.Access(os.geteuid(), os.getegid(), 0o640)
        anchors = _x509.load_certificates(pathlib.Path(place.client["ca"]).read_bytes())
        pairs = pathlib.Path(place.client["pair"])
        store = _pairs.PairStore(str(pairs), wanted, access, anchors, [], backend, 5, source="command")

        def enrol():
            name, asked = store.begin()
            chain = _enrol.obtain(place.client, asked.decode())
            _beside(place, "answered").touch()
            store.install(name, chain.encode())

        answered = 0
        for limit in range(500):
            shutil.rmtree(pairs)
            pairs.mkdir(mode=0o700)
            for path in place.path.glob("secret*"):
                path.unlink()
            _beside(place, "answered").unlink(missing_ok=True)
            self.secret(place, place.invite())
            if not run_cut(monkeypatch, limit, enrol):
                break
            answered += _beside(place, "answered").exists()
            pair, reason = store.inspect()
            assert pair is None or not reason, "whole, or not there"
            if pair is None:
                enrol()
            pair, reason = store.inspect()
            assert pair is not None
            assert reason == ""
            assert not pathlib.Path(place.client["secret_path"]).exists()
        assert answered > 5

    def test_an_answer_that_is_lost(self, place, monkeypatch):
        path = self.secret(place, place.invite())
        ask = _enrol.ask

        def lose(*arguments):
            ask(*arguments)
            raise ConnectionResetError("reset")

        with monkeypatch.context() as patch:
            patch.setattr(_enrol, "ask", lose)
            with pytest.raises(ConnectionResetError):
                _enrol.obtain(place.client, request(place.key))
        assert path.exists()
        assert _enrol.obtain(place.client, request(place.key))
        assert not path.exists()
        assert pathlib.Path(f"{path}.claimed").stat().st_mode & 0o777 == 0o600

    def test_a_claim_is_for_one_invitation(self, place):
        self.secret(place, place.invite())
        assert _enrol.obtain(place.client, request(place.key))
        self.secret(place, place.invite())
        assert _enrol.obtain(place.client, request(place.key))

    def test_who_answers_must_be_the_service(self, place):
        _authority.create(str(place.path / "stranger"), "stranger", "ec-p256", DAY, None)
        pathlib.Path(place.client["ca"]).write_text(_authority.load(str(place.path / "stranger")).trusted)
        with pytest.raises(ssl.SSLCertVerificationError):
            place.ask()

    def test_the_program(self, place, capsys, monkeypatch):
        self.secret(place, place.invite())
        path = place.path / "signer.json"
        path.write_text(json.dumps(place.client))
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        assert _enrol.main([str(path)]) == 1
        assert "the signing service: 400" in capsys.readouterr().err
