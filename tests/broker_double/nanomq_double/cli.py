"""Command line, start-up and signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import sys
import time
from typing import NoReturn

from . import dialect, sp
from .config import LEVELS, Config, read_environment, read_file

# Name, letter, whether a value follows.
_OPTIONS = (
    ("help", "h", False),
    ("conf", "", True),
    ("old_conf", "", True),
    ("daemon", "d", False),
    ("tq_thread", "t", True),
    ("max_tq_thread", "T", True),
    ("parallel", "n", True),
    ("property_size", "s", True),
    ("msq_len", "S", True),
    ("qos_duration", "D", True),
    ("url", "", True),
    ("http", "", False),
    ("port", "p", True),
    ("cacert", "", True),
    ("cert", "E", True),
    ("key", "", True),
    ("keypass", "", True),
    ("verify", "", False),
    ("fail", "", False),
    ("log_level", "", True),
    ("log_stdout", "", True),
    ("log_syslog", "", True),
    ("log_file", "", True),
)
_IPC = "ipc:///tmp/nanomq_cmd.ipc"
_PID_DIRECTORY = "/tmp/nanomq"


def main(argv: list[str], version: str) -> int:
    """Run `argv`, a command line with its program; the exit code."""
    commands = {"start": _start, "stop": _stop, "restart": _restart, "reload": _reload}
    if len(argv) < 2 or argv[1] not in commands:
        print(
            "\nUsage: nanomq { start | stop | restart | reload } [--help]\n\n"
            f"NanoMQ Messaging Engine for Edge Computing & Messaging bus v{version}-8\n"
        )
        return 1
    return commands[argv[1]](argv, version)


def _options(arguments: list[str]) -> list[tuple[str, str]]:
    """`[(option, value), ...]`; the first word that is no option ends them. `ValueError` says what is wrong."""
    found, rest = [], list(arguments)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        hits = [option for option in _OPTIONS if name == f"-{option[1]}" or f"--{option[0]}" == name] or [
            option for option in _OPTIONS if name.startswith("--") and f"--{option[0]}".startswith(name)
        ]
        if len(hits) != 1:
            raise ValueError(f"Option {word} is {'ambiguous (specify in full)' if hits else 'invalid'}.")
        if hits[0][2] and not equals:
            if not rest:
                raise ValueError(f"Option {word} requires argument.")
            value = rest.pop(0)
        found.append((hits[0][0], value))
    return found


def _configure(argv: list[str], version: str) -> tuple[Config, list[tuple[str, str]]]:
    """Configuration of environment and file, and the options that are still to be applied."""
    try:
        options = _options(argv[2:])
    except ValueError as error:
        print(
            f"{error}\nTry 'nanomq --help' for more information.\nCannot parse command line arguments, quit",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    if any(name == "help" for name, _value in options):
        print("Usage: nanomq { { start | restart [--url <url>] [--conf <path>] ... } | reload [--conf <path>] | stop }")
        raise SystemExit(0)
    config = Config()
    read_environment(config)
    config.conf_file = next((value for name, value in options if name == "conf"), config.conf_file)
    if config.conf_file is None:
        config.conf_file = os.path.join(os.path.dirname(os.path.realpath(argv[0])), "nanomq.conf")
        print(f"Config file is not specified, using default config file: {config.conf_file}")
    try:
        read_file(config, tuple(int(part) for part in version.split(".")))
    except dialect.ParserError:
        print("Parser syntax error", file=sys.stderr)
        raise SystemExit(1) from None
    except dialect.Crash:
        _segmentation_fault()
    return config, options


def _apply(config: Config, options: list[tuple[str, str]]) -> None:
    """Let the command line overrule the file."""
    tls = config.tls
    for name, value in options:
        if name == "url":
            _apply_url(config, value)
        elif name == "http":
            config.http_server.enable = True
        elif name == "port":
            config.http_server.port = int(value) % 2**16 if value.isdecimal() else 0
        elif name == "daemon":
            config.daemon = True
        elif name in ("verify", "fail"):
            setattr(tls, "verify_peer" if name == "verify" else "fail_if_no_peer_cert", True)
        elif name == "keypass":
            tls.key_password = value
        elif name in ("cacert", "cert", "key"):
            setattr(tls, {"cacert": "cafile", "cert": "certfile", "key": "keyfile"}[name], value)
        elif name == "log_level":
            config.log.level = value.lower()


def _apply_url(config: Config, url: str) -> None:
    if url.startswith(("nmq-tcp", "broker+tcp", "tcp")):
        config.url, config.enable = url, True
    elif url.startswith("tls+nmq-tcp"):
        config.tls.url, config.tls.enable = url, True
    elif url.startswith(("nmq-wss", "wss")):
        config.websocket.tls_url, config.websocket.tls_enable, config.tls.enable = url, True, True
    elif url.startswith(("nmq-ws", "ws")):
        config.websocket.url, config.websocket.enable = url, True


def _start(argv: list[str], version: str) -> int:
    config, options = _configure(argv, version)
    _apply(config, options)
    config.add_default_listeners()
    if config.daemon:
        _daemonize()
    log = _Log(config)
    for line in config.warnings:
        log.write(*line.split(None, 1))
    _store_pid()
    logging.disable(logging.CRITICAL)  # what the library inside has to say is not what the real broker would say
    try:
        asyncio.run(_run(config, version, argv, log))
    except OSError as error:
        print(f"broker nng_listen: {error.strerror or error}", file=sys.stderr, flush=True)
        os._exit(1)
    return 0


async def _run(config: Config, version: str, argv: list[str], log: _Log) -> None:
    from .broker import Broker

    broker = Broker(config, lambda text: log.write("TRACE", text))
    await broker.start()
    if config.http_server.enable:
        from .rest import Rest

        await Rest(config, broker, version, argv, lambda: _exit(1)).start()
        log.write(
            "WARN",
            f"broker: NanoMQ (ver {version}) Serving HTTP Server on "
            f"http://{config.http_server.ip_addr or '(null)'}:{config.http_server.port}",
        )
    if config.ipc_internal:
        await _serve_ipc(config, version)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTRAP, signal.SIGFPE):
        loop.add_signal_handler(number, lambda number=number: log.signal(number))
    for number, code in ((signal.SIGINT, 1), (signal.SIGABRT, 1), (signal.SIGILL, 0), (signal.SIGTERM, 0)):
        loop.add_signal_handler(number, lambda number=number, code=code: (log.signal(number), _exit(code)))
    # Kept back until the next line of the log, unless this is a terminal.
    print("NanoMQ Broker is started successfully!")
    await loop.create_future()


class _Log:
    """The broker's log: on the console always, in a file if asked."""

    def __init__(self, config: Config) -> None:
        self._threshold = LEVELS.index(config.log.level) if config.log.level in LEVELS else LEVELS.index("error")
        self._file = None
        if config.log.to_file:
            path = os.path.join(config.log.dir or "./", config.log.file or "nanomq.log")
            try:
                self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
            except OSError:
                _segmentation_fault()

    def write(self, level: str, text: str) -> None:
        if LEVELS.index(level.lower()) < self._threshold:
            return
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {level:5} {text}"
        print(line, flush=True)
        if self._file:
            print(line, file=self._file)

    def signal(self, number: int) -> None:
        self.write("ERROR", f"sig_handler: signal signumber: {int(number)} received!\n")


