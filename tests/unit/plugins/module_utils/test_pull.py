# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Pulling, with real git and real signatures. A program that says what it is told to stands for ansible-pull."""

from __future__ import annotations

import base64
import datetime
import functools
import http.server
import json
import os
import pathlib
import socket
import ssl
import subprocess
import threading
from unittest import mock

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy, _pull
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report
from hypothesis import given
from hypothesis import strategies as st
from pulling import Collector, Files, Place, git


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


class TestOffers:
    def test_a_signed_commit_is_applied(self, place):
        commit = place.commit("alice")
        place.runs("", changed=2)
        report = place.pull()
        assert (report["result"], report["commit"], report["signer"]) == ("changed", commit, "alice")
        assert report["counts"] == {"ok": 3, "changed": 2, "unreachable": 0, "failed": 0}
        assert place.applied() == [commit]
        assert json.loads((place.state / "state.json").read_text()) == {"accepted": commit, "applied": commit}

    @pytest.mark.parametrize(("signer", "words"), [("", "is not signed"), ("mallory", "is not signed by one of")])
    def test_the_first_commit_too_must_be_signed(self, place, signer, words):
        place.commit(signer)
        report = place.pull()
        assert report["result"] == "refused"
        assert words in report["cause"]
        assert place.applied() == []

    def test_one_that_is_refused_leaves_the_accepted_one_in_force(self, place):
        good, bad = place.commit("alice"), ""
        place.pull()
        bad = place.commit("mallory")
        report = place.pull()
        assert (report["result"], report["offered"], report["commit"]) == ("refused", bad, good)
        assert place.applied() == [good, good]

    def test_a_signature_for_another_purpose_does_not_count(self, place):
        text = (place.path / "allowed_signers").read_text().replace('"git"', '"file"')
        (place.path / "allowed_signers").write_text(text)
        place.commit("alice")
        assert place.pull()["result"] == "refused"

    def test_a_pgp_signature_does_not_count(self, place):
        """Whose programs, and whose keys, would be asked."""
        place.commit("alice")
        raw = git(place.tree, "cat-file", "commit", "HEAD").replace("SSH SIGNATURE", "PGP SIGNATURE")
        (place.path / "raw").write_text(raw + "\n")
        made = git(place.tree, "hash-object", "-t", "commit", "-w", str(place.path / "raw"))
        git(place.tree, "reset", "--quiet", "--hard", made)
        report = place.pull()
        assert "not signed with an SSH key" in report["cause"]

    def test_a_commit_that_was_altered(self, place):
        place.commit("alice")
        raw = git(place.tree, "cat-file", "commit", "HEAD")
        (place.path / "raw").write_text(raw + "\nand more\n")
        made = git(place.tree, "hash-object", "-t", "commit", "-w", str(place.path / "raw"))
        git(place.tree, "reset", "--quiet", "--hard", made)
        assert place.pull()["result"] == "refused"

    def test_no_way_back(self, place):
        old, new = place.commit("alice"), place.commit("alice")
        place.pull()
        git(place.tree, "reset", "--quiet", "--hard", old)
        report = place.pull()
        assert report["result"] == "refused"
        assert "going back is refused" in report["cause"]
        assert place.applied() == [new, new]

    def test_no_way_aside(self, place):
        base, taken = place.commit("alice"), place.commit("alice", one="1")
        place.pull()
        git(place.tree, "reset", "--quiet", "--hard", base)
        place.commit("alice", two="2")
        assert place.pull()["result"] == "refused"
        assert place.applied() == [taken, taken]

    def test_no_way_back_behind_what_failed(self, place):
        old, new = place.commit("alice"), place.commit("alice")
        place.runs("TASK [x] **\nfatal: [box]: FAILED! => {}", status=2)
        assert place.pull()["result"] == "failed"
        git(place.tree, "reset", "--quiet", "--hard", old)
        place.runs("")
        assert place.pull()["result"] == "refused"
        assert place.applied() == [new, new]

    def test_a_host_that_knows_nothing_yet(self, place):
        old, new = place.commit("alice"), place.commit("alice")
        place.config["at_least"] = new
        git(place.tree, "reset", "--quiet", "--hard", old)
        report = place.pull()
        assert "nanomq_pull_at_least" in report["cause"]
        assert place.applied() == []

    def test_a_state_that_cannot_be_read_is_no_beginning(self, place):
        place.commit("alice")
        (place.state / "state.json").write_text("{")
        assert place.pull()["result"] == "failed"
        assert place.applied() == []

    def test_who_is_taken_off_the_list(self, place):
        place.commit("alice")
        place.pull()
        place.allow("mallory")
        report = place.pull()
        assert "not applied again" in report["cause"]
        assert len(place.applied()) == 1

    def test_a_remote_that_is_away(self, place):
        commit = place.commit("alice")
        place.pull()
        place.tree.rename(place.path / "away")
        report = place.pull()
        assert (report["result"], report["commit"]) == ("unreachable", commit)
        assert place.applied() == [commit, commit]

    def test_a_remote_that_sends_too_much(self, place):
        (place.tree / "big").write_bytes(os.urandom(3 * 2**20))
        place.commit("alice")
        assert place.pull()["result"] == "unreachable"
        assert place.applied() == []

    def test_locks_that_a_cut_left(self, place):
        place.commit("alice")
        place.pull()
        commit = place.commit("alice")
        for name in ("refs/edgesec/offered.lock", "refs/heads/verified.lock", "packed-refs.lock"):
            (place.state / "repository.git" / name).touch()
        assert place.pull()["commit"] == commit

    def test_hooks_and_configuration_of_others_have_no_part(self, place, monkeypatch):
        configuration = place.path / "gitconfig"
        configuration.write_text(f'[gpg "ssh"]\n allowedSignersFile={place.path}/all\n program=true\n')
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
        monkeypatch.setenv("GIT_CONFIG_COUNT", "0")
        place.commit("mallory")
        assert place.pull()["result"] == "refused"

    def test_a_directory_that_others_can_enter(self, place):
        place.commit("alice")
        place.state.chmod(0o755)
        assert "must be a directory of root's" in place.pull()["cause"]


