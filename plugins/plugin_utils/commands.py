# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Programs of the user that are run on the controller: without a shell, for a limited time, with limited output."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time

from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import CryptoError

#: Bytes of each stream that are read. A chain of certificates is a few thousand.
OUTPUT_LIMIT = 256 * 1024

#: How much of what a program complained about is shown.
SHOWN_LINES, SHOWN_CHARACTERS = 5, 300

_PRIVATE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def check_command(argv: list[str], option: str) -> None:
    """Raise ValueError naming the option unless ``argv`` begins with a program that can be run."""
    if not argv or not all(argv[:1]):
        raise ValueError(f"{option} is empty: give the program and its arguments as a list")
    if not os.path.isabs(argv[0]):
        raise ValueError(f"{option}: {argv[0]!r} must be an absolute path; a shell is not involved")
    if any("\0" in word for word in argv):
        raise ValueError(f"{option}: an argument has a zero byte in it")
    if shutil.which(argv[0]) is None:
        raise ValueError(f"{option}: {argv[0]} does not exist on the controller, or cannot be run")


def run_command(
    argv: list[str], option: str, *, timeout: float, stdin: str = "", variables: dict[str, str], secrets: list[str]
) -> bytes:
    """Run a program and return what it printed. Raises CryptoError naming the option, with the end of its complaints.

    ``variables`` are added to the environment of this process. ``secrets`` are taken out of the complaints. A program
    that does not end in time, or prints too much, is ended with everything it started.
    """
    with tempfile.TemporaryFile() as given:
        given.write(stdin.encode("ascii"))
        given.seek(0)
        try:
            process = subprocess.Popen(  # pylint: disable=consider-using-with
                argv,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        except OSError as error:
            raise CryptoError(f"{option}: {argv[0]} cannot be run: {error.strerror}") from None
    try:
        printed, complaints, problem = _collect(process, time.monotonic() + timeout)
        if not problem and process.returncode:
            problem = f"failed ({_ending(process.returncode)})"
        elif problem == "time":
            problem = f"did not end within {timeout:g} s"
    finally:
        _end(process)
    if problem:
        shown = _shown(complaints, secrets)
        raise CryptoError(f"{option}: {argv[0]} {problem}" + (f": {shown}" if shown else ", and said nothing"))
    return printed


def _collect(process: subprocess.Popen, until: float) -> tuple[bytes, bytes, str]:
    """Return what the program printed on both streams, and what is wrong: '', 'time', or a text."""
    streams = {process.stdout: bytearray(), process.stderr: bytearray()}
    problem = ""
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and not problem:
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready:
                problem = "time"
            for key, _events in ready:
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                streams[key.fileobj] += data
                if len(streams[key.fileobj]) > OUTPUT_LIMIT:
                    problem = f"printed more than {OUTPUT_LIMIT} bytes"
    if not problem:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            problem = "time"
    return bytes(streams[process.stdout]), bytes(streams[process.stderr]), problem


def _end(process: subprocess.Popen) -> None:
    """End what is left of the program's session, and close the pipes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _shown(complaints: bytes, secrets: list[str]) -> str:
    """The last lines of what a program complained about, with neither secrets nor control characters."""
    text = _PRIVATE.sub("***", complaints.decode("utf-8", "replace"))
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    lines = ["".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines()]
    return " | ".join(line[:SHOWN_CHARACTERS] for line in [line for line in lines if line][-SHOWN_LINES:])
