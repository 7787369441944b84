# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The callers, known to the brokers."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import scenario
import tunnel


@pytest.fixture(scope="session")
def declared(outsider, tmp_path_factory) -> dict:
    """The variables that let the callers in, as far as they are let in."""
    directory = tmp_path_factory.mktemp("callers")
    public = tunnel.make_keys(directory)
    outsider.check_output(f"mkdir -p {tunnel.KEYS} && chmod 700 {tunnel.KEYS}")
    for path in directory.iterdir():
        target = f"{tunnel.KEYS}/{path.name}"
        outsider.check_output("printf %%s %s > %s; chmod 600 %s", path.read_text(), target, target)
    own = scenario.inventory()["outsider"]["lab_ipv4"]
    return {
        "nanomq_ssh_tunnel_keys": [
            public["good"],
            {"key": public["expired"], "expires": "20200101"},
            {"key": public["elsewhere"], "from": "192.0.2.0/24"},
            {"key": public["here"], "from": own, "expires": "20990101"},
        ],
        "nanomq_ssh_tunnel_user_ca": public["ca"],
        "nanomq_ssh_tunnel_principals": ["operators"],
        "public": public,
    }


@pytest.fixture(scope="session")
def callers(declared, brokers) -> dict:
    """The callers, let in. And an ordinary account on the brokers that the same key opens, to try the attacks on."""
    variables = {name: value for name, value in declared.items() if name != "public"}
    run = tunnel.apply(**variables)
    assert run.status == 0, run.output
    for broker in brokers:
        broker.check_output(
            "install -d -o wader -m 700 /home/wader/.ssh && printf %%s %s > /home/wader/.ssh/authorized_keys",
            declared["public"]["good"] + "\n",
        )
    return variables
