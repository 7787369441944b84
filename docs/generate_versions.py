# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Writes versions.md, what is done on which version of the broker, beside itself. The collection must be importable."""

from __future__ import annotations

import pathlib

from ansible_collections.edgesec.nanomq.plugins.module_utils import _schema, _versions

HEAD = """\
# Versions of NanoMQ

What the collection does with a broker of a version. *Refused*: a deployment ends on the controller with a critical
finding, before anything has changed, unless a waiver says otherwise. *Supported with findings*: it goes through, and
every run and every audit names what the version is known for. On the versions under *run on* the broker's contract
(`tests/contract`), the validator of a deployment and the policy were run, and on those that are not refused all
scenarios (`molecule/`) as well; the release 0.25.3 calls itself 0.25.4.

This page is made from the code by `python3 docs/generate_versions.py`.
"""


def page() -> str:
    """The page."""
    parts = [HEAD, "| from | below | what is done | why | run on |", "| --- | --- | --- | --- | --- |"]
    for one in _versions.RANGES:
        since = "" if one.since == "0" else one.since
        seen = ", ".join(one.seen) or "none: it is no longer to be had"
        parts.append(f"| {since} | {one.below} | {one.state} | {one.why} | {seen} |")
    parts += ["\n## Known weaknesses\n", "| | from | below | |", "| --- | --- | --- | --- |"]
    for advisory in _versions.ADVISORIES:
        since = "" if advisory.since == "0" else advisory.since
        parts.append(f"| {advisory.id} | {since} | {advisory.below} | {advisory.title} |")
    parts += [
        "\n## Keys that came later\n",
        "An older broker ignores such a key in silence, so it is refused where the version is known.\n",
        "| key | from |",
        "| --- | --- |",
    ]
    floor = _schema.version_tuple(_versions.FLOOR)
    later = [key for key in _schema.KEYS if key.since and _schema.version_tuple(key.since) > floor]
    parts += [f"| `{key.path}` | {key.since} |" for key in later]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    pathlib.Path(__file__).with_name("versions.md").write_text(page(), encoding="utf-8")
