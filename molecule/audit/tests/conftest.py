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
from ansible_collections.edgesec.nanomq.plugins.module_utils import _policy, _versions
from ansible_collections.edgesec.nanomq.plugins.module_utils._schema import version_tuple

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


def unavoidable(name: str) -> set[str]:
    """The rules that the version of a host's broker breaks however it is configured."""
    version = version_tuple(ssh(name, "dpkg-query -W -f '${Version}' nanomq", b""))
    known = any(one.concerns(version) for one in _versions.ADVISORIES)
    recommended = version >= version_tuple(_versions.RECOMMENDED)
    return {rule for rule, broken in (("NMQ-VER-003", known), ("NMQ-VER-004", not recommended)) if broken}


@pytest.fixture
def of_version(broker) -> set[str]:
    return unavoidable(broker.name)


@pytest.fixture(scope="session")
def broken() -> dict[str, dict]:
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
    names = scenario.broker_names()
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        found = pool.map(lambda name: break_host(name, given), names)
    return dict(zip(names, found, strict=True))


def break_host(name: str, given: dict) -> dict:
    whole = json.dumps({**given, "unavoidable": sorted(unavoidable(name))})
    ssh(name, f"rm -rf {CODE}; mkdir -p {CODE} && tar -C {CODE} -x", code())
    try:
        return json.loads(ssh(name, f"python3 {CODE}/runner.py {CODE}", whole.encode(), timeout=900))
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