def _store_pid() -> None:
    """Note the pid; a file that cannot be written is no reason not to start."""
    path = _pid_file()
    try:
        if path.startswith(f"{_PID_DIRECTORY}/"):
            os.makedirs(_PID_DIRECTORY, mode=0o700, exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(str(os.getpid()).ljust(12, "\0"))
    except OSError:
        print('create "nanomq.pid" file failed', flush=True)


def _pid_file() -> str:
    return os.environ.get("NANOMQ_PID_FILE", f"{_PID_DIRECTORY}/nanomq.pid")


def _running_pid() -> int | None:
    try:
        with open(_pid_file(), encoding="ascii") as file:
            pid = int(file.read().rstrip("\0\n"))
        os.kill(pid, 0)
        return pid
    except (OSError, ValueError):
        return None


def _stop(_argv: list[str], _version: str) -> int:
    pid = _running_pid()
    if pid is None:
        print("There is no running NanoMQ instance.", file=sys.stderr)
        return 1
    os.kill(pid, signal.SIGTERM)
    print("NanoMQ stopped.", file=sys.stderr)
    return 0


def _restart(argv: list[str], version: str) -> int:
    pid = _running_pid()
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        while _running_pid() == pid:
            time.sleep(0.01)
        print("Previous NanoMQ instance stopped.", file=sys.stderr)
    return _start(argv, version)


def _reload(argv: list[str], version: str) -> int:
    """Ask the running broker to read a file again, after reading it here: a broken one ends only this program."""
    if _running_pid() is None:
        print(
            "NanoMQ is not running, use command 'nanomq start [--conf <path>]' to start a new instance.",
            file=sys.stderr,
        )
        return 1
    config, _options_left = _configure(argv, version)
    asyncio.run(_ask(_ipc_url(config), {"cmd": "reload", "conf_file": config.conf_file}))
    return 0


async def _ask(url: str, command: dict) -> None:
    broker = await sp.connect(url)
    await broker.greet(sp.REQUEST, sp.REPLY)
    broker.send(b"\x80\0\0\1" + json.dumps(command).encode())
    print((await broker.receive())[4:].rstrip(b"\0").decode())


def _ipc_url(config: Config) -> str:
    url = _IPC if config.hook_ipc_url is None else config.cmd_ipc_url
    if url is None:
        _segmentation_fault()
    return url


async def _serve_ipc(config: Config, version: str) -> None:
    """Socket for `nanomq reload`: whoever can open it is obeyed."""

    async def serve(caller: sp.End) -> None:
        await caller.greet(sp.REPLY, sp.REQUEST)
        body = await caller.receive()
        caller.send(body[:4] + obey(body[4:]) + b"\0")

    def obey(text: bytes) -> bytes:
        try:
            request = json.loads(text)
            if request["cmd"].lower() != "reload":
                return b"reload failed, invalid command!"
        except (ValueError, LookupError, TypeError, AttributeError):
            return b"reload failed, invalid command!"
        # A file that is not there: it means to refuse, and ends.
        if not os.path.isfile(request.get("conf_file", config.conf_file)):
            _exit(2)
        fresh = Config(conf_file=request.get("conf_file", config.conf_file))
        try:
            read_file(fresh, tuple(int(part) for part in version.split(".")))
        except (dialect.ParserError, dialect.Crash):
            _exit(1)
        for name in (
            "property_size",
            "max_packet_size",
            "client_max_packet_size",
            "msq_len",
            "qos_duration",
            "keepalive_backoff",
            "allow_anonymous",
        ):
            setattr(config, name, getattr(fresh, name))
        config.auth.users = fresh.auth.users
        if tuple(int(part) for part in version.split(".")) >= (0, 25, 6):
            config.acl_rules, config.no_match, config.deny_action = fresh.acl_rules, fresh.no_match, fresh.deny_action
        return b"reload succeed!"

    url = _ipc_url(config)
    with contextlib.suppress(OSError):
        os.unlink(url.removeprefix("ipc://"))
    await sp.listen(url, serve)


def _daemonize() -> None:
    for _fork in range(2):
        if os.fork():
            os._exit(0)
        os.setsid()
    os.chdir("/")


def _exit(code: int) -> NoReturn:
    """End at once and leave pid file and socket behind, as the broker does."""
    sys.stdout.flush()
    os._exit(code)


def _segmentation_fault() -> NoReturn:
    sys.stdout.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)
    raise SystemExit(139)
