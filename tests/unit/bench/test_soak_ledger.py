# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the soak of bench/ makes of a message that did not come, and of a call of REST."""

from __future__ import annotations

import pytest
import soak_ledger
from hypothesis import given
from hypothesis import strategies as st
from soak_ledger import (
    AT_CUT,
    AWAY,
    EXPIRED,
    FORGED,
    FORGOTTEN,
    IN_FLIGHT,
    QUEUED,
    UNEXPLAINED,
    VALID,
    Call,
    Span,
    Subscriber,
    cause,
    expected,
    ledger,
)

#: There from 0 to 100, from 110 to 200, where the broker restarts, and from 203 on.
SUBSCRIBER = Subscriber([Span(0.0, 100.0), Span(110.0, 200.0), Span(203.0, 300.0)])
RESTARTS = [Span(200.0, 201.0)]


@pytest.mark.parametrize(
    ("moment", "why"),
    [
        (50.0, UNEXPLAINED),
        (98.9, UNEXPLAINED),
        (99.5, QUEUED),
        (105.0, QUEUED),
        (110.0, QUEUED),
        (110.2, QUEUED),
        (110.3, UNEXPLAINED),
        (198.0, UNEXPLAINED),
        (199.5, IN_FLIGHT),
        (200.5, FORGOTTEN),
        (202.9, FORGOTTEN),
        (203.2, FORGOTTEN),
        (203.3, UNEXPLAINED),
        (298.0, UNEXPLAINED),
    ],
)
def test_a_loss_has_the_cause_of_its_moment(moment, why):
    assert cause(moment, SUBSCRIBER, RESTARTS) == why


@pytest.mark.parametrize(("moment", "why"), [(50.0, UNEXPLAINED), (99.5, AT_CUT), (105.0, AWAY), (150.0, UNEXPLAINED)])
def test_without_a_restart_only_a_subscriber_that_is_away_explains_a_loss(moment, why):
    assert cause(moment, SUBSCRIBER, []) == why


@given(
    st.lists(st.floats(0, 1000), min_size=2, max_size=20, unique=True),
    st.lists(st.floats(0, 1000), max_size=6, unique=True),
    st.floats(0, 1000),
)
def test_who_was_there_and_stayed_is_never_explained_away(edges, ends, moment):
    """Unless the broker has restarted, and this is the message's first time since."""
    edges = sorted(edges)
    subscriber = Subscriber([Span(begin, end) for begin, end in zip(edges[::2], edges[1::2])])
    restarts = [Span(end, end + 0.1) for end in sorted(ends)]
    span = subscriber.at(moment)
    why = cause(moment, subscriber, restarts)
    if span and moment + soak_ledger.DELIVERY <= span.end and not any(span.begin <= end < moment for end in ends):
        assert why == UNEXPLAINED
    if why == UNEXPLAINED:
        assert span is not None


def test_every_message_is_accounted_for_once_for_each_subscriber():
    found = ledger(
        {"p": [10.0, 20.0, None, 105.0, 30.0]},
        {"s": {"p": [10.1, None, 15.0]}, "t": {}},
        {"s": SUBSCRIBER, "t": Subscriber([])},
        [],
    )
    assert (found.acknowledged, found.deliveries, found.received) == (4, 8, 1)
    assert found.received + found.lost.total() == found.deliveries
    assert found.lost == {UNEXPLAINED: 2, AWAY: 5}
    assert found.unexplained == [("s", "p", 1, 20.0), ("s", "p", 4, 30.0)]


def test_an_end_of_the_broker_belongs_to_the_start_after_it():
    assert soak_ledger.restarts([1.0, 21.0], [20.0, 30.0], 99.0) == [Span(20.0, 21.0), Span(30.0, 99.0)]


ISSUERS = ("old", "new")
ROTATION = Span(100.0, 120.0)


@pytest.mark.parametrize(
    ("call", "right"),
    [
        (Call(10, 11, VALID, "old", 200), True),
        (Call(10, 11, VALID, "old", 401), False),
        (Call(10, 11, VALID, "new", 200), False),
        (Call(105, 106, VALID, "old", 200), True),
        (Call(105, 106, VALID, "new", 401), True),
        (Call(130, 131, VALID, "new", 200), True),
        (Call(130, 131, VALID, "old", 401), True),
        (Call(130, 131, VALID, "old", 200), False),
        (Call(10, 11, EXPIRED, "old", 401), True),
        (Call(10, 11, EXPIRED, "old", 200), False),
        (Call(105, 106, FORGED, "new", 200), False),
        (Call(10, 11, VALID, "old", 502), False),
        (Call(201, 202, VALID, "new", 502), True),
        (Call(201, 202, EXPIRED, "new", 0), True),
        (Call(201, 202, FORGED, "new", 200), False),
        (Call(201, 202, VALID, "new", 403), False),
    ],
)
def test_what_a_call_must_come_to(call, right):
    assert (expected(call, ISSUERS, ROTATION, RESTARTS) == "") is right
