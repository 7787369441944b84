#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: tls_authority
version_added: "0.1.0"
short_description: Make or keep a certificate authority on the controller
description:
  - Keeps a small certificate authority in one directory of the controller, for M(edgesec.nanomq.tls_certificate) to
    sign with.
  - It is made once. An authority that is there is not replaced because options differ from it, since every certificate
    of the fleet depends on it; where they differ, the module warns. It is renewed by O(renew_before), and replaced by
    O(rollover).
  - With O(issuer_path) it is an intermediate, signed by a root that is needed when it is made or renewed, and may be
    kept offline otherwise.
  - Each change of the directory is made as a whole. One that was cut is completed, or forgotten, by the next run.
  - Nothing is changed when what is there cannot be trusted or used, for instance when the passphrase is wrong, the key
    and the certificate do not belong together, the authority has expired, or somebody else could read the key; nor when
    the clock is before a certificate that the authority gave out.
requirements:
  - cryptography >= 3.1, which ansible-core brings to the controller
options:
  path:
    description:
      - Absolute path of the directory, on the controller. It is made with mode V(0700).
      - It holds C(ca.key) (PKCS#8, mode V(0600)), C(ca.pem), and in C(issued/) a copy of each certificate given out;
        during a roll-over also the key and the certificates of the other authority. C(newest.json) says which copy was
        written last, and can be lost without harm.
      - An authority made elsewhere can be put there. C(ca.pem) then holds the issuing certificate first, followed by
        those above it.
    type: path
    required: true
  common_name:
    description:
      - Common name of a new authority, at most 64 bytes.
    type: str
    default: NanoMQ fleet CA
  key_type:
    description:
      - Kind of key for a new authority.
    type: str
    choices: [ec-p256, ec-p384, rsa-2048, rsa-3072, rsa-4096]
    default: ec-p256
  valid_for:
    description:
      - How long a new authority is valid, such as V(3650d) or V(520w).
    type: str
    default: 3650d
  path_length:
    description:
      - How many authorities may follow below a new one. V(1) lets a root sign the intermediate of another directory,
        and leaves room for the cross certificate of a roll-over, which some TLS libraries (mbedtls) count.
    type: int
    default: 1
  passphrase:
    description:
      - Passphrase of the private key. With it the key is kept encrypted (AES-256); it has to be the same in every run.
      - It is needed to sign and to change the authority. A run without it, for which an encrypted key stays closed,
        does neither.
      - One line of at most 1023 bytes.
    type: str
  issuer_path:
    description:
      - Directory on the controller of the authority that is to be above this one, such as a medium that is mounted for
        the purpose. It holds C(ca.key) and C(ca.pem), as O(path) does.
      - It is read when the intermediate is made or renewed, or a successor of it is made, and at no other time.
    type: path
  issuer_passphrase:
    description:
      - Passphrase of the key in O(issuer_path).
    type: str
  renew_before:
    description:
      - How long before its end the authority gets a new certificate, as a duration or as a share of its lifetime, such
        as V(20%). By default it is not renewed.
      - An intermediate is renewed if O(issuer_path) is given, with the key that O(renewal_key) says. Then it must be
        there, or the run fails with nothing changed.
      - An authority that signed itself is renewed with V(same) alone; a new key of it is a O(rollover).
      - The certificate that was replaced stays in RV(trusted) until it ends.
    type: str
  renewal_key:
    description:
      - Whether a renewal makes a new key or keeps the one there is. With a revocation list it must be V(same), for with
        the old key gone nobody could make lists for the certificate that is replaced.
    type: str
    choices: [new, same]
    default: new
  rollover:
    description:
      - The step of a roll-over to bring about, in this order and once each. A step that was made changes nothing; one
        out of order is refused. Without one a roll-over stays where it is.
      - V(introduce) makes a successor of the same name, with the key type and the lifetime that the options say, below
        O(issuer_path) if that is given. It is trusted, and does not sign yet.
      - V(switch) lets it sign. Both stay trusted, and devices send along a certificate of the successor by the previous
        authority, so that those who trust that one alone go on working.
      - V(retire) ends the trust in the previous authority. It is refused while somebody, by the copies in C(issued/),
        has a valid certificate of it and none of the successor. What was revoked, by C(crl.pem), does not count.
    type: str
    choices: ['', introduce, switch, retire]
    default: ''
  retired_key:
    description:
      - Whether V(retire) keeps the key of the previous authority, as C(retired-<serial>.key), or removes it.
    type: str
    choices: [archive, destroy]
    default: archive
  retire_unrenewed:
    description:
      - Lets V(retire) go on though some still have a certificate of the previous authority, which then ends.
    type: bool
    default: false
author:
  - EdgeSec maintainers (@edgesec)
extends_documentation_fragment:
  - edgesec.nanomq.key_material
notes:
  - If the inventory lists C(localhost) with a Python that lacks the library, give the task
    C(ansible_python_interpreter={{ ansible_playbook_python }}).
seealso:
  - module: edgesec.nanomq.tls_certificate
"""

EXAMPLES = r"""
- name: Make or keep the fleet's authority
  edgesec.nanomq.tls_authority:
    path: "{{ nanomq_pki_dir }}/ca"
    common_name: Example fleet CA
    passphrase: "{{ vault_ca_passphrase }}"
  delegate_to: localhost
  run_once: true
  register: authority

- name: Make a root, once, on a medium that is mounted for it
  edgesec.nanomq.tls_authority:
    path: /media/root/ca
    common_name: Example root
    valid_for: 7300d
    passphrase: "{{ vault_root_passphrase }}"

- name: Make or keep an intermediate below it
  edgesec.nanomq.tls_authority:
    path: "{{ nanomq_pki_dir }}/ca"
    issuer_path: /media/root/ca
    issuer_passphrase: "{{ vault_root_passphrase }}"
    renew_before: 20%
    passphrase: "{{ vault_ca_passphrase }}"
"""

RETURN = r"""
path:
  description: Directory of the authority.
  returned: success
  type: str
  sample: /srv/fleet/pki/ca
certificate:
  description:
    - The certificate in PEM, followed by those above it, if there are any.
    - Empty in check mode when there is no authority yet.
  returned: success
  type: str
fingerprint_sha256:
  description: SHA-256 of the issuing certificate, as C(openssl x509 -fingerprint -sha256) prints it; or empty.
  returned: success
  type: str
  sample: "4F:0C:…:9A"
common_name:
  description: Common name of the issuing certificate; empty if there is none.
  returned: success
  type: str
key_type:
  description: Kind of the authority's key; empty if there is none.
  returned: success
  type: str
  sample: ec-p256
not_after:
  description: Last moment of the issuing certificate, in UTC; empty if there is none.
  returned: success
  type: str
  sample: "2036-11-21T12:00:00Z"
trusted:
  description:
    - What is to be trusted now, in PEM. It holds the roots, the intermediates for the sake of those who send none
      along, during a roll-over both authorities, and after a renewal the replaced certificate until it ends.
    - Empty in check mode when there is no authority yet.
  returned: success
  type: str
rollover:
  description: How far a roll-over has come, C(introduced) or C(switched); empty if none is under way.
  returned: success
  type: str
reason:
  description: Why the directory was, or would be, changed; empty if it was not.
  returned: success
  type: str
  sample: "expiring: at 2036-11-21T12:00:00Z, and to be renewed from 2034-11-21T12:00:00Z"
"""

import contextlib
import dataclasses
import datetime
import typing

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _authority, _x509
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    KEY_TYPES,
    CryptoError,
    choose_backend,
    encode_passphrase,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._duration import parse_duration, parse_margin
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import FileProblem
from ansible_collections.edgesec.nanomq.plugins.module_utils._vault import Vault

ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "common_name": {"type": "str", "default": "NanoMQ fleet CA"},
    "key_type": {"type": "str", "choices": list(KEY_TYPES), "default": "ec-p256"},
    "valid_for": {"type": "str", "default": "3650d"},
    "path_length": {"type": "int", "default": _authority.PATH_LENGTH},
    "passphrase": {"type": "str", "no_log": True},
    "issuer_path": {"type": "path"},
    "issuer_passphrase": {"type": "str", "no_log": True},
    "renew_before": {"type": "str"},
    "renewal_key": {"type": "str", "choices": ["new", "same"], "default": "new", "no_log": False},
    "rollover": {"type": "str", "choices": ["", "introduce", "switch", "retire"], "default": ""},
    "retired_key": {"type": "str", "choices": ["archive", "destroy"], "default": "archive", "no_log": False},
    "retire_unrenewed": {"type": "bool", "default": False},
}

#: An authority this near to its end is worth a warning in each run: replacing it takes planning.
NEAR_END = datetime.timedelta(days=90)

#: How often to look again after another run was faster, before that is an error.
ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class Change:
    """What a run is to do: why, and how. No ``reason``: nothing."""

    reason: str = ""
    make: typing.Callable[[], object] = lambda: None


def describe(authority: _authority.Authority | None, path: str) -> dict:
    """Return the module's result for an authority, or for none."""
    if authority is None:
        names = ("certificate", "fingerprint_sha256", "common_name", "key_type", "not_after", "trusted", "rollover")
        return {"path": path, **dict.fromkeys(names, "")}
    issuer = authority.issuer
    return {
        "path": path,
        "certificate": authority.pem,
        "fingerprint_sha256": issuer.fingerprint_sha256,
        "common_name": issuer.common_name,
        "key_type": _x509.key_type(issuer.public_key),
        "not_after": _x509.show_time(issuer.not_after),
        "trusted": authority.trusted,
        "rollover": authority.rollover,
    }


class Run:
    """One run of the module: its options, and what they come to."""

    def __init__(self, module: AnsibleModule) -> None:
        # Without the library there is nothing to do, and its absence explains itself better than what would follow.
        choose_backend("cryptography")
        options = module.params
        self.module = module
        self.path = options["path"].rstrip("/") or "/"
        self.root_path = (options["issuer_path"] or "").rstrip("/")
        self.common_name = _x509.check_common_name(options["common_name"])
        self.key_type = options["key_type"]
        self.valid_for = parse_duration(options["valid_for"])
        self.renew_before = options["renew_before"] or ""
        if self.renew_before and parse_margin(self.renew_before, self.valid_for) >= self.valid_for:
            raise ValueError("renew_before must be shorter than valid_for, or every run would renew")
        if options["path_length"] < 0:
            raise ValueError("path_length must be 0 or more")
        if self.root_path and self.root_path == self.path:
            raise ValueError(f"issuer_path and path are both {self.path}: the root needs a directory of its own")
        self.passphrase = encode_passphrase(options["passphrase"])
        self.step = options["rollover"]

    def load(self) -> _authority.Authority | None:
        """Return the authority there is."""
        return _authority.load(self.path, renewable=bool(self.root_path))

    def plan(self, authority: _authority.Authority | None) -> Change:
        """Return what is to be done. Raises what its parts raise, when that cannot or may not be done."""
        if authority is None:
            return self._creation()
        # An encrypted key stays closed where there is no passphrase; what needs it says so.
        if self.passphrase is not None or not _authority.is_locked(self.path):
            _authority.open_key(authority, self.passphrase)
        if self.step:
            return getattr(self, f"_{self.step}")(authority)
        return Change() if authority.rollover else self._renewal(authority)

    def _root(self, name) -> _authority.Root | None:
        """Return the root that is to sign an authority of that name, or None if it is to sign itself."""
        if not self.root_path:
            return None
        root = _authority.open_root(self.root_path, encode_passphrase(self.module.params["issuer_passphrase"]))
        _authority.check_name(name, root)
        self._check_lifetime(root)
        return root

    def _check_lifetime(self, root: _authority.Root) -> None:
        """Raise CryptoError when what the root signs would be due for renewal at once, and again in every run."""
        end = root.certificates[0].not_after
        remaining = int((end - _authority.now()).total_seconds())
        if self.renew_before and remaining <= parse_margin(self.renew_before, min(self.valid_for, max(remaining, 1))):
            raise CryptoError(
                f"the root in {self.root_path} ends at {_x509.show_time(end)}, within renew_before: make another root,"
                f" and roll over to it ({_authority.command('introduce', self.path)})"
            )

    def _creation(self) -> Change:
        if self.step:
            raise CryptoError(f"there is no authority in {self.path} yet, so there is nothing to roll over")
        if _authority.has_key(self.path):
            _authority.load_key(self.path, self.passphrase)
        root = self._root(self.common_name)
        arguments = (self.path, self.common_name, self.key_type, self.valid_for, self.passphrase)
        length = self.module.params["path_length"]
        return Change(
            "missing: there was no authority",
            lambda: _authority.create(*arguments, root=root, path_length=length),
        )

    def _renewal(self, authority: _authority.Authority) -> Change:
        """Return the renewal that is due, if one is and can be by these options."""
        issuer, same = authority.issuer, self.module.params["renewal_key"] == "same"
        if not self.renew_before or not (self.root_path if authority.is_intermediate else same):
            return Change()
        lifetime = int((issuer.not_after - issuer.not_before).total_seconds())
        due = issuer.not_after - datetime.timedelta(seconds=parse_margin(self.renew_before, lifetime))
        if _authority.now() < due:
            return Change()
        if not same and _authority.now() <= issuer.not_after and Vault(self.path).has(_authority.LISTS):
            raise CryptoError(
                f"the authority in {self.path} is due for renewal and has a revocation list ({_authority.LISTS}). With"
                " a new key nobody could sign one for the replaced certificate, which stays trusted until it ends, and"
                " nginx would refuse its clients: renew it with the same key (renewal_key,"
                f" nanomq_pki_authority_renewal_key=same), or roll over ({_authority.command('introduce', self.path)})"
            )
        root = None
        if authority.is_intermediate:
            root = self._root(_authority.name_to_keep(authority))
            _authority.check_same_root(authority, root, self.root_path)
        self._need_key(authority)
        return Change(
            f"expiring: at {_x509.show_time(issuer.not_after)}, and to be renewed from {_x509.show_time(due)}",
            lambda: _authority.renew(
                authority, self.passphrase, self.key_type, self.valid_for, root=root, new_key=not same
            ),
        )

    def _need_key(self, authority: _authority.Authority) -> None:
        """Raise WrongPassphrase unless the key can be opened: what is made in its stead gets the same passphrase."""
        _authority.open_key(authority, self.passphrase)

    def _introduce(self, authority: _authority.Authority) -> Change:
        if authority.rollover == "introduced":
            return Change()
        if authority.rollover == "switched":
            raise CryptoError(
                f"the successor in {self.path} signs already: retire the previous authority before another one is"
                f" introduced ({_authority.command('retire', self.path)})"
            )
        self._need_key(authority)
        root = self._root(_authority.name_to_keep(authority))
        if root is not None and root.certificates[-1].public_key == authority.certificates[-1].public_key:
            raise CryptoError(
                f"the authority in {self.path} is below the root in {self.root_path} already: it is renewed by"
                " renew_before, and a roll-over is to another root"
            )
        if _authority.path_length(authority.issuer) == 0:
            self.module.warn(
                f"the authority in {self.path} has a path length of 0: brokers, and clients with mbedtls, do not follow"
                " its cross certificate, so all of them must have the trust in the successor before you switch"
            )
        return Change(
            "rollover: a successor is introduced",
            lambda: _authority.introduce(authority, self.passphrase, self.key_type, self.valid_for, root),
        )

    def _switch(self, authority: _authority.Authority) -> Change:
        if authority.rollover == "switched":
            return Change()
        if not authority.rollover:
            raise CryptoError(
                f"there is no successor in {self.path} to switch to: introduce one, and give every host and client the"
                f" trust in it ({_authority.command('introduce', self.path)})"
            )
        self._need_key(authority)
        _authority.open_successor(authority, self.passphrase)
        return Change("rollover: the successor signs", lambda: _authority.switch(authority, self.passphrase))

    def _retire(self, authority: _authority.Authority) -> Change:
        if authority.rollover == "introduced":
            raise CryptoError(
                f"the successor in {self.path} does not sign yet: switch to it, and let every host and client get a"
                " certificate of it, before the previous authority is retired"
                f" ({_authority.command('switch', self.path)})"
            )
        if not authority.rollover:
            if _authority.was_rolled_over(self.path):
                return Change()
            raise CryptoError(
                f"there is no roll-over under way in {self.path}: nothing is to be retired. It begins with"
                f" {_authority.command('introduce', self.path)}"
            )
        left, revoked = _authority.unrenewed(authority)
        aside = f" ({revoked} revoked and not counted)" if revoked else ""
        if left and not self.module.params["retire_unrenewed"]:
            raise CryptoError(
                f"these still have a valid certificate of the previous authority, and none of the successor:"
                f" {', '.join(left)}{aside}. Run the playbook on them ({_authority.command('switch', self.path)}), or"
                " revoke what they have (playbook revoke), or give them up (retire_unrenewed,"
                " nanomq_pki_retire_unrenewed)"
            )
        archive = self.module.params["retired_key"] == "archive"
        return Change(
            f"rollover: the previous authority is retired{aside}",
            lambda: _authority.retire(authority, archive=archive),
        )

    def warn(self, authority: _authority.Authority, result: dict) -> None:
        """Say what is not as the options have it and will stay so, and what is to be done soon."""
        for option in ("common_name", "key_type"):
            if result[option] != self.module.params[option]:
                self.module.warn(
                    f"the authority in {self.path} has {option} {result[option]!r}, not {self.module.params[option]!r};"
                    " it is kept, for every certificate depends on it"
                )
        if self.root_path and not authority.is_intermediate and authority.rollover != "introduced":
            self.module.warn(
                f"the authority in {self.path} signed itself, and is not below the root in {self.root_path}; to put one"
                f" there in its place: {_authority.command('introduce', self.path)}"
            )
        if authority.rollover:
            following = "switch" if authority.rollover == "introduced" else "retire"
            self.module.warn(
                f"a roll-over of the authority in {self.path} is under way ({authority.rollover}): when every host and"
                f" client has had a run since, go on with {_authority.command(following, self.path)}"
            )
            return
        above = min(authority.certificates, key=lambda certificate: certificate.not_after)
        if above.not_after - _authority.now() < NEAR_END:
            self.module.warn(
                f"the authority {above.common_name!r} in {self.path} expires at {_x509.show_time(above.not_after)}:"
                f" plan its successor, which begins with {_authority.remedy(authority, above)}"
            )


def run(module: AnsibleModule) -> dict:
    """Bring the authority to what the options say. Raises FileProblem, CryptoError, ValueError and OSError."""
    this = Run(module)
    for _attempt in range(ATTEMPTS):
        # What this run was about to do another one may have done: not every strategy honours run_once.
        with contextlib.suppress(_authority.Meanwhile):
            return bring(this, module.check_mode)
    return bring(this, module.check_mode)


def bring(this: Run, check_mode: bool) -> dict:
    """Return the result of one attempt. Raises what `run` does, and Meanwhile where another run was faster."""
    before = this.load()
    if before is not None:
        _authority.check_clock(this.path)
    change = this.plan(before)
    vault = Vault(this.path)
    unfinished = vault.exists() and vault.unfinished()
    reason = change.reason or ("unfinished: a run was cut while it changed the authority" if unfinished else "")
    if check_mode:
        return {"changed": bool(reason), "reason": reason, **describe(before, this.path)}
    if unfinished:
        with vault.lock() as was_cut:
            if not was_cut:
                raise _authority.Meanwhile(f"another run was changing the authority in {this.path}: run again")
    change.make()
    authority = this.load()
    result = describe(authority, this.path)
    if before is not None:
        this.warn(authority, result)
    return {"changed": bool(reason), "reason": reason, **result}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = run(module)
    except (FileProblem, CryptoError, ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
