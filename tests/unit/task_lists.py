# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What stands in files of tasks and of plays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TASK_LISTS = ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers")


def tasks(node: Any) -> Iterator[dict[str, Any]]:
    """Every task in a list of tasks or plays, blocks themselves left out."""
    if not isinstance(node, list):
        return
    for item in node:
        if not isinstance(item, dict):
            continue
        nested = [item[key] for key in TASK_LISTS if key in item]
        for inner in nested:
            yield from tasks(inner)
        if not nested and "hosts" not in item:
            yield item
