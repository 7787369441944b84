# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every refusal that variables alone decide, in roles and playbooks: wrong ones are refused, and right ones are not.

Each case is a host of its own, for which nobody answers. Other refusals are tried elsewhere; the last test knows where.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex

import ansible_runner
import pytest
import yaml
from task_lists import tasks

PROJECT = pathlib.Path(__file__).resolve().parents[3]
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== a"
RELAY = {"port": 7001, "protocol": "mqtt", "server": "far.example:8883", "ca": PEM}


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A task, what is right there, and what is wrong: (variables, words of the message)."""

    place: str
    task: str
    right: dict
    wrong: list[tuple[dict, str]]
    #: It is tried once for all hosts: there can be one case, and nothing is seen of what is right.
    once: bool = False

    @property
    def play(self) -> dict:
        """Which comes to it."""
        kind, name, *rest = pathlib.PurePath(self.place).with_suffix("").parts
        if kind == "playbooks":
            return {"import_playbook": f"edgesec.nanomq.{name}"}
        role = {"name": f"edgesec.nanomq.{name}", "tasks_from": rest[-1]}
        # Started at its first task, a play would look at the hosts after all.
        tasks = [{"name": "Begin", "ansible.builtin.meta": "noop"}, {"name": "The role", "import_role": role}]
        return {"hosts": "all", "gather_facts": False, "tasks": tasks}


PULL = {
    "nanomq_pull_remote": "https://git.example/fleet.git",
    "nanomq_pull_signers": [{"name": "alice", "key": KEY}],
}
BY_SSH = {"nanomq_pull_remote": "ssh://fleet@git.example:22/fleet.git"}
NGINX = {
    "nanomq_host": {"os_family": "debian"},
    "nanomq_nginx_client_ca": PEM,
    "nanomq_nginx_tls_certificate_path": "/etc/cert.pem",
    "nanomq_nginx_tls_key_path": "/etc/key.pem",
    "nanomq_nginx_relays": [RELAY],
}
DEVICE = {
    "nanomq_pki_server_source": "command",
    "nanomq_broker_tls_ca": PEM,
    "nanomq_broker_jwt_public_key": "a key",
    "nanomq_broker_jwt_issuer": "a.pub",
}
SIGNER = {"nanomq_signer_hosts": {"meter-1": {"names": ["DNS:meter-1"]}}}
PACKAGE = {"nanomq_broker_package": "/srv/nanomq.deb", "nanomq_broker_package_sha256": "0" * 64}
TUNNEL = {
    "nanomq_host": {"os_family": "debian"},
    "nanomq_ssh_tunnel_keys": [KEY],
    # Nobody is waited for.
    "nanomq_ssh_tunnel_confirm_within": 0,
}

REFUSALS = [
    Refusal(
        "roles/nanomq_pull/tasks/main.yml",
        "Refuse what could pull nothing, or anything",
        PULL,
        [
            ({"nanomq_pull_remote": ""}, "nanomq_pull_remote is where the commits come from"),
            ({"nanomq_pull_remote": "git://git.example/fleet.git"}, "and not git:// or a path"),
            ({"nanomq_pull_remote": "https://user:word@git.example/fleet.git"}, "URL without a password"),
            ({"nanomq_pull_remote": "https://git.example/a' b"}, "nanomq_pull_remote is where"),
            ({"nanomq_pull_signers": []}, "nanomq_pull_signers is empty"),
            ({"nanomq_pull_signers": [{"name": "a b", "key": KEY}]}, "nanomq_pull_signers: each has a name"),
            ({"nanomq_pull_signers": [{"name": "a", "key": f"{KEY}\n{KEY}"}]}, "as key one line"),
            ({"nanomq_pull_signers": [{"name": "a", "key": 'cert-authority ssh-rsa AAAA"'}]}, "as key one line"),
            ({"nanomq_pull_at_least": "5f0c"}, "nanomq_pull_at_least is the full hash"),
            ({"nanomq_pull_branch": "main; id"}, "nanomq_pull_branch: letters, digits"),
            ({"nanomq_pull_branch": "-main"}, "nanomq_pull_branch: letters, digits"),
            ({"nanomq_pull_playbook": "../site.yml"}, "relative to the repository"),
            ({"nanomq_pull_playbook": "a/../../site.yml"}, "relative to the repository"),
            ({"nanomq_pull_inventory": "$(id)"}, "nanomq_pull_inventory: letters, digits"),
            ({"nanomq_pull_name": "a,b"}, "nanomq_pull_name: letters, digits"),
            ({"nanomq_pull_ansible_pull": "ansible-pull"}, "nanomq_pull_ansible_pull: an absolute path"),
            ({"nanomq_pull_ssh_key_path": "/etc/a key"}, "nanomq_pull_ssh_key_path: an absolute path"),
            ({"nanomq_pull_vault_password_path": "~/vault"}, "nanomq_pull_vault_password_path: an absolute path"),
            ({"nanomq_pull_report_secret_path": "/a\n/b"}, "nanomq_pull_report_secret_path: an absolute path"),
            ({"nanomq_pull_remote_secret_path": "/a;b"}, "nanomq_pull_remote_secret_path: an absolute path"),
            (BY_SSH, "nanomq_pull_ssh_known_hosts: with ssh:// the host key"),
            (
                {**BY_SSH, "nanomq_pull_ssh_known_hosts": f"git.example {KEY}", "nanomq_pull_remote_secret_path": "/a"},
                "nanomq_pull_remote_secret_path is for a remote by https://",
            ),
            ({"nanomq_pull_remote_username": ""}, "nanomq_pull_remote_username: letters, digits"),
            ({"nanomq_pull_remote_username": "a\nb"}, "nanomq_pull_remote_username: letters, digits"),
            ({"nanomq_pull_report_url": "http://collector.example/x"}, "nanomq_pull_report_url is an https:// URL"),
            ({"nanomq_pull_report_url": "mqtts://broker.example:8883"}, "nanomq_pull_report_url is an https:// URL"),
            ({"nanomq_pull_signer_url": "http://signer.example"}, "nanomq_pull_signer_url is an https:// URL"),
            ({"nanomq_pull_signer_url": "https://signer.example:8443"}, "nanomq_pull_signer_ca the PEM text"),
            ({"nanomq_pull_calendar": "hourly\nOnBootSec=1"}, "are one line each"),
            ({"nanomq_pull_random_delay": "%h"}, "are one line each"),
            ({"nanomq_pull_memory_max": "1\n2"}, "are one line each"),
        ],
    ),
    Refusal(
        "roles/nanomq_pki/tasks/device.yml",
        "Refuse to make a CA on a device",
        DEVICE,
        [
            ({"nanomq_pki_server_source": "authority"}, "has neither the CA nor the key"),
            ({"nanomq_broker_tls_ca": ""}, "nanomq_broker_tls_ca"),
            ({"nanomq_broker_jwt_public_key": ""}, "nanomq_broker_jwt_public_key"),
            ({"nanomq_broker_jwt_issuer": ""}, "nanomq_broker_jwt_issuer"),
        ],
    ),
    Refusal(
        "roles/nanomq_signer/tasks/main.yml",
        "Refuse a service that could sign for nobody",
        SIGNER,
        [
            ({"nanomq_signer_hosts": {}}, "nanomq_signer_hosts says which host"),
            ({"nanomq_signer_hosts": {"meter-1": {"valid_for": "30d"}}}, "nanomq_signer_hosts says which host"),
            ({"nanomq_signer_names": []}, "nanomq_signer_names are those of the service"),
            ({"nanomq_signer_authority_path": "ca"}, "nanomq_signer_authority_path is an absolute path"),
            ({"nanomq_signer_authority_path": "/ca dir"}, "nanomq_signer_authority_path is an absolute path"),
        ],
    ),
    Refusal(
        "roles/nanomq_rollback/tasks/main.yml",
        "Refuse half a wish",
        {},
        [({"nanomq_rollback_to": "3"}, "but of which transaction?"), ({"nanomq_rollback_to": 3}, "is 3, but of which")],
    ),
    Refusal(
        "roles/nanomq_nginx/tasks/main.yml",
        "Refuse what nginx could not be asked for",
        NGINX,
        [
            ({"nanomq_nginx_rate": "0/second"}, "nanomq_nginx_rate is to be like 20/second (0/second)"),
            ({"nanomq_nginx_rate": "20r/s"}, "nanomq_nginx_rate is to be like 20/second (20r/s)"),
            ({"nanomq_nginx_server_names": []}, "nanomq_nginx_server_names a list of host names"),
            ({"nanomq_nginx_server_names": ["a;b"]}, "nanomq_nginx_server_names a list of host names"),
            ({"nanomq_nginx_client_ca": ""}, "nanomq_nginx_client_ca PEM text"),
            ({"nanomq_nginx_client_ca": "/etc/ca.pem"}, "nanomq_nginx_client_ca PEM text"),
            ({"nanomq_nginx_tls_certificate_path": ""}, "nanomq_nginx_tls_certificate_path"),
            ({"nanomq_nginx_tls_key_path": ""}, "nanomq_nginx_tls_key_path"),
            ({"nanomq_nginx_tls_key_path": "/etc/a key;"}, "absolute paths without blanks"),
            ({"nanomq_nginx_relays": [{**RELAY, "server": "far.example"}]}, "server is to be like far.example:8883"),
            ({"nanomq_nginx_relays": [{**RELAY, "server_name": "a b"}]}, "server_name a host name"),
            ({"nanomq_nginx_relays": [{**RELAY, "ca": "/etc/ca.pem"}]}, "ca PEM text, and paths as above"),
            ({"nanomq_nginx_relays": [{**RELAY, "certificate_path": "own.pem"}]}, "ca PEM text, and paths as above"),
            ({"nanomq_nginx_relays": [{**RELAY, "key_path": "own.key"}]}, "ca PEM text, and paths as above"),
        ],
    ),
    Refusal(
        "roles/nanomq_ssh_tunnel/tasks/main.yml",
        "Refuse an account that is somebody's",
        TUNNEL,
        [
            ({"nanomq_ssh_tunnel_user": "root"}, "neither root nor the account that Ansible logs in by"),
            ({"nanomq_ssh_tunnel_user": "admin", "ansible_user": "admin"}, "nanomq_ssh_tunnel_user is admin"),
            ({"nanomq_ssh_tunnel_user": "Admin"}, "must be a name of lower case letters"),
            ({"nanomq_ssh_tunnel_user": "a b"}, "must be a name of lower case letters"),
        ],
    ),
    Refusal(
        "roles/nanomq_ssh_tunnel/tasks/main.yml",
        "Refuse a tunnel that nobody could use, or what is no key",
        TUNNEL,
        [
            ({"nanomq_ssh_tunnel_keys": []}, "Nobody could use the tunnel"),
            ({"nanomq_ssh_tunnel_keys": [f'command="id" {KEY}']}, "each one line that begins with its type"),
            ({"nanomq_ssh_tunnel_user_ca": "/etc/ca.pub"}, "each one line that begins with its type"),
            ({"nanomq_ssh_tunnel_keys": [{"key": KEY, "command": "id"}]}, 'and not: "command"'),
            ({"nanomq_ssh_tunnel_keys": [{"key": KEY, "from": 'a",command="id'}]}, "only key, from (addresses)"),
            ({"nanomq_ssh_tunnel_keys": [{"key": KEY, "expires": "tomorrow"}]}, 'and not: "tomorrow"'),
            ({"nanomq_ssh_tunnel_user_ca": KEY, "nanomq_ssh_tunnel_principals": []}, "names without spaces"),
            ({"nanomq_ssh_tunnel_user_ca": KEY, "nanomq_ssh_tunnel_principals": ["a b"]}, "names without spaces"),
        ],
    ),
    Refusal(
        "roles/nanomq_ssh_tunnel/tasks/operator.yml",
        "Refuse a broker whose host key nobody knows",
        {"nanomq_ssh_tunnel_brokers": ["right"], "nanomq_ssh_tunnel_host_key": KEY},
        [
            (
                {"nanomq_ssh_tunnel_brokers": ["wrong-0"], "nanomq_ssh_tunnel_host_key": ""},
                "The host key of wrong-0 is not",
            ),
            ({"nanomq_ssh_tunnel_brokers": ["right", "wrong-0"]}, "The host key of wrong-0 is not known"),
        ],
    ),
    Refusal(
        "roles/nanomq_ssh_tunnel/tasks/operator.yml",
        "Refuse local ports that collide",
        {
            "nanomq_ssh_tunnel_brokers": ["right", "wrong-0"],
            "nanomq_ssh_tunnel_host_key": KEY,
            "nanomq_ssh_tunnel_local_port": 18090,
        },
        [
            (
                {"nanomq_ssh_tunnel_local_port": 18091, "nanomq_ssh_tunnel_brokers": ["right", "wrong-1"]},
                "share a local port",
            ),
            ({"nanomq_ssh_tunnel_brokers": ["right", "wrong-1"]}, "share a local port (18090, 18090)"),
        ],
    ),
    Refusal(
        "roles/nanomq_broker/tasks/fetch.yml",
        "Refuse a package without a checksum",
        PACKAGE,
        [
            ({"nanomq_broker_package": "nanomq.deb"}, "an absolute path on the controller, or a URL"),
            (
                {"nanomq_broker_package": "ftp://packages.example/nanomq.deb"},
                "an absolute path on the controller, or a URL",
            ),
            ({"nanomq_broker_package_sha256": ""}, "64 lower-case hexadecimal digits"),
            ({"nanomq_broker_package_sha256": "0" * 63}, "64 lower-case hexadecimal digits"),
        ],
    ),
    Refusal(
        "roles/nanomq_broker/tasks/install.yml",
        "Refuse a package that holds another version than it should",
        {"nanomq_host": {"broker_version": "0.25.6"}, "nanomq_broker_version": "0.25.6"},
        [({"nanomq_broker_version": "0.25.3"}, "is 0.25.3, but the package installed 0.25.6")],
    ),
    Refusal(
        "roles/nanomq_pki/tasks/jwt_token.yml",
        "Refuse a token without a place",
        {},
        [({"nanomq_pki_jwt_token_path": "token.jwt"}, "the absolute path of a file on the controller")],
        once=True,
    ),
    *(
        Refusal(
            f"playbooks/{name}.yml",
            "Refuse a front end that there is none of",
            {},
            [
                ({"nanomq_front_ends": ["haproxy"]}, "nanomq_front_ends is a list of nginx and ssh_tunnel"),
                ({"nanomq_front_ends": ["nginx", "tunnel"]}, "nanomq_front_ends is a list of nginx and ssh_tunnel"),
            ],
        )
        for name in ("harden", "pull")
    ),
]

#: The others: who tries them, and words there.
ELSEWHERE = {
    ("roles/nanomq_audit/tasks/main.yml", "Insist on the reports"): (
        "tests/unit/roles/test_nanomq_audit.py",
        '"reports is not a directory" in play.output',
    ),
    ("roles/nanomq_awx/tasks/answers.yml", "Refuse answers that the survey does not allow"): (
        "tests/unit/playbooks/test_awx_job.py",
        'f"{variable} is " in done.flat()',
    ),
    ("roles/nanomq_awx/tasks/answers.yml", "Refuse a directory of keys that would end with the job"): (
        "tests/unit/playbooks/test_awx_job.py",
        '"nanomq_pki_dir is " in done.flat()',
    ),
    ("roles/nanomq_broker/tasks/fetch.yml", "Refuse a package that is not the one meant"): (
        "tests/unit/roles/test_nanomq_broker_package.py",
        '"another file: its SHA-256 is" in output',
    ),
    ("roles/nanomq_firewall/tasks/main.yml", "Refuse what would cut off the operator"): (
        "molecule/firewall/tests/test_firewall.py",
        "is the port of ssh",
    ),
    ("roles/nanomq_pki/tasks/revoke.yml", "Refuse to leave a host without a user"): (
        "molecule/rotation/tests/test_revocation.py",
        '"would leave none of nanomq_broker_users" in run.flat()',
    ),
}


def refusals() -> set[tuple[str, str]]:
    """The tasks that refuse something, in roles and playbooks: (file, name)."""
    return {
        (str(path.relative_to(PROJECT)), task["name"])
        for path in [*PROJECT.glob("roles/*/tasks/**/*.yml"), *PROJECT.glob("playbooks/**/*.yml")]
        for task in tasks(yaml.safe_load(path.read_text()))
        if {"ansible.builtin.assert", "ansible.builtin.fail"} & set(task)
    }


def play(refusal: Refusal, hosts: dict[str, dict], place: pathlib.Path) -> dict[str, tuple[str, str]]:
    """What became of each host at the task: (how, the message). What comes after it counts as getting past it."""
    # Nobody answers at this port.
    nobody = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_become": False, "nanomq_pki_dir": f"{place}/pki"}
    done = ansible_runner.run(
        private_data_dir=str(place),
        playbook=[refusal.play],
        inventory={"brokers": {"vars": nobody, "hosts": hosts}},
        # A role may look at the host before.
        cmdline=None if "import_playbook" in refusal.play else shlex.join(["--start-at-task", refusal.task]),
        envvars={"ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_FORKS": "10"},
        quiet=True,
    )
    found: dict[str, tuple[str, str]] = {}
    for event in done.events:
        data, kind = event["event_data"], event["event"]
        if kind in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable"):
            is_it = data["task"].rpartition(" : ")[2] == refusal.task
            how = "refused" if is_it and kind == "runner_on_failed" else "let past"
            found[data["host"]] = (how, str(data["res"].get("msg", "")))
    return found


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.place}: {refusal.task}")
def test_what_is_wrong_is_refused_and_what_is_right_is_not(refusal, tmp_path):
    wrong = {f"wrong-{number}": variables for number, (variables, _words) in enumerate(refusal.wrong)}
    hosts = {name: {**refusal.right, **variables} for name, variables in wrong.items()}
    if not refusal.once:
        hosts["right"] = refusal.right
    found = play(refusal, hosts, tmp_path)
    assert sorted(found) == sorted(hosts)
    for (name, variables), (_variables, words) in zip(wrong.items(), refusal.wrong):
        how, message = found[name]
        assert how == "refused", (variables, message)
        assert words in message, variables
    assert refusal.once or found["right"][0] == "let past", found["right"]


def test_each_refusal_is_tried():
    """Here, or where it is said to be."""
    here = [(refusal.place, refusal.task) for refusal in REFUSALS]
    assert sorted(refusals()) == sorted([*here, *ELSEWHERE])
    for path, words in ELSEWHERE.values():
        assert words in (PROJECT / path).read_text(), path
