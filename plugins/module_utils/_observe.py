# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What a host with a NanoMQ shows of itself: processes, sockets, files, packet filter, and answers to live probes.

Nothing is changed. Every fact of an observation is either its value or ``{"not_observed": why}``, so that what could
not be seen is never taken for good. Times are seconds. Sources: proc(5), nft(8) and libnftables-json(5), RFC 5280.
"""

from __future__ import annotations

import datetime
import json
import os
import pwd
import re
import secrets
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.module_utils import _der, _hocon, _policy, _probes, _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._policy import NotObserved, fact
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import run

TIMEOUT = 2.0
#: Sockets that are probed at most; a broker has four or five.
MOST_SOCKETS = 16
SHIPPED = "Basic YWRtaW46cHVibGlj"  # admin:public
DEFAULT_CONFS = ("/etc/nanomq/nanomq.conf", "/etc/nanomq.conf", "/usr/local/etc/nanomq.conf")
_PROGRAM_DIRS = ("/usr/local/bin", "/usr/bin")
_SMALL = 4 << 20


def observe(*, unit: str, package: str, conf_path: str = "", user: str = "nanomq", timeout: float = TIMEOUT) -> dict:
    """Look at the host. Returns the observation, which holds the configuration with its secrets under ``conf``:
    `public` takes that away.

    processes: [{pid, uid, unit, conf_path, conf_given, flags, environment, no_new_privs, cap_eff, cap_bnd, cwd,
        cwd_writable, dist, program_replaced, conf_changed}]
    version: text
    conf_file: {path, exists, mode, owner, group, readable_by_service, writable_by_service, error}
    conf: the configuration as the broker reads it
    key_files: [{kind: tls or jwt, path, exists, mode, private, writable_by_service}]
    listeners: {address: [pid]}
    kinds: {address: tcp, ssl, ws, wss or rest}
    mqtt: [{address, tls, mtls, mqtt, anonymous, made_up, not_after, days_left, valid_yet}]
    rest: [{address, without_credentials, shipped_credentials}]
    firewall: {table: bool, ports: {"8081": accepted, dropped or depends}}
    local_access: [what a local user reaches]
    """
    observation: dict[str, Any] = {}

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
    look("key_files", lambda: key_files(fact(observation, "conf"), fact(observation, "identity")))
    look("version", lambda: version(package, unit))
    look("listeners", lambda: sockets(fact(observation, "processes")))
    look("kinds", lambda: kinds(observation, timeout))
    look("mqtt", lambda: mqtt(observation, timeout))
    look("rest", lambda: rest(observation, timeout))
    look("firewall", lambda: firewall(observation))
    look("local_access", lambda: local_access(observation))
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
    status = dict(line.split(":\t", 1) for line in read(f"{base}/status").splitlines() if ":\t" in line)
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
    }


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
    named = [("tls", _policy.get(block, "keyfile")) for _key, block in _policy.tls_listeners(conf)]
    named.append(("jwt", _policy.get(conf, "http_server", "jwt", "public", "keyfile")))
    found = []
    for kind, path in named:
        if not isinstance(path, str) or not path.startswith("/"):
            continue
        if not os.path.isfile(path):
            found.append({"kind": kind, "path": path, "exists": False})
            continue
        found.append(
            {
                "kind": kind,
                "path": path,
                "exists": True,
                "mode": f"{stat.S_IMODE(os.stat(path).st_mode):04o}",
                "private": "PRIVATE KEY-----" in read(path),
                "writable_by_service": replaceable(who, path),
            }
        )
    return found


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
    declared = {listener.port: listener.kind for listener in _policy.listeners(_conf(observation))}
    found = {}
    for address in list(fact(observation, "listeners"))[:MOST_SOCKETS]:
        host, port = reach(address)
        found[address] = declared.get(port) or sniff(host, port, timeout)
    return found


def sniff(host: str, port: int, timeout: float) -> str:
    """The kind of a socket that nobody declared."""
    status = _probes.rest_status(host, port, "/api/v4/brokers", {}, timeout)
    if status:
        return "rest" if status in (200, 401) else "ws"
    outcome, _certificate = _probes.mqtt_connect(host, port, tls_context=client_context(), timeout=timeout)
    return "ssl" if outcome in ("accepted", "refused", "no answer") else "tcp"


def mqtt(observation: dict, timeout: float) -> list[dict]:
    """Try to log in on every socket for MQTT."""
    conf = _conf(observation)
    return [
        try_mqtt(address, kind == "ssl", conf, timeout)
        for address, kind in fact(observation, "kinds").items()
        if kind in ("tcp", "ssl")
    ]


def client_context() -> ssl.SSLContext:
    """A client that takes any certificate: here it is looked at, not trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def try_mqtt(address: str, encrypted: bool, conf: dict, timeout: float) -> dict:
    """Log in without a name, and with a made-up one.

    Where client certificates are required the broker's own is shown: without one the question does not get that far.
    """
    host, port = reach(address)
    block = next(
        (b for key, b in _policy.tls_listeners(conf) if encrypted and port == _port_of(_policy.get(b, "bind"))), {}
    )
    mtls = _policy.get(block, "verify_peer") is True and _policy.get(block, "fail_if_no_peer_cert") is True

    def connect(**credentials: str) -> tuple[str, bytes]:
        context = client_context() if encrypted else None
        if context and mtls:
            _show_own_certificate(context, block)
        return _probes.mqtt_connect(host, port, tls_context=context, timeout=timeout, **credentials)

    anonymous, certificate = connect()
    made_up, _certificate = connect(username=secrets.token_hex(8), password=secrets.token_hex(8))
    result = {
        "address": address,
        "tls": encrypted,
        "mtls": mtls,
        "mqtt": bool({anonymous, made_up} & {"accepted", "refused"}),
        "anonymous": anonymous,
        "made_up": made_up,
    }
    return {**result, **validity(certificate)} if certificate else result


