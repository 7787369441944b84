# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""What certificates, keys and handshakes of a host show: the half of an observation that is about cryptography.

Files are read and never written; a private key is loaded to see whether it belongs to its certificate, and nothing of
it is kept. Sources: RFC 5280, RFC 8446 (4.2.1), RFC 8725 (forged tokens).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import os
import secrets
import socket
import ssl
import stat
import time
import warnings
from typing import Any

from ansible_collections.edgesec.nanomq.plugins.module_utils import _der, _jwt, _policy, _probes, _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._policy import NotObserved

_SMALL = 1 << 20
#: The broker drops some connections for no reason: one handshake that fails proves little.
TRIES = 3
OLD_VERSIONS = {"TLS 1.0": "TLSv1", "TLS 1.1": "TLSv1_1"}
#: What a server must not agree to: no forward secrecy or broken ciphers; no authentication or no encryption. One that
#: wants certificates cannot do with the second, and must not get around the first by that.
WEAK_SUITES = ("kRSA:3DES:RC4:EXPORT:LOW:PSK:!aNULL:!eNULL:@SECLEVEL=0", "aNULL:eNULL:@SECLEVEL=0")


def read(path: str) -> bytes:
    """A small file."""
    with open(path, "rb") as handle:
        return handle.read(_SMALL)


# --- certificates and keys --------------------------------------------------------------------------------------------


def validity(certificate: bytes) -> dict:
    """When a certificate (DER) ends: {not_after: date, days_left: whole days, valid_yet: bool}; {} if it is none."""
    try:
        parsed = _x509.parse_certificate(certificate)
    except _der.DerError:
        return {}
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "not_after": parsed.not_after.date().isoformat(),
        "days_left": (parsed.not_after - now) // datetime.timedelta(days=1),
        "valid_yet": parsed.not_before <= now,
    }


def certificates(conf: dict, served: dict[str, bytes]) -> list[dict]:
    """The certificate files that a configuration names.

    served: {address: certificate (DER)} of what the sockets showed

    Returns [{key, path, role: leaf or authority, error, not_after, days_left, valid_yet, key_type, digest,
    key_matches: bool or None, other_served_on: [address] that show another one}].
    """
    found = []
    for key, block in _policy.tls_listeners(conf):
        for role, name in (("leaf", "certfile"), ("authority", "cacertfile")):
            path = _policy.get(block, name)
            if isinstance(path, str) and path.startswith("/"):
                found.append({"key": f"{key}.{name}", "path": path, "role": role, **_certificate(path, role, block)})
                if role == "leaf" and not found[-1]["error"]:
                    found[-1]["other_served_on"] = _others(path, block, served)
    for name, bridge in _policy.mqtt_bridges(conf):
        path = _policy.get(bridge, "ssl", "cacertfile")
        if isinstance(path, str) and path.startswith("/"):
            key = f"bridges.mqtt.{name}.ssl.cacertfile"
            found.append({"key": key, "path": path, "role": "authority", **_certificate(path, "authority", {})})
    return found


def _certificate(path: str, role: str, block: dict) -> dict:
    """What a file of certificates says of its first one; for authorities, of the one that ends first."""
    try:
        parsed = _x509.load_certificates(read(path))
    except (OSError, ValueError) as error:
        return {"error": getattr(error, "strerror", None) or "holds no certificate"}
    one = parsed[0] if role == "leaf" else min(parsed, key=lambda certificate: certificate.not_after)
    try:
        key_type = _x509.key_type(one.public_key)
    except _der.DerError:
        key_type = ""
    return {
        "error": "",
        **validity(one.raw),
        "key_type": key_type,
        "digest": _x509.DIGESTS.get(one.signature_algorithm, ""),
        "key_matches": _belongs(path, block) if role == "leaf" else None,
    }


def _belongs(certificate: str, block: dict) -> bool | None:
    """Whether the private key of a listener belongs to its certificate; None where it cannot be loaded."""
    key = _policy.get(block, "keyfile")
    if not isinstance(key, str) or not key.startswith("/") or not os.path.isfile(key):
        return None
    password = _policy.get(block, "key_password")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=str(password or ""))
    except ssl.SSLError as error:
        # Of two of one kind, and of two of different kinds.
        return False if error.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED") else None
    except (OSError, ValueError):
        return None
    return True


def _others(path: str, block: dict, served: dict[str, bytes]) -> list[str]:
    """Addresses of the listener that show another certificate than the one in its file."""
    wanted = _x509.leaf_certificate(path)
    _host, port = _policy.split_bind(_policy.get(block, "bind"), "0.0.0.0:0")
    return [
        address
        for address, certificate in served.items()
        if _policy.split_bind(address, address)[1] == port and certificate != wanted
    ]


