#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: transaction
short_description: Change a set of files and the services that read them, or nothing
version_added: "0.1.0"
author: EdgeSec maintainers (@edgesec)
description:
  - Brings a host to a wanted set of files and services in one remote run. The change either holds, or the host is left,
    or put back, as it was.
  - The steps are C(lock), C(recover), C(compare), C(stage), C(validate), C(swap), C(activate), C(probe) and C(commit).
    A failure names its step, and brings the end of the services' journal.
  - A run that dies in the middle is undone by a timer on the host, by the next run, or by a reboot before the services
    start, whichever comes first.
  - When nothing differs the services and the probes are still looked at, and a service that is down is started again.
options:
  name:
    description: Name of the transaction. One runs at a time, and each name has its own generations.
    type: str
    required: true
  state:
    description:
      - V(present) brings the host to the set.
      - V(confirmed) confirms the transaction named by O(transaction). The action plugin does that by itself.
      - V(status) tells how the last transaction ended.
      - V(restored) brings the host back to a generation that it keeps, named by O(generation). Files, services,
        validators and probes are those of the generation. It is a transaction like any other, and makes a generation
        of its own.
    type: str
    choices: [present, confirmed, status, restored]
    default: present
  transaction:
    description: The transaction to confirm.
    type: str
  generation:
    description:
      - The generation to restore, by its number or as V(previous), which is what was in force before the last
        deployment. A rollback is no deployment, so that V(previous) means the same until the next one.
      - M(edgesec.nanomq.generations) lists them.
    type: str
  revoked_users:
    description:
      - For O(state=restored), MQTT users whose access was revoked. A generation that lets one of them in is refused.
    type: list
    elements: str
    default: []
  files:
    description:
      - The whole set. A file that was in the set before and no longer is will be removed. Where it is a unit, that is
        stopped and disabled before.
    type: list
    elements: dict
    default: []
    suboptions:
      dest:
        description: Absolute path on the host.
        type: path
        required: true
      state:
        description: What the path is to be.
        type: str
        choices: [file, directory, link, absent]
        default: file
      content:
        description: Content of a file, as text.
        type: str
      target:
        description: Target of a link.
        type: str
      owner:
        description: Name of the owner.
        type: str
        default: root
      group:
        description: Name of the group.
        type: str
        default: root
      mode:
        description: Permission bits in octal, as a string.
        type: str
        default: "0644"
      diff:
        description:
          - Whether C(--diff) shows the content. V(redact) masks the secrets of a C(nanomq.conf).
          - With anything but V(show) the action plugin sends the content as a secret.
        type: str
        choices: [show, redact, hide]
        default: show
      early:
        description:
          - Put the file in place before the validation where there is none yet. For files whose name changes with
            their content.
        type: bool
        default: false
      sysusers:
        description: The file is one for C(sysusers.d), whose accounts are made before the others are staged.
        type: bool
        default: false
  secret_contents:
    description: Contents that are secret, by path. Filled by the action plugin.
    type: dict
    default: {}
  services:
    description: The units that read the files, in the order in which they are started.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the unit.
        type: str
        required: true
      state:
        description: Whether it is to run.
        type: str
        choices: [started, stopped]
        default: started
      enabled:
        description: Whether it is to start at boot.
        type: bool
        default: true
      keep_enabled:
        description: Leave it as it is whether it starts at boot, whatever O(services[].enabled) says.
        type: bool
        default: false
      on_change:
        description: How it takes up a changed set. Where its unit is among the changes, it is restarted in any case.
        type: str
        choices: [restart, reload]
        default: restart
  validators:
    description: Checks of the staged set, each a dictionary with C(type) and the options of that type.
    type: list
    elements: dict
    default: []
  probes:
    description: Checks of the running services, each a dictionary with C(type) and the options of that type.
    type: list
    elements: dict
    default: []
  credentials:
    description: What validators and probes need to log in.
    type: dict
    default: {}
    suboptions:
      rest_authorization:
        description: Value of the C(Authorization) header.
        type: str
      rest_refused:
        description: Values of the C(Authorization) header that must be refused, such as a token of a key that is gone.
        type: list
        elements: str
        default: []
      rest_tokens:
        description:
          - For O(state=restored), tokens of which the one is used that the generation's key verifies. Without one it is
            left out to ask the broker what it has loaded.
          - The other credentials are taken from the generation itself.
        type: list
        elements: str
        default: []
      mqtt_password:
        description: The password of O(mqtt_username).
        type: str
      key_passphrase:
        description: Passphrase of the TLS key.
        type: str
  mqtt_username:
    description: A user that must be let in, with O(credentials.mqtt_password).
    type: str
  stamp:
    description:
      - A word in the contents of O(files), and an option of O(probes), that stands for the SHA-256 of all contents. A
        service can be asked for it, to tell that it runs these files and no older ones.
      - It is replaced on the controller.
    type: str
  confirm_within:
    description:
      - Seconds in which a fresh connection must confirm the change; otherwise the host undoes it. V(0) for none.
      - For changes that can cut the connection that they came by.
      - With O(state=restored) it counts where the generation, or the one in force, came about with a confirmation.
    type: int
    default: 0
  rollout_group:
    description:
      - Hosts with the same name here stand in for each other, such as the two ends of a bridge. One of them at a time
        is changed and probed, while the others wait, in all runs of one account on one controller.
      - Not in check mode, which restarts nothing.
    type: str
  keep:
    description: How many generations to keep, besides the host as it was found.
    type: int
    default: 5
  run:
    description: By which run, for the list of the generations. Filled by the action plugin.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Stages and validates the set where the host can, and swaps nothing.
  diff_mode:
    support: full
    description: Shows the change, and never a secret.
  platform:
    support: full
    platforms: posix
    description: Linux with systemd.
