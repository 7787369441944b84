# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Namespaces: what is done in there is seen in there alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _namespaces as namespaces
from ansible_collections.edgesec.nanomq.plugins.module_utils._namespaces import in_namespaces
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import TransactionError


@pytest.fixture(autouse=True)
def as_root():
    assert os.geteuid() == 0, "only root makes namespaces: run these tests as root"


@pytest.fixture
def place():
    """A directory that a namespace with a /tmp of its own still shows."""
    path = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="edgesec-test-"))
    yield path
    shutil.rmtree(path)


def contents(directory) -> dict[str, str]:
    """{path: text, or -> target} of all below a directory."""
    found = {}
    for path in sorted(Path(directory).rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(directory))] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[str(path.relative_to(directory))] = path.read_text()
    return found


@pytest.fixture
def tree(place):
    """A directory of configuration with files of others, and what is staged for it."""
    (place / "tree/conf.d").mkdir(parents=True)
    (place / "tree/main").write_text("main in force")
    (place / "tree/conf.d/other").write_text("of somebody else")
    (place / "tree/conf.d/mine").write_text("mine in force")
    (place / "tree/old").write_text("to be gone")
    (place / "tree/link").symlink_to("conf.d/other")
    (place / "staged").write_text("staged")
    return place / "tree"


# --- the child --------------------------------------------------------------------------------------------------------


def look():
    os.mkdir("/tmp/inside")
    return {"tmp": os.listdir("/tmp"), "net": os.readlink("/proc/self/ns/net"), "mnt": os.readlink("/proc/self/ns/mnt")}


def test_the_namespaces_have_a_network_and_a_tmp_of_their_own():
    result = in_namespaces(look)
    assert result["tmp"] == ["inside"]
    assert result["net"] != os.readlink("/proc/self/ns/net")
    assert result["mnt"] != os.readlink("/proc/self/ns/mnt")
    assert not os.path.exists("/tmp/inside")


def test_the_network_is_kept_if_asked_and_the_rest_is_not():
    result = in_namespaces(look, network=False)
    assert result["net"] == os.readlink("/proc/self/ns/net")
    assert result["mnt"] != os.readlink("/proc/self/ns/mnt")
    assert result["tmp"] == ["inside"]
    assert not os.path.exists("/tmp/inside")


@pytest.mark.parametrize("network", [True, False])
def test_an_action_that_raises_or_dies_is_an_error(network):
    def refuses():
        raise TransactionError("in plain words")

    assert in_namespaces(lambda: 1 // 0, network=network)["error"].startswith("ZeroDivisionError")
    assert in_namespaces(refuses, network=network) == {"error": "in plain words"}
    assert "killed" in in_namespaces(lambda: os._exit(9), network=network)["error"]
    assert "TypeError" in in_namespaces(lambda: {"no": object()}, network=network)["error"]


# --- what lies over ---------------------------------------------------------------------------------------------------


def overlaid(tree, staged, without=()):
    """What a program in there sees of the tree. Outside of it nothing changes."""
    before, mounts = contents(tree.parent), Path("/proc/self/mounts").read_text()

    def action():
        namespaces.overlay(str(tree), {str(dest): str(path) for dest, path in staged.items()}, map(str, without))
        return {"seen": contents(tree), "mode": os.stat(tree).st_mode}

    try:
        return in_namespaces(action, network=False)
    finally:
        assert contents(tree.parent) == before
        assert Path("/proc/self/mounts").read_text() == mounts


def test_a_directory_looks_as_it_will_in_there_alone(tree):
    staged = {tree / "conf.d/mine": tree.parent / "staged", tree / "new/deep/file": tree.parent / "staged"}
    assert overlaid(tree, staged, [tree / "old", tree / "never/was"])["seen"] == {
        "main": "main in force",
        "conf.d/other": "of somebody else",
        "conf.d/mine": "staged",
        "new/deep/file": "staged",
        "link": "-> conf.d/other",
    }


def test_what_lies_elsewhere_is_left_out(tree):
    beside = tree.parent / "tree-2"
    beside.mkdir()
    (beside / "x").write_text("x")
    staged = {tree.parent / "x": tree.parent / "staged", beside / "x": tree.parent / "staged"}
    assert overlaid(tree, staged, [beside / "x"])["seen"] == contents(tree)


def test_a_file_that_is_in_force_already_stays(tree):
    assert overlaid(tree, {tree / "main": tree / "main"})["seen"] == contents(tree)


def test_a_link_is_replaced_and_not_followed(tree):
    seen = overlaid(tree, {tree / "link": tree.parent / "staged"})["seen"]
    assert (seen["link"], seen["conf.d/other"]) == ("staged", "of somebody else")


def test_modes_are_kept(tree):
    tree.chmod(0o710)
    assert overlaid(tree, {})["mode"] & 0o7777 == 0o710


def test_a_link_within_the_directory_is_followed(tree):
    (tree / "enabled").symlink_to("conf.d")
    seen = overlaid(tree, {tree / "enabled/mine": tree.parent / "staged"})["seen"]
    assert (seen["enabled"], seen["conf.d/mine"]) == ("-> conf.d", "staged")


@pytest.mark.parametrize("without", [True, False])
def test_nothing_is_written_through_a_link_out_of_it(tree, without):
    """`overlaid` looks that all is as it was."""
    elsewhere = tree.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("in force")
    (tree / "sites").symlink_to(elsewhere)
    mine = tree / "sites/mine"
    result = overlaid(tree, {} if without else {mine: tree.parent / "staged"}, [mine] if without else [])
    assert result == {"error": f"the directory of {mine} is a symbolic link to another place"}


def test_a_directory_or_a_staged_file_that_is_not_there_is_an_error(tree):
    assert "nowhere" in overlaid(tree, {tree / "x": tree.parent / "nowhere"})["error"]
    missing = tree.parent / "missing"
    assert "missing" in in_namespaces(lambda: namespaces.overlay(str(missing), {}), network=False)["error"]


def test_a_mount_lets_one_directory_stand_in_anothers_place(place):
    for name in ("one", "two"):
        (place / name).mkdir()
        (place / name / name).touch()

    def action():
        namespaces.mount(str(place / "one"), str(place / "two"))
        (place / "two/both").touch()
        return {"two": sorted(os.listdir(place / "two")), "one": sorted(os.listdir(place / "one"))}

    assert in_namespaces(action, network=False) == {"two": ["both", "one"], "one": ["both", "one"]}
    assert os.listdir(place / "two") == ["two"]


@pytest.mark.parametrize(("source", "target"), [("missing", "one"), ("one", "missing")])
def test_a_mount_that_fails_says_why(place, source, target):
    (place / "one").mkdir()
    result = in_namespaces(lambda: namespaces.mount(str(place / source), str(place / target)), network=False)
    assert result == {"error": f"cannot mount over {place / target}: No such file or directory"}