class TestTry:
    """What a host is to pull by is tried before it is in force: it could be told nothing better afterwards."""

    @pytest.fixture(autouse=True)
    def host(self, place, monkeypatch, tmp_path_factory):
        self.place, self.folder = place, tmp_path_factory.mktemp("scratch")
        self.present = place.path / "config.json"
        monkeypatch.setattr(_pull, "SCRATCH", str(self.folder))
        self.commit = place.commit("alice")

    def set_up(self) -> None:
        assert self.place.pull()["result"] == "ok"
        self.present.write_text(json.dumps(self.place.config))

    def ask(self, capsys, *, signers: str = "alice", tried: bool = True, refused: int = 1, **changes: str) -> str:
        """What the role is answered, '' for yes, else with the status ``refused``. The host stays as it is."""
        before = {path: path.stat().st_mtime_ns for path in self.place.state.rglob("*")}
        config = {**self.place.config, **changes}
        text = f'{signers} namespaces="git" {(self.place.path / f"{signers}.pub").read_text()}'
        question = {"config": config, "files": {config["signers"]: text}, "present": str(self.present) if tried else ""}
        capsys.readouterr()
        status = _pull.main(["--check", json.dumps(question)])
        answer = capsys.readouterr().out.strip()
        assert status == (refused if answer else 0)
        assert {path: path.stat().st_mtime_ns for path in self.place.state.rglob("*")} == before
        assert list(self.folder.iterdir()) == []
        return answer

    def test_at_first(self, capsys):
        assert self.ask(capsys) == ""
        assert "remote ref refs/heads/mian" in self.ask(capsys, branch="mian")
        assert self.ask(capsys, branch="mian", tried=False) == ""

    def test_what_is_in_force_is_not_tried_again(self, capsys):
        self.set_up()
        self.place.tree.rename(self.place.path / "away")
        assert self.ask(capsys) == ""
        assert self.ask(capsys, report_url="https://collector.example/x", size_limit=2**21) == ""

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"remote": "file:///nowhere"}, "/nowhere"),
            ({"branch": "mian"}, "couldn't find remote ref"),
            ({"signers": "mallory"}, "is not signed by one of nanomq_pull_signers"),
            ({"at_least": "0" * 40}, "nanomq_pull_at_least"),
        ],
    )
    def test_what_leads_nowhere(self, capsys, changes, words):
        self.set_up()
        answer = self.ask(capsys, **changes)
        assert words in answer
        assert "nanomq_pull_try: false" in answer

    def test_another_history(self, capsys):
        self.set_up()
        git(self.place.tree, "checkout", "--quiet", "--orphan", "other")
        self.place.commit("alice", one="1")
        assert "going back is refused" in self.ask(capsys, branch="other")

    def test_a_later_commit_elsewhere(self, capsys):
        self.set_up()
        git(self.place.tree, "checkout", "--quiet", "-b", "other")
        later = self.place.commit("mallory")
        assert self.ask(capsys, branch="other", signers="mallory", at_least=later) == ""
        assert "is not signed by one of" in self.ask(capsys, branch="other")

    def test_what_is_missing_is_said_first(self, capsys):
        answer = self.ask(capsys, ssh_key="/nowhere", branch="mian", refused=_pull.MISSING)
        assert "nanomq_pull_ssh_key_path" in answer
        assert "mian" not in answer


