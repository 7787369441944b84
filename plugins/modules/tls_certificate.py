#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: tls_certificate
version_added: "0.1.0"
short_description: Keep a TLS key, born on the host, and a certificate for it
description:
  - Makes a private key on the host, where it stays. The certificate request travels to the controller, which has it
    signed if it asks for nothing but what this task allows, and the certificate travels back.
  - The signer (O(source)) is the authority of M(edgesec.nanomq.tls_authority), a program on the controller, or an ACME
    server. What comes from the latter two is judged on the controller before it reaches the host, and there again.
    That is the key, the names, the usages, the times, and the chain up to O(trust).
  - With O(source=given) key and certificate are the user's. They are judged in the same way, and nobody renews them.
  - A pair is made anew when there is none, when it has expired or will within O(renew_before), when its names, usages,
    kind of key or passphrase are not those asked for, when it is damaged, when the present authority, or none of
    O(trust), did not sign it, and when it is older than O(renew_issued_before). Otherwise nothing is changed, but for
    owner, group and modes.
  - Each pair has a directory of its own, named after the certificate's serial number, which never changes afterwards.
    The link C(current) beside it is switched in one step, so that a cut at any moment leaves the old pair in force.
    A service that names the concrete directory gets a renewal as a change of its configuration, which can be validated
    and undone.
  - One module run in steady state, two when a pair is made. No passphrase of the authority is needed in steady state.
  - Keys are handled with the cryptography library where the host has it, else with the C(openssl) program.
requirements:
  - "on the host: cryptography >= 3.1, or the openssl program, 1.1.1 or newer"
  - "on the controller, with O(source=acme): the collection community.crypto"
