# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The key pair that signs tokens."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import jwt as pyjwt
import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _crypto
from cryptography.hazmat.primitives import serialization

SIZE = 2048


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pki" / "jwt"


@pytest.fixture(params=["cryptography", "openssl"])
def keypair(request, run_module, path):
    """keypair(check=False, **options): a run of the module on that path, with each back end."""

    def make(check=False, **options):
        asked = {"path": str(path), "size": SIZE, "backend": request.param, **options}
        return run_module("jwt_keypair", asked, check=check)

    make.backend = request.param
    return make


def snapshot(path):
    return {
        entry.name: (stat.S_IMODE(entry.lstat().st_mode), entry.stat().st_mtime_ns, entry.read_bytes())
        for entry in sorted(Path(path).rglob("*"))
        if entry.is_file()
    }


class TestRefused:
    @pytest.fixture
    def refuse(self, keypair, path):
        def check(match, **options):
            before = snapshot(path.parent)
            for check_mode in (True, False):
                result = keypair(check=check_mode, **options)
                assert result["failed"]
                assert match in result["msg"]
            assert snapshot(path.parent) == before

        return check

    @pytest.mark.parametrize("size", [0, -1, 1024, 2047, 4097, 8192])
    def test_sizes(self, refuse, size):
        refuse("size must be from 2048 to 4096 bits", size=size)

    @pytest.mark.parametrize("name", ["", "../x", ".x", "a/b", "a b"])
    def test_names(self, refuse, name):
        refuse("name must be a plain file name", name=name)

    def test_wrong_passphrase(self, keypair, refuse):
        keypair(passphrase="one")
        refuse("fleet.key: it cannot be decrypted: the passphrase is wrong", passphrase="two")
        refuse("no passphrase is given")
        refuse("the passphrase is wrong", passphrase="two", regenerate=True)

    def test_passphrase_that_protects_nothing(self, keypair, refuse):
        keypair()
        refuse("not encrypted, though a passphrase is given", passphrase="one")

    @pytest.mark.parametrize(("kind", "match"), [("rsa-1024", "1024 bits are too few"), ("ec-p256", "no RSA key")])
    def test_a_key_that_is_not_fit(self, refuse, path, kind, match):
        path.mkdir(parents=True, mode=0o700)
        (path / "fleet.key").touch(mode=0o600)
        (path / "fleet.key").write_bytes(_crypto.choose_backend("openssl").generate_key(kind))
        refuse(match)

    def test_key_open_to_others(self, keypair, refuse, path):
        keypair()
        (path / "fleet.key").chmod(0o640)
        refuse("(mode 0640)")

    def test_directory_open_to_others(self, keypair, refuse, path):
        keypair()
        path.chmod(0o755)
        refuse("(mode 0755)")

    def test_links(self, keypair, refuse, path):
        keypair()
        (path / "fleet.key").rename(path / "real")
        (path / "fleet.key").symlink_to("real")
        refuse("fleet.key is a symbolic link")
        path.rename(path.parent / "real")
        path.symlink_to("real")
        refuse("jwt is a symbolic link")

    def test_public_key_alone(self, keypair, refuse, path):
        """Its private key may be in a backup: making another would lock everybody out."""
        keypair()
        (path / "fleet.key").unlink()
        refuse("restore the private key from a backup")

    def test_damaged_key(self, keypair, refuse, path):
        keypair()
        (path / "fleet.key").write_text("nonsense")
        refuse("fleet.key: it is not a PEM private key")


