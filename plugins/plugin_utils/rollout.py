# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""A rollout in batches: how large they are, when it is to stop, and what became of each host.

Names of hosts and messages are a stranger's text here, as in the report of an audit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.plugin_utils.report import plain, visible

#: Characters of a cause; names in a line.
LONGEST_CAUSE = 400
MOST_NAMES = 20

# --- batches ----------------------------------------------------------------------------------------------------------


def batches(value: Any) -> list[int | str]:
    """`nanomq_rollout_batches` as the keyword `serial` takes it. ValueError names what is wrong.

    A text such as "1, 10%, 100%" is accepted beside a list, since a form of AWX gives text.
    """
    if isinstance(value, str):
        items: list[Any] = value.split(",")
    elif isinstance(value, Sequence):
        items = list(value)
    else:
        items = [value]
    sizes = [_batch(item) for item in items]
    if not sizes:
        raise ValueError(_complaint("it is empty"))
    return sizes


def _batch(item: Any) -> int | str:
    text = str(item).strip() if isinstance(item, (int, str)) and not isinstance(item, bool) else ""
    if match := re.fullmatch(r"0*([1-9][0-9]{0,8})(%?)", text, re.ASCII):
        number = int(match[1])
        if not match[2]:
            return number
        if number <= 100:
            return f"{number}%"
    raise ValueError(_complaint(f"{visible(plain(item))!r} is no size of a batch"))


def _complaint(what: str) -> str:
    return (
        f"nanomq_rollout_batches: {what}. Give numbers of hosts from 1 on, or percentages from 1% to 100%, "
        'for example [1, "10%", "100%"].'
    )


def percentage(value: Any) -> float:
    """`nanomq_rollout_max_fail_percentage` as a number. ValueError says what is wrong with it."""
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number <= 100:
        shown = visible(plain(value))
        raise ValueError(
            f"nanomq_rollout_max_fail_percentage: {shown!r} is no percentage. Give a number from 0 to 100."
        )
    return number


def ends(sizes: Sequence[int | str], hosts: int) -> list[int]:
    """How many hosts have had their turn after each batch. Ansible repeats the last size until none is left."""
    found, done, position = [], 0, 0
    while done < hosts:
        size = sizes[min(position, len(sizes) - 1)]
        number = int(int(size[:-1]) / 100.0 * hosts) or 1 if isinstance(size, str) else size
        done = min(done + number, hosts)
        found.append(done)
        position += 1
    return found


def stop(everybody: Sequence[str], going: Iterable[str], batch: Iterable[str], sizes: Any, tolerated: Any) -> str:
    """Why a rollout is not to go on with a batch; empty if it is. ValueError where the batches are not those declared.

    everybody: all hosts of the play, in their order
    going: those that have not failed and could be reached
    batch: those whose turn it is
    sizes, tolerated: nanomq_rollout_batches and nanomq_rollout_max_fail_percentage
    """
    limit = percentage(tolerated)
    position = {name: number for number, name in enumerate(everybody)}
    places = [position[name] for name in batch if name in position]
    turns = ends(batches(sizes), len(everybody))
    tried = max((end for end in turns if places and end <= min(places)), default=0)
    # A canary that is declared and not kept to would be worse than none.
    if places and max(places) >= min(end for end in turns if end > tried):
        raise ValueError(
            "nanomq_rollout_batches: the batches are not these. Ansible makes them before it asks the inventory for "
            "variables: give nanomq_rollout_batches with --extra-vars."
        )
    well = set(going)
    lost = [name for name in everybody[:tried] if name not in well]
    if not lost:
        return ""
    if tried == turns[0]:
        return (
            f"The rollout stops: of the first batch {names(lost)} failed or could not be reached. "
            f"The other {len(everybody) - tried} of {len(everybody)} hosts were not touched."
        )
    if len(lost) * 100 > limit * tried:
        return (
            f"The rollout stops: {len(lost)} of {tried} hosts failed or could not be reached, which is more than "
            f"nanomq_rollout_max_fail_percentage ({limit:g}): {names(lost)}. "
            f"The other {len(everybody) - tried} of {len(everybody)} hosts were not touched."
        )
    return ""


# --- texts ------------------------------------------------------------------------------------------------------------


def one_line(text: Any) -> str:
    """The first line of a message that says something, with nothing in it that a terminal obeys."""
    lines = (" ".join(line.split()) for line in plain(text).splitlines())
    line = visible(next(filter(None, lines), ""))
    return line if len(line) <= LONGEST_CAUSE else f"{line[:LONGEST_CAUSE]} ..."


