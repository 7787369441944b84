"""Where a bridge leads, whom it takes for the right server, and what gets across."""

from __future__ import annotations

import socket
import ssl
import time

import pytest
from harness import DENIED_LEAVES, FAR_PLAIN_PORT, FAR_PORT, FAR_USER, MQTT_PORT, QUIET, TCP, topics, wait_for
from material import authority, certificate, private_pem

#: Seconds in which a bridge that gets across has done so.
ACROSS, NOT_ACROSS = 12, 2


def bridge(broker, server=f"tls+mqtt-tcp://127.0.0.1:{FAR_PORT}", ssl="ca", password=FAR_USER[1], lines=""):
    """A configuration with a bridge; ssl: `ca`, `client` (with a certificate of its own too), or the block's text."""
    directory = broker.directory
    pair = certificate("client")
    (directory / "bridge-ca.pem").write_bytes(authority("authority").pem)
    (directory / "bridge.pem").write_bytes(pair.pem)
    (directory / "bridge.key").write_bytes(private_pem(pair.key))
    ca = f'cacertfile = "{directory}/bridge-ca.pem"'
    own = f'certfile = "{directory}/bridge.pem", keyfile = "{directory}/bridge.key"'
    block = {"ca": f"ssl {{ {ca} }}", "client": f"ssl {{ {ca}, {own} }}"}.get(ssl, ssl)
    return (
        QUIET
        + TCP
        + (
            f'bridges.mqtt.up {{ server = "{server}", clientid = "up", keepalive = "60s"\n'
            f'username = "{FAR_USER[0]}", password = "{password}"\n'
            "proto_ver = 4, clean_start = true, max_parallel_processes = 2\n"
            "max_send_queue_len = 32, max_recv_queue_len = 128\n"
            f"{block}\n{lines}\n"
            'forwards = [{ remote_topic = "out/x", local_topic = "local/x", qos = 1 }]\n'
            'subscription = [{ remote_topic = "down/x", local_topic = "in/x", qos = 1 }] }\n'
        )
    )


def crosses(connect, seconds=ACROSS):
    """Whether messages get (there, back)."""
    # Before 0.24.14 a message that is forwarded while the bridge connects costs it its subscription.
    time.sleep(1.5)
    near, there = connect("near", port=MQTT_PORT), connect("there", port=FAR_PLAIN_PORT, user=FAR_USER)
    assert (near.outcome, there.outcome) == ("accepted", "accepted")
    assert there.subscribe("out/x") == 0
    up = _arrives(near, "local/x", there, "out/x", seconds)
    # Older ones deliver nothing to who had subscribed before the bridge did, so that each attempt is another client's.
    for attempt in range(4):
        near.close()
        near = connect(f"near{attempt}", port=MQTT_PORT)
        assert near.subscribe("in/x") == 0
        if down := _arrives(there, "down/x", near, "in/x", seconds / 4):
            break
    near.close()
    there.close()
    return up, down