extends_documentation_fragment: []
notes:
  - The state is kept below C(/var/lib/edgesec-nanomq), readable by root alone.
"""

EXAMPLES = r"""
- name: Put a firewall table in place, and take it back if it cuts us off
  edgesec.nanomq.transaction:
    name: firewall
    files:
      - dest: /etc/edgesec-nanomq/firewall.nft
        content: "{{ lookup('ansible.builtin.template', 'firewall.nft.j2') }}"
        mode: "0600"
    services:
      - name: edgesec-nanomq-firewall.service
        on_change: reload
    validators:
      - type: nft
        file: /etc/edgesec-nanomq/firewall.nft
    confirm_within: 60

- name: Go back to what was in force before the last deployment
  edgesec.nanomq.transaction:
    name: firewall
    state: restored
    generation: previous
    confirm_within: 60
"""

RETURN = r"""
changes:
  description: What differed, by path.
  returned: success
  type: list
  elements: dict
  sample: [{"dest": "/etc/nanomq/nanomq.conf", "what": ["content"]}]
repaired:
  description: What did not hold although the files were as wanted.
  returned: success
  type: list
  elements: str
recovered:
  description: What was done about a transaction that an earlier run had left open.
  returned: success
  type: str
generation:
  description: Number of the generation that is now in force.
  returned: when committed
  type: int
restored:
  description: Number of the generation that was asked for.
  returned: with O(state=restored)
  type: int
transaction:
  description: Name of this transaction.
  returned: success
  type: str
unconfirmed:
  description: Whether the change still waits for its confirmation.
  returned: success
  type: bool
validated:
  description: Whether check mode could validate the set on the host.
  returned: check mode
  type: bool
notes:
  description: What else is worth knowing.
  returned: success
  type: list
  elements: str
step:
  description: The step that failed.
  returned: failure
  type: str
undone:
  description: Whether something had been changed and was put back.
  returned: failure
  type: bool
journal:
  description: The end of what the services logged, when they had been started with the new set.
  returned: failure
  type: list
  elements: str
last:
  description: How the last transaction ended.
  returned: with O(state=status)
  type: dict
