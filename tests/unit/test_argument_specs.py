# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The argument specification of every role says what its defaults do."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible_collections.edgesec.nanomq as collection
import pytest
import yaml

ROLES = sorted(path for path in (pathlib.Path(collection.__path__[0]) / "roles").glob("*") if path.is_dir())
PREFIX = "nanomq_"
INTERNAL_PREFIX = "__nanomq_"


def load(path: pathlib.Path) -> dict[str, Any]:
    """The mapping in a YAML file, {} for one without content."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def differences(options: dict[str, dict[str, Any]], defaults: dict[str, Any]) -> list[str]:
    """What is said of a variable in one place and not, or not so, in the other; [] when both agree."""
    found = []
    for name in sorted(options.keys() | defaults.keys()):
        option = options.get(name)
        if option is None:
            found.append(f"{name}: in the defaults only")
        elif option.get("required"):
            if name in defaults:
                found.append(f"{name}: required, yet it has a default")
        elif "default" in option:
            if name not in defaults:
                found.append(f"{name}: in the specification only")
            elif not same(option["default"], defaults[name]):
                found.append(f"{name}: {option['default']!r} in the specification, {defaults[name]!r} in the defaults")
        # Optional and without a default: the variable is one that stays undefined, or null in the defaults.
        elif defaults.get(name) is not None:
            found.append(f"{name}: the specification lacks the default {defaults[name]!r}")
    return found


def same(one: Any, other: Any) -> bool:
    """Equality that tells true from 1, also inside lists and mappings."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_there_are_roles() -> None:
    assert ROLES


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
class TestRole:
    def test_specification_equals_defaults(self, role: pathlib.Path) -> None:
        specs = load(role / "meta" / "argument_specs.yml")["argument_specs"]
        # Every entry point reads the same defaults, and may document a part of them.
        options = {name: option for spec in specs.values() for name, option in spec.get("options", {}).items()}

        assert "main" in specs
        assert differences(options, load(role / "defaults" / "main.yml")) == []

    def test_names_carry_the_prefix(self, role: pathlib.Path) -> None:
        public = load(role / "defaults" / "main.yml").keys()
        internal = {name for path in role.glob("vars/*.yml") for name in load(path)}

        assert [name for name in public if not name.startswith(PREFIX)] == []
        assert [name for name in internal if not name.startswith(INTERNAL_PREFIX)] == []

    def test_every_variable_is_described(self, role: pathlib.Path) -> None:
        specs = load(role / "meta" / "argument_specs.yml")["argument_specs"]
        options = {name: option for spec in specs.values() for name, option in spec.get("options", {}).items()}

        assert [name for name, option in options.items() if not option.get("description")] == []


def test_shared_variables_have_one_default() -> None:
    """A name without its role's name is shared by roles, which must then agree on it."""
    seen: dict[str, tuple[str, Any]] = {}
    conflicts = []
    for role in ROLES:
        for name, value in load(role / "defaults" / "main.yml").items():
            if name.startswith(f"{role.name}_"):
                continue
            first, known = seen.setdefault(name, (role.name, value))
            if not same(known, value):
                conflicts.append(f"{name}: {known!r} in {first}, {value!r} in {role.name}")
            foreign = [other.name for other in ROLES if other != role and name.startswith(f"{other.name}_")]
            if foreign:
                conflicts.append(f"{name}: a default of {role.name} named after {foreign[0]}")
    assert conflicts == []


@pytest.mark.parametrize(
    ("options", "defaults"),
    [
        ({}, {"a": 1}),
        ({"a": {"default": 1}}, {}),
        ({"a": {"default": 1}}, {"a": 2}),
        ({"a": {"default": True}}, {"a": 1}),
        ({"a": {"default": [{"b": False}]}}, {"a": [{"b": 0}]}),
        ({"a": {}}, {"a": 1}),
        ({"a": {"required": True}}, {"a": 1}),
    ],
)
def test_a_difference_is_found(options: dict[str, dict[str, Any]], defaults: dict[str, Any]) -> None:
    assert differences(options, defaults)


@pytest.mark.parametrize(
    ("options", "defaults"),
    [
        ({"a": {"default": [{"b": False}]}}, {"a": [{"b": False}]}),
        ({"a": {}}, {}),
        ({"a": {}}, {"a": None}),
        ({"a": {"required": True}}, {}),
    ],
)
def test_agreement_is_no_difference(options: dict[str, dict[str, Any]], defaults: dict[str, Any]) -> None:
    assert differences(options, defaults) == []
