# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The job of stock.yml done with pyinfra, from the same declaration and the same templates.

pyinfra has no modules for keys and certificates: the programs of openssl make and judge them, on the host and, for the
CA, on the controller. README.md says what is left out.
"""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path

import jinja2
from pyinfra import host
from pyinfra.api import FactBase
from pyinfra.operations import files, python, server, systemd

sys.path.insert(0, str(Path(__file__).resolve().parent))

from controller import DECLARED, PKI, sign

BENCH = Path(__file__).resolve().parents[1]
DIRECTORY = "/etc/nanomq"
KEY, CERTIFICATE, AUTHORITY = (f"{DIRECTORY}/pki/{name}" for name in ("server.key", "server.pem", "ca.pem"))


def rendered(name: str) -> io.StringIO:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(BENCH / "templates"), keep_trailing_newline=True)
    environment.filters["to_json"] = json.dumps
    return io.StringIO(
        environment.get_template(name).render(**DECLARED, nanomq_dir=DIRECTORY, ansible_managed="pyinfra")
    )


class CertificateHolds(FactBase):
    """Whether the host has a key and a certificate of this CA for it that is good for another month."""

    default = bool

    def command(self, authority: str) -> str:
        same = 'test "$(openssl pkey -in {0} -pubout)" = "$(openssl x509 -in {1} -noout -pubkey)"'
        return (
            f"{same.format(KEY, CERTIFICATE)} && openssl x509 -in {CERTIFICATE} -noout -checkend 2592000 >/dev/null && "
            f"printf %s {shlex.quote(authority)} | openssl verify -CAfile /dev/stdin {CERTIFICATE} >/dev/null && "
            "echo yes || echo no"
        )

    def process(self, output) -> bool:
        return list(output)[-1:] == ["yes"]


def certify() -> None:
    """Have the key born on the host, and its request signed here."""
    names = ",".join(host.data.names)
    subject, wanted = shlex.quote(f"/CN={host.name}"), shlex.quote(f"subjectAltName={names}")
    make = (
        f"umask 027; test -e {KEY} || openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {KEY} && "
        f"chgrp nanomq {KEY} && chmod 0640 {KEY} && openssl req -new -key {KEY} -subj {subject} -addext {wanted}"
    )
    done, output = host.run_shell_command(make)
    if not done:
        raise RuntimeError(f"{host.name}: {output.stderr}")
    signed = sign(output.stdout, names)
    files.put(src=io.StringIO(signed), dest=CERTIFICATE, user="root", group="nanomq", mode="640")


server.user(
    user="nanomq",
    system=True,
    home="/var/lib/nanomq/empty",
    ensure_home=False,
    shell="/usr/sbin/nologin",
    name="Account",
)
for path, group, mode in (
    (DIRECTORY, "nanomq", "750"),
    (f"{DIRECTORY}/pki", "nanomq", "750"),
    (f"{DIRECTORY}/jwt", "nanomq", "750"),
    ("/var/lib/nanomq", "root", "755"),
    ("/var/lib/nanomq/empty", "root", "555"),
):
    files.directory(path=path, user="root", group=group, mode=mode, name=f"Directory {path}")

broker = []
if not host.get_fact(CertificateHolds, authority=(PKI / "ca/ca.pem").read_text()):
    broker.append(python.call(function=certify, name="Key and certificate"))
for source, target, group, mode in (
    ((PKI / "ca/ca.pem"), AUTHORITY, "nanomq", "640"),
    ((PKI / "jwt/fleet.pub"), f"{DIRECTORY}/jwt/fleet.pub", "nanomq", "640"),
    (rendered("nanomq.conf.j2"), f"{DIRECTORY}/nanomq.conf", "nanomq", "640"),
    (rendered("nanomq.service.j2"), "/etc/systemd/system/nanomq.service", "root", "644"),
):
    source = str(source) if isinstance(source, Path) else source
    broker.append(files.put(src=source, dest=target, user="root", group=group, mode=mode, name=f"File {target}"))

firewall = [
    files.put(
        src=rendered("firewall.nft.j2"),
        dest=f"{DIRECTORY}/firewall.nft",
        user="root",
        group="root",
        mode="600",
        name="Table of nftables",
    ),
    files.put(
        src=rendered("firewall.service.j2"),
        dest="/etc/systemd/system/nanomq-firewall.service",
        user="root",
        group="root",
        mode="644",
        name="Unit of the firewall",
    ),
]


def changed(operations):
    """For `_if`, which asks when its turn has come: whether one of them has changed something."""
    return lambda: any(operation.did_change() for operation in operations)


server.shell(
    commands=[
        f"nft --check --file {DIRECTORY}/firewall.nft",
        "systemd-analyze verify /etc/systemd/system/nanomq.service /etc/systemd/system/nanomq-firewall.service",
    ],
    _if=changed([*broker, *firewall]),
    name="Look at what was written",
)
systemd.service(service="nanomq.service", running=True, enabled=True, name="Service of the broker")
systemd.service(service="nanomq-firewall.service", running=True, enabled=True, name="Service of the firewall")
systemd.service(
    service="nanomq.service", restarted=True, daemon_reload=True, _if=changed(broker), name="Restart the broker"
)
systemd.service(
    service="nanomq-firewall.service",
    reloaded=True,
    daemon_reload=True,
    _if=changed(firewall),
    name="Reload the firewall",
)
refusal = "curl --silent --output /dev/null --write-out %{http_code} http://127.0.0.1:8081/api/v4/brokers"
server.shell(
    commands=[f'for try in $(seq 20); do test "$({refusal})" = 401 && exit 0; sleep 0.5; done; exit 1'],
    _if=changed([*broker, *firewall]),
    name="REST answers nobody without a token",
)
