# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Probes: what a hardened host promises, asked of its sockets, processes and kernel instead of its files.

An open port proves nothing about this broker, which listens with a broken certificate and accepts anybody where its
user list came out empty. So every probe here has a conversation: a TLS handshake, a CONNECT that must be refused, a
request without a token that must be 401.

Each function named in `PROBES` takes its own options and the credentials, and returns what does not hold, in words.
Times are seconds. Sources: MQTT 3.1.1 sections 3.1 and 3.2; proc(5); nft(8).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import re
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence

from ansible_collections.edgesec.nanomq.plugins.module_utils._nginx import probe_crl, probe_https, probe_tls
from ansible_collections.edgesec.nanomq.plugins.module_utils._sshd import probe_sshd
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import run
from ansible_collections.edgesec.nanomq.plugins.module_utils._x509 import leaf_certificate

TIMEOUT = 3.0
#: How many timeouts a conversation may take in all.
PATIENT = 2
#: How long a client that was refused stays.
LINGER = 0.1
#: How often a login is tried before it counts as refused: the broker drops a few in a thousand for no reason.
TRIES = 3
#: How long a service that was just started may take until everything holds.
PATIENCE = 12.0
#: How long to wait where only what waiting does not mend is left.
BRIEFLY = 2.0
#: What is asked of the moment of a change, and is no promise of the set: not where nothing was changed, and not of who
#: goes back to a generation.
MOMENTARY = ("reachable",)


class Lasting(str):
    """Something that does not hold, and that a running process will not mend: it is to be started anew."""

    __slots__ = ()


def run_probes(
    probes: list[dict], credentials: dict, patience: float = PATIENCE, *, settled: bool = False
) -> list[str]:
    """Run all probes until all hold or the patience is over. Returns what does not hold.

    settled: nothing was changed since they all held, so that what costs the broker may be asked less often, and what
    only a change can cut off not at all.
    """
    started = time.monotonic()
    while True:
        failing = []
        for probe in probes:
            if settled and probe["type"] in MOMENTARY:
                continue
            options = {key: value for key, value in probe.items() if key != "type"}
            if probe["type"] == "mqtt":
                options["settled"] = settled
            failing += PROBES[probe["type"]](credentials=credentials, **options)
        lasting = all(isinstance(trouble, Lasting) for trouble in failing)
        if not failing or time.monotonic() >= started + (min(BRIEFLY, patience) if lasting else patience):
            return failing
        time.sleep(0.2)


# --- sockets and processes --------------------------------------------------------------------------------------------


def unit_pids(unit: str) -> set[int]:
    """The processes of a systemd unit, from its control group."""
    code, out = run(["systemctl", "show", "-p", "ControlGroup", "--value", unit])
    pids: set[int] = set()
    if code != 0 or not out:
        return pids
    for base in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
        for directory, _names, files in os.walk(base + out):
            if "cgroup.procs" in files:
                try:
                    with open(os.path.join(directory, "cgroup.procs")) as handle:
                        pids.update(int(line) for line in handle)
                except OSError:
                    continue  # a group that ended meanwhile
        if pids:
            return pids
    return pids


def broker_command(words: list[str]) -> list[str]:
    """A command line from the word ``nanomq`` on, without an interpreter before it; [] where it is no broker's."""
    words = [word for word in words if word]
    if words and re.match(r"(python[0-9.]*|(ba|da)?sh)\Z", os.path.basename(words[0])):
        del words[0]
        while words and words[0].startswith("-"):
            del words[0]
    if not words or os.path.basename(words[0]) != "nanomq" or words[1:2] in (["reload"], ["stop"]):
        return []
    return words


def same_network(proc: str, name: str) -> bool:
    """Whether a process shares this one's network: of others the sockets can neither be seen nor reached from here."""
    return os.readlink(f"{proc}/{name}/ns/net") == os.readlink(f"{proc}/self/ns/net")


