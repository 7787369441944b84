"""Start, stop and what goes wrong at it."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import socket
import stat
from pathlib import Path

import pytest
from harness import HTTP, MQTT_PORT, QUIET, TCP, refused, wait_for

DEFAULTS = {"0.0.0.0:1883"}


def test_banner_names_the_version_and_there_is_no_version_option(broker):
    running = broker.launch()
    assert running.exit_code() == 1
    assert f"v{'.'.join(map(str, broker.version))}" in running.output
    assert broker.launch("--version").exit_code() == 1


def test_start_line_names_the_version(broker):
    running = broker(QUIET + TCP + HTTP)
    if not broker.does("the version is logged at warn"):
        assert "(ver " not in running.output
        return
    assert f"NanoMQ (ver {'.'.join(map(str, broker.version))})" in running.output


def test_a_missing_configuration_opens_the_broker_to_all(broker, connect):
    running = broker(None, "--conf", broker.directory / "missing.conf")
    assert running.listens() == DEFAULTS
    assert connect().outcome == "accepted"


def test_without_an_option_the_file_beside_the_program_is_read(broker):
    """Before any below /etc. Older ones know that alone, and this machine has none."""
    *interpreter, program = broker.kind.command
    copy = broker.directory / "bin" / "nanomq"
    shutil.copytree(Path(program).parent, copy.parent) if interpreter else copy.parent.mkdir()
    shutil.copy(program, copy)
    (copy.parent / "nanomq.conf").write_text(QUIET + 'listeners.tcp { bind = "127.0.0.1:1999" }\n')
    broker.kind = dataclasses.replace(broker.kind, command=(*interpreter, str(copy)))
    read = broker.does("the file beside the program is read")
    assert read or not Path("/etc/nanomq.conf").exists(), "the test needs a machine without one"
    assert broker(None).listens() == ({"127.0.0.1:1999"} if read else DEFAULTS)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_an_unreadable_configuration_opens_the_broker_to_all(broker, connect):
    path = broker.write(QUIET + TCP + "auth { allow_anonymous = false }\n")
    path.chmod(0o600)
    running = broker(None, "--conf", path, user=65534)
    assert running.listens() == DEFAULTS
    assert connect().outcome == "accepted"
    assert "ermission denied" in running.output


def test_no_listeners_block_means_the_default_listener(broker):
    assert broker(QUIET + "mqtt { property_size = 32 }\n").listens() == DEFAULTS


def test_the_http_server_is_off_without_its_block(broker):
    assert broker(QUIET + TCP).listens() == {f"127.0.0.1:{MQTT_PORT}"}


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        (["--url", "nmq-tcp://127.0.0.1:1999"], {"127.0.0.1:1999"}),
        (["--http", "--port", "8099"], {"0.0.0.0:8099"}),
    ],
)
def test_the_command_line_overrules_the_file(broker, arguments, added):
    assert added <= broker(QUIET + TCP, *arguments).listens()


def test_an_unknown_option_is_an_error(broker):
    expected = 1 if broker.does("an unknown option ends in exit code 1") else -signal.SIGABRT
    assert broker.launch("start", "--nonsense").exit_code() == expected


def test_a_name_cannot_be_bound_that_is_taken(broker):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", MQTT_PORT))
        taken.listen()
        assert broker(QUIET + TCP).exit_code() == 1


@pytest.mark.parametrize(
    "conf",
    [
        'listeners.tcp { bind = "192.0.2.1:1883" }',
        TCP + 'http_server { ip_addr = "192.0.2.1" }',
        TCP + 'http_server { ip_addr = "999.1.1.1" }',
        TCP + 'http_server { ip_addr = "127.0.0.1:9" }',
    ],
    ids=["tcp", "http", "no address", "address with port"],
)
def test_an_address_that_is_not_ours_ends_the_start(broker, conf):
    running = broker(QUIET + conf + "\n")
    if "ip_addr" in conf and not broker.does("ip_addr is read"):
        assert "0.0.0.0:8081" in running.listens()
    else:
        assert running.exit_code() == 1


def catches(pid, number):
    """Whether a process has a handler for a signal: the broker says that it has started just before."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search("SigCgt:\t([0-9a-f]+)", status).group(1), 16) >> (number - 1) & 1


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 1), (signal.SIGABRT, 1), (signal.SIGILL, 0)],
    ids=str,
)
def test_exit_code_of_a_signal(broker, number, code):
    running = broker(QUIET + TCP)
    wait_for(lambda: catches(running.process.pid, number))
    running.process.send_signal(number)
    assert running.exit_code() == code


def test_hangup_is_not_a_reload_and_is_ignored(broker, connect):
    running = broker(QUIET + TCP)
    wait_for(lambda: catches(running.process.pid, signal.SIGHUP))
    for number in (signal.SIGHUP, signal.SIGQUIT):
        running.process.send_signal(number)
    assert connect().outcome == "accepted"
    assert running.process.poll() is None


def test_a_log_directory_that_is_not_there_ends_the_start_without_a_word(broker):
    conf = QUIET + TCP + 'log { to = [file], dir = "/nonexistent/place", file = "x.log" }\n'
    assert broker(conf).exit_code() == -signal.SIGSEGV


def test_the_log_file_is_written(broker):
    broker(QUIET + TCP + HTTP + f'log {{ to = [file], level = warn, dir = "{broker.directory}", file = "x.log" }}\n')
    wait_for((broker.directory / "x.log").exists)
    if broker.does("the version is logged at warn"):
        wait_for(lambda: "NanoMQ (ver" in (broker.directory / "x.log").read_text())


