# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""awx_setup.yml with the modules of awx.awx, over HTTP, against a stand-in for AWX that keeps what it is given.

No real AWX has a part in it; fake_awx.py says what the stand-in knows of one.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import ansible_collections.edgesec.nanomq as collection
import pytest
import yaml
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import survey
from fake_awx import ENCRYPTED, PASSWORD, TOKEN, USER, FakeAwx

#: One worker runs them all, since the runs they look at take their time.
pytestmark = pytest.mark.xdist_group("awx_setup")

PROJECT = pathlib.Path(__file__).resolve().parents[3]
TREE = pathlib.Path(collection.__path__[0])
DATA = yaml.safe_load((TREE / "roles/nanomq_awx/vars/main.yml").read_text())
TEMPLATES = DATA["__nanomq_awx_job_templates"]
SECRETS = {
    "nanomq_awx_authority_passphrase": "ca-passphrase-of-the-test",
    "nanomq_awx_jwt_passphrase": "token-passphrase-of-the-test",
    "nanomq_awx_jwt_private_key": "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
}
CREDENTIALS = ("NanoMQ CA passphrase", "NanoMQ token key passphrase", "NanoMQ token key")
VARIABLES = {
    "nanomq_awx_environment_image": "registry.example/nanomq-ee:0.1.0",
    "nanomq_awx_inventory_url": "https://git.example/fleet.git",
    "nanomq_awx_credentials": ["Fleet SSH"],
    "nanomq_awx_job_slices": 4,
}


@pytest.fixture(scope="session")
def collections() -> str:
    """ANSIBLE_COLLECTIONS_PATH with awx.awx and this collection."""
    taken = subprocess.run(
        [PROJECT / "tests/take-collection", "awx.awx"], check=True, stdout=subprocess.PIPE, text=True, timeout=300
    )
    return f"{taken.stdout.strip()}:{TREE.parents[2]}"


@pytest.fixture(scope="session")
def setup(collections):
    """setup(awx, *arguments, **variables): run the playbook, and return the process."""

    def run(awx: FakeAwx, *arguments: str, login: dict | None = None, **variables) -> subprocess.CompletedProcess:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("CONTROLLER", "TOWER"))
        }
        environment |= login or {"CONTROLLER_OAUTH_TOKEN": TOKEN}
        environment |= {
            "ANSIBLE_COLLECTIONS_PATH": collections,
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
            "ANSIBLE_PIPELINING": "1",
            "CONTROLLER_HOST": awx.url,
            "NO_PROXY": "127.0.0.1",
        }
        return subprocess.run(
            [
                pathlib.Path(sys.executable).with_name("ansible-playbook"),
                "edgesec.nanomq.awx_setup",
                *arguments,
                "--extra-vars",
                json.dumps({name: value for name, value in {**VARIABLES, **variables}.items() if value is not None}),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )

    return run


def recap(done: subprocess.CompletedProcess) -> dict[str, int]:
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("localhost"))
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}


def new_awx() -> FakeAwx:
    """AWX with what a user has before: a credential to log in to the hosts by."""
    awx = FakeAwx(playbooks=[str(path.relative_to(TREE)) for path in (TREE / "playbooks").glob("*.yml")])
    machine = awx.create(
        "credential_types", {"name": "Machine", "inputs": {"fields": [{"id": "username"}]}, "injectors": {}}
    )
    awx.create("credentials", {"name": "Fleet SSH", "credential_type": machine["id"], "organization": 1})
    return awx


@pytest.fixture(scope="module")
def first(setup):
    """AWX after some runs. `runs` are they, and `wrote[number]` what each of them changed."""
    with new_awx() as awx:
        awx.runs, awx.wrote = [], []

        def run(*arguments: str, **options) -> None:
            before = len(awx.writes)
            awx.runs.append(setup(awx, *arguments, **options))
            awx.wrote.append(awx.writes[before:])

        # Without secrets first, and by a password; then with them, and what was filled in by hand is kept.
        run("-vvv", "--diff", login={"CONTROLLER_USERNAME": USER, "CONTROLLER_PASSWORD": PASSWORD})
        awx.empty = {name: dict(item["inputs"]) for name, item in awx.named("credentials").items()}
        run("-vvv", "--diff", **SECRETS)
        run(**SECRETS)
        awx.named("credentials")["NanoMQ CA passphrase"]["inputs"] = {"passphrase": "by-hand"}
        harden = awx.named("job_templates")["NanoMQ harden"]
        harden["ask_variables_on_launch"] = True
        awx.surveys[harden["id"]] = {**awx.surveys[harden["id"]], "spec": awx.surveys[harden["id"]]["spec"][:1]}
        run(**SECRETS)
        awx.kept = dict(awx.named("credentials")["NanoMQ CA passphrase"]["inputs"])
        run(**SECRETS, nanomq_awx_update_secrets=True)
        yield awx


