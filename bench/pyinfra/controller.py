# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What pyinfra has no modules for, and openssl's programs do on the controller: the fleet's keys, and signatures.

BENCH_JOB is JSON: inventory (a path), hosts, pki (a directory), declared (what declaration.yml says).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

JOB = json.loads(os.environ["BENCH_JOB"])
PKI = Path(JOB["pki"])
DECLARED = JOB["declared"]


def openssl(*arguments: str, secret: str = "", stdin: str = "") -> str:
    done = subprocess.run(
        ["openssl", *arguments],
        input=stdin,
        env=os.environ | {"SECRET": secret},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def fleet_keys() -> None:
    """The CA and the key for tokens, on the controller, if they are not there yet."""
    for name in ("", "ca", "jwt"):
        (PKI / name).mkdir(mode=0o700, exist_ok=True)
    authority, token = str(PKI / "ca/ca"), str(PKI / "jwt/fleet")
    passphrase = DECLARED["nanomq_pki_authority_passphrase"]
    if not (PKI / "ca/ca.pem").exists():
        curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        openssl("genpkey", *curve, "-aes256", "-pass", "env:SECRET", "-out", f"{authority}.key", secret=passphrase)
        subject = f"/CN={DECLARED['nanomq_pki_authority_common_name']}"
        signed = [
            "-x509",
            "-new",
            "-key",
            f"{authority}.key",
            "-passin",
            "env:SECRET",
            "-days",
            "3650",
            "-subj",
            subject,
        ]
        extensions = ["basicConstraints=critical,CA:TRUE,pathlen:0", "keyUsage=critical,keyCertSign,cRLSign"]
        added = [word for text in extensions for word in ("-addext", text)]
        openssl("req", *signed, *added, "-out", f"{authority}.pem", secret=passphrase)
    if not (PKI / "jwt/fleet.pub").exists():
        passphrase = DECLARED["nanomq_pki_jwt_passphrase"]
        size = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"]
        openssl("genpkey", *size, "-aes256", "-pass", "env:SECRET", "-out", f"{token}.key", secret=passphrase)
        openssl(
            "pkey", "-in", f"{token}.key", "-passin", "env:SECRET", "-pubout", "-out", f"{token}.pub", secret=passphrase
        )


def sign(request: str, names: str) -> str:
    """The certificate for a host's request."""
    ca = str(PKI / "ca/ca")
    extensions = f"subjectAltName={names}\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
    descriptor = os.memfd_create("extensions")
    os.write(descriptor, extensions.encode())
    command = ["x509", "-req", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-passin", "env:SECRET", "-days", "365"]
    command += ["-extfile", f"/proc/{os.getpid()}/fd/{descriptor}"]
    try:
        return openssl(*command, secret=DECLARED["nanomq_pki_authority_passphrase"], stdin=request)
    finally:
        os.close(descriptor)
