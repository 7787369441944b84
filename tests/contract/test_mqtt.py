"""Who may connect, and what the topic rules let pass."""

from __future__ import annotations

import time

import paho.mqtt.client as paho
import pytest
from harness import QUIET, TCP, refused

USERS = 'password { "alice" = "secret", "bob" = "word" }'


def auth(text: str) -> str:
    return QUIET + TCP + f"auth {{\n{text}\n}}\n"


def test_anonymous_access_lets_wrong_passwords_in(broker, connect):
    broker(auth(f"allow_anonymous = true\n{USERS}"))
    assert connect().outcome == "accepted"
    assert connect(user=("alice", "wrong")).outcome == "accepted"


@pytest.mark.parametrize("version", [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5], ids=["3.1", "3.1.1", "5"])
def test_without_anonymous_access_only_users_get_in(broker, connect, version):
    broker(auth(f"allow_anonymous = false\n{USERS}"))
    for user in (None, ("alice", "wrong"), ("alice", ""), ("carol", "secret")):
        expected = refused(broker, user, version)
        assert (user, connect("c", user=user, version=version).outcome) == (user, expected)
    for user in (("alice", "secret"), ("bob", "word")):
        assert (user, connect("c", user=user, version=version).outcome) == (user, "accepted")


EMPTY_LISTS = {
    "no block": "",
    "switched off": f"{USERS[:-1]}, enable = false }}",
    "numbers only": 'password { "alice" = 1234 }',
}


@pytest.mark.parametrize("users", EMPTY_LISTS.values(), ids=EMPTY_LISTS)
def test_an_empty_list_of_users_lets_any_user_in(broker, connect, users):
    broker(auth(f"allow_anonymous = false\n{users}"))
    counts = "enable" in users and not broker.does("password.enable is heeded")
    anybody, nobody = ("anybody", "anything"), None
    assert connect(user=anybody).outcome == (refused(broker, anybody) if counts else "accepted")
    open_to_all = broker.does("anonymous clients need users to be shut out") and not counts
    assert connect(user=nobody).outcome == ("accepted" if open_to_all else refused(broker, nobody))
    assert connect(user=("anybody", "")).outcome == refused(broker, ("anybody", ""))


def acl(rules: str, more: str = "") -> str:
    return auth(f"allow_anonymous = false\n{USERS}\n{more}\nacl {{ rules = [\n{rules}\n] }}")


def delivered(connect, topic: str, user: tuple[str, str] = ("alice", "secret"), clientid: str = "alice-1") -> bool:
    """Whether a message that `user` publishes to `topic` reaches a subscriber that may read all."""
    reader = connect("reader", user=("bob", "word"))
    assert reader.subscribe("#") < 3
    writer = connect(clientid, user=user)
    assert writer.publish(topic), "a denied message is acknowledged all the same"
    # The marker comes behind the message in question, if only just.
    assert reader.publish("marker")
    assert reader.receives("marker")
    return reader.receives(topic, 0.2)


READER = (
    '{ permit = allow, username = "bob", action = subscribe, topics = ["#"] }\n'
    '{ permit = allow, topics = ["marker"] }\n'
)
DENY_REST = "{ permit = deny }\n"
ALICE = 'permit = allow, username = "alice", action = publish'

