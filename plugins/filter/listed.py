# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A list of texts, from whoever can give only one text."""

from __future__ import annotations

from collections.abc import Sequence

from ansible.errors import AnsibleFilterError


def listed(value):
    """The texts of a list, or of a text with commas; AnsibleFilterError for anything else."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        raise AnsibleFilterError(f"listed: {value!r} is neither a list of texts nor a text with commas")
    return [item.strip() for item in items if item.strip()]


class FilterModule:
    """The filters of this collection that deal with lists."""

    def filters(self):
        return {"listed": listed}
