# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who gets in by which certificate."""

from __future__ import annotations

import json

import certificates
import front
import pytest
import scenario
from scenario import pki

METRICS = "/api/v4/metrics"


def curl(outsider, broker, certificate: str | None, path: str = METRICS, *, options: str = "") -> tuple[str, str]:
    """(status, body) by curl, which checks the server's certificate and name as well."""
    command = (
        f"cd {front.ATTACKER} && curl --silent --max-time 8 --cacert server-ca.pem {options} "
        f"--connect-to {broker.name}:443:{broker.ipv4}:443 --write-out '\\n%%{{http_code}}' https://{broker.name}{path}"
    )
    if certificate:
        command += f" --cert {certificate}.pem --key {certificate}.key"
    done = outsider.run(command.replace("%%", "%"))
    body, _line, status = done.stdout.rpartition("\n")
    return status, body


@pytest.mark.parametrize("certificate", [None, *certificates.REFUSED])
def test_a_bad_certificate_is_refused(outsider, broker, recorder, certificate):
    recorder.streams()
    status, body = curl(outsider, broker, certificate)
    assert status == "403"
    assert isinstance(json.loads(body), dict)
    assert len(body) < 300
    assert front.statuses(broker, certificate, [("GET", METRICS), ("POST", "/api/v4/mqtt/publish")]) == [403, 403]
    # What is not the API's is nobody's business either.
    assert front.statuses(broker, certificate, [("GET", "/")]) == [403 if certificate else 404]
    assert recorder.requests() == []


@pytest.mark.parametrize("certificate", ["admin", "viewer", "deputy", "counter"])
def test_a_good_certificate_gets_through(outsider, broker, recorder, certificate):
    recorder.streams()
    status, body = curl(outsider, broker, certificate)
    assert (status, json.loads(body)) == ("401", {"code": 104})
    assert front.statuses(broker, certificate, [("GET", METRICS)]) == [401]
    received = recorder.requests()
    assert [(request.method, request.target) for request in received] == [("GET", METRICS)] * 2
    assert all(request.header("host") == "127.0.0.1:8081" for request in received)


def roles_of(broker, certificate: str) -> dict[str, int]:
    """{role: the status of a call that this role alone may}"""
    probes = {
        "viewer": ("GET", "/api/v4/nodes"),
        "publisher": ("POST", "/api/v4/mqtt/publish"),
        "bridge_operator": ("GET", "/api/v4/bridges"),
        "admin": ("GET", "/api/v4/rules"),
        "counter": ("GET", METRICS),
    }
    return dict(zip(probes, front.statuses(broker, certificate, list(probes.values())), strict=True))


def test_a_subject_that_resembles_another_has_no_role(broker, recorder):
    recorder.streams()
    names = list(certificates.WITHOUT_ROLE)
    calls = [
        ["GET", "/api/v4/nodes", {}, ""],
        ["POST", "/api/v4/mqtt/publish", {}, "{}"],
        ["GET", "/api/v4/rules", {}, ""],
    ]
    answers = front.attempt([front.to(broker, "calls", certificate=name, calls=calls) for name in names])
    got = {name: [status for status, _body in answer["answers"]] for name, answer in zip(names, answers, strict=True)}
    assert {name: statuses for name, statuses in got.items() if statuses != [403, 403, 403]} == {}
    assert recorder.requests() == []


def test_names_units_and_fingerprints_give_roles(broker):
    refused = dict.fromkeys(("viewer", "publisher", "bridge_operator", "admin", "counter"), 403)
    assert roles_of(broker, "viewer") == refused | {"viewer": 401, "counter": 401}
    assert roles_of(broker, "publisher") == refused | {"publisher": 401}
    assert roles_of(broker, "bridge_operator") == refused | {"bridge_operator": 401}
    assert roles_of(broker, "deputy") == refused | {"viewer": 401, "counter": 401, "bridge_operator": 401}
    assert roles_of(broker, "admin") == dict.fromkeys(refused, 401) | {"bridge_operator": 403}
    assert roles_of(broker, "counter") == refused | {"counter": 401}
    # Two attributes in one relative name: of the publishers, or of nobody.
    assert roles_of(broker, "multi-valued") in (refused, refused | {"publisher": 401})


def test_a_role_ends_with_its_revocation(fleet):
    """The list of revoked certificates is what refuses: the others of the same name get through."""

    def answered(certificate: str) -> list[int]:
        return [status for broker in fleet for status in front.statuses(broker, certificate, [("GET", METRICS)])]

    assert answered("admin") == [401, 401]
    assert answered("revoked") == [403, 403]
    try:
        assert front.harden(hosts=front.FLEET, nanomq_nginx_client_crl="").status == 0
        assert answered("revoked") == [401, 401]
    finally:
        assert front.harden(hosts=front.FLEET).status == 0
    assert answered("revoked") == [403, 403]


def test_the_operators_authority_is_the_fleets_no_more_than_it_is_a_devices(callers):
    fleet, operators = ((pki() / name / "ca.pem").read_text() for name in ("ca", "operators"))
    assert fleet != operators
    for key in (pki() / "operators").rglob("*.key"):
        assert key.stat().st_mode & 0o077 == 0
        assert "ENCRYPTED" in key.read_text()


def test_the_log_tells_who_came_and_never_what_opens_the_door(outsider, broker):
    log = "/var/log/nginx/edgesec-nanomq.access.log"
    token = scenario.token(600)
    before = int(broker.check_output(f"wc -l < {log}"))
    header = {"Authorization": f"Bearer {token}"}
    assert front.statuses(broker, "viewer", [("GET", METRICS + "?x=1", header)]) == [200]
    assert front.statuses(broker, "newline", [("GET", METRICS, header)]) == [403]
    assert front.statuses(broker, "expired", [("GET", METRICS, header)]) == [403]
    assert front.statuses(broker, None, [("GET", '/x"y\\', header)]) == [404]
    lines = broker.check_output(f"tail -n +{before + 1} {log}").splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["status"] for entry in entries] in ([200, 403, 403, 404], ["200", "403", "403", "404"])
    assert [entry["method"] for entry in entries] == ["GET"] * 4
    assert [entry["uri"] for entry in entries] == [METRICS + "?x=1", METRICS, METRICS, '/x"y\\']
    assert "viewer-1" in entries[0]["subject"]
    assert "viewer" in str(entries[0]["roles"])
    assert "viewer" not in str(entries[1]["roles"])
    assert entries[0]["certificate"] == "SUCCESS"
    assert "expired" in entries[2]["certificate"]
    assert entries[3]["certificate"] == "NONE"
    signature = token.rpartition(".")[2]
    assert broker.run("grep -rlF -e %s /var/log/nginx", signature).stdout == ""
    assert signature not in scenario.journal(broker, "--since=-5min")


@pytest.mark.parametrize(
    ("least", "most", "works"),
    [("TLSv1", "TLSv1_1", False), ("TLSv1_2", "TLSv1_2", True), ("TLSv1_3", "TLSv1_3", True)],
)
def test_versions_of_tls(broker, least, most, works):
    (answer,) = front.attempt([front.to(broker, "handshake", certificate="viewer", least=least, most=most)])
    assert ("answer" in answer) is works, answer
