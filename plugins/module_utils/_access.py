# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Access to REST by role, which the broker itself lacks: one credential of it is full administration.

A role is a list of calls, ``METHOD /path`` below /api/v4, where ``*`` stands for one segment. What no role names is
refused. A front end decides by what the client sent, byte for byte, and passes just that on: nothing is decoded,
folded or completed between the decision and the broker, so that they cannot understand a path differently.

Source of the calls and their hazards: trials on NanoMQ 0.25.6, and its dispatcher.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

PREFIX = "/api/v4"
METHODS = ("GET", "POST", "PUT", "DELETE")

#: What a call does to the broker that nobody should have through a front end, by rule of the policy.
HAZARDS: dict[str, tuple[str, ...]] = {
    "NMQ-ACL-010": ("GET /configuration", "GET /configuration/*"),
    "NMQ-ACL-011": ("POST /reload", "POST /configuration", "POST /configuration/*"),
    "NMQ-ACL-012": ("POST /config_update",),
    "NMQ-ACL-013": ("POST /rules", "PUT /rules/*"),
    "NMQ-ACL-014": ("POST /ctrl/*",),
}

_READ = (
    "GET /brokers",
    "GET /nodes",
    "GET /clients",
    "GET /clients/*",
    "GET /clients/username/*",
    "GET /subscriptions",
    "GET /subscriptions/*",
    "GET /topic-tree",
    "GET /metrics",
    "GET /prometheus",
)
_PUBLISH = ("POST /mqtt/publish", "POST /mqtt/publish_batch")

#: The roles that are there without being declared.
ROLES: dict[str, tuple[str, ...]] = {
    "viewer": _READ,
    "publisher": _PUBLISH,
    # Reading a bridge shows its password: to those who may set it, and to nobody else.
    "bridge_operator": (
        "GET /bridges",
        "GET /bridges/*",
        "PUT /bridges/*",
        "POST /bridges/sub/*",
        "POST /bridges/unsub/*",
        "POST /bridges/switch/*",
    ),
    "admin": (*_READ, *_PUBLISH, "GET /rules", "GET /rules/*", "DELETE /rules/*", "GET /reload"),
}

_CALL = re.compile(r"(?P<method>[A-Z]+) (?P<path>(?:/[A-Za-z0-9_.~-]+|/\*)+)")
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,31}")
_FINGERPRINT = re.compile(r"[0-9a-f]{40}")

# What may stand for `*`. No escape of an ASCII character but the space: not of a slash, a dot or the percent sign.
_CHARACTER = r"(?:[A-Za-z0-9_.~:@+=,-]|%20|%[89A-Fa-f][0-9A-Fa-f])"
_SEGMENT = r"(?!\.\.?(?:[/?]|$))" + _CHARACTER + "+"
_QUERY = r"(?:\?(?:" + _CHARACTER + r"|&)*)?"