options:
  name:
    description:
      - Name of the pair, which is the name of its directory within O(path).
    type: str
    required: true
  path:
    description:
      - Absolute path of the directory of all pairs, on the host. It is made if it is missing, with mode V(0755).
      - It and the directories above it must belong to root or the user of the task, be no symbolic links, and be
        writable by neither group nor others.
    type: path
    default: /etc/nanomq/pki
  common_name:
    description:
      - Common name of the certificate, at most 64 bytes.
    type: str
    required: true
  subject_alt_names:
    description:
      - Names that the certificate holds for, each as V(DNS:host), V(IP:address) or V(URI:uri).
      - Required for V(server_auth), since clients look for a server's name nowhere else.
    type: list
    elements: str
    default: []
  usages:
    description:
      - What the certificate is good for.
    type: list
    elements: str
    choices: [client_auth, server_auth]
    default: [server_auth]
  key_type:
    description:
      - Kind of the private key. Ed25519 is not offered, since the broker cannot use it, nor is RSA below 2048 bits.
    type: str
    choices: [ec-p256, ec-p384, rsa-2048, rsa-3072, rsa-4096]
    default: ec-p256
  key_passphrase:
    description:
      - Passphrase of the private key. With it the key is kept encrypted (AES-256). The service needs it as well.
      - Another passphrase makes another pair. One line of at most 1023 bytes.
    type: str
  valid_for:
    description:
      - How long a new certificate is valid, such as V(365d) or V(12h). It ends with the authority at the latest.
    type: str
    default: 365d
  renew_before:
    description:
      - How long before its end a pair is renewed, such as V(30d), or as a share of O(valid_for), such as V(33%).
    type: str
    default: 30d
  renew_issued_before:
    description:
      - Renew every pair that is older than this moment, once, whatever its end; for when keys may have leaked. It is
        a moment in UTC such as V(2030-01-31T12:00:00Z), or a day, which means its beginning, and not yet to come.
      - The age is that of the certificate by its first moment, which is up to an hour before it was issued.
      - The new pair says for which moment it was made, so that the task can be repeated, on a fleet for instance of
        which a part could not be reached; and each moment that is later than all before renews once more.
      - The new pair always has a new key, whatever O(renewal_key) says.
    type: str
    default: ""
  renewal_key:
    description:
      - Whether a renewal makes a V(new) key, or the V(same) one is certified again, for clients that know the server
        by its public key.
      - Even with V(same) the key is a new one where the old one is damaged, is not of O(key_type), or has another
        passphrase.
    type: str
    choices: [new, same]
    default: new
  owner:
    description:
      - Owner of the files. The directories belong to the user of the task.
    type: str
    default: root
  group:
    description:
      - Group of the files and of their directories, which the service is in. It must exist, but for check mode.
    type: str
    default: nanomq
  mode:
    description:
      - Mode of the private key, at most V(0640), in quotes. The directories have V(0750), the certificate V(0644).
    type: str
    default: "0640"
  source:
    description:
      - Where the certificate comes from. V(authority) is that of O(authority_path), V(command) is O(signer_command),
        V(acme) is the server of O(acme_directory), and V(given) what the user gives.
      - Options of other sources are not looked at.
    type: str
    choices: [authority, command, acme, given]
    default: authority
  authority_path:
    description:
      - For O(source=authority), which requires it. Absolute path of the authority's directory, on the controller. It
        never reaches the host.
    type: str
  authority_passphrase:
    description:
      - Passphrase of the authority's private key. It never reaches the host.
    type: str
  trust:
    description:
      - For any other source, which requires it. Certificates in PEM of the authorities whose signature is accepted.
      - A pair in force that leads up to none of them is replaced.
    type: str
  signer_command:
    description:
      - For O(source=command). A program on the controller, by its absolute path, and its arguments. No shell is
        involved.
      - It gets the certificate request in PEM on stdin, and prints the certificate in PEM, followed by those above it.
        Trust anchors may be left out.
      - Its environment is that of C(ansible-playbook), with E(NANOMQ_PKI_HOST), E(NANOMQ_PKI_COMMON_NAME),
        E(NANOMQ_PKI_NAMES) (C(DNS:a,IP:b)), E(NANOMQ_PKI_USAGES) (C(server_auth,client_auth)),
        E(NANOMQ_PKI_KEY_TYPE), E(NANOMQ_PKI_VALID_FOR) (seconds) and E(NANOMQ_PKI_SECRET).
      - If it fails, the last five lines of its stderr are in the message, without O(signer_secret).
    type: list
    elements: str
    default: []
  signer_secret:
    description:
      - What the program needs to log in somewhere.
    type: str
  signer_timeout:
    description:
      - Seconds after which the program, and all that it started, is ended. Also for each call of O(acme_dns_hook).
    type: int
    default: 60
  acme_directory:
    description:
      - For O(source=acme), which requires it. URL of the directory of the ACME server.
      - Its TLS certificate is verified with the controller's trusted authorities. For another one set E(SSL_CERT_FILE).
    type: str
  acme_account_path:
    description:
      - Directory on the controller for C(account.key), which is made if it is missing, with mode V(0600).
    type: str
  acme_email:
    description:
      - Address to which the ACME server may write.
    type: str
  acme_terms_agreed:
    description:
      - Whether the user agrees to the terms of the ACME server, which it requires.
    type: bool
    default: false
  acme_webroot:
    description:
      - Directory on the controller that a web server shows under the names of the host, at port 80. The challenge
        (http-01) is a file below C(.well-known/acme-challenge) in it, for as long as the server looks.
      - Either this or O(acme_dns_hook).
    type: str
  acme_dns_hook:
    description:
      - Program on the controller, by its absolute path, and arguments, that puts a record into the DNS (dns-01).
      - It is called with three more arguments, as the C(exec) provider of lego calls a program. They are V(present) or
        V(cleanup), the name of the TXT record with a dot at its end, and its value. It returns when the record can be
        seen.
    type: list
    elements: str
    default: []
  given_certificate:
    description:
      - For O(source=given). The certificate in PEM, followed by those above it.
    type: str
  given_key:
    description:
      - Its private key in PEM, which O(key_passphrase) opens if it is encrypted. It travels to the host when it is
        installed, and at no other time.
    type: str
  given_certificate_path:
    description:
      - Instead of the texts, the path of the certificate on the host. Nothing is copied, and links are followed.
    type: path
  given_key_path:
    description:
      - Path of the private key on the host.
    type: path
  keep:
    description:
      - How many old pairs to keep, 1 or more.
    type: int
    default: 5
  backend:
    description:
      - What handles keys on the host. V(auto) takes the cryptography library if it can be imported, else C(openssl).
    type: str
    choices: [auto, cryptography, openssl]
    default: auto
  exchange:
    description:
      - What the action plugin on the controller says to the module on the host. It is not for use in tasks, which are
        refused if they give it.
    type: dict
    suboptions:
      step:
        description:
          - What this run does, V(inspect) and if need be begin a new pair, V(install) the one begun, V(discard) it, or
            V(take) the one given.
        type: str
        choices: [inspect, install, take, discard]
        required: true
      authority:
        description: Certificates of the authority in PEM; empty if there is none yet.
        type: str
        default: ""
      chain:
        description: Certificates that are to follow that of the host, in PEM; empty for none.
        type: str
        default: ""
      pending:
        description: Name of the directory of the pair begun.
        type: str
        default: ""
      certificate:
        description: Its certificate from the authority, followed by intermediate ones, in PEM.
        type: str
        default: ""
      given:
        description: The certificates that the user gives, in PEM.
        type: str
        default: ""
