# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What a packet filter does with a new connection, read from the kernel's rules, whoever wrote them.

The matches of iptables that nft has none for (``xt``) are nameless in JSON; nft's text translates them. ufw is made of
them. Sources: nft(8), libnftables-json(5), iptables-extensions(8).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TABLE = re.compile(r"table (\w+) (\S+) \{")
_RULE = re.compile(r"\s+(.*) # handle (\d+)\Z")
#: What nft's text says of matches of iptables, and whether it holds for a new connection to an address of the host.
_TRANSLATED = (
    (re.compile(r"\bct state ([\w,]+)"), lambda found: "new" in found.split(",")),
    (re.compile(r"\bct status (\w+)"), lambda found: False),
    (re.compile(r"\bfib daddr type (\w+)"), lambda found: found == "local"),
    (re.compile(r"\b(?:icmp|icmpv6) type (\S+)"), lambda found: False),
    (re.compile(r"\brt type (\S+)"), lambda found: False),
)


def translated(items: list[dict]) -> bool:
    """Whether a ruleset holds matches of iptables, for which the text is needed as well."""
    return any("xt" in expression for item in items for expression in item.get("rule", {}).get("expr", []))


def texts(listing: str) -> dict[tuple, str]:
    """{(family, table, handle): text of the rule} of ``nft -a list ruleset``."""
    found, family, table = {}, "", ""
    for line in listing.splitlines():
        header, rule = _TABLE.match(line), _RULE.match(line)
        if header:
            family, table = header.groups()
        elif rule:
            found[(family, table, int(rule.group(2)))] = rule.group(1)
    return found


def verdict(items: list[dict], port: int, family: str, wording: dict[tuple, str] | None = None) -> str:
    """What a ruleset (the list of ``nft -j list ruleset``) does with a new TCP connection from another host.

    family: ip or ip6; wording: see `texts`

    Returns accepted, dropped, or depends where it turns on an address or the like.
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
            said = (wording or {}).get((rule["family"], rule["table"], rule.get("handle")), "")
            chains[key]["rules"].append(_with_wording(rule["expr"], said))
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


def _with_wording(expressions: list[dict], said: str) -> list[dict]:
    """The expressions of a rule with what its text says in the place of the matches of iptables."""
    matches = [one for one in expressions if one.get("xt", {}).get("type") == "match"]
    known = [holds(found) for pattern, holds in _TRANSLATED for found in pattern.findall(said)]
    if not matches:
        return [{"reject": None} if one.get("xt", {}).get("name") == "REJECT" else one for one in expressions]
    # One that does not hold decides; all hold only if there is a word for each.
    held = False if False in known else True if len(known) >= len(matches) else None
    rest = [one for one in expressions if one not in matches]
    return [{"known": held}, *_with_wording(rest, "")]


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
        elif kind == "known":
            if body is False:
                return [None], False
            sure = sure and body is True
        elif kind == "xt" and body.get("name") == "LOG":
            continue
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
        ("ct", "status"): "",  # neither dnat nor anything else has been done to it
    }
    if (where, key) in known:
        return _holds(right, known[(where, key)])
    if where == "fib":
        return _routed(what, right)
    if where != "payload":
        return None
    protocol = what.get("protocol")
    if protocol in ("tcp", "th") and what.get("field") == "dport":
        return _holds(right, port)
    # A match on another protocol's header is one that the packet does not have.
    return False if protocol in {"udp", "icmp", "icmpv6", "igmp", "ip", "ip6"} - {family} else None


def _routed(what: dict, right: Any) -> bool | None:
    """What the routing table says: the packet is for this host, and its sender is reached by where it came from."""
    if what.get("result") == "type" and what.get("flags") == ["daddr"]:
        return _holds(right, "local")
    if what.get("result") == "oif" and "saddr" in what.get("flags", []):
        return right is not False  # false stands for missing
    return None


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
