# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""MQTT through nginx: by TLS, and over WebSocket, with the suites of nginx and the users of the broker."""

from __future__ import annotations

import ssl
import time

import paho.mqtt.client as mqtt
import pytest
import scenario
from front import harden
from scenario import USERS

THROUGH_NGINX = {"nanomq_nginx_mqtt": True, "nanomq_nginx_websocket": True}
TLS_PORT, WEBSOCKET_PORT = 8884, 8084


@pytest.fixture(scope="module")
def through_nginx():
    """One host with both. Afterwards it is as the scenario declares it."""
    name = "bookworm"
    run = harden(hosts=name, **THROUGH_NGINX)
    assert run.status == 0, run.output
    again = harden(hosts=name, **THROUGH_NGINX)
    assert again.recap(name)["changed"] == 0, again.output
    host = scenario.known_broker(name)
    yield host
    back = harden(hosts=name)
    assert back.status == 0, back.output
    listening = host.check_output("ss -ltnH")
    assert f":{TLS_PORT} " not in listening
    assert f":{WEBSOCKET_PORT} " not in listening


@pytest.fixture(scope="module")
def material(client, tmp_path_factory):
    """The certificates that the client on the outsider has, here."""
    directory = tmp_path_factory.mktemp("mqtt")
    for name in ("ca.pem", "client.pem", "client.key", "stranger.pem", "stranger.key"):
        (directory / name).write_text(client.host.check_output(f"cat {client.directory}/{name}"))
    return directory


def round_trip(host, material, port: int, *, password: str, certificate: str = "client") -> bool:
    """Whether a message comes back to the client that published it."""
    transport = "websockets" if port == WEBSOCKET_PORT else "tcp"
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, transport=transport)
    context = ssl.create_default_context(cafile=material / "ca.pem")
    if certificate:
        context.load_cert_chain(material / f"{certificate}.pem", material / f"{certificate}.key")
    client.tls_set_context(context)
    client.username_pw_set("operator", password)
    if transport == "websockets":
        client.ws_set_options(path="/mqtt")
    received = []
    client.on_message = lambda *arguments: received.append(arguments[-1].payload)
    client.on_connect = lambda *_arguments: client.subscribe("operator/t", qos=1)
    client.on_subscribe = lambda *_arguments: client.publish("operator/t", "hello", qos=1)
    until = time.monotonic() + 6
    try:
        client.connect(host.ipv4, port, keepalive=10)
        while not received and time.monotonic() < until:
            if client.loop(timeout=0.2) != mqtt.MQTT_ERR_SUCCESS:
                break
    except (OSError, ValueError):  # paho's name for a handshake that failed
        pass
    finally:
        client.disconnect()
    return received == [b"hello"]


@pytest.mark.parametrize("port", [TLS_PORT, WEBSOCKET_PORT])
def test_a_user_with_certificate_and_password_gets_through(through_nginx, material, port):
    tries = (round_trip(through_nginx, material, port, password=USERS["operator"]) for _try in range(3))
    assert any(tries)


@pytest.mark.parametrize("port", [TLS_PORT, WEBSOCKET_PORT])
@pytest.mark.parametrize(
    ("password", "certificate"),
    [("wrong-password", "client"), (USERS["operator"], ""), (USERS["operator"], "stranger")],
)
def test_nobody_else_does(through_nginx, material, port, password, certificate):
    assert not round_trip(through_nginx, material, port, password=password, certificate=certificate)


@pytest.mark.parametrize("port", [TLS_PORT, WEBSOCKET_PORT])
@pytest.mark.parametrize("suite", ["AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-CBC-SHA384"])
def test_suites_that_the_broker_would_take_are_refused(outsider, through_nginx, port, suite):
    certificate = "-cert /root/mqtt/client.pem -key /root/mqtt/client.key"
    command = f"timeout 5 openssl s_client -connect {through_nginx.ipv4}:{port} -tls1_2 {certificate} -cipher"
    assert "Cipher is ECDHE" in outsider.run(f"{command} ECDHE-ECDSA-AES128-GCM-SHA256 </dev/null").stdout
    assert "Cipher is ECDHE" not in outsider.run(f"{command} {suite}:@SECLEVEL=0 </dev/null").stdout


def test_the_listeners_behind_it_stay_inside(outsider, through_nginx):
    for port in (1883, 8083):
        assert outsider.run(f"nc -z -w 2 {through_nginx.ipv4} {port}").rc != 0
        connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert (
            through_nginx.run("setpriv --reuid www-data --regid www-data --clear-groups python3 -c %s", connect).rc == 0
        )
        assert through_nginx.run("setpriv --reuid nobody --regid nogroup --clear-groups python3 -c %s", connect).rc != 0


def test_the_websocket_port_is_nothing_else(outsider, through_nginx):
    with_certificate = (
        "curl -sk -m 5 --cert /root/mqtt/client.pem --key /root/mqtt/client.key -o /dev/null -w %{http_code}"
    )
    base = f"https://bookworm:{WEBSOCKET_PORT}"
    assert outsider.run(f"{with_certificate} {base}/mqtt").stdout == "400"
    assert outsider.run(f"{with_certificate} {base}/api/v4/brokers").stdout == "404"
