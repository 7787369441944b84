# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Generations: what is kept can be read back or is refused, and what the list of them says."""

from __future__ import annotations

import base64
import datetime
import errno
import functools
import json
import os
import tempfile
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _generations as generations
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import (
    Change,
    Entry,
    Service,
    TransactionError,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fake_systemd import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SVC = Service("svc.service")
PROPERTY = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CONF = 'http_server {\n  port = 8081\n  auth_type = jwt\n}\nauth {\n  password {\n    "sensor" = "%s"\n  }\n}\n'


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    assert os.geteuid() == 0, "these tests change owners: run them as root"
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "host", {"svc.service": "etc/conf"})


@pytest.fixture
def scratch():
    """In memory where the machine has such a place: hundreds of hosts are made and thrown away."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        yield path


def deploy(world, content: str, **memo):
    return world.apply([world.file("etc/conf", content, mode=0o640)], [SVC], memo=memo)


def restore(world, number: int, call=None):
    """What the module does, short of its validators and probes."""
    generation = generations.check_usable(world.store, number)
    return world.apply(
        generation.entries, generation.services, memo={"restores": number}, call=call or world.systemd
    ).changed


def content(world) -> str:
    return Path(world.path("etc/conf")).read_text()


# --- read back, or refused --------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["etc/a", "etc/b", "etc/d/x"])
CONTENTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@PROPERTY
@given(
    files=st.dictionaries(
        NAMES, st.tuples(CONTENTS, st.sampled_from([0o600, 0o644]), st.booleans(), st.sampled_from(["show", "redact"]))
    ),
    absent=st.booleans(),
    target=st.sampled_from(["", "a", "nowhere"]),
    on_change=st.sampled_from(["restart", "reload"]),
)
def test_a_generation_is_read_back_as_it_was_deployed(scratch, files, absent, target, on_change):
    world = World(Path(tempfile.mkdtemp(dir=scratch)), {"svc.service": "etc/a"})
    entries = [world.directory("etc/d", 0o750)]
    for name, (text, mode, early, shown) in files.items():
        entries.append(world.file(name, text, mode=mode, early=early, shown=shown, group="daemon"))
    entries += [world.absent("etc/gone")] * absent + [world.link("etc/link", target)] * bool(target)
    services = [Service("svc.service", on_change=on_change)]
    world.apply(entries, services, memo={"probes": [{"type": "rest"}]})
    (number,) = [number for number in world.store.generations() if number]
    kept = world.store.generation(number)
    assert kept.entries == entries
    assert kept.services == services
    assert kept.manifest["probes"] == [{"type": "rest"}]
    assert {change["dest"] for change in kept.manifest["changes"]} == {
        entry.dest for entry in entries if entry.state != "absent"
    }
    assert not restore(world, number), "what is in force already"


@PROPERTY
@given(data=st.data())
def test_whatever_happens_to_a_kept_file_is_noticed(scratch, data):
    world = World(Path(tempfile.mkdtemp(dir=scratch)), {"svc.service": "etc/conf"})
    deploy(world, "one", probes=[])
    deploy(world, "two", probes=[])
    path = data.draw(st.sampled_from(sorted(Path(world.store.generations_path, "0001").iterdir())))
    old = path.read_bytes()
    kind = data.draw(st.sampled_from(["gone", "cut", "longer", "flipped", "directory", "link"]))
    at = data.draw(st.integers(0, len(old) - 1))
    path.unlink()
    if kind == "cut":
        path.write_bytes(old[:at])
    elif kind == "longer":
        path.write_bytes(old[:at] + b"7" + old[at:])
    elif kind == "flipped":
        path.write_bytes(old[:at] + bytes([old[at] ^ 1 << data.draw(st.integers(0, 7))]) + old[at + 1 :])
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    before = world.snapshot()
    problem = generations.listing(world.store)["generations"][1]["problem"]
    if problem:
        assert "generation 1 of 'broker' is damaged" in problem
        assert str(path) in problem
        with pytest.raises(TransactionError, match="is damaged"):
            world.store.generation(1)
    else:  # white space between the words of the manifest
        assert world.store.generation(1).entries == [world.file("etc/conf", "one", mode=0o640)]
    assert world.snapshot() == before


def test_a_generation_of_before_there_were_checksums_is_listed_and_refused(world):
    deploy(world, "one")
    path = Path(world.store.generations_path, "0001", "manifest.json")
    old = json.loads(path.read_text())
    path.write_text(json.dumps({"format": 1, **{key: old[key] for key in ("id", "time", "files", "services")}}))
    with pytest.raises(TransactionError, match="by an earlier version"):
        world.store.generation(1)
    assert "earlier version" in generations.listing(world.store)["generations"][1]["problem"]
    assert deploy(world, "two").generation == 2


def test_the_host_as_it_was_found_is_not_restored(world):
    Path(world.path("etc/conf")).write_text("shipped")
    deploy(world, "one")
    assert world.store.generation(0).entries[0].content == b"shipped"
    with pytest.raises(TransactionError, match="nothing says how to check it"):
        generations.check_usable(world.store, 0)


# --- back and forward -------------------------------------------------------------------------------------------------


def test_back_and_forward(world):
    for text in ("one", "two", "three"):
        deploy(world, text)
    assert restore(world, 1)
    assert content(world) == world.systemd.running["svc.service"]["etc/conf"] == "one"
    assert not restore(world, 1)
    assert restore(world, 3)
    assert content(world) == "three"
    assert world.store.generations() == [0, 1, 2, 3, 4, 5]
    assert [row["restores"] for row in generations.listing(world.store)["generations"]][4:] == [1, 3]


def test_going_back_and_forth_pushes_no_deployment_out(world):
    for text in ("one", "two", "three", "four"):
        deploy(world, text)
    for _time in range(4):
        for number in (2, 3):
            assert restore(world, number)
    assert world.store.generations() == [0, 1, 2, 3, 4, 12]
    deploy(world, "five")
    assert world.store.generations() == [0, 2, 3, 4, 12, 13]
    assert generations.resolve(world.store, "previous") == 12
    for text in ("six", "seven"):
        deploy(world, text)
    assert world.store.generations() == [0, 3, 4, 13, 14, 15], "a copy that is no longer before the last goes first"


def test_a_generation_that_the_service_takes_no_longer_is_undone(world):
    deploy(world, "one")
    deploy(world, "two")
    before = world.snapshot()
    world.systemd.deny("restart svc.service")
    with pytest.raises(TransactionError) as caught:
        restore(world, 1)
    assert caught.value.step == "activate"
    assert world.snapshot()["files"] == before["files"]
    assert world.store.generations() == [0, 1, 2]
    world.systemd.deny()
    assert deploy(world, "two").repaired
    assert world.snapshot() == before
    generation = world.store.generation(1)
    with pytest.raises(TransactionError, match="probe: no") as caught:
        world.apply(generation.entries, generation.services, probe=lambda: ["no"])
    assert caught.value.undone
    assert world.snapshot() == before


@pytest.mark.parametrize("stays_full", [True, False])
def test_a_disk_that_is_full_at_any_write_of_a_rollback(tmp_path, monkeypatch, stays_full):
    write = os.write
    for n in range(1, 100):
        world = World(tmp_path / str(n), {"svc.service": "etc/conf"})
        deploy(world, "one")
        deploy(world, "two")
        before, count = world.snapshot(), []

        def full(fd, data, *, count, n):
            count.append(fd)
            if len(count) == n or (stays_full and len(count) > n):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(fd, data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", functools.partial(full, count=count, n=n))
            try:
                restore(world, 1)
                failed = False
            except TransactionError:
                failed = True
        if failed:
            assert world.snapshot() == before
            assert world.record() is None
            assert world.store.generations() == [0, 1, 2]
        else:
            assert content(world) == "one"
        restore(world, 1)
        assert content(world) == "one"
        assert world.strays() == []
        if len(count) < n:
            break
    assert 5 < n < 99


# --- which one --------------------------------------------------------------------------------------------------------


@PROPERTY
@given(steps=st.lists(st.one_of(st.just("deploy"), st.integers(1, 9)), max_size=9), keep=st.integers(1, 5))
def test_what_previous_and_a_number_mean(scratch, steps, keep):
    """`held` is the model: what was in force when, and before the last deployment."""
    world = World(Path(tempfile.mkdtemp(dir=scratch)), {"svc.service": "etc/conf"})
    deploy(world, "1")
    in_force, before_last, held = "1", None, {1: "1"}
    for number, step in enumerate(steps, 2):
        if step == "deploy":
            world.apply([world.file("etc/conf", str(number), mode=0o640)], [SVC], keep=keep)
            in_force, before_last = str(number), in_force
        else:
            try:
                restore_text = world.store.generation(generations.resolve(world.store, str(step))).entries[0].content
            except TransactionError:
                assert step not in world.store.generations()
                continue
            assert restore_text.decode() == held.get(step, restore_text.decode())
            world.apply(
                [world.file("etc/conf", restore_text.decode(), mode=0o640)], [SVC], memo={"restores": step}, keep=keep
            )
            in_force = restore_text.decode()
        held.setdefault(world.store.generations()[-1], in_force)
        # Repeating the last step finds nothing to do, whether or not its generation was forgotten meanwhile.
        if step != "deploy":
            again = world.store.generation(generations.resolve(world.store, str(step)))
            if world.store.manifest(world.store.generations()[-1]).get("restores") == step:
                assert again.entries[0].content.decode() == in_force
    try:
        previous = generations.resolve(world.store, "previous")
    except TransactionError:
        assert before_last is None or keep < 3, "three are enough for: in force, last deployment, before it"
        return
    assert world.store.generation(previous).entries[0].content.decode() == before_last
    restore(world, previous)
    if previous in world.store.generations():
        assert generations.resolve(world.store, "previous") == previous
    assert content(world) == before_last


@pytest.mark.parametrize("wanted", ["", "3", "-1", "1.0", "²", "one", "../1", "1" * 30])
def test_what_there_is_not_is_said(world, wanted):
    deploy(world, "one")
    with pytest.raises(TransactionError, match=r"no generation 3; it has 1|is neither the number"):
        generations.resolve(world.store, wanted)


def test_an_unknown_transaction_is_answered_with_those_there_are(world):
    with pytest.raises(TransactionError, match="never hardened"):
        generations.known_store("broker", str(world.state))
    deploy(world, "one")
    with pytest.raises(TransactionError, match=r"no transaction '\.\./broker'; it has broker"):
        generations.known_store("../broker", str(world.state))
    assert generations.known_store("broker", str(world.state)).path == world.store.path


# --- the list ---------------------------------------------------------------------------------------------------------


@PROPERTY
@given(secret=st.text("abcdefgh0123456789", min_size=12, max_size=20))
def test_the_list_says_by_whom_and_what_and_never_a_content(scratch, secret):
    world = World(Path(tempfile.mkdtemp(dir=scratch)), {"svc.service": "etc/conf"})
    run = {"by": "operator@desk", "play": "Harden", "pid": 7}
    deploy(world, CONF % secret, run=run)
    deploy(world, CONF % (secret + "2"), run=run)
    Path(world.path("etc/conf")).chmod(0o600)
    found = generations.listing(world.store)
    assert secret not in json.dumps(found)
    assert found["differs"] == [world.path("etc/conf")]
    assert found["unfinished"] == ""
    _found, first, second = found["generations"]
    assert (first["in_force"], second["in_force"]) == (False, True)
    assert first["run"] == run
    assert first["problem"] == second["problem"] == ""
    assert second["changes"] == [{"dest": world.path("etc/conf"), "what": ["content"]}]
    at = datetime.datetime.fromisoformat(second["time"].replace("Z", "+00:00"))
    assert abs(at.timestamp() - datetime.datetime.now().timestamp()) < 60


def test_what_cannot_be_compared_is_listed_all_the_same(world):
    deploy(world, "one")
    Path(world.path("etc/conf")).unlink()
    Path(world.path("etc/conf")).mkdir()
    found = generations.listing(world.store)
    assert "is to be a file, but is a directory" in found["differs"][0]
    assert len(found["generations"]) == 2


def test_a_change_that_waits_is_listed(world):
    deploy(world, "one")
    world.apply([world.file("etc/conf", "two")], [SVC], confirm_within=60)
    assert generations.listing(world.store)["unfinished"] == "unconfirmed"


# --- what it needs ----------------------------------------------------------------------------------------------------


def certificate(path: Path, *, ends_in: float) -> None:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=9))
    made = builder.not_valid_after(now + datetime.timedelta(seconds=ends_in)).sign(key, hashes.SHA256())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def test_what_a_set_names_and_does_not_hold_is_needed():
    checks = [
        {"type": "key_pair", "certificate": "/p/cert.pem", "key": "/p/key.pem", "ca": "/held/ca.pem"},
        {"type": "nanomq", "program": "/usr/bin/nanomq", "conf": "/held/conf"},
        {"type": "listeners", "expect": ["/no/file"]},
    ]
    conf = {
        "http_server": {"jwt": {"public": {"keyfile": "/held/jwt"}}},
        "listeners": {"ssl": {"certfile": "/p/cert.pem"}},
        "bridges": [{"ssl": {"cacertfile": "/b/ca.pem", "keyfile": ""}}],
    }
    held = [Entry("/held/ca.pem"), Entry("/held/conf"), Entry("/held/jwt")]
    assert generations.needs(held, checks, conf) == ["/b/ca.pem", "/p/cert.pem", "/p/key.pem", "/usr/bin/nanomq"]


def test_a_generation_whose_pair_is_gone_or_has_ended_is_refused(world, tmp_path):
    path = tmp_path / "cert.pem"
    certificate(path, ends_in=3600)
    deploy(world, "one", needs=[str(path)], probes=[{"type": "mqtt", "certificate": str(path)}])
    deploy(world, "two")
    assert generations.needed_files(str(world.state)) == {str(path)}
    assert restore(world, 1)
    assert restore(world, 2)
    certificate(path, ends_in=-1)
    with pytest.raises(TransactionError, match="which ended at"):
        generations.check_usable(world.store, 1)
    path.write_text("no certificate")
    with pytest.raises(TransactionError, match=r"cert\.pem, which generation 1 of 'broker' needs"):
        generations.check_usable(world.store, 1)
    path.unlink()
    with pytest.raises(TransactionError, match=f"no longer on the host: {path}"):
        generations.check_usable(world.store, 1)
    assert content(world) == "two"


# --- nanomq.conf ------------------------------------------------------------------------------------------------------


def token(issuer: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"iss": issuer}).encode()).decode().rstrip("=")
    return f"e30.{payload}.c2ln"


def test_the_credentials_are_those_of_the_generation():
    conf = {
        "http_server": {"auth_type": "jwt", "jwt": {"public": {"keyfile": "/etc/nanomq/jwt/jwt-2.pub"}}},
        "listeners": {"ssl": {"key_password": "of the key"}},
        "auth": {"password": {"enable": True, "sensor": "its password", "other": "another"}},
    }
    tokens = [token("jwt-1.pub"), token("jwt-2.pub")]
    assert generations.credentials(conf, tokens) == {
        "key_passphrase": "of the key",
        "mqtt_username": "sensor",
        "mqtt_password": "its password",
        "rest_authorization": f"Bearer {tokens[1]}",
    }
    assert "rest_authorization" not in generations.credentials(conf, tokens[:1])
    basic = generations.credentials(
        {"http_server": {"auth_type": "basic", "username": "steward", "password": "a:b"}}, tokens
    )
    assert basic["rest_authorization"] == "Basic " + base64.b64encode(b"steward:a:b").decode()
    assert generations.credentials(None, tokens) == {}


@given(st.one_of(st.text(), st.lists(st.text(), min_size=2, max_size=3).map(".".join)))
def test_what_is_no_token_has_no_issuer(text):
    assert generations.issuer(text) == ""


def test_the_users_are_compared_without_a_password():
    before = {"auth": {"password": {"a": "secret-1", "b": "secret-2", "c": "secret-3"}}}
    after = {"auth": {"password": {"b": "secret-2", "c": "secret-4", "d": "secret-5"}}}
    words = generations.users_changed(before, after)
    assert words == ["users that come back: d", "users that go: a", "users whose password changes: c"]
    assert generations.users_changed(before, before) == []
    assert generations.users_changed(None, before) == ["users that come back: a, b, c"]


def test_only_the_changes_of_a_nanomq_conf_are_searched_for_users():
    change = Change("/etc/nanomq/nanomq.conf", ["content"], (CONF % "old-secret").encode(), (CONF % "new").encode())
    assert generations.note_users([change], {change.dest: "redact"}) == ["users whose password changes: sensor"]
    assert generations.note_users([change], {change.dest: "show"}) == []
    broken = Change(change.dest, ["content"], b"\xff{", change.after)
    assert generations.note_users([broken], {change.dest: "redact"}) == ["users that come back: sensor"]


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("-----BEGIN PUBLIC KEY-----\n", "hide"),
        ('restrict,permitopen="x" ssh-ed25519 AAAAC3Nz x\n', "hide"),
        ("sk-ssh-ed25519@" + "openssh.com AAAAC3Nz x\n", "hide"),
        ("bind = 0.0.0.0:8883\n", "show"),
    ],
)
def test_keys_and_certificates_are_not_shown(text, how):
    assert generations.shown([Entry("/x", content=text.encode(), shown="show")]) == {"/x": how}
