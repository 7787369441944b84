# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations


class ModuleDocFragment:
    """The attributes of the modules that keep keys, certificates and lists of them."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    support: full
    description: Can run in check mode and say what would change, without changing anything.
  diff_mode:
    support: none
    description: Will say what changed, or would change, in diff mode.
  platform:
    platforms: posix
    support: full
    description: The operating systems that this works on.
"""
