# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Validators: whether a staged set may be used, asked of the programs that will read it.

Each function named in `VALIDATORS` takes its own options, the staged paths ({dest: where the file is now}) and the
credentials, and raises `TransactionError` where the set must not be used.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator

from ansible_collections.edgesec.nanomq.plugins.module_utils import _hocon
from ansible_collections.edgesec.nanomq.plugins.module_utils._namespaces import in_namespaces
from ansible_collections.edgesec.nanomq.plugins.module_utils._nginx import validate_crl, validate_nginx
from ansible_collections.edgesec.nanomq.plugins.module_utils._probes import rest_get, rest_status
from ansible_collections.edgesec.nanomq.plugins.module_utils._sshd import validate_sshd
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import TransactionError, run

#: Seconds that a throw-away broker gets to answer. The real one needs about 0.05.
START_LIMIT = 10.0

PR_SET_PDEATHSIG = 1


def run_validators(validators: list[dict], staged: dict[str, str], credentials: dict) -> None:
    """Run the validators in order; the first that refuses ends it."""
    for validator in validators:
        options = {key: value for key, value in validator.items() if key != "type"}
        VALIDATORS[validator["type"]](staged=staged, credentials=credentials, **options)


def validate_nft(*, file: str, staged: dict[str, str], credentials: dict) -> None:
    """The rules load as a whole, in a network namespace of their own."""
    del credentials
    code, out = run(["unshare", "--net", "nft", "-f", staged[file]])
    if code != 0:
        raise TransactionError(f"nft refuses {file}: {out.replace(staged[file], file)}")


def validate_systemd(*, file: str, staged: dict[str, str], credentials: dict) -> None:
    """systemd understands every line of the unit. It ignores what it does not know, so silence is asked for."""
    del credentials
    with tempfile.TemporaryDirectory() as directory:
        unit = os.path.join(directory, os.path.basename(file))
        shutil.copyfile(staged[file], unit)
        _code, out = run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit])
    lines = [line for line in out.splitlines() if os.path.basename(file) in line and "not executable" not in line]
    if lines:
        raise TransactionError(f"systemd does not understand {file}: {'; '.join(lines)}")


