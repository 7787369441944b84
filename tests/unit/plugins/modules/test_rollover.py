# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A root with an intermediate, renewal, and the roll-over. What holds of chains, the openssl program says."""

from __future__ import annotations

import datetime
import grp
import itertools
import os
import pwd
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.action.tls_certificate import ActionModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority, _crl
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    choose_backend,
    load_certificates,
    make_request,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER, GROUP = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
COMMAND = "ansible-playbook edgesec.nanomq.harden -e nanomq_pki_authority_rollover="


class Controller:
    """The directories of an authority and of roots, and hosts that ask it for certificates."""

    def __init__(self, tmp_path, run_module, run_action):
        self.tmp_path, self.run_module, self.run_action = tmp_path, run_module, run_action
        self.path, self.root_path = tmp_path / "pki" / "ca", tmp_path / "medium" / "root"
        self.options = {"path": str(self.path)}

    def authority(self, *, check=False, **options):
        return self.run_module("tls_authority", {**self.options, **options}, check=check)

    def root(self, name="root", **options):
        """Make a root; return the options that name it."""
        path = self.root_path.parent / name
        made = self.run_module(
            "tls_authority",
            {"path": str(path), "common_name": name, "passphrase": "root-secret", **options},
        )
        assert not made["failed"], made
        return {"issuer_path": str(path), "issuer_passphrase": "root-secret"}

    def revoke(self, *names, **options):
        """What was given to these names so far is revoked."""
        result = self.run_module("tls_revocation", {"path": str(self.path), "common_names": list(names), **options})
        assert result["changed"], result

    def step(self, step, **options):
        """A step of the roll-over, with what it must have come to: changed once, and not again."""
        result = self.authority(rollover=step, **options)
        assert not result["failed"], result
        assert result["changed"], result
        before = snapshot(self.path)
        again = self.authority(rollover=step, **options)
        assert not again["failed"], again
        assert not again["changed"]
        assert snapshot(self.path) == before
        return result

    def host(self, name="host", *, backend="cryptography", check=False, **options):
        """The task of a host: its certificate is made, renewed, or left."""
        return self.run_action(
            ActionModule,
            {
                "name": "server",
                "path": str(self.tmp_path / "hosts" / name),
                "common_name": name,
                "subject_alt_names": [f"DNS:{name}"],
                "usages": ["server_auth", "client_auth"],
                "owner": USER,
                "group": GROUP,
                "authority_path": str(self.path),
                "backend": backend,
                **options,
            },
            check=check,
        )


@pytest.fixture
def controller(tmp_path, run_module, run_action):
    return Controller(tmp_path, run_module, run_action)


def snapshot(path):
    """Everything below a path: modes, content."""
    return {
        str(entry): (stat.S_IMODE(entry.lstat().st_mode), entry.read_bytes() if entry.is_file() else None)
        for entry in sorted(Path(path).rglob("*"))
    }


def blocks(pem):
    return [
        block + "-----END CERTIFICATE-----\n" for block in pem.split("-----END CERTIFICATE-----\n") if block.strip()
    ]


def sent(result):
    """The certificates that a host sends in a handshake."""
    return blocks(Path(result["certificate_path"]).read_text())


def verifies(tmp_path, chain, trusted, purpose="sslserver"):
    """Whether openssl takes what is sent in a handshake, trusting this alone."""
    (tmp_path / "leaf.pem").write_text(chain[0])
    (tmp_path / "untrusted.pem").write_text("".join(chain[1:]))
    (tmp_path / "trusted.pem").write_text("".join(trusted))
    command = ["openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-purpose", purpose]
    command += ["-CAfile", tmp_path / "trusted.pem"]
    if len(chain) > 1:
        command += ["-untrusted", tmp_path / "untrusted.pem"]
    command.append(tmp_path / "leaf.pem")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0


def text_of(pem):
    return subprocess.run(
        ["openssl", "x509", "-noout", "-text"], input=pem, capture_output=True, text=True, check=True
    ).stdout