author:
  - EdgeSec maintainers (@edgesec)
extends_documentation_fragment:
  - edgesec.nanomq.key_material
notes:
  - The pair that has just been replaced is always among those kept, since the service may still use it.
seealso:
  - module: edgesec.nanomq.tls_authority
"""

EXAMPLES = r"""
- name: Keep the broker's certificate
  edgesec.nanomq.tls_certificate:
    name: server
    common_name: "{{ inventory_hostname }}"
    subject_alt_names:
      - DNS:broker.example
      - IP:192.0.2.1
    usages: [server_auth, client_auth]
    authority_path: "{{ nanomq_pki_dir }}/ca"
    authority_passphrase: "{{ vault_ca_passphrase }}"
  register: broker_pair

- name: Renew once what was issued before a leak, on every host that this reaches, today or tomorrow
  edgesec.nanomq.tls_certificate:
    name: server
    common_name: "{{ inventory_hostname }}"
    subject_alt_names: ["DNS:{{ inventory_hostname }}"]
    renew_issued_before: "2030-01-31T12:00:00Z"
    authority_path: "{{ nanomq_pki_dir }}/ca"

- name: Keep the certificate of a client, on an operator's workstation
  edgesec.nanomq.tls_certificate:
    name: client
    path: /etc/nanomq-client
    common_name: "{{ inventory_hostname }}"
    usages: [client_auth]
    group: root
    mode: "0600"
    authority_path: "{{ nanomq_pki_dir }}/operators"

- name: Renew in the last third of a short life
  edgesec.nanomq.tls_certificate:
    name: server
    common_name: "{{ inventory_hostname }}"
    subject_alt_names: ["DNS:{{ inventory_hostname }}"]
    valid_for: 7d
    renew_before: 33%
    authority_path: "{{ nanomq_pki_dir }}/ca"

- name: Have a signer of ours sign it
  edgesec.nanomq.tls_certificate:
    name: server
    common_name: "{{ inventory_hostname }}"
    subject_alt_names: ["DNS:{{ inventory_hostname }}"]
    source: command
    signer_command: [/usr/local/bin/sign-device, --profile, broker]
    signer_secret: "{{ vault_signer_token }}"
    trust: "{{ lookup('ansible.builtin.file', 'our-root.pem') }}"

- name: Have an ACME server sign it
  edgesec.nanomq.tls_certificate:
    name: server
    common_name: "{{ inventory_hostname }}"
    subject_alt_names: ["DNS:{{ inventory_hostname }}"]
    source: acme
    acme_directory: https://acme.example/directory
    acme_account_path: "{{ nanomq_pki_dir }}/acme"
    acme_terms_agreed: true
    acme_dns_hook: [/usr/local/bin/dns-record]
    trust: "{{ lookup('ansible.builtin.file', 'acme-roots.pem') }}"

