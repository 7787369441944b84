#!/usr/bin/env python3
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run a command in the test bed's namespace, and say what it cost.

    measure.py RESULT.json LOG INVENTORY TIMEOUT COMMAND...

What the command leaves behind, such as shared ssh connections, is adopted, closed and counted as well: the next command
finds none. Bytes are those of the bridge of the hosts' network, as the kernel counts them: all that the controller sent
to the hosts and got from them, each header and each retry in it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 5.0  # seconds in which what is left behind is to end


def bridge(inventory: dict) -> str:
    """The interface of the hosts' network on the controller's side."""
    some = next(iter(next(iter(inventory["all"]["children"].values()))["hosts"].values()))
    gateway = some["lab_ipv4"].rpartition(".")[0] + ".1"
    found = json.loads(subprocess.check_output(["ip", "-json", "address", "show"]))
    return next(
        link["ifname"] for link in found if any(address.get("local") == gateway for address in link["addr_info"])
    )


def traffic(interface: str) -> tuple[int, int]:
    """Bytes that went to the hosts, and that came from them, since the network was made."""
    # Not /sys, which shows the machine's own interfaces.
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _colon, counters = line.partition(":")
        if name.strip() == interface:
            numbers = counters.split()
            return int(numbers[8]), int(numbers[0])
    raise KeyError(interface)


def close_connections(inventory: dict) -> None:
    """End the shared ssh connections to the hosts."""
    shared = re.search(r"ControlPath=(\S+)/%C", inventory["all"]["vars"]["ansible_ssh_common_args"])
    for socket in Path(shared[1]).glob("*") if shared else ():
        subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "lab"], check=False, capture_output=True)


def reap() -> None:
    """Wait for all that is left, and end what does not end by itself."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            continue
        if time.monotonic() > until:
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
            until += PATIENCE
        time.sleep(0.02)


def main() -> int:
    result, log, path, timeout, *command = sys.argv[1:]
    inventory = json.loads(Path(path).read_text())
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    interface = bridge(inventory)
    close_connections(inventory)
    before, usage_before = traffic(interface), resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    with open(log, "w") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
        timer = threading.Timer(float(timeout), os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        status = process.wait()
        timer.cancel()
    seconds = time.monotonic() - began
    close_connections(inventory)
    reap()
    after, usage = traffic(interface), resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = usage.ru_utime + usage.ru_stime - usage_before.ru_utime - usage_before.ru_stime
    Path(result).write_text(
        json.dumps(
            {
                "status": status,
                "seconds": seconds,
                "controller_seconds": spent,
                "memory_mb": usage.ru_maxrss / 1024,  # of the biggest process
                "sent_kb": (after[0] - before[0]) / 1000,
                "received_kb": (after[1] - before[1]) / 1000,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
