# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""ansible-builder accepts the execution environment and makes of it what is meant. No image is built of it here."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEFINITION = yaml.safe_load((ROOT / "execution-environment.yml").read_text(encoding="utf-8"))
GALAXY = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
NAME = f"edgesec-nanomq-{GALAXY['version']}.tar.gz"


def builder(*arguments: str | pathlib.Path, cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [pathlib.Path(sys.executable).with_name("ansible-builder"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    """The definition, with the tarball where `make build` leaves it."""
    shutil.copy(ROOT / "execution-environment.yml", tmp_path)
    built = tmp_path / ".cache/dist"
    built.mkdir(parents=True)
    given = os.environ.get("EDGESEC_TARBALL")
    if given:
        shutil.copy(given, built)
    else:
        (built / NAME).write_bytes(b"in place of the tarball")
    return tmp_path


def test_the_context_is_made(project: pathlib.Path) -> None:
    done = builder("create", "--context", "context", cwd=project)

    assert done.returncode == 0, done.stdout + done.stderr
    context = project / "context"
    assert (context / "_build/collection" / NAME).read_bytes() == (project / ".cache/dist" / NAME).read_bytes()
    wanted = yaml.safe_load((context / "_build/requirements.yml").read_text())["collections"]
    assert wanted == [{"name": f"collection/{NAME}", "type": "file"}]
    lines = (context / "Containerfile").read_text().splitlines()
    # The name of the collection is relative to the working directory of this stage, into which all of _build is copied.
    stage = lines[lines.index("FROM base AS galaxy") :]
    assert stage.index("COPY _build /build") < stage.index("WORKDIR /build")
    for line in ('ARG EE_BASE_IMAGE="almalinux:9"', 'ARG PYCMD="/usr/bin/python3.12"'):
        assert line in lines


def test_a_wrong_definition_is_refused(project: pathlib.Path) -> None:
    path = project / "execution-environment.yml"
    path.write_text(path.read_text().replace("base_image:", "base_immage:"))

    assert builder("create", "--context", "context", cwd=project).returncode != 0


def test_the_collection_says_what_it_needs(tmp_path: pathlib.Path) -> None:
    tree = tmp_path / "ansible_collections/edgesec/nanomq"
    shutil.copytree(ROOT / "meta", tree / "meta")
    shutil.copy(ROOT / "galaxy.yml", tree)
    done = builder("introspect", tmp_path)

    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    assert [line.partition("  #")[0] for line in found["python"]] == ["cryptography>=3.1"]
    assert [line.partition(" ")[0] for line in found["system"]] == ["openssh-clients", "openssh-client"]


def test_it_has_the_versions_that_are_tested() -> None:
    pinned = {
        line
        for path in (ROOT / "requirements").glob("*.txt")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"[a-z]", line)
    }
    for part in ("ansible_core", "ansible_runner"):
        assert DEFINITION["dependencies"][part]["package_pip"] in pinned
    assert DEFINITION["additional_build_files"] == [{"src": f".cache/dist/{NAME}", "dest": "collection"}]


def test_its_python_is_one_that_the_controller_may_have() -> None:
    version = re.fullmatch(r"python3\.(\d+)", DEFINITION["dependencies"]["python_interpreter"]["package_system"])
    assert version
    assert int(version[1]) >= 11
