# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates of an ACME server (RFC 8555), by the module acme_certificate of the collection community.crypto.

The request is the host's; account key and challenges are the controller's business. A challenge is met either by a file
below a directory that a web server shows under the host's names (http-01), or by a program of the user that puts a TXT
record into the DNS (dns-01) and is called as the ``exec`` provider of lego calls one.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator

from ansible.errors import AnsibleError
from ansible.module_utils.urls import open_url
from ansible.plugins.loader import module_loader
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509 as x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._chains import ACME
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import (
    check_vault,
    locked,
    make_directories,
    read_regular,
    write_atomic,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._pairs import Wanted
from ansible_collections.edgesec.nanomq.plugins.plugin_utils.commands import check_command, run_command
from ansible_collections.edgesec.nanomq.plugins.plugin_utils.sources import Elsewhere

MODULE = "community.crypto.acme_certificate"
ACCOUNT_KEY = "account.key"

#: The account key is ours alone; its kind is one that every server takes.
ACCOUNT_KEY_TYPE = "ec-p256"

#: Seconds that the server gets to show its directory, and another run to make the account key.
PATIENCE = 20

_RESOURCE = re.compile(r"\.well-known/acme-challenge/[A-Za-z0-9_-]{1,256}", re.ASCII)


class AcmeSource(Elsewhere):
    """An ACME server. It chooses the lifetime of what it signs."""

    name = ACME
    lifetime_is_ours = False

    def __init__(self, options: dict, wanted: Wanted, run_local: Callable[[str, dict], dict]) -> None:
        super().__init__(options, wanted)
        self._run_local = run_local
        self._check_options()
        if not module_loader.find_plugin_with_context(MODULE).resolved:
            raise ValueError(
                "source acme needs the collection community.crypto on the controller:"
                " ansible-galaxy collection install community.crypto"
            )
        self.path = os.path.expanduser(options["acme_account_path"]).rstrip("/")
        check_vault(self.path)

    def _check_options(self) -> None:
        options, names = self.options, self.wanted.names
        if not re.fullmatch(r"https://[!-~]+", options["acme_directory"] or "", re.ASCII):
            raise ValueError("acme_directory is not given: the https:// URL of the directory of the ACME server")
        if not options["acme_account_path"]:
            raise ValueError("acme_account_path is not given: the directory on the controller for the account key")
        if not options["acme_terms_agreed"]:
            raise ValueError("acme_terms_agreed is false: read the terms of the ACME server, and agree to them with it")
        if bool(options["acme_webroot"]) == bool(options["acme_dns_hook"]):
            raise ValueError("give acme_webroot, for the challenge http-01, or acme_dns_hook, for dns-01, and not both")
        if any(name.startswith("URI:") for name in names):
            raise ValueError("an ACME server signs no URI: leave it out of the names")
        if f"DNS:{self.wanted.common_name.lower()}" not in names:
            raise ValueError(
                f"the common name {self.wanted.common_name!r} is none of the DNS names, which an ACME server wants it"
                " to be"
            )
        if options["acme_webroot"]:
            if not os.path.isdir(options["acme_webroot"]) or not os.path.isabs(options["acme_webroot"]):
                raise ValueError(f"acme_webroot: {options['acme_webroot']} is no directory on the controller")
            if any(name.startswith("DNS:*.") for name in names):
                raise ValueError("a wildcard needs the challenge dns-01: give acme_dns_hook instead of acme_webroot")
        else:
            check_command(options["acme_dns_hook"], "acme_dns_hook")
            if any(name.startswith("IP:") for name in names):
                raise ValueError("an address needs the challenge http-01: give acme_webroot instead of acme_dns_hook")

    def obtain(self, request: str) -> tuple[list[x509.Certificate], str]:
        self._reach()
        make_directories(self.path, mode=0o700)
        scratch = tempfile.mkdtemp(prefix=".order-", dir=self.path)
        try:
            answer = self._order(request, os.path.join(scratch, "chain.pem"))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self.judge(answer, request), ""

    def _reach(self) -> None:
        """Raise CryptoError unless the server answers: the module would try for minutes before it said so."""
        directory = self.options["acme_directory"]
        try:
            with open_url(directory, timeout=PATIENCE):
                pass
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CryptoError(f"the ACME server {directory} does not answer: {error}") from None

    def _order(self, request: str, destination: str) -> bytes:
        options = self.options
        arguments = {
            "acme_directory": options["acme_directory"],
            "acme_version": 2,
            "account_key_src": self._account_key(),
            "account_email": options["acme_email"] or None,
            "terms_agreed": True,
            "modify_account": True,
            "challenge": "http-01" if options["acme_webroot"] else "dns-01",
            "csr_content": request,
            "fullchain_dest": destination,
        }
        arguments = {name: value for name, value in arguments.items() if value is not None}
        order = self._run(arguments)
        with self._met(order):
            self._run({**arguments, "data": {name: value for name, value in order.items() if name != "invocation"}})
        try:
            return read_regular(destination)
        except FileNotFoundError:
            raise CryptoError(f"the ACME server {options['acme_directory']} gave no certificate") from None

    def _run(self, arguments: dict) -> dict:
        try:
            result = self._run_local(MODULE, arguments)
        except AnsibleError as error:
            raise CryptoError(f"{MODULE}: {error}") from None
        if result.get("failed"):
            raise CryptoError(
                f"the ACME server {arguments['acme_directory']}: {result.get('msg', 'the module says nothing')}"
            )
        return result

    def _account_key(self) -> str:
        """Return the path of the account key, made if there is none; runs for several hosts make one."""
        path = os.path.join(self.path, ACCOUNT_KEY)
        with locked(self.path, patience=PATIENCE):
            try:
                read_regular(path, private=True)
            except FileNotFoundError:
                write_atomic(path, self.backend.generate_key(ACCOUNT_KEY_TYPE), mode=0o600)
        return path

    @contextlib.contextmanager
    def _met(self, order: dict) -> Iterator[None]:
        """Meet the challenges for as long as the block lasts."""
        with contextlib.ExitStack() as undo:
            if self.options["acme_webroot"]:
                for challenges in (order.get("challenge_data") or {}).values():
                    self._show_file(challenges["http-01"], undo)
            else:
                for record, values in (order.get("challenge_data_dns") or {}).items():
                    for value in values:
                        undo.callback(self._hook, "cleanup", record, value)
                        self._hook("present", record, value)
            yield

    def _show_file(self, challenge: dict, undo: contextlib.ExitStack) -> None:
        resource = challenge["resource"]
        if not _RESOURCE.fullmatch(resource):
            raise CryptoError("the ACME server wants a file in a place that is none for challenges")
        path = os.path.join(self.options["acme_webroot"], resource)
        make_directories(os.path.dirname(path), mode=0o755)
        undo.callback(_remove, path)
        write_atomic(path, challenge["resource_value"].encode("ascii"), mode=0o644)

    def _hook(self, what: str, record: str, value: str) -> None:
        run_command(
            [*self.options["acme_dns_hook"], what, f"{record}.", value],
            "acme_dns_hook",
            timeout=self.options["signer_timeout"],
            variables={},
            secrets=[],
        )


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
