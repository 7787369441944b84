# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Collections are found as Ansible finds them, and no test fails for being slow: machines are, at times."""

from __future__ import annotations

from ansible.plugins.loader import init_plugin_loader
from hypothesis import settings

# Before any test imports the collection: once it was imported as an ordinary package, Ansible loads no plugin from it.
init_plugin_loader()

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