def nanomq_pids() -> set[int]:
    """All brokers that run with this host's network, started by whomever."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", errors="surrogateescape") as handle:
                words = handle.read().split("\0")
            if broker_command(words) and same_network("/proc", name):
                found.add(int(name))
        except OSError:
            continue  # it ended meanwhile
    return found


def _address(text: str) -> str:
    """ "0100007F:1F91" of /proc/net/tcp -> "127.0.0.1:8081"; the IPv6 form -> "[::1]:8081"."""
    raw, port = text.split(":")
    words = [struct.pack("=I", int(raw[i : i + 8], 16)) for i in range(0, len(raw), 8)]
    packed = b"".join(words)
    if len(packed) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, packed)}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]:{int(port, 16)}"


def listening(pids: set[int] | None = None) -> dict[str, set[int]]:
    """Listening TCP sockets and who holds them: {"127.0.0.1:8081": {pid, ...}}, of the given processes or of all."""
    inodes = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as handle:
                lines = handle.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A":
                inodes[fields[9]] = _address(fields[1])
    result: dict[str, set[int]] = {} if pids is not None else {address: set() for address in inodes.values()}
    for pid in pids if pids is not None else {int(name) for name in os.listdir("/proc") if name.isdigit()}:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in inodes:
                result.setdefault(inodes[target[8:-1]], set()).add(pid)
    return result


def probe_listeners(*, service: str, expect: list[str], credentials: dict) -> list[str]:
    """The unit listens on the declared addresses and on nothing else, and no second broker runs beside it."""
    del credentials
    pids = unit_pids(service)
    found = set(listening(pids))
    failing = [f"{service} does not listen on {address}" for address in sorted(set(expect) - found)]
    failing += [f"{service} listens on {address}, which is not declared" for address in sorted(found - set(expect))]
    strays = sorted(nanomq_pids() - pids)
    if strays:
        failing.append(
            f"another NanoMQ runs outside of {service} (process {', '.join(map(str, strays))}): "
            "end it, and remove what starts it"
        )
    return failing


def probe_process(*, service: str, user: str, credentials: dict) -> list[str]:
    """The unit runs as this user, without capabilities and without a way to gain any."""
    del credentials
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return [f"there is no user {user}"]
    pids = unit_pids(service)
    if not pids:
        return [f"{service} has no process"]
    failing = []
    for pid in sorted(pids):
        try:
            with open(f"/proc/{pid}/status") as handle:
                status = dict(line.rstrip("\n").split(":\t", 1) for line in handle if ":\t" in line)
        except OSError:
            continue
        if set(status["Uid"].split()) != {str(uid)}:
            failing.append(f"process {pid} of {service} does not run as {user}, but as uid {status['Uid'].split()[1]}")
        if int(status["CapEff"], 16) or int(status["CapBnd"], 16):
            failing.append(f"process {pid} of {service} has capabilities ({status['CapEff']}/{status['CapBnd']})")
        if status.get("NoNewPrivs", "").strip() != "1":
            failing.append(f"process {pid} of {service} could gain privileges")
    return failing


# --- MQTT -------------------------------------------------------------------------------------------------------------


def _field(text: str) -> bytes:
    data = text.encode()
    return struct.pack("!H", len(data)) + data


def connect_packet(username: str | None, password: str | None) -> bytes:
    """An MQTT 3.1.1 CONNECT with a clean session and a client id of its own."""
    flags = 0x02 | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
    body = _field("MQTT") + bytes([4, flags]) + struct.pack("!H", 10) + _field(f"edgesec-probe-{secrets.token_hex(4)}")
    body += b"".join(_field(text) for text in (username, password) if text is not None)
    length, rest = b"", len(body)
    while True:
        rest, digit = divmod(rest, 128)
        length += bytes([digit | (0x80 if rest else 0)])
        if not rest:
            return b"\x10" + length + body


def mqtt_connect(
    host: str,
    port: int,
    *,
    tls_context: ssl.SSLContext | None = None,
    username: str | None = None,
    password: str | None = None,
    timeout: float = TIMEOUT,
    stay: contextlib.ExitStack | None = None,
) -> tuple[str, bytes]:
    """Try to log in. Returns the outcome and the certificate served (DER, empty without TLS).

    Outcomes: "accepted", "refused" (closed or a CONNACK that says no), "no answer", "closed port", "no handshake".
    stay: what closes the connection, not earlier than LINGER from now; without it that is waited for here.
    """
    certificate = b""
    try:
        raw = socket.create_connection((host, port), timeout=timeout)
    except OSError:
        return "closed port", certificate
    with contextlib.ExitStack() as leave:
        leave.callback(raw.close)
        # The last packet of the handshake and the login go out together: 40 ms that the other side's system would wait.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = raw
        with limited(raw, timeout * PATIENT) as spent:
            if tls_context is not None:
                try:
                    # Without an answer while it lasts, wrap_socket leaves the socket to its caller.
                    connection = tls_context.wrap_socket(raw)
                    leave.callback(connection.close)
                    certificate = connection.getpeercert(binary_form=True) or b""
                except (OSError, ValueError):
                    return "no handshake", certificate
            try:
                connection.sendall(connect_packet(username, password))
                answer = _receive(connection, 4)
            except socket.timeout:  # not yet an alias of TimeoutError on Python 3.9
                return "no answer", certificate
            except OSError:
                return "no answer" if spent.is_set() else "refused", certificate
            if spent.is_set():
                return "no answer", certificate
        if len(answer) == 4 and answer[0] == 0x20 and answer[3] == 0:
            return "accepted", certificate
        # NanoMQ 0.25.6 aborts after one refused login in seventy if the client is gone at once.
        if stay is None:
            time.sleep(LINGER)
        else:
            stay.push(leave.pop_all())
        return "refused", certificate


@contextlib.contextmanager
def staying() -> Iterator[contextlib.ExitStack]:
    """Hold the connections of clients that were refused, and close them when all have stayed for LINGER."""
    with contextlib.ExitStack() as stay:
        yield stay
        time.sleep(LINGER)


@contextlib.contextmanager
def limited(connection: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Let a connection live so long in all. A timeout counts from byte to byte, so that a trickle could go on for ever.

    Yields an event that is set when the time is over.
    """
    spent = threading.Event()
    # The descriptor is kept open by a copy: ssl takes the original over.
    copy = connection.dup()

    def end() -> None:
        spent.set()
        with contextlib.suppress(OSError):
            copy.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield spent
    finally:
        timer.cancel()
        timer.join()
        copy.close()


