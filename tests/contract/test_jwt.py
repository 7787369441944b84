"""Tokens of the REST interface: what is checked, and what is not."""

from __future__ import annotations

import base64
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from harness import HTTP_PORT, QUIET, TCP, Reply
from material import make_key, public_pem, token, token_key


def start(broker, key=None, name="jwt.pub"):
    """A broker that asks for tokens, with this public key in a file of this name; no file for None."""
    path = broker.directory / name
    if key is not None:
        path.write_bytes(key)
    return broker(
        QUIET + TCP + f'http_server {{ port = {HTTP_PORT}, ip_addr = "127.0.0.1", auth_type = jwt, '
        f'jwt {{ public {{ keyfile = "{path}" }} }} }}\n'
    )


def bearer(running, text):
    return running.get("/nodes", f"Bearer {text}")


def encode(data):
    """Base64 as tokens have it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def resigned(**header):
    """A token with a header of choice and a genuine RS256 signature."""
    signed = f"{encode(json.dumps(header).encode())}.{token().split('.')[1]}"
    return f"{signed}.{encode(token_key().sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def hs256_with_the_public_key():
    """The classic confusion of algorithms, which PyJWT itself would refuse to sign."""
    header = encode(b'{"alg":"HS256","typ":"JWT"}')
    signed = f"{header}.{token().split('.')[1]}"
    return f"{signed}.{encode(hmac.digest(public_pem(), signed.encode(), 'sha256'))}"


def test_what_is_accepted(broker):
    running = start(broker, public_pem())
    accepted = {
        "plain": token(),
        "expired 150 s ago": token(lifetime=-150),
        "expiry as text": token(lifetime="4102444800"),
        "expiry in the year 9999": token(lifetime=8000 * 365 * 86400),
        "not before tomorrow": token(nbf=4102444800),
        "issued tomorrow": token(iat=4102444800),
        "for somebody else": token(aud="elsewhere", sub="nobody"),
        "header says HS256": resigned(alg="HS256", typ="JWT"),
        "header says none": resigned(alg="none"),
    }
    assert {name: bearer(running, text).status for name, text in accepted.items()} == dict.fromkeys(accepted, 200)


def test_what_is_refused(broker):
    running = start(broker, public_pem())
    head, _claims, signature = token().split(".")
    refused = {
        "expired 260 s ago": (token(lifetime=-260), 116),
        "no expiry": (token(lifetime=None), 116),
        "other issuer": (token(issuer="other"), 103),
        "no issuer": (token(issuer=None), 103),
        "other key": (token(key=make_key("rsa")), 103),
        "algorithm none": (jwt.encode({"iss": "jwt.pub", "exp": 4102444800}, None, "none"), 103),
        "HS256 with the public key": (hs256_with_the_public_key(), 103),
        "RS512": (token(algorithm="RS512"), 103),
        "PS256": (token(algorithm="PS256"), 103),
        "no signature": (f"{token().rpartition('.')[0]}.", 103),
        "claims of another": (f"{head}.{token(extra=1).split('.')[1]}.{signature}", 103),
        "no token": ("nonsense", 103),
    }
    for name, (text, code) in refused.items():
        assert (name, bearer(running, text)) == (name, Reply(401, {"code": code}))


def test_the_form_of_the_header(broker):
    running = start(broker, public_pem())
    assert running.get("/nodes", None) == Reply(401, {"code": 104})
    assert running.get("/nodes", "bearer " + token()) == Reply(401, {"code": 104})
    assert running.get("/nodes", ("admin", "public")) == Reply(401, {"code": 104})
    assert running.section("http_server", "Bearer " + token())["auth_type"] == "jwt"


@pytest.mark.parametrize("form", ["spki", "pkcs1", "certificate"])
def test_key_files_that_work(broker, form):
    assert bearer(start(broker, public_pem(form)), token()).status == 200


@pytest.mark.parametrize("form", ["der", "private", "p256"])
def test_key_files_that_fail_closed(broker, form):
    assert bearer(start(broker, public_pem(form)), token()).status == 401


@pytest.mark.parametrize("key", [b"nonsense", b"", None], ids=["nonsense", "empty", "missing"])
def test_no_key_lets_nobody_in(broker, key):
    running = start(broker, key)
    assert bearer(running, token()).status == 401
    assert running.get("/nodes", None).status == 401


def test_the_issuer_is_the_name_of_the_file(broker):
    running = start(broker, public_pem(), "jwt-1a2b3c4d.pub")
    assert bearer(running, token("jwt-1a2b3c4d.pub")).status == 200
    assert bearer(running, token("jwt-1a2b3c4d")).status == 401
    (broker.directory / "jwt-1a2b3c4d.pub").write_bytes(b"nonsense")
    assert bearer(running, token("jwt-1a2b3c4d.pub")).status == 200, "the key is read at start only"
