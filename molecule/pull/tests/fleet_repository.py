# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The repository that the device pulls, on the controller, and the people who commit to it."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

PROJECT = pathlib.Path(__file__).resolve().parents[3]
GIT_SECRET = "/etc/edgesec-nanomq-git"
CLIENT = "/usr/local/lib/edgesec-nanomq/enrol.py"

#: Whatever a device can be given that is secret, used by it or not.
SECRETS = {
    "nanomq_broker_users": {"sensor": "a-password-from-the-vault"},
    "nanomq_broker_http_password": "http-password-from-the-vault",
    "nanomq_pki_signer_secret": "signer-secret-from-the-vault",
    "nanomq_pki_given_key": "given-key-from-the-vault",
    "nanomq_pki_authority_passphrase": "authority-passphrase-from-the-vault",
    "nanomq_pki_jwt_passphrase": "jwt-passphrase-from-the-vault",
    "nanomq_audit_jwt_passphrase": "audit-passphrase-from-the-vault",
}


class FleetRepository:
    """Beside the inventory of the scenario, in ``place``: keys, and a work tree in ``repository``."""

    def __init__(self, place: pathlib.Path) -> None:
        self.place = place
        self.tree = place / "repository"
        self.variables = self.tree / "inventory/group_vars/brokers/vars.yml"

    def git(self, *arguments: str) -> str:
        ssh = ["ssh", "-F", "none", "-i", str(self.place / "pusher"), "-o", "IdentitiesOnly=yes"]
        ssh += ["-o", f"UserKnownHostsFile={self.place.parent}/known_hosts", "-o", "ControlPath=none"]
        who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.com"}
        who |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.com"}
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.tree,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | who | {"GIT_SSH_COMMAND": shlex.join(ssh), "GIT_CONFIG_GLOBAL": "/dev/null"},
        )
        return done.stdout.strip()

    def change(self, **variables: object) -> None:
        found = yaml.safe_load(self.variables.read_text()) if self.variables.exists() else {}
        self.variables.parent.mkdir(parents=True, exist_ok=True)
        self.variables.write_text(yaml.safe_dump(found | variables))

    def commit(self, signer: str = "", **variables: object) -> str:
        """Commit a change of variables, signed by somebody or nobody, and return the commit."""
        self.change(**variables)
        self.git("add", "--all", "--force")
        sign = ["-c", "gpg.format=ssh", "-c", f"user.signingKey={self.place / signer}"] if signer else []
        self.git(*sign, "commit", "--quiet", "--message=change", "-S" if signer else "--no-gpg-sign", "--allow-empty")
        return self.git("rev-parse", "HEAD")

    def people(self) -> list[dict[str, str]]:
        """Those who may sign, once the first of them has taken in the other."""
        keys = {name: (self.place / f"{name}.pub").read_text().strip() for name in ("alice", "mallory")}
        return [{"name": name, "key": key} for name, key in keys.items()]

    def https(self) -> dict[str, str]:
        """How the device reaches the remote by HTTPS."""
        return {
            "nanomq_pull_remote": "https://server:9444/fleet.git",
            "nanomq_pull_remote_ca": (self.place / "git_ca.pem").read_text(),
            "nanomq_pull_remote_secret_path": GIT_SECRET,
            "nanomq_pull_remote_username": "device",
        }

    def push(self, *, address: str) -> None:
        """Make the work tree's branch that of the remote, whatever that was."""
        self.git("push", "--quiet", "--force", f"ssh://fleet@{address}/srv/fleet.git", "HEAD:refs/heads/main")

    def reset(self, commit: str) -> None:
        self.git("reset", "--quiet", "--hard", commit)


def make(place: pathlib.Path, trusted: str) -> None:
    """Make all keys, and the first commit."""
    place.mkdir()
    for name in ("alice", "mallory", "deploy", "pusher"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(place / name)]
        subprocess.run(command, check=True)
    (place / "ca.pem").write_text(trusted)
    (place / "vault_password").write_text("the vault's password\n")
    (place / "collector_token").write_text("the-collectors-token\n")
    (place / "git_token").write_text("the-remotes-token\n")
    server = "-subj /CN=server -addext subjectAltName=DNS:server"
    for name, what in (
        ("collector", server),
        ("git_ca", "-subj /CN=Private"),
        ("git", f"{server} -addext basicConstraints=critical,CA:FALSE -CA git_ca.pem -CAkey git_ca.key"),
    ):
        made = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 {what}"
        made += f" -keyout {name}.key -out {name}.pem"
        subprocess.run(made.split(), cwd=place, check=True, capture_output=True)
    key = rsa.generate_private_key(65537, 3072)
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (place / "jwt.key").write_bytes(key.private_bytes(*private))
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    public = key.public_key().public_bytes(serialization.Encoding.PEM, kind).decode()
    der = key.public_key().public_bytes(serialization.Encoding.DER, kind)

    repository = FleetRepository(place)
    repository.tree.mkdir()
    repository.git("init", "--quiet", "--initial-branch=main")
    (repository.tree / "site.yml").write_text("- import_playbook: edgesec.nanomq.pull\n")
    (repository.tree / "inventory").mkdir()
    (repository.tree / "inventory/hosts.yml").write_text("brokers: {hosts: {device: {}}}\n")
    collection = repository.tree / "collections/ansible_collections/edgesec/nanomq"
    for name in ("plugins", "roles", "playbooks", "meta"):
        shutil.copytree(PROJECT / name, collection / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "galaxy.yml", collection)
    repository.change(
        nanomq_pki_server_source="command",
        nanomq_pki_server_trust=trusted,
        nanomq_pki_signer_command=["/usr/bin/python3", "-I", CLIENT, "/etc/edgesec-nanomq/pull/signer.json"],
        nanomq_broker_tls_ca=trusted,
        nanomq_broker_jwt_public_key=public,
        nanomq_broker_jwt_issuer=f"jwt-{hashlib.sha256(der).hexdigest()[:8]}.pub",
        nanomq_broker_mqtt_client_certificates=True,
    )
    secret = repository.variables.with_name("vault.yml")
    secret.write_text(yaml.safe_dump(SECRETS))
    vault = ["ansible-vault", "encrypt", "--vault-password-file", str(place / "vault_password"), str(secret)]
    subprocess.run(vault, check=True, capture_output=True)
    repository.commit("alice")


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]), sys.stdin.read())
