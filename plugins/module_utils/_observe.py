# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What a host with a NanoMQ shows of itself: processes, sockets, files, packet filter, and answers to live probes.

Nothing is changed. Every fact of an observation is either its value or ``{"not_observed": why}``, so that what could
not be seen is never taken for good. Times are seconds. Sources: proc(5), nft(8) and libnftables-json(5), RFC 5280.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import re
import resource
import secrets
import ssl
import stat
import time
from collections.abc import Callable
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.module_utils import (
    _hocon,
    _netfilter,
    _observe_keys,
    _policy,
    _probes,
    _running,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._observe_keys import client_context, validity
from ansible_collections.edgesec.nanomq.plugins.module_utils._policy import NotObserved, fact
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import run

TIMEOUT = 2.0
#: Sockets that are probed at most; a broker has four or five.
MOST_SOCKETS = 16
SHIPPED = "Basic YWRtaW46cHVibGlj"  # admin:public
DEFAULT_CONFS = ("/etc/nanomq/nanomq.conf", "/etc/nanomq.conf", "/usr/local/etc/nanomq.conf")
_PROGRAM_DIRS = ("/usr/local/bin", "/usr/bin")
_SMALL = 4 << 20
#: Files beside the configuration that are looked into at most.
MOST_COPIES = 200
TIME_SERVICES = ("systemd-timesyncd", "chrony", "chronyd", "ntpsec", "ntpd", "ntp", "openntpd", "ptp4l", "phc2sys")
CONTAINER_MARKS = ("/run/systemd/container", "/run/.containerenv", "/.dockerenv")
_TIME_ERROR = 5  # of adjtimex(2): the clock is not synchronised


def observe(
    *,
    unit: str,
    package: str,
    conf_path: str = "",
    user: str = "nanomq",
    timeout: float = TIMEOUT,
    token: str = "",
    controller_time: float = 0.0,
) -> dict:
    """Look at the host. Returns the observation, which holds the configuration with its secrets under ``conf``:
    `public` takes that away.

    token: one that REST accepts; without it, or where REST takes none, the fact `drift` is not there
    controller_time: of the controller's clock, in seconds of Unix; without it `clock` has no offset

    processes: [{pid, uid, unit, conf_path, conf_given, flags, environment, no_new_privs, cap_eff, cap_bnd, cwd,
        cwd_writable, dist, program_replaced, conf_changed, program, program_writable, filtered, shares_mounts,
        open_files, core}]
    version: text
    conf_file: {path, exists, mode, owner, group, readable_by_service, writable_by_service, error}
    conf: the configuration as the broker reads it
    copies: [path of another file with passwords that everybody can read]
    event_sockets: [{pid, path, replaceable}], at which a broker hands events to its webhook
    key_files: [{kind: tls or jwt, path, exists, mode, private, writable_by_service, key_type, age_days}]
    listeners: {address: [pid]}
    kinds: {address: tcp, ssl, ws, wss or rest}
    mqtt: [{address, tls, mtls, mqtt, anonymous, made_up, wrong_password, not_after, days_left, valid_yet}]
    handshakes: [{address, old_versions, weak_suites}]
    certificates: see `_observe_keys.certificates`
    rest: [{address, without_credentials, shipped_credentials, forged}]
    firewall: {table: bool, ports: {"8081": accepted, dropped or depends}}
    local_access: [what a local user reaches]
    clock: {synchronised: bool, services: [active ones], container: bool, offset: seconds or None}
    drift: [key by which the running broker differs from its file]
    """
    arrived = time.time()
    observation: dict[str, Any] = {}
    served: dict[str, bytes] = {}

    def look(name: str, action: Callable[[], Any]) -> None:
        try:
            observation[name] = action()
        except NotObserved as reason:
            observation[name] = {"not_observed": str(reason)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # A file or a program that answers in another way than is known: say so, and go on. The message of the error
            # could quote a secret.
            why = getattr(error, "strerror", None) or type(error).__name__
            observation[name] = {"not_observed": f"{name} cannot be read: {why}"}

    look("processes", lambda: processes(unit))
    look("identity", lambda: identity(observation["processes"], user))
    path = conf_path or conf_location(observation["processes"])
    look("conf_file", lambda: conf_file(path, fact(observation, "identity"), fact(observation, "processes")))
    look("conf", lambda: configuration(fact(observation, "conf_file")))
    look("copies", lambda: copies(fact(observation, "conf_file")))
    look("event_sockets", lambda: event_sockets(fact(observation, "conf"), fact(observation, "processes")))
    look("key_files", lambda: key_files(fact(observation, "conf"), fact(observation, "identity")))
    look("version", lambda: version(package, unit))
    look("listeners", lambda: sockets(fact(observation, "processes")))
    look("kinds", lambda: kinds(observation, timeout))
    look("mqtt", lambda: mqtt(observation, timeout, served))
    look("handshakes", lambda: handshakes(observation, timeout))
    look("certificates", lambda: _observe_keys.certificates(fact(observation, "conf"), served))
    look("rest", lambda: rest(observation, timeout))
    look("firewall", lambda: firewall(observation))
    look("local_access", lambda: local_access(observation))
    look("clock", lambda: clock(arrived - controller_time if controller_time else None))
    if token and _policy.get(_conf(observation), "http_server", "auth_type") == "jwt":
        look("drift", lambda: drift(observation, token, timeout))
    return observation


def public(observation: dict) -> dict:
    """The observation without the configuration."""
    return {name: value for name, value in observation.items() if name not in ("conf", "identity")}


# --- processes --------------------------------------------------------------------------------------------------------


def read(path: str) -> str:
    """The text of a small file."""
    with open(path, "rb") as handle:
        return handle.read(_SMALL).decode("utf-8", "surrogateescape")


def processes(unit: str, proc: str = "/proc") -> list[dict]:
    """The brokers that run, those of the unit first. One with a network of its own is as on another host."""
    if os.geteuid() != 0:
        raise NotObserved("only root sees the processes of others whole")
    found = []
    for name in sorted((name for name in os.listdir(proc) if name.isdigit()), key=int):
        try:
            command = _probes.broker_command(read(f"{proc}/{name}/cmdline").split("\0"))
            if command and _probes.same_network(proc, name):
                found.append(process(int(name), command, proc))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return sorted(found, key=lambda item: item["unit"] != unit)


def process(pid: int, command: list[str], proc: str = "/proc") -> dict:
    """One broker. Of its command line and environment names alone are kept: values may be secrets."""
    base = f"{proc}/{pid}"
    status = fields(read(f"{base}/status"))
    uid, gid = int(status["Uid"].split()[1]), int(status["Gid"].split()[1])
    groups = [int(group) for group in status.get("Groups", "").split()]
    cwd, program = os.readlink(f"{base}/cwd"), os.readlink(f"{base}/exe")
    conf, flags = arguments(command[1:])
    names, environment_conf = environment(read(f"{base}/environ"))
    # Without a file the broker looks beside its program, then in /etc.
    beside = os.path.join(os.path.dirname(command[0] if command[0].startswith("/") else program), "nanomq.conf")
    fallback = beside if os.path.exists(beside) else "/etc/nanomq.conf"
    path = os.path.normpath(os.path.join(cwd, conf or environment_conf or fallback))
    return {
        "pid": pid,
        "uid": uid,
        "gid": gid,
        "groups": groups,
        "unit": unit_of(read(f"{base}/cgroup")),
        "conf_path": path,
        "conf_given": bool(conf),
        "flags": flags,
        "environment": names,
        "no_new_privs": status.get("NoNewPrivs", "").strip() == "1",
        "cap_eff": status["CapEff"].strip(),
        "cap_bnd": status["CapBnd"].strip(),
        "cwd": cwd,
        "cwd_writable": may((uid, gid, groups), cwd, os.W_OK),
        "dist": os.path.isdir(f"{base}/cwd/dist"),
        "program_replaced": program.endswith(" (deleted)"),
        "conf_changed": changed_since(path, started(read(f"{base}/stat"))),
        "program": command[0] if command[0].startswith("/") else program.removesuffix(" (deleted)"),
        # Started by a script, both count.
        "program_writable": any(loose(path) for path in (program.removesuffix(" (deleted)"), command[0])),
        "filtered": filters(status) > filters(fields(read(f"{proc}/1/status"))),
        "shares_mounts": same_namespace(f"{base}/ns/mnt", f"{proc}/1/ns/mnt"),
        **limits(read(f"{base}/limits")),
    }


def fields(status: str) -> dict[str, str]:
    """What /proc/<pid>/status says, by name."""
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)


def filters(status: dict[str, str]) -> int:
    """How many filters of system calls a process has; kernels before 5.9 tell only that there are some."""
    return int(status.get("Seccomp_filters") or (status.get("Seccomp", "0").strip() == "2"))


def same_namespace(one: str, other: str) -> bool:
    """Whether two processes share a namespace, by their links in /proc."""
    return os.readlink(one) == os.readlink(other)


def limits(text: str) -> dict:
    """What /proc/<pid>/limits says: {open_files, core: bytes}, the soft limits; -1 for none."""
    found = dict(re.findall(r"^(Max core file size|Max open files)\s+(\w+)", text, re.M))
    names = {"open_files": "Max open files", "core": "Max core file size"}
    return {name: -1 if found[words] == "unlimited" else int(found[words]) for name, words in names.items()}


def loose(path: str) -> bool:
    """Whether others than root can write a file, or put another in its place; of relative paths nobody knows."""
    if not path.startswith("/"):
        return False
    for one in (path, os.path.dirname(path)):
        try:
            info = os.stat(one)
        except OSError:
            return False
        if info.st_uid != 0 or info.st_mode & 0o002 or (info.st_mode & 0o020 and info.st_gid != 0):
            return True
    return False


def arguments(words: list[str]) -> tuple[str, list[str]]:
    """(--conf, the other flags by name) of a command line."""
    conf, flags, index = "", [], 0
    while index < len(words):
        word = words[index]
        name, equals, value = word.partition("=")
        if name == "--conf":
            conf = value if equals else "".join(words[index + 1 : index + 2])
            index += 0 if equals else 1
        elif word.startswith("-"):
            flags.append(name if name.startswith("--") else name[:2])
        index += 1
    return conf, flags


def environment(text: str) -> tuple[list[str], str]:
    """(names of the variables that the broker heeds, the configuration file named there)."""
    pairs = [item.partition("=") for item in text.split("\0") if item.startswith("NANOMQ_")]
    names = sorted(name for name, _equals, _value in pairs if name != "NANOMQ_PID_FILE")
    return names, next((value for name, _equals, value in pairs if name == "NANOMQ_CONF_PATH"), "")


def unit_of(cgroup: str) -> str:
    """The systemd unit of a process, from its /proc/<pid>/cgroup; empty where it is in none."""
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controllers == "name=systemd":
            units = [part for part in path.split("/") if part.endswith((".service", ".scope"))]
            if units:
                return units[-1]
    return ""


def started(line: str) -> float:
    """When a process started, by the clock of now, from its /proc/<pid>/stat."""
    ticks = int(line.rpartition(")")[2].split()[19])
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def changed_since(path: str, moment: float) -> bool:
    """Whether a file was changed after a moment, a second left for the clocks' grain."""
    try:
        return os.stat(path).st_mtime > moment + 1
    except OSError:
        return False


# --- files ------------------------------------------------------------------------------------------------------------


def identity(found: Any, user: str) -> tuple[int, int, list[int]]:
    """(uid, gid, groups) of the broker: of the one that runs, else of the account it would run as."""
    if isinstance(found, list) and found:
        return found[0]["uid"], found[0]["gid"], found[0]["groups"]
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise NotObserved(f"no NanoMQ runs, and there is no user {user}") from None
    return account.pw_uid, account.pw_gid, os.getgrouplist(user, account.pw_gid)


def may(who: tuple[int, int, list[int]], path: str, want: int) -> bool:
    """Whether the permissions let somebody read or write a path. The kernel is asked, so that ACLs count."""
    uid, gid, groups = who
    if uid == 0:
        return os.path.exists(path)
    child = os.fork()
    if child == 0:
        code = 2
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            code = 0 if os.access(path, want) else 1
        finally:
            os._exit(code)
    _pid, status = os.waitpid(child, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 2
    if code == 2:
        raise NotObserved(f"cannot look with the eyes of user {uid}")
    return code == 0


def replaceable(who: tuple[int, int, list[int]], path: str) -> bool:
    """Whether somebody can write a file, or put another in its place."""
    return may(who, path, os.W_OK) or may(who, os.path.dirname(path), os.W_OK)


def conf_location(found: Any) -> str:
    """The configuration file of the broker that runs, else the first of the usual ones that exists."""
    if isinstance(found, list) and found:
        return found[0]["conf_path"]
    return next((path for path in DEFAULT_CONFS if os.path.exists(path)), DEFAULT_CONFS[0])


def conf_file(path: str, who: Any, running: list) -> dict:
    """The configuration file: its attributes, who may do what, and the error that is in it."""
    if not os.path.exists(path):
        installed = any(os.access(os.path.join(directory, "nanomq"), os.X_OK) for directory in _PROGRAM_DIRS)
        if not running and not installed:
            raise NotObserved("there is neither a NanoMQ nor a configuration")
        return {"path": path, "exists": False}
    info = os.stat(path)
    error = ""
    try:
        _hocon.parse(read(path), reader=read)
    except _hocon.ConfSyntaxError as problem:
        error = str(problem)
    return {
        "path": path,
        "exists": True,
        "mode": f"{stat.S_IMODE(info.st_mode):04o}",
        "owner": _name(info.st_uid),
        "readable_by_service": may(who, path, os.R_OK),
        "writable_by_service": replaceable(who, path),
        "error": error,
    }


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def configuration(about: dict) -> dict:
    """What the broker makes of its file. Without one it is its defaults: an empty configuration."""
    if not about["exists"]:
        return {}
    if about["error"]:
        raise NotObserved("the configuration has a syntax error")
    return _hocon.parse(read(about["path"]), reader=read)


def key_files(conf: dict, who: Any) -> list[dict]:
    """The key files that a configuration names."""
    return _observe_keys.key_files(conf, who, replaceable)


def copies(about: dict) -> list[str]:
    """Files of the broker beside its configuration, or below, that hold a password and that everybody can read."""
    directory = os.path.dirname(about["path"])
    own = os.path.basename(directory) == "nanomq"
    found, looked = [], 0
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(folders) if own else []  # /etc as a whole is not the broker's
        for name in sorted(names):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            if path == about["path"] or not stat.S_ISREG(info.st_mode) or not (own or name.startswith("nanomq")):
                continue
            looked += 1
            if looked > MOST_COPIES:
                raise NotObserved(f"there are more than {MOST_COPIES} files in {directory}")
            if info.st_mode & 0o004 and re.search(r"(?i)passw(or)?d|PRIVATE KEY-----", read(path)):
                found.append(path)
    return found


def event_sockets(conf: dict, running: list, proc: str = "/proc") -> list[dict]:
    """The sockets at which brokers hand events to their webhook, and whether other users can make them before."""
    url = _policy.event_socket(conf)
    if not url.startswith("ipc:///"):
        return []  # of one on the network another rule tells, and of a directory that is the broker's own as well
    if not running:
        raise NotObserved("no NanoMQ runs")
    path = url[len("ipc://") :]
    return [
        {"pid": item["pid"], "path": path, "replaceable": shared(f"{proc}/{item['pid']}/root", os.path.dirname(path))}
        for item in running
    ]


def shared(root: str, directory: str) -> bool:
    """Whether every user can make files in a directory that a process sees below its root.

    One in which only the process's namespace can, such as a private /tmp, lies elsewhere for the others.
    """
    info = os.stat(root + directory)
    try:
        here = os.stat(directory)
    except FileNotFoundError:
        return False
    return (info.st_dev, info.st_ino) == (here.st_dev, here.st_ino) and bool(info.st_mode & stat.S_IWOTH)


def version(package: str, unit: str) -> str:
    """The version of the broker: the package's, else that of the last start in the journal."""
    for argv in (
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package],
        ["rpm", "-q", "--qf", "installed %{VERSION}", package],
    ):
        code, out = run(argv, timeout=10)
        found = re.match(r"installed (?:\d+:)?v?(\d+\.\d+\.\d+)", out)
        if code == 0 and found:
            return found.group(1)
    code, out = run(["journalctl", "-u", unit, "-o", "cat", "-n", "5000", "--no-pager"], timeout=10)
    seen = re.findall(r"NanoMQ \(ver v?(\d+\.\d+\.\d+)", out) if code == 0 else []
    if not seen:
        raise NotObserved("neither a package nor the journal tells the version")
    return seen[-1]


# --- sockets and probes -----------------------------------------------------------------------------------------------


def sockets(found: list[dict]) -> dict[str, list[int]]:
    """The addresses on which brokers listen, and their processes."""
    if not found:
        raise NotObserved("no NanoMQ runs")
    listening = _probes.listening({item["pid"] for item in found})
    return {address: sorted(pids) for address, pids in sorted(listening.items())}


def reach(address: str) -> tuple[str, int]:
    """(host, port) at which a listening socket of this host is reached from itself."""
    host, port = _policy.split_bind(address, address)
    host = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port


def _conf(observation: dict) -> dict:
    """The configuration, {} where it is not known: sockets are then judged by their answers."""
    try:
        return fact(observation, "conf")
    except NotObserved:
        return {}


def kinds(observation: dict, timeout: float) -> dict[str, str]:
    """What each socket is: what the configuration says, and for one that it does not name, what it answers."""
    listeners = _policy.listeners(_conf(observation))
    # Two may share a port by mistake; then the address tells.
    declared = {listener.port: listener.kind for listener in listeners} | {x.address: x.kind for x in listeners}
    found = {}
    for address in list(fact(observation, "listeners"))[:MOST_SOCKETS]:
        host, port = reach(address)
        found[address] = declared.get(address) or declared.get(port) or sniff(host, port, timeout)
    return found


def sniff(host: str, port: int, timeout: float) -> str:
    """The kind of a socket that nobody declared."""
    status = _probes.rest_status(host, port, "/api/v4/brokers", {}, timeout)
    if status:
        return "rest" if status in (200, 401) else "ws"
    outcome, _certificate = _probes.mqtt_connect(host, port, tls_context=client_context(), timeout=timeout)
    return "ssl" if outcome in ("accepted", "refused", "no answer") else "tcp"


def mqtt(observation: dict, timeout: float, served: dict[str, bytes]) -> list[dict]:
    """Try to log in on every socket for MQTT. The certificates that were shown (DER) go to `served`, by address."""
    conf = _conf(observation)
    return [
        try_mqtt(address, kind == "ssl", conf, timeout, served)
        for address, kind in fact(observation, "kinds").items()
        if kind in ("tcp", "ssl")
    ]


def block_of(conf: dict, port: int) -> dict:
    """The block of the TLS listener with a port, {} where there is none."""
    return next((b for _key, b in _policy.tls_listeners(conf) if port == _port_of(_policy.get(b, "bind"))), {})


def try_mqtt(address: str, encrypted: bool, conf: dict, timeout: float, served: dict[str, bytes]) -> dict:
    """Log in without a name, and as a user that there is with a wrong password, or else with a made-up name.

    Where client certificates are required the broker's own is shown: without one the question does not get that far.
    NanoMQ 0.25.6 aborts after one refused login in seventy, by TLS 1.2 after one in nine hundred: so there are few, and
    by that. Whoever is refused with the wrong password of a user is refused with a made-up name as well.
    """
    host, port = reach(address)
    block = block_of(conf, port) if encrypted else {}
    mtls = _policy.get(block, "verify_peer") is True and _policy.get(block, "fail_if_no_peer_cert") is True

    def connect(**credentials: str) -> tuple[str, bytes]:
        context = client_context() if encrypted else None
        if context and mtls:
            _observe_keys.show_own_certificate(context, block)
        for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.MAXIMUM_SUPPORTED):
            if context:
                context.maximum_version = newest
            outcome, certificate = _probes.mqtt_connect(host, port, tls_context=context, timeout=timeout, **credentials)
            if outcome != "no handshake":
                break
        return outcome, certificate

    anonymous, certificate = connect()
    user, wrong, made_up = next(iter(_policy.users(conf)), ""), "", "refused"
    if user:
        wrong, _certificate = connect(username=user, password=secrets.token_hex(8))
    if wrong != "refused":
        made_up, _certificate = connect(username=secrets.token_hex(8), password=secrets.token_hex(8))
    if certificate:
        served[address] = certificate
    result = {
        "address": address,
        "tls": encrypted,
        "mtls": mtls,
        "mqtt": bool({anonymous, made_up} & {"accepted", "refused"}),
        "anonymous": anonymous,
        "made_up": made_up,
        "wrong_password": wrong,
    }
    return {**result, **validity(certificate)} if certificate else result


