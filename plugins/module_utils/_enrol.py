# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host asks the signing service with: a request on stdin, the certificate and those above it on stdout.

The present certificate is the proof of who asks; where there is none, or it is not taken, the secret of an invitation,
which is removed once it was good for a certificate. With it goes a claim, which this host makes up and notes before it
asks: cut off before the certificate was in force, it shows both and may ask again. A program for the source ``command``
of ``tls_certificate``. Standard library only, and no module of the collection: it runs as one file.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import ssl
import stat
import sys
import urllib.parse

#: Beside the invitation: its secret and the claim, until a certificate is in force.
CLAIMED = ".claimed"

TIMEOUT = 30
ANSWER_LIMIT = 256 * 1024


class Refused(Exception):
    """The service does not sign: its word for it, and its status."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def ask(config: dict, request: str, pair: str, secret: str, claim: str = "") -> str:
    """Return the chain for a request, shown a pair or a secret. Raises Refused, OSError or ValueError."""
    url = urllib.parse.urlsplit(config["url"])
    context = ssl.create_default_context(cafile=config["ca"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if pair:
        context.load_cert_chain(os.path.join(pair, "cert.pem"), os.path.join(pair, "key.pem"), password="")
    connection = http.client.HTTPSConnection(url.hostname, url.port or 443, timeout=TIMEOUT, context=context)
    headers = {"Content-Type": "application/json"}
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    try:
        body = json.dumps({"host": config["host"], "request": request, "claim": claim})
        connection.request("POST", url.path.rstrip("/") + "/certificate", body, headers)
        response = connection.getresponse()
        content = json.loads(response.read(ANSWER_LIMIT))
    finally:
        connection.close()
    if response.status != 200:
        message = str(content.get("error", ""))[:300]
        shown = "".join(one if one.isprintable() else "?" for one in message)
        raise Refused(f"{response.status}: {shown}", response.status)
    return content["certificate"]


def read_secret(path: str) -> str:
    """Return the secret of the invitation, '' if there is none. Raises ValueError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ValueError(f"{path} must be a file of root's that nobody else can read (chmod 0600)")
        return os.read(descriptor, 4096).decode("ascii").strip()
    finally:
        os.close(descriptor)


def note_claim(path: str, secret: str) -> str:
    """Return the claim to the invitation with this secret: the one that is noted, or a new one, noted and synced."""
    noted = read_secret(path + CLAIMED).partition(" ")
    if noted[0] == secret and noted[2]:
        return noted[2]
    claim = secrets.token_urlsafe(32)
    temporary = f"{path}{CLAIMED}.new"
    remove(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(f"{secret} {claim}\n".encode("ascii"))
        handle.flush()
        os.fsync(descriptor)
    os.replace(temporary, path + CLAIMED)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return claim


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def obtain(config: dict, request: str) -> str:
    """Return the chain, by whichever proof is taken. Raises Refused, OSError or ValueError."""
    path = config["secret_path"]
    secret = read_secret(path) or read_secret(path + CLAIMED).partition(" ")[0]
    pair = os.path.join(config["pair"], "current")
    refused: Exception | None = None
    if os.path.isdir(pair):
        try:
            chain = ask(config, request, pair, "")
        # One that has ended is not taken in the handshake, and an invitation helps.
        except (Refused, OSError, http.client.HTTPException) as error:
            refused = error
        else:
            remove(path + CLAIMED)
            return chain
    if not secret:
        raise refused or Refused(f"this host has neither a certificate nor an invitation, which goes into {path}")
    claim = note_claim(path, secret)
    try:
        chain = ask(config, request, "", secret, claim)
    except Refused as error:
        if error.status in (401, 403):
            # It is good for nothing more. The invitation itself is left to who put it there.
            remove(path + CLAIMED)
        raise
    # The claim stays until the certificate is in force, which is not for this program to see.
    remove(path)
    return chain


def main(arguments: list[str]) -> int:
    """Ask for the request on stdin, by the configuration in a file."""
    try:
        with open(arguments[0], encoding="utf-8") as handle:
            config = json.load(handle)
        sys.stdout.write(obtain(config, sys.stdin.read()))
    except (Refused, OSError, ValueError, KeyError, http.client.HTTPException) as error:
        sys.stderr.write(f"the signing service: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
