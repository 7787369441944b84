# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an attacker on the same network finds."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree

import pytest
from testinfra.utils.ansible_runner import AnsibleRunner

testinfra_hosts = ["ansible://outsiders"]

INVENTORY = AnsibleRunner(os.environ["EDGESEC_LAB_INVENTORY"])
BROKERS = INVENTORY.get_hosts("brokers")


def open_ports(outsider, broker: str) -> set[int]:
    """All TCP ports of a broker that answer the outsider."""
    address = INVENTORY.get_variables(broker)["lab_ipv4"]
    report = outsider.check_output("nmap -Pn -n -p- --min-rate 5000 -oX - %s", address)
    ports = ElementTree.fromstring(report).iterfind("./host/ports/port")
    return {int(port.get("portid")) for port in ports if port.find("state").get("state") == "open"}


@pytest.mark.parametrize("broker", BROKERS)
def test_ssh_is_open(host, broker):
    assert 22 in open_ports(host, broker)
