# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters around nanomq.conf: writing, reading and showing it."""

from __future__ import annotations

from collections.abc import Mapping

from ansible.errors import AnsibleFilterError
from ansible_collections.edgesec.nanomq.plugins.module_utils import _hocon, _policy


def nanomq_conf(conf, version=None, partial=False, indent=2):
    """A dict as the text of nanomq.conf; AnsibleFilterError names every problem, and no value."""
    if not isinstance(conf, Mapping):
        raise AnsibleFilterError("nanomq_conf: needs a dictionary")
    if isinstance(indent, bool) or not isinstance(indent, int) or not 0 <= indent <= 8:
        raise AnsibleFilterError("nanomq_conf: indent must be a number from 0 to 8")
    try:
        return _hocon.emit(_builtin(conf), version=version or None, partial=bool(partial), indent=indent)
    except _hocon.ConfError as error:
        lines = "".join(f"\n  {problem}" for problem in error.problems)
        raise AnsibleFilterError("nanomq_conf: this is not a configuration NanoMQ can have:" + lines) from None
    except ValueError:
        raise AnsibleFilterError("nanomq_conf: version must be like 0.25.6") from None


def from_nanomq_conf(text):
    """What the broker understands of the text of nanomq.conf, as a dict."""
    _require_text("from_nanomq_conf", text)
    try:
        return _hocon.parse(text)
    except _hocon.ConfSyntaxError as error:
        raise AnsibleFilterError(f"from_nanomq_conf: {error}") from None


def nanomq_redact(text):
    """The text of nanomq.conf with every secret replaced by ``***``."""
    _require_text("nanomq_redact", text)
    return _hocon.redact(text)


def nanomq_listeners(conf):
    """The addresses on which the broker listens with a configuration, those by default included."""
    if not isinstance(conf, Mapping):
        raise AnsibleFilterError("nanomq_listeners: needs a dictionary")
    try:
        return list(dict.fromkeys(one.address for one in _policy.listeners(_builtin(conf))))
    except ValueError:
        raise AnsibleFilterError("nanomq_listeners: an address is none") from None


def _require_text(name: str, text) -> None:
    if not isinstance(text, str):
        raise AnsibleFilterError(f"{name}: needs a text")


def _builtin(value):
    """Templates may bring other mappings and sequences than dict and list."""
    if isinstance(value, Mapping):
        return {name: _builtin(child) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_builtin(item) for item in value]
    return value


class FilterModule:
    """The filters of this collection that deal with nanomq.conf."""

    def filters(self):
        return {
            "nanomq_conf": nanomq_conf,
            "from_nanomq_conf": from_nanomq_conf,
            "nanomq_redact": nanomq_redact,
            "nanomq_listeners": nanomq_listeners,
        }
