# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every job template by ansible-runner: what its survey does not allow is refused before anybody is spoken to.

There are no hosts here, but two that can run no module: who passes the check is seen to try it.
"""

from __future__ import annotations

import datetime
import functools

import awx_runner
import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import survey
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

INVENTORY = {
    "all": {
        "vars": {"of": "all"},
        "children": {
            "brokers": {
                "hosts": {"edge1": {}, "edge2": {}},
                "vars": {
                    "ansible_connection": "local",
                    "ansible_python_interpreter": "/bin/false",
                    "ansible_become": False,
                    "nanomq_broker_users": {"sensor": "secret-of-the-inventory"},
                },
            },
            "canary": {"hosts": {"edge1": {}}},
        },
    }
}
A_MOMENT = datetime.datetime(2020, 1, 31, 12, tzinfo=datetime.UTC)
SECRET = "passphrase-of-a-credential"
QUESTIONS = [
    pytest.param(name, question, id=f"{name}: {question['variable']}")
    for name, template in awx_runner.TEMPLATES.items()
    for question in template["survey"]
]


def credentials(template: dict) -> dict[str, dict[str, str]]:
    return {
        kind: {
            field["id"]: private_key() if field["id"] == "private_key" else SECRET
            for field in awx_runner.TYPES[kind]["inputs"]["fields"]
        }
        for kind in template["credentials"]
    }


@functools.cache
def private_key() -> str:
    """A key for tokens, in PEM."""
    key = rsa.generate_private_key(65537, 2048)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(SECRET.encode())).decode()


@pytest.fixture
def job(tmp_path):
    """job(name, *arguments, **options): run a job template; its directory of keys is there, and empty."""
    pki = tmp_path / "pki"
    pki.mkdir()

    def run(name: str, *arguments: str, **options) -> awx_runner.Job:
        options = {"credentials": credentials(awx_runner.TEMPLATES[name]), "pki_dir": str(pki), **options}
        return awx_runner.run_job(tmp_path / "job", name, INVENTORY, arguments=arguments, **options)

    run.pki = pki
    return run


def right(question: dict) -> list:
    """Answers that the survey allows."""
    kind, choices = survey.kind(question), survey.choices(question)
    if kind == survey.NUMBER:
        return [question["min"], question["max"], str(question["min"])]
    if kind == survey.ONE:
        return choices
    if kind == survey.SOME:
        return [choices, choices[:1]]
    return {
        "nanomq_audit_reports_dir": ["/var/lib/reports", ""],
        "nanomq_rollout_batches": ["2", "1, 10%, 100%", "2,5", 7],
        "nanomq_rollback_to": ["previous", "3", 3],
        "nanomq_pki_renew_issued_before": ["2020-01-31T12:00:00Z", "", datetime.date(2020, 1, 31), A_MOMENT],
        "nanomq_pki_jwt_rotate_key": ["jwt-1a2b3c4d.pub", ""],
        "nanomq_pki_revoke_operators": ["", "ann", "ann, Bob of Ops"],
        "nanomq_pki_revoke_operator_serials": ["", "7f:00", "1a2B, 03"],
        "nanomq_pki_revoke_devices": ["", "edge-1.example", "edge-1,edge-2"],
        "nanomq_pki_revoke_device_serials": ["", "0a"],
        "nanomq_pki_revoke_users": ["ghost", "ghost, late"],
    }[question["variable"]]


def wrong(question: dict) -> list:
    """Answers that it does not: of another type, out of range, no choice, and with what a template or a shell reads."""
    kind = survey.kind(question)
    found: list = [{"a": 1}, "nonsense {{ 7 * 7 }}\n; id"]
    if kind == survey.NUMBER:
        found += [question["min"] - 1, question["max"] + 1, 1.5]
    elif kind == survey.SOME:
        found += [survey.choices(question)[0], ["nonsense"]]
    elif kind == survey.TEXT:
        found += ["x" * (question["max"] + 1), 1.5, True]
    return [*found, ""] if question.get("required") else found


@pytest.mark.parametrize(("name", "question"), QUESTIONS)
class TestQuestion:
    def test_right_answers_pass(self, name, question):
        for value in [*right(question), survey.UNANSWERED]:
            assert survey.problems({question["variable"]: value}, [question]) == [], value

    def test_wrong_answers_are_named(self, name, question):
        for value in wrong(question):
            (problem,) = survey.problems({question["variable"]: value}, [question])
            assert problem.startswith(f"{question['variable']} is {value!r}, and must be ")

    @given(value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text())))
    def test_what_passes_is_what_the_role_takes(self, name, question, value):
        """The role's own validator is asked, so that no answer gets through here and fails half-way there."""
        if value is not None and not survey.problems({question["variable"]: value}, [question]):
            spec = {
                key: survey.option(question)[key]
                for key in ("type", "choices", "elements")
                if key in survey.option(question)
            }
            result = ArgumentSpecValidator({question["variable"]: spec}).validate({question["variable"]: value})
            assert result.error_messages == []

    def test_right_answers_are_what_the_role_takes(self, name, question):
        option = survey.option(question)
        spec = {key: option[key] for key in ("type", "choices", "elements") if key in option}
        for value in right(question):
            result = ArgumentSpecValidator({question["variable"]: spec}).validate({question["variable"]: value})
            assert result.error_messages == [], value


