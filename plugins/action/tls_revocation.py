# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes or renews a revocation list on the controller."""

from __future__ import annotations

from ansible_collections.edgesec.nanomq.plugins.modules import tls_revocation
from ansible_collections.edgesec.nanomq.plugins.plugin_utils.controller import ControllerAction


class ActionModule(ControllerAction):
    """See the module."""

    MODULE = "edgesec.nanomq.tls_revocation"
    ARGUMENTS = tls_revocation.ARGUMENTS
    WORK = staticmethod(tls_revocation.run)
