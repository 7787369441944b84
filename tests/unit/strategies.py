"""Hypothesis strategies for configurations of NanoMQ, built from the schema itself."""

from __future__ import annotations

from ansible_collections.edgesec.nanomq.plugins.module_utils import _schema
from hypothesis import strategies as st

# What has broken out of other templates, or could.
NASTY = (
    "",
    '"',
    '""',
    'x" auth_type = no_auth zz = "y',
    '"\ufeff',
    "# no comment",
    "// no comment",
    "${HOME}",
    "${VIN}",
    "{}[],:=",
    "'single'",
    '"""',
    "true",
    "null",
    "1883",
    "10MB",
    "include",
    'include "/etc/shadow"',
    "  blanks  ",
    "päss-wörd ☃",
    "{MultilineChar}*",
    "%u",
)

texts = st.sampled_from(NASTY) | st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\\\u2028\u2029"), max_size=20
)


def _names(node) -> st.SearchStrategy:
    """Legal names of one's own in a block: of users, bridges, headers ..."""
    words = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)
    return (words | texts).filter(lambda name: _schema._name_problem(node, name) is None)


def _ports() -> st.SearchStrategy:
    return st.integers(1, 65535)


def _binds(key) -> st.SearchStrategy:
    path = "/mqtt" if key.path.startswith("listeners.ws") else ""
    return st.builds("127.0.0.1:{}".format, _ports()) | st.builds(("[::1]:{}" + path).format, _ports())


def _value(key) -> st.SearchStrategy:
    quantities = {"time": (_schema._TIME, "smhd"), "time_ms": (_schema._TIME_MS, ("ms", "s", "m"))}
    if key.type in quantities:
        numbers = st.integers(0, key.maximum)
        built = st.builds(lambda number, unit: f"{number}{unit}", numbers, st.sampled_from(quantities[key.type][1]))
        return built.filter(lambda text: _schema._CHECKS[key.type](key, text) is None)
    if key.type == "size":
        units = st.sampled_from(("B", "KB", "MB", "kb"))
        return st.builds(lambda number, unit: f"{number}{unit}", st.integers(1, 4095), units) | st.integers(1, 10**9)
    return {
        "bool": st.booleans(),
        "int": st.integers(key.minimum, key.maximum),
        "float": st.integers(1, 100) | st.floats(0.001, 1000, allow_nan=False),
        "port": _ports(),
        "str": texts,
        "affix": texts.map(lambda text: text.replace("+", "").replace("#", "")),
        "param": st.sampled_from([f"%{letter}" for letter in "AucaPpCdtmr"]),
        "mqtt_url": st.sampled_from(("mqtt-tcp://127.0.0.1:1883", "tls+mqtt-tcp://far.example:8883")),
        "ipc_url": st.sampled_from(("ipc:///run/nanomq/a.ipc", "ipc:///tmp/with space")),
        "rule_sql": st.sampled_from(
            ('SELECT * FROM "a/#"', "SELECT payload.v as v FROM \"a\" WHERE v = 'x' and qos > 0")
        ),
        "enum": st.sampled_from(key.choices or ("",)),
        "bind": _binds(key),
        "address": st.sampled_from(("127.0.0.1", "localhost", "[::1]", "10.0.0.1")),
    }[key.type]


def _at(node) -> st.SearchStrategy:
    if node.key:
        return _value(node.key)
    if node.item:
        return st.lists(st.deferred(lambda: _at(node.item)), min_size=1, max_size=3)
    return st.deferred(lambda: _block(node))


def _block(node, names=None) -> st.SearchStrategy:
    known = names or [name for name, child in node.children.items() if not child.refused]
    required = _schema._REQUIRED.get(node.pattern, ((),))[0]

    def fill(chosen) -> st.SearchStrategy:
        own = st.just({})
        if node.wildcard and node.children.keys().isdisjoint(chosen):
            own = st.dictionaries(_names(node), _at(node.wildcard), min_size=1, max_size=3)
        own = own if node.wildcard else st.just({})
        blocks = st.fixed_dictionaries({name: _at(node.children[name]) for name in (*required, *chosen)})
        return st.builds(lambda block, more: {**block, **more}, blocks, own)

    least = 0 if node.wildcard or required else 1
    if not known:
        return fill(())
    return st.lists(st.sampled_from(known), min_size=least, max_size=4, unique=True).flatmap(fill)


def _satisfy(conf: dict) -> dict:
    """Mends what would break a rule between keys."""
    system = conf.get("system", {})
    urls = [name for name in ("hook_ipc_url", "cmd_ipc_url") if name in system]
    if len(urls) == 1:
        system.update(hook_ipc_url=system[urls[0]], cmd_ipc_url=system[urls[0]])
    for kind in ("tcp", "ssl"):
        block = conf.get("listeners", {}).get(kind, {})
        named = [child for child in block.values() if isinstance(child, dict)]
        for child in (block, *named):
            child.pop("enable", None)
        if kind in conf.get("listeners", {}) and not named:
            block.setdefault("bind", "127.0.0.1:1883")
    log = conf.get("log", {})
    if "uds" in log.get("to", ()):
        log.setdefault("uds_addr", "/run/nanomq/log")
    for rule in conf.get("auth", {}).get("acl", {}).get("rules", ()):
        for name in [n for n in ("ipaddr", "ipaddrs", "username", "clientid", "and", "or") if n in rule][1:]:
            del rule[name]
        for items in (rule.get("and", ()), rule.get("or", ())):
            for item in items:
                for name in list(item)[1:]:
                    del item[name]
    return conf


def confs(sections=None) -> st.SearchStrategy:
    """Legal configurations; `sections`: the sections to draw from, by default all."""
    return _block(_schema.TREE, list(sections) if sections else None).map(_satisfy)


def legal_keys() -> st.SearchStrategy:
    """Keys of the schema."""
    return st.sampled_from(_schema.KEYS)
