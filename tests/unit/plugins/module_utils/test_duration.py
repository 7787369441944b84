# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils._duration import MAXIMUM, parse_duration, parse_margin
from hypothesis import given
from hypothesis import strategies as st

UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}


@pytest.mark.parametrize(
    "text",
    ["", " ", "30", "d", "30 d", "-1d", "+1d", "1.5h", "30D", "1y", "1d1d", "1d-", "0s", "0d0h", "101w99999999d", "٣d"],
)
def test_what_is_no_duration_is_refused_by_name(text):
    with pytest.raises(ValueError, match=r"is not a (useful )?duration"):
        parse_duration(text)


@pytest.mark.parametrize("value", [None, 30, 30.0, True, ["30d"]])
def test_only_text_is_a_duration(value):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(value)


@given(st.dictionaries(st.sampled_from("wdhms"), st.integers(0, 99), min_size=1))
def test_units_add_up_in_any_order(parts):
    expected = sum(number * UNITS[unit] for unit, number in parts.items())
    text = "".join(f"{number}{unit}" for unit, number in parts.items())
    if expected:
        assert parse_duration(text) == expected
    else:
        with pytest.raises(ValueError, match="between one second"):
            parse_duration(text)


def test_a_century_is_the_most():
    assert parse_duration(f"{MAXIMUM}s") == MAXIMUM
    with pytest.raises(ValueError, match="a century"):
        parse_duration(f"{MAXIMUM + 1}s")


@pytest.mark.parametrize("text", ["0%", "100%", "-1%", "33 %", "33.3%", "%", "30"])
def test_what_is_no_margin_is_refused(text):
    with pytest.raises(ValueError, match=r"margin|share of the lifetime"):
        parse_margin(text, 1000)


@pytest.mark.parametrize(("text", "expected"), [("33%", 330), ("1%", 10), ("99%", 990), ("2m", 120)])
def test_a_margin_is_a_share_or_a_duration(text, expected):
    assert parse_margin(text, 1000) == expected
