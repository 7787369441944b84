"""The command socket that `nanomq reload` speaks to, by raw calls: who gets to it, and what one may do who does."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import QUIET, TCP, Running, Starter, listens, wait_for
from local_sockets import (
    OTHER,
    REPLY,
    REQUEST,
    SERVICE,
    as_user,
    connected,
    greet,
    needs_a_second_user,
    receive,
    send,
)

pytestmark = needs_a_second_user

SOCKET = "/tmp/nanomq_cmd.ipc"
CLOSED = 'auth { allow_anonymous = false, password { "a" = "b" } }\n'
MINE = 'auth { allow_anonymous = false, password { "mine" = "mine" } }\n'


def ask(command: str, address: str | tuple[str, int] = SOCKET) -> str | None:
    """The answer to a command, None where the broker hangs up."""
    with connected(address) as caller:
        try:
            greet(caller, REQUEST, REPLY)
            send(caller, struct.pack("!I", 0x80000001) + command.encode())
            return receive(caller)[4:].rstrip(b"\0").decode()
        except (ConnectionError, struct.error):
            return None


def reload(path: Path) -> str:
    return json.dumps({"cmd": "reload", "conf_file": str(path)})


@pytest.fixture
def start(broker: Starter) -> Callable[[int], Running]:
    """Starts a broker with a user a, as the service with a umask."""

    def start(umask: int) -> Running:
        conf = broker.write(TCP + CLOSED)
        running = broker(None, "--conf", conf, user=SERVICE, umask=umask)
        wait_for(Path(SOCKET).exists)
        return running

    return start


def users(broker: Starter, connect) -> list[str]:
    """Which users get in."""
    return [name for name in ("a", "mine") if connect(user=(name, {"a": "b"}.get(name, name))).outcome == "accepted"]


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=["usual", "as the unit has it"])
def test_another_user_does_not_get_to_it_with_a_umask(broker, connect, start, umask):
    running = start(umask)
    with pytest.raises(PermissionError):
        as_user(OTHER, ask, reload(broker.write(MINE, "mine.conf")))
    assert running.process.poll() is None
    assert users(broker, connect) == ["a"]


def test_without_a_umask_any_user_replaces_the_users_of_the_broker(broker, connect, start):
    if not broker.does("reload works"):
        pytest.skip("whatever is asked ends this version: the test below")
    running = start(0)
    assert as_user(OTHER, ask, reload(broker.write(MINE, "mine.conf"))) == "reload succeed!"
    assert running.process.poll() is None
    assert users(broker, connect) == ["mine"]


def test_without_a_umask_any_user_opens_the_broker_to_all(broker, connect, start):
    if not broker.does("reload works"):
        pytest.skip("whatever is asked ends this version: the test below")
    start(0)
    assert connect().outcome != "accepted"
    open_to_all = broker.write("auth { allow_anonymous = true }\n", "mine.conf")
    assert as_user(OTHER, ask, reload(open_to_all)) == "reload succeed!"
    assert connect().outcome == "accepted"


def test_without_a_umask_any_user_ends_the_broker(broker, start):
    running = start(0)
    answer = as_user(OTHER, ask, reload(broker.write("a {", "broken.conf")))
    if not broker.does("a syntax error ends the start"):
        # 0.23.1 ends at whatever is asked.
        assert answer in (None, "reload succeed!")
        return
    assert answer is None
    assert running.exit_code() > 0


@pytest.mark.parametrize("command", ["junk", "{}", '{"cmd": "stop"}'])
def test_it_knows_no_command_but_reload(broker, start, command):
    running = start(0o022)
    answer = ask(command)
    if broker.does("reload works"):
        assert answer == "reload failed, invalid command!"
        assert running.process.poll() is None
    else:
        assert answer is None
        assert running.exit_code() > 0


def test_its_url_can_put_it_on_the_network(broker, connect):
    """And there is neither a password nor a umask for that."""
    urls = 'system { hook_ipc_url = "ipc:///tmp/hook.ipc", cmd_ipc_url = "tcp://127.0.0.1:9998" }\n'
    running = broker(urls + TCP + CLOSED)
    wait_for(lambda: listens(9998))
    answer = ask(reload(broker.write(MINE, "mine.conf")), ("127.0.0.1", 9998))
    if broker.does("reload works"):
        assert answer == "reload succeed!"
        assert users(broker, connect) == ["mine"]
    else:
        assert answer is None
        assert running.exit_code() > 0


def test_nobody_gets_to_it_where_it_is_switched_off(broker):
    conf = broker.write(QUIET + TCP + CLOSED)
    broker(None, "--conf", conf, user=SERVICE, umask=0)
    with pytest.raises(FileNotFoundError):
        ask("{}")
