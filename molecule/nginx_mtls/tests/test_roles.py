# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every end point of the broker, by every method, for every role: arrived (the broker's own 401) or refused (403)."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import json
import time

import front
import pytest
import scenario
from scenario import USERS

#: Below /api/v4. What the broker lists, what it serves beyond that, and some that it does not know at all.
ENDPOINTS = [
    "",
    "/",
    "/brokers",
    "/nodes",
    "/clients",
    "/clients/somebody",
    "/clients/username/somebody",
    "/clients/username",
    "/clients/somebody/more",
    "/clients/username/somebody/more",
    "/subscriptions",
    "/subscriptions/somebody",
    "/subscriptions/somebody/more",
    "/rules",
    "/rules/1",
    "/rules/1/more",
    "/mqtt/subscribe",
    "/mqtt/publish",
    "/mqtt/unsubscribe",
    "/mqtt/subscribe_batch",
    "/mqtt/publish_batch",
    "/mqtt/unsubscribe_batch",
    "/mqtt",
    "/mqtt/publish/more",
    "/bridges",
    "/bridges/one",
    "/bridges/one/more",
    "/bridges/switch/one",
    "/bridges/sub/one",
    "/bridges/unsub/one",
    "/bridges/other/one",
    "/topic-tree",
    "/reload",
    "/configuration",
    *(
        f"/configuration/{part}"
        for part in (
            *("basic", "tls", "http_server", "websocket", "webhook", "auth", "auth_http", "sqlite", "bridge"),
            *("aws_bridge", "unknown"),
        )
    ),
    "/config_update",
    "/ctrl/stop",
    "/ctrl/restart",
    "/ctrl/start",
    "/metrics",
    "/metrics/more",
    "/prometheus",
    "/get_file",
    "/tools/aes_enc",
    "/unknown",
]
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]

VIEWER = {
    *(("GET", path) for path in ("/metrics", "/prometheus", "/nodes", "/brokers", "/topic-tree")),
    *(("GET", path) for path in ("/clients", "/clients/somebody", "/clients/username", "/clients/username/somebody")),
    *(("GET", path) for path in ("/subscriptions", "/subscriptions/somebody")),
}
PUBLISHER = {("POST", "/mqtt/publish"), ("POST", "/mqtt/publish_batch")}
BRIDGE_OPERATOR = {
    ("GET", "/bridges"),
    ("GET", "/bridges/one"),
    ("PUT", "/bridges/one"),
    ("POST", "/bridges/sub/one"),
    ("POST", "/bridges/unsub/one"),
    ("POST", "/bridges/switch/one"),
}
ADMIN = {
    *VIEWER,
    *PUBLISHER,
    ("GET", "/rules"),
    ("GET", "/rules/1"),
    ("DELETE", "/rules/1"),
    ("GET", "/reload"),
}
#: {certificate: what it may}
ALLOWED = {
    "viewer": VIEWER,
    "publisher": PUBLISHER,
    "bridge_operator": BRIDGE_OPERATOR,
    "admin": ADMIN,
    "deputy": VIEWER | BRIDGE_OPERATOR,
    "counter": {("GET", "/metrics"), ("GET", "/clients/somebody"), ("GET", "/clients/username")},
    "nobody": set(),
    "expired": set(),
    None: set(),
}
CALLS = list(itertools.product(METHODS, ENDPOINTS))


@pytest.mark.parametrize("certificate", ALLOWED)
def test_every_end_point(broker, recorder, certificate):
    allowed = ALLOWED[certificate]
    assert allowed <= set(CALLS)
    calls = [(method, f"/api/v4{path}") for method, path in CALLS]
    recorder.streams()
    got = front.answers(broker, certificate, calls)
    received = collections.Counter((request.method, request.target) for request in recorder.requests())
    # The API without its slash is outside of it, where a bad certificate alone is refused before that.
    wrong = [
        (*call, status)
        for call, (status, _body) in zip(CALLS, got, strict=True)
        if status not in ({401} if call in allowed else {404} if call[1] == "" and certificate != "expired" else {403})
    ]
    assert wrong == []
    assert received == collections.Counter((method, f"/api/v4{path}") for method, path in allowed)
    bodies = {json.loads(body)["code"] for call, (_s, body) in zip(CALLS, got, strict=True) if call in allowed}
    assert bodies <= {104}  # the broker's own word for a call without a token


@pytest.mark.parametrize(
    "path", ["/", "/index.html", "/api", "/api/", "/api/v3/metrics", "/api/v4x", "/mqtt", "/.well-known/x"]
)
def test_outside_of_the_api_there_is_nothing(broker, recorder, path):
    recorder.streams()
    for certificate in ("admin", None):
        assert front.statuses(broker, certificate, [(method, path) for method in METHODS]) == [404] * len(METHODS)
    assert recorder.requests() == []


def test_a_viewer_with_a_token_gets_what_the_broker_says(broker):
    header = front.with_token()
    calls = [("GET", f"/api/v4{path}", header) for path in ("/brokers", "/nodes", "/clients", "/prometheus")]
    got = front.answers(broker, "viewer", calls)
    assert [status for status, _body in got] == [200] * 4
    assert json.loads(got[0][1])["data"][0]["node_status"] == "Running"
    assert "nanomq_connections_count" in got[3][1]
    wrong = {"Authorization": "Bearer x.y.z"}
    assert front.statuses(broker, "viewer", [("GET", "/api/v4/brokers", wrong)]) == [401]


