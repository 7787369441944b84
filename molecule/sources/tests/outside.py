# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tests of this scenario do and look at, on the controller and from outside."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import subprocess

import scenario
from scenario import USERS, eventually

PROJECT = pathlib.Path(os.environ.get("MOLECULE_PROJECT_DIRECTORY", "."))
INVENTORY = pathlib.Path(__file__).resolve().parent.parent / "inventory/hosts.yml"
STORE = "/etc/nanomq/pki/server"
MOST_REMOTE_RUNS = 8


def elsewhere() -> pathlib.Path:
    """The directory of the authority that is not ours."""
    return pathlib.Path(scenario.INVENTORY).parent / "elsewhere"


def give(name: str, names: str, days: int) -> None:
    """Somebody sends a new key and certificate."""
    subprocess.run([PROJECT / "tests/elsewhere", "give", elsewhere(), name, names, str(days)], check=True)


def give_host(broker, days: int) -> None:
    give(broker.name, f"DNS:{broker.name},IP:{broker.ipv4}", days)


def harden(*arguments: str, **options) -> scenario.Play:
    return scenario.harden("-i", str(INVENTORY), *arguments, **options)


def harden_once(brokers, *arguments: str, **options) -> scenario.Play:
    """A run that gives every host a new certificate; and one more, which changes nothing. Returns the first."""
    before = [serial(broker) for broker in brokers]
    run = harden(*arguments, **options)
    assert run.status == 0, run.output
    for broker, old in zip(brokers, before):
        assert serial(broker) != old, run.output
    assert_steady(brokers, **options)
    return run


def assert_steady(brokers, **options) -> None:
    """A run changes nothing, in few steps."""
    run = harden(**options)
    assert run.status == 0, run.output
    runs = collections.Counter(cost["host"] for cost in run.costs if cost["kind"] != "task")
    print(f"remote runs in steady state: { ({broker.name: runs[broker.ipv4] for broker in brokers}) }")
    for broker in brokers:
        assert run.recap(broker.name)["changed"] == 0, run.output
        assert 0 < runs[broker.ipv4] <= MOST_REMOTE_RUNS


def serial(broker) -> str:
    return broker.check_output(f"readlink {STORE}/current")


def trusting(client, name: str, pem: str) -> scenario.Client:
    """The client, with the trust in another CA than the fleet's."""
    directory = f"{client.directory}-{name}"
    client.host.check_output(f"rm -rf {directory} && cp -r {client.directory} {directory}")
    client.host.check_output("printf %%s %s > %s", pem, f"{directory}/ca.pem")
    return dataclasses.replace(client, directory=directory)


def gets_in(client, broker, address: str = "", **options) -> bool:
    return client.publish(address or broker.ipv4, user="operator", password=USERS["operator"], **options)


def served(outsider, broker) -> list[str]:
    """Subjects of the certificates that the broker sends along, its own first."""
    command = f"openssl s_client -connect {broker.ipv4}:8883 -showcerts </dev/null 2>/dev/null | grep ' s:'"
    found: list[str] = []
    eventually(lambda: found.extend(outsider.run(command).stdout.splitlines()) or found)
    return [line.partition("s:")[2].replace(" ", "") for line in found]


def assert_served(outsider, broker, wanted: str = "") -> None:
    """What is on the socket is what the link names, or the wanted one."""
    command = f"openssl s_client -connect {broker.ipv4}:8883 </dev/null 2>/dev/null | openssl x509 -noout -serial"

    def shown() -> str:
        return outsider.run(command).stdout.strip().partition("=")[2].lower()

    assert eventually(lambda: shown() == (wanted or serial(broker)))


def leftovers(broker) -> str:
    return broker.check_output(f"find {STORE} -name '.*'")