def cause(result: Mapping[str, Any], task: str) -> str:
    """Why a task failed, and which. Nothing of a result that is not to be seen."""
    if "censored" in result:
        said = "the output of this task is hidden"
    else:
        # Of a loop the first item that failed says more than the loop itself.
        items = result.get("results")
        failed = [item for item in items if isinstance(item, Mapping) and item.get("failed")] if _listed(items) else []
        sources = [failed[0], result] if failed else [result]
        texts = [one_line(source.get(key) or "") for source in sources for key in ("msg", "reason")]
        said = next(filter(None, texts), "it is not said why")
        # A module that could not even begin, for want of space for instance, leaves a trace alone; its end says why.
        trace = one_line("\n".join(reversed(str(sources[0].get("module_stderr") or "").splitlines()[-9:])))
        said = f"{said}: {trace}" if trace else said
    return f"{said} [{one_line(task)}]"


def _listed(items: Any) -> bool:
    return isinstance(items, (list, tuple))


def names(hosts: Iterable[str]) -> str:
    """Names in one line, not all of them where there are many."""
    shown = [one_line(host) for host in hosts]
    more = f" and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    return ", ".join(shown[:MOST_NAMES]) + more


def duration(seconds: float) -> str:
    """A time as people say it."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# --- what became of each host -----------------------------------------------------------------------------------------

#: In the order of the summary: what a host may have come to, and how that reads.
OUTCOMES = {
    "changed": "changed",
    "unchanged": "unchanged",
    "undone": "undone",
    "failed": "failed",
    "unreachable": "unreachable",
    "cut short": "cut short",
    "not touched": "not touched",
}
#: Those that have a cause.
TROUBLED = ("undone", "failed", "unreachable")


class Ledger:
    """What the events of a run say of each host."""

    def __init__(self) -> None:
        self._hosts: dict[str, str] = {}
        self._causes: dict[str, str] = {}
        self._changed: set[str] = set()
        self._worked: set[str] = set()
        self._ended: list[Sequence[str]] = []

    def expect(self, hosts: Iterable[str]) -> None:
        """These hosts are meant; nothing has happened to them yet."""
        for host in hosts:
            self._hosts.setdefault(host, "")

    def watch(self, removed: Sequence[str]) -> None:
        """A list that Ansible keeps, of hosts that go on no more in a play."""
        self._ended.append(removed)

    def worked(self, host: str, *, changed: bool) -> None:
        """A task that is more than talk came to its end on a host."""
        self.expect([host])
        self._worked.add(host)
        if changed:
            self._changed.add(host)

    def lost(self, host: str, outcome: str, why: str) -> None:
        """A host failed. The first cause counts."""
        self.expect([host])
        if not self._hosts[host]:
            self._hosts[host], self._causes[host] = outcome, why

    def rescued(self, host: str) -> None:
        """What failed was dealt with in the play."""
        if self._hosts.get(host) in ("failed", "undone"):
            self._hosts[host] = ""
            del self._causes[host]
            self._worked.add(host)

    def troubled(self) -> list[str]:
        """Hosts that failed or could not be reached."""
        return [host for host, outcome in self._hosts.items() if outcome]

    def outcomes(self) -> dict[str, str]:
        """{host: what it came to}."""
        ended = {host for removed in self._ended for host in removed}
        return {host: outcome or self._quiet(host, ended) for host, outcome in self._hosts.items()}

    def _quiet(self, host: str, ended: set[str]) -> str:
        if host not in self._worked:
            return "not touched"
        if host in ended:
            return "cut short"
        return "changed" if host in self._changed else "unchanged"

    def why(self, host: str) -> str:
        return self._causes.get(host, "")

    def of(self, hosts: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
        """({outcome: those of these hosts}, a line with the counts and then one for each that failed)."""
        found = self.outcomes()
        groups: dict[str, list[str]] = {}
        for outcome in OUTCOMES:
            members = [host for host in hosts if found.get(host) == outcome]
            if members:
                groups[outcome] = members
        lines = [", ".join(f"{len(members)} {OUTCOMES[outcome]}" for outcome, members in groups.items())]
        for outcome in TROUBLED:
            lines += [f"  {one_line(host)}: {outcome}: {self.why(host)}" for host in groups.get(outcome, [])]
        return groups, lines

    def summary(self, seconds: float) -> list[str]:
        """The lines at the end of a run."""
        groups, (counts, *causes) = self.of(self._hosts)
        lines = [f"rollout: {_hosts(len(self._hosts))} in {duration(seconds)}: {counts or 'none'}"]
        for outcome, members in groups.items():
            if outcome not in TROUBLED:
                lines.append(f"  {OUTCOMES[outcome]}: {names(members)}")
        return lines + causes


def _hosts(number: int) -> str:
    return f"{number} host" if number == 1 else f"{number} hosts"
