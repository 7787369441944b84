# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters for the template of a front end: who may call what, and how nginx quotes it."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError
from ansible_collections.edgesec.nanomq.plugins.module_utils import _access


def nanomq_access_maps(clients, roles=None, anonymous=None):
    """The roles that somebody has, as patterns; AnsibleFilterError names every problem."""
    problems = _access.problems(roles or {}, clients, anonymous or [])
    if problems:
        raise AnsibleFilterError("nanomq_access_maps: " + "; ".join(problems))
    return _access.maps(roles or {}, clients, anonymous or [])


def nginx_quote(text):
    """A text as one quoted word of nginx's configuration."""
    if not isinstance(text, str) or any(ord(character) < 32 for character in text):
        raise AnsibleFilterError("nginx_quote: needs a text of one line")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class FilterModule:
    """The filters of this collection that deal with front ends."""

    def filters(self):
        return {"nanomq_access_maps": nanomq_access_maps, "nginx_quote": nginx_quote}
