# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Changes that must not come about, and what is there afterwards."""

from __future__ import annotations

import collections

import pytest
import scenario
from tunnel import ACCOUNT, DROP_IN, apply, rest

EARLIER = "/etc/ssh/sshd_config.d/01-somebody.conf"


def state(broker) -> str:
    """Every file that the role or its validation could touch, and what it could leave behind."""
    return broker.check_output(
        "find /etc/ssh /etc/edgesec-nanomq /etc/sysusers.d /etc/systemd/system -printf '%p %m %u %s %l\\n' | sort; "
        "cat /etc/ssh/sshd_config.d/* /etc/edgesec-nanomq/tunnel/* | sha256sum; test ! -e "
        "/var/lib/edgesec-nanomq/ssh_tunnel/record.json"
    )


def refused(run: scenario.Play, broker, *words: str) -> None:
    assert run.recap(broker.name)["failed"] == 1, run.output
    for word in words:
        assert word in run.flat(), run.output


@pytest.fixture
def before(broker, callers):
    return state(broker)


def test_steady_state_costs_one_run_and_a_look(brokers, callers):
    run = apply(**callers)
    assert run.status == 0, run.output
    assert [run.recap(broker.name)["changed"] for broker in brokers] == [0, 0], run.output
    runs = collections.Counter(cost["host"] for cost in run.costs if cost["kind"] != "task")
    assert set(runs.values()) == {2}  # host_info, which a play asks once, and the transaction


def test_check_mode_on_a_hardened_host(brokers, callers):
    before = [state(broker) for broker in brokers]
    same = apply("--check", "--diff", **callers)
    assert same.status == 0, same.output
    assert [same.recap(broker.name)["changed"] for broker in brokers] == [0, 0]
    other = apply("--check", "--diff", **callers, nanomq_ssh_tunnel_alive_interval=16)
    assert other.status == 0, other.output
    assert [other.recap(broker.name)["changed"] for broker in brokers] == [1, 1]
    assert "ClientAliveInterval 16" in other.flat()
    assert [state(broker) for broker in brokers] == before


def test_a_line_of_somebody_else_that_wins(outsider, broker, callers, before):
    lines = f"Match User {ACCOUNT}\n    AllowTcpForwarding yes\n    PermitTTY yes\n"
    broker.check_output("printf %%s %s > %s", lines, EARLIER)
    try:
        changed = state(broker)
        run = apply(hosts=broker.name, **callers, nanomq_ssh_tunnel_alive_interval=16)
        refused(run, broker, "validate: allowtcpforwarding is yes for", "permittty is yes", "no file was changed")
        assert state(broker) == changed
        # Nor does it go unseen where nothing is to be changed.
        refused(apply(hosts=broker.name, **callers), broker, "allowtcpforwarding is yes for")
    finally:
        broker.check_output(f"rm {EARLIER}")
    assert state(broker) == before
    assert rest(outsider, "good", broker.ipv4) == "401"


def test_a_main_file_that_includes_nothing(broker, callers, before):
    broker.check_output("sed -i 's/^Include/#nclude/' /etc/ssh/sshd_config")
    try:
        run = apply(hosts=broker.name, **callers, nanomq_ssh_tunnel_alive_interval=16)
        refused(
            run, broker, "put 'Include /etc/ssh/sshd_config.d/*.conf' at the top of sshd_config", "no file was changed"
        )
    finally:
        broker.check_output("sed -i 's/^#nclude/Include/' /etc/ssh/sshd_config")
    assert state(broker) == before


def test_an_account_that_is_shut_out(broker, callers, before):
    broker.check_output(f"echo 'DenyUsers nobody {ACCOUNT}' > {EARLIER}")
    try:
        refused(
            apply(hosts=broker.name, **callers, nanomq_ssh_tunnel_alive_interval=16), broker, "shuts nanomq-tunnel out"
        )
    finally:
        broker.check_output(f"rm {EARLIER}")
    assert state(broker) == before


