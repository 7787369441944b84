# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Another token key for ten hosts, cut again and again: it goes on, and no host is rotated twice."""

from __future__ import annotations

import json
import pathlib
import sys
import time

import pytest
import scenario

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import fleet

NAMES = sorted(scenario.broker_names()) if scenario.INVENTORY else []
FIRST = ["bookworm1", "bookworm2", "trixie1"]
AWAY = "trixie5"

#: Asks REST again and again, with an old and a new token; writes when, and which of them is taken.
WATCH = r"""
import http.client, json, time
tokens = json.load(open("/run/watch.json"))
def ask(token):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 8081, timeout=2)
        connection.request("GET", "/api/v4/brokers", headers={"Authorization": "Bearer " + token})
        return connection.getresponse().status
    except OSError:
        return 0
with open("/run/watch.log", "w", buffering=1) as log:
    until = time.monotonic() + 280
    while time.monotonic() < until:
        log.write(json.dumps([time.monotonic(), *map(ask, tokens)]) + "\n")
        time.sleep(0.05)
"""


def changed(run: scenario.Play) -> dict[str, int]:
    return {name: run.recap(name)["changed"] for name in NAMES if f"\n{name} " in run.output.split("PLAY RECAP")[1]}


def test_check_mode_changes_nothing():
    before = fleet.files(), fleet.look(FIRST)
    run = fleet.rotate("--check", "--diff", hosts=",".join(FIRST), nanomq_pki_jwt_rotate_key=scenario.issuer())
    assert run.status == 0, run.output
    assert f"changes from {scenario.issuer()} to a new key" in run.flat()
    assert (fleet.files(), fleet.look(FIRST)) == before


def test_a_key_of_today_is_left_alone():
    before = fleet.files()
    run = fleet.rotate(hosts="trixie2")
    assert run.status == 0, run.output
    assert "name the key to rotate it at once" in run.flat()
    assert changed(run) == {"trixie2": 0}
    assert fleet.files() == before


def test_cut_again_and_again_it_goes_on_and_rotates_nobody_twice():
    old = scenario.issuer()
    old_key = (fleet.jwt_dir() / "fleet.key").read_bytes()
    asked = {"nanomq_pki_jwt_rotate_key": old}
    begin = fleet.look(NAMES)

    # Some hosts alone (--limit): it stays open for the others.
    run = fleet.rotate(hosts=",".join(FIRST), **asked)
    assert run.status == 0, run.output
    new = scenario.issuer()
    new_key = (fleet.jwt_dir() / "fleet.key").read_bytes()
    assert new != old
    assert sorted(fleet.record()["proven"]) == FIRST
    assert f"bookworm1: {new} alone" in run.flat()
    assert f"trixie4: {old} or {new}, not seen yet" in run.flat()
    tokens = [fleet.token(old_key, old), fleet.token(new_key, new), fleet.token(old_key, new)]
    limited = fleet.look(NAMES, *tokens)
    for name, seen in limited.items():
        assert seen.statuses == ([401, 200, 401] if name in FIRST else [200, 401, 401]), name
        assert seen.keys == [seen.conf] == [new if name in FIRST else old], name
        assert seen.stopped == begin[name].stopped + (name in FIRST), name

    # One of the others, as its callers see it.
    fleet.ssh("trixie4", "umask 077; cat > /run/watch.json", json.dumps(tokens[:2]))
    fleet.ssh("trixie4", "cat > /run/watch.py", WATCH)
    fleet.ssh("trixie4", "systemd-run --quiet --collect --unit=watch /usr/bin/python3 /run/watch.py")

    # The controller is killed when five have it.
    killed_at = fleet.cut(5, **asked)
    assert scenario.eventually(lambda: fleet.settled(NAMES), 30)
    killed = fleet.look(NAMES, *tokens)
    done = sorted(name for name, seen in killed.items() if seen.conf == new)
    print(f"killed after {killed_at} hosts; {len(done)} have the new key: {', '.join(done)}")
    assert 5 <= len(done) < len(NAMES)
    assert {name: limited[name] for name in FIRST} == {name: killed[name] for name in FIRST}
    assert fleet.files()["fleet.key"] == new_key

    # One host cannot be reached.
    away = pathlib.Path(scenario.INVENTORY).parent / "away.json"
    away.write_text(json.dumps({"brokers": {"hosts": {AWAY: {"ansible_host": "127.0.0.1", "ansible_port": 9}}}}))
    run = fleet.rotate("-i", str(away), "-vvv", "--diff", **asked)
    assert run.status == 4, run.output
    assert f"for lack of {AWAY}" in run.flat()
    assert sorted(fleet.record()["proven"]) == [name for name in NAMES if name != AWAY]
    noted = {NAMES[0]: 1}  # the record, on the controller, is counted for the first host
    assert {name: count for name, count in changed(run).items() if name in done} == dict.fromkeys(done, 0) | noted
    nearly = fleet.look(NAMES, *tokens)
    assert {name: nearly[name] for name in done} == {name: killed[name] for name in done}
    assert nearly[AWAY].statuses == [200, 401, 401]
    assert_nothing_secret_in(run.output, tokens)

    # What a plain harden does meanwhile: the new key, and never back.
    run = fleet.play("harden", hosts=AWAY)
    assert run.status == 0, run.output
    assert "a rotation of this key is under way" in run.flat()
    assert fleet.look([AWAY], *tokens)[AWAY].statuses == [401, 200, 401]
    assert fleet.record() is not None

    # All are there: it ends, and nobody is restarted for that.
    before = fleet.look(NAMES)
    run = fleet.rotate(**asked)
    assert run.status == 0, run.output
    assert fleet.record() is None
    assert "The rotation is finished" in run.flat()
    assert changed(run) == {name: int(name == NAMES[0]) for name in NAMES}, "the end itself, on the controller"
    after = fleet.look(NAMES, *tokens)
    for name, seen in after.items():
        assert seen.statuses == [401, 200, 401], name
        assert seen.keys == [new], name
        assert seen.stopped == before[name].stopped, name
    assert (fleet.jwt_dir() / f"fleet-{old.removesuffix('.pub')}.key").read_bytes() == old_key
    assert not list(fleet.jwt_dir().glob("*.next.key"))
    watched("trixie4")

    # Again: nothing, on the hosts and on the controller.
    before_files = fleet.files()
    run = fleet.rotate(**asked)
    assert run.status == 0, run.output
    assert changed(run) == dict.fromkeys(NAMES, 0)
    assert fleet.files() == before_files
    assert fleet.look(NAMES, *tokens) == after


