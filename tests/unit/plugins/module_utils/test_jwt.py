# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tokens, judged by PyJWT."""

from __future__ import annotations

import hashlib
import json
import time

import jwt as pyjwt
import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _crypto, _crypto_cryptography, _jwt
from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError, WrongPassphrase


@pytest.fixture(params=["cryptography", "openssl"])
def backend(request):
    return _crypto.choose_backend(request.param)


@pytest.fixture(scope="module")
def key():
    return _crypto.choose_backend("cryptography").generate_key("rsa-2048", b"secret")


@pytest.fixture(scope="module")
def public_key(key):
    return _crypto.choose_backend("cryptography").public_key(key, b"secret")


def some_claims():
    return _jwt.claims("jwt-1a2b3c4d.pub", 300)


class TestRefused:
    @pytest.mark.parametrize("end", [None, "1893456000", 1893456000.5])
    def test_a_token_without_an_integer_end(self, backend, key, end):
        claims = {**some_claims(), "exp": end}
        with pytest.raises(CryptoError, match="exp"):
            _jwt.mint(key, b"secret", claims, backend)

    def test_no_end_at_all(self, backend, key):
        with pytest.raises(CryptoError, match="exp"):
            _jwt.mint(key, b"secret", {"iss": "x"}, backend)

    def test_a_small_key(self, backend):
        with pytest.raises(CryptoError, match="1024 bits are too few"):
            _jwt.mint(_crypto.choose_backend("openssl").generate_key("rsa-1024"), None, some_claims(), backend)

    def test_a_key_of_another_kind(self, backend):
        with pytest.raises(CryptoError, match="no RSA key"):
            _jwt.mint(backend.generate_key("ec-p256"), None, some_claims(), backend)

    def test_a_wrong_passphrase(self, backend, key):
        with pytest.raises(WrongPassphrase):
            _jwt.mint(key, b"wrong", some_claims(), backend)


class TestMinted:
    def test_another_implementation_accepts_it(self, backend, key, public_key):
        claims = _jwt.claims("jwt-1a2b3c4d.pub", 300, subject="maintenance ☃")
        token = _jwt.mint(key, b"secret", claims, backend)
        options = {"require": ["exp", "iat", "iss", "jti", "sub"]}
        pem = der.to_pem("PUBLIC KEY", public_key)
        assert pyjwt.decode(token, pem, ["RS256"], issuer="jwt-1a2b3c4d.pub", options=options) == claims
        assert pyjwt.get_unverified_header(token) == {"alg": "RS256", "typ": "JWT"}

    def test_it_ends(self, backend, key, public_key):
        token = _jwt.mint(key, b"secret", _jwt.claims("x", 10, at=int(time.time()) - 20), backend)
        with pytest.raises(pyjwt.ExpiredSignatureError):
            pyjwt.decode(token, der.to_pem("PUBLIC KEY", public_key), ["RS256"])

    def test_another_key_does_not_accept_it(self, backend, key):
        token = _jwt.mint(key, b"secret", some_claims(), backend)
        stranger = backend.public_key(backend.generate_key("rsa-2048"))
        with pytest.raises(pyjwt.InvalidSignatureError):
            pyjwt.decode(token, der.to_pem("PUBLIC KEY", stranger), ["RS256"])

    def test_no_padding_and_three_parts(self, backend, key):
        token = _jwt.mint(key, b"secret", some_claims(), backend)
        assert "=" not in token
        assert len(token.split(".")) == 3

    def test_both_back_ends_make_the_same_token(self, key):
        claims = some_claims()
        tokens = {_jwt.mint(key, b"secret", claims, _crypto.choose_backend(name)) for name in _crypto.BACKENDS}
        assert len(tokens) == 1


def test_the_library_opens_the_key_once_for_a_token(key, monkeypatch):
    """To open one is most of what a token costs the controller."""
    opened = []
    library = _crypto_cryptography.serialization.load_pem_private_key
    monkeypatch.setattr(
        _crypto_cryptography.serialization,
        "load_pem_private_key",
        lambda *arguments, **options: opened.append(1) or library(*arguments, **options),
    )
    _crypto_cryptography.load_private_key.cache_clear()
    _jwt.mint(key, b"secret", some_claims(), _crypto.choose_backend("cryptography"))
    assert len(opened) == 1


def test_claims_are_integers_and_no_two_alike():
    first, second = _jwt.claims("x", 300, at=1000), _jwt.claims("x", 300, at=1000)
    assert (first["iat"], first["exp"]) == (1000, 1300)
    assert json.dumps(_jwt.claims("x", 300)["exp"]).isdigit()
    assert first["jti"] != second["jti"]
    assert "sub" not in first


def test_the_issuer_is_named_after_the_key(public_key):
    digest = hashlib.sha256(public_key).hexdigest()
    assert _jwt.key_id(public_key) == f"jwt-{digest[:8]}"
    assert _jwt.issuer(public_key) == f"jwt-{digest[:8]}.pub"
    assert _jwt.check_key(public_key) == 2048
