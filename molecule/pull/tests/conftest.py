# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The device, the server, and the repository between them."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import fleet_repository
import scenario


@pytest.fixture(scope="session")
def device():
    return scenario.known_broker("device")


@pytest.fixture(scope="session")
def server():
    return scenario.known_broker("server")


@pytest.fixture(scope="session")
def repository():
    return fleet_repository.FleetRepository(pathlib.Path(scenario.INVENTORY).parent / "fleet")
