# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules of the project that no linter knows."""

from __future__ import annotations

import pathlib
import re
import subprocess
import tempfile
from typing import Any

import pytest
import yaml
from task_lists import tasks

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = """\
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""

# As patterns, so that this file does not match itself.
FORBIDDEN = {
    "a package registry": r"(?i)pypi\.org|pythonhosted\.org|galaxy\.ansible\.com|docker\.io|quay\.io|ghcr\.io"
    r"|registry\.npmjs|deb\.debian\.org|testing\.ansible\.com",
    "a path of one machine": r"/Users/\w+|/home/(?!fleetadmin)\w+/\w+",
    "an e-mail address": r"\b[\w.+-]+@(?!(?:[\w-]+\.)*(?:example|test|invalid|localhost)\b|example\.(?:com|org|net)\b)"
    r"[\w-]+\.[a-z]{2,}\b",
}

# Modules and actions that run on the controller alone, and so cost no round trip in a loop.
LOCAL_ACTIONS = {
    "assert",
    "debug",
    "fail",
    "import_role",
    "import_tasks",
    "include_role",
    "include_tasks",
    "include_vars",
}
LOCAL_ACTIONS |= {"add_host", "group_by", "meta", "set_stats"}


def files(*patterns: str) -> list[pathlib.Path]:
    """Files of the project, those git ignores left out, that match one of the patterns (all without any).

    An empty repository does the listing: the project may be an unpacked archive, or a checkout of another user.
    """
    with tempfile.TemporaryDirectory() as empty:
        subprocess.run(["git", "init", "--quiet", "--bare", empty], check=True)
        git = ["git", f"--git-dir={empty}", f"--work-tree={ROOT}", "ls-files", "-z", "--others", "--exclude-standard"]
        listing = subprocess.run([*git, *patterns], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in sorted(set(listing.split("\0")) - {""}) if (path := ROOT / name).is_file()]


def loops_on_the_host(task: dict[str, Any]) -> bool:
    """Whether a task repeats a remote run."""
    if not any(key == "loop" or key.startswith("with_") for key in task):
        return False
    if task.get("delegate_to") in ("localhost", "127.0.0.1"):
        return False
    return not any(key.rpartition(".")[2] in LOCAL_ACTIONS for key in task)


def sets_facts(task: dict[str, Any]) -> bool:
    """Whether a task sets facts, which outlive the role and whose loops and names nobody checks."""
    return any(key in ("set_fact", "ansible.builtin.set_fact") for key in task)


def offenders(check: Any) -> list[str]:
    """The tasks of all roles for which `check` holds, as `file: name`."""
    return [
        f"{path.relative_to(ROOT)}: {task.get('name', '(no name)')}"
        for path in files("roles/*.yml")
        if path.parent.name in ("tasks", "handlers")
        for task in tasks(yaml.safe_load(path.read_text(encoding="utf-8")))
        if check(task)
    ]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_tree_names_no(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in files()
        if path.name != "LICENSE"
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a package registry", "https://" + "pypi" + ".org/simple"),
        ("a path of one machine", "/home/" + "somebody/galaxy.yml"),
        ("an e-mail address", "jane" + "@" + "corp.com"),
    ],
)
def test_forbidden_is_found(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)


@pytest.mark.parametrize("line", ["admin@broker.example.com", "root@localhost", "nanomq@.service", "(@edgesec)"])
def test_harmless_address_is_not_found(line: str) -> None:
    assert not re.search(FORBIDDEN["an e-mail address"], line)


@pytest.mark.parametrize("path", files("plugins/*.py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_plugin_begins_with_the_header(path: pathlib.Path) -> None:
    text = re.sub(r"\A#!.*\n", "", path.read_text(encoding="utf-8"))
    text = re.sub(r"\A# -\*- coding.*\n", "", text)
    assert text.startswith(HEADER)
    assert re.search(r"^from __future__ import annotations$", text, re.MULTILINE)


def test_roles_set_no_facts() -> None:
    assert offenders(sets_facts) == []


def test_roles_loop_over_no_remote_task() -> None:
    assert offenders(loops_on_the_host) == []


def test_names_in_roles_carry_the_prefix() -> None:
    def unprefixed(task: dict[str, Any]) -> bool:
        names = {*task.get("vars", {}), *filter(None, [task.get("register")])}
        return any(not re.match(r"(__)?nanomq_|ansible_", name) for name in names)

    assert offenders(unprefixed) == []


TASKS_THAT_OFFEND = """
- block:
    - name: Fact
      ansible.builtin.set_fact:
        a: 1
  rescue:
    - name: Loop
      ansible.builtin.copy: {src: a, dest: "{{ item }}"}
      loop: [1, 2]
- name: Old loop
  ansible.builtin.command: "true"
  with_items: [1]
- name: On the controller
  ansible.builtin.assert: {that: true}
  loop: [1]
- name: Delegated
  ansible.builtin.copy: {src: a, dest: "{{ item }}"}
  delegate_to: localhost
  loop: [1]
"""


def test_offending_tasks_are_found() -> None:
    every = list(tasks(yaml.safe_load(TASKS_THAT_OFFEND)))
    assert [task["name"] for task in every if sets_facts(task)] == ["Fact"]
    assert [task["name"] for task in every if loops_on_the_host(task)] == ["Loop", "Old loop"]


def test_requirements_are_pinned_once() -> None:
    lines = [
        line
        for path in files("requirements/*.txt")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith(("#", "-r "))
    ]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9-]+==[0-9][\w.]*", line)] == []
    names = [line.partition("==")[0].lower() for line in lines]
    assert sorted(names) == sorted(set(names))


def test_scripts_are_executable() -> None:
    scripts = [path for path in files() if path.read_bytes()[:2] == b"#!" and "plugins" not in path.parts]
    assert scripts
    assert [str(path.relative_to(ROOT)) for path in scripts if not path.stat().st_mode & 0o111] == []
