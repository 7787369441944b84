# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the module makes of its options."""

from __future__ import annotations

import pytest
from ansible_collections.edgesec.nanomq.plugins.modules import transaction


@pytest.mark.parametrize(
    ("enabled", "keep", "wanted"), [(True, False, True), (False, False, False), (True, True, None), (False, True, None)]
)
def test_whether_a_service_starts_at_boot_can_be_left_alone(enabled, keep, wanted):
    item = {"name": "x", "state": "started", "enabled": enabled, "keep_enabled": keep, "on_change": "reload"}
    service = transaction.wanted_service(item)
    assert (service.name, service.enabled, service.on_change) == ("x", wanted, "reload")
