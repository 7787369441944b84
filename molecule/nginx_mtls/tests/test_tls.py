# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What scanners find: sslyze of the handshake, gixy of the configuration. Nothing above informational is the aim."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess

import front
import pytest

SUITES = {
    "tls_1_2_cipher_suites": {
        *(
            f"TLS_ECDHE_{kind}_WITH_AES_{size}"
            for kind in ("ECDSA", "RSA")
            for size in ("128_GCM_SHA256", "256_GCM_SHA384")
        ),
        *(f"TLS_ECDHE_{kind}_WITH_CHACHA20_POLY1305_SHA256" for kind in ("ECDSA", "RSA")),
    },
    "tls_1_3_cipher_suites": {
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    },
    "tls_1_1_cipher_suites": set(),
    "tls_1_0_cipher_suites": set(),
    "ssl_3_0_cipher_suites": set(),
    "ssl_2_0_cipher_suites": set(),
}
CURVES = {"X25519", "X448", "prime256v1", "secp256r1", "secp384r1", "secp521r1"}


@pytest.fixture(scope="session")
def scan(broker) -> dict:
    """{name of the check: its result} by sslyze."""
    program = shutil.which("sslyze")
    assert program, "sslyze is not installed"
    # It has an environment of its own: it wants another version of a library than the tests do.
    python = pathlib.Path(program).read_text().splitlines()[0].removeprefix("#!")
    done = subprocess.run(
        [python, str(front.HERE / "scan.py"), broker.ipv4, broker.name],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    server = json.loads(done.stdout)
    assert server["scan_status"] == "COMPLETED", server
    checks = {name: check for name, check in server["scan_result"].items() if name != "session_resumption"}
    assert {name for name, check in checks.items() if check["status"] != "COMPLETED"} == set()
    return {name: check["result"] for name, check in checks.items()}


def test_suites_are_authenticated_and_forward_secret(scan):
    for version, allowed in SUITES.items():
        accepted = {suite["cipher_suite"]["name"] for suite in scan[version]["accepted_cipher_suites"]}
        assert accepted <= allowed, version
        assert bool(accepted) is bool(allowed), version


def test_curves_are_strong(scan):
    supported = {curve["name"] for curve in scan["elliptic_curves"]["supported_curves"]}
    assert supported
    assert supported <= CURVES


def test_nothing_that_has_a_name(scan):
    assert scan["heartbleed"]["is_vulnerable_to_heartbleed"] is False
    assert scan["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"] is False
    assert "NOT_VULNERABLE" in scan["robot"]["robot_result"]
    assert scan["tls_compression"]["supports_compression"] is False
    assert scan["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"] is False
    assert scan["session_renegotiation"]["supports_secure_renegotiation"] is True
    assert scan["tls_fallback_scsv"]["supports_fallback_scsv"] is True
    assert scan["tls_extended_master_secret"]["supports_ems_extension"] is True
    assert scan["tls_1_3_early_data"]["supports_early_data"] is False


def test_the_certificate_is_the_hosts_own_and_strong(scan, broker):
    (deployment, *_rest) = scan["certificate_info"]["certificate_deployments"]
    leaf = deployment["received_certificate_chain"][0]
    assert leaf["signature_hash_algorithm"]["name"] not in ("md5", "sha1")
    assert leaf["public_key"]["algorithm"] in ("_EllipticCurvePublicKey", "ECPublicKey", "EllipticCurvePublicKey")
    assert broker.name in json.dumps(leaf["subject_alternative_name"])
    assert deployment["verified_chain_has_sha1_signature"] in (False, None)


def test_browsers_are_told_to_stay_with_tls(scan):
    seconds = scan["http_headers"]["strict_transport_security_header"]["max_age"]
    assert seconds >= 180 * 24 * 3600


def test_gixy_finds_nothing(broker):
    text = front.ssh(broker.name, "nginx -T 2>/dev/null")
    assert "edgesec-nanomq" in text
    done = subprocess.run(
        ["gixy", "--format", "json", "-"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    findings = json.loads(done.stdout)
    ours = [finding for finding in findings if "elsewhere" not in json.dumps(finding)]
    assert ours == [], json.dumps(ours, indent=1)


def test_no_answer_tells_what_serves_it(broker):
    paths = ["/api/v4/metrics", "/api/v4/configuration", "/", "/%", "/api/v4/clients/" + "a" * 40000]
    texts = [f"GET {path} HTTP/1.1\r\nHost: {broker.name}\r\nConnection: close\r\n\r\n" for path in paths]
    texts += [
        "garbage\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {broker.name}\r\nContent-Length: x\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        f"POST /api/v4/mqtt/publish HTTP/1.1\r\nHost: {broker.name}\r\nContent-Length: 99999999\r\n\r\n",
    ]
    version = broker.check_output("nginx -v 2>&1 | grep -oE '[0-9]+[.][0-9]+[.][0-9]+'")
    answers = front.attempt([front.to(broker, "raw", certificate="publisher", data=text) for text in texts])
    for text, answer in zip(texts, answers, strict=True):
        assert answer["answer"].startswith("HTTP/1.1 "), text
        assert version not in answer["answer"], text
        assert "Debian" not in answer["answer"], text
        assert "strict-transport-security: max-age=" in answer["answer"].lower(), text


def test_plain_http_is_no_way_in(outsider, broker):
    url = f"http://{broker.ipv4}:443/api/v4/metrics"
    command = "curl --silent --max-time 5 --output /dev/null --write-out %{http_code} "
    assert outsider.run(command + url).stdout in ("400", "000")
    assert (outsider.run(f"nc -z -w 2 {broker.ipv4} 80").rc == 0) is (broker.name == "trixie")