@pytest.mark.parametrize("name", awx_runner.TEMPLATES)
class TestJob:
    def test_it_lists_its_tasks(self, job, name):
        done = job(name, "--list-tasks")
        assert done.status == 0, done.output
        assert "Refuse answers that the survey does not allow" in done.output
        assert (
            awx_runner.TEMPLATES[name]["playbook"] in ("harden", "audit", "rollback", "revoke")
            or done.output.count("play #") > 1
        )

    def test_right_answers_get_to_the_hosts(self, job, name):
        answers = {question["variable"]: right(question)[0] for question in awx_runner.TEMPLATES[name]["survey"]}
        answers.pop("nanomq_audit_reports_dir", None)
        done = job(name, answers=answers)
        # One key is for all, and there is none yet to be replaced.
        once = awx_runner.TEMPLATES[name]["playbook"] == "rotate_jwt"
        assert done.tried() == {"edge1"} if once else {"edge1", "edge2"}, done.output
        assert_silent(done)

    def test_wrong_answers_are_refused_before_that(self, job, name, tmp_path_factory):
        questions = awx_runner.TEMPLATES[name]["survey"]
        # All at once, and each must be named; limited to a part of the hosts, which must not skip the check.
        for turn in (1, -1) if questions else ():
            answers = {question["variable"]: wrong(question)[turn] for question in questions}
            done = awx_runner.run_job(
                tmp_path_factory.mktemp("job") / "job",
                name,
                INVENTORY,
                answers=answers,
                credentials=credentials(awx_runner.TEMPLATES[name]),
                pki_dir=str(job.pki),
                limit="canary",
            )
            assert done.status != 0
            for variable in answers:
                assert f"{variable} is " in done.flat(), done.output
            assert "nonsense 49" not in done.output  # no answer is a template
            assert done.tried() == set(), done.output
            assert list(job.pki.iterdir()) == []
            assert_silent(done)

    def test_keys_that_would_end_with_the_job_are_not_made(self, job, name, tmp_path):
        if not awx_runner.TEMPLATES[name].get("pki"):
            return
        done = job(name, pki_dir=str(tmp_path / "not-mounted"))
        assert done.status != 0
        assert "nanomq_pki_dir is " in done.flat()
        assert done.tried() == set()
        assert not (tmp_path / "not-mounted").exists()


def assert_silent(done: awx_runner.Job) -> None:
    """No secret is in what ansible-runner kept: output, events, command, fact cache."""
    kept = done.kept()
    assert "awx_job.yml" in kept
    for secret in (SECRET, "secret-of-the-inventory", private_key().splitlines()[5]):
        assert secret not in kept


def test_an_unknown_job_template_is_refused(job, monkeypatch):
    monkeypatch.setitem(
        awx_runner.TEMPLATES, "NanoMQ other", {**awx_runner.TEMPLATES["NanoMQ audit"], "name": "NanoMQ other"}
    )
    done = job("NanoMQ other", credentials={})
    assert done.status != 0
    assert "nanomq_awx_job is NanoMQ other, and there is no such job template: NanoMQ audit, " in done.flat()
    assert done.tried() == set()


def test_an_inventory_is_cut_as_awx_cuts_it():
    first, second = awx_runner.slices(INVENTORY, 2)
    assert list(first["all"]["children"]["brokers"]["hosts"]) == ["edge1"]
    assert list(second["all"]["children"]["brokers"]["hosts"]) == ["edge2"]
    assert second["all"]["children"]["canary"]["hosts"] == {}
    assert second["all"]["vars"] == INVENTORY["all"]["vars"]
    assert second["all"]["children"]["brokers"]["vars"] == INVENTORY["all"]["children"]["brokers"]["vars"]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (
            {"variable": "nanomq_audit_fail_onn", "question": "?"},
            "nanomq_audit_fail_onn: no role has this variable; nanomq_audit_fail_on?",
        ),
        ({"variable": "nanomq_audit_fail_on"}, "question is missing"),
        ({"variable": "nanomq_audit_fail_on", "question": "?"}, "make it required"),
        ({"variable": "nanomq_audit_fail_on", "question": "?", "choices": ["x"]}, "a question has no choices"),
        ({"variable": "nanomq_audit_fail_on", "question": "?", "option": {"type": "str"}}, "a role has this one"),
        ({"variable": "nanomq_audit_waivers", "question": "?"}, "of type list, which no form can fill"),
        ({"variable": "nanomq_broker_users", "question": "?"}, "of type dict, which no form can fill"),
        ({"variable": "nanomq_audit_conf_path", "question": "?"}, "a text needs a pattern"),
    ],
)
def test_a_question_that_cannot_be_asked_is_an_error(question, message):
    with pytest.raises(survey.SurveyError) as error:
        survey.survey([question])
    assert message in str(error.value)


def test_a_truth_value_is_a_choice_of_two():
    question = {"variable": "nanomq_firewall_protect_ssh", "question": "?", "required": True}
    (element,) = survey.survey([question])["spec"]
    assert (element["type"], element["choices"], element["default"]) == ("multiplechoice", "true\nfalse", "true")
    for value in ("true", "false", True, False):
        assert survey.problems({question["variable"]: value}, [question]) == []
    assert survey.problems({question["variable"]: "yes"}, [question])