def test_the_first_run_creates_everything(first):
    assert first.runs[0].returncode == 0, first.runs[0].stdout
    assert recap(first.runs[0])["changed"] >= 10
    assert set(first.named("job_templates")) == {template["name"] for template in TEMPLATES}
    assert set(first.named("projects")) == {"NanoMQ playbooks", "NanoMQ fleet"}
    assert set(first.named("workflow_job_templates")) == {"NanoMQ rollout"}
    assert first.named("execution_environments")["NanoMQ"]["image"] == VARIABLES["nanomq_awx_environment_image"]


def test_another_run_changes_nothing(first):
    assert first.runs[2].returncode == 0, first.runs[2].stdout
    assert recap(first.runs[2])["changed"] == 0, first.runs[2].stdout
    assert first.wrote[2] == []


def test_secrets_may_come_later(first):
    """Without them the credentials are there, and empty: AWX asks for what is missing before it starts a job."""
    assert first.empty == {"Fleet SSH": {}, **{name: {} for name in CREDENTIALS}}
    assert first.runs[1].returncode == 0, first.runs[1].stdout
    assert {(method, path.split("/")[3]) for method, path in first.wrote[1]} == {("PATCH", "credentials")}
    assert recap(first.runs[1])["changed"] == len(CREDENTIALS)


def test_what_was_changed_by_hand_is_brought_back_but_for_secrets(first):
    assert first.runs[3].returncode == 0, first.runs[3].stdout
    assert recap(first.runs[3])["changed"] == 1
    harden = first.named("job_templates")["NanoMQ harden"]
    url = f"/api/v2/job_templates/{harden['id']}/"
    assert first.wrote[3] == [("PATCH", url), ("POST", f"{url}survey_spec/")]
    assert harden["ask_variables_on_launch"] is False
    assert first.kept == {"passphrase": "by-hand"}
    # They are where that is asked for.
    assert {(method, path.split("/")[3]) for method, path in first.wrote[4]} == {("PATCH", "credentials")}


def test_no_secret_is_shown(first):
    for secret in [*SECRETS.values(), "c2VjcmV0", TOKEN, PASSWORD]:
        assert all(secret not in run.stdout for run in first.runs), secret


def test_projects_and_inventory_come_from_git(first):
    playbooks, fleet = (first.named("projects")[name] for name in ("NanoMQ playbooks", "NanoMQ fleet"))
    assert (playbooks["scm_type"], playbooks["scm_url"]) == ("git", "https://github.com/edgesec/edgesec.nanomq")
    assert playbooks["default_environment"] == first.named("execution_environments")["NanoMQ"]["id"]
    source = first.named("inventory_sources")["NanoMQ fleet"]
    assert source["source_project"] == fleet["id"]
    assert (source["source"], source["source_path"]) == ("scm", "inventory/hosts.yml")
    assert source["overwrite"] is source["overwrite_vars"] is source["update_on_launch"] is True


def test_credentials_hold_what_was_given_and_show_nothing(first):
    held = {name: item["inputs"] for name, item in first.named("credentials").items()}
    assert held == {
        "Fleet SSH": {},
        "NanoMQ CA passphrase": {"passphrase": SECRETS["nanomq_awx_authority_passphrase"]},
        "NanoMQ token key passphrase": {"passphrase": SECRETS["nanomq_awx_jwt_passphrase"]},
        "NanoMQ token key": {
            "private_key": SECRETS["nanomq_awx_jwt_private_key"],
            "passphrase": SECRETS["nanomq_awx_jwt_passphrase"],
        },
    }
    for item in first.named("credentials").values():
        assert set(first.shown("credentials", item)["inputs"].values()) <= {ENCRYPTED}