def watched(name: str) -> None:
    """The broker was away once, for the restart, and took one of the two keys whenever it answered."""
    fleet.ssh(name, "systemctl stop watch")
    lines = [json.loads(line) for line in fleet.ssh(name, "cat /run/watch.log").splitlines()]
    gaps, since = [], None
    for moment, old, new in lines:
        if 0 in (old, new):
            since = moment if since is None else since
            continue
        assert sorted((old, new)) == [200, 401], (old, new)
        if since is not None:
            gaps.append(moment - since)
            since = None
    print(f"{name}: asked {len(lines)} times, without an answer for {[round(gap, 2) for gap in gaps]} s")
    assert lines[0][1:] == [200, 401]
    assert lines[-1][1:] == [401, 200]
    assert len(gaps) <= 2, "the real broker at times aborts"
    assert all(gap < 4 for gap in gaps)


def assert_nothing_secret_in(output: str, tokens: list[str]) -> None:
    assert len(output) > 10000
    lines = [
        line
        for path in scenario.pki().rglob("*.key")
        for line in path.read_text().splitlines()
        if not line.startswith("-----")
    ]
    passphrases = [scenario.HOSTS[name] for name in ("nanomq_pki_authority_passphrase", "nanomq_pki_jwt_passphrase")]
    for secret in (*lines, *passphrases, *scenario.USERS.values(), *tokens, "Bearer ey", "eyJ"):
        assert secret not in output


# --- the module is killed ---------------------------------------------------------------------------------------------

#: An interpreter that ends the transaction, and no other module, at the rename that the file on the host names.
KILLER = """#!/bin/sh
payload=$(mktemp /run/payload.XXXXXX)
cat > "$payload"
if grep -q modules.transaction "$payload"; then
    exec strace -f -qq -o /dev/null -e trace=rename -e inject=rename:signal=KILL:when=$(cat /root/kill-at) \
        /usr/bin/python3 "$@" < "$payload"
fi
exec /usr/bin/python3 "$@" < "$payload"
"""


def test_the_module_is_killed_at_another_step_on_each_host():
    old, old_key = scenario.issuer(), (fleet.jwt_dir() / "fleet.key").read_bytes()
    steps = {name: 1 + 2 * number for number, name in enumerate(NAMES)}
    for name, step in steps.items():
        fleet.ssh(name, f"cat > /root/killer; chmod +x /root/killer; echo {step} > /root/kill-at", KILLER)
    asked = {"nanomq_pki_jwt_rotate_key": old, "nanomq_pki_jwt_rotate_old_key": "delete"}
    run = fleet.rotate(interpreter="/root/killer", **asked)
    assert run.status != 0, run.output
    new, new_key = scenario.issuer(), (fleet.jwt_dir() / "fleet.key").read_bytes()
    tokens = [fleet.token(old_key, old), fleet.token(new_key, new)]
    killed = fleet.look(NAMES, *tokens)
    phases = {name: (seen.open, seen.conf == new, seen.statuses) for name, seen in killed.items()}
    print("killed:", {steps[name]: phase for name, phase in phases.items()})
    for name, seen in killed.items():
        assert sorted(seen.statuses) == [200, 401], (name, "one of the keys, and not both")
    assert len({(seen.open, seen.conf) for seen in killed.values()}) >= 3, "the steps differ"
    unfinished = [name for name, seen in killed.items() if name not in fleet.record()["proven"]]
    assert len(unfinished) >= 5

    run = fleet.rotate(**asked)
    assert run.status == 0, run.output
    assert scenario.issuer() == new
    after = fleet.look(NAMES, *tokens)
    for name, seen in after.items():
        assert (seen.statuses, seen.keys, seen.open) == ([401, 200], [new], False), name
    assert fleet.record() is None
    assert f"fleet-{old.removesuffix('.pub')}.key" not in fleet.files()


def test_a_token_for_a_job(tmp_path):
    """The file is the caller's alone, and the broker takes what is in it."""
    path = tmp_path / "token"
    run = fleet.play("jwt_token", "-vvv", nanomq_pki_jwt_token_path=str(path), nanomq_pki_jwt_token_subject="nightly")
    assert run.status == 0, run.output
    assert path.stat().st_mode & 0o777 == 0o600
    assert fleet.look(["trixie2"], path.read_text())["trixie2"].statuses == [200]
    assert path.read_text() not in run.output
    assert time.time() - path.stat().st_mtime < 60


@pytest.mark.parametrize("name", ["bookworm2"])
def test_a_rollback_says_that_it_brings_the_old_key_back(name):
    run = fleet.play(
        "rollback",
        "--check",
        hosts=name,
        nanomq_rollback_transaction="broker",
        nanomq_rollback_to="previous",
    )
    assert run.status == 0, run.output
    assert "are valid again, and those of" in run.flat()
