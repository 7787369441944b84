# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host asks the signing service with: a request on stdin, the certificate and those above it on stdout.

The present certificate is the proof of who asks; where there is none, or it is not taken, the secret of an invitation,
which is removed once it was good for a certificate. A program for the source ``command`` of ``tls_certificate``.
Standard library only, and no module of the collection: it runs as one file.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import stat
import sys
import urllib.parse

TIMEOUT = 30
ANSWER_LIMIT = 256 * 1024


class Refused(Exception):
    """The service does not sign: its status, and its word for it."""


def ask(config: dict, request: str, pair: str, secret: str) -> str:
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
        body = json.dumps({"host": config["host"], "request": request})
        connection.request("POST", url.path.rstrip("/") + "/certificate", body, headers)
        response = connection.getresponse()
        content = json.loads(response.read(ANSWER_LIMIT))
    finally:
        connection.close()
    if response.status != 200:
        message = str(content.get("error", ""))[:300]
        raise Refused(f"{response.status}: {''.join(one if one.isprintable() else '?' for one in message)}")
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


def obtain(config: dict, request: str) -> str:
    """Return the chain, by whichever proof is taken. Raises Refused, OSError or ValueError."""
    secret = read_secret(config["secret_path"])
    pair = os.path.join(config["pair"], "current")
    refused: Exception | None = None
    if os.path.isdir(pair):
        try:
            return ask(config, request, pair, "")
        # One that has ended is not taken in the handshake, and an invitation helps.
        except (Refused, OSError, http.client.HTTPException) as error:
            refused = error
    if secret:
        chain = ask(config, request, "", secret)
        os.unlink(config["secret_path"])
        return chain
    path = config["secret_path"]
    raise refused or Refused(f"this host has neither a certificate nor an invitation, which goes into {path}")


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
