# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the module makes of its options."""

from __future__ import annotations

import functools
import os
from types import SimpleNamespace

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _transaction as engine
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import Service
from ansible_collections.edgesec.nanomq.plugins.modules import transaction
from fake_systemd import World


@pytest.mark.parametrize(
    ("enabled", "keep", "wanted"), [(True, False, True), (False, False, False), (True, True, None), (False, True, None)]
)
def test_whether_a_service_starts_at_boot_can_be_left_alone(enabled, keep, wanted):
    item = {"name": "x", "state": "started", "enabled": enabled, "keep_enabled": keep, "on_change": "reload"}
    service = transaction.wanted_service(item)
    assert (service.name, service.enabled, service.on_change) == ("x", wanted, "reload")


# --- a generation as the plan -----------------------------------------------------------------------------------------

CONF = """\
http_server {
  port = 8081
  auth_type = "jwt"
  jwt {
    public {
      keyfile = "/etc/nanomq/jwt/jwt-1.pub"
    }
  }
}
auth {
  password {
    "sensor" = "of-the-sensor"
  }
}
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    world = World(tmp_path / "host", {"svc.service": "etc/conf"})
    monkeypatch.setattr(transaction._generations, "known_store", lambda name: transaction.Store(name, str(world.state)))
    monkeypatch.setattr(transaction, "recover", functools.partial(transaction.recover, call=world.systemd))
    return world


def module_for(generation: str, *, check: bool = False, **params):
    options = {"name": "broker", "generation": generation, "confirm_within": 60, "run": {}, "credentials": {}}
    options["revoked_users"] = []
    return SimpleNamespace(params={**options, **params}, check_mode=check)


def deploy(host, text: str, **options):
    checks = [{"type": "nanomq", "conf": host.path("etc/conf")}]
    memo = {"needs": [], "validators": checks, "probes": [], **options.pop("memo", {})}
    entries = [host.file("etc/conf", text, mode=0o600, shown="redact")]
    return host.apply(entries, [Service("svc.service")], memo=memo, **options)


def test_the_plan_of_a_generation_has_its_credentials_and_its_checks(host):
    deploy(host, CONF)
    deploy(host, CONF + "# another\n")
    plan, recovered, number = transaction.kept(module_for("previous"))
    assert (recovered, number) == ("", 1)
    assert plan.entries[0].content.decode() == CONF
    assert plan.credentials["mqtt_username"] == "sensor"
    assert plan.credentials["mqtt_password"] == "of-the-sensor"
    assert plan.shown == {host.path("etc/conf"): "redact"}
    assert plan.validators[0]["type"] == "nanomq"
    assert plan.memo["restores"] == 1


@pytest.mark.parametrize(("first", "second", "asked", "wanted"), [(60, 0, 30, 30), (0, 60, 30, 30), (0, 0, 30, 0)])
def test_what_may_cut_the_connection_is_confirmed(host, first, second, asked, wanted):
    for text, seconds in ((CONF, first), (CONF + "# another\n", second)):
        outcome = deploy(host, text, confirm_within=seconds)
        if seconds:
            engine.confirm("broker", outcome.transaction, state_dir=str(host.state), call=host.systemd)
    plan, _recovered, _number = transaction.kept(module_for("1", confirm_within=asked))
    assert plan.confirm_within == wanted


def test_previous_is_asked_for_after_what_was_cut_is_settled(host, monkeypatch):
    """A deployment that was cut after its commit counts: what is before it is what was in force then."""
    deploy(host, "one")
    deploy(host, "two")

    def cut(*args):
        raise OSError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "finish", cut)
        deploy(host, "three")
    assert host.store.generations() == [0, 1, 2]
    _plan, recovered, number = transaction.kept(module_for("previous", check=True))
    assert (recovered, number) == ("", 1), "check mode changes nothing"
    _plan, recovered, number = transaction.kept(module_for("previous"))
    assert "finished transaction" in recovered
    assert number == 2


def test_the_secrets_of_both_sides_are_masked(host):
    deploy(host, CONF)
    deploy(host, CONF.replace("of-the-sensor", "its-new-password"))
    module = module_for("1", state="restored")
    module.no_log_values = set()
    plan, _recovered, _number = transaction.kept(module)
    transaction.hide_secrets(module, plan)
    assert module.no_log_values >= {"of-the-sensor", "its-new-password"}


def test_tokens_that_must_be_refused_are_masked(host):
    deploy(host, CONF)
    credentials = {"rest_authorization": "Bearer of-the-new-key", "rest_refused": ["Bearer of-the-old-key"]}
    module = module_for("1", state="present", credentials=credentials)
    module.no_log_values = set()
    plan, _recovered, _number = transaction.kept(module)
    plan.credentials = credentials
    transaction.hide_secrets(module, plan)
    assert module.no_log_values >= {"of-the-new-key", "of-the-old-key"}


# --- what a generation must not bring back ----------------------------------------------------------------------------


def test_a_generation_with_a_revoked_user_is_refused(host):
    deploy(host, CONF)
    deploy(host, CONF.replace('"sensor" = ', '"other" = '))
    with pytest.raises(engine.TransactionError, match="lets in sensor, whose access was revoked") as caught:
        transaction.kept(module_for("1", revoked_users=["nobody", "sensor"]))
    assert caught.value.step == "load"
    assert "of-the-sensor" not in str(caught.value)
    _plan, _recovered, number = transaction.kept(module_for("1", revoked_users=["nobody", "other"]))
    assert number == 1


def changed(before: str | None, after: str | None) -> engine.Change:
    contents = [None if text is None else text.encode() for text in (before, after)]
    return engine.Change("/etc/x", ["content"], *contents)


LIST = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], []),
        ([(CONF, CONF + "# another\n"), ("x", "y"), (None, "z"), ("auth = 1", "http_server = 1")], []),
        ([(CONF, CONF.replace("jwt-1", "jwt-2"))], ["tokens: those of jwt-2.pub are valid again, and those of jwt-1"]),
        ([(None, LIST), (LIST, None)], ["revocation lists: those of then are in force"]),
        ([("site", "site"), (LIST, None)], ["revocation lists: those of then are in force"]),
    ],
)
def test_what_becomes_of_tokens_and_lists_is_said(changes, said):
    notes = transaction._generations.note_keys([changed(*one) for one in changes])
    assert len(notes) == len(said)
    for note, expected in zip(notes, said):
        assert expected in note
