"""Who may do what: the broker's password check and its topic rules."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Config, Rule

# A value with one of these would turn a placeholder into a wildcard: the broker denies instead.
_UNSAFE = frozenset("+#/")


@dataclass
class Client:
    clientid: str | None
    username: str | None
    ipaddr: str | None


def may_connect(config: Config, username: str | None, password: str | None) -> bool:
    """With an empty list of users, any name with any password will do."""
    if config.allow_anonymous:
        return True
    if not username or not password:
        return False
    if not config.auth.enable or not config.auth.users:
        return True
    return (username, password) in config.auth.users


def may_use(config: Config, client: Client, action: str, topic: str) -> bool:
    """Whether `client` may `publish` to or `subscribe` to `topic`: the first rule that matches decides."""
    if not config.acl_enable:
        return True
    for rule in config.acl_rules:
        if rule.action not in ("pubsub", action) or not _concerns(rule, client):
            continue
        matches = _matches_any(rule, client, topic)
        if matches is None:
            return False
        if matches:
            return rule.permit == "allow"
    return config.no_match == "allow"


def _concerns(rule: Rule, client: Client) -> bool:
    hits = (wanted == "#" or (wanted is not None and wanted == getattr(client, name)) for name, wanted in rule.parts)
    return rule.kind is None or (all(hits) if rule.kind == "and" else any(hits))


def _matches_any(rule: Rule, client: Client, topic: str) -> bool | None:
    """None where a placeholder cannot be filled in safely."""
    if not rule.topics:
        return True
    for pattern in rule.topics:
        if pattern is None:
            return None
        for name in ("clientid", "username"):
            value = getattr(client, name)
            if value is not None and f"${{{name}}}" in pattern:
                if _UNSAFE & set(value):
                    return None
                pattern = pattern.replace(f"${{{name}}}", value)
        if pattern[1:] == topic if pattern.startswith("@") and len(pattern) > 1 else covers(pattern, topic):
            return True
    return False


def covers(pattern: str, topic: str) -> bool:
    """Whether a topic, or a topic filter taken literally, lies within `pattern`."""
    if pattern == topic:
        return True
    wanted, given = pattern.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(given) or level not in ("+", given[index]):
            return False
    return len(wanted) == len(given)
