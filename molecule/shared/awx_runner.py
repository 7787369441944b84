# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs a job template as AWX does: ansible-runner on a private directory, credentials injected, answers as variables.

What AWX does before it starts ansible-runner is done here after its source; no AWX has a part in it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
import tempfile
from typing import Any

import ansible_collections.edgesec.nanomq as collection
import ansible_runner
import yaml
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import survey
from jinja2.sandbox import ImmutableSandboxedEnvironment

TREE = pathlib.Path(collection.__path__[0])
DATA = yaml.safe_load((TREE / "roles/nanomq_awx/vars/main.yml").read_text())
TEMPLATES = {template["name"]: template for template in DATA["__nanomq_awx_job_templates"]}
TYPES = {kind["name"]: kind for kind in DATA["__nanomq_awx_credential_types"]}


class Unsafe(str):
    """A text that Ansible takes as it is, whatever braces are in it."""


class Dumper(yaml.SafeDumper):
    """Writes such texts."""


Dumper.add_representer(Unsafe, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text)))


@dataclasses.dataclass
class Job:
    """How a job ended: exit status, what it printed, its events, and the directory of what ansible-runner kept."""

    status: int
    output: str
    events: list[dict[str, Any]]
    artifacts: pathlib.Path

    def flat(self) -> str:
        """The output with line breaks and quoting folded, to search messages in."""
        return " ".join(self.output.replace("''", "'").split())

    def tried(self) -> set[str]:
        """The hosts that a module of this collection was to run on."""
        tasks = [event["event_data"] for event in self.events if event["event"].startswith("runner_on_")]
        return {
            task["host"]
            for task in tasks
            if task.get("resolved_action", "").startswith("edgesec.nanomq.")
            and "skip_reason" not in str(task.get("res"))
        }

    def recap(self) -> dict[str, dict[str, int]]:
        """{host: {changed, failures, ...}}"""
        stats = next(event["event_data"] for event in self.events if event["event"] == "playbook_on_stats")
        names = ("ok", "changed", "failures", "dark", "skipped")
        return {host: {name: stats[name].get(host, 0) for name in names} for host in stats["processed"]}

    def kept(self) -> str:
        """The text of every file that ansible-runner kept of the job."""
        return "\n".join(path.read_text(errors="replace") for path in self.artifacts.rglob("*") if path.is_file())


def template_variables(template: dict[str, Any], pki_dir: str) -> dict[str, Any]:
    """The extra variables of a job template, as awx_setup.yml sets them."""
    variables = {"nanomq_awx_job": template["name"], "nanomq_awx_playbook": template["playbook"]}
    return variables | ({"nanomq_pki_dir": pki_dir} if template.get("pki") else {})


def defaults(template: dict[str, Any]) -> dict[str, Any]:
    """What the survey of a job template is answered where nobody says otherwise."""
    spec = survey.survey(template["survey"])["spec"] if template["survey"] else []
    found = {element["variable"]: (element["type"], element["default"]) for element in spec if "default" in element}
    return {name: value.splitlines() if kind == "multiselect" else value for name, (kind, value) in found.items()}


def inject(directory: pathlib.Path, kind: str, inputs: dict[str, str]) -> list[str]:
    """Render the injectors of a credential's type into files for one job, and return the arguments that name them."""
    environment = ImmutableSandboxedEnvironment()
    injectors, namespace = TYPES[kind]["injectors"], dict(inputs)
    if "file" in injectors:
        path = private_file(
            directory, environment.from_string(template(injectors["file"]["template"])).render(namespace)
        )
        namespace["tower"] = {"filename": str(path)}
    variables = {
        name: environment.from_string(template(text)).render(namespace)
        for name, text in injectors["extra_vars"].items()
    }
    text = yaml.dump({name: Unsafe(value) for name, value in variables.items()}, Dumper=Dumper)
    return ["-e", f"@{private_file(directory, text)}"]


def template(text: str) -> str:
    """A template of AWX out of the raw block that keeps it from Ansible."""
    return text.removeprefix("{% raw %}").removesuffix("{% endraw %}")


def private_file(directory: pathlib.Path, text: str) -> pathlib.Path:
    with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as handle:  # with mode 0600
        handle.write(text)
    return pathlib.Path(handle.name)


def run_job(
    directory: pathlib.Path,
    name: str,
    inventory: dict[str, Any],
    *,
    answers: dict[str, Any] | None = None,
    credentials: dict[str, dict[str, str]] | None = None,
    pki_dir: str = "/var/lib/nanomq-pki",
    limit: str = "",
    arguments: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Job:
    """Run the job template `name`. `answers` are those that differ from the defaults; None stands for no answer."""
    job_template = TEMPLATES[name]
    for folder in ("env", "inventory"):
        (directory / folder).mkdir(parents=True)
    # The project is a checkout of this repository; the collection itself is the execution environment's.
    shutil.copytree(TREE / "playbooks", directory / "project/playbooks")
    (directory / "inventory/hosts.json").write_text(json.dumps(inventory))
    given = {
        variable: Unsafe(value) if isinstance(value, str) else value
        for variable, value in {**defaults(job_template), **(answers or {})}.items()
        if value is not None
    }
    text = yaml.dump({**template_variables(job_template, pki_dir), **given}, Dumper=Dumper)
    (directory / "env/extravars").write_text(text)
    line = list(arguments)
    for kind, inputs in (credentials or {}).items():
        line += inject(directory / "env", kind, inputs)
    done = ansible_runner.run(
        private_data_dir=str(directory),
        playbook="playbooks/awx_job.yml",
        cmdline=" ".join(line),
        limit=limit or None,
        quiet=True,
        envvars={"ANSIBLE_TIMEOUT": "5", **(environment or {})},
        settings={"job_timeout": 300},
    )
    events = list(done.events)
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.read())
    return Job(done.rc, output, events, directory / "artifacts")


def slices(inventory: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """An inventory cut as AWX cuts it: every `count`-th host by name, with all groups."""
    groups = inventory["all"]["children"]
    names = sorted({name for group in groups.values() for name in group.get("hosts", {})})
    return [
        {
            "all": {
                **inventory["all"],
                "children": {
                    group: {
                        **content,
                        "hosts": {
                            name: variables
                            for name, variables in content.get("hosts", {}).items()
                            if name in names[number::count]
                        },
                    }
                    for group, content in groups.items()
                },
            }
        }
        for number in range(count)
    ]