def _receive(connection: socket.socket, length: int) -> bytes:
    """So many bytes, or fewer where the other side closes before."""
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            break
        data += part
    return data


def client_context(ca: str, certificate: str = "", key: str = "", passphrase: str | None = None) -> ssl.SSLContext:
    """A client that verifies the chain. The name is not compared: the probe speaks to an address of the host itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cafile=ca)
    if certificate:
        context.load_cert_chain(certificate, key, password=passphrase or "")
    return context


def served_certificate(host: str, port: int, context: ssl.SSLContext, timeout: float = TIMEOUT) -> bytes:
    """The certificate (DER) that a handshake shows, without a login; b"" where none comes about at some tries."""
    for _try in range(TRIES):
        with contextlib.suppress(OSError, ValueError):
            raw = socket.create_connection((host, port), timeout=timeout)
            with raw, limited(raw, timeout * PATIENT), context.wrap_socket(raw) as connection:
                return connection.getpeercert(binary_form=True) or b""
    return b""


def probe_mqtt(
    *,
    port: int,
    address: str = "127.0.0.1",
    ca: str,
    certificate: str,
    key: str,
    client_certificate: str = "",
    client_key: str = "",
    mtls: bool,
    wss: str = "",
    settled: bool = False,
    credentials: dict,
) -> list[str]:
    """MQTT over TLS: the right certificate is served, a user gets in, and nobody else does.

    Where clients must have a certificate, the broker's own is shown, unless there is another for that. wss: address and
    port of the broker's WebSocket listener, which is to serve the same certificate. Where another one is served nobody
    is logged in: it is what the file was when the broker started, and refused logins cost the broker. For that reason
    each kind of them is tried once where nothing was changed (settled), and all are by TLS 1.2, as the audit's are.
    """
    where = f"MQTT on {address}:{port}"
    try:
        shown = (client_certificate, client_key, None) if client_certificate else None
        context = client_context(ca, *(shown or (certificate, key, credentials.get("key_passphrase"))))
        wanted = leaf_certificate(certificate)
    except (OSError, ValueError) as error:
        return [f"{where}: the certificate, key or CA cannot be used: {error}"]

    served = {where: served_certificate(address, port, context)}
    if wss:
        host, _colon, number = wss.rpartition(":")
        served[f"WSS on {wss}"] = served_certificate(host.strip("[]"), int(number), context)
    failing: list[str] = [
        Lasting(f"{name}: another certificate is served than the one in {certificate}")
        for name, found in served.items()
        if found not in (b"", wanted)
    ]
    if failing:
        return failing
    failing = [f"{name}: no handshake" for name, found in served.items() if not found and name != where]
    with staying() as stay:

        def connect(tries: int, context: ssl.SSLContext, **login: str) -> tuple[str, bytes]:
            """Log in until it is let in: the broker drops some connections for no reason."""
            for _try in range(tries):
                outcome, certificate_served = mqtt_connect(address, port, tls_context=context, stay=stay, **login)
                if outcome == "accepted":
                    break
            return outcome, certificate_served

        tries = 1 if settled else TRIES
        for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.MAXIMUM_SUPPORTED):
            context.maximum_version = newest
            outcome, found = connect(tries, context)
            if outcome != "no handshake":
                break
        if outcome in ("closed port", "no handshake"):
            hint = " (do the certificate and the key belong together?)" if outcome == "no handshake" else ""
            return [f"{where}: {outcome}{hint}"]
        if found != wanted:
            failing.append(f"{where}: another certificate is served than the one in {certificate}")
        if outcome != "refused":
            failing.append(f"{where}: an anonymous client was not refused: {outcome}")
        # A random name with a random password gets in where the broker's user list came out empty.
        made_up = {"username": secrets.token_hex(8), "password": secrets.token_hex(8)}
        outcome, _served_now = connect(tries, context, **made_up)
        if outcome != "refused":
            failing.append(f"{where}: a client with made-up credentials was not refused: {outcome}")
        user = {name: credentials.get(f"mqtt_{name}") for name in ("username", "password")}
        if mtls:
            outcome, _served_now = connect(tries, client_context(ca), **user)
            if outcome not in ("refused", "no handshake"):
                failing.append(f"{where}: a client without a certificate was not refused: {outcome}")
        if user["username"]:
            outcome, _served_now = connect(TRIES, context, **user)
            if outcome != "accepted":
                failing.append(f"{where}: the declared user {user['username']} is not let in: {outcome}")
    return failing


# --- REST -------------------------------------------------------------------------------------------------------------


def rest_get(
    host: str, port: int, path: str, headers: dict[str, str] | None = None, timeout: float = TIMEOUT
) -> tuple[int, bytes]:
    """GET a path of the REST server. Returns (status, body), or (0, why) where there was no answer."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.connect()
        with limited(connection.sock, timeout * PATIENT):
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read(4 << 20)
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error).encode()
    finally:
        connection.close()