- name: Use what somebody else made
  edgesec.nanomq.tls_certificate:
    name: server
    common_name: "{{ inventory_hostname }}"
    subject_alt_names: ["DNS:{{ inventory_hostname }}"]
    source: given
    given_certificate: "{{ lookup('ansible.builtin.file', inventory_hostname ~ '.pem') }}"
    given_key: "{{ vault_broker_key }}"
    trust: "{{ lookup('ansible.builtin.file', 'our-root.pem') }}"
"""

RETURN = r"""
key_path:
  description:
    - Path of the private key, in the directory of the pair in force.
    - In check mode without such a pair it is a stand-in, C(<path>/<name>/pending/key.pem).
  returned: success
  type: str
  sample: /etc/nanomq/pki/server/2f9c41d0/key.pem
certificate_path:
  description: Path of the certificate, followed by intermediate ones if there are any; see RV(key_path) for check mode.
  returned: success
  type: str
  sample: /etc/nanomq/pki/server/2f9c41d0/cert.pem
current:
  description: Path of the link to the directory of the pair in force.
  returned: success
  type: str
  sample: /etc/nanomq/pki/server/current
serial:
  description: Serial number in hexadecimal; empty if there is no pair.
  returned: success
  type: str
fingerprint_sha256:
  description: SHA-256 of the certificate, as C(openssl x509 -fingerprint -sha256) prints it; empty if there is none.
  returned: success
  type: str
not_after:
  description: Last moment of the certificate, in UTC; empty if there is none.
  returned: success
  type: str
  sample: "2027-11-24T12:00:00Z"
reason:
  description:
    - Why something was, or would be, changed; empty if nothing was.
    - "It begins with one of these words and a colon: C(missing), C(unreadable), C(mismatch), C(key_type),
      C(requested), C(authority), C(expired), C(expiring), C(names), C(usages), C(given) for a new pair; C(access) or
      C(leftovers) without one."
  returned: success
  type: str
  sample: "expiring: at 2027-11-24T12:00:00Z, and to be renewed from 2027-10-25T12:00:00Z"
renewed:
  description: Whether a new pair was, or would be, made.
  returned: success
  type: bool
authority_certificate:
  description:
    - What those who meet the certificate are to trust, in PEM - the authority's, of both during a roll-over, or
      O(trust).
    - Empty in check mode when there is no authority yet.
  returned: success
  type: str
backend:
  description: What handled keys on the host, C(cryptography) or C(openssl).
  returned: success
  type: str
"""

import grp
import os
import pwd

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._chains import GIVEN
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    CryptoError,
    choose_backend,
    load_certificates,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._pairs import (
    CERTIFICATE,
    KEY,
    OPTIONS,
    PENDING,
    Access,
    ClockProblem,
    Pair,
    PairStore,
    parse_mode,
    wanted_pair,
)

EXCHANGE = {
    "type": "dict",
    "options": {
        "step": {"type": "str", "choices": ["inspect", "install", "take", "discard"], "required": True},
        "authority": {"type": "str", "default": ""},
        "chain": {"type": "str", "default": ""},
        "pending": {"type": "str", "default": ""},
        "certificate": {"type": "str", "default": ""},
        "given": {"type": "str", "default": ""},
    },
}


def find_access(module: AnsibleModule) -> Access:
    """Return owner, group and mode. Raises FileProblem when they do not exist or cannot be given."""
    owner, group = module.params["owner"], module.params["group"]
    mode = parse_mode(module.params["mode"])
    try:
        uid = pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise FileProblem(f"the user {owner!r} does not exist on this host") from None
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        if not module.check_mode:
            raise FileProblem(f"the group {group!r} does not exist on this host: create it first") from None
        module.warn(f"the group {group!r} does not exist on this host yet")
        gid = -1
    if os.geteuid() not in (0, uid):
        raise FileProblem(f"only root can give files to {owner!r}: set become, or another owner")
    return Access(uid, gid, mode)


def open_store(module: AnsibleModule) -> PairStore:
    """Return the store that the options describe. Raises what its parts raise."""
    options = module.params
    authority, chain, given = (options["exchange"][name].encode("ascii") for name in ("authority", "chain", "given"))
    return PairStore(
        directory=os.path.join(options["path"].rstrip("/"), options["name"]),
        wanted=wanted_pair(options),
        access=find_access(module),
        authority=load_certificates(authority, "the authority") if authority else [],
        chain=load_certificates(chain, "the authority's chain") if chain else [],
        backend=choose_backend(options["backend"]),
        keep=options["keep"],
        source=options["source"],
        given=load_certificates(given, "the given certificate") if given else [],
    )


def describe(store: PairStore, pair: Pair | None) -> dict:
    """Return the module's result for the pair in force, or for none."""
    folder = pair.directory if pair else os.path.join(store.directory, PENDING)
    return {
        "key_path": os.path.join(folder, KEY),
        "certificate_path": os.path.join(folder, CERTIFICATE),
        "current": store.current,
        "serial": pair.certificate.identifier if pair else "",
        "fingerprint_sha256": pair.certificate.fingerprint_sha256 if pair else "",
        "not_after": _x509.show_time(pair.certificate.not_after) if pair else "",
    }


