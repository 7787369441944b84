# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The programs that run the other tests never take a failure for a success."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAB = """\
#!/usr/bin/env bash
echo "$* ${EDGESEC_LAB_RUN:-}" >>calls
case $* in
    "molecule test bad") echo "the reason"; [ "$EDGESEC_LAB_RUN" != "$BAD_ON" ] ;;
    "$FAILS") exit 1 ;;
esac
"""
MAKEFILE = """\
a:
\t@echo '=== 3 passed in 1.2s ==='; exit 1
b:
\t@echo '4 passed, 0 failed'; echo 'more'
c:
\t@true
"""


def parallel(tmp_path: pathlib.Path, tasks: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run tests/parallel.py on tasks."""
    return subprocess.run(
        [sys.executable, ROOT / "tests/parallel.py", "--jobs", "2", "--logs", tmp_path / "logs", *options],
        input=tasks,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"CI": ""},
    )


class TestParallel:
    def test_passes_when_all_pass(self, tmp_path: pathlib.Path) -> None:
        done = parallel(tmp_path, "one\ttrue\ntwo\ttrue\n")

        assert done.returncode == 0
        assert done.stdout.splitlines()[-1] == "2 passed, 0 failed"

    @pytest.mark.parametrize("command", ["exit 3", "kill -9 $$", "/no/such/program", "false && true"])
    def test_one_failure_fails_all_and_shows_why(self, tmp_path: pathlib.Path, command: str) -> None:
        done = parallel(tmp_path, f"good\ttrue\nbad real\techo the reason; {command}\n")

        assert done.returncode == 1
        assert done.stdout.splitlines()[-1] == "1 passed, 1 failed"
        assert "FAILED bad" in done.stdout
        assert "the reason" in done.stdout
        assert (tmp_path / "logs" / "bad-real.log").read_text().startswith("the reason")

    def test_time_limit_ends_a_task_with_its_children(self, tmp_path: pathlib.Path) -> None:
        child = tmp_path / "child"
        done = parallel(tmp_path, f"slow\tsleep 300 & echo $! >{child}; wait\n", "--timeout", "1")

        assert done.returncode == 1
        assert not is_running(int(child.read_text()))

    def test_interrupt_ends_the_tasks(self, tmp_path: pathlib.Path) -> None:
        child = tmp_path / "child"
        process = subprocess.Popen(
            [sys.executable, ROOT / "tests/parallel.py", "--jobs", "1", "--logs", tmp_path / "logs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdin
        process.stdin.write(f"slow\techo $$ >{child}; exec sleep 300\nnext\ttouch {tmp_path / 'next'}\n")
        process.stdin.close()
        wait_until(lambda: child.exists() and child.read_text().strip() != "")
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=30) == 130
        assert not is_running(int(child.read_text()))
        assert not (tmp_path / "next").exists()

    @pytest.mark.parametrize("tasks", ["", "no command\n", "a\ttrue\na\ttrue\n", "a\t \n"])
    def test_nothing_or_nonsense_is_a_failure(self, tmp_path: pathlib.Path, tasks: str) -> None:
        assert parallel(tmp_path, tasks).returncode == 1


class TestScenarios:
    @pytest.fixture
    def project(self, tmp_path: pathlib.Path) -> pathlib.Path:
        """A project with the scenarios `good` and `bad`, and a lab that only notes how it is called."""
        (tmp_path / "tests/lab").mkdir(parents=True)
        for name in ("tests/parallel.py", "tests/lab/run-scenarios"):
            shutil.copy(ROOT / name, tmp_path / name)
        lab = tmp_path / "tests/lab/lab"
        lab.write_text(LAB)
        lab.chmod(0o755)
        for scenario in ("good", "bad"):
            (tmp_path / "molecule" / scenario).mkdir(parents=True)
            (tmp_path / "molecule" / scenario / "molecule.yml").touch()
        return tmp_path

    @staticmethod
    def run(project: pathlib.Path, *names: str, **environment: str) -> tuple[int, str, list[str]]:
        """Exit status, output and calls of the lab."""
        env = {name: value for name, value in os.environ.items() if name not in ("NANOMQ_BINARY", "CI", "JOBS")}
        env |= {"PATH": "/usr/bin:/bin", "FAILS": "-", "BAD_ON": "none"} | environment
        done = subprocess.run(
            [project / "tests/lab/run-scenarios", *names],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=env,
        )
        calls = project / "calls"
        return done.returncode, done.stdout, calls.read_text().splitlines() if calls.exists() else []

    def test_all_scenarios_run_on_the_double(self, project: pathlib.Path) -> None:
        status, output, calls = self.run(project)

        assert status == 0
        assert output.splitlines()[-1] == "2 passed, 0 failed"
        assert sorted(call for call in calls if "molecule" in call) == [
            "molecule test bad double",
            "molecule test good double",
        ]

    def test_a_real_broker_gets_all_of_them_too(self, project: pathlib.Path) -> None:
        status, output, calls = self.run(project, NANOMQ_BINARY="/bin/true", BAD_ON="real")

        assert status == 1
        assert output.splitlines()[-1] == "3 passed, 1 failed"
        assert "the reason" in output
        assert "molecule test good real" in calls

    def test_those_that_take_longest_come_first(self, project: pathlib.Path) -> None:
        script = (ROOT / "tests/lab/run-scenarios").read_text()
        names = re.search(r"(?m)^readonly longest=\((.+)\)$", script)[1].split()
        for name in names:
            assert (ROOT / "molecule" / name / "molecule.yml").exists()
            (project / "molecule" / name).mkdir()
            (project / "molecule" / name / "molecule.yml").touch()

        _status, _output, calls = self.run(project, JOBS="1")

        order = [call.split()[2] for call in calls if "molecule" in call]
        assert order == [*names, "bad", "good"]

    def test_one_can_be_named(self, project: pathlib.Path) -> None:
        status, output, _calls = self.run(project, "good")

        assert (status, output.splitlines()[-1]) == (0, "1 passed, 0 failed")

    def test_an_unknown_name_is_a_failure(self, project: pathlib.Path) -> None:
        assert self.run(project, "better")[0] == 1

    def test_no_scenario_is_a_failure(self, project: pathlib.Path) -> None:
        shutil.rmtree(project / "molecule")

        assert self.run(project)[0] == 1

    @pytest.mark.parametrize("step", ["install", "images", "deb --kind double"])
    def test_a_lab_that_does_not_come_up_is_a_failure(self, project: pathlib.Path, step: str) -> None:
        status, _output, calls = self.run(project, FAILS=step)

        assert status == 1
        assert not [call for call in calls if "molecule" in call]
        assert calls[-1].startswith("stop")

    def test_its_hosts_are_gone_in_the_end(self, project: pathlib.Path) -> None:
        status, _output, calls = self.run(project, BAD_ON="double")

        assert status == 1
        assert {"down good double", "down bad double"} <= set(calls)
        assert calls[-1].startswith("stop")


class TestStages:
    def test_all_run_and_one_failure_fails(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "tests").mkdir()
        shutil.copy(ROOT / "tests/stages", tmp_path / "tests/stages")
        (tmp_path / "Makefile").write_text(MAKEFILE)
        env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKE", "MAKELEVEL")}
        done = subprocess.run(
            [tmp_path / "tests/stages", "a", "b", "c"], capture_output=True, text=True, check=False, timeout=60, env=env
        )
        summary = [line.split() for line in done.stdout.splitlines()[-3:]]

        assert done.returncode == 1
        assert [words[:2] for words in summary] == [["FAILED", "a"], ["ok", "b"], ["ok", "c"]]
        assert summary[0][4:] == ["3", "passed", "in", "1.2s"]
        assert summary[1][4:] == ["4", "passed,", "0", "failed"]


def is_running(pid: int) -> bool:
    """Whether a process lives; one that only waits to be reaped does not."""
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition) -> None:
    """Wait, 10 seconds at most, until a condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
