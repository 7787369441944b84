# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the audits of the scenario found."""

from __future__ import annotations

import concurrent.futures
import io
import json
import pathlib
import subprocess
import sys
import tarfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import breaks
import scenario
from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy

HERE = pathlib.Path(__file__).resolve().parent
#: Where the collection's code lies on the hosts while they are broken.
CODE = "/var/tmp/edgesec-audit"


def run_dir() -> pathlib.Path:
    return pathlib.Path(scenario.INVENTORY).parent


@pytest.fixture(scope="session")
def shipped() -> dict:
    """The report on the hosts as the package leaves them."""
    return json.loads((run_dir() / "shipped/audit.json").read_text())


@pytest.fixture(scope="session")
def hardened() -> dict:
    """The report on the same hosts after harden.yml."""
    return json.loads((run_dir() / "hardened/audit.json").read_text())


@pytest.fixture(scope="session")
def of_version(broker) -> set[str]:
    return scenario.version_findings(broker)


@pytest.fixture(scope="session")
def broken(brokers) -> dict[str, dict]:
    """{host: what the audit finds of each way to break it}, all hosts at once."""
    passphrase = scenario.HOSTS["nanomq_pki_authority_passphrase"]
    made = breaks.files(
        (scenario.pki() / "ca/ca.pem").read_bytes(), (scenario.pki() / "ca/ca.key").read_bytes(), passphrase
    )
    given = {
        "token": scenario.token(1800),
        "files": {f"{breaks.FILES}/{name}": text for name, text in made.items()},
        "breaks": breaks.every(),
    }
    of_versions = {broker.name: sorted(scenario.version_findings(broker)) for broker in brokers}
    with concurrent.futures.ThreadPoolExecutor(len(of_versions)) as pool:
        found = pool.map(lambda item: break_host(item[0], {**given, "of_version": item[1]}), of_versions.items())
    return dict(zip(of_versions, found, strict=True))


def break_host(name: str, given: dict) -> dict:
    ssh(name, f"rm -rf {CODE}; mkdir -p {CODE} && tar -C {CODE} -x", code())
    try:
        return json.loads(ssh(name, f"python3 {CODE}/runner.py {CODE}", json.dumps(given).encode(), timeout=900))
    finally:
        ssh(name, f"rm -rf {CODE} {breaks.FILES}", b"")


def code() -> bytes:
    """The collection's code for hosts, and the runner, as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(HERE / "runner.py", "runner.py")
        tar.add(breaks.ROOT / "tests/unit/broken_configurations.py", "broken_configurations.py")
        for path in pathlib.Path(_policy.__file__).parent.glob("*.py"):
            tar.add(path, f"ansible_collections/edgesec/nanomq/plugins/module_utils/{path.name}")
    return archive.getvalue()


def ssh(name: str, command: str, given: bytes, timeout: int = 120) -> str:
    done = subprocess.run(
        ["ssh", "-F", str(run_dir() / "ssh_config"), name, command],
        input=given,
        capture_output=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
