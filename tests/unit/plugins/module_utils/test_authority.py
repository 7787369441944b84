# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The life of an authority: cut at every step of every change, and on a full disk, it is the old one or the new one."""

from __future__ import annotations

import os
import shutil

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._vault import Vault
from cryptography.hazmat.primitives import serialization
from cuts import run_cut, run_full

PASSPHRASE = b"secret"
DAY = 86400


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def pems():
    """Encrypting a key takes a while, and here it is done some hundred times."""
    made = {}
    backend = _authority.choose_backend("cryptography")
    for number in range(4):
        made[number] = backend.generate_key("ec-p256", PASSPHRASE)
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch, pems):
    """Keys come from a store of a few, and are opened once."""
    numbers = iter(range(10**6))
    monkeypatch.setattr(_authority, "_generate", lambda kind, passphrase: pems[next(numbers) % len(pems)])
    opened = {pem: serialization.load_pem_private_key(pem, PASSPHRASE) for pem in pems.values()}
    monkeypatch.setattr(_authority, "load_private_key", lambda pem, passphrase: opened[pem])


class Place:
    """A directory with authorities, that can be put back to how it was."""

    def __init__(self, root):
        self.root, self.kept = root / "pki", root / "kept"
        self.path, self.root_path = str(self.root / "ca"), str(self.root / "root")

    def keep(self):
        shutil.copytree(self.root, self.kept)

    def back(self):
        shutil.rmtree(self.root)
        shutil.copytree(self.kept, self.root)

    def load(self):
        return _authority.load(self.path)

    def top(self):
        return _authority.open_root(self.root_path, PASSPHRASE)


def below_root(place, path):
    _authority.create(place.root_path, "root", "ec-p256", 900 * DAY, PASSPHRASE)
    _authority.create(path, "fleet", "ec-p256", 90 * DAY, PASSPHRASE, root=place.top())


def self_signed(place, path):
    place.root.mkdir(exist_ok=True)
    _authority.create(path, "fleet", "ec-p256", 90 * DAY, PASSPHRASE)


def introduced(place, path):
    self_signed(place, path)
    _authority.introduce(place.load(), PASSPHRASE, "ec-p256", 900 * DAY, None)


def switched(place, path):
    introduced(place, path)
    _authority.switch(place.load(), PASSPHRASE)


def empty(place, path):
    place.root.mkdir()


#: {change: (what there is before, what is done)}
CHANGES = {
    "create": (empty, lambda place: _authority.create(place.path, "fleet", "ec-p256", 90 * DAY, PASSPHRASE)),
    "renew": (
        below_root,
        lambda place: _authority.renew(place.load(), PASSPHRASE, "ec-p256", 80 * DAY, root=place.top(), new_key=True),
    ),
    "renew, same key": (
        self_signed,
        lambda place: _authority.renew(place.load(), PASSPHRASE, "ec-p256", 80 * DAY, root=None, new_key=False),
    ),
    "introduce": (
        self_signed,
        lambda place: _authority.introduce(place.load(), PASSPHRASE, "ec-p256", 900 * DAY, None),
    ),
    "switch": (introduced, lambda place: _authority.switch(place.load(), PASSPHRASE)),
    "retire": (switched, lambda place: _authority.retire(place.load(), archive=True)),
    "retire, key destroyed": (switched, lambda place: _authority.retire(place.load(), archive=False)),
}


@pytest.fixture(params=CHANGES)
def change(request, tmp_path):
    """(place, action): what is changed, and the change."""
    before, action = CHANGES[request.param]
    place = Place(tmp_path)
    before(place, place.path)
    place.keep()
    return place, lambda: action(place)


def usable(place):
    """The authority in force, once it is certain that each key belongs to its certificate; None for none."""
    found = place.load()
    if found is not None:
        _authority.open_key(found, PASSPHRASE)
        if found.successor:
            _authority.open_successor(found, PASSPHRASE)
        assert bool(found.previous) == bool(found.cross)
    return found


def shape(found):
    """What tells one state from another, whatever the serial numbers."""
    if found is None:
        return None
    lists = (found.certificates, found.successor, found.previous, found.cross, found.earlier)
    return tuple(tuple((one.public_key, one.common_name) for one in part) for part in lists), found.issuer.not_after


def hidden(place):
    return [name for name in os.listdir(place.path) if name.startswith(".")] if os.path.isdir(place.path) else []


def test_killed_at_every_step(change, monkeypatch):
    """Whoever looks finds a whole authority, before anything is mended; the next run brings it to its end."""
    place, action = change
    old = shape(place.load())
    outcomes = []
    for limit in range(200):
        place.back()
        died = run_cut(monkeypatch, limit, action)
        found = shape(usable(place))
        outcomes.append(found == old)
        if os.path.isdir(place.path):
            with Vault(place.path).lock():
                pass
            assert hidden(place) == []
        assert shape(usable(place)) == found
        if found == old:
            action()
        if not died:
            break
        assert shape(usable(place))[0] is not None
        assert hidden(place) == []
    assert not died
    assert limit > 15
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {True, False}


def test_full_disk_at_every_step(change, monkeypatch):
    place, action = change
    old = place.load()
    refused = 0
    for limit in range(200):
        place.back()
        files = sorted(os.listdir(place.path)) if os.path.isdir(place.path) else []
        error = run_full(monkeypatch, limit, action)
        found = usable(place)
        if found == old:
            assert error is not None
            assert "No space left" in str(error)
            assert (sorted(os.listdir(place.path)) if os.path.isdir(place.path) else []) == files
            refused += 1
        elif error is None:
            break
        else:
            # It was true already, and what is left to do comes with the next run.
            with Vault(place.path).lock():
                pass
            assert shape(usable(place)) == shape(found)
            assert hidden(place) == []
    assert error is None
    assert refused > 8


def test_another_run_in_between_is_noticed(tmp_path):
    place = Place(tmp_path)
    self_signed(place, place.path)
    seen = place.load()
    _authority.introduce(seen, PASSPHRASE, "ec-p256", DAY, None)
    with pytest.raises(FileProblem, match="another run has changed the authority"):
        _authority.introduce(seen, PASSPHRASE, "ec-p256", DAY, None)
    with pytest.raises(FileProblem, match="another run has made an authority"):
        _authority.create(place.path, "fleet", "ec-p256", DAY, PASSPHRASE)