class TestMade:
    @pytest.mark.parametrize("passphrase", [None, "pä ss #{x}"])
    def test_it_signs_and_verifies_with_pyjwt(self, keypair, path, passphrase):
        result = keypair(passphrase=passphrase)
        assert (result["failed"], result["changed"], result["preview"]) == (False, True, False)
        key = serialization.load_pem_private_key(
            Path(result["private_key_path"]).read_bytes(), passphrase.encode() if passphrase else None
        )
        token = pyjwt.encode({"iss": result["issuer"]}, key, "RS256")
        assert pyjwt.decode(token, result["public_key"], ["RS256"])["iss"] == result["issuer"]

    def test_result_and_files(self, keypair, path):
        result = keypair(passphrase="secret", name="site-a")
        public_key = serialization.load_pem_public_key(result["public_key"].encode())
        der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert result["key_id"] == "jwt-" + hashlib.sha256(der).hexdigest()[:8]
        assert result["issuer"] == result["key_id"] + ".pub"
        assert (result["size"], public_key.key_size, result["backend"]) == (SIZE, SIZE, keypair.backend)
        found = snapshot(path)
        assert {name: mode for name, (mode, _time, _data) in found.items()} == {
            "site-a.key": 0o600,
            "site-a.pub": 0o644,
        }
        assert found["site-a.pub"][2].decode() == result["public_key"]
        assert found["site-a.key"][2].startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert stat.S_IMODE(path.stat().st_mode) == 0o700

    def test_second_run_changes_nothing(self, keypair, path):
        first = keypair(passphrase="secret")
        before = snapshot(path)
        assert keypair(passphrase="secret") == {**first, "changed": False}
        assert keypair(check=True, passphrase="secret") == {**first, "changed": False}
        assert snapshot(path) == before

    def test_the_other_back_end_agrees(self, keypair):
        first = keypair(passphrase="secret")
        other = {"cryptography": "openssl", "openssl": "cryptography"}[keypair.backend]
        assert keypair(passphrase="secret", backend=other) == {**first, "changed": False, "backend": other}

    def test_another_size_makes_no_other_key(self, keypair, path):
        first = keypair()
        before = snapshot(path)
        result = keypair(size=3072)
        assert (result["changed"], result["key_id"], result["size"]) == (False, first["key_id"], SIZE)
        assert any("regenerate" in warning for warning in result["warnings"])
        assert snapshot(path) == before

    @pytest.mark.parametrize("damage", ["missing", "other"])
    def test_the_public_key_is_made_again_from_the_private_one(self, keypair, path, damage):
        """As after a run that was cut between the two."""
        first = keypair()
        (path / "fleet.pub").write_text("other")
        if damage == "missing":
            (path / "fleet.pub").unlink()
        assert keypair(check=True)["changed"]
        result = keypair()
        assert (result["changed"], result["key_id"], result["preview"]) == (True, first["key_id"], False)
        assert (path / "fleet.pub").read_text() == first["public_key"]

    def test_regenerate(self, keypair, path):
        first = keypair(passphrase="secret")
        old = snapshot(path)
        second = keypair(passphrase="secret", regenerate=True)
        assert second["changed"]
        assert second["key_id"] != first["key_id"]
        found = snapshot(path)
        for suffix in ("key", "pub"):
            mode, _time, data = found[f"fleet-{first['key_id']}.{suffix}"]
            assert (mode, data) == (old[f"fleet.{suffix}"][0], old[f"fleet.{suffix}"][2])
        assert found["fleet.pub"][2].decode() == second["public_key"]


class TestCheckMode:
    def test_nothing_is_there_yet(self, keypair, path):
        result = keypair(check=True, passphrase="secret")
        assert (result["failed"], result["changed"], result["preview"]) == (False, True, True)
        assert "BEGIN PUBLIC KEY" in result["public_key"]
        assert result["private_key_path"] == str(path / "fleet.key")
        assert not path.parent.exists()

    def test_regenerate(self, keypair, path):
        first = keypair()
        before = snapshot(path)
        result = keypair(check=True, regenerate=True)
        assert (result["changed"], result["preview"]) == (True, True)
        assert result["key_id"] != first["key_id"]
        assert snapshot(path) == before


def test_by_default_it_is_3072_bits(run_module, tmp_path):
    assert run_module("jwt_keypair", {"path": str(tmp_path / "jwt")})["size"] == 3072
    assert os.path.exists(tmp_path / "jwt" / "fleet.key")