def rest_status(
    host: str, port: int, path: str, headers: dict[str, str] | None = None, timeout: float = TIMEOUT
) -> int:
    """The status alone; 0 where there was no answer."""
    return rest_get(host, port, path, headers, timeout)[0]


def probe_rest(*, port: int, address: str = "127.0.0.1", credentials: dict) -> list[str]:
    """REST refuses a caller without, with made-up and with retired credentials, and answers one with the right ones."""
    where = f"REST on {address}:{port}"
    status = rest_status(address, port, "/api/v4/brokers")
    if status == 0:
        return [f"{where} does not answer"]
    failing = []
    if status != 401:
        failing.append(f"{where} answers a caller without credentials with {status} instead of 401")
    for name, value in (("shipped credentials", "Basic YWRtaW46cHVibGlj"), ("made-up token", "Bearer e30.e30.e30")):
        status = rest_status(address, port, "/api/v4/brokers", {"Authorization": value})
        if status != 401:
            failing.append(f"{where} answers a caller with a {name} with {status} instead of 401")
    if credentials.get("rest_authorization"):
        status = rest_status(address, port, "/api/v4/brokers", {"Authorization": credentials["rest_authorization"]})
        if status != 200:
            failing.append(
                f"{where} answers valid credentials with {status} instead of 200 "
                "(is the broker built with JWT? only the -full packages are; is the host's clock right?)"
            )
    for value in credentials.get("rest_refused") or []:
        status = rest_status(address, port, "/api/v4/brokers", {"Authorization": value})
        if status != 401:
            failing.append(f"{where} answers credentials that are no longer valid with {status} instead of 401")
    return failing


