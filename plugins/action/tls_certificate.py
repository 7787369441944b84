# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Signs on the controller what tls_certificate begins on the host, between two runs of that module."""

from __future__ import annotations

import os

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError, encode_passphrase
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._pairs import (
    OPTIONS,
    Wanted,
    check_moment,
    parse_mode,
    wanted_pair,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._x509 import show_time

MODULE = "edgesec.nanomq.tls_certificate"

#: Facts that this controller knows, and that no host is told.
OURS = ("authority_path", "authority_passphrase")


class ActionModule(ActionBase):
    """One run of the module; a signature and a second run when the first one began a new pair."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        if str(self._task.args.get("key_type", "")).lower() == "ed25519":
            raise AnsibleActionFail("key_type ed25519 is not offered: the broker's TLS library cannot use such keys")
        _validated, options = self.validate_argument_spec(argument_spec=OPTIONS)
        try:
            wanted = wanted_pair(options)
            check_moment(wanted, _authority.now())
            parse_mode(options["mode"])
            authority = self._authority(options)
        except (ValueError, CryptoError, FileProblem, OSError) as error:
            raise AnsibleActionFail(str(error)) from error

        arguments = {name: value for name, value in options.items() if name not in OURS and value is not None}
        # The module's own check of its options asks for a path; the real one is none of the host's business.
        arguments["authority_path"] = "-"
        pem = authority.pem if authority else ""

        def step(name: str, **exchange: str) -> dict:
            exchange.update(step=name, authority=pem)
            return self._execute_module(
                module_name=MODULE, module_args={**arguments, "exchange": exchange}, task_vars=task_vars
            )

        result = step("inspect")
        if not result.get("failed") and "request" in result:
            passphrase = options["authority_passphrase"]
            result = _renew(step, result, wanted, authority, passphrase)
        return {**result, "authority_certificate": pem}

    def _authority(self, options: dict) -> _authority.Authority | None:
        path = os.path.expanduser(options["authority_path"])
        authority = _authority.load(path.rstrip("/") or "/")
        if authority is None and not self._task.check_mode:
            raise FileProblem(f"there is no authority in {path}: make it first, with edgesec.nanomq.tls_authority")
        return authority


def _renew(step, begun: dict, wanted: Wanted, authority: _authority.Authority, passphrase: str | None) -> dict:
    """Sign the request of the pair begun and have it installed; or have the host forget that pair, and fail."""
    request = _authority.Request(wanted.common_name, wanted.names, wanted.usages, wanted.key_type, wanted.valid_for)
    try:
        warning = _check_end(wanted, authority)
        certificate = _authority.sign(authority, encode_passphrase(passphrase), begun["request"], request)
    except (ValueError, CryptoError, FileProblem, OSError) as error:
        step("discard", pending=begun["pending"])
        raise AnsibleActionFail(str(error)) from error
    chain = b"".join(part.pem() for part in [certificate, *authority.intermediates]).decode("ascii")
    result = {"reason": begun["reason"], **step("install", pending=begun["pending"], certificate=chain)}
    if result.get("failed"):
        step("discard", pending=begun["pending"])
    if warning:
        result["warnings"] = [*result.get("warnings", []), warning]
    return result


def _check_end(wanted: Wanted, authority: _authority.Authority) -> str:
    """Return a warning when a new certificate will end early, with its authority; '' if it will not.

    Raises CryptoError when it would be due for renewal at once, and again in every run.
    """
    remaining = (authority.issuer.not_after - _authority.now()).total_seconds()
    end = show_time(authority.issuer.not_after)
    if remaining <= wanted.margin:
        raise CryptoError(
            f"the authority in {authority.path} expires at {end}, within renew_before: give the fleet a new one first"
        )
    if remaining >= wanted.valid_for:
        return ""
    return f"the certificate ends with its authority, at {end}, before its valid_for is over"
