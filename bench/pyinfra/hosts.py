# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The inventory of pyinfra: the hosts of the test bed that BENCH_JOB names. What reaches them is counted.

The fleet's keys are made here, since this file is read once, and deploy.py once for each host.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from pyinfra.connectors.ssh import SSHConnector

sys.path.insert(0, str(Path(__file__).resolve().parent))

from controller import JOB, fleet_keys

INVENTORY = json.loads(Path(JOB["inventory"]).read_text())
DIRECTORY = Path(JOB["inventory"]).parent
KEY = re.search(r"IdentityFile (\S+)", (DIRECTORY / "ssh_config").read_text())[1]


def count(method: str) -> None:
    """Write a line for each command and each file that goes to a host."""
    original = getattr(SSHConnector, method)

    def counted(self, *args, **kwargs):
        line = json.dumps({"kind": method, "host": self.host.name, "what": ""}) + "\n"
        descriptor = os.open(os.environ["REMOTE_RUNS_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        return original(self, *args, **kwargs)

    setattr(SSHConnector, method, counted)


count("run_shell_command")
count("put_file")

known = INVENTORY["all"]["children"]["brokers"]["hosts"]
brokers = [
    (
        name,
        {
            "ssh_hostname": known[name]["ansible_host"],
            "ssh_user": "root",
            "ssh_key": KEY,
            "ssh_known_hosts_file": str(DIRECTORY / "known_hosts"),
            "ssh_strict_host_key_checking": "yes",
            "ssh_look_for_keys": False,
            "ssh_allow_agent": False,
            "names": [f"DNS:{name}", f"IP:{known[name]['ansible_host']}"],
        },
    )
    for name in JOB["hosts"]
]

fleet_keys()