def inspect(module: AnsibleModule, store: PairStore) -> dict:
    """Compare the pair in force with the wanted one. Mend its access; or begin a new one if it needs to be replaced."""
    pair, reason = store.inspect()
    if reason:
        result = {"changed": True, "renewed": True, "reason": reason, **describe(store, pair)}
        if not module.check_mode and module.params["source"] != GIVEN:
            result["pending"], request = store.begin(reason)
            result["request"] = request.decode("ascii")
        return result
    drift, leftovers = store.drift(pair), store.leftovers()
    if not module.check_mode:
        if drift:
            store.mend_all(pair)
        if leftovers:
            store.tidy()
    reason = f"access: {'; '.join(drift)}" if drift else f"leftovers: {', '.join(leftovers)}" if leftovers else ""
    return {"changed": bool(reason), "renewed": False, "reason": reason, **describe(store, pair)}


def look_at_given(module: AnsibleModule, store: PairStore) -> dict:
    """Check the pair that the user keeps on the host, and change nothing."""
    certificate_path, key_path = module.params["given_certificate_path"], module.params["given_key_path"]
    pair = store.look_at(certificate_path, key_path)
    result = {"changed": False, "renewed": False, "reason": "", **describe(store, pair)}
    paths = {"certificate_path": os.path.realpath(certificate_path), "key_path": os.path.realpath(key_path)}
    return {**result, **paths, "current": pair.directory}


def run(module: AnsibleModule) -> dict:
    """Do the step asked for."""
    store = open_store(module)
    exchange = module.params["exchange"]
    if exchange["step"] != "discard":
        store.check()
    with store.lock():
        if module.params["given_certificate_path"]:
            result = look_at_given(module, store)
        elif exchange["step"] == "inspect":
            result = inspect(module, store)
        elif exchange["step"] == "take":
            pair = store.take(module.params["given_key"].encode("ascii"), exchange["given"].encode("ascii"))
            result = {"changed": True, "renewed": True, **describe(store, pair)}
        elif exchange["step"] == "install":
            pair = store.install(exchange["pending"], exchange["certificate"].encode("ascii"))
            result = {"changed": True, "renewed": True, **describe(store, pair)}
        else:
            store.discard(exchange["pending"])
            result = {"changed": False}
    return {"backend": store.backend_name, **result}


def main() -> None:
    module = AnsibleModule(argument_spec={**OPTIONS, "exchange": EXCHANGE}, supports_check_mode=True)
    if module.params["exchange"] is None:
        module.fail_json(msg="this module works only together with its action plugin, edgesec.nanomq.tls_certificate")
    try:
        result = run(module)
    except (FileProblem, CryptoError, ClockProblem, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
