# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A signing service: certificates of an authority for hosts that prove who they are, over HTTPS.

A host shows its present certificate (mutual TLS), or for the first one the secret of an invitation, which is for one
host, good once, ends, and is kept as a hash. An answer can be lost on its way: whoever was the first to use it, and
shows the same claim, may ask again until it ends. Either way a host gets a certificate for exactly the names that the
configuration gives it, and for nobody else's. Standard library, and the cryptography library for the authority.

``serve CONFIG`` is the service, ``invite CONFIG HOST DURATION`` prints the secret of a new invitation.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import hmac
import http.server
import json
import os
import secrets
import socket
import ssl
import sys
import threading
import time

from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority
from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    CryptoError,
    choose_backend,
    encode_passphrase,
    make_request,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._duration import parse_duration
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import (
    FileProblem,
    fsync_dir,
    read_regular,
    write_atomic,
)

#: Bytes of a request, and seconds that a connection may take from its first byte to its last.
BODY_LIMIT, CONNECTION_LIMIT = 16 * 1024, 20
#: Connections at a time, and new ones of an address in a minute.
CONNECTIONS, CALLS_A_MINUTE = 32, 30
#: Seconds after which the service looks whether its own certificate is due, and takes up another authority.
REFRESH = 3600
OWN_VALID_FOR = 90 * 86400
DAY = 86400
PATH = "/certificate"


class Denied(Exception):
    """A request that is refused: the status, and what the caller is told."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Limiter:
    """So many calls of one caller within so many seconds; what it remembers is bounded."""

    def __init__(self, calls: int, seconds: float, callers: int = 10000) -> None:
        self.calls, self.seconds, self.callers = calls, seconds, callers
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[str, collections.deque[float]] = collections.OrderedDict()

    def allows(self, caller: str) -> bool:
        """Note a call, and say whether it is within the limit."""
        present = time.monotonic()
        with self._lock:
            times = self._known.setdefault(caller, collections.deque())
            self._known.move_to_end(caller)
            while len(self._known) > self.callers:
                self._known.popitem(last=False)
            while times and times[0] <= present - self.seconds:
                times.popleft()
            if len(times) >= self.calls:
                return False
            times.append(present)
            return True


class Invitations:
    """The invitations that are open: one file for each host, with the hash of the secret and the end."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def make(self, host: str, valid_for: int) -> str:
        """Return the secret of a new invitation, which takes the place of an open one."""
        secret = secrets.token_urlsafe(32)
        self._write(host, {"hash": _hash(secret), "expires": int(time.time()) + valid_for})
        return secret

    def check(self, host: str, secret: str, claim: str) -> set[int]:
        """Return the serial numbers it was good for so far. Raises Denied unless it is open to who shows these."""
        refused = Denied(401, "no open invitation for this host with that secret")
        try:
            content = self._read(host)
        except FileNotFoundError:
            raise refused from None
        if not hmac.compare_digest(_hash(secret), content["hash"]) or not _may_claim(content, claim):
            raise refused
        if time.time() >= content["expires"]:
            raise Denied(401, "the invitation has ended: ask for another one")
        return {int(serial, 16) for serial in content.get("serials", [])}

    def use(self, host: str, claim: str) -> None:
        """Take the invitation: of two who come at once one is too late. Raises Denied."""
        late = Denied(401, "the invitation was used meanwhile")
        try:
            content = self._read(host)
            if not _may_claim(content, claim):
                raise late
            if claim:
                self._write(host, {"serials": [], **content, "claim": _hash(claim)})
            else:
                self._remove(host)
        except FileNotFoundError:
            raise late from None

    def note(self, host: str, serial: int) -> None:
        """Note a certificate that was made for it, where it may be asked for again: revoked, it ends that."""
        with contextlib.suppress(FileNotFoundError):
            content = self._read(host)
            self._write(host, {**content, "serials": [*content["serials"], f"{serial:x}"]})

    def close(self, host: str) -> None:
        """Nobody needs one that was used when the host shows a certificate."""
        with contextlib.suppress(FileNotFoundError):
            if "claim" in self._read(host):
                self._remove(host)

    def _read(self, host: str) -> dict:
        return json.loads(read_regular(self._path(host), private=True))

    def _write(self, host: str, content: dict) -> None:
        owner = os.stat(self.directory)
        data = json.dumps(content).encode()
        write_atomic(self._path(host), data, mode=0o600, uid=owner.st_uid, gid=owner.st_gid)

    def _remove(self, host: str) -> None:
        os.unlink(self._path(host))
        fsync_dir(self.directory)

    def _path(self, host: str) -> str:
        # A host's name is anything; its hash is a file name.
        return os.path.join(self.directory, hashlib.sha256(host.encode()).hexdigest()[:32] + ".json")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _may_claim(content: dict, claim: str) -> bool:
    """Whether an invitation is nobody's yet, or of who shows this claim."""
    return "claim" not in content or (claim != "" and hmac.compare_digest(_hash(claim), content["claim"]))