def _port_of(bind: Any) -> int:
    return _policy.split_bind(bind, "0.0.0.0:0")[1]


def handshakes(observation: dict, timeout: float) -> list[dict]:
    """Which old versions and weak suites the listeners for TLS agree to."""
    conf, found = _conf(observation), []
    for address, kind in fact(observation, "kinds").items():
        if kind in ("ssl", "wss"):
            host, port = reach(address)
            block = block_of(conf, port) if kind == "ssl" else next((b for _k, b in _policy.tls_listeners(conf)), {})
            found.append({"address": address, **_observe_keys.handshakes(host, port, block, timeout)})
    return found


def rest(observation: dict, timeout: float) -> list[dict]:
    """Ask REST without credentials and with the shipped ones, wherever it listens."""
    found = []
    for address in rest_sockets(observation):
        host, port = reach(address)
        plain, shipped = (
            _probes.rest_status(host, port, "/api/v4/brokers", headers, timeout)
            for headers in ({}, {"Authorization": SHIPPED})
        )
        if plain == 0 or shipped == 0:
            raise NotObserved(f"REST on {address} does not answer")
        found.append(
            {
                "address": address,
                "without_credentials": plain,
                "shipped_credentials": shipped,
                "forged": forged(observation, host, port, timeout),
            }
        )
    return found


