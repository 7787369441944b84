# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run named commands side by side, each into a log of its own, and say how they ended.

    python3 tests/parallel.py --jobs N --logs DIR [--timeout SECONDS] < TASKS

TASKS holds one task a line: its name, a tab, a shell command. A name may have several words; they become the columns of
the table. Exit status: 0 if every task ended with 0, else 1; 130 when interrupted, after the tasks were ended.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

TAIL_LINES = 60
GRACE_SECONDS = 30


class Task(NamedTuple):
    """A command to run."""

    name: str
    command: str


class Result(NamedTuple):
    """How a command ended: `status` is 0, the exit status, or minus the signal; `seconds` is wall-clock time."""

    task: Task
    status: int
    seconds: float
    log: pathlib.Path


class Runner:
    """Runs tasks, and ends those under way when asked to stop."""

    def __init__(self, logs: pathlib.Path, timeout: float) -> None:
        self.logs = logs
        self.timeout = timeout
        self.stopping = threading.Event()

    def run(self, task: Task) -> Result:
        """Run one task to its end, its time limit, or the stop."""
        log = self.logs / f"{task.name.replace(' ', '-')}.log"
        started = time.monotonic()
        if self.stopping.is_set():
            return Result(task, -signal.SIGTERM, 0, log)
        with log.open("wb") as output:
            # A session of its own: whatever the command starts can be ended with it.
            process = subprocess.Popen(
                ["bash", "-c", task.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = self._wait(process, started + self.timeout)
        return Result(task, status, time.monotonic() - started, log)

    def _wait(self, process: subprocess.Popen[bytes], deadline: float) -> int:
        while not self.stopping.is_set() and time.monotonic() < deadline:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
        for how, grace in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
            try:
                os.killpg(process.pid, how)
                process.wait(timeout=grace)
                break
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                break
        return process.wait() or -signal.SIGTERM


def read_tasks(lines: list[str]) -> list[Task]:
    """Parse `name<TAB>command` lines; raises ValueError for a line without a command or a name used twice."""
    tasks = []
    for line in filter(str.strip, lines):
        name, tab, command = line.rstrip("\n").partition("\t")
        if not tab or not name.strip() or not command.strip():
            raise ValueError(f"not a name, a tab and a command: {line!r}")
        tasks.append(Task(name.strip(), command))
    if len({task.name for task in tasks}) != len(tasks):
        raise ValueError("a name is used twice")
    return tasks


def describe(result: Result, widths: list[int]) -> str:
    """One line of the table."""
    columns = result.task.name.split()
    padded = " ".join(f"{column:<{width}}" for column, width in zip(columns, widths))
    return f"{'ok' if result.status == 0 else 'FAILED':<6} {padded} {result.seconds:7.1f} s"


def tail(log: pathlib.Path) -> str:
    """The end of a log; all of it under CI, where the log itself is out of reach."""
    if not log.exists():
        return "(never started)"
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines if os.environ.get("CI") else lines[-TAIL_LINES:])


def run_all(runner: Runner, tasks: list[Task], jobs: int) -> list[Result]:
    """Run the tasks, at most `jobs` at a time; print each as it ends."""
    widths = [max(map(len, column)) for column in zip(*(task.name.split() for task in tasks))]
    results = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            for done in concurrent.futures.as_completed([pool.submit(runner.run, task) for task in tasks]):
                result = done.result()
                results.append(result)
                print(describe(result, widths), flush=True)
                if result.status and not runner.stopping.is_set():
                    print(f"--- {result.log}\n{tail(result.log)}\n---", flush=True)
        except KeyboardInterrupt:
            runner.stopping.set()
            raise
    return results


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--logs", type=pathlib.Path, required=True)
    parser.add_argument("--timeout", type=float, default=1800)
    options = parser.parse_args()

    options.logs.mkdir(parents=True, exist_ok=True)
    tasks = read_tasks(sys.stdin.readlines())
    if not tasks:
        print("nothing to run", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = run_all(Runner(options.logs, options.timeout), tasks, options.jobs)
    except KeyboardInterrupt:
        return 130
    failed = sum(result.status != 0 for result in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