@dataclasses.dataclass(frozen=True)
class Call:
    """What came in: from where, for which host, with which proof."""

    address: str
    host: str
    request: str
    secret: str
    peer: x509.Certificate | None
    claim: str = ""


class Signer:
    """Decides, and signs. One for all connections."""

    def __init__(self, config: dict) -> None:
        self.config = config
        self.hosts = {name: wanted(name, entry) for name, entry in config["hosts"].items()}
        self.invitations = Invitations(config["invitations"])
        self._calls = Limiter(CALLS_A_MINUTE, 60)
        self._signed = Limiter(config["certificates_a_day"], DAY)
        self._lock = threading.Lock()

    def passphrase(self) -> bytes | None:
        """Return the passphrase of the authority's key, None for none. Raises FileProblem."""
        path = self.config["passphrase_path"]
        return encode_passphrase(read_regular(path, private=True).decode("utf-8").strip("\n")) if path else None

    def authority(self) -> _authority.Authority:
        """Return the authority as it is now. Raises FileProblem or CryptoError."""
        found = _authority.load(self.config["authority_path"])
        if found is None:
            raise FileProblem(f"there is no authority in {self.config['authority_path']}")
        return found

    def admit(self, address: str) -> None:
        """Raise Denied where one address calls too often."""
        if not self._calls.allows(address):
            raise Denied(429, "too many calls")

    def answer(self, call: Call) -> str:
        """Return the certificate and those above it, as PEM. Raises Denied, FileProblem, CryptoError or OSError."""
        authority = self.authority()
        request = self._prove(call, authority)
        try:
            _authority.check_request(call.request, request)
        except CryptoError as error:
            raise Denied(400, str(error)) from None
        with self._lock:
            if not self._signed.allows(call.host):
                raise Denied(429, "this host had as many certificates today as it may have")
            if call.peer is None:
                self.invitations.use(call.host, call.claim)
            else:
                self.invitations.close(call.host)
            certificate = _authority.sign(authority, self.passphrase(), call.request, request)
            if call.peer is None and call.claim:
                # Before the answer goes out: what was given can be revoked.
                self.invitations.note(call.host, certificate.serial)
        return _authority.show([certificate, *authority.chain])

    def _prove(self, call: Call, authority: _authority.Authority) -> _authority.Request:
        """Return what the caller may ask for, if it has proven to be the host that it says. Raises Denied."""
        request = self.hosts.get(call.host)
        if call.peer is not None:
            if request is None or call.peer.common_name != request.common_name:
                raise Denied(403, "the certificate that was shown is not that of this host")
            # A client of MQTT may have the name of a host; it has not the certificate of one.
            if call.peer.is_authority or not set(request.usages) <= call.peer.usages:
                raise Denied(403, "the certificate that was shown is not for this host's purposes")
            if call.peer.serial in _authority.revoked(authority):
                raise Denied(403, "the certificate that was shown is revoked")
        elif call.secret:
            if request is None:
                raise Denied(401, "no open invitation for this host with that secret")
            given = self.invitations.check(call.host, call.secret, call.claim)
            if given and given & _authority.revoked(authority):
                raise Denied(403, "the certificate that this invitation was good for is revoked")
        else:
            raise Denied(401, "no proof: show the present certificate, or the secret of an invitation")
        return request

    def own_pair(self) -> tuple[str, str]:
        """Return the files of the service's own certificate and key, renewed when a third of its life is left."""
        folder = self.config["own"]
        paths = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
        authority = self.authority()
        names = tuple(sorted(x509.normalise_name(name) for name in self.config["names"]))
        backend = choose_backend("cryptography")
        try:
            leaf = x509.load_certificates(read_regular(paths[0]))[0]
            key = read_regular(paths[1], private=True)
            remaining = (leaf.not_after - _authority.now()).total_seconds()
            if (
                leaf.public_key == backend.public_key(key)
                and leaf.issuer == authority.issuer.subject
                and leaf.names == frozenset(names)
                and remaining > OWN_VALID_FOR / 3
            ):
                return paths
        except (FileNotFoundError, der.DerError, CryptoError):
            pass
        key = backend.generate_key("ec-p256")
        name = self.config["common_name"]
        request = _authority.Request(name, names, ("server_auth",), "ec-p256", OWN_VALID_FOR)
        asked = make_request(backend, key, None, name, list(names)).decode("ascii")
        leaf = _authority.sign(authority, self.passphrase(), asked, request)
        # A cut between the two leaves what is no pair, and so is made anew.
        write_atomic(paths[1], key, mode=0o600)
        write_atomic(paths[0], _authority.show([leaf, *authority.chain]).encode("ascii"), mode=0o644)
        return paths

    def context(self) -> ssl.SSLContext:
        """Return how the service meets callers. A certificate that is shown must be one of the authority's."""
        certificate, key = self.own_pair()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=self.authority().trusted)
        context.verify_mode = ssl.CERT_OPTIONAL
        # A session that is resumed shows no certificate.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        return context