class TestIntermediate:
    def test_it_is_made_below_the_root(self, controller, tmp_path):
        root = controller.root()
        result = controller.authority(passphrase="secret", **root)
        issuing, top = blocks(result["certificate"])
        assert top == (controller.root_path / "ca.pem").read_text()
        assert "CA:TRUE, pathlen:1" in text_of(issuing)
        assert "CA:TRUE, pathlen:1" in text_of(top)
        assert blocks(result["trusted"]) == [issuing, top]
        host = controller.host(authority_passphrase="secret")
        leaf, above = sent(host)
        assert above == issuing
        assert verifies(tmp_path, [leaf, above], [top])
        assert not verifies(tmp_path, [leaf], [top])
        # What those who send their certificate alone need.
        assert verifies(tmp_path, [leaf], blocks(host["authority_certificate"]))

    def test_neither_root_nor_passphrases_are_needed_afterwards(self, controller):
        root = controller.root()
        first = controller.authority(passphrase="secret", renew_before="10%", **root)
        shutil.rmtree(controller.root_path)
        before = snapshot(controller.path)
        for options in ({}, root, {"renew_before": "10%", **root}, {"issuer_path": root["issuer_path"]}):
            result = controller.authority(**options)
            assert result == {**first, "changed": False, "reason": ""}
        assert snapshot(controller.path) == before

    def test_a_host_in_force_needs_no_passphrase(self, controller):
        controller.authority(passphrase="secret", **controller.root())
        first = controller.host(authority_passphrase="secret")
        again = controller.host()
        assert not again["failed"]
        assert not again["changed"]
        assert again["serial"] == first["serial"]
        refused = controller.host("another")
        assert "no passphrase is given" in refused["msg"]

    def test_it_does_not_outlive_the_root(self, controller):
        root = controller.root(valid_for="20d")
        result = controller.authority(valid_for="100d", **root)
        end = datetime.datetime.fromisoformat(result["not_after"])
        assert end - datetime.datetime.now(datetime.UTC) < datetime.timedelta(days=21)

    @pytest.mark.parametrize(
        ("spoil", "options", "match"),
        [
            (shutil.rmtree, {}, "there is no authority in {root}, and it is needed now to sign: mount the medium"),
            (lambda root: (root / "ca.key").unlink(), {}, "ca.key is missing"),
            (lambda root: (root / "ca.key").chmod(0o640), {}, "open to group or others"),
            (lambda root: root.chmod(0o755), {}, "open to group or others"),
            (lambda root: (root / "ca.pem").write_text("x"), {}, "ca.pem is no certificate"),
            (lambda root: None, {"issuer_passphrase": "other-secret"}, "the passphrase is wrong"),
            (lambda root: None, {"issuer_passphrase": None}, "no passphrase is given"),
            (lambda root: None, {"common_name": "root"}, "cannot have the name of the root above it"),
            (lambda root: None, {"issuer_path": "{path}"}, "the root needs a directory of its own"),
        ],
    )
    def test_a_root_that_cannot_be_used(self, controller, spoil, options, match):
        wanted = {**controller.root(), **options}
        wanted = {name: value.format(path=controller.path) for name, value in wanted.items() if value is not None}
        spoil(controller.root_path)
        for check in (True, False):
            result = controller.authority(check=check, **wanted)
            assert result["failed"]
            assert match.format(root=controller.root_path) in result["msg"]
            assert not controller.path.exists()

    def test_a_root_that_may_sign_no_authority(self, controller):
        result = controller.authority(**controller.root(path_length=0))
        assert "may sign no other authority (its pathlen is 0)" in result["msg"]
        assert not controller.path.exists()

    @pytest.mark.parametrize(("ca", "begin", "match"), [(False, -1, "basicConstraints"), (True, -20, "expired at")])
    def test_a_root_that_is_none_or_has_ended(self, controller, ca, begin, match):
        root = controller.root(passphrase="root-secret")
        key = serialization.load_pem_private_key((controller.root_path / "ca.key").read_bytes(), b"root-secret")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
        since = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=begin)
        made = x509.CertificateBuilder(name, name, key.public_key(), 1, since, since + datetime.timedelta(days=10))
        made = made.add_extension(x509.BasicConstraints(ca, None), critical=True).sign(key, hashes.SHA256())
        (controller.root_path / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        assert match in controller.authority(**root)["msg"]
        assert not controller.path.exists()

    def test_a_root_is_not_put_above_what_signed_itself(self, controller):
        first = controller.authority()
        result = controller.authority(**controller.root())
        assert not result["changed"]
        assert result["fingerprint_sha256"] == first["fingerprint_sha256"]
        assert any(f"{COMMAND}introduce" in warning for warning in result["warnings"])


class TestRenewal:
    """An intermediate of 100 days, in its window or before it."""

    @pytest.fixture
    def root(self, controller):
        root = controller.root()
        controller.authority(valid_for="100d", **root)
        return root

    def test_before_the_window_once_in_it_and_not_after(self, controller, root):
        wanted = {"valid_for": "200d", **root}
        assert not controller.authority(renew_before="99d", **wanted)["changed"]
        before = snapshot(controller.path)
        planned = controller.authority(renew_before="101d", check=True, **wanted)
        assert planned["changed"]
        assert planned["reason"].startswith("expiring: at ")
        assert snapshot(controller.path) == before
        assert controller.authority(renew_before="101d", **wanted)["changed"]
        assert not controller.authority(renew_before="101d", **wanted)["changed"]

    @pytest.mark.parametrize("key", ["new", "same"])
    def test_what_the_old_one_signed_goes_on(self, controller, root, tmp_path, key):
        old_key = (controller.path / "ca.key").read_bytes()
        host = controller.host()
        old = sent(host)
        renewed = controller.authority(renew_before="101d", valid_for="200d", renewal_key=key, **root)
        assert ((controller.path / "ca.key").read_bytes() == old_key) is (key == "same")
        top = (controller.root_path / "ca.pem").read_text()
        trusted = blocks(renewed["trusted"])
        assert trusted == [*blocks(renewed["certificate"]), old[1]]
        for anchors, chain in itertools.product(([top], trusted), (old, old[:1])):
            assert verifies(tmp_path, chain, anchors) is (len(chain) == 2 or anchors == trusted)
        again = controller.host()
        assert again["renewed"]
        assert again["reason"].startswith("authority: ")
        assert verifies(tmp_path, sent(again), [top])
        assert verifies(tmp_path, sent(again)[:1], trusted)
        assert not controller.host()["changed"]

    def test_with_a_revocation_list_the_key_stays(self, controller, root):
        """The old certificate stays trusted, and once its list had run out nginx would refuse all clients of it."""
        controller.revoke()
        before = snapshot(controller.path)
        wanted = {"renew_before": "101d", "valid_for": "200d", **root}
        for check in (True, False):
            refused = controller.authority(check=check, **wanted)
            assert "has a revocation list (crl.pem)" in refused["msg"]
            assert "nanomq_pki_authority_renewal_key=same" in refused["msg"]
        assert snapshot(controller.path) == before
        renewed = controller.authority(renewal_key="same", **wanted)
        assert renewed["changed"]
        backend = choose_backend("cryptography")
        lists = _crl.load_lists((controller.path / "crl.pem").read_bytes())
        ours, _root, earlier = load_certificates(renewed["trusted"].encode(), "trusted")
        assert [one.is_signed_by(backend, authority) for one in lists for authority in (ours, earlier)] == [True, True]

    def test_root_absent(self, controller, root):
        shutil.rmtree(controller.root_path)
        before = snapshot(controller.path)
        result = controller.authority(renew_before="101d", valid_for="200d", **root)
        assert "it is needed now to sign: mount the medium" in result["msg"]
        assert snapshot(controller.path) == before
        # Without its name, what is not yet at its end goes on.
        assert not controller.authority(renew_before="101d", valid_for="200d")["failed"]

    def test_another_root(self, controller, root):
        before = snapshot(controller.path)
        result = controller.authority(renew_before="101d", valid_for="200d", **controller.root("other"))
        assert "is not signed by 'other'" in result["msg"]
        assert snapshot(controller.path) == before

    def test_no_passphrase_for_the_key(self, controller, root):
        shutil.rmtree(controller.path)
        controller.authority(valid_for="100d", passphrase="secret", **root)
        before = snapshot(controller.path)
        result = controller.authority(renew_before="101d", valid_for="200d", **root)
        assert "no passphrase is given" in result["msg"]
        assert snapshot(controller.path) == before

    def test_a_root_near_its_end(self, controller):
        root = controller.root(valid_for="30d")
        result = controller.authority(renew_before="40d", valid_for="200d", **root)
        assert "within renew_before: make another root" in result["msg"]
        assert not controller.path.exists()

    def test_an_intermediate_that_has_ended(self, controller, root):
        """It is renewed as long as the root has not ended; without the root the message says what to do."""
        top = _authority.open_root(str(controller.root_path), b"root-secret")
        ended = _authority._certify(
            x509.load_pem_x509_certificate((controller.path / "ca.pem").read_bytes()).subject,
            _authority.load_key(str(controller.path), None).public_key(),
            x509.load_der_x509_certificate(top.certificates[0].raw),
            top.key,
            _authority.now() - datetime.timedelta(days=9),
            _authority.now() - datetime.timedelta(days=1),
            path_length=0,
        )
        (controller.path / "ca.pem").write_bytes(ended.pem() + top.certificates[0].pem())
        refused = controller.authority()
        assert "expired at" in refused["msg"]
        assert "mount the root" in refused["msg"]
        # Nor does it sign.
        assert "expired at" in controller.host()["msg"]
        assert controller.authority(renew_before="10d", **root)["changed"]
        assert not controller.authority()["failed"]

    def test_what_signed_itself_is_renewed_with_its_key_alone(self, controller, tmp_path):
        first = controller.authority(valid_for="100d")
        old = sent(controller.host())
        assert not controller.authority(renew_before="101d", valid_for="200d")["changed"]
        renewed = controller.authority(renew_before="101d", valid_for="200d", renewal_key="same")
        assert renewed["changed"]
        assert renewed["not_after"] > first["not_after"]
        for trusted in (first["certificate"], renewed["certificate"], renewed["trusted"]):
            assert verifies(tmp_path, old, [trusted])
        assert not controller.host()["changed"]
        assert not controller.authority(renew_before="101d", valid_for="200d", renewal_key="same")["changed"]

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"renew_before": "3650d"}, "renew_before must be shorter"),
            ({"renew_before": "soon"}, "is not a duration"),
            ({"path_length": -1}, "path_length must be"),
        ],
    )
    def test_options(self, controller, options, match):
        assert match in controller.authority(**options)["msg"]
        assert not controller.path.exists()

    def test_near_the_end_the_command_is_named(self, controller):
        root = controller.root("near", valid_for="80d")
        warnings = [
            controller.authority(**options)["warnings"][-1]
            for options in ({"valid_for": "60d", **root}, {})
            if controller.authority(valid_for="60d", **root)
        ]
        assert all("-e nanomq_pki_root_path=DIRECTORY" in warning for warning in warnings)
        shutil.rmtree(controller.path)
        controller.authority(valid_for="60d")
        assert f"begins with {COMMAND}introduce" in controller.authority()["warnings"][-1]

    def test_a_host_is_told_as_well(self, controller):
        """Its certificate would be due at once, and again in every run."""
        controller.authority(valid_for="20d")
        refused = controller.host()
        assert "within renew_before of the certificate" in refused["msg"]
        assert f"begins with {COMMAND}introduce" in refused["msg"]
        shutil.rmtree(controller.path)
        controller.authority(valid_for="20d", **controller.root())
        assert "-e nanomq_pki_root_path=DIRECTORY" in controller.host()["msg"]

    def test_the_operators_have_a_command_of_their_own(self, controller):
        path = str(controller.tmp_path / "operators")
        controller.authority(path=path, valid_for="60d")
        warning = controller.authority(path=path)["warnings"][-1]
        assert warning.endswith("-e nanomq_pki_operators_rollover=introduce")


