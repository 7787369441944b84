# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tokens minted by a task and by a lookup, and that they are seen nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import jwt as pyjwt
import pytest
from ansible_collections.edgesec.nanomq.plugins.action.jwt_token import ActionModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _crypto

PASSPHRASE = "hunter2-passphrase"
BACKEND = _crypto.choose_backend("cryptography")


@pytest.fixture(scope="module")
def private_key():
    return BACKEND.generate_key("rsa-2048", PASSPHRASE.encode())


@pytest.fixture
def key_path(tmp_path, private_key):
    path = tmp_path / "fleet.key"
    path.touch(mode=0o600)
    path.write_bytes(private_key)
    return path


@pytest.fixture
def public_key(private_key):
    return _crypto.der.to_pem("PUBLIC KEY", BACKEND.public_key(private_key, PASSPHRASE.encode()))


@pytest.fixture
def mint(run_action, key_path):
    """mint(**options): the result of the task."""

    def act(check=False, **options):
        asked = {"private_key_path": str(key_path), "passphrase": PASSPHRASE, **options}
        return run_action(
            ActionModule, {name: value for name, value in asked.items() if value}, check=check, remote=None
        )

    return act


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"valid_for": "25h"}, "valid_for 25h is longer than max_valid_for 24h"),
            ({"valid_for": "2h", "max_valid_for": "1h"}, "is longer than"),
            ({"valid_for": "365d"}, "is longer than"),
            ({"valid_for": "300"}, "not a duration"),
            ({"valid_for": "0s"}, "duration"),
            ({"max_valid_for": "forever"}, "not a duration"),
            ({"passphrase": "wrong"}, "the passphrase is wrong"),
            ({"passphrase": None}, "no passphrase is given"),
            ({"private_key_path": "/nowhere/fleet.key"}, "there is no private key /nowhere/fleet.key"),
            ({"private_key_path": None}, "private_key_path"),
            ({"expires": "never"}, "Unsupported parameters"),
        ],
    )
    def test_options(self, mint, options, match):
        result = mint(**options)
        assert result["failed"]
        assert match in result["msg"]
        assert "token" not in result

    def test_key_open_to_others(self, mint, key_path):
        key_path.chmod(0o644)
        assert "(mode 0644)" in mint()["msg"]

    def test_key_of_another_kind(self, mint, key_path):
        key_path.write_bytes(BACKEND.generate_key("ec-p256", PASSPHRASE.encode()))
        assert "no RSA key" in mint()["msg"]


class TestMinted:
    def test_by_default_it_lives_for_five_minutes(self, mint, public_key):
        result = mint()
        claims = pyjwt.decode(result["token"], public_key, ["RS256"])
        assert claims["exp"] - claims["iat"] == 300
        assert abs(claims["iat"] - time.time()) < 10
        assert claims["exp"] == result["expires"]
        assert claims["iss"] == result["issuer"]
        assert result["issuer"].startswith("jwt-")
        assert result["changed"] is False

    def test_options(self, mint, public_key):
        result = mint(valid_for="25h", max_valid_for="26h", issuer="other.pub", subject="me")
        claims = pyjwt.decode(result["token"], public_key, ["RS256"])
        assert (claims["iss"], claims["sub"], claims["exp"] - claims["iat"]) == ("other.pub", "me", 25 * 3600)

    def test_each_is_another(self, mint):
        assert mint()["token"] != mint()["token"]

    def test_check_mode(self, mint):
        assert mint(check=True)["token"].count(".") == 2
        result = mint(check=True, private_key_path="/nowhere/fleet.key")
        assert (result["failed"], result["token"], result["expires"]) == (False, "", 0)


PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - edgesec.nanomq.tls_authority:
        path: "{{ root }}/ca"
        passphrase: hunter2-authority
      register: authority
    - edgesec.nanomq.tls_certificate:
        name: server
        path: "{{ root }}/host"
        common_name: broker
        subject_alt_names: ["DNS:broker.example"]
        key_passphrase: hunter2-key
        owner: "{{ lookup('pipe', 'id -un') }}"
        group: "{{ lookup('pipe', 'id -gn') }}"
        authority_path: "{{ authority.path }}"
        authority_passphrase: hunter2-authority
      register: pair
    - edgesec.nanomq.jwt_keypair:
        path: "{{ root }}/jwt"
        size: 2048
        passphrase: hunter2-jwt
      register: jwt_key
    - edgesec.nanomq.jwt_token:
        private_key_path: "{{ jwt_key.private_key_path }}"
        passphrase: hunter2-jwt
      register: minted
    - ansible.builtin.copy:
        content: "{{ minted.token }}"
        dest: "{{ root }}/token"
        mode: "0600"
      no_log: true
      diff: false
      when: not ansible_check_mode
    - ansible.builtin.assert:
        that: minted.issuer == jwt_key.issuer
      when: not ansible_check_mode
    - name: The lookup mints, too
      ansible.builtin.copy:
        content: >-
          {{ lookup('edgesec.nanomq.jwt_token', jwt_key.private_key_path, passphrase='hunter2-jwt', valid_for='1m',
                    subject='me') }}
        dest: "{{ root }}/looked-up"
        mode: "0600"
      no_log: true
      diff: false
      when: not ansible_check_mode
    - name: And has the same limit
      ansible.builtin.debug:
        msg: >-
          {{ lookup('edgesec.nanomq.jwt_token', jwt_key.private_key_path, passphrase='hunter2-jwt', valid_for='25h') }}
      ignore_errors: true
      register: refused
    - ansible.builtin.assert:
        that: refused.msg is search('valid_for 25h is longer than max_valid_for 24h')
"""


def play(root: Path, *options: str) -> tuple[dict[str, int], str]:
    """Run the play; return its statistics and all its output."""
    (root / "play.yml").write_text(PLAY)
    environment = {**os.environ, "ANSIBLE_LOCALHOST_WARNING": "false", "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false"}
    environment.update(ANSIBLE_HOME=str(root / "ansible"), ANSIBLE_NOCOLOR="1", ANSIBLE_DISPLAY_ARGS_TO_STDOUT="false")
    result = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), root / "play.yml", "-e", f"root={root}", *options],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    recap = output.rpartition("PLAY RECAP")[2].splitlines()[1]
    return {name: int(number) for name, number in (part.split("=") for part in recap.partition(":")[2].split())}, output


def test_a_whole_play_shows_no_secret(tmp_path):
    """In check mode on nothing, then for real, then again; with everything that Ansible can be made to print."""
    statistics, output = play(tmp_path, "--check", "-vvvv", "--diff")
    assert statistics["changed"] == 3
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ansible", "play.yml"]
    assert "hunter2" not in output

    statistics, output = play(tmp_path, "-vvvv", "--diff")
    assert statistics["changed"] == 5
    public_key = (tmp_path / "jwt" / "fleet.pub").read_text()
    tokens = [(tmp_path / name).read_text() for name in ("token", "looked-up")]
    lives = [pyjwt.decode(token, public_key, ["RS256"]) for token in tokens]
    assert [life["exp"] - life["iat"] for life in lives] == [300, 60]
    assert "hunter2" not in output
    assert "PRIVATE KEY" not in output
    for token in tokens:
        for part in token.split(".")[1:]:
            assert part not in output

    statistics, _output = play(tmp_path)
    assert statistics["changed"] == 2, "the two tokens, which are others each time"
