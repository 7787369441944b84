# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Surveys of AWX, made from the argument specifications of the roles; and what is wrong with the answers to one.

A question names a variable. Type, choices, default and description are what the role that has it says, so that no
survey can ask for what no role takes.
"""

from __future__ import annotations

import datetime
import difflib
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

ROLES = pathlib.Path(__file__).resolve().parents[2] / "roles"

#: What a question may hold; see the data of the role nanomq_awx.
KEYS = {"variable", "question", "required", "min", "max", "pattern", "option"}

#: Stands for a variable that nobody has set: the role has a default for it.
UNANSWERED = "(no answer)"

#: Names that AWX has for what a question asks for.
NUMBER, TEXT, ONE, SOME = "integer", "text", "multiplechoice", "multiselect"


class SurveyError(ValueError):
    """A question that no survey can ask."""


@functools.cache
def options() -> dict[str, dict[str, Any]]:
    """{variable: its specification} of all roles. Where a variable is of several entry points, `main` counts."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(ROLES.glob("*/meta/argument_specs.yml")):
        specs = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
        for entry_point in sorted(specs, key=lambda name: name == "main"):
            found.update(specs[entry_point].get("options", {}))
    return found


def option(question: Mapping[str, Any]) -> Mapping[str, Any]:
    """The specification of the variable that a question asks for. Raises SurveyError."""
    variable = question.get("variable", "")
    unknown = sorted(set(question) - KEYS)
    if unknown:
        raise SurveyError(f"{variable}: a question has no {', '.join(unknown)}; it has {', '.join(sorted(KEYS))}")
    if not question.get("question"):
        raise SurveyError(f"{variable}: question is missing")
    known = options().get(variable)
    if "option" in question:
        if known is not None:
            raise SurveyError(f"{variable}: option is for variables of plays, and a role has this one")
        return question["option"]
    if known is None:
        near = difflib.get_close_matches(variable, options(), 1)
        raise SurveyError(f"{variable}: no role has this variable" + (f"; {near[0]}?" if near else ""))
    return known


def kind(question: Mapping[str, Any]) -> str:
    """What AWX calls the type of a question. Raises SurveyError for what a form cannot fill."""
    spec = option(question)
    given = spec.get("type", "str")
    if given == "bool" or (given == "str" and spec.get("choices")):
        return ONE
    if given == "list" and spec.get("elements") == "str" and spec.get("choices"):
        return SOME
    if given == "int":
        return NUMBER
    if given in ("str", "path") or (given == "list" and spec.get("elements") == "str"):
        # A list is written with commas: a form has no other way, and the roles take that as well.
        if "pattern" not in question:
            raise SurveyError(f"{question['variable']}: a text needs a pattern, or anything would pass")
        return TEXT
    raise SurveyError(f"{question['variable']} is of type {given}, which no form can fill; a text or a choice can")


def choices(question: Mapping[str, Any]) -> list[str]:
    """What there is to choose from; the empty text, which says nothing, is left out."""
    spec = option(question)
    if spec.get("type") == "bool":
        return ["true", "false"]
    return [str(choice) for choice in spec.get("choices", []) if choice != ""]


def survey(questions: Sequence[Mapping[str, Any]], name: str = "") -> dict[str, Any]:
    """The survey as AWX takes it. Raises SurveyError, which names the variable."""
    return {"name": name, "description": "", "spec": [_element(question) for question in questions]}


def _element(question: Mapping[str, Any]) -> dict[str, Any]:
    spec, asked = option(question), kind(question)
    required, default = bool(question.get("required")), spec.get("default")
    if not required and default not in ("", None, []):
        raise SurveyError(
            f"{question['variable']}: AWX sends an empty text where an optional question is left out, and the default"
            f" is {default!r}: make it required"
        )
    element = {
        "variable": question["variable"],
        "question_name": question["question"],
        "question_description": _plain(spec.get("description", "")),
        "type": asked,
        "required": required,
        "min": question.get("min"),
        "max": question.get("max"),
    }
    if asked in (ONE, SOME):
        # In lines, which every version of AWX takes.
        element["choices"] = "\n".join(choices(question))
    if default not in ("", None, []):
        element["default"] = _default(default)
    return element


def _default(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "\n".join(value)
    return value


def _plain(description: str | list[str]) -> str:
    """A description without the markup of Ansible's documentation."""
    text = description if isinstance(description, str) else " ".join(description)
    return re.sub(r"\b[A-Z]\(([^()]*)\)", r"\1", text)


def problems(answers: Mapping[str, Any], questions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the answers, a line each, by the names of the variables. Raises SurveyError."""
    found = []
    for question in questions:
        value = answers[question["variable"]]
        wanted = "" if value == UNANSWERED else _wanted(question, value)
        if wanted:
            found.append(f"{question['variable']} is {value!r}, and must be {wanted}")
    return found


def _wanted(question: Mapping[str, Any], value: Any) -> str:
    """What the answer should be, or "" if that is what it is."""
    asked = kind(question)
    if value in ("", None, []):
        return "answered" if question.get("required") else ""
    least, most = question.get("min"), question.get("max")
    if asked == NUMBER:
        number = isinstance(value, int) and not isinstance(value, bool)
        if not number and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value, re.ASCII):
            number, value = True, int(value)
        return "" if number and _within(value, least, most) else f"a whole number{_range(least, most)}"
    if asked == ONE:
        given = str(value).lower() if isinstance(value, bool) else value
        return "" if given in choices(question) else f"one of {', '.join(choices(question))}"
    if asked == SOME:
        good = isinstance(value, list) and all(item in choices(question) for item in value)
        return "" if good else f"a list of some of {', '.join(choices(question))}"
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # what AWX writes as text reads like a number
    if isinstance(value, datetime.date):
        value = str(value)  # or like a time, although it is quoted
    if not isinstance(value, str) or not _within(len(value), least, most):
        return f"a text of a length{_range(least, most)}"
    return "" if re.fullmatch(question["pattern"], value, re.ASCII) else f"a text like {question['pattern']}"


def _within(number: int, least: int | None, most: int | None) -> bool:
    return (least is None or number >= least) and (most is None or number <= most)


def _range(least: int | None, most: int | None) -> str:
    return (f" from {least}" if least is not None else "") + (f" up to {most}" if most is not None else "")
