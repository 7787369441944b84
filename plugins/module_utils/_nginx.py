# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""nginx in front of the broker: what is asked of it before and after a change.

Sources: nginx(8); the documentation of ngx_http_ssl_module; RFC 5280, section 5 (revocation lists).
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import os
import shutil
import socket
import ssl
import tempfile

from ansible_collections.edgesec.nanomq.plugins.module_utils import _crl, _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError, choose_backend
from ansible_collections.edgesec.nanomq.plugins.module_utils._namespaces import in_namespaces, mount, overlay
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import TransactionError, run

TREE = "/etc/nginx"
LOGS = "/var/log/nginx"
PID_FILE = "/run/nginx.pid"
TIMEOUT = 5.0
#: What the variables of the role with the CA and the lists of REST's callers are called, up to _ca and _crl.
CLIENT_VARIABLES = "nanomq_nginx_client"


# --- before -----------------------------------------------------------------------------------------------------------


def validate_nginx(*, without: list[str], staged: dict[str, str], credentials: dict) -> None:
    """nginx takes the whole tree as it will be, the sites of others included.

    without: the files of the tree that will be gone
    """
    del credentials
    answer = in_namespaces(lambda: _test_tree(staged, without), network=False)
    if answer.get("error"):
        raise TransactionError(f"nginx refuses the configuration: {answer['error']}")


def _test_tree(staged: dict[str, str], without: list[str]) -> dict:
    overlay(TREE, staged, without)
    # The test opens every log for writing, and would leave new ones behind.
    logs = tempfile.mkdtemp(dir="/tmp")
    if os.path.isdir(LOGS):
        shutil.copytree(LOGS, logs, dirs_exist_ok=True, ignore=_files)
        mount(logs, LOGS)
    there = os.path.exists(PID_FILE)
    code, out = run(["nginx", "-t", "-q"])
    if not there:
        # It leaves an empty one, which systemd takes for that of a broken service.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(PID_FILE)
    return {"error": " | ".join(out.splitlines()[-4:]) or f"exit code {code}"} if code != 0 else {}


def _files(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if not os.path.isdir(os.path.join(directory, name))]


def validate_crl(
    *, crl: str, ca: str, staged: dict[str, str], credentials: dict, variables: str = CLIENT_VARIABLES
) -> None:
    """The revocation list is one that nginx can use: else it would refuse every client."""
    del credentials
    troubles = crl_troubles(staged.get(crl, crl), staged.get(ca, ca), variables)
    if troubles:
        raise TransactionError("; ".join(troubles))


def probe_crl(*, crl: str, ca: str, credentials: dict, variables: str = CLIENT_VARIABLES) -> list[str]:
    """The revocation list in force can still be used."""
    del credentials
    return crl_troubles(crl, ca, variables)


def crl_troubles(crl: str, ca: str, variables: str = CLIENT_VARIABLES) -> list[str]:
    """What keeps nginx from using a file of revocation lists with a file of CAs, in words.

    variables: what the two of the role are called, without _crl and _ca at the end
    """
    try:
        with open(ca, "rb") as handle:
            authorities = _x509.load_certificates(handle.read())
        with open(crl, "rb") as handle:
            lists = _crl.load_lists(handle.read())
        backend = choose_backend()
    except (OSError, der.DerError, CryptoError) as error:
        return [f"{variables}_crl or {variables}_ca cannot be read: {error}"]
    now = datetime.datetime.now(datetime.timezone.utc)
    troubles = []
    for authority in authorities:
        named = [found for found in lists if found.issuer == authority.subject]
        mine = [found for found in named if found.is_signed_by(backend, authority)]
        started = [found for found in mine if found.this_update <= now]
        ca_name = f"the CA {authority.common_name!r}"
        if not named:
            troubles.append(
                f"{variables}_crl has no revocation list of {ca_name}, so that nginx would refuse every client of it:"
                " add one, an empty one if need be"
            )
        elif not mine:
            troubles.append(
                f"{variables}_crl: no revocation list in the name of {ca_name} is signed with its key, and nginx would"
                " refuse every client of it: make one with that key"
            )
        elif not started:
            begin = _x509.show_time(min(found.this_update for found in mine))
            troubles.append(
                f"{variables}_crl: the revocation list of {ca_name} holds from {begin} on, and this clock says"
                f" {_x509.show_time(now)}: is it wrong? nginx refuses every client until then"
            )
        elif max(found.next_update for found in started) <= now:
            due = _x509.show_time(max(found.next_update for found in started))
            troubles.append(
                f"{variables}_crl: the revocation list of {ca_name} was to be replaced by {due}, and nginx refuses"
                " every client since: make a new one (playbook revoke)"
            )
    return troubles


