# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Pulling, with real git and real signatures. A program that says what it is told to stands for ansible-pull."""

from __future__ import annotations

import http.server
import json
import os
import pathlib
import subprocess
import threading

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _pull
from hypothesis import given
from hypothesis import strategies as st

RECAP = "PLAY RECAP ****\nbox : ok=3    changed={changed}    unreachable=0    failed=0    skipped=0\n"


def git(tree: pathlib.Path, *arguments: str) -> str:
    who = {f"GIT_{role}_{what}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-c", "gpg.format=ssh", *arguments]
    environment = os.environ | who | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Place:
    """A remote, two people who sign, and a host."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.tree, self.state = path, path / "tree", path / "state"
        self.tree.mkdir()
        self.state.mkdir(mode=0o700)
        git(self.tree, "init", "--quiet", "--initial-branch=main")
        for name in ("alice", "mallory"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path / name)]
            subprocess.run(command, check=True)
        self.allow("alice")
        self.runs("", changed=0)
        self.config = {
            "remote": f"file://{self.tree}",
            "branch": "main",
            "at_least": "",
            "playbook": "site.yml",
            "inventory": "inventory",
            "name": "box",
            "signers": str(path / "allowed_signers"),
            "remote_ca": "",
            "ssh_key": "",
            "known_hosts": "",
            "size_limit": 2**20,
            "fetch_timeout": 20,
            "run_timeout": 20,
            "ansible_pull": str(path / "ansible-pull"),
            "vault_password_path": "",
            "state": str(self.state),
            "report_url": "",
            "report_ca": "",
            "report_secret_path": "",
            "report_username": "",
        }

    def allow(self, *names: str) -> None:
        lines = [f'{name} namespaces="git" {(self.path / f"{name}.pub").read_text()}' for name in names]
        (self.path / "allowed_signers").write_text("".join(lines))

    def runs(self, says: str, *, changed: int = 0, status: int = 0, recap: bool = True) -> None:
        """What ansible-pull does from now on. It notes the commit that it was given."""
        program = self.path / "ansible-pull"
        script = f"""#!/bin/sh
[ "$1" = --version ] && echo 'ansible-pull [core 2.19.4]' && exit
git --git-dir={self.state}/repository.git rev-parse verified >> {self.path}/applied
cat <<'END'
{says}
{RECAP.format(changed=changed) if recap else ""}
END
exit {status}
"""
        program.write_text(script)
        program.chmod(0o755)

    def commit(self, signer: str, **files: str) -> str:
        for name, text in files.items():
            (self.tree / name).write_text(text)
        git(self.tree, "add", "--all")
        sign = ["-c", f"user.signingKey={self.path / signer}"] if signer else []
        git(self.tree, *sign, "commit", "--quiet", "--allow-empty", "-m", "x", "-S" if signer else "--no-gpg-sign")
        return git(self.tree, "rev-parse", "HEAD")

    def pull(self) -> dict:
        return _pull.pull(self.config)

    def applied(self) -> list[str]:
        path = self.path / "applied"
        return path.read_text().split() if path.exists() else []


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


class TestRuns:
    def test_a_task_that_fails_is_named_without_its_message(self, place):
        place.commit("alice")
        place.runs('TASK [Put it there] **\nfatal: [box]: FAILED! => {"msg": "secret-word"}', status=2)
        report = place.pull()
        assert report["result"] == "failed"
        assert "'Put it there'" in report["cause"]
        assert "secret-word" not in json.dumps(report)
        assert report["applied"] == ""

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


class Collector(http.server.BaseHTTPRequestHandler):
    status, seen = 204, []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).seen.append((self.headers.get("Authorization"), json.loads(body)))
        self.send_response(type(self).status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, format, *args):
        pass


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
