# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Answers for hosts that there are none of, so that a playbook's work on the controller can be measured alone.

A module that is meant for a host is not packed, not sent and not run; all else is what the playbook does. A host that
is new asks for a certificate, with a key of its own; any other has nothing to do. An unknown module is an error.
"""

from __future__ import annotations

import os
import time
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DOCUMENTATION = """
name: answers
type: aggregate
short_description: Answer in the place of hosts
description: Needs EDGESEC_BENCH_HOSTS, which is new or done.
"""

NEW = os.environ.get("EDGESEC_BENCH_HOSTS") == "new"
HOST = {
    "os_id": "debian",
    "os_family": "debian",
    "os_version": "12",
    "systemd_version": 252,
    "broker_version": "0.25.6",
    "broker_program": "/usr/local/bin/nanomq",
    "groups": ["nanomq"],
    "ssh_client": "192.0.2.1",
    "ssh_port": 22,
    "ssh_host_key": "",
    "nginx_version": "",
    "nginx_stream": False,
}
PAIR = {
    "key_path": "/etc/nanomq/pki/server/current/key.pem",
    "certificate_path": "/etc/nanomq/pki/server/current/cert.pem",
    "not_after": "2099-12-31T00:00:00Z",
}


def request(options: dict[str, Any]) -> str:
    """What a host would ask to be signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, options["common_name"])])
    names = [x509.DNSName(text.partition(":")[2]) for text in options["subject_alt_names"] if text.startswith("DNS:")]
    asked = x509.CertificateSigningRequestBuilder().subject_name(name)
    asked = asked.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return asked.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def certificate(options: dict[str, Any]) -> dict[str, Any]:
    if not NEW:
        return {"changed": False, **PAIR}
    if options["exchange"]["step"] == "inspect":
        return {"changed": True, "reason": "new", "pending": "1", "request": request(options), **PAIR}
    return {"changed": True, **PAIR}


def answer(self, module_name=None, module_args=None, **options) -> dict[str, Any]:
    """In the place of ActionBase._execute_module."""
    if self._connection.transport == "local":
        return run(self, module_name=module_name, module_args=module_args, **options)
    name = (module_name or self._task.action).rpartition(".")[2]
    if name == "host_info":
        return {"changed": False, "time": time.time(), **HOST}
    if name == "tls_certificate":
        return certificate(module_args)
    if name == "transaction":
        return {"changed": NEW, "unconfirmed": False, "transaction": "1", "generation": 1}
    raise AnsibleError(f"there is no answer for {name}")


run = ActionBase._execute_module
ActionBase._execute_module = answer


class CallbackModule(CallbackBase):
    """Nothing but a way to be loaded."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "answers"
