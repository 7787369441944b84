"""The rule engine, where the broker was built with it: where a rule leads, what gets there, and what breaks.

Most packages are built without, and there, as with the double, these tests are skipped and say so.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import ssl
import stat
import struct
import threading
from functools import cache
from pathlib import Path

import pytest
from ansible_collections.edgesec.nanomq.plugins.module_utils import _schema
from harness import (
    DENIED_LEAVES,
    FAR_PLAIN_PORT,
    FAR_PORT,
    FAR_USER,
    HTTP,
    MQTT_PORT,
    QUIET,
    TCP,
    Reply,
    Starter,
    topics,
    wait_for,
)
from material import authority, certificate

BASE = QUIET + TCP + HTTP
SQL = 'SELECT topic, payload FROM "local/#"'
PLAIN = f"mqtt-tcp://127.0.0.1:{FAR_PLAIN_PORT}"
#: Seconds in which a rule that gets across has done so.
ACROSS, NOT_ACROSS = 10, 2
#: The first byte of a PUBLISH of QoS 0 with the flag DUP, which MQTT forbids (MQTT-3.3.1-2).
DUPLICATE = 0x38
RELAY_PORT = 8803
BUILT: dict[str, bool] = {}


@pytest.fixture(autouse=True)
def _needs_the_rule_engine(broker):
    """Asks each broker once."""
    name = broker.kind.id
    if name not in BUILT:
        BUILT[name] = broker(BASE).has_rule_engine
        broker.stop()
    if not BUILT[name]:
        pytest.skip(f"{name} has no rule engine: what is asserted here was seen on a NanoMQ that was built with it")


def quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def repub(sql: str = SQL, server: str = PLAIN, **more: str) -> str:
    """A rule that publishes to the far end."""
    keys = {"sql": sql, "server": server, "topic": "out/x", "clientid": "rule"}
    keys |= {"username": FAR_USER[0], "password": FAR_USER[1], **more}
    lines = ", ".join(f"{name} = {quoted(value)}" for name, value in keys.items() if value)
    return f"rules.repub {{ rules = [{{ {lines}, proto_ver = 4, keepalive = 60, clean_start = true }}] }}\n"


def store(broker: Starter, sql: str = SQL) -> str:
    """A rule that writes into a file of SQLite."""
    rule = f'{{ sql = {quoted(sql)}, table = "t" }}'
    return f'rules.sqlite {{ path = "{broker.directory}/rules.db", rules = [{rule}] }}\n'


def rows(broker: Starter, statement: str = "SELECT * FROM t") -> list[tuple]:
    with sqlite3.connect(broker.directory / "rules.db") as database:
        return database.execute(statement).fetchall()


def text(data: str) -> bytes:
    return struct.pack("!H", len(data)) + data.encode()


@cache
def hangs_up_on_duplicates() -> bool:
    """Whether the far end takes a PUBLISH of QoS 0 that says it is a duplicate for the error that it is."""
    body = text("MQTT") + bytes((4, 0xC2, 0, 60)) + text("duplicate") + text(FAR_USER[0]) + text(FAR_USER[1])
    with socket.create_connection(("127.0.0.1", FAR_PLAIN_PORT), 5) as far:
        far.sendall(bytes((0x10, len(body))) + body)
        assert far.recv(4) == bytes((0x20, 2, 0, 0))
        far.sendall(bytes((DUPLICATE, 4)) + text("x") + b"x" + bytes((0xC0, 0)))
        return far.recv(2) != bytes((0xD0, 0))


def across(connect, seconds: float = ACROSS, payload: str = "hello", topic: str = "local/x", **client) -> list[bytes]:
    """What gets to the far end of a message that is published until something does."""
    drops = client.pop("drops", False)
    if hangs_up_on_duplicates():
        pytest.skip("this mosquitto hangs up on what rules send: 2.0.11 takes it, 2.0.21 does not")
    near, there = connect(**{"clientid": "near", **client}), connect("there", port=FAR_PLAIN_PORT, user=FAR_USER)
    assert (near.outcome, there.outcome) == ("accepted", "accepted")
    assert there.subscribe("out/x") == 0
    for _attempt in range(round(2 * seconds)):
        assert near.publish(topic, payload) or drops
        if there.receives("out/x", 0.5):
            break
    return [body for _topic, body in there.messages]


# --- where it leads ---------------------------------------------------------------------------------------------------


def test_a_rule_publishes_to_the_far_end(broker, connect, far):
    far()
    broker(BASE + repub())
    assert across(connect)[0] == b'{"topic":"local/x","payload":"hello"}'


def test_a_rule_sends_what_mqtt_forbids(broker, connect):
    with socket.create_server(("127.0.0.1", FAR_PLAIN_PORT)) as server:
        server.settimeout(5)
        broker(BASE + repub())
        far, _address = server.accept()
        with far:
            far.settimeout(5)
            assert far.recv(4096)[0] == 0x10
            far.sendall(bytes((0x20, 2, 0, 0)))
            near = connect("near")
            near.spin(lambda: False, 0.5)
            assert near.publish("local/x")
            assert far.recv(4096)[0] == DUPLICATE


@pytest.fixture
def relay(broker):
    """Plain MQTT to RELAY_PORT goes on by TLS to a far end that is verified, as the relays of nanomq_nginx do."""
    context = ssl.create_default_context(cadata=authority("authority").pem.decode())
    stop = threading.Event()

    def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def serve(server):
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                near, _address = server.accept()
                try:
                    plain = socket.create_connection(("127.0.0.1", FAR_PORT), 5)
                    far = context.wrap_socket(plain, server_hostname="localhost")
                except OSError:
                    near.close()
                    continue
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", RELAY_PORT)) as server:
        server.settimeout(0.1)
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield f"mqtt-tcp://127.0.0.1:{RELAY_PORT}"
        broker.stop()
        stop.set()
        thread.join(5)


@pytest.mark.parametrize(
    ("names", "issuer", "arrives"),
    [("localhost", "authority", True), ("other.example", "authority", False), ("localhost", "evil authority", False)],
    ids=["the right one", "another name", "another authority"],
)
def test_a_rule_gets_by_a_relay_to_a_server_that_is_verified(broker, connect, far, relay, names, issuer, arrives):
    far(certificate(names, issuer=issuer))
    broker(BASE + repub(server=relay))
    assert bool(across(connect, ACROSS if arrives else NOT_ACROSS)) is arrives


@pytest.mark.parametrize("scheme", ["tls+mqtt-tcp", "wss"])
def test_a_rule_trusts_no_server_by_tls(broker, connect, far, scheme):
    """There is nowhere to name a CA, and without one it takes no certificate, be it good."""
    far()
    running = broker(BASE + repub(server=f"{scheme}://localhost:{FAR_PORT}"))
    assert across(connect, NOT_ACROSS) == []
    assert "alert unknown ca" in (broker.directory / "far/log").read_text()
    assert running.process.poll() is None


def test_no_key_makes_a_rule_trust_a_server(broker, connect, far):
    far()
    (broker.directory / "ca.pem").write_bytes((broker.directory / "far/ca.pem").read_bytes())
    block = f'ssl {{ cacertfile = "{broker.directory}/ca.pem", verify_peer = false }}'
    conf = repub(server=f"tls+mqtt-tcp://localhost:{FAR_PORT}").replace("clean_start", f"{block}, clean_start")
    broker(BASE + conf)
    assert across(connect, NOT_ACROSS) == []


@pytest.mark.parametrize("server", ["http://127.0.0.1:1", "nmq-tcp://127.0.0.1:1", f"127.0.0.1:{FAR_PLAIN_PORT}"])
def test_a_scheme_that_it_does_not_know_ends_it_at_the_first_message(broker, connect, server):
    running = broker(BASE + repub(server=server))
    assert running.process.poll() is None
    connect("near").publish("local/x")
    assert running.exit_code() == 1
    assert _problems(server=server)


def test_a_far_end_that_is_away_blocks_nobody_and_loses_what_was_published(broker, connect, far):
    running = broker(BASE + repub())
    near, other = connect("near"), connect("other")
    assert other.subscribe("local/x") == 0
    for number in range(50):
        assert near.publish("local/x", f"lost {number}")
    assert other.spin(lambda: len(other.messages) == 50)
    far()
    first, then = (across(connect, payload="found", clientid=name) for name in ("first", "then"))
    assert then[0] == b'{"topic":"local/x","payload":"found"}'
    # One had waited.
    assert len([body for body in first if b"lost" in body]) <= 1
    assert running.process.poll() is None


def test_messages_of_a_client_whose_name_begins_that_of_the_rule_stay_here(broker, connect, far):
    far()
    broker(BASE + repub(clientid="ruler"))
    assert across(connect, clientid="other")
    assert across(connect, NOT_ACROSS, clientid="rule") == []


# --- topics and passwords ---------------------------------------------------------------------------------------------


@DENIED_LEAVES
def test_a_denied_message_leaves_by_a_rule(broker, connect, far, deny_action, leaves):
    far()
    broker(BASE + topics(deny_action) + repub('SELECT topic, payload FROM "+/x"'))
    assert across(connect, user=("u", "p"))
    found = across(connect, NOT_ACROSS, topic="denied/x", user=("u", "p"), drops=not leaves)
    assert found == ([b'{"topic":"denied/x","payload":"hello"}'] if leaves else [])


def test_a_rule_for_all_topics_tells_who_comes_and_goes(broker, connect, far):
    far()
    broker(BASE + repub('SELECT topic, payload FROM "#"'))
    assert across(connect)
    there = connect("there", port=FAR_PLAIN_PORT, user=FAR_USER)
    assert there.subscribe("out/x") == 0
    connect("somebody").close()
    assert there.spin(lambda: any(b"$SYS" in body and b'"somebody"' in body for _topic, body in there.messages))


def test_a_rule_takes_a_message_where_its_publisher_may_not(broker, connect):
    """The other server sees the user of the rule. Here that is the broker itself."""
    broker(BASE + topics("ignore") + repub(server=f"mqtt-tcp://127.0.0.1:{MQTT_PORT}"))
    far = connect("far", user=FAR_USER)
    assert far.subscribe("out/x") == 0
    direct = connect("direct", user=("u", "p"))
    direct.publish("out/x", "direct")
    assert not far.receives("out/x", 1)
    near = connect("near", user=("u", "p"))
    for _attempt in range(ACROSS):
        near.publish("local/x", "by the rule")
        if far.receives("out/x", 1):
            break
    assert far.messages[0] == ("out/x", b'{"topic":"local/x","payload":"by the rule"}')


@pytest.mark.parametrize("fields", ["*", "password", "topic, password as p"])
def test_a_rule_takes_the_password_of_the_client_along(broker, connect, far, fields):
    far()
    broker(BASE + repub(f'SELECT {fields} FROM "local/#"'))
    (message, *_more) = across(connect, user=("u", "a password"))
    assert b'"a password"' in message


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_the_database_holds_passwords_and_has_the_mode_of_the_umask(broker, connect, umask):
    broker(BASE + store(broker, 'SELECT * FROM "local/#"'), umask=umask)
    assert connect("near", user=("u", "a password")).publish("local/x")
    wait_for(lambda: rows(broker))
    assert "a password" in rows(broker)[0]
    mode = stat.S_IMODE((broker.directory / "rules.db").stat().st_mode)
    assert mode == 0o666 & ~umask & ~0o022


def test_without_a_path_the_database_is_in_tmp(broker, connect):
    database = Path("/tmp/rule_engine.db")
    running = broker(BASE + store(broker).replace(f'path = "{broker.directory}/rules.db", ', ""))
    try:
        assert connect("near").publish("local/x")
        wait_for(database.exists)
    finally:
        running.process.kill()
        running.process.wait(10)
        database.unlink(missing_ok=True)


def test_rest_tells_no_secret_of_a_rule_and_the_log_does(broker):
    running = broker(BASE + repub() + "log { to = [console], level = debug }\n")
    told = (running.get("/rules"), running.get("/rules/rule:1"), running.get("/configuration"))
    assert FAR_USER[1] not in repr(told)
    assert told[0].body["data"] == [{"name": "repub", "rawsql": SQL, "id": 1, "enabled": True}]
    assert FAR_USER[1] not in running.output
    assert running.post("/rules", action()).code == 0
    wait_for(lambda: f"password: {FAR_USER[1]}" in running.output)


# --- what becomes SQL -------------------------------------------------------------------------------------------------


def test_an_empty_message_ends_a_broker_that_stores_messages(broker, connect):
    running = broker(BASE + store(broker))
    connect("near").publish("local/x", "")
    assert running.exit_code() == 1


def test_a_quote_in_a_message_stops_the_storing_for_good(broker, connect):
    running = broker(BASE + store(broker))
    near = connect("near")
    assert near.publish("local/x", "before")
    wait_for(lambda: rows(broker))
    assert near.publish("local/x", "it's")
    assert near.publish("local/x", "after")
    wait_for(lambda: running.output.count("SQL error") == 2)
    assert [row[-1] for row in rows(broker)] == ["before"]


def test_a_message_becomes_a_statement(broker, connect):
    broker(BASE + store(broker))
    assert connect("near").publish("local/x", "x'); CREATE TABLE made_by_a_message (x); --")
    wait_for(lambda: ("made_by_a_message",) in rows(broker, "SELECT name FROM sqlite_master"))


def test_a_client_without_a_name_ends_a_broker_that_asks_for_it(broker, connect, far):
    far()
    running = broker(BASE + repub("SELECT topic FROM \"local/#\" WHERE username = 'u'"))
    assert across(connect, user=("u", "p"))
    connect("anonymous").publish("local/x")
    assert running.exit_code() == 1


# --- what is understood -----------------------------------------------------------------------------------------------


def _problems(sql: str = SQL, server: str = PLAIN) -> list:
    conf = {"rules": {"repub": {"rules": [{"sql": sql, "server": server, "topic": "out/x"}]}}}
    return _schema.validate(conf)


UNDERSTOOD = {
    'SELECT topic,payload FROM "local/#"': b'{"topic":"local/x","payload":{"a":1,"c":"d"}}',
    'select topic from "local/#" where qos=1': b'{"topic":"local/x"}',
    "SELECT topic as t FROM \"local/+\" WHERE t = 'local/x'": b'{"t":"local/x"}',
    'SELECT payload.a as b, payload.c FROM "local/#"': b'{"b":1,"payload.c":"d"}',
    "SELECT topic FROM \"local/x\" WHERE payload.a = 1 and topic = 'local/x'": b'{"topic":"local/x"}',
}


@pytest.mark.parametrize(("sql", "expected"), UNDERSTOOD.items(), ids=UNDERSTOOD)
def test_the_sql_that_the_schema_lets_through_works(broker, connect, far, sql, expected):
    far()
    broker(BASE + repub(sql))
    assert _problems(sql) == []
    assert across(connect, payload='{"a":1,"c":"d"}')[0] == expected


CRASHES = {
    "no server": repub(server=""),
    "no SQL": repub(sql=""),
    "no SQL to store by": 'rules.sqlite { path = "/tmp/x.db", rules = [{ table = "t" }] }\n',
    **{
        sql: repub(sql)
        for sql in (
            "nonsense",
            'SELECT colour FROM "local/#"',
            'SELECT Topic FROM "local/#"',
            'SELECT  topic FROM "local/#"',
            'SELECT topic FROM "local/#" WHERE colour = 1',
            "SELECT topic FROM \"local/#\" WHERE topic = 'sand/1'",
        )
    },
}


@pytest.mark.parametrize("conf", CRASHES.values(), ids=CRASHES)
def test_a_rule_that_cannot_be_read_crashes_it_at_start(broker, conf):
    assert broker(BASE + conf).exit_code() < 0


@pytest.mark.parametrize("sql", [sql for sql in CRASHES if "local" in sql or sql == "nonsense"])
def test_the_schema_refuses_what_crashes(broker, sql):
    del broker
    assert _problems(sql)


# --- by REST ----------------------------------------------------------------------------------------------------------


def action(sql: object = SQL, name: str = "repub", **params: str) -> dict:
    params = {"topic": "out/x", "address": PLAIN, "username": FAR_USER[0], "password": FAR_USER[1], **params}
    return {"rawsql": sql, "actions": [{"name": name, "params": params}]}


ENDS = {
    "POST {}": ("POST", "/rules", {}, ""),
    "POST without a name": ("POST", "/rules", {"rawsql": SQL, "actions": [{}]}, ""),
    "POST without SQL": ("POST", "/rules", {"actions": action()["actions"]}, ""),
    "PUT a number for the SQL": ("PUT", "/rules/rule:1", {"rawsql": 1}, repub()),
    "PUT without a name": ("PUT", "/rules/rule:1", {"actions": [{}]}, repub()),
}


@pytest.mark.parametrize(("method", "path", "data", "rules"), ENDS.values(), ids=ENDS)
def test_calls_that_end_the_broker(broker, method, path, data, rules):
    running = broker(BASE + rules)
    with pytest.raises(ConnectionError):
        running.call(method, path, data)
    assert running.exit_code() == 1


def test_a_rule_by_rest_works_at_once_and_is_gone_after_a_restart(broker, connect, far):
    far()
    running = broker(BASE)
    assert running.post("/rules", action()).code == 0
    assert across(connect)
    assert "out/x" not in (broker.directory / "nanomq.conf").read_text()
    running.process.terminate()
    running.process.wait(10)
    again = broker(BASE)
    assert again.get("/rules") == Reply(200, {"data": [], "code": 0})
    assert across(connect, NOT_ACROSS) == []


def test_a_put_leads_a_rule_elsewhere(broker, connect, far):
    far()
    running = broker(BASE + repub(server="mqtt-tcp://127.0.0.1:9"))
    assert across(connect, NOT_ACROSS) == []
    change = {"actions": [{"name": "repub", "params": {"address": PLAIN}}]}
    assert running.call("PUT", "/rules/rule:1", change).code == 0
    assert across(connect)


def test_an_empty_put_stops_a_rule_and_calls_it_enabled(broker, connect, far):
    far()
    running = broker(BASE + repub())
    assert across(connect)
    assert running.call("PUT", "/rules/rule:1", {}).body["data"]["enabled"] is True
    assert across(connect, NOT_ACROSS) == []


def test_a_rule_can_be_deleted(broker, connect, far):
    far()
    running = broker(BASE + repub())
    assert running.call("DELETE", "/rules/rule:1") == Reply(200, {"code": 0})
    assert running.get("/rules").body["data"] == []
    assert across(connect, NOT_ACROSS) == []
    assert running.call("DELETE", "/rules/rule:1") == Reply(400, {"code": 107})
    assert running.process.poll() is None


def test_nobody_without_credentials_sees_or_adds_a_rule(broker):
    running = broker(BASE + repub())
    assert running.get("/rules", None).status == 401
    assert running.post("/rules", action(), None).status == 401
    assert running.call("PUT", "/rules/rule:1", {}, None).status == 401
    assert running.call("DELETE", "/rules/rule:1", auth=None).status == 401
    assert len(running.get("/rules").body["data"]) == 1