def test_an_allow_list_of_others_does_not_matter(outsider, broker, callers, before):
    broker.check_output(
        f"printf 'AllowUsers root wader\\nAllowGroups root wader\\n' > {EARLIER} && systemctl reload ssh"
    )
    try:
        assert rest(outsider, "good", broker.ipv4) == "401"
    finally:
        broker.check_output(f"rm {EARLIER} && systemctl reload ssh")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"nanomq_ssh_tunnel_keys": ["ssh-ed25519 nonsense"]}, ["nanomq_ssh_tunnel_keys", "This is none"]),
        ({"nanomq_ssh_tunnel_keys": ['command="sh" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA x']}, ["This is none"]),
        ({"nanomq_ssh_tunnel_keys": ["ssh-ed25519 AAAA\nssh-ed25519 AAAA"]}, ["This is none"]),
        (
            {"nanomq_ssh_tunnel_keys": [{"key": "ssh-ed25519 AAAAC3Nz", "from": '1.1.1.1",permitopen="*:*'}]},
            ["only key, from (addresses) and expires"],
        ),
        ({"nanomq_ssh_tunnel_keys": [{"key": "ssh-ed25519 AAAAC3Nz", "expires": "tomorrow"}]}, ["expires (YYYYMMDD"]),
        ({"nanomq_ssh_tunnel_keys": [{"key": "ssh-ed25519 AAAAC3Nz", "options": "x"}]}, ["only key, from"]),
        (
            {
                "nanomq_ssh_tunnel_keys": [],
                "nanomq_ssh_tunnel_user_ca": "",
                "nanomq_ssh_tunnel_keys_dir": "/nonexistent",
            },
            ["Nobody could use the tunnel", "nanomq_ssh_tunnel_keys", "nanomq_ssh_tunnel_user_ca"],
        ),
        ({"nanomq_ssh_tunnel_user": "root"}, ["nanomq_ssh_tunnel_user is root"]),
        ({"nanomq_ssh_tunnel_user": "a b"}, ["nanomq_ssh_tunnel_user is a b"]),
        # These only the host can know.
        ({"nanomq_ssh_tunnel_user": "wader"}, ["belongs to somebody", "nanomq_ssh_tunnel_user"]),
        ({"nanomq_ssh_tunnel_keys": ["ssh-ed25519 AAAAC3Nz"]}, ["OpenSSH reads", "nanomq_ssh_tunnel_keys"]),
        (
            {"nanomq_ssh_tunnel_service": "sshd-of-another-name.service", "nanomq_ssh_tunnel_alive_interval": 16},
            ["nanomq_ssh_tunnel_service"],
        ),
    ],
)
def test_wrong_answers_are_refused(broker, callers, before, variables, words):
    refused(apply(hosts=broker.name, **{**callers, **variables}), broker, *words)
    assert state(broker) == before


def test_a_change_that_cuts_off_the_operator_is_undone(outsider, broker, callers, before):
    """sshd takes the change up, and from then on nobody new gets in from the network: a trap in its unit."""
    trap = (
        "#!/bin/sh\nif grep -q 'ClientAliveInterval 17' " + DROP_IN + "; then\n"
        "nft 'table inet trap { chain in { type filter hook input priority -300; iif lo accept; "
        "tcp dport 22 ct state new drop; }; }'\nelse nft delete table inet trap; fi\ntrue\n"
    )
    broker.check_output("printf %%s %s > /usr/local/bin/trap; chmod 755 /usr/local/bin/trap", trap)
    broker.check_output(
        "mkdir -p /run/systemd/system/ssh.service.d && printf '[Service]\\nExecReload=/usr/local/bin/trap\\n' "
        "> /run/systemd/system/ssh.service.d/trap.conf && systemctl daemon-reload"
    )
    try:
        variables = {"nanomq_ssh_tunnel_alive_interval": 17, "nanomq_ssh_tunnel_confirm_within": 12}
        run = apply(hosts=broker.name, **{**callers, **variables})
        refused(run, broker, "no fresh connection came through, and the host undid it")
        assert state(broker) == before
        assert broker.run("nft list table inet trap").rc != 0
        assert rest(outsider, "good", broker.ipv4) == "401"
    finally:
        broker.run(
            "rm -r /run/systemd/system/ssh.service.d /usr/local/bin/trap; nft delete table inet trap; "
            "systemctl daemon-reload; systemctl reload ssh"
        )


def test_absent_and_back(outsider, broker, callers, before):
    """Without it, sshd does what it did before, nobody gets in, and check mode says what would come."""
    try:
        run = apply(hosts=broker.name, nanomq_ssh_tunnel_state="absent")
        assert run.status == 0, run.output
        assert not broker.file(DROP_IN).exists
        assert broker.run("systemctl is-enabled edgesec-nanomq-tunnel").rc != 0
        assert rest(outsider, "good", broker.ipv4) == ""
        assert broker.run(f"pgrep -u {ACCOUNT}").rc != 0
        gone = state(broker)
        assert apply(hosts=broker.name, nanomq_ssh_tunnel_state="absent").recap(broker.name)["changed"] == 0
        check = apply("--check", hosts=broker.name, **callers)
        assert check.status == 0, check.output
        assert check.recap(broker.name)["changed"] == 1
        assert state(broker) == gone
    finally:
        assert apply(hosts=broker.name, **callers).status == 0
    assert state(broker) == before
    assert rest(outsider, "good", broker.ipv4) == "401"
