"""Whether a broker holds what a configuration means, and whether this collection and the broker read a text alike.

What a configuration means is asked of the double's reader, which is held to the real broker by the contract suite. What
the collection believes is asked as well: its reader, its validator's comparison, its drift and its list of sockets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.module_utils import (
    _hocon,
    _policy,
    _running,
    _schema,
    _validators,
)
from nanomq_double import config as double
from nanomq_double.dialect import Crash


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def meaning(conf: object, version: tuple[int, ...]) -> double.Config:
    """What the broker makes of a parsed configuration; raises Crash where that is its end."""
    config = double.Config()
    double.read_value(config, conf, version)
    config.add_default_listeners()
    return config


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """The paths at which two values differ, with both."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for name in {**wanted, **found}:
            if name not in wanted or name not in found:
                yield f"{path}.{name}: {'only meant' if name in wanted else 'only the broker has it'}"
            else:
                yield from differences(wanted[name], found[name], f"{path}.{name}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, (one, other) in enumerate(zip(wanted, found)):
            yield from differences(one, other, f"{path}[{index}]")
    elif isinstance(wanted, float) and isinstance(found, (int, float)):
        # A `float` of C to the broker.
        if not math.isclose(wanted, found, rel_tol=1e-6):
            yield f"{path}: meant {wanted!r}, the broker has {found!r}"
    elif wanted != found or isinstance(wanted, bool) is not isinstance(found, bool):
        yield f"{path}: meant {wanted!r}, the broker has {found!r}"


def sockets(conf: dict) -> set[str]:
    """What the policy says the broker opens, as /proc tells it."""
    return {f"{'127.0.0.1' if one.host == 'localhost' else one.host}:{one.port}" for one in _policy.listeners(conf)}


def disagreements(conf: dict, version: tuple[int, ...], sections: dict, listening: set[str]) -> list[str]:
    """All by which a running broker is not what `conf` means."""
    # A build with SQLite has a cache for bridges, and tells of it.
    bridge = {name: value for name, value in sections.get("bridge", {}).items() if name != "sqlite"}
    found = list(differences(double.sections(meaning(conf, version)), {**sections, "bridge": bridge}, "REST"))
    opened = sockets(conf)
    if opened != listening:
        found.append(f"sockets: the policy says {sorted(opened)}, there are {sorted(listening)}")
    if not found:
        # The collection itself must not cry wolf either. What the broker ignores is what the validator is there for.
        if not _schema.validate(conf):
            found += [f"validator: {line}" for line in _validators.compare(conf, sections)]
        found += [f"drift: {line}" for line in _running.differences(conf, sections, read)]
    return found


def read_text(text: str) -> tuple[dict | None, str]:
    """(what the collection understands, "") or (None, why it refuses)."""
    try:
        return _hocon.parse(text, reader=read), ""
    except _hocon.ConfSyntaxError as error:
        return None, error.message


def ends(conf: dict, version: tuple[int, ...]) -> bool:
    """Whether the broker is known to crash at start."""
    try:
        meaning(conf, version)
    except Crash:
        return True
    return False
