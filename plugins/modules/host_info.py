#!/usr/bin/python
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: The few facts that the roles of this collection need
version_added: "0.1.0"
author: EdgeSec maintainers (@edgesec)
description:
  - Tells the distribution, the version of systemd, the installed NanoMQ, and where the operator is connected from.
  - The action plugin runs it once a host and play, and answers from memory after that.
  - It compares the host's clock with the controller's, and fails where they are too far apart, so that this is said
    before anything is changed. What the connection takes counts for the host.
options:
  package:
    description: Name of the broker's package.
    type: str
    default: nanomq
  program:
    description: Path of the broker's program, where it is not on the usual path.
    type: path
  refresh:
    description: Ask the host again, though it has answered before in this play.
    type: bool
    default: false
  clock_tolerance:
    description:
      - How far the host's clock may be from the controller's, such as V(300s) or V(5m). Without it they are not
        compared.
    type: str
attributes:
  check_mode:
    support: full
    description: Nothing is changed.
  diff_mode:
    support: none
    description: Nothing is changed.
"""

EXAMPLES = r"""
- name: Look at the host
  edgesec.nanomq.host_info:
  register: nanomq_host

- name: Look at the host, and refuse one whose clock is wrong
  edgesec.nanomq.host_info:
    clock_tolerance: 300s
  register: nanomq_host
"""

RETURN = r"""
os_id:
  description: C(ID) of os-release.
  returned: success
  type: str
  sample: debian
os_family:
  description: C(debian), C(rhel) or C(unknown).
  returned: success
  type: str
os_version:
  description: C(VERSION_ID) of os-release.
  returned: success
  type: str
  sample: "12"
systemd_version:
  description: Number of the systemd release, 0 where there is none.
  returned: success
  type: int
broker_version:
  description: Version of NanoMQ, empty where none is installed or it does not tell.
  returned: success
  type: str
  sample: 0.25.6
broker_program:
  description: Path of NanoMQ, empty where none is installed.
  returned: success
  type: str
groups:
  description: Which of the groups that the roles use exist.
  returned: success
  type: list
  elements: str
ssh_client:
  description: Address from which the operator is connected, empty where it is not by ssh.
  returned: success
  type: str
ssh_port:
  description: Port of the ssh server that the operator is connected to, 0 where it is not by ssh.
  returned: success
  type: int
ssh_host_key:
  description: Public host key of the ssh server, Ed25519 where it has one, empty where there is none.
  returned: success
  type: str
  sample: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA...
time:
  description: The moment by the host's clock, in seconds since 1970 in UTC.
  returned: success
  type: float
clock_offset:
  description:
    - By how many seconds the host's clock is at least ahead of the controller's, or behind it where it is negative. 0
      where the difference is no more than the answer took.
  returned: success
  type: float
nginx_version:
  description: Version of nginx, empty where none is installed.
  returned: success
  type: str
  sample: 1.22.1
nginx_stream:
  description: Whether nginx has its stream module, built in or to be loaded.
  returned: success
  type: bool