def roles(declared: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """All roles: those that are there, and the declared ones, which take the place of one of the same name."""
    return {**ROLES, **{name: tuple(calls) for name, calls in declared.items()}}


def problems(declared: Any, clients: Any, anonymous: Any) -> list[str]:
    """What is wrong with the declaration of roles and clients, in words that name the variable."""
    return [*_role_problems(declared), *_client_problems(declared, clients), *_unknown(declared, anonymous)]


def _role_problems(declared: Any) -> Iterator[str]:
    if not isinstance(declared, Mapping):
        yield "nanomq_nginx_roles: needs a dictionary of roles and their calls"
        return
    for name, calls in declared.items():
        where = f"nanomq_nginx_roles.{name}"
        if not _ROLE.fullmatch(str(name)):
            yield f"{where}: a role's name is made of lower-case letters, digits and underscores"
        if isinstance(calls, (str, Mapping)) or not isinstance(calls, Iterable):
            yield f"{where}: needs a list of calls such as 'GET /metrics'"
            continue
        for call in calls:
            found = _CALL.fullmatch(str(call))
            if not found or {".", ".."} & set(found["path"].split("/")):
                yield f"{where}: {call!r} is no call such as 'GET /clients/*', without {PREFIX} before it"
            elif found["method"] not in METHODS:
                yield f"{where}: {call!r}: the method must be one of {', '.join(METHODS)}"


_SUBJECTS = ("common_names", "organizational_units", "fingerprints")


def _client_problems(declared: Any, clients: Any) -> Iterator[str]:
    if not isinstance(clients, (list, tuple)):
        yield "nanomq_nginx_clients: needs a list"
        return
    for number, client in enumerate(clients, 1):
        where = f"nanomq_nginx_clients, item {number}"
        if not isinstance(client, Mapping):
            yield f"{where}: needs a dictionary with a role and its {', '.join(_SUBJECTS)}"
            continue
        yield from _unknown(declared, [client.get("role")], where)
        extra = sorted(set(client) - {"role", *_SUBJECTS}, key=str)
        if extra:
            yield f"{where}: there is no {', '.join(map(str, extra))}; known are role, {', '.join(_SUBJECTS)}"
        if not any(client.get(subject) for subject in _SUBJECTS):
            yield f"{where}: says of nobody that they have this role; give {', '.join(_SUBJECTS)}"
        for subject in _SUBJECTS:
            values = client.get(subject) or []
            if not isinstance(values, (list, tuple)):
                yield f"{where}: {subject} needs a list"
                continue
            for value in values:
                yield from _subject_problems(f"{where}: {subject}", subject, value)


def _subject_problems(where: str, subject: str, value: Any) -> Iterator[str]:
    if not isinstance(value, str) or not value or len(value) > 64 or any(_unfit(c) for c in value):
        yield f"{where}: {value!r} is not a text of one line, of at most 64 characters"
    elif subject == "fingerprints" and not _FINGERPRINT.fullmatch(_fingerprint(value)):
        yield f"{where}: {value!r} is not a SHA-1 fingerprint, 40 hexadecimal digits, the only one that nginx knows"


def _unfit(character: str) -> bool:
    """Control characters, and halves of a surrogate pair, which have no bytes."""
    return ord(character) < 32 or ord(character) == 127 or 0xD800 <= ord(character) < 0xE000


def _unknown(declared: Any, names: Any, where: str = "nanomq_nginx_anonymous_roles") -> Iterator[str]:
    if not isinstance(names, (list, tuple)):
        yield f"{where}: needs a list of roles"
        return
    known = {*ROLES, *(declared if isinstance(declared, Mapping) else ())}
    for name in names:
        if not isinstance(name, str) or name not in known:
            yield f"{where}: there is no role {name!r}; known are {', '.join(sorted(map(str, known)))}"


def _fingerprint(text: str) -> str:
    return text.replace(":", "").lower()


# --- what a front end is told -----------------------------------------------------------------------------------------


def calls_pattern(calls: Iterable[str]) -> str:
    """The regular expression (PCRE, and of Python) of the ``METHOD request-target`` that these calls allow."""
    parts = []
    for call in dict.fromkeys(calls):
        method, path = call.split(" ", 1)
        steps = "".join("/" + (_SEGMENT if step == "*" else re.escape(step)) for step in path[1:].split("/"))
        parts.append(f"{method} {PREFIX}{steps}")
    return f"^(?:{'|'.join(parts)})/?{_QUERY}$(?!\\n)"  # else `$` would let a line break follow


def caller_pattern(attribute: str, value: str) -> str:
    """The regular expression of a caller, ``SUCCESS fingerprint subject``, whose subject has this attribute.

    A comma that belongs to a value has a backslash before it, and begins nothing; so backslashes are read in pairs.
    """
    return rf"^SUCCESS [0-9a-f]+ (?:(?:[^\\]|\\.)*,)?{attribute}={re.escape(distinguished(value))}(?:,|$)"


def distinguished(value: str) -> str:
    r"""A value as OpenSSL writes it within a subject by RFC 2253: special characters escaped, the others as ``\C3``."""
    data = value.encode()
    result = ""
    for number, byte in enumerate(data):
        character = chr(byte)
        last = number == len(data) - 1
        # A "#" that is all there is stays as it is: OpenSSL looks at the end first.
        at_an_end = (last and character == " ") or (number == 0 and not last and character in " #")
        if character in ',+"\\<>;' or at_an_end:
            result += "\\" + character
        elif byte < 0x20 or byte >= 0x7F:
            result += f"\\{byte:02X}"
        else:
            result += character
    return result


def maps(declared: Mapping, clients: Iterable[Mapping], anonymous: Iterable[str]) -> list[dict]:
    """The roles that somebody has, for the template of a front end, sorted by name.

    [{"name", "calls": pattern of ``METHOD request-target``, "callers": [pattern of ``verdict fingerprint subject``]}],
    where the verdict is SUCCESS, or NONE without a certificate; the fingerprint is SHA-1, the subject by RFC 2253.
    """
    callers: dict[str, set[str]] = {name: {"^NONE "} for name in anonymous}
    for client in clients:
        found = callers.setdefault(client["role"], set())
        for attribute, subject in (("CN", "common_names"), ("OU", "organizational_units")):
            found.update(caller_pattern(attribute, value) for value in client.get(subject) or [])
        found.update(f"^SUCCESS {_fingerprint(value)} " for value in client.get("fingerprints") or [])
    every = roles(declared)
    return [
        {"name": name, "calls": calls_pattern(every[name]), "callers": sorted(found)}
        for name, found in sorted(callers.items())
    ]


# --- what the policy asks ---------------------------------------------------------------------------------------------


def covers(call: str, other: str) -> bool:
    """Whether some request is allowed by both calls."""
    (method, path), (other_method, other_path) = (text.split(" ", 1) for text in (call, other))
    steps, other_steps = path.split("/"), other_path.split("/")
    return (
        method == other_method
        and len(steps) == len(other_steps)
        and all(a == b or "*" in (a, b) for a, b in zip(steps, other_steps))
    )


def hazardous(front: Mapping, rule: str) -> Iterator[str]:
    """Which calls of which roles have the hazard of this rule. front: {"roles": {name: [call]}}"""
    for name, calls in front.get("roles", {}).items():
        for call in calls:
            if any(covers(call, hazard) for hazard in HAZARDS[rule]):
                yield f"nanomq_nginx_roles.{name}: {call}"
