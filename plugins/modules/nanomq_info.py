#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nanomq_info
short_description: Ask a running NanoMQ what it is and does
version_added: "0.1.0"
author: EdgeSec maintainers (@edgesec)
description:
  - Asks the REST server of a broker, on loopback by default, for its version, the configuration it runs with, its
    clients, subscriptions and bridges; and the kernel for the sockets on which it listens.
  - REST tells every secret of the broker. Keys, passwords and headers are masked before anything leaves the host.
  - To compare what runs with the file on the host, use M(edgesec.nanomq.audit).
options:
  token:
    description: A token that REST accepts, which should not live long, as P(edgesec.nanomq.jwt_token#lookup) makes it.
    type: str
    required: true
  address:
    description: Where REST listens. It is asked by plain HTTP, so that a token has no business on another host's.
    type: str
    default: 127.0.0.1
  port:
    description: Its port.
    type: int
    default: 8081
  most:
    description: How many clients and how many subscriptions to list. They are counted all the same.
    type: int
    default: 1000
  timeout:
    description: Seconds that an answer may take.
    type: float
    default: 5
attributes:
  check_mode:
    support: full
    description: Nothing is changed.
  diff_mode:
    support: none
    description: Nothing is changed.
  platform:
    support: full
    platforms: posix
    description: Linux. Needs root to see the sockets of another user's broker.
seealso:
  - module: edgesec.nanomq.audit
  - module: edgesec.nanomq.jwt_token
"""

EXAMPLES = r"""
- name: Ask the broker
  edgesec.nanomq.nanomq_info:
    token: "{{ lookup('edgesec.nanomq.jwt_token', private_key=nanomq_pki_dir ~ '/jwt/fleet.key') }}"
  register: broker

- name: Tell how many clients there are
  ansible.builtin.debug:
    msg: "{{ broker.clients_count }} clients, up for {{ broker.uptime }}"
"""

RETURN = r"""
version:
  description: The version as the broker tells it, which may have a build number behind it.
  returned: success
  type: str
  sample: 0.25.6-8
uptime:
  description: How long it has been running, in its words.
  returned: success
  type: str
  sample: 1 Hours, 2 minutes, 3 seconds
uptime_seconds:
  description: The same in seconds; null where the words are others.
  returned: success
  type: int
listeners:
  description: Addresses on which processes of NanoMQ listen, in the network namespace of the module.
  returned: success
  type: list
  elements: str
configuration:
  description: What the broker runs with, as REST tells it, every secret masked. Rules for topics are not told.
  returned: success
  type: dict
clients:
  description: The clients that are connected, O(most) of them at most.
  returned: success
  type: list
  elements: dict
clients_count:
  description: How many there are.
  returned: success
  type: int
subscriptions:
  description: Who has subscribed to what, O(most) of them at most.
  returned: success
  type: list
  elements: dict
subscriptions_count:
  description: How many there are.
  returned: success
  type: int
bridges:
  description: The bridges to MQTT brokers, those that are switched off too, every secret masked.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils import _probes, _running
from ansible_collections.edgesec.nanomq.plugins.module_utils._policy import NotObserved


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "token": {"type": "str", "required": True, "no_log": True},
            "address": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "default": 8081},
            "most": {"type": "int", "default": 1000},
            "timeout": {"type": "float", "default": 5},
        },
        supports_check_mode=True,
    )
    options = module.params
    if not 1 <= options["port"] <= 65535:
        module.fail_json(msg="port: must be from 1 to 65535")
    if options["most"] < 0:
        module.fail_json(msg="most: must not be negative")
    if not options["token"].isascii() or not options["token"].isprintable() or " " in options["token"]:
        module.fail_json(msg="token: is none, give what the lookup edgesec.nanomq.jwt_token makes")
    try:
        found = _running.look(
            options["address"], options["port"], options["token"], options["timeout"], options["most"]
        )
    except NotObserved as reason:
        module.fail_json(msg=f"{reason}. Is the broker up, and the token signed with its key and not expired?")
    module.exit_json(changed=False, listeners=sorted(_probes.listening(_probes.nanomq_pids())), **found)


if __name__ == "__main__":
    main()
