"""What changed from version to version of the broker: the suite asserts of each version what that version does.

A behaviour is in force from `since` on, and until `until`, which no longer has it. `seen` names the versions on which
it was looked at, with and without; between two of them the change may be anywhere. The words of `before` say what the
others do, and the tests assert that too. docs/broker_behaviour.md cites this table.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The versions on which the suite was run, as their releases are called. The release 0.25.3 calls itself 0.25.4.
TRIED = ("0.22.10", "0.23.1", "0.24.4", "0.24.14", "0.25.3", "0.25.6")


@dataclass(frozen=True)
class Behaviour:
    """One behaviour: since when, until when, and what the versions without it do."""

    since: str
    before: str
    until: str = ""

    def holds(self, version: tuple[int, ...]) -> bool:
        return number(self.since) <= version and (not self.until or version < number(self.until))


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


BEHAVIOUR = {
    "ip_addr is read": Behaviour("0.23.1", "REST listens on 0.0.0.0 whatever ip_addr says"),
    "the file beside the program is read": Behaviour("0.24.4", "/etc/nanomq.conf or, without one, open defaults"),
    "a syntax error ends the start": Behaviour("0.24.4", "it starts with open defaults, 0.0.0.0:1883 for everybody"),
    "TLS brings a websocket": Behaviour("0.24.4", "listeners.wss opens nothing, with or without an address"),
    "listeners.ssl.enable is heeded": Behaviour("0.24.14", "the listener is opened whatever enable says"),
    "bridges.enable is heeded": Behaviour("0.24.4", "a bridge is on whatever enable says"),
    "a bridge verifies the chain": Behaviour(
        "0.22.10", "it takes any certificate, once it has a block ssl", until="0.24.14"
    ),
    "NNG bridges": Behaviour("0.24.14", "bridges.nng is not read"),
    "max_body is read": Behaviour("0.24.4", "a body of any size is taken"),
    "max_mqueue_len is 1024": Behaviour("0.24.14", "20480 unless the file says otherwise"),
    "the version is logged at warn": Behaviour("0.24.4", "nothing is logged at warn"),
    "an unknown option ends in exit code 1": Behaviour("0.24.4", "in SIGABRT"),
    "anonymous clients need users to be shut out": Behaviour(
        "0.22.10", "without a list of users allow_anonymous = false shuts nobody out", until="0.24.4"
    ),
    "password.enable is heeded": Behaviour("0.24.4", "the list counts whatever enable says"),
    "a refusal closes without a word": Behaviour("0.25.3", "a CONNACK with a code comes first"),
    "${clientid} expands in rules": Behaviour("0.24.4", "it stands for itself, so that the rule never matches"),
    "@ marks a literal topic in rules": Behaviour("0.24.4", "it is a sign like others"),
    "acl.enable is heeded": Behaviour("0.24.4", "the rules count whatever enable says"),
    "reload works": Behaviour("0.24.14", "it ends the broker (0.22.10, 0.24.4), or does not find it (0.23.1)"),
    "reload takes rules over": Behaviour("0.25.6", "it says it succeeded, and the old rules stay"),
    "REST publishes without a clientid": Behaviour("0.24.4", "code 108"),
    "users can be replaced through REST": Behaviour("0.24.4", "code 0, and the old ones stay"),
    "a user called login ends the broker": Behaviour("0.24.4", "code 0"),
    "a bad config_update ends the broker": Behaviour("0.24.4", "status 400"),
    "commands do not find the broker": Behaviour("0.23.1", "they do, by its pid file", until="0.24.4"),
    "GET get_file": Behaviour("0.24.4", "no such call", until="0.24.14"),
    "auth_http.cache_ttl is shown": Behaviour("0.24.14", "it is not"),
}
