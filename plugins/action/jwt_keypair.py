# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes or keeps the key pair for tokens on the controller."""

from __future__ import annotations

from ansible_collections.edgesec.nanomq.plugins.modules import jwt_keypair
from ansible_collections.edgesec.nanomq.plugins.plugin_utils.controller import ControllerAction


class ActionModule(ControllerAction):
    """See the module."""

    MODULE = "edgesec.nanomq.jwt_keypair"
    ARGUMENTS = jwt_keypair.ARGUMENTS
    WORK = staticmethod(jwt_keypair.run)
