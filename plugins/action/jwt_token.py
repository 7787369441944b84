# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Mints tokens on the controller, where the private key is."""

from __future__ import annotations

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._jwt_token import OPTIONS, mint_token


class ActionModule(ActionBase):
    """No module runs anywhere: the work is done in this process."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(argument_spec=OPTIONS)
        try:
            minted = mint_token(options)
        except FileNotFoundError:
            if not self._task.check_mode:
                raise AnsibleActionFail(f"there is no private key {options['private_key_path']}") from None
            minted = {"token": "", "issuer": "", "expires": 0}
        except (ValueError, CryptoError, FileProblem, OSError) as error:
            raise AnsibleActionFail(str(error)) from error
        # The token is a secret that did not come in as an option, so no_log of options cannot mask it.
        return {"changed": False, **minted, "_ansible_no_log": True}
