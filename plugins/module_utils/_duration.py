# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Durations as people write them: ``90s``, ``5m``, ``12h``, ``30d``, ``4w``, and joined ones such as ``1d12h``."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(?:[0-9]{1,10}[smhdw])+", re.ASCII)
_PART = re.compile(r"([0-9]+)([smhdw])", re.ASCII)
_SHARE = re.compile(r"([0-9]{1,2})%", re.ASCII)

#: Nothing here lives longer than a century; a bigger number is a slip, and would overflow a date.
MAXIMUM = 100 * 366 * 86400


def parse_duration(text: str) -> int:
    """Return the whole seconds of a duration, at least 1 and at most a century.

    A bare number is refused, since nobody can tell its unit. Raises ValueError.
    """
    if not isinstance(text, str) or not _DURATION.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is not a duration: write a number and a unit (s, m, h, d, w), such as 30d")
    parts = _PART.findall(text)
    if len({unit for _number, unit in parts}) != len(parts):
        raise ValueError(f"{text!r} is not a duration: a unit is given twice")
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in parts)
    if not 1 <= seconds <= MAXIMUM:
        raise ValueError(f"{text!r} is not a useful duration: it must be between one second and a century")
    return seconds


def parse_margin(text: str, lifetime: int) -> int:
    """Return the seconds that ``text`` stands for, as a time before the end of a ``lifetime`` (seconds).

    ``text`` is a duration (``30d``) or a share of the lifetime (``33%``, 1 to 99). Raises ValueError.
    """
    share = _SHARE.fullmatch(text.strip()) if isinstance(text, str) else None
    if share is None:
        try:
            return parse_duration(text)
        except ValueError as error:
            raise ValueError(f"{error}, or a share of the lifetime, such as 33%") from None
    percent = int(share.group(1))
    if percent == 0:
        raise ValueError("0% is not a margin: nothing would be renewed before it has expired")
    return lifetime * percent // 100