def wanted(name: str, entry: dict) -> _authority.Request:
    """Return what a host may ask for, by its entry in the configuration. Raises ValueError."""
    return _authority.Request(
        x509.check_common_name(entry.get("common_name", name)),
        tuple(sorted(x509.normalise_name(one) for one in entry["names"])),
        tuple(entry.get("usages", ("server_auth", "client_auth"))),
        entry.get("key_type", "ec-p256"),
        parse_duration(entry.get("valid_for", "90d")),
    )


# --- HTTPS ------------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """One request of one connection (HTTP/1.0)."""

    timeout = CONNECTION_LIMIT
    server_version, sys_version = "signer", ""

    def do_POST(self) -> None:
        address, host = self.client_address[0], ""
        try:
            self.server.signer.admit(address)
            call = self._read(address)
            host = call.host
            chain = self.server.signer.answer(call)
        except Denied as error:
            tell(address=address, host=host, status=error.status, message=str(error))
            self._send(error.status, {"error": str(error)})
        except (FileProblem, CryptoError, OSError, ValueError, KeyError) as error:
            # Ours to put right, and not for the caller to read.
            tell(address=address, host=host, status=503, message=f"{type(error).__name__}: {error}")
            self._send(503, {"error": "the signing service cannot sign now; its journal says why"})
        else:
            serial = x509.load_certificates(chain.encode("ascii"))[0].identifier
            proof = "certificate" if call.peer else "invitation"
            tell(address=address, host=host, status=200, proof=proof, serial=serial)
            self._send(200, {"certificate": chain})

    def _read(self, address: str) -> Call:
        if self.path != PATH:
            raise Denied(404, f"there is {PATH} and nothing else")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not length.isascii() or not length.isdigit():
            raise Denied(411, "a request has a Content-Length")
        if len(length) > 9 or int(length) > BODY_LIMIT:
            raise Denied(413, f"a request has {BODY_LIMIT} bytes at most")
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise Denied(408, "the request did not come in time")
        try:
            content = json.loads(body)
            host, request, claim = content["host"], content["request"], content.get("claim", "")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            host = request = claim = None
        if not all(isinstance(one, str) for one in (host, request, claim)):
            raise Denied(400, "a request is a JSON object with host, request and, if it likes, a claim")
        kind, _blank, secret = self.headers.get("Authorization", "").partition(" ")
        shown = self.connection.getpeercert(binary_form=True)
        peer = x509.parse_certificate(shown) if shown else None
        return Call(address, host, request, secret.strip() if kind == "Bearer" else "", peer, claim)

    def _send(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """What is logged is said by tell: what a caller wrote does not go there as it is."""


class Server(http.server.ThreadingHTTPServer):
    """HTTPS, with as many connections as there may be and each for as long as it may last."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], signer: Signer) -> None:
        self.signer = signer
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.context = signer.context()
        self._refreshed = time.monotonic()
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, Handler)

    def service_actions(self) -> None:
        if time.monotonic() - self._refreshed < REFRESH:
            return
        self._refreshed = time.monotonic()
        try:
            self.context = self.signer.context()
        except (FileProblem, CryptoError, OSError, ValueError) as error:
            tell(message=f"the certificate of the service could not be looked after: {error}")

    def process_request(self, request, client_address) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def finish_request(self, request, client_address) -> None:
        request.settimeout(CONNECTION_LIMIT)
        # In this thread, so that who does not go on with a handshake keeps nobody else waiting.
        connection = self.context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        # A time limit for each read is none for who sends a byte now and then.
        end = threading.Timer(CONNECTION_LIMIT, _cut, [connection])
        end.daemon = True
        end.start()
        try:
            connection.do_handshake()
            self.RequestHandlerClass(connection, client_address, self)
        finally:
            end.cancel()
            _cut(connection)
            connection.close()

    def handle_error(self, request, client_address) -> None:
        tell(address=client_address[0], message=f"the connection ended: {type(sys.exc_info()[1]).__name__}")


def _cut(connection: ssl.SSLSocket) -> None:
    """End both directions below TLS, whatever its state: reads that wait return."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def tell(**what: object) -> None:
    """Write a line to the journal."""
    # One write, so that lines of several connections stay whole.
    sys.stderr.write(json.dumps(what) + "\n")
    sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """``serve CONFIG`` or ``invite CONFIG HOST DURATION``."""
    action, path, *rest = arguments
    with open(path, encoding="utf-8") as handle:
        config = json.load(handle)
    if action == "invite":
        host, duration = rest
        if host not in config["hosts"]:
            sys.stderr.write(f"{host} is not in nanomq_signer_hosts\n")
            return 1
        sys.stdout.write(Invitations(config["invitations"]).make(host, parse_duration(duration)) + "\n")
        return 0
    try:
        server = Server((config["bind"], config["port"]), Signer(config))
    except (FileProblem, CryptoError, OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
