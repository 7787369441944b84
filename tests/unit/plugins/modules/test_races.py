# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Two runs that make what is made once: the authority, and the key pair for tokens."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _files
from ansible_collections.edgesec.nanomq.plugins.module_utils._vault import CHANGE, Vault

MADE = {"tls_authority": "certificate", "jwt_keypair": "public_key"}


def hold(directory, pipe):
    """A process of its own: one that is forked later would hold the lock as well."""
    with _files.locked(directory, patience=5):
        pipe.send("held")
        pipe.recv()


@pytest.mark.parametrize("name", MADE)
def test_one_of_two_makes_it_and_the_other_keeps_it(run_module, tmp_path, name):
    path = tmp_path / "pki" / "secrets"
    _files.make_directories(str(path), mode=0o700)
    ours, theirs = multiprocessing.Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(str(path), theirs))
    holder.start()
    assert ours.recv() == "held"
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_module, name, {"path": str(path), "passphrase": "one"}) for _try in range(2)]
        time.sleep(3)
        early = list(path.iterdir()), [run.done() for run in runs]
        holder.kill()
        holder.join()
        assert early == ([], [False, False]), "nothing is made without the lock"
        results = [run.result(60) for run in runs]
    assert [result["failed"] for result in results] == [False, False], results
    assert sorted(result["changed"] for result in results) == [False, True]
    assert len({result[MADE[name]] for result in results}) == 1
    again = run_module(name, {"path": str(path), "passphrase": "one"})
    assert not again["changed"]
    assert again[MADE[name]] == results[0][MADE[name]]


@pytest.mark.parametrize("name", MADE)
def test_several_at_once_agree(run_module, tmp_path, name):
    """Where nothing is there yet, not even the directory."""
    options = {"path": str(tmp_path / "new" / "secrets"), "passphrase": "one"}
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _number: run_module(name, options), range(4)))
    assert [result["failed"] for result in results] == [False] * 4, results
    assert sum(result["changed"] for result in results) == 1
    assert len({result[MADE[name]] for result in results}) == 1


def change(directory, pipe):
    """A process that is in the middle of a change, which it takes back."""
    vault = Vault(directory)
    with vault.lock():
        staged = vault.file(f"{CHANGE}-{'0' * 16}")
        os.mkdir(staged)
        pipe.send("begun")
        pipe.recv()
        os.rmdir(staged)


def test_a_change_that_another_run_makes_is_not_a_cut_one(run_module, tmp_path):
    """It is waited for, and what it made is its own."""
    options = {"path": str(tmp_path / "secrets"), "passphrase": "one"}
    made = run_module("tls_authority", options)
    ours, theirs = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=change, args=(options["path"], theirs))
    other.start()
    assert ours.recv() == "begun"
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_module, "tls_authority", options)
        time.sleep(2)
        waits = not run.done()
        ours.send("end")
        other.join()
        result = run.result(60)
    assert waits
    assert not result["changed"], result["reason"]
    assert result["certificate"] == made["certificate"]


@pytest.mark.parametrize("name", MADE)
def test_steady_state_and_check_mode_wait_for_nobody(run_module, tmp_path, name):
    options = {"path": str(tmp_path / "secrets")}
    assert run_module(name, options)["changed"]
    with _files.locked(options["path"], patience=5):
        assert not run_module(name, options)["changed"]
    empty = {"path": str(tmp_path / "none")}
    assert run_module(name, empty, check=True)["changed"]
    assert not (tmp_path / "none").exists()