DELIVERED = {
    "allowed topic": (f'{{ {ALICE}, topics = ["a/#"] }}\n' + DENY_REST, "a/b/c", True),
    "other topic": (f'{{ {ALICE}, topics = ["a/#"] }}\n' + DENY_REST, "b", False),
    "wildcard of a level": (f'{{ {ALICE}, topics = ["a/+"] }}\n' + DENY_REST, "a/b", True),
    "too deep for a level": (f'{{ {ALICE}, topics = ["a/+"] }}\n' + DENY_REST, "a/b/c", False),
    "second topic": (f'{{ {ALICE}, topics = ["x", "a"] }}\n' + DENY_REST, "a", True),
    "first rule wins": (
        f'{{ permit = deny, username = "alice", topics = ["a"] }}\n{{ {ALICE}, topics = ["a"] }}\n',
        "a",
        False,
    ),
    "no rule and no_match left alone": ('{ permit = deny, username = "carol" }\n', "a", True),
    "other action": (
        '{ permit = allow, username = "alice", action = subscribe, topics = ["a"] }\n' + DENY_REST,
        "a",
        False,
    ),
    "clientid placeholder": (f'{{ {ALICE}, topics = ["d/${{clientid}}"] }}\n' + DENY_REST, "d/alice-1", True),
    "username placeholder": (f'{{ {ALICE}, topics = ["d/${{username}}/#"] }}\n' + DENY_REST, "d/alice/x", True),
    "another's topic": (f'{{ {ALICE}, topics = ["d/${{username}}/#"] }}\n' + DENY_REST, "d/bob/x", False),
    "percent placeholders": (f'{{ {ALICE}, topics = ["d/%u"] }}\n' + DENY_REST, "d/alice", False),
    "clientid": ('{ permit = allow, clientid = "alice-1", topics = ["a"] }\n' + DENY_REST, "a", True),
    "everybody": ('{ permit = allow, username = "#", topics = ["a"] }\n' + DENY_REST, "a", True),
    "address": ('{ permit = allow, ipaddr = "127.0.0.1", topics = ["a"] }\n' + DENY_REST, "a", True),
    "network": ('{ permit = allow, ipaddr = "127.0.0.0/8", topics = ["a"] }\n' + DENY_REST, "a", False),
    "addresses": ('{ permit = allow, ipaddrs = ["127.0.0.1"], topics = ["a"] }\n' + DENY_REST, "a", False),
    "and, both": (
        '{ permit = allow, and = [{ username = "alice" }, { ipaddr = "127.0.0.1" }], topics = ["a"] }\n' + DENY_REST,
        "a",
        True,
    ),
    "and, one": (
        '{ permit = allow, and = [{ username = "alice" }, { clientid = "x" }], topics = ["a"] }\n' + DENY_REST,
        "a",
        False,
    ),
    "or, one": (
        '{ permit = allow, or = [{ username = "alice" }, { clientid = "x" }], topics = ["a"] }\n' + DENY_REST,
        "a",
        True,
    ),
    "misspelt subject": ('{ permit = allow, user = "carol", topics = ["a"] }\n' + DENY_REST, "a", True),
    "misspelt permit": (f'{{ {ALICE.replace("allow", "Allow")}, topics = ["a"] }}\n' + DENY_REST, "a", False),
    "misspelt action": (f'{{ {ALICE.replace("publish", "pub")}, topics = ["a"] }}\n' + DENY_REST, "a", False),
    "literal": (f'{{ {ALICE}, topics = ["@a/b"] }}\n' + DENY_REST, "a/b", True),
}


@pytest.mark.parametrize(("rules", "topic", "passes"), DELIVERED.values(), ids=DELIVERED)
def test_rules(broker, connect, rules, topic, passes):
    broker(acl(READER + rules))
    for sign, behaviour in (("${clientid}", "${clientid} expands in rules"), ("@", "@ marks a literal topic in rules")):
        passes = passes and (sign not in rules or broker.does(behaviour))
    assert delivered(connect, topic) is passes


def test_no_match_denies_the_rest(broker, connect):
    broker(acl(READER + f'{{ {ALICE}, topics = ["a"] }}', "no_match = deny"))
    assert delivered(connect, "a")
    assert not delivered(connect, "b")


def test_no_match_is_nothing_without_rules(broker, connect):
    broker(auth(f"allow_anonymous = false\n{USERS}\nno_match = deny"))
    assert delivered(connect, "a")


def test_rules_switched_off(broker, connect):
    broker(
        auth(
            f"allow_anonymous = false\n{USERS}\nno_match = deny\n"
            "acl { enable = false, rules = [{ permit = deny }] }"
        )
    )
    if broker.does("acl.enable is heeded"):
        assert delivered(connect, "a")
    else:
        assert connect("reader", user=("bob", "word")).subscribe("#") == 0x87