def token_key(path: str) -> dict:
    """What the key that verifies tokens is: {key_type: ``rsa-3072`` or empty if it is none, age_days: by its file}."""
    try:
        blocks = _der.from_pem("PUBLIC KEY", read(path))
        key_type = _x509.key_type(blocks[0]) if blocks else ""
    except (OSError, ValueError):
        key_type = ""
    age = time.time() - os.stat(path).st_mtime
    return {"key_type": key_type, "age_days": int(age // 86400)}


def key_files(conf: dict, who: Any, may_replace: Any) -> list[dict]:
    """The key files that a configuration names. may_replace: (who, path) -> bool"""
    named = [("tls", _policy.get(block, "keyfile")) for _key, block in _policy.tls_listeners(conf)]
    named.append(("jwt", _policy.get(conf, "http_server", "jwt", "public", "keyfile")))
    found = []
    for kind, path in named:
        if not isinstance(path, str) or not path.startswith("/"):
            continue
        if not os.path.isfile(path):
            found.append({"kind": kind, "path": path, "exists": False})
            continue
        found.append(
            {
                "kind": kind,
                "path": path,
                "exists": True,
                "mode": f"{stat.S_IMODE(os.stat(path).st_mode):04o}",
                "private": b"PRIVATE KEY-----" in read(path),
                "writable_by_service": may_replace(who, path),
                **(token_key(path) if kind == "jwt" else {}),
            }
        )
    return found


# --- handshakes -------------------------------------------------------------------------------------------------------


def client_context() -> ssl.SSLContext:
    """A client that takes any certificate: here it is looked at, not trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def show_own_certificate(context: ssl.SSLContext, block: dict) -> None:
    """Let a client show the broker's own certificate: without one a listener that requires them answers nothing."""
    paths = [_policy.get(block, name) for name in ("certfile", "keyfile")]
    try:
        context.load_cert_chain(*paths, password=str(_policy.get(block, "key_password") or ""))
    except (OSError, ValueError, TypeError):
        return  # the handshake then tells


def handshakes(host: str, port: int, block: dict, timeout: float) -> dict:
    """What a TLS listener agrees to: {old_versions: [name], weak_suites: [name]}. Raises NotObserved."""
    old = [name for name, version in OLD_VERSIONS.items() if _agrees(host, port, block, timeout, version=version)]
    weak = [_agrees(host, port, block, timeout, suites=suites) for suites in WEAK_SUITES]
    return {"old_versions": old, "weak_suites": [suite for suite in weak if suite]}


def _agrees(host: str, port: int, block: dict, timeout: float, *, version: str = "", suites: str = "") -> str:
    """The suite that a handshake with one old version, or with weak suites alone, came to; empty where it failed."""
    context = client_context()
    show_own_certificate(context, block)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that these versions are deprecated is the point
            context.set_ciphers(suites or "ALL:@SECLEVEL=0")
            if version:
                context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
            else:
                context.maximum_version = ssl.TLSVersion.TLSv1_2  # suites of 1.3 are none of these
    except (ssl.SSLError, ValueError):
        raise NotObserved("the TLS library of this host does not offer old versions and weak suites") from None
    silent = 0
    for _try in range(TRIES):
        try:
            with socket.create_connection((host, port), timeout=timeout) as raw, context.wrap_socket(raw) as connection:
                return connection.cipher()[0]
        except socket.timeout:  # not yet an alias of TimeoutError on Python 3.9
            silent += 1
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                return ""  # it said no
            if error.reason in ("NO_PROTOCOLS_AVAILABLE", "NO_CIPHERS_AVAILABLE"):
                raise NotObserved("the TLS library of this host does not offer old versions and weak suites") from None
        except OSError:
            pass  # closed, as many servers do instead of saying no; or dropped for no reason
        if silent > 1:
            raise NotObserved(f"handshakes at {host}:{port} are not answered")
    return ""


# --- tokens -----------------------------------------------------------------------------------------------------------


def forgeries(public_key_path: str) -> dict[str, str]:
    """Tokens that nobody signed, by what is wrong with them (RFC 8725, 2.1 and 3.1): a broker must refuse them all."""
    pem = read(public_key_path)
    name = os.path.basename(public_key_path)
    claims = _jwt.claims(name, 60)

    def token(algorithm: str, signature: Any) -> str:
        signed = f"{_jwt.part({'alg': algorithm, 'typ': 'JWT'})}.{_jwt.part(claims)}"
        return f"{signed}.{base64.urlsafe_b64encode(signature(signed.encode())).decode().rstrip('=')}"

    return {
        "without a signature (alg none)": token("none", lambda _text: b""),
        "signed with the public key as a password (HS256)": token(
            "HS256", lambda text: hmac.new(pem, text, hashlib.sha256).digest()
        ),
        "with a made-up signature": token("RS256", lambda _text: secrets.token_bytes(256)),
    }


def accepted_forgeries(host: str, port: int, public_key_path: str, timeout: float) -> list[str]:
    """The forged tokens that REST takes. Raises NotObserved where it does not answer."""
    accepted = []
    for what, token in forgeries(public_key_path).items():
        status = _probes.rest_status(host, port, "/api/v4/brokers", {"Authorization": f"Bearer {token}"}, timeout)
        if status == 0:
            raise NotObserved(f"REST on {host}:{port} does not answer")
        if status != 401:
            accepted.append(f"a token {what}")
    return accepted
