# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The two hosts, each for what it shows, and a client that trusts the authority that is not ours."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import outside
import scenario


@pytest.fixture(scope="session")
def bookworm():
    return scenario.known_broker("bookworm")


@pytest.fixture(scope="session")
def trixie():
    return scenario.known_broker("trixie")


@pytest.fixture(scope="session")
def friend(client):
    return outside.trusting(client, "elsewhere", (outside.elsewhere() / "root.pem").read_text())