#: The kinds of authorities between which a roll-over leads: whether the old one, and the new one, are below a root.
KINDS = [(False, False), (False, True), (True, True)]


class TestRollover:
    @pytest.mark.parametrize("kinds", KINDS)
    @pytest.mark.parametrize("backend", ["cryptography", "openssl"])
    def test_who_is_let_in_when(self, controller, tmp_path, kinds, backend):
        """Every state of one side with every state of the other, which is whom it trusts, as openssl judges them."""
        old_root, new_root = (
            controller.root(name) if below else {} for name, below in zip(("old root", "new root"), kinds)
        )
        first = controller.authority(key_type="rsa-2048", passphrase="secret", **old_root)

        def host():
            result = controller.host(backend=backend, authority_passphrase="secret")
            assert not result["failed"], result
            again = controller.host(backend=backend)
            assert not again["changed"], again
            return {"chain": sent(result), "trusted": blocks(result["authority_certificate"])}

        def top(result):
            return blocks(result["certificate"])[-1:]

        options = {"passphrase": "secret", **new_root}
        states = {"old": host()}
        controller.step("introduce", **options)
        states["introduced"] = host()
        switched = controller.step("switch", **options)
        states["switched"] = host()
        controller.step("retire", **options)
        states["retired"] = host()

        chains = {name: state["chain"] for name, state in states.items()}
        assert chains["introduced"] == chains["old"]
        assert "pathlen:0" in text_of(chains["switched"][1])
        bare = {name: chain[:1] for name, chain in chains.items()}
        trusts = {name: state["trusted"] for name, state in states.items()}
        assert trusts["switched"] != trusts["introduced"] != trusts["old"] != trusts["retired"]
        for purpose in ("sslserver", "sslclient"):
            taken = {
                (have, trust): verifies(tmp_path, chains[have], trusts[trust], purpose)
                for have in chains
                for trust in trusts
            }
            # Nobody is locked out between a state and the next one, nor one after that but past the end.
            assert [pair for pair, good in taken.items() if not good] == [
                ("old", "retired"),
                ("introduced", "retired"),
                ("retired", "old"),
            ]
            # Those who send their certificate alone are taken by all who have been told of its authority.
            alone = {
                (have, trust): verifies(tmp_path, bare[have], trusts[trust], purpose)
                for have in bare
                for trust in trusts
            }
            assert [pair for pair, good in alone.items() if not good] == [
                ("old", "retired"),
                ("introduced", "retired"),
                ("switched", "old"),
                ("retired", "old"),
            ]
            # A client that was given the old root alone, at any time, works until the end of the roll-over.
            assert verifies(tmp_path, chains["switched"], top(first), purpose)
            assert not verifies(tmp_path, chains["retired"], top(first), purpose)
            assert verifies(tmp_path, chains["retired"], top(switched), purpose)

    def test_the_key_type_may_change_and_the_name_does_not(self, controller):
        first = controller.authority(key_type="rsa-2048", common_name="one")
        controller.step("introduce", key_type="ec-p384", common_name="two", valid_for="700d")
        result = controller.step("switch")
        assert (result["key_type"], result["common_name"]) == ("ec-p384", "one")
        assert result["fingerprint_sha256"] != first["fingerprint_sha256"]

    @pytest.mark.parametrize("length", [0, 1])
    def test_an_authority_without_room_for_the_cross_certificate(self, controller, tmp_path, length):
        """openssl does not count it, and mbedtls does (tests/contract), which is said."""
        first = controller.authority(path_length=length)
        introduced = controller.step("introduce")
        found = [warning for warning in introduced.get("warnings", []) if "has a path length of 0" in warning]
        assert len(found) == (1 if length == 0 else 0)
        controller.step("switch")
        assert verifies(tmp_path, sent(controller.host()), [first["certificate"]])

    def test_out_of_order(self, controller):
        def refused(step, *words):
            before = snapshot(controller.path)
            for check in (True, False):
                result = controller.authority(rollover=step, check=check)
                assert result["failed"], step
                assert all(word in result["msg"] for word in words), result["msg"]
            assert snapshot(controller.path) == before

        for step in ("introduce", "switch", "retire"):
            refused(step, "there is no authority", "nothing to roll over")
        assert not controller.path.exists()
        controller.authority()
        refused("switch", "there is no successor", f"{COMMAND}introduce")
        refused("retire", "no roll-over under way", f"{COMMAND}introduce")
        controller.step("introduce")
        refused("retire", "does not sign yet", f"{COMMAND}switch")
        controller.step("switch")
        refused("introduce", "signs already", f"{COMMAND}retire")
        controller.step("retire")
        refused("switch", "there is no successor")
        # A second roll-over, of the one before.
        for step in ("introduce", "switch", "retire"):
            controller.step(step)

    def test_without_a_step_it_stays_and_says_how_it_goes_on(self, controller):
        controller.authority()
        for step, following in (("introduce", "switch"), ("switch", "retire")):
            controller.step(step)
            before = snapshot(controller.path)
            result = controller.authority()
            assert not result["changed"]
            assert any(f"{COMMAND}{following}" in warning for warning in result["warnings"])
            assert snapshot(controller.path) == before

    def test_check_mode_changes_nothing(self, controller):
        controller.authority()
        for step in ("introduce", "switch", "retire"):
            before = snapshot(controller.path)
            planned = controller.authority(rollover=step, check=True)
            assert planned["changed"]
            assert planned["reason"].startswith("rollover: ")
            assert snapshot(controller.path) == before
            controller.step(step)
            assert not controller.authority(rollover=step, check=True)["changed"]

    @pytest.mark.parametrize("choice", ["archive", "destroy"])
    def test_the_key_of_the_retired_one(self, controller, choice):
        first = controller.authority(passphrase="secret")
        old = (controller.path / "ca.key").read_bytes()
        for step in ("introduce", "switch", "retire"):
            controller.step(step, passphrase="secret", retired_key=choice)
        kept = [data for name, (_mode, data) in snapshot(controller.path).items() if name.endswith(".key")]
        assert len(kept) == (2 if choice == "archive" else 1)
        assert (old in kept) is (choice == "archive")
        (certificate,) = controller.path.glob("retired-*.pem")
        assert certificate.read_text() == first["certificate"]
        assert all(mode == 0o600 for name, (mode, _data) in snapshot(controller.path).items() if name.endswith("key"))

    def test_retired_only_when_all_have_a_new_certificate(self, controller):
        """By what was given out: a host that was missed by the run is named, although nobody asks it."""
        controller.authority()
        for name in ("one", "two", "three"):
            controller.host(name)
        for step in ("introduce", "switch"):
            controller.step(step)
        controller.host("two")
        before = snapshot(controller.path)
        result = controller.authority(rollover="retire")
        assert "and none of the successor: one, three." in result["msg"]
        assert snapshot(controller.path) == before
        controller.host("one")
        controller.host("three", check=True)
        assert "none of the successor: three." in controller.authority(rollover="retire")["msg"]
        controller.step("retire", retire_unrenewed=True)
        # The one that was given up comes back, and is given a certificate at once.
        assert controller.host("three")["renewed"]

    def test_an_ended_certificate_holds_up_nobody(self, controller):
        controller.authority()
        backend = choose_backend("cryptography")
        asked = make_request(backend, backend.generate_key("ec-p256"), None, "gone", []).decode()
        request = _authority.Request("gone", (), ("client_auth",), "ec-p256", valid_for=1)
        _authority.sign(_authority.load(str(controller.path)), None, asked, request)
        for step in ("introduce", "switch"):
            controller.step(step)
        time.sleep(2)
        controller.step("retire")

    def test_a_revoked_certificate_holds_up_nobody(self, controller):
        """Whenever it was revoked; that of somebody else does, and is named alone."""
        controller.authority()
        for name in ("one", "two", "three", "four"):
            controller.host(name)
        controller.revoke("one")
        for step in ("introduce", "switch"):
            controller.step(step)
        controller.revoke("two")
        controller.host("three")
        before = snapshot(controller.path)
        result = controller.authority(rollover="retire")
        assert "and none of the successor: four (2 revoked and not counted). Run the playbook" in result["msg"]
        assert "or revoke what they have" in result["msg"]
        assert snapshot(controller.path) == before
        controller.host("four")
        assert controller.step("retire")["reason"] == (
            "rollover: the previous authority is retired (2 revoked and not counted)"
        )

    def test_what_is_revoked_is_no_replacement(self, controller):
        """A host whose new certificate was taken back would be locked out."""
        controller.authority()
        controller.host("one")
        for step in ("introduce", "switch"):
            controller.step(step)
        new = controller.host("one")
        controller.revoke(serials=[new["serial"]])
        assert "none of the successor: one. Run" in controller.authority(rollover="retire")["msg"]

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("rubbish\n", "is no revocation list|no list that this authority signed"),
            (None, "no list that this authority"),
        ],
    )
    def test_a_list_that_cannot_be_trusted(self, controller, tmp_path, text, match):
        """It could have any name on it, and nobody is given up by that."""
        controller.authority()
        controller.host("one")
        for step in ("introduce", "switch"):
            controller.step(step)
        if text is None:
            controller.run_module("tls_authority", {"path": str(tmp_path / "stranger")})
            controller.run_module("tls_revocation", {"path": str(tmp_path / "stranger")})
            text = (tmp_path / "stranger/crl.pem").read_text()
        (controller.path / "crl.pem").write_text(text)
        before = snapshot(controller.path)
        assert re.search(match, controller.authority(rollover="retire")["msg"])
        assert snapshot(controller.path) == before

    @pytest.mark.parametrize("missed", [("introduce",), ("switch",), ("introduce", "switch"), ("retire",)])
    def test_a_host_that_missed_steps_catches_up(self, controller, tmp_path, missed):
        controller.authority()
        reached, late = controller.host("reached"), controller.host("late")
        for step in ("introduce", "switch", "retire"):
            result = controller.step(step, retire_unrenewed=True)
            reached = controller.host("reached")
            if step not in missed:
                late = controller.host("late")
                # As soon as it is reached it has what the others have.
                assert late["authority_certificate"] == reached["authority_certificate"] == result["trusted"]
                assert sent(late)[1:] == sent(reached)[1:]
                assert verifies(tmp_path, sent(late), blocks(result["trusted"]))
            if step != "retire":
                # Until the end each takes the other, whatever it missed.
                for one, other in itertools.permutations((reached, late)):
                    assert verifies(tmp_path, sent(one), blocks(other["authority_certificate"]))
        late = controller.host("late")
        assert sent(late)[1:] == []
        assert verifies(tmp_path, sent(late), blocks(controller.authority()["certificate"]))

    @pytest.mark.parametrize("step", ["introduce", "switch"])
    @pytest.mark.parametrize(
        ("passphrase", "match"), [("other-secret", "the passphrase is wrong"), (None, "no passphrase is given")]
    )
    def test_passphrase(self, controller, step, passphrase, match):
        controller.authority(passphrase="secret")
        if step == "switch":
            controller.step("introduce", passphrase="secret")
        before = snapshot(controller.path)
        result = controller.authority(rollover=step, **({"passphrase": passphrase} if passphrase else {}))
        assert match in result["msg"]
        assert snapshot(controller.path) == before

    @pytest.mark.parametrize(
        ("spoil", "match"),
        [
            (lambda path: shutil.copyfile(path / "ca.key", path / "next.key"), "next.key and next.pem do not belong"),
            (lambda path: shutil.copyfile(path / "next.key", path / "ca.key"), "ca.key and ca.pem do not belong"),
            (lambda path: (path / "next.key").unlink(), "next.key is missing"),
            (lambda path: (path / "next.pem").write_text("x"), "next.pem is no certificate"),
            (
                lambda path: [(path / "next.key").unlink(), (path / "next.key").mkdir()],
                "next.key is not a regular file",
            ),
            (lambda path: (path / "previous.key").mkdir(), "previous.key is not a regular file: move it away"),
            (lambda path: (path / "cross.pem").mkdir(), "cross.pem is not a regular file"),
            (lambda path: (path / "next.key").chmod(0o604), "open to group or others"),
        ],
    )
    def test_a_switch_that_cannot_be(self, controller, spoil, match):
        controller.authority()
        controller.step("introduce")
        spoil(controller.path)
        before = snapshot(controller.path)
        for check in (True, False):
            result = controller.authority(rollover="switch", check=check)
            if not (check and "move it away" in match):
                assert match in result["msg"]
            assert snapshot(controller.path) == before

    def test_a_certificate_made_by_other_means(self, controller, tmp_path):
        """With authorityKeyIdentifier, as the documentation asks: openssl finds its issuer among two of one name."""
        controller.authority()
        (tmp_path / "extensions").write_text("basicConstraints=critical,CA:FALSE\nauthorityKeyIdentifier=keyid\n")
        request = ["openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key"]
        subprocess.run([*request, "-subj", "/CN=x", "-out", tmp_path / "csr"], check=True, capture_output=True)
        sign = ["openssl", "x509", "-req", "-in", tmp_path / "csr", "-CA", controller.path / "ca.pem", "-days", "2"]
        sign += ["-CAkey", controller.path / "ca.key", "-set_serial", "77", "-extfile", tmp_path / "extensions"]
        subprocess.run([*sign, "-out", tmp_path / "x.pem"], check=True, capture_output=True)
        for step, taken in (("introduce", True), ("switch", True), ("retire", False)):
            trusted = blocks(controller.step(step)["trusted"])
            for anchors in (trusted, trusted[::-1]):
                assert verifies(tmp_path, [(tmp_path / "x.pem").read_text()], anchors, "sslclient") is taken

    def test_to_the_same_root(self, controller):
        root = controller.root()
        controller.authority(**root)
        before = snapshot(controller.path)
        assert "is below the root" in controller.authority(rollover="introduce", **root)["msg"]
        assert snapshot(controller.path) == before

    def test_an_authority_that_cannot_be_told_from_its_successor(self, controller):
        """One made elsewhere, without a key identifier."""
        controller.authority()
        key = serialization.load_pem_private_key((controller.path / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elsewhere")])
        since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        made = x509.CertificateBuilder(name, name, key.public_key(), 1, since, since + datetime.timedelta(days=400))
        made = made.add_extension(x509.BasicConstraints(True, 0), critical=True).sign(key, hashes.SHA256())
        (controller.path / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        assert "no subject key identifier" in controller.authority(rollover="introduce")["msg"]

    def test_a_cut_change_is_finished_by_a_run_without_a_step(self, controller):
        controller.authority()
        controller.step("introduce")
        switched = controller.tmp_path / "switched"
        shutil.copytree(controller.path, switched)
        made = controller.run_module("tls_authority", {"path": str(switched), "rollover": "switch"})
        # As it would be right after the one rename that makes it true.
        change = controller.path / ".change"
        change.mkdir(mode=0o700)
        files = ["ca.key", "ca.pem", "previous.key", "previous.pem", "cross.pem"]
        for number, name in enumerate(files):
            shutil.copy(switched / name, change / str(number))
        (change / "record.json").touch(mode=0o600)
        (change / "record.json").write_text(
            '{"files": ' + str(files).replace("'", '"') + ', "remove": ["next.key", "next.pem"]}'
        )
        before = snapshot(controller.path)
        seen = controller.authority(check=True)
        assert (seen["changed"], seen["rollover"]) == (True, "switched")
        assert seen["reason"].startswith("unfinished: ")
        assert controller.host(check=True)["failed"] is False
        assert snapshot(controller.path) == before
        done = controller.authority()
        assert done["changed"]
        assert {name: done[name] for name in ("certificate", "trusted", "rollover")} == {
            name: made[name] for name in ("certificate", "trusted", "rollover")
        }
        assert sorted(os.listdir(controller.path)) == sorted(os.listdir(switched))
        assert not controller.authority()["changed"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give links away")
class TestLinks:
    def test_a_link_of_somebody_else_in_the_path(self, controller):
        controller.authority()
        link = controller.tmp_path / "link"
        link.symlink_to(controller.path.parent)
        assert not controller.authority(path=str(link / "ca"))["failed"]
        os.lchown(link, 12345, -1)
        result = controller.authority(path=str(link / "ca"))
        assert "is a symbolic link of user id 12345" in result["msg"]
        result = controller.run_module(
            "tls_authority", {"path": str(controller.tmp_path / "new"), "issuer_path": str(link / "ca")}
        )
        assert "is a symbolic link of user id 12345" in result["msg"]
        assert not (controller.tmp_path / "new").exists()