class TestHttps:
    """A remote by HTTPS, served as files; git's own backend is what the scenario has."""

    @pytest.fixture(autouse=True)
    def served(self, place):
        for name in ("one", "two"):
            request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
            request += f" -addext subjectAltName=DNS:localhost -keyout {name}.key -out {name}.pem"
            subprocess.run(request.split(), cwd=place.path, check=True, capture_output=True)
        handler = functools.partial(Files, directory=str(place.tree / ".git"))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(place.path / "one.pem", place.path / "one.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        place.config["remote"] = f"https://localhost:{server.server_port}/"
        self.commit = place.commit("alice")
        git(place.tree, "update-server-info")
        yield
        server.shutdown()
        thread.join()
        server.server_close()

    def test_the_ca_that_the_host_is_told(self, place):
        place.config["remote_ca"] = str(place.path / "one.pem")
        assert place.pull()["commit"] == self.commit

    @pytest.mark.parametrize(
        ("ca", "words"), [("two.pem", "none of the CAs in nanomq_pull_remote_ca"), ("", "by no CA of")]
    )
    def test_another_one(self, place, ca, words):
        place.config["remote_ca"] = str(place.path / ca) if ca else ""
        report = place.pull()
        assert (report["result"], report["commit"]) == ("unreachable", "")
        assert "certificate" in report["cause"]
        assert words in report["cause"]
        assert place.applied() == []

    def test_another_name(self, place):
        place.config["remote_ca"] = str(place.path / "one.pem")
        place.config["remote"] = place.config["remote"].replace("localhost", "127.0.0.1")
        report = place.pull()
        assert report["result"] == "unreachable"
        assert "or for another name" in report["cause"]

    def must_show(self, place, monkeypatch, wanted: bytes) -> pathlib.Path:
        """From now on the remote asks who comes. Returns the file with the secret, which holds a token."""
        monkeypatch.setattr(Files, "wanted", "Basic " + base64.b64encode(wanted).decode())
        secret = place.path / "token"
        secret.write_text("to ken'$\n")
        secret.chmod(0o600)
        place.config.update(remote_ca=str(place.path / "one.pem"), remote_secret_path=str(secret))
        return secret

    def test_a_remote_that_asks_who_comes(self, place, monkeypatch):
        """The secret is in no argument, no environment and no file of git's."""
        self.must_show(place, monkeypatch, b"reader:to ken'$")
        run = mock.Mock(wraps=subprocess.run)
        monkeypatch.setattr(_pull.subprocess, "run", run)
        assert place.pull()["commit"] == self.commit
        told = [word for call in run.call_args_list for word in [*call.args[0], *call.kwargs.get("env", {}).values()]]
        assert any("credential.helper" in word for word in told)
        assert not [word for word in told if "to ken" in word]
        assert subprocess.run(["grep", "-r", "to ken", str(place.state)], check=False).returncode == 1

    def test_a_secret_that_is_not_taken_is_left_alone(self, place, monkeypatch):
        secret = self.must_show(place, monkeypatch, b"reader:another one")
        report = place.pull()
        assert (report["result"], report["commit"]) == ("unreachable", "")
        assert f"nanomq_pull_remote_secret_path: what is in {secret} is not taken there" in report["cause"]
        assert "to ken" not in json.dumps(report)
        assert secret.read_text() == "to ken'$\n"

    @pytest.mark.parametrize(
        ("break_it", "words"),
        [
            (lambda place, secret: secret.unlink(), "No such file"),
            (lambda place, secret: secret.chmod(0o644), "nobody else can read"),
            (lambda place, secret: secret.write_text("one\nusername=two\n"), "must hold one line"),
            (lambda place, secret: place.config.update(remote_secret_path=""), "none is set"),
        ],
    )
    def test_a_secret_that_cannot_be_shown(self, place, monkeypatch, break_it, words):
        secret = self.must_show(place, monkeypatch, b"reader:to ken'$")
        break_it(place, secret)
        report = place.pull()
        assert (report["result"], report["commit"]) == ("unreachable", "")
        assert "nanomq_pull_remote_secret_path: " in report["cause"]
        assert words in report["cause"]


class TestRuns:
    def test_a_task_that_fails_is_named_without_its_message(self, place):
        place.commit("alice")
        place.runs('TASK [Put it there] **\nfatal: [box]: FAILED! => {"msg": "secret-word"}', status=2)
        report = place.pull()
        assert report["result"] == "failed"
        assert "'Put it there'" in report["cause"]
        assert "secret-word" not in json.dumps(report)
        assert report["applied"] == ""

    def test_what_a_transaction_undid(self, place):
        place.commit("alice")
        failure = {"msg": "secret-word", "step": "probe", "undone": True, "journal": "secret-word"}
        place.runs(f"TASK [The table] **\nfatal: [box]: FAILED! => {json.dumps(failure)}", status=2)
        report = place.pull()
        assert report["failed"] == {"task": "The table", "step": "probe", "undone": True}
        assert report["cause"].startswith("the task 'The table' failed at probe, and was undone")
        assert "secret-word" not in json.dumps(report)

    @pytest.mark.parametrize(
        "text", ['{"step": "secret-word", "undone": "secret-word"}', "[]", "{", "[" * 100_000, "null"]
    )
    def test_of_what_a_module_says_known_words_are_taken_alone(self, text):
        outcome = _pull.Outcome()
        outcome.read("TASK [x] **")
        outcome.read(f"fatal: [box]: FAILED! => {text}")
        report = {}
        outcome.tell(report)
        assert report["failed"] == {"task": "x", "step": "", "undone": False}

    def test_what_was_changed_is_named(self):
        outcome = _pull.Outcome()
        for number in range(2 * _pull.TASKS_LIMIT):
            for line in (f"TASK [task {number}] **", "changed: [box]", "changed: [box]", "ok: [box]"):
                outcome.read(line)
        assert outcome.changed_tasks == [f"task {number}" for number in range(_pull.TASKS_LIMIT)]

    def test_whom_it_needs_is_tried_before(self, place):
        """And is told to the run, so that a change of the firewall that cuts it off is undone."""
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        ):
            port, other = server.getsockname()[1], six.getsockname()[1]
            place.config["report_url"] = f"https://localhost:{port}/x"
            place.config["signer_url"] = f"https://[::1]:{other}"
            place.config["remote"] = f"ssh://a@127.0.0.1:{port}/x"
            expected = [f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{other}"]
            assert _pull.answering(place.config) == expected
            variables = json.loads(_pull.run_command(place.config, expected)[-2])
            assert variables["__nanomq_pull_needed"] == expected
        assert _pull.answering(place.config) == [], "one that is away is not asked for"
        place.config.update(remote="https://no-such-host.invalid/x", report_url="https://a:99999/", signer_url="")
        assert _pull.answering(place.config) == []

    def test_a_playbook_for_nobody(self, place):
        place.commit("alice")
        place.runs("", recap=False)
        assert "no play is for 'box'" in place.pull()["cause"]

    def test_a_run_without_end(self, place):
        place.commit("alice")
        place.config["run_timeout"] = 1
        (place.path / "ansible-pull").write_text('#!/bin/sh\n[ "$1" = --version ] || sleep 60 & wait\n')
        assert "did not end within 1 s" in place.pull()["cause"]

    def test_no_ansible_pull(self, place):
        place.commit("alice")
        (place.path / "ansible-pull").unlink()
        assert place.pull()["result"] == "failed"

    def test_a_failure_that_is_ignored(self):
        outcome = _pull.Outcome()
        for line in ("TASK [x] **", "fatal: [box]: FAILED! => {}", "...ignoring", "PLAY RECAP **"):
            outcome.read(line)
        outcome.read("box  : ok=2  changed=1  unreachable=0  failed=0  skipped=0")
        assert outcome.cause(0, "box") == ""

    @given(st.lists(st.text()))
    def test_any_output(self, lines):
        outcome = _pull.Outcome()
        for line in lines:
            outcome.read(line)
        assert outcome.cause(0, "box")

    def test_what_is_missing_on_a_host(self, place, monkeypatch):
        assert _pull.complaints(place.config) == []
        place.config.update(report_url="mqtts://x/y", vault_password_path="/nonexistent", ssh_key=str(place.tree))
        monkeypatch.setattr(_pull, "version_of", lambda command: (2, 14))
        monkeypatch.setattr(_pull.shutil, "which", lambda name: None)
        text = " ".join(_pull.complaints(place.config))
        for word in (
            "git 2.34",
            "ssh-keygen",
            "ansible-core 2.19",
            "mosquitto_pub",
            "_vault_password_path",
            "_ssh_key_",
        ):
            assert word in text


class TestWhatIsToldOfTheHost:
    """What the run has left, the audit's own report among it; and what is in the way of that."""

    RESULT = {
        "findings": [
            {"id": "NMQ-NET-001", "observed": True, "evidence": ["secret-word"]},
            {"id": "NMQ-TLS-001", "observed": False, "evidence": ["secret-word"]},
        ],
        "passed": sorted(set(_policy.RULES) - {"NMQ-NET-001", "NMQ-TLS-001"}),
        "observation": {"version": "0.25.6"},
    }

    def leave(self, place, document, **host):
        folder = place.state / "told"
        folder.mkdir(exist_ok=True)
        told = {"time": "2030-01-01T00:00:00Z", "version": "0.25.6", "certificate_ends": "2030-02-01T00:00:00Z"}
        (folder / "host.json").write_text(json.dumps({**told, "audit": True, **host}))
        (folder / "audit.json").write_text(document if isinstance(document, str) else report.render(document))

    def document(self, results):
        return report.build(results, {}, datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC))

    def test_the_audit_in_short(self, place):
        self.leave(place, self.document({"box": self.RESULT}))
        place.commit("alice")
        told = place.pull()
        assert told["broker"] == {
            "time": "2030-01-01T00:00:00Z",
            "version": "0.25.6",
            "certificate_ends": "2030-02-01T00:00:00Z",
        }
        severity = _policy.RULES["NMQ-NET-001"].severity
        expected = dict.fromkeys(reversed(_policy.SEVERITIES), 0) | {severity: 1}
        assert told["audit"]["findings"] == expected
        assert (told["audit"]["rules"], told["audit"]["not_observed"]) == (["NMQ-NET-001"], 1)
        assert (told["audit"]["state"], told["audit"]["time"]) == ("audited", "2030-01-01T00:00:00Z")
        assert "secret-word" not in json.dumps(told)

    def test_a_host_that_could_not_be_audited(self, place):
        self.leave(place, self.document({"box": {"failed": True, "msg": "secret-word"}}))
        told = _pull.told(place.config)
        assert (told["audit"]["state"], told["audit"]["rules"]) == ("not_audited", [])
        assert "secret-word" not in json.dumps(told)

    def test_an_audit_that_is_no_longer_wanted_is_not_told(self, place):
        self.leave(place, self.document({"box": self.RESULT}), audit=False)
        assert set(_pull.told(place.config)) == {"broker"}

    @pytest.mark.parametrize("document", ["", "{", "[]", "null", '{"hosts": []}', '{"hosts": [1], "summary": 1}'])
    def test_rubbish(self, place, document):
        self.leave(place, document)
        assert set(_pull.told(place.config)) == {"broker"}
        (place.state / "told/host.json").write_text(document)
        assert "audit" not in _pull.told(place.config)


