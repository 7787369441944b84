# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The hosts of this scenario, and the certificates of its callers."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import certificates
import front
import scenario


@pytest.fixture(scope="session", params=["bookworm", "trixie"] if scenario.INVENTORY else [])
def broker(request, callers):
    """Each host whose nginx is the collection's own."""
    return scenario.known_broker(request.param)


@pytest.fixture(scope="session")
def fleet(callers):
    """All of these at once, for what one run does to all of them."""
    return [scenario.known_broker(name) for name in ("bookworm", "trixie")]


@pytest.fixture(scope="session")
def neighbour(callers):
    """The host whose nginx is somebody else's."""
    return scenario.known_broker("neighbour")


@pytest.fixture(scope="session")
def callers() -> pathlib.Path:
    """Certificates of all kinds, on the controller and on the clients; what is revoked, the hosts know afterwards."""
    run = pathlib.Path(scenario.INVENTORY).parent
    directory = run / "callers"
    directory.mkdir(exist_ok=True)
    passphrase = scenario.HOSTS["nanomq_pki_authority_passphrase"]
    operators = certificates.Authority.load(scenario.pki() / "operators", passphrase)
    fleet = certificates.Authority.load(scenario.pki() / "ca", passphrase)
    (run / "made.json").write_text(json.dumps(certificates.make(directory, operators, fleet)))
    files = {path.name: path.read_text() for path in directory.iterdir()}
    files["attacker.py"] = (front.HERE / "attacker.py").read_text()
    files["flood.py"] = (front.HERE / "flood.py").read_text()
    files["server-ca.pem"] = (scenario.pki() / "ca/ca.pem").read_text()
    unpack = (
        "import json, pathlib, sys; here = pathlib.Path('" + front.ATTACKER + "'); here.mkdir(exist_ok=True)\n"
        "for name, text in json.load(sys.stdin).items(): (here / name).write_text(text)"
    )
    for client in ("outsider", *scenario.broker_names()):
        front.ssh(client, f'python3 -c "{unpack}"', json.dumps(files))
    run = front.harden()
    assert run.status == 0, run.output
    return directory


@pytest.fixture(scope="session")
def recorder(broker):
    """What the broker receives. At the end it must have missed nothing."""
    recorder = front.Recorder(broker)
    yield recorder
    assert json.loads(recorder.stop()) == {"lost": 0}