def test_injectors_arrive_as_templates_of_awx(first):
    types = first.named("credential_types")
    assert types["NanoMQ CA passphrase"]["injectors"] == {
        "extra_vars": {"nanomq_pki_authority_passphrase": "{{ passphrase }}"}
    }
    assert types["NanoMQ token key"]["injectors"]["file"] == {"template": "{{ private_key }}"}
    for declared in DATA["__nanomq_awx_credential_types"]:
        for variable in types[declared["name"]]["injectors"]["extra_vars"]:
            assert variable in survey.options(), "a credential fills in what no role has"
        assert all(field["secret"] for field in types[declared["name"]]["inputs"]["fields"])


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template["name"])
class TestJobTemplate:
    def test_it_runs_its_playbook(self, first, template):
        made = first.named("job_templates")[template["name"]]
        variables = json.loads(made["extra_vars"])
        assert made["playbook"] == "playbooks/awx_job.yml"
        assert variables["nanomq_awx_job"] == template["name"]
        assert (TREE / "playbooks" / f"{variables['nanomq_awx_playbook']}.yml").is_file()
        assert variables.get("nanomq_pki_dir") == ("/var/lib/nanomq-pki" if template.get("pki") else None)
        assert made["job_slice_count"] == (4 if template.get("sliced") else 1)
        assert made["ask_limit_on_launch"] is True
        assert made["ask_variables_on_launch"] is False
        assert first.names("job_templates", made["id"], "credentials") == ["Fleet SSH", *template["credentials"]]

    def test_its_survey_is_what_the_roles_say(self, first, template):
        """By the argument specifications themselves, not by the code that made the survey."""
        made = first.named("job_templates")[template["name"]]
        asked = {question["variable"]: question for question in template["survey"]}
        assert made["survey_enabled"] is bool(asked)
        spec = first.surveys.get(made["id"], {}).get("spec", [])
        assert [element["variable"] for element in spec] == list(asked)
        for element in spec:
            question = asked[element["variable"]]
            declared = role_options().get(element["variable"]) or question["option"]
            assert element["question_name"] == question["question"]
            assert element["required"] is bool(question.get("required"))
            assert (element["min"], element["max"]) == (question.get("min"), question.get("max"))
            assert fits(element, declared), (element, declared)


def role_options() -> dict[str, dict]:
    specs = [
        yaml.safe_load(path.read_text())["argument_specs"] for path in TREE.glob("roles/*/meta/argument_specs.yml")
    ]
    entry_points = [entry for spec in specs for name, entry in spec.items() if name != "main"]
    entry_points += [spec["main"] for spec in specs]
    return {name: option for entry in entry_points for name, option in entry.get("options", {}).items()}


def fits(element: dict, declared: dict) -> bool:
    """Whether a question of AWX asks for what an argument specification takes."""
    kind, default = element["type"], element.get("default")
    lines = element.get("choices", "").splitlines()
    if declared["type"] == "int":
        return kind == "integer" and default == declared["default"] and isinstance(default, int)
    if declared["type"] == "bool":
        return kind == "multiplechoice" and lines == ["true", "false"] and default == str(declared["default"]).lower()
    wanted = [choice for choice in declared.get("choices", []) if choice]
    if declared["type"] == "list" and not wanted:
        return kind == "text" and default is None and not declared["default"]
    if declared["type"] == "list":
        return kind == "multiselect" and lines == wanted and default.splitlines() == declared["default"]
    if wanted:
        return kind == "multiplechoice" and lines == wanted and default == (declared["default"] or None)
    return declared["type"] == "str" and kind == "text" and default == (declared["default"] or None)


def test_the_workflow_audits_hardens_a_canary_asks_hardens_and_audits(first):
    nodes = first.named("workflow_job_template_nodes")
    templates = {item["id"]: name for name, item in first.named("job_templates").items()}
    edges = {
        (name, kind, other)
        for name, node in nodes.items()
        for kind in ("success_nodes", "always_nodes", "failure_nodes")
        for other in first.names("workflow_job_template_nodes", node["id"], kind)
    }
    assert edges == {
        ("audit_before", "always_nodes", "canary"),
        ("canary", "success_nodes", "approval"),
        ("approval", "success_nodes", "harden"),
        ("harden", "always_nodes", "audit_after"),
    }
    assert {name: templates.get(node["unified_job_template"]) for name, node in nodes.items()} == {
        "audit_before": "NanoMQ audit",
        "canary": "NanoMQ harden",
        "approval": None,
        "harden": "NanoMQ harden",
        "audit_after": "NanoMQ audit",
    }
    assert {name: node["limit"] for name, node in nodes.items() if node["limit"]} == {"canary": "canary"}
    assert nodes["audit_after"]["extra_data"] == {"nanomq_audit_fail_on": "high"}
    approval = first.objects["workflow_approval_templates"][nodes["approval"]["unified_job_template"]]
    assert (approval["name"], approval["timeout"]) == ("Harden the fleet", 86400)


def test_check_mode_writes_nothing(setup):
    with new_awx() as awx:
        setup(awx, "--check")
        assert awx.requests
        assert awx.writes == []


def test_what_must_be_given_is_named(setup):
    with new_awx() as awx:
        done = setup(awx, nanomq_awx_environment_image=None, nanomq_awx_inventory_url=None)
        assert done.returncode != 0
        assert "missing required arguments: nanomq_awx_environment_image, nanomq_awx_inventory_url" in done.stdout
        assert awx.writes == []


def test_without_leave_nothing_is_created(setup):
    with new_awx() as awx:
        done = setup(awx, login={"CONTROLLER_OAUTH_TOKEN": "wrong"})
        assert done.returncode != 0
        assert "Invalid authentication credentials" in done.stdout
        assert awx.writes == []