@pytest.mark.parametrize(
    ("line", "outcome"),
    [("", "dropped"), ("deny_action = ignore", "dropped"), ("deny_action = disconnect", "accepted")],
)
@pytest.mark.parametrize("version", [paho.MQTTv311, paho.MQTTv5], ids=["3.1.1", "5"])
def test_the_names_of_deny_action_are_the_wrong_way_round(broker, connect, version, line, outcome):
    broker(acl(DENY_REST, line))
    client = connect("c", user=("alice", "secret"), version=version)
    assert client.publish("a")
    client.spin(lambda: client.outcome == "dropped", 0.3)
    assert client.outcome == outcome


@pytest.mark.parametrize("version", [paho.MQTTv311, paho.MQTTv5], ids=["3.1.1", "5"])
def test_a_denied_subscription(broker, connect, version):
    broker(acl('{ permit = allow, username = "alice", topics = ["a/#"] }\n' + DENY_REST))
    client = connect("c", user=("alice", "secret"), version=version)
    assert client.subscribe("b") == 0x87
    assert client.subscribe("a/b", 1) == 1
    assert client.subscribe("#") == 0x87


@pytest.mark.parametrize("version", [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5], ids=["3.1", "3.1.1", "5"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_message_goes_through(broker, connect, version, qos):
    broker(QUIET + TCP)
    client = connect("c", version=version)
    assert client.subscribe("a", qos) == qos
    assert client.publish("a", "hello", qos)
    assert client.receives("a")
    assert client.messages == [("a", b"hello")]


def test_a_retained_message(broker, connect):
    broker(QUIET + TCP)
    assert connect("writer").publish("a", "kept", retain=True)
    reader = connect("reader")
    reader.subscribe("a")
    assert reader.receives("a")


@pytest.fixture
def queue(broker, connect):
    """Starts a broker, and queues three messages for a subscriber that is away."""

    def queue(interval, lines=""):
        running = broker(QUIET + TCP + f"mqtt {{ retry_interval = {interval}s }}\n{lines}")
        away = connect("away", clean_session=False)
        assert away.subscribe("q", 1) == 1
        away.close()
        # Until the broker has noticed.
        time.sleep(0.3)
        speaker = connect("speaker")
        assert all(speaker.publish("q", str(number)) for number in range(3))
        return running

    return queue


NOT_PLAYED = "the double hands over at once what was queued, and in another order"


@pytest.mark.parametrize("interval", [1, 2])
def test_the_pace_of_the_queue_is_one_message_each_retry_interval(broker, connect, queue, interval):
    """The first after one and a half of it."""
    if broker.kind.id == "double":
        pytest.skip(NOT_PLAYED)
    queue(interval)
    away = connect("away", clean_session=False)
    back = time.monotonic()
    came = []
    for number in range(1, 4):
        assert away.spin(lambda number=number: len(away.messages) >= number, 3 * interval)
        came.append(time.monotonic() - back)
    assert [payload for _topic, payload in away.messages] == [b"0", b"1", b"2"]
    assert came == pytest.approx([1.5 * interval, 2.5 * interval, 3.5 * interval], abs=0.4 * interval)


def test_the_queue_begins_again_at_the_next_break(broker, connect, queue):
    if broker.kind.id == "double":
        pytest.skip(NOT_PLAYED)
    queue(1)
    for _attempt in range(2):
        away = connect("away", clean_session=False)
        assert not away.spin(lambda away=away: away.messages, 1.2)
        away.close()
    away = connect("away", clean_session=False)
    assert away.spin(lambda: len(away.messages) == 3, 6)


@pytest.mark.parametrize("sqlite", [False, True])
def test_a_restart_loses_the_queue(broker, connect, queue, sqlite):
    """With a section `sqlite` too, on builds with SQLite as on those without."""
    lines = f'sqlite {{ mounted_file_path = "{broker.directory}/", flush_mem_threshold = 1 }}\n' if sqlite else ""
    running = queue(1, lines)
    time.sleep(1)
    running.process.terminate()
    running.process.wait(10)
    broker(None, "--conf", broker.directory / "nanomq.conf")
    away = connect("away", clean_session=False)
    assert away.outcome == "accepted"
    assert not away.spin(lambda: away.messages, 4)