def test_the_command_socket_and_the_pid_file(broker):
    running = broker(TCP, env={"NANOMQ_PID_FILE": "/tmp/nanomq/nanomq.pid"})
    assert stat.S_ISSOCK(Path("/tmp/nanomq_cmd.ipc").stat().st_mode)
    assert int(Path("/tmp/nanomq/nanomq.pid").read_bytes().rstrip(b"\0")) == running.process.pid


def test_no_command_socket_if_that_is_asked(broker):
    broker(QUIET + TCP)
    assert not Path("/tmp/nanomq_cmd.ipc").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_stale_command_socket_of_another_user_keeps_the_broker_from_starting(broker):
    Path("/tmp/nanomq_cmd.ipc").touch()
    assert broker(TCP, user=65534).exit_code() == 1


@pytest.mark.parametrize(
    ("conf", "anonymous"),
    [("", None), ("auth { allow_anonymous = true }\n", "accepted")],
    ids=["file silent", "file speaks"],
)
def test_the_file_wins_over_the_environment(broker, connect, conf, anonymous):
    broker(QUIET + TCP + conf, env={"NANOMQ_ALLOW_ANONYMOUS": "false"})
    if anonymous is None:
        open_to_all = broker.does("anonymous clients need users to be shut out")
        anonymous = "accepted" if open_to_all else refused(broker, None)
    assert connect().outcome == anonymous


def reload(broker, conf):
    """Ask the running broker to take over another file: whether that works."""
    caller = broker.launch("reload", "--conf", broker.write(conf, "other.conf"))
    if broker.does("reload works"):
        assert caller.exit_code() == 0
        return True
    running = broker.started[0]
    if broker.does("commands do not find the broker"):
        # It does not find the broker, whose pid file it takes away.
        assert caller.exit_code() == 1
        assert running.process.poll() is None
    else:
        assert running.exit_code() == 1
    return False


def test_reload_takes_users_and_anonymous_over(broker, connect):
    broker(TCP + 'auth { allow_anonymous = false, password { "a" = "b" } }\n')
    assert connect(user=("a", "b")).outcome == "accepted"
    if reload(broker, TCP + 'auth { allow_anonymous = false, password { "c" = "d" } }\n'):
        assert connect(user=("a", "b")).outcome == refused(broker, ("a", "b"))
        assert connect(user=("c", "d")).outcome == "accepted"


RULES = (
    'auth {{ allow_anonymous = false, no_match = deny, password {{ "a" = "b" }}, '
    'acl {{ rules = [{{ permit = allow, username = "a", topics = ["{}"] }}] }} }}\n'
)


def test_reload_and_the_rules_for_topics(broker, connect):
    broker(TCP + RULES.format("old"))
    if reload(broker, TCP + RULES.format("new")):
        client = connect("c", user=("a", "b"))
        expected = {"old": 0x87, "new": 0} if broker.does("reload takes rules over") else {"old": 0, "new": 0x87}
        assert {topic: client.subscribe(topic) for topic in ("old", "new")} == expected


def test_reload_leaves_listeners_and_rest_as_they_were(broker):
    if not broker.does("reload works"):
        pytest.skip("reload does not work on this version; what happens instead is seen above")
    running = broker(TCP + HTTP)
    other = 'listeners.tcp { bind = "127.0.0.1:1999" }\nhttp_server { port = 8081, password = "another" }\n'
    if reload(broker, other):
        assert running.listens() == {f"127.0.0.1:{MQTT_PORT}", "127.0.0.1:8081"}
        assert running.get("/nodes").status == 200


def test_reload_of_a_broken_file_ends_the_caller_and_not_the_broker(broker, connect):
    # Before, the caller takes a broken file for an empty one and says that it succeeded.
    expected = 1 if broker.version >= (0, 23, 1) else 0
    running = broker(TCP)
    assert broker.launch("reload", "--conf", broker.write("", "broken.conf")).exit_code() == expected
    assert connect().outcome == "accepted"
    assert running.process.poll() is None


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700)], ids=["usual", "as the unit has it"])
def test_the_mode_of_the_command_socket_is_left_to_the_umask(broker, mask, mode):
    before = os.umask(mask)
    try:
        broker(TCP)
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("/tmp/nanomq_cmd.ipc").stat().st_mode) == mode


def test_a_pid_file_that_cannot_be_written_is_no_reason_not_to_start(broker):
    assert broker(QUIET + TCP, env={"NANOMQ_PID_FILE": "/nonexistent/pid"}).listens() == {f"127.0.0.1:{MQTT_PORT}"}


@pytest.mark.parametrize(("level", "told"), [("warn", False), ("info", False), ("trace", True)])
def test_passwords_in_the_log(broker, connect, level, told):
    """At trace, whatever clients send as a password is logged, right or wrong."""
    running = broker(
        QUIET
        + TCP
        + HTTP.replace("}", ', password = "s3cret-rest" }')
        + f"log {{ to = [console], level = {level} }}\n"
        + 'auth { allow_anonymous = false, password { "alice" = "s3cret-right" } }\n'
    )
    connect(user=("alice", "s3cret-right"))
    connect(user=("alice", "s3cret-wrong"))
    assert running.get("/nodes", ("admin", "s3cret-rest")).status == 200
    found = {word for word in ("s3cret-right", "s3cret-wrong", "s3cret-rest") if word in running.output}
    assert found == ({"s3cret-right", "s3cret-wrong"} if told else set())