def validate_key_pair(
    *, certificate: str, key: str, ca: str, variables: str, staged: dict[str, str], credentials: dict
) -> None:
    """The key belongs to the certificate. The broker itself would listen and fail every handshake in silence.

    variables: those of the role that name the two, for the message
    """
    import ssl

    certificate, key, ca = (staged.get(path, path) for path in (certificate, key, ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=credentials.get("key_passphrase") or "")
    except (OSError, ValueError) as error:
        raise TransactionError(
            f"the certificate {certificate} and the key {key} do not make a pair: {_reason(error)}. "
            f"Give the key that the certificate was made for ({variables})"
        ) from error
    try:
        context.load_verify_locations(cafile=ca)
    except (OSError, ValueError) as error:
        raise TransactionError(f"the CA certificate {ca} cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


# --- the broker: a throw-away instance, read back ---------------------------------------------------------------------


def validate_nanomq(
    *, conf: str, program: str, user: str, workdir: str = "/", staged: dict[str, str], credentials: dict
) -> None:
    """Start the broker with the staged file in namespaces of its own, and compare what it loaded with what was meant.

    It is the only way to see what the broker ignores in silence: it has no check mode, and its parser takes unknown
    keys, wrong types and unreadable files for "use the default", which is open to everybody.
    """
    path = staged[conf]
    with open(path, encoding="utf-8") as handle:
        text = handle.read()
    try:
        meant = _hocon.parse(text)
    except _hocon.ConfSyntaxError as error:
        raise TransactionError(f"{conf}: {error}") from error
    port = meant.get("http_server", {}).get("port", 8081)
    result = in_namespaces(lambda: _ask_throw_away(path, program, user, workdir, port, credentials))
    if result.get("error"):
        raise TransactionError(f"NanoMQ does not work with this configuration: {result['error']}")
    differences = compare(meant, result.get("loaded", {}))
    if differences:
        raise TransactionError("NanoMQ would not do what this configuration means: " + "; ".join(differences))


def _ask_throw_away(path: str, program: str, user: str, workdir: str, port: int, credentials: dict) -> dict:
    """Inside the namespaces: start the broker as the service's user and read its configuration back."""
    with throw_away(path, program, user, workdir, port) as problem:
        if problem:
            return {"error": problem}
        status = rest_status("127.0.0.1", port, "/api/v4/brokers")
        if status != 401:
            return {"error": f"REST answers a caller without credentials with {status} instead of 401"}
        return {"loaded": _read_back(port, credentials.get("rest_authorization"))}


@contextlib.contextmanager
def throw_away(path: str, program: str, user: str, workdir: str, port: int) -> Iterator[str]:
    """Run a broker for as long as the block lasts. Gives what went wrong at its start, or "" once REST answers."""
    broker, output = _start(path, program, user, workdir)
    problem = f"REST does not answer on 127.0.0.1:{port} within {START_LIMIT:g} s"
    until = time.monotonic() + START_LIMIT
    try:
        while time.monotonic() < until:
            ended, code = os.waitpid(broker, os.WNOHANG)
            if ended:
                broker = 0
                problem = f"it ends at once ({_ending(code)})"
                break
            if rest_status("127.0.0.1", port, "/api/v4/brokers", timeout=1):
                problem = ""
                break
            time.sleep(0.02)
        yield f"{problem}: {_tail(output)}" if problem else ""
    finally:
        if broker:
            os.kill(broker, signal.SIGKILL)
            os.waitpid(broker, 0)
        os.unlink(output)


def _start(path: str, program: str, user: str, workdir: str) -> tuple[int, str]:
    account = pwd.getpwnam(user)
    fd, output = tempfile.mkstemp(dir="/tmp")
    broker = os.fork()
    if broker == 0:
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            os.initgroups(user, account.pw_gid)
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            # Set again: a change of identity clears it.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.chdir(workdir if os.path.isdir(workdir) else "/")
            os.close(os.open(path, os.O_RDONLY))  # what the broker cannot read it replaces by its open defaults
            environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
            os.execve(program, [program, "start", "--conf", path], environment)
        except OSError as error:
            os.write(2, f"{user} cannot use {error.filename}: {error.strerror}".encode())
        finally:
            os._exit(127)
    os.close(fd)
    return broker, output


def _ending(status: int) -> str:
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"


def _tail(path: str) -> str:
    with open(path, errors="replace") as handle:
        lines = [line.strip() for line in handle.read()[-2000:].splitlines() if line.strip()]
    return " | ".join(lines[-3:]) or "it printed nothing"


def _read_back(port: int, authorization: str | None) -> dict:
    """The sections of GET /api/v4/configuration, or {} where no credentials are at hand to ask with."""
    if not authorization:
        return {}
    loaded = {}
    for section in ("basic", "tls", "auth", "websocket", "http_server"):
        status, body = rest_get("127.0.0.1", port, f"/api/v4/configuration/{section}", {"Authorization": authorization})
        if status != 200:
            raise TransactionError(
                f"REST answers GET configuration/{section} with {status}, though the caller's credentials are valid "
                "(is the broker built with JWT? only the -full packages are)"
            )
        data = json.loads(body).get("data", {})
        loaded[section] = data.get(section, data) if isinstance(data, dict) else data
    return loaded


def compare(meant: dict, loaded: dict) -> list[str]:
    """What the broker loaded against what was meant: the differences, by key and without a secret's value.

    `meant` is a configuration as parsed; `loaded` what `_read_back` returned. The broker does not show its ACL.
    """
    if not loaded:
        return []
    http, auth, listeners = meant.get("http_server", {}), meant.get("auth", {}), meant.get("listeners", {})
    tls, wss, system, mqtt = listeners.get("ssl"), listeners.get("wss"), meant.get("system", {}), meant.get("mqtt", {})
    basic = loaded["basic"]
    # It calls itself basic without authentication too, which is seen by how it answers.
    http_type = "basic" if http.get("auth_type") == "no_auth" else http.get("auth_type")
    pairs = [
        ("http_server.port", http.get("port"), loaded["http_server"].get("port")),
        ("http_server.ip_addr", http.get("ip_addr"), loaded["http_server"].get("addr")),
        ("http_server.auth_type", http_type, loaded["http_server"].get("auth_type")),
        ("auth.allow_anonymous", auth.get("allow_anonymous"), basic.get("allow_anonymous")),
        ("system.enable_ipc_internal", system.get("enable_ipc_internal"), basic.get("ipc_internal")),
        ("mqtt.property_size", mqtt.get("property_size"), basic.get("property_size")),
        ("mqtt.max_mqueue_len", mqtt.get("max_mqueue_len"), basic.get("msq_len")),
    ]
    # The broker shows the TLS listener without a name alone.
    if tls and "bind" in tls:
        pairs += [
            ("listeners.ssl", tls.get("enable", True), loaded["tls"].get("enable")),
            ("listeners.ssl.verify_peer", tls.get("verify_peer"), loaded["tls"].get("verify_peer")),
            (
                "listeners.ssl.fail_if_no_peer_cert",
                tls.get("fail_if_no_peer_cert"),
                loaded["tls"].get("fail_if_no_peer_cert"),
            ),
            ("listeners.ssl.bind", tls.get("bind"), str(loaded["tls"].get("url")).rpartition("//")[2]),
        ]
    if wss:
        pairs.append(
            ("listeners.wss.bind", wss.get("bind"), str(loaded["websocket"].get("tls_url")).rpartition("//")[2])
        )
    # A value that is not in the file is not compared; the policy says which must be.
    differences = [
        f"{key} is {have!r} to the broker, not {want!r}"
        for key, want, have in pairs
        if want is not None and want != have
    ]
    # With a text behind it `enable` is a user too.
    users = {
        name: value
        for name, value in auth.get("password", {}).items()
        if name.lower() != "enable" or isinstance(value, str)
    }
    known = {item.get("login"): item.get("password") for item in loaded["auth"] or []}
    for name in sorted(set(users) | set(known), key=str):
        if users.get(name) != known.get(name):
            state = "does not know" if name not in known else "knows an undeclared" if name not in users else "misreads"
            differences.append(
                f"auth.password: the broker {state} {'the password of ' * (state == 'misreads')}user {name}"
            )
    return differences


VALIDATORS = {
    "nanomq": validate_nanomq,
    "key_pair": validate_key_pair,
    "nft": validate_nft,
    "nginx": validate_nginx,
    "crl": validate_crl,
    "sshd": validate_sshd,
    "systemd": validate_systemd,
}