def _port_of(bind: Any) -> int:
    return _policy.split_bind(bind, "0.0.0.0:0")[1]


def _show_own_certificate(context: ssl.SSLContext, block: dict) -> None:
    paths = [_policy.get(block, name) for name in ("certfile", "keyfile")]
    try:
        context.load_cert_chain(*paths, password=str(_policy.get(block, "key_password") or ""))
    except (OSError, ValueError, TypeError):
        return  # the handshake then tells


def validity(certificate: bytes) -> dict:
    """When a certificate (DER) ends: {not_after: date, days_left: whole days, valid_yet: bool}; {} if it is none."""
    try:
        parsed = _x509.parse_certificate(certificate)
    except _der.DerError:
        return {}
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "not_after": parsed.not_after.date().isoformat(),
        "days_left": (parsed.not_after - now) // datetime.timedelta(days=1),
        "valid_yet": parsed.not_before <= now,
    }


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
        found.append({"address": address, "without_credentials": plain, "shipped_credentials": shipped})
    return found


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


# --- the packet filter ------------------------------------------------------------------------------------------------


def firewall(observation: dict) -> dict:
    """What the kernel's packet filter does with a new connection from the network to the port of REST."""
    code, out = run(["nft", "-j", "list", "ruleset"], timeout=20)
    if code != 0:
        raise NotObserved("nft cannot list the rules: " + (out.splitlines() or ["no message"])[-1])
    items = json.loads(out)["nftables"]
    table = any(
        item["table"]["family"] == "inet" and item["table"]["name"] == _policy.TABLE
        for item in items
        if "table" in item
    )
    return {"table": table, "ports": {str(port): verdict(items, port, family) for port, family in guarded(observation)}}


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


def verdict(items: list[dict], port: int, family: str) -> str:
    """What a ruleset (the list of ``nft -j list ruleset``) does with a new TCP connection from another host.

    family: ip or ip6. Returns accepted, dropped, or depends where it turns on an address or the like.
    """
    chains: dict[tuple, dict] = {}
    for item in items:
        if "chain" in item and item["chain"]["family"] in (family, "inet"):
            chain = item["chain"]
            chains[(chain["family"], chain["table"], chain["name"])] = {**chain, "rules": []}
    for item in items:
        rule = item.get("rule", {})
        key = (rule.get("family"), rule.get("table"), rule.get("chain"))
        if key in chains:
            chains[key]["rules"].append(rule["expr"])
    maybe = False
    for key, chain in chains.items():
        if chain.get("hook") in ("prerouting", "input") and chain.get("type") != "nat":
            outcomes = set(_chain(chains, key, port, family, 0))
            if None in outcomes:
                outcomes = (outcomes - {None}) | {chain.get("policy", "accept")}
            if outcomes == {"drop"}:
                return "dropped"
            maybe = maybe or "drop" in outcomes
    return "depends" if maybe else "accepted"


