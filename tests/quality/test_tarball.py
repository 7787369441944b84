# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The tarball holds what a user runs, all of it and no more."""

from __future__ import annotations

import os
import pathlib
import tarfile

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTENT = ("changelogs", "docs", "meta", "playbooks", "plugins", "roles")
AT_THE_TOP = {"CHANGELOG.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md"}
LEFTOVERS = {"__pycache__", ".plugin-cache.yaml"}


@pytest.fixture(scope="module")
def members() -> set[str]:
    """Paths of the files in the tarball that `make build` made."""
    path = os.environ.get("EDGESEC_TARBALL")
    if not path:
        pytest.skip("EDGESEC_TARBALL names no tarball: run this by make unit")
    with tarfile.open(path) as tarball:
        return {member.name for member in tarball if not member.isdir()}


def test_every_file_a_user_needs_is_in_it(members: set[str]) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for folder in CONTENT
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not LEFTOVERS & set(path.parts)
    }
    assert wanted - members == set()


def test_nothing_else_is_in_it(members: set[str]) -> None:
    tops = {name for name in members if name.split("/")[0] not in CONTENT}
    assert tops == AT_THE_TOP
    assert {name for name in members if LEFTOVERS & set(name.split("/"))} == set()


def test_manifest_names_the_collection() -> None:
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    assert (galaxy["namespace"], galaxy["name"]) == ("edgesec", "nanomq")
    assert galaxy["dependencies"] == {}