def forged(observation: dict, host: str, port: int, timeout: float) -> list[str]:
    """The forged tokens that REST takes, where it wants tokens."""
    conf = _conf(observation)
    path = _policy.get(conf, "http_server", "jwt", "public", "keyfile")
    if _policy.get(conf, "http_server", "auth_type") != "jwt" or not isinstance(path, str) or not os.path.isfile(path):
        return []
    return _observe_keys.accepted_forgeries(host, port, path, timeout)


def drift(observation: dict, token: str, timeout: float) -> list[str]:
    """By what the running broker differs from its file."""
    sockets_found = rest_sockets(observation)
    if not sockets_found:
        raise NotObserved("REST is not there to ask")
    host, port = reach(sockets_found[0])
    return _running.drift(host, port, token, fact(observation, "conf"), read, timeout)


def rest_sockets(observation: dict) -> list[str]:
    """The addresses on which REST listens."""
    return [address for address, kind in fact(observation, "kinds").items() if kind == "rest"]


def local_access(observation: dict) -> list[str]:
    """What an ordinary user of the host reaches of REST."""
    found = []
    for address in rest_sockets(observation):
        host, port = reach(address)
        said = _probes.probe_unreachable(user="nobody", port=port, addresses=[host], credentials={})
        if any("could not try" in text or "there is no user" in text for text in said):
            raise NotObserved(said[0])
        found += said
    return found