"""

import contextlib
import dataclasses

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _generations, _hocon
from ansible_collections.edgesec.nanomq.plugins.module_utils._probes import MOMENTARY, PROBES, run_probes
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import (
    Change,
    Entry,
    Outcome,
    Service,
    Store,
    Transaction,
    TransactionError,
    confirm,
    read,
    recover,
    run,
)
from ansible_collections.edgesec.nanomq.plugins.module_utils._validators import VALIDATORS, run_validators

STATES = ["present", "confirmed", "status", "restored"]
NOT_ASKED = "the broker was not asked through REST what it has loaded: the controller has no key that signs for it"
#: Shorter secrets are not searched for in what is returned: they would mask words at random. The policy refuses them.
SHORTEST_SECRET = 6


@dataclasses.dataclass
class Plan:
    """What to bring the host to, how to check it, and what to keep with it."""

    entries: list[Entry]
    services: list[Service]
    validators: list[dict]
    probes: list[dict]
    credentials: dict
    shown: dict[str, str]
    memo: dict
    confirm_within: int
    keep: int


def declared(module: AnsibleModule) -> Plan:
    """The plan that the options are."""
    params = module.params
    wanted = entries(module)
    conf = _generations.conf_of(wanted, params["validators"])
    checks = {"validators": params["validators"], "probes": params["probes"]}
    lasting = [probe for probe in params["probes"] if probe["type"] not in MOMENTARY]
    needs = _generations.needs(wanted, params["validators"] + params["probes"], conf)
    return Plan(
        entries=wanted,
        services=[wanted_service(item) for item in params["services"]],
        credentials={**params["credentials"], "mqtt_username": params["mqtt_username"]},
        shown={item["dest"]: item["diff"] for item in params["files"]},
        memo={"run": params["run"], "needs": needs, "validators": params["validators"], "probes": lasting},
        confirm_within=params["confirm_within"],
        keep=params["keep"],
        **checks,
    )


def kept(module: AnsibleModule) -> tuple[Plan, str, int]:
    """The plan that a generation is, what was done about an unfinished transaction before, and its number."""
    params = module.params
    store = _generations.known_store(params["name"])
    recovered = ""
    if not module.check_mode:
        # First, since it may be the one that is asked for, or that makes another one the previous.
        with store.lock():
            recovered = recover(store, "found unfinished by a rollback")
    number = _generations.resolve(store, params["generation"])
    generation = _generations.check_usable(store, number)
    manifest = generation.manifest
    conf = _generations.conf_of(generation.entries, manifest["validators"])
    _generations.check_users(conf, params["revoked_users"], number, params["name"])
    present = store.manifest(store.generations()[-1])
    cuts = manifest["confirm_within"] or present.get("confirm_within", 0)
    plan = Plan(
        entries=generation.entries,
        services=generation.services,
        validators=manifest["validators"],
        probes=manifest["probes"],
        credentials=_generations.credentials(conf, params["credentials"].get("rest_tokens") or []),
        shown=_generations.shown(generation.entries),
        memo={
            **{key: manifest[key] for key in ("needs", "validators", "probes")},
            "run": params["run"],
            # As asked for: the number that was forgotten since is found by it.
            "restores": number if params["generation"] == _generations.PREVIOUS else int(params["generation"]),
        },
        confirm_within=params["confirm_within"] if cuts else 0,
        keep=manifest["keep"],
    )
    return plan, recovered, number


def entries(module: AnsibleModule) -> list[Entry]:
    """The set, with the secret contents put where they belong."""
    result = []
    for item in module.params["files"]:
        dest = item["dest"]
        content = module.params["secret_contents"].get(dest, item["content"])
        if item["state"] == "file" and not isinstance(content, str):
            module.fail_json(msg=f"files: {dest} has no content, or one that is not text")
        if not dest.startswith("/"):
            module.fail_json(msg=f"files: {dest} is not an absolute path")
        try:
            mode = int(item["mode"], 8)
        except ValueError:
            module.fail_json(msg=f"files: the mode of {dest} is not an octal number: {item['mode']}")
        result.append(
            Entry(
                dest=dest,
                state=item["state"],
                content=(content or "").encode(),
                target=item["target"] or "",
                owner=item["owner"],
                group=item["group"],
                mode=mode,
                early=item["early"],
                sysusers=item["sysusers"],
                shown=item["diff"],
            )
        )
    return result


def wanted_service(item: dict) -> Service:
    enabled = None if item["keep_enabled"] else item["enabled"]
    return Service(item["name"], state=item["state"], enabled=enabled, on_change=item["on_change"])


def shown(content: bytes | None, how: str) -> str:
    """A content as --diff may show it."""
    if content is None:
        return ""
    if how == "hide":
        return "(secret: not shown)\n"
    text = content.decode("utf-8", "replace")
    return _hocon.redact(text) if how == "redact" else text


def difference(change: Change, how: str) -> dict:
    """One entry of the diff. A hidden content that changed says so, and a change of attributes names them."""
    before, after = shown(change.before, how), shown(change.after, how)
    if "content" in change.what and before == after:
        after += "(a secret value differs)\n"
    attributes = [name for name in change.what if name in ("owner", "group", "mode", "target")]
    if attributes:
        after += f"({' and '.join(attributes)} set right)\n"
    return {"before_header": change.dest, "after_header": change.dest, "before": before, "after": after}


def report(module: AnsibleModule, outcome: Outcome, how: dict[str, str]) -> dict:
    result = {
        "changed": outcome.changed,
        "changes": [{"dest": change.dest, "what": change.what} for change in outcome.changes],
        "repaired": outcome.repaired,
        "recovered": outcome.recovered,
        "transaction": outcome.transaction,
        "unconfirmed": outcome.unconfirmed,
        "notes": outcome.notes,
    }
    if outcome.generation is not None:
        result["generation"] = outcome.generation
    if module.check_mode:
        result["validated"] = outcome.validated
    if module._diff:
        # What is no longer in the set is hidden, since nothing says any more what it holds.
        result["diff"] = [difference(change, how.get(change.dest, "hide")) for change in outcome.changes]
    return result


def journal_since(services: list[str], since: float) -> str:
    """The last lines that the services logged since a time."""
    if not services:
        return ""
    units = [word for name in services for word in ("-u", name)]
    _code, out = run(["journalctl", "--no-pager", "-o", "cat", f"--since=@{int(since)}", *units])
    # Not by -n: together with --since, systemd 252 gives the first lines instead of the last.
    return "\n".join(out.splitlines()[-20:])


def check_types(module: AnsibleModule, option: str, given: list[dict], known: dict) -> None:
    for item in given:
        if item.get("type") not in known:
            module.fail_json(msg=f"{option}: no such type: {item.get('type')}; known are {', '.join(sorted(known))}")


def hide_secrets(module: AnsibleModule, plan: Plan) -> None:
    """Nothing that is returned may hold a secret of the set, or of what it replaces, whichever program said it."""
    for entry in plan.entries:
        if plan.shown.get(entry.dest) == "redact":
            contents = [entry.content]
            if module.params["state"] == "restored":
                with contextlib.suppress(OSError):
                    contents.append(read(entry.dest))
            found = {secret for content in contents for secret in _hocon.secrets(content.decode("utf-8", "replace"))}
            module.no_log_values.update(secret for secret in found if len(secret) >= SHORTEST_SECRET)
    values = [plan.credentials.get("rest_authorization"), *(plan.credentials.get("rest_refused") or [])]
    words = [word for value in values for word in (value or "").split()]
    module.no_log_values.update(word for word in words if len(word) > SHORTEST_SECRET)


def apply(module: AnsibleModule, plan: Plan) -> tuple[Outcome, dict[str, str]]:
    """Carry a plan out. Returns the outcome, and how each file may be shown."""
    check_types(module, "validators", plan.validators, VALIDATORS)
    check_types(module, "probes", plan.probes, PROBES)
    hide_secrets(module, plan)
    outcome = Transaction(
        module.params["name"],
        plan.entries,
        plan.services,
        validate=lambda staged: run_validators(plan.validators, staged, plan.credentials),
        probe=lambda: run_probes(plan.probes, plan.credentials),
        recheck=lambda: run_probes(plan.probes, plan.credentials, settled=True),
        journal=lambda since: journal_since([service.name for service in plan.services], since),
        confirm_within=plan.confirm_within,
        keep=plan.keep,
        memo=plan.memo,
    ).apply(check=module.check_mode)
    return outcome, plan.shown


def restore(module: AnsibleModule) -> dict:
    """Bring the host back to a generation."""
    plan, recovered, number = kept(module)
    outcome, how = apply(module, plan)
    outcome.recovered = recovered or outcome.recovered
    outcome.notes += _generations.note_users(outcome.changes, how) + _generations.note_keys(outcome.changes)
    if outcome.changes and "nanomq" in {check["type"] for check in plan.validators}:
        outcome.notes += [] if plan.credentials.get("rest_authorization") else [NOT_ASKED]
    return {**report(module, outcome, how), "restored": number}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": STATES, "default": "present"},
            "transaction": {"type": "str"},
            "generation": {"type": "str"},
            "revoked_users": {"type": "list", "elements": "str", "default": []},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "dest": {"type": "path", "required": True},
                    "state": {"type": "str", "choices": ["file", "directory", "link", "absent"], "default": "file"},
                    "content": {"type": "str"},
                    "target": {"type": "str"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0644"},
                    "diff": {"type": "str", "choices": ["show", "redact", "hide"], "default": "show"},
                    "early": {"type": "bool", "default": False},
                    "sysusers": {"type": "bool", "default": False},
                },
            },
            "secret_contents": {"type": "dict", "default": {}, "no_log": True},
            "services": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
                    "enabled": {"type": "bool", "default": True},
                    "keep_enabled": {"type": "bool", "default": False},
                    "on_change": {"type": "str", "choices": ["restart", "reload"], "default": "restart"},
                },
            },
            "validators": {"type": "list", "elements": "dict", "default": []},
            "probes": {"type": "list", "elements": "dict", "default": []},
            # The whole of it: what is logged of a dictionary is its repr, in which a secret may be spelt otherwise.
            "credentials": {
                "type": "dict",
                "default": {},
                "no_log": True,
                "options": {
                    "rest_authorization": {"type": "str", "no_log": True},
                    "rest_refused": {"type": "list", "elements": "str", "default": [], "no_log": True},
                    "rest_tokens": {"type": "list", "elements": "str", "default": [], "no_log": True},
                    "mqtt_password": {"type": "str", "no_log": True},
                    "key_passphrase": {"type": "str", "no_log": True},
                },
            },
            "mqtt_username": {"type": "str"},
            "confirm_within": {"type": "int", "default": 0},
            "rollout_group": {"type": "str"},
            "stamp": {"type": "str"},
            "keep": {"type": "int", "default": 5},
            "run": {"type": "dict", "default": {}},
        },
        required_if=[("state", "confirmed", ("transaction",)), ("state", "restored", ("generation",))],
        supports_check_mode=True,
    )
    params = module.params
    if params["state"] == "status":
        module.exit_json(changed=False, last=Store(params["name"]).last())
    try:
        if params["state"] == "confirmed":
            module.exit_json(changed=True, generation=confirm(params["name"], params["transaction"]))
        result = restore(module) if params["state"] == "restored" else report(module, *apply(module, declared(module)))
    except TransactionError as error:
        state = "and what had been changed was put back" if error.undone else "no file was changed"
        if error.half_done:
            state = "and not all of what had been changed could be put back"
        module.fail_json(
            msg=f"{params['name']}: {error} ({state})",
            step=error.step,
            undone=error.undone,
            journal=error.journal.splitlines(),
        )
    except OSError as error:
        module.fail_json(
            msg=f"{params['name']}: {error} (a change that was under way is undone by the next run, or by the host)",
            step="prepare",
            undone=False,
            journal=[],
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
