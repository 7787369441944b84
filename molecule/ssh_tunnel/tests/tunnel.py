# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The callers of the tunnel: their keys and certificates, and ssh on the outsider."""

from __future__ import annotations

import pathlib
import shlex
import subprocess

import scenario

HERE = pathlib.Path(__file__).resolve().parent
ACCOUNT = "nanomq-tunnel"
#: Where the keys lie on the outsider.
KEYS = "/root/callers"
OPTIONS = (
    "-F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "
    "-o ConnectTimeout=5 -o IdentitiesOnly=yes -o ControlPath=none"
)
DROP_IN = "/etc/ssh/sshd_config.d/10-edgesec-nanomq-tunnel.conf"


def keygen(directory: pathlib.Path, *arguments: str) -> None:
    subprocess.run(["ssh-keygen", "-q", *arguments], cwd=directory, check=True, stdin=subprocess.DEVNULL)


def make_keys(directory: pathlib.Path) -> dict[str, str]:
    """Keys, and certificates of one key (`certified`) that are right or wrong in one respect. {name: public key}."""
    names = ("good", "next", "stranger", "expired", "elsewhere", "here", "certified", "ca", "other-ca")
    for name in names:
        keygen(directory, "-t", "ed25519", "-N", "", "-C", name, "-f", name)
    for name, authority, principal, validity in (
        ("right", "ca", "operators", "-1h:+1d"),
        ("principal", "ca", ACCOUNT, "-1h:+1d"),
        ("late", "ca", "operators", "-2d:-1d"),
        ("foreign", "other-ca", "operators", "-1h:+1d"),
    ):
        arguments = ("-s", authority, "-I", name, "-n", principal, "-V", validity)
        keygen(directory, *arguments, "-O", "clear", "-O", "permit-port-forwarding", "certified.pub")
        (directory / "certified-cert.pub").rename(directory / f"{name}-cert.pub")
    return {name: (directory / f"{name}.pub").read_text().strip() for name in names}


def apply(*arguments: str, **options) -> scenario.Play:
    """Run the role alone, with the inventory of this scenario."""
    return scenario.play(
        str(HERE.parent / "tunnel.yml"), "-i", str(HERE.parent / "inventory/hosts.yml"), *arguments, **options
    )


def ssh(key: str, address: str, user: str = ACCOUNT, certificate: str = "") -> str:
    """The beginning of a command line of ssh."""
    extra = f"-o CertificateFile={KEYS}/{certificate}-cert.pub" if certificate else ""
    return f"ssh {OPTIONS} {extra} -i {KEYS}/{key} -l {user} {address}"


def rest(outsider, key: str, address: str, *, authorization: str = "", certificate: str = "") -> str:
    """The status that REST answers with through the tunnel, "" where there is no way through."""
    header = f"Authorization: {authorization}\r\n" if authorization else ""
    request = f"GET /api/v4/brokers HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n"
    command = ssh(key, address, certificate=certificate) + " -W 127.0.0.1:8081"
    out = outsider.run(f"(printf %b {shlex.quote(request)}; sleep 1) | timeout 15 {command}; true").stdout
    return out.split()[1] if out.startswith("HTTP/1.1") else ""
