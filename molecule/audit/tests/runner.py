# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Breaks a hardened host in one way after the other, and says what the audit finds: runner.py CODE < BREAKS > FOUND

Runs on the host, with the collection's own code, so that a hundred ways take minutes. CODE is where that lies.
BREAKS (JSON): {token, of_version: [rule], files: {path: text}, breaks: [{name, changes, script, undo, restart,
options, also, observed}]}, see breaks.py.
FOUND (JSON): {name: {findings: {rule: observed}, after: the same when it was undone, error}}.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

sys.path.insert(0, sys.argv[1])

from ansible_collections.edgesec.nanomq.plugins.module_utils import _hocon, _observe, _policy
from broken_configurations import changed

CONF = "/etc/nanomq/nanomq.conf"
ENVIRONMENT = dict(os.environ)
TRIES = 5


def sh(script: str) -> None:
    done = subprocess.run(
        ["bash", "-ec", script], capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT
    )
    if done.returncode:
        raise RuntimeError(f"{script}: {done.stdout}{done.stderr}")


def text_of(value: object) -> str:
    """A value of a configuration that says what it should not; the collection's own emitter would refuse it."""
    if isinstance(value, dict):
        return "{\n" + "".join(members(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(text_of(item) for item in value) + "]"
    return _hocon.quote(value) if isinstance(value, str) else json.dumps(value)


def members(block: dict) -> list[str]:
    names = {key: key if re.fullmatch("[a-z_]+", key) else _hocon.quote(key) for key in block}
    return [f"{names[key]} {'' if isinstance(value, dict) else '= '}{text_of(value)}\n" for key, value in block.items()]


def found(options: dict, done: Callable[[dict[str, bool]], bool]) -> dict[str, bool]:
    """What the audit finds. The real broker aborts now and then, and is back after a second: then it looks again."""
    options = {"unit": "nanomq.service", "package": "nanomq", **options}
    marks = _observe.CONTAINER_MARKS if options.pop("container", True) else ()
    offset = options.pop("clock", 0)
    for attempt in range(TRIES):
        if attempt:
            time.sleep(1)
        before, _observe.CONTAINER_MARKS = _observe.CONTAINER_MARKS, marks
        try:
            observation = _observe.observe(controller_time=time.time() - offset, **options)
        finally:
            _observe.CONTAINER_MARKS = before
        findings = {finding.id: finding.observed for finding in _policy.evaluate_host(observation)}
        if done(findings):
            break
    return findings


def settle() -> None:
    """Wait until the broker is up, or that it does not come up."""
    for _try in range(40):
        if subprocess.run("ss -ltnH | grep -q ':8[08]8[13] '", shell=True, check=False).returncode == 0:
            return
        time.sleep(0.1)


def as_meant(one: dict, findings: dict[str, bool]) -> bool:
    """Whether the rule is seen to be broken, and no other critical one: a login that is dropped misleads."""
    critical = {rule for rule, observed in findings.items() if observed and _policy.RULES[rule].severity == "critical"}
    return findings.get(one["rule"]) is one.get("observed", True) and critical <= {one["rule"], *one.get("also", [])}


def attempt(one: dict, conf_text: str, token: str, clean: dict[str, bool]) -> dict:
    before = os.stat(CONF)
    options = {**one.get("options", {})}
    if options.pop("token", False):
        options["token"] = token
    result: dict = {}
    try:
        if one.get("changes"):
            write("".join(members(changed(one["changes"], _hocon.parse(conf_text)))), before)
        if one.get("script"):
            sh(one["script"])
        if one.get("restart"):
            sh("systemctl restart nanomq")
            settle()
        result["findings"] = found(options, lambda findings: as_meant(one, findings))
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
    finally:
        write(conf_text, before)
        os.utime(CONF, ns=(before.st_atime_ns, before.st_mtime_ns))
        if one.get("undo"):
            sh(one["undo"])
        if one.get("restart") or one.get("restart_after"):
            sh("systemctl restart nanomq")
        if one.get("restart") or one.get("restart_after") or one.get("settle"):
            settle()
    if one.get("restart") or one.get("script"):
        result["after"] = found({}, lambda findings: findings == clean)
    return result


def write(text: str, like: os.stat_result) -> None:
    with open(CONF, "w", encoding="utf-8") as handle:
        handle.write(text)
    os.chown(CONF, like.st_uid, like.st_gid)
    os.chmod(CONF, like.st_mode & 0o7777)


def main() -> None:
    given = json.load(sys.stdin)
    ENVIRONMENT["TOKEN"] = given["token"]
    for path, text in given["files"].items():
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(path, "w", encoding="utf-8") as handle:
            handle.write(text)
        shutil.chown(path, "root", "nanomq")
        os.chmod(path, 0o640)
    with open(CONF, encoding="utf-8") as handle:
        conf_text = handle.read()
    clean = dict.fromkeys(given["of_version"], True)
    answer = {"clean": {"findings": found({"token": given["token"]}, lambda findings: findings == clean)}}
    for one in given["breaks"]:
        answer[one["name"]] = attempt(one, conf_text, given["token"], clean)
    json.dump(answer, sys.stdout)


main()
