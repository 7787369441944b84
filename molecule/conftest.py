# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The hosts of a scenario, as fixtures."""

from __future__ import annotations

import pytest
from scenario import HOSTS, INVENTORY, Client, broker_names, connect, known_broker, openssl, pki


@pytest.fixture(scope="session", params=broker_names() if INVENTORY else [])
def broker(request):
    """Each broker host in turn."""
    return known_broker(request.param)


@pytest.fixture(autouse=True)
def settled(request):
    """Wait until the broker is up: what came before may have made the real one abort, and systemd starts it again."""
    if "broker" in request.fixturenames:
        request.getfixturevalue("broker").run(
            "for try in $(seq 50); do systemctl -q is-active nanomq && ss -ltnH | grep -q ':[89]883 ' && break; "
            "sleep 0.2; done"
        )


@pytest.fixture(scope="session")
def brokers():
    """All broker hosts, for what one run does to all of them."""
    return [known_broker(name) for name in broker_names()]


@pytest.fixture(scope="session")
def outsider():
    """The host on the same network that has no business there."""
    return connect("outsider")


@pytest.fixture(scope="session")
def client(outsider, tmp_path_factory):
    """A client with a certificate of the fleet's CA (client), of another CA (stranger), and the CA's own."""
    scratch = tmp_path_factory.mktemp("clients")
    passphrase = HOSTS["nanomq_pki_authority_passphrase"]
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    openssl(scratch, f"req -x509 {new_key} -keyout other-ca.key -out other-ca.pem -days 2 -subj /CN=Other")
    for name, ca, key, extra in (
        ("client", pki() / "ca/ca.pem", pki() / "ca/ca.key", f"-passin pass:{passphrase}"),
        ("stranger", scratch / "other-ca.pem", scratch / "other-ca.key", ""),
    ):
        openssl(scratch, f"req -new {new_key} -keyout {name}.key -out {name}.csr -subj /CN={name}")
        authority = f"-CA {ca} -CAkey {key} {extra} -CAcreateserial -CAserial {name}.srl"
        openssl(scratch, f"x509 -req -in {name}.csr {authority} -out {name}.pem -days 2")
    (scratch / "ca.pem").write_text((pki() / "ca/ca.pem").read_text())
    outsider.check_output("mkdir -p /root/mqtt")
    for path in scratch.glob("*"):
        if path.suffix in (".pem", ".key"):
            outsider.check_output("printf %%s %s > %s", path.read_text(), f"/root/mqtt/{path.name}")
    # The double, a program in Python, drops nobody; but it may be just starting.
    is_double = connect(broker_names()[0]).run("head -c 2 /usr/local/bin/nanomq").stdout == "#!"
    return Client(outsider, tries=2 if is_double else 4)
