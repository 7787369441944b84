"""What the collection does on this version: its table against what the broker does, by running both."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import (
    _hocon,
    _policy,
    _schema,
    _transaction,
    _validators,
    _versions,
)
from broken_configurations import CLEAN, changed
from harness import BROKERS
from material import authority, certificate, private_pem, public_pem, token
from versions import TRIED, number

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory outside of /tmp, where the throw-away broker finds its files."""
    path = Path(tempfile.mkdtemp(dir="/var/tmp"))
    pair = certificate()
    files = {"key.pem": private_pem(pair.key), "cert.pem": pair.pem}
    files |= {"ca.pem": authority("authority").pem, "jwt.pub": public_pem()}
    account = pwd.getpwnam("nobody")
    for name, data in files.items():
        (path / name).write_bytes(data)
    for entry in (path, *path.iterdir()):
        os.chown(entry, account.pw_uid, account.pw_gid)
    yield path
    shutil.rmtree(path)


def hardened(place: Path) -> dict:
    """A configuration as the role writes it, with files that are there."""
    return changed(
        {
            "listeners.ssl.keyfile": str(place / "key.pem"),
            "listeners.ssl.certfile": str(place / "cert.pem"),
            "listeners.ssl.cacertfile": str(place / "ca.pem"),
            "http_server.jwt.public.keyfile": str(place / "jwt.pub"),
        },
        CLEAN,
    )


def test_the_table_tells_where_it_was_run():
    assert sorted(version for one in _versions.RANGES for version in one.seen) == sorted(TRIED)


@pytest.mark.parametrize("kind", BROKERS, ids=lambda kind: kind.id)
def test_the_version_is_one_of_those_in_the_table(kind):
    state = _versions.range_of(kind.version)
    # The release 0.25.3 calls itself 0.25.4.
    assert kind.version in {number(version) for version in state.seen} or kind.version == (0, 25, 4)


def test_the_sockets_are_those_of_a_hardened_configuration_where_it_is_not_refused(broker, place):
    """The probe of a deployment asks for just these, so that a version that opens others is undone."""
    conf = hardened(place)
    running = broker(_hocon.emit(conf))
    opened = running.listens() == {listener.address for listener in _policy.listeners(conf)}
    assert opened is (_versions.range_of(broker.version).state != _versions.REFUSED)


def test_a_file_that_is_cut_short_opens_the_broker_only_where_it_is_refused(broker, place):
    text = _hocon.emit(hardened(place))
    running = broker(text[: text.index("acl {")])
    exposed = "0.0.0.0:1883" in running.listens()
    assert exposed is (_versions.range_of(broker.version).state == _versions.REFUSED)


def test_the_policy_stops_a_deployment_only_where_the_version_is_refused(broker):
    version = ".".join(map(str, broker.version))
    findings = _policy.evaluate_config(CLEAN, version=version, context={"firewall": True})
    stops = bool(_policy.failing(findings, "high", deployment=True))
    state = _versions.range_of(broker.version).state
    assert stops is (state == _versions.REFUSED)
    assert bool(findings) is (state != _versions.SUPPORTED)


@pytest.mark.skipif(len(BROKERS) < 2, reason="the validator starts a program of its own, and the double is a script")
@pytest.mark.parametrize("kind", BROKERS[1:], ids=lambda kind: kind.id)
class TestValidator:
    def validate(self, kind, place, text: str) -> None:
        path = place / "nanomq.conf"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        _validators.validate_nanomq(
            conf="/etc/nanomq.conf",
            program=os.path.realpath(kind.command[0]),
            user="nobody",
            staged={"/etc/nanomq.conf": str(path)},
            credentials={"rest_authorization": f"Bearer {token()}"},
        )

    def test_a_hardened_configuration_passes_where_it_is_not_refused(self, kind, place):
        text = _hocon.emit(hardened(place))
        if kind.version >= number("0.23.1"):
            self.validate(kind, place, text)
        else:
            with pytest.raises(_transaction.TransactionError, match=r"http_server\.ip_addr is None to the broker"):
                self.validate(kind, place, text)

    def test_what_the_broker_ignores_is_seen(self, kind, place):
        text = _hocon.emit(hardened(place)).replace("allow_anonymous = false", 'allow_anonymous = "false"')
        with pytest.raises(_transaction.TransactionError, match=r"auth\.allow_anonymous"):
            self.validate(kind, place, text)

    def test_a_key_that_the_version_does_not_know_is_refused(self, kind, place):
        del place
        version = ".".join(map(str, kind.version))
        known = {key.path for key in _schema.KEYS if not key.since or number(key.since) <= kind.version}
        refused = {problem.path for problem in _schema.validate(CLEAN, version)}
        assert refused == {path for path in ("http_server.ip_addr", "http_server.max_body") if path not in known}
