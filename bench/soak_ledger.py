# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What became of each message that was acknowledged, and of each call with a token; and whether that may be.

All moments are seconds of one clock, CLOCK_MONOTONIC of the machine: clients and brokers share its kernel.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Iterable

#: Seconds in which a message reaches a subscriber that is there; what is younger when a connection ends was on the way.
DELIVERY = 1.0
#: Seconds by which a publisher on a busy machine may note an acknowledgement later than the broker sent it.
SLACK = 0.25
#: Seconds around a restart in which REST need not answer: systemd starts a broker that aborted after two.
RESTART = 5.0

# What NanoMQ is known to lose. Of what it owes to a session it hands over one message each `mqtt.retry_interval` (10 s)
# once the subscriber is back. Sessions and their queues are in its memory, so that a restart ends them.
AWAY = "published while the subscriber was away, and not handed over by the end"
AT_CUT = "on the way when the subscriber's connection broke, and not handed over by the end"
QUEUED = "owed to a subscriber when the broker restarted"
IN_FLIGHT = "on the way to a subscriber when the broker restarted"
FORGOTTEN = "published after a restart, before the subscriber was back"
UNEXPLAINED = "no known cause"
KNOWN = (AWAY, AT_CUT, QUEUED, IN_FLIGHT, FORGOTTEN)


@dataclasses.dataclass(frozen=True)
class Span:
    """From one moment to another: a restart of the broker, or a time in which a client was subscribed."""

    begin: float
    end: float

    def holds(self, moment: float, margin: float = 0.0) -> bool:
        return self.begin - margin <= moment <= self.end + margin


@dataclasses.dataclass
class Subscriber:
    """When it was subscribed, in order, each time from the SUBACK until the connection ended."""

    subscribed: list[Span]

    def at(self, moment: float) -> Span | None:
        """The time in which it was subscribed at a moment; None: it was away."""
        return next((span for span in self.subscribed if span.begin + SLACK < moment <= span.end), None)

    def back(self, moment: float) -> float:
        """When it was subscribed for the first time after a moment; infinity: never."""
        return next((span.begin for span in self.subscribed if span.begin > moment), float("inf"))


def cause(acknowledged: float, subscriber: Subscriber, restarts: list[Span]) -> str:
    """Why a message never came that was acknowledged at a moment. `restarts` are in order.

    What a subscriber did not get that was there, and stayed for as long as a message takes, has no known cause,
    whatever happened later.
    """
    before = next((restart for restart in reversed(restarts) if restart.begin < acknowledged), None)
    after = next((restart for restart in restarts if restart.begin >= acknowledged), None)
    if before and acknowledged <= subscriber.back(before.begin) + SLACK:
        return FORGOTTEN
    span = subscriber.at(acknowledged)
    if span and span.end - acknowledged >= DELIVERY:
        return UNEXPLAINED
    if span and after and abs(after.begin - span.end) < DELIVERY:
        return IN_FLIGHT
    if after:
        return QUEUED
    return AT_CUT if span else AWAY


@dataclasses.dataclass
class Ledger:
    """Deliveries are pairs of a message and a subscriber of it."""

    acknowledged: int = 0
    deliveries: int = 0
    received: int = 0
    lost: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    #: (subscriber, publisher, number, moment of the acknowledgement) of what has no known cause
    unexplained: list[tuple[str, str, int, float]] = dataclasses.field(default_factory=list)


def ledger(
    acknowledged: dict[str, list[float | None]],
    received: dict[str, dict[str, list[float | None]]],
    subscribers: dict[str, Subscriber],
    restarts: list[Span],
) -> Ledger:
    """Account for each message. `acknowledged[publisher][number]` is the moment of its PUBACK, None without one;
    `received[subscriber][publisher][number]` that of its first coming, in a list that ends with the last that came.
    """
    found = Ledger()
    for publisher, moments in acknowledged.items():
        for number, moment in enumerate(moments):
            if moment is None:
                continue
            found.acknowledged += 1
            for name, subscriber in subscribers.items():
                found.deliveries += 1
                came = received[name].get(publisher, [])
                if number < len(came) and came[number] is not None:
                    found.received += 1
                    continue
                why = cause(moment, subscriber, restarts)
                found.lost[why] += 1
                if why == UNEXPLAINED:
                    found.unexplained.append((name, publisher, number, moment))
    return found


# --- calls with tokens ------------------------------------------------------------------------------------------------

VALID, EXPIRED, FORGED = "valid", "expired", "forged"


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of REST: when it began and ended, what the token was, whose issuer it bears, the status (0: no answer)."""

    begin: float
    end: float
    kind: str
    issuer: str
    status: int


def expected(call: Call, issuers: tuple[str, str], rotation: Span, restarts: Iterable[Span]) -> str:
    """ "" if a call came to what it should, else what is wrong. `issuers`: before and after the rotation, which takes a
    time in which either may hold.

    Whoever must be refused, is; whatever else happens. Who must be let in may find nobody while the broker restarts.
    """
    old, new = issuers
    if call.kind in (EXPIRED, FORGED):
        wanted = (401,)
    elif call.begin > rotation.end:
        wanted = (200,) if call.issuer == new else (401,)
    elif call.end < rotation.begin:
        wanted = (200,) if call.issuer == old else (401,)
    else:
        wanted = (200, 401)
    if call.status in wanted:
        return ""
    if call.status == 200:
        return f"a token was let in: {call.kind}, of {call.issuer}"
    if call.status in (0, 502, 503, 504):
        if any(restart.holds(call.end, RESTART) for restart in restarts):
            return ""
        return "no answer, and no restart near"
    return f"status {call.status} for a token: {call.kind}, of {call.issuer}"


# --- the broker's restarts --------------------------------------------------------------------------------------------


def restarts(starts: list[float], ends: list[float], horizon: float) -> list[Span]:
    """Each end of the broker with the start that came after it, in order; `horizon` if none came."""
    starts = sorted(starts)
    found = []
    for end in sorted(ends):
        place = bisect.bisect_right(starts, end)
        found.append(Span(end, starts[place] if place < len(starts) else horizon))
    return found