# --- the firewall -----------------------------------------------------------------------------------------------------


def probe_nft_table(*, family: str, table: str, file: str, sets: Sequence[str] = (), credentials: dict) -> list[str]:
    """The kernel holds the table as the file says: its chains and rules, and the elements of these sets.

    What the file means is asked of the kernel too, in a network namespace of its own.
    """
    del credentials
    # The listing of a table leaves the elements out: those of the dynamic sets come and go.
    listing = 'nft -s -t list table "$1" "$2" && for set in $3; do nft -s list set "$1" "$2" "$set" || exit 1; done'
    arguments = ["sh", family, table, " ".join(sets), file]
    code, loaded = run(["sh", "-c", listing, *arguments])
    if code != 0:
        return [f"the table {family} {table} is not loaded"]
    code, meant = run(["unshare", "--net", "sh", "-c", f'nft -f "$4" && {listing}', *arguments])
    if code != 0:
        return [f"{file} cannot be loaded: {meant}"]
    return [] if loaded == meant else [f"the table {family} {table} in the kernel differs from {file}"]


def probe_unreachable(
    *, user: str, addresses: list[str], port: int = 0, ports: Sequence[int] = (), credentials: dict
) -> list[str]:
    """An ordinary local user does not get through to a port on loopback."""
    del credentials
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return [f"there is no user {user} to try the port with"]
    return [trouble for each in (*ports, *([port] if port else [])) for trouble in _reached(account, each, addresses)]


def _reached(account: pwd.struct_passwd, port: int, addresses: list[str]) -> list[str]:
    """In a child with the user's identity: which of the addresses answer. The first seven are tried."""
    user = account.pw_name
    addresses = addresses[:7]
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            code = sum(1 << number for number, address in enumerate(addresses) if _reaches(address, port))
        finally:
            os._exit(code)
    _pid, status = os.waitpid(child, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 255
    if code == 255:
        return [f"could not try port {port} as {user}"]
    return [
        f"the local user {user} reaches port {port} on {address}"
        for number, address in enumerate(addresses)
        if code & 1 << number
    ]


def _reaches(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=TIMEOUT).close()
        return True
    except OSError:
        return False


def probe_reachable(*, targets: Sequence[str], credentials: dict) -> list[str]:
    """Whether new connections from this host get to ``host:port`` each: a firewall must not cut off what it needs.

    The name is looked up anew as well. That it is the right one who answers is for those to find out who speak with it.
    """
    return [
        f"no new connection to {target} from this host"
        for target in targets
        for host, _colon, port in [target.rpartition(":")]
        if not _reaches(host.strip("[]"), int(port))
    ]


PROBES = {
    "listeners": probe_listeners,
    "process": probe_process,
    "mqtt": probe_mqtt,
    "rest": probe_rest,
    "nft_table": probe_nft_table,
    "unreachable": probe_unreachable,
    "reachable": probe_reachable,
    "sshd": probe_sshd,
    "https": probe_https,
    "tls": probe_tls,
    "crl": probe_crl,
}