def _arrives(speaker, topic, listener, there, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        speaker.publish(topic, "hello")
        if listener.receives(there, 0.25):
            return True
    return False


BOTH, NONE = (True, True), (False, False)


def test_messages_and_the_password_get_across_in_both_directions(broker, connect, far):
    far()
    broker(bridge(broker))
    assert crosses(connect) == BOTH


def test_without_tls_messages_and_the_password_go_in_clear(broker, connect, far):
    far()
    broker(bridge(broker, f"mqtt-tcp://127.0.0.1:{FAR_PLAIN_PORT}", ssl=""))
    up, down = crosses(connect)
    # In these trials 0.22.10 and 0.23.1 brought nothing back without TLS.
    assert up
    assert down or broker.version < (0, 24)


def test_a_block_for_tls_beside_a_plain_scheme_keeps_the_bridge_from_connecting(broker, connect, far):
    far()
    broker(bridge(broker, f"mqtt-tcp://127.0.0.1:{FAR_PLAIN_PORT}"))
    assert crosses(connect, NOT_ACROSS) == NONE


def test_a_wrong_password_gets_nowhere(broker, connect, far):
    far()
    broker(bridge(broker, password="wrong"))
    assert crosses(connect, NOT_ACROSS) == NONE


def test_the_name_in_the_certificate_is_never_looked_at(broker, connect, far):
    far(certificate("other.example"))
    broker(bridge(broker, f"tls+mqtt-tcp://localhost:{FAR_PORT}"))
    assert crosses(connect) == BOTH


WRONG = {
    "another authority": lambda: certificate("localhost", issuer="evil authority"),
    "expired": lambda: certificate("localhost", days=(-3, -1)),
}


@pytest.mark.parametrize("pair", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("lines", ["", "verify_peer = true, fail_if_no_peer_cert = true"], ids=["", "verify_peer"])
def test_who_the_server_is(broker, connect, far, pair, lines):
    far(pair())
    ssl = f'ssl {{ cacertfile = "{broker.directory}/bridge-ca.pem"\n{lines} }}'
    broker(bridge(broker, ssl=ssl))
    if broker.does("a bridge verifies the chain"):
        assert crosses(connect, NOT_ACROSS) == NONE
    else:
        assert crosses(connect) == BOTH


def test_a_bridge_without_a_ca(broker, connect, far):
    far()
    broker(bridge(broker, ssl="ssl { enable = true }"))
    if broker.does("a bridge verifies the chain"):
        assert crosses(connect, NOT_ACROSS) == NONE
    else:
        assert crosses(connect) == BOTH


def test_a_bridge_by_tls_without_its_block_never_connects(broker, connect, far):
    far()
    broker(bridge(broker, ssl=""))
    assert crosses(connect, NOT_ACROSS) == NONE


@pytest.mark.parametrize(("ssl", "expected"), [("client", BOTH), ("ca", NONE)], ids=["certificate", "none"])
def test_a_bridge_shows_its_certificate(broker, connect, far, ssl, expected):
    far(mutual=True)
    broker(bridge(broker, ssl=ssl))
    assert crosses(connect, ACROSS if expected == BOTH else NOT_ACROSS) == expected


def test_a_far_end_that_is_away_is_no_reason_not_to_start(broker, connect, far):
    running = broker(bridge(broker))
    assert connect("alone").publish("other/x")
    far()
    assert crosses(connect) == BOTH
    assert running.process.poll() is None


def test_a_bridge_comes_back_by_itself(broker, connect, far):
    running = broker(bridge(broker))
    there = far()
    assert crosses(connect) == BOTH
    there.terminate()
    there.wait(10)
    assert connect("alone").publish("other/x")
    far()
    assert crosses(connect, 2 * ACROSS) == BOTH
    assert running.process.poll() is None


@pytest.mark.parametrize(("who", "arrives"), [(FAR_USER[0], True), ("somebody", False)])
def test_what_a_bridge_brings_passes_the_rules_for_topics_as_its_user(broker, connect, far, who, arrives):
    """As the user and the client id that the bridge has at the far end, so that by default it is denied."""
    far()
    rules = (
        "auth { no_match = deny, acl { rules = [\n"
        f'{{ permit = "allow", username = "{who}", action = "publish", topics = ["in/#"] }}\n'
        '{ permit = "allow", action = "subscribe", topics = ["#"] }\n'
        '{ permit = "allow", clientid = "near", action = "publish", topics = ["local/#"] }] } }\n'
    )
    broker(rules + bridge(broker))
    up, down = crosses(connect, ACROSS if arrives else 4)
    assert (up, down) == (True, arrives)


@DENIED_LEAVES
@pytest.mark.parametrize("qos", [0, 1])
def test_a_denied_message_leaves_by_a_bridge(broker, connect, far, deny_action, leaves, qos):
    far()
    conf = bridge(broker, f"mqtt-tcp://127.0.0.1:{FAR_PLAIN_PORT}", ssl="")
    broker(topics(deny_action) + conf.replace('local_topic = "local/x"', 'local_topic = "+/x"'))
    there = connect("there", port=FAR_PLAIN_PORT, user=FAR_USER)
    assert there.subscribe("out/x") == 0
    for _attempt in range(20):
        near = connect("near", user=("u", "p"))
        near.publish("local/x", "allowed", qos)
        if there.receives("out/x", 0.5):
            break
    assert ("out/x", b"allowed") in there.messages
    near.publish("denied/x", "denied", qos)
    near.spin(lambda: near.outcome == "dropped", 0.5)
    assert near.outcome == ("accepted" if leaves else "dropped")
    assert there.spin(lambda: ("out/x", b"denied") in there.messages, 2) is leaves


def test_nobody_listens_for_a_bridge(broker):
    running = broker(bridge(broker))
    wait_for(lambda: running.listens() == {f"127.0.0.1:{MQTT_PORT}"})


def test_the_material_of_this_file_is_good(far):
    """The far end's certificate passes a client that verifies, so that what is refused is refused for a reason."""
    far()
    context = ssl.create_default_context(cadata=authority("authority").pem.decode())
    context.check_hostname = False
    with (
        socket.create_connection(("127.0.0.1", FAR_PORT), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        assert wrapped.version()
