# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one table of versions: without gaps, and the same in code, policy and documentation."""

from __future__ import annotations

import importlib.util
import itertools
import pathlib

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy, _schema, _versions
from broken_configurations import CLEAN
from hypothesis import given
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parents[4]


def findings(version: str) -> set[str]:
    context = {"firewall": True}
    return {finding.id for finding in _policy.evaluate_config(CLEAN, version=version, context=context)}


def test_the_ranges_follow_each_other_without_a_gap():
    ranges = _versions.RANGES
    assert ranges[0].since == "0"
    assert ranges[-1].below == ""
    for one, other in itertools.pairwise(ranges):
        assert one.below == other.since


@given(st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 40)))
def test_every_version_falls_into_one_range(version):
    assert sum(one.holds(version) for one in _versions.RANGES) == 1
    assert _versions.range_of(version).holds(version)


@pytest.mark.parametrize("one", _versions.RANGES, ids=lambda one: one.since)
def test_what_a_version_was_run_on_lies_in_its_range(one):
    for version in one.seen:
        assert one.holds(_schema.version_tuple(version))


@pytest.mark.parametrize(
    ("version", "state", "rules"),
    [
        ("0.22.10", _versions.REFUSED, {"NMQ-VER-001", "NMQ-VER-003", "NMQ-VER-004"}),
        ("0.23.1", _versions.REFUSED, {"NMQ-VER-001", "NMQ-VER-003", "NMQ-VER-004"}),
        ("0.24.4", _versions.WITH_FINDINGS, {"NMQ-VER-003", "NMQ-VER-004"}),
        ("0.24.14-2", _versions.WITH_FINDINGS, {"NMQ-VER-003", "NMQ-VER-004"}),
        ("0.25.4", _versions.WITH_FINDINGS, {"NMQ-VER-003", "NMQ-VER-004"}),
        ("0.25.5", _versions.REFUSED, {"NMQ-VER-002", "NMQ-VER-003", "NMQ-VER-004"}),
    ],
)
def test_the_policy_says_what_the_table_says(version, state, rules):
    assert _versions.range_of(_schema.version_tuple(version)).state == state
    assert findings(version) == rules


@pytest.mark.parametrize("version", ["0.25.6", "0.25.6-8", "0.26.0", "1.0"])
def test_a_supported_version_is_not_refused(version):
    assert _versions.range_of(_schema.version_tuple(version)).state == _versions.SUPPORTED
    assert not findings(version) & {"NMQ-VER-001", "NMQ-VER-002", "NMQ-VER-004"}


def test_the_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("generate_versions", ROOT / "docs/generate_versions.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (ROOT / "docs/versions.md").read_text() == generator.page(), "run docs/generate_versions.py"