def test_a_token_alone_opens_nothing(broker, recorder):
    recorder.streams()
    header = front.with_token()
    for certificate in (None, "nobody", "publisher"):
        assert front.statuses(broker, certificate, [("GET", "/api/v4/brokers", header)]) == [403]
    assert recorder.requests() == []


def test_what_a_publisher_publishes_reaches_a_subscriber(client, outsider, broker):
    topic = f"operator/{time.monotonic_ns()}"
    common = (
        f"-h {broker.ipv4} -p 8883 --cafile /root/mqtt/ca.pem --cert /root/mqtt/client.pem --key /root/mqtt/client.key"
    )
    subscribe = f"timeout 20 mosquitto_sub {common} -u operator -P {USERS['operator']} -t {topic} -C 2 -W 15"
    header = front.with_token() | {"Content-Type": "application/json"}
    one = {"topic": topic, "payload": "from outside", "qos": 0, "retain": False, "clientid": "rest"}
    calls = [
        ("POST", "/api/v4/mqtt/publish", header, json.dumps(one)),
        ("POST", "/api/v4/mqtt/publish_batch", header, json.dumps([one | {"payload": "in a batch"}])),
    ]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # Output that is not to a terminal comes when it ends, after the second message.
        subscriber = pool.submit(front.ssh, "outsider", f"{subscribe}; true")
        for _try in range(8):  # the subscriber may still be on its way
            time.sleep(1)
            if subscriber.done():
                break
            got = front.answers(broker, "publisher", calls)
            assert [(status, json.loads(body)["code"]) for status, body in got] == [(200, 0)] * 2
        assert set(subscriber.result().splitlines()) == {"from outside", "in a batch"}


def test_only_what_is_needed_is_passed_on(broker, recorder):
    recorder.streams()
    sent = {
        "Authorization": "Bearer x",
        "Accept": "text/plain",
        "Content-Type": "application/json",
        "User-Agent": "curious",
        "X-Forwarded-For": "127.0.0.1",
        "X-Anything": "y",
        "Cookie": "a=b",
        "Range": "bytes=0-",
        "Accept-Encoding": "gzip",
    }
    front.statuses(broker, "publisher", [("POST", "/api/v4/mqtt/publish", sent, "{}")])
    (request,) = recorder.requests()
    assert request.body == b"{}"
    assert (
        dict(request.headers).items()
        >= {
            "authorization": "Bearer x",
            "accept": "text/plain",
            "content-type": "application/json",
            "content-length": "2",
        }.items()
    )
    assert {name for name, _value in request.headers} <= front.EXPECTED_HEADERS


def test_nobody_without_a_certificate_unless_it_is_declared(fleet):
    """With optional certificates those without one have the declared roles, and bad ones still have none."""
    calls = [("GET", "/api/v4/metrics"), ("GET", "/api/v4/nodes"), ("POST", "/api/v4/mqtt/publish")]
    run = front.harden(
        hosts=front.FLEET,
        nanomq_nginx_client_certificates="optional",
        nanomq_nginx_anonymous_roles=["counter"],
    )
    try:
        assert run.status == 0, run.output
        for broker in fleet:
            assert front.statuses(broker, None, calls) == [401, 403, 403]
            assert front.statuses(broker, "publisher", calls) == [403, 403, 401]
            assert front.statuses(broker, "nobody", calls) == [403, 403, 403]
            for bad in ("expired", "revoked", "other-ca", "device"):
                assert front.statuses(broker, bad, calls) == [403, 403, 403]
    finally:
        assert front.harden(hosts=front.FLEET).status == 0
    assert [front.statuses(broker, None, calls) for broker in fleet] == [[403, 403, 403]] * 2


def test_a_role_with_what_leaks_or_kills_is_refused(callers):
    """Each of these would be enough; the run names them all."""
    entries = {
        "reader": "GET /configuration",
        "tls_reader": "GET /configuration/tls",
        "any_reader": "GET /configuration/*",
        "anything": "GET /*/*",
        "reloader": "POST /reload",
        "ruler": "POST /rules",
        "writer": "POST /config_update",
        "stopper": "POST /ctrl/stop",
        "controller": "POST /ctrl/*",
        "poster": "POST /*",
        "configurer": "POST /configuration/auth",
    }
    roles = {name: ["GET /metrics", entry] for name, entry in entries.items()}
    clients = [{"role": name, "common_names": ["chief"]} for name in roles]
    before = front.main_pid(known := scenario.connect("bookworm"), "nginx")
    run = front.harden("--check", hosts="bookworm", nanomq_nginx_roles=roles, nanomq_nginx_clients=clients)
    assert run.status != 0
    assert run.recap("bookworm")["failed"] == 1
    assert [name for name in entries if name not in run.flat()] == []
    assert front.main_pid(known, "nginx") == before


def test_a_waiver_lets_it_through(fleet):
    broker = fleet[0]
    waiver = {"rule": "NMQ-ACL-010", "reason": "the scenario of roles", "expires": "2099-12-31"}
    options = {"nanomq_nginx_roles": {"counter": ["GET /metrics", "GET /configuration/basic"]}}
    try:
        run = front.harden(hosts=broker.name, nanomq_nginx_waivers=[waiver], **options)
        assert run.status == 0, run.output
        calls = [("GET", f"/api/v4/configuration{part}") for part in ("/basic", "/tls", "")]
        assert front.statuses(broker, "counter", calls) == [401, 403, 403]
        assert front.statuses(broker, "admin", calls) == [403, 403, 403]
    finally:
        assert front.harden(hosts=broker.name).status == 0
