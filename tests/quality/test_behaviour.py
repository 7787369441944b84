# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""docs/broker_behaviour.md cites versions, tests and rules: they exist."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy, _versions
from versions import BEHAVIOUR, TRIED, number

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/broker_behaviour.md").read_text(encoding="utf-8")
CONTRACT = ROOT / "tests/contract"


def functions(path: pathlib.Path) -> set[str]:
    """The tests of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_tests_that_are_cited_exist() -> None:
    cited = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(cited) > 50
    assert [f"{file}::{name}" for file, name in cited if name not in functions(CONTRACT / file)] == []


def test_the_programs_that_are_cited_exist() -> None:
    for name in set(re.findall(r"`(tests/fuzz/\w+)`", PAGE)):
        assert (ROOT / name).is_file(), name


def test_the_versions_that_are_cited_were_tried() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    cited = {version for row in rows for version in re.findall(r"\b0\.2\d\.\d+\b", row)}
    assert cited - {"0.25.4"} <= set(TRIED)
    assert set(TRIED) <= set(re.findall(r"\b0\.2\d\.\d+\b", PAGE))


def test_the_rules_that_are_cited_exist() -> None:
    cited = set(re.findall(r"\bNMQ-[A-Z]+-\d+\b", PAGE))
    assert cited
    assert cited <= set(_policy.RULES)


@pytest.mark.parametrize("name", BEHAVIOUR)
def test_a_behaviour_changed_at_a_version_that_was_tried_and_some_test_asks_for_it(name: str) -> None:
    one = BEHAVIOUR[name]
    assert {one.since, one.until} <= {*TRIED, ""}
    asked = [
        path.name for path in CONTRACT.glob("*.py") if path.name != "versions.py" and f'"{name}"' in path.read_text()
    ]
    assert asked, "no test asks for it"


def test_the_table_of_versions_covers_the_same_ones() -> None:
    seen = {version for one in _versions.RANGES for version in one.seen}
    assert seen == set(TRIED)
    assert sorted(TRIED, key=number) == list(TRIED)
