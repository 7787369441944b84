"""What the broker is fed: configurations from the schema that can run here, and texts mutated from valid ones."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import strategies
from ansible_collections.edgesec.nanomq.plugins.module_utils import _hocon
from hypothesis import strategies as st

#: Where the broker finds files, in a /tmp of its own.
PLACE = "/tmp/fuzz"
REST_PORT = 8081

# Numbers that decide how much a broker allocates or how many threads it starts: the machine is not what is tested.
MODEST = {
    "num_taskq_thread": 8,
    "max_taskq_thread": 8,
    "parallel": 16,
    "limit_conn": 64,
    "pool_size": 64,
    "max_parallel_processes": 4,
    "max_recv_queue_len": 1024,
    "max_send_queue_len": 1024,
    "max_mqueue_len": 65535,
    "property_size": 65535,
}
FILES = {
    "keyfile": f"{PLACE}/key.pem",
    "certfile": f"{PLACE}/cert.pem",
    "cacertfile": f"{PLACE}/ca.pem",
}


def _walk(block: Any, visit: Callable[[dict, str], None]) -> None:
    if isinstance(block, dict):
        for name in list(block):
            visit(block, name)
            _walk(block.get(name), visit)
    elif isinstance(block, list):
        for item in block:
            _walk(item, visit)


def _tame(block: dict, name: str) -> None:
    value = block[name]
    if name in MODEST and isinstance(value, int) and not isinstance(value, bool):
        block[name] = 1 + value % MODEST[name]
    elif name in FILES and isinstance(value, str) and len(value) % 3:
        # One in three stays as it is: a file that is not there.
        block[name] = FILES[name]
    elif name == "server" and isinstance(value, str):
        block[name] = ("mqtt-tcp", "tls+mqtt-tcp")["ssl" in block] + "://127.0.0.1:9"
    elif name == "url" and isinstance(value, str):
        block[name] = "http://127.0.0.1:9/hook"
    elif name in ("pub_url", "sub_url"):
        # They listen.
        block[name] = f"tcp://127.0.0.1:{20_000 + sum(map(ord, value)) % 20_000}"


def runnable(conf: dict) -> dict:
    """`conf` so that the broker can be asked what it made of it: REST on loopback, files that are there."""
    conf = copy.deepcopy(conf)
    _walk(conf, _tame)
    system = conf.get("system", {})
    # A daemon leaves its parent and cannot be waited for. Its sockets are those of /tmp, if any.
    system.pop("daemon", None)
    for name in ("hook_ipc_url", "cmd_ipc_url"):
        if name in system:
            system[name] = f"ipc://{PLACE}/{name}"
    # Loaded as code, whatever is at the path.
    conf.pop("plugin", None)
    http = conf.setdefault("http_server", {})
    # A colon parts user and password in the header of Basic.
    http["username"] = str(http.get("username", "admin")).replace(":", "") or "admin"
    http.setdefault("ip_addr", "127.0.0.1")
    if http["ip_addr"] not in ("127.0.0.1", "localhost"):
        http["ip_addr"] = "127.0.0.1"
    if http.get("auth_type") == "jwt":
        http["jwt"] = {"public": {"keyfile": f"{PLACE}/jwt.pub"}}
    log = conf.get("log", {})
    if "dir" in log or "file" in log.get("to", ()):
        log["dir"] = f"{PLACE}/log"
    if "file" in log.get("to", ()):
        log["file"] = "nanomq.log"
    if "uds_addr" in log:
        log["uds_addr"] = f"{PLACE}/uds"
    return {name: block for name, block in conf.items() if block}


def configurations() -> st.SearchStrategy:
    """Legal configurations that can be run here."""
    return strategies.confs().map(runnable)


# --- texts ------------------------------------------------------------------------------------------------------------

# Blocks in the ways people write them; none of them depends on another.
BLOCKS = (
    "mqtt { property_size = 10, max_mqueue_len = 5 }",
    "mqtt {\n  property_size = 20\n  retry_interval = 20s\n  max_packet_size = 20KB\n}",
    "mqtt.property_size = 30",
    "mqtt : { keepalive_multiplier : 2.5 }",
    '"mqtt" = { "property_size" = 40 }',
    'auth { allow_anonymous = false, password { "alice" = "secret", "bob" = word } }',
    'auth {\n  allow_anonymous = true\n  password = { include "/tmp/fuzz/users.conf" }\n}',
    'auth.password.carol = "x#y"',
    'auth { password { "dave" = "a\\"b" } }',
    'auth { password { enable = false, erin = "// no comment" } }',
    'auth {\n  # a comment with "quotes"\n  no_match = deny\n  acl { rules = [{ permit = allow, topics = ["#"] }] }\n}',
    'listeners.tcp { bind = "127.0.0.1:1883" }',
    'listeners { tcp { bind = "127.0.0.1:1884" }, ws { bind = "127.0.0.1:8083/mqtt" } }',
    'listeners { tcp { one { bind = "127.0.0.1:1885" }, two { bind = "127.0.0.1:1886" } } }',
    "system { enable_ipc_internal = false, parallel = 4 }",
    "SYSTEM { Num_Taskq_Thread = 2 }",
    "sqlite { disk_cache_size = 7 }",
    "sqlite.flush_mem_threshold = 9",
    "log { to = [console], level = warn }",
    'bridges.mqtt.up { server = "mqtt-tcp://127.0.0.1:9", password = "hidden", enable = false }',
    'bridges { mqtt { up { server = "mqtt-tcp://127.0.0.1:9", keepalive = 30s } } }',
    'http_server { password = "public", auth_type = basic }',
    "http_server.limit_conn = 8",
    'include "/tmp/fuzz/mqtt.conf"',
    "nonsense { a = 1, b = [1, 2, { c = null }] }",
)
#: What is included, by name.
INCLUDED = {
    f"{PLACE}/users.conf": '"u": "p"\n"v": "q"\n',
    f"{PLACE}/mqtt.conf": "mqtt { property_size = 50, max_mqueue_len = 6 }\n",
}
TOKENS = (
    '"', "'", "\\", '\\"', "#", "//", "${HOME}", "${X", "$", ",", ";", "{", "}", "[", "]", "{}", "[]", "=", ":", "+=",
    "\n", "\r\n", "\t", "  ", '"""', "@", "*", "!", "(", ")", "/", "%", "&", "|", "~", "`", "<", ">", "?", "^", ".",
    "true", "false", "null", "TRUE", "yes", "0", "-1", "+7", "1e3", "2.50", "007", "99999999999999999999", "10MB",
    "10mb", "5Kb", "10ms", "5%", "1m", "a.b", "a-b", "ä", "☃", "\ufeff", "\x01", "\u2028", "include", "a = 1\n",
    'include "/tmp/fuzz/mqtt.conf"\n', 'include "/tmp/fuzz/missing.conf"\n', "property_size = 60\n",
    'password = "x"\n', "allow_anonymous = false\n", "password { zoe = z }\n", "mqtt { property_size = 70 }\n",
    "auth { allow_anonymous = false }\n", "required(", "file(", "a", "Z", "-", "_", "x{", "x = {}\n", "x = []\n",
)  # fmt: skip