"""

import base64
import grp
import json
import os
import re
import secrets
import shutil
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgesec.nanomq.plugins.module_utils._namespaces import in_namespaces
from ansible_collections.edgesec.nanomq.plugins.module_utils._probes import rest_get
from ansible_collections.edgesec.nanomq.plugins.module_utils._transaction import run
from ansible_collections.edgesec.nanomq.plugins.module_utils._validators import throw_away

VERSION_CONF = """\
system {{
  enable_ipc_internal = false
}}
listeners.tcp {{
  bind = "127.0.0.1:1883"
}}
http_server {{
  port = 8081
  ip_addr = "127.0.0.1"
  username = "version"
  password = "{password}"
}}
"""
GROUPS = ("nanomq", "www-data", "nginx")


def os_release(path: str = "/etc/os-release") -> dict[str, str]:
    """{"ID": "debian", ...} of os-release(5), quotes taken off."""
    try:
        with open(path) as handle:
            pairs = (line.rstrip("\n").split("=", 1) for line in handle if "=" in line and not line.startswith("#"))
            return {key: value.strip("\"'") for key, value in pairs}
    except OSError:
        return {}


def os_family(release: dict[str, str]) -> str:
    like = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    if like & {"debian", "ubuntu"}:
        return "debian"
    return "rhel" if like & {"rhel", "fedora", "centos"} else "unknown"


def systemd_version() -> int:
    _code, out = run(["systemctl", "--version"])
    found = re.match(r"systemd (\d+)", out)
    return int(found.group(1)) if found else 0


def package_version(package: str) -> str:
    """Version of an installed package, without the revision of the packager."""
    queries = (
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package],
        ["rpm", "-q", "--qf", "installed %{VERSION}", package],
    )
    for argv in queries:
        code, out = run(argv)
        if code == 0 and out.startswith("installed "):
            found = re.match(r"(?:\d+:)?(\d+\.\d+\.\d+)", out.split(" ", 1)[1])
            if found:
                return found.group(1)
    return ""


def running_version(program: str) -> str:
    """The version that the program tells of itself. It has no option for it, so it is started apart from all."""
    result = in_namespaces(lambda: _ask_version(program))
    found = re.match(r"v?(\d+\.\d+\.\d+)", str(result.get("version", "")))
    return found.group(1) if found else ""


def _ask_version(program: str) -> dict:
    """Inside namespaces of its own: start the program with a REST server, and read GET /api/v4/brokers."""
    password = secrets.token_hex(16)
    fd, conf = tempfile.mkstemp(dir="/tmp")
    with os.fdopen(fd, "w") as handle:
        handle.write(VERSION_CONF.format(password=password))
    os.chmod(conf, 0o644)
    authorization = "Basic " + base64.b64encode(f"version:{password}".encode()).decode()
    with throw_away(conf, program, "nobody", "/", 8081) as problem:
        if problem:
            return {}
        _status, body = rest_get("127.0.0.1", 8081, "/api/v4/brokers", {"Authorization": authorization})
        return json.loads(body)["data"][0]


def parents() -> list[int]:
    """The process and its ancestors."""
    chain, pid = [], os.getpid()
    while pid > 1 and len(chain) < 64:
        chain.append(pid)
        with open(f"/proc/{pid}/stat") as handle:
            pid = int(handle.read().rpartition(")")[2].split()[1])
    return chain


def ssh_connection() -> tuple[str, int]:
    """(client, server port) of the ssh session above us. sudo drops the variable, so the ancestors are asked too."""
    try:
        for pid in parents():
            with open(f"/proc/{pid}/environ", "rb") as handle:
                for item in handle.read().split(b"\0"):
                    if item.startswith(b"SSH_CONNECTION="):
                        client, _client_port, _server, port = item.split(b"=", 1)[1].decode().split()
                        return client.partition("%")[0], int(port)
    except (OSError, ValueError):
        pass
    return "", 0


def existing_groups() -> list[str]:
    found = {entry.gr_name for entry in grp.getgrall()}
    return [name for name in GROUPS if name in found]


def ssh_host_key(directory: str = "/etc/ssh") -> str:
    """Kind and key of the public host key, without its comment."""
    for kind in ("ed25519", "ecdsa", "rsa"):
        try:
            with open(os.path.join(directory, f"ssh_host_{kind}_key.pub")) as handle:
                return " ".join(handle.read().split()[:2])
        except OSError:
            continue
    return ""


def nginx() -> tuple[str, bool]:
    """(version, whether it has the stream module) of nginx, or ("", False)."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if not program:
        return "", False
    _code, out = run([program, "-V"])
    version = re.search(r"nginx/(\d+\.\d+\.\d+)", out)
    modules = re.search(r"--modules-path=(\S+)", out)
    loadable = bool(modules) and os.path.exists(os.path.join(modules.group(1), "ngx_stream_module.so"))
    return version.group(1) if version else "", loadable or "--with-stream " in out + " "


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "package": {"type": "str", "default": "nanomq"},
            "program": {"type": "path"},
            "refresh": {"type": "bool", "default": False},
            # The action plugin's, which knows what the controller's clock says.
            "clock_tolerance": {"type": "str"},
        },
        supports_check_mode=True,
    )
    release = os_release()
    path = os.pathsep.join(["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin"])
    program = module.params["program"] or shutil.which("nanomq", path=path) or ""
    if program and not os.access(program, os.X_OK):
        program = ""
    version = package_version(module.params["package"])
    if program and not version:
        version = running_version(program)
    client, port = ssh_connection()
    nginx_version, nginx_stream = nginx()
    module.exit_json(
        changed=False,
        os_id=release.get("ID", ""),
        os_family=os_family(release),
        os_version=release.get("VERSION_ID", ""),
        systemd_version=systemd_version(),
        broker_version=version if program else "",
        broker_program=program,
        groups=existing_groups(),
        ssh_client=client,
        ssh_port=port,
        ssh_host_key=ssh_host_key(),
        nginx_version=nginx_version,
        nginx_stream=nginx_stream,
        time=time.time(),
    )


if __name__ == "__main__":
    main()
