# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes or keeps an authority on the controller."""

from __future__ import annotations

from ansible_collections.edgesec.nanomq.plugins.modules import tls_authority
from ansible_collections.edgesec.nanomq.plugins.plugin_utils.controller import ControllerAction


class ActionModule(ControllerAction):
    """See the module."""

    MODULE = "edgesec.nanomq.tls_authority"
    ARGUMENTS = tls_authority.ARGUMENTS
    WORK = staticmethod(tls_authority.run)
