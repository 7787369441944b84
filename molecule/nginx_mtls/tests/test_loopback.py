# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""On the host itself the broker's API is for root and for the front ends."""

from __future__ import annotations

import pytest

CONNECT = "import socket; socket.create_connection(('127.0.0.1', 8081), 2)"


@pytest.mark.parametrize(
    ("user", "answered"),
    [
        ("root", True),
        ("www-data", True),
        ("nanomq-tunnel", True),
        ("nobody", False),
        ("somebody", False),
        ("sshd", False),
        ("nanomq", False),
    ],
)
def test_who_reaches_the_broker(broker, user, answered):
    broker.check_output("id somebody || useradd --no-create-home somebody")
    done = broker.run(f"setpriv --reuid {user} --regid nogroup --clear-groups python3 -c %s", CONNECT)
    assert (done.rc == 0) is answered, done.stderr


def test_the_network_does_not(broker, outsider):
    for address in (broker.ipv4, broker.ipv6):
        assert outsider.run(f"nc -z -w 2 {address} 8081").rc != 0
    assert outsider.run(f"nc -z -w 2 {broker.ipv4} 443").rc == 0


def test_nginx_listens_where_it_was_told_to(broker):
    listening = {line.split()[3] for line in broker.check_output("ss -ltnpH").splitlines() if '"nginx"' in line}
    other = {"0.0.0.0:80"} if broker.name == "trixie" else set()
    assert listening == {"0.0.0.0:443"} | other