def _chain(chains: dict, key: tuple, port: int, family: str, depth: int) -> Iterator[str | None]:
    """The ways in which a packet may leave a chain: accept, drop, or None for its end."""
    if depth > 16 or key not in chains:
        yield None
        return
    for expressions in chains[key]["rules"]:
        ways, sure = _rule(chains, key, expressions, port, family, depth)
        for way in ways:
            if way is not None:
                yield None if way == "return" else way
        if sure and None not in ways:
            return
    yield None


def _rule(chains: dict, key: tuple, expressions: list[dict], port: int, family: str, depth: int) -> tuple[list, bool]:
    """(ways out of the rule, whether its matches hold for sure). None: the next rule; return: the end of the chain."""
    sure = True
    for expression in expressions:
        kind, body = next(iter(expression.items()))
        if kind == "match":
            held = _matches(body, port, family)
            if held is False:
                return [None], False
            sure = sure and held is True
        elif kind in ("limit", "quota", "ct count", "connlimit", "xt", "vmap", "fib"):
            sure = False
        elif kind == "accept":
            return ["accept"], sure
        elif kind in ("drop", "reject"):
            return ["drop"], sure
        elif kind in ("jump", "goto"):
            ways = list(_chain(chains, (*key[:2], body["target"]), port, family, depth + 1))
            return ["return" if way is None and kind == "goto" else way for way in ways], sure
        elif kind == "return":
            return ["return"], sure
        elif kind in ("queue", "synproxy"):
            return ["accept"], False
    return [None], False


def _matches(body: dict, port: int, family: str) -> bool | None:
    """Whether a match holds for the packet; None where it turns on what is not known of it."""
    held = _compared(body["left"], body["right"], port, family)
    return not held if held is not None and body["op"] == "!=" else held


def _compared(left: Any, right: Any, port: int, family: str) -> bool | None:
    """Whether what is looked at on the left is among the right; None where it is not known."""
    where, what = next(iter(left.items())) if isinstance(left, dict) and left else ("", {})
    if not isinstance(what, dict):
        return None
    key = what.get("key")
    if where == "meta" and key in ("iif", "iifname"):
        # The packet comes from some interface other than lo.
        return False if right == "lo" else None
    known = {
        ("meta", "l4proto"): "tcp",
        ("meta", "nfproto"): {"ip": "ipv4", "ip6": "ipv6"}[family],
        ("meta", "protocol"): family,
        ("ct", "state"): "new",
    }
    if (where, key) in known:
        return _holds(right, known[(where, key)])
    if where != "payload":
        return None
    protocol = what.get("protocol")
    if protocol in ("tcp", "th") and what.get("field") == "dport":
        return _holds(right, port)
    # A match on another protocol's header is one that the packet does not have.
    return False if protocol in {"udp", "icmp", "icmpv6", "igmp", "ip", "ip6"} - {family} else None


def _holds(right: Any, value: Any) -> bool | None:
    """Whether the right side of a match, a value, a range or a set of them, holds a value; None for a named set."""
    if isinstance(right, str) and right.startswith("@"):
        return None
    if isinstance(right, dict) and "set" in right:
        members = right["set"] if isinstance(right["set"], list) else [right["set"]]
        answers = [_holds(member, value) for member in members]
        return True if True in answers else None if None in answers else False
    if isinstance(right, list):
        return any(_holds(member, value) for member in right)
    if isinstance(right, dict) and "range" in right:
        low, high = right["range"]
        return low <= value <= high if isinstance(value, int) else None
    if isinstance(right, dict) and "elem" in right:
        return _holds(right["elem"].get("val"), value)
    return None if isinstance(right, dict) else right == value
