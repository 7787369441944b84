# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Gets on the controller the certificate for a pair begun on the host, between two runs of tls_certificate there."""

from __future__ import annotations

import sys

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._pairs import (
    OPTIONS,
    check_moment,
    parse_mode,
    wanted_pair,
)
from ansible_collections.edgesec.nanomq.plugins.plugin_utils.sources import GivenSource, Source, open_source

MODULE = "edgesec.nanomq.tls_certificate"

#: Options that this controller knows, and that no host is told.
OURS = ("authority_", "signer_", "acme_", "trust", "given_certificate", "given_key")
TOLD = ("given_certificate_path", "given_key_path")

#: What is wrong with the options, the request, the answer or the files, and never with this program.
PROBLEMS = (ValueError, CryptoError, FileProblem, OSError)


class ActionModule(ActionBase):
    """One run of the module; a certificate and a second run when the first one began a new pair."""

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
            source = open_source(
                options,
                wanted,
                host=(task_vars or {}).get("inventory_hostname", ""),
                check_mode=self._task.check_mode,
                run_local=lambda name, arguments: self._run_local(name, arguments, task_vars or {}),
            )
        except PROBLEMS as error:
            raise AnsibleActionFail(str(error)) from error

        arguments = {
            name: value
            for name, value in options.items()
            if value not in (None, []) and (name in TOLD or not name.startswith(OURS))
        }

        def step(name: str, *, key: str = "", **exchange: str) -> dict:
            exchange.update(step=name, authority=source.compared, chain=source.sent, given=source.given)
            told = {**arguments, "exchange": exchange}
            if key:
                # Not in the exchange: what is secret within a dictionary is logged on the host if it has line breaks.
                told["given_key"] = key
            return self._execute_module(module_name=MODULE, module_args=told, task_vars=task_vars)

        result = step("inspect")
        if not result.get("failed") and "request" in result:
            result = _renew(step, result, source)
        elif isinstance(source, GivenSource) and not result.get("failed"):
            result = _take(step, result, source, check_mode=self._task.check_mode)
        return {**result, "authority_certificate": source.trust}

    def _run_local(self, name: str, arguments: dict, task_vars: dict) -> dict:
        """Run a module on the controller, whatever the connection to the host is."""
        loaders = self._shared_loader_obj
        connection = loaders.connection_loader.get("ansible.builtin.local", self._play_context)
        local = type(self)(
            task=self._task,
            connection=connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=loaders,
        )
        here = {**task_vars, "ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        return local._execute_module(module_name=name, module_args=arguments, task_vars=here)


def _renew(step, begun: dict, source: Source) -> dict:
    """Get a certificate for the pair begun and have it installed; or have the host forget that pair, and fail."""
    try:
        # Before any signer sees it: what the host asks for is for the host to say, and for us to refuse.
        _authority.check_request(begun["request"], source.request)
        certificates, warning = source.obtain(begun["request"])
    except Exception as error:
        step("discard", pending=begun["pending"])
        if not isinstance(error, PROBLEMS):
            raise
        raise AnsibleActionFail(str(error)) from error
    chain = b"".join(part.pem() for part in certificates).decode("ascii")
    result = {"reason": begun["reason"], **step("install", pending=begun["pending"], certificate=chain)}
    if result.get("failed"):
        step("discard", pending=begun["pending"])
    return _warned(result, warning)


def _take(step, found: dict, source: GivenSource, *, check_mode: bool) -> dict:
    """Have the given pair installed where another is in force, and say when it is about to end."""
    if found.get("renewed") and not check_mode:
        found = {"reason": found["reason"], **step("take", key=source.key)}
    if found.get("failed") or not found.get("not_after"):
        return found
    return _warned(found, source.warning(found["not_after"]))


def _warned(result: dict, warning: str) -> dict:
    return {**result, "warnings": [*result.get("warnings", []), warning]} if warning else result
