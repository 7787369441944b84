# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters of a play that goes through its hosts in batches."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import rollout


def rollout_batches(value):
    """The sizes of the batches for `serial`; AnsibleFilterError says what is wrong with them."""
    try:
        return rollout.batches(value)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def rollout_stop(everybody, going, batch, sizes, tolerated=100):
    """Why the rollout is not to go on with this batch, or an empty text."""
    try:
        return rollout.stop(everybody, going, batch, sizes, tolerated)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filters of this collection that deal with rollouts."""

    def filters(self):
        return {"rollout_batches": rollout_batches, "rollout_stop": rollout_stop}