# --- the clock --------------------------------------------------------------------------------------------------------


def clock(offset: float | None) -> dict:
    """Whether something keeps the clock. In a container it is the host's, and not looked after here."""
    buffer = ctypes.create_string_buffer(512)  # struct timex; modes = 0 asks and changes nothing
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        state = -1
    if state == -1:
        raise NotObserved("the kernel does not tell of its clock")
    _code, out = run(["systemctl", "is-active", *(f"{name}.service" for name in TIME_SERVICES)], timeout=10)
    active = [name for name, word in zip(TIME_SERVICES, out.split()) if word == "active"]
    return {
        "synchronised": state != _TIME_ERROR,
        "services": active,
        "container": any(os.path.exists(path) for path in CONTAINER_MARKS),
        "offset": None if offset is None else round(offset, 1),
    }


def cost(started_at: float) -> dict:
    """What a run took: {seconds: since `started_at` (time.monotonic), memory_mib: the most that was resident}."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(time.monotonic() - started_at, 2), "memory_mib": round(peak / 1024, 1)}


# --- the packet filter ------------------------------------------------------------------------------------------------


def firewall(observation: dict) -> dict:
    """What the kernel's packet filter does with a new connection from the network to the port of REST."""
    items = json.loads(_listing("-j", "list", "ruleset"))["nftables"]
    table = any(
        item["table"]["family"] == "inet" and item["table"]["name"] == _policy.TABLE
        for item in items
        if "table" in item
    )
    wording = _netfilter.texts(_listing("-a", "list", "ruleset")) if _netfilter.translated(items) else {}
    return {
        "table": table,
        "ports": {str(port): _netfilter.verdict(items, port, family, wording) for port, family in guarded(observation)},
    }


def _listing(*arguments: str) -> str:
    """What nft prints. Raises NotObserved."""
    code, out = run(["nft", *arguments], timeout=20)
    if code != 0:
        raise NotObserved("nft cannot list the rules: " + (out.splitlines() or ["no message"])[-1])
    return out


def guarded(observation: dict) -> list[tuple[int, str]]:
    """(port, ip or ip6) that must be closed to the network: of REST's sockets, else of the configuration."""
    try:
        found = [
            (reach(address)[1], "ip6" if address.startswith("[") else "ip") for address in rest_sockets(observation)
        ]
    except NotObserved:
        found = []
    declared = [(x.port, "ip") for x in _policy.listeners(_conf(observation)) if x.kind == "rest"]
    return found or declared or [(8081, "ip")]
