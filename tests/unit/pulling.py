# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host that pulls has around it: a remote, people who sign, a collector, what stands for ansible-pull."""

from __future__ import annotations

import http.server
import json
import os
import pathlib
import subprocess

from ansible_collections.edgesec.nanomq.plugins.module_utils import _pull

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
            "remote_secret_path": "",
            "remote_username": "reader",
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
            "signer_url": "",
            "claim": "",
        }

    def allow(self, *names: str) -> None:
        lines = [f'{name} namespaces="git" {(self.path / f"{name}.pub").read_text()}' for name in names]
        (self.path / "allowed_signers").write_text("".join(lines))

    def runs(self, says: str, *, changed: int = 0, status: int = 0, recap: bool = True) -> None:
        """What ansible-pull does from now on. It notes the commit that it was given."""
        program = self.path / "ansible-pull"
        script = f"""#!/bin/sh
[ "$1" = --version ] && echo 'ansible-pull [core 2.19.4]' && exit
[ ! -e {self.state}/checkout ] || echo 'something was left there' >> {self.path}/wrong
git clone --quiet --template= --branch verified {self.state}/repository.git {self.state}/checkout || exit 1
cd {self.state}/checkout
[ -z "$(git status --porcelain)" ] || echo 'half a checkout' >> {self.path}/wrong
git rev-parse HEAD >> {self.path}/applied
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
        """The commits that were run, each from a checkout that was whole and its own."""
        assert not (self.path / "wrong").exists(), (self.path / "wrong").read_text()
        path = self.path / "applied"
        return path.read_text().split() if path.exists() else []


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


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves files, to all or to those alone who show what is ``wanted``."""

    wanted = None

    def do_GET(self):
        if self.wanted and self.headers.get("Authorization") != self.wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format, *args):
        pass