class TestReports:
    """By HTTP here; a verified HTTPS is what the scenario has."""

    @pytest.fixture
    def collector(self, place):
        Collector.status, Collector.seen = 204, []
        server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        secret = place.path / "token"
        secret.touch(mode=0o600)
        secret.write_text("word\n")
        place.config["report_url"] = f"http://127.0.0.1:{server.server_port}/x"
        place.config["report_secret_path"] = str(secret)
        yield Collector
        server.shutdown()
        thread.join()
        server.server_close()

    def test_one_that_was_kept_comes_first(self, place, collector):
        collector.status = 503
        assert "503" in _pull.deliver(place.config, {"n": 1})
        collector.seen.clear()
        collector.status = 204
        assert _pull.deliver(place.config, {"n": 2}) == ""
        assert [body["n"] for _token, body in collector.seen] == [1, 2]
        assert collector.seen[0][0] == "Bearer word"
        assert not (place.state / "unsent.json").exists()

    def test_those_that_are_kept_are_bounded(self, place, collector):
        collector.status = 503
        for number in range(2 * _pull.UNSENT_LIMIT):
            _pull.deliver(place.config, {"n": number})
        collector.seen.clear()
        collector.status = 204
        assert _pull.deliver(place.config, {"n": 100}) == ""
        assert [body["n"] for _token, body in collector.seen] == [*range(11, 20), 100]

    def test_a_disk_that_is_full_keeps_no_report_from_being_sent(self, place, collector, monkeypatch):
        def full(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_pull, "save", full)
        assert _pull.deliver(place.config, {"n": 1}) == ""
        assert [body["n"] for _token, body in collector.seen] == [1]

    def test_a_redirection_is_not_followed(self, place, collector):
        collector.status = 307
        assert "307" in _pull.deliver(place.config, {"n": 1})
        assert len(collector.seen) == 1

    def test_a_token_that_others_can_read_is_not_sent(self, place, collector):
        (place.path / "token").chmod(0o644)
        assert "nobody else can read" in _pull.deliver(place.config, {"n": 1})
        assert collector.seen == []

    def test_a_password_in_a_url_is_not_shown(self):
        assert _pull.show_url("https://user:word@host/x?y") == "https://host/x"

    def test_of_results_the_worst_counts(self):
        report = {"result": "ok", "cause": ""}
        for result in ("changed", "refused", "unreachable"):
            _pull.note(report, result, result[:1])
        assert report == {"result": "refused", "cause": "c; r; u"}
