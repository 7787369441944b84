# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What bench/run compares. Nothing but the standard library: plot.py has another interpreter."""

from __future__ import annotations

import dataclasses

from testbed import HERE


@dataclasses.dataclass(frozen=True)
class Subject:
    """A playbook and the strategy it is run by; without a playbook, pyinfra. `title` is for tables and plots."""

    title: str
    playbook: str = ""
    strategy: str = "ansible.builtin.linear"
    stock: bool = False


OURS, STOCK = "edgesec.nanomq.harden", str(HERE / "stock.yml")
SUBJECTS = {
    "ours": Subject("ours", OURS),
    "stock": Subject("stock", STOCK, stock=True),
    "stock-mitogen": Subject("stock, Mitogen", STOCK, "mitogen_linear", stock=True),
    "ours-mitogen": Subject("ours, Mitogen", OURS, "mitogen_linear"),
    "ours-free": Subject("ours, free", OURS, "ansible.builtin.free"),
    "pyinfra": Subject("pyinfra"),
}