Edit = tuple[str, int, int, str]


def _apply(text: str, edit: Edit) -> str:
    """One change to a text, wherever the two numbers point."""
    kind, here, there, token = edit
    at, other = here % (len(text) + 1), there % (len(text) + 1)
    lines = text.split("\n")
    line, second = here % len(lines), there % len(lines)
    if kind == "insert":
        return text[:at] + token + text[at:]
    if kind == "delete":
        return text[:at] + text[at + 1 + there % 3 :]
    if kind == "replace":
        return text[:at] + token + text[at + 1 :]
    if kind == "value":
        # What stands behind a sign of assignment
        places = [index for index, sign in enumerate(text) if sign in "=:"]
        if not places:
            return text
        start = places[here % len(places)] + 1
        end = min((text.find(stop, start) for stop in ",\n}" if text.find(stop, start) >= 0), default=len(text))
        return f"{text[:start]} {token}{text[end:]}"
    if kind == "cut":
        return text[: min(at, other)] + text[max(at, other) :] if abs(at - other) < 40 else text[:at] + text[at + 20 :]
    if kind == "copy":
        return text[:at] + text[min(at, other) : min(at, other) + 30] + text[at:]
    if kind == "swap":
        lines[line], lines[second] = lines[second], lines[line]
    elif kind == "double":
        lines.insert(second, lines[line])
    elif kind == "upper":
        lines[line] = lines[line].upper()
    elif kind == "remark":
        lines[line] += " # " + token
    return "\n".join(lines)


KINDS = ("insert", "insert", "delete", "replace", "value", "value", "cut", "copy", "swap", "double", "upper", "remark")


def texts() -> st.SearchStrategy:
    """Texts near to valid ones: blocks one after the other, and what the emitter writes, with some edits."""
    numbers = st.integers(0, 2000)
    edits = st.lists(st.tuples(st.sampled_from(KINDS), numbers, numbers, st.sampled_from(TOKENS)), max_size=4)
    blocks = st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5).map("\n".join)
    sections = ("system", "mqtt", "auth", "sqlite", "listeners")
    emitted = strategies.confs(sections).map(runnable).map(_hocon.emit)
    bodies = st.one_of(blocks, blocks, emitted)
    return st.builds(
        lambda body, changes, behind: _framed(functools.reduce(_apply, changes, body), behind),
        bodies,
        edits,
        st.booleans(),
    )


# REST can be asked whatever the rest of the text does, unless that is a syntax error or takes it along.
FRAME = f'http_server {{ port = {REST_PORT}, ip_addr = "127.0.0.1" }}\n'


def _framed(body: str, behind: bool) -> str:
    return f"{body}\n{FRAME}" if behind else FRAME + body + "\n"
