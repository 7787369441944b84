# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What the collection does on which version of the broker, and the weaknesses that are known of them.

This is the one table. The policy's rules about versions ask it, and docs/versions.md is made from it.
"""

from __future__ import annotations

import dataclasses

from ansible_collections.edgesec.nanomq.plugins.module_utils._schema import version_tuple

SUPPORTED, WITH_FINDINGS, REFUSED = "supported", "supported with findings", "refused"


@dataclasses.dataclass(frozen=True)
class Range:
    """Versions from `since` on and below `below` (empty: no end).

    state: supported, supported with findings, or refused: a deployment stops before anything has changed
    seen: those on which the contract, the validator and the policy were run
    """

    since: str
    below: str
    state: str
    why: str
    seen: tuple = ()

    def holds(self, version: tuple) -> bool:
        return version_tuple(self.since) <= version and (not self.below or version < version_tuple(self.below))


RANGES = (
    Range(
        "0",
        "0.24.4",
        REFUSED,
        "a configuration that it cannot parse, such as one cut short, opens it to everybody on 0.0.0.0:1883; before "
        "0.23.1 REST listens on every address whatever ip_addr says",
        ("0.22.10", "0.23.1"),
    ),
    Range(
        "0.24.4",
        "0.25.5",
        WITH_FINDINGS,
        "it has known weaknesses, and a reload ends it (0.24.4) or leaves the old topic rules in force",
        ("0.24.4", "0.24.14", "0.25.3"),
    ),
    Range(
        "0.25.5",
        "0.25.6",
        REFUSED,
        "a client that sends no user ends the broker, and so does a reload (issue 2417)",
    ),
    Range("0.25.6", "", SUPPORTED, "its traps are known and guarded", ("0.25.6",)),
)

#: The least that can be hardened.
FLOOR = RANGES[0].below
#: The one that this collection was tried on most.
RECOMMENDED = RANGES[-1].since


def range_of(version: tuple) -> Range:
    """The range that a version, as numbers, falls into."""
    return next(one for one in RANGES if one.holds(version))


@dataclasses.dataclass(frozen=True)
class Advisory:
    """A known weakness: versions from `since` on and below `below` have it (empty: no version without it is known)."""

    id: str
    since: str
    below: str
    title: str

    def concerns(self, version: tuple) -> bool:
        return version_tuple(self.since) <= version and (not self.below or version < version_tuple(self.below))


#: Not among the others, since what the configuration says decides who can do it; the policy has a rule for it.
LOGINS = Advisory(
    "trials: logins by TLS",
    "0.25.3",
    "",
    "quick logins by TLS, above all refused ones, end the broker: the parameters of a connection are used after they "
    "were freed",
)

ADVISORIES = (
    Advisory("CVE-2025-59946", "0", "0.24.4", "use after free (GHSA-xg37-23w7-72p5)"),
    Advisory("CVE-2026-21888", "0", "0.24.7", "read out of bounds by a variable-length integer (GHSA-cggc-6m7w-j7x5)"),
    Advisory("CVE-2026-22040", "0", "0.24.7", "heap corruption; seen in 0.24.6, no fixed version is named"),
    Advisory("CVE-2026-32696", "0", "0.24.7", "null pointer in http_auth ends the broker"),
    Advisory("CVE-2026-25627", "0", "0.24.8", "read out of bounds by a WebSocket frame"),
    Advisory("issue 2270", "0", "0.24.11", "heap overflow by a truncated PUBLISH; seen in 0.24.10"),
    Advisory("trials: reload", "0", "0.24.14", "`nanomq reload` ends the broker; seen in 0.22.10 and 0.24.4"),
    Advisory("issue 2341", "0", "0.24.15", "parameters injected into http_auth requests; seen in 0.24.14"),
    Advisory("issue 2247", "0.24.1", "0.25.3", "REST call that reads any file, and overflows the heap"),
    Advisory("issue 2373", "0", "0.25.6", "a reload says it succeeded and leaves the old ACL in force"),
)
