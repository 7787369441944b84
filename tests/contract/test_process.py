"""Start, stop and what goes wrong at it."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from pathlib import Path

import pytest
from harness import HTTP, MQTT_PORT, QUIET, TCP, wait_for

DEFAULTS = {"0.0.0.0:1883"}


def test_banner_names_the_version_and_there_is_no_version_option(broker):
    running = broker.launch()
    assert running.exit_code() == 1
    assert f"v{'.'.join(map(str, broker.version))}" in running.output
    assert broker.launch("--version").exit_code() == 1


def test_start_line_names_the_version(broker):
    running = broker(QUIET + TCP + HTTP)
    assert f"NanoMQ (ver {'.'.join(map(str, broker.version))})" in running.output


def test_a_missing_configuration_opens_the_broker_to_all(broker, connect):
    running = broker(None, "--conf", broker.directory / "missing.conf")
    assert running.listens() == DEFAULTS
    assert connect().outcome == "accepted"


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
    assert broker.launch("start", "--nonsense").exit_code() == 1


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
    if "ip_addr" in conf and broker.version < (0, 23, 1):
        pytest.skip("ip_addr is no key yet")
    assert broker(QUIET + conf + "\n").exit_code() == 1


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
    [("", "closed"), ("auth { allow_anonymous = true }\n", "accepted")],
    ids=["file silent", "file speaks"],
)
def test_the_file_wins_over_the_environment(broker, connect, conf, anonymous):
    broker(QUIET + TCP + conf, env={"NANOMQ_ALLOW_ANONYMOUS": "false"})
    assert connect().outcome == anonymous


def test_reload_takes_users_and_anonymous_over(broker, connect):
    if broker.version < (0, 23, 1):
        pytest.skip("another reload")
    broker(TCP + 'auth { allow_anonymous = false, password { "a" = "b" } }\n')
    assert connect(user=("a", "b")).outcome == "accepted"
    other = broker.write(TCP + 'auth { allow_anonymous = false, password { "c" = "d" } }\n', "other.conf")
    assert broker.launch("reload", "--conf", other).exit_code() == 0
    assert connect(user=("a", "b")).outcome == "closed"
    assert connect(user=("c", "d")).outcome == "accepted"


def test_reload_of_a_broken_file_ends_the_caller_and_not_the_broker(broker, connect):
    running = broker(TCP)
    assert broker.launch("reload", "--conf", broker.write("", "broken.conf")).exit_code() == 1
    assert connect().outcome == "accepted"
    assert running.process.poll() is None
