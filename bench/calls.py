# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How bench/run calls the subjects."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path

import yaml
from subjects import Subject
from testbed import CACHE, HERE, PROJECT, BenchError, say
from testbed import environment as common_environment

SHARED = PROJECT / "molecule/shared"
DECLARATION = HERE / "declaration.yml"


@functools.cache
def stock_collections() -> Path:
    """The directory that holds community.crypto."""
    say("taking community.crypto of requirements/collections.txt")
    done = subprocess.run(
        [PROJECT / "tests/take-collection", "community.crypto"], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(done.stdout.strip())


def mitogen_plugins() -> str:
    """The directory of Mitogen's strategies, which it wants to be told."""
    found = list(PROJECT.glob(".venv/lib/python3*/site-packages/ansible_mitogen/plugins/strategy"))
    if not found:
        raise BenchError("there is no Mitogen in .venv: run `make .venv/.test`")
    return str(found[0])


def environment(subject: Subject, counts: Path, forks: int) -> dict[str, str]:
    """Of ansible-playbook. All have the same but for the collections and the strategy they use."""
    settings = {
        "ANSIBLE_CALLBACK_PLUGINS": str(SHARED / "callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "remote_runs",
        "ANSIBLE_FORKS": str(forks),
        "ANSIBLE_STDOUT_CALLBACK": "default",
        "ANSIBLE_STRATEGY": subject.strategy,
        "REMOTE_RUNS_FILE": str(counts),
    }
    if subject.stock:
        settings["ANSIBLE_COLLECTIONS_PATH"] = str(stock_collections())
    if subject.strategy.startswith("mitogen"):
        settings["ANSIBLE_STRATEGY_PLUGINS"] = mitogen_plugins()
    return common_environment(**settings)


def command(playbook: str, inventory: str, variables: dict[str, str], *arguments: str) -> list[str]:
    extra = ["--extra-vars", f"@{DECLARATION}", "--extra-vars", json.dumps(variables)]
    return ["ansible-playbook", "--inventory", inventory, playbook, *extra, *arguments]


def pyinfra_environment(inventory: str, hosts: list[str], variables: dict[str, str], counts: Path) -> dict[str, str]:
    job = {
        "inventory": inventory,
        "hosts": hosts,
        "pki": variables["nanomq_pki_dir"],
        "declared": yaml.safe_load(DECLARATION.read_text()) | variables,
    }
    return os.environ | {"BENCH_JOB": json.dumps(job), "NO_COLOR": "1", "REMOTE_RUNS_FILE": str(counts)}


def pyinfra_command() -> list[str]:
    tool = CACHE / "bench-tools/bin/pyinfra"
    if not tool.exists():
        raise BenchError("there is no pyinfra: `make bench` installs it; or name --subjects without it")
    return [str(tool), "--yes", str(HERE / "pyinfra/hosts.py"), str(HERE / "pyinfra/deploy.py")]
