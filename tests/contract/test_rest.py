"""The REST interface: who gets in, what it tells, and what it lets anybody do who is in."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import socket
import subprocess

import pytest
from harness import ADMIN, HTTP, HTTP_PORT, QUIET, TCP, Reply, refused, request, wait_for
from material import public_pem, token

BASE = QUIET + TCP + HTTP


def http(*lines: str) -> str:
    """Configuration with these lines in the block of the HTTP server."""
    text = "\n".join((f"port = {HTTP_PORT}", 'ip_addr = "127.0.0.1"', *lines))
    return f"{QUIET}{TCP}http_server {{\n{text}\n}}\n"


ADDRESSES = {
    "none": ("", "0.0.0.0"),
    "loopback": ('ip_addr = "127.0.0.1"', "127.0.0.1"),
    "empty": ('ip_addr = ""', "0.0.0.0"),
    "name": ('ip_addr = "localhost"', "127.0.0.1"),
    "IPv6": ('ip_addr = "[::1]"', "::1"),
    "another key": ('url = "127.0.0.1"', "0.0.0.0"),
    "off by a key that is none": ("enable = false", "0.0.0.0"),
}


@pytest.mark.parametrize(("line", "address"), ADDRESSES.values(), ids=ADDRESSES)
def test_address(broker, line, address):
    if not broker.does("ip_addr is read"):
        address = "0.0.0.0"
    running = broker(QUIET + TCP + f"http_server {{ port = {HTTP_PORT}\n{line} }}\n")
    assert f"{address}:{HTTP_PORT}" in running.listens()


@pytest.mark.parametrize(
    ("text", "port"), [("9081", 9081), ('"9081"', 8081), ("-1", 8081), ("0", 8081), ("74617", 9081)]
)
def test_port(broker, text, port):
    running = broker(QUIET + TCP + f'http_server {{ port = {text}, ip_addr = "127.0.0.1" }}\n')
    assert {address.rpartition(":")[2] for address in running.listens()} == {"1883", str(port)}


def test_basic_authentication(broker):
    running = broker(http("username = admin", 'password = "s3cret"'))
    assert running.get("/nodes", ("admin", "s3cret")).status == 200
    assert running.get("/nodes", None) == Reply(401, {"code": 104})
    assert running.get("/nodes", ("admin", "public")) == Reply(401, {"code": 103})
    assert running.get("/nodes", ("other", "s3cret")) == Reply(401, {"code": 103})
    assert running.get("/nodes", "Bearer abc") == Reply(401, {"code": 104})
    assert running.get("/nodes", "basic YWRtaW46czNjcmV0") == Reply(401, {"code": 104})


@pytest.mark.parametrize(("text", "status"), [("basc", 401), ('"JWT"', 401), ("no_auth", 200), ("basic", 401)])
def test_authentication_type(broker, text, status):
    """A type that does not exist is basic, in silence."""
    running = broker(http(f"auth_type = {text}"))
    assert running.get("/nodes", None).status == status


def test_everything_below_the_root_asks_for_authentication(broker):
    running = broker(BASE)
    for path in ("", "/metrics", "/prometheus", "/configuration", "/nonsense"):
        assert running.get(path, None).status == 401, path
    assert running.post("/reload", {"data": {}}, None).status == 401


def test_nothing_outside_the_root(broker):
    broker(BASE)
    for path in ("/", "/api/v5/nodes", "/api/v4nodes", "/index.html"):
        assert request("GET", path, None, root="").status == 404, path
    assert request("POST", "/", None, root="").status == 405


def test_a_folder_named_dist_is_there_for_everybody(broker):
    """In the working directory, from the moment that it is made."""
    broker(BASE)
    assert request("GET", "/page.html", None, root="").status == 404
    (broker.directory / "dist").mkdir()
    (broker.directory / "dist/page.html").write_text("of everybody")
    assert request("GET", "/page.html", None, root="") == Reply(200, "of everybody")


def test_connections_that_say_nothing_stay_and_are_not_counted(broker):
    running = broker(http("limit_conn = 2"))
    silent = [socket.create_connection(("127.0.0.1", HTTP_PORT), 5) for _number in range(8)]
    try:
        for connection in silent:
            connection.sendall(b"GET /api/v4/nodes HTTP/1.1\r\n")
            connection.settimeout(0.3)
        assert running.get("/nodes").status == 200
        for connection in silent:
            with pytest.raises(TimeoutError):
                connection.recv(1)
    finally:
        for connection in silent:
            connection.close()


def test_any_host_header_will_do(broker):
    broker(BASE)
    assert request("GET", "/nodes", ADMIN, Host="attacker.example").status == 200


def test_statuses(broker):
    running = broker(BASE)
    assert running.get("/nonsense") == Reply(404, {"code": 102})
    assert running.get("/configuration/nonsense") == Reply(404, {"code": 101, "data": {}})
    assert running.post("/nodes", {}).status == 404
    assert request("DELETE", "/nodes", ADMIN).status == 404
    assert request("PATCH", "/nodes", ADMIN).status == 405
    assert running.post("/reload", "no json") == Reply(400, {"code": 109})


def test_end_points(broker):
    listed = broker(BASE).get().body["data"]
    assert {"/configuration/tls", "/ctrl/:action", "/config_update"} <= {entry["path"] for entry in listed}
    assert {"path", "name", "method", "descr"} == set(listed[0])
    assert any(entry["path"].endswith("get_file") for entry in listed) is broker.does("GET get_file")
    if broker.version >= (0, 25, 3):
        assert len(listed) == 41


def test_version_and_state(broker):
    running = broker(BASE)
    for path in ("/brokers", "/nodes"):
        entry = running.get(path).body["data"][0]
        assert entry["version"].startswith(".".join(map(str, broker.version)))
        assert entry["node_status"] == "Running"
    assert "memory" in running.get("/metrics").body
    assert "nanomq_connections_count 0" in running.get("/prometheus").body


def shape(value: object) -> object:
    """Names of an object, all the way down."""
    if isinstance(value, dict):
        return {name: shape(child) for name, child in value.items()}
    return [shape(child) for child in value] if isinstance(value, list) else type(value).__name__


TLS_SHAPE = {
    "enable": "bool",
    "url": "NoneType",
    "key_password": "NoneType",
    "key": "NoneType",
    "cert": "NoneType",
    "cacert": "NoneType",
    "verify_peer": "bool",
    "fail_if_no_peer_cert": "bool",
}
REQUEST_SHAPE = {"url": "NoneType", "method": "NoneType", "headers": {}, "params": [], "tls": TLS_SHAPE}
SHAPE = {
    "basic": {
        "url": "str",
        "num_taskq_thread": "int",
        "max_taskq_thread": "int",
        "parallel": "int",
        "property_size": "int",
        "daemon": "bool",
        "max_packet_size": "int",
        "client_max_packet_size": "int",
        "msq_len": "int",
        "qos_duration": "int",
        "keepalive_backoff": "float",
        "allow_anonymous": "bool",
        "ipc_internal": "bool",
    },
    "tls": TLS_SHAPE,
    "auth": [],
    "auth_http": {
        "enable": "bool",
        "timeout": "int",
        "connect_timeout": "int",
        "pool_size": "int",
        "cache_ttl": "int",
        "auth_req": REQUEST_SHAPE,
        "acl_req": REQUEST_SHAPE,
        "super_req": REQUEST_SHAPE,
    },
    "websocket": {"enable": "bool", "tls_enable": "bool", "url": "NoneType", "tls_url": "NoneType"},
    "http_server": {
        "enable": "bool",
        "port": "int",
        "addr": "str",
        "username": "str",
        "password": "str",
        "auth_type": "str",
    },
    "sqlite": {
        "enable": "bool",
        "disk_cache_size": "int",
        "flush_mem_threshold": "int",
        "resend_interval": "int",
        "mounted_file_path": "NoneType",
    },
    "bridge": {"nodes": []},
}


def test_shape_of_the_configuration(broker):
    """What a validator reads back: the very names, and no others."""
    expected = copy.deepcopy(SHAPE)
    for section, name, behaviour in (
        ("auth_http", "cache_ttl", "auth_http.cache_ttl is shown"),
        ("websocket", "tls_enable", "TLS brings a websocket"),
        ("http_server", "addr", "ip_addr is read"),
    ):
        if not broker.does(behaviour):
            del expected[section][name]
    running = broker(BASE)
    whole = running.get("/configuration").body["data"]
    if "sqlite" in whole["bridge"]:
        # The cache of bridges, in a build with SQLite.
        expected["bridge"]["sqlite"] = expected["sqlite"]
    assert shape(whole) == expected
    for name, section in whole.items():
        assert running.section(name) == section


def test_the_configuration_tells_secrets(broker):
    running = broker(http('password = "s3cret"') + 'auth { password { "user" = "clear" } }\n')
    auth = ("admin", "s3cret")
    assert running.section("http_server", auth)["password"] == "s3cret"
    assert running.section("auth", auth) == [{"login": "user", "password": "clear"}]


def test_no_authentication_calls_itself_basic(broker):
    assert broker(http("auth_type = no_auth")).section("http_server", None)["auth_type"] == "basic"


def test_anonymous_access_can_be_switched_on_at_run_time(broker, connect):
    running = broker(BASE + 'auth { allow_anonymous = false, password { "u" = "p" } }\n')
    assert connect().outcome == refused(broker, None)
    assert running.post("/reload", {"data": {"allow_anonymous": True}}) == Reply(200, {"code": 0})
    assert connect().outcome == "accepted"


def test_the_rest_password_can_be_changed_at_run_time(broker):
    running = broker(http('password = "s3cret"'))
    change = {"data": {"http_server": {"password": "taken"}}}
    assert running.post("/configuration/http_server", change, ("admin", "s3cret")).status == 200
    assert running.get("/nodes", ("admin", "s3cret")).status == 401
    assert running.get("/nodes", ("admin", "taken")).status == 200


def test_users_can_be_replaced_at_run_time(broker, connect):
    running = broker(BASE + 'auth { allow_anonymous = false, password { "u" = "p" } }\n')
    running.post("/configuration/auth", {"data": {"auth": [{"username": "v", "password": "q"}]}})
    new, old = ("v", "q"), ("u", "p")
    if not broker.does("users can be replaced through REST"):
        new, old = old, new
    assert connect(user=old).outcome == refused(broker, old)
    assert connect(user=new).outcome == "accepted"


def test_the_configuration_file_can_be_overwritten(broker):
    running = broker(BASE)
    text = TCP + "# new\n"
    assert running.post("/config_update", text) == Reply(200, {"code": 0})
    assert (broker.directory / "nanomq.conf").read_text() == text


DEATHS = {
    "password of its own, where it has the default": (
        "/configuration/http_server",
        {"data": {"http_server": {"password": "taken"}}},
    ),
    "user called login": ("/configuration/auth", {"data": {"auth": [{"login": "u", "password": "p"}]}}),
    "configuration that does not parse": ("/config_update", "a {"),
    "empty configuration": ("/config_update", "# nothing"),
}


@pytest.mark.parametrize(("path", "data"), DEATHS.values(), ids=DEATHS)
def test_requests_that_end_the_broker(broker, path, data):
    running = broker(BASE)
    if path == "/configuration/auth" and not broker.does("a user called login ends the broker"):
        assert running.post(path, data) == Reply(200, {"code": 0})
    elif path == "/config_update" and not broker.does("a bad config_update ends the broker"):
        assert running.post(path, data) == Reply(400, {"code": 117})
    else:
        with pytest.raises(ConnectionError):
            running.post(path, data)
        assert running.exit_code() == 1
        return
    assert running.process.poll() is None


def test_a_password_for_rest_under_tokens_ends_the_broker(broker):
    (broker.directory / "jwt.pub").write_bytes(public_pem())
    running = broker(http("auth_type = jwt", f'jwt {{ public {{ keyfile = "{broker.directory}/jwt.pub" }} }}'))
    with pytest.raises(ConnectionError):
        running.post("/configuration/http_server", {"data": {"http_server": {"password": "x"}}}, f"Bearer {token()}")
    assert running.exit_code() == 1


def test_rules_are_refused_where_there_is_no_rule_engine(broker):
    running = broker(BASE)
    if running.has_rule_engine:
        pytest.skip("this one was built with it: test_rule_engine.py")
    assert running.post("/rules", {}) == Reply(200, {"code": 111})
    assert running.get("/nodes").status == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_configuration_file_that_the_service_cannot_write_is_not_overwritten(broker):
    path = broker.write(BASE)
    path.chmod(0o644)
    running = broker(None, "--conf", path, user=65534)
    with pytest.raises(ConnectionError):
        running.post("/config_update", TCP + "# new\n")
    assert running.exit_code() == 1, "and it ends"
    assert path.read_text() == BASE


BRIDGE = (
    'bridges.mqtt.up {{ server = "mqtt-tcp://127.0.0.1:9", username = "u", password = "hidden", enable = {}\n'
    'forwards = [{{ local_topic = "a", remote_topic = "b" }}] }}\n'
)


@pytest.mark.parametrize("switch", ["true", "false"])
def test_the_configuration_tells_the_passwords_of_bridges(broker, switch):
    """Of those that are switched off as well."""
    running = broker(BASE + BRIDGE.format(switch))
    (node,) = running.section("bridge")["nodes"]
    assert node["name"] == "up"
    assert node["enable"] is (switch == "true" or not broker.does("bridges.enable is heeded"))
    assert node["connector"]["server"] == "mqtt-tcp://127.0.0.1:9"
    assert node["connector"]["password"] == "hidden"
    assert node["forwards"] == [{"remote_topic": "b", "local_topic": "a"}]
    assert running.get("/bridges").body["data"]["bridge"]["nodes"] == [node]


def test_publish(broker, connect):
    running = broker(BASE)
    client = connect()
    client.subscribe("a/b")
    name = {} if broker.does("REST publishes without a clientid") else {"clientid": "rest"}
    message = {"topic": "a/b", "payload": "hello", "qos": 0}
    assert running.post("/mqtt/publish", message | name) == Reply(200, {"code": 0})
    assert client.receives("a/b")
    assert running.post("/mqtt/publish", message) == Reply(200, {"code": 108 if name else 0})
    assert running.post("/mqtt/publish", {"topic": "a/#", "payload": "x", "qos": 9} | name) == Reply(200, {"code": 0})
    assert running.post("/mqtt/publish", {"payload": "x"} | name).code not in (0, None)


def test_rules_for_topics_are_asked_by_the_clientid_of_the_message(broker, connect):
    """Whoever may publish through REST is whom the body says; a denied message is acknowledged all the same."""
    running = broker(
        BASE + "auth { allow_anonymous = true, no_match = deny, acl { rules = [\n"
        '{ permit = allow, action = subscribe, topics = ["#"] }\n'
        '{ permit = allow, clientid = "plc", topics = ["t/#"] }\n] } }\n'
    )
    client = connect("reader")
    assert client.subscribe("#") == 0
    for topic, clientid in (("t/1", "other"), ("t/2", "plc")):
        message = {"topic": topic, "payload": "x", "clientid": clientid}
        assert running.post("/mqtt/publish", message) == Reply(200, {"code": 0})
    assert client.receives("t/2")
    assert [topic for topic, _payload in client.messages] == ["t/2"]


def test_clients_and_subscriptions(broker, connect):
    running = broker(BASE)
    connect("device-1", user=("u", "p")).subscribe("a/b", 1)
    (client,) = running.get("/clients").body["data"]
    assert client["client_id"] == "device-1"
    assert client["username"] == "u"
    assert client["conn_state"] == "connected"
    assert running.get("/clients/device-2").body["data"] == []
    assert len(running.get("/clients/device-1").body["data"]) == 1
    assert running.get("/subscriptions").body["data"] == [{"clientid": "device-1", "topic": "a/b", "qos": 1}]


def test_stop(broker):
    running = broker(BASE)
    assert running.post("/ctrl/stop", "") == Reply(200, {"code": 0})
    if broker.does("commands do not find the broker"):
        with pytest.raises(subprocess.TimeoutExpired):
            running.exit_code(4)
    else:
        assert running.exit_code() == 0


def test_restart_leaves_a_broker_without_a_supervisor(broker):
    """The one that was started is killed, and a child of its own goes on."""
    running = broker(BASE)
    assert running.post("/ctrl/restart", "") == Reply(200, {"code": 0})
    if broker.does("commands do not find the broker"):
        with pytest.raises(subprocess.TimeoutExpired):
            running.exit_code(4)
        return
    assert running.exit_code() in (0, -signal.SIGKILL)

    def successor() -> int:
        with contextlib.suppress(OSError, ValueError):
            pid = int((broker.directory / "pid").read_bytes().rstrip(b"\0"))
            return pid if pid != running.process.pid else 0
        return 0

    pid = wait_for(successor)
    wait_for(lambda: any(address.endswith(f":{HTTP_PORT}") for address in running.listens()))
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not running.listens())


def raw(data: bytes) -> bytes:
    """Answer to bytes that no HTTP library would send."""
    answer = b""
    with socket.create_connection(("127.0.0.1", HTTP_PORT), 5) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(4096):
            answer += part
    return answer


def test_limits_come_before_authentication(broker):
    broker(http("max_body = 100"))
    too_much = 400 if broker.does("max_body is read") else 401
    assert request("POST", "/reload", None, body="x" * 101).status == too_much
    assert request("POST", "/reload", None, body="x" * 99).status == 401
    assert raw(b"GET /api/v4/nodes HTTP/1.1\r\nHost: x\r\nAuthorization: " + b"x" * 10_000 + b"\r\n\r\n") == b""
    assert raw(b"GET /api/v4/nodes HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(b"nonsense\r\n\r\n") == b""
    assert request("GET", "/nodes", ADMIN).status == 200