# --- after ------------------------------------------------------------------------------------------------------------


def probe_https(
    *, address: str, port: int, name: str, certificate: str, generation: str, anonymous: bool, credentials: dict
) -> list[str]:
    """nginx runs this very configuration, serves this certificate, reaches the broker, and refuses strangers.

    generation: the word that the configuration answers to a local caller
    anonymous: whether callers without a certificate have a role, so that the broker may be asked, and wants a token
    """
    del credentials
    where = f"nginx on {address}:{port}"
    try:
        wanted = _x509.leaf_certificate(certificate)
        served, status, body = https_get(address, port, name, "/.edgesec-nanomq/configuration")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return [f"{where} does not answer by TLS: {error}"]
    if (status, body.strip()) != (200, generation):
        return [
            f"{where} does not run the configuration in its files (status {status}). Does another program hold the "
            "port, or another site of nginx the name? See the end of /var/log/nginx/error.log"
        ]
    failing = []
    if served != wanted:
        failing.append(f"{where} serves another certificate than the one in {certificate}")
    for path, expected, meaning in (
        (
            "/.edgesec-nanomq/broker",
            [401],
            "the broker does not answer through it (does the firewall let its user by?)",
        ),
        (
            "/api/v4/brokers",
            [401, 403] if anonymous else [403],
            "a caller without a certificate is not treated as declared",
        ),
        ("/", [404], "what is not REST is answered"),
    ):
        try:
            _served, status, _body = https_get(address, port, name, path)
        except (OSError, http.client.HTTPException) as error:
            failing.append(f"{where}: {path}: {error}")
            continue
        if status not in expected:
            failing.append(
                f"{where}: {meaning}: {path} has status {status} instead of {' or '.join(map(str, expected))}"
            )
    return failing


def probe_tls(*, address: str, port: int, certificate: str, credentials: dict) -> list[str]:
    """A port answers by TLS, with this certificate."""
    del credentials
    where = f"TLS on {address}:{port}"
    try:
        wanted = _x509.leaf_certificate(certificate)
        with _connect(address, port, "") as connection:
            served = connection.getpeercert(binary_form=True)
    except (OSError, ValueError) as error:
        return [f"{where}: {error}"]
    return [] if served == wanted else [f"{where}: another certificate is served than the one in {certificate}"]


def https_get(address: str, port: int, name: str, path: str) -> tuple[bytes, int, str]:
    """(certificate served in DER, status, body) of a GET. The chain is not verified: certificates are compared."""
    with _connect(address, port, name) as connection:
        served = connection.getpeercert(binary_form=True) or b""
        client = http.client.HTTPConnection(address, port, timeout=TIMEOUT)
        client.sock = connection
        client.request("GET", path, headers={"Host": name, "Connection": "close"})
        response = client.getresponse()
        return served, response.status, response.read(65536).decode("utf-8", "replace")


def _connect(address: str, port: int, name: str) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    raw = socket.create_connection((address, port), timeout=TIMEOUT)
    try:
        # An address is no name that a server could be asked for (RFC 6066, section 3).
        host = name if name and not name.replace(".", "").isdigit() and ":" not in name else None
        return context.wrap_socket(raw, server_hostname=host)
    except BaseException:
        raw.close()
        raise
